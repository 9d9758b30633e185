//! ZooKeeper, as a store.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use zookeeper_client::{Client, CreateMode, Error, MultiWriteError, MultiWriteResult, MultiWriter, Stat};

use super::{
    access::{ENGINE, ZookeeperAccess, are_servers, is_base, store_error},
    codec::{entry, parts, version},
    session::Session,
    watch::Watch,
};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, resume, unavailable,
};

/// A store in ZooKeeper, 3.6 or newer (it needs persistent watches).
///
/// Each key is a node of its own under a base path, which is created when it is first needed. The node's name is the key;
/// what a name cannot hold, slashes and all but printable ASCII, is percent-encoded. Other nodes under the base path are left
/// alone, and a watch leaves out those that it may not read. A version is the zxid of the write (`mzxid`), so versions are ordered over all keys. A read is preceded by a
/// `sync`, so that it is not older than what was acknowledged before.
///
/// ZooKeeper compares a node's *data version*, which starts over when the node is deleted and created. Therefore each
/// delete also writes a node `%deletions`, and each update compares its data version, too: if no key was deleted since the
/// expected write, the data version of the node is as good as the zxid, and otherwise the zxid is looked at again first,
/// which costs that update one more round trip. Keys must be deleted in this way only.
///
/// The nodes are created with the ACL of the [access](ZookeeperAccess) that was asked for. A value together with its key has at most about
/// 1 MB (`jute.maxbuffer`); more is [`StoreError::TooLarge`] and is not sent, because the server would hang up on it.
///
/// A call that gets no answer within the request timeout (5 s unless [set](Self::with_request_timeout)) returns
/// [`StoreError::Unavailable`]; its write may still land, also later. Nothing is sent twice. When the session has expired, the
/// next call begins a new one. Nothing here is bound to a session, so nothing is lost with it; the client notices an expiry
/// when it reconnects, and without a server by itself after 1.4 times the session timeout.
///
/// A watch is a persistent recursive one of the base path. It is told which nodes changed and reads them, so it may leave
/// out what was already replaced. After each interruption it lists all nodes again, because such watches can lose events
/// then (ZOOKEEPER-4698).
///
/// Clones share the session.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use writerlease::zookeeper::{ZookeeperAccess, ZookeeperStore};
///
/// let access = ZookeeperAccess::digest("controller", "secret");
/// let store = ZookeeperStore::new("zk-0:2181,zk-1:2181", "/controllers/route-status", access)?
///     .with_session_timeout(Duration::from_secs(6));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ZookeeperStore {
    session: Session,
    /// The newest state that we saw of the node that counts deletions.
    deletions: Arc<Mutex<Option<Deletions>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Deletions {
    zxid: i64,
    version: i32,
}

impl ZookeeperStore {
    /// Keys are nodes under the path `base`. `servers` are `host:port`, separated by commas. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if there is no server, or the path is none that can have children of ours.
    pub fn new(servers: &str, base: &str, access: ZookeeperAccess) -> Result<Self, StoreError> {
        let invalid = |reason: String| StoreError::Invalid { reason, source: None };
        if !are_servers(servers) {
            return Err(invalid(format!("servers are {servers:?}: expected host:port, separated by commas")));
        }
        if !is_base(base) {
            return Err(invalid(format!(
                "base is {base:?}: expected a path such as \"/controllers/status\""
            )));
        }
        Ok(Self { session: Session::new(servers, base, access), deletions: Arc::default() })
    }

    /// The session timeout to ask for, from 100 ms to 24 days; 10 s unless set. After two fifths of it without a sign of life the client gives a
    /// connection up.
    #[must_use]
    pub fn with_session_timeout(mut self, session_timeout: Duration) -> Self {
        self.session.session_timeout = session_timeout;
        self
    }

