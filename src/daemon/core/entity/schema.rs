//! A service's schema as the rules of its entities: what a write or a message means for the rows of one of them, and which
//! messages follow.
//!
//! ```text
//! Relation ""                the aggregates: what all children feed together
//! Relation profiles 00 p-17  a child: what it feeds, and whether it has said itself that it is one
//! ```
//! A child's row is made by the parent's own write, where the child lies in a combined object, or by the child's `attach`.
//! It goes when the child says that it leaves. So a parent that is deleted keeps the rows of its children until the last of
//! them is gone or has let go, and a child that attaches late is told then what the others were told.
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Stop, refuse};
use super::effects::{Rules, receive_plainly};
use super::head::SchemaMark;
use super::index;
use super::message::read_row;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Body;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::schema::accept::{self, Verdict};
use crate::protocol::schema::action::Transition;
use crate::protocol::schema::bundle::Ruleset;
use crate::protocol::schema::document::Document;
use crate::protocol::schema::validate::{Violation, tell};
use crate::protocol::schema::{ChangeKind, ChildRelation};

/// The rules of a service that has a schema.
#[derive(Debug, Clone, Copy)]
pub struct BySchema<'r>(pub &'r Ruleset);

/// What a parent knows of a child.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChildRow {
    /// The child has said that it is one; until then the parent has only asked it to be.
    pub attached: bool,
    /// What it feeds.
    pub feeds: Vec<(String, i64)>,
}

/// What all children feed together.
pub type Sums = BTreeMap<String, i128>;

impl Rules for BySchema<'_> {
    fn follow(&self, draft: &mut Draft<'_>) -> Result<(), Stop> {
        // A message sent by hand changes nothing.
        let Some(kind) = draft.kind else { return Ok(()) };
        let Some(after) = draft.document.take() else {
            return Ok(());
        };
        let before = draft.before.map(|bytes| parse(draft.position, bytes)).transpose()?;
        draft.schema = Some(SchemaMark {
            version: self.0.own.version,
            revision: self.0.revision,
        });
        let Some(bytes) = after else {
            draft.document = Some(None);
            return self.send(draft, kind, before.as_ref(), None);
        };
        let mut document = parse(draft.position, &bytes)?;
        let fields = document.len();
        if draft.depth == 0 {
            // A message's document has been judged when it was received.
            let key = draft.position.parts().1.unwrap_or("");
            let taken = self.0.take_children(document, key, draft.id);
            let (rest, children) = taken.map_err(|found| violated(draft.position, &found))?;
            let judged = self.0.own.schema.validate(rest);
            document = judged.map_err(|found| violated(draft.position, &found))?;
            for child in children {
                let rest = child_rest(&child.relation, &child.key);
                if draft.row(RowKind::Relation, &rest)?.is_none() {
                    draft.set_row(RowKind::Relation, &rest, Some(codec::encode(&ChildRow::default())));
                }
                let to = Position::new(&child.service, &child.key);
                let document = child.document;
                draft.send(to, Body::Put { document });
            }
        }
        let is_as_written = draft.depth > 0 || document.len() == fields && self.0.own.schema.children.is_empty();
        let own = if is_as_written {
            bytes.clone()
        } else {
            document.encode()
        };
        let limit = self.0.own.schema.limits.document_bytes;
        if own.len() > limit {
            let (position, length) = (draft.position, own.len());
            let text = format!("{position} would have {length} bytes; its schema allows {limit}");
            return refuse(Code::TooLarge, text);
        }
        draft.document = Some(Some(own));
        self.send(draft, kind, before.as_ref(), Some(&document))
    }

    fn receive(&self, from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
        let (service, key) = (from.parts().0, from.parts().1.unwrap_or(""));
        draft.kind = Some(match body {
            Body::Put { .. } => ChangeKind::Put,
            Body::Delete => ChangeKind::Delete,
            _ => ChangeKind::Patch,
        });
        match body {
            Body::Attach { values, .. } => self.attach(from, values, draft),
            Body::Leave { .. } => self.leave(from, draft),
            Body::Refused { action, reason, .. } => self.refused(from, action, reason, draft),
            Body::Put { .. } | Body::Merge { .. } | Body::Delete | Body::Detach { .. } | Body::Call { .. } => {
                let before = draft.before.map(|bytes| parse(draft.position, bytes)).transpose()?;
                match self.0.own.schema.receive(service, key, body, before.as_ref()) {
                    Verdict::Nothing => {}
                    Verdict::Write(document) => draft.document = Some(Some(document)),
                    Verdict::Delete => draft.document = Some(None),
                    Verdict::Refused(why) => return refuse(Code::NotAccepted, why),
                }
                Ok(())
            }
            Body::Reserve { .. }
            | Body::Confirm { .. }
            | Body::Cancel { .. }
            | Body::Decided { .. }
            | Body::Cancelled { .. } => receive_plainly(body, draft),
        }
    }

    fn parks(&self, to: &Position, body: &Body) -> bool {
        let asks = matches!(
            body,
            Body::Put { .. } | Body::Merge { .. } | Body::Delete | Body::Detach { .. } | Body::Call { .. }
        );
        asks && self.0.own.schema.refusal_of(to.parts().0, body.action()).1
    }

    fn indexed(&self, field: &str, draft: &Draft<'_>) -> Result<Option<Option<String>>, Stop> {
        self.value_of(field, draft)
    }
}

