//! Nodes, shards, services, tokens.
use serde_json::{Value, json};

use super::args::{NodeCommand, ShardCommand};
use super::exit::{self, CtlError};
use super::output::{Format, Listing, pretty, size, span};
use super::status::{Cluster, ShardHealth};
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::{NodeInfo, ShardDescriptor};

pub(super) async fn node(env: &Environment, command: NodeCommand) -> Ended {
    let command = match command {
        NodeCommand::Verb(verb) => return super::ops::node(env, verb).await,
        other => other,
    };
    let cluster = Cluster::ask(env).await?;
    match command {
        NodeCommand::Verb(_) => unreachable!("done above"),
        NodeCommand::List => {
            let columns = [
                "NODE",
                "ID",
                "ADDRESS",
                "ZONE",
                "MEMBERSHIP",
                "HEALTH",
                "LEADERS",
                "REPLICAS",
                "STORE",
                "VERSION",
                "UPTIME",
            ];
            let mut listing = Listing::new("isx.node.list/1", &columns);
            for node in &cluster.nodes {
                let status = cluster.answered.get(&node.id);
                let membership = format!("{:?}", node.membership).to_lowercase();
                let health = if status.is_some() { "up" } else { "down" };
                let leaders = status.map(|s| s.replicas.iter().filter(|replica| replica.state == "leader").count());
                let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
                listing.push(
                    vec![
                        node.name.clone(),
                        node.id.to_string(),
                        node.address.clone(),
                        node.zone.clone(),
                        membership.clone(),
                        health.to_owned(),
                        text(leaders.map(|n| n.to_string())),
                        text(status.map(|s| s.replicas.len().to_string())),
                        text(status.map(|s| size(s.store_bytes))),
                        text(status.map(|s| s.version.clone())),
                        text(status.map(|s| span(s.uptime_ms))),
                    ],
                    json!({
                        "node": node.name, "id": node.id.to_string(), "address": node.address, "zone": node.zone,
                        "membership": membership, "health": health, "leaders": leaders,
                        "replicas": status.map(|s| s.replicas.len()), "storeBytes": status.map(|s| s.store_bytes),
                        "version": status.map(|s| &s.version), "uptimeMs": status.map(|s| s.uptime_ms),
                    }),
                );
            }
            let ended = env.print_listing(&listing)?;
            for (node, why) in &cluster.silent {
                env.say(&format!("{} does not answer: {why}", cluster.node_name(*node)));
            }
            Ok(ended)
        }
        NodeCommand::Show { node } => show_node(env, &cluster, &node),
    }
}

pub(super) fn find_node<'a>(cluster: &'a Cluster, wanted: &str) -> Result<&'a NodeInfo, CtlError> {
    let id: Option<NodeId> = wanted.parse().ok();
    let found = cluster.nodes.iter().find(|node| node.name == wanted);
    found
        .or_else(|| cluster.nodes.iter().find(|node| Some(node.id) == id))
        .ok_or_else(|| CtlError::new(exit::NOT_FOUND, format!("there is no node `{wanted}`")).next("isxctl node list"))
}

fn show_node(env: &Environment, cluster: &Cluster, wanted: &str) -> Ended {
    let node = find_node(cluster, wanted)?;
    let Some(status) = cluster.answered.get(&node.id) else {
        let why = cluster.silent.get(&node.id).cloned().unwrap_or_default();
        let mut error = CtlError::new(
            exit::UNREACHABLE,
            format!("{} at {} does not answer", node.name, node.address),
        );
        error.causes.push(why);
        return Err(error.next("isxctl status"));
    };
    if matches!(env.format(), Format::Json | Format::Jsonl) {
        let counters: serde_json::Map<String, Value> = status
            .counters
            .iter()
            .map(|(name, count)| (name.clone(), json!(count)))
            .collect();
        let replicas: Vec<Value> = status
            .replicas
            .iter()
            .map(|replica| {
                json!({"shard": replica.shard.id.to_string(), "state": replica.state, "term": replica.term,
                       "applied": replica.applied, "committed": replica.committed, "lastIndex": replica.last_index,
                       "entities": replica.entities, "bytes": replica.bytes})
            })
            .collect();
        return env.print(&pretty(&json!({
            "schema": "isx.node.show/1", "node": node.name, "id": node.id.to_string(), "address": node.address,
            "zone": node.zone, "version": status.version, "uptimeMs": status.uptime_ms, "storeBytes": status.store_bytes,
            "diskFreeBytes": status.disk_free_bytes, "findings": status.findings, "counters": counters,
            "replicas": replicas,
        })));
    }
    let mut text = format!(
        "{} ({})   {}   zone {}   {:?}   isx {}   up {}\nstore {}   disk free {}\n",
        node.name,
        node.id,
        node.address,
        if node.zone.is_empty() { "-" } else { &node.zone },
        node.membership,
        status.version,
        span(status.uptime_ms),
        size(status.store_bytes),
        size(status.disk_free_bytes)
    );
    for peer in &status.peers {
        let heard = peer
            .heard_ms_ago
            .map_or_else(|| "never heard".to_owned(), |ms| format!("heard {} ago", span(ms)));
        let link = if peer.connected { "connected" } else { "not connected" };
        text += &format!("peer  {}   {link}   {heard}\n", cluster.node_name(peer.node));
    }
    let counters: Vec<String> = status
        .counters
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    text += &format!("counters  {}\n", counters.join("  "));
    for finding in &status.findings {
        text += &format!("finding  {finding}\n");
    }
    let mut listing = Listing::new(
        "",
        &[
            "SHARD",
            "SERVICE",
            "STATE",
            "TERM",
            "APPLIED",
            "COMMITTED",
            "ENTITIES",
            "SIZE",
            "REQ/S",
        ],
    );
    for replica in &status.replicas {
        listing.push(
            vec![
                replica.shard.id.to_string(),
                service_of(&replica.shard),
                replica.state.clone(),
                replica.term.to_string(),
                replica.applied.to_string(),
                replica.committed.to_string(),
                replica.entities.to_string(),
                size(replica.bytes),
                replica.requests_per_s.to_string(),
            ],
            Value::Null,
        );
    }
    env.print(&(text + &listing.render(Format::Table, true)))
}

