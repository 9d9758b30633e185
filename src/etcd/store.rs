//! etcd, as a store.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, KvClient, Txn, TxnOp,
    TxnOpResponse, WatchClient, WatchOptions, WatchResponse, WatchStream,
};
use futures_util::Stream;
use tokio::time::timeout;

use super::client::{ENGINE, bounded, range, store_error};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty,
    resume::{self, Source},
    unavailable,
};

/// A store in etcd, 3.4 or newer.
///
/// A version is the key's `mod_revision`, so versions are ordered over all keys. (Restoring a cluster from a backup sets
/// revisions back, unless `etcdutl snapshot restore --bump-revision` moves them on.) Reads are linearizable. A write is
/// one transaction: it compares the revision, and the create revision of the leader's key if there is a [`Fence`], and puts or
/// deletes, or else reads the current ones. With etcd's access control on, the user therefore needs both read and write
/// permission for the keys, and read permission for the leader's.
///
/// A call that gets no answer within the request timeout (5 s unless [set](Self::with_request_timeout)) returns
/// [`StoreError::Unavailable`]. Nothing is sent twice, with one exception: a client made with `with_auto_token_refresh`
/// logs in again and repeats a request that the server refused for its expired token, which is safe because it did
/// nothing. Values over the server's limit (`--max-request-bytes`, 1.5 MiB for the whole request by default) are
/// [`StoreError::TooLarge`].
///
/// A watch that was interrupted goes on where it was, unless etcd has compacted the revisions it missed (or is no longer
/// the same etcd): then it starts over with a listing. It asks a silent server for a sign of life, so that it notices a
/// half-open connection; but only HTTP/2 keepalive replaces such a connection before TCP gives up on it. Configure it
/// in the client that you hand in, as [`connect`](Self::connect) does.
///
/// Clones share the client and its connections.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use etcd_client::{Client, ConnectOptions};
/// use writerlease::etcd::EtcdStore;
///
/// // TLS, where the features of `etcd-client` provide it, is one more option here.
/// let options = ConnectOptions::new()
///     .with_user("controller", "secret")
///     .with_auto_token_refresh(true)
///     .with_require_leader(true)
///     .with_connect_timeout(Duration::from_secs(3))
///     .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
///     .with_keep_alive_while_idle(false);
/// let client = Client::connect(["https://etcd-0:2379", "https://etcd-1:2379"], Some(options)).await?;
/// let store = EtcdStore::new(client).with_request_timeout(Duration::from_secs(3));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdStore {
    kv: KvClient,
    watch: WatchClient,
    request_timeout: Duration,
}

