//! A service that is dropped: what the directory writes down of it.
//!
//! ```text
//! directory's log   BEGIN(drop 1040) ........................ FINISH | service, schema and shards are forgotten
//! each shard's log        CLOSE: frozen for drop 1040, if it is empty
//! ```
//! A shard is closed by an entry of its own log, which does nothing where there is anything left in it; behind it nothing
//! changes. The directory lets go of the service only when all its keys lie in shards that are closed for this drop, so
//! nothing can be lost that was written meanwhile, whoever leads what. A closed shard is opened again only with a proof that
//! the drop was given up, and a drop that was given up is never finished.
//!
//! What was dropped is remembered by its name: shards with lower ids are no more. Whoever has a copy of one destroys it when
//! it hears that, however late.
use super::catalog::version_row;
use super::directory::{Directory, put, remove};
use super::ledger::LedgerCommand;
use super::state::State;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, OpId};
use crate::protocol::key::Position;
use crate::protocol::op::OpState;
use crate::protocol::operator::ShardMarks;
use crate::protocol::request::Response;
use crate::protocol::shard_map::{Dropped, ServiceInfo, ShardDescriptor};

/// The epoch that the directory has for shards that are closed for this drop. Its own descriptor never comes so far, and is
/// no proof that a drop was given up.
pub(super) fn epoch_of(drop: u64) -> Epoch {
    Epoch(CLOSED + drop)
}

const CLOSED: u64 = 1 << 48;

/// Whether a shard is closed for this drop.
pub(super) fn is_closed_for(shard: &ShardDescriptor, drop: u64) -> bool {
    closed_for(shard) == Some(drop)
}

/// The drop that a shard is closed for.
pub(super) fn closed_for(shard: &ShardDescriptor) -> Option<u64> {
    let frozen = shard.frozen.filter(|frozen| frozen.into == DIRECTORY_SHARD)?;
    Some(frozen.left_epoch.0.saturating_sub(CLOSED))
}

impl Directory {
    pub(super) fn begin_drop(&mut self, name: &str, number: u64, revision: u64, state: &mut dyn State) -> Response {
        let known = self.map.services.get(name);
        let Some(mut service) = known.filter(|known| known.number == number).cloned() else {
            return Response::Error(gone(name));
        };
        if service.dropping.is_some() {
            return Response::Asked;
        }
        if self.catalog.revision() != revision {
            let text = "the schemas were changed by somebody else in the meantime; nothing was changed";
            return Response::Error(WireError::new(Code::VersionConflict, text));
        }
        service.dropping = Some(self.allocate());
        service.kept_because.clear();
        self.put_service(service, state);
        self.changed(state);
        Response::Asked
    }

    pub(super) fn finish_drop(&mut self, name: &str, drop: u64, state: &mut dyn State) -> Response {
        let is_it = |service: &&ServiceInfo| service.dropping == Some(drop);
        if self.map.services.get(name).filter(is_it).is_none() {
            return Response::Error(gone(name));
        }
        let of_name = |shard: &&ShardDescriptor| shard.id != DIRECTORY_SHARD && shard.range.service() == name;
        let shards: Vec<ShardDescriptor> = self.map.shards().filter(of_name).cloned().collect();
        let mut at = Position::new(name, "");
        for shard in &shards {
            if shard.range.start != at || !is_closed_for(shard, drop) {
                let text = format!("{} is not known to be closed; nothing was changed", shard.id);
                return Response::Error(WireError::new(Code::NotFrozenYet, text));
            }
            at = shard.range.end.clone();
        }
        if at != Position::end_of(name) {
            let text = format!("nobody is known to hold {at}; nothing was changed");
            return Response::Error(WireError::new(Code::NotFrozenYet, text));
        }
        for shard in &shards {
            let id = shard.id;
            if let Some(op) = self.ledger.tasks.get(&id).map(|task| task.op) {
                let end = LedgerCommand::End { shard: id, op };
                self.ledger.apply(&end, &mut self.next_id, state);
            }
            remove(state, b's', &id.0.to_be_bytes());
            self.learnt.remove(&id);
            self.put_marks(id, ShardMarks::default(), state);
        }
        let is_about = |op: &&crate::protocol::op::Op| {
            let about = op.goal.shards();
            shards.iter().any(|shard| about.contains(&shard.id))
        };
        let idle: Vec<OpId> = self.ledger.open().filter(is_about).map(|op| op.id).collect();
        for op in idle {
            let turn = LedgerCommand::Turn {
                op,
                state: OpState::Cancelled,
                result: format!("service {name} was dropped"),
                wall_ms: self.wall_ms,
            };
            self.ledger.apply(&turn, &mut self.next_id, state);
        }
        for old in self.catalog.forget(name) {
            remove(state, b'h', &version_row(name, old.schema.version));
        }
        // One later than all schemas: what was judged while this service was there is judged anew.
        let latest = shards.iter().map(|shard| shard.epoch.0).max().unwrap_or(0);
        let dropped = Dropped {
            epoch: Epoch(latest + EPOCHS_UNHEARD_OF),
            below: self.next_id,
            revision: self.catalog.revision() + 1,
        };
        self.catalog.dropped_at = dropped.revision;
        put(state, b'd', name.as_bytes(), &(name, dropped));
        remove(state, b'v', name.as_bytes());
        self.map.services.remove(name);
        self.map.learn_dropped(name, dropped);
        self.configured(format!("service {name} was dropped"), state);
        Response::Asked
    }

    pub(super) fn cancel_drop(&mut self, name: &str, drop: u64, because: &str, state: &mut dyn State) -> Response {
        let is_it = |service: &&ServiceInfo| service.dropping == Some(drop);
        let Some(mut service) = self.map.services.get(name).filter(is_it).cloned() else {
            return Response::Error(gone(name));
        };
        service.dropping = None;
        // A late copy of the order begins no second one.
        service.number = self.allocate();
        because.clone_into(&mut service.kept_because);
        self.put_service(service, state);
        self.changed(state);
        Response::Asked
    }

    /// Whether a drop was given up, for ever: it was begun as far as this directory has come, and is not under way.
    pub(super) fn has_given_up(&self, name: &str, drop: u64) -> bool {
        let dropping = self.map.services.get(name).and_then(|service| service.dropping);
        drop < self.next_id && dropping != Some(drop)
    }

    fn put_service(&mut self, service: ServiceInfo, state: &mut dyn State) {
        put(state, b'v', service.name.as_bytes(), &service);
        self.map.services.insert(service.name.clone(), service);
    }
}

fn gone(name: &str) -> WireError {
    let text = format!("the service `{name}` that was meant is no more; nothing was changed");
    WireError::new(Code::NoService, text)
}

/// A closed shard may have changed its copies some more times before it hears that it is no more. Unit: epochs.
const EPOCHS_UNHEARD_OF: u64 = 10_000;
