//! `isxctl bench`: load against a running cluster, measured without coordinated omission.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::client::{Client, ClientError};
use crate::protocol::activity::Body;
use crate::protocol::id::RequestId;
use crate::protocol::key::Position;
use crate::protocol::request::{Change, Condition, Write};

/// What each request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Replace a document.
    Put,
    /// Read one, linearizable.
    Get,
    /// Half of each.
    Mix,
    /// One entity sends messages to others of the service `profile` (`--fan-out`), which merge a field.
    Activity,
}

/// Flags of `isxctl bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// What each request does
    #[arg(long, value_enum, default_value = "put")]
    pub workload: Workload,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Requests per second to start, whatever the answers do (open loop); without it each client starts its next request
    /// when it has the answer to the last (closed loop)
    #[arg(long, value_name = "PER_S")]
    pub rate: Option<u32>,
    /// Bytes of each document
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    pub value_bytes: u32,
    /// Number of different keys, chosen uniformly; 300 where nothing else is said with `--workload activity`
    #[arg(long, default_value_if("workload", "activity", "300"), default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Seconds to measure; Ctrl-C ends it earlier, with the report
    #[arg(long, default_value_t = 10)]
    pub duration: u64,
    /// Seconds to run before measuring
    #[arg(long, default_value_t = 2)]
    pub warmup: u64,
    /// Seed of keys and documents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Put every key once before the load starts; always with `--workload activity`, whose messages need both ends
    #[arg(long, default_value_if("workload", "activity", "true"))]
    pub preload: bool,
    /// Remember every acknowledged write and read all of them back at the end; exit 1 if one is lost
    #[arg(long)]
    pub verify: bool,
    /// Receivers of each write's messages, with `--workload activity`
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub fan_out: u32,
    /// Service to use
    #[arg(long, default_value = "campaign")]
    pub service: String,
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
    /// Acknowledged writes that were not found again.
    pub lost: u64,
}

/// The key of number `index`: uniform over the key space like those that the router makes.
pub fn key(seed: u64, index: u32) -> String {
    RequestId(u128::from(seed) << 64 | u128::from(index)).entity_key()
}

/// A document of about `size` bytes.
fn document(index: u32, counter: u64, size: u32) -> Bytes {
    let head = format!(r#"{{"index":{index},"count":{counter},"fill":""#);
    let fill = (size as usize).saturating_sub(head.len() + 2);
    let mut text = Vec::with_capacity(head.len() + fill + 2);
    text.extend_from_slice(head.as_bytes());
    text.extend((0..fill).map(|at| b'a' + ((at as u64 + counter) % 26) as u8));
    text.extend_from_slice(b"\"}");
    text.into()
}

struct Shared {
    args: BenchArgs,
    start: Instant,
    measuring: AtomicBool,
    stop: AtomicBool,
    ticket: AtomicU64,
    last_success_us: AtomicU64,
    longest_gap_us: AtomicU64,
}

struct Worker {
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    refused: u64,
    unknown: u64,
    unreachable: u64,
    timed_out: u64,
    other: u64,
    last_error: Option<String>,
    /// Keys written by this worker: last acknowledged version, and whether the outcome of a later write is not known.
    written: std::collections::BTreeMap<u32, (u64, bool)>,
}

impl Worker {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 120_000_000, 3).expect("constant bounds are valid");
        Self {
            puts: histogram(),
            gets: histogram(),
            refused: 0,
            unknown: 0,
            unreachable: 0,
            timed_out: 0,
            other: 0,
            last_error: None,
            written: std::collections::BTreeMap::new(),
        }
    }

    fn failed(&mut self, error: &ClientError) {
        match error {
            ClientError::Refused(_) => self.refused += 1,
            ClientError::Unknown { .. } => self.unknown += 1,
            ClientError::Unreachable { .. } => self.unreachable += 1,
            ClientError::TimedOut { .. } => self.timed_out += 1,
            _ => self.other += 1,
        }
        self.last_error = Some(error.to_string());
    }
}

