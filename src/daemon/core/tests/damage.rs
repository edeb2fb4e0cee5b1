//! Copies whose rows are found damaged while a restart applies the log again. Only the rows are in doubt: what the log says
//! of the shard's shape counts, and above all what was promised in the name of shards that were born of it.
use super::*;
use crate::daemon::core::replica::Replica;
use crate::protocol::id::ReplicaId;
use crate::protocol::message::{Message, RaftMessage};
use crate::protocol::shard_map::ShardDescriptor;

const N3: NodeId = NodeId(3);

impl Cluster {
    fn without_checkpoints() -> Self {
        let mut cluster = Self::new(3);
        cluster.holds_checkpoints = true;
        cluster.run(60);
        cluster
    }

    fn shard_of(&self, key: &str) -> ShardDescriptor {
        let map = self.nodes[&NodeId(1)].0.map();
        map.find(&Position::new("campaign", key)).expect("a shard").clone()
    }

    fn copy(&self, node: NodeId, shard: ShardId) -> Option<&Replica> {
        self.nodes[&node].0.replicas().find(|replica| replica.shard.id == shard)
    }

    /// Cuts the shard that holds the key there, and says what the right half is.
    fn split_at(&mut self, key: &str) -> ShardDescriptor {
        let ids = Request::AllocateIds {
            count: 1,
            id: RequestId(self.now.0.into()),
        };
        let Response::Ids { first } = self.ask(1, ids) else {
            panic!()
        };
        let shard = self.shard_of(key);
        let split = Request::SplitShard {
            shard: shard.id,
            epoch: shard.epoch,
            at: Position::new("campaign", key),
            child: ShardId(first),
            id: RequestId(first.into()),
        };
        match self.ask(1, split) {
            Response::Split { right, .. } => *right,
            other => panic!("{other:?}"),
        }
    }

    /// The shard that holds the key is taken over by its left neighbour.
    fn merge_at(&mut self, key: &str, into: ShardId) {
        let right = self.shard_of(key);
        let left_epoch = self.nodes[&NodeId(1)].0.map().shard(into).expect("known").epoch;
        let freeze = Request::FreezeShard {
            shard: right.id,
            epoch: right.epoch,
            into,
            left_epoch,
            id: RequestId(77),
        };
        let Response::Shard(right) = self.ask(1, freeze) else {
            panic!()
        };
        let merge = Request::MergeShards {
            left: into,
            left_epoch,
            right,
            id: RequestId(78),
        };
        let merged = self.ask(1, merge);
        assert!(matches!(merged, Response::Shard(_)), "{merged:?}");
    }

    /// The third node is put together again from its log, and finds some of its rows damaged on the way. Nobody is heard
    /// meanwhile.
    fn restart_n3(&mut self, bad: &'static str, log: impl Fn(&mut LogBatch)) {
        self.run(40);
        let (before, _) = self.nodes.remove(&N3).expect("a member");
        let mut batches = self.logs[&N3].clone();
        batches.iter_mut().for_each(|(_, batch)| log(batch));
        let recovered = Recovered {
            last_seq: batches.last().expect("written").0,
            log: batches,
            ..Recovered::default()
        };
        let mut rows = Rows(BTreeMap::new(), Some(bad));
        let mut effects = Effects::new();
        let node = Node::new(before.config.clone(), recovered, self.clock(), &mut rows, &mut effects);
        self.nodes.insert(N3, (node.expect("a sound log"), rows));
        assert!(self.inbox.is_empty());
        for _ in 0..10 {
            self.inbox.push_back((N3, Input::Ticked));
            let (to, input) = self.inbox.pop_front().expect("pushed above");
            let clock = self.clock();
            let (node, rows) = self.nodes.get_mut(&to).expect("a member");
            node.step(clock, input, rows, &mut Effects::new());
            node.settle(clock, rows, &mut Effects::new());
        }
    }
}

/// Term, vote and last index: what a copy has promised with.
fn promise(replica: &Replica) -> (u64, u64, u64) {
    (replica.term(), replica.vote(), replica.last_index())
}

