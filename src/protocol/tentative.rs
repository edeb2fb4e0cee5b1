//! Tentative operations between two entities, as requesters and operators see them. The protocol is in docs/messages.md.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::activity::{self, NAME_BYTES_MAX, OperationState};
use super::error::{Code, WireError};
use super::key::Position;

/// Operations that a requester may have open. Unit: operations.
pub const OPEN_OPERATIONS_MAX: u32 = 1_000;
/// Operations that others may have open with one holder. Unit: operations.
pub const RESERVATIONS_MAX: u64 = 100_000;
/// Ended operations whose end a requester remembers. Unit: operations.
pub const ENDED_KEPT: usize = 32;
/// Longest time for which an amount may be set aside. Unit: ms.
pub const TTL_MS_MAX: u64 = 366 * 24 * 3_600_000;
/// Most operations in one answer about a ledger.
pub const LEDGER_ITEMS_MAX: u32 = 2_000;

/// A write of the requester.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tentative {
    /// Have the holder set aside an amount. The requester gives the operation its number.
    Reserve {
        /// Who has it.
        holder: Position,
        /// Of what.
        resource: String,
        /// How much.
        amount: i64,
        /// How long the holder keeps it for the requester. Unit: ms.
        ttl_ms: u64,
    },
    /// Take what was set aside.
    Confirm {
        /// Who has it.
        holder: Position,
        /// Which operation.
        operation: u64,
    },
    /// Give it back.
    Cancel {
        /// Who has it.
        holder: Position,
        /// Which operation.
        operation: u64,
    },
}

/// How far an operation is, as its requester knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The holder has not answered yet.
    Asked,
    /// The amount is set aside, at least until then by the holder's wall clock. Unit: ms since 1970.
    Tentative {
        /// A label, not a promise: the holder's shard has a clock of its own, which may run late.
        until_ms: u64,
    },
    /// The holder was asked to confirm.
    Confirming,
    /// The holder was asked to give it back.
    Cancelling,
    /// It is over.
    Ended(OperationState),
}

/// An operation as its requester knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its number at the requester.
    pub operation: u64,
    /// Who has what is reserved.
    pub holder: Position,
    /// Of what.
    pub resource: String,
    /// How much.
    pub amount: i64,
    /// How far it is.
    pub stage: Stage,
    /// Why it was declined.
    pub reason: String,
    /// When it was asked for, or ended, by the leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
}

/// What is open with a holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerItem {
    /// Who has it.
    pub holder: Position,
    /// Who wants it.
    pub requester: Position,
    /// The requester's number for the operation.
    pub operation: u64,
    /// Of what.
    pub resource: String,
    /// How much.
    pub amount: i64,
    /// When it was set aside, by the leader's wall clock. Unit: ms since 1970.
    pub since_ms: u64,
    /// When the holder may give it back alone, by the same. Unit: ms since 1970.
    pub until_ms: u64,
    /// That time has come by the shard's clock.
    pub is_past: bool,
}

/// A pool of a holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPool {
    /// Who has it.
    pub holder: Position,
    /// The field.
    pub resource: String,
    /// What the field says, where the pool is declared and the holder is there.
    pub total: Option<i64>,
    /// Set aside.
    pub reserved: i64,
    /// Taken.
    pub confirmed: i64,
    /// Operations open.
    pub open: u64,
}

/// A page of a ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerPage {
    /// Pools of the holders that begin in this page: all of one that was asked for, else those with something open.
    pub pools: Vec<LedgerPool>,
    /// What is open.
    pub items: Vec<LedgerItem>,
    /// Where to go on: the position, and the place behind it; `None` at the end of what was asked for.
    pub next: Option<(Position, Bytes)>,
}

impl Tentative {
    /// Checks what somebody asks for.
    pub fn check(&self) -> Result<(), WireError> {
        let bad = |text: String| Err(WireError::new(Code::BadRequest, format!("{text}; nothing was changed")));
        activity::check_receiver(self.holder())?;
        let Tentative::Reserve {
            resource,
            amount,
            ttl_ms,
            ..
        } = self
        else {
            return Ok(());
        };
        match (resource.len(), *amount, *ttl_ms) {
            (0, ..) => bad("a resource without a name".into()),
            (bytes, ..) if bytes > NAME_BYTES_MAX => bad(format!(
                "the resource's name has {bytes} bytes, {NAME_BYTES_MAX} are allowed"
            )),
            (_, ..=0, _) => bad(format!("an amount of {amount}; it must be above 0")),
            (_, _, 0) => bad("a deadline of 0 ms".into()),
            (_, _, ttl) if ttl > TTL_MS_MAX => bad("a deadline more than 366 days away".into()),
            _ => Ok(()),
        }
    }

    /// Who has, or shall set aside, the amount.
    pub fn holder(&self) -> &Position {
        match self {
            Tentative::Reserve { holder, .. }
            | Tentative::Confirm { holder, .. }
            | Tentative::Cancel { holder, .. } => holder,
        }
    }

    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        let resource = match self {
            Tentative::Reserve { resource, .. } => resource.len(),
            _ => 0,
        };
        self.holder().0.len() + resource + 24
    }
}
