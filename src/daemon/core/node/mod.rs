//! One node: its replicas, its router, its share of the directory.
//!
//! `step` takes in what happened and only notes it: a command is queued, a Raft message is stepped. `settle` then does for
//! all replicas that have work what is dear and better done once: entries, log write, applying, messages, answers.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{Entry, HardState, MessageType};

use super::changes::Noted;
use super::command::{Command, Payload};
use super::conductor::Conductor;
use super::directory::{self, Directory, DirectoryCommand};
use super::effect::{Effect, Effects};
use super::entity::machine::{self, Context};
use super::event::Event;
use super::input::Input;
use super::limits::*;
use super::replica::log_view::LogView;
use super::replica::{self, Committed, Incoming, Replica, Waiter, Waiting};
use super::state::{LogBatch, LogSeq, Recovered, ReplicaMeta, ShardWrite, StagedCopy, State, StateError};
use super::time::{Clock, Span, Time};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{ClusterId, DIRECTORY_SHARD, Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::message::{Message, RaftMessage, Report, SnapshotManifest};
use crate::protocol::request::{Change, Request, Response, RouteHint};
use crate::protocol::shard_map::{
    Membership, NodeInfo, ReplicaDescriptor, ReplicaRole, ServiceInfo, ShardDescriptor, ShardMap, ShardSizes,
};

mod activities;
mod apply;
mod births;
mod catch_up;
mod clockwork;
mod closing;
mod copies;
mod deliver;
mod dispatch;
pub(super) mod follow;
mod hibernation;
pub(super) mod hold;
mod membership;
pub(super) mod merge;
mod peers;
pub(super) mod quarantine;
mod registry;
mod removal;
mod schemas;
mod standing;
mod start;
mod timers;
mod watch;

pub use hibernation::Hibernation;
pub(super) mod verify;

/// What a node is told when it is made.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where peers and clients reach it, `host:port`.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Identity of its store.
    pub store_id: u128,
    /// Version of its software.
    pub version: String,
    /// Seed of the node's generator: the only source of chance in the core.
    pub seed: u64,
    /// The members a new cluster begins with; the same on each of them. Used only by a node whose store is empty.
    pub founders: Vec<NodeInfo>,
    /// The services a new cluster begins with; the same on each founder.
    pub services: Vec<ServiceConfig>,
    /// Most log entries kept in memory for followers that are behind. The simulator makes it small, so that snapshots are
    /// frequent.
    #[doc(hidden)]
    pub log_tail_entries: usize,
    /// A checkpoint is made after this long, if anything changed: `CHECKPOINT_EVERY`, but for the simulator, which has not
    /// got the time.
    pub checkpoint_every: Span,
    /// Whether this node carries out operations while it leads the directory; a scenario of the simulator's wants no
    /// hand but its own.
    #[doc(hidden)]
    pub conducts: bool,
    /// When groups in which nothing happens sleep.
    pub hibernation: Hibernation,
    /// Sessions between entities with nothing outstanding end after this long: `CLOSE_SESSIONS_AFTER`, but for the
    /// simulator, which has not got the time.
    pub close_sessions_after: Span,
    /// Whether every message between entities is told as an event, and `relay` is accepted: for the simulator.
    #[doc(hidden)]
    pub tells_messages: bool,
    /// When the node's certificate ends; 0 where that is not known. Unit: ms since 1970.
    pub certificate_ends_ms: u64,
    /// The copies of a shard that has changed are compared with each other this often.
    pub verify_every: Span,
    /// ... and those of a shard that has not changed this often: disks go bad without being written to.
    pub scrub_every: Span,
    /// A bug to be planted by the simulator, to see that its properties catch it.
    #[doc(hidden)]
    pub planted: PlantedBug,
}

