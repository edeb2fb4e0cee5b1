//! `isxd`.
pub mod config;
pub mod core;
