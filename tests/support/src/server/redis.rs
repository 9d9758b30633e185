use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use tokio::time::sleep;

use super::{Kind, LIMIT, POLL, Server, ask, missing};

/// A Redis server that keeps every write that it acknowledged.
pub type RedisServer = Server<Redis>;

#[derive(Debug)]
pub struct Redis {
    arguments: Vec<String>,
    tls: bool,
}

impl RedisServer {
    /// Starts a server with an empty data directory. Returns when it serves.
    pub async fn start() -> Self {
        Self::start_with::<&str>([]).await
    }

    /// Like [`start`](Self::start), with further settings, such as `["--maxmemory", "2mb"]`, which
    /// override the defaults here. With `--requirepass` the methods here send the password, and
    /// clients need it.
    pub async fn start_with<A: Into<String>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::launch(Redis { arguments: arguments.into_iter().map(Into::into).collect(), tls: false }).await
    }

    /// Starts a server that serves TLS on a second port. The certificate for `localhost` is from an
    /// authority of its own, [`file`](Self::file) `ca.crt`.
    pub async fn start_with_tls() -> Self {
        Self::launch(Redis { arguments: Vec::new(), tls: true }).await
    }

    /// Returns the port for TLS.
    pub fn tls_port(&self) -> u16 {
        self.ports[1].number
    }

    /// Returns the path of a file in the server's folder, to which its settings are relative.
    pub fn file(&self, name: &str) -> PathBuf {
        self.data().join(name)
    }

    /// Starts a replica. Returns when it follows `master`, which must not require a password.
    pub async fn start_replica_of(master: &RedisServer) -> Self {
        let port = master.address().port().to_string();
        let replica = Self::start_with(["--replicaof", "127.0.0.1", &port]).await;
        let started = Instant::now();
        // Ask both: the master counts a replica's acknowledgements only once it is online.
        while !replica.ask("INFO replication").await.contains("master_link_status:up")
            || !master.ask("INFO replication").await.contains("state=online")
        {
            assert!(started.elapsed() < LIMIT, "the replica does not follow:\n{}", replica.log());
            sleep(POLL).await;
        }
        replica
    }

    /// Returns the URL for clients.
    pub fn endpoint(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Executes a command, written as for `redis-cli`, on a connection of its own. Returns the raw
    /// answer, in RESP.
    pub async fn ask(&self, command: &str) -> String {
        self.try_ask(command).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Like [`ask`](Self::ask), for a server whose connections a sentinel may kill at any time: the
    /// command is repeated then.
    pub async fn ask_again(&self, command: &str) -> String {
        let started = Instant::now();
        loop {
            match self.try_ask(command).await {
                // Killed in time, there is no answer at all.
                Ok(answer) if !answer.is_empty() => return answer,
                other => assert!(started.elapsed() < LIMIT, "{command}: {other:?}"),
            }
            sleep(POLL).await;
        }
    }

    async fn try_ask(&self, command: &str) -> io::Result<String> {
        let login = self.kind.password().map(|password| format!("AUTH {password}\r\n"));
        let request = format!("{}{command}\r\nQUIT\r\n", login.as_deref().unwrap_or_default());
        let answer = ask(self.address(), &request).await?;
        // Without the answers to AUTH and QUIT.
        let answer = if login.is_some() { answer.strip_prefix(OK).unwrap_or(&answer) } else { &answer };
        Ok(answer.strip_suffix(OK).unwrap_or(answer).to_owned())
    }

    /// Returns the number of clients that the server counts, including replicas.
    pub async fn connections(&self) -> usize {
        // Without the connection of this request.
        self.ask("CLIENT LIST").await.matches(" laddr=").count() - 1
    }

    /// Returns how many commands of this name it has executed, including those in scripts.
    pub async fn calls(&self, command: &str) -> u64 {
        let figures = self.ask("INFO commandstats").await;
        let prefix = format!("cmdstat_{command}:calls=");
        let calls = figures
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .and_then(|line| line.split(',').next());
        // Commands that were never executed are not in the list.
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }
}

impl Redis {
    fn password(&self) -> Option<&str> {
        let mut arguments = self.arguments.iter().skip_while(|argument| *argument != "--requirepass");
        arguments.nth(1).map(String::as_str)
    }
}

impl Kind for Redis {
    const PROGRAM: &'static str = "redis-server";
    /// The second port is for the cluster bus, if there is one.
    const PORTS: usize = 2;

    fn missing(&self) -> String {
        missing(Self::PROGRAM, "redis-server")
    }

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        command.args(["--bind", "127.0.0.1", "--port", &ports[0].to_string()]);
        command.args(["--cluster-port", &ports[1].to_string()]);
        command.arg("--dir").arg(data).args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        // By default the master waits five seconds for further replicas to serve together.
        command.args(["--repl-diskless-sync-delay", "0"]);
        if self.tls {
            make_certificates(data);
            command.args(["--tls-port", &ports[1].to_string(), "--tls-auth-clients", "no"]);
            command.args(["--tls-cert-file", "tls.crt", "--tls-key-file", "tls.key"]);
            command.args(["--tls-ca-cert-file", "ca.crt"]);
        }
        command.args(&self.arguments);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        let answer = ask(address, "PING\r\nQUIT\r\n").await;
        // A server with a password answers the second. A server that still loads its data answers
        // neither.
        answer.is_ok_and(|answer| ["+PONG", "-NOAUTH"].iter().any(|ready| answer.starts_with(ready)))
    }
}

/// Makes an authority, and a certificate of it for `localhost`.
fn make_certificates(folder: &Path) {
    let make = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(arguments.split(' ')).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|error| panic!("cannot run openssl: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    make(&format!("{new} -keyout ca.key -out ca.crt -subj /CN=authority"));
    let names =
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    make(&format!("{new} -keyout tls.key -out tls.crt -subj /CN=localhost -CA ca.crt -CAkey ca.key {names}"));
}

const OK: &str = "+OK\r\n";
