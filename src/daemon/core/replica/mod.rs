//! One shard's copy on this node: the Raft crate's state machine, its log tail, and what waits on it.
//!
//! The crate elects leaders, replicates and commits. Ours is what it leaves to the driver: batching commands into
//! entries, what may leave before the disk has it, applying, reads, leases, snapshots and the jitter of elections.
//!
//! What may leave when, for each `Ready`:
//!
//! | before the sync | after the sync |
//! |---|---|
//! | a leader's appends and heartbeats (they claim nothing about its own disk) | everything a follower or candidate says |
//! | answers to clients: the entry is on a majority's disks already | the leader counting itself into the majority |
//!
//! One exception: while a change of term or vote is unsynced nothing leaves at all. A single voter becomes leader without
//! a synced term; its appends could reach a learner, a crash could forget the term, and the same term be used again.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use raft::eraftpb::{ConfChangeV2, ConfState, EntryType, HardState, MessageType, Snapshot};
use raft::{RawNode, StateRole};

use super::changes::Changes;
use super::command::Command;
use super::effect::{Effect, Effects};
use super::entity::machine::Context;
use super::event::Event;
use super::input::SessionId;
use super::limits::*;
use super::state::{LogSeq, ReplicaMeta, ShardWrite, StagedCopy};
use super::time::{Span, Time};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::message::{Message, RaftMessage, ShardLoad, SnapshotHeader, SnapshotManifest};
use crate::protocol::request::Request;
use crate::protocol::schema::bundle::{Bundle, Ruleset};
use crate::protocol::shard_clock::ShardClock;
use crate::protocol::shard_map::{ReplicaDescriptor, ReplicaRole, ShardDescriptor};

pub mod hibernate;
pub mod log_view;
pub mod samples;
pub mod standing;
#[cfg(test)]
mod tests;
use hibernate::Rest;
use log_view::LogView;
use samples::Samples;
use standing::Standing;

/// Index and term behind which a founder's or a split's log begins. Above 0, so that a replica that starts empty needs a
/// snapshot, and so learns who the members are.
pub const LOG_BASE: (u64, u64) = (1, 1);

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// A caller on this node.
    Client {
        /// Connection.
        session: SessionId,
        /// Request.
        tag: u64,
    },
    /// A peer that handed a request on.
    Peer {
        /// The peer.
        node: NodeId,
        /// Its name for the request.
        id: u64,
    },
    /// The directory leader's conductor, on this node.
    Conductor {
        /// Its name for the question.
        token: u64,
    },
    /// Another shard's leader, on this node or a peer, that sent messages between entities.
    Batch {
        /// Its node.
        node: NodeId,
        /// Its name for the batch.
        id: u64,
    },
    /// This node's dispatch of messages, which wants to be sure that it leads.
    Dispatch {
        /// The sending shard.
        shard: ShardId,
        /// The term in which it leads.
        term: u64,
    },
    /// Nobody: the node's own doing.
    Own,
}

/// An answer to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// For whom.
    pub waiter: Waiter,
    /// Until when.
    pub deadline: Time,
    /// The write asked for, to be named when its outcome is not known.
    pub id: RequestId,
}

/// A read that waits until the leader is sure to be one.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// For whom.
    pub waiting: Waiting,
    /// What is read.
    pub request: Request,
}

struct ReadRound {
    context: u64,
    started: Time,
    /// Set when a majority has confirmed the round: what must be applied first.
    index: Option<u64>,
    reads: Vec<Read>,
}

/// Messages that wait for a log write.
struct Held {
    seq: LogSeq,
    /// Raft's number of the ready, to be reported as persisted.
    number: u64,
    messages: Vec<raft::eraftpb::Message>,
}

/// A snapshot that has arrived and that Raft is asked about.
pub struct Incoming {
    /// What it is of.
    pub manifest: SnapshotManifest,
    /// Where its rows are.
    pub rows: StagedCopy,
    /// Raft's part.
    pub snapshot: (u64, u64),
    /// Metas of replicas that this one takes the place of.
    pub also: Vec<ReplicaMeta>,
    /// Their ranges.
    pub clear: Vec<KeyRange>,
}

/// A snapshot on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// Tells it from those before it.
    pub attempt: u64,
    /// When it was last heard to go on.
    pub moved: Time,
    /// How far it is. Unit: bytes.
    pub bytes: u64,
    /// How far it goes, as it looked at the start. Unit: bytes.
    pub total_bytes: u64,
}

/// Entries of one step of applying.
pub struct Committed {
    /// Index.
    pub index: u64,
    /// Term.
    pub term: u64,
    /// Command batch.
    pub data: bytes::Bytes,
    /// Where it changes who votes: Raft's part of it.
    pub config: Option<ConfChangeV2>,
}

