//! A step carried out on a view, as if by the cluster: what plans promise is tested, and predicted, with it.
use super::plan::{Step, StepKind};
use super::view::{ClusterView, Moved, RecentMove, ReplicaView, ShardView};
use crate::protocol::id::{Epoch, NodeId, ReplicaId, ShardId};
use crate::protocol::shard_map::ReplicaRole;

/// Carries out steps one after the other, giving out ids as the directory does.
#[derive(Debug)]
pub struct Applier {
    next_id: u64,
}

impl Applier {
    /// For this view; finds the highest ids.
    pub fn new(view: &ClusterView) -> Self {
        let ids = |shard: &ShardView| shard.replicas.iter().map(|r| r.id.0).max().unwrap_or(0).max(shard.id.0);
        Self {
            next_id: view.shards.iter().map(ids).max().unwrap_or(0) + 1,
        }
    }

    /// Carries out one step and says whether the view had what it is about. `at` is where the shard is, if known.
    pub fn apply(&mut self, view: &mut ClusterView, step: &Step) -> bool {
        let Some(at) = view.shards.iter().position(|shard| shard.id == step.shard) else {
            return false;
        };
        self.apply_at(view, step, at)
    }

    /// The same where the place of the shard in the view is known.
    pub fn apply_at(&mut self, view: &mut ClusterView, step: &Step, at: usize) -> bool {
        let bytes = view.shards[at].bytes;
        match step.kind {
            StepKind::AddReplica { node } => {
                self.put(view, at, node);
            }
            StepKind::SwapReplica { from, to, lead } => {
                if view.shards[at].leader == Some(from) {
                    view.shards[at].leader = lead;
                }
                self.put(view, at, to);
                take(view, at, from, bytes);
                remember(view, step.shard, Moved::Replica, from, to);
            }
            StepKind::RemoveReplica { node } => take(view, at, node, bytes),
            StepKind::TransferLeader { from, to } => {
                view.shards[at].leader = Some(to);
                remember(view, step.shard, Moved::Leader, from, to);
            }
            StepKind::Split { into, .. } => self.split(view, at, u64::from(into.max(1))),
            StepKind::Merge { right } => {
                let Some(gone) = view.shards.get(at + 1).filter(|shard| shard.id == right).cloned() else {
                    return false;
                };
                view.shards.remove(at + 1);
                let left = &mut view.shards[at];
                left.bytes += gone.bytes;
                left.entities += gone.entities;
                left.load += gone.load;
            }
        }
        view.shards[at].epoch = Epoch(view.shards[at].epoch.0 + 1);
        true
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn put(&mut self, view: &mut ClusterView, at: usize, node: NodeId) {
        let shard = &mut view.shards[at];
        if let Some(learner) = shard.replicas.iter_mut().find(|replica| replica.node == node) {
            (learner.role, learner.is_caught_up) = (ReplicaRole::Voter, true);
            return;
        }
        let bytes = shard.bytes;
        let id = ReplicaId(self.id());
        view.shards[at].replicas.push(ReplicaView {
            node,
            id,
            role: ReplicaRole::Voter,
            is_caught_up: true,
        });
        if let Some(at) = view.node_index(node) {
            view.nodes[at].disk_used = view.nodes[at].disk_used.saturating_add(bytes);
        }
    }

    fn split(&mut self, view: &mut ClusterView, at: usize, into: u64) {
        let parent = &mut view.shards[at];
        let share = |whole: u64, part: u64| whole / into + u64::from(part < whole % into);
        let (bytes, entities, load) = (parent.bytes, parent.entities, parent.load);
        (parent.bytes, parent.entities, parent.load) = (share(bytes, 0), share(entities, 0), share(load, 0));
        let parent = parent.clone();
        for part in 1..into {
            let mut child = ShardView {
                id: ShardId(self.id()),
                bytes: share(bytes, part),
                entities: share(entities, part),
                load: share(load, part),
                epoch: Epoch(parent.epoch.0 + 1),
                ..parent.clone()
            };
            for replica in &mut child.replicas {
                replica.id = ReplicaId(self.id());
            }
            view.shards.insert(at + part as usize, child);
        }
    }
}

fn take(view: &mut ClusterView, at: usize, node: NodeId, bytes: u64) {
    view.shards[at].replicas.retain(|replica| replica.node != node);
    if let Some(at) = view.node_index(node) {
        view.nodes[at].disk_used = view.nodes[at].disk_used.saturating_sub(bytes);
    }
}

fn remember(view: &mut ClusterView, shard: ShardId, what: Moved, from: NodeId, to: NodeId) {
    let at_ms = view.now_ms;
    view.recent.push(RecentMove {
        shard,
        what,
        from,
        to,
        at_ms,
    });
}
