//! A new service: its shards begin as one entry of the directory.
//!
//! The entry fixes ids, ranges, copies and the first epoch. Each node that is named makes its copy when it hears of the shard at
//! that epoch and has none and never had one: all begin alike, as founders do, so nobody has to be told by anybody else. A node
//! that hears late finds a shard that has lived without it, as after any absence.
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::state::State;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{NodeId, ReplicaId, ShardId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::request::Response;
use crate::protocol::shard_map::{
    Membership, ReplicaDescriptor, ReplicaRole, ServiceInfo, ShardDescriptor, ShardSizes,
};

/// Most shards that a service begins with.
pub const FIRST_SHARDS_MAX: usize = 256;

/// A service that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewService {
    /// Its name.
    pub name: String,
    /// Copies wanted of each shard.
    pub replicas: u32,
    /// Where its key space is cut.
    pub cuts: Vec<Position>,
    /// The nodes of each shard, in key order.
    pub nodes: Vec<Vec<NodeId>>,
}

impl NewService {
    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        let cuts: usize = self.cuts.iter().map(|cut| cut.0.len() + 4).sum();
        cuts + self.nodes.len() * 40 + 100
    }
}

impl Directory {
    pub(super) fn create_service(&mut self, new: &NewService, state: &mut dyn State) -> Response {
        let presplit = new.cuts.len() as u32 + 1;
        let number = self.next_id;
        if let Some(known) = self.map.services.get(&new.name) {
            // A repeat of the request finds what it made.
            if (known.replicas, known.presplit, known.dropping) == (new.replicas, presplit, None) {
                return Response::Asked;
            }
            let text = format!("the service `{}` exists already; nothing was changed", new.name);
            return Response::Error(WireError::new(Code::Exists, text));
        }
        let is_gone = |node: &&NodeId| {
            let known = self.map.nodes.get(node);
            known.is_none_or(|known| known.membership == Membership::Gone)
        };
        if let Some(node) = new.nodes.iter().flatten().find(is_gone) {
            let text = format!("{node} is no member of this cluster; nothing was changed");
            return Response::Error(WireError::new(Code::NoSuchNode, text));
        }
        let mut bounds = vec![Position::new(&new.name, "")];
        bounds.extend(new.cuts.iter().cloned());
        bounds.push(Position::end_of(&new.name));
        let mut shards = Vec::new();
        for (pair, nodes) in bounds.windows(2).zip(&new.nodes) {
            let id = ShardId(self.allocate());
            let replicas: Vec<ReplicaDescriptor> = nodes
                .iter()
                .map(|&node| ReplicaDescriptor {
                    node,
                    id: ReplicaId(self.allocate()),
                    role: ReplicaRole::Voter,
                })
                .collect();
            shards.push(ShardDescriptor {
                id,
                range: KeyRange {
                    start: pair[0].clone(),
                    end: pair[1].clone(),
                },
                epoch: self.map.first_epoch(&new.name),
                newest_replica: replicas.iter().map(|replica| replica.id).max().unwrap_or_default(),
                replicas,
                frozen: None,
                held: None,
                absorbed: Vec::new(),
                quarantined: Vec::new(),
            });
        }
        let service = ServiceInfo {
            number,
            dropping: None,
            kept_because: String::new(),
            name: new.name.clone(),
            replicas: new.replicas,
            presplit,
            sizes: ShardSizes::default(),
        };
        super::directory::put(state, b'v', new.name.as_bytes(), &service);
        self.map.services.insert(new.name.clone(), service);
        self.learn_shards(&shards, state);
        self.changed(state);
        Response::Asked
    }

    pub(super) fn allocate(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }
}
