//! What a node wants done. A driver takes all effects of a step, in order, before the next step.
//!
//! What has to wait for the disk is not in here yet: the core keeps it and gives it out when `Input::Persisted` says
//! that it may leave. A driver therefore never decides about order.
use super::event::Event;
use super::input::SessionId;
use super::state::{Install, LogBatch, LogSeq, ReplicaMeta, StagedCopy};
use super::time::Time;
use crate::protocol::error::WireError;
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::key::KeyRange;
use crate::protocol::message::{Message, SnapshotHeader};
use crate::protocol::request::{Response, RouteHint};

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send to a peer; all sends to one peer in one step travel in one frame. May be dropped under pressure.
    Send {
        /// Whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Append to the log and sync, then `Input::Persisted`. Several may be merged into one commit.
    Persist {
        /// Its place in the order; one higher than the last.
        seq: LogSeq,
        /// What.
        batch: LogBatch,
    },
    /// Answer a caller.
    Reply {
        /// Which connection.
        session: SessionId,
        /// Which request.
        tag: u64,
        /// The answer.
        response: Response,
        /// A correction of the caller's map.
        hint: Option<Box<RouteHint>>,
        /// A read under a lease: if the clock is past this when the answer is handed over, answer
        /// `Code::LeaderChanged` instead.
        valid_until: Option<Time>,
    },
    /// Freeze the memtable now and write it to the state file with these metas in one transaction; then drop log
    /// writes that are no longer needed, and `Input::Checkpointed`. One at a time.
    Checkpoint {
        /// Replicas whose meta changed since the last checkpoint.
        replicas: Vec<ReplicaMeta>,
    },
    /// Drop the memtable's rows in these ranges now, then replace the replica on disk (after any checkpoint under way),
    /// then `Input::Installed`.
    Install(Box<Install>),
    /// The snapshot is not wanted now; what is staged of it may serve the next attempt.
    Unstage(StagedCopy),
    /// Stream the rows of the range, exactly as they are now, to a peer; then `Input::SnapshotSent`.
    SendSnapshot {
        /// Whom.
        to: NodeId,
        /// What comes first.
        header: Box<SnapshotHeader>,
        /// Which rows.
        range: KeyRange,
        /// To be named in what is said of it.
        attempt: u64,
    },
    /// Read the slice that `State::keep` has kept, on another thread, then `Input::Hashed`.
    HashSlice {
        /// The shard.
        shard: ShardId,
        /// The entry that asked.
        index: u64,
    },
    /// Tell a peer that it is not listened to, and why, and end the connection.
    Refuse {
        /// The peer.
        peer: NodeId,
        /// Why.
        error: WireError,
    },
    /// Tell people.
    Event(Event),
    /// Leaderships are handed over as far as possible, everything is persisted: stop.
    Stopped,
    /// Stop at once, without another acknowledgement.
    Halt {
        /// Why, for the log.
        reason: String,
    },
}

/// Effects of a step, in order.
pub type Effects = Vec<Effect>;
