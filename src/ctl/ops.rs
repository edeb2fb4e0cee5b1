//! Long operations: starting, watching and steering them, and the settings they follow.
//!
//! A command that starts an operation stays and watches it; Ctrl-C detaches, and the same command again attaches.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::span as span_of;
use super::exit::{self, CtlError};
use super::output::{Listing, size, span, timestamp};
use super::status::Cluster;
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::{NodeId, OpId, RequestId, ShardId};
use crate::protocol::op::*;
use crate::protocol::request::{Request, Response};

/// How an operation is started.
#[derive(Debug, Clone, Args)]
pub struct OpStart {
    /// Check and show what would be done, change nothing
    #[arg(long)]
    pub dry_run: bool,
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

/// The cluster's settings.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub struct SettingArgs {
    /// Make the copies of a silent node again after this long
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    heal_after: Option<Duration>,
    /// Fill no disk above this by moving copies
    #[arg(long, value_name = "PERCENT")]
    disk_limit: Option<u32>,
    /// Begin to spread when a node is further than this from its share
    #[arg(long, value_name = "PERCENT")]
    hysteresis: Option<u32>,
    /// Let a shard that was moved to spread things rest for this long
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    cooldown: Option<Duration>,
    /// How fast copies are made where the operation does not say
    #[arg(long, value_enum)]
    pace: Option<PaceArg>,
    /// Slow copies down while ninety-nine of a hundred writes take longer than this; 0: never
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    protect_p99: Option<Duration>,
    /// Split and merge shards without being asked
    #[arg(long, value_name = "BOOL")]
    auto_split: Option<bool>,
    /// Spread without being asked
    #[arg(long, value_name = "BOOL")]
    auto_rebalance: Option<bool>,
}

/// How a service's shards are cut and copied.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub struct ServiceArgs {
    /// Copies of each shard: 1, 3, 5 or 7
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u32>,
    /// Cut a shard that is larger, such as 512MiB
    #[arg(long, value_parser = bytes_of, value_name = "SIZE")]
    split_size: Option<u64>,
    /// Cut a shard that is busier; 0: never
    #[arg(long, value_name = "REQ/S")]
    split_rate: Option<u64>,
    /// Merge neighbours that are smaller together; 0: never
    #[arg(long, value_parser = bytes_of, value_name = "SIZE")]
    merge_size: Option<u64>,
    /// Never fewer shards than this
    #[arg(long, value_name = "COUNT")]
    min_shards: Option<u32>,
}

