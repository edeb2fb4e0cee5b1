//! Evenness: copies by number, then by bytes; leaders, which cost nothing to move; load, where leaders do not suffice.
//!
//! Each pass takes from the fullest node and gives to the emptiest that may take it, zones permitting. It begins when a
//! node is further from its share than the band allows and ends well inside the band, so that the next plan finds
//! nothing to do. A later pass never takes a node out of the band of an earlier one.
use std::collections::BTreeSet;

use super::draft::{Draft, Metric, NONE};
use super::plan::Why;

/// Shards looked at for one move, beyond those that can't be moved: the best of them goes. Unit: shards.
const CHOICE: usize = 16;
/// Nodes of one zone tried as a target before the zone counts as barren for the node that gives. Unit: nodes.
const TARGETS: usize = 4;
/// Led shards looked at for one transfer. Unit: shards.
const LEAD_CHOICE: usize = 64;

/// How far from its share a node may be.
#[derive(Debug, Clone, Copy)]
struct Band {
    mean: u64,
    /// Further away, spreading begins.
    outer: u64,
    /// Two nodes that differ by no more are even.
    inner: u64,
}

impl Band {
    fn holds(&self, score: u64) -> bool {
        score.abs_diff(self.mean) <= self.outer
    }
}

/// Which shards fit a move.
struct Wanted {
    ideal: u64,
    min: u64,
    /// Exclusive.
    max: u64,
}

