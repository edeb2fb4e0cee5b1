//! Following changes: a line for each, and where to go on when it is interrupted.
use std::io::IsTerminal;

use serde_json::json;
use tokio::time::timeout;

use super::args::WatchArgs;
use super::exit::{self, CtlError};
use super::output::{self, Format, timestamp};
use super::{Ended, Environment};
use crate::client::{Scope, Watch, WatchEvent};
use crate::protocol::change::Change;

pub(super) async fn run(env: &Environment, service: &str, args: WatchArgs) -> Ended {
    let client = env.connect().await?;
    let scope = match (args.key, args.prefix) {
        (Some(key), _) => Some(Scope::Key(key)),
        (None, Some(prefix)) => Some(Scope::Prefix(prefix)),
        (None, None) if args.all => Some(Scope::All),
        (None, None) => None,
    };
    let mut watch = match (scope, &args.resume) {
        (Some(scope), None) => client.watch(service, &scope),
        (Some(scope), Some(token)) => client.watch(service, &scope).resume(token)?,
        (None, Some(token)) => client.resume_watch(token)?,
        (None, None) => return Err(CtlError::new(exit::USAGE, "what to watch: a KEY, --prefix P or --all")),
    };
    if watch.service() != service {
        let of = watch.service();
        let error = CtlError::new(exit::USAGE, format!("the token is of {of}, not of {service}"));
        return Err(error.next(format!("isxctl entity {of} watch --resume ...")));
    }
    if args.from_start {
        watch = watch.from_start();
    }
    if args.documents {
        watch = watch.documents();
    }
    // A cluster that does not answer at all is told as such; once it has begun, a watch outlives everything.
    match timeout(env.cli.timeout, watch.begin()).await {
        Ok(begun) => begun?,
        Err(_) => {
            let text = format!("no place to begin was learnt within {:?}", env.cli.timeout);
            return Err(CtlError::new(exit::UNREACHABLE, text).next("isxctl status"));
        }
    }
    let ended = follow(env, &mut watch, args.limit, args.from_start).await;
    client.close().await;
    ended
}

async fn follow(env: &Environment, watch: &mut Watch, limit: Option<u64>, from_start: bool) -> Ended {
    let service = watch.service().to_owned();
    let is_terminal = std::io::stdout().is_terminal();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let (mut told, mut resynced, mut trouble) = (0, 0, None);
    loop {
        if limit.is_some_and(|limit| told >= limit) {
            return Ok(exit::OK);
        }
        let event = tokio::select! {
            event = watch.next() => event?,
            _ = &mut interrupted => {
                eprintln!("interrupted; go on:  isxctl entity {service} watch --resume {}", watch.token());
                return Ok(exit::INTERRUPTED);
            }
        };
        let (change, after_gap, is_last) = match event {
            WatchEvent::Changed {
                change,
                after_gap,
                is_last,
            } => (change, after_gap, is_last),
            WatchEvent::Trouble(text) => {
                // The same trouble again and again is told once.
                if trouble.as_ref() != Some(&text) {
                    eprintln!("waiting: {text}");
                }
                trouble = Some(text);
                continue;
            }
        };
        trouble = None;
        told += 1;
        resynced += u64::from(after_gap);
        if is_last && resynced > 0 {
            if !from_start {
                eprintln!("resynchronised: {resynced} entities read anew; changes between may be missing");
            }
            resynced = 0;
        }
        let token = is_last.then(|| watch.token());
        let text = match env.format() {
            Format::Name => format!("{}\n", change.key),
            Format::Plain => plain(&change),
            Format::Table | Format::Wide if is_terminal => line(&service, &change),
            _ => json_line(&service, &change, after_gap, token.as_deref()),
        };
        env.print(&text)?;
        if env.is_closed.get() {
            return Ok(exit::OK);
        }
    }
}

fn plain(change: &Change) -> String {
    let what = if change.deleted { "deleted" } else { "changed" };
    let time = timestamp(change.updated_ms);
    format!("{}\t{}\t{what}\t{time}\n", change.key, change.version)
}

fn line(service: &str, change: &Change) -> String {
    let what = if change.deleted { "   deleted" } else { "" };
    let cause = change
        .cause
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string);
    let time = timestamp(change.updated_ms);
    let document = change.document.as_ref().map_or_else(String::new, |document| {
        format!("   {}", String::from_utf8_lossy(&output::compact(document)))
    });
    format!(
        "{time}   {service}/{}   v{}{what}   by {cause}{document}\n",
        change.key, change.version
    )
}

/// Put together as text where there is a document: its numbers stay spelt as they were put.
fn json_line(service: &str, change: &Change, after_gap: bool, token: Option<&str>) -> String {
    let mut object = json!({
        "schema": "isx.change/1", "service": service, "key": change.key, "version": change.version,
        "deleted": change.deleted, "updated": timestamp(change.updated_ms),
    });
    if let Some(cause) = &change.cause {
        object["cause"] = cause_json(cause);
    }
    if after_gap {
        object["afterGap"] = true.into();
    }
    if let Some(token) = token {
        object["token"] = token.into();
    }
    let head = object.to_string();
    match &change.document {
        None => format!("{head}\n"),
        Some(document) => {
            let document = output::compact(document);
            let document = String::from_utf8_lossy(&document);
            let open = head.strip_suffix('}').unwrap_or(&head);
            format!("{open},\"document\":{document}}}\n")
        }
    }
}

/// What made a version, for programs.
pub(super) fn cause_json(cause: &crate::protocol::change::Cause) -> serde_json::Value {
    use crate::protocol::change::Cause;
    match cause {
        Cause::Request(id) => json!({"request": id.to_string()}),
        Cause::Message { from, number } => json!({"message": {"from": from, "number": number}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::change::Cause;
    use crate::protocol::id::RequestId;

    #[test]
    fn a_change_is_a_line_of_json_whatever_is_in_it() {
        let mut change = Change {
            key: "c-1".into(),
            version: 7,
            deleted: false,
            updated_ms: 0,
            cause: Some(Cause::Request(RequestId(5))),
            document: Some("{\n \"n\": 1.10,\n \"o\": {}}".into()),
        };
        let text = json_line("campaign", &change, true, Some("w-abc"));
        assert!(text.ends_with(",\"document\":{\"n\":1.10,\"o\":{}}}\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["token"], &value["afterGap"]), (&json!("w-abc"), &json!(true)));
        change.cause = Some(Cause::Message {
            from: "profile/p-1".into(),
            number: 4,
        });
        change.document = None;
        let text = json_line("campaign", &change, false, None);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["cause"], json!({"message": {"from": "profile/p-1", "number": 4}}));
        assert!(value.get("token").is_none() && value.get("document").is_none());
    }
}
