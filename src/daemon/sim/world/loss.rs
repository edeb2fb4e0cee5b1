//! A machine that is lost for good, and what must come of it: the others hear nothing of what it says any more, and make
//! again what it held.
use super::super::check::{Property, Violation};
use crate::daemon::core::replica::LOG_BASE;
use crate::protocol::id::{DIRECTORY_SHARD, RequestId};
use crate::protocol::op::{Goal, NodeChange, Settings};
use crate::protocol::shard_map::{ReplicaRole, ShardDescriptor};

use super::*;

/// The machine that is lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub machine: usize,
    /// With an empty disk, under its old name.
    pub comes_back: bool,
    /// The operator has it leave; otherwise the others heal by themselves and it stays a member.
    pub leaves: bool,
}

/// Down for so long before its disk goes, the others know that it is.
const DOWN_FIRST: Span = Span::millis(2_500);
/// Copies of the directory, and of what nobody said anything about.
const COPIES: usize = 3;

impl World {
    /// `Fault::Wipe`: a machine goes down. Whether it is lost is seen when its peers know.
    pub(super) fn begin_loss(&mut self, machine: usize) {
        if self.losing || self.lost.is_some() {
            return;
        }
        self.losing = true;
        self.crash(machine, true);
        self.machines[machine].held_down += 1;
        self.schedule.after(DOWN_FIRST, Event::Relief(Relief::Lose(machine)));
    }

    /// Its disk is gone, unless something needs it.
    pub(super) fn lose(&mut self, machine: usize) {
        let now = self.schedule.now();
        let pause = Span::millis(self.fault_rng.u64(10..4_000));
        let (comes_back, leaves) = (self.fault_rng.u32(..3) > 0, self.fault_rng.u32(..3) == 0);
        self.losing = false;
        let can_go = !self.is_healed && self.can_be_lost(machine);
        let store_id = self.fault_rng.u128(1..);
        let owner = &mut self.machines[machine];
        owner.held_down = owner.held_down.saturating_sub(1);
        self.schedule.after(pause, Event::Start { machine });
        if !can_go {
            return;
        }
        owner.media = owner.media.wiped(store_id);
        owner.config.store_id = store_id;
        let id = owner.id;
        self.lost = Some(Loss {
            machine,
            comes_back,
            leaves,
        });
        self.trace.line(now, || {
            format!("{id} has lost its disk, comes back: {comes_back}, is to leave: {leaves}")
        });
    }

    /// Whether every shard has a majority without it, all others are there to be that majority, and know its store.
    fn can_be_lost(&self, machine: usize) -> bool {
        let id = self.machines[machine].id;
        let others = self.machines.iter().filter(|other| other.id != id);
        let know = others.into_iter().all(|other| {
            let nodes = other.process.as_ref().map(|process| &process.node.map().nodes);
            nodes
                .and_then(|nodes| nodes.get(&id))
                .is_some_and(|info| info.store_id != 0)
        });
        know && self.cover.shards().all(|shard| has_majority_without(shard, id))
    }

    /// Whether a machine is the lost one.
    pub(super) fn is_lost(&self, machine: usize) -> bool {
        self.lost.is_some_and(|loss| loss.machine == machine)
    }

    /// Whether a node is the lost one.
    pub(super) fn is_lost_node(&self, node: NodeId) -> bool {
        self.lost.is_some_and(|loss| self.machines[loss.machine].id == node)
    }

    /// All machines but the lost one.
    pub(super) fn living(&self) -> impl Iterator<Item = &Machine> {
        let machines = self.machines.iter().enumerate();
        machines
            .filter(|(place, _)| !self.is_lost(*place))
            .map(|(_, machine)| machine)
    }

    /// Whether a frame between two machines arrives. To and from the lost one only over a connection that was made since, and that
    /// was not ended.
    pub(super) fn hears(&self, to: usize, from: usize) -> bool {
        let (here, lost) = match (self.is_lost(to), self.is_lost(from)) {
            (false, false) => return true,
            (true, _) => (from, to),
            (_, true) => (to, from),
        };
        self.machines[here].process.as_ref().is_some_and(|process| {
            process.greeted.get(&lost) == Some(&self.machines[lost].boot) && !process.refused.contains(&lost)
        })
    }

    /// A machine refuses the lost one, which hears of that.
    pub(super) fn turn_away(&mut self, by: usize) {
        let Some(loss) = self.lost else { return };
        if let Some(process) = &mut self.machines[by].process {
            process.refused.insert(loss.machine);
        }
        let (machine, boot) = (loss.machine, self.machines[loss.machine].boot);
        let pause = Span::millis(self.fault_rng.u64(1..400));
        self.schedule.after(pause, Event::TurnedAway { machine, boot });
    }

