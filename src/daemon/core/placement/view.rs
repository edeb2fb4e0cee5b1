//! What the planner is told: nodes, shards, rules and settings at one moment.
//!
//! The whole view is made by the caller; nothing in here is remembered between two plans, but for [`RecentMove`]s, which
//! the caller keeps. A million shards fit: about 140 bytes each.
use serde::{Deserialize, Serialize};

use super::rules::Rule;
use crate::protocol::id::{Epoch, NodeId, ReplicaId, ShardId};
pub use crate::protocol::op::{Intent, Pace, Settings};
use crate::protocol::shard_map::{Membership, ReplicaRole};

/// Everything a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Version of the directory that this was taken from: a plan is applied at this one or refused as stale.
    pub version: u64,
    /// When it was taken, on the clock of [`RecentMove::at_ms`]. Unit: ms.
    pub now_ms: u64,
    /// Members, by id.
    pub nodes: Vec<NodeView>,
    /// Shards in key order: two next to each other of one service are neighbours.
    pub shards: Vec<ShardView>,
    /// Services, as [`ShardView::service`] counts them.
    pub services: Vec<ServiceView>,
    /// Rules, as [`ShardView::rule`] counts them.
    pub rules: Vec<Rule>,
    /// The operator's settings.
    pub settings: Settings,
    /// What was moved lately; as far back as [`Settings::cooldown_ms`] at least, better four times that.
    pub recent: Vec<RecentMove>,
}

/// How well a node is; whether it is a member is another question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Heard from.
    #[default]
    Up,
    /// Silent for a moment: gets nothing new, and is not counted on.
    Suspect,
    /// Silent for long.
    Down,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The node.
    pub id: NodeId,
    /// Failure domain; nodes without one share the zone "".
    pub zone: String,
    /// Where it stands in the life of a member.
    pub membership: Membership,
    /// How well it is.
    pub health: Health,
    /// For how long it has been silent. Unit: ms.
    pub down_ms: u64,
    /// What the operator wants of it.
    pub intent: Intent,
    /// In maintenance: what it holds is not healed meanwhile, and nothing is moved to it.
    pub maintenance: bool,
    /// Size of its disk. Unit: bytes.
    pub disk_total: u64,
    /// Used on its disk, by whomever. Unit: bytes.
    pub disk_used: u64,
}

impl NodeView {
    /// A healthy member with a disk of this size, half of a percent of it used.
    pub fn up(id: NodeId, zone: &str, disk_total: u64) -> Self {
        Self {
            id,
            zone: zone.to_owned(),
            membership: Membership::Active,
            health: Health::Up,
            down_ms: 0,
            intent: Intent::Stay,
            maintenance: false,
            disk_total,
            disk_used: disk_total / 200,
        }
    }

    /// Whether everything is to leave it, by the operator's will.
    pub fn is_leaving(&self) -> bool {
        self.membership == Membership::Leaving || self.intent == Intent::DrainAll
    }

    /// Whether what it held counts as lost and is made again elsewhere.
    pub fn is_lost(&self, settings: &Settings) -> bool {
        match (self.membership, self.health) {
            (Membership::Gone, _) => true,
            _ if self.maintenance => false,
            // Somebody said that it goes: nobody waits for its return.
            (_, Health::Down) => self.is_leaving() || self.down_ms >= settings.heal_after_ms,
            _ => false,
        }
    }

    /// Whether copies may be put on it.
    pub fn is_target(&self) -> bool {
        self.may_lead() && !self.maintenance
    }

    /// Whether it may be asked to lead.
    pub fn may_lead(&self) -> bool {
        self.membership == Membership::Active && self.health == Health::Up && self.intent == Intent::Stay
    }

    /// Above this the planner puts nothing more on its disk; no limit for one that has not said yet how large its disk is: it
    /// has joined within the last second, or the directory's leader is as new. Unit: bytes.
    pub fn disk_limit(&self, settings: &Settings) -> u64 {
        if self.disk_total == 0 {
            return u64::MAX;
        }
        self.disk_total / 100 * u64::from(settings.disk_limit_percent)
    }
}

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaView {
    /// Where it is.
    pub node: NodeId,
    /// Its name in the Raft group.
    pub id: ReplicaId,
    /// Voter or learner.
    pub role: ReplicaRole,
    /// Whether it could take part in a majority at once.
    pub is_caught_up: bool,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// The shard.
    pub id: ShardId,
    /// Its descriptor's epoch: a step is for this one.
    pub epoch: Epoch,
    /// Size of one copy. Unit: bytes.
    pub bytes: u64,
    /// Entities in it.
    pub entities: u64,
    /// Requests, smoothed over some minutes by who reports it. Unit: requests per second.
    pub load: u64,
    /// Its copies.
    pub replicas: Vec<ReplicaView>,
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// Its service, in [`ClusterView::services`].
    pub service: u16,
    /// Its rule, in [`ClusterView::rules`].
    pub rule: u16,
    /// Its leader was chosen by the operator.
    pub is_pinned: bool,
    /// A change of it is under way, or it is frozen: it is left alone.
    pub is_busy: bool,
    /// It was cut by hand: not merged.
    pub is_sticky: bool,
}

/// How a service's shards are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// A larger shard is cut. Unit: bytes.
    pub split_bytes: u64,
    /// A busier shard is cut. Unit: requests per second; 0: never.
    pub split_load: u64,
    /// Two neighbours that are smaller together become one, at most half of `split_bytes`. Unit: bytes; 0: never.
    pub merge_bytes: u64,
    /// Never fewer shards than this.
    pub min_shards: u32,
}

impl ServiceView {
    /// A service with the usual sizes.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            split_bytes: 512 << 20,
            split_load: 2_000,
            merge_bytes: 32 << 20,
            min_shards: 1,
        }
    }

    /// Two neighbours that together stay below this may become one: a fresh half never qualifies.
    pub fn merge_below(&self) -> u64 {
        self.merge_bytes.min(self.split_bytes / 2)
    }
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Moved {
    /// A copy.
    Replica,
    /// The lead.
    Leader,
}

/// A move that was made lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentMove {
    /// Of this shard.
    pub shard: ShardId,
    /// Copy or lead.
    pub what: Moved,
    /// From here.
    pub from: NodeId,
    /// To there.
    pub to: NodeId,
    /// When it was done, on the clock of [`ClusterView::now_ms`]. Unit: ms.
    pub at_ms: u64,
}

impl ClusterView {
    /// The member with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.node_index(id).map(|at| &self.nodes[at])
    }

    /// Where the member with this id is in `nodes`.
    pub(super) fn node_index(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    /// The rule of this shard; a shard whose rule does not exist follows the usual one.
    pub fn rule_of(&self, shard: &ShardView) -> Rule {
        self.rules.get(usize::from(shard.rule)).cloned().unwrap_or_default()
    }
}
