//! Changing who holds a shard's copies: one step at a time, each a Raft entry of its own.
//!
//! A leader refuses a step that it can see to be dangerous before it proposes it; what decides when it is applied is
//! only what every replica knows: the epoch, and whether the shard stands still. A step with more than one change of
//! voters goes through a joint configuration, in which each of two majorities is needed; the leader ends it by itself,
//! and so does its successor.
use std::collections::BTreeSet;

use raft::eraftpb::ConfState;

use super::{Node, PlantedBug, busy, stale_epoch};
use crate::daemon::core::command::Command;
use crate::daemon::core::directory::FIRST_ALLOCATED_ID;
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::limits::CAUGHT_UP_WITHIN;
use crate::daemon::core::replica::{self, Committed, Replica, Waiting};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::request::{ReplicaChange, Response};
use crate::protocol::shard_map::{ReplicaDescriptor, ReplicaRole, ShardDescriptor};

impl Node {
    /// `Request::ChangeReplicas` at the shard's leader.
    pub(in crate::daemon::core) fn change_here(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        changes: Vec<ReplicaChange>,
        id: RequestId,
        waiting: Waiting,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get(&shard) else {
            return;
        };
        if is_done(&replica.shard, &changes) {
            let response = Response::Shard(Box::new(replica.shard.clone()));
            return self.reply(waiting, response, None, None, effects);
        }
        if let Err(error) = self.check_change(replica, epoch, &changes) {
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        let leaves: BTreeSet<ReplicaId> = changes.iter().filter_map(loses_vote).collect();
        if leaves.contains(&replica.id) {
            // A leader does not remove itself: it hands over, and the next one is asked.
            let alive = self.alive().into_iter().filter(|&node| {
                let there = replica.shard.replica_on(node);
                there.is_some_and(|there| !leaves.contains(&there.id))
            });
            let successor = replica.successor(&alive.collect());
            let error = match successor {
                Some(_) => replica::not_leader(),
                None => WireError::new(
                    Code::TooFewReplicas,
                    format!(
                        "{} leads {shard} and nobody can take over; nothing was changed",
                        self.config.node
                    ),
                ),
            };
            if let (Some(successor), Some(replica)) = (successor, self.replicas.get_mut(&shard)) {
                replica.transfer(successor.id);
                self.touch(shard);
            }
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        if let Some(replica) = self.replicas.get_mut(&shard) {
            replica.propose(Command::ChangeReplicas { epoch, changes, id }, waiting);
            self.touch(shard);
        }
    }

    /// Whether the leader may propose the step.
    fn check_change(&self, replica: &Replica, epoch: Epoch, changes: &[ReplicaChange]) -> Result<(), WireError> {
        let shard = &replica.shard;
        if let Some(error) = busy(shard) {
            return Err(error);
        }
        if shard.epoch != epoch {
            return Err(stale_epoch(shard, epoch));
        }
        if replica.has_pending_change() {
            return Err(replica::change_pending(shard.id));
        }
        let voters_after = well_formed(shard, changes)?;

        let alive = self.alive();
        let health = |id: ReplicaId, node: NodeId| -> Result<(), String> {
            if self.config.planted == PlantedBug::CountsTheLost {
                return Ok(());
            }
            if shard.is_quarantined(id) {
                return Err(format!("{id} on {node} is quarantined"));
            }
            if node != self.config.node && !alive.contains(&node) {
                return Err(format!("{node} is not heard from"));
            }
            match replica.lag(id) {
                Some(lag) if lag <= CAUGHT_UP_WITHIN => Ok(()),
                Some(lag) => Err(format!("{id} on {node} is {lag} entries behind")),
                None => Err(format!("{id} on {node} does not follow yet")),
            }
        };
        let is_healthy = |replica: &&ReplicaDescriptor| health(replica.id, replica.node).is_ok();
        for change in changes {
            if let ReplicaChange::Promote { replica: id } = *change
                && let Some(learner) = shard.replica(id)
                && let Err(why) = health(id, learner.node)
            {
                let mut error = WireError::new(Code::NotCaughtUp, format!("{why}; nothing was changed"));
                error.retry_after_ms = 50;
                return Err(error);
            }
        }
        let mut gives_up = changes
            .iter()
            .filter_map(loses_vote)
            .filter(|&id| shard.is_quarantined(id));
        if gives_up.next().is_some() && !self.is_sound(shard) {
            // What is damaged here may be whole there.
            let text = format!(
                "the other copies of {} have not been read from end to end since; nothing was changed",
                shard.id
            );
            let mut error = WireError::new(Code::NotCaughtUp, text);
            error.retry_after_ms = 500;
            return Err(error);
        }
        let before = shard
            .replicas
            .iter()
            .filter(|r| r.role.votes())
            .filter(is_healthy)
            .count();
        let stays = |replica: &&ReplicaDescriptor| voters_after.contains(&replica.id);
        let after = shard.replicas.iter().filter(stays).filter(is_healthy).count();
        let majority = voters_after.len() / 2 + 1;
        let wanted = self.wanted(shard);
        if after < majority || (after < before && after < wanted) {
            let text = format!(
                "{after} of {} voters of {} would be healthy, {before} are now and {wanted} are wanted; nothing was changed",
                voters_after.len(),
                shard.id
            );
            return Err(WireError::new(Code::TooFewReplicas, text));
        }
        Ok(())
    }

    /// How many voters a shard should have at least.
    fn wanted(&self, shard: &ShardDescriptor) -> usize {
        if shard.id == DIRECTORY_SHARD {
            return DIRECTORY_VOTERS_MIN;
        }
        if let Some(replicas) = self.map.policy.replicas_of(shard) {
            return replicas as usize;
        }
        let service = self.map.services.get(shard.range.service());
        service.map_or(DIRECTORY_VOTERS_MIN, |service| service.replicas as usize)
    }

    /// The step, decided by the log.
    pub(super) fn apply_change(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        command: &Command,
        waiting: Option<Waiting>,
        effects: &mut Effects,
    ) {
        let response = match self.try_change(replica, entry, command, effects) {
            Ok(()) if replica.shard.is_joint() => {
                replica.change_waiters.extend(waiting);
                if replica.should_leave_joint() {
                    self.leave_joint(replica);
                }
                return;
            }
            Ok(()) => {
                for waiting in std::mem::take(&mut replica.change_waiters) {
                    let response = Response::Shard(Box::new(replica.shard.clone()));
                    self.reply(waiting, response, None, None, effects);
                }
                Response::Shard(Box::new(replica.shard.clone()))
            }
            Err(error) => Response::Error(error),
        };
        if let Some(waiting) = waiting {
            self.reply(waiting, response, None, None, effects);
        }
    }

    fn leave_joint(&self, replica: &mut Replica) {
        let waiting = Waiting {
            waiter: replica::Waiter::Own,
            deadline: self.clock.now,
            id: RequestId(0),
        };
        replica.propose(Command::LeaveJoint, waiting);
    }

    fn try_change(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        command: &Command,
        effects: &mut Effects,
    ) -> Result<(), WireError> {
        let mut shard = replica.shard.clone();
        match command {
            Command::ChangeReplicas { epoch, changes, .. } => {
                if is_done(&shard, changes) {
                    return Ok(());
                }
                if let Some(error) = busy(&shard) {
                    return Err(error);
                }
                if shard.epoch != *epoch {
                    return Err(stale_epoch(&shard, *epoch));
                }
                well_formed(&shard, changes)?;
                for change in changes {
                    if let ReplicaChange::AddLearner { node, replica } = *change {
                        let role = ReplicaRole::Learner;
                        shard.newest_replica = replica;
                        shard.replicas.push(ReplicaDescriptor {
                            node,
                            id: replica,
                            role,
                        });
                    }
                }
            }
            _ if !shard.is_joint() => return Ok(()),
            _ => {}
        }
        let Some(change) = &entry.config else {
            return Err(WireError::new(Code::BadChange, "not a change of the configuration"));
        };
        let state = replica
            .apply_conf_change(entry, change)
            .map_err(|why| WireError::new(Code::BadChange, format!("{why}; nothing was changed")))?;
        set_roles(&mut shard, &state);
        shard.epoch = Epoch(shard.epoch.0 + 1);
        replica.set_shard(shard);
        replica.must_keep_commit = true;
        self.map.learn_shard(&replica.shard);
        self.last_report = crate::daemon::core::time::Time(0);
        effects.push(Effect::Event(Event::Changed {
            shard: replica.shard.clone(),
        }));
        Ok(())
    }
}

/// Whether the shard is already as the step would make it.
fn is_done(shard: &ShardDescriptor, changes: &[ReplicaChange]) -> bool {
    let role = |id: ReplicaId| shard.replica(id).map(|replica| replica.role);
    !shard.is_joint()
        && changes.iter().all(|change| match *change {
            ReplicaChange::AddLearner { node, replica } => shard.replica(replica).is_some_and(|r| r.node == node),
            ReplicaChange::Promote { replica } => role(replica) == Some(ReplicaRole::Voter),
            ReplicaChange::Demote { replica } => role(replica) == Some(ReplicaRole::Learner),
            ReplicaChange::Remove { replica } => role(replica).is_none(),
        })
}

fn loses_vote(change: &ReplicaChange) -> Option<ReplicaId> {
    match *change {
        ReplicaChange::Demote { replica } | ReplicaChange::Remove { replica } => Some(replica),
        _ => None,
    }
}

/// The voters after the step, if it can be made at all. The same on every replica.
fn well_formed(shard: &ShardDescriptor, changes: &[ReplicaChange]) -> Result<BTreeSet<ReplicaId>, WireError> {
    let bad = |text: String| Err(WireError::new(Code::BadChange, format!("{text}; nothing was changed")));
    let voters: BTreeSet<ReplicaId> = shard.replicas.iter().filter(|r| r.role.votes()).map(|r| r.id).collect();
    let mut after = voters.clone();
    let mut named = BTreeSet::new();
    for change in changes {
        let (id, wanted) = match *change {
            ReplicaChange::AddLearner { node, replica } => {
                let taken = shard.replicas.iter().any(|other| other.id >= replica);
                if taken || replica <= shard.newest_replica || replica < ReplicaId(FIRST_ALLOCATED_ID) {
                    return bad(format!("{replica} is no fresh replica id"));
                }
                if shard.replica_on(node).is_some() {
                    return bad(format!("{node} has a replica of {} already", shard.id));
                }
                (replica, None)
            }
            ReplicaChange::Promote { replica } => {
                after.insert(replica);
                (replica, Some(ReplicaRole::Learner))
            }
            ReplicaChange::Demote { replica } => {
                after.remove(&replica);
                (replica, Some(ReplicaRole::Voter))
            }
            ReplicaChange::Remove { replica } => {
                after.remove(&replica);
                let role = shard
                    .replica(replica)
                    .map_or(ReplicaRole::Voter, |replica| replica.role);
                (replica, Some(role))
            }
        };
        if !named.insert(id) {
            return bad(format!("{id} is named twice"));
        }
        if let Some(wanted) = wanted
            && shard.replica(id).is_none_or(|replica| replica.role != wanted)
        {
            return bad(format!("{id} is no {wanted:?} of {}", shard.id).to_lowercase());
        }
    }
    if changes.is_empty() || (changes.len() > 1 && after == voters) {
        return bad(String::from("learners are added and removed one at a time"));
    }
    if after.is_empty() {
        return bad(format!("{} would have no voter left", shard.id));
    }
    Ok(after)
}

/// Roles as Raft has them; who is in neither configuration is gone.
fn set_roles(shard: &mut ShardDescriptor, state: &ConfState) {
    let joint = !state.voters_outgoing.is_empty();
    shard.replicas.retain_mut(|replica| {
        let (new, old) = (
            state.voters.contains(&replica.id.0),
            state.voters_outgoing.contains(&replica.id.0),
        );
        replica.role = match (new, old) {
            (true, true) => ReplicaRole::Voter,
            (true, false) if joint => ReplicaRole::Incoming,
            (true, false) => ReplicaRole::Voter,
            (false, true) => ReplicaRole::Outgoing,
            (false, false) => ReplicaRole::Learner,
        };
        new || old || state.learners.contains(&replica.id.0)
    });
    shard.replicas.sort_by_key(|replica| replica.id);
    let replicas = &shard.replicas;
    shard
        .quarantined
        .retain(|id| replicas.iter().any(|replica| replica.id == *id));
}

/// The directory never goes below so many voters by itself.
const DIRECTORY_VOTERS_MIN: usize = 3;
