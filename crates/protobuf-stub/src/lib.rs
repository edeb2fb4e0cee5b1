//! Stands in for the `protobuf` crate, version 2, which raft 0.7.0 asks for whatever its features.
//!
//! raft uses three methods of one trait, and one error type. The real crate carries a security
//! advisory (RUSTSEC-2024-0437) for a parser that raft never needs here: messages are plain
//! structs (the `raft-proto` crate next to this one) and travel through postcard. There is no
//! protobuf encoding in this crate. The root manifest puts it in place with
//! `[patch.crates-io]`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;

/// What every operation that encodes or decodes answers.
pub type ProtobufResult<T> = Result<T, ProtobufError>;

/// A message that could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtobufError {
    reason: String,
}

impl ProtobufError {
    /// An error for the given reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl fmt::Display for ProtobufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for ProtobufError {}

/// What raft asks of a message: its size, and a way to bytes and back.
pub trait Message {
    /// How many bytes the message takes up when encoded.
    fn compute_size(&self) -> u32;

    /// Encodes the message.
    fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>>;

    /// Decodes `bytes` into the message. Empty input leaves the message as it is; any other input
    /// replaces it as a whole. On an error the message is unchanged.
    fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()>;
}
