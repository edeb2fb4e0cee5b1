//! What given steps cost: bytes, disks, time, and what can be lost on the way, by the same arithmetic as a plan's own.
use super::draft::Draft;
use super::plan::{Goals, Plan, StepKind, Why};
use super::view::ClusterView;
use crate::protocol::id::{NodeId, ShardId};

/// A plan of just these steps, in this order. Steps of shards or nodes that are not in the view are left out.
pub fn price(view: &ClusterView, steps: &[(ShardId, StepKind)]) -> Plan {
    let mut draft = Draft::new(view, &Goals::none(), &[], &[]);
    for (id, kind) in steps {
        if let Some(at) = view.shards.iter().position(|shard| shard.id == *id) {
            draft.ask(at, *kind);
        }
    }
    draft.finish()
}

impl Draft<'_> {
    fn ask(&mut self, shard: usize, kind: StepKind) {
        let number = |node: NodeId| self.view.node_index(node).map(|at| at as u32);
        let has = |node: u32| self.copies[shard].has(node);
        match kind {
            StepKind::AddReplica { node } => {
                if let Some(node) = number(node) {
                    self.add(shard, node, Why::Asked);
                }
            }
            StepKind::SwapReplica { from, to, .. } => match (number(from), number(to)) {
                (Some(from), Some(to)) if has(from) && !has(to) => self.swap(shard, from, to, None, Why::Asked),
                // The old copy is on a node that is no member any more.
                (None, Some(to)) if !has(to) => self.add(shard, to, Why::Asked),
                _ => {}
            },
            StepKind::RemoveReplica { node } => {
                if let Some(node) = number(node).filter(|&node| has(node)) {
                    self.remove(shard, node, Why::Asked);
                }
            }
            StepKind::TransferLeader { to, .. } => {
                if let Some(to) = number(to).filter(|&node| has(node)) {
                    self.transfer(shard, to, Why::Asked);
                }
            }
            StepKind::Split { .. } | StepKind::Merge { .. } => self.reshape(shard, kind, Why::Asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::placement::synthetic::Synthetic;

    #[test]
    fn a_move_costs_its_bytes_on_the_disk_where_it_arrives() {
        let view = Synthetic {
            nodes: 4,
            zones: 2,
            shards: 20,
            ..Synthetic::default()
        }
        .build();
        let shard = &view.shards[3];
        let (from, to) = (
            shard.replicas[0].node,
            view.nodes
                .iter()
                .map(|node| node.id)
                .find(|id| shard.replicas.iter().all(|r| r.node != *id))
                .expect("four nodes, three copies"),
        );
        let plan = price(&view, &[(shard.id, StepKind::SwapReplica { from, to, lead: None })]);
        assert_eq!((plan.steps.len(), plan.bytes), (1, shard.bytes));
        let disk = plan.disks.iter().find(|disk| disk.node == to).expect("a member");
        let before = view.node(to).expect("a member").disk_used;
        assert_eq!((disk.peak, disk.after), (before + shard.bytes, before + shard.bytes));
        assert!(plan.time_ms.0 > 0 && plan.time_ms.1 > plan.time_ms.0);
        // It never can lose less than before: the new copy is there before the old one goes.
        assert_eq!(plan.tolerance_before.nodes, plan.tolerance_lowest.nodes);
        let gone = price(&view, &[(shard.id, StepKind::RemoveReplica { node: from })]);
        assert_eq!(gone.tolerance_after.nodes, 0, "two of two are needed");
    }
}
