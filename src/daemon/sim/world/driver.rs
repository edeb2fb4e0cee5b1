//! What a real driver does with threads and sockets: rounds of steps, and effects carried out with delays.
use std::collections::BTreeMap;
use std::fmt;

use super::super::check::{Property, Violation};
use super::super::machine::{Process, StateJob};
use super::super::trace::BriefRequest;
use super::super::workload::Act;
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event as CoreEvent;
use crate::daemon::core::input::{Input, SessionId};
use crate::daemon::core::state::ReplicaMeta;
use crate::daemon::core::time::{Clock, Span, Time};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::NodeId;
use crate::protocol::message::{Message, PeerFrame};
use crate::protocol::request::{Response, RouteHint};

use super::*;

impl World {
    pub(super) fn process_of(&mut self, machine: usize, boot: u64) -> Option<&mut Process> {
        let machine = &mut self.machines[machine];
        if machine.boot == boot {
            machine.process.as_mut()
        } else {
            None
        }
    }

    /// Puts an input into the queue of a machine's driver; lost if nothing runs there.
    pub(super) fn input(&mut self, machine: usize, input: Input) {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        let (boot, runs_at) = (owner.boot, owner.runs_at(now));
        let Some(process) = &mut owner.process else { return };
        process.inbox.push_back(input);
        if !process.round_is_due {
            process.round_is_due = true;
            self.schedule.at(runs_at, Event::Round { machine, boot });
        }
    }

