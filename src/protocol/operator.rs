//! What an operator asks of the directory's leader beyond operations: plans, rules, marks of shards, the router's settings.
//!
//! What is kept of it ([`Policy`]) travels with the map, so that every node and client follows it within seconds.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{NodeId, ShardId};
use super::op::{Goal, OpBlocker, Pace};
use super::shard_map::ShardDescriptor;

/// What the operator has laid down; replicated, part of every map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How requests are routed.
    pub router: RouterSettings,
    /// Where copies and leaders should be, by the rule's name.
    pub rules: BTreeMap<String, PlacementRule>,
    /// What holds for single shards.
    pub marks: BTreeMap<ShardId, ShardMarks>,
}

/// How requests find their shard, at every node and in every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSettings {
    /// Times a request is handed on from node to node before it is given back.
    pub hops: u8,
    /// A map that is older than this is asked for anew where it is used; what a map lacks is learnt by being corrected,
    /// so this bounds how long it may lack it. Unit: ms.
    pub map_refresh_ms: u64,
    /// Whoever has to repeat a request waits this long first, and twice as long each time. Unit: ms.
    pub retry_ms: u64,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            hops: 3,
            map_refresh_ms: 10_000,
            retry_ms: 20,
        }
    }
}

impl RouterSettings {
    /// Why these settings can't be.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, low: u64, high: u64| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}, and must be from {low} to {high}")),
        };
        within("hops", self.hops.into(), 1, 16)?;
        within("map-refresh (ms)", self.map_refresh_ms, 200, 3_600_000)?;
        within("retry (ms)", self.retry_ms, 1, 1_000)
    }
}

/// Copies, zones and leaders of the shards of a service, or of those within a prefix of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRule {
    /// Its name.
    pub name: String,
    /// The service; none: all of them.
    pub service: Option<String>,
    /// Only shards that hold no keys but those with this prefix.
    pub prefix: Option<String>,
    /// Copies of each shard; none: as the service says.
    pub replicas: Option<u32>,
    /// The copies are in at least this many zones; 0 and 1: anywhere.
    pub zones: u32,
    /// Leaders are in this zone where a copy is there and well.
    pub leader_zone: Option<String>,
}

impl PlacementRule {
    /// Service and prefix, as the operator reads it.
    pub fn scope(&self) -> String {
        scope(self.service.as_deref(), self.prefix.as_deref())
    }

    /// Whether it is about a shard of `service` that holds the keys from `start` to `end`, the last excluded.
    pub fn covers(&self, service: &str, start: &str, end: Option<&str>) -> bool {
        if self.service.as_deref().is_some_and(|mine| mine != service) {
            return false;
        }
        let Some(prefix) = &self.prefix else { return true };
        let ends_inside = || match (end, behind(prefix.as_bytes())) {
            (Some(end), Some(behind)) => end.as_bytes() <= behind.as_slice(),
            (_, behind) => behind.is_none(),
        };
        start.starts_with(prefix.as_str()) && ends_inside()
    }
}

/// `campaign/eu-*`.
pub fn scope(service: Option<&str>, prefix: Option<&str>) -> String {
    match (service, prefix) {
        (None, _) => "all".to_owned(),
        (Some(service), None) => service.to_owned(),
        (Some(service), Some(prefix)) => format!("{service}/{prefix}*"),
    }
}

/// The first key behind all keys with this prefix; none where there is no such key.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if last < u8::MAX {
            key.push(last + 1);
            return Some(key);
        }
    }
    None
}

impl Policy {
    /// The most specific rule for a shard: a service before all, a longer prefix before a shorter one, then by name.
    pub fn rule_of(&self, shard: &ShardDescriptor) -> Option<&PlacementRule> {
        let (service, start) = shard.range.start.parts();
        let end = match shard.range.end.parts() {
            (same, Some(end)) if same == service => Some(end),
            _ => None,
        };
        let weight = |rule: &PlacementRule| (rule.service.is_some(), rule.prefix.as_ref().map_or(0, String::len));
        let mut best: Option<&PlacementRule> = None;
        for rule in self.rules.values() {
            let covers = rule.covers(service, start.unwrap_or_default(), end);
            if covers && best.is_none_or(|best| weight(rule) > weight(best)) {
                best = Some(rule);
            }
        }
        best
    }

