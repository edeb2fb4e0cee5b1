//! The directory leader's hand: carries operations out, step by step, and starts some by itself.
//!
//! Everything here is *level-triggered*: each round looks at the shards as they are, at the tasks and operations that the
//! directory keeps, and asks for what is missing next. A lost answer, a new directory leader or a restart changes
//! nothing: the next round sees the same difference and asks again. Requests go the way every request goes, and each is
//! harmless when it comes twice.
//!
//! What is decided where: the planner (`placement`) says which copies should be where; the ledger says which shard is at
//! what for whom; a shard's own leader refuses what is not safe at its place.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::directory::DirectoryCommand;
use super::effect::Effects;
use super::ledger::LedgerCommand;
use super::node::Node;
use super::placement::plan::{self, Goals, Limits, Step, StepKind, Why};
use super::placement::rules::Rule;
use super::placement::view::{
    ClusterView, Health, Moved, NodeView, RecentMove, ReplicaView, ServiceView, Settings as PlanSettings, ShardView,
};
use super::placement::{check, plan::Blocker};
use super::replica::{Waiter, Waiting};
use super::state::State;
use super::time::{Span, Time};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, NodeId, OpId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::message::{Load, Principal, Role};
use crate::protocol::op::*;
use crate::protocol::request::{ReplicaChange, Request, Response};
use crate::protocol::shard_map::{Membership, ReplicaRole, ShardDescriptor};

/// What the directory's leader remembers between two rounds; none of it matters to safety.
#[derive(Debug, Default)]
pub(super) struct Conductor {
    /// What nodes last said of what they lead and of their disks.
    loads: BTreeMap<NodeId, Load>,
    /// Questions that wait for an answer, by token.
    asked: BTreeMap<u64, Asked>,
    next_token: u64,
    answers: Vec<(u64, Response)>,
    /// What last went wrong with a shard's task.
    trouble: BTreeMap<ShardId, Trouble>,
    /// Since when this node leads the directory.
    since: Option<Time>,
    last_round: Time,
    last_plan: Time,
    recent: VecDeque<RecentMove>,
    meters: BTreeMap<OpId, Meter>,
    /// Steps that the planner still sees for spreading.
    spread_left: u64,
    splitting: BTreeMap<ShardId, Splitting>,
    /// When each shard was last looked at for a place to cut: what can't be cut must not be read over and over.
    split_tried: BTreeMap<ShardId, Time>,
    /// Leaders that were asked to hand over, and when.
    handed_over: BTreeMap<ShardId, Time>,
    /// Requests per second of each shard, over about half a minute: what happens within seconds is no reason to move
    /// anything. Unit: 1/32 request per second.
    smooth: BTreeMap<ShardId, u64>,
    last_smoothed: Time,
    /// Learners without a task, and since when.
    strays: BTreeMap<(ShardId, ReplicaId), Time>,
    /// Since when a merge's right shard is seen frozen, by the left one.
    frozen_since: BTreeMap<ShardId, Time>,
}

#[derive(Debug)]
struct Asked {
    shard: ShardId,
    until: Time,
    kind: AskedKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AskedKind {
    /// A step of the shard's task.
    Task,
    /// Looking for the middle of a shard, and cutting it there.
    Split,
}

#[derive(Debug, Clone)]
struct Trouble {
    at: Time,
    first: Time,
    code: String,
    text: String,
}

/// How many bytes were done at which time.
#[derive(Debug, Default)]
struct Meter {
    samples: VecDeque<(Time, u64)>,
}

/// A shard whose middle is looked for.
#[derive(Debug)]
struct Splitting {
    epoch: Epoch,
    entities: u64,
    counted: u64,
    from: Position,
    at: Option<Position>,
    child: Option<ShardId>,
}

impl Node {
    /// A report's figures, for the directory's leader.
    pub(super) fn load_reported(&mut self, from: NodeId, load: Load) {
        self.conductor.loads.insert(from, load);
    }

    /// An answer to something that the conductor asked.
    pub(super) fn conductor_answered(&mut self, token: u64, response: Response) {
        self.conductor.answers.push((token, response));
    }

    /// One round, where this node leads the directory.
    pub(super) fn conduct(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        if !self.config.conducts || !self.leads_directory() {
            if self.conductor.since.is_some() {
                self.conductor = Conductor::default();
            }
            return;
        }
        if now.since(self.conductor.last_round) < ROUND_EVERY {
            return;
        }
        self.conductor.last_round = now;
        self.conductor.since.get_or_insert(now);
        if self
            .directory
            .as_ref()
            .is_none_or(|directory| directory.map.nodes.is_empty())
        {
            return;
        }
        self.smooth_loads();
        self.take_answers();
        self.tend_tasks(state, effects);
        self.tend_splits(state, effects);
        self.remove_strays(state, effects);
        self.hand_over_drained(state, effects);
        self.plan_round();
        self.end_reached();
    }

    fn smooth_loads(&mut self) {
        let now = self.clock.now;
        if now.since(self.conductor.last_smoothed) < Span::secs(1) {
            return;
        }
        self.conductor.last_smoothed = now;
        let own = self.own_load();
        let reported = self.conductor.loads.iter().filter(|(node, _)| self.is_up(**node));
        let mut seen = BTreeMap::new();
        for load in reported
            .map(|(_, load)| load)
            .chain([&own])
            .flat_map(|load| &load.shards)
        {
            seen.insert(load.shard, load.requests_per_s);
        }
        let before = std::mem::take(&mut self.conductor.smooth);
        for (shard, rate) in seen {
            let smooth = before
                .get(&shard)
                .map_or(rate * 32, |smooth| smooth - smooth / 32 + rate);
            self.conductor.smooth.insert(shard, smooth);
        }
    }

    // --- asking ------------------------------------------------------------------------------------------------

    fn conductor_ask(
        &mut self,
        shard: ShardId,
        kind: AskedKind,
        request: Request,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let token = self.conductor.next_token;
        self.conductor.next_token += 1;
        let until = self.clock.now + ASK_TIMEOUT;
        self.conductor.asked.insert(token, Asked { shard, until, kind });
        let waiting = Waiting {
            waiter: Waiter::Conductor { token },
            deadline: until,
            id: RequestId(0),
        };
        let principal = Principal {
            name: "isx".to_owned(),
            role: Role::Node,
        };
        self.asked(waiting, principal, request, 0, state, effects);
    }

    fn is_asked(&self, shard: ShardId) -> bool {
        self.conductor.asked.values().any(|asked| asked.shard == shard)
    }

    fn take_answers(&mut self) {
        let now = self.clock.now;
        for (token, response) in std::mem::take(&mut self.conductor.answers) {
            let Some(asked) = self.conductor.asked.remove(&token) else {
                continue;
            };
            match (asked.kind, response) {
                (_, Response::Shard(shard)) => {
                    self.map.learn_shard(&shard);
                    self.conductor.trouble.remove(&asked.shard);
                }
                (AskedKind::Split, response) => self.split_answered(asked.shard, response),
                (AskedKind::Task, Response::Error(error)) => {
                    let trouble = self.conductor.trouble.entry(asked.shard).or_insert(Trouble {
                        at: now,
                        first: now,
                        code: String::new(),
                        text: String::new(),
                    });
                    trouble.at = now;
                    trouble.code = error.code.to_string();
                    trouble.text = error.text;
                }
                (AskedKind::Task, _) => {
                    self.conductor.trouble.remove(&asked.shard);
                }
            }
        }
        self.conductor.asked.retain(|_, asked| asked.until > now);
    }

