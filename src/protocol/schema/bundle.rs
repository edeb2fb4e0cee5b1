//! A service's schema together with those of the services it names: all that is needed to judge a write.
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parse::SchemaError;
use super::{Schema, Versioned};

/// A schema as it is kept and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaText {
    /// The service.
    pub service: String,
    /// Its version in the cluster: 1 for a service's first.
    pub version: u64,
    /// Which change of the cluster's schemas made it: grows over all services.
    pub revision: u64,
    /// TOML.
    pub text: String,
}

/// A schema that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSchema {
    /// The service.
    pub service: String,
    /// TOML.
    pub text: String,
    /// The version that it takes the place of; 0: there is none yet.
    pub expected: u64,
}

/// A version of a schema and how it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaRecord {
    /// The schema.
    pub schema: SchemaText,
    /// Who made it.
    pub by: String,
    /// Why.
    pub because: String,
    /// Wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
}

/// What a shard judges its writes by, as its log holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bundle {
    /// The newest revision among the texts.
    pub revision: u64,
    /// The service's own schema first.
    pub texts: Vec<SchemaText>,
}

/// A bundle that has been read.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruleset {
    /// As in the bundle.
    pub revision: u64,
    /// The service's own schema.
    pub own: Versioned,
    /// Schemas of parents and children.
    pub related: BTreeMap<String, Arc<Schema>>,
}

impl Bundle {
    /// What `service` needs of all schemas; `None` where it has none itself.
    pub fn of(service: &str, all: &BTreeMap<String, SchemaText>) -> Option<Self> {
        let own = all.get(service)?;
        let schema = Schema::parse(&own.text).ok()?;
        let mut texts = vec![own.clone()];
        texts.extend(schema.related().into_iter().filter_map(|name| all.get(name)).cloned());
        let revision = texts.iter().map(|text| text.revision).max().unwrap_or(0);
        Some(Self { revision, texts })
    }

    /// Reads the texts.
    pub fn read(&self) -> Result<Ruleset, SchemaError> {
        let mut read = Vec::new();
        for text in &self.texts {
            let schema = Schema::parse(&text.text).map_err(|mut error| {
                for problem in &mut error.problems {
                    *problem = format!("schema of {}, version {}: {problem}", text.service, text.version);
                }
                error
            })?;
            let version = text.version;
            let schema = Arc::new(schema);
            read.push((text.service.clone(), Versioned { version, schema }));
        }
        let mut read = read.into_iter();
        let Some((_, own)) = read.next() else {
            return Err(SchemaError {
                problems: vec!["a bundle without schemas".to_owned()],
            });
        };
        Ok(Ruleset {
            revision: self.revision,
            own,
            related: read.map(|(name, versioned)| (name, versioned.schema)).collect(),
        })
    }

    /// Whether it is there at all.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// About how long it is in an entry. Unit: bytes.
    pub fn size(&self) -> usize {
        self.texts
            .iter()
            .map(|text| text.text.len() + text.service.len() + 32)
            .sum()
    }
}
