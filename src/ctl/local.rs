//! What needs no running cluster: the local one's processes, files of new ones, contexts; and the bench, which looks at the
//! local one's processor time.
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{ClusterCommand, ContextCommand, DevCommand, DevPlace, FirstCuts};
use super::bench::{self, BenchArgs};
use super::dev::{self, Cuts, DevError, LocalNode, NewNode, NewService};
use super::exit::{self, CtlError};
use super::output::Listing;
use super::{Ended, Environment};
use crate::client::Client;
use crate::client::context::Contexts;
use crate::protocol::id::ShardId;
use crate::protocol::key::check_entity_key;
use crate::protocol::shard_map::ShardDescriptor;

impl From<DevError> for CtlError {
    fn from(error: DevError) -> Self {
        let exit = match &error {
            DevError::NoCluster(_) | DevError::NoNode(_) => exit::NOT_FOUND,
            DevError::Exists(_) => exit::REFUSED,
            _ => exit::UNEXPECTED,
        };
        Self::from_error(exit, &error)
    }
}

fn directory(place: &DevPlace) -> PathBuf {
    let given = place
        .dir
        .clone()
        .unwrap_or_else(|| dev::default_directory(|variable| std::env::var(variable).ok()));
    std::path::absolute(&given).unwrap_or(given)
}

pub(super) async fn dev(env: &Environment, command: DevCommand) -> Ended {
    match command {
        DevCommand::Up {
            nodes,
            fresh,
            cuts,
            place,
        } => up(env, nodes, fresh, &cuts, &place).await,
        DevCommand::Down { wipe, place } => down(env, wipe, &place),
        DevCommand::Status { place } => {
            let mut listing = Listing::new(
                "isx.dev.status/1",
                &["NODE:node", "ADDRESS:address", "PROCESS:pid", "LOG:log"],
            );
            for node in dev::nodes(&directory(&place))? {
                let process = node.pid.map_or_else(|| "not running".to_owned(), |pid| pid.to_string());
                let item = json!({"node": node.name, "address": node.address, "pid": node.pid, "log": node.log});
                listing.push(
                    vec![node.name, node.address, process, node.log.display().to_string()],
                    item,
                );
            }
            env.print_listing(&listing)
        }
        DevCommand::Kill { node, place } => {
            let node = find(&place, &node)?;
            if !dev::stop(&node, true)? {
                return env.print(&format!("{} was not running\n", node.name));
            }
            dev::wait_stopped(&node, Duration::from_secs(5))?;
            env.print(&format!(
                "{} killed\nnext  isxctl status        isxctl dev start {}\n",
                node.name, node.name
            ))
        }
        DevCommand::Start { node, place } => {
            let node = find(&place, &node)?;
            if node.pid.is_some() {
                return env.print(&format!("{} is running\n", node.name));
            }
            dev::start(&[&node])?;
            env.print(&format!("{} started\n", node.name))
        }
        DevCommand::Add { zone, place } => add(env, zone, &place).await,
        DevCommand::Data { count, seed } => {
            let width = count.max(1).ilog10() as usize + 1;
            let mut text = String::new();
            for index in 1..=count {
                let line =
                    json!({"key": format!("c-{index:0width$}"), "document": bench::sample_campaign(seed, index)});
                text += &format!("{line}\n");
            }
            env.print(&text)
        }
    }
}

fn find(place: &DevPlace, name: &str) -> Result<LocalNode, CtlError> {
    let nodes = dev::nodes(&directory(place))?;
    let found = nodes.into_iter().find(|node| node.name == name);
    found.ok_or_else(|| CtlError::from(DevError::NoNode(name.to_owned())).next("isxctl dev status"))
}

