//! The example schemas over rows: combined updates, actions, aggregates, deletes, with messages delivered in any order of
//! pairs.
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::effects::{NoRules, Rules};
use super::inbox::deliver;
use super::machine::{self, Context, Delta};
use super::message::*;
use super::outbox::acknowledge;
use super::schema::{self, BySchema};
use super::testing::Rows;
use super::traces;
use crate::protocol::activity::{ActivityAction, Body, Sent};
use crate::protocol::change::{Trace, TraceState};
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::key::{Position, RowKind, split_partner_rest, split_row_key};
use crate::protocol::parcel::{Content, Parcel, Receipt};
use crate::protocol::request::{Change, Condition, Write};
use crate::protocol::schema::bundle::{Bundle, Ruleset, SchemaText};
use crate::protocol::schema::document::Document;

const TEXTS: [(&str, &str); 3] = [
    (
        "advertiser",
        include_str!("../../../../examples/schemas/advertiser.toml"),
    ),
    ("campaign", include_str!("../../../../examples/schemas/campaign.toml")),
    ("profile", include_str!("../../../../examples/schemas/profile.toml")),
];

pub(super) struct World {
    pub(super) rows: Rows,
    pub(super) rules: BTreeMap<String, Ruleset>,
    pub(super) rng: fastrand::Rng,
    requests: u128,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let text = |(service, text): (&str, &str)| SchemaText {
            service: service.to_owned(),
            version: 1,
            revision: 1,
            text: text.to_owned(),
        };
        let texts: BTreeMap<String, SchemaText> = TEXTS
            .into_iter()
            .map(text)
            .map(|text| (text.service.clone(), text))
            .collect();
        let read = |service: &String| Bundle::of(service, &texts).expect("known").read().expect("good");
        Self {
            rows: Rows::default(),
            rules: texts.keys().map(|service| (service.clone(), read(service))).collect(),
            rng: fastrand::Rng::with_seed(seed),
            requests: 0,
        }
    }

    pub(super) fn write(&mut self, service: &str, key: &str, change: Change) -> Result<Vec<Sent>, (Code, String)> {
        self.requests += 1;
        let write = Write {
            service: service.to_owned(),
            key: key.to_owned(),
            id: RequestId(self.requests),
            condition: Condition::Always,
            change,
        };
        self.repeat(&write)
    }

    pub(super) fn repeat(&mut self, write: &Write) -> Result<Vec<Sent>, (Code, String)> {
        let rules = BySchema(&self.rules[&write.service]);
        let rules: &dyn Rules = &rules;
        let outcome = machine::apply(write, CONTEXT, rules, &mut self.rows, &mut Delta::default());
        let outcome = outcome.expect("rows can be read");
        outcome
            .map(|written| written.sent)
            .map_err(|error| (error.code, error.text))
    }

    pub(super) fn put(&mut self, service: &str, key: &str, document: &str) -> Vec<Sent> {
        let document = Bytes::copy_from_slice(document.as_bytes());
        self.write(service, key, Change::Put(document)).expect("a good put")
    }

    pub(super) fn patch(&mut self, service: &str, key: &str, patch: &str) -> Vec<Sent> {
        let patch = Bytes::copy_from_slice(patch.as_bytes());
        self.write(service, key, Change::Patch(patch)).expect("a good patch")
    }

    pub(super) fn document(&self, service: &str, key: &str) -> Option<String> {
        let entity = machine::read(&Position::new(service, key), &self.rows).expect("rows can be read")?;
        Some(String::from_utf8_lossy(&entity.document).into_owned())
    }

    pub(super) fn field(&self, service: &str, key: &str, field: &str) -> Option<String> {
        let document = self.document(service, key)?;
        let document = Document::parse(document.as_bytes()).expect("an object");
        document.field(field).map(str::to_owned)
    }

    pub(super) fn sums(&self, service: &str, key: &str) -> BTreeMap<String, i64> {
        let sums = schema::aggregates(&Position::new(service, key), &self.rows);
        sums.expect("rows can be read").into_iter().collect()
    }

    /// Pairs with something outstanding.
    pub(super) fn pairs(&self) -> Vec<(Position, Position)> {
        let mut pairs = BTreeSet::new();
        for row in self.rows.0.keys() {
            let Some((from, kind, rest)) = split_row_key(row) else {
                continue;
            };
            if kind == RowKind::Outbox as u8 {
                let (to, _) = split_partner_rest(&rest).expect("about another");
                pairs.insert((from, to));
            }
        }
        pairs.into_iter().collect()
    }

    /// Delivers a pair's next message.
    pub(super) fn deliver(&mut self, from: &Position, to: &Position) {
        let partner: Partner = read_row(&partner_row(from, to), &self.rows)
            .expect("rows can be read")
            .expect("the pair is open");
        let number = partner.acked + 1;
        let letter = self.rows.0[&outbox_row(from, to, number)].clone();
        let mut ticket = None;
        for _ in 0..2 {
            let parcel = Parcel {
                slot: 0,
                from: from.clone(),
                to: to.clone(),
                session: partner.session,
                content: Content::Letters {
                    ticket,
                    first: number,
                    letters: vec![letter.clone()],
                },
            };
            let schema = self.rules.get(to.parts().0).map(BySchema);
            let rules = schema.as_ref().map_or(&NoRules as &dyn Rules, |schema| schema);
            let delivered = deliver(&parcel, CONTEXT, rules, &mut self.rows, &mut Delta::default());
            match delivered.expect("rows can be read").receipt {
                Receipt::Applied { last } => {
                    let known = Acknowledgement {
                        from: from.clone(),
                        to: to.clone(),
                        session: partner.session,
                        what: Known::Applied(last),
                    };
                    acknowledge(&known, &mut self.rows, &mut Delta::default()).expect("rows can be read");
                    return;
                }
                Receipt::Ticket { closed } => ticket = Some(closed),
                other => panic!("{other:?}"),
            }
        }
        panic!("{from} -> {to}: nothing was applied");
    }

    pub(super) fn deliver_some(&mut self, most: usize) {
        for _ in 0..most {
            let pairs = self.pairs();
            if pairs.is_empty() {
                return;
            }
            let (from, to) = pairs[self.rng.usize(0..pairs.len())].clone();
            self.deliver(&from, &to);
        }
    }

    /// Until nothing is on its way.
    pub(super) fn settle(&mut self) {
        self.deliver_some(100_000);
        assert_eq!(self.pairs(), [], "messages go on and on");
    }

    pub(super) fn all_of(&self, service: &str) -> Vec<String> {
        let mut keys = BTreeSet::new();
        for row in self.rows.0.keys() {
            let Some((position, _, _)) = split_row_key(row) else {
                continue;
            };
            if let (of, Some(key)) = position.parts()
                && of == service
            {
                keys.insert(key.to_owned());
            }
        }
        keys.into_iter().collect()
    }

    /// What each parent should have as sums and children, counted from the children's documents.
    pub(super) fn check(&self) {
        for (parent, child) in [("advertiser", "campaign"), ("campaign", "profile")] {
            let (rules, child_schema) = (&self.rules[parent].own.schema, &self.rules[child].own.schema);
            let relation = &rules.children[0];
            let back = child_schema.parent_field(parent).expect("a relation");
            let mut expected: BTreeMap<String, (BTreeMap<String, i64>, BTreeSet<String>)> = BTreeMap::new();
            for key in self.all_of(child) {
                let Some(document) = self.document(child, &key) else {
                    continue;
                };
                let document = Document::parse(document.as_bytes()).expect("an object");
                let Some(of) = document.text(&back.field) else { continue };
                let (sums, children) = expected.entry(of.into_owned()).or_default();
                for (name, amount) in rules.feeds(child, &document) {
                    *sums.entry(name).or_default() += amount;
                }
                children.insert(key);
            }
            for key in self.all_of(parent) {
                let (mut sums, children) = expected.remove(&key).unwrap_or_default();
                sums.retain(|_, sum| *sum != 0);
                assert_eq!(self.sums(parent, &key), sums, "{parent}/{key}");
                let known = schema::children(&Position::new(parent, &key), &relation.field, "", 1_000, &self.rows);
                let known = known.expect("rows can be read");
                assert!(known.iter().all(|(_, row)| row.attached), "{parent}/{key}: {known:?}");
                let known: BTreeSet<String> = known.into_iter().map(|(key, _)| key).collect();
                assert_eq!(known, children, "{parent}/{key}");
                let was_deleted = self.document(parent, &key).is_none()
                    && self.rows.0.keys().any(|row| {
                        let head = split_row_key(row).filter(|(_, kind, _)| *kind == RowKind::Head as u8);
                        head.is_some_and(|(position, _, _)| position == Position::new(parent, &key))
                    })
                    && self.version(parent, &key) > 0;
                assert!(
                    !was_deleted || children.is_empty(),
                    "{parent}/{key} is gone and has {children:?}"
                );
            }
        }
    }

    pub(super) fn version(&self, service: &str, key: &str) -> u64 {
        let row = crate::protocol::key::row_key(&Position::new(service, key), RowKind::Head, &[]);
        let head = self
            .rows
            .0
            .get(&row)
            .map(|value| super::head::Head::decode(value).expect("a head"));
        head.map_or(0, |head| head.version)
    }
}

