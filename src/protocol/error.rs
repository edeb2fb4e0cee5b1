//! The error that crosses the wire: what to do about it (class), which it is (code), what happened (text).
use std::fmt;

use serde::{Deserialize, Serialize};

use super::op::OpBlocker;

/// What the receiver of an error can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Nothing happened; the same request may succeed in a moment.
    Retry,
    /// Nothing happened and nothing will: the request itself must change.
    Refused,
    /// It may have happened. Ask by the request id, or repeat with it.
    Unknown,
    /// Stored data failed its check; nothing wrong was returned.
    Corrupt,
    /// isx broke a promise of its own. Please report it.
    Bug,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $class:ident, $title:literal, $explain:literal;)*) => {
        /// Every error isx answers, by number. Numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All codes, in order of their numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The number behind `ISX-`.
            pub fn number(self) -> u16 { match self { $(Code::$name => $number,)* } }

            /// What can be done about it.
            pub fn class(self) -> Class { match self { $(Code::$name => Class::$class,)* } }

            /// A few words.
            pub fn title(self) -> &'static str { match self { $(Code::$name => $title,)* } }

            /// A paragraph for `isxctl explain`.
            pub fn explain(self) -> &'static str { match self { $(Code::$name => $explain,)* } }
        }
    };
}

codes! {
    /// No leader known.
    NoLeader = 1001, Retry, "the shard has no leader at the moment",
        "The shard is electing a leader, or too few of its replicas are up to elect one. Nothing was changed. isxctl repeats such requests by itself until its time limit. If it lasts: `isxctl status` says which nodes are missing.";
    /// Lost leadership before the proposal was accepted or committed.
    LeaderChanged = 1002, Retry, "the shard's leader changed before it accepted the request",
        "The request reached a node that stopped leading before the request was accepted. Nothing was changed; repeating it with the same request id is safe.";
    /// Queue full.
    Busy = 1003, Retry, "the node has as many requests in hand as it allows",
        "A bound on waiting requests was reached. Nothing was changed. Slow down, or spread the load over more shards: `isxctl shard list` shows where it falls.";
    /// Routing did not converge.
    TooManyHops = 1004, Retry, "the request was handed on too often",
        "Nodes disagreed about where the shard is, more often than the router's hop limit allows. Nothing was changed. Their maps converge within seconds.";
    /// No shard known for the key.
    NoShard = 1005, Retry, "no shard is known for this key",
        "The router's map has no shard that holds this key. Just after a cluster starts or a service is created the map may be a moment behind.";
    /// Starting or stopping.
    NotServing = 1006, Retry, "the node is starting or stopping",
        "The node does not serve right now. Nothing was changed. Another node does.";
    /// The key is not in the shard that was named, or the epoch is old.
    StaleRoute = 1007, Retry, "the request was routed by an outdated map",
        "The shard no longer holds this key: it was split or moved after the sender learnt its map. The answer carries the newer descriptor; the client library routes again by itself.";
    /// Frozen for a merge.
    ShardFrozen = 1008, Retry, "the shard is being merged",
        "The shard stands still for the moment in which its left neighbour takes it over. Nothing was changed. isxctl and the client library repeat such requests by themselves. If it lasts, the merge was given up half way: `isxctl op list` shows it.";
    /// Another membership change.
    ChangePending = 1009, Retry, "another change of the shard's replicas is under way",
        "A shard changes its replicas one step at a time. Nothing was changed; the same request can be made again in a moment.";
    /// The learner is behind, or the others are.
    NotCaughtUp = 1010, Retry, "a replica has not caught up",
        "A replica must have nearly the whole log, and be heard from, before it may vote. Nothing was changed. The message names the replica and how far it is.";
    /// Not every replica has applied the freeze.
    NotFrozenYet = 1011, Retry, "not all replicas of the shard are known to stand still",
        "A merge waits until every replica of the right shard has applied the freeze. Nothing was changed. The message names the nodes that are missing; if one stays away, give the merge up: it is never urgent.";
    /// Not let in yet.
    NodePending = 1012, Retry, "the node waits to be let in",
        "The host joined with a token that needs an operator's approval. It holds no certificate and takes part in nothing until `isxctl node approve` lets it in; `isxctl node reject` sends it away. `isxd join` goes on by itself once it is let in.";
    /// Frozen by an operator.
    ShardHeld = 1013, Retry, "an operator has frozen the shard",
        "`isxctl shard freeze` keeps writes away from a shard for a set time; reads go on. Nothing was changed. It ends by itself, `isxctl shard show` says when; `isxctl shard thaw` ends it at once.";
    /// Proposed and not heard of again in time.
    OutcomeUnknown = 1101, Unknown, "the outcome of the write is not known",
        "The write was handed to the shard's log and its outcome was not learnt in time: it may be committed now, later or never. Repeating it with the same request id is safe and gives the definite answer; `isxctl request show` asks without repeating.";
    /// Expected version differs.
    VersionConflict = 1201, Refused, "the entity's version is not the one that was asked for",
        "`--if-version` named a version that is not the entity's current one. Nothing was changed. Read it again and decide.";
    /// Should not exist, does.
    Exists = 1202, Refused, "the entity exists already",
        "`--if-absent` was given and the entity exists. Nothing was changed.";
    /// Does not exist.
    NotFound = 1203, Refused, "there is no such entity",
        "The operation needs an existing entity (patch, delete). Nothing was changed.";
    /// Same id, other content.
    RequestIdReused = 1204, Refused, "the request id was used before for something else",
        "A request id names one write for ever. This one was already used for a write with other content to the same entity. Nothing was changed. Use a fresh id.";
    /// The receiver's rules.
    NotAccepted = 1205, Refused, "the receiver does not accept this message",
        "The receiving entity's schema does not accept the message, or accepts it only in another state. The receiver is unchanged; the sender has been told with a message of its own, which `activity show` lists.";
    /// No such message or pair.
    NoSuchMessage = 1206, Refused, "there is no such message outstanding",
        "The entity has no open pair with that receiver, or the message is applied already. Nothing was changed. `activity show` lists what is outstanding.";
    /// Messages caused by messages, too far.
    TooDeep = 1207, Refused, "a message was caused by too long a chain of messages",
        "Messages that cause messages carry their depth, and beyond 16 they are refused: two entities were telling each other the same thing for ever. Look at the actions in the schemas of both.";
    /// A parent that its schema does not let go.
    HasChildren = 1208, Refused, "the entity has children that would be left behind",
        "The schema's relation says `on_delete = \"refuse\"`: an entity with children is not deleted. Nothing was changed. Delete or move the children first; `isxctl SERVICE get KEY --with children` lists them.";
    /// An index was asked about before its shard knew of it.
    SchemaBehind = 1209, Refused, "the shard has not heard of the newest schema yet",
        "What is asked for depends on whether a field has an index, and the shard's log does not hold the schema that says so. Nothing was changed. It takes a moment after `isxctl schema apply`; `isxctl index` tries again by itself, under a new request id.";
    /// No such tentative operation.
    NoSuchOperation = 1221, Refused, "the entity has no such operation",
        "The entity has no tentative operation of that number with that holder: it never had, or it ended so long ago that 32 others have ended since. Nothing was changed. `activity operations` lists what it knows.";
    /// The tentative operation has ended, or is about to.
    OperationIsOver = 1222, Refused, "the operation is decided already",
        "A tentative operation is decided once: confirmed or cancelled by its requester, or, after its deadline, expired by its holder. The message says which. Nothing was changed. What has expired must be reserved anew.";
    /// Less would be left than is reserved.
    PoolInUse = 1223, Refused, "others have reserved of it",
        "The field is a pool, and the change would leave less in it than is set aside and taken; or the entity would be gone while something is set aside. Nothing was changed. `activity ledger --of` shows who has it; what is set aside comes back when it is cancelled or its deadline has passed.";
    /// Too many tentative operations.
    TooManyOperations = 1224, Refused, "the entity has too many operations open",
        "A requester may have 1000 tentative operations open. Nothing was changed. Confirm or cancel some; `activity operations` lists them.";
    /// Not JSON, not an object, too deep, duplicate field.
    BadDocument = 1301, Refused, "the document is not acceptable",
        "Documents are JSON objects in UTF-8, without duplicate field names, nested at most 64 deep. The message names the place. Nothing was changed.";
    /// Larger than allowed.
    TooLarge = 1302, Refused, "the document or request is too large",
        "Documents are limited to 1 MiB. Nothing was changed.";
    /// Malformed request.
    BadRequest = 1303, Refused, "the request is not well-formed",
        "A name, key or parameter breaks its rules; the message says which. Nothing was changed.";
    /// Unknown service.
    NoService = 1304, Refused, "there is no such service",
        "The first part of the address names no service of this cluster. `isxctl service list` shows them.";
    /// A schema that is none, or does not fit the others.
    BadSchema = 1311, Refused, "the schema is not acceptable",
        "The text is not a schema, or does not fit the schemas of the services that it names; each problem begins with its place. Nothing was changed. `isxctl schema check -f FILE` shows the same without a cluster.";
    /// A document that is not what its schema says.
    AgainstSchema = 1312, Refused, "the document is not what its service's schema says",
        "The message names each field, its value and the rule that it breaks. Nothing was changed, neither the entity nor any child of a combined object. `isxctl schema show SERVICE` prints the schema.";
    /// A new version that existing documents may not fit.
    BreakingSchema = 1313, Refused, "the new schema may refuse documents that exist",
        "A field, a value or a message that is allowed today would not be any more. Nothing was changed. `isxctl schema diff` lists what breaks, `isxctl schema apply --sample 1000` counts documents that would be refused; `--allow-breaking` applies it all the same.";
    /// Certificate's role does not allow it.
    Forbidden = 1401, Refused, "the client's role does not allow this",
        "Roles are in the client's certificate: viewer reads, writer also writes entities, admin also changes the cluster. Nothing was changed.";
    /// Handshake: other cluster.
    OtherCluster = 1402, Refused, "the peer belongs to another cluster",
        "The cluster ids differ. Check the endpoint and the context (`isxctl context show`). Nothing was changed.";
    /// Handshake: no common protocol.
    ProtocolVersion = 1403, Refused, "no protocol version in common",
        "The two programs are too far apart in version. Upgrade the older one.";
    /// Handshake: certificate does not prove the node id, or the store id changed.
    NotProven = 1404, Refused, "the peer is not what it says it is",
        "A certificate does not prove the node id that its holder claims, or the node's store is not the one it registered with: its disk was wiped, restored from an image or cloned. Such a node must not vote. Replace it under a new id.";
    /// The node was sent away.
    Removed = 1405, Refused, "the node is no member of the cluster any more",
        "The node has left the cluster, was replaced or forgotten. Its id is never used again; isxd ends with exit code 76 and is not to be restarted. To use the host again, remove its data and let it join as a new node.";
    /// Wiped, restored or cloned.
    OtherLife = 1406, Refused, "the node's disk is not the one that its peers know",
        "The disk of a node was wiped, restored from an older image, or cloned, so it may have forgotten what it acknowledged and must not vote or count as the node it was. isxd ends with exit code 78; nothing was changed. Stop it. Let the host join again under a new id (`isxctl token create`, then `isxd join` with an empty directory) and put that in the old node's place: `isxctl node replace OLD --with NEW`. A copy that ran beside the original is only stopped.";
    /// Split point outside or at the edge.
    BadSplit = 1501, Refused, "the shard can't be split there",
        "The split point must lie inside the shard's range, behind its start. `isxctl shard show` prints the range.";
    /// Shard id unknown.
    NoSuchShard = 1502, Refused, "there is no such shard",
        "No shard with this id is known. `isxctl shard list` shows them all.";
    /// Descriptor changed since the plan.
    StaleEpoch = 1503, Refused, "the shard changed since this was planned",
        "The request was made for another epoch of the shard. Nothing was changed. Look again (`isxctl shard show`) and decide.";
    /// Target cannot lead.
    BadTarget = 1504, Refused, "that node can't do this",
        "The node named is no voter of the shard, or is not known. Nothing was changed.";
    /// Token refused.
    BadToken = 1505, Refused, "the join token is not valid",
        "The token is misspelt, expired, or made by another cluster. Make a new one: `isxctl token create`.";
    /// The change would cost the quorum.
    TooFewReplicas = 1506, Refused, "too few healthy replicas would be left",
        "After this change the shard would have fewer live, caught-up voters than a majority, or fewer than now and than its service wants. Nothing was changed. Add a replica first, or wait until the others have caught up.";
    /// Malformed membership change.
    BadChange = 1507, Refused, "the shard's replicas can't be changed like that",
        "A replica id is unknown, was used before, or its node has a replica of the shard already; the message says which. Nothing was changed.";
    /// Shards that do not fit.
    BadMerge = 1508, Refused, "these shards can't be merged, or the merge can't be taken back",
        "The left shard must end where the right one begins, in the same service, and both must have their replicas on the same nodes, all of them voters. A merge can be taken back only while the left shard has not taken the right one over. Nothing was changed.";
    /// Another operation is in the way.
    OpConflict = 1509, Refused, "another operation is in the way",
        "Two operations would pull at the same node or shard. Nothing was changed. `isxctl op show` tells about the other one; wait for it, or cancel it.";
    /// Unknown operation.
    NoSuchOp = 1510, Refused, "there is no such operation",
        "The directory does not know the operation: `isxctl op list --all` lists those it remembers. Nothing was changed.";
    /// The operation has ended.
    OpIsOver = 1511, Refused, "the operation has ended already",
        "An operation that is done, failed or cancelled can't be changed any more. Nothing was changed. `isxctl op undo` starts the inverse of one that has an inverse.";
    /// A safety check refused the operation.
    UnsafeOp = 1512, Refused, "a safety check refused the operation",
        "The change would leave shards without enough copies, zones or disk space. Nothing was changed. Each blocker is named with its object and the command that removes it.";
    /// Unknown node.
    NoSuchNode = 1513, Refused, "there is no such node",
        "The directory does not know the node: `isxctl node list` lists the members. Nothing was changed.";
    /// Made for another configuration.
    StalePlan = 1514, Refused, "the plan was made for another configuration of the cluster",
        "Nodes, shards, rules or services have changed since the plan was made, so that it may no longer be right or safe. Nothing was changed. `isxctl plan check` makes it anew and shows what is different; `--plan-out` writes a new one.";
    /// Unknown rule.
    NoSuchRule = 1515, Refused, "there is no such rule",
        "No rule with this name was set: `isxctl rule list` shows them. Rules that come from a service's own settings are changed with `isxctl service set`. Nothing was changed.";
    /// Disk nearly full.
    DiskFull = 1601, Refused, "the node's disk is nearly full",
        "Free space on a replica's disk fell below its reserve: reads and deletes go on, other writes are refused until there is room. It clears by itself.";
    /// Too many messages outstanding.
    OutboxFull = 1602, Refused, "too many messages are outstanding",
        "An entity may have 10000 messages outstanding, and a shard a million, counted until their receivers have applied them. Nothing was changed. It clears by itself when the receivers' shards are back: `activity list` shows whom they wait for.";
    /// Checksum mismatch.
    Corrupt = 1701, Corrupt, "stored data failed its check",
        "A row's checksum does not match. It was not returned. The node says which file; its replica must be rebuilt from its peers.";
    /// Should not happen.
    Internal = 1901, Bug, "isx broke a promise of its own",
        "Please report this with the node's log.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ISX-{}", self.number())
    }
}

/// An error as a node answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text} ({code})")]
pub struct WireError {
    /// Which error.
    pub code: Code,
    /// What happened, for a person.
    pub text: String,
    /// The entity's current version, where that is what the error is about.
    pub version: Option<u64>,
    /// When to try again. Unit: ms. 0 where that is not the question.
    pub retry_after_ms: u32,
    /// What a safety check found in the way.
    pub blockers: Vec<OpBlocker>,
}

impl WireError {
    /// An error with its text.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            version: None,
            retry_after_ms: 0,
            blockers: Vec::new(),
        }
    }

    /// What can be done about it.
    pub fn class(&self) -> Class {
        self.code.class()
    }
}
