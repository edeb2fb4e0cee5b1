//! Keys and key ranges.
//!
//! An entity is named by its service and its key. Both are restricted so that plain byte order is the order an
//! operator expects: neither may hold a control character, so a zero byte can end each part.
//!
//! ```text
//! position of an entity   campaign 00 c-1001             what ranges are made of
//! row of an entity        campaign 00 c-1001 00 kind ..  what the state file holds
//! ```
//! Everything an entity owns lies between its position and the next entity's, so a shard boundary (a position)
//! never divides an entity, and a split or merge moves no data.
//!
//! What an entity has still to do (messages to send, timers) lies in a second space, in the same order, so that a shard
//! finds its work without reading its entities:
//!
//! ```text
//! work of an entity       02 campaign 00 c-1001 00 kind ..
//! ```
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest service name. Unit: bytes.
pub const SERVICE_NAME_BYTES_MAX: usize = 63;
/// Longest entity key. Unit: bytes.
pub const ENTITY_KEY_BYTES_MAX: usize = 512;

/// Why a service name or an entity key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not `[a-z][a-z0-9_-]*`, or too long.
    #[error(
        "`{0}` is not a service name: 1 to {SERVICE_NAME_BYTES_MAX} characters, a to z, 0 to 9, `_` and `-`, a letter first"
    )]
    Service(String),
    /// Empty or too long.
    #[error("an entity key has 1 to {ENTITY_KEY_BYTES_MAX} bytes; this one has {0}")]
    Length(usize),
    /// A control character.
    #[error("an entity key holds no control characters; this one has one at byte {0}")]
    Control(usize),
}

/// Checks a service name.
pub fn check_service(service: &str) -> Result<(), KeyError> {
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if service.len() <= SERVICE_NAME_BYTES_MAX
        && service.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && service.bytes().all(rest)
    {
        Ok(())
    } else {
        Err(KeyError::Service(service.to_owned()))
    }
}

/// Checks an entity key.
pub fn check_entity_key(key: &str) -> Result<(), KeyError> {
    check_key(key, ENTITY_KEY_BYTES_MAX)
}

/// Checks a key that may have so many bytes.
pub fn check_key(key: &str, bytes_max: usize) -> Result<(), KeyError> {
    if key.is_empty() || key.len() > bytes_max {
        return Err(KeyError::Length(key.len()));
    }
    match key.bytes().position(|b| b < 0x20 || b == 0x7f) {
        Some(at) => Err(KeyError::Control(at)),
        None => Ok(()),
    }
}

/// Where an entity lies in the order of all entities: service, zero byte, key. Also a boundary between shards.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position(pub Bytes);

impl Position {
    /// The position of `key` in `service`; the empty key is the start of the service.
    pub fn new(service: &str, key: &str) -> Self {
        let mut bytes = Vec::with_capacity(service.len() + 1 + key.len());
        bytes.extend_from_slice(service.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(key.as_bytes());
        Self(bytes.into())
    }

    /// The position behind every entity of `service`.
    pub fn end_of(service: &str) -> Self {
        let mut bytes = Vec::with_capacity(service.len() + 1);
        bytes.extend_from_slice(service.as_bytes());
        bytes.push(1);
        Self(bytes.into())
    }

    /// The service this position belongs to, and the key (empty at the start of the service, `None` at its end).
    pub fn parts(&self) -> (&str, Option<&str>) {
        let at = self.0.iter().position(|&b| b <= 1).unwrap_or(self.0.len());
        let service = std::str::from_utf8(&self.0[..at]).unwrap_or("?");
        match self.0.get(at) {
            Some(0) => (service, Some(std::str::from_utf8(&self.0[at + 1..]).unwrap_or("?"))),
            _ => (service, None),
        }
    }

    /// The first position behind the entity at this one: where a listing goes on.
    pub fn successor(&self) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1);
        bytes.extend_from_slice(&self.0);
        bytes.push(1);
        Self(bytes.into())
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (service, Some("")) => write!(f, "{service}/start"),
            (service, Some(key)) => write!(f, "{service}/{}", key.escape_debug()),
            (service, None) => write!(f, "{service}/end"),
        }
    }
}

/// A half-open range of positions within one service: `start` is inside, `end` is not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct KeyRange {
    /// First position inside.
    pub start: Position,
    /// First position behind.
    pub end: Position,
}

impl KeyRange {
    /// All entities of `service`.
    pub fn all_of(service: &str) -> Self {
        Self {
            start: Position::new(service, ""),
            end: Position::end_of(service),
        }
    }