pub(super) async fn node(env: &Environment, verb: NodeVerb) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let find = |name: &str| super::cluster::find_node(&cluster, name).map(|info| (info.id, info.name.clone()));
    let client = env.connect().await?;
    match verb {
        NodeVerb::Drain { node, purpose, start } => {
            let (node, name) = find(&node)?;
            let everything = purpose == DrainFor::Leave;
            if !start.dry_run {
                env.consent(&format!("drain {name}"))?;
            }
            let undo = format!("isxctl node undrain {name}");
            run_op(env, &client, Goal::Drain { node, everything }, &start, Some(undo)).await
        }
        NodeVerb::Leave { node, start, confirm } => {
            let (node, name) = find(&node)?;
            if !start.dry_run {
                severe(env, &format!("send {name} away for good"), &name, confirm.as_deref())?;
            }
            let undo = format!("isxctl node stay {name}");
            run_op(env, &client, Goal::Leave { node }, &start, Some(undo)).await
        }
        NodeVerb::Replace {
            old,
            with,
            start,
            confirm,
        } => {
            let ((old, name), (new, _)) = (find(&old)?, find(&with)?);
            if !start.dry_run {
                severe(env, &format!("replace {name} for good"), &name, confirm.as_deref())?;
            }
            let undo = format!("isxctl node stay {name}");
            run_op(env, &client, Goal::Replace { old, new }, &start, Some(undo)).await
        }
        NodeVerb::Undrain { node } => change(env, &client, find(&node)?, NodeChange::Undrain).await,
        NodeVerb::Stay { node } => change(env, &client, find(&node)?, NodeChange::Stay).await,
        NodeVerb::Forget { node } => {
            let found = find(&node)?;
            env.consent(&format!("forget {}", found.1))?;
            change(env, &client, found, NodeChange::Forget).await
        }
        NodeVerb::Label { node, labels } => {
            let mut set = BTreeMap::new();
            for label in &labels {
                let Some((name, value)) = label.split_once('=') else {
                    return Err(CtlError::new(exit::USAGE, format!("`{label}` is not NAME=VALUE")));
                };
                set.insert(name.to_owned(), (!value.is_empty()).then(|| value.to_owned()));
            }
            change(env, &client, find(&node)?, NodeChange::Label(set)).await
        }
        NodeVerb::Maintenance { switch, node, duration } => {
            let found = find(&node)?;
            let until = match (switch, duration) {
                (Switch::On, Some(duration)) => now_ms() + duration.as_millis() as u64,
                (Switch::On, None) => {
                    let text = "maintenance needs an end, so that it is not forgotten: --for 30m";
                    return Err(CtlError::new(exit::USAGE, text));
                }
                (Switch::Off, _) => 0,
                (Switch::Show, _) => {
                    let info = super::cluster::find_node(&cluster, &node)?;
                    let until = info.overlay.maintenance_until_ms;
                    let text = if until > now_ms() {
                        format!("{} is in maintenance until {}\n", found.1, timestamp(until))
                    } else {
                        format!("{} is not in maintenance\n", found.1)
                    };
                    return env.print(&text);
                }
            };
            change(env, &client, found, NodeChange::Maintenance(until)).await
        }
        NodeVerb::OkToStop { nodes } => {
            let found: Result<Vec<(NodeId, String)>, CtlError> = nodes.iter().map(|name| find(name)).collect();
            let found = found?;
            let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
            let request = Request::MayStop {
                nodes: found.iter().map(|(id, _)| *id).collect(),
            };
            ask(&client, request).await?;
            env.print(&format!("yes: every shard goes on without {}\n", names.join(", ")))
        }
    }
}

pub(super) async fn shard(env: &Environment, verb: ShardVerb) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let client = env.connect().await?;
    match verb {
        ShardVerb::Merge { left, right, start } => {
            run_op(env, &client, Goal::Merge { left, right }, &start, None).await
        }
        ShardVerb::Move { shard, from, to, start } => {
            let from = super::cluster::find_node(&cluster, &from)?.id;
            let to = super::cluster::find_node(&cluster, &to)?.id;
            run_op(env, &client, Goal::Move { shard, from, to }, &start, None).await
        }
    }
}

pub(super) async fn replica(env: &Environment, command: ReplicaCommand) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let client = env.connect().await?;
    let because = |start: &OpStart| {
        if start.because.is_empty() && !start.dry_run {
            let text = "an expert's verb needs a reason for those who come later: --because TEXT";
            return Err(CtlError::new(exit::CONSENT, text));
        }
        Ok(())
    };
    let node = |name: &str| super::cluster::find_node(&cluster, name).map(|info| info.id);
    match command {
        ReplicaCommand::Add { shard, on, start } => {
            because(&start)?;
            run_op(env, &client, Goal::AddReplica { shard, to: node(&on)? }, &start, None).await
        }
        ReplicaCommand::Remove { shard, from, start } => {
            because(&start)?;
            let goal = Goal::RemoveReplica {
                shard,
                from: node(&from)?,
            };
            run_op(env, &client, goal, &start, None).await
        }
    }
}

