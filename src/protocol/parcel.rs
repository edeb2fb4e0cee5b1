//! Messages between entities on their way from one shard's leader to another's.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::key::Position;
use super::request::RouteHint;

/// What one entity has for another, as far as it fits a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// The sender's name for it in its batch; comes back with the receipt.
    pub slot: u32,
    /// Sending entity.
    pub from: Position,
    /// Receiving entity.
    pub to: Position,
    /// The session between the two.
    pub session: u64,
    /// What it brings.
    pub content: Content,
}

/// What a parcel brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Messages in order. None at all asks how far the receiver is.
    Letters {
        /// For the first messages of a session: the number of pairs that the receiver had forgotten when it was asked.
        ticket: Option<u64>,
        /// Number of the first of them.
        first: u64,
        /// As they are in the sender's rows.
        letters: Vec<Bytes>,
    },
    /// The session is over: all its messages are applied, and the sender will never go on with it.
    Finish,
}

/// What became of a parcel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// The receiver knows the session and has applied its messages up to this number.
    Applied {
        /// Number of the last message applied.
        last: u64,
    },
    /// The receiver has no row for the session; with this ticket it will make one.
    Ticket {
        /// How many pairs it has ever forgotten.
        closed: u64,
    },
    /// The receiver has no row for the session any more.
    Closed,
    /// The sender has opened a later session since.
    Old,
    /// The receiving entity is not in this shard.
    Elsewhere(Option<Box<RouteHint>>),
    /// Not now: no leader, a merge, too much at once.
    Later,
}

impl Parcel {
    /// About how long it is in a frame or an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        let letters = match &self.content {
            Content::Letters { letters, .. } => letters.iter().map(|letter| letter.len() + 4).sum(),
            Content::Finish => 0,
        };
        self.from.0.len() + self.to.0.len() + 24 + letters
    }
}
