//! A cluster without faults, driven by hand: what the core does when nothing goes wrong. What goes wrong is the
//! simulator's.
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::effect::{Effect, Effects};
use super::input::{Input, SessionId};
use super::limits::{CLOSE_SESSIONS_AFTER, TICK};
use super::node::{Hibernation, Node, NodeConfig, PlantedBug, ServiceConfig};
use super::state::{LogBatch, LogSeq, Recovered, State, StateError};
use super::time::{Clock, Span, Time};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{ClusterId, NodeId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position, split_row_key};
use crate::protocol::message::{Principal, Role};
use crate::protocol::request::*;
use crate::protocol::shard_map::{Membership, NodeInfo};

/// All rows, and a part of the keys of those that went bad.
#[derive(Default)]
struct Rows(BTreeMap<Bytes, Bytes>, Option<&'static str>);

impl Rows {
    fn check(&self, key: &[u8]) -> Result<(), StateError> {
        let key = key.escape_ascii().to_string();
        match self.1 {
            Some(bad) if key.contains(bad) => Err(StateError::Checksum { key }),
            _ => Ok(()),
        }
    }
}

impl State for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.check(key)?;
        Ok(self.0.get(key).cloned())
    }
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end))) {
            self.check(key)?;
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn keep(&mut self, _: super::verify::Slice) {}
    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        match value {
            Some(value) => self.0.insert(key, value),
            None => self.0.remove(&key),
        };
    }
}

impl Rows {
    /// In both spaces.
    fn clear(&mut self, range: &KeyRange) {
        let is_in = |key: &Bytes| split_row_key(key).is_some_and(|(position, _, _)| range.contains(&position));
        self.0.retain(|key, _| !is_in(key));
    }
}

struct Cluster {
    now: Time,
    nodes: BTreeMap<NodeId, (Node, Rows)>,
    inbox: VecDeque<(NodeId, Input)>,
    answers: Vec<(u64, Response)>,
    checkpoints: Vec<(NodeId, Time)>,
    /// What each node's log has.
    logs: BTreeMap<NodeId, Vec<(LogSeq, LogBatch)>>,
    /// Whether checkpoints are never on the disk: a restart finds all of the log, and nothing else.
    holds_checkpoints: bool,
}

mod absorbed;
mod clocks;
mod damage;
mod dropping;
mod operator;

fn founders(count: u64) -> Vec<NodeInfo> {
    (1..=count)
        .map(|id| NodeInfo {
            id: NodeId(id),
            name: format!("n{id}"),
            address: format!("127.0.0.1:{id}"),
            zone: String::new(),
            membership: Membership::Active,
            store_id: 0,
            version: String::new(),
            overlay: Default::default(),
        })
        .collect()
}

fn config(founder: &NodeInfo, founders: &[NodeInfo], conducts: bool) -> NodeConfig {
    NodeConfig {
        cluster: ClusterId(1),
        node: founder.id,
        name: founder.name.clone(),
        address: founder.address.clone(),
        zone: String::new(),
        store_id: u128::from(founder.id.0) + 100,
        version: "test".into(),
        seed: founder.id.0,
        founders: founders.to_vec(),
        services: vec![ServiceConfig {
            name: "campaign".into(),
            replicas: 3,
            cuts: Vec::new(),
        }],
        conducts,
        log_tail_entries: super::limits::LOG_TAIL_ENTRIES_MAX,
        checkpoint_every: Span::secs(5),
        hibernation: Hibernation::NEVER,
        close_sessions_after: CLOSE_SESSIONS_AFTER,
        tells_messages: false,
        certificate_ends_ms: 0,
        verify_every: Span::secs(3_600),
        scrub_every: Span::secs(3_600),
        planted: PlantedBug::None,
    }
}

impl Cluster {
    fn new(count: u64) -> Self {
        Self::with(count, false)
    }

    /// `conducts`: the directory's leader carries out operations.
    fn with(count: u64, conducts: bool) -> Self {
        let founders = founders(count);
        let mut cluster = Self {
            now: Time(1),
            nodes: BTreeMap::new(),
            inbox: VecDeque::new(),
            answers: Vec::new(),
            checkpoints: Vec::new(),
            logs: BTreeMap::new(),
            holds_checkpoints: false,
        };
        for founder in &founders {
            let config = config(founder, &founders, conducts);
            let mut rows = Rows::default();
            let mut effects = Effects::new();
            let node = Node::new(config, Recovered::default(), cluster.clock(), &mut rows, &mut effects);
            cluster.nodes.insert(founder.id, (node.expect("an empty store"), rows));
        }
        for a in 1..=count {
            for b in (1..=count).filter(|&b| b != a) {
                cluster.inbox.push_back((
                    NodeId(a),
                    Input::Connected {
                        peer: NodeId(b),
                        up: true,
                    },
                ));
            }
        }
        cluster
    }

