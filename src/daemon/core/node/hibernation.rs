//! Which replicas of a node sleep and wake, and when: see `replica::hibernate` for one group.
//!
//! Thousands that wake at once would stop the node for seconds, and the elections of all of them would fail. So what wakes
//! for a reason that is not a request's wakes in turn, so many in a tick: after the start, when a node is lost, when one
//! comes back. Who has to call an election is the same on all nodes that see the same others, and goes first; the others
//! wake later, in case it does not.
use std::collections::{BTreeSet, VecDeque};

use super::{Node, PlantedBug};
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::replica::Replica;
use crate::daemon::core::time::{Span, Time};
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, ShardId};
use crate::protocol::message::{Message, SleepOffer};
use crate::protocol::request::Request;

/// How eagerly replicas sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hibernation {
    /// Quiet ticks after which a group sleeps; `None`: never.
    pub after_ticks: Option<u32>,
    /// Replicas that wake in one tick, of those that no request waits for.
    pub wakes_per_tick: usize,
}

impl Hibernation {
    /// As it is unless the simulator wants it otherwise: after a second, so that readers who come back keep their lease; two
    /// thousand in a second.
    pub const USUAL: Self = Self {
        after_ticks: Some(40),
        wakes_per_tick: 50,
    };
    /// Nobody sleeps.
    pub const NEVER: Self = Self {
        after_ticks: None,
        wakes_per_tick: 0,
    };
}

/// What is to be done about sleep.
#[derive(Debug, Default)]
pub(super) struct Beds {
    /// Leaders that should offer sleep when the step has settled.
    tired: Vec<ShardId>,
    /// Offers and answers that have arrived: looked at behind all else that arrived with them.
    heard: Vec<(NodeId, SleepOffer, bool)>,
    /// To be woken in turn: first those that have to call an election, then the others.
    waking: [VecDeque<ShardId>; 2],
    /// Woken in turn and not asleep again, and when.
    roused: VecDeque<(Time, ShardId)>,
    /// Nobody in the queues can be elected while just these nodes are heard.
    stuck_among: Option<BTreeSet<NodeId>>,
}

impl Node {
    fn may_sleep(&self, shard: ShardId) -> bool {
        // The directory is asked all the time, and its messages keep the nodes in sight of each other.
        let is_on = self.config.hibernation.after_ticks.is_some();
        is_on && shard != DIRECTORY_SHARD && !self.has_pending_messages(shard)
    }

    /// After the start all sleep, and wake in turn. A shard's usual first leader goes first.
    pub(super) fn sleep_at_first(&mut self) {
        let shards: Vec<ShardId> = self
            .replicas
            .keys()
            .copied()
            .filter(|&shard| self.may_sleep(shard))
            .collect();
        for shard in shards {
            if let Some(replica) = self.replicas.get_mut(&shard) {
                replica.doze();
                let first = replica.goes_first(|_| true);
                self.beds.waking[usize::from(!first)].push_back(shard);
            }
        }
    }

    /// What a tick means for those that rest: who should offer sleep, who is awake for nothing, who is next to wake.
    pub(super) fn tend_beds(&mut self) {
        let Some(after) = self.config.hibernation.after_ticks else {
            return;
        };
        let alive = self.alive();
        let mut hopeless = Vec::new();
        for &shard in self.watch.awake.iter().filter(|&&shard| shard != DIRECTORY_SHARD) {
            let Some(replica) = self.replicas.get(&shard) else {
                continue;
            };
            // Those that came together need not leave together.
            let after = after + (shard.0 % u64::from(1 + after / 4)) as u32;
            if replica.is_tired(after) {
                self.beds.tired.push(shard);
            } else if !replica.is_leader()
                && replica.leader().is_none()
                && !replica.may_be_elected(|n| alive.contains(&n))
            {
                hopeless.push(shard);
            }
        }
        for shard in hopeless {
            if self.replicas.get_mut(&shard).is_some_and(Replica::doze) {
                self.beds.waking[1].push_back(shard);
                self.touched.insert(shard);
            }
        }
        self.wake_next(&alive);
    }

    fn wake_next(&mut self, alive: &BTreeSet<NodeId>) {
        if self.beds.stuck_among.as_ref() == Some(alive) || self.beds.waking.iter().all(VecDeque::is_empty) {
            return;
        }
        self.beds.stuck_among = None;
        let (now, is_early) = (self.clock.now, self.clock.now < self.vote_from);
        // Where those before them have not gone back to sleep, the machine has enough to do. Some are kept awake by requests.
        let replicas = &self.replicas;
        self.beds.roused.retain(|(at, shard)| {
            now.since(*at) < ROUSED_FOR && replicas.get(shard).is_some_and(|replica| !replica.is_asleep())
        });
        let wakes_max = ROUSED_MAX.saturating_sub(self.beds.roused.len());
        let wakes_max = wakes_max.min(self.config.hibernation.wakes_per_tick);
        let mut woken = 0;
        for queue in 0..self.beds.waking.len() {
            for _ in 0..self.beds.waking[queue].len() {
                if woken == wakes_max {
                    return;
                }
                let Some(shard) = self.beds.waking[queue].pop_front() else {
                    break;
                };
                let Some(replica) = self.replicas.get(&shard).filter(|replica| replica.is_asleep()) else {
                    continue;
                };
                let leader = replica
                    .leader()
                    .filter(|leader| *leader == self.config.node || !self.silent.contains(leader));
                if leader.is_some_and(|leader| leader != self.config.node) {
                    continue;
                }
                let is_leader = replica.is_leader();
                if !is_leader && (is_early || !replica.may_be_elected(|node| alive.contains(&node))) {
                    self.beds.waking[queue].push_back(shard);
                    continue;
                }
                // One that led before a restart knows best that it does no more: the others wait for its heartbeats.
                let led = replica.vote() == replica.id.0 && replica.leader().is_none();
                let goes_first = !is_leader && (led || replica.goes_first(|node| alive.contains(&node)));
                woken += 1;
                self.beds.roused.push_back((now, shard));
                self.rouse(shard, goes_first);
                if let Some(replica) = self.replicas.get_mut(&shard) {
                    replica.hurry();
                }
            }
        }
        if woken == 0 && !is_early {
            self.beds.stuck_among = Some(alive.clone());
        }
    }