    fn ledger(&mut self, command: LedgerCommand) {
        self.propose_directory(DirectoryCommand::Ledger(command));
    }

    fn turn(&mut self, op: OpId, state: OpState, result: String) {
        let wall_ms = self.clock.wall_ms;
        self.ledger(LedgerCommand::Turn {
            op,
            state,
            result,
            wall_ms,
        });
    }

    // --- tasks -------------------------------------------------------------------------------------------------

    fn tend_tasks(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        let Some(directory) = &self.directory else { return };
        let tasks: Vec<(Task, bool)> = directory
            .ledger
            .tasks
            .values()
            .map(|task| {
                let op = directory.ledger.ops.get(&task.op);
                (task.clone(), op.is_none_or(|op| op.state.is_over()))
            })
            .collect();
        self.conductor
            .frozen_since
            .retain(|shard, _| tasks.iter().any(|(task, _)| task.shard == *shard));
        for (task, is_off) in tasks {
            if let TaskStep::Merge { right } = task.step
                && self.map.shard(right).is_some_and(|right| right.frozen.is_some())
            {
                // A frozen shard serves nobody: a merge that does not come about at once is given up.
                let since = *self.conductor.frozen_since.entry(task.shard).or_insert(now);
                if !is_off && now.since(since) > FROZEN_FOR {
                    let why = self
                        .conductor
                        .trouble
                        .get(&task.shard)
                        .map(|trouble| trouble.text.clone());
                    let why = why.unwrap_or_else(|| "the left shard did not answer".to_owned());
                    self.turn(
                        task.op,
                        OpState::Failed,
                        format!("given up, {right} serves again: {why}"),
                    );
                }
            }
            let rests = self
                .conductor
                .trouble
                .get(&task.shard)
                .is_some_and(|trouble| now.since(trouble.at) < RETRY_AFTER);
            if rests || self.is_asked(task.shard) {
                continue;
            }
            let next = match task.step {
                TaskStep::Swap { add, remove } => self.next_of_swap(&task, add, remove, is_off),
                TaskStep::Merge { right } => self.next_of_merge(&task, right, is_off),
            };
            match next {
                Next::Ask(request) => self.conductor_ask(task.shard, AskedKind::Task, *request, state, effects),
                Next::Wait => {}
                Next::End => {
                    self.conductor.trouble.remove(&task.shard);
                    if let TaskStep::Swap {
                        add: Some((to, _)),
                        remove: Some(from),
                    } = task.step
                    {
                        let at_ms = now.since(Time(0)).as_millis();
                        self.conductor.recent.push_back(RecentMove {
                            shard: task.shard,
                            what: Moved::Replica,
                            from,
                            to,
                            at_ms,
                        });
                        while self.conductor.recent.len() > RECENT_MAX {
                            self.conductor.recent.pop_front();
                        }
                    }
                    self.ledger(LedgerCommand::End {
                        shard: task.shard,
                        op: task.op,
                    });
                }
            }
        }
    }

    /// Learners that belong to no task: of a shard that was split while a copy was made, or of a tool that gave up.
    fn remove_strays(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        let Some(directory) = &self.directory else { return };
        let tasks = &directory.ledger.tasks;
        let mut strays = Vec::new();
        for shard in self.map.shards() {
            if tasks.contains_key(&shard.id) || shard.is_joint() || shard.frozen.is_some() {
                continue;
            }
            let voters = shard.replicas.iter().filter(|replica| replica.role.votes()).count();
            let service = directory.map.services.get(shard.range.service());
            let wanted = service.map_or(3, |service| service.replicas as usize);
            let learner = shard
                .replicas
                .iter()
                .find(|replica| replica.role == ReplicaRole::Learner);
            if let Some(learner) = learner.filter(|_| voters >= wanted) {
                strays.push((shard.id, shard.epoch, learner.id));
            }
        }
        let known = &mut self.conductor.strays;
        known.retain(|key, _| strays.iter().any(|(shard, _, id)| *key == (*shard, *id)));
        let mut due = Vec::new();
        for (shard, epoch, id) in strays {
            let since = *known.entry((shard, id)).or_insert(now);
            if now.since(since) >= STRAY_FOR {
                known.insert((shard, id), now);
                due.push((shard, epoch, id));
            }
        }
        for (shard, epoch, replica) in due {
            if self.is_asked(shard) {
                continue;
            }
            let request = Request::ChangeReplicas {
                shard,
                epoch,
                changes: vec![ReplicaChange::Remove { replica }],
                id: step_id(OpId(0), shard, epoch),
            };
            self.conductor_ask(shard, AskedKind::Task, request, state, effects);
        }
    }

    fn next_of_swap(
        &self,
        task: &Task,
        add: Option<(NodeId, ReplicaId)>,
        remove: Option<NodeId>,
        is_off: bool,
    ) -> Next {
        let Some(shard) = self.map.shard(task.shard) else {
            return if self.map.absorber(task.shard).is_some() {
                Next::End
            } else {
                Next::Wait
            };
        };
        if shard.is_joint() || shard.frozen.is_some() {
            return Next::Wait;
        }
        let change = |changes: Vec<ReplicaChange>| {
            Next::Ask(Box::new(Request::ChangeReplicas {
                shard: shard.id,
                epoch: shard.epoch,
                changes,
                id: step_id(task.op, shard.id, shard.epoch),
            }))
        };
        let by_id = add.and_then(|(_, replica)| shard.replica(replica));
        // A learner that somebody left there does as well.
        let left_there = add.and_then(|(node, _)| shard.replica_on(node));
        let added = by_id.or_else(|| left_there.filter(|there| there.role == ReplicaRole::Learner));
        let removed = remove.and_then(|node| shard.replica_on(node));
        // A swap's votes change hands in one step: once the new copy votes, the old one does not, and only goes.
        let is_swapped = added.is_some_and(|added| added.role == ReplicaRole::Voter);
        if is_off && !is_swapped {
            return match added {
                Some(added) => change(vec![ReplicaChange::Remove { replica: added.id }]),
                None => match removed {
                    // Given up between losing its vote and going: it goes, or it would be a learner for ever.
                    Some(removed) if removed.role == ReplicaRole::Learner => {
                        change(vec![ReplicaChange::Remove { replica: removed.id }])
                    }
                    _ => Next::End,
                },
            };
        }
        match (add, added) {
            (Some((node, replica)), None) => {
                // There already; or it was there and somebody removed it, and its id must not come back.
                if shard.replica_on(node).is_some() || replica <= shard.newest_replica {
                    return Next::End;
                }
                change(vec![ReplicaChange::AddLearner { node, replica }])
            }
            (Some(_), Some(added)) if added.role == ReplicaRole::Learner => {
                let mut changes = vec![ReplicaChange::Promote { replica: added.id }];
                if let Some(removed) = removed.filter(|removed| removed.role == ReplicaRole::Voter) {
                    changes.push(ReplicaChange::Demote { replica: removed.id });
                }
                change(changes)
            }
            _ => match removed {
                Some(removed) => change(vec![ReplicaChange::Remove { replica: removed.id }]),
                None => Next::End,
            },
        }
    }

