//! What entities have to do with one another, for those who look.
use std::ops::ControlFlow;

use bytes::Bytes;

use super::*;
use crate::daemon::core::entity::message::{
    Letter, Partner, Rejections, Source, Tally, outbox_row, read_row, rejections_row, tally_row,
};
use crate::protocol::activity::{ActivityFilter, ActivityItem, ActivityView, MessageView, PartnerView, SendView};
use crate::protocol::key::{RowKind, row_key, split_partner_rest, split_row_key, work_key, work_start};
use crate::protocol::request::LIST_BYTES_MAX;

impl Node {
    /// One entity's pairs in both directions.
    pub(in crate::daemon::core) fn activities(
        &self,
        replica: &Replica,
        entity: &Position,
        with: Option<&Position>,
        after: Option<&Position>,
        limit: u32,
        state: &dyn State,
    ) -> Result<ActivityView, StateError> {
        let limit = limit as usize;
        let tally: Tally = read_row(&tally_row(entity), state)?.unwrap_or_default();
        let rejections: Rejections = read_row(&rejections_row(entity), state)?.unwrap_or_default();
        let row = row_key(entity, RowKind::Head, &[]);
        let head = state.get(&row)?;
        let head = head
            .map(|head| machine::decode_head(&row, &head))
            .transpose()?
            .unwrap_or_default();
        let mut pairs: BTreeMap<Position, PartnerView> = BTreeMap::new();
        let wanted =
            |other: &Position| with.is_none_or(|with| with == other) && after.is_none_or(|after| after < other);
        let mut note = |other: &Position, set: &mut dyn FnMut(&mut PartnerView)| {
            set(pairs.entry(other.clone()).or_insert_with(|| PartnerView {
                with: other.clone(),
                sends: None,
                had: None,
            }));
        };
        for (other, value) in rows_about_others(RowKind::Partner, entity, limit + 1, &wanted, state)? {
            let partner: Partner = decoded(entity, &value)?;
            let view = self.send_view(replica, entity, &other, &partner, state)?;
            note(&other, &mut |pair| pair.sends = Some(view.clone()));
        }
        for (other, value) in rows_about_others(RowKind::Source, entity, limit + 1, &wanted, state)? {
            let source: Source = decoded(entity, &value)?;
            note(&other, &mut |pair| {
                pair.had = Some((source.session, source.last, source.version))
            });
        }
        let more = pairs.len() > limit;
        let pairs: Vec<PartnerView> = pairs.into_values().take(limit).collect();
        let next = pairs.last().filter(|_| more).map(|pair| pair.with.clone());
        let mut messages = Vec::new();
        if let (Some(with), Some(sends)) = (with, pairs.first().and_then(|pair| pair.sends.as_ref())) {
            let mut bytes = 0;
            for number in (sends.acked + 1..sends.next).take(limit) {
                let letter: Option<Letter> = read_row(&outbox_row(entity, with, number), state)?;
                let Some(letter) = letter.filter(|_| bytes < LIST_BYTES_MAX) else {
                    break;
                };
                bytes += letter.body.size();
                messages.push(MessageView {
                    number,
                    depth: letter.depth,
                    wall_ms: letter.wall_ms,
                    body: letter.body,
                });
            }
        }
        Ok(ActivityView {
            outstanding: tally.outstanding,
            sessions: head.sessions,
            closed: head.closed,
            pairs,
            next,
            rejections: rejections.0,
            messages,
        })
    }

