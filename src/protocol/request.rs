//! What a client or operator asks of a node, and what it is answered.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::activity::{ActivityAction, ActivityFilter, ActivityItem, ActivityView, Body, PairView, Sent};
use super::change::{Changed, History, Since};
use super::error::WireError;
use super::id::{ClusterId, Epoch, NodeId, OpId, ReplicaId, RequestId, ShardId};
use super::key::Position;
use super::op::{Goal, NodeChange, Op, OpAction, OpView, Pace, Settings};
use super::operator::{Order, Question, Told};
use super::parcel::Receipt;
use super::schema::bundle::{NewSchema, SchemaRecord};
use super::shard_map::{MapView, NodeInfo, ReplicaDescriptor, ShardDescriptor, ShardSizes};
use super::tentative::{LedgerPage, Operation, Tentative};

/// Longest freeze that an operator can ask for. Unit: ms. Who needs longer asks again: what is forgotten must end.
pub const HOLD_MS_MAX: u64 = 24 * 3_600_000;

/// Largest document. Unit: bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Most items in one answer to a listing.
pub const LIST_ITEMS_MAX: u32 = 10_000;
/// A listing's answer ends after this many bytes of documents. Unit: bytes.
pub const LIST_BYTES_MAX: usize = 2 << 20;

/// A frame from client to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// The client's name for this request on this connection; comes back with the answer. Answers may overtake.
    pub tag: u64,
    /// How long the client will wait. Unit: ms.
    pub timeout_ms: u32,
    /// What is asked.
    pub request: Request,
}

/// A frame from node to client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseFrame {
    /// The request's tag.
    pub tag: u64,
    /// The answer.
    pub response: Response,
    /// Where the request should have gone, when it came to the wrong node.
    pub hint: Option<Box<RouteHint>>,
}

