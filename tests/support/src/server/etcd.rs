use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Kind, Server, ask, missing};

/// An etcd server with one member.
pub type EtcdServer = Server<Etcd>;

#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
}

impl EtcdServer {
    /// Starts a server with an empty data directory. Returns when it serves.
    pub async fn start() -> Self {
        Self::start_program(Etcd::PROGRAM).await
    }

    /// Like [`start`](Self::start), with this program instead of the one in `PATH`.
    pub async fn start_program(program: impl Into<PathBuf>) -> Self {
        Self::launch(Etcd { program: program.into() }).await
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
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        command.args(["--name", "test", "--logger", "zap"]).arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        // A write survives a killed process without being synced; only a killed machine would lose
        // it.
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", "20", "--election-timeout", "200"]);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        let answer = ask(address, "GET /health HTTP/1.0\r\n\r\n").await;
        answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }
}
