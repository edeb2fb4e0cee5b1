//! Services that are dropped: only where nothing needs them, all of them or nothing, and for good.
use super::*;
use crate::daemon::core::dropping::epoch_of;
use crate::protocol::id::{DIRECTORY_SHARD, Epoch};
use crate::protocol::message::Message;
use crate::protocol::op::{Goal, Scope, Settings};
use crate::protocol::operator::{Order, PlacementRule};
use crate::protocol::schema::bundle::NewSchema;
use crate::protocol::shard_map::{ServiceInfo, ShardDescriptor, ShardMap};

impl Cluster {
    fn map_at(&self, node: u64) -> &ShardMap {
        self.nodes[&NodeId(node)].0.map()
    }

    fn service(&self, name: &str) -> ServiceInfo {
        self.map_at(1).services.get(name).expect("a service").clone()
    }

    fn shards_of(&self, node: u64, name: &str) -> Vec<ShardDescriptor> {
        let shards = self.map_at(node).shards();
        shards.filter(|shard| shard.range.service() == name).cloned().collect()
    }

    fn create(&mut self, id: u128, cuts: &[&str]) {
        let request = Request::CreateService {
            name: "click".into(),
            replicas: 3,
            cuts: cuts.iter().map(|cut| Position::new("click", cut)).collect(),
            dry_run: false,
            id: RequestId(id),
        };
        assert_eq!(self.ask(1, request), Response::Asked);
        self.run(200);
    }

    fn change(&mut self, id: u128, key: &str, change: Change) -> Response {
        let write = Write {
            service: "click".into(),
            key: key.into(),
            id: RequestId(id),
            condition: Condition::Always,
            change,
        };
        self.ask(2, Request::Write(write))
    }

