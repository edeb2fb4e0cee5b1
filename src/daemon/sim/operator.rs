//! What an operator of the simulation undertakes: operations of several steps, begun at random and sometimes given up
//! half way, as an operator's tool or a placement driver would. Whoever cleans up later must be able to.
use crate::protocol::error::Code;
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::op::{Goal, NodeChange, Scope, Settings};
use crate::protocol::operator::{MarkChange, Order, Pin, PlacementRule, RouterSettings};
use crate::protocol::request::{ReplicaChange, Request, Response};
use crate::protocol::shard_map::{ReplicaRole, ShardDescriptor, ShardMap};

/// The step of an operation that was asked for last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Looks at the map, to choose what to do.
    Look,
    /// Looks at the map for a freeze that somebody left behind.
    LookForFrozen,
    /// Gets an id for a new replica; then adds it.
    Ids {
        /// The shard, as it was.
        shard: ShardDescriptor,
        /// Where the replica will be.
        node: NodeId,
        /// Whose place it takes.
        victim: Option<ReplicaId>,
    },
    /// Adds a learner; then promotes it.
    Add {
        /// The learner.
        replica: ReplicaId,
        /// Whose place it takes.
        victim: Option<ReplicaId>,
    },
    /// Promotes a learner, perhaps in exchange for a voter.
    Promote {
        /// Who is a learner now.
        demoted: Option<ReplicaId>,
    },
    /// The last step.
    Last,
    /// Freezes the right shard; then merges it.
    Freeze {
        /// The left shard, as it was.
        left: ShardDescriptor,
        /// The merge will be given up.
        gives_up: bool,
    },
    /// Merges the frozen shard.
    Merge {
        /// The frozen shard.
        right: Box<ShardDescriptor>,
    },
    /// Makes the merge impossible; then thaws.
    Bump {
        /// The frozen shard.
        right: Box<ShardDescriptor>,
    },
}

/// Draws what to do next with the cluster, after a look at the map. `spare` is a fresh request id.
pub fn choose(rng: &mut fastrand::Rng, map: &ShardMap, nodes: &[NodeId], id: RequestId) -> Option<(Step, Request)> {
    let shards: Vec<&ShardDescriptor> = map.shards().collect();
    let moving: Vec<&ShardDescriptor> = shards
        .iter()
        .copied()
        .filter(|shard| shard.id != DIRECTORY_SHARD || rng.u32(..3) == 0)
        .collect();
    if moving.is_empty() {
        return None;
    }
    let shard = moving[rng.usize(..moving.len())].clone();
    let free: Vec<NodeId> = nodes
        .iter()
        .copied()
        .filter(|&node| shard.replica_on(node).is_none())
        .collect();
    let any = |rng: &mut fastrand::Rng, role: ReplicaRole| -> Option<ReplicaId> {
        let of_role: Vec<ReplicaId> = shard.replicas.iter().filter(|r| r.role == role).map(|r| r.id).collect();
        (!of_role.is_empty()).then(|| of_role[rng.usize(..of_role.len())])
    };
    let change = |shard: &ShardDescriptor, changes: Vec<ReplicaChange>| Request::ChangeReplicas {
        shard: shard.id,
        epoch: shard.epoch,
        changes,
        id,
    };
    let ids = Request::AllocateIds { count: 1, id };
    match rng.u32(..100) {
        0..=34 if !free.is_empty() => {
            let node = free[rng.usize(..free.len())];
            let victim = any(rng, ReplicaRole::Voter);
            Some((Step::Ids { shard, node, victim }, ids))
        }
        35..=42 if !free.is_empty() && shard.replicas.len() < 5 => {
            let node = free[rng.usize(..free.len())];
            let victim = None;
            Some((Step::Ids { shard, node, victim }, ids))
        }
        43..=54 => {
            let replica = any(rng, ReplicaRole::Learner).or_else(|| any(rng, ReplicaRole::Voter))?;
            Some((Step::Last, change(&shard, vec![ReplicaChange::Remove { replica }])))
        }
        55..=58 => {
            let replica = any(rng, ReplicaRole::Voter)?;
            Some((Step::Last, change(&shard, vec![ReplicaChange::Demote { replica }])))
        }
        59..=64 => {
            let replica = any(rng, ReplicaRole::Learner)?;
            Some((
                Step::Promote { demoted: None },
                change(&shard, vec![ReplicaChange::Promote { replica }]),
            ))
        }
        65..=79 => Some((Step::Last, choose_op(rng, &shard, &free, nodes, id))),
        _ => choose_merge(rng, &shards, id),
    }
}

