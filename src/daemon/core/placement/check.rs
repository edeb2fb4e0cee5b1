//! Questions before something is done: what can be lost, may this node be stopped, drained, sent away?
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::plan::{BlockCode, Blocker, Goals, Plan, plan_with};
use super::rules::plural;
use super::view::{ClusterView, Health, Intent, ShardView};
use crate::protocol::id::{DIRECTORY_SHARD, NodeId};
use crate::protocol::shard_map::{Membership, ReplicaRole};

/// How many of so many voters decide.
pub fn majority(voters: u32) -> u32 {
    voters / 2 + 1
}

/// How many nodes and zones can still be lost, whichever they are, without a shard that refuses writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tolerance {
    /// Nodes.
    pub nodes: u32,
    /// Zones.
    pub zones: u32,
    /// Shards that refuse writes already.
    pub without_quorum: u64,
}

impl Tolerance {
    /// What is left when it is this for one shard and that for another.
    pub(super) fn with(self, (nodes, zones): (u32, u32)) -> Self {
        Self {
            nodes: self.nodes.min(nodes),
            zones: self.zones.min(zones),
            ..self
        }
    }

    pub(super) const UNBOUNDED: Self = Self {
        nodes: u32::MAX,
        zones: u32::MAX,
        without_quorum: 0,
    };

    /// Of no shards at all there is nothing to lose.
    pub(super) fn or_zero(self) -> Self {
        if self.nodes == u32::MAX { Self::default() } else { self }
    }
}

/// The voters of a shard, and which of them can be counted on now.
pub(super) struct Quorum<'v> {
    pub voters: u32,
    pub good: u32,
    /// Good voters by zone.
    pub zones: Vec<(&'v str, u32)>,
}

impl<'v> Quorum<'v> {
    pub fn of(view: &'v ClusterView, shard: &ShardView) -> Self {
        Self::without(view, shard, &BTreeSet::new())
    }

    /// As if these nodes were stopped.
    fn without(view: &'v ClusterView, shard: &ShardView, stopped: &BTreeSet<NodeId>) -> Self {
        let mut quorum = Self {
            voters: 0,
            good: 0,
            zones: Vec::new(),
        };
        for replica in shard.replicas.iter().filter(|r| r.role == ReplicaRole::Voter) {
            quorum.voters += 1;
            let Some(node) = view.node(replica.node) else { continue };
            let is_there = node.health == Health::Up && node.membership != Membership::Gone;
            if !is_there || !replica.is_caught_up || stopped.contains(&node.id) {
                continue;
            }
            quorum.good += 1;
            match quorum.zones.iter_mut().find(|(zone, _)| *zone == node.zone) {
                Some((_, count)) => *count += 1,
                None => quorum.zones.push((&node.zone, 1)),
            }
        }
        quorum
    }

    pub fn spare_nodes(&self) -> u32 {
        self.good.saturating_sub(majority(self.voters))
    }

    pub fn spare_zones(&self) -> u32 {
        let mut counts: Vec<u32> = self.zones.iter().map(|&(_, count)| count).collect();
        spare_zones(&mut counts, self.voters)
    }
}

/// How many zones can be lost, the largest first, of good voters counted by zone.
pub(super) fn spare_zones(by_zone: &mut [u32], voters: u32) -> u32 {
    by_zone.sort_unstable_by(|a, b| b.cmp(a));
    let mut left: u32 = by_zone.iter().sum();
    let mut spare = 0;
    for &count in by_zone.iter() {
        left -= count;
        if left < majority(voters) {
            break;
        }
        spare += 1;
    }
    spare
}

/// How many nodes and zones can still be lost.
pub fn tolerance(view: &ClusterView) -> Tolerance {
    let mut least = Tolerance::UNBOUNDED;
    for shard in &view.shards {
        let quorum = Quorum::of(view, shard);
        least = least.with((quorum.spare_nodes(), quorum.spare_zones()));
        least.without_quorum += u64::from(quorum.good < majority(quorum.voters));
    }
    least.or_zero()
}

