//! What is promised of messages between entities, judged by what replicas say that they apply: each message once, by whom
//! it is for, as it was sent, in order per pair; and in the end every one.
use std::collections::BTreeMap;

use bytes::Bytes;

use super::check::{Property, Violation};
use crate::daemon::core::entity::effects::Relay;
use crate::daemon::core::entity::message::Letter;
use crate::daemon::core::event::Event;
use crate::protocol::activity::{Body, Sent};
use crate::protocol::codec;
use crate::protocol::id::ShardId;
use crate::protocol::key::Position;

/// Sender, receiver, session, number: names a message for ever.
type Name = (Position, Position, u64, u64);

/// All messages of a run.
#[derive(Debug, Default)]
pub struct Mail {
    messages: BTreeMap<Name, Message>,
    /// The last message delivered of each pair.
    last: BTreeMap<(Position, Position), (u64, u64)>,
    /// What entities must hold in the end: by entity and field.
    fields: BTreeMap<(Position, String), u64>,
    undelivered: u64,
}

#[derive(Debug)]
struct Message {
    letter: Bytes,
    recorded: (ShardId, u64),
    delivered: Option<(ShardId, u64)>,
}

impl Mail {
    /// A replica has applied something. It may do so again after a crash, and others do the same.
    pub fn see(&mut self, event: &Event) -> Result<(), Violation> {
        let Event::Message {
            delivered,
            refused,
            at,
            from,
            to,
            session,
            number,
            letter,
        } = event
        else {
            return Ok(());
        };
        let name = (from.clone(), to.clone(), *session, *number);
        if !delivered {
            let message = self.messages.entry(name).or_insert_with(|| {
                self.undelivered += 1;
                Message {
                    letter: letter.clone(),
                    recorded: *at,
                    delivered: None,
                }
            });
            if message.recorded != *at || message.letter != *letter {
                let text = format!(
                    "{event} at {at:?}, and another one of that name at {:?}",
                    message.recorded
                );
                return Err(Violation::new(Property::Once, text));
            }
            return Ok(());
        }
        let Some(message) = self.messages.get_mut(&name) else {
            return Err(Violation::new(
                Property::Once,
                format!("{event} at {at:?}, and was never sent"),
            ));
        };
        if message.letter != *letter {
            let text = format!("{event} at {at:?} with another content than it was sent with");
            return Err(Violation::new(Property::Once, text));
        }
        if let Some(first) = message.delivered {
            if first == *at {
                return Ok(());
            }
            return Err(Violation::new(
                Property::Once,
                format!("{event} at {first:?} and again at {at:?}"),
            ));
        }
        message.delivered = Some(*at);
        self.undelivered -= 1;
        let last = self.last.entry((from.clone(), to.clone())).or_default();
        let follows = *last == (*session, number - 1) || (*session > last.0 && *number == 1);
        if !follows {
            let text = format!("{event} at {at:?} out of order: the last one was {}.{}", last.0, last.1);
            return Err(Violation::new(Property::Once, text));
        }
        *last = (*session, *number);
        if !refused {
            self.expect_fields(to, letter);
        }
        Ok(())
    }

    /// What a client was told of a write of its: the messages exist.
    pub fn told(&self, from: &Position, sent: &[Sent]) -> Result<(), Violation> {
        for sent in sent {
            let name = (from.clone(), sent.to.clone(), sent.session, sent.number);
            if !self.messages.contains_key(&name) {
                let text = format!("{from} has written, and its message {sent:?} is nowhere");
                return Err(Violation::new(Property::Whole, text));
            }
        }
        Ok(())
    }

    /// A message that is not delivered.
    pub fn missing(&self) -> Option<String> {
        if self.undelivered == 0 {
            return None;
        }
        let undelivered = self.messages.iter().filter(|(_, message)| message.delivered.is_none());
        undelivered.last().map(|((from, to, session, number), message)| {
            let count = self.undelivered;
            let recorded = message.recorded;
            format!("{count} messages are not delivered: {session}.{number} from {from} to {to}, sent at {recorded:?}")
        })
    }

    /// Every field that a message has set is as the last one of it says.
    pub fn check_documents(&self, document: impl Fn(&Position) -> Option<Bytes>) -> Result<(), Violation> {
        for ((entity, field), value) in &self.fields {
            let found = document(entity);
            let json: Option<serde_json::Value> = found.as_ref().and_then(|found| serde_json::from_slice(found).ok());
            if json.as_ref().and_then(|json| json.get(field)?.as_u64()) != Some(*value) {
                let text = format!("{entity} should hold {value} in `{field}`, and is {found:?}");
                return Err(Violation::new(Property::Whole, text));
            }
        }
        Ok(())
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.messages.len() as u64
    }

    fn expect_fields(&mut self, to: &Position, letter: &[u8]) {
        let Ok(letter) = codec::decode::<Letter>(letter) else {
            return;
        };
        match letter.body {
            Body::Merge { patch } => {
                let patch: BTreeMap<String, u64> = serde_json::from_slice(&patch).unwrap_or_default();
                for (field, value) in patch {
                    self.fields.insert((to.clone(), field), value);
                }
            }
            Body::Call { params, .. } => {
                if let Ok(relay) = serde_json::from_slice::<Relay>(&params) {
                    self.fields.insert((to.clone(), relay.field), relay.value);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::event::Event;

    fn event(delivered: bool, number: u64, index: u64, letter: &'static str) -> Event {
        Event::Message {
            delivered,
            refused: false,
            at: (ShardId(1), index),
            from: Position::new("campaign", "a"),
            to: Position::new("profile", "b"),
            session: 1,
            number,
            letter: letter.into(),
        }
    }

    #[test]
    fn the_judge_tells_right_from_wrong() {
        let run = |events: &[Event]| {
            let mut mail = Mail::default();
            let result = events.iter().try_for_each(|event| mail.see(event));
            (result.map_err(|violation| violation.property), mail.missing().is_some())
        };
        let (sent, sent_too) = (event(false, 1, 5, "x"), event(false, 2, 6, "y"));
        let (had, had_too) = (event(true, 1, 7, "x"), event(true, 2, 8, "y"));
        assert_eq!(run(&[sent.clone(), sent_too.clone(), had.clone()]), (Ok(()), true));
        assert_eq!(
            run(&[sent.clone(), had.clone(), sent.clone(), had.clone()]),
            (Ok(()), false)
        );
        let bad: [&[Event]; 5] = [
            std::slice::from_ref(&had),
            &[sent.clone(), event(true, 1, 7, "z")],
            &[sent.clone(), had.clone(), event(true, 1, 9, "x")],
            &[sent.clone(), sent_too, had_too],
            &[sent.clone(), event(false, 1, 6, "y")],
        ];
        for events in bad {
            assert_eq!(run(events).0, Err(Property::Once), "{events:?}");
        }
    }
}
