//! Committed entries to rows and answers, in the order of the log.
use super::*;
use crate::daemon::core::entity::machine::Delta;

impl Node {
    /// Where a row that is needed fails its checksum the copy's rows are written off, and from there on only what the log says
    /// of the shard's shape is applied: other copies on this node may have been born of it before a restart.
    pub(super) fn apply(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let shard = replica.shard.id;
        if entry.index <= replica.reached() {
            // Its shape was applied before a restart, and is in the meta.
            return Ok(());
        }
        let (ours, lost) = replica.take_proposed(entry.index, entry.term);
        for waiting in lost {
            let hint = self.hint_of(replica);
            self.reply(waiting, Response::Error(replica::not_leader()), hint, None, effects);
        }
        if !entry.data.is_empty() {
            let payload = Payload::decode(&entry.data)
                .map_err(|error| StateError::Io(format!("entry {} of {shard}: {error}", entry.index)))?;
            if replica.shard.frozen.is_none() {
                // Behind a freeze nothing changes: copies are taken over at different indexes.
                replica.clock.advance(payload.elapsed_ms);
            }
            if let Some((proposed, waiters)) = &ours {
                self.write_took(self.clock.now.since(*proposed), waiters);
            }
            let mut waiters = ours.map(|(_, waiters)| waiters).unwrap_or_default().into_iter();
            for command in &payload.commands {
                let waiting = waiters.next();
                let applied = match (command, &entry.config) {
                    (Command::ChangeReplicas { .. } | Command::LeaveJoint, _) => {
                        self.apply_change(replica, entry, command, waiting, effects);
                        continue;
                    }
                    (Command::Merge { left_epoch, right, .. }, _) => {
                        let merged = self.apply_merge(replica, *left_epoch, right, seq, batch, state, effects)?;
                        if replica.stalled {
                            return Ok(());
                        }
                        (merged, None)
                    }
                    (command, _) if replica.written_off && !command.is_about_shape() => {
                        if let Some(waiting) = waiting {
                            self.reply(waiting, outcome_unknown(waiting.id), None, None, effects);
                        }
                        continue;
                    }
                    _ => match self.apply_command(replica, entry, command, payload.wall_ms, state, effects) {
                        Err(StateError::Checksum { key }) => {
                            self.write_off(replica, format!("row {key} fails its checksum"), effects);
                            let id = waiting.map(|waiting| waiting.id).unwrap_or_default();
                            (outcome_unknown(id), None)
                        }
                        other => other?,
                    },
                };
                if let Some(waiting) = waiting {
                    let (response, hint) = applied;
                    self.reply(waiting, response, hint, None, effects);
                }
            }
        }
        replica.set_applied(entry.index, entry.term);
        Ok(())
    }

    /// A planted bug: the entry's writes take effect once more, as if nobody remembered their request ids.
    pub(super) fn apply_again(
        &mut self,
        replica: &Replica,
        entry: &Committed,
        state: &mut dyn State,
    ) -> Result<(), StateError> {
        let Ok(payload) = Payload::decode(&entry.data) else {
            return Ok(());
        };
        for command in payload.commands {
            let Command::Write(mut write) = command else { continue };
            write.id.0 ^= 1;
            let position = Position::new(&write.service, &write.key);
            let context = Context {
                shard: replica.shard.id,
                wall_ms: payload.wall_ms,
                shard_time_ms: replica.clock.at(&position),
                change_at: replica.history + 1,
            };
            if replica.shard.range.contains(&position) {
                let rules = self.judge_by(&replica.schema, replica.shard.range.service())?;
                let _ = machine::apply(&write, context, &rules, state, &mut Delta::default())?;
            }
        }
        Ok(())
    }

    /// A planted bug: whether this copy leaves out a write. None that sends: a message numbered twice is noticed by its receiver.
    fn skips(&mut self, replica: &Replica, entry: &Committed, change: &Change) -> bool {
        self.config.planted == PlantedBug::SkipsAWrite
            && matches!(change, Change::Put(_) | Change::Patch(_))
            && self.config.node == NodeId(2)
            && !replica.is_leader()
            && entry.index > 30
            && self.skipped.insert(replica.shard.id)
    }

