//! Keys of candidates in etcd that another program writes over.

use std::time::Duration;

use etcd_client::{GetOptions, PutOptions};
use tokio::time::sleep;
use writerlease::{
    election::{Elector, Event},
    etcd::{EtcdElector, EtcdStore, EtcdVoter, EtcdVoters},
    store::{Expected, Store, StoreError},
};

use writerlease_test_support::{proxy::Proxy, server::EtcdServer};

use crate::{
    adapters::etcd::raw,
    engines::{ELECTION, Engine, Etcd, Voter, etcd_client},
    states::{event, follows, leads, soon, token, until},
};

/// Longer than a test waits, so that no effect in time comes from an expiry.
const LONG_TTL: Duration = Duration::from_secs(60);
/// How another program writes over a key.
const WAYS: [Way; 4] = [Way::WithoutLease, Way::SameValue, Way::SameLease, Way::OtherLease];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    WithoutLease,
    /// Without a lease, too.
    SameValue,
    SameLease,
    OtherLease,
}

/// Writes over the oldest key of the election, and returns its name.
async fn overwrite(server: &EtcdServer, way: Way) -> Vec<u8> {
    let mut client = raw(server).await;
    let oldest = GetOptions::new()
        .with_prefix()
        .with_sort(etcd_client::SortTarget::Create, etcd_client::SortOrder::Ascend);
    let found = client.get(ELECTION, Some(oldest)).await.expect("it serves");
    let (key, value) = (found.kvs()[0].key().to_vec(), found.kvs()[0].value().to_vec());
    let (value, options) = match way {
        Way::WithoutLease => (b"theirs".to_vec(), None),
        Way::SameValue => (value, None),
        Way::SameLease => (b"theirs".to_vec(), Some(PutOptions::new().with_ignore_lease())),
        Way::OtherLease => {
            let lease = client.lease_grant(600, None).await.expect("it serves").id();
            (b"theirs".to_vec(), Some(PutOptions::new().with_lease(lease)))
        }
    };
    client.put(key.clone(), value, options).await.expect("it serves");
    key
}

async fn values(server: &EtcdServer) -> Vec<String> {
    let answer = raw(server).await.get(ELECTION, Some(GetOptions::new().with_prefix())).await;
    let text = |kv: &etcd_client::KeyValue| String::from_utf8_lossy(kv.value()).into_owned();
    answer.expect("it serves").kvs().iter().map(text).collect()
}

/// A candidate whose key does not expire during a test.
trait LongCandidate: Elector + Sized {
    async fn at(address: std::net::SocketAddr) -> Self;
}

impl LongCandidate for EtcdElector {
    async fn at(address: std::net::SocketAddr) -> Self {
        let builder = EtcdElector::builder(etcd_client(address).await, ELECTION).identity("one");
        builder.ttl(LONG_TTL).start().await.expect("a session")
    }
}

impl LongCandidate for EtcdVoter {
    async fn at(address: std::net::SocketAddr) -> Self {
        let voters = EtcdVoters::new(etcd_client(address).await);
        voters.add_voter(ELECTION, "one", LONG_TTL).expect("valid settings")
    }
}

/// Waits until the leader retires, and checks that its fence was refused as soon as the key was
/// written over.
async fn retires<E: LongCandidate>(way: Way) {
    let server = EtcdServer::start().await;
    let elector = E::at(server.address()).await;
    leads(&elector).await;
    let (mut events, fence) = (elector.events(), elector.fence().expect("it leads"));
    let store = EtcdStore::new(raw(&server).await);
    store.put("x", "1".into(), Expected::Absent, Some(&fence)).await.expect("it leads");
    overwrite(&server, way).await;
    let late = store.put("y", "1".into(), Expected::Absent, Some(&fence)).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{way:?}: {late:?}");
    event(&mut events, |event| matches!(event, Event::Retired { .. }).then_some(())).await;
    // A key with the same value needs nobody's care; the others block the key of a voter.
    if way == Way::SameValue {
        leads(&elector).await;
        assert!(token(&elector) > fence.token());
    }
}

#[tokio::test]
async fn leaders_retire_when_their_key_is_overwritten() {
    for way in WAYS {
        retires::<EtcdElector>(way).await;
    }
}

