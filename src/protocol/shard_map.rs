//! Which shard holds a key range, who holds the shard, where those nodes are: each at an epoch or version, so that
//! of two opinions the newer one is known.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{DIRECTORY_SHARD, Epoch, NodeId, ReplicaId, ShardId};
use super::key::{KeyRange, Position};
use super::op::Overlay;
use super::operator::Policy;
use super::schema::bundle::SchemaText;

/// What a replica counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReplicaRole {
    /// Votes, and counts towards the majority.
    Voter,
    /// Receives the log and does not count.
    Learner,
    /// Votes from now on and not before: the shard is between two configurations, and needs a majority of each.
    Incoming,
    /// Voted before and soon will not: the shard is between two configurations, and needs a majority of each.
    Outgoing,
}

impl ReplicaRole {
    /// Whether it votes, in either of two configurations.
    pub fn votes(self) -> bool {
        self != ReplicaRole::Learner
    }
}

/// A shard that its left neighbour is to absorb: it serves nothing until it is absorbed or thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The left neighbour.
    pub into: ShardId,
    /// The neighbour's epoch for which the merge was planned: at any other it is off.
    pub left_epoch: Epoch,
    /// The log entry that froze the shard: nothing behind it changes rows.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
}

/// A shard that an operator has frozen: it takes no writes for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Until then, on the shard's own clock. Unit: ms.
    pub until_ms: u64,
    /// About when that is, for people. Unit: ms since 1970.
    pub ends_ms: u64,
}

/// One copy of a shard: where it is and what it counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplicaDescriptor {
    /// The node that holds it.
    pub node: NodeId,
    /// Its name in the Raft group.
    pub id: ReplicaId,
    /// Voter or learner.
    pub role: ReplicaRole,
}

/// What a shard is at one epoch. The shard's own log is the truth; everything else is a cache of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// The shard.
    pub id: ShardId,
    /// What it holds.
    pub range: KeyRange,
    /// Grows with every change of range or replicas.
    pub epoch: Epoch,
    /// Its copies, by replica id.
    pub replicas: Vec<ReplicaDescriptor>,
    /// Set while it waits to be absorbed by its left neighbour.
    pub frozen: Option<Frozen>,
    /// Set while an operator keeps writes away, and for a while after.
    pub held: Option<Held>,
    /// Shards that this one has absorbed, and those that they had: the latest [`ABSORBED_KEPT`]. They are no more.
    pub absorbed: Vec<ShardId>,
    /// The newest replica that was ever added: a later one has a higher id. A replica that was removed must never be
    /// added again under its id; its node remembers that it destroyed it.
    pub newest_replica: ReplicaId,
    /// Copies that are damaged or differ from the others: they serve nothing, are not counted on, and are to be replaced.
    pub quarantined: Vec<ReplicaId>,
}

/// How many absorbed shards a descriptor remembers. A merge that was given up must be settled before its shard has taken
/// part in this many others.
pub const ABSORBED_KEPT: usize = 128;

impl ShardDescriptor {
    /// Whether an operator keeps writes away, by the label that people read.
    pub fn is_held(&self, wall_ms: u64) -> bool {
        self.held.is_some_and(|held| held.ends_ms > wall_ms)
    }

    /// Whether the shard is between two configurations.
    pub fn is_joint(&self) -> bool {
        let between = |r: &ReplicaDescriptor| matches!(r.role, ReplicaRole::Incoming | ReplicaRole::Outgoing);
        self.replicas.iter().any(between)
    }

    /// The nodes that hold a copy, in order, where all copies are voters of one configuration.
    pub fn settled_nodes(&self) -> Option<Vec<NodeId>> {
        let mut nodes = Vec::new();
        for replica in &self.replicas {
            if replica.role != ReplicaRole::Voter {
                return None;
            }
            nodes.push(replica.node);
        }
        nodes.sort();
        Some(nodes)
    }

