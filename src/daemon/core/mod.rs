//! The core: a node as a pure function over time.
//!
//! [`node::Node::step`] takes in what happened, [`node::Node::settle`] gives out what is to be done. No clock, thread,
//! file, socket or unseeded chance in here; rows are read through [`state::State`].
pub mod birth;
pub mod catalog;
pub mod changes;
pub mod command;
mod conductor;
pub mod directory;
mod dropping;
pub mod effect;
pub mod entity;
pub mod event;
pub mod history;
pub mod input;
pub mod latency;
pub mod ledger;
pub mod limits;
pub mod node;
pub mod placement;
mod policy;
pub mod replica;
mod router;
pub mod state;
#[cfg(test)]
mod tests;
pub mod time;
pub mod verify;
