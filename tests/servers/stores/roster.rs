//! The roster on real servers that are killed, that lose their data, and that do not answer.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use writerlease::{
    EnsureOutcome, Guard, Roster, WriterLease,
    etcd::EtcdStore,
    redis::RedisStore,
    store::{Expected, Store},
    zookeeper::{ZookeeperAccess, ZookeeperStore},
};
use writerlease_test_support::server::{EtcdServer, Kind, RedisServer, Server, ZookeeperServer};

const SECOND: Duration = Duration::from_secs(1);
/// A limit that only a hang reaches.
const LONG: Duration = Duration::from_secs(60);

fn replica<S: Store>(store: S, name: &str) -> Guard<S> {
    let lease = WriterLease::builder(name).spawn().expect("a runtime");
    let guard = Guard::new(store, lease, "status/").expect("the only guard");
    guard.join(Roster::new("roster").name(name)).expect("the settings are right");
    guard
}

/// Writes a key with a value that nobody wrote before.
async fn work<S: Store>(guard: &Guard<S>, key: &str) {
    let ending = guard.ensure(key, |current| current.is_none().then_some("there")).await;
    assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
}

/// Waits until exactly these are on the roster, of the replicas named one, two and three.
async fn until_members_are<S: Store>(store: &S, expected: &[&str]) {
    let start = Instant::now();
    loop {
        let mut members = Vec::new();
        for name in ["one", "two", "three"] {
            match store.get(&format!("roster/{name}")).await {
                Ok(Some(_)) => members.push(name),
                Ok(None) => {}
                Err(error) => println!("{name}: {error}"),
            }
        }
        if members == expected {
            return;
        }
        assert!(start.elapsed() < LONG, "{members:?} instead of {expected:?}");
        sleep(SECOND / 20).await;
    }
}

async fn roster_is_kept<K: Kind, S: Store>(mut server: Server<K>, store: impl AsyncFn(&Server<K>) -> S) {
    let observer = store(&server).await;
    let (one, two) = (replica(store(&server).await, "one"), replica(store(&server).await, "two"));
    work(&one, "a").await;
    work(&two, "b").await;
    until_members_are(&observer, &["one", "two"]).await;

    server.restart().await;
    let three = replica(store(&server).await, "three");
    work(&three, "c").await;
    until_members_are(&observer, &["one", "two", "three"]).await;
    one.lease().shutdown(LONG).await;
    until_members_are(&observer, &["two", "three"]).await;

    // A roster that is lost is joined again with the next job.
    server.forget();
    server.restart().await;
    let start = Instant::now();
    for round in 0.. {
        let keys = [format!("two-{round}"), format!("three-{round}")];
        let done = async { tokio::join!(work(&two, &keys[0]), work(&three, &keys[1])) };
        done.await;
        let joined = observer.get("roster/two").await.is_ok_and(|entry| entry.is_some())
            && observer.get("roster/three").await.is_ok_and(|entry| entry.is_some());
        if joined {
            break;
        }
        assert!(start.elapsed() < LONG, "the replicas do not join again");
        sleep(SECOND / 10).await;
    }

    // A server that does not answer holds nobody up.
    server.pause();
    let start = Instant::now();
    two.lease().shutdown(SECOND).await;
    println!("shutdown took {:?} of a grace of {SECOND:?}", start.elapsed());
    assert!(start.elapsed() < LONG / 2);
    server.resume();
    until_members_are(&observer, &["three"]).await;

    // A member that died is asked, does not answer, and is struck off by whoever does its work.
    observer.put("roster/dead", "v1 weight=100".into(), Expected::Absent, None).await.expect("nobody has it");
    let start = Instant::now();
    for round in 0.. {
        work(&three, &format!("dead-{round}")).await;
        if observer.get("roster/dead").await.expect("the server runs").is_none() {
            break;
        }
        assert!(start.elapsed() < LONG, "the dead stays");
        sleep(SECOND / 10).await;
    }
    println!("the dead was struck off after {:?}", start.elapsed());
    three.lease().shutdown(LONG).await;
    until_members_are(&observer, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roster_is_kept_on_etcd() {
    roster_is_kept(EtcdServer::start().await, async |server: &EtcdServer| {
        EtcdStore::connect([server.endpoint()]).await.expect("a valid endpoint")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roster_is_kept_on_redis() {
    roster_is_kept(RedisServer::start().await, async |server: &RedisServer| {
        RedisStore::new(server.endpoint()).expect("a valid URL")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roster_is_kept_on_zookeeper() {
    roster_is_kept(ZookeeperServer::start().await, async |server: &ZookeeperServer| {
        ZookeeperStore::new(&server.endpoint(), "/writerlease", ZookeeperAccess::open())
            .expect("a valid address")
    })
    .await;
}
