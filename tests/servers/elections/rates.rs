//! Rates under faults: no adapter connects or logs in haste, whatever goes wrong.
//!
//! Each adapter runs on a thread of its own, so that the lines that it logs can be told apart, and
//! behind a proxy of its own, which counts its connections.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{Event, Metadata, Subscriber, field::Visit, span};
use writerlease::{election::Elector, store::Store};

use crate::engines::{Engine, Etcd, Redis, Voter, Zookeeper};
use crate::states::until;
use writerlease_test_support::proxy::Proxy;

/// The most connections, and the most lines, of one adapter in [`WINDOW`].
const MOST: usize = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// A leader is to be there for a part of the time, and a former leader for the rest.
const TTL: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(50);

macro_rules! on {
    ($($name:ident: $engine:ident),+ $(,)?) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn connections_are_refused() {
                bounded::<$engine>(async |_, proxy| {
                    proxy.refuse(true);
                    proxy.cut();
                }, async |_| {}).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn everything_stalls() {
                bounded::<$engine>(async |_, proxy| proxy.stall(), async |_| {}).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn connections_are_half_open() {
                bounded::<$engine>(async |_, proxy| proxy.half_open(), async |_| {}).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn connections_are_cut_again_and_again() {
                bounded::<$engine>(async |_, _| {}, async |proxy| proxy.cut()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn connections_are_refused_every_other_second() {
                let started = Instant::now();
                bounded::<$engine>(async |_, proxy| proxy.cut(), async |proxy| {
                    proxy.refuse(started.elapsed().as_secs() % 2 == 0);
                }).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn the_permission_is_taken_away() {
                bounded::<$engine>(async |engine, proxy| {
                    engine.deny().await;
                    proxy.cut();
                }, async |_| {}).await;
            }
        }
    )+};
}

on!(etcd: Etcd, etcd_voter: Voter, zookeeper: Zookeeper, redis: Redis);

/// Causes a fault, goes on with it at each poll, and checks the rates of a leader, a follower and a
/// watch.
async fn bounded<E: Engine + Send + Sync + 'static>(
    begin: impl AsyncFn(&E, &Proxy),
    go_on: impl AsyncFn(&Proxy),
) {
    let engine = Arc::new(E::start().await);
    let leader = elector(&engine, "leader").await;
    until("the first one leads", async || leader.is_ready()).await;
    let follower = elector(&engine, "follower").await;
    let watch = Adapter::start("watch", &engine, async |engine, address, ready| {
        let mut watch = Box::pin(engine.store_at(address).await.watch("k/"));
        while watch.next().await.is_some() {
            ready.store(true, SeqCst);
        }
    });
    let adapters = [leader, follower, watch.await];
    for adapter in &adapters {
        until("all are there", async || adapter.is_ready()).await;
    }
    let before = adapters.each_ref().map(|adapter| (adapter.proxy.accepted(), adapter.lines.lock().len()));
    for adapter in &adapters {
        begin(&engine, &adapter.proxy).await;
    }
    // The connections of all polls: their times and numbers.
    let mut connections = adapters.each_ref().map(|_| Vec::new());
    let began = Instant::now();
    while began.elapsed() < 2 * WINDOW {
        for ((adapter, counts), before) in adapters.iter().zip(&mut connections).zip(before) {
            counts.push((Instant::now(), adapter.proxy.accepted() - before.0));
            go_on(&adapter.proxy).await;
        }
        sleep(POLL).await;
    }
    let mut failures = String::new();
    for ((adapter, counts), before) in adapters.iter().zip(&connections).zip(before) {
        let connections = counts.iter().map(|(at, count)| {
            let then = counts.iter().rfind(|(then, _)| *at - *then >= WINDOW);
            count - then.map_or(0, |(_, then)| *then)
        });
        let connections = connections.max().expect("it polled");
        let lines = adapter.lines.lock()[before.1..].to_vec();
        let in_window = |(at, _): &(Instant, String)| {
            lines.iter().filter(|(other, _)| *other <= *at && *at - *other < WINDOW).count()
        };
        let most = lines.iter().map(in_window).max().unwrap_or_default();
        println!("{}: at most {connections} connections and {most} lines in {WINDOW:?}", adapter.name);
        if connections > MOST as u64 || most > MOST {
            let text = lines.iter().fold(String::new(), |text, (_, line)| text + line + "\n");
            let _ = writeln!(failures, "{}: {connections} connections, {most} lines\n{text}", adapter.name);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

async fn elector<E: Engine + Send + Sync + 'static>(engine: &Arc<E>, name: &'static str) -> Adapter {
    Adapter::start(name, engine, async move |engine, address, ready| {
        let elector = engine.candidate_with(address, name, TTL).await;
        let mut leadership = elector.leadership();
        let knows = |state: &writerlease::election::Leadership| {
            state.is_leader() || matches!(state, writerlease::election::Leadership::Follower { .. })
        };
        leadership.wait_for(knows).await.expect("it goes on");
        ready.store(true, SeqCst);
        std::future::pending::<()>().await;
    })
    .await
}

/// An adapter on a thread of its own.
struct Adapter {
    name: &'static str,
    proxy: Proxy,
    lines: Lines,
    ready: Arc<AtomicBool>,
    /// Stops when the sender is gone.
    _stop: tokio::sync::oneshot::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Adapter {
    async fn start<E: Engine + Send + Sync + 'static>(
        name: &'static str,
        engine: &Arc<E>,
        run: impl AsyncFnOnce(Arc<E>, SocketAddr, Arc<AtomicBool>) + Send + 'static,
    ) -> Self {
        let proxy = Proxy::start(engine.address()).await;
        let (lines, ready) = (Lines::default(), Arc::<AtomicBool>::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let log = Log(lines.clone());
        let (engine, address, is_ready) = (engine.clone(), proxy.address(), ready.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            tracing::subscriber::with_default(log, || {
                runtime.expect("a runtime").block_on(async {
                    tokio::select! {
                        () = run(engine, address, is_ready) => panic!("it ended"),
                        _ = stopped => {}
                    }
                });
            });
        });
        Self { name, proxy, lines, ready, _stop: stop, _thread: thread }
    }

    fn is_ready(&self) -> bool {
        self.ready.load(SeqCst)
    }
}

type Lines = Arc<Mutex<Vec<(Instant, String)>>>;

/// Collects the lines of the crate that a program would log at the level of information.
struct Log(Lines);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("writerlease")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{}", event.metadata().level()));
        event.record(&mut line);
        self.0.lock().push((Instant::now(), line.0));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}
