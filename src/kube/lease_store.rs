//! A roster as `Lease` objects.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};

use super::{
    object::{decode, invalid, version_of},
    store::KubeStore,
    watch,
};
use crate::store::{Entry, Event, Expected, Fence, Store, StoreError, Version};

/// Stores a [`Roster`](crate::Roster) as `Lease` objects of `coordination.k8s.io/v1` in one namespace.
/// [`StatusGuard::join`](super::StatusGuard::join) makes one by itself.
///
/// | | |
/// |---|---|
/// | key | `<group>/<name>`: the group is the prefix of the roster, and needs to be a DNS label (RFC 1123); the name a DNS subdomain |
/// | object | `<group>.<name>`, with `name` as its `holderIdentity` and `group` as the label `writerlease/roster` |
/// | value | the annotation `writerlease/entry`, so values are text |
/// | owner | the pod of the environment variables `POD_NAME` and `POD_UID`, if both are set (by the downward API) and it is in this namespace: Kubernetes deletes the entry with the pod |
///
/// Nothing renews these objects, and they have no duration: `kubectl get leases` shows who is about.
///
/// # Rights
///
/// `get`, `list`, `watch`, `create`, `update` and `delete` on `leases` of `coordination.k8s.io`: those that
/// a controller with leader election has, and `delete`.
///
/// # Calls
///
/// As for [`KubeStore`], whose errors and timeouts these are. A key or a value that cannot be stored is
/// [`Invalid`](StoreError::Invalid), and so is a [`Fence`].
///
/// ```no_run
/// use writerlease::{Roster, WriterLease, kube::LeaseStore};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let client = kube::Client::try_default().await?;
/// let namespace = client.default_namespace().to_owned();
/// let lease = WriterLease::builder("dns-records").spawn::<u64>()?;
/// lease.join(LeaseStore::new(client, &namespace), Roster::new("dns-controller"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<Lease>,
    objects: KubeStore<Lease>,
    namespace: Arc<str>,
    owner: Option<OwnerReference>,
}

/// The label with the group.
const GROUP: &str = "writerlease/roster";
/// The annotation with the value.
const VALUE: &str = "writerlease/entry";

impl LeaseStore {
    /// Stores entries in a namespace, which must exist.
    pub fn new(client: Client, namespace: &str) -> Self {
        // An owner in another namespace counts as gone, and its dependents are deleted.
        let is_own = client.default_namespace() == namespace;
        let api = Api::namespaced(client, namespace);
        Self {
            objects: KubeStore::new(api.clone()).whole_objects(),
            api,
            namespace: namespace.into(),
            owner: owner(|variable| std::env::var(variable).ok()).filter(|_| is_own),
        }
    }

    /// Returns the key of the object that holds an entry.
    fn object_key(&self, key: &str) -> Result<String, StoreError> {
        let (group, name) = split(key)?;
        Ok(format!("{}/{group}.{name}", self.namespace))
    }

    /// Returns the object that holds an entry, as JSON.
    fn object(&self, key: &str, value: &[u8]) -> Result<Bytes, StoreError> {
        let (group, name) = split(key)?;
        let value = std::str::from_utf8(value).map_err(|_| invalid("the value is no text"))?;
        let only = |name: &str, value: &str| Some(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(format!("{group}.{name}")),
                namespace: Some(self.namespace.to_string()),
                labels: only(GROUP, group),
                annotations: only(VALUE, value),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec { holder_identity: Some(name.to_owned()), ..LeaseSpec::default() }),
        };
        let json = serde_json::to_vec(&lease);
        Ok(json.map_err(|_| invalid("the object cannot be encoded"))?.into())
    }
}

impl Store for LeaseStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = self.objects.get(&self.object_key(key)?).await?;
        read.map(|entry| entry_of(&decode(&entry.value)?, entry.version)).transpose()
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let object = self.object(key, &value)?;
        self.objects.put(&self.object_key(key)?, object, expected, fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.objects.delete(&self.object_key(key)?, expected, fence).await
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        // The Leases of leader elections, which change every few seconds, are left out.
        let selector = match prefix.split_once('/') {
            Some((group, _)) => format!("{GROUP}={group}"),
            None => GROUP.to_owned(),
        };
        let config = watcher::Config::default().labels(&selector);
        let events = watcher(self.api.clone(), config).default_backoff();
        watch::translated(prefix.to_owned(), events, |lease: &Lease| {
            let Some(version) = &lease.metadata.resource_version else {
                return Err(invalid("the object has no resourceVersion"));
            };
            entry_of(lease, version_of(version))
        })
    }
}

