//! Snapshots that reach a node past a merge: what of the copies there they take the place of.
use raft::eraftpb::{Entry, Message as RaftInner, MessageType, Snapshot};

use super::*;
use crate::daemon::core::command::{Command, Payload};
use crate::daemon::core::replica;
use crate::daemon::core::state::{Install, LogBatch, LogSeq, ReplicaMeta, ShardWrite, StagedCopy};
use crate::protocol::codec;
use crate::protocol::id::{Epoch, ReplicaId};
use crate::protocol::key::KeyRange;
use crate::protocol::message::{Message, RaftMessage, SnapshotManifest};
use crate::protocol::shard_map::{Frozen, ReplicaDescriptor, ReplicaRole, ShardDescriptor};

/// A shard of three voters, named as their nodes.
fn shard(id: u64, epoch: u64, start: &str, end: &str) -> ShardDescriptor {
    let voter = |node| ReplicaDescriptor {
        node: NodeId(node),
        id: ReplicaId(node),
        role: ReplicaRole::Voter,
    };
    let end = match end {
        "" => Position::end_of("campaign"),
        key => Position::new("campaign", key),
    };
    ShardDescriptor {
        id: ShardId(id),
        range: KeyRange {
            start: Position::new("campaign", start),
            end,
        },
        epoch: Epoch(epoch),
        replicas: (1..=3).map(voter).collect(),
        frozen: None,
        held: None,
        newest_replica: ReplicaId(3),
        absorbed: Vec::new(),
        quarantined: Vec::new(),
    }
}

fn first_meta(shard: &ShardDescriptor) -> ReplicaMeta {
    ReplicaMeta {
        replica: ReplicaId(1),
        ..replica::first_meta(shard.clone(), Default::default())
    }
}

/// Node 1, as it comes up again with copies of these shards.
struct Returned {
    node: Node,
    rows: Rows,
}

impl Returned {
    fn new(shards: &[ShardDescriptor]) -> Self {
        Self::with_log(shards, Vec::new())
    }

    fn with_log(shards: &[ShardDescriptor], log: Vec<ShardWrite>) -> Self {
        let founders = founders(3);
        let recovered = Recovered {
            replicas: shards.iter().map(first_meta).collect(),
            log: vec![(LogSeq(1), LogBatch { shards: log })],
            last_seq: LogSeq(1),
        };
        let (mut rows, mut effects) = (Rows::default(), Effects::new());
        let config = config(&founders[0], &founders, false);
        let node = Node::new(config, recovered, now(), &mut rows, &mut effects).expect("a sound store");
        Self { node, rows }
    }

    fn step(&mut self, input: Input) -> Effects {
        let mut effects = Effects::new();
        self.node.step(now(), input, &mut self.rows, &mut effects);
        self.node.settle(now(), &mut self.rows, &mut effects);
        effects
    }

    /// The shard is given a copy here: nothing is in it yet.
    fn make(&mut self, mut shard: ShardDescriptor) -> ShardDescriptor {
        // No child of a split that is still to come has this id: its leader's first word makes the copy at once.
        shard.replicas[0].id = ReplicaId(4);
        self.step(Input::Received {
            from: NodeId(2),
            messages: vec![Message::Raft(from_leader(&shard, MessageType::MsgHeartbeat))],
        });
        assert!(self.holds().contains(&shard.id.0));
        shard
    }

