//! What the entities of a service look like, and what a change of one means for others.
//!
//! A schema is a TOML text. It is kept and sent as that text, so that comments and layout stay the author's; every reader
//! parses it for itself ([`Schema::parse`]). One service's schema says nothing about another's, so what is true of several
//! together (no cycle of relations, no endless chain of actions) is checked over all of them ([`check::check_all`]).
//!
//! Everything here is pure: text and documents in, documents, sends and errors out. The shard's log entry that does the
//! change is made of these (`daemon::core::entity`), and `isxctl schema check` uses the same functions offline.
//!
//! | question | answered by |
//! |---|---|
//! | is this text a schema? | [`parse`] |
//! | do these schemas fit together? | [`check`] |
//! | what does a new version break? | [`diff`] |
//! | is this document acceptable? | [`validate`] |
//! | which children lie in this combined object? | [`combined`] |
//! | what must others be told of this change? | [`action`] |
//! | does this entity take that message? | [`accept`] |
//!
//! Documents are never re-encoded: a field that is not touched keeps its bytes, numbers their spelling.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub mod accept;
pub mod action;
pub mod bundle;
pub mod check;
pub mod combined;
pub mod diff;
pub mod document;
pub mod index;
pub mod number;
pub mod parse;
pub mod validate;

pub use document::{Document, Raw};
pub use parse::SchemaError;

/// Newest format of schema texts that this build reads.
pub const FORMAT: u32 = 1;
/// Longest schema text. Unit: bytes.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Most fields of a schema.
pub const FIELDS_MAX: usize = 256;
/// Most actions, accepted messages, relations or aggregates of a schema, each.
pub const PARTS_MAX: usize = 64;
/// Most problems that are told at once.
pub const PROBLEMS_MAX: usize = 20;
/// Children of one combined object, where the schema sets no other limit.
pub const CHILDREN_PER_UPDATE: usize = 1_000;
/// The highest limit of children per update that a schema may set: an entity may have this many messages outstanding.
pub const CHILDREN_PER_UPDATE_MAX: usize = 10_000;
/// A message caused by a message caused by a message ...: deeper than this it is refused.
pub const DEPTH_MAX: u8 = 16;

/// A checked schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// The service whose entities it is about.
    pub service: String,
    /// By name; also the order in which defaults are filled in.
    pub fields: Vec<Field>,
    /// Fields of a combined object that hold children.
    pub children: Vec<ChildRelation>,
    /// Fields that name a parent.
    pub parents: Vec<ParentRelation>,
    /// What children feed.
    pub aggregates: Vec<Aggregate>,
    /// What is sent when something changes.
    pub actions: Vec<Action>,
    /// What is taken when something arrives.
    pub accepts: Vec<Accept>,
    /// Integer fields that others may reserve amounts of.
    pub pools: Vec<Pool>,
    /// Bounds.
    pub limits: Limits,
}

/// One field of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: FieldType,
    /// Whether a document without it is refused.
    pub required: bool,
    /// Filled in where it is absent.
    pub default: Option<Raw>,
    /// Whether an index is kept over it.
    pub index: bool,
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldType {
    /// Text. Lengths count characters.
    String {
        /// Fewest characters.
        min_length: Option<u64>,
        /// Most characters.
        max_length: Option<u64>,
    },
    /// A whole number of 64 bits, written without fraction and exponent.
    Integer {
        /// Least.
        min: Option<Raw>,
        /// Greatest.
        max: Option<Raw>,
    },
    /// Any JSON number; compared exactly, as it is written.
    Number {
        /// Least.
        min: Option<Raw>,
        /// Greatest.
        max: Option<Raw>,
    },
    /// `true` or `false`.
    Boolean,
    /// A time by RFC 3339, as text.
    Timestamp,
    /// One of these texts.
    Enum(Vec<String>),
    /// An array.
    List {
        /// What each item is.
        items: Box<FieldType>,
        /// Fewest items.
        min_length: Option<u64>,
        /// Most items.
        max_length: Option<u64>,
    },
    /// An object whose names are data.
    Map {
        /// What each value is.
        items: Box<FieldType>,
        /// Most entries.
        max_length: Option<u64>,
    },
    /// Anything.
    Json,
}

/// A field of the combined object that holds children. It is not part of the parent's own document.
#[derive(Debug, Clone, PartialEq)]
pub struct ChildRelation {
    /// The field.
    pub field: String,
    /// The children's service.
    pub service: String,
    /// The field of a child object that holds the child's key; it is not part of the child's document.
    pub key: String,
    /// What a delete of the parent means for its children.
    pub on_delete: OnDelete,
    /// The field of the parent that says which child refused what it was put as, and why.
    pub mark: Option<String>,
    /// What is refused is parked: kept until somebody sends it again or gives it up.
    pub park: bool,
}

