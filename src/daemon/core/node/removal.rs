//! Destroying copies: only with a proof that they are not needed, and never while another copy's birth depends on
//! their log.
//!
//! A copy is not needed when a descriptor of its shard that the directory has heard of does not name it, or when its
//! shard was absorbed, or dropped with its service. The directory hears of a descriptor when a leader has it on disk that the change is committed, and
//! answers every report that is out of date with its map.
//!
//! That a copy has applied its own removal is *not* enough: the others may not know yet that the change is committed, and
//! need this copy's vote to elect a leader who finds out.
use super::{Node, closing, merge};
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::node::PlantedBug;
use crate::daemon::core::replica::{self, Replica};
use crate::daemon::core::state::{Install, LogSeq, ReplicaMeta};
use crate::protocol::id::{Epoch, ShardId};
use crate::protocol::request::Response;
use crate::protocol::shard_map::ShardDescriptor;

impl Node {
    /// Looks for copies that the map proves not to be needed.
    pub(super) fn find_condemned(&mut self, effects: &mut Effects) {
        // A copy is proven superfluous by what the map, the directory and the copies beside it say: the same says the same.
        let seen = (self.told.changes(), self.map.changes(), self.watch.changes);
        let is_planted = self.config.planted == PlantedBug::DestroysUnheard;
        if std::mem::replace(&mut self.condemned_at, seen) == seen && !is_planted {
            return self.bury_condemned(effects);
        }
        let mut found = Vec::new();
        for (&shard, replica) in &self.replicas {
            if self.condemned.contains_key(&shard) {
                continue;
            }
            if replica.is_behind_its_log() && !replica.is_installing() {
                // After a restart other copies may yet have to be born of it.
                self.condemned_at = (0, 0, 0);
                continue;
            }
            if let Some(why) = self.proof_against(replica) {
                found.push((shard, why));
            }
        }
        for (shard, why) in found {
            self.condemned.insert(shard, why);
        }
        self.bury_condemned(effects);
    }

    fn proof_against(&self, replica: &Replica) -> Option<&'static str> {
        let planted = self.config.planted == PlantedBug::DestroysUnheard;
        let is_warm = self.clock.now.since(self.started) > crate::daemon::core::time::Span::secs(3);
        if planted && is_warm && replica.is_initialized() && replica.leader().is_none() {
            return Some("nobody is heard from");
        }
        let shard = &replica.shard;
        let since = if replica.is_initialized() {
            shard.epoch
        } else {
            replica.made_at
        };
        if since == Epoch(0) {
            return None;
        }
        if replica.is_initialized() && self.told.is_dropped(shard) {
            return Some(closing::DROPPED);
        }
        if let Some(known) = self.told.shard(shard.id) {
            let removed = known.epoch >= since && known.replica(replica.id).is_none();
            return removed.then_some("a newer descriptor does not name it");
        }
        if !replica.is_initialized() {
            let gone = self.told.absorber(shard.id).is_some();
            return gone.then_some("its shard is no more");
        }
        let holder = self.told.find(&shard.range.start)?;
        let is_here = |id: ShardId| self.replicas.get(&id).is_some_and(Replica::is_initialized);
        // A copy of the absorber on this node takes the rows over when its log or a snapshot says so.
        let taken = holder.has_taken(shard) && !is_here(holder.id) && !self.may_be_absorbed(shard, &|_| false);
        taken.then_some("its shard was absorbed")
    }

    /// Whether a copy on this node may still have to take over this one's rows: its left neighbour, unless that one is
    /// past the merge, or past the epoch for which it was planned, or `leaps` over it.
    pub(super) fn may_be_absorbed(&self, shard: &ShardDescriptor, leaps: &dyn Fn(&ShardDescriptor) -> bool) -> bool {
        self.replicas
            .values()
            .filter(|other| other.is_initialized())
            .map(|other| &other.shard)
            .any(|left| {
                // The copy itself may have forgotten its freeze in a restart.
                let is_past = left.absorbed.contains(&shard.id)
                    || shard
                        .frozen
                        .is_some_and(|frozen| frozen.into == left.id && left.epoch > frozen.left_epoch);
                left.range.end == shard.range.start && !is_past && !leaps(left)
            })
    }

    /// Destroys condemned copies where nothing stands in the way.
    pub(super) fn bury_condemned(&mut self, effects: &mut Effects) {
        if self.condemned.is_empty() {
            return;
        }
        if !self.unsaved_births.is_empty() {
            // Their parent's log may be one that goes.
            self.checkpoint_soon = true;
            return;
        }
        for (shard, why) in self.condemned.clone() {
            if self.replicas.get(&shard).is_some_and(Replica::is_installing) {
                continue;
            }
            self.condemned.remove(&shard);
            let Some(replica) = self.replicas.remove(&shard) else {
                continue;
            };
            let (mine, rest) = std::mem::take(&mut self.absorbed_metas)
                .into_iter()
                .partition(|(absorber, _)| *absorber == shard);
            self.absorbed_metas = rest;
            let also: Vec<(ShardId, ReplicaMeta)> = mine;
            let also: Vec<ReplicaMeta> = also.into_iter().map(|(_, meta)| meta).collect();
            let mut dead: Vec<ShardId> = also.iter().map(|meta| meta.shard.id).collect();
            dead.push(shard);
            self.installs.insert(shard, dead);
            let range = replica.shard.range.clone();
            effects.push(Effect::Install(Box::new(Install {
                meta: self.destroyed_meta(&replica),
                also,
                clear: if replica.is_initialized() {
                    vec![range]
                } else {
                    Vec::new()
                },
                rows: None,
            })));
            self.forget(replica, why, effects);
        }
    }

    /// What is kept of a copy that is destroyed: its id, so that it never comes back.
    pub(super) fn destroyed_meta(&self, replica: &Replica) -> ReplicaMeta {
        ReplicaMeta {
            replica: replica.id,
            log_from: LogSeq(self.next_seq.0 - 1),
            destroyed: true,
            ..replica::empty_meta(replica.shard.id)
        }
    }

    /// A copy that is out of `replicas` already: the rest of the node lets go of it.
    pub(super) fn forget(&mut self, mut replica: Replica, why: &'static str, effects: &mut Effects) {
        let shard = replica.shard.id;
        let start = &replica.shard.range.start;
        if self.by_start.get(start) == Some(&shard) {
            self.by_start.remove(start);
        }
        self.watch.forget(shard);
        self.floors.insert(shard, replica.id);
        self.burying.insert(shard);
        // A checkpoint under way has it alive.
        self.checkpointing.retain(|&saved| saved != shard);
        self.orphans.remove(&shard);
        self.condemned.remove(&shard);
        self.unknown_since.remove(&shard);
        let is_absorbed = replica.shard.frozen.is_some() && (why == merge::ABSORBED || why == closing::DROPPED);
        self.dismiss_watchers(&replica, effects);
        let (harmless, unknown) = replica.take_waiting();
        let hint = self.hint_for(&replica.shard.range.start);
        for waiting in harmless {
            self.reply(
                waiting,
                Response::Error(replica::not_leader()),
                hint.clone(),
                None,
                effects,
            );
        }
        for waiting in unknown {
            // Behind a freeze no entry takes effect.
            let response = if is_absorbed {
                Response::Error(replica::not_leader())
            } else {
                super::outcome_unknown(waiting.id)
            };
            self.reply(waiting, response, hint.clone(), None, effects);
        }
        effects.push(Effect::Event(Event::Destroyed {
            shard,
            replica: replica.id,
            why,
        }));
    }
}
