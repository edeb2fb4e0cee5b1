//! Messages between entities, as senders, receivers and operators see them. How they travel: docs/messages.md.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::{Code, WireError};
use super::json;
use super::key::{self, Position};
use super::request::DOCUMENT_BYTES_MAX;

/// Longest name of a field, an action or a relation in a message. Unit: bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest reason in a refusal. Unit: bytes.
pub const REASON_BYTES_MAX: usize = 1_000;
/// Most values that a child feeds its parent in one message.
pub const FEED_VALUES_MAX: usize = 64;
/// Most messages that were refused which a sender remembers.
pub const REJECTIONS_KEPT: usize = 16;

/// What one entity wants of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Be this document; the receiver is created where it is not there.
    Put {
        /// A JSON object.
        document: Bytes,
    },
    /// Set these fields.
    Merge {
        /// A JSON merge patch (RFC 7396).
        patch: Bytes,
    },
    /// Be gone.
    Delete,
    /// Forget the parent that this field names.
    Detach {
        /// The field.
        field: String,
    },
    /// Do what the receiver's schema says under this name.
    Call {
        /// The action.
        action: String,
        /// A JSON object.
        params: Bytes,
    },
    /// A child tells its parent that it is there, and what it feeds; said again, it replaces what was said before.
    Attach {
        /// The relation in which it is a child.
        relation: String,
        /// Values by name.
        values: Vec<(String, i64)>,
    },
    /// A child tells its parent that it goes.
    Leave {
        /// The relation in which it was a child.
        relation: String,
    },
    /// Set aside an amount until it is confirmed or cancelled.
    Reserve {
        /// The requester's name for it, never used again.
        operation: u64,
        /// Of what.
        resource: String,
        /// How much.
        amount: i64,
        /// After so long the holder may cancel alone. Unit: ms of the holder's shard's clock.
        ttl_ms: u64,
    },
    /// The requester takes what was set aside.
    Confirm {
        /// As in the `Reserve`.
        operation: u64,
    },
    /// The requester does not need it any more.
    Cancel {
        /// As in the `Reserve`.
        operation: u64,
    },
    /// The holder tells the requester what became of an operation.
    Decided {
        /// As in the `Reserve`.
        operation: u64,
        /// What became of it.
        state: OperationState,
    },
    /// The receiver did not do what message `number` asked for.
    Refused {
        /// The session of the message.
        session: u64,
        /// Its number.
        number: u64,
        /// What it asked for: the body's kind, or the name of the action.
        action: String,
        /// Which refusal.
        code: Code,
        /// Why, for a person.
        reason: String,
    },
    /// An operator took the message back before it was applied. It keeps its number and changes nothing.
    Cancelled {
        /// Who did it, and why.
        by: String,
    },
}

/// What became of a tentative operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Set aside.
    Reserved,
    /// There was not enough.
    Declined,
    /// Taken.
    Confirmed,
    /// Given back.
    Cancelled,
    /// Given back by the holder after the deadline.
    Expired,
}

/// A message that a write sent. Session and number name it for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Whom it is for.
    pub to: Position,
    /// The session between the two, counted at the sender.
    pub session: u64,
    /// Its number in the session, from 1.
    pub number: u64,
    /// What it asks for: the body's kind, or the name of the action.
    pub action: String,
}

/// What a sender knows of its messages to one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairView {
    /// The session that is open; 0: none is.
    pub session: u64,
    /// Messages of it up to this number are applied.
    pub acked: u64,
    /// Messages that are not known to be applied, the first [`PAIR_VIEW_MAX`]: number and what it brings.
    pub outstanding: Vec<(u64, Body)>,
    /// The latest that the receiver refused.
    pub rejections: Vec<Rejection>,
}

/// Messages in one view of a pair.
pub const PAIR_VIEW_MAX: usize = 64;

/// A message that its receiver refused, as the sender remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Who refused it.
    pub by: Position,
    /// The session of the message.
    pub session: u64,
    /// Its number.
    pub number: u64,
    /// What it asked for.
    pub action: String,
    /// Which refusal.
    pub code: Code,
    /// Why.
    pub reason: String,
    /// When the sender heard of it, by its leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
}

impl Body {
    /// The kind of message, or the name of the action called.
    pub fn action(&self) -> &str {
        match self {
            Body::Put { .. } => "put",
            Body::Merge { .. } => "merge",
            Body::Delete => "delete",
            Body::Detach { .. } => "detach",
            Body::Call { action, .. } => action,
            Body::Attach { .. } => "attach",
            Body::Leave { .. } => "leave",
            Body::Reserve { .. } => "reserve",
            Body::Confirm { .. } => "confirm",
            Body::Cancel { .. } => "cancel",
            Body::Decided { .. } => "decided",
            Body::Refused { .. } => "refused",
            Body::Cancelled { .. } => "cancelled",
        }
    }

