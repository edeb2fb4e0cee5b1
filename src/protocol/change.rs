//! The change stream: what changed, and where a reader of the changes stands.
//!
//! Each shard counts the commands for its entities: the count is its *place* in history. A shard that is split off goes on from
//! its parent's place, and one that takes over its neighbour from the greater place of the two. So along the life of
//! one key places only grow, whatever shards hold it in turn, and where a reader stands in a range of keys is one number: it
//! knows every change of these keys up to that place. A [`Cursor`] is a list of such ranges, and survives splits,
//! merges, moves and leader changes without knowing of them.
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec;
use super::id::{ClusterId, RequestId, base32};
use super::key::{KeyRange, Position};

/// Most changes in one answer. Unit: changes.
pub const CHANGES_MAX: u32 = 512;
/// An answer with changes ends after this many bytes. Unit: bytes.
pub const CHANGES_BYTES_MAX: usize = 256 << 10;
/// Most ranges in one question. Unit: ranges.
pub const CHANGE_RANGES_MAX: usize = 64;
/// A node waits for changes for at most this long before it answers that there were none. Unit: ms.
pub const CHANGES_WAIT_MS_MAX: u32 = 50_000;

/// What made a version of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A client's write.
    Request(RequestId),
    /// A message from another entity.
    Message {
        /// The sender, `service/key`.
        from: String,
        /// Its number among the sender's messages to this entity.
        number: u64,
    },
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Request(id) => write!(f, "{id}"),
            Cause::Message { from, number } => write!(f, "message {number} from {from}"),
        }
    }
}

/// How a version of an entity was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum How {
    /// A put.
    #[default]
    Put,
    /// A post.
    Post,
    /// A patch.
    Patch,
    /// A delete.
    Delete,
    /// A message from another entity.
    Message {
        /// The sender, `service/key`.
        from: String,
        /// Its number among the sender's messages to this entity.
        number: u64,
    },
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            How::Put => "put",
            How::Post => "post",
            How::Patch => "patch",
            How::Delete => "delete",
            How::Message { .. } => "message",
        })
    }
}

/// What is remembered of one version of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// When it was made, by the leader's wall clock. Unit: ms since 1970.
    pub updated_ms: u64,
    /// How.
    pub how: How,
    /// Size of the document. Unit: bytes.
    pub bytes: u32,
    /// The request that made it, where one did and it is remembered.
    pub request: Option<RequestId>,
}

impl Version {
    /// What made it.
    pub fn cause(&self) -> Option<Cause> {
        match &self.how {
            How::Message { from, number } => Some(Cause::Message {
                from: from.clone(),
                number: *number,
            }),
            _ => self.request.map(Cause::Request),
        }
    }
}

/// What is remembered of an entity: its latest versions, and the messages that rows still tell of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// The newest first, also of a deleted entity; empty where there never was one.
    pub versions: Vec<Version>,
    /// The newest first.
    pub messages: Vec<Trace>,
}

/// A message in an entity's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The entity sent it; otherwise it has had it.
    pub sent: bool,
    /// The other entity.
    pub with: Position,
    /// The session between the two; 0: not known.
    pub session: u64,
    /// Its number in the session.
    pub number: u64,
    /// What it asks for; empty: not known.
    pub action: String,
    /// What became of it.
    pub state: TraceState,
    /// The version that was made with it, or that it made; `None`: not known, or none.
    pub version: Option<u64>,
    /// When it was recorded or heard of, by the leader's wall clock. Unit: ms since 1970.
    pub wall_ms: Option<u64>,
}

/// What became of a message, as the entity knows whose history it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TraceState {
    /// It is not known to be applied.
    Pending,
    /// It was applied.
    Applied,
    /// It was refused, and why.
    Refused(String),
    /// It was refused and is parked, and why.
    Parked(String),
}

impl std::fmt::Display for TraceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TraceState::Pending => f.write_str("pending"),
            TraceState::Applied => f.write_str("applied"),
            TraceState::Refused(why) => write!(f, "rejected: {why}"),
            TraceState::Parked(why) => write!(f, "rejected and parked: {why}"),
        }
    }
}

/// One change of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Entity key.
    pub key: String,
    /// The version that it made.
    pub version: u64,
    /// Whether it removed the entity.
    pub deleted: bool,
    /// When, by the leader's wall clock. Unit: ms since 1970.
    pub updated_ms: u64,
    /// What made it; `None` where that is not remembered any more.
    pub cause: Option<Cause>,
    /// The document, where it was asked for and this version is still the entity's current one.
    pub document: Option<Bytes>,
}

/// A range of keys, and the place in history up to which its changes are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Which keys.
    pub range: KeyRange,
    /// Changes behind this place are wanted; `None`: only those from now on.
    pub after: Option<u64>,
}

