//! Amounts that one entity sets aside for another, until the other decides or the time is over.
//!
//! Requester and holder each keep what they know in rows of their own and tell the other by messages, which take effect
//! exactly once and in order. So a message about an operation that is not in the rows any more needs no answer: what ended
//! it has been told already, by a message that is before any answer.
//!
//! ```text
//! at the requester   r operation     holder, resource, amount, how far
//!                    c               next number, how many are open, the last that ended
//! at the holder      h requester operation   resource, amount, until when
//!                    s resource      sums: set aside, taken
//!                    work: Timer     when the holder may give it back alone
//! ```
//! Of an operation that has ended no row is left, but for its place among the requester's last ones and its amount in the sum
//! of what was taken.
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Stop, refuse};
use super::effects::Rules;
use super::timer;
use crate::daemon::core::state::StateError;
use crate::protocol::activity::{Body, OperationState};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::key::{Position, RowKind, message_rest};
use crate::protocol::tentative::*;

/// A holder's row: what it has set aside for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Of what.
    pub resource: String,
    /// How much.
    pub amount: i64,
    /// When the holder may give it back alone, by its shard's clock. Unit: ms.
    pub due_ms: u64,
    /// When it was set aside, by the leader's wall clock. Unit: ms since 1970.
    pub since_ms: u64,
    /// `due_ms` as a label, by the same. Unit: ms since 1970.
    pub until_ms: u64,
}

/// A holder's sums of one resource: they answer whether there is enough without looking at the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Set aside.
    pub reserved: i64,
    /// Taken.
    pub confirmed: i64,
    /// Operations for which something is set aside.
    pub open: u64,
}

/// A requester's row about all its operations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Requests {
    /// Number of the latest operation; never goes back.
    pub last: u64,
    /// Operations that have not ended.
    pub open: u32,
    /// The last that ended, oldest first, at most [`ENDED_KEPT`].
    pub ended: Vec<Operation>,
}

/// What becomes of the sums when an operation ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Taken,
    GivenBack,
}

// --- the requester ---------------------------------------------------------------------------------------------

/// Drafts what the requester wants.
pub(super) fn ask(wanted: &Tentative, draft: &mut Draft<'_>) -> Result<(), Stop> {
    match wanted {
        Tentative::Reserve {
            holder,
            resource,
            amount,
            ttl_ms,
        } => reserve(holder, resource, *amount, *ttl_ms, draft),
        Tentative::Confirm { holder, operation } => decide(holder, *operation, Stage::Confirming, draft),
        Tentative::Cancel { holder, operation } => decide(holder, *operation, Stage::Cancelling, draft),
    }
}

fn reserve(holder: &Position, resource: &str, amount: i64, ttl_ms: u64, draft: &mut Draft<'_>) -> Result<(), Stop> {
    let mut requests: Requests = read(draft, &requests_rest())?.unwrap_or_default();
    if requests.open >= OPEN_OPERATIONS_MAX {
        let text = format!("{} has {OPEN_OPERATIONS_MAX} operations open", draft.position);
        return refuse(Code::TooManyOperations, text);
    }
    requests.last += 1;
    requests.open += 1;
    let operation = Operation {
        operation: requests.last,
        holder: holder.clone(),
        resource: resource.to_owned(),
        amount,
        stage: Stage::Asked,
        reason: String::new(),
        wall_ms: draft.context.wall_ms,
    };
    write(draft, &operation_rest(requests.last), Some(&operation));
    write(draft, &requests_rest(), Some(&requests));
    draft.opened.push((holder.clone(), 1));
    let body = Body::Reserve {
        operation: requests.last,
        resource: resource.to_owned(),
        amount,
        ttl_ms,
    };
    draft.send(holder.clone(), body);
    Ok(())
}

