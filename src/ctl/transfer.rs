//! Import and export: entities as JSON lines, `{"key": ..., "document": {...}}`. A document goes in and comes out as it is
//! spelt; nothing here rounds a number or reorders a field.
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::exit::{self, CtlError};
use super::{Ended, Environment, journal, output};
use crate::client::{Client, ClientError, ListQuery};
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::json;
use crate::protocol::request::{Change, Condition, Write, Written};

/// Longest line that is read. Unit: bytes. A document of the largest size with a key, and room for white space.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// How often the place reached is written down.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// After Ctrl-C, answers are waited for this long.
const DRAIN: Duration = Duration::from_secs(1);
/// Lines read ahead of those that are sent.
const READ_AHEAD: usize = 1_024;
/// Pause before a line is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Rejected lines that the error names.
const REJECTS_TOLD: usize = 5;
/// From this many lines on, all in one shard, a hint about splitting is worth a line.
const HINT_FROM: u64 = 1_000;

/// What to import, and how.
pub(super) struct Plan {
    pub(super) service: String,
    /// `-` is standard input.
    pub(super) file: PathBuf,
    pub(super) key_field: Option<String>,
    pub(super) parallel: usize,
    /// Lines per second.
    pub(super) rate: Option<u32>,
    pub(super) resume: bool,
    pub(super) from_line: u64,
    /// How long a line is sent again and again while the cluster does not answer.
    pub(super) patience: Duration,
    pub(super) rejects: Option<PathBuf>,
}

/// What became of a line.
enum Fate {
    Done(Written),
    Rejected(String),
    /// It may have been taken; nobody said.
    Unknown(RequestId, String),
    /// Not this line's fault: the import can't go on.
    Stop(ClientError),
}

/// A line that can be put.
struct Ready {
    number: u64,
    text: String,
    key: String,
    document: Bytes,
}

/// A line under way.
struct Line {
    number: u64,
    text: String,
    key: String,
    fate: Fate,
}

#[derive(Default)]
struct Tally {
    done: u64,
    rejected: u64,
    told: Vec<String>,
    unknown: Vec<(u64, RequestId)>,
    stop: Option<ClientError>,
    shards: BTreeSet<ShardId>,
}

