//! The cluster and its driver: takes events off the schedule, gives them to the cores, carries out their effects with
//! delays and faults, and lets the checkers look after every round.
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::check::{Cover, Lead, Log, Once, Outcome, Property, Record, Replica, Same, Violation, judge_history};
use super::clock::{DRIFT_PPM_MAX, MachineClock};
use super::disk::{Engine, Media};
use super::fault::{Fault, Plan};
use super::lin::Moment;
use super::machine::{DiskManner, Machine, Process, StateJob};
use super::network::{Network, Place};
use super::schedule::Schedule;
use super::trace::{BriefRequest, BriefResponse, Trace};
use super::workload::{Act, Client, HOT_KEYS, Mode, Stage};
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::input::{Input, SessionId};
use crate::daemon::core::limits::DISK_RESERVE_BYTES;
use crate::daemon::core::node::{Node, NodeConfig, PlantedBug, ServiceConfig};
use crate::daemon::core::state::{LogSeq, State, StoreIdentity};
use crate::daemon::core::time::{Clock, Span, Time};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{ClusterId, NodeId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::message::{Message, PeerFrame, Principal, RaftMessage};
use crate::protocol::request::{Request, Response, RouteHint};
use crate::protocol::shard_map::{Membership, NodeInfo};

/// A bug that is put in on purpose, to see that a checker finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// The log thread says that a write is synced when it has only begun.
    AckBeforeSync,
    /// A leader answers reads without asking whether it still leads.
    ReadsWithoutQuorum,
    /// An entry is applied twice.
    ApplyTwice,
}

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything that is drawn follows from it.
    pub seed: u64,
    /// Nodes; drawn from 3 and 5 where 0.
    pub nodes: usize,
    /// What the files are made of; drawn where `None`.
    pub engine: Option<Engine>,
    /// Faults; drawn where `None`.
    pub plan: Option<Plan>,
    /// How long things go wrong.
    pub span: Span,
    /// A bug to be found.
    pub bug: Bug,
    /// Print every line to standard error.
    pub print: bool,
}

impl Options {
    /// The usual run of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 0,
            engine: None,
            plan: None,
            span: Span::secs(60),
            bug: Bug::None,
            print: false,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Hash over all that happened.
    pub hash: u64,
    /// Things that happened.
    pub events: u64,
    /// Virtual time at the end.
    pub ended: Time,
    /// Requests by outcome: answered, refused or failed, unknown.
    pub outcomes: [usize; 3],
    /// Faults that struck.
    pub faults: u64,
    /// Shards at the end, the directory included.
    pub shards: usize,
    /// Snapshots that were installed.
    pub snapshots: u64,
    /// Elections won.
    pub elections: u64,
}

/// A run that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// When, in virtual time.
    pub at: Time,
    /// Which promise, and how.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} broke {} at {} s\n{}",
            self.seed, self.violation.property, self.at, self.violation.text
        )
    }
}

/// A cluster with its clients and everything that goes wrong.
pub struct World {
    seed: u64,
    bug: Bug,
    plan: Plan,
    schedule: Schedule<Event>,
    network: Network,
    machines: Vec<Machine>,
    clients: Vec<Client>,
    stage: Stage,
    services: Vec<String>,
    trace: Trace,
    lead: Lead,
    log: Log,
    cover: Cover,
    same: Same,
    once: Once,
    /// Attempts that a node has not answered yet: client and tag.
    asked: BTreeMap<(usize, u64), usize>,
    moment: Moment,
    /// Draws faults.
    fault_rng: fastrand::Rng,
    /// Draws latencies of disks and processors.
    machine_rng: fastrand::Rng,
    is_healed: bool,
    /// Every so many frames one goes through the codec.
    frames: u64,
    is_manual: bool,
    /// In a scenario: frames on their way.
    held: BTreeMap<(usize, usize), std::collections::VecDeque<Vec<Message>>>,
    faults: u64,
    snapshots: u64,
    elections: u64,
}

enum Event {
    /// The process has inputs and is free.
    Round { machine: usize, boot: u64 },
    /// The time that the node named has come.
    Wake { machine: usize, boot: u64, at: Time },
    /// A frame arrives.
    Frame {
        to: usize,
        from: usize,
        messages: Vec<Message>,
    },
    /// A request arrives.
    Asked {
        machine: usize,
        client: usize,
        tag: u64,
        timeout_ms: u32,
        principal: Principal,
        request: Box<Request>,
    },
    /// The driver hands an answer to the connection.
    HandOut {
        machine: usize,
        boot: u64,
        session: SessionId,
        tag: u64,
        response: Box<Response>,
        hint: Option<Box<RouteHint>>,
        valid_until: Option<Time>,
    },
    /// An answer arrives.
    Answer {
        client: usize,
        tag: u64,
        response: Box<Response>,
        hint: Option<Box<RouteHint>>,
    },
    /// A connection broke, or could not be made.
    Lost { client: usize, tag: u64, sent: bool },
    /// A client has something to do.
    ClientWake { client: usize, token: u64 },
    /// The log thread is done.
    LogDone { machine: usize, boot: u64 },
    /// The log thread lies (a planted bug).
    LogLie { machine: usize, boot: u64, seq: LogSeq },
    /// The state thread is done.
    StateDone { machine: usize, boot: u64 },
    /// A snapshot arrives whole.
    Snapshot {
        to: usize,
        from: usize,
        from_boot: u64,
        raft: Box<RaftMessage>,
        rows: Vec<(Bytes, Bytes)>,
    },
    /// The sender of a snapshot learns what became of it.
    SnapshotSent {
        machine: usize,
        boot: u64,
        to: NodeId,
        shard: ShardId,
        delivered: bool,
    },
    /// Connections are looked at, disks measured, replicas compared.
    Housekeeping,
    /// Something goes wrong.
    Strike,
    /// A fault ends.
    Relief(Relief),
    /// A node is started.
    Start { machine: usize },
}

