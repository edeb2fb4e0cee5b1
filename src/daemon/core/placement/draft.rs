//! The cluster as it will be: a compact copy of the view that the passes change step by step.
//!
//! Nodes and shards are numbered by their place in the view. A copy costs four bytes, so that a million shards with
//! three copies fit into some dozens of MiB beside the view.
use std::collections::{BTreeMap, BTreeSet};

use super::check::{Tolerance, list, majority, spare_zones};
use super::plan::{BlockCode, Blocker, Goals, Note, PeakDisk, Plan, Range, Spread, Step, StepKind, Why};
use super::rules::{Rule, plural};
use super::view::{ClusterView, Health, Intent, Moved, NodeView};
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::shard_map::{Membership, ReplicaRole};

/// No node.
pub(super) const NONE: u32 = u32::MAX;
/// Most copies of a shard that the planner handles: five and those of a change that was broken off. Unit: copies.
pub(super) const COPIES_MAX: usize = 8;

/// The copies of one shard: nodes by number, and two bits for each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copies {
    node: [u32; COPIES_MAX],
    len: u8,
    voter: u8,
    good: u8,
}

impl Copies {
    pub fn nodes(&self) -> &[u32] {
        &self.node[..usize::from(self.len)]
    }

    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    fn at(&self, node: u32) -> Option<usize> {
        self.nodes().iter().position(|&held| held == node)
    }

    pub fn has(&self, node: u32) -> bool {
        self.nodes().contains(&node)
    }

    pub fn voters(&self) -> u32 {
        self.voter.count_ones()
    }

    /// Caught-up voters on nodes that are up.
    pub fn good(&self) -> u32 {
        self.good.count_ones()
    }

    pub fn is_voter(&self, node: u32) -> bool {
        self.at(node).is_some_and(|at| self.voter & (1 << at) != 0)
    }

    pub fn is_good(&self, node: u32) -> bool {
        self.at(node).is_some_and(|at| self.good & (1 << at) != 0)
    }

    fn put(&mut self, node: u32, is_voter: bool, is_good: bool) -> bool {
        let at = match self.at(node) {
            Some(at) => at,
            None if self.len() == COPIES_MAX => return false,
            None => {
                self.node[self.len()] = node;
                self.len += 1;
                self.len() - 1
            }
        };
        let bit = 1 << at;
        self.voter = if is_voter { self.voter | bit } else { self.voter & !bit };
        self.good = if is_good { self.good | bit } else { self.good & !bit };
        true
    }

    fn take(&mut self, node: u32) {
        let Some(at) = self.at(node) else { return };
        let last = self.len() - 1;
        self.node[at] = self.node[last];
        for bits in [&mut self.voter, &mut self.good] {
            let moved = (*bits >> last) & 1;
            *bits &= !(1 << last);
            if at != last {
                *bits = (*bits & !(1 << at)) | (moved << at);
            }
        }
        self.len -= 1;
    }
}

/// One node, as it will be.
#[derive(Debug, Clone)]
pub(super) struct NodeDraft {
    pub id: NodeId,
    pub zone: u32,
    /// Its share of copies and bytes; a thousand is the mean of those that take part.
    pub weight: u64,
    pub is_target: bool,
    pub may_lead: bool,
    /// Counts towards majorities.
    pub is_there: bool,
    pub is_lost: bool,
    /// To be emptied, or to lead nothing.
    pub intent: Intent,
    pub replicas: u64,
    pub leaders: u64,
    pub bytes: u64,
    pub load: u64,
    pub used: u64,
    pub peak: u64,
    pub limit: u64,
    pub total: u64,
    sent: u64,
    received: u64,
    steps: u64,
}

/// In what nodes are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Copies and bytes together: where something new goes.
    Fill,
    /// Copies.
    Replicas,
    /// Bytes.
    Bytes,
}

/// Why there is no node for a copy.
pub(super) enum NoTarget {
    /// None that is not a member already.
    Node,
    /// None in a zone that the rule needs.
    Zone,
    /// The best one has no room.
    Disk(u32),
}

#[derive(Default)]
struct Refused {
    shards: BTreeSet<ShardId>,
    count: u64,
    bytes: u64,
    /// About the first shard.
    have: u32,
    want: u32,
    rule: u16,
}

/// What stands in the way, before it is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Nothing,
    Node(u32),
    Zone(u32),
    Shard(u32),
}

