//! Faults: how each kind is done and undone.

use super::super::clock::DRIFT_PPM_MAX;
use super::super::fault::Fault;
use super::super::machine::DiskManner;
use super::super::network::Place;
use crate::daemon::core::input::Input;
use crate::daemon::core::limits::DISK_RESERVE_BYTES;
use crate::daemon::core::time::{Span, Time};

use super::*;

/// Faults.
impl World {
    pub(super) fn strike(&mut self) {
        if self.is_healed {
            return;
        }
        let gap = Span(self.fault_rng.u64(50_000_000..=self.plan.gap_max.0.max(60_000_000)));
        self.schedule.after(gap, Event::Strike);
        let kind = self.plan.kinds[self.fault_rng.usize(..self.plan.kinds.len())];
        let length = Span(self.fault_rng.u64(20_000_000..=self.plan.length_max.0.max(30_000_000)));
        let machine = self.choose_victim();
        self.faults += 1;
        let now = self.schedule.now();
        let id = self.machines[machine].id;
        self.trace.note(&[13, kind as u64, id.0, length.0]);
        self.trace.line(now, || format!("--- {kind:?} at {id} for {length}"));
        self.inflict(kind, machine, length);
    }

    /// A node that leads something, or any.
    pub(super) fn choose_victim(&mut self) -> usize {
        let any = self.fault_rng.usize(..self.machines.len());
        if self.fault_rng.u32(..1000) >= self.plan.aimed {
            return any;
        }
        let mut leaders = Vec::new();
        for (number, machine) in self.machines.iter().enumerate() {
            if let Some(process) = &machine.process {
                replicas(&process.node, |replica| {
                    if replica.is_leader {
                        leaders.push(number);
                    }
                });
            }
        }
        if leaders.is_empty() {
            any
        } else {
            leaders[self.fault_rng.usize(..leaders.len())]
        }
    }