    /// One round of a driver: all inputs that wait, one settle, all effects.
    pub(super) fn round(&mut self, machine: usize) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        let clock = owner.clock.read(now);
        let cost = Span(self.machine_rng.u64(0..=owner.round_max.0));
        owner.busy_until = now + cost;
        let Some(process) = &mut owner.process else {
            return Ok(());
        };
        process.round_is_due = false;
        if std::mem::take(&mut owner.was_stopped) && self.machine_rng.bool() {
            // Connections are read in any order: callers may be heard before peers that wrote long before them.
            let (asked, others): (Vec<_>, Vec<_>) = process
                .inbox
                .drain(..)
                .partition(|input| matches!(input, Input::Asked { .. }));
            process.inbox.extend(asked.into_iter().chain(others));
        }
        let mut effects = Effects::new();
        while let Some(input) = process.inbox.pop_front() {
            self.trace.note(&[10, owner.id.0, clock.now.0, kind_of(&input)]);
            if matches!(input, Input::Asked { .. } | Input::SnapshotReceived { .. }) {
                self.trace.line(now, || format!("{} {}", owner.id, brief_input(&input)));
            }
            process.node.step(clock, input, &mut process.store, &mut effects);
        }
        process.node.settle(clock, &mut process.store, &mut effects);
        self.carry_out(machine, clock, effects)?;
        self.inspect(machine)?;
        self.set_wake(machine);
        Ok(())
    }

    pub(super) fn set_wake(&mut self, machine: usize) {
        if self.is_manual {
            return;
        }
        let owner = &mut self.machines[machine];
        let boot = owner.boot;
        let Some(process) = &mut owner.process else { return };
        let at = process.node.next_deadline();
        if at != process.wake_at && at != Time(u64::MAX) {
            process.wake_at = at;
            self.schedule
                .at(owner.clock.when(at), Event::Wake { machine, boot, at });
        }
    }

    /// Counts what was done to shards: each once, however many copies did it.
    fn count(&mut self, event: &CoreEvent) {
        let (what, shard) = match event {
            CoreEvent::Changed { shard } => (0, (shard.id, shard.epoch.0)),
            CoreEvent::Frozen { shard, .. } => (1, (*shard, self.epoch_of(*shard))),
            CoreEvent::Merged { left, .. } => (2, (left.id, left.epoch.0)),
            CoreEvent::Thawed { shard } => (3, (*shard, self.epoch_of(*shard))),
            CoreEvent::Destroyed { shard, replica, .. } => (4, (*shard, replica.0)),
            CoreEvent::Quarantined { shard, replica } => {
                self.quarantined.insert((*shard, *replica));
                return;
            }
            _ => return,
        };
        self.operations[what].insert(shard);
    }

    fn epoch_of(&self, shard: ShardId) -> u64 {
        self.cover.shard(shard).map_or(0, |shard| shard.epoch.0)
    }

    fn note_destroyed(&mut self, metas: &[ReplicaMeta]) {
        let dead = metas.iter().filter(|meta| meta.destroyed);
        self.destroyed.extend(dead.map(|meta| (meta.shard.id, meta.replica)));
    }

    /// What a driver does with effects, in order.
    pub(super) fn carry_out(&mut self, machine: usize, clock: Clock, effects: Effects) -> Result<(), Violation> {
        let now = self.schedule.now();
        let id = self.machines[machine].id;
        let mut frames: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for effect in effects {
            self.trace.effect(now, id, &effect);
            match effect {
                Effect::Send { to, message } => frames.entry(to).or_default().push(message),
                Effect::Persist { seq, batch } => {
                    if !self.is_lost(machine) {
                        self.log.written(id, &batch)?;
                    }
                    let Some(process) = &mut self.machines[machine].process else {
                        return Ok(());
                    };
                    process.log_queue.push((seq, batch));
                    self.write_log(machine);
                }
                Effect::Reply {
                    session,
                    tag,
                    response,
                    hint,
                    valid_until,
                } => {
                    let boot = self.machines[machine].boot;
                    let pause = if self.is_manual {
                        Span(0)
                    } else {
                        Span(self.machine_rng.u64(0..30_000))
                    };
                    let hand_out = Event::HandOut {
                        machine,
                        boot,
                        session,
                        tag,
                        response: Box::new(response),
                        hint,
                        valid_until,
                    };
                    self.schedule.after(pause, hand_out);
                }
                Effect::Checkpoint { replicas } => {
                    self.note_destroyed(&replicas);
                    let Some(process) = &mut self.machines[machine].process else {
                        return Ok(());
                    };
                    let job = process.store.checkpoint(replicas.clone());
                    process
                        .state_jobs
                        .push_back(StateJob::Checkpoint { job, metas: replicas });
                    self.write_state(machine);
                }
                Effect::Install(install) => {
                    self.note_destroyed(std::slice::from_ref(&install.meta));
                    self.note_destroyed(&install.also);
                    let Some(process) = &mut self.machines[machine].process else {
                        return Ok(());
                    };
                    let (shard, meta) = (install.meta.shard.id, Box::new(install.meta.clone()));
                    let is_snapshot = !meta.destroyed;
                    let job = process.store.install(*install);
                    process.state_jobs.push_back(StateJob::Install { job, shard, meta });
                    self.snapshots += u64::from(is_snapshot);
                    self.write_state(machine);
                }
                Effect::Refuse { peer, .. } if self.is_lost_node(peer) => self.turn_away(machine),
                Effect::Refuse { peer, error } => {
                    let text = format!("{id} refuses {peer}, whose disk is as it should be: {error}");
                    return Err(Violation::new(Property::Log, text));
                }
                Effect::HashSlice { shard, index } => {
                    let owner = &mut self.machines[machine];
                    let boot = owner.boot;
                    let Some(process) = &mut owner.process else {
                        return Ok(());
                    };
                    if let Some(slice) = process.store.take_kept(shard, index) {
                        let sum = slice.sum();
                        let pause = match self.is_manual {
                            true => Span(0),
                            false => Span::micros(self.machine_rng.u64(50..20_000)),
                        };
                        let hashed = Event::Hashed {
                            machine,
                            boot,
                            shard,
                            index,
                            sum,
                        };
                        self.schedule.after(pause, hashed);
                    }
                }
                Effect::SendSnapshot {
                    to,
                    header,
                    range,
                    attempt,
                } => self.send_snapshot(machine, to, header.raft, &range, attempt)?,
                Effect::Unstage(copy) => {
                    if let Some(process) = &self.machines[machine].process {
                        process.store.staging().release(&copy);
                    }
                }
                // A copy that applies its own removal is not there any more when the checkers look.
                Effect::Event(event) => {
                    if let CoreEvent::Changed { shard } = &event {
                        self.cover.learn(id, shard)?;
                    }
                    if let CoreEvent::Stalled { .. } = &event {
                        // It would be replaced, and nobody would ever know of the fault that led there.
                        return Err(Violation::new(Property::CatchUp, format!("{event} (on {id})")));
                    }
                    self.mail.see(&event)?;
                    if !self.stage.schemas.is_empty() {
                        self.family.see(&event)?;
                        self.parking.see(&event)?;
                    }
                    if let Some(holder) = self.bank.see(&event, self.schedule.now())? {
                        self.to_audit.insert((machine, holder));
                    }
                    self.count(&event);
                }
                Effect::Stopped => {
                    self.send(machine, std::mem::take(&mut frames));
                    self.crash(machine, false);
                    let down = Span::millis(self.fault_rng.u64(10..800));
                    self.schedule.after(down, Event::Start { machine });
                    return Ok(());
                }
                Effect::Halt { reason } => {
                    let text = format!("{id} halts, and nothing is wrong with its disk: {reason}");
                    return Err(Violation::new(Property::Stop, text));
                }
            }
        }
        let _ = clock;
        self.audit()?;
        self.send(machine, frames);
        Ok(())
    }

    pub(super) fn send(&mut self, machine: usize, frames: BTreeMap<NodeId, Vec<Message>>) {
        let now = self.schedule.now();
        let persisted = self.machines[machine].process.as_ref().map(|process| process.persisted);
        let persisted = persisted.unwrap_or_default();
        for (to, messages) in frames {
            let Some(to) = self.machines.iter().position(|machine| machine.id == to) else {
                continue;
            };
            self.frames += 1;
            let messages = if self.frames.is_multiple_of(64) {
                recoded(messages)
            } else {
                messages
            };
            if self.is_manual {
                self.held.entry((machine, to)).or_default().push(messages);
                continue;
            }
            self.keep_mail(machine, to, &messages);
            let [first, second] = self.network.send(now, machine, to);
            if let Some(at) = second {
                let messages = messages.clone();
                self.schedule.at(
                    at,
                    Event::Frame {
                        to,
                        from: machine,
                        persisted,
                        messages,
                    },
                );
            }
            if let Some(at) = first {
                self.schedule.at(
                    at,
                    Event::Frame {
                        to,
                        from: machine,
                        persisted,
                        messages,
                    },
                );
            }
        }
    }

    /// The log thread takes all that waits into one write.
    pub(super) fn write_log(&mut self, machine: usize) {
        let owner = &mut self.machines[machine];
        let boot = owner.boot;
        let Some(process) = &mut owner.process else { return };
        if !process.log_writing.is_empty() || process.log_queue.is_empty() || owner.disk.held {
            return;
        }
        process.log_writing = std::mem::take(&mut process.log_queue);
        let last = process.log_writing.last().map(|(seq, _)| *seq);
        let at = self.disk_time(machine);
        self.schedule.at(at, Event::LogDone { machine, boot });
        if let (Bug::AckBeforeSync, Some(seq)) = (self.bug, last) {
            self.schedule.after(Span(0), Event::LogLie { machine, boot, seq });
        }
    }

    pub(super) fn disk_time(&mut self, machine: usize) -> Time {
        let disk = self.machines[machine].disk;
        let span = if self.is_manual {
            Span(0)
        } else {
            Span(self.machine_rng.u64(disk.sync_min.0..=disk.sync_max.0))
        };
        (self.schedule.now() + span).max(disk.stalled_until)
    }

    pub(super) fn log_done(&mut self, machine: usize) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        if owner.disk.stalled_until > now {
            let boot = owner.boot;
            self.schedule
                .at(owner.disk.stalled_until, Event::LogDone { machine, boot });
            return Ok(());
        }
        let Some(process) = &mut owner.process else {
            return Ok(());
        };
        let writing = std::mem::take(&mut process.log_writing);
        if std::mem::take(&mut owner.disk.fails) {
            owner.media.fail_log(self.fault_rng.bool());
            assert!(
                process.log.append(&writing).is_err(),
                "a write to a failed disk succeeded"
            );
            // It may have been written all the same.
            process.log_writing = writing;
            self.trace
                .line(now, || format!("{} fails to write its log and stops", owner.id));
            self.crash(machine, false);
            let down = Span::millis(self.fault_rng.u64(100..2_000));
            self.schedule.after(down, Event::Start { machine });
            return Ok(());
        }
        let seq = process
            .log
            .append(&writing)
            .map_err(|error| Violation::new(Property::Stop, format!("{} cannot write its log: {error}", owner.id)))?;
        for (_, batch) in &writing {
            self.log.synced(owner.id, batch);
        }
        process.persisted = process.persisted.max(seq);
        if self.bug != Bug::AckBeforeSync {
            self.input(machine, Input::Persisted { seq });
        }
        self.write_log(machine);
        Ok(())
    }

    /// The state thread starts its next job.
    pub(super) fn write_state(&mut self, machine: usize) {
        let owner = &self.machines[machine];
        let boot = owner.boot;
        let Some(process) = &owner.process else { return };
        if process.state_jobs.len() == 1 && !owner.disk.held {
            let more = if self.is_manual {
                Span(0)
            } else {
                Span(self.machine_rng.u64(0..20_000_000))
            };
            let at = self.disk_time(machine) + more;
            self.schedule.at(at, Event::StateDone { machine, boot });
        }
    }

    pub(super) fn state_done(&mut self, machine: usize) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        let boot = owner.boot;
        if owner.disk.stalled_until > now {
            self.schedule
                .at(owner.disk.stalled_until, Event::StateDone { machine, boot });
            return Ok(());
        }
        let Some(process) = &mut owner.process else {
            return Ok(());
        };
        let Some(job) = process.state_jobs.pop_front() else {
            return Ok(());
        };
        if std::mem::take(&mut owner.disk.fails) {
            owner.media.fail_state(self.fault_rng.bool());
            let failed = match job {
                StateJob::Checkpoint { job, .. } => process.writer.checkpoint(job).is_err(),
                StateJob::Install { mut job, .. } => process.writer.install(&mut job).is_err(),
            };
            assert!(failed, "a write to a failed disk succeeded");
            self.trace
                .line(now, || format!("{} fails to write its state and stops", owner.id));
            self.crash(machine, false);
            let down = Span::millis(self.fault_rng.u64(100..2_000));
            self.schedule.after(down, Event::Start { machine });
            return Ok(());
        }
        let id = owner.id;
        let bad =
            |error: &dyn fmt::Display| Violation::new(Property::Stop, format!("{id} cannot write its state: {error}"));
        let (trim, input) = match job {
            StateJob::Checkpoint { job, metas } => {
                let trim = process.writer.checkpoint(job).map_err(|error| bad(&error))?;
                process.store.checkpointed();
                for meta in &metas {
                    self.log.checkpointed(id, meta);
                }
                (trim, Input::Checkpointed)
            }
            StateJob::Install { mut job, shard, meta } => {
                let Some(trim) = process.writer.install(&mut job).map_err(|error| bad(&error))? else {
                    // A checkpoint may come before the next piece.
                    let is_checkpoint = |job: &StateJob| matches!(job, StateJob::Checkpoint { .. });
                    let checkpoint = process.state_jobs.iter().position(is_checkpoint);
                    let checkpoint = checkpoint.and_then(|at| process.state_jobs.remove(at));
                    process.state_jobs.push_front(StateJob::Install { job, shard, meta });
                    if let Some(checkpoint) = checkpoint {
                        process.state_jobs.push_front(checkpoint);
                    }
                    let at = self.disk_time(machine);
                    self.schedule.at(at, Event::StateDone { machine, boot });
                    return Ok(());
                };
                process.store.installed(shard);
                self.log.installed(id, &meta);
                (trim, Input::Installed { shard })
            }
        };
        process.log.trim(trim).map_err(|error| bad(&error))?;
        let more_waits = !process.state_jobs.is_empty();
        self.input(machine, input);
        if more_waits {
            let at = self.disk_time(machine);
            self.schedule.at(at, Event::StateDone { machine, boot });
        }
        Ok(())
    }

    /// An answer leaves the process, unless it has grown too old under its lease.
    #[expect(clippy::too_many_arguments, reason = "the fields of one effect")]
    pub(super) fn hand_out(
        &mut self,
        machine: usize,
        boot: u64,
        session: SessionId,
        tag: u64,
        response: Box<Response>,
        hint: Option<Box<RouteHint>>,
        valid_until: Option<Time>,
    ) {
        let now = self.schedule.now();
        let owner = &self.machines[machine];
        if owner.boot != boot || owner.process.is_none() {
            return;
        }
        if owner.stopped_until > now {
            let again = Event::HandOut {
                machine,
                boot,
                session,
                tag,
                response,
                hint,
                valid_until,
            };
            self.schedule.at(owner.stopped_until, again);
            return;
        }
        let clock = owner.clock.read(now);
        let response = if valid_until.is_some_and(|until| clock.now > until) {
            Box::new(Response::Error(WireError::new(
                Code::LeaderChanged,
                "the lease ended before the answer left",
            )))
        } else {
            response
        };
        if self.is_manual {
            // The answer is a line already; what it became on the way out is another.
            if let (Some(_), Response::Error(error)) = (valid_until, &*response) {
                self.trace
                    .line(now, || format!("{} takes back {}.{tag}: {error}", owner.id, session.0));
            }
            return;
        }
        let client = session.0 as usize - 1;
        self.asked.remove(&(client, tag));
        let client_place = self.machines.len() + client;
        // Cut off, the client finds out by itself that it hears nothing.
        if let Some(at) = self.network.stream(now, machine, client_place) {
            let answer = Event::Answer {
                client,
                tag,
                response,
                hint,
            };
            self.schedule.at(at, answer);
        }
    }

    /// Carries out what a client wants.
    pub(super) fn act(&mut self, client: usize, acts: Vec<Act>) {
        let now = self.schedule.now();
        for act in acts {
            match act {
                Act::Wake { at, token } => self.schedule.at(at, Event::ClientWake { client, token }),
                Act::Ask {
                    to,
                    tag,
                    timeout_ms,
                    principal,
                    request,
                } => {
                    self.trace.note(&[21, client as u64, tag, to.0]);
                    self.trace.line(now, || {
                        format!("c{} asks {to} {tag}: {}", client + 1, BriefRequest(&request))
                    });
                    let Some(machine) = self.machines.iter().position(|machine| machine.id == to) else {
                        continue;
                    };
                    let place = self.machines.len() + client;
                    if let Some(at) = self.network.stream(now, place, machine) {
                        let asked = Event::Asked {
                            machine,
                            client,
                            tag,
                            timeout_ms,
                            principal,
                            request,
                        };
                        self.schedule.at(at, asked);
                    }
                }
            }
        }
    }

    pub(super) fn lost(&mut self, client: usize, tag: u64, sent: bool) -> Result<(), Violation> {
        let mut acts = Vec::new();
        self.clients[client].lost(self.schedule.now(), tag, sent, &mut acts);
        self.act(client, acts);
        Ok(())
    }
}

