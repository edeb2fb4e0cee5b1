//! What an operation would do: checked, planned and priced before anything is begun, and again when it begins.
use super::*;
use crate::daemon::core::placement::plan::{BlockCode, Plan, SplitBy};
use crate::daemon::core::placement::price::price;

impl Node {
    /// The plan of an operation, for a person or a file.
    pub(super) fn plan_view(&self, op: &Op) -> Result<PlanView, WireError> {
        let planned = self.plan_op(op)?;
        let directory = self.directory.as_ref();
        let tolerance = |of: check::Tolerance| PlanTolerance {
            nodes: of.nodes,
            zones: of.zones,
        };
        let steps = planned.steps.iter().take(PLAN_STEPS_MAX).map(ToString::to_string);
        let notes = planned.notes.iter().map(|note| note.text.clone());
        let refusals = planned.refusals.iter().map(|blocker| blocker.text.clone());
        Ok(PlanView {
            config_epoch: directory.map_or(0, |directory| directory.history.epoch()),
            made_ms: self.clock.wall_ms,
            goal: op.goal.clone(),
            pace: op.pace,
            steps: steps.collect(),
            steps_total: planned.steps.len() as u64,
            bytes: planned.bytes,
            disks: planned
                .disks
                .iter()
                .map(|disk| PlanDisk {
                    node: disk.node,
                    peak: disk.peak,
                    after: disk.after,
                    total: disk.total,
                })
                .collect(),
            tolerance: (
                tolerance(planned.tolerance_before),
                tolerance(planned.tolerance_lowest),
                tolerance(planned.tolerance_after),
            ),
            time_s: (planned.time_ms.0.div_ceil(1000), planned.time_ms.1.div_ceil(1000)),
            no_return: no_return(&op.goal),
            inverse: op.inverse.clone(),
            undo: undo(&op.goal, op.inverse.as_ref()),
            notes: refusals.chain(notes).collect(),
        })
    }

