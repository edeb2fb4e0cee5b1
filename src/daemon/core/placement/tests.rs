use std::collections::{BTreeMap, BTreeSet};

use super::apply::Applier;
use super::check::{self, Tolerance, tolerance};
use super::plan::{BlockCode, Goals, Limits, Plan, SplitBy, StepKind, Why, next_steps, plan, plan_with};
use super::rules;
use super::synthetic::{Synthetic, zone_name};
use super::view::{ClusterView, Health, Intent, NodeView, ServiceView, ShardView};
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::shard_map::{Membership, ReplicaRole};

fn node(view: &mut ClusterView, id: u64) -> &mut NodeView {
    view.nodes
        .iter_mut()
        .find(|node| node.id == NodeId(id))
        .expect("the node")
}

fn lose(view: &mut ClusterView, id: u64) {
    let node = node(view, id);
    (node.health, node.down_ms) = (Health::Down, u64::MAX);
}

fn codes(blockers: &[super::plan::Blocker]) -> Vec<String> {
    blockers.iter().map(|b| format!("{} {}", b.code, b.object)).collect()
}

fn holds(view: &ClusterView, id: u64) -> usize {
    view.shards
        .iter()
        .filter(|shard| shard.replicas.iter().any(|r| r.node == NodeId(id)))
        .count()
}

fn leads(view: &ClusterView, id: u64) -> usize {
    view.shards
        .iter()
        .filter(|shard| shard.leader == Some(NodeId(id)))
        .count()
}

/// Voters that are up and caught up, and voters.
fn good(view: &ClusterView, shard: &ShardView) -> (usize, usize) {
    let voters: Vec<_> = shard.replicas.iter().filter(|r| r.role == ReplicaRole::Voter).collect();
    let good = voters.iter().filter(|r| {
        let node = view.node(r.node);
        r.is_caught_up && node.is_some_and(|n| n.health == Health::Up && n.membership != Membership::Gone)
    });
    (good.count(), voters.len())
}

/// Carries out a plan step by step and checks what every step promises.
fn carry_out(view: &mut ClusterView, plan: &Plan, what: &str) {
    let mut applier = Applier::new(view);
    let targets: BTreeMap<NodeId, bool> = view.nodes.iter().map(|n| (n.id, n.is_target())).collect();
    let mut lowest = u32::MAX;
    for step in &plan.steps {
        let at = view
            .shards
            .iter()
            .position(|shard| shard.id == step.shard)
            .expect("the shard is there");
        let before = view.shards[at].clone();
        let (good_before, _) = good(view, &before);
        if let Some(to) = step.receiver() {
            assert!(targets[&to], "{what}: {step}: {to} takes nothing");
            let there = before.replicas.iter().find(|r| r.node == to);
            assert!(
                there.is_none_or(|r| r.role == ReplicaRole::Learner),
                "{what}: {step}: {to} holds it already"
            );
        }
        if let StepKind::TransferLeader { to, .. } | StepKind::SwapReplica { lead: Some(to), .. } = step.kind {
            assert!(
                view.node(to).is_some_and(NodeView::may_lead),
                "{what}: {step}: {to} may not lead"
            );
        }
        assert!(applier.apply_at(view, step, at), "{what}: {step} can't be carried out");
        let after = &view.shards[at];
        if step.why != Why::Excess {
            let (good_after, voters) = good(view, after);
            assert!(good_after > voters / 2, "{what}: {step} leaves no majority");
            assert!(good_after >= good_before, "{what}: {step} lowers what can be lost");
        }
        if let Some(lead) = after.leader {
            assert!(
                after.replicas.iter().any(|r| r.node == lead),
                "{what}: {step}: {lead} leads and holds nothing"
            );
        }
        let nodes: BTreeSet<NodeId> = after.replicas.iter().map(|r| r.node).collect();
        assert_eq!(
            nodes.len(),
            after.replicas.len(),
            "{what}: {step}: two copies on one node"
        );
        for member in &view.nodes {
            let is_over = member.disk_used > member.disk_limit(&view.settings);
            assert!(
                !is_over || step.receiver() != Some(member.id),
                "{what}: {step}: disk of {} too full",
                member.id
            );
        }
        lowest = lowest.min(tolerance_of(view, after));
    }
    assert!(
        plan.tolerance_lowest.nodes <= lowest,
        "{what}: promised {} on the way, was {lowest}",
        plan.tolerance_lowest.nodes
    );
    assert_eq!(tolerance(view), plan.tolerance_after, "{what}: tolerance after");
    let reshapes = |step: &super::plan::Step| matches!(step.kind, StepKind::Split { .. } | StepKind::Merge { .. });
    if !plan.steps.iter().any(reshapes) {
        assert_eq!(
            plan_with(view, &Goals::none(), &[], &[]).before,
            plan.after,
            "{what}: spread after"
        );
    }
}

