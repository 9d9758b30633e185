//! The candidates on etcd, of queues and of single keys.

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use rand::RngExt;
use tokio::{runtime::Handle, time::sleep};

use super::{
    candidate::{key, prefix},
    client::{range, single},
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
    store::{Event, StoreError, unavailable},
};

/// A candidate's task.
pub(super) struct Campaign {
    candidacy: Candidacy,
    session: Option<Session>,
    /// A lease that was asked for. etcd may have granted it although no answer came.
    unanswered: Option<i64>,
    /// The retries of the campaign. They outlast each session, so that their pauses grow.
    retries: Retries,
    /// The retries of the renewals.
    renewals: Retries,
}

/// A candidate's settings, and the commands that it obeys.
pub(super) struct Candidacy {
    pub etcd: Etcd,
    pub publisher: LeadershipPublisher,
    /// The name of the election, or its key.
    pub election: String,
    pub contest: Contest,
    /// The candidate's value in its key.
    pub value: Vec<u8>,
    pub ttl: Duration,
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

    /// Takes part in the election until the key or the session is lost.
    async fn serve(&mut self) -> Result<(), ElectionError> {
        while self.session.is_none() {
            match self.begin().await {
                Ok(()) => self.retries.succeeded(),
                Err(error) => sleep(self.retries.failed(error)).await,
            }
        }
        let Some(session) = &self.session else { return Ok(()) };
        let lost = tokio::select! {
            lost = session.keep(&mut self.renewals) => lost,
            lost = self.candidacy.campaign(session, &mut self.retries) => lost,
        };
        match lost {
            Lost::Key => Ok(()),
            Lost::Lease => {
                self.session = None;
                Ok(())
            }
            Lost::TooLarge(error) => Err(error.into()),
        }
    }

    fn is_moot(&self, command: &Command) -> bool {
        matches!(command, Command::Evict(evicted) if *evicted == self.candidacy.evicted)
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Resign => {
                // The fastest wins a key, and this candidate would be the first to see it deleted.
                if self.candidacy.contest == Contest::Key {
                    self.candidacy.rest = Some(Moment::now() + 2 * self.candidacy.ttl);
                }
                true
            }
            Command::Evict(evicted) => {
                self.candidacy.evicted = evicted;
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
        match self.session.take() {
            Some(session) => Ok(session.end().await?),
            None => {
                let revoked = self.revoke_unanswered().await;
                // This was the only try: without an answer the lease expires.
                self.unanswered = None;
                Ok(revoked?)
            }
        }
    }
}

impl Campaign {
    pub fn new(candidacy: Candidacy) -> Self {
        let retries = |what| {
            Retries::new(format!("etcd {what} of {}", candidacy.election), candidacy.publisher.clone())
        };
        let (retries, renewals) = (retries("election"), retries("lease"));
        Self { candidacy, session: None, unanswered: None, retries, renewals }
    }

    /// Begins a session. A call that is dropped or fails may leave a lease, which the next call
    /// revokes, or the end of the campaign.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        self.revoke_unanswered().await?;
        let lease = new_lease();
        self.unanswered = Some(lease);
        let Candidacy { etcd, publisher, election, contest, value, ttl, .. } = &self.candidacy;
        let key = match contest {
            Contest::Queue => key(election, lease),
            Contest::Key => election.clone().into_bytes(),
        };
        let granted = etcd.grant(lease, *ttl).await;
        if !matches!(granted, Err(StoreError::Unavailable { .. })) {
            self.unanswered = None;
        }
        let (etcd, publisher) = (etcd.clone(), publisher.clone());
        self.session = Some(Session::new(etcd, publisher, election, key, value, granted?));
        Ok(())
    }

    async fn revoke_unanswered(&mut self) -> Result<(), StoreError> {
        if let Some(lease) = self.unanswered {
            self.candidacy.etcd.revoke(lease).await?;
            self.unanswered = None;
        }
        Ok(())
    }
}

/// Returns the id of a new lease. The candidate chooses it, so that it can revoke a lease whose
/// grant was not answered.
#[expect(
    clippy::disallowed_methods,
    reason = "it must differ between processes, which a seed would not make it"
)]
fn new_lease() -> i64 {
    rand::rng().random_range(1..=i64::MAX)
}

impl Drop for Campaign {
    /// The elector did not start.
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(lease) = self.unanswered {
            let etcd = self.candidacy.etcd.clone();
            runtime.spawn(async move { etcd.revoke(lease).await });
        }
    }
}

impl Candidacy {
    /// Watches the keys that may change the leader.
    fn watch(&self) -> impl Stream<Item = Result<Event, StoreError>> + use<> {
        self.etcd.store.watch_range(match self.contest {
            Contest::Queue => range(&prefix(&self.election)),
            Contest::Key => single(&self.election),
        })
    }

    /// Looks for the leader after each change.
    async fn campaign(&self, session: &Session, retries: &mut Retries) -> Lost {
        let queues = self.contest == Contest::Queue && !self.evicted;
        if queues && let Err(lost) = retries.insist(|| session.create()).await {
            return lost;
        }
        let prefix = prefix(&self.election);
        let mut changes = Box::pin(self.watch());
        let mut rested = pin!(self.rest.unwrap_or_else(Moment::now).passed());
        let mut rests = self.rest.is_some();
        let mut listed = false;
        let mut warned_of = 0;
        let mut is_interrupted = false;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = &mut rested, if rests => {
                    rests = false;
                    Some(Ok(Event::Resumed))
                }
                // The watch is silent about candidates whose keys are not text, and about the end of
                // the lease after which a key without one counts for nothing.
                () = sleep(if warned_of > 0 { self.ttl / 3 } else { self.ttl }), if self.contest == Contest::Queue && !is_interrupted => {
                    Some(Ok(Event::Resumed))
                }
            };
            // The watch reports that it is back. Until then it is the only one that asks.
            is_interrupted = matches!(change, Some(Err(_)));
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
                Some(Ok(_)) => {}
                // The name of the election is too long already.
                Some(Err(error @ StoreError::TooLarge { .. })) => return Lost::TooLarge(error),
                // The renewals notice a server that is away, but not a missing permission.
                Some(Err(error @ StoreError::Denied { .. })) => {
                    self.publisher.interrupted(error);
                    continue;
                }
                Some(Err(_)) => continue,
                None => {
                    sleep(retries.failed(unavailable("the watch ended"))).await;
                    changes = Box::pin(self.watch());
                    listed = false;
                    continue;
                }
            }
            if queues && session.holds_nothing() {
                // Another program had written the key before.
                if let Err(lost) = retries.insist(|| session.create()).await {
                    return lost;
                }
            }
            let leader = match self.contest {
                Contest::Queue => retries.insist(|| self.etcd.first(&prefix)).await,
                Contest::Key if rests || self.evicted => {
                    retries.insist(|| self.etcd.read(&self.election)).await
                }
                Contest::Key => match retries.insist(|| session.create()).await {
                    Ok(leader) => Some(leader),
                    Err(lost) => return lost,
                },
            };
            match leader {
                Some(leader) if session.is_held(&leader) => {
                    warned_of = 0;
                    session.leads();
                }
                leader => {
                    let permanent = leader.as_ref().filter(|leader| leader.lease == 0);
                    let written = permanent.map_or(0, |leader| leader.written);
                    let is_news = std::mem::replace(&mut warned_of, written) != written;
                    if let Some(Holder { key, .. }) = permanent.filter(|_| is_news) {
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
    }
}
