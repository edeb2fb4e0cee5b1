//! Shards of new services: where their copies go, and how a copy begins here.
use super::*;
use crate::daemon::core::birth::{FIRST_SHARDS_MAX, NewService};
use crate::daemon::core::directory::FIRST_ALLOCATED_ID;
use crate::daemon::core::state::Install;

/// Shards that this node has a part in and has not begun with.
#[derive(Debug, Default)]
pub(super) struct Births {
    /// Heard of.
    wanted: Vec<ShardDescriptor>,
    /// On their way to disk: a copy takes part in nothing before a restart would find it.
    under_way: BTreeMap<ShardId, ReplicaMeta>,
    /// Whose log is here, and nothing has made them again since the start: see `has_promised`.
    overdue: BTreeMap<ShardId, ReplicaId>,
}

impl Births {
    /// A copy of the shard is here.
    pub(super) fn begun(&mut self, shard: ShardId) {
        self.overdue.remove(&shard);
    }
}

impl Node {
    /// Looks for shards at their first epoch that name this node. At a later one the shard has lived without this copy, and
    /// its leader sends a snapshot.
    pub(super) fn note_births(&mut self, shards: &[ShardDescriptor]) {
        let me = self.config.node;
        let begins = |shard: &&ShardDescriptor| {
            let is_first = shard.epoch == self.map.first_epoch(shard.range.service());
            is_first && shard.id.0 >= FIRST_ALLOCATED_ID && shard.replica_on(me).is_some()
        };
        self.births.wanted.extend(shards.iter().filter(begins).cloned());
    }

    pub(super) fn tend_births(&mut self, effects: &mut Effects) {
        for shard in std::mem::take(&mut self.births.wanted) {
            let Some(id) = shard.replica_on(self.config.node).map(|replica| replica.id) else {
                continue;
            };
            let is_news = self.map.shard(shard.id).is_some_and(|known| known.epoch == shard.epoch);
            let was_here = self.floors.get(&shard.id).is_some_and(|&floor| floor >= id)
                || self.burying.contains(&shard.id)
                || self.condemned.contains_key(&shard.id)
                // Also one that was made by its leader's message: it gets a snapshot.
                || self.replicas.contains_key(&shard.id)
                || self.births.under_way.contains_key(&shard.id);
            if !is_news || was_here {
                continue;
            }
            if self.has_dead_rows(&shard) {
                self.births.wanted.push(shard);
                continue;
            }
            let mut meta = replica::first_meta(shard, Default::default());
            meta.replica = id;
            effects.push(Effect::Install(Box::new(Install {
                meta: meta.clone(),
                also: Vec::new(),
                clear: Vec::new(),
                rows: None,
            })));
            self.births.under_way.insert(meta.shard.id, meta);
        }
    }

    /// Whether copies of an earlier service of this name are still to be cleared away here.
    fn has_dead_rows(&self, shard: &ShardDescriptor) -> bool {
        let is_dead = |other: &Replica| other.is_initialized() && other.shard.range.overlaps(&shard.range);
        self.map.dropped.contains_key(shard.range.service())
            && (!self.burying.is_empty() || self.replicas.values().any(is_dead))
    }

    /// Whether what was installed is the beginning of a copy, which takes part from now on.
    pub(super) fn born(&mut self, shard: ShardId) -> bool {
        let Some(meta) = self.births.under_way.remove(&shard) else {
            return false;
        };
        let id = meta.replica;
        let is_over = self.floors.get(&shard).is_some_and(|&floor| floor >= id);
        if !is_over && !self.replicas.contains_key(&shard) {
            let orphan = self.orphans.remove(&shard).unwrap_or_default();
            self.add_replica(meta, id, orphan);
        }
        self.unknown_since.remove(&shard);
        true
    }

    /// Whether a copy of the shard is about to begin here.
    pub(super) fn is_to_be_born(&self, shard: ShardId) -> bool {
        self.births.under_way.contains_key(&shard)
    }

    /// Whether the log speaks for this copy, which is not here: it has acknowledged entries and is born of another shard's
    /// log, which is not applied up to there yet. To begin it anew, with nothing, would be to forget what it has promised.
    pub(super) fn has_promised(&self, shard: ShardId, id: ReplicaId) -> bool {
        let has_log = self.orphans.get(&shard).is_some_and(|log| !log.entries.is_empty());
        // One that is made in its place has a higher id.
        has_log && self.births.overdue.get(&shard).is_none_or(|&overdue| id <= overdue)
    }

