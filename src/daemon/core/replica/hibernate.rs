//! When a replica sleeps, and what wakes it.
//!
//! A shard that nobody asks anything costs heartbeats, ticks and answers all the same, and a node may hold ten thousand of
//! them. So a group in which nothing happens falls asleep: Raft's clock stands still for all of its replicas, and no message
//! is sent.
//!
//! ```text
//! leader    quiet for a while, everybody has everything: offers sleep ----.        all have accepted: asleep
//! follower                                                   has everything, too: asleep, says so --'
//! ```
//! * An offer leaves behind all other messages of its step, and so does its answer: what arrives later wakes.
//! * An offer names term, index and its own number. A leader that has done anything since takes no answer to it.
//! * A follower accepts only what it can see for itself: this leader, this term, this index, all applied, nothing unsynced.
//! * While an offer is open the leader holds its heartbeats back for a few ticks: they would wake those who accepted.
//! * Replicas on nodes that are known to be silent need not accept. The leader wakes when such a node is heard again.
//! * A sleeping leader has no lease: its first read asks a majority, like the first read of a new leader.
//! * Any message of Raft wakes, but for the answer to a heartbeat; so does a command, a read, a change of replicas, a transfer.
//!   A waking leader begins a new period of its quorum check, and calls everybody.
//! * A node that loses sight of another one wakes the replicas that follow a leader there (`node::hibernation`). These do not
//!   count their sleep as time in which they heard of the leader: nothing came from its node for longer than any lease.
use std::collections::BTreeSet;

use super::Replica;
use crate::daemon::core::limits::{ELECTION_TICKS, ELECTION_TICKS_MAX};
use crate::daemon::core::time::Time;
use crate::protocol::id::{NodeId, ReplicaId};
use crate::protocol::message::SleepOffer;
use crate::protocol::shard_map::ReplicaRole;

/// How a replica rests.
#[derive(Debug, Default)]
pub struct Rest {
    is_asleep: bool,
    /// Ticks since something happened other than heartbeats.
    quiet_ticks: u32,
    /// Offers made so far.
    offers: u64,
    offer: Option<Offer>,
    /// Whom this leader sleeps without.
    without: Vec<NodeId>,
    /// It was woken to be led, not to serve: it sleeps again as soon as it can.
    is_hurried: bool,
    /// Ticks that an election waits longer than usual, so that whoever goes first has time.
    pub(super) patience: usize,
}

#[derive(Debug)]
struct Offer {
    number: u64,
    accepted: BTreeSet<ReplicaId>,
    without: Vec<NodeId>,
    /// Ticks since it was made.
    age: u32,
}

impl Replica {
    /// Whether Raft's clock stands still for this replica.
    pub fn is_asleep(&self) -> bool {
        self.rest.is_asleep
    }

    /// Whether this leader sleeps although a copy on `node` has not agreed.
    pub fn sleeps_without(&self, node: NodeId) -> bool {
        self.rest.is_asleep && self.rest.without.contains(&node)
    }

    /// Something happens: no sleep for a while, and what was offered is off.
    pub fn stir(&mut self) {
        self.rest.quiet_ticks = 0;
        self.rest.offer = None;
        self.wake(false);
    }

    /// Raft's clock moves again. `leader_is_gone`: nothing was heard from the leader's node for longer than any lease that
    /// this replica can have helped it to.
    pub fn wake(&mut self, leader_is_gone: bool) {
        if !std::mem::take(&mut self.rest.is_asleep) {
            return;
        }
        self.rest.quiet_ticks = 0;
        self.rest.without.clear();
        if self.is_leader() {
            // Or the quorum check would miss answers to heartbeats that were never sent.
            self.raft.raft.election_elapsed = 0;
            self.raft.ping();
        } else if leader_is_gone {
            self.raft.raft.election_elapsed = self.raft.raft.election_elapsed.max(ELECTION_TICKS);
        }
    }

    /// Elections wait longer than usual until a leader is heard: somebody else's turn comes first.
    pub fn be_patient(&mut self) {
        self.rest.patience = ELECTION_TICKS_MAX;
        self.draw_election_timeout();
    }

