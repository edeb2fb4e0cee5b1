//! Closing a shard whose service is being dropped: the same standstill as for a merge, into the directory, and only of a
//! shard that has nothing left in it.
use std::ops::ControlFlow;

use super::*;
use crate::daemon::core::entity::machine;
use crate::protocol::key::{RowKind, split_row_key, work_start};

/// Why a copy of a dropped service's shard goes.
pub(super) const DROPPED: &str = "its service was dropped";

/// What is in the way of closing a shard: an entity, or what one that was deleted still has to do with others. What remains
/// of deleted entities alone is a memory of versions and requests, and goes. A session with a tentative operation in it is not
/// closed, so the rows of sessions speak for those as well.
pub(super) fn what_is_left(shard: &ShardDescriptor, state: &dyn State) -> Result<Option<WireError>, StateError> {
    let (start, end) = (&shard.range.start, &shard.range.end);
    let (mut left, mut bad) = (None, None);
    let mut rows = 0;
    let mut visit = |row: &bytes::Bytes, value: &bytes::Bytes| {
        rows += 1;
        if rows > ROWS_LOOKED_AT_MAX {
            let halves = "where most are deleted entities, halves of it can be looked at after a split";
            left = Some(format!("it has more than {ROWS_LOOKED_AT_MAX} rows, and {halves}"));
            return ControlFlow::Break(());
        }
        let Some((position, kind, _)) = split_row_key(row) else {
            return ControlFlow::Continue(());
        };
        let is = |wanted: RowKind| kind == wanted as u8;
        let what = if is(RowKind::Head) {
            match machine::decode_head(row, value) {
                Ok(head) if head.exists => "is there",
                Ok(_) => return ControlFlow::Continue(()),
                Err(error) => {
                    bad = Some(error);
                    return ControlFlow::Break(());
                }
            }
        } else if is(RowKind::Source) {
            "is deleted, and still remembers messages of others"
        } else if is(RowKind::Partner) || is(RowKind::Outbox) {
            "is deleted, and its messages are not all known to be applied"
        } else {
            return ControlFlow::Continue(());
        };
        left = Some(format!("{position} {what}"));
        ControlFlow::Break(())
    };
    let mut is_done = false;
    for (start, end) in [(start.0.clone(), end.0.clone()), (work_start(start), work_start(end))] {
        if !is_done {
            state.scan(&start, &end, &mut |row, value| {
                let flow = visit(row, value);
                is_done = flow.is_break();
                flow
            })?;
        }
    }
    if let Some(error) = bad {
        return Err(error);
    }
    Ok(left.map(|left| {
        let text = format!("{} can't be closed: {left}; nothing was changed", shard.id);
        WireError::new(Code::UnsafeOp, text)
    }))
}

/// What is looked at stands in the way of everything else that its node has to do. All copies have the same rows, and come to
/// the same end. Unit: rows.
const ROWS_LOOKED_AT_MAX: u32 = 100_000;