fn tolerance_of(view: &ClusterView, shard: &ShardView) -> u32 {
    let (good, voters) = good(view, shard);
    good.saturating_sub(voters / 2 + 1) as u32
}

/// Plans and carries out until nothing is left to do; returns how many plans had steps.
fn settle(view: &mut ClusterView, what: &str) -> usize {
    for round in 0..6 {
        let plan = plan(view, &Goals::all());
        if plan.steps.is_empty() {
            return round;
        }
        carry_out(view, &plan, what);
        // The next plan is made when shards have rested.
        view.now_ms += 100 * view.settings.cooldown_ms;
        view.recent.clear();
    }
    let plan = plan(view, &Goals::all());
    let first: Vec<String> = plan.steps.iter().take(10).map(ToString::to_string).collect();
    panic!("{what}: never ends: {} more steps, {first:?}", plan.steps.len());
}

fn assert_whole(view: &ClusterView, what: &str) {
    let zones: BTreeSet<&str> = view
        .nodes
        .iter()
        .filter(|n| n.is_target())
        .map(|n| n.zone.as_str())
        .collect();
    for shard in &view.shards {
        let wanted = view.rule_of(shard).replicas as usize;
        assert_eq!(shard.replicas.len(), wanted, "{what}: copies of {}", shard.id);
        assert_eq!(good(view, shard).0, wanted, "{what}: good copies of {}", shard.id);
        let mut by_zone: BTreeMap<&str, usize> = zones.iter().map(|&zone| (zone, 0)).collect();
        for replica in &shard.replicas {
            *by_zone
                .entry(&view.node(replica.node).expect("a member").zone)
                .or_default() += 1;
        }
        assert!(by_zone.len() == zones.len(), "{what}: {} is in a closed zone", shard.id);
        let used = by_zone.values().filter(|&&count| count > 0).count();
        assert_eq!(
            used,
            wanted.min(zones.len()),
            "{what}: zones of {}: {by_zone:?}",
            shard.id
        );
    }
}

/// Where zones leave a choice, copies are within a few of the mean.
fn assert_even(view: &ClusterView, what: &str) {
    let spread = plan_with(view, &Goals::none(), &[], &[]).before;
    let slack = (spread.replicas.mean * 6 / 100).max(3);
    assert!(
        spread.replicas.max - spread.replicas.min <= 2 * slack,
        "{what}: {:?}",
        spread.replicas
    );
}

#[test]
fn random_clusters_are_healed_drained_and_evened_out_step_by_safe_step() {
    for seed in 0..150 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let zones = chance.u32(3..6);
        let replicas = if chance.u32(0..4) == 0 { 5 } else { 3 };
        let made = Synthetic {
            // As many nodes in every zone, so that zones do not stand against evenness.
            nodes: zones * chance.u32(3..6),
            zones,
            shards: chance.u32(10..300),
            replicas,
            seed,
            ..Synthetic::default()
        };
        let mut view = made.build();
        let what = format!(
            "seed {seed}: {} nodes, {zones} zones, {} shards",
            made.nodes, made.shards
        );
        settle(&mut view, &what);
        assert_whole(&view, &what);
        assert_even(&view, &what);
        // One node dies, one is drained, two come.
        let (dead, drained) = (1, 2);
        lose(&mut view, dead);
        node(&mut view, drained).intent = Intent::DrainAll;
        made.add(&mut view, 1, &zone_name(0));
        made.add(&mut view, 1, &zone_name(1));
        settle(&mut view, &what);
        assert_whole(&view, &what);
        assert_even(&view, &what);
        assert_eq!(
            (holds(&view, dead), holds(&view, drained), leads(&view, drained)),
            (0, 0, 0),
            "{what}"
        );
    }
}

