//! The sender's half: messages recorded with the change that causes them, and kept until they are known to be applied.
use std::ops::ControlFlow;

use super::draft::{Draft, Stop, refuse};
use super::effects::Rules;
use super::machine::{Context, Delta};
use super::message::*;
use super::subject::Subject;
use crate::daemon::core::limits::{MESSAGE_DEPTH_MAX, OUTBOX_ENTITY_MAX};
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::{ActivityAction, Body, SENT_AGAIN_MAX, Sent};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::key::{Position, RowKind, partner_rest, row_key};
use crate::protocol::schema::index;

/// Refuses a change that would send too much, or at the end of too long a chain. What is sent learns what is to become of
/// it if it is refused.
pub(super) fn check(rules: &dyn Rules, draft: &mut Draft<'_>, state: &dyn State) -> Result<(), Stop> {
    if draft.sends.is_empty() {
        return Ok(());
    }
    for sent in &mut draft.sends {
        sent.returns = rules.parks(&sent.to, &sent.body);
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
    let (Tally { outstanding, parked }, more) = (tally, draft.sends.len() as u64);
    if outstanding + parked + more > allowed {
        let parked = match parked {
            0 => String::new(),
            _ => format!(", {parked} parked that were refused,"),
        };
        let text = format!(
            "{from} has {outstanding} messages outstanding{parked} and would send {more}; {allowed} are allowed"
        );
        return refuse(Code::OutboxFull, text);
    }
    Ok(())
}

/// Records messages.
pub(super) fn send(
    subject: &mut Subject,
    sends: Vec<Outgoing>,
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
    for Outgoing { to, body, returns } in sends {
        let row = partner_row(&from, &to);
        let mut partner = open_session(subject, &row, state)?;
        let number = partner.next;
        partner.next += 1;
        tally.outstanding += 1;
        let action = body.action().to_owned();
        let letter = Letter {
            depth: depth.saturating_add(1),
            wall_ms: context.wall_ms,
            returns,
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
    state.put(tally_row(&from), tally.row());
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
        ActivityAction::Retry => {
            let parked = match partner.parked {
                0 => Vec::new(),
                _ => all_parked(from, to, state)?,
            };
            for (session, number) in parked {
                unpark(draft, to, &mut partner, (session, number), Fate::SentAgain, state)?;
            }
        }
        ActivityAction::SendAgain { session, number } => {
            unpark(draft, to, &mut partner, (session, number), Fate::SentAgain, state)?;
        }
        ActivityAction::Drop { session, number } => {
            unpark(draft, to, &mut partner, (session, number), Fate::Dropped, state)?;
        }
        ActivityAction::Skip if partner.parked > 0 => {
            if let Some(first) = all_parked(from, to, state)?.first() {
                unpark(draft, to, &mut partner, *first, Fate::Dropped, state)?;
            }
        }
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
                returns: false,
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

/// The first messages of a pair that are parked: session and number of each, in that order.
fn all_parked(from: &Position, to: &Position, state: &dyn State) -> Result<Vec<(u64, u64)>, StateError> {
    let start = row_key(from, RowKind::Parked, &partner_rest(to));
    let end = parked_row(from, to, u64::MAX, u64::MAX);
    let (mut found, mut bytes) = (Vec::new(), 0);
    state.scan(&start, &end, &mut |row, value| {
        bytes += value.len();
        if !found.is_empty() && bytes > SENT_AGAIN_BYTES_MAX {
            return ControlFlow::Break(());
        }
        found.extend(split_parked_rest(&row[start.len()..]));
        if found.len() < SENT_AGAIN_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}

/// A message is parked no longer: it is recorded anew, or it is gone.
fn unpark(
    draft: &mut Draft<'_>,
    to: &Position,
    partner: &mut Partner,
    (session, number): (u64, u64),
    fate: Fate,
    state: &dyn State,
) -> Result<(), Stop> {
    let from = draft.position;
    let row = parked_row(from, to, session, number);
    let Some(parked) = read_row::<Parked>(&row, state)? else {
        let text = format!("{from} has no message {session}.{number} parked for {to}");
        return refuse(Code::NoSuchMessage, text);
    };
    let tally = match draft.rows.get(&tally_row(from)) {
        Some(Some(value)) => codec::decode(value).ok(),
        Some(None) => None,
        None => read_row(&tally_row(from), state)?,
    };
    let mut tally: Tally = tally.unwrap_or_default();
    tally.parked = tally.parked.saturating_sub(1);
    partner.parked = partner.parked.saturating_sub(1);
    draft.rows.insert(row, None);
    draft.rows.insert(tally_row(from), tally.row());
    if fate == Fate::SentAgain {
        draft.sends.push(Outgoing {
            to: to.clone(),
            body: parked.body.clone(),
            returns: true,
        });
    }
    draft.parked.push(ParkNews {
        from: from.clone(),
        to: to.clone(),
        session,
        number,
        fate,
        body: parked.body,
    });
    Ok(())
}

/// A message came back refused, to be parked. Its pair's row is there from then on until nothing of it is parked.
pub(super) fn park(
    subject: &mut Subject,
    to: &Position,
    (session, number): (u64, u64),
    parked: Parked,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<(), StateError> {
    let from = subject.position.clone();
    let row = partner_row(&from, to);
    let mut partner = open_session(subject, &row, state)?;
    let mut tally: Tally = read_row(&tally_row(&from), state)?.unwrap_or_default();
    partner.parked += 1;
    tally.parked += 1;
    state.put(parked_row(&from, to, session, number), Some(codec::encode(&parked)));
    state.put(row, Some(codec::encode(&partner)));
    state.put(tally_row(&from), tally.row());
    delta.parked.push(ParkNews {
        from: from.clone(),
        to: to.clone(),
        session,
        number,
        fate: Fate::Parked,
        body: parked.body,
    });
    delta.pairs.push(PairNews {
        from,
        to: to.clone(),
        partner: Some(partner),
        letter: None,
        again: false,
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
            state.put(tally_row, Tally { outstanding, ..tally }.row());
            partner.acked = last;
        }
        Known::Idle => {
            let is_at_rest = partner.outstanding() == 0 && !partner.is_kept();
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

/// Bytes of messages that were refused and parked which one `Retry` sends again, if that is more than one.
const SENT_AGAIN_BYTES_MAX: usize = 4 << 20;

/// The session with a partner, or a new one: the receiver may have forgotten a session that ends.
fn open_session(subject: &mut Subject, row: &[u8], state: &dyn State) -> Result<Partner, StateError> {
    if let Some(partner) = read_row::<Partner>(row, state)?.filter(|partner| !partner.closing) {
        return Ok(partner);
    }
    let head = subject.head_mut();
    head.sessions += 1;
    Ok(Partner {
        session: head.sessions,
        next: 1,
        ..Partner::default()
    })
}
