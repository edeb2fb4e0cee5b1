//! Messages in an entity's history: which of its versions sent what and what became of it, and what it has had of others, as far
//! as rows tell that are there for another purpose. Nothing is kept for this alone.
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::message::*;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Sent;
use crate::protocol::change::{How, Trace, TraceState, Version};
use crate::protocol::codec;
use crate::protocol::id::RequestId;
use crate::protocol::key::{Position, RowKind, row_key, split_partner_rest, split_row_key, work_key};

/// All that rows tell, the newest first; of the rows of each kind at most 1,000 are looked at.
pub fn traces(entity: &Position, versions: &[Version], state: &dyn State) -> Result<Vec<Trace>, StateError> {
    let mut sent = BTreeMap::new();
    let made_by = |id: RequestId| versions.iter().find(|version| version.request == Some(id));
    for (rest, value) in rows(entity, RowKind::Request, state)? {
        // Bucket and request; what only the former have is no list of messages.
        let id: Option<[u8; 16]> = rest.get(8..24).and_then(|id| id.try_into().ok());
        let Some(id) = id.filter(|_| rest.len() == 25) else {
            continue;
        };
        let version = made_by(RequestId(u128::from_be_bytes(id)));
        for Sent {
            to,
            session,
            number,
            action,
            ..
        } in decode::<Vec<Sent>>(entity, &value)?
        {
            let trace = Trace {
                version: version.map(|version| version.version),
                wall_ms: version.map(|version| version.updated_ms),
                ..blank(&to, session, number, action)
            };
            sent.insert((to, session, number), trace);
        }
    }
    let mut partners = BTreeMap::new();
    for (rest, value) in rows(entity, RowKind::Partner, state)? {
        if let Some((to, _)) = split_partner_rest(&rest) {
            partners.insert(to, decode::<Partner>(entity, &value)?);
        }
    }
    // One entry writes both with the same time.
    let made_at = |wall_ms: u64| versions.iter().find(|version| version.updated_ms == wall_ms);
    for (rest, value) in rows(entity, RowKind::Outbox, state)? {
        let Some((to, number)) = split_partner_rest(&rest) else {
            continue;
        };
        let (Some(partner), Ok(number)) = (partners.get(&to), <[u8; 8]>::try_from(&number[..])) else {
            continue;
        };
        let (number, letter) = (u64::from_be_bytes(number), decode::<Letter>(entity, &value)?);
        let action = letter.body.action().to_owned();
        let trace = Trace {
            version: made_at(letter.wall_ms).map(|version| version.version),
            wall_ms: Some(letter.wall_ms),
            ..blank(&to, partner.session, number, action)
        };
        sent.entry((to, partner.session, number)).or_insert(trace);
    }
    for ((to, session, number), trace) in &mut sent {
        // A session ends when all of it is applied.
        let is_open = |partner: &&Partner| partner.session == *session && partner.acked < *number;
        if partners.get(to).filter(is_open).is_some() {
            trace.state = TraceState::Pending;
        }
    }
    let refused: Option<Rejections> = read_row(&rejections_row(entity), state)?;
    for refused in refused.unwrap_or_default().0 {
        let (session, number) = (refused.session, refused.number);
        let trace = sent.entry((refused.by.clone(), session, number));
        let trace = trace.or_insert_with(|| blank(&refused.by, session, number, refused.action));
        trace.wall_ms = trace.wall_ms.or(Some(refused.wall_ms));
        trace.state = TraceState::Refused(refused.reason);
    }
    for (rest, value) in rows(entity, RowKind::Parked, state)? {
        let Some((to, name)) = split_partner_rest(&rest) else {
            continue;
        };
        let (Some((session, number)), parked) = (split_parked_rest(&name), decode::<Parked>(entity, &value)?) else {
            continue;
        };
        let trace = sent.entry((to.clone(), session, number));
        let trace = trace.or_insert_with(|| blank(&to, session, number, parked.body.action().to_owned()));
        trace.wall_ms = trace.wall_ms.or(Some(parked.wall_ms));
        trace.state = TraceState::Parked(parked.reason);
    }
    let mut all: Vec<Trace> = sent.into_values().collect();
    all.extend(had(entity, versions, state)?);
    // Of one time they stay in the order of the others and of their numbers.
    all.sort_by_key(|trace| std::cmp::Reverse((trace.wall_ms, trace.version)));
    Ok(all)
}

/// What it has had: the message that made each version, and the last of each sender.
fn had(entity: &Position, versions: &[Version], state: &dyn State) -> Result<Vec<Trace>, StateError> {
    let mut had = BTreeMap::new();
    for version in versions {
        let How::Message { from, number } = &version.how else {
            continue;
        };
        let Some((service, key)) = from.split_once('/') else {
            continue;
        };
        let from = Position::new(service, key);
        let trace = Trace {
            sent: false,
            version: Some(version.version),
            wall_ms: Some(version.updated_ms),
            ..blank(&from, 0, *number, String::new())
        };
        had.insert((from, *number, version.version), trace);
    }
    for (rest, value) in rows(entity, RowKind::Source, state)? {
        let Some((from, _)) = split_partner_rest(&rest) else {
            continue;
        };
        let source: Source = decode(entity, &value)?;
        let key = (from.clone(), source.last, source.version);
        let trace = had.entry(key).or_insert_with(|| Trace {
            // It changed nothing, or was refused: the version is the one that it found.
            sent: false,
            ..blank(&from, source.session, source.last, String::new())
        });
        trace.session = source.session;
    }
    Ok(had.into_values().collect())
}

fn blank(with: &Position, session: u64, number: u64, action: String) -> Trace {
    Trace {
        sent: true,
        with: with.clone(),
        session,
        number,
        action,
        state: TraceState::Applied,
        version: None,
        wall_ms: None,
    }
}

/// Rows of one kind: what follows the kind, and the value.
fn rows(entity: &Position, kind: RowKind, state: &dyn State) -> Result<Vec<(Bytes, Bytes)>, StateError> {
    let key = match kind {
        RowKind::Partner | RowKind::Outbox => work_key,
        _ => row_key,
    };
    let (start, end) = (key(entity, kind, &[]), key(entity, kind, &[0xff]));
    let mut found = Vec::new();
    state.scan(&start, &end, &mut |row, value| {
        if let Some((_, _, rest)) = split_row_key(row) {
            found.push((rest, value.clone()));
        }
        if found.len() < ROWS_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}

fn decode<T: serde::de::DeserializeOwned>(entity: &Position, value: &[u8]) -> Result<T, StateError> {
    codec::decode(value).map_err(|error| StateError::Io(format!("a row of {entity}: {error}")))
}

/// Rows of one kind that are looked at. Unit: rows.
const ROWS_MAX: usize = 1_000;
