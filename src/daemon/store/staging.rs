//! Chunks of snapshots that are under way to this node, on its disk until the snapshot is whole and installed.
//!
//! One append-only file per replica, `staging/s-7.r-1003`: `length: u32 | crc32c: u32 | postcard StagedChunk` over and
//! over. The checksum also covers the replica's name and the record's place. Where two records overlap the later one
//! counts, so a file that is read again after a restart says the same as it did in memory. What a crash tore off ends the
//! file there; nothing else is lost, and the next attempt asks only for what is missing or has changed.
//!
//! Why files and not a table: a chunk is written once, read once and then removed with all the others. In redb each would
//! be a copy-on-write of its tree with a commit's syncs, in a file that never gets smaller.
//!
//! Nothing here was promised to anybody: a staging file that can't be written or read is dropped, and the copy begins
//! anew. Only [`Stage::take`]'s last word, that a snapshot is whole, comes behind a sync.
use std::collections::BTreeMap;
use std::fs::{self, File as OsFile};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::chunk::{hash_of, row_sum};
use crate::daemon::core::state::StagedCopy;
use crate::protocol::id::{ReplicaId, ShardId};
use crate::protocol::message::{ChunkHash, ChunkMark, ChunkPiece, Row, SnapshotPart};

/// Why a snapshot can't be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The one before is whole and being looked at or installed.
    #[error("an earlier snapshot of it is being installed")]
    Busy,
    /// Another attempt has begun since.
    #[error("another attempt has taken its place")]
    Replaced,
    /// A chunk that does not follow on the one before, or rows outside of their chunk or out of order.
    #[error("a chunk from {from} does not go on where {at} was reached, or holds what it should not")]
    OutOfPlace {
        /// Where the chunk begins.
        from: String,
        /// Where it should begin.
        at: String,
    },
    /// The sender speaks of a chunk that is not here.
    #[error("the sender takes a chunk from {from} for granted that is not here")]
    NotHere {
        /// Where it begins.
        from: String,
    },
    /// A chunk that does not have its hash.
    #[error("the chunk from {from} does not have the content that its sender names")]
    Damaged {
        /// Where it begins.
        from: String,
    },
    /// It ended early, or its sums are wrong.
    #[error("it ended with {chunks} chunks and {rows} rows; {chunks_sent} and {rows_sent} were announced")]
    Incomplete {
        /// Arrived.
        chunks: u64,
        /// Arrived.
        rows: u64,
        /// Announced.
        chunks_sent: u64,
        /// Announced.
        rows_sent: u64,
    },
    /// The file.
    #[error("cannot {step} `{path}`; what was staged is dropped")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A chunk as it is staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedChunk {
    pub(super) from: Bytes,
    pub(super) to: Bytes,
    pub(super) hash: ChunkHash,
    pub(super) rows: Vec<Row>,
}

type Name = (ShardId, ReplicaId);

/// The staging area of a store; shared by those who receive, those who install, and the simulator.
pub struct Staging {
    area: Area,
    contents: Mutex<BTreeMap<Name, Arc<Mutex<Content>>>>,
}

impl Staging {
    pub(super) fn new(area: Area) -> Self {
        Self {
            area,
            contents: Mutex::default(),
        }
    }

    /// Begins to take in a snapshot of a replica whose rows lie in `ranges`; an earlier attempt that is under way ends with
    /// this. Reads and checks what is staged if that was not done since the start: seconds for many gigabytes.
    pub fn begin(&self, shard: ShardId, replica: ReplicaId, ranges: Vec<(Bytes, Bytes)>) -> Result<Stage, StageError> {
        let content = self.content((shard, replica));
        let mut held = lock(&content);
        if held.is_sealed {
            return Err(StageError::Busy);
        }
        held.load()?;
        held.restrict(&ranges);
        // More is out of date than is of use: the file would only grow.
        if held.length > 2 * held.live() + DEAD_BYTES_MAX {
            held.reset()?;
        }
        held.owner += 1;
        let owner = held.owner;
        drop(held);
        Ok(Stage {
            content,
            owner,
            at: ranges.first().map(|(start, _)| start.clone()).unwrap_or_default(),
            ranges: ranges.into(),
            chunks: 0,
            rows: 0,
            unsynced: 0,
        })
    }

    /// The core does not want this copy now. What is staged stays, for the next attempt.
    pub fn release(&self, copy: &StagedCopy) {
        lock(&self.content((copy.shard, copy.replica))).is_sealed = false;
    }

