//! Families of entities in real `isxd` processes: combined objects, the messages that they become, and amounts that are reserved,
//! while nodes are killed and the shards of both sides are cut, moved and merged.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isx::client::{Client, ClientError, ListQuery, Scope, Watch, WatchEvent};
use isx::protocol::activity::{ActivityFilter, ActivityView, OperationState};
use isx::protocol::change::How;
use isx::protocol::error::{Code, WireError};
use isx::protocol::id::{NodeId, RequestId};
use isx::protocol::key::Position;
use isx::protocol::op::Goal;
use isx::protocol::request::{Change, Condition, Request, Response, Write, Written};
use isx::protocol::schema::bundle::NewSchema;
use isx::protocol::shard_map::ShardDescriptor;
use isx::protocol::tentative::{LedgerPage, Operation, Stage, Tentative};
use tokio::time::sleep;

mod common;
use common::{Cluster, PATIENCE, caught_up, operate, test, try_operate};

/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(25);

/// Each put of a campaign puts all its profiles, and has each of them told the number once more by an action: version 2n - 1 of a profile
/// is its n-th put, version 2n has heard of it by the action. So the version says what the document must be.
const CAMPAIGN: &str = r#"
service = "campaign"

[fields]
round = { type = "integer", required = true }

[child_relation.profiles]
service = "profile"
key = "key"
on_delete = "cascade"

[aggregate.profiles_known]
of = "profiles"
count = true

[aggregate.rounds]
of = "profiles"
sum = "round"

[[action]]
name = "tell"
on = ["put"]
when = { field = "round", changed = true }
to = "profiles"
call = "hear"
copy = { round = "round" }
"#;

const PROFILE: &str = r#"
service = "profile"

[fields]
round = { type = "integer", default = 0 }
heard = { type = "integer" }

[parent_relation.campaign]
service = "campaign"

[[accept]]
call = "hear"
copy = { heard = "round" }
"#;

/// Has the cluster judge by these schemas, and waits until every copy of every shard does.
async fn apply(client: &Client, texts: &[(&str, &str)]) {
    let new = |&(service, text): &(&str, &str)| NewSchema {
        service: service.to_owned(),
        text: text.to_owned(),
        expected: 0,
    };
    let request = Request::SetSchemas {
        schemas: texts.iter().map(new).collect(),
        allow_breaking: false,
        because: String::new(),
        dry_run: false,
        id: RequestId::random(),
    };
    let Response::Schemas(done) = client.request(request).await.expect("schemas") else {
        panic!("no schemas")
    };
    let revision = done.iter().map(|record| record.schema.revision).max().expect("some");
    let began = Instant::now();
    loop {
        let statuses = client.statuses().await;
        let replicas = statuses.iter().filter_map(|(_, status)| status.as_ref().ok());
        let is_ours = |service: &str| texts.iter().any(|(own, _)| *own == service);
        let is_behind = replicas
            .flat_map(|status| &status.replicas)
            .any(|copy| is_ours(copy.shard.range.service()) && copy.schema_revision < revision);
        if !is_behind && statuses.iter().all(|(_, status)| status.is_ok()) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "not every copy has the schemas");
        sleep(LOOK).await;
    }
}

/// The shard that holds an entity, and who leads it as far as the nodes that are up know.
async fn holder(client: &Client, service: &str, key: &str) -> (ShardDescriptor, Option<NodeId>) {
    let at = Position::new(service, key);
    let began = Instant::now();
    let shard = loop {
        let map = client.map().await.expect("a map");
        let holding = map.shards.into_iter().filter(|shard| shard.range.contains(&at));
        // Of a shard that was just cut, the left half may be heard of first.
        if let Some(shard) = holding.max_by_key(|shard| shard.epoch) {
            break shard;
        }
        assert!(began.elapsed() < PATIENCE, "no shard holds {at}");
        sleep(LOOK).await;
    };
    let mut leader = None;
    for (info, status) in client.statuses().await {
        let Ok(status) = status else { continue };
        let leads = |copy: &&isx::protocol::request::ReplicaStatus| copy.shard.id == shard.id && copy.state == "leader";
        if let Some(copy) = status.replicas.iter().find(leads)
            && leader.is_none_or(|(term, _)| copy.term > term)
        {
            leader = Some((copy.term, info.id));
        }
    }
    (shard, leader.map(|(_, node)| node))
}

