//! Entities: get, put, post, patch, delete, list, import, export.
use std::io::{BufRead, Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::args::{Document, EntityCommand, PatchSource};
use super::exit::{self, CtlError};
use super::output::{self, Format, Listing, timestamp};
use super::{Ended, Environment};
use crate::client::{Client, ListQuery};
use crate::protocol::id::RequestId;
use crate::protocol::json;
use crate::protocol::request::{Change, Condition, Write, Written};

pub(super) async fn run(env: &Environment, service: &str, command: EntityCommand) -> Ended {
    match command {
        EntityCommand::Get { keys } => get(env, service, &keys).await,
        EntityCommand::Put {
            key,
            document,
            if_version,
            if_absent,
            request_id,
        } => {
            let condition = if if_absent {
                Condition::IfAbsent
            } else {
                version(if_version)
            };
            let change = Change::Put(read_document(&document)?);
            change_entity(env, service, key, condition, change, request_id).await
        }
        EntityCommand::Post { document, request_id } => {
            let change = Change::Post(read_document(&document)?);
            change_entity(env, service, String::new(), Condition::Always, change, request_id).await
        }
        EntityCommand::Patch {
            key,
            document,
            if_version,
            request_id,
        } => {
            let change = Change::Patch(read_patch(&document)?);
            change_entity(env, service, key, version(if_version), change, request_id).await
        }
        EntityCommand::Delete {
            key,
            if_version,
            request_id,
        } => {
            env.consent(&format!("delete {service}/{key}"))?;
            change_entity(env, service, key, version(if_version), Change::Delete, request_id).await
        }
        EntityCommand::List {
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
            rejects,
        } => import(env, service, &file, key_field, parallel, rejects.as_deref()).await,
        EntityCommand::Export { prefix, out } => export(env, service, prefix, out.as_deref()).await,
    }
}

pub(super) async fn show_request(env: &Environment, id: RequestId, of: &str) -> Ended {
    let Some((service, key)) = of.split_once('/') else {
        return Err(CtlError::new(
            exit::USAGE,
            format!("--of takes SERVICE/KEY, not `{of}`"),
        ));
    };
    let client = env.connect().await?;
    match client.show_request(service, key, id).await? {
        Some(written) => print_written(env, service, id, &written, "committed"),
        None => {
            let message =
                format!("{id} is not remembered at {of}: it never arrived, or it was more than ten minutes ago");
            Err(CtlError::new(exit::NOT_FOUND, message).next("repeat the write with --request-id: it has one effect"))
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
        match env.format() {
            Format::Json | Format::Jsonl => items.push(json!({
                "service": service, "key": key, "version": entity.version, "updated": timestamp(entity.updated_ms),
                "document": parse(&entity.document),
            })),
            Format::Name => text += &format!("{key}\n"),
            Format::Plain => text += &format!("{}\n", String::from_utf8_lossy(&entity.document)),
            Format::Table => {
                env.say(&format!(
                    "{service}/{key}   v{}   updated {}",
                    entity.version,
                    timestamp(entity.updated_ms)
                ));
                text += &output::pretty(&parse(&entity.document));
            }
        }
    }
    match env.format() {
        Format::Json if keys.len() == 1 && items.len() == 1 => {
            let mut item = items.remove(0);
            item["schema"] = "isx.entity/1".into();
            text = output::pretty(&item);
        }
        Format::Json => {
            text = output::pretty(&json!({"schema": "isx.entity.list/1", "items": items, "missing": missing}))
        }
        Format::Jsonl => text = items.iter().map(|item| format!("{item}\n")).collect(),
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

async fn change_entity(
    env: &Environment,
    service: &str,
    key: String,
    condition: Condition,
    change: Change,
    request_id: Option<RequestId>,
) -> Ended {
    let id = request_id.unwrap_or_else(RequestId::random);
    let word = if change == Change::Delete {
        "deleted"
    } else {
        "committed"
    };
    let client = env.connect().await?;
    let written = client
        .write(Write {
            service: service.to_owned(),
            key,
            id,
            condition,
            change,
        })
        .await?;
    client.close().await;
    print_written(env, service, id, &written, word)
}

fn print_written(env: &Environment, service: &str, id: RequestId, written: &Written, word: &str) -> Ended {
    let Written {
        key,
        version,
        repeated,
        updated_ms,
        shard,
    } = written;
    match env.format() {
        Format::Json | Format::Jsonl => env.print(&output::pretty(&json!({
            "schema": "isx.written/1", "service": service, "key": key, "version": version, "repeated": repeated,
            "committed": timestamp(*updated_ms), "shard": shard.to_string(), "requestId": id.to_string(),
        }))),
        Format::Name => env.print(&format!("{key}\n")),
        _ => {
            let repeated = if *repeated {
                "   (by an earlier arrival of this request)"
            } else {
                ""
            };
            env.print(&format!(
                "{service}/{key}   v{version} {word}   shard {shard}   request {id}{repeated}\n"
            ))
        }
    }
}

async fn list(env: &Environment, mut query: ListQuery, fields: &[String]) -> Ended {
    let client = env.connect().await?;
    let mut columns = vec!["KEY", "VERSION", "UPDATED"];
    let names: Vec<String> = fields.iter().map(|field| field.to_uppercase()).collect();
    columns.extend(names.iter().map(|name| &*Box::leak(name.clone().into_boxed_str())));
    let mut listing = Listing::new("isx.entity.list/1", &columns);
    let mut left = query.limit;
    let next = loop {
        query.limit = left;
        let page = client.list(&query).await?;
        for item in &page.items {
            let mut row = vec![item.key.clone(), item.version.to_string(), timestamp(item.updated_ms)];
            let mut object = json!({"key": item.key, "version": item.version, "updated": timestamp(item.updated_ms)});
            let document = if fields.is_empty() {
                Value::Null
            } else {
                parse(&item.document)
            };
            for field in fields {
                let value = field.split('.').fold(&document, |value, part| &value[part]);
                row.push(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                object[field.as_str()] = value.clone();
            }
            listing.push(row, object);
        }
        left = left.saturating_sub(page.items.len() as u32);
        match page.next {
            Some(next) if left > 0 => query.resume = Some(next),
            next => break next,
        }
    };
    if let Some(next) = &next {
        listing.extra.push(("continue", json!(next)));
    }
    let ended = env.print_listing(&listing)?;
    if let Some(next) = next {
        env.say(&format!(
            "there are more: isxctl entity {} list --continue {next}",
            query.service
        ));
    }
    Ok(ended)
}

/// Lines still to be put, shared by the workers.
struct Source {
    lines: std::io::Lines<Box<dyn BufRead + Send>>,
    number: u64,
}

async fn import(
    env: &Environment,
    service: &str,
    file: &Path,
    key_field: Option<String>,
    parallel: u32,
    rejects: Option<&Path>,
) -> Ended {
    let cannot = |what: &str, path: &Path, error: std::io::Error| {
        let mut this = CtlError::from_error(exit::UNEXPECTED, &error);
        this.message = format!("cannot {what} `{}`: {}", path.display(), this.message);
        this
    };
    let (reader, bytes): (Box<dyn BufRead + Send>, Option<u64>) = if file == Path::new("-") {
        (Box::new(std::io::BufReader::new(std::io::stdin())), None)
    } else {
        let opened = std::fs::File::open(file).map_err(|error| cannot("open", file, error))?;
        let length = opened.metadata().map(|meta| meta.len()).ok();
        (Box::new(std::io::BufReader::with_capacity(1 << 18, opened)), length)
    };
    let mut reject_file = match rejects {
        Some(path) => Some(std::fs::File::create(path).map_err(|error| cannot("create", path, error))?),
        None => None,
    };
    let client = env.connect().await?;
    let bar = env.progress(
        bytes,
        "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}",
    );
    bar.set_message("import");
    let began = std::time::Instant::now();
    let source = Arc::new(Mutex::new(Source {
        lines: reader.lines(),
        number: 0,
    }));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..parallel {
        let (client, source, bar) = (client.clone(), Arc::clone(&source), bar.clone());
        let (service, key_field) = (service.to_owned(), key_field.clone());
        workers.spawn(async move { import_worker(&client, &service, key_field.as_deref(), &source, &bar).await });
    }
    let (mut done, mut rejected) = (0, Vec::new());
    while let Some(worker) = workers.join_next().await {
        let (count, bad) = worker.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        done += count;
        rejected.extend(bad);
    }
    bar.finish_and_clear();
    rejected.sort_by_key(|(number, _, _)| *number);
    if let Some(out) = &mut reject_file {
        for (number, line, why) in &rejected {
            let row = json!({"line": number, "why": why, "text": line});
            writeln!(out, "{row}").map_err(|error| cannot("write", rejects.unwrap_or(file), error))?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = done as f64 / seconds.max(1e-9);
    match env.format() {
        Format::Json | Format::Jsonl => env.print(&output::pretty(&json!({
            "schema": "isx.import/1", "service": service, "done": done, "rejected": rejected.len(),
            "seconds": seconds, "perSecond": rate,
        })))?,
        _ => env.print(&format!(
            "{done} put, {} rejected, in {seconds:.1} s ({rate:.0}/s)\n",
            rejected.len()
        ))?,
    };
    if rejected.is_empty() {
        return Ok(exit::OK);
    }
    let mut error = CtlError::new(exit::PARTLY, format!("{} lines were not taken", rejected.len()));
    error.committed = "yes";
    error.causes = rejected
        .iter()
        .take(5)
        .map(|(number, _, why)| format!("line {number}: {why}"))
        .collect();
    Err(error.next("--rejects FILE keeps them; importing the same file again is harmless"))
}

async fn import_worker(
    client: &Client,
    service: &str,
    key_field: Option<&str>,
    source: &Mutex<Source>,
    bar: &indicatif::ProgressBar,
) -> (u64, Vec<(u64, String, String)>) {
    let (mut done, mut rejected) = (0, Vec::new());
    loop {
        let (number, line) = {
            let mut source = source.lock().await;
            source.number += 1;
            match source.lines.next() {
                None => return (done, rejected),
                Some(Ok(line)) => (source.number, line),
                Some(Err(error)) => {
                    rejected.push((source.number, String::new(), format!("cannot be read: {error}")));
                    return (done, rejected);
                }
            }
        };
        if line.trim().is_empty() {
            continue;
        }
        let result = match import_line(&line, key_field) {
            Ok((key, document)) => client
                .put(service, &key, document)
                .await
                .map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match result {
            Ok(_) => done += 1,
            Err(why) => rejected.push((number, line.clone(), why)),
        }
        bar.inc(line.len() as u64 + 1);
    }
}

/// Key and document of a line.
fn import_line(line: &str, key_field: Option<&str>) -> Result<(String, Bytes), String> {
    // Checked as text first: a field that occurs twice would be lost by parsing.
    json::check_document(line.as_bytes())?;
    let mut value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    match key_field {
        Some(field) => {
            let key = value
                .get(field)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("no text field `{field}`"))?;
            Ok((key.to_owned(), Bytes::copy_from_slice(line.trim().as_bytes())))
        }
        None => {
            let key = value
                .get("key")
                .and_then(Value::as_str)
                .ok_or("no text field `key`")?
                .to_owned();
            let document = value
                .get_mut("document")
                .map(Value::take)
                .ok_or("no field `document`")?;
            Ok((key, document.to_string().into()))
        }
    }
}

async fn export(env: &Environment, service: &str, prefix: String, out: Option<&Path>) -> Ended {
    let client = env.connect().await?;
    let bar = env.progress(None, "export {spinner} {pos} entities  {per_sec}");
    let failed = |error: std::io::Error| CtlError::from_error(exit::UNEXPECTED, &error);
    let mut sink: Box<dyn std::io::Write> = match out {
        Some(path) => Box::new(std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?)),
        None => Box::new(std::io::BufWriter::new(std::io::stdout().lock())),
    };
    let mut query = ListQuery {
        service: service.to_owned(),
        prefix,
        documents: true,
        ..ListQuery::default()
    };
    let mut count = 0;
    loop {
        let page = client.list(&query).await?;
        for item in &page.items {
            // The document as it was put, between a key and nothing else.
            let key = Value::from(item.key.as_str());
            // A line is a line: a document that was put with line breaks loses them, and nothing else.
            let document = if item.document.contains(&b'\n') {
                Bytes::from(parse(&item.document).to_string())
            } else {
                item.document.clone()
            };
            let line = [
                br#"{"key":"#.as_slice(),
                key.to_string().as_bytes(),
                br#","document":"#.as_slice(),
                &document,
                b"}\n".as_slice(),
            ]
            .concat();
            match sink.write_all(&line) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(exit::OK),
                other => other.map_err(failed)?,
            }
        }
        count += page.items.len() as u64;
        bar.set_position(count);
        match page.next {
            Some(next) => query.resume = Some(next),
            None => break,
        }
    }
    sink.flush().map_err(failed)?;
    bar.finish_and_clear();
    env.say(&format!("{count} exported"));
    Ok(exit::OK)
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
    fn lines_become_keys_and_documents() {
        let (key, document) = import_line(r#"{"key":"c-1","document":{"b":1,"a":[2.50]}}"#, None).expect("valid");
        assert_eq!((key.as_str(), &document[..]), ("c-1", &br#"{"b":1,"a":[2.5]}"#[..]));
        let (key, document) = import_line(r#" {"id":"x", "n": 1} "#, Some("id")).expect("valid");
        assert_eq!((key.as_str(), &document[..]), ("x", &br#"{"id":"x", "n": 1}"#[..]));
        assert!(import_line(r#"{"key":"a","key":"b","document":{}}"#, None).is_err());
        assert!(import_line(r#"{"key":1,"document":{}}"#, None).is_err());
    }

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