    /// Drops what is staged for a shard's replicas up to this one: it is installed, or the replica is gone.
    pub fn remove(&self, shard: ShardId, up_to: ReplicaId) {
        let mut names: Vec<Name> = lock(&self.contents).keys().copied().collect();
        names.extend(self.area.names());
        for name in names {
            if name.0 == shard && name.1 <= up_to {
                if let Some(content) = lock(&self.contents).remove(&name) {
                    lock(&content).owner += 1;
                }
                // One that can't be removed is in nobody's way but the disk's; the next start tries again.
                let _ = self.area.remove(name);
            }
        }
    }

    /// Removes what nobody has added to for so long, unless it is whole and waits for its install.
    pub fn sweep(&self, idle: std::time::Duration) {
        for name in self.area.idle_names(idle) {
            let content = self.content(name);
            let mut held = lock(&content);
            if !held.is_sealed {
                held.owner += 1;
                held.forget();
                drop(held);
                lock(&self.contents).remove(&name);
                let _ = self.area.remove(name);
            }
        }
    }

    /// How large the pieces of an install are: rows cleared, and bytes written, in one transaction. Small in the
    /// simulator, so that it sees many.
    pub(super) fn piece_limits(&self) -> (usize, u64) {
        match self.area {
            Area::Dir(_) => (PIECE_ROWS_CLEARED, PIECE_BYTES),
            Area::Model(_) => (7, 700),
        }
    }

    /// How much is staged. Unit: bytes.
    pub fn bytes(&self) -> u64 {
        self.area.bytes()
    }

    /// Whole chunks from the one that begins at or behind `from` on, up to about `bytes_max`, and where the next one
    /// begins; `None` where there is no more.
    pub(super) fn read(
        &self,
        copy: &StagedCopy,
        ranges: &[(Bytes, Bytes)],
        from: &Bytes,
        bytes_max: u64,
    ) -> Result<(Vec<StagedChunk>, Option<Bytes>), StageError> {
        let content = self.content((copy.shard, copy.replica));
        let mut held = lock(&content);
        held.load()?;
        held.is_sealed = true;
        held.restrict(ranges);
        let here = held.copy();
        if here != *copy {
            return Err(StageError::Incomplete {
                chunks: here.chunks,
                rows: here.rows,
                chunks_sent: copy.chunks,
                rows_sent: copy.rows,
            });
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        let records: Vec<(Bytes, Record)> = held
            .index
            .range(from.clone()..)
            .map(|(from, record)| (from.clone(), record.clone()))
            .take(READ_CHUNKS_MAX)
            .collect();
        let mut records = records.into_iter();
        for (_, record) in records.by_ref() {
            bytes += u64::from(record.length);
            found.push(held.read(&record)?);
            if bytes >= bytes_max {
                break;
            }
        }
        let next = match (records.next(), found.last()) {
            (Some((from, _)), _) => Some(from),
            (None, Some(last)) => held.index.range(last.to.clone()..).next().map(|(from, _)| from.clone()),
            (None, None) => None,
        };
        Ok((found, next))
    }

    fn content(&self, name: Name) -> Arc<Mutex<Content>> {
        let mut contents = lock(&self.contents);
        let content = contents
            .entry(name)
            .or_insert_with(|| Arc::new(Mutex::new(Content::new(self.area.clone(), name))));
        content.clone()
    }
}

/// One attempt to take in a snapshot.
pub struct Stage {
    content: Arc<Mutex<Content>>,
    owner: u64,
    /// Ranges that are left, the first under way.
    ranges: std::collections::VecDeque<(Bytes, Bytes)>,
    at: Bytes,
    chunks: u64,
    rows: u64,
    unsynced: u64,
}

impl Stage {
    /// What is here from earlier attempts, in key order, read as the iterator goes.
    pub fn marks(&self) -> impl Iterator<Item = Result<ChunkMark, StageError>> + Send + use<> {
        let content = self.content.clone();
        let owner = self.owner;
        let records: Vec<Record> = lock(&content).index.values().cloned().collect();
        records.into_iter().map(move |record| {
            let mut held = lock(&content);
            if held.owner != owner {
                return Err(StageError::Replaced);
            }
            let chunk = held.read(&record)?;
            Ok(ChunkMark {
                rows: chunk.rows.iter().map(row_sum).collect(),
                from: chunk.from,
                to: chunk.to,
                hash: chunk.hash,
            })
        })
    }

