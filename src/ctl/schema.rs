//! Schemas: checked offline or against the cluster's, compared, applied, listed.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::output::{Listing, timestamp};
use super::{Ended, Environment, index};
use crate::client::{Client, ClientError, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::RequestId;
use crate::protocol::request::{Request, Response};
use crate::protocol::schema::bundle::{NewSchema, SchemaRecord};
use crate::protocol::schema::check::{Schemas, check_all};
use crate::protocol::schema::diff::{self, Change};
use crate::protocol::schema::validate::tell;
use crate::protocol::schema::{Document, Schema};

/// Verbs on schemas.
#[derive(Debug, Clone, Subcommand)]
pub enum SchemaCommand {
    /// Whether schemas are ones, and fit together; asks no cluster
    Check {
        /// The schemas.
        #[command(flatten)]
        files: Files,
        /// Together with those of the cluster
        #[arg(long)]
        with_cluster: bool,
    },
    /// What would change, and what of it breaks
    Diff {
        /// The schemas.
        #[command(flatten)]
        files: Files,
    },
    /// Put new versions into effect, all or none
    Apply(ApplyArgs),
    /// A schema as it was written
    Show {
        /// The service
        service: String,
        /// This version instead of the newest
        #[arg(long, value_name = "V")]
        version: Option<u64>,
    },
    /// Services and the versions of their schemas
    List,
    /// The versions of a service's schema
    History {
        /// The service
        service: String,
    },
}

/// Schemas in files.
#[derive(Debug, Clone, Args)]
pub struct Files {
    /// A schema, - for standard input (repeat: they are checked together)
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    file: Vec<PathBuf>,
}

/// See `SchemaCommand::Apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// The schemas.
    #[command(flatten)]
    files: Files,
    /// Only if the one schema is at this version; 0: there is none
    #[arg(long, value_name = "V")]
    if_version: Option<u64>,
    /// Look at this many documents of a service whose schema may break them; 0: at none
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    sample: u32,
    /// Also what may make existing documents unacceptable
    #[arg(long)]
    allow_breaking: bool,
    /// Check and show, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Why, for those who ask later
    #[arg(long, default_value = "", value_name = "TEXT")]
    because: String,
}

/// A schema that was read.
struct Read {
    text: String,
    schema: Arc<Schema>,
}

pub(super) async fn run(env: &Environment, command: SchemaCommand) -> Ended {
    match command {
        SchemaCommand::Check { files, with_cluster } => check(env, &files, with_cluster).await,
        SchemaCommand::Diff { files } => show_diff(env, &files).await,
        SchemaCommand::Apply(args) => apply(env, &args).await,
        SchemaCommand::Show { service, version } => show(env, &service, version).await,
        SchemaCommand::List => list(env, None).await,
        SchemaCommand::History { service } => list(env, Some(&service)).await,
    }
}

/// The newest schemas, or all versions of one service's.
pub(super) async fn records(client: &Client, service: Option<&str>) -> Result<Vec<SchemaRecord>, CtlError> {
    let request = Request::ShowSchemas {
        service: service.map(str::to_owned),
    };
    match client.request(request).await? {
        Response::Schemas(records) => Ok(records),
        _ => Err(CtlError::new(
            exit::UNEXPECTED,
            "a node gave an answer that does not fit the question",
        )),
    }
}

fn read(files: &Files) -> Result<Vec<Read>, CtlError> {
    let mut all: Vec<Read> = Vec::new();
    for file in &files.file {
        let read = if file == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(file)
        };
        let text =
            read.map_err(|error| CtlError::new(exit::USAGE, format!("cannot read `{}`: {error}", file.display())))?;
        let schema = Schema::parse(&text).map_err(|error| {
            let mut failed = CtlError::new(exit::INVALID, format!("`{}` is not a schema", file.display()));
            failed.causes = error.problems;
            failed
        })?;
        if all.iter().any(|known| known.schema.service == schema.service) {
            let text = format!("`{}` is a second schema of {}", file.display(), schema.service);
            return Err(CtlError::new(exit::USAGE, text));
        }
        let schema = Arc::new(schema);
        all.push(Read { text, schema });
    }
    Ok(all)
}

