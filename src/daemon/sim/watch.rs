//! Readers that follow every change of a service, through everything that goes wrong: nothing may be missed without a word, and
//! nothing may go back.
use std::collections::BTreeMap;

use super::check::{Property, Violation};
use crate::protocol::change::{Changed, Cursor};
use crate::protocol::id::ClusterId;
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::request::Request;
use crate::protocol::shard_map::ShardMap;

/// What a reader knows of each key: the last version, and whether that removed the entity.
type Seen = BTreeMap<String, (u64, bool)>;

/// One reader.
pub struct Watcher {
    service: String,
    cursor: Cursor,
    /// Where it asks next.
    next: Position,
    seen: Seen,
    /// A token that it kept, and what it knew then.
    saved: (String, Seen),
    /// Set when it is only to reach the end: whether it has.
    reached_end: Option<bool>,
    /// Changes that it was told.
    pub changes: u64,
    /// Of these, how many were the last of several that are not remembered.
    pub resynced: u64,
}

const CLUSTER: ClusterId = ClusterId(1);

impl Watcher {
    /// A reader of all changes of a service, from the first on.
    pub fn new(service: &str) -> Self {
        let cursor = Cursor::new(KeyRange::all_of(service), Some(0));
        Self {
            service: service.to_owned(),
            next: cursor.scope().start.clone(),
            saved: (cursor.token(CLUSTER), Seen::new()),
            cursor,
            seen: Seen::new(),
            reached_end: None,
            changes: 0,
            resynced: 0,
        }
    }

    /// What to ask next. Now and then it forgets all that it did since it kept a token.
    pub fn ask(&mut self, rng: &mut fastrand::Rng, map: &ShardMap) -> Request {
        if self.reached_end.is_none() {
            match rng.u32(..100) {
                0..=3 => self.saved = (self.cursor.token(CLUSTER), self.seen.clone()),
                4..=5 => {
                    self.cursor = Cursor::from_token(&self.saved.0, CLUSTER).expect("its own token");
                    self.seen.clone_from(&self.saved.1);
                    self.next = self.cursor.scope().start.clone();
                }
                _ => {}
            }
        }
        let all = self.cursor.scope();
        let shard = map.find(&self.next).map_or(&all.end, |shard| &shard.range.end);
        let range = KeyRange {
            start: self.next.clone(),
            // Waiting is only of use where the shard has all that is asked for.
            end: if rng.u32(..10) == 0 { &all.end } else { shard }.clone(),
        };
        Request::Changes {
            ranges: self.cursor.since(&range),
            limit: rng.u32(1..40),
            documents: rng.bool(),
            wait_ms: match self.reached_end {
                None => [0, 0, 40, 300, 1_500][rng.usize(..5)],
                Some(_) => 0,
            },
        }
    }

    /// Takes in an answer, and judges it.
    pub fn took(&mut self, answer: &Changed) -> Result<(), Violation> {
        let bad = |text: String| Err(Violation::new(Property::Watch, text));
        for item in &answer.items {
            let (service, key, version) = (&self.service, &item.key, item.version);
            if !answer.range.contains(&Position::new(service, key)) {
                return bad(format!("{service}/{key} is outside {}", answer.range));
            }
            let known = self.seen.get(key).map_or(0, |&(version, _)| version);
            if version <= known {
                return bad(format!(
                    "{service}/{key}: version {version} was told after version {known}"
                ));
            }
            if version != known + 1 && !answer.is_resync {
                let text = format!("version {version} was told after version {known}, and not that any is missing");
                return bad(format!("{service}/{key}: {text}"));
            }
            if item.deleted && item.document.is_some() {
                return bad(format!(
                    "{service}/{key}: version {version} is deleted and has a document"
                ));
            }
            self.seen.insert(key.clone(), (version, item.deleted));
            self.changes += 1;
            self.resynced += u64::from(answer.is_resync && version != known + 1);
        }
        self.cursor.took(answer);
        let goes_on = answer.range.start == self.next && (answer.is_all || answer.is_resync);
        if goes_on {
            self.next = answer.range.end.clone();
        }
        if self.next >= self.cursor.scope().end {
            self.next = self.cursor.scope().start.clone();
            self.reached_end = self.reached_end.map(|_| true);
        }
        Ok(())
    }

    /// It is to go through all keys once more, and then be done.
    pub fn finish(&mut self) {
        if self.reached_end.is_none() {
            self.reached_end = Some(false);
            self.next = self.cursor.scope().start.clone();
        }
    }

    /// Whether it has gone through all keys since it was told to finish.
    pub fn is_done(&self) -> bool {
        self.reached_end == Some(true)
    }

    /// Compares what it knows with what a reader of the entity saw when all was quiet.
    pub fn judge(&self, service: &str, key: &str, version: Option<u64>) -> Result<(), Violation> {
        let known = self.seen.get(key).copied();
        let current = known.filter(|&(_, deleted)| !deleted).map(|(version, _)| version);
        if service != self.service || current == version {
            return Ok(());
        }
        let text = format!("{service}/{key} is at version {version:?}, and its last change was told as {known:?}");
        Err(Violation::new(Property::Watch, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::change::Change;

    fn told(versions: &[u64], is_resync: bool) -> Changed {
        let range = KeyRange::all_of("campaign");
        let item = |&version| Change {
            key: String::from("k"),
            version,
            deleted: false,
            updated_ms: 0,
            cause: None,
            document: None,
        };
        Changed {
            items: versions.iter().map(item).collect(),
            range: range.clone(),
            at: 9,
            is_all: true,
            is_resync,
            shard: range,
        }
    }

    #[test]
    fn what_is_missing_or_goes_back_is_found() {
        let judge = |answers: &[Changed]| {
            let mut watcher = Watcher::new("campaign");
            answers.iter().try_for_each(|answer| watcher.took(answer))?;
            watcher.judge("campaign", "k", Some(3))
        };
        assert_eq!(judge(&[told(&[1, 2], false), told(&[3], false)]), Ok(()));
        assert_eq!(judge(&[told(&[1], false), told(&[3], true)]), Ok(()));
        assert!(
            judge(&[told(&[1], false), told(&[3], false)]).is_err(),
            "one is missing"
        );
        assert!(judge(&[told(&[2, 3], false)]).is_err(), "the first is missing");
        assert!(judge(&[told(&[1, 2, 3], false), told(&[3], false)]).is_err());
        assert!(judge(&[told(&[4], true), told(&[3], true)]).is_err());
        assert!(judge(&[told(&[1, 2], false)]).is_err(), "the last is missing");
    }
}
