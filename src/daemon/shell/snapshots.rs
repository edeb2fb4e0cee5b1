//! Snapshots between nodes: each on a stream of its own, behind everything else in priority.
//!
//! ```text
//! sender    SnapshotHeader                        SnapshotPart::Kept | Chunk ..., End
//! receiver                  SnapshotReply::Marks ..., MarksEnd                         Whole | Refused
//! ```
//! The receiver says what it has from attempts that broke off while the sender already goes through its rows: both sides
//! read in key order, a few parts ahead of the network, on blocking threads. Whatever arrives goes into the store's staging
//! area; neither side holds more than a few parts in memory. How fast parts leave is for [`super::pace`].
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::inbox::Report;
use super::peers::Link;
use super::quic::{FrameReader, Wire, WireReadError};
use super::telemetry::count;
use crate::daemon::core::input::Input;
use crate::daemon::core::limits::DISK_RESERVE_BYTES;
use crate::daemon::core::state::{StagedCopy, StateError};
use crate::daemon::store::{CHUNK_BYTES, Outgoing, SnapshotRows, Stage, StageError};
use crate::protocol::codec;
use crate::protocol::id::NodeId;
use crate::protocol::key::KeyRange;
use crate::protocol::message::{ChunkMark, SnapshotHeader, SnapshotManifest, SnapshotPart, SnapshotReply};

/// Parts read ahead of the network, and taken in ahead of the disk.
const PARTS_AHEAD: usize = 8;
/// Marks in one frame.
const MARKS_AT_ONCE: usize = 8;
/// Frames of marks ahead of the rows.
const MARKS_AHEAD: usize = 4;
/// Snapshots sent at a time; more wait.
pub(super) const SENDING_MAX: usize = 2;
/// Snapshots received at a time; the streams of more wait.
pub(super) const RECEIVING_MAX: usize = 2;
/// A stream on which nothing moves for this long is given up.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// Whoever waits says so this often.
const WAIT_EVERY: Duration = Duration::from_secs(2);
/// The core hears how far a snapshot is this often.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// A chunk that need not be sent was read and compared all the same: it counts this part of its size towards the pace.
const KEPT_SHARE: u64 = 8;
/// What of an attempt that broke off nobody has gone on with for this long is removed.
pub(super) const STAGED_FOR: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("nothing moved for {STALLED_AFTER:?}")]
    Stalled,
    #[error("{0}")]
    Wire(#[from] WireReadError),
    #[error("the stream broke: {0}")]
    Stream(String),
    #[error("the rows can't be read: {0}")]
    Rows(String),
    #[error("{0}")]
    Row(#[from] StateError),
    #[error("the other side refused it: {0}")]
    Refused(String),
    #[error("{0}")]
    Header(&'static str),
    #[error("it needs {needed} bytes and {free} are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("{}", super::disk::chain(.0))]
    Stage(#[from] StageError),
}

/// A snapshot that is to be sent.
pub(super) struct ToSend {
    pub(super) to: NodeId,
    pub(super) header: SnapshotHeader,
    pub(super) range: KeyRange,
    pub(super) attempt: u64,
    pub(super) rows: SnapshotRows,
}

/// What came of sending.
#[derive(Debug, Default)]
struct Sent {
    chunks: u64,
    kept: u64,
    sent_bytes: u64,
    covered_bytes: u64,
}

/// Sends a snapshot in the background; `Input::SnapshotSent` follows in any case.
pub(super) fn send(shared: &Arc<Shared>, link: Option<Arc<Link>>, what: ToSend) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let (shard, to, attempt) = (what.header.raft.shard, what.to, what.attempt);
        let mut sent = Sent::default();
        let began = Instant::now();
        let result = match link {
            Some(link) => send_to(&shared, &link, what, &mut sent).await,
            None => Err(SnapshotError::Stream("not connected".to_owned())),
        };
        let Sent {
            chunks,
            kept,
            sent_bytes,
            covered_bytes,
        } = sent;
        let ms = began.elapsed().as_millis();
        let told = format!(
            "{covered_bytes} bytes in {chunks} chunks, of which {kept} were there already; {sent_bytes} bytes sent in {ms} ms"
        );
        match &result {
            Ok(()) => tracing::info!(%shard, %to, "snapshot of {shard} to {to} delivered: {told}"),
            Err(error) => tracing::warn!(%shard, %to, "snapshot of {shard} to {to} failed: {error}; {told}"),
        }
        if let Err(SnapshotError::Row(StateError::Checksum { key })) = &result {
            let row = key.clone();
            shared.inbox.push(Report::Input(Input::Damaged { shard, row }));
        }
        let delivered = result.is_ok();
        let input = Input::SnapshotSent {
            to,
            shard,
            attempt,
            delivered,
        };
        shared.inbox.push(Report::Input(input));
    });
}

