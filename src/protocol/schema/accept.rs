//! What an entity does with a message that has arrived.
use bytes::Bytes;

use super::document::{Document, Raw, kind_of};
use super::validate::tell;
use super::{Accept, Schema, Taken};
use crate::protocol::activity::Body;
use crate::protocol::json;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It changes nothing: what it wants is so already, or does not concern this entity any more.
    Nothing,
    /// This is the document now.
    Write(Bytes),
    /// The entity is deleted.
    Delete,
    /// It is refused, and the sender is told why.
    Refused(String),
}

impl Schema {
    /// Judges a message from `service`/`key`, for an entity that has this document (`None`: it does not exist).
    pub fn receive(&self, service: &str, key: &str, body: &Body, before: Option<&Document>) -> Verdict {
        let parent = self.parent_field(service);
        let is_parent = parent.is_some_and(|relation| {
            before
                .and_then(|document| document.text(&relation.field))
                .is_some_and(|named| named == key)
        });
        let what = match body {
            Body::Put { .. } => Taken::Put,
            Body::Merge { .. } => Taken::Set,
            Body::Delete => Taken::Delete,
            Body::Detach { .. } => Taken::Detach,
            Body::Call { action, .. } => Taken::Call(action.clone()),
            _ => return Verdict::Nothing,
        };
        let entries: Vec<&Accept> = self
            .accepts
            .iter()
            .filter(|accept| accept.what == what && accept.from.as_deref().is_none_or(|from| from == service))
            .collect();
        if let Body::Call { action: name, params } = body {
            let Some(accept) = entries.first() else {
                return Verdict::Refused(format!("{} accepts no call `{name}` from {service}", self.service));
            };
            let Some(document) = before else {
                return Verdict::Refused("it does not exist".to_owned());
            };
            if accept.from.is_none() && !is_parent {
                return Verdict::Refused(format!("it is no child of {service}/{key}"));
            }
            return self.call(accept, params, document);
        }
        // A service that is named may; otherwise only a parent's word counts, and a former parent's comes too late and
        // concerns the entity no more.
        if entries.iter().all(|accept| accept.from.is_none()) {
            if parent.is_none() {
                return Verdict::Refused(format!("{} has no parent in {service}", self.service));
            }
            if !is_parent && what != Taken::Put {
                return Verdict::Nothing;
            }
        }
        let refuses = |accept: &&&Accept| accept.refuse_when.as_ref().is_some_and(|when| when.holds_now(before));
        if let Some(refusal) = entries.iter().find(refuses) {
            return Verdict::Refused(refusal.reason.clone());
        }
        match (body, before) {
            (Body::Put { document }, _) => match Document::parse(document) {
                Ok(mut document) => {
                    if let Some(relation) = parent {
                        document.set(&relation.field, Raw::text(key).0.into_string());
                    }
                    self.judged(document, before)
                }
                Err(error) => Verdict::Refused(error),
            },
            (Body::Merge { patch }, Some(document)) => self.merge(patch, document),
            (Body::Detach { .. }, Some(document)) if is_parent => {
                let mut after = document.clone();
                if let Some(relation) = parent {
                    after.remove(&relation.field);
                }
                self.judged(after, before)
            }
            (Body::Delete, Some(_)) => Verdict::Delete,
            _ => Verdict::Nothing,
        }
    }

    fn merge(&self, patch: &Bytes, before: &Document) -> Verdict {
        let fields = match Document::parse(patch) {
            Ok(fields) => fields,
            Err(error) => return Verdict::Refused(error),
        };
        let is_deep = fields.fields().any(|(_, value)| kind_of(value) == "an object");
        if is_deep {
            let merged = json::merge_patch(&before.encode(), patch);
            let judged = merged.as_deref().map_err(Clone::clone).and_then(Document::parse);
            return judged.map_or_else(Verdict::Refused, |after| self.judged(after, Some(before)));
        }
        let mut after = before.clone();
        for (name, value) in fields.fields() {
            set(&mut after, name, value);
        }
        self.judged(after, Some(before))
    }

    fn call(&self, accept: &Accept, params: &[u8], before: &Document) -> Verdict {
        if accept
            .refuse_when
            .as_ref()
            .is_some_and(|when| when.holds_now(Some(before)))
        {
            return Verdict::Refused(accept.reason.clone());
        }
        let params = match Document::parse(params) {
            Ok(params) => params,
            Err(error) => return Verdict::Refused(format!("the parameters: {error}")),
        };
        let unknown = params
            .fields()
            .find(|(name, _)| !accept.copy.iter().any(|(_, param)| param == name));
        if let Some((name, _)) = unknown {
            return Verdict::Refused(format!("the call has no parameter `{name}`"));
        }
        let mut after = before.clone();
        for (name, value) in &accept.set {
            after.set(name, value.0.to_string());
        }
        for (name, param) in &accept.copy {
            if let Some(value) = params.field(param) {
                set(&mut after, name, value);
            }
        }
        self.judged(after, Some(before))
    }

    /// What a changed document comes to. One that is as it was changes nothing, so that no action follows from it.
    fn judged(&self, after: Document, before: Option<&Document>) -> Verdict {
        let after = match self.validate(after) {
            Ok(after) => after,
            Err(found) => return Verdict::Refused(tell(&found)),
        };
        if before.is_some_and(|before| before.is_same(&after)) {
            return Verdict::Nothing;
        }
        let (bytes, limit) = (after.encode(), self.limits.document_bytes);
        if bytes.len() > limit {
            return Verdict::Refused(format!(
                "the document would have {} bytes, more than {limit}",
                bytes.len()
            ));
        }
        Verdict::Write(bytes)
    }

    /// The sender's document with a field that says who refused and why.
    pub fn marked<'a>(&self, field: &str, text: &str, before: &Document<'a>) -> Option<Document<'a>> {
        let limit = match self.field(field).map(|field| &field.kind) {
            Some(super::FieldType::String { max_length, .. }) => max_length.map_or(MARK_MAX, |max| max as usize),
            _ => return None,
        };
        let cut: String = text.chars().take(limit.min(MARK_MAX)).collect();
        let mut after = before.clone();
        after.set(field, Raw::text(&cut).0.into_string());
        let after = self.validate(after).ok()?;
        (!before.is_same(&after)).then_some(after)
    }
}

/// Longest text of a mark. Unit: characters.
const MARK_MAX: usize = 500;

fn set(document: &mut Document, name: &str, value: &str) {
    if value == "null" {
        document.remove(name);
    } else if document.field(name).is_none_or(|known| known != value) {
        document.set(name, value.to_owned());
    }
}

impl Document<'_> {
    /// Whether both hold the same fields with the same bytes, in any order.
    pub fn is_same(&self, other: &Document) -> bool {
        self.len() == other.len() && self.fields().all(|(name, value)| other.field(name) == Some(value))
    }
}

/// The text of a refusal's sender, for a mark.
pub fn mark_text(service: &str, key: &str, reason: &str) -> String {
    format!("{service}/{key}: {reason}")
}
