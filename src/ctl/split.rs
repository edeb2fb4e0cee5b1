//! Cutting a shard: where, shown with what each part would have, and done as an operation.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::cluster::bounds;
use super::exit::{self, CtlError};
use super::op_args::OpStart;
use super::ops::{Begin, ask, start_op, unexpected, watch};
use super::output::size;
use super::status::Cluster;
use super::{Ended, Environment};
use crate::client::{Client, ListQuery};
use crate::protocol::id::{DIRECTORY_SHARD, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::op::Goal;
use crate::protocol::operator::{MarkChange, Order};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::ShardDescriptor;

/// Which shard is cut, and where.
#[derive(Debug, Clone, Args)]
pub struct SplitArgs {
    /// The shard
    shard: ShardId,
    /// First key of the right half; it need not exist
    #[arg(long, value_name = "KEY", required_unless_present_any = ["into", "by", "keys_from"])]
    at: Option<String>,
    /// Into this many parts
    #[arg(long, value_name = "N", conflicts_with_all = ["at", "keys_from"],
          value_parser = clap::value_parser!(u32).range(2..=64))]
    into: Option<u32>,
    /// What the parts have in equal shares
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["at", "keys_from"])]
    by: Option<SplitBy>,
    /// At the keys in this file, one on a line; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "at")]
    keys_from: Option<PathBuf>,
    /// Don't merge the parts again by itself for this long, such as 168h
    #[arg(long, value_name = "SPAN", value_parser = super::args::span)]
    sticky: Option<Duration>,
    /// How it is started.
    #[command(flatten)]
    start: OpStart,
}

/// What the parts of a split have in equal shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitBy {
    /// Bytes of keys and documents
    Size,
    /// Requests, by the keys of the latest ones
    Load,
}

/// What is in a shard, thinned out evenly: enough to cut by, however large it is.
#[derive(Debug, Default)]
struct Contents {
    /// Keys in order, each with the bytes before it.
    keys: Vec<(String, u64)>,
    every: u64,
    seen: u64,
    bytes: u64,
}

const KEYS_KEPT: usize = 8_192;

impl Contents {
    fn add(&mut self, key: String, bytes: u64) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.keys.push((key, self.bytes));
        }
        self.seen += 1;
        self.bytes += bytes;
        if self.keys.len() >= KEYS_KEPT {
            let mut keep = false;
            self.keys.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
    }

    /// Bytes before a key.
    fn before(&self, key: &str) -> u64 {
        let at = self.keys.partition_point(|(known, _)| known.as_str() < key);
        self.keys.get(at).map_or(self.bytes, |(_, before)| *before)
    }

    /// First keys of all parts but the first, so that each part has as many bytes.
    fn cuts(&self, parts: u32) -> Vec<String> {
        let mut cuts: Vec<String> = Vec::new();
        for part in 1..parts {
            let wanted = (u128::from(self.bytes) * u128::from(part) / u128::from(parts)) as u64;
            let at = self.keys.partition_point(|(_, before)| *before < wanted).max(1);
            if let Some((key, _)) = self.keys.get(at)
                && cuts.last().is_none_or(|last| last < key)
            {
                cuts.push(key.clone());
            }
        }
        cuts
    }
}

/// The same by the keys of requests, each as often as it was asked for.
fn cuts_by_load(samples: &[String], parts: u32) -> Vec<String> {
    let mut cuts: Vec<String> = Vec::new();
    let Some(first) = samples.first() else { return cuts };
    for part in 1..parts as usize {
        let middle = &samples[samples.len() * part / parts as usize];
        // What lies at the very start can't be cut off on its left.
        let cut = samples
            .iter()
            .find(|key| *key >= middle && *key > cuts.last().unwrap_or(first));
        if let Some(cut) = cut {
            cuts.push(cut.clone());
        }
    }
    cuts
}

/// Fewer requests say nothing of where the load is.
const SAMPLES_MIN: usize = 32;

