//! Key to shard to leader: answer here, hand on, or refuse.
use std::ops::ControlFlow;

use super::command::Command;
use super::effect::{Effect, Effects};
use super::entity;
use super::entity::machine::{self, Context};
use super::entity::{pair, schema};
use super::limits::*;
use super::node::{Forwarded, Node, PlantedBug, bad_split, busy, follow, hold, merge, old_child, stale_epoch};
use super::replica::samples::Samples;
use super::replica::{Read, Replica, Waiter, Waiting, role_name};
use super::state::{State, StateError};
use super::time::Time;
use crate::protocol::activity::{self, ActivityAction};
use crate::protocol::change::{CHANGES_MAX, CHANGES_WAIT_MS_MAX, History};
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, NodeId, RequestId, ShardId};
use crate::protocol::json;
use crate::protocol::key::{self, Position, RowKind};
use crate::protocol::message::{Message, Principal, Role};
use crate::protocol::request::*;
use crate::protocol::schema::index;
use crate::protocol::shard_map::ReplicaRole;
use crate::protocol::target::Target;
use crate::protocol::tentative;

/// Where a request has to go.
enum Route {
    /// A replica on this node leads the shard.
    Here(ShardId),
    /// Another node does, or knows better.
    There(NodeId),
    /// Nowhere at the moment.
    Nowhere(WireError),
}

