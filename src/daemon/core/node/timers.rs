//! Timers of the entities of shards that this node leads: found in the rows, proposed when they are due.
//!
//! A timer is due by its shard's clock, and that moves with entries only. The leader knows how much time has passed since the
//! last one, so it knows when the next entry will bring the clock to the first timer; that entry carries the timers, too.
//! A shard in which nothing happens gets an entry now and then all the same: what its leader has not booked is lost
//! with its leadership, and the timers would come that much later.
use super::dispatch::Sender;
use super::*;
use crate::daemon::core::entity::machine::Delta;
use crate::daemon::core::entity::tentative;
use crate::daemon::core::entity::timer::{self, Timer, TimerNews};
use crate::protocol::key::{RowKind, row_key, split_row_key};

/// One shard's timers, the first of them if there are many.
#[derive(Debug)]
pub(super) struct Timers {
    by_due: BTreeSet<(u64, Position, bytes::Bytes)>,
    due_of: BTreeMap<(Position, bytes::Bytes), u64>,
    /// Timers due at this time and later are not kept here. Unit: ms.
    horizon: u64,
    /// When timers were last proposed that are not known to be applied.
    proposed: Option<Time>,
    /// When to look again.
    alarm: Option<Time>,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            by_due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            horizon: u64::MAX,
            proposed: None,
            alarm: None,
        }
    }
}

impl Timers {
    /// A timer's row is now like this.
    pub(super) fn learn(&mut self, news: TimerNews) {
        let key = (news.entity, news.what);
        if let Some(due) = self.due_of.remove(&key) {
            self.by_due.remove(&(due, key.0.clone(), key.1.clone()));
        }
        if let Some(due) = news.due_ms.filter(|&due| due < self.horizon) {
            self.by_due.insert((due, key.0.clone(), key.1.clone()));
            self.due_of.insert(key, due);
        }
        while self.due_of.len() > TIMERS_KEPT_MAX
            && let Some((due, entity, what)) = self.by_due.pop_last()
        {
            self.due_of.remove(&(entity, what));
            self.horizon = due;
        }
    }

    /// What was proposed has been applied.
    pub(super) fn applied(&mut self) {
        self.proposed = None;
    }

    /// Only this range is left.
    pub(super) fn keep(&mut self, range: &KeyRange) {
        self.by_due.retain(|(_, entity, _)| range.contains(entity));
        self.due_of.retain(|(entity, _), _| range.contains(entity));
    }

    /// All that is kept has gone, and there is more in the rows: they are to be read again.
    pub(super) fn is_used_up(&mut self) -> bool {
        let is_used_up = self.due_of.is_empty() && self.horizon < u64::MAX;
        if is_used_up {
            self.horizon = u64::MAX;
        }
        is_used_up
    }

    fn due(&self, clock_ms: u64) -> Vec<Timer> {
        let due = self.by_due.iter().take_while(|(due, ..)| *due <= clock_ms);
        let timer = |(due_ms, entity, what): &(u64, Position, bytes::Bytes)| Timer {
            entity: entity.clone(),
            what: what.clone(),
            due_ms: *due_ms,
        };
        due.take(TIMERS_AT_ONCE_MAX).map(timer).collect()
    }
}

impl Node {
    /// When a shard that this node leads has next to look at its timers, if it has any: a group that sleeps need not wake
    /// before.
    pub fn next_due(&self, shard: ShardId) -> Option<Time> {
        self.dispatch.timers(shard)?.alarm
    }

    /// Proposes what is due in a shard that this node leads, and says when to look again. True if something was proposed.
    pub(super) fn tend_timers(&mut self, shard: ShardId, sender: &mut Sender) -> bool {
        let now = self.clock.now;
        let timers = &mut sender.timers;
        if let Some(alarm) = timers.alarm.take() {
            self.dispatch.timer_alarms.remove(&(alarm, shard));
        }
        let Some(replica) = self.replicas.get_mut(&shard).filter(|replica| replica.is_leader()) else {
            return false;
        };
        let Some(&(first, ..)) = timers.by_due.first() else {
            return false;
        };
        let (clock, unbooked) = replica.clock(now);
        let is_due = first <= clock;
        let waits_for = timers.proposed.map(|at| at + PROPOSE_TIMERS_AGAIN_AFTER);
        let left = Span::millis(first.saturating_sub(clock).min(TIMER_FAR_MS));
        let book_after = Span((left.0 / BOOK_PART).clamp(BOOK_AFTER_MIN.0, BOOK_AFTER_MAX.0));
        let is_frozen = replica.shard.frozen.is_some();
        let alarm = match waits_for.filter(|&until| until > now) {
            Some(until) => until,
            None if is_frozen => now + PROPOSE_TIMERS_AGAIN_AFTER,
            None if is_due || unbooked >= book_after => {
                let waiting = Waiting {
                    waiter: Waiter::Own,
                    deadline: now,
                    id: RequestId(0),
                };
                replica.propose(Command::Due(timers.due(clock)), waiting);
                timers.proposed = Some(now);
                self.touched.insert(shard);
                now + PROPOSE_TIMERS_AGAIN_AFTER
            }
            None => now + left.min(Span(book_after.0.saturating_sub(unbooked.0))).max(TICK),
        };
        let has_proposed = timers.proposed == Some(now);
        timers.alarm = Some(alarm);
        self.dispatch.timer_alarms.insert((alarm, shard));
        has_proposed
    }