#[test]
fn a_damaged_copy_gives_birth_to_those_that_have_made_promises() {
    let mut cluster = Cluster::without_checkpoints();
    assert!(matches!(cluster.put(1, 10, "broken"), Response::Written(_)));
    let child = cluster.split_at("m");
    for (id, key) in [(20, "n"), (21, "s"), (22, "x")] {
        assert!(matches!(cluster.put(1, id, key), Response::Written(_)));
    }
    // A child of the child is no less bound.
    let grandchild = cluster.split_at("s");
    assert!(matches!(cluster.put(1, 23, "t"), Response::Written(_)));
    cluster.run(40);
    let before = [&child, &grandchild].map(|shard| promise(cluster.copy(N3, shard.id).expect("born")));
    cluster.restart_n3("broken", |_| ());
    for (shard, before) in [&child, &grandchild].into_iter().zip(before) {
        let copy = cluster.copy(N3, shard.id).expect("born again");
        assert!(copy.is_initialized(), "{} begins where the split left it", shard.id);
        assert_eq!(promise(copy), before, "{}", shard.id);
        assert!(copy.is_quarantined(), "its rows come from a damaged copy");
        assert_eq!(
            copy.shard.epoch,
            cluster.shard_of(if shard.id == child.id { "n" } else { "t" }).epoch
        );
    }
}

#[test]
fn a_damaged_copy_that_was_to_be_taken_over_holds_up_no_births() {
    let mut cluster = Cluster::without_checkpoints();
    let left = cluster.shard_of("a").id;
    assert!(matches!(cluster.put(1, 10, "a"), Response::Written(_)));
    let right = cluster.split_at("m");
    assert!(matches!(cluster.put(1, 11, "m-broken"), Response::Written(_)));
    assert!(matches!(cluster.put(1, 12, "t"), Response::Written(_)));
    cluster.run(40);
    cluster.merge_at("m", left);
    let child = cluster.split_at("s");
    assert!(matches!(cluster.put(1, 13, "u"), Response::Written(_)));
    cluster.run(40);
    let before = promise(cluster.copy(N3, child.id).expect("born"));
    cluster.restart_n3("m-broken", |_| ());
    assert!(cluster.copy(N3, right.id).is_none(), "taken over");
    let copy = cluster.copy(N3, left).expect("a founder's");
    assert!(copy.is_quarantined(), "it has taken over damaged rows");
    assert_eq!(copy.shard, cluster.shard_of("a"));
    let copy = cluster.copy(N3, child.id).expect("born again");
    assert_eq!((promise(copy), copy.is_quarantined()), (before, true));
}

#[test]
fn what_a_damaged_copy_has_applied_of_the_shape_is_applied_once() {
    let mut cluster = Cluster::without_checkpoints();
    assert!(matches!(cluster.put(1, 10, "broken"), Response::Written(_)));
    let parent = cluster.shard_of("broken").id;
    let child = cluster.split_at("m");
    cluster.restart_n3("broken", |_| ());
    let copy = cluster.copy(N3, parent).expect("a founder's");
    let (shape, meta) = (copy.shard.clone(), copy.meta());
    assert!(
        meta.applied < copy.committed(),
        "the log is kept from where the rows stopped"
    );
    assert_eq!(shape, cluster.shard_of("broken"));
    // The checkpoint has it like this; the next start goes on from there, over the same entries.
    let child = cluster.copy(N3, child.id).expect("born again").meta();
    let (before, _) = cluster.nodes.remove(&N3).expect("a member");
    let batches = cluster.logs[&N3].clone();
    let recovered = Recovered {
        replicas: vec![meta.clone(), child],
        last_seq: batches.last().expect("written").0,
        log: batches,
    };
    let (mut rows, mut effects) = (Rows::default(), Effects::new());
    let node = Node::new(
        before.config.clone(),
        recovered,
        cluster.clock(),
        &mut rows,
        &mut effects,
    );
    let mut node = node.expect("a sound log");
    node.settle(cluster.clock(), &mut rows, &mut effects);
    let again = node
        .replicas()
        .find(|replica| replica.shard.id == parent)
        .expect("there");
    assert_eq!((again.shard.clone(), again.meta().clock), (shape, meta.clock));
    assert!(again.is_quarantined());
}

