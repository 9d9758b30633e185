//! Tests of `KubeStore` and `StatusGuard` against a real API server, with lost and repeated
//! requests and a server that does not answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::join_all};
use http::{Method, Request, StatusCode};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject},
    client::{Body, retry::RetryPolicy},
    core::{ApiResource, GroupVersionKind},
    runtime::{WatchStreamExt, controller::Action, reflector, watcher},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, service_fn};
use writerlease::{
    EnsureOutcome, Notice, WatchState, WriterLease,
    engine::Counters,
    kube::{EnsureStatus, KubeStore, StatusGuard, error_policy},
    store::{Current, Event, Expected, Store, StoreError},
};
use writerlease_kube_status::widget::{self, Widget, WidgetStatus};
use writerlease_test_support::{
    proxy::Proxy,
    server::{ADMINISTRATOR, KubeServer, RECORD},
    watch::Watch,
};

const SECOND: Duration = Duration::from_secs(1);
/// A limit that only a hang reaches.
const LONG: Duration = Duration::from_secs(60);

/// A namespace with one widget.
struct Place {
    server: Arc<KubeServer>,
    namespace: String,
    widgets: Api<Widget>,
}

impl Place {
    async fn new(server: Arc<KubeServer>, namespace: String) -> Self {
        server.create_namespace(&namespace).await;
        let widgets = Api::namespaced(server.administrator(), &namespace);
        widget::create(&widgets, "widget").await.expect("the widget is created");
        Self { server, namespace, widgets }
    }

    /// Returns the key of an object in the store.
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    async fn widget(&self) -> Widget {
        self.widgets.get("widget").await.expect("it exists")
    }

    /// Creates a store of the statuses of this namespace's widgets.
    fn store(&self, client: Client) -> KubeStore<Widget> {
        KubeStore::new(Api::namespaced(client, &self.namespace))
    }

    fn guard(&self) -> StatusGuard<Widget> {
        StatusGuard::new(self.store(self.server.administrator()), lease()).expect("a runtime")
    }
}

/// Starts a server and installs the widgets' definition.
async fn server() -> Arc<KubeServer> {
    let server = KubeServer::start().await;
    widget::install(&server.administrator()).await.expect("the definition is installed");
    Arc::new(server)
}

/// Defines one test that runs all cases concurrently on one server, each in its own namespace,
/// because a server takes seconds of two cores to start.
macro_rules! on_one_server {
    ($($case:ident,)*) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn on_one_server() {
            let server = server().await;
            let mut running = Vec::new();
            $(
                let place = Place::new(server.clone(), format!("place-{}", running.len())).await;
                running.push((stringify!($case), tokio::spawn($case(place))));
            )*
            let mut failed = Vec::new();
            for (case, ended) in running {
                if ended.await.is_err() {
                    failed.push(case);
                }
            }
            assert!(failed.is_empty(), "{failed:?}");
        }
    };
}

on_one_server![
    whole_objects_are_created_written_deleted_and_watched,
    permanent_refusals_name_the_reason_and_await_changes,
    change_of_an_object_clears_its_refusal,
    writes_without_a_destination_are_permanently_refused,
    later_tap_continues_a_dropped_one,
    retried_successful_write_is_known_as_ours,
    write_with_lost_answer_is_known_as_ours,
    simultaneous_parts_of_a_status_become_one_write,
    recreated_object_is_a_different_object,
];

fn lease() -> WriterLease<Arc<str>> {
    WriterLease::builder("widgets").spawn().expect("a runtime")
}

/// Returns the status with the round of the spec, or `None` if the widget has it.
fn seen(widget: &Widget) -> Option<WidgetStatus> {
    let status = WidgetStatus { round: widget.spec.round, phase: "ready".into(), ..WidgetStatus::default() };
    (widget.status.as_ref() != Some(&status)).then_some(status)
}

async fn ended(ensuring: EnsureStatus) -> EnsureOutcome {
    timeout(LONG, ensuring).await.expect("the request finishes")
}

