//! What a comparison of a shard's copies came to.
use serde::{Deserialize, Serialize};

use super::id::{Epoch, NodeId, ReplicaId, ShardId};
use super::shard_map::ReplicaRole;

/// The answer to `VerifyShard`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch at the end.
    pub epoch: Epoch,
    /// The last log entry as of which rows were compared. Each slice of rows was compared as of one entry.
    pub index: u64,
    /// Slices compared.
    pub slices: u64,
    /// What each copy came to, by replica id.
    pub copies: Vec<VerifiedCopy>,
    /// Where they begin to differ.
    pub difference: Option<Difference>,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedCopy {
    /// Where it is.
    pub node: NodeId,
    /// Its name.
    pub replica: ReplicaId,
    /// What it counts for.
    pub role: ReplicaRole,
    /// How it compares.
    pub state: CopyState,
    /// Rows read.
    pub rows: u64,
    /// Keys and values read. Unit: bytes.
    pub bytes: u64,
    /// Hash over all slices.
    pub hash: u64,
}

/// How a copy compares with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    /// As the majority.
    Same,
    /// It did not answer in time, at least for some slices.
    Unheard,
    /// It was set aside before.
    Quarantined,
    /// A row fails its checksum.
    Damaged,
    /// Its rows are others than the majority's, or there is no majority.
    Differs,
}

/// The first row that is not the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The place from which on the copies differ, printable.
    pub from: String,
    /// As of this log entry.
    pub index: u64,
    /// What each copy has there: the key of its next row, printable, or what is wrong.
    pub found: Vec<(ReplicaId, String)>,
}

impl Verified {
    /// Whether all copies that could be asked are the same.
    pub fn is_same(&self) -> bool {
        let is_bad = |copy: &VerifiedCopy| matches!(copy.state, CopyState::Damaged | CopyState::Differs);
        self.difference.is_none() && !self.copies.iter().any(is_bad)
    }

    /// Whether every copy was read from end to end.
    pub fn is_complete(&self) -> bool {
        self.copies.iter().all(|copy| copy.state == CopyState::Same)
    }
}
