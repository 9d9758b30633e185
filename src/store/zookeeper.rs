//! ZooKeeper, as a store.

pub(crate) mod name;
mod watch;

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::Mutex;
use zookeeper_client::{
    Acl, Acls, Client, Connector, CreateMode, CreateOptions, Error, MultiWriteError, MultiWriteResult,
    MultiWriter, Stat,
};

use self::watch::Watch;
use super::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, source, unavailable,
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
/// use writerlease::store::{ZookeeperAccess, ZookeeperStore};
///
/// let access = ZookeeperAccess::digest("controller", "secret");
/// let store = ZookeeperStore::new("zk-0:2181,zk-1:2181", "/controllers/route-status", access)?
///     .with_session_timeout(Duration::from_secs(6));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ZookeeperStore {
    shared: Arc<Shared>,
    session_timeout: Duration,
    request_timeout: Duration,
}

/// Who a store is, and who may read and write what it creates.
#[derive(Clone)]
pub struct ZookeeperAccess {
    auth: Option<(String, Vec<u8>)>,
    acl: Option<Vec<Acl>>,
}

struct Shared {
    servers: String,
    base: String,
    access: ZookeeperAccess,
    /// None before the first call. The lock is held while connecting, so that the others wait for that.
    client: Mutex<Option<Client>>,
    /// The newest state that we saw of the node that counts deletions.
    deletions: parking_lot::Mutex<Option<Deletions>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Deletions {
    zxid: i64,
    version: i32,
}

impl ZookeeperAccess {
    /// Everybody who reaches the servers may do everything.
    pub fn open() -> Self {
        Self { auth: None, acl: None }
    }

    /// This user, and nobody else. (The password travels in plain text; ZooKeeper doesn't tell whether it is right, but
    /// denies what the right one may do.)
    pub fn digest(user: &str, password: &str) -> Self {
        Self::auth("digest", format!("{user}:{password}"))
    }

    /// Authenticates by a scheme of the servers; only who does likewise has access.
    pub fn auth(scheme: &str, credential: impl Into<Vec<u8>>) -> Self {
        Self { auth: Some((scheme.to_owned(), credential.into())), acl: None }
    }

    /// Creates nodes with these permissions instead.
    #[must_use]
    pub fn with_acl(self, acl: Vec<Acl>) -> Self {
        Self { acl: Some(acl), ..self }
    }

    pub(crate) fn connector(&self, session_timeout: Duration) -> Connector {
        // The client would take zero for a default of its own, and wrap what is too long.
        let session_timeout = session_timeout.clamp(*SESSION_TIMEOUTS.start(), *SESSION_TIMEOUTS.end());
        let connector = Client::connector().with_session_timeout(session_timeout).with_fail_eagerly();
        match &self.auth {
            Some((scheme, credential)) => connector.with_auth(scheme, credential),
            None => connector,
        }
    }

    pub(crate) fn options(&self, mode: CreateMode) -> CreateOptions<'_> {
        mode.with_acls(match (&self.acl, &self.auth) {
            (Some(acl), _) => Acls::new(acl),
            (None, Some(_)) => Acls::creator_all(),
            (None, None) => Acls::anyone_all(),
        })
    }
}

/// Whether it may be a list of servers; the client knows more of them than how a path looks.
pub(crate) fn are_servers(servers: &str) -> bool {
    !servers.is_empty() && !servers.contains('/')
}

/// Whether it is a path below which nodes of ours may be.
pub(crate) fn is_base(path: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(char::is_control);
    path.strip_prefix('/').is_some_and(|names| names.split('/').all(is_name)) && path != "/zookeeper"
}

