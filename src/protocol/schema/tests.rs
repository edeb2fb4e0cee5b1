//! The example schemas, and the laws of what is made of them.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::accept::Verdict;
use super::action::{Send, Transition};
use super::bundle::{Bundle, Ruleset, SchemaText};
use super::check::{Schemas, check_all};
use super::document::Document;
use super::validate::tell;
use super::*;
use crate::protocol::activity::Body;
use crate::protocol::id::RequestId;

const ADVERTISER: &str = include_str!("../../../examples/schemas/advertiser.toml");
const CAMPAIGN: &str = include_str!("../../../examples/schemas/campaign.toml");
const PROFILE: &str = include_str!("../../../examples/schemas/profile.toml");

fn texts() -> BTreeMap<String, SchemaText> {
    let all = [("advertiser", ADVERTISER), ("campaign", CAMPAIGN), ("profile", PROFILE)];
    let text = |(service, text): (&str, &str)| {
        let text = SchemaText {
            service: service.to_owned(),
            version: 1,
            revision: 1,
            text: text.to_owned(),
        };
        (service.to_owned(), text)
    };
    all.into_iter().map(text).collect()
}

fn rules(service: &str) -> Ruleset {
    let bundle = Bundle::of(service, &texts()).expect("a schema");
    bundle.read().expect("readable")
}

fn schemas(all: &[&str]) -> Schemas {
    let parsed = all
        .iter()
        .map(|text| Schema::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}")));
    parsed
        .map(|schema| (schema.service.clone(), Arc::new(schema)))
        .collect()
}

fn problems(all: &[&str]) -> String {
    check_all(&schemas(all)).map_or_else(|error| error.to_string(), |()| String::new())
}

