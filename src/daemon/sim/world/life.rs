//! Starting and losing nodes, and what they are told of their surroundings.
use std::fmt;

use super::super::check::{Property, Violation};
use super::super::machine::{Process, StateJob};
use crate::daemon::core::effect::Effects;
use crate::daemon::core::input::Input;
use crate::daemon::core::node::Node;
use crate::daemon::core::time::{Span, Time};
use crate::protocol::hello::NodeHello;

use super::*;

/// Starting, stopping, looking at nodes.
impl World {
    pub(super) fn start(&mut self, machine: usize) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        let is_gone = self
            .lost
            .is_some_and(|loss| loss.machine == machine && !loss.comes_back);
        if owner.process.is_some() || owner.held_down > 0 || is_gone {
            return Ok(());
        }
        owner.boot += 1;
        let id = owner.id;
        let bad = |what: &str, error: &dyn fmt::Display| {
            Violation::new(Property::Log, format!("{id} does not start again: {what}: {error}"))
        };
        if self.bug == Bug::TrustsTheDisk {
            owner.media.trust();
        }
        let mut opened = owner.media.open().map_err(|error| bad("its store", &error))?;
        let clock = owner.clock.read(now);
        let mut effects = Effects::new();
        let mut config = owner.config.clone();
        config.seed = stream(config.seed, owner.boot);
        let hello = NodeHello {
            node: id,
            store_id: opened.identity.store_id,
            life: opened.life,
            boot: owner.boot,
            persisted: opened.recovered.last_seq.0,
        };
        let persisted = opened.recovered.last_seq;
        let node = Node::new(config, opened.recovered, clock, &mut opened.store, &mut effects)
            .map_err(|error| bad("its rows", &error))?;
        owner.process = Some(Process {
            node,
            store: opened.store,
            log: opened.log,
            writer: opened.writer,
            inbox: std::collections::VecDeque::new(),
            round_is_due: false,
            wake_at: Time(u64::MAX),
            log_queue: Vec::new(),
            log_writing: Vec::new(),
            state_jobs: std::collections::VecDeque::new(),
            connected: std::collections::BTreeSet::new(),
            hello,
            greeted: BTreeMap::new(),
            refused: std::collections::BTreeSet::new(),
            persisted,
            is_stopping: false,
        });
        owner.busy_until = now;
        owner.stopped_until = now;
        self.trace.note(&[11, id.0, owner.boot]);
        self.trace.line(now, || format!("{id} starts"));
        let mut result = Ok(());
        if let Some(process) = self.machines[machine]
            .process
            .as_ref()
            .filter(|_| !self.is_lost(machine))
        {
            let log = &self.log;
            replicas(&process.node, |replica| {
                if result.is_ok() {
                    result = log.restarted(id, replica);
                }
            });
        }
        result?;
        self.carry_out(machine, clock, effects)?;
        self.inspect(machine)?;
        self.set_wake(machine);
        self.tell_space(machine);
        self.look_at_connections();
        Ok(())
    }

    /// The process is gone, with all that was not synced. With `power` the machine was off, too.
    pub(super) fn crash(&mut self, machine: usize, power: bool) {
        let now = self.schedule.now();
        let chance = self.fault_rng.u64(..);
        let owner = &mut self.machines[machine];
        let id = owner.id;
        let Some(mut process) = owner.process.take() else {
            return;
        };
        owner.boot += 1;
        // The write that was under way: the sync never came back, the data may have made it.
        if !process.log_writing.is_empty() {
            owner.media.power_off_log();
            let _ = process.log.append(&process.log_writing);
        }
        match process.state_jobs.pop_front() {
            Some(StateJob::Checkpoint { job, .. }) => {
                owner.media.power_off_state(self.fault_rng.u32(..2));
                let _ = process.writer.checkpoint(job);
            }
            Some(StateJob::Install { mut job, .. }) => {
                owner.media.power_off_state(self.fault_rng.u32(..2));
                let _ = process.writer.install(&mut job);
            }
            None => {}
        }
        self.log.crashed(id, &process.log_writing);
        drop(process);
        owner.media.crash(chance);
        if power {
            owner.clock.reboot(now, Time(self.fault_rng.u64(0..30_000_000_000)));
        }
        self.trace.note(&[12, id.0]);
        self.trace.line(now, || format!("{id} is down"));
        // Clients with requests there learn of it at once, or by waiting.
        let asked: Vec<(usize, u64)> = self
            .asked
            .iter()
            .filter(|(_, at)| **at == machine)
            .map(|(key, _)| *key)
            .collect();
        for (client, tag) in asked {
            self.asked.remove(&(client, tag));
            if self.fault_rng.bool() {
                let pause = Span::millis(self.fault_rng.u64(1..30));
                self.schedule.after(
                    pause,
                    Event::Lost {
                        client,
                        tag,
                        sent: true,
                    },
                );
            }
        }
        if !power {
            self.look_at_connections();
        }
    }

    pub(super) fn tell_space(&mut self, machine: usize) {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else { return };
        let (free_bytes, store_bytes) = (owner.free_bytes, process.store.bytes());
        self.input(
            machine,
            Input::DiskSpace {
                total_bytes: 100 << 30,
                free_bytes,
                store_bytes,
            },
        );
    }

    /// Tells nodes which connections stand.
    pub(super) fn look_at_connections(&mut self) {
        let mut told = Vec::new();
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                let peer = self.machines[b].id;
                let stands =
                    self.machines[b].process.is_some() && !self.network.is_cut(a, b) && !self.network.is_cut(b, a);
                let Some(process) = &mut self.machines[a].process else {
                    continue;
                };
                if a == b || process.connected.contains(&peer) == stands {
                    continue;
                }
                if stands {
                    process.connected.insert(peer);
                } else {
                    process.connected.remove(&peer);
                }
                told.push((a, peer, stands));
            }
        }
        for (machine, peer, up) in told {
            if let Some(other) = self.machines.iter().position(|other| up && other.id == peer) {
                self.greet(machine, other);
            }
            self.input(machine, Input::Connected { peer, up });
        }
    }

    /// A machine hears what another one says of itself, once for each of its lives.
    pub(super) fn greet(&mut self, machine: usize, other: usize) {
        let (boot, hello) = match &self.machines[other].process {
            Some(process) => (self.machines[other].boot, process.hello.clone()),
            None => return,
        };
        let Some(process) = &mut self.machines[machine].process else {
            return;
        };
        let known = process.greeted.entry(other).or_default();
        if *known < boot {
            *known = boot;
            self.input(machine, Input::Greeted { hello });
        }
    }
}