#[derive(Debug, Clone)]
enum Relief {
    Mend(Vec<(Place, Place)>),
    Disk(usize),
    Space(usize),
    Fast(usize),
    Flap {
        cuts: Vec<(Place, Place)>,
        is_cut: bool,
        times: u32,
        every: Span,
    },
}

/// Longest time from the end of all faults to every shard serving.
const BACK: Span = Span::secs(10);
const HOUSEKEEPING: Span = Span::millis(500);
const FREE_BYTES: u64 = 64 << 30;

impl World {
    /// A cluster whose nodes have just been started for the first time.
    pub fn new(options: &Options) -> Self {
        let mut rng = fastrand::Rng::with_seed(stream(options.seed, 0));
        let nodes = match options.nodes {
            0 => [3, 3, 5][rng.usize(..3)],
            n => n,
        };
        let drawn_engine = if options.seed % 10 == 9 {
            Engine::Redb
        } else {
            Engine::Model
        };
        let engine = options.engine.unwrap_or(drawn_engine);
        let plan = options
            .plan
            .clone()
            .unwrap_or_else(|| Plan::drawn(stream(options.seed, 1)));
        let client_count = rng.usize(4..9);
        let trace = if options.print {
            Trace::printed()
        } else {
            Trace::hashed()
        };
        let mut world = Self::bare(options, nodes, engine, plan, client_count + 2, trace);
        let cuts: &[&str] = [&[][..], &["h"], &["g", "p"]][rng.usize(..3)];
        world.make_machines(nodes, engine, cuts, 3.min(nodes as u32));
        for number in 0..client_count {
            let mode = if number == 0 { Mode::Operator } else { Mode::Entities };
            let seed = stream(options.seed, 100 + number as u64);
            world.clients.push(Client::new(number + 1, seed, mode));
        }
        // Two that are quiet until the end: one asks every shard, one reads everything.
        for number in client_count..client_count + 2 {
            let seed = stream(options.seed, 100 + number as u64);
            world.clients.push(Client::new(number + 1, seed, Mode::Quiet));
        }
        for machine in 0..nodes {
            world
                .schedule
                .after(Span::millis(rng.u64(0..50)), Event::Start { machine });
        }
        for client in 0..client_count {
            let token = world.clients[client].token();
            world
                .schedule
                .after(Span::millis(rng.u64(500..1500)), Event::ClientWake { client, token });
        }
        world.schedule.after(HOUSEKEEPING, Event::Housekeeping);
        if !world.plan.kinds.is_empty() {
            world.schedule.after(Span::millis(1500), Event::Strike);
        }
        world
    }

    /// A cluster for a scenario: no time passes and nothing is delivered unless it is asked for.
    pub fn manual(nodes: usize, cuts: &[&str]) -> Self {
        let options = Options {
            nodes,
            ..Options::new(1)
        };
        let mut world = Self::bare(&options, nodes, Engine::Model, Plan::none(), 1, Trace::kept());
        world.is_manual = true;
        world.make_machines(nodes, Engine::Model, cuts, nodes.min(3) as u32);
        world
    }

    fn bare(options: &Options, nodes: usize, _engine: Engine, plan: Plan, clients: usize, trace: Trace) -> Self {
        let keys = HOT_KEYS
            .iter()
            .map(|(service, keys)| (String::from(*service), keys.iter().map(|&key| key.to_owned()).collect()))
            .collect();
        Self {
            seed: options.seed,
            bug: options.bug,
            schedule: Schedule::new(),
            network: Network::new(nodes + clients, stream(options.seed, 2), plan.weather),
            plan,
            machines: Vec::new(),
            clients: Vec::new(),
            stage: Stage {
                nodes: (1..=nodes as u64).map(NodeId).collect(),
                keys,
            },
            services: HOT_KEYS.iter().map(|(service, _)| String::from(*service)).collect(),
            trace,
            lead: Lead::default(),
            log: Log::default(),
            cover: Cover::default(),
            same: Same::default(),
            once: Once::default(),
            asked: BTreeMap::new(),
            moment: 0,
            fault_rng: fastrand::Rng::with_seed(stream(options.seed, 3)),
            machine_rng: fastrand::Rng::with_seed(stream(options.seed, 4)),
            is_healed: false,
            frames: 0,
            is_manual: false,
            held: BTreeMap::new(),
            faults: 0,
            snapshots: 0,
            elections: 0,
        }
    }

