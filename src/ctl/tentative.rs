//! Tentative operations: reserve, confirm, cancel, and what is reserved of whom.
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::span;
use super::exit::{self, CtlError};
use super::output::{self, Format, Listing, timestamp};
use super::{Ended, Environment, journal};
use crate::client::Client;
use crate::protocol::activity::OperationState;
use crate::protocol::id::RequestId;
use crate::protocol::key::{self, Position};
use crate::protocol::request::{Change, Condition, Request, Response, Write};
use crate::protocol::schema::index;
use crate::protocol::tentative::*;

/// Verbs on tentative operations.
#[derive(Debug, Clone, Subcommand)]
pub enum TentativeCommand {
    /// Have a holder set aside an amount until it is confirmed, cancelled, or its deadline has passed
    #[command(
        before_help = "Examples:\n  isxctl activity reserve profile/p-1 campaign/c-1 --resource budget --amount 50 --deadline 10m"
    )]
    Reserve {
        /// Who wants it, as SERVICE/KEY
        entity: Named,
        /// Who has it, as SERVICE/KEY
        holder: Named,
        /// The holder's field: a pool of its schema
        #[arg(long, value_name = "FIELD")]
        resource: String,
        /// How much
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        amount: i64,
        /// How long the holder keeps it; afterwards it may give it back alone
        #[arg(long, value_parser = span, default_value = "10m", value_name = "SPAN")]
        deadline: Duration,
        /// How it is asked for.
        #[command(flatten)]
        how: How,
    },
    /// Take what was set aside
    Confirm {
        /// Who wants it, as SERVICE/KEY
        entity: Named,
        /// Who has it, as SERVICE/KEY
        holder: Named,
        /// The operation's number, as `reserve` printed it
        operation: u64,
        /// How it is asked for.
        #[command(flatten)]
        how: How,
    },
    /// Give back what was set aside, or with --message take a message back before its receiver has applied it
    #[command(
        before_help = "Examples:\n  isxctl activity cancel profile/p-1 campaign/c-1 7\n  isxctl activity cancel campaign/c-1 profile/p-1 --message 41 --because 'sent by mistake'"
    )]
    Cancel {
        /// Who wanted it or sends, as SERVICE/KEY
        entity: Named,
        /// Who has it or receives, as SERVICE/KEY
        holder: Named,
        /// The operation's number, as `reserve` printed it
        #[arg(required_unless_present = "message", conflicts_with = "message")]
        operation: Option<u64>,
        /// Take back this message instead, or give it up if it was refused and is parked; named as `activity show` prints it
        #[arg(long, value_name = "N", requires = "because")]
        message: Option<super::activity::MessageName>,
        /// Why the message is taken back
        #[arg(long, value_name = "TEXT", requires = "message")]
        because: Option<String>,
        /// With --message: the sender once more, instead of typing it
        #[arg(long, value_name = "SERVICE/KEY", requires = "message")]
        confirm: Option<String>,
        /// With --message: show it, change nothing
        #[arg(long, requires = "message")]
        dry_run: bool,
        /// How it is asked for.
        #[command(flatten)]
        how: How,
    },
    /// What an entity knows of its own operations: those that are open, and the last 32 that ended
    #[command(before_help = "Examples:\n  isxctl activity operations profile/p-1")]
    Operations {
        /// Who asked, as SERVICE/KEY
        entity: Named,
    },
    /// What is set aside, of whom and for whom
    #[command(
        before_help = "Examples:\n  isxctl activity ledger\n  isxctl activity ledger --of campaign/c-1\n  isxctl activity ledger --by age"
    )]
    Ledger {
        /// Only of this holder, as SERVICE/KEY, with what was taken; each operation is listed
        #[arg(long, value_name = "SERVICE/KEY", conflicts_with = "by")]
        of: Option<Named>,
        /// What makes a line
        #[arg(long, value_enum, default_value = "holder")]
        by: By,
    },
}

/// How a change is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Do not wait for the holder's answer
    #[arg(long)]
    pub no_wait: bool,
    /// Repeat an earlier request: it has one effect, however often
    #[arg(long, value_name = "ID")]
    pub request_id: Option<RequestId>,
}

/// What makes a line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Each holder and resource
    Holder,
    /// Each service that holds
    Service,
    /// How long it has been set aside
    Age,
}

/// An entity, as SERVICE/KEY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its service.
    pub service: String,
    /// Its key.
    pub key: String,
}

