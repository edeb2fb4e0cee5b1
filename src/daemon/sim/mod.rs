//! A whole cluster in one thread: real cores and real stores under a virtual clock, a network and disks that misbehave,
//! clients that write down what they were told, and checkers that judge it.
pub mod bank;
pub mod check;
pub mod clock;
mod disk;
pub mod family;
pub mod fault;
pub mod lin;
mod machine;
pub mod mail;
pub mod network;
pub mod operator;
pub mod parking;
pub mod schedule;
pub mod trace;
pub mod watch;
pub mod workload;
mod world;

pub use disk::Engine;
pub use world::{Bug, Failure, Options, Report, World, run};
