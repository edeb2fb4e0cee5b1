//! `shard freeze` and `shard thaw`: writes are kept away from a shard for a while.
use std::time::Duration;

use serde_json::json;

use super::exit::{self, CtlError};
use super::output::timestamp;
use super::{Ended, Environment};
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::request::{HOLD_MS_MAX, Request, Response};

/// Freezes the shard, or ends that where there is no time.
pub(super) async fn hold(env: &Environment, shard: ShardId, span: Option<Duration>) -> Ended {
    let for_ms = span.map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    if span.is_some() && !(1..=HOLD_MS_MAX).contains(&for_ms) {
        let text = format!(
            "--for must be from 1 ms to {} h; nothing was changed",
            HOLD_MS_MAX / 3_600_000
        );
        return Err(CtlError::new(exit::USAGE, text));
    }
    let client = env.connect().await?;
    let id = RequestId::random();
    let held = match client.request(Request::HoldShard { shard, for_ms, id }).await? {
        Response::Shard(shard) => shard.held,
        _ => {
            let text = format!("{shard} was asked to take no writes and answered something else");
            return Err(CtlError::new(exit::UNEXPECTED, text));
        }
    };
    let ends = held.map(|held| timestamp(held.ends_ms));
    if env.format().is_json() {
        return env
            .print_json(&json!({"schema": "isx.shard.freeze/1", "shard": shard.to_string(), "frozenUntil": ends}));
    }
    env.print(&match ends {
        Some(ends) => format!("{shard} takes no writes until {ends}; reads go on\n"),
        None => format!("{shard} takes writes\n"),
    })
}
