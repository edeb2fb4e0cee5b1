//! The directory: what the scale-aware layer knows, kept by shard `s-0` like any other shard's rows.
//!
//! Nothing on the data path needs it: nodes and clients have copies of the map, and a shard's own log is the truth about
//! its range and members. The directory gives out ids, remembers nodes, and is where one asks first.
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::birth::NewService;
use super::catalog::{Catalog, CatalogCommand};
use super::history::{History, told_of_node, told_of_shard};
use super::ledger::{Ledger, LedgerCommand, LedgerOutcome};
use super::policy;
use super::state::{State, StateError};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{Epoch, NodeId, OpId, ShardId};
use crate::protocol::key::{KeyRange, Position, RowKind, row_key};
use crate::protocol::op::{Goal, Intent, NodeChange, OpBlocker, OpState};
use crate::protocol::operator::{Order, ShardMarks};
use crate::protocol::request::Response;
use crate::protocol::shard_map::{MapView, Membership, NodeInfo, ServiceInfo, ShardDescriptor, ShardMap, ShardSizes};

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
    /// Operations, tasks, settings.
    Ledger(LedgerCommand),
    /// What an operator, or an operation, wants of a node.
    ChangeNode {
        /// The node.
        node: NodeId,
        /// What.
        change: NodeChange,
        /// Wall clock. Unit: ms since 1970.
        wall_ms: u64,
    },
    /// A node that holds nothing any more is no member.
    Dismiss {
        /// The node.
        node: NodeId,
        /// The operation that emptied it, which ends with this.
        op: OpId,
        /// Wall clock. Unit: ms since 1970.
        wall_ms: u64,
    },
    /// A new service and its first shards.
    CreateService(NewService),
    /// The shards of a service are to be closed, and then it goes.
    BeginDrop {
        /// Its name.
        name: String,
        /// Its number: another service of this name is not meant.
        number: u64,
        /// The catalogue's revision at which nobody named it.
        revision: u64,
    },
    /// All shards are closed: the service goes.
    FinishDrop {
        /// Its name.
        name: String,
        /// The drop's number.
        drop: u64,
    },
    /// The service stays, and its shards open again.
    CancelDrop {
        /// Its name.
        name: String,
        /// The drop's number.
        drop: u64,
        /// Why.
        because: String,
    },
    /// Schemas.
    Catalog(CatalogCommand),
    /// What an operator ordered.
    Order {
        /// What.
        order: Order,
        /// Who: the name in a certificate.
        by: String,
    },
    /// Marks of shards that have run out go.
    ExpireMarks,
    /// How a service's shards are cut and copied.
    SetService {
        /// The service.
        name: String,
        /// Copies wanted of each shard.
        replicas: u32,
        /// When shards are split and merged.
        sizes: ShardSizes,
    },
}

/// The first moments of a new cluster.
pub(super) const NOT_FOUNDED: &str = "the directory has not written down its first nodes yet; nothing was changed";

impl DirectoryCommand {
    /// Whether it means the same before the founders are written down. A host that registered then would get the id of one
    /// of them.
    fn may_precede_founding(&self) -> bool {
        use DirectoryCommand::{AllocateIds, Found, LearnShards};
        matches!(self, Found { .. } | AllocateIds { .. } | LearnShards(_))
    }

    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        match self {
            DirectoryCommand::Catalog(command) => command.size(),
            DirectoryCommand::CreateService(new) => new.size(),
            _ => 1000,
        }
    }
}

