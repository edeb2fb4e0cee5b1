//! What entities have with one another, for operators: messages outstanding, both ends of a pair compared, and what one
//! can do about a message that does not get on.
mod audit;
mod changes;
mod list;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use audit::audit;
pub(super) use changes::cancel;
use changes::{change, retry, take_back};
use list::{Wanted, list};
use show::{show_entity, show_pair};

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

#[cfg(test)]
mod tests;
