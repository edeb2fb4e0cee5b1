//! A client that puts combined objects, changes parents and children by themselves, and deletes both.
use std::collections::BTreeSet;

use super::*;
use crate::daemon::sim::parking::Name;
use crate::protocol::activity::{ActivityAction, ParkedView};
use crate::protocol::schema::bundle::NewSchema;

/// What such a client remembers.
#[derive(Debug)]
pub(super) struct FamilyClient {
    /// The cluster has had the schemas from somebody.
    is_given: bool,
    /// What it does about messages that were refused has chance of its own.
    park_rng: fastrand::Rng,
    /// Messages that it has seen parked.
    parked: Vec<Name>,
}

impl FamilyClient {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            is_given: false,
            park_rng: fastrand::Rng::with_seed(seed ^ PARK_STREAM),
            parked: Vec::new(),
        }
    }
}

const PARK_STREAM: u64 = 0x7061_726b_6564_2121;

/// What a family's client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyKind {
    /// New schemas.
    Schemas,
    /// A write that may be refused for what is there.
    Write,
    /// A write that is never good.
    Bad,
    /// A look at what is parked.
    Look,
    /// Something done about it.
    Mend,
}

/// A combined object as somebody wanted it, whatever came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Combined {
    /// In every document of it, and of no other.
    pub number: u64,
    /// The parent.
    pub parent: Position,
    /// Keys of its children.
    pub children: BTreeSet<String>,
}