    /// Whether this descriptor proves that another shard, last seen as `other`, was absorbed: where a shard begins stays
    /// with it as long as it lives, and epochs only grow at every place.
    pub fn has_taken(&self, other: &ShardDescriptor) -> bool {
        self.id != other.id && self.epoch > other.epoch && self.range.contains(&other.range.start)
    }

    /// Whether a copy is known to be damaged or to differ from the others.
    pub fn is_quarantined(&self, id: ReplicaId) -> bool {
        self.quarantined.contains(&id)
    }

    /// The copy on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<&ReplicaDescriptor> {
        self.replicas.iter().find(|r| r.node == node)
    }

    /// The copy with this replica id.
    pub fn replica(&self, id: ReplicaId) -> Option<&ReplicaDescriptor> {
        self.replicas.iter().find(|r| r.id == id)
    }
}

/// Where a node stands in the life of a member; how well it is, is another question (`Health`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// Asked to join.
    Pending,
    /// Let in, not yet heard from.
    Joining,
    /// A full member.
    Active,
    /// Handing everything over.
    Leaving,
    /// Left for good; its id is never used again.
    Gone,
}

/// What the directory knows of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node.
    pub id: NodeId,
    /// The operator's name for it; also in its certificate.
    pub name: String,
    /// `host:port` at which peers and clients reach it.
    pub address: String,
    /// Failure domain.
    pub zone: String,
    /// Where it stands in the life of a member.
    pub membership: Membership,
    /// Identity of its store; 0 until it registered. A store with another identity under the same node id has lost
    /// what it promised (a wiped or restored disk) and is refused.
    pub store_id: u128,
    /// Version of its software, as it said when it registered.
    pub version: String,
    /// What the operator wants of it.
    pub overlay: Overlay,
}

/// A kind of entity with its own key space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Name, also the first part of every position.
    pub name: String,
    /// Copies wanted of each of its shards.
    pub replicas: u32,
    /// Shards it began with.
    pub presplit: u32,
    /// How its shards are cut.
    pub sizes: ShardSizes,
    /// Given by the directory, and anew whenever a drop was given up: a late copy of an order to drop is about no other one.
    pub number: u64,
    /// The number of the drop that is under way.
    pub dropping: Option<u64>,
    /// Why the latest drop was given up; empty: there was none.
    pub kept_because: String,
}

/// What is remembered of a name whose service was dropped, for ever: whoever was away must hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dropped {
    /// Shards of this name with a lower id are no more.
    pub below: u64,
    /// Its schemas up to this revision are no more.
    pub revision: u64,
    /// Shards of this name that are new begin here. Later than all that were: who has not heard of the drop yet takes a new
    /// shard for the latest news of its keys, and not for one that an old shard has absorbed.
    pub epoch: Epoch,
}

/// When a service's shards are split and merged without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSizes {
    /// A larger shard is cut. Unit: bytes.
    pub split_bytes: u64,
    /// A busier shard is cut. Unit: requests per second; 0: never.
    pub split_load: u64,
    /// Two neighbours that are smaller together become one, at most half of `split_bytes`. Unit: bytes; 0: never.
    pub merge_bytes: u64,
    /// Never fewer shards than this.
    pub min_shards: u32,
}

impl Default for ShardSizes {
    fn default() -> Self {
        Self {
            split_bytes: 512 << 20,
            split_load: 20_000,
            merge_bytes: 0,
            min_shards: 1,
        }
    }
}

/// A cache of ranges, members and addresses; every node and client has one, and learns by being corrected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// Version of the directory's state that this one includes.
    pub version: u64,
    shards: BTreeMap<ShardId, ShardDescriptor>,
    by_start: BTreeMap<Position, ShardId>,
    /// Last known leader of each shard, with the term in which it led.
    leaders: BTreeMap<ShardId, (u64, NodeId)>,
    /// Shards that were absorbed, and by whom: late news of them are no news.
    gone: BTreeMap<ShardId, ShardId>,
    /// Descriptors taken in so far; see [`ShardMap::changes`].
    changes: u64,
    /// Members by id.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// Services by name.
    pub services: BTreeMap<String, ServiceInfo>,
    /// Names whose services were dropped; some are in use again.
    pub dropped: BTreeMap<String, Dropped>,
    /// Newest schema of each service that has one.
    pub schemas: BTreeMap<String, SchemaText>,
    /// What the operator has laid down.
    pub policy: Policy,
}

