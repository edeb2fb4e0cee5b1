//! What is wrong with the cluster: findings, each with a code that stays, and what to do about it.
use std::collections::BTreeSet;

use serde_json::json;

use super::exit::{self, CtlError};
use super::output::{Format, Listing, span};
use super::status::{Cluster, ShardHealth};
use super::{Ended, Environment};
use crate::protocol::id::NodeId;
use crate::protocol::shard_map::Membership;

/// How bad a finding is, and so how the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Requests are served; there is less in reserve than there should be.
    Warn,
    /// Some requests are not served.
    Critical,
}

impl Severity {
    pub(super) fn word(this: Option<Self>) -> &'static str {
        match this {
            None => "OK",
            Some(Self::Warn) => "WARN",
            Some(Self::Critical) => "CRITICAL",
        }
    }

    pub(super) fn exit(this: Option<Self>) -> u8 {
        match this {
            None => exit::OK,
            Some(Self::Warn) => exit::WARN,
            Some(Self::Critical) => exit::CRITICAL,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) code: &'static str,
    pub(super) severity: Severity,
    /// For how long, where that is known. Unit: ms.
    pub(super) since_ms: Option<u64>,
    pub(super) what: String,
    /// The command to go on with.
    pub(super) next: String,
}

/// Every code, with what it means.
const CODES: [(&str, &str); 15] = [
    (
        "REPLICAS_DIFFER",
        "The copies of a shard hold different rows and no majority of them agrees, so nobody can say which is right. Nothing \
         was changed. `isxctl shard verify` shows where they begin to differ; compare those entities with what the \
         application knows, and keep a backup of all copies.",
    ),
    (
        "REPLICA_DAMAGED",
        "A row of a copy fails its checksum, and the shard has no other sound copy that could take this one's place. The row \
         is never returned; all others are served. Bring the nodes with the other copies back, or restore from a backup.",
    ),
    (
        "REPLICA_QUARANTINED",
        "A copy is damaged or differs from most others of its shard. It serves nothing and is not counted on; once the other \
         copies have been read from end to end it is removed and made again under a new id, without a hand. If it comes \
         back, look at that node's disk and memory.",
    ),
    (
        "SHARD_NO_QUORUM",
        "Fewer than a majority of the shard's voters answer. It refuses writes and linearizable reads until enough of them are \
         back; nothing that was acknowledged is lost as long as their disks are. Start the nodes that are down.",
    ),
    (
        "SHARD_NO_LEADER",
        "Enough voters of the shard answer and none of them leads. An election takes well under a second; if it lasts, look \
         at the links between the nodes (`isxctl node show`) and at their logs.",
    ),
    (
        "DISK_FULL",
        "Free space on a node's disk fell below its reserve: the node takes deletes and answers reads, and refuses other \
         writes (ISX-1601). It clears by itself when there is room again.",
    ),
    (
        "NODE_DOWN",
        "The node did not answer in time. Its shards go on while a majority of their copies does. Start it again: it catches \
         up by itself.",
    ),
    (
        "SHARD_UNDER_REPLICATED",
        "A copy of the shard does not answer; a majority does, so the shard serves. Fewer further nodes may be lost.",
    ),
    (
        "SHARD_BEHIND",
        "A copy of the shard is more than two thousand entries behind its leader and is catching up.",
    ),
    (
        "MESSAGES_LATE",
        "A message between two entities has waited longer than half a minute, although nobody stopped it. Its receiver's shard \
         has no leader or can't be reached from the sender's. It arrives by itself when that is over; nothing is lost and \
         nothing overtakes it.",
    ),
    (
        "MESSAGES_PARKED",
        "Somebody stopped the sending from one entity to another: the messages are kept, new ones of the same pair wait behind \
         them, and `isxctl activity unpark` lets them go on. Or a receiver refused messages whose sender's schema says that such are \
         parked: `isxctl activity show` says why; mend the cause, then `activity retry` sends them again, or `activity skip` \
         gives one up. Those hold up nothing.",
    ),
    (
        "LINK_DOWN",
        "Two nodes that both answer this program have no connection to each other: a cut, a firewall, or one of them has \
         just started.",
    ),
    (
        "VERSION_SKEW",
        "Nodes run different versions. That is as it should be during an upgrade and at no other time.",
    ),
    (
        "NODE_LEADERLESS",
        "A node sees no leader for some of its shards, although others may. It is cut off from the majority, or an election \
         is under way.",
    ),
    (
        "NODE_FINDING",
        "Something that a node found out about itself; its own words say what.",
    ),
];