pub(super) async fn op(env: &Environment, command: OpCommand) -> Ended {
    let client = env.connect().await?;
    match command {
        OpCommand::List { all } => list(env, &ops(&client, all).await?),
        OpCommand::Show { op } => show(env, &find_op(&client, op).await?),
        OpCommand::Watch { op, wait_for } => watch(env, &client, op, wait_for, true, None).await,
        OpCommand::Wait { op, wait_for } => watch(env, &client, op, wait_for, false, None).await,
        OpCommand::Pause { op } => control(env, &client, op, OpAction::Pause).await,
        OpCommand::Resume { op } => control(env, &client, op, OpAction::Resume).await,
        OpCommand::Pace { op, pace } => control(env, &client, op, OpAction::SetPace(pace.into())).await,
        OpCommand::Cancel { op } => control(env, &client, op, OpAction::Cancel).await,
        OpCommand::Undo { op, start } => {
            let shown = find_op(&client, op).await?;
            let Some(goal) = shown.op.goal.inverse() else {
                let how = match shown.op.goal {
                    Goal::Drain { node, .. } => format!("isxctl node undrain {node}"),
                    Goal::Leave { node } if !shown.op.state.is_over() => format!("isxctl node stay {node}"),
                    _ => "isxctl op show".to_owned() + &format!(" {op}"),
                };
                let text = format!("{op} ({}) has no inverse operation", shown.op.goal);
                return Err(CtlError::new(exit::REFUSED, text).next(how));
            };
            run_op(env, &client, goal, &start, None).await
        }
    }
}

pub(super) async fn rebalance(env: &Environment, command: RebalanceCommand) -> Ended {
    let client = env.connect().await?;
    let running = async || -> Result<OpId, CtlError> {
        let open = ops(&client, false).await?;
        let found = open.iter().find(|shown| shown.op.goal == Goal::Rebalance);
        found
            .map(|shown| shown.op.id)
            .ok_or_else(|| CtlError::new(exit::NOT_FOUND, "no rebalancing is under way").next("isxctl rebalance start"))
    };
    match command {
        RebalanceCommand::Plan { exit_code } => {
            let shown = plan(&client, Goal::Rebalance, None, "").await?;
            let ended = show(env, &shown)?;
            Ok(if exit_code && shown.total > 0 {
                exit::CHANGES
            } else {
                ended
            })
        }
        RebalanceCommand::Start { start } => run_op(env, &client, Goal::Rebalance, &start, None).await,
        RebalanceCommand::Pause => control(env, &client, running().await?, OpAction::Pause).await,
        RebalanceCommand::Resume => control(env, &client, running().await?, OpAction::Resume).await,
        RebalanceCommand::Stop => control(env, &client, running().await?, OpAction::Cancel).await,
        RebalanceCommand::Auto { switch } => {
            let mut settings = settings(&client).await?;
            if switch != Switch::Show {
                settings.auto_rebalance = switch == Switch::On;
                set_settings(&client, settings.clone()).await?;
            }
            let text = if settings.auto_rebalance { "on" } else { "off" };
            env.print(&format!("rebalancing without being asked is {text}\n"))
        }
    }
}

pub(super) async fn show_settings(env: &Environment) -> Ended {
    let client = env.connect().await?;
    let (now, default) = (settings(&client).await?, Settings::default());
    let mut listing = Listing::new("isx.cluster.show/1", &["KEY:key", "VALUE:value", "DEFAULT:default"]);
    for (row, usual) in rows(&now).into_iter().zip(rows(&default)) {
        let item = json!({"key": row.0, "value": row.1, "default": usual.1});
        listing.push(vec![row.0.to_owned(), row.1, usual.1], item);
    }
    env.print_listing(&listing)
}

pub(super) async fn change_settings(env: &Environment, args: &SettingArgs) -> Ended {
    let client = env.connect().await?;
    let before = settings(&client).await?;
    let mut after = before.clone();
    let ms = |span: Duration| span.as_millis() as u64;
    after.heal_after_ms = args.heal_after.map_or(after.heal_after_ms, ms);
    after.cooldown_ms = args.cooldown.map_or(after.cooldown_ms, ms);
    after.disk_limit_percent = args.disk_limit.unwrap_or(after.disk_limit_percent);
    after.hysteresis_percent = args.hysteresis.unwrap_or(after.hysteresis_percent);
    after.pace = args.pace.map_or(after.pace, Into::into);
    let us = |span: Duration| span.as_micros() as u64;
    after.protect_p99_us = args.protect_p99.map_or(after.protect_p99_us, us);
    after.auto_split = args.auto_split.unwrap_or(after.auto_split);
    after.auto_rebalance = args.auto_rebalance.unwrap_or(after.auto_rebalance);
    set_settings(&client, after.clone()).await?;
    let mut text = String::new();
    for (old, new) in rows(&before).into_iter().zip(rows(&after)) {
        if old != new {
            text += &format!("{}  {} -> {}\n", new.0, old.1, new.1);
        }
    }
    if text.is_empty() {
        text = "nothing to change\n".to_owned();
    }
    env.print(&text)
}

