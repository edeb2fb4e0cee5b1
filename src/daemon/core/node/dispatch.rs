//! Messages between entities on their way: the leader of the sending shard brings them to the leader of the receiving one.
//!
//! What is to be sent is in the rows; this is only a list of it, made anew by each leader and kept up by what it applies.
//! Losing it, or any message it leads to, loses nothing. One parcel of a pair is under way at a time, so that a pair's
//! messages stay in order by themselves; many pairs share a batch. The protocol is in docs/messages.md.
use std::ops::ControlFlow;

use bytes::Bytes;

use super::timers::Timers;
use super::*;
use crate::daemon::core::entity::inbox;
use crate::daemon::core::entity::message::{Acknowledgement, Known, PairNews, Partner, outbox_row};
use crate::daemon::core::entity::timer::TimerNews;
use crate::protocol::key::{KeyRange, RowKind, split_partner_rest, split_row_key, work_start};
use crate::protocol::parcel::{Content, Parcel, Receipt};
use crate::protocol::request::Request;
use crate::protocol::shard_clock::ShardClock;

/// All that a node has under way for entities whose shards it leads.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    /// By sending shard.
    senders: BTreeMap<ShardId, Sender>,
    /// By the number that this node gave it.
    batches: BTreeMap<u64, Batch>,
    next_batch: u64,
    /// Batches with messages under way, by receiving shard.
    under_way: BTreeMap<ShardId, usize>,
    /// Pairs that wait until a batch for this shard is back.
    blocked: BTreeMap<ShardId, Vec<(ShardId, Pair)>>,
    /// What arrived here to end sessions: proposed together now and then, so that tickets hold meanwhile.
    finishing: Vec<(ShardId, Waiting, Vec<Parcel>)>,
    last_finish: Time,
    /// Sending shards that have something to be done at once.
    active: BTreeSet<ShardId>,
    /// Sending shards with alarms.
    alarmed: BTreeSet<ShardId>,
    /// When shards have to look at their timers.
    pub(super) timer_alarms: BTreeSet<(Time, ShardId)>,
}

/// Sender and receiver.
type Pair = (Position, Position);

/// One shard that this node leads.
#[derive(Debug)]
pub(super) struct Sender {
    term: u64,
    close_after: Span,
    pairs: BTreeMap<Pair, State>,
    ready: VecDeque<Pair>,
    /// When pairs that rest are to be looked at again.
    alarms: BTreeSet<(Time, Pair)>,
    /// Where the list still has to be made from the rows.
    unread: Vec<(Bytes, Bytes)>,
    outstanding: u64,
    /// To be proposed with the next entry.
    acknowledgements: Vec<Acknowledgement>,
    /// Tickets that may be used as soon as this node is known to have led after they came.
    tickets: Vec<(Pair, u64, u64)>,
    /// The same, for which a majority is being asked.
    confirming: Vec<(Pair, u64, u64)>,
    asked: bool,
    pub(super) timers: Timers,
}

/// How one pair stands.
#[derive(Debug, Default)]
struct State {
    partner: Partner,
    /// The receiver has applied all up to this number; the rows may not say so yet.
    done: u64,
    ticket: Option<u64>,
    stage: Stage,
    /// When it is in `alarms`.
    alarm: Option<Time>,
    /// When anything last happened.
    active: Time,
    /// Since when the first message that is outstanding has been the first.
    waits_since: Time,
    attempts: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing to do before something happens, or its alarm.
    #[default]
    Resting,
    /// In `ready`, or waiting for a batch to come back.
    Ready,
    /// A parcel is under way in this batch.
    Sent(u64),
    /// A ticket waits for a majority.
    Confirming,
}

/// Parcels under way to one shard.
#[derive(Debug)]
struct Batch {
    /// The sending shard, and the term in which it was sent, by slot.
    parcels: Vec<Option<(ShardId, Pair, u64)>>,
    left: usize,
    target: ShardId,
    /// Whether it counts in `under_way`.
    counts: bool,
    until: Time,
}

impl Sender {
    fn new(term: u64, range: &KeyRange, close_after: Span) -> Self {
        let [work, _] = range.row_ranges();
        Self {
            term,
            close_after,
            pairs: BTreeMap::new(),
            ready: VecDeque::new(),
            alarms: BTreeSet::new(),
            unread: vec![work],
            outstanding: 0,
            acknowledgements: Vec::new(),
            tickets: Vec::new(),
            confirming: Vec::new(),
            asked: false,
            timers: Timers::default(),
        }
    }