    /// Whether an operation can reach its goal, and by which steps.
    pub(super) fn plan_op(&self, op: &Op) -> Result<Plan, WireError> {
        let goal = &op.goal;
        if let Some(directory) = &self.directory
            && let Some(other) = directory.ledger.conflict(goal)
        {
            let text = format!("{} ({}) is in the way; nothing was changed", other.id, other.goal);
            return Err(WireError::new(Code::OpConflict, text));
        }
        let mut view = self.cluster_view(goal.emptied());
        view.settings.pace = op.pace;
        let shard = |id: ShardId| {
            let text = format!("no {id} is known; nothing was changed");
            self.map
                .shard(id)
                .ok_or_else(|| WireError::new(Code::NoSuchShard, text))
        };
        let bad = |text: String| Err(WireError::new(Code::BadChange, text));
        let swap = |shard: ShardId, from: NodeId, to: NodeId| {
            let lead = None;
            (shard, StepKind::SwapReplica { from, to, lead })
        };
        let planned = match goal {
            Goal::Drain {
                node,
                everything: false,
            } => check::check_restart(&view, &[*node]),
            Goal::Drain { node, .. } | Goal::Leave { node } | Goal::Heal { node } => {
                check::check_leave(&view, &[*node])
            }
            Goal::Replace { old, new } => {
                for node in [old, new] {
                    if view.node(*node).is_none() {
                        let text = format!("{node} is no member of this cluster; nothing was changed");
                        return Err(WireError::new(Code::NoSuchNode, text));
                    }
                }
                if old == new || view.node(*new).is_some_and(|node| !node.is_target()) {
                    return bad(format!("{new} can't take copies now; nothing was changed"));
                }
                let held = self.map.shards().filter(|shard| shard.replica_on(*old).is_some());
                let steps: Vec<_> = held
                    .map(|shard| match shard.replica_on(*new) {
                        None => swap(shard.id, *old, *new),
                        Some(_) => (shard.id, StepKind::RemoveReplica { node: *old }),
                    })
                    .collect();
                room(&view, price(&view, &steps), *new)
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
            Goal::Scatter { service, .. } => match scattered(&view, goal) {
                None => {
                    let text = format!("there is no service `{service}`; nothing was changed");
                    return Err(WireError::new(Code::NoService, text));
                }
                Some((part, goals)) => {
                    let steps = plan::plan(&part, &goals);
                    let kinds: Vec<_> = steps.steps.iter().map(|step| (step.shard, step.kind)).collect();
                    let notes = steps.notes;
                    Ok(Plan {
                        notes,
                        ..price(&view, &kinds)
                    })
                }
            },
            Goal::Move { shard: id, from, to } => {
                let shard = shard(*id)?;
                if shard.replica_on(*from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replica_on(*to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, *to)?;
                room(&view, price(&view, &[swap(*id, *from, *to)]), *to)
            }
            Goal::AddReplica { shard: id, to } => {
                if shard(*id)?.replica_on(*to).is_some() {
                    return bad(format!("{id} has a copy on {to} already; nothing was changed"));
                }
                self.check_target(&view, *to)?;
                room(&view, price(&view, &[(*id, StepKind::AddReplica { node: *to })]), *to)
            }
            Goal::RemoveReplica { shard: id, from } => {
                let shard = shard(*id)?;
                if shard.replica_on(*from).is_none() {
                    return bad(format!("{id} has no copy on {from}; nothing was changed"));
                }
                if shard.replicas.len() <= 1 {
                    return bad(format!("{from} has the last copy of {id}; nothing was changed"));
                }
                Ok(price(&view, &[(*id, StepKind::RemoveReplica { node: *from })]))
            }
            Goal::Merge { left, right } => {
                let (left, right) = (shard(*left)?, shard(*right)?);
                if left.range.end != right.range.start || left.range.service() != right.range.service() {
                    let text = format!(
                        "{} {} does not end where {} {} begins; nothing was changed",
                        left.id, left.range, right.id, right.range
                    );
                    return Err(WireError::new(Code::BadMerge, text));
                }
                let nodes = |shard: &ShardDescriptor| shard.replicas.iter().map(|r| r.node).collect::<BTreeSet<_>>();
                let (there, here) = (nodes(left), nodes(right));
                let moves = here.difference(&there).zip(there.difference(&here));
                let mut steps: Vec<_> = moves.map(|(&from, &to)| swap(right.id, from, to)).collect();
                steps.push((left.id, StepKind::Merge { right: right.id }));
                Ok(price(&view, &steps))
            }
            Goal::Split { shard: id, at } => {
                let whole = shard(*id)?;
                self.check_cuts(whole, at)?;
                let into = at.len() as u32 + 1;
                let by = SplitBy::Size;
                Ok(price(&view, &[(*id, StepKind::Split { by, into })]))
            }
            Goal::SetReplicas { of, replicas } => self.plan_replicas(of, *replicas, &view)?,
        };
        planned.map_err(|blockers| refused(&format!("{goal} can't be done"), &blockers))
    }

    fn check_cuts(&self, whole: &ShardDescriptor, at: &[String]) -> Result<(), WireError> {
        let bad = |text: String| Err(WireError::new(Code::BadSplit, text));
        if whole.id == DIRECTORY_SHARD {
            let text = format!(
                "{} is the directory: it has no keys to split at; nothing was changed",
                whole.id
            );
            return bad(text);
        }
        if at.is_empty() || at.len() > CUTS_MAX {
            return bad(format!("between 1 and {CUTS_MAX} keys to cut at; nothing was changed"));
        }
        let mut rest = whole.range.clone();
        for key in at {
            if let Err(error) = crate::protocol::key::check_entity_key(key) {
                return Err(WireError::new(
                    Code::BadRequest,
                    format!("{error}; nothing was changed"),
                ));
            }
            match rest.split(&Position::new(whole.range.service(), key)) {
                Some((_, right)) => rest = right,
                None => {
                    let text = format!("`{key}` is not inside {} {rest}; nothing was changed", whole.id);
                    return bad(text);
                }
            }
        }
        Ok(())
    }

    /// More or fewer copies: what the planner makes of it, and whether it can.
    fn plan_replicas(
        &self,
        of: &Scope,
        replicas: Option<u32>,
        before: &ClusterView,
    ) -> Result<Result<Plan, Vec<Blocker>>, WireError> {
        if let Some(replicas) = replicas {
            check_copies(replicas)?;
        }
        if *of == Scope::Shard(DIRECTORY_SHARD) {
            // It would never come about: neither the planner nor the directory's own rules ask what is laid down for it.
            let text = "how many copies the directory has follows from how many nodes there are; nothing was changed";
            return Err(WireError::new(Code::BadChange, text));
        }
        let mut policy = self.map.policy.clone();
        let mut assumed = Assumed::default();
        match of {
            Scope::Shard(shard) => {
                if self.map.shard(*shard).is_none() {
                    let text = format!("no {shard} is known; nothing was changed");
                    return Err(WireError::new(Code::NoSuchShard, text));
                }
                policy.marks.entry(*shard).or_default().replicas = replicas;
            }
            Scope::Service(name) => {
                let Some(replicas) = replicas.filter(|_| self.map.services.contains_key(name)) else {
                    let text = format!("there is no service `{name}`; nothing was changed");
                    return Err(WireError::new(Code::NoService, text));
                };
                assumed.replicas = Some((name, replicas));
            }
        }
        assumed.policy = Some(&policy);
        let mut view = self.view_assuming(&assumed);
        view.settings.pace = before.settings.pace;
        let goals = Goals {
            heal: true,
            ..Goals::none()
        };
        let known = plan::plan(before, &goals);
        let plan = plan::plan(&view, &goals);
        let new = |blocker: &&Blocker| {
            let is_same =
                |old: &Blocker| (old.code, &old.object, old.shards) == (blocker.code, &blocker.object, blocker.shards);
            !known.refusals.iter().any(is_same)
        };
        let blockers: Vec<Blocker> = plan.refusals.iter().filter(new).cloned().collect();
        if !blockers.is_empty() {
            return Ok(Err(blockers));
        }
        let steps: Vec<(ShardId, StepKind)> = plan
            .steps
            .iter()
            .filter(|step| self.is_within(step.shard, of))
            .map(|step| (step.shard, step.kind))
            .collect();
        Ok(Ok(price(&view, &steps)))
    }

    pub(super) fn is_within(&self, shard: ShardId, of: &Scope) -> bool {
        match of {
            Scope::Shard(one) => *one == shard,
            Scope::Service(name) => self
                .map
                .shard(shard)
                .is_some_and(|shard| shard.id != DIRECTORY_SHARD && shard.range.service() == name),
        }
    }

    /// Copies that a shard is to have, by mark, rule or service.
    pub(super) fn replicas_wanted(&self, shard: &ShardDescriptor) -> usize {
        let service = self.map.services.get(shard.range.service());
        let wanted = self.map.policy.replicas_of(shard).or_else(|| Some(service?.replicas));
        wanted.unwrap_or(3) as usize
    }

    /// The operation that takes a goal back, as things are now.
    pub(super) fn inverse_of(&self, goal: &Goal) -> Option<Goal> {
        match goal {
            Goal::Move { shard, from, to } => Some(Goal::Move {
                shard: *shard,
                from: *to,
                to: *from,
            }),
            Goal::AddReplica { shard, to } => Some(Goal::RemoveReplica {
                shard: *shard,
                from: *to,
            }),
            Goal::RemoveReplica { shard, from } => Some(Goal::AddReplica {
                shard: *shard,
                to: *from,
            }),
            Goal::Merge { left, right } => {
                let (_, key) = self.map.shard(*right)?.range.start.parts();
                Some(Goal::Split {
                    shard: *left,
                    at: vec![key?.to_owned()],
                })
            }
            Goal::SetReplicas { of, .. } => {
                let replicas = match of {
                    Scope::Shard(shard) => self.map.policy.marks.get(shard).and_then(|marks| marks.replicas),
                    Scope::Service(name) => Some(self.map.services.get(name)?.replicas),
                };
                Some(Goal::SetReplicas {
                    of: of.clone(),
                    replicas,
                })
            }
            _ => None,
        }
    }

    /// The next cut of a split that is not made yet, and the shard to be cut.
    pub(super) fn next_cut(&self, goal: &Goal, at: &[String]) -> Option<(ShardId, Position)> {
        let service = self.map.shard(*goal.shards().first()?)?.range.service();
        let cuts = at.iter().map(|key| Position::new(service, key));
        cuts.filter_map(|cut| {
            let holder = self.map.find(&cut)?;
            (holder.range.start != cut).then_some((holder.id, cut))
        })
        .next()
    }
}

/// Refuses what would fill a disk above the limit.
fn room(view: &ClusterView, plan: Plan, node: NodeId) -> Result<Plan, Vec<Blocker>> {
    let Some(limit) = view.node(node).map(|node| node.disk_limit(&view.settings)) else {
        return Ok(plan);
    };
    match plan
        .disks
        .iter()
        .find(|disk| disk.node == node && disk.total > 0 && disk.peak > limit)
    {
        None => Ok(plan),
        Some(disk) => Err(vec![Blocker {
            code: BlockCode::DiskProjected,
            object: node.to_string(),
            shards: plan.steps.len() as u64,
            text: format!(
                "{node} would reach {} % of its disk (limit {} %)",
                (u128::from(disk.peak) * 100).div_ceil(u128::from(disk.total)),
                view.settings.disk_limit_percent
            ),
            next: vec!["isxctl node list --sort -DISK".to_owned()],
        }]),
    }
}

/// Copies that can be kept.
pub(super) fn check_copies(replicas: u32) -> Result<(), WireError> {
    if (1..=7).contains(&replicas) && replicas % 2 == 1 {
        return Ok(());
    }
    let text = format!("{replicas} copies: 1, 3, 5 or 7 can be kept; nothing was changed");
    Err(WireError::new(Code::BadRequest, text))
}

fn no_return(goal: &Goal) -> String {
    match goal {
        Goal::Leave { node } | Goal::Replace { old: node, .. } => {
            format!("when nothing is left on {node}: it is no member any more, and its id is never used again")
        }
        _ => "none".to_owned(),
    }
}

fn undo(goal: &Goal, inverse: Option<&Goal>) -> String {
    match (goal, inverse) {
        (Goal::Drain { node, .. }, _) => format!("isxctl node undrain {node}"),
        (Goal::Leave { node } | Goal::Replace { old: node, .. }, _) => {
            format!("isxctl node stay {node}          until the point of no return")
        }
        (Goal::Split { shard, .. }, _) => format!("isxctl shard merge {shard} with its new right neighbour"),
        (_, Some(inverse)) => format!("{inverse}          isxctl op undo"),
        _ => "nothing: what was moved stays where it is until something else moves it".to_owned(),
    }
}

/// More would be a plan of their own. Unit: cuts.
const CUTS_MAX: usize = 1_000;
