//! Indexes: which there are, whether their entries are right, and making them so; finding entities by them.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::exit::{self, CtlError};
use super::output::{self, Listing, timestamp};
use super::{Ended, Environment, entity, journal, schema, service};
use crate::client::{Client, ClientError, FindQuery, IndexLag, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::{ClusterId, RequestId};
use crate::protocol::key::Position;
use crate::protocol::request::{Change, Condition, ListItem, Request, Response, Write};
use crate::protocol::schema::document::Document;
use crate::protocol::schema::{Field, Schema, index};

/// Verbs on indexes.
#[derive(Debug, Clone, Subcommand)]
pub enum IndexCommand {
    /// The indexes of all schemas, and how far each is behind
    List,
    /// Compare an index with the entities that it is over, both ways; ends with 5 where they differ
    #[command(
        before_help = "Examples:\n  isxctl index verify campaign.by-channel\n  isxctl index verify campaign.by-channel -o json"
    )]
    Verify {
        /// The index, as `index list` names it
        index: String,
        /// Only entities from this key on
        #[arg(long, default_value = "", value_name = "KEY")]
        from: String,
    },
    /// Enter what is missing and take back what is stale; for entities that are older than the index
    #[command(
        before_help = "Examples:\n  isxctl index rebuild campaign.by-channel\n  isxctl index rebuild campaign.by-channel --from c-5000"
    )]
    Rebuild {
        /// The index, as `index list` names it
        index: String,
        /// Go on at this key, where an earlier run stopped
        #[arg(long, default_value = "", value_name = "KEY")]
        from: String,
        /// Look and say, change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Take all entries out of an index that no schema wants any more; run again, it drops the empty index
    #[command(before_help = "Examples:\n  isxctl index drop campaign.by-channel --yes")]
    Drop {
        /// The index, as `index list` names it
        index: String,
        /// Look and say, change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) async fn run(env: &Environment, command: IndexCommand) -> Ended {
    match command {
        IndexCommand::List => list(env).await,
        IndexCommand::Verify { index, from } => compare(env, &index, from, Wish::Verify, false).await,
        IndexCommand::Rebuild { index, from, dry_run } => compare(env, &index, from, Wish::Rebuild, dry_run).await,
        IndexCommand::Drop { index, dry_run } => compare(env, &index, String::new(), Wish::Drop, dry_run).await,
    }
}

/// Entities that have a value in a field with an index.
pub(super) async fn find(
    env: &Environment,
    service: &str,
    wanted: (&str, &str),
    (limit, resume): (u32, Option<String>),
    fields: &[String],
) -> Ended {
    let client = env.connect().await?;
    let query = FindQuery {
        service: service.to_owned(),
        field: wanted.0.to_owned(),
        value: wanted.1.to_owned(),
        limit,
        resume,
    };
    // Asked first: what is committed by now and not counted in it is found.
    let found = async {
        client.indexed_field(service, wanted.0).await?;
        let lag = client.index_lag(service, wanted.0).await?;
        Ok::<_, ClientError>((lag, client.find(&query).await?))
    };
    let found = found.await;
    client.close().await;
    let (lag, page) = found.map_err(|error| CtlError::from(error).next("isxctl index list"))?;
    let mut listing = entity::listing(fields);
    for item in &page.items {
        entity::push(&mut listing, item, fields);
    }
    let name = index::service_of(service, wanted.0);
    listing.about.push(("index", json!(name)));
    listing.about.push(("lag", lag_json(&lag)));
    listing.about.push(("skipped", json!(page.skipped)));
    if let Some(next) = &page.next {
        listing.about.push(("continue", json!(next)));
        let (field, value) = wanted;
        let again = format!("isxctl entity {service} list --where '{field}={value}' --continue {next}");
        listing.next.push(again);
    }
    let ended = env.print_listing(&listing)?;
    if lag.outstanding > 0 {
        env.say(&format!(
            "{name} is behind: {}; what they bring may be missing",
            lag_text(&lag)
        ));
    }
    if page.skipped > 0 {
        let text = "left out: their entities have another value by now, or are gone";
        env.say(&format!("{} entries of {name} were {text}", page.skipped));
    }
    if let Some(again) = listing.next.first() {
        env.say(&format!("there are more: {again}"));
    }
    Ok(ended)
}

fn lag_text(lag: &IndexLag) -> String {
    let least = if lag.is_at_least { "at least " } else { "" };
    match lag.oldest_ms {
        _ if lag.outstanding == 0 && !lag.is_at_least => "none".to_owned(),
        None => format!("{least}{} messages on their way", lag.outstanding),
        Some(oldest) => {
            let age = output::span(now_ms().saturating_sub(oldest));
            format!("{least}{} messages on their way, the oldest {age} old", lag.outstanding)
        }
    }
}

fn lag_json(lag: &IndexLag) -> Value {
    json!({"outstanding": lag.outstanding, "oldest": lag.oldest_ms.map(timestamp), "atLeast": lag.is_at_least})
}

async fn list(env: &Environment) -> Ended {
    let client = env.connect().await?;
    let asked = async {
        let records = schema::records(&client, None).await?;
        let map = client.map().await?;
        let mut rows: BTreeMap<String, u64> = BTreeMap::new();
        for (_, status) in client.statuses().await {
            for replica in status.map(|status| status.replicas).unwrap_or_default() {
                if replica.state == "leader" {
                    *rows.entry(replica.shard.range.service().to_owned()).or_default() += replica.entities;
                }
            }
        }
        let mut wanted = Vec::new();
        for record in &records {
            let read = Schema::parse(&record.schema.text);
            let read = read.map_err(|error| CtlError::new(exit::SKEW, error.to_string()))?;
            for field in read.indexes() {
                let lag = client.index_lag(&read.service, &field.name).await?;
                wanted.push((index::service_of(&read.service, &field.name), Some(lag)));
            }
        }
        for service in map
            .services
            .iter()
            .filter(|service| index::parts(&service.name).is_some())
        {
            if !wanted.iter().any(|(name, _)| *name == service.name) {
                wanted.push((service.name.clone(), None));
            }
        }
        Ok::<_, CtlError>((wanted, rows))
    };
    let (asked, cluster) = (asked.await, client.cluster());
    client.close().await;
    let (wanted, rows) = asked?;
    let columns = [
        "INDEX:index",
        "SERVICE:service",
        "ON:field",
        "LAG:lag",
        "ROWS:rows",
        "LAST VERIFY:lastVerify",
    ];
    let mut listing = Listing::new("isx.index.list/1", &columns);
    let mut unwanted = None;
    for (name, lag) in wanted {
        let Some((service, field)) = index::parts(&name) else {
            continue;
        };
        let rows = rows.get(&name).copied();
        let verified = last_verify(cluster, &name);
        let row = vec![
            name.clone(),
            service.to_owned(),
            field.to_owned(),
            lag.as_ref().map_or_else(|| "not wanted".to_owned(), lag_text),
            rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
            verified
                .as_ref()
                .map_or_else(|| "-".to_owned(), |(at, how)| format!("{} {how}", timestamp(*at))),
        ];
        let object = json!({
            "index": name, "service": service, "field": field, "wanted": lag.is_some(), "rows": rows,
            "lag": lag.as_ref().map(lag_json),
            "lastVerify": verified.map(|(at, how)| json!({"at": timestamp(at), "result": how})),
        });
        if lag.is_none() && rows != Some(0) {
            unwanted = Some(name);
        }
        listing.push(row, object);
    }
    if let Some(name) = unwanted {
        listing.next.push(format!("isxctl index drop {name}"));
    }
    let ended = env.print_listing(&listing)?;
    if let Some(next) = listing.next.first() {
        env.say(&format!("no schema wants it any more: {next}"));
    }
    Ok(ended)
}

/// What new schemas leave to be done: entities that are older than an index, entries that nobody wants any more.
pub(super) async fn left_to_do(
    client: &Client,
    before: Option<&Schema>,
    after: &Schema,
) -> Result<Vec<String>, CtlError> {
    let names = |schema: &Schema| -> BTreeSet<String> {
        let fields = schema.indexes().map(|field| field.name.as_str());
        fields.map(|field| index::service_of(&schema.service, field)).collect()
    };
    let (old, new) = (before.map(names).unwrap_or_default(), names(after));
    let unwanted = old.difference(&new);
    let mut commands: Vec<String> = unwanted.map(|name| format!("isxctl index drop {name}")).collect();
    let query = ListQuery {
        service: after.service.clone(),
        limit: 1,
        ..ListQuery::default()
    };
    let mut missing = new.difference(&old).peekable();
    if missing.peek().is_some() && !client.list(&query).await?.items.is_empty() {
        commands.extend(missing.map(|name| format!("isxctl index rebuild {name}")));
    }
    Ok(commands)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Verify,
    Rebuild,
    Drop,
}

/// What is wrong with one entity's place in an index.
enum Fault {
    /// It has no entry.
    Missing(String),
    /// This entry is not its own.
    Stale(String, String),
}

/// What a comparison has found.
#[derive(Default)]
struct Tally {
    entities: u64,
    rows: u64,
    missing: u64,
    stale: u64,
    on_the_way: u64,
    mended: u64,
    examples: Vec<String>,
    /// The last entity that was looked at; what lies before it is done.
    at: String,
}

/// Shared by the look-ups that run together.
struct Work {
    client: Client,
    service: String,
    name: String,
    /// The field, where the schema has an index over it.
    field: Option<Field>,
    limit: Duration,
    mends: bool,
}

async fn compare(env: &Environment, name: &str, from: String, wish: Wish, dry_run: bool) -> Ended {
    let Some((service, field)) = index::parts(name) else {
        let text = format!("`{name}` is not the name of an index, such as campaign.by-channel");
        return Err(CtlError::new(exit::USAGE, text).next("isxctl index list"));
    };
    let client = env.connect().await?;
    let ended = compare_with(env, &client, (name, service, field), from, wish, dry_run).await;
    client.close().await;
    ended
}

async fn compare_with(
    env: &Environment,
    client: &Client,
    (name, service, field): (&str, &str, &str),
    from: String,
    wish: Wish,
    dry_run: bool,
) -> Ended {
    let schema = client.schema_of(service).await?;
    let wanted = schema.and_then(|schema| schema.field(field).filter(|field| field.index).cloned());
    match (wish, &wanted) {
        (Wish::Drop, Some(_)) => {
            let text = format!("the schema of {service} wants an index over `{field}`");
            let next = format!("isxctl schema apply -f {service}.toml      without `index = true`");
            return Err(CtlError::new(exit::REFUSED, text).next(next));
        }
        (Wish::Verify | Wish::Rebuild, None) => {
            let text = format!("there is no index over `{field}` of {service}");
            return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl index list"));
        }
        _ => {}
    }
    if wish == Wish::Drop && !dry_run {
        env.consent(&format!("all entries of {name} go"))?;
    }
    let work = Arc::new(Work {
        client: client.clone(),
        service: service.to_owned(),
        name: name.to_owned(),
        field: wanted,
        limit: env.cli.timeout,
        mends: wish != Wish::Verify && !dry_run,
    });
    let bar = env.progress(None, "{spinner} {pos} looked at, {elapsed}");
    let mut tally = Tally::default();
    let done = tokio::select! {
        done = walk(&work, &from, &mut tally, &bar) => done,
        _ = tokio::signal::ctrl_c() => Err(CtlError::new(exit::INTERRUPTED, "interrupted")),
    };
    bar.finish_and_clear();
    if let Err(mut error) = done {
        error.causes.push(format!(
            "{} entities and {} entries were looked at, {} mended",
            tally.entities, tally.rows, tally.mended
        ));
        return Err(match (wish, tally.at.is_empty()) {
            (Wish::Verify, false) => error.next(format!("isxctl index verify {name} --from '{}'", tally.at)),
            (Wish::Rebuild, false) => error.next(format!("isxctl index rebuild {name} --from '{}'", tally.at)),
            _ => error.next("the same again: what is right already is only looked at"),
        });
    }
    let is_empty = wish == Wish::Drop && tally.rows == 0 && tally.on_the_way == 0;
    if is_empty && !dry_run {
        let map = client.map().await?;
        if let Some(known) = map.services.iter().find(|known| known.name == name) {
            service::ask_drop(client, known, false).await?;
            service::until_dropped(client, known, env.cli.timeout).await?;
        }
    }
    report(env, &work, &tally, wish, dry_run)
}

fn report(env: &Environment, work: &Work, tally: &Tally, wish: Wish, dry_run: bool) -> Ended {
    let faults = tally.missing + tally.stale;
    let name = &work.name;
    if wish == Wish::Verify {
        let how = match faults {
            0 => "right".to_owned(),
            _ => format!("{} missing, {} stale", tally.missing, tally.stale),
        };
        note_verify(work.client.cluster(), name, &how);
    }
    let code = if faults > tally.mended { exit::REFUSED } else { exit::OK };
    let code = if dry_run { exit::OK } else { code };
    let verb = match wish {
        Wish::Verify => "verify",
        Wish::Rebuild => "rebuild",
        Wish::Drop => "drop",
    };
    if env.format().is_json() {
        env.print_json(&json!({
            "schema": format!("isx.index.{verb}/1"), "index": name, "entities": tally.entities, "rows": tally.rows,
            "missing": tally.missing, "stale": tally.stale, "onTheWay": tally.on_the_way, "mended": tally.mended,
            "dropped": wish == Wish::Drop && work.mends && tally.rows == 0 && tally.on_the_way == 0,
            "dryRun": dry_run, "examples": tally.examples,
        }))?;
        return Ok(code);
    }
    let mut text = match wish {
        Wish::Drop => format!("{name}   {} entries", tally.rows),
        _ => format!("{name}   {} entities, {} entries", tally.entities, tally.rows),
    };
    text += &match (wish, work.mends) {
        (Wish::Drop, true) if tally.rows == 0 && tally.on_the_way == 0 => "; dropped\n".to_owned(),
        (Wish::Drop, true) => format!(", {} are taken back\n", tally.mended),
        (Wish::Rebuild, true) => {
            let (missing, stale) = (tally.missing, tally.stale);
            format!(
                ": {missing} were missing, {stale} stale; {} are on their way\n",
                tally.mended
            )
        }
        (Wish::Drop, false) => " to be taken back\n".to_owned(),
        _ => format!(": {} missing, {} stale\n", tally.missing, tally.stale),
    };
    if wish != Wish::Drop {
        for example in &tally.examples {
            text += &format!("  {example}\n");
        }
    }
    env.print(&text)?;
    if tally.on_the_way > 0 {
        env.say(&format!("{} more have messages on their way", tally.on_the_way));
    }
    match wish {
        _ if dry_run => env.say("dry run: nothing changed"),
        Wish::Verify if faults > 0 => env.say(&format!("try    isxctl index rebuild {name}")),
        Wish::Drop if tally.rows > 0 => env.say(&format!(
            "next   isxctl index drop {name}      once they are gone: it goes as well"
        )),
        Wish::Rebuild if tally.mended > 0 => env.say(&format!("see    isxctl index verify {name}")),
        _ => {}
    }
    Ok(code)
}

/// Goes over the entities, then over the entries.
async fn walk(work: &Arc<Work>, from: &str, tally: &mut Tally, bar: &indicatif::ProgressBar) -> Result<(), CtlError> {
    let page = |service: &str, documents: bool, resume: Option<String>| ListQuery {
        service: service.to_owned(),
        from: if documents { from.to_owned() } else { String::new() },
        limit: PAGE,
        documents,
        resume,
        ..ListQuery::default()
    };
    let mut resume = None;
    while work.field.is_some() {
        let page = work.client.list(&page(&work.service, true, resume.take())).await?;
        look(work, &page.items, true, tally).await?;
        tally.entities += page.items.len() as u64;
        bar.inc(page.items.len() as u64);
        if let Some(last) = page.items.last() {
            tally.at.clone_from(&last.key);
        }
        resume = page.next;
        if resume.is_none() {
            break;
        }
    }
    let mut resume = None;
    loop {
        let page = work.client.list(&page(&work.name, false, resume.take())).await?;
        look(work, &page.items, false, tally).await?;
        tally.rows += page.items.len() as u64;
        bar.inc(page.items.len() as u64);
        resume = page.next;
        if resume.is_none() {
            return Ok(());
        }
    }
}

/// Looks at entities, or at entries, many at once.
async fn look(work: &Arc<Work>, items: &[ListItem], are_entities: bool, tally: &mut Tally) -> Result<(), CtlError> {
    let mut items = items.iter();
    let mut under_way: JoinSet<Result<Seen, CtlError>> = JoinSet::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(item) = items.next()
        {
            let (work, item) = (work.clone(), item.clone());
            under_way.spawn(async move {
                match are_entities {
                    true => work.entity(item).await,
                    false => work.entry(item).await,
                }
            });
        }
        let Some(joined) = under_way.join_next().await else {
            return Ok(());
        };
        let seen = joined.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))??;
        match seen {
            Seen::Right => {}
            Seen::OnTheWay => tally.on_the_way += 1,
            Seen::Wrong(fault, is_mended) => {
                let text = match fault {
                    Fault::Missing(key) => {
                        tally.missing += 1;
                        format!("missing  {}/{key}", work.service)
                    }
                    Fault::Stale(entry, key) => {
                        tally.stale += 1;
                        format!("stale    {}/{key} under `{entry}`", work.service)
                    }
                };
                tally.mended += u64::from(is_mended);
                if tally.examples.len() < EXAMPLES {
                    tally.examples.push(text);
                }
            }
        }
    }
}

