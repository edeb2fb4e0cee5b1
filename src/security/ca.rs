//! The cluster's authority: makes certificates, signs those of joining hosts, makes and checks join tokens.
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use ring::{digest, hmac};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::tls::{CLUSTER_NAME, client_name, node_name};
use crate::protocol::id::{NodeId, base32};
use crate::protocol::message::Role;

/// How long an authority is valid: much longer than anything it signs, so that the two never expire together.
pub const AUTHORITY_VALIDITY: Duration = days(30 * 365);
/// How long a node's certificate is valid.
pub const NODE_VALIDITY: Duration = days(5 * 365);
/// How long a client's certificate is valid.
pub const CLIENT_VALIDITY: Duration = days(2 * 365);
/// Certificates are valid from this long before they are made, so that a machine whose clock is behind accepts them.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);
/// Longest life of a join token.
pub const TOKEN_TTL_MAX: Duration = days(30);

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 24 * 3600)
}

/// Why a certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate library refused.
    #[error("cannot make {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// Not what it should be.
    #[error("cannot read {what}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Key and certificate do not belong together.
    #[error("the key is not the key of the authority's certificate")]
    OtherKey,
    /// A name that can't be in a certificate.
    #[error("`{0}` can't be a client's name: use 1 to 40 of a-z, 0-9 and -, not at an end")]
    Name(String),
    /// A role that has no client certificates.
    #[error("clients are viewer, writer or admin, not {0:?}")]
    Role(Role),
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The authority of a cluster, with its private key.
pub struct Authority {
    certificate_pem: String,
    pin: Pin,
    issuer: Issuer<'static, KeyPair>,
    token_key: hmac::Key,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority; `cluster` is a label for people.
    pub fn create(cluster: &str) -> Result<Self, CaError> {
        let making = |source| CaError::Make {
            what: "the authority's certificate",
            source,
        };
        let key = KeyPair::generate().map_err(making)?;
        let mut params = params(&format!("isx cluster {cluster}"), AUTHORITY_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(making)?;
        let (pin, token_key) = (Pin::of(certificate.der()), token_key(&key));
        Ok(Self {
            certificate_pem: certificate.pem(),
            pin,
            issuer: Issuer::new(params, key),
            token_key,
        })
    }

    /// An authority from its files' contents.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let certificate = certificate_of(certificate_pem)?;
        let key = KeyPair::from_pem(key_pem).map_err(|source| CaError::Read {
            what: "the authority's key",
            source: source.into(),
        })?;
        let public = webpki::EndEntityCert::try_from(&certificate)
            .map_err(|source| CaError::Read {
                what: "the authority's certificate",
                source: source.into(),
            })?
            .subject_public_key_info();
        if public.as_ref() != key.subject_public_key_info() {
            return Err(CaError::OtherKey);
        }
        let (pin, token_key) = (Pin::of(&certificate), token_key(&key));
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|source| CaError::Read {
            what: "the authority's certificate",
            source: source.into(),
        })?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            pin,
            issuer,
            token_key,
        })
    }

    /// The certificate that everybody trusts, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, PEM. Whoever has it can be anybody.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The certificate's fingerprint.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// A key and certificate for a node.
    pub fn issue_node(&self, node: NodeId, name: &str) -> Result<Identity, CaError> {
        let key = generate_key()?;
        let certificate = self.sign(&node_params(node, name)?, &key)?;
        Ok(Identity {
            certificate_pem: certificate,
            key_pem: key.serialize_pem(),
        })
    }

    /// A certificate for the key that a joining host has proven to hold. Of the request only the key is used: names
    /// and rights are the authority's to give.
    pub fn sign_node_request(&self, csr_pem: &str, node: NodeId, name: &str) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|source| CaError::Read {
            what: "the certificate signing request",
            source: source.into(),
        })?;
        self.sign(&node_params(node, name)?, &request.public_key)
    }

    /// A key and certificate for a client or operator.
    pub fn issue_client(&self, name: &str, role: Role) -> Result<Identity, CaError> {
        let well_formed = (1..=40).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !well_formed {
            return Err(CaError::Name(name.to_owned()));
        }
        let dns_name = client_name(name, role).ok_or(CaError::Role(role))?;
        let mut params = params(name, CLIENT_VALIDITY);
        params.subject_alt_names = vec![dns(&dns_name)?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = generate_key()?;
        let certificate = self.sign(&params, &key)?;
        Ok(Identity {
            certificate_pem: certificate,
            key_pem: key.serialize_pem(),
        })
    }

    /// A token with which any host may join until it expires. It is not stored: its tag proves that this authority's
    /// key made it, so any node that holds the key can check it.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn create_token(&self, ttl: Duration, approval: Approval) -> String {
        let expiry = unix_s(SystemTime::now() + ttl.min(TOKEN_TTL_MAX));
        let mut body = [0; 20];
        body[..8].copy_from_slice(&expiry.to_be_bytes());
        body[8] = approval as u8;
        getrandom::fill(&mut body[9..]).expect("the operating system gives randomness");
        let tag = hmac::sign(&self.token_key, &body);
        format!(
            "{TOKEN_PREFIX}.{}.{}",
            base32().encode(&body),
            base32().encode(tag.as_ref())
        )
    }

    /// Whether a token is this authority's and still valid, and whether its host has to be let in by a person too.
    pub fn check_token(&self, token: &str) -> Result<Approval, TokenError> {
        let mut parts = token.split('.');
        let (Some(TOKEN_PREFIX), Some(body), Some(tag), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let decode = |text: &str| base32().decode(text.as_bytes()).map_err(|_| TokenError::Malformed);
        let (body, tag) = (decode(body)?, decode(tag)?);
        hmac::verify(&self.token_key, &body, &tag).map_err(|_| TokenError::Foreign)?;
        let expiry = body.first_chunk().ok_or(TokenError::Malformed)?;
        let (expiry, now) = (u64::from_be_bytes(*expiry), unix_s(SystemTime::now()));
        if now > expiry {
            return Err(TokenError::Expired { ago_s: now - expiry });
        }
        match body.get(8) {
            Some(0) => Ok(Approval::NotNeeded),
            Some(1) => Ok(Approval::Needed),
            _ => Err(TokenError::Malformed),
        }
    }

    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<String, CaError> {
        let certificate = params.signed_by(key, &self.issuer).map_err(|source| CaError::Make {
            what: "a certificate",
            source,
        })?;
        Ok(certificate.pem())
    }
}

