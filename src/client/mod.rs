//! The client library: what applications and `isxctl` talk to a cluster with.
//!
//! ```no_run
//! use isx::client::{Client, ConnectOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ConnectOptions::from_context(None)?).await?;
//! let written = client.put("campaign", "c-1001", &br#"{"name":"spring"}"#[..]).await?;
//! let entity = client.get("campaign", "c-1001").await?.expect("just put");
//! assert_eq!(entity.version, written.version);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone, and one is enough for any number of concurrent callers: each node gets one
//! connection with one stream on which requests are pipelined, so callers share frames, writes and wake-ups.
//!
//! **Routing.** The client keeps a map of key ranges and leaders. A wrong guess costs one hop, not a failure: nodes hand
//! requests on, and their answers correct the map.
//!
//! **Retries.** What a node answers with class `Retry` is repeated until the time limit. So is what was under way on a
//! connection that broke or fell silent. A repeat carries the same request id, so a write has one effect however often
//! it is sent. Only when the time limit ends a write that may have been taken is the outcome
//! [`ClientError::Unknown`]; it names the id, by which [`Client::show_request`] asks later and with which a repeat of
//! the whole write is safe.
//!
//! **Silence.** While any request has waited for [`SILENT_AFTER`], the client asks all nodes who leads, and sends what
//! waits to a new leader as soon as there is one, with the same request id: a node that took a request may have died,
//! or may have handed it to one that did. A node that sends nothing at all for that long gets no new requests
//! meanwhile.
mod connection;
pub mod context;
mod error;
mod index;
mod options;
mod pipeline;
mod sent;
mod transport;
mod watch;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};

use connection::{Connection, DialError};
pub use error::{ClientError, ConnectError};
pub use index::{FindPage, FindQuery, IndexLag};
pub use options::{ConnectOptions, Identity};
use pipeline::{BeginError, Heard, Ticket};
pub use sent::Delivery;
pub use watch::{Scope, Watch, WatchEvent};

use crate::protocol::change::{Version, prefix_range};
use crate::protocol::codec::CodecError;
use crate::protocol::error::{Class, Code, WireError};
use crate::protocol::id::{ClusterId, NodeId, RequestId, ShardId, base32};
use crate::protocol::key::Position;
use crate::protocol::request::{
    Change, Condition, Entity, ListItem, NodeStatus, Request, Response, ResponseFrame, RouteHint, Write, Written,
};
use crate::protocol::shard_map::{MapView, Membership, NodeInfo, ShardDescriptor, ShardMap};
use crate::protocol::target::Target;

/// A request that has waited for this long makes the client ask who should answer it.
pub const SILENT_AFTER: Duration = Duration::from_millis(200);
/// [`Client::statuses`] answers within this time, whoever does not.
pub const STATUS_LIMIT: Duration = Duration::from_millis(2_800);

/// How often time limits and silence are looked at while requests wait.
const WATCH_EVERY: Duration = Duration::from_millis(25);
/// While requests wait for long, everybody is asked who leads this often.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// A silent node is dialled anew after this long: it may have been restarted, and the old connection never notices.
const REDIAL_SILENT_AFTER: Duration = Duration::from_millis(600);
/// First pause before a request is repeated.
const BACKOFF_MIN: Duration = Duration::from_millis(4);
/// Longest pause before a request is repeated.
const BACKOFF_MAX: Duration = Duration::from_millis(128);
/// First pause before a node is dialled again.
const REDIAL_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a node is dialled again.
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// Copies of one request under way at once: the first, and those sent because it had waited for long.
const COPIES_MAX: usize = 4;
/// Times in a row that a request follows a correction without a pause.
const REDIRECTS_MAX: u32 = 4;

/// A connection to a cluster. Cheap to clone; needs a tokio runtime with time and I/O.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What a listing should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Service.
    pub service: String,
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only keys from this one on; empty: from the first.
    pub from: String,
    /// Only keys before this one; `None`: to the last.
    pub to: Option<String>,
    /// At most this many; 0: as many as fit one answer.
    pub limit: u32,
    /// Whether documents are wanted, or keys and versions only.
    pub documents: bool,
    /// Where the page before this one stopped: its `next`.
    pub resume: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// In key order.
    pub items: Vec<ListItem>,
    /// What to ask for the next page with; `None` at the end. Survives splits and restarts.
    pub next: Option<String>,
}

/// What the client itself did, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests sent again after an answer of class `Retry` or a lost connection.
    pub retries: u64,
    /// Requests sent to a second node because the first did not answer.
    pub hedges: u64,
    /// Connections made.
    pub dials: u64,
}

struct Shared {
    options: ConnectOptions,
    endpoint: quinn::Endpoint,
    cluster: ClusterId,
    started: Instant,
    state: Mutex<State>,
    /// A dial ended, either way.
    dialled: Notify,
    /// Wakes the watchdog; outlives the rest, so that it can end.
    watch: Arc<Notify>,
    is_watched: AtomicBool,
    permits: Semaphore,
    turn: AtomicU64,
    next_probe_ms: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
    dials: AtomicU64,
}

