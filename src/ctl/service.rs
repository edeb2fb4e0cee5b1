//! Services: what there is, new ones, and those that go.
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::output::{self, Listing};
use super::status::{Cluster, ShardHealth};
use super::{Ended, Environment};
use crate::client::{Client, ClientError, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, base32};
use crate::protocol::key::Position;
use crate::protocol::request::{ReplicaStatus, Request};
use crate::protocol::schema::Schema;
use crate::protocol::schema::bundle::SchemaRecord;
use crate::protocol::schema::index;
use crate::protocol::shard_map::ServiceInfo;

/// What is known of one service.
struct Known<'a> {
    info: &'a ServiceInfo,
    shards: Vec<ShardHealth<'a>>,
    /// Its newest schema with the version; `None`: it has none, or nobody can say.
    schema: Option<(u64, Schema)>,
}

impl Known<'_> {
    /// Over the leaders that answered.
    fn sum(&self, of: fn(&ReplicaStatus) -> u64) -> u64 {
        let led = self.shards.iter().filter_map(|shard| shard.leader);
        led.map(|(_, status)| of(status)).sum()
    }

    /// Whether every shard's leader told what it has.
    fn is_whole(&self) -> bool {
        self.shards.iter().all(|shard| shard.leader.is_some())
    }

    fn relations(&self, of: fn(&Schema) -> Vec<(&str, &str)>) -> Vec<(&str, &str)> {
        self.schema.as_ref().map_or_else(Vec::new, |(_, schema)| of(schema))
    }

    /// Field and service.
    fn parents(&self) -> Vec<(&str, &str)> {
        self.relations(|schema| schema.parents.iter().map(|r| (&*r.field, &*r.service)).collect())
    }

    /// Field and service.
    fn children(&self) -> Vec<(&str, &str)> {
        self.relations(|schema| schema.children.iter().map(|r| (&*r.field, &*r.service)).collect())
    }

    fn version(&self) -> String {
        self.schema
            .as_ref()
            .map_or_else(|| "-".to_owned(), |(version, _)| format!("v{version}"))
    }

    fn split_at(&self) -> String {
        let sizes = &self.info.sizes;
        let load = match sizes.split_load {
            0 => String::new(),
            rate => format!(" or {rate}/s"),
        };
        output::size(sizes.split_bytes) + &load
    }

    fn json(&self) -> Value {
        let sizes = &self.info.sizes;
        let pairs = |pairs: Vec<(&str, &str)>| {
            let one = |(field, service)| json!({"field": field, "service": service});
            pairs.into_iter().map(one).collect::<Vec<Value>>()
        };
        json!({"service": self.info.name, "schema": self.schema.as_ref().map(|(version, _)| version),
               "entities": self.sum(|r| r.entities), "bytes": self.sum(|r| r.bytes), "complete": self.is_whole(),
               "shards": self.shards.len(), "replicas": self.info.replicas, "presplit": self.info.presplit,
               "splitBytes": sizes.split_bytes, "splitLoad": sizes.split_load, "mergeBytes": sizes.merge_bytes,
               "minShards": sizes.min_shards, "parents": pairs(self.parents()), "children": pairs(self.children())})
    }
}

/// Schemas are kept by the directory; what the nodes tell is shown without it.
async fn schemas(env: &Environment, service: Option<&str>) -> Option<Vec<SchemaRecord>> {
    let client = env.connect().await.ok()?;
    let records = super::schema::records(&client, service).await;
    client.close().await;
    records.ok()
}

/// A service's newest schema among the records.
fn newest(records: &[SchemaRecord], service: &str) -> Result<Option<(u64, Schema)>, CtlError> {
    let mine = records.iter().filter(|record| record.schema.service == service);
    let Some(record) = mine.max_by_key(|record| record.schema.version) else {
        return Ok(None);
    };
    let read = Schema::parse(&record.schema.text);
    let schema = read.map_err(|error| CtlError::new(exit::SKEW, error.to_string()))?;
    Ok(Some((record.schema.version, schema)))
}

fn known<'a>(cluster: &'a Cluster, info: &'a ServiceInfo, records: &[SchemaRecord]) -> Result<Known<'a>, CtlError> {
    let mut shards = cluster.in_order();
    shards.retain(|health| health.shard.range.service() == info.name);
    Ok(Known {
        info,
        shards,
        schema: newest(records, &info.name)?,
    })
}

fn names(pairs: &[(&str, &str)]) -> String {
    let mut names: Vec<&str> = pairs.iter().map(|(_, service)| *service).collect();
    names.dedup();
    match names.as_slice() {
        [] => "-".to_owned(),
        names => names.join(", "),
    }
}