/// Set in a count when all there is to do is done.
const FINISHED: u64 = 1 << 32;

/// Waits until a count has gone up by this much, or nothing more will come.
async fn progress(what: &str, count: &AtomicU64, more: u64) {
    let (began, before) = (Instant::now(), count.load(Ordering::Relaxed));
    while count.load(Ordering::Relaxed) < (before + more).min(FINISHED) {
        assert!(
            began.elapsed() < 2 * PATIENCE,
            "{what}: {} of {more} in {:?}",
            count.load(Ordering::Relaxed) - before,
            2 * PATIENCE
        );
        sleep(LOOK).await;
    }
    eprintln!(
        "{what}: {} so far, went on after {:?}",
        count.load(Ordering::Relaxed) % FINISHED,
        began.elapsed()
    );
}

/// Kills the leader of an entity's shard, lets the others go on, and starts it again.
async fn kill_leader(cluster: &mut Cluster, client: &Client, service: &str, key: &str, count: &AtomicU64, more: u64) {
    let began = Instant::now();
    let leader = loop {
        if let (_, Some(leader)) = holder(client, service, key).await {
            break leader;
        }
        assert!(began.elapsed() < PATIENCE, "nobody leads {service}/{key}");
        sleep(LOOK).await;
    };
    let n = leader.0 as usize - 1;
    cluster.kill(n);
    progress(&format!("without the leader of {service}/{key}"), count, more).await;
    cluster.run(n);
    caught_up(client, leader).await;
}

/// Cuts the shard that holds an entity before it, as an operation, which ends when the directory knows both halves.
async fn cut(client: &Client, service: &str, key: &str) -> (ShardDescriptor, ShardDescriptor) {
    let (shard, _) = holder(client, service, key).await;
    let goal = Goal::Split {
        shard: shard.id,
        at: vec![key.to_owned()],
    };
    operate(client, goal).await;
    // The node that is asked may hear of it a moment later.
    let began = Instant::now();
    loop {
        let (right, _) = holder(client, service, key).await;
        if right.id != shard.id {
            return (shard, right);
        }
        assert!(began.elapsed() < PATIENCE, "{service}/{key} is in the right half");
        sleep(LOOK).await;
    }
}

/// Moves the leader's copy of a shard to the node that has none.
async fn move_leader(client: &Client, shard: &ShardDescriptor, four: NodeId) {
    let began = Instant::now();
    loop {
        let (service, key) = shard.range.start.parts();
        let (shard, leader) = holder(client, service, key.unwrap_or("")).await;
        let mut nodes = (1..four.0).map(NodeId).chain([four]);
        let to = nodes.find(|&node| shard.replica_on(node).is_none());
        if let (Some(to), Some(from), 3) = (to, leader, shard.replicas.len()) {
            let goal = Goal::Move {
                shard: shard.id,
                from,
                to,
            };
            // The cluster spreads copies by itself, and may have been faster.
            match try_operate(client, goal).await {
                Err(ClientError::Refused(_)) => {}
                ended => return ended.expect("moved"),
            }
        }
        assert!(began.elapsed() < PATIENCE, "{shard:?} has no copy to be moved");
        sleep(4 * LOOK).await;
    }
}

/// All of it, twice: leaders of both sides killed, both sides' shards cut, moved and merged, and all nodes at once restarted.
/// `count` is what must go on meanwhile.
async fn trouble(cluster: &mut Cluster, client: &Client, (campaign, profiles): (&str, &[String]), count: &AtomicU64) {
    let four = cluster.join(client, "n4").await;
    let middle = &profiles[profiles.len() / 2];
    for round in 0..2 {
        kill_leader(cluster, client, "campaign", campaign, count, 2).await;

        let (left, right) = cut(client, "profile", middle).await;
        progress("after a cut through the profiles", count, 1).await;

        kill_leader(cluster, client, "profile", middle, count, 2).await;

        // The campaign's shard begins with the campaign now.
        let (before, own) = cut(client, "campaign", campaign).await;
        for shard in [&own, &right] {
            move_leader(client, shard, four).await;
            progress("after a move", count, 1).await;
        }

        let merge = |left: &ShardDescriptor, right: &ShardDescriptor| Goal::Merge {
            left: left.id,
            right: right.id,
        };
        operate(client, merge(&left, &right)).await;
        operate(client, merge(&before, &own)).await;
        progress("after the merges", count, 1).await;

        if round == 0 {
            (0..4).for_each(|n| cluster.kill(n));
            (0..4).for_each(|n| cluster.run(n));
            progress("after a restart of all", count, 1).await;
            for node in 1..=4 {
                caught_up(client, NodeId(node)).await;
            }
        }
    }
}

