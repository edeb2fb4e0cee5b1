//! One QUIC connection to one node: a writer task, a reader task, and the pipeline between them.
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::time::timeout;

use super::error::ConnectError;
use super::options::ConnectOptions;
use super::pipeline::Pipeline;
use crate::protocol::codec;
use crate::protocol::error::WireError;
use crate::protocol::hello::{FEATURE_LEVEL, Hello, HelloReply, PROTOCOL_NEWEST, PROTOCOL_OLDEST};
use crate::protocol::id::{ClusterId, NodeId};
use crate::protocol::request::ResponseFrame;

/// The name in every node's certificate.
const ANY_NODE: &str = "isx.internal";

/// Why a node was not reached.
#[derive(Debug, Clone)]
pub(super) enum DialError {
    /// It did not answer in time, the address is unknown, and the like.
    Unreachable(String),
    /// A certificate was not accepted.
    Certificate(String),
    /// The node said no.
    Refused(WireError),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) | Self::Certificate(text) => f.write_str(text),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

/// An open connection.
pub(super) struct Connection {
    /// Who is at the other end.
    pub(super) node: NodeId,
    /// The cluster it belongs to.
    pub(super) cluster: ClusterId,
    /// Its program and version.
    pub(super) software: String,
    /// The address that was dialled.
    pub(super) address: String,
    /// Requests and answers.
    pub(super) pipeline: Pipeline,
    /// Nothing arrives although requests wait.
    pub(super) is_silent: AtomicBool,
    quic: quinn::Connection,
}

impl Connection {
    /// Dials `address`. With `node` set, the other end must prove to be that node.
    pub(super) async fn dial(
        endpoint: &Endpoint,
        address: &str,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
        limit: Duration,
    ) -> Result<Arc<Self>, DialError> {
        match timeout(limit, Self::dial_unbounded(endpoint, address, node, cluster)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Unreachable(format!("no answer within {limit:?}"))),
        }
    }

    async fn dial_unbounded(
        endpoint: &Endpoint,
        address: &str,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
    ) -> Result<Arc<Self>, DialError> {
        let name = match node {
            Some(node) => format!("{node}.node.isx.internal"),
            None => ANY_NODE.to_owned(),
        };
        let mut last = DialError::Unreachable("the name has no address".to_owned());
        let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(address).await {
            Ok(found) => found.collect(),
            Err(error) => {
                return Err(DialError::Unreachable(format!("cannot look the address up: {error}")));
            }
        };
        for socket in addresses {
            let connecting = match endpoint.connect(socket, &name) {
                Ok(connecting) => connecting,
                Err(error) => {
                    last = DialError::Unreachable(error.to_string());
                    continue;
                }
            };
            let quic = match connecting.await {
                Ok(quic) => quic,
                Err(error) => {
                    last = explain(&error);
                    continue;
                }
            };
            return Self::greet(quic, address, node, cluster).await;
        }
        Err(last)
    }

    async fn greet(
        quic: quinn::Connection,
        address: &str,
        expected: Option<NodeId>,
        cluster: Option<ClusterId>,
    ) -> Result<Arc<Self>, DialError> {
        let hello = Hello {
            protocol: (PROTOCOL_OLDEST, PROTOCOL_NEWEST),
            cluster,
            feature_level: FEATURE_LEVEL,
            node: None,
            software: concat!("isx-client ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let (send, recv, reply, rest) = match exchange_hello(&quic, &hello).await {
            Ok(exchanged) => exchanged,
            // With TLS 1.3 the other side judges our certificate after our handshake is done: its verdict is the
            // reason of the close, not of the failed read.
            Err(text) => {
                return Err(match quic.close_reason() {
                    Some(reason) => explain(&reason),
                    None => DialError::Unreachable(text),
                });
            }
        };
        let HelloReply::Welcome {
            cluster,
            node,
            software,
            ..
        } = reply
        else {
            let HelloReply::Refused(error) = reply else {
                unreachable!("two variants")
            };
            return Err(DialError::Refused(error));
        };
        if expected.is_some_and(|expected| expected != node.node) {
            return Err(DialError::Unreachable(format!(
                "another node answers there: {}",
                node.node
            )));
        }
        let connection = Arc::new(Self {
            node: node.node,
            cluster,
            software,
            address: address.to_owned(),
            pipeline: Pipeline::new(Instant::now()),
            is_silent: AtomicBool::new(false),
            quic,
        });
        tokio::spawn(write(connection.clone(), send));
        tokio::spawn(read(connection.clone(), recv, rest));
        Ok(connection)
    }

    /// Closes the connection; every waiting caller hears of it.
    pub(super) fn close(&self, reason: &str) {
        self.pipeline.lose(reason);
        self.quic.close(0u32.into(), reason.as_bytes());
    }
}

