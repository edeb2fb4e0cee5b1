//! How the cluster is: every node asked directly, whatever answers is shown.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::exit;
use super::health::Severity;
use super::output::{size, span, timestamp};
use super::{Ended, Environment};
use crate::client::ClientError;
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::op::OpView;
use crate::protocol::operator::Policy;
use crate::protocol::request::{NodeStatus, ReplicaStatus};
use crate::protocol::shard_map::{NodeInfo, ReplicaDescriptor, ServiceInfo, ShardDescriptor};

/// What all nodes that answered know together.
pub(super) struct Cluster {
    pub(super) nodes: Vec<NodeInfo>,
    pub(super) answered: BTreeMap<NodeId, NodeStatus>,
    pub(super) silent: BTreeMap<NodeId, String>,
    /// By id; each the newest descriptor anybody told.
    pub(super) shards: BTreeMap<ShardId, ShardDescriptor>,
    pub(super) services: Vec<ServiceInfo>,
    /// What operators laid down.
    pub(super) policy: Policy,
    pub(super) name: String,
    /// When the answers were in. Unit: ms since 1970.
    pub(super) as_of_ms: u64,
}

/// Messages between entities, as the leaders of their shards count them.
pub(super) struct Messages {
    /// Not known to be applied.
    pub(super) outstanding: u64,
    /// How long the oldest of them has waited, as far as its present leader knows. Unit: ms.
    pub(super) oldest_ms: u64,
    /// Pairs whose sending somebody stopped.
    pub(super) parked: u64,
    /// Tentative operations that are open.
    pub(super) tentative: u64,
    /// Taken by receivers since the nodes started.
    pub(super) applied: u64,
    /// Those of them that were refused.
    pub(super) refused: u64,
    /// Taken by receivers each second, over the last seconds.
    pub(super) per_s: u64,
}

impl Messages {
    fn json(&self) -> Value {
        json!({"perSecond": self.per_s, "outstanding": self.outstanding, "oldestMs": self.oldest_ms,
               "parkedPairs": self.parked, "tentative": self.tentative, "applied": self.applied,
               "refused": self.refused})
    }

    fn line(&self) -> String {
        let oldest = match (self.outstanding, self.oldest_ms) {
            (0, _) => "none outstanding".to_owned(),
            (n, ms) => format!("{n} outstanding, the oldest for {}", span(ms)),
        };
        let (rate, parked, tentative) = (self.per_s, self.parked, self.tentative);
        format!("messages  {rate}/s; {oldest}; parked pairs {parked}; tentative {tentative}\n")
    }
}

/// A node has this long to answer, or four times what connecting took where the link is slow: one that is down must not
/// hold up the picture of the others.
const NODE_LIMIT: Duration = Duration::from_millis(600);

/// How one shard is.
pub(super) struct ShardHealth<'a> {
    pub(super) shard: &'a ShardDescriptor,
    /// The status of the copy that leads, as it sees itself.
    pub(super) leader: Option<(NodeId, &'a ReplicaStatus)>,
    /// Voters that answered.
    pub(super) up: usize,
    pub(super) voters: usize,
    /// Entries that the slowest copy is behind its leader.
    pub(super) lag: u64,
}

impl ShardHealth<'_> {
    /// Voters that may still go before the shard refuses writes; negative: it does already.
    pub(super) fn tolerance(&self) -> i64 {
        self.up as i64 - (self.voters / 2 + 1) as i64
    }

    pub(super) fn state(&self) -> &'static str {
        if self.tolerance() < 0 {
            "no quorum"
        } else if self.leader.is_none() {
            "electing"
        } else if self.up < self.voters {
            "under-replicated"
        } else if self.lag > BEHIND_ENTRIES {
            "catching up"
        } else {
            "ok"
        }
    }
}

const BEHIND_ENTRIES: u64 = 2_000;

