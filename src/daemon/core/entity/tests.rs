//! The protocol of messages between entities against a network that keeps everything and delivers it at any time.
use std::collections::BTreeMap;

use bytes::Bytes;

use super::effects::NoRules;
use super::inbox::{deliver, inspect};
use super::machine::{self, Context, Delta};
use super::message::*;
use super::outbox::acknowledge;
use super::testing::Rows;
use crate::daemon::core::limits::OUTBOX_ENTITY_MAX;
use crate::daemon::core::state::State;
use crate::protocol::activity::{ActivityAction, Body, Rejection, Sent};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::key::{Position, RowKind, split_partner_rest, split_row_key};
use crate::protocol::parcel::{Content, Parcel, Receipt};
use crate::protocol::request::{Change, Condition, Write};

type Pair = (Position, Position);

/// Entities, and everything that was ever on its way between them.
struct World {
    rows: Rows,
    rng: fastrand::Rng,
    parcels: Vec<Parcel>,
    receipts: Vec<(Pair, u64, Receipt)>,
    sent: BTreeMap<Pair, Vec<u64>>,
    applied: BTreeMap<Pair, Vec<u64>>,
    next: u64,
    /// A bug: tickets are taken whatever they say.
    any_ticket: bool,
}

fn at(wall_ms: u64) -> Context {
    Context {
        shard: ShardId(1),
        wall_ms,
        shard_time_ms: wall_ms,
        change_at: 1,
    }
}

fn entity(name: &str) -> Position {
    Position::new("campaign", name)
}

fn write(id: u64, of: &Position, change: Change) -> Write {
    Write {
        service: of.parts().0.to_owned(),
        key: of.parts().1.expect("an entity").to_owned(),
        id: RequestId(u128::from(id)),
        condition: Condition::Always,
        change,
    }
}

