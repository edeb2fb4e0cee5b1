//! Finding entities by a field that has an index. See `protocol::schema::index`.
//!
//! An index is kept by messages, so it may be behind: an entry may be there whose entity has another value by now, or is gone,
//! and an entity may have no entry yet. What is found is therefore looked at before it is given out, and how far the index may
//! be behind is said beforehand: what was committed before [`Client::index_lag`] asked, and is not on its way then, is found.
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Client, ClientError, ListQuery, unexpected};
use crate::protocol::activity::ActivityFilter;
use crate::protocol::error::{Code, WireError};
use crate::protocol::key::Position;
use crate::protocol::request::{ListItem, Request, Response};
use crate::protocol::schema::document::{Document, Raw, same};
use crate::protocol::schema::validate::{check_value, tell};
use crate::protocol::schema::{Field, FieldType, Schema, index};

/// Entities that have a value.
#[derive(Debug, Clone, Default)]
pub struct FindQuery {
    /// Service.
    pub service: String,
    /// A field with an index.
    pub field: String,
    /// The value: texts as they are, everything else as JSON.
    pub value: String,
    /// At most this many.
    pub limit: u32,
    /// Where the page before this one stopped: its `next`.
    pub resume: Option<String>,
}

/// One page of what was found.
#[derive(Debug, Clone, Default)]
pub struct FindPage {
    /// In the order of keys, each as it was when it was looked at.
    pub items: Vec<ListItem>,
    /// Entries whose entities have another value now, or are gone.
    pub skipped: u64,
    /// What to ask for the next page with; `None` at the end. Survives splits and restarts.
    pub next: Option<String>,
}

/// How far an index is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexLag {
    /// Messages to it that are not known to be applied.
    pub outstanding: u64,
    /// When the oldest of them was recorded, by its leader's wall clock. Unit: ms since 1970.
    pub oldest_ms: Option<u64>,
    /// There was more to look through than was looked through: it may be more.
    pub is_at_least: bool,
}

impl Client {
    /// A service's schema and a field of it that has an index.
    pub async fn indexed_field(&self, service: &str, field: &str) -> Result<(Arc<Schema>, Field), ClientError> {
        let refused = |code: Code, text: String| ClientError::Refused(WireError::new(code, text));
        let schema = self.schema_of(service).await?;
        let schema =
            schema.ok_or_else(|| refused(Code::BadRequest, format!("{service} has no schema, so no index")))?;
        let Some(found) = schema.field(field).filter(|field| field.index).cloned() else {
            let known: Vec<&str> = schema.indexes().map(|field| field.name.as_str()).collect();
            let known = match known.is_empty() {
                true => "no field has one".to_owned(),
                false => format!("there is one over {}", known.join(", ")),
            };
            let text = format!("there is no index over `{field}` of {service}; {known}");
            return Err(refused(Code::BadRequest, text));
        };
        Ok((schema, found))
    }

    /// A service's newest schema.
    pub async fn schema_of(&self, service: &str) -> Result<Option<Arc<Schema>>, ClientError> {
        let request = Request::ShowSchemas {
            service: Some(service.to_owned()),
        };
        let Response::Schemas(records) = self.request(request).await? else {
            return Err(unexpected("schema show"));
        };
        let newest = records.iter().max_by_key(|record| record.schema.version);
        let read = newest.map(|record| Schema::parse(&record.schema.text)).transpose();
        let read = read.map_err(|error| ClientError::Refused(WireError::new(Code::BadSchema, error.to_string())))?;
        Ok(read.map(Arc::new))
    }

