//! Dropping services: what is in the way, and closing their shards one after the other; the protocol is told in
//! `core::dropping`.
use super::*;
use crate::daemon::core::dropping::{closed_for, epoch_of, is_closed_for};
use crate::protocol::schema::{Schema, index};

/// Somebody who waits to hear what is in the way.
#[derive(Debug)]
pub(super) struct DropCheck {
    waiting: Waiting,
    name: String,
    number: u64,
    dry_run: bool,
    since: Time,
    /// Shards that are still to be asked.
    wanted: BTreeSet<ShardId>,
    /// Questions to shards, by token.
    open: BTreeMap<u64, ShardId>,
    /// Shards with entities, each with a key.
    full: BTreeMap<ShardId, String>,
}

impl Node {
    /// Somebody wants a service to go, or to know whether it could.
    pub(super) fn ask_drop(
        &mut self,
        waiting: Waiting,
        name: String,
        number: u64,
        dry_run: bool,
        effects: &mut Effects,
    ) {
        let known = self
            .directory
            .as_ref()
            .and_then(|directory| directory.map.services.get(&name));
        let response = match known {
            Some(known) if known.number == number && known.dropping.is_some() => Response::Asked,
            Some(known) if known.number == number && self.conductor.drop_checks.len() < DROP_CHECKS_MAX => {
                let of_name = self.map.shards().filter(|shard| is_of(shard, &name));
                let wanted = of_name.map(|shard| shard.id).collect();
                self.conductor.drop_checks.push(DropCheck {
                    waiting,
                    name,
                    number,
                    dry_run,
                    since: self.clock.now,
                    wanted,
                    open: BTreeMap::new(),
                    full: BTreeMap::new(),
                });
                return;
            }
            Some(known) if known.number == number => {
                let mut error = WireError::new(Code::Busy, "several drops are being looked at; nothing was changed");
                error.retry_after_ms = 500;
                Response::Error(error)
            }
            _ => {
                let text = format!("the service `{name}` that was meant is no more; nothing was changed");
                Response::Error(WireError::new(Code::NoService, text))
            }
        };
        self.reply(waiting, response, None, None, effects);
    }

    /// Sends away those who wait at a node that does not lead the directory any more.
    pub(super) fn dismiss_drop_checks(&mut self, effects: &mut Effects) {
        for check in std::mem::take(&mut self.conductor.drop_checks) {
            let response = Response::Error(crate::daemon::core::replica::not_leader());
            self.reply(check.waiting, response, None, None, effects);
        }
    }

    pub(super) fn tend_drops(&mut self, state: &mut dyn State, effects: &mut Effects) {
        self.tend_drop_checks(state, effects);
        let services = self
            .directory
            .iter()
            .flat_map(|directory| directory.map.services.values());
        let under_way: Vec<(String, u64)> = services
            .filter_map(|service| Some((service.name.clone(), service.dropping?)))
            .collect();
        let drops = &mut self.conductor.drops;
        drops.retain(|drop, _| under_way.iter().any(|(_, known)| known == drop));
        for (name, drop) in under_way {
            self.tend_drop(name, drop, state, effects);
        }
        self.open_again(state, effects);
    }

    /// Closes what is open, then lets the service go.
    fn tend_drop(&mut self, name: String, drop: u64, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        let since = self.conductor.drops.entry(drop).or_insert((now, None));
        let (is_late, refusal) = (now.since(since.0) > DROP_FOR, since.1.clone());
        let of_name = self.map.shards().filter(|shard| is_of(shard, &name));
        let shards: Vec<ShardDescriptor> = of_name.cloned().collect();
        let open: Vec<&ShardDescriptor> = shards.iter().filter(|shard| !is_closed_for(shard, drop)).collect();
        // That is refused where the directory does not know of all of them.
        if open.is_empty() && !is_late {
            return self.propose_own(FINISH_TOPIC | drop, DirectoryCommand::FinishDrop { name, drop });
        }
        let trouble = |shard: &ShardDescriptor| {
            let known = self.conductor.trouble.get(&shard.id);
            let why = known.map_or_else(|| "it did not answer".to_owned(), |trouble| trouble.text.clone());
            format!(
                "{} could not be closed for {} s: {why}",
                shard.id,
                DROP_FOR.as_millis() / 1_000
            )
        };
        let late = || {
            open.first()
                .map_or_else(|| NOT_ALL_KNOWN.to_owned(), |shard| trouble(shard))
        };
        if let Some(because) = refusal.or_else(|| is_late.then(late)) {
            let command = DirectoryCommand::CancelDrop { name, drop, because };
            return self.propose_own(CANCEL_TOPIC | drop, command);
        }
        for shard in open {
            let rests = self.conductor.trouble.get(&shard.id);
            if rests.is_some_and(|trouble| now.since(trouble.at) < RETRY_AFTER) || self.is_asked(shard.id) {
                continue;
            }
            let request = Request::FreezeShard {
                shard: shard.id,
                epoch: shard.epoch,
                into: DIRECTORY_SHARD,
                left_epoch: epoch_of(drop),
                id: step_id(OpId(drop), shard.id, shard.epoch),
            };
            self.conductor_ask(shard.id, AskedKind::Close, request, state, effects);
        }
    }

