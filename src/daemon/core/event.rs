//! Transitions worth telling, one line each: for logs, counters, traces and scenario files.
use std::fmt;

use bytes::Bytes;

use crate::daemon::core::entity::message::{Fate, ParkNews};
use crate::protocol::id::{NodeId, ReplicaId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::shard_map::{ReplicaRole, ShardDescriptor};

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A replica changed its part in the group.
    Role {
        /// The shard.
        shard: ShardId,
        /// Its term now.
        term: u64,
        /// `leader`, `follower`, `candidate`, `pre-candidate`.
        role: &'static str,
        /// Who leads, where known.
        leader: Option<NodeId>,
    },
    /// A shard was split here.
    Split {
        /// Keeps what lies before the split point.
        left: ShardDescriptor,
        /// New.
        right: Box<ShardDescriptor>,
    },
    /// A shard's replicas changed.
    Changed {
        /// With its new replicas.
        shard: ShardDescriptor,
    },
    /// A shard stands still until its left neighbour takes it over.
    Frozen {
        /// The shard.
        shard: ShardId,
        /// The left neighbour.
        into: ShardId,
    },
    /// An operator has frozen a shard, or ends that.
    Held {
        /// The shard.
        shard: ShardId,
        /// For so long; 0: it takes writes again. Unit: ms.
        for_ms: u64,
    },
    /// A shard's copy went from one node to another and back.
    BackAndForth {
        /// The shard.
        shard: ShardId,
        /// Where it was, and is again.
        from: NodeId,
        /// Where it had gone.
        to: NodeId,
    },
    /// A shard serves again: the merge was given up.
    Thawed {
        /// The shard.
        shard: ShardId,
    },
    /// A shard took over its right neighbour.
    Merged {
        /// As it is now.
        left: ShardDescriptor,
        /// It is no more.
        right: ShardId,
    },
    /// A copy that is proven not to be needed was destroyed.
    Destroyed {
        /// The shard.
        shard: ShardId,
        /// The copy.
        replica: ReplicaId,
        /// The proof.
        why: &'static str,
    },
    /// A copy can't go on and waits for a proof that it is not needed.
    Stalled {
        /// The shard.
        shard: ShardId,
    },
    /// A snapshot is on its way to a follower.
    SnapshotStarted {
        /// The shard.
        shard: ShardId,
        /// Whom.
        to: NodeId,
        /// As of this index.
        index: u64,
    },
    /// A snapshot took the place of this replica's rows.
    SnapshotInstalled {
        /// The shard.
        shard: ShardId,
        /// As of this index.
        index: u64,
        /// How many rows.
        rows: u64,
    },
    /// A replica was made because a peer spoke to it.
    ReplicaCreated {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Something arrived that should not have; it was dropped and counted.
    Dropped {
        /// Who sent it.
        from: NodeId,
        /// Why it was dropped.
        why: &'static str,
    },
    /// A peer was heard from again, or not for too long.
    Peer {
        /// The peer.
        node: NodeId,
        /// Whether it is heard from.
        alive: bool,
    },
    /// A node registered with the directory.
    Registered {
        /// The node.
        node: NodeId,
    },
    /// A message between entities was recorded or delivered: told only where `NodeConfig::tells_messages` asks for it.
    Message {
        /// Whether its receiver has it now.
        delivered: bool,
        /// Whether the receiver refused it.
        refused: bool,
        /// The shard and the index of the entry.
        at: (ShardId, u64),
        /// Sending entity.
        from: Position,
        /// Receiving entity.
        to: Position,
        /// The session between the two.
        session: u64,
        /// Number in the session.
        number: u64,
        /// As it lies in the sender's rows.
        letter: Bytes,
    },
    /// A message that was refused was parked, sent again or given up: told as `Message` is.
    Parked {
        /// The shard and the index of the entry.
        at: (ShardId, u64),
        /// Which, and what became of it.
        news: ParkNews,
    },
    /// A peer is not the one that is known, or has forgotten what it acknowledged.
    Refused {
        /// The peer.
        node: NodeId,
        /// What is wrong with it.
        why: String,
    },
    /// Something is wrong with the rows of a copy on this node.
    Damage {
        /// The shard.
        shard: ShardId,
        /// The copy.
        replica: ReplicaId,
        /// What was found.
        why: String,
    },
    /// The copies of a shard differ.
    Differs {
        /// The shard.
        shard: ShardId,
        /// As of this entry.
        index: u64,
        /// Those that are wrong; empty where no majority agrees.
        wrong: Vec<ReplicaId>,
        /// Where they begin to differ, printable.
        at: String,
    },
    /// A copy is counted on no longer.
    Quarantined {
        /// The shard.
        shard: ShardId,
        /// The copy.
        replica: ReplicaId,
    },
    /// The disk got too full for writes, or is not any more.
    DiskPressure {
        /// Whether writes are refused.
        refusing: bool,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Role {
                shard,
                term,
                role,
                leader: Some(leader),
            } => {
                write!(f, "{shard} t{term} is {role}, leader {leader}")
            }
            Event::Role {
                shard,
                term,
                role,
                leader: None,
            } => write!(f, "{shard} t{term} is {role}, no leader"),
            Event::Split { left, right } => {
                write!(
                    f,
                    "{} split: {} keeps {}, {} has {}",
                    left.id, left.id, left.range, right.id, right.range
                )
            }
            Event::Changed { shard } => {
                write!(f, "{} is at {} on", shard.id, shard.epoch)?;
                for replica in &shard.replicas {
                    let role = match replica.role {
                        ReplicaRole::Voter => "",
                        ReplicaRole::Learner => " learner",
                        ReplicaRole::Incoming => " incoming",
                        ReplicaRole::Outgoing => " outgoing",
                    };
                    write!(f, " {}={}{role}", replica.node, replica.id)?;
                }
                Ok(())
            }
            Event::Frozen { shard, into } => write!(f, "{shard} stands still for {into}"),
            Event::Held { shard, for_ms: 0 } => write!(f, "{shard} takes writes again"),
            Event::Held { shard, for_ms } => {
                write!(f, "{shard} takes no writes for {for_ms} ms: an operator has frozen it")
            }
            Event::BackAndForth { shard, from, to } => {
                write!(
                    f,
                    "BACK_AND_FORTH a copy of {shard} went from {from} to {to} and back: it rests"
                )
            }
            Event::Thawed { shard } => write!(f, "{shard} serves again"),
            Event::Merged { left, right } => write!(f, "{} took over {right}: {} {}", left.id, left.epoch, left.range),
            Event::Destroyed { shard, replica, why } => write!(f, "{shard} {replica} destroyed: {why}"),
            Event::Stalled { shard } => write!(f, "{shard} can't go on: the shard that it takes over is not here"),
            Event::SnapshotStarted { shard, to, index } => write!(f, "{shard} snapshot at {index} to {to} started"),
            Event::SnapshotInstalled { shard, index, rows } => {
                write!(f, "{shard} snapshot at {index} installed, {rows} rows")
            }
            Event::ReplicaCreated { shard, replica } => write!(f, "{shard} replica {replica} created"),
            Event::Dropped { from, why } => write!(f, "dropped a message from {from}: {why}"),
            Event::Peer { node, alive: true } => write!(f, "{node} is heard from"),
            Event::Peer { node, alive: false } => write!(f, "{node} is silent"),
            Event::Registered { node } => write!(f, "{node} registered"),
            Event::Message {
                delivered,
                refused,
                from,
                to,
                session,
                number,
                ..
            } => {
                let what = match (delivered, refused) {
                    (false, _) => "recorded",
                    (true, false) => "delivered",
                    (true, true) => "refused",
                };
                write!(f, "message {session}.{number} from {from} to {to} {what}")
            }
            Event::Parked { news, .. } => {
                let what = match news.fate {
                    Fate::Parked => "parked",
                    Fate::SentAgain => "sent again",
                    Fate::Dropped => "given up",
                };
                let ParkNews { from, to, .. } = news;
                write!(
                    f,
                    "message {}.{} from {from} to {to}, refused, is {what}",
                    news.session, news.number
                )
            }
            Event::Refused { node, why } => write!(f, "{node} is refused: {why}"),
            Event::Damage { shard, replica, why } => write!(f, "{shard} {replica} is damaged: {why}"),
            Event::Differs {
                shard,
                index,
                wrong,
                at,
            } => {
                write!(
                    f,
                    "{shard} differs between its copies as of entry {index}, from {at} on: "
                )?;
                if wrong.is_empty() {
                    return f.write_str("no majority agrees");
                }
                for (n, replica) in wrong.iter().enumerate() {
                    write!(f, "{}{replica}", if n == 0 { "wrong on " } else { ", " })?;
                }
                Ok(())
            }
            Event::Quarantined { shard, replica } => write!(f, "{shard} {replica} is quarantined"),
            Event::DiskPressure { refusing: true } => f.write_str("disk nearly full: writes are refused"),
            Event::DiskPressure { refusing: false } => f.write_str("disk has room again: writes go on"),
        }
    }
}