/// The cluster's schemas with these in the place of theirs.
fn together(known: &[SchemaRecord], read: &[Read]) -> Result<Schemas, CtlError> {
    let mut all = Schemas::new();
    for record in known {
        let schema = Schema::parse(&record.schema.text);
        let schema = schema.map_err(|error| CtlError::new(exit::SKEW, error.to_string()))?;
        all.insert(record.schema.service.clone(), Arc::new(schema));
    }
    for read in read {
        all.insert(read.schema.service.clone(), read.schema.clone());
    }
    check_all(&all).map_err(|error| {
        let mut failed = CtlError::new(exit::INVALID, "these schemas do not fit together");
        failed.causes = error.problems;
        failed
    })?;
    Ok(all)
}

async fn check(env: &Environment, files: &Files, with_cluster: bool) -> Ended {
    let read = read(files)?;
    let known = if with_cluster {
        let client = env.connect().await?;
        let known = records(&client, None).await;
        client.close().await;
        known?
    } else {
        Vec::new()
    };
    together(&known, &read)?;
    let items: Vec<Value> = read
        .iter()
        .map(|read| json!({"service": read.schema.service, "fields": read.schema.fields.len()}))
        .collect();
    if env.format().is_json() {
        return env.print_json(&json!({"schema": "isx.schema.check/1", "items": items}));
    }
    let names: Vec<&str> = read.iter().map(|read| read.schema.service.as_str()).collect();
    env.print(&format!("{} good\n", names.join(", ")))
}

/// What a file changes about a service's schema.
struct Difference {
    service: String,
    /// Of the schema there is; 0: none.
    version: u64,
    changes: Vec<Change>,
    is_same: bool,
}

fn differences(known: &[SchemaRecord], read: &[Read]) -> Result<Vec<Difference>, CtlError> {
    let mut all = Vec::new();
    for new in read {
        let service = new.schema.service.clone();
        let old = known.iter().find(|record| record.schema.service == service);
        let changes = match old {
            None => Vec::new(),
            Some(old) => {
                let old = Schema::parse(&old.schema.text);
                let old = old.map_err(|error| CtlError::new(exit::SKEW, error.to_string()))?;
                diff::diff(&old, &new.schema)
            }
        };
        all.push(Difference {
            service,
            version: old.map_or(0, |record| record.schema.version),
            changes,
            is_same: old.is_some_and(|record| record.schema.text == new.text),
        });
    }
    Ok(all)
}

fn difference_text(difference: &Difference) -> String {
    let Difference { service, version, .. } = difference;
    let mut text = match (version, difference.is_same) {
        (0, _) => format!("{service}   v1 is its first schema\n"),
        (_, true) => format!("{service}   v{version} is the same\n"),
        _ => format!("{service}   v{version} -> v{}\n", version + 1),
    };
    for change in &difference.changes {
        let breaking = match &change.breaking {
            Some(why) => format!("   breaking: {why}"),
            None => String::new(),
        };
        text += &format!("  {}   {}{breaking}\n", change.path, change.text);
    }
    text
}

fn difference_json(difference: &Difference) -> Value {
    let change = |change: &Change| json!({"path": change.path, "change": change.text, "breaking": change.breaking});
    let changes: Vec<Value> = difference.changes.iter().map(change).collect();
    json!({"service": difference.service, "version": difference.version, "same": difference.is_same, "changes": changes})
}

async fn show_diff(env: &Environment, files: &Files) -> Ended {
    let read = read(files)?;
    let client = env.connect().await?;
    let known = records(&client, None).await;
    client.close().await;
    let known = known?;
    together(&known, &read)?;
    let all = differences(&known, &read)?;
    if env.format().is_json() {
        let items: Vec<Value> = all.iter().map(difference_json).collect();
        return env.print_json(&json!({"schema": "isx.schema.diff/1", "items": items}));
    }
    env.print(&all.iter().map(difference_text).collect::<String>())
}