impl Cluster {
    /// All that is wrong, the worst first.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |code, severity, since_ms, what: String, next: String| {
            findings.push(Finding {
                code,
                severity,
                since_ms,
                what,
                next,
            });
        };
        let shards = self.in_order();
        for (state, code, severity, what) in [
            (
                "no quorum",
                "SHARD_NO_QUORUM",
                Severity::Critical,
                "too few copies up: reads and writes are refused",
            ),
            ("electing", "SHARD_NO_LEADER", Severity::Critical, "no leader yet"),
            (
                "under-replicated",
                "SHARD_UNDER_REPLICATED",
                Severity::Warn,
                "a copy is down",
            ),
            ("catching up", "SHARD_BEHIND", Severity::Warn, "a copy is catching up"),
        ] {
            let ill: Vec<&ShardHealth<'_>> = shards.iter().filter(|shard| shard.state() == state).collect();
            if !ill.is_empty() {
                let gone = ill
                    .iter()
                    .flat_map(|health| &health.shard.replicas)
                    .map(|replica| replica.node);
                let since = gone.filter_map(|node| self.silent_for_ms(node)).max();
                let words = format!("{}: {what}", some(&ill));
                add(code, severity, since, words, "isxctl shard list --problem".to_owned());
            }
        }
        for (&node, why) in &self.silent {
            if self.is_expected(node) {
                let (name, since) = (self.node_name(node), self.silent_for_ms(node));
                let what = format!("{name} does not answer: {why}");
                add(
                    "NODE_DOWN",
                    Severity::Warn,
                    since,
                    what,
                    format!("start isxd on {name}"),
                );
            }
        }
        for (&node, status) in &self.answered {
            let name = self.node_name(node);
            for text in &status.findings {
                let (code, severity, next) = if text.starts_with("disk nearly full") {
                    ("DISK_FULL", Severity::Critical, "make room on its disk".to_owned())
                } else if let Some(code) = ["REPLICAS_DIFFER", "REPLICA_DAMAGED", "REPLICA_QUARANTINED"]
                    .into_iter()
                    .find(|code| text.starts_with(code))
                {
                    let severity = match code {
                        "REPLICA_QUARANTINED" => Severity::Warn,
                        _ => Severity::Critical,
                    };
                    (code, severity, "isxctl shard list --problem".to_owned())
                } else if text.ends_with("have no leader") {
                    ("NODE_LEADERLESS", Severity::Warn, format!("isxctl node show {name}"))
                } else {
                    ("NODE_FINDING", Severity::Warn, format!("isxctl node show {name}"))
                };
                let text = text.strip_prefix(code).map_or(text.as_str(), str::trim_start);
                add(code, severity, None, format!("{name}: {text}"), next);
            }
            for peer in &status.peers {
                let other_answers = self.answered.contains_key(&peer.node);
                let is_new =
                    status.uptime_ms < 2_000 || self.answered.get(&peer.node).is_some_and(|s| s.uptime_ms < 2_000);
                if !peer.connected && other_answers && !is_new {
                    let what = format!("{name} has no connection to {}", self.node_name(peer.node));
                    let next = format!("isxctl node show {name}");
                    add("LINK_DOWN", Severity::Warn, peer.heard_ms_ago, what, next);
                }
            }
        }
        let messages = self.messages();
        if messages.oldest_ms >= MESSAGES_LATE_MS {
            let count = messages.outstanding;
            let what = format!(
                "{count} messages are outstanding, the oldest for {}",
                span(messages.oldest_ms)
            );
            let next = "isxctl activity list --state pending --older-than 30s".to_owned();
            add("MESSAGES_LATE", Severity::Warn, Some(messages.oldest_ms), what, next);
        }
        if messages.parked > 0 {
            let what = match messages.parked {
                1 => "1 pair of entities is parked".to_owned(),
                n => format!("{n} pairs of entities are parked"),
            };
            let next = "isxctl activity list --state parked".to_owned();
            add("MESSAGES_PARKED", Severity::Warn, None, what, next);
        }
        let versions: BTreeSet<&str> = self.answered.values().map(|status| status.version.as_str()).collect();
        if versions.len() > 1 {
            let list: Vec<&str> = versions.into_iter().collect();
            let what = format!("nodes run different versions: {}", list.join(", "));
            add(
                "VERSION_SKEW",
                Severity::Warn,
                None,
                what,
                "isxctl version --all".to_owned(),
            );
        }
        let rank = |code| CODES.iter().position(|(known, _)| *known == code);
        findings.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), rank(finding.code)));
        findings
    }

    /// Whether a node that does not answer should: one that has only just been let in need not run yet.
    fn is_expected(&self, node: NodeId) -> bool {
        let info = self.nodes.iter().find(|info| info.id == node);
        info.is_none_or(|info| info.membership != Membership::Joining)
    }

    /// Since anybody heard from a node that does not answer. Unit: ms.
    pub(super) fn silent_for_ms(&self, node: NodeId) -> Option<u64> {
        if !self.silent.contains_key(&node) {
            return None;
        }
        let peers = self.answered.values().flat_map(|status| &status.peers);
        peers
            .filter(|peer| peer.node == node)
            .filter_map(|peer| peer.heard_ms_ago)
            .min()
    }
}

