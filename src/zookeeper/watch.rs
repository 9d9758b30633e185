//! The watch. The server reports the nodes that changed, and the watch reads them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures_util::{FutureExt, future::join_all};
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, PersistentWatcher, SessionState, Stat, WatchedEvent,
};

use super::{access::store_error, codec::entry, name, session::Session};
use crate::store::{Event, StoreError, Version, resume::Resumable, unavailable};

pub(super) struct Watch {
    session: Session,
    prefix: String,
    /// The zxid of the last reported write of each key that exists.
    reported: HashMap<Arc<str>, i64>,
    watcher: Option<(Client, PersistentWatcher)>,
}

/// The value and state of a node; `None` if it is absent or unreadable.
type Read = Option<(Vec<u8>, Stat)>;

impl Watch {
    pub fn new(session: Session, prefix: &str) -> Self {
        Self { session, prefix: prefix.to_owned(), reported: HashMap::new(), watcher: None }
    }

    /// Starts to watch before it lists, so that every change is in the listing or reported after
    /// it.
    async fn open(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let (session, base) = (self.session.clone(), self.session.base());
        let begin = async {
            let client = session.client().await?;
            let mode = AddWatchMode::PersistentRecursive;
            let watcher = client.watch(base, mode).await.map_err(store_error)?;
            // This server may lag behind the one of the previous connection.
            client.sync(base).await.map_err(store_error)?;
            let names = match client.list_children(base).await {
                Ok(names) => names,
                // The first write will create the base path.
                Err(Error::NoNode) => Vec::new(),
                Err(error) => return Err(store_error(error)),
            };
            Ok((client, watcher, names))
        };
        let (client, watcher, names) = session.bounded(begin).await?;
        let mut listing = VecDeque::from([Event::Init]);
        self.reported.clear();
        let keys: Vec<Arc<str>> = names.iter().filter_map(|name| self.key(name)).collect();
        for keys in keys.chunks(BATCH) {
            for (key, read) in keys.iter().zip(self.read(&client, keys).await?) {
                if let Some((value, stat)) = read {
                    self.reported.insert(key.clone(), stat.mzxid);
                    listing.push_back(Event::InitEntry(entry(key.clone(), value, &stat)));
                }
            }
        }
        listing.push_back(Event::InitDone);
        ready.extend(listing);
        self.watcher = Some((client, watcher));
        Ok(())
    }

    /// Returns the key of a node, if the node is a key with the prefix.
    fn key(&self, name: &str) -> Option<Arc<str>> {
        name::decode(name).filter(|key| key.starts_with(&self.prefix)).map(Arc::from)
    }

    /// Reads the nodes of the keys, all at the same time.
    async fn read(&self, client: &Client, keys: &[Arc<str>]) -> Result<Vec<Read>, StoreError> {
        let reads: Vec<_> = keys.iter().map(|key| client.get_data(&self.session.path(key))).collect();
        let read = |answer| match answer {
            Ok(read) => Ok(Some(read)),
            // An unreadable node must not end the watch of the others. `get` reports the denial to
            // a caller that asks for this key.
            Err(Error::NoNode | Error::NoAuth) => Ok(None),
            Err(error) => Err(store_error(error)),
        };
        self.session.bounded(async { join_all(reads).await.into_iter().map(read).collect() }).await
    }

    /// Adds the key of an event to `changes`, and whether the event is a deletion. Events of one
    /// key merge into one change, which is a deletion if any of them is.
    fn note(&self, event: &WatchedEvent, changes: &mut Vec<(Arc<str>, bool)>) -> Result<(), StoreError> {
        if event.event_type == EventType::Session {
            return match event.session_state {
                SessionState::SyncConnected => Ok(()),
                state => Err(unavailable(format!("the session is {state}"))),
            };
        }
        let name = event.path.strip_prefix(self.session.base()).and_then(|rest| rest.strip_prefix('/'));
        if let Some(key) = name.and_then(|name| self.key(name)) {
            let deleted = event.event_type == EventType::NodeDeleted;
            match changes.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known |= deleted,
                None => changes.push((key, deleted)),
            }
        }
        Ok(())
    }
}

impl Resumable for Watch {
    async fn advance(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let Some((client, mut watcher)) = self.watcher.take() else { return self.open(ready).await };
        let mut changes = Vec::new();
        self.note(&watcher.changed().await, &mut changes)?;
        while changes.len() < BATCH
            && let Some(event) = watcher.changed().now_or_never()
        {
            self.note(&event, &mut changes)?;
        }
        // ZooKeeper does not report the zxid of a deletion. The `pzxid` of the base path serves
        // instead, because a deletion changes it, so it is at or after the deletion. It is
        // requested before the nodes are read. A node that is absent in that read has its next
        // write later than the `pzxid`.
        let base = client.check_stat(self.session.base());
        let keys: Vec<Arc<str>> = changes.iter().map(|(key, _)| key.clone()).collect();
        let reads = self.read(&client, &keys).await?;
        let base = self.session.bounded(async { base.await.map_err(store_error) }).await?;
        for ((key, deleted), read) in changes.into_iter().zip(reads) {
            match read {
                Some((value, stat)) => {
                    if self.reported.insert(key.clone(), stat.mzxid) != Some(stat.mzxid) {
                        ready.push_back(Event::Put(entry(key, value, &stat)));
                    }
                }
                // The node is absent, but the event of its deletion is still to come; it will be
                // reported then.
                None if !deleted => {}
                None => {
                    if let Some(written) = self.reported.remove(&key) {
                        let zxid = base.map_or(written + 1, |base| base.pzxid);
                        let version = Version::ordered(zxid.unsigned_abs());
                        ready.push_back(Event::Delete { key, version });
                    }
                }
            }
        }
        self.watcher = Some((client, watcher));
        Ok(())
    }

    fn disconnect(&mut self) {
        self.watcher = None;
    }
}

/// The number of nodes that are read at the same time.
const BATCH: usize = 256;
