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
    let meta = first_meta(shard, 0);
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
