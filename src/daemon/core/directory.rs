//! The directory: what the scale-aware layer knows, kept by shard `s-0` like any other shard's rows.
//!
//! Nothing on the data path needs it: nodes and clients have copies of the map, and a shard's own log is the truth about
//! its range and members. The directory gives out ids, remembers nodes, and is where one asks first.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::{State, StateError};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{Epoch, NodeId, ShardId};
use crate::protocol::key::{KeyRange, Position, RowKind, row_key};
use crate::protocol::request::Response;
use crate::protocol::shard_map::{MapView, Membership, NodeInfo, ServiceInfo, ShardDescriptor, ShardMap};

/// First id that the directory gives out; below lie the founders' shards.
pub const FIRST_ALLOCATED_ID: u64 = 1_000;

/// A change of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryCommand {
    /// What a new cluster begins with; ignored once there is something.
    Found {
        /// Founders.
        nodes: Vec<NodeInfo>,
        /// Services.
        services: Vec<ServiceInfo>,
        /// First shards, the directory's included.
        shards: Vec<ShardDescriptor>,
    },
    /// Give out ids.
    AllocateIds {
        /// How many.
        count: u32,
    },
    /// A new member, or a member that started: address, store and version may be new.
    Register(NodeInfo),
    /// Shards whose leaders report a newer epoch.
    LearnShards(Vec<ShardDescriptor>),
}

/// The directory in memory: what its rows say, on every replica of `s-0`.
#[derive(Debug, Default)]
pub struct Directory {
    /// Nodes, services, shards; `map.version` counts changes.
    pub map: ShardMap,
    next_id: u64,
}

#[derive(Serialize, Deserialize)]
struct Counters {
    version: u64,
    next_id: u64,
}

/// The key range of the directory's rows: before every service's.
pub fn range() -> KeyRange {
    KeyRange {
        start: Position(Bytes::from_static(b"\0")),
        end: Position(Bytes::from_static(b"\x01")),
    }
}