    /// Copies wanted of a shard, where a mark or a rule says so.
    pub fn replicas_of(&self, shard: &ShardDescriptor) -> Option<u32> {
        let marked = self.marks.get(&shard.id).and_then(|marks| marks.replicas);
        marked.or_else(|| self.rule_of(shard)?.replicas)
    }
}

/// What holds for one shard by an operator's word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMarks {
    /// Copies, whatever the rule says.
    pub replicas: Option<u32>,
    /// Who leads it.
    pub pin: Option<Pin>,
    /// Not merged until then, by the directory's wall clock. Unit: ms since 1970; 0: never kept from merging.
    pub sticky_until_ms: u64,
}

impl ShardMarks {
    /// Whether they say nothing any more.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Without what has run out.
    pub fn at(&self, wall_ms: u64) -> Self {
        Self {
            replicas: self.replicas,
            pin: self.pin.filter(|pin| pin.until_ms > wall_ms),
            sticky_until_ms: if self.sticky_until_ms > wall_ms {
                self.sticky_until_ms
            } else {
                0
            },
        }
    }
}

/// A shard is led by this node, while it can, for some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The node.
    pub node: NodeId,
    /// By the directory's wall clock. Unit: ms since 1970.
    pub until_ms: u64,
}

/// A change of a shard's marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MarkChange {
    /// This node leads it.
    Pin(Pin),
    /// Whoever leads it.
    Unpin,
    /// Not merged until then; 0: may be merged. Unit: ms since 1970.
    Sticky(u64),
}

/// What is asked and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// What an operation would do; answered with [`PlanView`].
    Plan {
        /// What it is to reach.
        goal: Goal,
        /// How fast.
        pace: Option<Pace>,
        /// The configuration that an earlier plan was made for: refused if it is another one now.
        at: Option<u64>,
    },
    /// All rules, and whether they hold.
    Rules,
    /// Whether a rule could be met.
    CheckRule(PlacementRule),
    /// In which order nodes can be restarted, some at a time.
    RestartOrder {
        /// Most nodes at a time.
        max_parallel: u32,
    },
}

/// What is told and changes the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// A rule, new or instead of the one with its name.
    SetRule {
        /// The rule.
        rule: PlacementRule,
        /// Although it can't be met now.
        unmet: bool,
    },
    /// No such rule any more.
    RemoveRule(String),
    /// Something about one shard.
    Mark {
        /// Which.
        shard: ShardId,
        /// What.
        change: MarkChange,
    },
    /// How requests are routed.
    SetRouter(RouterSettings),
    /// A node that waits to be let in: in, or away.
    Admit {
        /// Which.
        node: NodeId,
        /// In.
        yes: bool,
    },
}

/// A rule against the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub scope: String,
    /// Copies.
    pub replicas: u32,
    /// Zones.
    pub zones: u32,
    /// Zone of leaders.
    pub leader_zone: Option<String>,
    /// Shards that follow it.
    pub shards: u64,
    /// Whether it was set by an operator, and does not come from the service.
    pub is_set: bool,
    /// Whether it holds, and why not.
    pub now: (bool, String),
    /// After losing the worst node.
    pub after_node: (bool, String),
    /// After losing the worst zone.
    pub after_zone: (bool, String),
}

/// A disk, as a plan changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDisk {
    /// The node.
    pub node: NodeId,
    /// Most that is used on the way. Unit: bytes.
    pub peak: u64,
    /// Used afterwards. Unit: bytes.
    pub after: u64,
    /// Its size. Unit: bytes.
    pub total: u64,
}

/// How many nodes and zones may be lost without a shard that refuses writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTolerance {
    /// Nodes.
    pub nodes: u32,
    /// Zones.
    pub zones: u32,
}