pub(super) struct Draft<'v> {
    pub view: &'v ClusterView,
    pub rules: Vec<Rule>,
    pub node: Vec<NodeDraft>,
    pub zones: Vec<String>,
    pub copies: Vec<Copies>,
    /// Leaders by node number, or [`NONE`].
    pub lead: Vec<u32>,
    /// Busy, unreadable, or changed by this plan so that what it will be is not known.
    pub locked: Vec<bool>,
    /// Shards by node; holds what is there and perhaps what was.
    pub held: Vec<Vec<u32>>,
    /// Nodes that may take copies, by zone, emptiest first.
    pub ladder: Vec<BTreeSet<(u64, u32)>>,
    pub metric: Metric,
    /// Shard numbers and where their copies were lately.
    left: BTreeMap<u32, Vec<u32>>,
    cooling: BTreeSet<u32>,
    pub lead_cooling: BTreeSet<u32>,
    mean: (u64, u64),
    steps: Vec<Step>,
    steps_max: usize,
    spread_bytes_left: u64,
    refused: BTreeMap<(BlockCode, Obstacle), Refused>,
    /// Nodes that would have helped but for their state.
    pub notes: Vec<Note>,
    bytes: u64,
    before: Spread,
    tolerance_before: Tolerance,
    lowest: Tolerance,
}

impl<'v> Draft<'v> {
    pub fn new(view: &'v ClusterView, goals: &Goals, intents: &[(NodeId, Intent)], running: &[Step]) -> Self {
        let mut zones: Vec<String> = Vec::new();
        let mut zone_of: BTreeMap<&str, u32> = BTreeMap::new();
        let mut node: Vec<NodeDraft> = Vec::with_capacity(view.nodes.len());
        for member in &view.nodes {
            let zone = *zone_of.entry(member.zone.as_str()).or_insert_with(|| {
                zones.push(member.zone.clone());
                zones.len() as u32 - 1
            });
            let intent = intents.iter().find(|(id, _)| *id == member.id);
            let mut member = member.clone();
            if let Some(&(_, intent)) = intent {
                member.intent = member.intent.max(intent);
            }
            node.push(NodeDraft::new(&member, zone, view));
        }
        let mut draft = Self {
            rules: if view.rules.is_empty() {
                vec![Rule::default()]
            } else {
                view.rules.clone()
            },
            held: vec![Vec::new(); node.len()],
            ladder: vec![BTreeSet::new(); zones.len()],
            copies: Vec::with_capacity(view.shards.len()),
            lead: Vec::with_capacity(view.shards.len()),
            locked: Vec::with_capacity(view.shards.len()),
            view,
            node,
            zones,
            metric: Metric::Fill,
            left: BTreeMap::new(),
            cooling: BTreeSet::new(),
            lead_cooling: BTreeSet::new(),
            mean: (0, 0),
            steps: Vec::new(),
            steps_max: goals.steps_max.unwrap_or(usize::MAX),
            spread_bytes_left: goals.bytes_max.unwrap_or(u64::MAX),
            refused: BTreeMap::new(),
            notes: Vec::new(),
            bytes: 0,
            before: Spread::default(),
            tolerance_before: Tolerance::default(),
            lowest: Tolerance::UNBOUNDED,
        };
        draft.read_shards();
        draft.read_recent();
        draft.reserve(running);
        let mut tolerance = Tolerance::UNBOUNDED;
        for shard in 0..draft.copies.len() {
            tolerance = tolerance.with(draft.spare(shard));
            let copies = &draft.copies[shard];
            tolerance.without_quorum += u64::from(copies.good() < majority(copies.voters()));
        }
        (draft.tolerance_before, draft.lowest) = (tolerance.or_zero(), tolerance);
        draft.weigh();
        draft.before = draft.spread();
        draft.compare_by(Metric::Fill);
        draft
    }

    fn read_shards(&mut self) {
        let view = self.view;
        for (at, shard) in view.shards.iter().enumerate() {
            let mut copies = Copies::default();
            let mut fits = true;
            for replica in &shard.replicas {
                let number = match view.node_index(replica.node) {
                    Some(number) => number,
                    None => self.ghost(replica.node),
                };
                let is_voter = replica.role == ReplicaRole::Voter;
                let is_good = is_voter && replica.is_caught_up && self.node[number].is_there;
                fits &= copies.put(number as u32, is_voter, is_good);
                self.held[number].push(at as u32);
                self.node[number].replicas += 1;
                self.node[number].bytes += shard.bytes;
            }
            let lead = shard.leader.and_then(|id| view.node_index(id)).unwrap_or(NONE as usize) as u32;
            if lead != NONE {
                self.node[lead as usize].leaders += 1;
                self.node[lead as usize].load += shard.load;
            }
            self.copies.push(copies);
            self.lead.push(lead);
            self.locked.push(shard.is_busy || !fits);
            if !fits {
                self.refuse(BlockCode::TooManyCopies, Obstacle::Shard(at as u32), at);
            }
        }
    }