    fn next_of_merge(&self, task: &Task, right: ShardId, is_off: bool) -> Next {
        let Some(left) = self.map.shard(task.shard) else {
            return if self.map.absorber(task.shard).is_some() {
                Next::End
            } else {
                Next::Wait
            };
        };
        let Some(right) = self.map.shard(right) else {
            return Next::End;
        };
        let id = step_id(task.op, right.id, Epoch(left.epoch.0 ^ right.epoch.0 << 24));
        let ask = |request| Next::Ask(Box::new(request));
        match right.frozen {
            Some(frozen) if frozen.into != left.id => Next::Wait,
            Some(frozen) if frozen.left_epoch == left.epoch && !is_off => ask(Request::MergeShards {
                left: left.id,
                left_epoch: left.epoch,
                right: Box::new(right.clone()),
                id,
            }),
            // Given up, or the left one has moved on: first make sure that the merge can't happen any more.
            Some(frozen) if frozen.left_epoch >= left.epoch => ask(Request::BumpEpoch {
                shard: left.id,
                epoch: left.epoch,
                id,
            }),
            Some(_) => ask(Request::ThawShard {
                shard: right.id,
                proof: Box::new(left.clone()),
                id,
            }),
            None if is_off => Next::End,
            None if left.range.end != right.range.start || left.settled_nodes() != right.settled_nodes() => Next::End,
            None => {
                // A freeze stops the shard: not before everybody who has to confirm it is there.
                let absent = right.replicas.iter().find(|replica| !self.is_up(replica.node));
                if absent.is_some() || left.is_joint() || right.is_joint() || left.frozen.is_some() {
                    return Next::Wait;
                }
                ask(Request::FreezeShard {
                    shard: right.id,
                    epoch: right.epoch,
                    into: left.id,
                    left_epoch: left.epoch,
                    id,
                })
            }
        }
    }

    // --- planning ----------------------------------------------------------------------------------------------

    fn is_up(&self, node: NodeId) -> bool {
        node == self.config.node
            || self
                .heard
                .get(&node)
                .is_some_and(|&heard| self.clock.now.since(heard) <= super::limits::PEER_SILENT_AFTER)
    }

    /// The cluster as this node sees it; `emptied` is a node that the question is about.
    pub(super) fn cluster_view(&self, emptied: Option<NodeId>) -> ClusterView {
        let now = self.clock.now;
        let mut view = ClusterView {
            version: self.map.version,
            now_ms: now.since(Time(0)).as_millis(),
            recent: self.conductor.recent.iter().copied().collect(),
            ..ClusterView::default()
        };
        let Some(directory) = &self.directory else { return view };
        let ledger = &directory.ledger;
        let settings = &ledger.settings;
        let pace = ledger.open().map(|op| op.pace).max().unwrap_or(settings.pace);
        view.settings = PlanSettings {
            heal_after_ms: settings.heal_after_ms,
            disk_limit_percent: settings.disk_limit_percent,
            hysteresis_percent: settings.hysteresis_percent,
            cooldown_ms: settings.cooldown_ms,
            pace,
        };
        let own = self.own_load();
        let load_of = |node: NodeId| {
            if node == self.config.node {
                Some(&own)
            } else {
                self.conductor.loads.get(&node)
            }
        };
        for info in directory
            .map
            .nodes
            .values()
            .filter(|info| info.membership != Membership::Gone)
        {
            let heard = match (info.id == self.config.node, self.heard.get(&info.id)) {
                (true, _) => now,
                (false, Some(&heard)) => heard,
                (false, None) => self.conductor.since.unwrap_or(now),
            };
            let silent = now.since(heard);
            let health = if silent <= super::limits::PEER_SILENT_AFTER {
                Health::Up
            } else if silent <= DOWN_AFTER {
                Health::Suspect
            } else {
                Health::Down
            };
            let load = load_of(info.id);
            let replaced = ledger
                .open()
                .any(|op| matches!(op.goal, Goal::Replace { old, .. } if old == info.id));
            view.nodes.push(NodeView {
                id: info.id,
                zone: info.zone.clone(),
                membership: info.membership,
                health,
                down_ms: silent.as_millis(),
                intent: if replaced {
                    Intent::DrainAll
                } else {
                    info.overlay.intent
                },
                maintenance: info.overlay.maintenance_until_ms > self.clock.wall_ms,
                disk_total: load.map_or(0, |load| load.disk_total),
                disk_used: load.map_or(0, |load| load.disk_total.saturating_sub(load.disk_free)),
            });
        }
        view.services.push(ServiceView {
            name: "directory".to_owned(),
            split_bytes: u64::MAX,
            split_load: 0,
            merge_bytes: 0,
            min_shards: 1,
        });
        // Five copies of the directory where there are five nodes that stay.
        let stays = |node: &&NodeView| {
            node.membership == Membership::Active && node.intent == Intent::Stay && Some(node.id) != emptied
        };
        let members = view.nodes.iter().filter(stays).count();
        view.rules.push(Rule {
            name: "directory".to_owned(),
            replicas: if members >= 5 { 5 } else { 3.min(members.max(1) as u32) },
            ..Rule::default()
        });
        let mut index = BTreeMap::new();
        for service in directory.map.services.values() {
            index.insert(service.name.as_str(), view.services.len() as u16);
            view.services.push(ServiceView {
                name: service.name.clone(),
                split_bytes: service.sizes.split_bytes,
                split_load: service.sizes.split_load,
                merge_bytes: service.sizes.merge_bytes,
                min_shards: service.sizes.min_shards.max(1),
            });
            view.rules.push(Rule {
                name: service.name.clone(),
                service: Some(service.name.clone()),
                replicas: service.replicas,
                ..Rule::default()
            });
        }
        let mut loads: BTreeMap<ShardId, (NodeId, &crate::protocol::message::ShardLoad)> = BTreeMap::new();
        for node in view.nodes.iter().filter(|node| node.health == Health::Up) {
            for shard in load_of(node.id).into_iter().flat_map(|load| &load.shards) {
                loads.insert(shard.shard, (node.id, shard));
            }
        }
        let right_of_tasks: BTreeSet<ShardId> = ledger
            .tasks
            .values()
            .filter_map(|task| match task.step {
                TaskStep::Merge { right } => Some(right),
                TaskStep::Swap { .. } => None,
            })
            .collect();
        for shard in self.map.shards() {
            let load = loads.get(&shard.id);
            let service = match shard.id == DIRECTORY_SHARD {
                true => 0,
                false => index.get(shard.range.start.parts().0).copied().unwrap_or(0),
            };
            let is_busy = ledger.tasks.contains_key(&shard.id)
                || right_of_tasks.contains(&shard.id)
                || shard.is_joint()
                || shard.frozen.is_some()
                || self.conductor.splitting.contains_key(&shard.id);
            let behind = |replica: &ReplicaId| load.is_some_and(|(_, load)| load.behind.contains(replica));
            let leader = load.map(|(node, _)| *node).or_else(|| {
                let (_, node) = self.map.leader(shard.id)?;
                self.is_up(node).then_some(node)
            });
            view.shards.push(ShardView {
                id: shard.id,
                epoch: shard.epoch,
                bytes: load.map_or(0, |(_, load)| load.bytes),
                entities: load.map_or(0, |(_, load)| load.entities),
                load: self.conductor.smooth.get(&shard.id).map_or(0, |smooth| smooth / 32),
                replicas: shard
                    .replicas
                    .iter()
                    .map(|replica| ReplicaView {
                        node: replica.node,
                        id: replica.id,
                        role: replica.role,
                        is_caught_up: self.is_up(replica.node) && !behind(&replica.id),
                    })
                    .collect(),
                leader,
                service,
                rule: service,
                is_pinned: false,
                is_busy,
                is_sticky: false,
            });
        }
        view
    }

