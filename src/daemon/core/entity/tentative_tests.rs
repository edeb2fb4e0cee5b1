//! Tentative operations and timers over rows in memory, with messages that arrive when the test says so.
use std::collections::BTreeMap;

use bytes::Bytes;

use super::draft::{Draft, Stop};
use super::effects::{NoRules, Rules};
use super::inbox::deliver;
use super::ledger;
use super::machine::{self, Context, Delta};
use super::message::*;
use super::outbox::acknowledge;
use super::tentative::{Reservation, Sums, operations, reservation_rest, sums_rest};
use super::testing::Rows;
use super::timer::{self, Timer};
use crate::daemon::core::state::State;
use crate::protocol::activity::{Body, OperationState};
use crate::protocol::codec;
use crate::protocol::error::Code;
use crate::protocol::id::{RequestId, ShardId};
use crate::protocol::key::{KeyRange, Position, RowKind, row_key, split_partner_rest, split_row_key};
use crate::protocol::parcel::{Content, Parcel, Receipt};
use crate::protocol::request::{Change, Condition, Entity, Write, Written};
use crate::protocol::shard_clock::ShardClock;
use crate::protocol::tentative::*;

/// A budget that others may reserve of, and nothing else.
struct Budget;

impl Rules for Budget {
    fn follow(&self, draft: &mut Draft<'_>) -> Result<(), Stop> {
        NoRules.follow(draft)
    }
    fn receive(&self, from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
        NoRules.receive(from, body, draft)
    }
    fn pools(&self) -> Vec<&str> {
        vec!["budget"]
    }
}

#[derive(Default)]
struct World {
    rows: Rows,
    clock_ms: u64,
    requests: u64,
}

fn entity(name: &str) -> Position {
    Position::new("campaign", name)
}