    /// Whether the range holds `position`.
    pub fn contains(&self, position: &Position) -> bool {
        self.start <= *position && *position < self.end
    }

    /// Whether the two ranges share a position.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Both halves of the range cut at `at`, or `None` where that would leave one empty.
    pub fn split(&self, at: &Position) -> Option<(KeyRange, KeyRange)> {
        if self.start < *at && *at < self.end {
            let left = KeyRange {
                start: self.start.clone(),
                end: at.clone(),
            };
            let right = KeyRange {
                start: at.clone(),
                end: self.end.clone(),
            };
            Some((left, right))
        } else {
            None
        }
    }

    /// Where the rows of the range's entities lie, first and last excluded: their work, then all else.
    pub fn row_ranges(&self) -> [(Bytes, Bytes); 2] {
        [
            (work_start(&self.start), work_start(&self.end)),
            (self.start.0.clone(), self.end.0.clone()),
        ]
    }

    /// The same in key order, without empty ones.
    pub fn row_ranges_sorted(&self) -> Vec<(Bytes, Bytes)> {
        let mut ranges = Vec::from(self.row_ranges());
        ranges.retain(|(start, end)| start < end);
        // The directory's rows lie before everybody's work.
        ranges.sort();
        ranges
    }

    /// The service the range belongs to.
    pub fn service(&self) -> &str {
        self.start.parts().0
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} .. {})", self.start, self.end)
    }
}

/// What a row of an entity holds. The byte is part of the row's key; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RowKind {
    /// Version, document, latest requests.
    Head = 1,
    /// Requests older than those in the head, remembered until the dedup window has passed.
    Request = 2,
    /// A row of the directory, which has no entities.
    Directory = 3,
    /// What an entity has had from one sender; rest: the sender.
    Source = 4,
    /// An entity that this one keeps a list of: its children by relation, the members of an index.
    Relation = 5,
    /// A tentative operation.
    Tentative = 6,
    /// The latest messages of an entity that their receivers refused.
    Rejected = 7,
    /// A message that its receiver refused and that is parked; rest: the receiver, then the message's session and number.
    Parked = 8,
    /// Work: how many messages an entity has outstanding.
    Tally = 16,
    /// Work: an entity's open session with one receiver; rest: the receiver.
    Partner = 17,
    /// Work: something to be done at a time of the shard's clock.
    Timer = 18,
    /// Work: a message that is not known to be applied; rest: the receiver, then the message's number.
    Outbox = 19,
}

/// The rest of a row that an entity has about the entity at `other`. Rows of one kind lie in the order of the others'
/// positions.
pub fn partner_rest(other: &Position) -> Vec<u8> {
    let mut rest = Vec::with_capacity(other.0.len() + 9);
    rest.extend_from_slice(&other.0);
    rest.push(0);
    rest
}

/// The rest of a row about the message `number` to or from the entity at `other`.
pub fn message_rest(other: &Position, number: u64) -> Vec<u8> {
    let mut rest = partner_rest(other);
    rest.extend_from_slice(&number.to_be_bytes());
    rest
}

/// Splits what [`partner_rest`] or [`message_rest`] made into the other's position and what follows it.
pub fn split_partner_rest(rest: &Bytes) -> Option<(Position, Bytes)> {
    let first = rest.iter().position(|&b| b == 0)?;
    let second = first + 1 + rest[first + 1..].iter().position(|&b| b == 0)?;
    Some((Position(rest.slice(..second)), rest.slice(second + 1..)))
}

/// First byte of the rows of the work space. No service name and no row of the directory begins with it.
const WORK: u8 = 2;

/// Where the work of the entities from `position` on begins.
pub fn work_start(position: &Position) -> Bytes {
    [&[WORK], position.0.as_ref()].concat().into()
}

/// The key of a row in the work space: something that the entity at `position` has still to do.
pub fn work_key(position: &Position, kind: RowKind, rest: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(position.0.len() + 3 + rest.len());
    bytes.push(WORK);
    bytes.extend_from_slice(&position.0);
    bytes.push(0);
    bytes.push(kind as u8);
    bytes.extend_from_slice(rest);
    bytes.into()
}

/// The key of a row of the entity at `position`.
pub fn row_key(position: &Position, kind: RowKind, rest: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(position.0.len() + 2 + rest.len());
    bytes.extend_from_slice(&position.0);
    bytes.push(0);
    bytes.push(kind as u8);
    bytes.extend_from_slice(rest);
    bytes.into()
}