    /// Wakes a replica; where it has no leader in sight it asks for votes, or leaves that to the one whose turn it is.
    fn rouse(&mut self, shard: ShardId, calls_election: bool) {
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return;
        };
        let leader_is_gone = replica.leader().is_some_and(|leader| self.silent.contains(&leader));
        replica.wake(leader_is_gone);
        if !replica.is_leader() {
            if calls_election {
                replica.campaign();
            } else {
                replica.be_patient();
            }
        }
        self.touched.insert(shard);
    }

    /// A planted bug: nothing but its leader wakes a sleeper.
    pub(super) fn is_deaf(&self) -> bool {
        self.config.planted == PlantedBug::DeafAsleep
    }

    /// A request finds nobody who leads its shard: a copy that sleeps here does something about it.
    pub(in crate::daemon::core) fn rouse_for(&mut self, request: &Request) {
        let Some(shard) = self.copy_for(request).filter(|_| !self.is_deaf()) else {
            return;
        };
        let sleeps = |replica: &Replica| replica.is_asleep() && !replica.is_leader();
        if self.clock.now >= self.vote_from && self.replicas.get(&shard).is_some_and(sleeps) {
            self.rouse(shard, true);
        }
    }

    /// A peer went silent: what it leads needs another leader.
    pub(super) fn wake_followers_of(&mut self, peer: NodeId) {
        if self.is_deaf() {
            return;
        }
        let alive = self.alive();
        for (&shard, replica) in &self.replicas {
            if replica.is_asleep() && replica.leader() == Some(peer) {
                let first = replica.goes_first(|node| alive.contains(&node));
                self.beds.waking[usize::from(!first)].push_back(shard);
            }
        }
        self.beds.stuck_among = None;
    }

    /// A peer is there again: leaders that sleep without it wake and see to it. With `all`, it was perhaps started anew, and
    /// knows of no leader: all that lead it do.
    pub(super) fn wake_leaders_of(&mut self, peer: NodeId, all: bool) {
        self.beds.stuck_among = None;
        for &shard in &self.watch.led {
            let Some(replica) = self.replicas.get(&shard).filter(|replica| replica.is_asleep()) else {
                continue;
            };
            if replica.sleeps_without(peer) || (all && replica.shard.replica_on(peer).is_some()) {
                self.beds.waking[1].push_back(shard);
            }
        }
    }

    /// An offer of sleep, or the answer to one. It is looked at when all that came before it is done.
    pub(super) fn sleep_heard(&mut self, from: NodeId, offer: SleepOffer, is_answer: bool) {
        self.beds.heard.push((from, offer, is_answer));
    }

    /// Behind everything else of this step: offers, answers, and who falls asleep.
    pub(super) fn put_to_bed(&mut self, effects: &mut Effects) {
        for (from, offer, is_answer) in std::mem::take(&mut self.beds.heard) {
            let shard = offer.shard;
            let is_condemned = self.condemned.contains_key(&shard) || self.burying.contains(&shard);
            if is_condemned || !self.may_sleep(shard) || self.touched.contains(&shard) {
                continue;
            }
            let Some(mut replica) = self.replicas.remove(&shard) else {
                continue;
            };
            let is_its = replica.id == offer.to && replica.shard.replica(offer.from).is_some_and(|r| r.node == from);
            if is_its && is_answer {
                replica.sleep_accepted(&offer);
            } else if is_its && replica.accept_sleep(&offer) {
                let answer = SleepOffer {
                    from: offer.to,
                    to: offer.from,
                    ..offer
                };
                effects.push(Effect::Send {
                    to: from,
                    message: Message::SleepAccepted(answer),
                });
            }
            self.put_back(replica);
        }
        for shard in std::mem::take(&mut self.beds.tired) {
            if !self.may_sleep(shard) {
                continue;
            }
            let Some(mut replica) = self.replicas.remove(&shard) else {
                continue;
            };
            for (to, offer) in replica.offer_sleep(&self.silent) {
                effects.push(Effect::Send {
                    to,
                    message: Message::Sleep(offer),
                });
            }
            self.put_back(replica);
        }
    }
}

/// Replicas that are awake at the same time because their turn came.
const ROUSED_MAX: usize = 200;
/// One that has not gone back to sleep by then counts no more.
const ROUSED_FOR: Span = Span::secs(1);
