//! Structs as entities: a campaign with its profiles in one update, read back together.
//!
//! ```text
//! isxctl dev up --fresh
//! cargo run --example typed -- schema campaign > campaign.toml
//! cargo run --example typed -- schema profile > profile.toml
//! isxctl schema apply -f campaign.toml -f profile.toml
//! cargo run --example typed
//! ```
use std::time::Duration;

use isx::client::{Client, ConnectOptions, Delivery};
use isx::typed::{Choice, Committed, Record, SchemaCheck, TypedClient};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, Record)]
#[isx(service = "campaign", rules = RULES)]
struct Campaign {
    #[isx(max_length = 200)]
    name: String,
    status: Status,
    #[isx(min = 0)]
    budget: i64,
    #[isx(children, on_delete = "cascade")]
    profiles: Vec<Profile>,
}

/// What a struct can't say: pausing a campaign pauses its profiles.
const RULES: &str = r#"
[[action]]
name = "pause"
on = ["put", "patch"]
when = { field = "status", changed = true, equals = "paused" }
to = "profiles"
set = { status = "paused" }
"#;

#[derive(Debug, Serialize, Deserialize, Choice)]
#[serde(rename_all = "lowercase")]
enum Status {
    Active,
    Paused,
}

#[derive(Debug, Serialize, Deserialize, Record)]
#[isx(service = "profile")]
struct Profile {
    #[isx(key)]
    key: Option<String>,
    status: Option<Status>,
    #[isx(min = 13, max = 120)]
    age_min: i64,
    #[isx(parent = "campaign")]
    campaign: Option<String>,
}

fn profile(key: Option<&str>, age_min: i64) -> Profile {
    Profile {
        key: key.map(str::to_owned),
        status: None,
        age_min,
        campaign: None,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["schema", "campaign"] => print!("{}", Campaign::schema_text()),
        ["schema", "profile"] => print!("{}", Profile::schema_text()),
        _ => update().await?,
    }
    Ok(())
}

async fn update() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(ConnectOptions::from_context(None)?).await?;
    match client.check_schema::<Campaign>().await? {
        SchemaCheck::Same { version } => println!("the cluster has this schema as version {version}"),
        SchemaCheck::Differs { version, changes } => {
            println!("the cluster's version {version} differs:");
            for change in changes {
                println!("  {}: {}", change.path, change.text);
            }
        }
        SchemaCheck::Absent => println!("the cluster has no schema for campaigns; see the top of this file"),
    }

    let mut spring = Campaign {
        name: "spring".to_owned(),
        status: Status::Active,
        budget: 100,
        profiles: vec![profile(Some("p-17"), 18), profile(None, 30)],
    };
    let done = client.update::<Campaign>("c-typed").with(&spring).commit().await?;
    tell(&client, &done).await?;

    // Profiles that are not in the list stay as they are, but for what the action does to them.
    spring.profiles.clear();
    spring.status = Status::Paused;
    let update = client.update::<Campaign>("c-typed").with(&spring);
    let done = update.if_version(done.version).commit().await?;
    tell(&client, &done).await?;

    let read = client.read::<Campaign>("c-typed").with_children().fetch().await?;
    match read {
        Some(read) => {
            println!("{} has", read.value.name);
            for profile in &read.value.profiles {
                let key = profile.key.as_deref().unwrap_or_default();
                let status = match profile.status {
                    Some(Status::Paused) => "paused",
                    Some(Status::Active) | None => "active",
                };
                println!("  {key:<16}  from age {}, {status}", profile.age_min);
            }
        }
        None => println!("somebody deleted it meanwhile"),
    }
    client.close().await;
    Ok(())
}

/// What an update did, and what became of its children.
async fn tell(client: &Client, done: &Committed) -> Result<(), Box<dyn std::error::Error>> {
    println!("campaign/{} is at version {}", done.key, done.version);
    let deliveries = done.delivered(client, Duration::from_secs(5)).await?;
    for (child, delivery) in done.children.iter().zip(deliveries) {
        let state = match delivery {
            Delivery::Applied => "applied".to_owned(),
            Delivery::Pending => "on its way".to_owned(),
            Delivery::Refused(reason) => format!("refused: {reason}"),
        };
        println!("  {}/{:<16}  {:<5}  {state}", child.service, child.key, child.action);
    }
    Ok(())
}
