//! One node: its replicas, its router, its share of the directory.
//!
//! `step` takes in what happened and only notes it: a command is queued, a Raft message is stepped. `settle` then does for
//! all replicas that have work what is dear and better done once: entries, log write, applying, messages, answers.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{Entry, HardState, MessageType};

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
use super::state::{LogBatch, LogSeq, Recovered, ReplicaMeta, ShardWrite, State, StateError};
use super::time::{Clock, Time};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{ClusterId, DIRECTORY_SHARD, Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::message::{Message, RaftMessage, Report, Row, SnapshotManifest};
use crate::protocol::request::{Response, RouteHint};
use crate::protocol::shard_map::{
    Membership, NodeInfo, ReplicaDescriptor, ReplicaRole, ServiceInfo, ShardDescriptor, ShardMap, ShardSizes,
};

mod membership;
pub(super) mod merge;
mod removal;

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
    pub checkpoint_every: super::time::Span,
    /// Whether this node carries out operations while it leads the directory; a scenario of the simulator's wants no
    /// hand but its own.
    #[doc(hidden)]
    pub conducts: bool,
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
    /// A planted bug: parents that go on serving.
    lingering: Vec<(ShardId, KeyRange, Time)>,
    pub(super) heard: BTreeMap<NodeId, Time>,
    pub(super) connected: BTreeSet<NodeId>,
    silent: BTreeSet<NodeId>,
    last_tick: Time,
    last_report: Time,
    last_expiry: Time,
    last_count: Time,
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
    /// What this node does while it leads the directory.
    pub(super) conductor: Conductor,
    /// Leaderships that the conductor wants elsewhere.
    pub(super) transfers: Vec<(ShardId, NodeId)>,
    pub(super) store_bytes: u64,
    pub(super) refusing: bool,
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
            forwards: BTreeMap::new(),
            forwards_seen: BTreeMap::new(),
            // Replies to what this node asked before it went down may still be on their way: their names must not be given
            // out again.
            next_forward: fastrand::Rng::with_seed(
                config.seed ^ clock.wall_ms.rotate_left(20) ^ recovered.last_seq.0.rotate_left(42) ^ now.0,
            )
            .u64(1..1 << 62),
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
            lingering: Vec::new(),
            heard: BTreeMap::new(),
            connected: BTreeSet::new(),
            silent: BTreeSet::new(),
            last_tick: now,
            last_report: Time(0),
            last_expiry: now,
            last_count: now,
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
                now + super::time::Span(TICK.0 * (ELECTION_TICKS as u64 + 1))
            },
            disk_total: 0,
            disk_free: u64::MAX,
            conductor: Conductor::default(),
            transfers: Vec::new(),
            store_bytes: 0,
            refusing: false,
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
        if node.replicas.contains_key(&DIRECTORY_SHARD) {
            let directory = Directory::load(state)?;
            node.learn_directory(&directory);
            node.directory = Some(directory);
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
                for (&shard, replica) in &mut self.replicas {
                    if !replica.is_idle() {
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
            Input::SnapshotReceived { from, raft, rows } => {
                self.heard_from(from, effects);
                self.snapshot_received(from, *raft, rows, state, effects);
            }
            Input::SnapshotSent { to, shard, delivered } => {
                if let Some(replica) = self.replicas.get_mut(&shard)
                    && let Some(id) = replica.shard.replica_on(to).map(|r| r.id)
                {
                    replica.snapshot_sent(id, delivered);
                    self.touched.insert(shard);
                }
            }
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
        if std::mem::take(&mut self.unpark) && !self.parked.is_empty() {
            self.retry_parked(state, effects);
            self.settle_replicas(state, effects);
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
        self.maybe_checkpoint(effects);
        self.maybe_stop(effects);
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
            let result = self.settle_replica(&mut replica, seq, &mut batch, state, effects);
            self.replicas.insert(shard, replica);
            if let Err(error) = result {
                self.halt(format!("applying to {shard}: {error}"), effects);
                return;
            }
            work.append(&mut self.touched);
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
        if self.touched.is_empty() {
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

    /// The last log write given out.
    pub fn last_seq(&self) -> LogSeq {
        LogSeq(self.next_seq.0 - 1)
    }

    // --- start -------------------------------------------------------------------------------------------------

    /// The first shards of a new cluster: the same on every founder, so that nobody has to be told.
    fn found(&mut self) {
        for meta in self.first_metas() {
            if let Some(me) = meta.shard.replica_on(self.config.node).copied() {
                self.add_replica(meta, me.id, Orphan::default());
            }
        }
    }

    fn is_founder(&self) -> bool {
        let me = self.config.node;
        self.config.founders.iter().any(|founder| founder.id == me)
    }

    /// This node's copies of the first shards.
    fn first_metas(&self) -> Vec<ReplicaMeta> {
        if !self.is_founder() {
            return Vec::new();
        }
        let (_, shards) = self.founding();
        let mine = shards
            .into_iter()
            .filter(|shard| shard.replica_on(self.config.node).is_some());
        mine.map(|shard| replica::first_meta(shard, 0)).collect()
    }

    fn founding(&self) -> (Vec<ServiceInfo>, Vec<ShardDescriptor>) {
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
            newest_replica: ReplicaId(0),
            absorbed: Vec::new(),
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
                    newest_replica: ReplicaId(0),
                    absorbed: Vec::new(),
                });
            }
            services.push(ServiceInfo {
                name: service.name.clone(),
                replicas: service.replicas,
                presplit: service.cuts.len() as u32 + 1,
                sizes: ShardSizes::default(),
            });
        }
        (services, shards)
    }

    fn recover(&mut self, mut recovered: Recovered, effects: &mut Effects) -> Result<(), StateError> {
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
            log.hard_state.commit = log.hard_state.commit.clamp(meta.applied, log.last());
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

    fn replica_seed(&self) -> u64 {
        self.config.seed ^ self.config.node.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn add_replica(&mut self, meta: ReplicaMeta, id: ReplicaId, orphan: Orphan) {
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
        self.replicas.insert(shard, replica);
        self.touched.insert(shard);
    }

    // --- time --------------------------------------------------------------------------------------------------

    fn ticked(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let elapsed = now.since(self.last_tick).0 / TICK.0;
        if elapsed == 0 {
            return;
        }
        // After a stall Raft's clock may run behind real time, never ahead: leases depend on that. A few ticks at most,
        // so that what waits in the sockets is heard before anybody calls an election.
        self.last_tick = if elapsed > TICKS_AT_ONCE {
            now
        } else {
            self.last_tick + super::time::Span(elapsed * TICK.0)
        };
        let condemned = &self.condemned;
        let able = |shard: &ShardId| !condemned.contains_key(shard);
        for (&shard, replica) in self.replicas.iter_mut().filter(|(shard, _)| able(shard)) {
            if replica.should_leave_joint() {
                let waiting = Waiting {
                    waiter: Waiter::Own,
                    deadline: now,
                    id: RequestId(0),
                };
                replica.propose(Command::LeaveJoint, waiting);
            }
            for _ in 0..elapsed.min(TICKS_AT_ONCE) {
                replica.tick(now);
            }
            if replica.has_work() {
                self.touched.insert(shard);
            }
        }
        if now.since(self.last_report) >= REPORT_EVERY {
            self.last_report = now;
            self.report(effects);
            self.watch_peers(effects);
            self.tend_directory();
            self.find_condemned(effects);
        }
        self.unpark |= !self.parked.is_empty();
        if now.since(self.last_expiry) >= EXPIRE_EVERY {
            self.last_expiry = now;
            self.expire(effects);
        }
        let counted = now.since(self.last_count).as_millis();
        if counted >= 2_000 {
            self.last_count = now;
            for replica in self.replicas.values_mut() {
                replica.requests_per_s = std::mem::take(&mut replica.served) * 1_000 / counted;
            }
        }
        if self.stopping.is_some() {
            self.hand_over_leaderships();
        }
    }

    fn expire(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let (mut harmless, mut unknown) = (Vec::new(), Vec::new());
        for replica in self.replicas.values_mut() {
            replica.forget_followers(now);
            let (a, b) = replica.take_expired(now);
            harmless.extend(a);
            unknown.extend(b);
            let late: Vec<ReplicaId> = replica
                .sending
                .iter()
                .filter(|&(_, &since)| now.since(since) > SNAPSHOT_TIMEOUT)
                .map(|(&id, _)| id)
                .collect();
            for id in late {
                replica.snapshot_sent(id, false);
            }
        }
        let late: Vec<u64> = self
            .forwards
            .iter()
            .filter(|(_, f)| f.waiting.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            if let Some(forwarded) = self.forwards.remove(&id) {
                if forwarded.is_write {
                    unknown.push(forwarded.waiting)
                } else {
                    harmless.push(forwarded.waiting)
                }
            }
        }
        for waiting in harmless {
            let text = "no leader confirmed the request in time; nothing was done";
            self.reply(
                waiting,
                Response::Error(WireError::new(Code::NoLeader, text)),
                None,
                None,
                effects,
            );
        }
        for waiting in unknown {
            self.reply(waiting, outcome_unknown(waiting.id), None, None, effects);
        }
        self.stash.retain(|(since, _, _)| now.since(*since) < STASH_FOR);
        self.proposed_lately
            .retain(|_, since| now.since(*since) < PROPOSE_AGAIN_AFTER);
    }

    // --- peers -------------------------------------------------------------------------------------------------

    fn heard_from(&mut self, from: NodeId, effects: &mut Effects) {
        self.heard.insert(from, self.clock.now);
        if self.silent.remove(&from) {
            effects.push(Effect::Event(Event::Peer {
                node: from,
                alive: true,
            }));
        }
    }

    fn connection(&mut self, peer: NodeId, up: bool, effects: &mut Effects) {
        if up {
            self.connected.insert(peer);
            self.last_report = Time(0);
            return;
        }
        self.connected.remove(&peer);
        for replica in self.replicas.values_mut() {
            replica.unreachable(peer);
        }
        let lost: Vec<u64> = self
            .forwards
            .iter()
            .filter(|(_, f)| f.to == peer)
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            let Some(forwarded) = self.forwards.remove(&id) else {
                continue;
            };
            let response = if forwarded.is_write {
                outcome_unknown(forwarded.waiting.id)
            } else {
                Response::Error(WireError::new(
                    Code::NoLeader,
                    format!("{peer} went away; nothing was done"),
                ))
            };
            self.reply(forwarded.waiting, response, None, None, effects);
        }
    }

    fn watch_peers(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        for (&peer, &heard) in &self.heard {
            if now.since(heard) > PEER_SILENT_AFTER && self.silent.insert(peer) {
                effects.push(Effect::Event(Event::Peer {
                    node: peer,
                    alive: false,
                }));
            }
        }
    }

    /// Nodes heard from lately.
    pub(super) fn alive(&self) -> BTreeSet<NodeId> {
        let now = self.clock.now;
        self.heard
            .iter()
            .filter(|&(_, &heard)| now.since(heard) <= PEER_SILENT_AFTER)
            .map(|(&node, _)| node)
            .collect()
    }

    fn report(&mut self, effects: &mut Effects) {
        let led = self.replicas.values().filter(|replica| replica.is_leader());
        let leads = led.clone().map(|replica| (replica.shard.id, replica.term())).collect();
        let news = led
            .filter(|r| r.kept_in <= self.persisted)
            .filter(|r| {
                self.directory_epochs
                    .get(&r.shard.id)
                    .is_none_or(|&known| known < r.shard.epoch)
            })
            .map(|replica| replica.shard.clone())
            .take(NEWS_MAX)
            .collect();
        let report = Report {
            node: self.config.node,
            store_id: self.config.store_id,
            address: self.config.address.clone(),
            version: self.config.version.clone(),
            map_version: self.map.version,
            leads,
            news,
            frozen: self.frozen_here(),
            load: None,
        };
        let directory = self.replicas.get(&DIRECTORY_SHARD).and_then(Replica::leader);
        let directory = directory.or_else(|| self.map.leader(DIRECTORY_SHARD).map(|(_, node)| node));
        for &node in self.map.nodes.keys().filter(|&&node| node != self.config.node) {
            let load = (directory == Some(node)).then(|| self.own_load());
            effects.push(Effect::Send {
                to: node,
                message: Message::Report(Report { load, ..report.clone() }),
            });
        }
    }

    fn received(&mut self, from: NodeId, message: Message, state: &mut dyn State, effects: &mut Effects) {
        match message {
            Message::Raft(raft) => self.raft_received(from, raft, effects),
            Message::Forward {
                id,
                hops,
                timeout_ms,
                principal,
                request,
            } => {
                if !self.forwards_seen.entry(from).or_default().is_new(id) {
                    return self.drop_message(from, "a request that was handed on before", effects);
                }
                let waiter = Waiter::Peer { node: from, id };
                let waiting = Waiting {
                    waiter,
                    deadline: self.deadline(timeout_ms),
                    id: RequestId(0),
                };
                self.asked(waiting, principal, request, hops, state, effects);
            }
            Message::ForwardReply { id, response, hint } => {
                if let Some(hint) = &hint {
                    self.learn_hint(hint);
                }
                if let Some(forwarded) = self.forwards.remove(&id) {
                    if let Response::Error(WireError {
                        code: Code::LeaderChanged | Code::NoLeader,
                        ..
                    }) = &response
                    {
                        self.counters
                            .entry("forward_retry")
                            .and_modify(|n| *n += 1)
                            .or_insert(1);
                    }
                    self.reply(forwarded.waiting, response, hint, None, effects);
                }
            }
            Message::Report(report) => self.reported(from, &report, effects),
            Message::Map(view) => {
                for shard in view.shards.iter().filter(|_| view.version > 0) {
                    let known = self.directory_epochs.entry(shard.id).or_default();
                    *known = shard.epoch.max(*known);
                }
                self.map.learn(&view);
                if view.version > 0 {
                    self.told.learn(&view);
                }
            }
        }
    }

    fn learn_hint(&mut self, hint: &RouteHint) {
        self.map.learn_shard(&hint.shard);
        if let Some((term, node)) = hint.leader {
            self.map.learn_leader(hint.shard.id, term, node);
        }
    }

    fn raft_received(&mut self, from: NodeId, raft: RaftMessage, effects: &mut Effects) {
        let shard = raft.shard;
        let votes = matches!(
            raft.message.msg_type,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if votes && self.clock.now < self.vote_from {
            return self.drop_message(from, "a vote was asked for just after the start", effects);
        }
        if raft.message.from != raft.from.0 || raft.message.to != raft.to.0 {
            return self.drop_message(from, "names inside and outside differ", effects);
        }
        if self.condemned.contains_key(&shard) || self.burying.contains(&shard) {
            return self.drop_message(from, "for a replica that is being destroyed", effects);
        }
        if let Some(replica) = self.replicas.get_mut(&shard) {
            if replica.id != raft.to {
                return self.drop_message(from, "for another replica of this shard", effects);
            }
            if replica
                .shard
                .replica(raft.from)
                .is_some_and(|sender| sender.node != from)
            {
                return self.drop_message(from, "from a replica of another node", effects);
            }
            match replica.receive(from, raft.message) {
                Ok(()) => {
                    self.touched.insert(shard);
                }
                Err(why) => self.drop_message(from, why, effects),
            }
            return;
        }
        if self.floors.get(&shard).is_some_and(|&floor| raft.to <= floor) {
            return self.drop_message(from, "for a replica that was removed", effects);
        }
        // Perhaps the split that makes this shard is about to be applied here.
        let now = self.clock.now;
        let since = *self.unknown_since.entry(shard).or_insert(now);
        let from_leader = matches!(
            raft.message.msg_type,
            MessageType::MsgAppend | MessageType::MsgHeartbeat
        );
        // A split's child has the same replica ids as its parent.
        let may_be_born = self.replicas.values().any(|replica| replica.id == raft.to);
        if (now.since(since) > STASH_FOR || !may_be_born) && from_leader {
            // It is not: this node is to get the shard by snapshot.
            self.unknown_since.remove(&shard);
            let mut meta = replica::empty_meta(shard);
            // What the log has of an earlier copy does not count for this one.
            meta.log_from = LogSeq(self.next_seq.0 - 1);
            meta.shard.replicas = vec![ReplicaDescriptor {
                node: self.config.node,
                id: raft.to,
                role: ReplicaRole::Learner,
            }];
            let orphan = self.orphans.remove(&shard).unwrap_or_default();
            self.add_replica(
                meta,
                raft.to,
                Orphan {
                    hard_state: orphan.hard_state,
                    entries: Vec::new(),
                },
            );
            if let Some(replica) = self.replicas.get_mut(&shard) {
                replica.made_at = raft.epoch;
            }
            effects.push(Effect::Event(Event::ReplicaCreated {
                shard,
                replica: raft.to,
            }));
            return self.raft_received(from, raft, effects);
        }
        if self.unknown_since.len() > STASH_MESSAGES_MAX {
            self.unknown_since.pop_first();
        }
        if self.stash.len() >= STASH_MESSAGES_MAX {
            self.stash.pop_front();
        }
        self.stash.push_back((now, from, raft));
    }

    fn snapshot_received(
        &mut self,
        from: NodeId,
        raft: RaftMessage,
        rows: Vec<Row>,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let snapshot = raft.message.get_snapshot();
        let manifest: SnapshotManifest = match codec::decode(&snapshot.data) {
            Ok(manifest) => manifest,
            Err(_) => return self.drop_message(from, "a snapshot without a manifest", effects),
        };
        if manifest.shard.id != raft.shard
            || manifest
                .shard
                .replica(raft.to)
                .is_none_or(|r| r.node != self.config.node)
        {
            return self.drop_message(from, "a snapshot for somebody else", effects);
        }
        if self.condemned.contains_key(&raft.shard) {
            return self.drop_message(from, "for a replica that is being destroyed", effects);
        }
        let at = (snapshot.metadata.index, snapshot.metadata.term);
        let Some(replica) = self
            .replicas
            .get_mut(&raft.shard)
            .filter(|replica| replica.id == raft.to)
        else {
            return self.drop_message(from, "a snapshot for a replica that is not here", effects);
        };
        if replica.is_installing() {
            return self.drop_message(from, "a snapshot while another one is installed", effects);
        }
        let start = replica.shard.range.start.clone();
        // What is ready is taken first: Raft must have nothing else in hand when it takes a snapshot.
        self.touched.insert(raft.shard);
        self.settle_replicas(state, effects);
        if self.unsaved_births.iter().any(|&child| child != raft.shard) {
            // This may be their parent: its snapshot takes the place of the log entries that make them.
            self.checkpoint_soon = true;
            return self.drop_message(from, "a snapshot before a split is checkpointed", effects);
        }
        let taken_over = match self.taken_over_by(&manifest.shard) {
            Ok(shards) => shards,
            Err(why) => return self.drop_message(from, why, effects),
        };
        if self.has_freeze_already(&manifest.shard) {
            return self.drop_message(from, "a snapshot of a freeze that the log has", effects);
        }
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        replica.log_from = LogSeq(self.next_seq.0 - 1);
        let also = taken_over.iter().filter_map(|id| self.replicas.get(id));
        let clear = also.clone().map(|replica| replica.shard.range.clone()).collect();
        let mut also: Vec<ReplicaMeta> = also.map(|replica| self.destroyed_meta(replica)).collect();
        let is_absorber = |id: &ShardId| *id == raft.shard || taken_over.contains(id);
        also.extend(
            self.absorbed_metas
                .iter()
                .filter(|(absorber, _)| is_absorber(absorber))
                .map(|(_, meta)| meta.clone()),
        );
        let dead: Vec<ShardId> = also.iter().map(|meta| meta.shard.id).collect();
        // Out of the way while Raft is asked; back if it does not want the snapshot.
        let mut aside = Vec::new();
        for id in &taken_over {
            aside.extend(self.replicas.remove(id));
        }
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        let incoming = Incoming {
            manifest,
            rows,
            snapshot: at,
            also,
            clear,
        };
        let log_from_before = replica.log_from;
        replica.offer_snapshot(from, raft.message, incoming);
        self.touched.insert(raft.shard);
        self.settle_replicas(state, effects);
        let Some(replica) = self.replicas.get_mut(&raft.shard) else {
            return;
        };
        replica.incoming = None;
        debug_assert_eq!(replica.log_from, log_from_before);
        if !replica.is_installing() {
            self.replicas
                .extend(aside.into_iter().map(|replica| (replica.shard.id, replica)));
        } else {
            for dead in aside {
                self.forget(dead, "a snapshot of the shard that took over its keys", effects);
            }
            self.absorbed_metas.retain(|(_, meta)| !dead.contains(&meta.shard.id));
            self.installs.insert(raft.shard, dead);
            let Some(replica) = self.replicas.get_mut(&raft.shard) else {
                return;
            };
            if self.by_start.get(&start) == Some(&raft.shard) {
                self.by_start.remove(&start);
            }
            self.by_start.insert(replica.shard.range.start.clone(), raft.shard);
            let shard = replica.shard.clone();
            self.map.learn_shard(&shard);
        }
    }

    fn drop_message(&mut self, from: NodeId, why: &'static str, effects: &mut Effects) {
        *self.counters.entry("dropped_messages").or_default() += 1;
        effects.push(Effect::Event(Event::Dropped { from, why }));
    }

    // --- directory ---------------------------------------------------------------------------------------------

    fn reported(&mut self, from: NodeId, report: &Report, effects: &mut Effects) {
        for &(shard, term) in &report.leads {
            self.map.learn_leader(shard, term, from);
        }
        for shard in &report.news {
            self.map.learn_shard(shard);
        }
        let heard = self.frozen_heard.entry(from).or_default();
        if *heard != report.frozen {
            heard.clone_from(&report.frozen);
            self.unpark = true;
        }
        if let Some(load) = &report.load {
            self.load_reported(from, load.clone());
        }
        if !self.leads_directory() {
            return;
        }
        let Some(directory) = &self.directory else { return };
        let known = directory.map.nodes.get(&report.node).cloned();
        let news: Vec<ShardDescriptor> = report
            .news
            .iter()
            .filter(|shard| !directory.knows(shard))
            .cloned()
            .collect();
        if directory.map.version > report.map_version {
            let view = directory.map.view();
            effects.push(Effect::Send {
                to: from,
                message: Message::Map(view),
            });
        }
        if let Some(mut info) = known {
            let changed = info.store_id != report.store_id
                || info.address != report.address
                || info.version != report.version
                || matches!(info.membership, Membership::Pending | Membership::Joining);
            if changed {
                info.store_id = report.store_id;
                info.address.clone_from(&report.address);
                info.version.clone_from(&report.version);
                self.propose_own(report.node.0, DirectoryCommand::Register(info));
            }
        }
        if !news.is_empty() {
            self.propose_own(1 << 40 | report.node.0, DirectoryCommand::LearnShards(news));
        }
    }

    /// What the directory's leader does every second by itself.
    fn tend_directory(&mut self) {
        if !self.leads_directory() {
            return;
        }
        let Some(directory) = &self.directory else { return };
        if directory.map.nodes.is_empty() {
            let (services, shards) = self.founding();
            let nodes = self.config.founders.clone();
            return self.propose_own(
                0,
                DirectoryCommand::Found {
                    nodes,
                    services,
                    shards,
                },
            );
        }
        let me = self.config.node;
        if let Some(known) = directory.map.nodes.get(&me) {
            let mut info = known.clone();
            info.store_id = self.config.store_id;
            info.address.clone_from(&self.config.address);
            info.version.clone_from(&self.config.version);
            if matches!(info.membership, Membership::Pending | Membership::Joining) {
                info.membership = Membership::Active;
            }
            if info != *known {
                self.propose_own(me.0, DirectoryCommand::Register(info));
            }
        }
        let Some(directory) = &self.directory else { return };
        let news: Vec<ShardDescriptor> = self
            .replicas
            .values()
            .filter(|replica| replica.is_leader() && !directory.knows(&replica.shard))
            .filter(|replica| replica.kept_in <= self.persisted)
            .map(|replica| replica.shard.clone())
            .take(NEWS_MAX)
            .collect();
        if !news.is_empty() {
            self.propose_own(1 << 40 | me.0, DirectoryCommand::LearnShards(news));
        }
    }

    pub(super) fn leads_directory(&self) -> bool {
        self.replicas.get(&DIRECTORY_SHARD).is_some_and(Replica::is_leader)
    }

    fn propose_own(&mut self, topic: u64, command: DirectoryCommand) {
        let now = self.clock.now;
        if self
            .proposed_lately
            .get(&topic)
            .is_some_and(|&at| now.since(at) < PROPOSE_AGAIN_AFTER)
        {
            return;
        }
        self.proposed_lately.insert(topic, now);
        let waiting = Waiting {
            waiter: Waiter::Own,
            deadline: now + PROPOSE_AGAIN_AFTER,
            id: RequestId(0),
        };
        if let Some(replica) = self.replicas.get_mut(&DIRECTORY_SHARD) {
            replica.propose(Command::Directory(command), waiting);
            self.touched.insert(DIRECTORY_SHARD);
        }
    }

    fn learn_directory(&mut self, directory: &Directory) {
        let view = directory.map.view();
        for shard in &view.shards {
            self.directory_epochs.insert(shard.id, shard.epoch);
        }
        self.told.learn(&view);
        self.map.learn(&view);
    }

    fn reload_directory(&mut self, state: &mut dyn State, effects: &mut Effects) {
        match Directory::load(state) {
            Ok(directory) => {
                self.learn_directory(&directory);
                self.directory = Some(directory);
            }
            Err(error) => self.halt(format!("reading the directory: {error}"), effects),
        }
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
            let (response, hint) = self.serve_read(replica, &read.request, state)?;
            self.reply(read.waiting, response, hint, None, effects);
        }
        Ok(())
    }

    fn apply(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        seq: LogSeq,
        batch: &mut LogBatch,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(), StateError> {
        let shard = replica.shard.id;
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
                replica.shard_time_ms += payload.elapsed_ms;
            }
            let context = Context {
                shard,
                wall_ms: payload.wall_ms,
                shard_time_ms: replica.shard_time_ms,
            };
            let mut waiters = ours.unwrap_or_default().into_iter();
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
                    _ => self.apply_command(replica, entry, command, context, state, effects)?,
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
    fn apply_again(&mut self, replica: &Replica, entry: &Committed, state: &mut dyn State) -> Result<(), StateError> {
        let Ok(payload) = Payload::decode(&entry.data) else {
            return Ok(());
        };
        for command in payload.commands {
            let Command::Write(mut write) = command else { continue };
            write.id.0 ^= 1;
            let context = Context {
                shard: replica.shard.id,
                wall_ms: payload.wall_ms,
                shard_time_ms: replica.shard_time_ms,
            };
            if replica.shard.range.contains(&Position::new(&write.service, &write.key)) {
                let _ = machine::apply(&write, context, state)?;
            }
        }
        Ok(())
    }

    fn apply_command(
        &mut self,
        replica: &mut Replica,
        entry: &Committed,
        command: &Command,
        context: Context,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<(Response, Option<Box<RouteHint>>), StateError> {
        let response = match command {
            Command::Write(write) => {
                let position = Position::new(&write.service, &write.key);
                if replica.shard.frozen.is_some() {
                    return Ok((Response::Error(merge::frozen(&replica.shard)), None));
                }
                if !replica.shard.range.contains(&position) && !self.lingers(replica.shard.id, &position) {
                    let text = format!("{} no longer holds {position}; nothing was changed", replica.shard.id);
                    let hint = self.hint_for(&position);
                    return Ok((Response::Error(WireError::new(Code::StaleRoute, text)), hint));
                }
                let (outcome, delta) = machine::apply(write, context, state)?;
                replica.entities = replica.entities.saturating_add_signed(delta.entities);
                replica.bytes = replica.bytes.saturating_add_signed(delta.bytes);
                outcome.map_or_else(Response::Error, Response::Written)
            }
            Command::Split { epoch, at, child, .. } => self.apply_split(replica, *epoch, at, *child, effects),
            Command::Freeze {
                epoch,
                into,
                left_epoch,
                ..
            } => self.apply_freeze(replica, entry, *epoch, *into, *left_epoch, effects),
            Command::Thaw { proof, .. } => self.apply_thaw(replica, proof, effects),
            Command::BumpEpoch { epoch, .. } => self.apply_bump(replica, *epoch),
            Command::ChangeReplicas { .. } | Command::LeaveJoint | Command::Merge { .. } => {
                return Err(StateError::Io("applied elsewhere".to_owned()));
            }
            Command::Directory(command) => {
                let Some(directory) = self.directory.as_mut() else {
                    return Err(StateError::Io("a directory command outside the directory".to_owned()));
                };
                let response = directory.apply(command, state);
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

    fn apply_split(
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
        self.let_linger(replica.shard.id, &right);
        let epoch = Epoch(replica.shard.epoch.0 + 1);
        let right = ShardDescriptor {
            id: child,
            range: right,
            epoch,
            replicas: replica.shard.replicas.clone(),
            frozen: None,
            newest_replica: replica.shard.newest_replica,
            absorbed: Vec::new(),
        };
        replica.shard.range = left;
        replica.shard.epoch = epoch;
        replica.dirty = true;
        let left = replica.shard.clone();
        // Totals are estimated until somebody counts: counting here would stop the shard for as long as it takes.
        let (entities, bytes) = (replica.entities / 2, replica.bytes / 2);
        replica.entities -= entities;
        replica.bytes -= bytes;

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
                let mut meta = replica::first_meta(right.clone(), replica.shard_time_ms);
                meta.entities = entities;
                meta.bytes = bytes;
                self.add_replica(meta, id, orphan);
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
            right: right.clone(),
        }));
        Response::Split {
            left: Box::new(left),
            right: Box::new(right),
        }
    }

    /// The answer to a split that has happened already.
    pub(super) fn split_done(&self, left: &ShardDescriptor, at: &Position, child: ShardId) -> Option<Response> {
        let right = self.map.shard(child).filter(|right| right.range.start == *at)?;
        (left.range.end <= *at).then(|| Response::Split {
            left: Box::new(left.clone()),
            right: Box::new(right.clone()),
        })
    }

    // --- snapshots, checkpoints, stopping ----------------------------------------------------------------------

    fn start_snapshots(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let mut sending: usize = self.replicas.values().map(|replica| replica.sending.len()).sum();
        for replica in self.replicas.values_mut() {
            replica.allow_snapshots(sending < SNAPSHOTS_AT_ONCE);
            let before = replica.sending.len();
            replica.take_snapshots(now, effects);
            sending += replica.sending.len() - before;
        }
    }

    fn maybe_checkpoint(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let due = self.checkpoint_soon
            || now.since(self.last_checkpoint) >= self.config.checkpoint_every
            || self.log_bytes >= CHECKPOINT_BYTES;
        if due && !self.checkpoint_running {
            self.last_checkpoint = now;
            self.checkpoint_soon = false;
            self.checkpoint(effects);
        }
    }

    fn checkpoint(&mut self, effects: &mut Effects) {
        self.log_bytes = 0;
        let mut replicas = Vec::new();
        let mut again = Vec::new();
        for (absorber, _) in &self.absorbed_metas {
            if let Some(replica) = self.replicas.get_mut(absorber) {
                replica.dirty = true;
            }
        }
        for replica in self.replicas.values_mut().filter(|replica| !replica.is_installing()) {
            if replica.dirty {
                replica.dirty = false;
                replicas.push(replica.meta());
            }
            if replica.applied() == replica.applied_at_checkpoint {
                // Entries that don't get committed hold back the log: write them again, further on.
                again.extend(replica.unapplied());
            }
            replica.applied_at_checkpoint = replica.applied();
        }
        if !again.is_empty() {
            let seq = self.next_seq;
            self.next_seq = LogSeq(seq.0 + 1);
            effects.push(Effect::Persist {
                seq,
                batch: LogBatch { shards: again },
            });
        }
        // An absorbed copy's end is one transaction with its absorber's beginning.
        let saved: BTreeSet<ShardId> = replicas.iter().map(|meta: &ReplicaMeta| meta.shard.id).collect();
        let (with, rest) = std::mem::take(&mut self.absorbed_metas)
            .into_iter()
            .partition(|(absorber, _)| saved.contains(absorber));
        self.absorbed_metas = rest;
        let with: Vec<(ShardId, ReplicaMeta)> = with;
        replicas.extend(with.into_iter().map(|(_, meta)| meta));
        if !replicas.is_empty() {
            self.checkpoint_running = true;
            self.checkpointing = replicas.iter().map(|meta| meta.shard.id).collect();
            effects.push(Effect::Checkpoint { replicas });
        }
    }

    fn hand_over_leaderships(&mut self) {
        let alive = self.alive();
        for (&shard, replica) in self.replicas.iter_mut().filter(|(_, replica)| replica.is_leader()) {
            if let Some(successor) = replica.successor(&alive) {
                replica.transfer(successor.id);
                self.touched.insert(shard);
            }
        }
    }

    fn maybe_stop(&mut self, effects: &mut Effects) {
        let Some(since) = self.stopping else { return };
        let alive = self.alive();
        let leads = self
            .replicas
            .values()
            .any(|replica| replica.is_leader() && replica.successor(&alive).is_some());
        let busy = self.replicas.values().any(|replica| !replica.is_idle());
        let late = self.clock.now.since(since) > STOP_TIMEOUT;
        if (!leads && !busy) || late {
            self.stopped = true;
            effects.push(Effect::Stopped);
        }
    }

    fn halt(&mut self, reason: String, effects: &mut Effects) {
        self.stopped = true;
        effects.push(Effect::Halt { reason });
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
        self.clock.now + super::time::Span::millis(u64::from(timeout_ms.clamp(1, REQUEST_TIMEOUT_MS_MAX)))
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

/// Requests handed on by one peer that are told apart from a second copy. Unit: requests.
const FORWARDS_SEEN_MAX: usize = 4096;
const FORWARDS_OF_A_LIFE: u64 = 1 << 40;
const TICKS_AT_ONCE: u64 = 4;
const SETTLE_ROUNDS_MAX: u32 = 16;
const NEWS_MAX: usize = 256;
const SNAPSHOTS_AT_ONCE: usize = 4;
const REQUEST_TIMEOUT_MS_MAX: u32 = 60_000;
const EXPIRE_EVERY: super::time::Span = super::time::Span::millis(250);
const PROPOSE_AGAIN_AFTER: super::time::Span = super::time::Span::secs(3);
const SNAPSHOT_TIMEOUT: super::time::Span = super::time::Span::secs(60);
const STASH_FOR: super::time::Span = super::time::Span::secs(2);
const STOP_TIMEOUT: super::time::Span = super::time::Span::secs(3);
