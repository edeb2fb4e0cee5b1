//! The driver of the real world: sockets, files, clocks and threads around the core.
//!
//! ```text
//! clients  --\                                       /--> log thread         one commit per batch
//! peers    ----> inbox --> driver (core, store) ----|---> checkpoint thread
//! disk     --/                                       \--> writers            one write per stream and round
//! ```
//! With one I/O thread, everything but the disk runs on one thread: no hand-over between threads on the way of a
//! request but the one to the disk. Nothing in here decides about the cluster: there is no `if` about terms, leaders or
//! ranges.
//!
//! Start: bind, open the store, recover, say READY, let callers in. Stop: hand over leaderships, let the disk finish,
//! close connections.
mod clients;
mod clock;
mod disk;
mod driver;
mod enroll;
mod inbox;
mod join;
mod notify;
mod pace;
mod peers;
mod quic;
mod shutdown;
mod snapshots;
mod telemetry;
#[cfg(test)]
mod tests;

pub use self::enroll::{EnrollError, Enrolled, Enrolment, enroll};
pub use self::telemetry::log_to_stderr;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use self::disk::Disk;
use self::driver::Driver;
use self::inbox::{Inbox, Report};
use self::join::Joins;
use self::notify::Notifier;
use self::pace::CopyPace;
use self::peers::Peers;
use self::quic::Close;
use self::shutdown::Signals;
use self::telemetry::Counters;
use super::config::Config;
use super::core::limits::{CHECKPOINT_EVERY, CLOSE_SESSIONS_AFTER, LOG_TAIL_ENTRIES_MAX, SCRUB_EVERY, VERIFY_EVERY};
use super::core::node::{Hibernation, Node, NodeConfig, PlantedBug};
use super::core::state::StateError;
use super::store::{self, OpenError, Staging, StoreIdentityCheck};
use crate::protocol::id::{ClusterId, NodeId};
use crate::protocol::op::Pace;
use crate::security::ca::{Authority, CaError, FileError, read_key};
use crate::security::tls::{PeerNames, TlsError, client_config, ends_ms, server_config};

/// How long connections get to hear that we are gone.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a start takes from its surroundings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    /// SIGTERM and SIGINT stop the node, and the service manager is told how it is. For a process that is one node.
    pub is_service: bool,
}

