//! The watch. The servers report the keys that changed, and the watch reads them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use redis::{PushKind, Value, cmd};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout_at},
};

use super::{
    access::{Access, Push},
    codec::{bounded, entry, number},
    node::Node,
    servers::Servers,
};
use crate::{
    clock,
    store::{Entry, Event, StoreError, Version, resume::Resumable, unavailable},
};

pub(super) struct Watch {
    access: Access,
    request_timeout: Duration,
    prefix: String,
    /// The last reported version of each key that exists.
    reported: HashMap<Arc<str>, Bytes>,
    /// The number of the version of each reported deletion, for a while.
    gone: HashMap<Arc<str>, u64>,
    open: Option<Open>,
}

/// A watch that is connected.
struct Open {
    servers: Servers,
    pushes: UnboundedReceiver<Push>,
    masters: Vec<Arc<Node>>,
    /// When to look next whether the masters are still the same.
    look: Instant,
    /// When to list next; `None` if the servers report all changes.
    poll: Option<Instant>,
}

/// Reports of the servers.
#[derive(Default)]
struct Changes {
    keys: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
    /// The names of the nodes whose databases were flushed.
    flushed: Vec<Arc<str>>,
    /// The names of the nodes whose connections ended.
    lost: Vec<Arc<str>>,
}

impl Watch {
    pub fn new(access: Access, request_timeout: Duration, prefix: &str) -> Self {
        Self {
            access,
            request_timeout,
            prefix: prefix.to_owned(),
            reported: HashMap::new(),
            gone: HashMap::new(),
            open: None,
        }
    }

    /// Starts to listen before it lists, so that every change is in the listing or reported after
    /// it: each connection listens from its beginning.
    async fn start(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let (servers, pushes) = Servers::listening(self.access.clone(), &self.prefix);
        let masters = bounded(self.request_timeout, servers.look(&[])).await?;
        let mut open = Open { servers, pushes, masters, look: clock::now() + LOOK, poll: None };
        let entries = self.list(&mut open).await?;
        self.report_all(entries, ready);
        self.open = Some(open);
        Ok(())
    }

