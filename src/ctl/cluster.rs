//! Nodes, shards, services, tokens.
use serde_json::{Value, json};

use super::args::{NodeCommand, ShardCommand};
use super::exit::{self, CtlError};
use super::output::{Format, Listing, Shape, size, span};
use super::status::{Cluster, ShardHealth};
use super::{Ended, Environment};
use crate::client::{Client, ClientError, ConnectOptions, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::{NodeInfo, ShardDescriptor};
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
            let columns = [
                "NODE:node",
                "ADDRESS:address",
                "ZONE:zone",
                "MEMBERSHIP:membership",
                "HEALTH:health",
                "LEADERS:leaders",
                "REPLICAS:replicas",
                "STORE:storeBytes",
                "VERSION:version",
                "UPTIME:uptimeMs",
                "SEEN:silentMs",
                "+ID:id",
                "+DISK-FREE:diskFreeBytes",
            ];
            let mut listing = Listing::new("isx.node.list/1", &columns);
            listing.about = cluster.envelope();
            for node in &cluster.nodes {
                let status = cluster.answered.get(&node.id);
                let membership = format!("{:?}", node.membership).to_lowercase();
                let health = if status.is_some() { "up" } else { "down" };
                let leaders = status.map(|s| s.replicas.iter().filter(|replica| replica.state == "leader").count());
                let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
                let silent_ms = cluster.silent_for_ms(node.id);
                listing.push(
                    vec![
                        node.name.clone(),
                        node.address.clone(),
                        if node.zone.is_empty() {
                            "-".to_owned()
                        } else {
                            node.zone.clone()
                        },
                        membership.clone(),
                        health.to_owned(),
                        text(leaders.map(|n| n.to_string())),
                        text(status.map(|s| s.replicas.len().to_string())),
                        text(status.map(|s| size(s.store_bytes))),
                        text(status.map(|s| s.version.clone())),
                        text(status.map(|s| span(s.uptime_ms))),
                        match (status, silent_ms) {
                            (Some(_), _) => "now".to_owned(),
                            (None, Some(ms)) => format!("{} ago", span(ms)),
                            (None, None) => "-".to_owned(),
                        },
                        node.id.to_string(),
                        text(status.map(|s| size(s.disk_free_bytes))),
                    ],
                    json!({
                        "node": node.name, "id": node.id.to_string(), "address": node.address, "zone": node.zone,
                        "membership": membership, "health": health, "leaders": leaders,
                        "replicas": status.map(|s| s.replicas.len()), "storeBytes": status.map(|s| s.store_bytes),
                        "version": status.map(|s| &s.version), "uptimeMs": status.map(|s| s.uptime_ms),
                        "silentMs": silent_ms, "diskFreeBytes": status.map(|s| s.disk_free_bytes),
                    }),
                );
            }
            let ended = env.print_listing(&listing)?;
            cluster.say_who_is_missing(env);
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
            "replicas": replicas,
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
        ShardCommand::Split {
            shard,
            at,
            into,
            dry_run,
        } => split(env, shard, at, into, dry_run).await,
        ShardCommand::Verb(verb) => super::ops::shard(env, verb).await,
        ShardCommand::Verify { shard } => super::verify::verify(env, shard).await,
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
        "requestsPerSecond": health.leader.map(|(_, s)| s.requests_per_s), "term": health.leader.map(|(_, s)| s.term),
        "committed": health.leader.map(|(_, s)| s.committed), "lag": health.lag, "state": health.state(),
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

async fn split(env: &Environment, id: ShardId, at: Option<String>, into: Option<u32>, dry_run: bool) -> Ended {
    let client = env.connect().await?;
    let began = std::time::Instant::now();
    // A shard that was split off a moment ago is not known to every node yet.
    let shard = loop {
        let map = client.map().await?;
        if let Some(shard) = map.shards.iter().find(|shard| shard.id == id) {
            break shard.clone();
        }
        if began.elapsed() > KNOWN_EVERYWHERE_AFTER {
            return Err(CtlError::new(exit::NOT_FOUND, format!("there is no shard {id}")).next("isxctl shard list"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    };
    let shard = &shard;
    let show = |range: &KeyRange| {
        let (start, end) = bounds(range);
        format!("[{start} .. {end})")
    };
    if id == DIRECTORY_SHARD {
        let message = format!("{id} is the directory: it has no keys to split at");
        return Err(CtlError::new(exit::REFUSED, message).next("isxctl shard list --service campaign"));
    }
    let cuts = match (at, into) {
        (Some(at), _) => vec![at],
        (None, parts) => even_cuts(&client, &shard.range, parts.unwrap_or(2)).await?,
    };
    // Each cut is made in what the one before left on its right.
    let mut rest = shard.range.clone();
    let mut parts = Vec::new();
    for cut in &cuts {
        let Some((left, right)) = rest.split(&Position::new(shard.range.service(), cut)) else {
            let message = format!("`{cut}` is not inside {id} {}", show(&shard.range));
            return Err(CtlError::new(exit::REFUSED, message).next(format!("isxctl shard show {id}")));
        };
        parts.push(left);
        rest = right;
    }
    parts.push(rest);
    if dry_run {
        let again = match into {
            Some(parts) => format!("--into {parts}"),
            None => format!("--at {}", cuts.concat()),
        };
        if env.format().is_json() {
            let parts: Vec<Value> = parts
                .iter()
                .map(bounds)
                .map(|(start, end)| json!({"start": start, "end": end}))
                .collect();
            return env.print_json(
                &json!({"schema": "isx.shard.split/1", "dryRun": true, "shard": id.to_string(),
                                          "parts": parts, "next": [format!("isxctl shard split {id} {again}")]}),
            );
        }
        let parts: String = parts.iter().map(|part| format!("  part  {}\n", show(part))).collect();
        return env.print(&format!(
            "{id}  {}\n{parts}  no data moves between nodes\n\
             dry run: nothing changed.  to do it: isxctl shard split {id} {again}\n",
            show(&shard.range),
        ));
    }
    let mut made: Vec<ShardDescriptor> = Vec::new();
    let mut whole = shard.clone();
    for cut in &cuts {
        let (left, right) = split_at(&client, &whole, Position::new(shard.range.service(), cut))
            .await
            .map_err(|error| {
                let mut error = CtlError::from(error);
                if !made.is_empty() {
                    error.committed = "yes";
                    error
                        .causes
                        .push(format!("{} of {} cuts were made before", made.len(), cuts.len()));
                }
                error
            })?;
        made.push(left);
        whole = right;
    }
    made.push(whole);
    if env.format().is_json() {
        let part = |part: &ShardDescriptor| {
            let (start, end) = bounds(&part.range);
            json!({"shard": part.id.to_string(), "start": start, "end": end, "epoch": part.epoch.0})
        };
        let parts: Vec<Value> = made.iter().map(part).collect();
        return env.print_json(
            &json!({"schema": "isx.shard.split/1", "dryRun": false, "shard": id.to_string(),
                                      "parts": parts, "next": ["isxctl shard list"]}),
        );
    }
    let parts: String = made
        .iter()
        .map(|part| format!("  {}  {}   epoch {}\n", part.id, show(&part.range), part.epoch))
        .collect();
    env.print(&format!(
        "split {id} at {}\n{parts}next  isxctl shard list\n",
        cuts.join(", ")
    ))
}

/// Nodes report what is new every second.
const KNOWN_EVERYWHERE_AFTER: std::time::Duration = std::time::Duration::from_millis(1_500);

/// Cuts a shard; where somebody else is changing it, or has just changed it, again with what it is then.
async fn split_at(
    client: &Client,
    shard: &ShardDescriptor,
    at: Position,
) -> Result<(ShardDescriptor, ShardDescriptor), ClientError> {
    let began = std::time::Instant::now();
    let mut shard = shard.clone();
    loop {
        let error = match client.split(&shard, at.clone(), RequestId::random()).await {
            Ok(halves) => return Ok(halves),
            Err(error) => error,
        };
        let may_pass = matches!(&error, ClientError::Refused(wire)
            if matches!(wire.code, Code::StaleEpoch | Code::ChangePending | Code::ShardFrozen));
        if !may_pass || began.elapsed() > client.timeout() {
            return Err(error);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = client.map().await?;
        if let Some(known) = now.shards.iter().find(|known| known.id == shard.id) {
            shard.clone_from(known);
        }
        // The leader's own copy is newer than any map.
        for (_, status) in client.statuses().await {
            for replica in status.iter().flat_map(|status| &status.replicas) {
                if replica.shard.id == shard.id && replica.shard.epoch > shard.epoch {
                    shard.clone_from(&replica.shard);
                }
            }
        }
    }
}

/// Keys that cut what a shard holds into `parts` parts of as many entities each.
async fn even_cuts(client: &Client, range: &KeyRange, parts: u32) -> Result<Vec<String>, CtlError> {
    let key = |position: &Position| match position.parts() {
        (service, Some(key)) if service == range.service() => Some(key.to_owned()),
        _ => None,
    };
    let mut query = ListQuery {
        service: range.service().to_owned(),
        from: key(&range.start).unwrap_or_default(),
        to: key(&range.end).filter(|key| !key.is_empty()),
        ..ListQuery::default()
    };
    // Every n-th key, n doubled whenever there are many: enough to cut by, however large the shard.
    const SAMPLES_MAX: usize = 8_192;
    let (mut samples, mut every, mut seen) = (Vec::new(), 1, 0u64);
    loop {
        let page = client.list(&query).await?;
        for item in page.items {
            if seen % every == 0 {
                samples.push(item.key);
            }
            seen += 1;
            if samples.len() >= SAMPLES_MAX {
                let mut keep = false;
                samples.retain(|_| {
                    keep = !keep;
                    keep
                });
                every *= 2;
            }
        }
        match page.next {
            Some(next) => query.resume = Some(next),
            None => break,
        }
    }
    if samples.len() < parts as usize {
        let message = format!("too few entities to cut into {parts} parts by: {seen}; name the cut: --at KEY");
        return Err(CtlError::new(exit::REFUSED, message));
    }
    let step = samples.len() as f64 / f64::from(parts);
    Ok((1..parts)
        .map(|part| samples[(f64::from(part) * step) as usize].clone())
        .collect())
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
                if env.format().is_json() {
                    let value = json!({"schema": "isx.shard.lead/1", "shard": shard.to_string(), "leader": node.name});
                    return env.print_json(&value);
                }
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
    let mut listing = Listing::new(
        "isx.service.list/1",
        &[
            "SERVICE:service",
            "SHARDS:shards",
            "REPLICAS:replicas",
            "PRESPLIT:presplit",
        ],
    );
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
    let line = join_line(env, &client, ttl).await?;
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
) -> Result<JoinLine, CtlError> {
    let answer = client.request(Request::CreateToken { ttl_s: ttl.as_secs() }).await?;
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
