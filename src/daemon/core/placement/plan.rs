//! A plan: ordered steps, what they cost, what can't be done, and how it will look afterwards.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::check::Tolerance;
use super::draft::Draft;
use super::view::{ClusterView, Intent};
use crate::protocol::id::{Epoch, NodeId, ShardId};

/// One thing to do with one shard, at one epoch of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch when this was planned. Earlier steps of the same plan raise it.
    pub epoch: Epoch,
    /// What to do.
    pub kind: StepKind,
    /// What for.
    pub why: Why,
    /// Copied over the network. Unit: bytes.
    pub bytes: u64,
}

/// What to do. Each kind is carried out by fixed means, none of which lowers what the shard can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// A learner on `node`, caught up, then a voter. A learner that is there already is promoted.
    AddReplica {
        /// Where.
        node: NodeId,
    },
    /// A learner on `to`, caught up; then, jointly, `to` votes and `from` does not; then `from` goes.
    SwapReplica {
        /// The copy that goes; it may be on a dead node.
        from: NodeId,
        /// Where the new one comes.
        to: NodeId,
        /// Who leads afterwards, where `from` leads now.
        lead: Option<NodeId>,
    },
    /// The copy becomes a learner, then goes.
    RemoveReplica {
        /// Where.
        node: NodeId,
    },
    /// Another voter leads.
    TransferLeader {
        /// Who leads now.
        from: NodeId,
        /// Who is to lead.
        to: NodeId,
    },
    /// The shard is cut; nothing is copied. Where, its leader says.
    Split {
        /// Cut into halves of size or of load.
        by: SplitBy,
        /// Into how many.
        into: u32,
    },
    /// The shard takes over its right neighbour, whose copies are on the same nodes.
    Merge {
        /// The neighbour, which is no more afterwards.
        right: ShardId,
    },
}

/// What the parts of a split have in equal shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    /// Bytes.
    Size,
    /// Requests.
    Load,
}

/// What a step is for; the more urgent the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// A copy is lost or missing.
    Heal,
    /// An operator asked for just this.
    Asked,
    /// A node is to be emptied, or to lead nothing.
    Drain,
    /// Copies share a zone without need.
    Zone,
    /// More copies than wanted.
    Excess,
    /// The shard is too large.
    Size,
    /// The shard is too busy.
    Hot,
    /// Two neighbours are small.
    Small,
    /// Nodes differ in the number of copies.
    Replicas,
    /// Nodes differ in bytes.
    Bytes,
    /// Nodes differ in what they lead.
    Leaders,
    /// Nodes differ in load.
    Load,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Heal => "heal",
            Self::Asked => "asked",
            Self::Drain => "drain",
            Self::Zone => "zone",
            Self::Excess => "excess",
            Self::Size => "size",
            Self::Hot => "hot",
            Self::Small => "small",
            Self::Replicas => "replicas",
            Self::Bytes => "bytes",
            Self::Leaders => "leaders",
            Self::Load => "load",
        })
    }
}

impl Step {
    /// The nodes that work on it, but for the source of the copy, which the shard chooses.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let (one, other) = match self.kind {
            StepKind::AddReplica { node } | StepKind::RemoveReplica { node } => (Some(node), None),
            StepKind::SwapReplica { from, to, .. } => (Some(to), Some(from)),
            StepKind::TransferLeader { from, to } => (Some(from), Some(to)),
            StepKind::Split { .. } | StepKind::Merge { .. } => (None, None),
        };
        one.into_iter().chain(other)
    }

    /// Where a copy arrives.
    pub fn receiver(&self) -> Option<NodeId> {
        match self.kind {
            StepKind::AddReplica { node } => Some(node),
            StepKind::SwapReplica { to, .. } => Some(to),
            _ => None,
        }
    }

    /// The shards it changes.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        let right = match self.kind {
            StepKind::Merge { right } => Some(right),
            _ => None,
        };
        std::iter::once(self.shard).chain(right)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shard = self.shard;
        match self.kind {
            StepKind::AddReplica { node } => write!(f, "{shard} add {node}")?,
            StepKind::SwapReplica { from, to, lead: None } => write!(f, "{shard} {from} -> {to}")?,
            StepKind::SwapReplica {
                from,
                to,
                lead: Some(lead),
            } => write!(f, "{shard} {from} -> {to}, led by {lead}")?,
            StepKind::RemoveReplica { node } => write!(f, "{shard} remove {node}")?,
            StepKind::TransferLeader { from, to } => write!(f, "{shard} lead {from} -> {to}")?,
            StepKind::Split {
                by: SplitBy::Size,
                into,
            } => write!(f, "{shard} split into {into} by size")?,
            StepKind::Split {
                by: SplitBy::Load,
                into,
            } => write!(f, "{shard} split into {into} by load")?,
            StepKind::Merge { right } => write!(f, "{shard} merge {right}")?,
        }
        write!(f, "  ({})", self.why)
    }
}