    /// Checks a body that somebody wants to send by hand.
    pub fn check(&self) -> Result<(), WireError> {
        let bad = |code: Code, text: String| Err(WireError::new(code, format!("{text}; nothing was changed")));
        let name = |what: &str, name: &str| match name.len() {
            1..=NAME_BYTES_MAX => Ok(()),
            bytes => bad(
                Code::BadRequest,
                format!("the name of {what} has {bytes} bytes, 1 to {NAME_BYTES_MAX} are allowed"),
            ),
        };
        match self {
            Body::Put { document } | Body::Merge { patch: document } => check_json(document),
            Body::Delete => Ok(()),
            Body::Detach { field } => name("the field", field),
            Body::Call { action, params } => name("the action", action).and_then(|()| check_json(params)),
            Body::Attach { relation, values } => {
                name("the relation", relation)?;
                if values.len() > FEED_VALUES_MAX {
                    let text = format!("{} values, {FEED_VALUES_MAX} are allowed", values.len());
                    return bad(Code::TooLarge, text);
                }
                values.iter().try_for_each(|(value, _)| name("a value", value))
            }
            Body::Leave { relation } => name("the relation", relation),
            Body::Reserve { resource, amount, .. } => {
                name("the resource", resource)?;
                if *amount <= 0 {
                    return bad(Code::BadRequest, format!("an amount of {amount}; it must be above 0"));
                }
                Ok(())
            }
            Body::Confirm { .. } | Body::Cancel { .. } => Ok(()),
            Body::Decided { .. } | Body::Refused { .. } | Body::Cancelled { .. } => bad(
                Code::BadRequest,
                format!("`{}` is said by entities themselves and not by hand", self.action()),
            ),
        }
    }

    /// About how long it is in a row. Unit: bytes.
    pub fn size(&self) -> usize {
        match self {
            Body::Put { document } => document.len(),
            Body::Merge { patch } => patch.len(),
            Body::Call { action, params } => action.len() + params.len(),
            Body::Attach { relation, values } => {
                relation.len() + values.iter().map(|(name, _)| name.len() + 10).sum::<usize>()
            }
            Body::Refused { action, reason, .. } => action.len() + reason.len() + 20,
            Body::Detach { field: text } | Body::Leave { relation: text } | Body::Cancelled { by: text } => text.len(),
            Body::Reserve { resource, .. } => resource.len() + 30,
            Body::Delete | Body::Confirm { .. } | Body::Cancel { .. } | Body::Decided { .. } => 20,
        }
    }
}

/// Checks that `position` can be an entity's.
pub fn check_receiver(position: &Position) -> Result<(), WireError> {
    let (service, key) = position.parts();
    let checked = key::check_service(service).and_then(|()| key::check_entity_key(key.unwrap_or("")));
    checked.map_err(|error| WireError::new(Code::BadRequest, format!("the receiver: {error}; nothing was changed")))
}

fn check_json(document: &[u8]) -> Result<(), WireError> {
    if document.len() > DOCUMENT_BYTES_MAX {
        let text = format!(
            "{} bytes, the limit is {DOCUMENT_BYTES_MAX}; nothing was changed",
            document.len()
        );
        return Err(WireError::new(Code::TooLarge, text));
    }
    json::check_document(document)
        .map_err(|why| WireError::new(Code::BadDocument, format!("{why}; nothing was changed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_by_hand_is_checked() {
        let code = |body: Body| body.check().err().map(|error| error.code);
        assert_eq!(code(Body::Put { document: "{}".into() }), None);
        assert_eq!(code(Body::Put { document: "[]".into() }), Some(Code::BadDocument));
        assert_eq!(code(Body::Detach { field: String::new() }), Some(Code::BadRequest));
        let call = |name: &str| Body::Call {
            action: name.to_owned(),
            params: "{}".into(),
        };
        assert_eq!(code(call("pause")), None);
        assert_eq!(code(call(&"x".repeat(NAME_BYTES_MAX + 1))), Some(Code::BadRequest));
        assert_eq!(code(Body::Cancelled { by: "me".to_owned() }), Some(Code::BadRequest));
    }

    #[test]
    fn a_receiver_is_an_entity() {
        assert!(check_receiver(&Position::new("profile", "p-1")).is_ok());
        for bad in [
            Position::new("profile", ""),
            Position::end_of("profile"),
            Position::default(),
            Position::new("Profile", "p"),
        ] {
            assert!(check_receiver(&bad).is_err(), "{bad}");
        }
    }
}
