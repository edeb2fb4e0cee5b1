//! `isxd`.
pub mod core;