/// One copy of one shard.
pub struct Replica {
    /// Range, epoch, members: as of the applied index.
    pub shard: ShardDescriptor,
    /// This copy's id.
    pub id: ReplicaId,
    node: NodeId,
    raft: RawNode<LogView>,
    seed: u64,
    /// The shard's own clock, as of what is applied.
    pub clock: ShardClock,
    /// What the shard's writes are judged by.
    pub schema: Bundle,
    /// `schema`, read when it is first needed.
    pub rules: Option<Arc<Ruleset>>,
    /// Entities in the shard.
    pub entities: u64,
    /// Bytes of keys and documents in the shard.
    pub bytes: u64,
    /// The shard's place in history, counted on over splits and merges, see `next_place`.
    pub history: u64,
    /// The latest changes of its entities.
    pub changes: Changes,
    /// Log writes up to here do not count for this replica.
    pub log_from: LogSeq,
    /// Something changed that a checkpoint should have.
    pub dirty: bool,
    /// Commands to be proposed when the step settles.
    queue: Vec<(Command, Waiting)>,
    /// Proposed, by index: the term they were proposed in, and when.
    proposed: BTreeMap<u64, (u64, Time, Vec<Waiting>)>,
    /// When the last entry was proposed, for the shard's clock.
    last_proposal: Option<(u64, Time)>,
    reads: Vec<Read>,
    round: Option<ReadRound>,
    next_context: u64,
    /// Until when reads need no round; only in `lease_term`.
    lease_until: Time,
    /// A term in which leadership was offered to somebody else has no leases: the offer may be taken up late.
    leaseless_term: u64,
    last_read: Time,
    held: VecDeque<Held>,
    /// A ready with this number changed term or vote; until it is synced nothing leaves.
    hold: u64,
    synced: u64,
    last_collected: u64,
    /// Set while a snapshot is written to disk: the number of its ready and what waits for it.
    installing: Option<(u64, u64, Vec<raft::eraftpb::Message>)>,
    /// A snapshot that Raft has been asked to take.
    pub incoming: Option<Incoming>,
    /// `MsgSnapshot`s whose rows are to be taken when the step has applied everything.
    outgoing: Vec<raft::eraftpb::Message>,
    attempts: u64,
    /// Snapshots under way.
    pub sending: BTreeMap<ReplicaId, Sending>,
    /// Snapshots under way or sent lately: replica, until when it may take to follow, as of which index. The log behind them is
    /// kept.
    following: BTreeMap<ReplicaId, (Time, u64)>,
    /// Most entries kept for followers that are behind.
    tail_max: usize,
    /// Who waits for a joint configuration to end.
    pub change_waiters: Vec<Waiting>,
    /// Set when an entry can't be applied because a merge's other half is not here: only a proof that this copy is not
    /// needed, or a snapshot after a restart, leads on from here.
    pub stalled: bool,
    /// What was found to be wrong with the rows, where something was.
    pub damage: Option<String>,
    /// The rows are known to be wrong: nothing is applied to them or read from them. The log is sound, and goes on.
    pub written_off: bool,
    /// What entries up to here say of the shard's shape (range, members, epoch, clock) has been done although the rows are
    /// written off and stay as of `applied`, from where on the log is kept. Other copies on this node are born of that, or
    /// taken over: after a restart they have to come about again, with all that was promised in their names.
    pub shaped: u64,
    /// For how many ticks a quarantined copy has left the election to others.
    held_back: u32,
    /// The shard's epoch as its leader knew it when it first spoke to this copy.
    pub made_at: Epoch,
    unsaved_commit: Option<HardState>,
    /// A shard was born of this one's log, or its replicas changed. Before the child's first log write is on disk, so must be that the split is
    /// committed: or after a crash this copy could get a snapshot from behind the split instead of making the child
    /// again, and what the child has promised would be lost.
    pub must_keep_commit: bool,
    /// The log write that says that the latest change of the replicas is committed. Until it is on disk nobody may act on
    /// the change as on a fact: after a crash this copy might need those again whom the change removed.
    pub kept_in: LogSeq,
    told: (StateRole, u64, u64),
    /// Requests served since the last count, and per second before that.
    pub served: u64,
    /// See `served`.
    pub requests_per_s: u64,
    /// Keys that were asked for lately.
    pub samples: Samples,
    /// Applied index at the last checkpoint, for entries that hold back the log.
    pub applied_at_checkpoint: u64,
    /// Nodes of replicas that spoke to this one and that its descriptor does not name (yet).
    correspondents: BTreeMap<ReplicaId, NodeId>,
    standing: Standing,
    rest: Rest,
}

impl Replica {
    /// A replica as its meta and log say.
    pub fn new(meta: &ReplicaMeta, log: LogView, id: ReplicaId, node: NodeId, seed: u64) -> Self {
        let applied = log.applied.0;
        let config = raft::Config {
            id: id.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_APPENDS_MAX,
            check_quorum: true,
            pre_vote: true,
            // The crate draws from the thread's generator; `draw_election_timeout` overrides that after every step.
            min_election_tick: ELECTION_TICKS_MIN,
            // Longer than any draw: see `be_patient`.
            max_election_tick: 2 * ELECTION_TICKS_MAX,
            read_only_option: raft::ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: false,
            priority: 0,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: APPLY_BYTES_MAX,
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config, log, &logger).expect("the configuration is constant and valid");
        let mut replica = Self {
            shard: meta.shard.clone(),
            id,
            node,
            raft,
            seed,
            clock: meta.clock.clone(),
            schema: meta.schema.clone(),
            rules: None,
            entities: meta.entities,
            bytes: meta.bytes,
            history: meta.history,
            changes: Changes::behind(meta.history),
            log_from: meta.log_from,
            dirty: true,
            queue: Vec::new(),
            proposed: BTreeMap::new(),
            last_proposal: None,
            reads: Vec::new(),
            round: None,
            next_context: 1,
            lease_until: Time(0),
            leaseless_term: 0,
            last_read: Time(0),
            held: VecDeque::new(),
            hold: 0,
            synced: 0,
            last_collected: 0,
            installing: None,
            incoming: None,
            outgoing: Vec::new(),
            attempts: 0,
            sending: BTreeMap::new(),
            following: BTreeMap::new(),
            tail_max: LOG_TAIL_ENTRIES_MAX,
            change_waiters: Vec::new(),
            stalled: false,
            damage: None,
            written_off: meta.written_off,
            shaped: meta.shaped,
            held_back: 0,
            made_at: Epoch(0),
            unsaved_commit: None,
            must_keep_commit: false,
            kept_in: LogSeq(0),
            told: (StateRole::Follower, 0, 0),
            served: 0,
            requests_per_s: 0,
            samples: Samples::default(),
            applied_at_checkpoint: applied,
            correspondents: BTreeMap::new(),
            standing: Standing::default(),
            rest: Rest::default(),
        };
        replica.draw_election_timeout();
        replica
    }

    /// From here on the shard's writes are judged by this.
    pub fn take_schema(&mut self, schema: Bundle) {
        if schema != self.schema {
            self.schema = schema;
            self.rules = None;
            self.dirty = true;
        }
    }

    /// Whether this copy knows its range: not yet when it was made by a peer's message and waits for a snapshot.
    pub fn is_initialized(&self) -> bool {
        self.shard.epoch > Epoch(0)
    }

    /// The place in history of a command that may change an entity. It counts whether the entity changes or not: the log alone
    /// must decide, since after a restart a parent's log may be applied again over rows that its child got by a snapshot, and
    /// then changes nothing.
    pub fn next_place(&mut self) -> u64 {
        self.history += 1;
        self.history
    }

    /// What a change of this entity finds around it, in an entry with this wall clock; it gets the next place.
    pub fn context(&mut self, entity: &Position, wall_ms: u64) -> Context {
        Context {
            shard: self.shard.id,
            wall_ms,
            shard_time_ms: self.clock.at(entity),
            change_at: self.next_place(),
        }
    }

    /// Whether this copy leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// Raft's role.
    pub fn role(&self) -> StateRole {
        self.raft.raft.state
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.raft.raft.term
    }

    /// Whom this copy voted for in its term; 0 for nobody.
    pub fn vote(&self) -> u64 {
        self.raft.raft.vote
    }

    /// Log tail and hard state.
    pub fn log(&self) -> &LogView {
        self.raft.store()
    }

    /// Committed index, as this copy knows.
    pub fn committed(&self) -> u64 {
        self.raft.raft.raft_log.committed
    }

