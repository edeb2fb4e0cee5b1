//! What the core needs of storage: a view of the applied rows, and the plain data that goes to disk and comes back.
use std::fmt;
use std::ops::ControlFlow;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState};
use serde::{Deserialize, Serialize};

use super::verify::Slice;
use crate::protocol::id::{ClusterId, NodeId, ReplicaId, ShardId};
use crate::protocol::key::KeyRange;
use crate::protocol::message::ChunkHash;
use crate::protocol::schema::bundle::Bundle;
use crate::protocol::shard_clock::ShardClock;
use crate::protocol::shard_map::ShardDescriptor;

/// Applied rows: the memtable over the state file. The driver gives it to each step.
pub trait State {
    /// The value of a row. The store has checked its checksum.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Visits rows with `start <= key < end` in key order until told to stop.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError>;

    /// Sets a row, or removes it (`None`). Visible at once; on disk with the next checkpoint, until then the log has it.
    fn put(&mut self, key: Bytes, value: Option<Bytes>);

    /// Keeps these rows exactly as they are now, whatever is put afterwards, for `Effect::HashSlice`.
    fn keep(&mut self, slice: Slice);
}

/// A row could not be read. It depends on this machine, so the node must stop rather than diverge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The checksum of a row does not match its key and value.
    #[error("row {key} in the state file fails its checksum")]
    Checksum {
        /// The row, printable.
        key: String,
    },
    /// The file could not be read.
    #[error("reading the state file failed: {0}")]
    Io(String),
}

/// Names a write to the log: writes are made, synced and reported in this order. Starts at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogSeq(pub u64);

impl fmt::Display for LogSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What one step has to make durable in the log: for each shard that has news, its entries and hard state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogBatch {
    /// At most one per shard.
    pub shards: Vec<ShardWrite>,
}

/// One shard's part of a log write. Entries replace whatever the log held from their first index on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardWrite {
    /// The shard.
    pub shard: ShardId,
    /// Term, vote and commit, where they changed.
    pub hard_state: Option<HardState>,
    /// Contiguous indexes.
    pub entries: Vec<Entry>,
    /// The entries are everything the shard's log holds behind its applied index: earlier rows are not needed for it.
    pub complete: bool,
}

/// What is kept of a replica in the state file, written in the same transaction as the rows it describes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaMeta {
    /// This copy's id.
    pub replica: ReplicaId,
    /// Range, epoch and members as of `applied`.
    pub shard: ShardDescriptor,
    /// Raft's membership as of `applied`.
    pub conf_state: ConfState,
    /// Term, vote, commit.
    pub hard_state: HardState,
    /// All entries up to here are in the rows.
    pub applied: u64,
    /// Term of the entry at `applied`.
    pub applied_term: u64,
    /// Log writes up to here hold nothing that counts for this replica (it was replaced by a snapshot since).
    pub log_from: LogSeq,
    /// The shard's own clock.
    pub clock: ShardClock,
    /// Entities in the shard.
    pub entities: u64,
    /// Bytes of keys and documents in the shard.
    pub bytes: u64,
    /// The rows are known to be wrong: nothing is applied to them or read from them, and the copy waits to be replaced.
    pub written_off: bool,
    /// Of entries up to here the descriptor, the membership and the clock are here, where that is beyond `applied`: see
    /// `Replica::shaped`.
    pub shaped: u64,
    /// What the shard's writes are judged by as of `applied`.
    pub schema: Bundle,
    /// Its place in history, see `protocol::change`.
    pub history: u64,
    /// The replica was removed from the shard, or its shard was absorbed: it must never be made again. A later one with a
    /// higher id may.
    pub destroyed: bool,
}

/// Everything that a node finds in its store when it starts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// Replicas as of the last checkpoint.
    pub replicas: Vec<ReplicaMeta>,
    /// Log writes since, in order. May speak of shards that are in no `ReplicaMeta`: they are born when the entry
    /// that split them off is applied again.
    pub log: Vec<(LogSeq, LogBatch)>,
    /// Last log write; the next one is one higher.
    pub last_seq: LogSeq,
}

/// Who a store belongs to; written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Random, made with the store: tells a wiped or cloned disk from the one the cluster knows.
    pub store_id: u128,
}

/// A whole snapshot that lies in the store's staging area: names it, and says what was there when it was whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedCopy {
    /// Of which shard.
    pub shard: ShardId,
    /// For which replica.
    pub replica: ReplicaId,
    /// Chunks.
    pub chunks: u64,
    /// Rows in them.
    pub rows: u64,
    /// Size of the chunks as staged. Unit: bytes.
    pub bytes: u64,
    /// Over the hashes of all chunks, in order.
    pub digest: ChunkHash,
}

/// A whole replica to be written in place of whatever the range holds. After a crash it is there whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct Install {
    /// The replica. Where it is destroyed its range is empty, and what is to be cleared is in `clear`.
    pub meta: ReplicaMeta,
    /// Metas of other replicas that this one takes the place of: destroyed in the same transaction.
    pub also: Vec<ReplicaMeta>,
    /// Rows outside the new range that belonged to the replica before go too.
    pub clear: Vec<KeyRange>,
    /// Where the rows are; none for a replica that is destroyed.
    pub rows: Option<StagedCopy>,
}
