//! Clients: each does one thing at a time, asks again with the same request id when it hears nothing, and writes down
//! what it was told, "outcome unknown" included. They share a few hot keys: a fault that goes unnoticed with many keys
//! is found with few.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::check::{Asked, Once, Outcome, Property, Record, Violation};
use super::lin::{Moment, What};
use super::operator::{Step, choose, choose_thaw, wants_one_copy};
use super::watch::Watcher;
use crate::daemon::core::entity::effects::Relay;
use crate::daemon::core::time::{Span, Time};
use crate::protocol::activity::{Body, Sent};
use crate::protocol::error::{Class, Code, WireError};
use crate::protocol::id::{NodeId, RequestId, ShardId};
use crate::protocol::key::Position;
use crate::protocol::message::{Principal, Role};
use crate::protocol::request::{Change, Condition, ListItem, Request, Response, RouteHint, Write, Written};
use crate::protocol::shard_map::{ShardDescriptor, ShardMap};
use crate::protocol::target::Target;

mod budget;
mod family;
mod visits;
pub use budget::{BUDGET_MAX, HOLDERS};
use budget::{Budget, BudgetKind};
pub use family::{CHILDREN, Combined, LOOSE, PARENTS, RARE, RARE_CHILDREN, about};
use family::{FamilyClient, FamilyKind};
pub use visits::{VISITED, VISITORS};
use visits::{VisitKind, Visits};

/// What clients have in common.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Where requests can go.
    pub nodes: Vec<NodeId>,
    /// Services with their hot keys, in order.
    pub keys: Vec<(String, Vec<String>)>,
    /// Schemas that clients are to give the cluster: service and text.
    pub schemas: Vec<(String, String)>,
    /// Every shard judges by them.
    pub is_in_effect: bool,
    /// Schemas have messages parked that are refused.
    pub parks: bool,
    /// Rows go bad: what has one copy only would be lost, and rightly called so.
    pub rots: bool,
}

/// What a client wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Send a request.
    Ask {
        /// Where to.
        to: NodeId,
        /// The client's name for the attempt.
        tag: u64,
        /// How long it waits. Unit: ms.
        timeout_ms: u32,
        /// On whose behalf.
        principal: Principal,
        /// What.
        request: Box<Request>,
    },
    /// Call `wake` with this token then.
    Wake {
        /// When.
        at: Time,
        /// A wake with an old token is ignored.
        token: u64,
    },
}

/// What a client does with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Draws reads and writes of entities.
    Entities,
    /// Draws messages between entities.
    Messages,
    /// Draws tentative operations, and entities that end by themselves.
    Budget,
    /// Draws combined objects, and changes of parents and children.
    Family,
    /// Puts into a service that comes and goes, reads, and deletes what it has put.
    Visits,
    /// Looks at what it has put there a last time, deletes all, then is quiet.
    VisitOut,
    /// Creates that service and drops it, over and over.
    Drops,
    /// Drops it, then is quiet.
    DropOut,
    /// Creates it once more, sees that it is empty and takes a put, then is quiet.
    ComeAgain,
    /// Draws splits, moves, merges and leader transfers.
    Operator,
    /// Takes back freezes that somebody left behind.
    Janitor,
    /// Does that, too, and asks for these over and over.
    Settle(VecDeque<Request>),
    /// Reads these entities, in order, each until it is answered; then is quiet.
    Read(VecDeque<(String, String)>),
    /// Asks for these writes, in order, as an operator; then is quiet.
    Mend(VecDeque<Write>),
    /// Follows the changes of a service.
    Watch,
    /// Reads all changes that there are, then is quiet.
    WatchOut,
    /// Ends what it is at, then nothing.
    Quiet,
}

/// One client.
pub struct Client {
    number: usize,
    rng: fastrand::Rng,
    mode: Mode,
    /// Sends requests to where its map says the leader is, instead of to any node.
    uses_map: bool,
    map: ShardMap,
    attempt_timeout: Span,
    patience: Span,
    think_max: Span,
    task: Option<Task>,
    token: u64,
    next_tag: u64,
    next_number: u64,
    /// Attempts whose answers would still be understood.
    attempts: BTreeMap<u64, Attempt>,
    splits_left: u32,
    known: BTreeMap<(String, String), u64>,
    /// Every entity it ever spoke of.
    heard_of: BTreeSet<(String, String)>,
    last_written: Option<Write>,
    /// What it follows, if that is what it does.
    pub watcher: Option<Watcher>,
    budget: Budget,
    family: FamilyClient,
    visits: Visits,
    /// Combined objects that it has asked for.
    pub combined: Vec<Combined>,
    /// Everything it was told.
    pub records: Vec<Record>,
    /// Messages that it was told its writes have sent.
    pub sent: Vec<(Position, Vec<Sent>)>,
}

/// One sending of a request.
struct Attempt {
    task: u64,
    at: Moment,
    write: Option<RequestId>,
}

