//! Peers: one connection to each, an outbox with a bound, reconnecting with backoff.
//!
//! The node with the lower id dials. The other one dials too when it has had no connection for a while: the lower one
//! may not know its address yet, or any more. A peer that connects again replaces its old connection, which a crash may
//! have left standing at our end only.
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use quinn::ConnectionError;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::inbox::{Report, Unread};
use super::quic::{Close, GREETING_TIMEOUT, Wire, check_versions};
use super::telemetry::{Counters, count};
use super::{Shared, snapshots};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::hello::{HelloReply, NodeHello};
use crate::protocol::id::NodeId;
use crate::protocol::message::{Message, PeerFrame};
use crate::protocol::parcel::Parcel;
use crate::protocol::shard_map::{Membership, NodeInfo};
use crate::security::tls::node_name;

/// What waits for one peer at most. Unit: bytes.
const OUTBOX_BYTES_MAX: usize = 32 << 20;
/// A frame to a peer is closed when it is over this. Unit: bytes.
const FRAME_BYTES: usize = 1 << 20;
/// Read from a peer and not yet taken by the driver. Unit: bytes.
const UNREAD_BYTES_MAX: usize = 32 << 20;
/// Before the first attempt to reconnect; doubled after each.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The node with the higher id leaves dialling to the other for this long.
const PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(FRAME_BYTES + crate::daemon::core::limits::ENTRY_BYTES_MAX < codec::FRAME_BYTES_MAX);

/// One connection to a peer.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) connection: quinn::Connection,
    /// Bytes that the driver has not taken yet.
    pub(super) unread: Unread,
    /// What it said of itself.
    pub(super) hello: NodeHello,
    outbox: Mutex<Outbox>,
    wake: Notify,
}

#[derive(Default)]
struct Outbox {
    messages: VecDeque<(Message, usize)>,
    bytes: usize,
    closed: bool,
}

impl Link {
    /// Queues messages. Over the bound the oldest Raft messages go first: Raft sends them again; then the oldest others.
    pub(super) fn send(&self, messages: &mut Vec<Message>, counters: &Counters) {
        let mut outbox = self.lock();
        if outbox.closed {
            counters
                .messages_unsent
                .fetch_add(messages.len() as u64, Ordering::Relaxed);
            messages.clear();
            return;
        }
        for message in messages.drain(..) {
            let size = size_of(&message);
            outbox.bytes += size;
            outbox.messages.push_back((message, size));
        }
        while outbox.bytes > OUTBOX_BYTES_MAX {
            let is_raft = |(message, _): &(Message, usize)| matches!(message, Message::Raft(_));
            let oldest = outbox.messages.iter().position(is_raft).unwrap_or(0);
            let Some((_, size)) = outbox.messages.remove(oldest) else {
                break;
            };
            outbox.bytes -= size;
            count(&counters.messages_shed);
        }
        drop(outbox);
        self.wake.notify_one();
    }

    /// Takes what fits a frame.
    fn take(&self) -> (Vec<Message>, bool) {
        let mut outbox = self.lock();
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while let Some((_, size)) = outbox.messages.front() {
            if !messages.is_empty() && bytes + size > FRAME_BYTES {
                break;
            }
            bytes += size;
            messages.extend(outbox.messages.pop_front().map(|(message, _)| message));
        }
        outbox.bytes -= bytes;
        (messages, outbox.closed)
    }

