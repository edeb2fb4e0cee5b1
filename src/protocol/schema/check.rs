//! Whether schemas fit together: every service, field and call that one names exists in another, relations lead nowhere in
//! a circle, and no action can set off itself.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::parse::SchemaError;
use super::{Action, ChangeKind, Does, OnDelete, PROBLEMS_MAX, Schema, Taken, validate};

/// All schemas of a cluster, by service.
pub type Schemas = BTreeMap<String, Arc<Schema>>;

/// Checks all schemas together.
pub fn check_all(schemas: &Schemas) -> Result<(), SchemaError> {
    let mut problems = Vec::new();
    for schema in schemas.values() {
        relations(schema, schemas, &mut problems);
        actions(schema, schemas, &mut problems);
    }
    // What follows reads relations as they should be.
    if problems.is_empty() {
        circles(schemas, &mut problems);
    }
    if problems.is_empty() {
        loops(schemas, &mut problems);
    }
    problems.truncate(PROBLEMS_MAX);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(SchemaError { problems })
    }
}

fn relations(schema: &Schema, schemas: &Schemas, problems: &mut Vec<String>) {
    let me = &schema.service;
    let mut say = |place: String, text: String| problems.push(format!("{me}: {place}: {text}"));
    let unknown = |service: &str| format!("no schema of a service `{service}` is known; check both together");
    for relation in &schema.children {
        let place = format!("child_relation.{}", relation.field);
        let Some(child) = schemas.get(&relation.service) else {
            say(format!("{place}.service"), unknown(&relation.service));
            continue;
        };
        let Some(back) = child.parent_field(me) else {
            say(
                place,
                format!(
                    "{} has no parent_relation to {me}: its entities can't name their parent",
                    child.service
                ),
            );
            continue;
        };
        let is_required = child.field(&back.field).is_some_and(|field| field.required);
        if relation.on_delete == OnDelete::Detach && is_required {
            let text = format!(
                "{}.{} is required: a child can't be without its parent",
                child.service, back.field
            );
            say(format!("{place}.on_delete"), text);
        }
        if child.field(&relation.key).is_some() {
            let text = format!(
                "{} has a field of this name, which a combined object could not hold",
                child.service
            );
            say(format!("{place}.key"), text);
        }
    }
    for relation in &schema.parents {
        let place = format!("parent_relation.{}", relation.field);
        match schemas.get(&relation.service) {
            None => say(format!("{place}.service"), unknown(&relation.service)),
            Some(parent) if !parent.children.iter().any(|r| r.service == *me) => {
                say(place, format!("{} has no child_relation to {me}", parent.service));
            }
            Some(_) => {}
        }
    }
    for aggregate in &schema.aggregates {
        let Some(child) = schema
            .child_relation(&aggregate.of)
            .and_then(|r| schemas.get(&r.service))
        else {
            continue;
        };
        let place = format!("aggregate.{}", aggregate.name);
        if let Some(sum) = &aggregate.sum
            && !matches!(
                child.field(sum).map(|f| &f.kind),
                Some(super::FieldType::Integer { .. })
            )
        {
            say(
                format!("{place}.sum"),
                format!("{} has no integer field `{sum}`", child.service),
            );
        }
        if let Some(when) = &aggregate.when {
            if when.is_about_change() {
                say(
                    format!("{place}.when"),
                    "`changed` and `was` have no meaning here: it is a condition on what is".into(),
                );
            }
            if child.field(&when.field).is_none() {
                say(
                    format!("{place}.when"),
                    format!("{} has no field `{}`", child.service, when.field),
                );
            }
        }
    }
    for accept in &schema.accepts {
        if let Some(from) = accept.from.as_ref().filter(|from| !schemas.contains_key(*from)) {
            say("accept.from".into(), unknown(from));
        }
    }
}

