//! Whom a request is for: the one place that says so, for clients, routers and the simulator.
use super::id::{DIRECTORY_SHARD, ShardId};
use super::key::Position;
use super::request::Request;

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The leader of the shard that holds this position.
    Position(Position),
    /// The leader of this shard; what is for the directory's leader is for that of `s-0`.
    Shard(ShardId),
    /// Any node.
    Any,
}

impl Request {
    /// Whom it is for.
    pub fn target(&self) -> Target {
        match self {
            Request::Get { service, key }
            | Request::ShowRequest { service, key, .. }
            | Request::ShowPair { service, key, .. }
            | Request::Children { service, key, .. }
            | Request::Activities { service, key, .. }
            | Request::Operations { service, key }
            | Request::History { service, key } => Target::Position(Position::new(service, key)),
            Request::Changes { ranges, .. } => {
                let first = ranges.first().map(|since| since.range.start.clone());
                Target::Position(first.unwrap_or_default())
            }
            Request::Write(write) => Target::Position(Position::new(&write.service, &write.entity_key())),
            Request::List { from, .. } | Request::ListActivities { from, .. } | Request::Ledger { from, .. } => {
                Target::Position(from.clone())
            }
            Request::SplitShard { shard, .. }
            | Request::TransferLeader { shard, .. }
            | Request::ChangeReplicas { shard, .. }
            | Request::HoldShard { shard, .. }
            | Request::FreezeShard { shard, .. }
            | Request::ThawShard { shard, .. }
            | Request::BumpEpoch { shard, .. }
            | Request::Samples { shard }
            | Request::VerifyShard { shard }
            | Request::MergeShards { left: shard, .. } => Target::Shard(*shard),
            Request::Map | Request::Status | Request::CreateToken { .. } | Request::Join { .. } => Target::Any,
            _ => Target::Shard(DIRECTORY_SHARD),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::RequestId;
    use crate::protocol::request::{Change, Condition, Write};

    #[test]
    fn a_post_goes_to_the_key_that_its_id_makes() {
        let id = RequestId(7);
        let write = |key: &str| {
            Request::Write(Write {
                service: "campaign".into(),
                key: key.into(),
                id,
                condition: Condition::Always,
                change: Change::Delete,
            })
        };
        let at = |key: &str| Target::Position(Position::new("campaign", key));
        assert_eq!(write("").target(), at(&id.entity_key()));
        assert_eq!(write("c-1").target(), at("c-1"));
        assert_eq!(Request::ShowSettings.target(), Target::Shard(DIRECTORY_SHARD));
    }
}
