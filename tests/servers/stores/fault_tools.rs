//! Tests of the tools of the fault tests: the proxy and the real servers.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use writerlease_test_support::{
    proxy::Proxy,
    server::{EtcdServer, RedisCluster, RedisServer, ZookeeperServer},
};

/// The longest wait, only against hanging: nothing below takes nearly as long.
const LONG: Duration = Duration::from_secs(20);
/// The time after which something that has not arrived counts as held up. A busy machine can only
/// hide a failure.
const WHILE: Duration = Duration::from_millis(200);

mod proxy {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_and_closing_pass_both_ways() {
        let (proxy, mut server) = proxied().await;
        let mut client = connect(&proxy).await;
        say(&mut client, "hello").await;
        let mut peer = server.recv().await.unwrap();
        hear(&mut peer, "hello").await;
        say(&mut peer, "hi").await;
        hear(&mut client, "hi").await;
        assert_eq!((proxy.open(), proxy.accepted()), (1, 1));

        client.shutdown().await.unwrap();
        assert_ended(&mut peer).await;
        say(&mut peer, "and bye").await;
        drop(peer);
        hear(&mut client, "and bye").await;
        assert_ended(&mut client).await;
        assert_eq!((proxy.to_server(), proxy.to_clients()), (5, 9));
        proxy.until_open(0).await;
        assert_eq!(proxy.accepted(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn megabytes_arrive_complete_and_in_order() {
        let proxy = Proxy::start(echo().await).await;
        let mut client = connect(&proxy).await;
        let sent: Vec<u8> = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut heard = vec![0; sent.len()];
        let (mut reader, mut writer) = client.split();
        let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut heard));
        wrote.and(read.map(drop)).unwrap();
        assert!(sent == heard);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn delay_holds_up_each_answer_on_its_own() {
        const ANSWERS: u8 = 200;
        let proxy = Proxy::start(echo().await).await;
        let mut client = connect(&proxy).await;
        exchange(&mut client, "before").await;
        let delay = Duration::from_millis(500);
        proxy.delay(delay);
        let (mut reader, mut writer) = client.split();
        let started = Instant::now();
        let speak = async {
            let mut sent = Vec::new();
            for i in 0..ANSWERS {
                sent.push(Instant::now());
                writer.write_all(&[i]).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
            sent
        };
        let listen = async {
            let mut heard = Vec::new();
            for i in 0..ANSWERS {
                assert_eq!(reader.read_u8().await.unwrap(), i);
                heard.push(Instant::now());
            }
            heard
        };
        let (sent, heard) = tokio::join!(speak, listen);
        for (sent, heard) in sent.iter().zip(heard) {
            assert!(heard - *sent >= delay, "after {:?}", heard - *sent);
        }
        // One after the other the delays would add up to 100 s, far more than a busy machine adds.
        assert!(started.elapsed() < delay * u32::from(ANSWERS) / 2, "{:?}", started.elapsed());

        proxy.delay(2 * LONG);
        proxy.heal();
        exchange(&mut client, "after").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cut_resets_both_sides_of_existing_connections_only() {
        let (proxy, mut server) = proxied().await;
        let (mut one, mut its_peer) = pair(&proxy, &mut server).await;
        let (mut other, mut others_peer) = pair(&proxy, &mut server).await;
        proxy.cut();
        for stream in [&mut one, &mut its_peer, &mut other, &mut others_peer] {
            assert_reset(stream).await;
        }
        proxy.until_open(0).await;
        let mut client = connect(&proxy).await;
        say(&mut client, "again").await;
        hear(&mut server.recv().await.unwrap(), "again").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_sent_after_a_cut_never_arrive() {
        let (proxy, mut server) = proxied().await;
        for _ in 0..500 {
            let (mut client, mut peer) = pair(&proxy, &mut server).await;
            proxy.cut();
            // It fails if the reset has arrived already.
            let _ = client.write_all(b"late").await;
            assert_reset(&mut peer).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn refusal_resets_new_connections_only() {
        let proxy = Proxy::start(echo().await).await;
        let mut old = connect(&proxy).await;
        exchange(&mut old, "before").await;
        proxy.refuse(true);
        assert_refused(&proxy).await;
        exchange(&mut old, "meanwhile").await;
        proxy.refuse(false);
        exchange(&mut connect(&proxy).await, "after").await;
        assert_eq!(proxy.accepted(), 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn request_is_cut_in_its_middle_once() {
        let (proxy, mut server) = proxied().await;
        let (mut client, mut peer) = pair(&proxy, &mut server).await;
        proxy.cut_in_request("write");
        say(&mut client, "read 1, ").await;
        hear(&mut peer, "read 1, ").await;
        assert!(!proxy.has_struck());
        say(&mut client, "read 2, write 3, read 4").await;
        proxy.struck().await;
        assert!(proxy.has_struck());
        assert_eq!(proxy.open(), 0);
        hear(&mut peer, "read 2, wr").await;
        assert_reset(&mut client).await;
        assert_reset(&mut peer).await;

        let mut client = connect(&proxy).await;
        say(&mut client, "write 3").await;
        hear(&mut server.recv().await.unwrap(), "write 3").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn request_in_pieces_is_found() {
        let (proxy, mut server) = proxied().await;
        let (mut client, mut peer) = pair(&proxy, &mut server).await;
        proxy.cut_in_request("write");
        say(&mut client, "wri").await;
        hear(&mut peer, "wri").await;
        say(&mut client, "te").await;
        proxy.struck().await;
        assert_eq!(proxy.to_server(), 3);
        assert_reset(&mut peer).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn request_whose_answer_is_lost_arrives() {
        let (proxy, mut server) = proxied().await;
        let (mut client, mut peer) = pair(&proxy, &mut server).await;
        say(&mut client, "read").await;
        hear(&mut peer, "read").await;
        say(&mut peer, "value").await;
        hear(&mut client, "value").await;

        proxy.lose_answer("write");
        say(&mut client, "a write").await;
        hear(&mut peer, "a write").await;
        assert!(timeout(WHILE, proxy.struck()).await.is_err(), "the server has not answered yet");
        say(&mut peer, "done").await;
        proxy.struck().await;
        assert_reset(&mut client).await;
        assert_reset(&mut peer).await;
        assert_eq!(proxy.to_clients(), "value".len() as u64);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn healing_disarms_a_strike() {
        let proxy = Proxy::start(echo().await).await;
        let mut client = connect(&proxy).await;
        proxy.lose_answer("write");
        proxy.heal();
        exchange(&mut client, "write").await;
        assert!(!proxy.has_struck());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn half_open_connections_stay_silent_even_when_closed() {
        let (proxy, mut server) = proxied().await;
        let (mut client, mut peer) = pair(&proxy, &mut server).await;
        let (leaving, mut left) = pair(&proxy, &mut server).await;
        proxy.half_open();
        say(&mut client, "lost").await;
        say(&mut peer, "lost").await;
        drop(leaving);
        proxy.until_open(1).await;
        let mut new = connect(&proxy).await;
        say(&mut new, "passes").await;
        hear(&mut server.recv().await.unwrap(), "passes").await;

        proxy.heal();
        for stream in [&mut client, &mut peer, &mut left] {
            assert_silent(stream).await;
        }
        drop(peer);
        assert_silent(&mut client).await;
        proxy.cut();
        assert_reset(&mut client).await;
        assert_reset(&mut left).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_sent_into_a_stall_arrive_after_healing() {
        let (proxy, mut server) = proxied().await;
        let (mut client, mut peer) = pair(&proxy, &mut server).await;
        let (mut leaving, mut left) = pair(&proxy, &mut server).await;
        proxy.stall();
        say(&mut client, "late").await;
        say(&mut peer, "late too").await;
        say(&mut leaving, "bye").await;
        drop(leaving);
        let mut new = connect(&proxy).await;
        say(&mut new, "hello").await;
        proxy.until_open(2).await;
        for stream in [&mut client, &mut peer, &mut left, &mut new] {
            assert_silent(stream).await;
        }
        assert!(server.try_recv().is_err(), "the server has not seen the new connection");

        proxy.heal();
        hear(&mut peer, "late").await;
        hear(&mut client, "late too").await;
        hear(&mut left, "bye").await;
        assert_ended(&mut left).await;
        hear(&mut server.recv().await.unwrap(), "hello").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn stalled_connection_can_be_cut() {
        let (proxy, mut server) = proxied().await;
        let (mut old, mut peer) = pair(&proxy, &mut server).await;
        proxy.stall();
        let mut new = connect(&proxy).await;
        proxy.until_open(2).await;
        proxy.cut();
        for stream in [&mut old, &mut new, &mut peer] {
            assert_reset(stream).await;
        }
        proxy.until_open(0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_server_connections_are_reset() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let proxy = Proxy::start(nobody).await;
        assert_refused(&proxy).await;
        proxy.until_open(0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropped_proxy_resets_everything_and_leaves_no_task() {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let before = tasks();
        for close in [false, true] {
            let proxy = Proxy::start(upstream.local_addr().unwrap()).await;
            let mut streams = Vec::new();
            for fault in [Proxy::half_open, |proxy: &Proxy| proxy.delay(LONG), Proxy::stall] {
                streams.push(connect(&proxy).await);
                streams.push(upstream.accept().await.unwrap().0);
                fault(&proxy);
                say(streams.last_mut().unwrap(), "lost, on its way or held up").await;
            }
            streams.push(connect(&proxy).await);
            proxy.until_open(4).await;
            let address = proxy.address();
            if close {
                proxy.close().await;
                let refused = TcpStream::connect(address).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no socket listens any more");
            } else {
                drop(proxy);
            }
            for stream in &mut streams {
                assert_reset(stream).await;
            }
            // tokio stops counting a task a moment after it has woken those that wait for the task.
            let gone = async {
                while tasks() > before || TcpStream::connect(address).await.is_ok() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(LONG, gone).await.expect("all tasks end");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_executes_unanswered_but_no_cut_requests() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.address()).await;
        proxy.cut_in_request("written");
        let mut client = connect(&proxy).await;
        say(&mut client, &resp(&["SET", "written", "1"])).await;
        assert_reset(&mut client).await;
        proxy.struck().await;
        assert_eq!(server.ask("GET written").await, "$-1\r\n");

        proxy.lose_answer("written");
        let mut client = connect(&proxy).await;
        say(&mut client, &resp(&["SET", "written", "1"])).await;
        assert_reset(&mut client).await;
        proxy.struck().await;
        assert_eq!(server.ask("GET written").await, "$1\r\n1\r\n");
        assert_eq!(server.connections().await, 0);
    }

    async fn assert_refused(proxy: &Proxy) {
        match TcpStream::connect(proxy.address()).await {
            Ok(mut stream) => assert_reset(&mut stream).await,
            // The reset arrived before the connection was established here.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    /// Starts a proxy in front of a server that hands out its side of each connection.
    async fn proxied() -> (Proxy, mpsc::UnboundedReceiver<TcpStream>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await;
        let (accepted, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if accepted.send(stream).is_err() {
                    break;
                }
            }
        });
        (proxy, connections)
    }

    /// Returns a connection and the server's side of it.
    async fn pair(proxy: &Proxy, server: &mut mpsc::UnboundedReceiver<TcpStream>) -> (TcpStream, TcpStream) {
        let client = connect(proxy).await;
        (client, timeout(LONG, server.recv()).await.expect("the server sees it").unwrap())
    }

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        address
    }

    async fn exchange(client: &mut TcpStream, text: &str) {
        say(client, text).await;
        hear(client, text).await;
    }

    fn resp(command: &[&str]) -> String {
        let words = command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        format!("*{}\r\n{}", command.len(), words.collect::<String>())
    }
}

mod server {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn etcd_keeps_acknowledged_writes_until_forget() {
        let mut server = EtcdServer::start().await;
        // Base64 of "key" and "value".
        let (put, get) = (r#"{"key":"a2V5","value":"dmFsdWU="}"#, r#"{"key":"a2V5"}"#);
        assert!(etcd(&server, "put", put).await.contains("revision"));
        server.kill();
        server.restart().await;
        assert!(etcd(&server, "range", get).await.contains("dmFsdWU="));
        server.pause();
        assert!(timeout(WHILE, etcd(&server, "range", get)).await.is_err());
        server.resume();
        assert!(etcd(&server, "range", get).await.contains("dmFsdWU="));
        server.forget();
        server.restart().await;
        assert!(!etcd(&server, "range", get).await.contains("dmFsdWU="));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_keeps_acknowledged_writes_until_forget() {
        let mut server = RedisServer::start().await;
        assert_eq!(server.endpoint(), format!("redis://127.0.0.1:{}", server.address().port()));
        for i in 0..100 {
            assert_eq!(server.ask(&format!("SET key:{i} {i}")).await, "+OK\r\n");
        }
        server.kill();
        server.restart().await;
        assert_eq!(server.ask("DBSIZE").await, ":100\r\n");
        let mut client = open(server.address()).await;
        server.pause();
        say(&mut client, "GET key:7\r\n").await;
        assert_silent(&mut client).await;
        server.resume();
        hear(&mut client, "$1\r\n7\r\n").await;
        assert_eq!(server.connections().await, 1);
        server.forget();
        assert_ended(&mut client).await;
        server.restart().await;
        assert_eq!(server.ask("DBSIZE").await, ":0\r\n");
        assert_eq!(server.connections().await, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_runs_with_more_settings() {
        let mut server = RedisServer::start_with(["--requirepass", "secret", "--maxmemory", "2mb"]).await;
        let mut stranger = open(server.address()).await;
        say(&mut stranger, "GET key\r\n").await;
        hear(&mut stranger, "-NOAUTH").await;
        assert!(server.ask("CONFIG GET maxmemory").await.contains("2097152"));
        server.restart().await;
        assert!(server.ask("SET key value").await.starts_with("+OK"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_replica_follows_its_master() {
        let master = RedisServer::start().await;
        master.ask("SET key before").await;
        let replica = RedisServer::start_replica_of(&master).await;
        assert_eq!(replica.ask("GET key").await, "$6\r\nbefore\r\n");
        assert!(replica.ask("SET key mine").await.starts_with("-READONLY"));
        master.ask("SET key after").await;
        until(async || replica.ask("GET key").await == "$5\r\nafter\r\n").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_cluster_serves_keys_only_with_all_masters() {
        let mut cluster = RedisCluster::start().await;
        for key in ["a", "b", "c"] {
            let owner = cluster.owner(key).await;
            for (i, node) in cluster.nodes.iter().enumerate() {
                let answer = node.ask(&format!("SET {key} value")).await;
                assert!(answer.starts_with(if i == owner { "+OK" } else { "-MOVED" }), "{answer}");
            }
        }
        let [victim, other] = [cluster.owner("a").await, cluster.owner("b").await];
        assert_ne!(victim, other);
        cluster.nodes[victim].kill();
        let down = async || cluster.nodes[other].ask("GET b").await.starts_with("-CLUSTERDOWN");
        until(down).await;
        cluster.nodes[victim].restart().await;
        cluster.complete().await;
        assert_eq!(cluster.nodes[victim].ask("GET a").await, "$5\r\nvalue\r\n");
        assert_eq!(cluster.nodes[other].ask("GET b").await, "$5\r\nvalue\r\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn zookeeper_keeps_acknowledged_writes_until_forget() {
        let mut server = ZookeeperServer::start().await;
        assert_eq!(server.endpoint(), server.address().to_string());
        let mut session = zookeeper::Session::start(server.address(), LONG).await;
        for i in 0..100 {
            assert_eq!(session.create(&format!("/key-{i}")).await, zookeeper::OK);
        }
        assert_eq!((server.connections().await, server.sessions().await), (1, 1));
        server.kill();
        server.restart().await;
        let mut session = zookeeper::Session::start(server.address(), LONG).await;
        for i in 0..100 {
            assert_eq!(session.create(&format!("/key-{i}")).await, zookeeper::NODE_EXISTS);
        }
        assert_eq!(server.sessions().await, 2, "the session of the dead connection was kept as well");

        server.pause();
        session.ask_to_create("/paused").await;
        assert!(timeout(WHILE, session.answer()).await.is_err());
        server.resume();
        assert_eq!(session.answer().await, zookeeper::OK);
        server.forget();
        server.restart().await;
        let mut session = zookeeper::Session::start(server.address(), LONG).await;
        assert_eq!(session.create("/key-0").await, zookeeper::OK);
        assert_eq!(server.sessions().await, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn zookeeper_ends_a_session_silent_for_its_timeout() {
        let server = ZookeeperServer::start().await;
        // A server with the default tick would grant more.
        let asked = Duration::from_millis(400);
        let started = Instant::now();
        let session = zookeeper::Session::start(server.address(), asked).await;
        assert_eq!(session.timeout, asked);
        until(async || server.sessions().await == 0).await;
        assert!(started.elapsed() > asked, "after {:?}", started.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn server_that_cannot_start_shows_its_log() {
        let start = tokio::spawn(RedisServer::start_with(["--no-such-setting", "yes"]));
        let panic = start.await.unwrap_err().into_panic();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("redis-server") && message.contains("no-such-setting"), "{message}");
    }

    /// Sends a request to the gateway that speaks JSON.
    async fn etcd(server: &EtcdServer, method: &str, body: &str) -> String {
        let mut stream = open(server.address()).await;
        let head = format!("POST /v3/kv/{method} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        say(&mut stream, &(head + body)).await;
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.expect("etcd answers").unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        answer
    }

    async fn until(condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, waiting).await.expect("the condition holds in time");
    }

    /// The part of ZooKeeper's protocol that shows whether a write was kept.
    mod zookeeper {
        use super::*;

        pub const OK: i32 = 0;
        pub const NODE_EXISTS: i32 = -110;

        pub struct Session {
            stream: TcpStream,
            pub timeout: Duration,
            requests: i32,
        }

        impl Session {
            pub async fn start(server: SocketAddr, timeout: Duration) -> Self {
                let mut stream = open(server).await;
                // Protocol version, last transaction seen, timeout, session, password.
                let mut request = [0; 12].to_vec();
                request.extend((timeout.as_millis() as i32).to_be_bytes());
                request.extend([0; 8]);
                text(&mut request, &"\0".repeat(16));
                send(&mut stream, &request).await;
                let granted = int(&receive(&mut stream).await[4..]);
                Self { stream, timeout: Duration::from_millis(granted as u64), requests: 0 }
            }

            /// Returns the error code.
            pub async fn create(&mut self, path: &str) -> i32 {
                self.ask_to_create(path).await;
                self.answer().await
            }

            /// Requests a node without data and without access control.
            pub async fn ask_to_create(&mut self, path: &str) {
                self.requests += 1;
                let mut request = [self.requests, 1].map(i32::to_be_bytes).concat();
                text(&mut request, path);
                text(&mut request, "");
                request.extend([1, 31].map(i32::to_be_bytes).concat());
                text(&mut request, "world");
                text(&mut request, "anyone");
                request.extend(0i32.to_be_bytes());
                send(&mut self.stream, &request).await;
            }

            pub async fn answer(&mut self) -> i32 {
                let answer = receive(&mut self.stream).await;
                assert_eq!(int(&answer), self.requests, "the answers are in order");
                int(&answer[12..])
            }
        }

        async fn send(stream: &mut TcpStream, request: &[u8]) {
            stream.write_all(&[&(request.len() as i32).to_be_bytes(), request].concat()).await.unwrap();
        }

        async fn receive(stream: &mut TcpStream) -> Vec<u8> {
            let receiving = async {
                let mut answer = vec![0; stream.read_i32().await? as usize];
                stream.read_exact(&mut answer).await?;
                std::io::Result::Ok(answer)
            };
            timeout(LONG, receiving).await.expect("ZooKeeper answers").unwrap()
        }

        fn text(request: &mut Vec<u8>, text: &str) {
            request.extend((text.len() as i32).to_be_bytes());
            request.extend(text.as_bytes());
        }

        fn int(bytes: &[u8]) -> i32 {
            i32::from_be_bytes(bytes[..4].try_into().unwrap())
        }
    }
}

async fn connect(proxy: &Proxy) -> TcpStream {
    open(proxy.address()).await
}

async fn open(address: SocketAddr) -> TcpStream {
    timeout(LONG, TcpStream::connect(address)).await.expect("a connection").unwrap()
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn hear(stream: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    timeout(LONG, stream.read_exact(&mut heard)).await.expect("bytes arrive").unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

async fn read(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    let read = timeout(LONG, stream.read(&mut [0])).await.expect("the other side acts");
    read.map_err(|error| error.kind())
}

async fn assert_ended(stream: &mut TcpStream) {
    assert_eq!(read(stream).await, Ok(0));
}

async fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(read(stream).await, Err(ErrorKind::ConnectionReset));
}

async fn assert_silent(stream: &mut TcpStream) {
    let read = timeout(WHILE, stream.read(&mut [0])).await;
    assert!(read.is_err(), "{read:?}");
}
