//! Real servers on free loopback ports, for the duration of a test.

mod etcd;
#[cfg(feature = "kube")]
mod kube;
mod ports;
mod redis;
mod redis_cluster;
mod redis_sentinel;
mod zookeeper;

use std::{
    fs::{self, DirBuilder, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

#[cfg(feature = "kube")]
pub use self::kube::{ADMINISTRATOR, KubeServer, RECORD};
pub use self::{
    etcd::{EtcdGrpcProxy, EtcdServer},
    redis::RedisServer,
    redis_cluster::RedisCluster,
    redis_sentinel::RedisSentinel,
    zookeeper::ZookeeperServer,
};
use ports::Port;

/// A kind of server.
pub trait Kind {
    /// The name of the program.
    const PROGRAM: &'static str;
    /// The number of ports that it needs. Clients connect to the first.
    const PORTS: usize;

    /// Returns the program to run.
    fn program(&self) -> PathBuf {
        Self::PROGRAM.into()
    }

    /// Returns the message for a missing program.
    fn missing(&self) -> String;

    /// Adds the arguments. `data` exists, and is empty or as the server left it.
    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]);

    /// Returns whether the server serves clients at `address`.
    fn is_ready(&self, address: SocketAddr) -> impl Future<Output = bool> + Send;
}

/// A server process with its data, log and ports. It is killed when this is dropped, and when the
/// test dies.
///
/// Start and restart it on the thread of the test: it dies with the thread that started it.
#[derive(Debug)]
pub struct Server<K: Kind> {
    kind: K,
    directory: TempDir,
    ports: Vec<Port>,
    process: Option<Child>,
}

impl<K: Kind> Server<K> {
    /// Starts a server with an empty data directory. Returns when it serves.
    async fn launch(kind: K) -> Self {
        let mut server = Self { kind, directory: folder(), ports: Vec::new(), process: None };
        for _ in 0..5 {
            server.ports = (0..K::PORTS).map(|_| Port::reserve()).collect();
            match server.run().await {
                Ok(()) => return server,
                // Another program took the port before the server did.
                Err(log) if log.to_lowercase().contains("address already in use") => {
                    server.directory = folder();
                }
                Err(log) => server.fail(&log),
            }
        }
        panic!("{}: five times another program took the port first", K::PROGRAM);
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0].number).into()
    }

    /// Sends SIGKILL, so that the server closes nothing by itself.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It fails if the process has ended, which is the aim.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills the server, if it still runs, and starts it again with the same data and ports.
    pub async fn restart(&mut self) {
        self.kill();
        if let Err(log) = self.run().await {
            self.fail(&log);
        }
    }

    /// Kills the server, if it still runs, and deletes its data: the next
    /// [`restart`](Self::restart) begins without any.
    pub fn forget(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).expect("the data can be deleted");
    }

    /// Sends SIGSTOP: connections stay open without answers. Returns when all threads have stopped,
    /// which takes a moment.
    pub fn pause(&self) {
        self.signal("-STOP");
        let started = Instant::now();
        while !self.is_stopped() {
            assert!(started.elapsed() < LIMIT, "{} does not stop", K::PROGRAM);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGCONT, after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Returns the log since the first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn fail(&self, log: &str) -> ! {
        panic!("{} did not start:\n{log}", K::PROGRAM)
    }

    /// Runs the server. Returns when it serves, or its log if it does not start.
    async fn run(&mut self) -> Result<(), String> {
        let data = self.data();
        // etcd complains of data that others can read.
        DirBuilder::new().recursive(true).mode(0o700).create(&data).expect("a directory for the data");
        let output =
            File::options().create(true).append(true).open(self.log_file()).expect("the log is writable");
        let errors = output.try_clone().expect("a second handle to the log");
        // `setpriv` asks the kernel to kill the server when its parent dies, which would need
        // `unsafe` here. It then becomes the server, so that the process id stays the same.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.kind.program());
        let ports: Vec<_> = self.ports.iter().map(|port| port.number).collect();
        self.kind.arguments(&mut command, &data, &ports);
        let process = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        self.process =
            Some(process.unwrap_or_else(|error| panic!("cannot run setpriv (util-linux): {error}")));

        let started = Instant::now();
        while started.elapsed() < LIMIT {
            // Ask only once the port is its own: another program that listens there would answer
            // instead.
            let ready = async { self.listens() && self.kind.is_ready(self.address()).await };
            if timeout(PROBE, ready).await.unwrap_or(false) {
                return Ok(());
            }
            if let Some(status) = self.exited() {
                assert!(status.code() != Some(NOT_FOUND), "{}", self.kind.missing());
                break;
            }
            sleep(POLL).await;
        }
        self.kill();
        Err(self.log())
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.try_wait().expect("a child can be waited for")
    }

    fn id(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Returns whether one of the process's files is a listening socket of its first port
    /// (proc(5)).
    fn listens(&self) -> bool {
        let port = format!(":{:04X}", self.ports[0].number);
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
        let sockets: Vec<_> = tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
                (local.ends_with(&port) && state == LISTEN).then(|| format!("socket:[{inode}]"))
            })
            .collect();
        // The folder vanishes with the process.
        let files = fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    }

    /// Returns whether each thread is in state `T`, the word after the name in parentheses
    /// (proc(5)).
    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).expect("the server's threads");
        let mut stats =
            threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.id().to_string()]).status();
        assert!(status.expect("kill can be run").success());
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends `request` on a new connection. Returns all bytes that arrive until the server closes it.
async fn ask(address: SocketAddr, request: &str) -> io::Result<String> {
    let conversation = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(LIMIT, conversation).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Returns the message for a program that cannot be found.
pub fn missing(program: &str, package: &str) -> String {
    format!("there is no {program}: install the Debian package {package}, as scripts/test expects it")
}

/// The longest wait for a server, only against hanging.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest wait for one answer of a server that starts: it may accept connections before it
/// answers.
const PROBE: Duration = Duration::from_secs(5);
/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// The exit code of `setpriv` for a missing program.
pub const NOT_FOUND: i32 = 127;
/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";
