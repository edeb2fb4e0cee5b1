//! Real `isxd` processes on loopback, real files, real QUIC: what no simulation can show.
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isx::client::context::Context;
use isx::client::{Client, ClientError, ConnectError, ConnectOptions, ListQuery, Scope, Watch, WatchEvent};
use isx::ctl::dev::{NewNode, init};
use isx::protocol::error::Code;
use isx::protocol::id::{NodeId, RequestId, ShardId};
use isx::protocol::key::Position;
use isx::protocol::op::{Goal, NodeChange, Pace, Settings};
use isx::protocol::request::{Change, Condition, Request, Response, Write};
use isx::protocol::shard_map::{MapView, ShardDescriptor};
use isx::security::tls;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tokio::time::sleep;

mod common;
use common::{Cluster, PATIENCE, caught_up, operate, test};

/// What a write may take while a node dies. Half a second is usual; three would mean that somebody waited for a dead
/// connection's idle timeout.
const RESUMED_WITHIN: Duration = Duration::from_millis(2500);

/// What one writer knows of one of its keys.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    version: u64,
    count: u64,
    /// A later write may have happened as well.
    is_unknown: bool,
}

/// Writers with keys of their own, each key written by one of them only.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// Longest time that a single write took, with all its retries, since last asked. Unit: ms.
    slowest_ms: Arc<AtomicU64>,
    writers: Vec<JoinHandle<BTreeMap<String, Known>>>,
}

const WRITERS: u64 = 8;
const KEYS_EACH: u64 = 25;

impl Load {
    fn start(client: &Client, may_be_unknown: bool) -> Self {
        let (stop, acknowledged, slowest_ms) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let writers = (0..WRITERS)
            .map(|writer| {
                let (stop, acknowledged, slowest_ms) = (stop.clone(), acknowledged.clone(), slowest_ms.clone());
                let writer = write_on(client.clone(), writer, may_be_unknown, stop, acknowledged, slowest_ms);
                tokio::spawn(writer)
            })
            .collect();
        Self {
            stop,
            acknowledged,
            slowest_ms,
            writers,
        }
    }

    /// Waits until this many more writes are acknowledged; the longest time that one of them took.
    async fn progress(&self, what: &str, writes: u64) -> Duration {
        let (began, before) = (Instant::now(), self.acknowledged.load(Ordering::Relaxed));
        loop {
            let done = self.acknowledged.load(Ordering::Relaxed) - before;
            if done >= writes {
                return Duration::from_millis(self.slowest_ms.swap(0, Ordering::Relaxed));
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{what}: {done} of {writes} writes in {PATIENCE:?}"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(self) -> BTreeMap<String, Known> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for writer in self.writers {
            all.extend(writer.await.expect("a writer's expectation held"));
        }
        all
    }
}

async fn write_on(
    client: Client,
    writer: u64,
    may_be_unknown: bool,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    slowest_ms: Arc<AtomicU64>,
) -> BTreeMap<String, Known> {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        // Spread over the key space, so that every shard has its share.
        let key = RequestId(u128::from(writer * KEYS_EACH + count % KEYS_EACH)).entity_key();
        let began = Instant::now();
        let written = client.put("campaign", &key, format!(r#"{{"count":{count}}}"#)).await;
        let known = known.entry(key).or_default();
        match written {
            Ok(written) => {
                assert!(
                    written.version > known.version,
                    "versions grow: {known:?}, then {written:?}"
                );
                *known = Known {
                    version: written.version,
                    count,
                    is_unknown: false,
                };
                slowest_ms.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(ClientError::Unknown { .. }) if may_be_unknown => known.is_unknown = true,
            Err(error) => panic!("a write failed: {error}"),
        }
    }
    known
}

/// Every acknowledged write is there, and nothing is there that was not written.
async fn check(client: &Client, known: &BTreeMap<String, Known>) {
    for (key, known) in known {
        let entity = client.get("campaign", key).await.expect("an answer");
        let entity = entity.unwrap_or_else(|| panic!("{key} is lost: {known:?}"));
        let document: serde_json::Value = serde_json::from_slice(&entity.document).expect("as it was put");
        let count = document["count"].as_u64().expect("as it was put");
        if known.is_unknown {
            assert!(count >= known.count, "{key}: {known:?}, found {count}");
        } else {
            assert_eq!((entity.version, count), (known.version, known.count), "{key}");
        }
    }
}

#[test]
fn any_node_may_be_killed_under_load_and_then_all_of_them() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        let load = Load::start(&client, true);
        load.progress("first writes", 200).await;
        for n in 0..3 {
            cluster.kill(n);
            // Enough that each writer comes by the shards that the dead node led.
            let slowest = load.progress("writes without one node", 2 * WRITERS * KEYS_EACH).await;
            eprintln!("n{} killed: the slowest write took {slowest:?}", n + 1);
            assert!(slowest < RESUMED_WITHIN, "{slowest:?}");
            cluster.run(n);
            caught_up(&client, NodeId(n as u64 + 1)).await;
            load.progress("writes with all nodes", 100).await;
        }
        let known = load.finish().await;
        assert_eq!(known.len() as u64, WRITERS * KEYS_EACH);
        check(&client, &known).await;

        (0..3).for_each(|n| cluster.kill(n));
        let began = Instant::now();
        (0..3).for_each(|n| cluster.run(n));
        check(&client, &known).await;
        eprintln!(
            "all killed: everything read back {:?} after the restart",
            began.elapsed()
        );
        client.close().await;
        // A client that knows nothing of before sees the same.
        check(&cluster.client().await, &known).await;
    });
}

