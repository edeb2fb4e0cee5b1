//! How operations go: phases, speed, what is left, what limits them.
use super::*;

/// How much was done at which time, over the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct Meter {
    samples: VecDeque<Sample>,
    /// Most that was ever left of each phase: what it has in all, as it looks now.
    pub most: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Time,
    bytes: u64,
    steps: u64,
}

impl Meter {
    fn add(&mut self, at: Time, bytes: u64, steps: u64) {
        self.samples.push_back(Sample { at, bytes, steps });
        while self
            .samples
            .front()
            .is_some_and(|first| at.since(first.at) > Span::secs(600))
        {
            self.samples.pop_front();
        }
    }

    fn speed(&self) -> OpSpeed {
        let over = |span: Span| {
            let last = *self.samples.back()?;
            let first = *self.samples.iter().find(|sample| last.at.since(sample.at) <= span)?;
            let ms = last.at.since(first.at).as_millis();
            let per = |done: u64, unit_ms: u64| (done * unit_ms).checked_div(ms).unwrap_or(0);
            Some((
                per(last.bytes.saturating_sub(first.bytes), 1_000),
                per(last.steps.saturating_sub(first.steps), 3_600_000),
            ))
        };
        let (minute, ten) = (over(Span::secs(60)), over(Span::secs(600)));
        let (minute, ten) = (minute.unwrap_or_default(), ten.unwrap_or_default());
        OpSpeed {
            bytes_per_s: (minute.0, ten.0),
            steps_per_h: (minute.1, ten.1),
        }
    }
}

impl Node {
    /// Notes how far operations are, whoever looks or not: looking must change nothing.
    pub(super) fn measure(&mut self) {
        let now = self.clock.now;
        if now.since(self.conductor.last_measured) < MEASURE_EVERY {
            return;
        }
        self.conductor.last_measured = now;
        let Some(directory) = &self.directory else { return };
        let tasks = &directory.ledger.tasks;
        let is_copied = |(shard, to): &(ShardId, NodeId)| {
            let task = tasks.get(shard);
            task.is_some_and(|task| matches!(task.step, TaskStep::Swap { add: Some((node, _)), .. } if node == *to))
        };
        self.conductor.copied.retain(|copy, _| is_copied(copy));
        let Some(directory) = &self.directory else { return };
        let mut seen = Vec::new();
        for op in directory.ledger.open() {
            let (left, left_bytes) = self.left_of(&op.goal);
            let left_bytes = left_bytes.saturating_sub(self.copied_for(op.id));
            let (total, total_bytes) = (op.total.max(left), op.total_bytes.max(left_bytes));
            seen.push((
                op.id,
                total_bytes - left_bytes,
                total - left,
                self.phases_left(&op.goal),
            ));
        }
        let open: BTreeSet<OpId> = seen.iter().map(|(id, ..)| *id).collect();
        self.conductor.meters.retain(|id, _| open.contains(id));
        for (id, bytes, steps, phases) in seen {
            let meter = self.conductor.meters.entry(id).or_default();
            meter.add(now, bytes, steps);
            for (name, left) in phases {
                let most = meter.most.entry(name).or_default();
                *most = left.max(*most);
            }
        }
    }

    /// What an operation's tasks have copied that are not done yet. Unit: bytes.
    pub(super) fn copied_for(&self, op: OpId) -> u64 {
        let Some(directory) = &self.directory else { return 0 };
        let tasks = &directory.ledger.tasks;
        let of_op = |shard: &ShardId| tasks.get(shard).is_some_and(|task| task.op == op);
        let copied = self.conductor.copied.iter().filter(|((shard, _), _)| of_op(shard));
        copied.map(|(_, bytes)| bytes).sum()
    }

    /// Whether copies are slowed down for the sake of writes, and in a few words by how much these suffer.
    fn protecting(&self, op: &Op) -> Option<String> {
        let limit = self.wanted_copies().map_or(0, |rules| rules.protect_p99_us);
        let ms = |us: u64| us.div_ceil(1_000);
        (limit > 0 && self.lowest_copy_rate() < op.pace.bytes_per_second())
            .then(|| format!("protecting p99 {} ms (now {} ms)", ms(limit), ms(self.slowest_writes())))
    }

