//! How a request finds its node: which connection it goes out on, what its answers teach, and when it is sent again.
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout_at};

use super::connection::Connection;
use super::links::State;
use super::pipeline::{BeginError, Heard, Ticket};
use super::{Client, ClientError};
use crate::protocol::codec::CodecError;
use crate::protocol::error::{Class, Code};
use crate::protocol::id::NodeId;
use crate::protocol::request::{Request, Response, ResponseFrame};
use crate::protocol::target::Target;

/// First pause before a request is repeated.
const BACKOFF_MIN: Duration = Duration::from_millis(4);
/// Longest pause before a request is repeated.
const BACKOFF_MAX: Duration = Duration::from_millis(128);
/// Copies of one request under way at once: the first, and those sent because it had waited for long.
const COPIES_MAX: usize = 4;
/// Times in a row that a request follows a correction without a pause.
const REDIRECTS_MAX: u32 = 4;

/// A request on its way to one node. Given up when dropped.
pub(super) struct Sent {
    pub(super) connection: Arc<Connection>,
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
pub(super) struct Failure {
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
    pub(super) fn fail(&self, request: &Request, failure: Failure, limit: Duration) -> ClientError {
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
    pub(super) async fn route(
        &self,
        target: &Target,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Failure> {
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

    pub(super) async fn ask_until(
        &self,
        node: NodeId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, ClientError> {
        let connection = self.reach(node, deadline).await?;
        self.ask_on(&connection, request, deadline).await
    }

    /// One request on one connection: no routing, no retries.
    pub(super) async fn ask_on(
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