/// Changes of a part of the ranges that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// In the order in which they happened, key by key.
    pub items: Vec<Change>,
    /// All that is new in this part is known now, up to `at`. The rest of what was asked for stands as it stood.
    pub range: KeyRange,
    /// A place in the history of the shard that answered.
    pub at: u64,
    /// Nothing behind `at` has happened in `range` yet.
    pub is_all: bool,
    /// The shard does not remember all changes since. These are the entities that changed, as they are now (deleted ones
    /// too): of each the last change, none of those before it.
    pub is_resync: bool,
    /// Keys of the shard that answered.
    pub shard: KeyRange,
}

/// Where a reader of changes stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    scope: KeyRange,
    /// First position and place of each piece; each ends where the next begins, the last where the scope ends.
    pieces: Vec<(Position, Option<u64>)>,
}

/// Why a token can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Misspelt or cut short.
    #[error("the token is misspelt or incomplete")]
    Malformed,
    /// Made by another version.
    #[error("the token has format {0}; this build reads {TOKEN_FORMAT}")]
    Format(u8),
    /// Of another cluster.
    #[error("the token is of another cluster")]
    OtherCluster,
    /// Of another service, prefix or key.
    #[error("the token is of other keys than these")]
    OtherKeys,
}

/// First byte of a token.
const TOKEN_FORMAT: u8 = 1;

/// A token's content. `format` and a checksum go around it.
#[derive(Serialize, Deserialize)]
struct Token {
    /// Tells clusters apart.
    cluster: u32,
    scope: KeyRange,
    first: Option<u64>,
    pieces: Vec<(Position, Option<u64>)>,
}

impl Cursor {
    /// A reader of the changes of these keys behind a place: 0 for all that ever were, `None` for those from now on.
    pub fn new(scope: KeyRange, after: Option<u64>) -> Self {
        let pieces = vec![(scope.start.clone(), after)];
        Self { scope, pieces }
    }

    /// The keys it reads.
    pub fn scope(&self) -> &KeyRange {
        &self.scope
    }

    /// Whether some part has not begun to be read.
    pub fn has_unread(&self) -> bool {
        self.pieces.iter().any(|(_, after)| after.is_none())
    }

    /// What to ask for to read on within `range`.
    pub fn since(&self, range: &KeyRange) -> Vec<Since> {
        let mut wanted = Vec::new();
        for (n, (start, after)) in self.pieces.iter().enumerate() {
            let end = self.pieces.get(n + 1).map_or(&self.scope.end, |(start, _)| start);
            let part = KeyRange {
                start: start.max(&range.start).clone(),
                end: end.min(&range.end).clone(),
            };
            if part.start < part.end {
                wanted.push(Since {
                    range: part,
                    after: *after,
                });
            }
            if wanted.len() == CHANGE_RANGES_MAX {
                break;
            }
        }
        wanted
    }

    /// Takes in an answer to [`Cursor::since`].
    pub fn took(&mut self, answer: &Changed) {
        let (start, end) = (
            answer.range.start.clone().max(self.scope.start.clone()),
            answer.range.end.clone().min(self.scope.end.clone()),
        );
        if start >= end {
            return;
        }
        self.cut(&start);
        if end < self.scope.end {
            self.cut(&end);
        }
        for (_, after) in self.pieces.iter_mut().filter(|(at, _)| start <= *at && *at < end) {
            *after = match *after {
                // A part of an answer with many may lie behind what was known of another range.
                Some(known) if !answer.is_resync => Some(known.max(answer.at)),
                _ => Some(answer.at),
            };
        }
        self.pieces.dedup_by(|next, last| next.1 == last.1);
    }

    /// As text that an operator can keep.
    pub fn token(&self, cluster: ClusterId) -> String {
        let token = Token {
            cluster: cluster_mark(cluster),
            scope: self.scope.clone(),
            first: self.pieces[0].1,
            pieces: self.pieces[1..].to_vec(),
        };
        let mut bytes = vec![TOKEN_FORMAT];
        bytes.extend_from_slice(&codec::encode(&token));
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        format!("w-{}", base32().encode(&bytes))
    }

    /// From such text.
    pub fn from_token(text: &str, cluster: ClusterId) -> Result<Self, TokenError> {
        let text = text.trim().strip_prefix("w-").ok_or(TokenError::Malformed)?;
        let bytes = base32().decode(text.as_bytes()).map_err(|_| TokenError::Malformed)?;
        let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Malformed)?;
        if crc32c::crc32c(content) != u32::from_be_bytes(*checksum) {
            return Err(TokenError::Malformed);
        }
        let (&format, content) = content.split_first().ok_or(TokenError::Malformed)?;
        if format != TOKEN_FORMAT {
            return Err(TokenError::Format(format));
        }
        let token: Token = codec::decode(content).map_err(|_| TokenError::Malformed)?;
        if token.cluster != cluster_mark(cluster) {
            return Err(TokenError::OtherCluster);
        }
        let mut cursor = Self::new(token.scope, token.first);
        cursor.pieces.extend(token.pieces);
        let starts = cursor.pieces.iter().map(|(start, _)| start);
        let all = starts.chain([&cursor.scope.end]).collect::<Vec<_>>();
        if all.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(TokenError::Malformed);
        }
        Ok(cursor)
    }

    /// Makes a piece begin at `at`.
    fn cut(&mut self, at: &Position) {
        if let Err(n) = self.pieces.binary_search_by(|(start, _)| start.cmp(at)) {
            // The first piece begins with the scope, so there is one before.
            let after = self.pieces[n - 1].1;
            self.pieces.insert(n, (at.clone(), after));
        }
    }
}