pub(super) async fn change_service(env: &Environment, name: &str, args: &ServiceArgs) -> Ended {
    let client = env.connect().await?;
    let map = client.map().await?;
    let Some(service) = map.services.iter().find(|service| service.name == name) else {
        let text = format!("there is no service `{name}`");
        return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl service list"));
    };
    let mut sizes = service.sizes;
    sizes.split_bytes = args.split_size.unwrap_or(sizes.split_bytes);
    sizes.split_load = args.split_rate.unwrap_or(sizes.split_load);
    sizes.merge_bytes = args.merge_size.unwrap_or(sizes.merge_bytes);
    sizes.min_shards = args.min_shards.unwrap_or(sizes.min_shards);
    let replicas = args.replicas.unwrap_or(service.replicas);
    let request = Request::SetService {
        name: name.to_owned(),
        replicas,
        sizes,
        id: RequestId::random(),
    };
    ask(&client, request).await?;
    let mut text = String::new();
    let mut told = |what: &str, old: String, new: String| {
        if old != new {
            text += &format!("{name} {what}  {old} -> {new}\n");
        }
    };
    told("replicas", service.replicas.to_string(), replicas.to_string());
    told("split-size", size(service.sizes.split_bytes), size(sizes.split_bytes));
    told(
        "split-rate",
        service.sizes.split_load.to_string(),
        sizes.split_load.to_string(),
    );
    told("merge-size", size(service.sizes.merge_bytes), size(sizes.merge_bytes));
    told(
        "min-shards",
        service.sizes.min_shards.to_string(),
        sizes.min_shards.to_string(),
    );
    if text.is_empty() {
        text = "nothing to change\n".to_owned();
    }
    env.print(&text)
}

// --- asking ----------------------------------------------------------------------------------------------------

async fn ask(client: &Client, request: Request) -> Result<Response, CtlError> {
    Ok(client.request(request).await?)
}

fn unexpected() -> CtlError {
    CtlError::new(exit::UNEXPECTED, "a node gave an answer that does not fit the question")
}

async fn ops(client: &Client, all: bool) -> Result<Vec<OpView>, CtlError> {
    match ask(client, Request::ListOps { all }).await? {
        Response::Ops(ops) => Ok(ops),
        _ => Err(unexpected()),
    }
}

async fn find_op(client: &Client, op: OpId) -> Result<OpView, CtlError> {
    let found = ops(client, true).await?.into_iter().find(|shown| shown.op.id == op);
    found.ok_or_else(|| CtlError::new(exit::NOT_FOUND, format!("there is no {op}")).next("isxctl op list --all"))
}

async fn settings(client: &Client) -> Result<Settings, CtlError> {
    match ask(client, Request::ShowSettings).await? {
        Response::Settings(settings) => Ok(settings),
        _ => Err(unexpected()),
    }
}

async fn set_settings(client: &Client, settings: Settings) -> Result<(), CtlError> {
    let id = RequestId::random();
    ask(client, Request::SetSettings { settings, id }).await.map(drop)
}

async fn change(env: &Environment, client: &Client, node: (NodeId, String), change: NodeChange) -> Ended {
    let id = RequestId::random();
    let request = Request::ChangeNode {
        node: node.0,
        change,
        id,
    };
    match ask(client, request).await? {
        Response::Registered(info) => {
            let mut text = format!("{}  {}", info.name, format!("{:?}", info.membership).to_lowercase());
            match info.overlay.intent {
                Intent::Stay => {}
                Intent::DrainLeaders => text += "  drained of leaderships",
                Intent::DrainAll => text += "  drained",
            }
            if info.overlay.maintenance_until_ms > now_ms() {
                text += &format!("  maintenance until {}", timestamp(info.overlay.maintenance_until_ms));
            }
            text += &format!("  zone {}", if info.zone.is_empty() { "-" } else { &info.zone });
            for (name, value) in &info.overlay.labels {
                text += &format!("  {name}={value}");
            }
            env.print(&(text + "\n"))
        }
        _ => Err(unexpected()),
    }
}