pub(super) async fn split(env: &Environment, args: SplitArgs) -> Ended {
    let client = env.connect().await?;
    let shard = find(&client, args.shard).await?;
    let id = shard.id;
    if id == DIRECTORY_SHARD {
        let message = format!("{id} is the directory: it has no keys to split at");
        return Err(CtlError::new(exit::REFUSED, message).next("isxctl shard list --service campaign"));
    }
    let needs_contents = args.start.dry_run || (args.at.is_none() && args.keys_from.is_none());
    let contents = match needs_contents {
        true => contents(&client, &shard.range).await?,
        false => Contents::default(),
    };
    let needs_samples = args.start.dry_run || args.by == Some(SplitBy::Load);
    let samples = if needs_samples {
        samples(&client, id).await?
    } else {
        Vec::new()
    };
    let cuts = match (&args.at, &args.keys_from, args.by) {
        (Some(at), ..) => vec![at.clone()],
        (_, Some(file), _) => keys_from(file)?,
        (_, _, Some(SplitBy::Load)) => {
            if samples.len() < SAMPLES_MIN {
                let message = format!(
                    "{id} was asked for {} keys lately, too few to cut it by its load",
                    samples.len()
                );
                return Err(CtlError::new(exit::REFUSED, message).next(format!("isxctl shard split {id} --by size")));
            }
            cuts_by_load(&samples, args.into.unwrap_or(2))
        }
        _ => contents.cuts(args.into.unwrap_or(2)),
    };
    let wanted = args.into.map_or(1, |parts| parts as usize - 1);
    if cuts.is_empty() || cuts.len() < wanted && args.by != Some(SplitBy::Load) {
        let message = format!(
            "too few entities to cut into {} parts by: {}; name the cut: --at KEY",
            wanted + 1,
            contents.seen
        );
        return Err(CtlError::new(exit::REFUSED, message));
    }
    let parts = parts(&shard, &cuts)?;
    if args.start.dry_run {
        return show(env, &shard, &cuts, &parts, &contents, &samples).await;
    }
    let goal = Goal::Split {
        shard: id,
        at: cuts.clone(),
    };
    if !args.start.is_meant() {
        return super::plan::instead(env, &client, goal, &args.start).await;
    }
    let pace = args.start.pace.map(Into::into);
    let op = start_op(&client, goal, pace, &args.start.because, Begin::default()).await?;
    if args.start.no_wait {
        return env.print(&format!("{op}  split {id} at {}  started\n", cuts.join(", ")));
    }
    let ended = watch(env, &client, op, args.start.wait_for, false, None).await?;
    if ended != exit::OK {
        return Ok(ended);
    }
    let made = made(&client, &parts).await?;
    if let Some(sticky) = args.sticky {
        for part in &made {
            let change = MarkChange::Sticky(super::ops::now_ms() + sticky.as_millis() as u64);
            let order = Order::Mark { shard: part.id, change };
            let id = RequestId::random();
            ask(&client, Request::Order { order, id }).await?;
        }
    }
    if env.format().is_json() {
        let part = |part: &ShardDescriptor| {
            let (start, end) = bounds(&part.range);
            json!({"shard": part.id.to_string(), "start": start, "end": end, "epoch": part.epoch.0})
        };
        let parts: Vec<Value> = made.iter().map(part).collect();
        return env.print_json(&json!({
            "schema": "isx.shard.split/1", "dryRun": false, "shard": id.to_string(), "op": op.to_string(),
            "parts": parts, "next": ["isxctl shard list"],
        }));
    }
    let lines: String = made
        .iter()
        .map(|part| format!("  {}  {}   epoch {}\n", part.id, range(&part.range), part.epoch))
        .collect();
    env.print(&format!(
        "split {id} at {}\n{lines}next  isxctl shard list\n",
        cuts.join(", ")
    ))
}

fn range(range: &KeyRange) -> String {
    let (start, end) = bounds(range);
    format!("[{start} .. {end})")
}