    /// Entities that have a value, by way of the index.
    pub async fn find(&self, query: &FindQuery) -> Result<FindPage, ClientError> {
        let (_, field) = self.indexed_field(&query.service, &query.field).await?;
        let refused = |text: String| ClientError::Refused(WireError::new(Code::BadRequest, text));
        let wanted = value_of(&field, &query.value).map_err(refused)?;
        let Some(written) = field.written(&wanted.0) else {
            return Err(refused(format!("{wanted} is no value of `{}`", field.name)));
        };
        let mut entries = ListQuery {
            service: index::service_of(&query.service, &field.name),
            prefix: index::prefix(&written),
            resume: query.resume.clone(),
            ..ListQuery::default()
        };
        let mut found = FindPage::default();
        loop {
            entries.limit = query.limit.saturating_sub(found.items.len() as u32).clamp(1, AT_ONCE);
            let page = self.list(&entries).await?;
            let mut looked_at = JoinSet::new();
            for (at, entry) in page.items.iter().enumerate() {
                let Some(key) = index::entity_of(&entry.key).map(str::to_owned) else {
                    continue;
                };
                let (client, service) = (self.clone(), query.service.clone());
                looked_at.spawn(async move {
                    let entity = client.get(&service, &key).await;
                    (at, key, entity)
                });
            }
            let mut entities = looked_at.join_all().await;
            entities.sort_by_key(|(at, ..)| *at);
            for (_, key, entity) in entities {
                match entity? {
                    Some(entity) if has(&entity.document, &field.name, &wanted) => found.items.push(ListItem {
                        key,
                        version: entity.version,
                        updated_ms: entity.updated_ms,
                        bytes: entity.document.len() as u32,
                        document: entity.document,
                    }),
                    _ => found.skipped += 1,
                }
            }
            match page.next {
                Some(next) if found.items.len() < query.limit as usize => entries.resume = Some(next),
                next => {
                    found.next = next;
                    return Ok(found);
                }
            }
        }
    }

    /// How far the index over a field is behind, from the messages that its entities have outstanding.
    pub async fn index_lag(&self, service: &str, field: &str) -> Result<IndexLag, ClientError> {
        let index = index::service_of(service, field);
        let (mut from, to) = (Position::new(service, ""), Position::end_of(service));
        let (mut after, mut lag) = (None, IndexLag::default());
        for _ in 0..LAG_PAGES_MAX {
            let request = Request::ListActivities {
                from: from.clone(),
                to: to.clone(),
                after: after.take(),
                filter: ActivityFilter::Pending,
                limit: LAG_ITEMS,
            };
            let Response::ActivitiesListed {
                items,
                after: more,
                next,
            } = self.request(request).await?
            else {
                return Err(unexpected("activity list"));
            };
            for item in items.iter().filter(|item| item.to.parts().0 == index) {
                lag.outstanding += item.sends.next - 1 - item.sends.acked;
                let oldest = [lag.oldest_ms, item.sends.oldest_ms].into_iter().flatten().min();
                lag.oldest_ms = oldest;
            }
            match (more, next) {
                (Some(more), _) => {
                    from = more.0.clone();
                    after = Some(more);
                }
                (None, Some(next)) => from = next,
                (None, None) => return Ok(lag),
            }
        }
        lag.is_at_least = true;
        Ok(lag)
    }
}

/// Entities that are looked at together.
const AT_ONCE: u32 = 64;
/// Pairs in one answer about what is on its way.
const LAG_ITEMS: u32 = 1_000;
/// Answers looked through to say how far an index is behind.
const LAG_PAGES_MAX: usize = 100;

/// A value as a person writes it, as the field has it.
fn value_of(field: &Field, text: &str) -> Result<Raw, String> {
    let raw = match field.kind {
        FieldType::String { .. } | FieldType::Enum(_) | FieldType::Timestamp => Raw::text(text),
        _ => Raw(text.into()),
    };
    if serde_json::from_str::<&serde_json::value::RawValue>(&raw.0).is_err() {
        return Err(format!("`{text}` is no value of `{}`", field.name));
    }
    let found = check_value(&field.name, &field.kind, &raw.0);
    if found.is_empty() { Ok(raw) } else { Err(tell(&found)) }
}

fn has(document: &Bytes, field: &str, wanted: &Raw) -> bool {
    let document = Document::parse(document);
    document.is_ok_and(|document| document.field(field).is_some_and(|value| same(value, &wanted.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_their_field_has_them() {
        let schema = Schema::parse(
            "service = 'x'\nfields.a = { type = 'string', index = true }\nfields.n = { type = 'integer', min = 1, index = true }",
        )
        .expect("good");
        let (text, number) = (schema.field("a").expect("there"), schema.field("n").expect("there"));
        assert_eq!(value_of(text, "12").map(|raw| raw.0), Ok(r#""12""#.into()));
        assert_eq!(value_of(number, "12").map(|raw| raw.0), Ok("12".into()));
        assert!(value_of(number, "0").is_err_and(|why| why.contains("minimum")));
        assert!(value_of(number, "twelve").is_err());
        let document = Bytes::from(r#"{"n":12,"a":"\u0074v"}"#);
        assert!(has(&document, "a", &Raw::text("tv")));
        assert!(!has(&document, "n", &Raw("13".into())));
    }
}
