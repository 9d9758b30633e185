//! The store in etcd.

use std::{fmt, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KvClient, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchClient,
};
use futures_util::Stream;

use super::client::{ENGINE, entry, get, range, transact, version};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, unavailable,
};

/// A store in etcd 3.4 or newer. Clones share the client and its connections.
///
/// # Versions
///
/// A version is the key's `mod_revision`, so versions are ordered over all keys. Reads are
/// linearizable. Restoring a cluster from a backup sets the revisions back, which breaks the
/// contract unless `etcdutl snapshot restore --bump-revision` raises them again.
///
/// A write is one transaction. It compares the key's revision and, for a [`Fence`], the revision at
/// which the leader wrote its key. If both match, it puts or deletes; otherwise it reads the current
/// revisions.
///
/// Values over the server's limit return [`StoreError::TooLarge`]. The limit is
/// `--max-request-bytes`, 1.5 MiB for the whole request by default.
///
/// # Leases
///
/// A write leaves a key attached to the lease that it has, and attaches a new key to none. With
/// [`lease`](Self::lease) all that the store writes ends with a lease of the caller.
///
/// # Permissions
///
/// With etcd's access control, the user needs read and write permission for the keys, and read
/// permission for the leader's key if writes carry a fence.
///
/// # Timeouts and retries
///
/// A call without an answer within the [request timeout](Self::request_timeout), 5 s by default,
/// returns [`StoreError::Unavailable`]. Each request is sent once, with two exceptions: a client
/// made with `with_auto_token_refresh` logs in again and repeats a request that the server refused
/// for an expired token, and a request that a learner refused is sent again, so that it reaches a
/// member with a vote. This is safe because a refused request had no effect.
///
/// # Watches
///
/// An interrupted watch continues from its last revision. It starts again with a listing if etcd
/// has compacted the missed revisions, or if the etcd cluster is a different one.
///
/// After 10 s of silence the watch requests a progress notification, so that it detects a half-open
/// connection. `etcd grpc-proxy` answers no such request; behind one the watch reads instead. Only
/// HTTP/2 keepalive replaces such a connection before TCP gives up on it. Configure keepalive in
/// the client that you pass in, as [`connect`](Self::connect) does, and `with_require_leader`:
/// without it, a member that is cut off from the cluster keeps the watch open and stays silent.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use etcd_client::{Client, ConnectOptions};
/// use writerlease::etcd::EtcdStore;
///
/// // With a TLS feature of `etcd-client`, TLS is one more option here.
/// let options = ConnectOptions::new()
///     .with_user("controller", "secret")
///     .with_auto_token_refresh(true)
///     .with_require_leader(true)
///     .with_connect_timeout(Duration::from_secs(3))
///     .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
///     .with_keep_alive_while_idle(false);
/// let client = Client::connect(["https://etcd-0:2379", "https://etcd-1:2379"], Some(options)).await?;
/// let store = EtcdStore::new(client).request_timeout(Duration::from_secs(3));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdStore {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) request_timeout: Duration,
    lease: Option<i64>,
}

impl EtcdStore {
    /// Creates a store over a configured client (TLS, user and password, keepalive).
    pub fn new(client: Client) -> Self {
        Self {
            // The client's default of 4 MB is less than three of the server's largest values. etcd
            // cannot limit the bytes of a listing's page or of a watch's backlog.
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            request_timeout: Duration::from_secs(5),
            lease: None,
        }
    }

    /// Creates a client without TLS or user, and a store over it. The client requires a leader and
    /// sends keepalive pings every 10 s, with 5 s for the answer.
    ///
    /// Returns before a connection exists. The first call shows whether the servers are reachable.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] unless there are 1 to 64 endpoints and each is a URL.
    pub async fn connect<E: AsRef<str>>(endpoints: impl AsRef<[E]>) -> Result<Self, StoreError> {
        let count = endpoints.as_ref().len();
        if count > MOST_ENDPOINTS {
            let reason = format!("endpoints are {count}, but must be at most {MOST_ENDPOINTS}");
            return Err(StoreError::Invalid { reason, source: None });
        }
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            // etcd closes the connection ("too many pings") of a client that pings without an open
            // request or watch.
            .with_keep_alive_while_idle(false);
        match Client::connect(endpoints, Some(options)).await {
            Ok(client) => Ok(Self::new(client)),
            Err(error) => Err(StoreError::Invalid { reason: error.to_string(), source: Some(error.into()) }),
        }
    }