#[test]
fn a_plan_is_the_same_every_time_and_its_result_needs_no_other() {
    for seed in 0..20 {
        let made = Synthetic {
            nodes: 12,
            zones: 3,
            shards: 600,
            seed,
            ..Synthetic::default()
        };
        let mut view = made.build();
        let first = plan(&view, &Goals::all());
        assert_eq!(first, plan(&view, &Goals::all()));
        assert!(!first.steps.is_empty());
        carry_out(&mut view, &first, "once");
        view.recent.clear();
        let second = plan(&view, &Goals::all());
        assert!(
            second.steps.is_empty(),
            "seed {seed}: {} more, such as {}",
            second.steps.len(),
            second.steps[0]
        );
        assert!(
            second.notes.iter().any(|note| note.code == "EVEN"),
            "an idle balancer says why"
        );
    }
}

#[test]
fn those_that_can_lose_the_fewest_more_are_healed_first() {
    let mut view = Synthetic {
        nodes: 12,
        replicas: 5,
        ..Synthetic::default()
    }
    .build();
    lose(&mut view, 1);
    lose(&mut view, 2);
    let margins: BTreeMap<ShardId, u32> = view.shards.iter().map(|s| (s.id, tolerance_of(&view, s))).collect();
    let plan = plan(&view, &Goals::all());
    let healed: Vec<u32> = plan
        .steps
        .iter()
        .filter(|s| s.why == Why::Heal)
        .map(|s| margins[&s.shard])
        .collect();
    assert!(healed.is_sorted() && healed.first() < healed.last(), "{healed:?}");
    assert_eq!((plan.tolerance_before.nodes, plan.tolerance_after.nodes), (0, 2));
}

#[test]
fn a_silent_node_is_waited_for_and_one_in_maintenance_is_not_healed() {
    let mut view = Synthetic::default().build();
    settle(&mut view, "at first");
    (node(&mut view, 2).health, node(&mut view, 2).down_ms) = (Health::Down, view.settings.heal_after_ms - 1);
    let heals = |view: &ClusterView| {
        let steps = plan(view, &Goals::needful()).steps;
        steps.iter().filter(|step| step.why == Why::Heal).count()
    };
    assert_eq!(heals(&view), 0);
    node(&mut view, 2).down_ms += 1;
    assert_eq!(heals(&view), holds(&view, 2));
    node(&mut view, 2).maintenance = true;
    assert_eq!(heals(&view), 0);
    // Somebody said that it goes: no reason to wait.
    (node(&mut view, 2).maintenance, node(&mut view, 2).down_ms) = (false, 1);
    node(&mut view, 2).membership = Membership::Leaving;
    assert_eq!(heals(&view), holds(&view, 2));
}

#[test]
fn a_node_that_is_no_member_appears_nowhere_for_long() {
    let mut view = Synthetic::default().build();
    view.nodes.retain(|node| node.id != NodeId(3));
    assert!(holds(&view, 3) > 0);
    settle(&mut view, "without n3");
    assert_eq!(holds(&view, 3), 0);
}

#[test]
fn three_nodes_with_three_copies_cannot_lose_one() {
    let view = Synthetic {
        nodes: 3,
        shards: 10,
        ..Synthetic::default()
    }
    .build();
    let blockers = check::check_leave(&view, &[NodeId(3)]).expect_err("refused");
    assert_eq!(codes(&blockers), ["NO_TARGET_NODE n3"]);
    assert_eq!(
        blockers[0].text,
        "10 shards want 3 copies on as many nodes; 2 nodes can hold one"
    );
    assert!(blockers[0].next[0].starts_with("isxctl token create"));
    assert_eq!(check::ok_to_stop(&view, &[NodeId(3)]), Ok(()));
    let blockers = check::ok_to_stop(&view, &[NodeId(2), NodeId(3)]).expect_err("refused");
    assert_eq!(codes(&blockers), ["QUORUM n2 and n3"]);
    assert_eq!(
        blockers[0].text,
        "without n2 and n3 10 shards would have no majority; first s-1: 1 of 3 voters, 2 needed"
    );
    assert_eq!(
        codes(&check::ok_to_stop(&view, &[NodeId(9)]).expect_err("refused")),
        ["NO_SUCH_NODE n9"]
    );
}