fn parse_problems(text: &str) -> String {
    Schema::parse(text).map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn the_examples_fit_together() {
    assert_eq!(problems(&[ADVERTISER, CAMPAIGN, PROFILE]), "");
    let campaign = rules("campaign");
    assert_eq!(campaign.related.keys().collect::<Vec<_>>(), ["advertiser", "profile"]);
}

#[test]
fn a_text_that_is_no_schema_is_told_where() {
    for (text, says) in [
        ("service = ", "line 1: "),
        ("", "service: is missing"),
        ("service = 'Campaign'", "service: `Campaign` is not a service name"),
        (
            "format = 2\nservice = 'x'",
            "format: 2 is newer than what this isx reads (1)",
        ),
        (
            "service = 'x'\nfields.a = { type = 'text' }",
            "fields.a.type: `text` is none of string, integer",
        ),
        (
            "service = 'x'\nfields.a = { type = 'string', lenght = 7 }",
            "fields.a.lenght: there is no such setting",
        ),
        (
            "service = 'x'\nfield.a = { type = 'string' }",
            "field: there is no such setting",
        ),
        (
            "service = 'x'\nfields.a = { type = 'integer', min = 1.5 }",
            "fields.a.min: 1.5 is not a bound of integer",
        ),
        (
            "service = 'x'\nfields.a = { type = 'integer', min = 5, max = 4 }",
            "the minimum 5 is above the maximum 4",
        ),
        (
            "service = 'x'\nfields.a = { type = 'integer', min = 5, default = 4 }",
            "fields.a.default: 4 is below",
        ),
        (
            "service = 'x'\nfields.a = { type = 'enum' }",
            "fields.a.values: an enum names its values",
        ),
        (
            "service = 'x'\nfields.a = { type = 'json', index = true }",
            "fields.a.index: lists, maps and json",
        ),
        (
            "service = 'x'\nfields.a = { type = 'list', items = { type = 'no' } }",
            "fields.a.items.type: `no`",
        ),
        (
            "service = 'x'\nchild_relation.a = { service = 'x' }",
            "an entity is not its own service's child",
        ),
        (
            "service = 'x'\nchild_relation.a = { service = 'y', on_delete = 'drop' }",
            "none of cascade, detach, refuse",
        ),
        (
            "service = 'x'\n[[action]]\nname = 'a'\non = ['put']\nto = 'b'\ndelete = true",
            "`b` is neither a child",
        ),
        (
            "service = 'x'\n[[action]]\nname = 'a'\non = ['puts']\nto = 'b'",
            "action[0] (a).on: `puts` is none of",
        ),
        (
            "service = 'x'\n[[action]]\nname = 'a'\non = ['put']\nto = 'b'",
            "exactly one of `set`/`copy`",
        ),
        (
            "service = 'x'\n[[accept]]\ncall = 'a'\nset = { b = 1 }",
            "accept (a).set: x has no field `b`",
        ),
        (
            "service = 'x'\n[[accept]]\ncall = 'a'\nreason = 'r'",
            "`refuse_when` and `reason` go together",
        ),
        ("service = 'x'\npool.b = {}", "pool.b: a pool is an integer field"),
        (
            "service = 'x'\nlimits.document_bytes = 0",
            "limits.document_bytes: 1 to 1048576 are allowed",
        ),
        (
            "service = 'x'\nfields.a = { type = 'string' }\naggregate.a = { of = 'b', count = true, sum = 'c' }",
            "either",
        ),
    ] {
        let found = parse_problems(text);
        assert!(found.contains(says), "{text}\n{found}");
    }
    let several = parse_problems("service = 'x'\nfields.a = { type = 'no' }\nfields.b = { type = 'no' }\nz = 1");
    assert_eq!(several.lines().count(), 3, "{several}");
}

#[test]
fn schemas_that_do_not_fit_together_are_told_apart() {
    let unknown = problems(&[CAMPAIGN, PROFILE]);
    assert!(
        unknown.contains("no schema of a service `advertiser` is known"),
        "{unknown}"
    );
    let alone = problems(&["service = 'a'\nchild_relation.bs = { service = 'b' }", "service = 'b'"]);
    assert!(alone.contains("b has no parent_relation to a"), "{alone}");
    for (from, to, says) in [
        (
            "call = \"pause\"\ncopy",
            "call = \"stop\"\ncopy",
            "profile accepts no call `stop` from campaign",
        ),
        (
            "set = { status = \"active\" }",
            "set = { state = \"active\" }",
            "profile has no field `state`",
        ),
        (
            "set = { status = \"active\" }",
            "set = { status = \"on\" }",
            "\"on\" is none of active, paused",
        ),
        (
            "sum = \"reach\"",
            "sum = \"region\"",
            "profile has no integer field `region`",
        ),
        ("key = \"key\"", "key = \"region\"", "profile has a field of this name"),
    ] {
        let changed = CAMPAIGN.replace(from, to);
        assert_ne!(changed, CAMPAIGN, "{from}");
        let found = problems(&[ADVERTISER, &changed, PROFILE]);
        assert!(found.contains(says), "{to}\n{found}");
    }
    let required = PROFILE.replace(
        "[fields]",
        "[fields]\ncampaign = { type = \"string\", required = true }",
    );
    assert_eq!(problems(&[ADVERTISER, CAMPAIGN, &required]), "");
    let detaching = CAMPAIGN.replace("\"cascade\"", "\"detach\"");
    let found = problems(&[ADVERTISER, &detaching, &required]);
    assert!(found.contains("a child can't be without its parent"), "{found}");
}

#[test]
fn circles_of_relations_are_refused() {
    let link = |of: &str, child: &str, parent: &str| {
        format!(
            "service = '{of}'\nchild_relation.down = {{ service = '{child}' }}\nparent_relation.up = {{ service = '{parent}' }}"
        )
    };
    let found = problems(&[&link("a", "b", "c"), &link("b", "c", "a"), &link("c", "a", "b")]);
    assert!(found.contains("child relations lead in a circle: "), "{found}");
    assert!(found.contains("a -> b -> c -> a"), "{found}");
}

#[test]
fn actions_that_set_off_themselves_are_refused() {
    // Down and up again: the campaign tells its profiles, and each tells the campaign.
    let up = r#"
        [[action]]
        name = "tell"
        on = ["patch"]
        when = { field = "status", changed = true, equals = "paused" }
        to = "campaign"
        set = { status = "STATUS" }
    "#;
    let with = |status: &str| format!("{PROFILE}\n{}", up.replace("STATUS", status));
    assert_eq!(problems(&[ADVERTISER, CAMPAIGN, &with("ended")]), "");
    let found = problems(&[ADVERTISER, CAMPAIGN, &with("paused")]);
    assert!(found.contains("set off each other without end"), "{found}");
    assert!(
        found.contains("campaign.pause -> profile.tell -> campaign.pause"),
        "{found}"
    );

    // A refusal marks the sender, and the mark is a change that sets off the action again.
    let unconditional = CAMPAIGN.replace(
        "when = { field = \"status\", changed = true, equals = \"paused\" }\n",
        "",
    );
    let found = problems(&[ADVERTISER, &unconditional, PROFILE]);
    assert!(found.contains("campaign.pause -> campaign.pause"), "{found}");
}

fn document(text: &str) -> Document<'_> {
    Document::parse(text.as_bytes()).expect("an object")
}