impl BySchema<'_> {
    /// What [`Rules::indexed`] says.
    pub(in crate::daemon::core) fn value_of(
        &self,
        field: &str,
        draft: &Draft<'_>,
    ) -> Result<Option<Option<String>>, Stop> {
        let Some(field) = self.0.own.schema.field(field).filter(|field| field.index) else {
            return Ok(None);
        };
        let document = draft.before.map(|bytes| parse(draft.position, bytes)).transpose()?;
        Ok(Some(document.and_then(|document| field.indexed(&document))))
    }

    /// Records what follows from a change.
    fn send(
        &self,
        draft: &mut Draft<'_>,
        kind: ChangeKind,
        before: Option<&Document>,
        after: Option<&Document>,
    ) -> Result<(), Stop> {
        let change = Transition { kind, before, after };
        let mut children = |relation: &str| child_keys(draft, relation);
        let is_known = draft.revision == self.0.revision;
        let sends = match self.0.consequences(&change, is_known, &mut children)? {
            Ok(sends) => sends,
            Err(has) => {
                let text = format!(
                    "{} has {} in `{}`, such as {}/{}, and its schema does not let it leave them behind",
                    draft.position, has.count, has.relation, has.service, has.example
                );
                return refuse(Code::HasChildren, text);
            }
        };
        for send in sends {
            draft.send(Position::new(&send.service, &send.key), send.body);
        }
        index::follow(&self.0.own.schema, is_known, before, after, draft);
        Ok(())
    }

    fn relation(&self, child: &Position) -> Result<&ChildRelation, Stop> {
        let service = child.parts().0;
        let relation = self
            .0
            .own
            .schema
            .children
            .iter()
            .find(|relation| relation.service == service);
        relation.ok_or_else(|| {
            let text = format!("{} has no children in {service}", self.0.own.schema.service);
            Stop::Refused(WireError::new(Code::NotAccepted, text))
        })
    }

    fn attach(&self, child: &Position, values: &[(String, i64)], draft: &mut Draft<'_>) -> Result<(), Stop> {
        let relation = self.relation(child)?;
        let known = child_row(draft, relation, child)?.unwrap_or_default();
        let row = ChildRow {
            attached: true,
            feeds: values.to_vec(),
        };
        feed(draft, &known.feeds, &row.feeds)?;
        set_child_row(draft, relation, child, Some(&row));
        if draft.before.is_none() && draft.version > 0 {
            // It came after its parent was deleted.
            draft.send(child.clone(), self.0.farewell(relation));
        }
        Ok(())
    }

    fn leave(&self, child: &Position, draft: &mut Draft<'_>) -> Result<(), Stop> {
        let relation = self.relation(child)?;
        if let Some(known) = child_row(draft, relation, child)? {
            feed(draft, &known.feeds, &[])?;
            set_child_row(draft, relation, child, None);
        }
        Ok(())
    }

    /// A message was refused. A child that did not become one is none; and a field may say so.
    fn refused(&self, by: &Position, action: &str, reason: &str, draft: &mut Draft<'_>) -> Result<(), Stop> {
        let (service, key) = (by.parts().0, by.parts().1.unwrap_or(""));
        let schema = &self.0.own.schema;
        let relation = schema.children.iter().find(|relation| relation.service == service);
        if let ("put", Some(relation)) = (action, relation)
            && child_row(draft, relation, by)?.is_some_and(|row| !row.attached)
        {
            set_child_row(draft, relation, by, None);
        }
        let (Some(field), Some(bytes)) = (schema.refusal_of(service, action).0, draft.before) else {
            return Ok(());
        };
        let before = parse(draft.position, bytes)?;
        let text = accept::mark_text(service, key, reason);
        if let Some(after) = schema.marked(field, &text, &before) {
            draft.document = Some(Some(after.encode()));
        }
        Ok(())
    }
}

