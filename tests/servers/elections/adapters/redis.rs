//! The Redis elector, compared with ethpandaops' `leaderelection`.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::time::sleep;
use writerlease::{
    election::{ElectionError, Elector, Event, Leadership},
    redis::{RedisElector, RedisElectorBuilder},
    store::StoreError,
};

use writerlease_test_support::{proxy::Proxy, server::RedisServer};

use crate::states::{
    assert_config, at_best, ensure, event, follows, interrupted, leads, nowhere, reaches, soon, token, until,
};

const KEY: &str = "tests/election";
const COUNTER: &str = "tests/election:token";
const TTL: Duration = Duration::from_millis(300);
/// Longer than a test waits, so that no effect in time comes from an expiry.
const LONG_TTL: Duration = Duration::from_secs(60);

fn builder(server: &RedisServer, identity: &str) -> RedisElectorBuilder {
    RedisElector::builder(server.endpoint(), KEY).identity(identity).ttl(TTL)
}

async fn candidate(server: &RedisServer, identity: &str) -> RedisElector {
    builder(server, identity).start().await.expect("valid settings")
}

/// Reads the key's value.
async fn value(server: &RedisServer) -> Option<String> {
    server.ask(&format!("GET {KEY}")).await.lines().nth(1).map(str::to_owned)
}

async fn number(server: &RedisServer, command: &str) -> i64 {
    let answer = server.ask(command).await;
    answer.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{command}: {answer}"))
}

/// Counts the scripts that the server ran.
async fn scripts(server: &RedisServer) -> u64 {
    let stats = server.ask("INFO commandstats").await;
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).expect("some were")
}

/// The calls of callbacks: the callback's number, and whether the candidate leads.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<(usize, bool)>>>);

impl Calls {
    fn callback(&self, number: usize) -> impl Fn(bool) + Send + Sync + 'static {
        let calls = self.clone();
        move |leads| calls.0.lock().push((number, leads))
    }

    async fn until(&self, expected: &[(usize, bool)]) {
        until(&format!("{expected:?}"), async || self.0.lock().len() >= expected.len()).await;
        assert_eq!(*self.0.lock(), expected);
    }
}

#[tokio::test]
async fn invalid_settings_are_named_with_their_rule() {
    let url = format!("redis://{}", nowhere());
    let builder = |key: &str| RedisElector::builder(url.as_str(), key);
    assert_config(builder("").start().await, "key", "\"\"", "not empty");
    assert_config(builder("k").ttl(Duration::from_millis(29)).start().await, "ttl", "29ms", "at least 30ms");
    let long = builder("k").ttl(Duration::MAX).start().await;
    assert_config(long, "ttl", &format!("{:?}", Duration::MAX), "at most 31536000s");
    let never = builder("k").request_timeout(Duration::ZERO).start().await;
    assert_config(never, "request_timeout", "0ns", "longer than zero");
    for (interval, text) in [(0, "0ns"), (1, "1ns"), (9_999_999, "9.999999ms"), (151_000_000, "151ms")] {
        let bad = builder("k").ttl(TTL).renewal_interval(Duration::from_nanos(interval)).start().await;
        assert_config(bad, "renewal_interval", text, "at least 10ms and at most half of the ttl, 150ms");
    }
    let never = builder("k").renewal_interval(Duration::MAX).start().await;
    assert_config(never, "renewal_interval", &format!("{:?}", Duration::MAX), "at most half of the ttl, 5s");
    let nonsense = RedisElector::builder("nonsense", "k").start().await;
    assert!(matches!(nonsense, Err(ElectionError::Store(StoreError::Invalid { .. }))), "{nonsense:?}");
}

#[tokio::test]
async fn defaults_are_those_that_the_setters_state() {
    let server = RedisServer::start().await;
    let default =
        async || RedisElector::builder(server.endpoint(), KEY).start().await.expect("valid settings");
    let (first, second) = (default().await, default().await);
    assert_ne!(first.identity(), second.identity());
    assert!(!first.identity().is_empty() && !second.identity().is_empty());
    until("one leads", async || first.is_leader() || second.is_leader()).await;
    let left = async || number(&server, &format!("PTTL {KEY}")).await;
    let (leader, other) = if first.is_leader() { (first, second) } else { (second, first) };
    assert!(value(&server).await.is_some_and(|value| value.starts_with(leader.identity())));
    follows(&other, leader.identity()).await;
    at_best("the key lasts ten seconds, and is renewed after a third", async || {
        let (mut before, mut after) = (left().await, left().await);
        while after <= before {
            sleep(Duration::from_millis(10)).await;
            (before, after) = (after, left().await);
        }
        assert!(after <= 10_000, "renewed to {after} ms");
        // A pause of the machine between the looks makes it look like an earlier renewal.
        let renewed = after >= 9_000 && (6_000..=6_700).contains(&before);
        ensure(renewed, || format!("renewed from {before} to {after} ms"))
    })
    .await;
    // An empty identity is replaced as well.
    assert!(!builder(&server, "").start().await.expect("valid settings").identity().is_empty());
}

