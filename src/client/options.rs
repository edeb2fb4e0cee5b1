//! How to reach a cluster.
use std::path::PathBuf;
use std::time::Duration;

use super::context::{Context, Contexts};
use super::error::ConnectError;
use crate::protocol::id::ClusterId;

/// Who the client is and whom it trusts: three PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// The client's certificate; its name holds the client's role.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// How to reach a cluster. Start from [`ConnectOptions::new`] or [`ConnectOptions::from_context`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Nodes to begin with, `host:port`. All others are learnt from the first that answers.
    pub endpoints: Vec<String>,
    /// Certificates.
    pub identity: Identity,
    /// Refuse to talk to another cluster than this.
    pub cluster: Option<ClusterId>,
    /// Time limit of a request, with all its retries.
    pub timeout: Duration,
    /// Time limit of one attempt to connect to one node.
    pub dial_timeout: Duration,
    /// Time limit of [`super::Client::connect`]: all endpoints are tried again until then.
    pub connect_timeout: Duration,
    /// Most requests in flight; callers beyond it wait.
    pub in_flight_max: usize,
}

impl ConnectOptions {
    /// Options with the default time limits: 5 s for a request, 1 s for dialling a node, 3 s for connecting.
    pub fn new(endpoints: Vec<String>, identity: Identity) -> Self {
        Self {
            endpoints,
            identity,
            cluster: None,
            timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(3),
            in_flight_max: 65_536,
        }
    }

    /// Options for the context called `name`, or the current one, from the user's contexts file.
    pub fn from_context(name: Option<&str>) -> Result<Self, ConnectError> {
        let path = Contexts::path(|variable| std::env::var(variable).ok())?;
        let (_, context) = Contexts::read(&path)?.find(name, &path)?;
        Ok(context.into())
    }
}

impl From<Context> for ConnectOptions {
    fn from(context: Context) -> Self {
        let identity = Identity {
            ca: context.ca,
            certificate: context.certificate,
            key: context.key,
        };
        Self {
            cluster: context.cluster,
            ..Self::new(context.endpoints, identity)
        }
    }
}
