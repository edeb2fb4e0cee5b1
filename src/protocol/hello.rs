//! The first frame each way on a connection: no request is read before both sides agree.
use serde::{Deserialize, Serialize};

use super::error::WireError;
use super::id::{ClusterId, NodeId};

/// ALPN of every isx connection.
pub const ALPN: &[u8] = b"isx/1";
/// Oldest protocol version this build speaks.
pub const PROTOCOL_OLDEST: u32 = 1;
/// Newest protocol version this build speaks.
pub const PROTOCOL_NEWEST: u32 = 1;
/// What log entries and messages this build may produce; raised by an operator's command only.
pub const FEATURE_LEVEL: u32 = 1;

/// What the dialling side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol version it speaks.
    pub protocol: (u32, u32),
    /// The cluster it belongs to; `None` for a client that does not know it yet, or a host about to join.
    pub cluster: Option<ClusterId>,
    /// What it can handle.
    pub feature_level: u32,
    /// Set when the caller is a node.
    pub node: Option<NodeHello>,
    /// Program and version, for people.
    pub software: String,
}

/// What a node says of itself in a `Hello` or its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    /// The node; its certificate must prove it.
    pub node: NodeId,
    /// Identity of its store.
    pub store_id: u128,
    /// The how manieth start of this store it is.
    pub life: u64,
    /// Drawn when the process started: tells two processes on copies of one disk apart.
    pub boot: u64,
    /// Where its log ended when it started.
    pub persisted: u64,
}

/// What the accepting side answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// Go on.
    Welcome {
        /// The protocol version of this connection.
        protocol: u32,
        /// The cluster.
        cluster: ClusterId,
        /// Who answers.
        node: NodeHello,
        /// What it can handle.
        feature_level: u32,
        /// Program and version, for people.
        software: String,
    },
    /// No; the connection closes.
    Refused(WireError),
}
