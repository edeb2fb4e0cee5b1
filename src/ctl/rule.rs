//! Rules: where copies and leaders should be, and whether they are.
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::ops::{ask, unexpected};
use super::output::Listing;
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::RequestId;
use crate::protocol::op::OpBlocker;
use crate::protocol::operator::{Order, PlacementRule, Question, RuleView, Told};
use crate::protocol::request::{Request, Response};

/// Verbs on rules.
#[derive(Debug, Clone, Subcommand)]
pub enum RuleCommand {
    /// All rules: those that were set, and those that come from the services
    List,
    /// Set a rule, or change some of what one says
    #[command(
        before_help = "Examples:\n  isxctl rule set campaign --zones 2\n  isxctl rule set eu --service campaign --prefix eu- --leader-zone eu-1"
    )]
    Set {
        /// What it says.
        #[command(flatten)]
        rule: RuleArgs,
        /// Although it can't be met as the cluster is
        #[arg(long)]
        even_if_unmet: bool,
        /// Check and show, change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Whether a rule could be met, and what it would mean; changes nothing
    Check {
        /// What it says.
        #[command(flatten)]
        rule: RuleArgs,
    },
    /// Remove a rule; what a service says holds again
    Rm {
        /// Its name
        name: String,
    },
}

/// What a rule says.
#[derive(Debug, Clone, Args)]
pub struct RuleArgs {
    /// Its name; a service's name stands for the service too
    name: String,
    /// Only shards of this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only shards within this prefix of the service's keys
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Copies of each shard; as the service says where no rule does
    #[arg(long, value_name = "COUNT")]
    copies: Option<u32>,
    /// Copies are in at least this many zones
    #[arg(long, value_name = "COUNT")]
    zones: Option<u32>,
    /// Leaders are in this zone where they can be; empty: anywhere
    #[arg(long, value_name = "ZONE")]
    leader_zone: Option<String>,
}

pub(super) async fn run(env: &Environment, command: RuleCommand) -> Ended {
    let client = env.connect().await?;
    match command {
        RuleCommand::List => {
            let (rules, _) = told(&client, Request::Question(Question::Rules)).await?;
            list(env, &rules)
        }
        RuleCommand::Check { rule } => {
            let rule = merged(&client, &rule).await?;
            check(env, &client, &rule).await
        }
        RuleCommand::Set {
            rule,
            even_if_unmet,
            dry_run,
        } => {
            let before = client.map().await?.policy.rules.get(&rule.name).cloned();
            let rule = merged(&client, &rule).await?;
            if dry_run {
                let ended = check(env, &client, &rule).await?;
                env.say("dry run: nothing was changed");
                return Ok(ended);
            }
            if before.as_ref() == Some(&rule) {
                return env.print("nothing to change\n");
            }
            env.consent(&format!("set rule {}", rule.name))?;
            let order = Order::SetRule {
                rule: rule.clone(),
                unmet: even_if_unmet,
            };
            order_it(&client, order).await.map_err(|error| {
                let consent = format!("isxctl rule set {} ... --even-if-unmet", rule.name);
                match error.blockers.is_empty() {
                    true => error,
                    false => error.next(consent),
                }
            })?;
            let mut text = String::new();
            for (row, old) in words(&rule).iter().zip(before.as_ref().map_or(none(), words)) {
                if row.1 != old.1 {
                    text += &format!("{} {}  {} -> {}\n", rule.name, row.0, old.1, row.1);
                }
            }
            env.print(&text)
        }
        RuleCommand::Rm { name } => {
            env.consent(&format!("remove rule {name}"))?;
            order_it(&client, Order::RemoveRule(name.clone())).await?;
            env.print(&format!("rule {name} is removed\n"))
        }
    }
}

async fn order_it(client: &Client, order: Order) -> Result<Response, CtlError> {
    let id = RequestId::random();
    ask(client, Request::Order { order, id }).await
}

