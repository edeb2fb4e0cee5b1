//! Updates and reads of typed entities over a [`Client`].
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Record;
use crate::client::{Client, ClientError, Delivery};
use crate::protocol::activity::Sent;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::RequestId;
use crate::protocol::key::Position;
use crate::protocol::request::{CHILDREN_PER_ANSWER, Change, Condition, Entity, Request, Response, Write};
use crate::protocol::schema::diff::{self, diff};
use crate::protocol::schema::{Schema, SchemaError};

/// Why a typed operation did not work.
#[derive(Debug, thiserror::Error)]
pub enum TypedError {
    /// The cluster refused it, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The struct can't be written as a document.
    #[error("a {service} can't be written as a document; nothing was changed")]
    Write {
        /// The service.
        service: &'static str,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// The struct is no JSON object.
    #[error("a {service} is written as something else than a JSON object; nothing was changed")]
    NoObject {
        /// The service.
        service: &'static str,
    },
    /// The struct, or what the cluster has, is no schema.
    #[error("{whose} schema of {service}")]
    Schema {
        /// Whose it is, in two words.
        whose: &'static str,
        /// The service.
        service: &'static str,
        /// What is wrong with it.
        #[source]
        source: SchemaError,
    },
    /// The document does not fit the struct.
    #[error("{service}/{key} does not fit its struct")]
    Read {
        /// The service.
        service: &'static str,
        /// The entity.
        key: String,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
}

/// Typed operations of a client.
pub trait TypedClient {
    /// Sets the entity at `key`, and its children with it.
    fn update<R: Record>(&self, key: impl Into<String>) -> Update<'_, R>;
    /// Creates an entity under a key of the cluster's choice, and its children with it.
    fn insert<R: Record>(&self) -> Update<'_, R>;
    /// Reads the entity at `key`.
    fn read<R: Record>(&self, key: impl Into<String>) -> Read<'_, R>;
    /// How the struct differs from the schema that the cluster has for its service.
    fn check_schema<R: Record>(&self) -> impl Future<Output = Result<SchemaCheck, TypedError>> + Send;
}

/// What [`TypedClient::check_schema`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaCheck {
    /// The cluster's schema says the same as the struct.
    Same {
        /// Its version in the cluster.
        version: u64,
    },
    /// It says something else.
    Differs {
        /// Its version in the cluster.
        version: u64,
        /// What would change if the struct's were applied.
        changes: Vec<diff::Change>,
    },
    /// The service has no schema: documents are not checked. `isxctl schema apply` takes [`Record::schema_text`].
    Absent,
}

impl TypedClient for Client {
    fn update<R: Record>(&self, key: impl Into<String>) -> Update<'_, R> {
        Update::new(self, Some(key.into()))
    }

    fn insert<R: Record>(&self) -> Update<'_, R> {
        Update::new(self, None)
    }

    fn read<R: Record>(&self, key: impl Into<String>) -> Read<'_, R> {
        Read {
            client: self,
            key: key.into(),
            with_children: false,
            record: PhantomData,
        }
    }

    async fn check_schema<R: Record>(&self) -> Result<SchemaCheck, TypedError> {
        let service = R::SERVICE;
        let fail = |whose| move |source| TypedError::Schema { whose, service, source };
        let wanted = Schema::parse(&R::schema_text()).map_err(fail("a struct is no"))?;
        let request = Request::ShowSchemas {
            service: Some(service.to_owned()),
        };
        let Response::Schemas(records) = self.request(request).await? else {
            return Err(unexpected().into());
        };
        let newest = records.into_iter().max_by_key(|record| record.schema.version);
        let Some(newest) = newest else {
            return Ok(SchemaCheck::Absent);
        };
        let version = newest.schema.version;
        let known = Schema::parse(&newest.schema.text).map_err(fail("this program can't read the cluster's"))?;
        let changes = diff(&known, &wanted);
        Ok(match changes.is_empty() {
            true => SchemaCheck::Same { version },
            false => SchemaCheck::Differs { version, changes },
        })
    }
}

