//! The masters of a cluster, as one of its nodes knows them.

use std::{collections::HashMap, sync::Arc};

use redis::{ErrorKind, RedisResult, Value};

use super::node::Node;

/// Which node has which keys.
pub(super) struct Topology {
    /// All masters, also those without slots.
    pub masters: Vec<Arc<Node>>,
    /// The index of the master of each slot.
    owners: Vec<Option<u16>>,
}

/// A master in an answer of a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Master {
    /// Empty or `?` if the node does not tell it.
    pub host: String,
    pub port: u16,
    /// The first and the last slot of each range.
    pub slots: Vec<(u16, u16)>,
}

impl Topology {
    /// One master for all keys.
    pub fn single(master: Arc<Node>) -> Self {
        Self { masters: vec![master], owners: vec![Some(0); SLOTS] }
    }

    pub fn new(masters: impl IntoIterator<Item = (Arc<Node>, Vec<(u16, u16)>)>) -> Self {
        let mut topology = Self { masters: Vec::new(), owners: vec![None; SLOTS] };
        for (node, slots) in masters {
            let index = topology.masters.len() as u16;
            topology.masters.push(node);
            for (first, last) in slots {
                for slot in first..=last.min(SLOTS as u16 - 1) {
                    topology.owners[usize::from(slot)] = Some(index);
                }
            }
        }
        topology
    }

    pub fn owner(&self, key: &str) -> Option<&Arc<Node>> {
        self.masters.get(usize::from(self.owners[slot(key.as_bytes())]?))
    }

    /// Returns the number of slots that have an owner.
    pub fn covered(&self) -> usize {
        self.owners.iter().flatten().count()
    }

    pub fn is_complete(&self) -> bool {
        self.covered() == SLOTS
    }
}

/// Reads the answer to `CLUSTER SHARDS`. A shard that cannot be read is an error, because its keys
/// would be missing in a listing. Failed masters without slots are left out.
pub(crate) fn shards(answer: Value, tls: bool) -> RedisResult<Vec<Master>> {
    let shards: Vec<HashMap<String, Value>> = redis::from_redis_value(answer)?;
    let mut masters = Vec::new();
    for mut shard in shards {
        let mut take = |field: &str| shard.remove(field).unwrap_or(Value::Array(Vec::new()));
        let bounds: Vec<u16> = redis::from_redis_value(take("slots"))?;
        let slots: Vec<_> = bounds.chunks_exact(2).map(|bounds| (bounds[0], bounds[1])).collect();
        let nodes: Vec<HashMap<String, Value>> = redis::from_redis_value(take("nodes"))?;
        let is = |node: &HashMap<String, Value>, field: &str, text: &str| matches!(node.get(field), Some(Value::BulkString(value)) if value == text.as_bytes());
        // In Redis 8 and Valkey a failed master stays one, beside the replica that was promoted.
        let candidates = nodes.into_iter().filter(|node| is(node, "role", "master"));
        let master = candidates.min_by_key(|node| !is(node, "health", "online"));
        if slots.is_empty() && !master.as_ref().is_some_and(|master| is(master, "health", "online")) {
            continue;
        }
        let mut master = master.ok_or((ErrorKind::Parse, "a shard of the cluster has no master"))?;
        let port = if tls { "tls-port" } else { "port" };
        let port = master.remove(port).ok_or((ErrorKind::Parse, "a node of the cluster tells no port"))?;
        let host: Option<String> = redis::from_redis_value(master.remove("endpoint").unwrap_or(Value::Nil))?;
        masters.push(Master { host: host.unwrap_or_default(), port: redis::from_redis_value(port)?, slots });
    }
    with_slots(masters)
}

/// Reads the answer to `CLUSTER SLOTS`, as [`shards`] does; it has no masters without slots. A row
/// is the first slot, the last slot, and the nodes, master first; a node starts with host and port.
pub(crate) fn slots(answer: Value) -> RedisResult<Vec<Master>> {
    let rows: Vec<Vec<Value>> = redis::from_redis_value(answer)?;
    let mut masters: Vec<Master> = Vec::new();
    for row in rows {
        let mut row = row.into_iter();
        let (Some(first), Some(last), Some(Value::Array(mut master))) = (row.next(), row.next(), row.next())
        else {
            return Err((ErrorKind::Parse, "a row of CLUSTER SLOTS has no master").into());
        };
        master.truncate(2);
        let (host, port): (Option<String>, u16) = redis::from_redis_value(Value::Array(master))?;
        let range = (redis::from_redis_value(first)?, redis::from_redis_value(last)?);
        let host = host.unwrap_or_default();
        match masters.iter_mut().find(|master| master.host == host && master.port == port) {
            Some(master) => master.slots.push(range),
            None => masters.push(Master { host, port, slots: vec![range] }),
        }
    }
    with_slots(masters)
}