impl Client {
    pub(super) fn start_family(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        if !stage.is_in_effect {
            if self.family.is_given {
                return self.rest(now, acts);
            }
            let new = |(service, text): &(String, String)| NewSchema {
                service: service.clone(),
                text: text.clone(),
                expected: 0,
            };
            let request = Request::SetSchemas {
                schemas: stage.schemas.iter().map(new).collect(),
                allow_breaking: false,
                because: String::new(),
                dry_run: false,
                id: self.request_id(),
            };
            let kind = Kind::Family(FamilyKind::Schemas);
            return self.begin(now, moment, kind, request, Role::Admin, stage, acts);
        }
        if stage.parks && self.family.park_rng.u32(..6) == 0 {
            let (kind, request) = self.about_parked();
            return self.begin(now, moment, kind, request, Role::Admin, stage, acts);
        }
        if self.uses_map && (self.map.shards().next().is_none() || self.rng.u32(..200) == 0) {
            return self.begin(now, moment, Kind::Map, Request::Map, Role::Writer, stage, acts);
        }
        let number = self.number as u64 * 1_000_000 + self.next_number;
        // What is hardly ever written does not get well again by the next write.
        let is_rare = self.rng.u32(..40) == 0;
        let parent = match is_rare {
            true => RARE,
            false => PARENTS[self.rng.usize(..PARENTS.len() - 1)],
        };
        let child = CHILDREN[self.rng.usize(..CHILDREN.len())];
        let loose = LOOSE[self.rng.usize(..LOOSE.len())];
        let status = if self.rng.bool() { "active" } else { "paused" };
        let mut kind = FamilyKind::Write;
        let (service, key, change) = match self.rng.u32(..100) {
            0..=34 => {
                let count = self.rng.usize(..=5);
                let any = |rng: &mut fastrand::Rng| {
                    if is_rare {
                        return RARE_CHILDREN[rng.usize(..RARE_CHILDREN.len())];
                    }
                    let at = rng.usize(..CHILDREN.len() + LOOSE.len());
                    CHILDREN.get(at).copied().unwrap_or_else(|| LOOSE[at - CHILDREN.len()])
                };
                let children: BTreeSet<String> = (0..count).map(|_| any(&mut self.rng).to_owned()).collect();
                let objects: Vec<String> = children
                    .iter()
                    .map(|key| format!(r#"{{"key":"{key}","n":{number}}}"#))
                    .collect();
                let objects = objects.join(",");
                let document = format!(r#"{{"n":{number},"status":"{status}","profiles":[{objects}]}}"#);
                self.combined.push(Combined {
                    number,
                    parent: Position::new("campaign", parent),
                    children,
                });
                ("campaign", parent, Change::Put(document.into()))
            }
            35..=49 => {
                let patch = format!(r#"{{"n":{number}}}"#);
                ("campaign", parent, Change::Patch(patch.into()))
            }
            50..=62 => {
                let patch = format!(r#"{{"status":"{status}"}}"#);
                ("campaign", parent, Change::Patch(patch.into()))
            }
            63..=69 => ("campaign", parent, Change::Delete),
            70..=76 => {
                let of = match self.rng.u32(..4) {
                    0 => String::new(),
                    _ => format!(r#","campaign":"{parent}""#),
                };
                let document = format!(r#"{{"n":{number},"status":"{status}"{of}}}"#);
                ("profile", loose, Change::Put(document.into()))
            }
            77..=79 => {
                let patch = format!(r#"{{"n":{number},"campaign":"{parent}"}}"#);
                ("profile", loose, Change::Patch(patch.into()))
            }
            80..=82 => ("profile", loose, Change::Delete),
            83..=89 => {
                let patch = format!(r#"{{"locked":{}}}"#, self.rng.bool());
                ("profile", child, Change::Patch(patch.into()))
            }
            90..=92 => {
                kind = FamilyKind::Bad;
                let document = format!(r#"{{"n":{number},"profiles":[{{"key":"{child}","nobody":1}}]}}"#);
                ("campaign", parent, Change::Put(document.into()))
            }
            _ => {
                let (service, key) = ("campaign".to_owned(), parent.to_owned());
                let request = Request::Get { service, key };
                return self.begin(now, moment, Kind::Read, request, Role::Viewer, stage, acts);
            }
        };
        let write = Write {
            service: service.to_owned(),
            key: key.to_owned(),
            id: self.request_id(),
            condition: Condition::Always,
            change,
        };
        let kind = Kind::Family(kind);
        self.begin(now, moment, kind, Request::Write(write), Role::Writer, stage, acts);
    }

    /// Looks what is parked, or does something about what it has seen.
    fn about_parked(&mut self) -> (Kind, Request) {
        let rng = &mut self.family.park_rng;
        if self.family.parked.is_empty() {
            let children = [&CHILDREN[..], &LOOSE, &RARE_CHILDREN].concat();
            let request = Request::Activities {
                service: "campaign".to_owned(),
                key: PARENTS[rng.usize(..PARENTS.len())].to_owned(),
                with: Some(Position::new("profile", children[rng.usize(..children.len())])),
                after: None,
                limit: 10,
            };
            return (Kind::Family(FamilyKind::Look), request);
        }
        let (from, to, session, number) = self.family.parked.swap_remove(rng.usize(..self.family.parked.len()));
        let action = match rng.u32(..6) {
            0 => ActivityAction::Retry,
            1 => ActivityAction::Drop { session, number },
            _ => ActivityAction::SendAgain { session, number },
        };
        let write = Write {
            id: self.request_id(),
            ..about(&from, &to, action)
        };
        (Kind::Family(FamilyKind::Mend), Request::Write(write))
    }

    pub(super) fn take_family(
        &mut self,
        kind: FamilyKind,
        request: &Request,
        response: Response,
    ) -> Result<(), Violation> {
        match (kind, response, request) {
            (FamilyKind::Schemas, Response::Schemas(_), _) => self.family.is_given = true,
            // Somebody was faster.
            (FamilyKind::Schemas, Response::Error(error), _) if error.code == Code::VersionConflict => {
                self.family.is_given = true;
            }
            (FamilyKind::Write, Response::Written(written), Request::Write(write)) => {
                self.sent
                    .push((Position::new(&write.service, &write.key), written.sent));
            }
            (FamilyKind::Write, Response::Error(error), _)
                if matches!(error.code, Code::NotFound | Code::OutboxFull | Code::HasChildren) => {}
            (FamilyKind::Look, Response::Activities(view), Request::Activities { service, key, with, .. }) => {
                let from = Position::new(service, key);
                let to = with.as_ref().expect("asked for one");
                let named = |parked: &ParkedView| (from.clone(), to.clone(), parked.session, parked.number);
                self.family.parked = view.parked.iter().map(named).collect();
            }
            (FamilyKind::Mend, Response::Written(written), Request::Write(write)) => {
                self.sent
                    .push((Position::new(&write.service, &write.key), written.sent));
            }
            // Somebody was faster.
            (FamilyKind::Mend, Response::Error(error), _)
                if matches!(error.code, Code::NotFound | Code::NoSuchMessage | Code::OutboxFull) => {}
            (FamilyKind::Bad, Response::Error(error), _) if error.code == Code::AgainstSchema => {}
            (_, Response::Error(error), _) if error.code == Code::DiskFull => {}
            (_, response, _) => {
                let text = format!("{request:?} was answered with {response:?}");
                return Err(Violation::new(Property::Calm, text));
            }
        }
        Ok(())
    }
}

/// What an operator does to a pair.
pub fn about(from: &Position, to: &Position, action: ActivityAction) -> Write {
    let (service, key) = from.parts();
    Write {
        service: service.to_owned(),
        key: key.unwrap_or("").to_owned(),
        id: RequestId::default(),
        condition: Condition::Always,
        change: Change::Activity {
            with: to.clone(),
            action,
            by: String::new(),
            because: String::new(),
        },
    }
}

/// Campaigns.
pub const PARENTS: [&str; 5] = ["d~1", "k~2", "q~3", "y~4", RARE];
/// One that is hardly ever written, at the end of the keys: every split has it in its right half.
pub const RARE: &str = "z~9";
/// Profiles that are nobody else's.
pub const RARE_CHILDREN: [&str; 3] = ["c~1", "m~2", "u~3"];
/// Profiles that only messages change, but for their lock.
pub const CHILDREN: [&str; 8] = ["a~1", "b~33", "b~66", "g~2", "g~5", "n~3", "t~1", "w~4"];
/// Profiles that clients change, move and delete, too.
pub const LOOSE: [&str; 4] = ["a~7", "h~1", "n~8", "w~9"];