impl Node {
    /// A request from a caller (`hops` 0) or handed on by a peer.
    pub(super) fn asked(
        &mut self,
        mut waiting: Waiting,
        principal: Principal,
        mut request: Request,
        hops: u8,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        *self.counters.entry(counter(&request)).or_default() += 1;
        if let Some(id) = request_id(&request) {
            waiting.id = id;
        }
        if let Request::Write(write) = &mut request
            && let Change::Activity { by, .. } = &mut write.change
            && hops == 0
        {
            principal.name.clone_into(by);
        }
        let checked = allowed(&principal, &request).and_then(|()| self.admit(&mut request, hops));
        if let Err(error) = checked {
            *self.counters.entry("refused").or_default() += 1;
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        match &request {
            Request::Map => {
                let view = self.map.view();
                return self.reply(waiting, Response::Map(view), None, None, effects);
            }
            Request::Status => {
                let status = self.status();
                return self.reply(waiting, Response::Status(Box::new(status)), None, None, effects);
            }
            _ => {}
        }
        self.asked_again(waiting, principal, request, hops, state, effects);
    }

    /// A request that was found fit to be asked; perhaps it has waited since.
    pub(super) fn asked_again(
        &mut self,
        waiting: Waiting,
        principal: Principal,
        request: Request,
        hops: u8,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        match self.route(&request) {
            Route::Here(_) if is_for_operator(&request) => {
                self.operator_asked(waiting, &principal.name, request, effects);
            }
            Route::Here(shard) => {
                let refusal = self.must_wait(shard, &request);
                match refusal {
                    Some(error) => self.park(waiting, principal, request, hops, error, effects),
                    None => self.asked_here(shard, waiting, request, state, effects),
                }
            }
            Route::There(node) => self.hand_on(node, waiting, principal, request, hops, effects),
            Route::Nowhere(error) => {
                self.rouse_for(&request);
                self.reply(waiting, Response::Error(error), None, None, effects);
            }
        }
    }

    /// The shard with a copy on this node that a request is for.
    pub(super) fn copy_for(&self, request: &Request) -> Option<ShardId> {
        match request {
            Request::Get { service, key } | Request::ShowRequest { service, key, .. } => {
                self.local_shard(&Position::new(service, key))
            }
            Request::Write(write) => self.local_shard(&Position::new(&write.service, &write.key)),
            Request::List { from, .. } => self.local_shard(from),
            _ => None,
        }
    }

    /// Why a request to a shard that this node leads has to wait a moment.
    fn must_wait(&self, shard: ShardId, request: &Request) -> Option<WireError> {
        let replica = self.replicas.get(&shard)?;
        match request {
            Request::Get { .. }
            | Request::List { .. }
            | Request::ShowRequest { .. }
            | Request::ShowPair { .. }
            | Request::Children { .. }
            | Request::History { .. }
            | Request::Activities { .. }
            | Request::ListActivities { .. }
            | Request::Operations { .. }
            | Request::Ledger { .. }
            | Request::Write(_) => replica.shard.frozen.is_some().then(|| merge::frozen(&replica.shard)),
            Request::MergeShards { left_epoch, right, .. } => {
                let checked = self.check_merge(&replica.shard, *left_epoch, right);
                checked.err().filter(|error| error.code == Code::NotFrozenYet)
            }
            _ => None,
        }
    }

    /// The shard that a request would go to, if this node leads it.
    pub(super) fn led_here(&self, request: &Request) -> Option<ShardId> {
        match self.route(request) {
            Route::Here(shard) => Some(shard),
            _ => None,
        }
    }

    /// Checks what can be checked before a shard is asked. Peers have checked already.
    fn admit(&self, request: &mut Request, hops: u8) -> Result<(), WireError> {
        if hops > 0 {
            return Ok(());
        }
        let bad = |error: key::KeyError| WireError::new(Code::BadRequest, format!("{error}; nothing was changed"));
        let key_is_good = |service: &str, key: &str| match index::parts(service) {
            Some(_) => key::check_key(key, index::ENTRY_KEY_BYTES_MAX).map_err(bad),
            None => key::check_entity_key(key).map_err(bad),
        };
        // An index is read like another service.
        let service_exists = |service: &str| {
            key::check_service(index::parts(service).map_or(service, |(of, _)| of)).map_err(bad)?;
            if self.map.services.contains_key(service)
                || self.map.find(&Position::new(service, "")).is_some()
                || (self.config.services.iter().any(|known| known.name == service)
                    && !self.map.dropped.contains_key(service))
            {
                Ok(())
            } else {
                Err(WireError::new(
                    Code::NoService,
                    format!("there is no service `{service}`; nothing was changed"),
                ))
            }
        };
        match request {
            Request::Get { service, key }
            | Request::ShowRequest { service, key, .. }
            | Request::ShowPair { service, key, .. }
            | Request::Operations { service, key }
            | Request::Children { service, key, .. }
            | Request::History { service, key } => {
                service_exists(service)?;
                key_is_good(service, key)
            }
            Request::Activities {
                service, key, limit, ..
            } => {
                *limit = (*limit).clamp(1, LIST_ITEMS_MAX);
                service_exists(service)?;
                key_is_good(service, key)
            }
            Request::ListActivities { from, to, limit, .. } => {
                if from.0.is_empty() || from > to {
                    return Err(WireError::new(Code::BadRequest, "an empty or reversed range"));
                }
                *limit = (*limit).clamp(1, LIST_ITEMS_MAX);
                service_exists(from.parts().0)
            }
            Request::Write(write) => {
                key::check_service(&write.service).map_err(bad)?;
                service_exists(&write.service)?;
                if let Change::Post(_) = write.change {
                    let made = write.id.entity_key();
                    if !write.key.is_empty() && write.key != made {
                        let text = "a POST's key is made from its request id; nothing was changed";
                        return Err(WireError::new(Code::BadRequest, text));
                    }
                    write.key = made;
                }
                key::check_entity_key(&write.key).map_err(bad)?;
                let document = match &write.change {
                    Change::Put(document) | Change::Post(document) | Change::Patch(document) => document,
                    Change::PutFor { document, ttl_ms } => {
                        if *ttl_ms == 0 || *ttl_ms > tentative::TTL_MS_MAX {
                            let text = "an entity lasts between 1 ms and 366 days, or for ever; nothing was changed";
                            return Err(WireError::new(Code::BadRequest, text));
                        }
                        document
                    }
                    Change::Tentative(wanted) => {
                        wanted.check()?;
                        let holder = wanted.holder().parts().0;
                        key::check_service(holder).map_err(bad)?;
                        return service_exists(holder);
                    }
                    Change::Delete => return Ok(()),
                    Change::Send { to, body } => {
                        if to.is_empty() || to.len() as u64 > OUTBOX_ENTITY_MAX {
                            let text = format!(
                                "{} receivers, 1 to {OUTBOX_ENTITY_MAX} are allowed; nothing was changed",
                                to.len()
                            );
                            return Err(WireError::new(Code::BadRequest, text));
                        }
                        for to in to {
                            activity::check_receiver(to)?;
                            service_exists(to.parts().0)?;
                        }
                        return body.check();
                    }
                    Change::Reindex { stale, .. } => {
                        if stale.len() > STALE_ENTRIES_MAX {
                            let text = format!("{} entries at once; nothing was changed", stale.len());
                            return Err(WireError::new(Code::BadRequest, text));
                        }
                        return stale
                            .iter()
                            .try_for_each(|entry| key::check_key(entry, index::ENTRY_KEY_BYTES_MAX).map_err(bad));
                    }
                    Change::Activity { with, because, .. } => {
                        if because.len() > activity::REASON_BYTES_MAX {
                            let text = format!("a reason of {} bytes; nothing was changed", because.len());
                            return Err(WireError::new(Code::BadRequest, text));
                        }
                        return match index::parts(with.parts().0) {
                            Some(_) => key_is_good(with.parts().0, with.parts().1.unwrap_or("")),
                            None => activity::check_receiver(with),
                        };
                    }
                };
                if document.len() > DOCUMENT_BYTES_MAX {
                    let text = format!(
                        "{} bytes, the limit is {DOCUMENT_BYTES_MAX}; nothing was changed",
                        document.len()
                    );
                    return Err(WireError::new(Code::TooLarge, text));
                }
                json::check_document(document)
                    .map_err(|why| WireError::new(Code::BadDocument, format!("{why}; nothing was changed")))
            }
            Request::List { from, to, limit, .. } => {
                if *limit == 0 || from.0.is_empty() || from > to {
                    return Err(WireError::new(Code::BadRequest, "an empty or reversed range"));
                }
                *limit = (*limit).min(LIST_ITEMS_MAX);
                service_exists(from.parts().0)
            }
            Request::Changes {
                ranges, limit, wait_ms, ..
            } => {
                *limit = (*limit).clamp(1, CHANGES_MAX);
                *wait_ms = (*wait_ms).min(CHANGES_WAIT_MS_MAX);
                service_exists(follow::check_ranges(ranges)?)
            }
            Request::Ledger { from, to, limit, .. } => {
                if *limit == 0 || from.0.is_empty() || from > to {
                    return Err(WireError::new(Code::BadRequest, "an empty or reversed range"));
                }
                *limit = (*limit).min(tentative::LEDGER_ITEMS_MAX);
                service_exists(from.parts().0)
            }
            Request::AllocateIds { count, .. } if *count == 0 || *count > 100_000 => Err(WireError::new(
                Code::BadRequest,
                "between 1 and 100000 ids can be asked for",
            )),
            Request::SplitShard { at, .. } => {
                let (service, key) = at.parts();
                service_exists(service)?;
                key_is_good(service, key.unwrap_or(""))
            }
            Request::CreateToken { .. } | Request::Join { .. } => {
                let text = "this node does not hold the cluster's signing key; ask a node that has `tls.ca_key` set";
                Err(WireError::new(Code::BadRequest, text))
            }
            _ => Ok(()),
        }
    }

    fn route(&self, request: &Request) -> Route {
        let by_position = |position: &Position| {
            if let Some(shard) = self.local_shard(position) {
                return self.route_to(shard);
            }
            match self.map.find(position) {
                Some(shard) => self.route_to(shard.id),
                None => {
                    let text = format!("no shard is known for {position}; nothing was done");
                    let mut error = WireError::new(Code::NoShard, text);
                    error.retry_after_ms = self.retry_ms();
                    Route::Nowhere(error)
                }
            }
        };
        match request.target() {
            Target::Position(position) => by_position(&position),
            Target::Shard(shard) => self.route_to(shard),
            // Answered before it comes here.
            Target::Any => self.route_to(DIRECTORY_SHARD),
        }
    }

    /// When to try again what could not be done for want of a leader or a map.
    fn retry_ms(&self) -> u32 {
        self.map.policy.router.retry_ms as u32
    }

    /// The initialized replica on this node whose range holds `position`.
    pub(super) fn local_shard(&self, position: &Position) -> Option<ShardId> {
        if let Some(parent) = self.lingering_parent(position) {
            return Some(parent);
        }
        let (_, id) = self.by_start.range(..=position).next_back()?;
        self.replicas
            .get(id)
            .filter(|replica| replica.shard.range.contains(position))
            .map(|_| *id)
    }

    /// The node to be asked about a shard: its leader, or whoever should know.
    pub(super) fn leader_to_ask(&self, shard: ShardId) -> Option<NodeId> {
        match self.route_to(shard) {
            Route::Here(_) => Some(self.config.node),
            Route::There(node) => Some(node),
            Route::Nowhere(_) => None,
        }
    }

    fn route_to(&self, shard: ShardId) -> Route {
        let me = self.config.node;
        let mut leader = None;
        if let Some(replica) = self.replicas.get(&shard).filter(|replica| replica.is_initialized()) {
            if replica.is_leader() {
                return Route::Here(shard);
            }
            leader = replica.leader();
        }
        let told = self.map.leader(shard).map(|(_, node)| node);
        let known = self.map.shard(shard);
        // Somebody who has a copy knows better than this node who leads.
        let has_copy = || {
            let replicas = known.map(|shard| shard.replicas.as_slice()).unwrap_or_default();
            let here = replicas.iter().any(|replica| replica.node == me);
            replicas
                .iter()
                .map(|replica| replica.node)
                .find(|&node| !here && self.connected.contains(&node))
        };
        let reachable = |node: &NodeId| *node != me && self.connected.contains(node);
        match leader
            .filter(reachable)
            .or_else(|| told.filter(reachable))
            .or_else(has_copy)
        {
            Some(node) => Route::There(node),
            // The directory is always somewhere, and what has a copy here exists, whatever the map says.
            None if known.is_none() && shard != DIRECTORY_SHARD && !self.replicas.contains_key(&shard) => {
                Route::Nowhere(WireError::new(
                    Code::NoSuchShard,
                    format!("no {shard} is known; nothing was done"),
                ))
            }
            None => {
                let mut error = WireError::new(Code::NoLeader, format!("{shard} has no leader; nothing was done"));
                error.retry_after_ms = self.retry_ms();
                Route::Nowhere(error)
            }
        }
    }

    fn hand_on(
        &mut self,
        node: NodeId,
        waiting: Waiting,
        principal: Principal,
        request: Request,
        hops: u8,
        effects: &mut Effects,
    ) {
        let refusal = if hops >= self.map.policy.router.hops {
            Some(WireError::new(
                Code::TooManyHops,
                format!("handed on {hops} times; nothing was done"),
            ))
        } else if self.forwards.len() >= PENDING_REQUESTS_MAX {
            Some(WireError::new(
                Code::Busy,
                "too many requests are on their way to other nodes; nothing was done",
            ))
        } else {
            None
        };
        if let Some(mut error) = refusal {
            error.retry_after_ms = self.retry_ms();
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        *self.counters.entry("forwarded").or_default() += 1;
        let id = self.next_forward;
        self.next_forward += 1;
        let timeout_ms = waiting.deadline.since(self.clock.now).as_millis().max(1) as u32;
        self.forwards.insert(
            id,
            Forwarded {
                waiting,
                to: node,
                is_write: request_id(&request).is_some(),
            },
        );
        let message = Message::Forward {
            id,
            hops: hops + 1,
            timeout_ms,
            principal,
            request,
        };
        effects.push(Effect::Send { to: node, message });
    }

    fn asked_here(
        &mut self,
        shard: ShardId,
        waiting: Waiting,
        request: Request,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let pending: usize = self.replicas.get(&shard).map_or(0, Replica::waiting);
        if pending >= PENDING_REQUESTS_MAX {
            let mut error = WireError::new(
                Code::Busy,
                format!("{shard} has {pending} requests in hand; nothing was done"),
            );
            error.retry_after_ms = self.retry_ms();
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        if let Some(error) = self.refuses(shard) {
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
        let refusing = self.refusing;
        let is_full = self.outstanding_messages(shard).unwrap_or(0) >= OUTBOX_SHARD_MAX;
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return;
        };
        if Samples::wants(replica.served)
            && matches!(request, Request::Get { .. } | Request::Write(_))
            && let Target::Position(position) = request.target()
        {
            replica.samples.note(position);
        }
        let refusal = match request {
            Request::Samples { .. } => {
                let keys = replica.samples.keys(&replica.shard.range);
                return self.reply(waiting, Response::Samples(keys), None, None, effects);
            }
            Request::Get { .. }
            | Request::List { .. }
            | Request::ShowRequest { .. }
            | Request::Operations { .. }
            | Request::Ledger { .. }
            | Request::Children { .. }
            | Request::ShowPair { .. }
            | Request::History { .. }
            | Request::Activities { .. }
            | Request::ListActivities { .. }
            | Request::Changes { .. } => {
                return self.read_here(shard, waiting, request, state, effects);
            }
            Request::VerifyShard { .. } => return self.verify_here(shard, waiting),
            Request::Write(write) => {
                if let Some(error) = hold::refusal_now(replica, self.clock.now) {
                    Some(error)
                } else if matches!(write.change, Change::Send { .. }) && is_full {
                    let text = format!("{shard} has over {OUTBOX_SHARD_MAX} messages outstanding; nothing was changed");
                    Some(WireError::new(Code::OutboxFull, text))
                } else if refusing && write.change != Change::Delete {
                    Some(WireError::new(
                        Code::DiskFull,
                        "the leader's disk is nearly full; nothing was changed",
                    ))
                } else {
                    replica.propose(Command::Write(write), waiting);
                    None
                }
            }
            Request::SplitShard {
                epoch, at, child, id, ..
            } => {
                let descriptor = replica.shard.clone();
                if let Some(done) = self.split_done(&descriptor, &at, child) {
                    return self.reply(waiting, done, None, None, effects);
                }
                if descriptor.epoch != epoch {
                    Some(stale_epoch(&descriptor, epoch))
                } else if let Some(error) = busy(&descriptor) {
                    Some(error)
                } else if descriptor.range.split(&at).is_none() {
                    Some(bad_split(&descriptor, &at))
                } else if child <= descriptor.id {
                    Some(old_child(&descriptor, child))
                } else {
                    if let Some(replica) = self.replicas.get_mut(&shard) {
                        replica.propose(Command::Split { epoch, at, child, id }, waiting);
                    }
                    None
                }
            }
            Request::TransferLeader { to, .. } => match replica.shard.replica_on(to).copied() {
                Some(target) if matches!(target.role, ReplicaRole::Voter | ReplicaRole::Incoming) => {
                    if to != self.config.node {
                        replica.transfer(target.id);
                    }
                    self.touch(shard);
                    return self.reply(waiting, Response::Asked, None, None, effects);
                }
                _ => Some(WireError::new(
                    Code::BadTarget,
                    format!("{to} is no voter of {shard}; nothing was changed"),
                )),
            },
            Request::HoldShard { for_ms, id, .. } => {
                let descriptor = replica.shard.clone();
                let checked = self.check_hold(&descriptor, for_ms);
                self.propose_checked(shard, checked, Command::Hold { for_ms, id }, waiting)
            }
            Request::ChangeReplicas { epoch, changes, id, .. } => {
                return self.change_here(shard, epoch, changes, id, waiting, effects);
            }
            Request::FreezeShard {
                epoch,
                into,
                left_epoch,
                id,
                ..
            } => {
                let descriptor = replica.shard.clone();
                if merge::is_frozen_for(&descriptor, into, left_epoch) {
                    return self.reply(waiting, Response::Shard(Box::new(descriptor)), None, None, effects);
                }
                let command = Command::Freeze {
                    epoch,
                    into,
                    left_epoch,
                    id,
                };
                let checked = self.check_freeze(&descriptor, epoch, into, left_epoch);
                self.propose_checked(shard, checked, command, waiting)
            }
            Request::MergeShards {
                left_epoch, right, id, ..
            } => {
                let descriptor = replica.shard.clone();
                if merge::is_merged(&descriptor, &right) {
                    return self.reply(waiting, Response::Shard(Box::new(descriptor)), None, None, effects);
                }
                let checked = self.check_merge(&descriptor, left_epoch, &right);
                let command = Command::Merge { left_epoch, right, id };
                self.propose_checked(shard, checked, command, waiting)
            }
            Request::ThawShard { proof, id, .. } => {
                let checked = merge::check_thaw(&replica.shard, &proof);
                self.propose_checked(shard, checked, Command::Thaw { proof, id }, waiting)
            }
            Request::BumpEpoch { epoch, id, .. } => {
                if replica.shard.epoch > epoch {
                    let descriptor = replica.shard.clone();
                    return self.reply(waiting, Response::Shard(Box::new(descriptor)), None, None, effects);
                }
                replica.propose(Command::BumpEpoch { epoch, id }, waiting);
                None
            }
            Request::AllocateIds { count, .. } => {
                replica.propose(
                    Command::Directory(super::directory::DirectoryCommand::AllocateIds { count }),
                    waiting,
                );
                None
            }
            Request::RegisterNode { node, .. } => {
                replica.propose(
                    Command::Directory(super::directory::DirectoryCommand::Register(*node)),
                    waiting,
                );
                None
            }
            _ => Some(WireError::new(Code::BadRequest, "not a request to a shard")),
        };
        match refusal {
            Some(error) => self.reply(waiting, Response::Error(error), None, None, effects),
            None => self.touch(shard),
        }
    }

    fn propose_checked(
        &mut self,
        shard: ShardId,
        checked: Result<(), WireError>,
        command: Command,
        waiting: Waiting,
    ) -> Option<WireError> {
        if let Err(error) = checked {
            return Some(error);
        }
        if let Some(replica) = self.replicas.get_mut(&shard) {
            replica.propose(command, waiting);
        }
        None
    }

    fn read_here(
        &mut self,
        shard: ShardId,
        waiting: Waiting,
        request: Request,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let now = self.clock.now;
        // An answer that goes through another node can't be taken back when it leaves late: those reads ask a majority.
        let lease_allowed = matches!(waiting.waiter, Waiter::Client { .. });
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return;
        };
        let unchecked = match self.config.planted {
            PlantedBug::ReadsWithoutQuorum => true,
            PlantedBug::ReadsAsleep => replica.is_asleep() && replica.is_leader(),
            _ => false,
        };
        let read = Read { waiting, request };
        let immediate = if unchecked {
            Some((read, Time(u64::MAX)))
        } else {
            replica.read(now, lease_allowed, read)
        };
        let Some((read, valid_until)) = immediate else {
            return self.touch(shard);
        };
        if matches!(read.request, Request::Changes { .. }) {
            let Some(replica) = self.replicas.remove(&shard) else {
                return;
            };
            let waiting = read.waiting;
            let result = self.watch_here(&replica, read, state, effects);
            self.replicas.insert(shard, replica);
            if let Err(error) = result {
                self.unreadable(shard, waiting, &error, effects);
            }
            return;
        }
        let Some(replica) = self.replicas.get(&shard) else {
            return;
        };
        match self.serve_read(replica, &read.request, state) {
            Ok((response, hint)) => self.reply(read.waiting, response, hint, Some(valid_until), effects),
            Err(error) => self.unreadable(shard, read.waiting, &error, effects),
        }
    }

    /// Reads rows of a shard that this node is sure to lead.
    pub(super) fn serve_read(
        &self,
        replica: &Replica,
        request: &Request,
        state: &dyn State,
    ) -> Result<(Response, Option<Box<RouteHint>>), StateError> {
        let stale = |position: &Position| {
            let text = format!("{} no longer holds {position}", replica.shard.id);
            (
                Response::Error(WireError::new(Code::StaleRoute, text)),
                self.hint_for(position),
            )
        };
        if replica.is_quarantined() {
            return Ok((Response::Error(super::replica::not_leader()), None));
        }
        if replica.shard.frozen.is_some() {
            return Ok((Response::Error(merge::frozen(&replica.shard)), None));
        }
        Ok(match request {
            Request::Get { service, key } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) && !self.lingers(replica.shard.id, &position) {
                    return Ok(stale(&position));
                }
                let mut entity = machine::read(&position, state)?;
                if let Some(entity) = entity.as_mut().filter(|_| !replica.schema.is_empty()) {
                    entity.aggregates = schema::aggregates(&position, state)?;
                }
                (Response::Entity(entity), None)
            }
            Request::ShowPair { service, key, with } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                (Response::Pair(Box::new(pair::view(&position, with, state)?)), None)
            }
            Request::Children {
                service,
                key,
                relation,
                after,
            } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                let children = schema::children(&position, relation, after, CHILDREN_PER_ANSWER, state)?;
                let of = |(key, row): (String, schema::ChildRow)| Child {
                    key,
                    attached: row.attached,
                    feeds: row.feeds,
                };
                (Response::Children(children.into_iter().map(of).collect()), None)
            }
            Request::History { service, key } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                let versions = machine::history(&position, state)?;
                let messages = entity::traces::traces(&position, &versions, state)?;
                (Response::History(Box::new(History { versions, messages })), None)
            }
            Request::ShowRequest { service, key, id } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                let context = Context {
                    shard: replica.shard.id,
                    wall_ms: self.clock.wall_ms,
                    shard_time_ms: replica.clock.at(&position),
                    change_at: 0,
                };
                match machine::show_request(service, key, *id, context, state)? {
                    Some(Err(error)) => (Response::Error(error), None),
                    Some(Ok(written)) => (Response::Request(Some(written)), None),
                    None => (Response::Request(None), None),
                }
            }
            Request::List {
                from,
                to,
                limit,
                documents,
            } => {
                if !replica.shard.range.contains(from) {
                    return Ok(stale(from));
                }
                (list(replica, from, to, *limit, *documents, state)?, None)
            }
            Request::Operations { service, key } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                let operations = entity::tentative::operations(&position, state)?;
                (Response::Operations(operations), None)
            }
            Request::Activities {
                service,
                key,
                with,
                after,
                limit,
            } => {
                let position = Position::new(service, key);
                if !replica.shard.range.contains(&position) {
                    return Ok(stale(&position));
                }
                let view = self.activities(replica, &position, with.as_ref(), after.as_ref(), *limit, state)?;
                (Response::Activities(Box::new(view)), None)
            }
            Request::ListActivities {
                from,
                to,
                after,
                filter,
                limit,
            } => {
                if !replica.shard.range.contains(from) {
                    return Ok(stale(from));
                }
                let listed = self.list_activities(replica, from, to, after.as_ref(), *filter, *limit, state)?;
                (listed, None)
            }
            Request::Ledger {
                from,
                to,
                resume,
                limit,
            } => {
                if !replica.shard.range.contains(from) {
                    return Ok(stale(from));
                }
                let query = entity::ledger::Query {
                    from,
                    to,
                    resume,
                    limit: *limit as usize,
                    range: &replica.shard.range,
                    clock: &replica.clock,
                    now_ms: replica.clock_now(self.clock.now).0,
                };
                let rules = self.judge_to_read(replica)?;
                let page = entity::ledger::page(&query, &rules, state)?;
                (Response::Ledger(Box::new(page)), None)
            }
            _ => (Response::Error(WireError::new(Code::BadRequest, "not a read")), None),
        })
    }

    fn status(&self) -> NodeStatus {
        let now = self.clock.now;
        let replicas = self
            .replicas
            .values()
            .filter(|replica| replica.is_initialized())
            .map(replica_status)
            .collect();
        let nodes = self.map.nodes.keys().filter(|&&node| node != self.config.node);
        let peers = nodes.map(|node| PeerStatus {
            node: *node,
            connected: self.connected.contains(node),
            heard_ms_ago: self.heard.get(node).map(|&heard| now.since(heard).as_millis()),
        });
        let mut findings = Vec::new();
        if self.refusing {
            let free = self.disk_free >> 20;
            findings.push(format!(
                "disk nearly full, {free} MiB free: writes other than deletes are refused"
            ));
        }
        let leaderless = self
            .replicas
            .values()
            .filter(|replica| replica.leader().is_none())
            .count();
        if leaderless > 0 {
            findings.push(format!("{leaderless} of this node's shards have no leader"));
        }
        let certificate_ends_ms = self.config.certificate_ends_ms;
        if certificate_ends_ms > 0 && certificate_ends_ms < self.clock.wall_ms + CERTIFICATE_WARNING.as_millis() {
            let days = certificate_ends_ms.saturating_sub(self.clock.wall_ms) / 86_400_000;
            findings.push(format!(
                "its certificate ends in {days} days; nobody talks with this node after that"
            ));
        }
        findings.extend(self.ailments());
        NodeStatus {
            node: self.config.node,
            name: self.config.name.clone(),
            cluster: self.config.cluster,
            version: self.config.version.clone(),
            uptime_ms: now.since(self.started).as_millis(),
            replicas,
            peers: peers.collect(),
            directory_leader: self
                .replicas
                .get(&DIRECTORY_SHARD)
                .and_then(Replica::leader)
                .or_else(|| self.map.leader(DIRECTORY_SHARD).map(|(_, node)| node)),
            counters: self
                .counters
                .iter()
                .map(|(&name, &count)| (name.to_owned(), count))
                .chain(self.message_gauges())
                .collect(),
            store_bytes: self.store_bytes,
            disk_free_bytes: self.disk_free,
            disk_total_bytes: self.disk_total,
            certificate_ends_ms,
            findings,
        }
    }
}

