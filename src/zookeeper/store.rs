//! The store in ZooKeeper.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use zookeeper_client::{Client, CreateMode, Error, MultiWriteError, MultiWriteResult, MultiWriter, Stat};

use super::{
    access::{self, ENGINE, ZookeeperAccess, create_base, is_base, store_error},
    codec::{entry, parts, version},
    deletions::{Deletions, Known, NAME_LENGTH, is_original},
    session::Session,
    watch::Watch,
};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, resume, unavailable,
};

/// A store in ZooKeeper 3.6 or newer, which has persistent watches. Clones share the session.
///
/// # Layout
///
/// Each key is a node under a base path. The first write creates the base path. The name of the
/// node is the key, in which slashes and all bytes but printable ASCII are percent-encoded. The
/// store ignores other nodes under the base path.
///
/// # Versions
///
/// A version is the zxid of the write (`mzxid`), so versions are ordered over all keys. A `sync`
/// precedes each read, so that it returns every write acknowledged before.
///
/// ZooKeeper compares a node's *data version*, which restarts at 0 when the node is deleted and
/// created. Therefore each delete also writes a node `%deletions-<random>`, and each update also
/// compares the data version of that node. If no key was deleted since the expected write, the
/// node's data version identifies the write as well as the zxid. Otherwise the store reads the zxid
/// again before it writes, which costs that update one more round trip. After an interruption it
/// does so for each write from before.
///
/// So a stale writer loses, even if an administrator wiped the base path, deleted the node
/// `%deletions-<random>`, or restored a backup. **Delete single keys only through this store:** a
/// deletion by another program does not write that node.
///
/// A value together with its key has at most about 1 MB (`jute.maxbuffer`). The store returns
/// [`StoreError::TooLarge`] for a larger value, and [`StoreError::Invalid`] for a key that is too
/// long by itself. It does not send them, because the server would close the connection.
///
/// # Permissions
///
/// The store creates nodes with the ACL of its [`ZookeeperAccess`]. A watch omits nodes that the
/// user may not read.
///
/// An administrator may create the base path, below nodes that the user may not change. The user
/// needs READ on it to watch and to update, CREATE to create keys, and DELETE to delete keys. On the
/// nodes of the keys it needs READ and WRITE. On the node `%deletions-<random>`, which the first
/// update or deletion creates, it needs READ to update, and WRITE to delete.
///
/// # Timeouts and sessions
///
/// A call without an answer within the [request timeout](Self::request_timeout), 5 s by default,
/// returns [`StoreError::Unavailable`]. Its write may still succeed, even later. Each request is
/// sent once.
///
/// After the session has expired, the next call begins a new one. No node is bound to a session, so
/// an expiry loses no data. The client learns of the expiry when it reconnects; without a server it
/// assumes it after 1.4 times the session timeout. A session whose connection breaks again and
/// again, each time soon after it was made, ends as well; the next one begins after a pause of 1 s
/// to 6 s, and until then calls return [`StoreError::Unavailable`].
///
/// # Watches
///
/// A watch is a persistent recursive watch of the base path. The server reports the changed nodes,
/// and the watch reads them, so it may omit a write that a newer one has already replaced. After
/// each interruption it lists all nodes again, because persistent watches can lose events then
/// (ZOOKEEPER-4698).
///
/// # Examples
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use writerlease::zookeeper::{ZookeeperAccess, ZookeeperStore};
///
/// let access = ZookeeperAccess::digest("controller", "secret");
/// let store = ZookeeperStore::new("zk-0:2181,zk-1:2181", "/controllers/route-status", access)?
///     .session_timeout(Duration::from_secs(6));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ZookeeperStore {
    session: Session,
    deletions: Arc<Known>,
}

impl ZookeeperStore {
    /// Creates a store whose keys are nodes under the path `base`. `servers` is a list of
    /// `host:port`, separated by commas; behind the last one may stand a root path, which must
    /// exist: `zk-0:2181,zk-1:2181/app`. Connects with the first call.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if `servers` is no such list, or if `base` is not an
    /// absolute path, is `/`, is or begins with `/zookeeper`, has an invalid name in it, or has more
    /// than 65,535 bytes, or if the access does not fit into a request.
    pub fn new(servers: &str, base: &str, access: ZookeeperAccess) -> Result<Self, StoreError> {
        let invalid = |reason: String| StoreError::Invalid { reason, source: None };
        if let Some(rule) = access.broken_rule(servers) {
            return Err(invalid(format!("servers are {servers:?}, but must be {rule}")));
        }
        if !is_base(base) {
            return Err(invalid(format!(
                "base is {base:?}, but must be a path such as \"/controllers/status\""
            )));
        }
        access::fits(access.size()).map_err(|reason| invalid(format!("access is too large: {reason}")))?;
        Ok(Self { session: Session::new(servers, base, access), deletions: Arc::default() })
    }