async fn control(env: &Environment, client: &Client, op: OpId, action: OpAction) -> Ended {
    let id = RequestId::random();
    match ask(client, Request::ControlOp { op, action, id }).await? {
        Response::Op(op) => env.print(&format!("{}  {}  {}  pace {}\n", op.id, op.goal, op.state, op.pace)),
        _ => Err(unexpected()),
    }
}

async fn plan(client: &Client, goal: Goal, pace: Option<Pace>, because: &str) -> Result<OpView, CtlError> {
    let request = Request::StartOp {
        goal,
        pace,
        protect_p99_us: None,
        because: because.to_owned(),
        dry_run: true,
        id: RequestId::random(),
    };
    match ask(client, request).await? {
        Response::Ops(mut ops) if ops.len() == 1 => Ok(ops.remove(0)),
        _ => Err(unexpected()),
    }
}

async fn run_op(env: &Environment, client: &Client, goal: Goal, start: &OpStart, undo: Option<String>) -> Ended {
    let pace = start.pace.map(Into::into);
    if start.dry_run {
        let shown = plan(client, goal, pace, &start.because).await?;
        show(env, &shown)?;
        env.say("dry run: nothing was changed");
        return Ok(exit::OK);
    }
    let request = Request::StartOp {
        goal,
        pace,
        protect_p99_us: start.protect.map(|Protect(us)| us),
        because: start.because.clone(),
        dry_run: false,
        id: RequestId::random(),
    };
    let Response::Op(op) = ask(client, request).await? else {
        return Err(unexpected());
    };
    if start.no_wait {
        return show(env, &find_op(client, op.id).await?);
    }
    watch(env, client, op.id, start.wait_for, true, undo).await
}

/// Watches an operation until it is over, the time is up, or Ctrl-C.
async fn watch(
    env: &Environment,
    client: &Client,
    op: OpId,
    limit: Option<Duration>,
    aloud: bool,
    undo: Option<String>,
) -> Ended {
    let began = Instant::now();
    let bar = env.progress(Some(1), "{msg}\n[{bar:32}] {pos}/{len}  {prefix}");
    let bar = if aloud { bar } else { indicatif::ProgressBar::hidden() };
    let mut told = String::new();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut silent_since: Option<Instant> = None;
    loop {
        let shown = tokio::select! {
            shown = find_op(client, op) => shown,
            _ = &mut interrupted => return Ok(detach(env, &bar, op, undo.as_deref())),
        };
        let shown = match shown {
            Ok(shown) => {
                silent_since = None;
                shown
            }
            // The directory may be electing a leader: the operation does not mind.
            Err(error) if error.exit == exit::UNREACHABLE => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        bar.set_length(shown.total.max(1));
        bar.set_position(if shown.op.state.is_over() {
            shown.total.max(1)
        } else {
            shown.done
        });
        bar.set_prefix(pace_of(&shown));
        let mut message = format!("{}  {}  {}", shown.op.id, shown.op.goal, shown.op.state);
        for blocker in shown.blocked.iter().take(3) {
            message += &format!("\n  blocked  {}  {}", blocker.object, blocker.text);
        }
        bar.set_message(message.clone());
        if bar.is_hidden() && aloud && message != told {
            env.say(&message);
        }
        told = message;
        if shown.op.state.is_over() {
            bar.finish_and_clear();
            if env.format().is_json() {
                env.print_json(&view_json(&shown))?;
            } else if aloud {
                let took = shown.op.ended_ms.saturating_sub(shown.op.created_ms);
                let text = format!(
                    "{}  {}  {} after {}: {}\n",
                    shown.op.id,
                    shown.op.goal,
                    shown.op.state,
                    span(took),
                    shown.op.result
                );
                env.print(&text)?;
                if shown.op.state == OpState::Done
                    && let Some(undo) = &undo
                    && !matches!(shown.op.goal, Goal::Leave { .. } | Goal::Replace { .. })
                {
                    env.say(&format!("undo  {undo}"));
                }
            }
            return Ok(match shown.op.state {
                OpState::Done => exit::OK,
                OpState::Cancelled => exit::CONFLICT,
                _ => exit::REFUSED,
            });
        }
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            bar.finish_and_clear();
            env.say(&format!("{op} goes on.   isxctl op watch {op}"));
            return Ok(exit::TIME_LIMIT);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = &mut interrupted => return Ok(detach(env, &bar, op, undo.as_deref())),
        }
    }
}

