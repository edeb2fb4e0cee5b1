//! The receiver's half: each message takes effect once, in the entry that also moves the mark.
use std::ops::Range;

use super::draft::{Draft, Lasts, Stop, outcome, refuse};
use super::effects::Rules;
use super::machine::{Context, Delta};
use super::message::*;
use super::outbox;
use super::subject::Subject;
use super::tentative;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::{Body, REASON_BYTES_MAX, REJECTIONS_KEPT, Rejection};
use crate::protocol::change::How;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::parcel::{Content, Parcel, Receipt};

/// What a parcel's delivery led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// For the sender.
    pub receipt: Receipt,
    /// Numbers of the messages that took effect now.
    pub applied: Range<u64>,
    /// Those of them that were refused.
    pub refused: Vec<u64>,
    /// How long each was on its way, by the two leaders' wall clocks. Unit: ms.
    pub lags_ms: Vec<u64>,
}

/// The receipt of a parcel that can't change anything, from the rows as they are: for a leader, who need not trouble the
/// log with it.
pub fn inspect(parcel: &Parcel, state: &dyn State) -> Result<Option<Receipt>, StateError> {
    let source: Option<Source> = read_row(&source_row(&parcel.to, &parcel.from), state)?;
    match (&parcel.content, source) {
        (Content::Finish, Some(source)) if source.session <= parcel.session => Ok(None),
        (Content::Finish, _) => Ok(Some(Receipt::Closed)),
        (Content::Letters { .. }, Some(source)) if source.session > parcel.session => Ok(Some(Receipt::Old)),
        (Content::Letters { first, letters, .. }, Some(source)) if source.session == parcel.session => {
            let brings_next = *first <= source.last + 1 && first + letters.len() as u64 > source.last + 1;
            Ok((!brings_next).then_some(Receipt::Applied { last: source.last }))
        }
        (Content::Letters { ticket, first, letters }, _) => {
            let closed = Subject::load(parcel.to.clone(), state)?.head.closed;
            let opens = *ticket == Some(closed) && *first == 1 && !letters.is_empty();
            Ok((!opens).then_some(Receipt::Ticket { closed }))
        }
    }
}

