//! Children of combined objects: what became of the messages to them, reading a parent with them, deleting it.
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::output::{self, Format, timestamp};
use super::{Ended, Environment};
use crate::client::{Client, ClientError, Delivery};
use crate::protocol::activity::Sent;
use crate::protocol::key::Position;
use crate::protocol::request::{Entity, Request, Response, Written};
use crate::protocol::schema::{OnDelete, Schema};

/// What is read along with an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// Its children.
    Children,
}

/// What to do about an entity's children when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    /// Show what would happen to them, delete nothing
    Plan,
    /// Delete the entity, and with it what its schema says
    Apply,
}

/// How long a write waits for its messages.
#[derive(Debug, Clone, Default, Args)]
pub struct Waiting {
    /// Wait until the children have taken it, or the time limit
    #[arg(
        long,
        value_enum,
        value_name = "FOR",
        default_value = "none",
        hide_possible_values = false
    )]
    wait: WaitFor,
    /// End with 10 when a message is still pending or was refused
    #[arg(long)]
    fail_on_pending: bool,
}

/// Whom a write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WaitFor {
    /// Nobody: what is committed is enough
    #[default]
    None,
    /// Everybody who was sent something
    Children,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has asked.
    Recorded,
    /// Not applied yet.
    Pending,
    /// Applied; the receiver's version now, if it is there.
    Applied(Option<u64>),
    /// Refused, and why.
    Rejected(String),
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            State::Recorded => "recorded",
            State::Pending => "pending",
            State::Applied(_) => "applied",
            State::Rejected(_) => "rejected",
        }
    }

    fn detail(&self) -> String {
        match self {
            State::Applied(Some(version)) => format!("v{version}"),
            State::Rejected(reason) => reason.clone(),
            _ => String::new(),
        }
    }
}