pub(super) async fn import(env: &Environment, plan: Plan) -> Ended {
    let client = env.connect().await?;
    let mark = Mark::new(&plan, &client.cluster().to_string());
    let mut first = plan.from_line;
    if plan.resume {
        match mark.as_ref().and_then(Mark::read) {
            Some(line) => first = line,
            None => env.say("no interrupted import of this file is known: beginning at its first line"),
        }
    }
    let lines = Lines::open(&plan.file)?;
    let mut rejects = match &plan.rejects {
        Some(path) => Some(BufWriter::new(
            File::create(path).map_err(|error| cannot("create", path, &error))?,
        )),
        None => None,
    };
    let bar = env.progress(lines.bytes, if lines.bytes.is_some() { BAR } else { BAR_ENDLESS });
    bar.set_message("import");
    let mut lines = lines.read_ahead();
    let unreadable = |error: io::Error| cannot("read", &plan.file, &error);
    let mut read = 0;
    while read + 1 < first {
        match lines.recv().await.transpose().map_err(unreadable)? {
            Some((number, _, bytes)) => {
                read = number;
                bar.inc(bytes);
            }
            None => {
                let message = format!("`{}` has {read} lines and no line {first}", plan.file.display());
                return Err(CtlError::new(exit::USAGE, message));
            }
        }
    }

    let began = Instant::now();
    let mut tally = Tally::default();
    let mut under_way: JoinSet<Line> = JoinSet::new();
    let mut numbers = BTreeSet::new();
    // Two lines with one key must be put in their order: the second waits for the first.
    let mut keys: BTreeSet<String> = BTreeSet::new();
    let mut waiting: Option<Ready> = None;
    let (mut at_end, mut sent) = (false, 0u64);
    // After Ctrl-C: how long answers to what is under way are still waited for.
    let mut until: Option<Instant> = None;
    let mut marked = Instant::now();
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
    loop {
        let is_stopping = until.is_some() || tally.stop.is_some();
        let due = plan
            .rate
            .map(|rate| began + Duration::from_secs_f64(sent as f64 / f64::from(rate)))
            .filter(|due| *due > Instant::now());
        let has_room = under_way.len() < plan.parallel && !is_stopping;
        let may_go = |key: &String| has_room && due.is_none() && !keys.contains(key);
        if let Some(ready) = waiting.take_if(|ready| may_go(&ready.key)) {
            let Ready {
                number,
                text,
                key,
                document,
            } = ready;
            numbers.insert(number);
            keys.insert(key.clone());
            sent += 1;
            let (client, service, patience) = (client.clone(), plan.service.clone(), plan.patience);
            under_way.spawn(async move {
                let fate = put(&client, service, key.clone(), document, patience).await;
                Line {
                    number,
                    text,
                    key,
                    fate,
                }
            });
        }
        let is_late = until.is_some_and(|until| until <= Instant::now());
        if is_late || (under_way.is_empty() && (is_stopping || (at_end && waiting.is_none()))) {
            break;
        }
        let wakes = until.or(due.filter(|_| has_room && waiting.is_some()));
        let pause = async {
            match wakes {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = lines.recv(), if waiting.is_none() && !at_end && !is_stopping => {
                match line.transpose().map_err(unreadable)? {
                    None => at_end = true,
                    Some((number, line, bytes)) => {
                        read = number;
                        bar.inc(bytes);
                        match line.and_then(|text| parse(number, text, plan.key_field.as_deref())) {
                            Ok(ready) => waiting = ready,
                            Err((text, why)) => tally.reject(number, &text, &why, &mut rejects)?,
                        }
                    }
                }
            }
            ended = under_way.join_next(), if !under_way.is_empty() => {
                if let Some(line) = ended {
                    let line = line.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
                    keys.remove(&line.key);
                    // A line that has no outcome stays among those that an import that goes on must send again.
                    if !matches!(line.fate, Fate::Stop(_) | Fate::Unknown(..)) {
                        numbers.remove(&line.number);
                    }
                    tally.count(&plan.service, line, &mut rejects)?;
                }
            }
            () = pause => {}
            _ = interrupts.recv() => match until {
                None => until = Some(Instant::now() + DRAIN),
                Some(_) => break,
            },
        }
        if marked.elapsed() > MARK_EVERY {
            marked = Instant::now();
            mark.iter()
                .for_each(|mark| mark.write(next_line(&numbers, &waiting, read)));
        }
    }
    let interrupted = until.is_some();
    let next = next_line(&numbers, &waiting, read);
    bar.finish_and_clear();
    if let Some(out) = &mut rejects {
        out.flush()
            .map_err(|error| cannot("write", plan.rejects.as_deref().unwrap_or(&plan.file), &error))?;
    }
    let is_whole = at_end && !interrupted && tally.stop.is_none() && tally.unknown.is_empty();
    if let Some(mark) = &mark {
        if is_whole { mark.remove() } else { mark.write(next) }
    }
    client.close().await;
    tally.end(env, &plan, began.elapsed(), next, interrupted, mark.is_some())
}

/// The first line that has no outcome.
fn next_line(under_way: &BTreeSet<u64>, waiting: &Option<Ready>, read: u64) -> u64 {
    let waiting = waiting.as_ref().map(|ready| ready.number);
    under_way
        .first()
        .copied()
        .into_iter()
        .chain(waiting)
        .min()
        .unwrap_or(read + 1)
}

/// Puts one document; sends it again under the same request id until there is an answer or patience ends.
async fn put(client: &Client, service: String, key: String, document: Bytes, patience: Duration) -> Fate {
    let id = RequestId::random();
    let write = Write {
        service,
        key,
        id,
        condition: Condition::Always,
        change: Change::Put(document),
    };
    let until = Instant::now() + patience;
    let mut was_unknown = false;
    loop {
        let error = match client.write(write.clone()).await {
            Ok(written) => return Fate::Done(written),
            Err(error) => error,
        };
        was_unknown |= error.is_unknown();
        let again = match &error {
            ClientError::Refused(wire) => match wire.code {
                Code::BadDocument | Code::TooLarge | Code::BadRequest => return Fate::Rejected(error.to_string()),
                // Nothing but patience helps, and nothing is wrong with the line.
                Code::DiskFull | Code::Busy => true,
                _ => false,
            },
            ClientError::Encode(_) => return Fate::Rejected(error.to_string()),
            ClientError::Unknown { .. } | ClientError::Unreachable { .. } | ClientError::TimedOut { .. } => true,
            _ => false,
        };
        if again && Instant::now() < until {
            tokio::time::sleep(AGAIN_AFTER).await;
            continue;
        }
        return if was_unknown {
            Fate::Unknown(id, error.to_string())
        } else {
            Fate::Stop(error)
        };
    }
}

impl Tally {
    fn count(&mut self, service: &str, line: Line, rejects: &mut Option<BufWriter<File>>) -> Result<(), CtlError> {
        match line.fate {
            Fate::Done(written) => {
                self.done += 1;
                self.shards.insert(written.shard);
            }
            Fate::Rejected(why) => self.reject(line.number, &line.text, &why, rejects)?,
            Fate::Unknown(id, why) => {
                journal::note(service, &line.key, id);
                self.told.push(format!("line {}: {why}", line.number));
                self.unknown.push((line.number, id));
                self.stop.get_or_insert(ClientError::Unknown {
                    id,
                    service: service.to_owned(),
                    key: line.key,
                    last: why,
                });
            }
            Fate::Stop(error) => {
                self.stop.get_or_insert(error);
            }
        }
        Ok(())
    }

    fn reject(
        &mut self,
        number: u64,
        text: &str,
        why: &str,
        rejects: &mut Option<BufWriter<File>>,
    ) -> Result<(), CtlError> {
        self.rejected += 1;
        if self.told.len() < REJECTS_TOLD {
            self.told.push(format!("line {number}: {why}"));
        }
        if let Some(out) = rejects {
            let row = json!({"line": number, "why": why, "text": text});
            writeln!(out, "{row}").map_err(|error| {
                CtlError::new(exit::UNEXPECTED, format!("cannot write the rejected lines: {error}"))
            })?;
        }
        Ok(())
    }

    /// The last word: counts on standard output, and an error where not all went well.
    fn end(
        self,
        env: &Environment,
        plan: &Plan,
        took: Duration,
        next: u64,
        interrupted: bool,
        can_resume: bool,
    ) -> Ended {
        let seconds = took.as_secs_f64();
        let rate = self.done as f64 / seconds.max(1e-9);
        let is_whole = !interrupted && self.stop.is_none();
        let file = plan.file.display();
        let mut go_on = format!("isxctl entity {} import {file}", plan.service);
        if let Some(field) = &plan.key_field {
            go_on += &format!(" --key-field {field}");
        }
        go_on += &if can_resume {
            " --resume".to_owned()
        } else {
            format!(" --resume-from {next}")
        };
        if env.format().is_json() {
            let unknown: Vec<Value> = self
                .unknown
                .iter()
                .map(|(line, id)| json!({"line": line, "requestId": id.to_string()}))
                .collect();
            env.print_json(&json!({
                "schema": "isx.import/1", "service": plan.service, "done": self.done, "rejected": self.rejected,
                "unknown": unknown, "nextLine": if is_whole { Value::Null } else { json!(next) }, "seconds": seconds,
                "perSecond": rate,
            }))?;
        } else {
            let unknown = match self.unknown.len() {
                0 => String::new(),
                n => format!(", {n} unknown"),
            };
            env.print(&format!(
                "{} put, {} rejected{unknown}, in {seconds:.1} s ({rate:.0}/s)\n",
                self.done, self.rejected
            ))?;
        }
        if let (true, Some(shard)) = (self.shards.len() == 1 && self.done >= HINT_FROM, self.shards.first()) {
            env.say(&format!(
                "all went to {shard}; to spread them: isxctl shard split {shard} --into 3"
            ));
        }
        if interrupted {
            let message = format!("interrupted before line {next}; the lines before it are in");
            let mut error = CtlError::new(exit::INTERRUPTED, message);
            error.committed = "yes";
            return Err(error.next(go_on));
        }
        if let Some(stop) = self.stop {
            let mut error = CtlError::from(stop);
            error.message = format!("stopped before line {next}: {}", error.message);
            if self.done > 0 && error.committed == "no" {
                error.committed = "yes";
            }
            return Err(error.next(go_on));
        }
        if self.rejected == 0 {
            return Ok(exit::OK);
        }
        let what = if self.rejected == 1 { "1 line was" } else { "lines were" };
        let what = if self.rejected == 1 {
            what.to_owned()
        } else {
            format!("{} {what}", self.rejected)
        };
        let mut error = CtlError::new(exit::PARTLY, format!("{what} not taken"));
        error.committed = "yes";
        error.causes = self.told;
        if self.rejected as usize > error.causes.len() {
            error
                .causes
                .push(format!("and {} more", self.rejected as usize - error.causes.len()));
        }
        Err(match &plan.rejects {
            Some(path) => error.next(format!("mend and import them: jq -r .text {}", path.display())),
            None => error.next("--rejects FILE keeps them; importing the same file again is harmless"),
        })
    }
}

/// A line with its key and document; nothing for an empty one; the line with the reason where it is neither.
fn parse(number: u64, text: String, key_field: Option<&str>) -> Result<Option<Ready>, (String, String)> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    match parse_line(&text, key_field) {
        Ok((key, document)) => Ok(Some(Ready {
            number,
            text,
            key,
            document,
        })),
        Err(why) => Err((text, why)),
    }
}

