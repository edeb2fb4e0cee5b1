//! S1 LIN: is there one order of everything that happened to an entity that explains every answer, and in which
//! nothing comes before something that had ended before it began?
//!
//! The search is that of Wing and Gong with Lowe's memory (linearize what may come next, step back when stuck, never
//! look at the same set and state twice). Two things make it fast here. An answer that agrees with the state can be
//! taken at once, without ever stepping back over it, because it changes nothing. And versions strictly grow, so of
//! the writes that were answered only the one with the least version can come next. What is left to chance are writes
//! of unknown outcome; of those only the ones somebody saw, and deletes, are tried at first.
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

use crate::protocol::json::merge_patch;
use crate::protocol::request::{Change, Condition};

/// A point in the history: counts everything that clients send and receive, so no two are equal.
pub type Moment = u64;

/// One thing a client asked of the entity, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked.
    pub from: Moment,
    /// When it was answered; `None` where the outcome is unknown: it may happen at any later time.
    pub to: Option<Moment>,
    /// What it was.
    pub what: What,
    /// A name that is part of the document or patch it wrote, and of no other.
    pub tag: String,
}

/// What an operation did or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A write.
    Wrote {
        /// What had to hold.
        condition: Condition,
        /// What it did.
        change: Change,
        /// The version it made; `None` where the outcome is unknown.
        version: Option<u64>,
    },
    /// A read: version and, where asked for, document; `None` where there was no entity.
    Saw(Option<(u64, Option<Bytes>)>),
    /// Refused: the version was not the one that was asked for.
    Conflict {
        /// Asked for.
        asked: u64,
        /// Found, where the answer says.
        found: Option<u64>,
    },
    /// Refused: there was an entity.
    Exists {
        /// Its version, where the answer says.
        found: Option<u64>,
    },
    /// Refused: there was no entity.
    NotFound,
}

/// Why a history cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// How many operations the best attempt explained, and of how many that were answered.
    pub explained: (usize, usize),
    /// The entity as the best attempt left it.
    pub state: String,
    /// The operations it last explained.
    pub last: Vec<Operation>,
    /// The operations one of which had to come next.
    pub stuck: Vec<Operation>,
    /// The operation with the least version that is left: it has to come before all that name a greater one.
    pub least: Option<Operation>,
    /// The search was given up for its length; there may be an explanation after all.
    pub gave_up: bool,
}

/// Looks for an order that explains the history of one entity, which did not exist before it.
pub fn explain(operations: &[Operation]) -> Result<(), Box<Impossible>> {
    let visible: Vec<&Operation> = operations.iter().filter(|o| is_likely(o, operations)).collect();
    let first = Search::new(&visible).run(STEPS_MAX);
    if first.is_ok() || visible.len() == operations.len() {
        return first;
    }
    let all: Vec<&Operation> = operations.iter().collect();
    Search::new(&all).run(STEPS_MAX)
}

/// Steps after which a search is given up.
const STEPS_MAX: usize = 3_000_000;

/// Whether an operation is needed in a first attempt: it was answered, or is a delete, or somebody saw what it wrote.
fn is_likely(operation: &Operation, all: &[Operation]) -> bool {
    let What::Wrote {
        change, version: None, ..
    } = &operation.what
    else {
        return true;
    };
    let tag = operation.tag.as_bytes();
    matches!(change, Change::Delete)
        || all.iter().any(|other| match &other.what {
            What::Saw(Some((_, Some(document)))) => document.windows(tag.len()).any(|part| part == tag),
            _ => false,
        })
}

/// The entity at one point of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    document: Option<Bytes>,
    /// The version, or a bound that it lies above after a write of unknown outcome.
    version: u64,
    is_exact: bool,
}

struct Search<'a> {
    operations: &'a [&'a Operation],
    /// Calls and returns in order, as a list from which explained operations are taken out.
    entries: Vec<Entry>,
    /// Operations that name a version, ascending; the least one left bounds what may be written next.
    versioned: Vec<(u64, usize)>,
    done: Vec<bool>,
    done_hash: u128,
    answered_left: usize,
    answered: usize,
    order: Vec<usize>,
    best: Option<Impossible>,
    steps: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    operation: usize,
    is_return: bool,
    previous: usize,
    next: usize,
}