#[test]
fn a_frozen_node_holds_nobody_up_for_long() {
    test(async {
        let cluster = Cluster::start();
        let client = cluster.client().await;
        let load = Load::start(&client, true);
        load.progress("first writes", 200).await;
        for node in cluster.nodes.iter().flatten() {
            let pid = Pid::from_child(node);
            // Alive for its kernel, silent for everybody else: no connection breaks.
            kill_process(pid, Signal::STOP).expect("stopped");
            let slowest = load.progress("writes without one node", 2 * WRITERS * KEYS_EACH).await;
            eprintln!("{pid:?} frozen: the slowest write took {slowest:?}");
            assert!(slowest < RESUMED_WITHIN, "{slowest:?}");
            kill_process(pid, Signal::CONT).expect("continued");
            load.progress("writes with all nodes", 100).await;
        }
        check(&client, &load.finish().await).await;
    });
}

#[test]
fn a_shard_splits_under_load_without_a_failed_request() {
    test(async {
        let cluster = Cluster::start();
        let client = cluster.client().await;
        let load = Load::start(&client, false);
        load.progress("first writes", 200).await;
        let map = client.map().await.expect("a map");
        let cut = Position::new("campaign", "5");
        let holder = |map: &MapView, position: &Position| {
            let mut holding: Vec<_> = map
                .shards
                .iter()
                .filter(|s| s.range.contains(position))
                .cloned()
                .collect();
            holding.sort_by_key(|shard| shard.epoch);
            holding.pop().expect("some shard holds it")
        };
        let parent = holder(&map, &cut);
        let (left, right) = client
            .split(&parent, cut.clone(), RequestId::random())
            .await
            .expect("split");
        assert_eq!((left.id, &left.range.end), (parent.id, &cut));
        assert_eq!((&right.range.start, &right.range.end), (&cut, &parent.range.end));
        load.progress("writes after the split", 300).await;
        let known = load.finish().await;
        check(&client, &known).await;

        // A listing in small pages goes on across the cut, in order, without a gap.
        let mut query = ListQuery {
            service: "campaign".into(),
            limit: 7,
            ..ListQuery::default()
        };
        let mut keys = Vec::new();
        loop {
            let page = client.list(&query).await.expect("a page");
            keys.extend(page.items.into_iter().map(|item| item.key));
            match page.next {
                Some(next) => query.resume = Some(next),
                None => break,
            }
        }
        assert!(
            keys.iter().eq(known.keys()),
            "{} listed, {} written",
            keys.len(),
            known.len()
        );
        // Every node soon knows where the right half begins.
        for node in 1..=3 {
            let began = Instant::now();
            loop {
                if let Ok(Response::Map(map)) = client.ask(NodeId(node), Request::Map).await
                    && holder(&map, &cut).id == right.id
                {
                    break;
                }
                assert!(began.elapsed() < PATIENCE, "n{node} does not learn of the split");
                sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

#[test]
fn a_cluster_grows_moves_merges_and_shrinks_under_load() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        let load = Load::start(&client, false);
        load.progress("first writes", 200).await;
        let four = cluster.join(&client, "n4").await;
        let five = cluster.join(&client, "n5").await;
        assert_eq!((four, five), (NodeId(4), NodeId(5)));
        operate(&client, Goal::Rebalance).await;
        load.progress("writes after spreading", 200).await;

        let drain = Goal::Drain {
            node: NodeId(2),
            everything: false,
        };
        operate(&client, drain).await;
        let undrain = Request::ChangeNode {
            node: NodeId(2),
            change: NodeChange::Undrain,
            id: RequestId::random(),
        };
        client.request(undrain).await.expect("undrained");

        operate(&client, Goal::Leave { node: NodeId(3) }).await;
        load.progress("writes after a leave", 200).await;
        // It is told, and ends with the code that keeps systemd from starting it again.
        let mut gone = cluster.nodes[2].take().expect("it ran");
        let began = Instant::now();
        let ended = loop {
            if let Some(ended) = gone.try_wait().expect("a child") {
                break ended;
            }
            assert!(began.elapsed() < PATIENCE, "n3 does not learn that it has left");
            sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(ended.code(), Some(76));

        let shards = |map: MapView| -> Vec<ShardDescriptor> {
            let mut shards: Vec<_> = map
                .shards
                .into_iter()
                .filter(|s| s.range.service() == "campaign")
                .collect();
            shards.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            shards
        };
        let before = shards(client.map().await.expect("a map"));
        let (left, right) = (before[0].id, before[1].id);
        operate(&client, Goal::Merge { left, right }).await;
        load.progress("writes after a merge", 200).await;

        let map = client.map().await.expect("a map");
        assert!(map.shards.iter().all(|shard| shard.replica_on(NodeId(3)).is_none()));
        let known = load.finish().await;
        check(&client, &known).await;
    });
}

/// What is staged on a node that is getting a copy. Unit: bytes.
fn staged(cluster: &Cluster, name: &str) -> u64 {
    let dir = cluster.dir.path().join("c").join(name).join("data/staging");
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

async fn staged_over(cluster: &Cluster, name: &str, bytes: u64) {
    let began = Instant::now();
    while staged(cluster, name) < bytes {
        assert!(
            began.elapsed() < PATIENCE,
            "{} bytes staged on {name}",
            staged(cluster, name)
        );
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_copy_goes_on_after_its_receiver_and_its_sender_were_killed() {
    const DOCUMENTS: usize = 480;
    const MIB: u64 = 1 << 20;
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        let settings = Settings {
            auto_rebalance: false,
            auto_split: false,
            ..Settings::default()
        };
        let id = RequestId::random();
        client
            .request(Request::SetSettings { settings, id })
            .await
            .expect("set");
        let four = cluster.join(&client, "n4").await;
        // Thirty mebibytes in one shard.
        for n in 0..DOCUMENTS {
            let text = char::from(b'a' + (n % 26) as u8).to_string().repeat(64 << 10);
            let document = format!(r#"{{"n":{n},"text":"{text}"}}"#);
            client
                .put("campaign", &format!("c-{n:04}"), document)
                .await
                .expect("put");
        }
        let map = client.map().await.expect("a map");
        let first = Position::new("campaign", "c-0000");
        let shard = map.shards.iter().find(|shard| shard.range.contains(&first));
        let shard = shard.expect("some shard holds it").clone();
        let led = |map: &MapView| {
            map.leaders
                .iter()
                .find(|(id, ..)| *id == shard.id)
                .map(|leader| leader.2)
        };
        let leader = led(&map).expect("it has a leader");
        let from = shard
            .replicas
            .iter()
            .map(|replica| replica.node)
            .find(|node| *node != leader);
        let goal = Goal::Move {
            shard: shard.id,
            from: from.expect("three copies"),
            to: four,
        };
        let request = Request::StartOp {
            goal: goal.clone(),
            pace: Some(Pace::Gentle),
            protect_p99_us: None,
            because: String::new(),
            at: None,
            undoes: None,
            id: RequestId::random(),
        };
        client.request(request).await.expect("started");

        staged_over(&cluster, "n4", 8 * MIB).await;
        cluster.kill(3);
        let kept = staged(&cluster, "n4");
        cluster.run(3);
        staged_over(&cluster, "n4", kept + 4 * MIB).await;
        let map = client.map().await.expect("a map");
        let sender = led(&map).unwrap_or(leader);
        let kept = staged(&cluster, "n4");
        assert!(kept < 30 * MIB, "it was over before its sender was killed");
        cluster.kill(sender.0 as usize - 1);
        cluster.run(sender.0 as usize - 1);
        operate(&client, goal).await;

        // What the last sender says: most of it was there.
        let mut told = None;
        for n in 1..=3 {
            let log = std::fs::read_to_string(cluster.dir.path().join(format!("c/n{n}/log"))).expect("a log");
            let line = log
                .lines()
                .rfind(|line| line.contains("delivered: ") && line.contains("bytes sent in"));
            told = line.map(str::to_owned).or(told);
        }
        let told = told.expect("somebody delivered the copy");
        let number = |behind: &str| -> u64 {
            let rest = told.split(behind).nth(1).expect("it says so").trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|digits| digits.parse().ok()).expect("a number")
        };
        let (all, sent) = (number("delivered: "), number("were there already; "));
        assert!(all >= 30 * MIB, "{told}");
        assert!(
            sent + kept / 2 < all,
            "{kept} bytes were staged when the sender died: {told}"
        );

        // Its own rows answer.
        let lead = Request::TransferLeader {
            shard: shard.id,
            to: four,
        };
        client.request(lead).await.expect("handed over");
        let began = Instant::now();
        while led(&client
            .ask(four, Request::Map)
            .await
            .map_or_else(|_| MapView::default(), map_of))
            != Some(four)
        {
            assert!(began.elapsed() < PATIENCE, "n4 does not lead");
            sleep(Duration::from_millis(50)).await;
        }
        for n in 0..DOCUMENTS {
            let found = client.get("campaign", &format!("c-{n:04}")).await.expect("an answer");
            let document = found.expect("it is there").document;
            assert!(document.starts_with(format!(r#"{{"n":{n},"#).as_bytes()), "c-{n:04}");
            assert!(document.len() > 64 << 10);
        }
        assert_eq!(staged(&cluster, "n4"), 0, "what was staged is gone");
    });
}

fn map_of(response: Response) -> MapView {
    match response {
        Response::Map(map) => map,
        other => panic!("no map: {other:?}"),
    }
}

/// A connection to the first node with the operator's certificate, and no hello yet.
async fn raw_connection(context: &Context) -> quinn::Connection {
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("a file");
    let config = tls::client_config(&read(&context.ca), &read(&context.certificate), &read(&context.key));
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    endpoint.set_default_client_config(config.expect("a client's settings"));
    let address = context.endpoints[0].parse().expect("an address");
    let connecting = endpoint.connect(address, &tls::node_name(NodeId(1))).expect("dialling");
    connecting.await.expect("let in")
}

#[test]
fn bad_callers_and_bad_requests_get_their_errors_and_the_cluster_goes_on() {
    test(async {
        let cluster = Cluster::start();
        let client = cluster.client().await;
        client.put("campaign", "c-1", &br#"{"n":1}"#[..]).await.expect("put");

        // A certificate of another cluster's authority.
        let node = NewNode {
            name: "n1".into(),
            address: cluster.context.endpoints[0].clone(),
            zone: String::new(),
        };
        let stranger = init(&cluster.dir.path().join("other"), "other", &[node], 1).expect("files");
        let mut options = ConnectOptions::from(Context {
            ca: cluster.context.ca.clone(),
            cluster: None,
            ..stranger
        });
        options.connect_timeout = Duration::from_secs(2);
        let error = Client::connect(options).await.err().expect("not let in");
        assert!(matches!(error, ConnectError::Certificate { .. }), "{error}");

        // Datagrams that are no QUIC.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        for round in 0..100u8 {
            for endpoint in &cluster.context.endpoints {
                socket.send_to(&[round.wrapping_mul(37); 900], endpoint).expect("sent");
            }
        }

        // Frames that are too long, or no frames at all, from a caller with a certificate.
        let too_long = u32::MAX.to_le_bytes();
        let nonsense = [9, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for (frame, counter) in [(&too_long[..], "frames_oversize"), (&nonsense[..], "garbage")] {
            let connection = raw_connection(&cluster.context).await;
            let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
            send.write_all(frame).await.expect("sent");
            assert!(matches!(recv.read(&mut [0; 64]).await, Err(_) | Ok(None)), "{counter}");
            let why = connection.closed().await;
            assert!(matches!(why, quinn::ConnectionError::ApplicationClosed(_)), "{why}");
            let name = format!("shell.{counter}");
            let status = client.ask(NodeId(1), Request::Status).await.expect("an answer");
            let Response::Status(status) = status else {
                panic!("no status: {status:?}")
            };
            let counted = status.counters.iter().find(|(known, _)| *known == name);
            assert!(counted.is_some_and(|(_, n)| *n > 0), "{name}: {:?}", status.counters);
        }

        let code = |result: Result<_, ClientError>| match result {
            Err(ClientError::Refused(error)) => error.code,
            other => panic!("expected a refusal: {:?}", other.map(drop)),
        };
        assert_eq!(
            code(client.put("campaign", "c-1", &b"[1]"[..]).await),
            Code::BadDocument
        );
        let huge = format!(r#"{{"text":"{}"}}"#, "x".repeat(1 << 20));
        assert_eq!(code(client.put("campaign", "c-1", huge).await), Code::TooLarge);
        assert_eq!(code(client.put("nonsense", "c-1", &b"{}"[..]).await), Code::NoService);
        assert_eq!(code(client.patch("campaign", "c-2", &b"{}"[..]).await), Code::NotFound);
        let mut write = Write {
            service: "campaign".into(),
            key: "c-1".into(),
            id: RequestId::random(),
            condition: Condition::IfVersion(99),
            change: Change::Put((&br#"{"n":2}"#[..]).into()),
        };
        assert_eq!(code(client.write(write.clone()).await), Code::VersionConflict);

        // The same id again: one effect, the first answer; with other content: refused.
        write.id = RequestId::random();
        write.condition = Condition::Always;
        let first = client.write(write.clone()).await.expect("written");
        let again = client.write(write.clone()).await.expect("answered");
        assert!(!first.repeated && again.repeated);
        assert_eq!(first.version, again.version);
        let shown = client
            .show_request("campaign", "c-1", write.id)
            .await
            .expect("an answer");
        assert_eq!(shown.map(|written| written.version), Some(first.version));
        write.change = Change::Delete;
        assert_eq!(code(client.write(write).await), Code::RequestIdReused);

        let entity = client.get("campaign", "c-1").await.expect("an answer").expect("there");
        assert_eq!(
            (entity.version, &entity.document[..]),
            (first.version, &br#"{"n":2}"#[..])
        );
        // A split that was planned before another one.
        let map = client.map().await.expect("a map");
        let old = map
            .shards
            .iter()
            .find(|shard| shard.range.contains(&Position::new("profile", "p")));
        let old = old.expect("some shard holds it").clone();
        let (first, second) = (Position::new("profile", "p"), Position::new("profile", "pp"));
        client.split(&old, first, RequestId::random()).await.expect("split");
        let stale = Request::SplitShard {
            shard: old.id,
            epoch: old.epoch,
            at: second,
            child: ShardId(77_777),
            id: RequestId::random(),
        };
        match client.request(stale).await {
            Err(ClientError::Refused(error)) | Ok(Response::Error(error)) => assert_eq!(error.code, Code::StaleEpoch),
            other => panic!("expected a refusal: {other:?}"),
        }

        let posted = client.post("campaign", &br#"{"n":3}"#[..]).await.expect("posted");
        assert!(client.get("campaign", &posted.key).await.expect("an answer").is_some());
        assert!(client.statuses().await.iter().all(|(_, status)| status.is_ok()));
    });
}

/// What a reader of changes has been told: version of each key, and what was missing without a word.
#[derive(Debug, Default)]
struct Followed {
    versions: BTreeMap<String, u64>,
    gaps: u64,
    token: String,
}

/// Follows changes until every key is at least at the version that `done` names.
async fn follow(
    mut watch: Watch,
    mut followed: Followed,
    done: tokio::sync::watch::Receiver<Option<BTreeMap<String, Known>>>,
) -> Followed {
    loop {
        let is_done = done.borrow().as_ref().is_some_and(|known| {
            let at = |key: &str| followed.versions.get(key).copied().unwrap_or(0);
            known.iter().all(|(key, known)| at(key) >= known.version)
        });
        if is_done && !followed.token.is_empty() {
            return followed;
        }
        // Looked at again even if nothing changes any more.
        let Ok(event) = tokio::time::timeout(Duration::from_millis(50), watch.next()).await else {
            continue;
        };
        let event = event.expect("a watch outlives everything");
        let WatchEvent::Changed {
            change,
            after_gap,
            is_last,
        } = event
        else {
            continue;
        };
        let known = followed
            .versions
            .insert(change.key.clone(), change.version)
            .unwrap_or(0);
        assert!(
            change.version > known,
            "{}: {} after {known}",
            change.key,
            change.version
        );
        if change.version != known + 1 {
            assert!(after_gap, "{}: {} was told after {known}", change.key, change.version);
            followed.gaps += 1;
        }
        if is_last {
            followed.token = watch.token();
        }
    }
}

#[test]
fn changes_are_followed_through_a_split_a_merge_and_killed_leaders() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        let mut watch = client.watch("campaign", &Scope::All);
        watch.begin().await.expect("a place to begin");
        let (tell, done) = tokio::sync::watch::channel(None);
        let reader = tokio::spawn(follow(watch, Followed::default(), done));
        let load = Load::start(&client, true);
        load.progress("first writes", 200).await;

        let parent = |map: MapView, key: &str| {
            let at = Position::new("campaign", key);
            let shard = map.shards.into_iter().find(|shard| shard.range.contains(&at));
            shard.expect("some shard holds it")
        };
        let cut = Position::new("campaign", "5");
        let shard = parent(client.map().await.expect("a map"), "5");
        let (left, right) = client.split(&shard, cut, RequestId::random()).await.expect("split");
        load.progress("writes after the split", 200).await;
        for n in 0..3 {
            // Among the three is the leader of each shard.
            cluster.kill(n);
            load.progress("writes without one node", WRITERS * KEYS_EACH).await;
            cluster.run(n);
            caught_up(&client, NodeId(n as u64 + 1)).await;
        }
        operate(
            &client,
            Goal::Merge {
                left: left.id,
                right: right.id,
            },
        )
        .await;
        load.progress("writes after the merge", 200).await;
        let known = load.finish().await;
        tell.send(Some(known.clone())).expect("the reader waits");
        let followed = tokio::time::timeout(PATIENCE, reader)
            .await
            .expect("all is told in time");
        let followed = followed.expect("a reader's expectation held");
        eprintln!("{} keys followed, {} gaps", followed.versions.len(), followed.gaps);

        // What changes while nobody reads comes first when somebody goes on from the token, and what was told does not.
        client
            .delete("campaign", known.keys().next().expect("a key"))
            .await
            .expect("deleted");
        let put = client.put("campaign", "zz", &br#"{"n":1}"#[..]).await.expect("put");
        client.close().await;
        let client = cluster.client().await;
        let resumed = client
            .watch("campaign", &Scope::All)
            .resume(&followed.token)
            .expect("its token");
        let mut resumed = resumed.documents();
        let (mut told, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while told.len() < 2 {
            let next = tokio::time::timeout_at(deadline.into(), resumed.next()).await;
            if let WatchEvent::Changed { change, .. } = next.expect("told in time").expect("a watch goes on") {
                let seen = followed.versions.get(&change.key).copied().unwrap_or(0);
                // Writes with an unknown outcome may have come late.
                if change.deleted || change.key == "zz" {
                    told.push(change);
                } else {
                    assert!(change.version > seen, "{change:?} was told before");
                }
            }
        }
        told.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(Some(&told[0].key), known.keys().next());
        assert!(told[0].deleted && told[0].document.is_none());
        assert_eq!((told[1].key.as_str(), told[1].version), ("zz", put.version));
        assert_eq!(told[1].document.as_deref(), Some(&br#"{"n":1}"#[..]));
        let other = client.watch("profile", &Scope::All).resume(&followed.token);
        assert!(other.is_err(), "a token of other keys");
    });
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// A node whose disk was wiped, and one whose disk was put back to an older image, are turned away by their peers, say why
/// and end with 78; the others serve all the while.
#[test]
fn a_node_that_has_forgotten_is_turned_away() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        for n in 0..20 {
            client
                .put("campaign", &format!("c-{n}"), &br#"{"n":1}"#[..])
                .await
                .expect("put");
        }

        // An image of a disk, and what it was acknowledged to hold since.
        cluster.kill(1);
        let image = cluster.dir.path().join("image");
        copy_dir(&cluster.data(1), &image);
        cluster.run(1);
        caught_up(&client, NodeId(2)).await;
        for n in 20..60 {
            client
                .put("campaign", &format!("c-{n}"), &br#"{"n":1}"#[..])
                .await
                .expect("put");
        }
        cluster.kill(1);
        let good = cluster.dir.path().join("good");
        copy_dir(&cluster.data(1), &good);
        std::fs::remove_dir_all(cluster.data(1)).expect("removed");
        copy_dir(&image, &cluster.data(1));
        cluster.run(1);
        assert_eq!(cluster.ended(1).await, Some(78), "{}", cluster.logs());
        assert!(cluster.logs().contains("older image"), "{}", cluster.logs());
        client.put("campaign", "c-60", &br#"{"n":1}"#[..]).await.expect("put");

        // Wiped.
        std::fs::remove_dir_all(cluster.data(1)).expect("removed");
        cluster.run(1);
        assert_eq!(cluster.ended(1).await, Some(78), "{}", cluster.logs());
        assert!(cluster.logs().contains("another store"), "{}", cluster.logs());
        client.put("campaign", "c-61", &br#"{"n":1}"#[..]).await.expect("put");

        // Its own disk again: it is the one that is known.
        std::fs::remove_dir_all(cluster.data(1)).expect("removed");
        copy_dir(&good, &cluster.data(1));
        cluster.run(1);
        caught_up(&client, NodeId(2)).await;
        client.put("campaign", "c-62", &br#"{"n":1}"#[..]).await.expect("put");
    });
}

/// An `isxctl` that drains n3, told from its standard error.
struct Ctl {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStderr>>,
}

impl Ctl {
    fn drain(contexts: &std::path::Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_isxctl"))
            .args(["node", "drain", "n3", "--for", "leave", "--pace", "gentle", "--yes"])
            .env("ISX_CONFIG", contexts)
            .env_remove("ISX_CONTEXT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("isxctl starts");
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("piped")));
        Self { child, lines }
    }

    /// The operation that it watches.
    fn watched(&mut self) -> String {
        let mut said = String::new();
        for line in self.lines.by_ref().map_while(Result::ok) {
            if line.starts_with("op-") {
                return line.split(' ').next().unwrap_or_default().to_owned();
            }
            said += &line;
            said.push('\n');
        }
        panic!("it does not say what it watches: {said}")
    }

    /// Its exit code, standard output, and what else it said.
    fn end(self) -> (Option<i32>, String, String) {
        let said: Vec<String> = self.lines.map_while(Result::ok).collect();
        let output = self.child.wait_with_output().expect("it ends");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), out, said.join("\n"))
    }
}

#[test]
fn a_drain_goes_on_without_whoever_asked_for_it() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        let load = Load::start(&client, true);
        load.progress("first writes", 200).await;
        cluster.join(&client, "n4").await;
        let contexts = cluster.dir.path().join("contexts.toml");
        let mut known = isx::client::context::Contexts::default();
        known.contexts.insert("test".to_owned(), cluster.context.clone());
        known.current = Some("test".to_owned());
        known.write(&contexts).expect("writable");

        // Ctrl-C detaches, and says so.
        let mut first = Ctl::drain(&contexts);
        let op = first.watched();
        let pid = Pid::from_child(&first.child);
        kill_process(pid, Signal::INT).expect("interrupted");
        let (code, _, said) = tokio::task::spawn_blocking(|| first.end()).await.expect("ended");
        assert_eq!(code, Some(130), "{said}");
        assert!(
            said.contains("detached; the operation goes on.") && said.contains(&format!("isxctl op watch {op}")),
            "{said}"
        );

        // The same command attaches; its death is nothing to the operation.
        let mut second = Ctl::drain(&contexts);
        assert_eq!(second.watched(), op);
        second.child.kill().expect("killed");
        second.child.wait().expect("reaped");

        // Nor is the death of the node that carries it out.
        let leader = client
            .statuses()
            .await
            .into_iter()
            .find_map(|(_, status)| status.ok()?.directory_leader);
        let leader = leader.expect("somebody leads the directory");
        let at = leader.0 as usize - 1;
        cluster.kill(at);
        cluster.run(at);

        let (code, out, said) = tokio::task::spawn_blocking(move || Ctl::drain(&contexts).end())
            .await
            .expect("ended");
        assert_eq!(code, Some(0), "{out}{said}");
        assert!(out.starts_with(&format!("{op}  drain n3  done")), "{out}{said}");
        let map = client.map().await.expect("a map");
        assert!(map.shards.iter().all(|shard| shard.replica_on(NodeId(3)).is_none()));
        let known = load.finish().await;
        check(&client, &known).await;
    });
}