fn with_slots(masters: Vec<Master>) -> RedisResult<Vec<Master>> {
    if masters.iter().all(|master| master.slots.is_empty()) {
        // It was removed, or does not belong to a cluster yet.
        return Err((ErrorKind::ClusterConnectionNotFound, "the node knows no master that has slots").into());
    }
    Ok(masters)
}

/// Returns the slot of a key: the CRC16 (XMODEM) of its hash tag, or of the whole key.
fn slot(key: &[u8]) -> usize {
    let crc =
        hash_tag(key).unwrap_or(key).iter().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
    usize::from(crc) % SLOTS
}

/// Returns the text within the first pair of braces, unless it is empty.
pub(super) fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')? + 1;
    let length = key[open..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[open..open + length])
}

const SLOTS: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        for (key, expected) in
            [("123456789", 0x31C3), ("foo", 12182), ("{foo}bar", 12182), ("a{foo}{bar}", 12182), ("", 0)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        for whole in ["{}foo", "{foo", "foo}", "}{"] {
            assert_eq!(hash_tag(whole.as_bytes()), None, "{whole}");
        }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn map(fields: Vec<(&str, Value)>) -> Value {
        Value::Map(fields.into_iter().map(|(name, value)| (text(name), value)).collect())
    }

    fn node(role: &str, endpoint: Value, health: &str) -> Value {
        map(vec![
            ("port", Value::Int(7)),
            ("endpoint", endpoint),
            ("role", text(role)),
            ("health", text(health)),
        ])
    }

    fn shard_of(slots: &[i64], nodes: Vec<Value>) -> Value {
        let slots = slots.iter().map(|slot| Value::Int(*slot)).collect();
        map(vec![("slots", Value::Array(slots)), ("nodes", Value::Array(nodes))])
    }

    fn shard(slots: &[i64], role: &str, endpoint: Value, health: &str) -> Value {
        shard_of(slots, vec![node(role, endpoint, health)])
    }

    #[test]
    fn promoted_replicas_replace_failed_masters() {
        let promoted = || node("master", text("new"), "online");
        let replica = || node("replica", text("replica"), "online");
        for health in ["fail", "loading"] {
            let failed = || node("master", text("old"), health);
            for nodes in [
                vec![failed(), replica(), promoted()],
                vec![promoted(), failed(), replica()],
                vec![replica(), promoted(), failed()],
            ] {
                let masters = shards(Value::Array(vec![shard_of(&[0, 5], nodes)]), false);
                let expected = Master { host: "new".into(), port: 7, slots: vec![(0, 5)] };
                assert_eq!(masters.expect("it is complete"), [expected]);
            }
            // Nobody was promoted yet.
            let masters = shards(Value::Array(vec![shard_of(&[0, 5], vec![replica(), failed()])]), false);
            assert_eq!(masters.expect("it is complete")[0].host, "old");
        }
    }

    #[test]
    fn masters_without_slots_count() {
        let answer = Value::Array(vec![
            shard(&[0, 5, 7, 7], "master", text("a"), "fail"),
            shard(&[], "master", text("b"), "online"),
            shard(&[], "master", text("c"), "fail"),
            shard(&[], "replica", text("d"), "online"),
        ]);
        let master =
            |host: &str, slots: &[(u16, u16)]| Master { host: host.into(), port: 7, slots: slots.into() };
        let expected = vec![master("a", &[(0, 5), (7, 7)]), master("b", &[])];
        assert_eq!(shards(answer.clone(), false).expect("it is complete"), expected);
        assert!(shards(answer, true).is_err(), "no port for TLS");
    }

    #[test]
    fn unreadable_and_empty_answers_are_errors() {
        for bad in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![shard(&[], "replica", text("a"), "online")]),
            Value::Array(vec![shard(&[], "master", text("a"), "online")]),
            Value::Array(vec![shard(&[0, 1], "replica", text("a"), "online")]),
        ] {
            assert!(shards(bad.clone(), false).is_err(), "{bad:?}");
        }
        let row = |master: Value| Value::Array(vec![Value::Int(0), Value::Int(5), master]);
        let node = |host: Value| Value::Array(vec![host, Value::Int(7), text("id")]);
        for bad in [
            Value::Array(vec![]),
            Value::Array(vec![row(Value::Nil)]),
            Value::Array(vec![row(node(text("a"))), Value::Array(vec![])]),
        ] {
            assert!(slots(bad.clone()).is_err(), "{bad:?}");
        }
        for (told, host) in [(Value::Nil, ""), (text(""), ""), (text("?"), "?"), (text("a"), "a")] {
            let rows = Value::Array(vec![row(node(told.clone())), row(node(told.clone()))]);
            let expected = Master { host: host.into(), port: 7, slots: vec![(0, 5), (0, 5)] };
            assert_eq!(slots(rows).expect("all rows are complete"), [expected]);
            let shards = shards(Value::Array(vec![shard(&[0, 1], "master", told, "online")]), false);
            assert_eq!(shards.expect("it is complete")[0].host, host);
        }
    }
}
