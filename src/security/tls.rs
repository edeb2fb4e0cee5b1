//! TLS settings of both ends, and who the other end is.
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use webpki::EndEntityCert;

use super::ca::Pin;
use crate::protocol::hello::ALPN;
use crate::protocol::id::NodeId;
use crate::protocol::message::{Principal, Role};

/// The name that every node's certificate has: what a client dials by.
pub const CLUSTER_NAME: &str = "isx.internal";

/// The name that only this node's certificate has: what a peer dials by, and what proves the id.
pub fn node_name(node: NodeId) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// The name in a client's certificate; `None` for roles that clients do not have.
pub fn client_name(name: &str, role: Role) -> Option<String> {
    let (_, suffix) = CLIENT_SUFFIXES.iter().find(|(r, _)| *r == role)?;
    Some(format!("{name}{suffix}"))
}

/// Why TLS settings could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or nothing of the kind in it.
    #[error("cannot read {what}")]
    Pem {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// rustls does not take it.
    #[error("{what} can't be used")]
    Unusable {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Settings of a dialling end that shows a certificate: a node, a client, an operator. Server names: [`node_name`]
/// to reach one node, [`CLUSTER_NAME`] where any will do.
pub fn client_config(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<quinn::ClientConfig, TlsError> {
    let (chain, key) = identity(certificate_pem, key_pem, None)?;
    let config = rustls::ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(chain, key)
        .map_err(unusable("the certificate with its key"))?;
    finish_client(config)
}

/// Settings of a host that has no certificate yet and knows its future cluster by the authority's fingerprint. It may
/// only ask to join.
pub fn joining_config(pin: Pin) -> Result<quinn::ClientConfig, TlsError> {
    let config = rustls::ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority {
            pin,
            algorithms: crypto().signature_verification_algorithms,
        }))
        .with_no_client_auth();
    finish_client(config)
}

/// Settings of a node's accepting end. A caller with a certificate of another authority, or with none of its own that
/// is valid now, does not get through the handshake; one without any gets [`Role::Nobody`].
pub fn server_config(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<quinn::ServerConfig, TlsError> {
    let authority = certificate(ca_pem, "the authority's certificate")?;
    let (chain, key) = identity(certificate_pem, key_pem, Some(authority))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), crypto())
        .allow_unauthenticated()
        .build()
        .map_err(unusable("the authority's certificate"))?;
    let mut config = rustls::ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable("TLS 1.3"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable("the certificate with its key"))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // No 0-RTT: it can be replayed. No tickets either: a resumed session would outlive its certificate, and a full
    // handshake of connections that live for hours costs nothing.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(config).map_err(unusable("the cipher suites"))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}

/// Who the other end of a connection is, as its certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Name and role.
    pub principal: Principal,
    /// Set when it is a node.
    pub node: Option<NodeId>,
}

/// Why a verified certificate does not say who its holder is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not readable.
    #[error("the certificate can't be read")]
    Unreadable(#[source] webpki::Error),
    /// No name, or more than one, that isx gives.
    #[error("the certificate names nobody: its names are {0:?}")]
    Nameless(Vec<String>),
    /// A node's name in a certificate that may not be a node's.
    #[error("the certificate names {node} but is not for use by a node")]
    NotForNodes {
        /// The node it names.
        node: NodeId,
        /// What webpki says.
        #[source]
        source: webpki::Error,
    },
}

/// Reads names out of certificates that rustls has verified on connections of this cluster.
#[derive(Debug)]
pub struct PeerNames {
    authority: CertificateDer<'static>,
}

impl PeerNames {
    /// Of the cluster with this authority.
    pub fn new(ca_pem: &str) -> Result<Self, TlsError> {
        Ok(Self {
            authority: certificate(ca_pem, "the authority's certificate")?,
        })
    }

    /// Who the other end of an established connection is.
    pub fn identify(&self, connection: &quinn::Connection) -> Result<PeerIdentity, IdentityError> {
        let chain = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        match chain.as_deref().and_then(|chain| chain.first()) {
            Some(leaf) => self.identify_certificate(leaf),
            None => Ok(PeerIdentity {
                principal: Principal {
                    name: String::new(),
                    role: Role::Nobody,
                },
                node: None,
            }),
        }
    }

    /// Whom a certificate names, PEM; not verified but for use by a node.
    pub fn identify_pem(&self, certificate_pem: &str) -> Result<Result<PeerIdentity, IdentityError>, TlsError> {
        Ok(self.identify_certificate(&certificate(certificate_pem, "the certificate")?))
    }

    fn identify_certificate(&self, leaf: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
        let parsed = EndEntityCert::try_from(leaf).map_err(IdentityError::Unreadable)?;
        let nameless = || IdentityError::Nameless(parsed.valid_dns_names().map(str::to_owned).collect());
        let mut named = parsed.valid_dns_names().filter(|n| *n != CLUSTER_NAME);
        let (Some(name), None) = (named.next(), named.next()) else {
            return Err(nameless());
        };
        if let Some(node) = name.strip_suffix(NODE_SUFFIX) {
            let node: NodeId = node.parse().map_err(|_| nameless())?;
            // rustls has checked the certificate for the end at which it was shown. A node must be able to stand at
            // both: a client's certificate never names a node, and if one did it would still be no node's.
            self.check_server_use(&parsed)
                .map_err(|source| IdentityError::NotForNodes { node, source })?;
            return Ok(PeerIdentity {
                principal: Principal {
                    name: node.to_string(),
                    role: Role::Node,
                },
                node: Some(node),
            });
        }
        for (role, suffix) in CLIENT_SUFFIXES {
            if let Some(holder) = name.strip_suffix(suffix).filter(|h| !h.contains('.')) {
                return Ok(PeerIdentity {
                    principal: Principal {
                        name: holder.to_owned(),
                        role: *role,
                    },
                    node: None,
                });
            }
        }
        Err(nameless())
    }

