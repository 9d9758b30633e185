//! Translates Kubernetes objects into entries of a store, and back.

use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::store::{Entry, StoreError, Version, non_empty};

/// The part of an object that a store writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Status,
    Object,
}

/// Returns the key of an object: `namespace/name`, or the name of an object without a namespace.
pub(super) fn key_of(object: &impl Resource) -> Arc<str> {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

/// Returns a key if its namespace and name can stand in a URL, as those of all objects can.
pub(super) fn valid_key(key: &str) -> Result<&str, StoreError> {
    let (namespace, name) = split_key(non_empty(key)?);
    let is_segment =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '%', '?', '#']);
    match is_segment(name) && namespace.is_none_or(is_segment) {
        true => Ok(key),
        false => Err(invalid("the key is no `namespace/name`, nor a name")),
    }
}

/// Splits a key into the namespace, if there is one, and the name.
pub(super) fn split_key(key: &str) -> (Option<&str>, &str) {
    key.split_once('/').map_or((None, key), |(namespace, name)| (Some(namespace), name))
}

/// Encodes an object at its resourceVersion.
///
/// The value leaves out `resourceVersion` and `managedFields`, which the server changes with every
/// write: a write whose answer was lost is recognised by its bytes.
pub(super) fn entry_of<K: Resource + Serialize>(
    object: &K,
    subject: Subject,
    competitors: &[Arc<str>],
) -> Result<Entry, StoreError> {
    let meta = object.meta();
    let Some(version) = &meta.resource_version else {
        return Err(invalid("the object has no resourceVersion"));
    };
    let mut version = version_of(version);
    if let Some(writer) = writer_of(meta.managed_fields.as_deref().unwrap_or_default(), subject, competitors)
    {
        version = version.with_writer(writer);
    }
    let mut value = serde_json::to_value(object).map_err(invalid_json)?;
    if let Some(meta) = meta_of(&mut value) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    // Equal objects must have equal bytes, even if another crate turns on serde_json's
    // `preserve_order`.
    value.sort_all_objects();
    let value = serde_json::to_vec(&value).map_err(invalid_json)?;
    Ok(Entry { key: key_of(object), value: value.into(), version })
}

/// Returns the request body that writes a value in place of the expected version.
pub(super) fn body_of(value: &[u8], expected: Option<&Version>) -> Result<Vec<u8>, StoreError> {
    let mut object: Value = serde_json::from_slice(value).map_err(invalid_json)?;
    let Some(meta) = meta_of(&mut object) else {
        return Err(invalid("the value has no metadata"));
    };
    if let Some(expected) = expected {
        meta.insert("resourceVersion".into(), json!(resource_version(expected)));
    }
    serde_json::to_vec(&object).map_err(invalid_json)
}

/// Decodes the value of an entry.
pub(super) fn decode<K: DeserializeOwned>(value: &[u8]) -> Result<K, StoreError> {
    serde_json::from_slice(value).map_err(invalid_json)
}

/// Translates a resourceVersion.
///
/// All objects share one counter, etcd's revision. Kubernetes has documented their order only since
/// KEP-5504. A resourceVersion that is not a number is compared for equality only.
pub(super) fn version_of(resource_version: &str) -> Version {
    match resource_version.parse() {
        Ok(number) => Version::ordered(number),
        Err(_) => Version::opaque(resource_version.to_owned()),
    }
}

/// Translates a version back into a resourceVersion.
pub(super) fn resource_version(version: &Version) -> String {
    match version.revision() {
        Some(revision) => revision.to_string(),
        None => String::from_utf8_lossy(version.token()).into_owned(),
    }
}