async fn told(client: &Client, request: Request) -> Result<(Vec<RuleView>, Vec<OpBlocker>), CtlError> {
    match ask(client, request).await? {
        Response::Told(told) => match *told {
            Told::Rules { rules, blockers } => Ok((rules, blockers)),
            _ => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

/// The rule as it is, with what the arguments change.
async fn merged(client: &Client, args: &RuleArgs) -> Result<PlacementRule, CtlError> {
    let map = client.map().await?;
    let is_service = map.services.iter().any(|service| service.name == args.name);
    let mut rule = map.policy.rules.get(&args.name).cloned().unwrap_or(PlacementRule {
        name: args.name.clone(),
        service: is_service.then(|| args.name.clone()),
        zones: 1,
        ..PlacementRule::default()
    });
    let some = |text: &Option<String>, otherwise: Option<String>| match text {
        None => otherwise,
        Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
    };
    rule.service = some(&args.service, rule.service);
    rule.prefix = some(&args.prefix, rule.prefix);
    rule.leader_zone = some(&args.leader_zone, rule.leader_zone);
    rule.replicas = args.copies.or(rule.replicas);
    rule.zones = args.zones.unwrap_or(rule.zones);
    Ok(rule)
}

fn words(rule: &PlacementRule) -> Vec<(&'static str, String)> {
    let number = |n: Option<u32>| n.map_or_else(|| "as the service says".to_owned(), |n| n.to_string());
    vec![
        ("scope", rule.scope()),
        ("copies", number(rule.replicas)),
        ("zones", rule.zones.to_string()),
        (
            "leader-zone",
            rule.leader_zone.clone().unwrap_or_else(|| "-".to_owned()),
        ),
    ]
}

fn none() -> Vec<(&'static str, String)> {
    ["scope", "copies", "zones", "leader-zone"]
        .map(|name| (name, "-".to_owned()))
        .to_vec()
}

async fn check(env: &Environment, client: &Client, rule: &PlacementRule) -> Ended {
    let (rules, blockers) = told(client, Request::Question(Question::CheckRule(rule.clone()))).await?;
    if !blockers.is_empty() {
        let mut error = CtlError::new(
            exit::REFUSED,
            format!("rule {} can't be met; nothing was changed", rule.name),
        );
        error.next = blockers
            .iter()
            .flat_map(|b| b.next.lines().map(str::to_owned))
            .collect();
        error
            .next
            .push(format!("isxctl rule set {} ... --even-if-unmet", rule.name));
        error.blockers = blockers;
        return Err(error);
    }
    list(env, &rules)
}

fn list(env: &Environment, rules: &[RuleView]) -> Ended {
    let columns = [
        "RULE:rule",
        "SCOPE:scope",
        "SATISFIED NOW:now",
        "AFTER LOSING 1 NODE:afterNode",
        "AFTER LOSING 1 ZONE:afterZone",
        "+COPIES:copies",
        "+ZONES:zones",
        "+LEADER ZONE:leaderZone",
        "+SHARDS:shards",
        "+SOURCE:source",
    ];
    let mut listing = Listing::new("isx.rule.list/1", &columns);
    for rule in rules {
        let source = if rule.is_set { "operator" } else { "service" };
        let verdict = |(holds, text): &(bool, String)| -> Value { json!({"holds": holds, "why": text}) };
        listing.push(
            vec![
                rule.name.clone(),
                rule.scope.clone(),
                rule.now.1.clone(),
                rule.after_node.1.clone(),
                rule.after_zone.1.clone(),
                rule.replicas.to_string(),
                rule.zones.to_string(),
                rule.leader_zone.clone().unwrap_or_else(|| "-".to_owned()),
                rule.shards.to_string(),
                source.to_owned(),
            ],
            json!({
                "rule": rule.name, "scope": rule.scope, "now": verdict(&rule.now), "afterNode": verdict(&rule.after_node),
                "afterZone": verdict(&rule.after_zone), "copies": rule.replicas, "zones": rule.zones,
                "leaderZone": rule.leader_zone, "shards": rule.shards, "source": source,
            }),
        );
    }
    env.print_listing(&listing)
}
