//! Clusters on this machine and the files of new ones: `isxctl dev ...`, `isxctl cluster init`.
//!
//! `dev up` makes a throw-away authority, a configuration for each node, and a context, and starts each node as a process of
//! its own. Everything lies in one directory:
//!
//! ```text
//! ca.pem ca.key               the cluster's authority
//! admin.pem admin.key         the operator's identity
//! n1/isxd.toml n1/node.pem n1/node.key n1/data/ n1/log n1/pid
//! ```
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::context::{Context, Contexts};
use crate::protocol::id::{ClusterId, NodeId};
use crate::protocol::message::Role;
use crate::security::ca;

/// A node of a cluster to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// `host:port` at which it listens and is reached.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
}

/// Why a local cluster could not be made, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file or directory could not be used.
    #[error("cannot {what} `{path}`")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The authority could not sign.
    #[error("cannot make certificates")]
    Authority(#[from] ca::CaError),
    /// A certificate or key could not be written.
    #[error("cannot write certificates")]
    Certificate(#[from] ca::FileError),
    /// The contexts file could not be used.
    #[error(transparent)]
    Context(#[from] crate::client::context::ContextError),
    /// There is a cluster already.
    #[error("`{0}` holds a cluster already; give another --out")]
    Exists(PathBuf),
    /// `isxd` is not where it should be.
    #[error("there is no `isxd` beside `{0}`; build both: cargo build --release --bins")]
    NoDaemon(PathBuf),
    /// A node stopped instead of starting.
    #[error("node {node} stopped at once ({status}); the end of `{log}`:\n{tail}")]
    Stopped {
        /// The node.
        node: String,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// No local cluster.
    #[error("there is no local cluster in `{0}`; start one: isxctl dev up")]
    NoCluster(PathBuf),
    /// No such node.
    #[error("there is no node `{0}` in the local cluster")]
    NoNode(String),
    /// A process could not be signalled.
    #[error("cannot signal process {pid} of {node}: {source}")]
    Signal {
        /// The node.
        node: String,
        /// Its process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
}

/// A node of the local cluster, as its files and its process tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name, also its directory's.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its process, where one is running.
    pub pid: Option<i32>,
    /// Its log file.
    pub log: PathBuf,
    directory: PathBuf,
}

/// Services that a cluster begins with unless told otherwise, and the shards of each.
pub const SERVICES: [(&str, u32); 2] = [("campaign", 3), ("profile", 3)];

/// Where `dev` keeps its cluster: the user's state directory.
pub fn default_directory(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set("XDG_STATE_HOME").filter(|dir| dir.is_absolute()) {
        Some(state) => state.join("isx/dev"),
        None => set("HOME")
            .unwrap_or_else(|| PathBuf::from("."))
            .join(".local/state/isx/dev"),
    }
}

/// How a service's key space is cut when the cluster is founded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuts {
    /// Into this many parts, even over the keys that the router makes for posts.
    Even(u32),
    /// At these keys, which rise.
    At(Vec<String>),
}

/// A service of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewService {
    /// Its name.
    pub name: String,
    /// Its shards.
    pub cuts: Cuts,
}

impl NewService {
    /// How many shards it begins with.
    pub fn shards(&self) -> u64 {
        match &self.cuts {
            Cuts::Even(parts) => u64::from(*parts),
            Cuts::At(keys) => keys.len() as u64 + 1,
        }
    }
}

/// The usual services of a new cluster.
pub fn usual_services() -> Vec<NewService> {
    let service = |(name, presplit): (&str, u32)| NewService {
        name: name.to_owned(),
        cuts: Cuts::Even(presplit),
    };
    SERVICES.into_iter().map(service).collect()
}

/// Makes the files of a new cluster with the usual services: authority, a directory for each node, the operator's
/// identity. Returns the context with which the operator reaches it.
pub fn init(directory: &Path, cluster: &str, nodes: &[NewNode], replicas: u32) -> Result<Context, DevError> {
    init_with(directory, cluster, nodes, replicas, &usual_services())
}

/// Like [`init`], with other services.
pub fn init_with(
    directory: &Path,
    cluster: &str,
    nodes: &[NewNode],
    replicas: u32,
    services: &[NewService],
) -> Result<Context, DevError> {
    if directory.join("ca.pem").exists() {
        return Err(DevError::Exists(directory.to_owned()));
    }
    make_directory(directory)?;
    let id = ClusterId::random();
    let authority = ca::Authority::create(cluster)?;
    let services = services.iter().fold(String::new(), |text, service| {
        // A TOML basic string is a JSON string: what a key may hold needs escapes in both.
        let quoted = |text: &String| serde_json::Value::from(text.as_str()).to_string();
        let cuts = match &service.cuts {
            Cuts::Even(presplit) => format!("presplit = {presplit}"),
            Cuts::At(keys) => format!("cuts = [{}]", keys.iter().map(quoted).collect::<Vec<_>>().join(", ")),
        };
        let name = quoted(&service.name);
        text + &format!("\n[[bootstrap.services]]\nname = {name}\nreplicas = {replicas}\n{cuts}\n")
    });
    let founders = nodes.iter().zip(1..).fold(String::new(), |text, (node, id)| {
        let (name, address, zone) = (&node.name, &node.address, &node.zone);
        text + &format!(
            "\n[[bootstrap.nodes]]\nid = {id}\nname = \"{name}\"\naddress = \"{address}\"\nzone = \"{zone}\"\n"
        )
    });
    for (node, number) in nodes.iter().zip(1..) {
        let home = directory.join(&node.name);
        make_directory(&home)?;
        let identity = authority.issue_node(NodeId(number), &node.name)?;
        ca::write_certificate(&home.join("node.pem"), &identity.certificate_pem)?;
        ca::write_key(&home.join("node.key"), &identity.key_pem)?;
        ca::write_certificate(&home.join("ca.pem"), authority.certificate_pem())?;
        ca::write_key(&home.join("ca.key"), &authority.key_pem())?;
        let (name, address, zone) = (&node.name, &node.address, &node.zone);
        let text = format!(
            "# Made by isxctl. `isxd check-config isxd.toml` checks it, docs/design.md explains it.\n\
             [cluster]\nid = \"{id}\"\nname = \"{cluster}\"\n\n\
             [node]\nid = {number}\nname = \"{name}\"\nzone = \"{zone}\"\nlisten = \"{address}\"\ndata_dir = \"data\"\n\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\nca_key = \"ca.key\"\n{founders}{services}"
        );
        write_file(&home.join("isxd.toml"), &text)?;
    }
    let admin = authority.issue_client("operator", Role::Admin)?;
    ca::write_certificate(&directory.join("admin.pem"), &admin.certificate_pem)?;
    ca::write_key(&directory.join("admin.key"), &admin.key_pem)?;
    ca::write_key(&directory.join("ca.key"), &authority.key_pem())?;
    // Last: its presence says that the rest is whole.
    ca::write_certificate(&directory.join("ca.pem"), authority.certificate_pem())?;
    let absolute = std::path::absolute(directory).map_err(|source| file("find", directory, source))?;
    Ok(Context {
        cluster: Some(id),
        endpoints: nodes.iter().map(|node| node.address.clone()).collect(),
        ca: absolute.join("ca.pem"),
        certificate: absolute.join("admin.pem"),
        key: absolute.join("admin.key"),
    })
}

/// Writes a context into the contexts file and makes it current.
pub fn use_context(name: &str, context: Context) -> Result<PathBuf, DevError> {
    let path = Contexts::path(|variable| std::env::var(variable).ok())?;
    let mut contexts = Contexts::read(&path)?;
    contexts.contexts.insert(name.to_owned(), context);
    contexts.current = Some(name.to_owned());
    contexts.write(&path)?;
    Ok(path)
}

/// Nodes for a new local cluster: the usual ports where all are free, any others where not.
pub fn local_nodes(count: u32) -> Result<Vec<NewNode>, DevError> {
    let usual: Vec<SocketAddr> = (0..count as u16)
        .map(|i| SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + i)))
        .collect();
    // The sockets are kept until all ports are known, so that none is given out twice.
    let bind = |wanted: &SocketAddr| UdpSocket::bind(wanted);
    let sockets: io::Result<Vec<UdpSocket>> = match usual.iter().map(bind).collect() {
        Ok(sockets) => Ok(sockets),
        Err(_) => (0..count)
            .map(|_| bind(&SocketAddr::from(([127, 0, 0, 1], 0))))
            .collect(),
    };
    let addresses: io::Result<Vec<SocketAddr>> =
        sockets.and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect());
    let addresses = addresses.map_err(|source| file("find a free port on", Path::new("127.0.0.1"), source))?;
    let zones = ["a", "b", "c"];
    let node = |(i, address): (usize, &SocketAddr)| NewNode {
        name: format!("n{}", i + 1),
        address: address.to_string(),
        zone: zones[i % zones.len()].to_owned(),
    };
    Ok(addresses.iter().enumerate().map(node).collect())
}

