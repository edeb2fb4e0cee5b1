//! One entity and all it owns, in one key range and one log entry.
pub mod draft;
pub mod effects;
pub mod head;
pub mod inbox;
pub(super) mod index;
pub mod ledger;
pub mod machine;
pub mod message;
pub mod outbox;
pub mod pair;
pub mod schema;
pub(super) mod subject;
pub mod tentative;
pub mod timer;
pub mod traces;

#[cfg(test)]
mod index_tests;
pub mod past;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tentative_tests;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
