//! What is promised of tentative operations, judged by the messages that replicas say that they record and by their rows: a
//! holder decides each operation once, in the order of the protocol, and never gives more than it has; the rows say the
//! same; in the end all that was asked for has ended, and both sides agree on how.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::check::{Property, Violation};
use super::workload::BUDGET_MAX;
use crate::daemon::core::entity::machine::decode_head;
use crate::daemon::core::entity::message::{Letter, read_row};
use crate::daemon::core::entity::tentative::{self, Reservation, Sums};
use crate::daemon::core::event::Event;
use crate::daemon::core::state::{State, StateError};
use crate::daemon::core::time::{Span, Time};
use crate::protocol::activity::{Body, OperationState};
use crate::protocol::codec;
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::tentative::Stage;

/// All operations of a run.
#[derive(Debug, Default)]
pub struct Bank {
    seen: BTreeSet<(Position, Position, u64, u64)>,
    /// By requester and number.
    operations: BTreeMap<(Position, u64), Operation>,
    pools: BTreeMap<Position, Pool>,
}

#[derive(Debug)]
struct Operation {
    holder: Position,
    amount: i64,
    /// When it was asked for, and for how long.
    since: Time,
    ttl: Span,
    /// As the holder decided last.
    state: Option<OperationState>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Pool {
    reserved: i64,
    confirmed: i64,
}

impl Bank {
    /// A replica has applied something. True if it is about a holder's decision, whose rows are then worth a look.
    pub fn see(&mut self, event: &Event, now: Time) -> Result<Option<Position>, Violation> {
        let Event::Message {
            delivered: false,
            from,
            to,
            session,
            number,
            letter,
            ..
        } = event
        else {
            return Ok(None);
        };
        let Ok(letter) = codec::decode::<Letter>(letter) else {
            return Ok(None);
        };
        let is_new = |bank: &mut Self| bank.seen.insert((from.clone(), to.clone(), *session, *number));
        match letter.body {
            Body::Reserve {
                operation,
                amount,
                ttl_ms,
                ..
            } if is_new(self) => {
                let known = Operation {
                    holder: to.clone(),
                    amount,
                    since: now,
                    ttl: Span::millis(ttl_ms),
                    state: None,
                };
                if let Some(known) = self.operations.insert((from.clone(), operation), known) {
                    let text = format!("{from} gives number {operation} again: {known:?}");
                    return Err(Violation::new(Property::Ledger, text));
                }
                Ok(None)
            }
            Body::Decided { operation, state, .. } => {
                if is_new(self) {
                    self.decided(from, to, operation, state, now)?;
                }
                Ok(Some(from.clone()))
            }
            _ => Ok(None),
        }
    }

    fn decided(
        &mut self,
        holder: &Position,
        requester: &Position,
        operation: u64,
        state: OperationState,
        now: Time,
    ) -> Result<(), Violation> {
        let known = self.operations.get_mut(&(requester.clone(), operation));
        let Some(known) = known.filter(|known| known.holder == *holder) else {
            let text = format!("{holder} says {state} of operation {operation}, which {requester} has not begun");
            return Err(Violation::new(Property::Ledger, text));
        };
        // Clocks of nodes may differ from the world's by a little.
        if state == OperationState::Expired && now.since(known.since).0 < known.ttl.0 / 10 * 9 {
            let text = format!("{holder} says {state} of operation {operation} of {requester} at {now:?}: {known:?}");
            return Err(Violation::new(Property::Ledger, text));
        }
        let pool = self.pools.entry(holder.clone()).or_default();
        match (known.state, state) {
            (None, OperationState::Declined) => {}
            (None, OperationState::Reserved) => pool.reserved += known.amount,
            (Some(OperationState::Reserved), OperationState::Confirmed) => {
                pool.reserved -= known.amount;
                pool.confirmed += known.amount;
            }
            (Some(OperationState::Reserved), OperationState::Cancelled | OperationState::Expired) => {
                pool.reserved -= known.amount;
            }
            (before, _) => {
                let text =
                    format!("{holder} says {state} of operation {operation} of {requester}, and said {before:?}");
                return Err(Violation::new(Property::Ledger, text));
            }
        }
        known.state = Some(state);
        if pool.reserved + pool.confirmed > BUDGET_MAX {
            let text = format!("{holder} gives more than it ever had: {pool:?} of {BUDGET_MAX}");
            return Err(Violation::new(Property::Ledger, text));
        }
        Ok(())
    }

