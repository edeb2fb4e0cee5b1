//! What entities have to do with one another, for those who look.
use std::ops::ControlFlow;

use bytes::Bytes;

use super::*;
use crate::daemon::core::entity::message::{
    Letter, Parked, Partner, Rejections, Source, Tally, outbox_row, parked_row, partner_row, read_row, rejections_row,
    source_row, split_parked_rest, tally_row,
};
use crate::protocol::activity::{
    ActivityFilter, ActivityItem, ActivityView, MessageView, ParkedView, PartnerView, SendView,
};
use crate::protocol::key::{RowKind, partner_rest, row_key, split_partner_rest, split_row_key, work_key, work_start};
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
        let wanted = |other: &Position| after.is_none_or(|after| after < other);
        let mut note = |other: &Position, set: &mut dyn FnMut(&mut PartnerView)| {
            set(pairs.entry(other.clone()).or_insert_with(|| PartnerView {
                with: other.clone(),
                sends: None,
                had: None,
            }));
        };
        // One other is looked up: an entity may have a hundred thousand.
        let rows = |kind, row: &dyn Fn(&Position) -> Bytes| match with {
            Some(with) => Ok(state
                .get(&row(with))?
                .map(|value| (with.clone(), value))
                .into_iter()
                .collect()),
            None => rows_about_others(kind, entity, limit + 1, &wanted, state),
        };
        for (other, value) in rows(RowKind::Partner, &|other| partner_row(entity, other))? {
            let partner: Partner = decoded(entity, &value)?;
            let view = self.send_view(replica, entity, &other, &partner, state)?;
            note(&other, &mut |pair| pair.sends = Some(view.clone()));
        }
        for (other, value) in rows(RowKind::Source, &|other| source_row(entity, other))? {
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
        let parked = match with {
            Some(with) => parked(entity, with, limit, state)?,
            None => Vec::new(),
        };
        Ok(ActivityView {
            outstanding: tally.outstanding,
            sessions: head.sessions,
            closed: head.closed,
            pairs,
            next,
            rejections: rejections.0,
            messages,
            parked,
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
        let start = match after {
            Some((from, to)) => {
                let mut row = work_key(from, RowKind::Partner, &partner_rest(to)).to_vec();
                row.push(0);
                Bytes::from(row)
            }
            None => work_start(from),
        };
        let wanted = |partner: &Partner| filter.wants(partner.outstanding(), partner.is_parked(), partner.open);
        let (found, more) = sending(start, &work_start(end), limit as usize, &wanted, state)?;
        let mut items = Vec::with_capacity(found.len());
        for (from, to, partner) in found {
            let sends = self.send_view(replica, &from, &to, &partner, state)?;
            items.push(ActivityItem { from, to, sends });
        }
        let next_shard = (more.is_none() && end < to).then(|| end.clone());
        Ok(Response::ActivitiesListed {
            items,
            after: more,
            next: next_shard,
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
        let refused = match partner.parked {
            0 => None,
            _ => parked(from, to, 1, state)?.pop(),
        };
        let (attempts, retry_in_ms) = self.tries_of(replica.shard.id, from, to);
        Ok(SendView {
            session: partner.session,
            next: partner.next,
            acked: partner.acked,
            closing: partner.closing,
            open: partner.open,
            parked: partner.parked,
            refused: refused.map(|refused| (refused.reason, refused.wall_ms)),
            held: partner.held.as_ref().map(|held| (held.by.clone(), held.since_ms)),
            oldest_ms: oldest.map(|letter| letter.wall_ms),
            attempts,
            retry_in_ms,
        })
    }
}

/// Messages of a pair that were refused and are parked, the first ones.
fn parked(from: &Position, to: &Position, limit: usize, state: &dyn State) -> Result<Vec<ParkedView>, StateError> {
    let start = row_key(from, RowKind::Parked, &partner_rest(to));
    let end = parked_row(from, to, u64::MAX, u64::MAX);
    let (mut found, mut bytes, mut bad) = (Vec::new(), 0, None);
    state.scan(&start, &end, &mut |row, value| {
        let Some((session, number)) = split_parked_rest(&row[start.len()..]) else {
            return ControlFlow::Continue(());
        };
        match decoded::<Parked>(from, value) {
            Ok(parked) => {
                bytes += parked.body.size();
                found.push(ParkedView {
                    session,
                    number,
                    code: parked.code,
                    reason: parked.reason,
                    wall_ms: parked.wall_ms,
                    body: parked.body,
                });
            }
            Err(error) => bad = Some(error),
        }
        if bad.is_some() || found.len() >= limit || bytes >= LIST_BYTES_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    bad.map_or(Ok(found), Err)
}

/// Pairs by their senders' rows: those that are wanted, up to `limit`, and behind which pair to go on if there may be more.
#[expect(clippy::type_complexity, reason = "said in words above")]
fn sending(
    mut start: Bytes,
    end: &Bytes,
    limit: usize,
    wanted: &dyn Fn(&Partner) -> bool,
    state: &dyn State,
) -> Result<(Vec<(Position, Position, Partner)>, Option<(Position, Position)>), StateError> {
    let (mut found, mut looked_at, mut last, mut bad) = (Vec::new(), 0_usize, None, None);
    loop {
        let mut go_on = None;
        let mut is_full = false;
        state.scan(&start, end, &mut |row, value| {
            looked_at += 1;
            is_full = looked_at >= LOOKED_AT_MAX;
            let Some((from, kind, rest)) = split_row_key(row) else {
                return ControlFlow::Continue(());
            };
            if kind > RowKind::Partner as u8 {
                // Timers and messages: an entity may have very many, and its pairs came before them.
                go_on = Some(work_start(&from.successor()));
                // One that only has those counts as passed, too: or the next answer would begin here again.
                if last.as_ref().is_none_or(|(known, _)| *known != from) {
                    last = Some((from, Position::default()));
                }
                return ControlFlow::Break(());
            }
            if kind == RowKind::Partner as u8
                && let Some((to, _)) = split_partner_rest(&rest)
            {
                match decoded::<Partner>(&from, value) {
                    Ok(partner) if wanted(&partner) => found.push((from.clone(), to.clone(), partner)),
                    Ok(_) => {}
                    Err(error) => {
                        bad = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                last = Some((from, to));
                is_full |= found.len() >= limit;
                if is_full {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = bad {
            return Err(error);
        }
        match go_on.filter(|next| next < end) {
            _ if is_full => return Ok((found, last)),
            Some(next) => start = next,
            None => return Ok((found, None)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_at_its_end_and_not_among_timers() {
        let mut rows = crate::daemon::core::entity::testing::Rows::default();
        let entity = |n: usize| Position::new("campaign", &format!("c-{n:06}"));
        let to = Position::new("profile", "p");
        let pairs = [0, LOOKED_AT_MAX + 7, 2 * LOOKED_AT_MAX + 3];
        for n in 0..2 * LOOKED_AT_MAX + 5 {
            rows.put(
                work_key(&entity(n), RowKind::Timer, b"t"),
                Some(Bytes::from_static(b"?")),
            );
            if pairs.contains(&n) {
                let partner = Partner {
                    next: 2,
                    ..Partner::default()
                };
                rows.put(partner_row(&entity(n), &to), Some(codec::encode(&partner)));
            }
        }
        let end = work_start(&Position::end_of("campaign"));
        let listed = |limit: usize| {
            let (mut all, mut start, mut answers) = (Vec::new(), work_start(&entity(0)), 0);
            loop {
                answers += 1;
                assert!(answers < 10, "it goes on for ever");
                let (found, more) = sending(start, &end, limit, &|_| true, &rows).expect("readable");
                all.extend(found.into_iter().map(|(from, ..)| from));
                let Some((from, to)) = more else {
                    return all;
                };
                start = [&work_key(&from, RowKind::Partner, &partner_rest(&to))[..], &[0]]
                    .concat()
                    .into();
            }
        };
        assert_eq!(listed(100), pairs.map(entity));
        assert_eq!(listed(1), pairs.map(entity));
    }
}
