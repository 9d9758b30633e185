//! The keys and values of candidates in etcd.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde_json::Value;

use crate::election::candidate::LONGEST_TTL;

/// The leader of an election, as its key in etcd describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The leader's key in etcd.
    pub key: String,
    /// The leader's identity.
    pub identity: String,
    /// The address at which others reach the leader; empty if it gave none.
    pub address: String,
}

impl LeaderInfo {
    /// Returns the JSON of identity and address, `{"id":…,"addr":…}`: the value of the leader's key.
    pub fn to_json(&self) -> String {
        json(&self.identity, &self.address)
    }
}

impl fmt::Display for LeaderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?} ({})", self.identity, self.address, self.key)
    }
}

/// The prefix of all candidates' keys.
pub(super) fn prefix(election: &str) -> String {
    format!("{election}/")
}

/// The key of the candidate with this lease.
pub(super) fn key(election: &str, lease: i64) -> Vec<u8> {
    format!("{}{lease:x}", prefix(election)).into_bytes()
}

/// Reads the lease from the name of a candidate's key.
pub(super) fn lease_of(key: &[u8], prefix: &str) -> Option<i64> {
    let name = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
    let lease = i64::from_str_radix(name, 16).ok().filter(|lease| *lease > 0)?;
    (format!("{lease:x}") == name).then_some(lease)
}

/// The value of a candidate's key.
pub(crate) fn json(identity: &str, address: &str) -> String {
    let [id, addr] = [identity, address].map(Value::from);
    format!(r#"{{"id":{id},"addr":{addr}}}"#)
}

/// Reads a candidate's key. A value of another program is its identity as it stands.
pub(crate) fn info(key: &[u8], value: &[u8]) -> LeaderInfo {
    let key = String::from_utf8_lossy(key).into_owned();
    let json = serde_json::from_slice::<Value>(value).unwrap_or_default();
    let text = |field| json.get(field).and_then(Value::as_str).map(str::to_owned);
    match text("id") {
        Some(identity) => LeaderInfo { key, identity, address: text("addr").unwrap_or_default() },
        None => {
            let identity = String::from_utf8_lossy(value).into_owned();
            LeaderInfo { key, identity, address: String::new() }
        }
    }
}

/// The TTLs that a candidate may ask for. etcd counts them in seconds.
pub(super) const TTLS: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST_TTL;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_leases_are_read_as_such() {
        for lease in [1, 0xabc, i64::MAX] {
            assert_eq!(lease_of(&key("election", lease), &prefix("election")), Some(lease));
        }
        for foreign in ["", "0", "-1", "+1", "0abc", "ABC", "x", "8000000000000000", "1/2", "é"] {
            let key = format!("election/{foreign}");
            assert_eq!(lease_of(key.as_bytes(), "election/"), None, "{foreign}");
        }
        assert_eq!(lease_of(b"election/\xff", "election/"), None);
        assert_eq!(lease_of(b"other/1", "election/"), None);
    }
}
