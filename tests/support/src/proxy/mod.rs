//! A TCP proxy in front of a server, which does to connections what networks do.

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

use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use connection::{Line, reset_on_close, serve};
use strike::{Kind, Strikes};

/// Listens on a loopback port of its own and passes everything on to one server and back, until told otherwise.
///
/// A fault holds for what is sent after its method has returned. "Connections that exist" are those the proxy has
/// accepted; [`until_open`](Self::until_open) waits for that. When this is dropped all connections are reset, and its
/// tasks end a moment later; [`close`](Self::close) waits for them.
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
        let shared = Arc::<Shared>::default();
        let acceptor = tokio::spawn(accept(listener, upstream, observed, shared.clone()));
        Self { address, control, shared, acceptor }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on everything the server says is delivered that much later, also that it closed. What follows doesn't
    /// wait for it: the delay is one of the way, not of each chunk.
    pub fn delay(&self, delay: Duration) {
        self.control.send_modify(|control| control.delay = delay);
    }

    /// Resets all connections that exist, on both sides.
    pub fn cut(&self) {
        self.control.send_modify(|control| control.cuts += 1);
    }

    /// Whether new connections are reset as soon as they are there, which may be before the client knows that they are.
    /// Those that exist go on.
    pub fn refuse(&self, refuse: bool) {
        self.control.send_modify(|control| control.refusing = refuse);
    }

    /// Once: of the next request with these bytes in it, the server gets what is before the middle of them; then the
    /// connection is reset. So what was sent before it is served, and the request never is.
    pub fn cut_in_request(&self, pattern: impl AsRef<[u8]>) {
        self.shared.strikes.arm(Kind::CutInRequest, pattern.as_ref());
    }

    /// Once: the next request with these bytes in it reaches the server, but from then on no answer on that connection
    /// reaches the client, and soon after the server has said something the connection is reset. A request of more than
    /// 64 KiB may be reset before all of it is there.
    pub fn lose_answer(&self, pattern: impl AsRef<[u8]>) {
        self.shared.strikes.arm(Kind::LoseAnswer, pattern.as_ref());
    }

    /// Whether what [`cut_in_request`](Self::cut_in_request) or [`lose_answer`](Self::lose_answer) announced last has
    /// happened, the reset included.
    pub fn has_struck(&self) -> bool {
        *self.shared.strikes.struck.borrow()
    }

    /// Returns when it has. Panics if that takes long, so that a pattern that is never sent is found.
    pub async fn struck(&self) {
        let mut struck = self.shared.strikes.struck.subscribe();
        let waited = timeout(LIMIT, struck.wait_for(|struck| *struck)).await;
        assert!(waited.is_ok(), "no strike within {LIMIT:?}: {:?}", self.shared.strikes);
    }

    /// All connections that exist go silent in both directions for good: what is sent gets lost, also that a side
    /// closed, as when a firewall forgot them. Only a [`cut`](Self::cut) ends that. New connections pass.
    pub fn half_open(&self) {
        self.control.send_modify(|control| control.silences += 1);
    }

    /// Like [`half_open`](Self::half_open), also for new connections, but until [`heal`](Self::heal): then what was
    /// sent meanwhile, also that a side closed, arrives late and complete, as after TCP's retransmissions. What arrived
    /// here but had not been delivered yet waits as well.
    ///
    /// New connections are accepted, since on this machine it is the kernel that does so; the server sees them, and
    /// what they sent, after the healing.
    pub fn stall(&self) {
        self.control.send_modify(|control| control.stalled = true);
    }

    /// Ends all that can end: a stall, the refusal of connections, the delay (what is on its way stays late), a strike that
    /// has not happened yet.
    pub fn heal(&self) {
        self.shared.strikes.disarm();
        self.control.send_modify(|control| {
            control.stalled = false;
            control.refusing = false;
            control.delay = Duration::ZERO;
        });
    }

    /// How many connections clients have open. One that is half open or stalled counts until its client has closed it.
    pub fn open(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// Returns when exactly so many are open. Panics if that takes long.
    pub async fn until_open(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        let waited = timeout(LIMIT, open.wait_for(|open| *open == count)).await;
        assert!(waited.is_ok(), "not {count} connections within {LIMIT:?} but {}", self.open());
    }

    /// How many connections clients have opened, those that were refused among them.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes the server was given.
    pub fn to_server(&self) -> u64 {
        self.shared.to_server.load(Ordering::SeqCst)
    }

    /// How many bytes clients were given.
    pub fn to_clients(&self) -> u64 {
        self.shared.to_clients.load(Ordering::SeqCst)
    }

    /// Resets all connections, listens no more and returns when all tasks have ended. Whoever counts tasks still has to do
    /// so until it is right: tokio tells of the end of a task just before it stops counting it.
    pub async fn close(self) {
        drop(self.control);
        self.acceptor.await.expect("the proxy doesn't panic");
    }
}

/// What is wanted of connections. A count, against what it was when a connection was accepted, says whether the
/// connection existed when something was done to all of them.
#[derive(Debug, Default, Clone, Copy)]
struct Control {
    cuts: u64,
    silences: u64,
    stalled: bool,
    refusing: bool,
    delay: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    open: watch::Sender<usize>,
    accepted: AtomicU64,
    to_server: AtomicU64,
    to_clients: AtomicU64,
    strikes: Strikes,
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

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    mut control: watch::Receiver<Control>,
    shared: Arc<Shared>,
) {
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
                    connections.spawn(serve(client, upstream, line, Open::new(shared.clone())));
                }
            }
        }
    }
    drop(listener);
    // They see it, too.
    while let Some(ended) = connections.join_next().await {
        ended.expect("a connection doesn't panic");
    }
}

/// How long a test waits for something to happen.
const LIMIT: Duration = Duration::from_secs(20);
