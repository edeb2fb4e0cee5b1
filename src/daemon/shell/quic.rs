//! The endpoint: sockets, transport settings, who is let in, and the hello that opens each connection.
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{AckFrequencyConfig, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig};
use quinn::{RecvStream, SendStream, TransportConfig, VarInt};
use ring::{digest, hmac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::telemetry::count;
use super::{Shared, clients, peers};
use crate::protocol::codec::{self, CodecError};
use crate::protocol::error::{Code, WireError};
use crate::protocol::hello::{FEATURE_LEVEL, Hello, HelloReply, NodeHello, PROTOCOL_NEWEST, PROTOCOL_OLDEST};
use crate::protocol::message::Role;
use crate::security::tls::PeerIdentity;

/// A caller has this long for its handshake and hello.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(3);
/// What one read takes from a stream at most. Unit: bytes.
const READ_BYTES: usize = 64 << 10;
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// From so many on a caller must first prove its address: an attacker with a false one gets nowhere.
const CONNECTIONS_UNPROVEN: usize = 256;
/// Streams that a caller may have open at a time beside its first.
const STREAMS_MAX: u32 = 16;
/// What may be under way on one stream. Unit: bytes.
const STREAM_WINDOW: u32 = 16 << 20;
/// What may be under way on one connection. Unit: bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Packets that may arrive before one is acknowledged, so that a batch costs one acknowledgement.
const ACK_EVERY: u32 = 10;
/// Longest wait before an acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Socket buffers asked for; the kernel may give less. Unit: bytes.
const SOCKET_BUFFER: usize = 4 << 20;

/// Why a connection is closed, for the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// The node stops.
    Stopping = 1,
    /// The hello was refused, with the reason in it.
    Refused = 2,
    /// Something came in that is no frame or no message.
    Garbage = 3,
    /// A frame was too long.
    Oversize = 4,
    /// Answers were not read.
    SlowReader = 5,
    /// The same peer has connected again.
    Replaced = 6,
    /// The peer is not what the directory knows.
    NotProven = 7,
    /// The peer's disk was wiped, restored or cloned.
    OtherLife = 8,
}

impl Close {
    /// The code on the wire.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Settings of every connection of a node, whoever dials.
pub(super) fn transport(mtu_max: u16, idle: Duration) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(mtu_max);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY))
        .max_ack_delay(Some(ACK_DELAY));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("checked by the configuration")))
        .keep_alive_interval(Some(idle / 3))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        // Raft must not share a packet's place with bulk of the same priority; streams here have none.
        .send_fairness(false)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(None);
    transport
}

/// Binds the node's one socket. `key_pem` seeds what must survive a restart: with it, a peer that still believes in the
/// connection to our last life is told at once that it is gone.
pub(super) fn bind(
    listen: SocketAddr,
    key_pem: &str,
    mtu_max: u16,
    mut server: quinn::ServerConfig,
    transport: Arc<TransportConfig>,
) -> io::Result<Endpoint> {
    let secret = digest::digest(&digest::SHA256, key_pem.as_bytes());
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref());
    let cid_key = hmac::sign(&reset_key, b"isx connection ids 1");
    let cid_key = u64::from_le_bytes(*cid_key.as_ref().first_chunk().expect("32 bytes"));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(cid_key)));
    config
        .max_udp_payload_size(mtu_max.max(1472))
        .map_err(io::Error::other)?;
    server.transport_config(transport);
    let socket = UdpSocket::bind(listen)?;
    let buffers = quinn::udp::UdpSockRef::from(&socket);
    if let Ok(state) = quinn::udp::UdpSocketState::new(buffers) {
        // Less than asked for is fine: the default is.
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
    }
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
    Endpoint::new(config, Some(server), socket, runtime)
}

/// Lets callers in for as long as the endpoint is open.
pub(super) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let open = shared.endpoint.open_connections();
        if open > CONNECTIONS_MAX {
            count(&shared.counters.connections_shed);
            incoming.refuse();
        } else if open > CONNECTIONS_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
            // Cannot fail: `may_retry`.
            let _ = incoming.retry();
        } else {
            tokio::spawn(greet(shared.clone(), incoming));
        }
    }
}