/// A write, asked for under one id until its outcome is known. What was refused for want of room is wanted again.
async fn written(client: &Client, service: &str, key: &str, change: Change, full: &AtomicU64) -> Written {
    let began = Instant::now();
    let mut write = Write {
        service: service.to_owned(),
        key: key.to_owned(),
        id: RequestId::random(),
        condition: Condition::Always,
        change,
    };
    loop {
        assert!(began.elapsed() < 4 * PATIENCE, "{service}/{key} takes no write");
        match client.write(write.clone()).await {
            Ok(written) => return written,
            Err(ClientError::Refused(error)) if error.code == Code::OutboxFull => {
                full.fetch_add(1, Ordering::Relaxed);
                write.id = RequestId::random();
                sleep(LOOK).await;
            }
            Err(ClientError::Refused(error)) => panic!("{service}/{key}: {error}"),
            Err(_) => sleep(LOOK).await,
        }
    }
}

fn combined(round: u64, profiles: &[String]) -> Change {
    let children: Vec<_> = profiles
        .iter()
        .map(|key| serde_json::json!({"key": key, "round": round}))
        .collect();
    let document = serde_json::json!({"round": round, "profiles": children});
    Change::Put(document.to_string().into())
}

/// Puts the campaign with all its profiles until it is told to stop; how often.
async fn put_on(
    client: Client,
    campaign: String,
    profiles: Vec<String>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
) -> u64 {
    let full = AtomicU64::new(0);
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) || round < 30 {
        round += 1;
        let done = written(&client, "campaign", &campaign, combined(round, &profiles), &full).await;
        assert_eq!(done.version, round, "one version for each update");
        let to = |action: &str| done.sent.iter().filter(|sent| sent.action == action).count();
        assert_eq!((to("put"), to("hear")), (profiles.len(), profiles.len()));
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    eprintln!(
        "{round} combined updates; the outbox was full {} times",
        full.into_inner()
    );
    round
}

/// What a profile must be at a version.
fn check_profile(key: &str, version: u64, document: &[u8]) {
    let document: serde_json::Value = serde_json::from_slice(document).expect("JSON");
    let (round, heard) = (document["round"].as_u64(), document["heard"].as_u64());
    let expected = match version % 2 {
        1 => (Some(version.div_ceil(2)), None),
        _ => (Some(version / 2), Some(version / 2)),
    };
    assert_eq!((round, heard), expected, "{key} at version {version}: {document}");
}

/// Follows the profiles until all are at a version: each version is told once and in order, and is what it should be.
async fn follow(mut watch: Watch, count: usize, last: Arc<AtomicU64>) -> (u64, u64) {
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let (mut told, mut gaps) = (0, 0);
    loop {
        let last = last.load(Ordering::Relaxed);
        if last > 0 && versions.len() == count && versions.values().all(|&version| version == last) {
            return (told, gaps);
        }
        let Ok(event) = tokio::time::timeout(Duration::from_millis(50), watch.next()).await else {
            continue;
        };
        let event = event.expect("a watch outlives everything");
        let WatchEvent::Changed { change, after_gap, .. } = event else {
            continue;
        };
        let known = versions.insert(change.key.clone(), change.version).unwrap_or(0);
        assert!(
            change.version > known,
            "{}: {} after {known}",
            change.key,
            change.version
        );
        if change.version != known + 1 {
            assert!(after_gap, "{}: {} was told after {known}", change.key, change.version);
            gaps += 1;
        }
        if let Some(document) = &change.document {
            check_profile(&change.key, change.version, document);
        }
        told += 1;
    }
}