impl Directory {
    /// Reads the rows of `s-0`.
    pub fn load(state: &dyn State) -> Result<Self, StateError> {
        let mut view = MapView::default();
        let mut next_id = FIRST_ALLOCATED_ID;
        let mut bad = None;
        let range = range();
        state.scan(&range.start.0, &range.end.0, &mut |key, value| {
            let read = match key.get(1) {
                Some(b'c') => codec::decode::<Counters>(value).map(|counters| {
                    view.version = counters.version;
                    next_id = counters.next_id;
                }),
                Some(b'n') => codec::decode(value).map(|node| view.nodes.push(node)),
                Some(b's') => codec::decode(value).map(|shard| view.shards.push(shard)),
                Some(b'v') => codec::decode(value).map(|service| view.services.push(service)),
                _ => Ok(()),
            };
            match read {
                Ok(()) => std::ops::ControlFlow::Continue(()),
                Err(error) => {
                    bad = Some(StateError::Io(format!("directory row {}: {error}", key.escape_ascii())));
                    std::ops::ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = bad {
            return Err(error);
        }
        let mut map = ShardMap::default();
        map.learn(&view);
        Ok(Self { map, next_id })
    }

    /// Does the change; the same on every replica.
    pub fn apply(&mut self, command: &DirectoryCommand, state: &mut dyn State) -> Response {
        if self.next_id == 0 {
            self.next_id = FIRST_ALLOCATED_ID;
        }
        match command {
            DirectoryCommand::Found {
                nodes,
                services,
                shards,
            } => {
                if self.map.nodes.is_empty() {
                    for node in nodes {
                        self.put_node(node.clone(), state);
                    }
                    for service in services {
                        put(state, b'v', service.name.as_bytes(), service);
                        self.map.services.insert(service.name.clone(), service.clone());
                    }
                    self.learn_shards(shards, state);
                    self.changed(state);
                }
                Response::Asked
            }
            DirectoryCommand::AllocateIds { count } => {
                let first = self.next_id;
                self.next_id += u64::from(*count);
                self.changed(state);
                Response::Ids { first }
            }
            DirectoryCommand::Register(node) => self.register(node, state),
            DirectoryCommand::LearnShards(shards) => {
                if self.learn_shards(shards, state) {
                    self.changed(state);
                }
                Response::Asked
            }
        }
    }

    /// Whether the directory has heard of this shard at this epoch or a later one.
    pub fn knows(&self, shard: &ShardDescriptor) -> bool {
        self.map.absorber(shard.id).is_some()
            || self.map.shard(shard.id).map_or(Epoch(0), |known| known.epoch) >= shard.epoch
    }

    fn register(&mut self, node: &NodeInfo, state: &mut dyn State) -> Response {
        let mut node = node.clone();
        if node.id == NodeId(0) {
            if let Some(other) = self
                .map
                .nodes
                .values()
                .find(|n| n.name == node.name && n.membership != Membership::Gone)
            {
                // The same host asking again (its first answer was lost) has registered nothing yet.
                if other.store_id != 0 || other.address != node.address {
                    let text = format!("the name {} is taken by {}; nothing was changed", node.name, other.id);
                    return Response::Error(WireError::new(Code::Exists, text));
                }
                return Response::Registered(other.clone());
            }
            node.id = NodeId(self.map.nodes.keys().next_back().map_or(1, |last| last.0 + 1));
            node.membership = Membership::Joining;
        } else {
            let Some(known) = self.map.nodes.get(&node.id) else {
                let text = format!("{} is no member of this cluster; nothing was changed", node.id);
                return Response::Error(WireError::new(Code::NotProven, text));
            };
            if known.store_id != 0 && node.store_id != known.store_id {
                let text = format!("{} registered with another store; nothing was changed", node.id);
                return Response::Error(WireError::new(Code::NotProven, text));
            }
            node.name = known.name.clone();
            node.zone = known.zone.clone();
            node.membership = match known.membership {
                Membership::Pending | Membership::Joining => Membership::Active,
                other => other,
            };
            if node == *known {
                return Response::Registered(node);
            }
        }
        self.put_node(node.clone(), state);
        self.changed(state);
        Response::Registered(node)
    }

    fn put_node(&mut self, node: NodeInfo, state: &mut dyn State) {
        put(state, b'n', &node.id.0.to_be_bytes(), &node);
        self.map.nodes.insert(node.id, node);
    }

    fn learn_shards(&mut self, shards: &[ShardDescriptor], state: &mut dyn State) -> bool {
        let mut sorted: Vec<&ShardDescriptor> = shards.iter().collect();
        sorted.sort_by_key(|shard| shard.epoch);
        let before: Vec<ShardId> = self.map.shards().map(|shard| shard.id).collect();
        let mut news = false;
        for shard in sorted {
            // Remembered even where it overlaps with an older view of a neighbour: that view is out of date and its
            // leader will report.
            if self.map.learn_shard(shard) {
                put(state, b's', &shard.id.0.to_be_bytes(), shard);
                news = true;
            }
        }
        for id in before {
            if self.map.absorber(id).is_some() {
                remove(state, b's', &id.0.to_be_bytes());
            }
        }
        news
    }

    fn changed(&mut self, state: &mut dyn State) {
        self.map.version += 1;
        put(
            state,
            b'c',
            b"",
            &Counters {
                version: self.map.version,
                next_id: self.next_id,
            },
        );
    }
}

fn put<T: Serialize>(state: &mut dyn State, table: u8, id: &[u8], value: &T) {
    state.put(row(table, id), Some(codec::encode(value)));
}

fn remove(state: &mut dyn State, table: u8, id: &[u8]) {
    state.put(row(table, id), None);
}

fn row(table: u8, id: &[u8]) -> Bytes {
    let mut position = vec![0, table];
    // Ids are put in text so that no zero byte appears within a position.
    for byte in id {
        position.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    row_key(&Position(position.into()), RowKind::Directory, &[])
}