/// Handshake and hello of a caller; then it is a peer or a client.
async fn greet(shared: Arc<Shared>, incoming: Incoming) {
    let from = incoming.remote_address();
    let greeted = timeout(GREETING_TIMEOUT, async {
        let connection = incoming.await.map_err(GreetError::Connection)?;
        let (send, recv) = connection.accept_bi().await.map_err(GreetError::Connection)?;
        let mut wire = Wire::new(connection, send, recv);
        let hello: Hello = wire.receive().await.map_err(GreetError::Wire)?;
        Ok::<_, GreetError>((wire, hello))
    })
    .await;
    let (mut wire, hello) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => {
            count(&shared.counters.handshakes_failed);
            if let GreetError::Wire(error) = &error {
                error.count(&shared);
            }
            tracing::debug!(%from, "a caller was turned away: {error}");
            return;
        }
        Err(_) => {
            count(&shared.counters.handshakes_failed);
            tracing::debug!(%from, "a caller was too slow with its handshake or hello");
            return;
        }
    };
    let identity = match shared.names.identify(&wire.connection) {
        Ok(identity) => judge(&shared, &hello, identity),
        Err(error) => Err(WireError::new(Code::NotProven, super::disk::chain(&error))),
    };
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => {
            count(&shared.counters.hellos_refused);
            tracing::warn!(%from, "refused: {error}");
            let reason = error.to_string();
            if wire.send(&HelloReply::Refused(error)).await.is_ok() {
                wire.finish().await;
            }
            wire.connection.close(Close::Refused.code(), reason.as_bytes());
            return;
        }
    };
    if let Err(error) = wire.send(&shared.welcome()).await {
        tracing::debug!(%from, "a caller left during its hello: {error}");
        return;
    }
    count(&shared.counters.connections);
    match (identity.node, hello.node) {
        (Some(_), Some(it)) => peers::converse(&shared, wire, it).await,
        _ => clients::serve(&shared, wire, identity.principal).await,
    }
}

/// Whether a caller is what it says and belongs here. Nothing about shards or leaders is asked.
fn judge(shared: &Shared, hello: &Hello, identity: PeerIdentity) -> Result<PeerIdentity, WireError> {
    check_versions(hello.protocol)?;
    let other = hello.cluster.filter(|cluster| *cluster != shared.cluster);
    if let Some(other) = other {
        return Err(WireError::new(
            Code::OtherCluster,
            format!("you speak of cluster {other}; this is {}", shared.cluster),
        ));
    }
    if let Some(claim) = &hello.node {
        if identity.node != Some(claim.node) {
            return Err(WireError::new(
                Code::NotProven,
                format!(
                    "you say you are {}; your certificate says {}",
                    claim.node,
                    describe(&identity)
                ),
            ));
        }
        if hello.cluster.is_none() {
            return Err(WireError::new(Code::OtherCluster, "a node must name its cluster"));
        }
        shared.peers.check(claim)?;
    }
    Ok(identity)
}

fn describe(identity: &PeerIdentity) -> String {
    match (identity.node, identity.principal.role) {
        (Some(node), _) => format!("node {node}"),
        (None, Role::Nobody) => "nothing: there is none".to_owned(),
        (None, role) => format!("{:?} `{}`", role, identity.principal.name).to_lowercase(),
    }
}

/// The protocol version that both speak.
pub(super) fn check_versions((oldest, newest): (u32, u32)) -> Result<u32, WireError> {
    let best = newest.min(PROTOCOL_NEWEST);
    if best < oldest.max(PROTOCOL_OLDEST) {
        return Err(WireError::new(
            Code::ProtocolVersion,
            format!("you speak versions {oldest} to {newest}; this node {PROTOCOL_OLDEST} to {PROTOCOL_NEWEST}"),
        ));
    }
    Ok(best)
}