    /// A shard did not close.
    pub(super) fn close_refused(&mut self, shard: ShardId, error: WireError) {
        if error.code == Code::UnsafeOp {
            let name = self.map.shard(shard).map(|shard| shard.range.service().to_owned());
            let service = name.and_then(|name| self.directory.as_ref()?.map.services.get(&name));
            if let Some(drop) = service.and_then(|service| service.dropping)
                && let Some((_, refusal)) = self.conductor.drops.get_mut(&drop)
            {
                refusal.get_or_insert(error.text.clone());
            }
        }
        self.note_trouble(shard, error);
    }

    /// Opens shards that are closed for a drop that was given up.
    fn open_again(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let Some(directory) = &self.directory else { return };
        let Some(proof) = directory.map.shard(DIRECTORY_SHARD).cloned() else {
            return;
        };
        // Only what this directory knows to be over, also if it is long behind: it has then seen the end of that very drop.
        let is_left = |shard: &ShardDescriptor| {
            let drop = closed_for(shard)?;
            let is_alive = !directory.map.is_dropped(shard);
            let has_given_up = is_alive && directory.has_given_up(shard.range.service(), drop);
            has_given_up.then_some((shard.id, shard.epoch, drop))
        };
        let left: Vec<(ShardId, Epoch, u64)> = self.map.shards().filter_map(is_left).collect();
        let now = self.clock.now;
        for (shard, epoch, drop) in left {
            let rests = self.conductor.trouble.get(&shard);
            if rests.is_some_and(|trouble| now.since(trouble.at) < RETRY_AFTER) || self.is_asked(shard) {
                continue;
            }
            let mut proof = Box::new(proof.clone());
            proof.epoch = epoch_of(drop + 1);
            let id = step_id(OpId(drop), shard, epoch);
            self.conductor_ask(
                shard,
                AskedKind::Task,
                Request::ThawShard { shard, proof, id },
                state,
                effects,
            );
        }
    }

    fn tend_drop_checks(&mut self, state: &mut dyn State, effects: &mut Effects) {
        let now = self.clock.now;
        for mut check in std::mem::take(&mut self.conductor.drop_checks) {
            for shard in std::mem::take(&mut check.wanted) {
                // One that was taken over meanwhile is looked at when all are closed.
                let Some(range) = self.map.shard(shard).map(|shard| shard.range.clone()) else {
                    continue;
                };
                check.open.insert(self.conductor.next_token, shard);
                let request = Request::List {
                    from: range.start,
                    to: range.end,
                    limit: 1,
                    documents: false,
                };
                self.conductor_ask(shard, AskedKind::Look, request, state, effects);
            }
            let is_late = now.since(check.since) > LOOK_FOR;
            if !is_late && !check.open.is_empty() {
                self.conductor.drop_checks.push(check);
                continue;
            }
            let blockers = self.blockers_of_drop(&check);
            let Some(directory) = self.directory.as_ref().filter(|_| blockers.is_empty()) else {
                let count = blockers.len();
                let noun = if count == 1 { "blocker" } else { "blockers" };
                let text = format!(
                    "service {} can't be dropped: {count} {noun}; nothing was changed",
                    check.name
                );
                let mut error = WireError::new(Code::UnsafeOp, text);
                error.blockers = blockers;
                self.reply(check.waiting, Response::Error(error), None, None, effects);
                continue;
            };
            if check.dry_run {
                self.reply(check.waiting, Response::Asked, None, None, effects);
                continue;
            }
            let command = DirectoryCommand::BeginDrop {
                name: check.name,
                number: check.number,
                revision: directory.catalog.revision(),
            };
            self.propose_for(check.waiting, command);
        }
    }

    /// A shard has said which entity comes first in it.
    pub(super) fn drop_looked(&mut self, token: u64, response: Response) {
        for check in &mut self.conductor.drop_checks {
            let Some(shard) = check.open.remove(&token) else {
                continue;
            };
            match response {
                Response::Listed { items, .. } => {
                    if let Some(item) = items.into_iter().next() {
                        check.full.insert(shard, item.key);
                    }
                }
                // It is asked again.
                _ => {
                    check.wanted.insert(shard);
                }
            }
            return;
        }
    }

