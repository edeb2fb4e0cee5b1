//! Messages between entities, as senders, receivers and operators see them. How they travel: docs/messages.md.
use std::fmt;

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
        /// Set aside at least until then, by the holder's leader's wall clock. Unit: ms since 1970.
        until_ms: u64,
        /// Why it was declined.
        reason: String,
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
        /// What the message brought, where its sender parks what is refused.
        returned: Option<Box<Body>>,
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

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationState::Reserved => "tentative",
            OperationState::Declined => "declined",
            OperationState::Confirmed => "confirmed",
            OperationState::Cancelled => "cancelled",
            OperationState::Expired => "expired",
        })
    }
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
    /// The tentative operation that it begins, by the sender's number.
    pub operation: Option<u64>,
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
/// Messages that were refused and parked which one `Retry` sends again.
pub const SENT_AGAIN_MAX: usize = 1_000;

/// What an operator does to what one entity has outstanding for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActivityAction {
    /// Try again now instead of when it would be due; what was refused and parked is sent again, up to
    /// [`SENT_AGAIN_MAX`] of them.
    Retry,
    /// Stop sending; everything is kept.
    Park,
    /// Go on sending.
    Unpark,
    /// Take a message back. If its receiver has applied it already, that stands.
    Cancel {
        /// Its number.
        number: u64,
    },
    /// Take the first message back that is not known to be applied, so that those behind it can go on. One that was refused
    /// and parked comes before all others.
    Skip,
    /// Send a message again that was refused and parked: as a new one, behind all others for the same receiver.
    SendAgain {
        /// The session that it was refused in.
        session: u64,
        /// Its number there.
        number: u64,
    },
    /// Give up a message that was refused and parked.
    Drop {
        /// The session that it was refused in.
        session: u64,
        /// Its number there.
        number: u64,
    },
}

/// What an entity has to do with others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ActivityView {
    /// Messages that it has outstanding, over all pairs.
    pub outstanding: u64,
    /// Sessions that it has ever opened.
    pub sessions: u64,
    /// Senders that it has ever forgotten.
    pub closed: u64,
    /// One item per other entity with which a session is open in either direction, in their order.
    pub pairs: Vec<PartnerView>,
    /// Where to go on, if there are more.
    pub next: Option<Position>,
    /// The latest messages that others refused.
    pub rejections: Vec<Rejection>,
    /// Where one other entity was asked for: the messages outstanding for it, the first ones.
    pub messages: Vec<MessageView>,
    /// And those that it refused and that are parked, the first ones.
    pub parked: Vec<ParkedView>,
}

/// Two entities, seen from one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerView {
    /// The other one.
    pub with: Position,
    /// What this one sends.
    pub sends: Option<SendView>,
    /// What this one has had: session, number of the last message applied, the version that it led to.
    pub had: Option<(u64, u64, u64)>,
}

/// What one entity sends another, from the sender's rows, and how its shard's leader is getting on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendView {
    /// The session.
    pub session: u64,
    /// Number that the next message gets.
    pub next: u64,
    /// All messages up to this number are known to be applied.
    pub acked: u64,
    /// The session ends.
    pub closing: bool,
    /// Tentative operations open with the other entity.
    pub open: u32,
    /// Messages that the other entity refused and that are parked.
    pub parked: u32,
    /// Why the first of them was refused, and when the sender heard of it, by its leader's wall clock. Unit: ms since 1970.
    pub refused: Option<(String, u64)>,
    /// Who stopped the sending and why, and when by the leader's wall clock. Unit: ms since 1970.
    pub held: Option<(String, u64)>,
    /// When the oldest message outstanding was recorded, by the leader's wall clock. Unit: ms since 1970.
    pub oldest_ms: Option<u64>,
    /// How often it was tried in vain since anything worked.
    pub attempts: u32,
    /// When it is tried again. Unit: ms from now.
    pub retry_in_ms: Option<u64>,
}

/// A message outstanding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Its number in the session.
    pub number: u64,
    /// How many messages caused one another up to this one.
    pub depth: u8,
    /// When it was recorded, by the leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// What it asks for.
    pub body: Body,
}

/// A message that was refused and is parked: kept until somebody sends it again or gives it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedView {
    /// The session that it was refused in.
    pub session: u64,
    /// Its number there.
    pub number: u64,
    /// Which refusal.
    pub code: Code,
    /// Why.
    pub reason: String,
    /// When the sender heard of it, by its leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// What it asks for.
    pub body: Body,
}

/// One row of a listing of what entities send: sender, receiver, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityItem {
    /// Sending entity.
    pub from: Position,
    /// Receiving entity.
    pub to: Position,
    /// How it stands.
    pub sends: SendView,
}

/// Which pairs a listing wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivityFilter {
    /// All with an open session.
    #[default]
    All,
    /// Those with messages outstanding.
    Pending,
    /// Those that an operator stopped, and those with messages parked that were refused.
    Parked,
    /// Those with tentative operations open.
    Tentative,
}

impl ActivityFilter {
    /// Whether it wants a pair with so much outstanding.
    pub fn wants(self, outstanding: u64, is_parked: bool, open: u32) -> bool {
        match self {
            ActivityFilter::All => true,
            ActivityFilter::Pending => outstanding > 0,
            ActivityFilter::Parked => is_parked,
            ActivityFilter::Tentative => open > 0,
        }
    }
}

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

    /// The tentative operation that it begins.
    pub fn begins(&self) -> Option<u64> {
        match self {
            Body::Reserve { operation, .. } => Some(*operation),
            _ => None,
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
            Body::Reserve { .. } | Body::Confirm { .. } | Body::Cancel { .. } => bad(
                Code::BadRequest,
                format!(
                    "`{}` goes by way of the requester's own rows: it is a write of another kind",
                    self.action()
                ),
            ),
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
            Body::Refused {
                action,
                reason,
                returned,
                ..
            } => action.len() + reason.len() + 20 + returned.as_ref().map_or(0, |body| body.size()),
            Body::Detach { field: text } | Body::Leave { relation: text } | Body::Cancelled { by: text } => text.len(),
            Body::Reserve { resource, .. } => resource.len() + 30,
            Body::Decided { reason, .. } => reason.len() + 30,
            Body::Delete | Body::Confirm { .. } | Body::Cancel { .. } => 20,
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