    /// What the tasks under way are to the planner.
    fn running_steps(&self) -> Vec<Step> {
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let step = |task: &Task| {
            let shard = self.map.shard(task.shard)?;
            let kind = match task.step {
                TaskStep::Swap {
                    add: Some((to, _)),
                    remove: Some(from),
                } => StepKind::SwapReplica { from, to, lead: None },
                TaskStep::Swap {
                    add: Some((node, _)),
                    remove: None,
                } => StepKind::AddReplica { node },
                TaskStep::Swap {
                    add: None,
                    remove: Some(node),
                } => StepKind::RemoveReplica { node },
                TaskStep::Swap { .. } => return None,
                TaskStep::Merge { right } => StepKind::Merge { right },
            };
            Some(Step {
                shard: shard.id,
                epoch: shard.epoch,
                kind,
                why: Why::Drain,
                bytes: 0,
            })
        };
        directory.ledger.tasks.values().filter_map(step).collect()
    }

    fn plan_round(&mut self) {
        let now = self.clock.now;
        let settled = self
            .conductor
            .since
            .is_some_and(|since| now.since(since) >= SETTLE_FIRST);
        if !settled || now.since(self.conductor.last_plan) < PLAN_EVERY {
            return;
        }
        self.conductor.last_plan = now;
        let Some(directory) = &self.directory else { return };
        let ledger = directory.ledger.clone();
        self.begin_named(&ledger);
        let view = self.cluster_view(None);
        let asked_to_spread = ledger
            .open()
            .any(|op| op.goal == Goal::Rebalance && op.state == OpState::Running);
        let mut goals = Goals::needful();
        if asked_to_spread || ledger.settings.auto_rebalance {
            (goals.replicas, goals.bytes, goals.leaders, goals.load) = (true, true, true, true);
        }
        (goals.split, goals.merge) = (ledger.settings.auto_split, ledger.settings.auto_split);
        let mut running = self.running_steps();
        for (&shard, &at) in &self.conductor.handed_over {
            // Give a transfer time before another one is planned.
            if now.since(at) < HAND_OVER_EVERY
                && let Some((_, from)) = self.map.leader(shard)
            {
                running.push(Step {
                    shard,
                    epoch: Epoch(0),
                    kind: StepKind::TransferLeader { from, to: from },
                    why: Why::Leaders,
                    bytes: 0,
                });
            }
        }
        let steps = plan::next_steps(&view, &goals, &running, &Limits::of(&view));
        self.conductor.spread_left = steps.iter().filter(|step| step.why > Why::Drain).count() as u64;
        for step in steps {
            self.begin_step(&ledger, &step, &view);
        }
    }

    /// Operations that name their shards themselves.
    fn begin_named(&mut self, ledger: &super::ledger::Ledger) {
        let mut begins = Vec::new();
        let mut fails = Vec::new();
        for op in ledger.open().filter(|op| op.state == OpState::Running) {
            let swap = |shard: ShardId, add: Option<NodeId>, remove: Option<NodeId>| Task {
                shard,
                op: op.id,
                step: TaskStep::Swap {
                    add: add.map(|node| (node, ReplicaId(0))),
                    remove,
                },
            };
            match op.goal {
                Goal::Move { shard, from, to } => begins.push(swap(shard, Some(to), Some(from))),
                Goal::AddReplica { shard, to } => begins.push(swap(shard, Some(to), None)),
                Goal::RemoveReplica { shard, from } => begins.push(swap(shard, None, Some(from))),
                Goal::Replace { old, new } => {
                    let room = op.pace.copies_per_node() as usize;
                    let under_way = ledger.tasks.values().filter(|task| task.op == op.id).count();
                    let left = self
                        .map
                        .shards()
                        .filter(|shard| shard.replica_on(old).is_some() && shard.replica_on(new).is_none())
                        .filter(|shard| !ledger.tasks.contains_key(&shard.id));
                    let left: Vec<ShardId> = left
                        .map(|shard| shard.id)
                        .take(room.saturating_sub(under_way))
                        .collect();
                    begins.extend(left.into_iter().map(|shard| swap(shard, Some(new), Some(old))));
                }
                Goal::Merge { left, right } => match (self.map.shard(left), self.map.shard(right)) {
                    // What is being changed for another reason is settled first.
                    (Some(l), Some(r))
                        if ledger.tasks.contains_key(&l.id)
                            || ledger.tasks.contains_key(&r.id)
                            || l.settled_nodes().is_none()
                            || r.settled_nodes().is_none() => {}
                    (Some(l), Some(r)) => match align(l, r) {
                        Ok(Some((add, remove))) => begins.push(swap(right, Some(add), Some(remove))),
                        Ok(None) => begins.push(Task {
                            shard: left,
                            op: op.id,
                            step: TaskStep::Merge { right },
                        }),
                        Err(why) => fails.push((op.id, why)),
                    },
                    _ => {}
                },
                _ => {}
            }
        }
        for task in begins {
            if !ledger.tasks.contains_key(&task.shard) && !self.is_reached(&ledger.ops[&task.op].goal) {
                self.ledger(LedgerCommand::Begin(task));
            }
        }
        for (op, why) in fails {
            self.turn(op, OpState::Failed, why);
        }
    }

    fn begin_step(&mut self, ledger: &super::ledger::Ledger, step: &Step, view: &ClusterView) {
        let running = |goal: &dyn Fn(&Goal) -> bool| ledger.open().find(|op| goal(&op.goal));
        let (add, remove) = match step.kind {
            StepKind::TransferLeader { to, .. } => {
                self.conductor.handed_over.insert(step.shard, self.clock.now);
                self.conductor.recent.push_back(RecentMove {
                    shard: step.shard,
                    what: Moved::Leader,
                    from: step.nodes().next().unwrap_or(to),
                    to,
                    at_ms: self.clock.now.since(Time(0)).as_millis(),
                });
                self.transfers.push((step.shard, to));
                return;
            }
            StepKind::Split { .. } => {
                if let Some(shard) = self.map.shard(step.shard)
                    && !self.conductor.splitting.contains_key(&step.shard)
                    && self
                        .conductor
                        .split_tried
                        .get(&step.shard)
                        .is_none_or(|&at| self.clock.now.since(at) >= SPLIT_AGAIN_AFTER)
                {
                    self.conductor.split_tried.insert(step.shard, self.clock.now);
                    let entities = view
                        .shards
                        .iter()
                        .find(|s| s.id == step.shard)
                        .map_or(0, |s| s.entities);
                    self.conductor.splitting.insert(
                        step.shard,
                        Splitting {
                            epoch: shard.epoch,
                            entities,
                            counted: 0,
                            from: shard.range.start.clone(),
                            at: None,
                            child: None,
                        },
                    );
                }
                return;
            }
            StepKind::Merge { right } => {
                let goal = Goal::Merge {
                    left: step.shard,
                    right,
                };
                if ledger.same(&goal, RequestId(0)).is_none() {
                    self.start_own(goal, "small neighbours");
                }
                return;
            }
            StepKind::AddReplica { node } => (Some(node), None),
            StepKind::SwapReplica { from, to, .. } => (Some(to), Some(from)),
            StepKind::RemoveReplica { node } => (None, Some(node)),
        };
        let for_node = remove.and_then(|from| running(&|goal: &Goal| goal.node() == Some(from)));
        let lost = remove
            .and_then(|from| view.node(from))
            .filter(|node| node.is_lost(&view.settings));
        let op = match (for_node, lost) {
            (Some(op), _) => Some(op),
            (None, Some(node)) => {
                self.start_own(Goal::Heal { node: node.id }, "it does not answer");
                return;
            }
            (None, None) => running(&|goal: &Goal| *goal == Goal::Rebalance),
        };
        let Some(op) = op else {
            self.start_own(Goal::Rebalance, &format!("{}", step.why));
            return;
        };
        if op.state == OpState::Running {
            let op = op.id;
            self.ledger(LedgerCommand::Begin(Task {
                shard: step.shard,
                op,
                step: TaskStep::Swap {
                    add: add.map(|node| (node, ReplicaId(0))),
                    remove,
                },
            }));
        }
    }

