//! What is set for the cluster, for services and for the router: shown beside its defaults, changed with what differs.
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::span as span_of;
use super::exit::{self, CtlError};
use super::op_args::PaceArg;
use super::ops::{Begin, ask, start_op, unexpected, watch};
use super::output::{Listing, size, span};
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::op::{Goal, Scope, Settings};
use crate::protocol::operator::{Order, RouterSettings};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::{MapView, ShardSizes};

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
    /// Cut it into this many parts, even over the keys that posts get, where it is not cut there yet
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(2..=1024))]
    presplit: Option<u32>,
    /// Show what would change, change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn show_settings(env: &Environment) -> Ended {
    let client = env.connect().await?;
    let now = settings(&client).await?;
    list(env, "isx.cluster.show/1", rows(&now), rows(&Settings::default()))
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
    changed(env, rows(&before), rows(&after))
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
    let before = service_rows(service.replicas, service.sizes);
    let after = service_rows(replicas, sizes);
    let changes = before.iter().zip(&after).filter(|(old, new)| old != new);
    let mut text: String = changes
        .map(|(old, new)| format!("{name} {}  {} -> {}\n", new.0, old.1, new.1))
        .collect();
    let cuts = args
        .presplit
        .map_or_else(Vec::new, |parts| missing_cuts(&map, name, parts));
    if !cuts.is_empty() {
        let count: usize = cuts.iter().map(|(_, at)| at.len()).sum();
        let shards = map.shards.iter().filter(|shard| shard.range.service() == name).count();
        text += &format!("{name} shards  {shards} -> {}\n", shards + count);
    }
    if text.is_empty() {
        return env.print("nothing to change\n");
    }
    if args.dry_run {
        if replicas != service.replicas {
            let goal = Goal::SetReplicas {
                of: Scope::Service(name.to_owned()),
                replicas: Some(replicas),
            };
            let plan = super::plan::make(&client, goal, None, None).await?;
            text += &format!("{} steps, {} over the network\n", plan.steps_total, size(plan.bytes));
        }
        let ended = env.print(&text)?;
        env.say("dry run: nothing was changed");
        return Ok(ended);
    }
    let request = Request::SetService {
        name: name.to_owned(),
        replicas,
        sizes,
        id: RequestId::random(),
    };
    ask(&client, request).await?;
    for (shard, at) in cuts {
        let because = format!("presplit of {name}");
        let op = start_op(&client, Goal::Split { shard, at }, None, &because, Begin::default()).await?;
        watch(env, &client, op, None, false, None).await?;
    }
    env.print(&text)
}

fn service_rows(replicas: u32, sizes: ShardSizes) -> Vec<(&'static str, String)> {
    let or_never = |text: String, value: u64| if value == 0 { "never".to_owned() } else { text };
    vec![
        ("replicas", replicas.to_string()),
        ("split-size", size(sizes.split_bytes)),
        (
            "split-rate",
            or_never(format!("{} req/s", sizes.split_load), sizes.split_load),
        ),
        ("merge-size", or_never(size(sizes.merge_bytes), sizes.merge_bytes)),
        ("min-shards", sizes.min_shards.to_string()),
    ]
}

/// Where a service would have to be cut to have this many parts, even over the keys that posts get, and is not.
fn missing_cuts(map: &MapView, service: &str, parts: u32) -> Vec<(ShardId, Vec<String>)> {
    let mut cuts: Vec<(ShardId, Vec<String>)> = Vec::new();
    for key in even_keys(parts) {
        let position = Position::new(service, &key);
        let holder = map.shards.iter().find(|shard| shard.range.contains(&position));
        let Some(holder) = holder.filter(|shard| shard.range.start != position) else {
            continue;
        };
        match cuts.iter_mut().find(|(shard, _)| *shard == holder.id) {
            Some((_, at)) => at.push(key),
            None => cuts.push((holder.id, vec![key])),
        }
    }
    cuts
}

/// Keys that cut the space of router-made keys into even parts: three characters of base 32.
fn even_keys(parts: u32) -> Vec<String> {
    let digit = |value: u32| char::from(DIGITS[value as usize % 32]);
    let whole = 32u32.pow(3);
    let key = |part: u32| {
        let at = (u64::from(whole) * u64::from(part) / u64::from(parts)) as u32;
        let key: String = [at / 1024, at / 32, at].into_iter().map(digit).collect();
        key
    };
    (1..parts).map(key).collect()
}