    /// Timers' rows have changed at a shard.
    pub(super) fn timers_changed(&mut self, shard: ShardId, news: Vec<TimerNews>) {
        if news.is_empty() {
            return;
        }
        if let Some(sender) = self.dispatch.sender(shard) {
            for news in news {
                sender.timers.learn(news);
            }
            self.dispatch.activate(shard);
        }
    }

    /// Timers whose time has come.
    pub(super) fn apply_due(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        timers: &[Timer],
        context: Context,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Response, StateError> {
        let shard = replica.shard.id;
        let rules = self.judge(replica)?;
        let mut delta = Delta::default();
        for due in timers {
            if !replica.shard.range.contains(&due.entity) {
                continue;
            }
            let context = Context {
                change_at: replica.next_place(),
                ..context
            };
            let kept = self.kept_for_later(due, state)?;
            timer::fire(due, context, &rules, state, &mut delta)?;
            if let Some((row, value)) = kept {
                state.put(row, Some(value));
            }
        }
        self.take_delta(replica, entry, delta, effects);
        if let Some(sender) = self.dispatch.sender(shard) {
            sender.timers.applied();
            self.dispatch.activate(shard);
        }
        Ok(Response::Receipts(Vec::new()))
    }

    /// A planted bug: what was set aside can be confirmed although it was given back.
    fn kept_for_later(
        &self,
        due: &Timer,
        state: &dyn State,
    ) -> Result<Option<(bytes::Bytes, bytes::Bytes)>, StateError> {
        if self.config.planted != PlantedBug::ConfirmsExpired {
            return Ok(None);
        }
        let Some((requester, operation)) = timer::operation(&due.what) else {
            return Ok(None);
        };
        let rest = tentative::reservation_rest(&requester, operation);
        let row = row_key(&due.entity, RowKind::Tentative, &rest);
        Ok(state.get(&row)?.map(|value| (row, value)))
    }

    /// A planted bug: a split's right half forgets its timers.
    pub(super) fn forget_timers(&self, range: &KeyRange, state: &mut dyn State) -> Result<(), StateError> {
        if self.config.planted != PlantedBug::SplitForgetsTimers {
            return Ok(());
        }
        let [(start, end), _] = range.row_ranges();
        let mut rows = Vec::new();
        state.scan(&start, &end, &mut |row, _| {
            if split_row_key(row).is_some_and(|(_, kind, _)| kind == RowKind::Timer as u8) {
                rows.push(row.clone());
            }
            std::ops::ControlFlow::Continue(())
        })?;
        for row in rows {
            state.put(row, None);
        }
        Ok(())
    }

    /// What time brings to timers.
    pub(super) fn tick_timers(&mut self) {
        let now = self.clock.now;
        while let Some(&(alarm, shard)) = self.dispatch.timer_alarms.first() {
            if alarm > now {
                return;
            }
            self.dispatch.timer_alarms.pop_first();
            if let Some(sender) = self
                .dispatch
                .sender(shard)
                .filter(|sender| sender.timers.alarm == Some(alarm))
            {
                sender.timers.alarm = None;
                self.dispatch.activate(shard);
            }
        }
    }
}

/// Timers of one shard that its leader has in memory; behind the last of them it reads the rows again. Unit: timers.
const TIMERS_KEPT_MAX: usize = 100_000;
/// Timers in one entry.
const TIMERS_AT_ONCE_MAX: usize = 1_000;
/// Timers whose entry got lost are proposed again.
const PROPOSE_TIMERS_AGAIN_AFTER: Span = Span::secs(2);
/// A clock that waits for a timer is moved when this part of the time that is left has passed,
const BOOK_PART: u64 = 8;
/// but not more often than that,
const BOOK_AFTER_MIN: Span = Span::secs(10);
/// nor less often.
const BOOK_AFTER_MAX: Span = Span::secs(3_600);
/// Farther away is as good as this. Unit: ms.
const TIMER_FAR_MS: u64 = 1 << 40;
