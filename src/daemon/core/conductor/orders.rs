//! What operators ask and order beyond operations: plans, rules, marks, the router, who is let in.
use super::*;
use crate::daemon::core::placement::plan::BlockCode;
use crate::daemon::core::placement::restart;
use crate::daemon::core::placement::rules::{self, RuleReport};

impl Node {
    pub(super) fn answer_question(&self, question: Question, by: &str) -> Response {
        let told = match question {
            Question::Plan { goal, pace, at } => {
                if let Some(error) = at.and_then(|at| self.directory.as_ref()?.stale(at)) {
                    return Response::Error(error);
                }
                let op = self.new_op(goal, pace, None, by, "", RequestId(0));
                self.plan_view(&op).map(|plan| Told::Plan(Box::new(plan)))
            }
            Question::Rules => {
                let view = self.cluster_view(None);
                Ok(Told::Rules {
                    rules: self.told_rules(&rules::check(&view), &view.rules, &self.map.policy),
                    blockers: Vec::new(),
                })
            }
            Question::CheckRule(rule) => self.check_rule(&rule).map(|(rules, blockers)| Told::Rules {
                rules,
                blockers: blockers.iter().map(told).collect(),
            }),
            Question::RestartOrder { max_parallel } => restart::order(&self.cluster_view(None), max_parallel)
                .map(Told::Batches)
                .map_err(|blockers| refused("the nodes can't be restarted one after another now", &blockers)),
        };
        told.map_or_else(Response::Error, |told| Response::Told(Box::new(told)))
    }

    /// Whether an order may be given.
    pub(super) fn check_order(&self, order: &Order) -> Result<(), WireError> {
        let bad = |text: String| Err(WireError::new(Code::BadRequest, format!("{text}; nothing was changed")));
        match order {
            Order::SetRule { rule, unmet } => {
                let (_, blockers) = self.check_rule(rule)?;
                if blockers.is_empty() || *unmet {
                    return Ok(());
                }
                Err(refused(&format!("rule {} can't be met", rule.name), &blockers))
            }
            Order::SetRouter(settings) => settings.check().or_else(bad),
            Order::Mark {
                shard,
                change: MarkChange::Pin(pin),
            } => {
                let known = self.map.shard(*shard);
                let copy = known.and_then(|known| known.replica_on(pin.node));
                if known.is_some() && copy.is_none_or(|copy| copy.role != ReplicaRole::Voter) {
                    let text = format!("{} is no voter of {shard}; nothing was changed", pin.node);
                    return Err(WireError::new(Code::BadTarget, text));
                }
                if pin.until_ms <= self.clock.wall_ms || pin.until_ms - self.clock.wall_ms > MARK_FOR_MAX_MS {
                    return bad("a pin ends between now and in 30 days".to_owned());
                }
                Ok(())
            }
            Order::Mark {
                change: MarkChange::Sticky(until_ms),
                ..
            } if until_ms.saturating_sub(self.clock.wall_ms) > MARK_FOR_MAX_MS => {
                bad("a shard is kept from merging for 30 days at most".to_owned())
            }
            Order::Mark { .. } | Order::RemoveRule(_) | Order::Admit { .. } => Ok(()),
        }
    }