    fn make_machines(&mut self, nodes: usize, engine: Engine, cuts: &[&str], copies: u32) {
        let mut rng = fastrand::Rng::with_seed(stream(self.seed, 5));
        let founders: Vec<NodeInfo> = (1..=nodes as u64)
            .map(|n| NodeInfo {
                id: NodeId(n),
                name: format!("n{n}"),
                address: format!("10.0.0.{n}:7401"),
                zone: format!("z{}", n % 3),
                membership: Membership::Active,
                store_id: 0,
                version: String::new(),
            })
            .collect();
        let services: Vec<ServiceConfig> = HOT_KEYS
            .iter()
            .map(|(name, _)| ServiceConfig {
                name: String::from(*name),
                replicas: copies,
                cuts: cuts.iter().map(|key| Position::new(name, key)).collect(),
            })
            .collect();
        let cluster = ClusterId(u128::from(self.seed) + 1);
        for info in &founders {
            let store_id = rng.u128(1..);
            let is_manual = self.is_manual;
            let config = NodeConfig {
                cluster,
                node: info.id,
                name: info.name.clone(),
                address: info.address.clone(),
                zone: info.zone.clone(),
                store_id,
                version: String::from("sim"),
                seed: stream(self.seed, 1000 + info.id.0),
                founders: founders.clone(),
                services: services.clone(),
                planted: match self.bug {
                    Bug::ReadsWithoutQuorum => PlantedBug::ReadsWithoutQuorum,
                    Bug::ApplyTwice => PlantedBug::ApplyTwice,
                    Bug::None | Bug::AckBeforeSync => PlantedBug::None,
                },
            };
            let identity = StoreIdentity {
                cluster,
                node: info.id,
                store_id,
            };
            let drift = rng.i64(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
            let mut disk = DiskManner {
                sync_min: Span::micros(100),
                sync_max: Span::micros(500),
                stalled_until: Time(0),
                fails: false,
                held: false,
            };
            if self.plan.slow_disks {
                (disk.sync_min, disk.sync_max) = (Span::millis(1), Span::millis(12));
            }
            let shown = Time(if is_manual { 0 } else { rng.u64(0..1_000_000_000_000) });
            self.machines.push(Machine {
                id: info.id,
                config,
                clock: MachineClock::new(Time(0), shown, if is_manual { 0 } else { drift }),
                media: Media::new(engine, identity),
                process: None,
                boot: 0,
                held_down: 0,
                busy_until: Time(0),
                stopped_until: Time(0),
                was_stopped: false,
                round_max: if is_manual { Span(0) } else { Span::micros(60) },
                disk,
                free_bytes: FREE_BYTES,
            });
        }
    }
}

/// Runs a seed to its end: faults, then none, then every promise is looked at.
pub fn run(options: &Options) -> Result<Report, Failure> {
    let mut world = World::new(options);
    world.run_whole(options.span).map_err(|violation| Failure {
        seed: options.seed,
        at: world.schedule.now(),
        violation,
    })
}

impl World {
    fn run_whole(&mut self, span: Span) -> Result<Report, Violation> {
        self.run_to(Time(0) + span)?;
        self.heal();
        let prober = self.clients.len() - 2;
        let shards = self.cover.shards().filter(|shard| shard.id.0 != 0);
        let starts = shards.map(|shard| {
            let (service, key) = shard.range.start.parts();
            let key = key.filter(|key| !key.is_empty()).unwrap_or("!");
            (service.to_owned(), key.to_owned())
        });
        let starts = starts.collect();
        self.tell(prober, Mode::Read(starts));
        self.run_until(Property::Back, BACK, |world| {
            let prober = &world.clients[prober];
            if prober.is_quiet() {
                None
            } else {
                Some(format!("no answer for {:?}", prober.reads()))
            }
        })?;
        // Some more load on a healthy cluster, then silence.
        self.run_to(self.schedule.now() + Span::millis(500))?;
        for client in 0..prober {
            self.tell(client, Mode::Quiet);
        }
        self.run_until(Property::Back, Span::secs(20), |world| {
            let busy = world.clients.iter().position(|client| !client.is_quiet())?;
            Some(format!("client {} is still at its last request", busy + 1))
        })?;
        self.run_until(Property::CatchUp, BACK, World::laggard)?;
        let reader = prober + 1;
        let mut all: Vec<(String, String)> = self.records().map(|record| record.entity.clone()).collect();
        all.sort_unstable();
        all.dedup();
        self.tell(reader, Mode::Read(all.into()));
        self.run_until(Property::Back, Span::secs(120), |world| {
            let reader = &world.clients[reader];
            if reader.is_quiet() {
                None
            } else {
                Some(format!("no answer for {:?}", reader.reads()))
            }
        })?;
        self.compare_rows()?;
        let records: Vec<Record> = self.records().cloned().collect();
        judge_history(&records)?;
        Ok(self.report(&records))
    }

