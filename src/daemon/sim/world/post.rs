//! Messages between entities: copies that come late, and the day on which all must have arrived.
use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::super::check::{Property, Violation};
use super::super::workload::{self, CHILDREN, RARE_CHILDREN};
use crate::daemon::core::entity::machine;
use crate::daemon::core::state::State;
use crate::daemon::store::Store;
use crate::protocol::activity::ActivityAction;
use crate::protocol::id::RequestId;
use crate::protocol::key::{RowKind, split_row_key};
use crate::protocol::request::{Change, Condition, Write};

use super::*;

impl World {
    /// Some of what entities have for one another comes again after seconds or a minute, some at the very end.
    pub(super) fn keep_mail(&mut self, from: usize, to: usize, messages: &[Message]) {
        if self.plan.late_copies == 0 {
            return;
        }
        let is_mail = |message: &&Message| matches!(message, Message::Deliver { .. } | Message::Delivered { .. });
        let mail: Vec<Message> = messages.iter().filter(is_mail).cloned().collect();
        if mail.is_empty() {
            return;
        }
        if self.mail_rng.u32(..1000) < self.plan.late_copies {
            let pause = Span::millis(self.mail_rng.u64(1..60_000));
            let messages = mail.clone();
            self.schedule.after(
                pause,
                Event::Frame {
                    to,
                    from,
                    persisted: LogSeq(0),
                    messages,
                },
            );
        }
        if self.old_mail.len() < OLD_MAIL_MAX {
            self.old_mail.push((from, to, mail));
        } else if self.mail_rng.bool() {
            let at = self.mail_rng.usize(..OLD_MAIL_MAX);
            self.old_mail[at] = (from, to, mail);
        }
    }

