//! Shells against each other and against callers that they should not trust: real QUIC on loopback, real files.
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use tempfile::TempDir;

use super::quic::{Close, Wire, WireReadError};
use super::{Enrolment, RunningNode, StartError, StopReason, Surroundings, enroll, quic};
use crate::daemon::config::Config;
use crate::protocol::codec;
use crate::protocol::error::{Code, WireError};
use crate::protocol::hello::{FEATURE_LEVEL, Hello, HelloReply, NodeHello, PROTOCOL_NEWEST, PROTOCOL_OLDEST};
use crate::protocol::id::{ClusterId, NodeId, RequestId};
use crate::protocol::message::Role;
use crate::protocol::request::{
    Change, Condition, Entity, NodeStatus, Request, RequestFrame, Response, ResponseFrame, Write,
};
use crate::protocol::shard_map::{MapView, Membership};
use crate::security::ca::{Authority, Identity, JoinLine, write_certificate, write_key};
use crate::security::tls::{CLUSTER_NAME, client_config, joining_config};

/// A machine that runs all tests at once is slow; what happens at all happens well within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster on loopback in a directory of its own.
struct Cluster {
    dir: TempDir,
    id: ClusterId,
    authority: Authority,
    addresses: Vec<String>,
}

impl Cluster {
    fn of(nodes: u64) -> Self {
        let authority = Authority::create("test").expect("made");
        let dir = tempfile::tempdir().expect("temp dir");
        write_certificate(&dir.path().join("ca.pem"), authority.certificate_pem()).expect("written");
        write_key(&dir.path().join("ca.key"), &authority.key_pem()).expect("written");
        let addresses = free_addresses(nodes);
        for n in 1..=nodes {
            let identity = authority.issue_node(NodeId(n), &format!("n{n}")).expect("issued");
            write_identity(dir.path(), &format!("n{n}"), &identity);
        }
        Self {
            dir,
            id: ClusterId::random(),
            authority,
            addresses,
        }
    }

    fn config(&self, n: u64) -> Config {
        let count = self.addresses.len();
        let address = &self.addresses[n as usize - 1];
        let id = self.id;
        let mut text = format!(
            "[cluster]\nid = \"{id}\"\n[node]\nid = {n}\nlisten = \"{address}\"\ndata_dir = \"data{n}\"\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"n{n}.pem\"\nkey = \"n{n}.key\"\nca_key = \"ca.key\"\n\
             [runtime]\nstop_timeout_s = 5\n\
             [[bootstrap.services]]\nname = \"campaign\"\nreplicas = {}\n",
            count.min(3)
        );
        for (index, address) in self.addresses.iter().enumerate() {
            text.push_str(&format!(
                "[[bootstrap.nodes]]\nid = {}\naddress = \"{address}\"\n",
                index + 1
            ));
        }
        Config::parse(&self.dir.path().join("isxd.toml"), &text, &|_| None).expect("valid")
    }

    fn start(&self, n: u64) -> RunningNode {
        RunningNode::start(self.config(n), Surroundings::default()).expect("started")
    }

    fn client(&self, role: Role) -> quinn::ClientConfig {
        let identity = self.authority.issue_client("ada", role).expect("issued");
        self.dialler(&identity)
    }

    fn dialler(&self, identity: &Identity) -> quinn::ClientConfig {
        client_config(
            self.authority.certificate_pem(),
            &identity.certificate_pem,
            &identity.key_pem,
        )
        .expect("usable")
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: (PROTOCOL_OLDEST, PROTOCOL_NEWEST),
            cluster: Some(self.id),
            feature_level: FEATURE_LEVEL,
            node: None,
            software: "test".to_owned(),
        }
    }

    fn address(&self, n: u64) -> &str {
        &self.addresses[n as usize - 1]
    }
}

fn write_identity(dir: &Path, name: &str, identity: &Identity) {
    write_certificate(&dir.join(format!("{name}.pem")), &identity.certificate_pem).expect("written");
    write_key(&dir.join(format!("{name}.key")), &identity.key_pem).expect("written");
}

