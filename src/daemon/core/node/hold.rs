//! A shard that an operator has frozen: for a while it takes no writes, and goes on serving reads.
//!
//! The hold is an entry of the shard's own log, and is over by the shard's own clock: no write behind it takes effect on any
//! copy before that, and no wall clock that jumps makes it longer. Messages for its entities, and its timers, wait as well; what
//! its entities have sent goes on. Copies may be moved, made again and split meanwhile; only a merge has to wait.
use super::{Node, busy, merge};
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::replica::Replica;
use crate::daemon::core::time::Time;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch};
use crate::protocol::request::{HOLD_MS_MAX, Response};
use crate::protocol::shard_map::{Held, ShardDescriptor};

/// The refusal of a write, where the shard is held at this moment of its clock.
pub(super) fn refusal(shard: &ShardDescriptor, shard_time_ms: u64) -> Option<WireError> {
    let left_ms = shard.held?.until_ms.saturating_sub(shard_time_ms);
    if left_ms == 0 {
        return None;
    }
    let text = format!(
        "an operator has frozen {} for {} s more: it takes no writes; nothing was changed",
        shard.id,
        left_ms.div_ceil(1_000)
    );
    let mut error = WireError::new(Code::ShardHeld, text);
    error.retry_after_ms = left_ms.clamp(20, 1_000) as u32;
    Some(error)
}

/// The same for a leader, which need not trouble the log.
pub(in crate::daemon::core) fn refusal_now(replica: &Replica, now: Time) -> Option<WireError> {
    replica.shard.held?;
    let (clock, unbooked) = replica.clock_now(now);
    // Before the first entry of a term the shard's clock stands still: the log decides, and moves it.
    if unbooked.0 == 0 {
        return None;
    }
    refusal(&replica.shard, clock)
}

impl Node {
    /// Whether the leader may propose a hold, or its end (0).
    pub(in crate::daemon::core) fn check_hold(&self, shard: &ShardDescriptor, for_ms: u64) -> Result<(), WireError> {
        if let Some(error) = busy(shard) {
            return Err(error);
        }
        if shard.id == DIRECTORY_SHARD {
            let text = "the directory can't be frozen: nothing else could be done; nothing was changed";
            return Err(WireError::new(Code::BadRequest, text));
        }
        if for_ms > HOLD_MS_MAX {
            let text = format!(
                "a freeze of {for_ms} ms is too long: at most {} hours; nothing was changed",
                HOLD_MS_MAX / 3_600_000
            );
            return Err(WireError::new(Code::BadRequest, text));
        }
        let mut right = self.map.shards().filter(|right| {
            let into = right.frozen.map(|frozen| frozen.into);
            into == Some(shard.id)
        });
        match right.next() {
            Some(right) => Err(merge::frozen(right)),
            None => Ok(()),
        }
    }

    pub(super) fn apply_hold(
        &mut self,
        replica: &mut Replica,
        for_ms: u64,
        wall_ms: u64,
        effects: &mut Effects,
    ) -> Response {
        if let Some(error) = busy(&replica.shard) {
            return Response::Error(error);
        }
        let held = (for_ms > 0).then(|| Held {
            until_ms: replica.clock.now_ms().saturating_add(for_ms),
            ends_ms: wall_ms.saturating_add(for_ms),
        });
        if replica.shard.held != held {
            replica.shard.held = held;
            replica.shard.epoch = Epoch(replica.shard.epoch.0 + 1);
            replica.dirty = true;
            self.map.learn_shard(&replica.shard);
            self.last_report = Time(0);
            let shard = replica.shard.id;
            effects.push(Effect::Event(Event::Held { shard, for_ms }));
        }
        Response::Shard(Box::new(replica.shard.clone()))
    }
}