/// A fresh key and a request to sign a certificate for it: what a joining host sends. The key never leaves the host.
pub fn certificate_request(name: &str) -> Result<CertificateRequest, CaError> {
    request_with(name, &generate_key()?)
}

/// The same for a key that is there already.
pub fn certificate_request_for(name: &str, key_pem: &str) -> Result<CertificateRequest, CaError> {
    let key = KeyPair::from_pem(key_pem).map_err(|source| CaError::Read {
        what: "the key",
        source: source.into(),
    })?;
    request_with(name, &key)
}

fn request_with(name: &str, key: &KeyPair) -> Result<CertificateRequest, CaError> {
    let making = |source| CaError::Make {
        what: "a certificate signing request",
        source,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    let request = params.serialize_request(key).map_err(making)?;
    Ok(CertificateRequest {
        csr_pem: request.pem().map_err(making)?,
        key_pem: key.serialize_pem(),
    })
}

/// See [`certificate_request`].
#[derive(Clone)]
pub struct CertificateRequest {
    /// Goes to the cluster.
    pub csr_pem: String,
    /// Stays.
    pub key_pem: String,
}

/// Fingerprint of an authority's certificate: SHA-256 of its DER form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = digest::digest(&digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The fingerprint of the first certificate in a PEM text.
    pub fn of_pem(pem: &str) -> Result<Self, CaError> {
        Ok(Self::of(&certificate_of(pem)?))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&base32().encode(&self.0))
    }
}

