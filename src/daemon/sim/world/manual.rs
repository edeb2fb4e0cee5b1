//! Driving a cluster by hand, for scenario files: nothing is delivered, no time passes and no disk is slow unless it
//! is asked for. What the nodes did is told in lines.
use super::super::network::Weather;
use super::super::trace::speaks_of_another;
use super::*;
use crate::protocol::message::Role;

impl World {
    /// A cluster for a scenario, with one service and no node started.
    pub fn manual(nodes: usize, service: &str, cuts: &[&str]) -> Self {
        let options = Options {
            nodes,
            ..Options::new(1)
        };
        let mut world = Self::bare(&options, nodes, Plan::none(), 1, Trace::kept());
        world.is_manual = true;
        world.network.set_weather(Weather {
            delay_min: Span(0),
            delay_max: Span(0),
            ..Weather::CALM
        });
        world.services = vec![service.to_owned()];
        world.make_machines(nodes, Engine::Model, cuts, nodes.min(3) as u32);
        world
    }

    /// Starts a node that is down, with whatever its disk has.
    pub fn start_by_hand(&mut self, node: NodeId) -> Result<(), Violation> {
        let machine = self.machine_of(node)?;
        self.start(machine)?;
        self.pump()
    }

    /// A node dies. What it had not synced is lost; what others sent it and was not delivered, too.
    pub fn crash_by_hand(&mut self, node: NodeId) -> Result<(), Violation> {
        let machine = self.machine_of(node)?;
        self.crash(machine, false);
        self.machines[machine].disk.held = false;
        self.held.retain(|&(_, to), _| to != machine);
        self.pump()
    }

    /// A node's disk takes writes and does not do them, or does all it has taken.
    pub fn hold_disk(&mut self, node: NodeId, held: bool) -> Result<(), Violation> {
        let machine = self.machine_of(node)?;
        self.machines[machine].disk.held = held;
        if !held {
            self.write_log(machine);
            self.write_state(machine);
        }
        self.pump()
    }

    /// A node's clock goes on by a number of milliseconds, the others' stand still.
    pub fn elapse(&mut self, node: NodeId, span: Span) -> Result<(), Violation> {
        let machine = self.machine_of(node)?;
        let until = self.machines[machine].clock.read(Time(0)).now + span;
        loop {
            let deadline = match &self.machines[machine].process {
                Some(process) => process.node.next_deadline().min(until),
                None => until,
            };
            self.machines[machine].clock.reboot(Time(0), deadline);
            self.input(machine, Input::Ticked);
            self.pump()?;
            if deadline == until {
                return Ok(());
            }
        }
    }

