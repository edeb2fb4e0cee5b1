//! Two entities seen from both ends: what one has sent the other, and what the other has had of it. Looking takes time and
//! messages go on meanwhile, so the sender is asked before and after the receiver: what can't have been true at any moment
//! between is a disagreement, everything else is on its way.
use std::collections::BTreeSet;
use std::time::Duration;

use crate::client::{Client, ClientError};
use crate::protocol::activity::{ActivityView, SendView};
use crate::protocol::key::Position;
use crate::protocol::request::{Request, Response};

/// One direction of a pair, asked for at both ends.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// The sender's side, before the receiver was asked.
    pub(super) before: Near,
    /// Session, number of the last message applied, the version that it led to: the receiver's side.
    pub(super) had: Option<(u64, u64, u64)>,
    /// The sender's side, after that.
    pub(super) after: Near,
}

/// What a sender says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Near {
    /// Sessions that it has ever opened.
    pub(super) sessions: u64,
    /// The open one.
    pub(super) sends: Option<SendView>,
    /// Whether messages are counted as outstanding of which the first is not there.
    pub(super) lacks_first: bool,
}

/// Whether both ends can be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They say the same.
    Agree,
    /// Nothing contradicts, and messages or answers are on their way.
    UnderWay,
    /// Too much happened between the questions to tell.
    Moving,
    /// They can't both be right, and why.
    Disagree(Vec<String>),
}

impl Verdict {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Verdict::Agree => "agree",
            Verdict::UnderWay => "under way",
            Verdict::Moving => "moving",
            Verdict::Disagree(_) => "disagree",
        }
    }
}

impl Near {
    pub(super) fn of(view: &ActivityView) -> Self {
        let sends = view.pairs.first().and_then(|pair| pair.sends.clone());
        let outstanding = sends.as_ref().map_or(0, outstanding);
        let first = sends.as_ref().map(|sends| sends.acked + 1);
        Self {
            sessions: view.sessions,
            lacks_first: outstanding > 0 && view.messages.first().map(|message| message.number) != first,
            sends,
        }
    }

    fn session(&self) -> Option<u64> {
        self.sends.as_ref().map(|sends| sends.session)
    }
}

/// Messages not known to be applied.
pub(super) fn outstanding(sends: &SendView) -> u64 {
    (sends.next.saturating_sub(1)).saturating_sub(sends.acked)
}

impl Look {
    /// Asks both ends.
    pub(super) async fn at(client: &Client, from: &Position, to: &Position) -> Result<Self, ClientError> {
        let before = Near::of(&view(client, from, Some(to), None, 1).await?);
        let there = view(client, to, Some(from), None, 1).await?;
        let after = Near::of(&view(client, from, Some(to), None, 1).await?);
        let had = there.pairs.first().and_then(|pair| pair.had);
        Ok(Self { before, had, after })
    }

    /// What follows from it.
    pub(super) fn verdict(&self) -> Verdict {
        let (before, after) = (&self.before, &self.after);
        if before.session() != after.session() || before.sessions != after.sessions && before.sends.is_none() {
            return Verdict::Moving;
        }
        let mut wrong = Vec::new();
        let (Some(first), Some(last)) = (&before.sends, &after.sends) else {
            return match self.had {
                Some((session, _, _)) => Verdict::Disagree(vec![format!(
                    "the receiver has session {session}, the sender has none open ({} so far)",
                    after.sessions
                )]),
                None => Verdict::Agree,
            };
        };
        let mine = last.session;
        if before.lacks_first && after.lacks_first && first.acked == last.acked {
            wrong.push(format!(
                "message {mine}.{} is outstanding and is not there",
                last.acked + 1
            ));
        }
        // A receiver may forget a session that ends; before its first message it knows nothing of one.
        let may_be_unknown = first.acked == 0 || last.closing;
        match self.had {
            None if may_be_unknown => {}
            None => wrong.push(format!(
                "the sender knows {} messages of session {mine} to be applied, the receiver has had none",
                first.acked
            )),
            Some((session, _, _)) if session > mine => wrong.push(format!(
                "the receiver has session {session}, the sender's latest is {mine}"
            )),
            Some((session, _, _)) if session < mine => {
                if !may_be_unknown {
                    wrong.push(format!(
                        "the sender knows {} messages of session {mine} to be applied, the receiver has session {session}",
                        first.acked
                    ));
                }
            }
            Some((_, applied, _)) => {
                if applied < first.acked {
                    let acked = first.acked;
                    wrong.push(format!(
                        "the sender knows {acked} messages to be applied, the receiver has had {applied}"
                    ));
                }
                if applied >= last.next {
                    let sent = last.next - 1;
                    wrong.push(format!(
                        "the receiver has applied {applied} messages, the sender has sent {sent}"
                    ));
                }
            }
        }
        let is_at_rest = outstanding(last) == 0 && !last.closing;
        match (wrong.is_empty(), is_at_rest) {
            (false, _) => Verdict::Disagree(wrong),
            (true, true) => Verdict::Agree,
            (true, false) => Verdict::UnderWay,
        }
    }
}