/// What the children of an entity feed together; sums of zero are left out.
pub fn aggregates(position: &Position, state: &dyn State) -> Result<Vec<(String, i64)>, StateError> {
    let row = row_key(position, RowKind::Relation, &[]);
    let sums: Sums = read_row(&row, state)?.unwrap_or_default();
    let shown = |sum: i128| i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX });
    Ok(sums.into_iter().map(|(name, sum)| (name, shown(sum))).collect())
}

/// Children of an entity in one relation, in key order, beginning behind `after`.
pub fn children(
    position: &Position,
    relation: &str,
    after: &str,
    limit: usize,
    state: &dyn State,
) -> Result<Vec<(String, ChildRow)>, StateError> {
    let prefix = row_key(position, RowKind::Relation, &child_rest(relation, ""));
    let start = row_key(position, RowKind::Relation, &child_rest(relation, after));
    let end = row_key(position, RowKind::Relation, &[relation.as_bytes(), &[1]].concat());
    let (mut found, mut bad) = (Vec::new(), None);
    state.scan(&start, &end, &mut |row, value| {
        let key = String::from_utf8_lossy(&row[prefix.len()..]).into_owned();
        if key.as_str() <= after {
            return ControlFlow::Continue(());
        }
        match codec::decode(value) {
            Ok(child) => found.push((key, child)),
            Err(error) => bad = Some(StateError::Io(format!("row {}: {error}", row.escape_ascii()))),
        }
        if bad.is_some() || found.len() >= limit {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    bad.map_or(Ok(found), Err)
}

/// The rest of a child's row.
pub fn child_rest(relation: &str, key: &str) -> Vec<u8> {
    [relation.as_bytes(), &[0], key.as_bytes()].concat()
}

fn child_keys(draft: &Draft<'_>, relation: &str) -> Result<Vec<String>, Stop> {
    let prefix = child_rest(relation, "");
    let mut keys = Vec::new();
    draft.scan(RowKind::Relation, &prefix, &mut |rest, _| {
        keys.push(String::from_utf8_lossy(&rest[prefix.len()..]).into_owned());
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

fn child_row(draft: &Draft<'_>, relation: &ChildRelation, child: &Position) -> Result<Option<ChildRow>, Stop> {
    let rest = child_rest(&relation.field, child.parts().1.unwrap_or(""));
    draft
        .row(RowKind::Relation, &rest)?
        .map(|value| decode(&value))
        .transpose()
}

fn set_child_row(draft: &mut Draft<'_>, relation: &ChildRelation, child: &Position, row: Option<&ChildRow>) {
    let rest = child_rest(&relation.field, child.parts().1.unwrap_or(""));
    draft.set_row(RowKind::Relation, &rest, row.map(codec::encode));
}

/// Takes what a child fed out of the sums, and what it feeds now in.
fn feed(draft: &mut Draft<'_>, old: &[(String, i64)], new: &[(String, i64)]) -> Result<(), Stop> {
    if old == new {
        return Ok(());
    }
    let mut sums: Sums = match draft.row(RowKind::Relation, &[])? {
        Some(value) => decode(&value)?,
        None => Sums::new(),
    };
    for (name, amount) in old {
        *sums.entry(name.clone()).or_default() -= i128::from(*amount);
    }
    for (name, amount) in new {
        *sums.entry(name.clone()).or_default() += i128::from(*amount);
    }
    sums.retain(|_, sum| *sum != 0);
    let value = (!sums.is_empty()).then(|| codec::encode(&sums));
    draft.set_row(RowKind::Relation, &[], value);
    Ok(())
}

fn decode<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, Stop> {
    codec::decode(value).map_err(|error| Stop::Unreadable(StateError::Io(format!("a relation row: {error}"))))
}

fn parse<'d>(position: &Position, bytes: &'d Bytes) -> Result<Document<'d>, Stop> {
    Document::parse(bytes).map_err(|why| Stop::Refused(WireError::new(Code::BadDocument, format!("{position}: {why}"))))
}

fn violated(position: &Position, found: &[Violation]) -> Stop {
    let (service, key) = (position.parts().0, position.parts().1.unwrap_or(""));
    Stop::Refused(WireError::new(
        Code::AgainstSchema,
        format!("{service}/{key}: {}", tell(found)),
    ))
}
