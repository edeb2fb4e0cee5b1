//! Stands in for the `raft-proto` crate, which holds the message types of raft 0.7.0.
//!
//! The published crate generates these types when it is built. That takes either the `protoc`
//! program, which a fresh machine does not have, or a protobuf runtime with a security advisory.
//! Neither is worth it for thirteen small types that never travel as protobuf here. So they are
//! plain structs with serde, ready to be put into a postcard frame, with the accessor methods
//! that raft's sources call. The root manifest puts this crate in place with
//! `[patch.crates-io]`.
//!
//! Payloads (`Entry::data`, every `context`, `Snapshot::data`) are [`bytes::Bytes`], so that a
//! clone of an entry shares its payload.

#![forbid(unsafe_code)]

mod codec;
mod conf_change;
mod conf_state;

pub mod eraftpb;

pub use conf_change::{ConfChangeI, new_conf_change_single, parse_conf_change, stringify_conf_change};
pub use conf_state::conf_state_eq;

/// All message types at once.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}
