//! Rules: how many copies, over how many zones, led from where; and whether they hold, now and after a loss.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::{Quorum, majority};
use super::view::{ClusterView, ShardView};
use crate::protocol::operator;

/// What holds for the shards of a service, or for those within a prefix of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// The service; none: all of them.
    pub service: Option<String>,
    /// Only shards that hold no keys but those with this prefix.
    pub prefix: Option<String>,
    /// Copies wanted.
    pub replicas: u32,
    /// The copies are in at least this many zones. They are spread over more where there are more; this is the number
    /// below which a drain is refused.
    pub zones: u32,
    /// Leaders are in this zone where a copy is there and well.
    pub leader_zone: Option<String>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            service: None,
            prefix: None,
            replicas: 3,
            zones: 1,
            leader_zone: None,
        }
    }
}

impl Rule {
    /// Service and prefix, as the operator reads it.
    pub fn scope(&self) -> String {
        operator::scope(self.service.as_deref(), self.prefix.as_deref())
    }
}

/// Whether a rule holds, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// It holds.
    pub holds: bool,
    /// `yes`, or `no:` and the reason.
    pub text: String,
}

impl Verdict {
    fn of(reasons: Vec<String>) -> Self {
        if reasons.is_empty() {
            return Self {
                holds: true,
                text: "yes".to_owned(),
            };
        }
        Self {
            holds: false,
            text: format!("no: {}", reasons.join("; ")),
        }
    }
}

/// One rule against the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleReport {
    /// Name.
    pub rule: String,
    /// What it is about.
    pub scope: String,
    /// Shards under it.
    pub shards: u64,
    /// Every shard has its copies and zones.
    pub now: Verdict,
    /// Whichever node is lost: every shard goes on, and the rule can be met again by what is left.
    pub after_node: Verdict,
    /// The same for a zone.
    pub after_zone: Verdict,
}

/// All rules against the cluster, in their order.
pub fn check(view: &ClusterView) -> Vec<RuleReport> {
    let rules: Vec<Rule> = if view.rules.is_empty() {
        vec![Rule::default()]
    } else {
        view.rules.clone()
    };
    let mut tallies: Vec<Tally> = rules.iter().map(|_| Tally::default()).collect();
    let last = tallies.len() - 1;
    for shard in &view.shards {
        let at = usize::from(shard.rule).min(last);
        tallies[at].count(view, shard, &rules[at]);
    }
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for node in view.nodes.iter().filter(|node| node.is_target()) {
        *zones.entry(node.zone.as_str()).or_default() += 1;
    }
    let nodes: usize = zones.values().sum();
    let largest = zones.values().max().copied().unwrap_or(0);
    // Losing a node costs a zone too where a zone has but one.
    let lonely = usize::from(zones.values().any(|&count| count == 1));
    let report = |(rule, tally): (&Rule, Tally)| RuleReport {
        rule: rule.name.clone(),
        scope: rule.scope(),
        shards: tally.shards,
        now: tally.now(),
        after_node: tally.after(rule, tally.node_fatal, nodes.saturating_sub(1), zones.len() - lonely),
        after_zone: tally.after(
            rule,
            tally.zone_fatal,
            nodes.saturating_sub(largest),
            zones.len().saturating_sub(1),
        ),
    };
    rules.iter().zip(tallies).map(report).collect()
}

#[derive(Default)]
struct Tally {
    shards: u64,
    too_few: u64,
    too_near: u64,
    without_quorum: u64,
    node_fatal: u64,
    zone_fatal: u64,
}

impl Tally {
    fn count(&mut self, view: &ClusterView, shard: &ShardView, rule: &Rule) {
        let quorum = Quorum::of(view, shard);
        self.shards += 1;
        self.too_few += u64::from(quorum.good < rule.replicas);
        self.too_near += u64::from((quorum.zones.len() as u32) < rule.zones.min(rule.replicas));
        self.without_quorum += u64::from(quorum.good < majority(quorum.voters));
        self.node_fatal += u64::from(quorum.spare_nodes() == 0);
        self.zone_fatal += u64::from(quorum.spare_zones() == 0);
    }

    fn now(&self) -> Verdict {
        let mut reasons = Vec::new();
        for (count, what) in [
            (self.without_quorum, "without a majority"),
            (self.too_few, "with too few copies"),
            (self.too_near, "in too few zones"),
        ] {
            if count > 0 {
                reasons.push(format!("{count} {} {what}", plural(count, "shard")));
            }
        }
        Verdict::of(reasons)
    }

    fn after(&self, rule: &Rule, fatal: u64, nodes: usize, zones: usize) -> Verdict {
        let mut reasons = Vec::new();
        if fatal > 0 {
            reasons.push(format!("{fatal} {} would refuse writes", plural(fatal, "shard")));
        }
        if nodes < rule.replicas as usize {
            reasons.push(format!(
                "{nodes} {} for {} copies",
                plural(nodes as u64, "node"),
                rule.replicas
            ));
        }
        if zones < rule.zones as usize {
            reasons.push(format!("{zones} of {} zones", rule.zones));
        }
        Verdict::of(reasons)
    }
}

/// The word, with an s unless there is one.
pub(super) fn plural(count: u64, word: &str) -> String {
    if count == 1 {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}