    /// A node that is no member and yet holds copies: a removed one may appear nowhere for long.
    fn ghost(&mut self, id: NodeId) -> usize {
        if let Some(at) = self.node[self.view.nodes.len()..].iter().position(|node| node.id == id) {
            return self.view.nodes.len() + at;
        }
        let mut member = NodeView::up(id, "", 0);
        member.membership = Membership::Gone;
        member.health = Health::Down;
        if self.zones.is_empty() {
            self.zones.push(String::new());
            self.ladder.push(BTreeSet::new());
        }
        self.node.push(NodeDraft::new(&member, 0, self.view));
        self.held.push(Vec::new());
        self.node.len() - 1
    }

    fn read_recent(&mut self) {
        if self.view.recent.is_empty() {
            return;
        }
        let wanted: BTreeSet<ShardId> = self.view.recent.iter().map(|recent| recent.shard).collect();
        let mut at_of: BTreeMap<ShardId, u32> = BTreeMap::new();
        for (at, shard) in self.view.shards.iter().enumerate() {
            if wanted.contains(&shard.id) {
                at_of.insert(shard.id, at as u32);
            }
        }
        let mut trips: BTreeSet<(u32, NodeId, NodeId)> = BTreeSet::new();
        for recent in &self.view.recent {
            let Some(&at) = at_of.get(&recent.shard) else { continue };
            let is_fresh = recent.at_ms.saturating_add(self.view.settings.cooldown_ms) > self.view.now_ms;
            match recent.what {
                Moved::Replica => {
                    if is_fresh {
                        self.cooling.insert(at);
                    }
                    if let Some(from) = self.view.node_index(recent.from) {
                        self.left.entry(at).or_default().push(from as u32);
                    }
                    if trips.contains(&(at, recent.to, recent.from)) {
                        let (from, to) = (recent.to, recent.from);
                        self.notes.push(Note {
                            code: "BACK_AND_FORTH".to_owned(),
                            text: format!("{} went from {from} to {to} and back: it rests", recent.shard),
                        });
                    }
                    trips.insert((at, recent.from, recent.to));
                }
                Moved::Leader if is_fresh => {
                    self.lead_cooling.insert(at);
                }
                Moved::Leader => {}
            }
        }
    }

    /// Takes in what runs already: its shards are left alone, its room is taken.
    fn reserve(&mut self, running: &[Step]) {
        if running.is_empty() {
            return;
        }
        let touched: BTreeSet<ShardId> = running.iter().flat_map(Step::shards).collect();
        let mut at_of = BTreeMap::new();
        for (at, shard) in self.view.shards.iter().enumerate() {
            if touched.contains(&shard.id) {
                self.locked[at] = true;
                at_of.insert(shard.id, at);
            }
        }
        for step in running {
            let index = |id| self.view.node_index(id);
            // A step that is half done has its copy already, or has given up the other one: both are counted.
            let has = |node: usize| {
                at_of
                    .get(&step.shard)
                    .is_some_and(|&at| self.copies[at].has(node as u32))
            };
            let arrives = step.receiver().and_then(index).filter(|&node| !has(node));
            let leaves = match step.kind {
                StepKind::SwapReplica { from, .. } => index(from),
                StepKind::RemoveReplica { node } => index(node),
                _ => None,
            };
            let leaves = leaves.filter(|&node| has(node));
            if let Some(at) = arrives {
                let node = &mut self.node[at];
                node.replicas += 1;
                node.bytes += step.bytes;
                node.used += step.bytes;
                node.peak = node.peak.max(node.used);
            }
            if let Some(at) = leaves {
                self.node[at].replicas = self.node[at].replicas.saturating_sub(1);
                self.node[at].bytes = self.node[at].bytes.saturating_sub(step.bytes);
            }
            if let StepKind::TransferLeader { from, to } = step.kind {
                if let Some(at) = index(from) {
                    self.node[at].leaders = self.node[at].leaders.saturating_sub(1);
                }
                if let Some(at) = index(to) {
                    self.node[at].leaders += 1;
                }
            }
        }
    }

    /// A node's share follows the size of its disk, within bounds: a disk of twice the size holds twice as much.
    fn weigh(&mut self) {
        let disks: Vec<u64> = self.node.iter().filter(|n| n.is_target).map(|n| n.total).collect();
        let mean = (disks.iter().map(|&d| u128::from(d)).sum::<u128>() / disks.len().max(1) as u128).max(1);
        for node in &mut self.node {
            node.weight = (u128::from(node.total) * 1000 / mean).clamp(250, 4000) as u64;
        }
        let targets = || self.node.iter().filter(|n| n.is_target);
        let count = targets().count().max(1) as u64;
        self.mean = (
            (self.node.iter().map(|n| n.replicas).sum::<u64>() / count).max(1),
            (self.node.iter().map(|n| u128::from(n.bytes)).sum::<u128>() / u128::from(count)).max(1) as u64,
        );
    }

