//! What others are to be told when an entity changes.
use super::bundle::Ruleset;
use super::document::{self, Document, Raw};
use super::number;
use super::{Action, ChangeKind, ChildRelation, Does, OnDelete, Schema, When};
use crate::protocol::activity::Body;

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Receiver's service.
    pub service: String,
    /// Receiver's key.
    pub key: String,
    /// What is wanted.
    pub body: Body,
}

/// What a write did to a document.
#[derive(Debug, Clone, Copy)]
pub struct Transition<'d> {
    /// What kind of change it was.
    pub kind: ChangeKind,
    /// The document before; `None` where there was none.
    pub before: Option<&'d Document<'d>>,
    /// The document after; `None` where it is deleted.
    pub after: Option<&'d Document<'d>>,
}

impl When {
    /// Whether it asks what a change did, and not only what is now.
    pub fn is_about_change(&self) -> bool {
        self.changed || self.was.is_some()
    }

    /// Whether it holds for a change. A delete is judged by the document that goes.
    pub fn holds(&self, change: &Transition) -> bool {
        let now = change
            .after
            .or(change.before)
            .and_then(|document| document.field(&self.field));
        if self.is_about_change() && change.kind != ChangeKind::Delete {
            let before = change.before.and_then(|document| document.field(&self.field));
            let is_same = match (before, now) {
                (Some(before), Some(now)) => document::same(before, now),
                (before, now) => before.is_none() && now.is_none(),
            };
            let was = |wanted: &Raw| before.is_some_and(|before| document::same(before, &wanted.0));
            if is_same || !self.was.as_ref().is_none_or(was) {
                return false;
            }
        }
        self.holds_value(now)
    }

    /// Whether a document fulfils it, as far as it speaks of one.
    pub fn holds_now(&self, document: Option<&Document>) -> bool {
        self.holds_value(document.and_then(|document| document.field(&self.field)))
    }

    fn holds_value(&self, now: Option<&str>) -> bool {
        let is = |wanted: &Raw| now.is_some_and(|now| document::same(now, &wanted.0));
        self.equals.as_ref().is_none_or(is) && !self.differs.as_ref().is_some_and(is)
    }
}

impl Schema {
    /// The actions that a change sets off.
    pub fn triggered<'s>(&'s self, change: &Transition) -> Vec<&'s Action> {
        let is_on = |action: &&Action| {
            action.on.contains(&change.kind) && action.when.as_ref().is_none_or(|when| when.holds(change))
        };
        self.actions.iter().filter(is_on).collect()
    }

    /// What is done when an entity of `service` refuses what it was asked: the field that says so, and whether the message
    /// is parked. `wanted` is the kind of message or the name of the call.
    pub fn refusal_of(&self, service: &str, wanted: &str) -> (Option<&str>, bool) {
        let child = self.children.iter().find(|relation| relation.service == service);
        if let ("put", Some(relation)) = (wanted, child) {
            return (relation.mark.as_deref(), relation.park);
        }
        let is_to = |action: &&Action| {
            let parent = self.parents.iter().find(|relation| relation.field == action.to);
            let to_child = child.is_some_and(|relation| relation.field == action.to);
            to_child || parent.is_some_and(|relation| relation.service == service)
        };
        let is_it = |action: &&Action| match &action.does {
            Does::Set { .. } => wanted == "merge",
            Does::Delete => wanted == "delete",
            Does::Detach => wanted == "detach",
            Does::Call { name, .. } => wanted == name,
        };
        // Those that can't be told apart have the same to say.
        let action = self.actions.iter().filter(is_to).find(is_it);
        action.map_or((None, false), |action| (action.mark.as_deref(), action.park))
    }

    /// The parents that a document names: field, service, key.
    pub fn parents_of(&self, document: &Document) -> Vec<(String, String, String)> {
        let named = self.parents.iter().filter_map(|relation| {
            let key = document.text(&relation.field).filter(|key| !key.is_empty())?;
            Some((relation.field.clone(), relation.service.clone(), key.into_owned()))
        });
        named.collect()
    }

    /// What a child with this document feeds to a parent of this schema. Amounts of zero are left out.
    pub fn feeds(&self, child: &str, document: &Document) -> Vec<(String, i64)> {
        let mut feeds = Vec::new();
        for aggregate in &self.aggregates {
            let is_of = self
                .child_relation(&aggregate.of)
                .is_some_and(|relation| relation.service == child);
            if !is_of
                || !aggregate
                    .when
                    .as_ref()
                    .is_none_or(|when| when.holds_now(Some(document)))
            {
                continue;
            }
            let amount = match &aggregate.sum {
                None => 1,
                Some(field) => document.field(field).and_then(number::integer).unwrap_or(0),
            };
            if amount != 0 {
                feeds.push((aggregate.name.clone(), amount));
            }
        }
        feeds
    }
}

