//! Kubernetes objects as a store: their status, or all of them.

use std::{
    collections::HashMap,
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
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use super::{
    object::{Subject, body_of, decode, entry_of, is_same, key_of, names, resource_version, version_of},
    request,
    watch::{self, Taps},
};
use crate::store::{Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty};

/// Stores the status of Kubernetes objects of one kind, or the objects themselves.
///
/// A key is `namespace/name`, or the name alone where there are no namespaces. A value is the object as JSON, without its
/// `resourceVersion` and `managedFields`: as JSON of `K`, so what `K` does not know is left out. That is no matter where
/// only the status is written and `K` knows that, because then the server ignores all else. Fields of the status that `K` does
/// not know are deleted by a write; to write whole objects let `K` know all of them, or be
/// [`DynamicObject`](kube::core::DynamicObject).
///
/// | | |
/// |---|---|
/// | reads | from a reflector's [`Store`](reflector::Store), if there is [one](Self::reader), and otherwise from the server |
/// | writes | `PUT` with the resourceVersion that was read; the status alone, unless [whole objects](Self::whole_objects) |
/// | watches | what [`observe`](Self::observe) is given, if it is, and otherwise [a watch of its own](Self::watching) |
/// | order | that of the resourceVersions |
///
/// A request waits for its answer for [at most 5 s](Self::timeout), whatever kube's client tries meanwhile.
///
/// # Whose writes are evidence
///
/// An object has many writers. A write shows that a competitor is alive only if it changed what the guard writes, and was
/// made by a field manager that [competes](Self::competitors). That somebody edits the spec says nothing, nor that somebody
/// deletes an object or makes it anew. It takes the objects' `managedFields`: where those are cleared before
/// [`observe`](Self::observe), whoever writes the status is a competitor.
///
/// # Rights
///
/// `get`, `list` and `watch` on the kind, and `update` on its `status`; for whole objects `create`, `update` and `delete`.
///
/// # Interruptions
///
/// kube's watcher repairs itself and does not say when: an interruption counts as over when the next event comes, which on a
/// quiet cluster takes its time.
///
/// # Errors
///
/// 409 is a conflict, and so is 404 on a write, unless the object is there and has no status or there is no place to make it
/// ([`StoreError::Invalid`]); 401 and 403 are [`StoreError::Denied`], 413 [`StoreError::TooLarge`], 429 and
/// 5xx [`StoreError::Unavailable`], and what else the server refuses (400, 422) [`StoreError::Invalid`]. A conflict that came
/// after kube's client had tried more than once is `Unavailable`: it may be with our own first try. There are no fences.
pub struct KubeStore<K: Resource> {
    inner: Arc<Inner<K>>,
}

struct Inner<K: Resource> {
    api: Api<K>,
    client: Client,
    kind: K::DynamicType,
    subject: Subject,
    manager: Arc<str>,
    competitors: Vec<Arc<str>>,
    timeout: Duration,
    watched: watcher::Config,
    reader: Option<Reader<K>>,
    /// Where the reader may be behind: what we wrote, or know to be stale.
    ahead: Mutex<HashMap<Arc<str>, Ahead>>,
    /// None, if it watches by itself.
    taps: Option<Mutex<Taps>>,
}

/// Looks an object up by namespace and name. (A reflector's store asks more of `K` than those need who have none.)
type Reader<K> = Box<dyn Fn(Option<&str>, &str) -> Option<Arc<K>> + Send + Sync>;

/// What we know that a reader may not.
enum Ahead {
    /// It was this, or is newer.
    Is(Entry),
    /// It is not this any more.
    Not(Version),
}

/// For so long a request waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The field manager, until it is set.
const MANAGER: &str = env!("CARGO_PKG_NAME");

impl<K> KubeStore<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// The status of the objects of an API: of one namespace, or of all.
    pub fn new(api: Api<K>) -> Self
    where
        K::DynamicType: Default,
    {
        Self::with_kind(api, K::DynamicType::default())
    }

    /// The same for objects whose kind is known only when the program runs.
    pub fn with_kind(api: Api<K>, kind: K::DynamicType) -> Self {
        Self {
            inner: Arc::new(Inner {
                client: api.clone().into_client(),
                api,
                kind,
                subject: Subject::Status,
                manager: MANAGER.into(),
                competitors: vec![MANAGER.into()],
                timeout: TIMEOUT,
                watched: watcher::Config::default(),
                reader: None,
                ahead: Mutex::default(),
                taps: None,
            }),
        }
    }

    /// Writes whole objects, and creates them, instead of the status of those that there are.
    #[must_use]
    pub fn whole_objects(self) -> Self {
        self.set(|inner| inner.subject = Subject::Object)
    }

    /// The name under which the server notes our writes in `managedFields`, and that of our competitors, who are other replicas
    /// of the same program. Default: `writerlease`.
    #[must_use]
    pub fn manager(self, name: &str) -> Self {
        self.set(|inner| {
            inner.manager = name.into();
            inner.competitors = vec![name.into()];
        })
    }

    /// The field managers that do the same work as we, such as the name of another version of the program. Default: the
    /// [`manager`](Self::manager) alone. Writes of others are never evidence.
    #[must_use]
    pub fn competitors(self, names: &[&str]) -> Self {
        self.set(|inner| inner.competitors = names.iter().map(|name| Arc::from(*name)).collect())
    }

    /// How long a request waits for its answer. Default: 5 s. It should be well below the lease's attempt timeout (10 s).
    #[must_use]
    pub fn timeout(self, limit: Duration) -> Self {
        self.set(|inner| inner.timeout = limit)
    }

    /// Reads from a reflector, such as a controller has, and asks the server only where that is known to be behind.
    #[must_use]
    pub fn reader(self, reader: reflector::Store<K>) -> Self
    where
        K::DynamicType: Hash + Eq,
    {
        let kind = self.inner.kind.clone();
        self.set(|inner| {
            inner.reader = Some(Box::new(move |namespace, name| {
                let object = ObjectRef::new_with(name, kind.clone());
                reader.get(&match namespace {
                    Some(namespace) => object.within(namespace),
                    None => object,
                })
            }));
        })
    }

    /// What the store's own watch looks for, such as the labels that the controller selects by. Default: everything.
    #[must_use]
    pub fn watching(self, config: watcher::Config) -> Self {
        self.set(|inner| inner.watched = config)
    }

    /// Starts no watch, but learns from what [`observe`](Self::observe) is given.
    #[must_use]
    pub fn observing(self) -> Self {
        self.set(|inner| inner.taps = Some(Mutex::default()))
    }

    /// Passes the events of a watcher through, and learns from them: no watch beside the one that feeds a controller or a
    /// reflector. Its errors are passed through, too. A stream that is dropped is an interruption, and another one may follow.
    ///
    /// The guard must exist before the stream is polled, or it knows nothing before the watcher lists again.
    ///
    /// # Panics
    ///
    /// If the store is not [`observing`](Self::observing).
    pub fn observe<S>(&self, events: S) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + use<S, K>
    where
        S: Stream<Item = watcher::Result<watcher::Event<K>>>,
    {
        assert!(self.inner.taps.is_some(), "a store that is to observe must be made with `observing`");
        let source = Source(self.inner.clone());
        events.inspect(move |item| {
            let inner = &source.0;
            if let Some(taps) = &inner.taps {
                taps.lock().tell(item, |object| inner.entry(object));
            }
        })
    }

    /// The key of an object.
    pub fn key(object: &K) -> Arc<str> {
        key_of(object)
    }

    fn set(mut self, change: impl FnOnce(&mut Inner<K>)) -> Self {
        let inner = Arc::get_mut(&mut self.inner).expect("settings come before the first clone");
        change(inner);
        self
    }
}