/// The local cluster's nodes, running or not.
pub fn nodes(directory: &Path) -> Result<Vec<LocalNode>, DevError> {
    if !directory.join("ca.pem").exists() {
        return Err(DevError::NoCluster(directory.to_owned()));
    }
    let mut nodes = BTreeMap::new();
    let entries = std::fs::read_dir(directory).map_err(|source| file("read", directory, source))?;
    for entry in entries {
        let home = entry.map_err(|source| file("read", directory, source))?.path();
        let config = home.join("isxd.toml");
        let Ok(text) = std::fs::read_to_string(&config) else {
            continue;
        };
        let table: toml::Table = toml::from_str(&text).unwrap_or_default();
        let of = |key: &str| {
            table
                .get("node")
                .and_then(|node| node.get(key)?.as_str())
                .unwrap_or("?")
                .to_owned()
        };
        let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number: u32 = name
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .unwrap_or(u32::MAX);
        let node = LocalNode {
            address: of("listen"),
            pid: running(&home),
            log: home.join("log"),
            directory: home,
            name,
        };
        nodes.insert((number, node.name.clone()), node);
    }
    Ok(nodes.into_values().collect())
}

/// Starts nodes that are not running, each as a process of its own that outlives this one.
pub fn start(nodes: &[&LocalNode]) -> Result<(), DevError> {
    let me = std::env::current_exe().map_err(|source| file("find", Path::new("isxctl"), source))?;
    let daemon = me.with_file_name("isxd");
    if !daemon.exists() {
        return Err(DevError::NoDaemon(me));
    }
    let mut children = Vec::new();
    for node in nodes {
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(&node.log);
        let log = log.map_err(|source| file("open", &node.log, source))?;
        let errors = log.try_clone().map_err(|source| file("open", &node.log, source))?;
        let mut command = Command::new(&daemon);
        command.arg("run").arg("--config").arg(node.directory.join("isxd.toml"));
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .env_remove("NOTIFY_SOCKET");
        // A group of its own: Ctrl-C at this terminal is not for it.
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|source| file("start", &node.directory, source))?;
        write_file(&node.directory.join("pid"), &format!("{}\n", child.id()))?;
        children.push((node, child));
    }
    // Long enough for a bad configuration or a port in use to show.
    let deadline = Instant::now() + Duration::from_millis(150);
    while Instant::now() < deadline {
        for (node, child) in &mut children {
            if let Ok(Some(status)) = child.try_wait() {
                let _ = std::fs::remove_file(node.directory.join("pid"));
                let text = std::fs::read_to_string(&node.log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(5).collect();
                let tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
                let (status, log) = (status.to_string(), node.log.clone());
                return Err(DevError::Stopped {
                    node: node.name.clone(),
                    status,
                    log,
                    tail,
                });
            }
        }
        std::thread::sleep(Duration::from_millis(15));
    }
    Ok(())
}