impl Shared {
    /// What this node says of itself when it dials another.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            protocol: (PROTOCOL_OLDEST, PROTOCOL_NEWEST),
            cluster: Some(self.cluster),
            feature_level: FEATURE_LEVEL,
            node: Some(self.node_hello()),
            software: SOFTWARE.to_owned(),
        }
    }

    fn welcome(&self) -> HelloReply {
        HelloReply::Welcome {
            protocol: PROTOCOL_NEWEST,
            cluster: self.cluster,
            node: self.node_hello(),
            feature_level: FEATURE_LEVEL,
            software: SOFTWARE.to_owned(),
        }
    }

    fn node_hello(&self) -> NodeHello {
        NodeHello {
            node: self.node,
            store_id: self.store_id,
            life: self.life,
            boot: self.boot,
            persisted: self.started_at,
        }
    }
}

const SOFTWARE: &str = concat!("isxd ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("{0}")]
    Connection(ConnectionError),
    #[error("{0}")]
    Wire(WireReadError),
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireReadError {
    /// The other end has finished, or is gone.
    #[error("the other end went away: {0}")]
    Gone(String),
    /// It sent something else.
    #[error("{0}")]
    Codec(#[from] CodecError),
}

impl WireReadError {
    /// Counts what was wrong with what came in.
    pub(super) fn count(&self, shared: &Shared) {
        match self {
            WireReadError::Gone(_) => {}
            WireReadError::Codec(CodecError::TooLong(_)) => count(&shared.counters.frames_oversize),
            WireReadError::Codec(_) => count(&shared.counters.garbage),
        }
    }

    /// Tells the other end, where there is something to tell.
    pub(super) fn close(&self, connection: &quinn::Connection) {
        match self {
            WireReadError::Gone(_) => {}
            WireReadError::Codec(error @ CodecError::TooLong(_)) => {
                connection.close(Close::Oversize.code(), error.to_string().as_bytes());
            }
            WireReadError::Codec(error) => connection.close(Close::Garbage.code(), error.to_string().as_bytes()),
        }
    }
}

/// Both directions of a stream, frame by frame.
pub(super) struct Wire {
    pub(super) connection: quinn::Connection,
    pub(super) send: SendStream,
    pub(super) frames: FrameReader,
}

impl Wire {
    pub(super) fn new(connection: quinn::Connection, send: SendStream, recv: RecvStream) -> Self {
        Self {
            connection,
            send,
            frames: FrameReader::new(recv),
        }
    }

    /// Writes one frame.
    pub(super) async fn send<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut frame = BytesMut::new();
        codec::encode_frame(value, &mut frame).map_err(io::Error::other)?;
        self.send.write_chunk(frame.freeze()).await.map_err(io::Error::other)
    }

    /// Reads one frame.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, WireReadError> {
        let frame = self.frames.next().await?;
        Ok(codec::decode(&frame)?)
    }

    /// Waits a little for the other end to have read everything.
    pub(super) async fn finish(&mut self) {
        if self.send.finish().is_ok() {
            let _ = timeout(Duration::from_millis(500), self.send.stopped()).await;
        }
    }
}

/// Frames off a stream, read in big pieces.
pub(super) struct FrameReader {
    recv: RecvStream,
    buffer: BytesMut,
}

impl FrameReader {
    pub(super) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            buffer: BytesMut::new(),
        }
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Result<Bytes, WireReadError> {
        loop {
            if let Some(frame) = codec::take_frame(&mut self.buffer)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Waits for at least one whole frame and decodes all that are there. Returns how many bytes they were.
    pub(super) async fn batch<T: DeserializeOwned>(&mut self, into: &mut Vec<T>) -> Result<usize, WireReadError> {
        let mut bytes = 0;
        loop {
            while let Some(frame) = codec::take_frame(&mut self.buffer)? {
                bytes += frame.len();
                into.push(codec::decode(&frame)?);
            }
            if !into.is_empty() {
                return Ok(bytes);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), WireReadError> {
        // Gives the same memory back as long as no frame of it is held.
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(READ_BYTES);
        }
        match self.recv.read_buf(&mut self.buffer).await {
            Ok(0) => Err(WireReadError::Gone("it has finished".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(WireReadError::Gone(error.to_string())),
        }
    }
}
