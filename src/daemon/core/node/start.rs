//! The first shards of a new cluster; what a restart finds in the store.
use super::*;

impl Node {
    /// The first shards of a new cluster: the same on every founder, so that nobody has to be told.
    pub(super) fn found(&mut self) {
        for meta in self.first_metas() {
            if let Some(me) = meta.shard.replica_on(self.config.node).copied() {
                self.add_replica(meta, me.id, Orphan::default());
            }
        }
    }

    pub(super) fn is_founder(&self) -> bool {
        let me = self.config.node;
        self.config.founders.iter().any(|founder| founder.id == me)
    }

    /// This node's copies of the first shards.
    pub(super) fn first_metas(&self) -> Vec<ReplicaMeta> {
        if !self.is_founder() {
            return Vec::new();
        }
        let (_, shards) = self.founding();
        let mine = shards
            .into_iter()
            .filter(|shard| shard.replica_on(self.config.node).is_some());
        mine.map(|shard| replica::first_meta(shard, Default::default()))
            .collect()
    }

    pub(super) fn founding(&self) -> (Vec<ServiceInfo>, Vec<ShardDescriptor>) {
        let mut founders: Vec<NodeId> = self.config.founders.iter().map(|founder| founder.id).collect();
        founders.sort();
        let members = |first: usize, count: usize| -> Vec<ReplicaDescriptor> {
            let count = count.clamp(1, founders.len());
            let mut nodes: Vec<NodeId> = (0..count).map(|i| founders[(first + i) % founders.len()]).collect();
            nodes.sort();
            nodes
                .iter()
                .map(|&node| ReplicaDescriptor {
                    node,
                    id: ReplicaId(node.0),
                    role: ReplicaRole::Voter,
                })
                .collect()
        };
        let directory = ShardDescriptor {
            id: DIRECTORY_SHARD,
            range: directory::range(),
            epoch: Epoch(1),
            replicas: members(0, 5),
            frozen: None,
            held: None,
            newest_replica: ReplicaId(0),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        };
        let mut shards = vec![directory];
        let mut services = Vec::new();
        for service in &self.config.services {
            let mut bounds = vec![Position::new(&service.name, "")];
            bounds.extend(service.cuts.iter().cloned());
            bounds.push(Position::end_of(&service.name));
            for pair in bounds.windows(2) {
                let id = ShardId(shards.len() as u64);
                let range = KeyRange {
                    start: pair[0].clone(),
                    end: pair[1].clone(),
                };
                let replicas = members(shards.len() - 1, service.replicas as usize);
                shards.push(ShardDescriptor {
                    id,
                    range,
                    epoch: Epoch(1),
                    replicas,
                    frozen: None,
                    held: None,
                    newest_replica: ReplicaId(0),
                    absorbed: Vec::new(),
                    quarantined: Vec::new(),
                });
            }
            services.push(ServiceInfo {
                number: 0,
                dropping: None,
                kept_because: String::new(),
                name: service.name.clone(),
                replicas: service.replicas,
                presplit: service.cuts.len() as u32 + 1,
                sizes: ShardSizes::default(),
            });
        }
        (services, shards)
    }