    /// Sleeps without having agreed with anybody: there is nobody to elect a leader with, or it is not this replica's turn.
    /// False where that can't be: it leads, or somebody waits here.
    pub fn doze(&mut self) -> bool {
        let may = !self.is_leader() && !self.is_waited_for();
        if may {
            self.fall_asleep(false);
        }
        may
    }

    /// Sleeps again as soon as it can, unless it is asked for something.
    pub fn hurry(&mut self) {
        self.rest.is_hurried = true;
    }

    /// It is asked for something.
    pub(super) fn serve(&mut self) {
        self.stir();
        self.rest.is_hurried = false;
        self.served += 1;
    }

    /// Counts quiet ticks; says whether Raft's clock is to move.
    pub(super) fn rest_tick(&mut self) -> bool {
        if self.rest.is_asleep {
            return false;
        }
        self.rest.quiet_ticks = self.rest.quiet_ticks.saturating_add(1);
        let Some(offer) = &mut self.rest.offer else { return true };
        offer.age += 1;
        if offer.age <= OFFER_TICKS {
            return false;
        }
        // Somebody lacks something, or the answer was lost: heartbeats go out again, and then another offer.
        self.rest.offer = None;
        self.rest.quiet_ticks -= self.rest.quiet_ticks.min(OFFER_AGAIN_TICKS);
        true
    }

    /// Whether this leader should offer sleep, after so many quiet ticks.
    pub fn is_tired(&self, after_ticks: u32) -> bool {
        let after_ticks = if self.rest.is_hurried {
            HURRIED_TICKS.min(after_ticks)
        } else {
            after_ticks
        };
        self.is_leader() && self.rest.offer.is_none() && self.rest.quiet_ticks >= after_ticks
    }

    /// Offers sleep to the others, but for those on silent nodes, where this leader is at rest itself. Where there is nobody
    /// to agree with, it sleeps.
    pub fn offer_sleep(&mut self, silent: &BTreeSet<NodeId>) -> Vec<(NodeId, SleepOffer)> {
        let raft = &self.raft.raft;
        if !self.is_leader() || !raft.commit_to_current_term() || raft.lead_transferee.is_some() || !self.is_at_rest() {
            return Vec::new();
        }
        let last = self.last_index();
        let (mut asked, mut without) = (Vec::new(), Vec::new());
        for replica in self.shard.replicas.iter().filter(|replica| replica.id != self.id) {
            if silent.contains(&replica.node) {
                without.push(replica.node);
            } else if raft
                .prs()
                .get(replica.id.0)
                .is_none_or(|progress| progress.matched != last)
            {
                return Vec::new();
            } else {
                asked.push((replica.node, replica.id));
            }
        }
        self.rest.offers += 1;
        let (number, is_complete) = (self.rest.offers, without.is_empty());
        self.rest.offer = Some(Offer {
            number,
            accepted: BTreeSet::new(),
            without,
            age: 0,
        });
        self.sleep_if_agreed();
        let offer = |(node, to)| {
            let offer = SleepOffer {
                shard: self.shard.id,
                from: self.id,
                to,
                term: self.term(),
                index: last,
                number,
                is_complete,
            };
            (node, offer)
        };
        asked.into_iter().map(offer).collect()
    }

    /// A leader's offer, behind everything else that it has said. True where this follower sleeps from now on.
    pub fn accept_sleep(&mut self, offer: &SleepOffer) -> bool {
        let raft = &self.raft.raft;
        let is_known =
            raft.state == raft::StateRole::Follower && raft.leader_id == offer.from.0 && raft.term == offer.term;
        if !is_known || self.last_index() != offer.index || !self.is_at_rest() {
            return false;
        }
        self.fall_asleep(offer.is_complete);
        true
    }

    /// A follower has accepted an offer. True where this leader sleeps from now on.
    pub fn sleep_accepted(&mut self, answer: &SleepOffer) -> bool {
        let term = self.term();
        let Some(offer) = &mut self.rest.offer else {
            return false;
        };
        if offer.number != answer.number || term != answer.term {
            return false;
        }
        offer.accepted.insert(answer.from);
        self.sleep_if_agreed()
    }

