//! What one shard is going through for an operation: the next step, from how it is now.
use super::*;
use crate::daemon::core::effect::Effect;
use crate::daemon::core::event::Event;

impl Node {
    pub(super) fn tend_tasks(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        let Some(directory) = &self.directory else { return };
        let tasks: Vec<(Task, bool)> = directory
            .ledger
            .tasks
            .values()
            .map(|task| {
                let op = directory.ledger.ops.get(&task.op);
                // A copy on a node that will not come back would hold up the shard's healing for ever.
                let aims_at_lost = match task.step {
                    TaskStep::Swap { add: Some((to, _)), .. } => self.is_lost(to),
                    _ => false,
                };
                (task.clone(), aims_at_lost || op.is_none_or(|op| op.state.is_over()))
            })
            .collect();
        self.conductor
            .frozen_since
            .retain(|shard, _| tasks.iter().any(|(task, _)| task.shard == *shard));
        for (task, is_off) in tasks {
            if let TaskStep::Merge { right } = task.step
                && self.map.shard(right).is_some_and(|right| right.frozen.is_some())
            {
                // A frozen shard serves nobody: a merge that does not come about at once is given up.
                let since = *self.conductor.frozen_since.entry(task.shard).or_insert(now);
                if !is_off && now.since(since) > FROZEN_FOR {
                    let why = self
                        .conductor
                        .trouble
                        .get(&task.shard)
                        .map(|trouble| trouble.text.clone());
                    let why = why.unwrap_or_else(|| "the left shard did not answer".to_owned());
                    self.turn(
                        task.op,
                        OpState::Failed,
                        format!("given up, {right} serves again: {why}"),
                    );
                }
            }
            let rests = self
                .conductor
                .trouble
                .get(&task.shard)
                .is_some_and(|trouble| now.since(trouble.at) < RETRY_AFTER);
            if rests || self.is_asked(task.shard) {
                continue;
            }
            let is_off = is_off || self.is_laid_by(&task);
            let next = match task.step {
                TaskStep::Swap { add, remove } => self.next_of_swap(&task, add, remove, is_off),
                TaskStep::Merge { right } => self.next_of_merge(&task, right, is_off),
            };
            match next {
                Next::Ask(request) => self.conductor_ask(task.shard, AskedKind::Task, *request, state, effects),
                Next::Wait => {}
                Next::End => {
                    self.conductor.trouble.remove(&task.shard);
                    if let TaskStep::Swap {
                        add: Some((to, _)),
                        remove: Some(from),
                    } = task.step
                        && self.has_moved(task.shard, from, to)
                    {
                        let at_ms = now.since(Time(0)).as_millis();
                        self.tell_way_back(task.shard, from, to, at_ms, effects);
                        self.conductor.recent.push_back(RecentMove {
                            shard: task.shard,
                            what: Moved::Replica,
                            from,
                            to,
                            at_ms,
                        });
                        while self.conductor.recent.len() > RECENT_MAX {
                            self.conductor.recent.pop_front();
                        }
                    }
                    self.ledger(LedgerCommand::End {
                        shard: task.shard,
                        op: task.op,
                    });
                }
            }
        }
    }

    /// Learners that belong to no task: of a shard that was split while a copy was made, or of a tool that gave up.
    pub(super) fn remove_strays(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        if now.since(self.conductor.last_strays) < self.pause(STRAYS_EVERY_PER_THOUSAND) {
            return;
        }
        self.conductor.last_strays = now;
        let Some(directory) = &self.directory else { return };
        let tasks = &directory.ledger.tasks;
        let mut strays = Vec::new();
        for shard in self.map.shards() {
            if tasks.contains_key(&shard.id) || shard.is_joint() || shard.frozen.is_some() {
                continue;
            }
            let voters = shard.replicas.iter().filter(|replica| replica.role.votes()).count();
            let wanted = self.replicas_wanted(shard);
            let learner = shard
                .replicas
                .iter()
                .find(|replica| replica.role == ReplicaRole::Learner);
            if let Some(learner) = learner.filter(|_| voters >= wanted) {
                strays.push((shard.id, shard.epoch, learner.id));
            }
        }
        let known = &mut self.conductor.strays;
        known.retain(|key, _| strays.iter().any(|(shard, _, id)| *key == (*shard, *id)));
        let mut due = Vec::new();
        for (shard, epoch, id) in strays {
            let since = *known.entry((shard, id)).or_insert(now);
            if now.since(since) >= STRAY_FOR {
                known.insert((shard, id), now);
                due.push((shard, epoch, id));
            }
        }
        for (shard, epoch, replica) in due {
            if self.is_asked(shard) {
                continue;
            }
            let request = Request::ChangeReplicas {
                shard,
                epoch,
                changes: vec![ReplicaChange::Remove { replica }],
                id: step_id(OpId(0), shard, epoch),
            };
            self.conductor_ask(shard, AskedKind::Task, request, state, effects);
        }
    }