pub(super) const CONTEXT: Context = Context {
    shard: ShardId(1),
    wall_ms: 1,
    shard_time_ms: 1,
    change_at: 1,
};

#[test]
fn a_combined_object_becomes_a_parent_and_its_children() {
    let mut world = World::new(1);
    let text = r#"{"name":"spring","profiles":[{"key":"p-1","reach":5},{"key":"p-2","reach":7},{"reach":1}]}"#;
    let sent = world.put("campaign", "c-1", text);
    assert_eq!(sent.len(), 3);
    assert_eq!(world.document("profile", "p-1"), None);
    world.settle();
    assert_eq!(
        world.document("profile", "p-1").expect("it was put"),
        r#"{"reach":5,"campaign":"c-1","locked":false,"status":"active"}"#
    );
    let sums = world.sums("campaign", "c-1");
    assert_eq!((sums["reach"], sums["profiles_active"]), (13, 3));
    // The same request again makes the same children, and says so.
    let write = Write {
        service: "campaign".to_owned(),
        key: "c-1".to_owned(),
        id: RequestId(1),
        condition: Condition::Always,
        change: Change::Put(text.into()),
    };
    assert_eq!(world.repeat(&write).expect("remembered"), sent);
    world.settle();
    assert_eq!(world.all_of("profile").len(), 3);
    world.check();
}

