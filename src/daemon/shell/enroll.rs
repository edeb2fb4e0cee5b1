//! A host becomes a node: it makes a key, shows a token, and gets an id, a certificate and its cluster's members.
//!
//! The private key never leaves the host, and it is written before anybody is asked: a host whose answer got lost asks
//! again with the same key and gets the same id.
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::disk::chain;
use super::quic::{GREETING_TIMEOUT, Wire, transport};
use crate::daemon::config::{Config, ConfigError};
use crate::protocol::error::{Class, Code, WireError};
use crate::protocol::hello::{FEATURE_LEVEL, Hello, HelloReply, PROTOCOL_NEWEST, PROTOCOL_OLDEST};
use crate::protocol::request::{Joined, Request, RequestFrame, Response, ResponseFrame};
use crate::security::ca::{
    CaError, CertificateRequest, FileError, JoinLine, ParseJoinLineError, Pin, certificate_request,
    certificate_request_for, read_key, write_certificate, write_key,
};
use crate::security::tls::{CLUSTER_NAME, TlsError, joining_config, server_config};

/// How long one member may take to answer: it asks the directory for an id.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a host goes on asking members that are there and cannot do it just now: several elections of the directory.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);

/// What a host says of itself.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The node's name.
    pub name: String,
    /// Its failure domain.
    pub zone: String,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// Where it will be reached.
    pub advertise: String,
    /// Where its configuration, certificates and data go.
    pub dir: PathBuf,
}

