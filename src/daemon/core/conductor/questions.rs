//! What operators ask: begin, list, control operations; change nodes and settings.
use super::*;

impl Node {
    /// A request about operations, nodes or settings, at the directory's leader.
    pub(in crate::daemon::core) fn operator_asked(
        &mut self,
        waiting: Waiting,
        by: &str,
        request: Request,
        effects: &mut Effects,
    ) {
        let response = match request {
            Request::ListOps { all } => Response::Ops(self.op_views(all)),
            Request::ShowSettings => {
                let settings = self
                    .directory
                    .as_ref()
                    .map(|directory| directory.ledger.settings.clone());
                Response::Settings(settings.unwrap_or_default())
            }
            Request::MayStop { nodes } => match check::ok_to_stop(&self.cluster_view(None), &nodes) {
                Ok(()) => Response::Asked,
                Err(blockers) => Response::Error(refused("these nodes can't be stopped now", &blockers)),
            },
            Request::StartOp {
                goal,
                pace,
                protect_p99_us,
                because,
                dry_run,
                id,
            } => {
                let op = self.new_op(goal, pace, protect_p99_us, by, &because, id);
                match self.check_op(&op) {
                    Err(error) => Response::Error(error),
                    Ok(view) if dry_run => Response::Ops(vec![view]),
                    Ok(_) => {
                        let command = DirectoryCommand::Ledger(LedgerCommand::Start(Box::new(op)));
                        return self.propose_for(waiting, command);
                    }
                }
            }
            Request::ControlOp { op, action, .. } => {
                let wall_ms = self.clock.wall_ms;
                let turn = |state, result: &str| LedgerCommand::Turn {
                    op,
                    state,
                    result: result.to_owned(),
                    wall_ms,
                };
                let command = match action {
                    OpAction::Pause => turn(OpState::Paused, ""),
                    OpAction::Resume => turn(OpState::Running, ""),
                    OpAction::Cancel => turn(OpState::Cancelled, &format!("cancelled by {by}")),
                    OpAction::SetPace(pace) => LedgerCommand::SetPace { op, pace },
                };
                return self.propose_for(waiting, DirectoryCommand::Ledger(command));
            }
            Request::ChangeNode { node, change, .. } => {
                if change == NodeChange::Forget && self.is_up(node) {
                    let text = format!("{node} answers; a living node leaves: nothing was changed");
                    Response::Error(WireError::new(Code::UnsafeOp, text))
                } else {
                    let wall_ms = self.clock.wall_ms;
                    let command = DirectoryCommand::ChangeNode { node, change, wall_ms };
                    return self.propose_for(waiting, command);
                }
            }
            Request::SetSettings { settings, .. } => match check_settings(&settings) {
                Ok(()) => {
                    return self.propose_for(waiting, DirectoryCommand::Ledger(LedgerCommand::Set(settings)));
                }
                Err(text) => Response::Error(WireError::new(Code::BadRequest, text)),
            },
            Request::SetService {
                name, replicas, sizes, ..
            } => {
                if !(1..=7).contains(&replicas) || replicas % 2 == 0 {
                    let text = format!("{replicas} copies: 1, 3, 5 or 7 can be kept; nothing was changed");
                    Response::Error(WireError::new(Code::BadRequest, text))
                } else {
                    let command = DirectoryCommand::SetService { name, replicas, sizes };
                    return self.propose_for(waiting, command);
                }
            }
            Request::CreateService {
                name,
                replicas,
                cuts,
                dry_run,
                ..
            } => match self.draft_service(name, replicas, cuts) {
                Err(error) => Response::Error(error),
                Ok(_) if dry_run => Response::Asked,
                Ok(new) => return self.propose_for(waiting, DirectoryCommand::CreateService(new)),
            },
            Request::ShowSchemas { service } => Response::Schemas(self.schema_records(service.as_deref())),
            Request::SetSchemas {
                schemas,
                allow_breaking,
                because,
                dry_run,
                ..
            } => match self.draft_schemas(schemas, allow_breaking, by, &because) {
                Err(error) => Response::Error(error),
                Ok(command) if dry_run => Response::Schemas(command.records),
                Ok(command) => return self.propose_for(waiting, DirectoryCommand::Catalog(command)),
            },
            _ => Response::Error(WireError::new(Code::BadRequest, "not a question to the directory")),
        };
        self.reply(waiting, response, None, None, effects);
    }

    pub(super) fn propose_for(&mut self, waiting: Waiting, command: DirectoryCommand) {
        if let Some(replica) = self.replicas.get_mut(&DIRECTORY_SHARD) {
            replica.propose(crate::daemon::core::command::Command::Directory(command), waiting);
            self.touch(DIRECTORY_SHARD);
        }
    }