#[test]
fn the_last_node_of_a_zone_that_the_rule_needs_stays() {
    // n3 is the only node in zone-c.
    let mut view = Synthetic {
        nodes: 3,
        rule_zones: 3,
        shards: 20,
        ..Synthetic::default()
    }
    .build();
    let made = Synthetic::default();
    made.add(&mut view, 2, "zone-a");
    let blockers = check::check_leave(&view, &[NodeId(3)]).expect_err("refused");
    assert_eq!(codes(&blockers), ["NO_TARGET_ZONE zone-c"]);
    assert_eq!(
        blockers[0].text,
        "20 shards must keep a copy in zone zone-c; n3 is the last node there"
    );
    assert_eq!(
        blockers[0].next,
        [
            "isxctl token create          for a host in zone zone-c, then run this again",
            "the rule `default` with 2 zones          lowers what you can lose"
        ]
    );
    // With a rule that asks for less, or with a node there, it may go.
    let mut lax = view.clone();
    lax.rules[0].zones = 2;
    assert!(check::check_leave(&lax, &[NodeId(3)]).is_ok());
    made.add(&mut view, 1, "zone-c");
    let plan = check::check_leave(&view, &[NodeId(3)]).expect("room");
    node(&mut view, 3).intent = Intent::DrainAll;
    carry_out(&mut view, &plan, "leave");
    assert_eq!(holds(&view, 3), 0);
}

#[test]
fn a_drain_that_would_fill_a_disk_is_refused_with_numbers() {
    let mut view = Synthetic {
        nodes: 4,
        zones: 1,
        shards: 60,
        disk_bytes: 4 << 30,
        ..Synthetic::default()
    }
    .build();
    let blockers = check::check_drain(&view, &[NodeId(4)]).expect_err("refused");
    assert!(
        blockers.iter().all(|b| b.code == BlockCode::DiskProjected),
        "{blockers:?}"
    );
    assert!(blockers[0].text.contains("(limit 85 %)"), "{}", blockers[0].text);
    let mut unknown = view.clone();
    for node in &mut view.nodes {
        node.disk_total *= 2;
    }
    assert!(check::check_drain(&view, &[NodeId(4)]).is_ok());
    // Nodes that have just joined have not said how large their disks are.
    for node in &mut unknown.nodes {
        (node.disk_total, node.disk_used) = (0, 0);
    }
    assert!(check::check_drain(&unknown, &[NodeId(4)]).is_ok());
}

#[test]
fn nodes_drained_together_are_checked_together() {
    let view = Synthetic {
        nodes: 5,
        zones: 1,
        shards: 30,
        ..Synthetic::default()
    }
    .build();
    assert!(check::check_drain(&view, &[NodeId(1), NodeId(2)]).is_ok());
    let blockers = check::check_drain(&view, &[NodeId(1), NodeId(2), NodeId(3)]).expect_err("refused");
    assert!(
        blockers.iter().all(|b| b.code == BlockCode::NoTargetNode),
        "{blockers:?}"
    );
    // What would help but is being drained already is named.
    let mut busy = view.clone();
    (node(&mut busy, 1).intent, node(&mut busy, 2).intent) = (Intent::DrainAll, Intent::DrainAll);
    let blockers = check::check_drain(&busy, &[NodeId(3)]).expect_err("refused");
    let draining: Vec<_> = blockers.iter().filter(|b| b.code == BlockCode::NoTargetNode).collect();
    assert!(!draining.is_empty(), "{blockers:?}");
}

#[test]
fn a_drain_for_a_restart_takes_the_leaders_and_leaves_the_copies() {
    let mut view = Synthetic::default().build();
    let held = holds(&view, 2);
    let plan = check::check_restart(&view, &[NodeId(2)]).expect("well");
    assert!(
        plan.steps
            .iter()
            .all(|s| matches!(s.kind, StepKind::TransferLeader { .. }))
            && plan.bytes == 0
    );
    node(&mut view, 2).intent = Intent::DrainLeaders;
    settle(&mut view, "drained");
    assert_eq!((leads(&view, 2), holds(&view, 2)), (0, held));
    // Drained is drained: nothing comes back until somebody says so.
    assert!(super::plan::plan(&view, &Goals::all()).steps.is_empty());
    // A shard whose other copies are behind can't be handed over.
    let mut view = Synthetic::default().build();
    let shard = view
        .shards
        .iter()
        .position(|s| s.leader == Some(NodeId(2)))
        .expect("it leads one");
    for replica in view.shards[shard].replicas.iter_mut().filter(|r| r.node != NodeId(2)) {
        replica.is_caught_up = false;
    }
    let blockers = check::check_restart(&view, &[NodeId(2)]).expect_err("refused");
    assert_eq!(codes(&blockers), ["QUORUM n2"]);
    assert!(
        blockers[0].text.contains("can't be counted on now"),
        "{}",
        blockers[0].text
    );
}

