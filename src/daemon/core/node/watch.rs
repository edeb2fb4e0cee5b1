//! Which replicas have something that would otherwise have to be looked for among all of them: a node may hold ten thousand,
//! nearly all of them idle, and whatever happens many times a second must not go through them.
//!
//! Each replica remembers what was noted of it last (`replica::standing`), so that noting costs nothing while nothing changes. All
//! that changes a replica's standing touches it, and what is touched is noted when the step settles.
use std::collections::BTreeSet;

use super::Node;
use crate::daemon::core::replica::Replica;
use crate::protocol::id::ShardId;
use crate::protocol::message::Load;

/// Replicas by what they are noted for.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Raft's clock moves for these.
    pub(super) awake: BTreeSet<ShardId>,
    /// Led here.
    pub(super) led: BTreeSet<ShardId>,
    /// Wait for the disk.
    pub(super) unsynced: BTreeSet<ShardId>,
    /// Snapshots are asked for or under way.
    pub(super) sending: BTreeSet<ShardId>,
    /// Stand still for a merge.
    pub(super) frozen: BTreeSet<ShardId>,
    /// Led here, and perhaps at an epoch that the directory has not heard of.
    pub(super) untold: BTreeSet<ShardId>,
    /// Grows when a copy comes, goes, or its shard changes.
    pub(super) changes: u64,
}

impl Watch {
    /// Notes how a replica stands.
    fn note(&mut self, replica: &mut Replica) {
        let shard = replica.shard.id;
        let (now, before) = replica.note_standing();
        if before == now {
            return;
        }
        self.changes += u64::from(before.epoch != now.epoch);
        let mut set = |set: fn(&mut Self) -> &mut BTreeSet<ShardId>, was: bool, is: bool| match (was, is) {
            (false, true) => drop(set(self).insert(shard)),
            (true, false) => drop(set(self).remove(&shard)),
            _ => {}
        };
        set(|w| &mut w.awake, before.is_awake, now.is_awake);
        set(|w| &mut w.led, before.is_leader, now.is_leader);
        set(|w| &mut w.unsynced, before.is_unsynced, now.is_unsynced);
        set(|w| &mut w.sending, before.is_sending, now.is_sending);
        set(|w| &mut w.frozen, before.is_frozen, now.is_frozen);
    }

    /// A copy is gone.
    pub(super) fn forget(&mut self, shard: ShardId) {
        self.changes += 1;
        for set in [
            &mut self.awake,
            &mut self.led,
            &mut self.unsynced,
            &mut self.sending,
            &mut self.frozen,
            &mut self.untold,
        ] {
            set.remove(&shard);
        }
    }
}

impl Node {
    /// Puts a replica that was worked on back in its place.
    pub(super) fn put_back(&mut self, mut replica: Replica) {
        let shard = replica.shard.id;
        self.watch.note(&mut replica);
        if replica.is_leader() && self.is_untold(&replica) {
            self.watch.untold.insert(shard);
        }
        self.replicas.insert(shard, replica);
    }

    /// Nothing may sleep that is ticked, nor the other way round: what is forgotten here stands still for ever.
    #[cfg(debug_assertions)]
    pub(super) fn check_watch(&self) {
        for (shard, replica) in &self.replicas {
            let noted = (self.watch.awake.contains(shard), self.watch.unsynced.contains(shard));
            let is = (!replica.is_asleep(), !replica.is_idle());
            assert!(
                noted == is || self.touched.contains(shard) || self.condemned.contains_key(shard),
                "{shard} is noted as {noted:?} and is {is:?}"
            );
        }
    }

    /// Whether the directory may not have heard of the shard as it is.
    pub(super) fn is_untold(&self, replica: &Replica) -> bool {
        self.directory_epochs
            .get(&replica.shard.id)
            .is_none_or(|&known| known < replica.shard.epoch)
    }

    /// The next so many of the shards that are led here, going round; all of them where there are no more than that. What
    /// is awake comes first, as it is where news is.
    pub(super) fn next_led(&mut self, count: usize) -> BTreeSet<ShardId> {
        let led = &self.watch.led;
        if led.len() <= count {
            return led.clone();
        }
        let awake = self.watch.awake.iter().filter(|shard| led.contains(shard));
        let mut next: BTreeSet<ShardId> = awake.take(AWAKE_TOLD_MAX).copied().collect();
        let from = self.told_up_to;
        let behind = led.range(from..).skip_while(|&&shard| shard == from);
        let round: Vec<ShardId> = behind.chain(led.range(..=from)).take(count).copied().collect();
        self.told_up_to = round.last().copied().unwrap_or_default();
        next.extend(round);
        next
    }

    /// What this node tells the directory's leader of shards that it leads.
    pub(super) fn load_of(&self, shards: &BTreeSet<ShardId>) -> Load {
        let alive = self.alive();
        let led = shards.iter().filter_map(|shard| self.replicas.get(shard));
        Load {
            disk_total: self.disk_total,
            disk_free: if self.disk_total == 0 { 0 } else { self.disk_free },
            shards: led
                .filter(|replica| replica.is_leader())
                .map(|replica| replica.load(&alive))
                .collect(),
            copies: self.copies_under_way(),
        }
    }

    /// What this node would tell the directory's leader, were it another: of all that it leads, or of what is awake.
    pub(in crate::daemon::core) fn own_load(&self, all: bool) -> Load {
        self.load_of(if all { &self.watch.led } else { &self.watch.awake })
    }
}

/// Awake shards that one report names at most.
const AWAKE_TOLD_MAX: usize = 1_024;