/// See `NodeConfig::planted`.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlantedBug {
    /// The code as it is.
    #[default]
    None,
    /// Leaders answer reads without asking whether they still lead.
    ReadsWithoutQuorum,
    /// Now and then a committed entry takes effect twice.
    ApplyTwice,
    /// After a split the parent goes on serving the child's keys for a while.
    ParentLingers,
    /// A replica that has not heard from a leader for a while is destroyed without proof.
    DestroysUnheard,
    /// A merge does not wait until all replicas have applied the freeze.
    MergesEarly,
    /// A sleeping leader answers reads by itself, as if its lease never ended.
    ReadsAsleep,
    /// A sleeping replica hears neither who asks for its vote nor that its leader is gone.
    DeafAsleep,
    /// Messages take effect in one entry, the mark that says so follows in another.
    MarksLater,
    /// Messages are acknowledged when they are proposed.
    AcknowledgesEarly,
    /// A split's right half forgets what its entities have had.
    SplitForgetsSources,
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
    /// Tickets are taken whatever they say.
    TakesAnyTicket,
    /// The second node's copies leave out one write each, once.
    SkipsAWrite,
    /// The right half of a split does not know its latest changes, and claims that there were none.
    SplitForgetsChanges,
    /// A peer whose store is another one than it registered with is let in.
    AdmitsTheWiped,
    /// Copies on nodes that are not heard from count as good: for whoever heals, and for who lets voters go.
    CountsTheLost,
    /// Batches of messages are numbered from one on in each life of a node.
    NamesBatchesAgain,
    /// A shard whose service is dropped is closed without a look at what is in it by then.
    ClosesUnseen,
    /// All entities of a merged shard go on with the clock that was ahead.
    MergeForgetsClock,
}

/// A service of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// Copies of each shard.
    pub replicas: u32,
    /// Where its key space is cut; empty for one shard.
    pub cuts: Vec<Position>,
}

/// A request that was handed to another node.
#[derive(Debug, Clone)]
pub(super) struct Forwarded {
    pub(super) waiting: Waiting,
    pub(super) to: NodeId,
    /// A write may have happened although no answer came.
    pub(super) is_write: bool,
}

/// The latest requests that a peer handed on. A second copy must not be served: the first may have been answered with an
/// error that says that nothing happened.
#[derive(Debug, Default)]
struct Seen(BTreeSet<u64>);

impl Seen {
    fn is_new(&mut self, id: u64) -> bool {
        // Names grow by one within a life of the sender; the next life begins anywhere.
        let is_too_old = self.0.len() == FORWARDS_SEEN_MAX
            && self
                .0
                .first()
                .is_some_and(|&oldest| id < oldest && oldest - id < FORWARDS_OF_A_LIFE);
        if is_too_old || !self.0.insert(id) {
            return false;
        }
        if self.0.len() > FORWARDS_SEEN_MAX {
            // What is furthest from the newest belongs to an earlier life, or is the oldest of this one.
            if self.0.last().is_some_and(|&last| last - id > FORWARDS_OF_A_LIFE) {
                self.0.pop_last();
            } else {
                self.0.pop_first();
            }
        }
        true
    }
}

/// Log writes found at start for a shard that has no meta yet.
#[derive(Debug, Default)]
struct Orphan {
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
}

