//! The core: a node as a pure function over time.
pub mod effect;
pub mod event;
pub mod input;
pub mod limits;
pub mod node;
pub mod state;
pub mod time;
