//! From what is known to what begins next.
use super::*;
use crate::daemon::core::node::PlantedBug;

impl Node {
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        node == self.config.node
            || self
                .heard
                .get(&node)
                .is_some_and(|&heard| self.clock.now.since(heard) <= crate::daemon::core::limits::PEER_SILENT_AFTER)
    }

    /// Whether what a node holds is made again elsewhere: it is no member, or has been silent for long enough.
    pub(super) fn is_lost(&self, node: NodeId) -> bool {
        let Some(directory) = &self.directory else { return false };
        let Some(info) = directory.map.nodes.get(&node) else {
            return true;
        };
        let heard = self.heard.get(&node).copied().or(self.conductor.since);
        let silent = heard.map_or(Span(0), |heard| self.clock.now.since(heard));
        info.membership == Membership::Gone
            || (node != self.config.node
                && info.overlay.maintenance_until_ms <= self.clock.wall_ms
                && silent.as_millis() >= directory.ledger.settings.heal_after_ms)
    }

    /// The cluster as this node sees it; `emptied` is a node that the question is about.
    pub(in crate::daemon::core) fn cluster_view(&self, emptied: Option<NodeId>) -> ClusterView {
        self.view_assuming(&Assumed {
            emptied,
            ..Assumed::default()
        })
    }

    /// The cluster as this node sees it, but for what is assumed.
    pub(super) fn view_assuming(&self, assumed: &Assumed<'_>) -> ClusterView {
        let now = self.clock.now;
        let emptied = assumed.emptied;
        let mut view = ClusterView {
            version: self.map.version,
            now_ms: now.since(Time(0)).as_millis(),
            recent: self.conductor.recent.iter().copied().collect(),
            ..ClusterView::default()
        };
        let Some(directory) = &self.directory else { return view };
        let ledger = &directory.ledger;
        let policy = assumed.policy.unwrap_or(&directory.map.policy);
        let settings = &ledger.settings;
        let pace = ledger.open().map(|op| op.pace).max().unwrap_or(settings.pace);
        view.settings = Settings {
            pace,
            ..settings.clone()
        };
        for info in directory
            .map
            .nodes
            .values()
            .filter(|info| info.membership != Membership::Gone)
        {
            let heard = match (info.id == self.config.node, self.heard.get(&info.id)) {
                (true, _) => now,
                (false, Some(&heard)) => heard,
                (false, None) => self.conductor.since.unwrap_or(now),
            };
            let silent = match self.config.planted {
                PlantedBug::CountsTheLost => Span(0),
                _ => now.since(heard),
            };
            let health = if silent <= crate::daemon::core::limits::PEER_SILENT_AFTER {
                Health::Up
            } else if silent <= DOWN_AFTER {
                Health::Suspect
            } else {
                Health::Down
            };
            let own = (self.disk_total, self.disk_free);
            let (disk_total, disk_free) = match info.id == self.config.node {
                true => own,
                false => self.conductor.disks.get(&info.id).copied().unwrap_or_default(),
            };
            let replaced = ledger
                .open()
                .any(|op| matches!(op.goal, Goal::Replace { old, .. } if old == info.id));
            view.nodes.push(NodeView {
                id: info.id,
                zone: info.zone.clone(),
                membership: info.membership,
                health,
                down_ms: silent.as_millis(),
                intent: if replaced {
                    Intent::DrainAll
                } else {
                    info.overlay.intent
                },
                maintenance: info.overlay.maintenance_until_ms > self.clock.wall_ms,
                disk_total,
                disk_used: disk_total.saturating_sub(disk_free),
            });
        }
        view.services.push(ServiceView {
            name: "directory".to_owned(),
            split_bytes: u64::MAX,
            split_load: 0,
            merge_bytes: 0,
            min_shards: 1,
        });
        // Five copies of the directory where there are five nodes that stay, and three while one of the five is lost: there
        // is no other node for its copy.
        let stays = |node: &&NodeView| {
            // A node that is drained for a restart keeps its copies.
            node.membership == Membership::Active && node.intent != Intent::DrainAll && Some(node.id) != emptied
        };
        let members = view.nodes.iter().filter(stays).count();
        let is_there = |node: &&NodeView| stays(node) && !node.is_lost(&view.settings);
        let has_five = view.nodes.iter().filter(is_there).count() >= 5;
        view.rules.push(Rule {
            name: "directory".to_owned(),
            replicas: if has_five { 5 } else { 3.min(members.max(1) as u32) },
            ..Rule::default()
        });
        let mut index = BTreeMap::new();
        for service in directory.map.services.values() {
            index.insert(service.name.as_str(), view.services.len() as u16);
            view.services.push(ServiceView {
                name: service.name.clone(),
                split_bytes: service.sizes.split_bytes,
                split_load: service.sizes.split_load,
                merge_bytes: service.sizes.merge_bytes,
                min_shards: service.sizes.min_shards.max(1),
            });
            view.rules.push(Rule {
                name: service.name.clone(),
                service: Some(service.name.clone()),
                replicas: match assumed.replicas {
                    Some((name, replicas)) if name == service.name => replicas,
                    _ => service.replicas,
                },
                ..Rule::default()
            });
        }
        let up = view.nodes.iter().filter(|node| node.health == Health::Up);
        let up: BTreeSet<NodeId> = up.map(|node| node.id).collect();
        // What operators laid down comes before what a service says; each of its own where it differs by service.
        let mut laid_down: BTreeMap<(Option<&str>, u16, Option<u32>), u16> = BTreeMap::new();
        let right_of_tasks: BTreeSet<ShardId> = ledger
            .tasks
            .values()
            .filter_map(|task| match task.step {
                TaskStep::Merge { right } => Some(right),
                TaskStep::Swap { .. } => None,
            })
            .collect();
        for shard in self.map.shards() {
            let said = self.conductor.loads.get(&shard.id);
            let load = said.filter(|(node, _)| up.contains(node));
            let service = match shard.id == DIRECTORY_SHARD {
                true => 0,
                false => index.get(shard.range.start.parts().0).copied().unwrap_or(0),
            };
            let marks = policy.marks.get(&shard.id).map(|marks| marks.at(self.clock.wall_ms));
            let marks = marks.unwrap_or_default();
            let ruled = policy.rule_of(shard).filter(|_| shard.id != DIRECTORY_SHARD);
            let rule = if ruled.is_none() && marks.replicas.is_none() {
                service
            } else {
                let key = (ruled.map(|rule| rule.name.as_str()), service, marks.replicas);
                *laid_down.entry(key).or_insert_with(|| {
                    let base = &view.rules[usize::from(service)];
                    let rule = Rule {
                        name: ruled.map_or_else(|| base.name.clone(), |rule| rule.name.clone()),
                        service: match ruled {
                            Some(rule) => rule.service.clone(),
                            None => base.service.clone(),
                        },
                        prefix: ruled.and_then(|rule| rule.prefix.clone()),
                        replicas: marks.replicas.or_else(|| ruled?.replicas).unwrap_or(base.replicas),
                        zones: ruled.map_or(1, |rule| rule.zones.max(1)),
                        leader_zone: ruled.and_then(|rule| rule.leader_zone.clone()),
                    };
                    view.rules.push(rule);
                    (view.rules.len() - 1) as u16
                })
            };
            let is_busy = ledger.tasks.contains_key(&shard.id)
                || right_of_tasks.contains(&shard.id)
                || shard.is_joint()
                || shard.frozen.is_some()
                || self.conductor.splitting.contains_key(&shard.id);
            let behind = |replica: &ReplicaId| load.is_some_and(|(_, load)| load.behind.contains(replica));
            let leader = load.map(|(node, _)| *node).or_else(|| {
                let (_, node) = self.map.leader(shard.id)?;
                self.is_up(node).then_some(node)
            });
            view.shards.push(ShardView {
                id: shard.id,
                epoch: shard.epoch,
                bytes: load.map_or(0, |(_, load)| load.bytes),
                entities: load.map_or(0, |(_, load)| load.entities),
                load: self.conductor.smooth.get(&shard.id).map_or(0, |smooth| smooth / 32),
                replicas: shard
                    .replicas
                    .iter()
                    .map(|replica| ReplicaView {
                        node: replica.node,
                        id: replica.id,
                        role: replica.role,
                        is_caught_up: self.is_up(replica.node)
                            && !behind(&replica.id)
                            && !shard.is_quarantined(replica.id),
                    })
                    .collect(),
                leader,
                service,
                rule,
                is_pinned: marks.pin.is_some(),
                is_busy,
                is_sticky: marks.sticky_until_ms > 0 || shard.is_held(self.clock.wall_ms),
            });
        }
        view
    }

    /// What the tasks under way are to the planner.
    pub(super) fn running_steps(&self) -> Vec<Step> {
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let step = |task: &Task| {
            let shard = self.map.shard(task.shard)?;
            let kind = match task.step {
                TaskStep::Swap {
                    add: Some((to, _)),
                    remove: Some(from),
                } => StepKind::SwapReplica { from, to, lead: None },
                TaskStep::Swap {
                    add: Some((node, _)),
                    remove: None,
                } => StepKind::AddReplica { node },
                TaskStep::Swap {
                    add: None,
                    remove: Some(node),
                } => StepKind::RemoveReplica { node },
                TaskStep::Swap { .. } => return None,
                TaskStep::Merge { right } => StepKind::Merge { right },
            };
            Some(Step {
                shard: shard.id,
                epoch: shard.epoch,
                kind,
                why: Why::Drain,
                bytes: 0,
            })
        };
        directory.ledger.tasks.values().filter_map(step).collect()
    }

    pub(super) fn plan_round(&mut self) {
        let now = self.clock.now;
        let settled = self
            .conductor
            .since
            .is_some_and(|since| now.since(since) >= SETTLE_FIRST);
        let since = now.since(self.conductor.last_plan);
        if !settled || since < PLAN_EVERY || since < self.pause(PLAN_EVERY_PER_THOUSAND) {
            return;
        }
        let Some(directory) = &self.directory else { return };
        let up = directory.map.nodes.keys().copied().filter(|&node| self.is_up(node));
        let from = PlannedFrom {
            map: self.map.changes(),
            version: directory.map.version,
            loads: self.conductor.load_changes,
            up: up.collect(),
        };
        let is_busy = directory.ledger.open().next().is_some() || !directory.ledger.tasks.is_empty();
        if !is_busy && from == self.conductor.planned_from && since < self.pause(PLAN_AGAIN_PER_THOUSAND) {
            return;
        }
        self.conductor.planned_from = from;
        self.conductor.last_plan = now;
        let ledger = directory.ledger.clone();
        self.begin_named(&ledger);
        let view = self.cluster_view(None);
        let asked_to_spread = ledger
            .open()
            .any(|op| op.goal == Goal::Rebalance && op.state == OpState::Running);
        let mut goals = Goals::needful();
        if asked_to_spread || ledger.settings.auto_rebalance {
            (goals.replicas, goals.bytes, goals.leaders, goals.load) = (true, true, true, true);
        }
        (goals.split, goals.merge) = (ledger.settings.auto_split, ledger.settings.auto_split);
        let mut running = self.running_steps();
        for (&shard, &at) in &self.conductor.handed_over {
            // Give a transfer time before another one is planned.
            if now.since(at) < HAND_OVER_EVERY
                && let Some((_, from)) = self.map.leader(shard)
            {
                running.push(Step {
                    shard,
                    epoch: Epoch(0),
                    kind: StepKind::TransferLeader { from, to: from },
                    why: Why::Leaders,
                    bytes: 0,
                });
            }
        }
        let mut steps = plan::next_steps(&view, &goals, &running, &Limits::of(&view));
        // What an operation names is its own: a shard that it has moved would come back before it is seen to be done, and
        // then it never would be.
        let named: BTreeSet<ShardId> = ledger
            .open()
            // How many copies there are to be is carried out by the planner.
            .filter(|op| op.state == OpState::Running && !matches!(op.goal, Goal::SetReplicas { .. }))
            .flat_map(|op| op.goal.shards())
            .collect();
        steps.retain(|step| step.why <= Why::Drain || !named.contains(&step.shard));
        let mut spread_left = 0;
        for step in &steps {
            let is_for_evenness = self.begin_step(&ledger, step, &view, None);
            spread_left += u64::from(is_for_evenness || step.why > Why::Drain);
        }
        self.conductor.spread_left = spread_left;
        running.extend(steps);
        let scatters = ledger.open().filter(|op| op.state == OpState::Running);
        for op in scatters.filter(|op| matches!(op.goal, Goal::Scatter { .. })) {
            let Some((view, goals)) = scattered(&view, &op.goal) else {
                continue;
            };
            let steps = plan::next_steps(&view, &goals, &running, &Limits::of(&view));
            self.conductor.scatter_left.insert(op.id, steps.len() as u64);
            for step in &steps {
                self.begin_step(&ledger, step, &view, Some(op));
            }
            running.extend(steps);
        }
        self.conductor
            .scatter_left
            .retain(|id, _| ledger.ops.get(id).is_some_and(|op| !op.state.is_over()));
    }

    /// Operations that name their shards themselves.
    pub(super) fn begin_named(&mut self, ledger: &crate::daemon::core::ledger::Ledger) {
        let mut begins = Vec::new();
        let mut fails = Vec::new();
        let mut cuts = Vec::new();
        for op in ledger.open().filter(|op| op.state == OpState::Running) {
            let swap = |shard: ShardId, add: Option<NodeId>, remove: Option<NodeId>| Task {
                shard,
                op: op.id,
                step: TaskStep::Swap {
                    add: add.map(|node| (node, ReplicaId(0))),
                    remove,
                },
            };
            match op.goal {
                Goal::Move { shard, from, to } => match self.is_made_idle(ledger, shard, from, to) {
                    true => fails.push((
                        op.id,
                        format!("{to} has a copy of {shard} by now, beside that of {from}"),
                    )),
                    false => begins.push(swap(shard, Some(to), Some(from))),
                },
                Goal::AddReplica { shard, to } => begins.push(swap(shard, Some(to), None)),
                Goal::RemoveReplica { shard, from } => begins.push(swap(shard, None, Some(from))),
                Goal::Replace { old, new } => {
                    let room = op.pace.copies_per_node() as usize;
                    let under_way = ledger.tasks.values().filter(|task| task.op == op.id).count();
                    let left = self
                        .map
                        .shards()
                        .filter(|shard| shard.replica_on(old).is_some() && shard.replica_on(new).is_none())
                        .filter(|shard| !ledger.tasks.contains_key(&shard.id));
                    let left: Vec<ShardId> = left
                        .map(|shard| shard.id)
                        .take(room.saturating_sub(under_way))
                        .collect();
                    begins.extend(left.into_iter().map(|shard| swap(shard, Some(new), Some(old))));
                }
                Goal::Merge { left, right } => match (self.map.shard(left), self.map.shard(right)) {
                    // What is being changed for another reason is settled first.
                    (Some(l), Some(r))
                        if ledger.tasks.contains_key(&l.id)
                            || ledger.tasks.contains_key(&r.id)
                            || l.settled_nodes().is_none()
                            || r.settled_nodes().is_none()
                            || self.has_lost_copy(l)
                            || self.has_lost_copy(r)
                            || l.is_held(self.clock.wall_ms)
                            || r.is_held(self.clock.wall_ms) => {}
                    (Some(l), Some(r)) => match align(l, r) {
                        Ok(Some((add, remove))) => begins.push(swap(right, Some(add), Some(remove))),
                        Ok(None) => begins.push(Task {
                            shard: left,
                            op: op.id,
                            step: TaskStep::Merge { right },
                        }),
                        Err(why) => fails.push((op.id, why)),
                    },
                    _ => {}
                },
                Goal::Split { ref at, .. } => cuts.extend(self.next_cut(&op.goal, at)),
                _ => {}
            }
        }
        for (shard, at) in cuts {
            self.begin_cut(shard, at);
        }
        for task in begins {
            let rests = self.rests(task.shard, &task.step);
            if !rests && !ledger.tasks.contains_key(&task.shard) && !self.is_reached(&ledger.ops[&task.op].goal) {
                self.ledger(LedgerCommand::Begin(task));
            }
        }
        for (op, why) in fails {
            self.turn(op, OpState::Failed, why);
        }
    }

    /// Whether a shard that is at nothing has copies at both ends of a move, the new one a voter: somebody else put the other one there.
    fn is_made_idle(
        &self,
        ledger: &crate::daemon::core::ledger::Ledger,
        shard: ShardId,
        from: NodeId,
        to: NodeId,
    ) -> bool {
        let votes_on = |shard: &ShardDescriptor, node: NodeId| {
            let copy = shard.replica_on(node);
            copy.is_some_and(|copy| copy.role == ReplicaRole::Voter)
        };
        !ledger.tasks.contains_key(&shard)
            && self
                .map
                .shard(shard)
                .is_some_and(|shard| shard.replica_on(from).is_some() && votes_on(shard, to))
    }

    /// `asked` is the operation that wants it, where it is not for the planner to know. Says whether it is a rebalancing's:
    /// what no other operation wants is, and such an operation is not over before that is done, whatever it is for.
    pub(super) fn begin_step(
        &mut self,
        ledger: &crate::daemon::core::ledger::Ledger,
        step: &Step,
        view: &ClusterView,
        asked: Option<&Op>,
    ) -> bool {
        let running = |goal: &dyn Fn(&Goal) -> bool| ledger.open().find(|op| goal(&op.goal));
        let (add, remove) = match step.kind {
            StepKind::TransferLeader { to, .. } => {
                self.conductor.handed_over.insert(step.shard, self.clock.now);
                self.conductor.recent.push_back(RecentMove {
                    shard: step.shard,
                    what: Moved::Leader,
                    from: step.nodes().next().unwrap_or(to),
                    to,
                    at_ms: self.clock.now.since(Time(0)).as_millis(),
                });
                self.transfers.push((step.shard, to));
                return false;
            }
            StepKind::Split { by, .. } => {
                if let Some(shard) = self.map.shard(step.shard)
                    && !self.conductor.splitting.contains_key(&step.shard)
                    && self
                        .conductor
                        .split_tried
                        .get(&step.shard)
                        .is_none_or(|&at| self.clock.now.since(at) >= SPLIT_AGAIN_AFTER)
                {
                    self.conductor.split_tried.insert(step.shard, self.clock.now);
                    let entities = view
                        .shards
                        .iter()
                        .find(|s| s.id == step.shard)
                        .map_or(0, |s| s.entities);
                    self.conductor.splitting.insert(
                        step.shard,
                        Splitting {
                            epoch: shard.epoch,
                            entities,
                            counted: 0,
                            from: shard.range.start.clone(),
                            at: None,
                            child: None,
                            by_load: by == plan::SplitBy::Load,
                        },
                    );
                }
                return false;
            }
            StepKind::Merge { right } => {
                let goal = Goal::Merge {
                    left: step.shard,
                    right,
                };
                if ledger.same(&goal, RequestId(0)).is_none() {
                    self.start_own(goal, "small neighbours");
                }
                return false;
            }
            StepKind::AddReplica { node } => (Some(node), None),
            StepKind::SwapReplica { from, to, .. } => (Some(to), Some(from)),
            StepKind::RemoveReplica { node } => (None, Some(node)),
        };
        let for_node = remove.and_then(|from| running(&|goal: &Goal| goal.node() == Some(from)));
        let lost = remove
            .and_then(|from| view.node(from))
            .filter(|node| node.is_lost(&view.settings));
        // Copies more or fewer because somebody said how many.
        let for_copies = match step.kind {
            StepKind::SwapReplica { .. } => None,
            _ => running(&|goal: &Goal| matches!(goal, Goal::SetReplicas { of, .. } if self.is_within(step.shard, of))),
        };
        let op = match (asked.or(for_node).or(for_copies), lost) {
            (Some(op), _) => Some(op),
            (None, Some(node)) => {
                self.start_own(Goal::Heal { node: node.id }, "it does not answer");
                return false;
            }
            (None, None) => running(&|goal: &Goal| *goal == Goal::Rebalance),
        };
        let Some(op) = op else {
            self.start_own(Goal::Rebalance, &format!("{}", step.why));
            return true;
        };
        let is_rebalance = op.goal == Goal::Rebalance;
        // Whoever pauses a rebalancing does not mean lost copies.
        let (op, is_running) = (
            op.id,
            op.state == OpState::Running || is_rebalance && step.why == Why::Heal,
        );
        let task = Task {
            shard: step.shard,
            op,
            step: TaskStep::Swap {
                add: add.map(|node| (node, ReplicaId(0))),
                remove,
            },
        };
        if is_running && !self.rests(task.shard, &task.step) {
            self.ledger(LedgerCommand::Begin(task));
        }
        is_rebalance
    }

    pub(super) fn start_own(&mut self, goal: Goal, because: &str) {
        let op = Box::new(self.new_op(goal, None, None, "isx", because, RequestId(0)));
        self.ledger(LedgerCommand::Start { op, at: None });
    }

    /// An operation as it begins.
    pub(in crate::daemon::core) fn new_op(
        &self,
        goal: Goal,
        pace: Option<Pace>,
        protect_p99_us: Option<u64>,
        by: &str,
        because: &str,
        request: RequestId,
    ) -> Op {
        let settings = self.directory.as_ref().map(|directory| directory.ledger.settings.pace);
        let (total, total_bytes) = self.left_of(&goal);
        let inverse = self.inverse_of(&goal);
        Op {
            id: OpId(0),
            goal,
            pace: pace.or(settings).unwrap_or_default(),
            protect_p99_us: protect_p99_us.unwrap_or(0),
            state: OpState::Running,
            by: by.to_owned(),
            because: because.chars().take(BECAUSE_MAX).collect(),
            request,
            created_ms: self.clock.wall_ms,
            ended_ms: 0,
            total,
            total_bytes,
            result: String::new(),
            config_epoch: self.directory.as_ref().map_or(0, |directory| directory.history.epoch()),
            inverse,
            undoes: None,
        }
    }
}

/// What a view is made with instead of what is so.
#[derive(Default)]
pub(super) struct Assumed<'a> {
    /// A node that the question is about.
    pub emptied: Option<NodeId>,
    /// What operators laid down.
    pub policy: Option<&'a Policy>,
    /// A service and the copies of its shards.
    pub replicas: Option<(&'a str, u32)>,
}

/// What the planner is asked for a scatter: the service's shards alone, evened out among themselves.
pub(super) fn scattered(view: &ClusterView, goal: &Goal) -> Option<(ClusterView, Goals)> {
    let Goal::Scatter {
        service,
        bytes,
        leaders,
        load,
    } = goal
    else {
        return None;
    };
    let number = view.services.iter().position(|known| known.name == *service)?;
    let view = ClusterView {
        shards: view
            .shards
            .iter()
            .filter(|shard| usize::from(shard.service) == number)
            .cloned()
            .collect(),
        ..view.clone()
    };
    let goals = Goals {
        replicas: *bytes,
        bytes: *bytes,
        leaders: *leaders,
        load: *load,
        ..Goals::none()
    };
    Some((view, goals))
}
