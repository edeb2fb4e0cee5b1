//! What entities have with one another, for operators: messages outstanding, both ends of a pair compared, and what one
//! can do about a message that does not get on.
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::span;
use super::exit::{self, CtlError};
use super::ops::severe;
use super::output::{self, Format, Listing, timestamp};
use super::pairs::{self, Verdict, outstanding};
use super::tentative::{Named, dash, named, now_ms, pages, typed};
use super::{Ended, Environment, amounts, journal};
use crate::client::{Client, ClientError, ListQuery};
use crate::protocol::activity::{
    ActivityAction, ActivityFilter, ActivityItem, ActivityView, Body, MessageView, ParkedView, PartnerView, Rejection,
    SendView,
};
use crate::protocol::id::RequestId;
use crate::protocol::key::{self, Position};
use crate::protocol::request::{Change, Condition, LIST_ITEMS_MAX, Request, Response, Write};
use crate::protocol::schema::index;

/// Verbs on messages between entities.
#[derive(Debug, Clone, Subcommand)]
pub enum MessageCommand {
    /// Who sends to whom, and how it stands
    #[command(
        before_help = "Examples:\n  isxctl activity list --state pending --older-than 10s\n  isxctl activity list --of campaign/c-1 --with profile"
    )]
    List {
        /// Only what this one sends: SERVICE/KEY, or a whole SERVICE
        #[arg(long, value_name = "SENDER")]
        of: Option<Side>,
        /// Only what this one is sent: SERVICE/KEY, or a whole SERVICE
        #[arg(long, value_name = "RECEIVER")]
        with: Option<Side>,
        /// Only pairs with messages pending, parked by somebody or refused and parked, with tentative operations, or whose
        /// session ends
        #[arg(long, value_enum, value_delimiter = ',', value_name = "STATE,STATE")]
        state: Vec<Standing>,
        /// The same as --state parked
        #[arg(long, conflicts_with = "state")]
        parked: bool,
        /// Only pairs whose oldest message has waited, or was refused and parked, for so long
        #[arg(long, value_parser = span, value_name = "SPAN")]
        older_than: Option<Duration>,
        /// At most this many
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// One entity's partners, or with PARTNER both ends compared, message by message
    #[command(
        before_help = "Examples:\n  isxctl activity show campaign/c-1\n  isxctl activity show campaign/c-1 profile/p-17"
    )]
    Show {
        /// SERVICE/KEY
        entity: Named,
        /// The other one, as SERVICE/KEY
        partner: Option<Named>,
    },
    /// Send now what would be due later, and again what was refused and is parked
    #[command(
        before_help = "Examples:\n  isxctl activity retry campaign/c-1 profile/p-17\n  isxctl activity retry campaign/c-1 profile/p-17 --message 1.41"
    )]
    Retry {
        /// Which pair.
        #[command(flatten)]
        act: Act,
        /// Only this one of those that were refused, as `activity show` names it
        #[arg(long, value_name = "SESSION.NUMBER")]
        message: Option<MessageName>,
    },
    /// Stop sending; everything is kept until `unpark`
    Park(Act),
    /// Go on sending
    Unpark(Act),
    /// Give up the first message that was refused and is parked; where there is none, take the first one back that is not
    /// known to be applied, so that those behind it can go on
    #[command(
        before_help = "Examples:\n  isxctl activity skip campaign/c-1 profile/p-17 --because 'p-17 can never take it' --confirm campaign/c-1"
    )]
    Skip {
        /// Which pair.
        #[command(flatten)]
        act: Act,
        /// The sender once more, instead of typing it
        #[arg(long, value_name = "SERVICE/KEY")]
        confirm: Option<String>,
    },
    /// Ask both ends of pairs and report those that can't both be right, over messages or over amounts set aside
    #[command(before_help = "Examples:\n  isxctl activity audit\n  isxctl activity audit --of campaign --sample 1000")]
    Audit {
        /// Only pairs in which this service sends or receives
        #[arg(long, value_name = "SERVICE")]
        of: Option<String>,
        /// Only so many pairs of each direction, drawn at random
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        sample: Option<u32>,
    },
}

/// What is done to what one entity sends another.
#[derive(Debug, Clone, Args)]
pub struct Act {
    /// Who sends, as SERVICE/KEY
    pub entity: Named,
    /// Who receives, as SERVICE/KEY
    pub partner: Named,
    /// Why, for those who come later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub because: String,
    /// Check, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Repeat an earlier request: it has one effect, however often
    #[arg(long, value_name = "ID")]
    pub request_id: Option<RequestId>,
}

/// A message of a pair: its number in the open session, or session and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageName {
    /// The session, if it was named.
    pub session: Option<u64>,
    /// The number.
    pub number: u64,
}

impl std::str::FromStr for MessageName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = |text: &str| {
            text.parse()
                .map_err(|_| "a message is named 41, or 1.41 with its session".to_owned())
        };
        match text.split_once('.') {
            Some((session, number)) => Ok(Self {
                session: Some(read(session)?),
                number: read(number)?,
            }),
            None => Ok(Self {
                session: None,
                number: read(text)?,
            }),
        }
    }
}

impl std::fmt::Display for MessageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.session {
            Some(session) => write!(f, "{session}.{}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

/// An entity, or all of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// One.
    Entity(Named),
    /// All.
    Service(String),
}

impl std::str::FromStr for Side {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Side::Entity);
        }
        key::check_service(index::parts(text).map_or(text, |(of, _)| of)).map_err(|error| error.to_string())?;
        Ok(Side::Service(text.to_owned()))
    }
}

impl Side {
    fn is(&self, position: &Position) -> bool {
        match self {
            Side::Entity(entity) => entity.position() == *position,
            Side::Service(service) => position.parts().0 == service,
        }
    }
}

/// How a pair stands. One may be several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Standing {
    /// Messages are not known to be applied
    Pending,
    /// Sending was stopped, or messages that were refused are parked
    Parked,
    /// Tentative operations are open
    Tentative,
    /// Nothing is left to say, the session ends
    Closed,
}

impl Standing {
    fn is(self, sends: &SendView) -> bool {
        match self {
            Standing::Pending => outstanding(sends) > 0,
            Standing::Parked => sends.held.is_some() || sends.parked > 0,
            Standing::Tentative => sends.open > 0,
            Standing::Closed => sends.closing,
        }
    }