#[test]
fn a_combined_object_is_split_and_told_by_path() {
    let campaign = rules("campaign");
    let id = RequestId(7);
    let text = r#"{"name":"spring", "profiles":[{"key":"p-1","age_min": 18},{"region":"de"}], "budget":10}"#;
    let (own, children) = campaign.split_combined(&Bytes::from(text), "c-1", id).expect("good");
    assert_eq!(own, r#"{"name":"spring","budget":10,"status":"active"}"#);
    let profile = r#"{"age_min":18,"campaign":"c-1","locked":false,"reach":0,"status":"active"}"#;
    assert_eq!(
        (children[0].key.as_str(), &children[0].document[..]),
        ("p-1", profile.as_bytes())
    );
    assert_eq!(children[1].key.len(), 16);

    let whole = Bytes::from(r#"{"name":"a","budget":1 ,"status":"paused"}"#);
    let (own, children) = campaign.split_combined(&whole, "c-1", id).expect("good");
    assert_eq!((own, children.len()), (whole, 0));

    for (text, says) in [
        (
            r#"{"name":"a","profiles":[{},{"age_min":12}]}"#,
            "profiles[1].age_min: 12 is below the minimum 13",
        ),
        (r#"{"name":"a","profiles":[{"key":7}]}"#, "profiles[0].key: 7 is no key"),
        (
            r#"{"name":"a","profiles":[{"key":""}]}"#,
            "profiles[0].key: an entity key has 1 to",
        ),
        (
            r#"{"name":"a","profiles":[{"key":"x"},{"key":"x"}]}"#,
            "profiles[1].key: the key `x` occurs twice; first at [0]",
        ),
        (
            r#"{"name":"a","profiles":[7]}"#,
            "profiles[0]: a child is an object; this is a number",
        ),
        (
            r#"{"name":"a","profiles":{}}"#,
            "profiles: children are a list of objects; this is an object",
        ),
        (
            r#"{"name":"a","profiles":null}"#,
            "profiles: children are a list of objects; this is null",
        ),
        (
            r#"{"name":"a","profiles":[{"colour":1}]}"#,
            "profiles[0].colour: profile has no such field",
        ),
        (
            r#"{"name":"a","profiles":[{"campaign":"c-2"}]}"#,
            "profiles[0].campaign: it names `c-2` as its parent",
        ),
        (r#"{"profiles":[]}"#, "name: is missing"),
    ] {
        let found = campaign.split_combined(&Bytes::from(text), "c-1", id).expect_err(text);
        assert!(tell(&found).contains(says), "{text}: {}", tell(&found));
    }
    let many = vec!["{}"; 1001].join(",");
    let text = format!(r#"{{"name":"a","profiles":[{many}]}}"#);
    let found = campaign
        .split_combined(&Bytes::from(text), "c-1", id)
        .expect_err("too many");
    assert!(
        tell(&found).contains("1001 children in one update; at most 1000"),
        "{}",
        tell(&found)
    );
}

/// Random combined objects: no child is lost or doubled, each names its parent, and the same request makes the same keys.
#[test]
fn a_split_loses_no_child_and_is_the_same_again() {
    let campaign = rules("campaign");
    let mut rng = fastrand::Rng::with_seed(11);
    let mut made = std::collections::BTreeSet::new();
    for round in 0..300u128 {
        let count = rng.usize(0..40);
        let objects: Vec<String> = (0..count)
            .map(|n| match rng.u8(0..3) {
                0 => format!(r#"{{"key":"k-{n}","reach":{n}}}"#),
                1 => format!(r#"{{"reach":{n}}}"#),
                _ => format!(r#"{{"reach":{n},"key":"ü\u0041{n}","region":"x"}}"#),
            })
            .collect();
        let text = Bytes::from(format!(r#"{{"profiles":[{}],"name":"n"}}"#, objects.join(",")));
        let id = RequestId(round);
        let (own, children) = campaign.split_combined(&text, "c-9", id).expect("good");
        let again = campaign.split_combined(&text, "c-9", id).expect("good");
        assert_eq!((&own, &children), (&again.0, &again.1));
        assert_eq!(children.len(), count);
        for (n, child) in children.iter().enumerate() {
            let document = Document::parse(&child.document).expect("an object");
            assert_eq!(document.field("reach"), Some(n.to_string().as_str()));
            assert_eq!(document.text("campaign").as_deref(), Some("c-9"));
            assert_eq!(document.field("key"), None);
            if child.key.len() == 16 {
                assert!(made.insert(child.key.clone()), "{} was made twice", child.key);
            }
        }
    }
    assert!(made.len() > 1000);
}

fn sent(rules: &Ruleset, kind: ChangeKind, before: Option<&str>, after: Option<&str>) -> Vec<String> {
    let (before, after) = (before.map(document), after.map(document));
    let change = Transition {
        kind,
        before: before.as_ref(),
        after: after.as_ref(),
    };
    let mut children = |relation: &str| -> Result<Vec<String>, ()> {
        assert_eq!(relation, "profiles");
        Ok(vec!["p-1".to_owned(), "p-2".to_owned()])
    };
    let sends = rules
        .consequences(&change, true, &mut children)
        .expect("no rows are read")
        .expect("allowed");
    sends.iter().map(show).collect()
}

fn show(send: &Send) -> String {
    let act = match &send.body {
        Body::Put { .. } => "put".to_owned(),
        Body::Merge { patch } => format!("set {}", String::from_utf8_lossy(patch)),
        Body::Delete => "delete".to_owned(),
        Body::Detach { field } => format!("detach {field}"),
        Body::Call { action, params } => format!("call {action} {}", String::from_utf8_lossy(params)),
        Body::Attach { relation, values } => format!("attach {relation} {values:?}"),
        Body::Leave { relation } => format!("leave {relation}"),
        other => panic!("a schema sends no {other:?}"),
    };
    format!("{}/{} {act}", send.service, send.key)
}

#[test]
fn changes_set_off_what_the_schema_declares() {
    let campaign = rules("campaign");
    let (active, paused) = (r#"{"name":"a","status":"active"}"#, r#"{"name":"a","status":"paused"}"#);
    let none: Vec<String> = Vec::new();
    assert_eq!(sent(&campaign, ChangeKind::Patch, Some(active), Some(active)), none);
    assert_eq!(
        sent(&campaign, ChangeKind::Patch, Some(active), Some(paused)),
        [
            r#"profile/p-1 call pause {"reason":null}"#,
            r#"profile/p-2 call pause {"reason":null}"#
        ]
    );
    assert_eq!(sent(&campaign, ChangeKind::Put, Some(paused), Some(paused)), none);
    assert_eq!(
        sent(&campaign, ChangeKind::Put, Some(paused), Some(active)),
        [
            r#"profile/p-1 set {"status":"active"}"#,
            r#"profile/p-2 set {"status":"active"}"#
        ]
    );
    assert_eq!(sent(&campaign, ChangeKind::Put, None, Some(active)), none);
    assert_eq!(
        sent(&campaign, ChangeKind::Delete, Some(paused), None),
        ["profile/p-1 delete", "profile/p-2 delete"]
    );
    // The advertiser hears of its campaign: what it feeds, a move, the end.
    let at = |advertiser: &str, budget: u32| format!(r#"{{"name":"a","advertiser":"{advertiser}","budget":{budget}}}"#);
    let (x1, x2, y2) = (at("x", 1), at("x", 2), at("y", 2));
    let feed = |who: &str, budget: u32| {
        format!(r#"advertiser/{who} attach campaigns [("budget_total", {budget}), ("campaign_count", 1)]"#)
    };
    let quiet = |sends: Vec<String>| -> Vec<String> {
        sends
            .into_iter()
            .filter(|send| send.starts_with("advertiser"))
            .collect()
    };
    assert_eq!(quiet(sent(&campaign, ChangeKind::Put, None, Some(&x1))), [feed("x", 1)]);
    assert_eq!(quiet(sent(&campaign, ChangeKind::Put, Some(&x1), Some(&x1))), none);
    assert_eq!(
        quiet(sent(&campaign, ChangeKind::Put, Some(&x1), Some(&x2))),
        [feed("x", 2)]
    );
    let moved = ["advertiser/x leave campaigns".to_owned(), feed("y", 2)];
    assert_eq!(quiet(sent(&campaign, ChangeKind::Put, Some(&x2), Some(&y2))), moved);
    assert_eq!(
        quiet(sent(&campaign, ChangeKind::Delete, Some(&y2), None)),
        ["advertiser/y leave campaigns"]
    );
}

#[test]
fn a_parent_that_must_not_leave_children_is_not_deleted() {
    let advertiser = rules("advertiser");
    let before = document(r#"{"name":"x"}"#);
    let change = Transition {
        kind: ChangeKind::Delete,
        before: Some(&before),
        after: None,
    };
    let refused = advertiser
        .consequences(&change, true, &mut |_| Ok::<_, ()>(vec!["c-1".to_owned()]))
        .expect("no rows are read")
        .expect_err("it has a child");
    assert_eq!(
        (refused.service.as_str(), refused.example.as_str(), refused.count),
        ("campaign", "c-1", 1)
    );
    let alone = advertiser.consequences(&change, true, &mut |_| Ok::<_, ()>(Vec::new()));
    assert_eq!(alone.expect("no rows are read"), Ok(Vec::new()));
}

fn receive(body: Body, from: (&str, &str), before: Option<&str>) -> String {
    let profile = Schema::parse(PROFILE).expect("a schema");
    let before = before.map(document);
    match profile.receive(from.0, from.1, &body, before.as_ref()) {
        Verdict::Nothing => "nothing".to_owned(),
        Verdict::Write(document) => String::from_utf8_lossy(&document).into_owned(),
        Verdict::Delete => "delete".to_owned(),
        Verdict::Refused(why) => format!("refused: {why}"),
    }
}

#[test]
fn a_receiver_takes_what_its_schema_accepts() {
    let mine = r#"{"campaign":"c-1","status":"active","locked":false,"reach":0}"#;
    let locked = r#"{"campaign":"c-1","status":"active","locked":true,"reach":0}"#;
    let call = |name: &str, params: &'static str| Body::Call {
        action: name.to_owned(),
        params: params.into(),
    };
    let set = |fields: &'static str| Body::Merge { patch: fields.into() };
    let put = |document: &'static str| Body::Put {
        document: document.into(),
    };
    let detach = Body::Detach {
        field: "campaign".to_owned(),
    };
    let parent = ("campaign", "c-1");
    let paused = r#"{"campaign":"c-1","status":"paused","locked":false,"reach":0}"#;
    for (body, from, before, becomes) in [
        (call("pause", "{}"), parent, Some(mine), paused),
        (call("pause", "{}"), parent, Some(paused), "nothing"),
        (
            call("pause", "{}"),
            parent,
            Some(locked),
            "refused: the profile is locked",
        ),
        (call("pause", "{}"), parent, None, "refused: it does not exist"),
        (
            call("pause", "{}"),
            ("campaign", "c-2"),
            Some(mine),
            "refused: it is no child of campaign/c-2",
        ),
        (
            call("stop", "{}"),
            parent,
            Some(mine),
            "refused: profile accepts no call `stop` from campaign",
        ),
        (
            call("pause", r#"{"x":1}"#),
            parent,
            Some(mine),
            "refused: the call has no parameter `x`",
        ),
        (set(r#"{"status":"paused"}"#), parent, Some(mine), paused),
        (
            set(r#"{"status":"on"}"#),
            parent,
            Some(mine),
            "refused: status: \"on\" is none of active, paused",
        ),
        (
            set(r#"{"status":"paused"}"#),
            parent,
            Some(locked),
            "refused: the profile is locked",
        ),
        (
            set(r#"{"status":"paused"}"#),
            ("campaign", "c-2"),
            Some(mine),
            "nothing",
        ),
        (
            set("{}"),
            ("advertiser", "a"),
            Some(mine),
            "refused: profile has no parent in advertiser",
        ),
        (Body::Delete, parent, Some(mine), "delete"),
        (Body::Delete, parent, None, "nothing"),
        (Body::Delete, ("campaign", "c-2"), Some(mine), "nothing"),
        (
            detach.clone(),
            parent,
            Some(mine),
            r#"{"status":"active","locked":false,"reach":0}"#,
        ),
        (detach.clone(), ("campaign", "c-2"), Some(mine), "nothing"),
        (
            put(r#"{"reach":5}"#),
            ("campaign", "c-2"),
            Some(mine),
            r#"{"reach":5,"campaign":"c-2","locked":false,"status":"active"}"#,
        ),
        (
            put(r#"{"reach":-5}"#),
            parent,
            None,
            "refused: reach: -5 is below the minimum 0",
        ),
        (
            put("{}"),
            ("advertiser", "a"),
            None,
            "refused: profile has no parent in advertiser",
        ),
    ] {
        let tells = format!("{body:?} from {from:?} to {before:?}");
        assert_eq!(receive(body, from, before), becomes, "{tells}");
    }
}

#[test]
fn a_refusal_marks_its_sender_once() {
    let campaign = Schema::parse(CAMPAIGN).expect("a schema");
    let before = document(r#"{"name":"a","status":"paused","budget":0}"#);
    let text = accept::mark_text("profile", "p-1", "the profile is locked");
    let after = campaign.marked("problem", &text, &before).expect("a change");
    assert_eq!(
        after.text("problem").as_deref(),
        Some("profile/p-1: the profile is locked")
    );
    assert!(campaign.marked("problem", &text, &after).is_none());
    assert!(campaign.marked("budget", &text, &before).is_none());
}

#[test]
fn a_schema_says_what_is_done_about_a_refusal() {
    let campaign = Schema::parse(CAMPAIGN).expect("a schema");
    assert_eq!(campaign.refusal_of("profile", "pause"), (Some("problem"), true));
    assert_eq!(campaign.refusal_of("profile", "merge"), (Some("problem"), false));
    assert_eq!(campaign.refusal_of("profile", "put"), (Some("problem"), false));
    assert_eq!(campaign.refusal_of("profile", "delete"), (None, false));
    let pause = "call = \"pause\"\ncopy = { reason = \"paused_because\" }\n";
    let with = |refused: &str| {
        let old = format!("{pause}refused = {{ mark = \"problem\", park = true }}");
        assert!(CAMPAIGN.contains(&old));
        CAMPAIGN.replacen(&old, &format!("{pause}refused = {refused}"), 1)
    };
    assert_eq!(parse_problems(&with("{ park = true }")), "");
    assert_eq!(parse_problems(&with("{ mark = \"problem\", park = false }")), "");
    for (refused, told) in [
        (
            "{}",
            "refused.mark: `mark = \"FIELD\"`, `park = true` or both are wanted",
        ),
        (
            "{ park = false }",
            "refused.mark: `mark = \"FIELD\"`, `park = true` or both are wanted",
        ),
        ("{ park = \"yes\" }", "refused.park: \"yes\" is not true or false"),
        (
            "{ mark = \"budget\", park = true }",
            "refused.mark: `budget` is no field that holds a string",
        ),
        ("{ parks = true }", "refused.parks"),
    ] {
        let problems = parse_problems(&with(refused));
        assert!(problems.contains(told), "{refused}: {problems}");
    }
    // A refusal names what was wanted, so those that want the same must do the same about it.
    let again = format!("[[action]]\nname = \"pause_more\"\non = [\"patch\"]\nto = \"profiles\"\n{pause}");
    let twice = with("{ park = true }").replacen("[[action]]", &format!("{again}\n[[action]]"), 1);
    let problems = parse_problems(&twice);
    assert!(problems.contains("both need the same `refused`"), "{problems}");
}