/// A correction of the asker's map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteHint {
    /// The shard that holds what was asked for.
    pub shard: ShardDescriptor,
    /// Its leader and the term, where known.
    pub leader: Option<(u64, NodeId)>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read one entity, linearizable.
    Get {
        /// Service.
        service: String,
        /// Entity key.
        key: String,
    },
    /// Change one entity.
    Write(Write),
    /// Entities of one shard in key order, beginning at `from`; linearizable per shard.
    List {
        /// First position wanted.
        from: Position,
        /// First position no longer wanted.
        to: Position,
        /// At most this many.
        limit: u32,
        /// Whether documents are wanted, or keys and versions only.
        documents: bool,
    },
    /// Children that an entity knows of, in key order; at most [`CHILDREN_PER_ANSWER`].
    Children {
        /// The parent's service.
        service: String,
        /// The parent's key.
        key: String,
        /// The relation.
        relation: String,
        /// Only those behind this key; empty: from the first on.
        after: String,
    },
    /// What an entity knows of its messages to another.
    ShowPair {
        /// The sender's service.
        service: String,
        /// The sender's key.
        key: String,
        /// The receiver.
        with: Position,
    },
    /// What an entity sends others and has had from them; linearizable.
    Activities {
        /// Service.
        service: String,
        /// Entity key.
        key: String,
        /// This other entity only, with the messages outstanding for it.
        with: Option<Position>,
        /// Pairs from here on.
        after: Option<Position>,
        /// At most this many pairs or messages.
        limit: u32,
    },
    /// What the entities of one shard send, beginning at `from`, in the order of the senders.
    ListActivities {
        /// First sender wanted.
        from: Position,
        /// First sender no longer wanted.
        to: Position,
        /// Behind this pair: where the listing before ended.
        after: Option<(Position, Position)>,
        /// Which pairs.
        filter: ActivityFilter,
        /// At most this many.
        limit: u32,
    },
    /// What became of a write.
    ShowRequest {
        /// Service.
        service: String,
        /// Entity key.
        key: String,
        /// The write.
        id: RequestId,
    },
    /// What a requester knows of its tentative operations.
    Operations {
        /// Service.
        service: String,
        /// Entity key.
        key: String,
    },
    /// What is reserved of the holders in one shard, in their order, beginning at `from`; of one holder also what was taken.
    Ledger {
        /// First holder wanted.
        from: Position,
        /// First position no longer wanted.
        to: Position,
        /// Where the last page ended, behind `from`; empty at the beginning.
        resume: Bytes,
        /// At most so many operations.
        limit: u32,
    },
    /// What the node knows of shards, nodes and services. Answered by any node without a quorum.
    Map,
    /// How the node is. Answered by any node without a quorum.
    Status,
    /// Fresh ids from the directory.
    AllocateIds {
        /// How many.
        count: u32,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Cut a shard in two at a position between entities.
    SplitShard {
        /// The shard.
        shard: ShardId,
        /// The epoch it was planned for.
        epoch: Epoch,
        /// First position of the right half.
        at: Position,
        /// Id of the right half, from `AllocateIds`.
        child: ShardId,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Ask a voter of the shard to lead it.
    TransferLeader {
        /// The shard.
        shard: ShardId,
        /// Who should lead.
        to: NodeId,
    },
    /// Freeze a shard for an operator: no writes for a while, reads go on. It ends by itself.
    HoldShard {
        /// The shard.
        shard: ShardId,
        /// For how long, at most [`HOLD_MS_MAX`]; 0 ends it. Unit: ms.
        for_ms: u64,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Compare the shard's copies with each other, row by row. Answered when all rows were read, with
    /// `Response::Verified`.
    VerifyShard {
        /// The shard.
        shard: ShardId,
    },
    /// Change a shard's replicas in one step; more than one change of voters goes through a joint configuration. Answered
    /// when the step is done.
    ChangeReplicas {
        /// The shard.
        shard: ShardId,
        /// The epoch it was planned for.
        epoch: Epoch,
        /// What changes.
        changes: Vec<ReplicaChange>,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// First step of a merge: the right shard stands still until its left neighbour takes it over, or it is thawed.
    FreezeShard {
        /// The right shard.
        shard: ShardId,
        /// Its epoch when the merge was planned.
        epoch: Epoch,
        /// The left neighbour.
        into: ShardId,
        /// The neighbour's epoch when the merge was planned.
        left_epoch: Epoch,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Second step of a merge: the left shard takes over the frozen one.
    MergeShards {
        /// The left shard.
        left: ShardId,
        /// Its epoch, as when the right one was frozen.
        left_epoch: Epoch,
        /// The right shard, as the freeze left it.
        right: Box<ShardDescriptor>,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Takes a freeze back.
    ThawShard {
        /// The frozen shard.
        shard: ShardId,
        /// The left shard at a later epoch than the merge was planned for, without the frozen one: the merge can never
        /// happen any more.
        proof: Box<ShardDescriptor>,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Raises a shard's epoch and changes nothing else: what was planned for the old epoch can never happen any more.
    BumpEpoch {
        /// The shard.
        shard: ShardId,
        /// The epoch to be left behind.
        epoch: Epoch,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Begin a long operation, or attach to the one with the same goal. Answered with `Response::Op`.
    StartOp {
        /// What it is to reach.
        goal: Goal,
        /// How fast; the cluster's setting where absent.
        pace: Option<Pace>,
        /// Copies slow down while writes take longer than this (p99); the settings' limit where it is not given. Unit: us.
        protect_p99_us: Option<u64>,
        /// Why, for those who ask later.
        because: String,
        /// The configuration that its plan was made for: refused at any other.
        at: Option<u64>,
        /// The operation that this one takes back.
        undoes: Option<OpId>,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Operations: those under way, or all that are remembered.
    ListOps {
        /// Those that are over too.
        all: bool,
    },
    /// Pause, resume, cancel an operation, or change its pace.
    ControlOp {
        /// Which.
        op: OpId,
        /// What to do.
        action: OpAction,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// What the operator wants of a node.
    ChangeNode {
        /// Which.
        node: NodeId,
        /// What.
        change: NodeChange,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Whether these nodes may be stopped at once without refusing writes. Answered with `Response::Asked` or the
    /// blockers.
    MayStop {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// The cluster's settings.
    ShowSettings,
    /// New settings, in effect at once.
    SetSettings {
        /// All of them.
        settings: Settings,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// How a service's shards are cut and copied.
    SetService {
        /// The service.
        name: String,
        /// Copies wanted of each shard.
        replicas: u32,
        /// When shards are split and merged.
        sizes: ShardSizes,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// A new service, with shards of its own.
    CreateService {
        /// Its name.
        name: String,
        /// Copies of each shard.
        replicas: u32,
        /// Where its key space is cut, in order; empty: one shard.
        cuts: Vec<Position>,
        /// Check and answer, change nothing.
        dry_run: bool,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// A service that nobody needs any more goes, with its schema and its shards. Answered with `Asked` when that has begun:
    /// the map shows its end.
    DropService {
        /// Its name.
        name: String,
        /// Its number, as the map shows it: no later service of this name is meant.
        number: u64,
        /// Check and answer, change nothing.
        dry_run: bool,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Schemas as they are, or all versions that are remembered of one service's. Answered with `Response::Schemas`.
    ShowSchemas {
        /// One service's versions, newest first; `None`: the newest of each.
        service: Option<String>,
    },
    /// New versions of schemas, all or none.
    SetSchemas {
        /// At most one of a service.
        schemas: Vec<NewSchema>,
        /// Changes that may make existing documents unacceptable are wanted.
        allow_breaking: bool,
        /// Why, for those who ask later.
        because: String,
        /// Check and answer, change nothing.
        dry_run: bool,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Make a token with which a host may join.
    CreateToken {
        /// How long it is valid. Unit: s.
        ttl_s: u64,
        /// Whether an operator has to let the host in besides.
        approve: bool,
    },
    /// Sign a certificate for a host that shows a token; the only request a caller without certificate may make.
    Join {
        /// The token.
        token: String,
        /// Certificate signing request, PEM.
        csr_pem: String,
        /// The name the node wants.
        name: String,
        /// Where it will be reached.
        address: String,
        /// Its failure domain.
        zone: String,
    },
    /// Keys of a shard that were asked for lately, each as often as it was: where its load is.
    Samples {
        /// The shard.
        shard: ShardId,
    },
    /// What changes nothing; answered with `Response::Told`.
    Question(Question),
    /// What changes the directory; answered with `Response::Told`, `Response::Asked` or `Response::Registered`.
    Order {
        /// What.
        order: Order,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// Add a node to the directory (made by the node that signed its certificate).
    RegisterNode {
        /// The node; its id is given by the directory where it is 0.
        node: Box<NodeInfo>,
        /// Makes a repeat harmless.
        id: RequestId,
    },
    /// What changed in these ranges, as far as the shard that holds the first of them holds the others too; see
    /// `protocol::change`. Answered with `Response::Changed` as soon as there is something.
    Changes {
        /// Adjacent and in order.
        ranges: Vec<Since>,
        /// At most this many.
        limit: u32,
        /// Whether documents are wanted.
        documents: bool,
        /// How long to wait for the first change. Unit: ms.
        wait_ms: u32,
    },
    /// How an entity's latest versions came to be; linearizable.
    History {
        /// Service.
        service: String,
        /// Entity key.
        key: String,
    },
}

/// One change of a shard's replicas. Replica ids come from `AllocateIds` and are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaChange {
    /// A new copy, which receives the log and does not vote.
    AddLearner {
        /// Where.
        node: NodeId,
        /// Its id: fresh, greater than those of the shard's other replicas.
        replica: ReplicaId,
    },
    /// A learner that has caught up becomes a voter.
    Promote {
        /// Which.
        replica: ReplicaId,
    },
    /// A voter becomes a learner.
    Demote {
        /// Which.
        replica: ReplicaId,
    },
    /// A copy is given up.
    Remove {
        /// Which.
        replica: ReplicaId,
    },
}

/// One change of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Service.
    pub service: String,
    /// Entity key; empty in a POST, where the router makes it from `id`.
    pub key: String,
    /// Names this write for ever.
    pub id: RequestId,
    /// What must hold, or nothing is changed.
    pub condition: Condition,
    /// What to do.
    pub change: Change,
}

impl Write {
    /// The entity's key; a POST's follows from its id.
    pub fn entity_key(&self) -> String {
        match self.key.is_empty() {
            true => self.id.entity_key(),
            false => self.key.clone(),
        }
    }
}

/// What must hold for a write to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// The entity does not exist.
    IfAbsent,
    /// The entity exists in exactly this version.
    IfVersion(u64),
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Replace the document, or create the entity.
    Put(Bytes),
    /// Create the entity under a key made from the request id.
    Post(Bytes),
    /// Apply a JSON merge patch (RFC 7396) to the existing document.
    Patch(Bytes),
    /// Remove the entity.
    Delete,
    /// Send messages by hand, as a write of their sender.
    Send {
        /// Whom, each one message.
        to: Vec<Position>,
        /// What is wanted of them.
        body: Box<Body>,
    },
    /// Do something to what the entity has outstanding for another. Its version stays.
    Activity {
        /// The other entity.
        with: Position,
        /// What is done.
        action: ActivityAction,
        /// Who does it: set by the first node from the caller's certificate.
        by: String,
        /// Why.
        because: String,
    },
    /// Like `Put`; the entity ends by itself after so long.
    PutFor {
        /// A JSON object.
        document: Bytes,
        /// By the shard's own clock, which never runs ahead of real time. Unit: ms.
        ttl_ms: u64,
    },
    /// Reserve something of another entity, confirm it, or give it back.
    Tentative(Tentative),
    /// Send the entity's entry in an index anew, and take back entries that are not its own. Its version stays, and there
    /// need not be such an entity any more.
    Reindex {
        /// The field.
        field: String,
        /// Whether the asker knows the field as one with an index.
        indexed: bool,
        /// Keys of entries about this entity that were found; at most [`STALE_ENTRIES_MAX`].
        stale: Vec<String>,
    },
}

/// Entries of one entity that are taken back at once.
pub const STALE_ENTRIES_MAX: usize = 64;

impl Change {
    /// How much it carries. Unit: bytes.
    pub fn size(&self) -> usize {
        match self {
            Change::Put(document) | Change::Post(document) | Change::Patch(document) => document.len(),
            Change::Delete => 0,
            Change::Send { to, body } => to.iter().map(|to| to.0.len() + 2).sum::<usize>() + body.size(),
            Change::Activity { with, by, because, .. } => with.0.len() + by.len() + because.len() + 10,
            Change::PutFor { document, .. } => document.len() + 8,
            Change::Tentative(wanted) => wanted.size(),
            Change::Reindex { field, stale, .. } => {
                field.len() + stale.iter().map(|entry| entry.len() + 2).sum::<usize>()
            }
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It did not work.
    Error(WireError),
    /// To `Get`: `None` where there is no such entity.
    Entity(Option<Entity>),
    /// To `Write`.
    Written(Written),
    /// To `List`.
    Listed {
        /// In key order.
        items: Vec<ListItem>,
        /// Where to go on; `None` at the end of what was asked for.
        next: Option<Position>,
    },
    /// To `ShowRequest`: what the write did, or `None` where it is not remembered and cannot be told apart
    /// from one that never arrived.
    Request(Option<Written>),
    /// To `Operations`.
    Operations(Vec<Operation>),
    /// To `Ledger`.
    Ledger(Box<LedgerPage>),
    /// To `Map`.
    Map(MapView),
    /// To `Status`.
    Status(Box<NodeStatus>),
    /// To `AllocateIds`: the first of the ids.
    Ids {
        /// The ids are `first .. first + count`.
        first: u64,
    },
    /// To `SplitShard`: both halves.
    Split {
        /// Holds what lies before the split point.
        left: Box<ShardDescriptor>,
        /// Holds the rest.
        right: Box<ShardDescriptor>,
    },
    /// To `ChangeReplicas`, `HoldShard`, `FreezeShard`, `MergeShards`, `ThawShard`, `BumpEpoch`: the shard as it is now.
    Shard(Box<ShardDescriptor>),
    /// To `TransferLeader`: asked; who leads is seen in the map.
    Asked,
    /// To `CreateToken`.
    Token {
        /// Secret; whoever shows it may join.
        token: String,
    },
    /// To `StartOp` and `ControlOp`.
    Op(Box<Op>),
    /// To `Samples`: in order.
    Samples(Vec<String>),
    /// To `Question` and `Order`.
    Told(Box<Told>),
    /// To `ListOps`.
    Ops(Vec<OpView>),
    /// To `ShowSettings`.
    Settings(Settings),
    /// To `ShowPair`.
    Pair(Box<PairView>),
    /// To `Children`.
    Children(Vec<Child>),
    /// To `ShowSchemas` and `SetSchemas`.
    Schemas(Vec<SchemaRecord>),
    /// To `Join`.
    Joined(Box<Joined>),
    /// To `RegisterNode`.
    Registered(NodeInfo),
    /// To `Activities`.
    Activities(Box<ActivityView>),
    /// To `ListActivities`.
    ActivitiesListed {
        /// In the order of senders, then of receivers.
        items: Vec<ActivityItem>,
        /// Ask again with this `after` for more of this shard.
        after: Option<(Position, Position)>,
        /// Where the next shard begins, if all of this one was listed and more was asked for.
        next: Option<Position>,
    },
    /// Between nodes only: what became of parcels, by their slots.
    Receipts(Vec<(u32, Receipt)>),
    /// To `VerifyShard`.
    Verified(Box<super::verify::Verified>),
    /// To `Changes`.
    Changed(Box<Changed>),
    /// To `History`.
    History(Box<History>),
}

/// What a joining host gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its identity in the cluster.
    pub node: NodeInfo,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's authority, PEM.
    pub ca_pem: String,
    /// Members to talk to.
    pub seeds: Vec<NodeInfo>,
}

/// An entity as read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entity {
    /// Grows with each write, never repeats, not even after a delete.
    pub version: u64,
    /// When it was last written, by the leader's wall clock: a label, not an order. Unit: ms since 1970.
    pub updated_ms: u64,
    /// When it ends by itself, about, by the wall clock of the leader that put it. Unit: ms since 1970.
    pub expires_ms: Option<u64>,
    /// The document as it was put.
    pub document: Bytes,
    /// Version of the service's schema that it was judged by; 0: none.
    pub schema: u64,
    /// What its children feed together.
    pub aggregates: Vec<(String, i64)>,
}

/// What a parent knows of a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its key.
    pub key: String,
    /// The child has said that it is one; until then it has only been asked to be.
    pub attached: bool,
    /// What it feeds.
    pub feeds: Vec<(String, i64)>,
}

/// Most children in one answer.
pub const CHILDREN_PER_ANSWER: usize = 1_000;

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The entity's key (made by the router in a POST).
    pub key: String,
    /// The version that this write made.
    pub version: u64,
    /// Whether the answer is remembered from an earlier arrival of the same request.
    pub repeated: bool,
    /// When it was committed, by the leader's wall clock. Unit: ms since 1970.
    pub updated_ms: u64,
    /// The shard that committed it.
    pub shard: ShardId,
    /// The messages that it sent.
    pub sent: Vec<Sent>,
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListItem {
    /// Entity key.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// As in [`Entity`].
    pub updated_ms: u64,
    /// Size of the document. Unit: bytes.
    pub bytes: u32,
    /// Empty where documents were not asked for.
    pub document: Bytes,
}

/// How a node sees itself and its cluster. Needs no quorum and no other node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Version of its software.
    pub version: String,
    /// Since it started. Unit: ms.
    pub uptime_ms: u64,
    /// Its copies of shards.
    pub replicas: Vec<ReplicaStatus>,
    /// Other nodes, as heard from here.
    pub peers: Vec<PeerStatus>,
    /// Who leads the directory, as far as this node knows.
    pub directory_leader: Option<NodeId>,
    /// Named counters since start, such as requests by kind and refusals by reason.
    pub counters: Vec<(String, u64)>,
    /// Files of the store. Unit: bytes.
    pub store_bytes: u64,
    /// Free space where the store lies. Unit: bytes.
    pub disk_free_bytes: u64,
    /// Size of that disk; 0 where it is not known. Unit: bytes.
    pub disk_total_bytes: u64,
    /// When its certificate ends; 0 where that is not known. Unit: ms since 1970.
    pub certificate_ends_ms: u64,
    /// What is wrong, each a sentence; empty when all is well.
    pub findings: Vec<String>,
}

/// One copy of a shard, as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The shard, its range and members.
    pub shard: ShardDescriptor,
    /// This copy.
    pub replica: ReplicaDescriptor,
    /// `leader`, `follower`, `candidate`, `learner`.
    pub state: String,
    /// Raft term.
    pub term: u64,
    /// Who leads, as this copy knows.
    pub leader: Option<NodeId>,
    /// Last index in the log.
    pub last_index: u64,
    /// Committed index.
    pub committed: u64,
    /// Applied index.
    pub applied: u64,
    /// Entities held (may be estimated after a split).
    pub entities: u64,
    /// Bytes of keys and documents held (may be estimated after a split).
    pub bytes: u64,
    /// Requests per second, over the last seconds; a leader's count.
    pub requests_per_s: u64,
    /// Revision of the schemas that this copy judges writes by; 0: none.
    pub schema_revision: u64,
    /// Where this copy leads: each follower and how far its log is known to match.
    pub matched: Vec<(NodeId, u64)>,
}

/// Another node, as heard from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The other node.
    pub node: NodeId,
    /// Whether a connection stands.
    pub connected: bool,
    /// Since anything was heard from it. Unit: ms. `None`: never.
    pub heard_ms_ago: Option<u64>,
}