fn actions(schema: &Schema, schemas: &Schemas, problems: &mut Vec<String>) {
    let me = &schema.service;
    for action in &schema.actions {
        let place = format!("{me}: action ({})", action.name);
        let Some(receiver) = target(schema, action).and_then(|service| schemas.get(service)) else {
            continue;
        };
        match &action.does {
            Does::Set { set, copy } => {
                for (name, value) in set {
                    match receiver.field(name) {
                        None => problems.push(format!("{place}.set: {} has no field `{name}`", receiver.service)),
                        Some(field) => {
                            let found = validate::check_value(&format!("{place}.set.{name}"), &field.kind, &value.0);
                            problems.extend(found.iter().map(ToString::to_string));
                        }
                    }
                }
                for (name, _) in copy.iter().filter(|(name, _)| receiver.field(name).is_none()) {
                    problems.push(format!("{place}.copy: {} has no field `{name}`", receiver.service));
                }
            }
            Does::Call { name, params, copy } => {
                let Some(accept) = accepted(receiver, me, name) else {
                    problems.push(format!(
                        "{place}.call: {} accepts no call `{name}` from {me}",
                        receiver.service
                    ));
                    continue;
                };
                let passed = params
                    .iter()
                    .map(|(param, _)| param)
                    .chain(copy.iter().map(|(param, _)| param));
                for param in passed {
                    if !accept.copy.iter().any(|(_, known)| known == param) {
                        problems.push(format!("{place}.call: `{name}` has no parameter `{param}`"));
                    }
                }
            }
            Does::Delete | Does::Detach => {}
        }
    }
}

/// The service that an action is sent to.
fn target<'s>(schema: &'s Schema, action: &Action) -> Option<&'s str> {
    let to_child = schema.child_relation(&action.to).map(|relation| &relation.service);
    let to_parent = || {
        schema
            .parents
            .iter()
            .find(|r| r.field == action.to)
            .map(|relation| &relation.service)
    };
    to_child.or_else(to_parent).map(String::as_str)
}

fn accepted<'s>(receiver: &'s Schema, from: &str, call: &str) -> Option<&'s super::Accept> {
    receiver.accepts.iter().find(|accept| {
        accept.what == Taken::Call(call.to_owned()) && accept.from.as_deref().is_none_or(|known| known == from)
    })
}

/// Circles of child relations.
fn circles(schemas: &Schemas, problems: &mut Vec<String>) {
    let next = |service: &String| -> Vec<String> {
        let schema = schemas.get(service);
        schema.map_or_else(Vec::new, |schema| {
            schema.children.iter().map(|r| r.service.clone()).collect()
        })
    };
    for circle in cycles(schemas.keys().cloned().collect(), next) {
        problems.push(format!(
            "child relations lead in a circle: {}; a parent can't be its own descendant",
            circle.join(" -> ")
        ));
    }
}

/// Actions that set off themselves, over however many others.
fn loops(schemas: &Schemas, problems: &mut Vec<String>) {
    let all: Vec<Step> = schemas
        .values()
        .flat_map(|schema| {
            schema
                .actions
                .iter()
                .map(|action| (schema.service.clone(), action.name.clone()))
        })
        .collect();
    let find = |step: &Step| {
        let schema = schemas.get(&step.0)?;
        Some((schema, schema.action(&step.1)?))
    };
    let next = |step: &Step| -> Vec<Step> {
        let Some((schema, action)) = find(step) else {
            return Vec::new();
        };
        let mut effects = effects_of(schema, action, schemas);
        if let Some(field) = &action.mark {
            // A refusal changes the sender.
            let values = vec![(field.clone(), None)];
            effects.push((schema.service.clone(), ChangeKind::Patch, values));
        }
        let mut followers = Vec::new();
        for (service, kind, fields) in effects {
            let Some(receiver) = schemas.get(&service) else {
                continue;
            };
            let follows = receiver.actions.iter().filter(|next| may_follow(next, kind, &fields));
            followers.extend(follows.map(|next| (service.clone(), next.name.clone())));
        }
        followers
    };
    for circle in cycles(all, next) {
        let steps: Vec<String> = circle
            .iter()
            .map(|(service, action)| format!("{service}.{action}"))
            .collect();
        problems.push(format!(
            "actions set off each other without end: {}; give one of them a condition (`when`) that the other's change does not meet",
            steps.join(" -> ")
        ));
    }
}