fn merge(field: &str, value: u64) -> Body {
    Body::Merge {
        patch: format!(r#"{{"{field}":{value}}}"#).into(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rows: Rows::default(),
            rng: fastrand::Rng::with_seed(seed),
            parcels: Vec::new(),
            receipts: Vec::new(),
            sent: BTreeMap::new(),
            applied: BTreeMap::new(),
            next: 1,
            any_ticket: false,
        };
        for name in ["a", "b", "c"] {
            world.write(&entity(name), Change::Put("{}".into())).expect("a put");
        }
        world
    }

    fn write(&mut self, of: &Position, change: Change) -> Result<Vec<Sent>, Code> {
        self.next += 1;
        let write = write(self.next, of, change);
        let mut delta = Delta::default();
        let outcome = machine::apply(&write, at(self.next), &NoRules, &mut self.rows, &mut delta).expect("rows");
        outcome.map(|written| written.sent).map_err(|error| error.code)
    }

    fn send(&mut self, from: &Position, to: &Position) {
        let n = self.next;
        let body = merge(from.parts().1.expect("an entity"), n);
        self.write(
            from,
            Change::Send {
                to: vec![to.clone()],
                body: Box::new(body),
            },
        )
        .expect("room");
        self.sent.entry((from.clone(), to.clone())).or_default().push(n);
    }

    fn partners(&self) -> Vec<(Pair, Partner)> {
        let mut partners = Vec::new();
        for (row, value) in &self.rows.0 {
            let (position, kind, rest) = split_row_key(row).expect("a row");
            if kind == RowKind::Partner as u8 {
                let (to, _) = split_partner_rest(&rest).expect("about another");
                partners.push(((position, to), codec::decode(value).expect("a partner")));
            }
        }
        partners
    }

    /// What a leader that sees the rows as they are would send.
    fn parcel(&mut self, pair: &Pair, partner: &Partner, ticket: Option<u64>) -> Parcel {
        let (from, to) = pair.clone();
        let content = if partner.closing {
            Content::Finish
        } else {
            let first = partner.acked + 1;
            let knocks = partner.acked == 0 && ticket.is_none();
            let count = if knocks {
                0
            } else {
                self.rng.u64(0..=partner.outstanding())
            };
            let letter = |number| {
                let letter = self.rows.get(&outbox_row(&from, &to, number)).expect("rows");
                letter.expect("the message is outstanding")
            };
            let letters = (first..first + count).map(letter).collect();
            Content::Letters { ticket, first, letters }
        };
        Parcel {
            slot: 0,
            from,
            to,
            session: partner.session,
            content,
        }
    }

    fn deliver(&mut self, mut parcel: Parcel) {
        if self.any_ticket
            && let Content::Letters {
                ticket: Some(ticket), ..
            } = &mut parcel.content
        {
            let head = self
                .rows
                .get(&crate::protocol::key::row_key(&parcel.to, RowKind::Head, &[]));
            let head = head.expect("rows").expect("an entity");
            *ticket = machine::decode_head(b"", &head).expect("a head").closed;
        }
        let mut delta = Delta::default();
        let delivered = deliver(&parcel, at(self.next), &NoRules, &mut self.rows, &mut delta).expect("rows");
        let pair = (parcel.from.clone(), parcel.to.clone());
        if let Content::Letters { first, letters, .. } = &parcel.content {
            for number in delivered.applied {
                let letter: Letter = codec::decode(&letters[(number - first) as usize]).expect("a letter");
                let Body::Merge { patch } = letter.body else {
                    panic!("only merges are sent")
                };
                let text = String::from_utf8(patch.to_vec()).expect("text");
                let value = text.rsplit(':').next().expect("a value").trim_end_matches('}');
                self.applied
                    .entry(pair.clone())
                    .or_default()
                    .push(value.parse().expect("a number"));
            }
        }
        self.receipts.push((pair, parcel.session, delivered.receipt));
    }

    fn take_receipt(&mut self, (pair, session, receipt): (Pair, u64, Receipt)) {
        let what = match receipt {
            Receipt::Applied { last } => Known::Applied(last),
            Receipt::Closed => Known::Forgotten,
            Receipt::Ticket { closed } => {
                // While it is sure to lead, the leader looks again whether anything is left to be sent.
                let row = partner_row(&pair.0, &pair.1);
                let partner: Option<Partner> = read_row(&row, &self.rows).expect("rows");
                if let Some(partner) = partner.filter(|p| p.session == session && p.acked == 0) {
                    let parcel = self.parcel(&pair, &partner, Some(closed));
                    self.parcels.push(parcel);
                }
                return;
            }
            _ => return,
        };
        let (from, to) = pair;
        let known = Acknowledgement {
            from,
            to,
            session,
            what,
        };
        acknowledge(&known, &mut self.rows, &mut Delta::default()).expect("rows");
    }

    fn step(&mut self) {
        let names = ["a", "b", "c"];
        match self.rng.u32(0..12) {
            0 | 1 => {
                let (from, to) = (self.rng.usize(0..3), self.rng.usize(0..3));
                self.send(&entity(names[from]), &entity(names[to]));
            }
            2..=4 => {
                let partners = self.partners();
                if !partners.is_empty() {
                    let (pair, partner) = &partners[self.rng.usize(0..partners.len())];
                    let parcel = self.parcel(pair, partner, None);
                    self.parcels.push(parcel);
                }
            }
            5..=7 if !self.parcels.is_empty() => {
                let newest = self.parcels.len() - 1;
                let at = if self.rng.bool() {
                    newest
                } else {
                    self.rng.usize(0..=newest)
                };
                self.deliver(self.parcels[at].clone());
            }
            8 | 9 if !self.receipts.is_empty() => {
                let newest = self.receipts.len() - 1;
                let at = if self.rng.bool() {
                    newest
                } else {
                    self.rng.usize(0..=newest)
                };
                self.take_receipt(self.receipts[at].clone());
            }
            10 => {
                for ((from, to), partner) in self.partners() {
                    let known = Acknowledgement {
                        from,
                        to,
                        session: partner.session,
                        what: Known::Idle,
                    };
                    acknowledge(&known, &mut self.rows, &mut Delta::default()).expect("rows");
                }
            }
            _ => {}
        }
    }

    /// Nothing was applied twice, out of order, or by whom it was not for.
    fn check(&self) -> Result<(), String> {
        for (pair, applied) in &self.applied {
            let sent = self.sent.get(pair).map_or(&[][..], Vec::as_slice);
            if !sent.starts_with(applied) {
                return Err(format!("{pair:?}: sent {sent:?}, applied {applied:?}"));
            }
        }
        Ok(())
    }

    /// Everything arrives once more in the order in which an honest network would have brought it.
    fn drain(&mut self) {
        for _ in 0..1_000 {
            let partners = self.partners();
            if partners.is_empty() {
                return;
            }
            for (pair, partner) in partners {
                let idle = Acknowledgement {
                    from: pair.0.clone(),
                    to: pair.1.clone(),
                    session: partner.session,
                    what: Known::Idle,
                };
                acknowledge(&idle, &mut self.rows, &mut Delta::default()).expect("rows");
                let row = partner_row(&pair.0, &pair.1);
                let partner: Option<Partner> = read_row(&row, &self.rows).expect("rows");
                let Some(partner) = partner else { continue };
                let parcel = self.parcel(&pair, &partner, None);
                self.deliver(parcel);
                let receipt = self.receipts.last().expect("just made").clone();
                let made = self.parcels.len();
                self.take_receipt(receipt);
                if self.parcels.len() > made {
                    let parcel = self.parcels.last().expect("just made").clone();
                    self.deliver(parcel);
                    let receipt = self.receipts.last().expect("just made").clone();
                    self.take_receipt(receipt);
                }
            }
        }
        panic!("the outboxes do not empty");
    }
}