pub(super) async fn shard(env: &Environment, command: ShardCommand) -> Ended {
    match command {
        ShardCommand::List { service, node, problem } => list_shards(env, service, node, problem).await,
        ShardCommand::Show { shard } => {
            let cluster = Cluster::ask(env).await?;
            let found = find_shard(&cluster, shard)?;
            show_shard(env, &cluster, &cluster.health_of(found))
        }
        ShardCommand::Find { service, key } => {
            let cluster = Cluster::ask(env).await?;
            let position = Position::new(&service, &key);
            let mut holding: Vec<&ShardDescriptor> = cluster
                .shards
                .values()
                .filter(|shard| shard.range.contains(&position))
                .collect();
            holding.sort_by_key(|shard| shard.epoch);
            let Some(found) = holding.last() else {
                return Err(
                    CtlError::new(exit::NOT_FOUND, format!("no shard holds {service}/{key}"))
                        .next("isxctl service list"),
                );
            };
            show_shard(env, &cluster, &cluster.health_of(found))
        }
        ShardCommand::Split { shard, at, dry_run } => split(env, shard, &at, dry_run).await,
        ShardCommand::Verb(verb) => super::ops::shard(env, verb).await,
        ShardCommand::Lead { shard, on } => lead(env, shard, &on).await,
    }
}

fn find_shard(cluster: &Cluster, id: ShardId) -> Result<&ShardDescriptor, CtlError> {
    cluster
        .shards
        .get(&id)
        .ok_or_else(|| CtlError::new(exit::NOT_FOUND, format!("there is no shard {id}")).next("isxctl shard list"))
}

fn service_of(shard: &ShardDescriptor) -> String {
    if shard.id == DIRECTORY_SHARD {
        "directory".to_owned()
    } else {
        shard.range.service().to_owned()
    }
}

fn bounds(range: &KeyRange) -> (String, String) {
    let show = |position: &Position| match position.parts() {
        (_, Some("")) | (_, None) => "-".to_owned(),
        (_, Some(key)) => key.to_owned(),
    };
    if range.service().is_empty() {
        ("-".to_owned(), "-".to_owned())
    } else {
        (show(&range.start), show(&range.end))
    }
}

fn shard_json(cluster: &Cluster, health: &ShardHealth<'_>) -> Value {
    let shard = health.shard;
    let (start, end) = bounds(&shard.range);
    let replicas: Vec<Value> = shard
        .replicas
        .iter()
        .map(|replica| json!({"node": cluster.node_name(replica.node), "replica": replica.id.to_string()}))
        .collect();
    json!({
        "shard": shard.id.to_string(), "service": service_of(shard), "start": start, "end": end,
        "epoch": shard.epoch.0, "leader": health.leader.map(|(node, _)| cluster.node_name(node)), "replicas": replicas,
        "bytes": health.leader.map(|(_, status)| status.bytes), "entities": health.leader.map(|(_, s)| s.entities),
        "requestsPerSecond": health.leader.map(|(_, s)| s.requests_per_s), "lag": health.lag, "state": health.state(),
    })
}

