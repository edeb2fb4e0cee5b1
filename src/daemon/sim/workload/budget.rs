//! A client that reserves of budgets for a hundred profiles, decides or does not, and puts entities that end by themselves.
use super::*;
use crate::protocol::tentative::Tentative;

/// What such a client remembers.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Operations that it may still decide: requester, holder, number.
    open: Vec<(Position, Position, u64)>,
    /// Since when the entity that ends by itself has surely been there.
    lasting_since: Option<Time>,
}

/// What a budget's client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BudgetKind {
    /// A write that may be refused.
    Write,
    /// A put for a time.
    Last {
        /// Begun then.
        at: Time,
    },
    /// Whether that entity is still there.
    Look,
}

impl Client {
    pub(super) fn start_budget(&mut self, now: Time, moment: Moment, stage: &Stage, acts: &mut Vec<Act>) {
        if self.uses_map && (self.map.shards().next().is_none() || self.rng.u32(..200) == 0) {
            return self.begin(now, moment, Kind::Map, Request::Map, Role::Writer, stage, acts);
        }
        let holder = HOLDERS[self.rng.usize(..HOLDERS.len())];
        let holder = Position::new(holder.0, holder.1);
        let requester = Position::new("profile", &format!("b~{:02}", self.rng.u32(..REQUESTERS)));
        let lasting = Position::new("campaign", &format!("t~{}", self.number));
        let mut kind = BudgetKind::Write;
        let mut condition = Condition::Always;
        let (of, change) = match self.rng.u32(..100) {
            0..=11 => {
                condition = Condition::IfAbsent;
                let document = format!(r#"{{"budget":{BUDGET_MAX}}}"#).into();
                (holder, Change::Put(document))
            }
            12..=13 => {
                // Refused where more is reserved.
                let document = format!(r#"{{"budget":{}}}"#, self.rng.i64(BUDGET_MAX / 2..=BUDGET_MAX)).into();
                (holder, Change::Put(document))
            }
            14..=22 => (requester, Change::Put("{}".into())),
            23 => (requester, Change::Delete),
            24..=29 => {
                kind = BudgetKind::Last { at: now };
                let document = "{}".into();
                let ttl_ms = LASTS_MS;
                (lasting, Change::PutFor { document, ttl_ms })
            }
            30..=34 => {
                let (service, key) = lasting.parts();
                let (service, key) = (service.to_owned(), key.unwrap_or("").to_owned());
                let kind = Kind::Budget(BudgetKind::Look);
                let request = Request::Get { service, key };
                return self.begin(now, moment, kind, request, Role::Viewer, stage, acts);
            }
            35..=69 => {
                let wanted = Tentative::Reserve {
                    holder,
                    resource: "budget".to_owned(),
                    amount: self.rng.i64(1..BUDGET_MAX / 8),
                    ttl_ms: self.rng.u64(200..8_000),
                };
                (requester, Change::Tentative(wanted))
            }
            draw if !self.budget.open.is_empty() => {
                let at = self.rng.usize(..self.budget.open.len());
                let (requester, holder, operation) = self.budget.open[at].clone();
                // Now and then it decides again, and perhaps otherwise.
                if draw % 4 > 0 {
                    self.budget.open.swap_remove(at);
                }
                let wanted = match draw % 3 {
                    0 => Tentative::Cancel { holder, operation },
                    _ => Tentative::Confirm { holder, operation },
                };
                (requester, Change::Tentative(wanted))
            }
            _ => (requester, Change::Put("{}".into())),
        };
        let (service, key) = of.parts();
        let write = Write {
            service: service.to_owned(),
            key: key.unwrap_or("").to_owned(),
            id: self.request_id(),
            condition,
            change,
        };
        let kind = Kind::Budget(kind);
        self.begin(now, moment, kind, Request::Write(write), Role::Writer, stage, acts);
    }

    pub(super) fn take_budget(
        &mut self,
        kind: &BudgetKind,
        request: &Request,
        response: Response,
        now: Time,
    ) -> Result<(), Violation> {
        match (response, request) {
            (Response::Written(written), Request::Write(write)) => {
                let of = Position::new(&write.service, &write.key);
                for sent in &written.sent {
                    if let Some(operation) = sent.operation {
                        self.budget.open.push((of.clone(), sent.to.clone(), operation));
                    }
                }
                self.sent.push((of, written.sent));
                if let BudgetKind::Last { at } = kind {
                    self.budget.lasting_since = Some(*at);
                }
                Ok(())
            }
            (Response::Error(error), Request::Write(_)) if ALLOWED.contains(&error.code) => Ok(()),
            (Response::Entity(found), _) => {
                // Clocks of nodes may differ from the world's by a little.
                let early = |since: &Time| now.since(*since) < Span::millis(LASTS_MS / 10 * 9);
                if let Some(since) = self.budget.lasting_since.filter(early).filter(|_| found.is_none()) {
                    let text = format!("an entity put for {LASTS_MS} ms at {} is gone at {}", since.0, now.0);
                    return Err(Violation::new(Property::Ledger, text));
                }
                Ok(())
            }
            (response, _) => {
                let text = format!("{request:?} was answered with {response:?}");
                Err(Violation::new(Property::Calm, text))
            }
        }
    }
}

const ALLOWED: [Code; 8] = [
    Code::NotFound,
    Code::Exists,
    Code::DiskFull,
    Code::OutboxFull,
    Code::NoSuchOperation,
    Code::OperationIsOver,
    Code::PoolInUse,
    Code::TooManyOperations,
];

/// Who has a budget.
pub const HOLDERS: [(&str, &str); 3] = [("campaign", "f~1"), ("campaign", "s~2"), ("profile", "i~3")];
/// Who reserves.
pub const REQUESTERS: u32 = 100;
/// The most that there ever is in a budget.
pub const BUDGET_MAX: i64 = 2_000;
const LASTS_MS: u64 = 3_000;