    /// Takes in the next part. When the last one is there and everything is on the disk it returns what there is; nobody
    /// else may change it until it is installed or released.
    pub fn take(&mut self, part: SnapshotPart) -> Result<Option<StagedCopy>, StageError> {
        let content = self.content.clone();
        let mut held = lock(&content);
        if held.owner != self.owner || held.is_sealed {
            return Err(StageError::Replaced);
        }
        match part {
            SnapshotPart::Kept(mark) => {
                self.check_place(&mark.from, &mark.to)?;
                let record = held.index.get(&mark.from);
                let record = record.filter(|record| record.to == mark.to && record.hash == mark.hash);
                let Some(record) = record else {
                    return Err(StageError::NotHere {
                        from: shown(&mark.from),
                    });
                };
                self.advance(mark.to, u64::from(record.rows));
                Ok(None)
            }
            SnapshotPart::Chunk { from, to, hash, pieces } => {
                self.check_place(&from, &to)?;
                let rows = held.assemble(&from, &to, pieces)?;
                if hash_of(&from, &to, &rows) != hash {
                    // What was here may be what is wrong: not to be built upon again.
                    held.index.remove(&from);
                    return Err(StageError::Damaged { from: shown(&from) });
                }
                let is_ordered = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
                let is_inside = |row: Option<&Row>| row.is_none_or(|row| from <= row.0 && row.0 < to);
                if !is_ordered || !is_inside(rows.first()) || !is_inside(rows.last()) {
                    return Err(self.out_of_place(&from));
                }
                let count = rows.len() as u64;
                let end = to.clone();
                let length = held.append(StagedChunk { from, to, hash, rows })?;
                self.unsynced += length;
                if self.unsynced >= SYNC_EVERY {
                    held.sync()?;
                    self.unsynced = 0;
                }
                self.advance(end, count);
                Ok(None)
            }
            SnapshotPart::End { chunks, rows } => {
                if !self.ranges.is_empty() || (chunks, rows) != (self.chunks, self.rows) {
                    return Err(StageError::Incomplete {
                        chunks: self.chunks,
                        rows: self.rows,
                        chunks_sent: chunks,
                        rows_sent: rows,
                    });
                }
                held.sync()?;
                held.is_sealed = true;
                Ok(Some(held.copy()))
            }
        }
    }

    fn check_place(&self, from: &Bytes, to: &Bytes) -> Result<(), StageError> {
        let is_inside = self.ranges.front().is_some_and(|(_, end)| to <= end);
        if *from == self.at && from < to && is_inside {
            Ok(())
        } else {
            Err(self.out_of_place(from))
        }
    }

    fn out_of_place(&self, from: &Bytes) -> StageError {
        StageError::OutOfPlace {
            from: shown(from),
            at: shown(&self.at),
        }
    }

    fn advance(&mut self, to: Bytes, rows: u64) {
        self.chunks += 1;
        self.rows += rows;
        if self.ranges.front().is_some_and(|(_, end)| *end == to) {
            self.ranges.pop_front();
            self.at = self.ranges.front().map(|(start, _)| start.clone()).unwrap_or_default();
        } else {
            self.at = to;
        }
    }
}

/// One replica's file, and which of its records count.
struct Content {
    area: Area,
    name: Name,
    blob: Option<Blob>,
    /// Chunks that count, by their first key; none overlaps another.
    index: BTreeMap<Bytes, Record>,
    /// Unit: bytes.
    length: u64,
    /// Who may write: the latest attempt.
    owner: u64,
    is_sealed: bool,
}

#[derive(Debug, Clone)]
struct Record {
    to: Bytes,
    hash: ChunkHash,
    rows: u32,
    offset: u64,
    /// With its header. Unit: bytes.
    length: u32,
}

impl Content {
    fn new(area: Area, name: Name) -> Self {
        Self {
            area,
            name,
            blob: None,
            index: BTreeMap::new(),
            length: 0,
            owner: 0,
            is_sealed: false,
        }
    }

