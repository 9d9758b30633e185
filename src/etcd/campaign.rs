//! The candidates on etcd, of queues and of single keys.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use tokio::time::sleep;

use super::{
    candidate::{key, prefix},
    session::{Etcd, Holder, Lost, Session},
};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Leadership,
        candidate::{Candidate, Resign},
        publisher::LeadershipPublisher,
        retries::Retries,
    },
    store::{Event, Store, unavailable},
};

pub(super) struct Campaign {
    pub etcd: Etcd,
    pub publisher: LeadershipPublisher,
    /// The name of the election, or its key.
    pub election: String,
    pub contest: Contest,
    /// The candidate's value in its key.
    pub value: Vec<u8>,
    pub ttl: Duration,
    pub session: Option<Session>,
    /// The candidate keeps out of the election.
    pub evicted: bool,
    /// The candidate keeps out of the election until then.
    pub rest: Option<Moment>,
}

/// The rule by which a candidate wins.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Contest {
    /// Its key is the oldest of all under the election's prefix.
    Queue,
    /// It created the key of the election's name.
    Key,
}

pub(super) enum Command {
    Resign,
    /// Begins an eviction, or ends it.
    Evict(bool),
}

impl From<Resign> for Command {
    fn from(Resign: Resign) -> Self {
        Self::Resign
    }
}

impl Candidate for Campaign {
    type Command = Command;

    async fn serve(&mut self) -> Result<(), ElectionError> {
        if let Lost::Lease = self.take_part().await {
            self.session = None;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Resign => {
                // The fastest wins a key, and this candidate would be the first to see it deleted.
                if self.contest == Contest::Key {
                    self.rest = Some(Moment::now() + 2 * self.ttl);
                }
                true
            }
            Command::Evict(evicted) => {
                self.evicted = evicted;
                evicted
            }
        }
    }

    /// Gives up the key. If etcd does not answer, the session is given up with it.
    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.session = session.withdraw().await?;
        Ok(())
    }

    async fn end(mut self) -> Result<(), ElectionError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        Ok(session.end().await?)
    }
}

impl Campaign {
    /// Takes part in the election until the key or the session is lost.
    async fn take_part(&mut self) -> Lost {
        let connection = format!("etcd election {}", self.election);
        let mut retries = Retries::new(connection, self.publisher.clone());
        if self.session.is_none() {
            let begin =
                || Session::begin(self.etcd.clone(), self.publisher.clone(), &self.election, self.ttl);
            self.session = Some(retries.insist(begin).await);
        }
        let Some(session) = &self.session else { return Lost::Lease };
        tokio::select! {
            lost = session.keep() => lost,
            lost = self.campaign(session, &mut retries) => lost,
        }
    }

    /// Looks for the leader after each change.
    async fn campaign(&self, session: &Session, retries: &mut Retries) -> Lost {
        let watched = match self.contest {
            Contest::Queue => prefix(&self.election),
            Contest::Key => self.election.clone(),
        };
        let queues = self.contest == Contest::Queue && !self.evicted;
        let key = key(&self.election, session.lease);
        if queues {
            retries.insist(|| session.create(&key, &self.value)).await;
        }
        let mut changes = pin!(self.etcd.store.watch(&watched));
        let mut rested = pin!(self.rest.unwrap_or_else(Moment::now).passed());
        let mut rests = self.rest.is_some();
        let mut refused = unavailable("the watch ended");
        let mut listed = false;
        let mut warned_of = 0;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = &mut rested, if rests => {
                    rests = false;
                    Some(Ok(Event::Resumed))
                }
                // The watch is silent about candidates whose keys are not text.
                () = sleep(self.ttl), if self.contest == Contest::Queue => Some(Ok(Event::Resumed)),
            };
            match change {
                Some(Ok(Event::Delete { key, version })) if session.is_lost(&key, version.revision()) => {
                    return Lost::Key;
                }
                Some(Ok(Event::Put(entry) | Event::InitEntry(entry)))
                    if session.is_lost(&entry.key, entry.version.revision()) =>
                {
                    return Lost::Key;
                }
                Some(Ok(Event::Init)) => {
                    if std::mem::replace(&mut listed, true) {
                        self.publisher.report(ElectionError::WatchExpired);
                    }
                    continue;
                }
                Some(Ok(Event::InitEntry(_))) => continue,
                Some(Ok(event)) if self.contest == Contest::Queue || concerns(&event, &watched) => {}
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    refused = error;
                    continue;
                }
                None => break,
            }
            if queues && session.holds_nothing() {
                // Another program had written the key before.
                retries.insist(|| session.create(&key, &self.value)).await;
            }
            let leader = match self.contest {
                Contest::Queue => retries.insist(|| self.etcd.first(&watched)).await,
                Contest::Key if rests || self.evicted => {
                    retries.insist(|| self.etcd.read(watched.as_bytes())).await
                }
                Contest::Key => {
                    let create = || session.create(watched.as_bytes(), &self.value);
                    Some(retries.insist(create).await)
                }
            };
            match leader {
                Some(leader) if session.is_held(&leader) => session.leads(),
                leader => {
                    if let Some(Holder { key, lease: 0, written, .. }) = &leader
                        && std::mem::replace(&mut warned_of, *written) != *written
                    {
                        let (key, election) = (String::from_utf8_lossy(key), &self.election);
                        tracing::warn!(%key, election, "the leader's key has no lease, so it stays until somebody deletes it");
                    }
                    let leader = leader.map(|leader| match self.contest {
                        Contest::Queue => leader.info().identity.into(),
                        Contest::Key => String::from_utf8_lossy(&leader.value).into(),
                    });
                    self.publisher.set(Leadership::Follower { leader });
                }
            }
        }
        // The watch was denied. The permission that it had at the start may come back.
        sleep(retries.failed(refused)).await;
        Lost::Key
    }
}

/// Returns whether an event may change the holder of the key. The watch is one of a prefix, and so
/// also yields the events of longer keys.
fn concerns(event: &Event, key: &str) -> bool {
    event.key().is_none_or(|changed| **changed == *key)
}