async fn add(env: &Environment, zone: Option<String>, place: &DevPlace) -> Ended {
    let directory = directory(place);
    let nodes = dev::nodes(&directory)?;
    let client = env.connect().await?;
    let line = super::cluster::join_line(env, &client, Duration::from_secs(600), false).await?;
    let number = |node: &LocalNode| node.name.trim_start_matches('n').parse().unwrap_or(0u32);
    let next = nodes.iter().map(number).max().unwrap_or(0) + 1;
    let node = dev::new_node(&directory, next, zone)?;
    dev::join(&directory, &node, &line.to_string())?;
    let found = find(place, &node.name)?;
    dev::start(&[&found])?;
    // It has joined once the directory has heard from it.
    let began = Instant::now();
    loop {
        let map = client.map().await?;
        let is_in = |info: &&crate::protocol::shard_map::NodeInfo| info.name == node.name;
        if let Some(info) = map.nodes.iter().find(is_in)
            && info.membership == crate::protocol::shard_map::Membership::Active
        {
            return env.print(&format!(
                "{} joined as {} in zone {} after {:.1} s\nnext  isxctl node list        isxctl rebalance plan\n",
                node.name,
                info.id,
                info.zone,
                began.elapsed().as_secs_f64()
            ));
        }
        if began.elapsed() > Duration::from_secs(20) {
            let text = format!(
                "{} was started and is no active member yet; its log: {}",
                node.name,
                found.log.display()
            );
            return Err(CtlError::new(exit::TIME_LIMIT, text).next("isxctl node list"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn up(env: &Environment, count: u32, fresh: bool, cuts: &FirstCuts, place: &DevPlace) -> Ended {
    let services = services(cuts)?;
    let directory = directory(place);
    let began = Instant::now();
    if fresh && directory.join("ca.pem").exists() {
        for node in dev::nodes(&directory)? {
            dev::stop(&node, true)?;
            dev::wait_stopped(&node, Duration::from_secs(5))?;
        }
        dev::wipe(&directory)?;
    }
    let known = directory.join("ca.pem").exists();
    if !known {
        env.say(&format!("making a cluster of {count} in {}", directory.display()));
        let context = dev::init_with(&directory, "dev", &dev::local_nodes(count)?, count.min(3), &services)?;
        dev::use_context("dev", context)?;
    }
    let nodes = dev::nodes(&directory)?;
    let stopped: Vec<&LocalNode> = nodes.iter().filter(|node| node.pid.is_none()).collect();
    dev::start(&stopped)?;
    let bar = env.progress(None, "{spinner} {msg}");
    bar.set_message("waiting until every shard has a leader");
    let shards: u64 = services.iter().map(NewService::shards).sum();
    let serving = wait_until_serving(env, Duration::from_secs(20 + shards / 100)).await;
    bar.finish_and_clear();
    serving?;
    let names: Vec<String> = nodes
        .iter()
        .map(|node| format!("{} {}", node.name, node.address))
        .collect();
    let seconds = began.elapsed().as_secs_f64();
    if env.format().is_json() {
        let items: Vec<Value> = nodes
            .iter()
            .map(|n| json!({"node": n.name, "address": n.address}))
            .collect();
        return env.print_json(&json!({"schema": "isx.dev.up/1", "seconds": seconds, "items": items}));
    }
    env.print(&format!(
        "{} nodes are up and serving after {seconds:.1} s: {}\n\nnext\n\
         \x20 isxctl campaign put c-1001 --data '{{\"name\":\"spring\",\"budget\":100}}'\n\
         \x20 isxctl campaign get c-1001\n\
         \x20 isxctl status\n\
         \x20 isxctl shard list\n\
         \x20 isxctl dev down\n",
        nodes.len(),
        names.join(", ")
    ))
}

/// Waits until every shard has a leader and every node answers.
async fn wait_until_serving(env: &Environment, limit: Duration) -> Result<(), CtlError> {
    let deadline = Instant::now() + limit;
    let client: Client = loop {
        match env.connect().await {
            Ok(client) => break client,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    loop {
        let asked = Instant::now();
        let statuses = client.statuses().await;
        let map = client.cached_map();
        let replicas = statuses
            .iter()
            .filter_map(|(_, status)| status.as_ref().ok())
            .flat_map(|status| &status.replicas);
        let led: BTreeSet<ShardId> = replicas
            .filter(|replica| replica.state == "leader")
            .map(|replica| replica.shard.id)
            .collect();
        let is_led = |shard: &ShardDescriptor| led.contains(&shard.id);
        if !map.shards.is_empty() && statuses.iter().all(|(_, s)| s.is_ok()) && map.shards.iter().all(is_led) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let silent: Vec<String> = statuses
                .iter()
                .filter_map(|(node, status)| status.as_ref().err().map(|error| format!("{}: {error}", node.name)))
                .collect();
            let mut error = CtlError::new(exit::UNREACHABLE, "the cluster started and does not serve yet");
            error.causes = silent;
            return Err(error.next("isxctl status").next("isxctl dev status     names the logs"));
        }
        // With thousands of shards an answer is work: the nodes are to come up, not to answer.
        tokio::time::sleep(Duration::from_millis(25).max(asked.elapsed() * 4)).await;
    }
}

fn down(env: &Environment, wipe: bool, place: &DevPlace) -> Ended {
    let directory = directory(place);
    let nodes = dev::nodes(&directory)?;
    if wipe {
        env.consent(&format!(
            "remove the local cluster in {} with its data",
            directory.display()
        ))?;
    }
    // One after the other: each hands its leaderships over to those that stay.
    let mut forced = Vec::new();
    let running: Vec<&LocalNode> = nodes.iter().filter(|node| node.pid.is_some()).collect();
    for node in &running {
        dev::stop(node, false)?;
    }
    for node in &running {
        if !dev::wait_stopped(node, Duration::from_secs(10))? {
            forced.push(node.name.clone());
        }
    }
    if wipe {
        dev::wipe(&directory)?;
    }
    let mut text = format!("{} nodes stopped", running.len());
    if !forced.is_empty() {
        text += &format!(", {} had to be killed", forced.join(", "));
    }
    text += if wipe {
        "; their data is removed\n"
    } else {
        "; their data stays: isxctl dev up starts them again\n"
    };
    env.print(&text)
}

/// The services of a new cluster, cut as the operator wants.
fn services(first: &FirstCuts) -> Result<Vec<NewService>, CtlError> {
    let mut services = dev::usual_services();
    for service in &mut services {
        service.cuts = Cuts::Even(first.presplit);
    }
    for text in &first.cuts {
        let usage = |why: &str| {
            CtlError::new(
                exit::USAGE,
                format!("--cuts takes SERVICE=KEY,KEY, not `{text}`: {why}"),
            )
        };
        let (name, keys) = text.split_once('=').ok_or_else(|| usage("there is no ="))?;
        let keys: Vec<String> = keys.split(',').map(str::to_owned).collect();
        let service = services.iter_mut().find(|service| service.name == name);
        let service = service.ok_or_else(|| usage("the services are campaign and profile"))?;
        for key in &keys {
            check_entity_key(key).map_err(|error| usage(&error.to_string()))?;
        }
        if !keys.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()) {
            return Err(usage("the keys must rise"));
        }
        service.cuts = Cuts::At(keys);
    }
    Ok(services)
}

pub(super) fn cluster(env: &Environment, command: ClusterCommand) -> Ended {
    let ClusterCommand::Init {
        name,
        nodes,
        replicas,
        out,
        cuts,
    } = command
    else {
        unreachable!("the other verbs ask a cluster")
    };
    let services = services(&cuts)?;
    let mut list = Vec::new();
    for text in &nodes {
        let usage = || {
            CtlError::new(
                exit::USAGE,
                format!("--nodes takes NAME=HOST:PORT[@ZONE], not `{text}`"),
            )
        };
        let (node, rest) = text.split_once('=').ok_or_else(usage)?;
        let (address, zone) = rest.split_once('@').unwrap_or((rest, ""));
        let name_ok = !node.is_empty() && node.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !name_ok || !address.contains(':') || list.iter().any(|known: &NewNode| known.name == node) {
            return Err(usage());
        }
        list.push(NewNode {
            name: node.to_owned(),
            address: address.to_owned(),
            zone: zone.to_owned(),
        });
    }
    let context = dev::init_with(&out, &name, &list, replicas.min(list.len() as u32), &services)?;
    let file = dev::use_context(&name, context)?;
    let mut text = format!(
        "made {} for {} nodes; context `{name}` is current in {}\n",
        out.display(),
        list.len(),
        file.display()
    );
    for node in &list {
        text += &format!(
            "  {0}/{1}/   goes to {1} ({2}):  isxd run --config isxd.toml\n",
            out.display(),
            node.name,
            node.address
        );
    }
    text += "keep ca.key and admin.key secret; ca.key on a node lets it sign new hosts\nnext  isxctl status\n";
    env.print(&text)
}

pub(super) fn context(env: &Environment, command: ContextCommand) -> Ended {
    let failed = |error: crate::client::context::ContextError| CtlError::from_error(exit::USAGE, &error);
    let path = Contexts::path(|variable| std::env::var(variable).ok()).map_err(failed)?;
    let mut contexts = Contexts::read(&path).map_err(failed)?;
    match command {
        ContextCommand::List => {
            let mut listing = Listing::new("isx.context.list/1", &["NAME:name", "CURRENT:current", "ENDPOINTS"]);
            for (name, context) in &contexts.contexts {
                let current = contexts.current.as_ref() == Some(name);
                let row = vec![
                    name.clone(),
                    if current { "yes" } else { "no" }.to_owned(),
                    context.endpoints.join(","),
                ];
                listing.push(
                    row,
                    json!({"name": name, "current": current, "endpoints": context.endpoints}),
                );
            }
            env.print_listing(&listing)
        }
        ContextCommand::Show { name } => {
            let (name, context) = contexts.find(name.as_deref(), &path).map_err(failed)?;
            let value = json!({
                "schema": "isx.context/1", "name": name, "file": path, "endpoints": context.endpoints,
                "cluster": context.cluster.map(|id| id.to_string()), "ca": context.ca,
                "certificate": context.certificate, "key": context.key,
            });
            env.print_json(&value)
        }
        ContextCommand::Use { name } => {
            contexts.find(Some(&name), &path).map_err(failed)?;
            contexts.current = Some(name.clone());
            contexts.write(&path).map_err(failed)?;
            env.print(&format!("{name} is current\n"))
        }
    }
}

pub(super) async fn bench(env: &Environment, args: &BenchArgs) -> Ended {
    let client = env.connect().await?;
    let place = DevPlace {
        dir: std::env::var_os("ISX_DEV_DIR").map(PathBuf::from),
    };
    let servers: Vec<i32> = match (&env.cli.context, dev::nodes(&directory(&place))) {
        (None, Ok(nodes)) => nodes.iter().filter_map(|node| node.pid).collect(),
        _ => Vec::new(),
    };
    let bar = env.progress(Some(args.duration), "{msg} {bar:30} {pos}/{len}  {per_sec}");
    let outcome = bench::run(&client, args, &servers, &bar).await;
    if env.format().is_json() {
        env.print_json(&outcome.json)?;
    } else {
        let counters = client.counters();
        env.print(&outcome.text)?;
        env.say(&format!(
            "client {} retries, {} hedges, {} connections",
            counters.retries, counters.hedges, counters.dials
        ));
    }
    if outcome.lost > 0 {
        return Err(CtlError::new(
            exit::UNEXPECTED,
            format!("{} acknowledged writes were not found again", outcome.lost),
        ));
    }
    Ok(exit::OK)
}
