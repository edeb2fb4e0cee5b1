//! In which order nodes can be restarted: groups that may be down together, with every shard going on.
use super::check::ok_to_stop;
use super::plan::Blocker;
use super::view::{ClusterView, Health};
use crate::protocol::id::NodeId;

/// Groups of at most `max_parallel` nodes, each safe by itself once the one before is back. Nodes of one zone are put
/// together where that is safe: what is spread over zones goes on without one of them. Refused where a node can't be
/// stopped even alone.
pub fn order(view: &ClusterView, max_parallel: u32) -> Result<Vec<Vec<NodeId>>, Vec<Blocker>> {
    let mut nodes: Vec<_> = view.nodes.iter().filter(|node| node.health == Health::Up).collect();
    nodes.sort_by(|a, b| (&a.zone, a.id).cmp(&(&b.zone, b.id)));
    let mut batches: Vec<Vec<NodeId>> = Vec::new();
    for node in nodes {
        ok_to_stop(view, &[node.id])?;
        let fits = batches.last().is_some_and(|batch| {
            let mut together = batch.clone();
            together.push(node.id);
            together.len() <= max_parallel.max(1) as usize && ok_to_stop(view, &together).is_ok()
        });
        match batches.last_mut().filter(|_| fits) {
            Some(batch) => batch.push(node.id),
            None => batches.push(vec![node.id]),
        }
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::placement::synthetic::Synthetic;

    #[test]
    fn every_group_is_safe_and_everybody_is_in_one() {
        let view = Synthetic {
            nodes: 9,
            zones: 3,
            shards: 200,
            ..Synthetic::default()
        }
        .build();
        let batches = order(&view, 3).expect("healthy");
        let mut all: Vec<NodeId> = batches.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, view.nodes.iter().map(|node| node.id).collect::<Vec<_>>());
        for batch in &batches {
            assert!(batch.len() <= 3 && ok_to_stop(&view, batch).is_ok(), "{batch:?}");
        }
        assert!(batches.len() < 9, "a zone goes together: {batches:?}");
        assert_eq!(order(&view, 1).expect("healthy").len(), 9);
    }
}
