//! Kubernetes objects as a store: their status, or the whole objects.

use std::{
    fmt::{self, Debug},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, GetParams, PostParams, Preconditions, Request},
    runtime::{WatchStreamExt, reflector, watcher},
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use super::{
    object::{
        Subject, body_of, decode, entry_of, invalid, is_unchanged, key_of, resource_version, split_key,
        valid_key,
    },
    reader::{Correction, Reader},
    request,
    watch::{self, Subscribers},
};
use crate::store::{Current, Entry, Event, Expected, Fence, Store, StoreError, Version, unavailable};

/// Stores the status of Kubernetes objects of one kind, or the whole objects.
///
/// A key is `namespace/name`, or the name of an object without a namespace. A value is the object
/// as JSON, without its `resourceVersion` and `managedFields`.
///
/// The JSON is that of `K`, so fields that `K` does not declare are lost. A write of the status
/// deletes those of the status and leaves the spec alone, because the server ignores it. For some
/// kinds of its own, such as pods, the server stores the labels and annotations that come with a
/// status: those that were read, which the resourceVersion ensures. A write of a [whole object](Self::whole_objects) deletes them everywhere: let `K` declare
/// all fields, or use [`DynamicObject`](kube::core::DynamicObject).
///
/// | | |
/// |---|---|
/// | reads | from a [reflector](Self::reader), or from the server if none is set |
/// | writes | `PUT` with the resourceVersion that was read, to the status or to the [whole object](Self::whole_objects) |
/// | watches | the stream that is [tapped](Self::tap), or a watch of its own |
/// | revision of a version | the resourceVersion |
///
/// A request waits at most [5 s](Self::request_timeout) for its answer, including the retries of
/// kube's client.
///
/// Clones share what they know. A setting changes the value it is called on; clones made earlier
/// keep theirs.
///
/// # Evidence
///
/// An object has many writers. A write is evidence that a competitor is alive if it changed the
/// subject (the status or the whole object) and its field manager is a
/// [competitor](Self::competitors). An edit of the spec is no evidence for a store of statuses, nor
/// is the deletion or recreation of an object. The field manager comes from the object's
/// `managedFields`: where these are cleared before the store sees them, every write of the subject
/// is evidence. They name the owners of fields, so a write that only removes fields is attributed
/// to the writer before it.
///
/// # Rights
///
/// `get`, `list` and `watch` on the kind, and `update` on its `status`. For whole objects: `create`
/// and `update` on the kind. To delete: `delete` on the kind.
///
/// # Deletions
///
/// A deletion is one of the whole object, also for a store of statuses. It succeeds when the server
/// accepts it: an object with finalizers exists until these are done.
///
/// # Interruptions
///
/// kube's watcher reconnects by itself and does not report when it succeeded. An interruption ends
/// with the next event, which may take long on a quiet cluster.
///
/// # Errors
///
/// | answer of the server | error |
/// |---|---|
/// | 409 | [`Conflict`](StoreError::Conflict) |
/// | 409 after kube's client repeated the request | [`Unavailable`](StoreError::Unavailable): its first try may have succeeded |
/// | 404 to a write | [`Conflict`](StoreError::Conflict) |
/// | 404 because the kind has no status, or the namespace is missing | [`Invalid`](StoreError::Invalid) |
/// | 401, 403 | [`Denied`](StoreError::Denied) |
/// | 413 | [`TooLarge`](StoreError::TooLarge) |
/// | 408, 429, 5xx, none | [`Unavailable`](StoreError::Unavailable) |
/// | 400, 422 and other refusals | [`Invalid`](StoreError::Invalid) |
///
/// Kubernetes cannot check a [`Fence`]: a write or a delete that carries one is
/// [`Invalid`](StoreError::Invalid).
pub struct KubeStore<K: Resource> {
    inner: Arc<Inner<K>>,
}

