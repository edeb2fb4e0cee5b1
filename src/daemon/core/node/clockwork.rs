//! What time brings: ticks, requests that nobody answered.
use super::*;

impl Node {
    pub(super) fn ticked(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let elapsed = now.since(self.last_tick).0 / TICK.0;
        if elapsed == 0 {
            return;
        }
        // After a stall Raft's clock may run behind real time, never ahead: leases depend on that. A few ticks at most,
        // so that what waits in the sockets is heard before anybody calls an election.
        self.last_tick = if elapsed > TICKS_AT_ONCE {
            now
        } else {
            self.last_tick + Span(elapsed * TICK.0)
        };
        let may_send = self.may_send_snapshots();
        for &shard in &self.watch.awake {
            let Some(replica) = self.replicas.get_mut(&shard) else {
                continue;
            };
            if self.condemned.contains_key(&shard) {
                continue;
            }
            replica.allow_snapshots(may_send);
            if replica.should_leave_joint() {
                let waiting = Waiting {
                    waiter: Waiter::Own,
                    deadline: now,
                    id: RequestId(0),
                };
                replica.propose(Command::LeaveJoint, waiting);
            }
            for _ in 0..elapsed.min(TICKS_AT_ONCE) {
                replica.tick(now);
            }
            if replica.has_work() {
                self.touched.insert(shard);
            }
        }
        self.watch_peers(effects);
        self.tend_beds();
        if now.since(self.last_report) >= REPORT_EVERY {
            self.last_report = now;
            self.tend_copies();
            self.report(effects);
            self.tend_directory();
            self.tend_schemas();
            self.find_condemned(effects);
            self.begin_passes();
            self.tend_ailing(effects);
            self.share_changes();
        }
        self.tend_births(effects);
        self.tick_dispatch();
        self.tend_passes(effects);
        self.tick_timers();
        self.unpark |= !self.parked.is_empty();
        if now.since(self.last_expiry) >= EXPIRE_EVERY {
            self.last_expiry = now;
            self.expire(effects);
            self.expire_watchers(effects);
        }
        let counted = now.since(self.last_count).as_millis();
        if counted >= 2_000 {
            self.last_count = now;
            let awake = self.watch.awake.iter();
            for shard in awake {
                let Some(replica) = self.replicas.get_mut(shard) else {
                    continue;
                };
                replica.requests_per_s = std::mem::take(&mut replica.served) * 1_000 / counted;
            }
            self.count_messages(counted);
        }
        if self.stopping.is_some() {
            self.hand_over_leaderships();
        }
    }

    pub(super) fn expire(&mut self, effects: &mut Effects) {
        let now = self.clock.now;
        let (mut harmless, mut unknown) = (Vec::new(), Vec::new());
        for shard in &self.watch.awake {
            let Some(replica) = self.replicas.get_mut(shard) else {
                continue;
            };
            replica.forget_followers(now);
            let (a, b) = replica.take_expired(now);
            harmless.extend(a);
            unknown.extend(b);
            let late: Vec<ReplicaId> = replica
                .sending
                .iter()
                .filter(|(_, sending)| now.since(sending.moved) > SNAPSHOT_TIMEOUT)
                .map(|(&id, _)| id)
                .collect();
            for id in late {
                replica.snapshot_sent(id, false, now);
                self.touched.insert(*shard);
            }
        }
        let late: Vec<u64> = self
            .forwards
            .iter()
            .filter(|(_, f)| f.waiting.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            if let Some(forwarded) = self.forwards.remove(&id) {
                if forwarded.is_write {
                    unknown.push(forwarded.waiting)
                } else {
                    harmless.push(forwarded.waiting)
                }
            }
        }
        for waiting in harmless {
            let text = "no leader confirmed the request in time; nothing was done";
            self.reply(
                waiting,
                Response::Error(WireError::new(Code::NoLeader, text)),
                None,
                None,
                effects,
            );
        }
        for waiting in unknown {
            self.reply(waiting, outcome_unknown(waiting.id), None, None, effects);
        }
        self.stash.retain(|(since, _, _)| now.since(*since) < STASH_FOR);
        self.proposed_lately
            .retain(|_, since| now.since(*since) < PROPOSE_AGAIN_AFTER);
    }
}
