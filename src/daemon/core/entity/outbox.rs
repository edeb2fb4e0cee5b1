//! The sender's half: messages recorded with the change that causes them, and kept until they are known to be applied.
use super::draft::{Draft, Stop, refuse};
use super::machine::{Context, Delta};
use super::message::*;
use super::subject::Subject;
use crate::daemon::core::limits::{MESSAGE_DEPTH_MAX, OUTBOX_ENTITY_MAX};
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::{ActivityAction, Body, Sent};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::key::Position;
use crate::protocol::schema::index;

/// Refuses a change that would send too much, or at the end of too long a chain.
pub(super) fn check(draft: &Draft<'_>, state: &dyn State) -> Result<(), Stop> {
    if draft.sends.is_empty() {
        return Ok(());
    }
    let from = draft.position;
    if draft.depth >= MESSAGE_DEPTH_MAX {
        let text = format!("{from} would send at the end of {MESSAGE_DEPTH_MAX} messages that caused one another");
        return refuse(Code::TooDeep, text);
    }
    let tally: Tally = read_row(&tally_row(from), state)?.unwrap_or_default();
    let allowed = match draft.depth {
        0 => OUTBOX_ENTITY_MAX,
        _ => 2 * OUTBOX_ENTITY_MAX,
    };
    let (outstanding, more) = (tally.outstanding, draft.sends.len() as u64);
    if outstanding + more > allowed {
        let text =
            format!("{from} has {outstanding} messages outstanding and would send {more}; {allowed} are allowed");
        return refuse(Code::OutboxFull, text);
    }
    Ok(())
}

/// Records messages.
pub(super) fn send(
    subject: &mut Subject,
    sends: Vec<(Position, Body)>,
    depth: u8,
    context: Context,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<Vec<Sent>, StateError> {
    if sends.is_empty() {
        return Ok(Vec::new());
    }
    let from = subject.position.clone();
    let mut tally: Tally = read_row(&tally_row(&from), state)?.unwrap_or_default();
    let mut sent = Vec::with_capacity(sends.len());
    for (to, body) in sends {
        let row = partner_row(&from, &to);
        let mut partner = match read_row::<Partner>(&row, state)? {
            // The receiver may have forgotten a session that ends.
            Some(partner) if !partner.closing => partner,
            _ => {
                let head = subject.head_mut();
                head.sessions += 1;
                Partner {
                    session: head.sessions,
                    next: 1,
                    ..Partner::default()
                }
            }
        };
        let number = partner.next;
        partner.next += 1;
        tally.outstanding += 1;
        let action = body.action().to_owned();
        let letter = Letter {
            depth: depth.saturating_add(1),
            wall_ms: context.wall_ms,
            body,
        };
        let operation = letter.body.begins();
        let letter = codec::encode(&letter);
        state.put(outbox_row(&from, &to, number), Some(letter.clone()));
        state.put(row, Some(codec::encode(&partner)));
        // Entries of indexes are nobody's concern who writes.
        if index::parts(to.parts().0).is_none() {
            sent.push(Sent {
                to: to.clone(),
                session: partner.session,
                number,
                action,
                operation,
            });
        }
        delta.pairs.push(PairNews {
            from: from.clone(),
            to,
            partner: Some(partner),
            letter: Some(letter),
            again: false,
        });
    }
    state.put(tally_row(&from), Some(codec::encode(&tally)));
    Ok(sent)
}

/// Drafts what an operator does to a pair.
pub(super) fn operate(
    draft: &mut Draft<'_>,
    to: &Position,
    action: ActivityAction,
    by: String,
    state: &dyn State,
) -> Result<(), Stop> {
    let from = draft.position;
    let row = partner_row(from, to);
    let Some(mut partner) = read_row::<Partner>(&row, state)? else {
        return refuse(Code::NoSuchMessage, format!("{from} has no session open with {to}"));
    };
    let wall_ms = draft.context.wall_ms;
    match action {
        ActivityAction::Retry => {}
        ActivityAction::Park => partner.held = Some(Held { by, since_ms: wall_ms }),
        ActivityAction::Unpark => partner.held = None,
        ActivityAction::Cancel { .. } | ActivityAction::Skip => {
            let first = partner.acked + 1;
            let number = match action {
                ActivityAction::Cancel { number } => number,
                _ => first,
            };
            if number < first || number >= partner.next {
                let text = format!("{from} has no message {number} outstanding for {to}");
                return refuse(Code::NoSuchMessage, text);
            }
            let letter = Letter {
                depth: 1,
                wall_ms,
                body: Body::Cancelled { by },
            };
            draft
                .rows
                .insert(outbox_row(from, to, number), Some(codec::encode(&letter)));
        }
    }
    draft.rows.insert(row, Some(codec::encode(&partner)));
    draft.pairs.push(PairNews {
        from: from.clone(),
        to: to.clone(),
        partner: Some(partner),
        letter: None,
        again: true,
    });
    Ok(())
}

/// Counts the tentative operations that a sender has open with a receiver: their session stays open for so long.
pub(super) fn count_open(
    from: &Position,
    to: Position,
    more: i32,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<(), StateError> {
    let row = partner_row(from, &to);
    let Some(mut partner) = read_row::<Partner>(&row, state)? else {
        return Ok(());
    };
    partner.open = partner.open.saturating_add_signed(more);
    state.put(row, Some(codec::encode(&partner)));
    delta.pairs.push(PairNews {
        from: from.clone(),
        to,
        partner: Some(partner),
        letter: None,
        again: false,
    });
    Ok(())
}

/// Takes in what is known of a pair. What is late, or was heard before, changes nothing.
pub fn acknowledge(known: &Acknowledgement, state: &mut dyn State, delta: &mut Delta) -> Result<(), StateError> {
    let (from, to) = (&known.from, &known.to);
    if let Known::Planted(last) = known.what {
        let mark = Source {
            session: known.session,
            last,
            version: 0,
        };
        state.put(source_row(from, to), Some(codec::encode(&mark)));
        return Ok(());
    }
    let row = partner_row(from, to);
    let Some(mut partner) = read_row::<Partner>(&row, state)? else {
        return Ok(());
    };
    if partner.session != known.session {
        return Ok(());
    }
    match known.what {
        Known::Applied(last) => {
            let last = last.min(partner.next - 1);
            if last <= partner.acked {
                return Ok(());
            }
            for number in partner.acked + 1..=last {
                state.put(outbox_row(from, to, number), None);
            }
            let tally_row = tally_row(from);
            let tally: Tally = read_row(&tally_row, state)?.unwrap_or_default();
            let outstanding = tally.outstanding.saturating_sub(last - partner.acked);
            let tally = (outstanding > 0).then(|| codec::encode(&Tally { outstanding }));
            state.put(tally_row, tally);
            partner.acked = last;
        }
        Known::Idle => {
            let is_at_rest = partner.outstanding() == 0 && partner.open == 0 && partner.held.is_none();
            if !is_at_rest || partner.closing {
                return Ok(());
            }
            partner.closing = true;
        }
        Known::Forgotten => {
            if partner.closing {
                state.put(row, None);
                delta.pairs.push(PairNews {
                    from: from.clone(),
                    to: to.clone(),
                    partner: None,
                    letter: None,
                    again: false,
                });
            }
            return Ok(());
        }
        Known::Planted(_) => return Ok(()),
    }
    state.put(row, Some(codec::encode(&partner)));
    delta.pairs.push(PairNews {
        from: from.clone(),
        to: to.clone(),
        partner: Some(partner),
        letter: None,
        again: false,
    });
    Ok(())
}