/// An entity as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<R> {
    /// Its key.
    pub key: String,
    /// Its version: what [`Update::if_version`] takes.
    pub version: u64,
    /// When it was last written, by its leader's wall clock. Unit: ms since 1970.
    pub updated_ms: u64,
    /// The entity.
    pub value: R,
}

/// What an update did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The entity's key.
    pub key: String,
    /// The version that was made.
    pub version: u64,
    /// Whether the answer is remembered from an earlier arrival of the same request.
    pub repeated: bool,
    /// Updates of children, committed with the parent and on their way.
    pub children: Vec<ChildUpdate>,
    of: Position,
    /// The messages to the children, as they are listed.
    sent: Vec<Sent>,
}

impl Committed {
    /// Waits until every child has taken its updates or refused them, or the time limit; what became of each, in the order
    /// of `children`.
    ///
    /// # Errors
    /// Where nobody can say: the updates are on their way all the same.
    pub async fn delivered(&self, client: &Client, limit: Duration) -> Result<Vec<Delivery>, TypedError> {
        let deadline = Instant::now() + limit;
        loop {
            let mut all = Vec::with_capacity(self.sent.len());
            for sent in &self.sent {
                all.push(client.delivery(&self.of, sent).await?);
            }
            if !all.contains(&Delivery::Pending) || Instant::now() >= deadline {
                return Ok(all);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// Pause before children are looked at again.
const POLL_EVERY: Duration = Duration::from_millis(30);

/// An update of a child, on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildUpdate {
    /// Its service.
    pub service: String,
    /// Its key.
    pub key: String,
    /// What is wanted of it: `put`, or the name of an action.
    pub action: String,
    /// The message that brings it: session and number.
    pub message: String,
}

/// An update that is not sent yet.
#[must_use = "nothing is sent before `commit`"]
pub struct Update<'c, R> {
    client: &'c Client,
    key: Option<String>,
    document: Result<Option<Vec<u8>>, TypedError>,
    condition: Condition,
    id: RequestId,
    record: PhantomData<fn(R)>,
}

impl<'c, R: Record> Update<'c, R> {
    fn new(client: &'c Client, key: Option<String>) -> Self {
        Self {
            client,
            key,
            document: Ok(None),
            condition: Condition::Always,
            id: RequestId::random(),
            record: PhantomData,
        }
    }

    /// What it should be, children and all.
    pub fn with(mut self, value: &R) -> Self {
        self.document = document(value).map(Some);
        self
    }

    /// Only if it is in this version.
    pub fn if_version(mut self, version: u64) -> Self {
        self.condition = Condition::IfVersion(version);
        self
    }

    /// Only if there is none yet.
    pub fn if_absent(mut self) -> Self {
        self.condition = Condition::IfAbsent;
        self
    }

    /// The name of the write; the same again has one effect, and gives children without a key the same keys.
    pub fn request_id(mut self, id: RequestId) -> Self {
        self.id = id;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// The cluster's refusal; [`ClientError::Unknown`] where the outcome is not known: repeat it with the request id.
    ///
    /// # Panics
    /// Without [`Update::with`].
    pub async fn commit(self) -> Result<Committed, TypedError> {
        let document = self.document?.expect("an update says `with` what").into();
        let change = match &self.key {
            Some(_) => Change::Put(document),
            None => Change::Post(document),
        };
        let write = Write {
            service: R::SERVICE.to_owned(),
            key: self.key.unwrap_or_default(),
            id: self.id,
            condition: self.condition,
            change,
        };
        let written = self.client.write(write).await?;
        let children = R::children();
        let of_child = |service: &str| children.iter().any(|relation| relation.service == service);
        let mut sent = written.sent;
        sent.retain(|sent| of_child(sent.to.parts().0));
        let update = |sent: &Sent| {
            let (service, key) = sent.to.parts();
            ChildUpdate {
                service: service.to_owned(),
                key: key.unwrap_or_default().to_owned(),
                action: sent.action.clone(),
                message: format!("{}.{}", sent.session, sent.number),
            }
        };
        Ok(Committed {
            children: sent.iter().map(update).collect(),
            of: Position::new(R::SERVICE, &written.key),
            sent,
            key: written.key,
            version: written.version,
            repeated: written.repeated,
        })
    }
}

/// A read that is not sent yet.
#[must_use = "nothing is asked before `fetch`"]
pub struct Read<'c, R> {
    client: &'c Client,
    key: String,
    with_children: bool,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Read<'_, R> {
    /// Its children too. Each is read where it is: together they are no snapshot.
    pub fn with_children(mut self) -> Self {
        self.with_children = true;
        self
    }

    /// Asks. `None` where there is no such entity.
    ///
    /// # Errors
    /// What the cluster answers; [`TypedError::Read`] where a document does not fit its struct.
    pub async fn fetch(self) -> Result<Option<Stored<R>>, TypedError> {
        let Some(entity) = self.client.get(R::SERVICE, &self.key).await? else {
            return Ok(None);
        };
        let mut lists = Map::new();
        for relation in R::children() {
            let mut list = Vec::new();
            if self.with_children {
                for key in children(self.client, R::SERVICE, &self.key, relation.field).await? {
                    // It may have gone since, or not have come yet.
                    let Some(child) = self.client.get(relation.service, &key).await? else {
                        continue;
                    };
                    let mut child = object(relation.service, &key, &child)?;
                    child.insert(relation.key_field.to_owned(), key.into());
                    list.push(child.into());
                }
            }
            lists.insert(relation.field.to_owned(), Value::Array(list));
        }
        stored(&self.key, &entity, lists).map(Some)
    }
}

/// Keys of an entity's children.
async fn children(client: &Client, service: &str, key: &str, relation: &str) -> Result<Vec<String>, ClientError> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let request = Request::Children {
            service: service.to_owned(),
            key: key.to_owned(),
            relation: relation.to_owned(),
            after: keys.last().cloned().unwrap_or_default(),
        };
        let Response::Children(page) = client.request(request).await? else {
            return Err(unexpected());
        };
        let is_last = page.len() < CHILDREN_PER_ANSWER;
        keys.extend(page.into_iter().map(|child| child.key));
        if is_last {
            return Ok(keys);
        }
    }
}

