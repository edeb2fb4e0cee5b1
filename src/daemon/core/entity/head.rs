//! The row every entity has: version, latest requests, document.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::change::How;
use crate::protocol::codec::{self, CodecError};
use crate::protocol::error::Code;
use crate::protocol::id::RequestId;

/// An entity's first row. A deleted entity keeps one, without document: its version must never repeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Grows with each write; 0 for an entity that was never there (a refused request is remembered all the same).
    pub version: u64,
    /// Leader's wall clock at the last write. Unit: ms since 1970.
    pub updated_ms: u64,
    /// The place of the last change in the history of the shard, see `protocol::change`.
    pub changed_at: u64,
    /// Whether the entity is there.
    pub exists: bool,
    /// Latest requests, oldest first, at most `HEAD_REQUESTS_MAX`.
    pub requests: Vec<Remembered>,
    /// Buckets of request rows that may hold older requests: first and last; see `machine`.
    pub overflow: Option<(u64, u64)>,
    /// Sessions that the entity has ever opened as a sender; never goes back.
    pub sessions: u64,
    /// Senders that the entity has ever forgotten; never goes back.
    pub closed: u64,
    /// The schema that the document was judged by when it was last written.
    pub schema: SchemaMark,
    /// How the current version was made; by which request is in `requests`.
    pub how: How,
    /// What is remembered of the versions before it, see `past`.
    pub past: Bytes,
    /// When the entity ends by itself.
    pub expires: Option<Expiry>,
    /// As it was put.
    pub document: Bytes,
}

/// Which schema a document was judged by; all zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchemaMark {
    /// The service's version.
    pub version: u64,
    /// The newest change among the schema and those of parents and children.
    pub revision: u64,
}

/// When an entity ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// By the shard's clock. Unit: ms.
    pub due_ms: u64,
    /// The same as a label, by the leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
}

/// What a request did, for the next time it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The request.
    pub id: RequestId,
    /// Checksum of what it asked for: another content under the same id is refused.
    pub digest: u32,
    /// The version it made, or found when it was refused.
    pub version: u64,
    /// The refusal, where it was refused.
    pub refused: Option<Code>,
    /// Whether it sent messages; a row of its own says which.
    pub sent: bool,
    /// Leader's wall clock then. Unit: ms since 1970.
    pub wall_ms: u64,
    /// The shard's clock then. Unit: ms.
    pub shard_time_ms: u64,
}

impl Head {
    /// As a row's value.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// From a row's value.
    pub fn decode(value: &[u8]) -> Result<Self, CodecError> {
        codec::decode(value)
    }
}
