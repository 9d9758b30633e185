use std::{fs, net::SocketAddr, path::Path, process::Command};

use super::{Kind, Server, ask, missing};

/// A ZooKeeper server on its own, without an ensemble.
///
/// Sessions last from 200 ms to ten minutes, whatever a client asks for, and end up to a tick (100 ms) later than they
/// should. They survive a restart: their time begins anew then.
pub type ZookeeperServer = Server<Zookeeper>;

#[derive(Debug)]
pub struct Zookeeper;

impl ZookeeperServer {
    /// Starts a server with an empty data directory and returns when it serves.
    pub async fn start() -> Self {
        Self::launch(Zookeeper).await
    }

    /// Where clients connect to.
    pub fn endpoint(&self) -> String {
        self.address().to_string()
    }

    /// Does one of the "four letter words": `ruok`, `srvr`, `stat`, `cons`, `mntr`, `wchs` or `dump`.
    pub async fn ask(&self, word: &str) -> String {
        ask(self.address(), word).await.unwrap_or_else(|error| panic!("{word}: {error}"))
    }

    /// How many clients the server thinks it has.
    pub async fn connections(&self) -> usize {
        // One of them is ours.
        self.ask("cons").await.matches("(queued=").count() - 1
    }

    /// How many watches it thinks there are.
    pub async fn watches(&self) -> usize {
        let figures = self.ask("wchs").await;
        let figure = figures.lines().find_map(|line| line.strip_prefix("Total watches:"));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no watches in\n{figures}"))
    }

    /// How many sessions it thinks are alive, those without a connection among them.
    pub async fn sessions(&self) -> usize {
        let figures = self.ask("mntr").await;
        let figure = figures.lines().find_map(|line| line.strip_prefix("zk_global_sessions\t"));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no sessions in\n{figures}"))
    }
}

impl Kind for Zookeeper {
    const PROGRAM: &'static str = "java";
    const PORTS: usize = 1;

    fn missing(&self) -> String {
        missing(Self::PROGRAM, "default-jre-headless")
    }

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        assert!(Path::new(JAR).exists(), "{}", missing(JAR, "zookeeper"));
        let settings = data.with_file_name("zoo.cfg");
        let text = format!(
            "dataDir={}\n\
             clientPort={}\n\
             clientPortAddress=127.0.0.1\n\
             tickTime=100\n\
             minSessionTimeout=200\n\
             maxSessionTimeout=600000\n\
             maxClientCnxns=0\n\
             admin.enableServer=false\n\
             4lw.commands.whitelist=ruok,srvr,stat,cons,mntr,wchs,dump\n",
            data.display(),
            ports[0]
        );
        fs::write(&settings, text).expect("the settings can be written");
        command.args(["-Xmx256m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        // A killed one would leave its file behind in /tmp.
        command.arg("-XX:-UsePerfData");
        // The log is flushed to the kernel before a write is acknowledged also without this, so it survives a killed
        // process (FileTxnLog.commit); only a killed machine would lose it.
        command.arg("-Dzookeeper.forceSync=no");
        // The first names the jars that it needs in its manifest; the second writes the log to stderr.
        command.args(["-cp", &format!("{JAR}:/usr/share/java/slf4j-simple.jar")]);
        command.arg("org.apache.zookeeper.server.ZooKeeperServerMain").arg(settings);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        // `ruok` is answered before anybody is served; this one only says so then.
        let answer = ask(address, "mntr").await;
        answer.is_ok_and(|answer| answer.contains("zk_server_state\tstandalone"))
    }
}

const JAR: &str = "/usr/share/java/zookeeper.jar";