#[derive(Default)]
struct State {
    map: ShardMap,
    /// When the whole map was last asked for because it had grown old.
    map_asked: Option<Instant>,
    links: BTreeMap<NodeId, Link>,
}

/// What the client has of one node.
struct Link {
    up: Option<Arc<Connection>>,
    is_dialling: bool,
    /// No dial before this.
    not_before: Instant,
    pause: Duration,
    last_error: String,
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            up: None,
            is_dialling: false,
            not_before: now,
            pause: REDIAL_MIN,
            last_error: "not tried yet".to_owned(),
        }
    }
}

/// A request on its way to one node. Given up when dropped.
struct Sent {
    connection: Arc<Connection>,
    ticket: Ticket,
    /// Term of the leader that was believed in, 0 where none was.
    term: u64,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.connection.pipeline.give_up(self.ticket);
    }
}

impl Sent {
    async fn hear(&self) -> Heard {
        poll_fn(|context| self.connection.pipeline.poll(self.ticket, context)).await
    }
}

/// How a request ended without an answer.
struct Failure {
    may_have_happened: bool,
    reached_any: bool,
    last: String,
    /// The last answer that said to try again.
    code: Option<Code>,
    /// The request is no frame and never will be.
    codec: Option<CodecError>,
}

/// Why a request was not queued anywhere.
enum SendError {
    /// Try again in a moment.
    NotNow(String),
    Never(CodecError),
}

impl Client {
    /// Connects to the first endpoint that answers and learns the map from it. Everything else is dialled as needed.
    pub async fn connect(options: ConnectOptions) -> Result<Self, ConnectError> {
        if options.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        let endpoint = connection::endpoint(&options)?;
        let deadline = Instant::now() + options.connect_timeout;
        let first = loop {
            match first_to_answer(&endpoint, &options).await {
                Ok(connection) => break connection,
                Err(error @ ConnectError::Unreachable { .. }) if Instant::now() + REDIAL_MIN >= deadline => {
                    return Err(error);
                }
                Err(ConnectError::Unreachable { .. }) => sleep(REDIAL_MIN).await,
                Err(error) => return Err(error),
            }
        };
        let now = Instant::now();
        let shared = Arc::new(Shared {
            endpoint,
            cluster: first.cluster,
            started: now,
            state: Mutex::default(),
            dialled: Notify::new(),
            watch: Arc::new(Notify::new()),
            is_watched: AtomicBool::new(false),
            permits: Semaphore::new(options.in_flight_max.min(Semaphore::MAX_PERMITS)),
            turn: AtomicU64::new(0),
            next_probe_ms: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            dials: AtomicU64::new(1),
            options,
        });
        let link = Link {
            up: Some(first.clone()),
            ..Link::new(now)
        };
        shared.state().links.insert(first.node, link);
        tokio::spawn(look_out(Arc::downgrade(&shared), shared.watch.clone()));
        let client = Self { shared };
        // Any node answers this from what it knows; without it the first requests would only take a hop more.
        let deadline = deadline.max(Instant::now() + Duration::from_millis(500));
        let _ = client.ask_on(&first, &Request::Map, deadline).await;
        Ok(client)
    }

    /// The cluster at the other end.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// The time limit of a request, with all its retries.
    pub fn timeout(&self) -> Duration {
        self.shared.options.timeout
    }

    /// Reads one entity; linearizable. `None`: there is no such entity.
    pub async fn get(&self, service: &str, key: &str) -> Result<Option<Entity>, ClientError> {
        let request = Request::Get {
            service: service.to_owned(),
            key: key.to_owned(),
        };
        match self.request(request).await? {
            Response::Entity(entity) => Ok(entity),
            _ => Err(unexpected("get")),
        }
    }

    /// Changes one entity. The write's id makes it safe to repeat, here or later.
    pub async fn write(&self, write: Write) -> Result<Written, ClientError> {
        match self.request(Request::Write(write)).await? {
            Response::Written(written) => Ok(written),
            _ => Err(unexpected("write")),
        }
    }

    /// Replaces the document, or creates the entity.
    pub async fn put(&self, service: &str, key: &str, document: impl Into<Bytes>) -> Result<Written, ClientError> {
        self.change(service, key, Change::Put(document.into())).await
    }

    /// Creates an entity under a key of the cluster's choice.
    pub async fn post(&self, service: &str, document: impl Into<Bytes>) -> Result<Written, ClientError> {
        self.change(service, "", Change::Post(document.into())).await
    }

    /// Applies a JSON merge patch (RFC 7396).
    pub async fn patch(&self, service: &str, key: &str, patch: impl Into<Bytes>) -> Result<Written, ClientError> {
        self.change(service, key, Change::Patch(patch.into())).await
    }

    /// Removes an entity.
    pub async fn delete(&self, service: &str, key: &str) -> Result<Written, ClientError> {
        self.change(service, key, Change::Delete).await
    }

    async fn change(&self, service: &str, key: &str, change: Change) -> Result<Written, ClientError> {
        let write = Write {
            service: service.to_owned(),
            key: key.to_owned(),
            id: RequestId::random(),
            condition: Condition::Always,
            change,
        };
        self.write(write).await
    }