/// What is observed, until it is dropped.
struct Source<K: Resource>(Arc<Inner<K>>);

impl<K: Resource> Drop for Source<K> {
    fn drop(&mut self) {
        if let Some(taps) = &self.0.taps {
            taps.lock().interrupt();
        }
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

    fn read(&self, key: &str) -> Option<Arc<K>> {
        let (namespace, name) = names(key);
        self.reader.as_ref()?(namespace, name)
    }

    /// What the reader has, if it is not known to be behind; or what we know better.
    fn cached(&self, key: &str) -> Option<Entry> {
        let object = self.read(key)?;
        let mut ahead = self.ahead.lock();
        match ahead.get(key) {
            Some(known) if known.is_ahead_of(&*object) => return known.entry(),
            Some(_) => drop(ahead.remove(key)),
            None => {}
        }
        self.entry(&object).ok()
    }

    fn is_ahead(&self, key: &str, known: Ahead) {
        if self.reader.is_none() {
            return;
        }
        let mut ahead = self.ahead.lock();
        // Before it grows. Of what is deleted the reader has nothing that could be behind.
        if ahead.len() == ahead.capacity() {
            ahead.retain(|key, known| self.read(key).is_some_and(|object| known.is_ahead_of(&*object)));
        }
        ahead.insert(key.into(), known);
    }
}

impl Ahead {
    fn is_ahead_of(&self, object: &impl Resource) -> bool {
        let order =
            object.meta().resource_version.as_deref().and_then(|version| version_of(version).revision());
        match self {
            Self::Is(entry) => order < entry.version.revision(),
            Self::Not(version) => order <= version.revision(),
        }
    }