#[tokio::test]
async fn leaders_renew_at_the_renewal_interval() {
    let server = RedisServer::start().await;
    let (ttl, interval) = (Duration::from_secs(2), Duration::from_millis(100));
    let elector = builder(&server, "one").ttl(ttl).renewal_interval(interval).start().await;
    let elector = elector.expect("valid settings");
    at_best("the key never loses a quarter of its time", async || {
        leads(&elector).await;
        let mut least = i64::MAX;
        for _ in 0..10 {
            sleep(Duration::from_millis(70)).await;
            least = least.min(number(&server, &format!("PTTL {KEY}")).await);
        }
        ensure(least > 1500, || format!("{least} ms were left"))
    })
    .await;
}

#[tokio::test]
async fn longest_renewal_interval_keeps_the_leadership() {
    let server = RedisServer::start().await;
    let ttl = Duration::from_secs(1);
    at_best("the leader never retires", async || {
        let elector = builder(&server, "one").ttl(ttl).renewal_interval(ttl / 2).start().await;
        let elector = elector.expect("valid settings");
        leads(&elector).await;
        let (old_token, mut events) = (token(&elector), elector.events());
        assert!(matches!(soon(events.next()).await, Some(Event::Elected { .. })));
        let next = tokio::time::timeout(4 * ttl, events.next()).await;
        ensure(next.is_err() && token(&elector) == old_token, || format!("{next:?}"))
    })
    .await;
}

#[tokio::test]
async fn longest_request_timeout_elects() {
    let server = RedisServer::start().await;
    let elector = builder(&server, "one").request_timeout(Duration::MAX).start().await;
    leads(&elector.expect("valid settings")).await;
}

#[tokio::test]
async fn former_leaders_back_off() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let url = format!("redis://{}", proxy.address());
    let elector = RedisElector::builder(url, KEY).ttl(TTL).start().await.expect("valid settings");
    leads(&elector).await;
    proxy.refuse(true);
    proxy.cut();
    sleep(Duration::from_secs(5)).await;
    let before = proxy.accepted();
    sleep(Duration::from_secs(10)).await;
    let connections = proxy.accepted() - before;
    println!("{connections} connections within 10 s");
    assert!(connections <= 20, "{connections}");
}