#[test]
fn without_a_majority_nothing_is_started_and_the_way_out_is_named() {
    let mut view = Synthetic {
        nodes: 5,
        zones: 5,
        shards: 50,
        ..Synthetic::default()
    }
    .build();
    lose(&mut view, 3);
    lose(&mut view, 5);
    let stuck: BTreeSet<ShardId> = view
        .shards
        .iter()
        .filter(|shard| good(&view, shard).0 < 2)
        .map(|shard| shard.id)
        .collect();
    assert!(!stuck.is_empty());
    let plan = plan(&view, &Goals::all());
    assert!(plan.steps.iter().all(|step| !stuck.contains(&step.shard)));
    let quorum = plan
        .refusals
        .iter()
        .find(|b| b.code == BlockCode::Quorum)
        .expect("said");
    assert_eq!(quorum.shards, stuck.len() as u64);
    assert!(quorum.next[0].starts_with("isxctl node show n3 "), "{:?}", quorum.next);
    assert_eq!(plan.tolerance_before.without_quorum, stuck.len() as u64);
}

#[test]
fn load_that_swings_moves_nothing_back_and_forth() {
    for seed in 0..10 {
        let mut view = Synthetic {
            nodes: 9,
            zones: 3,
            shards: 120,
            shard_load: 200,
            seed,
            ..Synthetic::default()
        }
        .build();
        view.services[0].split_load = 0;
        settle(&mut view, "at first");
        let calm: Vec<u64> = view.shards.iter().map(|shard| shard.load).collect();
        let mut visits: BTreeMap<(ShardId, NodeId, NodeId), u64> = BTreeMap::new();
        let mut moves = 0;
        // A minute a round, the load swinging between two halves of the key space every five.
        for round in 0..60u64 {
            view.now_ms += 60_000;
            let half = view.shards.len() / 2;
            for (at, shard) in view.shards.iter_mut().enumerate() {
                let is_busy = (at < half) == (round / 5 % 2 == 0);
                shard.load = if is_busy { calm[at] * 3 } else { calm[at] / 3 };
            }
            let plan = plan(&view, &Goals::all());
            for step in &plan.steps {
                if let StepKind::SwapReplica { from, to, .. } = step.kind {
                    moves += 1;
                    assert!(
                        !visits.contains_key(&(step.shard, to, from)),
                        "seed {seed}, round {round}: {step} is back"
                    );
                    visits.insert((step.shard, from, to), round);
                }
            }
            carry_out(&mut view, &plan, "swinging");
        }
        assert!(moves < view.shards.len(), "seed {seed}: {moves} moves for nothing");
    }
}

#[test]
fn large_and_busy_shards_are_cut_and_small_neighbours_joined_and_that_is_all() {
    let mut view = Synthetic {
        shards: 40,
        ..Synthetic::default()
    }
    .build();
    view.services[0] = ServiceView {
        min_shards: 1,
        ..ServiceView::named("campaign")
    };
    for shard in &mut view.shards {
        (shard.bytes, shard.load) = (100 << 20, 10);
    }
    view.shards[3].bytes = 1300 << 20;
    view.shards[7].load = 5_000;
    (view.shards[9].load, view.shards[9].entities) = (9_000, 1);
    (view.shards[20].bytes, view.shards[21].bytes) = (5 << 20, 7 << 20);
    (view.shards[30].bytes, view.shards[31].bytes) = (5 << 20, 7 << 20);
    view.shards[31].is_sticky = true;
    let plan = plan(
        &view,
        &Goals {
            split: true,
            merge: true,
            ..Goals::none()
        },
    );
    let shapes: Vec<String> = plan
        .steps
        .iter()
        .filter(|step| step.receiver().is_none())
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        shapes,
        [
            "s-4 split into 4 by size  (size)",
            "s-8 split into 4 by load  (hot)",
            "s-21 merge s-22  (small)"
        ]
    );
    assert!(matches!(
        plan.steps[0].kind,
        StepKind::Split {
            by: SplitBy::Size,
            into: 4
        }
    ));
    assert_eq!(codes(&plan.refusals), ["HOT_ENTITY s-10"]);
    carry_out(&mut view, &plan, "shape");
    let copies = |at: usize| view.shards[at].replicas.iter().map(|r| r.node).collect::<BTreeSet<_>>();
    assert_eq!(copies(26).len(), 3);
    // The parts are neither cut again nor joined.
    let again = super::plan::plan(
        &view,
        &Goals {
            split: true,
            merge: true,
            ..Goals::none()
        },
    );
    assert!(again.steps.is_empty(), "{:?}", again.steps);
}

