//! Snapshots on their way from node to node, part by part: streams that break off, arrive twice, or carry damage.
use std::fmt;

use super::super::check::{Property, Violation};
use crate::daemon::core::input::Input;
use crate::daemon::core::state::StateError;
use crate::daemon::core::time::Span;
use crate::daemon::store::{Outgoing, SnapshotRows, Stage};
use crate::protocol::id::NodeId;
use crate::protocol::key::KeyRange;
use crate::protocol::message::{ChunkMark, ChunkPiece, RaftMessage, SnapshotPart};

use super::*;

/// One stream with a snapshot.
pub(super) struct Copy {
    attempt: u64,
    from: usize,
    from_boot: u64,
    to: usize,
    /// Set when the header has arrived.
    to_boot: Option<u64>,
    raft: Box<RaftMessage>,
    ranges: Vec<(Bytes, Bytes)>,
    /// Until the receiver has said what it has.
    rows: Option<SnapshotRows>,
    outgoing: Option<Outgoing<SnapshotRows, std::vec::IntoIter<ChunkMark>>>,
    stage: Option<Stage>,
    /// Parts until the stream breaks.
    breaks_in: Option<u32>,
    /// Parts until one is damaged.
    damaged_in: Option<u32>,
}

impl World {
    pub(super) fn send_snapshot(
        &mut self,
        machine: usize,
        to: NodeId,
        raft: RaftMessage,
        range: &KeyRange,
        attempt: u64,
    ) -> Result<(), Violation> {
        let now = self.schedule.now();
        let is_faulty = self.plan.broken_snapshots > 0 && !self.is_healed;
        // A stream that was taken for lost, and another one with the same snapshot.
        let times = if is_faulty && self.fault_rng.u32(..8) == 0 {
            2
        } else {
            1
        };
        for _ in 0..times {
            let rows = self.rows_of(machine, range)?;
            let place = self.machines.iter().position(|machine| machine.id == to);
            let is_open = place.and_then(|place| Some((place, self.network.stream(now, machine, place)?)));
            let Some((place, arrives)) = is_open else {
                self.copy_ended(machine, self.machines[machine].boot, to, raft.shard, attempt);
                continue;
            };
            let breaks = is_faulty && self.fault_rng.u32(..1000) < self.plan.broken_snapshots;
            let damaged = is_faulty && self.fault_rng.u32(..1000) < self.plan.broken_snapshots / 4;
            let id = self.next_copy;
            self.next_copy += 1;
            let copy = Copy {
                attempt,
                from: machine,
                from_boot: self.machines[machine].boot,
                to: place,
                to_boot: None,
                raft: Box::new(raft.clone()),
                ranges: range.row_ranges_sorted(),
                rows: Some(rows),
                outgoing: None,
                stage: None,
                breaks_in: breaks.then(|| self.fault_rng.u32(..12)),
                damaged_in: damaged.then(|| self.fault_rng.u32(..6)),
            };
            self.copies.insert(id, copy);
            let pause = self.copy_pause();
            self.schedule.at(arrives + pause, Event::Copy { id });
        }
        Ok(())
    }

    fn rows_of(&self, machine: usize, range: &KeyRange) -> Result<SnapshotRows, Violation> {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else {
            return Ok(SnapshotRows::default());
        };
        process.store.snapshot(range).map_err(|error| {
            let text = format!("{} cannot read a snapshot of {range}: {error}", owner.id);
            Violation::new(Property::Stop, text)
        })
    }

    fn copy_pause(&mut self) -> Span {
        if self.is_manual {
            Span(0)
        } else {
            Span::micros(self.machine_rng.u64(50..8_000))
        }
    }

