//! Nodes, shards, services, tokens.
use serde_json::{Value, json};

use super::args::{NodeCommand, ShardCommand};
use super::exit::{self, CtlError};
use super::output::{Format, Listing, Shape, size, span, timestamp};
use super::status::{Cluster, ShardHealth};
use super::{Ended, Environment};
use crate::client::{Client, ConnectOptions};
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::op::Intent;
use crate::protocol::operator::{self, MarkChange, Order};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::{Membership, NodeInfo, ShardDescriptor};
use crate::security::ca::{JoinLine, Pin};

pub(super) async fn node(env: &Environment, command: NodeCommand) -> Ended {
    let command = match command {
        NodeCommand::Verb(verb) => return super::ops::node(env, verb).await,
        other => other,
    };
    let cluster = Cluster::ask(env).await?;
    match command {
        NodeCommand::Verb(_) => unreachable!("done above"),
        NodeCommand::List => {
            let listing = list_nodes(&cluster);
            let ended = env.print_listing(&listing)?;
            cluster.say_who_is_missing(env);
            Ok(ended)
        }
        NodeCommand::Show { node } => show_node(env, &cluster, &node),
    }
}

/// Membership with what lies over it.
pub(super) fn membership(cluster: &Cluster, node: &NodeInfo) -> String {
    let mut text = format!("{:?}", node.membership).to_lowercase();
    match node.overlay.intent {
        Intent::Stay => {}
        // Leaving says so already.
        _ if node.membership != Membership::Active => {}
        intent => {
            let status = cluster.answered.get(&node.id);
            let left = status.map_or(0, |status| match intent {
                Intent::DrainAll => status.replicas.len(),
                _ => status
                    .replicas
                    .iter()
                    .filter(|replica| replica.state == "leader")
                    .count(),
            });
            text += if left == 0 { ", drained" } else { ", draining" };
        }
    }
    let until_ms = node.overlay.maintenance_until_ms;
    if until_ms > cluster.as_of_ms {
        text += &format!(", maintenance for {}", span(until_ms - cluster.as_of_ms));
    }
    text
}

fn list_nodes(cluster: &Cluster) -> Listing {
    let columns = [
        "NODE:node",
        "ZONE:zone",
        "MEMBERSHIP:membership",
        "HEALTH:health",
        "LEADERS:leaders",
        "REPLICAS:replicas",
        "DISK:diskUsedPercent",
        "LOAD:requestsPerSecond",
        "VERSION:version",
        "CERT:certificateEndsMs",
        "SEEN:silentMs",
        "+ADDRESS:address",
        "+ID:id",
        "+STORE:storeBytes",
        "+UPTIME:uptimeMs",
        "+DISK-FREE:diskFreeBytes",
    ];
    let mut listing = Listing::new("isx.node.list/1", &columns);
    listing.about = cluster.envelope();
    for node in &cluster.nodes {
        let status = cluster.answered.get(&node.id);
        let silent_ms = cluster.silent_for_ms(node.id);
        let is_joining = matches!(node.membership, Membership::Pending | Membership::Joining);
        let health = match (status, silent_ms) {
            (Some(_), _) => "up",
            // Nobody has heard from it yet, and nobody should have.
            (None, _) if is_joining => "-",
            (None, Some(ms)) if ms < SUSPECT_BELOW_MS => "suspect",
            (None, _) => "down",
        };
        let led = || {
            status
                .iter()
                .flat_map(|s| &s.replicas)
                .filter(|replica| replica.state == "leader")
        };
        let leaders = status.map(|_| led().count());
        let load = status.map(|_| led().map(|replica| replica.requests_per_s).sum::<u64>());
        let disk = status.filter(|s| s.disk_total_bytes > 0).map(|s| {
            let used = s.disk_total_bytes.saturating_sub(s.disk_free_bytes);
            (u128::from(used) * 100).div_ceil(u128::from(s.disk_total_bytes)) as u64
        });
        let ends_ms = status.map(|s| s.certificate_ends_ms).filter(|&ms| ms > 0);
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let membership = membership(cluster, node);
        listing.push(
            vec![
                node.name.clone(),
                text(Some(node.zone.clone()).filter(|zone| !zone.is_empty())),
                membership.clone(),
                health.to_owned(),
                text(leaders.map(|n| n.to_string())),
                text(status.map(|s| s.replicas.len().to_string())),
                text(disk.map(|percent| format!("{percent} %"))),
                text(load.map(|load| load.to_string())),
                text(status.map(|s| s.version.clone())),
                text(ends_ms.map(|ms| format!("{} d", ms.saturating_sub(super::ops::now_ms()) / 86_400_000))),
                match (status, silent_ms) {
                    (Some(_), _) => "now".to_owned(),
                    (None, Some(ms)) => format!("{} ago", span(ms)),
                    (None, None) => "-".to_owned(),
                },
                node.address.clone(),
                node.id.to_string(),
                text(status.map(|s| size(s.store_bytes))),
                text(status.map(|s| span(s.uptime_ms))),
                text(status.map(|s| size(s.disk_free_bytes))),
            ],
            json!({
                "node": node.name, "id": node.id.to_string(), "address": node.address, "zone": node.zone,
                "membership": membership, "health": health, "leaders": leaders, "requestsPerSecond": load,
                "replicas": status.map(|s| s.replicas.len()), "storeBytes": status.map(|s| s.store_bytes),
                "version": status.map(|s| &s.version), "uptimeMs": status.map(|s| s.uptime_ms),
                "silentMs": silent_ms, "diskFreeBytes": status.map(|s| s.disk_free_bytes),
                "diskTotalBytes": status.map(|s| s.disk_total_bytes), "diskUsedPercent": disk,
                "labels": node.overlay.labels, "certificateEndsMs": ends_ms,
            }),
        );
    }
    listing
}