    /// How it would be with a rule, and what stands in its way.
    fn check_rule(&self, rule: &PlacementRule) -> Result<(Vec<RuleView>, Vec<Blocker>), WireError> {
        let bad = |text: String| WireError::new(Code::BadRequest, format!("{text}; nothing was changed"));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if rule.name.is_empty() || rule.name.len() > RULE_NAME_MAX || !rule.name.chars().all(is_name) {
            let text = format!("a rule's name has up to {RULE_NAME_MAX} letters, digits and -_.");
            return Err(bad(text));
        }
        if let Some(replicas) = rule.replicas {
            plans::check_copies(replicas)?;
        }
        if rule.prefix.is_some() && rule.service.is_none() {
            return Err(bad("a prefix is one of a service's keys: name the service".to_owned()));
        }
        if let Some(service) = &rule.service
            && !self.map.services.contains_key(service)
        {
            let text = format!("there is no service `{service}`; nothing was changed");
            return Err(WireError::new(Code::NoService, text));
        }
        let mut policy = self.map.policy.clone();
        policy.rules.insert(rule.name.clone(), rule.clone());
        let view = self.view_assuming(&Assumed {
            policy: Some(&policy),
            ..Assumed::default()
        });
        let mut targets: BTreeMap<&str, u32> = BTreeMap::new();
        for node in view.nodes.iter().filter(|node| node.is_target()) {
            *targets.entry(node.zone.as_str()).or_default() += 1;
        }
        let nodes: u32 = targets.values().sum();
        let mut blockers = Vec::new();
        let mut block = |code: BlockCode, object: &str, text: String, next: &str| {
            blockers.push(Blocker {
                code,
                object: object.to_owned(),
                shards: 0,
                text,
                next: vec![next.to_owned()],
            });
        };
        let laid_down = view.rules.iter().skip(1 + self.map.services.len());
        let own = laid_down.filter(|known| known.name == rule.name);
        let replicas = own.map(|rule| rule.replicas).max().or(rule.replicas).unwrap_or(3);
        if rule.zones > targets.len() as u32 {
            let text = format!(
                "{} zones are wanted; there are {} with nodes that can hold copies",
                rule.zones,
                targets.len()
            );
            block(BlockCode::NoTargetZone, "zones", text, "isxctl node add --zone NAME");
        }
        if rule.zones > replicas {
            let text = format!("{replicas} copies can't be in {} zones", rule.zones);
            block(BlockCode::NoTargetZone, "zones", text, "isxctl rule set --copies N");
        }
        if replicas > nodes {
            let text = format!("{replicas} copies need as many nodes; {nodes} can hold one");
            block(BlockCode::NoTargetNode, "nodes", text, "isxctl node add");
        }
        if let Some(zone) = &rule.leader_zone
            && !targets.contains_key(zone.as_str())
        {
            let text = format!("leaders are wanted in zone {zone}, in which no node can hold copies");
            let next = format!("isxctl node add --zone {zone}");
            block(BlockCode::NoTargetZone, zone, text, &next);
        }
        let goals = Goals {
            heal: true,
            zones: true,
            ..Goals::none()
        };
        let known = plan::plan(&self.cluster_view(None), &goals).refusals;
        let then = plan::plan(&view, &goals).refusals;
        for blocker in then {
            let is_same =
                |old: &Blocker| (old.code, &old.object, old.shards) == (blocker.code, &blocker.object, blocker.shards);
            if !known.iter().any(is_same) && !blockers.iter().any(|b| b.code == blocker.code) {
                blockers.push(blocker);
            }
        }
        let reports = rules::check(&view);
        let mut told = self.told_rules(&reports, &view.rules, &policy);
        told.retain(|told| told.is_set && told.name == rule.name);
        Ok((told, blockers))
    }

    fn told_rules(&self, reports: &[RuleReport], of: &[Rule], policy: &Policy) -> Vec<RuleView> {
        let mut told: Vec<RuleView> = Vec::new();
        // First come the directory's and the services' own.
        let own = 1 + self.map.services.len();
        for (at, (report, rule)) in reports.iter().zip(of).enumerate() {
            let is_set = at >= own && policy.rules.contains_key(&rule.name);
            let verdict = |verdict: &rules::Verdict| (verdict.holds, verdict.text.clone());
            let view = RuleView {
                name: report.rule.clone(),
                scope: if report.rule == "directory" && !is_set {
                    "directory".to_owned()
                } else {
                    report.scope.clone()
                },
                replicas: rule.replicas,
                zones: rule.zones,
                leader_zone: rule.leader_zone.clone(),
                shards: report.shards,
                is_set,
                now: verdict(&report.now),
                after_node: verdict(&report.after_node),
                after_zone: verdict(&report.after_zone),
            };
            // A service's own rule that another one stands in front of for all of its shards says nothing.
            if is_set || report.shards > 0 {
                told.push(view);
            }
        }
        // A rule that no shard follows is there all the same.
        for rule in policy
            .rules
            .values()
            .filter(|rule| !of.iter().any(|known| known.name == rule.name))
        {
            let none = (true, "yes".to_owned());
            told.push(RuleView {
                name: rule.name.clone(),
                scope: rule.scope(),
                replicas: rule.replicas.unwrap_or(0),
                zones: rule.zones,
                leader_zone: rule.leader_zone.clone(),
                shards: 0,
                is_set: true,
                now: none.clone(),
                after_node: none.clone(),
                after_zone: none,
            });
        }
        told.sort_by(|a, b| (a.is_set, &a.name).cmp(&(b.is_set, &b.name)));
        told
    }
}

const RULE_NAME_MAX: usize = 64;
const MARK_FOR_MAX_MS: u64 = 30 * 86_400_000;