    /// The next part of a snapshot arrives.
    pub(super) fn copy_step(&mut self, id: u64) -> Result<(), Violation> {
        let Some(mut copy) = self.copies.remove(&id) else {
            return Ok(());
        };
        let now = self.schedule.now();
        let is_up = |world: &World, machine: usize, boot: Option<u64>| {
            let machine = &world.machines[machine];
            machine.process.is_some() && boot.is_none_or(|boot| boot == machine.boot)
        };
        let stands = is_up(self, copy.from, Some(copy.from_boot))
            && is_up(self, copy.to, copy.to_boot)
            && self.hears(copy.to, copy.from)
            && !self.network.is_cut(copy.from, copy.to)
            && !self.network.is_cut(copy.to, copy.from);
        let breaks = copy.breaks_in.as_mut().is_some_and(|left| {
            let is_now = *left == 0;
            *left = left.saturating_sub(1);
            is_now
        });
        if !stands || breaks {
            self.copy_broke(&copy, "the stream broke");
            return Ok(());
        }
        let taken = match copy.stage.take() {
            None => self.copy_begins(&mut copy).map(|()| None),
            Some(mut stage) => {
                let outgoing = copy.outgoing.as_mut().and_then(Iterator::next);
                let Some(part) = outgoing else { return Ok(()) };
                let part = match part {
                    Ok(part) => part,
                    Err(StateError::Checksum { key: row }) => {
                        let shard = copy.raft.shard;
                        self.input(copy.from, Input::Damaged { shard, row });
                        self.copy_broke(&copy, "a row is damaged");
                        return Ok(());
                    }
                    Err(error) => {
                        let text = format!("{} cannot read its rows: {error}", self.machines[copy.from].id);
                        return Err(Violation::new(Property::Stop, text));
                    }
                };
                self.chunks[usize::from(matches!(part.part, SnapshotPart::Kept(_)))] += 1;
                let damage = copy.damaged_in.as_mut().is_some_and(|left| {
                    let is_now = *left == 0;
                    *left = left.saturating_sub(1);
                    is_now
                });
                let part = match damage {
                    true => self.damaged(part.part),
                    false => Some(part.part),
                };
                let taken = part.map_or(Ok(None), |part| stage.take(part));
                copy.stage = Some(stage);
                taken.map_err(|error| error.to_string())
            }
        };
        match taken {
            Err(why) => {
                let why = why.as_str();
                self.copy_broke(&copy, why);
            }
            Ok(None) => {
                let pause = self.copy_pause();
                let at = self.network.stream(now, copy.from, copy.to).unwrap_or(now);
                self.copies.insert(id, copy);
                self.schedule.at(at + pause, Event::Copy { id });
            }
            Ok(Some(whole)) => {
                let (from, receiver) = (self.machines[copy.from].id, self.machines[copy.to].id);
                let shard = copy.raft.shard;
                let raft = copy.raft;
                let input = Input::SnapshotReceived {
                    from,
                    raft,
                    copy: whole,
                };
                self.input(copy.to, input);
                // The confirmation may be lost although the snapshot arrived.
                match self.network.stream(now, copy.to, copy.from) {
                    Some(at) => {
                        let sent = Event::SnapshotSent {
                            machine: copy.from,
                            boot: copy.from_boot,
                            to: receiver,
                            shard,
                            attempt: copy.attempt,
                            delivered: true,
                        };
                        self.schedule.at(at, sent);
                    }
                    None => self.copy_ended(copy.from, copy.from_boot, receiver, shard, copy.attempt),
                }
            }
        }
        Ok(())
    }

    /// The header is there: the receiver says what it has.
    fn copy_begins(&mut self, copy: &mut Copy) -> Result<(), String> {
        let machine = &self.machines[copy.to];
        copy.to_boot = Some(machine.boot);
        let Some(process) = &machine.process else {
            return Err("nobody is there".to_owned());
        };
        let told = |error: &dyn fmt::Display| error.to_string();
        let staging = process.store.staging();
        let stage = staging.begin(copy.raft.shard, copy.raft.to, copy.ranges.clone());
        let stage = stage.map_err(|error| told(&error))?;
        let marks = stage.marks().collect::<Result<Vec<_>, _>>();
        let marks = marks.map_err(|error| told(&error))?;
        copy.stage = Some(stage);
        let rows = copy.rows.take().unwrap_or_default();
        let trusts = self.bug == Bug::KeepsStaleChunks;
        let outgoing = Outgoing::new(rows, copy.ranges.clone(), marks.into_iter(), CHUNK_BYTES);
        copy.outgoing = Some(outgoing.trusting_bounds(trusts));
        Ok(())
    }

    fn copy_broke(&mut self, copy: &Copy, why: &str) {
        let (from, to) = (self.machines[copy.from].id, self.machines[copy.to].id);
        let shard = copy.raft.shard;
        let now = self.schedule.now();
        self.trace
            .line(now, || format!("snapshot of {shard} from {from} to {to} fails: {why}"));
        self.copy_ended(copy.from, copy.from_boot, to, shard, copy.attempt);
    }

    /// The sender finds out, some time later, that nothing came of it.
    fn copy_ended(&mut self, machine: usize, boot: u64, to: NodeId, shard: ShardId, attempt: u64) {
        let pause = Span::millis(self.machine_rng.u64(50..2_000));
        let sent = Event::SnapshotSent {
            machine,
            boot,
            to,
            shard,
            attempt,
            delivered: false,
        };
        self.schedule.after(pause, sent);
    }

    /// A part after its way through bad memory: lost, or not what it was. The receiver must notice.
    fn damaged(&mut self, part: SnapshotPart) -> Option<SnapshotPart> {
        match part {
            _ if self.fault_rng.u32(..4) == 0 => None,
            SnapshotPart::Chunk {
                from,
                to,
                hash,
                mut pieces,
            } => {
                match pieces.first_mut() {
                    Some(ChunkPiece::Rows(rows)) if !rows.is_empty() => drop(rows.pop()),
                    Some(ChunkPiece::Have { first, .. }) => *first += 1,
                    _ => pieces.push(ChunkPiece::Have { first: 0, count: 1 }),
                }
                Some(SnapshotPart::Chunk { from, to, hash, pieces })
            }
            SnapshotPart::Kept(mut mark) => {
                mark.hash[3] ^= 1;
                Some(SnapshotPart::Kept(mark))
            }
            SnapshotPart::End { chunks, rows } => Some(SnapshotPart::End { chunks, rows: rows + 1 }),
        }
    }
}

/// Small: a handful of rows, so that a snapshot of a few dozen entities has many chunks. Unit: bytes.
const CHUNK_BYTES: usize = 400;