    /// Everything that was refused is parked, once; what it was refused for goes away, and it is sent again; what is refused
    /// even then is given up. Nothing is parked in the end.
    pub(super) fn mend_parked(&mut self, operator: usize) -> Result<(), Violation> {
        if !self.stage.parks {
            return Ok(());
        }
        for round in 0..MENDS {
            self.run_until(Property::Drain, DRAIN, |world| world.mail.missing())?;
            self.run_until(Property::Whole, Span::secs(10), |world| {
                world.parking.unseen(|entity| {
                    let store: &dyn State = world.store_of(entity)?;
                    Some(store)
                })
            })?;
            let parked = self.parking.open();
            if parked.is_empty() && round > 0 {
                return Ok(());
            }
            let mut writes = VecDeque::new();
            let children = CHILDREN.iter().chain(&RARE_CHILDREN).filter(|_| round == 0);
            writes.extend(children.map(|key| Write {
                service: "profile".to_owned(),
                key: (*key).to_owned(),
                id: RequestId::default(),
                condition: Condition::Always,
                change: Change::Patch(r#"{"locked":false}"#.into()),
            }));
            writes.extend(parked.iter().map(|(from, to, session, number)| {
                let (session, number) = (*session, *number);
                let action = match round {
                    0 | 1 => ActivityAction::SendAgain { session, number },
                    _ => ActivityAction::Drop { session, number },
                };
                workload::about(from, to, action)
            }));
            self.tell(operator, Mode::Mend(writes));
            self.run_until(Property::Back, Span::secs(120), |world| {
                (!world.clients[operator].is_quiet()).then(|| String::from("the operator is busy"))
            })?;
        }
        let text = format!("{:?} are parked, and can't be given up", self.parking.open());
        Err(Violation::new(Property::Whole, text))
    }

    /// L2 DRAIN: everything is applied, and no row tells of it any more. Then everything comes once more, and changes
    /// nothing; and again when all nodes have been down for an hour.
    pub(super) fn drain_mail(&mut self) -> Result<(), Violation> {
        for client in &self.clients {
            for (from, sent) in &client.sent {
                self.mail.told(from, sent)?;
            }
        }
        self.run_until(Property::Drain, DRAIN, World::mail_left)?;
        self.repeat_mail()?;
        if self.seed.is_multiple_of(8) {
            for machine in 0..self.machines.len() {
                self.crash(machine, true);
                self.schedule.after(Span::secs(3_600), Event::Start { machine });
            }
            self.run_to(self.schedule.now() + Span::secs(3_605))?;
            self.repeat_mail()?;
        }
        Ok(())
    }

    fn repeat_mail(&mut self) -> Result<(), Violation> {
        let mut old = self.old_mail.clone();
        self.mail_rng.shuffle(&mut old);
        for (from, to, messages) in old {
            let pause = Span::millis(self.mail_rng.u64(1..2_000));
            self.schedule.after(
                pause,
                Event::Frame {
                    to,
                    from,
                    persisted: LogSeq(0),
                    messages,
                },
            );
        }
        self.run_to(self.schedule.now() + Span::secs(2))?;
        self.run_until(Property::Drain, DRAIN, World::mail_left)
    }

    /// A message that is not applied, or a row of a pair that has nothing more to say to each other.
    fn mail_left(&self) -> Option<String> {
        if let Some(missing) = self.mail.missing().or_else(|| self.bank.open()) {
            return Some(missing);
        }
        let kinds = [
            RowKind::Tally,
            RowKind::Partner,
            RowKind::Outbox,
            RowKind::Source,
            RowKind::Timer,
            RowKind::Parked,
        ];
        let kinds = kinds.map(|kind| kind as u8);
        for machine in self.living() {
            let Some(process) = &machine.process else {
                return Some(format!("{} is down", machine.id));
            };
            for replica in process.node.replicas().filter(|replica| replica.is_initialized()) {
                let mut left = None;
                for (start, end) in replica.shard.range.row_ranges() {
                    let _ = process.store.scan(&start, &end, &mut |row, value| {
                        let is_left = |kind: u8, rest: &[u8]| {
                            // All that was put for a time has ended by now.
                            let head = (kind == RowKind::Head as u8).then(|| machine::decode_head(row, value));
                            if head.is_some_and(|head| head.is_ok_and(|head| head.expires.is_some())) {
                                return true;
                            }
                            let is_open = kind == RowKind::Tentative as u8 && matches!(rest.first(), Some(b'h' | b'r'));
                            kinds.contains(&kind) || is_open
                        };
                        if split_row_key(row).is_some_and(|(_, kind, rest)| is_left(kind, &rest)) {
                            left = Some(row.clone());
                            return ControlFlow::Break(());
                        }
                        ControlFlow::Continue(())
                    });
                }
                if let Some(row) = left {
                    let (shard, row) = (replica.shard.id, row.escape_ascii().to_string());
                    return Some(format!("{} still has a row {row} in {shard}", machine.id));
                }
            }
        }
        None
    }

    /// S3 LEDGER: rows of holders that have just decided something.
    pub(super) fn audit(&mut self) -> Result<(), Violation> {
        while let Some((machine, holder)) = self.to_audit.pop_first() {
            let Some(process) = &self.machines[machine].process else {
                continue;
            };
            let mut replicas = process.node.replicas();
            if replicas.any(|replica| replica.is_initialized() && replica.shard.range.contains(&holder)) {
                Bank::check_rows(&holder, &process.store)?;
            }
        }
        Ok(())
    }

    /// S3 LEDGER, when all is over.
    pub(super) fn check_bank(&self) -> Result<(), Violation> {
        self.bank.check_ended(|entity| {
            let store: &dyn State = self.store_of(entity)?;
            Some(store)
        })
    }

    /// S4 WHOLE of combined objects, when all is over.
    pub(super) fn check_families(&self) -> Result<(), Violation> {
        if self.stage.schemas.is_empty() {
            return Ok(());
        }
        let wanted = self.clients.iter().flat_map(|client| &client.combined);
        self.family.check(wanted, &self.stage.schemas, |entity| {
            let store: &dyn State = self.store_of(entity)?;
            Some(store)
        })
    }

    /// Whether every shard's log has the schemas that clients have given the cluster.
    pub(super) fn schemas_are_in_effect(&self) -> bool {
        let is_known = |shard: ShardId| {
            let nodes = self.machines.iter().filter_map(|machine| machine.process.as_ref());
            let mut copies = nodes.flat_map(|process| process.node.replicas());
            copies.any(|copy| copy.shard.id == shard && copy.schema.revision > 0)
        };
        let is_judged = |service: &str| self.stage.schemas.iter().any(|(known, _)| known == service);
        let shards = self.cover.shards().filter(|shard| shard.id.0 != 0);
        let mut shards = shards.filter(|shard| is_judged(shard.range.service())).peekable();
        shards.peek().is_some() && shards.all(|shard| is_known(shard.id))
    }

    /// The document as the nodes have it.
    pub(super) fn document_of(&self, entity: &Position) -> Option<Bytes> {
        machine::read(entity, self.store_of(entity)?)
            .ok()?
            .map(|entity| entity.document)
    }

    /// The rows of the node that leads the entity's shard.
    fn store_of(&self, entity: &Position) -> Option<&Store> {
        let holds = |machine: &&Machine| {
            let process = machine.process.as_ref();
            process.is_some_and(|process| {
                let mut replicas = process.node.replicas();
                replicas.any(|replica| replica.is_leader() && replica.shard.range.contains(entity))
            })
        };
        let process = self.machines.iter().find(holds)?.process.as_ref()?;
        Some(&process.store)
    }
}

/// Longest time from the end of all trouble to empty outboxes: the longest pause between two attempts, with room for the
/// rest.
const DRAIN: Span = Span::secs(60);
/// How often what is parked is looked through in the end.
const MENDS: usize = 8;
const OLD_MAIL_MAX: usize = 300;
