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
            Response::Ids { first } => splitting.child = Some(ShardId(first)),
            Response::Split { left, right } => {
                self.map.learn_shard(&left);
                self.map.learn_shard(&right);
                self.conductor.splitting.remove(&shard);
            }
            _ => {
                self.conductor.splitting.remove(&shard);
            }
        }
    }
}
