//! Timers of the entities of shards that this node leads: found in the rows, proposed when they are due.
//!
//! A timer is due by its shard's clock for the entity, and that moves with entries only. The leader knows how much time has
//! passed since the last one, so it knows when the next entry will bring the clock to the first timer; that entry carries
//! the timers, too.
//! A shard in which nothing happens gets an entry now and then all the same: what its leader has not booked is lost
//! with its leadership, and the timers would come that much later.
use super::dispatch::Sender;
use super::*;
use crate::daemon::core::entity::machine::Delta;
use crate::daemon::core::entity::tentative;
use crate::daemon::core::entity::timer::{self, Timer, TimerNews};
use crate::protocol::key::{RowKind, row_key, split_row_key};
use crate::protocol::shard_clock::ShardClock;

/// One shard's timers, the first of them if there are many.
#[derive(Debug)]
pub(super) struct Timers {
    /// By the shard's own clock: timers of entities whose clocks differ compare by it.
    by_due: BTreeSet<(u64, Position, bytes::Bytes)>,
    due_of: BTreeMap<(Position, bytes::Bytes), Due>,
    /// Timers due at this time of the shard's clock and later are not kept here. Unit: ms.
    horizon: u64,
    /// When timers were last proposed that are not known to be applied.
    proposed: Option<Time>,
    /// When to look again.
    alarm: Option<Time>,
}

/// When a timer is due. Unit: ms.
#[derive(Debug, Clone, Copy)]
struct Due {
    by_shard: u64,
    /// As its row says.
    by_entity: u64,
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
    pub(super) fn learn(&mut self, news: TimerNews, clock: &ShardClock) {
        let key = (news.entity, news.what);
        if let Some(due) = self.due_of.remove(&key) {
            self.by_due.remove(&(due.by_shard, key.0.clone(), key.1.clone()));
        }
        let due = |by_entity| Due {
            by_shard: clock.when_due(&key.0, by_entity),
            by_entity,
        };
        if let Some(due) = news.due_ms.map(due).filter(|due| due.by_shard < self.horizon) {
            self.by_due.insert((due.by_shard, key.0.clone(), key.1.clone()));
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

    /// The clock is another one. Whatever is not kept is not due any earlier by it.
    fn go_by(&mut self, clock: &ShardClock) {
        self.by_due.clear();
        for ((entity, what), due) in &mut self.due_of {
            due.by_shard = clock.when_due(entity, due.by_entity);
            self.by_due.insert((due.by_shard, entity.clone(), what.clone()));
        }
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
        let timer = |(_, entity, what): &(u64, Position, bytes::Bytes)| {
            let key = (entity.clone(), what.clone());
            let due_ms = self.due_of.get(&key)?.by_entity;
            let (entity, what) = key;
            Some(Timer { entity, what, due_ms })
        };
        due.filter_map(timer).take(TIMERS_AT_ONCE_MAX).collect()
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
        let (clock, unbooked) = replica.clock_now(now);
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
    pub(super) fn timers_changed(&mut self, replica: &Replica, news: Vec<TimerNews>) {
        if news.is_empty() {
            return;
        }
        let shard = replica.shard.id;
        if let Some(sender) = self.dispatch.sender(shard) {
            for news in news {
                sender.timers.learn(news, &replica.clock);
            }
            self.dispatch.activate(shard);
        }
    }

    /// The shard takes over the entities from `start` on, with the clock that they had.
    pub(super) fn take_clock(&mut self, left: &mut Replica, right: &ShardClock, start: &Position) {
        if self.config.planted == PlantedBug::MergeForgetsClock {
            left.clock = ShardClock::new(left.clock.now_ms().max(right.now_ms()));
        } else {
            left.clock.take_over(right, start);
        }
        if let Some(sender) = self.dispatch.sender(left.shard.id) {
            sender.timers.go_by(&left.clock);
        }
    }

    /// Timers whose time has come.
    pub(super) fn apply_due(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        timers: &[Timer],
        wall_ms: u64,
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
            let context = replica.context(&due.entity, wall_ms);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_of_clocks_far_apart_are_due_in_the_order_of_the_shards_own() {
        let mut timers = Timers::default();
        let mut clock = ShardClock::new(1_000);
        let at = |key: &str| Position::new("campaign", key);
        let news = |key: &str, due_ms| TimerNews {
            entity: at(key),
            what: bytes::Bytes::new(),
            due_ms: Some(due_ms),
        };
        clock.take_over(&ShardClock::new(900_000), &at("m"));
        timers.learn(news("z", 900_500), &clock);
        timers.learn(news("a", 1_600), &clock);
        let due = |timers: &Timers, clock_ms| -> Vec<(String, u64)> {
            let due = timers.due(clock_ms).into_iter();
            due.map(|timer| (timer.entity.parts().1.unwrap_or_default().to_owned(), timer.due_ms))
                .collect()
        };
        assert_eq!(due(&timers, 1_499), []);
        assert_eq!(due(&timers, 1_500), [("z".to_owned(), 900_500)]);
        // By another clock, `z` has more time.
        let mut turned_back = ShardClock::new(1_000);
        turned_back.take_over(&ShardClock::new(800_000), &at("m"));
        timers.go_by(&turned_back);
        assert_eq!(due(&timers, 2_000), [("a".to_owned(), 1_600)]);
        assert_eq!(due(&timers, 101_500).len(), 2);
        timers.learn(news("z", 800_100), &turned_back);
        assert_eq!(due(&timers, 1_100), [("z".to_owned(), 800_100)], "set again");
        timers.learn(
            TimerNews {
                due_ms: None,
                ..news("z", 0)
            },
            &turned_back,
        );
        assert_eq!(due(&timers, u64::MAX).len(), 1);
    }
}