impl FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (service, key) = text.split_once('/').ok_or("an entity is named SERVICE/KEY")?;
        let checked = match index::parts(service) {
            // An entry of an index has its pairs like an entity.
            Some((of, _)) => key::check_service(of).and_then(|()| key::check_key(key, index::ENTRY_KEY_BYTES_MAX)),
            None => key::check_service(service).and_then(|()| key::check_entity_key(key)),
        };
        checked.map_err(|error| error.to_string())?;
        Ok(Self {
            service: service.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl Named {
    pub(super) fn position(&self) -> Position {
        Position::new(&self.service, &self.key)
    }
}

pub(super) async fn run(env: &Environment, command: TentativeCommand) -> Ended {
    match command {
        TentativeCommand::Reserve {
            entity,
            holder,
            resource,
            amount,
            deadline,
            how,
        } => {
            let wanted = Tentative::Reserve {
                holder: holder.position(),
                resource,
                amount,
                ttl_ms: deadline.as_millis() as u64,
            };
            change(env, &entity, wanted, &how).await
        }
        TentativeCommand::Confirm {
            entity,
            holder,
            operation,
            how,
        } => {
            let holder = holder.position();
            change(env, &entity, Tentative::Confirm { holder, operation }, &how).await
        }
        TentativeCommand::Cancel {
            entity,
            holder,
            message: Some(number),
            because,
            confirm,
            dry_run,
            how,
            ..
        } => {
            let act = super::activity::Act {
                entity,
                partner: holder,
                because: because.unwrap_or_default(),
                dry_run,
                request_id: how.request_id,
            };
            super::activity::cancel(env, &act, number, confirm.as_deref()).await
        }
        TentativeCommand::Cancel {
            entity,
            holder,
            operation,
            how,
            ..
        } => {
            let holder = holder.position();
            let operation = operation.ok_or_else(|| CtlError::new(exit::USAGE, "an operation's number is missing"))?;
            change(env, &entity, Tentative::Cancel { holder, operation }, &how).await
        }
        TentativeCommand::Operations { entity } => list_operations(env, &entity).await,
        TentativeCommand::Ledger { of: Some(of), .. } => ledger_of(env, &of).await,
        TentativeCommand::Ledger { of: None, by } => ledger(env, by).await,
    }
}

// --- changes ---------------------------------------------------------------------------------------------------

async fn change(env: &Environment, entity: &Named, wanted: Tentative, how: &How) -> Ended {
    let id = how.request_id.unwrap_or_else(RequestId::random);
    let client = env.connect().await?;
    journal::note(&entity.service, &entity.key, id);
    let done = carry_out(env, &client, entity, &wanted, id, how).await;
    client.close().await;
    let known = done?;
    print_operation(env, entity, &known, id)?;
    match (&wanted, known.stage) {
        (_, Stage::Ended(OperationState::Declined | OperationState::Expired)) => Ok(exit::REFUSED),
        _ => Ok(exit::OK),
    }
}

async fn carry_out(
    env: &Environment,
    client: &Client,
    entity: &Named,
    wanted: &Tentative,
    id: RequestId,
    how: &How,
) -> Result<Operation, CtlError> {
    let written = client
        .write(Write {
            service: entity.service.clone(),
            key: entity.key.clone(),
            id,
            condition: Condition::Always,
            change: Change::Tentative(wanted.clone()),
        })
        .await?;
    let number = match wanted {
        Tentative::Confirm { operation, .. } | Tentative::Cancel { operation, .. } => *operation,
        Tentative::Reserve { .. } => {
            let begun = written.sent.iter().find_map(|sent| sent.operation);
            begun.ok_or_else(|| CtlError::new(exit::UNEXPECTED, "the answer names no operation"))?
        }
    };
    let until = Instant::now() + env.cli.timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let all = operations(client, entity).await?;
        let Some(known) = all.into_iter().find(|known| known.operation == number) else {
            let text = format!(
                "{}/{} does not know operation {number} any more",
                entity.service, entity.key
            );
            return Err(CtlError::new(exit::NOT_FOUND, text));
        };
        let is_settled = match known.stage {
            Stage::Asked | Stage::Confirming | Stage::Cancelling => how.no_wait,
            Stage::Tentative { .. } | Stage::Ended(_) => true,
        };
        if is_settled {
            return Ok(known);
        }
        if Instant::now() >= until {
            let holder = named(&known.holder);
            let text = format!("{holder} has not answered about operation {number} yet; the request is recorded");
            let mut error = CtlError::new(exit::TIME_LIMIT, text);
            error.committed = "yes";
            return Err(error
                .next(format!("isxctl activity operations {}/{}", entity.service, entity.key))
                .next("isxctl status"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

async fn operations(client: &Client, entity: &Named) -> Result<Vec<Operation>, CtlError> {
    let request = Request::Operations {
        service: entity.service.clone(),
        key: entity.key.clone(),
    };
    match client.request(request).await? {
        Response::Operations(all) => Ok(all),
        _ => Err(CtlError::new(exit::UNEXPECTED, "a node answered something else")),
    }
}

fn state_of(stage: Stage) -> (String, Option<u64>) {
    match stage {
        Stage::Asked => ("asked".to_owned(), None),
        Stage::Tentative { until_ms } => ("tentative".to_owned(), Some(until_ms)),
        Stage::Confirming => ("confirming".to_owned(), None),
        Stage::Cancelling => ("cancelling".to_owned(), None),
        Stage::Ended(state) => (state.to_string(), None),
    }
}

fn item_of(known: &Operation) -> Value {
    let (state, until) = state_of(known.stage);
    // Numbers of operations are names: a name is a string.
    json!({"operation": known.operation.to_string(), "holder": named(&known.holder), "resource": known.resource,
           "amount": known.amount, "state": state, "until": until.map(timestamp), "since": timestamp(known.wall_ms),
           "reason": known.reason})
}

fn print_operation(env: &Environment, entity: &Named, known: &Operation, id: RequestId) -> Ended {
    match env.format() {
        Format::Json | Format::Jsonl => {
            let mut item = item_of(known);
            item["schema"] = json!("isx.operation/1");
            item["entity"] = json!(format!("{}/{}", entity.service, entity.key));
            item["requestId"] = json!(id.to_string());
            env.print_json(&item)
        }
        Format::Name => env.print(&format!("{}\n", known.operation)),
        _ => {
            let (mut state, until) = state_of(known.stage);
            if let Some(until) = until {
                state += &format!(" until {}", timestamp(until));
            }
            if !known.reason.is_empty() {
                state += &format!(": {}", known.reason);
            }
            env.print(&format!(
                "{}/{}   operation {}   {} {} of {}   {state}   request {id}\n",
                entity.service,
                entity.key,
                known.operation,
                known.amount,
                known.resource,
                named(&known.holder)
            ))
        }
    }
}

async fn list_operations(env: &Environment, entity: &Named) -> Ended {
    let client = env.connect().await?;
    let all = operations(&client, entity).await;
    client.close().await;
    let columns = [
        "OPERATION:operation",
        "HOLDER:holder",
        "RESOURCE:resource",
        "AMOUNT:amount",
        "STATE:state",
        "UNTIL:until",
        "SINCE:since",
        "REASON:reason",
    ];
    let mut listing = Listing::new("isx.operation.list/1", &columns);
    for known in all? {
        let (state, until) = state_of(known.stage);
        let row = vec![
            known.operation.to_string(),
            named(&known.holder),
            known.resource.clone(),
            known.amount.to_string(),
            state,
            until.map_or_else(|| "-".to_owned(), timestamp),
            timestamp(known.wall_ms),
            dash(&known.reason),
        ];
        listing.push(row, item_of(&known));
    }
    env.print_listing(&listing)
}

// --- the ledger ------------------------------------------------------------------------------------------------

pub(super) async fn pages(client: &Client, from: Position, to: Position) -> Result<LedgerPage, CtlError> {
    let mut all = LedgerPage::default();
    let (mut from, mut resume) = (from, bytes::Bytes::new());
    loop {
        let request = Request::Ledger {
            from: from.clone(),
            to: to.clone(),
            resume: resume.clone(),
            limit: LEDGER_ITEMS_MAX,
        };
        let Response::Ledger(page) = client.request(request).await? else {
            return Err(CtlError::new(exit::UNEXPECTED, "a node answered something else"));
        };
        all.pools.extend(page.pools);
        all.items.extend(page.items);
        match page.next {
            Some(next) => (from, resume) = next,
            None => return Ok(all),
        }
    }
}

async fn ledger_of(env: &Environment, of: &Named) -> Ended {
    let client = env.connect().await?;
    let page = pages(&client, of.position(), of.position().successor()).await;
    client.close().await;
    let page = page?;
    let columns = [
        "REQUESTER:requester",
        "OPERATION:operation",
        "RESOURCE:resource",
        "AMOUNT:amount",
        "AGE:since",
        "DEADLINE:until",
        "PAST DEADLINE:pastDeadline",
    ];
    let mut listing = Listing::new("isx.ledger.holder/1", &columns);
    let pools: Vec<Value> = page
        .pools
        .iter()
        .map(|pool| {
            json!({"holder": named(&pool.holder), "resource": pool.resource, "total": pool.total,
                   "reserved": pool.reserved, "confirmed": pool.confirmed, "open": pool.open})
        })
        .collect();
    listing.about.push(("pools", json!(pools)));
    for item in &page.items {
        let row = vec![
            named(&item.requester),
            item.operation.to_string(),
            item.resource.clone(),
            item.amount.to_string(),
            output::span(now_ms().saturating_sub(item.since_ms)),
            timestamp(item.until_ms),
            yes(item.is_past),
        ];
        let object = json!({"requester": named(&item.requester), "operation": item.operation.to_string(),
                            "resource": item.resource, "amount": item.amount, "since": timestamp(item.since_ms),
                            "until": timestamp(item.until_ms), "pastDeadline": item.is_past});
        listing.push(row, object);
    }
    if matches!(env.format(), Format::Table | Format::Wide) {
        for pool in &page.pools {
            env.say(&pool_line(pool));
        }
    }
    env.print_listing(&listing)
}

fn pool_line(pool: &LedgerPool) -> String {
    let (name, reserved, confirmed) = (&pool.resource, pool.reserved, pool.confirmed);
    match pool.total {
        Some(total) => {
            let left = i128::from(total) - i128::from(reserved) - i128::from(confirmed);
            format!("{name}   {total}: {confirmed} confirmed, {reserved} set aside, {left} left")
        }
        None => format!("{name}   no pool any more: {confirmed} confirmed, {reserved} set aside"),
    }
}

/// What is added up in one line.
#[derive(Debug, Default)]
struct Line {
    resource: String,
    total: Option<i64>,
    confirmed: Option<i64>,
    open: u64,
    amount: i128,
    oldest_ms: Option<u64>,
    past: u64,
    waiting_for: BTreeMap<Position, u64>,
}

async fn ledger(env: &Environment, by: By) -> Ended {
    let client = env.connect().await?;
    let page = whole_ledger(&client).await;
    client.close().await;
    let page = page?;
    let first = match by {
        By::Holder => "HOLDER:holder",
        By::Service => "SERVICE:service",
        By::Age => "AGE:age",
    };
    let columns = [
        first,
        "RESOURCE:resource",
        "+TOTAL:total",
        "+CONFIRMED:confirmed",
        "OPEN:open",
        "AMOUNT:amount",
        "OLDEST:oldest",
        "PAST DEADLINE:pastDeadline",
        "WAITING FOR:waitingFor",
    ];
    let mut listing = Listing::new("isx.ledger/1", &columns);
    let now = now_ms();
    for ((_, name, _), line) in lines(&page, by, now) {
        let waiting = waiting_for(&line.waiting_for);
        let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let row = vec![
            name.clone(),
            dash(&line.resource),
            number(line.total),
            number(line.confirmed),
            line.open.to_string(),
            line.amount.to_string(),
            line.oldest_ms
                .map_or_else(|| "-".to_owned(), |ms| output::span(now.saturating_sub(ms))),
            line.past.to_string(),
            dash(&waiting),
        ];
        let field = first.split_once(':').map_or("name", |(_, field)| field);
        let requesters: Vec<String> = line.waiting_for.keys().take(REQUESTERS_NAMED_MAX).map(named).collect();
        let mut object = json!({"resource": line.resource, "total": line.total, "confirmed": line.confirmed,
                                "open": line.open, "amount": line.amount as i64,
                                "oldest": line.oldest_ms.map(timestamp), "pastDeadline": line.past,
                                "waitingFor": requesters});
        object[field] = json!(name);
        listing.push(row, object);
    }
    env.print_listing(&listing)
}

async fn whole_ledger(client: &Client) -> Result<LedgerPage, CtlError> {
    let mut all = LedgerPage::default();
    for service in client.map().await?.services {
        let from = Position::new(&service.name, "");
        let page = pages(client, from, Position::end_of(&service.name)).await?;
        all.pools.extend(page.pools);
        all.items.extend(page.items);
    }
    Ok(all)
}

/// Lines in order: what sorts them, their name, their resource.
fn lines(page: &LedgerPage, by: By, now: u64) -> BTreeMap<(usize, String, String), Line> {
    let mut lines: BTreeMap<(usize, String, String), Line> = BTreeMap::new();
    for item in &page.items {
        let (rank, name) = match by {
            By::Holder => (0, named(&item.holder)),
            By::Service => (0, item.holder.parts().0.to_owned()),
            By::Age => {
                let age = now.saturating_sub(item.since_ms);
                let rank = AGES.iter().position(|(most, _)| age < *most).unwrap_or(AGES.len() - 1);
                (rank, AGES[rank].1.to_owned())
            }
        };
        let resource = if by == By::Age {
            String::new()
        } else {
            item.resource.clone()
        };
        let line = lines.entry((rank, name, resource.clone())).or_default();
        line.resource = resource;
        line.open += 1;
        line.amount += i128::from(item.amount);
        line.oldest_ms = Some(line.oldest_ms.map_or(item.since_ms, |known| known.min(item.since_ms)));
        line.past += u64::from(item.is_past);
        *line.waiting_for.entry(item.requester.clone()).or_default() += 1;
    }
    if by == By::Holder {
        for pool in &page.pools {
            if let Some(line) = lines.get_mut(&(0, named(&pool.holder), pool.resource.clone())) {
                line.total = pool.total;
                line.confirmed = Some(pool.confirmed);
            }
        }
    }
    lines
}

/// The requester, or how many of each service.
fn waiting_for(requesters: &BTreeMap<Position, u64>) -> String {
    if requesters.len() <= 2 {
        return requesters.keys().map(named).collect::<Vec<_>>().join(", ");
    }
    let mut services: BTreeMap<&str, u64> = BTreeMap::new();
    for position in requesters.keys() {
        *services.entry(position.parts().0).or_default() += 1;
    }
    let counted = services.iter().map(|(service, count)| format!("{service} ({count})"));
    counted.collect::<Vec<_>>().join(", ")
}

pub(super) fn named(position: &Position) -> String {
    let (service, key) = position.parts();
    format!("{service}/{}", key.unwrap_or(""))
}

/// The same, as a shell takes it: the name of an index's entry has a blank in it.
pub(super) fn typed(position: &Position) -> String {
    let name = named(position);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.:~".contains(c);
    if name.chars().all(is_plain) {
        return name;
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

pub(super) fn dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn yes(it_is: bool) -> String {
    if it_is { "yes" } else { "no" }.to_owned()
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Requesters that a line names in JSON.
const REQUESTERS_NAMED_MAX: usize = 1_000;
/// Ages that make a line: younger than this, in ms.
const AGES: [(u64, &str); 5] = [
    (60_000, "under 1m"),
    (600_000, "1m to 10m"),
    (3_600_000, "10m to 1h"),
    (86_400_000, "1h to 1d"),
    (u64::MAX, "over 1d"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn item(holder: &str, requester: &str, amount: i64, since_ms: u64, is_past: bool) -> LedgerItem {
        LedgerItem {
            holder: Position::new("campaign", holder),
            requester: Position::new("profile", requester),
            operation: 1,
            resource: "budget".to_owned(),
            amount,
            since_ms,
            until_ms: since_ms + 1_000,
            is_past,
        }
    }

    #[test]
    fn a_ledger_is_added_up() {
        let page = LedgerPage {
            items: vec![
                item("a", "p", 5, 100_000, false),
                item("a", "q", 7, 500_000, false),
                item("b", "p", 1, 500_000, true),
            ],
            ..LedgerPage::default()
        };
        let told = |by| {
            let lines = lines(&page, by, 500_000);
            let line = |((_, name, _), line): (_, Line)| (name, line.open, line.amount, line.past);
            lines.into_iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            told(By::Holder),
            [("campaign/a".to_owned(), 2, 12, 0), ("campaign/b".to_owned(), 1, 1, 1)]
        );
        assert_eq!(told(By::Service), [("campaign".to_owned(), 3, 13, 1)]);
        assert_eq!(
            told(By::Age),
            [("under 1m".to_owned(), 2, 8, 1), ("1m to 10m".to_owned(), 1, 5, 0)]
        );
    }

    #[test]
    fn many_requesters_are_counted_by_service() {
        let requesters = |keys: &[&str]| {
            keys.iter()
                .map(|key| (Position::new("profile", key), 1))
                .collect::<BTreeMap<_, u64>>()
        };
        assert_eq!(waiting_for(&requesters(&["a", "b"])), "profile/a, profile/b");
        assert_eq!(waiting_for(&requesters(&["a", "b", "c"])), "profile (3)");
    }

    #[test]
    fn entities_are_named_by_service_and_key() {
        assert_eq!(
            "campaign/a/b".parse::<Named>().map(|named| named.key),
            Ok("a/b".to_owned())
        );
        assert!("campaign".parse::<Named>().is_err() && "Campaign/x".parse::<Named>().is_err());
    }
}