impl World {
    fn with_budget(budget: i64) -> Self {
        let mut world = Self::default();
        world.put("c", &format!(r#"{{"budget":{budget}}}"#)).expect("a put");
        world.put("p", "{}").expect("a put");
        world
    }

    fn context(&self) -> Context {
        Context {
            shard: ShardId(1),
            wall_ms: 1_000_000 + self.clock_ms,
            shard_time_ms: self.clock_ms,
            change_at: self.requests,
        }
    }

    fn write(&mut self, of: &str, change: Change) -> Result<Written, Code> {
        self.requests += 1;
        self.write_as(self.requests, of, change)
    }

    fn write_as(&mut self, id: u64, of: &str, change: Change) -> Result<Written, Code> {
        let write = Write {
            service: "campaign".to_owned(),
            key: of.to_owned(),
            id: RequestId(u128::from(id)),
            condition: Condition::Always,
            change,
        };
        let context = self.context();
        let mut delta = Delta::default();
        let outcome = machine::apply(&write, context, &Budget, &mut self.rows, &mut delta).expect("rows");
        outcome.map_err(|error| error.code)
    }

    fn put(&mut self, of: &str, document: &str) -> Result<Written, Code> {
        self.write(of, Change::Put(Bytes::copy_from_slice(document.as_bytes())))
    }

    fn reserve(&mut self, of: &str, amount: i64, ttl_ms: u64) -> Result<u64, Code> {
        let wanted = Tentative::Reserve {
            holder: entity("c"),
            resource: "budget".to_owned(),
            amount,
            ttl_ms,
        };
        let written = self.write(of, Change::Tentative(wanted))?;
        Ok(written.sent[0].operation.expect("an operation begins"))
    }

    fn confirm(&mut self, of: &str, operation: u64) -> Result<usize, Code> {
        let holder = entity("c");
        let wanted = Tentative::Confirm { holder, operation };
        self.write(of, Change::Tentative(wanted))
            .map(|written| written.sent.len())
    }

    fn cancel(&mut self, of: &str, operation: u64) -> Result<usize, Code> {
        let holder = entity("c");
        let wanted = Tentative::Cancel { holder, operation };
        self.write(of, Change::Tentative(wanted))
            .map(|written| written.sent.len())
    }

    fn read(&self, of: &str) -> Option<Entity> {
        machine::read(&entity(of), &self.rows).expect("rows")
    }

    fn stage(&self, of: &str, operation: u64) -> Option<Stage> {
        let all = operations(&entity(of), &self.rows).expect("rows");
        all.into_iter()
            .find(|known| known.operation == operation)
            .map(|known| known.stage)
    }

    fn sums(&self) -> Sums {
        let row = row_key(&entity("c"), RowKind::Tentative, &sums_rest("budget"));
        read_row(&row, &self.rows).expect("rows").unwrap_or_default()
    }

    fn partners(&self) -> Vec<(Position, Position, Partner)> {
        let mut partners = Vec::new();
        for (row, value) in &self.rows.0 {
            let (from, kind, rest) = split_row_key(row).expect("a row");
            if kind == RowKind::Partner as u8 {
                let (to, _) = split_partner_rest(&rest).expect("about another");
                partners.push((from, to, codec::decode(value).expect("a partner")));
            }
        }
        partners
    }

    /// The next message of this pair arrives. False if there is none.
    fn pass_one(&mut self, from: &Position, to: &Position, partner: &Partner) -> bool {
        if partner.outstanding() == 0 {
            return false;
        }
        let first = partner.acked + 1;
        let letter = self
            .rows
            .get(&outbox_row(from, to, first))
            .expect("rows")
            .expect("outstanding");
        let closed = self.rows.get(&row_key(to, RowKind::Head, &[])).expect("rows");
        let closed = closed.map_or(0, |head| machine::decode_head(b"", &head).expect("a head").closed);
        let parcel = Parcel {
            slot: 0,
            from: from.clone(),
            to: to.clone(),
            session: partner.session,
            content: Content::Letters {
                ticket: Some(closed),
                first,
                letters: vec![letter],
            },
        };
        let context = self.context();
        let mut delta = Delta::default();
        let delivered = deliver(&parcel, context, &Budget, &mut self.rows, &mut delta).expect("rows");
        let Receipt::Applied { last } = delivered.receipt else {
            panic!("{from} to {to}: {:?}", delivered.receipt)
        };
        self.tell(from, to, partner.session, Known::Applied(last));
        true
    }

    fn tell(&mut self, from: &Position, to: &Position, session: u64, what: Known) {
        let known = Acknowledgement {
            from: from.clone(),
            to: to.clone(),
            session,
            what,
        };
        acknowledge(&known, &mut self.rows, &mut Delta::default()).expect("rows");
    }

    /// All messages arrive, and all that they cause.
    fn pass_all(&mut self) {
        loop {
            let mut any = false;
            for (from, to, partner) in self.partners() {
                any |= self.pass_one(&from, &to, &partner);
            }
            if !any {
                return;
            }
        }
    }

    fn timers(&self) -> Vec<Timer> {
        let mut timers = Vec::new();
        for (row, value) in &self.rows.0 {
            let (entity, kind, what) = split_row_key(row).expect("a row");
            if kind == RowKind::Timer as u8 {
                let due_ms = codec::decode(value).expect("a time");
                timers.push(Timer { entity, what, due_ms });
            }
        }
        timers
    }

    /// All timers are proposed, as a leader would that is early; those whose time has come take effect.
    fn fire_all(&mut self) {
        for timer in self.timers() {
            let context = self.context();
            timer::fire(&timer, context, &Budget, &mut self.rows, &mut Delta::default()).expect("rows");
        }
    }

    fn count(&self, kind: RowKind) -> usize {
        let of_kind = |row: &&Bytes| split_row_key(row).expect("a row").1 == kind as u8;
        self.rows.0.keys().filter(of_kind).count()
    }

    /// What the sums should be.
    fn scanned(&self) -> (i64, u64) {
        let prefix = row_key(&entity("c"), RowKind::Tentative, &reservation_rest(&entity(""), 0)[..1]);
        let (mut reserved, mut open) = (0, 0);
        for (_, value) in self.rows.0.iter().filter(|(row, _)| row.starts_with(&prefix)) {
            let known: Reservation = codec::decode(value).expect("a reservation");
            reserved += known.amount;
            open += 1;
        }
        (reserved, open)
    }

    fn ledger(&self, from: &Position, to: &Position, limit: usize) -> LedgerPage {
        let range = KeyRange::all_of("campaign");
        let (mut all, mut from, mut resume) = (LedgerPage::default(), from.clone(), Bytes::new());
        loop {
            let query = ledger::Query {
                from: &from,
                to,
                resume: &resume,
                limit,
                range: &range,
                clock: &ShardClock::default(),
                now_ms: self.clock_ms,
            };
            let page = ledger::page(&query, &Budget, &self.rows).expect("rows");
            assert!(page.items.len() <= limit);
            all.items.extend(page.items);
            all.pools.extend(page.pools);
            match page.next {
                Some(next) => (from, resume) = next,
                None => return all,
            }
        }
    }
}

#[test]
fn an_amount_is_set_aside_and_taken() {
    let mut world = World::with_budget(100);
    let one = world.reserve("p", 60, 1_000).expect("asked");
    assert_eq!(world.stage("p", one), Some(Stage::Asked));
    world.pass_all();
    assert_eq!(world.stage("p", one), Some(Stage::Tentative { until_ms: 1_001_000 }));
    let two = world.reserve("p", 60, 1_000).expect("asked");
    world.pass_all();
    assert_eq!(world.stage("p", two), Some(Stage::Ended(OperationState::Declined)));
    let all = operations(&entity("p"), &world.rows).expect("rows");
    assert_eq!(all[1].reason, "40 of 100 are left");
    world.confirm("p", one).expect("a decision");
    world.pass_all();
    assert_eq!(world.stage("p", one), Some(Stage::Ended(OperationState::Confirmed)));
    let sums = world.sums();
    assert_eq!((sums.reserved, sums.confirmed, sums.open), (0, 60, 0));
    assert_eq!(world.count(RowKind::Timer), 0);
    assert_eq!(
        world.count(RowKind::Tentative),
        2,
        "the sums, and the requester's last operations"
    );
}

#[test]
fn an_operation_keeps_its_session_open() {
    let mut world = World::with_budget(100);
    let one = world.reserve("p", 60, 1_000).expect("asked");
    world.pass_all();
    let (p, c) = (entity("p"), entity("c"));
    world.tell(&p, &c, 1, Known::Idle);
    let open = |world: &World| {
        let partners = world.partners();
        let (_, _, partner) = partners.iter().find(|(from, _, _)| *from == p).expect("open");
        (partner.open, partner.closing)
    };
    assert_eq!(open(&world), (1, false));
    world.cancel("p", one).expect("a decision");
    world.pass_all();
    world.tell(&p, &c, 1, Known::Idle);
    assert_eq!(open(&world), (0, true));
}

#[test]
fn a_decision_is_made_once() {
    let mut world = World::with_budget(100);
    let one = world.reserve("p", 60, 1_000).expect("asked");
    assert_eq!(world.confirm("p", one), Ok(1), "before the holder has answered");
    assert_eq!(world.confirm("p", one), Ok(0), "again");
    assert_eq!(world.cancel("p", one), Err(Code::OperationIsOver));
    world.pass_all();
    assert_eq!(world.confirm("p", one), Ok(0), "it is confirmed");
    assert_eq!(world.cancel("p", one), Err(Code::OperationIsOver));
    assert_eq!(world.confirm("p", 77), Err(Code::NoSuchOperation));
    assert_eq!(world.confirm("c", one), Err(Code::NoSuchOperation), "somebody else's");
    assert_eq!(world.sums().confirmed, 60);
}

#[test]
fn a_repeated_request_reserves_once_and_names_the_same_operation() {
    let mut world = World::with_budget(100);
    let wanted = || Tentative::Reserve {
        holder: entity("c"),
        resource: "budget".to_owned(),
        amount: 10,
        ttl_ms: 1_000,
    };
    let first = world.write_as(500, "p", Change::Tentative(wanted())).expect("asked");
    let again = world.write_as(500, "p", Change::Tentative(wanted())).expect("asked");
    assert!(again.repeated);
    assert_eq!(first.sent, again.sent);
    world.pass_all();
    assert_eq!(world.sums().open, 1);
}

#[test]
fn after_the_deadline_the_holder_gives_back_and_never_confirms() {
    let mut world = World::with_budget(100);
    let (one, two) = (world.reserve("p", 60, 1_000), world.reserve("p", 30, 1_000));
    let (one, two) = (one.expect("asked"), two.expect("asked"));
    world.pass_all();
    world.clock_ms = 999;
    world.fire_all();
    assert_eq!(world.sums().open, 2, "it is not time yet");
    // Time is over; as long as the holder has not given it back, the requester may still have it.
    world.clock_ms = 5_000;
    world.confirm("p", two).expect("a decision");
    world.pass_all();
    assert_eq!(world.stage("p", two), Some(Stage::Ended(OperationState::Confirmed)));
    world.fire_all();
    assert_eq!(world.sums().open, 0);
    // The requester has not heard of it.
    world.confirm("p", one).expect("a decision");
    world.pass_all();
    assert_eq!(world.stage("p", one), Some(Stage::Ended(OperationState::Expired)));
    assert_eq!(world.confirm("p", one), Err(Code::OperationIsOver));
    assert_eq!((world.sums().reserved, world.sums().confirmed), (0, 30));
}

#[test]
fn a_pool_does_not_fall_below_what_is_reserved() {
    let mut world = World::with_budget(100);
    let one = world.reserve("p", 60, 1_000).expect("asked");
    world.pass_all();
    assert_eq!(world.put("c", r#"{"budget":59}"#).err(), Some(Code::PoolInUse));
    let patch = Change::Patch(r#"{"budget":null}"#.into());
    assert_eq!(world.write("c", patch).err(), Some(Code::PoolInUse));
    assert_eq!(world.write("c", Change::Delete).err(), Some(Code::PoolInUse));
    world.put("c", r#"{"budget":60}"#).expect("as much as is reserved");
    world.confirm("p", one).expect("a decision");
    world.pass_all();
    assert_eq!(world.put("c", r#"{"budget":59}"#).err(), Some(Code::PoolInUse));
    world.write("c", Change::Delete).expect("nothing is open");
    assert_eq!(world.sums(), Sums::default());
}

#[test]
fn what_nobody_has_is_declined_with_the_reason() {
    let mut world = World::with_budget(100);
    let reserve = |holder: &str, resource: &str| {
        Change::Tentative(Tentative::Reserve {
            holder: entity(holder),
            resource: resource.to_owned(),
            amount: 1,
            ttl_ms: 1_000,
        })
    };
    world.write("p", reserve("nobody", "budget")).expect("asked");
    world.write("p", reserve("c", "name")).expect("asked");
    world.pass_all();
    let ended = operations(&entity("p"), &world.rows).expect("rows");
    let reasons: Vec<&str> = ended.iter().map(|ended| ended.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "the schema of `campaign` has no pool `name`",
            "there is no campaign/nobody"
        ]
    );
    assert_eq!(
        world.write("nobody", reserve("c", "budget")).err(),
        Some(Code::NotFound)
    );
}

#[test]
fn a_requester_that_goes_gives_back() {
    let mut world = World::with_budget(100);
    world.reserve("p", 20, 1_000).expect("asked");
    world.pass_all();
    let two = world.reserve("p", 30, 1_000).expect("asked");
    world.confirm("p", two).expect("a decision");
    world.write("p", Change::Delete).expect("a delete");
    world.pass_all();
    let sums = world.sums();
    assert_eq!((sums.reserved, sums.confirmed, sums.open), (0, 30, 0));
}

#[test]
fn there_is_a_bound_on_what_is_open() {
    let mut world = World::with_budget(1_000_000);
    for _ in 0..OPEN_OPERATIONS_MAX {
        world.reserve("p", 1, 1_000).expect("asked");
    }
    assert_eq!(world.reserve("p", 1, 1_000), Err(Code::TooManyOperations));
    world.pass_all();
    world.cancel("p", 1).expect("a decision");
    world.pass_all();
    world.reserve("p", 1, 1_000).expect("one less is open");
    let all = world.ledger(&Position::new("campaign", ""), &Position::end_of("campaign"), 7);
    assert_eq!(all.items.len(), OPEN_OPERATIONS_MAX as usize - 1);
    assert_eq!(all.pools.len(), 1);
}

#[test]
fn an_entity_ends_when_its_time_has_come() {
    let mut world = World::default();
    let put_for = |ttl_ms| Change::PutFor {
        document: "{}".into(),
        ttl_ms,
    };
    world.write("a", put_for(1_000)).expect("a put");
    world.write("b", put_for(1_000)).expect("a put");
    world.write("d", put_for(1_000)).expect("a put");
    assert_eq!(world.read("a").and_then(|a| a.expires_ms), Some(1_001_000));
    world.clock_ms = 500;
    world.put("b", "{}").expect("a put");
    assert_eq!(world.read("b").and_then(|b| b.expires_ms), None);
    world.write("d", Change::Patch("{}".into())).expect("a patch");
    assert!(
        world.read("d").and_then(|d| d.expires_ms).is_some(),
        "a patch leaves it"
    );
    let old = world.timers();
    world.write("d", put_for(1_000)).expect("a put");
    world.clock_ms = 1_000;
    for timer in old {
        let context = world.context();
        timer::fire(&timer, context, &Budget, &mut world.rows, &mut Delta::default()).expect("rows");
    }
    assert_eq!(world.read("a"), None);
    assert!(world.read("b").is_some() && world.read("d").is_some());
    world.clock_ms = 1_500;
    world.fire_all();
    assert_eq!(world.read("d"), None);
    assert_eq!(world.count(RowKind::Timer), 0);
}

#[test]
fn an_end_that_something_is_in_the_way_of_comes_later() {
    let mut world = World::with_budget(10);
    let document = Bytes::from_static(br#"{"budget":10}"#);
    world
        .write(
            "c",
            Change::PutFor {
                document,
                ttl_ms: 1_000,
            },
        )
        .expect("a put");
    world.reserve("p", 5, 3_000).expect("asked");
    world.pass_all();
    world.clock_ms = 1_000;
    world.fire_all();
    assert!(world.read("c").is_some(), "somebody has reserved of it");
    world.clock_ms = 3_000;
    world.fire_all();
    assert_eq!(world.sums().open, 0);
    world.clock_ms = 61_000;
    world.fire_all();
    assert_eq!(world.read("c"), None);
    assert_eq!(world.count(RowKind::Timer), 0);
}

/// Requesters reserve, confirm and cancel, messages and timers come when chance wants: never is more given than there is,
/// the sums are what a scan finds, both sides agree in the end, and no row is left of what has ended.
#[test]
fn whatever_happens_the_ledger_is_right() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut budget = 300;
        let mut world = World::with_budget(budget);
        let names: Vec<String> = (0..5).map(|n| format!("p{n}")).collect();
        for name in &names {
            world.put(name, "{}").expect("a put");
        }
        let mut asked: BTreeMap<(String, u64), i64> = BTreeMap::new();
        for _ in 0..300 {
            let name = &names[rng.usize(0..names.len())];
            match rng.u32(0..10) {
                0 | 1 => {
                    let amount = rng.i64(1..60);
                    let operation = world.reserve(name, amount, rng.u64(1..2_000)).expect("asked");
                    asked.insert((name.clone(), operation), amount);
                }
                2 => drop(world.confirm(name, rng.u64(1..20))),
                3 => drop(world.cancel(name, rng.u64(1..20))),
                4 => world.clock_ms += rng.u64(0..500),
                5 => world.fire_all(),
                6 => {
                    let wanted = rng.i64(0..500);
                    if world.put("c", &format!(r#"{{"budget":{wanted}}}"#)).is_ok() {
                        budget = wanted;
                    }
                }
                _ => {
                    let partners = world.partners();
                    if !partners.is_empty() {
                        let (from, to, partner) = &partners[rng.usize(0..partners.len())];
                        world.pass_one(from, to, partner);
                    }
                }
            }
            let sums = world.sums();
            assert!(
                sums.reserved + sums.confirmed <= budget,
                "seed {seed}: {sums:?} of {budget}"
            );
            assert_eq!(world.scanned(), (sums.reserved, sums.open), "seed {seed}");
        }
        world.pass_all();
        world.clock_ms += 10_000;
        world.fire_all();
        world.pass_all();
        let sums = world.sums();
        assert_eq!((sums.reserved, sums.open), (0, 0), "seed {seed}");
        let mut confirmed = 0;
        for name in &names {
            for known in operations(&entity(name), &world.rows).expect("rows") {
                let Stage::Ended(state) = known.stage else {
                    panic!("seed {seed}: {name} {known:?}")
                };
                let amount = asked.remove(&(name.clone(), known.operation)).expect("asked for");
                assert_eq!(amount, known.amount);
                confirmed += if state == OperationState::Confirmed { amount } else { 0 };
            }
        }
        assert!(asked.is_empty(), "seed {seed}: {asked:?}");
        assert_eq!(confirmed, sums.confirmed, "seed {seed}: both sides agree");
        let left = (
            world.count(RowKind::Timer),
            world.count(RowKind::Outbox),
            world.scanned(),
        );
        assert_eq!(left, (0, 0, (0, 0)), "seed {seed}");
        let at_most = usize::from(confirmed > 0) + names.len();
        assert!(world.count(RowKind::Tentative) <= at_most, "seed {seed}: rows are left");
    }
}
