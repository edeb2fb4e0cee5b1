//! What a log entry holds: a batch of commands and the leader's clock readings at the time.
use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use serde::{Deserialize, Serialize};

use super::directory::DirectoryCommand;
use super::entity::message::Acknowledgement;
use super::entity::timer::Timer;
use crate::protocol::codec::{self, CodecError};
use crate::protocol::id::{Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::parcel::Parcel;
use crate::protocol::request::{ReplicaChange, Write};
use crate::protocol::schema::bundle::Bundle;
use crate::protocol::shard_map::ShardDescriptor;

/// Content of a normal log entry. An entry without data is a new leader's no-op.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Monotonic time since the same leader's previous entry, or since it became leader. The sum over a shard's
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
    /// Change the replicas. Travels as the context of Raft's own entry.
    ChangeReplicas {
        /// The shard must still be at this epoch.
        epoch: Epoch,
        /// What changes.
        changes: Vec<ReplicaChange>,
        /// The operator's request.
        id: RequestId,
    },
    /// End a joint configuration. Travels like `ChangeReplicas`.
    LeaveJoint,
    /// Stand still until the left neighbour takes over.
    Freeze {
        /// The shard must still be at this epoch.
        epoch: Epoch,
        /// The left neighbour.
        into: ShardId,
        /// Its epoch when the merge was planned.
        left_epoch: Epoch,
        /// The operator's request.
        id: RequestId,
    },
    /// Take over the right neighbour. It proves that all of the neighbour's replicas have applied the freeze.
    Merge {
        /// The shard must still be at this epoch.
        left_epoch: Epoch,
        /// The neighbour as the freeze left it.
        right: Box<ShardDescriptor>,
        /// The operator's request.
        id: RequestId,
    },
    /// Take a freeze back.
    Thaw {
        /// The left neighbour, after the merge became impossible.
        proof: Box<ShardDescriptor>,
        /// The operator's request.
        id: RequestId,
    },
    /// Take no writes for a while, for an operator.
    Hold {
        /// On the shard's clock; 0 ends it. Unit: ms.
        for_ms: u64,
        /// The operator's request.
        id: RequestId,
    },
    /// Raise the epoch.
    BumpEpoch {
        /// The shard must still be at this epoch.
        epoch: Epoch,
        /// The operator's request.
        id: RequestId,
    },
    /// Sum up some rows as of this entry, and tell the leader. Changes nothing.
    Verify {
        /// Whom to tell.
        by: NodeId,
        /// Key of the first row, or of a place before it.
        from: Bytes,
        /// At most so many rows.
        rows: u32,
    },
    /// A copy is damaged or differs from the others.
    Quarantine {
        /// The copy.
        replica: ReplicaId,
    },
    /// What the shard's writes are judged by from here on.
    Schema(Bundle),
    /// Change the directory.
    Directory(DirectoryCommand),
    /// Messages from entities elsewhere for entities of this shard.
    Deliver(Vec<Parcel>),
    /// What became of messages that entities of this shard have sent.
    Acknowledge(Vec<Acknowledgement>),
    /// Timers whose time has come by the shard's clock; none at all only moves the clock.
    Due(Vec<Timer>),
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
    /// What Raft itself is told, where the command changes who votes.
    pub fn conf_change(&self) -> Option<ConfChangeV2> {
        let changes = match self {
            Command::ChangeReplicas { changes, .. } => changes,
            // Without changes it means: leave.
            Command::LeaveJoint => return Some(ConfChangeV2::default()),
            _ => return None,
        };
        let single = |change: &ReplicaChange| match *change {
            ReplicaChange::AddLearner { replica, .. } | ReplicaChange::Demote { replica } => {
                (replica, ConfChangeType::AddLearnerNode)
            }
            ReplicaChange::Promote { replica } => (replica, ConfChangeType::AddNode),
            ReplicaChange::Remove { replica } => (replica, ConfChangeType::RemoveNode),
        };
        let single = |change| {
            let (replica, change_type) = single(change);
            let node_id = replica.0;
            ConfChangeSingle { change_type, node_id }
        };
        Some(ConfChangeV2 {
            transition: if changes.len() > 1 {
                ConfChangeTransition::Explicit
            } else {
                ConfChangeTransition::Auto
            },
            changes: changes.iter().map(single).collect(),
            ..ConfChangeV2::default()
        })
    }

    /// Whether it says what the shard is, and touches none of its rows.
    pub fn is_about_shape(&self) -> bool {
        match self {
            Command::Split { .. }
            | Command::ChangeReplicas { .. }
            | Command::LeaveJoint
            | Command::Freeze { .. }
            | Command::Merge { .. }
            | Command::Thaw { .. }
            | Command::Hold { .. }
            | Command::BumpEpoch { .. }
            | Command::Quarantine { .. }
            | Command::Schema(_) => true,
            Command::Write(_)
            | Command::Verify { .. }
            | Command::Directory(_)
            | Command::Deliver(_)
            | Command::Acknowledge(_)
            | Command::Due(_) => false,
        }
    }

    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        match self {
            Command::Write(write) => write.change.size() + write.key.len() + write.service.len() + 40,
            Command::Split { .. } => 600,
            Command::ChangeReplicas { .. } | Command::LeaveJoint => 300,
            Command::Freeze { .. } | Command::Hold { .. } | Command::BumpEpoch { .. } | Command::Quarantine { .. } => {
                100
            }
            Command::Verify { from, .. } => from.len() + 40,
            Command::Merge { .. } | Command::Thaw { .. } => 2_000,
            Command::Schema(schema) => schema.size(),
            Command::Directory(command) => command.size(),
            Command::Deliver(parcels) => parcels.iter().map(Parcel::size).sum(),
            Command::Due(timers) => timers
                .iter()
                .map(|timer| timer.entity.0.len() + timer.what.len() + 16)
                .sum(),
            Command::Acknowledge(all) => all.iter().map(|known| known.from.0.len() + known.to.0.len() + 16).sum(),
        }
    }
}