async fn send_to(shared: &Arc<Shared>, link: &Link, what: ToSend, sent: &mut Sent) -> Result<(), SnapshotError> {
    let (shard, to, attempt) = (what.header.raft.shard, what.to, what.attempt);
    let tell = |bytes| {
        let progress = Input::SnapshotProgress {
            to,
            shard,
            attempt,
            bytes,
        };
        shared.inbox.push(Report::Input(progress));
    };
    let _permit = loop {
        match timeout(WAIT_EVERY, shared.sending.acquire()).await {
            // Never closed.
            Ok(permit) => break permit,
            Err(_) => tell(0),
        }
    };
    let stream = |error: quinn::ConnectionError| SnapshotError::Stream(error.to_string());
    let (send, recv) = moving(link.connection.open_bi()).await?.map_err(stream)?;
    // Below Raft's stream: a snapshot takes what is left over.
    let _ = send.set_priority(-1);
    let mut wire = Wire::new(link.connection.clone(), send, recv);
    let broke = |error: std::io::Error| SnapshotError::Stream(error.to_string());
    moving(wire.send(&what.header)).await?.map_err(broke)?;

    let (marks, marks_ready) = mpsc::channel(MARKS_AHEAD);
    let (parts, mut parts_ready) = mpsc::channel::<Ready>(PARTS_AHEAD);
    let Wire { mut send, frames, .. } = wire;
    let reader = tokio::task::spawn_blocking(move || make_parts(what.rows, &what.range, marks_ready, &parts));
    let mut answer = tokio::spawn(hear_receiver(frames, marks));
    let _guard = AbortOnDrop(answer.abort_handle());
    let ended = |result: Result<Result<(), SnapshotError>, tokio::task::JoinError>| match result {
        Ok(result) => result,
        Err(error) => Err(SnapshotError::Stream(error.to_string())),
    };
    let mut told = Instant::now();
    loop {
        let part = tokio::select! {
            biased;
            part = parts_ready.recv() => part,
            result = &mut answer => {
                ended(result)?;
                return Err(SnapshotError::Stream("the receiver ended early".to_owned()));
            }
        };
        let Some(part) = part else { break };
        shared.copy_pace.take(part.cost).await;
        moving(send.write_chunk(part.frame))
            .await?
            .map_err(|error| SnapshotError::Stream(error.to_string()))?;
        sent.chunks += 1;
        sent.kept += u64::from(part.is_kept);
        sent.sent_bytes += part.sent_bytes;
        sent.covered_bytes += part.covered_bytes;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(sent.covered_bytes);
        }
    }
    reader.await.map_err(|error| SnapshotError::Rows(error.to_string()))??;
    let _ = send.finish();
    tell(sent.covered_bytes);
    // It has a few parts to write and to sync.
    let last = timeout(STALLED_AFTER * 6, answer).await;
    ended(last.map_err(|_| SnapshotError::Stalled)?)
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Hands on what the receiver has; ends with its last word.
async fn hear_receiver(mut frames: FrameReader, marks: mpsc::Sender<Vec<ChunkMark>>) -> Result<(), SnapshotError> {
    let mut marks = Some(marks);
    loop {
        // Once it has said everything it is silent for as long as the parts take.
        let frame = match &marks {
            Some(_) => moving(frames.next()).await??,
            None => frames.next().await?,
        };
        match decode(&frame)? {
            SnapshotReply::Wait => {}
            SnapshotReply::Marks(more) => {
                // The sender may be through and need no more.
                if let Some(queue) = &marks
                    && queue.send(more).await.is_err()
                {
                    marks = None;
                }
            }
            SnapshotReply::MarksEnd => marks = None,
            SnapshotReply::Whole => return Ok(()),
            SnapshotReply::Refused(why) => return Err(SnapshotError::Refused(why)),
        }
    }
}

