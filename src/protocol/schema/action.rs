//! What others are to be told when an entity changes.
use bytes::Bytes;

use super::bundle::Ruleset;
use super::document::{self, Document, Raw};
use super::number;
use super::{Action, ChangeKind, Does, OnDelete, Schema, When};

/// What one entity wants of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Be this: a child of a combined object.
    Put {
        /// The child's document.
        document: Bytes,
    },
    /// Set these fields; null removes one.
    Set {
        /// An object.
        fields: Bytes,
    },
    /// Be deleted.
    Delete,
    /// Forget your parent.
    Detach,
    /// Do what you have under this name.
    Call {
        /// The name.
        name: String,
        /// An object.
        params: Bytes,
    },
    /// A child to its parent: here I am, and this is what I feed.
    Attach {
        /// Aggregate, contribution.
        feeds: Vec<(String, i64)>,
    },
    /// A child to a parent that is not its parent any more.
    Leave,
}

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Receiver's service.
    pub service: String,
    /// Receiver's key.
    pub key: String,
    /// What is wanted.
    pub act: Act,
    /// The action that wants it, whose `refused` applies; `None` for what the relations themselves need.
    pub action: Option<String>,
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
    /// The actions that a change sets off, and what each sends.
    pub fn triggered<'s>(&'s self, change: &Transition) -> Vec<(&'s Action, Act)> {
        let is_on = |action: &&Action| {
            action.on.contains(&change.kind) && action.when.as_ref().is_none_or(|when| when.holds(change))
        };
        let document = change.after.or(change.before);
        let actions = self.actions.iter().filter(is_on);
        actions.map(|action| (action, action.does.act(document))).collect()
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
    fn act(&self, document: Option<&Document>) -> Act {
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
            Does::Set { set, copy } => Act::Set {
                fields: object(set, copy),
            },
            Does::Delete => Act::Delete,
            Does::Detach => Act::Detach,
            Does::Call { name, params, copy } => Act::Call {
                name: name.clone(),
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
    /// `children` gives the keys of a relation's children, those that this very change adds included.
    pub fn consequences<E>(
        &self,
        change: &Transition,
        children: &mut dyn FnMut(&str) -> Result<Vec<String>, E>,
    ) -> Result<Result<Vec<Send>, HasChildren>, E> {
        let schema = &self.own.schema;
        let mut sends = self.parent_news(change);
        for (action, act) in schema.triggered(change) {
            let mut send = |service: &str, key: String| {
                sends.push(Send {
                    service: service.to_owned(),
                    key,
                    act: act.clone(),
                    action: Some(action.name.clone()),
                });
            };
            if let Some(relation) = schema.child_relation(&action.to) {
                for key in children(&relation.field)? {
                    send(&relation.service, key);
                }
            } else if let Some(document) = change.after.or(change.before) {
                for (_, service, key) in schema
                    .parents_of(document)
                    .into_iter()
                    .filter(|(f, ..)| *f == action.to)
                {
                    send(&service, key);
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
                for key in keys {
                    sends.push(Send {
                        service: relation.service.clone(),
                        key,
                        act: relation.on_delete.act(),
                        action: None,
                    });
                }
            }
        }
        Ok(Ok(sends))
    }

    /// What a change tells the parents: the new ones that they have a child and what it feeds, the old ones that it left.
    pub fn parent_news(&self, change: &Transition) -> Vec<Send> {
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
        let (before, after) = (parents(change.before), parents(change.after));
        let mut sends = Vec::new();
        for (service, key, _) in &before {
            if !after.iter().any(|(s, k, _)| s == service && k == key) {
                sends.push(Send {
                    service: service.clone(),
                    key: key.clone(),
                    act: Act::Leave,
                    action: None,
                });
            }
        }
        for parent in &after {
            if !before.contains(parent) {
                let (service, key, feeds) = parent.clone();
                let act = Act::Attach { feeds };
                sends.push(Send {
                    service,
                    key,
                    act,
                    action: None,
                });
            }
        }
        sends
    }
}

impl OnDelete {
    /// What a child is told whose parent is gone. One that arrives after a parent that refuses to leave children behind
    /// was deleted is let go.
    pub fn act(self) -> Act {
        match self {
            OnDelete::Cascade => Act::Delete,
            OnDelete::Detach | OnDelete::Refuse => Act::Detach,
        }
    }
}
