//! Snapshots between nodes: each on a stream of its own, behind everything else in priority.
//!
//! ```text
//! sender    SnapshotHeader, SnapshotPart::Rows ..., SnapshotPart::End
//! receiver                                                             SnapshotAnswer
//! ```
//! The sender reads rows on a blocking thread, a few parts ahead of the network. The receiver holds all rows in memory
//! until the last one is there and the checksum is right, so it bounds how many and how large.
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Shared;
use super::inbox::Report;
use super::peers::Link;
use super::quic::{FrameReader, Wire, WireReadError};
use super::telemetry::count;
use crate::daemon::core::input::Input;
use crate::daemon::core::state::StateError;
use crate::daemon::store::SnapshotRows;
use crate::protocol::codec;
use crate::protocol::id::ShardId;
use crate::protocol::message::{Row, SnapshotHeader, SnapshotPart};

/// A part is closed when it is over this. Unit: bytes.
const PART_BYTES: usize = 256 << 10;
/// Parts read ahead of the network.
const PARTS_AHEAD: usize = 4;
/// Snapshots sent at a time; more wait.
pub(super) const SENDING_MAX: usize = 2;
/// Snapshots received at a time; the streams of more wait.
pub(super) const RECEIVING_MAX: usize = 2;
/// Largest snapshot taken in. Unit: bytes of keys and values.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;
/// A stream on which nothing moves for this long is given up.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What the receiver says in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SnapshotAnswer {
    /// Whole, and its checksum is right.
    Whole,
    /// Not taken, and why.
    Refused(String),
}

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
    Damaged(String),
}

/// Sends rows to a peer in the background; `Input::SnapshotSent` follows in any case.
pub(super) fn send(
    shared: &Arc<Shared>,
    link: Option<Arc<Link>>,
    to: crate::protocol::id::NodeId,
    header: SnapshotHeader,
    rows: SnapshotRows,
) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let shard = header.raft.shard;
        let sent = match link {
            Some(link) => send_to(&shared, &link, header, rows).await,
            None => Err(SnapshotError::Stream("not connected".to_owned())),
        };
        if let Err(error) = &sent {
            tracing::warn!(%shard, %to, "snapshot of {shard} to {to} failed: {error}");
        }
        if let Err(SnapshotError::Row(StateError::Checksum { key })) = &sent {
            let row = key.clone();
            shared.inbox.push(Report::Input(Input::Damaged { shard, row }));
        }
        shared.inbox.push(Report::Input(Input::SnapshotSent {
            to,
            shard,
            delivered: sent.is_ok(),
        }));
    });
}

async fn send_to(
    shared: &Shared,
    link: &Link,
    header: SnapshotHeader,
    rows: SnapshotRows,
) -> Result<(), SnapshotError> {
    // Never closed.
    let _permit = shared.sending.acquire().await;
    let (parts, mut ready) = mpsc::channel(PARTS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || read_parts(rows, &parts));
    let stream = |error: quinn::ConnectionError| SnapshotError::Stream(error.to_string());
    let (send, recv) = moving(link.connection.open_bi()).await?.map_err(stream)?;
    // Below Raft's stream: a snapshot takes what is left over.
    let _ = send.set_priority(-1);
    let mut wire = Wire::new(link.connection.clone(), send, recv);
    let broke = |error: std::io::Error| SnapshotError::Stream(error.to_string());
    moving(wire.send(&header)).await?.map_err(broke)?;
    while let Some(part) = ready.recv().await {
        let written = moving(wire.send.write_chunk(part)).await?;
        written.map_err(|error| SnapshotError::Stream(error.to_string()))?;
    }
    reader.await.map_err(|error| SnapshotError::Rows(error.to_string()))??;
    let _ = wire.send.finish();
    match timeout(STALLED_AFTER, wire.receive()).await {
        Ok(Ok(SnapshotAnswer::Whole)) => Ok(()),
        Ok(Ok(SnapshotAnswer::Refused(why))) => Err(SnapshotError::Refused(why)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(SnapshotError::Stalled),
    }
}

/// Encodes rows into frames. Ends early, without an `End`, when a row can't be read or nobody wants more.
fn read_parts(rows: SnapshotRows, parts: &mpsc::Sender<Bytes>) -> Result<(), SnapshotError> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    let (mut sent, mut checksum) = (0, 0);
    for row in rows {
        let (key, value) = row?;
        sent += 1;
        checksum = extend(checksum, &key, &value);
        bytes += key.len() + value.len();
        part.push((key, value));
        if bytes > PART_BYTES {
            push(parts, &SnapshotPart::Rows(std::mem::take(&mut part)))?;
            bytes = 0;
        }
    }
    if !part.is_empty() {
        push(parts, &SnapshotPart::Rows(part))?;
    }
    push(parts, &SnapshotPart::End { rows: sent, checksum })
}