    /// Returns all entries. This takes as long as there are keys in the database; only a silent
    /// server ends it early.
    async fn list(&self, open: &mut Open) -> Result<Vec<Entry>, StoreError> {
        let started = clock::now();
        let mut entries = HashMap::new();
        for master in &open.masters {
            bounded(self.request_timeout, open.servers.connect(master)).await?;
            let mut cursor = 0_u64;
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(format!("{}*", escaped(&self.prefix)));
                scan.arg("COUNT").arg(PAGE).arg("TYPE").arg("hash");
                let page = open.servers.request_of(master, scan);
                let (next, keys): (u64, Vec<Value>) = bounded(self.request_timeout, page).await?;
                // A scan may return a key more than once, and two nodes may have it in a migration.
                let keys = keys.into_iter().filter_map(text);
                let keys: Vec<_> = keys.filter(|key| !entries.contains_key(key)).collect();
                let fields = open.servers.read_all(self.request_timeout, &keys).await?;
                for (key, (_, (token, value))) in keys.into_iter().zip(fields) {
                    entries.extend(entry(key.clone(), token, value).map(|entry| (key, entry)));
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        let (shortest, times) = POLL;
        let now = clock::now();
        let pause = shortest.max(times * (now - started));
        open.poll = open.servers.is_polled().then_some(now + pause);
        Ok(entries.into_values().collect())
    }

    fn report_all(&mut self, entries: Vec<Entry>, ready: &mut VecDeque<Event>) {
        entries.iter().for_each(|entry| self.access.saw(&entry.version));
        let tokens = entries.iter().map(|entry| (entry.key.clone(), token_of(&entry.version)));
        self.reported = tokens.collect();
        self.gone.clear();
        ready.push_back(Event::Init);
        ready.extend(entries.into_iter().map(Event::InitEntry));
        ready.push_back(Event::InitDone);
    }

    /// Lists, and reports the differences.
    async fn poll(&mut self, open: &mut Open, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let entries = self.list(open).await?;
        let listed: HashSet<_> = entries.iter().map(|entry| entry.key.clone()).collect();
        // A key that a migration moved meanwhile may be missing.
        let missing: Vec<_> = self.reported.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        let mut lists = self.read_changes(open, missing, ready).await?;
        for entry in &entries {
            lists |= self.report(entry.key.clone(), Some(entry.clone()), 0, ready);
        }
        if lists {
            self.report_all(entries, ready);
        }
        Ok(())
    }

    /// Reads keys and reports those that changed. Returns whether a listing has to follow.
    async fn read_changes(
        &mut self,
        open: &Open,
        keys: Vec<Arc<str>>,
        ready: &mut VecDeque<Event>,
    ) -> Result<bool, StoreError> {
        let fields = open.servers.read_all(self.request_timeout, &keys).await?;
        let mut lists = false;
        for (key, (time, (token, value))) in keys.into_iter().zip(fields) {
            let entry = entry(key.clone(), token, value);
            lists |= self.report(key, entry, time, ready);
        }
        Ok(lists)
    }

    /// Reports the state of a key if it is news. Returns whether its version was set back, because
    /// somebody restored the key or set the server's clock back: only a listing shows readers that
    /// this is the truth.
    fn report(
        &mut self,
        key: Arc<str>,
        entry: Option<Entry>,
        time: u64,
        ready: &mut VecDeque<Event>,
    ) -> bool {
        let known = self.reported.get(&key);
        let Some(entry) = entry else {
            if let Some(known) = self.reported.remove(&key) {
                let version = deleted(&known, time);
                self.access.saw(&version);
                if self.gone.len() >= REMEMBERED {
                    self.gone.clear();
                }
                self.gone.extend(version.key_revision().map(|number| (key.clone(), number)));
                ready.push_back(Event::Delete { key, version });
            }
            return false;
        };
        let token = token_of(&entry.version);
        if known == Some(&token) {
            return false;
        }
        self.access.saw(&entry.version);
        let gone = self.gone.remove(&key);
        let set_back = known.is_some_and(|known| is_set_back(known, Some(&token)))
            || gone.zip(number(&token)).is_some_and(|(gone, number)| number <= gone);
        self.reported.insert(key, token);
        ready.push_back(Event::Put(entry));
        set_back
    }

    /// Waits until a server reports changed keys, and collects all further reports received by
    /// then. Returns no keys when it is time to look or to list.
    async fn changes(&self, open: &mut Open) -> Result<Changes, StoreError> {
        let mut changes = Changes::default();
        let deadline = open.poll.map_or(open.look, |poll| poll.min(open.look));
        if clock::now() >= deadline {
            return Ok(changes);
        }
        let Ok(first) = timeout_at(deadline, open.pushes.recv()).await else { return Ok(changes) };
        let mut next = Some(first.ok_or_else(|| unavailable("not connected"))?);
        while let Some(push) = next {
            match (push.info.kind, push.info.data.into_iter().next()) {
                (PushKind::Disconnection, _) => changes.lost.push(push.node),
                (PushKind::Invalidate, Some(Value::Array(keys))) => {
                    let keys = keys.into_iter().filter_map(text).filter(|key| key.starts_with(&self.prefix));
                    for key in keys {
                        if changes.known.insert(key.clone()) {
                            changes.keys.push(key);
                        }
                    }
                }
                // A report without keys concerns all keys: the database was flushed.
                (PushKind::Invalidate, _) => changes.flushed.push(push.node),
                _ => {}
            }
            // A limit, so that a long backlog does not delay the event of its first change.
            next = if changes.keys.len() >= BATCH { None } else { open.pushes.try_recv().ok() };
        }
        Ok(changes)
    }

    /// Returns whether a master was flushed. Fails if one was lost. Nodes that a cluster removed
    /// may go, and a node that becomes a replica flushes its database.
    async fn check(&self, open: &mut Open, changes: &Changes) -> Result<bool, StoreError> {
        if changes.lost.is_empty() && changes.flushed.is_empty() {
            return Ok(false);
        }
        // Those that are lost cannot answer.
        let asked = if changes.lost.is_empty() { &open.masters[..] } else { &[] };
        let now = bounded(self.request_timeout, open.servers.look(asked)).await?;
        let of_master = |names: &[Arc<str>]| now.iter().any(|master| names.contains(&master.name));
        if of_master(&changes.lost) {
            return Err(unavailable("the connection was lost"));
        }
        open.masters.retain(|master| now.iter().any(|now| Arc::ptr_eq(now, master)));
        Ok(of_master(&changes.flushed))
    }

    /// Returns whether the masters are still the same. A new one needs a listing, because nobody
    /// listened to it until now.
    async fn look(&self, open: &mut Open) -> Result<bool, StoreError> {
        let masters = bounded(self.request_timeout, open.servers.look(&open.masters)).await?;
        let is_known = |master: &Arc<Node>| open.masters.iter().any(|known| Arc::ptr_eq(known, master));
        let same = masters.iter().all(is_known);
        open.masters = masters;
        open.look = clock::now() + LOOK;
        Ok(same)
    }
}

impl Resumable for Watch {
    async fn advance(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let Some(mut open) = self.open.take() else { return self.start(ready).await };
        let changes = self.changes(&mut open).await?;
        let lists =
            self.check(&mut open, &changes).await? || self.read_changes(&open, changes.keys, ready).await?;
        let now = clock::now();
        if (now >= open.look || open.servers.take_discovered()) && !self.look(&mut open).await? {
            return self.start(ready).await;
        }
        if lists {
            let entries = self.list(&mut open).await?;
            self.report_all(entries, ready);
        } else if open.poll.is_some_and(|poll| now >= poll) {
            self.poll(&mut open, ready).await?;
        }
        self.open = Some(open);
        Ok(())
    }

    fn disconnect(&mut self) {
        self.open = None;
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

fn token_of(version: &Version) -> Bytes {
    Bytes::copy_from_slice(version.token())
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

/// The number of keys that one step of a listing visits: a millisecond or two of the server's time.
const PAGE: usize = 5000;
/// The number of changed keys that are collected before they are read.
const BATCH: usize = 256;
/// The number of deletions that are remembered.
const REMEMBERED: usize = 10_000;
/// The time between two looks at the servers.
const LOOK: Duration = Duration::from_millis(500);
/// The shortest pause between two listings where changes are polled, and how many times longer than
/// a listing it is.
const POLL: (Duration, u32) = (Duration::from_secs(1), 9);

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