/// All or part of a map on its way to somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapView {
    /// Version of the directory's state that this was taken from; 0 where a node tells what it knows by itself.
    pub version: u64,
    /// Shards.
    pub shards: Vec<ShardDescriptor>,
    /// Shard, term, leader.
    pub leaders: Vec<(ShardId, u64, NodeId)>,
    /// Members.
    pub nodes: Vec<NodeInfo>,
    /// Services.
    pub services: Vec<ServiceInfo>,
    /// Names whose services were dropped.
    pub dropped: Vec<(String, Dropped)>,
    /// Schemas; of those that the receiver has already, none.
    pub schemas: Vec<SchemaText>,
    /// What the operator has laid down.
    pub policy: Box<Policy>,
}

impl ShardMap {
    /// The shard that holds `position`, as far as this map knows.
    pub fn find(&self, position: &Position) -> Option<&ShardDescriptor> {
        let (_, id) = self.by_start.range(..=position).next_back()?;
        self.shards.get(id).filter(|shard| shard.range.contains(position))
    }

    /// The shard with this id.
    pub fn shard(&self, id: ShardId) -> Option<&ShardDescriptor> {
        self.shards.get(&id)
    }

    /// All shards in key order.
    pub fn shards(&self) -> impl Iterator<Item = &ShardDescriptor> {
        self.by_start.values().filter_map(|id| self.shards.get(id))
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        self.by_start.len()
    }

    /// Who led the shard when last heard of, and in which term.
    pub fn leader(&self, id: ShardId) -> Option<(u64, NodeId)> {
        self.leaders.get(&id).copied()
    }

    /// Takes in a descriptor; says whether it was news. Shards that overlap it with a lower epoch are forgotten: they
    /// are older views of the same keys.
    pub fn learn_shard(&mut self, shard: &ShardDescriptor) -> bool {
        let is_old = |known: &ShardDescriptor| known.epoch >= shard.epoch;
        if self.gone.contains_key(&shard.id) || self.is_dropped(shard) || self.shards.get(&shard.id).is_some_and(is_old)
        {
            return false;
        }
        let overlapping = self.overlapping(shard);
        if overlapping.iter().any(|id| self.shards[id].epoch > shard.epoch) {
            return false;
        }
        for id in overlapping {
            if shard.has_taken(&self.shards[&id]) {
                self.gone.insert(id, shard.id);
            }
            self.forget_shard(id);
        }
        for &id in &shard.absorbed {
            self.gone.entry(id).or_insert(shard.id);
            self.forget_shard(id);
        }
        self.forget_shard(shard.id);
        self.by_start.insert(shard.range.start.clone(), shard.id);
        self.shards.insert(shard.id, shard.clone());
        self.changes += 1;
        true
    }

    /// Other known shards that hold some of its keys. Known shards do not overlap each other, so at most one of them
    /// begins before this one and reaches into it.
    pub fn overlapping(&self, shard: &ShardDescriptor) -> Vec<ShardId> {
        let KeyRange { start, end } = &shard.range;
        let before = self.by_start.range(..start).next_back();
        let within = (start < end).then(|| self.by_start.range(start..end));
        let near = before.into_iter().chain(within.into_iter().flatten());
        let known = near.filter_map(|(_, id)| self.shards.get(id));
        known
            .filter(|other| other.id != shard.id && other.range.overlaps(&shard.range))
            .map(|other| other.id)
            .collect()
    }

    /// The epoch at which a service's first shards begin.
    pub fn first_epoch(&self, service: &str) -> Epoch {
        self.dropped.get(service).map_or(Epoch(1), |dropped| dropped.epoch)
    }

