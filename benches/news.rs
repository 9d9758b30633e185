//! The time from a foreign write until the lease knows of it, beside the time until the server's
//! own notice of the same write arrives: `cargo bench -p writerlease-benches --features servers
//! --bench news`.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use writerlease::{
    EnsureOutcome, Guard, WatchState, WriterLease,
    store::{Expected, Store},
};

const WRITES: u32 = 300;

/// Measures one engine. `notices` yields the time of arrival of each bare notice of a change of the
/// key.
async fn measure<S: Store>(engine: &str, writer: S, reader: S, mut notices: UnboundedReceiver<Instant>) {
    let lease = WriterLease::builder(engine).term(Duration::from_secs(3600)).spawn().expect("valid settings");
    let guard = Guard::new(reader, lease.clone(), "news/").expect("a runtime");
    let mut statuses = lease.subscribe();
    statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.expect("the lease lives");
    // A follower with a long backoff, so that it only listens.
    for _ in 0..8 {
        lease.extend(&"elsewhere".into());
    }
    let mut expected = Expected::Absent;
    let (mut bare, mut told) = (Vec::new(), Vec::new());
    for round in 0..WRITES {
        let value = round.to_string();
        let want = value.clone();
        let ensured =
            guard.ensure("key", move |current| (current != Some(want.as_bytes())).then(|| want.clone()));
        let begin = Instant::now();
        let version =
            writer.put("news/key", value.into(), expected, None).await.expect("no other client writes");
        let ending = ensured.await;
        let end = Instant::now();
        assert!(matches!(ending, EnsureOutcome::ByOther), "{ending:?}");
        expected = Expected::Version(version);
        bare.push(notices.recv().await.expect("a notice") - begin);
        told.push(end - begin);
        // Between writes the connections are idle, as in a controller.
        tokio::time::sleep(Duration::from_millis(2)).await;
        while notices.try_recv().is_ok() {}
    }
    let (bare, told) = (median(bare), median(told));
    let ratio = told.as_secs_f64() / bare.as_secs_f64();
    println!("{engine:<10} bare notice {bare:>10.1?}   extend {told:>10.1?}   x {ratio:.2}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn etcd() {
    use writerlease::etcd::EtcdStore;

    let server = writerlease_test_support::server::EtcdServer::start().await;
    let mut client = etcd_client::Client::connect([server.endpoint()], None).await.expect("a client");
    let mut watch = client.watch("news/key", None).await.expect("a watch");
    let (sender, notices) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(message)) = watch.message().await {
            if !message.events().is_empty() {
                let _ = sender.send(Instant::now());
            }
        }
    });
    let store = async || EtcdStore::connect([server.endpoint()]).await.expect("a valid endpoint");
    measure("etcd", store().await, store().await, notices).await;
}

async fn redis() {
    use writerlease::redis::RedisStore;

    let server = writerlease_test_support::server::RedisServer::start().await;
    let (sender, notices) = tokio::sync::mpsc::unbounded_channel();
    let push = move |push: redis::PushInfo| {
        if push.kind == redis::PushKind::Invalidate {
            let _ = sender.send(Instant::now());
        }
        Ok::<(), redis::aio::SendError>(())
    };
    let client = redis::Client::open(format!("{}?protocol=resp3", server.endpoint())).expect("a valid URL");
    let config = redis::AsyncConnectionConfig::new().set_push_sender(push);
    let mut connection =
        client.get_multiplexed_async_connection_with_config(&config).await.expect("a connection");
    let mut tracking = redis::cmd("CLIENT");
    tracking.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg("news/");
    let _: String = tracking.query_async(&mut connection).await.expect("tracking is on");
    let store = || RedisStore::new(server.endpoint()).expect("a valid URL");
    measure("redis", store(), store(), notices).await;
}

async fn zookeeper() {
    use writerlease::zookeeper::{ZookeeperAccess, ZookeeperStore};
    use zookeeper_client::{AddWatchMode, Client};

    let server = writerlease_test_support::server::ZookeeperServer::start().await;
    let client = Client::connect(&server.endpoint()).await.expect("a session");
    let mut watcher = client.watch("/bench", AddWatchMode::PersistentRecursive).await.expect("a watch");
    let (sender, notices) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            // Only changes of the key: the first write also creates the base path.
            if watcher.changed().await.path.ends_with("key") {
                let _ = sender.send(Instant::now());
            }
        }
    });
    let store = || ZookeeperStore::new(&server.endpoint(), "/bench", ZookeeperAccess::open());
    let store = || store().expect("a valid address");
    measure("zookeeper", store(), store(), notices).await;
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        etcd().await;
        redis().await;
        zookeeper().await;
    });
}
