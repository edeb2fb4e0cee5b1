//! Long operations on the cluster: what they are to reach, how they stand, what stops them. Each is kept by the directory
//! and goes on by itself; whoever started it only watches.
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{NodeId, OpId, ReplicaId, RequestId, ShardId};

/// What an operation is to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// A node leads nothing any more, and holds nothing where `everything` is asked for.
    Drain {
        /// The node.
        node: NodeId,
        /// Copies go too, not only leaderships.
        everything: bool,
    },
    /// A node holds nothing and is no member any more.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// What one node holds is on another one, and the first is no member any more.
    Replace {
        /// The node that goes.
        old: NodeId,
        /// The node that takes its place.
        new: NodeId,
    },
    /// The copies that a lost node held are made again elsewhere.
    Heal {
        /// The lost node.
        node: NodeId,
    },
    /// Copies and leaderships are spread evenly.
    Rebalance,
    /// A shard's copy is on another node.
    Move {
        /// The shard.
        shard: ShardId,
        /// Where it is.
        from: NodeId,
        /// Where it should be.
        to: NodeId,
    },
    /// A shard has one more copy.
    AddReplica {
        /// The shard.
        shard: ShardId,
        /// Where.
        to: NodeId,
    },
    /// A shard has one copy less.
    RemoveReplica {
        /// The shard.
        shard: ShardId,
        /// Where.
        from: NodeId,
    },
    /// Two neighbours are one shard.
    Merge {
        /// The shard that stays.
        left: ShardId,
        /// The shard that goes into it.
        right: ShardId,
    },
    /// A shard is cut at these keys.
    Split {
        /// The shard.
        shard: ShardId,
        /// First keys of the parts but the first, in order.
        at: Vec<String>,
    },
    /// Shards have this many copies.
    SetReplicas {
        /// Which shards.
        of: Scope,
        /// Copies of each; none: as rule and service say.
        replicas: Option<u32>,
    },
    /// The shards of a service are spread evenly over the nodes.
    Scatter {
        /// The service.
        service: String,
        /// Copies, by number and by bytes.
        bytes: bool,
        /// Leaderships.
        leaders: bool,
        /// Load: shards are moved where handing over their lead does not suffice.
        load: bool,
    },
}

/// A shard, or all shards of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// One.
    Shard(ShardId),
    /// All of a service.
    Service(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Shard(shard) => shard.fmt(f),
            Scope::Service(service) => f.pad(service),
        }
    }
}

impl Goal {
    /// One word, as in the column KIND.
    pub fn kind(&self) -> &'static str {
        match self {
            Goal::Drain { .. } => "drain",
            Goal::Leave { .. } => "leave",
            Goal::Replace { .. } => "replace",
            Goal::Heal { .. } => "heal",
            Goal::Rebalance => "rebalance",
            Goal::Move { .. } => "move",
            Goal::AddReplica { .. } => "add-replica",
            Goal::RemoveReplica { .. } => "remove-replica",
            Goal::Merge { .. } => "merge",
            Goal::Split { .. } => "split",
            Goal::SetReplicas { .. } => "set-replicas",
            Goal::Scatter { .. } => "scatter",
        }
    }

    /// What it is about, as in the column OBJECT.
    pub fn object(&self) -> String {
        match self {
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } => node.to_string(),
            Goal::Replace { old, new } => format!("{old} with {new}"),
            Goal::Rebalance => "cluster".to_owned(),
            Goal::Move { shard, from, to } => format!("{shard} {from} to {to}"),
            Goal::AddReplica { shard, to } => format!("{shard} on {to}"),
            Goal::RemoveReplica { shard, from } => format!("{shard} from {from}"),
            Goal::Merge { left, right } => format!("{left} and {right}"),
            Goal::Split { shard, at } => match &at[..] {
                [one] => format!("{shard} at {one}"),
                more => format!("{shard} into {}", more.len() + 1),
            },
            Goal::SetReplicas { of, replicas } => match replicas {
                Some(replicas) => format!("{of} to {replicas}"),
                None => format!("{of} as its rule says"),
            },
            Goal::Scatter { service, .. } => service.clone(),
        }
    }

    /// The node that all copies go from, if any.
    pub fn emptied(&self) -> Option<NodeId> {
        let takes_copies = !matches!(self, Goal::Drain { everything: false, .. });
        self.node().filter(|_| takes_copies)
    }

    /// The node whose copies or leaderships it takes away, if any.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } => Some(*node),
            Goal::Replace { old, .. } => Some(*old),
            _ => None,
        }
    }

    /// Shards that it changes and names.
    pub fn shards(&self) -> Vec<ShardId> {
        match self {
            Goal::Move { shard, .. }
            | Goal::AddReplica { shard, .. }
            | Goal::RemoveReplica { shard, .. }
            | Goal::Split { shard, .. }
            | Goal::SetReplicas {
                of: Scope::Shard(shard),
                ..
            } => {
                vec![*shard]
            }
            Goal::Merge { left, right } => vec![*left, *right],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.object())
    }
}

