//! The store in etcd.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, KvClient, PutOptions, Txn,
    TxnOp, TxnOpResponse, WatchClient, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::Stream;
use tokio::time::timeout;

use super::client::{ENGINE, bounded, range, store_error};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty,
    resume::{self, Resumable},
    unavailable,
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
/// returns [`StoreError::Unavailable`]. Each request is sent once, with one exception: a client
/// made with `with_auto_token_refresh` logs in again and repeats a request that the server refused
/// for an expired token. This is safe because the refused request had no effect.
///
/// # Watches
///
/// An interrupted watch continues from its last revision. It starts again with a listing if etcd
/// has compacted the missed revisions, or if the etcd cluster is a different one.
///
/// After 10 s of silence the watch requests a progress notification, so that it detects a half-open
/// connection. Only HTTP/2 keepalive replaces such a connection before TCP gives up on it.
/// Configure keepalive in the client that you pass in, as [`connect`](Self::connect) does, and
/// `with_require_leader`: without it, a member that is cut off from the cluster keeps the watch open
/// and stays silent.
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
    kv: KvClient,
    watch: WatchClient,
    request_timeout: Duration,
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

    /// Watches a range: its first key, and the first key after it.
    pub(super) fn watch_range(
        &self,
        range: (Vec<u8>, Vec<u8>),
    ) -> impl Stream<Item = Result<Event, StoreError>> + Send + use<> {
        let name = format!("etcd watch of {:?}", String::from_utf8_lossy(&range.0));
        resume::watch(name, Watch { store: self.clone(), range, revision: None, connection: None })
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
        let answer = bounded(self.request_timeout, self.kv.clone().txn(txn)).await?;
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
        let answer = bounded(self.request_timeout, self.kv.clone().get(non_empty(key)?, None)).await?;
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

struct Watch {
    store: EtcdStore,
    range: (Vec<u8>, Vec<u8>),
    /// The last revision whose events were all reported; `None` when a listing is due.
    revision: Option<i64>,
    connection: Option<Connection>,
}

struct Connection {
    /// Both directions: etcd ends a watch when its request stream ends.
    stream: WatchStream,
    /// A progress notification was requested, and no message has arrived since.
    asked: bool,
    /// The watch resumes an earlier one, and no message has arrived yet. Until then it is
    /// unconfirmed: etcd accepts a watch from a compacted revision first and cancels it afterwards.
    resumes: bool,
}

impl Resumable for Watch {
    async fn advance(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        if self.connection.is_none() {
            return self.open(ready).await;
        }
        let message = self.message().await?;
        self.handle_message(&message, ready)
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }
}

impl Watch {
    /// Starts the watch after the last reported revision, or after a fresh listing.
    async fn open(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let resumes = self.revision.is_some();
        let (revision, listing) = match self.revision {
            Some(revision) => (revision, VecDeque::new()),
            None => self.list().await?,
        };
        // Without fragments: a fragment could split the events of one revision, and the client does
        // not expose which fragment is the last. Resuming after the first one would lose events.
        let (from, end) = self.range.clone();
        let options = WatchOptions::new().with_range(end).with_start_revision(revision + 1);
        let start = async {
            let mut stream = self.store.watch.clone().watch(from, Some(options)).await?;
            Ok((stream.message().await?, stream))
        };
        let (created, stream) = bounded(self.store.request_timeout, start).await?;
        let created =
            created.ok_or_else(|| unavailable("the server ended the watch before confirming it"))?;
        if created.canceled() {
            // An expired token may be the cause. A watch cannot renew the token, but the requests
            // of a listing do, so list next time. It is a denial if those are denied, too.
            self.revision = None;
            return Err(match created.cancel_reason() {
                denied if denied.contains("denied") && !resumes => {
                    StoreError::Denied { reason: denied.to_owned(), source: None }
                }
                other => unavailable(format!("the server refused the watch: {other}")),
            });
        }
        if created.header().is_some_and(|header| resumes && header.revision() < revision) {
            // The member lags, or the cluster is a new one. A new cluster would accept the watch
            // and stay silent until it reaches a revision of the far future.
            self.revision = None;
            return Err(unavailable("the server's revision is older than the watch's last one"));
        }
        self.revision = Some(revision);
        ready.extend(listing);
        self.connection = Some(Connection { stream, asked: false, resumes });
        Ok(())
    }

    /// Lists the range in pages. All pages read the revision of the first, so they form one state.
    async fn list(&self) -> Result<(i64, VecDeque<Event>), StoreError> {
        let mut kv = self.store.kv.clone();
        let (mut from, end) = self.range.clone();
        let (mut revision, mut listing) = (0, VecDeque::from([Event::Init]));
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = bounded(self.store.request_timeout, kv.get(from, Some(options))).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            listing.extend(page.kvs().iter().filter_map(entry).map(Event::InitEntry));
            match page.kvs().last() {
                // The smallest key after the last one.
                Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                _ => break,
            }
        }
        listing.push_back(Event::InitDone);
        Ok((revision, listing))
    }

    /// Waits for the next message. If the server is silent for too long, requests one.
    async fn message(&mut self) -> Result<WatchResponse, StoreError> {
        let Some(connection) = &mut self.connection else { return Err(unavailable("not connected")) };
        loop {
            let silence = match connection {
                Connection { asked: true, .. } => self.store.request_timeout,
                Connection { resumes: true, .. } => CONFIRM,
                _ => SILENCE,
            };
            match timeout(silence, connection.stream.message()).await {
                Ok(Ok(Some(message))) => {
                    connection.asked = false;
                    return Ok(message);
                }
                Ok(Ok(None)) => return Err(unavailable("the server ended the watch")),
                Ok(Err(error)) => return Err(store_error(error)),
                Err(_) if connection.asked => {
                    return Err(unavailable("the server does not answer on the watch"));
                }
                Err(_) => {
                    bounded(self.store.request_timeout, connection.stream.request_progress()).await?;
                    connection.asked = true;
                }
            }
        }
    }

    fn handle_message(
        &mut self,
        message: &WatchResponse,
        ready: &mut VecDeque<Event>,
    ) -> Result<(), StoreError> {
        if message.canceled() {
            self.revision = None;
            return Err(match message.compact_revision() {
                0 => unavailable(format!("the server cancelled the watch: {}", message.cancel_reason())),
                compacted => unavailable(format!("etcd has compacted the revisions before {compacted}")),
            });
        }
        if self.connection.as_mut().is_some_and(|connection| std::mem::take(&mut connection.resumes)) {
            ready.push_back(Event::Resumed);
        }
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            ready.extend(match event.event_type() {
                EventType::Put => entry(kv).map(Event::Put),
                EventType::Delete => {
                    key(kv).map(|key| Event::Delete { key, version: version(kv.mod_revision()) })
                }
            });
            // From the event and not from the header: before 3.4.25 and 3.5.8, etcd could announce
            // a revision in a header before it sent the events of that revision.
            self.revision = Some(kv.mod_revision());
        }
        Ok(())
    }
}

