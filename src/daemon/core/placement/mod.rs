//! Placement: which node holds which copy, who leads, where shards are cut.
//!
//! [`plan::plan`] is a pure function of a [`view::ClusterView`]: no clock, no memory, no chance, no floats. The running
//! driver calls it every second through [`plan::next_steps`] and carries out the first steps; `--dry-run`, plan files,
//! [`check::check_drain`] and `isxctl simulate` call the same function and carry out nothing.
//!
//! What goes first, and why in this order:
//!
//! 1. **heal**: copies that are lost are made again, shards that can lose the fewest more first;
//! 2. **drain**: leaders, then copies, leave nodes that are to be emptied;
//! 3. **zones**: copies in one zone that could be in two;
//! 4. **shape**: split what is too large or too busy, merge small neighbours: a shard that is too hot for any node is
//!    cut, not passed around;
//! 5. **spread**: copies by number, then by bytes, then leaders, which cost nothing to move, then load.
//!
//! Every step keeps what a shard can lose: a copy is added and caught up before another goes. Spreading begins late,
//! ends early, lets a moved shard rest, and never sends it back where it came from. What can't be done is a
//! [`plan::Blocker`] with a code, numbers and the next command.
pub mod apply;
pub mod check;
mod draft;
pub mod plan;
pub mod price;
mod repair;
pub mod restart;
pub mod rules;
mod shape;
mod spread;
pub mod synthetic;
#[cfg(test)]
mod tests;
pub mod view;
