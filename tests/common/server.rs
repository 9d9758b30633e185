//! Real servers on free loopback ports, for as long as a test runs.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// An etcd server with one member. It is killed when this is dropped, and when the test dies.
#[derive(Debug)]
pub struct EtcdServer {
    directory: TempDir,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl EtcdServer {
    /// Starts a server with an empty data directory and returns when it answers.
    ///
    /// Call it, like [`restart`](Self::restart), on the thread of the test: the server dies with the thread that
    /// started it.
    pub async fn start() -> Self {
        let mut last = String::new();
        // Between finding a port free and the server's binding it, another process may take it.
        for _ in 0..5 {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let [client_port, peer_port] = free_ports();
            let mut server = Self { directory, client_port, peer_port, process: None };
            match server.launch().await {
                Ok(()) => return server,
                Err(error) => last = error,
            }
        }
        panic!("{last}");
    }

    /// Where clients connect to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// SIGKILL: no goodbye to anybody.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It fails if the process is gone, which is what we want.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills the server, if it still runs, and starts it again with the same data and ports.
    pub async fn restart(&mut self) {
        self.kill();
        self.launch().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Deletes the data of a server that was killed.
    pub fn forget(&mut self) {
        self.kill();
        fs::remove_dir_all(self.directory.path().join("data")).expect("the data can be deleted");
    }

    /// SIGSTOP: connections stay open, but nobody answers. Returns when all threads have stopped, which takes a moment.
    pub fn pause(&self) {
        self.signal("-STOP");
        let started = Instant::now();
        while !self.is_stopped() {
            assert!(started.elapsed() < START, "the server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT, after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    async fn launch(&mut self) -> Result<(), String> {
        let log = self.directory.path().join("log");
        let output = File::options().create(true).append(true).open(&log).expect("the log is writable");
        let errors = output.try_clone().expect("a second handle to the log");
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer_port));
        // `setpriv` asks the kernel to kill the server when its parent dies, which needs no `unsafe` here, and then
        // becomes the server, so that the process id stays the same.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--name", "test", "--logger", "zap"]);
        command.args(["--data-dir".into(), self.directory.path().join("data")] as [PathBuf; 2]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        // What is written survives a killed process without being synced; only a killed machine would lose it.
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", "20", "--election-timeout", "200"]);
        let process = command.stdin(std::process::Stdio::null()).stdout(output).stderr(errors).spawn();
        self.process =
            Some(process.unwrap_or_else(|error| panic!("cannot run setpriv (util-linux): {error}")));

        let started = Instant::now();
        while started.elapsed() < START {
            if self.is_healthy() {
                return Ok(());
            }
            if let Some(status) = self.exited() {
                if status.code() == Some(NOT_FOUND) {
                    panic!(
                        "there is no etcd: install the Debian package etcd-server, as scripts/test expects it"
                    );
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill();
        Err(format!("etcd did not start:\n{}", fs::read_to_string(log).unwrap_or_default()))
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.try_wait().expect("a child can be waited for")
    }

    fn is_healthy(&self) -> bool {
        let ask = || -> io::Result<String> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }

    /// Whether each thread is in state `T`, the word after the name in parentheses (proc(5)).
    fn is_stopped(&self) -> bool {
        let process = self.process.as_ref().expect("the server runs");
        let threads = fs::read_dir(format!("/proc/{}/task", process.id())).expect("the server's threads");
        let mut stats =
            threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("the server runs");
        let status = Command::new("kill").args([signal, &process.id().to_string()]).status();
        assert!(status.expect("kill can be run").success());
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that nobody listens on at this moment.
fn free_ports<const N: usize>() -> [u16; N] {
    // All are held at once, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound address").port())
}

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(15);
/// What `setpriv` exits with when there is no such program.
const NOT_FOUND: i32 = 127;
