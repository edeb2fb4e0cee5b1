//! What operators lay down, as rows of the directory: rules, marks of shards, the router's settings, who is let in.
use super::directory::{Directory, put, remove};
use super::state::State;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::op::Scope;
use crate::protocol::operator::{MarkChange, Order, Policy, ShardMarks, Told};
use crate::protocol::request::Response;
use crate::protocol::shard_map::{Membership, ShardDescriptor};

/// Rules at most. Unit: rules.
const RULES_MAX: usize = 256;

/// Takes in a row as it is read at the start. False where the table is none of the policy's.
pub(super) fn load(policy: &mut Policy, table: u8, value: &[u8]) -> Result<bool, codec::CodecError> {
    match table {
        b'r' => {
            let rule: crate::protocol::operator::PlacementRule = codec::decode(value)?;
            policy.rules.insert(rule.name.clone(), rule);
        }
        b'm' => {
            let (shard, marks): (ShardId, ShardMarks) = codec::decode(value)?;
            policy.marks.insert(shard, marks);
        }
        b'p' => policy.router = codec::decode(value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

impl Directory {
    /// Does what an operator ordered; the same on every replica.
    pub(super) fn obey(&mut self, order: &Order, by: &str, state: &mut dyn State) -> Response {
        match order {
            Order::SetRule { rule, .. } => {
                let known = self.map.policy.rules.get(&rule.name);
                if known == Some(rule) {
                    return rules();
                }
                if known.is_none() && self.map.policy.rules.len() >= RULES_MAX {
                    let text = format!("there are {RULES_MAX} rules already; nothing was changed");
                    return Response::Error(WireError::new(Code::BadRequest, text));
                }
                put(state, b'r', rule.name.as_bytes(), rule);
                self.map.policy.rules.insert(rule.name.clone(), rule.clone());
                self.configured(format!("{by} set rule {}", rule.name), state);
                rules()
            }
            Order::RemoveRule(name) => {
                if self.map.policy.rules.remove(name).is_none() {
                    let text = format!("no operator set a rule `{name}`; nothing was changed");
                    return Response::Error(WireError::new(Code::NoSuchRule, text));
                }
                remove(state, b'r', name.as_bytes());
                self.configured(format!("{by} removed rule {name}"), state);
                rules()
            }
            Order::Mark { shard, change } => {
                if self.map.shard(*shard).is_none() {
                    let text = format!("no {shard} is known; nothing was changed");
                    return Response::Error(WireError::new(Code::NoSuchShard, text));
                }
                let mut marks = self.map.policy.marks.get(shard).cloned().unwrap_or_default();
                match *change {
                    MarkChange::Pin(pin) => marks.pin = Some(pin),
                    MarkChange::Unpin => marks.pin = None,
                    MarkChange::Sticky(until_ms) => marks.sticky_until_ms = until_ms,
                }
                self.put_marks(*shard, marks.clone(), state);
                self.changed(state);
                Response::Told(Box::new(Told::Marks(marks)))
            }
            Order::SetRouter(settings) => {
                if self.map.policy.router != *settings {
                    put(state, b'p', b"", settings);
                    self.map.policy.router = *settings;
                    self.changed(state);
                }
                Response::Asked
            }
            Order::Admit { node, yes } => self.admit_node(*node, *yes, state),
        }
    }

    fn admit_node(&mut self, node: NodeId, yes: bool, state: &mut dyn State) -> Response {
        let Some(mut info) = self.map.nodes.get(&node).cloned() else {
            let text = format!("there is no node {node}; nothing was changed");
            return Response::Error(WireError::new(Code::NoSuchNode, text));
        };
        match (info.membership, yes) {
            (Membership::Pending, true) => info.membership = Membership::Joining,
            (Membership::Pending, false) => info.membership = Membership::Gone,
            // The same order a second time.
            (Membership::Joining | Membership::Active, true) | (Membership::Gone, false) => {
                return Response::Registered(info);
            }
            (other, _) => {
                let text = format!("{node} is not pending, it is {other:?}; nothing was changed").to_lowercase();
                return Response::Error(WireError::new(Code::UnsafeOp, text));
            }
        }
        self.update_node(info.clone(), state);
        Response::Registered(info)
    }

    /// Copies of shards, as an operation asks for them.
    pub(super) fn set_replicas(&mut self, of: &Scope, replicas: Option<u32>, state: &mut dyn State) {
        match of {
            Scope::Shard(shard) => {
                let mut marks = self.map.policy.marks.get(shard).cloned().unwrap_or_default();
                if marks.replicas == replicas {
                    return;
                }
                marks.replicas = replicas;
                self.put_marks(*shard, marks, state);
            }
            Scope::Service(name) => {
                let (Some(service), Some(replicas)) = (self.map.services.get_mut(name), replicas) else {
                    return;
                };
                if service.replicas == replicas {
                    return;
                }
                service.replicas = replicas;
                put(state, b'v', name.as_bytes(), service);
            }
        }
        let copies = replicas.map_or_else(
            || "as many copies as its rule says".to_owned(),
            |n| format!("{n} copies"),
        );
        self.configured(format!("{of} is to have {copies}"), state);
    }

    pub(super) fn put_marks(&mut self, shard: ShardId, marks: ShardMarks, state: &mut dyn State) {
        if marks.is_empty() {
            self.map.policy.marks.remove(&shard);
            remove(state, b'm', &shard.0.to_be_bytes());
        } else {
            put(state, b'm', &shard.0.to_be_bytes(), &(shard, &marks));
            self.map.policy.marks.insert(shard, marks);
        }
    }

    /// Marks that have run out go.
    pub(super) fn expire_marks(&mut self, state: &mut dyn State) {
        let wall_ms = self.wall_ms;
        let marks = self.map.policy.marks.iter();
        let over: Vec<ShardId> = marks
            .filter(|(_, marks)| marks.at(wall_ms) != **marks)
            .map(|(&id, _)| id)
            .collect();
        for &shard in &over {
            let marks = self.map.policy.marks[&shard].at(wall_ms);
            self.put_marks(shard, marks, state);
        }
        if !over.is_empty() {
            self.changed(state);
        }
    }

    /// A part of a shard has what was laid down for the whole, but for its leader.
    pub(super) fn inherit_marks(
        &mut self,
        parent: Option<&ShardDescriptor>,
        new: &ShardDescriptor,
        state: &mut dyn State,
    ) {
        let marks = parent.and_then(|parent| self.map.policy.marks.get(&parent.id)).cloned();
        if let Some(marks) = marks.filter(|_| !self.map.policy.marks.contains_key(&new.id)) {
            self.put_marks(new.id, ShardMarks { pin: None, ..marks }, state);
        }
    }
}

fn rules() -> Response {
    Response::Told(Box::new(Told::Rules {
        rules: Vec::new(),
        blockers: Vec::new(),
    }))
}