    /// What a node has of it, by its weight. Comparable between nodes only.
    pub fn score(&self, metric: Metric, node: u32) -> u64 {
        let node = &self.node[node as usize];
        match metric {
            Metric::Replicas => node.replicas * 1_000_000 / node.weight,
            Metric::Bytes => (u128::from(node.bytes) * 1000 / u128::from(node.weight)) as u64,
            Metric::Fill => {
                let replicas = u128::from(node.replicas) * 1_000_000 / u128::from(self.mean.0);
                let bytes = u128::from(node.bytes) * 1_000_000 / u128::from(self.mean.1);
                ((replicas + bytes) * 1000 / u128::from(node.weight)) as u64
            }
        }
    }

    /// Orders the nodes that may take copies by `metric`.
    pub fn compare_by(&mut self, metric: Metric) {
        self.metric = metric;
        for rungs in &mut self.ladder {
            rungs.clear();
        }
        for at in 0..self.node.len() as u32 {
            if self.node[at as usize].is_target {
                let score = self.score(metric, at);
                self.ladder[self.node[at as usize].zone as usize].insert((score, at));
            }
        }
    }

    /// Changes a node and keeps the ladder in order.
    fn change(&mut self, at: u32, change: impl FnOnce(&mut NodeDraft)) {
        let old = self.score(self.metric, at);
        change(&mut self.node[at as usize]);
        if self.node[at as usize].is_target {
            let new = self.score(self.metric, at);
            let rungs = &mut self.ladder[self.node[at as usize].zone as usize];
            rungs.remove(&(old, at));
            rungs.insert((new, at));
        }
    }

    pub fn rule(&self, shard: usize) -> &Rule {
        let at = usize::from(self.view.shards[shard].rule).min(self.rules.len() - 1);
        &self.rules[at]
    }

    /// Copies wanted.
    pub fn wanted(&self, shard: usize) -> usize {
        (self.rule(shard).replicas as usize).clamp(1, COPIES_MAX - 1)
    }

    pub fn bytes_of(&self, shard: usize) -> u64 {
        self.view.shards[shard].bytes
    }

    /// Copies in `zone`, without the one on `without`.
    pub fn in_zone(&self, shard: usize, zone: u32, without: u32) -> u32 {
        let nodes = self.copies[shard].nodes().iter();
        nodes
            .filter(|&&node| node != without && self.node[node as usize].zone == zone)
            .count() as u32
    }

    /// In how many zones there are copies, without the one on `without`.
    pub fn zones_of(&self, shard: usize, without: u32) -> u32 {
        let mut seen = [NONE; COPIES_MAX];
        let mut count = 0;
        for &node in self.copies[shard].nodes().iter().filter(|&&node| node != without) {
            let zone = self.node[node as usize].zone;
            if !seen[..count].contains(&zone) {
                seen[count] = zone;
                count += 1;
            }
        }
        count as u32
    }

    /// Nodes and zones that the shard can still lose.
    pub fn spare(&self, shard: usize) -> (u32, u32) {
        let copies = &self.copies[shard];
        let mut zones = [NONE; COPIES_MAX];
        let mut counts = [0; COPIES_MAX];
        let mut len = 0;
        for &node in copies.nodes().iter().filter(|&&node| copies.is_good(node)) {
            let zone = self.node[node as usize].zone;
            let at = zones[..len].iter().position(|&z| z == zone).unwrap_or(len);
            zones[at] = zone;
            counts[at] += 1;
            len = len.max(at + 1);
        }
        let spare = copies.good().saturating_sub(majority(copies.voters()));
        (spare, spare_zones(&mut counts[..len], copies.voters()))
    }

    pub fn fits(&self, node: u32, bytes: u64) -> bool {
        let node = &self.node[node as usize];
        node.used.saturating_add(bytes) <= node.limit
    }

    /// Whether the shard may be moved for evenness' sake: all is well with it and it was not moved just now.
    pub fn may_move(&self, shard: usize) -> bool {
        let copies = &self.copies[shard];
        !self.locked[shard]
            && copies.good() as usize == copies.len()
            && copies.len() == self.wanted(shard)
            && !self.cooling.contains(&(shard as u32))
    }

    /// Whether it was there lately.
    pub fn came_from(&self, shard: usize, node: u32) -> bool {
        !self.left.is_empty() && self.left.get(&(shard as u32)).is_some_and(|left| left.contains(&node))
    }