    /// How long each call may take, connecting included; 5 s unless set.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.session.request_timeout = request_timeout;
        self
    }

    fn deletions_path(&self) -> String {
        format!("{}/{DELETIONS}", self.session.base())
    }

    /// Creates the base path and the node that counts deletions.
    async fn prepare(&self, client: &Client) -> Result<(), StoreError> {
        let options = self.session.access().options(CreateMode::Persistent);
        client.mkdir(self.session.base(), &options).await.map_err(store_error)?;
        match client.create(&self.deletions_path(), b"", &options).await {
            Ok(_) | Err(Error::NodeExists) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    async fn create(&self, path: &str, value: &[u8], fence: Option<&Fence>) -> Result<Version, StoreError> {
        let client = self.session.client().await?;
        let options = self.session.access().options(CreateMode::Persistent);
        loop {
            let created = match fence {
                None => client.create(path, value, &options).await.map(|(stat, _)| stat),
                Some(fence) => {
                    let mut writer = client.new_multi_writer();
                    add_fence(&mut writer, fence)?;
                    // Of a creation within a transaction, servers up to 3.8 tell nothing (ZOOKEEPER-4667).
                    let added = writer
                        .add_create(path, b"", &options)
                        .and_then(|()| writer.add_set_data(path, value, Some(0)));
                    added.map_err(store_error)?;
                    match writer.commit().await {
                        Ok(results) => Ok(written(results)?),
                        Err(MultiWriteError::OperationFailed { index: 0, source: Error::NoNode }) => {
                            return Err(fence.refused());
                        }
                        Err(error) => Err(error.into()),
                    }
                }
            };
            match created {
                Ok(stat) => return Ok(version(&stat)),
                Err(Error::NodeExists) => return Err(StoreError::Conflict { current: Current::Unknown }),
                Err(Error::NoNode) => self.prepare(&client).await?,
                Err(error) => return Err(store_error(error)),
            }
        }
    }

    /// Writes a value, or without one deletes, if the node's last write is the expected one.
    async fn update(
        &self,
        path: &str,
        value: Option<&[u8]>,
        expected: &Version,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let (zxid, data_version) = parts(expected)?;
        let client = self.session.client().await?;
        // Each turn but the first means that somebody deleted a key meanwhile.
        loop {
            let deletions = self.deletions_before(&client, path, zxid).await?;
            let mut writer = client.new_multi_writer();
            // The fence comes first, so that it is what is told when more than one thing is wrong.
            let deletions_index = match fence {
                Some(fence) => add_fence(&mut writer, fence).map(|()| 1)?,
                None => 0,
            };
            let added = match value {
                Some(value) => writer
                    .add_check_version(&self.deletions_path(), deletions.version)
                    .and_then(|()| writer.add_set_data(path, value, Some(data_version))),
                None => writer
                    .add_set_data(&self.deletions_path(), b"", Some(deletions.version))
                    .and_then(|()| writer.add_delete(path, Some(data_version))),
            };
            added.map_err(store_error)?;
            match (writer.commit().await, fence) {
                (Ok(results), _) => {
                    let stat = written(results)?;
                    if value.is_none() {
                        self.saw(&stat);
                    }
                    return Ok(version(&stat));
                }
                (Err(MultiWriteError::OperationFailed { index: 0, source: Error::NoNode }), Some(fence)) => {
                    return Err(fence.refused());
                }
                (
                    Err(MultiWriteError::OperationFailed {
                        index,
                        source: Error::BadVersion | Error::NoNode,
                    }),
                    _,
                ) if index == deletions_index => {
                    *self.deletions.lock() = None;
                }
                (Err(MultiWriteError::OperationFailed { source: Error::BadVersion, .. }), _) => {
                    return Err(StoreError::Conflict { current: Current::Unknown });
                }
                (Err(MultiWriteError::OperationFailed { source: Error::NoNode, .. }), _) => {
                    return Err(StoreError::Conflict { current: Current::Absent });
                }
                (Err(error), _) => return Err(store_error(error.into())),
            }
        }
    }

    /// A state of the node that counts deletions, at or after which the node at `path` had the write `zxid`. As long as
    /// that state lasts, nothing was deleted, and the data version of the node did not start over.
    async fn deletions_before(
        &self,
        client: &Client,
        path: &str,
        zxid: i64,
    ) -> Result<Deletions, StoreError> {
        let known = *self.deletions.lock();
        if let Some(known) = known.filter(|known| known.zxid < zxid) {
            return Ok(known);
        }
        loop {
            // Sent at once; a session's requests are answered in their order.
            let (deletions, node) = (client.check_stat(&self.deletions_path()), client.check_stat(path));
            let (deletions, node) = (deletions.await.map_err(store_error)?, node.await.map_err(store_error)?);
            match (deletions, node) {
                (_, None) => return Err(StoreError::Conflict { current: Current::Absent }),
                (_, Some(node)) if node.mzxid != zxid => {
                    return Err(StoreError::Conflict { current: Current::Version(version(&node)) });
                }
                (Some(deletions), _) => return Ok(self.saw(&deletions)),
                (None, _) => self.prepare(client).await?,
            }
        }
    }

    fn saw(&self, stat: &Stat) -> Deletions {
        let seen = Deletions { zxid: stat.mzxid, version: stat.version };
        let mut known = self.deletions.lock();
        *known = (*known).max(Some(seen));
        seen
    }
}

impl fmt::Debug for ZookeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperStore")
            .field("servers", &self.session.servers())
            .field("base", &self.session.base())
            .field("access", self.session.access())
            .finish_non_exhaustive()
    }
}