/// Name, free address and failure domain of one more node.
pub fn new_node(directory: &Path, number: u32, zone: Option<String>) -> Result<NewNode, DevError> {
    let taken: Vec<String> = nodes(directory)?.into_iter().map(|node| node.address).collect();
    let usual = SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + number.saturating_sub(1) as u16));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let usual = (!taken.contains(&usual.to_string())).then_some(usual);
    let bound = usual.and_then(|usual| UdpSocket::bind(usual).ok());
    let address = bound
        .map_or_else(|| UdpSocket::bind(any), Ok)
        .and_then(|socket| socket.local_addr());
    let address = address.map_err(|source| file("find a free port on", Path::new("127.0.0.1"), source))?;
    let zones = ["a", "b", "c"];
    Ok(NewNode {
        name: format!("n{number}"),
        address: address.to_string(),
        zone: zone.unwrap_or_else(|| zones[number.saturating_sub(1) as usize % zones.len()].to_owned()),
    })
}

/// Makes the files of one more node by `isxd join`, as a host would. The line goes through standard input: it is secret.
pub fn join(directory: &Path, node: &NewNode, line: &str) -> Result<(), DevError> {
    use std::io::Write;
    let me = std::env::current_exe().map_err(|source| file("find", Path::new("isxctl"), source))?;
    let daemon = me.with_file_name("isxd");
    if !daemon.exists() {
        return Err(DevError::NoDaemon(me));
    }
    let home = directory.join(&node.name);
    let mut command = Command::new(&daemon);
    command.args([
        "join",
        "-",
        "--name",
        &node.name,
        "--zone",
        &node.zone,
        "--listen",
        &node.address,
    ]);
    command.arg("--dir").arg(&home);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| file("start", &daemon, source))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(line.as_bytes())
            .map_err(|source| file("write to", &daemon, source))?;
    }
    let ended = child
        .wait_with_output()
        .map_err(|source| file("wait for", &daemon, source))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(DevError::Stopped {
        node: node.name.clone(),
        status: ended.status.to_string(),
        log: home.join("log"),
        tail: String::from_utf8_lossy(&ended.stderr).trim_end().to_owned(),
    })
}