    /// Where a new copy goes: the zone with the fewest copies, in it the emptiest node. `leaving` goes away for it.
    pub fn choose(&self, shard: usize, leaving: u32, zones_wanted: u32) -> Result<u32, NoTarget> {
        if self.copies[shard].len() == COPIES_MAX {
            return Err(NoTarget::Node);
        }
        let bytes = self.bytes_of(shard);
        let mut best: Option<(u32, u64, u32)> = None;
        let mut full: Option<(u32, u64, u32)> = None;
        for (zone, rungs) in self.ladder.iter().enumerate() {
            let count = self.in_zone(shard, zone as u32, leaving);
            for &(score, node) in rungs {
                if self.copies[shard].has(node) {
                    continue;
                }
                let candidate = (count, score, node);
                if self.fits(node, bytes) {
                    best = Some(best.map_or(candidate, |best| best.min(candidate)));
                    break;
                }
                full = Some(full.map_or(candidate, |full| full.min(candidate)));
            }
        }
        let have = self.zones_of(shard, leaving);
        let enough = |count: u32| have + u32::from(count == 0) >= zones_wanted;
        match (best, full) {
            (Some((count, _, node)), _) if enough(count) => Ok(node),
            (_, Some((count, _, node))) if enough(count) => Err(NoTarget::Disk(node)),
            (None, None) => Err(NoTarget::Node),
            _ => Err(NoTarget::Zone),
        }
    }

    /// Who should lead: a good voter that may, in the rule's zone if there is one, with the least to do.
    pub fn follower(&self, shard: usize, without: u32) -> Option<u32> {
        let copies = &self.copies[shard];
        let zone = self.rule(shard).leader_zone.as_deref();
        let fit = |&&at: &&u32| at != without && copies.is_good(at) && self.node[at as usize].may_lead;
        copies.nodes().iter().filter(fit).copied().min_by_key(|&at| {
            let node = &self.node[at as usize];
            let elsewhere = zone.is_some_and(|zone| self.zones[node.zone as usize] != zone);
            (elsewhere, node.leaders, node.load, at)
        })
    }

    pub fn is_full(&self) -> bool {
        self.steps.len() >= self.steps_max
    }

    /// Whether evenness may still cost so much; asked before each move for its sake.
    pub fn spend(&mut self, bytes: u64) -> bool {
        let is_enough = bytes <= self.spread_bytes_left && !self.is_full();
        if is_enough {
            self.spread_bytes_left -= bytes;
        }
        is_enough
    }

    fn step(&mut self, shard: usize, kind: StepKind, why: Why, bytes: u64) {
        let seen = &self.view.shards[shard];
        self.bytes += bytes;
        self.steps.push(Step {
            shard: seen.id,
            epoch: seen.epoch,
            kind,
            why,
            bytes,
        });
        self.lowest = self.lowest.with(self.spare(shard));
    }

    fn arrive(&mut self, shard: usize, node: u32) {
        let bytes = self.bytes_of(shard);
        let lead = self.lead[shard];
        let source = if lead != NONE && lead != node {
            Some(lead)
        } else {
            let copies = &self.copies[shard];
            copies
                .nodes()
                .iter()
                .copied()
                .find(|&at| at != node && copies.is_good(at))
        };
        if let Some(source) = source {
            let source = &mut self.node[source as usize];
            source.sent += bytes;
            source.steps += 1;
        }
        let is_new = self.copies[shard].put(node, true, true);
        debug_assert!(is_new, "room for one more copy was checked");
        self.held[node as usize].push(shard as u32);
        self.change(node, |node| {
            node.replicas += 1;
            node.bytes += bytes;
            node.used = node.used.saturating_add(bytes);
            node.peak = node.peak.max(node.used);
            node.received += bytes;
            node.steps += 1;
        });
    }

    fn depart(&mut self, shard: usize, node: u32) {
        let bytes = self.bytes_of(shard);
        self.copies[shard].take(node);
        self.change(node, |node| {
            node.replicas -= 1;
            node.bytes -= bytes;
            node.used = node.used.saturating_sub(bytes);
        });
    }

    fn let_lead(&mut self, shard: usize, to: u32) {
        let load = self.view.shards[shard].load;
        let from = std::mem::replace(&mut self.lead[shard], to);
        if from != NONE {
            let from = &mut self.node[from as usize];
            from.leaders = from.leaders.saturating_sub(1);
            from.load = from.load.saturating_sub(load);
        }
        if to != NONE {
            self.node[to as usize].leaders += 1;
            self.node[to as usize].load += load;
        }
    }

    /// One more copy. One that is there as a learner is promoted.
    pub fn add(&mut self, shard: usize, node: u32, why: Why) {
        let id = self.node[node as usize].id;
        let bytes = if self.copies[shard].has(node) {
            let is_up = self.node[node as usize].is_there;
            self.copies[shard].put(node, true, is_up);
            0
        } else {
            self.arrive(shard, node);
            self.bytes_of(shard)
        };
        self.step(shard, StepKind::AddReplica { node: id }, why, bytes);
    }