/// One node as a pure function over time.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) clock: Clock,
    pub(super) started: Time,
    pub(super) replicas: BTreeMap<ShardId, Replica>,
    /// Start of the range of each initialized replica.
    pub(super) by_start: BTreeMap<Position, ShardId>,
    pub(super) map: ShardMap,
    pub(super) directory: Option<Directory>,
    /// Epochs that the directory has heard of, as far as this node knows.
    directory_epochs: BTreeMap<ShardId, Epoch>,
    /// Shards as the directory told them: their leaders have it on disk that they are like that.
    told: ShardMap,
    /// The last log write that is synced.
    persisted: LogSeq,
    /// Directory commands proposed by this node lately, so as not to repeat them every second.
    proposed_lately: BTreeMap<u64, Time>,
    next_seq: LogSeq,
    touched: BTreeSet<ShardId>,
    watch: watch::Watch,
    beds: hibernation::Beds,
    /// The directory's leader that loads were last told to, and how often.
    load_told: (Option<NodeId>, u32),
    /// Up to which shard the last report told what is led here.
    told_up_to: ShardId,
    /// The map, the directory's word and the copies at which condemned copies were last looked for.
    condemned_at: (u64, u64, u64),
    pub(super) forwards: BTreeMap<u64, Forwarded>,
    pub(super) next_forward: u64,
    forwards_seen: BTreeMap<NodeId, Seen>,
    orphans: BTreeMap<ShardId, Orphan>,
    stash: VecDeque<(Time, NodeId, RaftMessage)>,
    unknown_since: BTreeMap<ShardId, Time>,
    /// Copies on this node up to these ids were destroyed.
    floors: BTreeMap<ShardId, ReplicaId>,
    /// Copies to be destroyed as soon as nothing stands in the way, and why.
    condemned: BTreeMap<ShardId, &'static str>,
    /// Shards whose copy's destruction is not on disk yet.
    burying: BTreeSet<ShardId>,
    /// Installs under way, and the copies that are destroyed with each.
    installs: BTreeMap<ShardId, Vec<ShardId>>,
    /// Destroyed metas of absorbed copies, to be written together with their absorber's meta.
    absorbed_metas: Vec<(ShardId, ReplicaMeta)>,
    /// What peers said of the freezes that their copies have applied.
    frozen_heard: BTreeMap<NodeId, Vec<(ShardId, Epoch)>>,
    /// Requests that wait until a shard is merged or thawed, or all have heard of a freeze.
    parked: VecDeque<merge::Parked>,
    /// Something changed for which parked requests may wait.
    unpark: bool,
    /// The others should hear at once.
    report_soon: bool,
    /// Whether this is the first start of the store: nothing was promised to anybody yet.
    is_first_life: bool,
    /// Which disks peers have, and how much of them they had.
    standings: standing::Standings,
    /// Shards whose copies are being compared.
    passes: BTreeMap<ShardId, verify::Pass>,
    /// How that ended last.
    pub(super) compared: BTreeMap<ShardId, verify::Compared>,
    /// Slices that the driver sums up: shard and index, the copy, who asked.
    summing: BTreeMap<(ShardId, u64), (ReplicaId, NodeId)>,
    /// Reads that met a damaged row in this step.
    unread: Vec<(ShardId, Waiting, StateError)>,
    /// Shards whose copy on this node is damaged or set aside.
    ailing: BTreeSet<ShardId>,
    /// A planted bug: shards that have left out a write.
    skipped: BTreeSet<ShardId>,
    /// Questions for changes that wait for some.
    watchers: follow::Watchers,
    /// What the latest changes of one shard may take. Unit: bytes.
    changes_bytes_max: usize,
    /// A planted bug: parents that go on serving.
    lingering: Vec<(ShardId, KeyRange, Time)>,
    pub(super) heard: BTreeMap<NodeId, Time>,
    pub(super) connected: BTreeSet<NodeId>,
    silent: BTreeSet<NodeId>,
    last_tick: Time,
    last_report: Time,
    last_expiry: Time,
    last_count: Time,
    /// Messages taken up to `last_count`, and how many each second before it.
    messages_rate: (u64, u64),
    last_checkpoint: Time,
    checkpoint_running: bool,
    checkpoint_soon: bool,
    /// Shards whose metas are in the running checkpoint.
    checkpointing: Vec<ShardId>,
    /// Shards that were split off here and are in no checkpoint yet: after a crash only their parent's log makes them
    /// again.
    unsaved_births: BTreeSet<ShardId>,
    log_bytes: usize,
    vote_from: Time,
    pub(super) disk_total: u64,
    pub(super) disk_free: u64,
    copies: copies::Copies,
    /// What this node does while it leads the directory.
    pub(super) conductor: Conductor,
    /// Leaderships that the conductor wants elsewhere.
    pub(super) transfers: Vec<(ShardId, NodeId)>,
    pub(super) store_bytes: u64,
    pub(super) refusing: bool,
    /// Messages between entities under way.
    dispatch: dispatch::Dispatch,
    /// Shards of new services, on their way to life here.
    births: births::Births,
    /// Schemas as read, and on their way into logs.
    schemas: schemas::Schemas,
    stopping: Option<Time>,
    stopped: bool,
    pub(super) counters: BTreeMap<&'static str, u64>,
}