    fn report(&self, records: &[Record]) -> Report {
        let mut outcomes = [0; 3];
        for record in records {
            outcomes[match record.outcome {
                Outcome::Ok(_) | Outcome::Saw(_) => 0,
                Outcome::Refused(_) | Outcome::Fail => 1,
                Outcome::Unknown => 2,
            }] += 1;
        }
        Report {
            seed: self.seed,
            hash: self.trace.hash(),
            events: self.trace.events(),
            ended: self.schedule.now(),
            outcomes,
            faults: self.faults,
            shards: self.cover.shards().count(),
            snapshots: self.snapshots,
            elections: self.elections,
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.clients.iter().flat_map(|client| &client.records)
    }

    /// Gives a client other things to do.
    fn tell(&mut self, client: usize, mode: Mode) {
        let token = self.clients[client].set_mode(mode);
        self.schedule.after(Span(0), Event::ClientWake { client, token });
    }

    /// Runs until the virtual clock shows `until`.
    pub fn run_to(&mut self, until: Time) -> Result<(), Violation> {
        while self.schedule.next_at().is_some_and(|at| at <= until) {
            self.step()?;
        }
        self.schedule.advance(until);
        Ok(())
    }

    /// Runs until `lacks` finds nothing lacking; a violation of `property` if that takes longer than `span`.
    pub fn run_until(
        &mut self,
        property: Property,
        span: Span,
        lacks: impl Fn(&World) -> Option<String>,
    ) -> Result<(), Violation> {
        let until = self.schedule.now() + span;
        while let Some(lack) = lacks(self) {
            let next = self.schedule.next_at();
            if next.is_none_or(|at| at > until) {
                let text = format!("{span} after the last fault: {lack}\n{}", self.describe());
                return Err(Violation::new(property, text));
            }
            // Look again after a while, not after each event.
            let pause = (self.schedule.now() + Span::millis(20)).min(until);
            self.run_to(pause.max(next.unwrap_or(pause)))?;
        }
        Ok(())
    }

    /// What every node thinks it is.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for machine in &self.machines {
            let state = match &machine.process {
                None => "down",
                Some(_) if machine.stopped_until > self.schedule.now() => "stopped",
                Some(_) => "up",
            };
            text.push_str(&format!("  {} is {state}\n", machine.id));
            let Some(process) = &machine.process else { continue };
            replicas(&process.node, |replica| {
                let part = if replica.is_leader { "leads" } else { "follows" };
                text.push_str(&format!(
                    "    {} {} {} t{} {part}, applied {}, committed {}, log {}..={}\n",
                    replica.shard.id,
                    replica.shard.epoch,
                    replica.shard.range,
                    replica.term,
                    replica.applied,
                    replica.committed,
                    replica.first_index,
                    replica.last_index
                ));
            });
        }
        text
    }

    /// A shard whose replicas are not all equally far.
    fn laggard(&self) -> Option<String> {
        let mut applied: BTreeMap<(ShardId, NodeId), (u64, u64)> = BTreeMap::new();
        for machine in &self.machines {
            let process = machine.process.as_ref()?;
            replicas(&process.node, |replica| {
                applied.insert((replica.shard.id, machine.id), (replica.applied, replica.last_index));
            });
        }
        for shard in self.cover.shards() {
            let mut all = None;
            for replica in &shard.replicas {
                let Some(&(is, last)) = applied.get(&(shard.id, replica.node)) else {
                    return Some(format!("{} has no replica on {}", shard.id, replica.node));
                };
                if is != last || *all.get_or_insert(is) != is {
                    return Some(format!(
                        "{} on {}: applied {is} of {last}, others {all:?}",
                        shard.id, replica.node
                    ));
                }
            }
        }
        None
    }

