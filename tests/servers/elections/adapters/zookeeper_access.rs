//! ZooKeeper with TLS, SASL and root paths: the elector, and the store that checks its fences.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use writerlease::{
    election::{ElectionError, Elector, Leadership},
    store::{Event, Expected, Store, StoreError},
    zookeeper::{ZookeeperAccess, ZookeeperElector, ZookeeperStore},
};
use writerlease_test_support::{server::ZookeeperServer, watch::Watch};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission, SaslOptions, TlsOptions};

use super::zookeeper::{LONG_TIMEOUT, REQUEST};
use crate::{
    engines::zookeeper_client,
    states::{LONG, assert_config, leads, reaches, soon, until},
};

const ELECTION: &str = "/tests/election";
const STORE: &str = "/tests/store";
/// A session that the servers no longer let in ends after this time.
const TTL: Duration = Duration::from_secs(5);

fn store(servers: &str, access: &ZookeeperAccess) -> ZookeeperStore {
    let store = ZookeeperStore::new(servers, STORE, access.clone()).expect("valid settings");
    store.session_timeout(LONG_TIMEOUT).request_timeout(LONG)
}

async fn elector(servers: &str, access: &ZookeeperAccess) -> Result<ZookeeperElector, ElectionError> {
    let builder = ZookeeperElector::builder(servers, ELECTION).identity("one").access(access.clone());
    builder.ttl(TTL).request_timeout(REQUEST).start().await
}

/// A leader writes with its fence.
async fn works(servers: &str, access: &ZookeeperAccess) {
    let (store, elector) = (store(servers, access), elector(servers, access).await.expect("a session"));
    let mut watch = Watch::of(&store, "");
    watch.listing().await;
    leads(&elector).await;
    let fence = elector.fence();
    let version = store.put("key", "1".into(), Expected::Absent, fence.as_ref()).await.expect("it leads");
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == version));
    let version = store.put("key", "2".into(), Expected::Version(version), fence.as_ref()).await;
    let version = version.expect("it leads");
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == version));
    assert_eq!(elector.leader_ident().await.expect("it leads"), "one");
    soon(elector.close()).await;
    let late = store.delete("key", &version, fence.as_ref()).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    store.delete("key", &version, None).await.expect("it is the current version");
}

