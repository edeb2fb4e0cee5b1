//! isx keeps entities in key-range shards, three copies each, and routes every operation to their one home.
//!
//! ```text
//!  isxctl, applications --QUIC--> router --(shard, epoch)--> leader --propose--> Raft log --> peers
//!                                                             |
//!       answer <-- apply: machine(command, view) -> writes <--+-- committed, synced by a majority
//! ```
//!
//! * [`protocol`] is what crosses a process boundary: plain data.
//! * [`client`] is the library that applications and `isxctl` use.
//! * [`typed`] is that library for structs: a schema from a type, combined updates, reads with children.
//! * [`daemon`] is `isxd`: a deterministic [`daemon::core`] between two drivers, `shell` (tokio, quinn, redb) and
//!   `sim` (virtual clock, faulty network, faulty disk).
//! * [`ctl`] is `isxctl`.
//! * [`security`] is certificates and TLS, shared by them all.
//!
//! What isx promises is in `docs/promises.md`, how it is built in `docs/design.md`.
#![forbid(unsafe_code)]

pub mod client;
pub mod ctl;
pub mod daemon;
pub mod protocol;
pub mod security;
pub mod typed;

// The derive macros name this crate as their users do.
extern crate self as isx;