fn version(revision: i64) -> Version {
    Version::ordered(revision.unsigned_abs())
}

/// Returns the revision of a version from etcd. A version from elsewhere matches no key, so it is a
/// conflict; its 0 must not reach etcd, where 0 stands for an absent key.
fn revision(version: &Version) -> Result<i64, StoreError> {
    let revision = version.revision().filter(|revision| *revision > 0 && version.token().is_empty());
    revision
        .and_then(|revision| i64::try_from(revision).ok())
        .ok_or(StoreError::Conflict { current: Current::Unknown })
}

/// Returns the key; `None` unless it is UTF-8, as all keys that a [`Store`] writes are.
fn key(kv: &KeyValue) -> Option<Arc<str>> {
    kv.key_str().ok().map(Arc::from)
}

fn entry(kv: &KeyValue) -> Option<Entry> {
    let value = Bytes::copy_from_slice(kv.value());
    Some(Entry { key: key(kv)?, value, version: version(kv.mod_revision()) })
}

/// The capacity of the client's channel of endpoints. More endpoints would block `Client::connect`
/// forever, because the client empties the channel only with the first request.
const MOST_ENDPOINTS: usize = 64;
/// The number of entries in one page of a listing.
const PAGE: i64 = 256;
/// The silence after which a resumed watch requests its first progress notification. etcd ignores
/// the request until the watch has caught up, which takes less time than this.
const CONFIRM: Duration = Duration::from_millis(500);
/// The silence after which any other watch requests a progress notification.
const SILENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_exactly_the_keys_of_its_prefix() {
        for (prefix, end) in
            [("a/", &b"a0"[..]), ("a", b"b"), ("\u{7f}", b"\x80"), ("\u{10ffff}", b"\xf4\x8f\xbf\xc0")]
        {
            assert_eq!(range(prefix), (prefix.as_bytes().to_vec(), end.to_vec()));
        }
        // etcd's notation for all keys: the zero byte at both ends.
        assert_eq!(range(""), (vec![0], vec![0]));
    }

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
