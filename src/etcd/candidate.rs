//! The keys and values of candidates in etcd.

use std::{fmt, time::Duration};

use serde_json::Value;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The leader's key in etcd.
    pub key: String,
    /// The leader's id.
    pub id: String,
    /// Where to reach it; empty if it doesn't say.
    pub address: String,
}

impl fmt::Display for LeaderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?} ({})", self.id, self.address, self.key)
    }
}

pub(super) fn prefix(election: &str) -> String {
    format!("{election}/")
}

/// What a candidate writes into its key.
pub(crate) fn value(id: &str, address: &str) -> Vec<u8> {
    let [id, addr] = [id, address].map(Value::from);
    format!(r#"{{"id":{id},"addr":{addr}}}"#).into_bytes()
}

/// Whose key it is, whoever wrote it.
pub(crate) fn info(key: &[u8], value: &[u8]) -> LeaderInfo {
    let key = String::from_utf8_lossy(key).into_owned();
    let json = serde_json::from_slice::<Value>(value).unwrap_or_default();
    let text = |field| json.get(field).and_then(Value::as_str).map(str::to_owned);
    match text("id") {
        Some(id) => LeaderInfo { key, id, address: text("addr").unwrap_or_default() },
        None => LeaderInfo { key, id: String::from_utf8_lossy(value).into_owned(), address: String::new() },
    }
}

/// etcd counts leases in seconds.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