    fn sleep_if_agreed(&mut self) -> bool {
        let Some(offer) = &self.rest.offer else { return false };
        let agrees = |id: ReplicaId| id == self.id || offer.accepted.contains(&id);
        let all = self.shard.replicas.iter();
        let is_agreed = all
            .clone()
            .all(|replica| agrees(replica.id) || offer.without.contains(&replica.node));
        let voters = all.filter(|replica| replica.role == ReplicaRole::Voter);
        let (yes, of) = voters.fold((0, 0), |(yes, of), voter| (yes + usize::from(agrees(voter.id)), of + 1));
        if !is_agreed || yes * 2 <= of || !self.is_leader() || !self.is_at_rest() {
            return false;
        }
        let without = self.rest.offer.take().map(|offer| offer.without);
        self.rest.without = without.unwrap_or_default();
        self.fall_asleep(self.rest.without.is_empty());
        true
    }

    /// `is_complete`: all have everything, so nobody will ask for what the log's tail holds.
    fn fall_asleep(&mut self, is_complete: bool) {
        self.rest.is_asleep = true;
        self.rest.offer = None;
        self.rest.patience = 0;
        self.rest.is_hurried = false;
        self.lease_until = Time(0);
        self.served = 0;
        self.requests_per_s = 0;
        self.raft.raft.maybe_free_inflight_buffers();
        self.correspondents.clear();
        if is_complete {
            let applied = self.applied();
            self.raft.mut_store().compact(applied, TAIL_ASLEEP);
        }
    }

    /// Whether nothing is under way here.
    fn is_at_rest(&self) -> bool {
        let (raft, last) = (&self.raft.raft, self.last_index());
        self.is_initialized()
            && !self.is_waited_for()
            && !self.stalled
            && self.shard.frozen.is_none()
            && !self.shard.is_joint()
            && !raft.has_pending_conf()
            && (raft.raft_log.committed, raft.raft_log.persisted, self.applied()) == (last, last, last)
            && !self.raft.has_ready()
    }

    /// Whether a caller, the disk or a snapshot's receiver waits for something here.
    fn is_waited_for(&self) -> bool {
        let has_snapshot = self.incoming.is_some()
            || !self.outgoing.is_empty()
            || !self.sending.is_empty()
            || !self.following.is_empty();
        self.waiting() > 0 || self.round.is_some() || !self.change_waiters.is_empty() || !self.is_idle() || has_snapshot
    }

    /// Whether it is this replica's turn to ask for votes before the others do, where only replicas on `able` nodes can.
    pub fn goes_first(&self, able: impl Fn(NodeId) -> bool) -> bool {
        let is_able = |replica: &&crate::protocol::shard_map::ReplicaDescriptor| {
            replica.role.votes() && (replica.id == self.id || able(replica.node))
        };
        let count = self.shard.replicas.iter().filter(is_able).count();
        if count == 0 {
            return false;
        }
        // A new shard's first leader and every later one is a matter of turns, or one node would lead them all.
        let turn = self.shard.id.0 as usize % count;
        let first = self.shard.replicas.iter().filter(is_able).nth(turn);
        first.is_some_and(|replica| replica.id == self.id)
    }

    /// Whether enough voters are on `able` nodes for this replica to be elected, as far as that can be told from here.
    pub fn may_be_elected(&self, able: impl Fn(NodeId) -> bool) -> bool {
        let voters = self.shard.replicas.iter().filter(|replica| replica.role.votes());
        let (yes, of) = voters.fold((0, 0), |(yes, of), voter| {
            (yes + usize::from(voter.id == self.id || able(voter.node)), of + 1)
        });
        // Between two configurations there are two majorities; that is short, and not worth being wrong.
        of == 0 || self.shard.is_joint() || yes * 2 > of
    }
}

/// Heartbeats are held back this long for an offer: shorter, with the last heartbeat before it, than any election timeout.
const OFFER_TICKS: u32 = 6;
/// Quiet ticks after which a leader sleeps that was woken only to lead.
const HURRIED_TICKS: u32 = 2;
/// After an offer that not all have accepted it is quiet this much shorter: the next offer comes about then.
const OFFER_AGAIN_TICKS: u32 = 8;
/// Entries that a sleeping leader keeps in memory.
const TAIL_ASLEEP: usize = 1;

const _: () = assert!(OFFER_TICKS as usize + crate::daemon::core::limits::HEARTBEAT_TICKS < ELECTION_TICKS);
