//! Which writes were sent from here: request id, service, key, time. Never a document. With it `isxctl request show ID`
//! needs no more than the id.
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use crate::protocol::id::RequestId;

/// Beyond this the older half is forgotten. Unit: bytes; about four thousand lines.
const BYTES_MAX: u64 = 400 << 10;

/// A write that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: RequestId,
    pub(super) service: String,
    pub(super) key: String,
    /// Unit: ms since 1970.
    pub(super) sent_ms: u64,
}

/// The user's directory for state, `isx` in it.
pub(super) fn state_directory(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set("XDG_STATE_HOME").filter(|dir| dir.is_absolute()) {
        Some(state) => state.join("isx"),
        None => set("HOME")
            .unwrap_or_else(|| PathBuf::from("."))
            .join(".local/state/isx"),
    }
}

fn path() -> PathBuf {
    state_directory(|variable| std::env::var(variable).ok()).join("requests")
}

/// Notes writes that are about to be sent. A journal that can't be written stops nobody: the error of an unknown outcome
/// names service and key as well.
pub(super) fn note(service: &str, key: &str, id: RequestId) {
    let sent_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    let entry = Entry {
        id,
        service: service.to_owned(),
        key: key.to_owned(),
        sent_ms,
    };
    let _ = append(&path(), &entry);
}

/// The newest entry of an id.
pub(super) fn find(id: RequestId) -> Option<Entry> {
    let text = std::fs::read_to_string(path()).ok()?;
    look(&text, id)
}

fn look(text: &str, id: RequestId) -> Option<Entry> {
    text.lines().rev().filter_map(parse).find(|entry| entry.id == id)
}

fn append(path: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut options = File::options();
    let mut file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
    // Another isxctl may be cutting it down.
    flock(&file, FlockOperation::LockExclusive)?;
    // JSON strings: a key may hold whatever a key may hold.
    let Entry {
        id,
        service,
        key,
        sent_ms,
    } = entry;
    let key = serde_json::Value::from(key.as_str());
    let line = format!("{id}\t{service}\t{key}\t{sent_ms}\n");
    if file.metadata()?.len() + line.len() as u64 > BYTES_MAX {
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let middle = text.len() / 2;
        let keep = text
            .char_indices()
            .find(|&(at, c)| at > middle && c == '\n')
            .map_or(text.len(), |(at, _)| at + 1);
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&text.as_bytes()[keep..])?;
    }
    file.write_all(line.as_bytes())
}

fn parse(line: &str) -> Option<Entry> {
    let mut parts = line.split('\t');
    let entry = Entry {
        id: parts.next()?.parse().ok()?,
        service: parts.next()?.to_owned(),
        key: serde_json::from_str(parts.next()?).ok()?,
        sent_ms: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_it_noted_and_stays_small() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("deep/requests");
        let entry = |n: u64| Entry {
            id: RequestId(n.into()),
            service: "campaign".into(),
            key: format!("c-\t\"{n}"),
            sent_ms: n,
        };
        let last = 9_000;
        for n in 1..=last {
            append(&file, &entry(n)).expect("writable");
        }
        let text = std::fs::read_to_string(&file).expect("readable");
        assert!(text.len() as u64 <= BYTES_MAX && text.lines().count() > 1_000);
        assert!(text.lines().all(|line| parse(line).is_some()));
        assert_eq!(look(&text, RequestId(last.into())), Some(entry(last)));
        assert_eq!(look(&text, RequestId(1)), None);
    }
}