/// Why something can't be done. Codes are stable: scripts read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BlockCode {
    /// A shard has no majority, or would have none.
    Quorum,
    /// A rule wants a copy in a zone in which no node can take it.
    NoTargetZone,
    /// Too few nodes for the copies wanted.
    NoTargetNode,
    /// A disk would be filled above the limit.
    DiskProjected,
    /// A shard has no other caught-up voter that may lead.
    NoFollower,
    /// A node that could take something is being drained.
    Draining,
    /// A node that could take something is in maintenance.
    Maintenance,
    /// A node that could take something is silent.
    Silent,
    /// A shard is too busy and can't be cut.
    HotEntity,
    /// There is no such node.
    NoSuchNode,
    /// A shard has more copies than the planner handles.
    TooManyCopies,
}

impl fmt::Display for BlockCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quorum => "QUORUM",
            Self::NoTargetZone => "NO_TARGET_ZONE",
            Self::NoTargetNode => "NO_TARGET_NODE",
            Self::DiskProjected => "DISK_PROJECTED",
            Self::NoFollower => "NO_FOLLOWER",
            Self::Draining => "DRAINING",
            Self::Maintenance => "MAINTENANCE",
            Self::Silent => "SILENT",
            Self::HotEntity => "HOT_ENTITY",
            Self::NoSuchNode => "NO_SUCH_NODE",
            Self::TooManyCopies => "TOO_MANY_COPIES",
        })
    }
}

/// Something that can't be done: what stands in the way, in numbers, and what to type next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blocker {
    /// Which kind.
    pub code: BlockCode,
    /// What stands in the way: a node, a zone, a shard.
    pub object: String,
    /// How many shards it concerns.
    pub shards: u64,
    /// One line for the operator.
    pub text: String,
    /// Commands that help.
    pub next: Vec<String>,
}

/// What a plan is to see to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goals {
    /// Make lost copies again.
    pub heal: bool,
    /// Empty nodes that are to be emptied.
    pub drain: bool,
    /// Put copies into different zones.
    pub zones: bool,
    /// Split shards.
    pub split: bool,
    /// Merge shards.
    pub merge: bool,
    /// Spread copies by number.
    pub replicas: bool,
    /// Spread copies by bytes.
    pub bytes: bool,
    /// Spread leaders.
    pub leaders: bool,
    /// Move what transfers of leaders can't even out.
    pub load: bool,
    /// Stop after this many steps.
    pub steps_max: Option<usize>,
    /// Stop spreading after this much. Unit: bytes.
    pub bytes_max: Option<u64>,
}

impl Goals {
    /// Everything.
    pub fn all() -> Self {
        Self {
            heal: true,
            drain: true,
            zones: true,
            split: true,
            merge: true,
            replicas: true,
            bytes: true,
            leaders: true,
            load: true,
            steps_max: None,
            bytes_max: None,
        }
    }

    /// Nothing, to add to.
    pub fn none() -> Self {
        Self {
            heal: false,
            drain: false,
            zones: false,
            split: false,
            merge: false,
            replicas: false,
            bytes: false,
            leaders: false,
            load: false,
            steps_max: None,
            bytes_max: None,
        }
    }

    /// What must be, and nothing for the sake of evenness: the driver while automatic rebalancing is off.
    pub fn needful() -> Self {
        Self {
            heal: true,
            drain: true,
            zones: true,
            ..Self::none()
        }
    }
}

/// Least, mean and most over the nodes that take part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Least.
    pub min: u64,
    /// Mean, rounded down.
    pub mean: u64,
    /// Most.
    pub max: u64,
}

impl Range {
    pub(super) fn of(values: impl Iterator<Item = u64>) -> Self {
        let (mut min, mut max, mut sum, mut count) = (u64::MAX, 0, 0u128, 0u128);
        for value in values {
            (min, max) = (min.min(value), max.max(value));
            sum += u128::from(value);
            count += 1;
        }
        if count == 0 {
            return Self::default();
        }
        Self {
            min,
            mean: (sum / count) as u64,
            max,
        }
    }

    /// How far the furthest is from the mean. Unit: a thousandth of the mean.
    pub fn deviation_permille(&self) -> u64 {
        let far = (self.max - self.mean).max(self.mean - self.min);
        (u128::from(far) * 1000).checked_div(u128::from(self.mean)).unwrap_or(0) as u64
    }
}

/// How evenly the nodes are used that may hold copies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// How many they are.
    pub nodes: u64,
    /// Copies.
    pub replicas: Range,
    /// Bytes of copies.
    pub bytes: Range,
    /// Shards led.
    pub leaders: Range,
    /// Requests per second to shards led.
    pub load: Range,
    /// Use of the disk. Unit: thousandths.
    pub disk_permille: Range,
}

/// How full a disk gets while a plan is carried out step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakDisk {
    /// The node.
    pub node: NodeId,
    /// Most that is used. Unit: bytes.
    pub peak: u64,
    /// Used at the end. Unit: bytes.
    pub after: u64,
    /// Its size. Unit: bytes.
    pub total: u64,
}

/// Something to know, which stands in nobody's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// A stable word.
    pub code: String,
    /// One line.
    pub text: String,
}