impl Cluster {
    pub(super) async fn ask(env: &Environment) -> Result<Self, exit::CtlError> {
        let began = Instant::now();
        let client = env.connect().await?;
        let limit = NODE_LIMIT.max(began.elapsed() * 4).min(env.cli.timeout);
        let (mut nodes, mut answered, mut silent) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut shards: BTreeMap<ShardId, ShardDescriptor> = BTreeMap::new();
        for (node, status) in client.statuses_within(limit).await {
            match status {
                Ok(status) => {
                    answered.insert(node.id, status);
                }
                Err(error) => {
                    silent.insert(node.id, why(error));
                }
            }
            nodes.push(node);
        }
        let map = client.cached_map();
        let told = answered
            .values()
            .flat_map(|status| status.replicas.iter().map(|replica| &replica.shard));
        for shard in map.shards.iter().chain(told) {
            let known = shards.entry(shard.id).or_insert_with(|| shard.clone());
            if known.epoch < shard.epoch {
                *known = shard.clone();
            }
        }
        let context = env.cli.context.clone();
        let name = context
            .or_else(current_context)
            .unwrap_or_else(|| client.cluster().to_string());
        client.close().await;
        let as_of_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis() as u64;
        Ok(Self {
            as_of_ms,
            nodes,
            answered,
            silent,
            shards,
            services: map.services,
            policy: *map.policy,
            name,
        })
    }

    pub(super) fn health_of<'a>(&'a self, shard: &'a ShardDescriptor) -> ShardHealth<'a> {
        let of = |node: NodeId| {
            let status = self.answered.get(&node)?;
            status.replicas.iter().find(|replica| replica.shard.id == shard.id)
        };
        let is_up = |replica: &&ReplicaDescriptor| of(replica.node).is_some() && !shard.is_quarantined(replica.id);
        let voters: Vec<&ReplicaDescriptor> = shard.replicas.iter().filter(|r| r.role.votes()).collect();
        let copies = shard
            .replicas
            .iter()
            .filter_map(|replica| Some((replica.node, of(replica.node)?)));
        // Two may think so for a moment; the higher term is right.
        let leader = copies
            .clone()
            .filter(|(_, status)| status.state == "leader")
            .max_by_key(|(_, status)| status.term);
        let last = leader.map_or(0, |(_, status)| status.committed);
        let lag = copies
            .map(|(_, status)| last.saturating_sub(status.applied))
            .max()
            .unwrap_or(0);
        ShardHealth {
            shard,
            leader,
            up: voters.iter().copied().filter(is_up).count(),
            voters: voters.len(),
            lag: if leader.is_some() { lag } else { 0 },
        }
    }

    /// Shards in key order, the directory first.
    pub(super) fn in_order(&self) -> Vec<ShardHealth<'_>> {
        let mut shards: Vec<&ShardDescriptor> = self.shards.values().collect();
        shards.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        shards.into_iter().map(|shard| self.health_of(shard)).collect()
    }

    /// How it stands with messages between entities, over the nodes that answered.
    pub(super) fn messages(&self) -> Messages {
        let counted = |name: &str| {
            let of = move |status: &NodeStatus| {
                let mut counters = status.counters.iter();
                counters.find(|(known, _)| known == name).map_or(0, |(_, n)| *n)
            };
            self.answered.values().map(of).collect::<Vec<u64>>()
        };
        let sum = |name: &str| counted(name).into_iter().sum();
        Messages {
            outstanding: sum("messages_outstanding"),
            oldest_ms: counted("messages_oldest_ms").into_iter().max().unwrap_or(0),
            parked: sum("messages_parked_pairs"),
            tentative: sum("messages_tentative"),
            applied: sum("messages_applied"),
            refused: sum("messages_refused"),
            per_s: sum("messages_per_s"),
        }
    }

    pub(super) fn node_name(&self, id: NodeId) -> String {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .map_or_else(|| id.to_string(), |node| node.name.clone())
    }
}

impl Cluster {
    /// On standard error, so that a list's readers know what it lacks.
    pub(super) fn say_who_is_missing(&self, env: &Environment) {
        for (node, why) in &self.silent {
            env.say(&format!("{} does not answer: {why}", self.node_name(*node)));
        }
    }