    fn filter(wanted: &[Self]) -> ActivityFilter {
        match wanted {
            [Standing::Pending] => ActivityFilter::Pending,
            [Standing::Parked] => ActivityFilter::Parked,
            [Standing::Tentative] => ActivityFilter::Tentative,
            _ => ActivityFilter::All,
        }
    }
}

/// The state that tells most.
fn state(sends: &SendView) -> &'static str {
    let first = |(standing, word): (Standing, &'static str)| standing.is(sends).then_some(word);
    [
        (Standing::Parked, "parked"),
        (Standing::Pending, "pending"),
        (Standing::Tentative, "tentative"),
        (Standing::Closed, "closed"),
    ]
    .into_iter()
    .find_map(first)
    .unwrap_or("idle")
}

pub(super) async fn run(env: &Environment, command: MessageCommand) -> Ended {
    match command {
        MessageCommand::List {
            of,
            with,
            mut state,
            parked,
            older_than,
            limit,
        } => {
            if parked {
                state.push(Standing::Parked);
            }
            let wanted = Wanted {
                of,
                with,
                states: state,
                older_than,
                limit: limit as usize,
            };
            list(env, wanted).await
        }
        MessageCommand::Show {
            entity,
            partner: Some(partner),
        } => show_pair(env, &entity.position(), &partner.position()).await,
        MessageCommand::Show { entity, partner: None } => show_entity(env, &entity.position()).await,
        MessageCommand::Retry { act, message } => retry(env, &act, message).await,
        MessageCommand::Park(act) => change(env, &act, "park", ActivityAction::Park).await,
        MessageCommand::Unpark(act) => change(env, &act, "unpark", ActivityAction::Unpark).await,
        MessageCommand::Skip { act, confirm } => take_back(env, &act, None, confirm.as_deref()).await,
        MessageCommand::Audit { of, sample } => audit(env, of.as_deref(), sample.map(|n| n as usize)).await,
    }
}

// --- list ------------------------------------------------------------------------------------------------------

struct Wanted {
    of: Option<Side>,
    with: Option<Side>,
    states: Vec<Standing>,
    older_than: Option<Duration>,
    limit: usize,
}

impl Wanted {
    fn wants(&self, item: &ActivityItem, now: u64) -> bool {
        let is_old = |limit: &Duration| {
            let refused = item.sends.refused.as_ref().map(|(_, since)| *since);
            let since = item.sends.oldest_ms.or(refused);
            since.is_some_and(|since| u128::from(now.saturating_sub(since)) >= limit.as_millis())
        };
        self.with.as_ref().is_none_or(|with| with.is(&item.to))
            && (self.states.is_empty() || self.states.iter().any(|state| state.is(&item.sends)))
            && self.older_than.as_ref().is_none_or(is_old)
    }
}

/// All pairs whose senders lie in a range, over all its shards, until `take` wants no more.
async fn walk(
    client: &Client,
    from: Position,
    to: &Position,
    filter: ActivityFilter,
    take: &mut (dyn FnMut(ActivityItem) -> bool + Send),
) -> Result<(), CtlError> {
    let (mut from, mut after) = (from, None);
    loop {
        let request = Request::ListActivities {
            from: from.clone(),
            to: to.clone(),
            after,
            filter,
            limit: LIST_ITEMS_MAX,
        };
        let Response::ActivitiesListed {
            items,
            after: behind,
            next,
        } = client.request(request).await?
        else {
            return Err(CtlError::new(exit::UNEXPECTED, "a node answered something else"));
        };
        for item in items {
            if !take(item) {
                return Ok(());
            }
        }
        // What was listed is not listed again if the shard was split meanwhile: `from` moves on with it.
        (from, after) = match (behind, next) {
            (Some(behind), _) => (behind.0.clone(), Some(behind)),
            (None, Some(next)) => (next, None),
            (None, None) => return Ok(()),
        };
    }
}

/// The ranges of all shards that hold what is wanted, in their order.
fn ranges(client: &Client, of: Option<&Side>) -> Result<Vec<(Position, Position)>, CtlError> {
    let map = client.cached_map();
    let known = |service: &str| map.services.iter().any(|known| known.name == service);
    let wanted = match of {
        None => None,
        Some(Side::Service(service) | Side::Entity(Named { service, .. })) if !known(service) => {
            let text = format!("there is no service {service}");
            return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl service list"));
        }
        Some(Side::Service(service)) => Some((Position::new(service, ""), Position::end_of(service))),
        Some(Side::Entity(entity)) => Some((entity.position(), entity.position().successor())),
    };
    let mut ranges = Vec::new();
    for shard in map.shards.iter().filter(|shard| !shard.range.service().is_empty()) {
        let (start, end) = (&shard.range.start, &shard.range.end);
        let (from, to) = match &wanted {
            None => (start, end),
            Some((from, to)) => (start.max(from), end.min(to)),
        };
        if from < to {
            ranges.push((from.clone(), to.clone()));
        }
    }
    ranges.sort();
    Ok(ranges)
}

/// What was found in all ranges, in order, and which could not be asked and why.
type Walked = (Vec<ActivityItem>, Vec<(Position, CtlError)>);

/// Walks all ranges at once: a shard without a leader holds up none of the others.
async fn walk_all(
    client: &Client,
    ranges: Vec<(Position, Position)>,
    filter: ActivityFilter,
    limit: usize,
    wants: impl Fn(&ActivityItem) -> bool + Clone + Send + Sync + 'static,
) -> Result<Walked, CtlError> {
    let mut asked = JoinSet::new();
    for (from, to) in ranges {
        let (client, wants) = (client.clone(), wants.clone());
        asked.spawn(async move {
            let mut found = Vec::new();
            let mut take = |item: ActivityItem| {
                if wants(&item) {
                    found.push(item);
                }
                found.len() < limit
            };
            let walked = walk(&client, from.clone(), &to, filter, &mut take).await;
            (from, found, walked)
        });
    }
    let (mut items, mut missing) = (BTreeMap::new(), BTreeMap::new());
    while let Some(answered) = asked.join_next().await {
        let (from, found, walked) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        if let Err(error) = walked {
            missing.insert(from.clone(), error);
        }
        items.insert(from, found);
    }
    let items = items.into_values().flatten().take(limit).collect();
    Ok((items, missing.into_iter().collect()))
}