    /// A pair's row is now like this.
    fn learn(&mut self, news: PairNews, now: Time) {
        let (pair, again) = ((news.from, news.to), news.again);
        let Some(partner) = news.partner else {
            if let Some(state) = self.pairs.remove(&pair) {
                self.outstanding -= state.partner.outstanding();
                if let Some(alarm) = state.alarm {
                    self.alarms.remove(&(alarm, pair));
                }
            }
            return;
        };
        let state = self.pairs.entry(pair.clone()).or_insert_with(|| State {
            partner: Partner {
                session: partner.session,
                next: 1,
                ..Partner::default()
            },
            ..State::default()
        });
        self.outstanding = self.outstanding + partner.outstanding() - state.partner.outstanding();
        if partner.session != state.partner.session {
            state.ticket = None;
            state.done = 0;
            state.attempts = 0;
            if matches!(state.stage, Stage::Sent(_) | Stage::Confirming) {
                // What is under way speaks of the session before.
                state.stage = Stage::Resting;
            }
        }
        state.done = state.done.max(partner.acked);
        state.active = now;
        if partner.acked != state.partner.acked || state.partner.outstanding() == 0 {
            state.waits_since = now;
        }
        let was_held = state.partner.held.is_some();
        state.partner = partner;
        if again || (was_held && state.partner.held.is_none()) {
            state.attempts = 0;
        }
        self.consider(pair, now);
    }

    /// Puts a resting pair where it belongs.
    fn consider(&mut self, pair: Pair, now: Time) {
        let Some(state) = self.pairs.get_mut(&pair) else { return };
        if state.stage != Stage::Resting {
            return;
        }
        let partner = &state.partner;
        let has_more = partner.closing || state.done + 1 < partner.next;
        if partner.held.is_some() {
            return;
        }
        if has_more && state.attempts == 0 {
            state.stage = Stage::Ready;
            self.ready.push_back(pair);
            return;
        }
        let after = if has_more {
            backoff(state.attempts)
        } else if partner.outstanding() > 0 {
            ACKNOWLEDGE_AGAIN_AFTER
        } else if !partner.is_kept() {
            self.close_after
        } else {
            return;
        };
        // An alarm that comes too early is set again.
        if state.alarm.is_none_or(|alarm| now + after < alarm) {
            let at = now + after;
            if let Some(old) = state.alarm.replace(at) {
                self.alarms.remove(&(old, pair.clone()));
            }
            self.alarms.insert((at, pair));
        }
    }

    /// It did not work out: again in a while.
    fn put_off(&mut self, pair: Pair, now: Time) {
        if let Some(state) = self.pairs.get_mut(&pair) {
            state.stage = Stage::Resting;
            state.attempts = (state.attempts + 1).min(BACKOFF_DOUBLINGS_MAX);
            self.consider(pair, now);
        }
    }

    /// Pairs whose alarm is due are ready, or are to be closed.
    fn wake(&mut self, now: Time) {
        while let Some((at, pair)) = self.alarms.first().cloned() {
            if at > now {
                return;
            }
            self.alarms.pop_first();
            let Some(state) = self.pairs.get_mut(&pair) else {
                continue;
            };
            state.alarm = None;
            if state.stage != Stage::Resting || state.partner.held.is_some() {
                continue;
            }
            let (partner, done) = (&state.partner, state.done);
            let session = partner.session;
            if partner.closing || done + 1 < partner.next {
                state.stage = Stage::Ready;
                self.ready.push_back(pair);
                continue;
            }
            // Should an entry get lost, it is proposed again.
            if partner.outstanding() > 0 {
                self.acknowledge(&pair, session, Known::Applied(done));
            } else if !partner.is_kept() && now.since(state.active) >= self.close_after {
                self.acknowledge(&pair, session, Known::Idle);
            }
            self.consider(pair, now);
        }
    }

    fn acknowledge(&mut self, pair: &Pair, session: u64, what: Known) {
        self.acknowledgements.push(Acknowledgement {
            from: pair.0.clone(),
            to: pair.1.clone(),
            session,
            what,
        });
    }

    /// This node has led the shard at some time after these tickets came.
    fn confirmed(&mut self, tickets: Vec<(Pair, u64, u64)>) {
        for (pair, session, closed) in tickets {
            let Some(state) = self.pairs.get_mut(&pair) else {
                continue;
            };
            if state.stage != Stage::Confirming || state.partner.session != session {
                continue;
            }
            state.ticket = Some(closed);
            state.stage = Stage::Ready;
            self.ready.push_back(pair);
        }
    }