/// Key and document of a line.
fn parse_line(line: &str, key_field: Option<&str>) -> Result<(String, Bytes), String> {
    #[derive(Deserialize)]
    struct Row<'a> {
        key: Option<Value>,
        #[serde(borrow)]
        document: Option<&'a RawValue>,
    }
    // Checked as text first: a field that occurs twice would be lost by parsing.
    json::check_document(line.as_bytes()).map_err(|why| format!("not a JSON object: {why}"))?;
    if let Some(field) = key_field {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let key = value
            .get(field)
            .and_then(Value::as_str)
            .ok_or_else(|| format!("no text field `{field}`"))?;
        return Ok((key.to_owned(), Bytes::copy_from_slice(line.trim().as_bytes())));
    }
    let row: Row<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let Some(Value::String(key)) = row.key else {
        return Err("no text field `key`".to_owned());
    };
    let document = row.document.ok_or("no field `document`")?;
    Ok((key, Bytes::copy_from_slice(document.get().as_bytes())))
}

/// A line's number, its text or what is wrong with it, and how many bytes it took.
type Read1 = (u64, Result<String, (String, String)>, u64);

/// Lines of a file, however long they are.
struct Lines {
    reader: Box<dyn BufRead + Send>,
    bytes: Option<u64>,
    /// Of the line read last, from 1.
    number: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, CtlError> {
        if path == Path::new("-") {
            let reader = Box::new(BufReader::new(io::stdin()));
            return Ok(Self {
                reader,
                bytes: None,
                number: 0,
            });
        }
        let open = || {
            let file = File::open(path)?;
            let meta = file.metadata()?;
            if meta.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            Ok((file, meta.is_file().then_some(meta.len())))
        };
        let (file, bytes) = open().map_err(|error| {
            let mut error = cannot("open", path, &error);
            error.exit = exit::USAGE;
            error
        })?;
        Ok(Self {
            reader: Box::new(BufReader::with_capacity(1 << 18, file)),
            bytes,
            number: 0,
        })
    }

