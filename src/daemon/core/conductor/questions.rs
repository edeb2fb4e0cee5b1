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
        // What is planned before the founders and first shards are written down is outdated a moment later.
        let is_founded = |directory: &Directory| !directory.map.nodes.is_empty();
        if !self.directory.as_ref().is_some_and(is_founded) {
            let mut error = WireError::new(Code::NotServing, crate::daemon::core::directory::NOT_FOUNDED);
            error.retry_after_ms = self.map.policy.router.retry_ms as u32;
            return self.reply(waiting, Response::Error(error), None, None, effects);
        }
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
            Request::Question(question) => self.answer_question(question, by),
            Request::Order { order, .. } => match self.check_order(&order) {
                Err(error) => Response::Error(error),
                Ok(()) => {
                    let by = by.to_owned();
                    return self.propose_for(waiting, DirectoryCommand::Order { order, by });
                }
            },
            Request::StartOp {
                goal,
                pace,
                protect_p99_us,
                because,
                at,
                undoes,
                id,
            } => {
                let mut op = self.new_op(goal, pace, protect_p99_us, by, &because, id);
                op.undoes = undoes;
                // Attaching to what is under way needs no check.
                let directory = self.directory.as_ref();
                let is_known = directory.is_some_and(|directory| directory.ledger.same(&op.goal, op.request).is_some());
                let stale = at.and_then(|at| directory?.stale(at)).filter(|_| !is_known);
                let checked = match (stale, is_known) {
                    (Some(error), _) => Err(error),
                    (None, true) => Ok(()),
                    (None, false) => self.plan_op(&op).map(|planned| {
                        // How much there is to even out was last looked at before there was anything, such as a new node.
                        if matches!(op.goal, Goal::Rebalance | Goal::Scatter { .. }) {
                            op.total = op.total.max(planned.steps.len() as u64);
                        }
                    }),
                };
                match checked {
                    Err(error) => Response::Error(error),
                    Ok(()) => {
                        let op = Box::new(op);
                        let command = DirectoryCommand::Ledger(LedgerCommand::Start { op, at });
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
            } => match self.check_service(&name, replicas, sizes) {
                Err(error) => Response::Error(error),
                Ok(()) => {
                    let command = DirectoryCommand::SetService { name, replicas, sizes };
                    return self.propose_for(waiting, command);
                }
            },
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
            Request::DropService {
                name, number, dry_run, ..
            } => return self.ask_drop(waiting, name, number, dry_run, effects),
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

    /// How a service is cut and copied must be possible, and must not cut and merge the same shards in turn.
    fn check_service(&self, name: &str, replicas: u32, sizes: ShardSizes) -> Result<(), WireError> {
        plans::check_copies(replicas)?;
        let bad = |text: String| Err(WireError::new(Code::BadRequest, format!("{text}; nothing was changed")));
        if sizes.split_bytes < SPLIT_BYTES_MIN {
            return bad(format!(
                "shards are cut at {SPLIT_BYTES_MIN} bytes or more, not at {}",
                sizes.split_bytes
            ));
        }
        if sizes.merge_bytes > sizes.split_bytes / 2 {
            let (merge, split) = (sizes.merge_bytes, sizes.split_bytes);
            return bad(format!(
                "neighbours merged below {merge} bytes would soon be cut again at {split}: at most half of it"
            ));
        }
        if sizes.min_shards == 0 {
            return bad("a service has at least one shard".to_owned());
        }
        let before = self.map.services.get(name).map(|service| service.replicas);
        if before.is_none_or(|before| before == replicas) {
            return Ok(());
        }
        // More or fewer copies are planned like any other change of them.
        let goal = Goal::SetReplicas {
            of: Scope::Service(name.to_owned()),
            replicas: Some(replicas),
        };
        self.plan_op(&self.new_op(goal, None, None, "", "", RequestId(0)))
            .map(drop)
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
        ops.iter().map(|op| self.op_view(op, &view)).collect()
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
                blocked.push(self.tell_trouble(task.shard, trouble));
            }
        }
        for (shard, trouble) in self.laid_by_of(op.id).filter(|_| !is_over) {
            blocked.push(self.tell_trouble(shard, trouble));
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
        let speed = self.speed_of(op);
        OpView {
            op: op.clone(),
            done: total - left,
            total,
            done_bytes: total_bytes - left_bytes.min(total_bytes),
            total_bytes,
            speed,
            phases: self.phases_of(op),
            eta_s: self.eta_of(op, speed, left, left_bytes),
            limited_by: self.limit_of(op, tasks, blocked.len(), left),
            steps,
            blocked,
            tolerance: (tolerance, tolerance, tolerance),
        }
    }

    fn tell_trouble(&self, shard: ShardId, trouble: &Trouble) -> OpBlocker {
        let since = self.clock.now.since(trouble.first).as_millis();
        OpBlocker {
            code: trouble.code.clone(),
            object: shard.to_string(),
            text: trouble.text.clone(),
            next: format!("isxctl shard show {shard}"),
            since_ms: Some(self.clock.wall_ms.saturating_sub(since)),
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