/// A point at which more than one operation could come next.
struct Choice {
    state: State,
    /// Length of `order` before the choice.
    explained: usize,
    candidates: Vec<usize>,
    next: usize,
}

/// Index of the list's anchor, which comes before the first and after the last entry.
const ANCHOR: usize = 0;

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation]) -> Self {
        let mut points: Vec<(Moment, usize, bool)> = Vec::with_capacity(operations.len() * 2);
        let mut versioned = Vec::new();
        let mut answered = 0;
        for (index, operation) in operations.iter().enumerate() {
            points.push((operation.from, index, false));
            if let Some(to) = operation.to {
                assert!(to > operation.from, "answered before it was asked");
                points.push((to, index, true));
                answered += 1;
            }
            if let Some(version) = operation.version() {
                versioned.push((version, index));
            }
        }
        points.sort_unstable();
        versioned.sort_unstable();
        let count = points.len();
        let mut entries = vec![Entry {
            operation: usize::MAX,
            is_return: false,
            previous: count,
            next: if count == 0 { 0 } else { 1 },
        }];
        for (index, (_, operation, is_return)) in points.into_iter().enumerate() {
            entries.push(Entry {
                operation,
                is_return,
                previous: index,
                next: (index + 2) % (count + 1),
            });
        }
        Self {
            operations,
            entries,
            versioned,
            done: vec![false; operations.len()],
            done_hash: 0,
            answered_left: answered,
            answered,
            order: Vec::new(),
            best: None,
            steps: 0,
        }
    }

    fn run(mut self, steps_max: usize) -> Result<(), Box<Impossible>> {
        let places = self.places();
        let mut seen: BTreeSet<(u128, u128)> = BTreeSet::new();
        let mut state = State {
            document: None,
            version: 0,
            is_exact: true,
        };
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            let explained = self.order.len();
            self.take_answers(&mut state, &places);
            if self.answered_left == 0 {
                return Ok(());
            }
            if seen.insert((self.done_hash, state.hash())) {
                let candidates = self.candidates(&state);
                self.note(&state);
                choices.push(Choice {
                    state: state.clone(),
                    explained,
                    candidates,
                    next: 0,
                });
            } else {
                // The choice that led here goes on to its next candidate, and this one is as if never taken.
                self.step_back(explained.saturating_sub(usize::from(!choices.is_empty())), &places);
            }
            // Take the next candidate of the latest choice that has one.
            loop {
                self.steps += 1;
                let Some(choice) = choices.last_mut() else {
                    return Err(self.verdict(false));
                };
                if self.steps > steps_max {
                    return Err(self.verdict(true));
                }
                if let Some(&candidate) = choice.candidates.get(choice.next) {
                    choice.next += 1;
                    if let Some(after) = apply(&choice.state, self.operations[candidate]) {
                        state = after;
                        self.take(candidate, &places);
                        break;
                    }
                } else {
                    let explained = choice.explained;
                    choices.pop();
                    // Also takes back the candidate of the choice before it.
                    self.step_back(explained.saturating_sub(usize::from(!choices.is_empty())), &places);
                }
            }
        }
    }

    /// Explains every answer in reach that agrees with the state and changes nothing.
    fn take_answers(&mut self, state: &mut State, places: &[[usize; 2]]) {
        'again: loop {
            let mut at = self.entries[ANCHOR].next;
            while at != ANCHOR && !self.entries[at].is_return {
                let operation = self.entries[at].operation;
                let after = observe(state, self.operations[operation]);
                if let Some(after) =
                    after.filter(|after| after.is_exact == state.is_exact || self.has_document(operation))
                {
                    *state = after;
                    self.take(operation, places);
                    continue 'again;
                }
                at = self.entries[at].next;
            }
            return;
        }
    }

    /// Whether an answer shows the document: then it says which write it saw, not only that it saw one.
    fn has_document(&self, operation: usize) -> bool {
        matches!(&self.operations[operation].what, What::Saw(Some((_, Some(_)))))
    }

    /// What may come next and changes the state: first the write that was answered with the least version, then answers
    /// that would settle which version the state has, then writes of unknown outcome.
    fn candidates(&mut self, state: &State) -> Vec<usize> {
        let least = self.versioned.iter().find(|(_, op)| !self.done[*op]).map(|(v, _)| *v);
        let mut known = Vec::new();
        let mut unknown = Vec::new();
        let mut at = self.entries[ANCHOR].next;
        while at != ANCHOR && !self.entries[at].is_return {
            let index = self.entries[at].operation;
            if let What::Wrote { version, change, .. } = &self.operations[index].what {
                match version {
                    Some(version) if Some(*version) == least => known.insert(0, index),
                    Some(_) => {}
                    // A delete of what is not there is refused, so it changes nothing.
                    None if matches!(change, Change::Delete) && state.document.is_none() => {}
                    None => unknown.push(index),
                }
            } else if observe(state, self.operations[index]).is_some() {
                known.push(index);
            }
            at = self.entries[at].next;
        }
        known.extend(unknown);
        known
    }

    /// Where each operation's call and return are in the list.
    fn places(&self) -> Vec<[usize; 2]> {
        let mut places = vec![[ANCHOR; 2]; self.operations.len()];
        for (at, entry) in self.entries.iter().enumerate().skip(1) {
            places[entry.operation][usize::from(entry.is_return)] = at;
        }
        places
    }

    fn take(&mut self, operation: usize, places: &[[usize; 2]]) {
        for at in places[operation] {
            if at != ANCHOR {
                let Entry { previous, next, .. } = self.entries[at];
                self.entries[previous].next = next;
                self.entries[next].previous = previous;
            }
        }
        self.done[operation] = true;
        self.done_hash ^= mix(operation as u64);
        self.answered_left -= usize::from(self.operations[operation].to.is_some());
        self.order.push(operation);
    }

    /// Puts back operations, last one first, until `explained` are left.
    fn step_back(&mut self, explained: usize, places: &[[usize; 2]]) {
        while self.order.len() > explained {
            let Some(operation) = self.order.pop() else { return };
            for at in places[operation].into_iter().rev() {
                if at != ANCHOR {
                    let Entry { previous, next, .. } = self.entries[at];
                    self.entries[previous].next = at;
                    self.entries[next].previous = at;
                }
            }
            self.done[operation] = false;
            self.done_hash ^= mix(operation as u64);
            self.answered_left += usize::from(self.operations[operation].to.is_some());
        }
    }

    /// Remembers the attempt that got furthest.
    fn note(&mut self, state: &State) {
        let explained = self.answered - self.answered_left;
        if self.best.as_ref().is_some_and(|best| best.explained.0 >= explained) {
            return;
        }
        let mut stuck = Vec::new();
        let mut at = self.entries[ANCHOR].next;
        while at != ANCHOR && stuck.len() < 12 {
            let entry = self.entries[at];
            let operation = self.operations[entry.operation];
            if !entry.is_return && operation.to.is_some() {
                stuck.push(operation.clone());
            }
            if entry.is_return {
                break;
            }
            at = entry.next;
        }
        let last = self.order.iter().rev().take(6).rev();
        let least = self.versioned.iter().find(|(_, op)| !self.done[*op]);
        let least = least.map(|&(_, index)| self.operations[index].clone());
        self.best = Some(Impossible {
            explained: (explained, self.answered),
            state: state.to_string(),
            last: last.map(|&index| self.operations[index].clone()).collect(),
            stuck,
            least,
            gave_up: false,
        });
    }

    fn verdict(self, gave_up: bool) -> Box<Impossible> {
        let mut verdict = self.best.unwrap_or(Impossible {
            explained: (0, self.answered),
            state: String::from("absent"),
            last: Vec::new(),
            stuck: Vec::new(),
            least: None,
            gave_up,
        });
        verdict.gave_up = gave_up;
        Box::new(verdict)
    }
}

