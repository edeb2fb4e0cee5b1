//! Operations, their tasks and the cluster's settings, as rows of the directory: what must outlive its leader.
//!
//! An operation is a goal. What one shard is going through for it is a task: at most one per shard, begun and ended by
//! an entry in the directory's log, so that two operations never pull at one shard and the next leader finishes what
//! this one began. How far things are is never written down: it is seen in the shards themselves.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::directory::{put, remove};
use super::state::State;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{OpId, ReplicaId, RequestId, ShardId};
use crate::protocol::op::*;

/// Operations that are over are kept up to this many. Unit: operations.
const OPS_KEPT: usize = 200;
/// Operations under way at a time. Unit: operations.
pub const OPS_RUNNING_MAX: usize = 64;

/// A change of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerCommand {
    /// Begin an operation; its id is given by the directory.
    Start {
        /// The operation.
        op: Box<Op>,
        /// The configuration that its plan was made for: not begun at any other.
        at: Option<u64>,
    },
    /// Change an operation's state.
    Turn {
        /// Which.
        op: OpId,
        /// To what.
        state: OpState,
        /// Why, once it is over.
        result: String,
        /// Wall clock. Unit: ms since 1970.
        wall_ms: u64,
    },
    /// Faster or slower.
    SetPace {
        /// Which.
        op: OpId,
        /// How fast.
        pace: Pace,
    },
    /// A shard begins something. A new copy's id is given by the directory.
    Begin(Task),
    /// A shard has ended what it was at for this operation.
    End {
        /// Which shard.
        shard: ShardId,
        /// For which operation.
        op: OpId,
    },
    /// New settings.
    Set(Settings),
}

/// What the ledger answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerOutcome {
    /// The operation as it is now.
    Op(Box<Op>),
    /// Done.
    Done,
    /// Not done.
    Refused(WireError),
}

/// The ledger in memory: what its rows say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Operations by id, those that are over included.
    pub ops: BTreeMap<OpId, Op>,
    /// What shards are going through.
    pub tasks: BTreeMap<ShardId, Task>,
    /// The cluster's settings.
    pub settings: Settings,
}

