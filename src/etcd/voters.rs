//! Elections on single keys of etcd: the creator of the key leads.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use etcd_client::Client;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};

use super::{
    campaign::{Campaign, Candidacy, Command, Contest},
    candidate::TTLS,
    session::Etcd,
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership, candidate::CandidateHandle,
        publisher::LeadershipPublisher,
    },
    engine::config::ConfigError,
};

/// Voters for the values of any number of keys in etcd, and watches of them.
///
/// Each key is an election. The voter that creates the key, with the value that it votes for, leads
/// until its TTL passes without a renewal. A reader of the key learns the leader's value.
///
/// A leader whose key another program writes over leads no more, and leaves the other's value alone.
/// A value without a lease is an appointment, as a value without a TTL is in coordinate: all voters
/// follow it until somebody deletes the key. The log names such a key.
///
/// With etcd's access control, a voter needs read and write permission for its key, a watch needs
/// read permission, and the client has to be made with `with_auto_token_refresh`, because tokens
/// expire.
///
/// Users of gravitational/coordinate's `leader`: each of its calls is listed in
/// [docs/migrating.md](https://docs.rs/crate/writerlease/latest/source/docs/migrating.md).
///
/// Clones share the voters and watches, which end with the last clone.
///
/// ```no_run
/// # async fn example(client: etcd_client::Client) -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, etcd::EtcdVoters};
///
/// let voters = EtcdVoters::new(client);
/// voters.add_watch_callback("masters/region-1", |key, previous, current| {
///     println!("{key}: {previous:?} -> {current:?}");
/// })?;
/// let voter = voters.add_voter("masters/region-1", "10.0.0.1", Duration::from_secs(10))?;
/// voter.leadership().wait_for(|leadership| leadership.is_leader()).await.expect("the voter exists");
/// println!("{} leads", voter.identity());
/// voters.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdVoters {
    pub(super) shared: Arc<Shared>,
}

/// The settings of [`EtcdVoters`].
#[derive(Clone)]
#[must_use]
pub struct EtcdVotersBuilder {
    client: Client,
    request_timeout: Duration,
}

/// A voter for one value of one key; see [`EtcdVoters::add_voter`]. Clones share it. It ends with
/// the last clone; its [`EtcdVoters`] has one.
#[derive(Clone)]
pub struct EtcdVoter {
    candidate: Arc<CandidateHandle<Command>>,
    key: Arc<str>,
    ttl: Duration,
}

/// The voters by their keys; `None` once they are closed.
type Voters = Option<HashMap<Arc<str>, EtcdVoter>>;

pub(super) struct Shared {
    pub etcd: Etcd,
    pub voters: Mutex<Voters>,
    /// The tasks of the watches.
    pub watches: Mutex<JoinSet<()>>,
}

impl EtcdVoters {
    /// Voters with default settings. TLS, the user and the keepalive are settings of the client.
    pub fn new(client: Client) -> Self {
        Self::of(Etcd::new(client, REQUEST_TIMEOUT))
    }

    /// Settings for voters that use this client.
    pub fn builder(client: Client) -> EtcdVotersBuilder {
        EtcdVotersBuilder { client, request_timeout: REQUEST_TIMEOUT }
    }

    fn of(etcd: Etcd) -> Self {
        let voters = Mutex::new(Some(HashMap::new()));
        Self { shared: Arc::new(Shared { etcd, voters, watches: Mutex::default() }) }
    }

