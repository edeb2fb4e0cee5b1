//! The message types.
//!
//! Order matters: postcard writes fields and enum values by their place, so a changed order is a
//! changed format on disk and on the wire.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{accessors, message, one_byte};

/// What an entry of the log is for.
#[repr(i32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EntryType {
    /// Data of the state machine. Without data it is the first entry of a new leader, or one that
    /// raft put in the place of a refused configuration change.
    #[default]
    EntryNormal = 0,
    /// A [`ConfChange`].
    EntryConfChange = 1,
    /// A [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// What a message is for.
#[repr(i32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum MessageType {
    #[default]
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
}

/// What happens to one node in a configuration change.
#[repr(i32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConfChangeType {
    /// It becomes a voter.
    #[default]
    AddNode = 0,
    /// It leaves.
    RemoveNode = 1,
    /// It becomes a learner.
    AddLearnerNode = 2,
}

/// How a configuration change is carried out.
#[repr(i32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConfChangeTransition {
    /// At once if it concerns one node, else as `Implicit`.
    #[default]
    Auto = 0,
    /// Through a joint configuration, which raft leaves on its own.
    Implicit = 1,
    /// Through a joint configuration, which ends with an empty change that the application
    /// proposes.
    Explicit = 2,
}

one_byte!(EntryType, MessageType, ConfChangeType, ConfChangeTransition);

/// One entry of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is for.
    pub entry_type: EntryType,
    /// The term in which it was proposed.
    pub term: u64,
    /// Its place in the log.
    pub index: u64,
    /// What to apply.
    pub data: Bytes,
    /// Whatever the proposer added.
    pub context: Bytes,
}

message!(Entry {
    entry_type,
    term,
    index,
    data,
    context
});

accessors!(Entry {
    copy entry_type: EntryType => get_entry_type set_entry_type;
    copy term: u64 => get_term set_term;
    copy index: u64 => get_index set_index;
    bytes data: Bytes => get_data set_data mut_data take_data;
    bytes context: Bytes => get_context set_context mut_context take_context;
});

/// Who takes part in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfState {
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who gets the log without voting.
    pub learners: Vec<u64>,
    /// Who voted before the change under way. Not empty exactly in a joint configuration.
    pub voters_outgoing: Vec<u64>,
    /// Voters of before that turn into learners when the joint configuration ends.
    pub learners_next: Vec<u64>,
    /// Whether raft ends the joint configuration on its own.
    pub auto_leave: bool,
}

message!(ConfState {
    voters,
    learners,
    voters_outgoing,
    learners_next,
    auto_leave
});

accessors!(ConfState {
    list voters: u64 => get_voters set_voters mut_voters take_voters;
    list learners: u64 => get_learners set_learners mut_learners take_learners;
    list voters_outgoing: u64 =>
        get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing;
    list learners_next: u64 =>
        get_learners_next set_learners_next mut_learners_next take_learners_next;
    copy auto_leave: bool => get_auto_leave set_auto_leave;
});

/// The place in the log that a snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMetadata {
    /// Who took part there.
    pub conf_state: ConfState,
    /// The last entry that it covers.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
}

message!(SnapshotMetadata {
    conf_state,
    index,
    term
});

accessors!(SnapshotMetadata {
    part conf_state: ConfState =>
        get_conf_state set_conf_state mut_conf_state take_conf_state;
    copy index: u64 => get_index set_index;
    copy term: u64 => get_term set_term;
});

/// The state of a group at one place in its log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The state, or whatever leads to it.
    pub data: Bytes,
    /// Which place.
    pub metadata: SnapshotMetadata,
}

message!(Snapshot { data, metadata });

accessors!(Snapshot {
    bytes data: Bytes => get_data set_data mut_data take_data;
    part metadata: SnapshotMetadata => get_metadata set_metadata mut_metadata take_metadata;
});

impl Snapshot {
    const EMPTY: Self = Self {
        data: Bytes::new(),
        metadata: SnapshotMetadata {
            conf_state: ConfState {
                voters: Vec::new(),
                learners: Vec::new(),
                voters_outgoing: Vec::new(),
                learners_next: Vec::new(),
                auto_leave: false,
            },
            index: 0,
            term: 0,
        },
    };

    /// Whether this is no snapshot at all: it stands for no place in the log.
    pub fn is_empty(&self) -> bool {
        self.metadata.index == 0
    }
}