fn unexpected() -> ClientError {
    ClientError::Refused(WireError::new(
        Code::Internal,
        "a node gave an answer that does not fit the question",
    ))
}

/// A record as the document that is sent: without its own key, without fields that hold nothing.
pub(super) fn document<R: Record>(value: &R) -> Result<Vec<u8>, TypedError> {
    let service = R::SERVICE;
    let write = |source| TypedError::Write { service, source };
    let Value::Object(mut object) = serde_json::to_value(value).map_err(write)? else {
        return Err(TypedError::NoObject { service });
    };
    if let Some(key) = R::KEY_FIELD {
        object.shift_remove(key);
    }
    object.retain(|_, value| !value.is_null());
    for relation in R::children() {
        let children = object.get_mut(relation.field).and_then(Value::as_array_mut);
        for child in children.into_iter().flatten().filter_map(Value::as_object_mut) {
            child.retain(|_, value| !value.is_null());
        }
    }
    serde_json::to_vec(&Value::Object(object)).map_err(write)
}

fn object(service: &'static str, key: &str, entity: &Entity) -> Result<Map<String, Value>, TypedError> {
    serde_json::from_slice(&entity.document).map_err(|source| TypedError::Read {
        service,
        key: key.to_owned(),
        source,
    })
}

pub(super) fn stored<R: Record>(
    key: &str,
    entity: &Entity,
    children: Map<String, Value>,
) -> Result<Stored<R>, TypedError> {
    let mut document = object(R::SERVICE, key, entity)?;
    document.extend(children);
    if let Some(field) = R::KEY_FIELD {
        document.insert(field.to_owned(), key.into());
    }
    let value = serde_json::from_value(Value::Object(document)).map_err(|source| TypedError::Read {
        service: R::SERVICE,
        key: key.to_owned(),
        source,
    })?;
    Ok(Stored {
        key: key.to_owned(),
        version: entity.version,
        updated_ms: entity.updated_ms,
        value,
    })
}
