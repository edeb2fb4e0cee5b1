//! The command lines that start and steer operations.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::args::span as span_of;
use crate::protocol::id::{OpId, ShardId};
use crate::protocol::op::*;

/// How an operation is started.
#[derive(Debug, Clone, Default, Args)]
pub struct OpStart {
    /// Check and show what would be done, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write the plan to this file instead of carrying it out; `isxctl plan apply FILE` does
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub plan_out: Option<PathBuf>,
    /// Start it and return at once
    #[arg(long)]
    pub no_wait: bool,
    /// How fast copies are made
    #[arg(long, value_enum)]
    pub pace: Option<PaceArg>,
    /// Slow copies down while writes take longer, such as p99=15ms
    #[arg(long, value_parser = protect_of, value_name = "p99=SPAN")]
    pub protect: Option<Protect>,
    /// Why, for those who ask later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub because: String,
    /// Stop watching after this long, with exit 8; the operation goes on
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    pub wait_for: Option<Duration>,
}

/// The longest that ninety-nine of a hundred writes may take while copies are made. Unit: us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protect(pub u64);

/// `p99=15ms`.
fn protect_of(text: &str) -> Result<Protect, String> {
    let limit = text.strip_prefix("p99=");
    let limit = limit.ok_or_else(|| format!("`{text}` is no limit such as p99=15ms"))?;
    let us = span_of(limit)?.as_micros() as u64;
    if !PROTECT_US.contains(&us) {
        return Err(format!("{limit} is not from 1ms to 60s"));
    }
    Ok(Protect(us))
}

impl OpStart {
    /// Whether it is to be done, and not only shown or written down.
    pub(super) fn is_meant(&self) -> bool {
        !self.dry_run && self.plan_out.is_none()
    }
}

/// See [`Pace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PaceArg {
    /// Hardly felt
    Gentle,
    /// The usual one
    Normal,
    /// Gets done
    Fast,
}

impl From<PaceArg> for Pace {
    fn from(pace: PaceArg) -> Self {
        match pace {
            PaceArg::Gentle => Pace::Gentle,
            PaceArg::Normal => Pace::Normal,
            PaceArg::Fast => Pace::Fast,
        }
    }
}

/// What a drain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrainFor {
    /// Leaderships go, copies stay
    Restart,
    /// Copies go too
    Leave,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
    /// Say how it is
    Show,
}

/// Verbs that change nodes.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeVerb {
    /// Take leaderships off a node, or everything, and keep them off until `undrain`
    Drain {
        /// Its name or id
        node: String,
        /// What it is for
        #[arg(long = "for", value_enum, default_value = "restart", value_name = "WHAT")]
        purpose: DrainFor,
        #[command(flatten)]
        start: OpStart,
    },
    /// Let a drained node take part again
    Undrain {
        /// Its name or id
        node: String,
    },
    /// Move everything off a node and end its membership for good
    Leave {
        /// Its name or id
        node: String,
        #[command(flatten)]
        start: OpStart,
        /// The node's name once more: there is no way back once it is gone
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Cancel a leave that is under way
    Stay {
        /// Its name or id
        node: String,
    },
    /// Put what one node holds on another one, and end the first one's membership
    Replace {
        /// The node that goes; it may be dead
        old: String,
        /// The node that takes its place
        #[arg(long, value_name = "NODE")]
        with: String,
        #[command(flatten)]
        start: OpStart,
        /// The old node's name once more: there is no way back once it is gone
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// End the membership of a dead node that holds nothing
    Forget {
        /// Its name or id
        node: String,
    },
    /// Set labels; `zone=...` sets its failure domain
    Label {
        /// Its name or id
        node: String,
        /// NAME=VALUE; NAME= removes it
        #[arg(required = true, value_name = "NAME=VALUE")]
        labels: Vec<String>,
    },
    /// Don't heal what a node holds while somebody works on it
    Maintenance {
        /// On or off
        #[arg(value_enum)]
        switch: Switch,
        /// Its name or id
        node: String,
        /// For how long; needed to switch it on
        #[arg(long = "for", value_parser = span_of, value_name = "SPAN")]
        duration: Option<Duration>,
    },
    /// Print a line with which one more host joins
    #[command(before_help = "Examples:\n  isxctl node add --zone b\n  isxctl node add --name n4 --approve")]
    Add {
        /// How long the line is valid
        #[arg(long, value_parser = span_of, default_value = "1h", value_name = "SPAN")]
        token_ttl: Duration,
        /// Its failure domain
        #[arg(long, default_value = "default")]
        zone: String,
        /// Its name
        #[arg(long, default_value = "NAME")]
        name: String,
        /// The host waits until `isxctl node approve` lets it in
        #[arg(long)]
        approve: bool,
    },
    /// Let a host in that waits for it
    Approve {
        /// Its name or id
        node: String,
    },
    /// Send a host away that waits to be let in
    Reject {
        /// Its name or id
        node: String,
    },
    /// In which order nodes can be restarted, some at a time, with every shard going on
    RestartOrder {
        /// Most nodes at a time
        #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
        max_parallel: u32,
    },
    /// Whether these nodes may be stopped now without refusing writes: exit 0 or 5
    OkToStop {
        /// Names or ids
        #[arg(required = true)]
        nodes: Vec<String>,
    },
}

/// Verbs that change shards.
#[derive(Debug, Clone, Subcommand)]
pub enum ShardVerb {
    /// Make two neighbours one shard
    Merge {
        /// The shard that stays
        left: ShardId,
        /// The shard that goes into it, its right neighbour
        right: ShardId,
        #[command(flatten)]
        start: OpStart,
    },
    /// Move a copy from one node to another
    Move {
        /// The shard
        shard: ShardId,
        /// Where the copy is
        #[arg(long, value_name = "NODE")]
        from: String,
        /// Where it should be
        #[arg(long, value_name = "NODE")]
        to: String,
        #[command(flatten)]
        start: OpStart,
    },
    /// Give a shard, or every shard of a service, this many copies
    #[command(
        allow_missing_positional = true,
        before_help = "Examples:\n  isxctl shard set-replicas s-17 5\n  isxctl shard set-replicas --service campaign 3"
    )]
    SetReplicas {
        /// The shard
        #[arg(required_unless_present = "service", conflicts_with = "service")]
        shard: Option<ShardId>,
        /// 1, 3, 5 or 7; for one shard `auto`: as its rule says
        #[arg(required = true, value_name = "COPIES", value_parser = copies_of)]
        copies: Copies,
        /// All shards of this service, and those that come of them
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        start: OpStart,
    },
    /// Spread the shards of a service evenly over the nodes
    Scatter {
        /// The service
        #[arg(long)]
        service: String,
        /// What is to be even
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ScatterGoal::Leaders, ScatterGoal::Bytes, ScatterGoal::Load])]
        goal: Vec<ScatterGoal>,
        #[command(flatten)]
        start: OpStart,
    },
}

