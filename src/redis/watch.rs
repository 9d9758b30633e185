//! The watch. The servers report the keys that changed, and the watch reads them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisResult, Value, aio::MultiplexedConnection, cmd, pipe};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use super::{
    codec::{Fields, bounded, entry, number, read, store_error},
    connection::SharedConnection,
};
use crate::store::{Event, StoreError, Version, resume::Resumable, unavailable};

pub(super) struct Watch {
    connection: Arc<SharedConnection>,
    request_timeout: Duration,
    prefix: String,
    /// The last reported version of each key that exists.
    reported: HashMap<Arc<str>, Bytes>,
    servers: Option<Servers>,
}

struct Servers {
    connections: Vec<MultiplexedConnection>,
    pushes: UnboundedReceiver<(usize, PushInfo)>,
}

impl Watch {
    pub fn new(connection: Arc<SharedConnection>, request_timeout: Duration, prefix: &str) -> Self {
        Self {
            connection,
            request_timeout,
            prefix: prefix.to_owned(),
            reported: HashMap::new(),
            servers: None,
        }
    }

    /// Starts to listen before it lists, so that every change is in the listing or reported after
    /// it.
    async fn open(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let (sender, pushes) = mpsc::unbounded_channel();
        let limit = self.request_timeout;
        let connections = bounded(limit, self.connection.listen(limit, &sender)).await?;
        for connection in &connections {
            let mut tracking = cmd("CLIENT");
            tracking.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(&self.prefix);
            let _: Value = bounded(limit, tracking.query_async(&mut connection.clone())).await?;
        }
        let mut servers = Servers { connections, pushes };
        self.list(&mut servers, ready).await?;
        self.servers = Some(servers);
        Ok(())
    }

    async fn list(&mut self, servers: &mut Servers, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        self.reported.clear();
        let mut listing = VecDeque::from([Event::Init]);
        for connection in &mut servers.connections {
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(format!("{}*", escaped(&self.prefix)));
                scan.arg("COUNT").arg(PAGE).arg("TYPE").arg("hash");
                let (next, keys): (u64, Vec<Value>) =
                    bounded(self.request_timeout, scan.query_async(connection)).await?;
                let keys = keys.into_iter().filter_map(text).collect();
                let (_, fields) = self.read(connection, &keys).await?;
                for (key, (token, value)) in keys.into_iter().zip(fields) {
                    // A scan may return a key more than once.
                    if self.reported.contains_key(&key) {
                        continue;
                    }
                    if let Some(entry) = entry(key.clone(), token.clone(), value) {
                        self.reported.insert(key, token.unwrap_or_default());
                        listing.push_back(Event::InitEntry(entry));
                    }
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        listing.push_back(Event::InitDone);
        ready.extend(listing);
        Ok(())
    }

    /// Reads the server's time in microseconds, and then the keys. In this order the time cannot be
    /// later than a write that the reads miss.
    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &Vec<Arc<str>>,
    ) -> Result<(u64, Vec<Fields>), StoreError> {
        let mut pipe = pipe();
        pipe.ignore_errors().cmd("TIME");
        for key in keys {
            pipe.add_command(read(key));
        }
        let answers: Vec<RedisResult<Value>> =
            bounded(self.request_timeout, pipe.query_async(connection)).await?;
        let mut answers = answers.into_iter();
        let time = answers.next().unwrap_or(Ok(Value::Nil));
        let (seconds, micros): (u64, u64) =
            time.and_then(|time| Ok(redis::from_redis_value(time)?)).map_err(store_error)?;
        let fields = answers.map(|answer| {
            match answer.and_then(|answer| Ok(redis::from_redis_value::<Fields>(answer)?)) {
                Ok(fields) => Ok(fields),
                // Another type than a hash, which no store wrote: to the watch the key is absent.
                Err(error) if error.code() == Some("WRONGTYPE") => Ok((None, None)),
                Err(error) => Err(store_error(error)),
            }
        });
        Ok((seconds * 1_000_000 + micros, fields.collect::<Result<_, _>>()?))
    }

    /// Waits until a server reports changed keys, and collects all further reports received by
    /// then.
    async fn changes(&self, servers: &mut Servers) -> Result<Changes, StoreError> {
        let first = loop {
            match timeout(self.request_timeout.saturating_mul(2), servers.pushes.recv()).await {
                Ok(Some(push)) => break push,
                Ok(None) => return Err(unavailable("not connected")),
                Err(_) => {
                    for connection in &mut servers.connections {
                        let _: Value =
                            bounded(self.request_timeout, cmd("PING").query_async(connection)).await?;
                    }
                }
            }
        };
        let mut changes = Changes { keys: vec![Vec::new(); servers.connections.len()], flushed: false };
        let mut next = Some(first);
        while let Some((server, push)) = next {
            match (push.kind, push.data.into_iter().next()) {
                (PushKind::Disconnection, _) => return Err(unavailable("the connection was lost")),
                (PushKind::Invalidate, Some(Value::Array(keys))) => {
                    let keys = keys.into_iter().filter_map(text).filter(|key| key.starts_with(&self.prefix));
                    for key in keys {
                        if !changes.keys[server].contains(&key) {
                            changes.keys[server].push(key);
                        }
                    }
                }
                // A report without keys concerns all keys: the database was flushed.
                (PushKind::Invalidate, _) => changes.flushed = true,
                _ => {}
            }
            // A limit, so that a long backlog does not delay the event of its first change.
            let full = changes.keys.iter().map(Vec::len).sum::<usize>() >= BATCH;
            next = if full { None } else { servers.pushes.try_recv().ok() };
        }
        Ok(changes)
    }
}

struct Changes {
    /// The changed keys of each server, by its index.
    keys: Vec<Vec<Arc<str>>>,
    flushed: bool,
}

impl Resumable for Watch {
    async fn advance(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let Some(mut servers) = self.servers.take() else { return self.open(ready).await };
        let changes = self.changes(&mut servers).await?;
        let mut lists = changes.flushed;
        if !lists {
            for (connection, keys) in servers.connections.iter_mut().zip(changes.keys) {
                if keys.is_empty() {
                    continue;
                }
                let (time, fields) = self.read(connection, &keys).await?;
                for (key, (token, value)) in keys.into_iter().zip(fields) {
                    let known = self.reported.get(&key);
                    if let Some(entry) = entry(key.clone(), token.clone(), value) {
                        if known != token.as_ref() {
                            // No store sets a version back. Somebody restored the key, and only a
                            // listing shows readers that this is the truth.
                            lists |= known.is_some_and(|known| is_set_back(known, token.as_deref()));
                            self.reported.insert(key, token.unwrap_or_default());
                            ready.push_back(Event::Put(entry));
                        }
                    } else if let Some(known) = self.reported.remove(&key) {
                        ready.push_back(Event::Delete { key, version: deleted(&known, time) });
                    }
                }
            }
        }
        if lists {
            self.list(&mut servers, ready).await?;
        }
        self.servers = Some(servers);
        Ok(())
    }

