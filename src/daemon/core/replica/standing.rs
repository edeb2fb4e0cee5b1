//! What a node notes of each of its replicas, so as not to look for it among all of them.
use super::Replica;
use crate::protocol::id::Epoch;

/// How a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Raft's clock moves.
    pub is_awake: bool,
    /// It leads.
    pub is_leader: bool,
    /// Something waits for the disk.
    pub is_unsynced: bool,
    /// Snapshots are asked for or under way.
    pub is_sending: bool,
    /// The shard stands still for a merge.
    pub is_frozen: bool,
    /// The shard's epoch.
    pub epoch: Epoch,
}

impl Replica {
    /// How it stands now, and how it stood when this was last asked.
    pub fn note_standing(&mut self) -> (Standing, Standing) {
        let now = Standing {
            is_awake: !self.is_asleep(),
            is_leader: self.is_leader(),
            is_unsynced: !self.is_idle(),
            is_sending: !self.outgoing.is_empty() || !self.sending.is_empty(),
            is_frozen: self.shard.frozen.is_some(),
            epoch: self.shard.epoch,
        };
        (now, std::mem::replace(&mut self.standing, now))
    }
}