pub(super) async fn list(env: &Environment) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let records = schemas(env, None).await;
    let columns = [
        "SERVICE:service",
        "SCHEMA:schema",
        "ENTITIES:entities",
        "SHARDS:shards",
        "REPLICAS:replicas",
        "SPLIT AT:splitBytes",
        "PARENTS:parents",
        "CHILDREN:children",
        "+PRESPLIT:presplit",
        "+BYTES:bytes",
    ];
    let mut listing = Listing::new("isx.service.list/1", &columns);
    listing.about = cluster.envelope();
    // Indexes are listed by `index list`.
    let named = cluster
        .services
        .iter()
        .filter(|info| index::parts(&info.name).is_none());
    for info in named {
        let known = known(&cluster, info, records.as_deref().unwrap_or_default())?;
        let more = if known.is_whole() { "" } else { " or more" };
        let row = vec![
            info.name.clone(),
            known.version(),
            known.sum(|r| r.entities).to_string() + more,
            known.shards.len().to_string(),
            info.replicas.to_string(),
            known.split_at(),
            names(&known.parents()),
            names(&known.children()),
            info.presplit.to_string(),
            output::size(known.sum(|r| r.bytes)),
        ];
        listing.push(row, known.json());
    }
    cluster.say_who_is_missing(env);
    if records.is_none() {
        env.say("schemas are not known: the directory does not answer");
    }
    env.print_listing(&listing)
}

pub(super) async fn show(env: &Environment, name: &str) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let Some(info) = cluster.services.iter().find(|info| info.name == name) else {
        let text = format!("there is no service {name}");
        return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl service list"));
    };
    let records = schemas(env, Some(name)).await;
    let known = known(&cluster, info, records.as_deref().unwrap_or_default())?;
    if env.format().is_json() {
        let mut object = json!({"schema": "isx.service.show/1"});
        for (name, part) in cluster.envelope() {
            object[name] = part;
        }
        object["item"] = known.json();
        let one = |health: &ShardHealth<'_>| json!({"shard": health.shard.id.to_string(), "state": health.state()});
        object["item"]["shardList"] = known.shards.iter().map(one).collect::<Vec<_>>().into();
        return env.print_json(&object);
    }
    let sizes = &info.sizes;
    let more = if known.is_whole() {
        ""
    } else {
        " or more: not all leaders answered"
    };
    let mut text = format!("service   {name}\n");
    text += &match (&known.schema, &records) {
        (Some((version, schema)), _) => format!(
            "schema    v{version}: {} fields, {} actions, {} accepted\n",
            schema.fields.len(),
            schema.actions.len(),
            schema.accepts.len()
        ),
        (None, Some(_)) => "schema    none: any JSON object is taken\n".to_owned(),
        (None, None) => "schema    not known: the directory does not answer\n".to_owned(),
    };
    for (word, pairs) in [("parent", known.parents()), ("child", known.children())] {
        for (field, service) in pairs {
            text += &format!("{word:9} {service}   by its field {field}\n");
        }
    }
    if let Some((_, schema)) = &known.schema {
        for pool in &schema.pools {
            text += &format!("pool      {}\n", pool.field);
        }
    }
    text += &format!(
        "data      {} entities{more}, {}\n",
        known.sum(|r| r.entities),
        output::size(known.sum(|r| r.bytes))
    );
    let merged = match sizes.merge_bytes {
        0 => "never merged by themselves".to_owned(),
        bytes => format!("merged below {}", output::size(bytes)),
    };
    text += &format!(
        "shards    {}, {} copies each; split at {}, {merged}, never fewer than {}\n",
        known.shards.len(),
        info.replicas,
        known.split_at(),
        sizes.min_shards
    );
    let ill: Vec<String> = known
        .shards
        .iter()
        .filter(|health| health.state() != "ok")
        .map(|health| format!("{} {}", health.shard.id, health.state()))
        .collect();
    if !ill.is_empty() {
        text += &format!("problem   {}\n", ill.join(", "));
    }
    if info.dropping.is_some() {
        text += "dropping  its shards are being closed\n";
    } else if !info.kept_because.is_empty() {
        text += &format!("kept      the last drop was given up: {}\n", info.kept_because);
    }
    text += &format!("next      isxctl shard list --service {name}        isxctl schema show {name}\n");
    cluster.say_who_is_missing(env);
    env.print(&text)
}

/// Where a new service is cut: at these keys, or evenly over the keys that posts get.
pub(super) fn cuts(service: &str, presplit: u32, keys: Vec<String>) -> Vec<Position> {
    if !keys.is_empty() {
        return keys.iter().map(|key| Position::new(service, key)).collect();
    }
    let even = |n: u32| {
        let point = (u64::from(n) << 20) / u64::from(presplit);
        // Four characters of five bits.
        let bytes = (point << 44).to_be_bytes();
        let mut key = base32().encode(&bytes);
        key.truncate(4);
        Position::new(service, &key)
    };
    (1..presplit).map(even).collect()
}

