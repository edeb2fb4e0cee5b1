//! Shards that merge although their clocks are months apart: nothing that their entities wait for comes early or late, and
//! nothing that they are to remember is forgotten.
use super::*;
use crate::daemon::core::limits::REQUEST_DEDUP;
use crate::protocol::shard_map::ShardDescriptor;

const MONTH: Span = Span::secs(30 * 86_400);

impl Cluster {
    fn holder(&self, key: &str) -> ShardDescriptor {
        let map = self.nodes[&NodeId(1)].0.map();
        map.find(&Position::new("campaign", key)).expect("a shard").clone()
    }

    fn split(&mut self, at: &str, id: u128) {
        let Response::Ids { first } = self.ask(
            1,
            Request::AllocateIds {
                count: 1,
                id: RequestId(id),
            },
        ) else {
            panic!()
        };
        let shard = self.holder(at);
        let split = Request::SplitShard {
            shard: shard.id,
            epoch: shard.epoch,
            at: Position::new("campaign", at),
            child: ShardId(first),
            id: RequestId(id + 1),
        };
        let answer = self.ask(1, split);
        assert!(matches!(answer, Response::Split { .. }), "{answer:?}");
        self.run(40);
    }

    /// Merges the shards of these keys.
    fn merge(&mut self, left: &str, right: &str, id: u128) {
        let (left, right) = (self.holder(left), self.holder(right));
        let freeze = Request::FreezeShard {
            shard: right.id,
            epoch: right.epoch,
            into: left.id,
            left_epoch: left.epoch,
            id: RequestId(id),
        };
        let right = match self.ask(1, freeze) {
            Response::Shard(right) => right,
            other => panic!("{other:?}"),
        };
        let merge = Request::MergeShards {
            left: left.id,
            left_epoch: left.epoch,
            right,
            id: RequestId(id + 1),
        };
        let answer = self.ask(1, merge);
        assert!(matches!(answer, Response::Shard(_)), "{answer:?}");
        self.run(40);
    }

    /// The clock of this key's shard goes on, as if its leader had booked that time, and others had lost theirs.
    fn passes(&mut self, key: &str, span: Span) {
        let shard = self.holder(key).id;
        for (node, _) in self.nodes.values_mut() {
            let copy = node.replicas.get_mut(&shard).expect("a copy on every node");
            copy.clock.advance(span.as_millis());
        }
    }

    fn put_for(&mut self, id: u128, key: &str, ttl: Span) -> Response {
        let write = Write {
            service: "campaign".into(),
            key: key.into(),
            id: RequestId(id),
            condition: Condition::Always,
            change: Change::PutFor {
                document: "{}".into(),
                ttl_ms: ttl.as_millis(),
            },
        };
        self.ask(1, Request::Write(write))
    }

    fn run_until(&mut self, at: Time) {
        while self.now < at {
            self.run(1);
        }
    }
}

/// Keys on both sides of `m`, and on both sides of a later split at `t`.
const KEYS: [&str; 3] = ["c", "p", "x"];

fn nothing_is_early_or_late(behind_first: &str, ahead_first: &str) {
    let mut cluster = Cluster::new(3);
    cluster.run(200);
    cluster.split("m", 1_000);
    cluster.passes(ahead_first, MONTH);
    cluster.passes(behind_first, Span::secs(77));

    let ttl = Span::secs(20);
    let begin = cluster.now;
    for (n, key) in KEYS.iter().enumerate() {
        let answer = cluster.put_for(n as u128 + 1, key, ttl);
        assert!(matches!(answer, Response::Written(_)), "{answer:?}");
        let lasting = format!("{key}-stays");
        assert!(matches!(cluster.put(2, n as u128 + 11, &lasting), Response::Written(_)));
    }
    let end = cluster.now;
    cluster.merge("c", "p", 2_000);
    // Once more: what came with the right one is divided, and one of the halves is a year ahead.
    cluster.split("t", 3_000);
    cluster.passes("x", Span::secs(360 * 86_400));
    // One more is put by the clock as it is now.
    assert!(matches!(cluster.put_for(21, "y", ttl), Response::Written(_)));
    let y_end = cluster.now;
    cluster.merge("p", "x", 4_000);
    let all = ["c", "c-stays", "p", "p-stays", "x", "x-stays", "y"];
    assert!(
        cluster.now < begin + ttl - Span::secs(1),
        "the test is too slow for itself"
    );
    // Of what was put before a year passed for it, the time is up: that was no loss of this merge.
    let but_x: Vec<&str> = all.into_iter().filter(|&key| key != "x").collect();
    assert_eq!(cluster.list(2), but_x);
    cluster.run_until(begin + ttl - Span::secs(1));
    assert_eq!(cluster.list(2), but_x, "some ended early");
    // An entry has to come, and the first of them set off the clock a little later than the last.
    cluster.run_until(end + ttl + Span::secs(1));
    assert_eq!(cluster.list(3), ["c-stays", "p-stays", "x-stays", "y"], "some end late");
    cluster.run_until(y_end + ttl + Span::secs(1));
    assert_eq!(cluster.list(1), ["c-stays", "p-stays", "x-stays"]);
}

#[test]
fn a_merge_of_a_left_shard_that_is_a_month_ahead_changes_no_entitys_time() {
    nothing_is_early_or_late("p", "c");
}

#[test]
fn a_merge_of_a_right_shard_that_is_a_month_ahead_changes_no_entitys_time() {
    nothing_is_early_or_late("c", "p");
}

/// Each of them by the clock of its shard, which is another one after the merge.
#[test]
fn request_ids_are_remembered_over_merges_of_clocks_far_apart() {
    for ahead in ["c", "p"] {
        let mut cluster = Cluster::new(3);
        cluster.run(200);
        cluster.split("m", 1_000);
        cluster.passes(ahead, MONTH);
        for (n, key) in KEYS.iter().enumerate() {
            assert!(matches!(cluster.put(1, n as u128 + 1, key), Response::Written(_)));
        }
        cluster.merge("c", "p", 2_000);
        cluster.split("t", 3_000);
        cluster.passes("p", Span::secs(90));
        cluster.merge("p", "x", 4_000);
        // The nodes sleep; the merged shard's leader books that.
        cluster.now = cluster.now + Span::millis(REQUEST_DEDUP.as_millis() - 100_000);
        cluster.run(40);
        for (n, key) in KEYS.iter().enumerate() {
            match cluster.put(1, n as u128 + 1, key) {
                Response::Written(written) => assert!(written.repeated, "{key} was written twice"),
                other => panic!("{key}: {other:?}"),
            }
        }
        // Twice the time: they may go.
        cluster.now = cluster.now + Span::millis(2 * REQUEST_DEDUP.as_millis());
        cluster.run(40);
        for key in KEYS {
            assert!(matches!(cluster.put(1, 100, key), Response::Written(_)));
        }
        for (n, key) in KEYS.iter().enumerate() {
            match cluster.put(1, n as u128 + 1, key) {
                Response::Written(written) => assert!(!written.repeated, "{key} is remembered for too long"),
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}
