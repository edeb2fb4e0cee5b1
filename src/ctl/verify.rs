//! `shard verify`: a shard's copies compared with each other, row by row.
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::output::{Listing, size};
use super::status::Cluster;
use super::{Ended, Environment};
use crate::protocol::id::{ReplicaId, ShardId};
use crate::protocol::request::{Request, Response};
use crate::protocol::shard_map::ReplicaRole;
use crate::protocol::verify::{CopyState, Verified};

pub(super) async fn verify(env: &Environment, shard: ShardId) -> Ended {
    let cluster = Cluster::ask(env).await?;
    if !cluster.shards.contains_key(&shard) {
        return Err(CtlError::new(exit::NOT_FOUND, format!("there is no shard {shard}")).next("isxctl shard list"));
    }
    let client = env.connect().await?;
    let verified = match client.request(Request::VerifyShard { shard }).await? {
        Response::Verified(verified) => *verified,
        _ => {
            let text = format!("{shard} was asked to compare its copies and answered something else");
            return Err(CtlError::new(exit::UNEXPECTED, text));
        }
    };
    let columns = [
        "NODE:node",
        "REPLICA:replica",
        "ROLE:role",
        "ROWS:rows",
        "SIZE:bytes",
        "HASH:hash",
        "STATE:state",
    ];
    let mut listing = Listing::new("isx.shard.verify/1", &columns);
    listing.about = vec![
        ("shard", shard.to_string().into()),
        ("epoch", verified.epoch.0.into()),
        ("index", verified.index.into()),
        ("slices", verified.slices.into()),
        ("result", result_of(&verified).into()),
        ("difference", difference(&cluster, &verified)),
    ];
    for copy in &verified.copies {
        let (node, hash) = (cluster.node_name(copy.node), format!("{:016x}", copy.hash));
        listing.push(
            vec![
                node.clone(),
                copy.replica.to_string(),
                role(copy.role).to_owned(),
                copy.rows.to_string(),
                size(copy.bytes),
                hash.clone(),
                state(copy.state).to_owned(),
            ],
            json!({"node": node, "replica": copy.replica.to_string(), "role": role(copy.role), "rows": copy.rows,
                   "bytes": copy.bytes, "hash": hash, "state": state(copy.state)}),
        );
    }
    env.print_listing(&listing)?;
    say(env, &cluster, &verified);
    Ok(exit_of(&verified))
}

/// In words, for people.
fn say(env: &Environment, cluster: &Cluster, verified: &Verified) {
    let shard = verified.shard;
    if let Some(difference) = &verified.difference {
        env.say(&format!(
            "the copies differ from {} on, as of log entry {}:",
            difference.from, difference.index
        ));
        for (replica, found) in &difference.found {
            env.say(&format!(
                "  {} {replica}   {found}",
                node_of(cluster, verified, *replica)
            ));
        }
    }
    match result_of(verified) {
        "same" => env.say(&format!(
            "all copies of {shard} are the same, up to log entry {}",
            verified.index
        )),
        "incomplete" => env.say("no difference was found, but not all copies answered for all rows"),
        _ => {
            env.say("copies that most voters disagree with, or with a damaged row, are quarantined and replaced");
            env.say(&format!("next: isxctl health; isxctl shard show {shard}"));
        }
    }
}

fn node_of(cluster: &Cluster, verified: &Verified, replica: ReplicaId) -> String {
    let copy = verified.copies.iter().find(|copy| copy.replica == replica);
    copy.map_or_else(|| "?".to_owned(), |copy| cluster.node_name(copy.node))
}

fn difference(cluster: &Cluster, verified: &Verified) -> Value {
    let Some(difference) = &verified.difference else {
        return Value::Null;
    };
    let found = difference.found.iter().map(|(replica, row)| {
        json!({"node": node_of(cluster, verified, *replica), "replica": replica.to_string(), "row": row})
    });
    json!({"from": difference.from, "index": difference.index, "found": found.collect::<Vec<_>>()})
}

fn result_of(verified: &Verified) -> &'static str {
    let has = |state| verified.copies.iter().any(|copy| copy.state == state);
    if verified.difference.is_some() || has(CopyState::Differs) {
        "differs"
    } else if has(CopyState::Damaged) {
        "damaged"
    } else if verified.is_complete() {
        "same"
    } else {
        "incomplete"
    }
}

fn exit_of(verified: &Verified) -> u8 {
    match result_of(verified) {
        "same" => exit::OK,
        "incomplete" => exit::PARTLY,
        _ => exit::REFUSED,
    }
}

fn role(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Voter => "voter",
        ReplicaRole::Learner => "learner",
        ReplicaRole::Incoming => "incoming",
        ReplicaRole::Outgoing => "outgoing",
    }
}

fn state(state: CopyState) -> &'static str {
    match state {
        CopyState::Same => "same",
        CopyState::Unheard => "no answer",
        CopyState::Quarantined => "quarantined",
        CopyState::Damaged => "damaged",
        CopyState::Differs => "differs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::{Epoch, NodeId};
    use crate::protocol::verify::{Difference, VerifiedCopy};

    #[test]
    fn how_it_ends_says_what_was_found() {
        let copy = |n, state| VerifiedCopy {
            node: NodeId(n),
            replica: ReplicaId(n),
            role: ReplicaRole::Voter,
            state,
            rows: 1,
            bytes: 10,
            hash: 7,
        };
        let with = |last| Verified {
            shard: ShardId(1),
            epoch: Epoch(1),
            index: 9,
            slices: 1,
            copies: vec![copy(1, CopyState::Same), copy(2, CopyState::Same), copy(3, last)],
            difference: None,
        };
        assert_eq!(exit_of(&with(CopyState::Same)), exit::OK);
        assert_eq!(exit_of(&with(CopyState::Unheard)), exit::PARTLY);
        assert_eq!(exit_of(&with(CopyState::Quarantined)), exit::PARTLY);
        assert_eq!(exit_of(&with(CopyState::Damaged)), exit::REFUSED);
        assert_eq!(exit_of(&with(CopyState::Differs)), exit::REFUSED);
        let mut undecided = with(CopyState::Unheard);
        undecided.difference = Some(Difference {
            from: String::new(),
            index: 9,
            found: Vec::new(),
        });
        assert_eq!(exit_of(&undecided), exit::REFUSED);
    }
}