/// What to do, in order, and what it means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Version of the directory it was made for.
    pub version: u64,
    /// What to do.
    pub steps: Vec<Step>,
    /// What can't be done.
    pub refusals: Vec<Blocker>,
    /// What else there is to know: what is even already, and why something rests.
    pub notes: Vec<Note>,
    /// Before the first step.
    pub before: Spread,
    /// After the last.
    pub after: Spread,
    /// Copied over the network. Unit: bytes.
    pub bytes: u64,
    /// The disks, by node.
    pub disks: Vec<PeakDisk>,
    /// What can be lost before the first step.
    pub tolerance_before: Tolerance,
    /// The least on the way.
    pub tolerance_lowest: Tolerance,
    /// What can be lost after the last step.
    pub tolerance_after: Tolerance,
    /// How long it takes at the pace of the settings, from and to. Unit: ms.
    pub time_ms: (u64, u64),
}

impl Plan {
    /// How many steps there are for each reason.
    pub fn counts(&self) -> BTreeMap<Why, u64> {
        let mut counts = BTreeMap::new();
        for step in &self.steps {
            *counts.entry(step.why).or_default() += 1;
        }
        counts
    }
}

/// Plans everything that is to be done.
pub fn plan(view: &ClusterView, goals: &Goals) -> Plan {
    plan_with(view, goals, &[], &[])
}

/// Plans as if the operator wanted `intents` of nodes, around steps that are under way.
pub fn plan_with(view: &ClusterView, goals: &Goals, intents: &[(NodeId, Intent)], running: &[Step]) -> Plan {
    let mut draft = Draft::new(view, goals, intents, running);
    if goals.heal {
        draft.heal();
    }
    if goals.drain {
        draft.drain();
    }
    if goals.zones {
        draft.repair_zones();
    }
    if goals.split {
        draft.split();
    }
    if goals.merge {
        draft.merge();
    }
    if goals.replicas {
        draft.spread_replicas();
    }
    if goals.bytes {
        draft.spread_bytes();
    }
    if goals.leaders {
        draft.spread_leaders();
    }
    if goals.load {
        draft.spread_load();
    }
    draft.finish()
}

/// How much a runner does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Steps in all.
    pub total: u32,
    /// Copies that a node sends or receives.
    pub copies_per_node: u32,
    /// Steps without copies: transfers, splits, merges, removals.
    pub light: u32,
}

impl Limits {
    /// What the pace of the settings allows.
    pub fn of(view: &ClusterView) -> Self {
        let nodes = view.nodes.len() as u32;
        Self {
            total: (nodes * 4).max(8),
            copies_per_node: view.settings.pace.copies_per_node(),
            light: (nodes * 2).max(4),
        }
    }
}

/// The first steps that can begin now beside those that run. For a live view, every second: it plans no further than
/// there is room.
pub fn next_steps(view: &ClusterView, goals: &Goals, running: &[Step], limits: &Limits) -> Vec<Step> {
    let room = (limits.total as usize).saturating_sub(running.len());
    if room == 0 {
        return Vec::new();
    }
    // More than there is room for: some wait for a node or for an earlier step of their shard.
    let goals = Goals {
        steps_max: Some(goals.steps_max.unwrap_or(usize::MAX).min(room * 8 + 64)),
        ..goals.clone()
    };
    let plan = plan_with(view, &goals, &[], running);
    let leaders: BTreeMap<ShardId, NodeId> = if plan.steps.is_empty() {
        BTreeMap::new()
    } else {
        let wanted: BTreeSet<ShardId> = plan.steps.iter().chain(running).map(|step| step.shard).collect();
        let leads = |shard: &super::view::ShardView| Some((shard.id, shard.leader?));
        let led = view.shards.iter().filter(|shard| wanted.contains(&shard.id));
        led.filter_map(leads).collect()
    };
    let mut copies: BTreeMap<NodeId, u32> = BTreeMap::new();
    let ends = |step: &Step| {
        let receiver = step.receiver();
        let sender = receiver.and_then(|_| leaders.get(&step.shard).copied());
        receiver.into_iter().chain(sender)
    };
    let mut light = 0;
    let mut touched: BTreeSet<ShardId> = BTreeSet::new();
    for step in running {
        for node in ends(step) {
            *copies.entry(node).or_default() += 1;
        }
        light += u32::from(step.receiver().is_none());
        touched.extend(step.shards());
    }
    let mut chosen = Vec::new();
    for step in plan.steps {
        if chosen.len() == room {
            break;
        }
        let is_free = step.shards().all(|shard| !touched.contains(&shard));
        // Whether it begins now or not: a later step of the same shard waits for this one.
        touched.extend(step.shards());
        let has_room = match step.receiver() {
            None => light < limits.light,
            Some(_) => ends(&step).all(|node| copies.get(&node).copied().unwrap_or(0) < limits.copies_per_node),
        };
        if !is_free || !has_room {
            continue;
        }
        for node in ends(&step) {
            *copies.entry(node).or_default() += 1;
        }
        light += u32::from(step.receiver().is_none());
        chosen.push(step);
    }
    chosen
}
