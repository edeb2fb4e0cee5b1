//! What can go wrong between a caller and the cluster, told apart by what the caller can do about it.
use std::path::PathBuf;
use std::time::Duration;

use crate::protocol::error::{Code, WireError};
use crate::protocol::id::RequestId;

/// Why a client was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No endpoint was given.
    #[error("no endpoint to connect to")]
    NoEndpoint,
    /// A file of the client's identity can't be used.
    #[error("cannot use the {what} in `{path}`: {reason}")]
    Identity {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The contexts file can't be used, or has no such context.
    #[error(transparent)]
    Context(#[from] super::context::ContextError),
    /// No socket.
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::io::Error),
    /// Nobody answered.
    #[error("no node answered; tried {}", list(.tried))]
    Unreachable {
        /// Endpoint, and what happened there.
        tried: Vec<(String, String)>,
    },
    /// One of the two certificates was not accepted.
    #[error("certificate not accepted at {endpoint}: {reason}")]
    Certificate {
        /// Where.
        endpoint: String,
        /// By whom, and why.
        reason: String,
    },
    /// A node does not want this client.
    #[error("refused by {endpoint}")]
    Refused {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        error: WireError,
    },
}

/// Why a request has no good answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The cluster's definite no: nothing was changed.
    #[error("{0}")]
    Refused(WireError),
    /// The write was sent and its outcome is not known: it may be committed now, later or never. Repeating it with the
    /// same id is safe, and [`super::Client::show_request`] asks without repeating.
    #[error("the outcome of the write to {service}/{key} is not known (request {id}): {last}")]
    Unknown {
        /// The write.
        id: RequestId,
        /// Service.
        service: String,
        /// Entity key, also that of a POST.
        key: String,
        /// What happened last.
        last: String,
    },
    /// No node could be reached; nothing was changed.
    #[error("no node answered; tried {}", list(.tried))]
    Unreachable {
        /// Endpoint or node, and what happened there.
        tried: Vec<(String, String)>,
    },
    /// Nodes could be reached and none did it in time; nothing was changed.
    #[error("not done within {after:?}; last: {last}")]
    TimedOut {
        /// The time limit.
        after: Duration,
        /// The last answer's error, where there was an answer: `NoLeader` says that too few copies are up.
        code: Option<Code>,
        /// What happened last.
        last: String,
    },
    /// The answer is not one to this request: a bug, or two versions too far apart.
    #[error("{node} answered `{asked}` with something else")]
    Unexpected {
        /// Who.
        node: String,
        /// What was asked.
        asked: &'static str,
    },
    /// No such node in the map.
    #[error("no node {0} is known")]
    NoSuchNode(crate::protocol::id::NodeId),
    /// A request that can't be sent.
    #[error("the request can't be sent: {0}")]
    Encode(#[from] crate::protocol::codec::CodecError),
    /// A continuation that this client did not make.
    #[error("`{0}` is not where a listing stopped: use the value printed by the listing before")]
    Continuation(String),
    /// A token with which no watch can go on.
    #[error("the watch can't go on: {0}")]
    WatchToken(crate::protocol::change::TokenError),
}

impl ClientError {
    /// Whether the write may have been committed.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// The cluster's own error, where it is one.
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

fn list(tried: &[(String, String)]) -> String {
    let mut text = String::new();
    for (at, (whom, what)) in tried.iter().enumerate() {
        if at > 0 {
            text.push_str("; ");
        }
        text.push_str(whom);
        text.push_str(": ");
        text.push_str(what);
    }
    text
}