    fn drop_service(&mut self, service: &ServiceInfo, dry_run: bool) -> Result<(), WireError> {
        let request = Request::DropService {
            name: service.name.clone(),
            number: service.number,
            dry_run,
            id: RequestId(99),
        };
        match self.ask(1, request) {
            Response::Asked => Ok(()),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn blockers(&mut self, service: &ServiceInfo) -> Vec<String> {
        let told = |error: WireError| {
            assert_eq!(error.code, Code::UnsafeOp, "{error:?}");
            assert!(error.text.contains("nothing was changed"), "{}", error.text);
            assert!(
                error.blockers.iter().all(|blocker| !blocker.next.is_empty()),
                "{error:?}"
            );
            let mut codes: Vec<String> = error.blockers.into_iter().map(|blocker| blocker.code).collect();
            codes.dedup();
            codes
        };
        let dry = self.drop_service(service, true).map_err(told).expect_err("refused");
        let real = self.drop_service(service, false).map_err(told).expect_err("refused");
        assert_eq!(dry, real, "the same checks");
        dry
    }

    fn schemas(&mut self, id: u128, all: &[(&str, &str, u64)]) -> Response {
        let one = |&(service, text, expected): &(&str, &str, u64)| NewSchema {
            service: service.into(),
            text: text.into(),
            expected,
        };
        let request = Request::SetSchemas {
            schemas: all.iter().map(one).collect(),
            allow_breaking: true,
            because: String::new(),
            dry_run: false,
            id: RequestId(id),
        };
        self.ask(1, request)
    }

    /// Copies of the service's shards on a node, and rows of it.
    fn remains(&mut self, node: u64, name: &str) -> (usize, usize) {
        let copies = match self.ask(node, Request::Status) {
            Response::Status(status) => status.replicas,
            other => panic!("{other:?}"),
        };
        let copies = copies.iter().filter(|copy| copy.shard.range.service() == name).count();
        let keys = self.nodes[&NodeId(node)].1.0.keys();
        let is_of = |key: &&Bytes| split_row_key(key).is_some_and(|(position, _, _)| position.parts().0 == name);
        (copies, keys.filter(is_of).count())
    }
}

fn put() -> Change {
    Change::Put(Bytes::from_static(b"{}"))
}

fn settled() -> Cluster {
    let mut cluster = Cluster::with(3, true);
    cluster.run(200);
    cluster
}

#[test]
fn an_empty_service_goes_for_good_and_its_name_may_be_used_again() {
    let mut cluster = settled();
    cluster.create(1, &["g", "t"]);
    let old = cluster.service("click");
    let shards = cluster.shards_of(1, "click");
    assert_eq!(shards.len(), 3);
    assert!(matches!(cluster.change(2, "a", put()), Response::Written(_)));
    assert!(matches!(cluster.change(3, "z", put()), Response::Written(_)));
    assert_eq!(cluster.blockers(&old), ["NOT_EMPTY"]);
    assert!(matches!(cluster.change(4, "a", Change::Delete), Response::Written(_)));
    assert_eq!(cluster.blockers(&old), ["NOT_EMPTY"]);
    assert!(matches!(cluster.change(5, "z", Change::Delete), Response::Written(_)));
    assert_eq!(cluster.drop_service(&old, true), Ok(()));
    cluster.run(200);
    assert_eq!(cluster.shards_of(1, "click"), shards, "a dry run changes nothing");
    assert!(cluster.remains(1, "click").1 > 0, "deleted entities are remembered");

    assert_eq!(cluster.drop_service(&old, false), Ok(()));
    cluster.run(400);
    for node in 1..=3 {
        assert!(!cluster.map_at(node).services.contains_key("click"), "n{node}");
        assert_eq!(cluster.shards_of(node, "click"), [], "n{node}");
        assert_eq!(cluster.remains(node, "click"), (0, 0), "n{node}");
    }
    let gone = |response: &Response| matches!(response, Response::Error(error) if error.code == Code::NoService);
    let refused = cluster.change(6, "a", put());
    assert!(gone(&refused), "{refused:?}");
    // Late copies of the order and of what it led to.
    assert_eq!(
        cluster.drop_service(&old, false).map_err(|error| error.code),
        Err(Code::NoService)
    );
    // Also where nobody remembers these very shards.
    let mut map = ShardMap::default();
    map.learn(&cluster.map_at(2).view());
    assert!(
        shards.iter().all(|shard| !map.learn_shard(shard)),
        "late news of a shard is no news"
    );

    cluster.create(7, &["m"]);
    let new = cluster.service("click");
    let again = cluster.shards_of(2, "click");
    assert_eq!(again.len(), 2);
    assert!(
        again
            .iter()
            .all(|new| shards.iter().all(|old| new.id > old.id && new.epoch > old.epoch)),
        "{again:?}"
    );
    match cluster.change(2, "a", put()) {
        Response::Written(written) => assert_eq!((written.version, written.repeated), (1, false)),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        cluster.drop_service(&old, false).map_err(|error| error.code),
        Err(Code::NoService)
    );
    let late = Request::FreezeShard {
        shard: shards[0].id,
        epoch: shards[0].epoch,
        into: DIRECTORY_SHARD,
        left_epoch: epoch_of(7),
        id: RequestId(8),
    };
    assert!(matches!(cluster.ask(1, late), Response::Error(_)));
    cluster.run(400);
    assert_eq!(cluster.service("click"), new);
    assert_eq!(cluster.remains(1, "click"), (2, 1));
}

#[test]
fn a_service_that_something_needs_stays() {
    let mut cluster = settled();
    // Nothing else is to move meanwhile: this cluster has no snapshots.
    let settings = Settings {
        auto_rebalance: false,
        ..Settings::default()
    };
    let id = RequestId(98);
    assert_eq!(cluster.ask(1, Request::SetSettings { settings, id }), Response::Asked);
    cluster.create(1, &[]);
    let click = cluster.service("click");
    let shard = cluster.shards_of(1, "click")[0].id;
    let campaign = r#"
        service = "campaign"
        fields.name = { type = "string" }
        child_relation.clicks = { service = "click", key = "key" }"#;
    let with = r#"
        service = "click"
        fields.kind = { type = "string", index = true }
        parent_relation.campaign = { service = "campaign" }"#;
    let set = cluster.schemas(2, &[("campaign", campaign, 0), ("click", with, 0)]);
    assert!(matches!(set, Response::Schemas(_)), "{set:?}");
    let rule = PlacementRule {
        name: "near".into(),
        service: Some("click".into()),
        ..PlacementRule::default()
    };
    let order = Order::SetRule { rule, unmet: true };
    let id = RequestId(3);
    assert!(matches!(
        cluster.ask(1, Request::Order { order, id }),
        Response::Told(_)
    ));
    let held = Request::HoldShard {
        shard,
        for_ms: 600_000,
        id: RequestId(4),
    };
    assert!(matches!(cluster.ask(1, held), Response::Shard(_)));
    cluster.run(100);
    assert_eq!(
        cluster.blockers(&click),
        ["NAMED_BY_SCHEMA", "HAS_INDEX", "FROZEN", "HAS_RULE"]
    );
    let index = cluster.service("click.by-kind");
    assert_eq!(cluster.blockers(&index), ["NAMED_BY_SCHEMA"]);

    // One after the other they are out of the way.
    let thaw = Request::HoldShard {
        shard,
        for_ms: 0,
        id: RequestId(5),
    };
    assert!(matches!(cluster.ask(1, thaw), Response::Shard(_)));
    let (order, id) = (Order::RemoveRule("near".into()), RequestId(6));
    assert!(matches!(
        cluster.ask(1, Request::Order { order, id }),
        Response::Told(_)
    ));
    let alone = r#"
        service = "campaign"
        fields.name = { type = "string" }"#;
    let without = r#"
        service = "click"
        fields.kind = { type = "string" }"#;
    let set = cluster.schemas(7, &[("campaign", alone, 1), ("click", without, 1)]);
    assert!(matches!(set, Response::Schemas(_)), "{set:?}");
    cluster.run(100);
    assert_eq!(cluster.blockers(&click), ["HAS_INDEX"]);
    assert_eq!(cluster.drop_service(&index, false), Ok(()));
    cluster.run(200);
    let scatter = Goal::SetReplicas {
        of: Scope::Service("click".into()),
        replicas: Some(1),
    };
    let start = Request::StartOp {
        goal: scatter,
        protect_p99_us: None,
        pace: None,
        because: String::new(),
        at: None,
        undoes: None,
        id: RequestId(8),
    };
    assert!(matches!(cluster.ask(1, start), Response::Op(_)));
    let blockers = cluster.blockers(&click);
    assert!(blockers.iter().all(|code| code == "OP_UNDER_WAY"), "{blockers:?}");
    cluster.run(600);
    assert_eq!(cluster.drop_service(&click, false), Ok(()));
    cluster.run(200);
    assert!(!cluster.map_at(2).services.contains_key("click"));

    // Schemas go on from a later revision, and every node hears of them.
    let set = cluster.schemas(
        9,
        &[("campaign", &format!("{alone}\nfields.note = {{ type = \"json\" }}"), 2)],
    );
    assert!(matches!(set, Response::Schemas(_)), "{set:?}");
    cluster.run(200);
    for node in 1..=3 {
        let map = cluster.map_at(node);
        assert!(!map.schemas.contains_key("click"), "n{node}");
        assert_eq!(map.schemas["campaign"].version, 3, "n{node}");
    }
}

#[test]
fn a_shard_with_something_left_in_it_is_not_closed_and_the_others_open_again() {
    let mut cluster = settled();
    cluster.create(1, &["g", "t"]);
    let click = cluster.service("click");
    // The order is checked, then somebody writes, then the directory begins.
    assert_eq!(cluster.drop_service(&click, true), Ok(()));
    assert!(matches!(cluster.change(2, "k", put()), Response::Written(_)));
    let leader = cluster.leader_of(DIRECTORY_SHARD);
    let revision = cluster.map_at(1).schema_revision();
    let begin = super::super::directory::DirectoryCommand::BeginDrop {
        name: "click".into(),
        number: click.number,
        revision,
    };
    let (node, _) = cluster.nodes.get_mut(&leader).expect("there");
    node.propose_own(77, begin);
    for _ in 0..200 {
        cluster.run(2);
        if cluster.service("click").number != click.number {
            break;
        }
    }
    let kept = cluster.service("click");
    assert!(kept.kept_because.contains("click/k is there"), "{kept:?}");
    assert_eq!(kept.dropping, None);
    cluster.run(200);
    assert!(cluster.shards_of(1, "click").iter().all(|shard| shard.frozen.is_none()));
    for (id, key) in [(3, "a"), (4, "k"), (5, "z")] {
        assert!(matches!(cluster.change(id, key, put()), Response::Written(_)), "{key}");
    }
    assert_eq!(
        cluster.drop_service(&click, false).map_err(|error| error.code),
        Err(Code::NoService),
        "a late copy"
    );

    // A late copy of a close finds another epoch, or is taken back.
    for (id, key) in [(6, "a"), (7, "k"), (8, "z")] {
        assert!(
            matches!(cluster.change(id, key, Change::Delete), Response::Written(_)),
            "{key}"
        );
    }
    let first = cluster.shards_of(1, "click")[0].clone();
    let close = |epoch: Epoch| Request::FreezeShard {
        shard: first.id,
        epoch,
        into: DIRECTORY_SHARD,
        left_epoch: epoch_of(kept.number - 1),
        id: RequestId(10),
    };
    assert!(matches!(cluster.ask(1, close(Epoch(1))), Response::Error(_)));
    assert!(matches!(cluster.ask(1, close(first.epoch)), Response::Shard(_)));
    cluster.run(200);
    assert!(
        matches!(cluster.change(9, "a", put()), Response::Written(_)),
        "it is open again"
    );
}

#[test]
fn a_node_that_was_away_lets_go_of_its_copies_before_it_begins_with_new_ones() {
    let mut cluster = settled();
    cluster.create(1, &["m"]);
    let old = cluster.service("click");
    let shards = cluster.shards_of(1, "click");
    assert!(matches!(cluster.change(2, "a", put()), Response::Written(_)));
    assert!(matches!(cluster.change(3, "a", Change::Delete), Response::Written(_)));
    cluster.run(100);
    let before = cluster.remains(3, "click");
    assert!(before.0 == 2 && before.1 > 0, "{before:?}");
    let away = cluster.nodes.remove(&NodeId(3)).expect("there");
    cluster.run(200);
    assert_eq!(cluster.drop_service(&old, false), Ok(()));
    cluster.run(400);
    assert!(!cluster.map_at(1).services.contains_key("click"));
    cluster.create(4, &[]);
    match cluster.change(2, "a", put()) {
        Response::Written(written) => assert_eq!((written.version, written.repeated), (1, false)),
        other => panic!("{other:?}"),
    }
    cluster.nodes.insert(NodeId(3), away);
    // It hears of the end and of the new beginning at once, and before it hears from the new shard's leader: that one would have
    // to send a snapshot.
    let view = cluster.map_at(1).view();
    let input = Input::Received {
        from: cluster.leader_of(DIRECTORY_SHARD),
        messages: vec![Message::Map(view)],
    };
    cluster.inbox.push_back((NodeId(3), input));
    for _ in 0..10 {
        cluster.inbox.push_back((NodeId(3), Input::Ticked));
        cluster.deliver();
        cluster.now = cluster.now + TICK;
    }
    cluster.run(600);
    let new = cluster.shards_of(3, "click");
    assert!(
        new.len() == 1 && shards.iter().all(|old| old.id != new[0].id),
        "{new:?}"
    );
    assert_eq!(cluster.remains(1, "click"), (1, 1));
    assert_eq!(
        cluster.remains(3, "click"),
        (1, 1),
        "the new shard's row, and none of the old ones'"
    );
}

impl Cluster {
    fn leader_of(&self, shard: ShardId) -> NodeId {
        self.map_at(1).leader(shard).expect("a leader").1
    }
}