/// A part as a frame.
struct Ready {
    frame: Bytes,
    is_kept: bool,
    /// What it counts towards the pace. Unit: bytes.
    cost: u64,
    sent_bytes: u64,
    covered_bytes: u64,
}

/// Encodes parts into frames. Ends early, without an `End`, when a row can't be read or nobody wants more.
fn make_parts(
    rows: SnapshotRows,
    range: &KeyRange,
    mut marks: mpsc::Receiver<Vec<ChunkMark>>,
    parts: &mpsc::Sender<Ready>,
) -> Result<(), SnapshotError> {
    let marks = std::iter::from_fn(move || marks.blocking_recv()).flatten();
    for part in Outgoing::new(rows, range.row_ranges_sorted(), marks, CHUNK_BYTES) {
        let part = part?;
        let is_kept = matches!(part.part, SnapshotPart::Kept(_));
        let mut frame = BytesMut::new();
        codec::encode_frame(&part.part, &mut frame).map_err(|error| SnapshotError::Rows(error.to_string()))?;
        let read = part.covered_bytes.saturating_sub(part.sent_bytes);
        let ready = Ready {
            cost: frame.len() as u64 + read / KEPT_SHARE,
            frame: frame.freeze(),
            is_kept,
            sent_bytes: part.sent_bytes,
            covered_bytes: part.covered_bytes,
        };
        if parts.blocking_send(ready).is_err() {
            return Err(SnapshotError::Stream("given up".to_owned()));
        }
    }
    Ok(())
}

/// Takes in the snapshots that a peer sends, for as long as it is connected.
pub(super) async fn accept(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let (shared, link) = (shared.clone(), link.clone());
        tokio::spawn(async move {
            let _ = send.set_priority(-1);
            let mut wire = Wire::new(link.connection.clone(), send, recv);
            let answer = match receive(&shared, &link, &mut wire).await {
                Ok(()) => SnapshotReply::Whole,
                Err(error) => {
                    count(&shared.counters.snapshots_failed);
                    tracing::warn!(from = %link.node, "a snapshot from {} was not taken: {error}", link.node);
                    SnapshotReply::Refused(error.to_string())
                }
            };
            if wire.send(&answer).await.is_ok() {
                wire.finish().await;
            }
        });
    }
}