    /// One page of entities in key order, across shards; linearizable per shard.
    pub async fn list(&self, query: &ListQuery) -> Result<ListPage, ClientError> {
        list(query, |request| self.request(request)).await
    }

    /// What became of a write: `None` where it is not remembered, so that it can't be told from one that never arrived.
    pub async fn show_request(&self, service: &str, key: &str, id: RequestId) -> Result<Option<Written>, ClientError> {
        let request = Request::ShowRequest {
            service: service.to_owned(),
            key: key.to_owned(),
            id,
        };
        match self.request(request).await? {
            Response::Request(written) => Ok(written),
            _ => Err(unexpected("request show")),
        }
    }

    /// How an entity's latest versions came to be, newest first; a deleted one's too. Empty: there never was one.
    pub async fn history(&self, service: &str, key: &str) -> Result<Vec<Version>, ClientError> {
        let request = Request::History {
            service: service.to_owned(),
            key: key.to_owned(),
        };
        match self.request(request).await? {
            Response::History(versions) => Ok(versions),
            _ => Err(unexpected("history")),
        }
    }

    /// Shards, leaders, nodes and services, as the node that answers knows them and earlier answers corrected them.
    pub async fn map(&self) -> Result<MapView, ClientError> {
        self.request(Request::Map).await?;
        Ok(self.cached_map())
    }

    /// Shards, leaders, nodes and services as last learnt, without asking.
    pub fn cached_map(&self) -> MapView {
        self.shared.state().map.view()
    }

    /// Every node's own view of itself, each asked directly; done after [`STATUS_LIMIT`] at the latest.
    pub async fn statuses(&self) -> Vec<(NodeInfo, Result<NodeStatus, ClientError>)> {
        self.statuses_within(STATUS_LIMIT).await
    }

    /// Like [`Client::statuses`], with a time limit of its own.
    pub async fn statuses_within(&self, limit: Duration) -> Vec<(NodeInfo, Result<NodeStatus, ClientError>)> {
        let deadline = Instant::now() + limit;
        let mut asked = JoinSet::new();
        for node in self.nodes() {
            let client = self.clone();
            asked.spawn(async move {
                let status = match client.ask_until(node.id, &Request::Status, deadline).await {
                    Ok(Response::Status(status)) => Ok(*status),
                    Ok(_) => Err(unexpected("status")),
                    Err(error) => Err(error),
                };
                (node, status)
            });
        }
        let mut statuses = asked.join_all().await;
        statuses.sort_by_key(|(node, _)| node.id);
        statuses
    }

    /// Asks one node and no other. It may still hand the request on.
    pub async fn ask(&self, node: NodeId, request: Request) -> Result<Response, ClientError> {
        self.ask_until(node, &request, Instant::now() + self.timeout()).await
    }

    /// Sends a request to where it belongs and repeats it as far as that is safe. The answer is never an error.
    pub async fn request(&self, request: Request) -> Result<Response, ClientError> {
        self.request_within(request, self.timeout()).await
    }

    /// Asks for the map anew, beside what is going on, where it is older than the router's settings say. What it lacks
    /// is learnt by being corrected anyway, but only where somebody asks.
    fn refresh_map(&self) {
        {
            let mut state = self.shared.state();
            let every = Duration::from_millis(state.map.policy.router.map_refresh_ms);
            let now = Instant::now();
            let asked = *state.map_asked.get_or_insert(now);
            if now.duration_since(asked) < every {
                return;
            }
            state.map_asked = Some(now);
        }
        let client = self.clone();
        tokio::spawn(async move {
            let deadline = Instant::now() + client.timeout();
            let _ = client.route(&Target::Any, &Request::Map, deadline).await;
        });
    }

    /// Like [`Client::request`], with a time limit of its own.
    pub async fn request_within(&self, request: Request, limit: Duration) -> Result<Response, ClientError> {
        let Ok(_permit) = self.shared.permits.acquire().await else {
            unreachable!("the semaphore is never closed");
        };
        let deadline = Instant::now() + limit;
        self.refresh_map();
        match self.route(&request.target(), &request, deadline).await {
            Ok(Response::Error(error)) => Err(ClientError::Refused(error)),
            Ok(response) => Ok(response),
            Err(failure) => Err(self.fail(&request, failure, limit)),
        }
    }

    /// Cuts a shard in two at `at`; gives both halves.
    pub async fn split(
        &self,
        shard: &ShardDescriptor,
        at: Position,
        id: RequestId,
    ) -> Result<(ShardDescriptor, ShardDescriptor), ClientError> {
        let child = match self.request(Request::AllocateIds { count: 1, id }).await? {
            Response::Ids { first } => ShardId(first),
            _ => return Err(unexpected("allocate ids")),
        };
        let request = Request::SplitShard {
            shard: shard.id,
            epoch: shard.epoch,
            at,
            child,
            id,
        };
        match self.request(request).await? {
            Response::Split { left, right } => {
                let mut state = self.shared.state();
                state.map.learn_shard(&left);
                state.map.learn_shard(&right);
                Ok((*left, *right))
            }
            _ => Err(unexpected("split")),
        }
    }

