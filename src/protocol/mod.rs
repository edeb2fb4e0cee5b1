//! What crosses a process boundary: plain data, no I/O.
//!
//! Frames are length-prefixed [postcard](https://docs.rs/postcard) values (`codec`). A connection starts with a
//! [`hello::Hello`] that settles the protocol version and checks the cluster; after it a client sends
//! [`request::Request`]s and a node sends batches of [`message::Message`]s. New enum variants are only ever appended.
pub mod activity;
pub mod change;
pub mod codec;
pub mod error;
pub mod hello;
pub mod id;
pub mod json;
pub mod key;
pub mod message;
pub mod op;
pub mod operator;
pub mod parcel;
pub mod request;
pub mod schema;
pub mod shard_clock;
pub mod shard_map;
pub mod target;
pub mod tentative;
pub mod verify;