    pub(super) fn recover(&mut self, mut recovered: Recovered, effects: &mut Effects) -> Result<(), StateError> {
        // It may have gone down before its first checkpoint: the log goes on from the first shards, which are not in it.
        // (A shard that was removed from this node has left a meta.)
        for meta in self.first_metas() {
            if recovered.replicas.iter().all(|known| known.shard.id != meta.shard.id) {
                recovered.replicas.push(meta);
            }
        }
        let mut logs: BTreeMap<ShardId, (ReplicaMeta, LogView)> = BTreeMap::new();
        for meta in recovered.replicas {
            if meta.destroyed {
                self.floors.insert(meta.shard.id, meta.replica);
                continue;
            }
            if meta.shard.epoch == Epoch(0) {
                if meta.replica > ReplicaId(0) {
                    self.floors.insert(meta.shard.id, ReplicaId(meta.replica.0 - 1));
                }
                // A replica that was made by a peer's message and never filled: it holds a vote, and its log begins
                // where a split or a snapshot makes it again.
                let orphan = self.orphans.entry(meta.shard.id).or_default();
                orphan.hard_state = Some(meta.hard_state);
                continue;
            }
            let base = (meta.applied, meta.applied_term);
            let log = LogView::new(base, meta.hard_state.clone(), meta.conf_state.clone());
            logs.insert(meta.shard.id, (meta, log));
        }
        for (seq, batch) in recovered.log {
            for write in batch.shards {
                match logs.get_mut(&write.shard) {
                    Some((meta, _)) if seq <= meta.log_from => {}
                    Some((_, log)) => {
                        if let Some(hard_state) = write.hard_state {
                            log.hard_state = hard_state;
                        }
                        if write.complete {
                            log.truncate_from(log.first());
                        }
                        let behind: Vec<Entry> = write
                            .entries
                            .into_iter()
                            .filter(|entry| entry.index >= log.first())
                            .collect();
                        if !log.append(&behind) {
                            let gap = format!("{}: log write {seq} begins behind the log's end", write.shard);
                            return Err(StateError::Io(gap));
                        }
                    }
                    // What is left of a destroyed copy is filtered by the store; a later copy has promised something only
                    // after a snapshot, and then it has a meta.
                    None if self.floors.contains_key(&write.shard) && !self.orphans.contains_key(&write.shard) => {}
                    None => {
                        let orphan = self.orphans.entry(write.shard).or_default();
                        orphan.hard_state = write.hard_state.or(orphan.hard_state.take());
                        if let Some(front) = write.entries.first() {
                            let from = if write.complete { 0 } else { front.index };
                            orphan.entries.retain(|entry| entry.index < from);
                            orphan.entries.extend(write.entries);
                        }
                    }
                }
            }
        }
        for (shard, (meta, mut log)) in logs {
            let reached = meta.applied.max(meta.shaped).min(log.last());
            log.hard_state.commit = log.hard_state.commit.clamp(reached, log.last());
            log.hard_state.term = log.hard_state.term.max(meta.applied_term);
            let mine = meta.shard.replica_on(self.config.node).map(|replica| replica.id);
            let id = match (meta.replica, mine) {
                (ReplicaId(0), Some(id)) => id,
                (ReplicaId(0), None) => {
                    effects.push(Effect::Event(Event::Dropped {
                        from: self.config.node,
                        why: "a meta without this node",
                    }));
                    continue;
                }
                (id, _) => id,
            };
            let seed = self.replica_seed();
            let mut replica = Replica::new(&meta, log, id, self.config.node, seed);
            replica.set_tail(self.config.log_tail_entries);
            if replica.is_initialized() {
                self.by_start.insert(replica.shard.range.start.clone(), shard);
            }
            self.replicas.insert(shard, replica);
            self.touched.insert(shard);
        }
        Ok(())
    }

    pub(super) fn replica_seed(&self) -> u64 {
        self.config.seed ^ self.config.node.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn add_replica(&mut self, meta: ReplicaMeta, id: ReplicaId, orphan: Orphan) {
        let shard = meta.shard.id;
        let base = (meta.applied, meta.applied_term);
        let mut hard_state = orphan.hard_state.unwrap_or_else(|| meta.hard_state.clone());
        let mut log = LogView::new(base, HardState::default(), meta.conf_state.clone());
        let behind: Vec<Entry> = orphan
            .entries
            .into_iter()
            .filter(|entry| entry.index > base.0)
            .collect();
        log.append(&behind);
        hard_state.term = hard_state.term.max(meta.hard_state.term);
        hard_state.commit = hard_state.commit.clamp(base.0, log.last());
        log.hard_state = hard_state;
        let mut replica = Replica::new(&meta, log, id, self.config.node, self.replica_seed());
        replica.set_tail(self.config.log_tail_entries);
        if replica.is_initialized() {
            self.by_start.insert(replica.shard.range.start.clone(), shard);
        }
        self.watch.forget(shard);
        self.births.begun(shard);
        self.replicas.insert(shard, replica);
        self.touched.insert(shard);
    }
}