/// Returns the counters once all attempts are finished. The lease counts an attempt a moment after
/// the guard has reported its outcome.
async fn counters(guard: &StatusGuard<Widget>) -> Counters {
    let lease = guard.guard().lease();
    let idle = async {
        while lease.snapshot().in_flight > 0 {
            sleep(SECOND / 100).await;
        }
    };
    timeout(LONG, idle).await.expect("attempts finish");
    lease.snapshot().counters
}

/// Returns whether the outcome is the write that produced this version of the object.
fn is_written(ending: &EnsureOutcome, object: &Widget) -> bool {
    let version = object.resource_version().and_then(|version| version.parse().ok());
    matches!(ending, EnsureOutcome::Written(written) if version.is_some() && written.revision() == version)
}

fn text(value: &[u8]) -> Value {
    serde_json::from_slice(value).expect("it is JSON")
}

async fn whole_objects_are_created_written_deleted_and_watched(place: Place) {
    let maps = KubeStore::new(Api::<ConfigMap>::all(place.server.administrator())).whole_objects();
    let mut watch = Watch::of(&maps, &place.key(""));
    let key = &*place.key("a");
    assert_eq!(watch.listing().await, [], "objects of other namespaces are left out");

    let map = |word: &str| {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "a", "namespace": place.namespace },
            "data": { "word": word },
        });
        map.to_string().into_bytes().into()
    };
    assert!(maps.get(key).await.unwrap().is_none());
    let made = maps.put(key, map("one"), Expected::Absent, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == made && &*entry.key == key));
    let again = maps.put(key, map("two"), Expected::Absent, None).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    let written = maps.put(key, map("two"), Expected::Version(made.clone()), None).await.unwrap();
    assert!(written.revision() > made.revision());
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == written));
    let entry = maps.get(key).await.unwrap().expect("it is there");
    assert_eq!((text(&entry.value)["data"]["word"].as_str(), &entry.version), (Some("two"), &written));

    let stale = maps.put(key, map("three"), Expected::Version(made.clone()), None).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    let stale = maps.delete(key, &made, None).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    maps.delete(key, &written, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Delete { key: deleted, .. } if &*deleted == key));
    assert!(maps.get(key).await.unwrap().is_none());
    for gone in [
        maps.delete(key, &written, None).await,
        maps.put(key, map("four"), Expected::Version(written.clone()), None).await.map(drop),
    ] {
        assert!(
            matches!(gone, Err(StoreError::Conflict { current: Current::Absent | Current::Unknown })),
            "{gone:?}"
        );
    }
}

async fn permanent_refusals_name_the_reason_and_await_changes(place: Place) {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("writerlease.example", "v1", "Widget"));
    let api: Api<DynamicObject> = Api::namespaced_with(place.server.administrator(), &place.namespace, &kind);
    let guard = StatusGuard::new(KubeStore::with_kind(api.clone(), kind), lease()).unwrap();
    let object = api.get("widget").await.unwrap();
    for (status, said) in [
        (json!({ "round": "no number", "phase": "", "by": 0 }), "Invalid value"),
        (json!({ "round": 1, "phase": "x".repeat(1_800_000), "by": 0 }), "too large"),
        (json!({ "round": 1, "phase": "x".repeat(2_200_000), "by": 0 }), "larger than max"),
        (json!({ "round": 1, "phase": "x".repeat(4_000_000), "by": 0 }), "too large"),
    ] {
        let wanted = status.clone();
        let want = move |object: &DynamicObject| (object.data["status"] != wanted).then(|| wanted.clone());
        let ending = ended(guard.ensure_status(&object, want.clone())).await;
        let (EnsureOutcome::Invalid(error) | EnsureOutcome::TooLarge(error)) = &ending else {
            panic!("{ending:?}")
        };
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(matches!(ending, EnsureOutcome::TooLarge(_)), said.contains("large"), "{ending:?}");
        // The next reconcile, and only that, gets the error.
        let refused = guard.ensure_status(&object, want.clone()).action().unwrap_err();
        assert!(refused.to_string().contains(said) && *refused.key == place.key("widget"), "{refused}");
        assert_eq!(error_policy(Arc::new(object.clone()), &refused, Arc::new(())), Action::await_change());
        assert!(guard.ensure_status(&object, want).action().is_ok());
        guard.forget(&object);
    }
    assert!(place.widget().await.status.is_none());
}

