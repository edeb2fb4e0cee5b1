//! Connections to nodes, and what is known of the cluster: who is dialled when, and who looks after requests that wait.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::connection::{Connection, DialError};
use super::route::Sent;
use super::{Client, ClientError, ConnectError, ConnectOptions, SILENT_AFTER};
use crate::protocol::error::Class;
use crate::protocol::id::{ClusterId, NodeId};
use crate::protocol::request::{Request, RouteHint};
use crate::protocol::shard_map::{Membership, NodeInfo, ShardDescriptor, ShardMap};
use crate::protocol::target::Target;

/// How often time limits and silence are looked at while requests wait.
const WATCH_EVERY: Duration = Duration::from_millis(25);
/// While requests wait for long, everybody is asked who leads this often.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// A silent node is dialled anew after this long: it may have been restarted, and the old connection never notices.
const REDIAL_SILENT_AFTER: Duration = Duration::from_millis(600);
/// First pause before a node is dialled again.
pub(super) const REDIAL_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a node is dialled again.
const REDIAL_MAX: Duration = Duration::from_secs(1);

pub(super) struct Shared {
    pub(super) options: ConnectOptions,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) cluster: ClusterId,
    pub(super) started: Instant,
    pub(super) state: Mutex<State>,
    /// A dial ended, either way.
    pub(super) dialled: Notify,
    /// Wakes the watchdog; outlives the rest, so that it can end.
    pub(super) watch: Arc<Notify>,
    pub(super) is_watched: AtomicBool,
    pub(super) permits: Semaphore,
    pub(super) turn: AtomicU64,
    pub(super) next_probe_ms: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) dials: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) map: ShardMap,
    /// When the whole map was last asked for because it had grown old.
    pub(super) map_asked: Option<Instant>,
    pub(super) links: BTreeMap<NodeId, Link>,
}

/// What the client has of one node.
pub(super) struct Link {
    pub(super) up: Option<Arc<Connection>>,
    pub(super) is_dialling: bool,
    /// No dial before this.
    pub(super) not_before: Instant,
    pub(super) pause: Duration,
    pub(super) last_error: String,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            up: None,
            is_dialling: false,
            not_before: now,
            pause: REDIAL_MIN,
            last_error: "not tried yet".to_owned(),
        }
    }
}

impl Client {
    /// Members that may be asked: from the map, or, before there is one, those that answered.
    pub(super) fn nodes(&self) -> Vec<NodeInfo> {
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

    /// The connection to this very node, dialled if need be.
    pub(super) async fn reach(&self, node: NodeId, deadline: Instant) -> Result<Arc<Connection>, ClientError> {
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

    pub(super) fn dial_all(&self) {
        let mut state = self.shared.state();
        let mut nodes: Vec<NodeId> = state.links.keys().copied().collect();
        nodes.extend(state.map.nodes.keys().copied());
        for node in nodes {
            self.dial_soon(&mut state, node, false);
        }
    }

    /// Starts to dial a node, unless that is under way or failed a moment ago. `although_up`: the connection that
    /// stands is silent and may never notice that its node was restarted.
    pub(super) fn dial_soon(&self, state: &mut State, node: NodeId, although_up: bool) {
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

    /// One round of the watchdog; whether any request waits.
    pub(super) fn look_after(&self) -> bool {
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
    pub(super) async fn probe(self, everybody: Vec<Arc<Connection>>) {
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

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    pub(super) fn leader_of(&self, target: &Target) -> Option<(u64, NodeId)> {
        self.state().leader_of(target)
    }

    /// Who leads, with a connection that seems to work.
    pub(super) fn usable_leader(&self, target: &Target) -> Option<(u64, Arc<Connection>)> {
        let state = self.state();
        let (term, node) = state.leader_of(target)?;
        let up = state.links.get(&node)?.up.as_ref()?;
        (!up.is_silent.load(Ordering::Relaxed)).then(|| (term, up.clone()))
    }

    pub(super) fn learn_hint(&self, hint: &RouteHint) {
        let mut state = self.state();
        state.map.learn_shard(&hint.shard);
        if let Some((term, node)) = hint.leader {
            state.map.learn_leader(hint.shard.id, term, node);
        }
    }

    /// A node that was believed to lead says that nobody does.
    pub(super) fn doubt(&self, target: &Target, copy: &Sent) {
        let mut state = self.state();
        if let Some(shard) = state.shard_of(target).map(|shard| shard.id) {
            state.map.doubt_leader(shard, copy.connection.node);
        }
    }

    pub(super) fn dial_ended(&self, node: NodeId, result: Result<Arc<Connection>, DialError>) {
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

    pub(super) fn link_lost(&self, connection: &Arc<Connection>, reason: &str) {
        let mut state = self.state();
        if let Some(link) = state.links.get_mut(&connection.node)
            && link.up.as_ref().is_some_and(|up| Arc::ptr_eq(up, connection))
        {
            link.up = None;
            link.last_error = reason.to_owned();
        }
    }

    pub(super) fn tried(&self) -> Vec<(String, String)> {
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

    pub(super) fn tried_text(&self) -> String {
        let tried: Vec<String> = self
            .tried()
            .into_iter()
            .map(|(whom, what)| format!("{whom}: {what}"))
            .collect();
        tried.join("; ")
    }

    pub(super) fn watch_over(&self) {
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
    pub(super) fn shard_of(&self, target: &Target) -> Option<&ShardDescriptor> {
        match target {
            Target::Position(position) => self.map.find(position),
            Target::Shard(shard) => self.map.shard(*shard),
            Target::Any => None,
        }
    }

    pub(super) fn leader_of(&self, target: &Target) -> Option<(u64, NodeId)> {
        match target {
            Target::Shard(shard) => self.map.leader(*shard),
            _ => self.map.leader(self.shard_of(target)?.id),
        }
    }
}

/// Looks after time limits and silent nodes while any request waits; sleeps otherwise.
pub(super) async fn look_out(shared: Weak<Shared>, wake: Arc<Notify>) {
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

/// Tries all endpoints at once.
pub(super) async fn first_to_answer(
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