    /// A holder's rows, as a replica has them: the sums are what a scan finds, and no more than the document says.
    pub fn check_rows(holder: &Position, state: &dyn State) -> Result<(), Violation> {
        let (sums, scanned) = rows_of(holder, state).map_err(|error| unreadable(holder, &error))?;
        if (sums.reserved, sums.open) != scanned {
            let text = format!("{holder} has {sums:?}, a scan finds {scanned:?}");
            return Err(Violation::new(Property::Ledger, text));
        }
        let row = row_key(holder, RowKind::Head, &[]);
        let head = state
            .get(&row)
            .and_then(|head| head.map(|head| decode_head(&row, &head)).transpose());
        let head = head.map_err(|error| unreadable(holder, &error))?.unwrap_or_default();
        let budget = if head.exists {
            tentative::integer(&head.document, "budget")
        } else {
            0
        };
        if sums.reserved + sums.confirmed > budget {
            let text = format!("{holder} has a budget of {budget} and gives more: {sums:?}");
            return Err(Violation::new(Property::Ledger, text));
        }
        Ok(())
    }

    /// An operation that has not ended.
    pub fn open(&self) -> Option<String> {
        let is_open = |operation: &&Operation| matches!(operation.state, None | Some(OperationState::Reserved));
        let count = self.operations.values().filter(is_open).count();
        let (name, operation) = self.operations.iter().find(|(_, operation)| is_open(operation))?;
        Some(format!("{count} operations are open: {name:?} {operation:?}"))
    }

    /// When all have ended: what holders have taken, and what requesters remember. `state_of` gives the rows of an entity's
    /// leader.
    pub fn check_ended<'a>(&self, state_of: impl Fn(&Position) -> Option<&'a dyn State>) -> Result<(), Violation> {
        for (holder, pool) in &self.pools {
            let Some(state) = state_of(holder) else { continue };
            let (sums, _) = rows_of(holder, state).map_err(|error| unreadable(holder, &error))?;
            let by_rows = Pool {
                reserved: sums.reserved,
                confirmed: sums.confirmed,
            };
            let confirmed = self
                .operations
                .values()
                .filter(|operation| operation.holder == *holder && operation.state == Some(OperationState::Confirmed));
            let confirmed: i64 = confirmed.map(|operation| operation.amount).sum();
            if by_rows != *pool || confirmed != pool.confirmed || pool.reserved != 0 {
                let text = format!("{holder} has {by_rows:?}, it said {pool:?}, {confirmed} were confirmed");
                return Err(Violation::new(Property::Ledger, text));
            }
        }
        let requesters: BTreeSet<&Position> = self.operations.keys().map(|(requester, _)| requester).collect();
        for requester in requesters {
            let Some(state) = state_of(requester) else { continue };
            let all = tentative::operations(requester, state).map_err(|error| unreadable(requester, &error))?;
            for known in all {
                let said = self.operations.get(&(requester.clone(), known.operation));
                let said = said.and_then(|operation| operation.state).map(Stage::Ended);
                if said != Some(known.stage) {
                    let text = format!("{requester} knows {known:?}, its holder said {said:?}");
                    return Err(Violation::new(Property::Ledger, text));
                }
            }
        }
        Ok(())
    }