/// Confirms or cancels. What was asked for before, or has ended like this, is no error and sends nothing.
fn decide(holder: &Position, number: u64, wanted: Stage, draft: &mut Draft<'_>) -> Result<(), Stop> {
    let rest = operation_rest(number);
    let known: Option<Operation> = read(draft, &rest)?;
    let Some(mut known) = known.filter(|known| known.holder == *holder) else {
        return decided_before(holder, number, wanted, draft);
    };
    match known.stage {
        Stage::Asked | Stage::Tentative { .. } => {}
        stage if stage == wanted => return Ok(()),
        _ => {
            let being = if wanted == Stage::Confirming {
                "cancelled"
            } else {
                "confirmed"
            };
            let text = format!("operation {number} with {holder} is being {being} already");
            return refuse(Code::OperationIsOver, text);
        }
    }
    known.stage = wanted;
    write(draft, &rest, Some(&known));
    draft.send(holder.clone(), decision(wanted, number));
    Ok(())
}

fn decided_before(holder: &Position, number: u64, wanted: Stage, draft: &Draft<'_>) -> Result<(), Stop> {
    let requests: Requests = read(draft, &requests_rest())?.unwrap_or_default();
    let ended = requests
        .ended
        .iter()
        .find(|ended| ended.operation == number && ended.holder == *holder);
    let Some(Operation {
        stage: Stage::Ended(state),
        ..
    }) = ended
    else {
        let text = format!(
            "{} has no operation {number} with {holder}, or not any more",
            draft.position
        );
        return refuse(Code::NoSuchOperation, text);
    };
    match (wanted, state) {
        (Stage::Confirming, OperationState::Confirmed) | (Stage::Cancelling, OperationState::Cancelled) => Ok(()),
        _ => {
            let text = format!("operation {number} with {holder} is {state}");
            refuse(Code::OperationIsOver, text)
        }
    }
}

/// The requester hears what became of an operation.
fn learn(
    holder: &Position,
    number: u64,
    state: OperationState,
    until_ms: u64,
    reason: &str,
    draft: &mut Draft<'_>,
) -> Result<(), StateError> {
    let rest = operation_rest(number);
    let known: Option<Operation> = read(draft, &rest)?;
    let Some(mut known) = known.filter(|known| known.holder == *holder) else {
        return Ok(());
    };
    if state == OperationState::Reserved {
        if known.stage == Stage::Asked {
            known.stage = Stage::Tentative { until_ms };
            write(draft, &rest, Some(&known));
        }
        return Ok(());
    }
    let mut requests: Requests = read(draft, &requests_rest())?.unwrap_or_default();
    known.stage = Stage::Ended(state);
    known.reason = reason.to_owned();
    known.wall_ms = draft.context.wall_ms;
    requests.open = requests.open.saturating_sub(1);
    requests.ended.push(known);
    let surplus = requests.ended.len().saturating_sub(ENDED_KEPT);
    requests.ended.drain(..surplus);
    write::<Operation>(draft, &rest, None);
    write(draft, &requests_rest(), Some(&requests));
    draft.opened.push((holder.clone(), -1));
    Ok(())
}

/// All that a requester knows of its operations: open ones first, then the last that ended.
pub(in crate::daemon) fn operations(
    requester: &Position,
    state: &dyn crate::daemon::core::state::State,
) -> Result<Vec<Operation>, StateError> {
    let draft = Draft::to_read(requester, state);
    let mut all = open_operations(&draft)?;
    let requests: Requests = read(&draft, &requests_rest())?.unwrap_or_default();
    all.extend(requests.ended);
    Ok(all)
}

fn open_operations(draft: &Draft<'_>) -> Result<Vec<Operation>, StateError> {
    let mut values = Vec::new();
    draft.scan(RowKind::Tentative, &[OPERATION], &mut |_, value| {
        values.push(value.clone());
        ControlFlow::Continue(())
    })?;
    values.iter().map(|value| decode(draft, value)).collect()
}

// --- the holder ------------------------------------------------------------------------------------------------