struct Task {
    number: u64,
    kind: Kind,
    request: Request,
    role: Role,
    give_up_at: Time,
    tries: u32,
    /// An attempt may have taken effect or may still do.
    is_open: bool,
    waits_for: Option<u64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Read,
    /// Index of its record.
    Write(usize),
    /// A write that the client's role does not allow.
    Forbidden,
    /// The id of an earlier write with another content.
    Reuse,
    Show(usize),
    /// A write of an entity that has messages.
    Mail,
    Budget(BudgetKind),
    Family(FamilyKind),
    Visit(VisitKind),
    List {
        service: String,
        to: Position,
    },
    Map,
    Ids {
        id: RequestId,
    },
    MapForSplit {
        child: ShardId,
    },
    Split,
    Transfer,
    Watch,
    Op(Box<Step>),
}

impl Client {
    /// A client with its own chance and habits.
    pub fn new(number: usize, seed: u64, mode: Mode) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let think_max = match mode {
            Mode::Operator => Span::millis([600, 2_000, 6_000][rng.usize(..3)]),
            Mode::Janitor => Span::millis(50),
            Mode::Watch => Span::millis(20),
            _ => Span::millis([20, 60, 150, 300][rng.usize(..4)]),
        };
        Self {
            number,
            uses_map: rng.u32(..10) < 6,
            map: ShardMap::default(),
            attempt_timeout: match mode {
                Mode::Watch => Span::secs(2),
                _ => Span::millis(rng.u64(150..1000)),
            },
            patience: Span::millis(match mode {
                Mode::Operator => rng.u64(2000..9000),
                _ => rng.u64(1000..6000),
            }),
            think_max,
            task: None,
            token: 0,
            next_tag: 1,
            next_number: 1,
            attempts: BTreeMap::new(),
            mode,
            splits_left: 10,
            known: BTreeMap::new(),
            heard_of: BTreeSet::new(),
            last_written: None,
            watcher: None,
            budget: Budget::default(),
            visits: Visits::default(),
            family: FamilyClient::new(seed),
            combined: Vec::new(),
            records: Vec::new(),
            sent: Vec::new(),
            rng,
        }
    }

    /// A client that follows all changes of a service.
    pub fn watching(number: usize, seed: u64, service: &str) -> Self {
        Self {
            watcher: Some(Watcher::new(service)),
            ..Self::new(number, seed, Mode::Watch)
        }
    }

    /// So much time has passed that no node need remember a request id.
    pub fn forget_ids(&mut self) {
        self.last_written = None;
    }

    /// Gives it other things to do from its next task on; call `wake` with `token` to start it.
    pub fn set_mode(&mut self, mode: Mode) -> u64 {
        self.mode = mode;
        self.visits.begin_anew();
        self.token
    }

    /// What it does with its time.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Whether it has nothing under way and nothing it wants to start.
    pub fn is_quiet(&self) -> bool {
        self.task.is_none()
            && match &self.mode {
                Mode::Quiet => true,
                Mode::Read(left) => left.is_empty(),
                Mode::VisitOut | Mode::DropOut | Mode::ComeAgain => self.visits.is_done,
                Mode::Mend(left) => left.is_empty(),
                Mode::WatchOut => self.watcher.as_ref().is_none_or(Watcher::is_done),
                _ => false,
            }
    }

    /// The entity it is trying to read, for a message about why it takes so long.
    pub fn reads(&self) -> Option<String> {
        match &self.task.as_ref()?.request {
            Request::Get { service, key } => Some(format!("{service}/{key}")),
            _ => None,
        }
    }

    /// The token that `wake` wants.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The time that a `Wake` named has come.
    pub fn wake(&mut self, now: Time, moment: Moment, token: u64, stage: &Stage, acts: &mut Vec<Act>) {
        if token != self.token {
            return;
        }
        match &mut self.task {
            None => self.start(now, moment, stage, acts),
            Some(task) => {
                if task.waits_for.take().is_some() {
                    // Nothing heard: the request or its answer may be lost, or only late.
                    task.is_open = true;
                    let (request, position) = (&task.request, position_of(&task.request));
                    if let (Some(position), true) = (position, !matches!(request, Request::Map))
                        && let Some(id) = self.map.find(&position).map(|shard| shard.id)
                        && let Some((_, leader)) = self.map.leader(id)
                    {
                        self.map.doubt_leader(id, leader);
                    }
                }
                self.try_again(now, moment, stage, acts);
            }
        }
    }

    /// The connection that an attempt went over broke, or was never there (`sent` is false then).
    pub fn lost(&mut self, now: Time, tag: u64, sent: bool, acts: &mut Vec<Act>) {
        let Some(task) = &mut self.task else { return };
        if task.waits_for != Some(tag) {
            return;
        }
        task.waits_for = None;
        task.is_open |= sent;
        let pause = Span::millis(self.rng.u64(5..80));
        self.wake_at(now + pause, acts);
    }

    /// An answer, perhaps to an attempt that was given up on.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call each, of things that have no name together"
    )]
    pub fn answered(
        &mut self,
        now: Time,
        moment: Moment,
        tag: u64,
        response: Response,
        hint: Option<&RouteHint>,
        once: &mut Once,
        stage: &Stage,
        acts: &mut Vec<Act>,
    ) -> Result<(), Violation> {
        if let Some(hint) = hint {
            self.map.learn_shard(&hint.shard);
            if let Some((term, node)) = hint.leader {
                self.map.learn_leader(hint.shard.id, term, node);
            }
        }
        let Some(attempt) = self.attempts.remove(&tag) else {
            return Ok(());
        };
        let Some(task) = self.task.take_if(|task| task.number == attempt.task) else {
            // The task is over; the answer must still agree with what was said before.
            if let (Some(id), Response::Written(written)) = (attempt.write, &response) {
                once.written(id, written)?;
            }
            return Ok(());
        };
        let verdict = self.take_answer(task, now, moment, attempt.at, tag, response, once, stage)?;
        match verdict {
            Next::Wait(task) => self.task = Some(task),
            Next::Retry(task, pause) => {
                self.task = Some(task);
                self.wake_at(now + pause, acts);
            }
            Next::Done => self.rest(now, acts),
            Next::Then(kind, request) => self.go_on(now, moment, kind, request, stage, acts),
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call each, of things that have no name together"
    )]
    fn take_answer(
        &mut self,
        mut task: Task,
        now: Time,
        moment: Moment,
        asked_at: Moment,
        tag: u64,
        response: Response,
        once: &mut Once,
        stage: &Stage,
    ) -> Result<Next, Violation> {
        let is_current = task.waits_for == Some(tag);
        if let Response::Error(error) = &response {
            match error.class() {
                Class::Bug | Class::Corrupt => {
                    let text = format!("client {} asked {:?} and got: {error}", self.number, task.request);
                    return Err(Violation::new(Property::Calm, text));
                }
                Class::Retry | Class::Unknown => {
                    task.is_open |= error.class() == Class::Unknown;
                    if !is_current {
                        return Ok(Next::Wait(task));
                    }
                    task.waits_for = None;
                    let pause = Span::millis(u64::from(error.retry_after_ms).min(500) + self.rng.u64(2..60));
                    if now + pause >= task.give_up_at || (task.is_open && self.rng.u32(..10) == 0) {
                        return Ok(self.give_up(task, moment));
                    }
                    return Ok(Next::Retry(task, pause));
                }
                Class::Refused => {}
            }
        }
        let unexpected = |task: &Task, response: &Response| {
            let text = format!("{:?} was answered with {response:?}", task.request);
            Err(Violation::new(Property::Calm, text))
        };
        match (&task.kind, response) {
            (Kind::Read, Response::Entity(entity)) => {
                let Request::Get { service, key } = task.request else {
                    return Ok(Next::Done);
                };
                let seen = entity.map(|entity| (entity.version, Some(entity.document)));
                self.saw((service, key), asked_at, moment, seen);
                Ok(Next::Done)
            }
            (&Kind::Write(record), Response::Written(written)) => {
                self.written(record, moment, &written, once)?;
                if let Request::Write(write) = task.request {
                    self.last_written = Some(write);
                }
                Ok(Next::Done)
            }
            (&Kind::Write(record), Response::Error(error)) => {
                let Some(outcome) = self.refusal(record, &error, task.is_open) else {
                    return unexpected(&task, &Response::Error(error));
                };
                let record = &mut self.records[record];
                record.to = (outcome != Outcome::Unknown).then_some(moment);
                record.outcome = outcome;
                Ok(Next::Done)
            }
            (Kind::Mail, Response::Written(written)) => {
                if let Request::Write(write) = &task.request {
                    let from = Position::new(&write.service, &write.key);
                    self.sent.push((from, written.sent));
                }
                Ok(Next::Done)
            }
            (Kind::Mail, Response::Error(error))
                if matches!(
                    error.code,
                    Code::NotFound | Code::Exists | Code::DiskFull | Code::OutboxFull
                ) =>
            {
                Ok(Next::Done)
            }
            (Kind::Budget(kind), response) => {
                self.take_budget(kind, &task.request, response, now)?;
                Ok(Next::Done)
            }
            (&Kind::Visit(kind), response) => {
                self.take_visit(kind, &task.request, response, now)?;
                Ok(Next::Done)
            }
            (&Kind::Family(kind), response) => {
                self.take_family(kind, &task.request, response)?;
                Ok(Next::Done)
            }
            (Kind::Forbidden, Response::Error(error)) if error.code == Code::Forbidden => Ok(Next::Done),
            (Kind::Reuse, Response::Error(error)) if error.code == Code::RequestIdReused => Ok(Next::Done),
            // A full disk, told before anybody looked for the id.
            (Kind::Reuse, Response::Error(error)) if error.code == Code::DiskFull => Ok(Next::Done),
            (Kind::Reuse, answer) => {
                let text = format!(
                    "{:?} reuses a request id and was answered with {answer:?}",
                    task.request
                );
                Err(Violation::new(Property::Once, text))
            }
            (&Kind::Show(record), Response::Request(answer)) => {
                if let Some(written) = answer {
                    self.written(record, moment, &written, once)?;
                }
                Ok(Next::Done)
            }
            // It was refused, and that is remembered.
            (&Kind::Show(record), Response::Error(error)) => {
                let Some(outcome) = self.refusal(record, &error, false) else {
                    return unexpected(&task, &Response::Error(error));
                };
                self.records[record].to = Some(moment);
                self.records[record].outcome = outcome;
                Ok(Next::Done)
            }
            (Kind::List { service, to }, Response::Listed { items, next }) => {
                let Request::List { from, .. } = &task.request else {
                    return Ok(Next::Done);
                };
                let (service, to, from) = (service.clone(), to.clone(), from.clone());
                self.listed(
                    &service,
                    &from,
                    next.as_ref().unwrap_or(&to),
                    asked_at,
                    moment,
                    &items,
                    &task.request,
                )?;
                match next {
                    Some(next) if next <= from => {
                        let text = format!("a listing from {from} goes on at {next}");
                        Err(Violation::new(Property::Calm, text))
                    }
                    Some(next) if next < to => {
                        let request = list(next, to.clone(), self.rng.bool(), self.rng.u32(2..50));
                        Ok(Next::Then(Kind::List { service, to }, request))
                    }
                    _ => Ok(Next::Done),
                }
            }
            (Kind::Map, Response::Map(view)) => {
                self.map.learn(&view);
                Ok(Next::Done)
            }
            (Kind::Ids { id }, Response::Ids { first }) => {
                once.allocated(*id, first, 1)?;
                Ok(Next::Then(Kind::MapForSplit { child: ShardId(first) }, Request::Map))
            }
            (&Kind::MapForSplit { child }, Response::Map(view)) => {
                self.map.learn(&view);
                match self.draw_split(child) {
                    Some(request) => Ok(Next::Then(Kind::Split, request)),
                    None => Ok(Next::Done),
                }
            }
            (Kind::Split, Response::Split { left, right }) => {
                self.map.learn_shard(&left);
                self.map.learn_shard(&right);
                Ok(Next::Done)
            }
            (Kind::Transfer, Response::Asked) => Ok(Next::Done),
            (Kind::Watch, Response::Changed(changed)) => {
                if let Some(watcher) = &mut self.watcher {
                    watcher.took(&changed)?;
                }
                Ok(Next::Done)
            }
            (Kind::Op(step), Response::Map(view)) if matches!(**step, Step::Look | Step::LookForFrozen) => {
                self.map.learn(&view);
                let id = self.request_id();
                let chosen = match **step {
                    Step::LookForFrozen => choose_thaw(&self.map, id),
                    _ => choose(&mut self.rng, &self.map, &stage.nodes, id),
                };
                let chosen = chosen.filter(|(_, request)| !(stage.rots && wants_one_copy(request)));
                Ok(op(chosen))
            }
            (Kind::Op(step), Response::Error(error)) if Step::may_be_refused(error.code) => {
                let id = self.request_id();
                Ok(op(step.as_ref().clone().after_failure(id)))
            }
            (
                Kind::Op(step),
                answer @ (Response::Shard(_)
                | Response::Ids { .. }
                | Response::Op(_)
                | Response::Told(_)
                | Response::Registered(_)
                | Response::Asked),
            ) => {
                if let (Request::AllocateIds { id, .. }, &Response::Ids { first }) = (&task.request, &answer) {
                    once.allocated(*id, first, 1)?;
                }
                if let Response::Shard(shard) = &answer {
                    self.map.learn_shard(shard);
                }
                let id = self.request_id();
                Ok(op(step.as_ref().clone().next(&mut self.rng, &answer, id)))
            }
            // Somebody else was there first, or the drawn node is no voter.
            (Kind::Split | Kind::Transfer, Response::Error(error))
                if matches!(
                    error.code,
                    Code::StaleEpoch | Code::BadSplit | Code::NoSuchShard | Code::BadTarget
                ) =>
            {
                Ok(Next::Done)
            }
            // The service was dropped meanwhile.
            (Kind::Split, Response::Error(error))
                if error.code == Code::NoService
                    && position_of_split(&task.request).is_some_and(|service| service == VISITED) =>
            {
                Ok(Next::Done)
            }
            // A full disk refuses splits like other writes.
            (Kind::Split | Kind::Ids { .. }, Response::Error(error)) if error.code == Code::DiskFull => Ok(Next::Done),
            (_, response) => unexpected(&task, &response),
        }
    }

    /// A write took effect, or had before.
    fn written(&mut self, record: usize, moment: Moment, written: &Written, once: &mut Once) -> Result<(), Violation> {
        let record = &mut self.records[record];
        if let Some(id) = record.id {
            once.written(id, written)?;
        }
        if written.key != record.entity.1 {
            let text = format!("a write to `{}` was answered for `{}`", record.entity.1, written.key);
            return Err(Violation::new(Property::Calm, text));
        }
        record.to = Some(moment);
        record.outcome = Outcome::Ok(written.version);
        self.known.insert(record.entity.clone(), written.version);
        Ok(())
    }

    /// What a refusal of a write says; `None` where it should not have come.
    fn refusal(&self, record: usize, error: &WireError, is_open: bool) -> Option<Outcome> {
        let Asked::Write { condition, change } = &self.records[record].asked else {
            return None;
        };
        match (error.code, condition, change) {
            (Code::VersionConflict, Condition::IfVersion(asked), _) => Some(Outcome::Refused(What::Conflict {
                asked: *asked,
                found: error.version,
            })),
            (Code::Exists, Condition::IfAbsent, _) | (Code::Exists, _, Change::Post(_)) => {
                Some(Outcome::Refused(What::Exists { found: error.version }))
            }
            (Code::NotFound, _, Change::Patch(_) | Change::Delete) => Some(Outcome::Refused(What::NotFound)),
            // Told before anybody looked for the id: an earlier attempt may still take effect.
            (Code::DiskFull, _, _) if is_open => Some(Outcome::Unknown),
            (Code::DiskFull, _, _) => Some(Outcome::Fail),
            _ => None,
        }
    }

    /// Writes down one read.
    fn saw(&mut self, entity: (String, String), from: Moment, to: Moment, seen: Option<(u64, Option<Bytes>)>) {
        if entity.1.contains('~') {
            // It changes by messages, too; others judge it.
            return;
        }
        match &seen {
            Some((version, _)) => self.known.insert(entity.clone(), *version),
            None => self.known.remove(&entity),
        };
        self.heard_of.insert(entity.clone());
        let number = self.records.len();
        self.records.push(Record {
            entity,
            tag: format!("read-{}-{number}", self.number),
            id: None,
            from,
            to: Some(to),
            asked: Asked::Read,
            outcome: Outcome::Saw(seen),
        });
    }

    /// Writes down a page of a listing as one read of each entity in it, and of each hot one that is not.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call each, of things that have no name together"
    )]
    fn listed(
        &mut self,
        service: &str,
        from: &Position,
        to: &Position,
        asked_at: Moment,
        moment: Moment,
        items: &[ListItem],
        request: &Request,
    ) -> Result<(), Violation> {
        let bad = |text: String| Err(Violation::new(Property::Calm, format!("{request:?}: {text}")));
        let mut last: Option<&str> = None;
        for item in items {
            if last.is_some_and(|last| last >= item.key.as_str()) {
                return bad(format!("`{}` comes after `{}`", item.key, last.unwrap_or_default()));
            }
            let position = Position::new(service, &item.key);
            if position < *from || position >= *to {
                return bad(format!("`{}` is outside {from} .. {to}", item.key));
            }
            last = Some(&item.key);
        }
        let wants_documents = matches!(request, Request::List { documents: true, .. });
        let heard_of = self.heard_of.iter().filter(|(of, key)| {
            let position = Position::new(of, key);
            *from <= position && position < *to
        });
        let is_missing = |key: &str| items.binary_search_by(|item| item.key.as_str().cmp(key)).is_err();
        let absent: Vec<String> = heard_of
            .map(|(_, key)| key.clone())
            .filter(|key| is_missing(key))
            .collect();
        for key in absent {
            self.saw((service.to_owned(), key), asked_at, moment, None);
        }
        for item in items {
            let document = wants_documents.then(|| item.document.clone());
            let entity = (service.to_owned(), item.key.clone());
            self.saw(entity, asked_at, moment, Some((item.version, document)));
        }
        Ok(())
    }

    fn start(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Read(left) => {
                let Some((service, key)) = left.pop_front() else { return };
                self.begin(
                    now,
                    moment,
                    Kind::Read,
                    Request::Get { service, key },
                    Role::Viewer,
                    stage,
                    acts,
                );
            }
            Mode::Mend(left) => {
                let Some(mut write) = left.pop_front() else { return };
                write.id = self.request_id();
                let kind = Kind::Family(FamilyKind::Mend);
                self.begin(now, moment, kind, Request::Write(write), Role::Admin, stage, acts);
            }
            Mode::Operator => self.start_operator(now, moment, stage, acts),
            Mode::Watch | Mode::WatchOut => {
                let Some(watcher) = &mut self.watcher else { return };
                if self.mode == Mode::WatchOut {
                    watcher.finish();
                    if watcher.is_done() {
                        return;
                    }
                }
                let request = watcher.ask(&mut self.rng, &self.map);
                self.begin(now, moment, Kind::Watch, request, Role::Viewer, stage, acts);
            }
            Mode::Settle(asks) if self.rng.bool() => {
                let Some(mut request) = asks.pop_front() else { return };
                asks.push_back(request.clone());
                let fresh = self.request_id();
                if let Request::ChangeNode { id, .. } | Request::SetSettings { id, .. } | Request::StartOp { id, .. } =
                    &mut request
                {
                    *id = fresh;
                }
                let kind = Kind::Op(Box::new(Step::Last));
                self.begin(now, moment, kind, request, Role::Admin, stage, acts);
            }
            Mode::Janitor | Mode::Settle(_) => {
                let kind = Kind::Op(Box::new(Step::LookForFrozen));
                self.begin(now, moment, kind, Request::Map, Role::Admin, stage, acts);
            }
            Mode::Entities => self.start_entities(now, moment, stage, acts),
            Mode::Messages => self.start_messages(now, moment, stage, acts),
            Mode::Budget => self.start_budget(now, moment, stage, acts),
            Mode::Family => self.start_family(now, moment, stage, acts),
            Mode::Visits | Mode::VisitOut => self.start_visit(now, moment, stage, acts),
            Mode::Drops | Mode::DropOut | Mode::ComeAgain => self.start_drop(now, moment, stage, acts),
        }
    }

    fn start_operator(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        let count = self.map.shards().count();
        if self.rng.u32(..10) < 6 {
            let kind = Kind::Op(Box::new(Step::Look));
            return self.begin(now, moment, kind, Request::Map, Role::Admin, stage, acts);
        }
        if self.splits_left > 0 && count < 14 && self.rng.u32(..10) < 5 {
            self.splits_left -= 1;
            let id = self.request_id();
            return self.begin(
                now,
                moment,
                Kind::Ids { id },
                Request::AllocateIds { count: 1, id },
                Role::Admin,
                stage,
                acts,
            );
        }
        let shards: Vec<ShardDescriptor> = self.map.shards().cloned().collect();
        if shards.is_empty() || self.rng.u32(..10) == 0 {
            return self.begin(now, moment, Kind::Map, Request::Map, Role::Admin, stage, acts);
        }
        let shard = &shards[self.rng.usize(..shards.len())];
        let to = stage.nodes[self.rng.usize(..stage.nodes.len())];
        let request = Request::TransferLeader { shard: shard.id, to };
        self.begin(now, moment, Kind::Transfer, request, Role::Admin, stage, acts);
    }

    fn draw_split(&mut self, child: ShardId) -> Option<Request> {
        let shards: Vec<ShardDescriptor> = self.map.shards().filter(|s| s.id.0 != 0).cloned().collect();
        if shards.is_empty() {
            return None;
        }
        let shard = &shards[self.rng.usize(..shards.len())];
        let known: Vec<Position> = self
            .known_positions()
            .into_iter()
            .filter(|p| shard.range.contains(p) && *p > shard.range.start)
            .collect();
        let at = if known.is_empty() || self.rng.u32(..4) == 0 {
            let letter = char::from(b'a' + self.rng.u8(..26));
            Position::new(shard.range.service(), &letter.to_string())
        } else {
            known[self.rng.usize(..known.len())].clone()
        };
        Some(Request::SplitShard {
            shard: shard.id,
            epoch: shard.epoch,
            at,
            child,
            id: self.request_id(),
        })
    }

    fn known_positions(&self) -> Vec<Position> {
        let of = |service: &str, keys: &[&str]| -> Vec<Position> {
            keys.iter().map(|key| Position::new(service, key)).collect()
        };
        let hot = HOT_KEYS.iter().flat_map(|(service, keys)| of(service, keys));
        hot.chain(MAIL_KEYS.iter().flat_map(|(service, keys)| of(service, keys)))
            .chain(HOLDERS.iter().map(|(service, key)| Position::new(service, key)))
            .chain([Position::new("profile", "b~33"), Position::new("profile", "b~66")])
            .collect()
    }

    fn start_entities(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        if self.uses_map && (self.map.shards().next().is_none() || self.rng.u32(..200) == 0) {
            return self.begin(now, moment, Kind::Map, Request::Map, Role::Writer, stage, acts);
        }
        let (service, keys) = &stage.keys[self.rng.usize(..stage.keys.len())];
        // One key in two is among the first three: hot among the hot.
        let count = if self.rng.bool() { keys.len().min(3) } else { keys.len() };
        let entity = (service.clone(), keys[self.rng.usize(..count)].clone());
        let version = self.known.get(&entity).copied();
        let tag = format!("c{}-{}", self.number, self.next_number);
        let if_version = match version {
            Some(version) if self.rng.u32(..8) == 0 => {
                Condition::IfVersion(version.saturating_sub(self.rng.u64(..2)).max(1))
            }
            Some(version) => Condition::IfVersion(version),
            None => Condition::Always,
        };
        let (condition, change) = match self.rng.u32(..100) {
            0..=39 => {
                let (service, key) = entity;
                return self.begin(
                    now,
                    moment,
                    Kind::Read,
                    Request::Get { service, key },
                    Role::Viewer,
                    stage,
                    acts,
                );
            }
            40..=43 => {
                let to = Position::end_of(service);
                let request = list(
                    Position::new(service, ""),
                    to.clone(),
                    self.rng.bool(),
                    self.rng.u32(2..50),
                );
                let kind = Kind::List {
                    service: service.clone(),
                    to,
                };
                return self.begin(now, moment, kind, request, Role::Viewer, stage, acts);
            }
            44 => {
                if let Some(mut write) = self.last_written.take() {
                    let other = self.document(&format!("never-{tag}"));
                    write.change = match write.change {
                        Change::Post(_) => Change::Post(other),
                        _ => Change::Put(other),
                    };
                    return self.begin(
                        now,
                        moment,
                        Kind::Reuse,
                        Request::Write(write),
                        Role::Writer,
                        stage,
                        acts,
                    );
                }
                (Condition::Always, Change::Put(self.document(&tag)))
            }
            45..=46 => {
                let change = Change::Put(self.document(&tag));
                let (record, request) = self.write(entity, tag, Condition::Always, change, moment);
                // Whatever it is told, it must never take effect.
                self.records[record].outcome = Outcome::Fail;
                return self.begin(now, moment, Kind::Forbidden, request, Role::Viewer, stage, acts);
            }
            47..=66 => (Condition::Always, Change::Put(self.document(&tag))),
            67..=71 => (Condition::IfAbsent, Change::Put(self.document(&tag))),
            72..=77 => (if_version, Change::Put(self.document(&tag))),
            78..=89 => (Condition::Always, Change::Patch(self.patch(&tag))),
            90..=92 => (if_version, Change::Patch(self.patch(&tag))),
            93..=95 => (Condition::Always, Change::Delete),
            96 => (if_version, Change::Delete),
            _ => (Condition::Always, Change::Post(self.document(&tag))),
        };
        let (record, request) = self.write(entity, tag, condition, change, moment);
        self.begin(now, moment, Kind::Write(record), request, Role::Writer, stage, acts);
    }

    fn start_messages(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        if self.uses_map && (self.map.shards().next().is_none() || self.rng.u32(..200) == 0) {
            return self.begin(now, moment, Kind::Map, Request::Map, Role::Writer, stage, acts);
        }
        let value = self.number as u64 * 1_000_000 + self.next_number;
        let (service, key) = self.mail_entity();
        // Among the receivers is the sender itself, and now and then one that never exists.
        let (to_service, to_key) = match self.rng.u32(..20) {
            0 => ("profile".to_owned(), "nobody~".to_owned()),
            _ => self.mail_entity(),
        };
        let to = Position::new(&to_service, &to_key);
        let (condition, change) = match self.rng.u32(..100) {
            0..=9 => (Condition::IfAbsent, Change::Put(format!(r#"{{"w":{value}}}"#).into())),
            10..=84 => {
                // Each sender has a field of its own: whoever comes last in it says what it is to be.
                let patch = format!(r#"{{"{service}/{key}":{value}}}"#).into();
                let body = Box::new(Body::Merge { patch });
                (Condition::Always, Change::Send { to: vec![to], body })
            }
            _ => {
                let count = self.rng.usize(..20);
                let next = (0..count).map(|_| self.mail_entity()).collect();
                let field = format!("r{value}");
                let body = Box::new(Relay { field, value, next }.body());
                (Condition::Always, Change::Send { to: vec![to], body })
            }
        };
        let id = self.request_id();
        let write = Write {
            service,
            key,
            id,
            condition,
            change,
        };
        self.begin(
            now,
            moment,
            Kind::Mail,
            Request::Write(write),
            Role::Writer,
            stage,
            acts,
        );
    }

    fn mail_entity(&mut self) -> (String, String) {
        let (service, keys) = MAIL_KEYS[self.rng.usize(..MAIL_KEYS.len())];
        (service.to_owned(), keys[self.rng.usize(..keys.len())].to_owned())
    }

    /// Writes down a write that is about to be asked for.
    fn write(
        &mut self,
        entity: (String, String),
        tag: String,
        condition: Condition,
        change: Change,
        moment: Moment,
    ) -> (usize, Request) {
        let id = self.request_id();
        let (service, mut key) = entity;
        let entity_key = if matches!(change, Change::Post(_)) {
            key = String::new();
            id.entity_key()
        } else {
            key.clone()
        };
        self.heard_of.insert((service.clone(), entity_key.clone()));
        self.records.push(Record {
            entity: (service.clone(), entity_key),
            tag,
            id: Some(id),
            from: moment,
            to: None,
            asked: Asked::Write {
                condition,
                change: change.clone(),
            },
            outcome: Outcome::Unknown,
        });
        let write = Write {
            service,
            key,
            id,
            condition,
            change,
        };
        (self.records.len() - 1, Request::Write(write))
    }

    fn document(&mut self, tag: &str) -> Bytes {
        let size = match self.rng.u32(..40) {
            0 => self.rng.usize(..20_000),
            _ => self.rng.usize(..120),
        };
        Bytes::from(format!(r#"{{"w":"{tag}","fill":"{}"}}"#, "x".repeat(size)))
    }

    /// Each client patches a field of its own, so that a lost patch is missed.
    fn patch(&mut self, tag: &str) -> Bytes {
        let more = if self.rng.bool() { r#","fill":null"# } else { "" };
        Bytes::from(format!(r#"{{"p{}":"{tag}"{more}}}"#, self.number))
    }

    fn request_id(&mut self) -> RequestId {
        RequestId(self.rng.u128(..))
    }

    /// The next part of something that takes several requests.
    fn go_on(&mut self, now: Time, moment: Moment, kind: Kind, request: Request, stage: &Stage, acts: &mut Vec<Act>) {
        let role = match kind {
            Kind::Split | Kind::Ids { .. } | Kind::MapForSplit { .. } | Kind::Op(_) => Role::Admin,
            _ => Role::Viewer,
        };
        self.begin(now, moment, kind, request, role, stage, acts);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call each, of things that have no name together"
    )]
    fn begin(
        &mut self,
        now: Time,
        moment: Moment,
        kind: Kind,
        request: Request,
        role: Role,
        stage: &Stage,
        acts: &mut Vec<Act>,
    ) {
        let patience = if matches!(self.mode, Mode::Read(_)) {
            Span::secs(3600)
        } else {
            self.patience
        };
        self.task = Some(Task {
            number: self.next_number,
            kind,
            request,
            role,
            give_up_at: now + patience,
            tries: 0,
            is_open: false,
            waits_for: None,
        });
        self.next_number += 1;
        self.try_again(now, moment, stage, acts);
    }

    /// Sends the task's request once more, or gives up.
    fn try_again(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        let Some(mut task) = self.task.take() else { return };
        if now >= task.give_up_at {
            match self.give_up(task, moment) {
                Next::Then(kind, request) => self.go_on(now, moment, kind, request, stage, acts),
                _ => self.rest(now, acts),
            }
            return;
        }
        let to = self.choose_node(&task.request, task.tries, stage);
        task.tries += 1;
        let tag = self.next_tag;
        self.next_tag += 1;
        task.waits_for = Some(tag);
        let write = match (&task.kind, &task.request) {
            (Kind::Write(_), Request::Write(write)) => Some(write.id),
            _ => None,
        };
        let attempt = Attempt {
            task: task.number,
            at: moment,
            write,
        };
        self.attempts.insert(tag, attempt);
        while self.attempts.len() > 16 {
            self.attempts.pop_first();
        }
        let left = task.give_up_at.since(now);
        let timeout = if self.rng.bool() {
            self.attempt_timeout.min(left)
        } else {
            left
        };
        acts.push(Act::Ask {
            to,
            tag,
            timeout_ms: timeout.as_millis().clamp(1, 60_000) as u32,
            principal: Principal {
                name: format!("client-{}", self.number),
                role: task.role,
            },
            request: Box::new(task.request.clone()),
        });
        let until = (now + self.attempt_timeout).min(task.give_up_at);
        self.task = Some(task);
        self.wake_at(until, acts);
    }

    fn choose_node(&mut self, request: &Request, tries: u32, stage: &Stage) -> NodeId {
        let any = stage.nodes[self.rng.usize(..stage.nodes.len())];
        if !self.uses_map || self.rng.u32(..20) == 0 || tries % 3 == 2 {
            return any;
        }
        let shard = match request.target() {
            Target::Position(position) => self.map.find(&position),
            Target::Shard(shard) => self.map.shard(shard),
            Target::Any => None,
        };
        let Some(shard) = shard else { return any };
        match self.map.leader(shard.id) {
            Some((_, leader)) => leader,
            None if shard.replicas.is_empty() => any,
            None => shard.replicas[self.rng.usize(..shard.replicas.len())].node,
        }
    }

    /// The task ends without an answer that settles it.
    fn give_up(&mut self, task: Task, moment: Moment) -> Next {
        let record = match task.kind {
            Kind::Write(record) => record,
            Kind::Op(step) => {
                let id = self.request_id();
                return op(step.after_failure(id));
            }
            _ => return Next::Done,
        };
        let written = &mut self.records[record];
        if !task.is_open {
            // Every attempt was told that nothing happened, or never left.
            written.outcome = Outcome::Fail;
            written.to = Some(moment);
            return Next::Done;
        }
        let (Some(id), (service, key)) = (written.id, written.entity.clone()) else {
            return Next::Done;
        };
        if self.rng.bool() {
            return Next::Then(Kind::Show(record), Request::ShowRequest { service, key, id });
        }
        Next::Done
    }

    fn rest(&mut self, now: Time, acts: &mut Vec<Act>) {
        let pause = match self.mode {
            Mode::Read(_) | Mode::Mend(_) | Mode::Quiet => 1,
            _ => self.rng.u64(1..=self.think_max.0),
        };
        self.wake_at(now + Span(pause), acts);
    }

    fn wake_at(&mut self, at: Time, acts: &mut Vec<Act>) {
        self.token += 1;
        acts.push(Act::Wake { at, token: self.token });
    }
}

enum Next {
    Wait(Task),
    Retry(Task, Span),
    Then(Kind, Request),
    Done,
}

/// An operation goes on, or is over.
fn op(next: Option<(Step, Request)>) -> Next {
    match next {
        Some((step, request)) => Next::Then(Kind::Op(Box::new(step)), request),
        None => Next::Done,
    }
}

/// The entities that everybody wants.
pub const HOT_KEYS: [(&str, [&str; 6]); 2] = [
    ("campaign", ["a1", "h2", "p3", "c4", "m5", "z6"]),
    ("profile", ["k1", "b2", "t3", "e4", "r5", "x6"]),
];

/// The entities that have messages for one another.
pub const MAIL_KEYS: [(&str, [&str; 4]); 2] = [
    ("campaign", ["d~1", "k~2", "q~3", "y~4"]),
    ("profile", ["a~1", "g~2", "n~3", "w~4"]),
];

fn list(from: Position, to: Position, documents: bool, limit: u32) -> Request {
    Request::List {
        from,
        to,
        limit,
        documents,
    }
}

fn position_of_split(request: &Request) -> Option<&str> {
    match request {
        Request::SplitShard { at, .. } => Some(at.parts().0),
        _ => None,
    }
}

/// The position that decides where a request goes; `None` where any node will do.
fn position_of(request: &Request) -> Option<Position> {
    match request {
        Request::Get { service, key } | Request::ShowRequest { service, key, .. } => Some(Position::new(service, key)),
        Request::Write(write) if write.key.is_empty() => Some(Position::new(&write.service, &write.id.entity_key())),
        Request::Write(write) => Some(Position::new(&write.service, &write.key)),
        Request::List { from, .. } => Some(from.clone()),
        Request::Changes { ranges, .. } => ranges.first().map(|since| since.range.start.clone()),
        _ => None,
    }
}