    /// Last index in the log, the unsynced included.
    pub fn last_index(&self) -> u64 {
        self.raft.raft.raft_log.last_index()
    }

    /// Index up to which this copy has applied.
    pub fn applied(&self) -> u64 {
        self.log().applied.0
    }

    /// The node that leads, as this copy knows.
    pub fn leader(&self) -> Option<NodeId> {
        let id = self.raft.raft.leader_id;
        self.shard.replica(ReplicaId(id)).map(|replica| replica.node)
    }

    /// How this copy stands in the shard.
    pub fn descriptor(&self) -> ReplicaDescriptor {
        let learner = ReplicaDescriptor {
            node: self.node,
            id: self.id,
            role: ReplicaRole::Learner,
        };
        self.shard.replica(self.id).copied().unwrap_or(learner)
    }

    /// Followers and how far their logs match; only a leader knows.
    pub fn matched(&self) -> Vec<(NodeId, u64)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let progress = self.raft.raft.prs();
        let of = |replica: &ReplicaDescriptor| Some((replica.node, progress.get(replica.id.0)?.matched));
        self.shard.replicas.iter().filter_map(of).collect()
    }

    /// How much there is of the shard; a leader knows who is behind.
    pub fn load(&self, alive: &BTreeSet<NodeId>) -> ShardLoad {
        let progress = self.raft.raft.prs();
        let last = self.last_index();
        let behind = self.shard.replicas.iter().filter(|replica| {
            let matched = progress.get(replica.id.0).map_or(0, |progress| progress.matched);
            replica.id != self.id && (!alive.contains(&replica.node) || matched + CAUGHT_UP_WITHIN < last)
        });
        ShardLoad {
            shard: self.shard.id,
            bytes: self.bytes,
            entities: self.entities,
            requests_per_s: self.requests_per_s,
            behind: behind.map(|replica| replica.id).collect(),
        }
    }

    /// Commands and reads that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.reads.len() + self.proposed.len()
    }

    /// What a checkpoint keeps of this replica.
    pub fn meta(&self) -> ReplicaMeta {
        let log = self.log();
        let mut hard_state = self.raft.raft.hard_state();
        // The state file may be synced before the log: it must not call committed what the log may still replace. After
        // a crash an older entry could lie at that index.
        let persisted = self.raft.raft.raft_log.persisted;
        hard_state.commit = hard_state.commit.min(persisted).max(log.applied.0);
        ReplicaMeta {
            replica: self.id,
            shard: self.shard.clone(),
            conf_state: log.conf_state.clone(),
            hard_state,
            applied: log.applied.0,
            applied_term: log.applied.1,
            log_from: self.log_from,
            clock: self.clock.clone(),
            entities: self.entities,
            bytes: self.bytes,
            written_off: self.written_off,
            shaped: self.shaped,
            schema: self.schema.clone(),
            history: self.history,
            destroyed: false,
        }
    }

    /// Whether this copy must not be asked: the shard's log says so, or its rows are written off.
    pub fn is_quarantined(&self) -> bool {
        self.written_off || self.shard.is_quarantined(self.id)
    }

    /// Whether a snapshot is being written: the replica does nothing until it is.
    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Stops what a snapshot still on its way to disk would replace: see `installed`.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.installing.is_none()
    }

    /// Raft's clock moves.
    pub fn tick(&mut self, now: Time) {
        if !self.rest_tick() {
            return;
        }
        // A voter that is alone must not become leader before its log is synced (the crate asserts it).
        let alone_and_unsynced = self.log().conf_state.voters.len() == 1 && !self.is_idle();
        if self.installing.is_some() || alone_and_unsynced || self.stalled {
            return;
        }
        self.hold_back();
        self.raft.tick();
        self.draw_election_timeout();
        // Renew the lease ahead of time while there are readers, so that they never wait for a round.
        let read_lately = now.since(self.last_read) < Span::secs(1);
        if self.is_leader()
            && read_lately
            && self.round.is_none()
            && self.leases()
            && now + LEASE_RENEW > self.lease_until
        {
            self.start_round(now);
        }
        let stuck = self
            .round
            .as_ref()
            .is_some_and(|r| r.index.is_none() && now.since(r.started) > ROUND_TIMEOUT);
        if stuck {
            // Its heartbeats or answers were lost: begin again with a fresh context.
            if let Some(round) = self.round.take() {
                self.reads.splice(0..0, round.reads);
            }
        }
    }

    /// A quarantined copy stands for election only when nobody else has come forward for long: its log may hold what no
    /// other voter that is up has, and then it leads to hand that over. It votes as ever.
    fn hold_back(&mut self) {
        if !self.is_quarantined() || self.is_leader() || self.raft.raft.election_elapsed < ELECTION_TICKS {
            self.held_back = 0;
        } else if self.held_back < QUARANTINED_WAITS {
            self.held_back += 1;
            self.raft.raft.election_elapsed = ELECTION_TICKS - 1;
        }
    }

    /// A message from another replica of the shard. The error says why it was dropped.
    pub fn receive(&mut self, node: NodeId, message: raft::eraftpb::Message) -> Result<(), &'static str> {
        if self.shard.replica(ReplicaId(message.from)).is_none() {
            self.correspondents.insert(ReplicaId(message.from), node);
            while self.correspondents.len() > CORRESPONDENTS_MAX {
                self.correspondents.pop_first();
            }
        }
        if self.installing.is_some() || self.incoming.is_some() {
            return Err("a snapshot is being installed");
        }
        if self.stalled {
            return Err("the replica can't go on");
        }
        match message.msg_type {
            MessageType::MsgAppend if self.written_off && self.last_index() - self.applied() > self.tail_max as u64 => {
                return Err("a replica that applies nothing holds as much of the log as it may");
            }
            MessageType::MsgAppend => {
                let contiguous = message
                    .entries
                    .iter()
                    .zip(message.index + 1..)
                    .all(|(entry, index)| entry.index == index);
                if !contiguous {
                    return Err("entries are not contiguous");
                }
            }
            MessageType::MsgHeartbeat if message.commit > self.last_index() => {
                // The leader remembers more of this replica's log than there is: the disk lost what it promised.
                return Err("the leader remembers a longer log than this replica has");
            }
            MessageType::MsgSnapshot => return Err("a snapshot outside its stream"),
            _ => {}
        }
        match message.msg_type {
            MessageType::MsgHeartbeat => self.wake(false),
            // It may be as late as it likes.
            MessageType::MsgHeartbeatResponse => {}
            _ => self.stir(),
        }
        if matches!(message.msg_type, MessageType::MsgHeartbeat | MessageType::MsgAppend) {
            self.rest.patience = 0;
        }
        let result = self.raft.step(message);
        self.draw_election_timeout();
        // Errors here are late messages to a candidate or proposals without a leader: nothing to do about them.
        result.map_err(|_| "raft refused it")
    }

    /// A snapshot has arrived whole.
    pub fn offer_snapshot(&mut self, node: NodeId, message: raft::eraftpb::Message, incoming: Incoming) {
        self.correspondents.insert(ReplicaId(message.from), node);
        self.incoming = Some(incoming);
        self.stir();
        let _ = self.raft.step(message);
        self.draw_election_timeout();
    }

    /// Queues a command for the next entry.
    pub fn propose(&mut self, command: Command, waiting: Waiting) {
        self.serve();
        self.queue.push((command, waiting));
    }

    /// A read at the leader: answered at once where the lease allows (`Ok` with the lease's end), or queued.
    pub fn read(&mut self, now: Time, lease_allowed: bool, read: Read) -> Option<(Read, Time)> {
        self.serve();
        // Whoever waits for changes asks again and again, and can wait for a round: no lease is kept up for it.
        if !matches!(read.request, Request::Changes { .. }) {
            self.last_read = now;
        }
        if lease_allowed && self.leases() && now < self.lease_until {
            return Some((read, self.lease_until));
        }
        self.reads.push(read);
        None
    }

    /// Asks another voter to take over. From here on this term has no leases.
    pub fn transfer(&mut self, to: ReplicaId) {
        self.stir();
        self.leaseless_term = self.term();
        self.lease_until = Time(0);
        self.raft.transfer_leader(to.0);
    }

    /// Whether another voter has been asked to take over and has not done so yet.
    pub fn is_handing_over(&self) -> bool {
        self.raft.raft.lead_transferee.is_some()
    }

    /// The voter best suited to take over: alive and furthest along.
    pub fn successor(&self, alive: &BTreeSet<NodeId>) -> Option<ReplicaDescriptor> {
        let matched: BTreeMap<NodeId, u64> = self.matched().into_iter().collect();
        let candidates = self.shard.replicas.iter().filter(|replica| {
            let stays = matches!(replica.role, ReplicaRole::Voter | ReplicaRole::Incoming);
            let is_sound = !self.shard.is_quarantined(replica.id);
            replica.node != self.node && stays && is_sound && alive.contains(&replica.node)
        });
        candidates
            .max_by_key(|replica| (matched.get(&replica.node).copied(), std::cmp::Reverse(replica.id)))
            .copied()
    }

    /// Starts an election without waiting for a timeout: the leader of a split's parent does, for the child. Nothing happens
    /// where this copy does not vote: the crate would let it be elected (by voters that do not know yet), and then panic.
    pub fn campaign(&mut self) {
        if !self.raft.raft.promotable() {
            return;
        }
        self.stir();
        let _ = self.raft.campaign();
        self.draw_election_timeout();
    }

    /// How a snapshot to a replica ended.
    pub fn snapshot_sent(&mut self, to: ReplicaId, delivered: bool, now: Time) {
        if let Some(sending) = self.sending.remove(&to) {
            // From now on, however long the sending took: it has yet to be installed, which takes longer the more there is.
            let installing = Span::millis(sending.total_bytes / INSTALL_BYTES_PER_MS);
            if let Some((until, _)) = self.following.get_mut(&to) {
                *until = now + FOLLOW_SNAPSHOT_WITHIN + installing;
            }
            self.stir();
            let status = if delivered {
                raft::SnapshotStatus::Finish
            } else {
                raft::SnapshotStatus::Failure
            };
            self.raft.report_snapshot(to.0, status);
        }
    }

    /// A snapshot goes on.
    pub fn snapshot_progress(&mut self, to: ReplicaId, attempt: u64, now: Time, bytes: u64) {
        if let Some(sending) = self.sending.get_mut(&to).filter(|sending| sending.attempt == attempt) {
            sending.moved = now;
            sending.bytes = bytes;
        }
    }

    /// Raft is told that a peer can't be reached.
    pub fn unreachable(&mut self, node: NodeId) {
        if let (true, Some(replica)) = (self.is_leader(), self.shard.replica_on(node)) {
            let id = replica.id.0;
            self.raft.report_unreachable(id);
        }
    }

    /// Allows or forbids new snapshots.
    pub fn allow_snapshots(&mut self, allowed: bool) {
        self.raft.mut_store().snapshots_allowed = allowed && !self.written_off;
    }

    /// Log writes up to `seq` are synced: what waited for them may leave.
    pub fn persisted(&mut self, seq: LogSeq, out: &mut Effects) {
        while self.held.front().is_some_and(|held| held.seq <= seq) {
            let Some(held) = self.held.pop_front() else { break };
            self.synced = self.synced.max(held.number);
            self.raft.on_persist_ready(held.number);
            self.send(held.messages, out);
        }
    }

    /// The snapshot is on disk.
    pub fn installed(&mut self, out: &mut Effects) {
        if let Some((number, index, messages)) = self.installing.take() {
            self.synced = self.synced.max(number);
            self.raft.on_persist_ready(number);
            self.raft.advance_apply_to(index);
            self.send(messages, out);
        }
    }

    /// Whether `collect` has something to do.
    pub fn has_work(&self) -> bool {
        self.installing.is_none()
            && !self.stalled
            && (!self.queue.is_empty() || self.can_move_reads() || self.raft.has_ready())
    }

    /// Whether waiting reads can start a round or be refused. A new leader's reads wait for its first commit: until then
    /// there is nothing to do for them, and claiming otherwise would keep the node spinning.
    fn can_move_reads(&self) -> bool {
        !self.reads.is_empty() && self.round.is_none() && (!self.is_leader() || self.raft.raft.commit_to_current_term())
    }

    /// Turns queued commands into entries and queued reads into a round.
    pub fn propose_queued(&mut self, now: Time, wall_ms: u64, failed: &mut Vec<(Waiting, WireError)>) {
        if !self.queue.is_empty() {
            self.propose_commands(now, wall_ms, failed);
        }
        if !self.reads.is_empty() && self.round.is_none() {
            if self.is_leader() {
                if self.raft.raft.commit_to_current_term() {
                    self.start_round(now);
                }
            } else {
                failed.extend(self.reads.drain(..).map(|read| (read.waiting, not_leader())));
            }
        }
    }

    fn propose_commands(&mut self, now: Time, wall_ms: u64, failed: &mut Vec<(Waiting, WireError)>) {
        let term = self.term();
        let mut queue = std::mem::take(&mut self.queue).into_iter().peekable();
        if !self.is_leader() {
            failed.extend(queue.map(|(_, waiting)| (waiting, not_leader())));
            return;
        }
        while queue.peek().is_some() {
            let (mut commands, mut waiters, mut size) = (Vec::new(), Vec::new(), 0);
            let mut conf_change = None;
            while let Some((command, _)) = queue.peek() {
                size += command.size();
                let change = command.conf_change();
                if !commands.is_empty() && (size > ENTRY_BYTES_MAX / 2 || change.is_some()) {
                    break;
                }
                let Some((command, waiting)) = queue.next() else { break };
                commands.push(command);
                waiters.push(waiting);
                if change.is_some() {
                    // Raft has a kind of entry of its own for these, one change in each.
                    conf_change = change;
                    break;
                }
            }
            if conf_change.is_some() && self.has_pending_change() {
                // Raft would put an empty entry in its place.
                failed.extend(
                    waiters
                        .into_iter()
                        .map(|waiting| (waiting, change_pending(self.shard.id))),
                );
                continue;
            }
            let elapsed_ms = match self.last_proposal {
                Some((in_term, at)) if in_term == term => now.since(at).as_millis(),
                _ => 0,
            };
            let payload = super::command::Payload {
                elapsed_ms,
                wall_ms,
                commands,
            };
            let entry = match conf_change {
                None => raft::eraftpb::Entry {
                    data: payload.encode(),
                    ..Default::default()
                },
                Some(change) => raft::eraftpb::Entry {
                    entry_type: EntryType::EntryConfChangeV2,
                    data: change.encode().expect("a few numbers are encoded").into(),
                    context: payload.encode(),
                    ..Default::default()
                },
            };
            let proposal = raft::eraftpb::Message {
                msg_type: MessageType::MsgPropose,
                from: self.id.0,
                entries: vec![entry],
                ..Default::default()
            };
            match self.raft.raft.step(proposal) {
                Ok(()) => {
                    // Whole milliseconds only: the rest counts with the next entry.
                    let counted = match self.last_proposal {
                        Some((in_term, at)) if in_term == term => at + Span::millis(elapsed_ms),
                        _ => now,
                    };
                    self.last_proposal = Some((term, counted));
                    self.proposed.insert(self.last_index(), (term, now, waiters));
                }
                Err(_) => failed.extend(waiters.into_iter().map(|waiting| (waiting, not_leader()))),
            }
        }
    }

    /// Time counts from the moment in which this copy became leader: entries of leaders before it are older.
    pub fn lead_from(&mut self, now: Time) {
        let term = self.term();
        if self.is_leader() && self.last_proposal.is_none_or(|(in_term, _)| in_term != term) {
            self.last_proposal = Some((term, now));
        }
    }

    /// The shard's clock, if its leader proposed an entry now (or a little less: what it has proposed and not applied does
    /// not count), and how much of that no entry has booked.
    pub fn clock_now(&self, now: Time) -> (u64, Span) {
        let unbooked = match self.last_proposal {
            Some((in_term, at)) if in_term == self.term() => now.since(at),
            _ => Span(0),
        };
        (self.clock.now_ms() + unbooked.as_millis(), unbooked)
    }

    /// Takes one `Ready` from Raft: its part of the log write, what may leave at once; what must wait is kept under `seq`.
    /// Returns committed entries to apply. Call again while `has_ready`.
    pub fn collect(&mut self, seq: LogSeq, write: &mut Option<ShardWrite>, out: &mut Effects) -> Vec<Committed> {
        if self.installing.is_some() || !self.raft.has_ready() {
            return Vec::new();
        }
        let mut ready = self.raft.ready();
        let number = ready.number();
        self.last_collected = number;
        if let Some(hard_state) = ready.hs() {
            let known = &self.raft.store().hard_state;
            if (hard_state.term, hard_state.vote) != (known.term, known.vote) {
                self.hold = number;
            }
        }
        let hard_state = ready.hs().cloned();
        let must_sync = ready.must_sync();
        if let Some(hard_state) = hard_state {
            self.raft.mut_store().hard_state = hard_state.clone();
            self.unsaved_commit = Some(hard_state);
            self.dirty = true;
        }
        for state in ready.take_read_states() {
            let context = state
                .request_ctx
                .get(..8)
                .and_then(|b| b.try_into().ok())
                .map(u64::from_be_bytes);
            if let Some(round) = self.round.as_mut().filter(|round| Some(round.context) == context) {
                round.index = Some(state.index);
            }
        }
        let mut now_messages = ready.take_messages();
        let mut late = ready.take_persisted_messages();

        if ready.snapshot().metadata.index > 0 {
            self.take_snapshot(&mut ready, number, now_messages, late, out);
            return Vec::new();
        }

        let entries = ready.take_entries();
        if !entries.is_empty() {
            let appended = self.raft.mut_store().append(&entries);
            assert!(
                appended,
                "{}: raft gave entries from {} behind {}",
                self.shard.id,
                entries[0].index,
                self.log().last()
            );
        }
        if must_sync {
            let write = write.get_or_insert_with(|| ShardWrite {
                shard: self.shard.id,
                hard_state: None,
                entries: Vec::new(),
                complete: false,
            });
            write.hard_state = self.unsaved_commit.take().or(write.hard_state.take());
            if let Some(front) = entries.first() {
                write.entries.retain(|entry| entry.index < front.index);
                write.entries.extend(entries);
            }
        }
        let committed = ready
            .take_committed_entries()
            .into_iter()
            .map(|entry| match entry.entry_type {
                EntryType::EntryNormal => Committed {
                    index: entry.index,
                    term: entry.term,
                    config: None,
                    data: entry.data,
                },
                _ => Committed {
                    index: entry.index,
                    term: entry.term,
                    // Raft itself has read it when it was proposed.
                    config: Some(ConfChangeV2::decode(&entry.data).unwrap_or_default()),
                    data: entry.context,
                },
            })
            .collect();

        if self.hold > self.synced {
            late.splice(0..0, now_messages.drain(..));
        }
        self.send(now_messages, out);
        self.raft.advance_append_async(ready);
        // A ready without anything to sync waits for those before it, or for nothing.
        let waits_for = if must_sync {
            Some(seq)
        } else {
            self.held.back().map(|held| held.seq)
        };
        match waits_for {
            Some(seq) => self.held.push_back(Held {
                seq,
                number,
                messages: late,
            }),
            None => {
                self.synced = self.synced.max(number);
                self.raft.on_persist_ready(number);
                self.send(late, out);
            }
        }
        committed
    }

    fn take_snapshot(
        &mut self,
        ready: &mut raft::Ready,
        number: u64,
        mut messages: Vec<raft::eraftpb::Message>,
        late: Vec<raft::eraftpb::Message>,
        out: &mut Effects,
    ) {
        let snapshot: Snapshot = ready.snapshot().clone();
        let incoming = self
            .incoming
            .take()
            .expect("raft has a snapshot only after one was offered");
        let (index, term) = (snapshot.metadata.index, snapshot.metadata.term);
        assert_eq!(
            incoming.snapshot,
            (index, term),
            "raft took the snapshot that was offered"
        );
        assert!(
            ready.entries().is_empty(),
            "nothing is stepped behind a snapshot before it is collected"
        );
        let before = self.shard.range.clone();
        self.raft
            .mut_store()
            .reset((index, term), snapshot.metadata.conf_state.clone());
        self.shard = incoming.manifest.shard;
        self.clock = incoming.manifest.clock;
        self.entities = incoming.manifest.entities;
        self.bytes = incoming.manifest.bytes;
        self.take_schema(incoming.manifest.schema);
        self.history = incoming.manifest.history;
        self.changes = Changes::behind(self.history);
        self.unsaved_commit = None;
        self.dirty = true;
        (self.damage, self.written_off, self.shaped) = (None, false, 0);
        let mut clear = incoming.clear;
        clear.push(self.shard.range.clone());
        if !before.start.0.is_empty() && before != self.shard.range {
            clear.push(before);
        }
        messages.extend(late);
        self.installing = Some((number, index, messages));
        out.push(Effect::Event(Event::SnapshotInstalled {
            shard: self.shard.id,
            index,
            rows: incoming.rows.rows,
        }));
        out.push(Effect::Install(Box::new(super::state::Install {
            meta: self.meta(),
            also: incoming.also,
            clear,
            rows: Some(incoming.rows),
        })));
        let ready = std::mem::take(ready);
        self.raft.advance_append_async(ready);
    }

    /// Says that entries up to `index` are applied; to the shape alone, where the rows are written off.
    pub fn set_applied(&mut self, index: u64, term: u64) {
        if self.written_off {
            self.shaped = index;
        } else {
            self.raft.mut_store().applied = (index, term);
        }
        self.dirty = true;
    }

    /// Up to where entries are applied, to the shape at least.
    pub fn reached(&self) -> u64 {
        self.applied().max(self.shaped)
    }

    /// Whether entries that are known to be committed are still to be applied. Other copies may have to be born of them.
    pub fn is_behind_its_log(&self) -> bool {
        !self.stalled && self.reached() < self.committed()
    }

    /// Tells Raft how far entries are applied, and lets old ones go.
    pub fn finish_applying(&mut self) {
        let applied = self.log().applied.0;
        let log = &self.raft.raft.raft_log;
        // After a restart the shape may be ahead of what Raft has given out again.
        let reached = self.reached().min(log.committed).min(log.persisted);
        self.raft.advance_apply_to(reached);
        // A follower that is further behind than the tail's bounds gets a snapshot: it must not hold the memory. But one
        // that is getting a snapshot must be able to follow from there.
        let progress = self.raft.raft.prs();
        self.following.retain(|id, &mut (_, index)| {
            // What it has installed is as old as the snapshot: it needs all that came since.
            let follows = |matched: u64| matched >= index && matched + CAUGHT_UP_WITHIN >= applied;
            let caught_up = progress.get(id.0).is_none_or(|progress| follows(progress.matched));
            !caught_up || self.sending.contains_key(id)
        });
        let reached = |(id, &(_, index)): (&ReplicaId, &(Time, u64))| {
            let matched = progress.get(id.0).map_or(0, |progress| progress.matched);
            matched.max(index)
        };
        let needed = self.following.iter().map(reached).min();
        let keep_from = needed.unwrap_or(applied).min(applied);
        self.raft.mut_store().compact(keep_from, self.tail_max);
    }

    /// Writes the commit along with this step's log write, where something depends on it.
    pub fn keep_commit(&mut self, seq: LogSeq, write: &mut Option<ShardWrite>) {
        if !std::mem::take(&mut self.must_keep_commit) {
            return;
        }
        let is_written = self.unsaved_commit.is_none() && write.is_none();
        self.kept_in = if is_written { LogSeq(seq.0 - 1) } else { seq };
        if let Some(hard_state) = self.unsaved_commit.take() {
            let write = write.get_or_insert_with(|| ShardWrite {
                shard: self.shard.id,
                hard_state: None,
                entries: Vec::new(),
                complete: false,
            });
            write.hard_state = Some(hard_state);
        }
    }

    /// Forgets snapshots whose receivers had time enough to follow.
    pub fn forget_followers(&mut self, now: Time) {
        let sending = &self.sending;
        self.following
            .retain(|id, &mut (until, _)| sending.contains_key(id) || now <= until);
    }

    /// Whether a change of the replicas is proposed and not applied, as far as the leader knows.
    pub fn has_pending_change(&self) -> bool {
        self.raft.raft.has_pending_conf() || self.queue.iter().any(|(command, _)| command.conf_change().is_some())
    }

    /// Whether this leader has to end a joint configuration.
    pub fn should_leave_joint(&self) -> bool {
        self.is_leader() && self.shard.is_joint() && !self.has_pending_change()
    }

    /// How far a replica is behind the commit, as the leader knows; `None` for one that does not follow: nothing was heard
    /// of it in this term, or it needs or is getting a snapshot. (In a young shard that is not far behind.)
    pub fn lag(&self, id: ReplicaId) -> Option<u64> {
        if id == self.id {
            return Some(0);
        }
        let progress = self.raft.raft.prs().get(id.0)?;
        // Probing counts: in an idle shard a follower whose connection was lost for a moment is probed until the next write.
        let follows = progress.matched > 0 && progress.state != raft::ProgressState::Snapshot;
        follows.then(|| self.committed().saturating_sub(progress.matched))
    }

    /// Applies a change of who votes. The error is the same on every replica.
    pub fn apply_conf_change(&mut self, entry: &Committed, change: &ConfChangeV2) -> Result<ConfState, String> {
        // Raft may ask for a snapshot on the way, which must not be older than what is applied.
        self.set_applied(entry.index, entry.term);
        let state = self.raft.apply_conf_change(change).map_err(|error| error.to_string())?;
        self.raft.mut_store().conf_state = state.clone();
        if self.raft.raft.state != StateRole::Follower && !self.raft.raft.promotable() {
            // The crate would go on leading, or be elected, and panic.
            let term = self.term();
            self.raft.raft.become_follower(term, raft::INVALID_ID);
        }
        self.draw_election_timeout();
        Ok(state)
    }

    /// Takes in a descriptor with other replicas.
    pub fn set_shard(&mut self, shard: ShardDescriptor) {
        self.shard = shard;
        self.dirty = true;
        let shard = &self.shard;
        self.sending.retain(|&id, _| shard.replica(id).is_some());
        self.draw_election_timeout();
    }

    /// Somebody else's log proves that entries up to `index` are committed. False where they are not here.
    pub fn prove_committed(&mut self, index: u64) -> bool {
        if self.last_index() < index || self.installing.is_some() {
            return false;
        }
        self.raft.raft.raft_log.commit_to(index);
        true
    }

    /// Whether the log, or what was applied of it, has this entry.
    pub fn has_entry(&self, index: u64, term: u64) -> bool {
        self.log().term_at(index) == Some(term)
    }

    /// Whether the log reaches as far as a snapshot as of this entry: Raft takes none then, and only notes what is committed.
    pub fn has_all_of(&self, index: u64, term: u64) -> bool {
        let log = &self.raft.raft.raft_log;
        index < log.committed || log.match_term(index, term)
    }

    /// Everybody who waits here: those for whom nothing was done, and those whose outcome is not known.
    pub fn take_waiting(&mut self) -> (Vec<Waiting>, Vec<Waiting>) {
        let mut harmless: Vec<Waiting> = self.queue.drain(..).map(|(_, waiting)| waiting).collect();
        harmless.extend(self.reads.drain(..).map(|read| read.waiting));
        harmless.extend(
            self.round
                .take()
                .into_iter()
                .flat_map(|round| round.reads)
                .map(|read| read.waiting),
        );
        let mut unknown: Vec<Waiting> = std::mem::take(&mut self.proposed)
            .into_values()
            .flat_map(|(_, _, waiters)| waiters)
            .collect();
        unknown.append(&mut self.change_waiters);
        (harmless, unknown)
    }

    /// Keeps at most so many entries for followers that are behind.
    pub fn set_tail(&mut self, entries: usize) {
        self.tail_max = entries;
    }

    /// Who waited for the entry at `index`: those whose entry this is, with when it was proposed, and those whose entry lost its place to it.
    pub fn take_proposed(&mut self, index: u64, term: u64) -> (Option<(Time, Vec<Waiting>)>, Vec<Waiting>) {
        let (mut ours, mut lost) = (None, Vec::new());
        while let Some(front) = self.proposed.first_entry().filter(|front| *front.key() <= index) {
            let at = *front.key();
            let (proposed_in, proposed_at, waiters) = front.remove();
            if at == index && proposed_in == term {
                ours = Some((proposed_at, waiters));
            } else {
                lost.extend(waiters);
            }
        }
        (ours, lost)
    }

    /// Reads whose round is confirmed and whose index is applied. The round also gives a lease from its start.
    pub fn take_reads(&mut self) -> Vec<Read> {
        let applied = self.applied();
        let Some(round) = self
            .round
            .take_if(|round| round.index.is_some_and(|index| index <= applied))
        else {
            return Vec::new();
        };
        if self.leases() {
            self.lease_until = self.lease_until.max(round.started + LEASE);
        }
        round.reads
    }

    /// Requests that can't be answered here any more because another replica leads.
    pub fn take_orphaned_reads(&mut self) -> Vec<Read> {
        if self.is_leader() {
            return Vec::new();
        }
        let mut reads = std::mem::take(&mut self.reads);
        if let Some(round) = self.round.take() {
            reads.extend(round.reads);
        }
        reads
    }

    /// Waiters whose time is up: reads and queued commands that did nothing, and writes whose outcome is not known.
    pub fn take_expired(&mut self, now: Time) -> (Vec<Waiting>, Vec<Waiting>) {
        let (mut harmless, mut unknown) = (Vec::new(), Vec::new());
        let late = |waiting: &Waiting| waiting.deadline <= now;
        self.reads.retain(|read| {
            let expired = late(&read.waiting);
            harmless.extend(expired.then_some(read.waiting));
            !expired
        });
        if let Some(round) = &mut self.round {
            round.reads.retain(|read| {
                let expired = late(&read.waiting);
                harmless.extend(expired.then_some(read.waiting));
                !expired
            });
        }
        self.change_waiters.retain(|waiting| {
            unknown.extend(late(waiting).then_some(*waiting));
            !late(waiting)
        });
        self.proposed.retain(|_, (_, _, waiters)| {
            // Answered waiters leave a placeholder: positions in the batch must stay.
            for waiting in waiters
                .iter_mut()
                .filter(|waiting| late(waiting) && waiting.waiter != Waiter::Own)
            {
                unknown.push(*waiting);
                waiting.waiter = Waiter::Own;
            }
            waiters
                .iter()
                .any(|waiting| waiting.waiter != Waiter::Own || !late(waiting))
        });
        (harmless, unknown)
    }

    /// `MsgSnapshot`s that are due, brought to the state of this moment.
    pub fn take_snapshots(&mut self, now: Time, out: &mut Effects) {
        for mut message in std::mem::take(&mut self.outgoing) {
            let to = ReplicaId(message.to);
            let Some(target) = self.shard.replica(to).copied() else {
                continue;
            };
            if !self.is_leader() || self.sending.contains_key(&to) {
                continue;
            }
            if self.written_off {
                // Nobody must have these rows. Whoever leads next sends them.
                self.raft.report_snapshot(to.0, raft::SnapshotStatus::Failure);
                continue;
            }
            let manifest = SnapshotManifest {
                shard: self.shard.clone(),
                clock: self.clock.clone(),
                entities: self.entities,
                bytes: self.bytes,
                schema: self.schema.clone(),
                history: self.history,
            };
            let log = self.log();
            let snapshot = Snapshot {
                data: crate::protocol::codec::encode(&manifest),
                metadata: raft::eraftpb::SnapshotMetadata {
                    conf_state: log.conf_state.clone(),
                    index: log.applied.0,
                    term: log.applied.1,
                },
            };
            let index = log.applied.0;
            message.set_snapshot(snapshot);
            let (moved, total_bytes) = (now, self.bytes);
            self.attempts += 1;
            let attempt = self.attempts;
            self.sending.insert(
                to,
                Sending {
                    attempt,
                    moved,
                    bytes: 0,
                    total_bytes,
                },
            );
            self.following.insert(to, (now, index));
            let raft = RaftMessage {
                shard: self.shard.id,
                from: self.id,
                to,
                epoch: self.shard.epoch,
                message,
            };
            out.push(Effect::Event(Event::SnapshotStarted {
                shard: self.shard.id,
                to: target.node,
                index,
            }));
            let (header, range) = (Box::new(SnapshotHeader { raft }), self.shard.range.clone());
            out.push(Effect::SendSnapshot {
                to: target.node,
                header,
                range,
                attempt,
            });
        }
    }

    /// A change of role or leader, if there was one since it was last asked.
    pub fn role_change(&mut self) -> Option<Event> {
        let raft = &self.raft.raft;
        let current = (raft.state, raft.term, raft.leader_id);
        if current == self.told {
            return None;
        }
        if current.0 != StateRole::Leader || current.1 != self.told.1 {
            self.lease_until = Time(0);
        }
        self.told = current;
        let role = role_name(current.0);
        Some(Event::Role {
            shard: self.shard.id,
            term: current.1,
            role,
            leader: self.leader(),
        })
    }

    /// Entries that are in the log and not applied, for a shard that holds back the trimming of the log.
    pub fn unapplied(&self) -> Option<ShardWrite> {
        let entries = self.log().entries_behind(self.applied());
        (!entries.is_empty()).then(|| ShardWrite {
            shard: self.shard.id,
            hard_state: Some(self.raft.raft.hard_state()),
            entries,
            complete: true,
        })
    }

    fn send(&mut self, messages: Vec<raft::eraftpb::Message>, out: &mut Effects) {
        for message in messages {
            if message.msg_type == MessageType::MsgSnapshot {
                self.outgoing.push(message);
                continue;
            }
            let to = ReplicaId(message.to);
            let Some(node) = self.node_of(to) else { continue };
            let raft = RaftMessage {
                shard: self.shard.id,
                from: self.id,
                to,
                epoch: self.shard.epoch,
                message,
            };
            out.push(Effect::Send {
                to: node,
                message: Message::Raft(raft),
            });
        }
    }

    /// Replies go to whoever asked, known to this replica's descriptor or not.
    fn node_of(&self, id: ReplicaId) -> Option<NodeId> {
        self.shard
            .replica(id)
            .map(|r| r.node)
            .or_else(|| self.correspondents.get(&id).copied())
    }

    fn start_round(&mut self, now: Time) {
        let context = self.next_context;
        self.next_context += 1;
        self.round = Some(ReadRound {
            context,
            started: now,
            index: None,
            reads: std::mem::take(&mut self.reads),
        });
        self.raft.read_index(context.to_be_bytes().to_vec());
    }

    fn leases(&self) -> bool {
        self.is_leader() && self.leaseless_term != self.term()
    }

    /// Draws this term's election timeout from the node's seed: the same for the same term, so that it can be set again
    /// after every step; different between terms and nodes, so that candidates do not collide for ever.
    fn draw_election_timeout(&mut self) {
        let mix = self.seed ^ self.shard.id.0.rotate_left(40) ^ self.raft.raft.term.rotate_left(20);
        let mut ticks = fastrand::Rng::with_seed(mix).usize(ELECTION_TICKS_MIN..ELECTION_TICKS_MAX);
        // A new shard's first leader is a matter of turns, or whoever starts first would lead them all.
        if self.raft.raft.term == LOG_BASE.1 && !self.shard.replicas.is_empty() {
            let turn = self.shard.id.0 as usize % self.shard.replicas.len();
            let mine = self.shard.replicas[turn].id == self.id;
            ticks = if mine {
                ELECTION_TICKS_MIN
            } else {
                ticks.max(ELECTION_TICKS_MIN + 5)
            };
        }
        self.raft
            .raft
            .set_randomized_election_timeout(ticks + self.rest.patience);
    }
}