#[derive(Clone)]
struct Inner<K: Resource> {
    api: Api<K>,
    client: Client,
    kind: K::DynamicType,
    subject: Subject,
    manager: Arc<str>,
    competitors: Vec<Arc<str>>,
    request_timeout: Duration,
    watcher_config: watcher::Config,
    reader: Option<Arc<Reader<K>>>,
    /// The watches that a tapped stream feeds; `None` if each watch runs a watcher of its own.
    tap: Option<Arc<Mutex<Subscribers>>>,
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const MANAGER: &str = env!("CARGO_PKG_NAME");

impl<K> KubeStore<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// Stores the status of the objects of an API: of one namespace, or of all.
    pub fn new(api: Api<K>) -> Self
    where
        K::DynamicType: Default,
    {
        Self::with_kind(api, K::DynamicType::default())
    }

    /// Like [`new`](Self::new), for objects whose kind is known only at run time.
    pub fn with_kind(api: Api<K>, kind: K::DynamicType) -> Self {
        Self {
            inner: Arc::new(Inner {
                client: api.clone().into_client(),
                api,
                kind,
                subject: Subject::Status,
                manager: MANAGER.into(),
                competitors: vec![MANAGER.into()],
                request_timeout: REQUEST_TIMEOUT,
                watcher_config: watcher::Config::default(),
                reader: None,
                tap: None,
            }),
        }
    }

    /// Stores whole objects, which includes their creation, instead of the status of existing
    /// objects.
    #[must_use]
    pub fn whole_objects(self) -> Self {
        self.set(|inner| inner.subject = Subject::Object)
    }

    /// Sets the field manager of all replicas of this program: the name under which the server
    /// lists their writes in `managedFields`. It becomes the only [competitor](Self::competitors).
    /// Default, also for an empty name: `writerlease`.
    #[must_use]
    pub fn manager(self, name: &str) -> Self {
        // Without a name the server takes the client's user agent, and no replica would be a
        // competitor of another.
        let name = if name.is_empty() { MANAGER } else { name };
        self.set(|inner| {
            inner.manager = name.into();
            inner.competitors = vec![name.into()];
        })
    }

    /// Sets the field managers that compete for the lease, such as another version of this program
    /// under another name. Writes of other field managers are never evidence. Default: the
    /// [`manager`](Self::manager) alone.
    #[must_use]
    pub fn competitors(self, names: &[&str]) -> Self {
        self.set(|inner| inner.competitors = names.iter().map(|name| Arc::from(*name)).collect())
    }

    /// Sets how long a request waits for its answer. An attempt makes up to three requests: a read,
    /// a write, and another read after a 404. The limit should be well below the lease's attempt
    /// timeout (10 s), after which a hung attempt still blocks its key. Default: 5 s.
    #[must_use]
    pub fn request_timeout(self, limit: Duration) -> Self {
        self.set(|inner| inner.request_timeout = limit)
    }

    /// Reads from a reflector, such as that of a controller. Asks the server only where the
    /// reflector lacks an object, or is known to lag: behind a write of this store, a refusal, or
    /// what a guard's watch has reported. An object whose resourceVersion is no number is read from
    /// the server, because nothing shows whether the reflector lags.
    #[must_use]
    pub fn reader(self, reader: reflector::Store<K>) -> Self
    where
        K::DynamicType: Hash + Eq,
    {
        self.set(|inner| inner.reader = Some(Arc::new(Reader::new(reader, inner.kind.clone()))))
    }

    /// Sets what the store's own watch selects, such as the labels that the controller selects.
    /// Default: all objects.
    #[must_use]
    pub fn watcher_config(self, config: watcher::Config) -> Self {
        self.set(|inner| inner.watcher_config = config)
    }