/// Returns whether a write left the subject unchanged. A new object, also one that reuses a name,
/// begins without a status.
pub(super) fn is_unchanged(before: Option<&[u8]>, after: &[u8], subject: Subject) -> bool {
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

/// Returns whether two states of one object have the same status apart from the times of its
/// conditions, at any depth. States of two objects of the same name never do.
pub(super) fn is_same_status(one: &[u8], other: &[u8]) -> bool {
    let [Ok(one), Ok(other)] = [one, other].map(|value| {
        let mut object: Value = serde_json::from_slice(value)?;
        let mut status = object.get_mut("status").map(Value::take);
        if let Some(status) = &mut status {
            remove_condition_times(status);
        }
        Ok::<_, serde_json::Error>((object.pointer("/metadata/uid").cloned(), status))
    }) else {
        return false;
    };
    one == other
}

/// Removes the times of conditions. A Route and the kinds of the Gateway API nest conditions, in
/// `status.ingress[]` and `status.parents[]`.
fn remove_condition_times(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(remove_condition_times),
        Value::Object(fields) => {
            let conditions = fields.get_mut("conditions").and_then(Value::as_array_mut);
            for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
                condition.retain(|name, _| !CONDITION_TIMES.contains(&name.as_str()));
            }
            fields.values_mut().for_each(remove_condition_times);
        }
        _ => {}
    }
}

/// The fields for times in the conditions of Kubernetes' own kinds.
const CONDITION_TIMES: [&str; 4] =
    ["lastHeartbeatTime", "lastProbeTime", "lastTransitionTime", "lastUpdateTime"];

/// Returns the field manager that wrote the subject last.
///
/// The times are in whole seconds. Among the managers of the same second a competitor is preferred:
/// to mistake a stranger for a competitor does less harm than to overlook a competitor.
fn writer_of(
    managers: &[ManagedFieldsEntry],
    subject: Subject,
    competitors: &[Arc<str>],
) -> Option<Arc<str>> {
    let wrote = |entry: &&ManagedFieldsEntry| match subject {
        Subject::Status => entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:status").is_some()),
        Subject::Object => entry.subresource.as_deref() != Some("status"),
    };
    let competes = |entry: &ManagedFieldsEntry| {
        competitors.iter().any(|name| entry.manager.as_deref().is_some_and(|manager| *manager == **name))
    };
    let last = managers.iter().filter(wrote).max_by_key(|entry| (entry.time.clone(), competes(entry)))?;
    last.manager.as_deref().map(Arc::from)
}

fn meta_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata")?.as_object_mut()
}

fn invalid_json(error: serde_json::Error) -> StoreError {
    StoreError::Invalid {
        reason: "the value is not an object of this kind".into(),
        source: Some(error.into()),
    }
}

pub(super) fn invalid(reason: &str) -> StoreError {
    StoreError::Invalid { reason: reason.into(), source: None }
}