    fn disconnect(&mut self) {
        self.servers = None;
    }
}

/// Returns whether a version comes before one that was reported earlier.
fn is_set_back(known: &[u8], token: Option<&[u8]>) -> bool {
    token.and_then(number).zip(number(known)).is_some_and(|(token, known)| token < known)
}

/// Makes up the version of a deletion, because the server reports none. It is newer than the
/// deleted version and not below the server's time.
pub(crate) fn deleted(known: &[u8], time: u64) -> Version {
    let key_revision = time.max(number(known).map_or(0, |number| number + 1));
    Version::opaque(format!("{key_revision}-deleted")).with_key_revision(key_revision)
}

/// Returns the key; `None` unless it is UTF-8, as all keys that a
/// [`Store`](crate::store::Store) writes are.
pub(crate) fn text(key: Value) -> Option<Arc<str>> {
    match key {
        Value::BulkString(key) => String::from_utf8(key).ok().map(Arc::from),
        Value::SimpleString(key) => Some(key.into()),
        _ => None,
    }
}

/// Escapes the prefix, so that as a pattern it matches only itself.
pub(crate) fn escaped(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len());
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The number of keys that one step of a listing visits.
const PAGE: usize = 500;
/// The number of changed keys that are collected before they are read.
const BATCH: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_number_is_set_back() {
        assert!(is_set_back(b"5-a", Some(b"4-b")));
        for token in [&b"5-b"[..], b"6-a", b"x"] {
            assert!(!is_set_back(b"5-a", Some(token)));
        }
        assert!(!is_set_back(b"x", Some(b"4-b")) && !is_set_back(b"5-a", None));
    }

    #[test]
    fn a_prefix_is_text_and_not_a_pattern() {
        assert_eq!(escaped("plain/päth-1"), "plain/päth-1");
        assert_eq!(escaped(r"*?[x]\"), r"\*\?\[x\]\\");
    }
}