    /// What is left of each part of an operation.
    fn phases_left(&self, goal: &Goal) -> Vec<(&'static str, u64)> {
        let led = |node: NodeId| {
            let led = self
                .map
                .shards()
                .filter(|shard| self.map.leader(shard.id).is_some_and(|(_, at)| at == node));
            led.count() as u64
        };
        let held = |node: NodeId| {
            self.map
                .shards()
                .filter(|shard| shard.replica_on(node).is_some())
                .count() as u64
        };
        let is_member = |node: NodeId| {
            let known = self.map.nodes.get(&node);
            u64::from(known.is_some_and(|info| info.membership != Membership::Gone))
        };
        match goal {
            Goal::Drain {
                node,
                everything: false,
            } => vec![("hand over leaders", led(*node))],
            Goal::Drain { node, .. } => vec![("hand over leaders", led(*node)), ("move copies", held(*node))],
            Goal::Leave { node } | Goal::Replace { old: node, .. } => vec![
                ("hand over leaders", led(*node)),
                ("move copies", held(*node)),
                ("end membership", is_member(*node)),
            ],
            Goal::Heal { node } => vec![("make copies again", held(*node))],
            Goal::Merge { left, right } => {
                let apart = match (self.map.shard(*left), self.map.shard(*right)) {
                    (Some(left), Some(right)) => right
                        .replicas
                        .iter()
                        .filter(|r| left.replica_on(r.node).is_none())
                        .count() as u64,
                    _ => 0,
                };
                vec![
                    ("bring copies together", apart),
                    ("freeze and take over", u64::from(!self.is_reached(goal))),
                ]
            }
            Goal::Split { .. } => vec![("cut", self.left_of(goal).0)],
            Goal::Rebalance | Goal::Scatter { .. } => vec![("spread", self.left_of(goal).0)],
            Goal::Move { .. } | Goal::AddReplica { .. } | Goal::RemoveReplica { .. } | Goal::SetReplicas { .. } => {
                vec![("change copies", self.left_of(goal).0)]
            }
        }
    }

    /// The parts of an operation with what is done and what there is in all.
    pub(super) fn phases_of(&self, op: &Op) -> Vec<OpPhase> {
        let meter = self.conductor.meters.get(&op.id);
        let phases = self.phases_left(&op.goal).into_iter().map(|(name, left)| {
            let left = if op.state == OpState::Done { 0 } else { left };
            let most = meter.and_then(|meter| meter.most.get(name)).copied();
            let total = most.unwrap_or(0).max(left);
            OpPhase {
                name: name.to_owned(),
                done: total - left,
                total,
            }
        });
        phases.collect()
    }

    pub(super) fn speed_of(&self, op: &Op) -> OpSpeed {
        self.conductor.meters.get(&op.id).map(Meter::speed).unwrap_or_default()
    }

    /// How much longer it takes, from what was measured; by the pace where nothing was yet. Unit: s.
    pub(super) fn eta_of(&self, op: &Op, speed: OpSpeed, left: u64, left_bytes: u64) -> Option<(u64, u64)> {
        if op.state.is_over() || op.state == OpState::Paused || left == 0 {
            return None;
        }
        let (amount, (minute, ten)) = match left_bytes {
            0 => (left * 3_600, speed.steps_per_h),
            bytes => (bytes, speed.bytes_per_s),
        };
        let (slow, fast) = (minute.min(ten), minute.max(ten));
        match (slow, fast) {
            (_, 0) if left_bytes > 0 => {
                let least = left_bytes / op.pace.bytes_per_second();
                Some((least, least + least / 2 + 1))
            }
            (_, 0) => None,
            // What has just stood still may go on standing still.
            (0, fast) => Some((amount / fast, amount / fast * 4 + 1)),
            (slow, fast) => Some((amount / fast, (amount / slow).max(amount / fast * 3 / 2) + 1)),
        }
    }

    /// What keeps it from being faster, in a few words.
    pub(super) fn limit_of(&self, op: &Op, tasks: usize, blocked: usize, left: u64) -> String {
        match op.state {
            OpState::Running if blocked > 0 && tasks == 0 => "blocked".to_owned(),
            OpState::Running if tasks > 0 => self.protecting(op).unwrap_or_else(|| {
                self.busiest()
                    .filter(|(_, busy)| *busy >= op.pace.copies_per_node())
                    .map_or_else(
                        || "the copies under way".to_owned(),
                        |(node, busy)| format!("pace {} at {node}: {busy} at a time", op.pace),
                    )
            }),
            OpState::Running if left > 0 => "hand-overs and rounds".to_owned(),
            OpState::Paused => "paused".to_owned(),
            _ => String::new(),
        }
    }

    /// The node that takes part in most copies, and in how many.
    fn busiest(&self) -> Option<(NodeId, u32)> {
        let mut busy: BTreeMap<NodeId, u32> = BTreeMap::new();
        for step in self.running_steps() {
            let source = self.map.leader(step.shard).map(|(_, node)| node);
            for node in step
                .receiver()
                .into_iter()
                .chain(source.filter(|_| step.receiver().is_some()))
            {
                *busy.entry(node).or_default() += 1;
            }
        }
        busy.into_iter()
            .max_by_key(|&(node, count)| (count, std::cmp::Reverse(node)))
    }
}

const MEASURE_EVERY: Span = Span::secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_over_one_minute_and_over_ten() {
        let mut meter = Meter::default();
        for second in 0..=600u64 {
            // A megabyte a second for nine minutes, then ten of them.
            let bytes = second.min(540) * 1_000_000 + second.saturating_sub(540) * 10_000_000;
            meter.add(Time(0) + Span::secs(second), bytes, second / 10);
        }
        let speed = meter.speed();
        assert_eq!(speed.bytes_per_s, (10_000_000, 1_900_000));
        assert_eq!(speed.steps_per_h, (360, 360));
        meter.add(Time(0) + Span::secs(1_300), 2_000_000_000, 100);
        assert_eq!(
            meter.speed().bytes_per_s,
            (0, 0),
            "what is older than ten minutes says nothing"
        );
    }
}
