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

use crate::daemon::core::directory::{Directory, DirectoryCommand};
use crate::daemon::core::effect::Effects;
use crate::daemon::core::ledger::LedgerCommand;
use crate::daemon::core::node::Node;
use crate::daemon::core::placement::plan::{self, Goals, Limits, Step, StepKind, Why};
use crate::daemon::core::placement::rules::Rule;
use crate::daemon::core::placement::view::{
    ClusterView, Health, Moved, NodeView, RecentMove, ReplicaView, ServiceView, ShardView,
};
use crate::daemon::core::placement::{check, plan::Blocker};
use crate::daemon::core::replica::{Waiter, Waiting};
use crate::daemon::core::state::State;
use crate::daemon::core::time::{Span, Time};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, NodeId, OpId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::message::{Load, Principal, Role, ShardLoad};
use crate::protocol::op::*;
use crate::protocol::operator::*;
use crate::protocol::request::{ReplicaChange, Request, Response};
use crate::protocol::shard_map::{Membership, ReplicaDescriptor, ReplicaRole, ShardDescriptor, ShardSizes};

mod asking;
mod curing;
mod drained;
mod dropping;
mod ending;
mod orders;
mod planning;
mod plans;
mod progress;
mod questions;
mod refusals;
mod splitting;
mod tasks;
mod telling;

use planning::{Assumed, scattered};
use progress::Meter;
use refusals::LaidBy;

/// What the directory's leader remembers between two rounds; none of it matters to safety.
#[derive(Debug, Default)]
pub(in crate::daemon::core) struct Conductor {
    /// What nodes last said of their disks: total and free. Unit: bytes.
    disks: BTreeMap<NodeId, (u64, u64)>,
    /// What a shard's leader last said of it, and who that was.
    loads: BTreeMap<ShardId, (NodeId, ShardLoad)>,
    /// Shards that serve requests, or did a while ago.
    busy: BTreeSet<ShardId>,
    /// Grows when a load changes that matters to the planner.
    load_changes: u64,
    /// What the last plan was made from.
    planned_from: PlannedFrom,
    last_strays: Time,
    last_cure: Time,
    last_hand_over: Time,
    /// How often own loads were looked at.
    own_looked: u64,
    /// Questions that wait for an answer, by token.
    asked: BTreeMap<u64, Asked>,
    next_token: u64,
    answers: Vec<(u64, Response)>,
    /// One of them says that a shard stands still for its merge.
    stands_still: bool,
    /// What last went wrong with a shard's task.
    trouble: BTreeMap<ShardId, Trouble>,
    /// Since when this node leads the directory.
    since: Option<Time>,
    last_round: Time,
    last_plan: Time,
    last_measured: Time,
    recent: VecDeque<RecentMove>,
    meters: BTreeMap<OpId, Meter>,
    /// How far each task's copy has come: what was copied once counts until the task is done. Unit: bytes.
    copied: BTreeMap<(ShardId, NodeId), u64>,
    /// Steps that the planner still sees for spreading.
    spread_left: u64,
    /// The same for each scatter.
    scatter_left: BTreeMap<OpId, u64>,
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
    /// Tasks that were taken back because their shards refuse them.
    laid_by: BTreeMap<ShardId, LaidBy>,
    /// Those who wait to hear what is in the way of a drop.
    drop_checks: Vec<dropping::DropCheck>,
    /// Drops under way: since when they are seen, and what a shard has against it.
    drops: BTreeMap<u64, (Time, Option<String>)>,
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
    /// Looking whether a shard has anything in it.
    Look,
    /// Closing a shard whose service is dropped.
    Close,
}

#[derive(Debug, Clone)]
struct Trouble {
    at: Time,
    first: Time,
    code: String,
    text: String,
}

/// What a plan depends on: while none of it changes, neither does the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct PlannedFrom {
    map: u64,
    version: u64,
    loads: u64,
    up: Vec<NodeId>,
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
    /// Where its requests go decides, as long as that is not known to be no help.
    by_load: bool,
}

impl Node {
    /// A report's figures, for the directory's leader. A report names some of the sender's shards only.
    pub(in crate::daemon::core) fn load_reported(&mut self, from: NodeId, load: Load) {
        let conductor = &mut self.conductor;
        let disk = (load.disk_total, load.disk_free);
        if conductor
            .disks
            .insert(from, disk)
            .is_none_or(|known| far(known.1, disk.1))
        {
            conductor.load_changes += 1;
        }
        for copy in load.copies {
            let copied = conductor.copied.entry((copy.shard, copy.to)).or_default();
            *copied = copy.bytes.max(*copied);
        }
        for shard in load.shards {
            if shard.requests_per_s > 0 {
                conductor.busy.insert(shard.shard);
            }
            let is_news = match conductor.loads.get(&shard.shard) {
                Some((node, known)) => {
                    *node != from
                        || known.behind != shard.behind
                        || far(known.bytes, shard.bytes)
                        || far(known.requests_per_s, shard.requests_per_s)
                }
                None => true,
            };
            conductor.load_changes += u64::from(is_news);
            conductor.loads.insert(shard.shard, (from, shard));
        }
    }

    /// An answer to something that the conductor asked.
    pub(in crate::daemon::core) fn conductor_answered(&mut self, token: u64, response: Response) {
        self.conductor.stands_still |= matches!(&response, Response::Shard(shard) if shard.frozen.is_some());
        self.conductor.answers.push((token, response));
    }