    /// Learns from a watcher's stream instead of a watch of its own.
    ///
    /// Returns the store, for the guard, and the stream, for a controller or a reflector, so that
    /// both share one watch. The stream passes every item on, errors included. Poll it after the
    /// guard was made: a guard that missed the listing learns nothing until the watcher lists
    /// again. Tap one watcher at a time, of all objects that are guarded: each listing declares the
    /// objects that it lacks absent.
    ///
    /// When the stream is dropped, the guard's watch is interrupted. To continue it, tap another
    /// stream with a clone of the returned store.
    ///
    /// ```no_run
    /// use futures_util::StreamExt;
    /// use k8s_openapi::api::core::v1::Service;
    /// use kube::{
    ///     Api, Client,
    ///     runtime::{WatchStreamExt, reflector, watcher},
    /// };
    /// use writerlease::{
    ///     WriterLease,
    ///     kube::{KubeStore, StatusGuard},
    /// };
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let services = Api::<Service>::all(Client::try_default().await?);
    /// let events = watcher(services.clone(), watcher::Config::default()).default_backoff();
    /// let (reader, writer) = reflector::store();
    /// let (store, events) = KubeStore::new(services).reader(reader).tap(events);
    /// let guard = StatusGuard::new(store, WriterLease::builder("services").spawn()?)?;
    /// events.reflect(writer).for_each(async |_| {}).await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "the store learns from the stream only while the stream is polled"]
    pub fn tap<S>(
        self,
        events: S,
    ) -> (Self, impl Stream<Item = watcher::Result<watcher::Event<K>>> + use<S, K>)
    where
        S: Stream<Item = watcher::Result<watcher::Event<K>>>,
    {
        let subscribers = self.inner.tap.clone().unwrap_or_default();
        let store = self.set(|inner| inner.tap = Some(subscribers.clone()));
        let inner = store.inner.clone();
        let subscribers = InterruptOnDrop(subscribers);
        let events = events.inspect(move |item| {
            subscribers.0.lock().emit(item, |object| inner.entry(object));
        });
        (store, events)
    }

    /// Returns the key of an object.
    pub fn key(object: &K) -> Arc<str> {
        key_of(object)
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    fn set(mut self, change: impl FnOnce(&mut Inner<K>)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// Interprets a 404 to a write. Mostly the object was deleted; if it still has the expected
    /// version, or was to be created, the request named a place that does not exist.
    async fn not_found(&self, key: &str, expected: &Expected) -> StoreError {
        let reason = match expected {
            Expected::Absent => "the namespace or the kind does not exist",
            Expected::Version(version) => match self.get(key).await {
                Err(error) => return error,
                Ok(Some(entry)) if entry.version == *version => {
                    "objects of this kind have no status subresource"
                }
                Ok(_) => return StoreError::Conflict { current: Current::Absent },
            },
        };
        invalid(reason)
    }
}

/// Belongs to a tapped stream.
struct InterruptOnDrop(Arc<Mutex<Subscribers>>);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        self.0.lock().interrupt();
    }
}

impl<K: Resource> Clone for KubeStore<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Resource> Debug for KubeStore<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeStore")
            .field("url", &self.inner.api.resource_url())
            .field("subject", &self.inner.subject)
            .field("manager", &self.inner.manager)
            .finish_non_exhaustive()
    }
}

impl<K: Resource + Serialize> Inner<K> {
    fn entry(&self, object: &K) -> Result<Entry, StoreError> {
        entry_of(object, self.subject, &self.competitors)
    }

    fn request(&self, namespace: Option<&str>) -> Request {
        Request::new(K::url_path(&self.kind, namespace))
    }

    fn correct(&self, key: &str, correction: Correction) {
        if let Some(reader) = &self.reader {
            reader.correct(key, correction);
        }
    }
}

