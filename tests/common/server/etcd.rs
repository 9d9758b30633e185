use std::{net::SocketAddr, path::Path, process::Command};

use super::{Kind, Server, ask};

/// An etcd server with one member.
pub type EtcdServer = Server<Etcd>;

#[derive(Debug)]
pub struct Etcd;

impl EtcdServer {
    /// Starts a server with an empty data directory and returns when it answers.
    pub async fn start() -> Self {
        Self::launch(Etcd).await
    }

    /// Where clients connect to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// How many watches the server thinks there are.
    pub async fn watches(&self) -> usize {
        let figures = ask(self.address(), "GET /metrics HTTP/1.0\r\n\r\n").await.expect("it serves");
        let figure = figures.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no watches in\n{figures}"))
    }
}

impl Kind for Etcd {
    const PROGRAM: &'static str = "etcd";
    const PACKAGE: &'static str = "etcd-server";
    const PORTS: usize = 2;

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        command.args(["--name", "test", "--logger", "zap"]).arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        // What is written survives a killed process without being synced; only a killed machine would lose it.
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", "20", "--election-timeout", "200"]);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        let answer = ask(address, "GET /health HTTP/1.0\r\n\r\n").await;
        answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }
}