    fn start_own(&mut self, goal: Goal, because: &str) {
        let op = self.new_op(goal, None, "isx", because, RequestId(0));
        self.ledger(LedgerCommand::Start(Box::new(op)));
    }

    /// An operation as it begins.
    pub(super) fn new_op(&self, goal: Goal, pace: Option<Pace>, by: &str, because: &str, request: RequestId) -> Op {
        let settings = self.directory.as_ref().map(|directory| directory.ledger.settings.pace);
        let (total, total_bytes) = self.left_of(&goal);
        Op {
            id: OpId(0),
            goal,
            pace: pace.or(settings).unwrap_or_default(),
            state: OpState::Running,
            by: by.to_owned(),
            because: because.chars().take(BECAUSE_MAX).collect(),
            request,
            created_ms: self.clock.wall_ms,
            ended_ms: 0,
            total,
            total_bytes,
            result: String::new(),
        }
    }

    // --- drained nodes -----------------------------------------------------------------------------------------

    /// Leaders leave drained nodes, and do not come back; and transfers that the planner wants.
    fn hand_over_drained(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        self.conductor
            .split_tried
            .retain(|_, at| now.since(*at) < SPLIT_AGAIN_AFTER);
        self.conductor
            .handed_over
            .retain(|_, at| now.since(*at) < Span::secs(10));
        let mut transfers = std::mem::take(&mut self.transfers);
        let drained: BTreeSet<NodeId> = self
            .map
            .nodes
            .values()
            .filter(|info| info.overlay.intent != Intent::Stay)
            .map(|info| info.id)
            .collect();
        if !drained.is_empty() {
            let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
            for shard in self.map.shards() {
                if let Some((_, leader)) = self.map.leader(shard.id) {
                    *leads.entry(leader).or_default() += 1;
                }
            }
            let own = self.own_load();
            for shard in self.map.shards() {
                let Some((_, leader)) = self.map.leader(shard.id).filter(|(_, node)| drained.contains(node)) else {
                    continue;
                };
                let asked = self.conductor.handed_over.get(&shard.id);
                if transfers.len() >= HAND_OVERS_AT_ONCE || asked.is_some_and(|&at| now.since(at) < HAND_OVER_EVERY) {
                    continue;
                }
                let load = if leader == self.config.node {
                    Some(&own)
                } else {
                    self.conductor.loads.get(&leader)
                };
                let behind = |id: ReplicaId| {
                    let shard = load.and_then(|load| load.shards.iter().find(|known| known.shard == shard.id));
                    shard.is_some_and(|load| load.behind.contains(&id))
                };
                let fit = shard.replicas.iter().filter(|replica| {
                    replica.role == ReplicaRole::Voter
                        && !drained.contains(&replica.node)
                        && self.is_up(replica.node)
                        && !behind(replica.id)
                });
                if let Some(to) =
                    fit.min_by_key(|replica| (leads.get(&replica.node).copied().unwrap_or(0), replica.node))
                {
                    *leads.entry(to.node).or_default() += 1;
                    transfers.push((shard.id, to.node));
                }
            }
        }
        for (shard, to) in transfers {
            self.conductor.handed_over.insert(shard, now);
            let waiting = Waiting {
                waiter: Waiter::Own,
                deadline: now + ASK_TIMEOUT,
                id: RequestId(0),
            };
            let principal = Principal {
                name: "isx".to_owned(),
                role: Role::Node,
            };
            self.asked(
                waiting,
                principal,
                Request::TransferLeader { shard, to },
                0,
                state,
                effects,
            );
        }
    }

    // --- the end -----------------------------------------------------------------------------------------------

    /// What is left to do for a goal, in steps and bytes.
    fn left_of(&self, goal: &Goal) -> (u64, u64) {
        let bytes = |shard: ShardId| {
            let known = self.conductor.loads.values().flat_map(|load| &load.shards);
            let own = self.replicas.get(&shard).map(|replica| replica.bytes);
            own.or_else(|| known.filter(|load| load.shard == shard).map(|load| load.bytes).next())
                .unwrap_or(0)
        };
        match *goal {
            Goal::Drain {
                node,
                everything: false,
            } => {
                let led = self
                    .map
                    .shards()
                    .filter(|shard| self.map.leader(shard.id).is_some_and(|(_, leader)| leader == node));
                (led.count() as u64, 0)
            }
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } | Goal::Replace { old: node, .. } => {
                let held = self.map.shards().filter(|shard| shard.replica_on(node).is_some());
                held.fold((0, 0), |(count, sum), shard| (count + 1, sum + bytes(shard.id)))
            }
            Goal::Rebalance => (self.conductor.spread_left, 0),
            Goal::Move { shard, .. } | Goal::AddReplica { shard, .. } => {
                if self.is_reached(goal) {
                    (0, 0)
                } else {
                    (1, bytes(shard))
                }
            }
            Goal::RemoveReplica { .. } | Goal::Merge { .. } => (u64::from(!self.is_reached(goal)), 0),
        }
    }

    fn is_reached(&self, goal: &Goal) -> bool {
        let shard_is = |shard: ShardId, test: &dyn Fn(&ShardDescriptor) -> bool| {
            self.map
                .shard(shard)
                .is_some_and(|shard| !shard.is_joint() && test(shard))
        };
        let votes_on = |shard: &ShardDescriptor, node: NodeId| {
            shard
                .replica_on(node)
                .is_some_and(|replica| replica.role == ReplicaRole::Voter)
        };
        match *goal {
            Goal::Move { shard, from, to } => {
                shard_is(shard, &|shard| votes_on(shard, to) && shard.replica_on(from).is_none())
            }
            Goal::AddReplica { shard, to } => shard_is(shard, &|shard| votes_on(shard, to)),
            Goal::RemoveReplica { shard, from } => shard_is(shard, &|shard| shard.replica_on(from).is_none()),
            Goal::Merge { right, .. } => self.map.absorber(right).is_some(),
            Goal::Rebalance => self.conductor.spread_left == 0,
            _ => self.left_of(goal).0 == 0,
        }
    }

