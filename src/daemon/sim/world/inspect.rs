//! Shows nodes to the checkers.
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::super::check::{Property, Replica, Violation};
use crate::daemon::core::limits::CAUGHT_UP_WITHIN;
use crate::daemon::core::node::Node;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::id::NodeId;

use super::*;

impl World {
    /// Every checker looks at a node.
    pub(super) fn inspect(&mut self, machine: usize) -> Result<(), Violation> {
        let owner = &self.machines[machine];
        let Some(process) = &owner.process else { return Ok(()) };
        if self.is_lost(machine) {
            return self.judge_wiped(machine);
        }
        let id = owner.id;
        for (name, dropped) in &process.node.map().dropped {
            self.cover.let_go(id, name, dropped.below)?;
        }
        let mut result = Ok(());
        let (lead, log, cover, elections) = (&mut self.lead, &mut self.log, &mut self.cover, &mut self.elections);
        let repl = &mut self.repl;
        let mut changes = Vec::new();
        replicas(&process.node, |replica| {
            if result.is_err() {
                return;
            }
            result = lead.see(id, replica).and_then(|is_new| {
                *elections += u64::from(is_new);
                log.see(id, replica, is_new)?;
                if repl.is_change(replica) {
                    changes.push((replica.shard.clone(), replica.committed));
                }
                cover.see(id, replica)
            });
        });
        result?;
        for (shard, committed) in changes {
            Repl::judge(&shard, |replica| self.is_fit(shard.id, replica, committed))?;
        }
        for (shard, replica) in std::mem::take(&mut self.destroyed) {
            let newest = self.cover.shard(shard);
            if newest.is_some_and(|newest| newest.replica(replica).is_some()) {
                let text = format!("{id} destroys {replica} of {shard}, which is a member: {newest:?}");
                return Err(Violation::new(Property::Repl, text));
            }
        }
        // Before every founder has started, some first shards have not been seen anywhere.
        if self.machines.iter().all(|machine| machine.boot > 0) {
            self.cover.judge(&self.services)?;
        }
        Ok(())
    }

    /// Whether a voter has nearly the whole log, or something keeps it from it that its leader can't know yet.
    fn is_fit(&self, shard: ShardId, replica: &crate::protocol::shard_map::ReplicaDescriptor, committed: u64) -> bool {
        let Some(place) = self.machines.iter().position(|machine| machine.id == replica.node) else {
            return false;
        };
        let now = self.schedule.now();
        if self.troubled_until.get(&place).is_some_and(|&until| until > now) {
            return true;
        }
        if self.is_lost(place) {
            return false;
        }
        let Some(process) = &self.machines[place].process else {
            return true;
        };
        let mut copies = process.node.replicas();
        let copy = copies.find(|copy| copy.shard.id == shard && copy.id == replica.id);
        copy.is_some_and(|copy| copy.is_initialized() && copy.last_index() + 2 * CAUGHT_UP_WITHIN >= committed)
    }

    pub(super) fn housekeeping(&mut self) -> Result<(), Violation> {
        self.look_at_connections();
        if !self.stage.schemas.is_empty() && !self.stage.is_in_effect {
            self.stage.is_in_effect = self.schemas_are_in_effect();
        }
        if (self.schedule.now().0 / HOUSEKEEPING.0).is_multiple_of(4) {
            for machine in 0..self.machines.len() {
                self.tell_space(machine);
            }
        }
        if self.bug != Bug::SkipsAWrite {
            // That one the cluster is to find by itself, in time for the last look.
            self.compare_rows()?;
        }
        self.compare_logs()
    }