/// How fast copies are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Hardly felt.
    Gentle,
    /// The usual one.
    #[default]
    Normal,
    /// Gets done.
    Fast,
}

impl Pace {
    /// What a node sends and receives for copies. Unit: bytes per second and direction.
    pub fn bytes_per_second(self) -> u64 {
        match self {
            Self::Gentle => 8 << 20,
            Self::Normal => 32 << 20,
            Self::Fast => 128 << 20,
        }
    }

    /// How many steps with copies a node takes part in at a time.
    pub fn copies_per_node(self) -> u32 {
        match self {
            Self::Gentle => 1,
            Self::Normal => 2,
            Self::Fast => 4,
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gentle => "gentle",
            Self::Normal => "normal",
            Self::Fast => "fast",
        })
    }
}

/// Where an operation stands. That something stops it is not a state: see [`OpView::blocked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpState {
    /// Checked, and not started.
    Planned,
    /// Under way.
    Running,
    /// Begins nothing new until it is resumed.
    Paused,
    /// Has reached its goal.
    Done,
    /// Can't reach its goal; the result says why.
    Failed,
    /// Was given up.
    Cancelled,
    /// Was done, and then taken back.
    Undone,
}

impl OpState {
    /// Whether it has come to an end.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            OpState::Done | OpState::Failed | OpState::Cancelled | OpState::Undone
        )
    }
}

impl fmt::Display for OpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Undone => "undone",
        })
    }
}

/// An operation, as the directory keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Its name.
    pub id: OpId,
    /// What it is to reach.
    pub goal: Goal,
    /// How fast.
    pub pace: Pace,
    /// Copies slow down while writes take longer than this (p99), 0: the settings say. Unit: us.
    pub protect_p99_us: u64,
    /// Where it stands.
    pub state: OpState,
    /// Who started it: the name in a certificate, or `isx` by itself.
    pub by: String,
    /// Why, in that person's words.
    pub because: String,
    /// The request that started it: the same again attaches to it.
    pub request: RequestId,
    /// By the directory leader's wall clock: a label. Unit: ms since 1970.
    pub created_ms: u64,
    /// The same; 0 until it is over.
    pub ended_ms: u64,
    /// Steps that lay before it at the start. Unit: copies or leaderships.
    pub total: u64,
    /// Bytes that these copies have. Unit: bytes.
    pub total_bytes: u64,
    /// How it ended, in a sentence.
    pub result: String,
    /// The configuration in which it began.
    pub config_epoch: u64,
    /// The operation that takes it back, where there is one; as things were when it began.
    pub inverse: Option<Goal>,
    /// The operation that this one takes back.
    pub undoes: Option<OpId>,
}

/// What one shard is going through for an operation: at most one thing at a time, kept by the directory so that the next
/// leader goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The shard; in a merge the left one.
    pub shard: ShardId,
    /// For which operation.
    pub op: OpId,
    /// What.
    pub step: TaskStep,
}

/// See [`Task`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskStep {
    /// A copy is added, another one given up, or both in one.
    Swap {
        /// Where the new copy goes and what it is called; the directory names it.
        add: Option<(NodeId, ReplicaId)>,
        /// Where a copy is given up.
        remove: Option<NodeId>,
    },
    /// The shard takes over its right neighbour.
    Merge {
        /// The neighbour.
        right: ShardId,
    },
}

