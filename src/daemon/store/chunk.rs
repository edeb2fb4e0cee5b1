//! A shard's rows as a sequence of chunks, for a receiver that may have most of them already.
//!
//! A chunk covers a range of keys, not only the rows in it, so that chunks which follow on each other prove that nothing
//! is missing in between. Its hash covers bounds and rows. The receiver tells which chunks it has ([`ChunkMark`]) from an
//! attempt that broke off, whoever sent them and as of whichever index; the sender reads its own rows within the same
//! bounds. Where the hashes agree the chunk is kept; where they differ only the rows that changed are sent.
use std::collections::VecDeque;
use std::iter::Peekable;

use bytes::Bytes;

use crate::daemon::core::state::StateError;
use crate::protocol::message::{ChunkHash, ChunkMark, ChunkPiece, Row, SnapshotPart};

/// Size at which a chunk is closed. Unit: bytes of keys and values. Memory for what is known of a staged chunk is a
/// thousandth of this; a change of one row costs reading this much again.
pub const CHUNK_BYTES: usize = 128 << 10;

/// Hash of a chunk.
pub(super) fn hash_of(from: &[u8], to: &[u8], rows: &[Row]) -> ChunkHash {
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let mut eat = |bytes: &[u8]| {
        sum.update(&(bytes.len() as u32).to_le_bytes());
        sum.update(bytes);
    };
    eat(from);
    eat(to);
    for (key, value) in rows {
        eat(key);
        eat(value);
    }
    let digest = sum.finish();
    let half = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
    *half
}

/// CRC-32C of a row, bound to its key.
pub(super) fn row_sum(row: &Row) -> u32 {
    let length = crc32c::crc32c(&(row.0.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(length, &row.0), &row.1)
}

/// A part on its way, and how much it stands for.
#[derive(Debug)]
pub struct OutgoingPart {
    /// To be sent.
    pub part: SnapshotPart,
    /// Keys and values that are in it. Unit: bytes.
    pub sent_bytes: u64,
    /// Keys and values that it stands for, those that the receiver has included. Unit: bytes.
    pub covered_bytes: u64,
}

/// Makes the parts of a snapshot, one at a time; ends behind [`SnapshotPart::End`] or the first error.
pub struct Outgoing<R: Iterator, M: Iterator> {
    rows: Peekable<R>,
    marks: Peekable<M>,
    /// Ranges that are left, the first under way.
    ranges: VecDeque<(Bytes, Bytes)>,
    /// Where the next chunk begins.
    at: Bytes,
    chunk_bytes: usize,
    chunks: u64,
    count: u64,
    is_over: bool,
    trusts_bounds: bool,
}

impl<R, M> Outgoing<R, M>
where
    R: Iterator<Item = Result<Row, StateError>>,
    M: Iterator<Item = ChunkMark>,
{
    /// `rows` in key order, all of them inside `ranges`; `marks` in key order, as the receiver sent them: any of them may
    /// be useless.
    pub fn new(rows: R, ranges: Vec<(Bytes, Bytes)>, marks: M, chunk_bytes: usize) -> Self {
        let ranges = VecDeque::from(ranges);
        Self {
            rows: rows.peekable(),
            marks: marks.peekable(),
            at: ranges.front().map(|(start, _)| start.clone()).unwrap_or_default(),
            ranges,
            chunk_bytes,
            chunks: 0,
            count: 0,
            is_over: false,
            trusts_bounds: false,
        }
    }

    /// A planted bug: a chunk with the right bounds is taken to have the right rows.
    #[doc(hidden)]
    pub fn trusting_bounds(mut self, trusts: bool) -> Self {
        self.trusts_bounds = trusts;
        self
    }

    fn step(&mut self) -> Result<OutgoingPart, StateError> {
        let Some((_, end)) = self.ranges.front().cloned() else {
            self.is_over = true;
            let part = SnapshotPart::End {
                chunks: self.chunks,
                rows: self.count,
            };
            return Ok(OutgoingPart {
                part,
                sent_bytes: 0,
                covered_bytes: 0,
            });
        };
        let mark = self.next_mark(&end);
        let (limit, bytes_max) = match &mark {
            Some(mark) => (mark.to.clone(), 2 * self.chunk_bytes),
            None => {
                let next = self.marks.peek().map(|mark| &mark.from);
                (next.unwrap_or(&end).min(&end).clone(), self.chunk_bytes)
            }
        };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let to = loop {
            match self.rows.peek() {
                Some(Ok((key, _))) if *key < limit && bytes < bytes_max => {}
                // Too much for one chunk: it ends before the row that is next.
                Some(Ok((key, _))) if *key < limit => break key.clone(),
                Some(Err(_)) => {}
                _ => break limit,
            }
            if let Some(row) = self.rows.next() {
                let row = row?;
                bytes += row.0.len() + row.1.len();
                rows.push(row);
            }
        };
        let from = std::mem::replace(&mut self.at, to.clone());
        if to == end {
            self.ranges.pop_front();
            if let Some((start, _)) = self.ranges.front() {
                self.at = start.clone();
            }
        }
        self.chunks += 1;
        self.count += rows.len() as u64;
        let hash = hash_of(&from, &to, &rows);
        let mark = mark.filter(|mark| mark.to == to);
        if mark
            .as_ref()
            .is_some_and(|mark| mark.hash == hash || self.trusts_bounds)
        {
            let hash = mark.map_or(hash, |mark| mark.hash);
            let rows = Vec::new();
            return Ok(OutgoingPart {
                part: SnapshotPart::Kept(ChunkMark { from, to, hash, rows }),
                sent_bytes: 0,
                covered_bytes: bytes as u64,
            });
        }
        let pieces = pieces(rows, mark.map(|mark| mark.rows).unwrap_or_default());
        let rows = pieces.iter().filter_map(|piece| match piece {
            ChunkPiece::Rows(rows) => Some(rows),
            ChunkPiece::Have { .. } => None,
        });
        let sent_bytes = rows
            .flatten()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum();
        Ok(OutgoingPart {
            part: SnapshotPart::Chunk { from, to, hash, pieces },
            sent_bytes,
            covered_bytes: bytes as u64,
        })
    }

    /// The mark that begins where the next chunk does, if it is of use.
    fn next_mark(&mut self, end: &Bytes) -> Option<ChunkMark> {
        while self.marks.peek().is_some_and(|mark| mark.from < self.at) {
            self.marks.next();
        }
        let mark = self.marks.next_if(|mark| mark.from == self.at)?;
        (mark.from < mark.to && mark.to <= *end).then_some(mark)
    }
}

impl<R, M> Iterator for Outgoing<R, M>
where
    R: Iterator<Item = Result<Row, StateError>>,
    M: Iterator<Item = ChunkMark>,
{
    type Item = Result<OutgoingPart, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let part = self.step();
        self.is_over |= part.is_err();
        Some(part)
    }
}