impl EtcdStore {
    /// Uses a client that is configured already: TLS, user and password, keepalive.
    pub fn new(client: Client) -> Self {
        Self {
            // The client's default of 4 MB is less than a few of the server's largest values, and neither the pages of a
            // listing nor what a watch has to catch up with can be limited in bytes.
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// Connects without TLS and without a user, with keepalive (10 s, given up after 5 s more) and a leader required.
    ///
    /// Returns before there is a connection; whether the servers can be reached shows with the first call.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if there is no endpoint, or more than 64, or one is no URL.
    pub async fn connect<E: AsRef<str>>(endpoints: impl AsRef<[E]>) -> Result<Self, StoreError> {
        let count = endpoints.as_ref().len();
        if count > MOST_ENDPOINTS {
            let reason = format!("{count} endpoints, of at most {MOST_ENDPOINTS}");
            return Err(StoreError::Invalid { reason, source: None });
        }
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            // etcd hangs up ("too many pings") on a client that pings without a request or a watch open.
            .with_keep_alive_while_idle(false);
        match Client::connect(endpoints, Some(options)).await {
            Ok(client) => Ok(Self::new(client)),
            Err(error) => Err(StoreError::Invalid { reason: error.to_string(), source: Some(error.into()) }),
        }
    }

    /// How long each request may take; 5 s unless set. It also bounds every step of setting up a watch.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Runs `write` if the key's last write has this revision, 0 for an absent key, and the fence holds.
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
            // A token that etcd cannot have given out is that of nobody.
            leads_since =
                i64::try_from(fence.token()).ok().filter(|token| *token > 0).ok_or(fence.refused())?;
            compares.push(Compare::create_revision(leader, CompareOp::Equal, leads_since));
            reads.push(read(leader));
        }
        let txn = Txn::new().when(compares).and_then([write]).or_else(reads);
        let answer = bounded(self.request_timeout, self.kv.clone().txn(txn)).await?;
        if answer.succeeded() {
            // The revision of the transaction is the one of its only write.
            return answer
                .header()
                .map(|header| version(header.revision()))
                .ok_or_else(|| unavailable("no header"));
        }
        let mut answers = answer.op_responses().into_iter();
        let current = match answers.next() {
            Some(TxnOpResponse::Get(get)) => {
                get.kvs().first().map_or(Current::Absent, |kv| Current::Version(version(kv.mod_revision())))
            }
            _ => Current::Unknown,
        };
        match (fence, answers.next()) {
            (Some(fence), Some(TxnOpResponse::Get(leader)))
                if leader.kvs().first().is_none_or(|leader| leader.create_revision() != leads_since) =>
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
        self.write(non_empty(key)?, revision, TxnOp::put(key, value, None), fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.write(non_empty(key)?, revision(expected)?, TxnOp::delete(key, None), fence).await.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let watch =
            Watch { store: self.clone(), prefix: prefix.to_owned(), revision: None, connection: None };
        resume::watch(format!("etcd watch of {prefix:?}"), watch)
    }
}

struct Watch {
    store: EtcdStore,
    prefix: String,
    /// Everything up to this revision was told; `None` when a listing is due.
    revision: Option<i64>,
    connection: Option<Connection>,
}

struct Connection {
    /// Both halves: etcd ends a watch whose requests have ended.
    stream: WatchStream,
    /// A sign of life was asked for, and nothing came since.
    asked: bool,
    /// It resumes an older one, and nothing came yet: etcd confirms also a watch from a compacted revision, and cancels it
    /// afterwards.
    resumes: bool,
}

impl Source for Watch {
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
    /// Starts the watch after the last revision that was told, or after a fresh listing.
    async fn open(&mut self, ready: &mut VecDeque<Event>) -> Result<(), StoreError> {
        let resumes = self.revision.is_some();
        let (revision, listing) = match self.revision {
            Some(revision) => (revision, VecDeque::new()),
            None => self.list().await?,
        };
        // No fragments: they could part the events of one revision, and the client doesn't tell which is the last.
        let options = WatchOptions::new().with_range(range(&self.prefix).1).with_start_revision(revision + 1);
        let start = async {
            let mut stream = self.store.watch.clone().watch(range(&self.prefix).0, Some(options)).await?;
            Ok((stream.message().await?, stream))
        };
        let (created, stream) = bounded(self.store.request_timeout, start).await?;
        let created = created.ok_or_else(|| unavailable("the watch ended at once"))?;
        if created.canceled() {
            // A resumed watch may be refused for a token that has expired, and only the requests of a listing renew it.
            self.revision = None;
            return Err(match created.cancel_reason() {
                denied if denied.contains("denied") && !resumes => {
                    StoreError::Denied { reason: denied.to_owned(), source: None }
                }
                other => unavailable(format!("the watch was refused: {other}")),
            });
        }
        if created.header().is_some_and(|header| resumes && header.revision() < revision) {
            // A member that lags, or an etcd that was set up anew and would let us wait for a revision of its far future.
            self.revision = None;
            return Err(unavailable("the server's revision is behind what the watch has seen"));
        }
        self.revision = Some(revision);
        ready.extend(listing);
        self.connection = Some(Connection { stream, asked: false, resumes });
        Ok(())
    }

    /// Lists the prefix in pages of one revision, so that the pages are one state.
    async fn list(&self) -> Result<(i64, VecDeque<Event>), StoreError> {
        let mut kv = self.store.kv.clone();
        let (mut from, end) = range(&self.prefix);
        let (mut revision, mut listing) = (0, VecDeque::from([Event::Init]));
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = bounded(self.store.request_timeout, kv.get(from, Some(options))).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            listing.extend(page.kvs().iter().filter_map(entry).map(Event::InitEntry));
            match page.kvs().last() {
                // The least key after the last one.
                Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                _ => break,
            }
        }
        listing.push_back(Event::InitDone);
        Ok((revision, listing))
    }

    /// Waits for the next message, and asks for one when the server is silent for long.
    async fn message(&mut self) -> Result<WatchResponse, StoreError> {
        let Some(connection) = &mut self.connection else { return Err(unavailable("not connected")) };
        loop {
            let patience = match connection {
                Connection { asked: true, .. } => self.store.request_timeout,
                Connection { resumes: true, .. } => CONFIRM,
                _ => SILENCE,
            };
            match timeout(patience, connection.stream.message()).await {
                Ok(Ok(Some(message))) => {
                    connection.asked = false;
                    return Ok(message);
                }
                Ok(Ok(None)) => return Err(unavailable("the server ended the watch")),
                Ok(Err(error)) => return Err(store_error(error)),
                Err(_) if connection.asked => return Err(unavailable("the watch gives no sign of life")),
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
                0 => unavailable(format!("the watch was cancelled: {}", message.cancel_reason())),
                compacted => unavailable(format!("revisions before {compacted} are compacted")),
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
            // Not from the header: etcd before 3.4.25 and 3.5.8 could announce a revision ahead of its events.
            self.revision = Some(kv.mod_revision());
        }
        Ok(())
    }
}

fn version(revision: i64) -> Version {
    Version::ordered(revision.unsigned_abs())
}

/// The revision of a version that etcd gave out. Any other belongs to no key, and 0 would even mean an absent one.
fn revision(version: &Version) -> Result<i64, StoreError> {
    let revision = version.revision().filter(|order| *order > 0 && version.token().is_empty());
    revision
        .and_then(|order| i64::try_from(order).ok())
        .ok_or(StoreError::Conflict { current: Current::Unknown })
}

/// `None` for a key that is not text: nobody can have written it through a [`Store`].
fn key(kv: &KeyValue) -> Option<Arc<str>> {
    kv.key_str().ok().map(Arc::from)
}

fn entry(kv: &KeyValue) -> Option<Entry> {
    let value = Bytes::copy_from_slice(kv.value());
    Some(Entry { key: key(kv)?, value, version: version(kv.mod_revision()) })
}

/// With more the client would wait for ever: nobody takes them out of its channel before the first request.
const MOST_ENDPOINTS: usize = 64;
/// Entries in one page of a listing.
const PAGE: i64 = 256;
/// A watch that was resumed asks after so long whether it really goes on. By then etcd has caught up with its revision;
/// before, it answers no such question.
const CONFIRM: Duration = Duration::from_millis(500);
/// A watch that hears nothing for so long asks whether anybody is there.
const SILENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_text_that_does_not_have_it() {
        for (prefix, end) in
            [("a/", &b"a0"[..]), ("a", b"b"), ("\u{7f}", b"\x80"), ("\u{10ffff}", b"\xf4\x8f\xbf\xc0")]
        {
            assert_eq!(range(prefix), (prefix.as_bytes().to_vec(), end.to_vec()));
        }
        // To etcd, from and up to the zero byte means all keys.
        assert_eq!(range(""), (vec![0], vec![0]));
    }

    #[test]
    fn only_versions_that_etcd_can_have_given_out_are_compared() {
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