    /// Opens the file and reads it, unless that is done.
    fn load(&mut self) -> Result<(), StageError> {
        if self.blob.is_some() {
            return Ok(());
        }
        let blob = self.area.open(self.name);
        self.blob = Some(blob.map_err(|source| self.failed("open", source))?);
        let end = self.blob().len();
        let end = end.map_err(|source| self.failed("read", source))?;
        while self.length < end {
            match self.read_at(self.length) {
                Ok(Some((chunk, length))) => self.note(chunk, length),
                // Torn off, or never synced: what follows can't be trusted either.
                Ok(None) => break,
                Err(source) => return Err(self.failed("read", source)),
            }
        }
        // Or a record of back then could come to lie behind one that is shorter than the one that was torn.
        let cut = self.blob().cut(self.length);
        cut.map_err(|source| self.failed("shorten", source))
    }

    fn note(&mut self, chunk: StagedChunk, length: u32) {
        self.drop_overlapping(&chunk.from, &chunk.to);
        let record = Record {
            to: chunk.to,
            hash: chunk.hash,
            rows: chunk.rows.len() as u32,
            offset: self.length,
            length,
        };
        self.length += u64::from(length);
        self.index.insert(chunk.from, record);
    }

    fn drop_overlapping(&mut self, from: &Bytes, to: &Bytes) {
        loop {
            let last = self.index.range::<Bytes, _>(..to).next_back();
            match last.filter(|(_, record)| record.to > *from).map(|(key, _)| key.clone()) {
                Some(key) => self.index.remove(&key),
                None => return,
            };
        }
    }

    /// Only chunks inside of these ranges count.
    fn restrict(&mut self, ranges: &[(Bytes, Bytes)]) {
        let is_inside = |from: &Bytes, to: &Bytes| ranges.iter().any(|(start, end)| start <= from && to <= end);
        self.index.retain(|from, record| is_inside(from, &record.to));
    }

    /// What there is, as it is when all of it belongs to one snapshot.
    fn copy(&self) -> StagedCopy {
        let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
        let (mut rows, mut bytes) = (0, 0);
        for record in self.index.values() {
            sum.update(&record.hash);
            rows += u64::from(record.rows);
            bytes += u64::from(record.length);
        }
        StagedCopy {
            shard: self.name.0,
            replica: self.name.1,
            chunks: self.index.len() as u64,
            rows,
            bytes,
            digest: *sum.finish().as_ref().first_chunk().expect("SHA-256 has 32 bytes"),
        }
    }

    fn live(&self) -> u64 {
        self.index.values().map(|record| u64::from(record.length)).sum()
    }

    fn assemble(&mut self, from: &Bytes, to: &Bytes, pieces: Vec<ChunkPiece>) -> Result<Vec<Row>, StageError> {
        let not_here = || StageError::NotHere { from: shown(from) };
        let needs_old = pieces.iter().any(|piece| matches!(piece, ChunkPiece::Have { .. }));
        let old = match self.index.get(from).filter(|record| record.to == *to).cloned() {
            Some(record) if needs_old => self.read(&record)?.rows,
            _ => Vec::new(),
        };
        let mut rows = Vec::new();
        for piece in pieces {
            match piece {
                ChunkPiece::Rows(more) => rows.extend(more),
                ChunkPiece::Have { first, count } => {
                    let first = first as usize;
                    let place = first..first.saturating_add(count as usize);
                    rows.extend(old.get(place).ok_or_else(not_here)?.iter().cloned());
                }
            }
        }
        Ok(rows)
    }

    fn append(&mut self, chunk: StagedChunk) -> Result<u64, StageError> {
        let payload = match postcard::to_stdvec(&chunk) {
            Ok(payload) => payload,
            Err(error) => return Err(self.failed("encode a chunk for", io::Error::other(error))),
        };
        let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(&self.sum(self.length, &payload).to_le_bytes());
        record.extend_from_slice(&payload);
        let (offset, length) = (self.length, record.len() as u32);
        let written = self.blob().write_at(offset, &record);
        written.map_err(|source| self.failed("write", source))?;
        self.note(chunk, length);
        Ok(u64::from(length))
    }

    fn sync(&mut self) -> Result<(), StageError> {
        let synced = self.blob().sync();
        synced.map_err(|source| self.failed("sync", source))
    }