    /// Votes for a value of a key, and renews the vote while it leads. A vote without renewals ends
    /// within the TTL, from 1 s to a year; etcd counts whole seconds, so a fraction is rounded up.
    ///
    /// The call does not wait for etcd: [`Elector::leadership`] and [`Elector::events`] show when
    /// the voter takes part. Adding the same voter again returns the first one. A key or value that
    /// is too large for a request, of 1.5 MiB by default, ends the voter with
    /// [`StoreError::TooLarge`](crate::store::StoreError::TooLarge).
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key or the value is empty or the TTL cannot be used,
    /// [`ElectionError::AlreadyExists`] if there is a voter for another value or TTL of this key,
    /// [`ElectionError::Closed`] after [`close`](Self::close).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn add_voter(&self, key: &str, value: &str, ttl: Duration) -> Result<EtcdVoter, ElectionError> {
        ConfigError::not_empty("key", key)?;
        ConfigError::not_empty("value", value)?;
        ConfigError::within("ttl", ttl, TTLS)?;
        let mut voters = self.shared.voters.lock();
        let voters = voters.as_mut().ok_or(ElectionError::Closed)?;
        let has_ended = |voter: &EtcdVoter| matches!(voter.state(), Leadership::Failed(_));
        if let Some(voter) = voters.get(key).filter(|voter| !has_ended(voter)) {
            if voter.identity() == value && voter.ttl == ttl {
                return Ok(voter.clone());
            }
            return Err(ElectionError::AlreadyExists { what: describe(key, voter.identity(), voter.ttl) });
        }
        let publisher = LeadershipPublisher::new(format!("{value} for etcd key {key}"));
        let campaign = Campaign::new(Candidacy {
            etcd: self.shared.etcd.clone(),
            publisher: publisher.clone(),
            election: key.to_owned(),
            contest: Contest::Key,
            value: value.as_bytes().to_owned(),
            ttl,
            evicted: false,
            rest: None,
        });
        let candidate = Arc::new(CandidateHandle::start(value, publisher, campaign));
        let voter = EtcdVoter { candidate, key: key.into(), ttl };
        voters.insert(voter.key.clone(), voter.clone());
        Ok(voter)
    }

    /// Ends the voter for this value of the key. If it leads, it resigns, so that the next leader
    /// need not wait for the end of the TTL.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NotFound`] if there is no such voter, [`ElectionError::Closed`] after
    /// [`close`](Self::close).
    pub async fn remove_voter(&self, key: &str, value: &str, ttl: Duration) -> Result<(), ElectionError> {
        let voter = {
            let mut voters = self.shared.voters.lock();
            let voters = voters.as_mut().ok_or(ElectionError::Closed)?;
            match voters.get(key) {
                Some(voter) if voter.identity() == value && voter.ttl == ttl => voters.remove(key),
                _ => None,
            }
        };
        voter.ok_or_else(|| ElectionError::NotFound { what: describe(key, value, ttl) })?.close().await;
        Ok(())
    }

    /// Resigns with all voters. Each takes part again after twice its TTL, so that others win
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// The first error of [`Elector::resign`].
    pub async fn step_down(&self) -> Result<(), ElectionError> {
        let voters: Vec<_> =
            self.shared.voters.lock().iter().flatten().map(|(_, voter)| voter.clone()).collect();
        let resigned = futures_util::future::join_all(voters.iter().map(Elector::resign)).await;
        resigned.into_iter().collect()
    }

    /// Ends all voters, as [`Elector::close`] does, and all watches. Further calls have no effect.
    pub async fn close(&self) {
        let voters = self.shared.voters.lock().take();
        let voters: Vec<_> = voters.into_iter().flatten().map(|(_, voter)| voter).collect();
        // Dropping the set aborts its tasks.
        drop(std::mem::take(&mut *self.shared.watches.lock()));
        futures_util::future::join_all(voters.iter().map(Elector::close)).await;
    }
}

impl EtcdVotersBuilder {
    /// The longest time of each request, longer than zero. A renewal gives up earlier if the TTL
    /// requires it. Default: 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Checks the settings. Sends no request.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting cannot be used.
    pub fn build(self) -> Result<EtcdVoters, ConfigError> {
        ConfigError::positive("request_timeout", self.request_timeout)?;
        Ok(EtcdVoters::of(Etcd::new(self.client, self.request_timeout)))
    }
}

impl Elector for EtcdVoter {
    /// The value that it votes for.
    fn identity(&self) -> &str {
        self.candidate.identity()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.candidate.leadership()
    }

    fn state(&self) -> Leadership {
        self.candidate.state()
    }

    fn events(&self) -> Events {
        self.candidate.events()
    }

    /// The voter takes part again after twice its TTL, so that another wins meanwhile.
    async fn resign(&self) -> Result<(), ElectionError> {
        self.candidate.resign().await
    }

    async fn close(&self) {
        self.candidate.close().await;
    }
}

impl fmt::Debug for EtcdVoters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdVoters").field("voters", &self.shared.voters.lock()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdVoter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdVoter")
            .field("key", &self.key)
            .field("value", &self.identity())
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

fn describe(key: &str, value: &str, ttl: Duration) -> String {
    format!("a voter of {key:?} for {value:?} with a TTL of {ttl:?}")
}

/// The longest time of each request, unless it is set.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
