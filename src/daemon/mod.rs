//! `isxd`.
pub mod config;
pub mod core;
pub mod sim;
pub mod store;