async fn receive(shared: &Arc<Shared>, link: &Link, wire: &mut Wire) -> Result<(), SnapshotError> {
    let header: SnapshotHeader = decode(&moving(wire.frames.next()).await??)?;
    let _permit = loop {
        match timeout(WAIT_EVERY, shared.receiving.acquire()).await {
            // Never closed.
            Ok(permit) => break permit,
            Err(_) => reply(wire, &SnapshotReply::Wait).await?,
        }
    };
    let stage = begin(shared, wire, &header).await?;
    let marks = stage.marks();
    let (queue, parts) = mpsc::channel(PARTS_AHEAD);
    // Both at once: the sender takes marks as it goes, and sends parts meanwhile.
    let (told, marks_ready) = mpsc::channel(MARKS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || read_marks(marks, &told));
    let writer = tokio::task::spawn_blocking(move || take_parts(stage, parts));
    let Wire { send, frames, .. } = wire;
    let (marks, parts) = tokio::join!(send_marks(send, marks_ready), hear_parts(frames, queue));
    let taken = writer.await.map_err(|error| SnapshotError::Rows(error.to_string()))?;
    let read = reader.await.map_err(|error| SnapshotError::Rows(error.to_string()))?;
    // What the disk says is the cause of what the stream says.
    match taken {
        Ok(Some(copy)) => {
            let input = Input::SnapshotReceived {
                from: link.node,
                raft: Box::new(header.raft),
                copy,
            };
            shared.inbox.push(Report::Input(input));
            Ok(())
        }
        Ok(None) => {
            read?;
            marks?;
            parts?;
            Err(SnapshotError::Stream("it ended early".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the staging area for it; says "wait" while what is there is read.
async fn begin(shared: &Arc<Shared>, wire: &mut Wire, header: &SnapshotHeader) -> Result<Stage, SnapshotError> {
    let raft = &header.raft;
    let manifest: SnapshotManifest = codec::decode(&raft.message.get_snapshot().data)
        .map_err(|_| SnapshotError::Header("a snapshot that does not say of what"))?;
    if manifest.shard.id != raft.shard {
        return Err(SnapshotError::Header("a snapshot under another shard's name"));
    }
    // Once in the staging area and once in the state file.
    let needed = manifest.bytes.saturating_mul(2).saturating_add(DISK_RESERVE_BYTES);
    if let Ok(stat) = rustix::fs::statvfs(&shared.data_dir) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            return Err(SnapshotError::NoRoom { needed, free });
        }
    }
    let (staging, shard, replica) = (shared.staging.clone(), raft.shard, raft.to);
    let ranges = manifest.shard.range.row_ranges_sorted();
    let mut begun = tokio::task::spawn_blocking(move || staging.begin(shard, replica, ranges));
    loop {
        match timeout(WAIT_EVERY, &mut begun).await {
            Ok(stage) => return Ok(stage.map_err(|error| SnapshotError::Rows(error.to_string()))??),
            Err(_) => reply(wire, &SnapshotReply::Wait).await?,
        }
    }
}

fn read_marks(
    marks: impl Iterator<Item = Result<ChunkMark, StageError>>,
    told: &mpsc::Sender<Vec<ChunkMark>>,
) -> Result<(), SnapshotError> {
    let mut page = Vec::new();
    for mark in marks {
        page.push(mark?);
        if page.len() == MARKS_AT_ONCE && told.blocking_send(std::mem::take(&mut page)).is_err() {
            return Ok(());
        }
    }
    let _ = told.blocking_send(page);
    Ok(())
}

async fn send_marks(
    send: &mut quinn::SendStream,
    mut marks: mpsc::Receiver<Vec<ChunkMark>>,
) -> Result<(), SnapshotError> {
    while let Some(page) = marks.recv().await {
        write(send, &SnapshotReply::Marks(page)).await?;
    }
    write(send, &SnapshotReply::MarksEnd).await
}

/// Takes parts off the stream; the queue bounds how far ahead of the disk.
async fn hear_parts(frames: &mut FrameReader, queue: mpsc::Sender<SnapshotPart>) -> Result<(), SnapshotError> {
    loop {
        let part: SnapshotPart = decode(&moving(frames.next()).await??)?;
        let is_last = matches!(part, SnapshotPart::End { .. });
        // Nobody takes it: the disk has said why.
        if queue.send(part).await.is_err() || is_last {
            return Ok(());
        }
    }
}

fn take_parts(mut stage: Stage, mut parts: mpsc::Receiver<SnapshotPart>) -> Result<Option<StagedCopy>, StageError> {
    while let Some(part) = parts.blocking_recv() {
        if let Some(copy) = stage.take(part)? {
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

async fn reply(wire: &mut Wire, reply: &SnapshotReply) -> Result<(), SnapshotError> {
    write(&mut wire.send, reply).await
}

async fn write(send: &mut quinn::SendStream, reply: &SnapshotReply) -> Result<(), SnapshotError> {
    let mut frame = BytesMut::new();
    codec::encode_frame(reply, &mut frame).map_err(|error| SnapshotError::Rows(error.to_string()))?;
    let written = moving(send.write_chunk(frame.freeze())).await?;
    written.map_err(|error| SnapshotError::Stream(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(frame: &[u8]) -> Result<T, SnapshotError> {
    codec::decode(frame).map_err(|error| SnapshotError::Wire(error.into()))
}

/// A step of a transfer, within the time that one may take.
async fn moving<T>(step: impl Future<Output = T>) -> Result<T, SnapshotError> {
    timeout(STALLED_AFTER, step).await.map_err(|_| SnapshotError::Stalled)
}
