//! The task that keeps the roster: reads it for the engine, and makes the writes that the engine asks
//! for.
//!
//! The task tries each write once. The engine asks again as long as the roster does not show it.

use std::{collections::BTreeMap, hash::Hash, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::sleep};

use super::entry;
use crate::{
    clock,
    driver::Shared,
    engine::{Member, RosterRequest},
    store::{Entry, Event, Expected, Store, StoreError, Version},
};

pub(super) struct Keeper<K: Hash + Eq + Clone + Send + Sync + 'static, S> {
    shared: Arc<Shared<K>>,
    store: Arc<S>,
    /// The beginning of the entries' keys, with its slash.
    prefix: Arc<str>,
    own: Member,
    entries: Entries,
    /// The listing that is being received.
    listing: Option<Entries>,
    /// The entries are those of a complete listing, and of the changes since.
    is_listed: bool,
    /// The members that the engine knows; `None` if it knows of none, or that they cannot be read.
    told: Option<Vec<Member>>,
    /// The watch shows changes as they happen.
    is_live: bool,
    /// We may have an entry: one was seen, or we asked for one.
    is_entered: bool,
    was_denied: bool,
    writes: FuturesUnordered<BoxFuture<'static, (RosterRequest, Result<(), StoreError>)>>,
}

/// The keys under the prefix, by name; foreign ones included.
type Entries = BTreeMap<Arc<str>, Known>;

struct Known {
    version: Version,
    /// `None` if this is no entry of a roster.
    member: Option<Member>,
}

/// How long to wait before a roster that could not be read is tried again: rights are given without an
/// event.
const UNREADABLE: Duration = Duration::from_secs(60);

/// The pauses before each try of the last deletion. After the last one, the entry is left to others.
const LEAVING: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

