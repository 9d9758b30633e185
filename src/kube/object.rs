//! Kubernetes objects as entries of a store, and back.

use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::store::{Entry, StoreError, Version};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Status,
    Object,
}

/// What an object is called in the store.
pub(super) fn key_of(object: &impl Resource) -> Arc<str> {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

/// The namespace, if there is one, and the name.
pub(super) fn names(key: &str) -> (Option<&str>, &str) {
    key.split_once('/').map_or((None, key), |(namespace, name)| (Some(namespace), name))
}

/// An object as it was at its resourceVersion.
///
/// The value leaves out what the server writes by itself each time: a write whose answer was lost is known by its bytes.
pub(super) fn entry_of<K: Resource + Serialize>(
    object: &K,
    subject: Subject,
    ours: &[Arc<str>],
) -> Result<Entry, StoreError> {
    let meta = object.meta();
    let Some(version) = &meta.resource_version else {
        return Err(invalid("an object without a resourceVersion", None));
    };
    let mut version = version_of(version);
    if let Some(writer) = writer_of(meta.managed_fields.as_deref().unwrap_or_default(), subject, ours) {
        version = version.with_writer(writer);
    }
    let mut value = serde_json::to_value(object).map_err(not_json)?;
    if let Some(meta) = meta_of(&mut value) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    // As bytes they are the same only in one order, whatever serde_json is made to keep.
    value.sort_all_objects();
    let value = serde_json::to_vec(&value).map_err(not_json)?;
    Ok(Entry { key: key_of(object), value: value.into(), version })
}

/// What to send in order to write a value in the place of a version.
pub(super) fn body_of(value: &[u8], expected: Option<&Version>) -> Result<Vec<u8>, StoreError> {
    let mut object: Value = serde_json::from_slice(value).map_err(not_json)?;
    let Some(meta) = meta_of(&mut object) else {
        return Err(invalid("the value is no object with metadata", None));
    };
    if let Some(expected) = expected {
        meta.insert("resourceVersion".into(), json!(resource_version(expected)));
    }
    serde_json::to_vec(&object).map_err(not_json)
}

pub(crate) fn decode<K: DeserializeOwned>(value: &[u8]) -> Result<K, StoreError> {
    serde_json::from_slice(value).map_err(not_json)
}

/// All versions of all objects come from one counter. Kubernetes said so late (KEP-5504), but etcd's revision is what they
/// always were. What is no number can be compared all the same.
pub(crate) fn version_of(resource_version: &str) -> Version {
    match resource_version.parse() {
        Ok(number) => Version::ordered(number),
        Err(_) => Version::opaque(resource_version.to_owned()),
    }
}

/// As the server wants to see it.
pub(super) fn resource_version(version: &Version) -> String {
    match version.revision() {
        Some(order) => order.to_string(),
        None => String::from_utf8_lossy(version.token()).into_owned(),
    }
}

/// Whether two values differ in nothing of what the guard writes: somebody else did other work. An object that is new, or
/// another one of the same name, begins without a status.
pub(crate) fn is_same(before: Option<&[u8]>, after: &[u8], subject: Subject) -> bool {
    let parse = |value| serde_json::from_slice::<Value>(value).ok();
    let Some(after) = parse(after) else { return false };
    let before = before.and_then(parse);
    match subject {
        Subject::Status => {
            let uid = "/metadata/uid";
            let before = before.as_ref().filter(|before| before.pointer(uid) == after.pointer(uid));
            before.map_or(&Value::Null, |before| &before["status"]) == &after["status"]
        }
        Subject::Object => before.as_ref() == Some(&after),
    }
}

/// Whether two states of one object, which was not made anew in between, have the same status, whenever its conditions were
/// written.
pub(crate) fn is_same_work(one: &[u8], other: &[u8]) -> bool {
    let [Ok(one), Ok(other)] = [one, other].map(|value| {
        let mut object: Value = serde_json::from_slice(value)?;
        let mut status = object.get_mut("status").map(Value::take);
        let conditions = status.as_mut().and_then(|status| status.get_mut("conditions")?.as_array_mut());
        for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.retain(|name, _| !TIMES.contains(&name.as_str()));
        }
        Ok::<_, serde_json::Error>((object.pointer("/metadata/uid").cloned(), status))
    }) else {
        return false;
    };
    one == other
}

/// When a condition was set, by the names that Kubernetes' own kinds have for it.
const TIMES: [&str; 4] = ["lastHeartbeatTime", "lastProbeTime", "lastTransitionTime", "lastUpdateTime"];

/// The field manager who wrote last what the guard writes. The times have seconds; of those in the same one it is one of
/// `ours`, because we would rather take a stranger for a competitor than overlook one.
fn writer_of(managers: &[ManagedFieldsEntry], subject: Subject, ours: &[Arc<str>]) -> Option<Arc<str>> {
    let wrote = |entry: &&ManagedFieldsEntry| match subject {
        Subject::Status => entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:status").is_some()),
        Subject::Object => entry.subresource.as_deref() != Some("status"),
    };
    let is_ours = |entry: &ManagedFieldsEntry| {
        ours.iter().any(|ours| entry.manager.as_deref().is_some_and(|manager| *manager == **ours))
    };
    let last = managers.iter().filter(wrote).max_by_key(|entry| (entry.time.clone(), is_ours(entry)))?;
    last.manager.as_deref().map(Arc::from)
}

fn meta_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata")?.as_object_mut()
}

pub(super) fn not_json(error: serde_json::Error) -> StoreError {
    invalid("the value is no such object", Some(error))
}

fn invalid(reason: &str, source: Option<serde_json::Error>) -> StoreError {
    StoreError::Invalid { reason: reason.into(), source: source.map(Into::into) }
}