async fn activities(
    client: &Client,
    service: &str,
    key: &str,
    with: Option<Position>,
) -> Result<ActivityView, ClientError> {
    let request = Request::Activities {
        service: service.to_owned(),
        key: key.to_owned(),
        with,
        after: None,
        limit: 1_000,
    };
    match client.request(request).await? {
        Response::Activities(view) => Ok(*view),
        other => panic!("no activities: {other:?}"),
    }
}

/// Compares what both ends of pairs say, as long as it is told to: what the sender knows to be applied is applied, and nothing is that the
/// sender has not sent. The two can't be asked at one moment, so the sender is asked before and after.
async fn audit(client: Client, campaign: String, profiles: Vec<String>, stop: Arc<AtomicBool>) -> u64 {
    let (mut compared, mut next) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let key = &profiles[next % profiles.len()];
        next += 7;
        let with = Some(Position::new("profile", key));
        let Ok(before) = activities(&client, "campaign", &campaign, with.clone()).await else {
            continue;
        };
        let from = Some(Position::new("campaign", &campaign));
        let Ok(there) = activities(&client, "profile", key, from).await else {
            continue;
        };
        let Ok(after) = activities(&client, "campaign", &campaign, with).await else {
            continue;
        };
        let sends = |view: &ActivityView| view.pairs.first().and_then(|pair| pair.sends.clone());
        let (Some(before), Some(after)) = (sends(&before), sends(&after)) else {
            continue;
        };
        if before.session != after.session {
            continue;
        }
        match there.pairs.first().and_then(|pair| pair.had) {
            Some((session, number, _)) if session == before.session => {
                let may_be = before.acked..after.next;
                assert!(
                    may_be.contains(&number),
                    "{key} has had {number}, its campaign says {may_be:?}"
                );
                compared += 1;
            }
            Some((session, ..)) => assert!(
                session < before.session && before.acked == 0,
                "{key}: {before:?}, {session}"
            ),
            None => assert!(before.acked == 0 || after.closing, "{key} has had nothing: {before:?}"),
        }
    }
    compared
}

/// Everything that entities of a service still send, or keep of what they have sent.
async fn pairs_left(client: &Client, service: &str) -> Result<Vec<String>, ClientError> {
    let (mut from, mut after, mut left) = (Position::new(service, ""), None, Vec::new());
    loop {
        let request = Request::ListActivities {
            from: from.clone(),
            to: Position::end_of(service),
            after: after.take(),
            filter: ActivityFilter::All,
            limit: 1_000,
        };
        let Response::ActivitiesListed {
            items,
            after: more,
            next,
        } = client.request(request).await?
        else {
            panic!("no listing")
        };
        left.extend(
            items
                .iter()
                .map(|item| format!("{} to {}: {:?}", item.from, item.to, item.sends)),
        );
        match (more, next) {
            (None, None) => return Ok(left),
            (more, next) => {
                after = more;
                from = next.unwrap_or(from);
            }
        }
    }
}

/// Waits until no entity of either service has anything to do with another one: no message, no pair, at neither end.
async fn quiet(client: &Client, campaign: &str, profiles: &[String]) -> Duration {
    let began = Instant::now();
    loop {
        let mut left = Vec::new();
        for service in ["campaign", "profile"] {
            left.extend(
                pairs_left(client, service)
                    .await
                    .unwrap_or_else(|error| vec![error.to_string()]),
            );
        }
        if left.is_empty() {
            break;
        }
        assert!(
            began.elapsed() < 4 * PATIENCE,
            "{} pairs are left, such as {}",
            left.len(),
            left[0]
        );
        sleep(4 * LOOK).await;
    }
    let took = began.elapsed();
    let entities = profiles.iter().map(|key| ("profile", key.as_str()));
    for (service, key) in entities.chain([("campaign", campaign)]) {
        let view = activities(client, service, key, None).await.expect("an answer");
        assert!(
            view.pairs.is_empty() && view.outstanding == 0,
            "{service}/{key}: {view:?}"
        );
        assert!(view.rejections.is_empty(), "{service}/{key}: {:?}", view.rejections);
    }
    took
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("p-{n:03}")).collect()
}