    fn end_reached(&mut self) {
        let now = self.clock.now;
        let Some(directory) = &self.directory else { return };
        let ledger = &directory.ledger;
        let settled = self
            .conductor
            .since
            .is_some_and(|since| now.since(since) >= SETTLED_AFTER);
        let mut ends = Vec::new();
        let mut dismissals = Vec::new();
        for op in ledger.open().filter(|op| op.state == OpState::Running) {
            let has_tasks = ledger.tasks.values().any(|task| task.op == op.id);
            if !settled || has_tasks {
                continue;
            }
            let gone = |shard: ShardId| self.map.absorber(shard);
            match op.goal {
                Goal::Leave { node } | Goal::Replace { old: node, .. } if self.left_of(&op.goal).0 == 0 => {
                    dismissals.push((op.id, node));
                }
                Goal::Drain { node, everything } if self.left_of(&op.goal).0 == 0 => {
                    let holds = if everything { "holds nothing" } else { "leads nothing" };
                    ends.push((op.id, OpState::Done, format!("{node} {holds} any more")));
                }
                Goal::Heal { node } => {
                    if self.left_of(&op.goal).0 == 0 {
                        ends.push((op.id, OpState::Done, format!("what {node} held is elsewhere")));
                    } else if self.is_up(node) {
                        ends.push((op.id, OpState::Done, format!("{node} is back")));
                    }
                }
                Goal::Merge { left, right } if gone(left).is_some() && gone(right).is_none() => {
                    ends.push((op.id, OpState::Failed, format!("{left} is no more")));
                }
                Goal::Move { shard, .. } | Goal::AddReplica { shard, .. } | Goal::RemoveReplica { shard, .. }
                    if gone(shard).is_some() =>
                {
                    ends.push((op.id, OpState::Failed, format!("{shard} was absorbed")));
                }
                Goal::Rebalance
                | Goal::Move { .. }
                | Goal::AddReplica { .. }
                | Goal::RemoveReplica { .. }
                | Goal::Merge { .. }
                    if self.is_reached(&op.goal) =>
                {
                    ends.push((op.id, OpState::Done, "as asked".to_owned()));
                }
                _ => {}
            }
        }
        for (op, state, result) in ends {
            self.turn(op, state, result);
        }
        let wall_ms = self.clock.wall_ms;
        for (op, node) in dismissals {
            self.propose_directory(DirectoryCommand::Dismiss { node, op, wall_ms });
        }
    }

    // --- splitting by itself -----------------------------------------------------------------------------------

    fn tend_splits(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let shards: Vec<ShardId> = self.conductor.splitting.keys().copied().collect();
        for shard in shards {
            if self.is_asked(shard) {
                continue;
            }
            let now_epoch = self.map.shard(shard).map(|known| (known.epoch, known.range.clone()));
            let Some(splitting) = self.conductor.splitting.get(&shard) else {
                continue;
            };
            let Some((epoch, range)) = now_epoch.filter(|(epoch, _)| *epoch == splitting.epoch) else {
                // Done, or something else happened to it.
                self.conductor.splitting.remove(&shard);
                continue;
            };
            let id = RequestId(u128::from(shard.0) << 64 | u128::from(epoch.0));
            let request = match (&splitting.at, splitting.child) {
                (None, _) => Request::List {
                    from: splitting.from.clone(),
                    to: range.end,
                    limit: SPLIT_PAGE,
                    documents: false,
                },
                (Some(_), None) => Request::AllocateIds { count: 1, id },
                (Some(at), Some(child)) => Request::SplitShard {
                    shard,
                    epoch,
                    at: at.clone(),
                    child,
                    id,
                },
            };
            self.conductor_ask(shard, AskedKind::Split, request, state, effects);
        }
    }

    fn split_answered(&mut self, shard: ShardId, response: Response) {
        let start = self.map.shard(shard).map(|shard| shard.range.start.clone());
        let Some(splitting) = self.conductor.splitting.get_mut(&shard) else {
            return;
        };
        match response {
            Response::Listed { items, next } => {
                splitting.counted += items.len() as u64;
                let half = (splitting.entities / 2).max(1);
                let service = splitting.from.parts().0.to_owned();
                let middle = items
                    .len()
                    .saturating_sub(1 + splitting.counted.saturating_sub(half) as usize);
                match (splitting.counted >= half || next.is_none(), items.get(middle), next) {
                    (true, Some(item), _) => {
                        let at = Position::new(&service, &item.key);
                        if start.is_some_and(|start| at > start) {
                            splitting.at = Some(at);
                        } else {
                            self.conductor.splitting.remove(&shard);
                        }
                    }
                    (false, _, Some(next)) => splitting.from = next,
                    _ => {
                        self.conductor.splitting.remove(&shard);
                    }
                }
            }
            Response::Ids { first } => splitting.child = Some(ShardId(first)),
            Response::Split { left, right } => {
                self.map.learn_shard(&left);
                self.map.learn_shard(&right);
                self.conductor.splitting.remove(&shard);
            }
            _ => {
                self.conductor.splitting.remove(&shard);
            }
        }
    }

    // --- the operator's questions ------------------------------------------------------------------------------

    /// A request about operations, nodes or settings, at the directory's leader.
    pub(super) fn operator_asked(&mut self, waiting: Waiting, by: &str, request: Request, effects: &mut Effects) {
        let response = match request {
            Request::ListOps { all } => Response::Ops(self.op_views(all)),
            Request::ShowSettings => {
                let settings = self
                    .directory
                    .as_ref()
                    .map(|directory| directory.ledger.settings.clone());
                Response::Settings(settings.unwrap_or_default())
            }
            Request::MayStop { nodes } => match check::ok_to_stop(&self.cluster_view(None), &nodes) {
                Ok(()) => Response::Asked,
                Err(blockers) => Response::Error(refused("these nodes can't be stopped now", &blockers)),
            },
            Request::StartOp {
                goal,
                pace,
                because,
                dry_run,
                id,
            } => {
                let op = self.new_op(goal, pace, by, &because, id);
                match self.check_op(&op) {
                    Err(error) => Response::Error(error),
                    Ok(view) if dry_run => Response::Ops(vec![view]),
                    Ok(_) => {
                        let command = DirectoryCommand::Ledger(LedgerCommand::Start(Box::new(op)));
                        return self.propose_for(waiting, command);
                    }
                }
            }
            Request::ControlOp { op, action, .. } => {
                let wall_ms = self.clock.wall_ms;
                let turn = |state, result: &str| LedgerCommand::Turn {
                    op,
                    state,
                    result: result.to_owned(),
                    wall_ms,
                };
                let command = match action {
                    OpAction::Pause => turn(OpState::Paused, ""),
                    OpAction::Resume => turn(OpState::Running, ""),
                    OpAction::Cancel => turn(OpState::Cancelled, &format!("cancelled by {by}")),
                    OpAction::SetPace(pace) => LedgerCommand::SetPace { op, pace },
                };
                return self.propose_for(waiting, DirectoryCommand::Ledger(command));
            }
            Request::ChangeNode { node, change, .. } => {
                if change == NodeChange::Forget && self.is_up(node) {
                    let text = format!("{node} answers; a living node leaves: nothing was changed");
                    Response::Error(WireError::new(Code::UnsafeOp, text))
                } else {
                    let wall_ms = self.clock.wall_ms;
                    let command = DirectoryCommand::ChangeNode { node, change, wall_ms };
                    return self.propose_for(waiting, command);
                }
            }
            Request::SetSettings { settings, .. } => match check_settings(&settings) {
                Ok(()) => {
                    return self.propose_for(waiting, DirectoryCommand::Ledger(LedgerCommand::Set(settings)));
                }
                Err(text) => Response::Error(WireError::new(Code::BadRequest, text)),
            },
            Request::SetService {
                name, replicas, sizes, ..
            } => {
                if !(1..=7).contains(&replicas) || replicas % 2 == 0 {
                    let text = format!("{replicas} copies: 1, 3, 5 or 7 can be kept; nothing was changed");
                    Response::Error(WireError::new(Code::BadRequest, text))
                } else {
                    let command = DirectoryCommand::SetService { name, replicas, sizes };
                    return self.propose_for(waiting, command);
                }
            }
            _ => Response::Error(WireError::new(Code::BadRequest, "not a question to the directory")),
        };
        self.reply(waiting, response, None, None, effects);
    }