    fn blockers_of_drop(&self, check: &DropCheck) -> Vec<OpBlocker> {
        let name = &check.name;
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        let mut blockers = Vec::new();
        let mut block = |code: &str, object: String, text: String, next: String| {
            blockers.push(OpBlocker {
                code: code.to_owned(),
                object,
                text,
                next,
                since_ms: None,
            });
        };
        let shards: Vec<&ShardDescriptor> = self.map.shards().filter(|shard| is_of(shard, name)).collect();
        if let Some(key) = check.full.values().next() {
            let loads = shards.iter().filter_map(|shard| self.conductor.loads.get(&shard.id));
            let said: u64 = loads.map(|(_, load)| load.entities).sum();
            let count = said.max(check.full.len() as u64);
            let (noun, verb) = if count == 1 {
                ("entity", "is")
            } else {
                ("entities", "are")
            };
            let text = format!("{count} {noun} {verb} in it, such as {name}/{key}");
            let next = match index::parts(name) {
                Some(_) => format!("isxctl index drop {name}"),
                None => format!("isxctl entity {name} list"),
            };
            block("NOT_EMPTY", name.clone(), text, next);
        }
        for shard in check.open.values().chain(&check.wanted) {
            let text = format!("{shard} did not say whether anything is in it");
            block(
                "NO_ANSWER",
                shard.to_string(),
                text,
                format!("isxctl shard show {shard}"),
            );
        }
        for record in directory.catalog.records() {
            let other = &record.schema.service;
            let Ok(schema) = Schema::parse(&record.schema.text) else {
                continue;
            };
            let child = schema.children.iter().find(|relation| relation.service == *name);
            let parent = schema.parents.iter().find(|relation| relation.service == *name);
            let as_what = match (child, parent) {
                _ if other == name => None,
                (Some(relation), _) => Some(format!("as children, by `{}`", relation.field)),
                (None, Some(relation)) => Some(format!("as parents, by `{}`", relation.field)),
                (None, None) => None,
            };
            if let Some(as_what) = as_what {
                let text = format!("the schema of {other} names it {as_what}");
                let next = format!("isxctl schema apply -f {other}.toml      without that");
                block("NAMED_BY_SCHEMA", other.clone(), text, next);
            }
            let is_wanted =
                |(of, field): (&str, &str)| of == other && schema.indexes().any(|known| known.name == field);
            if index::parts(name).is_some_and(is_wanted) {
                let text = format!("the schema of {other} wants this index");
                let next = format!("isxctl schema apply -f {other}.toml      without `index = true`");
                block("NAMED_BY_SCHEMA", other.clone(), text, next);
            }
        }
        for service in directory.map.services.keys() {
            if index::parts(service).is_some_and(|(of, _)| of == name) {
                let text = format!("{service} is an index over it");
                block(
                    "HAS_INDEX",
                    service.clone(),
                    text,
                    format!("isxctl index drop {service}"),
                );
            }
        }
        for op in directory.ledger.open() {
            let about = op.goal.shards();
            let is_about = match &op.goal {
                Goal::Scatter { service, .. } => service == name,
                Goal::SetReplicas {
                    of: Scope::Service(service),
                    ..
                } => service == name,
                _ => shards.iter().any(|shard| about.contains(&shard.id)),
            };
            if is_about {
                let text = format!("{} is under way", op.goal);
                block(
                    "OP_UNDER_WAY",
                    op.id.to_string(),
                    text,
                    format!("isxctl op watch {}", op.id),
                );
            }
        }
        for shard in &shards {
            let id = shard.id;
            let tasks = directory.ledger.tasks.values();
            let mut mine = tasks.filter(|task| {
                let right = match task.step {
                    TaskStep::Merge { right } => Some(right),
                    TaskStep::Swap { .. } => None,
                };
                task.shard == id || right == Some(id)
            });
            if let Some(task) = mine.next() {
                let text = format!("a change is under way: {}", self.tell_task(task));
                block("OP_UNDER_WAY", id.to_string(), text, format!("isxctl shard show {id}"));
            }
            if shard.is_held(self.clock.wall_ms) {
                let text = format!("an operator has frozen {id}");
                block("FROZEN", id.to_string(), text, format!("isxctl shard thaw {id}"));
            }
        }
        for rule in self.map.policy.rules.values() {
            if rule.service.as_ref() == Some(name) {
                let text = format!("rule {} is laid down for it", rule.name);
                block(
                    "HAS_RULE",
                    rule.name.clone(),
                    text,
                    format!("isxctl rule rm {}", rule.name),
                );
            }
        }
        blockers
    }
}

fn is_of(shard: &ShardDescriptor, service: &str) -> bool {
    shard.id != DIRECTORY_SHARD && shard.range.service() == service
}

/// A shard that can say nothing for so long is in the way itself.
const LOOK_FOR: Span = Span::secs(3);
/// More would be somebody who asks over and over.
const DROP_CHECKS_MAX: usize = 16;
/// Shards close within milliseconds where all is well; what is closed serves nobody.
const DROP_FOR: Span = Span::secs(10);
const NOT_ALL_KNOWN: &str = "not all of its shards were known to be closed in time";
const FINISH_TOPIC: u64 = 2 << 40;
const CANCEL_TOPIC: u64 = 3 << 40;