impl fmt::Debug for LeaseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseStore")
            .field("namespace", &self.namespace)
            .field("owner", &self.owner.as_ref().map(|owner| &owner.name))
            .finish_non_exhaustive()
    }
}

/// Splits a key into the group and the name. The group has no dot, so that the name of an object can be
/// split, too.
fn split(key: &str) -> Result<(&str, &str), StoreError> {
    key.split_once('/')
        .filter(|(group, name)| !group.is_empty() && !group.contains('.') && !name.is_empty())
        .ok_or_else(|| invalid("the key is no `group/name` with a group without dots"))
}

/// Returns the entry that an object holds. One without a value is an empty one.
fn entry_of(lease: &Lease, version: Version) -> Result<Entry, StoreError> {
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let (group, name) = name.split_once('.').ok_or_else(|| invalid("the object's name has no group"))?;
    let value = lease.metadata.annotations.as_ref().and_then(|all| all.get(VALUE)).cloned();
    Ok(Entry { key: format!("{group}/{name}").into(), value: value.unwrap_or_default().into(), version })
}

/// Returns a reference to the pod in which this program runs, if the environment names it.
fn owner(environment: impl Fn(&str) -> Option<String>) -> Option<OwnerReference> {
    let set = |variable| environment(variable).filter(|value| !value.is_empty());
    Some(OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: set("POD_NAME")?,
        uid: set("POD_UID")?,
        ..OwnerReference::default()
    })
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::{BoxError, service_fn};

    use super::*;

    /// A store in the namespace of this program, without a server.
    fn store() -> LeaseStore {
        let service = service_fn(async |_: http::Request<Body>| {
            Err::<http::Response<Body>, BoxError>("this test needs no server".into())
        });
        LeaseStore::new(Client::new(service, "ns"), "ns")
    }

    #[tokio::test]
    async fn object_names_the_replica_and_its_pod() {
        let owner = owner(|variable| Some(if variable == "POD_UID" { "u-1" } else { "app-1" }.to_owned()));
        let store = LeaseStore { owner, ..store() };
        assert_eq!(store.object_key("app/app-1.x").unwrap(), "ns/app.app-1.x");
        let object: Value =
            serde_json::from_slice(&store.object("app/app-1.x", b"v1 weight=2").unwrap()).unwrap();
        assert_eq!(
            object,
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {
                    "name": "app.app-1.x", "namespace": "ns",
                    "labels": { "writerlease/roster": "app" },
                    "annotations": { "writerlease/entry": "v1 weight=2" },
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "app-1", "uid": "u-1" }],
                },
                "spec": { "holderIdentity": "app-1.x" },
            })
        );
        let entry = entry_of(&serde_json::from_value(object).unwrap(), Version::ordered(7)).unwrap();
        assert_eq!((&*entry.key, &entry.value[..]), ("app/app-1.x", &b"v1 weight=2"[..]));
    }

    #[test]
    fn owner_needs_name_and_uid() {
        for known in ["POD_NAME", "POD_UID", "HOSTNAME"] {
            assert_eq!(owner(|variable| (variable == known).then(|| "x".to_owned())), None);
        }
        assert_eq!(owner(|_| Some(String::new())), None);
    }

    #[tokio::test]
    async fn keys_and_values_that_cannot_be_stored_are_invalid() {
        for key in ["", "app", "/name", "app/", "app.x/name"] {
            let refused = store().put(key, "v1".into(), Expected::Absent, None).await;
            assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{key}: {refused:?}");
        }
        let refused = store().put("app/name", Bytes::from_static(b"\xff"), Expected::Absent, None).await;
        assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    }

    #[test]
    fn foreign_objects_are_no_entries() {
        let mut lease = Lease::default();
        lease.metadata.name = Some("leader-election".into());
        assert!(entry_of(&lease, Version::ordered(1)).is_err());
        lease.metadata.name = Some("app.x".into());
        assert_eq!(entry_of(&lease, Version::ordered(1)).unwrap().value, "");
    }
}