    fn propose_for(&mut self, waiting: Waiting, command: DirectoryCommand) {
        if let Some(replica) = self.replicas.get_mut(&DIRECTORY_SHARD) {
            replica.propose(super::command::Command::Directory(command), waiting);
            self.touch(DIRECTORY_SHARD);
        }
    }

    fn propose_directory(&mut self, command: DirectoryCommand) {
        let waiting = Waiting {
            waiter: Waiter::Own,
            deadline: self.clock.now + ASK_TIMEOUT,
            id: RequestId(0),
        };
        self.propose_for(waiting, command);
    }

    /// Whether an operation can reach its goal, and what it takes.
    fn check_op(&self, op: &Op) -> Result<OpView, WireError> {
        let view = self.cluster_view(op.goal.node());
        let unknown_shard = |shard: ShardId| {
            let text = format!("no {shard} is known; nothing was changed");
            WireError::new(Code::NoSuchShard, text)
        };
        if let Some(directory) = &self.directory {
            // Attaching to what is under way needs no check.
            if let Some(known) = directory.ledger.same(&op.goal, op.request) {
                return Ok(self.op_view(known, &view));
            }
            if let Some(other) = directory.ledger.conflict(&op.goal) {
                let text = format!("{} ({}) is in the way; nothing was changed", other.id, other.goal);
                return Err(WireError::new(Code::OpConflict, text));
            }
        }
        let shard = |id: ShardId| self.map.shard(id).ok_or_else(|| unknown_shard(id));
        let bad = |text: String| Err(WireError::new(Code::BadChange, text));
        let why = |what: &str| format!("{what} can't be done");
        let planned = match op.goal {
            Goal::Drain {
                node,
                everything: false,
            } => check::check_restart(&view, &[node]),
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } => check::check_leave(&view, &[node]),
            Goal::Replace { old, new } => {
                for node in [old, new] {
                    if view.node(node).is_none() {
                        let text = format!("{node} is no member of this cluster; nothing was changed");
                        return Err(WireError::new(Code::NoSuchNode, text));
                    }
                }
                if old == new || view.node(new).is_some_and(|node| !node.is_target()) {
                    return bad(format!("{new} can't take copies now; nothing was changed"));
                }
                Ok(plan::Plan::default())
            }
            Goal::Rebalance => Ok(plan::plan(
                &view,
                &Goals {
                    replicas: true,
                    bytes: true,
                    leaders: true,
                    load: true,
                    ..Goals::none()
                },
            )),
            Goal::Move { shard: id, from, to } => {
                let shard = shard(id)?;
                if shard.replica_on(from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replica_on(to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, to)?;
                Ok(plan::Plan::default())
            }
            Goal::AddReplica { shard: id, to } => {
                if shard(id)?.replica_on(to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, to)?;
                Ok(plan::Plan::default())
            }
            Goal::RemoveReplica { shard: id, from } => {
                let shard = shard(id)?;
                if shard.replica_on(from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replicas.len() <= 1 {
                    return bad(format!("{from} has the last copy of {id}; nothing was changed"));
                }
                Ok(plan::Plan::default())
            }
            Goal::Merge { left, right } => {
                let (left, right) = (shard(left)?, shard(right)?);
                if left.range.end != right.range.start || left.range.service() != right.range.service() {
                    let text = format!(
                        "{} {} does not end where {} {} begins; nothing was changed",
                        left.id, left.range, right.id, right.range
                    );
                    return Err(WireError::new(Code::BadMerge, text));
                }
                Ok(plan::Plan::default())
            }
        };
        let planned = planned.map_err(|blockers| refused(&why(&op.goal.to_string()), &blockers))?;
        let mut shown = self.op_view(op, &view);
        shown.op.state = OpState::Planned;
        if !planned.steps.is_empty() {
            shown.total = planned.steps.len() as u64;
            shown.total_bytes = planned.bytes;
            shown.steps = planned
                .steps
                .iter()
                .take(STEPS_SHOWN)
                .map(ToString::to_string)
                .collect();
            shown.eta_s = Some((planned.time_ms.0.div_ceil(1000), planned.time_ms.1.div_ceil(1000)));
            shown.tolerance = (
                planned.tolerance_before.nodes,
                planned.tolerance_lowest.nodes,
                planned.tolerance_after.nodes,
            );
        }
        Ok(shown)
    }

    fn check_target(&self, view: &ClusterView, to: NodeId) -> Result<(), WireError> {
        match view.node(to) {
            None => {
                let text = format!("{to} is no member of this cluster; nothing was changed");
                Err(WireError::new(Code::NoSuchNode, text))
            }
            Some(node) if !node.is_target() => {
                let text = format!(
                    "{to} can't take copies now: it is silent, draining or in maintenance; nothing was changed"
                );
                Err(WireError::new(Code::BadTarget, text))
            }
            Some(_) => Ok(()),
        }
    }

    fn op_views(&mut self, all: bool) -> Vec<OpView> {
        let view = self.cluster_view(None);
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let ops: Vec<Op> = directory
            .ledger
            .ops
            .values()
            .filter(|op| all || !op.state.is_over())
            .cloned()
            .collect();
        let mut views: Vec<OpView> = ops.iter().map(|op| self.op_view(op, &view)).collect();
        let now = self.clock.now;
        for shown in views.iter_mut().filter(|shown| !shown.op.state.is_over()) {
            let meter = self.conductor.meters.entry(shown.op.id).or_default();
            shown.bytes_per_second = meter.add(now, shown.done_bytes);
            let left = shown.total_bytes.saturating_sub(shown.done_bytes);
            if shown.bytes_per_second > 0 && left > 0 {
                let least = left / shown.bytes_per_second;
                shown.eta_s = Some((least, least + least / 2 + 1));
            }
        }
        let open: BTreeSet<OpId> = ops.iter().filter(|op| !op.state.is_over()).map(|op| op.id).collect();
        self.conductor.meters.retain(|id, _| open.contains(id));
        views
    }

    fn op_view(&self, op: &Op, view: &ClusterView) -> OpView {
        let now = self.clock.now;
        let is_over = op.state.is_over();
        let (left, left_bytes) = if is_over { (0, 0) } else { self.left_of(&op.goal) };
        let total = op.total.max(left);
        let total_bytes = op.total_bytes.max(left_bytes);
        let mut steps = Vec::new();
        let mut blocked = Vec::new();
        let mut tasks = 0;
        for task in self
            .directory
            .iter()
            .flat_map(|directory| directory.ledger.tasks.values())
        {
            if task.op != op.id || op.id == OpId(0) {
                continue;
            }
            tasks += 1;
            if steps.len() < STEPS_SHOWN {
                steps.push(self.tell_task(task));
            }
            let trouble = self.conductor.trouble.get(&task.shard);
            if let Some(trouble) = trouble.filter(|trouble| now.since(trouble.first) > TELL_TROUBLE_AFTER) {
                blocked.push(OpBlocker {
                    code: trouble.code.clone(),
                    object: task.shard.to_string(),
                    text: trouble.text.clone(),
                    next: format!("isxctl shard show {}", task.shard),
                });
            }
        }
        if !is_over && tasks == 0 && left > 0 {
            // Nothing is under way: what the planner has to say is what stands in the way.
            let node = op.goal.node();
            let planned = node.map(|node| match op.goal {
                Goal::Drain { everything: false, .. } => check::check_restart(view, &[node]),
                _ => check::check_leave(view, &[node]),
            });
            if let Some(Err(blockers)) = planned {
                blocked.extend(blockers.iter().map(told));
            }
        }
        let tolerance = check::tolerance(view).nodes;
        OpView {
            op: op.clone(),
            done: total - left,
            total,
            done_bytes: total_bytes - left_bytes.min(total_bytes),
            total_bytes,
            bytes_per_second: 0,
            eta_s: None,
            limited_by: match op.state {
                OpState::Paused => "paused".to_owned(),
                _ if !blocked.is_empty() => "blocked".to_owned(),
                _ if tasks > 0 => format!("pace {}", op.pace),
                _ => String::new(),
            },
            steps,
            blocked,
            tolerance: (tolerance, tolerance, tolerance),
        }
    }

    fn tell_task(&self, task: &Task) -> String {
        let shard = task.shard;
        match task.step {
            TaskStep::Swap { add, remove } => {
                let what = match (add, remove) {
                    (Some((to, _)), Some(from)) => format!("{shard} {from} -> {to}"),
                    (Some((to, _)), None) => format!("{shard} add {to}"),
                    (None, Some(from)) => format!("{shard} remove {from}"),
                    (None, None) => shard.to_string(),
                };
                let descriptor = self.map.shard(shard);
                let added = add.and_then(|(_, replica)| descriptor.and_then(|shard| shard.replica(replica)));
                let phase = match (add, added.map(|added| added.role)) {
                    (Some(_), None) => "adding a learner",
                    (Some(_), Some(ReplicaRole::Learner)) => "copying",
                    (Some(_), Some(_)) if descriptor.is_some_and(ShardDescriptor::is_joint) => "changing votes",
                    _ => "removing",
                };
                format!("{what}  {phase}")
            }
            TaskStep::Merge { right } => {
                let frozen = self.map.shard(right).is_some_and(|right| right.frozen.is_some());
                format!("{shard} merge {right}  {}", if frozen { "frozen" } else { "waiting" })
            }
        }
    }

    /// What this node tells the directory's leader of what it leads.
    pub(super) fn own_load(&self) -> Load {
        let alive = self.alive();
        let led = self.replicas.values().filter(|replica| replica.is_leader());
        Load {
            disk_total: self.disk_total,
            disk_free: if self.disk_total == 0 { 0 } else { self.disk_free },
            shards: led.map(|replica| replica.load(&alive)).collect(),
        }
    }
}

enum Next {
    Ask(Box<Request>),
    Wait,
    End,
}

impl Meter {
    /// Takes in how much is done; says how much was done per second over the last minute.
    fn add(&mut self, now: Time, done: u64) -> u64 {
        self.samples.push_back((now, done));
        while self.samples.len() > 2
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now.since(*at) > Span::secs(60))
        {
            self.samples.pop_front();
        }
        while self.samples.len() > 240 {
            self.samples.pop_front();
        }
        let Some(&(at, before)) = self.samples.front() else {
            return 0;
        };
        let ms = now.since(at).as_millis();
        (done.saturating_sub(before) * 1000).checked_div(ms).unwrap_or(0)
    }
}

