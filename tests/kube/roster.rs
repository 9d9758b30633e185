//! Tests of the roster as `Lease` objects on a real API server.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    core::v1::ConfigMap,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep};
use writerlease::{
    Outcome, Roster, WriterLease,
    kube::{KubeStore, LeaseStore, StatusGuard},
    store::{Current, Event, Expected, Store, StoreError},
};
use writerlease_test_support::{server::KubeServer, watch::Watch};

const SECOND: Duration = Duration::from_secs(1);
/// A limit that only a hang reaches.
const LONG: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "replicas";

fn joined(store: LeaseStore, roster: Roster) -> WriterLease<Arc<str>> {
    let lease = WriterLease::builder("test").spawn().expect("a runtime");
    lease.join(store, roster).expect("the settings are right");
    lease
}

fn work(lease: &WriterLease<Arc<str>>) {
    lease.try_work("key".into(), |_| async { Outcome::Written }).expect("the lease is open");
}

/// Returns the holders in the roster, sorted.
async fn holders(leases: &Api<Lease>) -> Vec<String> {
    let group = ListParams::default().labels("writerlease/roster=app");
    let all = leases.list(&group).await.expect("a list");
    let mut holders: Vec<String> =
        all.items.into_iter().filter_map(|lease| lease.spec?.holder_identity).collect();
    holders.sort();
    holders
}

async fn until_holders_are(leases: &Api<Lease>, expected: &[&str]) {
    let start = Instant::now();
    while holders(leases).await != expected {
        assert!(start.elapsed() < LONG, "{:?} instead of {expected:?}", holders(leases).await);
        sleep(SECOND / 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_join_and_leave_as_lease_objects() {
    let server = KubeServer::start().await;
    server.create_namespace(NAMESPACE).await;
    let leases = Api::<Lease>::namespaced(server.administrator(), NAMESPACE);
    // The Lease of a leader election, and an entry of another group.
    let foreign = Lease {
        metadata: ObjectMeta { name: Some("leader".into()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec { holder_identity: Some("somebody".into()), ..LeaseSpec::default() }),
    };
    leases.create(&PostParams::default(), &foreign).await.unwrap();
    let store = || LeaseStore::new(server.administrator(), NAMESPACE);
    store().put("other/one", "v1 weight=1".into(), Expected::Absent, None).await.unwrap();

    let one = joined(store(), Roster::new("app").name("app-1"));
    let two = joined(store(), Roster::new("app").name("app-2").weight(3));
    assert!(holders(&leases).await.is_empty(), "without a job nobody is on the roster");
    work(&one);
    work(&two);
    until_holders_are(&leases, &["app-1", "app-2"]).await;
    let entry = leases.get("app.app-2").await.unwrap();
    assert_eq!(entry.annotations()["writerlease/entry"], "v1 weight=3");

    one.shutdown(LONG).await;
    assert_eq!(holders(&leases).await, ["app-2"], "shutdown waits until the entry is gone");

    // A deleted roster is joined again with the next job.
    leases.delete("app.app-2", &DeleteParams::default()).await.unwrap();
    sleep(SECOND).await;
    work(&two);
    until_holders_are(&leases, &["app-2"]).await;
    two.shutdown(LONG).await;
    assert!(holders(&leases).await.is_empty());
    assert_eq!(
        leases.list(&ListParams::default()).await.unwrap().items.len(),
        2,
        "foreign ones are left alone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_store_compares_and_watches_one_group() {
    let server = KubeServer::start().await;
    server.create_namespace(NAMESPACE).await;
    let store = LeaseStore::new(server.administrator(), NAMESPACE);
    let old = store.put("app/old", "v1 weight=1".into(), Expected::Absent, None).await.unwrap();
    let mut watch = Watch::of(&store, "app/");
    let listed = watch.listing().await;
    assert!(matches!(&listed[..], [entry] if &*entry.key == "app/old" && entry.version == old), "{listed:?}");

    store.put("other/x", "v1 weight=1".into(), Expected::Absent, None).await.unwrap();
    let again = store.put("app/old", "v1 weight=2".into(), Expected::Absent, None).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    let new = store.put("app/old", "v1 weight=2".into(), Expected::Version(old.clone()), None).await.unwrap();
    let entry = store.get("app/old").await.unwrap().expect("it is there");
    assert_eq!((&entry.value[..], &entry.version), (&b"v1 weight=2"[..], &new));
    assert!(matches!(watch.event().await, Event::Put(put) if put == entry));
    let stale = store.delete("app/old", &old, None).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    store.delete("app/old", &new, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Delete { key, .. } if &*key == "app/old"));
    assert_eq!(store.get("app/old").await.unwrap(), None);
    let gone = store.delete("app/old", &new, None).await;
    assert!(
        matches!(gone, Err(StoreError::Conflict { current: Current::Absent | Current::Unknown })),
        "{gone:?}"
    );
    let misnamed = store.put("app/Not_A_Name", "v1 weight=1".into(), Expected::Absent, None).await;
    assert!(matches!(misnamed, Err(StoreError::Invalid { .. })), "{misnamed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rights_the_lease_goes_on() {
    let server = KubeServer::start_with(["ada"]).await;
    server.create_namespace(NAMESPACE).await;
    let leases = Api::<Lease>::namespaced(server.administrator(), NAMESPACE);
    let lease = joined(LeaseStore::new(server.user("ada"), NAMESPACE), Roster::new("app").name("ada"));
    work(&lease);
    assert!(lease.wait().await.expect("the lease is open"), "its work is done without a roster");
    sleep(SECOND).await;
    assert!(holders(&leases).await.is_empty());

    let rights = ["get", "list", "watch", "create", "update", "delete"];
    server.allow("ada", "coordination.k8s.io", &["leases"], &rights).await;
    work(&lease);
    until_holders_are(&leases, &["ada"]).await;
    lease.shutdown(LONG).await;
    assert!(holders(&leases).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_guard_joins_in_the_clients_namespace() {
    let server = KubeServer::start().await;
    let client = server.administrator();
    let leases = Api::<Lease>::default_namespaced(client.clone());
    let lease = WriterLease::builder("test").spawn().expect("a runtime");
    let maps = KubeStore::<ConfigMap>::new(Api::all(client));
    let guard = StatusGuard::new(maps, lease.clone()).expect("a runtime");
    guard.join(Roster::new("app").name("app-1")).expect("the settings are right");
    work(&lease);
    until_holders_are(&leases, &["app-1"]).await;
    lease.shutdown(LONG).await;
    assert!(holders(&leases).await.is_empty());
}
