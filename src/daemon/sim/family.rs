//! What is promised of combined objects and what follows from them, judged by the messages that replicas say that they record and
//! apply, and by the rows that are left: a parent and its children are one entry, a child is what its messages have made of
//! it, and what parents know of their children is what a look at all children finds.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::check::{Property, Violation};
use super::workload::{CHILDREN, Combined, LOOSE, PARENTS, RARE, RARE_CHILDREN};
use crate::daemon::core::entity::machine::decode_head;
use crate::daemon::core::entity::message::Letter;
use crate::daemon::core::entity::schema::{aggregates, children};
use crate::daemon::core::event::Event;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Body;
use crate::protocol::codec;
use crate::protocol::id::ShardId;
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::schema::{Document, Schema};

/// The schemas of a run.
pub fn schemas(seed: u64, indexes: bool, parks: bool) -> Vec<(String, String)> {
    let on_delete = ["cascade", "cascade", "detach", "refuse"][(seed % 4) as usize];
    let mut campaign = CAMPAIGN.replace("ON_DELETE", on_delete);
    if parks {
        campaign = campaign.replace(
            r#"refused = { mark = "problem" }"#,
            r#"refused = { mark = "problem", park = true }"#,
        );
        campaign += "refused = { park = true }\n";
    }
    let mut schemas = vec![
        ("campaign".to_owned(), campaign),
        ("profile".to_owned(), PROFILE.to_owned()),
    ];
    if indexes {
        // One that clients change all the time, and one that messages change as well.
        for (_, text) in &mut schemas {
            for field in [r#"n = { type = "integer", default = 0"#, r#"default = "active""#] {
                *text = text.replacen(field, &format!("{field}, index = true"), 1);
            }
        }
    }
    schemas
}

const CAMPAIGN: &str = r#"
service = "campaign"

[fields]
n = { type = "integer", default = 0 }
status = { type = "enum", values = ["active", "paused"], default = "active" }
problem = { type = "string", max_length = 500 }

[child_relation.profiles]
service = "profile"
key = "key"
on_delete = "ON_DELETE"
refused = { mark = "problem" }

[aggregate.count]
of = "profiles"
count = true

[aggregate.active]
of = "profiles"
count = true
when = { field = "status", equals = "active" }

[aggregate.sum]
of = "profiles"
sum = "n"

[[action]]
name = "pause"
on = ["put", "patch"]
when = { field = "status", changed = true, equals = "paused" }
to = "profiles"
call = "pause"
refused = { mark = "problem" }

[[action]]
name = "resume"
on = ["put", "patch"]
when = { field = "status", was = "paused", equals = "active" }
to = "profiles"
set = { status = "active" }
refused = { mark = "problem" }

[[action]]
name = "tell"
on = ["patch"]
when = { field = "n", changed = true }
to = "profiles"
call = "hear"
copy = { n = "n" }
"#;

const PROFILE: &str = r#"
service = "profile"

[fields]
n = { type = "integer", default = 0 }
heard = { type = "integer" }
status = { type = "enum", values = ["active", "paused"], default = "active" }
locked = { type = "boolean", default = false }

[parent_relation.campaign]
service = "campaign"

[[accept]]
call = "pause"
refuse_when = { field = "locked", equals = true }
reason = "it is locked"
set = { status = "paused" }

[[accept]]
call = "hear"
copy = { heard = "n" }
"#;

/// All families of a run.
#[derive(Debug, Default)]
pub struct Family {
    seen: BTreeSet<(Position, Position, u64, u64)>,
    /// Messages of the parent that is hardly ever written.
    recorded: BTreeSet<(Position, Position, u64, u64)>,
    /// Its children that it has paused last.
    paused: BTreeSet<Position>,
    /// By the number of the combined object: where its messages were recorded, by whom, for whom.
    objects: BTreeMap<u64, Object>,
    /// Profiles that only messages change: what those have made of them.
    children: BTreeMap<Position, Option<Child>>,
}

/// Shard and index of the entry that recorded it, its parent, keys of its children.
type Object = ((ShardId, u64), Position, BTreeSet<String>);
/// Sums by name, and keys of children.
type Feeds = (BTreeMap<String, i64>, BTreeSet<String>);

