//! What is promised of messages that are refused and parked, judged by what replicas say that they apply: each is parked once,
//! with what it brought; it leaves in one of two ways, once; and who sends it again sends it as one message.
use std::collections::BTreeMap;

use bytes::Bytes;

use super::check::{Property, Violation};
use crate::daemon::core::entity::message::{Fate, Letter, ParkNews, Partner, parked_row, partner_row, read_row};
use crate::daemon::core::event::Event;
use crate::daemon::core::state::State;
use crate::protocol::activity::Body;
use crate::protocol::codec;
use crate::protocol::id::ShardId;
use crate::protocol::key::Position;

/// Sender, receiver, session, number: names a message for ever.
pub type Name = (Position, Position, u64, u64);
/// The shard and the index of an entry.
type Place = (ShardId, u64);

/// All messages of a run that were refused and were to be parked.
#[derive(Debug, Default)]
pub struct Parking {
    messages: BTreeMap<Name, Message>,
    /// Messages recorded that are to be parked if they are refused, by entry, pair and number: what they bring, and whether
    /// one that was parked has been found to be this one.
    recorded: BTreeMap<(Place, Name), (Body, bool)>,
}

#[derive(Debug)]
struct Message {
    body: Body,
    parked: Option<Place>,
    ended: Option<(Place, Fate)>,
}

