//! TLS and QUIC settings of the dialling side.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::ConnectError;
use super::options::Identity;
use crate::protocol::hello::ALPN;

/// A connection on which nothing arrives for this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection proves that it lives this often.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

pub(super) fn client_config(identity: &Identity) -> Result<quinn::ClientConfig, ConnectError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&identity.ca, "certificate authority")? {
        roots
            .add(certificate)
            .map_err(|error| unusable(&identity.ca, "certificate authority", &error))?;
    }
    let chain = certificates(&identity.certificate, "client certificate")?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)
        .map_err(|error| unusable(&identity.key, "client key", &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&identity.ca, "certificate authority", &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(&identity.certificate, "client certificate", &error))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|error| unusable(&identity.certificate, "client certificate", &error))?;
    let mut transport = quinn::TransportConfig::default();
    let idle = IDLE_TIMEOUT.try_into().expect("ten seconds fit a QUIC integer");
    transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(path, what, &error))?;
    if found.is_empty() {
        return Err(unusable(path, what, &"there is no certificate in it"));
    }
    Ok(found)
}

fn unusable(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Identity {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
