//! What one node sends another. A frame carries a batch of these: everything one step had for that peer.
use bytes::Bytes;
use raft::eraftpb;
use serde::{Deserialize, Serialize};

use super::id::{Epoch, NodeId, ReplicaId, ShardId};
use super::op::Pace;
use super::parcel::{Parcel, Receipt};
use super::request::{Request, Response, RouteHint};
use super::schema::bundle::Bundle;
use super::shard_clock::ShardClock;
use super::shard_map::{MapView, ShardDescriptor};

/// A frame from node to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerFrame {
    /// The sender's log is synced up to this write: whatever it acknowledges in here is in it.
    pub persisted: u64,
    /// In the order they were made.
    pub messages: Vec<Message>,
}

/// One message from node to node. May be lost, doubled, late and out of order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Between two replicas of a shard.
    Raft(RaftMessage),
    /// A client's request that came to the wrong node.
    Forward {
        /// The sender's name for it.
        id: u64,
        /// How often it has been handed on, this time included.
        hops: u8,
        /// How long the client still waits. Unit: ms.
        timeout_ms: u32,
        /// Who asks: rights are the client's, never the forwarding node's.
        principal: Principal,
        /// What is asked.
        request: Request,
    },
    /// The answer to a `Forward`.
    ForwardReply {
        /// As in the `Forward`.
        id: u64,
        /// The answer.
        response: Response,
        /// A correction of the sender's map.
        hint: Option<Box<RouteHint>>,
    },
    /// A node to the others, every second and on changes: I live, this I hold and lead.
    Report(Report),
    /// What the directory's leader knows, to a node whose map is older.
    Map(MapView),
    /// Messages of entities for entities of a shard that the receiver is believed to lead.
    Deliver {
        /// The sender's name for the batch.
        id: u64,
        /// The receiving shard.
        shard: ShardId,
        /// At most one per pair.
        parcels: Vec<Parcel>,
    },
    /// What became of some parcels of a batch.
    Delivered {
        /// As in the `Deliver`.
        id: u64,
        /// By slot.
        receipts: Vec<(u32, Receipt)>,
        /// Nothing became of the others, or nobody knows.
        failed: bool,
    },
    /// From a shard's leader to another replica, behind everything else: nothing happens any more, let us sleep.
    Sleep(SleepOffer),
    /// The answer of a replica that sleeps from now on.
    SleepAccepted(SleepOffer),
    /// To whoever asked the copies of a shard for the sum of a slice of their rows.
    Summed {
        /// The shard.
        shard: ShardId,
        /// The copy.
        replica: ReplicaId,
        /// The entry that asked.
        index: u64,
        /// What the rows come to.
        sum: SliceSum,
    },
    /// To the leader of a shard: this copy of it is damaged.
    Damaged {
        /// The shard.
        shard: ShardId,
        /// The copy.
        replica: ReplicaId,
        /// What was found.
        why: String,
    },
}

/// A group agrees to sleep: at this leader's term, with this log, and only if nothing has happened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepOffer {
    /// The group.
    pub shard: ShardId,
    /// The sending replica.
    pub from: ReplicaId,
    /// The replica it is for.
    pub to: ReplicaId,
    /// The leader's term.
    pub term: u64,
    /// Where the log ends, for both.
    pub index: u64,
    /// The leader's name for the offer, in this life of its process.
    pub number: u64,
    /// Whether all replicas have everything, the silent ones too.
    pub is_complete: bool,
}

/// What some rows of a shard come to, on one copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SliceSum {
    /// All of them could be read.
    Rows {
        /// Key of the first; `None` where there is none.
        first: Option<Bytes>,
        /// How many.
        rows: u32,
        /// Keys and values. Unit: bytes.
        bytes: u64,
        /// Hash over keys and values in order, and over the copy's bookkeeping.
        hash: u64,
        /// Key of the first row behind them; `None` at the shard's end.
        next: Option<Bytes>,
    },
    /// One of them fails its checksum.
    Damaged {
        /// Which, printable.
        row: String,
    },
    /// They were not read.
    Unread,
}

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The sender.
    pub node: NodeId,
    /// Identity of its store.
    pub store_id: u128,
    /// Where it is reached.
    pub address: String,
    /// Version of its software.
    pub version: String,
    /// Version of the directory's state that its map includes.
    pub map_version: u64,
    /// Newest revision of the schemas that it knows.
    pub schema_revision: u64,
    /// Shards it leads, and the term in which it leads.
    pub leads: Vec<(ShardId, u64)>,
    /// Descriptors of shards it leads that are newer than its map's, which the directory should learn.
    pub news: Vec<ShardDescriptor>,
    /// How much there is of what it leads; only to the node that leads the directory.
    pub load: Option<Load>,
    /// How long writes take that it leads.
    pub writes: WriteLatency,
    /// How fast its copies may leave now. Unit: bytes per second.
    pub copy_rate: u64,
    /// What the operators want of copies; only from the node that leads the directory.
    pub copies: Option<CopyRules>,
    /// Shards whose freeze its copy has applied, and the epoch since which they are frozen.
    pub frozen: Vec<(ShardId, Epoch)>,
}

