//! Real servers on free loopback ports, for as long as a test runs.

mod etcd;
#[cfg(feature = "kube")]
mod kube;
mod ports;
mod redis;
mod redis_cluster;
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
    etcd::EtcdServer, redis::RedisServer, redis_cluster::RedisCluster, zookeeper::ZookeeperServer,
};
use ports::Port;

/// What one kind of server differs in from the others.
pub trait Kind {
    /// What it is called.
    const PROGRAM: &'static str;
    /// How many ports it needs. Clients connect to the first.
    const PORTS: usize;

    /// What is run.
    fn program(&self) -> PathBuf {
        Self::PROGRAM.into()
    }

    /// What to say if it is not there.
    fn missing(&self) -> String;

    /// Adds the arguments. `data` exists and is empty, or as the server left it.
    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]);

    /// Whether clients at `address` are served.
    fn is_ready(&self, address: SocketAddr) -> impl Future<Output = bool> + Send;
}

/// A server process with its data, its log and its ports. It is killed when this is dropped, and when the test dies.
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
    /// Starts a server with an empty data directory and returns when it serves.
    async fn launch(kind: K) -> Self {
        let mut server = Self { kind, directory: folder(), ports: Vec::new(), process: None };
        for _ in 0..5 {
            server.ports = (0..K::PORTS).map(|_| Port::reserve()).collect();
            match server.run().await {
                Ok(()) => return server,
                // Some other program was faster than the server.
                Err(log) if log.to_lowercase().contains("address already in use") => {
                    server.directory = folder();
                }
                Err(log) => server.fail(&log),
            }
        }
        panic!("{}: five times a port that was free got taken", K::PROGRAM);
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0].number).into()
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
        if let Err(log) = self.run().await {
            self.fail(&log);
        }
    }

    /// Kills the server, if it still runs, and deletes its data, so that the next [`restart`](Self::restart) is from
    /// nothing.
    pub fn forget(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).expect("the data can be deleted");
    }

    /// SIGSTOP: connections stay open, but nobody answers. Returns when all threads have stopped, which takes a moment.
    pub fn pause(&self) {
        self.signal("-STOP");
        let started = Instant::now();
        while !self.is_stopped() {
            assert!(started.elapsed() < LIMIT, "{} does not stop", K::PROGRAM);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT, after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// What the server said since it was first started.
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

    /// Runs the server and returns when it serves; if it doesn't, with its log.
    async fn run(&mut self) -> Result<(), String> {
        let data = self.data();
        // etcd complains of data that others can read.
        DirBuilder::new().recursive(true).mode(0o700).create(&data).expect("a directory for the data");
        let output =
            File::options().create(true).append(true).open(self.log_file()).expect("the log is writable");
        let errors = output.try_clone().expect("a second handle to the log");
        // `setpriv` asks the kernel to kill the server when its parent dies, which needs no `unsafe` here, and then
        // becomes the server, so that the process id stays the same.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.kind.program());
        let ports: Vec<_> = self.ports.iter().map(|port| port.number).collect();
        self.kind.arguments(&mut command, &data, &ports);
        let process = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        self.process =
            Some(process.unwrap_or_else(|error| panic!("cannot run setpriv (util-linux): {error}")));

        let started = Instant::now();
        while started.elapsed() < LIMIT {
            // Ask only once the port is its own: another program that listens there would answer instead.
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

    /// Whether one of the process's files is a listening socket of its first port (proc(5)).
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
        // The folder is gone if the process is.
        let files = fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    }

    /// Whether each thread is in state `T`, the word after the name in parentheses (proc(5)).
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

/// Sends `request` on a new connection and returns all that comes until the server closes it.
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

/// What to say of a program that cannot be found.
pub fn missing(program: &str, package: &str) -> String {
    format!("there is no {program}: install the Debian package {package}, as scripts/test expects it")
}

/// The longest wait for a server, only against hanging.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest wait for one answer of a server that starts: it may accept connections before it answers.
const PROBE: Duration = Duration::from_secs(5);
/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// What `setpriv` exits with when there is no such program.
pub const NOT_FOUND: i32 = 127;
/// A listening socket's state in `/proc/net/tcp`.
const LISTEN: &str = "0A";
