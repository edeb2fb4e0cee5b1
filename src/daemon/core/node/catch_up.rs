//! Snapshots in and out; checkpoints; stopping.
use super::*;

impl Node {
    /// A snapshot lies whole on the disk: it is installed, or let go.
    pub(super) fn snapshot_received(
        &mut self,
        from: NodeId,
        raft: RaftMessage,
        copy: StagedCopy,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let shard = raft.shard;
        self.offer_snapshot(from, raft, copy.clone(), state, effects);
        let is_wanted =
            |effect: &Effect| matches!(effect, Effect::Install(install) if install.rows.as_ref() == Some(&copy));
        debug_assert!(
            self.replicas
                .get(&shard)
                .is_none_or(|replica| replica.incoming.is_none())
        );
        if !effects.iter().any(is_wanted) {
            effects.push(Effect::Unstage(copy));
        }
    }

    fn offer_snapshot(
        &mut self,
        from: NodeId,
        raft: RaftMessage,
        copy: StagedCopy,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let snapshot = raft.message.get_snapshot();
        let manifest: SnapshotManifest = match codec::decode(&snapshot.data) {
            Ok(manifest) => manifest,
            Err(_) => return self.drop_message(from, "a snapshot without a manifest", effects),
        };
        if manifest.shard.id != raft.shard
            || manifest
                .shard
                .replica(raft.to)
                .is_none_or(|r| r.node != self.config.node)
        {
            return self.drop_message(from, "a snapshot for somebody else", effects);
        }
        if self.condemned.contains_key(&raft.shard) {
            return self.drop_message(from, "for a replica that is being destroyed", effects);
        }
        let at = (snapshot.metadata.index, snapshot.metadata.term);
        let Some(replica) = self
            .replicas
            .get_mut(&raft.shard)
            .filter(|replica| replica.id == raft.to)
        else {
            return self.drop_message(from, "a snapshot for a replica that is not here", effects);
        };
        if replica.is_installing() {
            return self.drop_message(from, "a snapshot while another one is installed", effects);
        }
        let start = replica.shard.range.start.clone();
        // What is ready is taken first: Raft must have nothing else in hand when it takes a snapshot.
        self.touched.insert(raft.shard);
        self.settle_replicas(state, effects);
        if !self.unsaved_births.is_empty() {
            // This may be their parent: its snapshot takes the place of the log entries that make them. Or one of them: its
            // rows would be on disk before the parent has let go of them, and what the parent's log says of the time before
            // the split would be written over them at the next start.
            self.checkpoint_soon = true;
            return self.drop_message(from, "a snapshot before a split is checkpointed", effects);
        }
        // A log that reaches as far is only told what of it is committed: a merge in it may need the copies that are here.
        let is_known = self
            .replicas
            .get(&raft.shard)
            .is_some_and(|replica| replica.has_all_of(at.0, at.1));
        let is_behind = self.replicas.get(&raft.shard).is_some_and(Replica::is_behind_its_log);
        if is_behind && !is_known && self.orphans.values().any(|log| !log.entries.is_empty()) {
            return self.drop_message(from, "a snapshot before the log is applied again", effects);
        }
        let taken_over = match self.taken_over_by(&manifest.shard) {
            _ if is_known => Vec::new(),
            Ok(shards) => shards,
            Err(why) => return self.drop_message(from, why, effects),
        };
        if self.has_freeze_already(&manifest.shard) {
            return self.drop_message(from, "a snapshot of a freeze that the log has", effects);
        }
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        replica.log_from = LogSeq(self.next_seq.0 - 1);
        let also = taken_over.iter().filter_map(|id| self.replicas.get(id));
        let clear = also.clone().map(|replica| replica.shard.range.clone()).collect();
        let mut also: Vec<ReplicaMeta> = also.map(|replica| self.destroyed_meta(replica)).collect();
        let is_absorber = |id: &ShardId| *id == raft.shard || taken_over.contains(id);
        also.extend(
            self.absorbed_metas
                .iter()
                .filter(|(absorber, _)| is_absorber(absorber))
                .map(|(_, meta)| meta.clone()),
        );
        let dead: Vec<ShardId> = also.iter().map(|meta| meta.shard.id).collect();
        // Out of the way while Raft is asked; back if it does not want the snapshot.
        let mut aside = Vec::new();
        for id in &taken_over {
            aside.extend(self.replicas.remove(id));
        }
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        let incoming = Incoming {
            manifest,
            rows: copy,
            snapshot: at,
            also,
            clear,
        };
        let log_from_before = replica.log_from;
        replica.offer_snapshot(from, raft.message, incoming);
        self.touched.insert(raft.shard);
        self.settle_replicas(state, effects);
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        replica.incoming = None;
        debug_assert_eq!(replica.log_from, log_from_before);
        if !replica.is_installing() {
            self.replicas
                .extend(aside.into_iter().map(|replica| (replica.shard.id, replica)));
        } else {
            for dead in aside {
                self.forget(dead, "a snapshot of the shard that took over its keys", effects);
            }
            self.absorbed_metas.retain(|(_, meta)| !dead.contains(&meta.shard.id));
            self.installs.insert(raft.shard, dead);
            let Some(replica) = self.replicas.get_mut(&raft.shard) else {
                return;
            };
            if self.by_start.get(&start) == Some(&raft.shard) {
                self.by_start.remove(&start);
            }
            self.by_start.insert(replica.shard.range.start.clone(), raft.shard);
            let shard = replica.shard.clone();
            self.map.learn_shard(&shard);
        }
    }