/// Whether a person has to let in a host that shows a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// The token is enough.
    NotNeeded = 0,
    /// It waits for `isxctl node approve`.
    Needed = 1,
}

/// Why a join token was not accepted. The caller is told only that it was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token.
    #[error("it is misspelt or cut short")]
    Malformed,
    /// Not made with this authority's key.
    #[error("it was made by another cluster, or changed")]
    Foreign,
    /// Too old.
    #[error("it expired {ago_s} s ago")]
    Expired {
        /// How long ago. Unit: s.
        ago_s: u64,
    },
}

/// Everything a host needs to join, in one line: where, whom to trust, and the right to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinLine {
    /// Members, `host:port`.
    pub endpoints: Vec<String>,
    /// Fingerprint of the cluster's authority.
    pub pin: Pin,
    /// The right to join. Secret.
    pub token: String,
}

impl fmt::Display for JoinLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{JOIN_PREFIX}{}:{}:{}",
            self.endpoints.join(","),
            self.pin,
            self.token
        )
    }
}

/// Text that is no join line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join line: {0}; it looks like `isx-join:HOST:PORT:PIN:isx1...`, made by `isxctl token create`")]
pub struct ParseJoinLineError(&'static str);

impl FromStr for JoinLine {
    type Err = ParseJoinLineError;

    fn from_str(text: &str) -> Result<Self, ParseJoinLineError> {
        let rest = text
            .trim()
            .strip_prefix(JOIN_PREFIX)
            .ok_or(ParseJoinLineError("it does not begin with `isx-join:`"))?;
        let (rest, token) = rest
            .rsplit_once(':')
            .ok_or(ParseJoinLineError("the token is missing"))?;
        let (endpoints, pin) = rest.rsplit_once(':').ok_or(ParseJoinLineError("the pin is missing"))?;
        let pin = base32()
            .decode(pin.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(ParseJoinLineError("the pin is not 52 characters of base 32"))?;
        if !token.starts_with(TOKEN_PREFIX) {
            return Err(ParseJoinLineError("the token does not begin with `isx1`"));
        }
        let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
        if endpoints.iter().any(|e| !e.contains(':')) {
            return Err(ParseJoinLineError("an endpoint is not HOST:PORT"));
        }
        Ok(Self {
            endpoints,
            pin: Pin(pin),
            token: token.to_owned(),
        })
    }
}

/// A file of the security material could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key that everybody on the machine can read.
    #[error("everybody on this machine can read the key `{path}` (mode {mode:03o}); run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Writes a private key: a new file that only its owner may read, on disk before this returns. Never replaces one.
pub fn write_key(path: &Path, pem: &str) -> Result<(), FileError> {
    write_new(path, pem, 0o600)
}

/// Writes a certificate: a new file that all may read. Never replaces one.
pub fn write_certificate(path: &Path, pem: &str) -> Result<(), FileError> {
    write_new(path, pem, 0o644)
}

/// Reads a private key; refuses one that is open to everybody on the machine.
pub fn read_key(path: &Path) -> Result<String, FileError> {
    let reading = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(reading)?.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    std::fs::read_to_string(path).map_err(reading)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

fn certificate_of(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| CaError::Read {
        what: "the authority's certificate",
        source: source.into(),
    })
}

fn generate_key() -> Result<KeyPair, CaError> {
    KeyPair::generate().map_err(|source| CaError::Make { what: "a key", source })
}

fn node_params(node: NodeId, name: &str) -> Result<CertificateParams, CaError> {
    let mut params = params(&format!("{node} {name}"), NODE_VALIDITY);
    params.subject_alt_names = vec![dns(&node_name(node))?, dns(CLUSTER_NAME)?];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(label: &str, validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(label);
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + validity).into();
    params.use_authority_key_identifier_extension = true;
    params
}

fn common_name(label: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.520 allows 64 characters.
    name.push(DnType::CommonName, label.chars().take(64).collect::<String>());
    name
}

fn dns(name: &str) -> Result<SanType, CaError> {
    let name = name.try_into().map_err(|source| CaError::Make {
        what: "a certificate's name",
        source,
    })?;
    Ok(SanType::DnsName(name))
}

/// Derived, so that a token says nothing about the authority's key and the key is used for one thing only.
fn token_key(key: &KeyPair) -> hmac::Key {
    let root = hmac::Key::new(hmac::HMAC_SHA256, key.serialized_der());
    let derived = hmac::sign(&root, b"isx join token 1");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const TOKEN_PREFIX: &str = "isx1";
const JOIN_PREFIX: &str = "isx-join:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_survives_its_files() {
        let first = Authority::create("dev").expect("made");
        let again = Authority::load(first.certificate_pem(), &first.key_pem()).expect("read");
        assert_eq!(first.pin(), again.pin());
        let token = first.create_token(Duration::from_secs(60), Approval::NotNeeded);
        assert_eq!(again.check_token(&token), Ok(Approval::NotNeeded));
        let token = first.create_token(Duration::from_secs(60), Approval::Needed);
        assert_eq!(again.check_token(&token), Ok(Approval::Needed));
        let other = Authority::create("dev").expect("made");
        assert_eq!(other.check_token(&token), Err(TokenError::Foreign));
        assert!(matches!(
            Authority::load(first.certificate_pem(), &other.key_pem()),
            Err(CaError::OtherKey)
        ));
    }

    #[test]
    fn tokens_expire_and_can_not_be_changed() {
        let authority = Authority::create("dev").expect("made");
        let mut token = authority.create_token(Duration::from_secs(60), Approval::NotNeeded);
        assert_eq!(authority.check_token("hello"), Err(TokenError::Malformed));
        assert_eq!(authority.check_token("isx1.0.0"), Err(TokenError::Malformed));
        // One character in the expiry.
        let at = TOKEN_PREFIX.len() + 8;
        let other = if &token[at..=at] == "0" { "1" } else { "0" };
        token.replace_range(at..=at, other);
        assert_eq!(authority.check_token(&token), Err(TokenError::Foreign));
    }

    #[test]
    fn join_lines_print_and_parse() {
        let authority = Authority::create("dev").expect("made");
        let line = JoinLine {
            endpoints: vec!["n1.example:7401".to_owned(), "[::1]:7402".to_owned()],
            pin: authority.pin(),
            token: authority.create_token(Duration::from_secs(60), Approval::NotNeeded),
        };
        assert_eq!(line.to_string().parse(), Ok(line.clone()));
        for wrong in [
            "",
            "isx-join:",
            "isx-join:a:1:abc:isx1.x.y",
            "isx-join:a:b",
            &line.to_string()[4..],
        ] {
            assert!(wrong.parse::<JoinLine>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_private_and_never_replaced() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("n1.key");
        write_key(&path, "secret").expect("written");
        assert_eq!(read_key(&path).expect("private"), "secret");
        assert!(matches!(write_key(&path, "other"), Err(FileError::Write { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("ours");
        assert!(matches!(read_key(&path), Err(FileError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn names_that_would_be_somebody_else_are_refused() {
        let authority = Authority::create("dev").expect("made");
        for name in ["", "n1.node", "a.admin", "Ada", "-a", "a-", &"a".repeat(41)] {
            assert!(
                matches!(authority.issue_client(name, Role::Viewer), Err(CaError::Name(_))),
                "{name}"
            );
        }
        assert!(matches!(
            authority.issue_client("ada", Role::Node),
            Err(CaError::Role(_))
        ));
    }
}