fn free_addresses(count: u64) -> Vec<String> {
    // All held until all are known, so that they differ.
    let sockets: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let address = |socket: &UdpSocket| socket.local_addr().expect("bound").to_string();
    sockets.iter().map(address).collect()
}

/// A caller with the shell's own framing and nothing else.
struct Caller {
    wire: Wire,
    next_tag: u64,
    // Keeps the socket open.
    _endpoint: quinn::Endpoint,
}

#[derive(Debug)]
enum CallError {
    /// The handshake failed, or the connection was closed.
    Connection(String),
    /// The hello was refused.
    Refused(WireError),
}

impl Caller {
    async fn dial(address: &str, config: quinn::ClientConfig, hello: &Hello) -> Result<Self, CallError> {
        Self::dial_name(address, CLUSTER_NAME, config, hello).await
    }

    async fn dial_name(
        address: &str,
        name: &str,
        mut config: quinn::ClientConfig,
        hello: &Hello,
    ) -> Result<Self, CallError> {
        let gone = |error: &dyn std::error::Error| CallError::Connection(super::disk::chain(error));
        config.transport_config(Arc::new(quic::transport(1452, Duration::from_secs(5))));
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
        let connecting = endpoint
            .connect_with(config, address.parse().expect("an address"), name)
            .expect("well-formed");
        let connection = connecting.await.map_err(|error| gone(&error))?;
        let (send, recv) = connection.open_bi().await.map_err(|error| gone(&error))?;
        let mut wire = Wire::new(connection, send, recv);
        wire.send(hello).await.map_err(|error| gone(&error))?;
        match wire.receive().await {
            Ok(HelloReply::Welcome { .. }) => Ok(Self {
                wire,
                next_tag: 1,
                _endpoint: endpoint,
            }),
            Ok(HelloReply::Refused(error)) => Err(CallError::Refused(error)),
            Err(error) => Err(match wire.connection.close_reason() {
                Some(reason) => gone(&reason),
                None => gone(&error),
            }),
        }
    }

    async fn ask(&mut self, request: Request) -> Response {
        let tag = self.next_tag;
        self.next_tag += 1;
        let frame = RequestFrame {
            tag,
            timeout_ms: 2000,
            request,
        };
        self.wire.send(&frame).await.expect("sent");
        let answer: ResponseFrame = self.wire.receive().await.expect("an answer");
        assert_eq!(answer.tag, tag);
        answer.response
    }

    /// Repeats a request that may be answered with an error of the class Retry while a cluster finds itself.
    async fn ask_until(&mut self, what: &str, request: Request, done: impl Fn(&Response) -> bool) -> Response {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let response = self.ask(request.clone()).await;
            if done(&response) {
                return response;
            }
            assert!(Instant::now() < deadline, "{what}: still {response:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn status(&mut self) -> NodeStatus {
        match self.ask(Request::Status).await {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    async fn counter(&mut self, name: &str) -> u64 {
        let counters = self.status().await.counters;
        counters.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count)
    }

    async fn map(&mut self) -> MapView {
        match self.ask(Request::Map).await {
            Response::Map(map) => map,
            other => panic!("{other:?}"),
        }
    }
}

fn test<T>(body: impl Future<Output = T>) -> T {
    if let Ok(level) = std::env::var("ISX_TEST_LOG") {
        super::log_to_stderr(crate::daemon::config::LogFormat::Human, &level);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE * 2, body)
            .await
            .expect("the test ends in time")
    })
}

fn put(key: &str, document: &'static str) -> Request {
    Request::Write(Write {
        service: "campaign".to_owned(),
        key: key.to_owned(),
        id: RequestId::random(),
        condition: Condition::Always,
        change: Change::Put(document.as_bytes().into()),
    })
}

fn get(key: &str) -> Request {
    Request::Get {
        service: "campaign".to_owned(),
        key: key.to_owned(),
    }
}

fn is_written(response: &Response) -> bool {
    matches!(response, Response::Written(_))
}