/// What messages have made of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Child {
    number: Option<u64>,
    heard: Option<u64>,
    status: String,
    campaign: Option<String>,
}

impl Child {
    fn read(document: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(document).ok()?;
        Some(Self {
            number: value["n"].as_u64(),
            heard: value["heard"].as_u64(),
            status: value["status"].as_str().unwrap_or("active").to_owned(),
            campaign: value["campaign"].as_str().map(str::to_owned),
        })
    }
}

impl Family {
    /// A replica has applied something. It may do so again after a crash, and others do the same.
    pub fn see(&mut self, event: &Event) -> Result<(), Violation> {
        let Event::Message {
            delivered,
            refused,
            at,
            from,
            to,
            session,
            number,
            letter,
        } = event
        else {
            return Ok(());
        };
        let Ok(letter) = codec::decode::<Letter>(letter) else {
            return Ok(());
        };
        if !delivered {
            let name = (from.clone(), to.clone(), *session, *number);
            // One that can be parked may be sent again at any time.
            let is_judged = from.parts().1 == Some(RARE) && to.parts().0 == "profile" && !letter.returns;
            if is_judged && self.recorded.insert(name) {
                self.acted(from, to, &letter.body)?;
            }
            return match &letter.body {
                Body::Put { document } => self.recorded(*at, from, to, document),
                _ => Ok(()),
            };
        }
        let is_new = self.seen.insert((from.clone(), to.clone(), *session, *number));
        let (service, key) = to.parts();
        let mut by_messages = CHILDREN.iter().chain(&RARE_CHILDREN);
        let is_ours = service == "profile" && by_messages.any(|known| Some(*known) == key);
        if is_new && is_ours && !refused {
            self.applied(from, to, &letter.body);
        }
        Ok(())
    }

    /// A parent has something to say to a child that is nobody else's: it pauses it when it is paused itself, and not once
    /// more before one of them has begun anew.
    fn acted(&mut self, from: &Position, to: &Position, body: &Body) -> Result<(), Violation> {
        match body {
            Body::Call { action, .. } if action == "pause" => {
                if !self.paused.insert(to.clone()) {
                    let text = format!("{from} has paused {to}, and does so again without having gone on in between");
                    return Err(Violation::new(Property::Whole, text));
                }
            }
            Body::Call { .. } => {}
            _ => {
                self.paused.remove(to);
            }
        }
        Ok(())
    }

    /// A part of a combined object.
    fn recorded(
        &mut self,
        at: (ShardId, u64),
        from: &Position,
        to: &Position,
        document: &[u8],
    ) -> Result<(), Violation> {
        let Some(number) = Child::read(document).and_then(|child| child.number) else {
            return Ok(());
        };
        let fresh = || (at, from.clone(), BTreeSet::new());
        let (first, parent, keys) = self.objects.entry(number).or_insert_with(fresh);
        if *first != at || parent != from {
            let text = format!("object {number} of {parent} was sent at {first:?}, and from {from} again at {at:?}");
            return Err(Violation::new(Property::Whole, text));
        }
        keys.insert(to.parts().1.unwrap_or("").to_owned());
        Ok(())
    }

    fn applied(&mut self, from: &Position, to: &Position, body: &Body) {
        let child = self.children.entry(to.clone()).or_default();
        if let Body::Put { document } = body {
            *child = Child::read(document);
            return;
        }
        // What a former parent wants changes nothing.
        let is_parent = |child: &Child| child.campaign.as_deref() == from.parts().1;
        let Some(known) = child.as_mut().filter(|known| is_parent(known)) else {
            return;
        };
        match body {
            Body::Delete => *child = None,
            Body::Detach { .. } => known.campaign = None,
            Body::Merge { .. } => known.status = "active".to_owned(),
            Body::Call { action, .. } if action == "pause" => known.status = "paused".to_owned(),
            Body::Call { params, .. } => {
                let params: Value = serde_json::from_slice(params).unwrap_or_default();
                known.heard = params["n"].as_u64();
            }
            _ => {}
        }
    }