/// Takes in what the other side says. False where the message is about something else.
pub(super) fn receive(
    from: &Position,
    body: &Body,
    rules: &dyn Rules,
    draft: &mut Draft<'_>,
) -> Result<bool, StateError> {
    match body {
        Body::Reserve {
            operation,
            resource,
            amount,
            ttl_ms,
        } => set_aside(from, *operation, resource, *amount, *ttl_ms, rules, draft)?,
        Body::Confirm { operation } => finish(from, *operation, OperationState::Confirmed, draft)?,
        Body::Cancel { operation } => finish(from, *operation, OperationState::Cancelled, draft)?,
        Body::Decided {
            operation,
            state,
            until_ms,
            reason,
        } => learn(from, *operation, *state, *until_ms, reason, draft)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_aside(
    requester: &Position,
    operation: u64,
    resource: &str,
    amount: i64,
    ttl_ms: u64,
    rules: &dyn Rules,
    draft: &mut Draft<'_>,
) -> Result<(), StateError> {
    let mut sums: Sums = read(draft, &sums_rest(resource))?.unwrap_or_default();
    let (mut state, mut until_ms) = (OperationState::Declined, 0);
    let reason = refusal(resource, amount, sums, rules, draft).unwrap_or_default();
    if reason.is_empty() {
        let reservation = Reservation {
            resource: resource.to_owned(),
            amount,
            due_ms: draft.context.shard_time_ms.saturating_add(ttl_ms),
            since_ms: draft.context.wall_ms,
            until_ms: draft.context.wall_ms.saturating_add(ttl_ms),
        };
        (state, until_ms) = (OperationState::Reserved, reservation.until_ms);
        sums.reserved += amount;
        sums.open += 1;
        write(draft, &sums_rest(resource), Some(&sums));
        write(draft, &reservation_rest(requester, operation), Some(&reservation));
        draft.set_timer(timer::of_operation(requester, operation), Some(reservation.due_ms));
    }
    let body = Body::Decided {
        operation,
        state,
        until_ms,
        reason,
    };
    draft.send(requester.clone(), body);
    Ok(())
}

/// Why an amount can't be set aside.
fn refusal(resource: &str, amount: i64, sums: Sums, rules: &dyn Rules, draft: &Draft<'_>) -> Option<String> {
    let holder = draft.position;
    let Some(document) = draft.after() else {
        return Some(format!("there is no {holder}"));
    };
    if !rules.pools().contains(&resource) {
        let service = holder.parts().0;
        return Some(format!("the schema of `{service}` has no pool `{resource}`"));
    }
    if sums.open >= RESERVATIONS_MAX {
        return Some(format!("{holder} has {RESERVATIONS_MAX} operations open"));
    }
    let total = integer(document, resource);
    let left = i128::from(total) - i128::from(sums.reserved) - i128::from(sums.confirmed);
    (amount <= 0 || i128::from(amount) > left).then(|| format!("{left} of {total} are left"))
}

/// The requester has decided. Where nothing is set aside any more it knows already, or will before long, what became of it.
fn finish(
    requester: &Position,
    operation: u64,
    state: OperationState,
    draft: &mut Draft<'_>,
) -> Result<(), StateError> {
    let end = match state {
        OperationState::Confirmed => End::Taken,
        _ => End::GivenBack,
    };
    if take_away(requester, operation, end, draft)? {
        tell(requester, operation, state, draft);
    }
    Ok(())
}

/// The holder gives back alone what was set aside: its time is over.
pub(super) fn expire(requester: &Position, operation: u64, draft: &mut Draft<'_>) -> Result<(), StateError> {
    if take_away(requester, operation, End::GivenBack, draft)? {
        tell(requester, operation, OperationState::Expired, draft);
    }
    Ok(())
}

fn take_away(requester: &Position, operation: u64, end: End, draft: &mut Draft<'_>) -> Result<bool, StateError> {
    let rest = reservation_rest(requester, operation);
    let Some(known) = read::<Reservation>(draft, &rest)? else {
        return Ok(false);
    };
    let mut sums: Sums = read(draft, &sums_rest(&known.resource))?.unwrap_or_default();
    sums.reserved -= known.amount;
    sums.open = sums.open.saturating_sub(1);
    if end == End::Taken {
        sums.confirmed += known.amount;
    }
    write(
        draft,
        &sums_rest(&known.resource),
        (sums != Sums::default()).then_some(&sums),
    );
    write::<Reservation>(draft, &rest, None);
    draft.set_timer(timer::of_operation(requester, operation), None);
    Ok(true)
}

fn tell(requester: &Position, operation: u64, state: OperationState, draft: &mut Draft<'_>) {
    let body = Body::Decided {
        operation,
        state,
        until_ms: 0,
        reason: String::new(),
    };
    draft.send(requester.clone(), body);
}

/// Looks at a change of an entity that may be holder or requester: a pool never falls below what is reserved of it, and a
/// requester that goes gives back what it has not confirmed.
pub(super) fn follow(rules: &dyn Rules, draft: &mut Draft<'_>) -> Result<(), Stop> {
    if draft.document.is_none() || draft.after() == draft.before {
        return Ok(());
    }
    let after = draft.after().cloned();
    for resource in rules.pools() {
        let rest = sums_rest(resource);
        let Some(sums) = read::<Sums>(draft, &rest)? else {
            continue;
        };
        let Some(document) = &after else {
            if sums.open > 0 {
                let text = format!(
                    "{} operations of others are open at {}, with {} of its {resource}",
                    sums.open, draft.position, sums.reserved
                );
                return refuse(Code::PoolInUse, text);
            }
            write::<Sums>(draft, &rest, None);
            continue;
        };
        let total = integer(document, resource);
        if i128::from(total) < i128::from(sums.reserved) + i128::from(sums.confirmed) {
            let text = format!(
                "{} of {} reserve {} of its {resource} and have taken {}; {total} would be too little",
                sums.open, draft.position, sums.reserved, sums.confirmed
            );
            return refuse(Code::PoolInUse, text);
        }
    }
    if after.is_none() && draft.before.is_some() {
        give_all_back(draft)?;
    }
    Ok(())
}

fn give_all_back(draft: &mut Draft<'_>) -> Result<(), StateError> {
    let requests: Option<Requests> = read(draft, &requests_rest())?;
    if requests.is_none_or(|requests| requests.open == 0) {
        return Ok(());
    }
    for mut open in open_operations(draft)? {
        if matches!(open.stage, Stage::Asked | Stage::Tentative { .. }) {
            open.stage = Stage::Cancelling;
            write(draft, &operation_rest(open.operation), Some(&open));
            draft.send(open.holder.clone(), decision(Stage::Cancelling, open.operation));
        }
    }
    Ok(())
}

fn decision(wanted: Stage, operation: u64) -> Body {
    match wanted {
        Stage::Confirming => Body::Confirm { operation },
        _ => Body::Cancel { operation },
    }
}

// --- rows ------------------------------------------------------------------------------------------------------

pub(in crate::daemon) fn reservation_rest(requester: &Position, operation: u64) -> Vec<u8> {
    [&[RESERVATION], message_rest(requester, operation).as_slice()].concat()
}

pub(in crate::daemon) fn sums_rest(resource: &str) -> Vec<u8> {
    [&[SUMS], resource.as_bytes()].concat()
}

fn operation_rest(operation: u64) -> Vec<u8> {
    [&[OPERATION][..], &operation.to_be_bytes()].concat()
}

fn requests_rest() -> [u8; 1] {
    [REQUESTS]
}

/// What the document says there is. A field that is not there, or no whole number, is nothing.
pub(in crate::daemon) fn integer(document: &[u8], field: &str) -> i64 {
    let document: Result<serde_json::Value, _> = serde_json::from_slice(document);
    document
        .ok()
        .and_then(|document| document.get(field)?.as_i64())
        .unwrap_or(0)
}

fn read<T: DeserializeOwned>(draft: &Draft<'_>, rest: &[u8]) -> Result<Option<T>, StateError> {
    let value = draft.row(RowKind::Tentative, rest)?;
    value.map(|value| decode(draft, &value)).transpose()
}

fn decode<T: DeserializeOwned>(draft: &Draft<'_>, value: &Bytes) -> Result<T, StateError> {
    codec::decode(value).map_err(|error| StateError::Io(format!("an operation of {}: {error}", draft.position)))
}

fn write<T: Serialize>(draft: &mut Draft<'_>, rest: &[u8], value: Option<&T>) {
    draft.set_row(RowKind::Tentative, rest, value.map(codec::encode));
}

const REQUESTS: u8 = b'c';
const RESERVATION: u8 = b'h';
const OPERATION: u8 = b'r';
pub(in crate::daemon::core) const SUMS: u8 = b's';