/// Opens the one stream, says hello and hears the answer. Also gives back what arrived behind the answer.
async fn exchange_hello(
    quic: &quinn::Connection,
    hello: &Hello,
) -> Result<(SendStream, RecvStream, HelloReply, BytesMut), String> {
    let (mut send, mut recv) = quic.open_bi().await.map_err(|e| e.to_string())?;
    let mut frame = BytesMut::new();
    codec::encode_frame(hello, &mut frame).map_err(|e| e.to_string())?;
    send.write_chunk(frame.freeze()).await.map_err(|e| e.to_string())?;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(content) = codec::take_frame(&mut buffer).map_err(|e| e.to_string())? {
            let reply = codec::decode(&content).map_err(|e| e.to_string())?;
            return Ok((send, recv, reply, buffer));
        }
        match recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err("the node ended the stream before it answered".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Writes whatever has gathered, as one piece, until the connection is lost.
async fn write(connection: Arc<Connection>, mut stream: SendStream) {
    loop {
        match connection.pipeline.take_output() {
            Some(frames) => {
                if let Err(error) = stream.write_chunk(frames).await {
                    connection.close(&reason(&connection.quic, &error.to_string()));
                    return;
                }
            }
            None if connection.pipeline.lost().is_some() => return,
            None => connection.pipeline.output.notified().await,
        }
    }
}

/// Chunks taken from the stream at once; a chunk is what one datagram carried.
const CHUNKS: usize = 32;

/// Hands every answer to its caller, until the connection is lost.
async fn read(connection: Arc<Connection>, mut stream: RecvStream, mut buffer: BytesMut) {
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    let mut answers = Vec::new();
    let mut wakers = Vec::new();
    let error = loop {
        let taken = match stream.read_chunks(&mut chunks).await {
            Ok(Some(taken)) => taken,
            Ok(None) => break "the node ended the stream".to_owned(),
            Err(error) => break error.to_string(),
        };
        for chunk in &mut chunks[..taken] {
            buffer.extend_from_slice(&std::mem::take(chunk));
        }
        if let Err(error) = take_answers(&mut buffer, &mut answers) {
            break format!("the node sent something that is no answer: {error}");
        }
        if connection.is_silent.load(Ordering::Relaxed) {
            connection.is_silent.store(false, Ordering::Relaxed);
        }
        connection.pipeline.answered(Instant::now(), &mut answers, &mut wakers);
    };
    connection.close(&reason(&connection.quic, &error));
}

fn take_answers(buffer: &mut BytesMut, answers: &mut Vec<ResponseFrame>) -> Result<(), codec::CodecError> {
    while let Some(content) = codec::take_frame(buffer)? {
        answers.push(codec::decode(&content)?);
    }
    Ok(())
}

fn reason(quic: &quinn::Connection, otherwise: &str) -> String {
    quic.close_reason()
        .map_or_else(|| otherwise.to_owned(), |reason| explain(&reason).to_string())
}

/// What a failed connection means, in words that name the certificate where it was one.
fn explain(error: &ConnectionError) -> DialError {
    let (who, code, text) = match error {
        ConnectionError::TransportError(error) => ("this client", u64::from(error.code), error.reason.clone()),
        ConnectionError::ConnectionClosed(close) => (
            "the node",
            u64::from(close.error_code),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        ConnectionError::ApplicationClosed(close) => {
            let text = String::from_utf8_lossy(&close.reason);
            let text = if text.is_empty() { "no reason given" } else { &*text };
            return DialError::Unreachable(format!("the node closed the connection: {text}"));
        }
        ConnectionError::TimedOut => return DialError::Unreachable("no answer: the connection timed out".to_owned()),
        other => return DialError::Unreachable(other.to_string()),
    };
    // RFC 9001, section 4.8: TLS alert descriptions are the low byte of a QUIC error code 0x01xx.
    let alert = match code {
        0x100..=0x1ff => (code & 0xff) as u8,
        _ => return DialError::Unreachable(format!("{who} ended the connection (QUIC error {code:#x}): {text}")),
    };
    let why = match alert {
        42 | 43 | 46 => "a certificate that it can't accept",
        44 => "a revoked certificate",
        45 => "an expired certificate",
        48 => "a certificate of another authority: the context and the node belong to different clusters",
        49 => "access denied",
        116 => "no certificate where one is required",
        120 => {
            return DialError::Unreachable(
                "what answers there does not speak isx's protocol (ALPN `isx/1`)".to_owned(),
            );
        }
        _ => return DialError::Unreachable(format!("{who} ended the TLS handshake (alert {alert}): {text}")),
    };
    let text = if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    };
    DialError::Certificate(format!("{who} was shown {why}{text}"))
}

/// A UDP endpoint that dials with this identity.
pub(super) fn endpoint(options: &ConnectOptions) -> Result<Endpoint, ConnectError> {
    let config = super::transport::client_config(&options.identity, &options.endpoints)?;
    let mut endpoint = super::transport::bind().map_err(ConnectError::Socket)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
