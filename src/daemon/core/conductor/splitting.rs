//! Shards that are too large or too busy are cut.
use super::*;

impl Node {
    pub(super) fn tend_splits(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let shards: Vec<ShardId> = self.conductor.splitting.keys().copied().collect();
        for shard in shards {
            if self.is_asked(shard) {
                continue;
            }
            let now_epoch = self.map.shard(shard).map(|known| (known.epoch, known.range.clone()));
            let Some(splitting) = self.conductor.splitting.get(&shard) else {
                continue;
            };
            let Some((epoch, range)) = now_epoch.filter(|(epoch, _)| *epoch == splitting.epoch) else {
                // Done, or something else happened to it.
                self.conductor.splitting.remove(&shard);
                continue;
            };
            let id = RequestId(u128::from(shard.0) << 64 | u128::from(epoch.0));
            let request = match (&splitting.at, splitting.child) {
                (None, _) if splitting.by_load => Request::Samples { shard },
                (None, _) => Request::List {
                    from: splitting.from.clone(),
                    to: range.end,
                    limit: SPLIT_PAGE,
                    documents: false,
                },
                (Some(_), None) => Request::AllocateIds { count: 1, id },
                (Some(at), Some(child)) => Request::SplitShard {
                    shard,
                    epoch,
                    at: at.clone(),
                    child,
                    id,
                },
            };
            self.conductor_ask(shard, AskedKind::Split, request, state, effects);
        }
    }

    /// A shard is to be cut at a key that is known.
    pub(super) fn begin_cut(&mut self, shard: ShardId, at: Position) {
        let rests = self
            .conductor
            .trouble
            .get(&shard)
            .is_some_and(|trouble| self.clock.now.since(trouble.at) < RETRY_AFTER);
        let Some(known) = self.map.shard(shard).filter(|_| !rests) else {
            return;
        };
        let (epoch, from) = (known.epoch, known.range.start.clone());
        self.conductor.splitting.entry(shard).or_insert(Splitting {
            epoch,
            entities: 0,
            counted: 0,
            from,
            at: Some(at),
            child: None,
            by_load: false,
        });
    }

    pub(super) fn split_answered(&mut self, shard: ShardId, response: Response) {
        let start = self.map.shard(shard).map(|shard| shard.range.start.clone());
        let Some(splitting) = self.conductor.splitting.get_mut(&shard) else {
            return;
        };
        match response {
            Response::Listed { items, next } => {
                splitting.counted += items.len() as u64;
                let half = (splitting.entities / 2).max(1);
                let service = splitting.from.parts().0.to_owned();
                let middle = items
                    .len()
                    .saturating_sub(1 + splitting.counted.saturating_sub(half) as usize);
                match (splitting.counted >= half || next.is_none(), items.get(middle), next) {
                    (true, Some(item), _) => {
                        let at = Position::new(&service, &item.key);
                        if start.is_some_and(|start| at > start) {
                            splitting.at = Some(at);
                        } else {
                            self.conductor.splitting.remove(&shard);
                        }
                    }
                    (false, _, Some(next)) => splitting.from = next,
                    _ => {
                        self.conductor.splitting.remove(&shard);
                    }
                }
            }
            Response::Samples(keys) => {
                splitting.by_load = false;
                let service = splitting.from.parts().0.to_owned();
                let first = keys.first().cloned();
                // The half of the requests is before it; one key that has more than half is cut off on its right.
                let middle = keys.get(keys.len() / 2).filter(|_| keys.len() >= SAMPLES_MIN);
                let cut =
                    middle.and_then(|middle| keys.iter().find(|key| *key >= middle && Some(*key) != first.as_ref()));
                splitting.at = cut
                    .map(|key| Position::new(&service, key))
                    .filter(|at| start.is_some_and(|start| *at > start));
            }
            Response::Ids { first } => splitting.child = Some(ShardId(first)),
            Response::Split { left, right } => {
                self.map.learn_shard(&left);
                self.map.learn_shard(&right);
                self.conductor.splitting.remove(&shard);
                self.conductor.trouble.remove(&shard);
            }
            Response::Error(error) => {
                self.conductor.splitting.remove(&shard);
                self.note_trouble(shard, error);
            }
            _ => {
                self.conductor.splitting.remove(&shard);
            }
        }
    }
}
