//! Clients of a service that comes and goes. Each puts entities of its own, every key once: what was acknowledged and not yet
//! deleted by it must be there whatever the service's operator orders, and a key whose fate is not known is only cleared away.
use super::*;
use crate::protocol::operator::Order;

/// What such a client remembers.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// Keys that it was told are written, and has not begun to delete.
    live: BTreeSet<String>,
    /// Those of them that were there when all was over.
    seen: BTreeSet<String>,
    /// Keys that are to be cleared away.
    stray: Vec<String>,
    next: u64,
    idle_until: Time,
    /// Since when it is told that there is no such service, where it has something in it.
    missing_since: Option<Time>,
    /// How far the service has come again.
    step: Step,
    pub(super) is_done: bool,
    /// What was last in the way of a drop.
    in_the_way: String,
    /// Where the next listing begins.
    from: Option<Position>,
}

impl Visits {
    /// It is to do something else.
    pub(super) fn begin_anew(&mut self) {
        self.is_done = false;
        self.step = Step::Create;
        self.from = None;
    }
}

/// The next thing that is done with a service that comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    #[default]
    Create,
    List,
    Put,
    Look,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VisitKind {
    /// The only put of a key.
    Put,
    /// A read of what is there.
    Look,
    /// A message to an entity of another service.
    Send,
    /// The last write of a key.
    Delete,
    /// A look for keys whose fate was not known.
    List,
    /// The map.
    Map,
    /// A new service, or its end.
    Order,
}

