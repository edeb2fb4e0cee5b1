//! What entities keep of the messages between them. The protocol is in docs/messages.md.
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::{Body, Rejection};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::key::{Position, RowKind, message_rest, partner_rest, row_key, work_key};

/// A message as it lies in its sender's rows and travels: nobody between the two ends reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// How many messages caused one another up to this one; 1 for one that a write caused.
    pub depth: u8,
    /// When it was recorded, by the leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// Whoever refuses it sends `body` back, and it is parked.
    pub returns: bool,
    /// What it asks for.
    pub body: Body,
}

/// A message that is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Whom it is for.
    pub to: Position,
    /// What it asks for.
    pub body: Body,
    /// See [`Letter::returns`].
    pub returns: bool,
}

/// A sender's row about a receiver: the session that is open between them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Partner {
    /// Counted by the sender over all its receivers.
    pub session: u64,
    /// Number that the next message gets.
    pub next: u64,
    /// All messages up to this number are known to be applied.
    pub acked: u64,
    /// The session ends: the receiver is asked to forget it. A new message opens another one.
    pub closing: bool,
    /// Tentative operations that the sender has open with the receiver: such a session is not closed.
    pub open: u32,
    /// Messages that the receiver refused and that are parked: such a session is not closed, so that its row tells of them.
    pub parked: u32,
    /// An operator stopped the sending.
    pub held: Option<Held>,
}

/// Who stopped the sending to a receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The operator, and the reason given.
    pub by: String,
    /// By the leader's wall clock. Unit: ms since 1970.
    pub since_ms: u64,
}

/// A receiver's row about a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Source {
    /// The session.
    pub session: u64,
    /// Number of the last message applied.
    pub last: u64,
    /// The receiver's version afterwards.
    pub version: u64,
}

/// How much an entity has on its way. The row goes when that is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Messages not known to be applied.
    pub outstanding: u64,
    /// Messages that were refused and are parked.
    pub parked: u64,
}

/// A message that was refused, kept by its sender until somebody decides what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which refusal.
    pub code: Code,
    /// Why.
    pub reason: String,
    /// When the sender heard of it, by its leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// What it asks for.
    pub body: Body,
}

/// What became of a message that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is parked.
    Parked,
    /// It was sent again, under a new number.
    SentAgain,
    /// It was given up.
    Dropped,
}

/// A message that was refused is parked, or is not any more: for those who follow what becomes of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkNews {
    /// Sending entity.
    pub from: Position,
    /// Receiving entity.
    pub to: Position,
    /// The session that it was refused in.
    pub session: u64,
    /// Its number there.
    pub number: u64,
    /// What became of it.
    pub fate: Fate,
    /// What it asks for.
    pub body: Body,
}

/// A sender's latest messages that were refused, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rejections(pub Vec<Rejection>);

/// What a sender's shard learns of a pair and decides by its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Sending entity.
    pub from: Position,
    /// Receiving entity.
    pub to: Position,
    /// The session that is spoken of.
    pub session: u64,
    /// What is known.
    pub what: Known,
}

/// See [`Acknowledgement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Known {
    /// Messages up to this number are applied.
    Applied(u64),
    /// Nothing was sent for a while: the session may end.
    Idle,
    /// The receiver has forgotten the session.
    Forgotten,
    /// A bug planted by the simulator: a receiver's mark, late.
    #[doc(hidden)]
    Planted(u64),
}

/// A pair's row at its sender has changed: for the leader's list of what is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairNews {
    /// Sending entity.
    pub from: Position,
    /// Receiving entity.
    pub to: Position,
    /// The row, or that there is none any more.
    pub partner: Option<Partner>,
    /// The message that was recorded with it.
    pub letter: Option<Bytes>,
    /// Somebody wants it to be tried at once.
    pub again: bool,
}

impl Partner {
    /// Messages not known to be applied.
    pub fn outstanding(&self) -> u64 {
        self.next - 1 - self.acked
    }

    /// Whether the session must stay open although nothing is outstanding.
    pub fn is_kept(&self) -> bool {
        self.open > 0 || self.parked > 0 || self.held.is_some()
    }

    /// Whether an operator has to do something before all of it goes on.
    pub fn is_parked(&self) -> bool {
        self.parked > 0 || self.held.is_some()
    }
}

impl Tally {
    /// As a row's value; there is none for nothing.
    pub fn row(self) -> Option<Bytes> {
        (self != Self::default()).then(|| codec::encode(&self))
    }
}

/// Key of a sender's row about a receiver.
pub fn partner_row(from: &Position, to: &Position) -> Bytes {
    work_key(from, RowKind::Partner, &partner_rest(to))
}

/// Key of a message's row.
pub fn outbox_row(from: &Position, to: &Position, number: u64) -> Bytes {
    work_key(from, RowKind::Outbox, &message_rest(to, number))
}

/// Key of the row that counts what a sender has outstanding.
pub fn tally_row(from: &Position) -> Bytes {
    work_key(from, RowKind::Tally, &[])
}

/// Key of a receiver's row about a sender.
pub fn source_row(to: &Position, from: &Position) -> Bytes {
    row_key(to, RowKind::Source, &partner_rest(from))
}

/// Key of the row with a sender's latest refused messages.
pub fn rejections_row(from: &Position) -> Bytes {
    row_key(from, RowKind::Rejected, &[])
}

/// Key of the row of a message that was refused and is parked.
pub fn parked_row(from: &Position, to: &Position, session: u64, number: u64) -> Bytes {
    let rest = [&message_rest(to, session)[..], &number.to_be_bytes()].concat();
    row_key(from, RowKind::Parked, &rest)
}

/// Session and number of a message, from the rest of its [`parked_row`] behind the receiver.
pub fn split_parked_rest(rest: &[u8]) -> Option<(u64, u64)> {
    let (session, number) = rest.split_first_chunk::<8>()?;
    let number: [u8; 8] = number.try_into().ok()?;
    Some((u64::from_be_bytes(*session), u64::from_be_bytes(number)))
}

/// A row's value, if the row is there. Rows carry checksums, so one that does not decode was written by a broken or
/// newer isx.
pub fn read_row<T: DeserializeOwned>(row: &[u8], state: &dyn State) -> Result<Option<T>, StateError> {
    let Some(value) = state.get(row)? else { return Ok(None) };
    let value = codec::decode(&value);
    value
        .map(Some)
        .map_err(|error| StateError::Io(format!("row {}: {error}", row.escape_ascii())))
}