/// Applies a parcel.
pub fn deliver(
    parcel: &Parcel,
    context: Context,
    rules: &dyn Rules,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<Delivered, StateError> {
    let nothing = |receipt| Delivered {
        receipt,
        applied: 0..0,
        refused: Vec::new(),
        lags_ms: Vec::new(),
    };
    if let Some(receipt) = inspect(parcel, state)? {
        return Ok(nothing(receipt));
    }
    let row = source_row(&parcel.to, &parcel.from);
    let mut subject = Subject::load(parcel.to.clone(), state)?;
    let Content::Letters { first, letters, .. } = &parcel.content else {
        subject.head_mut().closed += 1;
        subject.store(state, delta);
        state.put(row, None);
        return Ok(nothing(Receipt::Closed));
    };
    let known: Option<Source> = read_row(&row, state)?;
    let last = known
        .filter(|known| known.session == parcel.session)
        .map_or(0, |known| known.last);
    let skip = (last + 1 - first) as usize;
    let (mut number, mut refused, mut lags_ms) = (last, Vec::new(), Vec::new());
    for letter in &letters[skip..] {
        number += 1;
        let letter: Option<Letter> = codec::decode(letter).ok();
        lags_ms.extend(
            letter
                .as_ref()
                .map(|letter| context.wall_ms.saturating_sub(letter.wall_ms)),
        );
        if !take(&mut subject, parcel, number, letter, context, rules, state, delta)? {
            refused.push(number);
        }
    }
    let source = Source {
        session: parcel.session,
        last: number,
        version: subject.head.version,
    };
    subject.store(state, delta);
    state.put(row, Some(codec::encode(&source)));
    Ok(Delivered {
        receipt: Receipt::Applied { last: number },
        applied: last + 1..number + 1,
        refused,
        lags_ms,
    })
}

/// One message takes effect, or is refused (`false`), which its sender is told in the same entry.
#[expect(clippy::too_many_arguments, reason = "what applying hands through")]
fn take(
    subject: &mut Subject,
    parcel: &Parcel,
    number: u64,
    letter: Option<Letter>,
    context: Context,
    rules: &dyn Rules,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<bool, StateError> {
    let Some(letter) = letter else {
        let error = WireError::new(Code::Internal, "the message can't be read");
        tell(
            subject,
            parcel,
            number,
            "unreadable",
            None,
            error,
            0,
            context,
            state,
            delta,
        )?;
        return Ok(false);
    };
    let mut draft = subject.draft(context, letter.depth, state);
    // These are never refused: what became of the operation is the answer.
    if tentative::receive(&parcel.from, &letter.body, rules, &mut draft)? {
        let decided = draft.decided();
        let from = parcel.from.to_string();
        let how = How::Message { from, number };
        subject.commit(decided, how, None, context, state, delta)?;
        return Ok(true);
    }
    let decided = decide(&letter.body, parcel, rules, &mut draft, state).map(|()| draft.decided());
    match outcome(decided)? {
        Ok(decided) => {
            let from = parcel.from.to_string();
            let how = How::Message { from, number };
            subject.commit(decided, how, None, context, state, delta)?;
            remember(subject, parcel, letter.body, context, state, delta)?;
            Ok(true)
        }
        // Of what it is told itself an entity does not complain: there is no end to that. That it was told is remembered.
        Err(_) if matches!(letter.body, Body::Refused { .. } | Body::Cancelled { .. }) => {
            remember(subject, parcel, letter.body, context, state, delta)?;
            Ok(false)
        }
        Err(error) => {
            let (action, depth) = (letter.body.action().to_owned(), letter.depth);
            let returned = letter.returns.then_some(letter.body);
            tell(
                subject, parcel, number, &action, returned, error, depth, context, state, delta,
            )?;
            Ok(false)
        }
    }
}

fn decide(
    body: &Body,
    parcel: &Parcel,
    rules: &dyn Rules,
    draft: &mut Draft<'_>,
    state: &dyn State,
) -> Result<(), Stop> {
    if let Body::Cancelled { .. } = body {
        return Ok(());
    }
    rules.receive(&parcel.from, body, draft)?;
    if let Body::Put { .. } = body {
        draft.lasts = Lasts::ForEver;
    }
    if draft.document.is_some() {
        rules.follow(draft)?;
        tentative::follow(rules, draft)?;
    }
    if let Some(Some(document)) = &draft.document
        && document.len() > crate::protocol::request::DOCUMENT_BYTES_MAX
    {
        let text = format!("{} would have {} bytes", draft.position, document.len());
        return refuse(Code::TooLarge, text);
    }
    outbox::check(rules, draft, state)
}

#[expect(clippy::too_many_arguments, reason = "what applying hands through")]
fn tell(
    subject: &mut Subject,
    parcel: &Parcel,
    number: u64,
    action: &str,
    returned: Option<Body>,
    error: WireError,
    depth: u8,
    context: Context,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<(), StateError> {
    let mut reason = error.text;
    let cut = (0..=REASON_BYTES_MAX.min(reason.len()))
        .rev()
        .find(|&at| reason.is_char_boundary(at));
    reason.truncate(cut.unwrap_or(0));
    let body = Body::Refused {
        session: parcel.session,
        number,
        action: action.to_owned(),
        code: error.code,
        reason,
        returned: returned.map(Box::new),
    };
    let told = Outgoing {
        to: parcel.from.clone(),
        body,
        returns: false,
    };
    outbox::send(subject, vec![told], depth, context, state, delta).map(|_| ())
}

/// What a sender keeps of a refusal: that there was one, and the message itself if it is to be parked.
fn remember(
    subject: &mut Subject,
    parcel: &Parcel,
    body: Body,
    context: Context,
    state: &mut dyn State,
    delta: &mut Delta,
) -> Result<(), StateError> {
    let Body::Refused {
        session,
        number,
        action,
        code,
        reason,
        returned,
    } = body
    else {
        return Ok(());
    };
    let row = rejections_row(&parcel.to);
    let mut rejections: Rejections = read_row(&row, state)?.unwrap_or_default();
    rejections.0.push(Rejection {
        by: parcel.from.clone(),
        session,
        number,
        action,
        code,
        reason: reason.clone(),
        wall_ms: context.wall_ms,
    });
    let surplus = rejections.0.len().saturating_sub(REJECTIONS_KEPT);
    rejections.0.drain(..surplus);
    state.put(row, Some(codec::encode(&rejections)));
    let Some(body) = returned else { return Ok(()) };
    let parked = Parked {
        code,
        reason,
        wall_ms: context.wall_ms,
        body: *body,
    };
    outbox::park(subject, &parcel.from, (session, number), parked, state, delta)
}