    pub(super) fn apply_command(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        command: &Command,
        wall_ms: u64,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(Response, Option<Box<RouteHint>>), StateError> {
        let response = match command {
            Command::Write(write) => {
                let position = Position::new(&write.service, &write.key);
                if replica.shard.frozen.is_some() {
                    return Ok((Response::Error(merge::frozen(&replica.shard)), None));
                }
                if let Some(error) = hold::refusal(&replica.shard, replica.clock.now_ms()) {
                    return Ok((Response::Error(error), None));
                }
                if !replica.shard.range.contains(&position) && !self.lingers(replica.shard.id, &position) {
                    let text = format!("{} no longer holds {position}; nothing was changed", replica.shard.id);
                    let hint = self.hint_for(&position);
                    return Ok((Response::Error(WireError::new(Code::StaleRoute, text)), hint));
                }
                let context = replica.context(&position, wall_ms);
                if self.skips(replica, entry, &write.change) {
                    return Ok((outcome_unknown(write.id), None));
                }
                let mut delta = Delta::default();
                let rules = self.judge(replica)?;
                let outcome = machine::apply(write, context, &rules, state, &mut delta)?;
                self.take_delta(replica, entry, delta, effects);
                outcome.map_or_else(Response::Error, Response::Written)
            }
            Command::Split { epoch, at, child, .. } => {
                let response = self.apply_split(replica, *epoch, at, *child, effects);
                if let Response::Split { right, .. } = &response {
                    self.forget_sources(&right.range, state)?;
                    self.forget_timers(&right.range, state)?;
                    self.forget_children(&right.range, state)?;
                    self.forget_parked(&right.range, state)?;
                }
                response
            }
            Command::Freeze {
                epoch,
                into,
                left_epoch,
                ..
            } => match hold::refusal(&replica.shard, replica.clock.now_ms()) {
                Some(error) => Response::Error(error),
                // Rows that stopped at some entry may look empty where the others' are not: it must not say that it is closed.
                None if *into == DIRECTORY_SHARD && replica.written_off => {
                    let text = format!("whether {} is empty can't be seen in damaged rows", replica.shard.id);
                    Response::Error(WireError::new(Code::UnsafeOp, text))
                }
                None if *into == DIRECTORY_SHARD
                    && replica.shard.frozen.is_none()
                    && self.config.planted != PlantedBug::ClosesUnseen
                    && let Some(error) = closing::what_is_left(&replica.shard, &*state)? =>
                {
                    Response::Error(error)
                }
                None => self.apply_freeze(replica, entry, *epoch, *into, *left_epoch, effects),
            },
            Command::Hold { for_ms, .. } => self.apply_hold(replica, *for_ms, wall_ms, effects),
            Command::Thaw { proof, .. } => self.apply_thaw(replica, proof, effects),
            Command::BumpEpoch { epoch, .. } => self.apply_bump(replica, *epoch),
            Command::Verify { by, from, rows } => {
                self.keep_slice(replica, entry.index, (*by, from, *rows), state, effects);
                Response::Asked
            }
            Command::Quarantine { replica: id } => self.apply_quarantine(replica, *id, effects),
            Command::ChangeReplicas { .. } | Command::LeaveJoint | Command::Merge { .. } => {
                return Err(StateError::Io("applied elsewhere".to_owned()));
            }
            Command::Deliver(_) | Command::Acknowledge(_) | Command::Due(_) if replica.shard.frozen.is_some() => {
                return Ok((Response::Error(merge::frozen(&replica.shard)), None));
            }
            Command::Deliver(_) | Command::Due(_)
                if let Some(error) = hold::refusal(&replica.shard, replica.clock.now_ms()) =>
            {
                return Ok((Response::Error(error), None));
            }
            Command::Deliver(parcels) => self.apply_deliver(replica, entry, parcels, wall_ms, state, effects)?,
            Command::Acknowledge(all) => self.apply_acknowledge(replica, entry, all, state, effects)?,
            Command::Schema(schema) => self.apply_schema(replica, schema)?,
            Command::Due(timers) => self.apply_due(replica, entry, timers, wall_ms, state, effects)?,
            Command::Directory(command) => {
                let Some(directory) = self.directory.as_mut() else {
                    return Err(StateError::Io("a directory command outside the directory".to_owned()));
                };
                let response = directory.apply(command, wall_ms, state);
                if let Response::Registered(node) = &response {
                    effects.push(Effect::Event(Event::Registered { node: node.id }));
                }
                let directory = self.directory.take().expect("set above");
                self.learn_directory(&directory);
                self.directory = Some(directory);
                response
            }
        };
        Ok((response, None))
    }

    pub(super) fn apply_split(
        &mut self,
        replica: &mut Replica,
        epoch: Epoch,
        at: &Position,
        child: ShardId,
        effects: &mut Effects,
    ) -> Response {
        if let Some(done) = self.split_done(&replica.shard, at, child) {
            return done;
        }
        if replica.shard.epoch != epoch {
            return Response::Error(stale_epoch(&replica.shard, epoch));
        }
        if let Some(error) = busy(&replica.shard) {
            return Response::Error(error);
        }
        let Some((left, right)) = replica.shard.range.split(at) else {
            return Response::Error(bad_split(&replica.shard, at));
        };
        if child <= replica.shard.id {
            return Response::Error(old_child(&replica.shard, child));
        }
        self.let_linger(replica.shard.id, &right);
        let epoch = Epoch(replica.shard.epoch.0 + 1);
        let right = ShardDescriptor {
            id: child,
            range: right,
            epoch,
            replicas: replica.shard.replicas.clone(),
            frozen: None,
            held: replica.shard.held,
            newest_replica: replica.shard.newest_replica,
            absorbed: Vec::new(),
            // It begins with their rows.
            quarantined: replica.shard.quarantined.clone(),
        };
        replica.shard.range = left;
        self.pairs_left(replica);
        replica.shard.epoch = epoch;
        replica.dirty = true;
        let left = replica.shard.clone();
        // Totals are estimated until somebody counts: counting here would stop the shard for as long as it takes.
        let (entities, bytes) = (replica.entities / 2, replica.bytes / 2);
        replica.entities -= entities;
        replica.bytes -= bytes;
        let mut changes = replica.changes.split_off(at);
        let clock = replica.clock.split_off(at);
        if self.config.planted == PlantedBug::SplitForgetsChanges {
            changes.lose();
        }

        let known = self.replicas.remove(&child);
        let born = known.as_ref().is_some_and(Replica::is_initialized);
        match (known, left.replica_on(self.config.node).map(|r| r.id)) {
            (Some(known), _) if born => {
                self.replicas.insert(child, known);
            }
            (_, Some(id)) if self.floors.get(&child).is_some_and(|&floor| floor >= id) => {}
            (known, Some(id)) => {
                let mut orphan = self.orphans.remove(&child).unwrap_or_default();
                if let Some(known) = known {
                    // It was made by a peer's message and may have voted.
                    orphan.hard_state = Some(known.log().hard_state.clone());
                }
                let mut meta = replica::first_meta(right.clone(), clock);
                meta.entities = entities;
                meta.schema = replica.schema.clone();
                meta.bytes = bytes;
                meta.written_off = replica.written_off;
                meta.history = replica.history;
                self.add_replica(meta, id, orphan);
                if let Some(child) = self.replicas.get_mut(&child)
                    && (replica.damage.is_some() || replica.written_off)
                {
                    // Whose row it is may be found out again.
                    child.damage.clone_from(&replica.damage);
                    self.ailing.insert(child.shard.id);
                }
                if let Some(child) = self.replicas.get_mut(&child) {
                    child.changes = changes;
                }
                self.may_remember(child);
                self.unsaved_births.insert(child);
                // A checkpoint under way has it as it was before.
                self.checkpointing.retain(|&shard| shard != child);
                replica.must_keep_commit = true;
                if replica.is_leader()
                    && let Some(child) = self.replicas.get_mut(&child)
                {
                    child.campaign();
                }
            }
            (None, None) | (Some(_), None) => {}
        }
        self.unknown_since.remove(&child);
        self.map.learn_shard(&left);
        self.map.learn_shard(&right);
        self.last_report = Time(0);
        let (mine, others): (Vec<_>, Vec<_>) = self.stash.drain(..).partition(|(_, _, raft)| raft.shard == child);
        self.stash = others.into();
        for (_, from, raft) in mine {
            self.raft_received(from, raft, effects);
        }
        effects.push(Effect::Event(Event::Split {
            left: left.clone(),
            right: Box::new(right.clone()),
        }));
        Response::Split {
            left: Box::new(left),
            right: Box::new(right),
        }
    }

    /// The answer to a split that has happened already.
    pub(in crate::daemon::core) fn split_done(
        &self,
        left: &ShardDescriptor,
        at: &Position,
        child: ShardId,
    ) -> Option<Response> {
        let right = self.map.shard(child).filter(|right| right.range.start == *at)?;
        (left.range.end <= *at).then(|| Response::Split {
            left: Box::new(left.clone()),
            right: Box::new(right.clone()),
        })
    }
}