    /// How many operations ended: confirmed, declined, cancelled, expired.
    pub fn count(&self) -> [u64; 4] {
        let of = |state| {
            self.operations
                .values()
                .filter(|known| known.state == Some(state))
                .count() as u64
        };
        [
            of(OperationState::Confirmed),
            of(OperationState::Declined),
            of(OperationState::Cancelled),
            of(OperationState::Expired),
        ]
    }
}

/// The sums, and what a scan finds: amount and number of what is set aside.
fn rows_of(holder: &Position, state: &dyn State) -> Result<(Sums, (i64, u64)), StateError> {
    let row = row_key(holder, RowKind::Tentative, &tentative::sums_rest("budget"));
    let sums: Sums = read_row(&row, state)?.unwrap_or_default();
    let start = row_key(holder, RowKind::Tentative, b"h");
    let end = row_key(holder, RowKind::Tentative, b"i");
    let (mut reserved, mut open) = (0, 0);
    state.scan(&start, &end, &mut |_, value| {
        if let Ok(known) = codec::decode::<Reservation>(value) {
            reserved += known.amount;
            open += 1;
        }
        ControlFlow::Continue(())
    })?;
    Ok((sums, (reserved, open)))
}

fn unreadable(entity: &Position, error: &StateError) -> Violation {
    Violation::new(Property::Ledger, format!("{entity}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::ShardId;

    fn event(number: u64, from: &str, to: &str, body: Body) -> Event {
        let letter = Letter {
            depth: 1,
            wall_ms: 0,
            returns: false,
            body,
        };
        Event::Message {
            delivered: false,
            refused: false,
            at: (ShardId(1), number),
            from: Position::new("campaign", from),
            to: Position::new("campaign", to),
            session: 1,
            number,
            letter: codec::encode(&letter),
        }
    }

    fn reserve(operation: u64, amount: i64) -> Event {
        let body = Body::Reserve {
            operation,
            resource: "budget".to_owned(),
            amount,
            ttl_ms: 1,
        };
        event(operation, "p", "c", body)
    }

    fn decided(number: u64, operation: u64, state: OperationState) -> Event {
        let body = Body::Decided {
            operation,
            state,
            until_ms: 0,
            reason: String::new(),
        };
        event(number, "c", "p", body)
    }

    #[test]
    fn the_judge_tells_right_from_wrong() {
        use OperationState::{Confirmed, Expired, Reserved};
        let run = |events: &[Event]| {
            let mut bank = Bank::default();
            let at = |n: usize| Time(0) + Span::millis(n as u64);
            let mut events = events.iter().enumerate();
            let result = events.try_for_each(|(n, event)| bank.see(event, at(n)).map(|_| ()));
            (result.is_ok(), bank.open().is_some())
        };
        let most = reserve(1, BUDGET_MAX);
        let (had, taken) = (decided(1, 1, Reserved), decided(2, 1, Confirmed));
        assert_eq!(run(&[most.clone(), had.clone()]), (true, true));
        let all = [most.clone(), had.clone(), taken.clone(), had.clone(), taken.clone()];
        assert_eq!(run(&all), (true, false), "others apply the same");
        let bad: [&[Event]; 4] = [
            std::slice::from_ref(&had),
            &[most.clone(), taken],
            &[
                most.clone(),
                had.clone(),
                decided(2, 1, Expired),
                decided(3, 1, Confirmed),
            ],
            &[most, reserve(2, 1), had.clone(), decided(2, 2, Reserved)],
        ];
        for events in bad {
            assert!(!run(events).0, "{events:?}");
        }
    }

    #[test]
    fn nothing_is_given_back_before_its_time() {
        for (ended, is_right) in [(Time(0) + Span::millis(1), true), (Time(0) + Span::micros(800), false)] {
            let mut bank = Bank::default();
            let mut see = |event: &Event, at| bank.see(event, at).is_ok();
            assert!(see(&reserve(1, 5), Time(0)) && see(&decided(1, 1, OperationState::Reserved), Time(0)));
            assert_eq!(see(&decided(2, 1, OperationState::Expired), ended), is_right);
        }
    }
}