/// Runs the load. `servers` are processes on this machine whose processor time is to be counted.
pub async fn run(client: &Client, args: &BenchArgs, servers: &[i32], progress: &indicatif::ProgressBar) -> Outcome {
    if args.preload {
        preload(client, args, &args.service, args.keys, progress).await;
    }
    if args.preload && args.workload == Workload::Activity {
        preload(
            client,
            args,
            RECEIVERS,
            args.keys.saturating_mul(args.fan_out),
            progress,
        )
        .await;
    }
    let shared = Arc::new(Shared {
        args: args.clone(),
        start: Instant::now(),
        measuring: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        ticket: AtomicU64::new(0),
        last_success_us: AtomicU64::new(0),
        longest_gap_us: AtomicU64::new(0),
    });
    let mut tasks = Vec::new();
    for number in 0..args.clients {
        tasks.push(tokio::spawn(work(client.clone(), Arc::clone(&shared), number)));
    }
    progress.set_message("warming up");
    tokio::time::sleep(Duration::from_secs(args.warmup)).await;
    let (server_before, own_before) = (cpu(servers), cpu(&[std::process::id() as i32]));
    shared
        .last_success_us
        .store(shared.start.elapsed().as_micros() as u64, Relaxed);
    shared.measuring.store(true, Relaxed);
    let messages_before = messages(client, args).await;
    let began = Instant::now();
    progress.set_length(args.duration);
    progress.set_message("measuring");
    // Ctrl-C ends the load and not the report.
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    for _ in 0..args.duration {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => progress.inc(1),
            _ = &mut interrupted => break,
        }
    }
    shared.measuring.store(false, Relaxed);
    let measured = began.elapsed();
    let messages_after = messages(client, args).await;
    note_gap(&shared, shared.start.elapsed().as_micros() as u64);
    let (server_after, own_after) = (cpu(servers), cpu(&[std::process::id() as i32]));
    shared.stop.store(true, Relaxed);
    let mut total = Worker::new();
    for task in tasks {
        let Ok(worker) = task.await else { continue };
        let _ = total.puts.add(&worker.puts);
        let _ = total.gets.add(&worker.gets);
        total.refused += worker.refused;
        total.unknown += worker.unknown;
        total.unreachable += worker.unreachable;
        total.timed_out += worker.timed_out;
        total.other += worker.other;
        total.last_error = worker.last_error.or(total.last_error);
        total.written.extend(worker.written);
    }
    progress.finish_and_clear();
    let mut lost = Vec::new();
    if args.verify {
        lost = verify(client, args, &total).await;
    }
    let gap_us = shared.longest_gap_us.load(Relaxed);
    report(
        args,
        &total,
        measured,
        gap_us,
        server_after - server_before,
        own_after - own_before,
        !servers.is_empty(),
        &lost,
        Delivered::between(&messages_before, &messages_after),
    )
}

/// What the nodes count of messages, summed.
async fn messages(client: &Client, args: &BenchArgs) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    if args.workload == Workload::Activity {
        for (_, status) in client.statuses().await {
            for (name, count) in status.map(|status| status.counters).unwrap_or_default() {
                if name.starts_with("messages_") {
                    *sums.entry(name).or_default() += count;
                }
            }
        }
    }
    sums
}

/// Messages applied while it was measured.
struct Delivered {
    applied: u64,
    refused: u64,
    outstanding: u64,
    /// Bound and how many needed no longer.
    within: Vec<(u64, u64)>,
}

impl Delivered {
    fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Self {
        let at = |sums: &BTreeMap<String, u64>, name: &str| sums.get(name).copied().unwrap_or(0);
        let more = |name: &str| at(after, name).saturating_sub(at(before, name));
        let bound = |name: &String| name.strip_prefix("messages_within_")?.strip_suffix("_ms")?.parse().ok();
        let mut within: Vec<(u64, u64)> = after
            .keys()
            .filter_map(|name| Some((bound(name)?, more(name))))
            .collect();
        within.sort_unstable();
        Self {
            applied: more("messages_applied"),
            refused: more("messages_refused"),
            outstanding: at(after, "messages_outstanding"),
            within,
        }
    }

