//! Indexes over the example schemas, with messages delivered in any order of pairs: when all is quiet, the entries are what a
//! scan of the entities gives.
use std::collections::{BTreeMap, BTreeSet};

use super::effects::NoRules;
use super::message::{Tally, read_row, tally_row};
use super::schema_tests::World;
use crate::protocol::error::Code;
use crate::protocol::key::Position;
use crate::protocol::request::Change;
use crate::protocol::schema::bundle::{Bundle, Ruleset, SchemaText};
use crate::protocol::schema::document::Document;
use crate::protocol::schema::index;

/// Entries that are there, and entries that should be.
fn compare(world: &World, service: &str, field: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let field = world.rules[service].own.schema.field(field).expect("a field");
    let mut expected = BTreeSet::new();
    for key in world.all_of(service) {
        let Some(document) = world.document(service, &key) else {
            continue;
        };
        let document = Document::parse(document.as_bytes()).expect("an object");
        expected.extend(field.indexed(&document).map(|value| index::entry_key(&value, &key)));
    }
    let service = index::service_of(service, &field.name);
    let found = world.all_of(&service).into_iter();
    let found = found.filter(|entry| world.document(&service, entry).is_some());
    (found.collect(), expected)
}

fn is_exact(world: &World) -> Result<usize, String> {
    let mut rows = 0;
    for (service, field) in [
        ("campaign", "channel"),
        ("profile", "region"),
        ("advertiser", "country"),
    ] {
        let (found, expected) = compare(world, service, field);
        if found != expected {
            return Err(format!("{service}.{field}: {found:?} instead of {expected:?}"));
        }
        rows += found.len();
    }
    Ok(rows)
}

fn reindex(field: &str, indexed: bool, stale: &[&str]) -> Change {
    Change::Reindex {
        field: field.to_owned(),
        indexed,
        stale: stale.iter().map(|&entry| entry.to_owned()).collect(),
    }
}