    /// When all is quiet. `wanted` is what clients have asked for; `state_of` gives the rows of an entity's leader.
    pub fn check<'a, 's>(
        &self,
        wanted: impl Iterator<Item = &'a Combined>,
        texts: &[(String, String)],
        state_of: impl Fn(&Position) -> Option<&'s dyn State>,
    ) -> Result<(), Violation> {
        let bad = |text: String| Err(Violation::new(Property::Whole, text));
        let document = |position: &Position| -> Result<(u64, Option<bytes::Bytes>), Violation> {
            let Some(state) = state_of(position) else {
                return Ok((0, None));
            };
            let row = row_key(position, RowKind::Head, &[]);
            let head = state
                .get(&row)
                .and_then(|head| head.map(|head| decode_head(&row, &head)).transpose());
            let head = head.map_err(|error| unreadable(position, &error))?.unwrap_or_default();
            Ok((head.version, head.exists.then_some(head.document)))
        };
        let number_of = |position: &Position| -> Result<Option<u64>, Violation> {
            let (_, found) = document(position)?;
            Ok(found.as_deref().and_then(Child::read).and_then(|parent| parent.number))
        };
        for wanted in wanted {
            match self.objects.get(&wanted.number) {
                Some((at, parent, keys)) if *parent != wanted.parent || *keys != wanted.children => {
                    return bad(format!("{wanted:?} was sent at {at:?} from {parent} to {keys:?}"));
                }
                Some(_) => {}
                // The parent as it was put, and its children never heard of it.
                None if !wanted.children.is_empty() && number_of(&wanted.parent)? == Some(wanted.number) => {
                    return bad(format!("{wanted:?} was put, and nothing was sent to its children"));
                }
                None => {}
            }
        }
        for (position, expected) in &self.children {
            let (_, found) = document(position)?;
            let found = found.as_deref().and_then(Child::read);
            if found != *expected {
                return bad(format!("{position} is {found:?}; its messages say {expected:?}"));
            }
        }
        let schema = Schema::parse(&texts[0].1).map_err(|error| Violation::new(Property::Whole, error.to_string()))?;
        let mut expected: BTreeMap<String, Feeds> = BTreeMap::new();
        for key in CHILDREN.iter().chain(&LOOSE).chain(&RARE_CHILDREN) {
            let (_, Some(bytes)) = document(&Position::new("profile", key))? else {
                continue;
            };
            let Ok(child) = Document::parse(&bytes) else { continue };
            let Some(parent) = child.text("campaign") else { continue };
            let (sums, keys) = expected.entry(parent.into_owned()).or_default();
            for (name, amount) in schema.feeds("profile", &child) {
                *sums.entry(name).or_default() += amount;
            }
            keys.insert((*key).to_owned());
        }
        for key in PARENTS {
            let position = Position::new("campaign", key);
            let Some(state) = state_of(&position) else { continue };
            let (mut sums, keys) = expected.remove(key).unwrap_or_default();
            sums.retain(|_, sum| *sum != 0);
            let found = aggregates(&position, state).map_err(|error| unreadable(&position, &error))?;
            let found: BTreeMap<String, i64> = found.into_iter().collect();
            if found != sums {
                return bad(format!("{position} has {found:?}, its children are worth {sums:?}"));
            }
            let known = children(&position, "profiles", "", 1_000, state);
            let known = known.map_err(|error| unreadable(&position, &error))?;
            if let Some((child, _)) = known.iter().find(|(_, row)| !row.attached) {
                return bad(format!(
                    "{position} has asked {child} to be its child, and never heard that it is"
                ));
            }
            let known: BTreeSet<String> = known.into_iter().map(|(child, _)| child).collect();
            if known != keys {
                return bad(format!("{position} knows of {known:?}, its children are {keys:?}"));
            }
            let (version, document) = document(&position)?;
            if version > 0 && document.is_none() && !keys.is_empty() {
                return bad(format!("{position} is deleted and has {keys:?}"));
            }
        }
        Ok(())
    }

    /// Combined objects that were committed with children.
    pub fn count(&self) -> u64 {
        self.objects.len() as u64
    }
}

fn unreadable(position: &Position, error: &StateError) -> Violation {
    Violation::new(Property::Stop, format!("the rows of {position}: {error}"))
}
