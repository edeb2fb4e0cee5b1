//! The configuration's epoch, and what made it: changes of nodes, of shards' ranges and members, of rules and services.
//!
//! A plan is made for one epoch and applied at no other. Heartbeats, addresses, leaderships and learners do not count:
//! they change nothing that a plan is about, and would make every plan stale.
use std::collections::BTreeMap;

use super::directory::{put, remove};
use super::state::State;
use crate::protocol::codec;
use crate::protocol::id::NodeId;
use crate::protocol::op::Intent;
use crate::protocol::operator::ConfigChange;
use crate::protocol::shard_map::{Membership, NodeInfo, ReplicaRole, ShardDescriptor};

/// Changes are remembered up to this many. Unit: changes.
const CHANGES_KEPT: usize = 256;

/// The epoch and the latest changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    changes: BTreeMap<u64, ConfigChange>,
}

impl History {
    /// Takes in a row as it is read at the start.
    pub(super) fn load(&mut self, value: &[u8]) -> Result<(), codec::CodecError> {
        let change: ConfigChange = codec::decode(value)?;
        self.changes.insert(change.epoch, change);
        Ok(())
    }

    /// How many changes there have been.
    pub fn epoch(&self) -> u64 {
        self.changes.keys().next_back().copied().unwrap_or(0)
    }

    /// What has changed since `epoch`, as far as it is remembered.
    pub fn since(&self, epoch: u64) -> impl DoubleEndedIterator<Item = &ConfigChange> {
        self.changes.range(epoch.saturating_add(1)..).map(|(_, change)| change)
    }

    pub(super) fn add(&mut self, text: String, wall_ms: u64, state: &mut dyn State) {
        let epoch = self.epoch() + 1;
        let change = ConfigChange { epoch, wall_ms, text };
        put(state, b'e', &epoch.to_be_bytes(), &change);
        self.changes.insert(epoch, change);
        while self.changes.len() > CHANGES_KEPT {
            if let Some((oldest, _)) = self.changes.pop_first() {
                remove(state, b'e', &oldest.to_be_bytes());
            }
        }
    }
}

/// What a new descriptor of a shard changes, if it is anything that a plan is about.
pub(super) fn told_of_shard(before: Option<&ShardDescriptor>, now: &ShardDescriptor) -> Option<String> {
    let Some(before) = before else {
        return Some(format!("{} is new: {}", now.id, now.range));
    };
    let mut told = Vec::new();
    if before.range.end > now.range.end {
        told.push(format!("{} was split at {}", now.id, now.range.end));
    } else if before.range.end < now.range.end {
        let taken = now.absorbed.iter().find(|id| !before.absorbed.contains(id));
        let taken = taken.map_or_else(|| "its neighbour".to_owned(), ToString::to_string);
        told.push(format!("{} took over {taken}", now.id));
    }
    let (old, new) = (voters(before), voters(now));
    let list = |nodes: Vec<NodeId>| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let gone: Vec<NodeId> = old.iter().copied().filter(|node| !new.contains(node)).collect();
    let came: Vec<NodeId> = new.iter().copied().filter(|node| !old.contains(node)).collect();
    match (gone.is_empty(), came.is_empty()) {
        (true, true) => {}
        (false, false) => told.push(format!("{} moved from {} to {}", now.id, list(gone), list(came))),
        (false, true) => told.push(format!("{} lost its copy on {}", now.id, list(gone))),
        (true, false) => told.push(format!("{} got a copy on {}", now.id, list(came))),
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// Who votes, or will once the change under way is over.
fn voters(shard: &ShardDescriptor) -> Vec<NodeId> {
    let votes = |role| matches!(role, ReplicaRole::Voter | ReplicaRole::Incoming);
    let mut nodes: Vec<NodeId> = shard
        .replicas
        .iter()
        .filter(|r| votes(r.role))
        .map(|r| r.node)
        .collect();
    nodes.sort_unstable();
    nodes
}

/// What a new record of a node changes, if it is anything that a plan is about.
pub(super) fn told_of_node(before: Option<&NodeInfo>, now: &NodeInfo) -> Option<String> {
    let name = &now.name;
    let Some(before) = before else {
        let waits = match now.membership {
            Membership::Pending => "asks to be let in",
            _ => "joined",
        };
        return Some(format!("{name} {waits}"));
    };
    if before.membership != now.membership {
        let membership = match now.membership {
            Membership::Pending => "is pending",
            Membership::Joining => "was let in",
            Membership::Active if before.membership == Membership::Leaving => "stays",
            Membership::Active => "is active",
            Membership::Leaving => "is leaving",
            Membership::Gone => "is no member any more",
        };
        return Some(format!("{name} {membership}"));
    }
    if before.overlay.intent != now.overlay.intent {
        let intent = match now.overlay.intent {
            Intent::Stay => "takes part again",
            Intent::DrainLeaders => "is drained of leaderships",
            Intent::DrainAll => "is drained",
        };
        return Some(format!("{name} {intent}"));
    }
    if before.zone != now.zone {
        return Some(format!("{name} is in zone {}", now.zone));
    }
    (before.overlay.maintenance_until_ms != now.overlay.maintenance_until_ms).then(|| {
        let maintenance = match now.overlay.maintenance_until_ms {
            0 => "is not in maintenance any more",
            _ => "is in maintenance",
        };
        format!("{name} {maintenance}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::{Epoch, ReplicaId, ShardId};
    use crate::protocol::key::{KeyRange, Position};
    use crate::protocol::shard_map::ReplicaDescriptor;

    fn shard(end: &str, replicas: &[(u64, ReplicaRole)]) -> ShardDescriptor {
        let replica = |&(node, role): &(u64, ReplicaRole)| ReplicaDescriptor {
            node: NodeId(node),
            id: ReplicaId(node),
            role,
        };
        ShardDescriptor {
            id: ShardId(17),
            range: KeyRange {
                start: Position::new("campaign", "a"),
                end: Position::new("campaign", end),
            },
            epoch: Epoch(1),
            replicas: replicas.iter().map(replica).collect(),
            frozen: None,
            held: None,
            absorbed: Vec::new(),
            newest_replica: ReplicaId(9),
            quarantined: Default::default(),
        }
    }

    #[test]
    fn what_a_plan_is_about_counts_and_nothing_else() {
        use ReplicaRole::{Incoming, Learner, Outgoing, Voter};
        let before = shard("z", &[(1, Voter), (2, Voter)]);
        let told = |now: &ShardDescriptor| told_of_shard(Some(&before), now);
        assert_eq!(told(&shard("z", &[(1, Voter), (2, Voter), (3, Learner)])), None);
        let joint = shard("z", &[(1, Voter), (2, Outgoing), (3, Incoming)]);
        assert_eq!(told(&joint).as_deref(), Some("s-17 moved from n2 to n3"));
        // The end of the same change is no second one.
        let done = shard("z", &[(1, Voter), (3, Voter), (2, Learner)]);
        assert_eq!(told_of_shard(Some(&joint), &done), None);
        let cut = shard("m", &[(1, Voter), (2, Voter)]);
        assert_eq!(told(&cut).as_deref(), Some("s-17 was split at campaign/m"));
    }
}