/// Of [`base32`].
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

// --- the router ------------------------------------------------------------------------------------------------

/// How requests are routed.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub struct RouterArgs {
    /// Hand a request on from node to node this often at most
    #[arg(long, value_name = "COUNT")]
    hops: Option<u8>,
    /// Ask for a map that is older than this anew where it is used
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    map_refresh: Option<Duration>,
    /// Wait this long before a request is repeated, and twice as long each time
    #[arg(long, value_parser = span_of, value_name = "SPAN")]
    retry: Option<Duration>,
}

/// Verbs on the router.
#[derive(Debug, Clone, Subcommand)]
pub enum RouterCommand {
    /// How every node and client routes requests
    Show,
    /// Change it; every node and client follows within seconds
    Set(RouterArgs),
}

fn router_rows(router: &RouterSettings) -> Vec<(&'static str, String)> {
    vec![
        ("hops", router.hops.to_string()),
        ("map-refresh", span(router.map_refresh_ms)),
        ("retry", format!("{}ms", router.retry_ms)),
    ]
}

pub(super) async fn router(env: &Environment, command: RouterCommand) -> Ended {
    let client = env.connect().await?;
    let before = client.map().await?.policy.router;
    match command {
        RouterCommand::Show => {
            let rows = router_rows(&before);
            list(env, "isx.router.show/1", rows, router_rows(&RouterSettings::default()))
        }
        RouterCommand::Set(args) => {
            let ms = |span: Duration| span.as_millis() as u64;
            let after = RouterSettings {
                hops: args.hops.unwrap_or(before.hops),
                map_refresh_ms: args.map_refresh.map_or(before.map_refresh_ms, ms),
                retry_ms: args.retry.map_or(before.retry_ms, ms),
            };
            after.check().map_err(|why| {
                CtlError::new(exit::INVALID, format!("{why}; nothing was changed")).next("isxctl router set --help")
            })?;
            let id = RequestId::random();
            let order = Order::SetRouter(after);
            ask(&client, Request::Order { order, id }).await?;
            changed(env, router_rows(&before), router_rows(&after))
        }
    }
}

// --- showing ---------------------------------------------------------------------------------------------------

/// Settings beside what they are where nobody set them.
fn list(
    env: &Environment,
    schema: &'static str,
    now: Vec<(&'static str, String)>,
    usual: Vec<(&'static str, String)>,
) -> Ended {
    let mut listing = Listing::new(schema, &["KEY:key", "VALUE:value", "DEFAULT:default", "SOURCE:source"]);
    for (row, usual) in now.into_iter().zip(usual) {
        let source = if row.1 == usual.1 { "default" } else { "operator" };
        let item = json!({"key": row.0, "value": row.1, "default": usual.1, "source": source});
        listing.push(vec![row.0.to_owned(), row.1, usual.1, source.to_owned()], item);
    }
    env.print_listing(&listing)
}

fn changed(env: &Environment, before: Vec<(&'static str, String)>, after: Vec<(&'static str, String)>) -> Ended {
    let changes = before.into_iter().zip(after).filter(|(old, new)| old != new);
    let text: String = changes
        .map(|(old, new)| format!("{}  {} -> {}\n", new.0, old.1, new.1))
        .collect();
    env.print(if text.is_empty() { "nothing to change\n" } else { &text })
}

pub(super) async fn settings(client: &Client) -> Result<Settings, CtlError> {
    match ask(client, Request::ShowSettings).await? {
        Response::Settings(settings) => Ok(settings),
        _ => Err(unexpected()),
    }
}

pub(super) async fn set_settings(client: &Client, settings: Settings) -> Result<(), CtlError> {
    let id = RequestId::random();
    ask(client, Request::SetSettings { settings, id }).await.map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_keys_cut_what_posts_get_into_parts_of_one_size() {
        assert_eq!(even_keys(2), ["g00"]);
        assert_eq!(even_keys(4), ["800", "g00", "r00"]);
        let mut counts = [0u32; 8];
        let cuts = even_keys(8);
        for n in 0..4_000u128 {
            let key = RequestId(n).entity_key();
            counts[cuts.iter().filter(|cut| **cut <= key).count()] += 1;
        }
        assert!(counts.iter().all(|count| (400..600).contains(count)), "{counts:?}");
    }
}
