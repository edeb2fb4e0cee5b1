//! Long operations: starting, watching and steering them, and the settings they follow.
//!
//! A command that starts an operation stays and watches it; Ctrl-C detaches, and the same command again attaches.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::exit::{self, CtlError};
use super::op_args::{
    Copies, DrainFor, NodeVerb, OpCommand, OpStart, Protect, RebalanceCommand, ReplicaCommand, ScatterGoal, ShardVerb,
    Switch,
};
use super::op_view::{list, pace_of, show, since, view_json};
use super::output::{Listing, span, timestamp};
use super::status::Cluster;
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::{NodeId, OpId, RequestId};
use crate::protocol::op::*;
use crate::protocol::operator::{Order, Question, Told};
use crate::protocol::request::{Request, Response};

pub(super) async fn node(env: &Environment, verb: NodeVerb) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let find = |name: &str| super::cluster::find_node(&cluster, name).map(|info| (info.id, info.name.clone()));
    let client = env.connect().await?;
    match verb {
        NodeVerb::Drain { node, purpose, start } => {
            let (node, name) = find(&node)?;
            let everything = purpose == DrainFor::Leave;
            if start.is_meant() {
                env.consent(&format!("drain {name}"))?;
            }
            let undo = format!("isxctl node undrain {name}");
            run_op(env, &client, Goal::Drain { node, everything }, &start, Some(undo)).await
        }
        NodeVerb::Leave { node, start, confirm } => {
            let (node, name) = find(&node)?;
            if start.is_meant() {
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
            if start.is_meant() {
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
        NodeVerb::Add {
            token_ttl,
            zone,
            name,
            approve,
        } => add(env, &client, token_ttl, &zone, &name, approve).await,
        NodeVerb::Approve { node } => admit(env, &client, find(&node)?, true).await,
        NodeVerb::Reject { node } => admit(env, &client, find(&node)?, false).await,
        NodeVerb::RestartOrder { max_parallel } => restart_order(env, &cluster, &client, max_parallel).await,
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

/// Makes a join line, with the command that the host runs.
async fn add(env: &Environment, client: &Client, ttl: Duration, zone: &str, name: &str, approve: bool) -> Ended {
    let line = super::cluster::join_line(env, client, ttl, approve).await?;
    let command = format!("isxd join '{line}' --name {name} --zone {zone} --listen ADDRESS:PORT --dir /var/lib/isx");
    let then = match approve {
        true => format!("isxctl node approve {name}"),
        false => "isxctl node list".to_owned(),
    };
    if env.format().is_json() {
        return env.print_json(&json!({
            "schema": "isx.node.add/1", "line": line.to_string(), "command": command, "needsApproval": approve,
            "validForSeconds": ttl.as_secs(), "next": [then],
        }));
    }
    let waits = if approve { "; it then waits to be let in" } else { "" };
    env.say(&format!(
        "valid for {}. On the new host{waits}:",
        span(ttl.as_millis() as u64)
    ));
    let ended = env.print(&format!("{command}\n"))?;
    env.say(&format!("then   {then}"));
    Ok(ended)
}

async fn admit(env: &Environment, client: &Client, node: (NodeId, String), yes: bool) -> Ended {
    let verb = if yes { "let in" } else { "send away" };
    env.consent(&format!("{verb} {}", node.1))?;
    let order = Order::Admit { node: node.0, yes };
    let id = RequestId::random();
    match ask(client, Request::Order { order, id }).await? {
        Response::Registered(info) => {
            let membership = format!("{:?}", info.membership).to_lowercase();
            env.print(&format!("{}  {membership}\n", info.name))
        }
        _ => Err(unexpected()),
    }
}

async fn restart_order(env: &Environment, cluster: &Cluster, client: &Client, max_parallel: u32) -> Ended {
    let question = Question::RestartOrder { max_parallel };
    let batches = match ask(client, Request::Question(question)).await? {
        Response::Told(told) => match *told {
            Told::Batches(batches) => batches,
            _ => return Err(unexpected()),
        },
        _ => return Err(unexpected()),
    };
    let mut listing = Listing::new(
        "isx.node.restart-order/1",
        &["BATCH:batch", "NODES:nodes", "ZONES:zones"],
    );
    for (at, batch) in batches.iter().enumerate() {
        let names: Vec<String> = batch.iter().map(|&node| cluster.node_name(node)).collect();
        let zones: std::collections::BTreeSet<&str> = cluster
            .nodes
            .iter()
            .filter(|info| batch.contains(&info.id))
            .map(|info| info.zone.as_str())
            .collect();
        let zones: Vec<&str> = zones.into_iter().collect();
        listing.push(
            vec![(at + 1).to_string(), names.join(","), zones.join(",")],
            json!({"batch": at + 1, "nodes": names, "zones": zones}),
        );
    }
    let ended = env.print_listing(&listing)?;
    env.say("each batch once the one before is back and caught up: isxctl node ok-to-stop NODE...");
    Ok(ended)
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
        ShardVerb::SetReplicas {
            shard,
            copies: Copies(replicas),
            service,
            start,
        } => {
            let of = match (shard, service) {
                (Some(shard), _) => Scope::Shard(shard),
                (None, service) => Scope::Service(service.unwrap_or_default()),
            };
            if replicas.is_none() && matches!(of, Scope::Service(_)) {
                let text = "a service says how many copies its shards have: a number, or a rule (isxctl rule set)";
                return Err(CtlError::new(exit::USAGE, text));
            }
            let goal = Goal::SetReplicas { of, replicas };
            if start.is_meant() {
                env.consent(&goal.to_string())?;
            }
            run_op(env, &client, goal, &start, None).await
        }
        ShardVerb::Scatter { service, goal, start } => {
            let wants = |wanted: ScatterGoal| goal.contains(&wanted);
            let goal = Goal::Scatter {
                service,
                bytes: wants(ScatterGoal::Bytes),
                leaders: wants(ScatterGoal::Leaders),
                load: wants(ScatterGoal::Load),
            };
            run_op(env, &client, goal, &start, None).await
        }
    }
}

pub(super) async fn replica(env: &Environment, command: ReplicaCommand) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let client = env.connect().await?;
    let because = |start: &OpStart| {
        if start.because.is_empty() && start.is_meant() {
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
        OpCommand::Undo { op, start } => undo(env, &client, op, &start).await,
    }
}

/// Starts the operation that takes another one back.
async fn undo(env: &Environment, client: &Client, op: OpId, start: &OpStart) -> Ended {
    let shown = find_op(client, op).await?;
    if !shown.op.state.is_over() {
        let text = format!(
            "{op} ({}) is {}: what is under way is cancelled, not undone",
            shown.op.goal, shown.op.state
        );
        return Err(CtlError::new(exit::REFUSED, text).next(format!("isxctl op cancel {op}")));
    }
    let inverse = match &shown.op.goal {
        // What came of a split has a name only since it is there.
        Goal::Split { shard, at } if at.len() == 1 => {
            let map = client.map().await?;
            let whole = map.shards.iter().find(|known| known.id == *shard);
            let right = whole.and_then(|left| map.shards.iter().find(|right| right.range.start == left.range.end));
            right.map(|right| Goal::Merge {
                left: *shard,
                right: right.id,
            })
        }
        _ => shown.op.inverse.clone(),
    };
    let is_done = matches!(shown.op.state, OpState::Done | OpState::Failed | OpState::Cancelled);
    let Some(goal) = inverse.filter(|_| is_done) else {
        let how = match shown.op.goal {
            Goal::Drain { node, .. } => format!("isxctl node undrain {node}"),
            _ => format!("isxctl op show {op}"),
        };
        let text = match shown.op.state {
            OpState::Undone => format!("{op} ({}) is undone already", shown.op.goal),
            _ => format!("{op} ({}) has no inverse operation", shown.op.goal),
        };
        return Err(CtlError::new(exit::REFUSED, text).next(how));
    };
    if !start.is_meant() {
        return super::plan::instead(env, client, goal, start).await;
    }
    let pace = start.pace.map(Into::into);
    let started = start_op(
        client,
        goal,
        pace,
        &start.because,
        Begin {
            undoes: Some(op),
            ..Begin::default()
        },
    )
    .await?;
    if start.no_wait {
        return show(env, &find_op(client, started).await?);
    }
    watch(env, client, started, start.wait_for, true, None).await
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
        RebalanceCommand::Plan { exit_code, plan_out } => {
            let plan = super::plan::make(&client, Goal::Rebalance, None, None).await?;
            let ended = if plan_out.is_some() {
                let start = OpStart {
                    plan_out,
                    ..OpStart::default()
                };
                super::plan::instead(env, &client, Goal::Rebalance, &start).await?
            } else {
                super::plan::show(env, &plan)?
            };
            Ok(if exit_code && plan.steps_total > 0 {
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
            let mut settings = super::settings::settings(&client).await?;
            if switch != Switch::Show {
                settings.auto_rebalance = switch == Switch::On;
                super::settings::set_settings(&client, settings.clone()).await?;
            }
            let text = if settings.auto_rebalance { "on" } else { "off" };
            env.print(&format!("rebalancing without being asked is {text}\n"))
        }
    }
}

// --- asking ----------------------------------------------------------------------------------------------------

pub(super) async fn ask(client: &Client, request: Request) -> Result<Response, CtlError> {
    Ok(client.request(request).await?)
}

pub(super) fn unexpected() -> CtlError {
    CtlError::new(exit::UNEXPECTED, "a node gave an answer that does not fit the question")
}

pub(super) async fn ops(client: &Client, all: bool) -> Result<Vec<OpView>, CtlError> {
    match ask(client, Request::ListOps { all }).await? {
        Response::Ops(ops) => Ok(ops),
        _ => Err(unexpected()),
    }
}

pub(super) async fn find_op(client: &Client, op: OpId) -> Result<OpView, CtlError> {
    let found = ops(client, true).await?.into_iter().find(|shown| shown.op.id == op);
    found.ok_or_else(|| CtlError::new(exit::NOT_FOUND, format!("there is no {op}")).next("isxctl op list --all"))
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

/// What an operation is started with, beside what the operator says.
#[derive(Debug, Default)]
pub(super) struct Begin {
    /// The configuration that its plan was made for.
    pub at: Option<u64>,
    /// The operation that it takes back.
    pub undoes: Option<OpId>,
    /// What it must not slow writes down to. Unit: us.
    pub protect_p99_us: Option<u64>,
    /// The same again attaches, even to one that is over.
    pub id: Option<RequestId>,
}

/// Starts an operation, or attaches to the one with the same goal.
pub(super) async fn start_op(
    client: &Client,
    goal: Goal,
    pace: Option<Pace>,
    because: &str,
    begin: Begin,
) -> Result<OpId, CtlError> {
    let request = Request::StartOp {
        goal,
        pace,
        protect_p99_us: begin.protect_p99_us,
        because: because.to_owned(),
        at: begin.at,
        undoes: begin.undoes,
        id: begin.id.unwrap_or_else(RequestId::random),
    };
    match ask(client, request).await? {
        Response::Op(op) => Ok(op.id),
        _ => Err(unexpected()),
    }
}

pub(super) async fn run_op(
    env: &Environment,
    client: &Client,
    goal: Goal,
    start: &OpStart,
    undo: Option<String>,
) -> Ended {
    if !start.is_meant() {
        return super::plan::instead(env, client, goal, start).await;
    }
    let op = start_op(
        client,
        goal,
        start.pace.map(Into::into),
        &start.because,
        Begin {
            protect_p99_us: start.protect.map(|Protect(us)| us),
            ..Begin::default()
        },
    )
    .await?;
    if start.no_wait {
        return show(env, &find_op(client, op).await?);
    }
    watch(env, client, op, start.wait_for, true, undo).await
}

/// Watches an operation until it is over, the time is up, or Ctrl-C.
pub(super) async fn watch(
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
        let mut news = message.clone();
        for blocker in shown.blocked.iter().take(3) {
            let line = format!("\n  blocked  {}  {}", blocker.object, blocker.text);
            message += &line;
            message += &since(blocker);
            // That the same thing still stands in the way is no news.
            news += &line;
        }
        if bar.is_hidden() && aloud && news != told {
            env.say(&message);
        }
        told = news;
        bar.set_message(message);
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

/// Consent to something that can't be undone: the object's name once more.
pub(super) fn severe(env: &Environment, what: &str, name: &str, confirmed: Option<&str>) -> Result<(), CtlError> {
    match confirmed {
        Some(given) if given == name => Ok(()),
        Some(given) => {
            let text = format!("--confirm says `{given}`, the name is `{name}`; nothing was changed");
            Err(CtlError::new(exit::CONSENT, text))
        }
        None => env.type_name(what, name),
    }
}

pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How long the directory may be without a leader before a watcher gives up.
const PATIENCE: Duration = Duration::from_secs(30);