    /// What the entities of a shard send.
    #[expect(clippy::too_many_arguments, reason = "the fields of the request")]
    pub(in crate::daemon::core) fn list_activities(
        &self,
        replica: &Replica,
        from: &Position,
        to: &Position,
        after: Option<&(Position, Position)>,
        filter: ActivityFilter,
        limit: u32,
        state: &dyn State,
    ) -> Result<Response, StateError> {
        let end = to.min(&replica.shard.range.end);
        let (mut items, mut looked_at) = (Vec::new(), 0_usize);
        let mut last = after.cloned();
        let mut start = match after {
            Some((from, to)) => {
                let mut row = work_key(from, RowKind::Partner, &crate::protocol::key::partner_rest(to)).to_vec();
                row.push(0);
                Bytes::from(row)
            }
            None => work_start(from),
        };
        let end_row = work_start(end);
        let mut is_full = false;
        loop {
            let (mut found, mut go_on) = (Vec::new(), None);
            state.scan(&start, &end_row, &mut |row, value| {
                looked_at += 1;
                let Some((from, kind, rest)) = split_row_key(row) else {
                    return ControlFlow::Continue(());
                };
                if kind == RowKind::Outbox as u8 {
                    go_on = Some(work_start(&from.successor()));
                    return ControlFlow::Break(());
                }
                if kind == RowKind::Partner as u8
                    && let Some((to, _)) = split_partner_rest(&rest)
                {
                    found.push((from, to, value.clone()));
                }
                is_full = items.len() + found.len() >= limit as usize || looked_at >= LOOKED_AT_MAX;
                if is_full {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            for (from, to, value) in found {
                let partner: Partner = decoded(&from, &value)?;
                last = Some((from.clone(), to.clone()));
                if filter.wants(partner.outstanding(), partner.held.is_some(), partner.open) {
                    let sends = self.send_view(replica, &from, &to, &partner, state)?;
                    items.push(ActivityItem { from, to, sends });
                }
            }
            match go_on.filter(|_| !is_full) {
                Some(next) if next < end_row => start = next,
                _ => break,
            }
        }
        let more_shards = (end < to).then(|| end.clone());
        Ok(Response::ActivitiesListed {
            items,
            after: last.filter(|_| is_full),
            next: more_shards.filter(|_| !is_full),
        })
    }

    fn send_view(
        &self,
        replica: &Replica,
        from: &Position,
        to: &Position,
        partner: &Partner,
        state: &dyn State,
    ) -> Result<SendView, StateError> {
        let oldest: Option<Letter> = match partner.outstanding() {
            0 => None,
            _ => read_row(&outbox_row(from, to, partner.acked + 1), state)?,
        };
        let (attempts, retry_in_ms) = self.tries_of(replica.shard.id, from, to);
        Ok(SendView {
            session: partner.session,
            next: partner.next,
            acked: partner.acked,
            closing: partner.closing,
            open: partner.open,
            held: partner.held.as_ref().map(|held| (held.by.clone(), held.since_ms)),
            oldest_ms: oldest.map(|letter| letter.wall_ms),
            attempts,
            retry_in_ms,
        })
    }
}

/// Up to so many of an entity's rows of a kind about others.
fn rows_about_others(
    kind: RowKind,
    entity: &Position,
    limit: usize,
    wanted: &dyn Fn(&Position) -> bool,
    state: &dyn State,
) -> Result<Vec<(Position, Bytes)>, StateError> {
    let key = |kind, rest: &[u8]| match kind {
        RowKind::Partner => work_key(entity, kind, rest),
        _ => row_key(entity, kind, rest),
    };
    let (start, end) = (key(kind, &[]), key(kind, &[0xff]));
    let mut rows = Vec::new();
    state.scan(&start, &end, &mut |row, value| {
        let other = split_row_key(row).and_then(|(_, _, rest)| split_partner_rest(&rest));
        if let Some((other, _)) = other.filter(|(other, _)| wanted(other)) {
            rows.push((other, value.clone()));
        }
        if rows.len() < limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(rows)
}

fn decoded<T: serde::de::DeserializeOwned>(entity: &Position, value: &[u8]) -> Result<T, StateError> {
    codec::decode(value).map_err(|error| StateError::Io(format!("a row of {entity}: {error}")))
}

/// Rows looked at for one answer.
const LOOKED_AT_MAX: usize = 20_000;
