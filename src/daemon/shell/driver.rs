//! The loop around the core: wait for something, take in everything that is there, settle once, carry out the effects.
//!
//! ```text
//! inbox --take all--> step, step, step --> settle --> effects
//!                                                       |-- Send      -> one frame per peer
//!   disk <- Persist, Checkpoint, Install ---------------|-- Reply     -> one write per client
//!                                                       '-- Event     -> log line
//! ```
//! Nothing here waits but the first line: what the effects start reports back through the inbox.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::clients::{Appended, Session, forbids};
use super::disk::{Disk, DiskReport};
use super::inbox::Report;
use super::join::{INTERNAL, Intercepted, Joins};
use super::notify::Notifier;
use super::peers::Link;
use super::snapshots::ToSend;
use super::telemetry::{count, tell};
use super::{Shared, StopReason, clock, snapshots};
use crate::daemon::core::effect::Effect;
use crate::daemon::core::input::{Input, SessionId};
use crate::daemon::core::node::Node;
use crate::daemon::core::state::{LogBatch, LogSeq};
use crate::daemon::core::time::{Clock, Span, Time};
use crate::daemon::store::Store;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::NodeId;
use crate::protocol::message::Message;
use crate::protocol::request::{RequestFrame, Response, ResponseFrame, RouteHint};
use crate::protocol::shard_map::Membership;

/// The core is told of disk space this often.
const DISK_SPACE_EVERY: Duration = Duration::from_secs(2);
/// The members that the core knows are looked through this often.
const MEMBERS_EVERY: Duration = Duration::from_millis(250);
/// How long a stop waits for answers that are not sent yet.
const SEE_OFF: Duration = Duration::from_millis(200);