/// Returns the value with its status replaced.
pub(super) fn with_status(value: &[u8], status: Value) -> Result<Bytes, StoreError> {
    let mut object: Value = serde_json::from_slice(value).map_err(invalid_json)?;
    let Some(object_fields) = object.as_object_mut() else {
        return Err(invalid("the value is not a JSON object"));
    };
    object_fields.insert("status".into(), status);
    object.sort_all_objects();
    Ok(serde_json::to_vec(&object).map_err(invalid_json)?.into())
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

    const COMPETITOR: &str = "competitor";

    fn entry(object: &DynamicObject) -> Entry {
        entry_of(object, Subject::Status, &[COMPETITOR.into()]).unwrap()
    }

    #[test]
    fn a_key_is_namespace_and_name() {
        assert_eq!(&*entry(&widget("7", "ready", json!([]))).key, "ns/a");
        assert_eq!(split_key("ns/a"), (Some("ns"), "a"));
        let node = DynamicObject::new(
            "node",
            &ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "Node")),
        );
        assert_eq!(&*key_of(&node), "node");
        assert_eq!(split_key("node"), (None, "node"));
    }

    #[test]
    fn keys_that_would_name_another_place_are_invalid() {
        for key in ["ns/a", "node", "system:node"] {
            assert_eq!(valid_key(key).unwrap(), key);
        }
        for key in
            ["", "ns/", "/a", "ns/a/status", "ns/a?dryRun=All", "ns/a#b", "ns/%2e", "..", "../a", "ns/."]
        {
            assert!(matches!(valid_key(key), Err(StoreError::Invalid { .. })), "{key}");
        }
    }

    #[test]
    fn times_of_nested_conditions_make_no_difference() {
        let value = |time: &str, status: &str| {
            let mut object = widget("7", "ready", json!([]));
            let condition = json!({ "status": status, "lastTransitionTime": time });
            object.data["status"]["ingress"] = json!([{ "host": "h", "conditions": [condition] }]);
            entry(&object).value
        };
        let [one, later, other] = [("1", "True"), ("2", "True"), ("1", "False")].map(|(t, s)| value(t, s));
        assert!(is_same_status(&one, &later) && !is_same_status(&one, &other));
    }

    #[test]
    fn equal_states_have_equal_bytes_and_different_versions() {
        let (one, two) = (entry(&widget("7", "ready", json!([]))), entry(&widget("8", "ready", json!([]))));
        assert_eq!(one.value, two.value);
        assert_ne!(one.version, two.version);
        assert_eq!(two.version.revision(), Some(8));
    }

    #[test]
    fn a_body_names_the_version_that_it_replaces() {
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
    fn versions_without_numbers_are_compared_for_equality() {
        let version = version_of("abc");
        assert_eq!((version.revision(), resource_version(&version).as_str()), (None, "abc"));
        assert_ne!(version, version_of("abd"));
    }

    #[test]
    fn the_last_writer_of_the_status_counts() {
        let managers = json!([
            manager("theirs", "2026-01-01T00:00:01Z", "f:status"),
            manager("older", "2026-01-01T00:00:00Z", "f:status"),
            manager("person", "2026-01-01T00:00:09Z", "f:spec"),
        ]);
        assert_eq!(entry(&widget("7", "ready", managers)).version.writer(), Some("theirs"));
        let in_one_second = json!([
            manager(COMPETITOR, "2026-01-01T00:00:01Z", "f:status"),
            manager("theirs", "2026-01-01T00:00:01Z", "f:status"),
        ]);
        assert_eq!(entry(&widget("7", "ready", in_one_second)).version.writer(), Some(COMPETITOR));
        assert_eq!(entry(&widget("7", "ready", json!([]))).version.writer(), None);
    }

    #[test]
    fn a_status_is_compared_apart_from_everything_else() {
        let one = entry(&widget("7", "ready", json!([])));
        let mut edited = widget("8", "ready", json!([]));
        edited.data["spec"]["size"] = json!(2);
        let edited = entry(&edited);
        let other = entry(&widget("9", "failed", json!([])));
        assert!(is_unchanged(Some(&one.value), &edited.value, Subject::Status));
        assert!(!is_unchanged(Some(&one.value), &edited.value, Subject::Object));
        assert!(!is_unchanged(Some(&one.value), &other.value, Subject::Status));
        let condition = |status: &str, time: &str| {
            let mut object = widget("7", "ready", json!([]));
            object.data["status"]["conditions"] = json!([{ "status": status, "lastTransitionTime": time }]);
            entry(&object).value
        };
        assert!(is_same_status(
            &condition("True", "2026-01-01T00:00:00Z"),
            &condition("True", "2026-01-02T00:00:00Z")
        ));
        assert!(!is_same_status(
            &condition("True", "2026-01-01T00:00:00Z"),
            &condition("False", "2026-01-01T00:00:00Z")
        ));
        let mut recreated = widget("9", "ready", json!([]));
        recreated.metadata.uid = Some("2".into());
        assert!(!is_same_status(&one.value, &entry(&recreated).value), "another object of the same name");
        assert!(is_same_status(&one.value, &edited.value) && !is_same_status(&one.value, &other.value));
        let written = with_status(&one.value, json!({ "phase": "failed" })).unwrap();
        assert_eq!(written, other.value);
    }
}