    /// One copy elsewhere; `lead` says who leads then, if the one that goes led.
    pub fn swap(&mut self, shard: usize, from: u32, to: u32, lead: Option<u32>, why: Why) {
        self.arrive(shard, to);
        let was_lead = self.lead[shard] == from;
        self.depart(shard, from);
        let lead = if was_lead {
            let next = lead.or_else(|| self.follower(shard, from));
            self.let_lead(shard, next.unwrap_or(NONE));
            next
        } else {
            None
        };
        let kind = StepKind::SwapReplica {
            from: self.node[from as usize].id,
            to: self.node[to as usize].id,
            lead: lead.map(|at| self.node[at as usize].id),
        };
        if matches!(why, Why::Replicas | Why::Bytes | Why::Load) {
            self.left.entry(shard as u32).or_default().push(from);
        }
        if matches!(why, Why::Bytes | Why::Load) {
            self.cooling.insert(shard as u32);
        }
        self.step(shard, kind, why, self.bytes_of(shard));
    }

    /// One copy less, led by another before if need be.
    pub fn remove(&mut self, shard: usize, node: u32, why: Why) {
        if self.lead[shard] == node {
            match self.follower(shard, node) {
                Some(to) => self.transfer(shard, to, why),
                None => self.let_lead(shard, NONE),
            }
        }
        self.depart(shard, node);
        self.node[node as usize].steps += 1;
        let id = self.node[node as usize].id;
        self.step(shard, StepKind::RemoveReplica { node: id }, why, 0);
    }

    /// Another leader.
    pub fn transfer(&mut self, shard: usize, to: u32, why: Why) {
        let from = self.lead[shard];
        if from == NONE || from == to {
            return;
        }
        self.let_lead(shard, to);
        let kind = StepKind::TransferLeader {
            from: self.node[from as usize].id,
            to: self.node[to as usize].id,
        };
        self.step(shard, kind, why, 0);
    }

    /// One copy less in number; its bytes stay, in the shard that took it over.
    pub fn drop_count(&mut self, node: u32) {
        self.change(node, |node| node.replicas -= 1);
    }

    /// The shard's load falls to `to`; it is led no more.
    pub fn lead_absorbed(&mut self, shard: usize, to: u32) {
        self.let_lead(shard, to);
        self.node[to as usize].leaders -= 1;
    }

    /// Splits or merges: what comes of it, the next plan sees.
    pub fn reshape(&mut self, shard: usize, kind: StepKind, why: Why) {
        self.step(shard, kind, why, 0);
        self.locked[shard] = true;
    }

    pub fn note(&mut self, code: &str, text: String) {
        self.notes.push(Note {
            code: code.to_owned(),
            text,
        });
    }

    fn refuse(&mut self, code: BlockCode, obstacle: Obstacle, shard: usize) -> &mut Refused {
        let seen = &self.view.shards[shard];
        let (id, rule) = (seen.id, seen.rule);
        let refused = self.refused.entry((code, obstacle)).or_default();
        refused.count += 1;
        if refused.shards.is_empty() {
            refused.rule = rule;
        }
        if refused.shards.len() < 3 {
            refused.shards.insert(id);
        }
        refused
    }

    pub fn refuse_target(&mut self, shard: usize, leaving: u32, why: &NoTarget) {
        let bytes = self.bytes_of(shard);
        let (have, want) = (self.copies[shard].len() as u32, self.wanted(shard) as u32);
        let zone = self.node.get(leaving as usize).map_or(NONE, |node| node.zone);
        let (code, obstacle) = match why {
            NoTarget::Node if leaving == NONE => (BlockCode::NoTargetNode, Obstacle::Nothing),
            NoTarget::Node => (BlockCode::NoTargetNode, Obstacle::Node(leaving)),
            NoTarget::Zone => (BlockCode::NoTargetZone, Obstacle::Zone(zone)),
            NoTarget::Disk(node) => (BlockCode::DiskProjected, Obstacle::Node(*node)),
        };
        let refused = self.refuse(code, obstacle, shard);
        refused.bytes += bytes;
        (refused.have, refused.want) = (have, want);
    }

    pub fn refuse_quorum(&mut self, shard: usize) {
        let (good, voters) = (self.copies[shard].good(), self.copies[shard].voters());
        let refused = self.refuse(BlockCode::Quorum, Obstacle::Nothing, shard);
        if refused.count == 1 {
            (refused.have, refused.want) = (good, voters);
        }
    }

    pub fn refuse_follower(&mut self, shard: usize, node: u32) {
        self.refuse(BlockCode::NoFollower, Obstacle::Node(node), shard);
    }

    pub fn refuse_hot(&mut self, shard: usize) {
        self.refuse(BlockCode::HotEntity, Obstacle::Shard(shard as u32), shard);
    }