impl Draft<'_> {
    /// Evens out the number of copies.
    pub fn spread_replicas(&mut self) {
        self.level(Metric::Replicas, Why::Replicas, "copies");
    }

    /// Evens out bytes.
    pub fn spread_bytes(&mut self) {
        self.level(Metric::Bytes, Why::Bytes, "bytes");
    }

    fn targets(&self) -> impl Iterator<Item = u32> {
        (0..self.node.len() as u32).filter(|&at| self.node[at as usize].is_target)
    }

    fn band(&self, metric: Metric) -> Band {
        let (mut copies, mut bytes, mut weight) = (0u128, 0u128, 0u128);
        for at in self.targets() {
            let node = &self.node[at as usize];
            copies += u128::from(node.replicas);
            bytes += u128::from(node.bytes);
            weight += u128::from(node.weight);
        }
        let percent = u64::from(self.view.settings.hysteresis_percent);
        let weight = weight.max(1);
        // One copy, or one copy's bytes, as a score.
        let (mean, unit, percent) = match metric {
            Metric::Bytes => (bytes * 1000 / weight, bytes / copies.max(1), percent * 2),
            _ => (copies * 1_000_000 / weight, 1000, percent),
        };
        let (mean, unit) = (mean as u64, unit as u64);
        Band {
            mean,
            outer: (mean / 100 * percent).max(unit * 2),
            inner: (mean / 250 * percent).max(unit),
        }
    }

    fn level(&mut self, metric: Metric, why: Why, what: &str) {
        self.compare_by(metric);
        let band = self.band(metric);
        let mut hot: BTreeSet<(u64, u32)> = self.targets().map(|at| (self.score(metric, at), at)).collect();
        let scores: Vec<u64> = hot.iter().map(|&(score, _)| score).collect();
        let far = scores.iter().map(|score| score.abs_diff(band.mean)).max().unwrap_or(0);
        if scores.len() < 2 || scores.iter().all(|&score| band.holds(score)) {
            self.note("EVEN", format!("{what} are even within {}", percent(far, band.mean)));
            return;
        }
        let copies = self.band(Metric::Replicas);
        let mut barren: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut cursor = vec![0usize; self.node.len()];
        let mut moves_left = self.copies.len() * 4 + 64;
        let mut moved = false;
        while let Some(&(score, from)) = hot.last() {
            moves_left -= 1;
            if moves_left == 0 || self.is_full() {
                break;
            }
            let Some(to) = self.relieve(metric, why, band, copies, from, &mut barren, &mut cursor) else {
                hot.remove(&(score, from));
                continue;
            };
            moved = true;
            let (old_to, new_from) = (to.1, self.score(metric, from));
            hot.remove(&(score, from));
            hot.insert((new_from, from));
            if hot.remove(&(old_to, to.0)) {
                hot.insert((self.score(metric, to.0), to.0));
            }
        }
        let far = self
            .targets()
            .map(|at| self.score(metric, at).abs_diff(band.mean))
            .max();
        let far = far.unwrap_or(0);
        if far > band.outer && !self.is_full() {
            let rest = if moved { "after that" } else { "nothing can be moved" };
            let text = format!(
                "{what} differ by {}: {rest}; zones, full disks and shards that rest stand in the way",
                percent(far, band.mean)
            );
            self.note("UNEVEN", text);
        }
    }

    /// Moves something from `from` to a node that has less; returns that node and what its score was.
    #[allow(clippy::too_many_arguments, reason = "the state of one pass, which nothing outlives")]
    fn relieve(
        &mut self,
        metric: Metric,
        why: Why,
        band: Band,
        copies: Band,
        from: u32,
        barren: &mut BTreeSet<(u32, u32)>,
        cursor: &mut [usize],
    ) -> Option<(u32, u64)> {
        let mine = self.score(metric, from);
        let coldest = |(zone, rungs): (usize, &BTreeSet<(u64, u32)>)| Some((rungs.first()?.0, zone as u32));
        let mut zones: Vec<(u64, u32)> = self.ladder.iter().enumerate().filter_map(coldest).collect();
        zones.sort_unstable();
        for (least, zone) in zones {
            if mine.saturating_sub(least) <= band.inner {
                return None;
            }
            if barren.contains(&(from, zone)) {
                continue;
            }
            let rungs: Vec<(u64, u32)> = self.ladder[zone as usize].iter().take(TARGETS).copied().collect();
            for (theirs, to) in rungs {
                if to == from || mine.saturating_sub(theirs) <= band.inner {
                    break;
                }
                let is_done = match metric {
                    Metric::Bytes => self.even_bytes(why, copies, from, to, cursor),
                    _ => self.even_copies(why, from, to, cursor),
                };
                if is_done {
                    return Some((to, theirs));
                }
            }
            barren.insert((from, zone));
        }
        None
    }

    fn even_copies(&mut self, why: Why, from: u32, to: u32, cursor: &mut [usize]) -> bool {
        let (a, b) = (&self.node[from as usize], &self.node[to as usize]);
        // Many more will follow until both are even: each takes its part of the difference in bytes along.
        let gap = a.bytes.saturating_sub(b.bytes);
        let wanted = Wanted {
            ideal: gap / a.replicas.saturating_sub(b.replicas).max(1),
            min: 0,
            max: u64::MAX,
        };
        match self.find(from, to, &wanted, cursor) {
            Some(shard) => self.spend(self.bytes_of(shard)) && self.do_move(shard, from, to, why),
            None => false,
        }
    }

    fn even_bytes(&mut self, why: Why, copies: Band, from: u32, to: u32, cursor: &mut [usize]) -> bool {
        let (a, b) = (&self.node[from as usize], &self.node[to as usize]);
        let (heavy, light) = (u128::from(a.weight), u128::from(b.weight));
        // What makes both even, by their weights.
        let above = u128::from(a.bytes) * light;
        let below = u128::from(b.bytes) * heavy;
        let half = (above.saturating_sub(below) / (heavy + light)) as u64;
        let mean = a.bytes / a.replicas.max(1);
        let least = (half / 16).min(mean / 4);
        let after = |count: u64, weight: u64| count * 1_000_000 / weight;
        let keeps_copies = copies.holds(after(b.replicas + 1, b.weight))
            && copies.holds(after(a.replicas.saturating_sub(1), a.weight));
        if keeps_copies {
            let wanted = Wanted {
                ideal: half,
                min: least,
                max: half * 2,
            };
            if let Some(shard) = self.find(from, to, &wanted, cursor) {
                return self.spend(self.bytes_of(shard)) && self.do_move(shard, from, to, why);
            }
        }
        // A large one there for a small one back.
        let small = Wanted {
            ideal: 0,
            min: 0,
            max: u64::MAX,
        };
        let Some(back) = self.find(to, from, &small, cursor) else {
            return false;
        };
        let small = self.bytes_of(back);
        let large = Wanted {
            ideal: half + small,
            min: small + least,
            max: small + half * 2,
        };
        let Some(there) = self.find(from, to, &large, cursor) else {
            return false;
        };
        if there == back || !self.spend(self.bytes_of(there) + small) {
            return false;
        }
        self.do_move(there, from, to, why) && self.do_move(back, to, from, why)
    }

    fn do_move(&mut self, shard: usize, from: u32, to: u32, why: Why) -> bool {
        self.swap(shard, from, to, None, why);
        true
    }

    /// A shard on `from` that may go to `to`, of a size near the ideal.
    fn find(&self, from: u32, to: u32, wanted: &Wanted, cursor: &mut [usize]) -> Option<usize> {
        let held = &self.held[from as usize];
        let start = cursor[from as usize] % held.len().max(1);
        let mut best: Option<(u64, usize)> = None;
        let mut seen = 0;
        for step in 0..held.len() {
            let at = (start + step) % held.len();
            let shard = held[at] as usize;
            let bytes = self.bytes_of(shard);
            if bytes < wanted.min || bytes >= wanted.max || !self.may_go(shard, from, to) {
                continue;
            }
            let candidate = (bytes.abs_diff(wanted.ideal), shard);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
            seen += 1;
            if seen == CHOICE {
                cursor[from as usize] = at + 1;
                break;
            }
        }
        best.map(|(_, shard)| shard)
    }

    /// Whether a copy may go from one to the other for evenness' sake: no zone worse, no disk too full, not pinned here,
    /// not where it came from.
    fn may_go(&self, shard: usize, from: u32, to: u32) -> bool {
        let copies = &self.copies[shard];
        if !copies.has(from) || copies.has(to) || !self.may_move(shard) || self.came_from(shard, to) {
            return false;
        }
        if self.view.shards[shard].is_pinned && self.lead[shard] == from {
            return false;
        }
        let (here, there) = (self.node[from as usize].zone, self.node[to as usize].zone);
        let is_spread = here == there || self.in_zone(shard, there, from) < self.in_zone(shard, here, NONE);
        is_spread && self.fits(to, self.bytes_of(shard))
    }

    /// Evens out what nodes lead, by number and load together: transfers cost nothing.
    pub fn spread_leaders(&mut self) {
        self.obey_leader_zones();
        let nodes: Vec<u32> = (0..self.node.len() as u32)
            .filter(|&at| self.node[at as usize].may_lead)
            .collect();
        let Some(scale) = LeadScale::of(self, &nodes) else {
            return;
        };
        let mut hot: BTreeSet<(u64, u32)> = nodes.iter().map(|&at| (scale.node(self, at), at)).collect();
        let percent_outer = u64::from(self.view.settings.hysteresis_percent) * 20_000;
        let outer = percent_outer.max(scale.unit * 2);
        let inner = (percent_outer / 2).max(scale.unit);
        let far = hot.iter().map(|&(score, _)| score.abs_diff(MEAN)).max().unwrap_or(0);
        if far <= outer {
            self.note("EVEN", format!("leaders are even within {}", percent(far, MEAN)));
            return;
        }
        let mut led: Vec<Vec<u32>> = vec![Vec::new(); self.node.len()];
        for (shard, &lead) in self.lead.iter().enumerate() {
            if lead != NONE {
                led[lead as usize].push(shard as u32);
            }
        }
        let mut cursor = vec![0usize; self.node.len()];
        let mut moves_left = self.lead.len() * 2 + 64;
        while let Some(&(score, from)) = hot.last() {
            moves_left -= 1;
            let is_even = hot.first().is_none_or(|&(least, _)| score - least <= inner);
            if is_even || moves_left == 0 || self.is_full() {
                break;
            }
            let found = self.find_transfer(&scale, inner, from, &led[from as usize], &mut cursor);
            let Some((shard, to)) = found else {
                hot.remove(&(score, from));
                continue;
            };
            let was = hot.remove(&(scale.node(self, to), to));
            hot.remove(&(score, from));
            self.transfer(shard, to, Why::Leaders);
            led[to as usize].push(shard as u32);
            hot.insert((scale.node(self, from), from));
            if was {
                hot.insert((scale.node(self, to), to));
            }
        }
    }

    /// Leaders go to the zone that their rule names.
    fn obey_leader_zones(&mut self) {
        if self.rules.iter().all(|rule| rule.leader_zone.is_none()) {
            return;
        }
        for shard in 0..self.lead.len() {
            let lead = self.lead[shard];
            if lead == NONE || self.locked[shard] || self.view.shards[shard].is_pinned || self.is_full() {
                continue;
            }
            let Some(zone) = self.rule(shard).leader_zone.as_deref() else {
                continue;
            };
            let is_in = |at: u32| self.zones[self.node[at as usize].zone as usize] == zone;
            if !is_in(lead)
                && let Some(to) = self.follower(shard, lead)
                && is_in(to)
            {
                self.transfer(shard, to, Why::Leaders);
            }
        }
    }

    /// The shard led by `from`, and to whom, that evens out most.
    fn find_transfer(
        &self,
        scale: &LeadScale,
        inner: u64,
        from: u32,
        led: &[u32],
        cursor: &mut [usize],
    ) -> Option<(usize, u32)> {
        let mine = scale.node(self, from);
        let start = cursor[from as usize] % led.len().max(1);
        let mut best: Option<(u128, usize, u32)> = None;
        let mut seen = 0;
        for step in 0..led.len() {
            let at = (start + step) % led.len();
            let shard = led[at] as usize;
            if self.lead[shard] != from || !self.may_lead_elsewhere(shard) {
                continue;
            }
            let weight = scale.shard(self, shard);
            let copies = &self.copies[shard];
            let mut is_use = false;
            for &to in copies.nodes() {
                let theirs = scale.node(self, to);
                let is_fit = to != from && copies.is_good(to) && self.node[to as usize].may_lead;
                if !is_fit || theirs + weight + inner / 4 >= mine || !self.keeps_leader_zone(shard, from, to) {
                    continue;
                }
                is_use = true;
                let gain = u128::from(weight) * u128::from(mine - theirs - weight);
                if best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, shard, to));
                }
            }
            seen += usize::from(is_use);
            if seen == LEAD_CHOICE {
                cursor[from as usize] = at + 1;
                break;
            }
        }
        best.map(|(_, shard, to)| (shard, to))
    }

    fn may_lead_elsewhere(&self, shard: usize) -> bool {
        !self.locked[shard] && !self.view.shards[shard].is_pinned && !self.lead_cooling.contains(&(shard as u32))
    }

    fn keeps_leader_zone(&self, shard: usize, from: u32, to: u32) -> bool {
        let Some(zone) = self.rule(shard).leader_zone.as_deref() else {
            return true;
        };
        let is_in = |at: u32| self.zones[self.node[at as usize].zone as usize] == zone;
        is_in(to) || !is_in(from)
    }

    /// Moves busy shards with their lead off nodes that transfers could not relieve.
    pub fn spread_load(&mut self) {
        let nodes: Vec<u32> = self.targets().collect();
        let sum: u64 = nodes.iter().map(|&at| self.node[at as usize].load).sum();
        let mean = sum / nodes.len().max(1) as u64;
        if mean == 0 || nodes.len() < 2 {
            return;
        }
        let bands = (self.band(Metric::Replicas), self.band(Metric::Bytes));
        let percent_outer = u64::from(self.view.settings.hysteresis_percent) * 6;
        let limit = mean + mean / 100 * percent_outer;
        let mut moves_left = nodes.len() * 2;
        let mut rank: BTreeSet<(u64, u32)> = nodes.iter().map(|&at| (self.node[at as usize].load, at)).collect();
        let mut hot: Vec<u32> = rank
            .iter()
            .rev()
            .take_while(|(load, _)| *load > limit)
            .map(|&(_, at)| at)
            .collect();
        while let Some(from) = hot.first().copied() {
            if moves_left == 0 || self.is_full() {
                break;
            }
            moves_left -= 1;
            let found = if self.node[from as usize].load > limit {
                self.find_load_move(from, mean, bands, &rank)
            } else {
                None
            };
            let Some((shard, to)) = found.filter(|&(shard, _)| self.spend(self.bytes_of(shard))) else {
                hot.remove(0);
                continue;
            };
            rank.remove(&(self.node[from as usize].load, from));
            rank.remove(&(self.node[to as usize].load, to));
            self.swap(shard, from, to, Some(to), Why::Load);
            rank.insert((self.node[from as usize].load, from));
            rank.insert((self.node[to as usize].load, to));
        }
    }

    fn find_load_move(
        &self,
        from: u32,
        mean: u64,
        (copies, bytes): (Band, Band),
        rank: &BTreeSet<(u64, u32)>,
    ) -> Option<(usize, u32)> {
        let mine = self.node[from as usize].load;
        // Neither node leaves the bands of the passes before, or they would send it back.
        let keeps = |at: u32, count: u64, held: u64| {
            let weight = self.node[at as usize].weight;
            copies.holds(count * 1_000_000 / weight)
                && bytes.holds((u128::from(held) * 1000 / u128::from(weight)) as u64)
        };
        let held = self.held[from as usize].iter().map(|&shard| shard as usize);
        let mut busy: Vec<(u64, usize)> = held
            .filter(|&shard| self.lead[shard] == from && self.may_lead_elsewhere(shard))
            .map(|shard| (self.view.shards[shard].load, shard))
            .filter(|&(load, _)| load > mean / 20)
            .collect();
        busy.sort_unstable_by(|a, b| b.cmp(a));
        for (load, shard) in busy.into_iter().take(LEAD_CHOICE) {
            for &(theirs, to) in rank.iter().take(TARGETS * 4) {
                if theirs + load + mean / 20 >= mine {
                    break;
                }
                let (giver, taker, size) = (&self.node[from as usize], &self.node[to as usize], self.bytes_of(shard));
                let keeps_even = keeps(from, giver.replicas.saturating_sub(1), giver.bytes.saturating_sub(size))
                    && keeps(to, taker.replicas + 1, taker.bytes + size);
                if keeps_even && self.may_go(shard, from, to) && self.keeps_leader_zone(shard, from, to) {
                    return Some((shard, to));
                }
            }
        }
        None
    }
}