    /// The bound below which this share of the messages was applied after their commit. Unit: ms.
    fn quantile(&self, share: f64) -> Option<u64> {
        let wanted = (self.applied as f64 * share).ceil() as u64;
        let mut sum = 0;
        self.within.iter().find_map(|&(bound, count)| {
            sum += count;
            (sum >= wanted).then_some(bound)
        })
    }
}

async fn work(client: Client, shared: Arc<Shared>, number: u32) -> Worker {
    let args = &shared.args;
    let mut worker = Worker::new();
    let mut rng = fastrand::Rng::with_seed(args.seed ^ (u64::from(number) << 32 | 0x5bd1));
    let mut counter: u64 = 0;
    // Ids are never the same in two runs, whatever the seed: a repeated id is answered from memory.
    let run_id = RequestId::random().0;
    while !shared.stop.load(Relaxed) {
        let intended = match args.rate {
            Some(rate) => {
                let ticket = shared.ticket.fetch_add(1, Relaxed);
                let at = shared.start + Duration::from_nanos(ticket * 1_000_000_000 / u64::from(rate.max(1)));
                tokio::time::sleep_until(at.into()).await;
                at
            }
            None => Instant::now(),
        };
        counter += 1;
        // Each worker has keys of its own when acknowledged writes are to be found again.
        let index = if args.verify {
            let mine = (args.keys / args.clients).max(1);
            number * mine + rng.u32(0..mine)
        } else {
            rng.u32(0..args.keys)
        };
        let key = key(args.seed, index);
        let put = match args.workload {
            Workload::Put => true,
            Workload::Get => false,
            Workload::Mix => rng.bool(),
            Workload::Activity => true,
        };
        let result = if put {
            let write = Write {
                service: args.service.clone(),
                key,
                id: RequestId(run_id.wrapping_add(counter.into())),
                condition: Condition::Always,
                change: match args.workload {
                    Workload::Activity => send(args, index, counter),
                    _ => Change::Put(document(index, counter, args.value_bytes)),
                },
            };
            client.write(write).await.map(|written| Some(written.version))
        } else {
            client.get(&args.service, &key).await.map(|_| None)
        };
        let now = Instant::now();
        match result {
            Ok(version) => {
                if let Some(version) = version {
                    worker.written.insert(index, (version, false));
                }
                if shared.measuring.load(Relaxed) {
                    let us = now.saturating_duration_since(intended).as_micros() as u64;
                    let histogram = if put { &mut worker.puts } else { &mut worker.gets };
                    histogram.saturating_record(us.max(1));
                    note_gap(&shared, now.duration_since(shared.start).as_micros() as u64);
                }
            }
            Err(error) => {
                if put {
                    worker.written.entry(index).or_insert((0, true)).1 = true;
                }
                worker.failed(&error);
            }
        }
    }
    worker
}

fn note_gap(shared: &Shared, now_us: u64) {
    let before = shared.last_success_us.swap(now_us, Relaxed);
    shared.longest_gap_us.fetch_max(now_us.saturating_sub(before), Relaxed);
}