    /// Reads some of the rows that the list is to be made of.
    fn read_on(&mut self, clock: &ShardClock, now: Time, state: &dyn super::State) -> Result<(), StateError> {
        let mut rows = 0;
        while let Some((start, end)) = self.unread.pop() {
            let mut go_on = None;
            let (mut found, mut timers) = (Vec::new(), Vec::new());
            state.scan(&start, &end, &mut |row, value| {
                rows += 1;
                let Some((from, kind, rest)) = split_row_key(row) else {
                    return ControlFlow::Continue(());
                };
                if kind == RowKind::Outbox as u8 {
                    // Messages of the same entity follow, up to a million: what the pairs' rows said of them is enough.
                    go_on = Some(work_start(&from.successor()));
                    return ControlFlow::Break(());
                }
                if kind == RowKind::Timer as u8 {
                    timers.push((from, rest, value.clone()));
                } else if kind == RowKind::Partner as u8
                    && let Some((to, _)) = split_partner_rest(&rest)
                {
                    found.push((from, to, value.clone()));
                }
                if rows >= READ_ROWS_MAX {
                    let mut next = row.to_vec();
                    next.push(0);
                    go_on = Some(next.into());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            for (from, to, value) in found {
                let partner =
                    codec::decode(&value).map_err(|error| StateError::Io(format!("{from} to {to}: {error}")))?;
                let partner = Some(partner);
                self.learn(
                    PairNews {
                        from,
                        to,
                        partner,
                        letter: None,
                        again: false,
                    },
                    now,
                );
            }
            for (entity, what, value) in timers {
                let due_ms =
                    codec::decode(&value).map_err(|error| StateError::Io(format!("a timer of {entity}: {error}")))?;
                let due_ms = Some(due_ms);
                self.timers.learn(TimerNews { entity, what, due_ms }, clock);
            }
            if let Some(next) = go_on.filter(|next| *next < end) {
                self.unread.push((next, end));
            }
            rows += 1;
            if rows >= READ_ROWS_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_at_rest(&self) -> bool {
        self.pairs.is_empty() && self.unread.is_empty() && self.acknowledgements.is_empty()
    }
}

impl Dispatch {
    /// Batches are named from `first` on. An answer to one that was sent before this node went down may still be on its way:
    /// taken for that of another batch, it would call messages applied that were never delivered.
    pub(super) fn new(first: u64) -> Self {
        Self {
            next_batch: first,
            ..Self::default()
        }
    }

    pub(super) fn sender(&mut self, shard: ShardId) -> Option<&mut Sender> {
        self.senders.get_mut(&shard)
    }

    pub(super) fn timers(&self, shard: ShardId) -> Option<&Timers> {
        self.senders.get(&shard).map(|sender| &sender.timers)
    }

    /// The shard has something to be done at once.
    pub(super) fn activate(&mut self, shard: ShardId) {
        self.active.insert(shard);
    }
}

impl Node {
    /// Whether messages from this shard's entities are to be sent, sessions to be closed, or the list of both is still to
    /// be made: such a group must not sleep. Only its leader knows.
    pub fn has_pending_messages(&self, shard: ShardId) -> bool {
        self.dispatch
            .senders
            .get(&shard)
            .is_some_and(|sender| !sender.is_at_rest())
    }

    /// Messages that the shard's entities have outstanding, as its leader knows.
    pub fn outstanding_messages(&self, shard: ShardId) -> Option<u64> {
        self.dispatch.senders.get(&shard).map(|sender| sender.outstanding)
    }

    /// How often a pair was tried in vain, and when it is tried again. Unit: ms.
    pub(super) fn tries_of(&self, shard: ShardId, from: &Position, to: &Position) -> (u32, Option<u64>) {
        let pair = (from.clone(), to.clone());
        let known = self
            .dispatch
            .senders
            .get(&shard)
            .and_then(|sender| sender.pairs.get(&pair));
        let Some(known) = known.filter(|known| known.attempts > 0) else {
            return (0, None);
        };
        let due = known.alarm.map(|at| at.since(self.clock.now).as_millis());
        (known.attempts, due)
    }

    /// How it stands with messages from the entities whose shards this node leads.
    pub(in crate::daemon::core) fn message_gauges(&self) -> Vec<(String, u64)> {
        let (mut outstanding, mut parked, mut tentative, mut oldest_ms, mut looked_at) = (0, 0, 0, 0, 0);
        for sender in self.dispatch.senders.values() {
            outstanding += sender.outstanding;
            for known in sender.pairs.values().take(GAUGE_PAIRS_MAX - looked_at) {
                looked_at += 1;
                parked += u64::from(known.partner.is_parked());
                tentative += u64::from(known.partner.open);
                // What is parked is told as such; it does not make the rest late.
                if known.partner.outstanding() > 0 && known.partner.held.is_none() {
                    oldest_ms = self.clock.now.since(known.waits_since).as_millis().max(oldest_ms);
                }
            }
        }
        let per_s = match self.clock.now.since(self.last_count).as_millis() {
            0..RATE_STALE_MS => self.messages_rate.1,
            _ => 0,
        };
        let gauges = [
            ("messages_per_s", per_s),
            ("messages_outstanding", outstanding),
            ("messages_parked_pairs", parked),
            ("messages_tentative", tentative),
            ("messages_oldest_ms", oldest_ms),
        ];
        gauges.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Takes the rate at which receivers led here took messages over the last `over_ms`.
    pub(super) fn count_messages(&mut self, over_ms: u64) {
        let applied = self.counters.get("messages_applied").copied().unwrap_or(0);
        let before = std::mem::replace(&mut self.messages_rate.0, applied);
        self.messages_rate.1 = applied.saturating_sub(before) * 1_000 / over_ms.max(1);
    }

    /// Pairs' rows have changed at a shard.
    pub(super) fn pairs_changed(&mut self, shard: ShardId, news: Vec<PairNews>) {
        let now = self.clock.now;
        if news.is_empty() {
            return;
        }
        if let Some(sender) = self.dispatch.senders.get_mut(&shard) {
            for news in news {
                sender.learn(news, now);
            }
            self.dispatch.active.insert(shard);
        }
    }

    /// A replica's role may have changed.
    pub(super) fn watch_leadership(&mut self, replica: &Replica) {
        let (shard, term) = (replica.shard.id, replica.term());
        let senders = &mut self.dispatch.senders;
        if !replica.is_leader() {
            senders.remove(&shard);
        } else if senders.get(&shard).is_none_or(|sender| sender.term != term) {
            senders.insert(
                shard,
                Sender::new(term, &replica.shard.range, self.config.close_sessions_after),
            );
            self.dispatch.active.insert(shard);
        }
    }

    /// The shard has given away what lies outside its range.
    pub(super) fn pairs_left(&mut self, replica: &Replica) {
        let Some(sender) = self.dispatch.senders.get_mut(&replica.shard.id) else {
            return;
        };
        let range = &replica.shard.range;
        sender.pairs.retain(|(from, _), _| range.contains(from));
        sender.alarms.retain(|(_, (from, _))| range.contains(from));
        sender.timers.keep(range);
        sender.outstanding = sender.pairs.values().map(|state| state.partner.outstanding()).sum();
        let [(_, work_end), _] = range.row_ranges();
        for (_, end) in &mut sender.unread {
            *end = (*end).clone().min(work_end.clone());
        }
        sender.unread.retain(|(start, end)| start < end);
    }

    /// The shard has taken over this range.
    pub(super) fn pairs_came(&mut self, shard: ShardId, range: &KeyRange) {
        if let Some(sender) = self.dispatch.senders.get_mut(&shard) {
            let [work, _] = range.row_ranges();
            sender.unread.push(work);
            self.dispatch.active.insert(shard);
        }
    }

    // --- sending -----------------------------------------------------------------------------------------------

    /// Sends what is ready and proposes what is known. True if this node's own replicas have something to settle.
    pub(super) fn dispatch(&mut self, state: &dyn super::State, effects: &mut Effects) -> Result<bool, StateError> {
        if self.dispatch.active.is_empty() || self.stopped {
            return Ok(false);
        }
        let now = self.clock.now;
        let (mut open, mut own) = (BTreeMap::new(), Vec::new());
        let mut has_proposed = false;
        for shard in std::mem::take(&mut self.dispatch.active) {
            let Some(mut sender) = self.dispatch.senders.remove(&shard) else {
                continue;
            };
            if !self.replicas.get(&shard).is_some_and(Replica::is_leader) {
                // It was absorbed, or removed, or leads no more: whoever leads has a list of its own.
                continue;
            }
            let result = self.dispatch_shard(shard, &mut sender, &mut open, &mut own, now, state, effects);
            has_proposed |= self.propose_acknowledgements(shard, &mut sender, now);
            has_proposed |= self.tend_timers(shard, &mut sender);
            if !sender.unread.is_empty() || !sender.ready.is_empty() {
                self.dispatch.active.insert(shard);
            }
            if !sender.alarms.is_empty() {
                self.dispatch.alarmed.insert(shard);
            }
            self.dispatch.senders.insert(shard, sender);
            match result {
                Err(StateError::Checksum { key }) => {
                    // The copy is replaced; whoever leads then has a list of its own.
                    self.dispatch.active.remove(&shard);
                    self.dispatch.senders.remove(&shard);
                    self.row_damaged(shard, &key, effects);
                }
                other => other?,
            }
        }
        for ((target, is_finish), batch) in open {
            self.close_batch(target, is_finish, batch, now, &mut own, effects);
        }
        for (id, target, parcels) in own {
            has_proposed = true;
            self.delivered_here(self.config.node, id, target, parcels, state, effects)?;
        }
        Ok(has_proposed)
    }

    /// Whether `dispatch` has more to do at once.
    pub(super) fn has_to_dispatch(&self) -> bool {
        !self.dispatch.active.is_empty()
    }

    #[expect(clippy::too_many_arguments, reason = "what dispatching hands through")]
    fn dispatch_shard(
        &mut self,
        shard: ShardId,
        sender: &mut Sender,
        open: &mut BTreeMap<(ShardId, bool), Open>,
        own: &mut Vec<(u64, ShardId, Vec<Parcel>)>,
        now: Time,
        state: &dyn super::State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        if let Some(replica) = self.replicas.get(&shard) {
            if sender.unread.is_empty() && sender.timers.is_used_up() {
                let [work, _] = replica.shard.range.row_ranges();
                sender.unread.push(work);
            }
            if !sender.unread.is_empty() {
                sender.read_on(&replica.clock, now, state)?;
            }
        }
        self.confirm_tickets(shard, sender, now);
        for _ in 0..sender.ready.len().min(DISPATCH_PAIRS_MAX) {
            let Some(pair) = sender.ready.pop_front() else { break };
            let Some(known) = sender.pairs.get(&pair).filter(|known| known.stage == Stage::Ready) else {
                continue;
            };
            if known.partner.held.is_some() {
                sender.pairs.get_mut(&pair).expect("looked at above").stage = Stage::Resting;
                continue;
            }
            let Some((target, node)) = self.whereabouts(&pair.1) else {
                sender.put_off(pair, now);
                continue;
            };
            let is_finish = known.partner.closing;
            let under_way = self.dispatch.under_way.get(&target).copied().unwrap_or(0);
            if !is_finish && under_way >= BATCHES_UNDER_WAY_MAX {
                self.dispatch.blocked.entry(target).or_default().push((shard, pair));
                continue;
            }
            let content = content_of(&pair, known, state)?;
            let Some(content) = content else {
                // There is nothing to do any more.
                let known = sender.pairs.get_mut(&pair).expect("looked at above");
                known.stage = Stage::Resting;
                sender.consider(pair, now);
                continue;
            };
            let batch = open.entry((target, is_finish)).or_insert_with(|| {
                self.dispatch.next_batch += 1;
                Open {
                    id: self.dispatch.next_batch,
                    node,
                    parcels: Vec::new(),
                    pairs: Vec::new(),
                    bytes: 0,
                }
            });
            let known = sender.pairs.get_mut(&pair).expect("looked at above");
            known.stage = Stage::Sent(batch.id);
            let parcel = Parcel {
                slot: batch.parcels.len() as u32,
                from: pair.0.clone(),
                to: pair.1.clone(),
                session: known.partner.session,
                content,
            };
            batch.bytes += parcel.size();
            batch.parcels.push(parcel);
            batch.pairs.push(Some((shard, pair, sender.term)));
            if batch.bytes >= BATCH_BYTES_MAX
                && let Some(full) = open.remove(&(target, is_finish))
            {
                self.close_batch(target, is_finish, full, now, own, effects);
            }
        }
        Ok(())
    }

    /// The shard that holds an entity, and the node that leads it, as far as this node knows.
    fn whereabouts(&self, position: &Position) -> Option<(ShardId, NodeId)> {
        let shard = match self.local_shard(position) {
            Some(shard) => shard,
            None => self.map.find(position)?.id,
        };
        self.leader_to_ask(shard).map(|node| (shard, node))
    }

    fn close_batch(
        &mut self,
        target: ShardId,
        is_finish: bool,
        batch: Open,
        now: Time,
        own: &mut Vec<(u64, ShardId, Vec<Parcel>)>,
        effects: &mut Effects,
    ) {
        if !is_finish {
            *self.dispatch.under_way.entry(target).or_default() += 1;
        }
        let known = Batch {
            left: batch.pairs.len(),
            parcels: batch.pairs,
            target,
            counts: !is_finish,
            until: now + BATCH_TIMEOUT,
        };
        self.dispatch.batches.insert(batch.id, known);
        if batch.node == self.config.node {
            own.push((batch.id, target, batch.parcels));
            return;
        }
        effects.push(Effect::Send {
            to: batch.node,
            message: Message::Deliver {
                id: batch.id,
                shard: target,
                parcels: batch.parcels,
            },
        });
    }

    fn propose_acknowledgements(&mut self, shard: ShardId, sender: &mut Sender, now: Time) -> bool {
        if sender.acknowledgements.is_empty() {
            return false;
        }
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return false;
        };
        let waiting = own_waiting(now);
        let mut all = std::mem::take(&mut sender.acknowledgements);
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(ACKNOWLEDGEMENTS_MAX));
            replica.propose(Command::Acknowledge(std::mem::replace(&mut all, rest)), waiting);
        }
        self.touched.insert(shard);
        true
    }

    /// Tickets may be used when this node is known to have led the shard after they came.
    fn confirm_tickets(&mut self, shard: ShardId, sender: &mut Sender, now: Time) {
        if sender.tickets.is_empty() || sender.asked {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return;
        };
        let tickets = std::mem::take(&mut sender.tickets);
        let waiting = Waiting {
            waiter: Waiter::Dispatch {
                shard,
                term: sender.term,
            },
            deadline: now + CONFIRM_WITHIN,
            id: RequestId(0),
        };
        let request = Request::Map;
        match replica.read(now, true, replica::Read { waiting, request }) {
            Some(_) => sender.confirmed(tickets),
            None => {
                sender.confirming = tickets;
                sender.asked = true;
                self.touched.insert(shard);
            }
        }
    }

    /// A majority has confirmed that this node led the shard, or has not.
    pub(super) fn leadership_confirmed(&mut self, shard: ShardId, term: u64, is_sure: bool) {
        let now = self.clock.now;
        let Some(sender) = self
            .dispatch
            .senders
            .get_mut(&shard)
            .filter(|sender| sender.term == term)
        else {
            return;
        };
        sender.asked = false;
        let tickets = std::mem::take(&mut sender.confirming);
        if is_sure {
            sender.confirmed(tickets);
        } else {
            for (pair, _, _) in tickets {
                sender.put_off(pair, now);
            }
        }
        self.dispatch.active.insert(shard);
    }

    // --- receiving ---------------------------------------------------------------------------------------------

    /// A batch for entities of a shard that this node is believed to lead.
    pub(super) fn delivered_here(
        &mut self,
        from: NodeId,
        id: u64,
        shard: ShardId,
        parcels: Vec<Parcel>,
        state: &dyn super::State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let waiting = Waiting {
            waiter: Waiter::Batch { node: from, id },
            deadline: self.clock.now + BATCH_TIMEOUT,
            id: RequestId(0),
        };
        let now = self.clock.now;
        let leads = |replica: &&Replica| {
            let stands = replica.shard.frozen.is_some() || hold::refusal_now(replica, now).is_some();
            replica.is_leader() && !stands && !self.refusing
        };
        let replica = self.replicas.get(&shard).filter(leads);
        let Some(replica) = replica.filter(|replica| replica.waiting() < PENDING_REQUESTS_MAX) else {
            // It is told where to go instead, if this node knows.
            let receipts = parcels
                .iter()
                .map(|parcel| (parcel.slot, self.elsewhere(&parcel.to, shard)));
            let receipts = Response::Receipts(receipts.collect());
            self.reply(waiting, receipts, None, None, effects);
            return Ok(());
        };
        let (mut receipts, mut proposed) = (Vec::new(), Vec::new());
        let mut is_finish = false;
        let mut damaged = None;
        for parcel in parcels {
            if !replica.shard.range.contains(&parcel.to) {
                receipts.push((parcel.slot, self.elsewhere(&parcel.to, shard)));
                continue;
            }
            is_finish = parcel.content == Content::Finish;
            // A session that this replica does not know may be in the log behind it; that is no reason to call it closed.
            let must_ask = is_finish || self.config.planted == PlantedBug::TakesAnyTicket && has_ticket(&parcel);
            let known = if must_ask {
                None
            } else {
                match inbox::inspect(&parcel, state) {
                    Err(StateError::Checksum { key }) => {
                        damaged = Some(key);
                        Some(Receipt::Later)
                    }
                    other => other?,
                }
            };
            match known {
                Some(receipt) => receipts.push((parcel.slot, receipt)),
                None => proposed.push(parcel),
            }
        }
        if !receipts.is_empty() {
            self.reply(waiting, Response::Receipts(receipts), None, None, effects);
        }
        if let Some(key) = damaged {
            self.row_damaged(shard, &key, effects);
        }
        if proposed.is_empty() {
            return Ok(());
        }
        if is_finish {
            self.dispatch.finishing.push((shard, waiting, proposed));
            return Ok(());
        }
        if self.config.planted == PlantedBug::AcknowledgesEarly {
            let receipts = proposed.iter().map(|parcel| (parcel.slot, early_receipt(parcel)));
            let receipts = Response::Receipts(receipts.collect());
            self.reply(waiting, receipts, None, None, effects);
        }
        if let Some(replica) = self.replicas.get_mut(&shard) {
            replica.propose(Command::Deliver(proposed), waiting);
            self.touched.insert(shard);
        }
        Ok(())
    }

    /// What is answered for an entity that this node does not serve in that shard.
    fn elsewhere(&self, position: &Position, shard: ShardId) -> Receipt {
        match self.whereabouts(position) {
            Some((known, node)) if known != shard || node != self.config.node => {
                Receipt::Elsewhere(self.hint_for(position))
            }
            _ => Receipt::Later,
        }
    }

    /// What time brings to messages: batches that never came back, sessions to be ended.
    pub(super) fn tick_dispatch(&mut self) {
        let now = self.clock.now;
        if now.since(self.dispatch.last_finish) >= FINISH_EVERY {
            self.dispatch.last_finish = now;
            for (shard, waiting, parcels) in std::mem::take(&mut self.dispatch.finishing) {
                if let Some(replica) = self.replicas.get_mut(&shard) {
                    replica.propose(Command::Deliver(parcels), waiting);
                    self.touched.insert(shard);
                }
            }
        }
        for shard in std::mem::take(&mut self.dispatch.alarmed) {
            let Some(sender) = self.dispatch.senders.get_mut(&shard) else {
                continue;
            };
            sender.wake(now);
            if !sender.ready.is_empty() || !sender.acknowledgements.is_empty() {
                self.dispatch.active.insert(shard);
            }
            if !sender.alarms.is_empty() {
                self.dispatch.alarmed.insert(shard);
            }
        }
        let late = self.dispatch.batches.iter().filter(|(_, batch)| batch.until <= now);
        let late: Vec<u64> = late.map(|(&id, _)| id).collect();
        for id in late {
            self.batch_back(id, Vec::new(), true);
        }
    }

    // --- answers -----------------------------------------------------------------------------------------------

    /// What became of parcels of a batch, or that nothing became of the rest of it.
    pub(super) fn batch_back(&mut self, id: u64, receipts: Vec<(u32, Receipt)>, failed: bool) {
        let now = self.clock.now;
        let Some(mut batch) = self.dispatch.batches.remove(&id) else {
            return;
        };
        for (slot, receipt) in receipts {
            let Some((shard, pair, term)) = batch.parcels.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            batch.left -= 1;
            if let Receipt::Elsewhere(Some(hint)) = &receipt {
                self.learn_hint(hint);
            }
            if let Some(sender) = self
                .dispatch
                .senders
                .get_mut(&shard)
                .filter(|sender| sender.term == term)
            {
                sender.take_receipt(id, pair, receipt, now);
                self.dispatch.active.insert(shard);
            }
        }
        if !failed && batch.left > 0 {
            self.dispatch.batches.insert(id, batch);
            return;
        }
        for (shard, pair, term) in batch.parcels.into_iter().flatten() {
            if let Some(sender) = self
                .dispatch
                .senders
                .get_mut(&shard)
                .filter(|sender| sender.term == term)
            {
                sender.take_receipt(id, pair, Receipt::Later, now);
                self.dispatch.active.insert(shard);
            }
        }
        if !batch.counts {
            return;
        }
        if let Some(count) = self.dispatch.under_way.get_mut(&batch.target) {
            *count -= 1;
            if *count == 0 {
                self.dispatch.under_way.remove(&batch.target);
            }
        }
        for (shard, pair) in self.dispatch.blocked.remove(&batch.target).unwrap_or_default() {
            if let Some(sender) = self.dispatch.senders.get_mut(&shard)
                && sender.pairs.get(&pair).is_some_and(|known| known.stage == Stage::Ready)
            {
                sender.ready.push_back(pair);
                self.dispatch.active.insert(shard);
            }
        }
    }
}

impl Sender {
    fn take_receipt(&mut self, batch: u64, pair: Pair, receipt: Receipt, now: Time) {
        let Some(known) = self
            .pairs
            .get_mut(&pair)
            .filter(|known| known.stage == Stage::Sent(batch))
        else {
            return;
        };
        known.stage = Stage::Resting;
        let session = known.partner.session;
        match receipt {
            Receipt::Applied { last } if !known.partner.closing => {
                let last = last.min(known.partner.next - 1);
                known.attempts = 0;
                known.ticket = None;
                if last > known.partner.acked {
                    known.done = known.done.max(last);
                    self.acknowledge(&pair, session, Known::Applied(last));
                }
                self.consider(pair, now);
            }
            Receipt::Ticket { closed } if known.done == 0 && !known.partner.closing => {
                known.ticket = None;
                known.stage = Stage::Confirming;
                self.tickets.push((pair, session, closed));
            }
            Receipt::Closed if known.partner.closing => {
                self.acknowledge(&pair, session, Known::Forgotten);
                // Should the entry get lost, it is asked again.
                self.put_off(pair, now);
            }
            _ => self.put_off(pair, now),
        }
    }
}

/// A batch that is being filled.
struct Open {
    id: u64,
    node: NodeId,
    parcels: Vec<Parcel>,
    pairs: Vec<Option<(ShardId, Pair, u64)>>,
    bytes: usize,
}

/// What a pair's next parcel brings; `None` if there is nothing.
fn content_of(pair: &Pair, known: &State, state: &dyn super::State) -> Result<Option<Content>, StateError> {
    let partner = &known.partner;
    if partner.closing {
        return Ok(Some(Content::Finish));
    }
    let first = known.done.max(partner.acked) + 1;
    if first >= partner.next {
        return Ok(None);
    }
    let mut letters = Vec::new();
    // Before the first message of a session the receiver is asked whether it knows the session.
    let knocks = first == 1 && known.ticket.is_none();
    if !knocks {
        let mut bytes = 0;
        for number in first..partner.next {
            let Some(letter) = state.get(&outbox_row(&pair.0, &pair.1, number))? else {
                break;
            };
            bytes += letter.len();
            if !letters.is_empty() && (bytes > PARCEL_BYTES_MAX || letters.len() >= PARCEL_LETTERS_MAX) {
                break;
            }
            letters.push(letter);
        }
    }
    Ok(Some(Content::Letters {
        ticket: known.ticket,
        first,
        letters,
    }))
}

fn has_ticket(parcel: &Parcel) -> bool {
    matches!(parcel.content, Content::Letters { ticket: Some(_), .. })
}

/// A planted bug: what will be true, if all goes well.
fn early_receipt(parcel: &Parcel) -> Receipt {
    match &parcel.content {
        Content::Letters { first, letters, .. } => Receipt::Applied {
            last: first + letters.len() as u64 - 1,
        },
        Content::Finish => Receipt::Closed,
    }
}

fn own_waiting(now: Time) -> Waiting {
    Waiting {
        waiter: Waiter::Own,
        deadline: now,
        id: RequestId(0),
    }
}

fn backoff(attempts: u32) -> Span {
    Span(BACKOFF_FIRST.0 << (attempts.max(1) - 1))
}

/// Batches under way from this node to one receiving shard.
const BATCHES_UNDER_WAY_MAX: usize = 4;
/// A batch is full behind this. Unit: bytes.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// Messages of one pair in one parcel. Unit: bytes.
const PARCEL_BYTES_MAX: usize = 256 << 10;
/// The same. Unit: messages.
const PARCEL_LETTERS_MAX: usize = 1_000;
/// Pairs looked at for one shard in one step.
const DISPATCH_PAIRS_MAX: usize = 10_000;
/// Acknowledgements in one command.
const ACKNOWLEDGEMENTS_MAX: usize = 5_000;
/// Pairs looked at for the node's status.
const GAUGE_PAIRS_MAX: usize = 100_000;
/// A rate counted longer ago says nothing of now. Unit: ms.
const RATE_STALE_MS: u64 = 10_000;
/// Rows read in one step while a new leader makes its list.
const READ_ROWS_MAX: usize = 1_000;
/// What has not come back by then is sent again.
const BATCH_TIMEOUT: Span = Span::millis(2_000);
/// How long a majority may take to confirm.
const CONFIRM_WITHIN: Span = Span::millis(2_000);
/// First wait before a pair is tried again; doubles from there.
const BACKOFF_FIRST: Span = Span::millis(50);
/// 50 ms doubled nine times is 26 s.
const BACKOFF_DOUBLINGS_MAX: u32 = 10;
/// An acknowledgement that is not in the rows by then is proposed again.
const ACKNOWLEDGE_AGAIN_AFTER: Span = Span::secs(1);
/// Sessions end at their receivers this often, all at once: a ticket is good for as long as none of them does.
const FINISH_EVERY: Span = Span::millis(250);