    /// S8 over all replicas.
    pub(super) fn compare_rows(&mut self) -> Result<(), Violation> {
        for machine in 0..self.machines.len() {
            let owner = &self.machines[machine];
            let Some(process) = owner.process.as_ref().filter(|_| !self.is_lost(machine)) else {
                continue;
            };
            // While a snapshot is written the rows are neither the old ones nor the new ones.
            let whole = process
                .node
                .replicas()
                .filter(|replica| replica.is_initialized() && !replica.is_installing() && !replica.is_quarantined());
            let seen: Vec<_> = whole
                .map(|replica| (replica.shard.clone(), replica.applied()))
                .collect();
            for (shard, applied) in seen {
                let mut hash = 0xcbf2_9ce4_8422_2325_u64;
                let mut eat = |bytes: &[u8]| {
                    hash = (hash ^ bytes.len() as u64).wrapping_mul(0x0000_0100_0000_01b3);
                    hash ^= u64::from(crc32c::crc32c(bytes)) << 16;
                    hash = hash.wrapping_mul(0x0000_0100_0000_01b3).rotate_left(31);
                };
                let scanned = shard.range.row_ranges().iter().try_for_each(|(start, end)| {
                    process.store.scan(start, end, &mut |key, value| {
                        eat(key);
                        eat(value);
                        ControlFlow::Continue(())
                    })
                });
                if let Err(StateError::Checksum { .. }) = scanned {
                    // Nothing that was read; whether it is made good again is for S14.
                    continue;
                }
                if let Err(error) = scanned {
                    return Err(Violation::new(
                        Property::Stop,
                        format!("{} cannot read its rows: {error}", owner.id),
                    ));
                }
                if let Err((other, mut violation)) = self.same.see(owner.id, shard.id, applied, hash) {
                    violation
                        .text
                        .push_str(&self.differing_rows(owner.id, other, &shard.range));
                    return Err(violation);
                }
            }
        }
        Ok(())
    }

    pub(super) fn differing_rows(&self, a: NodeId, b: NodeId, range: &crate::protocol::key::KeyRange) -> String {
        let rows = |id: NodeId| {
            let mut rows: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let process = self
                .machines
                .iter()
                .find(|machine| machine.id == id)
                .and_then(|m| m.process.as_ref());
            if let Some(process) = process {
                for (start, end) in range.row_ranges() {
                    let _ = process.store.scan(&start, &end, &mut |key, value| {
                        rows.insert(key.clone(), value.clone());
                        ControlFlow::Continue(())
                    });
                }
            }
            rows
        };
        let (rows_a, rows_b) = (rows(a), rows(b));
        let mut text = String::from("\n  (rows as they are now; the other node may have gone on)");
        for key in rows_a
            .keys()
            .chain(rows_b.keys().filter(|key| !rows_a.contains_key(*key)))
            .take(2_000)
        {
            if rows_a.get(key) != rows_b.get(key) {
                let show =
                    |value: Option<&Bytes>| value.map_or(String::from("-"), |value| value.escape_ascii().to_string());
                text.push_str(&format!(
                    "\n  {}\n    {a}: {}\n    {b}: {}",
                    key.escape_ascii(),
                    show(rows_a.get(key)),
                    show(rows_b.get(key))
                ));
            }
        }
        text
    }

    /// Log matching over all pairs of replicas.
    pub(super) fn compare_logs(&self) -> Result<(), Violation> {
        for a in 0..self.machines.len() {
            for b in a + 1..self.machines.len() {
                let (x, y) = (&self.machines[a], &self.machines[b]);
                let (Some(first), Some(second)) = (&x.process, &y.process) else {
                    continue;
                };
                if self.is_lost(a) || self.is_lost(b) {
                    continue;
                }
                let mut result = Ok(());
                replicas(&first.node, |one| {
                    replicas(&second.node, |other| {
                        if one.shard.id == other.shard.id && result.is_ok() {
                            result = self.log.matching((x.id, one), (y.id, other));
                        }
                    });
                });
                result?;
            }
        }
        Ok(())
    }
}

/// Shows each replica of a node to a checker.
pub(super) fn replicas(node: &Node, mut see: impl FnMut(&Replica<'_>)) {
    for replica in node.replicas() {
        see(&Replica {
            shard: &replica.shard,
            id: replica.id,
            term: replica.term(),
            vote: replica.vote(),
            is_leader: replica.is_leader(),
            committed: replica.committed(),
            applied: replica.applied(),
            first_index: replica.log().first(),
            last_index: replica.last_index(),
            term_at: &|index| replica.log().term_at(index),
        });
    }
}
