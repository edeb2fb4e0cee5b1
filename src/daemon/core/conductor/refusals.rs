//! Tasks that their shard goes on refusing: laid by for a while.
//!
//! A shard is at one thing at a time. A task that can't be done as things are now would keep it from what it needs first:
//! a voter too many by the count of yesterday is needed today, because another one is lost. So a task that was refused
//! for long is taken back, and rests; meanwhile the planner looks at the shard as it is.
use super::*;

/// A task that was taken back.
#[derive(Debug)]
pub(super) struct LaidBy {
    op: OpId,
    step: TaskStep,
    at: Time,
    pub trouble: Trouble,
}

impl Node {
    /// Whether a task is to be taken back, because its shard has refused it for long.
    pub(super) fn is_laid_by(&mut self, task: &Task) -> bool {
        if self.rests(task.shard, &task.step) {
            return true;
        }
        let now = self.clock.now;
        let refusal = self.conductor.trouble.get(&task.shard).filter(|trouble| {
            trouble.code == Code::TooFewReplicas.to_string() && now.since(trouble.first) >= REFUSED_FOR
        });
        let Some(trouble) = refusal.cloned() else { return false };
        let laid_by = LaidBy {
            op: task.op,
            step: task.step.clone(),
            at: now,
            trouble,
        };
        self.conductor.laid_by.insert(task.shard, laid_by);
        true
    }

    /// Whether the same was taken back a moment ago.
    pub(super) fn rests(&self, shard: ShardId, step: &TaskStep) -> bool {
        let laid_by = self.conductor.laid_by.get(&shard);
        laid_by.is_some_and(|laid_by| is_same(&laid_by.step, step) && self.clock.now.since(laid_by.at) < RESTS_FOR)
    }

    /// What was taken back of an operation: the shard, and why.
    pub(super) fn laid_by_of(&self, op: OpId) -> impl Iterator<Item = (ShardId, &Trouble)> {
        let of = self
            .conductor
            .laid_by
            .iter()
            .filter(move |(_, laid_by)| laid_by.op == op);
        of.filter(|(_, laid_by)| self.clock.now.since(laid_by.at) < RESTS_FOR)
            .map(|(&shard, laid_by)| (shard, &laid_by.trouble))
    }

    /// What has rested is forgotten.
    pub(super) fn forget_laid_by(&mut self) {
        let now = self.clock.now;
        self.conductor
            .laid_by
            .retain(|_, laid_by| now.since(laid_by.at) < RESTS_FOR);
    }
}

/// Whether two steps are the same but for the new copy's id.
fn is_same(one: &TaskStep, other: &TaskStep) -> bool {
    match (one, other) {
        (TaskStep::Swap { add, remove }, TaskStep::Swap { add: to, remove: from }) => {
            add.map(|(node, _)| node) == to.map(|(node, _)| node) && remove == from
        }
        (one, other) => one == other,
    }
}

/// Longer than an election, a hand-over and a few heartbeats take.
const REFUSED_FOR: Span = Span::secs(2);
/// Time for the planner to do something better with the shard.
const RESTS_FOR: Span = Span::secs(5);
