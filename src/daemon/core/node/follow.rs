//! Those who follow the changes of entities: answered from the shard's latest changes, or kept waiting until there are some.
//!
//! An answer is right whoever gives it: what is applied is committed, and says up to which place of the shard's history it
//! goes. That its leader is the leader is only asked (like for a read) so that nobody waits at one that is not.
//!
//! Where the shard does not remember far enough back, the rows are read instead: each entity knows the place of its last
//! change. Deleted ones keep a row, so their end is not missed either. Only what was between is lost, and the answer says so.
use std::ops::ControlFlow;

use super::*;
use crate::daemon::core::entity::past;
use crate::daemon::core::replica::Read;
use crate::protocol::change::{CHANGE_RANGES_MAX, CHANGES_BYTES_MAX, Change, Changed, Since};
use crate::protocol::key::{self, RowKind};

/// Questions that wait, by the shard that they wait for.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    by_shard: BTreeMap<ShardId, Vec<Watcher>>,
    count: usize,
    /// Shards that remember changes, and perhaps some that do not any more.
    remembering: BTreeSet<ShardId>,
}

/// An answer, with a correction of the asker's map.
type Answer = (Response, Option<Box<RouteHint>>);

#[derive(Debug)]
struct Watcher {
    /// Its ranges are moved on as changes pass that are not in them.
    read: Read,
    until: Time,
}

impl Watchers {
    fn add(&mut self, shard: ShardId, watcher: Watcher) {
        self.by_shard.entry(shard).or_default().push(watcher);
        self.count += 1;
    }

    fn take(&mut self, shard: ShardId) -> Vec<Watcher> {
        let taken = self.by_shard.remove(&shard).unwrap_or_default();
        self.count -= taken.len();
        taken
    }
}

impl Node {
    /// Notes changes for those who follow the shard.
    pub(super) fn note_changes(&mut self, replica: &mut Replica, changes: Vec<Noted>) {
        if !changes.is_empty() && replica.changes.bytes() == 0 {
            self.watchers.remembering.insert(replica.shard.id);
        }
        for noted in changes {
            replica.changes.push(noted, self.changes_bytes_max);
        }
    }

    /// Answers a question for changes at the shard's leader, or lets it wait.
    pub(in crate::daemon::core) fn watch_here(
        &mut self,
        replica: &Replica,
        read: Read,
        state: &dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let Request::Changes { wait_ms, .. } = read.request else {
            return Ok(());
        };
        match self.news(replica, &read.request, state) {
            Ok(None) => {}
            Ok(Some((response, hint))) => {
                self.reply(read.waiting, response, hint, None, effects);
                return Ok(());
            }
            Err(error) => return self.unread_for(replica, read.waiting, error),
        }
        let now = self.clock.now;
        // Whoever waits must be told before it gives up.
        let until = (now + Span::millis(wait_ms.into())).min(read.waiting.deadline - Span::millis(20));
        let watcher = Watcher { read, until };
        if until <= now {
            self.nothing_new(replica, watcher, effects);
        } else if self.watchers.count >= WATCHERS_MAX {
            let text = format!("{WATCHERS_MAX} questions for changes wait on this node; nothing was done");
            let mut error = WireError::new(Code::Busy, text);
            error.retry_after_ms = 500;
            self.reply(watcher.read.waiting, Response::Error(error), None, None, effects);
        } else {
            self.watchers.add(replica.shard.id, watcher);
        }
        Ok(())
    }

    /// Answers those for whom there is something after entries were applied.
    pub(super) fn wake_watchers(
        &mut self,
        replica: &Replica,
        state: &dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let shard = replica.shard.id;
        if !self.watchers.by_shard.contains_key(&shard) {
            return Ok(());
        }
        for mut watcher in self.watchers.take(shard) {
            match self.news(replica, &watcher.read.request, state) {
                Ok(None) => {}
                Ok(Some((response, hint))) => {
                    self.reply(watcher.read.waiting, response, hint, None, effects);
                    continue;
                }
                Err(error) => {
                    self.unread_for(replica, watcher.read.waiting, error)?;
                    continue;
                }
            }
            // What has passed was not for it, and need not be looked at again.
            if let Request::Changes { ranges, .. } = &mut watcher.read.request {
                ranges.iter_mut().for_each(|since| since.after = Some(replica.history));
            }
            self.watchers.add(shard, watcher);
        }
        Ok(())
    }

