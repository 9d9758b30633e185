use std::{fs, io, net::SocketAddr, path::Path, process::Command, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{Kind, LIMIT, POLL, RedisServer, Server, missing};

/// A sentinel of one master, which it calls `mymaster`.
pub type RedisSentinel = Server<Sentinel>;

#[derive(Debug)]
pub struct Sentinel {
    master: SocketAddr,
}

impl RedisSentinel {
    /// Starts three sentinels, of which two must agree that the master is down. Returns when they
    /// know each other and the master's replica.
    pub async fn start_three(master: &RedisServer) -> [Self; 3] {
        let start = async || Self::launch(Sentinel { master: master.address() }).await;
        let sentinels = [start().await, start().await, start().await];
        for sentinel in &sentinels {
            sentinel
                .until(|state| {
                    ["num-slaves\r\n$1\r\n1\r\n", "num-other-sentinels\r\n$1\r\n2\r\n"]
                        .iter()
                        .all(|known| state.contains(known))
                })
                .await;
        }
        sentinels
    }

    /// Waits until the state of the master, as `SENTINEL MASTER` tells it, is as wanted.
    async fn until(&self, wanted: impl Fn(&str) -> bool) {
        let started = Instant::now();
        loop {
            let state = self.ask("SENTINEL MASTER mymaster").await;
            if wanted(&state) {
                return;
            }
            assert!(started.elapsed() < LIMIT, "{state}\n{}", self.log());
            sleep(POLL).await;
        }
    }

    /// Makes a server the master, as an administrator does, unless it is the master.
    pub async fn make_master(&self, server: &RedisServer) {
        let port = format!("\r\n{}\r\n", server.address().port());
        let started = Instant::now();
        while !self.ask("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster").await.contains(&port) {
            // It is refused while the sentinel does not know yet that the replica is fit.
            let answer = self.ask("SENTINEL FAILOVER mymaster").await;
            assert!(started.elapsed() < LIMIT, "{answer}\n{}", self.log());
            sleep(POLL).await;
        }
    }

    /// Executes a command. Returns the raw answer, in RESP.
    pub async fn ask(&self, command: &str) -> String {
        let answer = ask(self.address(), command).await;
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Returns the URL for clients.
    pub fn endpoint(&self) -> String {
        format!("redis://{}", self.address())
    }
}

impl Kind for Sentinel {
    const PROGRAM: &'static str = "redis-server";
    const PORTS: usize = 1;

    fn missing(&self) -> String {
        missing(Self::PROGRAM, "redis-server")
    }

    fn arguments(&self, command: &mut Command, data: &Path, ports: &[u16]) {
        let file = data.join("sentinel.conf");
        // The sentinel writes its state into it.
        if !file.exists() {
            let (port, master) = (ports[0], self.master.port());
            // Sentinels ping once a second. After a second without an answer they would take a new
            // master for dead, and promote the one before again.
            let settings = format!(
                "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor mymaster 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds mymaster 3000\nsentinel failover-timeout mymaster 5000\n",
                data.display()
            );
            fs::write(&file, settings).expect("the settings can be written");
        }
        command.arg(file).arg("--sentinel");
    }

    async fn is_ready(&self, address: SocketAddr) -> bool {
        ask(address, "PING").await.is_ok()
    }
}

/// Sentinels know no `QUIT`, so a `PING` marks the end of the answer.
async fn ask(address: SocketAddr, command: &str) -> io::Result<String> {
    let conversation = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{command}\r\nPING\r\n").as_bytes()).await?;
        let mut answer = String::new();
        while !answer.ends_with(PONG) {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => answer += &String::from_utf8_lossy(&buffer[..length]),
            }
        }
        answer.truncate(answer.len() - PONG.len());
        Ok(answer)
    };
    timeout(LIMIT, conversation).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

const PONG: &str = "+PONG\r\n";
