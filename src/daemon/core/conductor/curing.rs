//! Quarantined copies are given up; the planner then sees a shard with too few, and makes another one.
use super::*;
use crate::protocol::shard_map::ReplicaDescriptor;

impl Node {
    pub(super) fn give_up_quarantined(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        if now.since(self.conductor.last_cure) < self.pause(CURE_EVERY_PER_THOUSAND) {
            return;
        }
        self.conductor.last_cure = now;
        let mut due = Vec::new();
        for shard in self.map.shards().filter(|shard| !shard.quarantined.is_empty()) {
            let is_busy = shard.is_joint() || shard.frozen.is_some();
            let rests = self
                .conductor
                .trouble
                .get(&shard.id)
                .is_some_and(|trouble| now.since(trouble.at) < CURE_AGAIN_AFTER);
            if !is_busy && !rests && !self.is_asked(shard.id) {
                due.push(shard.clone());
            }
        }
        for shard in due {
            // Learners go one at a time; voters all at once, or those that are left may be too few to agree.
            let bad = shard.replicas.iter().filter(|replica| shard.is_quarantined(replica.id));
            let (voters, mut gone): (Vec<&ReplicaDescriptor>, Vec<&ReplicaDescriptor>) =
                bad.partition(|replica| replica.role.votes());
            gone.truncate(1);
            if !voters.is_empty() {
                gone = voters;
            }
            let request = Request::ChangeReplicas {
                shard: shard.id,
                epoch: shard.epoch,
                changes: gone
                    .into_iter()
                    .map(|replica| ReplicaChange::Remove { replica: replica.id })
                    .collect(),
                id: step_id(OpId(0), shard.id, shard.epoch),
            };
            self.conductor_ask(shard.id, AskedKind::Task, request, state, effects);
        }
    }
}

/// The shard's leader first reads the other copies, which takes its time.
const CURE_AGAIN_AFTER: Span = Span::millis(500);
