//! Comparing copies: what is hashed, and how.
//!
//! An entry of the shard's log ([`super::command::Command::Verify`]) names a place in the shard's rows. Applying it, every
//! copy keeps a slice of its rows from there on exactly as they are at that index; its driver reads the slice on another
//! thread, checks each row's checksum on the way, and the sum goes to the leader, which compares. Nothing is counted per
//! write, every kind of row is covered, and reading everything now and then finds damage that nobody has asked for yet.
use bytes::Bytes;

use super::time::Span;
use crate::protocol::id::ShardId;
use crate::protocol::key::KeyRange;
use crate::protocol::message::SliceSum;

/// Some rows of a shard as of one index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The shard.
    pub shard: ShardId,
    /// The entry that asks.
    pub index: u64,
    /// Where the rows lie: starts included, ends excluded, in key order.
    pub ranges: Vec<(Bytes, Bytes)>,
    /// The slice ends behind so many rows, or behind [`SLICE_BYTES`]. Unit: rows.
    pub rows: u32,
    /// What is hashed before the rows: a copy's bookkeeping as of the index.
    pub seed: u64,
}

/// Where the rows of a shard lie from one of them on, in key order.
pub fn ranges_from(range: &KeyRange, from: &Bytes) -> Vec<(Bytes, Bytes)> {
    let mut ranges: Vec<(Bytes, Bytes)> = range
        .row_ranges()
        .into_iter()
        .map(|(start, end)| (start.max(from.clone()), end))
        .filter(|(start, end)| start < end)
        .collect();
    ranges.sort();
    ranges
}

/// Sums up rows in key order.
#[derive(Debug, Clone)]
pub struct Summing {
    first: Option<Bytes>,
    rows: u32,
    bytes: u64,
    hash: u64,
    rows_max: u32,
}

impl Summing {
    /// Nothing yet.
    pub fn new(slice: &Slice) -> Self {
        Self {
            first: None,
            rows: 0,
            bytes: 0,
            hash: mix(slice.seed, &[]),
            rows_max: slice.rows,
        }
    }

    /// Takes in the next row. False if it lies behind the slice: the slice is whole and the next one begins there.
    pub fn add(&mut self, key: &Bytes, value: &[u8]) -> bool {
        if self.rows >= self.rows_max || self.bytes >= SLICE_BYTES {
            return false;
        }
        self.first.get_or_insert_with(|| key.clone());
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = mix(mix(self.hash, key), value);
        true
    }

    /// What it came to.
    pub fn end(self, next: Option<Bytes>) -> SliceSum {
        SliceSum::Rows {
            first: self.first,
            rows: self.rows,
            bytes: self.bytes,
            hash: self.hash,
            next,
        }
    }
}

/// Folds some bytes, and how many there are, into a hash. The same on every machine; not meant to withstand anybody who
/// searches for collisions.
pub fn mix(hash: u64, bytes: &[u8]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
        (product as u64) ^ (product >> 64) as u64
    };
    let mut hash = fold(hash, bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = fold(hash.rotate_left(23), u64::from_le_bytes(word));
    }
    hash
}

/// Rows of one slice. Unit: rows.
pub const SLICE_ROWS: u32 = 4_096;
/// A slice is closed when it is over this. Unit: bytes.
pub const SLICE_BYTES: u64 = 1 << 20;
/// Between two slices of a shard that nobody waits for: at most 4 MiB a second are read for it.
pub const SLICE_EVERY: Span = Span::millis(250);
/// Copies that have not answered after this long are left out of the comparison.
pub const SLICE_TIMEOUT: Span = Span::secs(5);
/// Slices whose rows are read at a time, by one node. Unit: slices.
pub const SLICES_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::key::Position;

    #[test]
    fn every_bit_and_every_border_counts() {
        let base = mix(mix(7, b"key-0001"), b"some value that is longer than a word");
        let mut seen = std::collections::BTreeSet::from([base]);
        let mut value = b"some value that is longer than a word".to_vec();
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(mix(mix(7, b"key-0001"), &value)), "bit {bit}");
            value[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(seen.insert(mix(mix(7, b"key-0001s"), b"ome value that is longer than a word")));
        assert!(seen.insert(mix(mix(8, b"key-0001"), b"some value that is longer than a word")));
        assert_ne!(mix(7, b"a\0"), mix(7, b"a"));
    }

    #[test]
    fn slices_one_behind_the_other_are_all_rows() {
        let rows: Vec<(Bytes, Bytes)> = (0..1_000)
            .map(|n| (Bytes::from(format!("{n:04}")), Bytes::from(vec![b'x'; n % 50])))
            .collect();
        let mut slice = Slice {
            shard: ShardId(1),
            index: 1,
            ranges: Vec::new(),
            rows: 7,
            seed: 0,
        };
        let (mut at, mut seen) = (0, 0);
        loop {
            slice.rows = 1 + slice.rows % 13;
            let mut sum = Summing::new(&slice);
            let end = rows[at..].iter().position(|(key, value)| !sum.add(key, value));
            let next = end.map(|end| rows[at + end].0.clone());
            let SliceSum::Rows { rows: count, first, .. } = sum.end(next) else {
                unreachable!("rows were added");
            };
            assert_eq!(first.as_ref(), rows.get(at).map(|(key, _)| key));
            seen += count;
            match end {
                Some(end) => at += end,
                None => break,
            }
        }
        assert_eq!(seen, 1_000);
    }

    #[test]
    fn both_spaces_of_rows_are_gone_through_in_key_order() {
        let range = KeyRange::all_of("campaign");
        let all = ranges_from(&range, &Bytes::new());
        assert_eq!(all.len(), 2);
        assert!(all[0].1 <= all[1].0);
        let from = Position::new("campaign", "m").0;
        assert_eq!(ranges_from(&range, &from), [(from.clone(), range.end.0.clone())]);
        assert!(ranges_from(&range, &range.end.0).is_empty());
        let directory = ranges_from(&crate::daemon::core::directory::range(), &Bytes::new());
        assert!(directory[0].1 <= directory[1].0);
    }
}