/// Silent for longer is down; as in the core.
const SUSPECT_BELOW_MS: u64 = 5_000;

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
    if env.format().is_json() {
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
        return env.print_json(&json!({
            "schema": "isx.node.show/1", "node": node.name, "id": node.id.to_string(), "address": node.address,
            "zone": node.zone, "version": status.version, "uptimeMs": status.uptime_ms, "storeBytes": status.store_bytes,
            "diskFreeBytes": status.disk_free_bytes, "findings": status.findings, "counters": counters,
            "certificateEndsMs": status.certificate_ends_ms, "replicas": replicas,
        }));
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
    if status.certificate_ends_ms > 0 {
        text += &format!("certificate  good until {}\n", timestamp(status.certificate_ends_ms));
    }
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
    env.print(&(text + &listing.render(Format::Table, &Shape::headed()).unwrap_or_default()))
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
        ShardCommand::Split(args) => super::split::split(env, args).await,
        ShardCommand::Verb(verb) => super::ops::shard(env, verb).await,
        ShardCommand::Freeze { shard, span } => super::freeze::hold(env, shard, Some(span)).await,
        ShardCommand::Thaw { shard } => super::freeze::hold(env, shard, None).await,
        ShardCommand::Verify { shard } => super::verify::verify(env, shard).await,
        ShardCommand::Lead { shard, on, pin, .. } => match on {
            Some(on) => lead(env, shard, &on, pin).await,
            None => unpin(env, shard).await,
        },
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

pub(super) fn bounds(range: &KeyRange) -> (String, String) {
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

/// What operators laid down for a shard, and what it is going through.
fn marks_of(cluster: &Cluster, shard: &ShardDescriptor) -> Vec<String> {
    let mut marks = Vec::new();
    if let Some(frozen) = shard.frozen {
        marks.push(match frozen.into {
            DIRECTORY_SHARD => "closed to be dropped".to_owned(),
            into => format!("frozen for {into}"),
        });
    }
    if let Some(held) = shard.held.filter(|held| held.ends_ms > cluster.as_of_ms) {
        let left = span(held.ends_ms.saturating_sub(cluster.as_of_ms));
        marks.push(format!("frozen by an operator for {left}"));
    }
    let Some(laid_down) = cluster.policy.marks.get(&shard.id) else {
        return marks;
    };
    let left = |until_ms: u64| span(until_ms.saturating_sub(cluster.as_of_ms));
    let laid_down = laid_down.at(cluster.as_of_ms);
    if let Some(pin) = laid_down.pin {
        marks.push(format!(
            "pinned to {} for {}",
            cluster.node_name(pin.node),
            left(pin.until_ms)
        ));
    }
    if let Some(replicas) = laid_down.replicas {
        marks.push(format!("{replicas} copies"));
    }
    if laid_down.sticky_until_ms > 0 {
        marks.push(format!("not merged for {}", left(laid_down.sticky_until_ms)));
    }
    marks
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
        "requestsPerSecond": health.leader.map(|(_, s)| s.requests_per_s), "term": health.leader.map(|(_, s)| s.term),
        "committed": health.leader.map(|(_, s)| s.committed), "lag": health.lag, "state": health.state(),
        "marks": marks_of(cluster, shard),
    })
}

async fn list_shards(env: &Environment, service: Option<String>, node: Option<String>, problem: bool) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let node = node
        .map(|node| find_node(&cluster, &node).map(|info| info.id))
        .transpose()?;
    let columns = [
        "SHARD:shard",
        "SERVICE:service",
        "START:start",
        "END:end",
        "LEADER:leader",
        "REPLICAS",
        "SIZE:bytes",
        "ENTITIES:entities",
        "REQ/S:requestsPerSecond",
        "LAG:lag",
        "EPOCH:epoch",
        "STATE:state",
        "MARKS:marks",
        "+TERM:term",
        "+COMMITTED:committed",
    ];
    let mut listing = Listing::new("isx.shard.list/1", &columns);
    listing.about = cluster.envelope();
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
                of(Some(marks_of(&cluster, shard).join(", ")).filter(|marks| !marks.is_empty())),
                of(leader.map(|status| status.term.to_string())),
                of(leader.map(|status| status.committed.to_string())),
            ],
            shard_json(&cluster, &health),
        );
    }
    let ended = env.print_listing(&listing)?;
    cluster.say_who_is_missing(env);
    Ok(ended)
}