    pub(super) fn inflict(&mut self, kind: Fault, machine: usize, length: Span) {
        let now = self.schedule.now();
        let nodes = self.machines.len();
        let until = now + length + Span::secs(3);
        // A cut is felt on both sides of it.
        for place in 0..nodes {
            let known = self.troubled_until.entry(place).or_default();
            *known = until.max(*known);
        }
        let other = (machine + 1 + self.fault_rng.usize(..nodes - 1)) % nodes;
        match kind {
            Fault::Crash => {
                let power = self.fault_rng.bool();
                self.crash(machine, power);
                self.schedule.after(length, Event::Start { machine });
            }
            Fault::PowerCut => {
                for machine in 0..nodes {
                    self.crash(machine, true);
                    let down = Span(self.fault_rng.u64(10_000_000..=length.0.max(20_000_000)));
                    self.schedule.after(down, Event::Start { machine });
                }
            }
            Fault::Restart => {
                let process = self.machines[machine].process.as_mut();
                if let Some(process) = process.filter(|process| !process.is_stopping) {
                    process.is_stopping = true;
                    self.input(machine, Input::StopAsked);
                }
            }
            Fault::Pause => {
                let owner = &mut self.machines[machine];
                owner.stopped_until = owner.stopped_until.max(now + length);
                owner.was_stopped = true;
            }
            Fault::SlowNode => {
                self.machines[machine].round_max = Span::millis(8);
                self.schedule.after(length, Event::Relief(Relief::Fast(machine)));
            }
            Fault::SlowDisk => {
                let disk = &mut self.machines[machine].disk;
                (disk.sync_min, disk.sync_max) = (Span::millis(20), Span::millis(900));
                self.schedule.after(length, Event::Relief(Relief::Disk(machine)));
            }
            Fault::StalledDisk => {
                let disk = &mut self.machines[machine].disk;
                disk.stalled_until = disk.stalled_until.max(now + length);
            }
            Fault::FailedSync => self.machines[machine].disk.fails = true,
            Fault::FullDisk => {
                self.machines[machine].free_bytes = DISK_RESERVE_BYTES / 2;
                self.tell_space(machine);
                self.schedule.after(length, Event::Relief(Relief::Space(machine)));
            }
            Fault::Isolate => self.part(&[machine], length),
            Fault::Partition => {
                let mut side = vec![machine];
                for node in 0..nodes {
                    if node != machine && side.len() < nodes / 2 + 1 && self.fault_rng.bool() {
                        side.push(node);
                    }
                }
                self.part(&side, length);
            }
            Fault::OneWay => {
                let cuts = if self.fault_rng.bool() {
                    vec![(machine, other)]
                } else {
                    vec![(other, machine)]
                };
                self.cut(cuts, length);
            }
            Fault::Pair => self.cut(vec![(machine, other), (other, machine)], length),
            Fault::Flap => {
                let every = Span::millis(self.fault_rng.u64(50..1_500));
                let cuts = vec![(machine, other), (other, machine)];
                let times = self.fault_rng.u32(2..8);
                self.relieve(Relief::Flap {
                    cuts,
                    is_cut: false,
                    times,
                    every,
                });
            }
            Fault::Rot => {
                let victim = self.seed as usize % nodes;
                let chance = self.fault_rng.u64(..);
                let told = self.machines[victim].media.rot(chance);
                let id = self.machines[victim].id;
                self.trace.line(now, || {
                    format!("{id} rots: {}", told.as_deref().unwrap_or("nothing there"))
                });
            }
            Fault::Wipe => self.begin_loss(machine),
            Fault::Leap => self.leap(length),
            Fault::WallClock => {
                let hour = 3_600_000;
                let jumps = [-87_600 * hour, -hour, -2_000, 0, 500, hour, 87_600 * hour];
                let jump = jumps[self.fault_rng.usize(..jumps.len())];
                self.machines[machine].clock.set_wall_offset(jump);
            }
            Fault::Drift => {
                let drift = self.fault_rng.i64(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
                self.machines[machine].clock.set_drift(now, drift);
                self.reset_wake(machine);
            }
            Fault::ClientCut => {
                let place = nodes + self.fault_rng.usize(..self.clients.len());
                let cuts = match self.fault_rng.u32(..3) {
                    0 => vec![(place, machine)],
                    1 => vec![(machine, place)],
                    _ => vec![(place, machine), (machine, place)],
                };
                self.cut(cuts, length);
            }
        }
    }

    /// The wake event in the schedule was computed at another rate.
    pub(super) fn reset_wake(&mut self, machine: usize) {
        if let Some(process) = &mut self.machines[machine].process {
            process.wake_at = Time(u64::MAX);
        }
        self.set_wake(machine);
    }

    /// Cuts the nodes of one side, and some clients with them, off the others.
    pub(super) fn part(&mut self, side: &[usize], length: Span) {
        let places = self.machines.len() + self.clients.len();
        let mut inside = vec![false; places];
        for (place, is_inside) in inside.iter_mut().enumerate() {
            *is_inside = if place < self.machines.len() {
                side.contains(&place)
            } else {
                self.fault_rng.u32(..3) == 0
            };
        }
        let mut cuts = Vec::new();
        for a in 0..places {
            for b in 0..places {
                if inside[a] != inside[b] {
                    cuts.push((a, b));
                }
            }
        }
        self.cut(cuts, length);
    }

    pub(super) fn cut(&mut self, cuts: Vec<(Place, Place)>, length: Span) {
        for &(from, to) in &cuts {
            self.network.cut(from, to);
        }
        self.schedule.after(length, Event::Relief(Relief::Mend(cuts)));
    }

    pub(super) fn relieve(&mut self, relief: Relief) {
        match relief {
            // `heal` has taken back all cuts already.
            _ if self.is_healed && matches!(relief, Relief::Mend(_) | Relief::Flap { .. }) => {}
            Relief::Lose(machine) => self.lose(machine),
            Relief::Mend(cuts) => {
                for (from, to) in cuts {
                    self.network.mend(from, to);
                }
            }
            Relief::Disk(machine) => self.machines[machine].disk = calm_disk(self.machines[machine].disk),
            Relief::Space(machine) => {
                self.machines[machine].free_bytes = FREE_BYTES;
                self.tell_space(machine);
            }
            Relief::Fast(machine) => self.machines[machine].round_max = Span::micros(60),
            Relief::Flap {
                cuts,
                is_cut,
                times,
                every,
            } => {
                for &(from, to) in &cuts {
                    if is_cut {
                        self.network.mend(from, to);
                    } else {
                        self.network.cut(from, to);
                    }
                }
                if is_cut && times == 0 {
                    return;
                }
                let next = Relief::Flap {
                    cuts,
                    is_cut: !is_cut,
                    times: times.saturating_sub(1),
                    every,
                };
                self.schedule.after(every, Event::Relief(next));
            }
        }
    }

    /// All faults end; what is down is started.
    pub fn heal(&mut self) {
        let now = self.schedule.now();
        self.is_healed = true;
        self.network.heal();
        self.trace.line(now, || String::from("--- healed"));
        for machine in 0..self.machines.len() {
            let owner = &mut self.machines[machine];
            owner.held_down = 0;
            owner.stopped_until = now;
            owner.round_max = Span::micros(60);
            owner.disk = calm_disk(owner.disk);
            owner.disk.fails = false;
            owner.disk.stalled_until = now;
            owner.free_bytes = FREE_BYTES;
            owner.clock.set_wall_offset(0);
            self.tell_space(machine);
            self.schedule.after(Span(0), Event::Start { machine });
        }
    }
}

fn calm_disk(disk: DiskManner) -> DiskManner {
    DiskManner {
        sync_min: Span::micros(100),
        sync_max: Span::micros(500),
        ..disk
    }
}