fn replica_status(replica: &Replica) -> ReplicaStatus {
    let state = match replica.descriptor().role {
        _ if replica.is_quarantined() => "quarantined",
        ReplicaRole::Learner => "learner",
        _ if replica.is_installing() => "installing",
        _ => role_name(replica.role()),
    };
    ReplicaStatus {
        shard: replica.shard.clone(),
        replica: replica.descriptor(),
        state: state.to_owned(),
        term: replica.term(),
        leader: replica.leader(),
        last_index: replica.last_index(),
        committed: replica.committed(),
        applied: replica.applied(),
        entities: replica.entities,
        bytes: replica.bytes,
        requests_per_s: replica.requests_per_s,
        schema_revision: replica.schema.revision,
        matched: replica.matched(),
    }
}

fn list(
    replica: &Replica,
    from: &Position,
    to: &Position,
    limit: u32,
    documents: bool,
    state: &dyn State,
) -> Result<Response, StateError> {
    let end = to.min(&replica.shard.range.end);
    let (mut items, mut bytes, mut next, mut bad) = (Vec::new(), 0, None, None);
    state.scan(&from.0, &end.0, &mut |row, value| {
        let Some((position, kind, _)) = key::split_row_key(row) else {
            return ControlFlow::Continue(());
        };
        if kind != RowKind::Head as u8 {
            return ControlFlow::Continue(());
        }
        let entity = match machine::decode_head(row, value) {
            Ok(head) => machine::entity(head),
            Err(error) => {
                bad = Some(error);
                return ControlFlow::Break(());
            }
        };
        let (Some(entity), Some(key)) = (entity, position.parts().1) else {
            return ControlFlow::Continue(());
        };
        if items.len() == limit as usize || bytes >= LIST_BYTES_MAX {
            next = Some(position.clone());
            return ControlFlow::Break(());
        }
        let size = entity.document.len() as u32;
        let document = if documents {
            entity.document
        } else {
            bytes::Bytes::new()
        };
        bytes += document.len() + key.len() + 32;
        items.push(ListItem {
            key: key.to_owned(),
            version: entity.version,
            updated_ms: entity.updated_ms,
            bytes: size,
            document,
        });
        ControlFlow::Continue(())
    })?;
    if let Some(error) = bad {
        return Err(error);
    }
    let more_shards = end < to;
    Ok(Response::Listed {
        items,
        next: next.or_else(|| more_shards.then(|| end.clone())),
    })
}

