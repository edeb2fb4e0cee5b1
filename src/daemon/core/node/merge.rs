//! Merging two neighbours: the right one stands still, all its copies apply that, the left one takes over.
//!
//! ```text
//! right's log   ... write, write, FREEZE | writes and reads are refused from here on
//! left's log    ... write, write, MERGE(left at the planned epoch, right as frozen) | serves both ranges
//! ```
//! The merge entry is proposed only when every copy of the right shard has said that it applied the freeze. So each copy
//! of the left one finds the right one's rows on its own disk, complete; where a restart has brought them back behind
//! the freeze, the merge entry proves the freeze committed, and the right copy's log has it.
//!
//! A merge that does not come about is given up by making it impossible (the left shard's epoch moves on) and showing
//! that to the right one, which serves again.
use super::quarantine::note_damage;
use super::{Node, PlantedBug, bad_merge, hold, stale_epoch};
use crate::daemon::core::dropping::closed_for;
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::limits::{PARK_FOR, PENDING_REQUESTS_MAX};
use crate::daemon::core::replica::{Committed, Replica, Waiting};
use crate::daemon::core::state::{LogBatch, LogSeq, State, StateError};
use crate::daemon::core::time::{Span, Time};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, NodeId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::message::Principal;
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::{ABSORBED_KEPT, Frozen, ShardDescriptor};

const NOT_HERE: &str = "the shard that it takes over is not here";
/// Why an absorbed copy goes.
pub(super) const ABSORBED: &str = "its left neighbour took over";

/// A request that waits for a merge to go on.
#[derive(Debug)]
pub(super) struct Parked {
    until: Time,
    waiting: Waiting,
    principal: Principal,
    request: Request,
    hops: u8,
}

/// The error of a request to a shard that stands still.
pub(in crate::daemon::core) fn frozen(shard: &ShardDescriptor) -> WireError {
    if closed_for(shard).is_some() {
        let text = format!("{} is being dropped with its service; nothing was changed", shard.id);
        let mut error = WireError::new(Code::ShardFrozen, text);
        error.retry_after_ms = 50;
        return error;
    }
    let into = shard
        .frozen
        .map_or_else(String::new, |frozen| format!(" into {}", frozen.into));
    let text = format!("{} is being merged{into}; nothing was changed", shard.id);
    let mut error = WireError::new(Code::ShardFrozen, text);
    error.retry_after_ms = 20;
    error
}

impl Node {
    // --- waiting -----------------------------------------------------------------------------------------------