    pub(super) fn next_of_swap(
        &self,
        task: &Task,
        add: Option<(NodeId, ReplicaId)>,
        remove: Option<NodeId>,
        is_off: bool,
    ) -> Next {
        let Some(shard) = self.map.shard(task.shard) else {
            return if self.map.absorber(task.shard).is_some() {
                Next::End
            } else {
                Next::Wait
            };
        };
        if shard.is_joint() || shard.frozen.is_some() {
            return Next::Wait;
        }
        if !shard.quarantined.is_empty() {
            // Damaged copies go first. What was one copy too many may not be any more.
            return if add.is_some() { Next::Wait } else { Next::End };
        }
        let change = |changes: Vec<ReplicaChange>| {
            Next::Ask(Box::new(Request::ChangeReplicas {
                shard: shard.id,
                epoch: shard.epoch,
                changes,
                id: step_id(task.op, shard.id, shard.epoch),
            }))
        };
        let by_id = add.and_then(|(_, replica)| shard.replica(replica));
        // A learner that somebody left there does as well.
        let left_there = add.and_then(|(node, _)| shard.replica_on(node));
        let added = by_id.or_else(|| left_there.filter(|there| there.role == ReplicaRole::Learner));
        let removed = remove.and_then(|node| shard.replica_on(node));
        // A swap's votes change hands in one step: once the new copy votes, the old one does not, and only goes.
        let is_swapped = added.is_some_and(|added| added.role == ReplicaRole::Voter);
        if is_off && !is_swapped {
            return match added {
                Some(added) => change(vec![ReplicaChange::Remove { replica: added.id }]),
                None => match removed {
                    // Given up between losing its vote and going: it goes, or it would be a learner for ever.
                    Some(removed) if removed.role == ReplicaRole::Learner => {
                        change(vec![ReplicaChange::Remove { replica: removed.id }])
                    }
                    _ => Next::End,
                },
            };
        }
        match (add, added) {
            (Some((node, replica)), None) => {
                // There already; or it was there and somebody removed it, and its id must not come back.
                if shard.replica_on(node).is_some() || replica <= shard.newest_replica {
                    return Next::End;
                }
                change(vec![ReplicaChange::AddLearner { node, replica }])
            }
            (Some(_), Some(added)) if added.role == ReplicaRole::Learner => {
                let mut changes = vec![ReplicaChange::Promote { replica: added.id }];
                // Somebody must be there to lead while the votes change hands: where nobody else is, the new copy votes
                // first, and takes over when the old one goes.
                let removed = removed.filter(|removed| removed.role == ReplicaRole::Voter);
                if let Some(removed) = removed.filter(|removed| self.has_other_voter(shard, removed.id)) {
                    changes.push(ReplicaChange::Demote { replica: removed.id });
                }
                change(changes)
            }
            _ => match removed {
                // A voter too many when this was planned, and needed since another one is lost: that one goes first.
                Some(removed) if removed.role == ReplicaRole::Voter && self.outlives_another(shard, removed.node) => {
                    Next::End
                }
                // Given up while both vote: one of them is a copy too many, for the planner to see.
                Some(removed) if is_off && removed.role == ReplicaRole::Voter => Next::End,
                Some(removed) => change(vec![ReplicaChange::Remove { replica: removed.id }]),
                None => Next::End,
            },
        }
    }

    /// A copy that is back where it lately left: somebody, or two rules, pull in two directions.
    fn tell_way_back(&self, shard: ShardId, from: NodeId, to: NodeId, at_ms: u64, effects: &mut Effects) {
        let settings = self.directory.as_ref().map(|directory| &directory.ledger.settings);
        let within_ms = settings.map_or(0, |settings| settings.cooldown_ms.saturating_mul(BACK_WITHIN_COOLDOWNS));
        if comes_back(self.conductor.recent.iter(), (shard, from, to), at_ms, within_ms) {
            let (from, to) = (to, from);
            effects.push(Effect::Event(Event::BackAndForth { shard, from, to }));
        }
    }

    /// Whether a copy is at `to` now, and none at `from`.
    fn has_moved(&self, shard: ShardId, from: NodeId, to: NodeId) -> bool {
        let shard = self.map.shard(shard);
        shard.is_some_and(|shard| shard.replica_on(to).is_some() && shard.replica_on(from).is_none())
    }

    /// Whether another voter than `without` is on a node that is up.
    fn has_other_voter(&self, shard: &ShardDescriptor, without: ReplicaId) -> bool {
        let is_fit = |other: &ReplicaDescriptor| {
            other.id != without && other.role == ReplicaRole::Voter && self.is_up(other.node)
        };
        shard.replicas.iter().any(is_fit)
    }