fn tls(certificate: String) -> ZookeeperAccess {
    // The client library needs to know which of the providers it shall use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ZookeeperAccess::open().with_connector(move || {
        let options = TlsOptions::new().with_pem_ca(&certificate).expect("a certificate");
        Client::connector().with_tls(options)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn connectors_bring_tls() {
    let server = ZookeeperServer::start_with_tls().await;
    let endpoint = server.tls_endpoint();
    works(&endpoint, &tls(server.certificate())).await;
    let other = ZookeeperServer::start_with_tls().await;
    let untrusted = tls(other.certificate());
    let get = store(&endpoint, &untrusted).get("key").await;
    assert!(matches!(get, Err(StoreError::Unavailable { .. })), "{get:?}");
    let started = elector(&endpoint, &untrusted).await;
    assert!(matches!(started, Err(ElectionError::Store(StoreError::Unavailable { .. }))), "{started:?}");

    let open = ZookeeperAccess::open();
    assert_config(elector(&endpoint, &open).await, "servers", &format!("{endpoint:?}"), "connector with TLS");
    let refused = ZookeeperStore::new(&endpoint, STORE, open).map(drop);
    let Err(StoreError::Invalid { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("connector with TLS"), "{reason}");
}

/// A server that asks each client for a password by SASL.
async fn sasl_server(folder: &tempfile::TempDir, password: &str) -> ZookeeperServer {
    write_password(folder, password);
    // From 3.9.6 on, a server in its mode for FIPS, which is the default, offers no DIGEST-MD5.
    let settings = "authProvider.sasl=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n\
                    sessionRequireClientSASLAuth=true\n\
                    fips-mode=false";
    let file = folder.path().join("jaas");
    let options = [format!("-Djava.security.auth.login.config={}", file.display())];
    ZookeeperServer::start_with(settings, &options).await
}

fn write_password(folder: &tempfile::TempDir, password: &str) {
    let text = format!(
        "Server {{ org.apache.zookeeper.server.auth.DigestLoginModule required user_app=\"{password}\"; }};"
    );
    fs::write(folder.path().join("jaas"), text).expect("the folder is writable");
}

fn only_the_creator() -> Vec<Acl> {
    vec![Acl::new(Permission::ALL, AuthId::authed())]
}

#[tokio::test(flavor = "multi_thread")]
async fn connectors_bring_sasl_with_changing_passwords() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut server = sasl_server(&folder, "first").await;
    let passwords = ["first", "second"];
    let current = Arc::new(AtomicUsize::new(0));
    let access = ZookeeperAccess::open()
        .with_connector({
            let current = current.clone();
            move || {
                let password = passwords[current.load(Relaxed)];
                Client::connector().with_sasl(SaslOptions::digest_md5("app", password))
            }
        })
        .with_acl(only_the_creator());
    works(&server.endpoint(), &access).await;

    let (store, elector) = (store(&server.endpoint(), &access), elector(&server.endpoint(), &access).await);
    let elector = elector.expect("a session");
    leads(&elector).await;
    let version = store.put("key", "1".into(), Expected::Absent, None).await.expect("it serves");
    write_password(&folder, "second");
    server.restart().await;
    reaches(&elector, "it is cut off", |state| matches!(state, Leadership::Unknown)).await;
    until("the store is denied", async || matches!(store.get("key").await, Err(StoreError::Denied { .. })))
        .await;
    current.store(1, Relaxed);
    leads(&elector).await;
    until("the store is let in", async || store.get("key").await.is_ok_and(|entry| entry.is_some())).await;
    store
        .put("key", "2".into(), Expected::Version(version), elector.fence().as_ref())
        .await
        .expect("it leads");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_paths_confine_stores_and_electors() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let (open, inside) = (ZookeeperAccess::open(), format!("{}/app/one", server.endpoint()));
    let missing = store(&inside, &open).put("key", "1".into(), Expected::Absent, None).await;
    let Err(StoreError::Unavailable { reason, .. }) = &missing else { panic!("{missing:?}") };
    assert!(reason.contains("/app/one"), "{reason}");
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/app/one", &options).await.expect("it serves");
    works(&inside, &open).await;
    assert!(client.list_children(&format!("/app/one{STORE}")).await.is_ok());

    // A store may see less of the tree than an elector, and the other way around.
    let elector = elector(&inside, &open).await.expect("a session");
    leads(&elector).await;
    for servers in [inside.clone(), format!("{}/app", server.endpoint()), server.endpoint()] {
        let store = store(&servers, &open);
        let written = store.put("fenced", "1".into(), Expected::Absent, elector.fence().as_ref()).await;
        store
            .delete("fenced", &written.expect("it leads"), elector.fence().as_ref())
            .await
            .expect("it leads");
    }
    client.mkdir("/other", &options).await.expect("it serves");
    let outside = store(&format!("{}/other", server.endpoint()), &open);
    let fenced = outside.put("fenced", "1".into(), Expected::Absent, elector.fence().as_ref()).await;
    assert!(matches!(fenced, Err(StoreError::Invalid { .. })), "it cannot see the leader's node: {fenced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_follow_leaders_that_they_may_not_read() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(ELECTION, &options).await.expect("it serves");
    let start = async |user| {
        let access = ZookeeperAccess::digest(user, "secret");
        elector(&server.endpoint(), &access).await.expect("a session")
    };
    let first = start("first").await;
    leads(&first).await;
    let second = start("second").await;
    let unknown = |state: &Leadership| matches!(state, Leadership::Follower { leader: None });
    reaches(&second, "it follows", unknown).await;
    let ident = second.leader_ident().await;
    assert!(matches!(ident, Err(ElectionError::Store(StoreError::Denied { .. }))), "{ident:?}");
    soon(first.close()).await;
    leads(&second).await;
}
