use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::operation::{document, stored};
use super::*;
use crate::protocol::request::Entity;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Record)]
#[isx(service = "campaign", rules = RULES)]
struct Campaign {
    #[isx(max_length = 200)]
    name: String,
    #[isx(default = "draft")]
    status: Status,
    #[isx(min = 0)]
    budget: i64,
    #[serde(rename = "startsAt")]
    #[isx(timestamp)]
    starts_at: Option<String>,
    #[isx(max_length = 20)]
    tags: Vec<String>,
    weights: std::collections::BTreeMap<String, f64>,
    #[isx(parent = "advertiser")]
    advertiser: Option<String>,
    #[isx(children, on_delete = "detach")]
    profiles: Vec<Profile>,
}

const RULES: &str = r#"
[aggregate.count]
of = "profiles"
count = true
"#;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Choice)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Draft,
    OnAir,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Record)]
#[isx(service = "profile")]
struct Profile {
    #[isx(key)]
    id: Option<String>,
    #[isx(parent = "campaign")]
    campaign: Option<String>,
    #[isx(max = 120)]
    age_min: u8,
    #[isx(index)]
    channel: Option<String>,
}

fn spring() -> Campaign {
    Campaign {
        name: "spring".to_owned(),
        status: Status::OnAir,
        budget: 100,
        starts_at: None,
        tags: vec!["a".to_owned()],
        weights: [("x".to_owned(), 0.5)].into(),
        advertiser: None,
        profiles: vec![
            Profile {
                id: Some("p-1".to_owned()),
                campaign: None,
                age_min: 18,
                channel: None,
            },
            Profile {
                id: None,
                campaign: None,
                age_min: 30,
                channel: Some("web".to_owned()),
            },
        ],
    }
}

#[test]
fn a_struct_is_its_schema() {
    let wanted = r#"service = "campaign"

[fields]
name = { type = "string", required = true, max_length = 200 }
status = { type = "enum", values = ["draft", "on-air"], default = "draft" }
budget = { type = "integer", required = true, min = 0 }
startsAt = { type = "timestamp" }
tags = { type = "list", items = { type = "string" }, required = true, max_length = 20 }
weights = { type = "map", items = { type = "number" }, required = true }

[parent_relation.advertiser]
service = "advertiser"

[child_relation.profiles]
service = "profile"
key = "id"
on_delete = "detach"

[aggregate.count]
of = "profiles"
count = true
"#;
    assert_eq!(Campaign::schema_text(), wanted);
}

#[test]
fn what_a_struct_says_is_a_schema_and_its_documents_are_valid() {
    use crate::protocol::schema::Schema;
    for text in [Campaign::schema_text(), Profile::schema_text()] {
        Schema::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn a_combined_object_is_one_document_without_what_is_not_there() {
    let document: serde_json::Value = serde_json::from_slice(&document(&spring()).expect("a document")).expect("JSON");
    assert_eq!(
        document,
        json!({
            "name": "spring", "status": "on-air", "budget": 100, "tags": ["a"], "weights": {"x": 0.5},
            "profiles": [{"id": "p-1", "age_min": 18}, {"age_min": 30, "channel": "web"}],
        })
    );
}

#[test]
fn what_is_read_has_its_key_and_its_children() {
    let entity = Entity {
        version: 3,
        updated_ms: 5,
        document: r#"{"age_min": 18, "campaign": "c-1"}"#.into(),
        ..Entity::default()
    };
    let profile: Stored<Profile> = stored("p-1", &entity, Map::new()).expect("fits");
    assert_eq!((profile.version, profile.value.id.as_deref()), (3, Some("p-1")));
    assert_eq!(profile.value.campaign.as_deref(), Some("c-1"));

    let bad = Entity {
        document: r#"{"age_min": "old"}"#.into(),
        ..entity
    };
    let error = stored::<Profile>("p-1", &bad, Map::new()).expect_err("a text is no number");
    assert_eq!(error.to_string(), "profile/p-1 does not fit its struct");
}
