//! Copies that can't be trusted: they serve nothing, hand over what they lead, and are replaced.
//!
//! A copy finds by itself that a row fails its checksum, or the leader finds that it differs from most others. Either way
//! the shard's log says so (`Command::Quarantine`), so that all know: clients' routes, the next leader, the directory
//! and its conductor, which removes the copy and makes another one with a fresh id. The leader lets the copy go only when
//! it has read the others from end to end since, and found them whole: a copy with a damaged row may be the only one
//! that has another row undamaged.
//!
//! Of a quarantined copy only the rows are in doubt. Its log has checksums of its own and was checked when it was read,
//! so it goes on to vote and to acknowledge: to forget what it acknowledged would be worse. It stands for election only
//! where nobody else does, and then hands over at once.
use super::{Node, outcome_unknown};
use crate::daemon::core::command::Command;
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::replica::{self, Replica, Waiter, Waiting};
use crate::daemon::core::state::StateError;
use crate::daemon::core::time::Time;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::message::Message;
use crate::protocol::request::Response;
use crate::protocol::shard_map::{ReplicaDescriptor, ShardDescriptor};

impl Node {
    /// A row of a copy on this node fails its checksum; nothing was read from it or done to it.
    pub(super) fn found_damage(&mut self, shard: ShardId, id: ReplicaId, row: &str, effects: &mut Effects) {
        let here = self.replicas.get_mut(&shard);
        let Some(replica) = here.filter(|replica| replica.id == id) else {
            return;
        };
        if note_damage(replica, format!("row {row} fails its checksum"), effects) {
            *self.counters.entry("damaged_rows").or_default() += 1;
        }
        self.ailing.insert(shard);
        self.tend_ailing(effects);
    }

    /// `Input::Damaged`: which copy the row belongs to is for the core to say.
    pub(super) fn row_damaged(&mut self, shard: ShardId, row: &str, effects: &mut Effects) {
        if let Some(id) = self.replicas.get(&shard).map(|replica| replica.id) {
            self.found_damage(shard, id, row, effects);
        }
    }

    /// An entry can't be applied because a row that it needs is damaged: the rows stay as they are, and count no more. What the
    /// log says of the shard's shape is applied all the same.
    pub(super) fn write_off(&mut self, replica: &mut Replica, why: String, effects: &mut Effects) {
        note_damage(replica, why, effects);
        *self.counters.entry("damaged_rows").or_default() += 1;
        self.rows_in_doubt(replica, effects);
    }

    /// Nothing is applied to the rows any more; whoever waits for that is told.
    pub(super) fn rows_in_doubt(&mut self, replica: &mut Replica, effects: &mut Effects) {
        self.ailing.insert(replica.shard.id);
        if std::mem::replace(&mut replica.written_off, true) {
            return;
        }
        replica.dirty = true;
        self.checkpoint_soon = true;
        let (harmless, unknown) = replica.take_waiting();
        for waiting in harmless {
            self.reply(waiting, Response::Error(replica::not_leader()), None, None, effects);
        }
        for waiting in unknown {
            self.reply(waiting, outcome_unknown(waiting.id), None, None, effects);
        }
    }

    /// Hands over what damaged copies lead, and tells the leaders of the others. Called every second, and at once.
    pub(super) fn tend_ailing(&mut self, effects: &mut Effects) {
        let alive = self.alive();
        let me = self.config.node;
        let mut touched = Vec::new();
        let map = &self.map;
        let replicas = &mut self.replicas;
        self.ailing.retain(|shard| {
            let Some(replica) = replicas.get_mut(shard) else {
                return false;
            };
            if !replica.is_quarantined() && replica.damage.is_none() {
                return false;
            }
            // One that can't go on does not hear that it leads no more.
            if replica.is_leader() && !replica.stalled {
                if let Some(successor) = replica.successor(&alive) {
                    replica.transfer(successor.id);
                    touched.push(*shard);
                }
                return true;
            }
            let heard = replica.leader().filter(|_| !replica.stalled);
            let leader = heard.or_else(|| map.leader(*shard).map(|(_, node)| node));
            let is_told = replica.shard.is_quarantined(replica.id);
            if let (false, Some(to)) = (is_told, leader.filter(|&node| node != me)) {
                // What it was is forgotten with a restart, that it was is not.
                let why = replica.damage.as_deref().unwrap_or(WRITTEN_OFF);
                effects.push(Effect::Send {
                    to,
                    message: Message::Damaged {
                        shard: *shard,
                        replica: replica.id,
                        why: why.to_owned(),
                    },
                });
            }
            true
        });
        for shard in touched {
            self.touch(shard);
        }
    }

    /// `Message::Damaged`, at the shard's leader.
    pub(super) fn damage_reported(&mut self, from: NodeId, shard: ShardId, id: ReplicaId) {
        let known = self.replicas.get(&shard).and_then(|replica| replica.shard.replica(id));
        if known.is_some_and(|known| known.node == from) {
            self.propose_quarantine(shard, id);
        }
    }

    /// Asks the log to set a copy aside, unless it has been.
    pub(super) fn propose_quarantine(&mut self, shard: ShardId, id: ReplicaId) {
        let now = self.clock.now;
        let Some(replica) = self.replicas.get_mut(&shard).filter(|replica| replica.is_leader()) else {
            return;
        };
        if check_quarantine(&replica.shard, id).is_err() || replica.shard.is_quarantined(id) {
            return;
        }
        let waiting = Waiting {
            waiter: Waiter::Own,
            deadline: now,
            id: RequestId(0),
        };
        replica.propose(Command::Quarantine { replica: id }, waiting);
        self.touch(shard);
    }