/// What one member of a group says to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What it is for. It decides what the other fields mean.
    pub msg_type: MessageType,
    /// To whom.
    pub to: u64,
    /// From whom.
    pub from: u64,
    /// The sender's term.
    pub term: u64,
    /// The term of the entry at `index`.
    pub log_term: u64,
    /// A place in the log. Entries follow behind it.
    pub index: u64,
    /// Entries to append or to propose.
    pub entries: Vec<Entry>,
    /// Up to where the sender knows the log as committed.
    pub commit: u64,
    /// The term of the entry at `commit`.
    pub commit_term: u64,
    /// The snapshot, in the few messages that have one.
    pub snapshot: Option<Box<Snapshot>>,
    /// The least index of a snapshot that the sender asks for.
    pub request_snapshot: u64,
    /// Whether this says no.
    pub reject: bool,
    /// Where the log of the one who says no might agree.
    pub reject_hint: u64,
    /// What belongs to a read or to a kind of election.
    pub context: Bytes,
    /// An older form of `priority`.
    pub deprecated_priority: u64,
    /// Of a candidate.
    pub priority: i64,
}

message!(Message {
    msg_type,
    to,
    from,
    term,
    log_term,
    index,
    entries,
    commit,
    commit_term,
    snapshot,
    request_snapshot,
    reject,
    reject_hint,
    context,
    deprecated_priority,
    priority,
});

accessors!(Message {
    copy msg_type: MessageType => get_msg_type set_msg_type;
    copy to: u64 => get_to set_to;
    copy from: u64 => get_from set_from;
    copy term: u64 => get_term set_term;
    copy log_term: u64 => get_log_term set_log_term;
    copy index: u64 => get_index set_index;
    list entries: Entry => get_entries set_entries mut_entries take_entries;
    copy commit: u64 => get_commit set_commit;
    copy commit_term: u64 => get_commit_term set_commit_term;
    copy request_snapshot: u64 => get_request_snapshot set_request_snapshot;
    copy reject: bool => get_reject set_reject;
    copy reject_hint: u64 => get_reject_hint set_reject_hint;
    bytes context: Bytes => get_context set_context mut_context take_context;
    copy deprecated_priority: u64 => get_deprecated_priority set_deprecated_priority;
    copy priority: i64 => get_priority set_priority;
});

impl Message {
    /// The snapshot, or an empty one if there is none.
    pub fn get_snapshot(&self) -> &Snapshot {
        static EMPTY: Snapshot = Snapshot::EMPTY;
        self.snapshot.as_deref().unwrap_or(&EMPTY)
    }

    /// Puts a snapshot in.
    pub fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(Box::new(snapshot));
    }

    /// The snapshot to change. Puts an empty one in if there is none.
    pub fn mut_snapshot(&mut self) -> &mut Snapshot {
        self.snapshot.get_or_insert_default()
    }

    /// Takes the snapshot out: an empty one if there is none.
    pub fn take_snapshot(&mut self) -> Snapshot {
        self.snapshot.take().map_or_else(Snapshot::default, |s| *s)
    }

    /// Whether there is a snapshot.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }
}

/// What a member must not forget, besides its log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The term that it is in.
    pub term: u64,
    /// For whom it voted in this term; 0 for nobody.
    pub vote: u64,
    /// Up to where it knows the log as committed.
    pub commit: u64,
}

message!(HardState { term, vote, commit });

accessors!(HardState {
    copy term: u64 => get_term set_term;
    copy vote: u64 => get_vote set_vote;
    copy commit: u64 => get_commit set_commit;
});

/// A configuration change of one node, in the older form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfChange {
    /// What happens to the node.
    pub change_type: ConfChangeType,
    /// Which node.
    pub node_id: u64,
    /// Whatever the proposer added.
    pub context: Bytes,
    /// The proposer's number for the change.
    pub id: u64,
}

message!(ConfChange {
    change_type,
    node_id,
    context,
    id
});

accessors!(ConfChange {
    copy change_type: ConfChangeType => get_change_type set_change_type;
    copy node_id: u64 => get_node_id set_node_id;
    bytes context: Bytes => get_context set_context mut_context take_context;
    copy id: u64 => get_id set_id;
});

/// What happens to one node within a [`ConfChangeV2`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfChangeSingle {
    /// What happens to the node.
    pub change_type: ConfChangeType,
    /// Which node.
    pub node_id: u64,
}

message!(ConfChangeSingle { change_type, node_id });

accessors!(ConfChangeSingle {
    copy change_type: ConfChangeType => get_change_type set_change_type;
    copy node_id: u64 => get_node_id set_node_id;
});

/// A configuration change of any number of nodes. It takes effect where it is applied, not where
/// it is appended. An empty one ends a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfChangeV2 {
    /// How it is carried out.
    pub transition: ConfChangeTransition,
    /// What happens to which node.
    pub changes: Vec<ConfChangeSingle>,
    /// Whatever the proposer added.
    pub context: Bytes,
}