impl Parking {
    /// A replica has applied something. It may do so again after a crash, and others do the same.
    pub fn see(&mut self, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Message {
                delivered,
                refused,
                at,
                from,
                to,
                session,
                number,
                letter,
            } if !delivered || *refused => {
                let name = (from.clone(), to.clone(), *session, *number);
                self.message(*delivered, *at, name, letter);
                Ok(())
            }
            Event::Parked { at, news } => self.news(*at, news),
            _ => Ok(()),
        }
    }

    fn message(&mut self, delivered: bool, at: Place, name: Name, letter: &Bytes) {
        let Ok(letter) = codec::decode::<Letter>(letter) else {
            return;
        };
        if !letter.returns {
            return;
        }
        if delivered {
            self.messages.entry(name).or_insert(Message {
                body: letter.body,
                parked: None,
                ended: None,
            });
        } else {
            let recorded = self.recorded.entry((at, name));
            recorded.or_insert((letter.body, false));
        }
    }

    fn news(&mut self, at: Place, news: &ParkNews) -> Result<(), Violation> {
        let name = (news.from.clone(), news.to.clone(), news.session, news.number);
        let bad = |text: String| {
            let (session, number) = (news.session, news.number);
            let text = format!("message {session}.{number} from {} to {} {text}", news.from, news.to);
            Err(Violation::new(Property::Whole, text))
        };
        let Some(message) = self.messages.get_mut(&name) else {
            return bad(format!("is {:?} at {at:?} and was never refused", news.fate));
        };
        if message.body != news.body {
            return bad(format!("is {:?} at {at:?} with another content", news.fate));
        }
        if news.fate == Fate::Parked {
            return match message.parked.replace(at) {
                None => Ok(()),
                Some(first) if first == at => Ok(()),
                Some(first) => bad(format!("is parked at {first:?} and again at {at:?}")),
            };
        }
        if message.parked.is_none() {
            return bad(format!("is {:?} at {at:?} and was not parked", news.fate));
        }
        match message.ended.replace((at, news.fate)) {
            None => {}
            Some(first) if first == (at, news.fate) => return Ok(()),
            Some(first) => {
                return bad(format!(
                    "was {:?} at {:?} and is {:?} at {at:?}",
                    first.1, first.0, news.fate
                ));
            }
        }
        if news.fate == Fate::Dropped {
            return Ok(());
        }
        let start = (at, (news.from.clone(), news.to.clone(), 0, 0));
        let is_here = |(place, (from, to, ..)): &(Place, Name)| (*place, from, to) == (at, &news.from, &news.to);
        let here = self.recorded.range_mut(start..);
        let mut here = here.take_while(|(key, _)| is_here(key));
        match here.find(|(_, (body, is_found))| *body == news.body && !is_found) {
            Some((_, (_, is_found))) => *is_found = true,
            None => return bad(format!("is sent again at {at:?}, and there is no such message")),
        }
        Ok(())
    }

    /// What is parked now.
    pub fn open(&self) -> Vec<Name> {
        let open = self.messages.iter().filter(|(_, message)| message.ended.is_none());
        open.map(|(name, _)| name.clone()).collect()
    }

    /// What is parked and not in the rows of its sender, or not told by the pair's row.
    pub fn unseen<'a>(&self, state_of: impl Fn(&Position) -> Option<&'a dyn State>) -> Option<String> {
        let mut counts: BTreeMap<(Position, Position), u32> = BTreeMap::new();
        for (name, message) in self.messages.iter().filter(|(_, message)| message.ended.is_none()) {
            let (from, to, session, number) = name;
            let Some(state) = state_of(from) else {
                return Some(format!("nobody leads {from}"));
            };
            let row = state.get(&parked_row(from, to, *session, *number));
            if message.parked.is_none() || !matches!(row, Ok(Some(_))) {
                return Some(format!("{name:?} was refused, and no row tells of it: {message:?}"));
            }
            *counts.entry((from.clone(), to.clone())).or_default() += 1;
        }
        counts.into_iter().find_map(|((from, to), count)| {
            let partner: Option<Partner> = read_row(&partner_row(&from, &to), state_of(&from)?).ok()?;
            let told = partner.map_or(0, |partner| partner.parked);
            (told != count).then(|| format!("{from} has {count} messages parked for {to}, its row says {told}"))
        })
    }

    /// How many were parked, sent again, given up.
    pub fn count(&self) -> [u64; 3] {
        let ended = |fate| {
            let all = self.messages.values();
            all.filter(|message| message.ended.is_some_and(|(_, known)| known == fate))
                .count() as u64
        };
        [self.messages.len() as u64, ended(Fate::SentAgain), ended(Fate::Dropped)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(delivered: bool, number: u64, index: u64) -> Event {
        let letter = Letter {
            depth: 1,
            wall_ms: 0,
            returns: true,
            body: Body::Delete,
        };
        Event::Message {
            delivered,
            refused: delivered,
            at: (ShardId(1), index),
            from: Position::new("campaign", "a"),
            to: Position::new("profile", "b"),
            session: 1,
            number,
            letter: codec::encode(&letter),
        }
    }

    fn news(fate: Fate, number: u64, index: u64) -> Event {
        Event::Parked {
            at: (ShardId(1), index),
            news: ParkNews {
                from: Position::new("campaign", "a"),
                to: Position::new("profile", "b"),
                session: 1,
                number,
                fate,
                body: Body::Delete,
            },
        }
    }

    #[test]
    fn the_judge_tells_right_from_wrong() {
        let run = |events: &[Event]| {
            let mut parking = Parking::default();
            let result = events.iter().try_for_each(|event| parking.see(event));
            (result.is_ok(), parking.open().len())
        };
        let (refused, parked) = (message(true, 1, 5), news(Fate::Parked, 1, 6));
        let (anew, again) = (message(false, 2, 7), news(Fate::SentAgain, 1, 7));
        assert_eq!(run(&[refused.clone(), parked.clone(), parked.clone()]), (true, 1));
        let whole = [&refused, &parked, &anew, &again, &parked, &anew, &again].map(Clone::clone);
        assert_eq!(run(&whole), (true, 0), "others apply the same");
        let dropped = news(Fate::Dropped, 1, 8);
        assert_eq!(run(&[refused.clone(), parked.clone(), dropped.clone()]), (true, 0));
        let bad: [&[Event]; 5] = [
            std::slice::from_ref(&parked),
            &[refused.clone(), parked.clone(), news(Fate::Parked, 1, 7)],
            &[refused.clone(), dropped.clone()],
            &[refused.clone(), parked.clone(), anew.clone(), again.clone(), dropped],
            &[refused, parked.clone(), again],
        ];
        for events in bad {
            assert!(!run(events).0, "{events:?}");
        }
    }
}
