//! What must be: lost copies made again, nodes emptied, zones not shared without need.
use super::check::majority;
use super::draft::{Draft, NONE};
use super::plan::Why;
use super::view::Intent;

impl Draft<'_> {
    /// Makes lost and missing copies again, those shards first that can lose the fewest more.
    pub fn heal(&mut self) {
        let mut needy: Vec<(u32, usize)> = Vec::new();
        for shard in 0..self.copies.len() {
            let copies = &self.copies[shard];
            let is_whole = copies.len() == self.wanted(shard)
                && copies.voters() as usize == copies.len()
                && !copies.nodes().iter().any(|&node| self.node[node as usize].is_lost)
                && copies.good() >= majority(copies.voters());
            if !is_whole && !self.locked[shard] {
                needy.push((copies.good().saturating_sub(majority(copies.voters())), shard));
            }
        }
        needy.sort_unstable();
        for (_, shard) in needy {
            if self.is_full() {
                return;
            }
            let copies = self.copies[shard];
            if copies.good() < majority(copies.voters()) {
                // Membership can't change without a majority: whatever is started now would hang.
                self.refuse_quorum(shard);
                continue;
            }
            self.heal_shard(shard);
        }
    }

    fn heal_shard(&mut self, shard: usize) {
        let wanted = self.wanted(shard);
        let copies = self.copies[shard];
        for &node in copies.nodes() {
            if !self.node[node as usize].is_lost {
                continue;
            }
            if self.copies[shard].len() > wanted {
                self.remove(shard, node, Why::Heal);
                continue;
            }
            // As many zones as can be, but two copies in one zone are better than one copy less.
            match self.choose(shard, node, 0) {
                Ok(to) => self.swap(shard, node, to, None, Why::Heal),
                Err(why) => self.refuse_target(shard, NONE, &why),
            }
        }
        // A learner that a change left behind: it is half of a copy already.
        let copies = self.copies[shard];
        for &node in copies.nodes().iter().filter(|&&node| !copies.is_voter(node)) {
            let is_wanted = (self.copies[shard].voters() as usize) < wanted && self.node[node as usize].is_target;
            if is_wanted {
                self.add(shard, node, Why::Heal);
            } else if !self.node[node as usize].is_lost {
                self.remove(shard, node, Why::Excess);
            }
        }
        while self.copies[shard].len() < wanted {
            match self.choose(shard, NONE, 0) {
                Ok(to) => self.add(shard, to, Why::Heal),
                Err(why) => {
                    self.refuse_target(shard, NONE, &why);
                    break;
                }
            }
        }
        while self.copies[shard].len() > wanted {
            let copies = self.copies[shard];
            let Some(node) = self.dispensable(shard) else { break };
            let good_left = copies.good() - u32::from(copies.is_good(node));
            if good_left < majority(copies.voters() - u32::from(copies.is_voter(node))) {
                break;
            }
            self.remove(shard, node, Why::Excess);
        }
    }

    /// The copy that is missed least: on a node to be emptied, not caught up, in a crowded zone, on a full node.
    fn dispensable(&self, shard: usize) -> Option<u32> {
        let copies = &self.copies[shard];
        copies.nodes().iter().copied().max_by_key(|&at| {
            let node = &self.node[at as usize];
            (
                node.intent == Intent::DrainAll,
                !copies.is_good(at),
                self.in_zone(shard, node.zone, NONE),
                self.lead[shard] != at,
                self.score(self.metric, at),
                at,
            )
        })
    }

    /// Takes leaders, then copies, from nodes that are to be emptied.
    pub fn drain(&mut self) {
        for node in 0..self.node.len() {
            if self.node[node].intent != Intent::Stay && self.node[node].is_there {
                self.drain_leaders(node);
            }
        }
        for node in 0..self.node.len() {
            if self.node[node].intent == Intent::DrainAll && !self.node[node].is_lost {
                self.drain_copies(node);
            }
        }
    }

    fn drain_leaders(&mut self, node: usize) {
        let goes = self.node[node].intent == Intent::DrainAll;
        let held = std::mem::take(&mut self.held[node]);
        for &shard in &held {
            if self.is_full() {
                break;
            }
            let shard = shard as usize;
            if self.lead[shard] != node as u32 || self.locked[shard] {
                continue;
            }
            match self.follower(shard, node as u32) {
                Some(to) => self.transfer(shard, to, Why::Drain),
                // Its copy goes elsewhere, and leads there.
                None if goes => {}
                None => self.refuse_follower(shard, node as u32),
            }
        }
        self.held[node] = held;
    }

    fn drain_copies(&mut self, node: usize) {
        let held = std::mem::take(&mut self.held[node]);
        for &shard in &held {
            if self.is_full() {
                break;
            }
            let (shard, node) = (shard as usize, node as u32);
            if !self.copies[shard].has(node) || self.locked[shard] {
                continue;
            }
            let copies = self.copies[shard];
            if copies.good() < majority(copies.voters()) {
                self.refuse_quorum(shard);
                continue;
            }
            // What the rule asks for; where that is not so already, at least no worse.
            let zones = self.rule(shard).zones.min(self.zones_of(shard, NONE));
            match self.choose(shard, node, zones) {
                Ok(to) => self.swap(shard, node, to, None, Why::Drain),
                Err(why) => self.refuse_target(shard, node, &why),
            }
        }
        self.held[node] = held;
    }

    /// Moves copies out of zones that have two more than another.
    pub fn repair_zones(&mut self) {
        let open = self.ladder.iter().filter(|rungs| !rungs.is_empty()).count() as u32;
        if open < 2 {
            return;
        }
        for shard in 0..self.copies.len() {
            if self.is_full() {
                return;
            }
            let distinct = self.zones_of(shard, NONE) as usize;
            let copies = &self.copies[shard];
            if distinct == copies.len() || self.locked[shard] || copies.good() < majority(copies.voters()) {
                continue;
            }
            while let Some((from, to)) = self.zone_repair(shard) {
                self.swap(shard, from, to, None, Why::Zone);
            }
        }
    }

    fn zone_repair(&self, shard: usize) -> Option<(u32, u32)> {
        let copies = &self.copies[shard];
        let crowd = |at: u32| self.in_zone(shard, self.node[at as usize].zone, NONE);
        let from = copies.nodes().iter().copied().max_by_key(|&at| {
            let node = &self.node[at as usize];
            let stays = self.lead[shard] == at;
            (crowd(at), !node.is_target, !stays, self.score(self.metric, at), at)
        })?;
        let to = self.choose(shard, from, 0).ok()?;
        let there = self.in_zone(shard, self.node[to as usize].zone, from);
        (there + 1 < crowd(from)).then_some((from, to))
    }
}
