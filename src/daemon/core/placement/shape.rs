//! Where shards are cut and joined. What comes of it is spread by the next plan, which sees it.
use super::draft::{Draft, NONE};
use super::plan::{SplitBy, StepKind, Why};
use crate::protocol::id::DIRECTORY_SHARD;

/// Most parts of one split. Unit: shards.
const PARTS_MAX: u64 = 16;

impl Draft<'_> {
    /// Splits shards that are too large or too busy: before anything is moved for their sake.
    pub fn split(&mut self) {
        for (at, shard) in self.view.shards.iter().enumerate() {
            let Some(service) = self.view.services.get(usize::from(shard.service)) else {
                continue;
            };
            if self.is_full() {
                return;
            }
            let is_large = shard.bytes > service.split_bytes;
            let is_hot = service.split_load > 0 && shard.load > service.split_load;
            if !(is_large || is_hot) || self.locked[at] || shard.id == DIRECTORY_SHARD || !self.has_quorum(at) {
                continue;
            }
            if shard.entities < 2 {
                if is_hot {
                    self.refuse_hot(at);
                }
                continue;
            }
            // Two thirds of the limit: the parts are neither about to be cut again nor small enough to be merged.
            let (by, why, parts) = if is_hot {
                (
                    SplitBy::Load,
                    Why::Hot,
                    shard.load.div_ceil((service.split_load * 2 / 3).max(1)),
                )
            } else {
                (
                    SplitBy::Size,
                    Why::Size,
                    shard.bytes.div_ceil((service.split_bytes / 3 * 2).max(1)),
                )
            };
            let into = parts.clamp(2, PARTS_MAX).min(shard.entities) as u32;
            self.reshape(at, StepKind::Split { by, into }, why);
        }
    }

    /// Merges neighbours that are small together, their copies brought together first.
    pub fn merge(&mut self) {
        let shards = &self.view.shards;
        let mut count = vec![0u32; self.view.services.len()];
        for shard in shards {
            if let Some(count) = count.get_mut(usize::from(shard.service)) {
                *count += 1;
            }
        }
        for right in 1..shards.len() {
            if self.is_full() {
                return;
            }
            let left = right - 1;
            let (a, b) = (&shards[left], &shards[right]);
            let service = usize::from(a.service);
            let Some(policy) = self.view.services.get(service) else {
                continue;
            };
            let are_kin = a.service == b.service && a.rule == b.rule && a.id != DIRECTORY_SHARD;
            let are_small = a.bytes.saturating_add(b.bytes) < policy.merge_below();
            let are_quiet = policy.split_load == 0 || a.load.saturating_add(b.load) < policy.split_load / 2;
            let is_kept = a.is_sticky || b.is_sticky || a.is_pinned || b.is_pinned;
            if !(are_kin && are_small && are_quiet) || is_kept || count[service] <= policy.min_shards.max(1) {
                continue;
            }
            if self.may_move(left) && self.may_move(right) && self.align(left, right) {
                count[service] -= 1;
                self.reshape(left, StepKind::Merge { right: b.id }, Why::Small);
                self.locked[right] = true;
                self.absorb(right);
            }
        }
    }

    /// Brings the copies of `right` to the nodes of `left`; says no where one has no room.
    fn align(&mut self, left: usize, right: usize) -> bool {
        let (there, here) = (self.copies[left], self.copies[right]);
        let missing = || there.nodes().iter().copied().filter(|&node| !here.has(node));
        let spare: Vec<u32> = here.nodes().iter().copied().filter(|&node| !there.has(node)).collect();
        let has_room = |node: u32| self.node[node as usize].is_target && self.fits(node, self.bytes_of(right));
        let is_stray = missing().any(|node| self.came_from(right, node));
        if is_stray || !missing().all(has_room) || missing().count() != spare.len() {
            return false;
        }
        for (from, to) in spare.into_iter().zip(missing().collect::<Vec<u32>>()) {
            self.swap(right, from, to, None, Why::Small);
        }
        true
    }

    /// The merged shard is one of `left`'s from now on.
    fn absorb(&mut self, right: usize) {
        let copies = self.copies[right];
        for &node in copies.nodes() {
            self.drop_count(node);
        }
        let left_lead = self.lead[right - 1];
        if left_lead != NONE {
            self.lead_absorbed(right, left_lead);
        }
    }

    fn has_quorum(&self, shard: usize) -> bool {
        let copies = &self.copies[shard];
        copies.good() > copies.voters() / 2
    }
}