/// Splits a row key of either space into position, kind byte and rest; `None` where it is not one.
pub fn split_row_key(row: &Bytes) -> Option<(Position, u8, Bytes)> {
    let row = match row.first() {
        Some(&WORK) => &row.slice(1..),
        _ => row,
    };
    let first = row.iter().position(|&b| b == 0)?;
    let second = first + 1 + row[first + 1..].iter().position(|&b| b == 0)?;
    let kind = *row.get(second + 1)?;
    Some((Position(row.slice(..second)), kind, row.slice(second + 2..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_service("campaign").is_ok());
        for bad in ["", "Campaign", "1st", "a b", "a/b", &"x".repeat(64)] {
            assert!(check_service(bad).is_err(), "{bad}");
        }
        assert!(check_entity_key("c-1001").is_ok());
        assert!(check_entity_key("grüße").is_ok());
        assert_eq!(check_entity_key("a\nb"), Err(KeyError::Control(1)));
        assert_eq!(check_entity_key(""), Err(KeyError::Length(0)));
        assert!(check_entity_key(&"x".repeat(513)).is_err());
    }

    #[test]
    fn rows_of_an_entity_lie_between_its_position_and_its_successor() {
        let keys = ["a", "a b", "a-", "ab", "b", "grüße"];
        for pair in keys.windows(2) {
            let (low, high) = (Position::new("campaign", pair[0]), Position::new("campaign", pair[1]));
            let row = row_key(&low, RowKind::Request, &[0xff; 20]);
            assert!(low.0 < row && row < low.successor().0 && row < high.0, "{pair:?}");
            assert!(low.successor() <= high, "{pair:?}");
        }
    }

    #[test]
    fn a_row_key_comes_apart_again() {
        let position = Position::new("campaign", "c-1");
        let row = row_key(&position, RowKind::Request, b"\0\0x");
        assert_eq!(
            split_row_key(&row),
            Some((position.clone(), 2, Bytes::from_static(b"\0\0x")))
        );
        let work = work_key(&position, RowKind::Request, b"\0\0x");
        assert_eq!(split_row_key(&work), Some((position, 2, Bytes::from_static(b"\0\0x"))));
    }

    #[test]
    fn rows_about_others_lie_in_the_order_of_the_others_and_of_the_numbers() {
        let mine = Position::new("campaign", "c-1");
        let others = [
            ("campaign", "a"),
            ("campaign", "a b"),
            ("campaign", "ab"),
            ("profile", "a"),
        ];
        let mut rows = Vec::new();
        for (service, key) in others {
            let other = Position::new(service, key);
            for number in [1, 255, 256, u64::MAX] {
                let row = work_key(&mine, RowKind::Outbox, &message_rest(&other, number));
                let (position, kind, rest) = split_row_key(&row).expect("a row");
                assert_eq!((position, kind), (mine.clone(), RowKind::Outbox as u8));
                let (found, number_bytes) = split_partner_rest(&rest).expect("about another");
                assert_eq!(
                    (found, number_bytes.as_ref()),
                    (other.clone(), &number.to_be_bytes()[..])
                );
                rows.push(row);
            }
        }
        assert!(rows.is_sorted());
    }

    #[test]
    fn both_kinds_of_rows_lie_in_the_ranges_of_their_shard_and_in_no_other() {
        let all = KeyRange::all_of("campaign");
        let (left, right) = all.split(&Position::new("campaign", "m")).expect("inside");
        for key in ["a", "lzz", "m", "z"] {
            let position = Position::new("campaign", key);
            for row in [
                row_key(&position, RowKind::Head, b"x"),
                work_key(&position, RowKind::Head, b"x"),
            ] {
                let holds = |range: &KeyRange| {
                    let within = |(start, end): &(Bytes, Bytes)| *start <= row && row < *end;
                    range.row_ranges().iter().filter(|range| within(range)).count()
                };
                assert_eq!(holds(&all), 1);
                assert_eq!(holds(&left), usize::from(left.contains(&position)), "{key}");
                assert_eq!(holds(&right), usize::from(right.contains(&position)), "{key}");
            }
        }
    }

    #[test]
    fn a_split_loses_no_position() {
        let all = KeyRange::all_of("campaign");
        let (left, right) = all.split(&Position::new("campaign", "m")).expect("inside");
        assert_eq!(left.end, right.start);
        for key in ["a", "lzz", "m", "z"] {
            let position = Position::new("campaign", key);
            assert!(left.contains(&position) ^ right.contains(&position), "{key}");
        }
        assert_eq!(all.split(&all.start), None);
        assert_eq!(all.split(&Position::new("profile", "m")), None);
    }
}
