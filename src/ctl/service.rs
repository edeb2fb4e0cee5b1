//! New services.
use std::time::{Duration, Instant};

use serde_json::json;

use super::exit;
use super::{Ended, Environment};
use crate::client::{Client, ClientError, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, base32};
use crate::protocol::key::Position;
use crate::protocol::request::Request;

/// Where a new service is cut: at these keys, or evenly over the keys that posts get.
pub(super) fn cuts(service: &str, presplit: u32, keys: Vec<String>) -> Vec<Position> {
    if !keys.is_empty() {
        return keys.iter().map(|key| Position::new(service, key)).collect();
    }
    let even = |n: u32| {
        let point = (u64::from(n) << 20) / u64::from(presplit);
        // Four characters of five bits.
        let bytes = (point << 44).to_be_bytes();
        let mut key = base32().encode(&bytes);
        key.truncate(4);
        Position::new(service, &key)
    };
    (1..presplit).map(even).collect()
}

pub(super) async fn create(
    env: &Environment,
    name: String,
    replicas: u32,
    cuts: Vec<Position>,
    dry_run: bool,
) -> Ended {
    let client = env.connect().await?;
    let shards = cuts.len() + 1;
    let request = Request::CreateService {
        name: name.clone(),
        replicas,
        cuts: cuts.clone(),
        dry_run,
        id: RequestId::random(),
    };
    let asked = client.request(request).await;
    let is_up = match (&asked, dry_run) {
        (Ok(_), false) => wait(&client, &name, &cuts, env.cli.timeout).await,
        _ => true,
    };
    client.close().await;
    asked?;
    if env.format().is_json() {
        return env.print_json(
            &json!({"schema": "isx.service.create/1", "service": name, "shards": shards,
                                      "replicas": replicas, "dryRun": dry_run, "up": is_up}),
        );
    }
    if dry_run {
        env.say("dry run: nothing changed");
    }
    env.print(&format!("{name}   {shards} shards, {replicas} copies each\n"))?;
    if !is_up {
        env.say("its shards have not all elected leaders yet: isxctl shard list");
    }
    Ok(exit::OK)
}

/// Waits until all shards answer.
async fn wait(client: &Client, name: &str, cuts: &[Position], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let first = Position::new(name, "");
    let starts = std::iter::once(&first).chain(cuts);
    for start in starts {
        let query = ListQuery {
            service: name.to_owned(),
            from: start.parts().1.unwrap_or("").to_owned(),
            limit: 1,
            ..ListQuery::default()
        };
        loop {
            match client.list(&query).await {
                Ok(_) => break,
                // The node that was asked has not heard of it.
                Err(ClientError::Refused(error)) if error.code == Code::NoService && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => return false,
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_even_and_in_order() {
        assert_eq!(cuts("a", 1, Vec::new()), []);
        let four: Vec<String> = cuts("a", 4, Vec::new()).iter().map(ToString::to_string).collect();
        assert_eq!(four, ["a/8000", "a/g000", "a/r000"]);
        assert!(cuts("a", 256, Vec::new()).is_sorted_by(|a, b| a < b));
        assert_eq!(cuts("a", 1, vec!["m".to_owned()]), [Position::new("a", "m")]);
    }
}