/// Something that the directory's leader is to see to.
fn choose_op(
    rng: &mut fastrand::Rng,
    shard: &ShardDescriptor,
    free: &[NodeId],
    nodes: &[NodeId],
    id: RequestId,
) -> Request {
    let node = nodes[rng.usize(..nodes.len())];
    let goal = match rng.u32(..15) {
        14 => {
            // Over before the cluster has to serve everybody again.
            let for_ms = [0, rng.u64(50..1_500)][rng.usize(..2)];
            return Request::HoldShard {
                shard: shard.id,
                for_ms,
                id,
            };
        }
        10 => return order(rng, shard, nodes, id),
        11 => Goal::Split {
            shard: shard.id,
            at: cuts(rng, shard),
        },
        12 => Goal::SetReplicas {
            of: match rng.bool() {
                true => Scope::Shard(shard.id),
                false => Scope::Service(shard.range.service().to_owned()),
            },
            replicas: [None, Some(1), Some(3), Some(3), Some(5)][rng.usize(..5)],
        },
        13 => Goal::Scatter {
            service: shard.range.service().to_owned(),
            bytes: rng.bool(),
            leaders: true,
            load: rng.bool(),
        },
        0..=1 => Goal::Drain {
            node,
            everything: rng.bool(),
        },
        2..=4 => {
            let change = NodeChange::Undrain;
            return Request::ChangeNode { node, change, id };
        }
        5 => Goal::Rebalance,
        6 => {
            // Short enough for healing to begin within a run.
            let settings = Settings {
                heal_after_ms: [2_000, 6_000, 300_000][rng.usize(..3)],
                cooldown_ms: [1_000, 600_000][rng.usize(..2)],
                auto_rebalance: rng.bool(),
                ..Settings::default()
            };
            return Request::SetSettings { settings, id };
        }
        7 => Goal::Merge {
            left: shard.id,
            right: ShardId(shard.id.0 + 1),
        },
        _ => match (shard.replicas.first(), free.first()) {
            (Some(from), Some(&to)) => Goal::Move {
                shard: shard.id,
                from: from.node,
                to,
            },
            _ => Goal::Rebalance,
        },
    };
    Request::StartOp {
        goal,
        pace: None,
        protect_p99_us: None,
        because: String::new(),
        // A plan of long ago.
        at: (rng.u32(..8) == 0).then_some(1),
        undoes: None,
        id,
    }
}

/// Whether somebody asks for a single copy of something.
pub fn wants_one_copy(request: &Request) -> bool {
    let Request::StartOp { goal, .. } = request else {
        return false;
    };
    matches!(goal, Goal::SetReplicas { replicas: Some(1), .. })
}