    /// The lost one hears that it is refused, and ends. Now and then somebody starts it again.
    pub(super) fn turned_away(&mut self, machine: usize, boot: u64) {
        if self.process_of(machine, boot).is_none() {
            return;
        }
        self.turned_away += 1;
        self.crash(machine, false);
        if !self.is_healed && self.turned_away < 4 {
            let pause = Span::millis(self.fault_rng.u64(100..8_000));
            self.schedule.after(pause, Event::Start { machine });
        }
    }

    /// Nothing that a wiped node says counts: it gets nothing committed, so it never leads either.
    pub(super) fn judge_wiped(&self, machine: usize) -> Result<(), Violation> {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else { return Ok(()) };
        let mut result = Ok(());
        replicas(&process.node, |replica| {
            if replica.is_leader || replica.committed > LOG_BASE.0 {
                let part = if replica.is_leader { "leads" } else { "has committed" };
                let text = format!(
                    "{} was wiped, and its {} of {} {part} up to {}",
                    owner.id, replica.id, replica.shard.id, replica.committed
                );
                result = Err(Violation::new(Property::Log, text));
            }
        });
        result
    }

    /// What an operator asks for who knows that a node is lost.
    pub(super) fn what_settles(&self, loss: Loss) -> std::collections::VecDeque<Request> {
        let id = RequestId(0);
        let lost = self.machines[loss.machine].id;
        let settings = Settings {
            heal_after_ms: 2_000,
            cooldown_ms: 600_000,
            ..Settings::default()
        };
        let undrained = self.living().map(|machine| Request::ChangeNode {
            node: machine.id,
            change: NodeChange::Undrain,
            id,
        });
        let mut asks: std::collections::VecDeque<Request> = undrained.collect();
        asks.push_front(Request::SetSettings { settings, id });
        if loss.leaves {
            asks.push_front(Request::StartOp {
                goal: Goal::Leave { node: lost },
                protect_p99_us: None,
                pace: None,
                because: String::new(),
                at: None,
                undoes: None,
                id,
            });
        }
        asks
    }

    /// Copies that a shard is to have, as the directory says.
    fn copies_wanted(&self, shard: &ShardDescriptor) -> usize {
        if shard.id == DIRECTORY_SHARD {
            return COPIES;
        }
        let maps = self
            .living()
            .filter_map(|machine| Some(machine.process.as_ref()?.node.map()));
        let newest = maps.max_by_key(|map| map.version);
        let wanted = newest.and_then(|map| {
            let service = map.services.get(shard.range.service());
            map.policy.replicas_of(shard).or_else(|| Some(service?.replicas))
        });
        wanted.map_or(COPIES, |wanted| wanted as usize)
    }

    /// A shard that has not all its copies, or still one on the lost machine.
    pub(super) fn unhealed(&self) -> Option<String> {
        let loss = self.lost?;
        let lost = self.machines[loss.machine].id;
        let living = self.living().count();
        let is_too_many = |shard: &ShardDescriptor| self.copies_wanted(shard) > living;
        for shard in self.cover.shards() {
            let voters = shard
                .replicas
                .iter()
                .filter(|replica| replica.node != lost && replica.role == ReplicaRole::Voter)
                .count();
            if voters < self.copies_wanted(shard).min(living) {
                return Some(format!("{} has {voters} voters on living nodes: {shard:?}", shard.id));
            }
            if shard.replica_on(lost).is_some() && !is_too_many(shard) {
                return Some(format!("{} has a copy on {lost}, which is lost: {shard:?}", shard.id));
            }
        }
        let is_gone = |machine: &Machine| {
            let process = machine.process.as_ref()?;
            Some(process.node.map().nodes.get(&lost)?.membership == Membership::Gone)
        };
        // Nobody leaves as long as some shard wants more copies than there would be nodes.
        let can_leave = !self.cover.shards().any(is_too_many);
        if loss.leaves && can_leave && !self.living().all(|machine| is_gone(machine) == Some(true)) {
            return Some(format!("{lost} is still a member"));
        }
        self.laggard()
    }
}

/// Whether a shard has a majority, of both configurations where it is between two, without its copy on `node`.
fn has_majority_without(shard: &ShardDescriptor, node: NodeId) -> bool {
    [ReplicaRole::Outgoing, ReplicaRole::Incoming].iter().all(|&role| {
        let voters = shard
            .replicas
            .iter()
            .filter(|replica| replica.role == ReplicaRole::Voter || replica.role == role);
        let (all, left) = voters.fold((0, 0), |(all, left), replica| {
            (all + 1, left + usize::from(replica.node != node))
        });
        left > all / 2
    })
}