#[test]
fn one_node_keeps_what_it_acknowledged_over_a_restart() {
    test(async {
        let cluster = Cluster::of(1);
        let node = cluster.start(1);
        let mut ada = Caller::dial(cluster.address(1), cluster.client(Role::Writer), &cluster.hello())
            .await
            .expect("welcome");
        ada.ask_until("a put", put("c-1", r#"{"a":1}"#), is_written).await;
        let Response::Entity(Some(Entity { document, .. })) = ada.ask(get("c-1")).await else {
            panic!("it is there");
        };
        assert_eq!(document, &br#"{"a":1}"#[..]);
        let status = ada.status().await;
        assert_eq!((status.node, status.cluster), (NodeId(1), cluster.id));
        assert!(status.disk_free_bytes > 0 && status.disk_free_bytes < u64::MAX);

        // At once: nothing may depend on a stop in good order.
        node.stop_at_once();
        assert_eq!(node.join(), StopReason::Asked);
        let node = cluster.start(1);
        let mut ada = Caller::dial(cluster.address(1), cluster.client(Role::Viewer), &cluster.hello())
            .await
            .expect("welcome");
        let found = |response: &Response| matches!(response, Response::Entity(Some(_)));
        ada.ask_until("a get after the restart", get("c-1"), found).await;
        node.stop();
        assert_eq!(node.join(), StopReason::Asked);
    });
}

#[test]
fn three_nodes_serve_from_any_of_them_and_outlive_one() {
    test(async {
        let cluster = Cluster::of(3);
        let mut nodes: Vec<RunningNode> = (1..=3).map(|n| cluster.start(n)).collect();
        let mut callers = Vec::new();
        for n in 1..=3 {
            let client = cluster.client(Role::Writer);
            let caller = Caller::dial(cluster.address(n), client, &cluster.hello()).await;
            callers.push(caller.expect("welcome"));
        }
        for (index, caller) in callers.iter_mut().enumerate() {
            let key = format!("c-{index}");
            caller.ask_until("a put", put(&key, r#"{"b":2}"#), is_written).await;
        }
        let all_known = |response: &Response| match response {
            Response::Status(status) => status.peers.iter().filter(|peer| peer.connected).count() == 2,
            _ => false,
        };
        callers[0].ask_until("all connected", Request::Status, all_known).await;

        let lost = nodes.pop().expect("three");
        lost.stop();
        assert_eq!(lost.join(), StopReason::Asked);
        let mut written = 0;
        for caller in &mut callers[..2] {
            caller
                .ask_until("a put by two", put("c-9", r#"{"b":3}"#), is_written)
                .await;
            written += 1;
        }
        assert_eq!(written, 2);
    });
}

#[test]
fn strangers_are_refused_with_a_reason() {
    test(async {
        let cluster = Cluster::of(1);
        let node = cluster.start(1);
        let at = cluster.address(1);
        let refused = |result: Result<Caller, CallError>| match result {
            Err(CallError::Refused(error)) => error,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was let in"),
        };

        // A certificate of another authority: the handshake fails, whatever it claims.
        let other = Authority::create("test").expect("made");
        let identity = other.issue_client("ada", Role::Admin).expect("issued");
        let foreign = client_config(
            cluster.authority.certificate_pem(),
            &identity.certificate_pem,
            &identity.key_pem,
        );
        let result = Caller::dial(at, foreign.expect("usable"), &cluster.hello()).await;
        let Err(CallError::Connection(why)) = result else {
            panic!("it was let in");
        };
        assert!(
            why.contains("UnknownCA") || why.contains("certificate") || why.contains("unknown"),
            "{why}"
        );

        // Another cluster's id, with our certificate.
        let mut hello = cluster.hello();
        hello.cluster = Some(ClusterId(7));
        let error = refused(Caller::dial(at, cluster.client(Role::Admin), &hello).await);
        assert_eq!(error.code, Code::OtherCluster);

        // A client that says it is a node.
        let mut hello = cluster.hello();
        hello.node = Some(NodeHello {
            node: NodeId(2),
            store_id: 5,
            life: 1,
            boot: 1,
            persisted: 0,
        });
        let error = refused(Caller::dial(at, cluster.client(Role::Admin), &hello).await);
        assert_eq!(error.code, Code::NotProven);
        assert!(error.text.contains("admin `ada`"), "{error}");

        // A node that says it is another, and one that says it is this one.
        let identity = cluster.authority.issue_node(NodeId(3), "n3").expect("issued");
        let error = refused(Caller::dial(at, cluster.dialler(&identity), &hello).await);
        assert_eq!(error.code, Code::NotProven);
        let identity = cluster.authority.issue_node(NodeId(1), "n1").expect("issued");
        let node_hello = |node| NodeHello {
            node,
            store_id: 5,
            life: 1,
            boot: 1,
            persisted: 0,
        };
        hello.node = Some(node_hello(NodeId(1)));
        let error = refused(Caller::dial(at, cluster.dialler(&identity), &hello).await);
        assert_eq!(error.code, Code::NotProven);

        // A version from the future.
        let mut hello = cluster.hello();
        hello.protocol = (90, 91);
        let error = refused(Caller::dial(at, cluster.client(Role::Admin), &hello).await);
        assert_eq!(error.code, Code::ProtocolVersion);

        // No certificate at all: welcome, but only to join.
        let mut hello = cluster.hello();
        hello.cluster = None;
        let pinned = joining_config(cluster.authority.pin()).expect("usable");
        let mut nobody = Caller::dial(at, pinned, &hello).await.expect("welcome");
        for request in [Request::Status, Request::Map, get("c-1")] {
            let Response::Error(error) = nobody.ask(request).await else {
                panic!("it was served");
            };
            assert_eq!(error.code, Code::Forbidden);
        }
        // And with another pin it does not trust us.
        let distrust = joining_config(other.pin()).expect("usable");
        assert!(matches!(
            Caller::dial(at, distrust, &hello).await,
            Err(CallError::Connection(_))
        ));

        // All of it was counted, and the node serves.
        let mut ada = Caller::dial(at, cluster.client(Role::Viewer), &cluster.hello())
            .await
            .expect("welcome");
        assert_eq!(ada.counter("shell.hellos_refused").await, 5);
        assert!(ada.counter("shell.handshakes_failed").await >= 1);
        assert_eq!(ada.counter("shell.nobody_refused").await, 3);
        drop(node);
    });
}

#[test]
fn a_client_certificate_can_not_stand_at_the_accepting_end() {
    test(async {
        let cluster = Cluster::of(1);
        let identity = cluster.authority.issue_client("n1", Role::Admin).expect("issued");
        let ca = cluster.authority.certificate_pem();
        let server =
            crate::security::tls::server_config(ca, &identity.certificate_pem, &identity.key_pem).expect("parses");
        let endpoint = quinn::Endpoint::server(server, ([127, 0, 0, 1], 0).into()).expect("a socket");
        let address = endpoint.local_addr().expect("bound").to_string();
        let accepting = tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let _ = incoming.await;
            }
        });
        for name in [CLUSTER_NAME, "n1.node.isx.internal", "n1.admin.isx.internal"] {
            let result = Caller::dial_name(&address, name, cluster.client(Role::Admin), &cluster.hello()).await;
            assert!(matches!(result, Err(CallError::Connection(_))), "dialled as {name}");
        }
        accepting.abort();
    });
}

#[test]
fn garbage_is_dropped_counted_and_hurts_nobody() {
    test(async {
        let cluster = Cluster::of(1);
        let node = cluster.start(1);
        let at = cluster.address(1);
        let mut ada = Caller::dial(at, cluster.client(Role::Writer), &cluster.hello())
            .await
            .expect("welcome");

        // Datagrams that are no QUIC, or almost.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut rng = fastrand::Rng::with_seed(7);
        for length in [0, 1, 20, 1200, 1452, 8000] {
            for first in [0x00, 0x40, 0xc0, 0xff] {
                let mut datagram: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
                if let Some(byte) = datagram.first_mut() {
                    *byte = first;
                }
                socket.send_to(&datagram, at).expect("sent");
            }
        }
        ada.status().await;

        let closed_with = async |bytes: &[u8]| {
            let caller = Caller::dial(at, cluster.client(Role::Admin), &cluster.hello()).await;
            let mut caller = caller.expect("welcome");
            caller.wire.send.write_all(bytes).await.expect("sent");
            match caller.wire.receive::<ResponseFrame>().await {
                Err(WireReadError::Gone(_)) => caller.wire.connection.closed().await,
                other => panic!("{other:?}"),
            }
        };
        let code_of = |error: quinn::ConnectionError| match error {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert!(!close.reason.is_empty(), "the reason is told");
                close.error_code
            }
            other => panic!("{other}"),
        };
        let oversize = [0xff, 0xff, 0xff, 0x7f, 1, 2, 3];
        assert_eq!(code_of(closed_with(&oversize).await), Close::Oversize.code());
        assert_eq!(code_of(closed_with(&[0, 0, 0, 0]).await), Close::Garbage.code());
        let mut lying = BytesMut::new();
        lying.put_u32_le(10);
        lying.put_slice(&[codec::FRAME_FORMAT, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 9, 9]);
        assert_eq!(code_of(closed_with(&lying).await), Close::Garbage.code());

        assert_eq!(ada.counter("shell.frames_oversize").await, 1);
        assert_eq!(ada.counter("shell.garbage").await, 2);
        ada.ask_until("a put after all that", put("c-1", "{}"), is_written)
            .await;
        drop(node);
    });
}

#[test]
fn answers_match_however_many_requests_are_under_way() {
    test(async {
        let cluster = Cluster::of(1);
        let node = cluster.start(1);
        let mut ada = Caller::dial(cluster.address(1), cluster.client(Role::Writer), &cluster.hello())
            .await
            .expect("welcome");
        ada.ask_until("a put", put("c-0", "{}"), is_written).await;
        let mut bytes = BytesMut::new();
        for tag in 100..1100 {
            let request = if tag % 2 == 0 {
                put(&format!("c-{tag}"), "{}")
            } else {
                Request::Map
            };
            let frame = RequestFrame {
                tag,
                timeout_ms: 5000,
                request,
            };
            codec::encode_frame(&frame, &mut bytes).expect("small");
        }
        // In pieces that end anywhere.
        for piece in bytes.chunks(1013) {
            ada.wire.send.write_all(piece).await.expect("sent");
        }
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 1000 {
            let answer: ResponseFrame = ada.wire.receive().await.expect("an answer");
            let fits = match answer.response {
                Response::Written(_) => answer.tag.is_multiple_of(2),
                Response::Map(_) => !answer.tag.is_multiple_of(2),
                other => panic!("{other:?}"),
            };
            assert!(fits && seen.insert(answer.tag), "tag {}", answer.tag);
        }
        drop(node);
    });
}

#[test]
fn a_host_joins_with_a_token_and_not_without() {
    test(async {
        let cluster = Cluster::of(1);
        let node = cluster.start(1);
        let mut admin = Caller::dial(cluster.address(1), cluster.client(Role::Admin), &cluster.hello())
            .await
            .expect("welcome");
        let registered = |response: &Response| match response {
            Response::Map(map) => map.nodes.iter().any(|n| n.store_id != 0),
            _ => false,
        };
        admin.ask_until("n1 registered", Request::Map, registered).await;

        let mut viewer = Caller::dial(cluster.address(1), cluster.client(Role::Writer), &cluster.hello())
            .await
            .expect("welcome");
        let Response::Error(error) = viewer
            .ask(Request::CreateToken {
                ttl_s: 60,
                approve: false,
            })
            .await
        else {
            panic!("a writer made a token");
        };
        assert_eq!(error.code, Code::Forbidden);
        let Response::Token { token } = admin
            .ask(Request::CreateToken {
                ttl_s: 60,
                approve: false,
            })
            .await
        else {
            panic!("no token");
        };

        let line = |token: &str, authority: &Authority| {
            let line = JoinLine {
                endpoints: vec![cluster.address(1).to_owned()],
                pin: authority.pin(),
                token: token.to_owned(),
            };
            line.to_string()
        };
        let home = tempfile::tempdir().expect("temp dir");
        let address = free_addresses(1).remove(0);
        let enrolment = |dir: &str| Enrolment {
            name: "n2".to_owned(),
            zone: "b".to_owned(),
            listen: address.parse().expect("an address"),
            advertise: address.clone(),
            dir: home.path().join(dir),
        };
        let join = async |line: String, enrolment: Enrolment| {
            let joining = tokio::task::spawn_blocking(move || enroll(&line, &enrolment, &mut |_| {}));
            joining.await.expect("no panic")
        };
        let forged = format!("{}0", &token[..token.len() - 1]);
        let forged = if forged == token {
            format!("{}g", &token[..token.len() - 1])
        } else {
            forged
        };
        let error = join(line(&forged, &cluster.authority), enrolment("a"))
            .await
            .expect_err("refused");
        assert!(
            super::disk::chain(&error).contains("ISX-1505"),
            "{}",
            super::disk::chain(&error)
        );
        let other = Authority::create("test").expect("made");
        join(line(&token, &other), enrolment("b"))
            .await
            .expect_err("another authority");

        // The first one is not there: the next is asked.
        let two = line(&token, &cluster.authority).replace("isx-join:", "isx-join:127.0.0.1:9,");
        let enrolled = join(two, enrolment("c")).await.expect("joined");
        assert_eq!(enrolled.joined.node.id, NodeId(2));
        let again = join(line(&token, &cluster.authority), enrolment("c")).await;
        assert!(matches!(again, Err(super::EnrollError::Exists { .. })));

        let config = Config::load(&enrolled.config).expect("valid");
        let second = RunningNode::start(config, Surroundings::default()).expect("started");
        let active = |response: &Response| match response {
            Response::Map(map) => map
                .nodes
                .iter()
                .any(|n| n.id == NodeId(2) && n.membership == Membership::Active && n.store_id != 0),
            _ => false,
        };
        admin.ask_until("n2 active", Request::Map, active).await;

        // The same certificate with another disk is not the node that registered.
        drop(second);
        std::fs::remove_dir_all(home.path().join("c/data")).expect("wiped");
        let config = Config::load(&enrolled.config).expect("valid");
        let identity = Identity {
            certificate_pem: std::fs::read_to_string(&config.certificate).expect("there"),
            key_pem: std::fs::read_to_string(&config.key).expect("there"),
        };
        let mut hello = cluster.hello();
        hello.node = Some(NodeHello {
            node: NodeId(2),
            store_id: 1,
            life: 1,
            boot: 1,
            persisted: 0,
        });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = Caller::dial(cluster.address(1), cluster.dialler(&identity), &hello).await;
            if matches!(&result, Err(CallError::Refused(error)) if error.code == Code::OtherLife) {
                break;
            }
            assert!(Instant::now() < deadline, "a wiped node was let in");
        }
        assert!(admin.map().await.nodes.len() == 2);
        drop(node);
    });
}

#[test]
fn a_node_does_not_start_with_what_is_not_its_own() {
    let cluster = Cluster::of(2);
    let mut config = cluster.config(1);
    config.certificate = cluster.dir.path().join("n2.pem");
    config.key = cluster.dir.path().join("n2.key");
    let error = RunningNode::start(config, Surroundings::default()).expect_err("another node's certificate");
    assert!(
        matches!(error, StartError::OtherCertificate { node: NodeId(1), .. }),
        "{error}"
    );

    let node = cluster.start(1);
    let error = RunningNode::start(cluster.config(1), Surroundings::default()).expect_err("the port is in use");
    assert!(matches!(error, StartError::Bind { .. }), "{error}");
    drop(node);
}