/// A few keys inside a shard, in order.
fn cuts(rng: &mut fastrand::Rng, shard: &ShardDescriptor) -> Vec<String> {
    let (_, start) = shard.range.start.parts();
    let start = start.unwrap_or_default();
    let mut keys: Vec<String> = (0..rng.usize(1..3))
        .map(|_| format!("{start}{}", rng.lowercase()))
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Something that is laid down.
fn order(rng: &mut fastrand::Rng, shard: &ShardDescriptor, nodes: &[NodeId], id: RequestId) -> Request {
    let order = match rng.u32(..5) {
        0 => Order::SetRouter(RouterSettings {
            hops: rng.u8(1..5),
            retry_ms: rng.u64(1..200),
            ..RouterSettings::default()
        }),
        1..=2 => Order::Mark {
            shard: shard.id,
            change: match rng.u32(..4) {
                0 => MarkChange::Unpin,
                1 => MarkChange::Sticky(0),
                _ => MarkChange::Pin(Pin {
                    node: nodes[rng.usize(..nodes.len())],
                    // Wall clocks jump in here: some pins are over at once, some last.
                    until_ms: rng.u64(..4_000_000_000_000),
                }),
            },
        },
        3 => Order::RemoveRule("r".to_owned()),
        _ => Order::SetRule {
            rule: PlacementRule {
                name: "r".to_owned(),
                service: rng.bool().then(|| shard.range.service().to_owned()),
                replicas: [None, Some(3), Some(5)][rng.usize(..3)],
                zones: rng.u32(..3),
                ..PlacementRule::default()
            },
            unmet: rng.bool(),
        },
    };
    Request::Order { order, id }
}

fn choose_merge(rng: &mut fastrand::Rng, shards: &[&ShardDescriptor], id: RequestId) -> Option<(Step, Request)> {
    let pairs: Vec<(&ShardDescriptor, &ShardDescriptor)> = shards
        .windows(2)
        .map(|pair| (pair[0], pair[1]))
        .filter(|(left, right)| left.range.end == right.range.start && left.range.service() == right.range.service())
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let same = |pair: &&(&ShardDescriptor, &ShardDescriptor)| {
        pair.0.settled_nodes().is_some() && pair.0.settled_nodes() == pair.1.settled_nodes()
    };
    let fitting: Vec<_> = pairs.iter().filter(same).collect();
    if fitting.is_empty() {
        // Bring one replica of the right one to where the left one is: a merge may come of it later.
        let (left, right) = pairs[rng.usize(..pairs.len())];
        let node = left
            .replicas
            .iter()
            .map(|r| r.node)
            .find(|&node| right.replica_on(node).is_none())?;
        let stray = right.replicas.iter().find(|r| left.replica_on(r.node).is_none())?;
        let step = Step::Ids {
            shard: right.clone(),
            node,
            victim: Some(stray.id),
        };
        return Some((step, Request::AllocateIds { count: 1, id }));
    }
    let &&(left, right) = &fitting[rng.usize(..fitting.len())];
    let step = Step::Freeze {
        left: left.clone(),
        gives_up: rng.u32(..4) == 0,
    };
    let request = Request::FreezeShard {
        shard: right.id,
        epoch: right.epoch,
        into: left.id,
        left_epoch: left.epoch,
        id,
    };
    Some((step, request))
}

/// What cleans up after whoever left a shard frozen.
pub fn choose_thaw(map: &ShardMap, id: RequestId) -> Option<(Step, Request)> {
    // What is closed for a drop only the conductor opens again.
    let is_left = |shard: &&ShardDescriptor| shard.frozen.is_some_and(|frozen| frozen.into != DIRECTORY_SHARD);
    let right = Box::new(map.shards().find(is_left)?.clone());
    let frozen = right.frozen?;
    let mut left = frozen.into;
    while let Some(absorber) = map.absorber(left) {
        left = absorber;
    }
    let left = map.shard(left)?;
    if left.id == frozen.into && left.epoch <= frozen.left_epoch {
        let request = Request::BumpEpoch {
            shard: left.id,
            epoch: frozen.left_epoch,
            id,
        };
        return Some((Step::Bump { right }, request));
    }
    Some((Step::Last, thaw(&right, left, id)))
}

fn thaw(right: &ShardDescriptor, left: &ShardDescriptor, id: RequestId) -> Request {
    Request::ThawShard {
        shard: right.id,
        proof: Box::new(left.clone()),
        id,
    }
}

impl Step {
    /// The step after this one, which was answered. `None` ends the operation.
    pub fn next(self, rng: &mut fastrand::Rng, response: &Response, id: RequestId) -> Option<(Step, Request)> {
        let change = |shard: &ShardDescriptor, changes: Vec<ReplicaChange>| Request::ChangeReplicas {
            shard: shard.id,
            epoch: shard.epoch,
            changes,
            id,
        };
        match (self, response) {
            (Step::Ids { shard, node, victim }, &Response::Ids { first }) => {
                let replica = ReplicaId(first);
                let request = change(&shard, vec![ReplicaChange::AddLearner { node, replica }]);
                Some((Step::Add { replica, victim }, request))
            }
            (Step::Add { replica, victim }, Response::Shard(shard)) => {
                if rng.u32(..12) == 0 {
                    return None;
                }
                let mut changes = vec![ReplicaChange::Promote { replica }];
                let mut demoted = None;
                if let Some(victim) = victim {
                    if rng.bool() {
                        changes.push(ReplicaChange::Demote { replica: victim });
                        demoted = Some(victim);
                    } else {
                        changes.push(ReplicaChange::Remove { replica: victim });
                    }
                }
                Some((Step::Promote { demoted }, change(shard, changes)))
            }
            (Step::Promote { demoted: Some(replica) }, Response::Shard(shard)) => {
                Some((Step::Last, change(shard, vec![ReplicaChange::Remove { replica }])))
            }
            (Step::Freeze { left, gives_up }, Response::Shard(right)) => {
                let right = right.clone();
                match (gives_up, rng.bool()) {
                    (true, true) => None,
                    (true, false) => Some((Step::Bump { right: right.clone() }, bump(&right, id)?)),
                    (false, _) => {
                        let request = Request::MergeShards {
                            left: left.id,
                            left_epoch: left.epoch,
                            right: right.clone(),
                            id,
                        };
                        Some((Step::Merge { right }, request))
                    }
                }
            }
            (Step::Bump { right }, Response::Shard(left)) => Some((Step::Last, thaw(&right, left, id))),
            _ => None,
        }
    }

    /// What is done when the step was refused or never answered.
    pub fn after_failure(self, id: RequestId) -> Option<(Step, Request)> {
        match self {
            Step::Merge { right } => {
                let request = bump(&right, id)?;
                Some((Step::Bump { right }, request))
            }
            _ => None,
        }
    }

    /// Whether the step may be refused like that: somebody else was faster, or the map was old.
    pub fn may_be_refused(code: Code) -> bool {
        matches!(
            code,
            Code::StaleEpoch
                | Code::NoSuchShard
                | Code::BadTarget
                | Code::TooFewReplicas
                | Code::BadChange
                | Code::BadMerge
                | Code::DiskFull
                | Code::OpConflict
                | Code::OpIsOver
                | Code::UnsafeOp
                | Code::NoSuchNode
                | Code::NoService
                | Code::BadRequest
                | Code::BadSplit
                | Code::StalePlan
                | Code::NoSuchRule
        )
    }
}

fn bump(right: &ShardDescriptor, id: RequestId) -> Option<Request> {
    let frozen = right.frozen?;
    Some(Request::BumpEpoch {
        shard: frozen.into,
        epoch: frozen.left_epoch,
        id,
    })
}
