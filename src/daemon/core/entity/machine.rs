//! A write command and a view of the rows, to changed rows and an outcome: the same on every replica.
//!
//! A request is remembered for [`REQUEST_DEDUP`] of the shard's own clock: the latest few in the head row, older ones in
//! rows of their own, kept in buckets of half that time so that a bucket can go as a whole. An entity that is written
//! a few times has one row; one that is written a thousand times a second has a thousand small rows a second, for ten
//! minutes. Refusals are remembered too: an answer of "never happened" must stay true when a second copy of the request
//! is still on its way.
use bytes::Bytes;

use super::draft::{self, Draft, Lasts, Stop, refuse};
use super::effects::Rules;
use super::head::{Head, Remembered};
use super::index;
use super::message::{PairNews, ParkNews, read_row};
use super::outbox;
use super::past;
use super::subject::Subject;
use super::tentative;
use super::timer::TimerNews;
use crate::daemon::core::changes::Noted;
use crate::daemon::core::limits::{HEAD_REQUESTS_MAX, REQUEST_DEDUP};
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::Sent;
use crate::protocol::change::{How, Version};
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::json;
use crate::protocol::key::{Position, RowKind, row_key};
use crate::protocol::request::{Change, Condition, DOCUMENT_BYTES_MAX, Entity, Write, Written};
use crate::protocol::schema::ChangeKind;

/// What a write found around it: all of it in the log, so that it is the same on every replica.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The shard.
    pub shard: ShardId,
    /// The leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// The shard's clock for the entity, see `protocol::shard_clock`. Unit: ms.
    pub shard_time_ms: u64,
    /// The place in the shard's history that a change gets.
    pub change_at: u64,
}

/// What a write or message did besides its effect on the entity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// Entities more or fewer.
    pub entities: i64,
    /// Bytes of keys and documents more or fewer.
    pub bytes: i64,
    /// Pairs with something new to be sent, or nothing any more.
    pub pairs: Vec<PairNews>,
    /// Messages that were refused and what became of them.
    pub parked: Vec<ParkNews>,
    /// Changes of entities, for those who follow them.
    pub changes: Vec<Noted>,
    /// Timers that were set or taken away.
    pub timers: Vec<TimerNews>,
}

/// Does the write. A refusal is an outcome like another; only an unreadable row is an `Err`.
pub fn apply(
    write: &Write,
    context: Context,
    rules: &dyn Rules,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<Result<Written, WireError>, StateError> {
    let mut subject = Subject::load(Position::new(&write.service, &write.key), state)?;
    let digest = digest(write);
    if let Some(known) = remembered(&subject.head, &subject.position, write.id, context, state)? {
        return answer_again(write, &known, digest, context, state);
    }
    let mut draft = subject.draft(context, 0, state);
    draft.id = write.id;
    draft.kind = match &write.change {
        Change::Put(_) | Change::PutFor { .. } | Change::Post(_) => Some(ChangeKind::Put),
        Change::Patch(_) => Some(ChangeKind::Patch),
        Change::Delete => Some(ChangeKind::Delete),
        Change::Send { .. } | Change::Activity { .. } | Change::Tentative(_) | Change::Reindex { .. } => None,
    };
    let decided = decide(write, &subject.head, rules, &mut draft, state).map(|()| draft.decided());
    let outcome = match draft::outcome(decided)? {
        Ok(decided) => {
            let how = How::of(&write.change);
            Ok(subject.commit(decided, how, Some(write.id), context, state, delta)?)
        }
        Err(mut error) => {
            error.version = subject.head.exists.then_some(subject.head.version);
            Err(error)
        }
    };
    let (version, exists) = (subject.head.version, subject.head.exists);
    let sent = outcome.as_ref().map_or(&[][..], |sent| sent.as_slice());
    let known = Remembered {
        id: write.id,
        digest,
        // A refusal names the version it found: none where there was no entity, today as when asked again.
        version: if outcome.is_ok() || exists { version } else { 0 },
        refused: outcome.as_ref().err().map(|error| error.code),
        sent: !sent.is_empty(),
        wall_ms: context.wall_ms,
        shard_time_ms: context.shard_time_ms,
    };
    let position = subject.position.clone();
    remember(subject.head_mut(), known, sent, &position, state)?;
    subject.store(state, delta);
    Ok(outcome.map(|sent| Written {
        key: write.key.clone(),
        version,
        repeated: false,
        updated_ms: context.wall_ms,
        shard: context.shard,
        sent,
    }))
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
        expires_ms: head.expires.map(|expires| expires.wall_ms),
        document: head.document,
        schema: head.schema.version,
        aggregates: Vec::new(),
    })
}