fn allowed(principal: &Principal, request: &Request) -> Result<(), WireError> {
    let needs = match request {
        Request::Join { .. } => Role::Nobody,
        Request::Children { .. } | Request::ShowPair { .. } => Role::Viewer,
        Request::Get { .. } | Request::List { .. } | Request::ShowRequest { .. } | Request::Map | Request::Status => {
            Role::Viewer
        }
        Request::Operations { .. } | Request::Ledger { .. } => Role::Viewer,
        Request::Activities { .. } | Request::ListActivities { .. } => Role::Viewer,
        Request::ShowSchemas { .. } | Request::Samples { .. } | Request::Question(_) => Role::Viewer,
        Request::ListOps { .. }
        | Request::ShowSettings
        | Request::MayStop { .. }
        | Request::VerifyShard { .. }
        | Request::Changes { .. }
        | Request::History { .. } => Role::Viewer,
        // What ends a message without an effect is more than a write of its sender.
        Request::Write(Write {
            change:
                Change::Activity {
                    action: ActivityAction::Cancel { .. } | ActivityAction::Skip | ActivityAction::Drop { .. },
                    ..
                },
            ..
        }) => Role::Admin,
        Request::Write(_) => Role::Writer,
        Request::AllocateIds { .. }
        | Request::SplitShard { .. }
        | Request::TransferLeader { .. }
        | Request::ChangeReplicas { .. }
        | Request::HoldShard { .. }
        | Request::FreezeShard { .. }
        | Request::MergeShards { .. }
        | Request::ThawShard { .. }
        | Request::BumpEpoch { .. }
        | Request::CreateToken { .. }
        | Request::StartOp { .. }
        | Request::ControlOp { .. }
        | Request::ChangeNode { .. }
        | Request::SetSettings { .. }
        | Request::SetService { .. }
        | Request::SetSchemas { .. }
        | Request::CreateService { .. }
        | Request::DropService { .. }
        | Request::Order { .. }
        | Request::RegisterNode { .. } => Role::Admin,
    };
    if principal.role >= needs {
        return Ok(());
    }
    let text = format!(
        "`{}` is {:?} and this needs {needs:?}; nothing was changed",
        principal.name, principal.role
    );
    Err(WireError::new(Code::Forbidden, text))
}