    /// Goes on with merges whose right shard stands still now: nobody serves its keys until the next step is done, and a
    /// round is up to `ROUND_EVERY` away. Says whether anything was asked.
    pub(in crate::daemon::core) fn hurry_merges(&mut self, state: &mut dyn State, effects: &mut Effects) -> bool {
        if !std::mem::take(&mut self.conductor.stands_still) || !self.config.conducts || !self.leads_directory() {
            return false;
        }
        self.take_answers();
        let Some(directory) = &self.directory else { return false };
        let stands_still = |right| {
            let right = self.map.shard(right);
            right.is_some_and(|right| right.frozen.is_some())
        };
        let merges: Vec<(Task, ShardId)> = directory
            .ledger
            .tasks
            .values()
            .filter_map(|task| match task.step {
                TaskStep::Merge { right } if stands_still(right) => Some((task.clone(), right)),
                _ => None,
            })
            .collect();
        let mut has_asked = false;
        for (task, right) in merges {
            let op = self
                .directory
                .as_ref()
                .and_then(|directory| directory.ledger.ops.get(&task.op));
            let is_off = op.is_none_or(|op| op.state.is_over());
            if self.is_asked(task.shard) {
                continue;
            }
            if let Next::Ask(request) = self.next_of_merge(&task, right, is_off) {
                self.conductor_ask(task.shard, AskedKind::Task, *request, state, effects);
                has_asked = true;
            }
        }
        has_asked
    }

    /// One round, where this node leads the directory.
    pub(in crate::daemon::core) fn conduct(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        if !self.config.conducts || !self.leads_directory() {
            self.dismiss_drop_checks(effects);
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
        self.forget_laid_by();
        self.tend_tasks(state, effects);
        self.tend_splits(state, effects);
        self.tend_drops(state, effects);
        self.remove_strays(state, effects);
        self.give_up_quarantined(state, effects);
        self.hand_over_drained(state, effects);
        self.expire_marks();
        self.plan_round();
        self.end_reached();
        self.measure();
    }

    fn smooth_loads(&mut self) {
        let now = self.clock.now;
        if now.since(self.conductor.last_smoothed) < Span::secs(1) {
            return;
        }
        self.conductor.last_smoothed = now;
        // What sleeps changes only by waking up: all is looked at now and then only.
        let own = self.own_load(self.conductor.own_looked.is_multiple_of(OWN_LOOKED_AT_WHOLE));
        self.conductor.own_looked += 1;
        self.load_reported(self.config.node, own);
        let mut quiet = Vec::new();
        for &shard in &self.conductor.busy {
            let said = self.conductor.loads.get(&shard).filter(|(node, _)| self.is_up(*node));
            let rate = said.map_or(0, |(_, load)| load.requests_per_s);
            let before = self.conductor.smooth.get(&shard).copied();
            let smooth = before.map_or(rate * 32, |smooth| smooth - smooth.div_ceil(32) + rate);
            if smooth == 0 && rate == 0 {
                quiet.push(shard);
            }
            self.conductor.smooth.insert(shard, smooth);
        }
        for shard in quiet {
            self.conductor.busy.remove(&shard);
            self.conductor.smooth.remove(&shard);
        }
    }

    /// A pause that is longer the more shards there are, so that looking at all of them costs about the same at any size.
    fn pause(&self, per_thousand: Span) -> Span {
        Span(per_thousand.0 * self.map.shard_count() as u64 / 1_000)
    }
}

/// Whether a figure has changed so much that it may matter where something lies.
fn far(before: u64, now: u64) -> bool {
    before.abs_diff(now) > before.max(now) / 32
}

enum Next {
    Ask(Box<Request>),
    Wait,
    End,
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
        since_ms: None,
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
    within("protect-p99 (us)", settings.protect_p99_us, 0, 60_000_000)?;
    within("cooldown (ms)", settings.cooldown_ms, 0, 30 * 86_400_000)
}

/// A round is short, and nothing waits for it but operations.
const ROUND_EVERY: Span = Span::millis(50);
const PLAN_EVERY: Span = Span::millis(200);
/// ... or this long for each thousand shards, where that is longer.
const PLAN_EVERY_PER_THOUSAND: Span = Span::millis(100);
/// ... or this long, while nothing has changed that a plan depends on.
const PLAN_AGAIN_PER_THOUSAND: Span = Span::secs(1);
const CURE_EVERY_PER_THOUSAND: Span = Span::millis(100);
const STRAYS_EVERY_PER_THOUSAND: Span = Span::millis(500);
const HAND_OVER_EVERY_PER_THOUSAND: Span = Span::millis(50);
/// Own loads are looked at as a whole every so many times.
const OWN_LOOKED_AT_WHOLE: u64 = 10;
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
/// A smaller shard is not worth a Raft group. Unit: bytes.
const SPLIT_BYTES_MIN: u64 = 64 << 10;
/// Unit: characters.
const BECAUSE_MAX: usize = 500;
/// Unit: steps.
const STEPS_SHOWN: usize = 20;
/// Fewer sampled requests say nothing of where the load is. Unit: requests.
const SAMPLES_MIN: usize = 32;
/// Entities looked at in one go when the middle of a shard is looked for.
const SPLIT_PAGE: u32 = 5_000;
