//! What a log entry holds: a batch of commands and the leader's clock readings at the time.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::directory::DirectoryCommand;
use crate::protocol::codec::{self, CodecError};
use crate::protocol::id::{Epoch, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::request::Write;

/// Content of a normal log entry. An entry without data is a new leader's no-op.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Monotonic time since the same leader's previous entry in the same term; 0 for its first. The sum over a shard's
    /// log is the shard's own clock: it stands still without a leader and never runs ahead of real time, whatever
    /// wall clocks do. Unit: ms.
    pub elapsed_ms: u64,
    /// The leader's wall clock: a label. Unit: ms since 1970.
    pub wall_ms: u64,
    /// In the order they arrived.
    pub commands: Vec<Command>,
}

/// One change, decided by the log's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Change one entity.
    Write(Write),
    /// Cut the shard in two.
    Split {
        /// The shard must still be at this epoch.
        epoch: Epoch,
        /// First position of the right half.
        at: Position,
        /// Id of the right half.
        child: ShardId,
        /// The operator's request.
        id: RequestId,
    },
    /// Change the directory.
    Directory(DirectoryCommand),
}

impl Payload {
    /// As an entry's data.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// From an entry's data.
    pub fn decode(data: &[u8]) -> Result<Self, CodecError> {
        codec::decode(data)
    }
}

impl Command {
    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        match self {
            Command::Write(write) => {
                let document = match &write.change {
                    crate::protocol::request::Change::Put(d)
                    | crate::protocol::request::Change::Post(d)
                    | crate::protocol::request::Change::Patch(d) => d.len(),
                    crate::protocol::request::Change::Delete => 0,
                };
                document + write.key.len() + write.service.len() + 40
            }
            Command::Split { .. } => 600,
            Command::Directory(_) => 1000,
        }
    }
}