/// One campaign, a hundred profiles, one object: put again and again while leaders die, shards of both are cut, moved and merged and all
/// nodes restart. Every profile has every update exactly once and in order, and when all is said no trace of the saying is left.
#[test]
fn a_campaign_and_its_hundred_profiles_stay_one_through_everything() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        apply(&client, &[("campaign", CAMPAIGN), ("profile", PROFILE)]).await;
        let (campaign, profiles) = ("m-1".to_owned(), keys(100));

        let mut watch = client.watch("profile", &Scope::All).documents();
        watch.begin().await.expect("a place to begin");
        let last = Arc::new(AtomicU64::new(0));
        let reader = tokio::spawn(follow(watch, profiles.len(), last.clone()));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = put_on(
            client.clone(),
            campaign.clone(),
            profiles.clone(),
            stop.clone(),
            rounds.clone(),
        );
        let writer = tokio::spawn(writer);
        progress("first updates", &rounds, 2).await;
        let auditor = tokio::spawn(audit(client.clone(), campaign.clone(), profiles.clone(), stop.clone()));
        trouble(&mut cluster, &client, (&campaign, &profiles), &rounds).await;
        stop.store(true, Ordering::Relaxed);
        let puts = writer.await.expect("the writer's expectation held");
        let compared = auditor.await.expect("no pair disagrees");
        let took = quiet(&client, &campaign, &profiles).await;
        eprintln!("{compared} pairs compared under faults; quiet {took:?} after the last update");
        assert!(compared > 0, "no pair was compared");

        for key in &profiles {
            let entity = client
                .get("profile", key)
                .await
                .expect("an answer")
                .expect("it is there");
            assert_eq!(entity.version, 2 * puts, "{key}");
            check_profile(key, entity.version, &entity.document);
            // What is remembered of how it came to be: one message after the other, none twice.
            let history = client.history("profile", key).await.expect("an answer");
            let mut newer: Option<(u64, u64)> = None;
            for version in &history {
                let How::Message { number, .. } = &version.how else {
                    panic!("{key}: {version:?}")
                };
                if let Some((above, following)) = newer {
                    let follows = above == version.version + 1 && (following == number + 1 || following == 1);
                    assert!(follows, "{key}: {history:?}");
                }
                newer = Some((version.version, *number));
            }
            assert!(!history.is_empty());
        }
        let entity = client
            .get("campaign", &campaign)
            .await
            .expect("an answer")
            .expect("there");
        let fed: BTreeMap<String, i64> = entity.aggregates.into_iter().collect();
        let expected = [("profiles_known", 100), ("rounds", 100 * puts as i64)];
        assert_eq!(fed, expected.map(|(name, sum)| (name.to_owned(), sum)).into());
        last.store(2 * puts, Ordering::Relaxed);
        let (told, gaps) = tokio::time::timeout(PATIENCE, reader)
            .await
            .expect("told in time")
            .expect("as it should be");
        eprintln!("{told} versions of profiles told, {gaps} times after a gap");

        // And all go with it.
        client.delete("campaign", &campaign).await.expect("deleted");
        quiet(&client, &campaign, &profiles).await;
        let query = ListQuery {
            service: "profile".into(),
            limit: 10,
            ..ListQuery::default()
        };
        let left = client.list(&query).await.expect("a page");
        assert!(left.items.is_empty(), "{:?}", left.items);
    });
}

const POOL: &str = r#"
service = "campaign"

[fields]
budget = { type = "integer", min = 0, required = true }

[pool.budget]
"#;
const BUDGET: i64 = 3_000;
const RESERVATIONS_EACH: u64 = 10;

/// What became of operations: how many, and how much.
#[derive(Debug, Default)]
struct Tally(BTreeMap<String, (u64, i64)>);

impl Tally {
    fn add(&mut self, state: OperationState, amount: i64) {
        let (count, sum) = self.0.entry(state.to_string()).or_default();
        *count += 1;
        *sum += amount;
    }

    fn of(&self, state: OperationState) -> (u64, i64) {
        self.0.get(&state.to_string()).copied().unwrap_or_default()
    }
}

async fn operations(client: &Client, key: &str) -> Vec<Operation> {
    let request = Request::Operations {
        service: "profile".to_owned(),
        key: key.to_owned(),
    };
    let began = Instant::now();
    loop {
        match client.request(request.clone()).await {
            Ok(Response::Operations(all)) => return all,
            other => assert!(began.elapsed() < 2 * PATIENCE, "{key}: {other:?}"),
        }
        sleep(LOOK).await;
    }
}

