//! Entities: get, put, post, patch, delete, list; and what became of a write.
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

use super::args::{Document, EntityCommand, PatchSource};
use super::exit::{self, CtlError};
use super::output::{self, Format, Listing, timestamp};
use super::{Ended, Environment, children, index, journal, tentative, transfer, watch};
use crate::client::ListQuery;
use crate::protocol::activity::Body;
use crate::protocol::change::{History, How, Trace, TraceState};
use crate::protocol::id::RequestId;
use crate::protocol::key::Position;
use crate::protocol::request::{Change, Condition, ListItem, Write, Written};

pub(super) async fn run(env: &Environment, service: &str, command: EntityCommand) -> Ended {
    match command {
        EntityCommand::Get { keys, with: None } => get(env, service, &keys).await,
        EntityCommand::Get { keys, with: Some(_) } => children::get(env, service, &keys).await,
        EntityCommand::Put {
            key,
            document,
            if_version,
            if_absent,
            ttl,
            request_id,
            waiting,
        } => {
            let condition = if if_absent {
                Condition::IfAbsent
            } else {
                version(if_version)
            };
            let document = read_document(&document)?;
            let change = match ttl {
                Some(ttl) => Change::PutFor {
                    document,
                    ttl_ms: ttl.as_millis() as u64,
                },
                None => Change::Put(document),
            };
            change_entity(env, service, key, condition, change, request_id, &waiting).await
        }
        EntityCommand::Post {
            document,
            request_id,
            waiting,
        } => {
            let change = Change::Post(read_document(&document)?);
            let key = String::new();
            change_entity(env, service, key, Condition::Always, change, request_id, &waiting).await
        }
        EntityCommand::Send {
            key,
            to,
            action,
            data,
            request_id,
            waiting,
        } => {
            let Some((to_service, to_key)) = to.split_once('/') else {
                return Err(CtlError::new(
                    exit::USAGE,
                    format!("--to takes SERVICE/KEY, not `{to}`"),
                ));
            };
            let change = Change::Send {
                to: vec![Position::new(to_service, to_key)],
                body: Box::new(Body::Call {
                    action,
                    params: data.into(),
                }),
            };
            change_entity(env, service, key, Condition::Always, change, request_id, &waiting).await
        }
        EntityCommand::Patch {
            key,
            document,
            if_version,
            request_id,
            waiting,
        } => {
            let change = Change::Patch(read_patch(&document)?);
            change_entity(env, service, key, version(if_version), change, request_id, &waiting).await
        }
        EntityCommand::Delete {
            key,
            if_version,
            cascade,
            request_id,
            waiting,
        } => {
            if let Some(ended) = children::before_delete(env, service, &key, cascade).await? {
                return Ok(ended);
            }
            let condition = version(if_version);
            change_entity(env, service, key, condition, Change::Delete, request_id, &waiting).await
        }
        EntityCommand::List {
            by: Some(by),
            limit,
            resume,
            fields,
            ..
        } => match by.split_once('=') {
            Some(wanted) => index::find(env, service, wanted, (limit, resume), &fields).await,
            None => Err(CtlError::new(
                exit::USAGE,
                format!("--where takes FIELD=VALUE, not `{by}`"),
            )),
        },
        EntityCommand::List {
            by: None,
            prefix,
            from,
            to,
            limit,
            resume,
            fields,
        } => {
            let query = ListQuery {
                service: service.to_owned(),
                prefix,
                from,
                to,
                limit,
                documents: !fields.is_empty(),
                resume,
            };
            list(env, query, &fields).await
        }
        EntityCommand::Import {
            file,
            key_field,
            parallel,
            rate,
            resume,
            resume_from,
            patience,
            rejects,
        } => {
            let plan = transfer::Plan {
                service: service.to_owned(),
                file,
                key_field,
                parallel: parallel as usize,
                rate,
                resume,
                from_line: resume_from.unwrap_or(1),
                patience,
                rejects,
            };
            transfer::import(env, plan).await
        }
        EntityCommand::History { key, since } => history(env, service, &key, since).await,
        EntityCommand::Watch(args) => watch::run(env, service, args).await,
        EntityCommand::Export { prefix, out } => transfer::export(env, service, prefix, out.as_deref()).await,
    }
}