    fn entry(&self) -> Option<Entry> {
        match self {
            Self::Is(entry) => Some(entry.clone()),
            Self::Not(_) => None,
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
        if let Some(entry) = inner.cached(non_empty(key)?) {
            return Ok(Some(entry));
        }
        let (namespace, name) = names(key);
        let request = inner.request(namespace).get(name, &GetParams::default()).map_err(unsent)?;
        let Some(answer) = request::read(&inner.client, request, inner.timeout).await? else {
            return Ok(None);
        };
        let entry = inner.entry(&decode(answer.as_bytes())?)?;
        inner.is_ahead(key, Ahead::Is(entry.clone()));
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
        unfenced(fence)?;
        let (namespace, name) = names(non_empty(key)?);
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
                let reason = "an object that does not exist has no status".into();
                return Err(StoreError::Invalid { reason, source: None });
            }
        };
        let written = request::write(&inner.client, request.map_err(unsent)?, inner.timeout).await;
        if let Err(StoreError::Conflict { current }) = &written {
            if let Expected::Version(version) = &expected {
                inner.is_ahead(key, Ahead::Not(version.clone()));
            }
            if *current == Current::Absent {
                return Err(self.missing(key, &expected).await);
            }
        }
        let entry = inner.entry(&decode(written?.as_bytes())?)?;
        if inner.subject == Subject::Status && !is_same(Some(&entry.value), &value, Subject::Status) {
            tracing::warn!(
                key,
                "the server did not store the status as it was written: are there fields that its schema does not have? \
                 Whoever wants them again will not be content",
            );
        }
        let version = entry.version.clone();
        inner.is_ahead(key, Ahead::Is(entry));
        Ok(version)
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        let inner = &*self.inner;
        unfenced(fence)?;
        let (namespace, name) = names(non_empty(key)?);
        let preconditions =
            Preconditions { resource_version: Some(resource_version(expected)), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(preconditions);
        let request = inner.request(namespace).delete(name, &params).map_err(unsent)?;
        let deleted = request::write(&inner.client, request, inner.timeout).await;
        inner.is_ahead(key, Ahead::Not(expected.clone()));
        deleted.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let inner = &self.inner;
        let Some(taps) = &inner.taps else {
            let entries = inner.clone();
            let entry = move |object: &K| entries.entry(object);
            let events = watcher(inner.api.clone(), inner.watched.clone()).default_backoff();
            return Either::Left(watch::own(prefix.to_owned(), events, entry));
        };
        let (told, events) = mpsc::unbounded_channel();
        taps.lock().add(prefix, told);
        Either::Right(futures_util::stream::unfold(events, |mut events| async move {
            Some((events.recv().await?, events))
        }))
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        let inner = &*self.inner;
        let by_competitor =
            version.writer().is_none_or(|by| inner.competitors.iter().any(|one| **one == *by));
        by_competitor && !is_same(before, after, inner.subject)
    }
}

impl<K> KubeStore<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// What it means that the server found nothing where a write should go: mostly that the object is gone, but if it is still
    /// what the write was based on, or if it was to be made, then there is no place for it.
    async fn missing(&self, key: &str, expected: &Expected) -> StoreError {
        let reason = match expected {
            Expected::Absent => "there is no such namespace, or no such kind",
            Expected::Version(version) => match self.get(key).await {
                Err(error) => return error,
                Ok(Some(entry)) if entry.version == *version => {
                    "objects of this kind have no status subresource"
                }
                Ok(_) => return StoreError::Conflict { current: Current::Absent },
            },
        };
        StoreError::Invalid { reason: reason.into(), source: None }
    }
}

fn unfenced(fence: Option<&Fence>) -> Result<(), StoreError> {
    match fence {
        None => Ok(()),
        Some(_) => {
            let reason = "Kubernetes has nothing to check a fence with".into();
            Err(StoreError::Invalid { reason, source: None })
        }
    }
}