    /// Reads on a thread of its own: standard input may keep its reader waiting for ever, and Ctrl-C must work all the same.
    fn read_ahead(mut self) -> mpsc::Receiver<io::Result<Read1>> {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        std::thread::spawn(move || {
            while let Some(line) = self.next().transpose() {
                let is_last = line.is_err();
                if sender.blocking_send(line).is_err() || is_last {
                    return;
                }
            }
        });
        receiver
    }

    fn next(&mut self) -> io::Result<Option<Read1>> {
        let mut line = Vec::new();
        let mut bytes = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        if bytes == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            bytes += self.skip_line()?;
            let why = format!("longer than {LINE_BYTES_MAX} bytes");
            return Ok(Some((self.number, Err((String::new(), why)), bytes)));
        }
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        let text = String::from_utf8(line).map_err(|error| {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            (text, "not UTF-8".to_owned())
        });
        Ok(Some((self.number, text, bytes)))
    }

    fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = self.reader.fill_buf()?;
            let (length, is_last) = match buffer.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(length);
            skipped += length as u64;
            if is_last {
                return Ok(skipped);
            }
        }
    }
}

/// Where an import of a file has got to: the first line without an outcome, in a file of the user's state directory.
struct Mark {
    path: PathBuf,
}

impl Mark {
    /// `None` for what can't be read twice.
    fn new(plan: &Plan, cluster: &str) -> Option<Self> {
        if plan.file == Path::new("-") {
            return None;
        }
        let file = std::fs::canonicalize(&plan.file).ok().filter(|path| path.is_file())?;
        let name = format!("{cluster}/{}/{}", plan.service, file.display());
        let directory = journal::state_directory(|variable| std::env::var(variable).ok());
        // Names are only told apart by it: 64 bits are plenty.
        let (low, high) = (
            crc32c::crc32c(name.as_bytes()),
            crc32c::crc32c(name.chars().rev().collect::<String>().as_bytes()),
        );
        Some(Self {
            path: directory.join("imports").join(format!("{high:08x}{low:08x}")),
        })
    }