#[test]
fn five_copies_in_three_zones_are_two_two_one() {
    let mut view = Synthetic {
        nodes: 9,
        replicas: 5,
        shards: 30,
        ..Synthetic::default()
    }
    .build();
    settle(&mut view, "five");
    for shard in &view.shards {
        let mut by_zone: BTreeMap<&str, u32> = BTreeMap::new();
        for replica in &shard.replicas {
            *by_zone
                .entry(&view.node(replica.node).expect("a member").zone)
                .or_default() += 1;
        }
        let mut counts: Vec<u32> = by_zone.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2, 2], "{}", shard.id);
    }
    assert_eq!(
        tolerance(&view),
        Tolerance {
            nodes: 2,
            zones: 1,
            without_quorum: 0
        }
    );
}

#[test]
fn a_lonely_zone_is_filled_when_it_comes_and_rules_say_what_a_loss_means() {
    let mut view = Synthetic {
        nodes: 4,
        zones: 2,
        rule_zones: 2,
        shards: 40,
        ..Synthetic::default()
    }
    .build();
    settle(&mut view, "two zones");
    let report = &rules::check(&view)[0];
    assert_eq!(
        (report.shards, report.now.text.as_str(), report.after_node.text.as_str()),
        (40, "yes", "yes")
    );
    assert!(
        report.after_zone.text.contains("would refuse writes"),
        "{}",
        report.after_zone.text
    );
    assert_eq!(tolerance(&view).zones, 0);
    Synthetic::default().add(&mut view, 2, "zone-c");
    settle(&mut view, "three zones");
    assert_whole(&view, "three zones");
    assert_eq!(tolerance(&view).zones, 1);
    assert_eq!(rules::check(&view)[0].after_zone.text, "yes");
}

#[test]
fn leaders_follow_their_zone_and_pins() {
    let mut view = Synthetic {
        nodes: 6,
        shards: 60,
        ..Synthetic::default()
    }
    .build();
    view.rules[0].leader_zone = Some("zone-b".into());
    view.shards[5].is_pinned = true;
    let pinned = view.shards[5].leader;
    settle(&mut view, "zone-b");
    let away = view.shards.iter().filter(|s| s.leader != pinned || !s.is_pinned);
    for shard in away {
        let lead = shard.leader.and_then(|id| view.node(id)).expect("a leader");
        assert_eq!(lead.zone, "zone-b", "{}", shard.id);
    }
    assert_eq!(view.shards[5].leader, pinned);
}

#[test]
fn a_learner_left_behind_is_finished_and_one_too_many_goes() {
    let mut view = Synthetic::default().build();
    view.shards[0].replicas[2].role = ReplicaRole::Learner;
    let mut extra = view.shards[1].replicas[0];
    let free = view
        .nodes
        .iter()
        .map(|n| n.id)
        .find(|id| view.shards[1].replicas.iter().all(|r| r.node != *id));
    (extra.node, extra.role) = (free.expect("a free node"), ReplicaRole::Learner);
    view.shards[1].replicas.push(extra);
    let plan = plan(&view, &Goals::needful());
    let steps: Vec<(ShardId, StepKind)> = plan.steps.iter().map(|s| (s.shard, s.kind)).collect();
    let learner = view.shards[0].replicas[2].node;
    assert_eq!(
        steps,
        [
            (ShardId(1), StepKind::AddReplica { node: learner }),
            (ShardId(2), StepKind::RemoveReplica { node: extra.node })
        ]
    );
    assert_eq!(plan.bytes, 0, "it has its data already");
    carry_out(&mut view, &plan, "learner");
}

