//! What a schema has to say about a change: which messages follow from it, and what a receiver accepts.
//!
//! The machine decides everything else. Without a schema nothing follows, and put, merge and delete are accepted.
use super::draft::{Draft, Stop, refuse};
use super::machine;
use crate::protocol::activity::Body;
use crate::protocol::error::Code;
use crate::protocol::key::Position;

/// A service's rules, as its shard knows them. Deterministic: what they decide depends on the draft alone.
pub trait Rules {
    /// Looks at a change (`draft.before`, `draft.after()`) before it is made. May mend the document, change relation
    /// rows, add messages, or refuse all of it.
    fn follow(&self, draft: &mut Draft<'_>) -> Result<(), Stop>;

    /// Turns a message into a change of its receiver: sets `draft.document` or rows, adds messages, or refuses. `follow`
    /// sees the result, if the document changes.
    fn receive(&self, from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop>;

    /// The integer fields that others may reserve of.
    fn pools(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Whether a message is to be parked if its receiver refuses it.
    fn parks(&self, _to: &Position, _body: &Body) -> bool {
        false
    }

    /// Whether the field has an index, and the value that the entity has in it, if any.
    fn indexed(&self, _field: &str, _draft: &Draft<'_>) -> Result<Option<Option<String>>, Stop> {
        Ok(None)
    }
}

/// The rules of a service without a schema.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRules;

impl Rules for NoRules {
    fn follow(&self, _draft: &mut Draft<'_>) -> Result<(), Stop> {
        Ok(())
    }

    fn receive(&self, _from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
        receive_plainly(body, draft)
    }
}

/// Rules for the simulator: `relay` sets a field and calls the next entity of its list to do the same; `budget` is a pool.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RelayRules;

/// What a `relay` is called with.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Relay {
    /// The field that each sets.
    pub field: String,
    /// To this number.
    pub value: u64,
    /// Who comes next: service and key.
    pub next: Vec<(String, String)>,
}

impl Relay {
    /// As a message.
    pub fn body(&self) -> Body {
        Body::Call {
            action: "relay".to_owned(),
            params: serde_json::to_vec(self).expect("text and numbers").into(),
        }
    }
}

impl Rules for RelayRules {
    fn follow(&self, _draft: &mut Draft<'_>) -> Result<(), Stop> {
        Ok(())
    }

    fn receive(&self, _from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
        let Body::Call { action, params } = body else {
            return receive_plainly(body, draft);
        };
        let relay: Result<Relay, _> = serde_json::from_slice(params);
        let Some(mut relay) = relay.ok().filter(|_| action == "relay") else {
            return refuse(Code::NotAccepted, format!("`{action}` is not known"));
        };
        let patch = format!(r#"{{"{}":{}}}"#, relay.field, relay.value).into();
        receive_plainly(&Body::Merge { patch }, draft)?;
        if !relay.next.is_empty() {
            let (service, key) = relay.next.remove(0);
            draft.send(Position::new(&service, &key), relay.body());
        }
        Ok(())
    }

    fn pools(&self) -> Vec<&str> {
        vec!["budget"]
    }
}

/// Does what needs no schema: put, merge, delete. Everything else is refused, but for what only informs.
pub fn receive_plainly(body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
    match body {
        Body::Put { document } => draft.document = Some(Some(document.clone())),
        Body::Merge { patch } => match draft.before {
            Some(before) => draft.document = Some(Some(machine::patched(draft.position, before, patch)?)),
            None => return refuse(Code::NotFound, format!("there is no {}", draft.position)),
        },
        Body::Delete if draft.before.is_some() => draft.document = Some(None),
        // What is to be gone is gone. And what a sender is told of its own messages is noted by the machine.
        Body::Delete | Body::Refused { .. } | Body::Cancelled { .. } | Body::Decided { .. } => {}
        Body::Detach { .. }
        | Body::Call { .. }
        | Body::Attach { .. }
        | Body::Leave { .. }
        | Body::Reserve { .. }
        | Body::Confirm { .. }
        | Body::Cancel { .. } => {
            let (service, _) = draft.position.parts();
            let text = format!("the service `{service}` has no schema that accepts `{}`", body.action());
            return refuse(Code::NotAccepted, text);
        }
    }
    Ok(())
}