pub(super) async fn show_request(env: &Environment, id: RequestId, of: Option<&str>) -> Ended {
    let noted = journal::find(id);
    let (service, key) = match (of, &noted) {
        (Some(of), _) => match of.split_once('/') {
            Some((service, key)) => (service.to_owned(), key.to_owned()),
            // The key of a post follows from its id.
            None => (of.to_owned(), id.entity_key()),
        },
        (None, Some(entry)) => (entry.service.clone(), entry.key.clone()),
        (None, None) => {
            let message = format!("{id} is not in this account's journal of writes: name the entity it went to");
            return Err(CtlError::new(exit::USAGE, message)
                .next(format!("isxctl request show {id} --of SERVICE/KEY"))
                .next(format!("isxctl request show {id} --of SERVICE       if it was a post")));
        }
    };
    let client = env.connect().await?;
    let shown = client.show_request(&service, &key, id).await;
    client.close().await;
    match shown? {
        Some(written) => print_written(env, &service, id, &written, "committed", &[]),
        None => {
            let what = format!("{id} is not committed at {service}/{key}, as far as the entity remembers");
            let mut error = CtlError::new(exit::NOT_FOUND, what);
            error.causes.push(match noted {
                Some(entry) => format!(
                    "it was sent at {}; at least ten minutes are remembered",
                    timestamp(entry.sent_ms)
                ),
                None => "at least ten minutes are remembered".to_owned(),
            });
            Err(error.next(format!(
                "repeat the write with --request-id {id}: it has one effect, however often"
            )))
        }
    }
}

