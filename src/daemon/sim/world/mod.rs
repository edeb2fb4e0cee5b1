//! The cluster and its driver: takes events off the schedule, gives them to the cores, carries out their effects with
//! delays and faults, and lets the checkers look after every round.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use super::bank::Bank;
use super::check::{Cover, Lead, Log, Once, Outcome, Property, Record, Repl, Same, Violation, judge_history};
use super::clock::{DRIFT_PPM_MAX, MachineClock};
use super::disk::{Engine, Media};
use super::family::{self, Family};
use super::fault::{Fault, Plan};
use super::lin::Moment;
use super::machine::{DiskManner, Machine};
use super::mail::Mail;
use super::network::{Network, Place};
use super::parking::Parking;
use super::schedule::Schedule;
use super::trace::{BriefResponse, Trace};
use super::watch::Watcher;
use super::workload::{Client, HOT_KEYS, Mode, Stage, VISITED, VISITORS};
use crate::daemon::core::input::{Input, SessionId};
use crate::daemon::core::node::{Hibernation, NodeConfig, PlantedBug, ServiceConfig};
use crate::daemon::core::state::{LogSeq, State, StoreIdentity};
use crate::daemon::core::time::{Span, Time};
use crate::protocol::id::{ClusterId, NodeId, ReplicaId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::message::{Message, Principal, SliceSum};
use crate::protocol::request::{Request, Response, RouteHint};
use crate::protocol::shard_map::{Membership, NodeInfo};

mod copying;
mod driver;
mod indexes;
mod inspect;
mod leap;
mod life;
mod loss;
mod manual;
mod post;
mod trouble;
mod visits;

use inspect::replicas;
use loss::Loss;

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
    /// After a split the parent goes on serving the child's keys.
    ParentLingers,
    /// A replica that hears of no leader is destroyed, member or not.
    DestroysUnheard,
    /// A merge does not wait for every replica's freeze.
    MergesEarly,
    /// A sleeping leader answers reads by itself.
    ReadsAsleep,
    /// A sleeping replica hears neither who asks for its vote nor that its leader is gone.
    DeafAsleep,
    /// Messages take effect in one entry, the mark that says so follows in another.
    MarksLater,
    /// Messages are acknowledged when they are proposed.
    AcknowledgesEarly,
    /// A split's right half forgets what its entities have had.
    SplitForgetsSources,
    /// Tickets are taken whatever they say.
    TakesAnyTicket,
    /// Some copies leave out a write.
    SkipsAWrite,
    /// Checksums of rows are not looked at.
    TrustsTheDisk,
    /// The right half of a split knows no changes from before, and does not say so.
    SplitForgetsChanges,
    /// A chunk from a snapshot that broke off is kept although its content has changed.
    KeepsStaleChunks,
    /// A holder confirms what it has given back already.
    ConfirmsExpired,
    /// A split's right half forgets its timers.
    SplitForgetsTimers,
    /// A split's right half forgets whose parents its entities are.
    SplitForgetsChildren,
    /// A split's right half forgets the messages that were refused and parked.
    SplitForgetsParked,
    /// What a child feeds is counted twice.
    FeedsTwice,
    /// What follows from a client's change is judged as if there had been nothing before.
    ForgetsBefore,
    /// The entry that an entity had in an index is not taken back.
    KeepsEntries,
    /// A node whose disk was wiped is let in under its old name.
    AdmitsTheWiped,
    /// Copies on nodes that are not heard from count as good.
    CountsTheLost,
    /// Batches of messages are numbered from one on in each life of a node.
    NamesBatchesAgain,
    /// A service goes when nothing was found in it, whatever was written after that.
    ClosesUnseen,
    /// All entities of a merged shard go on with the clock that was ahead.
    MergeForgetsClock,
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
    /// Entities have schemas, and clients put combined objects.
    pub families: bool,
    /// What is refused in them is parked, and clients do something about it.
    pub parks: bool,
    /// Some of their fields have indexes.
    pub indexes: bool,
    /// A service comes and goes.
    pub visits: bool,
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
            families: false,
            parks: false,
            indexes: false,
            visits: false,
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
    /// How much of it everything stood still.
    pub leapt: Span,
    /// Requests by outcome: answered, refused or failed, unknown.
    pub outcomes: [usize; 3],
    /// Faults that struck.
    pub faults: u64,
    /// Shards at the end, the directory included.
    pub shards: usize,
    /// Snapshots that were installed.
    pub snapshots: u64,
    /// Chunks of snapshots that were sent, and that the receiver had from before.
    pub chunks: [u64; 2],
    /// Elections won.
    pub elections: u64,
    /// Changes of replicas, freezes, merges, thaws, destroyed copies.
    pub operations: [usize; 5],
    /// Messages between entities.
    pub messages: u64,
    /// Combined objects with children.
    pub combined: u64,
    /// Messages that were parked, sent again, given up.
    pub parked: [u64; 3],
    /// Entries of indexes at the end.
    pub entries: u64,
    /// Copies that were quarantined.
    pub quarantined: usize,
    /// Comparisons of a shard's copies from end to end.
    pub verified: u64,
    /// Changes that those who follow them were told.
    pub followed: u64,
    /// Of these, how many stood for several that the shard did not remember.
    pub resynced: u64,
    /// Tentative operations: confirmed, declined, cancelled, expired.
    pub tentative: [u64; 4],
    /// Whether a machine was lost for good.
    pub lost: bool,
    /// How often one with an empty disk was turned away.
    pub turned_away: u64,
    /// How often a service was dropped.
    pub dropped: u64,
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
    /// Number of the first of three clients that are quiet until the end.
    janitor: usize,
    /// Clients of the service that comes and goes; the last one is its operator.
    visitors: Range<usize>,
    stage: Stage,
    services: Vec<String>,
    trace: Trace,
    lead: Lead,
    log: Log,
    cover: Cover,
    same: Same,
    repl: Repl,
    /// Copies that were destroyed in this round.
    destroyed: Vec<(ShardId, ReplicaId)>,
    /// Until when a machine has an excuse for being behind.
    troubled_until: BTreeMap<usize, Time>,
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
    mail: Mail,
    bank: Bank,
    family: Family,
    parking: Parking,
    /// Holders whose rows are to be looked at, by machine.
    to_audit: BTreeSet<(usize, Position)>,
    /// Messages between entities that were on their way once, and may come again.
    old_mail: Vec<(usize, usize, Vec<Message>)>,
    /// Draws late copies.
    mail_rng: fastrand::Rng,
    /// How long everything has stood still.
    leapt: Span,
    is_manual: bool,
    /// In a scenario: frames on their way.
    held: BTreeMap<(usize, usize), Vec<Vec<Message>>>,
    /// Snapshots under way, by number.
    copies: BTreeMap<u64, copying::Copy>,
    next_copy: u64,
    faults: u64,
    snapshots: u64,
    /// Chunks that were sent, and that the receiver had.
    chunks: [u64; 2],
    elections: u64,
    /// Changes of replicas, freezes, merges, thaws, destroyed copies.
    operations: [BTreeSet<(ShardId, u64)>; 5],
    quarantined: BTreeSet<(ShardId, ReplicaId)>,
    /// A machine is about to be lost.
    losing: bool,
    /// The machine that was lost for good.
    lost: Option<Loss>,
    turned_away: u64,
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
        /// The sender's log was synced up to here when it was sent.
        persisted: LogSeq,
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
    /// The next part of a snapshot arrives.
    Copy { id: u64 },
    /// The sender of a snapshot learns what became of it.
    SnapshotSent {
        machine: usize,
        boot: u64,
        to: NodeId,
        shard: ShardId,
        attempt: u64,
        delivered: bool,
    },
    /// A slice of rows is summed up.
    Hashed {
        machine: usize,
        boot: u64,
        shard: ShardId,
        index: u64,
        sum: SliceSum,
    },
    /// Connections are looked at, disks measured, replicas compared.
    Housekeeping,
    /// Something goes wrong.
    Strike,
    /// A fault ends.
    Relief(Relief),
    /// A node is started.
    Start { machine: usize },
    /// A node hears that its peers refuse it, and ends.
    TurnedAway { machine: usize, boot: u64 },
}