    pub(super) fn propose_directory(&mut self, command: DirectoryCommand) {
        let waiting = Waiting {
            waiter: Waiter::Own,
            deadline: self.clock.now + ASK_TIMEOUT,
            id: RequestId(0),
        };
        self.propose_for(waiting, command);
    }

    /// Whether an operation can reach its goal, and what it takes.
    pub(super) fn check_op(&self, op: &Op) -> Result<OpView, WireError> {
        let view = self.cluster_view(op.goal.node());
        let unknown_shard = |shard: ShardId| {
            let text = format!("no {shard} is known; nothing was changed");
            WireError::new(Code::NoSuchShard, text)
        };
        if let Some(directory) = &self.directory {
            // Attaching to what is under way needs no check.
            if let Some(known) = directory.ledger.same(&op.goal, op.request) {
                return Ok(self.op_view(known, &view));
            }
            if let Some(other) = directory.ledger.conflict(&op.goal) {
                let text = format!("{} ({}) is in the way; nothing was changed", other.id, other.goal);
                return Err(WireError::new(Code::OpConflict, text));
            }
        }
        let shard = |id: ShardId| self.map.shard(id).ok_or_else(|| unknown_shard(id));
        let bad = |text: String| Err(WireError::new(Code::BadChange, text));
        let why = |what: &str| format!("{what} can't be done");
        let planned = match op.goal {
            Goal::Drain {
                node,
                everything: false,
            } => check::check_restart(&view, &[node]),
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } => check::check_leave(&view, &[node]),
            Goal::Replace { old, new } => {
                for node in [old, new] {
                    if view.node(node).is_none() {
                        let text = format!("{node} is no member of this cluster; nothing was changed");
                        return Err(WireError::new(Code::NoSuchNode, text));
                    }
                }
                if old == new || view.node(new).is_some_and(|node| !node.is_target()) {
                    return bad(format!("{new} can't take copies now; nothing was changed"));
                }
                Ok(plan::Plan::default())
            }
            Goal::Rebalance => Ok(plan::plan(
                &view,
                &Goals {
                    replicas: true,
                    bytes: true,
                    leaders: true,
                    load: true,
                    ..Goals::none()
                },
            )),
            Goal::Move { shard: id, from, to } => {
                let shard = shard(id)?;
                if shard.replica_on(from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replica_on(to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, to)?;
                Ok(plan::Plan::default())
            }
            Goal::AddReplica { shard: id, to } => {
                if shard(id)?.replica_on(to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, to)?;
                Ok(plan::Plan::default())
            }
            Goal::RemoveReplica { shard: id, from } => {
                let shard = shard(id)?;
                if shard.replica_on(from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replicas.len() <= 1 {
                    return bad(format!("{from} has the last copy of {id}; nothing was changed"));
                }
                Ok(plan::Plan::default())
            }
            Goal::Merge { left, right } => {
                let (left, right) = (shard(left)?, shard(right)?);
                if left.range.end != right.range.start || left.range.service() != right.range.service() {
                    let text = format!(
                        "{} {} does not end where {} {} begins; nothing was changed",
                        left.id, left.range, right.id, right.range
                    );
                    return Err(WireError::new(Code::BadMerge, text));
                }
                Ok(plan::Plan::default())
            }
        };
        let planned = planned.map_err(|blockers| refused(&why(&op.goal.to_string()), &blockers))?;
        let mut shown = self.op_view(op, &view);
        shown.op.state = OpState::Planned;
        if !planned.steps.is_empty() {
            shown.total = planned.steps.len() as u64;
            shown.total_bytes = planned.bytes;
            shown.steps = planned
                .steps
                .iter()
                .take(STEPS_SHOWN)
                .map(ToString::to_string)
                .collect();
            shown.eta_s = Some((planned.time_ms.0.div_ceil(1000), planned.time_ms.1.div_ceil(1000)));
            shown.tolerance = (
                planned.tolerance_before.nodes,
                planned.tolerance_lowest.nodes,
                planned.tolerance_after.nodes,
            );
        }
        Ok(shown)
    }

    pub(super) fn check_target(&self, view: &ClusterView, to: NodeId) -> Result<(), WireError> {
        match view.node(to) {
            None => {
                let text = format!("{to} is no member of this cluster; nothing was changed");
                Err(WireError::new(Code::NoSuchNode, text))
            }
            Some(node) if !node.is_target() => {
                let text = format!(
                    "{to} can't take copies now: it is silent, draining or in maintenance; nothing was changed"
                );
                Err(WireError::new(Code::BadTarget, text))
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) fn op_views(&self, all: bool) -> Vec<OpView> {
        let view = self.cluster_view(None);
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let ops: Vec<Op> = directory
            .ledger
            .ops
            .values()
            .filter(|op| all || !op.state.is_over())
            .cloned()
            .collect();
        let mut views: Vec<OpView> = ops.iter().map(|op| self.op_view(op, &view)).collect();
        for shown in views.iter_mut().filter(|shown| !shown.op.state.is_over()) {
            let Some(meter) = self.conductor.meters.get(&shown.op.id) else {
                continue;
            };
            shown.bytes_per_second = meter.rate(MINUTE);
            shown.bytes_per_second_10m = meter.rate(TEN_MINUTES);
            let left = shown.total_bytes.saturating_sub(shown.done_bytes);
            let fastest = shown.bytes_per_second.max(shown.bytes_per_second_10m);
            let slowest = shown.bytes_per_second.min(shown.bytes_per_second_10m);
            if slowest > 0 && left > 0 {
                let most = left / slowest;
                shown.eta_s = Some((left / fastest, most + most / 4 + 1));
            }
        }
        views
    }

    pub(super) fn op_view(&self, op: &Op, view: &ClusterView) -> OpView {
        let now = self.clock.now;
        let is_over = op.state.is_over();
        let (left, left_bytes) = if is_over { (0, 0) } else { self.left_of(&op.goal) };
        let total = op.total.max(left);
        let total_bytes = op.total_bytes.max(left_bytes);
        let left_bytes = left_bytes.saturating_sub(self.copied_for(op.id));
        let mut steps = Vec::new();
        let mut blocked = Vec::new();
        let mut tasks = 0;
        for task in self
            .directory
            .iter()
            .flat_map(|directory| directory.ledger.tasks.values())
        {
            if task.op != op.id || op.id == OpId(0) {
                continue;
            }
            tasks += 1;
            if steps.len() < STEPS_SHOWN {
                steps.push(self.tell_task(task));
            }
            let trouble = self.conductor.trouble.get(&task.shard);
            if let Some(trouble) = trouble.filter(|trouble| now.since(trouble.first) > TELL_TROUBLE_AFTER) {
                blocked.push(OpBlocker {
                    code: trouble.code.clone(),
                    object: task.shard.to_string(),
                    text: trouble.text.clone(),
                    next: format!("isxctl shard show {}", task.shard),
                });
            }
        }
        if !is_over && tasks == 0 && left > 0 {
            // Nothing is under way: what the planner has to say is what stands in the way.
            let node = op.goal.node();
            let planned = node.map(|node| match op.goal {
                Goal::Drain { everything: false, .. } => check::check_restart(view, &[node]),
                _ => check::check_leave(view, &[node]),
            });
            if let Some(Err(blockers)) = planned {
                blocked.extend(blockers.iter().map(told));
            }
        }
        let tolerance = check::tolerance(view).nodes;
        OpView {
            op: op.clone(),
            done: total - left,
            total,
            done_bytes: total_bytes - left_bytes.min(total_bytes),
            total_bytes,
            bytes_per_second: 0,
            bytes_per_second_10m: 0,
            eta_s: None,
            limited_by: match op.state {
                OpState::Paused => "paused".to_owned(),
                _ if !blocked.is_empty() => "blocked".to_owned(),
                _ if tasks > 0 => self.copies_limited_by(op),
                _ => String::new(),
            },
            steps,
            blocked,
            tolerance: (tolerance, tolerance, tolerance),
        }
    }

    pub(super) fn tell_task(&self, task: &Task) -> String {
        let shard = task.shard;
        match task.step {
            TaskStep::Swap { add, remove } => {
                let what = match (add, remove) {
                    (Some((to, _)), Some(from)) => format!("{shard} {from} -> {to}"),
                    (Some((to, _)), None) => format!("{shard} add {to}"),
                    (None, Some(from)) => format!("{shard} remove {from}"),
                    (None, None) => shard.to_string(),
                };
                let descriptor = self.map.shard(shard);
                let added = add.and_then(|(_, replica)| descriptor.and_then(|shard| shard.replica(replica)));
                let phase = match (add, added.map(|added| added.role)) {
                    (Some(_), None) => "adding a learner",
                    (Some(_), Some(ReplicaRole::Learner)) => "copying",
                    (Some(_), Some(_)) if descriptor.is_some_and(ShardDescriptor::is_joint) => "changing votes",
                    _ => "removing",
                };
                format!("{what}  {phase}")
            }
            TaskStep::Merge { right } => {
                let frozen = self.map.shard(right).is_some_and(|right| right.frozen.is_some());
                format!("{shard} merge {right}  {}", if frozen { "frozen" } else { "waiting" })
            }
        }
    }
}