/// The step that brings the right shard's copies to where the left one's are; none where they are.
fn align(left: &ShardDescriptor, right: &ShardDescriptor) -> Result<Option<(NodeId, NodeId)>, String> {
    let nodes = |shard: &ShardDescriptor| shard.replicas.iter().map(|r| r.node).collect::<BTreeSet<_>>();
    let (l, r) = (nodes(left), nodes(right));
    if l.len() != r.len() {
        return Err(format!(
            "{} has {} copies and {} has {}: they must have as many",
            left.id,
            l.len(),
            right.id,
            r.len()
        ));
    }
    let add = l.difference(&r).next().copied();
    let remove = r.difference(&l).next().copied();
    Ok(add.zip(remove))
}

/// The same step for the same epoch has the same id, whoever asks.
fn step_id(op: OpId, shard: ShardId, epoch: Epoch) -> RequestId {
    RequestId(u128::from(op.0) << 96 | u128::from(shard.0 & 0xffff_ffff) << 64 | u128::from(epoch.0) | 1 << 127)
}

fn told(blocker: &Blocker) -> OpBlocker {
    OpBlocker {
        code: blocker.code.to_string(),
        object: blocker.object.clone(),
        text: blocker.text.clone(),
        next: blocker.next.join("\n"),
    }
}

fn refused(what: &str, blockers: &[Blocker]) -> WireError {
    let count = blockers.len();
    let text = format!(
        "{what}: {count} {}; nothing was changed",
        if count == 1 { "blocker" } else { "blockers" }
    );
    let mut error = WireError::new(Code::UnsafeOp, text);
    error.blockers = blockers.iter().map(told).collect();
    error
}

fn check_settings(settings: &Settings) -> Result<(), String> {
    let within = |name: &str, value: u64, low: u64, high: u64| {
        if (low..=high).contains(&value) {
            Ok(())
        } else {
            Err(format!(
                "{name} is {value}, and must be from {low} to {high}; nothing was changed"
            ))
        }
    };
    within("heal-after (ms)", settings.heal_after_ms, 2_000, 30 * 86_400_000)?;
    within("disk-limit (percent)", settings.disk_limit_percent.into(), 10, 99)?;
    within("hysteresis (percent)", settings.hysteresis_percent.into(), 1, 100)?;
    within("cooldown (ms)", settings.cooldown_ms, 0, 30 * 86_400_000)
}

/// A round is short, and nothing waits for it but operations.
const ROUND_EVERY: Span = Span::millis(50);
const PLAN_EVERY: Span = Span::millis(200);
/// A new leader first hears from everybody.
const SETTLE_FIRST: Span = Span::millis(2_500);
/// ... and plans once.
const SETTLED_AFTER: Span = Span::millis(3_000);
/// A shard is frozen for a few milliseconds where all is well.
const FROZEN_FOR: Span = Span::secs(1);
const ASK_TIMEOUT: Span = Span::secs(5);
const RETRY_AFTER: Span = Span::millis(100);
/// Silent for longer than this is down, for shorter suspect.
const DOWN_AFTER: Span = Span::secs(5);
/// A learner without a task is somebody's half done work for this long.
const STRAY_FOR: Span = Span::secs(5);
const SPLIT_AGAIN_AFTER: Span = Span::secs(60);
const HAND_OVER_EVERY: Span = Span::secs(1);
const HAND_OVERS_AT_ONCE: usize = 32;
const TELL_TROUBLE_AFTER: Span = Span::secs(2);
/// Unit: moves.
const RECENT_MAX: usize = 4_096;
/// Unit: characters.
const BECAUSE_MAX: usize = 500;
/// Unit: steps.
const STEPS_SHOWN: usize = 20;
/// Entities looked at in one go when the middle of a shard is looked for.
const SPLIT_PAGE: u32 = 5_000;
