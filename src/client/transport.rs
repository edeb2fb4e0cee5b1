//! TLS and QUIC settings of the dialling side.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::error::ConnectError;
use super::options::Identity;
use crate::security::ca::read_key;
use crate::security::tls;

/// A connection on which nothing arrives for this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection proves that it lives this often.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

pub(super) fn client_config(identity: &Identity) -> Result<quinn::ClientConfig, ConnectError> {
    let ca = text(&identity.ca, "certificate authority")?;
    let certificate = text(&identity.certificate, "client certificate")?;
    let key = read_key(&identity.key).map_err(|error| unusable(&identity.key, "client key", &error))?;
    let mut config = tls::client_config(&ca, &certificate, &key)
        .map_err(|error| unusable(&identity.certificate, "client certificate", &error))?;
    let mut transport = quinn::TransportConfig::default();
    let idle = IDLE_TIMEOUT.try_into().expect("ten seconds fit a QUIC integer");
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn text(path: &Path, what: &'static str) -> Result<String, ConnectError> {
    std::fs::read_to_string(path).map_err(|error| unusable(path, what, &error))
}

fn unusable(path: &Path, what: &'static str, mut error: &dyn std::error::Error) -> ConnectError {
    let mut reason = error.to_string();
    while let Some(source) = error.source() {
        reason = format!("{reason}: {source}");
        error = source;
    }
    ConnectError::Identity {
        what,
        path: path.to_owned(),
        reason,
    }
}
