//! What the Raft crate would do with a replica that is left alone.
use super::*;

/// A copy with id 3 of a shard whose voters are `voters`.
fn copy(voters: &[u64]) -> Replica {
    let mut shard = empty_meta(ShardId(1)).shard;
    shard.range = KeyRange::all_of("campaign");
    shard.replicas = voters
        .iter()
        .map(|&id| ReplicaDescriptor {
            node: NodeId(id),
            id: ReplicaId(id),
            role: ReplicaRole::Voter,
        })
        .collect();
    let meta = first_meta(shard, ShardClock::default());
    let log = LogView::new(LOG_BASE, meta.hard_state.clone(), meta.conf_state.clone());
    Replica::new(&meta, log, ReplicaId(3), NodeId(3), 7)
}

/// Those who are left may not know yet that it was removed, and would vote for it.
#[test]
fn a_removed_replica_does_not_ask_for_votes() {
    let mut member = copy(&[1, 2, 3]);
    member.campaign();
    assert_eq!(member.raft.raft.state, StateRole::PreCandidate);
    let mut removed = copy(&[1, 2]);
    removed.campaign();
    assert_eq!(removed.raft.raft.state, StateRole::Follower);
}

/// A leader whose log is 600 entries long, of which it keeps no more than ten for followers; a snapshot as of entry 300,
/// of 1 GiB, is on its way to copy 1.
fn sender() -> Replica {
    let mut leader = copy(&[1, 2, 3]);
    let entries: Vec<_> = (LOG_BASE.0 + 1..=600)
        .map(|index| raft::eraftpb::Entry {
            index,
            term: 1,
            ..Default::default()
        })
        .collect();
    assert!(leader.raft.mut_store().append(&entries));
    leader.raft.mut_store().applied = (600, 1);
    leader.raft.raft.raft_log.committed = 600;
    leader.raft.raft.raft_log.persisted = 600;
    leader.tail_max = 10;
    let sending = Sending {
        attempt: 1,
        moved: Time(0),
        bytes: 0,
        total_bytes: 1 << 30,
    };
    leader.sending.insert(ReplicaId(1), sending);
    leader.following.insert(ReplicaId(1), (Time(0), 300));
    leader
}

/// How far the log goes back.
fn kept(leader: &mut Replica) -> u64 {
    leader.finish_applying();
    600 - leader.log().first()
}

fn at(secs: u64) -> Time {
    Time(0) + Span::secs(secs)
}

/// However long it is sent and installed: the log behind it is there when the receiver begins to follow, and until it has.
#[test]
fn the_log_behind_a_snapshot_is_kept_until_its_receiver_has_caught_up() {
    let mut leader = sender();
    leader.forget_followers(at(3_600));
    assert_eq!(kept(&mut leader), 300, "while it is sent");
    leader.snapshot_sent(ReplicaId(1), true, at(3_600));
    leader.forget_followers(at(3_600 + 100));
    assert_eq!(kept(&mut leader), 300, "while it is installed, at 8 MiB/s");
    leader.raft.raft.mut_prs().get_mut(1).expect("a voter").matched = 300;
    assert_eq!(
        kept(&mut leader),
        300,
        "when it is installed and nothing has been sent since"
    );
    leader.raft.raft.mut_prs().get_mut(1).expect("a voter").matched = 400;
    assert_eq!(kept(&mut leader), 200, "what it has is let go");
    leader.raft.raft.mut_prs().get_mut(1).expect("a voter").matched = 590;
    kept(&mut leader);
    assert_eq!(kept(&mut leader), 9, "it has caught up");
}

/// A receiver that never follows must not hold the leader's memory for ever.
#[test]
fn the_log_behind_a_snapshot_is_let_go_in_the_end() {
    let mut leader = sender();
    leader.snapshot_sent(ReplicaId(1), true, at(60));
    leader.forget_followers(at(60 + 132 + 10));
    assert_eq!(kept(&mut leader), 9);
    let mut leader = sender();
    leader.snapshot_sent(ReplicaId(1), false, at(60));
    leader.forget_followers(at(60 + 132 + 10));
    assert_eq!(kept(&mut leader), 9);
}