/// What a host that has joined has now.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// What the cluster said.
    pub joined: Joined,
    /// The configuration file, ready to run.
    pub config: PathBuf,
}

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The line.
    #[error(transparent)]
    Line(#[from] ParseJoinLineError),
    /// The directory is in use.
    #[error("`{path}` exists: this host has joined already, or another node's files are here; choose another --dir")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// TLS settings.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody answered.
    #[error("no member let this host in: {}", tried.iter().map(|(e, why)| format!("{e}: {why}")).collect::<Vec<_>>().join("; "))]
    Unreachable {
        /// Where, and why not.
        tried: Vec<(String, String)>,
        /// Whether one of them could not do it just now: the directory elects a leader, or it starts.
        is_passing: bool,
    },
    /// A member said no.
    #[error("`{endpoint}` refused")]
    Refused {
        /// Which.
        endpoint: String,
        /// Why.
        #[source]
        source: WireError,
    },
    /// Somebody answered who can't be what the line says.
    #[error("the answer does not fit the join line: {0}")]
    NotIt(String),
    /// The configuration that was made is not valid.
    #[error(transparent)]
    Config(#[from] Box<ConfigError>),
    /// The operating system.
    #[error("the operating system refused")]
    System(#[from] io::Error),
}

/// Joins the cluster of a join line; where a person has to say yes, waits for it. `waits` is told why, once.
pub fn enroll(line: &str, enrolment: &Enrolment, waits: &mut dyn FnMut(&str)) -> Result<Enrolled, EnrollError> {
    let line: JoinLine = line.parse()?;
    let dir = &enrolment.dir;
    let config = dir.join("isxd.toml");
    let (ca, certificate) = (dir.join("ca.pem"), dir.join("node.pem"));
    let key = dir.join("node.key");
    for path in [&config, &ca, &certificate] {
        if path.exists() {
            return Err(EnrollError::Exists { path: path.clone() });
        }
    }
    std::fs::create_dir_all(dir)?;
    let request = if key.exists() {
        certificate_request_for(&enrolment.name, &read_key(&key)?)?
    } else {
        let request = certificate_request(&enrolment.name)?;
        write_key(&key, &request.key_pem)?;
        request
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joined = runtime.block_on(async {
        let mut is_told = false;
        let began = Instant::now();
        loop {
            match ask_all(&line, enrolment, &request).await {
                // The members are there: who leads the directory will be known in a moment.
                Err(EnrollError::Unreachable { is_passing: true, .. }) if began.elapsed() < LEADER_PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(EnrollError::Refused { source, .. }) if source.code == Code::NodePending => {
                    if !std::mem::replace(&mut is_told, true) {
                        waits(&source.text);
                    }
                    tokio::time::sleep(Duration::from_millis(u64::from(source.retry_after_ms).max(200))).await;
                }
                ended => return ended,
            }
        }
    })?;
    if Pin::of_pem(&joined.ca_pem)? != line.pin {
        return Err(EnrollError::NotIt("its authority is another one".to_owned()));
    }
    // The certificate is for our key, or this fails.
    server_config(&joined.ca_pem, &joined.certificate_pem, &request.key_pem)?;
    let text = config_text(enrolment, &joined);
    Config::parse(&config, &text, &|_| None).map_err(Box::new)?;
    write_certificate(&ca, &joined.ca_pem)?;
    write_certificate(&certificate, &joined.certificate_pem)?;
    write_certificate(&config, &text)?;
    Ok(Enrolled { joined, config })
}

async fn ask_all(line: &JoinLine, enrolment: &Enrolment, request: &CertificateRequest) -> Result<Joined, EnrollError> {
    let mut client = joining_config(line.pin)?;
    client.transport_config(Arc::new(transport(1452, Duration::from_secs(10))));
    let mut tried = Vec::new();
    let mut is_passing = false;
    for endpoint in &line.endpoints {
        let asked = timeout(ANSWER_TIMEOUT, ask(endpoint, &client, &line.token, enrolment, request));
        let why = match asked.await {
            Ok(Ok(Response::Joined(joined))) => return Ok(*joined),
            // Another member may be able to, or this one soon.
            Ok(Ok(Response::Error(error))) if error.code == Code::BadTarget || may_pass(error.code) => {
                is_passing |= may_pass(error.code);
                error.to_string()
            }
            Ok(Ok(Response::Error(source))) => {
                let endpoint = endpoint.clone();
                return Err(EnrollError::Refused { endpoint, source });
            }
            Ok(Ok(_)) => return Err(EnrollError::NotIt("it is no answer to a request to join".to_owned())),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {ANSWER_TIMEOUT:?}"),
        };
        tried.push((endpoint.clone(), why));
    }
    Err(EnrollError::Unreachable { tried, is_passing })
}

/// Whether the same request, which names the same node each time, may do better in a moment.
fn may_pass(code: Code) -> bool {
    matches!(code.class(), Class::Retry | Class::Unknown) && code != Code::NodePending
}

async fn ask(
    endpoint: &str,
    client: &quinn::ClientConfig,
    token: &str,
    enrolment: &Enrolment,
    request: &CertificateRequest,
) -> Result<Response, String> {
    let address = tokio::net::lookup_host(endpoint)
        .await
        .map_err(|error| error.to_string())?
        .next()
        .ok_or("the name has no address")?;
    let any: SocketAddr = if address.is_ipv6() {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let local = quinn::Endpoint::client(any).map_err(|error| error.to_string())?;
    let connecting = local
        .connect_with(client.clone(), address, CLUSTER_NAME)
        .map_err(|error| error.to_string())?;
    let connection = timeout(GREETING_TIMEOUT, connecting)
        .await
        .map_err(|_| format!("nobody there within {GREETING_TIMEOUT:?}"))?
        .map_err(|error| chain(&error))?;
    let (send, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    let mut wire = Wire::new(connection, send, recv);
    let hello = Hello {
        protocol: (PROTOCOL_OLDEST, PROTOCOL_NEWEST),
        cluster: None,
        feature_level: FEATURE_LEVEL,
        node: None,
        software: concat!("isxd ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    wire.send(&hello).await.map_err(|error| error.to_string())?;
    let reply: HelloReply = wire.receive().await.map_err(|error| error.to_string())?;
    if let HelloReply::Refused(error) = reply {
        return Ok(Response::Error(error));
    }
    let frame = RequestFrame {
        tag: 1,
        timeout_ms: ANSWER_TIMEOUT.as_millis() as u32,
        request: Request::Join {
            token: token.to_owned(),
            csr_pem: request.csr_pem.clone(),
            name: enrolment.name.clone(),
            address: enrolment.advertise.clone(),
            zone: enrolment.zone.clone(),
        },
    };
    wire.send(&frame).await.map_err(|error| error.to_string())?;
    let answer: ResponseFrame = wire.receive().await.map_err(|error| error.to_string())?;
    wire.connection.close(0u32.into(), b"");
    let _ = timeout(Duration::from_millis(200), local.wait_idle()).await;
    Ok(answer.response)
}

fn config_text(enrolment: &Enrolment, joined: &Joined) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = format!(
        "# Written by `isxd join`.\n\
         [cluster]\nid = \"{}\"\n\n\
         [node]\nid = {}\nname = {}\nzone = {}\nlisten = \"{}\"\nadvertise = {}\ndata_dir = \"data\"\n\n\
         [tls]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n\n\
         # Members to begin with; the directory tells of changes.\n",
        joined.cluster,
        joined.node.id.0,
        quoted(&joined.node.name),
        quoted(&enrolment.zone),
        enrolment.listen,
        quoted(&enrolment.advertise),
    );
    for seed in &joined.seeds {
        text.push_str(&format!(
            "[[bootstrap.nodes]]\nid = {}\nname = {}\naddress = {}\nzone = {}\n\n",
            seed.id.0,
            quoted(&seed.name),
            quoted(&seed.address),
            quoted(&seed.zone)
        ));
    }
    text
}