fn detach(env: &Environment, bar: &indicatif::ProgressBar, op: OpId, undo: Option<&str>) -> u8 {
    bar.finish_and_clear();
    let undo = undo.map(|undo| format!("    undo: {undo}")).unwrap_or_default();
    env.say(&format!(
        "detached; the operation goes on.   isxctl op watch {op}{undo}"
    ));
    exit::INTERRUPTED
}

// --- showing ---------------------------------------------------------------------------------------------------

fn pace_of(shown: &OpView) -> String {
    let mut text = String::new();
    if shown.total_bytes > 0 {
        text += &format!("{} of {}  ", size(shown.done_bytes), size(shown.total_bytes));
    }
    if shown.bytes_per_second > 0 {
        text += &format!("{}/s  ", size(shown.bytes_per_second));
    }
    text += &format!("eta {}", eta(shown));
    text
}

fn eta(shown: &OpView) -> String {
    if shown.op.state.is_over() {
        return "-".to_owned();
    }
    shown.eta_s.map_or_else(
        || "-".to_owned(),
        |(least, most)| format!("{}-{}", span(least * 1000), span(most * 1000)),
    )
}

fn view_json(shown: &OpView) -> Value {
    let op = &shown.op;
    json!({
        "schema": "isx.op/1", "op": op.id.to_string(), "kind": op.goal.kind(), "object": op.goal.object(),
        "goal": op.goal, "state": op.state.to_string(), "pace": op.pace.to_string(), "by": op.by, "because": op.because,
        "created": timestamp(op.created_ms), "ended": (op.ended_ms > 0).then(|| timestamp(op.ended_ms)),
        "result": op.result, "done": shown.done, "total": shown.total, "doneBytes": shown.done_bytes,
        "totalBytes": shown.total_bytes, "bytesPerSecond": shown.bytes_per_second,
        "bytesPerSecond10m": shown.bytes_per_second_10m, "protectP99Us": op.protect_p99_us, "etaSeconds": shown.eta_s,
        "limitedBy": shown.limited_by, "steps": shown.steps, "blocked": shown.blocked,
        "blockedCount": shown.blocked.len(),
        "tolerance": {"now": shown.tolerance.0, "lowest": shown.tolerance.1, "after": shown.tolerance.2},
    })
}

fn list(env: &Environment, ops: &[OpView]) -> Ended {
    let columns = [
        "OP:op",
        "KIND:kind",
        "OBJECT:object",
        "STATE:state",
        "DONE:done",
        "SPEED:bytesPerSecond",
        "ETA:etaSeconds",
        "LIMITED BY:limitedBy",
        "BLOCKED:blockedCount",
        "BY WHOM:by",
        "+BECAUSE:because",
    ];
    let mut listing = Listing::new("isx.op.list/1", &columns);
    for shown in ops {
        let op = &shown.op;
        let speed = match shown.bytes_per_second {
            0 => "-".to_owned(),
            bytes => format!("{}/s", size(bytes)),
        };
        let or_dash = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        listing.push(
            vec![
                op.id.to_string(),
                op.goal.kind().to_owned(),
                op.goal.object(),
                op.state.to_string(),
                format!("{}/{}", shown.done, shown.total),
                speed,
                eta(shown),
                or_dash(&shown.limited_by),
                shown.blocked.len().to_string(),
                op.by.clone(),
                or_dash(&op.because),
            ],
            view_json(shown),
        );
    }
    env.print_listing(&listing)
}