enum Seen {
    Right,
    OnTheWay,
    Wrong(Fault, bool),
}

impl Work {
    fn entry_of(&self, key: &str, document: &[u8]) -> Option<String> {
        let document = Document::parse(document).ok()?;
        let value = self.field.as_ref()?.indexed(&document)?;
        Some(index::entry_key(&value, key))
    }

    /// Whether an entity has its entry.
    async fn entity(&self, item: ListItem) -> Result<Seen, CtlError> {
        let (mut entry, mut version) = (self.entry_of(&item.key, &item.document), item.version);
        for _ in 0..LOOKS_MAX {
            let Some(wanted) = &entry else { return Ok(Seen::Right) };
            if self.client.get(&self.name, wanted).await?.is_some() {
                return Ok(Seen::Right);
            }
            if self.is_on_the_way(&item.key, wanted).await? {
                return Ok(Seen::OnTheWay);
            }
            // Nothing is on its way. If it is still not there, and the entity was the same all the time, it is missing.
            if self.client.get(&self.name, wanted).await?.is_some() {
                return Ok(Seen::Right);
            }
            let Some(entity) = self.client.get(&self.service, &item.key).await? else {
                return Ok(Seen::Right);
            };
            if entity.version == version {
                let mended = self.mend(&item.key, Vec::new()).await?;
                return Ok(Seen::Wrong(Fault::Missing(item.key), mended));
            }
            (entry, version) = (self.entry_of(&item.key, &entity.document), entity.version);
        }
        Ok(Seen::OnTheWay)
    }