    fn read(&mut self, record: &Record) -> Result<StagedChunk, StageError> {
        match self.read_at(record.offset) {
            Ok(Some((chunk, _))) if chunk.hash == record.hash => Ok(chunk),
            Ok(_) => Err(self.failed("read", io::Error::other("a chunk fails its checksum"))),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    /// The record at `offset` and its length; `None` where there is no whole one.
    fn read_at(&self, offset: u64) -> io::Result<Option<(StagedChunk, u32)>> {
        let header = self.blob().read_at(offset, HEADER_BYTES)?;
        let Some((length, sum)) = header.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let (length, Ok(sum)) = (u32::from_le_bytes(*length), <[u8; 4]>::try_from(sum)) else {
            return Ok(None);
        };
        if length as usize > RECORD_BYTES_MAX {
            return Ok(None);
        }
        let payload = self.blob().read_at(offset + HEADER_BYTES as u64, length as usize)?;
        if payload.len() != length as usize || self.sum(offset, &payload) != u32::from_le_bytes(sum) {
            return Ok(None);
        }
        let chunk = postcard::from_bytes(&payload).map_err(io::Error::other)?;
        Ok(Some((chunk, HEADER_BYTES as u32 + length)))
    }

    /// Bound to the replica and to the place in its file.
    fn sum(&self, offset: u64, payload: &[u8]) -> u32 {
        let mut sum = crc32c::crc32c(&self.name.0.0.to_le_bytes());
        for number in [self.name.1.0, offset] {
            sum = crc32c::crc32c_append(sum, &number.to_le_bytes());
        }
        crc32c::crc32c_append(sum, payload)
    }

    /// Empties the file.
    fn reset(&mut self) -> Result<(), StageError> {
        self.forget();
        let removed = self.area.remove(self.name);
        removed.map_err(|source| self.failed("remove", source))?;
        self.load()
    }

    fn forget(&mut self) {
        self.blob = None;
        self.index.clear();
        self.length = 0;
    }

    fn failed(&mut self, step: &'static str, source: io::Error) -> StageError {
        // What is on the disk is not known any more; but a copy that is being installed is all there is of it.
        if !self.is_sealed {
            self.owner += 1;
            self.forget();
            let _ = self.area.remove(self.name);
        }
        StageError::Io {
            step,
            path: self.area.path(self.name),
            source,
        }
    }

    fn blob(&self) -> &Blob {
        self.blob.as_ref().expect("loaded before it is used")
    }
}

/// Where staging files are.
#[derive(Clone)]
pub(super) enum Area {
    Dir(PathBuf),
    Model(Arc<ModelArea>),
}

enum Blob {
    File(OsFile, PathBuf),
    Model(Arc<ModelArea>, Name),
}

impl Area {
    fn open(&self, name: Name) -> io::Result<Blob> {
        match self {
            Area::Dir(dir) => {
                fs::create_dir_all(dir)?;
                let mut options = OsFile::options();
                let options = options.read(true).write(true).create(true).truncate(false);
                Ok(Blob::File(options.open(self.path(name))?, dir.clone()))
            }
            Area::Model(area) => Ok(Blob::Model(area.clone(), name)),
        }
    }

    fn path(&self, name: Name) -> PathBuf {
        let file = format!("{}.{}", name.0, name.1);
        match self {
            Area::Dir(dir) => dir.join(file),
            Area::Model(_) => file.into(),
        }
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        match self {
            Area::Dir(_) => match fs::remove_file(self.path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Area::Model(area) => {
                lock(&area.blobs).remove(&name);
                Ok(())
            }
        }
    }

    fn names(&self) -> Vec<Name> {
        match self {
            Area::Dir(_) => self.entries().into_iter().map(|(name, _)| name).collect(),
            Area::Model(area) => lock(&area.blobs).keys().copied().collect(),
        }
    }

    fn idle_names(&self, idle: std::time::Duration) -> Vec<Name> {
        let is_idle = |about: &fs::Metadata| {
            let age = about.modified().ok().and_then(|at| at.elapsed().ok());
            age.is_some_and(|age| age > idle)
        };
        let entries = self.entries().into_iter();
        entries
            .filter(|(_, about)| is_idle(about))
            .map(|(name, _)| name)
            .collect()
    }

    fn bytes(&self) -> u64 {
        match self {
            Area::Dir(_) => self.entries().iter().map(|(_, about)| about.len()).sum(),
            Area::Model(area) => lock(&area.blobs).values().map(|blob| blob.bytes.len() as u64).sum(),
        }
    }

    fn entries(&self) -> Vec<(Name, fs::Metadata)> {
        let Area::Dir(dir) = self else { return Vec::new() };
        let Ok(entries) = fs::read_dir(dir) else {
            return Vec::new();
        };
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let (shard, replica) = name.split_once('.')?;
            Some(((shard.parse().ok()?, replica.parse().ok()?), entry.metadata().ok()?))
        };
        entries.filter_map(entry).collect()
    }
}

impl Blob {
    fn len(&self) -> io::Result<u64> {
        match self {
            Blob::File(file, _) => Ok(file.metadata()?.len()),
            Blob::Model(area, name) => Ok(area.with(*name, |blob| blob.bytes.len() as u64)),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Blob::File(file, _) => file.write_all_at(bytes, offset),
            Blob::Model(area, name) => {
                area.with(*name, |blob| {
                    blob.bytes.truncate(offset as usize);
                    blob.synced = blob.synced.min(offset as usize);
                    blob.bytes.extend_from_slice(bytes);
                });
                Ok(())
            }
        }
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        match self {
            Blob::File(file, _) if file.metadata()?.len() > length => file.set_len(length),
            Blob::File(..) => Ok(()),
            Blob::Model(area, name) => {
                area.with(*name, |blob| {
                    blob.bytes.truncate(length as usize);
                    blob.synced = blob.synced.min(length as usize);
                });
                Ok(())
            }
        }
    }

    /// Up to `length` bytes: fewer at the end of the file.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Blob::File(file, _) => {
                let mut bytes = vec![0; length];
                let mut filled = 0;
                while filled < length {
                    match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                bytes.truncate(filled);
                Ok(bytes)
            }
            Blob::Model(area, name) => Ok(area.with(*name, |blob| {
                let start = blob.bytes.len().min(offset as usize);
                let end = blob.bytes.len().min(start + length);
                blob.bytes[start..end].to_vec()
            })),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Blob::File(file, dir) => {
                file.sync_all()?;
                // Its name may be new.
                OsFile::open(dir)?.sync_all()
            }
            Blob::Model(area, name) => {
                area.with(*name, |blob| blob.synced = blob.bytes.len());
                Ok(())
            }
        }
    }
}

/// The simulator's staging files: what was not synced is torn by a crash.
#[derive(Debug, Default)]
pub(super) struct ModelArea {
    blobs: Mutex<BTreeMap<Name, ModelBlob>>,
}

#[derive(Debug, Default, Clone)]
struct ModelBlob {
    bytes: Vec<u8>,
    synced: usize,
}

impl ModelArea {
    /// The machine goes down: of what was not synced each sector is kept or lost, and the file may be shorter.
    pub(super) fn crash(&self, chance: u64) {
        let mut rng = fastrand::Rng::with_seed(chance);
        for blob in lock(&self.blobs).values_mut() {
            let length = rng.usize(blob.synced..=blob.bytes.len());
            blob.bytes.truncate(length);
            for sector in blob.bytes[blob.synced..].chunks_mut(SECTOR_BYTES) {
                if rng.bool() {
                    sector.fill(0);
                }
            }
            blob.synced = blob.bytes.len();
        }
    }

