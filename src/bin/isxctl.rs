//! The operator's toolkit.
fn main() {}