#[derive(Debug, Clone)]
enum Relief {
    Mend(Vec<(Place, Place)>),
    Disk(usize),
    Space(usize),
    Fast(usize),
    Lose(usize),
    Flap {
        cuts: Vec<(Place, Place)>,
        is_cut: bool,
        times: u32,
        every: Span,
    },
}

/// Longest time from the end of all faults to every shard serving.
const BACK: Span = Span::secs(10);
/// By then every shard's copies have been compared with each other again, on a cluster that is well.
const COMPARED: Span = Span::secs(20);
/// Longest time from the end of all faults to every copy that was lost being made again.
const HEALED: Span = Span::secs(120);
const HOUSEKEEPING: Span = Span::millis(500);
const FREE_BYTES: u64 = 64 << 30;

impl World {
    /// A cluster whose nodes have just been started for the first time.
    pub fn new(options: &Options) -> Self {
        let mut rng = fastrand::Rng::with_seed(stream(options.seed, 0));
        let nodes = match options.nodes {
            0 => [3, 5, 5][rng.usize(..3)],
            n => n,
        };
        let drawn_engine = if options.seed % 10 == 9 {
            Engine::Redb
        } else {
            Engine::Model
        };
        let engine = options.engine.unwrap_or(drawn_engine);
        let mut plan = options
            .plan
            .clone()
            .unwrap_or_else(|| Plan::drawn(stream(options.seed, 1)));
        // It is the conductor that closes the shards of what is dropped.
        plan.conducts |= options.visits;
        let client_count = rng.usize(5..10);
        let operators = 1 + rng.usize(..2);
        let senders = 1 + rng.usize(..2);
        let trace = if options.print {
            Trace::printed()
        } else {
            Trace::hashed()
        };
        let services: Vec<&str> = HOT_KEYS.iter().map(|(service, _)| *service).collect();
        let quiet = client_count..client_count + 3;
        // What other planted bugs do, those who follow changes see first; each is to be found by its own property.
        let follows = matches!(options.bug, Bug::None | Bug::SplitForgetsChanges);
        let watchers = quiet.end..quiet.end + if follows { services.len() } else { 0 };
        let visitors = watchers.end..watchers.end + if options.visits { VISITORS } else { 0 };
        let mut world = Self::bare(options, nodes, plan, visitors.end, trace);
        world.janitor = quiet.start;
        world.visitors = visitors.clone();
        let cuts: &[&str] = [&[][..], &["h"], &["g", "p"]][rng.usize(..3)];
        world.make_machines(nodes, engine, cuts, 3.min(nodes as u32));
        for number in 0..client_count {
            let mode = if number < operators {
                Mode::Operator
            } else if options.families {
                Mode::Family
            } else if number < operators + senders {
                Mode::Messages
            } else if number == operators + senders {
                Mode::Budget
            } else {
                Mode::Entities
            };
            let seed = stream(options.seed, 100 + number as u64);
            world.clients.push(Client::new(number + 1, seed, mode));
        }
        // Three that are quiet until the end: one cleans up, one asks every shard, one reads everything.
        for number in quiet.clone() {
            let seed = stream(options.seed, 100 + number as u64);
            world.clients.push(Client::new(number + 1, seed, Mode::Quiet));
        }
        for number in watchers.clone() {
            let seed = stream(options.seed, 100 + number as u64);
            let service = services[number - quiet.end];
            world.clients.push(Client::watching(number + 1, seed, service));
        }
        for number in visitors.clone() {
            let mode = match number + 1 == visitors.end {
                true => Mode::Drops,
                false => Mode::Visits,
            };
            let seed = stream(options.seed, 100 + number as u64);
            world.clients.push(Client::new(number + 1, seed, mode));
        }
        for machine in 0..nodes {
            world
                .schedule
                .after(Span::millis(rng.u64(0..50)), Event::Start { machine });
        }
        for client in (0..client_count).chain(watchers).chain(visitors) {
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

    fn bare(options: &Options, nodes: usize, plan: Plan, clients: usize, trace: Trace) -> Self {
        let keys = HOT_KEYS
            .iter()
            .map(|(service, keys)| (String::from(*service), keys.iter().map(|&key| key.to_owned()).collect()))
            .collect();
        Self {
            seed: options.seed,
            bug: options.bug,
            schedule: Schedule::new(),
            network: Network::new(nodes + clients, stream(options.seed, 2), plan.weather),
            machines: Vec::new(),
            clients: Vec::new(),
            janitor: 0,
            visitors: 0..0,
            stage: Stage {
                nodes: (1..=nodes as u64).map(NodeId).collect(),
                keys,
                schemas: match options.families {
                    true => family::schemas(options.seed, options.indexes, options.parks),
                    false => Vec::new(),
                },
                is_in_effect: false,
                parks: options.parks,
                rots: plan.kinds.contains(&Fault::Rot),
            },
            plan,
            services: HOT_KEYS.iter().map(|(service, _)| String::from(*service)).collect(),
            trace,
            lead: Lead::default(),
            log: Log::default(),
            cover: Cover::default(),
            same: Same::default(),
            repl: Repl::default(),
            destroyed: Vec::new(),
            troubled_until: BTreeMap::new(),
            once: Once::default(),
            asked: BTreeMap::new(),
            moment: 0,
            fault_rng: fastrand::Rng::with_seed(stream(options.seed, 3)),
            machine_rng: fastrand::Rng::with_seed(stream(options.seed, 4)),
            is_healed: false,
            frames: 0,
            mail: Mail::default(),
            bank: Bank::default(),
            family: Family::default(),
            parking: Parking::default(),
            to_audit: BTreeSet::new(),
            old_mail: Vec::new(),
            mail_rng: fastrand::Rng::with_seed(stream(options.seed, 6)),
            leapt: Span(0),
            is_manual: false,
            held: BTreeMap::new(),
            copies: BTreeMap::new(),
            next_copy: 0,
            faults: 0,
            snapshots: 0,
            chunks: [0; 2],
            elections: 0,
            operations: Default::default(),
            quarantined: BTreeSet::new(),
            losing: false,
            lost: None,
            turned_away: 0,
        }
    }

    /// Whether copies are compared all the time; a planted bug that is not about that may need groups that sleep.
    fn compares_often(&self) -> bool {
        let is_about_rows = matches!(self.bug, Bug::None | Bug::SkipsAWrite | Bug::TrustsTheDisk);
        !self.is_manual && is_about_rows
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
                overlay: Default::default(),
            })
            .collect();
        let services: Vec<ServiceConfig> = self
            .services
            .iter()
            .map(|name| ServiceConfig {
                name: name.clone(),
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
                conducts: self.plan.conducts && !self.is_manual,
                log_tail_entries: self.plan.log_tail,
                checkpoint_every: Span::secs(5),
                hibernation: if self.is_manual {
                    Hibernation::NEVER
                } else {
                    self.plan.hibernation
                },
                close_sessions_after: self.plan.close_sessions_after,
                tells_messages: true,
                certificate_ends_ms: 0,
                verify_every: if self.compares_often() {
                    Span::secs(3)
                } else {
                    Span::secs(3_600)
                },
                scrub_every: if self.compares_often() {
                    Span::secs(6)
                } else {
                    Span::secs(3_600)
                },
                planted: match self.bug {
                    Bug::ParentLingers => PlantedBug::ParentLingers,
                    Bug::DestroysUnheard => PlantedBug::DestroysUnheard,
                    Bug::MergesEarly => PlantedBug::MergesEarly,
                    Bug::SkipsAWrite => PlantedBug::SkipsAWrite,
                    Bug::ReadsWithoutQuorum => PlantedBug::ReadsWithoutQuorum,
                    Bug::ApplyTwice => PlantedBug::ApplyTwice,
                    Bug::ReadsAsleep => PlantedBug::ReadsAsleep,
                    Bug::DeafAsleep => PlantedBug::DeafAsleep,
                    Bug::MarksLater => PlantedBug::MarksLater,
                    Bug::AcknowledgesEarly => PlantedBug::AcknowledgesEarly,
                    Bug::SplitForgetsSources => PlantedBug::SplitForgetsSources,
                    Bug::TakesAnyTicket => PlantedBug::TakesAnyTicket,
                    Bug::ConfirmsExpired => PlantedBug::ConfirmsExpired,
                    Bug::SplitForgetsTimers => PlantedBug::SplitForgetsTimers,
                    Bug::SplitForgetsChildren => PlantedBug::SplitForgetsChildren,
                    Bug::SplitForgetsParked => PlantedBug::SplitForgetsParked,
                    Bug::FeedsTwice => PlantedBug::FeedsTwice,
                    Bug::ForgetsBefore => PlantedBug::ForgetsBefore,
                    Bug::KeepsEntries => PlantedBug::KeepsEntries,
                    Bug::SplitForgetsChanges => PlantedBug::SplitForgetsChanges,
                    Bug::AdmitsTheWiped => PlantedBug::AdmitsTheWiped,
                    Bug::CountsTheLost => PlantedBug::CountsTheLost,
                    Bug::NamesBatchesAgain => PlantedBug::NamesBatchesAgain,
                    Bug::ClosesUnseen => PlantedBug::ClosesUnseen,
                    Bug::MergeForgetsClock => PlantedBug::MergeForgetsClock,
                    Bug::None | Bug::AckBeforeSync | Bug::TrustsTheDisk | Bug::KeepsStaleChunks => PlantedBug::None,
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
        while self.schedule.now() < Time(0) + span + self.leapt {
            self.run_to(Time(0) + span + self.leapt)?;
        }
        self.heal();
        let janitor = self.janitor;
        let prober = janitor + 1;
        for client in 0..janitor {
            if *self.clients[client].mode() == Mode::Operator {
                self.tell(client, Mode::Quiet);
            }
        }
        match self.lost {
            Some(loss) => self.tell(janitor, Mode::Settle(self.what_settles(loss))),
            None => self.tell(janitor, Mode::Janitor),
        }
        let shards = self.cover.shards().filter(|shard| shard.id.0 != 0);
        let lasting = shards.filter(|shard| shard.range.service() != VISITED);
        let starts = lasting.map(|shard| {
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
        for client in 0..janitor {
            self.tell(client, Mode::Quiet);
        }
        self.run_until(Property::Back, Span::secs(30), |world| {
            let busy = world.clients[..janitor].iter().position(|client| !client.is_quiet())?;
            Some(format!("client {} is still at its last request", busy + 1))
        })?;
        if self.lost.is_some() {
            self.run_until(Property::CatchUp, HEALED, World::unhealed)?;
            self.tell(janitor, Mode::Janitor);
        }
        self.end_visits()?;
        self.run_until(Property::CatchUp, Span::secs(20), World::half_done)?;
        self.mend_parked(prober)?;
        self.drain_mail()?;
        if self.bug == Bug::SkipsAWrite {
            // What was left out last is found by the next comparison.
            self.run_to(self.schedule.now() + COMPARED)?;
        }
        if self.plan.kinds.contains(&Fault::Rot) || self.bug == Bug::SkipsAWrite {
            self.run_until(Property::True, Span::secs(60), World::ailing)?;
        }
        self.tell(janitor, Mode::Quiet);
        self.run_until(Property::Back, BACK, |world| {
            (!world.clients[janitor].is_quiet()).then(|| String::from("the janitor is busy"))
        })?;
        self.run_until(Property::CatchUp, BACK, World::laggard)?;
        let reader = prober + 1;
        let watchers = reader + 1..self.clients.len() - self.visitors.len();
        watchers.clone().for_each(|client| self.tell(client, Mode::WatchOut));
        self.run_until(Property::Back, BACK, |world| {
            let mut watchers = watchers.clone();
            let busy = watchers.find(|&client| !world.clients[client].is_quiet())?;
            Some(format!("client {} does not come to the end of the changes", busy + 1))
        })?;
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
        self.check_bank()?;
        self.check_families()?;
        self.check_indexes()?;
        self.mail.check_documents(|entity| self.document_of(entity))?;
        for record in &self.clients[reader].records {
            let Outcome::Saw(seen) = &record.outcome else { continue };
            let (service, key) = &record.entity;
            for watcher in self.watchers() {
                watcher.judge(service, key, seen.as_ref().map(|(version, _)| *version))?;
            }
        }
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
            leapt: self.leapt,
            outcomes,
            faults: self.faults,
            shards: self.cover.shards().count(),
            snapshots: self.snapshots,
            chunks: self.chunks,
            elections: self.elections,
            operations: std::array::from_fn(|what| self.operations[what].len()),
            messages: self.mail.count(),
            combined: self.family.count(),
            parked: self.parking.count(),
            entries: self.check_indexes().unwrap_or(0),
            quarantined: self.quarantined.len(),
            verified: self.verified(),
            followed: self.watchers().map(|watcher| watcher.changes).sum(),
            resynced: self.watchers().map(|watcher| watcher.resynced).sum(),
            tentative: self.bank.count(),
            lost: self.lost.is_some(),
            turned_away: self.turned_away,
            dropped: self.cover.dropped,
        }
    }

    fn watchers(&self) -> impl Iterator<Item = &Watcher> {
        self.clients.iter().filter_map(|client| client.watcher.as_ref())
    }

    /// As the processes that still run have counted.
    fn verified(&self) -> u64 {
        let nodes = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        nodes.map(|process| process.node.shards_verified()).sum()
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
            for line in process.node.undertakings() {
                text.push_str(&format!("    {line}\n"));
            }
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

    /// An operation that is neither done nor undone: a joint configuration, a freeze, a copy that is no member's.
    fn half_done(&self) -> Option<String> {
        let mut found = None;
        for machine in self.living() {
            let process = machine.process.as_ref()?;
            for replica in process.node.replicas() {
                let (shard, id) = (&replica.shard, replica.id);
                let newest = self.cover.shard(shard.id);
                let what = if shard.is_joint() {
                    "is between two configurations"
                } else if shard.frozen.is_some() {
                    "is frozen"
                } else if replica.stalled {
                    "can't go on"
                } else if newest.is_none_or(|newest| newest.replica(id).is_none()) {
                    "is no member"
                } else {
                    continue;
                };
                found = Some(format!("{} {id} on {} {what}: {}", shard.id, machine.id, shard.epoch));
            }
        }
        found
    }

    /// A copy that is damaged or set aside.
    fn ailing(&self) -> Option<String> {
        for machine in self.living() {
            let process = machine.process.as_ref()?;
            for replica in process.node.replicas() {
                let (shard, id) = (&replica.shard, replica.id);
                let unreadable = shard.range.row_ranges().iter().find_map(|(start, end)| {
                    let scanned = process.store.scan(start, end, &mut |_, _| ControlFlow::Continue(()));
                    scanned.err()
                });
                if let Some(error) = unreadable.filter(|_| !replica.is_installing()) {
                    return Some(format!("{} {id} on {}: {error}", shard.id, machine.id));
                }
                if let Some(why) = &replica.damage {
                    return Some(format!("{} {id} on {} is damaged: {why}", shard.id, machine.id));
                }
                if !shard.quarantined.is_empty() {
                    return Some(format!("{} has quarantined {:?}", shard.id, shard.quarantined));
                }
            }
        }
        None
    }

    /// A shard whose replicas are not all equally far.
    fn laggard(&self) -> Option<String> {
        let mut applied: BTreeMap<(ShardId, NodeId), (u64, u64)> = BTreeMap::new();
        for machine in self.living() {
            let process = machine.process.as_ref()?;
            replicas(&process.node, |replica| {
                applied.insert((replica.shard.id, machine.id), (replica.applied, replica.last_index));
            });
        }
        for shard in self.cover.shards() {
            let mut all = None;
            let living = shard.replicas.iter().filter(|replica| !self.is_lost_node(replica.node));
            for replica in living {
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
                let Some(process) = self.process_of(machine, boot) else {
                    return Ok(());
                };
                if process.wake_at == at {
                    process.wake_at = Time(u64::MAX);
                    self.input(machine, Input::Ticked);
                }
            }
            Event::Frame {
                to,
                from,
                persisted,
                messages,
            } => {
                self.greet(to, from);
                if !self.hears(to, from) {
                    return Ok(());
                }
                let from = self.machines[from].id;
                if !self.is_manual {
                    let (peer, seq) = (from, persisted);
                    self.input(to, Input::PeerPersisted { peer, seq });
                }
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
            Event::Copy { id } => self.copy_step(id)?,
            Event::SnapshotSent {
                machine,
                boot,
                to,
                shard,
                attempt,
                delivered,
            } => {
                if self.process_of(machine, boot).is_some() {
                    let sent = Input::SnapshotSent {
                        to,
                        shard,
                        attempt,
                        delivered,
                    };
                    self.input(machine, sent);
                }
            }
            Event::Hashed {
                machine,
                boot,
                shard,
                index,
                sum,
            } => {
                if self.process_of(machine, boot).is_some() {
                    self.input(machine, Input::Hashed { shard, index, sum });
                }
            }
            Event::Housekeeping => {
                self.housekeeping()?;
                self.schedule.after(HOUSEKEEPING, Event::Housekeeping);
            }
            Event::Strike => self.strike(),
            Event::Relief(relief) => self.relieve(relief),
            Event::Start { machine } => self.start(machine)?,
            Event::TurnedAway { machine, boot } => self.turned_away(machine, boot),
        }
        Ok(())
    }
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