    /// Takes one event.
    fn step(&mut self) -> Result<(), Violation> {
        let Some(event) = self.schedule.take() else {
            return Ok(());
        };
        let now = self.schedule.now();
        match event {
            Event::Round { machine, boot } => {
                if self.machines[machine].boot != boot {
                    return Ok(());
                }
                let runs_at = self.machines[machine].runs_at(now);
                if runs_at > now {
                    self.schedule.at(runs_at, Event::Round { machine, boot });
                    return Ok(());
                }
                self.round(machine)?;
            }
            Event::Wake { machine, boot, at } => {
                let machine = machine;
                let Some(process) = self.process_of(machine, boot) else {
                    return Ok(());
                };
                if process.wake_at == at {
                    process.wake_at = Time(u64::MAX);
                    self.input(machine, Input::Ticked);
                }
            }
            Event::Frame { to, from, messages } => {
                let from = self.machines[from].id;
                self.input(to, Input::Received { from, messages });
            }
            Event::Asked {
                machine,
                client,
                tag,
                timeout_ms,
                principal,
                request,
            } => {
                if self.machines[machine].process.is_none() {
                    return self.lost(client, tag, false);
                }
                self.asked.insert((client, tag), machine);
                let session = SessionId(client as u64 + 1);
                self.input(
                    machine,
                    Input::Asked {
                        session,
                        tag,
                        timeout_ms,
                        principal,
                        request: *request,
                    },
                );
            }
            Event::HandOut {
                machine,
                boot,
                session,
                tag,
                response,
                hint,
                valid_until,
            } => self.hand_out(machine, boot, session, tag, response, hint, valid_until),
            Event::Answer {
                client,
                tag,
                response,
                hint,
            } => {
                self.moment += 1;
                self.trace.note(&[20, client as u64, tag]);
                self.trace.line(now, || {
                    format!("c{} hears {tag}: {}", client + 1, BriefResponse(&response))
                });
                let mut acts = Vec::new();
                self.clients[client].answered(
                    now,
                    self.moment,
                    tag,
                    *response,
                    hint.as_deref(),
                    &mut self.once,
                    &self.stage,
                    &mut acts,
                )?;
                self.act(client, acts);
            }
            Event::Lost { client, tag, sent } => return self.lost(client, tag, sent),
            Event::ClientWake { client, token } => {
                self.moment += 1;
                let mut acts = Vec::new();
                self.clients[client].wake(now, self.moment, token, &self.stage, &mut acts);
                self.act(client, acts);
            }
            Event::LogDone { machine, boot } => {
                if self.process_of(machine, boot).is_some() {
                    self.log_done(machine)?;
                }
            }
            Event::LogLie { machine, boot, seq } => {
                if self.process_of(machine, boot).is_some() {
                    self.input(machine, Input::Persisted { seq });
                }
            }
            Event::StateDone { machine, boot } => {
                if self.process_of(machine, boot).is_some() {
                    self.state_done(machine)?;
                }
            }
            Event::Snapshot {
                to,
                from,
                from_boot,
                raft,
                rows,
            } => self.snapshot_arrives(to, from, from_boot, raft, rows),
            Event::SnapshotSent {
                machine,
                boot,
                to,
                shard,
                delivered,
            } => {
                if self.process_of(machine, boot).is_some() {
                    self.input(machine, Input::SnapshotSent { to, shard, delivered });
                }
            }
            Event::Housekeeping => {
                self.housekeeping()?;
                self.schedule.after(HOUSEKEEPING, Event::Housekeeping);
            }
            Event::Strike => self.strike(),
            Event::Relief(relief) => self.relieve(relief),
            Event::Start { machine } => self.start(machine)?,
        }
        Ok(())
    }

    fn process_of(&mut self, machine: usize, boot: u64) -> Option<&mut Process> {
        let machine = &mut self.machines[machine];
        if machine.boot == boot {
            machine.process.as_mut()
        } else {
            None
        }
    }