    /// What the client itself did so far.
    pub fn counters(&self) -> Counters {
        Counters {
            retries: self.shared.retries.load(Ordering::Relaxed),
            hedges: self.shared.hedges.load(Ordering::Relaxed),
            dials: self.shared.dials.load(Ordering::Relaxed),
        }
    }

    /// Says goodbye to the nodes, so that they need not wait for a timeout. All clones stop working.
    pub async fn close(&self) {
        for link in self.shared.state().links.values() {
            if let Some(up) = &link.up {
                up.close("the client is done");
            }
        }
        self.shared.endpoint.close(0u32.into(), b"the client is done");
        // The farewell is one datagram per node; what is waited for beyond that is only politeness.
        let _ = tokio::time::timeout(Duration::from_millis(10), self.shared.endpoint.wait_idle()).await;
    }

    /// Members that may be asked: from the map, or, before there is one, those that answered.
    fn nodes(&self) -> Vec<NodeInfo> {
        let state = self.shared.state();
        let mut nodes: BTreeMap<NodeId, NodeInfo> = state
            .links
            .values()
            .filter_map(|link| link.up.as_ref())
            .map(|up| {
                let info = NodeInfo {
                    id: up.node,
                    name: up.node.to_string(),
                    address: up.address.clone(),
                    zone: String::new(),
                    membership: Membership::Active,
                    store_id: 0,
                    version: up.software.clone(),
                    overlay: Default::default(),
                };
                (up.node, info)
            })
            .collect();
        nodes.extend(state.map.nodes.iter().map(|(id, info)| (*id, info.clone())));
        nodes.retain(|_, node| node.membership != Membership::Gone);
        nodes.into_values().collect()
    }

    fn fail(&self, request: &Request, failure: Failure, limit: Duration) -> ClientError {
        if let Some(error) = failure.codec {
            return ClientError::Encode(error);
        }
        match request {
            Request::Write(write) if failure.may_have_happened => ClientError::Unknown {
                id: write.id,
                service: write.service.clone(),
                key: write.entity_key(),
                last: failure.last,
            },
            _ if !failure.reached_any => ClientError::Unreachable {
                tried: self.shared.tried(),
            },
            _ => ClientError::TimedOut {
                after: limit,
                code: failure.code,
                last: failure.last,
            },
        }
    }

    /// Sends the request to the right node, and again as long as that can help.
    async fn route(&self, target: &Target, request: &Request, deadline: Instant) -> Result<Response, Failure> {
        let shared = &*self.shared;
        let mut failure = Failure {
            may_have_happened: false,
            reached_any: false,
            last: "no node is connected".to_owned(),
            code: None,
            codec: None,
        };
        let mut copies: Vec<Sent> = Vec::new();
        let mut redirects = 0;
        let mut pause = BACKOFF_MIN;
        // When to send a copy; `None` while the ones under way are enough.
        let mut send_at = Some(Instant::now());
        let mut is_repeat = false;
        loop {
            if let Some(at) = send_at {
                let now = Instant::now();
                if now >= deadline {
                    failure.may_have_happened |= !copies.is_empty();
                    return Err(failure);
                }
                if at <= now {
                    match self.send(target, request, &copies, deadline).await {
                        Ok(copy) => {
                            if is_repeat {
                                shared.retries.fetch_add(1, Ordering::Relaxed);
                            }
                            is_repeat = true;
                            failure.reached_any = true;
                            copies.push(copy);
                            send_at = None;
                        }
                        Err(SendError::NotNow(text)) => {
                            failure.last = text;
                            send_at = Some(Instant::now() + pause);
                        }
                        Err(SendError::Never(error)) => {
                            failure.codec = Some(error);
                            return Err(failure);
                        }
                    }
                    continue;
                }
            }
            let (which, heard) = match send_at {
                None if copies.len() == 1 => (0, copies[0].hear().await),
                None => hear_any(&copies).await,
                Some(at) => {
                    let at = at.min(deadline);
                    tokio::select! {
                        heard = hear_any(&copies) => heard,
                        () = sleep_until(at.into()) => continue,
                    }
                }
            };
            match heard {
                Heard::Answer(ResponseFrame { response, hint, .. }) => {
                    let copy = copies.swap_remove(which);
                    if let Some(hint) = hint {
                        shared.learn_hint(&hint);
                    }
                    let error = match response {
                        Response::Error(error) if matches!(error.class(), Class::Retry | Class::Unknown) => error,
                        Response::Map(view) => {
                            shared.state().map.learn(&view);
                            return Ok(Response::Map(view));
                        }
                        done => return Ok(done),
                    };
                    failure.may_have_happened |= error.class() == Class::Unknown;
                    failure.last = format!("{} says: {error}", copy.connection.node);
                    failure.code = Some(error.code);
                    if matches!(error.code, Code::NoLeader | Code::LeaderChanged) {
                        shared.doubt(target, &copy);
                    }
                    let elsewhere = shared
                        .leader_of(target)
                        .is_some_and(|(_, node)| node != copy.connection.node);
                    send_at = if !copies.is_empty() {
                        None
                    } else if elsewhere && redirects < REDIRECTS_MAX {
                        redirects += 1;
                        Some(Instant::now())
                    } else {
                        redirects = 0;
                        let asked = Duration::from_millis(error.retry_after_ms.into());
                        let wait = pause.max(asked).mul_f64(0.75 + 0.5 * fastrand::f64());
                        pause = (pause * 2).min(BACKOFF_MAX);
                        Some(Instant::now() + wait)
                    };
                }
                Heard::Silent => {
                    let known = copies.iter().map(|copy| copy.term).max().unwrap_or(0);
                    if let Some((term, connection)) = shared.usable_leader(target)
                        && term > known
                        && copies.len() < COPIES_MAX
                        && let Ok(ticket) = connection.pipeline.begin(Instant::now(), deadline, request)
                    {
                        shared.hedges.fetch_add(1, Ordering::Relaxed);
                        copies.push(Sent {
                            connection,
                            ticket,
                            term,
                        });
                    }
                }
                Heard::Lost(text) => {
                    let copy = copies.swap_remove(which);
                    failure.may_have_happened = true;
                    failure.last = format!("lost {}: {text}", copy.connection.node);
                    shared.link_lost(&copy.connection, &text);
                    if copies.is_empty() {
                        send_at = Some(Instant::now());
                    }
                }
                Heard::TimedOut => {
                    let copy = copies.swap_remove(which);
                    failure.may_have_happened = true;
                    failure.last = format!("{} did not answer in time", copy.connection.node);
                    return Err(failure);
                }
            }
        }
    }