#[test]
fn a_runner_gets_steps_that_do_not_conflict_and_gets_done() {
    let made = Synthetic {
        nodes: 6,
        shards: 80,
        ..Synthetic::default()
    };
    let mut view = made.build();
    settle(&mut view, "at first");
    lose(&mut view, 1);
    made.add(&mut view, 1, "zone-a");
    let limits = Limits::of(&view);
    let mut running = Vec::new();
    let mut applier = Applier::new(&view);
    for round in 0..2_000 {
        view.now_ms += 1_000;
        let next = next_steps(&view, &Goals::all(), &running, &limits);
        running.extend(next);
        let shards: BTreeSet<ShardId> = running.iter().flat_map(super::plan::Step::shards).collect();
        assert_eq!(
            shards.len(),
            running.iter().flat_map(super::plan::Step::shards).count(),
            "round {round}"
        );
        for node in &view.nodes {
            let copies = running.iter().filter(|s| s.receiver() == Some(node.id)).count();
            assert!(
                copies <= limits.copies_per_node as usize,
                "round {round}: {copies} to {}",
                node.id
            );
        }
        if running.is_empty() {
            assert!(round > 10);
            break;
        }
        // One is done a second.
        let done = running.remove(0);
        assert!(applier.apply(&mut view, &done));
    }
    assert!(running.is_empty(), "it ends");
    assert_whole(&view, "at the end");
    assert_eq!(holds(&view, 1), 0);
}

#[test]
fn new_nodes_fill_up_and_take_no_more_than_their_part() {
    let made = Synthetic {
        nodes: 30,
        zones: 3,
        shards: 3_000,
        ..Synthetic::default()
    };
    let mut view = made.build();
    settle(&mut view, "at first");
    made.add(&mut view, 3, "zone-a");
    made.add(&mut view, 3, "zone-b");
    made.add(&mut view, 3, "zone-c");
    let plan = plan(&view, &Goals::all());
    let moved = plan.steps.iter().filter(|step| step.receiver().is_some()).count();
    // 9 of 39 nodes: 2,077 of 9,000 copies.
    assert!((1_900..2_600).contains(&moved), "{moved} copies moved");
    let spread = &plan.after;
    assert!(spread.replicas.deviation_permille() <= 50, "{spread:?}");
    assert!(spread.bytes.deviation_permille() <= 100, "{spread:?}");
    assert!(spread.leaders.deviation_permille() <= 250, "{spread:?}");
    assert!(plan.time_ms.0 > 0 && plan.time_ms.1 > plan.time_ms.0);
}

#[test]
fn a_disk_twice_as_large_holds_twice_as_much() {
    let mut view = Synthetic {
        nodes: 6,
        zones: 1,
        shards: 400,
        ..Synthetic::default()
    }
    .build();
    node(&mut view, 6).disk_total *= 2;
    settle(&mut view, "sizes");
    let (large, small) = (holds(&view, 6), holds(&view, 1));
    assert!((large as f64 / small as f64 - 2.0).abs() < 0.25, "{large} {small}");
}

#[test]
fn what_may_be_spent_is_not_exceeded() {
    let view = Synthetic {
        nodes: 12,
        shards: 400,
        ..Synthetic::default()
    }
    .build();
    let goals = Goals {
        bytes_max: Some(1 << 30),
        ..Goals::all()
    };
    let plan = plan(&view, &goals);
    assert!(plan.bytes > 512 << 20 && plan.bytes <= 1 << 30, "{}", plan.bytes);
    let few = super::plan::plan(
        &view,
        &Goals {
            steps_max: Some(7),
            ..Goals::all()
        },
    );
    assert_eq!(few.steps.len(), 7);
}

#[test]
fn nothing_to_plan_for_is_planned_at_once() {
    let empty = plan(&ClusterView::default(), &Goals::all());
    assert!(empty.steps.is_empty() && empty.refusals.is_empty());
    let mut view = Synthetic {
        nodes: 1,
        replicas: 1,
        shards: 5,
        ..Synthetic::default()
    }
    .build();
    assert!(plan(&view, &Goals::all()).steps.is_empty());
    lose(&mut view, 1);
    let plan = plan(&view, &Goals::all());
    assert_eq!(codes(&plan.refusals), ["QUORUM cluster"]);
}