/// Asks a node to stop (hand over leaderships first), or kills it at once. Says whether it was running.
pub fn stop(node: &LocalNode, kill: bool) -> Result<bool, DevError> {
    let Some(pid) = node.pid else { return Ok(false) };
    signal(node, pid, if kill { Signal::KILL } else { Signal::TERM })?;
    Ok(true)
}

/// Waits until a node's process is gone; kills it when it does not go by itself in time. Says whether it went by itself.
pub fn wait_stopped(node: &LocalNode, limit: Duration) -> Result<bool, DevError> {
    let deadline = Instant::now() + limit;
    while running(&node.directory).is_some() {
        if Instant::now() > deadline {
            if let Some(pid) = running(&node.directory) {
                signal(node, pid, Signal::KILL)?;
            }
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = std::fs::remove_file(node.directory.join("pid"));
    Ok(true)
}

/// Removes the whole local cluster with its data.
pub fn wipe(directory: &Path) -> Result<(), DevError> {
    // Only what `init` made: never somebody's directory that was named by mistake.
    if directory.join("ca.pem").exists() && directory.join("admin.key").exists() {
        std::fs::remove_dir_all(directory).map_err(|source| file("remove", directory, source))?;
    }
    Ok(())
}

/// The process in a node's pid file, if it is that node's daemon and alive.
fn running(home: &Path) -> Option<i32> {
    let pid: i32 = std::fs::read_to_string(home.join("pid")).ok()?.trim().parse().ok()?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    let line = std::fs::read(process.join("cmdline")).ok()?;
    let config = home.join("isxd.toml");
    let is_ours = line
        .split(|&b| b == 0)
        .any(|argument| argument == config.as_os_str().as_encoded_bytes());
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // A killed process keeps its socket until its last thread is gone, also when its first one is a zombie already.
    let is_zombie = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    ((is_ours || is_zombie) && (!is_zombie || threads > 1)).then_some(pid)
}

fn signal(node: &LocalNode, pid: i32, signal: Signal) -> Result<(), DevError> {
    let Some(process) = Pid::from_raw(pid) else {
        return Ok(());
    };
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(DevError::Signal {
            node: node.name.clone(),
            pid,
            source: error.into(),
        }),
    }
}

fn make_directory(path: &Path) -> Result<(), DevError> {
    std::fs::create_dir_all(path).map_err(|source| file("make the directory", path, source))
}

fn write_file(path: &Path, text: &str) -> Result<(), DevError> {
    std::fs::write(path, text).map_err(|source| file("write", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> DevError {
    DevError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

const FIRST_PORT: u16 = 7401;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_a_configuration_that_the_daemon_accepts() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("c");
        let nodes = local_nodes(3).expect("free ports");
        let context = init(&home, "test", &nodes, 3).expect("files");
        assert_eq!(context.endpoints.len(), 3);
        assert!(matches!(init(&home, "test", &nodes, 3), Err(DevError::Exists(_))));
        let local = super::nodes(&home).expect("nodes");
        assert_eq!(
            local.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
            ["n1", "n2", "n3"]
        );
        assert!(
            local
                .iter()
                .zip(&nodes)
                .all(|(a, b)| a.address == b.address && a.pid.is_none())
        );
        let config = crate::daemon::config::Config::load(&home.join("n2/isxd.toml")).expect("valid");
        assert_eq!(
            (config.node, config.founders.len(), config.services.len()),
            (NodeId(2), 3, 2)
        );
        wipe(&home).expect("removable");
        assert!(!home.exists());
    }
}