    /// Whether the shard went with its service.
    pub fn is_dropped(&self, shard: &ShardDescriptor) -> bool {
        let dropped = self.dropped.get(shard.range.service());
        shard.id != DIRECTORY_SHARD && dropped.is_some_and(|dropped| shard.id.0 < dropped.below)
    }

    /// Forgets the shards and the schema of a service that was dropped; gives the shards that were known.
    pub fn learn_dropped(&mut self, name: &str, dropped: Dropped) -> Vec<ShardId> {
        let known = self.dropped.get(name);
        if known.is_some_and(|known| known.below >= dropped.below) {
            return Vec::new();
        }
        self.dropped.insert(name.to_owned(), dropped);
        let mine = self.shards().filter(|shard| shard.range.service() == name);
        let mine: Vec<ShardId> = mine
            .filter(|shard| self.is_dropped(shard))
            .map(|shard| shard.id)
            .collect();
        for &id in &mine {
            // As if the directory had absorbed it.
            self.gone.insert(id, DIRECTORY_SHARD);
            self.forget_shard(id);
        }
        let schema = self.schemas.get(name);
        if schema.is_some_and(|schema| schema.revision <= dropped.revision) {
            self.schemas.remove(name);
        }
        self.changes += 1;
        mine
    }

    /// How many descriptors were taken in: a map that shows the same number again has the same shards.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Who absorbed a shard that is no more.
    pub fn absorber(&self, id: ShardId) -> Option<ShardId> {
        self.gone.get(&id).copied()
    }

    /// Drops a shard that is no more.
    pub fn forget_shard(&mut self, id: ShardId) {
        if let Some(old) = self.shards.remove(&id)
            && self.by_start.get(&old.range.start) == Some(&id)
        {
            self.by_start.remove(&old.range.start);
        }
    }

    /// Takes in who leads; the higher term is right. Says whether it was news.
    pub fn learn_leader(&mut self, id: ShardId, term: u64, node: NodeId) -> bool {
        match self.leaders.get(&id) {
            Some(&(known, leader)) if known > term || (known == term && leader == node) => false,
            _ => {
                self.leaders.insert(id, (term, node));
                true
            }
        }
    }

    /// Forgets who leads, so that the next request asks around; only where `node` is still thought to lead.
    pub fn doubt_leader(&mut self, id: ShardId, node: NodeId) {
        if self.leaders.get(&id).is_some_and(|&(_, leader)| leader == node) {
            self.leaders.remove(&id);
        }
    }

    /// Takes in what somebody else knows.
    pub fn learn(&mut self, view: &MapView) {
        for (name, dropped) in &view.dropped {
            self.learn_dropped(name, *dropped);
        }
        // Descriptors with low epochs first, or a parent seen before its split would push out the child.
        let mut shards: Vec<&ShardDescriptor> = view.shards.iter().collect();
        shards.sort_by_key(|s| s.epoch);
        for shard in shards {
            self.learn_shard(shard);
        }
        for &(shard, term, node) in &view.leaders {
            self.learn_leader(shard, term, node);
        }
        if view.version >= self.version {
            self.version = view.version;
            self.policy.clone_from(&view.policy);
            for node in &view.nodes {
                self.nodes.insert(node.id, node.clone());
            }
            for service in &view.services {
                self.services.insert(service.name.clone(), service.clone());
            }
            // Services are always told of all at once.
            for name in self.dropped.keys() {
                if !view.services.iter().any(|service| service.name == *name) {
                    self.services.remove(name);
                }
            }
        }
        for schema in &view.schemas {
            let known = self.schemas.get(&schema.service);
            let dropped = self.dropped.get(&schema.service);
            if dropped.is_some_and(|dropped| schema.revision <= dropped.revision) {
                continue;
            }
            if known.is_none_or(|known| known.revision < schema.revision) {
                self.schemas.insert(schema.service.clone(), schema.clone());
            }
        }
    }