    fn spread(&self) -> Spread {
        let nodes: Vec<&NodeDraft> = self.node.iter().filter(|node| node.is_target).collect();
        let range = |of: fn(&NodeDraft) -> u64| Range::of(nodes.iter().map(|node| of(node)));
        Spread {
            nodes: nodes.len() as u64,
            replicas: range(|node| node.replicas),
            bytes: range(|node| node.bytes),
            leaders: range(|node| node.leaders),
            load: range(|node| node.load),
            disk_permille: range(|node| permille(node.used, node.total)),
        }
    }

    /// The plan, with the words for what was refused.
    pub fn finish(mut self) -> Plan {
        let after = self.spread();
        let mut tolerance_after = Tolerance::UNBOUNDED;
        for shard in 0..self.copies.len() {
            tolerance_after = tolerance_after.with(self.spare(shard));
            let copies = &self.copies[shard];
            tolerance_after.without_quorum += u64::from(copies.good() < majority(copies.voters()));
        }
        let disk = |node: &NodeDraft| PeakDisk {
            node: node.id,
            peak: node.peak,
            after: node.used,
            total: node.total,
        };
        let members = self.view.nodes.len();
        Plan {
            version: self.view.version,
            refusals: self.words(),
            before: std::mem::take(&mut self.before),
            after,
            bytes: self.bytes,
            disks: self.node[..members].iter().map(disk).collect(),
            tolerance_before: self.tolerance_before,
            tolerance_lowest: Tolerance {
                without_quorum: self.tolerance_before.without_quorum,
                ..self.lowest
            }
            .or_zero(),
            tolerance_after: tolerance_after.or_zero(),
            time_ms: self.time(),
            notes: self.notes,
            steps: self.steps,
        }
    }

    /// The busiest node decides; half as much again for waiting on each other.
    fn time(&self) -> (u64, u64) {
        let pace = self.view.settings.pace;
        let of = |node: &NodeDraft| {
            let copying = node.sent.max(node.received) / (pace.bytes_per_second() / 1000).max(1);
            copying.max(node.steps * STEP_MS / u64::from(pace.copies_per_node()))
        };
        let busiest = self.node.iter().map(of).max().unwrap_or(0);
        let light = self.steps.iter().filter(|step| step.receiver().is_none()).count() as u64;
        let light = light * LIGHT_STEP_MS / self.view.nodes.len().max(1) as u64;
        let low = busiest + light;
        (low, low + low / 2)
    }

    fn words(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        let mut lacks_target = false;
        for ((code, obstacle), refused) in &self.refused {
            lacks_target |= matches!(code, BlockCode::NoTargetNode | BlockCode::NoTargetZone);
            blockers.push(self.blocker(*code, *obstacle, refused));
        }
        if lacks_target {
            // What else could have taken it, and why it may not: without a target this is what one asks next.
            for (at, member) in self.view.nodes.iter().enumerate() {
                blockers.extend(self.unusable(&self.node[at], member));
            }
        }
        blockers
    }

    /// A member that can't take copies for a reason that passes.
    fn unusable(&self, node: &NodeDraft, member: &NodeView) -> Option<Blocker> {
        let id = node.id;
        // What the operator asks about right now is not news to them.
        let (code, text, next) = if node.is_lost || member.membership != Membership::Active {
            return None;
        } else if member.intent != Intent::Stay {
            let text = format!("{id} is drained and takes nothing");
            (BlockCode::Draining, text, format!("isxctl node undrain {id}"))
        } else if node.intent != Intent::Stay {
            return None;
        } else if member.maintenance {
            let text = format!("{id} is in maintenance and takes nothing");
            (
                BlockCode::Maintenance,
                text,
                format!("isxctl node maintenance off {id}"),
            )
        } else if member.health != Health::Up {
            let text = format!("{id} has been silent for {} s and takes nothing", member.down_ms / 1000);
            (BlockCode::Silent, text, format!("isxctl node show {id}"))
        } else {
            return None;
        };
        Some(Blocker {
            code,
            object: id.to_string(),
            shards: 0,
            text,
            next: vec![next],
        })
    }

