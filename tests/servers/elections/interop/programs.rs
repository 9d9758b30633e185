//! Candidates of other implementations, as processes.

use std::{
    io::ErrorKind,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

use writerlease_test_support::server::{EtcdServer, NOT_FOUND, RedisServer, ZookeeperServer, missing};

use crate::{engines::ELECTION, states::LONG};

/// A process that reads and writes lines. It is killed when this is dropped or the test dies.
pub struct Program {
    name: &'static str,
    /// The Debian package of the program.
    package: &'static str,
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts `etcdctl elect`, which prints its key and its proposal when it leads.
    pub fn elect(server: &EtcdServer, proposal: &str) -> Self {
        Self::etcdctl(server, &["elect", ELECTION, proposal])
    }

    /// Starts `etcdctl elect --listen`, which prints the key and the proposal of each leader.
    pub fn listen(server: &EtcdServer) -> Self {
        Self::etcdctl(server, &["elect", "--listen", ELECTION])
    }

    fn etcdctl(server: &EtcdServer, arguments: &[&str]) -> Self {
        let mut command = dying_with_us("etcdctl");
        // An argument would clash with the environment's value, which etcdctl refuses.
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", server.endpoint()).args(arguments);
        Self::run("etcdctl", "etcd-client", command)
    }

    /// Starts a process with kazoo's `Lock`.
    pub fn kazoo(server: &ZookeeperServer, identifier: &str) -> Self {
        let mut command = python("kazoo_lock.py");
        command.args([&server.endpoint(), ELECTION, identifier]);
        Self::run("kazoo for /usr/bin/python3", "python3-kazoo", command)
    }

    /// Starts a process with Curator's `LeaderLatch`, which prints when it leads and when no more.
    pub fn curator(server: &ZookeeperServer, identity: &str) -> Self {
        let jars =
            ["curator-recipes", "curator-framework", "curator-client", "guava", "zookeeper", "slf4j-nop"];
        let jars = jars.map(|jar| format!("/usr/share/java/{jar}.jar")).join(":");
        let mut command = dying_with_us("java");
        command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", &jars]);
        command.arg(script("curator_latch.java")).args([&server.endpoint(), ELECTION, identity]);
        Self::run(
            "java with its compiler and Curator",
            "default-jdk-headless, libcurator-recipes-java",
            command,
        )
    }

    /// Starts a process with redis-py's `Lock`; the key expires after `seconds`, if given.
    pub fn redis_py(server: &RedisServer, seconds: Option<u64>) -> Self {
        let address = server.address();
        let mut command = python("redis_lock.py");
        command.args([address.ip().to_string(), address.port().to_string(), ELECTION.to_owned()]);
        command.args(seconds.map(|seconds| seconds.to_string()));
        Self::run("redis-py for /usr/bin/python3", "python3-redis", command)
    }

    fn run(name: &'static str, package: &'static str, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process =
            command.spawn().unwrap_or_else(|error| panic!("cannot run setpriv (util-linux): {error}"));
        let input = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        Self { name, package, process, input, output }
    }

    /// Sends a command and returns its answer.
    pub async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.says().await
    }

    /// Sends a command that may take longer.
    pub async fn tell(&mut self, command: &str) {
        match self.input.write_all(format!("{command}\n").as_bytes()).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.has_ended().await,
            Err(error) => panic!("{}: cannot send {command}: {error}", self.name),
        }
    }

    /// Waits for its next line.
    pub async fn says(&mut self) -> String {
        let line = timeout(LONG, self.output.next_line()).await;
        match line.unwrap_or_else(|_| panic!("{} prints nothing", self.name)).expect("it says text") {
            Some(line) => line,
            None => self.has_ended().await,
        }
    }

    /// Waits until others can see its progress.
    pub async fn reaches(&mut self, what: &str, condition: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !condition().await {
            if self.process.try_wait().expect("it can be waited for").is_some() {
                self.has_ended().await;
            }
            assert!(started.elapsed() < LONG, "waited until {what}");
            sleep(POLL).await;
        }
    }

    /// Checks that it has printed nothing yet.
    pub async fn is_silent(&mut self) {
        if let Ok(line) = timeout(MOMENT, self.output.next_line()).await {
            panic!("{} prints {line:?}", self.name);
        }
    }

    /// Sends SIGINT, on which it may clean up, and waits for its end.
    pub async fn interrupt(mut self) {
        let id = self.process.id().expect("it runs").to_string();
        let status = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(status.expect("kill can be run").success());
        let ended = timeout(LONG, self.process.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end", self.name)).expect("it can be waited for");
    }

    /// Sends SIGKILL, so that it cannot clean up.
    pub async fn kill(mut self) {
        self.process.kill().await.expect("it can be killed");
    }

    async fn has_ended(&mut self) -> ! {
        let status = timeout(LONG, self.process.wait()).await.expect("its output has ended");
        let status = status.expect("it can be waited for");
        assert!(status.code() != Some(NOT_FOUND), "{}", missing(self.name, self.package));
        panic!("{} has ended: {status}", self.name)
    }
}

/// Debian's Python. Another one, without its packages, may come first in `PATH`.
fn python(name: &str) -> Command {
    let mut command = dying_with_us("/usr/bin/python3");
    command.arg(script(name));
    command
}

fn script(name: &str) -> String {
    format!("{}/elections/interop/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// `setpriv` asks the kernel to kill the program when the test dies, and then becomes it.
fn dying_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// How long a program's write may take to become visible.
const MOMENT: Duration = Duration::from_millis(50);
/// The pause between two looks at its progress.
const POLL: Duration = Duration::from_millis(5);