/// Sessions open and close while every parcel and every receipt that ever was comes again at any time: each message is
/// applied once and in order, and at the end no row is left.
#[test]
fn each_message_is_applied_once_whatever_comes_again() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
            world.check().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        world.drain();
        for parcel in world.parcels.clone() {
            world.deliver(parcel);
        }
        world.check().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert_eq!(world.sent, world.applied, "seed {seed}: all is applied");
        let kinds = [RowKind::Partner, RowKind::Outbox, RowKind::Tally, RowKind::Source].map(|kind| kind as u8);
        let left = world
            .rows
            .0
            .keys()
            .filter(|row| kinds.contains(&split_row_key(row).expect("a row").1));
        assert_eq!(left.count(), 0, "seed {seed}: rows are left");
    }
}

/// The same, with a receiver that makes a row for any ticket: the test must see it.
#[test]
fn a_ticket_that_is_not_checked_is_found_out() {
    let finds = |seed: u64| {
        let mut world = World::new(seed);
        world.any_ticket = true;
        (0..400).any(|_| {
            world.step();
            world.check().is_err()
        })
    };
    assert!((0..100).any(finds));
}

fn pass(rows: &mut Rows, from: &Position, to: &Position, number: u64, closed: u64) -> Receipt {
    let letter = rows
        .get(&outbox_row(from, to, number))
        .expect("rows")
        .expect("outstanding");
    let partner: Partner = read_row(&partner_row(from, to), rows).expect("rows").expect("open");
    let parcel = Parcel {
        slot: 0,
        from: from.clone(),
        to: to.clone(),
        session: partner.session,
        content: Content::Letters {
            ticket: Some(closed),
            first: number,
            letters: vec![letter],
        },
    };
    let delivered = deliver(&parcel, at(1), &NoRules, rows, &mut Delta::default()).expect("rows");
    delivered.receipt
}

#[test]
fn a_refusal_is_told_to_the_sender_and_remembered() {
    let mut world = World::new(1);
    let (a, nobody) = (entity("a"), entity("nobody"));
    let change = Change::Send {
        to: vec![nobody.clone()],
        body: Box::new(merge("x", 1)),
    };
    world.write(&a, change).expect("sent");
    let rows = &mut world.rows;
    assert_eq!(pass(rows, &a, &nobody, 1, 0), Receipt::Applied { last: 1 });
    assert_eq!(pass(rows, &nobody, &a, 1, 0), Receipt::Applied { last: 1 });
    let rejections: Rejections = read_row(&rejections_row(&a), rows).expect("rows").expect("remembered");
    let known = |r: &Rejection| (r.by.clone(), r.session, r.number, r.action.clone(), r.code);
    let known: Vec<_> = rejections.0.iter().map(known).collect();
    assert_eq!(known, [(nobody.clone(), 1, 1, "merge".to_owned(), Code::NotFound)]);
    assert_eq!(machine::read(&nobody, rows).expect("rows"), None, "nothing was made");
}