#[test]
fn a_copy_that_has_promised_something_never_begins_anew() {
    let mut cluster = Cluster::without_checkpoints();
    let parent = cluster.shard_of("a").id;
    let child = cluster.split_at("m");
    assert!(matches!(cluster.put(1, 20, "n"), Response::Written(_)));
    // The parent's log is gone, as after a fault of ours: nothing will make the child again.
    cluster.restart_n3("nothing", |batch| batch.shards.retain(|write| write.shard != parent));
    assert!(cluster.copy(N3, child.id).is_none());
    let heartbeat = |to: ReplicaId| {
        let from = child.replica_on(NodeId(1)).expect("a member").id;
        let message = raft::eraftpb::Message {
            msg_type: raft::eraftpb::MessageType::MsgHeartbeat,
            from: from.0,
            to: to.0,
            term: 9,
            ..Default::default()
        };
        Message::Raft(RaftMessage {
            shard: child.id,
            from,
            to,
            epoch: child.epoch,
            message,
        })
    };
    let mut hear = |to: ReplicaId| {
        let mut said = Effects::new();
        for _ in 0..200 {
            cluster.now = cluster.now + TICK;
            let clock = cluster.clock();
            let (node, rows) = cluster.nodes.get_mut(&N3).expect("a member");
            for input in [
                Input::Ticked,
                Input::Received {
                    from: NodeId(1),
                    messages: vec![heartbeat(to)],
                },
            ] {
                node.step(clock, input, rows, &mut said);
                node.settle(clock, rows, &mut said);
            }
        }
        let asks = |effect: &Effect| {
            let is_it = |message: &Message| matches!(message, Message::Damaged { shard, replica, .. } if (*shard, *replica) == (child.id, to));
            matches!(effect, Effect::Send { to: NodeId(1), message } if is_it(message))
        };
        let asked = said.iter().filter(|effect| asks(effect)).count();
        (cluster.copy(N3, child.id).map(|replica| replica.id), asked)
    };
    let mine = child.replica_on(N3).expect("a member").id;
    let (made, asked) = hear(mine);
    assert_eq!(made, None, "it would have forgotten what it acknowledged");
    assert!(
        (1..=5).contains(&asked),
        "the leader is asked for another copy, now and then: {asked}"
    );
    // The copy that is made in its place has promised nothing.
    let fresh = ReplicaId(5_000);
    assert_eq!(hear(fresh), (Some(fresh), 0));
}

/// What was put behind the damaged row is not in its rows: it must not take the shard for empty, and say that it is closed.
#[test]
fn a_damaged_copy_does_not_close_its_shard() {
    let mut cluster = Cluster::without_checkpoints();
    let shard = cluster.shard_of("g");
    assert!(matches!(cluster.put(1, 1, "g"), Response::Written(_)));
    assert!(matches!(cluster.put(1, 2, "k"), Response::Written(_)));
    let close = Request::FreezeShard {
        shard: shard.id,
        epoch: shard.epoch,
        into: ShardId(0),
        left_epoch: crate::daemon::core::dropping::epoch_of(9),
        id: RequestId(3),
    };
    let answer = cluster.ask(1, close);
    assert!(
        matches!(&answer, Response::Error(error) if error.text.contains("can't be closed: campaign/g is there")),
        "{answer:?}"
    );
    // What comes behind it says that it is committed.
    assert!(matches!(cluster.put(1, 4, "x"), Response::Written(_)));
    cluster.restart_n3("g", |_| ());
    let copy = cluster.copy(N3, shard.id).expect("here");
    assert!(copy.written_off);
    assert_eq!(copy.shard.frozen, None);
}