impl Client {
    pub(super) fn start_visit(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        let is_over = self.mode == Mode::VisitOut;
        if !is_over && now < self.visits.idle_until {
            return self.rest(now, acts);
        }
        let draw = self.rng.u32(..100);
        let live = self.visits.live.len();
        let at = if live > 0 { self.rng.usize(..live) } else { 0 };
        let (kind, request) = match self.visits.live.iter().nth(at).cloned() {
            _ if !self.visits.stray.is_empty() => {
                let key = self.visits.stray.remove(0);
                (VisitKind::Delete, self.visit(key, Change::Delete))
            }
            Some(key) if is_over && self.visits.seen.contains(&key) => self.leave(key),
            Some(key) if is_over => look(key),
            Some(key) => match draw {
                0..=39 => look(key),
                40..=54 => {
                    let (service, other) = self.mail_entity();
                    let value = self.number as u64 * 1_000_000 + self.next_number;
                    let patch = format!(r#"{{"{VISITED}/{key}":{value}}}"#).into();
                    let body = Box::new(Body::Merge { patch });
                    let to = vec![Position::new(&service, &other)];
                    (VisitKind::Send, self.visit(key, Change::Send { to, body }))
                }
                55..=69 if live < 3 => self.come(),
                _ => self.leave(key),
            },
            None if is_over => (VisitKind::List, self.list_visits()),
            None => match draw {
                0..=49 => self.come(),
                50..=84 => {
                    self.visits.idle_until = now + Span::millis(self.rng.u64(100..3_000));
                    return self.rest(now, acts);
                }
                _ => (VisitKind::List, self.list_visits()),
            },
        };
        self.begin(now, moment, Kind::Visit(kind), request, Role::Writer, stage, acts);
    }

    fn come(&mut self) -> (VisitKind, Request) {
        self.visits.next += 1;
        // First letters differ, so that all shards have some.
        let letter = char::from(b'a' + self.rng.u8(..26));
        let key = format!("{letter}{}{}", self.mark(), self.visits.next);
        let document = document_of(&key);
        (VisitKind::Put, self.visit(key, Change::Put(document)))
    }

    fn leave(&mut self, key: String) -> (VisitKind, Request) {
        // From now on it may be gone.
        self.visits.live.remove(&key);
        (VisitKind::Delete, self.visit(key, Change::Delete))
    }

    /// In all keys of this client, and in no other's.
    fn mark(&self) -> String {
        format!("-{}-", self.number)
    }

    fn visit(&mut self, key: String, change: Change) -> Request {
        Request::Write(Write {
            service: VISITED.to_owned(),
            key,
            id: self.request_id(),
            condition: Condition::Always,
            change,
        })
    }

    pub(super) fn start_drop(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        if self.visits.is_done {
            return;
        }
        let known = self.map.services.get(VISITED).map(|service| service.number);
        let (kind, request) = match (&self.mode, known) {
            (Mode::ComeAgain, _) => match self.visits.step {
                Step::Create => (VisitKind::Order, self.create(&[])),
                Step::List => (VisitKind::List, self.list_visits()),
                Step::Put => (
                    VisitKind::Put,
                    self.visit(AGAIN.to_owned(), Change::Put(document_of(AGAIN))),
                ),
                Step::Look => look(AGAIN.to_owned()),
            },
            _ if self.rng.bool() => (VisitKind::Map, Request::Map),
            (Mode::DropOut, Some(_)) if let Some(rule) = self.rule_of_visits() => {
                let (order, id) = (Order::RemoveRule(rule), self.request_id());
                (VisitKind::Order, Request::Order { order, id })
            }
            (_, Some(number)) => {
                let drop = Request::DropService {
                    name: VISITED.to_owned(),
                    number,
                    dry_run: self.rng.u32(..8) == 0,
                    id: self.request_id(),
                };
                (VisitKind::Order, drop)
            }
            (Mode::DropOut, None) => (VisitKind::Map, Request::Map),
            (_, None) => {
                let cuts = [&[][..], &["m"], &["g", "t"]][self.rng.usize(..3)];
                (VisitKind::Order, self.create(cuts))
            }
        };
        self.begin(now, moment, Kind::Visit(kind), request, Role::Admin, stage, acts);
    }

    /// The next page of all that there is.
    fn list_visits(&mut self) -> Request {
        let from = self.visits.from.take().unwrap_or_else(|| Position::new(VISITED, ""));
        list(from, Position::end_of(VISITED), false, 50)
    }

    /// A placement rule that some operator has laid down for the service.
    fn rule_of_visits(&self) -> Option<String> {
        let mut rules = self.map.policy.rules.values();
        let rule = rules.find(|rule| rule.service.as_deref() == Some(VISITED));
        rule.map(|rule| rule.name.clone())
    }

    /// What was last in the way of a drop, as it was told.
    pub fn in_the_way(&self) -> &str {
        &self.visits.in_the_way
    }

    fn create(&mut self, cuts: &[&str]) -> Request {
        Request::CreateService {
            name: VISITED.to_owned(),
            replicas: 3,
            cuts: cuts.iter().map(|cut| Position::new(VISITED, cut)).collect(),
            dry_run: false,
            id: self.request_id(),
        }
    }

    pub(super) fn take_visit(
        &mut self,
        kind: VisitKind,
        request: &Request,
        response: Response,
        now: Time,
    ) -> Result<(), Violation> {
        match (kind, response, request) {
            (VisitKind::Put, Response::Written(written), _) => {
                if written.version != 1 {
                    let text = format!(
                        "the first put of {VISITED}/{} made version {}",
                        written.key, written.version
                    );
                    return Err(Violation::new(Property::Ver, text));
                }
                self.visits.live.insert(written.key);
                self.visits.step = Step::Look;
            }
            (VisitKind::Send | VisitKind::Delete, Response::Written(written), Request::Write(write)) => {
                self.sent
                    .push((Position::new(&write.service, &write.key), written.sent));
            }
            (VisitKind::Look, Response::Entity(found), Request::Get { key, .. }) => {
                self.visits.missing_since = None;
                let document = found.map(|found| found.document);
                if document.as_ref() != Some(&document_of(key)) {
                    let text = format!("{VISITED}/{key} was put and is not deleted, and is {document:?}");
                    return Err(Violation::new(Property::Lin, text));
                }
                if self.mode == Mode::VisitOut {
                    self.visits.seen.insert(key.clone());
                }
                self.visits.is_done = self.mode == Mode::ComeAgain;
            }
            (VisitKind::Look, Response::Error(error), Request::Get { key, .. }) if error.code == Code::NoService => {
                // Before the end a node may not have heard of a service that is quite new.
                let since = *self.visits.missing_since.get_or_insert(now);
                let is_calm = matches!(self.mode, Mode::VisitOut | Mode::ComeAgain);
                if is_calm && now.since(since) > HEARD_OF {
                    let text = format!("{VISITED}/{key} was put and is not deleted, and {}", error.text);
                    return Err(Violation::new(Property::Lin, text));
                }
            }
            (VisitKind::List, Response::Listed { items, next }, _) if self.mode == Mode::ComeAgain => {
                if let Some(item) = items.first() {
                    let text = format!("{VISITED} has come again with {} in it", item.key);
                    return Err(Violation::new(Property::NoFail, text));
                }
                if next.is_none() {
                    self.visits.step = Step::Put;
                }
                self.visits.from = next;
            }
            (VisitKind::List, Response::Listed { items, next }, _) => {
                self.visits.from = next;
                let mark = self.mark();
                let keys = items.into_iter().map(|item| item.key);
                let mine = keys.filter(|key| key.contains(&mark) && !self.visits.live.contains(key));
                self.visits.stray = mine.collect();
            }
            (VisitKind::Map, Response::Map(view), _) => {
                self.map.learn(&view);
                let is_there = self.map.services.contains_key(VISITED);
                self.visits.is_done = self.mode == Mode::DropOut && !is_there;
            }
            (VisitKind::Order, Response::Asked, _) => self.visits.step = Step::List,
            (VisitKind::Order, Response::Told(_), _) => {}
            (VisitKind::Order, Response::Error(error), _) if ORDER_REFUSED.contains(&error.code) => {
                let blockers = error
                    .blockers
                    .iter()
                    .map(|blocker| format!("{} {}", blocker.code, blocker.text));
                self.visits.in_the_way = blockers.collect::<Vec<_>>().join(", ");
            }
            (_, Response::Error(error), _) if REFUSED.contains(&error.code) => {}
            (_, response, request) => {
                let text = format!("{request:?} was answered with {response:?}");
                return Err(Violation::new(Property::Calm, text));
            }
        }
        Ok(())
    }
}

fn look(key: String) -> (VisitKind, Request) {
    let service = VISITED.to_owned();
    (VisitKind::Look, Request::Get { service, key })
}

fn document_of(key: &str) -> Bytes {
    format!(r#"{{"v":"{key}"}}"#).into()
}

const ORDER_REFUSED: [Code; 5] = [
    Code::UnsafeOp,
    Code::Exists,
    Code::NoService,
    Code::VersionConflict,
    Code::NoSuchRule,
];
const REFUSED: [Code; 4] = [Code::NoService, Code::NotFound, Code::DiskFull, Code::OutboxFull];
const AGAIN: &str = "again";
/// Longest time until every node has heard of a service, where nothing is wrong.
const HEARD_OF: Span = Span::secs(5);

/// The service that comes and goes.
pub const VISITED: &str = "visit";
/// Its clients, the one who creates and drops it included.
pub const VISITORS: usize = 3;