    /// Answers those whose time is up.
    pub(super) fn expire_watchers(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let is_late = |watchers: &Vec<Watcher>| watchers.iter().any(|watcher| watcher.until <= now);
        let of = self.watchers.by_shard.iter();
        let shards: Vec<ShardId> = of.filter(|(_, w)| is_late(w)).map(|(&shard, _)| shard).collect();
        for shard in shards {
            let Some(replica) = self.replicas.remove(&shard) else {
                continue;
            };
            for watcher in self.watchers.take(shard) {
                if watcher.until <= now {
                    self.nothing_new(&replica, watcher, effects);
                } else {
                    self.watchers.add(shard, watcher);
                }
            }
            self.replicas.insert(shard, replica);
        }
    }

    /// Sends away those who wait at a copy that does not lead any more.
    pub(super) fn dismiss_watchers(&mut self, replica: &Replica, effects: &mut Effects) {
        for watcher in self.watchers.take(replica.shard.id) {
            let hint = self.hint_for(&replica.shard.range.start);
            let response = Response::Error(replica::not_leader());
            self.reply(watcher.read.waiting, response, hint, None, effects);
        }
    }

    /// Gives each shard that has any its share of the memory for latest changes.
    pub(super) fn share_changes(&mut self) {
        let replicas = &mut self.replicas;
        let remembering = &mut self.watchers.remembering;
        remembering.retain(|shard| replicas.get(shard).is_some_and(|replica| replica.changes.bytes() > 0));
        let share = CHANGES_NODE_BYTES_MAX / remembering.len().max(1);
        let share = share.clamp(CHANGES_SHARE_MIN, CHANGES_KEPT_BYTES_MAX);
        if std::mem::replace(&mut self.changes_bytes_max, share) > share {
            for shard in remembering.iter() {
                if let Some(replica) = replicas.get_mut(shard) {
                    replica.changes.trim(share);
                }
            }
        }
    }

    /// A shard has got changes from another one.
    pub(super) fn may_remember(&mut self, shard: ShardId) {
        self.watchers.remembering.insert(shard);
    }

    /// A damaged row: its copy is looked for when it is in its place again. Anything else stops the node.
    fn unread_for(&mut self, replica: &Replica, waiting: Waiting, error: StateError) -> Result<(), StateError> {
        if !matches!(error, StateError::Checksum { .. }) {
            return Err(error);
        }
        self.unread.push((replica.shard.id, waiting, error));
        Ok(())
    }

    fn nothing_new(&mut self, replica: &Replica, watcher: Watcher, effects: &mut Effects) {
        let Request::Changes { ranges, .. } = &watcher.read.request else {
            return;
        };
        let changed = Changed {
            items: Vec::new(),
            range: covered(ranges, &replica.shard.range),
            at: replica.history,
            is_all: true,
            is_resync: false,
            shard: replica.shard.range.clone(),
        };
        let response = Response::Changed(Box::new(changed));
        self.reply(watcher.read.waiting, response, None, None, effects);
    }

    /// The answer to a question for changes, if it need not wait.
    fn news(&self, replica: &Replica, request: &Request, state: &dyn State) -> Result<Option<Answer>, StateError> {
        let Request::Changes {
            ranges,
            limit,
            documents,
            ..
        } = request
        else {
            return Ok(None);
        };
        if replica.is_quarantined() {
            return Ok(Some((Response::Error(replica::not_leader()), None)));
        }
        let shard = &replica.shard.range;
        let first = first_of(ranges);
        if !shard.contains(&first) {
            let text = format!("{} no longer holds {first}", replica.shard.id);
            let error = WireError::new(Code::StaleRoute, text);
            return Ok(Some((Response::Error(error), self.hint_for(&first))));
        }
        let limit = *limit as usize;
        let range = covered(ranges, shard);
        let mut wanted: Vec<Since> = ranges.to_vec();
        wanted.retain_mut(|since| {
            let end = since.range.end.clone();
            since.range.end = end.min(range.end.clone());
            since.range.start < since.range.end
        });
        let is_missing = |since: &&Since| {
            let after = since.after.unwrap_or(replica.history);
            // Beyond the end: this is not the history that was read before.
            after > replica.history || !replica.changes.reach(&since.range, after)
        };
        if let Some(since) = wanted.iter().find(is_missing) {
            let changed = resync(replica, since, limit, *documents, state)?;
            return Ok(Some((Response::Changed(Box::new(changed)), None)));
        }
        let mut changed = Changed {
            items: Vec::new(),
            range,
            at: replica.history,
            is_all: true,
            is_resync: false,
            shard: shard.clone(),
        };
        let (mut bytes, mut last) = (0, 0);
        for noted in replica.changes.since(&wanted) {
            let is_full = changed.items.len() >= limit || bytes >= CHANGES_BYTES_MAX;
            // Changes of one place are not divided: the next question begins behind it.
            if is_full && noted.at > last {
                (changed.at, changed.is_all) = (last, false);
                break;
            }
            last = noted.at;
            let document = match documents {
                true => document(noted, state)?,
                false => None,
            };
            let key = noted.position.parts().1.unwrap_or_default().to_owned();
            bytes += key.len() + 64 + document.as_ref().map_or(0, bytes::Bytes::len);
            changed.items.push(Change {
                key,
                version: noted.version,
                deleted: noted.deleted,
                updated_ms: noted.wall_ms,
                cause: noted.cause.clone(),
                document,
            });
        }
        let asks_where = ranges.iter().any(|since| since.after.is_none());
        let is_cut = ranges.last().is_some_and(|since| since.range.end > shard.end);
        let is_news = !changed.items.is_empty() || asks_where || is_cut;
        Ok(is_news.then(|| (Response::Changed(Box::new(changed)), None)))
    }
}