async fn change_of_an_object_clears_its_refusal(place: Place) {
    let guard = place.guard();
    // A status that the server accepts only in the second round.
    let desire = |widget: &Widget| {
        let mut status = seen(widget)?;
        if widget.spec.round == 1 {
            status.phase = "x".repeat(1_800_000);
        }
        Some(status)
    };
    let ending = ended(guard.ensure_status(&place.widget().await, desire)).await;
    assert!(matches!(ending, EnsureOutcome::TooLarge(_)), "{ending:?}");
    widget::edit(&place.widgets, "widget", json!({ "round": 2 })).await.unwrap();
    // The reconcile that the change triggers may run before the guard sees the change.
    let ending = ended(guard.ensure_status(&place.widget().await, desire)).await;
    assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
}

async fn writes_without_a_destination_are_permanently_refused(place: Place) {
    let map = |namespace: &str| {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "namespace": namespace },
        });
        bytes::Bytes::from(map.to_string())
    };
    let key = &*place.key("a");
    let whole = KubeStore::new(Api::<ConfigMap>::all(place.server.administrator())).whole_objects();
    let made = whole.put(key, map(&place.namespace), Expected::Absent, None).await.unwrap();
    let nowhere = whole.put("nowhere/a", map("nowhere"), Expected::Absent, None).await;
    assert!(matches!(nowhere, Err(StoreError::Invalid { .. })), "{nowhere:?}");

    // Config maps have no status.
    let statuses = KubeStore::new(Api::<ConfigMap>::all(place.server.administrator()));
    let status = statuses.put(key, map(&place.namespace), Expected::Version(made), None).await;
    assert!(matches!(status, Err(StoreError::Invalid { .. })), "{status:?}");
}

async fn later_tap_continues_a_dropped_one(place: Place) {
    let events = || watcher(place.widgets.clone(), watcher::Config::default()).default_backoff();
    let (store, first) = KubeStore::new(place.widgets.clone()).tap(events());
    let guard = StatusGuard::<Widget>::new(store.clone(), lease()).unwrap();
    let mut notices = guard.guard().notices();
    let (_, second) = store.tap(events());
    for events in [first, second] {
        let watch = tokio::spawn(events.for_each(|_| async {}));
        let live = async {
            while guard.guard().watch_state() != WatchState::Live {
                sleep(SECOND / 100).await;
            }
        };
        timeout(LONG, live).await.expect("the watch becomes live");
        watch.abort();
        let interrupted =
            async { while !matches!(notices.recv().await, Ok(Notice::WatchInterrupted { .. })) {} };
        timeout(LONG, interrupted).await.expect("the interruption is reported");
        assert!(matches!(guard.guard().watch_state(), WatchState::Resuming { .. }));
    }
}