    /// A snapshot of the shard as of an entry, from node 2: what is written because of it.
    fn snapshot(&mut self, shard: &ShardDescriptor, at: (u64, u64)) -> Option<Install> {
        let manifest = SnapshotManifest {
            shard: shard.clone(),
            clock: Default::default(),
            entities: 0,
            bytes: 0,
            schema: Default::default(),
            history: 0,
        };
        let mut snapshot = Snapshot {
            data: codec::encode(&manifest),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = at;
        *metadata.mut_conf_state() = first_meta(shard).conf_state;
        let mut raft = from_leader(shard, MessageType::MsgSnapshot);
        raft.message.set_snapshot(snapshot);
        let effects = self.step(Input::SnapshotReceived {
            from: NodeId(2),
            copy: StagedCopy {
                shard: shard.id,
                replica: raft.to,
                chunks: 0,
                rows: 0,
                bytes: 0,
                digest: Default::default(),
            },
            raft: Box::new(raft),
        });
        let mut installs = effects.into_iter().filter_map(|effect| match effect {
            Effect::Install(install) => Some(*install),
            _ => None,
        });
        installs.next()
    }

    fn holds(&self) -> Vec<u64> {
        self.node.replicas().map(|replica| replica.shard.id.0).collect()
    }
}

fn now() -> Clock {
    Clock {
        now: Time(1),
        wall_ms: 0,
    }
}

fn from_leader(shard: &ShardDescriptor, msg_type: MessageType) -> RaftMessage {
    let to = shard.replica_on(NodeId(1)).expect("a member").id;
    let message = RaftInner {
        msg_type,
        from: 2,
        to: to.0,
        term: TERM,
        ..RaftInner::default()
    };
    RaftMessage {
        shard: shard.id,
        from: ReplicaId(2),
        to,
        epoch: shard.epoch,
        message,
    }
}

/// Shards that the snapshot is the end of.
fn ended(install: &Install) -> Vec<u64> {
    assert!(install.also.iter().all(|meta| meta.destroyed));
    install.also.iter().map(|meta| meta.shard.id.0).collect()
}

/// Of the entries and leaders that come after what is on disk.
const TERM: u64 = 5;
const DIRECTORY: u64 = 0;

/// It stood still when the merge was agreed on, and a restart took it back behind its freeze. Nobody is left to tell it.
#[test]
fn the_absorbers_snapshot_takes_the_place_of_a_copy_that_has_forgotten_its_freeze() {
    let mut node = Returned::new(&[shard(1, 2, "", "m"), shard(1000, 2, "m", "")]);
    let install = node.snapshot(&shard(1, 4, "", ""), (40, TERM)).expect("wanted");
    assert_eq!(ended(&install), [1000]);
    assert_eq!(node.holds(), [DIRECTORY, 1]);
}

/// The one between has absorbed the last one before it was absorbed itself: both go with the first one's snapshot.
#[test]
fn the_absorbers_snapshot_takes_the_place_of_a_row_of_copies() {
    let here = [shard(1, 2, "", "g"), shard(1000, 2, "g", "m"), shard(1001, 2, "m", "")];
    let mut node = Returned::new(&here);
    let install = node.snapshot(&shard(1, 6, "", ""), (40, TERM)).expect("wanted");
    assert_eq!(ended(&install), [1000, 1001]);
    assert_eq!(node.holds(), [DIRECTORY, 1]);
}

/// The absorber's copy goes on entry by entry, and comes to the merge.
#[test]
fn a_later_shards_snapshot_leaves_what_the_absorber_here_still_needs() {
    let mut node = Returned::new(&[shard(1, 2, "", "m"), shard(1000, 2, "m", "")]);
    let later = node.make(shard(1001, 5, "m", ""));
    assert_eq!(node.snapshot(&later, (40, TERM)), None);
    assert_eq!(node.holds(), [DIRECTORY, 1, 1000, 1001]);
}

/// The absorber leapt over the merge and over a later split at the same place.
#[test]
fn a_later_shards_snapshot_takes_the_place_of_what_the_absorber_here_is_past() {
    let mut absorber = shard(1, 6, "", "m");
    absorber.absorbed = vec![ShardId(1000)];
    let mut node = Returned::new(&[absorber, shard(1000, 2, "m", "")]);
    let later = node.make(shard(1001, 6, "m", ""));
    let install = node.snapshot(&later, (40, TERM)).expect("wanted");
    assert_eq!(ended(&install), [1000]);
    assert_eq!(node.holds(), [DIRECTORY, 1, 1001]);
}

/// The log has all that the snapshot would bring, and the merge in it takes over what is here.
#[test]
fn a_snapshot_that_only_proves_the_log_committed_leaves_the_merge_its_right_half() {
    let mut right = shard(1000, 2, "m", "");
    right.frozen = Some(Frozen {
        into: ShardId(1),
        left_epoch: Epoch(2),
        index: 1,
        term: 1,
    });
    let merge = Payload {
        elapsed_ms: 0,
        wall_ms: 0,
        commands: vec![Command::Merge {
            left_epoch: Epoch(2),
            right: Box::new(right.clone()),
            id: RequestId(9),
        }],
    };
    let log = ShardWrite {
        shard: ShardId(1),
        hard_state: None,
        entries: vec![Entry {
            term: TERM,
            index: 2,
            data: merge.encode(),
            ..Entry::default()
        }],
        complete: false,
    };
    let mut node = Returned::with_log(&[shard(1, 2, "", "m"), right], vec![log]);
    assert_eq!(node.holds(), [DIRECTORY, 1, 1000]);
    assert_eq!(node.snapshot(&shard(1, 3, "", ""), (2, TERM)), None);
    assert_eq!(node.holds(), [DIRECTORY, 1]);
    let left = node.node.replicas().find(|replica| replica.shard.id == ShardId(1));
    let left = left.expect("here");
    assert!(!left.stalled);
    assert_eq!(left.shard.range, shard(1, 3, "", "").range);
}

/// On disk the parent is as it was before the split: what its log says of the child's keys is applied once more at the next
/// start. The child's rows as of later must not be there then.
#[test]
fn a_childs_snapshot_waits_until_its_birth_is_on_disk() {
    let split = Payload {
        elapsed_ms: 0,
        wall_ms: 0,
        commands: vec![Command::Split {
            epoch: Epoch(1),
            at: Position::new("campaign", "m"),
            child: ShardId(1000),
            id: RequestId(9),
        }],
    };
    let entry = Entry {
        term: TERM,
        index: 2,
        data: split.encode(),
        ..Entry::default()
    };
    let log = ShardWrite {
        shard: ShardId(1),
        hard_state: Some(raft::eraftpb::HardState {
            term: TERM,
            vote: 0,
            commit: 2,
        }),
        entries: vec![entry],
        complete: false,
    };
    let mut node = Returned::with_log(&[shard(1, 1, "", "")], vec![log]);
    node.step(Input::Ticked);
    assert_eq!(node.holds(), [DIRECTORY, 1, 1000]);
    let child = shard(1000, 2, "m", "");
    assert_eq!(node.snapshot(&child, (40, TERM)), None, "its birth is not on disk");
    let saved = node.step(Input::Checkpointed);
    assert!(node.snapshot(&child, (40, TERM)).is_some(), "{saved:?}");
}