/// The campaign's schema as of a later revision, with an index over its channel or without.
fn change_schema(world: &mut World, revision: u64, is_indexed: bool) {
    let text = include_str!("../../../../examples/schemas/campaign.toml");
    let text = match is_indexed {
        true => text.to_owned(),
        false => text.replace(r#"max_length = 40, index = true }"#, "max_length = 40 }"),
    };
    assert_eq!(text.contains("index = true"), is_indexed);
    let bundle = Bundle {
        revision,
        texts: vec![SchemaText {
            service: "campaign".to_owned(),
            version: revision,
            revision,
            text,
        }],
    };
    let old = world.rules["campaign"].related.clone();
    let rules = Ruleset {
        related: old,
        ..bundle.read().expect("good")
    };
    world.rules.insert("campaign".to_owned(), rules);
}

#[test]
fn an_entry_comes_moves_and_goes_with_its_entity() {
    let mut world = World::new(1);
    let sent = world.put("campaign", "c-1", r#"{"name":"a","channel":"tv"}"#);
    assert_eq!(sent, [], "nobody who writes waits for an index");
    world.settle();
    let entries = |world: &World| compare(world, "campaign", "channel").0.into_iter().collect::<Vec<_>>();
    assert_eq!(entries(&world), ["tv c-1"]);
    let version = world.version("campaign.by-channel", "tv c-1");
    world.patch("campaign", "c-1", r#"{"name":"b"}"#);
    world.settle();
    assert_eq!(
        world.version("campaign.by-channel", "tv c-1"),
        version,
        "nothing was sent"
    );
    world.patch("campaign", "c-1", r#"{"channel":"out of home"}"#);
    world.settle();
    assert_eq!(entries(&world), ["out!Pof!Phome c-1"]);
    world.patch("campaign", "c-1", r#"{"channel":"tv"}"#);
    world.settle();
    assert_eq!(entries(&world), ["tv c-1"]);
    world.patch("campaign", "c-1", r#"{"channel":null}"#);
    world.settle();
    assert_eq!(entries(&world), [""; 0]);
    world.patch("campaign", "c-1", r#"{"channel":"tv"}"#);
    world.write("campaign", "c-1", Change::Delete).expect("it is there");
    world.settle();
    assert_eq!(entries(&world), [""; 0]);
}

#[test]
fn the_change_and_its_messages_are_one() {
    let mut world = World::new(1);
    world.put("campaign", "c-1", r#"{"name":"a","channel":"tv"}"#);
    world.settle();
    world.patch("campaign", "c-1", r#"{"channel":"radio"}"#);
    let tally: Option<Tally> = read_row(&tally_row(&Position::new("campaign", "c-1")), &world.rows).expect("readable");
    assert_eq!(tally.map(|tally| tally.outstanding), Some(2));
    let refused = world.write("campaign", "c-1", Change::Patch(r#"{"channel":5}"#.into()));
    assert_eq!(refused.expect_err("no text").0, Code::AgainstSchema);
    let again: Option<Tally> = read_row(&tally_row(&Position::new("campaign", "c-1")), &world.rows).expect("readable");
    assert_eq!(again, tally);
}

#[test]
fn what_was_there_before_its_index_is_entered_by_a_rebuild() {
    let mut world = World::new(1);
    change_schema(&mut world, 2, false);
    for (key, channel) in [("c-1", "tv"), ("c-2", "radio"), ("c-3", "tv")] {
        world.put("campaign", key, &format!(r#"{{"name":"a","channel":"{channel}"}}"#));
    }
    world.settle();
    assert_eq!(world.all_of("campaign.by-channel"), [""; 0]);
    let early = world.write("campaign", "c-1", reindex("channel", true, &[]));
    assert_eq!(early.expect_err("the shard knows no index").0, Code::SchemaBehind);
    change_schema(&mut world, 3, true);
    // A write of whatever kind enters an entity, too.
    world.patch("campaign", "c-2", r#"{"name":"b"}"#);
    world.settle();
    assert_eq!(compare(&world, "campaign", "channel").0.len(), 1);
    let version = world.version("campaign", "c-1");
    for key in ["c-1", "c-2", "c-3", "c-1"] {
        world
            .write("campaign", key, reindex("channel", true, &[]))
            .expect("sent");
    }
    world.settle();
    assert_eq!(world.version("campaign", "c-1"), version);
    assert_eq!(is_exact(&world), Ok(3));
}

#[test]
fn entries_that_nobody_looked_after_are_taken_back() {
    let mut world = World::new(1);
    world.put("campaign", "c-1", r#"{"name":"a","channel":"tv"}"#);
    world.put("campaign", "c-2", r#"{"name":"a","channel":"tv"}"#);
    world.put("campaign", "c-3", r#"{"name":"a","channel":"tv"}"#);
    world.settle();
    change_schema(&mut world, 2, false);
    world.patch("campaign", "c-1", r#"{"channel":"radio"}"#);
    world.write("campaign", "c-2", Change::Delete).expect("it is there");
    change_schema(&mut world, 3, true);
    world.settle();
    assert!(is_exact(&world).is_err());
    let other = world.write("campaign", "c-1", reindex("channel", true, &["tv c-2"]));
    assert_eq!(other.expect_err("not about it").0, Code::BadRequest);
    for (key, entry) in [("c-1", "tv c-1"), ("c-2", "tv c-2"), ("c-3", "tv c-3")] {
        world
            .write("campaign", key, reindex("channel", true, &[entry]))
            .expect("sent");
    }
    world.settle();
    assert_eq!(is_exact(&world), Ok(2));
    // Without an index no entry is anybody's own.
    change_schema(&mut world, 4, false);
    let stale = world.write("campaign", "c-1", reindex("channel", true, &[]));
    assert_eq!(stale.expect_err("no index any more").0, Code::SchemaBehind);
    for (key, entry) in [("c-1", "radio c-1"), ("c-3", "tv c-3")] {
        world
            .write("campaign", key, reindex("channel", false, &[entry]))
            .expect("sent");
    }
    world.settle();
    assert_eq!(compare(&world, "campaign", "channel").0.len(), 0);
}

#[test]
fn a_service_without_a_schema_has_no_index() {
    let mut world = World::new(1);
    let write = crate::protocol::request::Write {
        service: "plain".to_owned(),
        key: "x".to_owned(),
        id: crate::protocol::id::RequestId(9),
        condition: crate::protocol::request::Condition::Always,
        change: reindex("a", true, &[]),
    };
    let outcome = super::machine::apply(
        &write,
        super::schema_tests::CONTEXT,
        &NoRules,
        &mut world.rows,
        &mut super::machine::Delta::default(),
    );
    assert_eq!(
        outcome.expect("readable").expect_err("no index").code,
        Code::SchemaBehind
    );
}

/// Random histories of one world, as in `schema_tests`. `plant` takes something away from what was sent.
fn history(seed: u64, plant: &dyn Fn(&mut World)) -> Result<usize, String> {
    let mut world = World::new(seed);
    for _ in 0..80 {
        let (campaign, profile) = (world.rng.u8(0..4), world.rng.u8(0..6));
        let (campaign, profile) = (format!("c-{campaign}"), format!("p-{profile}"));
        let word = ["tv", "radio", "out of home", ""][world.rng.usize(0..4)];
        let change = match world.rng.u8(0..9) {
            0 | 1 => {
                let text = format!(
                    r#"{{"name":"a","channel":"{word}","profiles":[{{"key":"{profile}","region":"{word}"}}]}}"#
                );
                world.write("campaign", &campaign, Change::Put(text.into()))
            }
            2 | 3 => {
                let text = format!(r#"{{"channel":"{word}"}}"#);
                world.write("campaign", &campaign, Change::Patch(text.into()))
            }
            4 => world.write("campaign", &campaign, Change::Patch(r#"{"channel":null}"#.into())),
            5 => world.write("campaign", &campaign, Change::Delete),
            6 => world.write("profile", &profile, Change::Delete),
            7 => {
                let entry = index::entry_key("tv", &campaign);
                world.write("campaign", &campaign, reindex("channel", true, &[&entry]))
            }
            _ => {
                let text = format!(r#"{{"region":"{word}"}}"#);
                world.write("profile", &profile, Change::Patch(text.into()))
            }
        };
        if let Err((code, text)) = change {
            assert_eq!(code, Code::NotFound, "{text}");
        }
        plant(&mut world);
        let most = world.rng.usize(0..8);
        world.deliver_some(most);
    }
    world.settle();
    world.check();
    is_exact(&world)
}

#[test]
fn an_index_is_exact_when_all_is_quiet() {
    let mut rows = 0;
    for seed in 0..150 {
        rows += history(seed, &|_| {}).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(rows > 300, "{rows}");
}

/// What the property above is good for: without the message that takes an old entry back, it fails.
#[test]
fn a_forgotten_removal_is_found() {
    let forget = |world: &mut World| {
        use super::message::{Letter, outbox_row};
        use crate::protocol::activity::Body;
        for (from, to) in world.pairs() {
            for number in 1..40 {
                let row = outbox_row(&from, &to, number);
                let Some(letter) = world.rows.0.get(&row) else { continue };
                let mut letter: Letter = crate::protocol::codec::decode(letter).expect("a letter");
                if to.parts().0 == "campaign.by-channel" && letter.body == Body::Delete {
                    let by = "a bug".to_owned();
                    letter.body = Body::Cancelled { by };
                    world.rows.0.insert(row, crate::protocol::codec::encode(&letter));
                }
            }
        }
    };
    let caught: BTreeMap<u64, bool> = (0..20).map(|seed| (seed, history(seed, &forget).is_err())).collect();
    assert!(caught.values().filter(|caught| **caught).count() > 15, "{caught:?}");
}