impl Operation {
    /// The version that this operation names as the entity's, if it does.
    fn version(&self) -> Option<u64> {
        match &self.what {
            What::Wrote { version, .. } => *version,
            What::Saw(seen) => seen.as_ref().map(|(version, _)| *version),
            What::Conflict { found, .. } | What::Exists { found } => *found,
            What::NotFound => None,
        }
    }
}

impl State {
    /// Whether the entity can be in this version; an inexact state only lies above its bound.
    fn can_be(&self, version: u64) -> bool {
        if self.is_exact {
            self.version == version
        } else {
            version > self.version
        }
    }

    fn at(&self, version: u64) -> State {
        State {
            document: self.document.clone(),
            version,
            is_exact: true,
        }
    }

    fn hash(&self) -> u128 {
        let mut hash = mix(self.version) ^ mix(u64::from(self.is_exact) + 2);
        if let Some(document) = &self.document {
            for chunk in document.chunks(8) {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                hash = mix(u64::from_le_bytes(bytes) ^ hash as u64) ^ hash.rotate_left(29);
            }
        }
        hash
    }
}

/// The state after an answer that changes nothing, where it agrees with `state`.
fn observe(state: &State, operation: &Operation) -> Option<State> {
    let seen = match &operation.what {
        What::Wrote { .. } => return None,
        What::NotFound | What::Saw(None) => return state.document.is_none().then(|| state.clone()),
        What::Saw(Some((version, document))) => {
            let is_same = match (document, &state.document) {
                (_, None) => false,
                (Some(seen), Some(is)) => seen == is,
                (None, Some(_)) => true,
            };
            (is_same && state.can_be(*version)).then_some(*version)
        }
        What::Conflict { asked, found } => match found {
            Some(found) if asked == found => None,
            Some(found) => (state.document.is_some() && state.can_be(*found)).then_some(*found),
            None => {
                let differs = state.document.is_none() || !state.is_exact || state.version != *asked;
                return differs.then(|| state.clone());
            }
        },
        What::Exists { found } => match found {
            Some(found) => (state.document.is_some() && state.can_be(*found)).then_some(*found),
            None => return state.document.is_some().then(|| state.clone()),
        },
    }?;
    Some(state.at(seen))
}

