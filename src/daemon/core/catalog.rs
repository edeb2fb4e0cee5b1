//! The directory's schemas: versions of each service's, the newest in effect.
//!
//! Whether a schema is one, fits the others and breaks nothing is judged where it is asked for, by the directory's leader;
//! applying the command compares versions and reads no schema, so that nodes of different versions apply it alike.
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::birth::NewService;
use super::directory::{Directory, put, remove};
use super::state::State;
use crate::protocol::error::{Code, WireError};
use crate::protocol::request::Response;
use crate::protocol::schema::Schema;
use crate::protocol::schema::bundle::{NewSchema, SchemaRecord, SchemaText};
use crate::protocol::schema::check::{Schemas, check_all};
use crate::protocol::schema::diff;

/// Versions of a service's schema that are remembered.
pub const VERSIONS_KEPT: usize = 64;
/// Schemas changed in one step. Bounds a command to about 2 MiB.
pub const SCHEMAS_AT_ONCE: usize = 32;

/// New versions of schemas, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogCommand {
    /// The catalogue's revision that they were judged at: at another they might not fit.
    pub revision: u64,
    /// The schemas, each with the version and the revision that it will have.
    pub records: Vec<SchemaRecord>,
    /// Services of indexes that begin with them.
    pub indexes: Vec<NewService>,
}

/// Versions of schemas by service, oldest first.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The newest revision at which a service was dropped: no later one is as low.
    pub(super) dropped_at: u64,
    versions: BTreeMap<String, Vec<SchemaRecord>>,
}

impl CatalogCommand {
    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        let records = self.records.iter().map(|record| record.schema.text.len() + 200);
        records.chain(self.indexes.iter().map(NewService::size)).sum()
    }
}

impl Catalog {
    /// Takes in a row.
    pub fn load(&mut self, record: SchemaRecord) {
        let versions = self.versions.entry(record.schema.service.clone()).or_default();
        versions.push(record);
        versions.sort_by_key(|record| record.schema.version);
    }

    /// The newest schema of each service.
    pub fn newest(&self) -> impl Iterator<Item = &SchemaText> {
        self.versions
            .values()
            .filter_map(|versions| Some(&versions.last()?.schema))
    }

    /// A service's versions, oldest first.
    pub fn versions(&self, service: &str) -> &[SchemaRecord] {
        self.versions.get(service).map_or(&[], Vec::as_slice)
    }

    /// The newest version of each service's schema.
    pub fn records(&self) -> impl Iterator<Item = &SchemaRecord> {
        self.versions.values().filter_map(|versions| versions.last())
    }

    /// Grows with every change of any schema.
    pub fn revision(&self) -> u64 {
        let newest = self.newest().map(|schema| schema.revision).max().unwrap_or(0);
        newest.max(self.dropped_at)
    }

    /// Forgets a service's versions.
    pub(super) fn forget(&mut self, service: &str) -> Vec<SchemaRecord> {
        self.versions.remove(service).unwrap_or_default()
    }