async fn get(env: &Environment, service: &str, keys: &[String]) -> Ended {
    let client = env.connect().await?;
    let (mut missing, mut items, mut text) = (Vec::new(), Vec::new(), String::new());
    for key in keys {
        let Some(entity) = client.get(service, key).await? else {
            missing.push(format!("{service}/{key}"));
            continue;
        };
        let document = String::from_utf8_lossy(&entity.document);
        match env.format() {
            // Put together as text: numbers of the document stay spelt as they were put.
            Format::Json | Format::Jsonl => {
                let mut head = json!({"service": service, "key": key, "version": entity.version,
                                      "updated": timestamp(entity.updated_ms)});
                if entity.schema > 0 {
                    head["schemaVersion"] = json!(entity.schema);
                }
                if !entity.aggregates.is_empty() {
                    head["aggregates"] = children::aggregates_json(&entity);
                }
                if let Some(expires) = entity.expires_ms {
                    head["expires"] = json!(timestamp(expires));
                }
                let head = head.to_string();
                items.push(format!("{},\"document\":{document}}}", &head[..head.len() - 1]));
            }
            Format::Name => text += &format!("{key}\n"),
            Format::Plain => {
                let line = output::compact(&entity.document);
                text += &format!("{}\n", String::from_utf8_lossy(&line));
            }
            Format::Table | Format::Wide => {
                let expires = entity.expires_ms.map(|ms| format!("   expires {}", timestamp(ms)));
                env.say(&format!(
                    "{service}/{key}   v{}   updated {}{}{}",
                    entity.version,
                    timestamp(entity.updated_ms),
                    expires.unwrap_or_default(),
                    children::aggregates_text(&entity)
                ));
                text += &output::indent(&document);
            }
        }
    }
    client.close().await;
    match env.format() {
        Format::Json if keys.len() == 1 && items.len() == 1 => {
            text = output::indent(&items[0].replacen('{', r#"{"schema":"isx.entity/1","#, 1));
        }
        Format::Json => {
            text = output::indent(&format!(
                r#"{{"schema":"isx.entity.list/1","items":[{}],"absent":{}}}"#,
                items.join(","),
                json!(missing)
            ));
        }
        Format::Jsonl => {
            let lines = items.iter().map(|item| output::compact(item.as_bytes()));
            text = lines
                .map(|line| String::from_utf8_lossy(&line).into_owned() + "\n")
                .collect();
        }
        _ => {}
    }
    env.print(&text)?;
    if missing.is_empty() {
        return Ok(exit::OK);
    }
    Err(
        CtlError::new(exit::NOT_FOUND, format!("there is no {}", missing.join(", ")))
            .next(format!("isxctl entity {service} list")),
    )
}

async fn history(env: &Environment, service: &str, key: &str, since: Option<Duration>) -> Ended {
    let client = env.connect().await?;
    let history = client.history_with_messages(service, key).await;
    client.close().await;
    let History { versions, messages } = history?;
    let Some(oldest) = versions.last() else {
        let error = CtlError::new(exit::NOT_FOUND, format!("there never was a {service}/{key}"));
        return Err(error.next(format!("isxctl entity {service} list")));
    };
    if oldest.version > 1 {
        env.say(&format!(
            "{service}/{key}: {} versions are remembered, v1 to v{} are not",
            versions.len(),
            oldest.version - 1
        ));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let from_ms = since.map_or(0, |since| now.saturating_sub(since).as_millis() as u64);
    let columns = [
        "VERSION:version",
        "TIME:updated",
        "HOW:how",
        "SIZE:bytes",
        "CAUSE:cause",
    ];
    let mut listing = Listing::new("isx.version.list/1", &columns);
    for version in versions.iter().filter(|version| version.updated_ms >= from_ms) {
        let (cause, time) = (version.cause(), timestamp(version.updated_ms));
        let is_deleted = version.how == How::Delete;
        let row = vec![
            version.version.to_string(),
            time.clone(),
            version.how.to_string(),
            if is_deleted {
                "-".to_owned()
            } else {
                output::size(version.bytes.into())
            },
            cause.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ];
        let beside = messages.iter().filter(|trace| trace.version == Some(version.version));
        let object = json!({
            "version": version.version, "updated": time, "how": version.how.to_string(), "bytes": version.bytes,
            "cause": cause.as_ref().map(watch::cause_json),
        });
        listing.push(row, object);
        // The message that made it is its cause; of others there is a line each.
        for trace in beside.filter(|trace| trace.sent) {
            listing.push(trace_row(trace), trace_json(trace));
        }
    }
    let is_known = |trace: &&Trace| versions.iter().any(|version| trace.version == Some(version.version));
    let others = messages.iter().filter(|trace| !is_known(trace));
    for trace in others.filter(|trace| trace.wall_ms.is_none_or(|ms| ms >= from_ms)) {
        listing.push(trace_row(trace), trace_json(trace));
    }
    listing.about.push(("of", json!(format!("{service}/{key}"))));
    env.print_listing(&listing)
}

fn trace_row(trace: &Trace) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let name = match trace.session {
        0 => trace.number.to_string(),
        session => format!("{session}.{}", trace.number),
    };
    let with = tentative::named(&trace.with);
    let text = match (trace.sent, trace.action.as_str()) {
        (true, "") => format!("msg {name} to {with}, {}", trace.state),
        (true, action) => format!("{action} to {with}, msg {name}, {}", trace.state),
        (false, _) => format!("the last from {with}, msg {name}"),
    };
    vec![
        or_dash(trace.version.map(|version| version.to_string())),
        or_dash(trace.wall_ms.map(timestamp)),
        if trace.sent { "sent" } else { "had" }.to_owned(),
        "-".to_owned(),
        text,
    ]
}

fn trace_json(trace: &Trace) -> Value {
    let (state, reason) = match &trace.state {
        TraceState::Pending => ("pending", None),
        TraceState::Applied => ("applied", None),
        TraceState::Refused(why) => ("rejected", Some(why)),
        TraceState::Parked(why) => ("parked", Some(why)),
    };
    json!({
        "version": trace.version, "how": if trace.sent { "sent" } else { "had" }, "with": tentative::named(&trace.with),
        "session": (trace.session > 0).then_some(trace.session), "number": trace.number,
        "action": Some(&trace.action).filter(|action| !action.is_empty()), "state": state, "reason": reason,
        "updated": trace.wall_ms.map(timestamp),
    })
}

async fn change_entity(
    env: &Environment,
    service: &str,
    key: String,
    condition: Condition,
    change: Change,
    request_id: Option<RequestId>,
    waiting: &children::Waiting,
) -> Ended {
    let id = request_id.unwrap_or_else(RequestId::random);
    let word = if change == Change::Delete {
        "deleted"
    } else {
        "committed"
    };
    let client = env.connect().await?;
    let is_post = matches!(change, Change::Post(_));
    journal::note(service, &if is_post { id.entity_key() } else { key.clone() }, id);
    let written = client
        .write(Write {
            service: service.to_owned(),
            key,
            id,
            condition,
            change,
        })
        .await;
    let ended = match written {
        Ok(written) => {
            let states = children::states(&client, service, &written, waiting, env.cli.timeout).await;
            let printed = print_written(env, service, id, &written, word, &states);
            printed.map(|_| children::ended(&states, waiting))
        }
        Err(error) => Err(error.into()),
    };
    client.close().await;
    ended
}

fn print_written(
    env: &Environment,
    service: &str,
    id: RequestId,
    written: &Written,
    word: &str,
    states: &[children::State],
) -> Ended {
    let Written {
        key,
        version,
        repeated,
        updated_ms,
        shard,
        sent,
    } = written;
    match env.format() {
        Format::Json | Format::Jsonl => env.print_json(&json!({
            "schema": "isx.written/1", "service": service, "key": key, "version": version, "repeated": repeated,
            "committed": timestamp(*updated_ms), "shard": shard.to_string(), "requestId": id.to_string(),
            "sent": children::sent_json(sent, states),
        })),
        Format::Name => env.print(&format!("{key}\n")),
        _ => {
            let repeated = if *repeated {
                "   (by an earlier arrival of this request)"
            } else {
                ""
            };
            let text = format!("{service}/{key}   v{version} {word}   shard {shard}   request {id}{repeated}\n");
            let printed = env.print(&(text + &children::sent_text(sent, states)))?;
            if states.contains(&children::State::Pending) {
                env.say("the parent is committed; pending messages arrive by themselves");
            }
            Ok(printed)
        }
    }
}

async fn list(env: &Environment, mut query: ListQuery, fields: &[String]) -> Ended {
    let client = env.connect().await?;
    let mut listing = listing(fields);
    let mut left = query.limit;
    let next = loop {
        query.limit = left;
        let page = client.list(&query).await?;
        for item in &page.items {
            push(&mut listing, item, fields);
        }
        left = left.saturating_sub(page.items.len() as u32);
        match page.next {
            Some(next) if left > 0 => query.resume = Some(next),
            next => break next,
        }
    };
    if let Some(next) = &next {
        listing.about.push(("continue", json!(next)));
        listing
            .next
            .push(format!("isxctl entity {} list --continue {next}", query.service));
    }
    client.close().await;
    let ended = env.print_listing(&listing)?;
    if let Some(again) = listing.next.first() {
        env.say(&format!("there are more: {again}"));
    }
    Ok(ended)
}

/// A listing of entities with these fields as columns.
pub(super) fn listing(fields: &[String]) -> Listing {
    let columns = ["KEY:key", "VERSION:version", "UPDATED:updated"];
    let mut listing = Listing::new("isx.entity.list/1", &columns);
    for field in fields {
        listing.column(&field.to_uppercase(), field);
    }
    listing
}

/// An entity as a row of such a listing.
pub(super) fn push(listing: &mut Listing, item: &ListItem, fields: &[String]) {
    let mut row = vec![item.key.clone(), item.version.to_string(), timestamp(item.updated_ms)];
    let mut object = json!({"key": item.key, "version": item.version, "updated": timestamp(item.updated_ms)});
    let document = if fields.is_empty() {
        Value::Null
    } else {
        parse(&item.document)
    };
    for field in fields {
        let value = field.split('.').fold(&document, |value, part| &value[part]);
        row.push(match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        object[field.as_str()] = value.clone();
    }
    listing.push(row, object);
}

fn version(wanted: Option<u64>) -> Condition {
    wanted.map_or(Condition::Always, Condition::IfVersion)
}

fn parse(document: &[u8]) -> Value {
    serde_json::from_slice(document).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(document).into_owned()))
}

fn read_document(source: &Document) -> Result<Bytes, CtlError> {
    match (&source.file, &source.data) {
        (Some(file), _) => read_file(file),
        (None, Some(data)) => Ok(data.clone().into()),
        (None, None) => Err(CtlError::new(exit::USAGE, "no document: give --file or --data")),
    }
}

fn read_file(file: &Path) -> Result<Bytes, CtlError> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes.into()),
        Err(error) => Err(CtlError::new(
            exit::USAGE,
            format!("cannot read `{}`: {error}", file.display()),
        )),
    }
}

fn read_patch(source: &PatchSource) -> Result<Bytes, CtlError> {
    let invalid = |why: String| CtlError::new(exit::INVALID, why);
    let mut patch = match &source.merge {
        Some(file) => serde_json::from_slice(&read_file(file)?).map_err(|error| invalid(error.to_string()))?,
        None => json!({}),
    };
    for assignment in &source.set {
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(CtlError::new(
                exit::USAGE,
                format!("--set takes PATH=VALUE, not `{assignment}`"),
            ));
        };
        // What reads as JSON is JSON, everything else is text.
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        let mut at = &mut patch;
        for part in path.split('.') {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[part];
        }
        *at = value;
    }
    Ok(patch.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_become_a_merge_patch() {
        let source = PatchSource {
            merge: None,
            set: vec!["budget.total=100".into(), "name=spring sale".into(), "old=null".into()],
        };
        let patch = read_patch(&source).expect("valid");
        assert_eq!(
            &patch[..],
            br#"{"budget":{"total":100},"name":"spring sale","old":null}"#
        );
    }
}