    fn blocker(&self, code: BlockCode, obstacle: Obstacle, refused: &Refused) -> Blocker {
        let count = refused.count;
        let shards = plural(count, "shard");
        let first = refused.shards.first().copied().unwrap_or_default();
        let node_id = |at: u32| self.node[at as usize].id;
        let object = match obstacle {
            Obstacle::Nothing => "cluster".to_owned(),
            Obstacle::Node(at) => node_id(at).to_string(),
            Obstacle::Zone(at) => self.zones.get(at as usize).cloned().unwrap_or_default(),
            Obstacle::Shard(at) => self.view.shards[at as usize].id.to_string(),
        };
        let rule = &self.rules[usize::from(refused.rule).min(self.rules.len() - 1)];
        let scope = rule.service.as_deref().unwrap_or(&rule.name);
        let targets = self.node.iter().filter(|node| node.is_target).count() as u64;
        let (text, next) = match code {
            BlockCode::Quorum => {
                let dead: Vec<NodeId> = self.node.iter().filter(|n| !n.is_there).map(|n| n.id).collect();
                (
                    format!(
                        "{count} {shards} without a majority of caught-up voters can't be changed; first {first}: {} of \
                         {} up, {} needed",
                        refused.have,
                        refused.want,
                        majority(refused.want)
                    ),
                    if dead.is_empty() {
                        vec![format!("isxctl shard show {first}")]
                    } else {
                        vec![
                            format!("isxctl node show {}          bring it back if you can", dead[0]),
                            "isxctl shard list --problem          what can't be written until then".to_owned(),
                        ]
                    },
                )
            }
            BlockCode::NoTargetZone => {
                let leaving = self.node.iter().filter(|node| {
                    self.zones[node.zone as usize] == object && node.intent == Intent::DrainAll && node.replicas > 0
                });
                let leaving: Vec<NodeId> = leaving.map(|node| node.id).collect();
                let verb = if leaving.len() == 1 {
                    "is the last node"
                } else {
                    "are the last nodes"
                };
                (
                    format!(
                        "{count} {shards} must keep a copy in zone {object}; {} {verb} there",
                        list(&leaving)
                    ),
                    vec![
                        format!("isxctl token create          for a host in zone {object}, then run this again"),
                        format!(
                            "the rule `{scope}` with {} zones          lowers what you can lose",
                            rule.zones.saturating_sub(1).max(1)
                        ),
                    ],
                )
            }
            BlockCode::NoTargetNode => (
                format!(
                    "{count} {shards} want {} copies on as many nodes; {targets} {} can hold one",
                    refused.want,
                    plural(targets, "node")
                ),
                vec![
                    "isxctl token create          for one more host, then run this again".to_owned(),
                    format!(
                        "isxctl service set {scope} --replicas {}          lowers what you can lose",
                        targets.saturating_sub(1) / 2 * 2 + 1
                    ),
                ],
            ),
            BlockCode::DiskProjected => {
                let (used, total, limit) = match obstacle {
                    Obstacle::Node(at) => {
                        let node = &self.node[at as usize];
                        (node.used.saturating_add(refused.bytes), node.total, node.limit)
                    }
                    _ => (0, 0, 0),
                };
                (
                    format!(
                        "{object} would reach {} % (limit {} %), and no other node has room; {count} {shards} want in",
                        permille(used, total).div_ceil(10),
                        permille(limit, total).div_ceil(10)
                    ),
                    vec!["isxctl token create          for one more host, then run this again".to_owned()],
                )
            }
            BlockCode::NoFollower => (
                format!("{count} {shards} led by {object} have no other caught-up voter that may lead; first {first}"),
                vec![format!("isxctl shard show {first}")],
            ),
            BlockCode::HotEntity => {
                let load = match obstacle {
                    Obstacle::Shard(at) => self.view.shards[at as usize].load,
                    _ => 0,
                };
                (
                    format!("{object} takes {load} requests/s and holds one entity: it can't be cut"),
                    vec!["isxctl shard list --sort -REQ/S".to_owned()],
                )
            }
            BlockCode::TooManyCopies => (
                format!("{object} has more than {COPIES_MAX} copies and is left alone"),
                vec![format!("isxctl shard show {object}")],
            ),
            // Said where they are found.
            BlockCode::Draining | BlockCode::Maintenance | BlockCode::Silent | BlockCode::NoSuchNode => {
                (String::new(), Vec::new())
            }
        };
        Blocker {
            code,
            object,
            shards: count,
            text,
            next,
        }
    }
}

impl NodeDraft {
    fn new(member: &NodeView, zone: u32, view: &ClusterView) -> Self {
        let settings = &view.settings;
        let is_leaving = member.is_leaving();
        Self {
            id: member.id,
            zone,
            weight: 1000,
            is_target: member.is_target(),
            may_lead: member.may_lead(),
            is_there: member.health == Health::Up && member.membership != Membership::Gone,
            is_lost: member.is_lost(settings),
            intent: if is_leaving { Intent::DrainAll } else { member.intent },
            replicas: 0,
            leaders: 0,
            bytes: 0,
            load: 0,
            used: member.disk_used,
            peak: member.disk_used,
            limit: member.disk_limit(settings),
            total: member.disk_total,
            sent: 0,
            received: 0,
            steps: 0,
        }
    }
}

/// A step's own time beside the copying: catching up, the joint change, the removal. Unit: ms.
const STEP_MS: u64 = 400;
/// A transfer, split or merge. Unit: ms.
const LIGHT_STEP_MS: u64 = 50;

pub(super) fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0) as u64
}
