//! What a write or a message is about to do to one entity. Nothing is written before all of it is decided: a refusal at
//! any point leaves no trace.
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::head::SchemaMark;
use super::machine::Context;
use super::message::{Outgoing, PairNews, ParkNews};
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Body;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::schema::ChangeKind;

/// The change in the making: the document as it shall be, other rows of the entity, messages.
pub struct Draft<'a> {
    /// The entity.
    pub position: &'a Position,
    /// Shard and clocks.
    pub context: Context,
    /// Depth of the message that causes it; 0 for a write.
    pub depth: u8,
    /// The document before, where the entity is there.
    pub before: Option<&'a Bytes>,
    /// The entity's version before.
    pub version: u64,
    /// The write, where one causes it: keys that isx makes are made of it.
    pub id: RequestId,
    /// What kind of change it is; `None` where the document stays.
    pub kind: Option<ChangeKind>,
    /// The revision of the schemas that the document before was judged by.
    pub revision: u64,
    /// The schema that the new document is judged by.
    pub schema: Option<SchemaMark>,
    /// The document as it shall be (`None` inside: gone), where it changes.
    pub document: Option<Option<Bytes>>,
    /// How long the entity lasts, if it is there afterwards.
    pub lasts: Lasts,
    /// Messages to be recorded, in order.
    pub sends: Vec<Outgoing>,
    /// Tentative operations with other entities, more or fewer.
    pub(super) opened: Vec<(Position, i32)>,
    pub(super) timers: Vec<(Bytes, Option<u64>)>,
    pub(super) rows: BTreeMap<Bytes, Option<Bytes>>,
    /// Pairs that an operator did something to.
    pub(super) pairs: Vec<PairNews>,
    /// Messages that were parked and are not any more.
    pub(super) parked: Vec<ParkNews>,
    state: &'a dyn State,
}

/// How long an entity lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// As long as was said before.
    AsBefore,
    /// Until it is deleted.
    ForEver,
    /// So long. Unit: ms of the shard's clock.
    For(u64),
}

/// Why a change does not come about.
#[derive(Debug)]
pub enum Stop {
    /// It is refused: an outcome, the same on every replica.
    Refused(WireError),
    /// A row could not be read: this replica must not go on.
    Unreadable(StateError),
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        position: &'a Position,
        context: Context,
        depth: u8,
        before: Option<&'a Bytes>,
        version: u64,
        state: &'a dyn State,
    ) -> Self {
        Self {
            position,
            context,
            depth,
            before,
            version,
            id: RequestId::default(),
            kind: None,
            revision: 0,
            schema: None,
            document: None,
            lasts: Lasts::AsBefore,
            sends: Vec::new(),
            opened: Vec::new(),
            timers: Vec::new(),
            rows: BTreeMap::new(),
            pairs: Vec::new(),
            parked: Vec::new(),
            state,
        }
    }

    /// An entity's rows, to be looked at only.
    pub(super) fn to_read(position: &'a Position, state: &'a dyn State) -> Self {
        let nowhen = Context {
            shard: ShardId(0),
            wall_ms: 0,
            shard_time_ms: 0,
            change_at: 0,
        };
        Self::new(position, nowhen, 0, None, 0, state)
    }

    /// Sets a timer of the entity, or takes it away.
    pub(super) fn set_timer(&mut self, what: Bytes, due_ms: Option<u64>) {
        self.timers.push((what, due_ms));
    }

    /// The document as it will be.
    pub fn after(&self) -> Option<&Bytes> {
        match &self.document {
            Some(document) => document.as_ref(),
            None => self.before,
        }
    }

    /// Records a message.
    pub fn send(&mut self, to: Position, body: Body) {
        self.sends.push(Outgoing {
            to,
            body,
            returns: false,
        });
    }

    /// One of the entity's rows, as it will be.
    pub fn row(&self, kind: RowKind, rest: &[u8]) -> Result<Option<Bytes>, StateError> {
        let row = row_key(self.position, kind, rest);
        match self.rows.get(&row) {
            Some(value) => Ok(value.clone()),
            None => self.state.get(&row),
        }
    }

    /// Sets or removes one of the entity's rows; not its head, nor what the protocol of messages keeps.
    pub fn set_row(&mut self, kind: RowKind, rest: &[u8], value: Option<Bytes>) {
        debug_assert!(matches!(kind, RowKind::Relation | RowKind::Tentative), "{kind:?}");
        self.rows.insert(row_key(self.position, kind, rest), value);
    }

    /// Visits the entity's rows of a kind whose rest begins with `prefix`, as they will be, in order.
    pub fn scan(
        &self,
        kind: RowKind,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let start = row_key(self.position, kind, prefix);
        let skip = start.len() - prefix.len();
        let end = past(&start);
        let mut changed = self.rows.range(start.clone()..end.clone()).peekable();
        let mut stopped = false;
        self.state.scan(&start, &end, &mut |row, value| {
            while let Some((changed_row, changed_value)) = changed.next_if(|(changed_row, _)| *changed_row < row) {
                if let Some(value) = changed_value
                    && visit(&changed_row[skip..], value).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let value = match changed.next_if(|(changed_row, _)| *changed_row == row) {
                Some((_, Some(changed_value))) => changed_value,
                Some((_, None)) => return ControlFlow::Continue(()),
                None => value,
            };
            stopped = visit(&row[skip..], value).is_break();
            if stopped {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        for (row, value) in changed.filter(|_| !stopped) {
            if let Some(value) = value
                && visit(&row[skip..], value).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Self {
        Stop::Unreadable(error)
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Stop::Refused(error)
    }
}

/// A refusal with its words.
pub fn refuse<T>(code: Code, text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refused(WireError::new(code, text)))
}

/// Separates refusals from what this replica can't go on with.
pub(super) fn outcome<T>(result: Result<T, Stop>) -> Result<Result<T, WireError>, StateError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(error)) => Ok(Err(error)),
        Err(Stop::Unreadable(error)) => Err(error),
    }
}

/// The first key behind all that begin with `prefix`.
fn past(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