    /// Sets the session timeout that the client requests. Default: 10 s.
    ///
    /// A value outside of 100 ms to 24 days is replaced by the nearer of the two. The client drops
    /// a connection after two fifths of the timeout without an answer.
    #[must_use]
    pub fn session_timeout(mut self, session_timeout: Duration) -> Self {
        self.session.session_timeout = session_timeout;
        self
    }

    /// Sets the time limit of each call, connecting included. Default: 5 s.
    #[must_use]
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.session.request_timeout = request_timeout;
        self
    }

    /// Returns the path of a key's node, and the size of a request that has it `times` times, if
    /// that is not too large even without a value.
    fn path_within(
        &self,
        key: &str,
        fence: Option<&Fence>,
        times: usize,
    ) -> Result<(String, usize), StoreError> {
        let path = self.session.path(non_empty(key)?);
        let counter = self.session.base().len() + 1 + NAME_LENGTH;
        let size = times * path.len() + counter + fence.map_or(0, |fence| fence.proof().len());
        let invalid =
            |reason| StoreError::Invalid { reason: format!("the key is too long: {reason}"), source: None };
        self.session.fits(size).map_err(invalid)?;
        Ok((path, size))
    }

    /// Creates the node of a key, if the fence holds.
    async fn create(&self, path: &str, value: &[u8], fence: Option<&Fence>) -> Result<Version, StoreError> {
        let client = self.session.client().await?;
        let options = self.session.access().options(CreateMode::Persistent);
        loop {
            let created = match fence {
                None => client.create(path, value, &options).await.map(|(stat, _)| stat),
                Some(fence) => {
                    let mut writer = client.new_multi_writer();
                    add_fence(&mut writer, &client, fence)?;
                    // Servers up to 3.8 return no stat for a creation within a transaction
                    // (ZOOKEEPER-4667), but they do for a change of data. So create an empty node
                    // and set its value in the same transaction.
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
                Err(Error::NoNode) => {
                    create_base(&client, self.session.base(), &options).await?;
                }
                Err(error) => return Err(store_error(error)),
            }
        }
    }

    /// Writes the node of a key, if its last write is the expected one and the fence holds: `Some`
    /// sets a value, `None` deletes.
    async fn update(
        &self,
        path: &str,
        value: Option<&[u8]>,
        expected: &Version,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let (client, interruptions) = self.session.client_and_interruptions().await?;
        let (zxid, data_version) = match parts(expected) {
            Ok(parts) => parts,
            Err(conflict) => return Err(outrank(&client, fence, conflict).await),
        };
        // A further round is needed only if a key was deleted since the round before.
        loop {
            let deletions = match self.deletions_before(&client, interruptions, path, zxid).await {
                Ok(deletions) => deletions,
                Err(error) => return Err(outrank(&client, fence, error).await),
            };
            let mut writer = client.new_multi_writer();
            // A transaction reports its first failing operation, so the fence comes first.
            let deletions_index = match fence {
                Some(fence) => add_fence(&mut writer, &client, fence).map(|()| 1)?,
                None => 0,
            };
            let added = match value {
                Some(value) => writer
                    .add_check_version(&deletions.path, deletions.version)
                    .and_then(|()| writer.add_set_data(path, value, Some(data_version))),
                None => writer
                    .add_set_data(&deletions.path, b"", Some(deletions.version))
                    .and_then(|()| writer.add_delete(path, Some(data_version))),
            };
            added.map_err(store_error)?;
            let failed = match writer.commit().await {
                Ok(results) => {
                    let stat = written(results)?;
                    let seen = match value {
                        Some(_) => Deletions { since: deletions.since.min(stat.mzxid), ..deletions },
                        None => Deletions { version: stat.version, since: stat.mzxid, ..deletions },
                    };
                    self.deletions.saw(interruptions, seen);
                    return Ok(version(&stat));
                }
                Err(MultiWriteError::OperationFailed { index, source }) => (index, source),
                Err(error) => return Err(store_error(error.into())),
            };
            match (failed, fence) {
                ((0, Error::NoNode), Some(fence)) => return Err(fence.refused()),
                ((index, Error::BadVersion | Error::NoNode), _) if index == deletions_index => {
                    // A key was deleted, perhaps this one. Forget the state and look at the zxid
                    // again.
                    self.deletions.forget();
                }
                ((_, Error::BadVersion), _) => {
                    return Err(StoreError::Conflict { current: Current::Unknown });
                }
                ((_, Error::NoNode), _) => return Err(StoreError::Conflict { current: Current::Absent }),
                ((_, error), _) => return Err(store_error(error)),
            }
        }
    }

    /// Returns a state of the node that counts deletions in which the last write of the node at
    /// `path` was `zxid`. As long as that state lasts, no key is deleted, so the node's data
    /// version does not start again.
    async fn deletions_before(
        &self,
        client: &Client,
        interruptions: u64,
        path: &str,
        zxid: i64,
    ) -> Result<Deletions, StoreError> {
        // A state from before the write: if it still holds, the node was not deleted since the
        // write.
        let known = self.deletions.state(interruptions);
        if let Some(known) = known.filter(|known| known.since < zxid) {
            return Ok(known);
        }
        loop {
            let counter = self.deletions.path(&self.session, client).await?;
            // Both are sent before the first answer. The server answers a session's requests in
            // order, so the state of the node is at least as new as the count.
            let (deletions, node) = (client.check_stat(&counter), client.check_stat(path));
            let (deletions, node) = (deletions.await.map_err(store_error)?, node.await.map_err(store_error)?);
            match (deletions.filter(is_original), node) {
                (_, None) => return Err(StoreError::Conflict { current: Current::Absent }),
                (_, Some(node)) if node.mzxid != zxid => {
                    return Err(StoreError::Conflict { current: Current::Version(version(&node)) });
                }
                (Some(Stat { mzxid, version, .. }), _) => {
                    // After an interruption, the data may be older ones that somebody restored, so
                    // that a write from before it was never made. The next write shows the zxid
                    // of now.
                    let since = if interruptions == 0 { mzxid } else { i64::MAX };
                    return Ok(Deletions { path: counter, version, since });
                }
                (None, _) => self.deletions.lost(&counter).await,
            }
        }
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
        let (path, _) = self.path_within(key, None, 1)?;
        let read = async {
            let client = self.session.client().await?;
            // Both are sent before the first answer. The server answers a session's requests in
            // order.
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
        // The path may be in the transaction twice.
        let (path, size) = self.path_within(key, fence, 2)?;
        let too_large = |reason| StoreError::TooLarge { reason, source: None };
        self.session.fits(size + value.len()).map_err(too_large)?;
        match expected {
            Expected::Absent => self.session.bounded(self.create(&path, &value, fence)).await,
            Expected::Version(expected) => {
                self.session.bounded(self.update(&path, Some(&value), &expected, fence)).await
            }
        }
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        let (path, _) = self.path_within(key, fence, 1)?;
        self.session.bounded(self.update(&path, None, expected, fence)).await.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        resume::watch(format!("zookeeper watch of {prefix:?}"), Watch::new(self.session.clone(), prefix))
    }
}

/// Adds a check to the transaction: the leader's node exists.
fn add_fence(writer: &mut MultiWriter<'_>, client: &Client, fence: &Fence) -> Result<(), StoreError> {
    writer.add_check_version(leader_node(client, fence)?, ANY_VERSION).map_err(store_error)
}

/// Returns the error of a write that was not sent: a fence that fails outranks a conflict.
async fn outrank(client: &Client, fence: Option<&Fence>, error: StoreError) -> StoreError {
    let (StoreError::Conflict { .. }, Some(fence)) = (&error, fence) else { return error };
    let node = match leader_node(client, fence) {
        Ok(node) => node,
        Err(error) => return error,
    };
    match client.check_stat(node).await {
        Ok(Some(_)) => error,
        Ok(None) => fence.refused(),
        Err(error) => store_error(error),
    }
}

/// Returns the path at which the client sees the leader's node.
fn leader_node<'a>(client: &Client, fence: &'a Fence) -> Result<&'a str, StoreError> {
    // Paths are UTF-8, so any other proof belongs to no leader.
    let path = std::str::from_utf8(fence.of(ENGINE)?.proof()).map_err(|_| fence.refused())?;
    let seen = path.strip_prefix(client.path().trim_end_matches('/'));
    seen.filter(|path| path.starts_with('/')).ok_or_else(|| {
        let reason = format!("the leader's node {path:?} is not below the root path {:?}", client.path());
        StoreError::Invalid { reason, source: None }
    })
}