    fn close_outbox(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.messages.clear();
        outbox.bytes = 0;
        drop(outbox);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About what a message takes on the wire. Unit: bytes.
fn size_of(message: &Message) -> usize {
    const HEADER: usize = 64;
    HEADER
        + match message {
            Message::Raft(raft) => {
                let entries: usize = raft.message.entries.iter().map(|e| e.data.len() + 24).sum();
                entries + raft.message.context.len()
            }
            Message::Forward { request, .. } => request_bytes(request),
            Message::ForwardReply { response, .. } => response_bytes(response),
            Message::Deliver { parcels, .. } => parcels.iter().map(Parcel::size).sum(),
            Message::Delivered { receipts, .. } => receipts.len() * 12,
            Message::Summed { .. } => 256,
            Message::Damaged { why, .. } => why.len(),
            Message::Report(report) => (report.leads.len() + 8 * report.news.len()) * 16,
            Message::Sleep(_) | Message::SleepAccepted(_) => 0,
            Message::Map(view) => (view.shards.len() * 8 + view.leaders.len() + view.nodes.len() * 8) * 16,
        }
}

fn request_bytes(request: &crate::protocol::request::Request) -> usize {
    use crate::protocol::request::Request;
    match request {
        Request::Write(write) => write.change.size(),
        _ => 0,
    }
}

fn response_bytes(response: &crate::protocol::request::Response) -> usize {
    use crate::protocol::request::Response;
    match response {
        Response::Entity(Some(entity)) => entity.document.len(),
        Response::Changed(changed) => changed
            .items
            .iter()
            .map(|item| item.document.as_ref().map_or(0, bytes::Bytes::len) + item.key.len() + 64)
            .sum(),
        Response::Listed { items, .. } => items.iter().map(|item| item.document.len() + 64).sum(),
        _ => 0,
    }
}

/// Who the peers are, and who of them is connected.
pub(super) struct Peers {
    me: NodeId,
    known: Mutex<BTreeMap<NodeId, Known>>,
}

#[derive(Default)]
struct Known {
    address: String,
    /// As the directory knows it; 0 where it does not.
    store_id: u128,
    gone: bool,
    dialling: bool,
    link: Option<Arc<Link>>,
    changed: Arc<Notify>,
}

impl Peers {
    pub(super) fn new(me: NodeId) -> Self {
        Self {
            me,
            known: Mutex::default(),
        }
    }

    /// Takes in what the core knows of the members: new ones are dialled, changed ones under their new address, and one
    /// that is not the one the directory knows is cut off.
    pub(super) fn learn<'a>(&self, shared: &Arc<Shared>, nodes: impl Iterator<Item = &'a NodeInfo>) {
        let mut known = self.lock();
        for node in nodes.filter(|node| node.id != self.me) {
            let peer = known.entry(node.id).or_default();
            // One that waits to be let in is nobody yet.
            peer.gone = matches!(node.membership, Membership::Gone | Membership::Pending);
            if peer.address != node.address {
                peer.address.clone_from(&node.address);
                peer.changed.notify_one();
            }
            if node.store_id != 0 {
                peer.store_id = node.store_id;
            }
            if let Some(link) = peer.link.as_ref().filter(|_| peer.gone || peer.is_other(&peer.link)) {
                let close = if peer.gone { Close::NotProven } else { Close::OtherLife };
                link.connection
                    .close(close.code(), b"you are not the node that the directory knows");
            }
            if !peer.dialling && !peer.gone {
                peer.dialling = true;
                tokio::spawn(dial(shared.clone(), node.id));
            }
        }
    }

    /// Whether a node may connect: it is no former member, and its store is the one it registered with.
    pub(super) fn check(&self, claim: &NodeHello) -> Result<(), WireError> {
        if claim.node == self.me {
            return Err(WireError::new(
                Code::NotProven,
                format!("{} is this node; another one must not run under the same id", self.me),
            ));
        }
        let known = self.lock();
        let Some(peer) = known.get(&claim.node) else {
            return Ok(());
        };
        if peer.gone {
            return Err(WireError::new(
                Code::Removed,
                format!("{} has left the cluster", claim.node),
            ));
        }
        if peer.store_id != 0 && peer.store_id != claim.store_id {
            return Err(WireError::new(
                Code::OtherLife,
                format!(
                    "{} registered with another store; its disk was wiped, restored or cloned, so it must not count as \
                     the node it was. Let the host join again under a new id",
                    claim.node
                ),
            ));
        }
        Ok(())
    }

    fn attach(&self, link: &Arc<Link>) {
        let mut known = self.lock();
        let peer = known.entry(link.node).or_default();
        if let Some(old) = peer.link.replace(link.clone()) {
            old.connection
                .close(Close::Replaced.code(), b"replaced by a newer connection");
        }
        peer.changed.notify_one();
    }

    fn detach(&self, link: &Arc<Link>) {
        if let Some(peer) = self.lock().get_mut(&link.node)
            && peer.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
        {
            peer.link = None;
            peer.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_other(&self, link: &Option<Arc<Link>>) -> bool {
        link.as_ref()
            .is_some_and(|link| self.store_id != 0 && link.hello.store_id != self.store_id)
    }
}

/// Keeps one peer connected for as long as it is a member.
async fn dial(shared: Arc<Shared>, node: NodeId) {
    let mut backoff = BACKOFF_MIN;
    let mut told = String::new();
    loop {
        let (address, connected, gone, changed) = {
            let known = shared.peers.lock();
            let Some(peer) = known.get(&node) else { return };
            (
                peer.address.clone(),
                peer.link.is_some(),
                peer.gone,
                peer.changed.clone(),
            )
        };
        if gone {
            if let Some(peer) = shared.peers.lock().get_mut(&node) {
                peer.dialling = false;
            }
            return;
        }
        if connected || address.is_empty() {
            changed.notified().await;
            // The other side's turn, for a while.
            if shared.node > node && !connected_now(&shared, node) {
                let _ = timeout(jittered(PATIENCE), changed.notified()).await;
            }
            continue;
        }
        if shared.node > node && backoff == BACKOFF_MIN {
            backoff = BACKOFF_MIN * 2;
            if timeout(jittered(PATIENCE), changed.notified()).await.is_ok() {
                continue;
            }
        }
        match connect(&shared, node, &address).await {
            Ok((wire, hello)) => {
                backoff = BACKOFF_MIN;
                told.clear();
                converse(&shared, wire, hello).await;
            }
            Err(error) => {
                // Once per reason: a peer may be down for days.
                let text = error.to_string();
                if told != text {
                    tracing::warn!(%node, %address, "cannot connect to {node}: {text}");
                    told = text;
                }
                let _ = timeout(jittered(backoff), changed.notified()).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

fn connected_now(shared: &Shared, node: NodeId) -> bool {
    shared.peers.lock().get(&node).is_some_and(|peer| peer.link.is_some())
}

/// Half to one and a half of it, so that nodes that failed together do not return together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64())
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("`{0}` can't be resolved: {1}")]
    Resolve(String, String),
    #[error("{0}")]
    Start(#[from] quinn::ConnectError),
    #[error("no answer within {GREETING_TIMEOUT:?}")]
    TimedOut,
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Wire(#[from] super::quic::WireReadError),
    #[error("its hello could not be sent: {0}")]
    Send(#[from] std::io::Error),
    #[error("it refuses us: {0}")]
    Refused(WireError),
    #[error("it is not who it should be: {0}")]
    NotIt(WireError),
}

async fn connect(shared: &Shared, node: NodeId, address: &str) -> Result<(Wire, NodeHello), DialError> {
    let resolve = |why: String| DialError::Resolve(address.to_owned(), why);
    let resolved = tokio::net::lookup_host(address)
        .await
        .map_err(|error| resolve(error.to_string()))?
        .next()
        .ok_or_else(|| resolve("no address".to_owned()))?;
    let greeting = async {
        let connection = shared.endpoint.connect(resolved, &node_name(node))?.await?;
        let (send, recv) = connection.open_bi().await?;
        let mut wire = Wire::new(connection, send, recv);
        wire.send(&shared.hello()).await?;
        let reply = match wire.receive().await {
            Ok(reply) => reply,
            Err(error) => {
                // What the other side said when it closed tells more than that the stream ended.
                return Err(match wire.connection.close_reason() {
                    Some(reason) => reason.into(),
                    None => error.into(),
                });
            }
        };
        match judge(shared, node, reply) {
            Ok(hello) => Ok((wire, hello)),
            Err(error) => {
                // So that it can tell its operator, too.
                let close = match &error {
                    DialError::NotIt(error) if error.code == Code::OtherLife => Close::OtherLife,
                    _ => Close::NotProven,
                };
                wire.connection.close(close.code(), error.to_string().as_bytes());
                Err(error)
            }
        }
    };
    timeout(GREETING_TIMEOUT, greeting)
        .await
        .map_err(|_| DialError::TimedOut)?
}

/// Whether the one that answered is the peer that was dialled, with the store that it registered with.
fn judge(shared: &Shared, node: NodeId, reply: HelloReply) -> Result<NodeHello, DialError> {
    let not_it = |code, text| Err(DialError::NotIt(WireError::new(code, text)));
    match reply {
        HelloReply::Refused(error) => {
            if error.code == Code::Removed {
                shared.inbox.push(Report::Removed);
            }
            if error.code == Code::OtherLife {
                shared.inbox.push(Report::Refused(error.text.clone()));
            }
            Err(DialError::Refused(error))
        }
        HelloReply::Welcome { cluster, .. } if cluster != shared.cluster => not_it(
            Code::OtherCluster,
            format!(
                "{node} belongs to cluster {cluster}, {} to {}",
                shared.node, shared.cluster
            ),
        ),
        // Its certificate says so: it was dialled by its name.
        HelloReply::Welcome { node: it, .. } if it.node != node => not_it(
            Code::NotProven,
            format!("you say you are {}, your certificate says {node}", it.node),
        ),
        HelloReply::Welcome { protocol, node: it, .. } => {
            check_versions((protocol, protocol)).map_err(DialError::NotIt)?;
            shared.peers.check(&it).map_err(DialError::NotIt)?;
            Ok(it)
        }
    }
}

/// Exchanges messages with a greeted peer until the connection ends.
pub(super) async fn converse(shared: &Arc<Shared>, wire: Wire, hello: NodeHello) {
    let node = hello.node;
    let link = Arc::new(Link {
        node,
        connection: wire.connection,
        unread: Unread::new(UNREAD_BYTES_MAX),
        hello,
        outbox: Mutex::default(),
        wake: Notify::new(),
    });
    shared.peers.attach(&link);
    shared.inbox.push(Report::PeerUp(link.clone()));
    tracing::debug!(%node, from = %link.connection.remote_address(), "connected to {node}");
    let writer = tokio::spawn(write(shared.clone(), link.clone(), wire.send));
    let snapshots = tokio::spawn(snapshots::accept(shared.clone(), link.clone()));
    let mut frames = wire.frames;
    let end = loop {
        link.unread.has_room().await;
        let mut batch: Vec<PeerFrame> = Vec::new();
        match frames.batch(&mut batch).await {
            Ok(bytes) => {
                link.unread.add(bytes);
                shared.inbox.push(Report::Received {
                    link: link.clone(),
                    persisted: batch.iter().map(|frame| frame.persisted).max().unwrap_or(0),
                    messages: batch.into_iter().flat_map(|frame| frame.messages).collect(),
                    bytes,
                });
            }
            Err(error) => break error,
        }
    };
    end.count(shared);
    // Before it is closed from this side, which would take the reason's place.
    let reason = link.connection.close_reason();
    end.close(&link.connection);
    link.connection.close(Close::Stopping.code(), b"");
    match reason {
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == Close::NotProven.code() => {
            tracing::error!(%node, "{node} does not accept this node: {}", String::from_utf8_lossy(&close.reason));
        }
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == Close::OtherLife.code() => {
            let why = String::from_utf8_lossy(&close.reason).into_owned();
            shared.inbox.push(Report::Refused(why));
        }
        Some(reason) => tracing::debug!(%node, "connection to {node} ended: {reason}"),
        None => tracing::debug!(%node, "connection to {node} ended: {end}"),
    }
    link.close_outbox();
    writer.abort();
    snapshots.abort();
    shared.peers.detach(&link);
    shared.inbox.push(Report::PeerDown(link));
}

async fn write(shared: Arc<Shared>, link: Arc<Link>, mut send: quinn::SendStream) {
    let too_long = AtomicBool::new(false);
    loop {
        let (messages, closed) = link.take();
        if closed {
            return;
        }
        if messages.is_empty() {
            link.wake.notified().await;
            continue;
        }
        let mut frame = BytesMut::new();
        // Read behind the messages: what they acknowledge was synced before they were made.
        let persisted = shared.persisted.load(Ordering::Acquire);
        if let Err(error) = codec::encode_frame(&PeerFrame { persisted, messages }, &mut frame) {
            // The core's limits keep messages below a frame; one that is not is lost, as any message may be.
            if !too_long.swap(true, Ordering::Relaxed) {
                tracing::error!(node = %link.node, "messages can't be sent: {error}");
            }
            continue;
        }
        if send.write_chunk(frame.freeze()).await.is_err() {
            return;
        }
    }
}