/// Whether the directory's conductor answers it.
fn is_for_operator(request: &Request) -> bool {
    matches!(
        request,
        Request::StartOp { .. }
            | Request::ListOps { .. }
            | Request::ControlOp { .. }
            | Request::ChangeNode { .. }
            | Request::MayStop { .. }
            | Request::ShowSettings
            | Request::SetSettings { .. }
            | Request::SetService { .. }
            | Request::ShowSchemas { .. }
            | Request::SetSchemas { .. }
            | Request::CreateService { .. }
            | Request::DropService { .. }
            | Request::Question(_)
            | Request::Order { .. }
    )
}

/// The id of a request that changes something.
fn request_id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Write(write) => Some(write.id),
        Request::SplitShard { id, .. }
        | Request::ChangeReplicas { id, .. }
        | Request::HoldShard { id, .. }
        | Request::FreezeShard { id, .. }
        | Request::MergeShards { id, .. }
        | Request::ThawShard { id, .. }
        | Request::BumpEpoch { id, .. }
        | Request::StartOp { id, .. }
        | Request::ControlOp { id, .. }
        | Request::ChangeNode { id, .. }
        | Request::SetSettings { id, .. }
        | Request::SetService { id, .. }
        | Request::SetSchemas { id, dry_run: false, .. }
        | Request::CreateService { id, dry_run: false, .. }
        | Request::DropService { id, dry_run: false, .. }
        | Request::Order { id, .. }
        | Request::AllocateIds { id, .. }
        | Request::RegisterNode { id, .. } => Some(*id),
        _ => None,
    }
}

fn counter(request: &Request) -> &'static str {
    match request {
        Request::Get { .. } => "get",
        Request::Write(write) => match write.change {
            Change::Put(_) | Change::PutFor { .. } => "put",
            Change::Post(_) => "post",
            Change::Patch(_) => "patch",
            Change::Delete => "delete",
            Change::Send { .. } => "send",
            Change::Activity { .. } => "activity",
            Change::Tentative(_) => "tentative",
            Change::Reindex { .. } => "reindex",
        },
        Request::List { .. } => "list",
        Request::Changes { .. } => "changes",
        Request::History { .. } => "history",
        Request::ShowRequest { .. } => "show_request",
        Request::Activities { .. } | Request::ListActivities { .. } => "activities",
        Request::Operations { .. } | Request::Ledger { .. } => "ledger",
        Request::Map => "map",
        Request::Status => "status",
        _ => "admin",
    }
}