/// Owns the node and everything that only its thread touches.
pub(super) struct Driver {
    shared: Arc<Shared>,
    node: Node,
    store: Store,
    disk: Disk,
    notifier: Arc<Notifier>,
    joins: Joins,
    sessions: HashMap<SessionId, Arc<Session>>,
    links: BTreeMap<NodeId, Arc<Link>>,
    /// What the core was last told of peers' logs.
    peer_persisted: BTreeMap<NodeId, u64>,
    effects: Vec<Effect>,
    /// Messages of the drain under way, by peer; emptied and kept.
    sends: BTreeMap<NodeId, Vec<Message>>,
    /// Sessions with answers in the drain under way.
    answered: Vec<Arc<Session>>,
    /// Whether the core was told of a new member since; see `learn_members`.
    map_version: u64,
    stop_deadline: Option<Instant>,
    ended: Option<StopReason>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        node: Node,
        store: Store,
        disk: Disk,
        notifier: Arc<Notifier>,
        joins: Joins,
        effects: Vec<Effect>,
    ) -> Self {
        Self {
            shared,
            node,
            store,
            disk,
            notifier,
            joins,
            sessions: HashMap::new(),
            links: BTreeMap::new(),
            peer_persisted: BTreeMap::new(),
            effects,
            sends: BTreeMap::new(),
            answered: Vec::new(),
            map_version: u64::MAX,
            stop_deadline: None,
            ended: None,
        }
    }

    /// Runs the node until it stops, and says why it did.
    pub(super) async fn run(mut self) -> StopReason {
        let start = Instant::now();
        let watchdog = self.notifier.watchdog_interval();
        let mut disk_space_due = start;
        let mut members_due = start;
        let mut watchdog_due = start;
        let mut reports = Vec::new();
        // What the node wants done before anything has happened.
        self.drain();
        loop {
            if let Some(reason) = self.ended.take() {
                self.see_off().await;
                self.disk.finish();
                return reason;
            }
            let mut due = wake_at(self.node.next_deadline()).min(disk_space_due);
            if let Some(deadline) = self.stop_deadline {
                due = due.min(deadline);
            }
            tokio::select! {
                biased;
                () = self.shared.inbox.filled() => {}
                () = sleep_until(due) => {}
            }
            let now = Instant::now();
            if self.stop_deadline.is_some_and(|deadline| now >= deadline) {
                tracing::warn!("stopping although leaderships could not be handed over in time");
                self.ended = Some(StopReason::Asked);
                continue;
            }
            self.shared.inbox.take(&mut reports);
            count(&self.shared.counters.rounds);
            let clock = clock::now();
            if clock.now >= self.node.next_deadline() {
                self.step(clock, Input::Ticked);
            }
            for report in reports.drain(..) {
                self.take_in(clock, report);
            }
            if now >= disk_space_due {
                disk_space_due = now + DISK_SPACE_EVERY;
                self.tell_disk_space(clock);
            }
            self.node.settle(clock, &mut self.store, &mut self.effects);
            self.shared.copy_pace.set(self.node.copy_rate());
            self.drain();
            if now >= members_due {
                members_due = now + MEMBERS_EVERY;
                self.learn_members();
            }
            if let Some(interval) = watchdog.filter(|_| now >= watchdog_due) {
                watchdog_due = now + interval;
                self.notifier.alive();
            }
            // The readers' turn: they may have more by now, and the next round takes all of it.
            tokio::task::yield_now().await;
        }
    }

    /// Gives the last answers a moment to leave.
    async fn see_off(&self) {
        let deadline = Instant::now() + SEE_OFF;
        while Instant::now() < deadline && self.sessions.values().any(|session| session.has_answers()) {
            tokio::time::sleep(SEE_OFF / 20).await;
        }
        // From the streams into packets.
        tokio::time::sleep(SEE_OFF / 20).await;
    }

    fn step(&mut self, clock: Clock, input: Input) {
        self.node.step(clock, input, &mut self.store, &mut self.effects);
    }

    fn take_in(&mut self, clock: Clock, report: Report) {
        match report {
            Report::Asked {
                session,
                requests,
                bytes,
            } => {
                session.unread.sub(bytes);
                for request in requests {
                    self.ask(clock, &session, request);
                }
            }
            Report::Received {
                link,
                persisted,
                messages,
                bytes,
            } => {
                link.unread.sub(bytes);
                let from = link.node;
                let current = self.links.get(&from);
                if !current.is_some_and(|current| Arc::ptr_eq(current, &link)) {
                    // Of a connection that was replaced, or of a peer that was refused.
                    return;
                }
                let known = self.peer_persisted.entry(from).or_default();
                if *known < persisted {
                    *known = persisted;
                    let seq = LogSeq(persisted);
                    self.step(clock, Input::PeerPersisted { peer: from, seq });
                }
                self.step(clock, Input::Received { from, messages });
            }
            Report::Disk(report) => self.take_in_disk(clock, report),
            Report::Input(input) => self.step(clock, input),
            Report::SessionOpened(session) => {
                self.sessions.insert(session.id, session);
            }
            Report::SessionClosed(id) => {
                self.sessions.remove(&id);
            }
            Report::PeerUp(link) => {
                let peer = link.node;
                let hello = link.hello.clone();
                let is_replaced = self.links.insert(peer, link).is_some();
                self.step(clock, Input::Greeted { hello });
                if is_replaced {
                    // What was on its way over the old connection is lost.
                    self.step(clock, Input::Connected { peer, up: false });
                }
                self.step(clock, Input::Connected { peer, up: true });
            }
            Report::PeerDown(link) => {
                let peer = link.node;
                if self.links.get(&peer).is_some_and(|current| Arc::ptr_eq(current, &link)) {
                    self.links.remove(&peer);
                    self.step(clock, Input::Connected { peer, up: false });
                }
            }
            Report::Removed => {
                tracing::error!("{} has left the cluster for good: a peer says so", self.shared.node);
                self.ended = Some(StopReason::Removed);
            }
            Report::Refused(why) => {
                tracing::error!("a peer does not accept this node: {why}");
                self.ended = Some(StopReason::Refused(why));
            }
            Report::Stop { at_once: true } => self.ended = Some(StopReason::Asked),
            Report::Stop { at_once: false } => {
                let limit = self.shared.stop_timeout;
                self.notifier.stopping("handing over leaderships", limit * 2);
                self.stop_deadline.get_or_insert(Instant::now() + limit);
                self.step(clock, Input::StopAsked);
            }
        }
    }

    fn take_in_disk(&mut self, clock: Clock, report: DiskReport) {
        match report {
            DiskReport::Persisted(seq) => {
                // Before anything that this lets go is sent.
                self.shared
                    .persisted
                    .fetch_max(seq.0, std::sync::atomic::Ordering::Release);
                self.step(clock, Input::Persisted { seq });
            }
            DiskReport::Checkpointed(trim) => {
                self.store.checkpointed();
                self.disk.trim(trim);
                self.step(clock, Input::Checkpointed);
            }
            DiskReport::Installed(shard, trim) => {
                self.store.installed(shard);
                self.disk.trim(trim);
                self.step(clock, Input::Installed { shard });
            }
            DiskReport::Failed { what, why } => {
                tracing::error!("writing {what} failed: {why}; stopping, because what reached the disk is not known");
                self.ended = Some(StopReason::Disk(format!("writing {what} failed: {why}")));
            }
        }
    }

    /// A request goes to the core, unless it is about certificates: the core has none.
    fn ask(&mut self, clock: Clock, session: &Arc<Session>, frame: RequestFrame) {
        let RequestFrame {
            tag,
            timeout_ms,
            request,
        } = frame;
        if let Some(error) = forbids(&session.principal, &request) {
            count(&self.shared.counters.nobody_refused);
            self.answer(session.id, tag, Response::Error(error), None);
            return;
        }
        match self.joins.intercept(session, tag, request) {
            Intercepted::Answer(response) => self.answer(session.id, tag, response, None),
            Intercepted::Pass {
                session,
                tag,
                principal,
                request,
            } => {
                let input = Input::Asked {
                    session,
                    tag,
                    timeout_ms,
                    principal,
                    request,
                };
                self.step(clock, input);
            }
        }
    }

    fn tell_disk_space(&mut self, clock: Clock) {
        let staging = self.shared.staging.clone();
        tokio::task::spawn_blocking(move || staging.sweep(snapshots::STAGED_FOR));
        match rustix::fs::statvfs(&self.shared.data_dir) {
            Ok(stat) => {
                let input = Input::DiskSpace {
                    total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
                    free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
                    store_bytes: self.store.bytes(),
                };
                self.step(clock, input);
            }
            Err(error) => tracing::warn!("free disk space is not known: {error}"),
        }
    }

    fn learn_members(&mut self) {
        let map = self.node.map();
        if map.version != self.map_version {
            self.map_version = map.version;
            let me = map.nodes.get(&self.shared.node);
            if me.is_some_and(|me| me.membership == Membership::Gone) {
                tracing::error!("{} has left the cluster for good", self.shared.node);
                self.ended = Some(StopReason::Removed);
            }
            self.shared.peers.learn(&self.shared, map.nodes.values());
        }
    }

    /// Carries out the effects in order; messages and answers are gathered and handed over at the end.
    fn drain(&mut self) {
        let mut appends = Vec::new();
        let mut read_clock = None;
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send { to, message } => self.sends.entry(to).or_default().push(message),
                Effect::Reply {
                    session,
                    tag,
                    mut response,
                    hint,
                    valid_until,
                } => {
                    // One look at the clock for all answers of the drain: it is short against what leases allow for.
                    let late =
                        valid_until.is_some_and(|until| *read_clock.get_or_insert_with(clock::monotonic) > until);
                    if late {
                        count(&self.shared.counters.leases_missed);
                        response = Response::Error(WireError::new(
                            Code::LeaderChanged,
                            "the answer was ready too late for the lease it was read under; read again",
                        ));
                    }
                    self.answer(session, tag, response, hint);
                }
                Effect::Persist { seq, batch } => appends.push((seq, batch)),
                Effect::Checkpoint { replicas } => {
                    // In order with the log: what the checkpoint says is in the log has been handed to it.
                    self.append(&mut appends);
                    let job = self.store.checkpoint(replicas);
                    self.disk.checkpoint(job);
                }
                Effect::Install(install) => {
                    self.append(&mut appends);
                    let shard = install.meta.shard.id;
                    let job = self.store.install(*install);
                    self.disk.install(shard, job);
                }
                Effect::Unstage(copy) => self.shared.staging.release(&copy),
                Effect::SendSnapshot {
                    to,
                    header,
                    range,
                    attempt,
                } => match self.store.snapshot(&range) {
                    Ok(rows) => {
                        let header = *header;
                        let what = ToSend {
                            to,
                            header,
                            range,
                            attempt,
                            rows,
                        };
                        snapshots::send(&self.shared, self.links.get(&to).cloned(), what);
                    }
                    Err(error) => {
                        self.ended = Some(StopReason::Disk(format!("reading {range} failed: {error}")));
                    }
                },
                Effect::HashSlice { shard, index } => {
                    if let Some(slice) = self.store.take_kept(shard, index) {
                        let shared = self.shared.clone();
                        tokio::task::spawn_blocking(move || {
                            let sum = slice.sum();
                            shared.inbox.push(Report::Input(Input::Hashed { shard, index, sum }));
                        });
                    }
                }
                Effect::Refuse { peer, error } => {
                    if let Some(link) = self.links.remove(&peer) {
                        link.connection
                            .close(super::quic::Close::OtherLife.code(), error.text.as_bytes());
                    }
                }
                Effect::Event(event) => tell(&event),
                Effect::Stopped => {
                    tracing::info!("leaderships are handed over");
                    self.ended.get_or_insert(StopReason::Asked);
                }
                Effect::Halt { reason } => {
                    tracing::error!("the node stops: {reason}");
                    self.ended = Some(StopReason::Halted(reason));
                }
            }
        }
        self.append(&mut appends);
        for (to, messages) in &mut self.sends {
            if messages.is_empty() {
                continue;
            }
            match self.links.get(to) {
                Some(link) => link.send(messages, &self.shared.counters),
                None => {
                    let unsent = &self.shared.counters.messages_unsent;
                    unsent.fetch_add(messages.len() as u64, std::sync::atomic::Ordering::Relaxed);
                    messages.clear();
                }
            }
        }
        for session in self.answered.drain(..) {
            session.flush();
        }
    }

    fn append(&self, appends: &mut Vec<(LogSeq, LogBatch)>) {
        if !appends.is_empty() {
            self.disk.append(std::mem::take(appends));
        }
    }

    fn answer(&mut self, session: SessionId, tag: u64, response: Response, hint: Option<Box<RouteHint>>) {
        let (session, tag, response) = if session == INTERNAL {
            match self.joins.complete(tag, response, self.node.map()) {
                Some(completed) => completed,
                None => return,
            }
        } else {
            (session, tag, response)
        };
        let Some(session) = self.sessions.get(&session) else {
            return;
        };
        let mut response = response;
        if let Response::Status(status) = &mut response {
            status.counters.extend(self.shared.counters.list());
        }
        let frame = ResponseFrame { tag, response, hint };
        if session.answer(&self.shared, &frame) == Appended::First {
            self.answered.push(session.clone());
        }
    }
}

/// When the runtime's clock will show what the core's clock shows at `deadline`.
fn wake_at(deadline: Time) -> Instant {
    let Span(ns) = deadline.since(clock::monotonic());
    Instant::now() + Duration::from_nanos(ns.min(3_600_000_000_000))
}