#[tokio::test]
async fn cut_off_after_each_success_backs_off() {
    let server = RedisServer::start().await;
    let proxy = Arc::new(Proxy::start(server.address()).await);
    let url = format!("redis://{}", proxy.address());
    let cutter = proxy.clone();
    // Long after the first success on each connection, and soon by the pauses of a reconnection.
    let cut_off = tokio::spawn(async move {
        loop {
            if cutter.open() > 0 {
                sleep(Duration::from_millis(50)).await;
                cutter.cut();
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    let elector = RedisElector::builder(url, KEY).start().await.expect("valid settings");
    leads(&elector).await;
    let before = proxy.accepted();
    sleep(Duration::from_secs(10)).await;
    let connections = proxy.accepted() - before;
    println!("{connections} connections within 10 s");
    cut_off.abort();
    assert!(connections <= 20, "{connections}");
}

#[tokio::test]
async fn start_does_not_wait_for_a_server() {
    let mut server = RedisServer::start().await;
    server.kill();
    let elector = soon(builder(&server, "one").start()).await.expect("valid settings");
    interrupted(&mut elector.events(), |_| true).await;
    server.restart().await;
    leads(&elector).await;
}

#[tokio::test]
async fn callbacks_run_in_order_of_registration() {
    let server = RedisServer::start().await;
    let calls = Calls::default();
    let mut builder = builder(&server, "one");
    for number in 0..3 {
        builder = builder.on_leadership_change(calls.callback(number));
    }
    let elector = builder.start().await.expect("valid settings");
    let mut expected = Vec::new();
    for _ in 0..2 {
        expected.extend((0..3).map(|number| (number, true)));
        calls.until(&expected).await;
        elector.resign().await.expect("it serves");
        expected.extend((0..3).map(|number| (number, false)));
    }
    expected.extend((0..3).map(|number| (number, true)));
    calls.until(&expected).await;
    elector.close().await;
    expected.extend((0..3).map(|number| (number, false)));
    assert_eq!(*calls.0.lock(), expected, "the last ones before close returns");
}

#[tokio::test]
async fn candidate_that_never_led_makes_no_callback() {
    let server = RedisServer::start().await;
    leads(&candidate(&server, "first").await).await;
    server.ask(&format!("SET {KEY} foreign")).await;
    let calls = Calls::default();
    let builder = builder(&server, "one").on_leadership_change(calls.callback(0));
    let elector = builder.start().await.expect("valid settings");
    follows(&elector, "foreign").await;
    elector.close().await;
    assert_eq!(*calls.0.lock(), []);
}

#[tokio::test]
async fn slow_callbacks_delay_only_close() {
    let server = RedisServer::start().await;
    // Long enough that a busy machine renews in time.
    let ttl = Duration::from_secs(1);
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let callback = {
        let (begun, ended) = (begun.clone(), ended.clone());
        move |_| {
            begun.fetch_add(1, Ordering::SeqCst);
            thread::sleep(ttl);
            ended.fetch_add(1, Ordering::SeqCst);
        }
    };
    let builder = builder(&server, "one")
        .ttl(ttl)
        .on_leadership_change(callback.clone())
        .on_leadership_change(callback);
    let elector = builder.start().await.expect("valid settings");
    leads(&elector).await;
    let (old_token, mut events) = (token(&elector), elector.events());
    let second = candidate(&server, "second").await;
    follows(&second, "one").await;
    until("both have returned", async || ended.load(Ordering::SeqCst) == 2).await;
    assert_eq!(token(&elector), old_token);
    assert!(!second.is_leader());
    elector.close().await;
    assert_eq!((begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (4, 4));
    // The other candidates do not wait for that.
    assert!(second.is_leader());
    let mut told = Vec::new();
    while let Some(event) = soon(events.next()).await {
        told.push(event);
    }
    let [Event::Elected { .. }, Event::Retired { .. }, Event::Failed(_)] = &told[..] else {
        panic!("{told:?}")
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_may_close_their_elector() {
    let server = RedisServer::start().await;
    let own: Arc<OnceLock<Arc<RedisElector>>> = Arc::default();
    let (elector, runtime) = (own.clone(), tokio::runtime::Handle::current());
    let (closed, closes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (ended, after) = (closed.clone(), closes.clone());
    let builder = builder(&server, "one")
        .on_leadership_change(move |leads| {
            if !leads {
                let elector = elector.get().expect("it was started");
                runtime.block_on(async { tokio::join!(elector.close(), elector.close()) });
                ended.fetch_add(1, Ordering::SeqCst);
            }
        })
        .on_leadership_change(move |leads| {
            after.fetch_add(usize::from(!leads), Ordering::SeqCst);
        });
    let first = Arc::new(builder.start().await.expect("valid settings"));
    let _ = own.set(first.clone());
    leads(&*first).await;
    first.resign().await.expect("it serves");
    soon(first.close()).await;
    let counts = (closed.load(Ordering::SeqCst), closes.load(Ordering::SeqCst));
    assert_eq!(counts, (1, 1), "others wait for the last callback");
}

#[tokio::test]
async fn panicking_callbacks_stop_no_others() {
    let server = RedisServer::start().await;
    let calls = Calls::default();
    let builder = builder(&server, "one")
        .on_leadership_change(calls.callback(0))
        .on_leadership_change(|leads| panic!("told that we lead: {leads}"))
        .on_leadership_change(calls.callback(2));
    let elector = builder.start().await.expect("valid settings");
    calls.until(&[(0, true), (2, true)]).await;
    leads(&elector).await;
    soon(elector.close()).await;
    assert_eq!(*calls.0.lock(), [(0, true), (2, true), (0, false), (2, false)]);
}

#[tokio::test]
async fn only_slow_callbacks_are_logged() {
    let server = RedisServer::start().await;
    // On a busy machine any callback may be slow.
    at_best("only the slow callback is logged", async || {
        let log = Log::default();
        // All tasks of this test run on this thread, and no other test does.
        let _log = tracing::subscriber::set_default(log.clone());
        let builder = builder(&server, "one")
            .on_leadership_change(|_| {})
            .on_leadership_change(|_| thread::sleep(Duration::from_millis(150)));
        let elector = builder.start().await.expect("valid settings");
        leads(&elector).await;
        elector.close().await;
        let lines = log.0.lock().clone();
        let slow: Vec<_> = lines.iter().filter(|line| line.contains("a callback is slow")).collect();
        let expected = slow.iter().all(|line| line.starts_with("WARN") && line.contains("number=1"));
        ensure(slow.len() == 2 && expected, || format!("{lines:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_flush_gives_the_leader_a_greater_token() {
    let server = RedisServer::start().await;
    let elector = builder(&server, "one").ttl(LONG_TTL).start().await.expect("valid settings");
    leads(&elector).await;
    for flush in ["FLUSHALL", "FLUSHDB", "FLUSHALL"] {
        let old = token(&elector);
        let flushed = Instant::now();
        server.ask(flush).await;
        let anew = |state: &Leadership| state.fence().is_some_and(|fence| fence.token() > old);
        reaches(&elector, "it is elected anew", anew).await;
        println!("{flush}: elected anew after {:?}", flushed.elapsed());
        assert!(value(&server).await.is_some_and(|value| value.starts_with("one/")));
    }
}

#[tokio::test]
async fn leaders_retire_when_their_key_is_overwritten() {
    let server = RedisServer::start().await;
    let elector = builder(&server, "one").ttl(LONG_TTL).start().await.expect("valid settings");
    leads(&elector).await;
    let mut events = elector.events();
    server.ask(&format!("SET {KEY} foreign PX 60000")).await;
    let overwritten = Instant::now();
    event(&mut events, |event| matches!(event, Event::Retired { .. }).then_some(())).await;
    follows(&elector, "foreign").await;
    println!("retired {:?} after the key was overwritten", overwritten.elapsed());
    let left = number(&server, &format!("PTTL {KEY}")).await;
    assert!(left <= 60_000, "the key was renewed: {left} ms");
    elector.resign().await.expect("it serves");
    assert_eq!(value(&server).await.as_deref(), Some("foreign"));
    soon(elector.close()).await;
    assert_eq!(value(&server).await.as_deref(), Some("foreign"));
}

#[tokio::test]
async fn deposed_leaders_leave_the_key_at_close() {
    let server = RedisServer::start().await;
    let elector = candidate(&server, "one").await;
    leads(&elector).await;
    server.ask(&format!("SET {KEY} foreign")).await;
    soon(elector.close()).await;
    assert_eq!(value(&server).await.as_deref(), Some("foreign"));
}

#[tokio::test]
async fn tokens_are_counted_beside_the_key() {
    let server = RedisServer::start().await;
    let elector = candidate(&server, "one").await;
    leads(&elector).await;
    let fence = elector.fence().expect("it leads");
    assert_eq!(server.ask(&format!("GET {COUNTER}")).await.lines().nth(1), Some(&*fence.token().to_string()));
    assert_eq!(value(&server).await.expect("it is there").as_bytes(), fence.proof());
    elector.close().await;
    assert_eq!(value(&server).await, None);
    let left = number(&server, &format!("TTL {COUNTER}")).await;
    assert!((24 * 3600 - 60..=24 * 3600).contains(&left), "{left} s");
    // Tokens also grow beyond the server's clock.
    server.ask(&format!("SET {COUNTER} 4000000000000000")).await;
    let next = candidate(&server, "next").await;
    leads(&next).await;
    assert_eq!(token(&next), 4_000_000_000_000_001);
}

#[tokio::test]
async fn foreign_keys_are_waited_for() {
    let server = RedisServer::start().await;
    server.ask(&format!("SET {KEY} foreign")).await;
    let elector = candidate(&server, "one").await;
    follows(&elector, "foreign").await;
    sleep(2 * TTL).await;
    assert_eq!(value(&server).await.as_deref(), Some("foreign"));
    let set = Instant::now();
    server.ask(&format!("SET {KEY} other PX 1000")).await;
    follows(&elector, "other").await;
    leads(&elector).await;
    assert!(set.elapsed() >= Duration::from_secs(1), "{:?}", set.elapsed());
    elector.close().await;

    server.ask(&format!("SET {KEY} foreign")).await;
    let patient = builder(&server, "two").ttl(LONG_TTL).start().await.expect("valid settings");
    follows(&patient, "foreign").await;
    let deleted = Instant::now();
    server.ask(&format!("DEL {KEY}")).await;
    leads(&patient).await;
    println!("leads {:?} after the key was deleted", deleted.elapsed());
}

#[tokio::test]
async fn longer_keys_do_not_matter() {
    let server = RedisServer::start().await;
    let elector = builder(&server, "one").ttl(LONG_TTL).start().await.expect("valid settings");
    leads(&elector).await;
    let second = builder(&server, "second").ttl(LONG_TTL).start().await.expect("valid settings");
    follows(&second, "one").await;
    let (old_token, before) = (token(&elector), scripts(&server).await);
    for round in 0..50 {
        server.ask(&format!("SET {KEY}{round} x")).await;
        server.ask(&format!("DEL {KEY}{round}")).await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(scripts(&server).await, before);
    assert_eq!(token(&elector), old_token);
    // It reacts to its own key.
    server.ask(&format!("DEL {KEY}")).await;
    let anew = async || (elector.is_leader() && token(&elector) > old_token) || second.is_leader();
    until("somebody is elected", anew).await;
}

/// The lines of the log, with their fields.
#[derive(Clone, Default)]
pub struct Log(pub Arc<Mutex<Vec<String>>>);

struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