    fn check_server_use(&self, leaf: &EndEntityCert<'_>) -> Result<(), webpki::Error> {
        let anchor = webpki::anchor_from_trusted_cert(&self.authority)?;
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &[],
            UnixTime::now(),
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )?;
        Ok(())
    }
}

/// Accepts a server whose chain ends in the authority with the pinned fingerprint, and checks everything else as usual.
#[derive(Debug)]
struct PinnedAuthority {
    pin: Pin,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|candidate| Pin::of(candidate) == self.pin)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn finish_client(mut config: rustls::ClientConfig) -> Result<quinn::ClientConfig, TlsError> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    config.resumption = rustls::client::Resumption::disabled();
    let quic = QuicClientConfig::try_from(config).map_err(unusable("the cipher suites"))?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// ring, with AES-128 first: on processors that have AES it is the cheapest of the three, and QUIC encrypts each packet.
fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(crypto)
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate(ca_pem, "the authority's certificate")?)
        .map_err(unusable("the authority's certificate"))?;
    Ok(roots)
}

fn identity(
    certificate_pem: &str,
    key_pem: &str,
    authority: Option<CertificateDer<'static>>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    // A node sends its authority along, for hosts that know it by fingerprint only.
    let chain = std::iter::once(certificate(certificate_pem, "the certificate")?)
        .chain(authority)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|source| TlsError::Pem {
        what: "the private key",
        source,
    })?;
    Ok((chain, key))
}

/// When a certificate ends. Unit: ms since 1970.
pub fn ends_ms(certificate_pem: &str) -> Result<u64, TlsError> {
    let what = "the certificate";
    let der = certificate(certificate_pem, what)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(unusable(what))?;
    Ok(parsed.validity().not_after.timestamp().max(0) as u64 * 1_000)
}

fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what, source })
}

fn unusable<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> TlsError {
    move |source| TlsError::Unusable {
        what,
        source: source.into(),
    }
}

const NODE_SUFFIX: &str = ".node.isx.internal";
const CLIENT_SUFFIXES: &[(Role, &str)] = &[
    (Role::Viewer, ".viewer.isx.internal"),
    (Role::Writer, ".writer.isx.internal"),
    (Role::Admin, ".admin.isx.internal"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::ca::{Authority, certificate_request};

    fn leaf(pem: &str) -> CertificateDer<'static> {
        certificate(pem, "a certificate").expect("PEM")
    }

    #[test]
    fn a_certificate_says_when_it_ends() {
        let authority = Authority::create("dev").expect("made");
        let node = authority.issue_node(NodeId(3), "n3").expect("issued");
        let ends = ends_ms(&node.certificate_pem).expect("readable");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let left = ends - now.expect("after 1970").as_millis() as u64;
        let whole = crate::security::ca::NODE_VALIDITY.as_millis() as u64;
        assert!((whole - 60_000..=whole).contains(&left), "{left} of {whole} ms");
        assert!(matches!(ends_ms("no certificate"), Err(TlsError::Pem { .. })));
    }

    #[test]
    fn certificates_say_who_their_holders_are() {
        let authority = Authority::create("dev").expect("made");
        let names = PeerNames::new(authority.certificate_pem()).expect("readable");
        let node = authority.issue_node(NodeId(3), "n3").expect("issued");
        let who = names
            .identify_certificate(&leaf(&node.certificate_pem))
            .expect("a node");
        assert_eq!((who.node, who.principal.role), (Some(NodeId(3)), Role::Node));

        let request = certificate_request("n4").expect("made");
        let signed = authority
            .sign_node_request(&request.csr_pem, NodeId(4), "n4")
            .expect("signed");
        let who = names.identify_certificate(&leaf(&signed)).expect("a node");
        assert_eq!(who.node, Some(NodeId(4)));
        server_config(authority.certificate_pem(), &signed, &request.key_pem).expect("key and certificate match");

        for role in [Role::Viewer, Role::Writer, Role::Admin] {
            let client = authority.issue_client("ada", role).expect("issued");
            let who = names
                .identify_certificate(&leaf(&client.certificate_pem))
                .expect("a client");
            let principal = Principal {
                name: "ada".to_owned(),
                role,
            };
            assert_eq!(who, PeerIdentity { principal, node: None });
        }
    }

    #[test]
    fn a_node_certificate_of_another_authority_is_no_node() {
        let (ours, theirs) = (
            Authority::create("a").expect("made"),
            Authority::create("a").expect("made"),
        );
        let names = PeerNames::new(ours.certificate_pem()).expect("readable");
        let node = theirs.issue_node(NodeId(1), "n1").expect("issued");
        assert!(matches!(
            names.identify_certificate(&leaf(&node.certificate_pem)),
            Err(IdentityError::NotForNodes { .. })
        ));
    }

    #[test]
    fn the_authority_itself_is_nobody() {
        let authority = Authority::create("dev").expect("made");
        let names = PeerNames::new(authority.certificate_pem()).expect("readable");
        let own = leaf(authority.certificate_pem());
        assert!(matches!(
            names.identify_certificate(&own),
            Err(IdentityError::Nameless(_))
        ));
    }
}
