//! A write command and a view of the rows, to changed rows and an outcome: the same on every replica.
//!
//! A request is remembered for [`REQUEST_DEDUP`] of the shard's own clock: the latest few in the head row, older ones in
//! rows of their own, kept in buckets of half that time so that a bucket can go as a whole. An entity that is written
//! a few times has one row; one that is written a thousand times a second has a thousand small rows a second, for ten
//! minutes. Refusals are remembered too: an answer of "never happened" must stay true when a second copy of the request
//! is still on its way.
use bytes::Bytes;

use super::head::{Head, Remembered};
use crate::daemon::core::limits::{HEAD_REQUESTS_MAX, REQUEST_DEDUP};
use crate::daemon::core::state::{State, StateError};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::json;
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::request::{Change, Condition, DOCUMENT_BYTES_MAX, Entity, Write, Written};

/// What a write found around it: all of it in the log, so that it is the same on every replica.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The shard.
    pub shard: ShardId,
    /// The leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// The shard's clock. Unit: ms.
    pub shard_time_ms: u64,
}

/// What a write did to the shard's totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    /// Entities more or fewer.
    pub entities: i64,
    /// Bytes of keys and documents more or fewer.
    pub bytes: i64,
}

/// Does the write. A refusal is an outcome like another; only an unreadable row is an `Err`.
pub fn apply(
    write: &Write,
    context: Context,
    state: &mut dyn State,
) -> Result<(Result<Written, WireError>, Delta), StateError> {
    let position = Position::new(&write.service, &write.key);
    let row = row_key(&position, RowKind::Head, &[]);
    let before = match state.get(&row)? {
        Some(value) => decode_head(&row, &value)?,
        None => Head::default(),
    };
    let digest = digest(write);
    if let Some(known) = remembered(&before, &position, write.id, context, state)? {
        return Ok((answer_again(write, &known, digest, context), Delta::default()));
    }

    let (outcome, after) = decide(write, &before);
    let mut head = match after {
        Some(document) => Head {
            version: before.version + 1,
            updated_ms: context.wall_ms,
            exists: document.is_some(),
            document: document.unwrap_or_default(),
            requests: before.requests.clone(),
            overflow: before.overflow,
        },
        None => before.clone(),
    };
    let version = head.version;
    remember(
        &mut head,
        Remembered {
            id: write.id,
            digest,
            // A refusal names the version it found: none where there was no entity, today as when asked again.
            version: if outcome.is_ok() || before.exists { version } else { 0 },
            refused: outcome.as_ref().err().map(|error| error.code),
            wall_ms: context.wall_ms,
            shard_time_ms: context.shard_time_ms,
        },
        &position,
        state,
    )?;
    let delta = Delta {
        entities: i64::from(head.exists) - i64::from(before.exists),
        bytes: size(&head, &write.key) - size(&before, &write.key),
    };
    state.put(row, Some(head.encode()));
    let outcome = outcome.map(|()| Written {
        key: write.key.clone(),
        version,
        repeated: false,
        updated_ms: context.wall_ms,
        shard: context.shard,
    });
    Ok((outcome, delta))
}

/// The entity as a reader sees it.
pub fn read(position: &Position, state: &dyn State) -> Result<Option<Entity>, StateError> {
    let row = row_key(position, RowKind::Head, &[]);
    let Some(value) = state.get(&row)? else { return Ok(None) };
    Ok(entity(decode_head(&row, &value)?))
}

/// What a head row means to a reader.
pub fn entity(head: Head) -> Option<Entity> {
    head.exists.then_some(Entity {
        version: head.version,
        updated_ms: head.updated_ms,
        document: head.document,
    })
}

/// A head row's value. Rows carry checksums, so one that does not decode was written by a broken or newer isx.
pub fn decode_head(row: &[u8], value: &[u8]) -> Result<Head, StateError> {
    Head::decode(value).map_err(|error| StateError::Io(format!("row {}: {error}", row.escape_ascii())))
}