/// Looks until it is clear, and complains only of what is still there at every further look.
pub(super) async fn compare(client: &Client, from: &Position, to: &Position) -> Result<Verdict, ClientError> {
    let mut complaints: Option<BTreeSet<String>> = None;
    let mut verdict = Verdict::Moving;
    for at in 0..LOOKS {
        if at > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        verdict = Look::at(client, from, to).await?.verdict();
        match &verdict {
            Verdict::Agree | Verdict::UnderWay => return Ok(verdict),
            Verdict::Moving => {}
            Verdict::Disagree(what) => {
                let what: BTreeSet<String> = what.iter().cloned().collect();
                complaints = Some(match complaints {
                    None => what,
                    Some(known) => known.intersection(&what).cloned().collect(),
                });
            }
        }
    }
    Ok(match complaints {
        Some(what) if !what.is_empty() => Verdict::Disagree(what.into_iter().collect()),
        Some(_) => Verdict::Moving,
        None => verdict,
    })
}

/// How often a pair is looked at before it is complained of.
const LOOKS: u32 = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(150);

/// One entity's pairs, or one of them with its messages.
pub(super) async fn view(
    client: &Client,
    entity: &Position,
    with: Option<&Position>,
    after: Option<Position>,
    limit: u32,
) -> Result<ActivityView, ClientError> {
    let (service, key) = entity.parts();
    let request = Request::Activities {
        service: service.to_owned(),
        key: key.unwrap_or("").to_owned(),
        with: with.cloned(),
        after,
        limit,
    };
    match client.request(request).await? {
        Response::Activities(view) => Ok(*view),
        _ => Ok(ActivityView::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(session: u64, acked: u64, next: u64) -> Near {
        Near {
            sessions: session,
            lacks_first: false,
            sends: Some(SendView {
                session,
                next,
                acked,
                closing: false,
                open: 0,
                parked: 0,
                refused: None,
                held: None,
                oldest_ms: None,
                attempts: 0,
                retry_in_ms: None,
            }),
        }
    }

    fn closed(sessions: u64) -> Near {
        Near {
            sessions,
            sends: None,
            lacks_first: false,
        }
    }

    fn verdict(before: Near, had: Option<(u64, u64)>, after: Near) -> &'static str {
        let had = had.map(|(session, last)| (session, last, 1));
        Look { before, had, after }.verdict().word()
    }

    #[test]
    fn both_ends_at_rest_agree() {
        assert_eq!(verdict(near(1, 3, 4), Some((1, 3)), near(1, 3, 4)), "agree");
        assert_eq!(verdict(closed(4), None, closed(4)), "agree");
    }

    #[test]
    fn messages_under_way_are_no_disagreement() {
        // Applied, and not acknowledged yet; sent, and not applied yet; acknowledged while the receiver was asked.
        assert_eq!(verdict(near(1, 2, 4), Some((1, 3)), near(1, 2, 4)), "under way");
        assert_eq!(verdict(near(1, 3, 9), Some((1, 3)), near(1, 3, 9)), "under way");
        assert_eq!(verdict(near(1, 0, 2), Some((1, 5)), near(1, 7, 8)), "agree");
        // A session whose first message has not arrived, with or without an older one there.
        assert_eq!(verdict(near(2, 0, 2), None, near(2, 0, 2)), "under way");
        assert_eq!(verdict(near(2, 0, 2), Some((1, 9)), near(2, 0, 2)), "under way");
        // One that ends.
        let mut ending = near(2, 5, 6);
        if let Some(sends) = &mut ending.sends {
            sends.closing = true;
        }
        assert_eq!(verdict(near(2, 5, 6), None, ending.clone()), "under way");
        assert_eq!(verdict(near(2, 5, 6), Some((2, 5)), ending), "under way");
        // Another session, or one that came and went.
        assert_eq!(verdict(near(2, 5, 6), Some((3, 1)), near(3, 0, 2)), "moving");
        assert_eq!(verdict(closed(2), Some((3, 1)), closed(3)), "moving");
    }

    #[test]
    fn what_cannot_be_is_a_disagreement() {
        for (before, had, after) in [
            // A message that is believed to be applied and is not; one applied that was never sent.
            (near(1, 3, 4), Some((1, 2)), near(1, 3, 4)),
            (near(1, 3, 4), Some((1, 4)), near(1, 3, 4)),
            // The receiver has forgotten, or remembers what is over or never was.
            (near(1, 3, 4), None, near(1, 3, 4)),
            (near(2, 3, 4), Some((1, 3)), near(2, 3, 4)),
            (near(2, 0, 4), Some((3, 1)), near(2, 0, 4)),
            (closed(2), Some((2, 1)), closed(2)),
        ] {
            assert_eq!(verdict(before.clone(), had, after), "disagree", "{before:?} {had:?}");
        }
        let lost = Near {
            lacks_first: true,
            ..near(1, 3, 5)
        };
        assert_eq!(verdict(lost.clone(), Some((1, 3)), lost), "disagree");
    }
}