impl Ledger {
    /// Takes in a row as it is read at the start. False where the table is none of the ledger's.
    pub(super) fn load(&mut self, table: u8, value: &[u8]) -> Result<bool, codec::CodecError> {
        match table {
            b'o' => {
                let op: Op = codec::decode(value)?;
                self.ops.insert(op.id, op);
            }
            b't' => {
                let task: Task = codec::decode(value)?;
                self.tasks.insert(task.shard, task);
            }
            b'g' => self.settings = codec::decode(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Operations that are not over.
    pub fn open(&self) -> impl Iterator<Item = &Op> {
        self.ops.values().filter(|op| !op.state.is_over())
    }

    /// The operation with the same goal that is under way: whoever asks again attaches to it.
    pub fn same(&self, goal: &Goal, request: RequestId) -> Option<&Op> {
        let by_request = self.ops.values().find(|op| op.request == request && request.0 != 0);
        by_request.or_else(|| self.open().find(|op| op.goal == *goal))
    }

    /// What of a new goal is in the way of an operation under way.
    pub fn conflict(&self, goal: &Goal) -> Option<&Op> {
        let shards = goal.shards();
        self.open().find(|op| {
            let same_node = goal.node().is_some() && op.goal.node() == goal.node();
            let same_shard = op.goal.shards().iter().any(|shard| shards.contains(shard));
            let into_leaving = match *goal {
                Goal::Move { to, .. } | Goal::AddReplica { to, .. } | Goal::Replace { new: to, .. } => {
                    op.goal.node() == Some(to)
                }
                _ => false,
            };
            // A lost node that is being healed may still be told to leave.
            let heals = matches!(op.goal, Goal::Heal { .. }) || matches!(goal, Goal::Heal { .. });
            (same_node && !heals) || same_shard || into_leaving
        })
    }

    /// Does the change; the same on every replica. `next_id` gives out ids.
    pub fn apply(&mut self, command: &LedgerCommand, next_id: &mut u64, state: &mut dyn State) -> LedgerOutcome {
        match command {
            LedgerCommand::Start { op, .. } => self.start(op, next_id, state),
            LedgerCommand::Turn {
                op,
                state: to,
                result,
                wall_ms,
            } => {
                let Some(known) = self.ops.get_mut(op) else {
                    return no_op(*op);
                };
                if known.state == *to {
                    return LedgerOutcome::Op(Box::new(known.clone()));
                }
                if known.state.is_over() {
                    let text = format!("{op} is {} already; nothing was changed", known.state);
                    return LedgerOutcome::Refused(WireError::new(Code::OpIsOver, text));
                }
                known.state = *to;
                if to.is_over() {
                    known.ended_ms = *wall_ms;
                    known.result.clone_from(result);
                }
                let known = known.clone();
                put(state, b'o', &op.0.to_be_bytes(), &known);
                let undone = known.undoes.filter(|_| *to == OpState::Done);
                if let Some(undone) = undone.and_then(|id| self.ops.get_mut(&id)) {
                    undone.state = OpState::Undone;
                    put(state, b'o', &undone.id.0.to_be_bytes(), undone);
                }
                self.drop_old(state);
                LedgerOutcome::Op(Box::new(known))
            }
            LedgerCommand::SetPace { op, pace } => {
                let Some(known) = self.ops.get_mut(op) else {
                    return no_op(*op);
                };
                known.pace = *pace;
                put(state, b'o', &op.0.to_be_bytes(), known);
                LedgerOutcome::Op(Box::new(known.clone()))
            }
            LedgerCommand::Begin(task) => {
                let taken = |shard: ShardId| {
                    self.tasks.values().any(|other| {
                        other.shard == shard || matches!(other.step, TaskStep::Merge { right } if right == shard)
                    })
                };
                let right = match task.step {
                    TaskStep::Merge { right } => Some(right),
                    TaskStep::Swap { .. } => None,
                };
                let is_open = self.ops.get(&task.op).is_some_and(|op| !op.state.is_over());
                if taken(task.shard) || right.is_some_and(taken) || !is_open {
                    return LedgerOutcome::Done;
                }
                let mut task = task.clone();
                if let TaskStep::Swap {
                    add: Some((_, replica)),
                    ..
                } = &mut task.step
                {
                    *replica = ReplicaId(*next_id);
                    *next_id += 1;
                }
                put(state, b't', &task.shard.0.to_be_bytes(), &task);
                self.tasks.insert(task.shard, task);
                LedgerOutcome::Done
            }
            LedgerCommand::End { shard, op } => {
                if self.tasks.get(shard).is_some_and(|task| task.op == *op) {
                    self.tasks.remove(shard);
                    remove(state, b't', &shard.0.to_be_bytes());
                }
                LedgerOutcome::Done
            }
            LedgerCommand::Set(settings) => {
                self.settings = settings.clone();
                put(state, b'g', b"", settings);
                LedgerOutcome::Done
            }
        }
    }

    fn start(&mut self, op: &Op, next_id: &mut u64, state: &mut dyn State) -> LedgerOutcome {
        if let Some(known) = self.same(&op.goal, op.request) {
            return LedgerOutcome::Op(Box::new(known.clone()));
        }
        if let Some(other) = self.conflict(&op.goal) {
            let text = format!(
                "{} ({}) is {} and in the way; nothing was changed",
                other.id, other.goal, other.state
            );
            return LedgerOutcome::Refused(WireError::new(Code::OpConflict, text));
        }
        if self.open().count() >= OPS_RUNNING_MAX {
            let text = format!("{OPS_RUNNING_MAX} operations are under way already; nothing was changed");
            return LedgerOutcome::Refused(WireError::new(Code::Busy, text));
        }
        let op = Op {
            id: OpId(*next_id),
            state: OpState::Running,
            ..op.clone()
        };
        *next_id += 1;
        put(state, b'o', &op.id.0.to_be_bytes(), &op);
        self.ops.insert(op.id, op.clone());
        LedgerOutcome::Op(Box::new(op))
    }

    fn drop_old(&mut self, state: &mut dyn State) {
        while self.ops.len() > OPS_KEPT + OPS_RUNNING_MAX {
            let Some(oldest) = self.ops.values().find(|op| op.state.is_over()).map(|op| op.id) else {
                return;
            };
            self.ops.remove(&oldest);
            remove(state, b'o', &oldest.0.to_be_bytes());
        }
    }
}

fn no_op(op: OpId) -> LedgerOutcome {
    LedgerOutcome::Refused(WireError::new(
        Code::NoSuchOp,
        format!("there is no {op}; nothing was changed"),
    ))
}
