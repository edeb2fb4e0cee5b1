//! What is promised of a service that was dropped, when all is quiet: nothing of it is left anywhere, and its name may be
//! used again.
use super::super::workload::VISITED;
use super::*;
use crate::protocol::key::KeyRange;

impl World {
    /// Ends the service that comes and goes for good, looks for what is left of it, and has it once more.
    pub(super) fn end_visits(&mut self) -> Result<(), Violation> {
        let Some(operator) = self.visitors.clone().last() else {
            return Ok(());
        };
        let visitors = self.visitors.start..operator;
        visitors.clone().for_each(|client| self.tell(client, Mode::VisitOut));
        self.tell(operator, Mode::DropOut);
        let is_busy = |world: &World| !world.clients[operator].is_quiet();
        self.run_until(Property::CatchUp, DROPPED, |world| {
            is_busy(world).then(|| format!("{VISITED} is not dropped: {}", world.clients[operator].in_the_way()))
        })?;
        visitors.clone().for_each(|client| self.tell(client, Mode::Quiet));
        self.run_until(Property::Back, Span::secs(30), |world| {
            let busy = visitors.clone().find(|&client| !world.clients[client].is_quiet())?;
            Some(format!("client {} is still at its last request", busy + 1))
        })?;
        self.run_until(Property::CatchUp, Span::secs(30), World::remains)?;
        self.tell(operator, Mode::ComeAgain);
        self.run_until(Property::Back, BACK, |world| {
            is_busy(world).then(|| format!("{VISITED} does not come again"))
        })
    }

    /// Something of the service that was dropped.
    fn remains(&self) -> Option<String> {
        for machine in self.living() {
            let (id, Some(process)) = (machine.id, &machine.process) else {
                return Some(format!("{} is down", machine.id));
            };
            let map = process.node.map();
            if map.services.contains_key(VISITED) {
                return Some(format!("{id} still has {VISITED} in its map"));
            }
            let is_of = |shard: &&crate::protocol::shard_map::ShardDescriptor| shard.range.service() == VISITED;
            if let Some(shard) = map.shards().find(is_of) {
                return Some(format!("{id} still has {} in its map", shard.id));
            }
            let known = |shard: ShardId| self.cover.shard(shard).is_some();
            // One that has heard nothing yet has no range, and is nobody's any more.
            let mut copies = process.node.replicas();
            if let Some(copy) = copies.find(|copy| is_of(&&copy.shard) || !known(copy.shard.id)) {
                return Some(format!("{id} still has a copy of {}", copy.shard.id));
            }
            let mut found = None;
            for (start, end) in KeyRange::all_of(VISITED).row_ranges() {
                let scanned = process.store.scan(&start, &end, &mut |row, _| {
                    found = Some(row.escape_ascii().to_string());
                    ControlFlow::Break(())
                });
                if let Err(error) = scanned {
                    return Some(format!("{id}: {error}"));
                }
            }
            if let Some(row) = found {
                return Some(format!("{id} still has the row {row}"));
            }
        }
        None
    }
}

/// Longest time until a service is gone, from when nobody wants it any more: sessions of its entities are closed first.
const DROPPED: Span = Span::secs(60);
