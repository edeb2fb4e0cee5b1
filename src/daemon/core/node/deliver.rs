//! Applying what dispatch has brought: messages at their receivers, acknowledgements at their senders.
use std::ops::ControlFlow;

use super::*;
use crate::daemon::core::entity::machine::Delta;
use crate::daemon::core::entity::message::{Acknowledgement, Known, Source, read_row, source_row};
use crate::daemon::core::entity::{inbox, outbox};
use crate::protocol::key::{RowKind, row_key, split_row_key};
use crate::protocol::parcel::{Content, Parcel, Receipt};

impl Node {
    pub(super) fn apply_deliver(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        parcels: &[Parcel],
        wall_ms: u64,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Response, StateError> {
        let rules = self.judge(replica)?;
        let mut delta = Delta::default();
        let mut receipts = Vec::with_capacity(parcels.len());
        let (mut applied, mut refused) = (0, 0);
        let counts = replica.is_leader();
        for parcel in parcels {
            if !replica.shard.range.contains(&parcel.to) {
                receipts.push((parcel.slot, Receipt::Elsewhere(self.hint_for(&parcel.to))));
                continue;
            }
            let context = replica.context(&parcel.to, wall_ms);
            let planted = self.planted_parcel(parcel, state)?;
            let parcel = planted.as_ref().unwrap_or(parcel);
            let before = match self.config.planted {
                PlantedBug::MarksLater => Some(state.get(&source_row(&parcel.to, &parcel.from))?),
                _ => None,
            };
            let delivered = inbox::deliver(parcel, context, &rules, state, &mut delta)?;
            applied += delivered.applied.end - delivered.applied.start;
            refused += delivered.refused.len() as u64;
            for &lag_ms in delivered.lags_ms.iter().filter(|_| counts) {
                let bound = LAGS.iter().find(|(bound_ms, _)| lag_ms <= *bound_ms);
                let name = bound.map_or(LAG_BEYOND, |(_, name)| name);
                *self.counters.entry(name).or_default() += 1;
            }
            self.tell_delivered(replica, entry, parcel, &delivered, effects);
            if let Some(before) = before.filter(|_| !delivered.applied.is_empty()) {
                self.mark_later(replica, parcel, before, state)?;
            }
            receipts.push((parcel.slot, delivered.receipt));
        }
        if counts {
            *self.counters.entry("messages_applied").or_default() += applied;
            *self.counters.entry("messages_refused").or_default() += refused;
        }
        self.take_delta(replica, entry, delta, effects);
        Ok(Response::Receipts(receipts))
    }

    pub(super) fn apply_acknowledge(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        all: &[Acknowledgement],
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Response, StateError> {
        let mut delta = Delta::default();
        for known in all.iter().filter(|known| replica.shard.range.contains(&known.from)) {
            outbox::acknowledge(known, state, &mut delta)?;
        }
        self.take_delta(replica, entry, delta, effects);
        Ok(Response::Receipts(Vec::new()))
    }

    /// Takes in what a write or messages did besides.
    pub(super) fn take_delta(&mut self, replica: &mut Replica, entry: &Committed, delta: Delta, effects: &mut Effects) {
        replica.entities = replica.entities.saturating_add_signed(delta.entities);
        replica.bytes = replica.bytes.saturating_add_signed(delta.bytes);
        self.note_changes(replica, delta.changes);
        if self.config.tells_messages {
            for news in &delta.pairs {
                if let (Some(letter), Some(partner)) = (&news.letter, &news.partner) {
                    effects.push(Effect::Event(Event::Message {
                        delivered: false,
                        refused: false,
                        at: (replica.shard.id, entry.index),
                        from: news.from.clone(),
                        to: news.to.clone(),
                        session: partner.session,
                        number: partner.next - 1,
                        letter: letter.clone(),
                    }));
                }
            }
        }
        if self.config.tells_messages {
            let at = (replica.shard.id, entry.index);
            for news in delta.parked {
                effects.push(Effect::Event(Event::Parked { at, news }));
            }
        }
        self.pairs_changed(replica.shard.id, delta.pairs);
        self.timers_changed(replica, delta.timers);
    }

    fn tell_delivered(
        &self,
        replica: &Replica,
        entry: &Committed,
        parcel: &Parcel,
        delivered: &inbox::Delivered,
        effects: &mut Effects,
    ) {
        let Content::Letters { first, letters, .. } = &parcel.content else {
            return;
        };
        if !self.config.tells_messages {
            return;
        }
        for number in delivered.applied.clone() {
            effects.push(Effect::Event(Event::Message {
                delivered: true,
                refused: delivered.refused.contains(&number),
                at: (replica.shard.id, entry.index),
                from: parcel.from.clone(),
                to: parcel.to.clone(),
                session: parcel.session,
                number,
                letter: letters[(number - first) as usize].clone(),
            }));
        }
    }

    // --- planted bugs ------------------------------------------------------------------------------------------

    /// Tickets are taken whatever they say.
    fn planted_parcel(&self, parcel: &Parcel, state: &dyn State) -> Result<Option<Parcel>, StateError> {
        let mut parcel = match self.config.planted {
            PlantedBug::TakesAnyTicket => parcel.clone(),
            _ => return Ok(None),
        };
        let row = row_key(&parcel.to, RowKind::Head, &[]);
        if let Content::Letters {
            ticket: Some(ticket), ..
        } = &mut parcel.content
        {
            *ticket = match state.get(&row)? {
                Some(head) => machine::decode_head(&row, &head)?.closed,
                None => 0,
            };
        }
        Ok(Some(parcel))
    }

    /// The mark that messages have taken effect goes into an entry of its own.
    fn mark_later(
        &self,
        replica: &mut Replica,
        parcel: &Parcel,
        before: Option<bytes::Bytes>,
        state: &mut dyn State,
    ) -> Result<(), StateError> {
        let row = source_row(&parcel.to, &parcel.from);
        let mark: Option<Source> = read_row(&row, state)?;
        state.put(row, before);
        if let Some(mark) = mark.filter(|_| replica.is_leader()) {
            let waiting = Waiting {
                waiter: Waiter::Own,
                deadline: self.clock.now,
                id: RequestId(0),
            };
            let known = Acknowledgement {
                from: parcel.to.clone(),
                to: parcel.from.clone(),
                session: mark.session,
                what: Known::Planted(mark.last),
            };
            replica.propose(Command::Acknowledge(vec![known]), waiting);
        }
        Ok(())
    }

    /// A split's right half forgets what its entities have had.
    pub(super) fn forget_sources(&self, range: &KeyRange, state: &mut dyn State) -> Result<(), StateError> {
        if self.config.planted != PlantedBug::SplitForgetsSources {
            return Ok(());
        }
        forget(RowKind::Source, range, state)
    }

    /// A split's right half forgets what it has parked.
    pub(super) fn forget_parked(&self, range: &KeyRange, state: &mut dyn State) -> Result<(), StateError> {
        if self.config.planted != PlantedBug::SplitForgetsParked {
            return Ok(());
        }
        forget(RowKind::Parked, range, state)
    }

    /// A split's right half forgets whose parents its entities are.
    pub(super) fn forget_children(&self, range: &KeyRange, state: &mut dyn State) -> Result<(), StateError> {
        if self.config.planted != PlantedBug::SplitForgetsChildren {
            return Ok(());
        }
        forget(RowKind::Relation, range, state)
    }
}

/// Removes all rows of a kind.
fn forget(kind: RowKind, range: &KeyRange, state: &mut dyn State) -> Result<(), StateError> {
    let mut rows = Vec::new();
    state.scan(&range.start.0, &range.end.0, &mut |row, _| {
        if split_row_key(row).is_some_and(|(_, found, _)| found == kind as u8) {
            rows.push(row.clone());
        }
        ControlFlow::Continue(())
    })?;
    for row in rows {
        state.put(row, None);
    }
    Ok(())
}

/// Counters of messages by how long they were on their way, each without those before it. Unit: ms.
const LAGS: [(u64, &str); 11] = [
    (2, "messages_within_2_ms"),
    (5, "messages_within_5_ms"),
    (10, "messages_within_10_ms"),
    (20, "messages_within_20_ms"),
    (50, "messages_within_50_ms"),
    (100, "messages_within_100_ms"),
    (200, "messages_within_200_ms"),
    (500, "messages_within_500_ms"),
    (1_000, "messages_within_1000_ms"),
    (2_000, "messages_within_2000_ms"),
    (5_000, "messages_within_5000_ms"),
];
const LAG_BEYOND: &str = "messages_later";