    /// An independent copy of what is synced.
    pub(super) fn image(&self) -> Self {
        let mut blobs = lock(&self.blobs).clone();
        for blob in blobs.values_mut() {
            blob.bytes.truncate(blob.synced);
        }
        Self {
            blobs: Mutex::new(blobs),
        }
    }

    fn with<T>(&self, name: Name, act: impl FnOnce(&mut ModelBlob) -> T) -> T {
        act(lock(&self.blobs).entry(name).or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves an index that its file proves or refutes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shown(key: &Bytes) -> String {
    format!("`{}`", key.escape_ascii())
}

const HEADER_BYTES: usize = 8;
/// Above a frame, so that whatever arrives can be staged. Unit: bytes.
const RECORD_BYTES_MAX: usize = 16 << 20;
/// A crash loses at most this much of what has arrived, and pages of this much are all that waits for the disk at a
/// time. Unit: bytes.
const SYNC_EVERY: u64 = 16 << 20;
/// Chunks that do not count any more may take this much, whatever the size of those that do. Unit: bytes.
const DEAD_BYTES_MAX: u64 = 64 << 20;
/// Of rows cleared in one transaction. Unit: rows.
const PIECE_ROWS_CLEARED: usize = 20_000;
/// Of chunks written in one transaction: others wait for the state file that long. Unit: bytes.
const PIECE_BYTES: u64 = 8 << 20;
/// Chunks looked up at a time. Unit: chunks.
const READ_CHUNKS_MAX: usize = 1024;
const SECTOR_BYTES: usize = 512;
