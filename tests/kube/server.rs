//! The properties of the real API server and of the test tools on which the tests of the Kubernetes
//! store rely.

use std::{collections::BTreeMap, fmt::Debug, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    api::core::v1::ConfigMap, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, Error, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        wait::{await_condition, conditions},
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::time::timeout;
use writerlease_test_support::{
    proxy::Proxy,
    server::{ADMINISTRATOR, KubeServer, RECORD},
};

/// A limit that only a hang reaches.
const LONG: Duration = Duration::from_secs(20);
/// Longer than an answer takes. A request without an answer after this time is considered blocked.
const WHILE: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_killed_server() {
    let mut server = KubeServer::start().await;
    let maps = maps(server.administrator());
    let written = create(&maps, "kept").await;
    server.api.kill();
    assert!(maps.get("kept").await.is_err());
    server.api.restart().await;
    assert_eq!(maps.get("kept").await.unwrap(), written);

    server.api.pause();
    assert!(timeout(WHILE, maps.get("kept")).await.is_err());
    server.api.resume();
    assert_eq!(maps.get("kept").await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_may_do_only_what_roles_allow() {
    let server = KubeServer::start_with(["ada", "bob"]).await;
    create(&maps(server.administrator()), "map").await;
    let [ada, bob] = ["ada", "bob"].map(|name| maps(server.user(name)));
    assert_eq!(code(ada.get("map").await), 403);
    server.allow("ada", "", &["configmaps"], &["get"]).await;
    ada.get("map").await.unwrap();
    assert_eq!(code(ada.delete("map", &DeleteParams::default()).await), 403);
    assert_eq!(code(bob.get("map").await), 403);

    // A token of no user is refused.
    let mut config = server.config("bob", server.api.address());
    config.auth_info.token = Some("token-of-carol".to_owned().into());
    assert_eq!(code(maps(Client::try_from(config).unwrap()).get("map").await), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_a_subresource_and_versions_are_ordered() {
    let server = KubeServer::start_with(["ada"]).await;
    let client = server.administrator();
    install_routes(client.clone()).await;
    let routes = routes(client.clone());
    let route = DynamicObject::new("route", &route_kind())
        .data(json!({ "spec": { "host": "a" }, "status": { "admitted": true } }));
    let mut route = routes.create(&PostParams::default(), &route).await.unwrap();
    assert_eq!(route.data, json!({ "spec": { "host": "a" } }));
    let created = version(&route);

    route.data = json!({ "spec": { "host": "b" }, "status": { "admitted": true } });
    let admitted = routes.replace_status("route", &PostParams::default(), &route).await.unwrap();
    assert_eq!(admitted.data, json!({ "spec": { "host": "a" }, "status": { "admitted": true } }));
    assert!(version(&admitted) > created);
    // A write to an old version is a conflict.
    assert_eq!(code(routes.replace_status("route", &PostParams::default(), &route).await), 409);
    // An update that changes nothing keeps the version.
    let again = routes.replace_status("route", &PostParams::default(), &admitted).await.unwrap();
    assert_eq!(version(&again), version(&admitted));
    // Versions are ordered over all objects of all kinds.
    assert!(version(&create(&maps(client), "map").await) > version(&again));

    let ada = self::routes(server.user("ada"));
    server.allow("ada", "example.com", &["routes/status"], &["update"]).await;
    assert_eq!(code(ada.replace("route", &PostParams::default(), &again).await), 403);
    ada.replace_status("route", &PostParams::default(), &again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_reports_writes_and_refuses_compacted_versions() {
    let mut server = KubeServer::start().await;
    let maps = maps(server.administrator());
    let first = create(&maps, "first").await.resource_version().unwrap();
    let mut second = create(&maps, "second").await;
    second.data = Some(BTreeMap::from([("key".to_owned(), "value".to_owned())]));
    maps.replace("second", &PostParams::default(), &second).await.unwrap();
    maps.delete("second", &DeleteParams::default()).await.unwrap();
    let mut events = pin!(maps.watch(&WatchParams::default(), &first).await.unwrap());
    assert!(matches!(next(&mut events).await, WatchEvent::Added(map) if map.name_any() == "second"));
    assert!(matches!(next(&mut events).await, WatchEvent::Modified(map) if map.data == second.data));
    assert!(matches!(next(&mut events).await, WatchEvent::Deleted(map) if map.name_any() == "second"));

    server.api.kill();
    server.etcd.compact().await;
    server.api.restart().await;
    // The request succeeds; the first event carries the error.
    let mut events = pin!(maps.watch(&WatchParams::default(), &first).await.unwrap());
    let event = next(&mut events).await;
    assert!(matches!(&event, WatchEvent::Error(status) if status.code == 410), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watcher_lists_again_after_compaction() {
    let mut server = KubeServer::start().await;
    let proxy = Proxy::start(server.api.address()).await;
    let maps = maps(server.administrator());
    create(&maps, "first").await;
    let through_proxy = Client::try_from(server.config(ADMINISTRATOR, proxy.address())).unwrap();
    let mut events = pin!(watcher(self::maps(through_proxy), watcher::Config::default()));
    assert_eq!(listed(&mut events).await, ["first"]);
    create(&maps, "second").await;
    assert!(matches!(next(&mut events).await, Event::Apply(map) if map.name_any() == "second"));

    // The watcher connects again only when it is polled for the next event.
    proxy.cut();
    create(&maps, "third").await;
    maps.delete("first", &DeleteParams::default()).await.unwrap();
    server.api.kill();
    server.etcd.compact().await;
    server.api.restart().await;
    let mut gone = false;
    let recovery = async {
        loop {
            match events.next().await.expect("a watcher never ends") {
                Ok(event) => break event,
                Err(watcher::Error::WatchError(status)) => gone |= status.code == 410,
                Err(watcher::Error::WatchFailed(_)) => {
                    assert!(!gone, "the connection fails only before the 410")
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let event = timeout(LONG, recovery).await.expect("it recovers");
    assert!(gone && matches!(event, Event::Init), "{event:?}");
    assert_eq!(rest_of_list(&mut events).await, ["second", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_loses_requests_or_answers() {
    let server = KubeServer::start().await;
    let proxy = Proxy::start(server.api.address()).await;
    let client = Client::try_from(server.config(ADMINISTRATOR, proxy.address())).unwrap();
    let (near, far) = (maps(server.administrator()), maps(client));
    create(&far, "first").await;
    proxy.lose_answer(RECORD);
    assert_lost(far.create(&PostParams::default(), &map("second")).await);
    proxy.struck().await;
    near.get("second").await.unwrap();

    far.get("second").await.unwrap();
    proxy.cut_in_request(RECORD);
    assert_lost(far.create(&PostParams::default(), &map("third")).await);
    proxy.struck().await;
    assert_eq!(code(near.get("third").await), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_connect_with_a_kubeconfig_file() {
    let server = KubeServer::start_with(["ada"]).await;
    let file = server.kubeconfig("ada", server.api.address());
    let file = Kubeconfig::read_from(file).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    server.allow("ada", "", &["configmaps"], &["create"]).await;
    create(&maps(Client::try_from(config).unwrap()), "map").await;
}

/// Installs the kind `Route`, whose status is a subresource.
async fn install_routes(client: Client) {
    let definition = json!({
        "metadata": { "name": "routes.example.com" },
        "spec": {
            "group": "example.com",
            "names": { "kind": "Route", "plural": "routes" },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                } },
            }],
        },
    });
    let definitions = Api::<CustomResourceDefinition>::all(client);
    let definition = serde_json::from_value(definition).unwrap();
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let established = await_condition(definitions, "routes.example.com", conditions::is_crd_established());
    timeout(LONG, established).await.expect("it is established soon").unwrap();
}

fn routes(client: Client) -> Api<DynamicObject> {
    Api::default_namespaced_with(client, &route_kind())
}

fn route_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Route"))
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::default_namespaced(client)
}

async fn create(maps: &Api<ConfigMap>, name: &str) -> ConfigMap {
    maps.create(&PostParams::default(), &map(name)).await.unwrap()
}

fn map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map
}

fn version(object: &impl ResourceExt) -> u64 {
    object.resource_version().expect("stored objects have a version").parse().expect("a number")
}

fn code<T: Debug>(answer: kube::Result<T>) -> u16 {
    match answer.unwrap_err() {
        Error::Api(status) => status.code,
        error => panic!("{error:?}"),
    }
}

/// Asserts that no answer arrived, so that the result of the request is unknown.
fn assert_lost<T: Debug>(answer: kube::Result<T>) {
    let error = answer.unwrap_err();
    assert!(!matches!(error, Error::Api(_)), "{error:?}");
}

async fn next<T, E: Debug>(stream: &mut (impl Stream<Item = Result<T, E>> + Unpin)) -> T {
    timeout(LONG, stream.next()).await.expect("an event arrives").expect("the watch continues").unwrap()
}

async fn listed(events: &mut (impl Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin)) -> Vec<String> {
    assert!(matches!(next(events).await, Event::Init));
    rest_of_list(events).await
}

async fn rest_of_list(
    events: &mut (impl Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin),
) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        match next(events).await {
            Event::InitApply(map) => names.push(map.name_any()),
            Event::InitDone => break names,
            event => panic!("{event:?}"),
        }
    }
}