impl Store for ZookeeperStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.session.path(non_empty(key)?);
        let read = async {
            let client = self.session.client().await?;
            // Sent at once; a session's requests are answered in their order.
            let (sync, data) = (client.sync(&path), client.get_data(&path));
            sync.await.map_err(store_error)?;
            match data.await {
                Ok((value, stat)) => Ok(Some(entry(key.into(), value, &stat))),
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(store_error(error)),
            }
        };
        self.session.bounded(read).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let path = self.session.path(non_empty(key)?);
        let fence_size = fence.map_or(0, |fence| fence.proof().len());
        let size = value.len() + 2 * path.len() + self.deletions_path().len() + fence_size + OVERHEAD;
        if size > LARGEST {
            let reason = format!("the request has {size} bytes, of at most {LARGEST} (jute.maxbuffer)");
            return Err(StoreError::TooLarge { reason, source: None });
        }
        match expected {
            Expected::Absent => self.session.bounded(self.create(&path, &value, fence)).await,
            Expected::Version(expected) => {
                self.session.bounded(self.update(&path, Some(&value), &expected, fence)).await
            }
        }
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.session
            .bounded(self.update(&self.session.path(non_empty(key)?), None, expected, fence))
            .await
            .map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        resume::watch(format!("zookeeper watch of {prefix:?}"), Watch::new(self.session.clone(), prefix))
    }
}

/// The transaction takes effect only if the leader's node exists.
fn add_fence(writer: &mut MultiWriter<'_>, fence: &Fence) -> Result<(), StoreError> {
    // A path that is no path is that of nobody.
    let node = std::str::from_utf8(fence.of(ENGINE)?.proof()).map_err(|_| fence.refused())?;
    writer.add_check_version(node, ANY_VERSION).map_err(store_error)
}

/// The state that a transaction's only change of data left behind.
fn written(results: Vec<MultiWriteResult>) -> Result<Stat, StoreError> {
    let stat = results.into_iter().find_map(|result| match result {
        MultiWriteResult::SetData { stat } => Some(stat),
        _ => None,
    });
    stat.ok_or_else(|| unavailable("the answer has no stat"))
}

/// What ZooKeeper takes for any data version.
const ANY_VERSION: i32 = -1;
/// The node that counts deletions, by its data version. No key has this name.
const DELETIONS: &str = "%deletions";
/// The servers' default of `jute.maxbuffer`.
const LARGEST: usize = 0xfffff;
/// More than the rest of any request takes.
const OVERHEAD: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_zookeeper_can_have_given_out_are_compared() {
        assert!(matches!(parts(&Version::ordered(7).with_token(vec![0, 0, 0, 3])), Ok((7, 3))));
        for version in [Version::ordered(7), Version::ordered(u64::MAX), Version::opaque("abcd")] {
            assert!(matches!(parts(&version), Err(StoreError::Conflict { current: Current::Unknown })));
        }
    }

    #[test]
    fn what_cannot_be_a_base_path_is_named() {
        for base in ["", "/", "x", "/x/", "/x//y", "/x/../y", "/zookeeper", "/x\n"] {
            let store = ZookeeperStore::new("localhost:1", base, ZookeeperAccess::open());
            let Err(StoreError::Invalid { reason, .. }) = store else { panic!("{base:?}: {store:?}") };
            assert!(reason.contains(&format!("{base:?}")), "{reason}");
        }
        assert!(ZookeeperStore::new("", "/x", ZookeeperAccess::open()).is_err());
        assert!(ZookeeperStore::new("localhost:1", "/x/y", ZookeeperAccess::open()).is_ok());
    }
}