/// A message that waits longer is worth a look. Unit: ms.
const MESSAGES_LATE_MS: u64 = 30_000;

/// `s-1, s-2, s-3 and 5 more shards`, in words short enough for a line.
fn some(shards: &[&ShardHealth<'_>]) -> String {
    const NAMED: usize = 4;
    let names: Vec<String> = shards
        .iter()
        .take(NAMED)
        .map(|health| health.shard.id.to_string())
        .collect();
    match shards.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        1 => format!("{} and 1 more shard", names.join(", ")),
        more => format!("{} and {more} more shards", names.join(", ")),
    }
}

pub(super) async fn health(env: &Environment, code: Option<&str>, exit_code: bool) -> Ended {
    let wanted = match code {
        None => None,
        Some(text) => {
            let found = CODES.iter().find(|(code, _)| code.eq_ignore_ascii_case(text));
            let known = || CODES.map(|(code, _)| code).join(", ");
            let unknown = || {
                CtlError::new(
                    exit::NOT_FOUND,
                    format!("there is no finding {text}; there are {}", known()),
                )
            };
            Some(found.ok_or_else(unknown)?)
        }
    };
    let cluster = Cluster::ask(env).await?;
    let findings = cluster.findings();
    let worst = findings.iter().map(|finding| finding.severity).max();
    let mut listing = Listing::new(
        "isx.health/1",
        &[
            "CODE:code",
            "SEVERITY:severity",
            "SINCE:sinceMs",
            "WHAT:what",
            "NEXT:next",
        ],
    );
    listing.about = cluster.envelope();
    listing.about.push(("health", Severity::word(worst).into()));
    for finding in findings
        .iter()
        .filter(|finding| wanted.is_none_or(|(code, _)| finding.code == *code))
    {
        let severity = Severity::word(Some(finding.severity));
        listing.push(
            vec![
                finding.code.to_owned(),
                severity.to_owned(),
                finding.since_ms.map_or_else(|| "-".to_owned(), span),
                finding.what.clone(),
                finding.next.clone(),
            ],
            json!({"code": finding.code, "severity": severity, "sinceMs": finding.since_ms, "what": finding.what,
                   "next": finding.next}),
        );
    }
    if let Some((code, text)) = wanted {
        env.say(&format!("{code}: {text}"));
    }
    match env.format() {
        Format::Table | Format::Wide if listing.rows.is_empty() => match wanted {
            Some((code, _)) => env.print(&format!("no {code}\n"))?,
            None => {
                let (answered, all) = (cluster.answered.len(), cluster.nodes.len());
                env.print(&format!("OK   nothing found   {answered} of {all} nodes answered\n"))?
            }
        },
        _ => env.print_listing(&listing)?,
    };
    Ok(if exit_code { Severity::exit(worst) } else { exit::OK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_there_once_with_an_explanation() {
        let names: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(names.len(), CODES.len());
        assert!(CODES.iter().all(|(_, text)| text.len() > 40 && text.ends_with('.')));
        assert!(Severity::Warn < Severity::Critical);
    }
}
