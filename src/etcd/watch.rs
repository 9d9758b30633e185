//! Watches of ranges of keys in etcd.

use std::{collections::VecDeque, time::Duration};

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use futures_util::Stream;
use tokio::time::timeout;

use super::{
    client::{bounded, entry, get, key, store_error, version},
    store::EtcdStore,
};
use crate::store::{
    Event, StoreError,
    resume::{self, Resumable},
    unavailable,
};

impl EtcdStore {
    /// Watches a range: its first key, and the first key after it.
    pub(super) fn watch_range(
        &self,
        range: (Vec<u8>, Vec<u8>),
    ) -> impl Stream<Item = Result<Event, StoreError>> + Send + use<> {
        let name = format!("etcd watch of {:?}", String::from_utf8_lossy(&range.0));
        resume::watch(
            name,
            Watch { store: self.clone(), range, notifies: None, revision: None, connection: None },
        )
    }
}

struct Watch {
    store: EtcdStore,
    range: (Vec<u8>, Vec<u8>),
    /// Whether the server answers requests for progress notifications, once that is known.
    notifies: Option<bool>,
    /// The last revision whose events were all reported; `None` when a listing is due.
    revision: Option<i64>,
    connection: Option<Connection>,
}

struct Connection {
    /// Both directions: etcd ends a watch when its request stream ends.
    stream: WatchStream,
    /// A sign of life was requested, and none has arrived since.
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
        match self.message().await? {
            Some(message) => self.handle_message(&message, ready),
            None => {
                self.confirm(ready);
                Ok(())
            }
        }
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
        let start = || {
            let (mut client, from, options) = (self.store.watch.clone(), from.clone(), options.clone());
            async move {
                let mut stream = client.watch(from, Some(options)).await?;
                Ok((stream.message().await?, stream))
            }
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
        let (mut from, end) = self.range.clone();
        let (mut revision, mut listing) = (0, VecDeque::from([Event::Init]));
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = get(self.store.request_timeout, &self.store.kv, from, options).await?;
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

    /// Waits for the next message. If the server is silent for too long, requests one. `None` is
    /// another sign of life.
    async fn message(&mut self) -> Result<Option<WatchResponse>, StoreError> {
        let limit = self.store.request_timeout;
        loop {
            let Some(connection) = &mut self.connection else { return Err(unavailable("not connected")) };
            let silence = match connection {
                Connection { asked: true, .. } => limit,
                Connection { resumes: true, .. } => CONFIRM,
                _ => SILENCE,
            };
            match timeout(silence, connection.stream.message()).await {
                Ok(Ok(Some(message))) => {
                    connection.asked = false;
                    if message.events().is_empty() && !message.canceled() {
                        self.notifies = Some(true);
                    }
                    return Ok(Some(message));
                }
                Ok(Ok(None)) => return Err(unavailable("the server ended the watch")),
                Ok(Err(error)) => return Err(store_error(error)),
                Err(_) => {}
            }
            let was_asked = std::mem::replace(&mut connection.asked, true);
            match self.notifies {
                Some(true) if was_asked => {
                    return Err(unavailable("the server does not answer on the watch"));
                }
                None | Some(true) if !was_asked => {
                    resume::bounded(limit, connection.stream.request_progress(), store_error).await?;
                }
                // `etcd grpc-proxy` answers no such request, so that reads have to do.
                _ if !self.misses_a_write().await? => {
                    self.notifies = Some(false);
                    if let Some(connection) = &mut self.connection {
                        connection.asked = false;
                    }
                    return Ok(None);
                }
                // A write that is on its way arrives before the next look.
                _ if was_asked => return Err(unavailable("the watch does not report the writes")),
                _ => {}
            }
        }
    }

    /// Returns whether there is a write that the watch has not reported yet. A deletion leaves
    /// nothing to read.
    async fn misses_a_write(&self) -> Result<bool, StoreError> {
        let (from, end) = self.range.clone();
        let newer = GetOptions::new()
            .with_range(end)
            .with_min_mod_revision(self.revision.unwrap_or_default() + 1)
            .with_keys_only()
            .with_limit(1);
        let found = get(self.store.request_timeout, &self.store.kv, from, newer).await?;
        Ok(!found.kvs().is_empty())
    }

    /// Reports that a resumed watch works.
    fn confirm(&mut self, ready: &mut VecDeque<Event>) {
        if self.connection.as_mut().is_some_and(|connection| std::mem::take(&mut connection.resumes)) {
            ready.push_back(Event::Resumed);
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
        self.confirm(ready);
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

/// The number of entries in one page of a listing.
const PAGE: i64 = 256;
/// The silence after which a resumed watch requests its first progress notification. etcd ignores
/// the request until the watch has caught up, which takes less time than this.
const CONFIRM: Duration = Duration::from_millis(500);
/// The silence after which any other watch requests a progress notification.
const SILENCE: Duration = Duration::from_secs(10);