/// Whether all of these nodes can be stopped together for a while, with every shard going on.
pub fn ok_to_stop(view: &ClusterView, nodes: &[NodeId]) -> Result<(), Vec<Blocker>> {
    let mut blockers = unknown(view, nodes);
    let stopped: BTreeSet<NodeId> = nodes.iter().copied().collect();
    let mut count = 0;
    let mut first = None;
    for shard in &view.shards {
        if !shard.replicas.iter().any(|replica| stopped.contains(&replica.node)) {
            continue;
        }
        let quorum = Quorum::without(view, shard, &stopped);
        if quorum.good < majority(quorum.voters) {
            count += 1;
            first.get_or_insert((shard, quorum.good, quorum.voters));
        }
    }
    if let Some((shard, good, voters)) = first {
        let names = list(nodes);
        let directory = if shard.id == DIRECTORY_SHARD {
            " (the directory)"
        } else {
            ""
        };
        let absent: BTreeSet<NodeId> = shard
            .replicas
            .iter()
            .filter(|r| !r.is_caught_up || view.node(r.node).is_none_or(|node| node.health != Health::Up))
            .map(|r| r.node)
            .filter(|node| !stopped.contains(node))
            .collect();
        let already = if absent.is_empty() {
            String::new()
        } else {
            let absent: Vec<NodeId> = absent.into_iter().collect();
            format!("; {} can't be counted on now", list(&absent))
        };
        let mut next = vec![format!("isxctl shard show {}", shard.id)];
        if nodes.len() > 1 {
            next.push(format!("isxctl node ok-to-stop {}          one at a time", nodes[0]));
        } else if voters == 1 {
            next.push(format!("isxctl node drain {names} --for leave"));
        }
        blockers.push(Blocker {
            code: BlockCode::Quorum,
            object: names.clone(),
            shards: count,
            text: format!(
                "without {names} {count} {} would have no majority; first {}{directory}: {good} of {voters} voters, \
                 {} needed{already}",
                plural(count, "shard"),
                shard.id,
                majority(voters)
            ),
            next,
        });
    }
    if blockers.is_empty() { Ok(()) } else { Err(blockers) }
}

/// What it would take to hand over the leaders of these nodes, before a restart: the same plan that the drain carries
/// out. It is refused where the shards could not go on without them.
pub fn check_restart(view: &ClusterView, nodes: &[NodeId]) -> Result<Plan, Vec<Blocker>> {
    ok_to_stop(view, nodes)?;
    check(view, nodes, Intent::DrainLeaders)
}

/// What it would take to empty these nodes, together: the same plan that the drain carries out.
pub fn check_drain(view: &ClusterView, nodes: &[NodeId]) -> Result<Plan, Vec<Blocker>> {
    check(view, nodes, Intent::DrainAll)
}

/// What it would take to send these nodes away for good.
pub fn check_leave(view: &ClusterView, nodes: &[NodeId]) -> Result<Plan, Vec<Blocker>> {
    check(view, nodes, Intent::DrainAll)
}

fn check(view: &ClusterView, nodes: &[NodeId], intent: Intent) -> Result<Plan, Vec<Blocker>> {
    let unknown = unknown(view, nodes);
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let intents: Vec<(NodeId, Intent)> = nodes.iter().map(|&node| (node, intent)).collect();
    // Healing comes first in the real run too; its own refusals are not the drain's.
    let goals = Goals {
        heal: true,
        drain: true,
        ..Goals::none()
    };
    let already = plan_with(view, &goals, &[], &[]).refusals;
    let plan = plan_with(view, &goals, &intents, &[]);
    let is_new = |blocker: &Blocker| {
        !already
            .iter()
            .any(|a| (a.code, &a.object, a.shards) == (blocker.code, &blocker.object, blocker.shards))
    };
    let touches = |blocker: &Blocker| is_new(blocker) || nodes.iter().any(|node| blocker.object == node.to_string());
    let blockers: Vec<Blocker> = plan.refusals.iter().filter(|b| touches(b)).cloned().collect();
    if blockers.is_empty() { Ok(plan) } else { Err(blockers) }
}

fn unknown(view: &ClusterView, nodes: &[NodeId]) -> Vec<Blocker> {
    let missing = nodes.iter().filter(|&&id| view.node(id).is_none());
    let blocker = |id: &NodeId| Blocker {
        code: BlockCode::NoSuchNode,
        object: id.to_string(),
        shards: 0,
        text: format!("there is no node {id}"),
        next: vec!["isxctl node list".to_owned()],
    };
    missing.map(blocker).collect()
}

/// `n1, n2 and n3`.
pub(super) fn list(nodes: &[NodeId]) -> String {
    match nodes {
        [] => String::new(),
        [one] => one.to_string(),
        [before @ .., last] => {
            let before: Vec<String> = before.iter().map(ToString::to_string).collect();
            format!("{} and {last}", before.join(", "))
        }
    }
}