fn unsent(error: kube::core::request::Error) -> StoreError {
    StoreError::Invalid { reason: "no request can be made of that".into(), source: Some(error.into()) }
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

    /// A store over a server that answers so.
    fn store_of(answer: impl Fn(Request<Body>) -> Answer + Send + 'static) -> Objects {
        let service = service_fn(move |request| std::future::ready(answer(request)));
        KubeStore::with_kind(Api::all_with(Client::new(service, "default"), &kind()), kind())
    }

    /// A store over no server.
    fn store() -> Objects {
        store_of(|_| Err("nobody is asked".into()))
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
    async fn only_a_competitors_write_of_what_we_write_is_evidence() {
        let store = store().manager("controller").competitors(&["controller", "controller-v2"]);
        let before = entry(&object("a", 1, "old", "controller"));
        for (status, manager, competes) in [
            ("new", "controller", true),
            ("new", "controller-v2", true),
            ("new", "person", false),
            ("old", "controller", false),
        ] {
            let after = entry(&object("a", 2, status, manager));
            let told = store.competes(Some(&before.value), &after.value, &after.version);
            assert_eq!(told, competes, "{status} by {manager}");
        }
        let mut nobodys = object("a", 2, "new", "");
        nobodys.metadata.managed_fields = None;
        let after = entry(&nobodys);
        assert!(store.competes(Some(&before.value), &after.value, &after.version), "it may be theirs");

        // Nobody wrote the status of an object that is new, also if another one had its name before.
        let mut anew = nobodys;
        anew.metadata.uid = Some("another".into());
        for (status, competes) in [(Some("new"), true), (Some("old"), true), (None, false)] {
            match status {
                Some(status) => anew.data["status"]["phase"] = json!(status),
                None => drop(anew.data.as_object_mut().unwrap().remove("status")),
            }
            let after = entry(&anew);
            for before in [None, Some(&*before.value)] {
                assert_eq!(store.competes(before, &after.value, &after.version), competes, "{status:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_write_of_what_is_deleted_is_a_conflict_also_while_the_reader_still_has_it() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let asked = asked.clone();
            move |request: Request<Body>| {
                asked.lock().push(request.method().clone());
                let status =
                    json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
                Ok(Response::builder().status(404).body(Body::from(status.to_string().into_bytes()))?)
            }
        };
        let mut writer = reflector::store::Writer::new(kind());
        let store = store_of(server).reader(writer.as_reader());
        let object = object("a", 1, "old", "controller");
        writer.apply_watcher_event(&watcher::Event::Apply(object));
        let read = store.get("ns/a").await.unwrap().expect("the reader has it");
        let refused = store.put("ns/a", read.value, Expected::Version(read.version), None).await;
        assert!(matches!(refused, Err(StoreError::Conflict { current: Current::Absent })), "{refused:?}");
        assert_eq!(store.get("ns/a").await.unwrap(), None, "what the reader has is not believed any more");
        assert_eq!(*asked.lock(), [http::Method::PUT, http::Method::GET, http::Method::GET]);
    }

    #[tokio::test]
    async fn what_we_know_better_than_the_reader_is_forgotten_when_it_has_caught_up_or_the_object_is_gone() {
        let mut writer = reflector::store::Writer::new(kind());
        let store = store().reader(writer.as_reader());
        let inner = &store.inner;
        let mut reads =
            |object: &DynamicObject| writer.apply_watcher_event(&watcher::Event::Apply(object.clone()));
        let [old, new, newer] = [1, 2, 3].map(|version| object("a", version, "any", "controller"));
        reads(&old);
        assert_eq!(inner.cached("ns/a"), Some(entry(&old)));
        inner.is_ahead("ns/a", Ahead::Is(entry(&new)));
        assert_eq!(inner.cached("ns/a"), Some(entry(&new)));
        inner.is_ahead("ns/a", Ahead::Not(entry(&new).version));
        assert_eq!(inner.cached("ns/a"), None, "the server is asked");
        reads(&new);
        assert_eq!(inner.cached("ns/a"), None);
        reads(&newer);
        assert_eq!(inner.cached("ns/a"), Some(entry(&newer)));
        assert!(inner.ahead.lock().is_empty());

        // Objects come, are written once, and go.
        for version in 10..1000 {
            let object = object(&format!("b-{version}"), version, "any", "controller");
            inner.is_ahead(&entry(&object).key, Ahead::Is(entry(&object)));
        }
        assert!(inner.ahead.lock().len() < 10, "{}", inner.ahead.lock().len());
    }
}
