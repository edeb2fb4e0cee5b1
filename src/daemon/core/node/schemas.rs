//! Schemas on their way from the directory into the logs of shards, and from there to what judges writes.
//!
//! The directory's schemas come with the map. What a shard applies depends on nothing but its own log, so its leader
//! proposes what is newer than what the shard has; behind that entry every write and message is judged by it.
use std::sync::Arc;

use super::*;
use crate::daemon::core::birth::NewService;
use crate::daemon::core::catalog::CatalogCommand;
use crate::daemon::core::directory::NOT_FOUNDED;
use crate::daemon::core::entity::draft::{Draft, Stop};
use crate::daemon::core::entity::effects::{NoRules, RelayRules, Rules};
use crate::daemon::core::entity::message::Outgoing;
use crate::daemon::core::entity::schema::BySchema;
use crate::protocol::activity::Body;
use crate::protocol::schema::bundle::{Bundle, NewSchema, Ruleset, SchemaRecord};
use crate::protocol::schema::{Schema, index};

/// What this node has made of schemas.
#[derive(Debug, Default)]
pub(super) struct Schemas {
    /// Rules by service and revision, shared by all of its shards here.
    read: BTreeMap<(String, u64), Arc<Ruleset>>,
    /// Bundles of the newest schemas, by service, made when the map's revision was this.
    newest: (u64, BTreeMap<String, Bundle>),
    /// Shards led here that may have an older one, and when a newer one was last proposed.
    unchecked: BTreeMap<ShardId, Option<Time>>,
}

/// The rules of a service, with a schema or without.
pub(in crate::daemon::core) struct Judge {
    schema: Option<Arc<Ruleset>>,
    plain: &'static dyn Rules,
    planted: PlantedBug,
}

impl Rules for Judge {
    fn follow(&self, draft: &mut Draft<'_>) -> Result<(), Stop> {
        if self.planted == PlantedBug::ForgetsBefore && draft.depth == 0 {
            draft.before = None;
        }
        match &self.schema {
            Some(rules) => BySchema(rules).follow(draft)?,
            None => self.plain.follow(draft)?,
        }
        if self.planted == PlantedBug::KeepsEntries {
            let is_kept = |sent: &Outgoing| index::parts(sent.to.parts().0).is_some() && sent.body == Body::Delete;
            draft.sends.retain(|sent| !is_kept(sent));
        }
        Ok(())
    }

    fn receive(&self, from: &Position, body: &Body, draft: &mut Draft<'_>) -> Result<(), Stop> {
        if let (Body::Attach { relation, values }, PlantedBug::FeedsTwice) = (body, self.planted) {
            let (relation, twice) = (relation.clone(), |(name, value): &(String, i64)| {
                (name.clone(), 2 * value)
            });
            let values = values.iter().map(twice).collect();
            let body = Body::Attach { relation, values };
            return match &self.schema {
                Some(rules) => BySchema(rules).receive(from, &body, draft),
                None => self.plain.receive(from, &body, draft),
            };
        }
        match &self.schema {
            Some(rules) => BySchema(rules).receive(from, body, draft),
            None => self.plain.receive(from, body, draft),
        }
    }

    fn pools(&self) -> Vec<&str> {
        match &self.schema {
            Some(rules) => rules.own.schema.pools.iter().map(|pool| pool.field.as_str()).collect(),
            None => self.plain.pools(),
        }
    }

    fn parks(&self, to: &Position, body: &Body) -> bool {
        match &self.schema {
            Some(rules) => BySchema(rules).parks(to, body),
            None => self.plain.parks(to, body),
        }
    }

    fn indexed(&self, field: &str, draft: &Draft<'_>) -> Result<Option<Option<String>>, Stop> {
        match &self.schema {
            Some(rules) => BySchema(rules).indexed(field, draft),
            None => self.plain.indexed(field, draft),
        }
    }
}

impl Node {
    /// What judges a shard's writes as of its applied index.
    pub(super) fn judge(&mut self, replica: &mut Replica) -> Result<Judge, StateError> {
        if replica.rules.is_none() && !replica.schema.is_empty() {
            replica.rules = self.read_schema(replica.shard.range.service(), &replica.schema)?;
        }
        Ok(self.judging(replica.rules.clone()))
    }

    /// The same, of a shard that is only looked at.
    pub(super) fn judge_by(&mut self, schema: &Bundle, service: &str) -> Result<Judge, StateError> {
        let schema = self.read_schema(service, schema)?;
        Ok(self.judging(schema))
    }

    /// The same, for a read that is only told what there is.
    pub(in crate::daemon::core) fn judge_to_read(&self, replica: &Replica) -> Result<Judge, StateError> {
        let mut rules = replica.rules.clone();
        if rules.is_none() && !replica.schema.is_empty() {
            let read = replica.schema.read();
            rules = Some(Arc::new(read.map_err(|error| StateError::Io(error.to_string()))?));
        }
        Ok(self.judging(rules))
    }