/// What a delete of the parent means for its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// They are deleted too.
    Cascade,
    /// They stay, without a parent.
    Detach,
    /// A parent that has children is not deleted.
    Refuse,
}

/// A field that names a parent.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentRelation {
    /// The field; it holds the parent's key.
    pub field: String,
    /// The parent's service.
    pub service: String,
}

/// What a parent knows of its children as a number: each child feeds what it contributes.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Its name.
    pub name: String,
    /// The relation whose children feed it.
    pub of: String,
    /// The integer field of the children that is summed; `None`: children are counted.
    pub sum: Option<String>,
    /// Only children for which this holds.
    pub when: Option<When>,
}

/// Something that is sent when an entity changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// Its name, for people and for its receivers' refusals.
    pub name: String,
    /// Which changes.
    pub on: Vec<ChangeKind>,
    /// Which of those.
    pub when: Option<When>,
    /// A child relation, or a field that names a parent.
    pub to: String,
    /// What is sent.
    pub does: Does,
    /// The field of the sender that says who refused and why.
    pub mark: Option<String>,
    /// What is refused is parked: kept until somebody sends it again or gives it up.
    pub park: bool,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The whole document was set.
    Put,
    /// Fields were set, by a client or by a message.
    Patch,
    /// The entity was deleted.
    Delete,
}

/// What an action sends.
#[derive(Debug, Clone, PartialEq)]
pub enum Does {
    /// Fields of the receiver are set.
    Set {
        /// To constants.
        set: Vec<(String, Raw)>,
        /// Receiver's field, sender's field.
        copy: Vec<(String, String)>,
    },
    /// The receiver is deleted.
    Delete,
    /// The receiver forgets its parent.
    Detach,
    /// A named action of the receiver.
    Call {
        /// Its name.
        name: String,
        /// Constants.
        params: Vec<(String, Raw)>,
        /// Parameter, sender's field.
        copy: Vec<(String, String)>,
    },
}

/// A condition on a change or on a document.
#[derive(Debug, Clone, PartialEq)]
pub struct When {
    /// The field.
    pub field: String,
    /// The change gave it another value.
    pub changed: bool,
    /// It had this value before, and has another now.
    pub was: Option<Raw>,
    /// It has this value now.
    pub equals: Option<Raw>,
    /// It has another value now.
    pub differs: Option<Raw>,
}

/// A message that is taken, and on which conditions.
#[derive(Debug, Clone, PartialEq)]
pub struct Accept {
    /// What kind.
    pub what: Taken,
    /// The sender's service; `None`: only from its present parent.
    pub from: Option<String>,
    /// Refused while this holds.
    pub refuse_when: Option<When>,
    /// What the sender is told then.
    pub reason: String,
    /// Fields that a call sets to constants.
    pub set: Vec<(String, Raw)>,
    /// Field, parameter of the call.
    pub copy: Vec<(String, String)>,
}

/// Kinds of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// A child of a combined object.
    Put,
    /// Fields are set.
    Set,
    /// The entity is deleted.
    Delete,
    /// The entity forgets its parent.
    Detach,
    /// A named action.
    Call(String),
}

/// A field that others may reserve amounts of.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// The integer field that says how much there is.
    pub field: String,
}

/// Bounds of a service's entities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest document. Unit: bytes.
    pub document_bytes: usize,
    /// Most children in one combined object.
    pub children_per_update: usize,
}

/// A schema with the version that it has in the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// 1 for a service's first.
    pub version: u64,
    /// The schema.
    pub schema: Arc<Schema>,
}

impl Schema {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The child relation of this name.
    pub fn child_relation(&self, field: &str) -> Option<&ChildRelation> {
        self.children.iter().find(|relation| relation.field == field)
    }

    /// The field that names a parent of `service`.
    pub fn parent_field(&self, service: &str) -> Option<&ParentRelation> {
        self.parents.iter().find(|relation| relation.service == service)
    }

    /// The action of this name.
    pub fn action(&self, name: &str) -> Option<&Action> {
        self.actions.iter().find(|action| action.name == name)
    }

    /// Services that this one names, in order, each once.
    pub fn related(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.children.iter().map(|r| r.service.as_str()).collect();
        names.extend(self.parents.iter().map(|r| r.service.as_str()));
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests;