/// The value of an object whose status is to be this.
pub(crate) fn with_status(value: &[u8], status: Value) -> Result<Bytes, StoreError> {
    let mut object: Value = serde_json::from_slice(value).map_err(not_json)?;
    let Some(object_fields) = object.as_object_mut() else {
        return Err(invalid("the value is no object", None));
    };
    object_fields.insert("status".into(), status);
    object.sort_all_objects();
    Ok(serde_json::to_vec(&object).map_err(not_json)?.into())
}

#[cfg(test)]
mod tests {
    use kube::core::{ApiResource, DynamicObject};

    use super::*;

    fn object(json: Value) -> DynamicObject {
        serde_json::from_value(json).unwrap()
    }

    fn widget(version: &str, status: &str, managers: Value) -> DynamicObject {
        object(json!({
            "apiVersion": "example.com/v1",
            "kind": "Widget",
            "metadata": {
                "name": "a", "namespace": "ns", "uid": "1", "resourceVersion": version, "managedFields": managers,
            },
            "spec": { "size": 1 },
            "status": { "phase": status },
        }))
    }

    fn manager(name: &str, time: &str, part: &str) -> Value {
        json!({ "manager": name, "time": time, "fieldsType": "FieldsV1", "fieldsV1": { part: {} }, "operation": "Update" })
    }

    const OURS: &str = "ours";

    fn entry(object: &DynamicObject) -> Entry {
        entry_of(object, Subject::Status, &[OURS.into()]).unwrap()
    }

    #[test]
    fn a_key_is_namespace_and_name_and_a_name_alone_without_namespaces() {
        assert_eq!(&*entry(&widget("7", "ready", json!([]))).key, "ns/a");
        assert_eq!(names("ns/a"), (Some("ns"), "a"));
        let node = DynamicObject::new(
            "node",
            &ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "Node")),
        );
        assert_eq!(&*key_of(&node), "node");
        assert_eq!(names("node"), (None, "node"));
    }

    #[test]
    fn two_writes_of_one_state_have_the_same_bytes_and_different_versions() {
        let (one, two) = (entry(&widget("7", "ready", json!([]))), entry(&widget("8", "ready", json!([]))));
        assert_eq!(one.value, two.value);
        assert_ne!(one.version, two.version);
        assert_eq!(two.version.revision(), Some(8));
    }

    #[test]
    fn what_is_sent_names_the_version_that_it_replaces() {
        let entry = entry(&widget("7", "ready", json!([manager("x", "2026-01-01T00:00:00Z", "f:status")])));
        let body: Value =
            serde_json::from_slice(&body_of(&entry.value, Some(&entry.version)).unwrap()).unwrap();
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(body["metadata"]["uid"], "1");
        assert!(body["metadata"].get("managedFields").is_none());
        assert!(matches!(body_of(b"[]", None), Err(StoreError::Invalid { .. })));
        assert!(matches!(body_of(b"{", None), Err(StoreError::Invalid { .. })));
    }

    #[test]
    fn versions_that_are_no_numbers_can_be_told_apart() {
        let version = version_of("abc");
        assert_eq!((version.revision(), resource_version(&version).as_str()), (None, "abc"));
        assert_ne!(version, version_of("abd"));
    }

    #[test]
    fn the_writer_of_a_status_is_whoever_wrote_the_status_last() {
        let managers = json!([
            manager("theirs", "2026-01-01T00:00:01Z", "f:status"),
            manager("older", "2026-01-01T00:00:00Z", "f:status"),
            manager("person", "2026-01-01T00:00:09Z", "f:spec"),
        ]);
        assert_eq!(entry(&widget("7", "ready", managers)).version.writer(), Some("theirs"));
        let at_once = json!([
            manager(OURS, "2026-01-01T00:00:01Z", "f:status"),
            manager("theirs", "2026-01-01T00:00:01Z", "f:status"),
        ]);
        assert_eq!(entry(&widget("7", "ready", at_once)).version.writer(), Some(OURS));
        assert_eq!(entry(&widget("7", "ready", json!([]))).version.writer(), None);
    }

    #[test]
    fn a_status_is_the_same_whatever_else_changed() {
        let one = entry(&widget("7", "ready", json!([])));
        let mut edited = widget("8", "ready", json!([]));
        edited.data["spec"]["size"] = json!(2);
        let edited = entry(&edited);
        let other = entry(&widget("9", "failed", json!([])));
        assert!(is_same(Some(&one.value), &edited.value, Subject::Status));
        assert!(!is_same(Some(&one.value), &edited.value, Subject::Object));
        assert!(!is_same(Some(&one.value), &other.value, Subject::Status));
        let condition = |status: &str, time: &str| {
            let mut object = widget("7", "ready", json!([]));
            object.data["status"]["conditions"] = json!([{ "status": status, "lastTransitionTime": time }]);
            entry(&object).value
        };
        assert!(is_same_work(
            &condition("True", "2026-01-01T00:00:00Z"),
            &condition("True", "2026-01-02T00:00:00Z")
        ));
        assert!(!is_same_work(
            &condition("True", "2026-01-01T00:00:00Z"),
            &condition("False", "2026-01-01T00:00:00Z")
        ));
        let mut anew = widget("9", "ready", json!([]));
        anew.metadata.uid = Some("2".into());
        assert!(!is_same_work(&one.value, &entry(&anew).value), "another object of the same name");
        assert!(is_same_work(&one.value, &edited.value) && !is_same_work(&one.value, &other.value));
        let written = with_status(&one.value, json!({ "phase": "failed" })).unwrap();
        assert_eq!(written, other.value);
    }
}