fn show(env: &Environment, shown: &OpView) -> Ended {
    if env.format().is_json() {
        return env.print_json(&view_json(shown));
    }
    let op = &shown.op;
    let mut text = if op.state == OpState::Planned {
        format!("{}   {}   pace {}\n", op.goal, op.state, op.pace)
    } else {
        format!(
            "{}   {}   {}   pace {}   by {} at {}\n",
            op.id,
            op.goal,
            op.state,
            op.pace,
            op.by,
            timestamp(op.created_ms)
        )
    };
    if !op.because.is_empty() {
        text += &format!("because   {}\n", op.because);
    }
    text += &format!("done      {} of {} steps", shown.done, shown.total);
    if shown.total_bytes > 0 {
        text += &format!(", {} of {}", size(shown.done_bytes), size(shown.total_bytes));
    }
    text += &format!("   eta {}\n", eta(shown));
    if shown.bytes_per_second_10m > 0 {
        let (now, long) = (size(shown.bytes_per_second), size(shown.bytes_per_second_10m));
        text += &format!("speed     {now}/s over the last minute, {long}/s over the last ten\n");
    }
    if !op.state.is_over() {
        let (now, lowest, after) = shown.tolerance;
        text += &format!("tolerance nodes that may be lost: {now} now, {lowest} at the lowest, {after} afterwards\n");
    }
    if !shown.limited_by.is_empty() {
        text += &format!("limited   {}\n", shown.limited_by);
    }
    for step in &shown.steps {
        text += &format!("step      {step}\n");
    }
    if shown.steps.len() < shown.total as usize && op.state == OpState::Planned {
        text += &format!("          and {} more\n", shown.total as usize - shown.steps.len());
    }
    for blocker in &shown.blocked {
        text += &format!("blocked   {}  {}  {}\n", blocker.code, blocker.object, blocker.text);
        for next in blocker.next.lines() {
            text += &format!("          try  {next}\n");
        }
    }
    if op.state.is_over() {
        text += &format!("ended     {}: {}\n", timestamp(op.ended_ms), op.result);
    }
    env.print(&text)
}

fn rows(settings: &Settings) -> Vec<(&'static str, String)> {
    vec![
        ("heal-after", span(settings.heal_after_ms)),
        ("disk-limit", format!("{} %", settings.disk_limit_percent)),
        ("hysteresis", format!("{} %", settings.hysteresis_percent)),
        ("cooldown", span(settings.cooldown_ms)),
        ("pace", settings.pace.to_string()),
        (
            "protect-p99",
            match settings.protect_p99_us {
                0 => "off".to_owned(),
                us => format!("{} ms", us.div_ceil(1_000)),
            },
        ),
        ("auto-rebalance", settings.auto_rebalance.to_string()),
        ("auto-split", settings.auto_split.to_string()),
    ]
}

/// Consent to something that can't be undone: the object's name once more.
fn severe(env: &Environment, what: &str, name: &str, confirmed: Option<&str>) -> Result<(), CtlError> {
    match confirmed {
        Some(given) if given == name => Ok(()),
        Some(given) => {
            let text = format!("--confirm says `{given}`, the node is `{name}`; nothing was changed");
            Err(CtlError::new(exit::CONSENT, text))
        }
        None => env.type_name(what, name),
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A size such as `512MiB`, `64KiB`, `1000`.
fn bytes_of(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1u64 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("`{unit}` is no unit; B, KiB, MiB, GiB, TiB are")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is no size such as 512MiB"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("`{text}` is too much"))
}

/// What may be asked of the slowest writes. Unit: us.
const PROTECT_US: std::ops::RangeInclusive<u64> = 1_000..=60_000_000;
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How long the directory may be without a leader before a watcher gives up.
const PATIENCE: Duration = Duration::from_secs(30);
