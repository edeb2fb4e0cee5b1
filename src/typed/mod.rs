//! Structs as entities: what an application writes instead of JSON and key strings.
//!
//! ```no_run
//! use isx::client::{Client, ConnectOptions};
//! use isx::typed::{Choice, Record, TypedClient};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Serialize, Deserialize, Record)]
//! #[isx(service = "campaign")]
//! struct Campaign {
//!     #[isx(max_length = 200)]
//!     name: String,
//!     status: Status,
//!     #[isx(min = 0, default = 0)]
//!     budget: i64,
//!     #[isx(children, on_delete = "cascade")]
//!     profiles: Vec<Profile>,
//! }
//!
//! #[derive(Debug, Serialize, Deserialize, Choice)]
//! #[serde(rename_all = "lowercase")]
//! enum Status {
//!     Draft,
//!     Active,
//! }
//!
//! #[derive(Debug, Serialize, Deserialize, Record)]
//! #[isx(service = "profile")]
//! struct Profile {
//!     #[isx(key)]
//!     key: Option<String>,
//!     #[isx(parent = "campaign")]
//!     campaign: Option<String>,
//!     #[isx(min = 13, max = 120)]
//!     age_min: Option<i64>,
//! }
//!
//! # async fn example(client: Client, spring: Campaign) -> Result<(), Box<dyn std::error::Error>> {
//! let done = client.update::<Campaign>("c-1001").with(&spring).commit().await?;
//! for child in &done.children {
//!     println!("{}/{} is on its way as message {}", child.service, child.key, child.message);
//! }
//! let again = client.read::<Campaign>("c-1001").with_children().fetch().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The struct is the schema's source: [`Record::schema_text`] writes the TOML that `isxctl schema apply` takes, and
//! [`TypedClient::check_schema`] says how the cluster's differs. A combined object is one update: the parent is committed, its
//! children follow by message, each exactly once.
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use isx_derive::{Choice, Record};

mod operation;
mod schema_text;
#[cfg(test)]
mod tests;
mod value;

pub use operation::{ChildUpdate, Committed, Read, SchemaCheck, Stored, TypedClient, TypedError, Update};
pub use value::{Many, Shape, Value};

/// A struct that is kept as an entity of one service. Derive it.
pub trait Record: Serialize + DeserializeOwned {
    /// The service.
    const SERVICE: &'static str;
    /// The field that holds the entity's key and is no part of the document.
    const KEY_FIELD: Option<&'static str>;
    /// TOML that is added to the schema.
    const RULES: &'static str;

    /// The document's fields, in order.
    fn fields() -> Vec<Field>;
    /// Fields of the combined object that hold children.
    fn children() -> Vec<Children>;
    /// Fields that name a parent.
    fn parents() -> Vec<Parent>;

    /// The schema as TOML.
    fn schema_text() -> String {
        schema_text::write::<Self>()
    }
}

/// A field of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    name: &'static str,
    shape: Shape,
    is_required: bool,
    /// Keys of the field's table in the schema.
    more: Vec<(&'static str, toml::Value)>,
}

impl Field {
    /// A field that holds a `T`.
    pub fn of<T: Value>(name: &'static str) -> Self {
        Self {
            name,
            shape: T::shape(),
            is_required: !T::MAY_BE_ABSENT,
            more: Vec::new(),
        }
    }

    /// Least value.
    pub fn with_min(self, min: impl Into<toml::Value>) -> Self {
        self.with("min", min)
    }

    /// Greatest value.
    pub fn with_max(self, max: impl Into<toml::Value>) -> Self {
        self.with("max", max)
    }

    /// Fewest characters or items.
    pub fn with_min_length(self, length: u32) -> Self {
        self.with("min_length", i64::from(length))
    }

    /// Most characters or items.
    pub fn with_max_length(self, length: u32) -> Self {
        self.with("max_length", i64::from(length))
    }

    /// Filled in where a document lacks the field, which may then be absent.
    pub fn with_default(mut self, value: impl Into<toml::Value>) -> Self {
        self.is_required = false;
        self.with("default", value)
    }

    /// A time by RFC 3339, as text.
    pub fn timestamp(mut self) -> Self {
        self.shape = Shape::Timestamp;
        self
    }

    /// An index is kept over it.
    pub fn index(self) -> Self {
        self.with("index", true)
    }

    fn with(mut self, key: &'static str, value: impl Into<toml::Value>) -> Self {
        self.more.push((key, value.into()));
        self
    }
}

/// A field of the combined object that holds children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Children {
    /// The field.
    pub field: &'static str,
    /// Their service.
    pub service: &'static str,
    /// The field of each that holds its key.
    pub key_field: &'static str,
    /// `cascade`, `detach` or `refuse`.
    pub on_delete: &'static str,
}

impl Children {
    /// Children that are `C`s.
    pub fn of<C: Record>(field: &'static str, on_delete: &'static str) -> Self {
        Self {
            field,
            service: C::SERVICE,
            key_field: C::KEY_FIELD.unwrap_or("key"),
            on_delete,
        }
    }
}

/// A field that names a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The field.
    pub field: &'static str,
    /// The parent's service.
    pub service: &'static str,
}
