use std::{fs, net::SocketAddr, path::Path, process::Command};

use super::{Kind, Server, ask, missing};

/// A ZooKeeper server on its own, without an ensemble.
///
/// Sessions last from 200 ms to ten minutes, regardless of the client's request, and end up to a
/// tick (100 ms) late. They survive a restart, and their time begins anew.
pub type ZookeeperServer = Server<Zookeeper>;

#[derive(Debug, Default)]
pub struct Zookeeper {
    settings: String,
    options: Vec<String>,
}

impl ZookeeperServer {
    /// Starts a server with an empty data directory. Returns when it serves.
    pub async fn start() -> Self {
        Self::launch(Zookeeper::default()).await
    }

    /// Starts a server with further lines of its settings file, which outrank those before, and
    /// further options of its virtual machine.
    pub async fn start_with(settings: impl Into<String>, options: &[String]) -> Self {
        Self::launch(Zookeeper { settings: settings.into(), options: options.to_vec() }).await
    }

    /// Starts a server that also serves TLS, at another address, by a certificate of its own.
    pub async fn start_with_tls() -> Self {
        let settings = "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                        secureClientPort={second port}\n\
                        ssl.keyStore.location={folder}/keys.p12\n\
                        ssl.keyStore.password=secret\n\
                        ssl.clientAuth=none";
        Self::launch(Zookeeper { settings: settings.into(), options: Vec::new() }).await
    }

    /// Returns the address for clients with TLS, as text.
    pub fn tls_endpoint(&self) -> String {
        format!("tcp+tls://localhost:{}", self.ports[1].number)
    }

    /// Returns the certificate of the server with TLS, in PEM.
    pub fn certificate(&self) -> String {
        fs::read_to_string(self.directory.path().join("certificate.pem")).expect("it serves TLS")
    }

    /// Kills the server and starts it again with further lines of its settings file.
    pub async fn restart_with(&mut self, settings: impl Into<String>) {
        self.kind.settings = settings.into();
        self.restart().await;
    }

    /// Returns the address for clients, as text.
    pub fn endpoint(&self) -> String {
        self.address().to_string()
    }

    /// Kills the server and copies its data away. Starts it again.
    pub async fn back_up(&mut self) {
        self.kill();
        copy(&self.data(), &self.data().with_extension("backup"));
        self.restart().await;
    }

    /// Kills the server and puts the data of the backup in place of its own. Starts it again.
    pub async fn restore(&mut self) {
        self.forget();
        copy(&self.data().with_extension("backup"), &self.data());
        self.restart().await;
    }

    /// Returns the number of requests that it received.
    pub async fn requests(&self) -> u64 {
        let figures = self.ask("mntr").await;
        let figure = figures.lines().find_map(|line| line.strip_prefix("zk_packets_received\t"));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no requests in\n{figures}"))
    }

    /// Executes one of the "four letter words": `ruok`, `srvr`, `stat`, `cons`, `mntr`, `wchs` or
    /// `dump`.
    pub async fn ask(&self, word: &str) -> String {
        ask(self.address(), word).await.unwrap_or_else(|error| panic!("{word}: {error}"))
    }

    /// Returns the number of clients that the server counts.
    pub async fn connections(&self) -> usize {
        // Without the connection of this request.
        self.ask("cons").await.matches("(queued=").count() - 1
    }

    /// Returns the number of watches that it counts.
    pub async fn watches(&self) -> usize {
        let figures = self.ask("wchs").await;
        let figure = figures.lines().find_map(|line| line.strip_prefix("Total watches:"));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no watches in\n{figures}"))
    }

    /// Returns the number of live sessions that it counts, including those without a connection.
    pub async fn sessions(&self) -> usize {
        let figures = self.ask("mntr").await;
        let figure = figures.lines().find_map(|line| line.strip_prefix("zk_global_sessions\t"));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no sessions in\n{figures}"))
    }
}

impl Kind for Zookeeper {
    const PROGRAM: &'static str = "java";
    const PORTS: usize = 2;

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
             4lw.commands.whitelist=ruok,srvr,stat,cons,mntr,wchs,dump\n{}\n",
            data.display(),
            ports[0],
            self.settings
        );
        let folder = data.parent().expect("the data has a folder of its own");
        let text = text.replace("{second port}", &ports[1].to_string());
        let text = text.replace("{folder}", &folder.display().to_string());
        fs::write(&settings, &text).expect("the settings can be written");
        if text.contains("keys.p12") && !folder.join("keys.p12").exists() {
            create_certificate(folder);
        }
        command.args(&self.options);
        command.args(["-Xmx256m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        // A killed server would leave this file behind in /tmp.
        command.arg("-XX:-UsePerfData");
        // Even so the log is flushed to the kernel before a write is acknowledged
        // (FileTxnLog.commit): it survives a killed process, but not a killed machine.
        command.arg("-Dzookeeper.forceSync=no");
        // The manifest of the first jar names all that it needs; the second jar writes the log to
        // stderr.
        let installed = || format!("{JAR}:/usr/share/java/slf4j-simple.jar:{NETTY}");
        // `scripts/matrix` names the jars of another version.
        command.args(["-cp", &std::env::var("WRITERLEASE_CLASSPATH").unwrap_or_else(|_| installed())]);
        command.arg("org.apache.zookeeper.server.ZooKeeperServerMain").arg(settings);
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        // A server answers `ruok` before it serves clients, but reports this state only when it
        // does.
        let answer = ask(address, "mntr").await;
        answer.is_ok_and(|answer| answer.contains("zk_server_state\tstandalone"))
    }
}

/// Creates a key with a certificate for `localhost`, and writes the certificate to another file.
fn create_certificate(folder: &Path) {
    let names = ["-dname", "CN=localhost", "-ext", "san=dns:localhost", "-keyalg", "EC", "-validity", "1000"];
    for command in [&["-genkeypair"][..], &["-exportcert", "-rfc", "-file", "certificate.pem"]] {
        let mut keytool = Command::new("keytool");
        keytool.current_dir(folder).args(command).args(["-keystore", "keys.p12", "-storetype", "PKCS12"]);
        keytool.args(["-alias", "server", "-storepass", "secret"]);
        if command.len() == 1 {
            keytool.args(names);
        }
        let output = keytool.output().expect("the Java runtime has keytool");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-r", "--"]).args([from, to]).status();
    assert!(copied.expect("cp can be run").success());
}

const JAR: &str = "/usr/share/java/zookeeper.jar";
/// The first jar forgets to name this one, which only a server with TLS needs.
const NETTY: &str = "/usr/share/java/netty-codec.jar";