impl<K: Hash + Eq + Clone + Send + Sync + 'static, S: Store> Keeper<K, S> {
    pub(super) fn new(shared: Arc<Shared<K>>, store: Arc<S>, prefix: String, own: Member) -> Self {
        Self {
            shared,
            store,
            prefix: prefix.into(),
            own,
            entries: Entries::new(),
            listing: None,
            is_listed: false,
            told: None,
            is_live: false,
            is_entered: false,
            was_denied: false,
            writes: FuturesUnordered::new(),
        }
    }

    /// Keeps the roster until the lease is closed, then leaves it.
    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<RosterRequest>) {
        let mut status = self.shared.subscribe();
        tokio::select! {
            biased;
            _ = status.wait_for(|status| status.closed.is_some()) => {}
            () = self.keep(&mut requests) => {}
        }
        self.leave().await;
    }

    async fn keep(&mut self, requests: &mut mpsc::UnboundedReceiver<RosterRequest>) {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let mut changes = pin!(store.watch(&prefix).fuse());
        let mut ended = false;
        let mut again = pin!(sleep(UNREADABLE));
        loop {
            // In a fixed order, so that runs on paused time repeat.
            tokio::select! {
                biased;
                Some(request) = requests.recv() => self.carry_out(request),
                Some((request, result)) = self.writes.next(), if !self.writes.is_empty() => {
                    self.handle_answer(&request, result);
                }
                change = changes.next(), if !ended => {
                    let mut next = Some(change);
                    // Many replicas that start together are one change.
                    while let Some(Some(change)) = next {
                        self.take_in(change);
                        next = changes.next().now_or_never();
                    }
                    if next.is_some() {
                        ended = true;
                        again.set(sleep(UNREADABLE));
                        self.is_live = false;
                        self.report_unreadable();
                    }
                    self.report_members();
                }
                () = &mut again, if ended => {
                    ended = false;
                    changes.set(store.watch(&prefix).fuse());
                }
            }
        }
    }

    fn take_in(&mut self, change: Result<Event, StoreError>) {
        let event = match change {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(prefix = %self.prefix, %error, "the watch of the roster was interrupted");
                self.is_live = false;
                // A roster that was read stays in force: it is at most old.
                if !self.is_listed {
                    self.report_unreadable();
                }
                return;
            }
        };
        match event {
            Event::Init => self.listing = Some(Entries::new()),
            Event::InitEntry(entry) => {
                if let Some((name, known)) = self.read(&entry)
                    && let Some(listing) = &mut self.listing
                {
                    listing.insert(name, known);
                }
            }
            Event::InitDone => {
                self.entries = self.listing.take().unwrap_or_default();
                (self.is_listed, self.is_live) = (true, true);
            }
            Event::Resumed => self.is_live = true,
            Event::Put(entry) => {
                if let Some((name, known)) = self.read(&entry) {
                    self.entries.insert(name, known);
                }
            }
            Event::Delete { key, .. } => {
                if let Some(name) = key.strip_prefix(&*self.prefix) {
                    self.entries.remove(name);
                }
            }
        }
    }

    /// Reads an entry. Logs one that is none, unless it was none before.
    fn read(&mut self, entry: &Entry) -> Option<(Arc<str>, Known)> {
        let name = entry.key.strip_prefix(&*self.prefix)?;
        let member = entry::member(name, &entry.value);
        if member.is_none() && self.entries.get(name).is_none_or(|known| known.member.is_some()) {
            tracing::warn!(key = ?entry.key, "not an entry of the roster, so it is skipped");
        }
        Some((name.into(), Known { version: entry.version.clone(), member }))
    }

    fn report_members(&mut self) {
        if !self.is_listed {
            return;
        }
        self.is_entered |= self.entries.contains_key(&self.own.name);
        let members: Vec<Member> = self.entries.values().filter_map(|known| known.member.clone()).collect();
        if self.told.as_ref() != Some(&members) {
            self.shared.change_roster(|engine, now| engine.handle_members(now, members.clone()));
            self.told = Some(members);
        }
    }

    fn report_unreadable(&mut self) {
        (self.is_listed, self.told) = (false, None);
        self.shared.change_roster(|engine, now| engine.handle_roster_unreadable(now));
    }

    fn carry_out(&mut self, request: RosterRequest) {
        let store = self.store.clone();
        match &request {
            RosterRequest::Join(own) => {
                let expected = match self.entries.get(&self.own.name) {
                    Some(known) if known.member.as_ref() == Some(own) => return,
                    Some(known) => Expected::Version(known.version.clone()),
                    None => Expected::Absent,
                };
                self.is_entered = true;
                let (key, value) = (self.key(&self.own.name), entry::text(own).into());
                let (shared, sent) = (self.shared.clone(), clock::now());
                self.writes.push(Box::pin(async move {
                    let joined = store.put(&key, value, expected, None).await.map(drop);
                    if joined.is_ok() {
                        // It is the first sign of how far away the store is, and others wait for as long.
                        let round_trip = clock::now() - sent;
                        let _ = shared.handle(|engine, now| engine.handle_echo_hint(now, round_trip / 2));
                    }
                    (request, joined)
                }));
            }
            // Without news everybody seems to be silent.
            RosterRequest::Suspect(_) | RosterRequest::StrikeOff(_) if !self.is_live => {}
            RosterRequest::Suspect(name) => {
                let Some((key, version, member)) = self.entry(name) else { return };
                let value = entry::text(&Member { is_suspected: true, ..member }).into();
                self.writes.push(Box::pin(async move {
                    let marked = store.put(&key, value, Expected::Version(version), None).await;
                    (request, marked.map(drop))
                }));
            }
            RosterRequest::StrikeOff(name) => {
                let Some((key, version, _)) = self.entry(name) else { return };
                self.writes.push(Box::pin(async move {
                    let deleted = store.delete(&key, &version, None).await;
                    (request, deleted)
                }));
            }
        }
    }

    /// Returns the key, the version and the member of an entry.
    fn entry(&self, name: &str) -> Option<(String, Version, Member)> {
        let known = self.entries.get(name)?;
        Some((self.key(name), known.version.clone(), known.member.clone()?))
    }

    fn handle_answer(&mut self, request: &RosterRequest, result: Result<(), StoreError>) {
        let prefix = &self.prefix;
        match result {
            Ok(()) => tracing::info!(%prefix, name = %self.own.name, ?request, "the roster was written"),
            // Somebody was faster: the watch shows how things are now.
            Err(StoreError::Conflict { .. }) => {}
            Err(error @ StoreError::Unavailable { .. }) => {
                tracing::debug!(%prefix, ?request, %error, "the roster was not written; it is tried again");
            }
            Err(error) => {
                if !std::mem::replace(&mut self.was_denied, true) {
                    tracing::warn!(%prefix, ?request, %error, "the roster cannot be written; going on without");
                }
                if matches!(request, RosterRequest::Join(_)) {
                    let _ = self.shared.handle(|engine, now| engine.handle_join_denied(now));
                }
            }
        }
    }

    /// Deletes our entry, unless it was never there.
    async fn leave(mut self) {
        // A join in flight would come after the deletion.
        while self.writes.next().await.is_some() {}
        if !self.is_entered {
            return;
        }
        let key = self.key(&self.own.name);
        for pause in LEAVING {
            sleep(pause).await;
            let left = match self.store.get(&key).await {
                Ok(Some(entry)) if self.is_ours(&entry) => {
                    self.store.delete(&key, &entry.version, None).await
                }
                Ok(_) => return,
                Err(error) => Err(error),
            };
            match left {
                Err(error @ StoreError::Unavailable { .. }) => {
                    tracing::debug!(prefix = %self.prefix, %error, "the roster was not left; it is tried again");
                }
                Err(error) => {
                    return tracing::debug!(prefix = %self.prefix, %error, "the entry is no longer ours to delete");
                }
                Ok(()) => {
                    return tracing::info!(prefix = %self.prefix, name = %self.own.name, "left the roster");
                }
            }
        }
        tracing::warn!(prefix = %self.prefix, name = %self.own.name, "the roster could not be left; others strike us off");
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        let member = entry::member(&self.own.name, &entry.value);
        member.is_some_and(|member| member.weight == self.own.weight)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}
