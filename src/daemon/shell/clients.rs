//! Clients and operators: requests in, answers out, each connection within bounds.
//!
//! A session is one stream of a connection. Its reader parses everything that one read brought and hands it to the
//! driver in one piece; the driver appends answers to the session's buffer, and the writer sends whatever has gathered.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::Shared;
use super::inbox::{Report, Unread};
use super::quic::{Close, FrameReader, Wire};
use super::telemetry::count;
use crate::daemon::core::input::SessionId;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::message::{Principal, Role};
use crate::protocol::request::{Request, Response, ResponseFrame};

/// Most requests of one session that have no answer yet; more are not read. Unit: requests.
const IN_HAND_MAX: usize = 8192;
/// The same for callers without a certificate.
const IN_HAND_NOBODY_MAX: usize = 4;
/// Read and not yet taken by the driver, per session. Unit: bytes.
const UNREAD_BYTES_MAX: usize = 16 << 20;
/// Answers that wait for a client to read them. One that lets more gather is disconnected. Unit: bytes.
const UNSENT_BYTES_MAX: usize = 64 << 20;

/// One stream of a client.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) principal: Principal,
    /// Requests without an answer.
    pub(super) in_hand: Unread,
    /// Bytes that the driver has not taken yet.
    pub(super) unread: Unread,
    answers: Mutex<Answers>,
    wake: Notify,
    connection: quinn::Connection,
}

#[derive(Default)]
struct Answers {
    buffer: BytesMut,
    closed: bool,
}

/// What became of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// First in the buffer: the writer must be woken when the batch is complete.
    First,
    /// Behind others.
    Behind,
    /// The client is gone, or was sent away because it does not read.
    Dropped,
}

impl Session {
    /// Adds an answer to what is sent next.
    pub(super) fn answer(&self, shared: &Shared, frame: &ResponseFrame) -> Appended {
        self.in_hand.sub(1);
        let mut answers = self.lock();
        if answers.closed {
            return Appended::Dropped;
        }
        let was_empty = answers.buffer.is_empty();
        if let Err(error) = codec::encode_frame(frame, &mut answers.buffer) {
            // The core bounds its answers; one that is over is its mistake, and the client must not wait for it.
            tracing::error!(session = self.id.0, tag = frame.tag, "an answer can't be sent: {error}");
            let instead = ResponseFrame {
                tag: frame.tag,
                response: Response::Error(WireError::new(
                    Code::Internal,
                    format!("the answer can't be sent: {error}"),
                )),
                hint: None,
            };
            codec::encode_frame(&instead, &mut answers.buffer).expect("a short error fits");
        }
        if answers.buffer.len() > UNSENT_BYTES_MAX {
            answers.closed = true;
            answers.buffer = BytesMut::new();
            drop(answers);
            count(&shared.counters.readers_shed);
            tracing::warn!(
                session = self.id.0,
                name = self.principal.name,
                "a client does not read its answers: disconnected"
            );
            self.connection.close(
                Close::SlowReader.code(),
                b"answers are not read; nothing more is kept for you",
            );
            return Appended::Dropped;
        }
        if was_empty { Appended::First } else { Appended::Behind }
    }

    /// Lets the writer send what has gathered.
    pub(super) fn flush(&self) {
        self.wake.notify_one();
    }

    /// Whether answers wait for the writer.
    pub(super) fn has_answers(&self) -> bool {
        let answers = self.lock();
        !answers.closed && !answers.buffer.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a greeted caller until it leaves. Further streams it opens are sessions of their own.
pub(super) async fn serve(shared: &Arc<Shared>, wire: Wire, principal: Principal) {
    let connection = wire.connection.clone();
    spawn_session(shared, wire, principal.clone());
    while let Ok((send, recv)) = connection.accept_bi().await {
        if principal.role == Role::Nobody {
            break;
        }
        spawn_session(shared, Wire::new(connection.clone(), send, recv), principal.clone());
    }
}

fn spawn_session(shared: &Arc<Shared>, wire: Wire, principal: Principal) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let in_hand = if principal.role == Role::Nobody {
        IN_HAND_NOBODY_MAX
    } else {
        IN_HAND_MAX
    };
    let session = Arc::new(Session {
        id: SessionId(NEXT.fetch_add(1, Ordering::Relaxed)),
        principal,
        in_hand: Unread::new(in_hand),
        unread: Unread::new(UNREAD_BYTES_MAX),
        answers: Mutex::default(),
        wake: Notify::new(),
        connection: wire.connection,
    });
    shared.inbox.push(Report::SessionOpened(session.clone()));
    tokio::spawn(write(session.clone(), wire.send));
    tokio::spawn(read(shared.clone(), session, wire.frames));
}

async fn read(shared: Arc<Shared>, session: Arc<Session>, mut frames: FrameReader) {
    let end = loop {
        session.in_hand.has_room().await;
        session.unread.has_room().await;
        let mut requests = Vec::new();
        let outcome = frames.batch(&mut requests).await;
        if let Ok(bytes) = outcome {
            session.in_hand.add(requests.len());
            session.unread.add(bytes);
            shared.inbox.push(Report::Asked {
                session: session.clone(),
                requests,
                bytes,
            });
            continue;
        }
        break outcome;
    };
    if let Err(error) = end {
        error.count(&shared);
        error.close(&session.connection);
        tracing::debug!(session = session.id.0, "session ended: {error}");
    }
    session.lock().closed = true;
    session.flush();
    shared.inbox.push(Report::SessionClosed(session.id));
}

async fn write(session: Arc<Session>, mut send: quinn::SendStream) {
    loop {
        let (chunk, closed) = {
            let mut answers = session.lock();
            (answers.buffer.split(), answers.closed)
        };
        if !chunk.is_empty() {
            if send.write_chunk(chunk.freeze()).await.is_err() {
                break;
            }
        } else if closed {
            let _ = send.finish();
            break;
        } else {
            session.wake.notified().await;
        }
    }
    session.lock().closed = true;
}

/// What the shell itself says to a request before the core sees it.
pub(super) fn forbids(principal: &Principal, request: &Request) -> Option<WireError> {
    if principal.role == Role::Nobody && !matches!(request, Request::Join { .. }) {
        return Some(WireError::new(
            Code::Forbidden,
            "without a certificate one may only join; connect with a client certificate of this cluster",
        ));
    }
    None
}