/// What became of a request, if it is still remembered.
pub fn show_request(
    service: &str,
    key: &str,
    id: RequestId,
    context: Context,
    state: &dyn State,
) -> Result<Option<Result<Written, WireError>>, StateError> {
    let position = Position::new(service, key);
    let row = row_key(&position, RowKind::Head, &[]);
    let Some(value) = state.get(&row)? else { return Ok(None) };
    let head = decode_head(&row, &value)?;
    let known = remembered(&head, &position, id, context, state)?;
    Ok(known.map(|known| outcome_of(key, &known, context.shard)))
}

/// `Ok(())` and the new document (`None` inside: deleted), or the refusal and no change.
#[allow(clippy::type_complexity)]
fn decide(write: &Write, before: &Head) -> (Result<(), WireError>, Option<Option<Bytes>>) {
    let refuse = |code: Code, text: String| {
        let mut error = WireError::new(code, text);
        error.version = before.exists.then_some(before.version);
        (Err(error), None)
    };
    let name = || format!("{}/{}", write.service, write.key);
    match write.condition {
        Condition::IfAbsent if before.exists => {
            return refuse(
                Code::Exists,
                format!("{} exists in version {}; nothing was changed", name(), before.version),
            );
        }
        Condition::IfVersion(wanted) if !before.exists => {
            let text = format!(
                "{} does not exist, version {wanted} was asked for; nothing was changed",
                name()
            );
            return refuse(Code::VersionConflict, text);
        }
        Condition::IfVersion(wanted) if before.version != wanted => {
            let found = before.version;
            let text = format!("{} is at version {found}, not {wanted}; nothing was changed", name());
            return refuse(Code::VersionConflict, text);
        }
        _ => {}
    }
    match &write.change {
        Change::Put(document) => (Ok(()), Some(Some(document.clone()))),
        Change::Post(_) if before.exists => refuse(
            Code::Exists,
            format!("{} exists in version {}; nothing was changed", name(), before.version),
        ),
        Change::Post(document) => (Ok(()), Some(Some(document.clone()))),
        Change::Patch(_) | Change::Delete if !before.exists => {
            refuse(Code::NotFound, format!("there is no {}; nothing was changed", name()))
        }
        Change::Patch(patch) => match json::merge_patch(&before.document, patch) {
            Ok(document) if document.len() > DOCUMENT_BYTES_MAX => {
                let text = format!("{} would have {} bytes; nothing was changed", name(), document.len());
                refuse(Code::TooLarge, text)
            }
            Ok(document) => match json::check_document(&document) {
                Ok(()) => (Ok(()), Some(Some(document))),
                Err(why) => refuse(
                    Code::BadDocument,
                    format!("the patched {}: {why}; nothing was changed", name()),
                ),
            },
            Err(why) => refuse(
                Code::BadDocument,
                format!("the patch for {}: {why}; nothing was changed", name()),
            ),
        },
        Change::Delete => (Ok(()), Some(None)),
    }
}

fn answer_again(write: &Write, known: &Remembered, digest: u32, context: Context) -> Result<Written, WireError> {
    if known.digest != digest {
        let text = format!(
            "request id {} was used before for another write to {}/{}; nothing was changed",
            write.id, write.service, write.key
        );
        return Err(WireError::new(Code::RequestIdReused, text));
    }
    outcome_of(&write.key, known, context.shard)
}

fn outcome_of(key: &str, known: &Remembered, shard: ShardId) -> Result<Written, WireError> {
    match known.refused {
        None => Ok(Written {
            key: key.to_owned(),
            version: known.version,
            repeated: true,
            updated_ms: known.wall_ms,
            shard,
        }),
        Some(code) => {
            let mut error = WireError::new(
                code,
                format!("{} (as answered before); nothing was changed", code.title()),
            );
            error.version = (known.version > 0).then_some(known.version);
            Err(error)
        }
    }
}

const BUCKET_MS: u64 = REQUEST_DEDUP.as_millis() / 2;

/// Requests of a bucket are forgotten when the one two further on begins: each is kept for one to one and a half times
/// `REQUEST_DEDUP`.
fn bucket_counts(bucket: u64, now_ms: u64) -> bool {
    bucket + 2 >= now_ms / BUCKET_MS
}