/// What became of the messages of a write, after waiting for as long as is wanted.
pub(super) async fn states(
    client: &Client,
    service: &str,
    written: &Written,
    waiting: &Waiting,
    limit: Duration,
) -> Vec<State> {
    if waiting.wait == WaitFor::None {
        return vec![State::Recorded; written.sent.len()];
    }
    let sender = Position::new(service, &written.key);
    let mut states = vec![State::Pending; written.sent.len()];
    let deadline = Instant::now() + limit;
    loop {
        for (state, sent) in states.iter_mut().zip(&written.sent) {
            if *state == State::Pending && Instant::now() < deadline {
                // A node that can't say now may say later.
                *state = state_of(client, &sender, sent).await.unwrap_or(State::Pending);
            }
        }
        if !states.contains(&State::Pending) || Instant::now() >= deadline {
            return states;
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

const POLL_EVERY: Duration = Duration::from_millis(30);

async fn state_of(client: &Client, sender: &Position, sent: &Sent) -> Result<State, ClientError> {
    match client.delivery(sender, sent).await? {
        Delivery::Pending => Ok(State::Pending),
        Delivery::Refused(reason) => Ok(State::Rejected(reason)),
        Delivery::Applied => {
            let (service, key) = sent.to.parts();
            let entity = client.get(service, key.unwrap_or("")).await?;
            Ok(State::Applied(entity.map(|entity| entity.version)))
        }
    }
}

/// The exit code that the states mean.
pub(super) fn ended(states: &[State], waiting: &Waiting) -> u8 {
    let is_open = |state: &State| matches!(state, State::Pending | State::Rejected(_));
    if waiting.fail_on_pending && states.iter().any(is_open) {
        exit::PARTLY
    } else {
        exit::OK
    }
}

/// The messages of a write, for a program.
pub(super) fn sent_json(sent: &[Sent], states: &[State]) -> Vec<Value> {
    let recorded = State::Recorded;
    let one = |(at, sent): (usize, &Sent)| {
        let state = states.get(at).unwrap_or(&recorded);
        let (service, key) = sent.to.parts();
        let message = format!("{}.{}", sent.session, sent.number);
        let mut item = json!({"service": service, "key": key, "message": message, "action": sent.action,
                              "state": state.word()});
        match state {
            State::Applied(Some(version)) => item["version"] = json!(version),
            State::Rejected(reason) => item["reason"] = json!(reason),
            _ => {}
        }
        item
    };
    sent.iter().enumerate().map(one).collect()
}

/// The messages of a write, for a person: children first.
pub(super) fn sent_text(sent: &[Sent], states: &[State]) -> String {
    let recorded = State::Recorded;
    let mut text = String::new();
    let width = sent.iter().map(|sent| name(sent).chars().count()).max().unwrap_or(0);
    let mut part = |heading: String, of: &dyn Fn(&Sent) -> bool, shows_action: bool| {
        if !sent.iter().any(of) {
            return;
        }
        text += &format!("{heading}\n");
        for (at, sent) in sent.iter().enumerate().filter(|(_, sent)| of(sent)) {
            let state = states.get(at).unwrap_or(&recorded);
            let message = format!("{}.{}", sent.session, sent.number);
            let action = if shows_action {
                format!("{}   ", sent.action)
            } else {
                String::new()
            };
            let line = format!(
                "  {:width$}   msg {message}   {action}{}   {}",
                name(sent),
                state.word(),
                state.detail()
            );
            text += line.trim_end();
            text.push('\n');
        }
    };
    let is_child = |sent: &Sent| sent.action == "put";
    let mut services: Vec<&str> = sent.iter().filter(|s| is_child(s)).map(|s| s.to.parts().0).collect();
    services.dedup();
    for service in services {
        let is_its = |sent: &Sent| is_child(sent) && sent.to.parts().0 == service;
        let count = sent.iter().filter(|sent| is_its(sent)).count();
        part(format!("children {count} sent to {service}"), &is_its, false);
    }
    let others = sent.iter().filter(|sent| !is_child(sent)).count();
    part(format!("messages {others} sent"), &|sent| !is_child(sent), true);
    text
}

fn name(sent: &Sent) -> String {
    let (service, key) = sent.to.parts();
    format!("{service}/{}", key.unwrap_or(""))
}

/// `{"reach": 13}`.
pub(super) fn aggregates_json(entity: &Entity) -> Value {
    let sums = entity.aggregates.iter().map(|(name, sum)| (name.clone(), json!(sum)));
    Value::Object(sums.collect())
}

/// `   reach 13   profiles_active 3`.
pub(super) fn aggregates_text(entity: &Entity) -> String {
    entity
        .aggregates
        .iter()
        .map(|(name, sum)| format!("   {name} {sum}"))
        .collect()
}

/// The newest schema of a service, if it has one.
pub(super) async fn schema_of(client: &Client, service: &str) -> Result<Option<Schema>, CtlError> {
    let records = super::schema::records(client, None).await?;
    let text = records.into_iter().find(|record| record.schema.service == service);
    let parse = |text: String| Schema::parse(&text).map_err(|error| CtlError::new(exit::SKEW, error.to_string()));
    text.map(|record| parse(record.schema.text)).transpose()
}

/// All children of an entity in one relation: key, and whether the child has said that it is one.
async fn children_of(
    client: &Client,
    service: &str,
    key: &str,
    relation: &str,
) -> Result<Vec<(String, bool)>, CtlError> {
    let mut all: Vec<(String, bool)> = Vec::new();
    loop {
        let request = Request::Children {
            service: service.to_owned(),
            key: key.to_owned(),
            relation: relation.to_owned(),
            after: all.last().map_or_else(String::new, |(key, _)| key.clone()),
        };
        let Response::Children(page) = client.request(request).await? else {
            return Err(CtlError::new(
                exit::UNEXPECTED,
                "a node gave an answer that does not fit the question",
            ));
        };
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page.into_iter().map(|child| (child.key, child.attached)));
    }
}

/// Entities with their children, each as one object such as one puts.
pub(super) async fn get(env: &Environment, service: &str, keys: &[String]) -> Ended {
    let client = env.connect().await?;
    let Some(schema) = schema_of(&client, service)
        .await?
        .filter(|schema| !schema.children.is_empty())
    else {
        let text = format!("the schema of {service} has no children");
        return Err(CtlError::new(exit::USAGE, text).next(format!("isxctl schema show {service}")));
    };
    let (mut items, mut missing) = (Vec::new(), Vec::new());
    for key in keys {
        let Some(entity) = client.get(service, key).await? else {
            missing.push(format!("{service}/{key}"));
            continue;
        };
        let mut document = String::from_utf8_lossy(&output::compact(&entity.document)).into_owned();
        let (mut told, mut pending) = (Vec::new(), Vec::new());
        for relation in &schema.children {
            let mut objects = Vec::new();
            for (child, is_attached) in children_of(&client, service, key, &relation.field).await? {
                let found = client.get(&relation.service, &child).await?;
                let Some(found) = found.filter(|_| is_attached) else {
                    pending.push(format!("{}/{child}", relation.service));
                    continue;
                };
                let text = output::compact(&found.document);
                let text = String::from_utf8_lossy(&text).into_owned();
                objects.push(join(&format!("{{{}:{}", json!(relation.key), json!(child)), &text));
            }
            told.push(format!("{} {}", relation.field, objects.len()));
            let inner = format!("{{{}:[{}]}}", json!(relation.field), objects.join(","));
            document = join(document.trim_end_matches('}'), &inner);
        }
        if !pending.is_empty() {
            told.push(format!("not there yet {}", pending.join(" ")));
        }
        env.say(&format!(
            "{service}/{key}   v{}   updated {}   {}{}",
            entity.version,
            timestamp(entity.updated_ms),
            told.join("   "),
            aggregates_text(&entity)
        ));
        let head = json!({"service": service, "key": key, "version": entity.version, "pending": pending,
                          "aggregates": aggregates_json(&entity)})
        .to_string();
        items.push((
            join(&head[..head.len() - 1], &format!("{{\"document\":{document}}}")),
            document,
        ));
    }
    client.close().await;
    let text = match env.format() {
        Format::Json => {
            let items: Vec<&str> = items.iter().map(|(item, _)| item.as_str()).collect();
            output::indent(&format!(
                r#"{{"schema":"isx.entity.combined/1","items":[{}],"absent":{}}}"#,
                items.join(","),
                json!(missing)
            ))
        }
        Format::Jsonl => items.iter().map(|(item, _)| format!("{item}\n")).collect(),
        Format::Plain => items.iter().map(|(_, document)| format!("{document}\n")).collect(),
        _ => items.iter().map(|(_, document)| output::indent(document)).collect(),
    };
    env.print(&text)?;
    if missing.is_empty() {
        return Ok(exit::OK);
    }
    Err(CtlError::new(
        exit::NOT_FOUND,
        format!("there is no {}", missing.join(", ")),
    ))
}

/// An object without its last brace, and the fields of another.
fn join(open: &str, other: &str) -> String {
    let inner = other.trim_start_matches('{').trim_end();
    let comma = if open.ends_with('{') || inner.starts_with('}') {
        ""
    } else {
        ","
    };
    format!("{open}{comma}{inner}")
}

/// Shows what a delete means for children, and gets consent. `Some`: nothing more is to be done.
pub(super) async fn before_delete(
    env: &Environment,
    service: &str,
    key: &str,
    cascade: Option<Cascade>,
) -> Result<Option<u8>, CtlError> {
    let Some(step) = cascade else {
        env.consent(&format!("delete {service}/{key}"))?;
        return Ok(None);
    };
    let client = env.connect().await?;
    let schema = schema_of(&client, service).await?;
    let relations = schema.map(|schema| schema.children).unwrap_or_default();
    let mut text = String::new();
    let (mut count, mut items) = (0, Vec::new());
    for relation in &relations {
        let children = children_of(&client, service, key, &relation.field).await?;
        let what = match relation.on_delete {
            OnDelete::Cascade => "deleted",
            OnDelete::Detach => "left without a parent",
            OnDelete::Refuse => "in the way: it is not deleted while it has them",
        };
        count += children.len();
        text += &format!(
            "  {} {} of {}   {what}\n",
            children.len(),
            relation.field,
            relation.service
        );
        let keys: Vec<&String> = children.iter().map(|(key, _)| key).collect();
        items.push(
            json!({"relation": relation.field, "service": relation.service, "children": keys,
                          "on_delete": relation.on_delete}),
        );
        for (child, _) in children.iter().take(SHOWN) {
            text += &format!("    {}/{child}\n", relation.service);
        }
        if children.len() > SHOWN {
            text += &format!("    and {} more\n", children.len() - SHOWN);
        }
    }
    client.close().await;
    if step == Cascade::Apply {
        env.consent(&format!("delete {service}/{key}, which has {count} children"))?;
        return Ok(None);
    }
    if env.format().is_json() {
        let plan = json!({"schema": "isx.delete.plan/1", "service": service, "key": key, "relations": items});
        return env.print_json(&plan).map(Some);
    }
    env.print(&format!("{service}/{key}   would be deleted\n{text}"))?;
    env.say(&format!(
        "nothing was changed.  to do it: isxctl entity {service} delete {key} --cascade apply"
    ));
    Ok(Some(exit::OK))
}

/// Children named in a plan.
const SHOWN: usize = 10;