impl<K> Store for KubeStore<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let inner = &*self.inner;
        let key = valid_key(key)?;
        if let Some(entry) =
            inner.reader.as_ref().and_then(|reader| reader.get(key, |object| inner.entry(object)))
        {
            return Ok(Some(entry));
        }
        self.get_uncached(key).await
    }

    async fn get_uncached(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let inner = &*self.inner;
        let (namespace, name) = split_key(valid_key(key)?);
        let request = inner.request(namespace).get(name, &GetParams::default()).map_err(invalid_request)?;
        let Some(answer) = request::read(&inner.client, request, inner.request_timeout).await? else {
            return Ok(None);
        };
        let entry = inner.entry(&decode(answer.as_bytes())?)?;
        inner.correct(key, Correction::Current(entry.clone()));
        Ok(Some(entry))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let inner = &*self.inner;
        reject_fence(fence)?;
        let (namespace, name) = split_key(valid_key(key)?);
        let request = inner.request(namespace);
        let params = PostParams { field_manager: Some(inner.manager.to_string()), ..PostParams::default() };
        let request = match (&expected, inner.subject) {
            (Expected::Version(version), Subject::Status) => {
                request.replace_subresource("status", name, &params, body_of(&value, Some(version))?)
            }
            (Expected::Version(version), Subject::Object) => {
                request.replace(name, &params, body_of(&value, Some(version))?)
            }
            (Expected::Absent, Subject::Object) => request.create(&params, body_of(&value, None)?),
            (Expected::Absent, Subject::Status) => {
                return Err(invalid("a status cannot be created without its object"));
            }
        };
        let written =
            request::write(&inner.client, request.map_err(invalid_request)?, inner.request_timeout).await;
        if let Err(StoreError::Conflict { current }) = &written {
            if let Expected::Version(version) = &expected {
                inner.correct(key, Correction::Outdated(version.clone()));
            }
            if *current == Current::Absent {
                return Err(self.not_found(key, &expected).await);
            }
        }
        let entry = decode(written?.as_bytes()).and_then(|object| inner.entry(&object));
        // The write succeeded, whatever is wrong with its answer.
        let entry = entry.map_err(|error| unavailable(format!("the answer cannot be read: {error}")))?;
        if inner.subject == Subject::Status && !is_unchanged(Some(&entry.value), &value, Subject::Status) {
            tracing::warn!(
                key,
                "the server changed the status while storing it, probably by dropping fields that the schema does not declare; \
                 a reconcile that sets such a field will never be satisfied",
            );
        }
        let version = entry.version.clone();
        inner.correct(key, Correction::Current(entry));
        Ok(version)
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        let inner = &*self.inner;
        reject_fence(fence)?;
        let (namespace, name) = split_key(valid_key(key)?);
        let preconditions =
            Preconditions { resource_version: Some(resource_version(expected)), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(preconditions);
        let request = inner.request(namespace).delete(name, &params).map_err(invalid_request)?;
        let deleted = request::write(&inner.client, request, inner.request_timeout).await;
        inner.correct(key, Correction::Outdated(expected.clone()));
        deleted.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let inner = &self.inner;
        let Some(tap) = &inner.tap else {
            let events = watcher(inner.api.clone(), inner.watcher_config.clone()).default_backoff();
            let inner = inner.clone();
            let entry_of = move |object: &K| inner.entry(object);
            return Either::Left(watch::translated(prefix.to_owned(), events, entry_of));
        };
        let (sender, items) = mpsc::unbounded_channel();
        tap.lock().add(prefix, sender);
        Either::Right(futures_util::stream::unfold(items, |mut items| async move {
            Some((items.recv().await?, items))
        }))
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        let inner = &*self.inner;
        let by_competitor =
            version.writer().is_none_or(|by| inner.competitors.iter().any(|one| **one == *by));
        by_competitor && !is_unchanged(before, after, inner.subject)
    }
}

fn reject_fence(fence: Option<&Fence>) -> Result<(), StoreError> {
    match fence {
        None => Ok(()),
        Some(_) => Err(invalid("Kubernetes cannot check a fence")),
    }
}