/// How long writes took over the last seconds, from their proposal to their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteLatency {
    /// Ninety-nine of a hundred took at most this long. Unit: us.
    pub p99_us: u64,
    /// How many there were.
    pub count: u64,
}

/// How fast copies are made, and what they must leave alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRules {
    /// The fastest that is asked for.
    pub pace: Pace,
    /// Copies slow down while writes take longer than this, 0: never. Unit: us.
    pub protect_p99_us: u64,
}

/// A copy on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Of which shard.
    pub shard: ShardId,
    /// Whom it is for.
    pub to: NodeId,
    /// Covered so far. Unit: bytes.
    pub bytes: u64,
}

/// How much a node holds and serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Size of the disk its store is on; 0 where that is not known. Unit: bytes.
    pub disk_total: u64,
    /// Free there. Unit: bytes.
    pub disk_free: u64,
    /// The shards that it leads.
    pub shards: Vec<ShardLoad>,
    /// Copies that it is sending.
    pub copies: Vec<CopyProgress>,
}

/// How much there is of one shard, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLoad {
    /// The shard.
    pub shard: ShardId,
    /// Size of one copy. Unit: bytes.
    pub bytes: u64,
    /// Entities in it.
    pub entities: u64,
    /// Requests per second, over the last seconds.
    pub requests_per_s: u64,
    /// Copies that could not take part in a majority at once.
    pub behind: Vec<ReplicaId>,
}

/// A message of the Raft crate with the names of both ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RaftMessage {
    /// The group.
    pub shard: ShardId,
    /// The sending replica.
    pub from: ReplicaId,
    /// The replica it is for.
    pub to: ReplicaId,
    /// The shard's epoch as the sender knows it.
    pub epoch: Epoch,
    /// The message.
    pub message: eraftpb::Message,
}

/// What precedes the chunks of a snapshot on its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// `MsgSnapshot`, its `Snapshot.data` holding a postcard `SnapshotManifest`.
    pub raft: RaftMessage,
}

/// What a snapshot is of; travels in `Snapshot.data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// The shard as of the snapshot's index.
    pub shard: ShardDescriptor,
    /// Its clock.
    pub clock: ShardClock,
    /// Entities in the shard.
    pub entities: u64,
    /// Bytes of keys and documents in the shard.
    pub bytes: u64,
    /// What its writes are judged by.
    pub schema: Bundle,
    /// Its place in history, see `protocol::change`.
    pub history: u64,
}

/// A row of a snapshot: key and value as the state file holds them.
pub type Row = (Bytes, Bytes);

/// A hash that tells contents of a chunk apart: the first half of SHA-256 over its bounds and rows.
pub type ChunkHash = [u8; 16];

/// A chunk that the receiver of a snapshot has from an earlier attempt, or has just been told to keep: all rows with
/// `from <= key < to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkMark {
    /// First key that it covers.
    pub from: Bytes,
    /// First key behind.
    pub to: Bytes,
    /// Of its content.
    pub hash: ChunkHash,
    /// CRC-32C of each of its rows, key and value, in key order: where the hash differs they say which rows the receiver
    /// has all the same. Empty in a [`SnapshotPart::Kept`].
    pub rows: Vec<u32>,
}

/// What the receiver says on a snapshot's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotReply {
    /// It takes part, and is not ready yet.
    Wait,
    /// Chunks that it has, in key order.
    Marks(Vec<ChunkMark>),
    /// No more of them.
    MarksEnd,
    /// Everything has arrived, is whole and on its disk.
    Whole,
    /// Not taken, and why.
    Refused(String),
}

/// What the sender says on a snapshot's stream, after the header. The chunks of a snapshot follow on each other: each
/// begins where the one before ended, the first at the range's start, the last ends at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotPart {
    /// The receiver has this chunk as it should be.
    Kept(ChunkMark),
    /// A chunk that it has not, or not like this.
    Chunk {
        /// First key that it covers.
        from: Bytes,
        /// First key behind.
        to: Bytes,
        /// Of its content when put together.
        hash: ChunkHash,
        /// Its rows, in key order.
        pieces: Vec<ChunkPiece>,
    },
    /// No more chunks.
    End {
        /// How many there were.
        chunks: u64,
        /// Rows in them.
        rows: u64,
    },
}

/// Rows of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkPiece {
    /// These.
    Rows(Vec<Row>),
    /// Rows that the receiver's chunk with these bounds has: by their place in it.
    Have {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// Who asks, proven by certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The name in the certificate.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// What a caller may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// No certificate: may only ask to join, with a token.
    Nobody,
    /// Reads.
    Viewer,
    /// Writes entities.
    Writer,
    /// Changes the cluster.
    Admin,
    /// A node of the cluster.
    Node,
}