impl Does {
    /// The message; `field` is the one in which the receiver names the sender, if it is the sender's child.
    fn body(&self, field: &str, document: Option<&Document>) -> Body {
        let object = |constants: &[(String, Raw)], copied: &[(String, String)]| {
            let mut object = Document::empty();
            for (name, value) in constants {
                object.set(name, value.0.to_string());
            }
            for (name, source) in copied {
                let value = document.and_then(|document| document.field(source)).unwrap_or("null");
                object.set(name, value.to_owned());
            }
            object.encode()
        };
        match self {
            Does::Set { set, copy } => Body::Merge {
                patch: object(set, copy),
            },
            Does::Delete => Body::Delete,
            Does::Detach => Body::Detach {
                field: field.to_owned(),
            },
            Does::Call { name, params, copy } => Body::Call {
                action: name.clone(),
                params: object(params, copy),
            },
        }
    }
}

/// A parent that may not be deleted while it has children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HasChildren {
    /// The relation that refuses.
    pub relation: String,
    /// The children's service.
    pub service: String,
    /// One of them.
    pub example: String,
    /// How many there are.
    pub count: usize,
}

impl Ruleset {
    /// Everything that a change sends, in order: to the parents, then what relations and actions want of the children.
    /// `children` gives the keys of a relation's children, those that this very change adds included. `is_known`: the
    /// parents have been told under these very rules what the document before meant.
    pub fn consequences<E>(
        &self,
        change: &Transition,
        is_known: bool,
        children: &mut dyn FnMut(&str) -> Result<Vec<String>, E>,
    ) -> Result<Result<Vec<Send>, HasChildren>, E> {
        let schema = &self.own.schema;
        let document = change.after.or(change.before);
        let mut sends = self.parent_news(change, is_known);
        for action in schema.triggered(change) {
            let mut send = |service: &str, key: String, body: Body| {
                let service = service.to_owned();
                sends.push(Send { service, key, body });
            };
            if let Some(relation) = schema.child_relation(&action.to) {
                let body = action.does.body(self.back_field(relation), document);
                for key in children(&relation.field)? {
                    send(&relation.service, key, body.clone());
                }
            } else if let Some(document) = document {
                let named = schema.parents_of(document).into_iter();
                for (_, service, key) in named.filter(|(field, ..)| *field == action.to) {
                    send(&service, key, action.does.body("", Some(document)));
                }
            }
        }
        if change.kind == ChangeKind::Delete {
            for relation in &schema.children {
                let keys = children(&relation.field)?;
                if let (OnDelete::Refuse, Some(example)) = (relation.on_delete, keys.first()) {
                    return Ok(Err(HasChildren {
                        relation: relation.field.clone(),
                        service: relation.service.clone(),
                        example: example.clone(),
                        count: keys.len(),
                    }));
                }
                sends.extend(keys.into_iter().map(|key| Send {
                    service: relation.service.clone(),
                    key,
                    body: self.farewell(relation),
                }));
            }
        }
        Ok(Ok(sends))
    }

    /// What a child is told whose parent is gone. One that arrives after a parent that would not have left children
    /// behind was deleted is let go.
    pub fn farewell(&self, relation: &ChildRelation) -> Body {
        match relation.on_delete {
            OnDelete::Cascade => Body::Delete,
            OnDelete::Detach | OnDelete::Refuse => Body::Detach {
                field: self.back_field(relation).to_owned(),
            },
        }
    }

    /// The field in which the children of a relation name their parent.
    fn back_field(&self, relation: &ChildRelation) -> &str {
        let child = self.related.get(&relation.service);
        let back = child.and_then(|child| child.parent_field(&self.own.schema.service));
        back.map_or("", |relation| &relation.field)
    }

    /// What a change tells the parents: the new ones that they have a child and what it feeds, the old ones that it left.
    fn parent_news(&self, change: &Transition, is_known: bool) -> Vec<Send> {
        let schema = &self.own.schema;
        type Parent = (String, String, Vec<(String, i64)>);
        let parents = |document: Option<&Document>| -> Vec<Parent> {
            let Some(document) = document else { return Vec::new() };
            let named = schema.parents_of(document).into_iter();
            let with_feeds = named.map(|(_, service, key)| {
                let parent = self.related.get(&service);
                let feeds = parent.map_or_else(Vec::new, |parent| parent.feeds(&schema.service, document));
                (service, key, feeds)
            });
            with_feeds.collect()
        };
        let relation = |service: &str| -> String {
            let parent = self.related.get(service);
            let relation = parent.and_then(|parent| parent.children.iter().find(|r| r.service == schema.service));
            relation.map_or_else(String::new, |relation| relation.field.clone())
        };
        let (before, after) = (parents(change.before), parents(change.after));
        let mut sends = Vec::new();
        for (service, key, _) in &before {
            if !after.iter().any(|(s, k, _)| s == service && k == key) {
                let relation = relation(service);
                sends.push(Send {
                    service: service.clone(),
                    key: key.clone(),
                    body: Body::Leave { relation },
                });
            }
        }
        for parent in &after {
            if !is_known || !before.contains(parent) {
                let (service, key, values) = parent.clone();
                let relation = relation(&service);
                let body = Body::Attach { relation, values };
                sends.push(Send { service, key, body });
            }
        }
        sends
    }
}