    /// Whether a shard has a copy on a lost node.
    pub(super) fn has_lost_copy(&self, shard: &ShardDescriptor) -> bool {
        shard.replicas.iter().any(|replica| self.is_lost(replica.node))
    }

    /// Whether a shard has a voter on a lost node, and the one on `node` is not lost.
    fn outlives_another(&self, shard: &ShardDescriptor, node: NodeId) -> bool {
        let is_lost = |replica: &ReplicaDescriptor| replica.role.votes() && self.is_lost(replica.node);
        !self.is_lost(node) && shard.replicas.iter().any(is_lost)
    }

    pub(super) fn next_of_merge(&self, task: &Task, right: ShardId, is_off: bool) -> Next {
        let Some(left) = self.map.shard(task.shard) else {
            return if self.map.absorber(task.shard).is_some() {
                Next::End
            } else {
                Next::Wait
            };
        };
        let Some(right) = self.map.shard(right) else {
            return Next::End;
        };
        let id = step_id(task.op, right.id, Epoch(left.epoch.0 ^ right.epoch.0 << 24));
        let ask = |request| Next::Ask(Box::new(request));
        match right.frozen {
            Some(frozen) if frozen.into != left.id => Next::Wait,
            Some(frozen) if frozen.left_epoch == left.epoch && !is_off => ask(Request::MergeShards {
                left: left.id,
                left_epoch: left.epoch,
                right: Box::new(right.clone()),
                id,
            }),
            // Given up, or the left one has moved on: first make sure that the merge can't happen any more.
            Some(frozen) if frozen.left_epoch >= left.epoch => ask(Request::BumpEpoch {
                shard: left.id,
                epoch: left.epoch,
                id,
            }),
            Some(_) => ask(Request::ThawShard {
                shard: right.id,
                proof: Box::new(left.clone()),
                id,
            }),
            None if is_off => Next::End,
            // What is lost is made again first: a merge is never urgent.
            None if self.has_lost_copy(left) || self.has_lost_copy(right) => Next::End,
            None if left.is_held(self.clock.wall_ms) || right.is_held(self.clock.wall_ms) => Next::End,
            None if left.range.end != right.range.start || left.settled_nodes() != right.settled_nodes() => Next::End,
            None => {
                // A freeze stops the shard: not before everybody who has to confirm it is there and has all entries.
                let absent = right.replicas.iter().find(|replica| !self.is_up(replica.node));
                let load = self.conductor.loads.get(&right.id);
                let is_behind = load.is_some_and(|(_, load)| !load.behind.is_empty());
                if absent.is_some() || is_behind || left.is_joint() || right.is_joint() || left.frozen.is_some() {
                    return Next::Wait;
                }
                ask(Request::FreezeShard {
                    shard: right.id,
                    epoch: right.epoch,
                    into: left.id,
                    left_epoch: left.epoch,
                    id,
                })
            }
        }
    }
}

/// A copy that comes back within so many cool-downs is told of: as long as the planner remembers.
const BACK_WITHIN_COOLDOWNS: u64 = 4;

/// Whether this move takes back one of the time before.
fn comes_back<'a>(
    recent: impl Iterator<Item = &'a RecentMove>,
    (shard, from, to): (ShardId, NodeId, NodeId),
    at_ms: u64,
    within_ms: u64,
) -> bool {
    let is_way_there = |known: &RecentMove| {
        (known.shard, known.what, known.from, known.to) == (shard, Moved::Replica, to, from)
            && known.at_ms.saturating_add(within_ms) >= at_ms
    };
    recent.into_iter().any(is_way_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_back_only_where_it_was_and_only_for_a_time() {
        let (shard, a, b, c) = (ShardId(7), NodeId(1), NodeId(2), NodeId(3));
        let went = |what, from, to| RecentMove {
            shard,
            what,
            from,
            to,
            at_ms: 1_000,
        };
        let back = |known: RecentMove, at_ms| comes_back([known].iter(), (shard, b, a), at_ms, 500);
        assert!(back(went(Moved::Replica, a, b), 1_500));
        assert!(!back(went(Moved::Replica, a, b), 1_501), "long ago");
        assert!(!back(went(Moved::Leader, a, b), 1_500), "a leader costs nothing");
        assert!(!back(went(Moved::Replica, c, b), 1_500), "it came from elsewhere");
        assert!(!back(went(Moved::Replica, b, a), 1_500), "the same way twice");
        let other = RecentMove {
            shard: ShardId(8),
            ..went(Moved::Replica, a, b)
        };
        assert!(!back(other, 1_500));
    }
}