    /// Sets the time limit of each request and of each step that opens a watch. Default: 5 s.
    #[must_use]
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Attaches each key that the store writes to this lease. The caller grants it and keeps it
    /// alive, with a `LeaseClient` of `etcd-client`; when it ends, etcd deletes the keys. A write
    /// under a lease that has ended returns [`StoreError::Invalid`].
    #[must_use]
    pub fn lease(mut self, lease: i64) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Runs `write` if the key's last write has this revision and the fence holds. Revision 0
    /// stands for an absent key.
    async fn write(
        &self,
        key: &str,
        revision: i64,
        write: TxnOp,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let read = |key: &[u8]| TxnOp::get(key, Some(GetOptions::new().with_keys_only()));
        let mut compares = vec![Compare::mod_revision(key, CompareOp::Equal, revision)];
        let mut reads = vec![read(key.as_bytes())];
        let mut leads_since = 0;
        if let Some(fence) = fence {
            let leader = fence.of(ENGINE)?.proof();
            // etcd's revisions are positive `i64`s, so no leader can hold any other token. Revision
            // 0 must not reach the comparison: it would match an absent key.
            leads_since =
                i64::try_from(fence.token()).ok().filter(|token| *token > 0).ok_or(fence.refused())?;
            // A leader writes its key once. Another's write over it ends its leadership.
            compares.push(Compare::mod_revision(leader, CompareOp::Equal, leads_since));
            reads.push(read(leader));
        }
        let txn = Txn::new().when(compares).and_then([write]).or_else(reads);
        let answer = transact(self.request_timeout, &self.kv, txn).await?;
        if answer.succeeded() {
            // The transaction has one write, so its revision is the revision of that write.
            return answer
                .header()
                .map(|header| version(header.revision()))
                .ok_or_else(|| unavailable("no header"));
        }
        let mut answers = answer.op_responses().into_iter();
        // Either comparison may have failed, and the transaction does not report which. The reads
        // answer in the order of the comparisons. A fence that fails outranks a conflict.
        let current = match answers.next() {
            Some(TxnOpResponse::Get(get)) => {
                get.kvs().first().map_or(Current::Absent, |kv| Current::Version(version(kv.mod_revision())))
            }
            _ => Current::Unknown,
        };
        match (fence, answers.next()) {
            (Some(fence), Some(TxnOpResponse::Get(leader)))
                if leader.kvs().first().is_none_or(|leader| leader.mod_revision() != leads_since) =>
            {
                Err(fence.refused())
            }
            _ => Err(StoreError::Conflict { current }),
        }
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("request_timeout", &self.request_timeout).finish_non_exhaustive()
    }
}

impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let answer = get(self.request_timeout, &self.kv, non_empty(key)?, GetOptions::new()).await?;
        Ok(answer.kvs().first().and_then(entry))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let revision = match &expected {
            Expected::Absent => 0,
            Expected::Version(version) => revision(version)?,
        };
        let options = match self.lease {
            Some(lease) => PutOptions::new().with_lease(lease),
            // A put would detach the key from a lease to which another program attached it.
            None if revision > 0 => PutOptions::new().with_ignore_lease(),
            None => PutOptions::new(),
        };
        self.write(non_empty(key)?, revision, TxnOp::put(key, value, Some(options)), fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.write(non_empty(key)?, revision(expected)?, TxnOp::delete(key, None), fence).await.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.watch_range(range(prefix))
    }
}

/// Returns the revision of a version from etcd. A version from elsewhere matches no key, so it is a
/// conflict; its 0 must not reach etcd, where 0 stands for an absent key.
fn revision(version: &Version) -> Result<i64, StoreError> {
    let revision = version.revision().filter(|revision| *revision > 0 && version.token().is_empty());
    revision
        .and_then(|revision| i64::try_from(revision).ok())
        .ok_or(StoreError::Conflict { current: Current::Unknown })
}

/// The capacity of the client's channel of endpoints. More endpoints would block `Client::connect`
/// forever, because the client empties the channel only with the first request.
const MOST_ENDPOINTS: usize = 64;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_etcd_never_assigned_are_conflicts() {
        assert!(matches!(revision(&Version::ordered(1)), Ok(1)));
        let foreign = [
            Version::ordered(0),
            Version::ordered(u64::MAX),
            Version::ordered(1).with_token("x"),
            Version::opaque("x"),
        ];
        for version in foreign {
            assert!(matches!(revision(&version), Err(StoreError::Conflict { current: Current::Unknown })));
        }
    }
}
