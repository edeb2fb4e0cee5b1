//! What a sender's rows say of one receiver, for whoever wants to know what became of a message.
use std::ops::ControlFlow;

use super::message::*;
use crate::daemon::core::state::{State, StateError};
use crate::protocol::activity::{PAIR_VIEW_MAX, PairView};
use crate::protocol::codec;
use crate::protocol::key::Position;

/// The messages from one entity to another, as the sender knows them.
pub fn view(from: &Position, to: &Position, state: &dyn State) -> Result<PairView, StateError> {
    let mut view = PairView::default();
    if let Some(rejections) = read_row::<Rejections>(&rejections_row(from), state)? {
        view.rejections = rejections
            .0
            .into_iter()
            .filter(|rejection| rejection.by == *to)
            .collect();
    }
    let Some(partner) = read_row::<Partner>(&partner_row(from, to), state)? else {
        return Ok(view);
    };
    (view.session, view.acked) = (partner.session, partner.acked);
    let (start, end) = (
        outbox_row(from, to, partner.acked + 1),
        outbox_row(from, to, partner.next),
    );
    let mut bad = None;
    let mut number = partner.acked;
    state.scan(&start, &end, &mut |row, value| {
        number += 1;
        match codec::decode::<Letter>(value) {
            Ok(letter) => view.outstanding.push((number, letter.body)),
            Err(error) => bad = Some(StateError::Io(format!("row {}: {error}", row.escape_ascii()))),
        }
        if bad.is_some() || view.outstanding.len() >= PAIR_VIEW_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    bad.map_or(Ok(view), Err)
}