    fn clock(&self) -> Clock {
        Clock {
            now: self.now,
            wall_ms: self.now.0 / 1_000_000,
        }
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.deliver();
            self.now = self.now + TICK;
            let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
            self.inbox.extend(nodes.into_iter().map(|node| (node, Input::Ticked)));
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some((to, input)) = self.inbox.pop_front() {
            let clock = self.clock();
            // A node that is away hears nothing.
            let Some((node, rows)) = self.nodes.get_mut(&to) else {
                continue;
            };
            let mut effects = Effects::new();
            node.step(clock, input, rows, &mut effects);
            node.settle(clock, rows, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Send { to: peer, message } => {
                        self.inbox.push_back((
                            peer,
                            Input::Received {
                                from: to,
                                messages: vec![message],
                            },
                        ));
                    }
                    Effect::Persist { seq, batch } => {
                        self.logs.entry(to).or_default().push((seq, batch));
                        self.inbox.push_back((to, Input::Persisted { seq }));
                    }
                    Effect::Reply { tag, response, .. } => self.answers.push((tag, response)),
                    Effect::Checkpoint { .. } if self.holds_checkpoints => {}
                    Effect::Checkpoint { .. } => {
                        self.checkpoints.push((to, self.now));
                        self.inbox.push_back((to, Input::Checkpointed));
                    }
                    Effect::Install(install) => {
                        for range in &install.clear {
                            rows.clear(range);
                        }
                        let shard = install.meta.shard.id;
                        self.inbox.push_back((to, Input::Installed { shard }));
                    }
                    Effect::Halt { reason } => panic!("{to} halted: {reason}"),
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self, node: u64, request: Request) -> Response {
        let principal = Principal {
            name: "test".into(),
            role: Role::Admin,
        };
        let input = Input::Asked {
            session: SessionId(1),
            tag: 7,
            timeout_ms: 5_000,
            principal,
            request,
        };
        self.inbox.push_back((NodeId(node), input));
        for _ in 0..400 {
            self.run(1);
            if let Some((_, response)) = self.answers.pop() {
                return response;
            }
        }
        panic!("no answer");
    }

    fn put(&mut self, node: u64, id: u128, key: &str) -> Response {
        let change = Change::Put(Bytes::from(format!(r#"{{"id":{id}}}"#)));
        let condition = Condition::Always;
        self.ask(
            node,
            Request::Write(Write {
                service: "campaign".into(),
                key: key.into(),
                id: RequestId(id),
                condition,
                change,
            }),
        )
    }

    fn list(&mut self, node: u64) -> Vec<String> {
        let (mut from, to) = (Position::new("campaign", ""), Position::end_of("campaign"));
        let mut keys = Vec::new();
        loop {
            let request = Request::List {
                from: from.clone(),
                to: to.clone(),
                limit: 2,
                documents: true,
            };
            match self.ask(node, request) {
                Response::Listed { items, next } => {
                    keys.extend(items.into_iter().map(|item| item.key));
                    match next {
                        Some(next) => from = next,
                        None => return keys,
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn any_node_takes_a_write_and_every_replica_has_it() {
    let mut cluster = Cluster::new(3);
    cluster.run(60);
    for node in 1..=3 {
        match cluster.put(node, u128::from(node), &format!("k{node}")) {
            Response::Written(written) => assert_eq!((written.version, written.repeated), (1, false)),
            other => panic!("{other:?}"),
        }
    }
    match cluster.put(2, 1, "k1") {
        Response::Written(written) => assert_eq!((written.version, written.repeated), (1, true)),
        other => panic!("{other:?}"),
    }
    let get = Request::Get {
        service: "campaign".into(),
        key: "k2".into(),
    };
    match cluster.ask(3, get) {
        Response::Entity(Some(entity)) => assert_eq!(entity.document, &br#"{"id":2}"#[..]),
        other => panic!("{other:?}"),
    }
    assert_eq!(cluster.list(1), ["k1", "k2", "k3"]);
    cluster.run(120);
    let rows: Vec<usize> = cluster.nodes.values().map(|(_, rows)| rows.0.len()).collect();
    assert!(rows.iter().all(|&n| n == rows[0]), "{rows:?}");
    assert!(
        cluster
            .nodes
            .values()
            .all(|(node, _)| node.map().nodes.values().all(|n| n.store_id != 0)),
        "all registered"
    );
}

#[test]
fn a_split_keeps_every_entity_and_both_halves_answer() {
    let mut cluster = Cluster::new(3);
    cluster.run(60);
    for (id, key) in ["a", "f", "m", "s", "z"].iter().enumerate() {
        assert!(matches!(cluster.put(1, id as u128 + 10, key), Response::Written(_)));
    }
    let Response::Ids { first } = cluster.ask(
        2,
        Request::AllocateIds {
            count: 1,
            id: RequestId(1),
        },
    ) else {
        panic!()
    };
    let shard = cluster.nodes[&NodeId(1)]
        .0
        .map()
        .find(&Position::new("campaign", "m"))
        .expect("a shard")
        .clone();
    let at = Position::new("campaign", "m");
    let split = |epoch| Request::SplitShard {
        shard: shard.id,
        epoch,
        at: at.clone(),
        child: ShardId(first),
        id: RequestId(2),
    };
    let (left, right) = match cluster.ask(3, split(shard.epoch)) {
        Response::Split { left, right } => (left, right),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (left.id, right.id, left.range.end.clone()),
        (shard.id, ShardId(first), at.clone())
    );
    assert!(
        matches!(cluster.ask(1, split(shard.epoch)), Response::Split { .. }),
        "a repeat gets the same answer"
    );
    let other = Request::SplitShard {
        shard: shard.id,
        epoch: shard.epoch,
        at: Position::new("campaign", "c"),
        child: ShardId(first + 1),
        id: RequestId(3),
    };
    match cluster.ask(1, other) {
        Response::Error(error) => assert_eq!(error.code, Code::StaleEpoch),
        other => panic!("{other:?}"),
    }
    cluster.run(40);
    assert_eq!(cluster.list(2), ["a", "f", "m", "s", "z"]);
    assert!(matches!(cluster.put(1, 100, "n"), Response::Written(_)));
    assert!(matches!(cluster.put(2, 101, "b"), Response::Written(_)));
    assert_eq!(cluster.list(3), ["a", "b", "f", "m", "n", "s", "z"]);
}

#[test]
fn one_node_alone_is_a_cluster() {
    let mut cluster = Cluster::new(1);
    cluster.run(60);
    assert!(matches!(cluster.put(1, 1, "a"), Response::Written(_)));
    assert_eq!(cluster.list(1), ["a"]);
}

#[test]
fn refusals_change_nothing_and_say_why() {
    let mut cluster = Cluster::new(3);
    cluster.run(60);
    let mut code = |service: &str, key: &str, document: &str| {
        let change = Change::Put(Bytes::copy_from_slice(document.as_bytes()));
        let write = Write {
            service: service.into(),
            key: key.into(),
            id: RequestId(9),
            condition: Condition::Always,
            change,
        };
        match cluster.ask(1, Request::Write(write)) {
            Response::Error(error) => error.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code("nothing", "a", "{}"), Code::NoService);
    assert_eq!(code("campaign", "", "{}"), Code::BadRequest);
    assert_eq!(code("campaign", "a\u{7}", "{}"), Code::BadRequest);
    assert_eq!(code("campaign", "a", "[]"), Code::BadDocument);
    assert_eq!(
        code(
            "campaign",
            "a",
            &format!("{{\"a\":\"{}\"}}", "x".repeat(DOCUMENT_BYTES_MAX))
        ),
        Code::TooLarge
    );
}

/// Nodes that share a disk, or a majority that waits for two of three, would all be slow in the same moment.
#[test]
fn nodes_that_take_in_the_same_writes_checkpoint_one_after_another() {
    let mut cluster = Cluster::new(3);
    cluster.run(60);
    let begin = cluster.now;
    cluster.checkpoints.clear();
    let mut id = 0;
    while cluster.now.since(begin) < Span::secs(14) {
        id += 1;
        assert!(matches!(cluster.put(1, id, "k"), Response::Written(_)));
        cluster.run(4);
    }
    let mut at: Vec<Time> = cluster.checkpoints.iter().map(|&(_, at)| at).collect();
    assert!(at.len() >= 6, "{:?}", cluster.checkpoints);
    at.sort();
    let apart = at.windows(2).map(|two| two[1].since(two[0])).min();
    assert!(apart >= Some(Span::millis(250)), "{:?}", cluster.checkpoints);
}
