//! Entries of indexes, kept by messages.
//!
//! An entry is an entity of the index's own service (`protocol::schema::index`), and its key names the one entity that it is
//! about. So each entry hears from one sender only, in order, each message once: what the last message to it said is what the
//! entity was when it last had anything to do with that value. Nothing needs to be compared with anything when a message
//! arrives, whatever became of other values meanwhile, and once nothing is on its way the index is exact.
use bytes::Bytes;

use super::draft::{Draft, Stop, refuse};
use super::effects::Rules;
use crate::protocol::activity::Body;
use crate::protocol::error::Code;
use crate::protocol::key::Position;
use crate::protocol::schema::document::Document;
use crate::protocol::schema::{Schema, index};

/// Sends what a change means for the indexes. Where the schema is not the one that the entity was judged by before, it may not
/// have an entry that it should have: it is sent in any case.
pub(super) fn follow(
    schema: &Schema,
    is_known: bool,
    before: Option<&Document<'_>>,
    after: Option<&Document<'_>>,
    draft: &mut Draft<'_>,
) {
    for field in schema.indexes() {
        let old = before.and_then(|document| field.indexed(document));
        let new = after.and_then(|document| field.indexed(document));
        let service = index::service_of(&schema.service, &field.name);
        if let Some(old) = &old
            && new.as_ref() != Some(old)
        {
            let entry = index::entry_key(old, key_of(draft));
            draft.send(Position::new(&service, &entry), Body::Delete);
        }
        if let Some(new) = &new
            && (old.as_ref() != Some(new) || !is_known)
        {
            send_entry(&service, new, draft.version + 1, draft);
        }
    }
}

/// Sends an entity's entry anew, and takes back those of these entries that are not its own. `indexed` is what the asker takes
/// the field for: where the shard has not heard of the schema that says so, it must not guess.
pub(super) fn again(
    rules: &dyn Rules,
    field: &str,
    indexed: bool,
    stale: &[String],
    draft: &mut Draft<'_>,
) -> Result<(), Stop> {
    let position = draft.position;
    let (service, key) = (position.parts().0, key_of(draft));
    let known = rules.indexed(field, draft)?;
    if known.is_some() != indexed {
        let text = format!("the shard of {position} has not heard of the newest schema of {service}");
        return refuse(Code::SchemaBehind, text);
    }
    let value = known.flatten();
    let index = index::service_of(service, field);
    for entry in stale {
        if index::entity_of(entry) != Some(key) {
            let text = format!("the entry `{entry}` of {index} is not about {position}");
            return refuse(Code::BadRequest, text);
        }
        if value
            .as_ref()
            .is_none_or(|value| index::entry_key(value, key) != *entry)
        {
            draft.send(Position::new(&index, entry), Body::Delete);
        }
    }
    if let Some(value) = value {
        send_entry(&index, &value, draft.version, draft);
    }
    Ok(())
}

fn send_entry(index: &str, value: &str, version: u64, draft: &mut Draft<'_>) {
    let entry = index::entry_key(value, key_of(draft));
    let document = Bytes::from(format!(r#"{{"version":{version}}}"#));
    draft.send(Position::new(index, &entry), Body::Put { document });
}

fn key_of<'a>(draft: &Draft<'a>) -> &'a str {
    draft.position.parts().1.unwrap_or("")
}