    /// Judges new schemas: texts, versions, what they break, and whether all fit together.
    pub fn draft(
        &self,
        wanted: Vec<NewSchema>,
        allow_breaking: bool,
        (by, because, wall_ms): (&str, &str, u64),
    ) -> Result<CatalogCommand, WireError> {
        let refuse = |code: Code, text: String| Err(WireError::new(code, format!("{text}; nothing was changed")));
        if wanted.is_empty() || wanted.len() > SCHEMAS_AT_ONCE {
            let text = format!("{} schemas: 1 to {SCHEMAS_AT_ONCE} can be set at once", wanted.len());
            return refuse(Code::BadRequest, text);
        }
        let mut all = Schemas::new();
        for text in self.newest() {
            let read = Schema::parse(&text.text);
            let schema = read.map_err(|error| WireError::new(Code::BadSchema, error.to_string()))?;
            all.insert(text.service.clone(), Arc::new(schema));
        }
        let revision = self.revision();
        let (mut records, mut breaking) = (Vec::new(), Vec::new());
        for new in wanted {
            let schema = match Schema::parse(&new.text) {
                Ok(schema) => schema,
                Err(error) => return refuse(Code::BadSchema, format!("{}: {error}", new.service)),
            };
            if schema.service != new.service {
                let text = format!("the schema is of {}, not of {}", schema.service, new.service);
                return refuse(Code::BadSchema, text);
            }
            let known = self.versions(&new.service).last();
            let version = known.map_or(0, |record| record.schema.version);
            // The same text again is the same wish again, or its repeat.
            if known.is_some_and(|record| record.schema.text == new.text) {
                records.extend(known.cloned());
                continue;
            }
            if version != new.expected {
                let text = format!(
                    "the schema of {} is at version {version}, not {}",
                    new.service, new.expected
                );
                return refuse(Code::VersionConflict, text);
            }
            if records
                .iter()
                .any(|record: &SchemaRecord| record.schema.service == new.service)
            {
                return refuse(Code::BadRequest, format!("two schemas of {}", new.service));
            }
            if let Some(old) = all.get(&new.service) {
                let changes = diff::diff(old, &schema).into_iter();
                breaking.extend(changes.filter_map(|change| {
                    let why = change.breaking?;
                    Some(format!("{}: {}: {}: {why}", new.service, change.path, change.text))
                }));
            }
            all.insert(new.service.clone(), Arc::new(schema));
            records.push(SchemaRecord {
                schema: SchemaText {
                    service: new.service,
                    version: version + 1,
                    revision: revision + 1,
                    text: new.text,
                },
                by: by.to_owned(),
                because: because.to_owned(),
                wall_ms,
            });
        }
        if let Err(error) = check_all(&all) {
            return refuse(Code::BadSchema, error.to_string());
        }
        if !breaking.is_empty() && !allow_breaking {
            return refuse(Code::BreakingSchema, breaking.join("\n"));
        }
        Ok(CatalogCommand {
            revision,
            records,
            indexes: Vec::new(),
        })
    }
}

impl Directory {
    pub(super) fn change_catalog(&mut self, command: &CatalogCommand, state: &mut dyn State) -> Response {
        let is_known = |record: &SchemaRecord| {
            let versions = self.catalog.versions(&record.schema.service);
            versions.last().is_some_and(|known| known.schema == record.schema)
        };
        let news: Vec<SchemaRecord> = command
            .records
            .iter()
            .filter(|record| !is_known(record))
            .cloned()
            .collect();
        if news.is_empty() {
            return Response::Schemas(command.records.clone());
        }
        let missing = news
            .iter()
            .find(|record| !self.map.services.contains_key(&record.schema.service));
        if let Some(record) = missing {
            let text = format!("there is no service `{}`; nothing was changed", record.schema.service);
            return Response::Error(WireError::new(Code::NoService, text));
        }
        if let Some(dropping) = self.map.services.values().find(|service| service.dropping.is_some()) {
            // What is written into a schema now might name it.
            let text = format!("{} is being dropped; nothing was changed", dropping.name);
            let mut error = WireError::new(Code::VersionConflict, text);
            error.retry_after_ms = 200;
            return Response::Error(error);
        }
        if self.catalog.revision() != command.revision {
            let text = "the schemas were changed by somebody else in the meantime; nothing was changed";
            return Response::Error(WireError::new(Code::VersionConflict, text));
        }
        for record in &news {
            let schema = &record.schema;
            put(state, b'h', &version_row(&schema.service, schema.version), record);
            self.map.schemas.insert(schema.service.clone(), schema.clone());
            self.catalog.load(record.clone());
            let Some(versions) = self.catalog.versions.get_mut(&schema.service) else {
                continue;
            };
            let surplus = versions.len().saturating_sub(VERSIONS_KEPT);
            for old in versions.drain(..surplus) {
                remove(state, b'h', &version_row(&old.schema.service, old.schema.version));
            }
        }
        for index in &command.indexes {
            if !self.map.services.contains_key(&index.name) {
                // A node that left meanwhile: the schema stands, and the next one that is applied finds the index missing.
                let _ = self.create_service(index, state);
            }
        }
        self.changed(state);
        Response::Schemas(command.records.clone())
    }
}

pub(super) fn version_row(service: &str, version: u64) -> Vec<u8> {
    [service.as_bytes(), &[0], &version.to_be_bytes()].concat()
}