    /// The newest revision among the schemas known; 0: none is.
    pub fn schema_revision(&self) -> u64 {
        let known = self.schemas.values().map(|schema| schema.revision);
        let dropped = self.dropped.values().map(|dropped| dropped.revision);
        known.chain(dropped).max().unwrap_or(0)
    }

    /// Schemas that are newer than `revision`: they are long and seldom new.
    pub fn schemas_since(&self, revision: u64) -> Vec<SchemaText> {
        let newer = self.schemas.values().filter(|schema| schema.revision > revision);
        newer.cloned().collect()
    }

    /// Names whose services were dropped, as a view has them.
    pub fn view_dropped(&self) -> Vec<(String, Dropped)> {
        let named = self.dropped.iter().map(|(name, &dropped)| (name.clone(), dropped));
        named.collect()
    }

    /// Everything this map knows, but for schemas.
    pub fn view(&self) -> MapView {
        MapView {
            version: self.version,
            shards: self.shards().cloned().collect(),
            leaders: self
                .leaders
                .iter()
                .map(|(&id, &(term, node))| (id, term, node))
                .collect(),
            nodes: self.nodes.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            dropped: self.view_dropped(),
            schemas: Vec::new(),
            policy: Box::new(self.policy.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u64, epoch: u64, start: &str, end: Option<&str>) -> ShardDescriptor {
        let end = end.map_or_else(|| Position::end_of("campaign"), |key| Position::new("campaign", key));
        let range = KeyRange {
            start: Position::new("campaign", start),
            end,
        };
        ShardDescriptor {
            id: ShardId(id),
            range,
            epoch: Epoch(epoch),
            replicas: Vec::new(),
            frozen: None,
            held: None,
            newest_replica: Default::default(),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        }
    }

    #[test]
    fn an_absorbed_shard_never_comes_back() {
        let (left, right) = (shard(1, 2, "", Some("m")), shard(2, 3, "m", None));
        let merged = ShardDescriptor {
            absorbed: vec![ShardId(2)],
            quarantined: Vec::new(),
            ..shard(1, 4, "", None)
        };
        let split = [shard(1, 5, "", Some("m")), shard(3, 5, "m", None)];
        for order in [
            vec![&left, &right, &merged],
            vec![&merged, &right],
            vec![&right, &split[1], &right],
            vec![&split[0], &split[1], &merged, &right],
        ] {
            let mut map = ShardMap::default();
            for descriptor in order {
                map.learn_shard(descriptor);
            }
            assert_eq!(map.shard(ShardId(2)), None);
            let found = map.find(&Position::new("campaign", "z")).map(|s| s.id.0);
            assert!(found == Some(1) || found == Some(3), "{found:?}");
        }
    }

    #[test]
    fn finds_the_shard_of_a_position() {
        let mut map = ShardMap::default();
        map.learn_shard(&shard(1, 1, "", Some("m")));
        map.learn_shard(&shard(2, 1, "m", None));
        let find = |key| map.find(&Position::new("campaign", key)).map(|s| s.id.0);
        assert_eq!(find("a"), Some(1));
        assert_eq!(find("m"), Some(2));
        assert_eq!(map.find(&Position::new("profile", "a")), None);
    }

    #[test]
    fn a_stale_parent_never_hides_the_child_of_its_split() {
        let parent_before = shard(1, 1, "", None);
        let (parent, child) = (shard(1, 2, "", Some("m")), shard(2, 2, "m", None));
        for order in [
            [&parent_before, &parent, &child],
            [&child, &parent_before, &parent],
            [&parent, &child, &parent_before],
        ] {
            let mut map = ShardMap::default();
            for descriptor in order {
                map.learn_shard(descriptor);
            }
            assert_eq!(
                map.find(&Position::new("campaign", "z")).map(|s| s.id),
                Some(ShardId(2))
            );
            assert_eq!(
                map.find(&Position::new("campaign", "a")).map(|s| s.id),
                Some(ShardId(1))
            );
        }
    }
}