    /// The decision, the same on every copy.
    pub(super) fn apply_quarantine(&mut self, replica: &mut Replica, id: ReplicaId, effects: &mut Effects) -> Response {
        if replica.shard.is_quarantined(id) {
            return Response::Asked;
        }
        if let Err(error) = check_quarantine(&replica.shard, id) {
            return Response::Error(error);
        }
        let mut shard = replica.shard.clone();
        shard.quarantined.push(id);
        shard.quarantined.sort();
        shard.epoch = Epoch(shard.epoch.0 + 1);
        replica.set_shard(shard);
        replica.must_keep_commit = true;
        self.map.learn_shard(&replica.shard);
        self.last_report = Time(0);
        let shard = replica.shard.id;
        effects.push(Effect::Event(Event::Quarantined { shard, replica: id }));
        if replica.id == id {
            self.rows_in_doubt(replica, effects);
        }
        Response::Asked
    }

    /// Why a copy that leads must not be asked.
    pub(in crate::daemon::core) fn refuses(&self, shard: ShardId) -> Option<WireError> {
        let replica = self.replicas.get(&shard)?;
        replica.is_quarantined().then(replica::not_leader)
    }

    /// A read met something that it can't read. The caller is sent to another copy, where there is one.
    pub(in crate::daemon::core) fn unreadable(
        &mut self,
        shard: ShardId,
        waiting: Waiting,
        error: &StateError,
        effects: &mut Effects,
    ) {
        let StateError::Checksum { key } = error else {
            let wire = WireError::new(Code::Corrupt, error.to_string());
            self.reply(waiting, Response::Error(wire), None, None, effects);
            return self.halt(error.to_string(), effects);
        };
        let alive = self.alive();
        let here = self
            .replicas
            .get(&shard)
            .map(|replica| (replica.id, replica.successor(&alive)));
        let has_successor = here.is_some_and(|(_, successor)| successor.is_some());
        let has_others = self.replicas.get(&shard).is_some_and(|replica| {
            let is_other = |other: &ReplicaDescriptor| {
                other.id != replica.id && other.role.votes() && !replica.shard.is_quarantined(other.id)
            };
            replica.shard.replicas.iter().any(is_other)
        });
        let wire = if has_successor {
            replica::not_leader()
        } else if has_others {
            // They may be whole: nothing is lost yet.
            let text = format!("{error}, and no other copy of {shard} is heard from; nothing was returned");
            let mut wire = WireError::new(Code::NoLeader, text);
            wire.retry_after_ms = 100;
            wire
        } else {
            WireError::new(
                Code::Corrupt,
                format!("{error}, and {shard} has no other copy to ask; nothing was returned"),
            )
        };
        self.reply(waiting, Response::Error(wire), None, None, effects);
        if let Some((id, _)) = here {
            self.found_damage(shard, id, key, effects);
        }
    }

    /// What is wrong with copies, for people.
    pub(in crate::daemon::core) fn ailments(&self) -> Vec<String> {
        let mut found = Vec::new();
        for replica in self.replicas.values() {
            let (shard, id) = (replica.shard.id, replica.id);
            let why = replica.damage.as_deref();
            if replica.is_quarantined() {
                let why = why.unwrap_or(match replica.shard.is_quarantined(id) {
                    true => "it is damaged, or differs from the other copies",
                    false => WRITTEN_OFF,
                });
                found.push(format!(
                    "REPLICA_QUARANTINED {id} of {shard}: {why}; it is to be replaced"
                ));
            } else if let Some(why) = why {
                found.push(format!("REPLICA_DAMAGED {id} of {shard}: {why}"));
            }
        }
        found.extend(self.overdue_births());
        for (shard, compared) in &self.compared {
            if compared.is_undecided {
                found.push(format!(
                    "REPLICAS_DIFFER the copies of {shard} differ and no majority agrees: `isxctl shard verify {shard}` shows where"
                ));
            }
        }
        found
    }
}

const WRITTEN_OFF: &str = "a row failed its checksum before the node was started again";

/// Notes what was found; false where something was known already.
pub(super) fn note_damage(replica: &mut Replica, why: String, effects: &mut Effects) -> bool {
    if replica.damage.is_some() {
        return false;
    }
    effects.push(Effect::Event(Event::Damage {
        shard: replica.shard.id,
        replica: replica.id,
        why: why.clone(),
    }));
    replica.damage = Some(why);
    true
}

/// Whether the log may set a copy aside: one must be left that votes and serves.
fn check_quarantine(shard: &ShardDescriptor, id: ReplicaId) -> Result<(), WireError> {
    let bad = |text: String| Err(WireError::new(Code::BadChange, format!("{text}; nothing was changed")));
    if shard.replica(id).is_none() {
        return bad(format!("{id} is no copy of {}", shard.id));
    }
    if shard.frozen.is_some() {
        return bad(format!("{} is being merged", shard.id));
    }
    let stays = |other: ReplicaId| other != id && !shard.is_quarantined(other);
    if !shard.replicas.iter().any(|other| other.role.votes() && stays(other.id)) {
        return bad(format!("{} would have no copy left to serve", shard.id));
    }
    Ok(())
}