#[test]
fn a_full_outbox_refuses_and_changes_nothing() {
    let mut world = World::new(1);
    let (a, b) = (entity("a"), entity("b"));
    let tally = Tally {
        outstanding: OUTBOX_ENTITY_MAX - 1,
        parked: 0,
    };
    world.rows.put(tally_row(&a), Some(codec::encode(&tally)));
    let send = || Change::Send {
        to: vec![b.clone()],
        body: Box::new(Body::Delete),
    };
    let sent = world.write(&a, send()).expect("one more");
    assert_eq!((sent[0].session, sent[0].number), (1, 1));
    let version = |world: &World| machine::read(&a, &world.rows).expect("rows").expect("there").version;
    let before = (version(&world), world.rows.0.len());
    assert_eq!(world.write(&a, send()), Err(Code::OutboxFull));
    assert_eq!((version(&world), world.rows.0.len()), before);
}

#[test]
fn a_repeated_send_sends_nothing_more_and_names_the_same_message() {
    let mut rows = Rows::default();
    let mut run = |id: u64, change: Change| {
        let write = write(id, &entity("a"), change);
        let outcome = machine::apply(&write, at(1), &NoRules, &mut rows, &mut Delta::default()).expect("rows");
        outcome.expect("a write")
    };
    run(1, Change::Put("{}".into()));
    let send = || Change::Send {
        to: vec![entity("b")],
        body: Box::new(merge("x", 1)),
    };
    let first = run(2, send());
    let second = run(3, send());
    assert_eq!((first.version, second.version), (2, 3));
    assert_eq!((first.sent[0].number, second.sent[0].number), (1, 2));
    for id in 4..12 {
        run(id, Change::Put("{}".into()));
    }
    let again = run(2, send());
    assert!(again.repeated);
    assert_eq!((again.version, &again.sent), (2, &first.sent));
}

#[test]
fn a_leader_answers_by_itself_what_changes_nothing() {
    let mut world = World::new(1);
    let (a, b) = (entity("a"), entity("b"));
    world.send(&a, &b);
    let parcel = |ticket, letters: Vec<Bytes>| Parcel {
        slot: 0,
        from: a.clone(),
        to: b.clone(),
        session: 1,
        content: Content::Letters {
            ticket,
            first: 1,
            letters,
        },
    };
    let letter = world
        .rows
        .get(&outbox_row(&a, &b, 1))
        .expect("rows")
        .expect("outstanding");
    let look = |world: &World, parcel: &Parcel| inspect(parcel, &world.rows).expect("rows");
    let ticket = Some(Receipt::Ticket { closed: 0 });
    assert_eq!(look(&world, &parcel(None, vec![letter.clone()])), ticket);
    assert_eq!(look(&world, &parcel(Some(1), vec![letter.clone()])), ticket);
    let good = parcel(Some(0), vec![letter.clone()]);
    assert_eq!(look(&world, &good), None);
    world.deliver(good.clone());
    assert_eq!(look(&world, &good), Some(Receipt::Applied { last: 1 }));
}

#[test]
fn an_operator_parks_and_takes_back_messages() {
    let mut world = World::new(1);
    let (a, b) = (entity("a"), entity("b"));
    let act = |action| Change::Activity {
        with: b.clone(),
        action,
        by: "ada".to_owned(),
        because: "a test".to_owned(),
    };
    assert_eq!(world.write(&a, act(ActivityAction::Park)), Err(Code::NoSuchMessage));
    for _ in 0..3 {
        world.send(&a, &b);
    }
    let version = |world: &World| machine::read(&a, &world.rows).expect("rows").expect("there").version;
    let before = version(&world);
    world.write(&a, act(ActivityAction::Park)).expect("parked");
    let held = world.partners()[0].1.held.clone().expect("held");
    assert_eq!(held.by, "ada: a test");
    world.write(&a, act(ActivityAction::Unpark)).expect("unparked");
    world.write(&a, act(ActivityAction::Skip)).expect("skipped");
    world
        .write(&a, act(ActivityAction::Cancel { number: 2 }))
        .expect("cancelled");
    assert_eq!(
        world.write(&a, act(ActivityAction::Cancel { number: 4 })),
        Err(Code::NoSuchMessage)
    );
    assert_eq!(version(&world), before, "the entity itself is as it was");
    let before = machine::read(&b, &world.rows).expect("rows").expect("there").version;
    for number in 1..=3 {
        assert_eq!(
            pass(&mut world.rows, &a, &b, number, 0),
            Receipt::Applied { last: number }
        );
    }
    let after = machine::read(&b, &world.rows).expect("rows").expect("there").version;
    assert_eq!(after, before + 1, "of three messages one had an effect");
}