/// Waits until an operation is as far as that.
async fn reached(client: &Client, key: &str, operation: u64, is_it: impl Fn(Stage) -> bool) -> Operation {
    let began = Instant::now();
    loop {
        let all = operations(client, key).await;
        let found = all.into_iter().find(|known| known.operation == operation);
        let found = found.unwrap_or_else(|| panic!("profile/{key} has forgotten operation {operation}"));
        if is_it(found.stage) {
            return found;
        }
        assert!(began.elapsed() < 4 * PATIENCE, "profile/{key} waits: {found:?}");
        sleep(4 * LOOK).await;
    }
}

/// Reserves, and then confirms, gives back or lets time pass, by chance.
async fn spend(client: Client, key: String, seed: u64, count: Arc<AtomicU64>) -> Vec<Operation> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let full = AtomicU64::new(0);
    let holder = || Position::new("campaign", "m-1");
    for _ in 0..RESERVATIONS_EACH {
        let what = rng.u32(..10);
        let reserve = Tentative::Reserve {
            holder: holder(),
            resource: "budget".to_owned(),
            amount: rng.i64(1..=12),
            // The last ones race their end.
            ttl_ms: if what < 6 { 600_000 } else { rng.u64(100..1_500) },
        };
        let sent = written(&client, "profile", &key, Change::Tentative(reserve), &full)
            .await
            .sent;
        let operation = sent.iter().find_map(|sent| sent.operation).expect("it has a number");
        let stage = reached(&client, &key, operation, |stage| stage != Stage::Asked)
            .await
            .stage;
        let (holder, is_open) = (holder(), matches!(stage, Stage::Tentative { .. }));
        let decision = match what {
            _ if !is_open => None,
            0..=3 => Some(Tentative::Confirm { holder, operation }),
            4..=5 => Some(Tentative::Cancel { holder, operation }),
            6..=7 => None,
            _ => Some(Tentative::Confirm { holder, operation }),
        };
        if let Some(decision) = decision {
            let write = Write {
                service: "profile".to_owned(),
                key: key.clone(),
                id: RequestId::random(),
                condition: Condition::Always,
                change: Change::Tentative(decision),
            };
            let began = Instant::now();
            loop {
                match client.write(write.clone()).await {
                    Ok(_) => break,
                    // It has expired, and its requester knows.
                    Err(ClientError::Refused(error)) if error.code == Code::OperationIsOver && what > 5 => break,
                    Err(ClientError::Refused(error)) => panic!("profile/{key}, operation {operation}: {error}"),
                    Err(error) => assert!(began.elapsed() < 4 * PATIENCE, "profile/{key}: {error}"),
                }
                sleep(LOOK).await;
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    let mut ended = Vec::new();
    for known in operations(&client, &key).await {
        ended.push(reached(&client, &key, known.operation, |stage| matches!(stage, Stage::Ended(_))).await);
    }
    ended
}

async fn ledger(client: &Client) -> Result<LedgerPage, ClientError> {
    let from = Position::new("campaign", "m-1");
    let request = Request::Ledger {
        to: from.successor(),
        from,
        resume: Default::default(),
        limit: 2_000,
    };
    match client.request(request).await? {
        Response::Ledger(page) => Ok(*page),
        other => panic!("no ledger: {other:?}"),
    }
}

/// Reads the ledger as long as it is told to: its sums are those of its rows, and no more than there is.
async fn watch_ledger(client: Client, stop: Arc<AtomicBool>) -> u64 {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        sleep(LOOK).await;
        let Ok(page) = ledger(&client).await else { continue };
        assert!(page.next.is_none(), "all of it fits one answer");
        let scanned: i64 = page.items.iter().map(|item| item.amount).sum();
        for pool in &page.pools {
            assert_eq!(
                (pool.reserved, pool.open),
                (scanned, page.items.len() as u64),
                "{page:?}"
            );
            assert!(pool.reserved + pool.confirmed <= BUDGET, "{pool:?}");
        }
        looks += 1;
    }
    looks
}

/// A thousand reservations of one budget by a hundred profiles, decided by chance, while nodes die and shards are cut, moved and merged:
/// each has one end, both sides agree on it, and at no time is more given than there is.
#[test]
fn a_thousand_reservations_of_one_budget_add_up() {
    test(async {
        let mut cluster = Cluster::start();
        let client = cluster.client().await;
        apply(&client, &[("campaign", POOL)]).await;
        let profiles = keys(100);
        let document = format!(r#"{{"budget":{BUDGET}}}"#);
        client.put("campaign", "m-1", document).await.expect("put");
        for key in &profiles {
            client.put("profile", key, &br#"{}"#[..]).await.expect("put");
        }
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let looks = tokio::spawn(watch_ledger(client.clone(), stop.clone()));
        // A few at a time, so that there is work during all of the trouble.
        let (spender, own, told) = (client.clone(), profiles.clone(), count.clone());
        let spenders = tokio::spawn(async move {
            let mut ended = Vec::new();
            for (n, some) in own.chunks(6).enumerate() {
                let all = some.iter().zip(1..).map(|(key, m)| {
                    let seed = 100 * n as u64 + m;
                    tokio::spawn(spend(spender.clone(), key.clone(), seed, told.clone()))
                });
                for one in all.collect::<Vec<_>>() {
                    ended.extend(one.await.expect("a spender's expectation held"));
                }
            }
            told.fetch_or(FINISHED, Ordering::Relaxed);
            ended
        });
        progress("first reservations", &count, 5).await;
        trouble(&mut cluster, &client, ("m-1", &profiles), &count).await;
        let during = count.load(Ordering::Relaxed) % FINISHED;
        eprintln!("{during} of 1000 when the trouble ended");
        let ended = spenders.await.expect("spenders end");
        stop.store(true, Ordering::Relaxed);
        let looks = looks.await.expect("the ledger was right at all times");

        let mut tally = Tally::default();
        for operation in &ended {
            let Stage::Ended(state) = operation.stage else {
                panic!("{operation:?}")
            };
            tally.add(state, operation.amount);
        }
        eprintln!("{looks} looks at the ledger; {tally:?}");
        let states = [
            OperationState::Confirmed,
            OperationState::Cancelled,
            OperationState::Expired,
            OperationState::Declined,
        ];
        let ends: u64 = states.iter().map(|&state| tally.of(state).0).sum();
        assert_eq!((ended.len(), ends), (1_000, 1_000), "{tally:?}");
        // The requesters' rows and the holder's say the same.
        let page = ledger(&client).await.expect("a ledger");
        let (_, confirmed) = tally.of(OperationState::Confirmed);
        let pool = &page.pools[0];
        assert!(page.items.is_empty(), "{page:?}");
        assert_eq!(
            (pool.reserved, pool.confirmed, pool.open, pool.total),
            (0, confirmed, 0, Some(BUDGET))
        );
        assert!(confirmed <= BUDGET && looks > 0);
        quiet(&client, "m-1", &profiles).await;
    });
}

/// Services and what is wanted as their schemas.
type Texts = &'static [(&'static str, &'static str)];

/// Each is a clear error, and changes nothing.
#[test]
fn bad_schemas_and_bad_documents_change_nothing() {
    test(async {
        let cluster = Cluster::start();
        let client = cluster.client().await;
        apply(&client, &[("campaign", CAMPAIGN), ("profile", PROFILE)]).await;
        let first = r#"{"round":1,"profiles":[{"key":"p","round":1}]}"#;
        client.put("campaign", "c", first).await.expect("put");
        quiet(&client, "c", &["p".to_owned()]).await;

        let refused = |what: &str, error: WireError, code: Code, words: &[&str]| {
            assert_eq!(error.code, code, "{what}: {error}");
            let text = error.to_string();
            assert!(text.contains("nothing was changed"), "{what}: {text}");
            for word in words {
                assert!(text.contains(word), "{what}: no `{word}` in: {text}");
            }
        };
        let documents = [
            ("unknown field", r#"{"round":2,"colour":"red"}"#, "colour"),
            ("wrong type", r#"{"round":"two"}"#, "round"),
            ("missing required", r#"{}"#, "round"),
            (
                "wrong type in a child",
                r#"{"round":2,"profiles":[{"key":"p","round":"x"}]}"#,
                "round",
            ),
            (
                "unknown field in a child",
                r#"{"round":2,"profiles":[{"key":"p","size":1}]}"#,
                "size",
            ),
            (
                "children that are no list",
                r#"{"round":2,"profiles":{"key":"p"}}"#,
                "profiles",
            ),
            (
                "a child twice",
                r#"{"round":2,"profiles":[{"key":"p"},{"key":"p"}]}"#,
                "p",
            ),
        ];
        for (what, document, word) in documents {
            match client.put("campaign", "c", document).await {
                Err(ClientError::Refused(error)) => refused(what, error, Code::AgainstSchema, &[word]),
                other => panic!("{what}: {other:?}"),
            }
        }
        let campaign = client.get("campaign", "c").await.expect("an answer").expect("there");
        let profile = client.get("profile", "p").await.expect("an answer").expect("there");
        assert_eq!((campaign.version, profile.version), (1, 2));

        // What `isxctl` would find is found by the cluster, too, whoever asks.
        let schemas: [(&str, Texts, &str); 5] = [
            (
                "a newer format",
                &[("campaign", "format = 2\nservice = \"campaign\"\n[fields]\n")],
                "format",
            ),
            (
                "children in an unknown service",
                &[(
                    "campaign",
                    "service = \"campaign\"\n[fields]\n[child_relation.x]\nservice = \"nowhere\"\n",
                )],
                "nowhere",
            ),
            (
                "a circle of relations",
                &[
                    (
                        "campaign",
                        "service = \"campaign\"\n[fields]\n[child_relation.x]\nservice = \"profile\"\n[parent_relation.up]\nservice = \"profile\"\n",
                    ),
                    (
                        "profile",
                        "service = \"profile\"\n[fields]\n[child_relation.y]\nservice = \"campaign\"\n[parent_relation.up]\nservice = \"campaign\"\n",
                    ),
                ],
                "circle",
            ),
            (
                "actions that set off each other",
                &[
                    (
                        "campaign",
                        concat!(
                            "service = \"campaign\"\n[fields]\nn = { type = \"integer\" }\n[child_relation.x]\nservice = \"profile\"\n",
                            "[[action]]\nname = \"a\"\non = [\"patch\"]\nto = \"x\"\nset = { n = 1 }\n[[accept]]\ncall = \"b\"\nfrom = \"profile\"\nset = { n = 1 }\n"
                        ),
                    ),
                    (
                        "profile",
                        concat!(
                            "service = \"profile\"\n[fields]\nn = { type = \"integer\" }\n[parent_relation.up]\nservice = \"campaign\"\n",
                            "[[action]]\nname = \"b\"\non = [\"patch\"]\nto = \"up\"\ncall = \"b\"\n"
                        ),
                    ),
                ],
                "set off",
            ),
            (
                "an unknown type",
                &[(
                    "campaign",
                    "service = \"campaign\"\n[fields]\na = { type = \"text\" }\n",
                )],
                "text",
            ),
        ];
        for (what, texts, word) in schemas {
            let new = |&(service, text): &(&str, &str)| NewSchema {
                service: service.to_owned(),
                text: text.to_owned(),
                expected: 1,
            };
            let request = Request::SetSchemas {
                schemas: texts.iter().map(new).collect(),
                allow_breaking: true,
                because: String::new(),
                dry_run: false,
                id: RequestId::random(),
            };
            match client.request(request).await {
                Err(ClientError::Refused(error)) => refused(what, error, Code::BadSchema, &[word]),
                other => panic!("{what}: {other:?}"),
            }
        }
        let shown = client
            .request(Request::ShowSchemas { service: None })
            .await
            .expect("schemas");
        let Response::Schemas(shown) = shown else {
            panic!("{shown:?}")
        };
        let versions: Vec<_> = shown
            .iter()
            .map(|record| (record.schema.service.as_str(), record.schema.version))
            .collect();
        assert_eq!(versions, [("campaign", 1), ("profile", 1)]);
        let after = client
            .put("campaign", "c", r#"{"round":2,"profiles":[{"key":"p","round":2}]}"#)
            .await;
        assert_eq!(after.expect("put").version, 2);
    });
}