async fn list(env: &Environment, wanted: Wanted) -> Ended {
    let client = env.connect().await?;
    let (now, filter, limit) = (now_ms(), Standing::filter(&wanted.states), wanted.limit);
    let listed = match ranges(&client, wanted.of.as_ref()) {
        Err(error) => Err(error),
        Ok(ranges) => {
            let wanted = std::sync::Arc::new(wanted);
            // One more than is shown tells that there are more.
            walk_all(&client, ranges, filter, limit + 1, move |item| wanted.wants(item, now)).await
        }
    };
    client.close().await;
    let (mut found, missing) = listed?;
    let more = found.len() > limit;
    found.truncate(limit);
    let columns = [
        "ENTITY:entity",
        "PARTNER:partner",
        "STATE:state",
        "OUT UNACKED:unacked",
        "OLDEST:oldest",
        "TRIES:tries",
        "NEXT TRY:nextTry",
        "REASON:reason",
        "+SESSION:session",
        "+ACKED:acked",
        "+TENTATIVE:tentative",
        "+PARKED SINCE:parkedSince",
    ];
    let mut listing = Listing::new("isx.activity.list/1", &columns);
    listing.about.push(("more", json!(more)));
    let told: Vec<Value> = missing
        .iter()
        .map(|(from, error)| json!({"from": from.to_string(), "why": error.message}))
        .collect();
    listing.about.push(("missing", json!(told)));
    for (from, error) in &missing {
        env.say(&format!("the shard from {from} on can't be asked: {}", error.message));
    }
    let code = match (missing.is_empty(), found.is_empty()) {
        (true, _) => exit::OK,
        (false, false) => exit::PARTLY,
        (false, true) => exit::UNREACHABLE,
    };
    for item in &found {
        let sends = &item.sends;
        let age = |ms: u64| output::span(now.saturating_sub(ms));
        let row = vec![
            named(&item.from),
            named(&item.to),
            state(sends).to_owned(),
            outstanding(sends).to_string(),
            sends.oldest_ms.map_or_else(|| "-".to_owned(), age),
            sends.attempts.to_string(),
            next_try(sends),
            dash(&reason(sends)),
            sends.session.to_string(),
            sends.acked.to_string(),
            sends.open.to_string(),
            parked_since(sends).map_or_else(|| "-".to_owned(), timestamp),
        ];
        let mut object = json!({"entity": named(&item.from), "partner": named(&item.to)});
        extend(&mut object, sends_json(sends));
        listing.push(row, object);
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if found.is_empty() && is_table {
        env.say(if missing.is_empty() {
            "no such pair"
        } else {
            "no such pair in the shards that answered"
        });
        return Ok(code);
    }
    env.print_listing(&listing)?;
    if more {
        env.say(&format!(
            "there are more than {limit}; --limit, --of, --with, --state and --older-than choose"
        ));
    }
    Ok(code)
}

fn next_try(sends: &SendView) -> String {
    match (sends.retry_in_ms, outstanding(sends)) {
        (Some(ms), 1..) if sends.held.is_none() => format!("in {}", output::span(ms)),
        _ => "-".to_owned(),
    }
}

/// Why something of it is parked.
fn reason(sends: &SendView) -> String {
    match (&sends.held, &sends.refused) {
        (Some((by, _)), _) => by.clone(),
        (None, Some((why, _))) => format!("{} refused: {why}", sends.parked),
        (None, None) => String::new(),
    }
}

fn parked_since(sends: &SendView) -> Option<u64> {
    let since = sends.held.as_ref().or(sends.refused.as_ref());
    since.map(|(_, since)| *since)
}

fn sends_json(sends: &SendView) -> Value {
    json!({"state": state(sends), "session": sends.session, "unacked": outstanding(sends), "acked": sends.acked,
           "nextNumber": sends.next, "oldest": sends.oldest_ms.map(timestamp), "tries": sends.attempts,
           "nextTryMs": sends.retry_in_ms, "tentative": sends.open, "closing": sends.closing,
           "refusedParked": sends.parked, "reason": Some(reason(sends)).filter(|reason| !reason.is_empty()),
           "parkedSince": parked_since(sends).map(timestamp)})
}

fn extend(object: &mut Value, with: Value) {
    if let (Some(object), Value::Object(with)) = (object.as_object_mut(), with) {
        object.extend(with);
    }
}

// --- show ------------------------------------------------------------------------------------------------------

async fn show_entity(env: &Environment, entity: &Position) -> Ended {
    let client = env.connect().await?;
    let view = whole_view(&client, entity).await;
    client.close().await;
    let view = view?;
    let columns = [
        "PARTNER:partner",
        "STATE:state",
        "OUT UNACKED:unacked",
        "OLDEST:oldest",
        "SENT:sent",
        "HAD:had",
        "+OUT SESSION:outSession",
        "+IN SESSION:inSession",
        "REASON:reason",
    ];
    let mut listing = Listing::new("isx.activity.partners/1", &columns);
    listing.about = vec![
        ("entity", json!(named(entity))),
        ("outstanding", json!(view.outstanding)),
        (
            "rejections",
            view.rejections.iter().map(rejection_json).collect::<Vec<_>>().into(),
        ),
    ];
    let now = now_ms();
    for pair in &view.pairs {
        let (sends, had) = (pair.sends.as_ref(), pair.had);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let oldest = sends.and_then(|sends| sends.oldest_ms);
        let row = vec![
            named(&pair.with),
            sends.map_or("idle", state).to_owned(),
            sends.map_or(0, outstanding).to_string(),
            or_dash(oldest.map(|ms| output::span(now.saturating_sub(ms)))),
            or_dash(sends.map(|sends| (sends.next - 1).to_string())),
            or_dash(had.map(|(_, last, _)| last.to_string())),
            or_dash(sends.map(|sends| sends.session.to_string())),
            or_dash(had.map(|(session, _, _)| session.to_string())),
            dash(&sends.map_or_else(String::new, reason)),
        ];
        let object = json!({"partner": named(&pair.with), "state": sends.map_or("idle", state),
                            "unacked": sends.map_or(0, outstanding), "oldest": oldest.map(timestamp),
                            "sent": sends.map(|sends| sends.next - 1), "had": had.map(|(_, last, _)| last),
                            "outSession": sends.map(|sends| sends.session), "inSession": had.map(|(s, _, _)| s),
                            "reason": sends.map(reason).filter(|reason| !reason.is_empty())});
        listing.push(row, object);
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if view.pairs.is_empty() && is_table {
        env.say(&format!("{} has nothing with anybody now", named(entity)));
    } else {
        env.print_listing(&listing)?;
    }
    if is_table && !view.rejections.is_empty() {
        let lines: Vec<&Rejection> = view.rejections.iter().collect();
        env.print(&rejections_text("refused by others, the latest", &lines, true))?;
    }
    Ok(exit::OK)
}

async fn whole_view(client: &Client, entity: &Position) -> Result<ActivityView, ClientError> {
    let mut all = pairs::view(client, entity, None, None, LIST_ITEMS_MAX).await?;
    while let Some(next) = all.next.take() {
        let more = pairs::view(client, entity, None, Some(next), LIST_ITEMS_MAX).await?;
        all.pairs.extend(more.pairs);
        all.next = more.next;
    }
    Ok(all)
}

fn rejection_json(rejection: &Rejection) -> Value {
    json!({"by": named(&rejection.by), "message": format!("{}.{}", rejection.session, rejection.number),
           "action": rejection.action, "code": rejection.code.to_string(), "reason": rejection.reason,
           "at": timestamp(rejection.wall_ms)})
}

fn rejections_text(heading: &str, rejections: &[&Rejection], names: bool) -> String {
    let mut text = format!("{heading}\n");
    for rejection in rejections {
        let by = if names {
            format!("{}   ", named(&rejection.by))
        } else {
            String::new()
        };
        text += &format!(
            "  {by}msg {}.{}   {}   {}   {}   {}\n",
            rejection.session,
            rejection.number,
            rejection.action,
            timestamp(rejection.wall_ms),
            rejection.code,
            rejection.reason
        );
    }
    text
}

/// One direction, as it is shown.
struct Direction {
    from: Position,
    to: Position,
    /// The sender's side with the messages outstanding, or why it is not known.
    near: Result<ActivityView, ClientError>,
    /// The receiver's mark, or why it is not known.
    far: Result<Option<(u64, u64, u64)>, ClientError>,
    /// `None`: one end can't be asked.
    verdict: Option<Verdict>,
}

impl Direction {
    async fn ask(client: &Client, from: &Position, to: &Position) -> Self {
        // At once: where a shard has no leader each takes the whole time limit.
        let (verdict, near, far) = tokio::join!(
            pairs::compare(client, from, to),
            pairs::view(client, from, Some(to), None, MESSAGES_SHOWN),
            pairs::view(client, to, Some(from), None, 1)
        );
        Self {
            from: from.clone(),
            to: to.clone(),
            near,
            far: far.map(|view| view.pairs.first().and_then(|pair| pair.had)),
            verdict: verdict.ok(),
        }
    }

    fn sends(&self) -> Option<&SendView> {
        let view = self.near.as_ref().ok()?;
        view.pairs.first()?.sends.as_ref()
    }

    fn messages(&self) -> &[MessageView] {
        self.near.as_ref().map_or(&[], |view| &view.messages)
    }

    fn parked(&self) -> &[ParkedView] {
        self.near.as_ref().map_or(&[], |view| &view.parked)
    }

    fn rejections(&self) -> Vec<&Rejection> {
        let all = self.near.as_ref().map_or(&[][..], |view| &view.rejections);
        all.iter().filter(|rejection| rejection.by == self.to).collect()
    }

    /// What became of one message that the sender still has, as far as the receiver tells.
    fn state_of(&self, number: u64) -> &'static str {
        match (&self.far, self.sends()) {
            (Err(_), _) => "not known",
            (Ok(Some((session, last, _))), Some(sends)) if *session == sends.session && number <= *last => {
                "applied, not acknowledged yet"
            }
            (_, Some(sends)) if sends.held.is_some() => "parked",
            _ => "pending",
        }
    }

    fn text(&self, now: u64) -> String {
        let mut text = format!("{} -> {}", named(&self.from), named(&self.to));
        let sends = match &self.near {
            Err(error) => {
                text += &format!("   the sender can't be asked: {error}\n");
                None
            }
            Ok(_) => self.sends(),
        };
        if let Some(sends) = sends {
            text += &format!("   session {}   {}", sends.session, state(sends));
            if sends.attempts > 0 {
                text += &format!("   tried {} times, next {}", sends.attempts, next_try(sends));
            }
            if sends.open > 0 {
                text += &format!("   {} tentative", sends.open);
            }
            text += &format!(
                "\n  sender    sent {}   known to be applied {}   outstanding {}\n",
                sends.next - 1,
                sends.acked,
                outstanding(sends)
            );
            if let Some((by, since)) = &sends.held {
                text += &format!("  parked    {}   by {by}\n", timestamp(*since));
            }
        } else if self.near.is_ok() {
            text += "   no session is open\n";
        }
        text += &match &self.far {
            Err(error) => format!("  receiver  can't be asked: {error}\n"),
            Ok(None) => "  receiver  knows of no session\n".to_owned(),
            Ok(Some((session, last, version))) => {
                format!("  receiver  session {session}   applied {last}   its version then v{version}\n")
            }
        };
        let session = sends.map_or(0, |sends| sends.session);
        for message in self.messages() {
            text += &format!(
                "  msg {session}.{}   {}   {}   {}   {}\n",
                message.number,
                message.body.action(),
                self.state_of(message.number),
                output::span(now.saturating_sub(message.wall_ms)),
                brings(&message.body)
            );
        }
        let shown = self.messages().len() as u64;
        let hidden = sends.map_or(0, outstanding).saturating_sub(shown);
        if hidden > 0 {
            text += &format!("  and {hidden} messages more\n");
        }
        for parked in self.parked() {
            text += &format!(
                "  msg {}.{}   {}   refused, parked   {}   {}   {}\n",
                parked.session,
                parked.number,
                parked.body.action(),
                output::span(now.saturating_sub(parked.wall_ms)),
                brings(&parked.body),
                parked.reason
            );
        }
        let hidden = sends
            .map_or(0, |sends| sends.parked as usize)
            .saturating_sub(self.parked().len());
        if hidden > 0 {
            text += &format!("  and {hidden} more that were refused and are parked\n");
        }
        let refused = self.rejections();
        if !refused.is_empty() {
            text += &rejections_text("  refused, the latest", &refused, false).replace("\n  msg", "\n    msg");
        }
        text += &match &self.verdict {
            None => "  compared  not known: one end can't be asked\n".to_owned(),
            Some(Verdict::Agree) => "  compared  both ends agree\n".to_owned(),
            Some(Verdict::UnderWay) => "  compared  both ends agree, with messages or answers under way\n".to_owned(),
            Some(Verdict::Moving) => "  compared  too much is going on to tell: look again\n".to_owned(),
            Some(Verdict::Disagree(what)) => what
                .iter()
                .map(|what| format!("  DISAGREE  {what}\n"))
                .collect::<String>(),
        };
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn json(&self) -> Value {
        let outstanding: Vec<Value> = self
            .messages()
            .iter()
            .map(|message| {
                json!({"number": message.number, "action": message.body.action(), "state": self.state_of(message.number),
                       "recorded": timestamp(message.wall_ms), "depth": message.depth, "brings": brings(&message.body)})
            })
            .collect();
        let had = self.far.as_ref().ok().and_then(Option::as_ref);
        let parked: Vec<Value> = self
            .parked()
            .iter()
            .map(|parked| {
                json!({"message": format!("{}.{}", parked.session, parked.number), "action": parked.body.action(),
                       "code": parked.code.to_string(), "reason": parked.reason, "at": timestamp(parked.wall_ms),
                       "brings": brings(&parked.body)})
            })
            .collect();
        json!({
            "from": named(&self.from), "to": named(&self.to), "sender": self.sends().map(sends_json),
            "receiver": had.map(|(session, last, version)| json!({"session": session, "applied": last, "version": version})),
            "senderError": self.near.as_ref().err().map(ToString::to_string),
            "receiverError": self.far.as_ref().err().map(ToString::to_string),
            "messages": outstanding, "parked": parked, "rejections": self.rejections().into_iter().map(rejection_json).collect::<Vec<_>>(),
            "verdict": self.verdict.as_ref().map_or("not known", Verdict::word),
            "disagreements": match &self.verdict { Some(Verdict::Disagree(what)) => what.clone(), _ => Vec::new() },
        })
    }
}

/// What a message brings, short enough for a line.
fn brings(body: &Body) -> String {
    let text = match body {
        Body::Put { document } => String::from_utf8_lossy(document).into_owned(),
        Body::Merge { patch } => String::from_utf8_lossy(patch).into_owned(),
        Body::Call { params, .. } => String::from_utf8_lossy(params).into_owned(),
        Body::Attach { relation, .. } | Body::Leave { relation } => relation.clone(),
        Body::Detach { field } => field.clone(),
        Body::Reserve {
            operation,
            resource,
            amount,
            ..
        } => format!("operation {operation}: {amount} of {resource}"),
        Body::Confirm { operation } | Body::Cancel { operation } => format!("operation {operation}"),
        Body::Decided { operation, state, .. } => format!("operation {operation}: {state}"),
        Body::Refused {
            session,
            number,
            reason,
            ..
        } => format!("msg {session}.{number}: {reason}"),
        Body::Cancelled { by } => format!("taken back by {by}"),
        Body::Delete => String::new(),
    };
    let mut short: String = text.chars().take(BRINGS_CHARS_MAX).collect();
    if short.len() < text.len() {
        short += "...";
    }
    short
}

async fn show_pair(env: &Environment, entity: &Position, partner: &Position) -> Ended {
    let client = env.connect().await?;
    let (there, back) = tokio::join!(
        Direction::ask(&client, entity, partner),
        Direction::ask(&client, partner, entity)
    );
    let both = [there, back];
    client.close().await;
    let is = |wanted: fn(&Option<Verdict>) -> bool| both.iter().any(|direction| wanted(&direction.verdict));
    let (differs, unknown) = (
        is(|verdict| matches!(verdict, Some(Verdict::Disagree(_)))),
        is(Option::is_none),
    );
    if env.format().is_json() {
        let object = json!({"schema": "isx.activity.show/1", "entity": named(entity), "partner": named(partner),
                            "agree": if differs { Some(false) } else { (!unknown).then_some(true) },
                            "directions": both.iter().map(Direction::json).collect::<Vec<_>>()});
        env.print_json(&object)?;
    } else {
        let now = now_ms();
        let text: Vec<String> = both.iter().map(|direction| direction.text(now)).collect();
        env.print(&text.join("\n"))?;
    }
    Ok(match (differs, unknown) {
        (true, _) => exit::REFUSED,
        (false, true) => exit::UNREACHABLE,
        (false, false) => exit::OK,
    })
}

/// Messages of one direction that are shown.
const MESSAGES_SHOWN: u32 = 100;
/// Of what a message brings. Unit: characters.
const BRINGS_CHARS_MAX: usize = 80;

// --- changes ---------------------------------------------------------------------------------------------------

/// The pair as its sender has it, or that there is none.
async fn pair_of(client: &Client, act: &Act) -> Result<(SendView, ActivityView), CtlError> {
    let (from, to) = (act.entity.position(), act.partner.position());
    let view = pairs::view(client, &from, Some(&to), None, LIST_ITEMS_MAX).await?;
    let sends = view.pairs.first().and_then(|pair| pair.sends.clone());
    let none = || {
        let text = format!("{} has no session open with {}", named(&from), named(&to));
        CtlError::new(exit::NOT_FOUND, text).next(format!("isxctl activity show {}", typed(&from)))
    };
    Ok((sends.ok_or_else(none)?, view))
}

async fn change(env: &Environment, act: &Act, verb: &'static str, action: ActivityAction) -> Ended {
    let client = env.connect().await?;
    let done = async {
        let (sends, _) = pair_of(&client, act).await?;
        if act.dry_run {
            return Ok((sends, None));
        }
        let id = write(&client, act, action).await?;
        // A session that ended in the meantime is none.
        let after = pair_of(&client, act).await.map_or(sends, |(sends, _)| sends);
        Ok::<_, CtlError>((after, Some(id)))
    };
    let done = done.await;
    client.close().await;
    let (sends, id) = done?;
    print_change(env, act, verb, None, &sends, id)
}

/// Tries again at once; one message that was refused, or all of them, are sent once more.
async fn retry(env: &Environment, act: &Act, message: Option<MessageName>) -> Ended {
    let Some(name) = message else {
        return change(env, act, "retry", ActivityAction::Retry).await;
    };
    let client = env.connect().await?;
    let done = async {
        let (sends, view) = pair_of(&client, act).await?;
        let (number, session) = (name.number, name.session.unwrap_or(sends.session));
        let known = |parked: &&ParkedView| (parked.session, parked.number) == (session, number);
        let Some(parked) = view.parked.iter().find(known) else {
            let (from, to) = (act.entity.position(), act.partner.position());
            let (one, other) = (named(&from), named(&to));
            let text = format!("{one} has no message {session}.{number} that {other} refused and that is parked");
            let see = format!("isxctl activity show {} {}", typed(&from), typed(&to));
            return Err(CtlError::new(exit::NOT_FOUND, text).next(see));
        };
        let taken = Taken::of_parked(parked, ("sent again", "would be sent again"));
        let id = match act.dry_run {
            true => None,
            false => Some(write(&client, act, ActivityAction::SendAgain { session, number }).await?),
        };
        Ok((sends, taken, id))
    };
    let done: Result<_, CtlError> = done.await;
    client.close().await;
    let (sends, taken, id) = done?;
    print_change(env, act, "retry", Some(taken), &sends, id)
}

pub(super) async fn cancel(env: &Environment, act: &Act, name: MessageName, confirm: Option<&str>) -> Ended {
    take_back(env, act, Some(name), confirm).await
}

/// One message that something is done about.
struct Taken {
    session: u64,
    number: u64,
    body: Option<Body>,
    /// What is done with it, and what would be.
    words: (&'static str, &'static str),
}

impl Taken {
    fn of_parked(parked: &ParkedView, words: (&'static str, &'static str)) -> Self {
        Self {
            session: parked.session,
            number: parked.number,
            body: Some(parked.body.clone()),
            words,
        }
    }
}

/// Takes a message back, or gives one up that was refused: the one of this name, or the first.
async fn take_back(env: &Environment, act: &Act, name: Option<MessageName>, confirm: Option<&str>) -> Ended {
    let verb = if name.is_some() { "cancel" } else { "skip" };
    if act.because.is_empty() {
        let text = format!("{verb} takes a message back for ever: those who come later want a reason");
        return Err(CtlError::new(exit::USAGE, text).next("the same with --because TEXT"));
    }
    let client = env.connect().await?;
    let done = async {
        let (sends, view) = pair_of(&client, act).await?;
        let (from, to) = (act.entity.position(), act.partner.position());
        let is_open = |name: MessageName| name.session.is_none_or(|session| session == sends.session);
        let is_it = |parked: &&ParkedView| match name {
            None => true,
            // A number alone is of the open session.
            Some(name) => (parked.session, parked.number) == (name.session.unwrap_or(sends.session), name.number),
        };
        if let Some(parked) = view.parked.iter().find(is_it) {
            let taken = Taken::of_parked(parked, ("given up", "would be given up"));
            if act.dry_run {
                return Ok((sends, taken, None));
            }
            let (session, number) = (parked.session, parked.number);
            let what = format!(
                "give up msg {session}.{number} ({}) from {} to {}",
                parked.body.action(),
                named(&from),
                named(&to)
            );
            severe(env, &what, &named(&from), confirm)?;
            let id = write(&client, act, ActivityAction::Drop { session, number }).await?;
            return Ok((sends, taken, Some(id)));
        }
        let number = name.map_or(sends.acked + 1, |name| name.number);
        let see = format!("isxctl activity show {} {}", typed(&from), typed(&to));
        if number <= sends.acked || number >= sends.next || !name.is_none_or(is_open) {
            let text = format!(
                "{} has no message {} outstanding for {}",
                named(&from),
                name.map_or_else(|| number.to_string(), |name| name.to_string()),
                named(&to)
            );
            return Err(CtlError::new(exit::NOT_FOUND, text).next(see));
        }
        // Of the first one it is known there whether it has been applied; if nobody can say, the sender decides.
        let there = pairs::view(&client, &to, Some(&from), None, 1).await.ok();
        let had = there.and_then(|view| view.pairs.first().and_then(|pair| pair.had));
        if had.is_some_and(|(session, last, _)| session == sends.session && number <= last) {
            let text = format!(
                "{} has applied message {number} already: it can't be taken back",
                named(&to)
            );
            return Err(CtlError::new(exit::CONFLICT, text).next(see));
        }
        let message = view.messages.into_iter().find(|message| message.number == number);
        let taken = Taken {
            session: sends.session,
            number,
            body: message.map(|message| message.body),
            words: ("taken back", "would be taken back"),
        };
        if act.dry_run {
            return Ok((sends, taken, None));
        }
        let what = taken.body.as_ref().map_or("a message", Body::action);
        let what = format!(
            "take back msg {}.{number} ({what}) from {} to {}",
            sends.session,
            named(&from),
            named(&to)
        );
        severe(env, &what, &named(&from), confirm)?;
        // By its number also where it is the first: another may be the first by the time this arrives.
        let id = write(&client, act, ActivityAction::Cancel { number }).await?;
        Ok((sends, taken, Some(id)))
    };
    let done = done.await;
    client.close().await;
    let (sends, taken, id) = done?;
    print_change(env, act, verb, Some(taken), &sends, id)
}

async fn write(client: &Client, act: &Act, action: ActivityAction) -> Result<RequestId, CtlError> {
    let id = act.request_id.unwrap_or_else(RequestId::random);
    journal::note(&act.entity.service, &act.entity.key, id);
    let change = Change::Activity {
        with: act.partner.position(),
        action,
        by: String::new(),
        because: act.because.clone(),
    };
    client
        .write(Write {
            service: act.entity.service.clone(),
            key: act.entity.key.clone(),
            id,
            condition: Condition::Always,
            change,
        })
        .await?;
    Ok(id)
}

fn print_change(
    env: &Environment,
    act: &Act,
    verb: &'static str,
    taken: Option<Taken>,
    sends: &SendView,
    id: Option<RequestId>,
) -> Ended {
    let (from, to) = (named(&act.entity.position()), named(&act.partner.position()));
    if env.format().is_json() {
        let mut object = json!({"schema": "isx.activity.change/1", "verb": verb, "entity": from, "partner": to,
                                "dryRun": act.dry_run, "because": act.because,
                                "requestId": id.map(|id| id.to_string())});
        match &taken {
            Some(taken) => {
                object["message"] = json!(format!("{}.{}", taken.session, taken.number));
                object["action"] = json!(taken.body.as_ref().map(Body::action));
            }
            None => extend(&mut object, sends_json(sends)),
        }
        return env.print_json(&object);
    }
    let pair = || format!("{} {}", typed(&act.entity.position()), typed(&act.partner.position()));
    let request = id.map_or_else(String::new, |id| format!("   request {id}"));
    match &taken {
        Some(taken) => {
            let what = taken
                .body
                .as_ref()
                .map_or_else(String::new, |body| format!("   {}   {}", body.action(), brings(body)));
            let (done, would) = taken.words;
            let word = if act.dry_run { would } else { done };
            let (session, number) = (taken.session, taken.number);
            let line = format!("{from} -> {to}   msg {session}.{number}{what}   {word}{request}");
            env.print(&format!("{line}\n"))?;
        }
        None => {
            let state = state(sends);
            let count = outstanding(sends);
            env.print(&format!("{from} -> {to}   {state}   {count} outstanding{request}\n"))?;
        }
    }
    if act.dry_run {
        env.say("dry run: nothing changed");
    } else if verb == "park" {
        env.say(&format!("go on with  isxctl activity unpark {}", pair()));
    } else {
        env.say(&format!("follow      isxctl activity show {}", pair()));
    }
    Ok(exit::OK)
}

// --- audit -----------------------------------------------------------------------------------------------------

/// So many of a stream of items, each as likely as the others.
struct Sample<T> {
    size: Option<usize>,
    keys: RandomState,
    kept: BTreeSet<(u64, T)>,
}

impl<T: Ord> Sample<T> {
    fn new(size: Option<usize>) -> Self {
        Self {
            size,
            keys: RandomState::new(),
            kept: BTreeSet::new(),
        }
    }

    /// Keeps those whose names have the smallest hashes: an item that comes twice counts once.
    fn offer(&mut self, item: T, name: &[u8]) {
        // Keyed at random: otherwise everybody would look at the same pairs every time.
        self.kept.insert((self.keys.hash_one(name), item));
        if self.size.is_some_and(|size| self.kept.len() > size) {
            self.kept.pop_last();
        }
    }

    fn into_items(self) -> impl Iterator<Item = T> {
        self.kept.into_iter().map(|(_, item)| item)
    }
}

type Pair = (Position, Position);

/// What an audit found.
#[derive(Default)]
struct Found {
    agree: usize,
    under_way: usize,
    moving: usize,
    /// Holders whose ledger was compared with what its requesters say, and these.
    holders: usize,
    requesters: usize,
    disagree: BTreeMap<Pair, Vec<String>>,
    unknown: BTreeMap<Pair, String>,
}

impl Found {
    fn note(&mut self, pair: Pair, verdict: Result<Verdict, ClientError>) {
        match verdict {
            Ok(Verdict::Agree) => self.agree += 1,
            Ok(Verdict::UnderWay) => self.under_way += 1,
            Ok(Verdict::Moving) => self.moving += 1,
            Ok(Verdict::Disagree(what)) => {
                self.disagree.insert(pair, what);
            }
            Err(error) => {
                self.unknown.insert(pair, error.to_string());
            }
        }
    }

    fn note_amounts(&mut self, holder: Position, complaints: Result<amounts::Complaints, CtlError>) {
        match complaints {
            Ok(complaints) => {
                for (of, what) in complaints {
                    self.disagree.entry((of, holder.clone())).or_default().extend(what);
                }
            }
            Err(error) => {
                self.unknown.insert((holder.clone(), holder), error.message);
            }
        }
    }

    fn exit(&self) -> u8 {
        match (self.disagree.is_empty(), self.unknown.is_empty()) {
            (false, _) => exit::REFUSED,
            (true, false) => exit::PARTLY,
            (true, true) => exit::OK,
        }
    }
}

async fn audit(env: &Environment, of: Option<&str>, sample: Option<usize>) -> Ended {
    let client = env.connect().await?;
    let found = audited(env, &client, of, sample).await;
    client.close().await;
    let found = found?;
    let pairs = found.agree + found.under_way + found.moving + found.disagree.len() + found.unknown.len();
    let mut listing = Listing::new(
        "isx.activity.audit/1",
        &["ENTITY:entity", "PARTNER:partner", "RESULT:result", "WHAT:what"],
    );
    listing.about = vec![
        ("pairs", json!(pairs)),
        ("agree", json!(found.agree)),
        ("underWay", json!(found.under_way)),
        ("moving", json!(found.moving)),
        ("disagree", json!(found.disagree.len())),
        ("notKnown", json!(found.unknown.len())),
        ("holders", json!(found.holders)),
        ("requesters", json!(found.requesters)),
        ("sampled", json!(sample.is_some())),
    ];
    let wrong = found
        .disagree
        .iter()
        .flat_map(|(pair, what)| what.iter().map(move |what| (pair, "disagree", what)));
    let unknown = found.unknown.iter().map(|(pair, why)| (pair, "not known", why));
    for ((from, to), result, what) in wrong.chain(unknown) {
        let row = vec![named(from), named(to), result.to_owned(), what.clone()];
        let item = json!({"entity": named(from), "partner": named(to), "result": result, "what": what});
        listing.push(row, item);
    }
    if let Some((from, to)) = found.disagree.keys().next() {
        listing
            .next
            .push(format!("isxctl activity show {} {}", typed(from), typed(to)));
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if !listing.rows.is_empty() || !is_table {
        env.print_listing(&listing)?;
    }
    let word = if sample.is_some() {
        "drawn and compared"
    } else {
        "compared"
    };
    let mut text = format!(
        "{pairs} pairs {word}: {} agree, {} with messages under way, {} disagree",
        found.agree,
        found.under_way,
        found.disagree.len()
    );
    if found.moving > 0 {
        text += &format!(", {} too busy to tell", found.moving);
    }
    if !found.unknown.is_empty() {
        text += &format!(", {} can't be asked", found.unknown.len());
    }
    if found.holders > 0 {
        text += &format!(
            "\namounts set aside compared at holders and requesters: {} and {}",
            found.holders, found.requesters
        );
    }
    if is_table {
        env.print(&format!("{text}\n"))?;
    }
    for next in &listing.next {
        env.say(&format!("next  {next}"));
    }
    Ok(found.exit())
}

/// Each direction of a pair is found by its sender's row and by its receiver's: one that has either is compared.
async fn audited(
    env: &Environment,
    client: &Client,
    of: Option<&str>,
    sample: Option<usize>,
) -> Result<Found, CtlError> {
    let side = of.map(|service| Side::Service(service.to_owned()));
    let own: BTreeSet<String> = ranges(client, side.as_ref())?
        .into_iter()
        .map(|(from, _)| from.parts().0.to_owned())
        .collect();
    let bar = env.progress(None, "{spinner} {msg}");
    let mut drawn: Sample<Pair> = Sample::new(sample);
    // By either end: holder, then requester.
    let mut tentative: Sample<Pair> = Sample::new(sample);
    // What is sent to the service is told by its senders, which may be any.
    for (from, to) in ranges(client, None)? {
        bar.set_message(format!("reading what {} sends", from.parts().0));
        let mut take = |item: ActivityItem| {
            let is_wanted = |position: &Position| of.is_none_or(|of| position.parts().0 == of);
            if is_wanted(&item.from) || is_wanted(&item.to) {
                let name = [&item.from.0[..], &[0], &item.to.0[..]].concat();
                if item.sends.open > 0 {
                    let name = [&item.to.0[..], &[0], &item.from.0[..]].concat();
                    tentative.offer((item.to.clone(), item.from.clone()), &name);
                }
                drawn.offer((item.from, item.to), &name);
            }
            true
        };
        walk(client, from.clone(), &to, ActivityFilter::All, &mut take).await?;
        for item in pages(client, from, to).await?.items {
            let is_wanted = |position: &Position| of.is_none_or(|of| position.parts().0 == of);
            if is_wanted(&item.holder) || is_wanted(&item.requester) {
                let name = [&item.holder.0[..], &[0], &item.requester.0[..]].concat();
                tentative.offer((item.holder, item.requester), &name);
            }
        }
    }
    // A receiver that remembers what its sender has forgotten is found at the receiver only.
    let mut receivers: Sample<Position> = Sample::new(sample);
    for service in own {
        bar.set_message(format!("reading the entities of {service}"));
        let mut query = ListQuery {
            service: service.clone(),
            ..ListQuery::default()
        };
        loop {
            let page = client.list(&query).await?;
            for item in page.items {
                let position = Position::new(&service, &item.key);
                let name = position.0.clone();
                receivers.offer(position, &name);
            }
            match page.next {
                Some(next) => query.resume = Some(next),
                None => break,
            }
        }
    }
    let mut found = Found::default();
    let mut pairs: BTreeSet<Pair> = drawn.into_items().collect();
    let mut asked = JoinSet::new();
    let mut receivers = receivers.into_items();
    loop {
        while asked.len() < AT_ONCE
            && let Some(receiver) = receivers.next()
        {
            let client = client.clone();
            asked.spawn(async move {
                let view = whole_view(&client, &receiver).await;
                (receiver, view)
            });
        }
        let Some(answered) = asked.join_next().await else {
            break;
        };
        let (receiver, view) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        match view {
            Ok(view) => {
                let had = |pair: PartnerView| pair.had.map(|_| (pair.with, receiver.clone()));
                pairs.extend(view.pairs.into_iter().filter_map(had));
            }
            Err(error) => {
                found.unknown.insert((receiver.clone(), receiver), error.to_string());
            }
        }
    }
    bar.finish_and_clear();
    let bar = env.progress(Some(pairs.len() as u64), "{bar:30} {pos} of {len} pairs, {eta} left");
    let mut pairs = pairs.into_iter();
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some(pair) = pairs.next()
        {
            let client = client.clone();
            asked.spawn(async move {
                let verdict = pairs::compare(&client, &pair.0, &pair.1).await;
                (pair, verdict)
            });
        }
        let Some(answered) = asked.join_next().await else {
            break;
        };
        let (pair, verdict) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        found.note(pair, verdict);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut holders: BTreeMap<Position, BTreeSet<Position>> = BTreeMap::new();
    for (holder, requester) in tentative.into_items() {
        holders.entry(holder).or_default().insert(requester);
    }
    let bar = env.progress(
        Some(holders.len() as u64),
        "{bar:30} {pos} of {len} ledgers, {eta} left",
    );
    for (holder, requesters) in holders {
        found.holders += 1;
        found.requesters += requesters.len();
        let complaints = amounts::compare(client, &holder, &requesters).await;
        found.note_amounts(holder, complaints);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(found)
}

/// Entities or pairs that are asked for at once.
const AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn sends(acked: u64, next: u64) -> SendView {
        SendView {
            session: 1,
            next,
            acked,
            closing: false,
            open: 0,
            parked: 0,
            refused: None,
            held: None,
            oldest_ms: (next > acked + 1).then_some(10_000),
            attempts: 0,
            retry_in_ms: None,
        }
    }

    fn item(sends: SendView) -> ActivityItem {
        ActivityItem {
            from: Position::new("campaign", "c"),
            to: Position::new("profile", "p"),
            sends,
        }
    }

    #[test]
    fn the_state_that_tells_most_is_shown() {
        assert_eq!(state(&sends(3, 4)), "idle");
        let mut pair = sends(3, 5);
        pair.open = 1;
        assert_eq!(state(&pair), "pending");
        pair.held = Some(("ana: why".to_owned(), 0));
        assert_eq!((state(&pair), reason(&pair).as_str()), ("parked", "ana: why"));
        assert!(Standing::Tentative.is(&pair) && Standing::Pending.is(&pair) && !Standing::Closed.is(&pair));
    }

    #[test]
    fn a_listing_is_cut_down() {
        let all = Wanted {
            of: None,
            with: None,
            states: Vec::new(),
            older_than: None,
            limit: 9,
        };
        let (idle, pending) = (item(sends(3, 4)), item(sends(3, 5)));
        assert!(all.wants(&idle, 0));
        let old = Wanted {
            older_than: Some(Duration::from_secs(5)),
            ..all
        };
        assert!(!old.wants(&idle, 99_000) && !old.wants(&pending, 14_999) && old.wants(&pending, 15_000));
        let to = |with: &str| Wanted {
            with: with.parse().ok(),
            older_than: None,
            of: None,
            states: vec![Standing::Pending],
            limit: 9,
        };
        assert!(to("profile").wants(&pending, 0) && to("profile/p").wants(&pending, 0));
        assert!(!to("profile/q").wants(&pending, 0) && !to("campaign").wants(&pending, 0));
        assert!(!to("profile").wants(&idle, 0));
    }

    #[test]
    fn a_sample_is_as_large_as_wanted_and_counts_nothing_twice() {
        let drawn = |size| {
            let mut sample = Sample::new(size);
            for name in (0..1_000_u32).chain(0..1_000) {
                sample.offer(name, &name.to_be_bytes());
            }
            sample.into_items().collect::<Vec<u32>>()
        };
        assert_eq!(drawn(Some(50)).len(), 50);
        assert_eq!(drawn(None).len(), 1_000);
        // Over the whole of it, not only its beginning.
        assert!(drawn(Some(200)).iter().any(|&name| name > 500));
    }
}