pub(super) async fn create(
    env: &Environment,
    name: String,
    replicas: u32,
    cuts: Vec<Position>,
    dry_run: bool,
) -> Ended {
    let client = env.connect().await?;
    let shards = cuts.len() + 1;
    let request = Request::CreateService {
        name: name.clone(),
        replicas,
        cuts: cuts.clone(),
        dry_run,
        id: RequestId::random(),
    };
    let asked = client.request(request).await;
    let is_up = match (&asked, dry_run) {
        (Ok(_), false) => wait(&client, &name, &cuts, env.cli.timeout).await,
        _ => true,
    };
    client.close().await;
    asked?;
    if env.format().is_json() {
        return env.print_json(
            &json!({"schema": "isx.service.create/1", "service": name, "shards": shards,
                                      "replicas": replicas, "dryRun": dry_run, "up": is_up}),
        );
    }
    if dry_run {
        env.say("dry run: nothing changed");
    }
    env.print(&format!("{name}   {shards} shards, {replicas} copies each\n"))?;
    if !is_up {
        env.say("its shards have not all elected leaders yet: isxctl shard list");
    }
    Ok(exit::OK)
}

pub(super) async fn drop(env: &Environment, name: &str, confirm: Option<&str>, dry_run: bool) -> Ended {
    if index::parts(name).is_some() {
        let text = format!("{name} is an index and goes another way");
        return Err(CtlError::new(exit::USAGE, text).next(format!("isxctl index drop {name}")));
    }
    let client = env.connect().await?;
    let ended = drop_with(env, &client, name, confirm, dry_run).await;
    client.close().await;
    ended
}

async fn drop_with(env: &Environment, client: &Client, name: &str, confirm: Option<&str>, dry_run: bool) -> Ended {
    let map = client.map().await?;
    let Some(service) = map.services.iter().find(|service| service.name == name) else {
        let text = format!("there is no service {name}");
        return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl service list"));
    };
    // Nobody is asked for consent to what is refused.
    ask_drop(client, service, true).await?;
    if !dry_run {
        super::ops::severe(env, &format!("drop service {name} for good"), name, confirm)?;
        ask_drop(client, service, false).await?;
        until_dropped(client, service, env.cli.timeout).await?;
    }
    if env.format().is_json() {
        return env.print_json(&json!({"schema": "isx.service.drop/1", "service": name, "dryRun": dry_run}));
    }
    if dry_run {
        env.print(&format!("{name}   can be dropped\n"))?;
        env.say("dry run: nothing changed");
        return Ok(exit::OK);
    }
    env.print(&format!("{name}   dropped, with its schema and its shards\n"))
}

pub(super) async fn ask_drop(client: &Client, service: &ServiceInfo, dry_run: bool) -> Result<(), CtlError> {
    let request = Request::DropService {
        name: service.name.clone(),
        number: service.number,
        dry_run,
        id: RequestId::random(),
    };
    client.request(request).await?;
    Ok(())
}

fn again(name: &str) -> String {
    match index::parts(name) {
        Some(_) => format!("isxctl index drop {name}"),
        None => format!("isxctl service drop {name} --dry-run"),
    }
}

/// Waits for the end of a drop that has begun.
pub(super) async fn until_dropped(client: &Client, service: &ServiceInfo, limit: Duration) -> Result<(), CtlError> {
    let deadline = Instant::now() + limit;
    let name = &service.name;
    while Instant::now() < deadline {
        let map = client.map().await?;
        match map.services.iter().find(|known| known.name == *name) {
            Some(known) if known.number == service.number => {}
            Some(known) if !known.kept_because.is_empty() => {
                let mut error = CtlError::new(exit::REFUSED, format!("service {name} was not dropped"));
                error.causes.push(known.kept_because.clone());
                return Err(error.next(again(name)));
            }
            // Its name is in use again.
            Some(_) | None => return Ok(()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut error = CtlError::new(exit::PARTLY, format!("service {name} is still being dropped"));
    error.committed = "unknown";
    Err(error.next(format!("isxctl service show {name}")))
}

/// Waits until all shards answer.
async fn wait(client: &Client, name: &str, cuts: &[Position], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let first = Position::new(name, "");
    let starts = std::iter::once(&first).chain(cuts);
    for start in starts {
        let query = ListQuery {
            service: name.to_owned(),
            from: start.parts().1.unwrap_or("").to_owned(),
            limit: 1,
            ..ListQuery::default()
        };
        loop {
            match client.list(&query).await {
                Ok(_) => break,
                // The node that was asked has not heard of it.
                Err(ClientError::Refused(error)) if error.code == Code::NoService && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => return false,
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_even_and_in_order() {
        assert_eq!(cuts("a", 1, Vec::new()), []);
        let four: Vec<String> = cuts("a", 4, Vec::new()).iter().map(ToString::to_string).collect();
        assert_eq!(four, ["a/8000", "a/g000", "a/r000"]);
        assert!(cuts("a", 256, Vec::new()).is_sorted_by(|a, b| a < b));
        assert_eq!(cuts("a", 1, vec!["m".to_owned()]), [Position::new("a", "m")]);
    }
}
