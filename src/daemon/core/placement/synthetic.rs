//! Clusters made up from a seed, of any size: for tests, and for planning what no machine here has.
use super::rules::Rule;
use super::view::{ClusterView, NodeView, ReplicaView, ServiceView, ShardView};
use crate::protocol::id::{Epoch, NodeId, ReplicaId, ShardId};
use crate::protocol::shard_map::ReplicaRole;

/// What the cluster is like.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Nodes `n1`, `n2`..., dealt out to the zones in turn.
    pub nodes: u32,
    /// Zones `zone-a`, `zone-b`...
    pub zones: u32,
    /// Shards of one service.
    pub shards: u32,
    /// Copies of each.
    pub replicas: u32,
    /// The rule's number of zones.
    pub rule_zones: u32,
    /// Mean size of a shard; sizes are between a quarter and seven quarters of it. Unit: bytes.
    pub shard_bytes: u64,
    /// Size of a disk. Unit: bytes.
    pub disk_bytes: u64,
    /// Mean load of a shard. Unit: requests per second.
    pub shard_load: u64,
    /// Everything else comes from it.
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            nodes: 5,
            zones: 3,
            shards: 100,
            replicas: 3,
            rule_zones: 1,
            shard_bytes: 64 << 20,
            disk_bytes: 1 << 40,
            shard_load: 20,
            seed: 1,
        }
    }
}

/// `zone-a`, `zone-b`, ... `zone-z`, `zone-27`...
pub fn zone_name(number: u32) -> String {
    match u8::try_from(number) {
        Ok(number) if number < 26 => format!("zone-{}", char::from(b'a' + number)),
        _ => format!("zone-{}", number + 1),
    }
}

impl Synthetic {
    /// Shards on random nodes in as many zones as can be, all well: what chance does, and nobody has evened out.
    pub fn build(&self) -> ClusterView {
        let mut chance = fastrand::Rng::with_seed(self.seed);
        let zones = self.zones.clamp(1, self.nodes.max(1));
        let mut view = ClusterView {
            version: 1,
            nodes: (0..self.nodes)
                .map(|n| NodeView::up(NodeId(u64::from(n) + 1), &zone_name(n % zones), self.disk_bytes))
                .collect(),
            services: vec![ServiceView {
                min_shards: self.shards,
                ..ServiceView::named("campaign")
            }],
            rules: vec![Rule {
                replicas: self.replicas,
                zones: self.rule_zones,
                ..Rule::default()
            }],
            shards: Vec::with_capacity(self.shards as usize),
            ..ClusterView::default()
        };
        let copies = self.replicas.min(self.nodes) as usize;
        let mut next = u64::from(self.shards) + 1;
        for number in 0..self.shards {
            let first_zone = chance.u32(0..zones);
            let mut nodes: Vec<u32> = Vec::with_capacity(copies);
            let mut turn = 0;
            while nodes.len() < copies {
                let zone = (first_zone + turn) % zones;
                turn += 1;
                let members = (self.nodes - zone).div_ceil(zones);
                let node = zone + zones * chance.u32(0..members);
                if !nodes.contains(&node) {
                    nodes.push(node);
                }
            }
            let bytes = chance.u64(self.shard_bytes / 4..=(self.shard_bytes / 4 * 7).max(1));
            for &node in &nodes {
                view.nodes[node as usize].disk_used += bytes;
            }
            let replicas = nodes.iter().map(|&node| {
                next += 1;
                ReplicaView {
                    node: NodeId(u64::from(node) + 1),
                    id: ReplicaId(next),
                    role: ReplicaRole::Voter,
                    is_caught_up: true,
                }
            });
            view.shards.push(ShardView {
                id: ShardId(u64::from(number) + 1),
                epoch: Epoch(1),
                bytes,
                entities: bytes / 1000 + 2,
                load: chance.u64(0..=self.shard_load * 2),
                leader: nodes.first().map(|&node| NodeId(u64::from(node) + 1)),
                replicas: replicas.collect(),
                service: 0,
                rule: 0,
                is_pinned: false,
                is_busy: false,
                is_sticky: false,
            });
        }
        view
    }

    /// Adds empty nodes to a zone; returns their ids.
    pub fn add(&self, view: &mut ClusterView, count: u32, zone: &str) -> Vec<NodeId> {
        let first = view.nodes.last().map_or(0, |node| node.id.0) + 1;
        let ids: Vec<NodeId> = (first..first + u64::from(count)).map(NodeId).collect();
        view.nodes
            .extend(ids.iter().map(|&id| NodeView::up(id, zone, self.disk_bytes)));
        ids
    }
}