/// The state after a write or an answer, where it can take effect on `state` or agrees with it.
fn apply(state: &State, operation: &Operation) -> Option<State> {
    let What::Wrote {
        condition,
        change,
        version,
    } = &operation.what
    else {
        return observe(state, operation);
    };
    let holds = match condition {
        Condition::Always => true,
        Condition::IfAbsent => state.document.is_none(),
        Condition::IfVersion(asked) => state.document.is_some() && state.can_be(*asked),
    };
    let floor = match condition {
        Condition::IfVersion(asked) => state.version.max(*asked),
        _ => state.version,
    };
    if !holds || version.is_some_and(|version| version <= floor) {
        return None;
    }
    let document = match (change, &state.document) {
        (Change::Put(document) | Change::PutFor { document, .. }, _) | (Change::Post(document), None) => {
            Some(document.clone())
        }
        (Change::Patch(patch), Some(document)) => Some(merge_patch(document, patch).ok()?),
        (Change::Delete, Some(_)) => None,
        // Nobody draws these; and they change nothing that a reader sees.
        (Change::Activity { .. } | Change::Reindex { .. }, document) => document.clone(),
        (Change::Send { .. } | Change::Tentative(_), Some(document)) => Some(document.clone()),
        (Change::Post(_), Some(_))
        | (Change::Patch(_) | Change::Delete | Change::Send { .. } | Change::Tentative(_), None) => return None,
    };
    Some(State {
        document,
        version: version.unwrap_or(floor),
        is_exact: version.is_some(),
    })
}

