//! Fuzz targets for the servers' adapters: data that others wrote, and addresses and keys from
//! users.

use crate::{
    etcd::{EtcdStore, candidate, client::range},
    lab::Value,
    redis::{
        RedisStore, campaign as redis_candidate, cluster,
        codec::{Fields, entry, token},
        watch::{deleted, escaped, text},
    },
    roster::{entry_member, entry_text},
    zookeeper::{ZookeeperAccess, ZookeeperStore, candidates as zookeeper_candidates, name},
};

/// Reads data that others wrote: stored values, values and names of candidates, and servers'
/// answers.
pub fn values(data: &[u8]) {
    let lossy = String::from_utf8_lossy(data);
    election_values(data, &lossy);
    redis_fields(data);
    redis_answers(data);
    node_names(&lossy);
    roster_entries(data);
    let value = Value::read(data);
    assert_eq!(Value::read(value.to_string().as_bytes()), value);
    assert!(value.wanted(value.round, 0).is_none());
    if let Some(wanted) = value.wanted(u64::MAX, 0) {
        assert_eq!(Value::read(&wanted).round, u64::MAX);
    }
    assert_eq!(Value::read(&value.edited()).round, value.round);
}

fn election_values(data: &[u8], lossy: &str) {
    let info = candidate::info(data, data);
    assert!(info.key == lossy && (info.identity == lossy || data.contains(&b'{')));
    assert!(info.address.is_empty() || data.contains(&b'{'));
    let (id, address) = lossy.split_once('\n').unwrap_or((lossy, ""));
    let ours = candidate::info(b"key", candidate::json(id, address).as_bytes());
    assert_eq!((&*ours.identity, &*ours.address), (id, address));

    let whose = redis_candidate::identity_of(data);
    assert!(lossy.starts_with(&*whose));
    assert_eq!(&*redis_candidate::identity_of(redis_candidate::value(lossy).as_bytes()), lossy);
}

fn redis_fields(data: &[u8]) {
    let (version, value) = data.split_at(data.len() / 2);
    let entry = entry("key".into(), Some(version.to_vec().into()), Some(value.to_vec().into()));
    let Some(entry) = entry else { return };
    assert_eq!(entry.value, value);
    // A replacement compares with exactly the stored bytes.
    assert_eq!(token(&entry.version).expect("a version can be compared"), version);
    let deletion = deleted(version, 1_700_000_000_000_000);
    assert!(
        deletion.key_revision() > entry.version.key_revision(),
        "a deletion is newer than the deleted write"
    );
}

fn redis_answers(data: &[u8]) {
    let Ok(answer) = redis::parse_redis_value(data) else { return };
    let _ = redis::from_redis_value::<Fields>(answer.clone());
    let _ = redis::from_redis_value::<redis_candidate::Answer>(answer.clone());
    let _ = text(answer.clone());
    let _ = cluster::shards(answer.clone(), false);
    let _ = cluster::slots(answer);
}

fn roster_entries(data: &[u8]) {
    if let Some(member) = entry_member("one", data) {
        assert!((1..=100).contains(&member.weight));
        assert_eq!(entry_member("one", entry_text(&member).as_bytes()), Some(member));
    }
}

fn node_names(lossy: &str) {
    if let Some(key) = name::decode(lossy) {
        assert!(!key.is_empty() && name::encode(&key) == lossy);
    }
    let patterns = ["-lock-".to_owned(), "__lock__".to_owned()];
    if let Some(number) = zookeeper_candidates::number(&patterns, lossy) {
        assert!(lossy.trim_end_matches(|c: char| c.is_ascii_digit()).len() < lossy.len());
        // The text before the number has no influence.
        let name = format!("{lossy}-lock-{number:010}");
        assert_eq!(zookeeper_candidates::number(&patterns, &name), Some(number));
    }
}

/// Reads a server's address, a base path (also used as a prefix) and a key, one per line.
pub fn addresses(data: &[u8]) {
    let lossy = String::from_utf8_lossy(data);
    let (first, rest) = lossy.split_once('\n').unwrap_or((&lossy, "/base"));
    let _ = RedisStore::new(first);
    let _ = RedisStore::cluster(first.split(','));
    // A runtime without I/O, so that the clients cannot connect.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let endpoints: Vec<&str> = first.split(',').collect();
    let _ = runtime.block_on(EtcdStore::connect(endpoints));

    let (base, key) = rest.split_once('\n').unwrap_or((rest, first));
    if ZookeeperStore::new(first, base, ZookeeperAccess::open()).is_ok() {
        assert!(base.starts_with('/') && !base.ends_with('/') && !base.contains("//"));
    }
    let node = name::encode(key);
    assert!(node.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') && node != "." && node != "..");
    assert_eq!(name::decode(&node).unwrap_or_default(), key);

    let (from, end) = range(base);
    for key in [format!("{base}{key}"), key.to_owned()] {
        let inside = from.as_slice() <= key.as_bytes() && (key.as_bytes() < &end[..] || end == [0]);
        // A key is never empty.
        assert!(key.is_empty() || inside == key.starts_with(base), "{key:?} in the range of {base:?}");
    }
    let mut pattern = escaped(base).chars().collect::<Vec<_>>().into_iter().peekable();
    let mut plain = String::new();
    while let Some(c) = pattern.next() {
        assert!(!matches!(c, '*' | '?' | '[' | ']'), "the pattern matches more than the prefix");
        plain.push(if c == '\\' { pattern.next().expect("a character follows the backslash") } else { c });
    }
    assert_eq!(plain, base);
}
