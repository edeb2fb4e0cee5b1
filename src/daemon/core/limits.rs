//! Every bound, with its unit and reason.
use super::time::Span;
use crate::protocol::codec::FRAME_BYTES_MAX;
use crate::protocol::request::DOCUMENT_BYTES_MAX;

/// One tick of Raft's logical clock. Elections take 12 to 20 of them, so that a dead leader is replaced within half a
/// second, and a stall of 250 ms on a busy machine does not yet start one.
pub const TICK: Span = Span::millis(25);
/// Raft's `election_tick`: a follower that heard from its leader within this many ticks refuses to vote. Unit: ticks.
pub const ELECTION_TICKS: usize = 10;
/// Shortest drawn election timeout. Unit: ticks.
pub const ELECTION_TICKS_MIN: usize = 12;
/// Longest drawn election timeout, exclusive. Unit: ticks.
pub const ELECTION_TICKS_MAX: usize = 20;
/// Raft's `heartbeat_tick`. Unit: ticks.
pub const HEARTBEAT_TICKS: usize = 2;
/// A node says so when its certificate ends within this.
pub const CERTIFICATE_WARNING: Span = Span::secs(30 * 86_400);
/// How long after the start of a confirmed heartbeat round a leader may answer reads by itself. Followers refuse to vote for
/// `ELECTION_TICKS` after they heard from it; one tick is lost to rounding, a tenth is the stated drift bound between
/// any two clocks.
pub const LEASE: Span = Span((TICK.0 * (ELECTION_TICKS as u64 - 1)) / 10 * 9);
/// Most bytes of commands in one log entry. Unit: bytes.
pub const ENTRY_BYTES_MAX: usize = 2 << 20;
/// Raft's `max_size_per_msg`: an append carries at least one entry and stops behind this. Unit: bytes.
pub const APPEND_BYTES_MAX: u64 = 1 << 20;
/// Raft's `max_inflight_msgs`. Unit: appends per follower.
pub const INFLIGHT_APPENDS_MAX: usize = 64;
/// Raft's `max_uncommitted_size`: a leader that can't commit stops accepting. Unit: bytes.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Entries applied from one ready. Unit: bytes.
pub const APPLY_BYTES_MAX: u64 = 8 << 20;
/// Log kept in memory per replica for followers that are behind; one further behind gets a snapshot. Unit: bytes.
pub const LOG_TAIL_BYTES_MAX: usize = 16 << 20;
/// Log kept in memory per replica for a follower that is getting a snapshot, which may take minutes. Unit: bytes.
pub const FOLLOWED_LOG_BYTES_MAX: usize = 256 << 20;
/// Log kept in memory per replica. Unit: entries.
pub const LOG_TAIL_ENTRIES_MAX: usize = 20_000;
/// A replica this far behind the commit counts as caught up. Unit: entries.
pub const CAUGHT_UP_WITHIN: u64 = 128;
/// A follower that got a snapshot has this long to install it and follow before the log behind the snapshot may go, and as
/// long again as installing takes at `INSTALL_BYTES_PER_MS`.
pub const FOLLOW_SNAPSHOT_WITHIN: Span = Span::secs(10);
/// How fast a snapshot is installed at the least. Unit: bytes per ms.
pub const INSTALL_BYTES_PER_MS: u64 = 8 << 10;
/// Requests to a shard that stands still for a merge wait on the node for at most this long.
pub const PARK_FOR: Span = Span::secs(2);
/// Requests in hand per node. Unit: requests.
pub const PENDING_REQUESTS_MAX: usize = 100_000;
/// A checkpoint is made after this long, if anything changed. Each rewrites the pages of all rows that changed: the
/// longer the rarer, and the longer a restart replays (measured: docs/performance.md).
pub const CHECKPOINT_EVERY: Span = Span::secs(30);
/// ... or after this many bytes of log. Unit: bytes.
pub const CHECKPOINT_BYTES: usize = 64 << 20;
/// Of so many nodes in a row no two checkpoint after the same time and the same amount: each waits an eighth more.
pub const CHECKPOINT_STAGGER: u64 = 5;
/// The copies of a shard that has changed are compared with each other this often.
pub const VERIFY_EVERY: Span = Span::secs(3_600);
/// ... and those of a shard that has not changed this often.
pub const SCRUB_EVERY: Span = Span::secs(24 * 3_600);
/// A node tells the others how it is this often.
pub const REPORT_EVERY: Span = Span::millis(500);
/// A peer unheard of for this long counts as silent.
pub const PEER_SILENT_AFTER: Span = Span::millis(1500);
/// How long a request id is remembered with its entity, by the shard's own clock, which never runs ahead of real time.
pub const REQUEST_DEDUP: Span = Span::secs(600);
/// Requests remembered in the entity's head row; older ones that still count move to rows of their own. Unit: requests.
pub const HEAD_REQUESTS_MAX: usize = 4;
/// Messages that an entity may have outstanding; a write that would send more is refused. What messages cause may go on to
/// twice that: the sender is not there to be told. Unit: messages.
pub const OUTBOX_ENTITY_MAX: u64 = 10_000;
/// Messages that a shard may have outstanding. Unit: messages.
pub const OUTBOX_SHARD_MAX: u64 = 1_000_000;
/// A session between two entities with nothing outstanding ends after this long.
pub const CLOSE_SESSIONS_AFTER: Span = Span::secs(5);
/// Messages that cause one another. Unit: messages.
pub const MESSAGE_DEPTH_MAX: u8 = 16;
/// Versions of which an entity remembers when and how they were made, the current one included. About 28 bytes each, in the
/// row that every write writes anew. Unit: versions.
pub const HEAD_VERSIONS_MAX: usize = 8;
/// Writes are refused when free space falls below this; deletes go on. Unit: bytes.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;
/// Messages kept for shards that this node does not have yet, in the moment of a split. Unit: messages.
pub const STASH_MESSAGES_MAX: usize = 256;
/// Changes that a shard remembers for those who follow them. Unit: changes.
pub const CHANGES_KEPT_MAX: usize = 8_192;
/// ... and the memory that they may take. Unit: bytes.
pub const CHANGES_KEPT_BYTES_MAX: usize = 1 << 20;
/// All shards of a node together; each gets its share of this. Unit: bytes.
pub const CHANGES_NODE_BYTES_MAX: usize = 128 << 20;
/// Parts of a shard, taken over from others, whose changes reach back to different places. Unit: parts.
pub const CHANGE_FLOORS_MAX: usize = 64;
/// Questions for changes that wait on a node until there are some. Unit: questions.
pub const WATCHERS_MAX: usize = 16_384;
/// Rows looked at for one answer to somebody who has missed changes; the rest is asked for again. Unit: rows.
pub const RESYNC_ROWS_MAX: usize = 4_096;

const _: () = assert!(ENTRY_BYTES_MAX > DOCUMENT_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + APPEND_BYTES_MAX as usize + DOCUMENT_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(LEASE.0 < TICK.0 * ELECTION_TICKS as u64);
