//! What is to happen to an entity at a time of its shard's clock for it.
//!
//! A timer is a row of the work space: the entity, what for, and when. Whoever sets it again or takes it away changes that
//! row, in the same entry as all else; a [`Timer`] that was proposed for the row as it was then finds another and does
//! nothing. The shard's clock never runs ahead of real time, so nothing happens too early, whatever wall clocks do.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::draft;
use super::effects::Rules;
use super::machine::{self, Context, Delta};
use super::message::read_row;
use super::subject::Subject;
use super::tentative;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::change::How;
use crate::protocol::codec;
use crate::protocol::key::{Position, RowKind, message_rest, split_partner_rest, work_key};

/// A timer as a leader knows it from the rows, and proposes when it is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Whose.
    pub entity: Position,
    /// What for: the rest of the row's key.
    pub what: Bytes,
    /// When, by the shard's clock for the entity. Unit: ms.
    pub due_ms: u64,
}

/// A timer's row has changed: for the leader's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerNews {
    /// Whose.
    pub entity: Position,
    /// What for.
    pub what: Bytes,
    /// When; `None`: it is gone.
    pub due_ms: Option<u64>,
}

/// The entity's own end.
pub(super) fn of_entity() -> Bytes {
    Bytes::from_static(&[ENTITY])
}

/// The end of what was set aside for an operation.
pub(super) fn of_operation(requester: &Position, operation: u64) -> Bytes {
    let mut what = vec![OPERATION];
    what.extend_from_slice(&message_rest(requester, operation));
    what.into()
}

/// The operation that a timer is for, if it is for one.
pub(in crate::daemon::core) fn operation(what: &Bytes) -> Option<(Position, u64)> {
    if what.first() != Some(&OPERATION) {
        return None;
    }
    let (requester, number) = split_partner_rest(&what.slice(1..))?;
    Some((requester, u64::from_be_bytes(number.as_ref().try_into().ok()?)))
}

/// Key of a timer's row.
pub(super) fn timer_row(entity: &Position, what: &[u8]) -> Bytes {
    work_key(entity, RowKind::Timer, what)
}

/// Sets a timer, or takes it away.
pub(super) fn set(entity: &Position, what: Bytes, due_ms: Option<u64>, state: &mut dyn State, delta: &mut Delta) {
    state.put(timer_row(entity, &what), due_ms.map(|due| codec::encode(&due)));
    delta.timers.push(TimerNews {
        entity: entity.clone(),
        what,
        due_ms,
    });
}

/// Does what a timer is for, if it is still set for that time and the time has come.
pub fn fire(
    timer: &Timer,
    context: Context,
    rules: &dyn Rules,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<(), StateError> {
    let set_for: Option<u64> = read_row(&timer_row(&timer.entity, &timer.what), state)?;
    if set_for != Some(timer.due_ms) || timer.due_ms > context.shard_time_ms {
        return Ok(());
    }
    let mut subject = Subject::load(timer.entity.clone(), state)?;
    let mut draft = subject.draft(context, 0, state);
    let decided = match operation(&timer.what) {
        Some((requester, operation)) => {
            tentative::expire(&requester, operation, &mut draft)?;
            Ok(())
        }
        None => machine::end(&mut draft, rules, state),
    };
    let decided = decided.map(|()| draft.decided());
    match draft::outcome(decided)? {
        Ok(decided) => {
            set(&timer.entity, timer.what.clone(), None, state, delta);
            subject.commit(decided, How::Delete, None, context, state, delta)?;
        }
        // Something is in the way: its outbox is full, or others have reserved of it.
        Err(_) => {
            let again = Some(context.shard_time_ms + TRY_AGAIN_AFTER_MS);
            set(&timer.entity, timer.what.clone(), again, state, delta);
        }
    }
    subject.store(state, delta);
    Ok(())
}

const ENTITY: u8 = 0;
const OPERATION: u8 = 1;
/// An entity that can't end when its time has come is tried again after this. Unit: ms of the shard's clock.
const TRY_AGAIN_AFTER_MS: u64 = 60_000;