    /// Nothing here makes the copy again, although its log is here: a fault of ours, or its parent's copy was removed. Its
    /// leader is asked for another one in its place, which has promised nothing.
    pub(super) fn birth_is_overdue(&mut self, shard: ShardId, id: ReplicaId, leader: NodeId, effects: &mut Effects) {
        self.births.overdue.entry(shard).or_insert(id);
        effects.push(Effect::Event(Event::Damage {
            shard,
            replica: id,
            why: OVERDUE.to_owned(),
        }));
        effects.push(Effect::Send {
            to: leader,
            message: Message::Damaged {
                shard,
                replica: id,
                why: OVERDUE.to_owned(),
            },
        });
    }

    /// The same, for people.
    pub(super) fn overdue_births(&self) -> impl Iterator<Item = String> {
        let overdue = self.births.overdue.iter();
        overdue.map(|(shard, id)| format!("REPLICA_DAMAGED {id} of {shard}: {OVERDUE}"))
    }

    /// A new service as a command: copies go where there are fewest, in as many zones as there are.
    pub(in crate::daemon::core) fn draft_service(
        &self,
        name: String,
        replicas: u32,
        cuts: Vec<Position>,
    ) -> Result<NewService, WireError> {
        if let Err(error) = crate::protocol::key::check_service(&name) {
            return Err(WireError::new(
                Code::BadRequest,
                format!("{error}; nothing was changed"),
            ));
        }
        self.place_service(name, replicas, cuts)
    }

    /// The same, for a service of whatever name.
    pub(super) fn place_service(
        &self,
        name: String,
        replicas: u32,
        cuts: Vec<Position>,
    ) -> Result<NewService, WireError> {
        let bad = |text: String| Err(WireError::new(Code::BadRequest, format!("{text}; nothing was changed")));
        if !(1..=7).contains(&replicas) || replicas.is_multiple_of(2) {
            return bad(format!("{replicas} copies: 1, 3, 5 or 7 can be kept"));
        }
        let is_inside = |cut: &Position| cut.parts().0 == name && cut.parts().1.is_some_and(|key| !key.is_empty());
        if cuts.len() >= FIRST_SHARDS_MAX || !cuts.iter().all(is_inside) || !cuts.is_sorted_by(|a, b| a < b) {
            return bad(format!(
                "a service begins with up to {FIRST_SHARDS_MAX} shards, cut at keys in order"
            ));
        }
        if self.map.services.contains_key(&name) {
            let text = format!("the service `{name}` exists already; nothing was changed");
            return Err(WireError::new(Code::Exists, text));
        }
        let mut copies: BTreeMap<NodeId, (usize, &str)> = BTreeMap::new();
        for node in self
            .map
            .nodes
            .values()
            .filter(|node| node.membership == Membership::Active)
        {
            copies.insert(node.id, (0, node.zone.as_str()));
        }
        if (copies.len() as u32) < replicas {
            return bad(format!(
                "{replicas} copies are wanted and there are {} nodes",
                copies.len()
            ));
        }
        for shard in self.map.shards() {
            for replica in &shard.replicas {
                if let Some((count, _)) = copies.get_mut(&replica.node) {
                    *count += 1;
                }
            }
        }
        let mut all = Vec::new();
        for _ in 0..=cuts.len() {
            let mut chosen: Vec<NodeId> = Vec::new();
            for _ in 0..replicas {
                let zones: BTreeSet<&str> = chosen.iter().map(|node| copies[node].1).collect();
                let best = copies
                    .iter()
                    .filter(|(node, _)| !chosen.contains(node))
                    .min_by_key(|(node, (count, zone))| (zones.contains(zone), *count, **node));
                let Some(node) = best.map(|(&node, _)| node) else { break };
                chosen.push(node);
                copies.entry(node).and_modify(|(count, _)| *count += 1);
            }
            chosen.sort();
            all.push(chosen);
        }
        Ok(NewService {
            name,
            replicas,
            cuts,
            nodes: all,
        })
    }
}

const OVERDUE: &str = "its log is here, and nothing that makes it again after a restart; it is to be replaced";