/// The rows as pieces, where the receiver has rows with these checksums. What did not change is in the same order here
/// and there, so each row is looked for behind the one found before.
fn pieces(rows: Vec<Row>, have: Vec<u32>) -> Vec<ChunkPiece> {
    let mut places: Vec<(u32, u32)> = have.into_iter().zip(0..).collect();
    places.sort_unstable();
    let mut pieces: Vec<ChunkPiece> = Vec::new();
    let mut behind = 0;
    for row in rows {
        let sum = row_sum(&row);
        let place = places.partition_point(|&place| place < (sum, behind));
        let found = places.get(place).filter(|(at, _)| *at == sum).map(|&(_, place)| place);
        match (found, pieces.last_mut()) {
            (Some(place), Some(ChunkPiece::Have { first, count })) if *first + *count == place => *count += 1,
            (Some(place), _) => pieces.push(ChunkPiece::Have { first: place, count: 1 }),
            (None, Some(ChunkPiece::Rows(rows))) => rows.push(row),
            (None, _) => pieces.push(ChunkPiece::Rows(vec![row])),
        }
        behind = found.map_or(behind, |place| place + 1);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: u32, value: &str) -> Row {
        (Bytes::from(format!("{key:04}")), Bytes::from(value.to_owned()))
    }

    fn bounds(from: &str, to: &str) -> (Bytes, Bytes) {
        (Bytes::from(from.to_owned()), Bytes::from(to.to_owned()))
    }

    fn parts(rows: &[Row], ranges: &[(Bytes, Bytes)], marks: Vec<ChunkMark>) -> Vec<SnapshotPart> {
        let rows = rows.iter().cloned().map(Ok);
        let outgoing = Outgoing::new(rows, ranges.to_vec(), marks.into_iter(), 100);
        outgoing.map(|part| part.expect("no bad row").part).collect()
    }

    fn marks_of(rows: &[Row], ranges: &[(Bytes, Bytes)]) -> Vec<ChunkMark> {
        let mark = |part| match part {
            SnapshotPart::Chunk { from, to, hash, pieces } => {
                let rows = pieces.iter().flat_map(|piece| match piece {
                    ChunkPiece::Rows(rows) => rows.iter().map(row_sum).collect::<Vec<_>>(),
                    ChunkPiece::Have { .. } => panic!("nobody has anything"),
                });
                let rows = rows.collect();
                Some(ChunkMark { from, to, hash, rows })
            }
            _ => None,
        };
        parts(rows, ranges, Vec::new()).into_iter().filter_map(mark).collect()
    }

    #[test]
    fn chunks_cover_all_ranges_without_a_gap() {
        let ranges = [bounds("0000", "0500"), bounds("1000", "2000"), bounds("3000", "4000")];
        let mut rows: Vec<Row> = (0..500).map(|n| row(n, "some value")).collect();
        rows.extend((1500..1600).map(|n| row(n, "another value")));
        let made = parts(&rows, &ranges, Vec::new());
        let (mut at, mut seen, mut left) = (ranges[0].0.clone(), Vec::new(), VecDeque::from(ranges.to_vec()));
        for part in &made[..made.len() - 1] {
            let SnapshotPart::Chunk { from, to, pieces, .. } = part else {
                panic!("{part:?}")
            };
            assert_eq!(*from, at);
            at = to.clone();
            if *to == left[0].1 {
                left.pop_front();
                at = left.front().map(|range| range.0.clone()).unwrap_or_default();
            }
            for piece in pieces {
                let ChunkPiece::Rows(rows) = piece else {
                    panic!("nobody has anything")
                };
                assert!(rows.iter().all(|row| *from <= row.0 && row.0 < *to));
                seen.extend(rows.clone());
            }
        }
        assert!(left.is_empty());
        assert_eq!(seen, rows);
        let chunks = made.len() as u64 - 1;
        assert!(chunks > 60, "{chunks}");
        assert_eq!(made.last(), Some(&SnapshotPart::End { chunks, rows: 600 }));
    }

    #[test]
    fn what_did_not_change_is_kept_and_of_the_rest_only_the_change_is_sent() {
        let ranges = [bounds("0000", "9999")];
        let rows: Vec<Row> = (0..500).map(|n| row(n, "some value")).collect();
        let marks = marks_of(&rows, &ranges);
        let mut now = rows.clone();
        now[250].1 = Bytes::from_static(b"changed");
        now.remove(252);
        now.insert(253, (Bytes::from_static(b"0253x"), Bytes::from_static(b"new")));
        let (mut kept, mut sent) = (0, Vec::new());
        for part in parts(&now, &ranges, marks.clone()) {
            match part {
                SnapshotPart::Kept(_) => kept += 1,
                SnapshotPart::Chunk { pieces, .. } => sent.extend(pieces.into_iter().filter_map(|piece| match piece {
                    ChunkPiece::Rows(rows) => Some(rows),
                    ChunkPiece::Have { .. } => None,
                })),
                SnapshotPart::End { rows, .. } => assert_eq!(rows, 500),
            }
        }
        assert!(kept >= marks.len() - 2);
        let sent: Vec<Bytes> = sent.concat().into_iter().map(|row| row.1).collect();
        assert_eq!(sent, ["changed", "new"]);
    }

    #[test]
    fn marks_of_another_range_do_no_harm() {
        let wide = [bounds("0000", "9999")];
        let rows: Vec<Row> = (0..500).map(|n| row(n, "some value")).collect();
        let marks = marks_of(&rows, &wide);
        let narrow = [bounds("0100", "0333")];
        let inside: Vec<Row> = rows[100..333].to_vec();
        let made = parts(&inside, &narrow, marks);
        let kept = made.iter().filter(|part| matches!(part, SnapshotPart::Kept(_))).count();
        assert!(kept > 20, "{kept}");
        let backwards = marks_of(&rows, &wide).into_iter().rev().collect();
        let made = parts(&rows, &wide, backwards);
        assert!(matches!(made.last(), Some(SnapshotPart::End { rows: 500, .. })));
    }
}
