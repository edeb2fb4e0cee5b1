//! What other nodes say: reports, Raft messages, requests handed on.
use super::*;

impl Node {
    pub(super) fn heard_from(&mut self, from: NodeId, effects: &mut Effects) {
        self.heard.insert(from, self.clock.now);
        if self.silent.remove(&from) {
            self.wake_leaders_of(from, false);
            effects.push(Effect::Event(Event::Peer {
                node: from,
                alive: true,
            }));
        }
    }

    pub(super) fn connection(&mut self, peer: NodeId, up: bool, effects: &mut Effects) {
        if up {
            self.connected.insert(peer);
            self.last_report = Time(0);
            self.wake_leaders_of(peer, true);
            return;
        }
        self.connected.remove(&peer);
        for replica in self.replicas.values_mut() {
            replica.unreachable(peer);
        }
        let lost: Vec<u64> = self
            .forwards
            .iter()
            .filter(|(_, f)| f.to == peer)
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            let Some(forwarded) = self.forwards.remove(&id) else {
                continue;
            };
            let response = if forwarded.is_write {
                outcome_unknown(forwarded.waiting.id)
            } else {
                Response::Error(WireError::new(
                    Code::NoLeader,
                    format!("{peer} went away; nothing was done"),
                ))
            };
            self.reply(forwarded.waiting, response, None, None, effects);
        }
    }

    pub(super) fn watch_peers(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let mut lost = Vec::new();
        for (&peer, &heard) in &self.heard {
            if now.since(heard) > PEER_SILENT_AFTER && self.silent.insert(peer) {
                effects.push(Effect::Event(Event::Peer {
                    node: peer,
                    alive: false,
                }));
                lost.push(peer);
            }
        }
        // Who was not heard since the start is as good as silent: shards need not stay awake for it.
        if self.config.hibernation.after_ticks.is_some() && now.since(self.started) > UNHEARD_AFTER {
            let members = self.map.nodes.values().filter(|info| info.id != self.config.node);
            let unheard = members.filter(|info| !self.heard.contains_key(&info.id));
            self.silent.extend(unheard.map(|info| info.id));
        }
        for peer in lost {
            self.wake_followers_of(peer);
        }
    }

    /// Nodes heard from lately.
    pub(in crate::daemon::core) fn alive(&self) -> BTreeSet<NodeId> {
        let now = self.clock.now;
        self.heard
            .iter()
            .filter(|&(_, &heard)| now.since(heard) <= PEER_SILENT_AFTER)
            .map(|(&node, _)| node)
            .collect()
    }

    /// Tells the others how this node is. Of the shards that it leads a report names only some, in turn: there may be
    /// thousands, and hardly any has changed.
    pub(super) fn report(&mut self, effects: &mut Effects) {
        let named = self.next_led(LED_PER_REPORT);
        let led = named.iter().filter_map(|shard| self.replicas.get(shard));
        let leads = led.map(|replica| (replica.shard.id, replica.term())).collect();
        let report = Report {
            node: self.config.node,
            store_id: self.config.store_id,
            address: self.config.address.clone(),
            version: self.config.version.clone(),
            map_version: self.map.version,
            schema_revision: self.map.schema_revision(),
            leads,
            news: self.news_of_led(),
            frozen: self.frozen_here(),
            writes: self.own_writes(),
            copy_rate: self.copy_rate(),
            copies: self.wanted_copies(),
            load: None,
        };
        let directory = self.replicas.get(&DIRECTORY_SHARD).and_then(Replica::leader);
        let directory = directory.or_else(|| self.map.leader(DIRECTORY_SHARD).map(|(_, node)| node));
        if self.load_told.0 != directory {
            self.load_told = (directory, 0);
        }
        // Somebody new at the directory knows nothing of loads: it hears of all of them, and once more if that is lost.
        self.load_told.1 = self.load_told.1.saturating_add(1);
        let is_new = self.load_told.1 <= FULL_LOADS;
        let others = self
            .map
            .nodes
            .values()
            .filter(|info| info.membership != Membership::Pending);
        for node in others.map(|info| info.id).filter(|&node| node != self.config.node) {
            let load = (directory == Some(node)).then(|| self.load_of(if is_new { &self.watch.led } else { &named }));
            effects.push(Effect::Send {
                to: node,
                message: Message::Report(Report { load, ..report.clone() }),
            });
        }
    }

    /// Shards led here of which the directory has not heard as they are. Only what is on this disk for good is told.
    pub(super) fn news_of_led(&mut self) -> Vec<ShardDescriptor> {
        let mut news = Vec::new();
        let mut known = Vec::new();
        for shard in &self.watch.untold {
            match self.replicas.get(shard) {
                Some(replica) if replica.is_leader() && self.is_untold(replica) => {
                    if replica.kept_in <= self.persisted && news.len() < NEWS_MAX {
                        news.push(replica.shard.clone());
                    }
                }
                _ => known.push(*shard),
            }
        }
        for shard in known {
            self.watch.untold.remove(&shard);
        }
        news
    }

    pub(super) fn received(&mut self, from: NodeId, message: Message, state: &mut dyn State, effects: &mut Effects) {
        let sender = self.map.nodes.get(&from);
        if sender.is_some_and(|info| info.membership == Membership::Pending) {
            return self.drop_message(from, "from a node that is not let in yet", effects);
        }
        match message {
            Message::Raft(raft) => self.raft_received(from, raft, effects),
            Message::Forward {
                id,
                hops,
                timeout_ms,
                principal,
                request,
            } => {
                if !self.forwards_seen.entry(from).or_default().is_new(id) {
                    return self.drop_message(from, "a request that was handed on before", effects);
                }
                let waiter = Waiter::Peer { node: from, id };
                let waiting = Waiting {
                    waiter,
                    deadline: self.deadline(timeout_ms),
                    id: RequestId(0),
                };
                self.asked(waiting, principal, request, hops, state, effects);
            }
            Message::ForwardReply { id, response, hint } => {
                if let Some(hint) = &hint {
                    self.learn_hint(hint);
                }
                if let Some(forwarded) = self.forwards.remove(&id) {
                    if let Response::Error(WireError {
                        code: Code::LeaderChanged | Code::NoLeader,
                        ..
                    }) = &response
                    {
                        self.counters
                            .entry("forward_retry")
                            .and_modify(|n| *n += 1)
                            .or_insert(1);
                    }
                    self.reply(forwarded.waiting, response, hint, None, effects);
                }
            }
            Message::Deliver { id, shard, parcels } => {
                if let Err(error) = self.delivered_here(from, id, shard, parcels, state, effects) {
                    self.halt(format!("a message's receiver in {shard}: {error}"), effects);
                }
            }
            Message::Delivered { id, receipts, failed } => self.batch_back(id, receipts, failed),
            Message::Summed {
                shard,
                replica,
                index,
                sum,
            } => self.summed(from, shard, replica, index, sum, effects),
            Message::Damaged { shard, replica, .. } => self.damage_reported(from, shard, replica),
            Message::Report(report) => self.reported(from, &report, effects),
            Message::Sleep(offer) => self.sleep_heard(from, offer, false),
            Message::SleepAccepted(answer) => self.sleep_heard(from, answer, true),
            Message::Map(view) => {
                for shard in view.shards.iter().filter(|_| view.version > 0) {
                    let known = self.directory_epochs.entry(shard.id).or_default();
                    *known = shard.epoch.max(*known);
                }
                self.map.learn(&view);
                self.note_births(&view.shards);
                if view.version > 0 {
                    self.told.learn(&view);
                }
            }
        }
    }

    pub(super) fn learn_hint(&mut self, hint: &RouteHint) {
        self.map.learn_shard(&hint.shard);
        if let Some((term, node)) = hint.leader {
            self.map.learn_leader(hint.shard.id, term, node);
        }
    }

    pub(super) fn raft_received(&mut self, from: NodeId, raft: RaftMessage, effects: &mut Effects) {
        let shard = raft.shard;
        let votes = matches!(
            raft.message.msg_type,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if self.is_unproven(from) {
            return self.drop_message(from, "from a node whose store is not known here yet", effects);
        }
        if votes && self.clock.now < self.vote_from {
            return self.drop_message(from, "a vote was asked for just after the start", effects);
        }
        if raft.message.from != raft.from.0 || raft.message.to != raft.to.0 {
            return self.drop_message(from, "names inside and outside differ", effects);
        }
        if self.condemned.contains_key(&shard) || self.burying.contains(&shard) {
            return self.drop_message(from, "for a replica that is being destroyed", effects);
        }
        let (may_send, is_deaf) = (self.may_send_snapshots(), self.is_deaf());
        if let Some(replica) = self.replicas.get_mut(&shard) {
            if replica.id != raft.to {
                return self.drop_message(from, "for another replica of this shard", effects);
            }
            if replica
                .shard
                .replica(raft.from)
                .is_some_and(|sender| sender.node != from)
            {
                return self.drop_message(from, "from a replica of another node", effects);
            }
            replica.allow_snapshots(may_send);
            if replica.is_asleep() && !replica.is_leader() {
                if votes && is_deaf {
                    return;
                }
                if raft.message.msg_type != MessageType::MsgHeartbeatResponse {
                    replica.wake(replica.leader().is_some_and(|leader| self.silent.contains(&leader)));
                }
            }
            // Also where it is dropped: it may have woken the replica.
            self.touched.insert(shard);
            if let Err(why) = replica.receive(from, raft.message) {
                self.drop_message(from, why, effects);
            }
            return;
        }
        if self.floors.get(&shard).is_some_and(|&floor| raft.to <= floor) {
            return self.drop_message(from, "for a replica that was removed", effects);
        }
        if self.is_to_be_born(shard) {
            return self.drop_message(from, "for a copy that is about to begin", effects);
        }
        // Perhaps the split that makes this shard is about to be applied here.
        let now = self.clock.now;
        let since = *self.unknown_since.entry(shard).or_insert(now);
        let from_leader = matches!(
            raft.message.msg_type,
            MessageType::MsgAppend | MessageType::MsgHeartbeat
        );
        // A split's child has the same replica ids as its parent.
        let may_be_born = self.replicas.values().any(|replica| replica.id == raft.to);
        let has_waited = now.since(since) > STASH_FOR;
        // Whoever asks for a vote may be the last one that has the shard's rows: a split's child whose third copy was lost
        // before this one came about. A copy that has promised nothing may vote.
        let is_due = (has_waited || !may_be_born) && from_leader || has_waited && votes;
        if is_due && self.has_promised(shard, raft.to) {
            if has_waited && from_leader {
                self.unknown_since.remove(&shard);
                self.birth_is_overdue(shard, raft.to, from, effects);
            }
            return self.drop_message(
                from,
                "for a copy that another shard's log has yet to make again",
                effects,
            );
        }
        if is_due {
            // It is not: this node is to get the shard by snapshot.
            self.unknown_since.remove(&shard);
            let mut meta = replica::empty_meta(shard);
            // What the log has of an earlier copy does not count for this one.
            meta.log_from = LogSeq(self.next_seq.0 - 1);
            meta.shard.replicas = vec![ReplicaDescriptor {
                node: self.config.node,
                id: raft.to,
                role: ReplicaRole::Learner,
            }];
            let orphan = self.orphans.remove(&shard).unwrap_or_default();
            self.add_replica(
                meta,
                raft.to,
                Orphan {
                    hard_state: orphan.hard_state,
                    entries: Vec::new(),
                },
            );
            if let Some(replica) = self.replicas.get_mut(&shard) {
                replica.made_at = raft.epoch;
            }
            effects.push(Effect::Event(Event::ReplicaCreated {
                shard,
                replica: raft.to,
            }));
            return self.raft_received(from, raft, effects);
        }
        if self.unknown_since.len() > STASH_MESSAGES_MAX {
            self.unknown_since.pop_first();
        }
        if self.stash.len() >= STASH_MESSAGES_MAX {
            self.stash.pop_front();
        }
        self.stash.push_back((now, from, raft));
    }

    pub(super) fn drop_message(&mut self, from: NodeId, why: &'static str, effects: &mut Effects) {
        *self.counters.entry("dropped_messages").or_default() += 1;
        effects.push(Effect::Event(Event::Dropped { from, why }));
    }
}

/// Shards that one report names in turn.
const LED_PER_REPORT: usize = 256;
/// A member that was not heard by then, after the start, is silent.
const UNHEARD_AFTER: Span = Span::secs(3);
/// Reports with all loads to somebody new at the directory.
const FULL_LOADS: u32 = 3;