fn invalid_request(error: kube::core::request::Error) -> StoreError {
    StoreError::Invalid { reason: "the request cannot be built".into(), source: Some(error.into()) }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::{
        client::Body,
        core::{ApiResource, DynamicObject, GroupVersionKind},
    };
    use serde_json::json;
    use tower::{BoxError, service_fn};

    use super::*;

    type Objects = KubeStore<DynamicObject>;

    fn kind() -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"))
    }

    type Answer = Result<Response<Body>, BoxError>;

    /// Makes a store whose server answers as `answer` says.
    fn store_of(answer: impl Fn(Request<Body>) -> Answer + Send + 'static) -> Objects {
        let service = service_fn(move |request| std::future::ready(answer(request)));
        KubeStore::with_kind(Api::all_with(Client::new(service, "default"), &kind()), kind())
    }

    /// Makes a store without a server.
    fn store() -> Objects {
        store_of(|_| Err("this test needs no server".into()))
    }

    fn object(name: &str, version: u64, status: &str, manager: &str) -> DynamicObject {
        let managed = json!({
            "manager": manager, "operation": "Update", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:status": {} },
        });
        let object = json!({
            "apiVersion": "example.com/v1", "kind": "Widget",
            "metadata": {
                "name": name, "namespace": "ns", "resourceVersion": version.to_string(), "managedFields": [managed],
            },
            "status": { "phase": status },
        });
        serde_json::from_value(object).unwrap()
    }

    fn entry(object: &DynamicObject) -> Entry {
        entry_of(object, Subject::Status, &[]).unwrap()
    }

    #[tokio::test]
    async fn only_competitors_writes_of_the_subject_are_evidence() {
        let store = store().manager("controller").competitors(&["controller", "controller-v2"]);
        let before = entry(&object("a", 1, "old", "controller"));
        for (status, manager, competes) in [
            ("new", "controller", true),
            ("new", "controller-v2", true),
            ("new", "person", false),
            ("old", "controller", false),
        ] {
            let after = entry(&object("a", 2, status, manager));
            let judged = store.competes(Some(&before.value), &after.value, &after.version);
            assert_eq!(judged, competes, "{status} by {manager}");
        }
        let mut unmanaged = object("a", 2, "new", "");
        unmanaged.metadata.managed_fields = None;
        let after = entry(&unmanaged);
        assert!(
            store.competes(Some(&before.value), &after.value, &after.version),
            "the writer may be a competitor"
        );

        // A new object begins without a status, even if another object had its name before.
        let mut recreated = unmanaged;
        recreated.metadata.uid = Some("another".into());
        for (status, competes) in [(Some("new"), true), (Some("old"), true), (None, false)] {
            match status {
                Some(status) => recreated.data["status"]["phase"] = json!(status),
                None => drop(recreated.data.as_object_mut().unwrap().remove("status")),
            }
            let after = entry(&recreated);
            for before in [None, Some(&*before.value)] {
                assert_eq!(store.competes(before, &after.value, &after.version), competes, "{status:?}");
            }
        }
    }

    #[tokio::test]
    async fn writing_a_deleted_object_is_a_conflict() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let requests = requests.clone();
            move |request: Request<Body>| {
                requests.lock().push(request.method().clone());
                let status =
                    json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
                Ok(Response::builder().status(404).body(Body::from(status.to_string().into_bytes()))?)
            }
        };
        let mut writer = reflector::store::Writer::new(kind());
        let store = store_of(server).reader(writer.as_reader());
        let object = object("a", 1, "old", "controller");
        writer.apply_watcher_event(&watcher::Event::Apply(object));
        let read = store.get("ns/a").await.unwrap().expect("the reader has the object");
        let refused = store.put("ns/a", read.value, Expected::Version(read.version), None).await;
        assert!(matches!(refused, Err(StoreError::Conflict { current: Current::Absent })), "{refused:?}");
        assert_eq!(store.get("ns/a").await.unwrap(), None, "the reader is known to lag");
        assert_eq!(*requests.lock(), [http::Method::PUT, http::Method::GET, http::Method::GET]);
    }

    #[tokio::test(start_paused = true)]
    async fn reader_behind_the_watch_hides_no_edit() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let requests = requests.clone();
            move |request: Request<Body>| {
                requests.lock().push(request.method().clone());
                Err("nobody answers".into())
            }
        };
        let mut writer = reflector::store::Writer::new(kind());
        let (tell, told) = mpsc::unbounded_channel();
        let events = futures_util::stream::unfold(told, |mut told: mpsc::UnboundedReceiver<_>| async move {
            Some((told.recv().await?, told))
        });
        let (store, events) = store_of(server).reader(writer.as_reader()).tap(events);
        let lease = crate::WriterLease::builder("test").seed(1).spawn().unwrap();
        let guard = crate::Guard::new(store, lease, "").unwrap();
        tokio::spawn(events.for_each(async |_| {}));
        let right = object("a", 10, "right", MANAGER);
        writer.apply_watcher_event(&watcher::Event::Apply(right.clone()));
        let broken = object("a", 12, "broken", "person");
        let listing =
            [watcher::Event::Init, watcher::Event::InitApply(right), watcher::Event::InitDone].map(Ok);
        for event in listing.into_iter().chain([Ok(watcher::Event::Apply(broken))]) {
            tell.send(event).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut ensured = guard.ensure_existing("ns/a", |current| {
            let mut value: serde_json::Value = serde_json::from_slice(current).unwrap();
            (value["status"]["phase"] != "right").then(|| {
                value["status"]["phase"] = json!("right");
                serde_json::to_vec(&value).unwrap()
            })
        });
        let pending = tokio::time::timeout(Duration::from_secs(1), &mut ensured).await;
        assert!(pending.is_err(), "the object is broken: {pending:?}");
        assert_eq!(guard.lease().snapshot().counters.evidence, 0);
        assert_eq!(requests.lock().first(), Some(&http::Method::GET), "past the reader");
    }

    #[tokio::test]
    async fn write_with_an_unreadable_answer_may_have_succeeded() {
        let store = store_of(|_| Ok(Response::new(Body::from(b"<html>".to_vec()))));
        let read = entry(&object("a", 1, "old", "controller"));
        let written = store.put("ns/a", read.value, Expected::Version(read.version), None).await;
        assert!(matches!(written, Err(StoreError::Unavailable { .. })), "{written:?}");
    }

    #[tokio::test]
    async fn empty_manager_is_the_default() {
        assert_eq!(&*store().manager("").inner.manager, MANAGER);
    }

    #[tokio::test]
    async fn settings_of_a_clone_leave_the_original_alone() {
        let original = store().manager("controller");
        let clone = original.clone().manager("other").request_timeout(Duration::from_secs(1)).whole_objects();
        assert_eq!((&*original.inner.manager, original.inner.subject), ("controller", Subject::Status));
        assert_eq!((&*clone.inner.manager, clone.inner.subject), ("other", Subject::Object));
        assert_eq!(original.inner.request_timeout, REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn a_later_tap_continues_an_earlier_watch() {
        let listing = |name: &str, version| {
            let object = object(name, version, "any", "controller");
            let events = [watcher::Event::Init, watcher::Event::InitApply(object), watcher::Event::InitDone];
            futures_util::stream::iter(events.map(Ok))
        };
        let (store, first) = store().tap(listing("a", 1));
        let mut watch = Box::pin(store.watch("ns/"));
        let mut items = async |count| -> Vec<_> { watch.by_ref().take(count).collect().await };
        assert_eq!(first.count().await, 3, "all items pass through");
        let seen = items(4).await;
        assert!(
            matches!(&seen[..], [Ok(Event::Init), Ok(Event::InitEntry(entry)), Ok(Event::InitDone), Err(_)]
                if &*entry.key == "ns/a"),
            "{seen:?}"
        );
        // A clone with a setting shares the subscribers, too.
        let (_, second) = store.clone().manager("controller").tap(listing("b", 2));
        second.for_each(async |_| {}).await;
        let seen = items(4).await;
        assert!(
            matches!(&seen[..], [Ok(Event::Init), Ok(Event::InitEntry(entry)), Ok(Event::InitDone), Err(_)]
                if &*entry.key == "ns/b"),
            "{seen:?}"
        );
    }
}
