//! Real `isxd` processes on loopback for the tests that need them: a cluster in a directory of its own, and what is done to it.
#![allow(dead_code, reason = "each test that includes this uses its part of it")]
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use isx::client::context::Context;
use isx::client::{Client, ClientError, ConnectOptions};
use isx::ctl::dev::{NewNode, init};
use isx::protocol::id::{NodeId, RequestId};
use isx::protocol::op::{Goal, OpState};
use isx::protocol::request::{NodeStatus, Request, Response};
use isx::protocol::shard_map::{Membership, NodeInfo};
use isx::security::ca::{JoinLine, Pin};
use tempfile::TempDir;
use tokio::time::sleep;

/// A machine that runs all tests at once is slow; what happens at all happens well within this.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Three nodes in a directory of their own; killed when dropped. With `ISX_KEEP` set the files of a test that failed stay.
pub struct Cluster {
    pub dir: TempDir,
    pub context: Context,
    pub nodes: Vec<Option<Child>>,
}

impl Cluster {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // Kept until all are known, so that none is given out twice.
        let sockets: Vec<UdpSocket> = (0..3)
            .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let nodes: Vec<NewNode> = sockets
            .iter()
            .zip(1..)
            .map(|(socket, n)| NewNode {
                name: format!("n{n}"),
                address: socket.local_addr().expect("bound").to_string(),
                zone: format!("z{n}"),
            })
            .collect();
        drop(sockets);
        let context = init(&dir.path().join("c"), "test", &nodes, 3).expect("files");
        let mut cluster = Self {
            dir,
            context,
            nodes: vec![None, None, None],
        };
        (0..3).for_each(|n| cluster.run(n));
        cluster
    }

    pub fn run(&mut self, n: usize) {
        let home = self.dir.path().join(format!("c/n{}", n + 1));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.join("log"));
        let child = Command::new(env!("CARGO_BIN_EXE_isxd"))
            .arg("run")
            .arg("--config")
            .arg(home.join("isxd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("isxd starts");
        self.nodes[n] = Some(child);
    }

    /// SIGKILL: the process gets no chance to say or write anything.
    pub fn kill(&mut self, n: usize) {
        let mut child = self.nodes[n].take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    pub async fn client(&self) -> Client {
        let mut options = ConnectOptions::from(self.context.clone());
        options.timeout = PATIENCE;
        options.connect_timeout = PATIENCE;
        Client::connect(options).await.expect("a node answers")
    }

    pub fn logs(&self) -> String {
        let mut text = String::new();
        for n in 1..=3 {
            let log = std::fs::read_to_string(self.dir.path().join(format!("c/n{n}/log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text += &format!("n{n}:\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            if std::env::var_os("ISX_KEEP").is_some() {
                self.dir.disable_cleanup(true);
                eprintln!("kept: {}", self.dir.path().display());
            }
        }
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    /// Lets one more node join, as a host would: with a token and a key of its own.
    pub async fn join(&mut self, client: &Client, name: &str) -> NodeId {
        let token = client
            .request(Request::CreateToken {
                ttl_s: 60,
                approve: false,
            })
            .await
            .expect("a token");
        let Response::Token { token } = token else {
            panic!("no token: {token:?}")
        };
        let ca = std::fs::read_to_string(&self.context.ca).expect("the authority");
        let line = JoinLine {
            endpoints: self.context.endpoints.clone(),
            pin: Pin::of_pem(&ca).expect("a certificate"),
            token,
        };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound").to_string();
        drop(socket);
        let mut joining = Command::new(env!("CARGO_BIN_EXE_isxd"))
            .args([
                "join", "-", "--name", name, "--zone", "z", "--listen", &address, "--dir",
            ])
            .arg(self.dir.path().join("c").join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("isxd starts");
        let mut input = joining.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, line.to_string().as_bytes()).expect("told");
        drop(input);
        assert!(joining.wait().expect("it ends").success(), "{name} joins");
        self.nodes.push(None);
        self.run(self.nodes.len() - 1);
        let began = Instant::now();
        loop {
            let map = client.map().await.expect("a map");
            let active = |info: &&NodeInfo| info.name == name && info.membership == Membership::Active;
            if let Some(info) = map.nodes.iter().find(active) {
                return info.id;
            }
            assert!(began.elapsed() < PATIENCE, "{name} is no active member");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Cluster {
    /// Waits until a node has ended by itself; its exit code.
    pub async fn ended(&mut self, n: usize) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let child = self.nodes[n].as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("ours") {
                self.nodes[n] = None;
                return status.code();
            }
            assert!(Instant::now() < deadline, "n{} goes on\n{}", n + 1, self.logs());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn data(&self, n: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("c/n{}/data", n + 1))
    }
}

/// Waits until a node answers and its copies have all that their leaders had committed when asked.
pub async fn caught_up(client: &Client, node: NodeId) {
    let began = Instant::now();
    loop {
        let statuses: BTreeMap<NodeId, NodeStatus> = client
            .statuses()
            .await
            .into_iter()
            .filter_map(|(info, status)| Some((info.id, status.ok()?)))
            .collect();
        if let Some(own) = statuses.get(&node) {
            let is_behind = own.replicas.iter().any(|copy| {
                let others = statuses.values().flat_map(|status| &status.replicas);
                let leader = others
                    .filter(|r| r.shard.id == copy.shard.id && r.state == "leader")
                    .max_by_key(|r| r.term);
                // The load goes on; a few entries behind is what a follower is.
                leader.is_none_or(|leader| copy.applied + 100 < leader.committed)
            });
            if !is_behind && !own.replicas.is_empty() {
                return;
            }
        }
        assert!(began.elapsed() < PATIENCE, "{node} did not catch up");
        sleep(Duration::from_millis(50)).await;
    }
}

pub fn test(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(body);
}

/// Starts an operation and waits until it is done.
pub async fn operate(client: &Client, goal: Goal) {
    try_operate(client, goal).await.expect("started");
}

/// The same, unless it is refused at the start.
pub async fn try_operate(client: &Client, goal: Goal) -> Result<(), ClientError> {
    let request = Request::StartOp {
        protect_p99_us: None,
        goal: goal.clone(),
        pace: None,
        because: String::new(),
        at: None,
        undoes: None,
        id: RequestId::random(),
    };
    let Response::Op(op) = client.request(request).await? else {
        panic!("{goal} was not started")
    };
    let began = Instant::now();
    loop {
        // The directory may be electing a leader: the operation does not mind.
        let last = match client.request(Request::ListOps { all: true }).await {
            Ok(Response::Ops(ops)) => {
                if let Some(shown) = ops.iter().find(|shown| shown.op.id == op.id)
                    && shown.op.state.is_over()
                {
                    assert_eq!(shown.op.state, OpState::Done, "{goal}: {}", shown.op.result);
                    return Ok(());
                }
                format!("{ops:?}")
            }
            other => format!("{other:?}"),
        };
        assert!(began.elapsed() < PATIENCE, "{goal} does not end: {last}");
        sleep(Duration::from_millis(50)).await;
    }
}