/// Without the credential.
impl fmt::Debug for ZookeeperAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.auth.as_ref().map(|(scheme, _)| scheme);
        f.debug_struct("ZookeeperAccess").field("scheme", &scheme).field("acl", &self.acl).finish()
    }
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
        let shared = Shared {
            servers: servers.to_owned(),
            base: base.to_owned(),
            access,
            client: Mutex::default(),
            deletions: parking_lot::Mutex::default(),
        };
        let (session_timeout, request_timeout) = (Duration::from_secs(10), Duration::from_secs(5));
        Ok(Self { shared: Arc::new(shared), session_timeout, request_timeout })
    }

    /// The session timeout to ask for, from 100 ms to 24 days; 10 s unless set. After two fifths of it without a sign of life the client gives a
    /// connection up.
    #[must_use]
    pub fn with_session_timeout(mut self, session_timeout: Duration) -> Self {
        self.session_timeout = session_timeout;
        self
    }

    /// How long each call may take, connecting included; 5 s unless set.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// The client of the current session, or of a new one.
    async fn client(&self) -> Result<Client, StoreError> {
        let mut current = self.shared.client.lock().await;
        if let Some(client) = &*current
            && !client.state().is_terminated()
        {
            return Ok(client.clone());
        }
        let connector = self.shared.access.connector(self.session_timeout);
        let client = connector.connect(&self.shared.servers).await.map_err(store_error)?;
        *current = Some(client.clone());
        Ok(client)
    }

    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}/{}", self.shared.base, name::encode(key))
    }

    fn deletions_path(&self) -> String {
        format!("{}/{DELETIONS}", self.shared.base)
    }

    /// Creates the base path and the node that counts deletions.
    async fn prepare(&self, client: &Client) -> Result<(), StoreError> {
        let options = self.shared.access.options(CreateMode::Persistent);
        client.mkdir(&self.shared.base, &options).await.map_err(store_error)?;
        match client.create(&self.deletions_path(), b"", &options).await {
            Ok(_) | Err(Error::NodeExists) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    async fn create(&self, path: &str, value: &[u8], fence: Option<&Fence>) -> Result<Version, StoreError> {
        let client = self.client().await?;
        let options = self.shared.access.options(CreateMode::Persistent);
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
        let client = self.client().await?;
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
                    *self.shared.deletions.lock() = None;
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
        let known = *self.shared.deletions.lock();
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
        let mut known = self.shared.deletions.lock();
        *known = (*known).max(Some(seen));
        seen
    }

    /// Gives up on a call, connecting included, after the request timeout.
    async fn bounded<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        source::bounded(self.request_timeout, call, |error| error).await
    }
}

impl fmt::Debug for ZookeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperStore")
            .field("servers", &self.shared.servers)
            .field("base", &self.shared.base)
            .field("access", &self.shared.access)
            .finish_non_exhaustive()
    }
}

impl Store for ZookeeperStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.path(non_empty(key)?);
        let read = async {
            let client = self.client().await?;
            // Sent at once; a session's requests are answered in their order.
            let (sync, data) = (client.sync(&path), client.get_data(&path));
            sync.await.map_err(store_error)?;
            match data.await {
                Ok((value, stat)) => Ok(Some(entry(key.into(), value, &stat))),
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(store_error(error)),
            }
        };
        self.bounded(read).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let path = self.path(non_empty(key)?);
        let fence_size = fence.map_or(0, |fence| fence.proof().len());
        let size = value.len() + 2 * path.len() + self.deletions_path().len() + fence_size + OVERHEAD;
        if size > LARGEST {
            let reason = format!("the request has {size} bytes, of at most {LARGEST} (jute.maxbuffer)");
            return Err(StoreError::TooLarge { reason, source: None });
        }
        match expected {
            Expected::Absent => self.bounded(self.create(&path, &value, fence)).await,
            Expected::Version(expected) => {
                self.bounded(self.update(&path, Some(&value), &expected, fence)).await
            }
        }
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.bounded(self.update(&self.path(non_empty(key)?), None, expected, fence)).await.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        source::watch(format!("zookeeper watch of {prefix:?}"), Watch::new(self.clone(), prefix))
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

fn version(stat: &Stat) -> Version {
    Version::ordered(stat.mzxid.unsigned_abs()).with_token(stat.version.to_be_bytes().to_vec())
}

/// The zxid and the data version. A version that is none of ours belongs to no key.
fn parts(version: &Version) -> Result<(i64, i32), StoreError> {
    let zxid = version.order().and_then(|order| i64::try_from(order).ok());
    let data_version = version.token().try_into().ok().map(i32::from_be_bytes);
    zxid.zip(data_version).ok_or(StoreError::Conflict { current: Current::Unknown })
}

fn entry(key: Arc<str>, value: Vec<u8>, stat: &Stat) -> Entry {
    Entry { key, value: value.into(), version: version(stat) }
}

pub(crate) fn store_error(error: Error) -> StoreError {
    let (reason, denied) = (error.to_string(), matches!(error, Error::NoAuth | Error::AuthFailed));
    let invalid =
        matches!(error, Error::BadArguments(_) | Error::InvalidAcl | Error::NoChildrenForEphemerals);
    let source = Some(error.into());
    match (denied, invalid) {
        (true, _) => StoreError::Denied { reason, source },
        (_, true) => StoreError::Invalid { reason, source },
        _ => StoreError::Unavailable { reason, source },
    }
}

/// Of the fences that can be checked here.
pub(crate) const ENGINE: &str = "zookeeper";
/// What ZooKeeper takes for any data version.
const ANY_VERSION: i32 = -1;
/// With less the client may give up before it is connected; and ZooKeeper counts milliseconds in 32 bits.
pub(crate) const SESSION_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_millis(i32::MAX as u64);
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