    /// Whether fewer snapshots are under way than may be.
    pub(super) fn may_send_snapshots(&self) -> bool {
        let senders = self.watch.sending.iter().filter_map(|shard| self.replicas.get(shard));
        senders.map(|replica| replica.sending.len()).sum::<usize>() < SNAPSHOTS_AT_ONCE
    }

    pub(super) fn start_snapshots(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let senders: Vec<ShardId> = self.watch.sending.iter().copied().collect();
        for shard in senders {
            if let Some(mut replica) = self.replicas.remove(&shard) {
                replica.take_snapshots(now, effects);
                self.put_back(replica);
            }
        }
    }

    pub(super) fn maybe_checkpoint(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        // Nodes that take in the same writes would all checkpoint in the same moment, and no majority would be quick then.
        let eighths = 8 + self.config.node.0 % CHECKPOINT_STAGGER;
        let every = Span(self.config.checkpoint_every.0 * eighths / 8);
        let due = self.checkpoint_soon
            || now.since(self.last_checkpoint) >= every
            || self.log_bytes >= CHECKPOINT_BYTES * eighths as usize / 8;
        if due && !self.checkpoint_running {
            self.last_checkpoint = now;
            self.checkpoint_soon = false;
            self.checkpoint(effects);
        }
    }

    pub(super) fn checkpoint(&mut self, effects: &mut Effects) {
        self.log_bytes = 0;
        let mut replicas = Vec::new();
        let mut again = Vec::new();
        for (absorber, _) in &self.absorbed_metas {
            if let Some(replica) = self.replicas.get_mut(absorber) {
                replica.dirty = true;
            }
        }
        for replica in self.replicas.values_mut().filter(|replica| !replica.is_installing()) {
            if replica.dirty {
                replica.dirty = false;
                replicas.push(replica.meta());
            }
            if replica.applied() == replica.applied_at_checkpoint {
                // Entries that don't get committed hold back the log: write them again, further on.
                again.extend(replica.unapplied());
            }
            replica.applied_at_checkpoint = replica.applied();
        }
        if !again.is_empty() {
            let seq = self.next_seq;
            self.next_seq = LogSeq(seq.0 + 1);
            effects.push(Effect::Persist {
                seq,
                batch: LogBatch { shards: again },
            });
        }
        // An absorbed copy's end is one transaction with its absorber's beginning.
        let saved: BTreeSet<ShardId> = replicas.iter().map(|meta: &ReplicaMeta| meta.shard.id).collect();
        let (with, rest) = std::mem::take(&mut self.absorbed_metas)
            .into_iter()
            .partition(|(absorber, _)| saved.contains(absorber));
        self.absorbed_metas = rest;
        let with: Vec<(ShardId, ReplicaMeta)> = with;
        replicas.extend(with.into_iter().map(|(_, meta)| meta));
        if !replicas.is_empty() {
            self.checkpoint_running = true;
            self.checkpointing = replicas.iter().map(|meta| meta.shard.id).collect();
            effects.push(Effect::Checkpoint { replicas });
        }
    }

    pub(super) fn hand_over_leaderships(&mut self) {
        let alive = self.alive();
        let mut asked = 0;
        for &shard in &self.watch.led {
            let Some(replica) = self.replicas.get_mut(&shard) else {
                continue;
            };
            if asked == HAND_OVERS_AT_ONCE || replica.is_handing_over() {
                continue;
            }
            if let Some(successor) = replica.successor(&alive) {
                replica.transfer(successor.id);
                self.touched.insert(shard);
                asked += 1;
            }
        }
    }

    pub(super) fn maybe_stop(&mut self, effects: &mut Effects) {
        let Some(since) = self.stopping else { return };
        let alive = self.alive();
        let of = |shards: &BTreeSet<ShardId>, is: &dyn Fn(&Replica) -> bool| {
            shards.iter().filter_map(|shard| self.replicas.get(shard)).any(is)
        };
        let leads = of(&self.watch.led, &|replica| {
            replica.is_leader() && replica.successor(&alive).is_some()
        });
        let busy = of(&self.watch.unsynced, &|replica| !replica.is_idle());
        let late = self.clock.now.since(since) > STOP_TIMEOUT;
        if (!leads && !busy) || late {
            self.stopped = true;
            effects.push(Effect::Stopped);
        }
    }

    pub(super) fn halt(&mut self, reason: String, effects: &mut Effects) {
        self.stopped = true;
        effects.push(Effect::Halt { reason });
    }
}

/// Leaderships handed over in one tick when a node stops.
const HAND_OVERS_AT_ONCE: usize = 200;
