//! When an operation has reached its goal.
use super::*;

impl Node {
    /// What is left to do for a goal, in steps and bytes.
    pub(super) fn left_of(&self, goal: &Goal) -> (u64, u64) {
        let bytes = |shard: ShardId| {
            let known = self.conductor.loads.get(&shard).map(|(_, load)| load.bytes);
            let own = self.replicas.get(&shard).map(|replica| replica.bytes);
            own.or(known).unwrap_or(0)
        };
        match *goal {
            Goal::Drain {
                node,
                everything: false,
            } => {
                let led = self
                    .map
                    .shards()
                    .filter(|shard| self.map.leader(shard.id).is_some_and(|(_, leader)| leader == node));
                (led.count() as u64, 0)
            }
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } | Goal::Replace { old: node, .. } => {
                let held = self.map.shards().filter(|shard| shard.replica_on(node).is_some());
                held.fold((0, 0), |(count, sum), shard| (count + 1, sum + bytes(shard.id)))
            }
            Goal::Rebalance => (self.conductor.spread_left, 0),
            Goal::Move { shard, .. } | Goal::AddReplica { shard, .. } => {
                if self.is_reached(goal) {
                    (0, 0)
                } else {
                    (1, bytes(shard))
                }
            }
            Goal::RemoveReplica { .. } | Goal::Merge { .. } => (u64::from(!self.is_reached(goal)), 0),
            Goal::Scatter { .. } => {
                let ledger = self.directory.as_ref().map(|directory| &directory.ledger);
                let op = ledger.and_then(|ledger| ledger.open().find(|op| op.goal == *goal));
                let left = op.and_then(|op| self.conductor.scatter_left.get(&op.id).copied());
                (left.unwrap_or(1), 0)
            }
            Goal::Split { shard, ref at } => {
                let service = self.map.shard(shard).map(|shard| shard.range.service().to_owned());
                let is_cut = |key: &&String| {
                    let cut = Position::new(service.as_deref().unwrap_or_default(), key);
                    self.map.find(&cut).is_some_and(|shard| shard.range.start == cut)
                };
                (at.iter().filter(|key| !is_cut(key)).count() as u64, 0)
            }
            Goal::SetReplicas { ref of, replicas } => {
                let shards = self.map.shards().filter(|shard| self.is_within(shard.id, of));
                shards.fold((0, 0), |(count, sum), shard| {
                    // What is asked for is laid down only when the operation begins.
                    let wanted = match (of, replicas, self.map.policy.replicas_of(shard)) {
                        (Scope::Shard(_), Some(replicas), _) | (Scope::Service(_), Some(replicas), None) => {
                            replicas as usize
                        }
                        _ => self.replicas_wanted(shard),
                    };
                    let voters = shard.replicas.iter().filter(|r| r.role == ReplicaRole::Voter).count();
                    let missing = wanted.saturating_sub(voters) as u64;
                    let excess = shard.replicas.len().saturating_sub(wanted) as u64;
                    let unsettled = u64::from(shard.is_joint());
                    (
                        count + (missing + excess).max(unsettled),
                        sum + missing * bytes(shard.id),
                    )
                })
            }
        }
    }

    pub(super) fn is_reached(&self, goal: &Goal) -> bool {
        let shard_is = |shard: ShardId, test: &dyn Fn(&ShardDescriptor) -> bool| {
            self.map
                .shard(shard)
                .is_some_and(|shard| !shard.is_joint() && test(shard))
        };
        let votes_on = |shard: &ShardDescriptor, node: NodeId| {
            shard
                .replica_on(node)
                .is_some_and(|replica| replica.role == ReplicaRole::Voter)
        };
        match *goal {
            Goal::Move { shard, from, to } => {
                shard_is(shard, &|shard| votes_on(shard, to) && shard.replica_on(from).is_none())
            }
            Goal::AddReplica { shard, to } => shard_is(shard, &|shard| votes_on(shard, to)),
            Goal::RemoveReplica { shard, from } => shard_is(shard, &|shard| shard.replica_on(from).is_none()),
            Goal::Merge { right, .. } => self.map.absorber(right).is_some(),
            Goal::Rebalance => self.conductor.spread_left == 0,
            _ => self.left_of(goal).0 == 0,
        }
    }

    pub(super) fn end_reached(&mut self) {
        let now = self.clock.now;
        let Some(directory) = &self.directory else { return };
        let ledger = &directory.ledger;
        let settled = self
            .conductor
            .since
            .is_some_and(|since| now.since(since) >= SETTLED_AFTER);
        let mut ends = Vec::new();
        let mut dismissals = Vec::new();
        for op in ledger.open().filter(|op| op.state == OpState::Running) {
            let has_tasks = ledger.tasks.values().any(|task| task.op == op.id);
            if !settled || has_tasks {
                continue;
            }
            let gone = |shard: ShardId| self.map.absorber(shard);
            match op.goal {
                Goal::Leave { node } | Goal::Replace { old: node, .. } if self.left_of(&op.goal).0 == 0 => {
                    dismissals.push((op.id, node));
                }
                Goal::Drain { node, everything } if self.left_of(&op.goal).0 == 0 => {
                    let holds = if everything { "holds nothing" } else { "leads nothing" };
                    ends.push((op.id, OpState::Done, format!("{node} {holds} any more")));
                }
                Goal::Heal { node } => {
                    if self.left_of(&op.goal).0 == 0 {
                        ends.push((op.id, OpState::Done, format!("what {node} held is elsewhere")));
                    } else if self.is_up(node) {
                        ends.push((op.id, OpState::Done, format!("{node} is back")));
                    }
                }
                Goal::Merge { left, right } if gone(left).is_some() && gone(right).is_none() => {
                    ends.push((op.id, OpState::Failed, format!("{left} is no more")));
                }
                Goal::Move { shard, .. }
                | Goal::AddReplica { shard, .. }
                | Goal::RemoveReplica { shard, .. }
                | Goal::Split { shard, .. }
                | Goal::SetReplicas {
                    of: Scope::Shard(shard),
                    ..
                } if gone(shard).is_some() => {
                    ends.push((op.id, OpState::Failed, format!("{shard} was absorbed")));
                }
                Goal::Rebalance
                | Goal::Move { .. }
                | Goal::AddReplica { .. }
                | Goal::RemoveReplica { .. }
                | Goal::Merge { .. }
                | Goal::Split { .. }
                | Goal::SetReplicas { .. }
                | Goal::Scatter { .. }
                    if self.is_reached(&op.goal) =>
                {
                    ends.push((op.id, OpState::Done, "as asked".to_owned()));
                }
                _ => {}
            }
        }
        for (op, state, result) in ends {
            self.turn(op, state, result);
        }
        let wall_ms = self.clock.wall_ms;
        for (op, node) in dismissals {
            self.propose_directory(DirectoryCommand::Dismiss { node, op, wall_ms });
        }
    }
}
