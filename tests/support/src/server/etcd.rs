use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Kind, Server, ask, missing, ports::Port};

/// An etcd server with one member, or a member that joined another server.
pub type EtcdServer = Server<Etcd>;
/// `etcd grpc-proxy` in front of a server.
pub type EtcdGrpcProxy = Server<GrpcProxy>;

#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    /// The members that were there before, and this one's port for them.
    joins: Option<(String, Port)>,
}

#[derive(Debug)]
pub struct GrpcProxy {
    endpoint: String,
}

impl EtcdServer {
    /// Starts a server with an empty data directory. Returns when it serves.
    pub async fn start() -> Self {
        Self::start_program(Etcd::PROGRAM).await
    }

    /// Like [`start`](Self::start), with this program instead of the one in `PATH`.
    pub async fn start_program(program: impl Into<PathBuf>) -> Self {
        Self::launch(Etcd { program: program.into(), joins: None }).await
    }

    /// Starts a learner: a member without a vote, which serves hardly any request.
    pub async fn start_learner(&self) -> Self {
        let port = Port::reserve();
        let peer = format!("http://127.0.0.1:{}", port.number);
        let learner = format!(r#"{{"peerURLs":["{peer}"],"isLearner":true}}"#);
        self.post("cluster/member/add", &learner).await;
        let first = format!("test=http://127.0.0.1:{}", self.ports[1].number);
        Self::launch(Etcd { program: Etcd::PROGRAM.into(), joins: Some((first, port)) }).await
    }

    /// Returns the endpoint for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Compacts all revisions but the last one: a watch that would begin earlier is refused.
    pub async fn compact(&self) {
        let header = self.post("kv/range", r#"{"key":"AA=="}"#).await;
        let revision = header.split_once(r#""revision":""#).and_then(|(_, rest)| rest.split('"').next());
        let revision = revision.unwrap_or_else(|| panic!("no revision in\n{header}"));
        self.post("kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).await;
    }

    /// Sends a request to the gateway that speaks JSON.
    async fn post(&self, method: &str, body: &str) -> String {
        let head = format!("POST /v3/{method} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = ask(self.address(), &(head + body)).await.expect("it serves");
        assert!(answer.starts_with("HTTP/1.0 200"), "{method}: {answer}");
        answer
    }

    /// Returns the number of watches that the server counts.
    pub async fn watches(&self) -> usize {
        let figures = ask(self.address(), "GET /metrics HTTP/1.0\r\n\r\n").await.expect("it serves");
        let figure = figures.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no watches in\n{figures}"))
    }
}

impl Kind for Etcd {
    const PROGRAM: &'static str = "etcd";
    const PORTS: usize = 2;

    fn program(&self) -> PathBuf {
        self.program.clone()
    }

    fn missing(&self) -> String {
        missing(Self::PROGRAM, "etcd-server")
    }

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        let (name, peer_port, others) = match &self.joins {
            None => ("test", ports[1], String::new()),
            Some((others, port)) => ("learner", port.number, format!("{others},")),
        };
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{peer_port}"));
        command.args(["--name", name, "--logger", "zap"]).arg("--data-dir").arg(data);
        command.args(["--initial-cluster-state", if self.joins.is_some() { "existing" } else { "new" }]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("{others}{name}={peer}")]);
        // A write survives a killed process without being synced; only a killed machine would lose
        // it.
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", "20", "--election-timeout", "200"]);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        is_healthy(address).await
    }
}

impl EtcdGrpcProxy {
    /// Starts a proxy in front of the server. Returns when it serves.
    pub async fn start(server: &EtcdServer) -> Self {
        Self::launch(GrpcProxy { endpoint: server.endpoint() }).await
    }
}

impl Kind for GrpcProxy {
    const PROGRAM: &'static str = "etcd";
    const PORTS: usize = 1;

    fn missing(&self) -> String {
        missing(Self::PROGRAM, "etcd-server")
    }

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        let address = format!("127.0.0.1:{}", ports[0]);
        command.args(["grpc-proxy", "start", "--endpoints", &self.endpoint]).arg("--data-dir").arg(data);
        command.args(["--listen-addr", &address, "--advertise-client-url", &address]);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        is_healthy(address).await
    }
}

async fn is_healthy(address: SocketAddr) -> bool {
    let answer = ask(address, "GET /health HTTP/1.0\r\n\r\n").await;
    answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