/// Returns the node's state after the transaction's only change of data.
fn written(results: Vec<MultiWriteResult>) -> Result<Stat, StoreError> {
    let stat = results.into_iter().find_map(|result| match result {
        MultiWriteResult::SetData { stat } => Some(stat),
        _ => None,
    });
    stat.ok_or_else(|| unavailable("the answer to the transaction has no stat"))
}

/// ZooKeeper's value for any data version.
const ANY_VERSION: i32 = -1;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_zookeeper_never_assigned_are_conflicts() {
        assert!(matches!(parts(&Version::ordered(7).with_token(vec![0, 0, 0, 3])), Ok((7, 3))));
        for version in [Version::ordered(7), Version::ordered(u64::MAX), Version::opaque("abcd")] {
            assert!(matches!(parts(&version), Err(StoreError::Conflict { current: Current::Unknown })));
        }
    }

    #[test]
    fn an_invalid_base_path_is_named_in_the_error() {
        for base in ["", "/", "x", "/x/", "/x//y", "/x/../y", "/zookeeper", "/x\n"] {
            let store = ZookeeperStore::new("localhost:1", base, ZookeeperAccess::open());
            let Err(StoreError::Invalid { reason, .. }) = store else { panic!("{base:?}: {store:?}") };
            assert!(reason.contains(&format!("{base:?}")), "{reason}");
        }
        assert!(ZookeeperStore::new("", "/x", ZookeeperAccess::open()).is_err());
        assert!(ZookeeperStore::new("localhost:1", "/x/y", ZookeeperAccess::open()).is_ok());
    }
}
