//! A TCP proxy in front of a server, which causes the faults of networks.

mod connection;
mod pump;
mod strike;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use connection::{Line, reset_on_close, serve};
use strike::{Kind, Strikes};

/// Listens on a loopback port and passes all bytes on to one server and back, unless a fault is
/// active.
///
/// A fault affects the bytes sent after its method has returned. "Existing connections" are those
/// that the proxy has accepted; [`until_open`](Self::until_open) waits for that. Dropping the proxy
/// resets all connections, and its tasks end a moment later; [`close`](Self::close) waits for them.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    /// Connections end when it is dropped.
    control: watch::Sender<Control>,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to a server.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let (control, observed) = watch::channel(Control::default());
        let shared = Arc::new(Shared::to(upstream));
        let acceptor = tokio::spawn(accept(listener, observed, shared.clone()));
        Self { address, control, shared, acceptor }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Delays everything that the server sends from now on, including the end of a connection.
    /// Delayed bytes do not hold up those behind them: the delay is that of the path, and not of
    /// each chunk.
    pub fn delay(&self, delay: Duration) {
        self.control.send_modify(|control| control.delay = delay);
    }

    /// Resets all existing connections, on both sides.
    pub fn cut(&self) {
        self.control.send_modify(|control| control.cuts += 1);
    }

    /// Sets whether new connections are reset as soon as they are accepted, possibly before the
    /// client sees them established. Existing connections go on.
    pub fn refuse(&self, refuse: bool) {
        self.control.send_modify(|control| control.refusing = refuse);
    }

    /// Leads new connections to another server. Existing connections go on.
    pub fn lead_to(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock() = upstream;
    }

    /// Cuts the next request that contains these bytes, once: the server gets everything before
    /// their middle, then the connection is reset. The server serves what was sent before, but not
    /// this request.
    pub fn cut_in_request(&self, pattern: impl AsRef<[u8]>) {
        self.shared.strikes.arm(Kind::CutInRequest, pattern.as_ref());
    }

    /// Loses the answer to the next request that contains these bytes, once: the request reaches
    /// the server, but from then on no answer on that connection reaches the client. The connection
    /// is reset soon after the server has sent something. A request of more than 64 KiB may be
    /// reset before the server has all of it.
    pub fn lose_answer(&self, pattern: impl AsRef<[u8]>) {
        self.shared.strikes.arm(Kind::LoseAnswer, pattern.as_ref());
    }

    /// Returns whether the last strike, of [`cut_in_request`](Self::cut_in_request) or
    /// [`lose_answer`](Self::lose_answer), has happened, including the reset.
    pub fn has_struck(&self) -> bool {
        *self.shared.strikes.struck.borrow()
    }

    /// Waits until it has happened. Panics after a long wait, which reveals a pattern that is never
    /// sent.
    pub async fn struck(&self) {
        let mut struck = self.shared.strikes.struck.subscribe();
        let waited = timeout(LIMIT, struck.wait_for(|struck| *struck)).await;
        assert!(waited.is_ok(), "no strike within {LIMIT:?}: {:?}", self.shared.strikes);
    }

    /// Silences all existing connections in both directions for good: all bytes are lost, and so is
    /// the end of a connection, as if a firewall had forgotten them. Only a [`cut`](Self::cut) ends
    /// that. New connections work.
    pub fn half_open(&self) {
        self.control.send_modify(|control| control.silences += 1);
    }

    /// Holds up all connections, including new ones, until [`heal`](Self::heal). Then everything
    /// that was sent meanwhile, including the end of a connection, arrives late and complete, as
    /// after TCP's retransmissions. Bytes that the proxy had received but not delivered wait as
    /// well.
    ///
    /// New connections are accepted, because on the same machine the kernel does that. The server
    /// sees them, and the bytes they sent, after the healing.
    pub fn stall(&self) {
        self.control.send_modify(|control| control.stalled = true);
    }

    /// Ends a stall, the refusal of connections, the delay (of later bytes), and a strike that has
    /// not happened yet.
    pub fn heal(&self) {
        self.shared.strikes.disarm();
        self.control.send_modify(|control| {
            control.stalled = false;
            control.refusing = false;
            control.delay = Duration::ZERO;
        });
    }

    /// Returns the number of connections that clients have open. A half-open or stalled one counts
    /// until its client has closed it.
    pub fn open(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// Waits until exactly `count` connections are open. Panics after a long wait.
    pub async fn until_open(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        let waited = timeout(LIMIT, open.wait_for(|open| *open == count)).await;
        assert!(waited.is_ok(), "not {count} connections within {LIMIT:?} but {}", self.open());
    }

    /// Returns the number of connections that clients have opened, including refused ones.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Returns the number of bytes delivered to the server.
    pub fn to_server(&self) -> u64 {
        self.shared.to_server.load(Ordering::SeqCst)
    }

    /// Returns the number of bytes delivered to clients.
    pub fn to_clients(&self) -> u64 {
        self.shared.to_clients.load(Ordering::SeqCst)
    }

    /// Resets all connections, stops listening, and returns when all tasks have ended. tokio
    /// reports the end of a task a moment before it stops counting the task.
    pub async fn close(self) {
        drop(self.control);
        self.acceptor.await.expect("the proxy doesn't panic");
    }
}

/// The state requested of connections. A connection compares a count with its value when the
/// connection was accepted: if it has grown, the fault hit the connection.
#[derive(Debug, Default, Clone, Copy)]
struct Control {
    cuts: u64,
    silences: u64,
    stalled: bool,
    refusing: bool,
    delay: Duration,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    open: watch::Sender<usize>,
    accepted: AtomicU64,
    to_server: AtomicU64,
    to_clients: AtomicU64,
    strikes: Strikes,
}

impl Shared {
    fn to(upstream: SocketAddr) -> Self {
        Self {
            upstream: Mutex::new(upstream),
            open: watch::Sender::default(),
            accepted: AtomicU64::default(),
            to_server: AtomicU64::default(),
            to_clients: AtomicU64::default(),
            strikes: Strikes::default(),
        }
    }
}

/// A connection that its client has open.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

async fn accept(listener: TcpListener, mut control: watch::Receiver<Control>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            changed = control.changed() => if changed.is_err() { break },
            Some(ended) = connections.join_next() => ended.expect("a connection doesn't panic"),
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("connections can be accepted");
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                let line = Line::new(control.clone(), shared.clone());
                if line.refused() {
                    reset_on_close(&client);
                } else {
                    let upstream = *shared.upstream.lock();
                    connections.spawn(serve(client, upstream, line, Open::new(shared.clone())));
                }
            }
        }
    }
    drop(listener);
    // They see the end of `control` as well.
    while let Some(ended) = connections.join_next().await {
        ended.expect("a connection doesn't panic");
    }
}

/// The longest wait, only against hanging.
const LIMIT: Duration = Duration::from_secs(20);