type Step = (String, String);
type Fields = Vec<(String, Option<super::Raw>)>;

/// What an action does to its receivers: service, kind of change, fields with their values where these are constant. A
/// delete reaches the children of its receiver too.
fn effects_of(schema: &Schema, action: &Action, schemas: &Schemas) -> Vec<(String, ChangeKind, Fields)> {
    let Some(service) = target(schema, action) else {
        return Vec::new();
    };
    let Some(receiver) = schemas.get(service) else {
        return Vec::new();
    };
    let patch = |fields: Fields| vec![(service.to_owned(), ChangeKind::Patch, fields)];
    let constant = |set: &[(String, super::Raw)]| -> Fields {
        set.iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect()
    };
    let copied = |copy: &[(String, String)]| -> Fields { copy.iter().map(|(name, _)| (name.clone(), None)).collect() };
    match &action.does {
        Does::Set { set, copy } => {
            let mut fields = constant(set);
            fields.extend(copied(copy));
            patch(fields)
        }
        Does::Call { name, .. } => match accepted(receiver, &schema.service, name) {
            Some(accept) => {
                let mut fields = constant(&accept.set);
                fields.extend(copied(&accept.copy));
                patch(fields)
            }
            None => Vec::new(),
        },
        Does::Detach => {
            let field = receiver
                .parent_field(&schema.service)
                .map(|relation| (relation.field.clone(), None));
            patch(field.into_iter().collect())
        }
        Does::Delete => deleted(service, schemas, 0),
    }
}

fn deleted(service: &str, schemas: &Schemas, depth: usize) -> Vec<(String, ChangeKind, Fields)> {
    let mut effects = vec![(service.to_owned(), ChangeKind::Delete, Vec::new())];
    let Some(schema) = schemas.get(service).filter(|_| depth < schemas.len()) else {
        return effects;
    };
    for relation in &schema.children {
        match relation.on_delete {
            OnDelete::Cascade => effects.extend(deleted(&relation.service, schemas, depth + 1)),
            OnDelete::Detach | OnDelete::Refuse => {
                let child = schemas.get(&relation.service);
                let field = child
                    .and_then(|child| child.parent_field(service))
                    .map(|r| (r.field.clone(), None));
                effects.push((relation.service.clone(), ChangeKind::Patch, field.into_iter().collect()));
            }
        }
    }
    effects
}

/// Whether a change of these fields can set off the action: not, if its condition asks for the change of another field,
/// or for a value that this one never sets.
fn may_follow(action: &Action, kind: ChangeKind, fields: &Fields) -> bool {
    if !action.on.contains(&kind) {
        return false;
    }
    let Some(when) = action.when.as_ref().filter(|_| kind != ChangeKind::Delete) else {
        return true;
    };
    match fields.iter().find(|(name, _)| *name == when.field) {
        Some((_, Some(value))) => {
            when.equals.as_ref().is_none_or(|wanted| wanted == value)
                && when.differs.as_ref().is_none_or(|other| other != value)
        }
        Some((_, None)) => true,
        None => !when.is_about_change(),
    }
}

/// Each circle once, as a path that ends where it begins.
fn cycles<T: Clone + Ord>(nodes: Vec<T>, next: impl Fn(&T) -> Vec<T>) -> Vec<Vec<T>> {
    let mut done: BTreeSet<T> = BTreeSet::new();
    let mut found = Vec::new();
    for start in nodes {
        let mut path: Vec<(T, Vec<T>)> = Vec::new();
        if !done.contains(&start) {
            let followers = next(&start);
            path.push((start, followers));
        }
        while let Some((node, rest)) = path.last_mut() {
            let Some(follower) = rest.pop() else {
                done.insert(node.clone());
                path.pop();
                continue;
            };
            if let Some(at) = path.iter().position(|(known, _)| *known == follower) {
                let mut circle: Vec<T> = path[at..].iter().map(|(known, _)| known.clone()).collect();
                circle.push(follower);
                found.push(circle);
            } else if !done.contains(&follower) {
                let followers = next(&follower);
                path.push((follower, followers));
            }
        }
    }
    found
}
