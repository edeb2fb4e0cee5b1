//! Nodes that are drained or leave: leaderships go, and when they are empty.
use super::*;

impl Node {
    /// What was laid down for a time ends by itself.
    pub(super) fn expire_marks(&mut self) {
        let wall_ms = self.clock.wall_ms;
        if self.map.policy.marks.values().any(|marks| marks.at(wall_ms) != *marks) {
            self.propose_own(EXPIRY_TOPIC, DirectoryCommand::ExpireMarks);
        }
    }

    /// Leaders leave drained nodes, and do not come back; and transfers that the planner wants.
    pub(super) fn hand_over_drained(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        self.conductor
            .split_tried
            .retain(|_, at| now.since(*at) < SPLIT_AGAIN_AFTER);
        self.conductor
            .handed_over
            .retain(|_, at| now.since(*at) < Span::secs(10));
        let mut transfers = std::mem::take(&mut self.transfers);
        let drained: BTreeSet<NodeId> = self
            .map
            .nodes
            .values()
            .filter(|info| info.overlay.intent != Intent::Stay)
            .map(|info| info.id)
            .collect();
        let is_due = now.since(self.conductor.last_hand_over) >= self.pause(HAND_OVER_EVERY_PER_THOUSAND);
        if !drained.is_empty() && is_due {
            self.conductor.last_hand_over = now;
            let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
            for shard in self.map.shards() {
                if let Some((_, leader)) = self.map.leader(shard.id) {
                    *leads.entry(leader).or_default() += 1;
                }
            }
            for shard in self.map.shards() {
                let Some((_, leader)) = self.map.leader(shard.id).filter(|(_, node)| drained.contains(node)) else {
                    continue;
                };
                let asked = self.conductor.handed_over.get(&shard.id);
                if transfers.len() >= HAND_OVERS_AT_ONCE || asked.is_some_and(|&at| now.since(at) < HAND_OVER_EVERY) {
                    continue;
                }
                let load = self.conductor.loads.get(&shard.id).filter(|(node, _)| *node == leader);
                let behind = |id: ReplicaId| load.is_some_and(|(_, load)| load.behind.contains(&id));
                let fit = shard.replicas.iter().filter(|replica| {
                    replica.role == ReplicaRole::Voter
                        && !drained.contains(&replica.node)
                        && self.is_up(replica.node)
                        && !behind(replica.id)
                });
                if let Some(to) =
                    fit.min_by_key(|replica| (leads.get(&replica.node).copied().unwrap_or(0), replica.node))
                {
                    *leads.entry(to.node).or_default() += 1;
                    transfers.push((shard.id, to.node));
                }
            }
        }
        transfers.extend(self.pinned_elsewhere(&drained));
        for (shard, to) in transfers {
            self.conductor.handed_over.insert(shard, now);
            let waiting = Waiting {
                waiter: Waiter::Own,
                deadline: now + ASK_TIMEOUT,
                id: RequestId(0),
            };
            let principal = Principal {
                name: "isx".to_owned(),
                role: Role::Node,
            };
            self.asked(
                waiting,
                principal,
                Request::TransferLeader { shard, to },
                0,
                state,
                effects,
            );
        }
    }

    /// Shards that somebody else leads than the node they are pinned to, which could.
    fn pinned_elsewhere(&self, drained: &BTreeSet<NodeId>) -> Vec<(ShardId, NodeId)> {
        let now = self.clock.now;
        let mut transfers = Vec::new();
        for (&id, marks) in &self.map.policy.marks {
            let Some(pin) = marks.at(self.clock.wall_ms).pin else {
                continue;
            };
            let Some((_, leader)) = self.map.leader(id).filter(|(_, leader)| *leader != pin.node) else {
                continue;
            };
            let asked = self.conductor.handed_over.get(&id);
            let copy = self.map.shard(id).and_then(|shard| shard.replica_on(pin.node));
            let votes = copy.is_some_and(|copy| copy.role == ReplicaRole::Voter);
            let may_lead = votes && self.is_up(pin.node) && self.is_up(leader) && !drained.contains(&pin.node);
            if may_lead && asked.is_none_or(|&at| now.since(at) >= HAND_OVER_EVERY) {
                transfers.push((id, pin.node));
            }
        }
        transfers
    }
}

/// Apart from the topics of nodes and of shards.
const EXPIRY_TOPIC: u64 = 1 << 50;