/// Enough of a cluster's id to refuse another one's token.
fn cluster_mark(cluster: ClusterId) -> u32 {
    crc32c::crc32c(&cluster.0.to_be_bytes())
}

/// The keys of `service` that begin with `prefix`; all of them where it is empty.
pub fn prefix_range(service: &str, prefix: &str) -> KeyRange {
    let mut range = KeyRange::all_of(service);
    range.start = Position::new(service, prefix);
    let mut bytes = prefix.as_bytes().to_vec();
    while let Some(last) = bytes.pop() {
        if last < 0xff {
            bytes.push(last + 1);
            let end = [Position::new(service, "").0.as_ref(), &bytes].concat();
            range.end = Position(end.into());
            break;
        }
    }
    range
}

/// One key.
pub fn key_range(service: &str, key: &str) -> KeyRange {
    let start = Position::new(service, key);
    let end = start.successor();
    KeyRange { start, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &str, to: &str) -> KeyRange {
        KeyRange {
            start: Position::new("campaign", from),
            end: Position::new("campaign", to),
        }
    }

    fn answer(from: &str, to: &str, at: u64) -> Changed {
        Changed {
            items: Vec::new(),
            range: range(from, to),
            at,
            is_all: true,
            is_resync: false,
            shard: range(from, to),
        }
    }

    fn pieces(cursor: &Cursor) -> Vec<(String, Option<u64>)> {
        let key = |position: &Position| position.parts().1.unwrap_or("end").to_owned();
        cursor
            .pieces
            .iter()
            .map(|(start, after)| (key(start), *after))
            .collect()
    }

    #[test]
    fn pieces_follow_splits_and_join_again() {
        let mut cursor = Cursor::new(range("a", "z"), Some(0));
        cursor.took(&answer("a", "z", 5));
        assert_eq!(pieces(&cursor), [("a".into(), Some(5))]);
        // The shard was split at m; its left half answers.
        cursor.took(&answer("a", "m", 9));
        assert_eq!(pieces(&cursor), [("a".into(), Some(9)), ("m".into(), Some(5))]);
        assert_eq!(cursor.since(&range("k", "z")).len(), 2);
        assert_eq!(cursor.since(&range("m", "p"))[0].range, range("m", "p"));
        // The right half has fallen behind, and was merged since.
        cursor.took(&answer("a", "z", 7));
        assert_eq!(pieces(&cursor), [("a".into(), Some(9)), ("m".into(), Some(7))]);
        cursor.took(&answer("a", "z", 12));
        assert_eq!(pieces(&cursor), [("a".into(), Some(12))]);
    }

    #[test]
    fn a_resync_sets_the_place_whatever_was_known() {
        let mut cursor = Cursor::new(range("a", "z"), Some(50));
        let mut resync = answer("a", "f", 7);
        resync.is_resync = true;
        cursor.took(&resync);
        assert_eq!(pieces(&cursor), [("a".into(), Some(7)), ("f".into(), Some(50))]);
    }

    #[test]
    fn a_token_comes_back_whole_or_not_at_all() {
        let cluster = ClusterId(77);
        let mut cursor = Cursor::new(prefix_range("campaign", "c-"), None);
        cursor.took(&answer("c-3", "c-7", 1_000_000));
        assert!(cursor.has_unread());
        let token = cursor.token(cluster);
        assert_eq!(Cursor::from_token(&token, cluster), Ok(cursor));
        assert_eq!(Cursor::from_token(&token, ClusterId(78)), Err(TokenError::OtherCluster));
        for n in 2..token.len() {
            let mut bad = token.clone().into_bytes();
            bad[n] = if bad[n] == b'7' { b'8' } else { b'7' };
            let bad = String::from_utf8(bad).expect("ascii");
            assert_eq!(Cursor::from_token(&bad, cluster), Err(TokenError::Malformed), "{bad}");
            assert!(Cursor::from_token(&token[..n], cluster).is_err());
        }
    }

    #[test]
    fn scopes_hold_what_they_say() {
        let holds = |range: &KeyRange, key: &str| range.contains(&Position::new("campaign", key));
        let prefix = prefix_range("campaign", "c-1");
        assert!(holds(&prefix, "c-1") && holds(&prefix, "c-19") && !holds(&prefix, "c-2") && !holds(&prefix, "c-0"));
        let all = prefix_range("campaign", "");
        assert_eq!(all, KeyRange::all_of("campaign"));
        let one = key_range("campaign", "c-1");
        assert!(holds(&one, "c-1") && !holds(&one, "c-10") && !holds(&one, "c-1 ") && !holds(&one, "c-0"));
    }
}
