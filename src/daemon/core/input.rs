//! What happens to a node.
use super::state::{LogSeq, StagedCopy};
use crate::protocol::hello::NodeHello;
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::message::{Message, Principal, RaftMessage, SliceSum};
use crate::protocol::request::Request;

/// A caller's connection, as the driver counts them; with `tag` it names one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u64);

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The time named by `Node::next_deadline` has come (or earlier: a tick too many does no harm).
    Ticked,
    /// A peer, proven by certificate and store id, sent these.
    Received {
        /// Who sent them.
        from: NodeId,
        /// In the order they were sent.
        messages: Vec<Message>,
    },
    /// A client or operator asks.
    Asked {
        /// Which connection.
        session: SessionId,
        /// Which request on it.
        tag: u64,
        /// How long the caller waits. Unit: ms.
        timeout_ms: u32,
        /// Who asks.
        principal: Principal,
        /// What.
        request: Request,
    },
    /// All log writes up to and including `seq` are synced.
    Persisted {
        /// The last of them.
        seq: LogSeq,
    },
    /// The checkpoint that was asked for is on disk.
    Checkpointed,
    /// `Effect::Install` is on disk.
    Installed {
        /// The shard.
        shard: ShardId,
    },
    /// A whole snapshot arrived and lies staged on the disk. `Effect::Install` or `Effect::Unstage` follows in the same
    /// step.
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// `MsgSnapshot`.
        raft: Box<RaftMessage>,
        /// Where its rows are.
        copy: StagedCopy,
    },
    /// A snapshot on its way out goes on.
    SnapshotProgress {
        /// Whom it is for.
        to: NodeId,
        /// Which shard.
        shard: ShardId,
        /// Which attempt.
        attempt: u64,
        /// Covered so far, what the receiver had included. Unit: bytes of keys and values.
        bytes: u64,
    },
    /// A snapshot left, or did not.
    SnapshotSent {
        /// Whom it was for.
        to: NodeId,
        /// Which shard.
        shard: ShardId,
        /// Which attempt: word of an earlier one must not end its successor.
        attempt: u64,
        /// Whether the peer has confirmed it whole.
        delivered: bool,
    },
    /// What a peer says of itself over a new connection, before anything else.
    Greeted {
        /// What it says.
        hello: NodeHello,
    },
    /// A frame of a peer's, about to be `Received`, says that the peer's log is synced up to here.
    PeerPersisted {
        /// The peer.
        peer: NodeId,
        /// How far.
        seq: LogSeq,
    },
    /// A connection to a peer came up or went down.
    Connected {
        /// The peer.
        peer: NodeId,
        /// Up or down.
        up: bool,
    },
    /// Free space where the store lies, told every few seconds.
    DiskSpace {
        /// Size of the disk. Unit: bytes.
        total_bytes: u64,
        /// Unit: bytes.
        free_bytes: u64,
        /// The store's files. Unit: bytes.
        store_bytes: u64,
    },
    /// The rows of `Effect::HashSlice` are read.
    Hashed {
        /// The shard.
        shard: ShardId,
        /// The entry that asked.
        index: u64,
        /// What they come to.
        sum: SliceSum,
    },
    /// A row failed its checksum when a snapshot was read from the store.
    Damaged {
        /// The shard that holds it.
        shard: ShardId,
        /// Which row, printable.
        row: String,
    },
    /// The operator wants the node to stop: hand over leaderships, then `Effect::Stopped`.
    StopAsked,
}