    /// A node's clock goes on until it says something about the shard that contains `text`; false if not in 3 s.
    pub fn elapse_until(
        &mut self,
        node: NodeId,
        shard: ShardId,
        text: &str,
        told: &mut Vec<String>,
    ) -> Result<bool, Violation> {
        for _ in 0..120 {
            self.elapse(node, Span::millis(25))?;
            let lines = self.told(shard);
            let is_said = lines
                .iter()
                .any(|line| line.starts_with(&format!("{node} ")) && line.contains(text));
            told.extend(lines);
            if is_said {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Time passes for these nodes as if they were connected to each other and to nobody else.
    pub fn run_among(&mut self, among: &[NodeId], span: Span) -> Result<(), Violation> {
        for _ in 0..span.0.div_ceil(Span::millis(25).0) {
            for &node in among {
                self.elapse(node, Span::millis(25))?;
            }
            self.deliver_all(among)?;
        }
        Ok(())
    }

    /// Delivers what one node has sent another so far; says how many frames that were.
    pub fn deliver(&mut self, from: NodeId, to: NodeId) -> Result<usize, Violation> {
        let (from, to) = (self.machine_of(from)?, self.machine_of(to)?);
        let frames = self.held.remove(&(from, to)).unwrap_or_default();
        let count = frames.len();
        for messages in frames {
            let from = self.machines[from].id;
            self.input(to, Input::Received { from, messages });
            self.pump()?;
        }
        Ok(count)
    }

    /// Delivers among these nodes until none of them has anything more to say.
    pub fn deliver_all(&mut self, among: &[NodeId]) -> Result<(), Violation> {
        for _ in 0..200 {
            let mut count = 0;
            for &from in among {
                for &to in among {
                    count += self.deliver(from, to)?;
                }
            }
            if count == 0 {
                return Ok(());
            }
        }
        Err(Violation::new(
            Property::Calm,
            "200 rounds of messages did not come to an end",
        ))
    }

    /// Forgets what one node has sent another so far.
    pub fn drop_frames(&mut self, from: NodeId, to: NodeId) -> Result<(), Violation> {
        let key = (self.machine_of(from)?, self.machine_of(to)?);
        self.held.remove(&key);
        Ok(())
    }

    /// Lets everything happen that is due: rounds, writes, snapshots.
    fn pump(&mut self) -> Result<(), Violation> {
        while self.schedule.next_at().is_some_and(|at| at <= self.schedule.now()) {
            self.step()?;
        }
        Ok(())
    }

    /// Asks a node something as an administrator; the answer is a line.
    pub fn ask(&mut self, node: NodeId, tag: u64, request: Request) -> Result<(), Violation> {
        let machine = self.machine_of(node)?;
        let principal = Principal {
            name: String::from("scenario"),
            role: Role::Admin,
        };
        let asked = Input::Asked {
            session: SessionId(1),
            tag,
            timeout_ms: 10_000,
            principal,
            request,
        };
        self.input(machine, asked);
        self.pump()
    }

    /// What happened since it was last asked, as far as it is about this shard: no heartbeats, no reports.
    pub fn told(&mut self, shard: ShardId) -> Vec<String> {
        let lines = self.trace.take_lines();
        Self::about(shard, lines)
    }

    /// Of these lines, those about this shard.
    pub fn about(shard: ShardId, lines: Vec<String>) -> Vec<String> {
        let is_noise = |line: &str| {
            ["heartbeat", "report:", " map v", " checkpoint of", " registered"]
                .iter()
                .any(|noise| line.contains(noise))
        };
        let only = |line: String| -> Option<String> {
            // Log writes hold all shards' parts: one is of interest.
            let Some((head, parts)) = line.split_once("persist #").and_then(|(head, rest)| {
                let (number, parts) = rest.split_once(": ")?;
                Some((format!("{head}persist #{number}: "), parts))
            }) else {
                return Some(line);
            };
            let mine: Vec<&str> = parts
                .split(", ")
                .filter(|part| part.split(' ').next() == Some(shard.to_string().as_str()))
                .collect();
            if mine.is_empty() {
                None
            } else {
                Some(head + &mine.join(", "))
            }
        };
        let lines = lines
            .into_iter()
            .filter(|line| !is_noise(line) && !speaks_of_another(line, shard));
        lines.filter_map(only).collect()
    }

    /// One line for each copy of a shard.
    pub fn copies(&self, shard: ShardId) -> Vec<String> {
        let mut lines = Vec::new();
        for machine in &self.machines {
            let Some(process) = &machine.process else {
                lines.push(format!("{} is down", machine.id));
                continue;
            };
            replicas(&process.node, |replica| {
                if replica.shard.id == shard {
                    let part = if replica.is_leader { "leads" } else { "follows" };
                    lines.push(format!(
                        "{} t{} {part}, vote r{}, {} {}, log {}..={}, committed {}, applied {}",
                        machine.id,
                        replica.term,
                        replica.vote,
                        replica.shard.epoch,
                        replica.shard.range,
                        replica.first_index,
                        replica.last_index,
                        replica.committed,
                        replica.applied
                    ));
                }
            });
        }
        lines
    }

    /// The directory's and clients' view of where a shard is, for a request to split it.
    pub fn shard(&self, shard: ShardId) -> Option<&crate::protocol::shard_map::ShardDescriptor> {
        self.cover.shards().find(|known| known.id == shard)
    }

    /// All nodes.
    pub fn nodes(&self) -> &[NodeId] {
        &self.stage.nodes
    }

    fn machine_of(&self, node: NodeId) -> Result<usize, Violation> {
        let known = self.machines.iter().position(|machine| machine.id == node);
        known.ok_or_else(|| Violation::new(Property::Calm, format!("there is no {node} in this scenario")))
    }
}