/// Documents that a new schema would refuse.
#[derive(Default)]
struct Sample {
    looked_at: usize,
    refused: usize,
    examples: Vec<String>,
    is_all: bool,
}

async fn sample(client: &Client, schema: &Schema, most: u32) -> Result<Sample, CtlError> {
    let mut sample = Sample::default();
    let mut query = ListQuery {
        service: schema.service.clone(),
        limit: most,
        documents: true,
        ..ListQuery::default()
    };
    while query.limit > 0 {
        let page = client.list(&query).await?;
        for item in &page.items {
            sample.looked_at += 1;
            let found = match Document::parse(&item.document) {
                Ok(document) => schema.validate(document).err().map(|found| tell(&found)),
                Err(error) => Some(error),
            };
            if let Some(why) = found {
                sample.refused += 1;
                if sample.examples.len() < EXAMPLES {
                    sample.examples.push(format!("{}/{}: {why}", schema.service, item.key));
                }
            }
        }
        query.limit = query.limit.saturating_sub(page.items.len() as u32);
        query.resume = page.next;
        sample.is_all = query.resume.is_none();
        if sample.is_all {
            break;
        }
    }
    Ok(sample)
}

/// Documents named in a refusal.
const EXAMPLES: usize = 5;

async fn apply(env: &Environment, args: &ApplyArgs) -> Ended {
    let read = read(&args.files)?;
    if args.if_version.is_some() && read.len() != 1 {
        return Err(CtlError::new(exit::USAGE, "--if-version goes with one schema"));
    }
    let client = env.connect().await?;
    let known = records(&client, None).await?;
    together(&known, &read)?;
    let all = differences(&known, &read)?;
    let mut counted = BTreeMap::new();
    for (difference, new) in all.iter().zip(&read) {
        if args.sample > 0 && difference.changes.iter().any(|change| change.breaking.is_some()) {
            let sample = sample(&client, &new.schema, args.sample).await?;
            counted.insert(difference.service.clone(), sample);
        }
    }
    if !args.allow_breaking {
        refuse_breaking(&all, &counted)?;
    }
    let schemas = read.iter().zip(&all).map(|(read, difference)| NewSchema {
        service: read.schema.service.clone(),
        text: read.text.clone(),
        expected: args.if_version.unwrap_or(difference.version),
    });
    let request = Request::SetSchemas {
        schemas: schemas.collect(),
        allow_breaking: args.allow_breaking,
        because: args.because.clone(),
        dry_run: args.dry_run,
        id: RequestId::random(),
    };
    let done = client
        .request(request)
        .await
        .map_err(|error| unknown_service(error, &read))?;
    let Response::Schemas(done) = done else {
        return Err(CtlError::new(
            exit::UNEXPECTED,
            "a node gave an answer that does not fit the question",
        ));
    };
    let behind = if args.dry_run {
        0
    } else {
        in_effect(&client, &done, env.cli.timeout).await
    };
    let mut next = Vec::new();
    if !args.dry_run {
        for new in &read {
            let old = known.iter().find(|record| record.schema.service == new.schema.service);
            let old = old.and_then(|record| Schema::parse(&record.schema.text).ok());
            next.extend(index::left_to_do(&client, old.as_ref(), &new.schema).await?);
        }
    }
    client.close().await;
    if env.format().is_json() {
        let items: Vec<Value> = done.iter().map(record_json).collect();
        let about = json!({"schema": "isx.schema.apply/1", "dryRun": args.dry_run, "shardsBehind": behind, "items": items, "next": next});
        return env.print_json(&about);
    }
    env.print(&all.iter().map(difference_text).collect::<String>())?;
    if args.dry_run {
        env.say("dry run: nothing changed");
    } else if behind > 0 {
        env.say(&format!(
            "in effect, but for {behind} shards that have not heard of it yet"
        ));
    } else {
        env.say("in effect on all shards");
    }
    for command in next {
        env.say(&format!("next   {command}"));
    }
    Ok(exit::OK)
}

