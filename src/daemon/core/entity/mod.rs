//! One entity and all it owns, in one key range, changed by one log entry.
pub mod head;
pub mod machine;