message!(ConfChangeV2 {
    transition,
    changes,
    context
});

accessors!(ConfChangeV2 {
    copy transition: ConfChangeTransition => get_transition set_transition;
    list changes: ConfChangeSingle => get_changes set_changes mut_changes take_changes;
    bytes context: Bytes => get_context set_context mut_context take_context;
});

#[cfg(test)]
mod tests {
    use protobuf::Message as _;

    use super::*;
    use crate::parse_conf_change;

    fn full_message() -> Message {
        Message {
            msg_type: MessageType::MsgRequestPreVoteResponse,
            to: 1,
            from: u64::MAX,
            term: 300,
            log_term: 299,
            index: 70_000,
            entries: vec![
                Entry {
                    entry_type: EntryType::EntryConfChangeV2,
                    term: 5,
                    index: 70_001,
                    data: vec![7; 1000].into(),
                    context: "context".into(),
                },
                Entry::default(),
            ],
            commit: 69_999,
            commit_term: 298,
            snapshot: Some(Box::new(Snapshot {
                data: vec![8; 200].into(),
                metadata: SnapshotMetadata {
                    conf_state: ConfState {
                        voters: vec![1, 2, 300],
                        learners: vec![4],
                        voters_outgoing: vec![5],
                        learners_next: vec![6],
                        auto_leave: true,
                    },
                    index: 9,
                    term: 10,
                },
            })),
            request_snapshot: 11,
            reject: true,
            reject_hint: 12,
            context: vec![0xff; 130].into(),
            deprecated_priority: 13,
            priority: -14,
        }
    }

    #[test]
    fn round_trip_and_exact_size() {
        for message in [full_message(), Message::default()] {
            let bytes = postcard::to_allocvec(&message).unwrap();
            assert_eq!(message.compute_size() as usize, bytes.len());
            assert_eq!(postcard::from_bytes::<Message>(&bytes).unwrap(), message);
            assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        }
        let state = HardState {
            term: 1,
            vote: 2,
            commit: 300,
        };
        let bytes = postcard::to_allocvec(&state).unwrap();
        assert_eq!(state.encoded_len(), bytes.len());
        assert_eq!(postcard::from_bytes::<HardState>(&bytes).unwrap(), state);
    }

    #[test]
    fn size_grows_with_the_payload() {
        let mut last = 0;
        for len in 0..20_000 {
            let entry = Entry {
                data: vec![0; len].into(),
                ..Entry::default()
            };
            assert!(entry.compute_size() > last);
            last = entry.compute_size();
        }
    }

    #[test]
    fn a_clone_shares_its_payload() {
        let message = full_message();
        let copy = message.clone();
        assert_eq!(message.entries[0].data.as_ptr(), copy.entries[0].data.as_ptr());
        assert_eq!(message.get_snapshot().data.as_ptr(), copy.get_snapshot().data.as_ptr());
    }

    #[test]
    fn no_bytes_are_the_empty_change() {
        let empty = ConfChangeV2::default();
        assert!(empty.write_to_bytes().unwrap().is_empty());
        assert!(ConfChangeV2::decode(&[]).unwrap().leave_joint());
        assert!(ConfChange::default().encode().unwrap().is_empty());

        let change = ConfChangeV2 {
            transition: ConfChangeTransition::Explicit,
            changes: parse_conf_change("v4 r1").unwrap(),
            context: "x".into(),
        };
        let bytes = change.write_to_bytes().unwrap();
        let mut read = ConfChangeV2::default();
        read.merge_from_bytes(&bytes).unwrap();
        assert_eq!(read, change);
    }

    #[test]
    fn damaged_input_is_refused_and_changes_nothing() {
        let bytes = full_message().encode().unwrap();
        for len in 1..bytes.len() {
            assert!(Message::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        let mut message = full_message();
        assert!(message.merge_from_bytes(&longer).is_err());
        assert_eq!(message, full_message());
        let mut unknown = bytes;
        unknown[0] = 19;
        assert!(Message::decode(&unknown).is_err());
    }

    #[test]
    fn a_message_without_snapshot_has_an_empty_one() {
        let mut message = Message::default();
        assert!(!message.has_snapshot());
        assert!(message.get_snapshot().is_empty());
        assert_eq!(*message.get_snapshot(), Snapshot::default());
        assert_eq!(message.take_snapshot(), Snapshot::default());
        message.mut_snapshot().metadata.index = 3;
        assert!(!message.get_snapshot().is_empty());
        assert_eq!(message.take_snapshot().metadata.index, 3);
        assert!(!message.has_snapshot());
    }
}