async fn list_shards(env: &Environment, service: Option<String>, node: Option<String>, problem: bool) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let node = node
        .map(|node| find_node(&cluster, &node).map(|info| info.id))
        .transpose()?;
    let columns = [
        "SHARD", "SERVICE", "START", "END", "LEADER", "REPLICAS", "SIZE", "ENTITIES", "REQ/S", "LAG", "EPOCH", "STATE",
    ];
    let mut listing = Listing::new("isx.shard.list/1", &columns);
    for health in cluster.in_order() {
        let shard = health.shard;
        let wanted = service.as_ref().is_none_or(|service| service_of(shard) == *service)
            && node.is_none_or(|node| shard.replica_on(node).is_some())
            && (!problem || health.state() != "ok");
        if !wanted {
            continue;
        }
        let (start, end) = bounds(&shard.range);
        let replicas: Vec<String> = shard
            .replicas
            .iter()
            .map(|replica| cluster.node_name(replica.node))
            .collect();
        let of = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let leader = health.leader.map(|(_, status)| status);
        listing.push(
            vec![
                shard.id.to_string(),
                service_of(shard),
                start,
                end,
                of(health.leader.map(|(node, _)| cluster.node_name(node))),
                replicas.join(","),
                of(leader.map(|status| size(status.bytes))),
                of(leader.map(|status| status.entities.to_string())),
                of(leader.map(|status| status.requests_per_s.to_string())),
                health.lag.to_string(),
                shard.epoch.to_string(),
                health.state().to_owned(),
            ],
            shard_json(&cluster, &health),
        );
    }
    env.print_listing(&listing)
}

fn show_shard(env: &Environment, cluster: &Cluster, health: &ShardHealth<'_>) -> Ended {
    let shard = health.shard;
    if matches!(env.format(), Format::Json | Format::Jsonl) {
        let mut value = shard_json(cluster, health);
        value["schema"] = "isx.shard.show/1".into();
        return env.print(&pretty(&value));
    }
    if env.format() == Format::Name {
        return env.print(&format!("{}\n", shard.id));
    }
    let (start, end) = bounds(&shard.range);
    let leader = health
        .leader
        .map_or_else(|| "none".to_owned(), |(node, _)| cluster.node_name(node));
    let mut text = format!(
        "{}  {}  [{start} .. {end})   epoch {}   leader {leader}   {}\n",
        shard.id,
        service_of(shard),
        shard.epoch,
        health.state()
    );
    if let Some((_, status)) = health.leader {
        text += &format!(
            "{} entities   {}   {} req/s   term {}   committed {}\n",
            status.entities,
            size(status.bytes),
            status.requests_per_s,
            status.term,
            status.committed
        );
    }
    let mut listing = Listing::new(
        "",
        &[
            "NODE",
            "REPLICA",
            "STATE",
            "TERM",
            "LAST",
            "COMMITTED",
            "APPLIED",
            "BEHIND",
        ],
    );
    for replica in &shard.replicas {
        let found = cluster.answered.get(&replica.node);
        let status = found.and_then(|node| node.replicas.iter().find(|status| status.shard.id == shard.id));
        let last = health.leader.map_or(0, |(_, leader)| leader.committed);
        let mut row = vec![cluster.node_name(replica.node), replica.id.to_string()];
        match status {
            Some(status) => row.extend([
                status.state.clone(),
                status.term.to_string(),
                status.last_index.to_string(),
                status.committed.to_string(),
                status.applied.to_string(),
                last.saturating_sub(status.applied).to_string(),
            ]),
            None => row.extend(["no answer", "-", "-", "-", "-", "-"].map(str::to_owned)),
        }
        listing.push(row, Value::Null);
    }
    env.print(&(text + &listing.render(Format::Table, true)))
}

async fn split(env: &Environment, id: ShardId, at: &str, dry_run: bool) -> Ended {
    let client = env.connect().await?;
    let map = client.map().await?;
    let Some(shard) = map.shards.iter().find(|shard| shard.id == id) else {
        return Err(CtlError::new(exit::NOT_FOUND, format!("there is no shard {id}")).next("isxctl shard list"));
    };
    let position = Position::new(shard.range.service(), at);
    let halves = shard.range.split(&position).filter(|_| id != DIRECTORY_SHARD);
    let Some((left, right)) = halves else {
        let (start, end) = bounds(&shard.range);
        let message = format!("`{at}` is not inside {id} [{start} .. {end})");
        return Err(CtlError::new(exit::REFUSED, message).next(format!("isxctl shard show {id}")));
    };
    let show = |range: &KeyRange| {
        let (start, end) = bounds(range);
        format!("[{start} .. {end})")
    };
    if dry_run {
        return env.print(&format!(
            "{id}  {}\n  left   {}\n  right  {}\n  no data moves between nodes\n\
             dry run: nothing changed.  to do it: isxctl shard split {id} --at {at}\n",
            show(&shard.range),
            show(&left),
            show(&right)
        ));
    }
    let (left, right) = client.split(shard, position, RequestId::random()).await?;
    if matches!(env.format(), Format::Json | Format::Jsonl) {
        let half = |half: &ShardDescriptor| {
            let (start, end) = bounds(&half.range);
            json!({"shard": half.id.to_string(), "start": start, "end": end, "epoch": half.epoch.0})
        };
        return env.print(&pretty(
            &json!({"schema": "isx.shard.split/1", "left": half(&left), "right": half(&right)}),
        ));
    }
    env.print(&format!(
        "split {id} at {at}\n  left   {}  {}   epoch {}\n  right  {}  {}   epoch {}\nnext  isxctl shard list\n",
        left.id,
        show(&left.range),
        left.epoch,
        right.id,
        show(&right.range),
        right.epoch
    ))
}

