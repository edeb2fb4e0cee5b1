//! One object with children inside, taken apart: the parent's own document and one document per child.
use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use super::bundle::Ruleset;
use super::document::{self, Document, Raw};
use super::validate::Violation;
use super::{ChildRelation, PROBLEMS_MAX};
use crate::protocol::id::RequestId;
use crate::protocol::key::check_entity_key;

/// What a combined object says of one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildUpdate {
    /// The parent's relation.
    pub relation: String,
    /// The child's service.
    pub service: String,
    /// The child's key.
    pub key: String,
    /// The child's document, naming its parent.
    pub document: Bytes,
}

impl Ruleset {
    /// Takes the children out of a combined object, or out of a patch of one. What is left is the parent's own. A child
    /// without a key gets one that is made of the request's id and its place, so that a retry makes the same.
    pub fn take_children<'a>(
        &self,
        mut document: Document<'a>,
        parent_key: &str,
        id: RequestId,
    ) -> Result<(Document<'a>, Vec<ChildUpdate>), Vec<Violation>> {
        let (mut children, mut found) = (Vec::new(), Vec::new());
        let mut count = 0;
        for (nth, relation) in self.own.schema.children.iter().enumerate() {
            let Some(list) = document.remove(&relation.field) else {
                continue;
            };
            let items = match document::items(&list) {
                Ok(items) if document::kind_of(&list) == "an array" => items,
                _ => {
                    let is = document::kind_of(&list);
                    found.push(problem(
                        &relation.field,
                        format!("children are a list of objects; this is {is}"),
                    ));
                    continue;
                }
            };
            count += items.len();
            let limit = self.own.schema.limits.children_per_update;
            if count > limit {
                let text = format!("{count} children in one update; at most {limit} are allowed");
                found.push(problem(&relation.field, text));
                break;
            }
            let mut keys: BTreeMap<String, usize> = BTreeMap::new();
            for (at, item) in items.into_iter().enumerate() {
                let path = format!("{}[{at}]", relation.field);
                match self.child(relation, &path, item.get(), parent_key, child_id(id, nth, at)) {
                    Ok(child) => {
                        if let Some(first) = keys.insert(child.key.clone(), at) {
                            let text = format!("the key `{}` occurs twice; first at [{first}]", child.key);
                            found.push(problem(&format!("{path}.{}", relation.key), text));
                        }
                        children.push(child);
                    }
                    Err(problems) => found.extend(problems),
                }
                if found.len() >= PROBLEMS_MAX {
                    break;
                }
            }
        }
        found.truncate(PROBLEMS_MAX);
        if found.is_empty() {
            Ok((document, children))
        } else {
            Err(found)
        }
    }

    fn child(
        &self,
        relation: &ChildRelation,
        path: &str,
        item: &str,
        parent_key: &str,
        id: RequestId,
    ) -> Result<ChildUpdate, Vec<Violation>> {
        let is = document::kind_of(item);
        let parsed = Document::parse(item.as_bytes());
        let (Ok(mut document), "an object") = (parsed, is) else {
            return Err(vec![problem(path, format!("a child is an object; this is {is}"))]);
        };
        let key = match document.remove(&relation.key) {
            None => id.entity_key(),
            Some(value) => {
                let place = format!("{path}.{}", relation.key);
                let Some(key) = document::text(&value).map(Cow::into_owned) else {
                    return Err(vec![problem(&place, format!("{value} is no key: a key is a string"))]);
                };
                check_entity_key(&key).map_err(|error| vec![problem(&place, error.to_string())])?;
                key
            }
        };
        if let Some(schema) = self.related.get(&relation.service) {
            if let Some(parent) = schema.parent_field(&self.own.schema.service) {
                let named = document.text(&parent.field).map(Cow::into_owned);
                if let Some(other) = named.filter(|named| named != parent_key) {
                    let text = format!("it names `{other}` as its parent and lies in `{parent_key}`");
                    return Err(vec![problem(&format!("{path}.{}", parent.field), text)]);
                }
                document.set(&parent.field, Raw::text(parent_key).0.into_string());
            }
            document = schema.validate_at(path, document)?;
        }
        let document = document.encode();
        let limit = self
            .related
            .get(&relation.service)
            .map(|schema| schema.limits.document_bytes);
        if let Some(limit) = limit.filter(|&limit| document.len() > limit) {
            let text = format!("{} bytes are more than the limit {limit}", document.len());
            return Err(vec![problem(path, text)]);
        }
        Ok(ChildUpdate {
            relation: relation.field.clone(),
            service: relation.service.clone(),
            key,
            document,
        })
    }

    /// A combined object as its own document, checked and with defaults, and its children.
    pub fn split_combined(
        &self,
        document: &Bytes,
        parent_key: &str,
        id: RequestId,
    ) -> Result<(Bytes, Vec<ChildUpdate>), Vec<Violation>> {
        let parsed = Document::parse(document).map_err(|error| vec![problem("document", error)])?;
        let before = parsed.len();
        let (rest, children) = self.take_children(parsed, parent_key, id)?;
        let rest = self.own.schema.validate(rest)?;
        let is_same = children.is_empty() && rest.len() == before;
        let own = if is_same { document.clone() } else { rest.encode() };
        let limit = self.own.schema.limits.document_bytes;
        if own.len() > limit {
            let text = format!("{} bytes are more than the limit {limit}", own.len());
            return Err(vec![problem("document", text)]);
        }
        Ok((own, children))
    }
}

/// The id that a child's key is made of: its own for each place in each request.
fn child_id(id: RequestId, relation: usize, at: usize) -> RequestId {
    let place = ((relation as u128) << 32) + at as u128 + 1;
    // Multiplied by an odd number, so that the ids of neighbouring requests do not meet.
    RequestId(id.0 ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn problem(path: &str, text: impl Into<String>) -> Violation {
    Violation {
        path: path.to_owned(),
        text: text.into(),
    }
}