    /// Whether an entry is its entity's.
    async fn entry(&self, item: ListItem) -> Result<Seen, CtlError> {
        let entry = item.key;
        let Some(key) = index::entity_of(&entry).map(str::to_owned) else {
            return Ok(Seen::Wrong(Fault::Stale(entry, String::new()), false));
        };
        let own = async || {
            let entity = self.client.get(&self.service, &key).await?;
            let own = entity.as_ref().and_then(|entity| self.entry_of(&key, &entity.document));
            Ok::<_, ClientError>((own, entity.map(|entity| entity.version)))
        };
        for _ in 0..LOOKS_MAX {
            let (wanted, version) = own().await?;
            if wanted.as_ref() == Some(&entry) {
                return Ok(Seen::Right);
            }
            if self.is_on_the_way(&key, &entry).await? {
                return Ok(Seen::OnTheWay);
            }
            if self.client.get(&self.name, &entry).await?.is_none() {
                return Ok(Seen::Right);
            }
            if own().await? == (wanted, version) {
                let mended = self.mend(&key, vec![entry.clone()]).await?;
                return Ok(Seen::Wrong(Fault::Stale(entry, key), mended));
            }
        }
        Ok(Seen::OnTheWay)
    }

    async fn is_on_the_way(&self, key: &str, entry: &str) -> Result<bool, CtlError> {
        let request = Request::ShowPair {
            service: self.service.clone(),
            key: key.to_owned(),
            with: Position::new(&self.name, entry),
        };
        match self.client.request(request).await? {
            Response::Pair(pair) => Ok(!pair.outstanding.is_empty()),
            _ => Err(CtlError::new(
                exit::UNEXPECTED,
                "a node gave an answer that does not fit the question",
            )),
        }
    }