fn remembered(
    head: &Head,
    position: &Position,
    id: RequestId,
    context: Context,
    state: &dyn State,
) -> Result<Option<Remembered>, StateError> {
    let now = context.shard_time_ms;
    if let Some(known) = head.requests.iter().find(|known| known.id == id) {
        return Ok(bucket_counts(known.shard_time_ms / BUCKET_MS, now).then_some(*known));
    }
    let Some((first, last)) = head.overflow else {
        return Ok(None);
    };
    for bucket in (first..=last).filter(|&bucket| bucket_counts(bucket, now)) {
        let row = request_row(position, bucket, id);
        if let Some(value) = state.get(&row)? {
            let known = codec::decode(&value);
            return known
                .map(Some)
                .map_err(|error| StateError::Io(format!("row {}: {error}", row.escape_ascii())));
        }
    }
    Ok(None)
}

fn remember(head: &mut Head, known: Remembered, position: &Position, state: &mut dyn State) -> Result<(), StateError> {
    let now = known.shard_time_ms;
    head.requests
        .retain(|old| bucket_counts(old.shard_time_ms / BUCKET_MS, now));
    if head.requests.len() == HEAD_REQUESTS_MAX {
        let old = head.requests.remove(0);
        let bucket = old.shard_time_ms / BUCKET_MS;
        state.put(request_row(position, bucket, old.id), Some(codec::encode(&old)));
        // A merge may turn the shard's clock back: buckets need not come in order.
        let (first, last) = head.overflow.unwrap_or((bucket, bucket));
        head.overflow = Some((first.min(bucket), last.max(bucket)));
    }
    head.requests.push(known);
    // Expired buckets go piecemeal with later writes, a bounded number of rows each.
    if let Some((first, last)) = head.overflow.filter(|&(first, _)| !bucket_counts(first, now)) {
        let mut expired = Vec::new();
        state.scan(
            &request_bucket(position, first),
            &request_bucket(position, first + 1),
            &mut |row, _| {
                expired.push(row.clone());
                if expired.len() < EXPIRE_ROWS_MAX {
                    std::ops::ControlFlow::Continue(())
                } else {
                    std::ops::ControlFlow::Break(())
                }
            },
        )?;
        if expired.len() < EXPIRE_ROWS_MAX {
            head.overflow = (first < last).then_some((first + 1, last));
        }
        for row in expired {
            state.put(row, None);
        }
    }
    Ok(())
}

/// Expired request rows removed along with one write. Unit: rows.
const EXPIRE_ROWS_MAX: usize = 64;

fn request_bucket(position: &Position, bucket: u64) -> Bytes {
    row_key(position, RowKind::Request, &bucket.to_be_bytes())
}

fn request_row(position: &Position, bucket: u64, id: RequestId) -> Bytes {
    let mut rest = [0; 24];
    rest[..8].copy_from_slice(&bucket.to_be_bytes());
    rest[8..].copy_from_slice(&id.0.to_be_bytes());
    row_key(position, RowKind::Request, &rest)
}

/// Checksum of everything a write asks for, without its id and key.
fn digest(write: &Write) -> u32 {
    let (kind, document): (u8, &[u8]) = match &write.change {
        Change::Put(document) => (1, document),
        Change::Post(document) => (2, document),
        Change::Patch(patch) => (3, patch),
        Change::Delete => (4, &[]),
    };
    let condition = codec::encode(&write.condition);
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&[kind]), &condition), document)
}