impl Node {
    /// A node from what its store holds. An empty store of a founder makes the founders' first shards.
    pub fn new(
        config: NodeConfig,
        recovered: Recovered,
        clock: Clock,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Self, StateError> {
        let now = clock.now;
        let fresh = recovered.replicas.is_empty() && recovered.log.is_empty();
        // Answers to what this node asked before it went down may still be on their way: their names must not be given out
        // again.
        let mut names = fastrand::Rng::with_seed(
            config.seed ^ clock.wall_ms.rotate_left(20) ^ recovered.last_seq.0.rotate_left(42) ^ now.0,
        );
        let (next_forward, mut first_batch) = (names.u64(1..1 << 62), names.u64(1..1 << 62));
        if config.planted == PlantedBug::NamesBatchesAgain {
            first_batch = 0;
        }
        let mut node = Self {
            clock,
            started: now,
            replicas: BTreeMap::new(),
            by_start: BTreeMap::new(),
            map: ShardMap::default(),
            directory: None,
            directory_epochs: BTreeMap::new(),
            told: ShardMap::default(),
            persisted: recovered.last_seq,
            proposed_lately: BTreeMap::new(),
            next_seq: LogSeq(recovered.last_seq.0 + 1),
            touched: BTreeSet::new(),
            watch: watch::Watch::default(),
            beds: hibernation::Beds::default(),
            load_told: (None, 0),
            told_up_to: ShardId(0),
            condemned_at: (0, 0, 0),
            forwards: BTreeMap::new(),
            forwards_seen: BTreeMap::new(),
            next_forward,
            orphans: BTreeMap::new(),
            stash: VecDeque::new(),
            unknown_since: BTreeMap::new(),
            floors: BTreeMap::new(),
            condemned: BTreeMap::new(),
            burying: BTreeSet::new(),
            installs: BTreeMap::new(),
            absorbed_metas: Vec::new(),
            frozen_heard: BTreeMap::new(),
            parked: VecDeque::new(),
            unpark: false,
            report_soon: false,
            is_first_life: fresh,
            standings: BTreeMap::new(),
            passes: BTreeMap::new(),
            compared: BTreeMap::new(),
            summing: BTreeMap::new(),
            unread: Vec::new(),
            ailing: BTreeSet::new(),
            skipped: BTreeSet::new(),
            lingering: Vec::new(),
            watchers: follow::Watchers::default(),
            changes_bytes_max: CHANGES_KEPT_BYTES_MAX,
            heard: BTreeMap::new(),
            connected: BTreeSet::new(),
            silent: BTreeSet::new(),
            last_tick: now,
            last_report: Time(0),
            last_expiry: now,
            last_count: now,
            messages_rate: (0, 0),
            last_checkpoint: now,
            checkpoint_running: false,
            checkpoint_soon: false,
            checkpointing: Vec::new(),
            unsaved_births: BTreeSet::new(),
            log_bytes: 0,
            // A node that voted or confirmed a lease just before it crashed must not help another leader before that
            // lease is over: it has forgotten whom it last heard from.
            vote_from: if fresh {
                now
            } else {
                now + Span(TICK.0 * (ELECTION_TICKS as u64 + 1))
            },
            disk_total: 0,
            disk_free: u64::MAX,
            copies: copies::Copies::new(now),
            conductor: Conductor::default(),
            transfers: Vec::new(),
            store_bytes: 0,
            refusing: false,
            dispatch: dispatch::Dispatch::new(first_batch),
            births: births::Births::default(),
            schemas: schemas::Schemas::default(),
            stopping: None,
            stopped: false,
            counters: BTreeMap::new(),
            config,
        };
        for founder in &node.config.founders {
            node.map.nodes.insert(founder.id, founder.clone());
        }
        if fresh {
            node.found();
        } else {
            node.recover(recovered, effects)?;
        }
        // What everybody knew at the beginning. Whatever is known better has a higher epoch and stays.
        if node.is_founder() {
            let (_, shards) = node.founding();
            for shard in &shards {
                node.map.learn_shard(shard);
            }
        }
        node.load_directory(state, effects)?;
        for (&shard, replica) in &node.replicas {
            if replica.is_quarantined() {
                node.ailing.insert(shard);
            }
        }
        if node.config.hibernation.after_ticks.is_some() {
            node.sleep_at_first();
        }
        let shards: Vec<ShardDescriptor> = node.replicas.values().map(|replica| replica.shard.clone()).collect();
        for shard in shards.iter().filter(|shard| shard.epoch > Epoch(0)) {
            node.map.learn_shard(shard);
        }
        Ok(node)
    }

    /// Takes in one thing that happened. Follow one or more steps with one `settle`.
    pub fn step(&mut self, clock: Clock, input: Input, state: &mut dyn State, effects: &mut Effects) {
        if self.stopped {
            return;
        }
        self.clock = clock;
        match input {
            Input::Ticked => {
                self.ticked(effects);
                self.conduct(state, effects);
            }
            Input::Greeted { hello } => self.greeted(&hello, effects),
            Input::PeerPersisted { peer, seq } => self.peer_persisted(peer, seq),
            Input::Received { from, .. } | Input::SnapshotReceived { from, .. } if self.is_refused(from) => {
                self.drop_message(from, "from a node that was refused", effects);
            }
            Input::Received { from, messages } => {
                self.heard_from(from, effects);
                for message in messages {
                    self.received(from, message, state, effects);
                }
            }
            Input::Asked {
                session,
                tag,
                timeout_ms,
                principal,
                request,
            } => {
                let deadline = self.deadline(timeout_ms);
                let waiting = Waiting {
                    waiter: Waiter::Client { session, tag },
                    deadline,
                    id: RequestId(0),
                };
                self.asked(waiting, principal, request, 0, state, effects);
            }
            Input::Persisted { seq } => {
                self.persisted = self.persisted.max(seq);
                let waiting: Vec<ShardId> = self.watch.unsynced.iter().copied().collect();
                for shard in waiting {
                    if let Some(replica) = self.replicas.get_mut(&shard) {
                        replica.persisted(seq, effects);
                        self.touched.insert(shard);
                    }
                }
            }
            Input::Checkpointed => {
                self.checkpoint_running = false;
                for shard in std::mem::take(&mut self.checkpointing) {
                    self.unsaved_births.remove(&shard);
                    self.burying.remove(&shard);
                }
            }
            // The beginning of a copy ends here.
            Input::Installed { shard } if self.born(shard) => {}
            Input::Installed { shard } => {
                self.unsaved_births.remove(&shard);
                for dead in self.installs.remove(&shard).unwrap_or_default() {
                    self.burying.remove(&dead);
                }
                if let Some(replica) = self.replicas.get_mut(&shard) {
                    replica.installed(effects);
                    self.touched.insert(shard);
                }
                if shard == DIRECTORY_SHARD {
                    self.reload_directory(state, effects);
                }
            }
            Input::SnapshotReceived { from, .. } if self.is_unproven(from) => {
                self.drop_message(from, "from a node whose store is not known here yet", effects);
            }
            Input::SnapshotReceived { from, raft, copy } => {
                self.heard_from(from, effects);
                self.snapshot_received(from, *raft, copy, state, effects);
            }
            Input::SnapshotProgress {
                to,
                shard,
                attempt,
                bytes,
            } => {
                let now = self.clock.now;
                if let Some(replica) = self.replicas.get_mut(&shard)
                    && let Some(id) = replica.shard.replica_on(to).map(|r| r.id)
                {
                    replica.snapshot_progress(id, attempt, now, bytes);
                }
            }
            Input::SnapshotSent {
                to,
                shard,
                attempt,
                delivered,
            } => {
                if let Some(replica) = self.replicas.get_mut(&shard)
                    && let Some(id) = replica.shard.replica_on(to).map(|r| r.id)
                    && replica
                        .sending
                        .get(&id)
                        .is_some_and(|sending| sending.attempt == attempt)
                {
                    replica.snapshot_sent(id, delivered, self.clock.now);
                    self.touched.insert(shard);
                }
            }
            Input::Connected { peer, up: true } if self.is_refused(peer) => {}
            Input::Connected { peer, up } => self.connection(peer, up, effects),
            Input::DiskSpace {
                total_bytes,
                free_bytes,
                store_bytes,
            } => {
                self.disk_total = total_bytes;
                self.disk_free = free_bytes;
                self.store_bytes = store_bytes;
                // Hysteresis: writes come back with half as much again as the reserve.
                let limit = if self.refusing {
                    DISK_RESERVE_BYTES / 2 * 3
                } else {
                    DISK_RESERVE_BYTES
                };
                let refusing = free_bytes < limit;
                if refusing != self.refusing {
                    self.refusing = refusing;
                    effects.push(Effect::Event(Event::DiskPressure { refusing }));
                }
            }
            Input::Hashed { shard, index, sum } => self.hashed(shard, index, sum, effects),
            Input::Damaged { shard, row } => self.row_damaged(shard, &row, effects),
            Input::StopAsked => {
                self.stopping.get_or_insert(self.clock.now);
                self.hand_over_leaderships();
            }
        }
    }

    /// Turns what the steps since the last call left to do into effects: proposals into log entries, Raft's readies
    /// into writes and messages, committed entries into rows and answers. The driver then takes all effects, in
    /// order, before it steps again.
    pub fn settle(&mut self, clock: Clock, state: &mut dyn State, effects: &mut Effects) {
        self.clock = clock;
        self.settle_replicas(state, effects);
        if self.hurry_merges(state, effects) {
            self.settle_replicas(state, effects);
        }
        if std::mem::take(&mut self.unpark) && !self.parked.is_empty() {
            self.retry_parked(state, effects);
            self.settle_replicas(state, effects);
        }
        // What this node sends itself is applied in the same turn, where that can be.
        for _ in 0..DISPATCH_ROUNDS_MAX {
            match self.dispatch(state, effects) {
                Ok(true) => self.settle_replicas(state, effects),
                Ok(false) => break,
                Err(error) => return self.halt(format!("messages to be sent: {error}"), effects),
            }
        }
        if self.stopped {
            return;
        }
        self.bury_condemned(effects);
        if std::mem::take(&mut self.report_soon) {
            self.report(effects);
        }
        // Last, and only here: snapshots and checkpoints speak of the rows as they are when the driver takes the effects,
        // so nothing may be applied behind them.
        self.start_snapshots(effects);
        self.put_to_bed(effects);
        self.maybe_checkpoint(effects);
        self.maybe_stop(effects);
        #[cfg(debug_assertions)]
        self.check_watch();
    }

    fn settle_replicas(&mut self, state: &mut dyn State, effects: &mut Effects) {
        if self.stopped {
            return;
        }
        let seq = self.next_seq;
        let mut batch = LogBatch::default();
        let mut work = std::mem::take(&mut self.touched);
        while let Some(shard) = work.pop_first() {
            // Taken out while it is worked on, so that applying may change the rest of the node.
            if self.condemned.contains_key(&shard) {
                continue;
            }
            let Some(mut replica) = self.replicas.remove(&shard) else {
                continue;
            };
            replica.allow_snapshots(self.may_send_snapshots());
            let result = self.settle_replica(&mut replica, seq, &mut batch, state, effects);
            self.put_back(replica);
            if let Err(error) = result {
                self.halt(format!("applying to {shard}: {error}"), effects);
                return;
            }
            work.append(&mut self.touched);
        }
        for (shard, waiting, error) in std::mem::take(&mut self.unread) {
            self.unreadable(shard, waiting, &error, effects);
        }
        // What an absorbed copy still had to say is of no use to anybody.
        batch.shards.retain(|write| self.replicas.contains_key(&write.shard));
        if !batch.shards.is_empty() {
            self.next_seq = LogSeq(seq.0 + 1);
            self.log_bytes += batch
                .shards
                .iter()
                .flat_map(|w| &w.entries)
                .map(|e| e.data.len() + 32)
                .sum::<usize>();
            effects.push(Effect::Persist { seq, batch });
        }
    }

    /// When `Input::Ticked` is due next.
    pub fn next_deadline(&self) -> Time {
        if self.touched.is_empty() && !self.has_to_dispatch() {
            self.last_tick + TICK
        } else {
            self.clock.now
        }
    }

    /// What this node knows of shards, nodes and services.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The node's copies of shards, for status and for checks.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    /// How often this node has compared the copies of a shard from end to end.
    pub fn shards_verified(&self) -> u64 {
        self.counters.get("shards_verified").copied().unwrap_or(0)
    }

    /// The last log write given out.
    pub fn last_seq(&self) -> LogSeq {
        LogSeq(self.next_seq.0 - 1)
    }

    // --- settling ----------------------------------------------------------------------------------------------

    fn settle_replica(
        &mut self,
        replica: &mut Replica,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let mut write = None;
        let result = self.settle_rounds(replica, seq, &mut write, batch, state, effects);
        replica.keep_commit(seq, &mut write);
        batch.shards.extend(write);
        result
    }

    fn settle_rounds(
        &mut self,
        replica: &mut Replica,
        seq: LogSeq,
        write: &mut Option<ShardWrite>,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let now = self.clock.now;
        for round in 0.. {
            let mut failed = Vec::new();
            replica.propose_queued(now, self.clock.wall_ms, &mut failed);
            for (waiting, error) in failed {
                let hint = self.hint_of(replica);
                self.reply(waiting, Response::Error(error), hint, None, effects);
            }
            let committed = replica.collect(seq, write, effects);
            let applied = !committed.is_empty();
            for entry in committed {
                self.apply(replica, &entry, seq, batch, state, effects)?;
                if replica.stalled || self.condemned.contains_key(&replica.shard.id) {
                    break;
                }
                if self.config.planted == PlantedBug::ApplyTwice && entry.index % 13 == 0 {
                    self.apply_again(replica, &entry, state)?;
                }
            }
            if applied {
                replica.finish_applying();
                self.wake_watchers(replica, state, effects)?;
            }
            self.answer_reads(replica, state, effects)?;
            if !replica.has_work() {
                break;
            }
            if round == SETTLE_ROUNDS_MAX {
                self.touched.insert(replica.shard.id);
                break;
            }
        }
        if let Some(event) = replica.role_change() {
            replica.lead_from(now);
            self.watch_leadership(replica);
            if let Event::Role {
                shard,
                term,
                leader: Some(leader),
                ..
            } = event
            {
                self.map.learn_leader(shard, term, leader);
            }
            effects.push(Effect::Event(event));
            for read in replica.take_orphaned_reads() {
                let hint = self.hint_of(replica);
                self.reply(
                    read.waiting,
                    Response::Error(replica::not_leader()),
                    hint,
                    None,
                    effects,
                );
            }
            if replica.is_leader() {
                self.check_schema_of(replica.shard.id);
            } else {
                self.dismiss_watchers(replica, effects);
            }
            if replica.is_leader() && replica.shard.id == DIRECTORY_SHARD {
                self.last_report = Time(0);
            }
        }
        Ok(())
    }

    fn answer_reads(
        &mut self,
        replica: &mut Replica,
        state: &dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        for read in replica.take_reads() {
            if let Waiter::Dispatch { shard, term } = read.waiting.waiter {
                self.leadership_confirmed(shard, term, true);
                continue;
            }
            if matches!(read.request, Request::Changes { .. }) {
                self.watch_here(replica, read, state, effects)?;
                continue;
            }
            match self.serve_read(replica, &read.request, state) {
                Ok((response, hint)) => self.reply(read.waiting, response, hint, None, effects),
                Err(error @ StateError::Checksum { .. }) => {
                    // `unreadable` looks for the copy in its place.
                    self.unread.push((replica.shard.id, read.waiting, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    // --- answering ---------------------------------------------------------------------------------------------

    pub(super) fn reply(
        &mut self,
        waiting: Waiting,
        response: Response,
        hint: Option<Box<RouteHint>>,
        valid_until: Option<Time>,
        effects: &mut Effects,
    ) {
        match waiting.waiter {
            Waiter::Client { session, tag } => {
                effects.push(Effect::Reply {
                    session,
                    tag,
                    response,
                    hint,
                    valid_until,
                });
            }
            Waiter::Peer { node, id } => {
                effects.push(Effect::Send {
                    to: node,
                    message: Message::ForwardReply { id, response, hint },
                });
            }
            Waiter::Conductor { token } => self.conductor_answered(token, response),
            Waiter::Dispatch { shard, term } => self.leadership_confirmed(shard, term, false),
            Waiter::Batch { node, id } => {
                let (receipts, failed) = match response {
                    Response::Receipts(receipts) => (receipts, false),
                    _ => (Vec::new(), true),
                };
                if node == self.config.node {
                    return self.batch_back(id, receipts, failed);
                }
                let message = Message::Delivered { id, receipts, failed };
                effects.push(Effect::Send { to: node, message });
            }
            Waiter::Own => {}
        }
    }

    /// Marks a replica as having work for `settle`.
    pub(super) fn touch(&mut self, shard: ShardId) {
        self.touched.insert(shard);
    }

    /// Where requests to this replica's shard should go.
    pub(super) fn hint_of(&self, replica: &Replica) -> Option<Box<RouteHint>> {
        if !replica.is_initialized() {
            return None;
        }
        let leader = replica.leader().map(|node| (replica.term(), node));
        let leader = leader.or_else(|| self.map.leader(replica.shard.id));
        Some(Box::new(RouteHint {
            shard: replica.shard.clone(),
            leader,
        }))
    }

    /// Where requests for this position should go, as far as this node knows.
    pub(super) fn hint_for(&self, position: &Position) -> Option<Box<RouteHint>> {
        let shard = self.map.find(position)?;
        Some(Box::new(RouteHint {
            shard: shard.clone(),
            leader: self.map.leader(shard.id),
        }))
    }

    fn deadline(&self, timeout_ms: u32) -> Time {
        self.clock.now + Span::millis(u64::from(timeout_ms.clamp(1, REQUEST_TIMEOUT_MS_MAX)))
    }
}

/// The answer to a write that may or may not have happened.
pub(super) fn outcome_unknown(id: RequestId) -> Response {
    let text =
        format!("the write was handed on and no answer came in time; repeat it with request id {id}, or ask for it");
    Response::Error(WireError::new(Code::OutcomeUnknown, text))
}

/// Why a shard can't be reshaped right now.
pub(super) fn busy(shard: &ShardDescriptor) -> Option<WireError> {
    if shard.frozen.is_some() {
        Some(merge::frozen(shard))
    } else if shard.is_joint() {
        Some(replica::change_pending(shard.id))
    } else {
        None
    }
}

/// The refusal of a split that was planned for another epoch.
pub(super) fn stale_epoch(shard: &ShardDescriptor, planned: Epoch) -> WireError {
    let text = format!(
        "{} is at epoch {}, this was planned for {planned}; nothing was changed",
        shard.id, shard.epoch
    );
    WireError::new(Code::StaleEpoch, text)
}

/// The refusal of a merge, or of taking it back.
pub(super) fn bad_merge(why: String) -> WireError {
    WireError::new(Code::BadMerge, format!("{why}; nothing was changed"))
}

/// The refusal of a split at a place that leaves one half empty.
pub(super) fn bad_split(shard: &ShardDescriptor, at: &Position) -> WireError {
    WireError::new(
        Code::BadSplit,
        format!("{at} is not inside {} {}; nothing was changed", shard.id, shard.range),
    )
}

/// The refusal of a split whose right half would be taken for a shard from before: where a service was dropped and another one
/// has its name, older shards of that name are no more.
pub(super) fn old_child(shard: &ShardDescriptor, child: ShardId) -> WireError {
    let text = format!(
        "{child} is not younger than {}, which it is to be split from; nothing was changed",
        shard.id
    );
    WireError::new(Code::BadSplit, text)
}

/// Times in one turn that messages are sent and what comes of it on this node is settled.
const DISPATCH_ROUNDS_MAX: usize = 3;
/// Requests handed on by one peer that are told apart from a second copy. Unit: requests.
const FORWARDS_SEEN_MAX: usize = 4096;
const FORWARDS_OF_A_LIFE: u64 = 1 << 40;
const TICKS_AT_ONCE: u64 = 4;
const SETTLE_ROUNDS_MAX: u32 = 16;
const NEWS_MAX: usize = 256;
const SNAPSHOTS_AT_ONCE: usize = 4;
const REQUEST_TIMEOUT_MS_MAX: u32 = 60_000;
const EXPIRE_EVERY: Span = Span::millis(250);
const PROPOSE_AGAIN_AFTER: Span = Span::secs(3);
const SNAPSHOT_TIMEOUT: Span = Span::secs(60);
const STASH_FOR: Span = Span::secs(2);
const STOP_TIMEOUT: Span = Span::secs(3);