    /// Has the entity send its entry anew, and take back what is not its own.
    async fn mend(&self, key: &str, stale: Vec<String>) -> Result<bool, CtlError> {
        if !self.mends {
            return Ok(false);
        }
        let deadline = Instant::now() + self.limit;
        loop {
            let write = Write {
                service: self.service.clone(),
                key: key.to_owned(),
                id: RequestId::random(),
                condition: Condition::Always,
                change: Change::Reindex {
                    field: index::parts(&self.name).map_or("", |(_, field)| field).to_owned(),
                    indexed: self.field.is_some(),
                    stale: stale.clone(),
                },
            };
            match self.client.write(write).await {
                Ok(_) => return Ok(true),
                Err(ClientError::Refused(error)) if error.code == Code::SchemaBehind && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                // The outbox has as much in it as it may have: what is there goes first.
                Err(ClientError::Refused(error)) if error.code == Code::OutboxFull && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                // Whatever became of it: the same again has the same effect.
                Err(ClientError::Unknown { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Entities or entries asked for at once.
const PAGE: u32 = 1_000;
/// Look-ups under way at once.
const AT_ONCE: usize = 128;
/// An entity that changes each time it is looked at has its messages on their way.
const LOOKS_MAX: u32 = 5;
/// Faults that are named.
const EXAMPLES: usize = 10;
const AGAIN_AFTER: Duration = Duration::from_millis(100);

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}

/// When each index was last verified from this account, and with what result: a line each, the last one counts.
fn verified_file() -> std::path::PathBuf {
    journal::state_directory(|variable| std::env::var(variable).ok()).join("indexes")
}

fn last_verify(cluster: ClusterId, name: &str) -> Option<(u64, String)> {
    let text = std::fs::read_to_string(verified_file()).ok()?;
    text.lines().rev().find_map(|line| verified(line, cluster, name))
}

fn verified(line: &str, cluster: ClusterId, name: &str) -> Option<(u64, String)> {
    let mut parts = line.splitn(4, '\t');
    let is_it = parts.next()? == cluster.to_string() && parts.next()? == name;
    let at = parts.next()?.parse().ok()?;
    is_it.then_some((at, parts.next()?.to_owned()))
}

/// A note that can't be written stops nobody.
fn note_verify(cluster: ClusterId, name: &str, how: &str) {
    let file = verified_file();
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let others = text.lines().filter(|line| verified(line, cluster, name).is_none());
    let mut lines: Vec<String> = others.map(str::to_owned).collect();
    lines.push(format!("{cluster}\t{name}\t{}\t{how}\n", now_ms()));
    if let Some(directory) = file.parent() {
        let _ = std::fs::create_dir_all(directory);
    }
    let _ = std::fs::write(&file, lines.join("\n"));
}
