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
mod links;
mod list;
mod options;
mod pipeline;
mod route;
mod sent;
mod transport;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use error::{ClientError, ConnectError};
pub use index::{FindPage, FindQuery, IndexLag};
use links::{Link, REDIAL_MIN, Shared, first_to_answer, look_out};
pub(crate) use list::list;
pub use list::{ListPage, ListQuery};
pub use options::{ConnectOptions, Identity};
pub use sent::Delivery;
pub use watch::{Scope, Watch, WatchEvent};

use crate::protocol::change::{History, Version};
use crate::protocol::error::WireError;
use crate::protocol::id::{ClusterId, NodeId, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::request::{Change, Condition, Entity, NodeStatus, Request, Response, Write, Written};
use crate::protocol::shard_map::{MapView, NodeInfo, ShardDescriptor};
use crate::protocol::target::Target;

/// A request that has waited for this long makes the client ask who should answer it.
pub const SILENT_AFTER: Duration = Duration::from_millis(200);
/// [`Client::statuses`] answers within this time, whoever does not.
pub const STATUS_LIMIT: Duration = Duration::from_millis(2_800);

/// A connection to a cluster. Cheap to clone; needs a tokio runtime with time and I/O.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
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
            Response::History(history) => Ok(history.versions),
            _ => Err(unexpected("history")),
        }
    }

    /// The same, with the messages that the entity's rows still tell of.
    pub async fn history_with_messages(&self, service: &str, key: &str) -> Result<History, ClientError> {
        let request = Request::History {
            service: service.to_owned(),
            key: key.to_owned(),
        };
        match self.request(request).await? {
            Response::History(history) => Ok(*history),
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
}

fn unexpected(asked: &'static str) -> ClientError {
    ClientError::Unexpected {
        node: "a node".to_owned(),
        asked,
    }
}

/// A node's error as this client's, for code that talks to nodes without a [`Client`].
impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Refused(error)
    }
}