/// How many copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies(pub Option<u32>);

fn copies_of(text: &str) -> Result<Copies, String> {
    match text {
        "auto" => Ok(Copies(None)),
        text => text
            .parse()
            .map(|copies| Copies(Some(copies)))
            .map_err(|_| "a number, or auto".to_owned()),
    }
}

/// What a scatter evens out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScatterGoal {
    /// Leaderships
    Leaders,
    /// Copies, by number and by bytes
    Bytes,
    /// Load
    Load,
}

/// Verbs on copies, for experts.
#[derive(Debug, Clone, Subcommand)]
pub enum ReplicaCommand {
    /// Give a shard one more copy
    Add {
        /// The shard
        shard: ShardId,
        /// Where
        #[arg(long, value_name = "NODE")]
        on: String,
        #[command(flatten)]
        start: OpStart,
    },
    /// Take a copy away
    Remove {
        /// The shard
        shard: ShardId,
        /// Where
        #[arg(long, value_name = "NODE")]
        from: String,
        #[command(flatten)]
        start: OpStart,
    },
}

/// Verbs on operations.
#[derive(Debug, Clone, Subcommand)]
pub enum OpCommand {
    /// Operations under way
    List {
        /// Those that are over too
        #[arg(long)]
        all: bool,
    },
    /// One operation: steps, progress, what stands in the way
    Show {
        /// The operation
        op: OpId,
    },
    /// Watch it until it is over
    Watch {
        /// The operation
        op: OpId,
        /// Stop watching after this long, with exit 8
        #[arg(long, value_parser = span_of, value_name = "SPAN")]
        wait_for: Option<Duration>,
    },
    /// Wait until it is over, without showing how it goes
    Wait {
        /// The operation
        op: OpId,
        /// Stop waiting after this long, with exit 8
        #[arg(long, value_parser = span_of, value_name = "SPAN")]
        wait_for: Option<Duration>,
    },
    /// Begin nothing new until `resume`
    Pause {
        /// The operation
        op: OpId,
    },
    /// Go on
    Resume {
        /// The operation
        op: OpId,
    },
    /// Change how fast copies are made
    Pace {
        /// The operation
        op: OpId,
        /// How fast
        #[arg(value_enum)]
        pace: PaceArg,
    },
    /// Give it up; half done steps are finished or taken back
    Cancel {
        /// The operation
        op: OpId,
    },
    /// Start the operation that takes this one back
    Undo {
        /// The operation
        op: OpId,
        #[command(flatten)]
        start: OpStart,
    },
}

/// Verbs on rebalancing.
#[derive(Debug, Clone, Subcommand)]
pub enum RebalanceCommand {
    /// What would be moved, and how the spread would change
    Plan {
        /// End with 20 when there is something to do
        #[arg(long)]
        exit_code: bool,
        /// Write the plan to this file; `isxctl plan apply FILE` carries it out
        #[arg(long, value_name = "FILE")]
        plan_out: Option<PathBuf>,
    },
    /// Spread copies and leaderships evenly
    Start {
        #[command(flatten)]
        start: OpStart,
    },
    /// Begin nothing new until `resume`
    Pause,
    /// Go on
    Resume,
    /// End it where it is
    Stop,
    /// Spread without being asked
    Auto {
        /// On, off, or how it is
        #[arg(value_enum)]
        switch: Switch,
    },
}

/// What may be asked of the slowest writes. Unit: us.
const PROTECT_US: std::ops::RangeInclusive<u64> = 1_000..=60_000_000;