/// The mean of what nodes lead. Unit: none; two halves, one for number and one for load.
const MEAN: u64 = 1_000_000;

/// Number and load of what is led, made comparable.
struct LeadScale {
    nodes: u64,
    leaders: u64,
    load: u64,
    /// What one shard of mean load weighs.
    unit: u64,
}

impl LeadScale {
    fn of(draft: &Draft<'_>, nodes: &[u32]) -> Option<Self> {
        let leaders: u64 = nodes.iter().map(|&at| draft.node[at as usize].leaders).sum();
        let load: u64 = nodes.iter().map(|&at| draft.node[at as usize].load).sum();
        let count = nodes.len() as u64;
        (count > 1 && leaders > 0).then(|| Self {
            nodes: count,
            leaders,
            load,
            unit: MEAN * count / leaders,
        })
    }

    fn weigh(&self, leaders: u64, load: u64) -> u64 {
        let part = |value: u64, sum: u64| {
            u128::from(value) * u128::from(MEAN) * u128::from(self.nodes) / u128::from(sum.max(1))
        };
        let number = part(leaders, self.leaders);
        let weight = if self.load == 0 {
            number
        } else {
            (number + part(load, self.load)) / 2
        };
        weight as u64
    }

    fn node(&self, draft: &Draft<'_>, at: u32) -> u64 {
        let node = &draft.node[at as usize];
        self.weigh(node.leaders, node.load)
    }

    fn shard(&self, draft: &Draft<'_>, shard: usize) -> u64 {
        self.weigh(1, draft.view.shards[shard].load)
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{} %", (u128::from(part) * 100).div_ceil(u128::from(whole.max(1))))
}