fn show_shard(env: &Environment, cluster: &Cluster, health: &ShardHealth<'_>) -> Ended {
    let shard = health.shard;
    if env.format().is_json() {
        let mut value = shard_json(cluster, health);
        value["schema"] = "isx.shard.show/1".into();
        return env.print_json(&value);
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
    env.print(&(text + &listing.render(Format::Table, &Shape::headed()).unwrap_or_default()))
}

async fn unpin(env: &Environment, shard: ShardId) -> Ended {
    let client = env.connect().await?;
    let change = MarkChange::Unpin;
    let order = Order::Mark { shard, change };
    let id = RequestId::random();
    client.request(Request::Order { order, id }).await?;
    env.print(&format!("{shard} is pinned to no node\n"))
}

async fn lead(env: &Environment, shard: ShardId, on: &str, pin: Option<std::time::Duration>) -> Ended {
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
    let until_ms = pin.map(|pin| super::ops::now_ms() + pin.as_millis() as u64);
    if let Some(until_ms) = until_ms {
        let node = node.id;
        let change = MarkChange::Pin(operator::Pin { node, until_ms });
        let order = Order::Mark { shard, change };
        let id = RequestId::random();
        client.request(Request::Order { order, id }).await?;
    }
    client.request(Request::TransferLeader { shard, to: node.id }).await?;
    // Asked is not done: wait until the node itself says that it leads.
    let deadline = std::time::Instant::now() + env.cli.timeout;
    loop {
        if let Ok(Response::Status(status)) = client.ask(node.id, Request::Status).await {
            let leads = |replica: &&crate::protocol::request::ReplicaStatus| {
                replica.shard.id == shard && replica.state == "leader"
            };
            if status.replicas.iter().any(|replica| leads(&replica)) {
                if env.format().is_json() {
                    let value = json!({"schema": "isx.shard.lead/1", "shard": shard.to_string(), "leader": node.name,
                                       "pinnedUntil": until_ms.map(timestamp)});
                    return env.print_json(&value);
                }
                let pinned = until_ms.map_or_else(String::new, |until| format!(", pinned until {}", timestamp(until)));
                return env.print(&format!("{shard} is led by {}{pinned}\n", node.name));
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

pub(super) async fn token(env: &Environment, ttl: std::time::Duration) -> Ended {
    let client = env.connect().await?;
    let line = join_line(env, &client, ttl, false).await?;
    if env.format().is_json() {
        let value = json!({"schema": "isx.token/1", "line": line.to_string(), "validForSeconds": ttl.as_secs()});
        return env.print_json(&value);
    }
    env.say(&format!(
        "valid for {}. On the new host, with a name and address of its own:",
        span(ttl.as_millis() as u64)
    ));
    env.print(&format!(
        "isxd join '{line}' --name n4 --listen 192.0.2.4:7401 --dir /etc/isx\n"
    ))
}

/// Everything that a new host needs: it knows nobody yet, so the line tells it whom to ask, and by which authority to
/// know them.
pub(super) async fn join_line(
    env: &Environment,
    client: &Client,
    ttl: std::time::Duration,
    approve: bool,
) -> Result<JoinLine, CtlError> {
    let answer = client
        .request(Request::CreateToken {
            ttl_s: ttl.as_secs(),
            approve,
        })
        .await?;
    let Response::Token { token } = answer else {
        return Err(CtlError::new(exit::UNEXPECTED, "the node answered with something else"));
    };
    let ca = ConnectOptions::from_context(env.cli.context.as_deref())?.identity.ca;
    let unusable = |error: &dyn std::error::Error| {
        let mut this = CtlError::from_error(exit::USAGE, error);
        this.message = format!(
            "cannot use the certificate authority `{}`: {}",
            ca.display(),
            this.message
        );
        this
    };
    let pem = std::fs::read_to_string(&ca).map_err(|error| unusable(&error))?;
    Ok(JoinLine {
        endpoints: client.cached_map().nodes.into_iter().map(|node| node.address).collect(),
        pin: Pin::of_pem(&pem).map_err(|error| unusable(&error))?,
        token,
    })
}

pub(super) async fn version(env: &Environment, all: bool) -> Ended {
    let own = env!("CARGO_PKG_VERSION");
    if !all && env.format().is_json() {
        return env.print_json(&json!({"schema": "isx.version/1", "isxctl": own}));
    }
    if !all {
        return env.print(&format!("isxctl {own}\n"));
    }
    let cluster = Cluster::ask(env).await?;
    let mut listing = Listing::new("isx.version.list/1", &["WHAT:what", "VERSION:version"]);
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