async fn retried_successful_write_is_known_as_ours(place: Place) {
    // A gateway that answers 503 to the first update, although it succeeded. The client of kube
    // retries it.
    let inner = place.server.administrator();
    let gives_up = Arc::new(AtomicBool::new(true));
    let gateway = service_fn({
        let gives_up = gives_up.clone();
        move |request: Request<Body>| {
            let (inner, gives_up) = (inner.clone(), gives_up.clone());
            async move {
                let is_update = request.method() == Method::PUT;
                let mut answer = inner.send(request).await?;
                if is_update && gives_up.swap(false, SeqCst) {
                    assert_eq!(answer.status(), StatusCode::OK);
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, BoxError>(answer)
            }
        }
    });
    let service = ServiceBuilder::new().layer(RetryLayer::new(RetryPolicy::server_retry())).service(gateway);
    let store = place.store(Client::new(service, &*place.namespace));
    let guard = StatusGuard::new(store, lease()).unwrap();
    let widget = place.widget().await;
    let ending = ended(guard.ensure_status(&widget, seen)).await;
    let written = place.widget().await;
    assert!(!gives_up.load(SeqCst));
    assert!(is_written(&ending, &written), "{ending:?}");
    let counters = counters(&guard).await;
    assert_eq!((counters.conflicts, counters.evidence), (0, 0), "no other writer exists");
}

async fn write_with_lost_answer_is_known_as_ours(place: Place) {
    // The proxy cannot distinguish updates from other requests, so only updates use it.
    let proxy = Proxy::start(place.server.api.address()).await;
    let client = Client::try_from(place.server.config(ADMINISTRATOR, proxy.address())).unwrap();
    let (reader, writer) = reflector::store();
    let events = watcher(place.widgets.clone(), watcher::Config::default()).default_backoff();
    let (store, events) = place.store(client).reader(reader.clone()).tap(events);
    let guard = StatusGuard::new(store, lease()).unwrap();
    let watch = tokio::spawn(events.reflect(writer).for_each(|_| async {}));
    reader.wait_until_ready().await.unwrap();

    for round in 1..5 {
        widget::edit(&place.widgets, "widget", json!({ "round": round })).await.unwrap();
        if round > 1 {
            // Only now is the connection open.
            proxy.lose_answer(RECORD);
        }
        let ending = ended(guard.ensure_status(&place.widget().await, seen)).await;
        if round > 1 {
            proxy.struck().await;
        }
        let written = place.widget().await;
        assert_eq!(written.status.as_ref().map(|status| status.round), Some(round));
        assert!(is_written(&ending, &written), "{ending:?}");
    }
    let counters = counters(&guard).await;
    assert_eq!((counters.failures, counters.evidence), (3, 0), "no other writer exists");
    watch.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_a_paused_server_time_out() {
    let server = server().await;
    let place = Place::new(server.clone(), "place".into()).await;
    let (served, store) = (
        KubeStore::new(place.widgets.clone()),
        KubeStore::new(place.widgets.clone()).request_timeout(SECOND),
    );
    let key = place.key("widget");
    let entry = served.get(&key).await.unwrap().expect("it is there");
    server.api.pause();
    let started = Instant::now();
    let read = store.get(&key).await;
    let write = store.put(&key, entry.value, Expected::Version(entry.version), None).await;
    // The upper bound is only against hanging: a busy machine adds to the two timeouts.
    assert!(started.elapsed() >= 2 * SECOND && started.elapsed() < LONG, "{:?}", started.elapsed());
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    assert!(matches!(write, Err(StoreError::Unavailable { .. })), "{write:?}");
    server.api.resume();
    assert!(served.get(&key).await.unwrap().is_some());
}

async fn simultaneous_parts_of_a_status_become_one_write(place: Place) {
    let guard = place.guard();
    let widget = place.widget().await;
    // All three wait for the election and are pending at the same time.
    let endings = join_all(["admitted", "healthy", "synced"].map(|part| {
        let ensuring = guard.ensure_part(&widget, part, move |widget| {
            let mut status = widget.status.clone().unwrap_or_default();
            status.phase = "ready".into();
            (status.conditions.insert(part.into(), 1) != Some(1)).then_some(status)
        });
        ended(ensuring)
    }));
    let endings = endings.await;
    let written = place.widget().await;
    assert!(endings.iter().all(|ending| is_written(ending, &written)), "{endings:?}");
    assert_eq!(written.status.unwrap().conditions.len(), 3);
    assert_eq!(counters(&guard).await.written, 1);
}

async fn recreated_object_is_a_different_object(place: Place) {
    let guard = place.guard();
    let before = place.widget().await;
    place.widgets.delete("widget", &DeleteParams::default()).await.unwrap();
    let gone = ended(guard.ensure_status(&before, seen)).await;
    assert!(matches!(gone, EnsureOutcome::Gone), "{gone:?}");
    widget::create(&place.widgets, "widget").await.unwrap();
    let gone = ended(guard.ensure_status(&before, seen)).await;
    assert!(matches!(gone, EnsureOutcome::Gone), "{gone:?}");
    let anew = place.widget().await;
    assert!(anew.status.is_none());
    let ending = ended(guard.ensure_status(&anew, seen)).await;
    assert!(is_written(&ending, &place.widget().await), "{ending:?}");
    assert_eq!(guard.guard().contention().counters().losses, 0, "a recreated object is no contention");
}
