//! How far the copies of operations have come, how fast they go and what holds them up.
use super::*;

impl Node {
    /// Once a second: how much is done.
    pub(super) fn meter_ops(&mut self) {
        let now = self.clock.now;
        if now.since(self.conductor.last_metered) < Span::secs(1) {
            return;
        }
        self.conductor.last_metered = now;
        let Some(directory) = &self.directory else { return };
        let tasks = &directory.ledger.tasks;
        let is_copied = |(shard, to): &(ShardId, NodeId)| {
            let task = tasks.get(shard);
            task.is_some_and(|task| matches!(task.step, TaskStep::Swap { add: Some((node, _)), .. } if node == *to))
        };
        self.conductor.copied.retain(|copy, _| is_copied(copy));
        let open: Vec<(OpId, u64)> = directory
            .ledger
            .open()
            .map(|op| {
                let left = self.left_of(&op.goal).1.saturating_sub(self.copied_for(op.id));
                (op.id, op.total_bytes.saturating_sub(left))
            })
            .collect();
        let meters = std::mem::take(&mut self.conductor.meters);
        let mut meters: BTreeMap<OpId, Meter> = meters
            .into_iter()
            .filter(|(id, _)| open.iter().any(|(open, _)| open == id))
            .collect();
        for (id, done) in open {
            meters.entry(id).or_default().add(now, done);
        }
        self.conductor.meters = meters;
    }

    /// What an operation's tasks have copied that are not done yet. Unit: bytes.
    pub(super) fn copied_for(&self, op: OpId) -> u64 {
        let Some(directory) = &self.directory else { return 0 };
        let tasks = &directory.ledger.tasks;
        let of_op = |shard: &ShardId| tasks.get(shard).is_some_and(|task| task.op == op);
        let copied = self.conductor.copied.iter().filter(|((shard, _), _)| of_op(shard));
        copied.map(|(_, bytes)| bytes).sum()
    }

    /// In a few words what holds copies up.
    pub(super) fn copies_limited_by(&self, op: &Op) -> String {
        let limit = self.wanted_copies().map_or(0, |rules| rules.protect_p99_us);
        if limit > 0 && self.lowest_copy_rate() < op.pace.bytes_per_second() {
            let ms = |us: u64| us.div_ceil(1_000);
            return format!("protecting p99 {} ms (now {} ms)", ms(limit), ms(self.slowest_writes()));
        }
        format!("pace {}", op.pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_tells_the_last_minute_from_the_last_ten() {
        let mut meter = Meter::default();
        assert_eq!(meter.rate(MINUTE), 0);
        for s in 0..900_u64 {
            // Ten a second for thirteen minutes, then a hundred.
            let done = if s < 800 { s * 10 } else { 8_000 + (s - 800) * 100 };
            meter.add(Time(0) + Span::secs(s), done);
        }
        assert_eq!(meter.rate(MINUTE), 100);
        assert_eq!(meter.rate(TEN_MINUTES), (17_900 - 2_990) * 1_000 / 600_000);
        assert!(meter.samples.len() < 610);
    }
}