    /// Keeps a request until the merge goes on, for a while.
    pub(in crate::daemon::core) fn park(
        &mut self,
        waiting: Waiting,
        principal: Principal,
        request: Request,
        hops: u8,
        error: WireError,
        effects: &mut Effects,
    ) {
        let now = self.clock.now;
        // Whoever waits must be told before it gives up: until then nothing was done.
        let until = (now + PARK_FOR).min(waiting.deadline - Span::millis(20));
        if until <= now || self.parked.len() >= PENDING_REQUESTS_MAX {
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        *self.counters.entry("parked").or_default() += 1;
        self.parked.push_back(Parked {
            until,
            waiting,
            principal,
            request,
            hops,
        });
    }

    /// Asks again what waited.
    pub(super) fn retry_parked(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        for parked in std::mem::take(&mut self.parked) {
            let Some(error) = self.still_waits(&parked.request) else {
                let Parked {
                    waiting,
                    principal,
                    request,
                    hops,
                    ..
                } = parked;
                self.asked_again(waiting, principal, request, hops, state, effects);
                continue;
            };
            if now >= parked.until {
                self.reply(parked.waiting, Response::Error(error), None, None, effects);
            } else {
                self.parked.push_back(parked);
            }
        }
    }

    /// Why a parked request has to wait longer.
    fn still_waits(&self, request: &Request) -> Option<WireError> {
        if let Request::MergeShards {
            left,
            left_epoch,
            right,
            ..
        } = request
        {
            let replica = self.replicas.get(left).filter(|replica| replica.is_leader())?;
            return self
                .check_merge(&replica.shard, *left_epoch, right)
                .err()
                .filter(|error| error.code == Code::NotFrozenYet);
        }
        let shard = self.led_here(request)?;
        let replica = self.replicas.get(&shard)?;
        replica.shard.frozen.is_some().then(|| frozen(&replica.shard))
    }

    /// Shards whose freeze the copies on this node have applied, for all to hear.
    pub(super) fn frozen_here(&self) -> Vec<(ShardId, Epoch)> {
        self.watch
            .frozen
            .iter()
            .filter_map(|shard| self.replicas.get(shard))
            .filter(|replica| replica.shard.frozen.is_some() && !replica.is_installing())
            // Damaged rows are better replaced before they become a part of more.
            .filter(|replica| !replica.written_off)
            .map(|replica| (replica.shard.id, replica.shard.epoch))
            .collect()
    }

    // --- asked -------------------------------------------------------------------------------------------------

    /// Refuses a freeze that can't lead to a merge, as far as this node knows.
    pub(in crate::daemon::core) fn check_freeze(
        &self,
        shard: &ShardDescriptor,
        epoch: Epoch,
        into: ShardId,
        left_epoch: Epoch,
    ) -> Result<(), WireError> {
        check_freeze(shard, epoch)?;
        if into == DIRECTORY_SHARD {
            return Ok(());
        }
        match self.map.shard(into) {
            Some(left) if left.epoch > left_epoch => Err(stale_epoch(left, left_epoch)),
            Some(left) if left.epoch == left_epoch => neighbours(left, shard),
            _ => Ok(()),
        }
    }

    /// Whether the left shard's leader may propose the merge. `NotFrozenYet` gets better by waiting.
    pub(in crate::daemon::core) fn check_merge(
        &self,
        left: &ShardDescriptor,
        left_epoch: Epoch,
        right: &ShardDescriptor,
    ) -> Result<(), WireError> {
        check_merge(left, left_epoch, right)?;
        let nodes = right.replicas.iter().map(|replica| replica.node);
        let has_applied = |node: &NodeId| {
            if *node == self.config.node {
                let here = self.replicas.get(&right.id);
                let is_whole = |here: &Replica| !here.is_installing() && !here.written_off;
                return here.is_some_and(|here| here.shard == *right && is_whole(here));
            }
            let heard = self.frozen_heard.get(node);
            heard.is_some_and(|heard| heard.contains(&(right.id, right.epoch)))
        };
        let missing: Vec<String> = nodes
            .filter(|node| !has_applied(node))
            .map(|node| node.to_string())
            .collect();
        if missing.is_empty() || self.config.planted == PlantedBug::MergesEarly {
            return Ok(());
        }
        let text = format!(
            "{} is not yet known to stand still on {}; nothing was changed",
            right.id,
            missing.join(", ")
        );
        let mut error = WireError::new(Code::NotFrozenYet, text);
        error.retry_after_ms = 20;
        Err(error)
    }

    // --- applied -----------------------------------------------------------------------------------------------

    pub(super) fn apply_freeze(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        epoch: Epoch,
        into: ShardId,
        left_epoch: Epoch,
        effects: &mut Effects,
    ) -> Response {
        if is_frozen_for(&replica.shard, into, left_epoch) {
            return Response::Shard(Box::new(replica.shard.clone()));
        }
        if let Err(error) = check_freeze(&replica.shard, epoch) {
            return Response::Error(error);
        }
        replica.shard.frozen = Some(Frozen {
            into,
            left_epoch,
            index: entry.index,
            term: entry.term,
        });
        replica.shard.epoch = Epoch(epoch.0 + 1);
        replica.dirty = true;
        self.map.learn_shard(&replica.shard);
        // Each moment that the others do not know is a moment in which nobody serves these keys.
        self.report_soon = true;
        self.unpark = true;
        let shard = replica.shard.id;
        effects.push(Effect::Event(Event::Frozen { shard, into }));
        Response::Shard(Box::new(replica.shard.clone()))
    }

    pub(super) fn apply_thaw(
        &mut self,
        replica: &mut Replica,
        proof: &ShardDescriptor,
        effects: &mut Effects,
    ) -> Response {
        if let Err(error) = check_thaw(&replica.shard, proof) {
            return Response::Error(error);
        }
        if replica.shard.frozen.take().is_some() {
            replica.shard.epoch = Epoch(replica.shard.epoch.0 + 1);
            replica.dirty = true;
            self.map.learn_shard(&replica.shard);
            self.last_report = Time(0);
            self.unpark = true;
            let shard = replica.shard.id;
            effects.push(Effect::Event(Event::Thawed { shard }));
        }
        Response::Shard(Box::new(replica.shard.clone()))
    }

    pub(super) fn apply_bump(&mut self, replica: &mut Replica, epoch: Epoch) -> Response {
        if replica.shard.epoch == epoch && replica.shard.frozen.is_none() {
            replica.shard.epoch = Epoch(epoch.0 + 1);
            replica.dirty = true;
            self.map.learn_shard(&replica.shard);
            self.last_report = Time(0);
        }
        // At another epoch the wish is fulfilled already.
        Response::Shard(Box::new(replica.shard.clone()))
    }

    /// The left shard's copy takes over the right one's, which is on this node.
    #[expect(clippy::too_many_arguments, reason = "what settling hands through")]
    pub(super) fn apply_merge(
        &mut self,
        left: &mut Replica,
        left_epoch: Epoch,
        right: &ShardDescriptor,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Response, StateError> {
        if is_merged(&left.shard, right) {
            return Ok(Response::Shard(Box::new(left.shard.clone())));
        }
        if let Err(error) = check_merge(&left.shard, left_epoch, right) {
            return Ok(Response::Error(error));
        }
        if let Some(error) = hold::refusal(&left.shard, left.clock.now_ms()) {
            return Ok(Response::Error(error));
        }
        let Some(mut taken) = self.bring_to_freeze(right, seq, batch, state, effects)? else {
            left.stalled = true;
            effects.push(Effect::Event(Event::Stalled { shard: left.shard.id }));
            // Whoever leads replaces the copy, where there are others.
            note_damage(left, NOT_HERE.to_owned(), effects);
            self.ailing.insert(left.shard.id);
            return Ok(Response::Error(WireError::new(
                Code::Internal,
                "the right shard is not here",
            )));
        };
        left.shard.range.end = right.range.end.clone();
        left.shard.held = None;
        self.pairs_came(left.shard.id, &right.range);
        left.shard.epoch = Epoch(left.shard.epoch.max(right.epoch).0 + 1);
        let absorbed = &mut left.shard.absorbed;
        absorbed.extend(right.absorbed.iter().copied().chain([right.id]));
        absorbed.drain(..absorbed.len().saturating_sub(ABSORBED_KEPT));
        if taken.written_off {
            self.rows_in_doubt(left, effects);
        }
        if left.damage.is_none() && taken.damage.is_some() {
            left.damage.clone_from(&taken.damage);
            self.ailing.insert(left.shard.id);
        }
        left.entities += taken.entities;
        left.bytes += taken.bytes;
        // The greater of two places: along a key they only grow.
        left.history = left.history.max(taken.history);
        let changes = std::mem::take(&mut taken.changes);
        left.changes.join(changes, &right.range.start, self.changes_bytes_max);
        self.may_remember(left.shard.id);
        self.take_clock(left, &taken.clock, &right.range.start);
        if taken.schema.revision > left.schema.revision {
            left.take_schema(taken.schema.clone());
        }
        left.dirty = true;
        for (absorber, _) in &mut self.absorbed_metas {
            if *absorber == right.id {
                *absorber = left.shard.id;
            }
        }
        self.absorbed_metas.push((left.shard.id, self.destroyed_meta(&taken)));
        self.map.learn_shard(&left.shard);
        self.forget(taken, ABSORBED, effects);
        self.last_report = Time(0);
        self.unpark = true;
        effects.push(Effect::Event(Event::Merged {
            left: left.shard.clone(),
            right: right.id,
        }));
        Ok(Response::Shard(Box::new(left.shard.clone())))
    }

    /// Takes the right shard's copy out of the node, with everything applied up to its freeze. `None` if it is not here.
    fn bring_to_freeze(
        &mut self,
        right: &ShardDescriptor,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Option<Replica>, StateError> {
        if !self.replicas.contains_key(&right.id) {
            // After a restart: another shard's log may have to give birth to it first.
            let waiting: Vec<ShardId> = self.replicas.keys().copied().collect();
            for shard in waiting {
                self.settle_inside(shard, seq, batch, state, effects)?;
            }
        }
        let Some(freeze) = right.frozen else { return Ok(None) };
        let Some(here) = self.replicas.get_mut(&right.id) else {
            return Ok(None);
        };
        if here.shard != *right {
            // Another entry at that place would not be what the merge proves committed.
            let has_it = here.shard.epoch < right.epoch && here.has_entry(freeze.index, freeze.term);
            if !has_it || !here.prove_committed(freeze.index) {
                return Ok(None);
            }
            self.settle_inside(right.id, seq, batch, state, effects)?;
        }
        let is_there = |here: &Replica| here.shard == *right && !here.is_installing();
        Ok(self
            .replicas
            .get(&right.id)
            .is_some_and(is_there)
            .then(|| self.replicas.remove(&right.id))
            .flatten())
    }

    fn settle_inside(
        &mut self,
        shard: ShardId,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        if self.condemned.contains_key(&shard) {
            return Ok(());
        }
        // Each call applies a bounded number of bytes.
        for _ in 0..1_000 {
            let Some(mut replica) = self.replicas.remove(&shard) else {
                return Ok(());
            };
            let before = replica.reached();
            let result = self.settle_replica(&mut replica, seq, batch, state, effects);
            let is_done = replica.reached() == before;
            self.put_back(replica);
            result?;
            if is_done {
                break;
            }
        }
        Ok(())
    }

    // --- snapshots ---------------------------------------------------------------------------------------------

    /// Copies on this node that a snapshot with this descriptor takes the place of.
    pub(super) fn taken_over_by(&self, shard: &ShardDescriptor) -> Result<Vec<ShardId>, &'static str> {
        let mut taken = Vec::new();
        for other in self.replicas.values() {
            let overlaps = other.is_initialized() && other.shard.range.overlaps(&shard.range);
            if other.shard.id == shard.id || !overlaps {
                continue;
            }
            if !shard.has_taken(&other.shard) {
                return Err("a snapshot over another shard that has not shrunk yet");
            }
            if other.is_installing() {
                return Err("a snapshot over a shard that is being installed");
            }
            // A later split of the absorber has these keys now. The absorber's copy here has not come that far: it needs
            // the copy that it takes over. Unless it goes by this very snapshot, or leaps over the merge by it.
            let leaps = |left: &ShardDescriptor| left.id == shard.id || shard.has_taken(left);
            if self.may_be_absorbed(&other.shard, &leaps) {
                return Err("a snapshot over a shard that is still to be absorbed here");
            }
            taken.push(other.shard.id);
        }
        Ok(taken)
    }

    /// Whether a frozen shard's snapshot brings nothing that this node's copy does not have in its log: such a copy may
    /// have promised that it will be there for the merge, and must not be busy with a snapshot then.
    pub(super) fn has_freeze_already(&mut self, shard: &ShardDescriptor) -> bool {
        let Some(freeze) = shard.frozen else { return false };
        let Some(here) = self.replicas.get_mut(&shard.id) else {
            return false;
        };
        if here.shard.frozen == shard.frozen {
            return true;
        }
        let has_it = here.is_initialized()
            && here.reached() < freeze.index
            && here.has_entry(freeze.index, freeze.term)
            && here.prove_committed(freeze.index);
        if has_it {
            self.touch(shard.id);
        }
        has_it
    }

    // --- a planted bug -----------------------------------------------------------------------------------------

    pub(super) fn let_linger(&mut self, parent: ShardId, right: &KeyRange) {
        if self.config.planted == PlantedBug::ParentLingers {
            let until = self.clock.now + Span::millis(500);
            self.lingering.push((parent, right.clone(), until));
        }
    }

    pub(in crate::daemon::core) fn lingers(&self, parent: ShardId, position: &Position) -> bool {
        self.lingering
            .iter()
            .any(|(shard, range, until)| *shard == parent && *until > self.clock.now && range.contains(position))
    }

    pub(in crate::daemon::core) fn lingering_parent(&self, position: &Position) -> Option<ShardId> {
        let holds = |range: &KeyRange, until: Time| until > self.clock.now && range.contains(position);
        let found = self.lingering.iter().find(|(_, range, until)| holds(range, *until));
        found
            .map(|(shard, _, _)| *shard)
            .filter(|shard| self.replicas.contains_key(shard))
    }
}

/// Whether the shard stands still for this very merge.
pub(in crate::daemon::core) fn is_frozen_for(shard: &ShardDescriptor, into: ShardId, left_epoch: Epoch) -> bool {
    let is_it = |frozen: Frozen| frozen.into == into && frozen.left_epoch == left_epoch;
    shard.frozen.is_some_and(is_it)
}

/// Whether the left shard has taken over the right one.
pub(in crate::daemon::core) fn is_merged(left: &ShardDescriptor, right: &ShardDescriptor) -> bool {
    left.absorbed.contains(&right.id)
}

/// What of a freeze every replica judges alike.
fn check_freeze(shard: &ShardDescriptor, epoch: Epoch) -> Result<(), WireError> {
    if let Some(error) = super::busy(shard) {
        return Err(error);
    }
    if shard.epoch != epoch {
        return Err(stale_epoch(shard, epoch));
    }
    if shard.settled_nodes().is_none() {
        return Err(bad_merge(format!("{} has replicas that are no voters", shard.id)));
    }
    Ok(())
}

fn neighbours(left: &ShardDescriptor, right: &ShardDescriptor) -> Result<(), WireError> {
    if left.range.end != right.range.start || left.range.service() != right.range.service() {
        let text = format!("{} {} does not end where {} begins", left.id, left.range, right.id);
        return Err(bad_merge(text));
    }
    match (left.settled_nodes(), right.settled_nodes()) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => Err(bad_merge(format!(
            "the replicas of {} and {} are not voters on the same nodes",
            left.id, right.id
        ))),
    }
}

/// What of a merge every replica judges alike.
fn check_merge(left: &ShardDescriptor, left_epoch: Epoch, right: &ShardDescriptor) -> Result<(), WireError> {
    if left.epoch != left_epoch {
        return Err(stale_epoch(left, left_epoch));
    }
    if let Some(error) = super::busy(left) {
        return Err(error);
    }
    if !is_frozen_for(right, left.id, left_epoch) {
        return Err(bad_merge(format!("{} is not frozen for this merge", right.id)));
    }
    neighbours(left, right)
}

/// What of a thaw every replica judges alike. The proof is the left shard's descriptor, or that of the shard that has
/// absorbed it since.
pub(in crate::daemon::core) fn check_thaw(shard: &ShardDescriptor, proof: &ShardDescriptor) -> Result<(), WireError> {
    let Some(frozen) = shard.frozen else { return Ok(()) };
    let is_past = (proof.id == frozen.into && proof.epoch > frozen.left_epoch) || proof.absorbed.contains(&frozen.into);
    if !is_past {
        let text = format!(
            "{} {} does not prove that the merge can't happen",
            proof.id, proof.epoch
        );
        return Err(bad_merge(text));
    }
    if proof.absorbed.contains(&shard.id) || proof.range.contains(&shard.range.start) {
        return Err(bad_merge(format!("{} has taken over {}", proof.id, shard.id)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::ReplicaId;
    use crate::protocol::shard_map::{ReplicaDescriptor, ReplicaRole};

    fn shard(id: u64, epoch: u64, start: &str, end: &str) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: Position::new("campaign", start),
                end: Position::new("campaign", end),
            },
            epoch: Epoch(epoch),
            replicas: vec![ReplicaDescriptor {
                node: NodeId(1),
                id: ReplicaId(1),
                role: ReplicaRole::Voter,
            }],
            frozen: None,
            held: None,
            newest_replica: Default::default(),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        }
    }

    #[test]
    fn a_thaw_needs_proof_that_the_merge_can_never_happen() {
        let mut right = shard(2, 3, "m", "z");
        right.frozen = Some(Frozen {
            into: ShardId(1),
            left_epoch: Epoch(5),
            index: 9,
            term: 2,
        });
        let check = |proof: &ShardDescriptor| check_thaw(&right, proof).is_ok();
        assert!(!check(&shard(1, 5, "a", "m")), "the merge may still happen");
        assert!(check(&shard(1, 6, "a", "m")));
        assert!(!check(&shard(1, 6, "a", "z")), "it happened");
        let mut split_again = shard(1, 9, "a", "m");
        split_again.absorbed = vec![ShardId(2)];
        assert!(!check(&split_again), "it happened, and the keys were split off again");
        let mut absorber = shard(7, 9, "a", "m");
        assert!(!check(&absorber), "a stranger");
        absorber.absorbed = vec![ShardId(1)];
        assert!(
            check(&absorber),
            "the left shard is gone, and has not taken this one along"
        );
    }

    #[test]
    fn only_settled_neighbours_at_the_planned_epoch_merge() {
        let left = shard(1, 5, "a", "m");
        let mut right = shard(2, 3, "m", "z");
        assert!(check_merge(&left, Epoch(5), &right).is_err(), "not frozen");
        right.frozen = Some(Frozen {
            into: ShardId(1),
            left_epoch: Epoch(5),
            index: 9,
            term: 2,
        });
        assert_eq!(check_merge(&left, Epoch(5), &right), Ok(()));
        assert!(check_merge(&shard(1, 6, "a", "m"), Epoch(5), &right).is_err());
        assert!(check_merge(&shard(1, 6, "a", "m"), Epoch(6), &right).is_err());
        assert!(check_merge(&shard(1, 5, "a", "g"), Epoch(5), &right).is_err());
        let mut elsewhere = right.clone();
        elsewhere.replicas[0].node = NodeId(2);
        assert!(check_merge(&left, Epoch(5), &elsewhere).is_err());
        let mut learner = right.clone();
        learner.replicas[0].role = ReplicaRole::Learner;
        assert!(check_merge(&left, Epoch(5), &learner).is_err());
    }
}