async fn lead(env: &Environment, shard: ShardId, on: &str) -> Ended {
    let client = env.connect().await?;
    let map = client.map().await?;
    let id: Option<NodeId> = on.parse().ok();
    let found = map
        .nodes
        .iter()
        .find(|node| node.name == on)
        .or_else(|| map.nodes.iter().find(|n| Some(n.id) == id));
    let Some(node) = found else {
        return Err(CtlError::new(exit::NOT_FOUND, format!("there is no node `{on}`")).next("isxctl node list"));
    };
    client.request(Request::TransferLeader { shard, to: node.id }).await?;
    // Asked is not done: wait until the node itself says that it leads.
    let deadline = std::time::Instant::now() + env.cli.timeout;
    loop {
        if let Ok(Response::Status(status)) = client.ask(node.id, Request::Status).await {
            let leads = |replica: &&crate::protocol::request::ReplicaStatus| {
                replica.shard.id == shard && replica.state == "leader"
            };
            if status.replicas.iter().any(|replica| leads(&replica)) {
                return env.print(&format!("{shard} is led by {}\n", node.name));
            }
        }
        if std::time::Instant::now() > deadline {
            let message = format!("{} was asked to lead {shard} and does not yet", node.name);
            let mut error = CtlError::new(exit::TIME_LIMIT, message);
            error.committed = "unknown";
            return Err(error.next(format!("isxctl shard show {shard}")));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

pub(super) async fn services(env: &Environment) -> Ended {
    let client = env.connect().await?;
    let map = client.map().await?;
    let mut listing = Listing::new("isx.service.list/1", &["SERVICE", "SHARDS", "REPLICAS", "PRESPLIT"]);
    for service in &map.services {
        let shards = map
            .shards
            .iter()
            .filter(|shard| shard.range.service() == service.name)
            .count();
        listing.push(
            vec![
                service.name.clone(),
                shards.to_string(),
                service.replicas.to_string(),
                service.presplit.to_string(),
            ],
            json!({"service": service.name, "shards": shards, "replicas": service.replicas, "presplit": service.presplit}),
        );
    }
    env.print_listing(&listing)
}

pub(super) async fn token(env: &Environment, ttl: std::time::Duration) -> Ended {
    let client = env.connect().await?;
    let token = new_token(&client, ttl).await?;
    env.say(&format!(
        "valid for {}. On the new host, with a name and address of its own:",
        span(ttl.as_millis() as u64)
    ));
    env.print(&format!(
        "isxd join '{token}' --name n4 --listen 192.0.2.4:7401 --dir /etc/isx\n"
    ))
}

pub(super) async fn new_token(client: &Client, ttl: std::time::Duration) -> Result<String, CtlError> {
    match client.request(Request::CreateToken { ttl_s: ttl.as_secs() }).await? {
        Response::Token { token } => Ok(token),
        _ => Err(CtlError::new(exit::UNEXPECTED, "the node answered with something else")),
    }
}

pub(super) async fn version(env: &Environment, all: bool) -> Ended {
    let own = env!("CARGO_PKG_VERSION");
    if !all {
        return env.print(&format!("isxctl {own}\n"));
    }
    let cluster = Cluster::ask(env).await?;
    let mut listing = Listing::new("isx.version.list/1", &["WHAT", "VERSION"]);
    listing.push(
        vec!["isxctl".into(), own.into()],
        json!({"what": "isxctl", "version": own}),
    );
    for node in &cluster.nodes {
        let version = cluster
            .answered
            .get(&node.id)
            .map_or("no answer", |status| status.version.as_str());
        listing.push(
            vec![node.name.clone(), version.to_owned()],
            json!({"what": node.name, "version": version}),
        );
    }
    env.print_listing(&listing)
}
