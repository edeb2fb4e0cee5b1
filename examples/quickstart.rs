//! Writes, reads, changes and lists a few campaigns on the current context's cluster.
//!
//! ```text
//! isxctl dev up
//! cargo run --example quickstart
//! ```
use isx::client::{Client, ClientError, ConnectOptions, ListQuery};
use isx::protocol::error::Code;
use isx::protocol::id::RequestId;
use isx::protocol::request::{Change, Condition, Write};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(ConnectOptions::from_context(None)?).await?;

    let written = client
        .put("campaign", "c-1001", r#"{"name":"spring","budget":100}"#)
        .await?;
    println!("campaign/{} is at version {}", written.key, written.version);

    // Only if nobody changed it since: the answer to a lost race is an error that names the current version.
    let write = Write {
        service: "campaign".into(),
        key: "c-1001".into(),
        id: RequestId::random(),
        condition: Condition::IfVersion(written.version),
        change: Change::Patch(r#"{"budget":250}"#.into()),
    };
    match client.write(write.clone()).await {
        Ok(written) => println!("patched, now version {}", written.version),
        Err(ClientError::Refused(error)) if error.code == Code::VersionConflict => {
            println!("somebody was faster: it is at version {:?}", error.version);
        }
        // The time limit came first. The same write again, with the same id, has one effect.
        Err(ClientError::Unknown { id, .. }) => {
            let written = client.write(write).await?;
            println!("request {id} made version {}", written.version);
        }
        Err(error) => return Err(error.into()),
    }

    let posted = client.post("campaign", r#"{"name":"summer"}"#).await?;
    println!("the cluster chose the key {}", posted.key);

    let entity = client.get("campaign", "c-1001").await?.expect("written above");
    println!("c-1001: {}", String::from_utf8_lossy(&entity.document));

    let mut query = ListQuery {
        service: "campaign".into(),
        limit: 3,
        ..ListQuery::default()
    };
    // Two pages; the second begins where the first ended, whatever was split or moved in between.
    for _ in 0..2 {
        let page = client.list(&query).await?;
        for item in &page.items {
            println!("{:<20} v{}", item.key, item.version);
        }
        match page.next {
            Some(next) => query.resume = Some(next),
            None => break,
        }
    }
    client.close().await;
    Ok(())
}