/// The directory in memory: what its rows say, on every replica of `s-0`.
#[derive(Debug, Default)]
pub struct Directory {
    /// Nodes, services, shards; `map.version` counts changes.
    pub map: ShardMap,
    /// Operations, tasks, settings.
    pub ledger: Ledger,
    /// Versions of schemas.
    pub catalog: Catalog,
    /// The configuration's epoch and its latest changes.
    pub history: History,
    pub(super) next_id: u64,
    /// Shards that were learnt since the rows were read, and the version that brought each.
    pub(super) learnt: BTreeMap<ShardId, u64>,
    /// The version as of which the rows were read.
    loaded: u64,
    /// The wall clock of the entry that is being applied. Unit: ms since 1970.
    pub(super) wall_ms: u64,
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
        let mut ledger = Ledger::default();
        let mut catalog = Catalog::default();
        let mut history = History::default();
        let range = range();
        state.scan(&range.start.0, &range.end.0, &mut |key, value| {
            let read = match key.get(1) {
                Some(b'c') => codec::decode::<Counters>(value).map(|counters| {
                    view.version = counters.version;
                    next_id = counters.next_id;
                }),
                Some(b'n') => codec::decode(value).map(|node| view.nodes.push(node)),
                Some(b's') => codec::decode(value).map(|shard| view.shards.push(shard)),
                Some(b'h') => codec::decode(value).map(|record| catalog.load(record)),
                Some(b'd') => codec::decode(value).map(|dropped| view.dropped.push(dropped)),
                Some(b'v') => codec::decode(value).map(|service| view.services.push(service)),
                Some(b'e') => history.load(value),
                Some(&table) => match policy::load(&mut view.policy, table, value) {
                    Ok(false) => ledger.load(table, value).map(drop),
                    other => other.map(drop),
                },
                None => Ok(()),
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
        catalog.dropped_at = view
            .dropped
            .iter()
            .map(|(_, dropped)| dropped.revision)
            .max()
            .unwrap_or(0);
        view.schemas = catalog.newest().cloned().collect();
        map.learn(&view);
        Ok(Self {
            loaded: map.version,
            map,
            ledger,
            catalog,
            history,
            next_id,
            wall_ms: 0,
            learnt: BTreeMap::new(),
        })
    }

    /// What somebody lacks who has heard of everything up to `version`: all of the map where that is too long ago. Nodes
    /// and services are few and always in it. Schemas are in it that are newer than `revision`.
    pub fn view_since(&self, version: u64, revision: u64) -> MapView {
        let schemas = self.map.schemas_since(revision);
        if version < self.loaded {
            return MapView {
                schemas,
                ..self.map.view()
            };
        }
        let news = self.learnt.iter().filter(|&(_, &learnt)| learnt > version);
        MapView {
            version: self.map.version,
            shards: news.filter_map(|(&id, _)| self.map.shard(id)).cloned().collect(),
            leaders: Vec::new(),
            nodes: self.map.nodes.values().cloned().collect(),
            services: self.map.services.values().cloned().collect(),
            dropped: self.map.view_dropped(),
            schemas,
            policy: Box::new(self.map.policy.clone()),
        }
    }

    /// Does the change; the same on every replica. `wall_ms` is the entry's.
    pub fn apply(&mut self, command: &DirectoryCommand, wall_ms: u64, state: &mut dyn State) -> Response {
        self.wall_ms = wall_ms;
        if self.next_id == 0 {
            self.next_id = FIRST_ALLOCATED_ID;
        }
        if self.map.nodes.is_empty() && !command.may_precede_founding() {
            return Response::Error(WireError::new(Code::NotServing, NOT_FOUNDED));
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
            DirectoryCommand::Ledger(command) => self.change_ledger(command, state),
            DirectoryCommand::ChangeNode { node, change, wall_ms } => self.change_node(*node, change, *wall_ms, state),
            DirectoryCommand::Dismiss { node, op, wall_ms } => self.dismiss(*node, *op, *wall_ms, state),
            DirectoryCommand::CreateService(new) => self.create_service(new, state),
            DirectoryCommand::BeginDrop { name, number, revision } => self.begin_drop(name, *number, *revision, state),
            DirectoryCommand::FinishDrop { name, drop } => self.finish_drop(name, *drop, state),
            DirectoryCommand::CancelDrop { name, drop, because } => self.cancel_drop(name, *drop, because, state),
            DirectoryCommand::Catalog(command) => self.change_catalog(command, state),
            DirectoryCommand::Order { order, by } => self.obey(order, by, state),
            DirectoryCommand::ExpireMarks => {
                self.expire_marks(state);
                Response::Asked
            }
            DirectoryCommand::SetService { name, replicas, sizes } => {
                let Some(service) = self.map.services.get_mut(name) else {
                    let text = format!("there is no service `{name}`; nothing was changed");
                    return Response::Error(WireError::new(Code::NoService, text));
                };
                if (service.replicas, service.sizes) != (*replicas, *sizes) {
                    (service.replicas, service.sizes) = (*replicas, *sizes);
                    let service = service.clone();
                    put(state, b'v', name.as_bytes(), &service);
                    self.configured(format!("service {name} was set"), state);
                }
                Response::Asked
            }
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
            || self.map.is_dropped(shard)
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
            let is_same = |n: &NodeInfo| (&n.name, &n.address, n.store_id) == (&node.name, &node.address, 0);
            if self
                .map
                .nodes
                .values()
                .any(|n| n.membership == Membership::Gone && is_same(n))
            {
                // Its host goes on asking with the same token.
                let text = format!("{} at {} was sent away; nothing was changed", node.name, node.address);
                return Response::Error(WireError::new(Code::Removed, text));
            }
            node.id = NodeId(self.map.nodes.keys().next_back().map_or(1, |last| last.0 + 1));
            node.membership = match node.membership {
                Membership::Pending => Membership::Pending,
                _ => Membership::Joining,
            };
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
            if known.membership == Membership::Pending {
                let text = format!("{} waits to be let in; nothing was changed", known.name);
                return Response::Error(WireError::new(Code::NodePending, text));
            }
            node.membership = match known.membership {
                Membership::Joining => Membership::Active,
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

    fn change_ledger(&mut self, command: &LedgerCommand, state: &mut dyn State) -> Response {
        // What an operation means for the node it empties goes into the same entry.
        if let LedgerCommand::Start { op, at } = command {
            if let Some(error) = self.unknown_node(&op.goal) {
                return Response::Error(error);
            }
            let is_known = self.ledger.same(&op.goal, op.request).is_some();
            if let Some(error) = at.and_then(|at| self.stale(at)).filter(|_| !is_known) {
                return Response::Error(error);
            }
        }
        let before = self.next_id;
        let states = |ledger: &Ledger, op: OpId| ledger.ops.get(&op).map(|op| op.state);
        let known = match command {
            LedgerCommand::Turn { op, .. } | LedgerCommand::SetPace { op, .. } => states(&self.ledger, *op),
            _ => None,
        };
        let outcome = self.ledger.apply(command, &mut self.next_id, state);
        if self.next_id != before {
            self.save_counters(state);
        }
        match outcome {
            LedgerOutcome::Op(op) => {
                // Only what has just begun or ended means something for its node: a late repeat must not undo what an
                // operator asked for since.
                let is_news = match command {
                    LedgerCommand::Start { .. } => op.id.0 >= before,
                    _ => known != Some(op.state),
                };
                if !is_news {
                    return Response::Op(op);
                }
                if !op.state.is_over() {
                    self.mark(&op.goal, state);
                } else if op.state == OpState::Cancelled {
                    self.unmark(&op.goal, state);
                }
                Response::Op(op)
            }
            LedgerOutcome::Done => Response::Asked,
            LedgerOutcome::Refused(error) => Response::Error(error),
        }
    }

    fn unknown_node(&self, goal: &Goal) -> Option<WireError> {
        let mut named: Vec<NodeId> = goal.node().into_iter().collect();
        if let Goal::Replace { new: node, .. } | Goal::Move { to: node, .. } | Goal::AddReplica { to: node, .. } = goal
        {
            named.push(*node);
        }
        let unknown = named.into_iter().find(|node| {
            self.map
                .nodes
                .get(node)
                .is_none_or(|known| known.membership == Membership::Gone)
        })?;
        let text = format!("{unknown} is no member of this cluster; nothing was changed");
        Some(WireError::new(Code::NoSuchNode, text))
    }

    /// Why a plan for another configuration is not applied: what has changed since.
    pub fn stale(&self, at: u64) -> Option<WireError> {
        let now = self.history.epoch();
        if at == now {
            return None;
        }
        let text = format!("made for epoch {at}, the cluster is at {now}; nothing was changed");
        let mut error = WireError::new(Code::StalePlan, text);
        for change in self.history.since(at).rev().take(STALE_TOLD) {
            error.blockers.push(OpBlocker {
                code: format!("epoch {}", change.epoch),
                object: String::new(),
                text: change.text.clone(),
                next: String::new(),
                since_ms: Some(change.wall_ms),
            });
        }
        Some(error)
    }

    /// Notes what an operation wants at what it is about.
    fn mark(&mut self, goal: &Goal, state: &mut dyn State) {
        if let Goal::SetReplicas { of, replicas } = goal {
            return self.set_replicas(of, *replicas, state);
        }
        let (node, intent, leaving) = match *goal {
            Goal::Drain {
                node,
                everything: false,
            } => (node, Intent::DrainLeaders, false),
            Goal::Drain { node, everything: true } => (node, Intent::DrainAll, false),
            Goal::Leave { node } | Goal::Replace { old: node, .. } => (node, Intent::DrainAll, true),
            _ => return,
        };
        let Some(mut info) = self.map.nodes.get(&node).cloned() else {
            return;
        };
        info.overlay.intent = intent;
        if leaving && info.membership != Membership::Gone {
            info.membership = Membership::Leaving;
        }
        self.update_node(info, state);
    }

    /// Takes `mark` back.
    fn unmark(&mut self, goal: &Goal, state: &mut dyn State) {
        let (Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Replace { old: node, .. }) = *goal else {
            return;
        };
        let Some(mut info) = self.map.nodes.get(&node).cloned() else {
            return;
        };
        info.overlay.intent = Intent::Stay;
        if info.membership == Membership::Leaving {
            info.membership = Membership::Active;
        }
        self.update_node(info, state);
    }

    pub(super) fn update_node(&mut self, info: NodeInfo, state: &mut dyn State) {
        if self.map.nodes.get(&info.id) != Some(&info) {
            self.put_node(info, state);
            self.changed(state);
        }
    }

    fn change_node(&mut self, node: NodeId, change: &NodeChange, wall_ms: u64, state: &mut dyn State) -> Response {
        let known = self.map.nodes.get(&node).cloned();
        let Some(mut info) = known.filter(|known| known.membership != Membership::Gone) else {
            let text = format!("{node} is no member of this cluster; nothing was changed");
            return Response::Error(WireError::new(Code::NoSuchNode, text));
        };
        match change {
            NodeChange::Undrain | NodeChange::Stay => {
                let leaving = *change == NodeChange::Stay;
                let mut ended = Vec::new();
                for op in self.ledger.open() {
                    let is_it = match op.goal {
                        Goal::Drain { node: at, .. } => at == node && !leaving,
                        Goal::Leave { node: at } | Goal::Replace { old: at, .. } => at == node && leaving,
                        _ => false,
                    };
                    if is_it {
                        ended.push(op.id);
                    }
                }
                for op in ended {
                    let result = if leaving { "the node stays" } else { "undrained" }.to_owned();
                    let turn = LedgerCommand::Turn {
                        op,
                        state: OpState::Cancelled,
                        result,
                        wall_ms,
                    };
                    self.ledger.apply(&turn, &mut self.next_id, state);
                }
                if leaving == (info.membership == Membership::Leaving) {
                    info.overlay.intent = Intent::Stay;
                    if leaving {
                        info.membership = Membership::Active;
                    }
                }
            }
            NodeChange::Label(labels) => {
                for (name, value) in labels {
                    match (name.as_str(), value) {
                        ("zone", Some(zone)) => info.zone.clone_from(zone),
                        (_, Some(value)) => {
                            info.overlay.labels.insert(name.clone(), value.clone());
                        }
                        (_, None) => {
                            info.overlay.labels.remove(name);
                        }
                    }
                }
                if info.overlay.labels.len() > LABELS_MAX {
                    let text = format!("a node has at most {LABELS_MAX} labels; nothing was changed");
                    return Response::Error(WireError::new(Code::BadRequest, text));
                }
            }
            NodeChange::Maintenance(until_ms) => info.overlay.maintenance_until_ms = *until_ms,
            NodeChange::Forget => {
                if self.map.shards().any(|shard| shard.replica_on(node).is_some()) {
                    let text = format!("{node} still holds copies of shards; nothing was changed");
                    return Response::Error(WireError::new(Code::UnsafeOp, text));
                }
                info.membership = Membership::Gone;
            }
        }
        self.update_node(info.clone(), state);
        Response::Registered(info)
    }

    fn dismiss(&mut self, node: NodeId, op: OpId, wall_ms: u64, state: &mut dyn State) -> Response {
        let holds = self.map.shards().find(|shard| shard.replica_on(node).is_some());
        if let Some(shard) = holds {
            let text = format!("{node} still holds a copy of {}; nothing was changed", shard.id);
            return Response::Error(WireError::new(Code::UnsafeOp, text));
        }
        let is_open = self.ledger.ops.get(&op).is_some_and(|op| !op.state.is_over());
        if let (true, Some(mut info)) = (is_open, self.map.nodes.get(&node).cloned()) {
            info.membership = Membership::Gone;
            self.update_node(info, state);
            let turn = LedgerCommand::Turn {
                op,
                state: OpState::Done,
                result: format!("{node} holds nothing and is no member any more"),
                wall_ms,
            };
            self.ledger.apply(&turn, &mut self.next_id, state);
        }
        Response::Asked
    }

    fn put_node(&mut self, node: NodeInfo, state: &mut dyn State) {
        if let Some(told) = told_of_node(self.map.nodes.get(&node.id), &node) {
            self.history.add(told, self.wall_ms, state);
        }
        put(state, b'n', &node.id.0.to_be_bytes(), &node);
        self.map.nodes.insert(node.id, node);
    }

    pub(super) fn learn_shards(&mut self, shards: &[ShardDescriptor], state: &mut dyn State) -> bool {
        let mut sorted: Vec<&ShardDescriptor> = shards.iter().collect();
        sorted.sort_by_key(|shard| shard.epoch);
        let mut news = false;
        for shard in sorted {
            let mut others = self.map.overlapping(shard);
            others.extend(&shard.absorbed);
            let known = self.map.shard(shard.id).cloned();
            let told = told_of_shard(known.as_ref(), shard);
            // Whose part it is, where it is new.
            let parent = match known.is_none() && !self.map.policy.marks.is_empty() {
                true => self.parent_of(shard),
                false => None,
            };
            // Remembered even where it overlaps with an older view of a neighbour: that view is out of date and its
            // leader will report.
            if self.map.learn_shard(shard) {
                if let Some(told) = told {
                    self.history.add(told, self.wall_ms, state);
                }
                self.inherit_marks(parent.as_ref(), shard, state);
                put(state, b's', &shard.id.0.to_be_bytes(), shard);
                self.learnt.insert(shard.id, self.map.version + 1);
                news = true;
                others.retain(|&id| self.map.absorber(id).is_some());
                for id in others {
                    remove(state, b's', &id.0.to_be_bytes());
                    self.learnt.remove(&id);
                    self.put_marks(id, ShardMarks::default(), state);
                }
            }
        }
        news
    }

    /// The shard that a new one is a part of: the one that still has its keys, or, where that one's news came first, its
    /// left neighbour of the same epoch, which a split gives to both.
    fn parent_of(&self, part: &ShardDescriptor) -> Option<ShardDescriptor> {
        let is_left = |left: &&ShardDescriptor| left.range.end == part.range.start && left.epoch == part.epoch;
        let holder = self.map.find(&part.range.start);
        holder.or_else(|| self.map.shards().find(is_left)).cloned()
    }

    /// A change of what a plan is about.
    pub(super) fn configured(&mut self, text: String, state: &mut dyn State) {
        self.history.add(text, self.wall_ms, state);
        self.changed(state);
    }

    pub(super) fn changed(&mut self, state: &mut dyn State) {
        self.map.version += 1;
        self.save_counters(state);
    }

    fn save_counters(&self, state: &mut dyn State) {
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

/// What is told of why a plan is stale. Unit: changes.
const STALE_TOLD: usize = 8;
/// More would be no labels.
const LABELS_MAX: usize = 64;

pub(super) fn put<T: Serialize>(state: &mut dyn State, table: u8, id: &[u8], value: &T) {
    state.put(row(table, id), Some(codec::encode(value)));
}

pub(super) fn remove(state: &mut dyn State, table: u8, id: &[u8]) {
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