fn size(head: &Head, key: &str) -> i64 {
    if head.exists {
        (key.len() + head.document.len()) as i64
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::*;

    #[derive(Default)]
    struct Rows(BTreeMap<Bytes, Bytes>);

    impl State for Rows {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
            Ok(self.0.get(key).cloned())
        }
        fn scan(
            &self,
            start: &[u8],
            end: &[u8],
            visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
        ) -> Result<(), StateError> {
            for (key, value) in self
                .0
                .range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Excluded(end)))
            {
                if visit(key, value).is_break() {
                    break;
                }
            }
            Ok(())
        }
        fn put(&mut self, key: Bytes, value: Option<Bytes>) {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    fn write(id: u128, condition: Condition, change: Change) -> Write {
        Write {
            service: "campaign".into(),
            key: "c-1".into(),
            id: RequestId(id),
            condition,
            change,
        }
    }

    fn put(id: u128, document: &str) -> Write {
        write(
            id,
            Condition::Always,
            Change::Put(Bytes::copy_from_slice(document.as_bytes())),
        )
    }

    fn at(shard_time_ms: u64) -> Context {
        Context {
            shard: ShardId(1),
            wall_ms: 1_000,
            shard_time_ms,
        }
    }

    fn run(rows: &mut Rows, write: &Write, shard_time_ms: u64) -> Result<u64, Code> {
        let (outcome, _) = apply(write, at(shard_time_ms), rows).expect("rows can be read");
        outcome.map(|written| written.version).map_err(|error| error.code)
    }

    fn document(rows: &Rows) -> Option<String> {
        let entity = read(&Position::new("campaign", "c-1"), rows).expect("rows can be read");
        entity.map(|entity| String::from_utf8(entity.document.to_vec()).expect("text"))
    }

    #[test]
    fn versions_never_repeat_not_even_after_a_delete() {
        let mut rows = Rows::default();
        assert_eq!(run(&mut rows, &put(1, "{}"), 0), Ok(1));
        assert_eq!(
            run(&mut rows, &write(2, Condition::IfVersion(1), Change::Delete), 0),
            Ok(2)
        );
        assert_eq!(document(&rows), None);
        assert_eq!(
            run(&mut rows, &write(3, Condition::Always, Change::Delete), 0),
            Err(Code::NotFound)
        );
        assert_eq!(
            run(&mut rows, &write(4, Condition::IfAbsent, Change::Put("{}".into())), 0),
            Ok(3)
        );
        assert_eq!(
            run(&mut rows, &write(5, Condition::IfVersion(1), Change::Delete), 0),
            Err(Code::VersionConflict)
        );
        assert_eq!(
            run(&mut rows, &write(6, Condition::IfAbsent, Change::Put("{}".into())), 0),
            Err(Code::Exists)
        );
        assert_eq!(
            run(
                &mut rows,
                &write(7, Condition::Always, Change::Patch(r#"{"a":1}"#.into())),
                0
            ),
            Ok(4)
        );
        assert_eq!(document(&rows).as_deref(), Some(r#"{"a":1}"#));
    }

    #[test]
    fn a_repeated_request_has_one_effect_and_the_first_answer() {
        let mut rows = Rows::default();
        assert_eq!(run(&mut rows, &put(1, r#"{"n":1}"#), 0), Ok(1));
        for id in 2..40 {
            run(&mut rows, &put(id, r#"{"n":2}"#), 0).expect("a put");
        }
        assert_eq!(
            run(&mut rows, &put(1, r#"{"n":1}"#), 0),
            Ok(1),
            "moved to a row of its own"
        );
        assert_eq!(document(&rows).as_deref(), Some(r#"{"n":2}"#));
        assert_eq!(run(&mut rows, &put(1, r#"{"n":3}"#), 0), Err(Code::RequestIdReused));
    }

    #[test]
    fn a_refusal_stays_true() {
        let mut rows = Rows::default();
        let late = write(1, Condition::IfVersion(1), Change::Put("{}".into()));
        assert_eq!(run(&mut rows, &late, 0), Err(Code::VersionConflict));
        assert_eq!(run(&mut rows, &put(2, "{}"), 0), Ok(1));
        assert_eq!(
            run(&mut rows, &late, 0),
            Err(Code::VersionConflict),
            "its second copy finds version 1"
        );
    }

    #[test]
    fn remembered_requests_of_a_hot_entity_go_again() {
        let mut rows = Rows::default();
        let window = REQUEST_DEDUP.as_millis();
        for id in 0..2_000 {
            run(&mut rows, &put(id, "{}"), id as u64 * 10).expect("a put");
        }
        assert_eq!(rows.0.len(), 1 + 2_000 - HEAD_REQUESTS_MAX);
        for id in 2_000..2_100 {
            run(&mut rows, &put(id, "{}"), 4 * window).expect("a put");
        }
        assert!(rows.0.len() < 150, "{} rows are left", rows.0.len());
        for id in 2_100..2_110 {
            run(&mut rows, &put(id, "{}"), 8 * window).expect("a put");
        }
        assert!(rows.0.len() <= 1 + 10, "{} rows are left", rows.0.len());
    }
}