/// A write that sends messages to the receivers of this sender.
fn send(args: &BenchArgs, index: u32, counter: u64) -> Change {
    let receiver = |n| {
        Position::new(
            RECEIVERS,
            &key(args.seed, index.wrapping_mul(args.fan_out).wrapping_add(n)),
        )
    };
    let patch = format!(r#"{{"count":{counter}}}"#).into();
    Change::Send {
        to: (0..args.fan_out).map(receiver).collect(),
        body: Box::new(Body::Merge { patch }),
    }
}

/// The service that receives messages.
const RECEIVERS: &str = "profile";

async fn preload(client: &Client, args: &BenchArgs, service: &str, keys: u32, progress: &indicatif::ProgressBar) {
    progress.set_length(u64::from(keys));
    progress.set_message("preloading");
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..args.clients.max(64))
        .map(|_| {
            let (client, args, next, progress) = (client.clone(), args.clone(), Arc::clone(&next), progress.clone());
            let service = service.to_owned();
            tokio::spawn(async move {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    if index >= u64::from(keys) {
                        return;
                    }
                    let index = index as u32;
                    let write = Write {
                        service: service.clone(),
                        key: key(args.seed, index),
                        id: RequestId::random(),
                        condition: Condition::Always,
                        change: Change::Put(document(index, 0, args.value_bytes)),
                    };
                    if let Err(error) = client.write(write).await {
                        progress.println(format!("preload: {error}"));
                    }
                    progress.inc(1);
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
    progress.reset();
}

/// Reads back every key that was written; names those that are older than what was acknowledged.
async fn verify(client: &Client, args: &BenchArgs, total: &Worker) -> Vec<String> {
    let mut lost = Vec::new();
    for (&index, &(version, unknown)) in &total.written {
        let key = key(args.seed, index);
        let found = match client.get(&args.service, &key).await {
            Ok(found) => found.map_or(0, |entity| entity.version),
            Err(error) => {
                lost.push(format!("{key}: could not be read: {error}"));
                continue;
            }
        };
        // A write whose outcome is not known may be there as well; nobody else writes this key.
        if found < version || (found > version && !unknown) {
            lost.push(format!("{key}: acknowledged version {version}, found {found}"));
        }
    }
    lost
}

/// Processor time that processes have used. Unit: us.
fn cpu(processes: &[i32]) -> u64 {
    let per_tick = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let of = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name in brackets: utime and stime are the 12th and 13th fields.
        let mut fields = stat.rsplit(") ").next()?.split_whitespace().skip(11);
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(ticks * per_tick)
    };
    processes.iter().filter_map(of).sum()
}

#[allow(clippy::too_many_arguments)]
fn report(
    args: &BenchArgs,
    total: &Worker,
    measured: Duration,
    gap_us: u64,
    server_us: u64,
    own_us: u64,
    local: bool,
    lost: &[String],
    delivered: Delivered,
) -> Outcome {
    let seconds = measured.as_secs_f64();
    let count = total.puts.len() + total.gets.len();
    let mut text = format!(
        "{} for {:.1} s: {} clients, {} keys, {} bytes{}\n",
        match args.workload {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::Mix => "mix",
            Workload::Activity => "activity",
        },
        seconds,
        args.clients,
        args.keys,
        args.value_bytes,
        args.rate
            .map_or_else(|| ", closed loop".to_owned(), |rate| format!(", open loop at {rate}/s")),
    );
    let ms = |us: u64| us as f64 / 1_000.0;
    let mut kinds = serde_json::Map::new();
    for (name, histogram) in [("put", &total.puts), ("get", &total.gets)] {
        if histogram.is_empty() {
            continue;
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        let rate = histogram.len() as f64 / seconds;
        text += &format!(
            "{name:<6} {rate:>10.0}/s   p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms\n",
            ms(at(0.5)),
            ms(at(0.9)),
            ms(at(0.99)),
            ms(at(0.999)),
            ms(histogram.max()),
        );
        kinds.insert(
            name.to_owned(),
            json!({"count": histogram.len(), "perSecond": rate, "p50Us": at(0.5), "p90Us": at(0.9), "p99Us": at(0.99),
                   "p999Us": at(0.999), "maxUs": histogram.max()}),
        );
    }
    let is_activity = args.workload == Workload::Activity;
    let applied_per_s = delivered.applied as f64 / seconds;
    if is_activity {
        let within = |share| {
            delivered
                .quantile(share)
                .map_or("over 5000".to_owned(), |ms| format!("within {ms}"))
        };
        text += &format!(
            "applied {applied_per_s:>9.0} messages/s   p50 {}  p99 {} ms from commit to applied, {} refused, {} outstanding at the end\n",
            within(0.5),
            within(0.99),
            delivered.refused,
            delivered.outstanding,
        );
        if local && delivered.applied > 0 {
            let per_message = server_us as f64 / delivered.applied as f64;
            text += &format!("cpu    servers {per_message:.1} us per message applied, writes included\n");
        }
    }
    text += &format!("gap    longest time without a success {:.0} ms\n", ms(gap_us));
    let errors = total.refused + total.unknown + total.unreachable + total.timed_out + total.other;
    if errors > 0 {
        text += &format!(
            "errors {errors}: refused {}, unknown outcome {}, unreachable {}, timed out {}, other {}; last: {}\n",
            total.refused,
            total.unknown,
            total.unreachable,
            total.timed_out,
            total.other,
            total.last_error.as_deref().unwrap_or("-"),
        );
    } else {
        text += "errors 0\n";
    }
    let per = |us: u64| if count > 0 { us as f64 / count as f64 } else { 0.0 };
    if local {
        text += &format!(
            "cpu    servers {:.1} us per request, this program {:.1} us\n",
            per(server_us),
            per(own_us)
        );
    }
    if args.verify {
        text += &format!(
            "verify {} keys read back, {} lost or doubled\n",
            total.written.len(),
            lost.len()
        );
        for line in lost.iter().take(10) {
            text += &format!("       {line}\n");
        }
    }
    let json = json!({
        "schema": "isx.bench/1", "seconds": seconds, "clients": args.clients, "keys": args.keys,
        "valueBytes": args.value_bytes, "rate": args.rate, "kinds": kinds, "longestGapUs": gap_us,
        "errors": {"refused": total.refused, "unknown": total.unknown, "unreachable": total.unreachable,
                   "timedOut": total.timed_out, "other": total.other},
        "cpuUsPerRequest": {"servers": local.then(|| per(server_us)), "client": per(own_us)},
        "messages": is_activity.then(|| json!({
            "applied": delivered.applied, "perSecond": applied_per_s, "refused": delivered.refused,
            "outstanding": delivered.outstanding, "fanOut": args.fan_out,
            "p50WithinMs": delivered.quantile(0.5), "p99WithinMs": delivered.quantile(0.99),
        })),
        "verify": args.verify.then(|| json!({"keys": total.written.len(), "lost": lost.len()})),
    });
    Outcome {
        text,
        json,
        lost: lost.len() as u64,
    }
}

/// A campaign document for trying things out, the same for the same seed and number.
pub fn sample_campaign(seed: u64, index: u32) -> Value {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9) ^ u64::from(index));
    let brands = [
        "Alder", "Birch", "Cedar", "Elm", "Hazel", "Linden", "Maple", "Rowan", "Willow", "Yew",
    ];
    let seasons = ["spring", "summer", "autumn", "winter"];
    let channels = ["search", "social", "video", "display", "audio", "mail"];
    let countries = ["AT", "CH", "DE", "ES", "FR", "IT", "NL", "PL", "PT", "SE"];
    let mut pick = |from: &[&str]| from[rng.usize(..from.len())].to_owned();
    let (brand, season, channel, country) = (pick(&brands), pick(&seasons), pick(&channels), pick(&countries));
    let status = pick(&["draft", "active", "paused", "ended"]);
    let month = rng.u8(1..=12);
    let first = rng.u8(1..=14);
    json!({
        "name": format!("{brand} {season} {index}"),
        "status": status,
        "channel": channel,
        "country": country,
        "budget": {"currency": "EUR", "total": rng.u32(500..500_000), "daily": rng.u32(10..5_000)},
        "starts": format!("2026-{month:02}-{first:02}T00:00:00Z"),
        "ends": format!("2026-{month:02}-{:02}T23:59:59Z", first + 14),
        "tags": [season, brand.to_lowercase(), format!("wave-{}", rng.u8(1..9))],
        "frequencyCap": {"impressions": rng.u8(1..20), "hours": 24},
    })
}