/// Something that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpBlocker {
    /// A stable word, such as `NO_TARGET_ZONE`.
    pub code: String,
    /// What it is about.
    pub object: String,
    /// In a sentence, with numbers.
    pub text: String,
    /// What to type next.
    pub next: String,
    /// Since when, by the directory leader's wall clock, where that is known. Unit: ms since 1970.
    pub since_ms: Option<u64>,
}

/// A part of an operation that comes before or after others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpPhase {
    /// In a few words.
    pub name: String,
    /// Done so far.
    pub done: u64,
    /// In all, as it looks now.
    pub total: u64,
}

/// How fast it goes, over the last minute and the last ten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpSpeed {
    /// Copied. Unit: bytes per second.
    pub bytes_per_s: (u64, u64),
    /// Steps. Unit: steps per hour.
    pub steps_per_h: (u64, u64),
}

/// An operation and how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpView {
    /// As the directory keeps it.
    pub op: Op,
    /// Steps done. Unit: copies or leaderships.
    pub done: u64,
    /// Steps in all, as it looks now.
    pub total: u64,
    /// Bytes copied. Unit: bytes.
    pub done_bytes: u64,
    /// Bytes to be copied in all, as it looks now. Unit: bytes.
    pub total_bytes: u64,
    /// How fast it goes.
    pub speed: OpSpeed,
    /// What comes first and what then.
    pub phases: Vec<OpPhase>,
    /// How much longer it takes, least and most; absent while nothing is known. Unit: s.
    pub eta_s: Option<(u64, u64)>,
    /// What limits it, in a few words.
    pub limited_by: String,
    /// Steps under way.
    pub steps: Vec<String>,
    /// What stands in the way.
    pub blocked: Vec<OpBlocker>,
    /// How many nodes may be lost without refusing writes: now, at the lowest on the way, afterwards.
    pub tolerance: (u32, u32, u32),
}

/// What an operator does to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpAction {
    /// Begin nothing new.
    Pause,
    /// Go on.
    Resume,
    /// Give it up; what is half done is finished or taken back.
    Cancel,
    /// Faster or slower.
    SetPace(Pace),
}

/// What the operator wants of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// Take part.
    #[default]
    Stay,
    /// Hand over leaders, keep copies: it is about to be restarted. Ends with `undrain` only.
    DrainLeaders,
    /// Hand over everything. A drained node gets nothing back until `undrain`, or is gone.
    DrainAll,
}

/// What lies over a node's membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// What the operator wants of it.
    pub intent: Intent,
    /// Until then what it holds is not healed, and nothing is moved to it; by wall clock, 0: not in maintenance.
    /// Unit: ms since 1970.
    pub maintenance_until_ms: u64,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// A change of what the operator wants of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeChange {
    /// Take part again: ends a drain, under way or done.
    Undrain,
    /// Remain a member: ends a leave before its point of no return.
    Stay,
    /// Set labels (`None` removes one); `zone` is the failure domain.
    Label(BTreeMap<String, Option<String>>),
    /// Not to be healed until then; 0 ends it. Unit: ms since 1970.
    Maintenance(u64),
    /// A dead node that holds nothing is no member any more.
    Forget,
}

/// What the operator may set for the cluster; replicated, in effect at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// A node silent for this long has its copies made again elsewhere. Unit: ms.
    pub heal_after_ms: u64,
    /// No disk is filled above this by moving copies. Unit: percent.
    pub disk_limit_percent: u32,
    /// Spreading begins when a node is further than this from its share. Unit: percent. It ends at less than half of
    /// it, so that what was just spread is left alone.
    pub hysteresis_percent: u32,
    /// A shard that was moved to spread things is not moved again for that reason within this time. Unit: ms.
    pub cooldown_ms: u64,
    /// How fast copies are made where the operation does not say.
    pub pace: Pace,
    /// Copies slow down while writes take longer than this (p99), 0: never. Unit: us.
    pub protect_p99_us: u64,
    /// Spread copies and leaderships without being asked.
    pub auto_rebalance: bool,
    /// Split and merge shards without being asked.
    pub auto_split: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heal_after_ms: 300_000,
            disk_limit_percent: 85,
            hysteresis_percent: 5,
            cooldown_ms: 600_000,
            pace: Pace::Normal,
            protect_p99_us: 0,
            auto_rebalance: true,
            auto_split: true,
        }
    }
}