fn push(parts: &mpsc::Sender<Bytes>, part: &SnapshotPart) -> Result<(), SnapshotError> {
    let mut frame = BytesMut::new();
    codec::encode_frame(part, &mut frame).map_err(|error| SnapshotError::Rows(error.to_string()))?;
    parts
        .blocking_send(frame.freeze())
        .map_err(|_| SnapshotError::Stream("given up".to_owned()))
}

fn extend(checksum: u32, key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(checksum, key), value)
}

/// Takes in the snapshots that a peer sends, for as long as it is connected.
pub(super) async fn accept(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let (shared, link) = (shared.clone(), link.clone());
        tokio::spawn(async move {
            let _ = send.set_priority(-1);
            // Never closed. A sender whose stream waits here gives up after a while and is asked again by its Raft.
            let _permit = shared.receiving.acquire().await;
            let mut wire = Wire::new(link.connection.clone(), send, recv);
            let answer = match receive(&mut wire.frames).await {
                Ok((header, rows)) => {
                    shared.inbox.push(Report::Input(Input::SnapshotReceived {
                        from: link.node,
                        raft: Box::new(header.raft),
                        rows,
                    }));
                    SnapshotAnswer::Whole
                }
                Err(error) => {
                    count(&shared.counters.snapshots_failed);
                    tracing::warn!(from = %link.node, "a snapshot from {} was not taken: {error}", link.node);
                    SnapshotAnswer::Refused(error.to_string())
                }
            };
            if wire.send(&answer).await.is_ok() {
                wire.finish().await;
            }
        });
    }
}

async fn receive(frames: &mut FrameReader) -> Result<(SnapshotHeader, Vec<Row>), SnapshotError> {
    let header: SnapshotHeader = decode(&moving(frames.next()).await??)?;
    let shard: ShardId = header.raft.shard;
    let (mut all, mut bytes, mut checksum) = (Vec::new(), 0, 0);
    loop {
        match decode(&moving(frames.next()).await??)? {
            SnapshotPart::Rows(rows) => {
                for (key, value) in rows {
                    bytes += key.len() + value.len();
                    checksum = extend(checksum, &key, &value);
                    all.push((key, value));
                }
                if bytes > SNAPSHOT_BYTES_MAX {
                    let text = format!("{shard} is over {SNAPSHOT_BYTES_MAX} bytes; split it");
                    return Err(SnapshotError::Damaged(text));
                }
            }
            SnapshotPart::End { rows, checksum: sent } => {
                if rows != all.len() as u64 || sent != checksum {
                    let text = format!(
                        "{shard}: {rows} rows with checksum {sent:08x} were sent, {} with {checksum:08x} arrived",
                        all.len()
                    );
                    return Err(SnapshotError::Damaged(text));
                }
                return Ok((header, all));
            }
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(frame: &[u8]) -> Result<T, SnapshotError> {
    codec::decode(frame).map_err(|error| SnapshotError::Wire(error.into()))
}

/// A step of a transfer, within the time that one may take.
async fn moving<T>(step: impl Future<Output = T>) -> Result<T, SnapshotError> {
    timeout(STALLED_AFTER, step).await.map_err(|_| SnapshotError::Stalled)
}