/// The same messages after a journey through the codec.
fn recoded(messages: Vec<Message>) -> Vec<Message> {
    let mut wire = bytes::BytesMut::new();
    let frame = PeerFrame { persisted: 7, messages };
    codec::encode_frame(&frame, &mut wire).expect("a node sends only frames within the limit");
    let content = codec::take_frame(&mut wire).expect("just encoded").expect("whole");
    let back: PeerFrame = codec::decode(&content).expect("just encoded");
    assert_eq!(back, frame, "a frame changed on its way through the codec");
    back.messages
}

fn kind_of(input: &Input) -> u64 {
    match input {
        Input::Ticked => 1,
        Input::Received { from, messages } => 2 | from.0 << 8 | (messages.len() as u64) << 16,
        Input::Asked { session, tag, .. } => 3 | session.0 << 8 | tag << 16,
        Input::Persisted { seq } => 4 | seq.0 << 8,
        Input::Checkpointed => 5,
        Input::Installed { shard } => 6 | shard.0 << 8,
        Input::SnapshotReceived { copy, .. } => 7 | copy.rows << 8,
        Input::SnapshotProgress { bytes, .. } => 14 | *bytes << 8,
        Input::SnapshotSent { delivered, .. } => 8 | u64::from(*delivered) << 8,
        Input::Connected { peer, up } => 9 | peer.0 << 8 | u64::from(*up) << 16,
        Input::DiskSpace { .. } => 10,
        Input::StopAsked => 11,
        Input::Greeted { hello } => 14 | hello.node.0 << 8 | hello.life << 16,
        Input::PeerPersisted { peer, seq } => 15 | peer.0 << 8 | seq.0 << 16,
        Input::Hashed { shard, index, .. } => 12 | shard.0 << 8 | index << 16,
        Input::Damaged { shard, .. } => 13 | shard.0 << 8,
    }
}

fn brief_input(input: &Input) -> String {
    match input {
        Input::Asked {
            session, tag, request, ..
        } => format!("is asked {}.{tag}: {}", session.0, BriefRequest(request)),
        Input::SnapshotReceived { from, raft, copy } => {
            format!("gets a snapshot of {} from {from}, {} rows", raft.shard, copy.rows)
        }
        other => format!("{other:?}"),
    }
}