    fn judging(&self, schema: Option<Arc<Ruleset>>) -> Judge {
        let plain: &'static dyn Rules = match self.config.tells_messages {
            true => &RelayRules,
            false => &NoRules,
        };
        Judge {
            schema,
            plain,
            planted: self.config.planted,
        }
    }

    fn read_schema(&mut self, service: &str, schema: &Bundle) -> Result<Option<Arc<Ruleset>>, StateError> {
        if schema.is_empty() {
            return Ok(None);
        }
        let name = (service.to_owned(), schema.revision);
        if let Some(known) = self.schemas.read.get(&name) {
            return Ok(Some(known.clone()));
        }
        // Another version of isx found this text good: this one must not go on without understanding it.
        let read = schema.read().map_err(|error| {
            StateError::Io(format!(
                "a schema that this isx does not understand; upgrade it: {error}"
            ))
        })?;
        let read = Arc::new(read);
        if self.schemas.read.len() >= RULES_KEPT {
            self.schemas.read.clear();
        }
        self.schemas.read.insert(name, read.clone());
        Ok(Some(read))
    }

    pub(super) fn apply_schema(&mut self, replica: &mut Replica, schema: &Bundle) -> Result<Response, StateError> {
        // Behind a freeze nothing changes, and what is proposed twice is old the second time.
        if replica.shard.frozen.is_none() && schema.revision > replica.schema.revision {
            self.read_schema(replica.shard.range.service(), schema)?;
            replica.take_schema(schema.clone());
        }
        Ok(Response::Asked)
    }

    /// A shard whose leader this node has just become.
    pub(super) fn check_schema_of(&mut self, shard: ShardId) {
        self.schemas.unchecked.insert(shard, None);
    }

    /// Brings newer schemas into the logs of the shards that this node leads. Shards are looked at when there is news: of
    /// schemas, or of who leads.
    pub(super) fn tend_schemas(&mut self) {
        let revision = self.map.schema_revision();
        if self.schemas.newest.0 != revision {
            let all = &self.map.schemas;
            let bundles = all
                .keys()
                .filter_map(|service| Some((service.clone(), Bundle::of(service, all)?)));
            self.schemas.newest = (revision, bundles.collect());
            let led = self.replicas.values().filter(|replica| replica.is_leader());
            self.schemas.unchecked = led.map(|replica| (replica.shard.id, None)).collect();
        }
        let now = self.clock.now;
        let mut unchecked = std::mem::take(&mut self.schemas.unchecked);
        unchecked.retain(|&shard, proposed| {
            let Some(replica) = self.replicas.get_mut(&shard).filter(|replica| replica.is_leader()) else {
                return false;
            };
            let newest = self.schemas.newest.1.get(replica.shard.range.service());
            let Some(newest) = newest.filter(|newest| newest.revision > replica.schema.revision) else {
                return false;
            };
            let waits = proposed.is_some_and(|at| now.since(at) < PROPOSE_AGAIN_AFTER);
            if !waits && replica.shard.frozen.is_none() {
                let waiting = Waiting {
                    waiter: Waiter::Own,
                    deadline: now + PROPOSE_AGAIN_AFTER,
                    id: RequestId(0),
                };
                replica.propose(Command::Schema(newest.clone()), waiting);
                *proposed = Some(now);
                self.touched.insert(shard);
            }
            true
        });
        self.schemas.unchecked = unchecked;
    }

    /// What the directory remembers of schemas.
    pub(in crate::daemon::core) fn schema_records(&self, service: Option<&str>) -> Vec<SchemaRecord> {
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        match service {
            Some(service) => directory.catalog.versions(service).iter().rev().cloned().collect(),
            None => directory.catalog.records().cloned().collect(),
        }
    }

    /// New schemas as a command, judged.
    pub(in crate::daemon::core) fn draft_schemas(
        &self,
        schemas: Vec<NewSchema>,
        allow_breaking: bool,
        by: &str,
        because: &str,
    ) -> Result<CatalogCommand, WireError> {
        let Some(directory) = &self.directory else {
            return Err(replica::not_leader());
        };
        if directory.map.nodes.is_empty() {
            // It leads before its first entry is applied: no services yet.
            return Err(WireError::new(Code::NotServing, NOT_FOUNDED));
        }
        let unknown = schemas
            .iter()
            .find(|new| !directory.map.services.contains_key(&new.service));
        if let Some(new) = unknown {
            let text = format!("there is no service `{}`; nothing was changed", new.service);
            return Err(WireError::new(Code::NoService, text));
        }
        let mut command = directory
            .catalog
            .draft(schemas, allow_breaking, (by, because, self.clock.wall_ms))?;
        command.indexes = self.draft_indexes(&command, &directory.map);
        Ok(command)
    }

    /// The services of indexes that are wanted and not there yet: copied as often as what they are over, cut when they grow.
    fn draft_indexes(&self, command: &CatalogCommand, map: &ShardMap) -> Vec<NewService> {
        let mut wanted = Vec::new();
        for record in &command.records {
            let service = &record.schema.service;
            let (Ok(schema), Some(over)) = (Schema::parse(&record.schema.text), map.services.get(service)) else {
                continue;
            };
            for field in schema.indexes() {
                let name = index::service_of(service, &field.name);
                if !map.services.contains_key(&name) {
                    // A schema is not refused for want of nodes: copies are added when there are some.
                    let copies = (1..=over.replicas).rev().filter(|copies| copies % 2 == 1);
                    let placed = copies.map(|copies| self.place_service(name.clone(), copies, Vec::new()));
                    wanted.extend(placed.flatten().next());
                }
            }
        }
        wanted
    }
}

/// Rules kept in memory; more would be a cluster whose schemas change all the time.
const RULES_KEPT: usize = 256;