    /// What a JSON answer says of where it comes from.
    pub(super) fn envelope(&self) -> Vec<(&'static str, Value)> {
        let names = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| self.node_name(node)).collect::<Vec<_>>();
        let because: serde_json::Map<String, Value> = self
            .silent
            .iter()
            .map(|(node, why)| (self.node_name(*node), json!(why)))
            .collect();
        let mut envelope = vec![
            ("asOf", json!(timestamp(self.as_of_ms))),
            ("answeredBy", json!(names(self.answered.keys().copied().collect()))),
            ("missing", json!(names(self.silent.keys().copied().collect()))),
        ];
        if !because.is_empty() {
            envelope.push(("missingBecause", because.into()));
        }
        envelope
    }
}

/// Why a node did not answer, without naming it again.
fn why(error: ClientError) -> String {
    match error {
        ClientError::Unreachable { tried } if tried.len() == 1 => tried.into_iter().map(|(_, what)| what).collect(),
        ClientError::TimedOut { last, .. } => last,
        other => other.to_string(),
    }
}

fn current_context() -> Option<String> {
    use crate::client::context::Contexts;
    let path = Contexts::path(|variable| std::env::var(variable).ok()).ok()?;
    Contexts::read(&path).ok()?.current
}

/// Operations that are not over; none where the directory does not say so at once.
async fn under_way(env: &Environment) -> Option<Vec<OpView>> {
    let asked = async {
        let client = env.connect().await.ok()?;
        let ops = super::ops::ops(&client, false).await.ok();
        client.close().await;
        ops
    };
    tokio::time::timeout(NODE_LIMIT, asked).await.ok().flatten()
}