#[tokio::test]
async fn voters_retire_when_their_key_is_overwritten() {
    for way in WAYS {
        retires::<EtcdVoter>(way).await;
    }
}

/// Checks that a candidate deletes no value of others, even if it does not know of it yet.
async fn leaves_foreign_values<E: LongCandidate>() {
    let server = EtcdServer::start().await;
    for closes in [false, true] {
        let proxy = Proxy::start(server.address()).await;
        let elector = E::at(proxy.address()).await;
        leads(&elector).await;
        proxy.delay(Duration::from_millis(300));
        let key = overwrite(&server, Way::WithoutLease).await;
        match closes {
            true => soon(elector.close()).await,
            false => soon(elector.resign()).await.expect("it serves"),
        }
        assert!(values(&server).await.contains(&"theirs".to_owned()), "closes: {closes}");
        proxy.heal();
        soon(elector.close()).await;
        assert_eq!(values(&server).await, ["theirs"]);
        raw(&server).await.delete(key, None).await.expect("it serves");
    }
}

#[tokio::test]
async fn electors_delete_nothing_of_others() {
    leaves_foreign_values::<EtcdElector>().await;
}

#[tokio::test]
async fn voters_delete_nothing_of_others() {
    leaves_foreign_values::<EtcdVoter>().await;
}

#[tokio::test]
async fn electors_begin_anew_beside_an_overwritten_key() {
    for way in [Way::WithoutLease, Way::SameLease] {
        let server = EtcdServer::start().await;
        let first = EtcdElector::at(server.address()).await;
        leads(&first).await;
        let old = token(&first);
        let mut events = first.events();
        overwrite(&server, way).await;
        event(&mut events, |event| matches!(event, Event::Retired { .. }).then_some(())).await;
        leads(&first).await;
        assert!(token(&first) > old);
        assert_eq!(first.leader_info().await.expect("it leads").identity, "one");
        // The foreign value is left alone, unless the lease took it along.
        assert_eq!(values(&server).await.contains(&"theirs".to_owned()), way == Way::WithoutLease);
    }
}

#[tokio::test]
async fn overwritten_keys_of_dead_electors_are_passed_over() {
    let engine = Etcd::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate_at(proxy.address(), "first").await;
    leads(&first).await;
    let second = engine.candidate("second").await;
    follows(&second, "first").await;
    // Nobody is there to notice it.
    proxy.stall();
    overwrite(&engine.0, Way::WithoutLease).await;
    drop(first);
    follows(&second, "theirs").await;
    leads(&second).await;
    let third = engine.candidate("third").await;
    follows(&third, "second").await;
}

#[tokio::test]
async fn voters_follow_a_key_without_a_lease() {
    let engine = Voter::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate_at(proxy.address(), "first").await;
    leads(&first).await;
    let key = overwrite(&engine.0, Way::WithoutLease).await;
    follows(&first, "theirs").await;
    proxy.stall();
    drop(first);
    let second = engine.candidate("second").await;
    follows(&second, "theirs").await;
    sleep(3 * Voter::TTL).await;
    follows(&second, "theirs").await;
    raw(&engine.0).await.delete(key, None).await.expect("it serves");
    leads(&second).await;
}

#[tokio::test]
async fn followers_whose_key_is_overwritten_queue_again() {
    let server = EtcdServer::start().await;
    let first = EtcdElector::at(server.address()).await;
    leads(&first).await;
    let builder = EtcdElector::builder(raw(&server).await, ELECTION).identity("second").ttl(LONG_TTL);
    let second = builder.start().await.expect("a session");
    follows(&second, "one").await;
    let mut client = raw(&server).await;
    let keys = client.get(ELECTION, Some(GetOptions::new().with_prefix())).await.expect("it serves");
    let theirs = keys.kvs().iter().find(|kv| kv.value_str().is_ok_and(|value| value.contains("second")));
    client.put(theirs.expect("its key").key(), "theirs", None).await.expect("it serves");
    until("it has another key", async || values(&server).await.iter().any(|value| value.contains("second")))
        .await;
    first.close().await;
    leads(&second).await;
}
