//! Reads from a reflector, corrected where it is known to lag behind the server.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use kube::{
    Resource,
    runtime::reflector::{self, ObjectRef},
};
use parking_lot::Mutex;

use super::object::{split_key, version_of};
use crate::store::{Entry, StoreError, Version};

/// A reflector's cache, and what the server has answered since.
pub(super) struct Reader<K> {
    lookup: Lookup<K>,
    corrections: Mutex<HashMap<Arc<str>, Correction>>,
}

/// Looks an object up by namespace and name.
///
/// A closure, because a reflector's store needs `K::DynamicType: Hash + Eq`, and a `KubeStore`
/// without a reader does not.
type Lookup<K> = Box<dyn Fn(Option<&str>, &str) -> Option<Arc<K>> + Send + Sync>;

/// Knowledge from the server that the reflector may not have yet.
pub(super) enum Correction {
    /// The object was in this state; by now it is in this one or a newer one.
    Current(Entry),
    /// The object no longer has this version; the newer one is unknown.
    Outdated(Version),
}

impl<K: Resource> Reader<K> {
    pub fn new(store: reflector::Store<K>, kind: K::DynamicType) -> Self
    where
        K: Clone + Send + Sync + 'static,
        K::DynamicType: Hash + Eq + Clone + Send + Sync,
    {
        let lookup = move |namespace: Option<&str>, name: &str| {
            let object = ObjectRef::new_with(name, kind.clone());
            store.get(&match namespace {
                Some(namespace) => object.within(namespace),
                None => object,
            })
        };
        Self { lookup: Box::new(lookup), corrections: Mutex::default() }
    }

    /// Returns the newest known state of an object. `None` if the reflector lacks it or is known to
    /// lag without a known newer state: then the server must be asked.
    pub fn get(&self, key: &str, entry_of: impl FnOnce(&K) -> Result<Entry, StoreError>) -> Option<Entry> {
        let object = self.object(key)?;
        // Without an order nothing shows whether the reflector lags.
        revision_of(&*object)?;
        let mut corrections = self.corrections.lock();
        match corrections.get(key) {
            Some(correction) if correction.is_ahead_of(&*object) => return correction.entry(),
            Some(_) => drop(corrections.remove(key)),
            None => {}
        }
        entry_of(&object).ok()
    }

    /// Records what the server said of an object.
    pub fn correct(&self, key: &str, correction: Correction) {
        let mut corrections = self.corrections.lock();
        // Prune before the map grows. An object that the reflector lacks needs no correction.
        if corrections.len() == corrections.capacity() {
            corrections.retain(|key, correction| {
                self.object(key).is_some_and(|object| correction.is_ahead_of(&*object))
            });
        }
        corrections.insert(key.into(), correction);
    }

    fn object(&self, key: &str) -> Option<Arc<K>> {
        let (namespace, name) = split_key(key);
        (self.lookup)(namespace, name)
    }
}

fn revision_of(object: &impl Resource) -> Option<u64> {
    object.meta().resource_version.as_deref().and_then(|version| version_of(version).revision())
}

impl Correction {
    fn is_ahead_of(&self, object: &impl Resource) -> bool {
        let revision = revision_of(object);
        match self {
            Self::Current(entry) => revision < entry.version.revision(),
            Self::Outdated(version) => revision <= version.revision(),
        }
    }

    fn entry(&self) -> Option<Entry> {
        match self {
            Self::Current(entry) => Some(entry.clone()),
            Self::Outdated(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::{
        core::{ApiResource, DynamicObject, GroupVersionKind},
        runtime::watcher,
    };

    use super::{
        super::object::{Subject, entry_of},
        *,
    };

    fn kind() -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"))
    }

    fn object(name: &str, version: u64) -> DynamicObject {
        let mut object = DynamicObject::new(name, &kind()).within("ns");
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn entry(object: &DynamicObject) -> Result<Entry, StoreError> {
        entry_of(object, Subject::Status, &[])
    }

    #[test]
    fn corrections_go_when_the_reflector_catches_up() {
        let mut writer = reflector::store::Writer::new(kind());
        let reader = Reader::new(writer.as_reader(), kind());
        let mut reflect =
            |object: &DynamicObject| writer.apply_watcher_event(&watcher::Event::Apply(object.clone()));
        let [old, new, newer] = [1, 2, 3].map(|version| object("a", version));
        let [old_entry, new_entry, newer_entry] = [&old, &new, &newer].map(|object| entry(object).unwrap());
        let get = || reader.get("ns/a", entry);
        reflect(&old);
        assert_eq!(get(), Some(old_entry));
        reader.correct("ns/a", Correction::Current(new_entry.clone()));
        assert_eq!(get(), Some(new_entry.clone()));
        reader.correct("ns/a", Correction::Outdated(new_entry.version));
        assert_eq!(get(), None, "the server must be asked");
        reflect(&new);
        assert_eq!(get(), None);
        reflect(&newer);
        assert_eq!(get(), Some(newer_entry));
        assert!(reader.corrections.lock().is_empty());
    }

    #[test]
    fn corrections_of_deleted_objects_are_pruned() {
        let writer = reflector::store::Writer::<DynamicObject>::new(kind());
        let reader = Reader::new(writer.as_reader(), kind());
        for version in 10..1000 {
            let entry = entry(&object(&format!("b-{version}"), version)).unwrap();
            reader.correct(&entry.key.clone(), Correction::Current(entry));
        }
        let kept = reader.corrections.lock().len();
        assert!(kept < 10, "{kept}");
    }
}
