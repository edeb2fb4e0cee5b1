//! The isx daemon.
fn main() {}
