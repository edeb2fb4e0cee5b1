//! `isxctl`.