/// What is remembered of an entity's versions, newest first.
pub fn history(position: &Position, state: &dyn State) -> Result<Vec<Version>, StateError> {
    let row = row_key(position, RowKind::Head, &[]);
    let Some(value) = state.get(&row)? else {
        return Ok(Vec::new());
    };
    let head = decode_head(&row, &value)?;
    if head.version == 0 {
        return Ok(Vec::new());
    }
    let mut versions =
        past::all(&head.past).map_err(|error| StateError::Io(format!("row {}: {error}", row.escape_ascii())))?;
    versions.push(past::current(&head));
    versions.reverse();
    Ok(versions)
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
    match remembered(&head, &position, id, context, state)? {
        Some(known) => outcome_of(&position, &known, context.shard, state).map(Some),
        None => Ok(None),
    }
}

/// Drafts what the write does.
fn decide(
    write: &Write,
    before: &Head,
    rules: &dyn Rules,
    draft: &mut Draft<'_>,
    state: &dyn State,
) -> Result<(), Stop> {
    let name = || format!("{}/{}", write.service, write.key);
    match write.condition {
        Condition::IfAbsent if before.exists => {
            let text = format!("{} exists in version {}; nothing was changed", name(), before.version);
            return refuse(Code::Exists, text);
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
        Change::Post(_) if before.exists => {
            let text = format!("{} exists in version {}; nothing was changed", name(), before.version);
            return refuse(Code::Exists, text);
        }
        Change::Put(document) | Change::Post(document) => {
            draft.document = Some(Some(document.clone()));
            draft.lasts = Lasts::ForEver;
        }
        Change::PutFor { document, ttl_ms } => {
            draft.document = Some(Some(document.clone()));
            draft.lasts = Lasts::For(*ttl_ms);
        }
        Change::Patch(_) | Change::Delete | Change::Send { .. } | Change::Tentative(_) if !before.exists => {
            return refuse(Code::NotFound, format!("there is no {}; nothing was changed", name()));
        }
        Change::Patch(patch) => {
            let document = patched(draft.position, &before.document, patch).map_err(but_unchanged)?;
            draft.document = Some(Some(document));
        }
        Change::Delete => draft.document = Some(None),
        Change::Send { to, body } => {
            // A write of the sender like another: its version tells it from others.
            draft.document = Some(Some(before.document.clone()));
            for to in to {
                draft.send(to.clone(), (**body).clone());
            }
        }
        Change::Activity {
            with,
            action,
            by,
            because,
        } => {
            let by = format!("{by}: {because}");
            return outbox::operate(draft, with, *action, by, state).map_err(but_unchanged);
        }
        Change::Reindex { field, indexed, stale } => {
            index::again(rules, field, *indexed, stale, draft).map_err(but_unchanged)?;
            return outbox::check(rules, draft, state).map_err(but_unchanged);
        }
        Change::Tentative(wanted) => {
            draft.document = Some(Some(before.document.clone()));
            tentative::ask(wanted, draft).map_err(but_unchanged)?;
        }
    }
    follow(rules, draft, state).map_err(but_unchanged)
}

/// Drafts the end of an entity whose time has come.
pub(super) fn end(draft: &mut Draft<'_>, rules: &dyn Rules, state: &dyn State) -> Result<(), Stop> {
    if draft.before.is_none() {
        return Ok(());
    }
    draft.document = Some(None);
    draft.kind = Some(ChangeKind::Delete);
    follow(rules, draft, state)
}

/// What follows from a changed document.
fn follow(rules: &dyn Rules, draft: &mut Draft<'_>, state: &dyn State) -> Result<(), Stop> {
    rules.follow(draft)?;
    tentative::follow(rules, draft)?;
    outbox::check(rules, draft, state)
}

/// The document that a merge patch makes.
pub fn patched(position: &Position, before: &[u8], patch: &[u8]) -> Result<Bytes, WireError> {
    let bad = |why| WireError::new(Code::BadDocument, format!("the patch for {position}: {why}"));
    let document = json::merge_patch(before, patch).map_err(bad)?;
    if document.len() > DOCUMENT_BYTES_MAX {
        let text = format!("{position} would have {} bytes", document.len());
        return Err(WireError::new(Code::TooLarge, text));
    }
    json::check_document(&document)
        .map_err(|why| WireError::new(Code::BadDocument, format!("the patched {position}: {why}")))?;
    Ok(document)
}

/// A refusal as the writer reads it.
fn but_unchanged(stop: impl Into<Stop>) -> Stop {
    match stop.into() {
        Stop::Refused(mut error) => {
            if !error.text.ends_with(NOTHING_CHANGED) {
                error.text.push_str(NOTHING_CHANGED);
            }
            Stop::Refused(error)
        }
        unreadable => unreadable,
    }
}

const NOTHING_CHANGED: &str = "; nothing was changed";

fn answer_again(
    write: &Write,
    known: &Remembered,
    digest: u32,
    context: Context,
    state: &dyn State,
) -> Result<Result<Written, WireError>, StateError> {
    if known.digest != digest {
        let text = format!(
            "request id {} was used before for another write to {}/{}; nothing was changed",
            write.id, write.service, write.key
        );
        return Ok(Err(WireError::new(Code::RequestIdReused, text)));
    }
    outcome_of(&Position::new(&write.service, &write.key), known, context.shard, state)
}

fn outcome_of(
    position: &Position,
    known: &Remembered,
    shard: ShardId,
    state: &dyn State,
) -> Result<Result<Written, WireError>, StateError> {
    if let Some(code) = known.refused {
        let mut error = WireError::new(
            code,
            format!("{} (as answered before); nothing was changed", code.title()),
        );
        error.version = (known.version > 0).then_some(known.version);
        return Ok(Err(error));
    }
    let sent = match known.sent {
        true => read_row(&sent_row(position, known), state)?.unwrap_or_default(),
        false => Vec::new(),
    };
    Ok(Ok(Written {
        key: position.parts().1.unwrap_or("").to_owned(),
        version: known.version,
        repeated: true,
        updated_ms: known.wall_ms,
        shard,
        sent,
    }))
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

fn remember(
    head: &mut Head,
    known: Remembered,
    sent: &[Sent],
    position: &Position,
    state: &mut dyn State,
) -> Result<(), StateError> {
    let now = known.shard_time_ms;
    // A clock of many parts may be turned back a little by a merge: buckets need not come in order.
    let widen = |head: &mut Head, bucket: u64| {
        let (first, last) = head.overflow.unwrap_or((bucket, bucket));
        head.overflow = Some((first.min(bucket), last.max(bucket)));
    };
    if known.sent {
        state.put(sent_row(position, &known), Some(codec::encode(&sent)));
        widen(head, known.shard_time_ms / BUCKET_MS);
    }
    // What made the current version stays, however old: the entity's history tells of it.
    let version = head.version;
    let is_maker = |old: &Remembered| past::makes(old, version);
    head.requests
        .retain(|old| bucket_counts(old.shard_time_ms / BUCKET_MS, now) || is_maker(old));
    if head.requests.len() == HEAD_REQUESTS_MAX {
        let oldest = usize::from(is_maker(&head.requests[0]));
        let old = head.requests.remove(oldest);
        let bucket = old.shard_time_ms / BUCKET_MS;
        state.put(request_row(position, bucket, old.id), Some(codec::encode(&old)));
        widen(head, bucket);
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

/// What a remembered request sent; goes with its bucket.
fn sent_row(position: &Position, known: &Remembered) -> Bytes {
    let mut rest = [1; 25];
    rest[..8].copy_from_slice(&(known.shard_time_ms / BUCKET_MS).to_be_bytes());
    rest[8..24].copy_from_slice(&known.id.0.to_be_bytes());
    row_key(position, RowKind::Request, &rest)
}

/// Checksum of everything a write asks for, without its id and key.
fn digest(write: &Write) -> u32 {
    let (sent, wanted, put);
    let (kind, document): (u8, &[u8]) = match &write.change {
        Change::Put(document) => (1, document),
        Change::Post(document) => (2, document),
        Change::Patch(patch) => (3, patch),
        Change::Delete => (4, &[]),
        Change::Send { to, body } => {
            sent = codec::encode(&(to, body));
            (5, &sent)
        }
        Change::Activity { with, action, .. } => {
            sent = codec::encode(&(with, action));
            (6, &sent)
        }
        Change::PutFor { document, ttl_ms } => {
            put = codec::encode(&(document, ttl_ms));
            (8, &put)
        }
        Change::Tentative(tentative) => {
            wanted = codec::encode(tentative);
            (7, &wanted)
        }
        Change::Reindex { field, indexed, stale } => {
            sent = codec::encode(&(field, indexed, stale));
            (9, &sent)
        }
    };
    let condition = codec::encode(&write.condition);
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&[kind]), &condition), document)
}

#[cfg(test)]
mod tests {
    use super::super::effects::NoRules;
    use super::super::testing::Rows;
    use super::*;

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
            change_at: 1,
        }
    }

    fn run(rows: &mut Rows, write: &Write, shard_time_ms: u64) -> Result<u64, Code> {
        let mut delta = Delta::default();
        let outcome = apply(write, at(shard_time_ms), &NoRules, rows, &mut delta).expect("rows can be read");
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
    fn the_history_tells_how_each_version_came_to_be() {
        let mut rows = Rows::default();
        assert_eq!(history(&Position::new("campaign", "c-1"), &rows), Ok(Vec::new()));
        run(&mut rows, &put(1, "{}"), 0).expect("a put");
        let alone = rows.0.values().map(Bytes::len).sum::<usize>();
        run(
            &mut rows,
            &write(2, Condition::Always, Change::Patch(r#"{"a":1}"#.into())),
            0,
        )
        .expect("a patch");
        run(&mut rows, &write(3, Condition::Always, Change::Delete), 0).expect("a delete");
        // Refusals change nothing, however many and late: what made the version is not forgotten for them.
        let window = REQUEST_DEDUP.as_millis();
        for id in 100..110 {
            let late = window * (id as u64 - 99);
            let refused = write(id, Condition::IfVersion(77), Change::Put("{}".into()));
            run(&mut rows, &refused, late).expect_err("another version");
        }
        let told: Vec<_> = history(&Position::new("campaign", "c-1"), &rows)
            .expect("rows can be read")
            .into_iter()
            .map(|version| (version.version, version.how, version.bytes, version.request))
            .collect();
        let by = |id| Some(RequestId(id));
        let expected = [
            (3, How::Delete, 0, by(3)),
            (2, How::Patch, 7, by(2)),
            (1, How::Put, 2, by(1)),
        ];
        assert_eq!(told, expected);
        assert!(alone < 70, "a row that was written once has {alone} bytes");
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