    /// Picks a connection and queues the request there; waits for one where there is none.
    async fn send(
        &self,
        target: &Target,
        request: &Request,
        copies: &[Sent],
        deadline: Instant,
    ) -> Result<Sent, SendError> {
        loop {
            let Some((connection, term)) = self.pick(target, copies) else {
                self.dial_all();
                // Between the look and this wait a dial may have ended: hence the short patience.
                let patience = deadline.min(Instant::now() + BACKOFF_MAX);
                let _ = timeout_at(patience.into(), self.shared.dialled.notified()).await;
                return Err(SendError::NotNow(self.shared.tried_text()));
            };
            match connection.pipeline.begin(Instant::now(), deadline, request) {
                Ok(ticket) => {
                    self.shared.watch_over();
                    return Ok(Sent {
                        connection,
                        ticket,
                        term,
                    });
                }
                Err(BeginError::Lost(text)) => self.shared.link_lost(&connection, &text),
                Err(BeginError::Full) => {
                    // Between the look and this wait the writer may have made room: hence the short patience.
                    let patience = deadline.min(Instant::now() + BACKOFF_MAX);
                    let _ = timeout_at(patience.into(), connection.pipeline.space.notified()).await;
                    if Instant::now() >= deadline {
                        let text = format!("{} does not take requests fast enough", connection.node);
                        return Err(SendError::NotNow(text));
                    }
                }
                Err(BeginError::Codec(error)) => return Err(SendError::Never(error)),
            }
        }
    }

    /// The best connection for a request: the leader's, else another replica's, else anybody's who is not silent.
    fn pick(&self, target: &Target, copies: &[Sent]) -> Option<(Arc<Connection>, u64)> {
        let mut state = self.shared.state();
        let leader = state.leader_of(target);
        let usable = |state: &State, node: NodeId| {
            state
                .links
                .get(&node)
                .and_then(|link| link.up.as_ref())
                .filter(|up| !up.is_silent.load(Ordering::Relaxed))
                .filter(|up| !copies.iter().any(|copy| Arc::ptr_eq(&copy.connection, up)))
                .cloned()
        };
        if let Some((term, node)) = leader {
            if let Some(up) = usable(&state, node) {
                return Some((up, term));
            }
            self.dial_soon(&mut state, node, false);
        }
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let replicas = state
            .shard_of(target)
            .map(|shard| &shard.replicas[..])
            .unwrap_or_default();
        for at in 0..replicas.len() {
            let node = replicas[(turn + at) % replicas.len()].node;
            if let Some(up) = usable(&state, node) {
                return Some((up, 0));
            }
        }
        let nodes: Vec<NodeId> = state.links.keys().copied().collect();
        for at in 0..nodes.len() {
            let node = nodes[(turn + at) % nodes.len()];
            if let Some(up) = usable(&state, node) {
                return Some((up, 0));
            }
        }
        // Only silent ones are left; one of them may be slow rather than gone.
        let silent = state.links.values().filter_map(|link| link.up.as_ref());
        silent
            .filter(|up| !copies.iter().any(|copy| Arc::ptr_eq(&copy.connection, up)))
            .nth(turn % nodes.len().max(1))
            .map(|up| (up.clone(), 0))
    }

    async fn ask_until(&self, node: NodeId, request: &Request, deadline: Instant) -> Result<Response, ClientError> {
        let connection = self.reach(node, deadline).await?;
        self.ask_on(&connection, request, deadline).await
    }

