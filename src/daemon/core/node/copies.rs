//! How fast copies leave this node: at the pace that the operators want, and slower while writes take longer than they
//! allow.
//!
//! Every node measures the writes that it leads and tells all others. A node that sends copies looks at the slowest: its own
//! copies load its disk, its receivers' disks and the network between. Over the limit it halves its rate each second, under
//! it the rate grows by a sixteenth of the pace (as TCP shares a link). At the floor a copy still gets done.
use super::*;
use crate::daemon::core::latency::Latencies;
use crate::protocol::message::{CopyProgress, CopyRules, WriteLatency};

/// See the module.
#[derive(Debug)]
pub(super) struct Copies {
    rules: CopyRules,
    /// Unit: bytes per second.
    rate: u64,
    writes: Latencies,
    /// What others said of their writes, and how fast their copies may leave.
    heard: BTreeMap<NodeId, Heard>,
    /// The p99 of the node with the slowest writes; 0 where nobody has enough of them to tell. Unit: us.
    slowest: u64,
    last_look: Time,
}

#[derive(Debug)]
struct Heard {
    at: Time,
    writes: WriteLatency,
    /// Unit: bytes per second.
    rate: u64,
}

impl Copies {
    pub(super) fn new(now: Time) -> Self {
        let rules = CopyRules::default();
        Self {
            rate: rules.pace.bytes_per_second(),
            rules,
            writes: Latencies::new(now),
            heard: BTreeMap::new(),
            slowest: 0,
            last_look: now,
        }
    }
}

impl Node {
    /// How fast copies may leave this node now. Unit: bytes per second.
    pub fn copy_rate(&self) -> u64 {
        self.copies.rate
    }

    /// A write of a caller's took this long from its proposal to its end.
    pub(super) fn write_took(&mut self, took: Span, waiters: &[Waiting]) {
        let now = self.clock.now;
        let is_foreground = |waiting: &&Waiting| matches!(waiting.waiter, Waiter::Client { .. } | Waiter::Peer { .. });
        for _ in waiters.iter().filter(is_foreground) {
            self.copies.writes.add(now, took);
        }
    }

    /// What a peer says of its writes and copies; the directory's leader says what the operators want.
    pub(super) fn copies_reported(&mut self, from: NodeId, report: &Report) {
        let heard = Heard {
            at: self.clock.now,
            writes: report.writes,
            rate: report.copy_rate,
        };
        self.copies.heard.insert(from, heard);
        if let Some(rules) = report.copies {
            self.copies.rules = rules;
        }
    }

    /// For the report: how writes go here.
    pub(super) fn own_writes(&mut self) -> WriteLatency {
        self.copies.writes.p99(self.clock.now)
    }

    /// Once a second: the rate follows the rules and the writes.
    pub(super) fn tend_copies(&mut self) {
        let now = self.clock.now;
        if now.since(self.copies.last_look) < LOOK_EVERY {
            return;
        }
        self.copies.last_look = now;
        if let Some(rules) = self.wanted_copies() {
            self.copies.rules = rules;
        }
        self.copies.slowest = self.slowest_now();
        let slowest = self.copies.slowest;
        let CopyRules { pace, protect_p99_us } = self.copies.rules;
        let target = pace.bytes_per_second();
        let rate = self.copies.rate;
        self.copies.rate = match protect_p99_us {
            0 => target,
            limit if slowest > limit => (rate / 2).max(COPY_RATE_MIN).min(target),
            _ => (rate + target / 16).min(target),
        };
    }

    /// The p99 of the node with the slowest writes, as of the last second; 0 where there are too few. Unit: us.
    pub(in crate::daemon::core) fn slowest_writes(&self) -> u64 {
        self.copies.slowest
    }

    fn slowest_now(&mut self) -> u64 {
        let now = self.clock.now;
        let own = self.own_writes();
        self.copies.heard.retain(|_, heard| now.since(heard.at) <= BELIEVE_FOR);
        let heard = self.copies.heard.values().map(|heard| heard.writes);
        let telling = heard.chain([own]).filter(|writes| writes.count >= WRITES_MIN);
        telling.map(|writes| writes.p99_us).max().unwrap_or(0)
    }

    /// What the operators want, where this node leads the directory.
    pub(in crate::daemon::core) fn wanted_copies(&self) -> Option<CopyRules> {
        let directory = self.directory.as_ref().filter(|_| self.leads_directory())?;
        let ledger = &directory.ledger;
        let running = || {
            ledger
                .open()
                .filter(|op| op.state == crate::protocol::op::OpState::Running)
        };
        let limits = running()
            .map(|op| op.protect_p99_us)
            .chain([ledger.settings.protect_p99_us]);
        Some(CopyRules {
            pace: running().map(|op| op.pace).max().unwrap_or(ledger.settings.pace),
            protect_p99_us: limits.filter(|&limit| limit > 0).min().unwrap_or(0),
        })
    }

    /// The lowest rate that any node holds its copies to, as the directory's leader has heard. Unit: bytes per second.
    pub(in crate::daemon::core) fn lowest_copy_rate(&self) -> u64 {
        let heard = self.copies.heard.values().map(|heard| heard.rate);
        heard.chain([self.copies.rate]).min().unwrap_or(0)
    }

    /// Copies that this node is sending.
    pub(in crate::daemon::core) fn copies_under_way(&self) -> Vec<CopyProgress> {
        let progress = |replica: &Replica| {
            let shard = replica.shard.clone();
            let sending = replica.sending.clone().into_iter();
            sending.filter_map(move |(id, sending)| {
                Some(CopyProgress {
                    shard: shard.id,
                    to: shard.replica(id)?.node,
                    bytes: sending.bytes,
                })
            })
        };
        let awake = self.watch.awake.iter().filter_map(|shard| self.replicas.get(shard));
        awake.flat_map(progress).collect()
    }
}

/// Copies never go below this, whatever writes do: an operation must end. Unit: bytes per second.
const COPY_RATE_MIN: u64 = 1 << 20;
const LOOK_EVERY: Span = Span::secs(1);
/// What a peer said of its writes counts for this long.
const BELIEVE_FOR: Span = Span::secs(3);
/// Fewer say nothing about the slowest hundredth. Unit: writes.
const WRITES_MIN: u64 = 50;