/// The shard; one that was split off a moment ago is not known to every node yet.
async fn find(client: &Client, id: ShardId) -> Result<ShardDescriptor, CtlError> {
    let began = Instant::now();
    loop {
        let map = client.map().await?;
        if let Some(shard) = map.shards.iter().find(|shard| shard.id == id) {
            return Ok(shard.clone());
        }
        if began.elapsed() > KNOWN_EVERYWHERE_AFTER {
            return Err(CtlError::new(exit::NOT_FOUND, format!("there is no shard {id}")).next("isxctl shard list"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The parts as shards, once they are known.
async fn made(client: &Client, parts: &[KeyRange]) -> Result<Vec<ShardDescriptor>, CtlError> {
    let began = Instant::now();
    loop {
        let map = client.map().await?;
        let found = parts
            .iter()
            .filter_map(|part| map.shards.iter().find(|shard| shard.range.start == part.start));
        let found: Vec<ShardDescriptor> = found.cloned().collect();
        if found.len() == parts.len() || began.elapsed() > KNOWN_EVERYWHERE_AFTER {
            return Ok(found);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Nodes report what is new every second.
const KNOWN_EVERYWHERE_AFTER: Duration = Duration::from_millis(2_500);
const LOOK_EVERY: Duration = Duration::from_millis(150);

fn keys_from(file: &Path) -> Result<Vec<String>, CtlError> {
    let read = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = read.map_err(|error| {
        let text = format!("cannot read keys from `{}`: {error}", file.display());
        CtlError::new(exit::USAGE, text)
    })?;
    let mut keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    keys.sort();
    keys.dedup();
    Ok(keys)
}

/// What each part would hold; refused where a cut is not inside.
fn parts(shard: &ShardDescriptor, cuts: &[String]) -> Result<Vec<KeyRange>, CtlError> {
    let mut rest = shard.range.clone();
    let mut parts = Vec::new();
    for cut in cuts {
        let Some((left, right)) = rest.split(&Position::new(shard.range.service(), cut)) else {
            let message = format!("`{cut}` is not inside {} {}", shard.id, range(&shard.range));
            return Err(CtlError::new(exit::REFUSED, message).next(format!("isxctl shard show {}", shard.id)));
        };
        parts.push(left);
        rest = right;
    }
    parts.push(rest);
    Ok(parts)
}

async fn contents(client: &Client, range: &KeyRange) -> Result<Contents, CtlError> {
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
    let mut contents = Contents::default();
    loop {
        let page = client.list(&query).await?;
        for item in page.items {
            let bytes = item.key.len() as u64 + u64::from(item.bytes);
            contents.add(item.key, bytes);
        }
        match page.next {
            Some(next) => query.resume = Some(next),
            None => return Ok(contents),
        }
    }
}

async fn samples(client: &Client, shard: ShardId) -> Result<Vec<String>, CtlError> {
    match ask(client, Request::Samples { shard }).await? {
        Response::Samples(keys) => Ok(keys),
        _ => Err(unexpected()),
    }
}

/// What would be done.
async fn show(
    env: &Environment,
    shard: &ShardDescriptor,
    cuts: &[String],
    parts: &[KeyRange],
    contents: &Contents,
    samples: &[String],
) -> Ended {
    let cluster = Cluster::ask(env).await?;
    let (leader, rate) = match cluster
        .shards
        .get(&shard.id)
        .map(|shard| cluster.health_of(shard).leader)
    {
        Some(Some((node, status))) => (cluster.node_name(node), status.requests_per_s),
        _ => ("none".to_owned(), 0),
    };
    let mut shares = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let before = |cut: Option<&String>, whole: u64| cut.map_or(whole, |cut| contents.before(cut));
        let begin = if at == 0 { 0 } else { before(cuts.get(at - 1), 0) };
        let bytes = before(cuts.get(at), contents.bytes).saturating_sub(begin);
        let service = part.service();
        let asked = samples
            .iter()
            .filter(|key| part.contains(&Position::new(service, key)))
            .count() as u64;
        let share = (samples.len() >= SAMPLES_MIN).then(|| rate * asked / samples.len() as u64);
        shares.push((part, bytes, share));
    }
    let again = match cuts {
        [one] => format!("isxctl shard split {} --at {one}", shard.id),
        _ => format!(
            "the same without --dry-run, or: printf '%s\\n' {} | isxctl shard split {} --keys-from -",
            cuts.join(" "),
            shard.id
        ),
    };
    if env.format().is_json() {
        let part = |(part, bytes, share): &(&KeyRange, u64, Option<u64>)| {
            let (start, end) = bounds(part);
            json!({"start": start, "end": end, "bytes": bytes, "requestsPerSecond": share})
        };
        return env.print_json(&json!({
            "schema": "isx.shard.split/1", "dryRun": true, "shard": shard.id.to_string(), "cuts": cuts,
            "parts": shares.iter().map(part).collect::<Vec<_>>(), "samples": samples.len(), "next": [again],
        }));
    }
    let mut text = format!(
        "{}  {}  {}   {}   {rate} req/s   leader {leader}\n",
        shard.id,
        shard.range.service(),
        range(&shard.range),
        size(contents.bytes)
    );
    for cut in cuts {
        text += &format!("  point {cut} (between entities; {} samples)\n", samples.len());
    }
    let last = shares.len() - 1;
    for (at, (part, bytes, share)) in shares.iter().enumerate() {
        let name = match (at, last) {
            (0, 1) => "left ",
            (1, 1) => "right",
            _ => "part ",
        };
        let share = share.map_or_else(String::new, |share| format!("   {share} req/s"));
        text += &format!("  {name}  {}   {}{share}\n", range(part), size(*bytes));
    }
    text += "  write pause expected under 50 ms; no data moves between nodes\n";
    let ended = env.print(&text)?;
    env.say(&format!("dry run: nothing changed.  to do it: {again}"));
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_as_many_bytes_whatever_their_number_of_keys() {
        let mut contents = Contents::default();
        // The first hundred keys are as heavy as the other twenty thousand together.
        for n in 0..20_100u32 {
            let bytes = if n < 100 { 2_000 } else { 10 };
            contents.add(format!("c-{n:05}"), bytes);
        }
        let cuts = contents.cuts(2);
        assert_eq!(cuts.len(), 1);
        assert!(("c-00090".."c-00120").contains(&cuts[0].as_str()), "{cuts:?}");
        let four = contents.cuts(4);
        assert!(four.len() == 3 && four.is_sorted(), "{four:?}");
        let left = contents.before(&cuts[0]);
        assert!(
            left.abs_diff(contents.bytes / 2) < contents.bytes / 50,
            "{left} of {}",
            contents.bytes
        );
        // One entity can't be cut.
        let mut one = Contents::default();
        one.add("c".into(), 1 << 20);
        assert_eq!(one.cuts(2), Vec::<String>::new());
    }

    #[test]
    fn load_is_cut_where_it_is_and_one_hot_key_is_left_alone() {
        let keys = |text: &[&str]| text.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let spread = keys(&["a", "b", "c", "x", "x", "x", "y", "z"]);
        assert_eq!(cuts_by_load(&spread, 2), ["x"]);
        assert_eq!(cuts_by_load(&keys(&["a"; 40]), 2), Vec::<String>::new());
        // Most of it lies at the very start: the cut is behind.
        let mut first = keys(&["a"; 30]);
        first.extend(keys(&["m", "z"]));
        assert_eq!(cuts_by_load(&first, 2), ["m"]);
    }
}