    fn read(&self) -> Option<u64> {
        std::fs::read_to_string(&self.path)
            .ok()?
            .trim()
            .parse()
            .ok()
            .filter(|line| *line > 0)
    }

    /// What can't be written down is told at the end of the import all the same.
    fn write(&self, line: u64) {
        let draft = self.path.with_extension(std::process::id().to_string());
        let _ = self
            .path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&draft, format!("{line}\n")))
            .and_then(|()| std::fs::rename(&draft, &self.path));
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(super) async fn export(env: &Environment, service: &str, prefix: String, out: Option<&Path>) -> Ended {
    let client = env.connect().await?;
    let bar = env.progress(None, "export {spinner} {pos} entities  {per_sec}");
    let failed = |error: io::Error| cannot("write", out.unwrap_or(Path::new("standard output")), &error);
    let mut query = ListQuery {
        service: service.to_owned(),
        prefix,
        documents: true,
        ..ListQuery::default()
    };
    let mut sink: Option<Box<dyn io::Write>> = None;
    let mut count = 0;
    loop {
        let page = client.list(&query).await?;
        // After the first answer: a service that does not exist must not empty a file that does.
        let sink = match &mut sink {
            Some(sink) => sink,
            None => sink.insert(match out {
                Some(path) => Box::new(BufWriter::new(
                    File::create(path).map_err(|error| cannot("create", path, &error))?,
                )),
                None => Box::new(BufWriter::new(io::stdout().lock())),
            }),
        };
        for item in &page.items {
            match sink.write_all(&export_line(&item.key, &item.document)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::OK),
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
    match sink.map_or(Ok(()), |mut sink| sink.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::OK),
        other => other.map_err(failed)?,
    }
    bar.finish_and_clear();
    client.close().await;
    env.say(&format!("{count} exported"));
    Ok(exit::OK)
}

/// The document as it was put, behind its key; line breaks between its parts go, for a line is a line.
fn export_line(key: &str, document: &[u8]) -> Vec<u8> {
    let key = Value::from(key).to_string();
    let document = if document.contains(&b'\n') || document.contains(&b'\r') {
        output::compact(document)
    } else {
        document.to_vec()
    };
    [
        br#"{"key":"#.as_slice(),
        key.as_bytes(),
        br#","document":"#,
        &document,
        b"}\n",
    ]
    .concat()
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> CtlError {
    CtlError::new(exit::UNEXPECTED, format!("cannot {what} `{}`: {error}", path.display()))
}

const BAR: &str = "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}";
const BAR_ENDLESS: &str = "{msg} {spinner} {bytes}  {bytes_per_sec}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_keys_and_documents_as_they_are_spelt() {
        let (key, document) = parse_line(r#"{"key":"c-1","document":{"b":1.0,"a":[2.50, 1E3]}}"#, None).expect("valid");
        assert_eq!(
            (key.as_str(), &document[..]),
            ("c-1", &br#"{"b":1.0,"a":[2.50, 1E3]}"#[..])
        );
        let (key, _) = parse_line(r#"{"key":"c\u002d1","document":{}}"#, None).expect("valid");
        assert_eq!(key, "c-1");
        let (key, document) = parse_line(r#" {"id":"x", "n": 1} "#, Some("id")).expect("valid");
        assert_eq!((key.as_str(), &document[..]), ("x", &br#"{"id":"x", "n": 1}"#[..]));
        assert!(parse_line(r#"{"key":"a","key":"b","document":{}}"#, None).is_err());
        assert!(parse_line(r#"{"key":1,"document":{}}"#, None).is_err());
        assert!(parse_line(r#"{"key":"a"}"#, None).is_err());
    }

    #[test]
    fn what_is_exported_imports_as_the_same() {
        for (document, same) in [
            (r#"{"n":2.50,"t":"a b\n"}"#, true),
            ("{\n  \"n\": 2.50,\r\n  \"t\": \"a \\\" b\"\n}", false),
        ] {
            let line = export_line("k\"1", document.as_bytes());
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let text = String::from_utf8(line).expect("text");
            let (key, back) = parse_line(text.trim_end(), None).expect("an import line");
            assert_eq!(key, "k\"1");
            assert_eq!(back == document.as_bytes(), same, "{text}");
            assert_eq!(output::compact(&back), output::compact(document.as_bytes()));
        }
    }

    #[test]
    fn long_lines_and_bad_text_are_rejected_one_by_one() {
        let long = "x".repeat(LINE_BYTES_MAX as usize + 7);
        let input = [b"one\r\n".as_slice(), long.as_bytes(), b"\n\xff\xfe\nlast"].concat();
        let mut lines = Lines {
            reader: Box::new(io::Cursor::new(input)),
            bytes: None,
            number: 0,
        };
        let mut seen = Vec::new();
        while let Some((number, line, _)) = lines.next().expect("readable") {
            seen.push((number, line.map_err(|(_, why)| why)));
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert_eq!(seen[0], (1, Ok("one".to_owned())));
        assert!(seen[1].1.as_ref().is_err_and(|why| why.starts_with("longer")));
        assert_eq!(seen[2], (3, Err("not UTF-8".to_owned())));
        assert_eq!(seen[3], (4, Ok("last".to_owned())));
    }

    #[test]
    fn an_import_that_stopped_goes_on_at_the_first_line_without_an_outcome() {
        assert_eq!(next_line(&BTreeSet::from([7, 9]), &None, 12), 7);
        let waiting = parse(5, r#"{"key":"a","document":{}}"#.to_owned(), None).ok().flatten();
        assert_eq!(next_line(&BTreeSet::from([7]), &waiting, 12), 5);
        assert_eq!(next_line(&BTreeSet::new(), &None, 12), 13);
    }
}
