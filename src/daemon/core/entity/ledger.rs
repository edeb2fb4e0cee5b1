//! What is reserved of the holders of a shard, read from the rows.
//!
//! Each open operation has a timer among its holder's work, so that a shard's ledger is found without reading its entities.
use std::ops::ControlFlow;

use bytes::Bytes;

use super::draft::Draft;
use super::effects::Rules;
use super::machine::decode_head;
use super::message::read_row;
use super::tentative::{self, Reservation, SUMS, Sums};
use super::timer;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::codec;
use crate::protocol::key::{KeyRange, Position, RowKind, row_key, split_row_key, work_start};
use crate::protocol::shard_clock::ShardClock;
use crate::protocol::tentative::{LedgerItem, LedgerPage, LedgerPool};

/// What is asked for.
pub(in crate::daemon::core) struct Query<'a> {
    pub from: &'a Position,
    pub to: &'a Position,
    pub resume: &'a Bytes,
    pub limit: usize,
    /// The shard's.
    pub range: &'a KeyRange,
    pub clock: &'a ShardClock,
    /// What that shows now.
    pub now_ms: u64,
}

/// A page of the ledger.
pub(in crate::daemon::core) fn page(
    query: &Query<'_>,
    rules: &dyn Rules,
    state: &dyn State,
) -> Result<LedgerPage, StateError> {
    let mut page = LedgerPage::default();
    let last = query.to.min(&query.range.end);
    let end = work_start(last);
    let mut start = work_start(query.from);
    let mut holder = None;
    if query.resume.is_empty() {
        // Of one holder that was asked for everything is told, even if nothing is open.
        if *query.to <= query.from.successor() {
            pools(query.from, rules, state, &mut page)?;
            holder = Some(query.from.clone());
        }
    } else {
        start = [query.resume, &[0][..]].concat().into();
        holder = Some(query.from.clone());
    }
    let mut rows_left = ROWS_MAX;
    while start < end {
        let (mut found, mut go_on) = (Vec::new(), None);
        let room = query.limit - page.items.len();
        state.scan(&start, &end, &mut |row, _| {
            let Some((entity, kind, rest)) = split_row_key(row) else {
                return ControlFlow::Continue(());
            };
            if kind > RowKind::Timer as u8 {
                // Messages follow, perhaps very many.
                go_on = Some(work_start(&entity.successor()));
                return ControlFlow::Break(());
            }
            rows_left -= 1;
            if kind == RowKind::Timer as u8
                && let Some((requester, operation)) = timer::operation(&rest)
            {
                found.push((entity.clone(), requester, operation));
            }
            if found.len() == room || rows_left == 0 {
                page.next = Some((entity, row.clone()));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        for (entity, requester, operation) in found {
            if holder.as_ref() != Some(&entity) {
                pools(&entity, rules, state, &mut page)?;
                holder = Some(entity.clone());
            }
            page.items.extend(item(&entity, requester, operation, query, state)?);
        }
        match go_on {
            Some(next) if page.next.is_none() => start = next,
            _ => break,
        }
    }
    if page.next.is_none() && last < query.to {
        page.next = Some((last.clone(), Bytes::new()));
    }
    Ok(page)
}

fn item(
    holder: &Position,
    requester: Position,
    operation: u64,
    query: &Query<'_>,
    state: &dyn State,
) -> Result<Option<LedgerItem>, StateError> {
    let rest = tentative::reservation_rest(&requester, operation);
    let known: Option<Reservation> = read_row(&row_key(holder, RowKind::Tentative, &rest), state)?;
    Ok(known.map(|known| LedgerItem {
        holder: holder.clone(),
        requester,
        operation,
        resource: known.resource,
        amount: known.amount,
        since_ms: known.since_ms,
        until_ms: known.until_ms,
        is_past: query.clock.when_due(holder, known.due_ms) <= query.now_ms,
    }))
}

fn pools(holder: &Position, rules: &dyn Rules, state: &dyn State, page: &mut LedgerPage) -> Result<(), StateError> {
    let row = row_key(holder, RowKind::Head, &[]);
    let head = state.get(&row)?.map(|value| decode_head(&row, &value)).transpose()?;
    let document = head.filter(|head| head.exists).map(|head| head.document);
    let declared = rules.pools();
    let mut known: Vec<(String, Sums)> = Vec::new();
    let mut bad = None;
    Draft::to_read(holder, state).scan(RowKind::Tentative, &[SUMS], &mut |rest, value| {
        match codec::decode(value) {
            Ok(sums) => known.push((String::from_utf8_lossy(&rest[1..]).into_owned(), sums)),
            Err(error) => bad = Some(StateError::Io(format!("sums of {holder}: {error}"))),
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = bad {
        return Err(error);
    }
    for name in &declared {
        if document.is_some() && !known.iter().any(|(known, _)| known == name) {
            known.push(((*name).to_owned(), Sums::default()));
        }
    }
    page.pools.extend(known.into_iter().map(|(resource, sums)| {
        LedgerPool {
            holder: holder.clone(),
            total: document
                .as_ref()
                .filter(|_| declared.contains(&resource.as_str()))
                .map(|document| tentative::integer(document, &resource)),
            resource,
            reserved: sums.reserved,
            confirmed: sums.confirmed,
            open: sums.open,
        }
    }));
    Ok(())
}

/// Rows of work looked at for one page. Unit: rows.
const ROWS_MAX: usize = 20_000;