/// Why a node did not start. Nothing was changed but, at most, that an empty store was made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate or key can't be read.
    #[error("cannot read `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key can't be read, or everybody can.
    #[error(transparent)]
    Key(#[from] FileError),
    /// Certificates that can't be used.
    #[error("the certificates can't be used")]
    Tls(#[from] TlsError),
    /// The authority's key can't be used.
    #[error("the authority's key can't be used")]
    Authority(#[from] CaError),
    /// The certificate is not this node's.
    #[error("the certificate `{path}` is not for {node} ({found})")]
    OtherCertificate {
        /// The file.
        path: PathBuf,
        /// The node of the configuration.
        node: NodeId,
        /// Whom it names.
        found: String,
    },
    /// The socket.
    #[error("cannot listen on {listen} (UDP)")]
    Bind {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error("cannot open the store in `{path}`")]
    Store {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// What is in the store.
    #[error("cannot recover from the store in `{path}`")]
    Recover {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StateError,
    },
    /// Threads, runtime, signals.
    #[error("the operating system refused {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a node that ran does not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// It was asked to.
    Asked,
    /// A write failed, or rows could not be read.
    Disk(String),
    /// The core can't go on.
    Halted(String),
    /// It left the cluster.
    Removed,
    /// Its disk was wiped, restored or cloned, a peer says.
    Refused(String),
    /// A part of the shell died.
    Died(String),
}

/// A node that runs on threads of its own.
pub struct RunningNode {
    inbox: Arc<Inbox>,
    address: SocketAddr,
    thread: Option<JoinHandle<StopReason>>,
}

impl RunningNode {
    /// Starts a node and waits until it listens and has recovered.
    pub fn start(config: Config, surroundings: Surroundings) -> Result<Self, StartError> {
        let (sender, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("isx-{}", config.node))
            .spawn(move || {
                let span = tracing::info_span!("node", name = config.name);
                let _entered = span.enter();
                run(&config, surroundings, &sender)
            })
            .map_err(|source| StartError::System {
                what: "a thread",
                source,
            })?;
        match started.recv() {
            Ok(Ok((inbox, address))) => Ok(Self {
                inbox,
                address,
                thread: Some(thread),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::System {
                what: "a start",
                source: io::Error::other("the node's thread panicked"),
            }),
        }
    }

    /// Where it listens: of use where the configuration left the port to the system.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks it to hand over and stop; `join` waits for it.
    pub fn stop(&self) {
        self.inbox.push(Report::Stop { at_once: false });
    }

    /// Makes it stop without handing over, as a crash would but for the disk threads.
    pub fn stop_at_once(&self) {
        self.inbox.push(Report::Stop { at_once: true });
    }

    /// Waits until it has stopped.
    pub fn join(mut self) -> StopReason {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(reason)) => reason,
            _ => StopReason::Died("the node's thread panicked".to_owned()),
        }
    }
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningNode")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}

/// What all tasks of a node share.
pub(crate) struct Shared {
    cluster: ClusterId,
    node: NodeId,
    store_id: u128,
    /// The how manieth start of the store.
    life: u64,
    /// Tells this process from any other on a copy of its disk.
    boot: u64,
    /// Where the log ended at the start.
    started_at: u64,
    /// Where it is synced to by now.
    persisted: std::sync::atomic::AtomicU64,
    data_dir: PathBuf,
    stop_timeout: Duration,
    names: PeerNames,
    endpoint: quinn::Endpoint,
    inbox: Arc<Inbox>,
    peers: Peers,
    counters: Arc<Counters>,
    sending: Semaphore,
    receiving: Semaphore,
    staging: Arc<Staging>,
    copy_pace: CopyPace,
}

type Started = Result<(Arc<Inbox>, SocketAddr), StartError>;

/// The node's thread, from start to stop.
fn run(config: &Config, surroundings: Surroundings, started: &SyncSender<Started>) -> StopReason {
    let runtime = match runtime(config.io_threads) {
        Ok(runtime) => runtime,
        Err(source) => {
            let what = "a runtime";
            let _ = started.send(Err(StartError::System { what, source }));
            return StopReason::Asked;
        }
    };
    let reason = runtime.block_on(async {
        let node = match start(config, surroundings) {
            Ok(node) => node,
            Err(error) => {
                let _ = started.send(Err(error));
                return StopReason::Asked;
            }
        };
        let (shared, driver) = node;
        let address = shared.endpoint.local_addr().unwrap_or(config.listen);
        let _ = started.send(Ok((shared.inbox.clone(), address)));
        tokio::spawn(quic::accept(shared.clone()));
        let reason = driver.run().await;
        shared.endpoint.close(Close::Stopping.code(), b"the node stops");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, shared.endpoint.wait_idle()).await;
        reason
    });
    runtime.shutdown_timeout(CLOSE_TIMEOUT);
    reason
}

fn runtime(io_threads: usize) -> io::Result<Runtime> {
    let mut builder = match io_threads {
        1 => Builder::new_current_thread(),
        // The driver has a thread of its own beside these.
        threads => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().thread_name("isx-io").build()
}

fn start(config: &Config, surroundings: Surroundings) -> Result<(Arc<Shared>, Driver), StartError> {
    let began = std::time::Instant::now();
    let notifier = Arc::new(if surroundings.is_service {
        Notifier::from_environment()
    } else {
        Notifier::default()
    });
    let Material {
        ca_pem,
        certificate_pem,
        key_pem,
        authority,
        names,
    } = material(config)?;
    let certificate_ends_ms = ends_ms(&certificate_pem)?;
    let transport = Arc::new(quic::transport(config.mtu_max, config.idle_timeout));
    let server = server_config(&ca_pem, &certificate_pem, &key_pem)?;
    let mut client = client_config(&ca_pem, &certificate_pem, &key_pem)?;
    client.transport_config(transport.clone());
    let mut endpoint =
        quic::bind(config.listen, &key_pem, config.mtu_max, server, transport).map_err(|source| StartError::Bind {
            listen: config.listen,
            source,
        })?;
    endpoint.set_default_client_config(client);

    notifier.status("opening the store");
    notifier.extend(config.stop_timeout * 4);
    std::fs::create_dir_all(&config.data_dir).map_err(|source| StartError::File {
        path: config.data_dir.clone(),
        source,
    })?;
    let check = StoreIdentityCheck {
        cluster: config.cluster,
        node: config.node,
        create: Some(random()),
    };
    let (progress, patience) = (notifier.clone(), config.stop_timeout * 4);
    let tell = move |file: &'static str, done: f64| {
        progress.status(&format!("repairing {file} after a crash, {:.0} %", done * 100.0));
        progress.extend(patience);
    };
    let opened = store::open_telling(&config.data_dir, check, tell).map_err(|source| StartError::Store {
        path: config.data_dir.clone(),
        source: Box::new(source),
    })?;
    notifier.status("recovering");
    let started_at = opened.recovered.last_seq.0;
    let mut store = opened.store;
    let mut effects = Vec::new();
    let node = Node::new(
        NodeConfig {
            cluster: config.cluster,
            node: config.node,
            name: config.name.clone(),
            address: config.advertise.clone(),
            zone: config.zone.clone(),
            store_id: opened.identity.store_id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: random() as u64,
            founders: config.founders.clone(),
            services: config.services.clone(),
            conducts: true,
            log_tail_entries: LOG_TAIL_ENTRIES_MAX,
            checkpoint_every: CHECKPOINT_EVERY,
            hibernation: Hibernation::USUAL,
            close_sessions_after: CLOSE_SESSIONS_AFTER,
            tells_messages: false,
            certificate_ends_ms,
            verify_every: VERIFY_EVERY,
            scrub_every: SCRUB_EVERY,
            planted: PlantedBug::None,
        },
        opened.recovered,
        clock::now(),
        &mut store,
        &mut effects,
    )
    .map_err(|source| StartError::Recover {
        path: config.data_dir.clone(),
        source,
    })?;

    let system = |what| move |source| StartError::System { what, source };
    let inbox = Arc::new(Inbox::default());
    let counters = Arc::new(Counters::default());
    let disk = Disk::start(opened.log, opened.writer, &inbox, &counters).map_err(system("the disk threads"))?;
    if surroundings.is_service {
        let signals = Signals::listen().map_err(system("signals"))?;
        tokio::spawn(signals.forward(inbox.clone()));
    }
    let shared = Arc::new(Shared {
        cluster: config.cluster,
        node: config.node,
        store_id: opened.identity.store_id,
        life: opened.life,
        boot: random() as u64,
        started_at,
        persisted: started_at.into(),
        data_dir: config.data_dir.clone(),
        stop_timeout: config.stop_timeout,
        names,
        endpoint,
        inbox,
        peers: Peers::new(config.node),
        counters,
        sending: Semaphore::new(snapshots::SENDING_MAX),
        receiving: Semaphore::new(snapshots::RECEIVING_MAX),
        staging: store.staging().clone(),
        copy_pace: CopyPace::new(Pace::Normal.bytes_per_second()),
    });
    shared.peers.learn(&shared, config.founders.iter());
    let address = shared.endpoint.local_addr().map_err(system("the socket's address"))?;
    tracing::info!(
        node = %config.node,
        cluster = %config.cluster,
        %address,
        "{} of {} serves on {address}, {} ms after its start",
        config.node,
        config.cluster_name,
        began.elapsed().as_millis()
    );
    notifier.ready(&format!("serving on {address}"));
    let joins = Joins::new(config.cluster, authority);
    let driver = Driver::new(shared.clone(), node, store, disk, notifier, joins, effects);
    Ok((shared, driver))
}

/// The certificates and keys of a configuration.
struct Material {
    ca_pem: String,
    certificate_pem: String,
    key_pem: String,
    authority: Option<Authority>,
    names: PeerNames,
}

/// Whether the files that a configuration names are there and belong together.
pub fn check_files(config: &Config) -> Result<(), StartError> {
    let material = material(config)?;
    server_config(&material.ca_pem, &material.certificate_pem, &material.key_pem)?;
    Ok(())
}

fn material(config: &Config) -> Result<Material, StartError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| StartError::File {
            path: path.clone(),
            source,
        })
    };
    let (ca_pem, certificate_pem, key_pem) = (read(&config.ca)?, read(&config.certificate)?, read_key(&config.key)?);
    let authority = match &config.ca_key {
        Some(path) => Some(Authority::load(&ca_pem, &read_key(path)?)?),
        None => None,
    };
    let names = PeerNames::new(&ca_pem)?;
    let found = match names.identify_pem(&certificate_pem)? {
        Ok(identity) if identity.node == Some(config.node) => None,
        Ok(identity) => Some(format!("it is for `{}`", identity.principal.name)),
        Err(error) => Some(disk::chain(&error)),
    };
    if let Some(found) = found {
        return Err(StartError::OtherCertificate {
            path: config.certificate.clone(),
            node: config.node,
            found,
        });
    }

    Ok(Material {
        ca_pem,
        certificate_pem,
        key_pem,
        authority,
        names,
    })
}

fn random() -> u128 {
    crate::protocol::id::RequestId::random().0
}