    /// Puts an input into the queue of a machine's driver; lost if nothing runs there.
    fn input(&mut self, machine: usize, input: Input) {
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
    fn round(&mut self, machine: usize) -> Result<(), Violation> {
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

    fn set_wake(&mut self, machine: usize) {
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

    /// What a driver does with effects, in order.
    fn carry_out(&mut self, machine: usize, clock: Clock, effects: Effects) -> Result<(), Violation> {
        let now = self.schedule.now();
        let id = self.machines[machine].id;
        let mut frames: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
        for effect in effects {
            self.trace.effect(now, id, &effect);
            match effect {
                Effect::Send { to, message } => frames.entry(to).or_default().push(message),
                Effect::Persist { seq, batch } => {
                    self.log.written(id, &batch)?;
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
                    let Some(process) = &mut self.machines[machine].process else {
                        return Ok(());
                    };
                    let (shard, meta) = (install.meta.shard.id, Box::new(install.meta.clone()));
                    let job = process.store.install(*install);
                    process.state_jobs.push_back(StateJob::Install { job, shard, meta });
                    self.snapshots += 1;
                    self.write_state(machine);
                }
                Effect::SendSnapshot { to, header, range } => self.send_snapshot(machine, to, header.raft, &range)?,
                Effect::Event(_) => {}
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
        self.send(machine, frames);
        Ok(())
    }

    fn send(&mut self, machine: usize, frames: BTreeMap<NodeId, Vec<Message>>) {
        let now = self.schedule.now();
        for (to, messages) in frames {
            let Some(to) = self.machines.iter().position(|machine| machine.id == to) else {
                continue;
            };
            self.frames += 1;
            let messages = if self.frames % 64 == 0 {
                recoded(messages)
            } else {
                messages
            };
            if self.is_manual {
                self.held.entry((machine, to)).or_default().push_back(messages);
                continue;
            }
            let [first, second] = self.network.send(now, machine, to);
            if let Some(at) = second {
                let messages = messages.clone();
                self.schedule.at(
                    at,
                    Event::Frame {
                        to,
                        from: machine,
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
                        messages,
                    },
                );
            }
        }
    }

    /// The log thread takes all that waits into one write.
    fn write_log(&mut self, machine: usize) {
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

    fn disk_time(&mut self, machine: usize) -> Time {
        let disk = self.machines[machine].disk;
        let span = if self.is_manual {
            Span(0)
        } else {
            Span(self.machine_rng.u64(disk.sync_min.0..=disk.sync_max.0))
        };
        (self.schedule.now() + span).max(disk.stalled_until)
    }

    fn log_done(&mut self, machine: usize) -> Result<(), Violation> {
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
            owner.media.fail_log();
            assert!(
                process.log.append(&writing).is_err(),
                "a write to a failed disk succeeded"
            );
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
        if self.bug != Bug::AckBeforeSync {
            self.input(machine, Input::Persisted { seq });
        }
        self.write_log(machine);
        Ok(())
    }

    /// The state thread starts its next job.
    fn write_state(&mut self, machine: usize) {
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

    fn state_done(&mut self, machine: usize) -> Result<(), Violation> {
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
            owner.media.fail_state();
            let failed = match job {
                StateJob::Checkpoint { job, .. } => process.writer.checkpoint(job).is_err(),
                StateJob::Install { job, .. } => process.writer.install(job).is_err(),
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
            StateJob::Install { job, shard, meta } => {
                let trim = process.writer.install(job).map_err(|error| bad(&error))?;
                process.store.installed(shard);
                self.log.checkpointed(id, &meta);
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

    fn send_snapshot(
        &mut self,
        machine: usize,
        to: NodeId,
        raft: RaftMessage,
        range: &crate::protocol::key::KeyRange,
    ) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &self.machines[machine];
        let (boot, shard) = (owner.boot, raft.shard);
        let Some(process) = &owner.process else { return Ok(()) };
        let bad = |error: &dyn fmt::Display| {
            Violation::new(
                Property::Stop,
                format!("{} cannot read a snapshot of {shard}: {error}", owner.id),
            )
        };
        let snapshot = process.store.snapshot(range).map_err(|error| bad(&error))?;
        let rows = snapshot.collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
        let place = self.machines.iter().position(|machine| machine.id == to);
        let is_broken = self.fault_rng.u32(..1000) < self.plan.broken_snapshots && !self.is_healed;
        let arrival = place
            .filter(|_| !is_broken)
            .and_then(|place| self.network.stream(now, machine, place));
        match (place, arrival) {
            (Some(place), Some(at)) => {
                let arrives = Event::Snapshot {
                    to: place,
                    from: machine,
                    from_boot: boot,
                    raft: Box::new(raft),
                    rows,
                };
                self.schedule
                    .at(at + Span::millis(self.machine_rng.u64(1..50)), arrives);
            }
            _ => {
                let failed = Event::SnapshotSent {
                    machine,
                    boot,
                    to,
                    shard,
                    delivered: false,
                };
                self.schedule
                    .after(Span::millis(self.machine_rng.u64(50..2_000)), failed);
            }
        }
        Ok(())
    }

    fn snapshot_arrives(
        &mut self,
        to: usize,
        from: usize,
        from_boot: u64,
        raft: Box<RaftMessage>,
        rows: Vec<(Bytes, Bytes)>,
    ) {
        let now = self.schedule.now();
        let (shard, sender, receiver) = (raft.shard, self.machines[from].id, self.machines[to].id);
        let is_up = self.machines[to].process.is_some() && !self.network.is_cut(from, to);
        if is_up {
            let from = sender;
            self.input(to, Input::SnapshotReceived { from, raft, rows });
        }
        // The confirmation may be lost although the snapshot arrived.
        let confirmed = if is_up {
            self.network.stream(now, to, from)
        } else {
            None
        };
        let at = confirmed.unwrap_or(now + Span::millis(self.machine_rng.u64(100..1_500)));
        let sent = Event::SnapshotSent {
            machine: from,
            boot: from_boot,
            to: receiver,
            shard,
            delivered: confirmed.is_some(),
        };
        self.schedule.at(at, sent);
    }

    /// An answer leaves the process, unless it has grown too old under its lease.
    fn hand_out(
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
        let client = session.0 as usize - 1;
        self.asked.remove(&(client, tag));
        let client_place = self.machines.len() + client;
        if self.is_manual {
            self.schedule.after(
                Span(0),
                Event::Answer {
                    client,
                    tag,
                    response,
                    hint,
                },
            );
            return;
        }
        match self.network.stream(now, machine, client_place) {
            Some(at) => self.schedule.at(
                at,
                Event::Answer {
                    client,
                    tag,
                    response,
                    hint,
                },
            ),
            // The client finds out by itself that it hears nothing.
            None => {}
        }
    }

    /// Carries out what a client wants.
    fn act(&mut self, client: usize, acts: Vec<Act>) {
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

    fn lost(&mut self, client: usize, tag: u64, sent: bool) -> Result<(), Violation> {
        let mut acts = Vec::new();
        self.clients[client].lost(self.schedule.now(), tag, sent, &mut acts);
        self.act(client, acts);
        Ok(())
    }
}

/// Starting, stopping, looking at nodes.
impl World {
    fn start(&mut self, machine: usize) -> Result<(), Violation> {
        let now = self.schedule.now();
        let owner = &mut self.machines[machine];
        if owner.process.is_some() || owner.held_down > 0 {
            return Ok(());
        }
        owner.boot += 1;
        let id = owner.id;
        let bad = |what: &str, error: &dyn fmt::Display| {
            Violation::new(Property::Log, format!("{id} does not start again: {what}: {error}"))
        };
        let mut opened = owner.media.open().map_err(|error| bad("its store", &error))?;
        let clock = owner.clock.read(now);
        let mut effects = Effects::new();
        let mut config = owner.config.clone();
        config.seed = stream(config.seed, owner.boot);
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
            is_stopping: false,
        });
        owner.busy_until = now;
        owner.stopped_until = now;
        self.trace.note(&[11, id.0, owner.boot]);
        self.trace.line(now, || format!("{id} starts"));
        let mut result = Ok(());
        if let Some(process) = &self.machines[machine].process {
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
    fn crash(&mut self, machine: usize, power: bool) {
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
                owner.media.power_off_state();
                let _ = process.writer.checkpoint(job);
            }
            Some(StateJob::Install { job, .. }) => {
                owner.media.power_off_state();
                let _ = process.writer.install(job);
            }
            None => {}
        }
        drop(process);
        owner.media.crash(chance);
        if power {
            owner.clock.reboot(now, Time(self.fault_rng.u64(0..30_000_000_000)));
        }
        self.log.crashed(id);
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

    /// Every checker looks at a node.
    fn inspect(&mut self, machine: usize) -> Result<(), Violation> {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else { return Ok(()) };
        let id = owner.id;
        let mut result = Ok(());
        let (lead, log, cover, elections) = (&mut self.lead, &mut self.log, &mut self.cover, &mut self.elections);
        replicas(&process.node, |replica| {
            if result.is_err() {
                return;
            }
            result = lead.see(id, replica).and_then(|is_new| {
                *elections += u64::from(is_new);
                log.see(id, replica, is_new)?;
                cover.see(id, replica)
            });
        });
        result?;
        // Before every founder has started, some first shards have not been seen anywhere.
        if self.machines.iter().all(|machine| machine.boot > 0) {
            self.cover.judge(&self.services)?;
        }
        Ok(())
    }

    fn housekeeping(&mut self) -> Result<(), Violation> {
        self.look_at_connections();
        if self.schedule.now().0 / HOUSEKEEPING.0 % 4 == 0 {
            for machine in 0..self.machines.len() {
                self.tell_space(machine);
            }
        }
        self.compare_rows()?;
        self.compare_logs()
    }

    fn tell_space(&mut self, machine: usize) {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else { return };
        let (free_bytes, store_bytes) = (owner.free_bytes, process.store.bytes());
        self.input(
            machine,
            Input::DiskSpace {
                free_bytes,
                store_bytes,
            },
        );
    }

    /// Tells nodes which connections stand.
    fn look_at_connections(&mut self) {
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
            self.input(machine, Input::Connected { peer, up });
        }
    }

    /// S8 over all replicas.
    fn compare_rows(&mut self) -> Result<(), Violation> {
        for machine in 0..self.machines.len() {
            let owner = &self.machines[machine];
            let Some(process) = &owner.process else { continue };
            // While a snapshot is written the rows are neither the old ones nor the new ones.
            let whole = process
                .node
                .replicas()
                .filter(|replica| replica.is_initialized() && !replica.is_installing());
            let seen: Vec<_> = whole
                .map(|replica| (replica.shard.clone(), replica.applied()))
                .collect();
            for (shard, applied) in seen {
                let mut hash = 0xcbf2_9ce4_8422_2325_u64;
                let mut eat = |bytes: &[u8]| {
                    hash = (hash ^ bytes.len() as u64).wrapping_mul(0x0000_0100_0000_01b3);
                    hash ^= u64::from(crc32c::crc32c(bytes)) << 16;
                    hash = hash.wrapping_mul(0x0000_0100_0000_01b3).rotate_left(31);
                };
                let scanned = process
                    .store
                    .scan(&shard.range.start.0, &shard.range.end.0, &mut |key, value| {
                        eat(key);
                        eat(value);
                        ControlFlow::Continue(())
                    });
                if let Err(error) = scanned {
                    return Err(Violation::new(
                        Property::Stop,
                        format!("{} cannot read its rows: {error}", owner.id),
                    ));
                }
                if let Err((other, mut violation)) = self.same.see(owner.id, shard.id, applied, hash) {
                    violation
                        .text
                        .push_str(&self.differing_rows(owner.id, other, &shard.range));
                    return Err(violation);
                }
            }
        }
        Ok(())
    }

    fn differing_rows(&self, a: NodeId, b: NodeId, range: &crate::protocol::key::KeyRange) -> String {
        let rows = |id: NodeId| {
            let mut rows: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let process = self
                .machines
                .iter()
                .find(|machine| machine.id == id)
                .and_then(|m| m.process.as_ref());
            if let Some(process) = process {
                let _ = process.store.scan(&range.start.0, &range.end.0, &mut |key, value| {
                    rows.insert(key.clone(), value.clone());
                    ControlFlow::Continue(())
                });
            }
            rows
        };
        let (rows_a, rows_b) = (rows(a), rows(b));
        let mut text = String::from("\n  (rows as they are now; the other node may have gone on)");
        for key in rows_a
            .keys()
            .chain(rows_b.keys().filter(|key| !rows_a.contains_key(*key)))
            .take(2_000)
        {
            if rows_a.get(key) != rows_b.get(key) {
                let show =
                    |value: Option<&Bytes>| value.map_or(String::from("-"), |value| value.escape_ascii().to_string());
                text.push_str(&format!(
                    "\n  {}\n    {a}: {}\n    {b}: {}",
                    key.escape_ascii(),
                    show(rows_a.get(key)),
                    show(rows_b.get(key))
                ));
            }
        }
        text
    }

    /// Log matching over all pairs of replicas.
    fn compare_logs(&self) -> Result<(), Violation> {
        for a in 0..self.machines.len() {
            for b in a + 1..self.machines.len() {
                let (x, y) = (&self.machines[a], &self.machines[b]);
                let (Some(first), Some(second)) = (&x.process, &y.process) else {
                    continue;
                };
                let mut result = Ok(());
                replicas(&first.node, |one| {
                    replicas(&second.node, |other| {
                        if one.shard.id == other.shard.id && result.is_ok() {
                            result = self.log.matching((x.id, one), (y.id, other));
                        }
                    });
                });
                result?;
            }
        }
        Ok(())
    }
}

/// Faults.
impl World {
    fn strike(&mut self) {
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
    fn choose_victim(&mut self) -> usize {
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

    fn inflict(&mut self, kind: Fault, machine: usize, length: Span) {
        let now = self.schedule.now();
        let nodes = self.machines.len();
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
    fn reset_wake(&mut self, machine: usize) {
        if let Some(process) = &mut self.machines[machine].process {
            process.wake_at = Time(u64::MAX);
        }
        self.set_wake(machine);
    }

    /// Cuts the nodes of one side, and some clients with them, off the others.
    fn part(&mut self, side: &[usize], length: Span) {
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

    fn cut(&mut self, cuts: Vec<(Place, Place)>, length: Span) {
        for &(from, to) in &cuts {
            self.network.cut(from, to);
        }
        self.schedule.after(length, Event::Relief(Relief::Mend(cuts)));
    }

    fn relieve(&mut self, relief: Relief) {
        match relief {
            // `heal` has taken back all cuts already.
            _ if self.is_healed && matches!(relief, Relief::Mend(_) | Relief::Flap { .. }) => {}
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

/// Shows each replica of a node to a checker.
fn replicas(node: &Node, mut see: impl FnMut(&Replica<'_>)) {
    for replica in node.replicas() {
        see(&Replica {
            shard: &replica.shard,
            id: replica.id,
            term: replica.term(),
            vote: replica.vote(),
            is_leader: replica.is_leader(),
            committed: replica.committed(),
            applied: replica.applied(),
            first_index: replica.log().first(),
            last_index: replica.last_index(),
            term_at: &|index| replica.log().term_at(index),
        });
    }
}

/// The same messages after a journey through the codec.
fn recoded(messages: Vec<Message>) -> Vec<Message> {
    let mut wire = bytes::BytesMut::new();
    let frame = PeerFrame { messages };
    codec::encode_frame(&frame, &mut wire).expect("a node sends only frames within the limit");
    let content = codec::take_frame(&mut wire).expect("just encoded").expect("whole");
    let back: PeerFrame = codec::decode(&content).expect("just encoded");
    assert_eq!(back, frame, "a frame changed on its way through the codec");
    back.messages
}

/// A seed of its own for each purpose: a draw more here does not shift the draws there.
fn stream(seed: u64, purpose: u64) -> u64 {
    let mut z = seed
        .wrapping_add(purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn kind_of(input: &Input) -> u64 {
    match input {
        Input::Ticked => 1,
        Input::Received { from, messages } => 2 | from.0 << 8 | (messages.len() as u64) << 16,
        Input::Asked { session, tag, .. } => 3 | session.0 << 8 | tag << 16,
        Input::Persisted { seq } => 4 | seq.0 << 8,
        Input::Checkpointed => 5,
        Input::Installed { shard } => 6 | shard.0 << 8,
        Input::SnapshotReceived { rows, .. } => 7 | (rows.len() as u64) << 8,
        Input::SnapshotSent { delivered, .. } => 8 | u64::from(*delivered) << 8,
        Input::Connected { peer, up } => 9 | peer.0 << 8 | u64::from(*up) << 16,
        Input::DiskSpace { .. } => 10,
        Input::StopAsked => 11,
    }
}

fn brief_input(input: &Input) -> String {
    match input {
        Input::Asked {
            session, tag, request, ..
        } => format!("is asked {}.{tag}: {}", session.0, BriefRequest(request)),
        Input::SnapshotReceived { from, raft, rows } => {
            format!("gets a snapshot of {} from {from}, {} rows", raft.shard, rows.len())
        }
        other => format!("{other:?}"),
    }
}
