//! What operators ask, order and begin: plans at their epoch, rules, pins, cuts, the router, who is let in.
use super::*;
use crate::daemon::core::directory::{Directory, DirectoryCommand};
use crate::daemon::core::time::Span;
use crate::protocol::id::DIRECTORY_SHARD;
use crate::protocol::message::{Message, Report};
use crate::protocol::op::{Goal, Intent, Op, OpState, OpView, Scope, Settings};
use crate::protocol::operator::*;
use crate::protocol::shard_map::ShardMap;

impl Cluster {
    /// A cluster whose directory leader has heard from everybody.
    fn settled(count: u64) -> Self {
        let mut cluster = Self::with(count, true);
        cluster.run(200);
        cluster
    }

    fn question(&mut self, question: Question) -> Result<Told, WireError> {
        match self.ask(1, Request::Question(question)) {
            Response::Told(told) => Ok(*told),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn plan(&mut self, goal: Goal, at: Option<u64>) -> Result<PlanView, WireError> {
        match self.question(Question::Plan { goal, pace: None, at })? {
            Told::Plan(plan) => Ok(*plan),
            other => panic!("{other:?}"),
        }
    }

    fn order(&mut self, id: u128, order: Order) -> Response {
        let id = RequestId(id);
        self.ask(2, Request::Order { order, id })
    }

    fn start(&mut self, id: u128, goal: Goal, at: Option<u64>) -> Result<Op, WireError> {
        let request = Request::StartOp {
            goal,
            protect_p99_us: None,
            pace: None,
            because: String::new(),
            at,
            undoes: None,
            id: RequestId(id),
        };
        match self.ask(3, request) {
            Response::Op(op) => Ok(*op),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn op(&mut self, op: &Op) -> OpView {
        match self.ask(1, Request::ListOps { all: true }) {
            Response::Ops(ops) => ops.into_iter().find(|shown| shown.op.id == op.id).expect("known"),
            other => panic!("{other:?}"),
        }
    }

    fn until_over(&mut self, op: &Op) -> OpView {
        for _ in 0..200 {
            let shown = self.op(op);
            if shown.op.state.is_over() {
                return shown;
            }
            self.run(4);
        }
        panic!("not over: {:?}", self.op(op));
    }

    fn map_of(&self, node: u64) -> &ShardMap {
        self.nodes[&NodeId(node)].0.map()
    }

    fn campaign(&self) -> ShardId {
        self.map_of(1)
            .find(&Position::new("campaign", "m"))
            .expect("a shard")
            .id
    }
}

fn drain(node: u64) -> Goal {
    Goal::Drain {
        node: NodeId(node),
        everything: false,
    }
}

#[test]
fn a_plan_is_applied_at_its_epoch_or_not_at_all() {
    let mut cluster = Cluster::settled(3);
    let plan = cluster.plan(drain(3), None).expect("possible");
    // Heartbeats, reports and terms are no changes that a plan is about.
    cluster.run(400);
    assert_eq!(
        cluster
            .plan(drain(3), Some(plan.config_epoch))
            .expect("the same")
            .config_epoch,
        plan.config_epoch
    );

    let split = Goal::Split {
        shard: cluster.campaign(),
        at: vec!["m".into()],
    };
    let split = cluster.start(1, split, None).expect("begun");
    cluster.until_over(&split);
    let stale = cluster.start(2, drain(3), Some(plan.config_epoch)).expect_err("stale");
    assert_eq!(stale.code, Code::StalePlan);
    assert!(stale.text.contains("nothing was changed"), "{}", stale.text);
    assert!(
        stale
            .blockers
            .iter()
            .any(|change| change.text.contains("was split at campaign/m")),
        "{:?}",
        stale.blockers
    );
    assert_eq!(
        cluster.plan(drain(3), Some(plan.config_epoch)).expect_err("stale").code,
        Code::StalePlan
    );
    assert_eq!(cluster.map_of(1).nodes[&NodeId(3)].overlay.intent, Intent::Stay);

    let fresh = cluster.plan(drain(3), None).expect("possible").config_epoch;
    let op = cluster.start(3, drain(3), Some(fresh)).expect("begun");
    assert_eq!(cluster.map_of(1).nodes[&NodeId(3)].overlay.intent, Intent::DrainLeaders);
    // Whoever applies it again attaches, although the epoch has moved on by it.
    assert_eq!(cluster.start(3, drain(3), Some(fresh)).expect("attached").id, op.id);
}

#[test]
fn a_drain_for_a_restart_takes_no_copy_of_the_directory_away() {
    let mut cluster = Cluster::settled(3);
    let op = cluster.start(1, drain(3), None).expect("begun");
    cluster.run(400);
    let shown = cluster.op(&op);
    assert_eq!((shown.op.state, shown.blocked.len()), (OpState::Done, 0), "{shown:?}");
    let directory = cluster.map_of(1).shard(ShardId(0)).expect("known");
    assert_eq!((directory.replicas.len(), directory.epoch.0), (3, 1));
}

#[test]
fn a_split_is_an_operation_and_can_be_taken_back() {
    let mut cluster = Cluster::settled(3);
    for (id, key) in ["a", "f", "m", "s", "z"].iter().enumerate() {
        assert!(matches!(cluster.put(1, id as u128 + 10, key), Response::Written(_)));
    }
    let shard = cluster.campaign();
    let cuts = |keys: &[&str]| Goal::Split {
        shard,
        at: keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    for (keys, code) in [
        (&["s", "f"][..], Code::BadSplit),
        (&[""], Code::BadRequest),
        (&[], Code::BadSplit),
    ] {
        assert_eq!(
            cluster.start(1, cuts(keys), None).expect_err("refused").code,
            code,
            "{keys:?}"
        );
    }
    let op = cluster.start(2, cuts(&["f", "s"]), None).expect("begun");
    let shown = cluster.until_over(&op);
    assert_eq!((shown.op.state, shown.done, shown.total), (OpState::Done, 2, 2));
    let holder = |cluster: &Cluster, key: &str| {
        cluster
            .map_of(1)
            .find(&Position::new("campaign", key))
            .expect("a shard")
            .id
    };
    let parts = [holder(&cluster, "a"), holder(&cluster, "f"), holder(&cluster, "s")];
    assert_eq!(parts[0], shard);
    assert!(parts[0] != parts[1] && parts[1] != parts[2]);
    assert_eq!(cluster.list(2), ["a", "f", "m", "s", "z"]);

    let merge = Goal::Merge {
        left: parts[0],
        right: parts[1],
    };
    let op = cluster.start(3, merge, None).expect("begun");
    assert_eq!(op.inverse, Some(cuts(&["f"])));
    assert_eq!(cluster.until_over(&op).op.state, OpState::Done);
    let undo = Request::StartOp {
        goal: op.inverse.clone().expect("one"),
        protect_p99_us: None,
        pace: None,
        because: String::new(),
        at: None,
        undoes: Some(op.id),
        id: RequestId(4),
    };
    let Response::Op(undo) = cluster.ask(1, undo) else {
        panic!()
    };
    assert_eq!(cluster.until_over(&undo).op.state, OpState::Done);
    assert_eq!(cluster.op(&op).op.state, OpState::Undone);
    assert_eq!(cluster.list(3), ["a", "f", "m", "s", "z"]);
}

#[test]
fn a_rule_that_can_not_be_met_is_refused_unless_it_is_meant() {
    let mut cluster = Cluster::settled(3);
    let rule = |zones: u32, replicas: Option<u32>| PlacementRule {
        name: "campaign".into(),
        service: Some("campaign".into()),
        zones,
        replicas,
        ..PlacementRule::default()
    };
    let set = |rule: PlacementRule, unmet: bool| Order::SetRule { rule, unmet };
    let codes = |response: Response| match response {
        Response::Error(error) => error.blockers.iter().map(|b| b.code.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(codes(cluster.order(1, set(rule(2, None), false))), ["NO_TARGET_ZONE"]);
    assert_eq!(
        codes(cluster.order(2, set(rule(1, Some(5)), false))),
        ["NO_TARGET_NODE"]
    );
    let unknown = PlacementRule {
        service: Some("nothing".into()),
        ..rule(1, None)
    };
    assert!(matches!(cluster.order(3, set(unknown, true)), Response::Error(error) if error.code == Code::NoService));
    assert!(cluster.map_of(1).policy.rules.is_empty(), "nothing was changed");

    let before = cluster.plan(drain(3), None).expect("possible").config_epoch;
    assert!(matches!(cluster.order(4, set(rule(2, None), true)), Response::Told(_)));
    assert_eq!(cluster.plan(drain(3), None).expect("possible").config_epoch, before + 1);
    let Ok(Told::Rules { rules, .. }) = cluster.question(Question::Rules) else {
        panic!()
    };
    let told = rules.iter().find(|told| told.is_set).expect("the rule");
    assert_eq!((told.scope.as_str(), told.shards, told.now.0), ("campaign", 1, false));
    assert!(told.now.1.contains("too few zones"), "{}", told.now.1);
    cluster.run(100);
    assert_eq!(cluster.map_of(3).policy.rules.len(), 1, "every node follows it");
    assert!(matches!(
        cluster.order(5, Order::RemoveRule("campaign".into())),
        Response::Told(_)
    ));
    let again = cluster.order(6, Order::RemoveRule("campaign".into()));
    assert!(matches!(again, Response::Error(error) if error.code == Code::NoSuchRule));
}

#[test]
fn fewer_copies_are_taken_away_and_more_are_refused_where_nobody_can_hold_them() {
    let mut cluster = Cluster::settled(3);
    // Nothing else is to move meanwhile: this cluster has no snapshots.
    let settings = Settings {
        auto_rebalance: false,
        ..Settings::default()
    };
    let id = RequestId(99);
    assert_eq!(cluster.ask(1, Request::SetSettings { settings, id }), Response::Asked);
    let of = Scope::Shard(cluster.campaign());
    let copies = |replicas: Option<u32>| Goal::SetReplicas {
        of: of.clone(),
        replicas,
    };
    let refused = cluster.start(1, copies(Some(5)), None).expect_err("three nodes");
    assert_eq!(refused.code, Code::UnsafeOp);
    assert!(!refused.blockers.is_empty() && refused.blockers.iter().all(|b| !b.next.is_empty()));
    assert_eq!(
        cluster.start(2, copies(Some(2)), None).expect_err("even").code,
        Code::BadRequest
    );
    let directory = Goal::SetReplicas {
        of: Scope::Shard(ShardId(0)),
        replicas: Some(1),
    };
    let refused = cluster
        .start(1, directory, None)
        .expect_err("nobody would carry it out");
    assert_eq!(refused.code, Code::BadChange);
    let op = cluster.start(3, copies(Some(1)), None).expect("begun");
    assert_eq!(op.inverse, Some(copies(None)));
    let shown = cluster.until_over(&op);
    assert_eq!((shown.op.state, shown.done, shown.total), (OpState::Done, 2, 2));
    cluster.run(100);
    let shard = cluster.campaign();
    let known: Vec<_> = (1..=3)
        .map(|node| cluster.map_of(node).shard(shard).expect("known").clone())
        .collect();
    assert!(known.iter().all(|known| known.replicas.len() == 1), "{known:#?}");
    // What was laid down for the whole holds for its parts.
    let split = Goal::Split {
        shard,
        at: vec!["g".into()],
    };
    let split = cluster.start(4, split, None).expect("begun");
    cluster.until_over(&split);
    cluster.run(60);
    assert_eq!(
        cluster.map_of(1).policy.marks.len(),
        2,
        "{:?}",
        cluster.map_of(1).policy.marks
    );
    assert!(matches!(cluster.put(1, 77, "k"), Response::Written(_)));
}

#[test]
fn a_pin_holds_the_lead_until_it_runs_out() {
    let mut cluster = Cluster::settled(3);
    let shard = cluster.campaign();
    let leader = |cluster: &Cluster| cluster.map_of(1).leader(shard).map(|(_, node)| node).expect("a leader");
    let to = [1, 2, 3]
        .map(NodeId)
        .into_iter()
        .find(|&node| node != leader(&cluster))
        .expect("three");
    let until_ms = cluster.clock().wall_ms + 20_000;
    let mark = |change| Order::Mark { shard, change };
    let unknown = cluster.order(
        1,
        mark(MarkChange::Pin(Pin {
            node: NodeId(9),
            until_ms,
        })),
    );
    assert!(matches!(unknown, Response::Error(error) if error.code == Code::BadTarget));
    let past = cluster.order(2, mark(MarkChange::Pin(Pin { node: to, until_ms: 1 })));
    assert!(matches!(past, Response::Error(error) if error.code == Code::BadRequest));
    assert!(matches!(
        cluster.order(3, mark(MarkChange::Pin(Pin { node: to, until_ms }))),
        Response::Told(_)
    ));
    cluster.run(120);
    assert_eq!(leader(&cluster), to);
    let away = [1, 2, 3]
        .map(NodeId)
        .into_iter()
        .find(|&node| node != to)
        .expect("three");
    assert_eq!(
        cluster.ask(1, Request::TransferLeader { shard, to: away }),
        Response::Asked
    );
    cluster.run(160);
    assert_eq!(leader(&cluster), to, "it comes back");
    while cluster.clock().wall_ms <= until_ms {
        cluster.run(40);
    }
    cluster.run(80);
    assert!(cluster.map_of(2).policy.marks.is_empty(), "it ran out by itself");
}

#[test]
fn a_host_that_is_not_let_in_is_nobody() {
    let mut cluster = Cluster::settled(3);
    let host = |name: &str| {
        let mut info = cluster.map_of(1).nodes[&NodeId(1)].clone();
        info.id = NodeId(0);
        info.name = name.to_owned();
        info.address = format!("127.0.0.1:{name}");
        info.store_id = 0;
        info.membership = Membership::Pending;
        info
    };
    let (first, second) = (host("n4"), host("n5"));
    let register = |cluster: &mut Cluster, info: &NodeInfo, id: u128| {
        let node = Box::new(info.clone());
        cluster.ask(
            1,
            Request::RegisterNode {
                node,
                id: RequestId(id),
            },
        )
    };
    let Response::Registered(known) = register(&mut cluster, &first, 1) else {
        panic!()
    };
    assert_eq!((known.id, known.membership), (NodeId(4), Membership::Pending));
    let Response::Registered(again) = register(&mut cluster, &first, 1) else {
        panic!()
    };
    assert_eq!(again.id, NodeId(4), "asking again is the same host");
    // Its store can't make it a member.
    let mut started = known.clone();
    started.store_id = 7;
    let refused = register(&mut cluster, &started, 2);
    assert!(matches!(refused, Response::Error(error) if error.code == Code::NodePending));
    // Nothing is put on it, and what it says is not heard.
    let shard = cluster.campaign();
    let refused = cluster
        .start(3, Goal::AddReplica { shard, to: NodeId(4) }, None)
        .expect_err("pending");
    assert_eq!(refused.code, Code::BadTarget);
    let report = crate::protocol::message::Report {
        node: NodeId(4),
        store_id: 7,
        address: known.address.clone(),
        version: String::new(),
        map_version: 0,
        schema_revision: Default::default(),
        leads: vec![(shard, 1_000)],
        news: Vec::new(),
        load: None,
        frozen: Vec::new(),
        writes: Default::default(),
        copy_rate: 0,
        copies: None,
    };
    let input = Input::Received {
        from: NodeId(4),
        messages: vec![crate::protocol::message::Message::Report(report)],
    };
    cluster.inbox.push_back((NodeId(1), input));
    cluster.run(4);
    assert_ne!(cluster.map_of(1).leader(shard).map(|(_, node)| node), Some(NodeId(4)));

    let admit = |node: u64, yes: bool| Order::Admit {
        node: NodeId(node),
        yes,
    };
    assert!(
        matches!(cluster.order(4, admit(4, true)), Response::Registered(info) if info.membership == Membership::Joining)
    );
    assert!(
        matches!(register(&mut cluster, &started, 5), Response::Registered(info) if info.membership == Membership::Active)
    );

    assert!(matches!(register(&mut cluster, &second, 6), Response::Registered(info) if info.id == NodeId(5)));
    assert!(
        matches!(cluster.order(7, admit(5, false)), Response::Registered(info) if info.membership == Membership::Gone)
    );
    let sent_away = register(&mut cluster, &second, 8);
    assert!(
        matches!(sent_away, Response::Error(error) if error.code == Code::Removed),
        "its host goes on asking"
    );
    let member = cluster.order(9, admit(1, false));
    assert!(matches!(member, Response::Error(error) if error.code == Code::UnsafeOp));
}

#[test]
fn the_router_is_set_for_everybody() {
    let mut cluster = Cluster::settled(3);
    let set = |hops| {
        Order::SetRouter(RouterSettings {
            hops,
            ..RouterSettings::default()
        })
    };
    assert!(matches!(cluster.order(1, set(0)), Response::Error(error) if error.code == Code::BadRequest));
    assert_eq!(cluster.order(2, set(7)), Response::Asked);
    cluster.now = cluster.now + Span::millis(1);
    cluster.run(100);
    for node in 1..=3 {
        assert_eq!(cluster.map_of(node).policy.router.hops, 7, "n{node}");
    }
}

#[test]
fn what_was_laid_down_outlives_a_restart() {
    let mut cluster = Cluster::settled(3);
    let rule = PlacementRule {
        name: "eu".into(),
        service: Some("campaign".into()),
        prefix: Some("eu-".into()),
        zones: 1,
        ..PlacementRule::default()
    };
    assert!(matches!(
        cluster.order(1, Order::SetRule { rule, unmet: false }),
        Response::Told(_)
    ));
    let shard = cluster.campaign();
    let sticky = MarkChange::Sticky(cluster.clock().wall_ms + 1_000_000);
    assert!(matches!(
        cluster.order(2, Order::Mark { shard, change: sticky }),
        Response::Told(_)
    ));
    cluster.run(40);
    let (node, rows) = &cluster.nodes[&NodeId(2)];
    let kept = crate::daemon::core::directory::Directory::load(rows).expect("readable");
    assert_eq!(kept.map.policy, node.map().policy);
    assert_eq!((kept.map.policy.rules.len(), kept.map.policy.marks.len()), (1, 1));
    assert!(kept.history.epoch() > 0);
}

/// The directory's leader may be asked before its first command is applied.
#[test]
fn nobody_registers_before_the_founders() {
    let (mut directory, mut state) = (Directory::default(), Rows::default());
    let host = |id, name: &str| NodeInfo {
        id: NodeId(id),
        name: name.to_owned(),
        address: format!("{name}:7400"),
        zone: String::new(),
        membership: Membership::Joining,
        store_id: 0,
        version: String::new(),
        overlay: Default::default(),
    };
    let join = DirectoryCommand::Register(host(0, "new"));
    let early = directory.apply(&join, 0, &mut state);
    assert!(matches!(early, Response::Error(error) if error.code == Code::NotServing));
    let found = DirectoryCommand::Found {
        nodes: vec![host(1, "a"), host(2, "b")],
        services: Vec::new(),
        shards: Vec::new(),
    };
    directory.apply(&found, 0, &mut state);
    let joined = directory.apply(&join, 0, &mut state);
    assert!(matches!(joined, Response::Registered(info) if info.id == NodeId(3)));
}

#[test]
fn a_drain_for_a_restart_plans_no_copy_away() {
    let mut cluster = Cluster::settled(3);
    let drain = Goal::Drain {
        node: NodeId(2),
        everything: false,
    };
    let plan = cluster.plan(drain, None).expect("possible");
    assert!(plan.steps.iter().all(|step| step.contains("lead")), "{:?}", plan.steps);
}

/// A node that starts again knows the members it was founded with, and none of those need have the directory any more.
#[test]
fn who_knows_nothing_yet_is_told_by_anybody() {
    let mut cluster = Cluster::settled(3);
    let leads = |cluster: &Cluster, node: u64| cluster.nodes[&NodeId(node)].0.leads_directory();
    let (asked, fresh) = match (1..=3).find(|&node| leads(&cluster, node)) {
        Some(1) => (2, 3),
        Some(2) => (1, 3),
        _ => (1, 2),
    };
    let mut told = |map_version| {
        let report = Report {
            node: NodeId(fresh),
            map_version,
            ..Report::default()
        };
        let clock = cluster.clock();
        let (node, rows) = cluster.nodes.get_mut(&NodeId(asked)).expect("a member");
        let mut effects = Effects::new();
        let input = Input::Received {
            from: NodeId(fresh),
            messages: vec![Message::Report(report)],
        };
        node.step(clock, input, rows, &mut effects);
        node.settle(clock, rows, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Send {
                to,
                message: Message::Map(view),
            } if to == NodeId(fresh) => Some(view),
            _ => None,
        })
    };
    let view = told(0).expect("a map");
    assert!(
        view.version > 0 && view.nodes.iter().all(|info| info.store_id != 0),
        "{view:?}"
    );
    assert_eq!((view.nodes.len(), view.shards.len()), (3, 2));
    // Whoever knows the directory's leader hears the rest from there.
    assert_eq!(told(view.version), None);
}

#[test]
fn a_frozen_shard_takes_no_writes_until_it_is_thawed_or_time_is_up() {
    let mut cluster = Cluster::settled(3);
    let shard = cluster.campaign();
    let hold = |cluster: &mut Cluster, for_ms: u64, id: u128| {
        let id = RequestId(id);
        cluster.ask(2, Request::HoldShard { shard, for_ms, id })
    };
    let code = |response: Response| match response {
        Response::Error(error) => {
            assert!(error.text.contains("nothing was changed"), "{}", error.text);
            Some(error.code)
        }
        _ => None,
    };
    assert_eq!(code(cluster.put(1, 1, "k1")), None);
    let held = match hold(&mut cluster, 20_000, 2) {
        Response::Shard(shard) => shard.held.expect("frozen"),
        other => panic!("{other:?}"),
    };
    assert!(held.ends_ms > cluster.clock().wall_ms, "{held:?}");
    assert_eq!(code(cluster.put(3, 3, "k3")), Some(Code::ShardHeld));
    assert_eq!(cluster.list(1), ["k1"], "reads go on, and the write did nothing");

    // Both halves have it; a merge of them waits.
    let split = Goal::Split {
        shard,
        at: vec!["m".into()],
    };
    let split = cluster.start(4, split, None).expect("begun");
    assert_eq!(cluster.until_over(&split).op.state, OpState::Done);
    assert_eq!(code(cluster.put(1, 5, "z")), Some(Code::ShardHeld));
    let right = cluster
        .map_of(1)
        .find(&Position::new("campaign", "z"))
        .expect("a shard")
        .id;
    let merge = cluster
        .start(6, Goal::Merge { left: shard, right }, None)
        .expect("begun");
    cluster.run(200);
    assert_eq!(cluster.op(&merge).op.state, OpState::Running, "it waits");
    assert_eq!(cluster.map_of(1).shard(right).expect("there").frozen, None);

    // One half is thawed by hand, the other one by time; then they are merged.
    assert!(matches!(hold(&mut cluster, 0, 7), Response::Shard(shard) if shard.held.is_none()));
    assert_eq!(code(cluster.put(1, 8, "k8")), None);
    assert_eq!(code(cluster.put(1, 9, "z")), Some(Code::ShardHeld), "that one still is");
    while cluster.clock().wall_ms <= held.ends_ms + 5_000 {
        cluster.run(40);
        // Whoever asks moves the shard's clock.
        let _ = cluster.put(1, 10, "z");
    }
    assert_eq!(code(cluster.put(2, 10, "z")), None);
    assert_eq!(cluster.until_over(&merge).op.state, OpState::Done);
    assert_eq!(cluster.list(3), ["k1", "k8", "z"]);

    let directory = Request::HoldShard {
        shard: DIRECTORY_SHARD,
        for_ms: 1_000,
        id: RequestId(11),
    };
    assert_eq!(code(cluster.ask(1, directory)), Some(Code::BadRequest));
    assert_eq!(code(hold(&mut cluster, u64::MAX, 12)), Some(Code::BadRequest));
}

#[test]
fn a_shard_that_is_being_merged_is_not_frozen_for_an_operator() {
    let mut cluster = Cluster::new(3);
    cluster.run(200);
    let left = cluster.campaign();
    let epoch = cluster.map_of(1).shard(left).expect("there").epoch;
    let child = match cluster.ask(
        1,
        Request::AllocateIds {
            count: 1,
            id: RequestId(1),
        },
    ) {
        Response::Ids { first } => ShardId(first),
        other => panic!("{other:?}"),
    };
    let split = Request::SplitShard {
        shard: left,
        epoch,
        at: Position::new("campaign", "m"),
        child,
        id: RequestId(2),
    };
    let Response::Split { left, right } = cluster.ask(1, split) else {
        panic!()
    };
    cluster.run(40);
    // No conductor is there to end what stands still.
    let freeze = Request::FreezeShard {
        shard: right.id,
        epoch: right.epoch,
        into: left.id,
        left_epoch: left.epoch,
        id: RequestId(3),
    };
    assert!(matches!(cluster.ask(1, freeze), Response::Shard(_)));
    cluster.run(40);
    for shard in [right.id, left.id] {
        let for_ms = 1_000;
        let refused = cluster.ask(
            2,
            Request::HoldShard {
                shard,
                for_ms,
                id: RequestId(4),
            },
        );
        assert!(
            matches!(&refused, Response::Error(error) if error.code == Code::ShardFrozen && error.text.contains("nothing was changed")),
            "{refused:?}"
        );
    }
}

#[test]
fn small_neighbours_become_one_by_themselves_and_no_fewer_than_wanted() {
    let mut cluster = Cluster::settled(3);
    let split = Goal::Split {
        shard: cluster.campaign(),
        at: vec!["g".into(), "m".into(), "t".into()],
    };
    let split = cluster.start(1, split, None).expect("begun");
    cluster.until_over(&split);
    for (id, key) in ["a", "h", "n", "u"].into_iter().enumerate() {
        assert!(matches!(cluster.put(1, 10 + id as u128, key), Response::Written(_)));
    }
    let count = |cluster: &Cluster| {
        let shards = cluster.map_of(1).shards();
        shards.filter(|shard| shard.range.service() == "campaign").count()
    };
    cluster.run(400);
    assert_eq!(count(&cluster), 4, "nobody has asked for merges");
    let sizes = crate::protocol::shard_map::ShardSizes {
        merge_bytes: 1 << 20,
        min_shards: 2,
        ..Default::default()
    };
    let set = Request::SetService {
        name: "campaign".into(),
        replicas: 3,
        sizes,
        id: RequestId(2),
    };
    let set = cluster.ask(1, set);
    assert!(!matches!(set, Response::Error(_)), "{set:?}");
    for _ in 0..100 {
        if count(&cluster) == 2 {
            break;
        }
        cluster.run(40);
    }
    cluster.run(400);
    assert_eq!(count(&cluster), 2, "as many as there must be");
    assert_eq!(cluster.list(2), ["a", "h", "n", "u"]);
}