/// The document that a change made, while it is the entity's current one.
fn document(noted: &Noted, state: &dyn State) -> Result<Option<bytes::Bytes>, StateError> {
    let entity = machine::read(&noted.position, state)?;
    let current = entity.filter(|entity| entity.version == noted.version);
    Ok(current.map(|entity| entity.document))
}

/// What changed in a range, as the rows tell.
fn resync(
    replica: &Replica,
    since: &Since,
    limit: usize,
    documents: bool,
    state: &dyn State,
) -> Result<Changed, StateError> {
    let after = since.after.filter(|&after| after <= replica.history).unwrap_or(0);
    let (mut items, mut bytes, mut rows) = (Vec::new(), 0, 0);
    let (mut through, mut bad) = (since.range.end.clone(), None);
    state.scan(&since.range.start.0, &since.range.end.0, &mut |row, value| {
        let Some((position, kind, _)) = key::split_row_key(row) else {
            return ControlFlow::Continue(());
        };
        let is_head = kind == RowKind::Head as u8;
        if rows >= RESYNC_ROWS_MAX || items.len() >= limit || bytes >= CHANGES_BYTES_MAX {
            // An entity of which more than the first row is left is done with.
            through = if is_head { position } else { position.successor() };
            return ControlFlow::Break(());
        }
        rows += 1;
        if !is_head {
            return ControlFlow::Continue(());
        }
        let head = match machine::decode_head(row, value) {
            Ok(head) => head,
            Err(error) => {
                bad = Some(error);
                return ControlFlow::Break(());
            }
        };
        if head.version == 0 || head.changed_at <= after {
            return ControlFlow::Continue(());
        }
        let key = position.parts().1.unwrap_or_default().to_owned();
        let cause = past::current(&head).cause();
        let document = (documents && head.exists).then_some(head.document);
        bytes += key.len() + 64 + document.as_ref().map_or(0, bytes::Bytes::len);
        items.push(Change {
            key,
            version: head.version,
            deleted: !head.exists,
            updated_ms: head.updated_ms,
            cause,
            document,
        });
        ControlFlow::Continue(())
    })?;
    if let Some(error) = bad {
        return Err(error);
    }
    Ok(Changed {
        items,
        is_all: through == since.range.end,
        range: KeyRange {
            start: since.range.start.clone(),
            end: through,
        },
        at: replica.history,
        is_resync: true,
        shard: replica.shard.range.clone(),
    })
}

/// Where a question for changes begins: the shard that holds this answers it.
pub(in crate::daemon::core) fn first_of(ranges: &[Since]) -> Position {
    ranges
        .first()
        .map_or_else(Position::default, |since| since.range.start.clone())
}

/// The part of the ranges that a shard answers for.
fn covered(ranges: &[Since], shard: &KeyRange) -> KeyRange {
    let end = ranges
        .last()
        .map_or_else(Position::default, |since| since.range.end.clone());
    KeyRange {
        start: first_of(ranges),
        end: end.min(shard.end.clone()),
    }
}

/// Refuses ranges that are not adjacent and in order; gives their service.
pub(in crate::daemon::core) fn check_ranges(ranges: &[Since]) -> Result<&str, WireError> {
    let is_whole = |since: &Since| since.range.start < since.range.end;
    let follow = |pair: &[Since]| pair[0].range.end == pair[1].range.start;
    let count = ranges.len();
    if count == 0 || count > CHANGE_RANGES_MAX || !ranges.iter().all(is_whole) || !ranges.windows(2).all(follow) {
        let text = format!("between 1 and {CHANGE_RANGES_MAX} ranges can be asked for, adjacent and in order");
        return Err(WireError::new(Code::BadRequest, text));
    }
    Ok(ranges[0].range.service())
}

/// Least memory that a shard has for its latest changes, however many shards there are. Unit: bytes.
const CHANGES_SHARE_MIN: usize = 4 << 10;