/// Raft's word for a role.
pub fn role_name(role: StateRole) -> &'static str {
    match role {
        StateRole::Leader => "leader",
        StateRole::Follower => "follower",
        StateRole::Candidate => "candidate",
        StateRole::PreCandidate => "pre-candidate",
    }
}

/// Unit: ticks.
const QUARANTINED_WAITS: u32 = 80;
const LEASE_RENEW: Span = Span::millis(100);
const CORRESPONDENTS_MAX: usize = 16;
const ROUND_TIMEOUT: Span = Span::millis(150);

/// The error of a request that reached a replica which does not lead.
pub fn not_leader() -> WireError {
    let mut error = WireError::new(Code::LeaderChanged, "the shard's leader changed; nothing was done");
    error.retry_after_ms = 20;
    error
}

/// The error of a change of replicas while another is under way.
pub fn change_pending(shard: crate::protocol::id::ShardId) -> WireError {
    let text = format!("{shard} is at another change of its replicas; nothing was changed");
    let mut error = WireError::new(Code::ChangePending, text);
    error.retry_after_ms = 20;
    error
}

/// The range of a replica that does not know its range yet.
pub fn no_range() -> KeyRange {
    KeyRange {
        start: Position::default(),
        end: Position::default(),
    }
}

/// Meta of a replica that begins with nothing but its name: a follower to be filled by a snapshot.
pub fn empty_meta(id: crate::protocol::id::ShardId) -> ReplicaMeta {
    ReplicaMeta {
        replica: ReplicaId(0),
        shard: ShardDescriptor {
            id,
            range: no_range(),
            epoch: Epoch(0),
            replicas: Vec::new(),
            frozen: None,
            held: None,
            newest_replica: Default::default(),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        },
        conf_state: ConfState::default(),
        hard_state: HardState::default(),
        applied: 0,
        applied_term: 0,
        log_from: LogSeq(0),
        clock: ShardClock::default(),
        entities: 0,
        bytes: 0,
        written_off: false,
        shaped: 0,
        schema: Bundle::default(),
        history: 0,
        destroyed: false,
    }
}

/// Meta of a shard's first copies.
pub fn first_meta(shard: ShardDescriptor, clock: ShardClock) -> ReplicaMeta {
    let voters = shard
        .replicas
        .iter()
        .filter(|r| r.role.votes())
        .map(|r| r.id.0)
        .collect();
    let learners = shard
        .replicas
        .iter()
        .filter(|r| r.role == ReplicaRole::Learner)
        .map(|r| r.id.0)
        .collect();
    ReplicaMeta {
        conf_state: ConfState {
            voters,
            learners,
            ..ConfState::default()
        },
        hard_state: HardState {
            term: LOG_BASE.1,
            vote: 0,
            commit: LOG_BASE.0,
        },
        applied: LOG_BASE.0,
        applied_term: LOG_BASE.1,
        clock,
        ..empty_meta(shard.id)
    }
    .with_shard(shard)
}

impl ReplicaMeta {
    fn with_shard(mut self, shard: ShardDescriptor) -> Self {
        self.shard = shard;
        self
    }
}