pub(super) async fn status(env: &Environment, exit_code: bool) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let work = under_way(env).await;
    let shards = cluster.in_order();
    let count = |state: &str| shards.iter().filter(|shard| shard.state() == state).count();
    let (no_quorum, electing, under, behind) = (
        count("no quorum"),
        count("electing"),
        count("under-replicated"),
        count("catching up"),
    );
    let tolerance = shards.iter().map(ShardHealth::tolerance).min().unwrap_or(0);
    let findings = cluster.findings();
    let worst = findings.iter().map(|finding| finding.severity).max();
    let word = Severity::word(worst);
    let sum = |of: fn(&ReplicaStatus) -> u64| -> u64 {
        shards
            .iter()
            .filter_map(|shard| shard.leader.map(|(_, status)| of(status)))
            .sum()
    };
    let (entities, bytes, rate) = (sum(|r| r.entities), sum(|r| r.bytes), sum(|r| r.requests_per_s));
    let store: u64 = cluster.answered.values().map(|status| status.store_bytes).sum();
    let services: BTreeSet<&str> = shards
        .iter()
        .map(|shard| shard.shard.range.service())
        .filter(|service| !service.is_empty())
        .collect();
    let versions: BTreeSet<&str> = cluster
        .answered
        .values()
        .map(|status| status.version.as_str())
        .collect();
    let directory = cluster.answered.values().find_map(|status| status.directory_leader);

    if env.format().is_json() {
        let mut value = json!({"schema": "isx.status/1"});
        for (name, part) in cluster.envelope() {
            value[name] = part;
        }
        let findings: Vec<Value> = findings
            .iter()
            .map(|f| {
                json!({"code": f.code, "severity": Severity::word(Some(f.severity)), "sinceMs": f.since_ms, "what": f.what,
                       "next": f.next})
            })
            .collect();
        let rest = json!({
            "cluster": cluster.name, "health": word, "findings": findings, "tolerance": {"nodes": tolerance},
            "nodes": {"total": cluster.nodes.len(), "up": cluster.answered.len()},
            "shards": {"total": shards.len(), "noQuorum": no_quorum, "electing": electing, "underReplicated": under,
                       "catchingUp": behind},
            "data": {"entities": entities, "bytes": bytes, "storeBytes": store}, "traffic": {"perSecond": rate},
            "messages": cluster.messages().json(),
            "work": work.as_ref().map(|work| work.iter().map(super::op_view::view_json).collect::<Vec<_>>()),
            "directoryLeader": directory.map(|node| cluster.node_name(node)),
        });
        if let (Some(value), Value::Object(rest)) = (value.as_object_mut(), rest) {
            value.extend(rest);
        }
        env.print_json(&value)?;
    } else {
        let mut text = format!(
            "cluster   {}   isx {}   {}, {} of {} nodes answered\n",
            cluster.name,
            versions.iter().copied().collect::<Vec<_>>().join(", "),
            timestamp(cluster.as_of_ms),
            cluster.answered.len(),
            cluster.nodes.len()
        );
        text += &match &findings[..] {
            [] => format!("health    {word}\n"),
            [one] => format!("health    {word}  {}  {}\n", one.code, one.what),
            more => format!("health    {word}  {} findings, below\n", more.len()),
        };
        text += &match tolerance {
            i64::MIN..0 => "tolerance writes to some shards are refused: too few copies are up\n".to_owned(),
            0 => "tolerance no further node may be lost without refusing writes\n".to_owned(),
            n => format!(
                "tolerance can lose {n} more {} without refusing writes\n",
                if n == 1 { "node" } else { "nodes" }
            ),
        };
        let down: Vec<String> = cluster
            .silent
            .keys()
            .map(|&node| match cluster.silent_for_ms(node) {
                Some(ms) => format!("{}, {}", cluster.node_name(node), span(ms)),
                None => cluster.node_name(node),
            })
            .collect();
        text += &format!(
            "nodes     {}: up {}, down {}",
            cluster.nodes.len(),
            cluster.answered.len(),
            down.len()
        );
        if !down.is_empty() {
            text += &format!(" ({})", down.join("; "));
        }
        for node in &cluster.nodes {
            let standing = super::cluster::membership(&cluster, node);
            if standing != "active" {
                text += &format!("; {} {}", node.name, standing.trim_start_matches("active, "));
            }
        }
        text.push('\n');
        text += &format!(
            "shards    {} in {} services and the directory: no quorum {no_quorum}, electing {electing}, \
             under-replicated {under}, catching up {behind}\n",
            shards.len(),
            services.len()
        );
        text += &format!(
            "data      {entities} entities, {}; files of all nodes {}\n",
            size(bytes),
            size(store)
        );
        text += &format!("traffic   {rate} req/s\n");
        text += &cluster.messages().line();
        let up: Vec<String> = cluster
            .answered
            .iter()
            .map(|(&node, status)| format!("{} {}", cluster.node_name(node), span(status.uptime_ms)))
            .collect();
        text += &format!("uptime    {}\n", up.join(", "));
        let leader = directory.map_or_else(|| "none known".to_owned(), |node| cluster.node_name(node));
        text += &format!("directory led by {leader}\n");
        match &work {
            Some(work) => {
                for shown in work.iter().take(SHOWN_MAX) {
                    text += &format!("work      {}\n", super::op_view::in_short(shown));
                }
                if work.len() > SHOWN_MAX {
                    text += &format!("work      and {} operations more\n", work.len() - SHOWN_MAX);
                }
            }
            None => text += "work      not known: the directory does not answer\n",
        }
        if findings.len() > 1 {
            for finding in findings.iter().take(SHOWN_MAX) {
                text += &format!("finding   {}  {}\n", finding.code, finding.what);
            }
            if findings.len() > SHOWN_MAX {
                text += &format!("finding   and {} more\n", findings.len() - SHOWN_MAX);
            }
        }
        text += if findings.is_empty() {
            "next      isxctl shard list        isxctl node list\n"
        } else {
            "next      isxctl health        isxctl shard list --problem\n"
        };
        env.print(&text)?;
    }
    Ok(if exit_code { Severity::exit(worst) } else { exit::OK })
}

/// Findings on the one screen; `health` shows all.
const SHOWN_MAX: usize = 6;
