//! One node: its replicas, its router, its share of the directory.
use super::effect::Effects;
use super::input::Input;
use super::state::{Recovered, State, StateError};
use super::time::{Clock, Time};
use crate::protocol::id::{ClusterId, NodeId};
use crate::protocol::key::Position;
use crate::protocol::shard_map::NodeInfo;

/// What a node is told when it is made.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where peers and clients reach it, `host:port`.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Identity of its store.
    pub store_id: u128,
    /// Version of its software.
    pub version: String,
    /// Seed of the node's generator: the only source of chance in the core.
    pub seed: u64,
    /// The members a new cluster begins with; the same on each of them. Used only by a node whose store is empty.
    pub founders: Vec<NodeInfo>,
    /// The services a new cluster begins with; the same on each founder.
    pub services: Vec<ServiceConfig>,
}

/// A service of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// Copies of each shard.
    pub replicas: u32,
    /// Where its key space is cut; empty for one shard.
    pub cuts: Vec<Position>,
}

/// One node as a pure function over time.
pub struct Node {}

impl Node {
    /// A node from what its store holds. An empty store of a founder makes the founders' first shards.
    pub fn new(
        config: NodeConfig,
        recovered: Recovered,
        clock: Clock,
        state: &mut dyn State,
        effects: &mut Effects,
    ) -> Result<Self, StateError> {
        let _ = (config, recovered, clock, state, effects);
        Ok(Self {})
    }

    /// Takes in one thing that happened. Follow one or more steps with one `settle`.
    pub fn step(&mut self, clock: Clock, input: Input, state: &mut dyn State, effects: &mut Effects) {
        let _ = (clock, input, state, effects);
    }

    /// Turns what the steps since the last call left to do into effects: proposals into log entries, Raft's readies
    /// into writes and messages, committed entries into rows and answers. The driver then takes all effects, in
    /// order, before it steps again.
    pub fn settle(&mut self, clock: Clock, state: &mut dyn State, effects: &mut Effects) {
        let _ = (clock, state, effects);
    }

    /// When `Input::Ticked` is due next.
    pub fn next_deadline(&self) -> Time {
        Time(u64::MAX)
    }
}