/// A plan: what an operation would do, at one configuration of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// The configuration it was made for: it is applied at this one or refused.
    pub config_epoch: u64,
    /// When it was made, by the directory's wall clock. Unit: ms since 1970.
    pub made_ms: u64,
    /// What it is to reach.
    pub goal: Goal,
    /// How fast.
    pub pace: Pace,
    /// What is done, in order; the first [`PLAN_STEPS_MAX`].
    pub steps: Vec<String>,
    /// How many steps there are.
    pub steps_total: u64,
    /// Copied over the network. Unit: bytes.
    pub bytes: u64,
    /// The disks.
    pub disks: Vec<PlanDisk>,
    /// What may be lost before the first step, at the lowest on the way, and after the last step.
    pub tolerance: (PlanTolerance, PlanTolerance, PlanTolerance),
    /// How long it takes, least and most. Unit: s.
    pub time_s: (u64, u64),
    /// From where on there is no way back.
    pub no_return: String,
    /// The operation that takes it back.
    pub inverse: Option<Goal>,
    /// How to take it back, as a command or a sentence.
    pub undo: String,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// Steps that a plan names. Unit: steps.
pub const PLAN_STEPS_MAX: usize = 10_000;

/// A change of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// The configuration that it made.
    pub epoch: u64,
    /// When, by the directory's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// What, in a sentence.
    pub text: String,
}

/// The answer to a [`Question`] or an [`Order`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// To `Plan`.
    Plan(Box<PlanView>),
    /// To `Rules`, to `CheckRule` (the rule as it would be), and to an order about a rule.
    Rules {
        /// Rules.
        rules: Vec<RuleView>,
        /// Why the rule that was asked about can't be met.
        blockers: Vec<OpBlocker>,
    },
    /// To `RestartOrder`: groups of nodes that may be down together, one group after another.
    Batches(Vec<Vec<NodeId>>),
    /// To `Mark`.
    Marks(ShardMarks),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::Epoch;
    use crate::protocol::key::{KeyRange, Position};

    fn shard(service: &str, start: &str, end: Option<&str>) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(1),
            range: KeyRange {
                start: Position::new(service, start),
                end: end.map_or_else(|| Position::end_of(service), |end| Position::new(service, end)),
            },
            epoch: Epoch(1),
            replicas: Vec::new(),
            frozen: None,
            held: None,
            absorbed: Vec::new(),
            newest_replica: Default::default(),
            quarantined: Default::default(),
        }
    }

    #[test]
    fn the_most_specific_rule_that_covers_the_whole_shard_wins() {
        let mut policy = Policy::default();
        for (name, service, prefix) in [
            ("all", None, None),
            ("campaigns", Some("campaign"), None),
            ("eu", Some("campaign"), Some("eu-")),
            ("eu-de", Some("campaign"), Some("eu-de-")),
        ] {
            let rule = PlacementRule {
                name: name.into(),
                service: service.map(Into::into),
                prefix: prefix.map(Into::into),
                ..PlacementRule::default()
            };
            policy.rules.insert(name.into(), rule);
        }
        let name = |service, start, end| {
            let shard = shard(service, start, end);
            policy.rule_of(&shard).map(|rule| rule.name.clone()).unwrap_or_default()
        };
        assert_eq!(name("profile", "", None), "all");
        assert_eq!(name("campaign", "", None), "campaigns");
        assert_eq!(name("campaign", "eu-a", Some("eu-m")), "eu");
        assert_eq!(name("campaign", "eu-de-a", Some("eu-de.")), "eu-de");
        assert_eq!(name("campaign", "eu-a", Some("eu.")), "eu");
        // It holds keys behind the prefix too.
        assert_eq!(name("campaign", "eu-a", Some("f")), "campaigns");
        assert_eq!(name("campaign", "eu-a", None), "campaigns");
    }

    #[test]
    fn marks_run_out() {
        let node = NodeId(2);
        let marks = ShardMarks {
            replicas: None,
            pin: Some(Pin { node, until_ms: 100 }),
            sticky_until_ms: 200,
        };
        assert_eq!(marks.at(99), marks);
        assert_eq!(marks.at(100).pin, None);
        assert!(!marks.at(199).is_empty() && marks.at(200).is_empty());
    }
}