#[test]
fn a_bad_child_refuses_all_of_it() {
    let mut world = World::new(1);
    let text = r#"{"name":"spring","profiles":[{"key":"p-1"},{"key":"p-2","age_min":12}]}"#;
    let (code, text) = world
        .write("campaign", "c-1", Change::Put(text.into()))
        .expect_err("too young");
    assert_eq!(code, Code::AgainstSchema);
    assert_eq!(
        text,
        "campaign/c-1: profiles[1].age_min: 12 is below the minimum 13; nothing was changed"
    );
    assert_eq!((world.document("campaign", "c-1"), world.pairs()), (None, Vec::new()));
    let children = schema::children(&Position::new("campaign", "c-1"), "profiles", "", 10, &world.rows);
    assert_eq!(children.expect("rows can be read"), []);
    let (code, _) = world
        .write("campaign", "c-1", Change::Put(r#"{"name":"a","colour":1}"#.into()))
        .expect_err("unknown");
    assert_eq!(code, Code::AgainstSchema);
}

#[test]
fn pausing_reaches_the_children_and_a_refusal_comes_back() {
    let mut world = World::new(1);
    let profiles = r#"[{"key":"p-1"},{"key":"p-2","locked":true}]"#;
    world.put("campaign", "c-1", &format!(r#"{{"name":"a","profiles":{profiles}}}"#));
    world.settle();
    world.patch("campaign", "c-1", r#"{"status":"paused","paused_because":"rain"}"#);
    world.settle();
    assert_eq!(world.field("profile", "p-1", "status").as_deref(), Some(r#""paused""#));
    assert_eq!(
        world.field("profile", "p-1", "paused_because").as_deref(),
        Some(r#""rain""#)
    );
    assert_eq!(world.field("profile", "p-2", "status").as_deref(), Some(r#""active""#));
    assert_eq!(
        world.field("campaign", "c-1", "problem").as_deref(),
        Some(r#""profile/p-2: the profile is locked""#)
    );
    assert_eq!(world.sums("campaign", "c-1")["profiles_active"], 1);
    world.patch("campaign", "c-1", r#"{"status":"active"}"#);
    world.settle();
    assert_eq!(world.field("profile", "p-1", "status").as_deref(), Some(r#""active""#));
    world.check();
}

#[test]
fn what_is_refused_is_parked_until_it_is_sent_again_or_given_up() {
    let mut world = World::new(1);
    let (campaign, profile) = (Position::new("campaign", "c-1"), Position::new("profile", "p-1"));
    world.put(
        "campaign",
        "c-1",
        r#"{"name":"a","profiles":[{"key":"p-1","locked":true}]}"#,
    );
    world.settle();
    let pause = |world: &mut World| {
        world.patch("campaign", "c-1", r#"{"status":"paused","paused_because":"rain"}"#);
        world.settle();
    };
    let parked = |world: &World| -> Vec<(u64, u64)> {
        let rows = world.rows.0.keys().filter_map(split_row_key);
        let rows = rows.filter(|(_, kind, _)| *kind == RowKind::Parked as u8);
        rows.map(|(from, _, rest)| {
            let (to, rest) = split_partner_rest(&rest).expect("a receiver");
            assert_eq!((&from, &to), (&campaign, &profile));
            split_parked_rest(&rest).expect("session and number")
        })
        .collect()
    };
    let told = |world: &World| {
        let partner: Option<Partner> = read_row(&partner_row(&campaign, &profile), &world.rows).expect("rows");
        partner.map_or(0, |partner| partner.parked)
    };
    let act = |action| Change::Activity {
        with: profile.clone(),
        action,
        by: "ada".to_owned(),
        because: "a test".to_owned(),
    };
    pause(&mut world);
    let first = parked(&world);
    assert_eq!((first.len(), told(&world)), (1, 1));
    // It stays while what was sent since goes on, and comes back if nothing has changed.
    let (session, number) = first[0];
    world.patch("campaign", "c-1", r#"{"status":"active"}"#);
    world.settle();
    world
        .write("campaign", "c-1", act(ActivityAction::SendAgain { session, number }))
        .expect("sent again");
    let repeated = world.write("campaign", "c-1", act(ActivityAction::SendAgain { session, number }));
    assert_eq!(repeated.expect_err("it is not there any more").0, Code::NoSuchMessage);
    assert_eq!(told(&world), 0);
    world.settle();
    let second = parked(&world);
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
    // The cause has gone: it is applied as it was, and nothing is left of it.
    world.patch("profile", "p-1", r#"{"locked":false}"#);
    world
        .write("campaign", "c-1", act(ActivityAction::Retry))
        .expect("sent again");
    world.settle();
    assert_eq!((parked(&world), told(&world)), (Vec::new(), 0));
    assert_eq!(
        world.field("profile", "p-1", "paused_because").as_deref(),
        Some(r#""rain""#)
    );
    // One that is given up, although its sender is not there any more.
    world.patch("profile", "p-1", r#"{"locked":true}"#);
    pause(&mut world);
    world.write("campaign", "c-1", Change::Delete).expect("gone");
    world.settle();
    assert_eq!((parked(&world).len(), told(&world)), (1, 1));
    world
        .write("campaign", "c-1", act(ActivityAction::Skip))
        .expect("given up");
    world.settle();
    assert_eq!((parked(&world), told(&world)), (Vec::new(), 0));
    let tally: Option<Tally> = read_row(&tally_row(&campaign), &world.rows).expect("rows");
    assert_eq!(tally, None);
}

#[test]
fn the_history_tells_of_messages_as_far_as_rows_do() {
    let mut world = World::new(1);
    let campaign = Position::new("campaign", "c-1");
    let told = |world: &World, of: &Position| -> Vec<(bool, String, String, Option<u64>, TraceState)> {
        let versions = machine::history(of, &world.rows).expect("rows");
        let traces = traces::traces(of, &versions, &world.rows).expect("rows");
        let with = |trace: &Trace| trace.with.parts().1.unwrap_or("").to_owned();
        let mut all: Vec<_> = traces
            .into_iter()
            .map(|trace| (trace.sent, with(&trace), trace.action, trace.version, trace.state))
            .collect();
        all.sort_by(|one, other| (one.0, &one.1, one.3).cmp(&(other.0, &other.1, other.3)));
        all
    };
    let profiles = r#"[{"key":"p-1"},{"key":"p-2","locked":true}]"#;
    world.put("campaign", "c-1", &format!(r#"{{"name":"a","profiles":{profiles}}}"#));
    let sent = |key: &str, action: &str, version, state: TraceState| {
        (true, key.to_owned(), action.to_owned(), Some(version), state)
    };
    let pending = ["p-1", "p-2"].map(|key| sent(key, "put", 1, TraceState::Pending));
    assert_eq!(told(&world, &campaign), pending);
    world.settle();
    world.patch("campaign", "c-1", r#"{"status":"paused"}"#);
    world.settle();
    let of_children = told(&world, &campaign);
    let (had, of_own): (Vec<_>, Vec<_>) = of_children.into_iter().partition(|told| !told.0);
    let parked = TraceState::Parked("the profile is locked".to_owned());
    let expected = [
        sent("p-1", "put", 1, TraceState::Applied),
        sent("p-1", "pause", 2, TraceState::Applied),
        sent("p-2", "put", 1, TraceState::Applied),
        sent("p-2", "pause", 2, parked),
    ];
    assert_eq!(of_own, expected);
    // A child's `attach` changes no document; the refusal made the version in which the campaign says so.
    assert!(had.iter().any(|told| told.1 == "p-2" && told.3 == Some(3)), "{had:?}");
    let profile = Position::new("profile", "p-1");
    let had: Vec<_> = told(&world, &profile).into_iter().filter(|told| !told.0).collect();
    let versions: Vec<_> = had.iter().map(|told| (told.1.as_str(), told.3)).collect();
    assert_eq!(versions, [("c-1", Some(1)), ("c-1", Some(2))]);
}

#[test]
fn deleting_a_campaign_deletes_its_profiles_also_those_that_come_late() {
    let mut world = World::new(1);
    world.put("campaign", "c-1", r#"{"name":"a","profiles":[{"key":"p-1"}]}"#);
    world.settle();
    // On its way when the campaign goes.
    world.put("profile", "p-2", r#"{"campaign":"c-1"}"#);
    world.write("campaign", "c-1", Change::Delete).expect("it is there");
    // Written after that.
    world.put("profile", "p-3", r#"{"campaign":"c-1"}"#);
    // Moved elsewhere in time.
    world.put("campaign", "c-2", r#"{"name":"b"}"#);
    world.put("profile", "p-1", r#"{"campaign":"c-2"}"#);
    world.settle();
    let there: Vec<bool> = ["p-1", "p-2", "p-3"]
        .map(|key| world.document("profile", key).is_some())
        .into();
    assert_eq!(there, [true, false, false]);
    world.check();
}

#[test]
fn a_parent_that_keeps_its_children_is_not_deleted() {
    let mut world = World::new(1);
    world.put("advertiser", "a-1", r#"{"name":"x"}"#);
    world.put("campaign", "c-1", r#"{"name":"a","advertiser":"a-1","budget":40}"#);
    world.settle();
    let sums = world.sums("advertiser", "a-1");
    assert_eq!((sums["campaign_count"], sums["budget_total"]), (1, 40));
    let (code, text) = world
        .write("advertiser", "a-1", Change::Delete)
        .expect_err("it has a campaign");
    assert_eq!(code, Code::HasChildren, "{text}");
    world.write("campaign", "c-1", Change::Delete).expect("it is there");
    world.settle();
    world
        .write("advertiser", "a-1", Change::Delete)
        .expect("it has no campaign");
    world.check();
}

#[test]
fn a_chain_of_actions_reaches_the_end() {
    let mut world = World::new(1);
    world.put("advertiser", "a-1", r#"{"name":"x"}"#);
    let text = r#"{"name":"a","advertiser":"a-1","profiles":[{"key":"p-1"}]}"#;
    world.put("campaign", "c-1", text);
    world.settle();
    world.patch("advertiser", "a-1", r#"{"status":"suspended"}"#);
    world.settle();
    assert_eq!(
        world.field("profile", "p-1", "paused_because").as_deref(),
        Some(r#""the advertiser is suspended""#)
    );
}

#[test]
fn what_is_no_child_takes_no_calls() {
    let mut world = World::new(1);
    world.put("campaign", "c-1", r#"{"name":"a"}"#);
    world.put("campaign", "c-2", r#"{"name":"b"}"#);
    world.put("profile", "p-1", r#"{"campaign":"c-1"}"#);
    let call = |key: &str| Change::Send {
        to: vec![Position::new("profile", key)],
        body: Box::new(Body::Call {
            action: "pause".to_owned(),
            params: "{}".into(),
        }),
    };
    world.write("campaign", "c-2", call("p-1")).expect("recorded");
    world.settle();
    assert_eq!(world.field("profile", "p-1", "status").as_deref(), Some(r#""active""#));
    assert_eq!(
        world.field("campaign", "c-2", "problem").as_deref(),
        Some(r#""profile/p-1: it is no child of campaign/c-2""#)
    );
    world.write("campaign", "c-1", call("p-1")).expect("recorded");
    world.settle();
    assert_eq!(world.field("profile", "p-1", "status").as_deref(), Some(r#""paused""#));
}

/// Random histories: puts, patches, moves, deletes on both sides with messages delivered in between and in any order of
/// pairs. When all is quiet every sum is what a count of the documents gives, every parent knows its children and no
/// other, and no child is left behind by a deleted parent.
#[test]
fn parents_and_children_agree_when_all_is_quiet() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        for _ in 0..60 {
            let campaign = format!("c-{}", world.rng.u8(0..3));
            let profile = format!("p-{}", world.rng.u8(0..6));
            let reach = world.rng.u8(0..50);
            let change = match world.rng.u8(0..10) {
                0..=2 => {
                    let children: Vec<String> = (0..world.rng.u8(0..4))
                        .map(|n| format!(r#"{{"key":"p-{n}","reach":{reach}}}"#))
                        .collect();
                    let text = format!(
                        r#"{{"name":"a","profiles":[{}],"advertiser":"a-1"}}"#,
                        children.join(",")
                    );
                    world.write("campaign", &campaign, Change::Put(text.into()))
                }
                3 => {
                    let status = if world.rng.bool() { "paused" } else { "active" };
                    let text = format!(r#"{{"status":"{status}"}}"#);
                    world.write("campaign", &campaign, Change::Patch(text.into()))
                }
                4 => world.write("campaign", &campaign, Change::Delete),
                5 | 6 => {
                    let locked = world.rng.u8(0..4) == 0;
                    let text = format!(r#"{{"campaign":"{campaign}","reach":{reach},"locked":{locked}}}"#);
                    world.write("profile", &profile, Change::Put(text.into()))
                }
                7 => {
                    let text = format!(r#"{{"reach":{reach},"campaign":null}}"#);
                    world.write("profile", &profile, Change::Patch(text.into()))
                }
                8 => world.write("profile", &profile, Change::Delete),
                _ => {
                    let text = format!(r#"{{"reach":{reach}}}"#);
                    world.write("profile", &profile, Change::Patch(text.into()))
                }
            };
            if let Err((code, text)) = change {
                assert_eq!(code, Code::NotFound, "{text}");
            }
            let most = world.rng.usize(0..6);
            world.deliver_some(most);
        }
        world.settle();
        world.check();
    }
}