    /// One request on one connection: no routing, no retries.
    async fn ask_on(
        &self,
        connection: &Arc<Connection>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, ClientError> {
        let started = Instant::now();
        let name = connection.node;
        let failed = |last: String| match request {
            Request::Write(write) => ClientError::Unknown {
                id: write.id,
                service: write.service.clone(),
                key: write.entity_key(),
                last,
            },
            _ => ClientError::TimedOut {
                after: deadline.saturating_duration_since(started),
                code: None,
                last,
            },
        };
        let ticket = match connection.pipeline.begin(started, deadline, request) {
            Ok(ticket) => ticket,
            Err(BeginError::Codec(error)) => return Err(error.into()),
            Err(BeginError::Full) => return Err(failed(format!("{name} does not take requests fast enough"))),
            Err(BeginError::Lost(text)) => {
                self.shared.link_lost(connection, &text);
                let tried = vec![(name.to_string(), text)];
                return Err(ClientError::Unreachable { tried });
            }
        };
        self.shared.watch_over();
        let copy = Sent {
            connection: connection.clone(),
            ticket,
            term: 0,
        };
        loop {
            match copy.hear().await {
                Heard::Answer(frame) => {
                    if let Some(hint) = frame.hint {
                        self.shared.learn_hint(&hint);
                    }
                    return match frame.response {
                        Response::Error(error) => Err(ClientError::Refused(error)),
                        Response::Map(view) => {
                            self.shared.state().map.learn(&view);
                            Ok(Response::Map(view))
                        }
                        response => Ok(response),
                    };
                }
                Heard::Silent => {}
                Heard::Lost(text) => {
                    self.shared.link_lost(connection, &text);
                    return Err(failed(format!("lost {name}: {text}")));
                }
                Heard::TimedOut => return Err(failed(format!("{name} did not answer in time"))),
            }
        }
    }

    /// The connection to this very node, dialled if need be.
    async fn reach(&self, node: NodeId, deadline: Instant) -> Result<Arc<Connection>, ClientError> {
        if !self.shared.state().map.nodes.contains_key(&node) && !self.shared.state().links.contains_key(&node) {
            return Err(ClientError::NoSuchNode(node));
        }
        loop {
            let dialled = self.shared.dialled.notified();
            {
                let mut state = self.shared.state();
                if let Some(up) = state.links.get(&node).and_then(|link| link.up.clone()) {
                    return Ok(up);
                }
                self.dial_soon(&mut state, node, false);
            }
            let look_again = deadline.min(Instant::now() + REDIAL_MIN);
            let _ = timeout_at(look_again.into(), dialled).await;
            if Instant::now() >= deadline {
                let state = self.shared.state();
                let reason = match state.links.get(&node) {
                    // The dial has a time limit of its own, and the caller's ended first.
                    Some(link) if link.is_dialling => "no answer".to_owned(),
                    Some(link) => link.last_error.clone(),
                    None => String::new(),
                };
                let tried = vec![(node.to_string(), reason)];
                return Err(ClientError::Unreachable { tried });
            }
        }
    }

    fn dial_all(&self) {
        let mut state = self.shared.state();
        let mut nodes: Vec<NodeId> = state.links.keys().copied().collect();
        nodes.extend(state.map.nodes.keys().copied());
        for node in nodes {
            self.dial_soon(&mut state, node, false);
        }
    }

    /// Starts to dial a node, unless that is under way or failed a moment ago. `although_up`: the connection that
    /// stands is silent and may never notice that its node was restarted.
    fn dial_soon(&self, state: &mut State, node: NodeId, although_up: bool) {
        let now = Instant::now();
        let address = match state.map.nodes.get(&node) {
            Some(info) if info.membership == Membership::Gone => return,
            Some(info) => info.address.clone(),
            None => match state.links.get(&node).and_then(|link| link.up.as_ref()) {
                Some(up) => up.address.clone(),
                None => return,
            },
        };
        let link = state.links.entry(node).or_insert_with(|| Link::new(now));
        if (link.up.is_some() && !although_up) || link.is_dialling || link.not_before > now {
            return;
        }
        link.is_dialling = true;
        let weak = Arc::downgrade(&self.shared);
        let endpoint = self.shared.endpoint.clone();
        let (cluster, limit) = (self.shared.cluster, self.shared.options.dial_timeout);
        tokio::spawn(async move {
            let result = Connection::dial(&endpoint, &address, Some(node), Some(cluster), limit).await;
            if let Some(shared) = weak.upgrade() {
                shared.dial_ended(node, result);
            } else if let Ok(connection) = result {
                connection.close("the client is done");
            }
        });
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    fn leader_of(&self, target: &Target) -> Option<(u64, NodeId)> {
        self.state().leader_of(target)
    }

    /// Who leads, with a connection that seems to work.
    fn usable_leader(&self, target: &Target) -> Option<(u64, Arc<Connection>)> {
        let state = self.state();
        let (term, node) = state.leader_of(target)?;
        let up = state.links.get(&node)?.up.as_ref()?;
        (!up.is_silent.load(Ordering::Relaxed)).then(|| (term, up.clone()))
    }

    fn learn_hint(&self, hint: &RouteHint) {
        let mut state = self.state();
        state.map.learn_shard(&hint.shard);
        if let Some((term, node)) = hint.leader {
            state.map.learn_leader(hint.shard.id, term, node);
        }
    }

    /// A node that was believed to lead says that nobody does.
    fn doubt(&self, target: &Target, copy: &Sent) {
        let mut state = self.state();
        if let Some(shard) = state.shard_of(target).map(|shard| shard.id) {
            state.map.doubt_leader(shard, copy.connection.node);
        }
    }

    fn dial_ended(&self, node: NodeId, result: Result<Arc<Connection>, DialError>) {
        let mut state = self.state();
        let now = Instant::now();
        let link = state.links.entry(node).or_insert_with(|| Link::new(now));
        link.is_dialling = false;
        let old = match result {
            Ok(connection) => {
                link.pause = REDIAL_MIN;
                self.dials.fetch_add(1, Ordering::Relaxed);
                link.up.replace(connection)
            }
            Err(error) => {
                link.last_error = error.to_string();
                link.not_before = now + link.pause;
                link.pause = (link.pause * 2).min(REDIAL_MAX);
                None
            }
        };
        drop(state);
        // Whoever waits on a connection that a newer one replaces hears of it and sends again.
        if let Some(old) = old {
            old.close("replaced by a newer connection to the node");
        }
        self.dialled.notify_waiters();
    }

    fn link_lost(&self, connection: &Arc<Connection>, reason: &str) {
        let mut state = self.state();
        if let Some(link) = state.links.get_mut(&connection.node)
            && link.up.as_ref().is_some_and(|up| Arc::ptr_eq(up, connection))
        {
            link.up = None;
            link.last_error = reason.to_owned();
        }
    }

    fn tried(&self) -> Vec<(String, String)> {
        let state = self.state();
        let name = |node: &NodeId| match state.map.nodes.get(node) {
            Some(info) => format!("{node} at {}", info.address),
            None => node.to_string(),
        };
        state
            .links
            .iter()
            .map(|(node, link)| (name(node), link.last_error.clone()))
            .collect()
    }

    fn tried_text(&self) -> String {
        let tried: Vec<String> = self
            .tried()
            .into_iter()
            .map(|(whom, what)| format!("{whom}: {what}"))
            .collect();
        tried.join("; ")
    }

    fn watch_over(&self) {
        if !self.is_watched.load(Ordering::Relaxed) && !self.is_watched.swap(true, Ordering::AcqRel) {
            self.watch.notify_one();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for link in self
            .state
            .get_mut()
            .expect("no code panics while it holds this lock")
            .links
            .values()
        {
            if let Some(up) = &link.up {
                up.close("the client is done");
            }
        }
        self.endpoint.close(0u32.into(), b"the client is done");
        self.watch.notify_one();
    }
}

impl State {
    fn shard_of(&self, target: &Target) -> Option<&ShardDescriptor> {
        match target {
            Target::Position(position) => self.map.find(position),
            Target::Shard(shard) => self.map.shard(*shard),
            Target::Any => None,
        }
    }

    fn leader_of(&self, target: &Target) -> Option<(u64, NodeId)> {
        match target {
            Target::Shard(shard) => self.map.leader(*shard),
            _ => self.map.leader(self.shard_of(target)?.id),
        }
    }
}

/// Looks after time limits and silent nodes while any request waits; sleeps otherwise.
async fn look_out(shared: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        wake.notified().await;
        loop {
            sleep(WATCH_EVERY).await;
            let Some(shared) = shared.upgrade() else { return };
            let client = Client { shared };
            if client.look_after() {
                continue;
            }
            client.shared.is_watched.store(false, Ordering::Release);
            // A request that began between the look and the store counted on being watched.
            if !client.look_after() || client.shared.is_watched.swap(true, Ordering::AcqRel) {
                break;
            }
        }
    }
}

impl Client {
    /// One round of the watchdog; whether any request waits.
    fn look_after(&self) -> bool {
        let now = Instant::now();
        let connections: Vec<Arc<Connection>> = self
            .shared
            .state()
            .links
            .values()
            .filter_map(|link| link.up.clone())
            .collect();
        let (mut any, mut longest) = (false, Duration::ZERO);
        for connection in &connections {
            let waits = connection.pipeline.sweep(now);
            any |= waits.any;
            longest = longest.max(waits.longest);
            if waits.quiet >= SILENT_AFTER {
                connection.is_silent.store(true, Ordering::Relaxed);
            }
            if waits.quiet >= REDIAL_SILENT_AFTER {
                self.dial_soon(&mut self.shared.state(), connection.node, true);
            }
        }
        let now_ms = now.duration_since(self.shared.started).as_millis() as u64;
        if longest >= SILENT_AFTER && self.shared.next_probe_ms.load(Ordering::Relaxed) <= now_ms {
            let next = now_ms + PROBE_EVERY.as_millis() as u64;
            self.shared.next_probe_ms.store(next, Ordering::Relaxed);
            tokio::spawn(self.clone().probe(connections));
        }
        any
    }

    /// Asks everybody for the map, silent nodes included (an answer ends the silence), and makes those who have waited
    /// for long look at what was learnt.
    async fn probe(self, everybody: Vec<Arc<Connection>>) {
        let deadline = Instant::now() + SILENT_AFTER;
        if everybody
            .iter()
            .filter(|up| !up.is_silent.load(Ordering::Relaxed))
            .count()
            < 2
        {
            self.dial_all();
        }
        let mut asked = JoinSet::new();
        for connection in &everybody {
            let (client, connection) = (self.clone(), connection.clone());
            asked.spawn(async move { client.ask_on(&connection, &Request::Map, deadline).await.is_ok() });
        }
        while let Some(answer) = asked.join_next().await {
            if matches!(answer, Ok(true)) {
                let now = Instant::now();
                everybody.iter().for_each(|up| up.pipeline.nudge(now, SILENT_AFTER));
            }
        }
    }
}

/// Tries all endpoints at once.
async fn first_to_answer(
    endpoint: &quinn::Endpoint,
    options: &ConnectOptions,
) -> Result<Arc<Connection>, ConnectError> {
    let mut dials = JoinSet::new();
    for address in options.endpoints.clone() {
        let (endpoint, cluster, limit) = (endpoint.clone(), options.cluster, options.dial_timeout);
        dials.spawn(async move {
            let result = Connection::dial(&endpoint, &address, None, cluster, limit).await;
            (address, result)
        });
    }
    let mut failed = Vec::new();
    while let Some(ended) = dials.join_next().await {
        match ended {
            Ok((_, Ok(connection))) => return Ok(connection),
            Ok((address, Err(error))) => failed.push((address, error)),
            Err(error) => failed.push(("a dial".to_owned(), DialError::Unreachable(error.to_string()))),
        }
    }
    // An answer that says no tells more than silence elsewhere.
    for (address, error) in &failed {
        let endpoint = address.clone();
        match error {
            DialError::Certificate(reason) => {
                let reason = reason.clone();
                return Err(ConnectError::Certificate { endpoint, reason });
            }
            DialError::Refused(error) if error.class() != Class::Retry => {
                let error = error.clone();
                return Err(ConnectError::Refused { endpoint, error });
            }
            _ => {}
        }
    }
    let mut tried: Vec<(String, String)> = failed.into_iter().map(|(a, error)| (a, error.to_string())).collect();
    tried.sort();
    Err(ConnectError::Unreachable { tried })
}

/// The first copy that hears something.
async fn hear_any(copies: &[Sent]) -> (usize, Heard) {
    poll_fn(|context| {
        for (at, copy) in copies.iter().enumerate() {
            if let Poll::Ready(heard) = copy.connection.pipeline.poll(copy.ticket, context) {
                return Poll::Ready((at, heard));
            }
        }
        Poll::Pending
    })
    .await
}

fn unexpected(asked: &'static str) -> ClientError {
    ClientError::Unexpected {
        node: "a node".to_owned(),
        asked,
    }
}

/// Puts one page together from as many shards as it takes. `ask` sends a request and gives back what is no error.
pub(crate) async fn list<F>(query: &ListQuery, ask: impl Fn(Request) -> F) -> Result<ListPage, ClientError>
where
    F: Future<Output = Result<Response, ClientError>>,
{
    let first = if query.from > query.prefix {
        &query.from
    } else {
        &query.prefix
    };
    let mut from = Position::new(&query.service, first);
    if let Some(token) = &query.resume {
        from = from.max(continuation(token, &query.service)?);
    }
    let mut to = Position::end_of(&query.service);
    if let Some(key) = &query.to {
        to = to.min(Position::new(&query.service, key));
    }
    to = to.min(prefix_range(&query.service, &query.prefix).end);
    let mut page = ListPage::default();
    let mut room = match query.limit {
        0 => crate::protocol::request::LIST_ITEMS_MAX,
        limit => limit,
    };
    while from < to {
        if room == 0 {
            page.next = Some(format!("c-{}", base32().encode(&from.0)));
            break;
        }
        let request = Request::List {
            from,
            to: to.clone(),
            limit: room.min(crate::protocol::request::LIST_ITEMS_MAX),
            documents: query.documents,
        };
        let Response::Listed { items, next } = ask(request).await? else {
            return Err(unexpected("list"));
        };
        room = room.saturating_sub(items.len() as u32);
        page.items.extend(items);
        match next {
            Some(next) => from = next,
            None => break,
        }
        // Without a limit a page is what one answer with entities in it holds.
        if query.limit == 0 && !page.items.is_empty() {
            room = 0;
        }
    }
    Ok(page)
}

fn continuation(token: &str, service: &str) -> Result<Position, ClientError> {
    let bytes = token
        .strip_prefix("c-")
        .and_then(|text| base32().decode(text.as_bytes()).ok());
    match bytes.map(|bytes| Position(bytes.into())) {
        Some(position) if position.parts().0 == service => Ok(position),
        _ => Err(ClientError::Continuation(token.to_owned())),
    }
}

/// A node's error as this client's, for code that talks to nodes without a [`Client`].
impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Refused(error)
    }
}
