//! An entity in hand: its head, read once, and written back once when all that concerns it is done.
use bytes::Bytes;

use super::draft::{Draft, Lasts};
use super::head::{Expiry, Head, SchemaMark};
use super::machine::{Context, Delta, decode_head};
use super::message::{Outgoing, PairNews, ParkNews};
use super::{outbox, past, timer};
use crate::daemon::core::changes::Noted;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Sent;
use crate::protocol::change::{How, Version};
use crate::protocol::id::RequestId;
use crate::protocol::key::{Position, RowKind, row_key};

pub(in crate::daemon::core) struct Subject {
    pub(super) position: Position,
    pub(super) head: Head,
    row: Bytes,
    existed: bool,
    size_before: i64,
    changed: bool,
}

/// All that a draft decided, without its hold on the rows.
pub(super) struct Decided {
    document: Option<Option<Bytes>>,
    rows: Vec<(Bytes, Option<Bytes>)>,
    pairs: Vec<PairNews>,
    lasts: Lasts,
    sends: Vec<Outgoing>,
    parked: Vec<ParkNews>,
    schema: Option<SchemaMark>,
    opened: Vec<(Position, i32)>,
    timers: Vec<(Bytes, Option<u64>)>,
    depth: u8,
}

impl Subject {
    pub(super) fn load(position: Position, state: &dyn State) -> Result<Self, StateError> {
        let row = row_key(&position, RowKind::Head, &[]);
        let head = match state.get(&row)? {
            Some(value) => decode_head(&row, &value)?,
            None => Head::default(),
        };
        Ok(Self {
            existed: head.exists,
            size_before: size(&head, &position),
            position,
            head,
            row,
            changed: false,
        })
    }

    pub(super) fn draft<'a>(&'a self, context: Context, depth: u8, state: &'a dyn State) -> Draft<'a> {
        let before = self.head.exists.then_some(&self.head.document);
        let mut draft = Draft::new(&self.position, context, depth, before, self.head.version, state);
        draft.revision = self.head.schema.revision;
        draft
    }

    /// The head, to be changed.
    pub(super) fn head_mut(&mut self) -> &mut Head {
        self.changed = true;
        &mut self.head
    }

    /// Makes the change.
    pub(super) fn commit(
        &mut self,
        decided: Decided,
        how: How,
        request: Option<RequestId>,
        context: Context,
        state: &mut dyn State,
        delta: &mut Delta,
    ) -> Result<Vec<Sent>, StateError> {
        if let Some(document) = decided.document {
            let head = self.head_mut();
            if head.version > 0 {
                head.past = past::with(&head.past, &past::current(head));
            }
            head.version += 1;
            head.updated_ms = context.wall_ms;
            head.changed_at = context.change_at;
            head.exists = document.is_some();
            head.document = document.unwrap_or_default();
            let expires = match (head.exists, decided.lasts) {
                (true, Lasts::AsBefore) => head.expires,
                (true, Lasts::For(ttl_ms)) => Some(Expiry {
                    due_ms: context.shard_time_ms.saturating_add(ttl_ms),
                    wall_ms: context.wall_ms.saturating_add(ttl_ms),
                }),
                _ => None,
            };
            let old = std::mem::replace(&mut head.expires, expires);
            head.schema = decided.schema.unwrap_or_default();
            head.how = how;
            let change = Version {
                request,
                ..past::current(head)
            };
            delta.changes.push(Noted {
                at: context.change_at,
                position: self.position.clone(),
                version: change.version,
                deleted: !self.head.exists,
                wall_ms: context.wall_ms,
                cause: change.cause(),
            });
            if expires != old {
                let due_ms = expires.map(|expires| expires.due_ms);
                timer::set(&self.position, timer::of_entity(), due_ms, state, delta);
            }
        }
        for (what, due_ms) in decided.timers {
            timer::set(&self.position, what, due_ms, state, delta);
        }
        delta.pairs.extend(decided.pairs);
        delta.parked.extend(decided.parked);
        for (row, value) in decided.rows {
            state.put(row, value);
        }
        let sent = outbox::send(self, decided.sends, decided.depth, context, state, delta)?;
        for (to, more) in decided.opened {
            outbox::count_open(&self.position, to, more, state, delta)?;
        }
        Ok(sent)
    }

    /// Writes the head back.
    pub(super) fn store(self, state: &mut dyn State, delta: &mut Delta) {
        if self.changed {
            delta.entities += i64::from(self.head.exists) - i64::from(self.existed);
            delta.bytes += size(&self.head, &self.position) - self.size_before;
            state.put(self.row, Some(self.head.encode()));
        }
    }
}

impl Draft<'_> {
    pub(super) fn decided(self) -> Decided {
        Decided {
            document: self.document,
            rows: self.rows.into_iter().collect(),
            pairs: self.pairs,
            lasts: self.lasts,
            sends: self.sends,
            parked: self.parked,
            schema: self.schema,
            opened: self.opened,
            timers: self.timers,
            depth: self.depth,
        }
    }
}

fn size(head: &Head, position: &Position) -> i64 {
    let key = position.parts().1.unwrap_or("");
    if head.exists {
        (key.len() + head.document.len()) as i64
    } else {
        0
    }
}
