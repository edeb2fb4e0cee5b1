//! The leader compares its shard's copies, slice by slice: see [`crate::daemon::core::verify`].
//!
//! A pass goes through all rows of a shard. Where a slice differs, the next slices narrow the place down to a row, each at
//! an entry of its own; then the log is told which copies are wrong. What most voters have is right. Where no majority
//! agrees nobody can say who is right: nothing is done but to tell people.
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Node;
use crate::daemon::core::command::Command;
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::replica::{self, Replica, Waiter, Waiting};
use crate::daemon::core::state::State;
use crate::daemon::core::time::Time;
use crate::daemon::core::verify::{SLICE_EVERY, SLICE_ROWS, SLICE_TIMEOUT, Slice, mix, ranges_from};
use crate::protocol::codec;
use crate::protocol::id::{Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::message::{Message, SliceSum};
use crate::protocol::request::Response;
use crate::protocol::shard_map::ShardDescriptor;
use crate::protocol::verify::{CopyState, Difference, Verified, VerifiedCopy};

/// A shard whose copies are being compared.
#[derive(Debug)]
pub(super) struct Pass {
    term: u64,
    /// Where the next slice begins.
    from: Bytes,
    rows: u32,
    asked: Option<Asked>,
    next_at: Time,
    slices: u64,
    index: u64,
    totals: BTreeMap<ReplicaId, Total>,
    narrowing: Option<Narrowing>,
    difference: Option<Difference>,
    waiters: Vec<Waiting>,
}

/// A slice that the copies were asked for.
#[derive(Debug)]
struct Asked {
    since: Time,
    /// 0 until this copy has applied the entry.
    index: u64,
    sums: BTreeMap<ReplicaId, SliceSum>,
}

#[derive(Debug, Default)]
struct Total {
    rows: u64,
    bytes: u64,
    hash: u64,
    slices: u64,
    state: Option<CopyState>,
}

/// Looking for the first row that differs.
#[derive(Debug)]
struct Narrowing {
    wrong: BTreeSet<ReplicaId>,
    /// The row is among so many.
    rows: u32,
    steps: u32,
}

/// When and how a shard's copies were last compared by this leader.
#[derive(Debug, Clone)]
pub(in crate::daemon::core) struct Compared {
    at: Time,
    applied: u64,
    epoch: Epoch,
    /// All copies that are not set aside were read, and are the same.
    is_clean: bool,
    /// They differ, and no majority agrees.
    pub(in crate::daemon::core) is_undecided: bool,
}

/// Narrowing ends behind so many slices even if the row was not found: somebody may be writing it.
const NARROWING_STEPS_MAX: u32 = 20;
/// Passes that nobody waits for, at a time. Unit: shards.
const PASSES_AT_ONCE: usize = 1;

impl Node {
    // --- every copy --------------------------------------------------------------------------------------------

    /// Applies `Command::Verify`: keeps the rows as they are, for the driver to sum up.
    pub(super) fn keep_slice(
        &mut self,
        replica: &Replica,
        index: u64,
        command: (NodeId, &Bytes, u32),
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let (by, from, rows) = command;
        let shard = &replica.shard;
        if by == self.config.node
            && let Some(asked) = self.passes.get_mut(&shard.id).and_then(|pass| pass.asked.as_mut())
            && asked.index == 0
        {
            asked.index = index;
        }
        if shard.frozen.is_some() || replica.is_quarantined() {
            return;
        }
        // Not its totals: they are estimates, and a copy that was made from a snapshot may have others.
        let bookkeeping = (shard, &replica.clock);
        state.keep(Slice {
            shard: shard.id,
            index,
            ranges: ranges_from(&shard.range, from),
            rows: rows.clamp(1, SLICE_ROWS),
            seed: mix(0, &codec::encode(&bookkeeping)),
        });
        self.summing.insert((shard.id, index), (replica.id, by));
        while self.summing.len() > SUMMING_MAX {
            self.summing.pop_first();
        }
        let shard = shard.id;
        effects.push(Effect::HashSlice { shard, index });
    }

    /// `Input::Hashed`.
    pub(super) fn hashed(&mut self, shard: ShardId, index: u64, sum: SliceSum, effects: &mut Effects) {
        let Some((replica, by)) = self.summing.remove(&(shard, index)) else {
            return;
        };
        if let SliceSum::Damaged { row } = &sum {
            self.found_damage(shard, replica, row, effects);
        }
        if by == self.config.node {
            return self.summed(by, shard, replica, index, sum, effects);
        }
        let message = Message::Summed {
            shard,
            replica,
            index,
            sum,
        };
        effects.push(Effect::Send { to: by, message });
    }

    // --- the leader --------------------------------------------------------------------------------------------

    /// `Request::VerifyShard` at the shard's leader.
    pub(in crate::daemon::core) fn verify_here(&mut self, shard: ShardId, waiting: Waiting) {
        let now = self.clock.now;
        let Some(replica) = self.replicas.get(&shard) else {
            return;
        };
        // A pass under way began before somebody asked, so it may have missed what was there by then.
        let mut pass = Pass::new(replica.term(), now);
        if let Some(before) = self.passes.remove(&shard) {
            pass.waiters = before.waiters;
        }
        pass.waiters.push(waiting);
        self.passes.insert(shard, pass);
    }

    /// Goes on with what is being compared. Called with every tick.
    pub(super) fn tend_passes(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let shards: Vec<ShardId> = self.passes.keys().copied().collect();
        for shard in shards {
            let Some(pass) = self.passes.get_mut(&shard) else {
                continue;
            };
            let replica = self.replicas.get_mut(&shard);
            let Some(replica) = replica.filter(|replica| replica.is_leader() && replica.term() == pass.term) else {
                self.give_up_pass(shard, effects);
                continue;
            };
            if replica.shard.frozen.is_some() || replica.is_quarantined() {
                self.give_up_pass(shard, effects);
                continue;
            }
            let late: Vec<Waiting> = pass.waiters.extract_if(.., |w| w.deadline <= now).collect();
            match &pass.asked {
                Some(asked) if now.since(asked.since) > SLICE_TIMEOUT => self.compare(shard, effects),
                Some(_) => {}
                None if now >= pass.next_at => {
                    pass.asked = Some(Asked {
                        since: now,
                        index: 0,
                        sums: BTreeMap::new(),
                    });
                    let command = Command::Verify {
                        by: self.config.node,
                        from: pass.from.clone(),
                        rows: pass.rows,
                    };
                    replica.propose(command, own(now));
                    // Nobody's request.
                    replica.served = replica.served.saturating_sub(1);
                    self.touch(shard);
                }
                None => {}
            }
            for waiting in late {
                let response = Response::Error(not_finished(shard));
                self.reply(waiting, response, None, None, effects);
            }
        }
    }

    /// Begins with shards that are due. Called every second.
    pub(super) fn begin_passes(&mut self) {
        let now = self.clock.now;
        let mut due: Vec<(bool, Time, ShardId)> = Vec::new();
        let mut unasked = self.passes.values().filter(|pass| pass.waiters.is_empty()).count();
        for &shard in &self.watch.led {
            let Some(replica) = self.replicas.get(&shard).filter(|replica| replica.is_leader()) else {
                continue;
            };
            let is_fit = replica.shard.frozen.is_none() && !replica.is_quarantined();
            if !is_fit || self.passes.contains_key(&shard) {
                continue;
            }
            let last = self.compared.get(&shard);
            let since = last.map_or(self.started, |last| last.at);
            let is_changed = last.is_none_or(|last| last.applied != replica.applied() || !last.is_clean);
            // What is set aside is not given up before the others are known to be whole.
            let is_urgent = !replica.shard.quarantined.is_empty() && !self.is_sound(&replica.shard);
            let every = if is_changed {
                self.config.verify_every
            } else {
                self.config.scrub_every
            };
            if now.since(since) >= every
                || (is_urgent
                    && last.is_none_or(|last| now.since(last.at) > SLICE_TIMEOUT || last.epoch != replica.shard.epoch))
            {
                due.push((!is_urgent, since, shard));
            }
        }
        due.sort();
        for (is_usual, _, shard) in due {
            if is_usual && unasked >= PASSES_AT_ONCE {
                break;
            }
            unasked += 1;
            if let Some(replica) = self.replicas.get(&shard) {
                self.passes.insert(shard, Pass::new(replica.term(), now));
            }
        }
        let led = &self.replicas;
        self.compared
            .retain(|shard, _| led.get(shard).is_some_and(Replica::is_leader));
    }

    /// Whether this leader has read all copies that are not set aside from end to end since the shard last changed, and
    /// found them whole and equal.
    pub(super) fn is_sound(&self, shard: &ShardDescriptor) -> bool {
        let last = self.compared.get(&shard.id);
        last.is_some_and(|last| last.is_clean && last.epoch == shard.epoch)
    }

    fn give_up_pass(&mut self, shard: ShardId, effects: &mut Effects) {
        for waiting in self.passes.remove(&shard).into_iter().flat_map(|pass| pass.waiters) {
            self.reply(waiting, Response::Error(replica::not_leader()), None, None, effects);
        }
    }

    /// `Message::Summed`.
    pub(super) fn summed(
        &mut self,
        from: NodeId,
        shard: ShardId,
        replica: ReplicaId,
        index: u64,
        sum: SliceSum,
        effects: &mut Effects,
    ) {
        let Some(here) = self.replicas.get(&shard).filter(|here| here.is_leader()) else {
            return;
        };
        if here.shard.replica(replica).is_none_or(|known| known.node != from) {
            return;
        }
        let asked = self.passes.get_mut(&shard).and_then(|pass| pass.asked.as_mut());
        let Some(asked) = asked.filter(|asked| asked.index == index) else {
            return;
        };
        asked.sums.insert(replica, sum);
        let mut expected = here.shard.replicas.iter().filter(|r| !here.shard.is_quarantined(r.id));
        if expected.all(|replica| asked.sums.contains_key(&replica.id)) {
            self.compare(shard, effects);
        }
    }

    /// All copies have answered for a slice, or have had time to.
    fn compare(&mut self, shard: ShardId, effects: &mut Effects) {
        let now = self.clock.now;
        let Some(replica) = self.replicas.get(&shard) else {
            return;
        };
        let descriptor = replica.shard.clone();
        let Some(pass) = self.passes.get_mut(&shard) else {
            return;
        };
        let Some(asked) = pass.asked.take() else { return };
        pass.slices += 1;
        pass.index = pass.index.max(asked.index);
        pass.next_at = if pass.waiters.is_empty() && pass.narrowing.is_none() {
            now + SLICE_EVERY
        } else {
            now
        };
        let verdict = judge(&descriptor, &asked.sums);
        if let Some(narrowing) = &mut pass.narrowing {
            narrowing.steps += 1;
            let is_equal = verdict.wrong.is_empty() && !verdict.is_undecided;
            let is_end = narrowing.steps > NARROWING_STEPS_MAX;
            if is_equal && !is_end {
                // Not among these.
                narrowing.rows -= pass.rows.min(narrowing.rows - 1);
                if let Some(SliceSum::Rows { next: Some(next), .. }) = &verdict.right {
                    pass.from = next.clone();
                } else {
                    narrowing.steps = NARROWING_STEPS_MAX;
                }
            } else {
                narrowing.rows = pass.rows;
            }
            if (is_equal || narrowing.rows > 1) && !is_end {
                pass.rows = (narrowing.rows / 2).max(1);
                return;
            }
            let found = asked.sums.iter().map(|(&id, sum)| (id, first_of(sum))).collect();
            pass.difference = Some(Difference {
                from: printable(&pass.from),
                index: asked.index,
                found,
            });
            let wrong = std::mem::take(&mut narrowing.wrong);
            return self.convict(shard, &descriptor, asked.index, wrong, effects);
        }
        for replica in &descriptor.replicas {
            let total = pass.totals.entry(replica.id).or_default();
            match asked.sums.get(&replica.id) {
                _ if descriptor.is_quarantined(replica.id) => total.note(CopyState::Quarantined),
                Some(SliceSum::Rows { rows, bytes, hash, .. }) => {
                    total.rows += u64::from(*rows);
                    total.bytes += bytes;
                    total.hash = mix(total.hash, &hash.to_le_bytes());
                    total.slices += 1;
                    if verdict.is_undecided || verdict.wrong.contains(&replica.id) {
                        total.note(CopyState::Differs);
                    }
                }
                Some(SliceSum::Damaged { .. }) => total.note(CopyState::Damaged),
                Some(SliceSum::Unread) | None => total.note(CopyState::Unheard),
            }
        }
        if verdict.is_undecided || !verdict.wrong.is_empty() {
            let rows = asked.sums.values().map(|sum| match sum {
                SliceSum::Rows { rows, .. } => *rows,
                _ => 0,
            });
            let rows = rows.max().unwrap_or(0).max(1);
            let wrong = if verdict.is_undecided {
                BTreeSet::new()
            } else {
                verdict.wrong
            };
            pass.narrowing = Some(Narrowing { wrong, rows, steps: 0 });
            pass.rows = (rows / 2).max(1);
            return;
        }
        match verdict.right {
            Some(SliceSum::Rows { next: Some(next), .. }) => pass.from = next,
            Some(_) => self.finish_pass(shard, false, effects),
            // Nobody to compare with: it is tried again later.
            None => self.finish_pass(shard, false, effects),
        }
    }

    /// The first difference is found.
    fn convict(
        &mut self,
        shard: ShardId,
        descriptor: &ShardDescriptor,
        index: u64,
        wrong: BTreeSet<ReplicaId>,
        effects: &mut Effects,
    ) {
        let at = self.passes.get(&shard).and_then(|pass| pass.difference.as_ref());
        effects.push(Effect::Event(Event::Differs {
            shard,
            index,
            wrong: wrong.iter().copied().collect(),
            at: at.map_or_else(String::new, |difference| difference.from.clone()),
        }));
        *self.counters.entry("copies_differed").or_default() += 1;
        for &id in &wrong {
            if descriptor.replica(id).is_some() {
                self.propose_quarantine(shard, id);
            }
        }
        self.finish_pass(shard, wrong.is_empty(), effects);
    }

    fn finish_pass(&mut self, shard: ShardId, is_undecided: bool, effects: &mut Effects) {
        let Some(pass) = self.passes.remove(&shard) else { return };
        let Some(replica) = self.replicas.get(&shard) else {
            return;
        };
        let descriptor = replica.shard.clone();
        let copies = descriptor.replicas.iter().map(|replica| {
            let total = pass.totals.get(&replica.id);
            VerifiedCopy {
                node: replica.node,
                replica: replica.id,
                role: replica.role,
                state: total.map_or(CopyState::Unheard, |total| total.state.unwrap_or(CopyState::Same)),
                rows: total.map_or(0, |total| total.rows),
                bytes: total.map_or(0, |total| total.bytes),
                hash: total.map_or(0, |total| total.hash),
            }
        });
        let verified = Verified {
            shard,
            epoch: descriptor.epoch,
            index: pass.index,
            slices: pass.slices,
            copies: copies.collect(),
            difference: pass.difference,
        };
        let is_good = |copy: &VerifiedCopy| matches!(copy.state, CopyState::Same | CopyState::Quarantined);
        let compared = Compared {
            at: self.clock.now,
            applied: replica.applied(),
            epoch: descriptor.epoch,
            is_clean: verified.is_same() && verified.copies.iter().all(is_good),
            is_undecided,
        };
        self.compared.insert(shard, compared);
        *self.counters.entry("shards_verified").or_default() += 1;
        for waiting in pass.waiters {
            let response = Response::Verified(Box::new(verified.clone()));
            self.reply(waiting, response, None, None, effects);
        }
    }
}

impl Pass {
    fn new(term: u64, now: Time) -> Self {
        Self {
            term,
            from: Bytes::new(),
            rows: SLICE_ROWS,
            asked: None,
            next_at: now,
            slices: 0,
            index: 0,
            totals: BTreeMap::new(),
            narrowing: None,
            difference: None,
            waiters: Vec::new(),
        }
    }
}

impl Total {
    fn note(&mut self, state: CopyState) {
        self.state = self.state.max(Some(state));
    }
}

struct SliceVerdict {
    /// What most voters have; where nobody differs, what all have that answered.
    right: Option<SliceSum>,
    wrong: BTreeSet<ReplicaId>,
    is_undecided: bool,
}

/// Who is right about a slice.
fn judge(shard: &ShardDescriptor, sums: &BTreeMap<ReplicaId, SliceSum>) -> SliceVerdict {
    let read = |sum: &SliceSum| matches!(sum, SliceSum::Rows { .. });
    let voters = shard.replicas.iter().filter(|replica| replica.role.votes());
    let count = voters.clone().count();
    let mut by_sum: BTreeMap<&SliceSum, usize> = BTreeMap::new();
    for voter in voters {
        if let Some(sum) = sums.get(&voter.id).filter(|sum| read(sum)) {
            *by_sum.entry(sum).or_default() += 1;
        }
    }
    let distinct: BTreeSet<&SliceSum> = sums.values().filter(|sum| read(sum)).collect();
    let best = by_sum.iter().max_by_key(|(_, votes)| **votes);
    let right = match best {
        Some((sum, votes)) if distinct.len() == 1 || 2 * votes > count => Some(*sum),
        _ => None,
    };
    let is_undecided = right.is_none() && distinct.len() > 1;
    let is_wrong = |sum: &SliceSum| match sum {
        SliceSum::Rows { .. } => right.is_some_and(|right| right != sum),
        SliceSum::Damaged { .. } => false,
        SliceSum::Unread => false,
    };
    let wrong = sums.iter().filter(|(_, sum)| is_wrong(sum)).map(|(&id, _)| id);
    SliceVerdict {
        wrong: wrong.collect(),
        is_undecided,
        right: right.cloned(),
    }
}

fn first_of(sum: &SliceSum) -> String {
    match sum {
        SliceSum::Rows { first: Some(first), .. } => printable(first),
        SliceSum::Rows { first: None, .. } => "no more rows".to_owned(),
        SliceSum::Damaged { row } => format!("{row} fails its checksum"),
        SliceSum::Unread => "could not be read".to_owned(),
    }
}

fn printable(row: &Bytes) -> String {
    if row.is_empty() {
        return "the beginning".to_owned();
    }
    format!("`{}`", row.escape_ascii())
}

fn own(now: Time) -> Waiting {
    Waiting {
        waiter: Waiter::Own,
        deadline: now + SLICE_TIMEOUT,
        id: RequestId(0),
    }
}

fn not_finished(shard: ShardId) -> crate::protocol::error::WireError {
    let text = format!("the copies of {shard} are still being compared; ask again with a longer time limit");
    crate::protocol::error::WireError::new(crate::protocol::error::Code::Busy, text)
}

/// Slices whose sums are outstanding on this node. Unit: slices.
const SUMMING_MAX: usize = 64;