fn mix(n: u64) -> u128 {
    fn half(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    let low = half(n.wrapping_add(0x9e37_79b9_7f4a_7c15));
    (u128::from(half(low ^ 0x2545_f491_4f6c_dd1d)) << 64) | u128::from(low)
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = if self.is_exact { "version" } else { "version above" };
        match &self.document {
            None => write!(f, "absent since {bound} {}", self.version),
            Some(document) => write!(f, "{bound} {}, {}", self.version, String::from_utf8_lossy(document)),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.from)?;
        match self.to {
            Some(to) => write!(f, "..{to} ")?,
            None => f.write_str("..? ")?,
        }
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match &self.what {
            What::Wrote {
                condition,
                change,
                version,
            } => {
                match change {
                    Change::Put(document) => write!(f, "put {}", text(document))?,
                    Change::Post(document) => write!(f, "post {}", text(document))?,
                    Change::Patch(patch) => write!(f, "patch {}", text(patch))?,
                    Change::PutFor { document, ttl_ms } => write!(f, "put {} for {ttl_ms} ms", text(document))?,
                    Change::Tentative(wanted) => write!(f, "{wanted:?} ({})", self.tag)?,
                    Change::Delete => write!(f, "delete ({})", self.tag)?,
                    Change::Reindex { field, .. } => write!(f, "reindex {field} ({})", self.tag)?,
                    Change::Send { to, body } => write!(f, "send {} to {to:?} ({})", body.action(), self.tag)?,
                    Change::Activity { with, action, .. } => write!(f, "{action:?} with {with} ({})", self.tag)?,
                }
                match condition {
                    Condition::Always => {}
                    Condition::IfAbsent => f.write_str(" if absent")?,
                    Condition::IfVersion(version) => write!(f, " if version {version}")?,
                }
                match version {
                    Some(version) => write!(f, " -> version {version}"),
                    None => f.write_str(" -> unknown"),
                }
            }
            What::Saw(None) => f.write_str("read -> absent"),
            What::Saw(Some((version, Some(document)))) => write!(f, "read -> version {version}, {}", text(document)),
            What::Saw(Some((version, None))) => write!(f, "read -> version {version}"),
            What::Conflict { asked, found } => write!(f, "refused: version {found:?} is not {asked}"),
            What::Exists { found } => write!(f, "refused: exists, version {found:?}"),
            What::NotFound => f.write_str("refused: not found"),
        }
    }
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (explained, answered) = self.explained;
        write!(f, "no order explains the answers; {explained} of {answered} fit")?;
        if self.gave_up {
            write!(f, " (given up after {STEPS_MAX} steps)")?;
        }
        write!(f, "\n  the entity is then: {}\n  after", self.state)?;
        for operation in &self.last {
            write!(f, "\n    {operation}")?;
        }
        f.write_str("\n  and one of these had to follow")?;
        for operation in &self.stuck {
            write!(f, "\n    {operation}")?;
        }
        if let Some(operation) = &self.least {
            write!(f, "\n  but never before\n    {operation}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct History(Vec<Operation>);

    impl History {
        fn add(mut self, from: Moment, to: impl Into<Option<Moment>>, what: What) -> Self {
            let tag = match &what {
                What::Wrote {
                    change: Change::Put(d) | Change::Post(d) | Change::Patch(d),
                    ..
                } => String::from_utf8_lossy(d).into_owned(),
                _ => format!("#{}", self.0.len()),
            };
            self.0.push(Operation {
                from,
                to: to.into(),
                what,
                tag,
            });
            self
        }
        fn ok(self) {
            if let Err(error) = explain(&self.0) {
                panic!("{error}");
            }
        }
        fn bad(self) -> Impossible {
            *explain(&self.0).expect_err("this cannot be explained")
        }
    }

    fn document(n: u64) -> Bytes {
        Bytes::from(format!(r#"{{"w":{n}}}"#))
    }
    fn put(n: u64, version: impl Into<Option<u64>>) -> What {
        wrote(Condition::Always, Change::Put(document(n)), version)
    }
    fn wrote(condition: Condition, change: Change, version: impl Into<Option<u64>>) -> What {
        What::Wrote {
            condition,
            change,
            version: version.into(),
        }
    }
    fn saw(n: u64, version: u64) -> What {
        What::Saw(Some((version, Some(document(n)))))
    }
    fn none() -> What {
        What::Saw(None)
    }
    fn history() -> History {
        History(Vec::new())
    }

    #[test]
    fn concurrent_reads_may_fall_on_either_side() {
        history().ok();
        history()
            .add(1, 2, none())
            .add(3, 10, put(1, 5))
            .add(4, 6, none())
            .add(5, 7, saw(1, 5))
            .ok();
        history()
            .add(3, 10, put(1, 5))
            .add(4, 6, saw(1, 5))
            .add(7, 8, none())
            .bad();
    }

    #[test]
    fn a_stale_read_is_found() {
        let stale = history()
            .add(1, 2, put(1, 1))
            .add(3, 4, put(2, 2))
            .add(5, 6, saw(1, 1))
            .bad();
        assert!(stale.to_string().contains("read -> version 1"), "{stale}");
    }

    #[test]
    fn a_lost_write_is_found() {
        history().add(1, 2, put(1, 1)).add(3, 4, none()).bad();
        history()
            .add(1, 2, put(1, 1))
            .add(3, 4, put(2, 2))
            .add(5, 6, saw(1, 3))
            .bad();
    }

    #[test]
    fn an_unknown_write_may_happen_late_once_or_never() {
        let begun = || history().add(1, 2, put(1, 1)).add(3, None, put(2, None));
        begun().add(4, 5, saw(1, 1)).ok();
        begun()
            .add(4, 5, saw(1, 1))
            .add(6, 7, saw(2, 4))
            .add(8, 9, saw(2, 4))
            .ok();
        begun().add(4, 5, saw(2, 4)).add(6, 7, saw(1, 1)).bad();
        // Seen in two versions: it took effect twice.
        begun()
            .add(4, 5, saw(2, 4))
            .add(6, 7, put(3, 5))
            .add(8, 9, saw(2, 6))
            .bad();
    }

    #[test]
    fn an_unknown_delete_explains_an_absence_but_not_a_return() {
        let delete = |version: Option<u64>| wrote(Condition::Always, Change::Delete, version);
        let begun = || history().add(1, 2, put(1, 1)).add(3, None, delete(None));
        begun().add(4, 5, saw(1, 1)).add(6, 7, none()).ok();
        begun().add(4, 5, none()).add(6, 7, saw(1, 1)).bad();
        begun().add(4, 5, none()).add(6, 7, put(2, 3)).add(8, 9, saw(2, 3)).ok();
        history()
            .add(1, 2, put(1, 1))
            .add(3, 4, delete(Some(2)))
            .add(5, 6, none())
            .ok();
        history()
            .add(1, 2, put(1, 1))
            .add(3, 4, delete(Some(2)))
            .add(5, 6, saw(1, 1))
            .bad();
    }

    #[test]
    fn a_version_without_its_document_does_not_settle_too_much() {
        // Two unknown writes in a row; the first answer shows the version of the second, without its document.
        history()
            .add(1, 2, put(1, 1))
            .add(3, None, put(2, None))
            .add(
                4,
                None,
                wrote(
                    Condition::Always,
                    Change::Patch(Bytes::from_static(br#"{"p":3}"#)),
                    None,
                ),
            )
            .add(5, 6, What::Saw(Some((3, None))))
            .add(
                7,
                8,
                What::Saw(Some((3, Some(Bytes::from_static(br#"{"w":2,"p":3}"#))))),
            )
            .ok();
    }

    #[test]
    fn an_unseen_unknown_put_explains_what_needs_an_entity() {
        let patch = Change::Patch(Bytes::from_static(br#"{"p":9}"#));
        // The patch found an entity although the last known state is absent: the unknown put did it.
        history()
            .add(1, None, put(1, None))
            .add(2, 3, wrote(Condition::Always, patch.clone(), 7))
            .ok();
        history().add(2, 3, wrote(Condition::Always, patch, 7)).bad();
    }

    #[test]
    fn conditions_and_refusals_are_judged() {
        let when = |version, n, made: u64| wrote(Condition::IfVersion(version), Change::Put(document(n)), made);
        history().add(1, 2, put(1, 1)).add(3, 4, when(1, 2, 2)).ok();
        history()
            .add(1, 2, put(1, 1))
            .add(3, 4, put(2, 2))
            .add(5, 6, when(1, 3, 3))
            .bad();
        // Two writers were both told that theirs followed version 1.
        history()
            .add(1, 2, put(1, 1))
            .add(3, 10, when(1, 2, 2))
            .add(4, 9, when(1, 3, 3))
            .bad();
        let refused = |asked, found| What::Conflict { asked, found };
        history().add(1, 2, put(1, 1)).add(3, 4, refused(7, Some(1))).ok();
        history().add(1, 2, put(1, 1)).add(3, 4, refused(1, None)).bad();
        history().add(1, 2, put(1, 1)).add(3, 4, What::NotFound).bad();
        history().add(1, 2, What::Exists { found: None }).bad();
        let absent = |n, made: u64| wrote(Condition::IfAbsent, Change::Put(document(n)), made);
        history()
            .add(1, 5, absent(1, 1))
            .add(2, 4, What::Exists { found: Some(1) })
            .ok();
        history().add(1, 5, absent(1, 1)).add(2, 4, absent(2, 2)).bad();
    }

    #[test]
    fn versions_that_go_back_are_found() {
        history().add(1, 2, put(1, 5)).add(3, 4, put(2, 4)).bad();
        history().add(1, 2, put(1, 5)).add(3, 4, put(2, 5)).bad();
    }

    #[test]
    fn a_lost_patch_is_found() {
        let patch = |n: u64| Change::Patch(Bytes::from(format!(r#"{{"p{n}":{n}}}"#)));
        let patched = |fields: &str, version| What::Saw(Some((version, Some(Bytes::from(fields.to_owned())))));
        let begun = || {
            history()
                .add(1, 2, put(1, 1))
                .add(3, 10, wrote(Condition::Always, patch(1), 2))
                .add(4, 9, wrote(Condition::Always, patch(2), 3))
        };
        begun().add(11, 12, patched(r#"{"w":1,"p1":1,"p2":2}"#, 3)).ok();
        begun().add(11, 12, patched(r#"{"w":1,"p2":2}"#, 3)).bad();
    }

    /// A state seen before must not keep the write that led there from being tried later in the same attempt.
    #[test]
    fn a_write_is_free_again_after_a_dead_end() {
        let patch = |text: &'static str| Change::Patch(Bytes::from_static(text.as_bytes()));
        let read = br#"{"w":6,"a":20,"b":19}"#;
        let mut history = history()
            .add(1, None, put(6, None))
            .add(2, 3, put(8, 1))
            .add(4, 6, wrote(Condition::Always, patch(r#"{"a":17}"#), 3))
            .add(5, None, wrote(Condition::Always, patch(r#"{"b":19}"#), None))
            .add(7, 8, wrote(Condition::Always, patch(r#"{"a":20}"#), 5))
            .add(9, 10, What::Saw(Some((5, Some(Bytes::from_static(read))))));
        for (operation, tag) in [(0, r#""w":6"#), (3, r#""b":19"#)] {
            history.0[operation].tag = String::from(tag);
        }
        history.ok();
    }

    /// The search cuts corners; trying every order does not. Both agree on thousands of short histories, some of which
    /// have an answer that was made up.
    #[test]
    fn the_search_agrees_with_trying_every_order() {
        fn every_order(state: &State, left: &[&Operation]) -> bool {
            if left.iter().all(|operation| operation.to.is_none()) {
                return true;
            }
            let first_return = left
                .iter()
                .filter_map(|operation| operation.to)
                .min()
                .unwrap_or(u64::MAX);
            (0..left.len()).filter(|&at| left[at].from < first_return).any(|at| {
                let mut rest = left.to_vec();
                apply(state, rest.remove(at)).is_some_and(|after| every_order(&after, &rest))
            })
        }
        let (mut good, mut bad) = (0, 0);
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut document, mut version): (Option<Bytes>, u64) = (None, 0);
            let mut operations = Vec::new();
            for n in 1..=rng.u64(4..=8) {
                let at = n * 100;
                let is_known = rng.bool();
                let happens = is_known || rng.bool();
                let before = document.clone();
                let mut tag = format!("\"w\":{n}");
                let change = match rng.u8(..6) {
                    0 | 1 => Some(Change::Put(self::document(n))),
                    2 | 3 if before.is_some() => {
                        tag = format!("\"p{}\":{n}", n % 2);
                        Some(Change::Patch(Bytes::from(format!("{{{tag}}}"))))
                    }
                    4 if before.is_some() => Some(Change::Delete),
                    _ => None,
                };
                let what = match change {
                    Some(change) => {
                        if happens {
                            version += 1;
                            document = match &change {
                                Change::Put(new) => Some(new.clone()),
                                Change::Patch(patch) => Some(merge_patch(&before.expect("seen above"), patch).unwrap()),
                                _ => None,
                            };
                        }
                        wrote(Condition::Always, change, is_known.then_some(version))
                    }
                    None => What::Saw(document.clone().map(|document| (version, Some(document)))),
                };
                let is_read = matches!(what, What::Saw(_));
                operations.push(Operation {
                    from: at - rng.u64(..250).min(at - n) - 1 + n % 2,
                    to: (is_known || is_read).then(|| at + 10 + rng.u64(..250)),
                    what,
                    tag,
                });
            }
            let reads: Vec<usize> = (0..operations.len())
                .filter(|&at| matches!(operations[at].what, What::Saw(Some(_))))
                .collect();
            if let (true, Some(&read)) = (rng.bool(), rng.choice(&reads)) {
                let made_up = if rng.bool() {
                    None
                } else {
                    Some((rng.u64(1..=version), Some(self::document(rng.u64(1..8)))))
                };
                operations[read].what = What::Saw(made_up);
            }
            let all: Vec<&Operation> = operations.iter().collect();
            let start = State {
                document: None,
                version: 0,
                is_exact: true,
            };
            let is_good = every_order(&start, &all);
            let text: Vec<String> = operations.iter().map(|operation| operation.to_string()).collect();
            assert_eq!(explain(&operations).is_ok(), is_good, "seed {seed}: {text:#?}");
            *(if is_good { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 1_000 && bad > 300, "{good} good, {bad} bad");
    }

    /// Thousands of operations on one key, with unknown outcomes all along, are judged in a moment; so is one bad
    /// answer near their end.
    #[test]
    fn long_histories_are_judged_quickly() {
        for (seed, spoil) in [(1, false), (2, true), (3, false), (4, true)] {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut history = history();
            let (mut now, mut version, mut shown) = (0, 0, 0);
            for n in 1..=10_000u64 {
                now += 10;
                match rng.u32(..100) {
                    0..=1 => {
                        // Unknown; every second one happens.
                        history = history.add(now, None, put(n, None));
                        if rng.bool() {
                            (version, shown) = (version + 1, n);
                        }
                    }
                    2..=49 => {
                        (version, shown) = (version + 1, n);
                        history = history.add(now - rng.u64(..30).min(now), now + rng.u64(1..30), put(n, version));
                    }
                    _ if version > 0 => {
                        history = history.add(now - rng.u64(..30).min(now), now + rng.u64(1..30), saw(shown, version));
                    }
                    _ => {}
                }
            }
            if spoil {
                history.0.push(Operation {
                    from: 99_000,
                    to: Some(99_001),
                    what: saw(1, 1),
                    tag: String::from("stale"),
                });
                history.bad();
            } else {
                history.ok();
            }
        }
    }
}