/// A schema of a service that is yet to be created says how.
fn unknown_service(error: ClientError, read: &[Read]) -> CtlError {
    let named = match &error {
        ClientError::Refused(refused) if refused.code == Code::NoService => {
            let is_named = |new: &&Read| refused.text.contains(&format!("`{}`", new.schema.service));
            read.iter().find(is_named)
        }
        _ => None,
    };
    let shown = CtlError::from(error);
    match named {
        Some(new) => shown.next(format!("isxctl service create {}", new.schema.service)),
        None => shown,
    }
}

fn refuse_breaking(all: &[Difference], counted: &BTreeMap<String, Sample>) -> Result<(), CtlError> {
    let mut causes = Vec::new();
    for difference in all {
        for change in &difference.changes {
            if let Some(why) = &change.breaking {
                causes.push(format!(
                    "{} {}: {}: {why}",
                    difference.service, change.path, change.text
                ));
            }
        }
        if let Some(sample) = counted.get(&difference.service) {
            let of = if sample.is_all { "all" } else { "the first" };
            causes.push(format!(
                "{} of {of} {} documents of {} would be refused",
                sample.refused, sample.looked_at, difference.service
            ));
            causes.extend(sample.examples.iter().cloned());
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let mut error = CtlError::new(exit::REFUSED, "the new schema breaks what exists");
    error.causes = causes;
    Err(error.next("the same with --allow-breaking"))
}

/// Waits until all shards judge by the new schemas, or the time limit; gives the number of those that do not.
async fn in_effect(client: &Client, done: &[SchemaRecord], limit: Duration) -> usize {
    let deadline = Instant::now() + limit;
    loop {
        let map = client.map().await.unwrap_or_default();
        let mut seen = BTreeMap::new();
        for (_, status) in client.statuses().await {
            for replica in status.map(|status| status.replicas).unwrap_or_default() {
                if replica.state == "leader" {
                    seen.insert(replica.shard.id, replica.schema_revision);
                }
            }
        }
        let wanted = |service: &str| {
            let record = done.iter().find(|record| record.schema.service == service);
            record.map_or(0, |record| record.schema.revision)
        };
        let is_behind = |shard: &&crate::protocol::shard_map::ShardDescriptor| {
            seen.get(&shard.id).copied().unwrap_or(0) < wanted(shard.range.service())
        };
        let behind = map.shards.iter().filter(is_behind).count();
        if behind == 0 || Instant::now() >= deadline {
            return behind;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn show(env: &Environment, service: &str, version: Option<u64>) -> Ended {
    let client = env.connect().await?;
    let known = records(&client, Some(service)).await;
    client.close().await;
    let known = known?;
    let found = match version {
        None => known.first(),
        Some(version) => known.iter().find(|record| record.schema.version == version),
    };
    let Some(record) = found else {
        let what = version.map_or_else(|| "no schema".to_owned(), |version| format!("no version {version}"));
        let text = format!("{what} of {service} is known");
        return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl schema list"));
    };
    if env.format().is_json() {
        let mut value = record_json(record);
        value["text"] = json!(record.schema.text);
        return env.print_json(&value);
    }
    env.say(&format!("{service}   v{}", record.schema.version));
    env.print(&record.schema.text)
}

fn record_json(record: &SchemaRecord) -> Value {
    json!({"service": record.schema.service, "version": record.schema.version, "revision": record.schema.revision,
           "by": record.by, "because": record.because, "at": timestamp(record.wall_ms)})
}

async fn list(env: &Environment, service: Option<&str>) -> Ended {
    let client = env.connect().await?;
    let known = records(&client, service).await;
    client.close().await;
    let known = known?;
    if let (Some(service), true) = (service, known.is_empty()) {
        let text = format!("{service} has no schema");
        return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl schema list"));
    }
    let columns = [
        "SERVICE:service",
        "VERSION:version",
        "AT:at",
        "BY:by",
        "BECAUSE:because",
    ];
    let mut listing = Listing::new("isx.schema.list/1", &columns);
    for record in &known {
        let row = vec![
            record.schema.service.clone(),
            record.schema.version.to_string(),
            timestamp(record.wall_ms),
            record.by.clone(),
            record.because.clone(),
        ];
        listing.push(row, record_json(record));
    }
    env.print_listing(&listing)
}
