//! Elections on single keys of etcd: who creates the key leads.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use etcd_client::Client;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    campaign::{Campaign, Command, Contest},
    candidate::SHORTEST,
    session::Etcd,
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::Desk,
        publisher::{LONGEST, Office, check_time, check_timeout},
    },
    engine::config::ConfigError,
    reconnect::Pauses,
    store::{Event, Store},
};

/// Votes for the values of any number of keys in etcd, and watches them.
///
/// Each key is an election: the voter that creates it, with the value it votes for, leads until its term ends without a
/// renewal. Whoever reads the key knows the leader's value.
///
/// What gravitational/coordinate's `leader` offers, and what it is here:
///
/// | coordinate | here | shown by |
/// |---|---|---|
/// | [`Config`, `NewClient`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#NewClient) | [`new`](Self::new), [`with_request_timeout`](Self::with_request_timeout); there is no client without one of etcd | `one_client_votes_for_several_keys_each_an_election_of_its_own` |
/// | [`AddVoter`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.AddVoter) | [`add_voter`](Self::add_voter) | `the_same_voter_is_added_once_and_another_for_the_key_is_refused` |
/// | [`AddVoter`, its term`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.AddVoter) | [`add_voter`](Self::add_voter), at least a second | `settings_that_cannot_be_used_are_told_with_their_rule` |
/// | [`RemoveVoter`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.RemoveVoter) | [`remove_voter`](Self::remove_voter) | `a_voter_that_is_removed_stops_and_another_wins_at_once` |
/// | [`AddWatch`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.AddWatch) | [`add_watch`](Self::add_watch) | `a_watch_tells_the_value_of_now_and_each_change_of_this_key` |
/// | [`AddWatchCallback`, `CallbackFn`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.AddWatchCallback) | [`add_watch_callback`](Self::add_watch_callback) | `a_callback_is_first_told_the_value_of_now_as_the_previous_one_too` |
/// | [`StepDown`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.StepDown) | [`step_down`](Self::step_down) | `who_steps_down_lets_others_win_for_twice_the_term` |
/// | [`Close`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#Client.Close) | [`close`](Self::close) | `close_ends_voters_and_watches_and_leaves_nothing_in_etcd` |
/// | [`IsNotFound`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#IsNotFound) | [`ElectionError::is_not_found`] | `a_voter_that_is_removed_stops_and_another_wins_at_once` |
/// | [`IsAlreadyExists`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#IsAlreadyExists) | [`ElectionError::is_already_exists`] | `the_same_voter_is_added_once_and_another_for_the_key_is_refused` |
/// | [`IsWatchExpired`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#IsWatchExpired) | [`ElectionError::is_watch_expired`] | `watches_and_voters_go_on_after_a_compaction_while_they_were_cut_off` |
/// | [`IsContextError`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#IsContextError) | [`ElectionError::is_cancelled`] | `close_ends_voters_and_watches_and_leaves_nothing_in_etcd` |
/// | [`NewUnlimitedExponentialBackOff`](https://pkg.go.dev/github.com/gravitational/coordinate/leader#NewUnlimitedExponentialBackOff) | [`UnlimitedBackoff`] | `pauses_grow_up_to_the_longest_and_begin_anew_after_a_reset` |
///
/// Clones are handles to the same; with the last one, voters and watches end.
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
    shared: Arc<Shared>,
}

/// A vote for one value of one key; see [`EtcdVoters::add_voter`]. Clones are handles to the same; it ends with the last one,
/// its [`EtcdVoters`] included.
#[derive(Clone)]
pub struct EtcdVoter {
    desk: Arc<Desk<Command>>,
    key: Arc<str>,
    term: Duration,
}

/// Pauses that grow without end to the tries: the crate `backoff`'s exponential ones, jittered, up to a longest one.
///
/// ```
/// use std::time::Duration;
/// use writerlease::etcd::UnlimitedBackoff;
///
/// let longest = Duration::from_secs(5);
/// let pauses: Vec<_> = UnlimitedBackoff::new(Duration::from_millis(50), longest).take(100).collect();
/// assert!(pauses[0] < Duration::from_millis(100) && pauses.iter().all(|pause| *pause <= longest));
/// ```
#[derive(Debug)]
pub struct UnlimitedBackoff(Pauses);

/// The voters by their keys; none once they are closed.
type Voters = Option<HashMap<Arc<str>, EtcdVoter>>;

struct Shared {
    etcd: Etcd,
    voters: Mutex<Voters>,
    watches: Mutex<JoinSet<()>>,
}

impl EtcdVoters {
    /// Uses a client that is configured already: TLS, user and password, keepalive.
    pub fn new(client: Client) -> Self {
        Self::with_request_timeout(client, Duration::from_secs(5))
    }

    /// The same, with a time that each request may take instead of 5 s.
    pub fn with_request_timeout(client: Client, request_timeout: Duration) -> Self {
        let etcd = Etcd::new(client, request_timeout);
        let voters = Mutex::new(Some(HashMap::new()));
        Self { shared: Arc::new(Shared { etcd, voters, watches: Mutex::default() }) }
    }

    /// Votes for a value of a key, and renews the vote as long as it leads. A vote that nobody renews ends within the term,
    /// which etcd takes in whole seconds, rounded up. Does not wait for etcd: [`Elector::leadership`] and [`Elector::events`] tell
    /// when the voter takes part, and what is in its way.
    ///
    /// To add the same once more returns the same voter.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key or the value is empty or the term is shorter than a second,
    /// [`ElectionError::AlreadyExists`] if there is a voter for another value or term of this key, [`ElectionError::Closed`]
    /// after [`close`](Self::close).
    pub fn add_voter(&self, key: &str, value: &str, term: Duration) -> Result<EtcdVoter, ElectionError> {
        for (field, text) in [("key", key), ("value", value)] {
            if text.is_empty() {
                return Err(ConfigError::new(field, text, "not empty").into());
            }
        }
        check_time("term", term, SHORTEST..=LONGEST)?;
        check_timeout("request_timeout", self.shared.etcd.limit)?;
        let mut voters = self.shared.voters.lock();
        let voters = voters.as_mut().ok_or(ElectionError::Closed)?;
        let has_ended = |voter: &EtcdVoter| matches!(*voter.leadership().borrow(), Leadership::Failed(_));
        if let Some(voter) = voters.get(key).filter(|voter| !has_ended(voter)) {
            if voter.identity() == value && voter.term == term {
                return Ok(voter.clone());
            }
            let what =
                format!("a voter of {key:?} for {:?} with a term of {:?}", voter.identity(), voter.term);
            return Err(ElectionError::AlreadyExists { what });
        }
        let office = Office::new(format!("{value} for etcd key {key}"));
        let campaign = Campaign {
            etcd: self.shared.etcd.clone(),
            office: office.clone(),
            election: key.to_owned(),
            contest: Contest::Key,
            value: value.as_bytes().to_owned(),
            ttl: term,
            session: None,
            evicted: false,
            rest: None,
        };
        let (desk, orders) = Desk::new(value.into(), office);
        tokio::spawn(campaign.run(orders));
        let voter = EtcdVoter { desk: Arc::new(desk), key: key.into(), term };
        voters.insert(voter.key.clone(), voter.clone());
        Ok(voter)
    }

    /// Ends the vote for this value of the key. If it leads, it resigns, so that the next leader doesn't have to wait for the
    /// end of the term.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NotFound`] if there is no such voter.
    pub async fn remove_voter(&self, key: &str, value: &str, term: Duration) -> Result<(), ElectionError> {
        let voter = {
            let mut voters = self.shared.voters.lock();
            let voters = voters.as_mut().ok_or(ElectionError::Closed)?;
            match voters.get(key) {
                Some(voter) if voter.identity() == value && voter.term == term => voters.remove(key),
                _ => None,
            }
        };
        let what = || format!("a voter of {key:?} for {value:?} with a term of {term:?}");
        voter.ok_or_else(|| ElectionError::NotFound { what: what() })?.close().await;
        Ok(())
    }

    /// Sends the value of a key, as it is now and after each change, until the receiver is dropped or the voters are closed.
    /// A receiver that is full holds up only its own watch.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key is empty, [`ElectionError::Closed`] after [`close`](Self::close).
    pub fn add_watch(&self, key: &str, values: mpsc::Sender<String>) -> Result<(), ElectionError> {
        self.watch(key, move |_, _, current| {
            let (values, current) = (values.clone(), current.to_owned());
            async move { values.send(current).await.is_ok() }
        })
    }

    /// Calls back with the key, its previous and its current value: first with the value as it is, twice, and then for each
    /// change. A key that doesn't exist, or no longer does, is not a value and is not told. The callback must not block the
    /// thread; one that panics is logged and called again with the next change.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key is empty, [`ElectionError::Closed`] after [`close`](Self::close).
    pub fn add_watch_callback(
        &self,
        key: &str,
        mut callback: impl FnMut(&str, &str, &str) + Send + 'static,
    ) -> Result<(), ElectionError> {
        self.watch(key, move |key, previous, current| {
            let called = catch_unwind(AssertUnwindSafe(|| callback(key, previous, current)));
            if called.is_err() {
                tracing::error!(key, current, "a callback panicked");
            }
            std::future::ready(true)
        })
    }

    /// Until `tell` returns false.
    fn watch<F: Future<Output = bool> + Send>(
        &self,
        key: &str,
        mut tell: impl FnMut(&str, &str, &str) -> F + Send + 'static,
    ) -> Result<(), ElectionError> {
        if key.is_empty() {
            return Err(ConfigError::new("key", key, "not empty").into());
        }
        if self.shared.voters.lock().is_none() {
            return Err(ElectionError::Closed);
        }
        let mut changes = Box::pin(self.shared.etcd.store.watch(key));
        let key = key.to_owned();
        let told = async move {
            let mut previous: Option<String> = None;
            while let Some(change) = changes.next().await {
                let Ok(Event::InitEntry(entry) | Event::Put(entry)) = change else { continue };
                let current = String::from_utf8_lossy(&entry.value).into_owned();
                // A fresh listing tells again what is known.
                if *entry.key != *key || previous.as_ref() == Some(&current) {
                    continue;
                }
                if !tell(&key, previous.as_ref().unwrap_or(&current), &current).await {
                    return;
                }
                previous = Some(current);
            }
        };
        let mut watches = self.shared.watches.lock();
        while watches.try_join_next().is_some() {}
        watches.spawn(told);
        Ok(())
    }

    /// Gives up all leaderships, and takes part again after twice the term of each, so that others win meanwhile.
    ///
    /// # Errors
    ///
    /// As of [`Elector::resign`], the first of them.
    pub async fn step_down(&self) -> Result<(), ElectionError> {
        let voters: Vec<_> =
            self.shared.voters.lock().iter().flatten().map(|(_, voter)| voter.clone()).collect();
        let resigned = futures_util::future::join_all(voters.iter().map(Elector::resign)).await;
        resigned.into_iter().collect()
    }

    /// Ends all voters, as [`Elector::close`] does, and all watches. Further calls do nothing.
    pub async fn close(&self) {
        let voters = self.shared.voters.lock().take();
        let voters: Vec<_> = voters.into_iter().flatten().map(|(_, voter)| voter).collect();
        // Dropping the tasks' set stops them.
        drop(std::mem::take(&mut *self.shared.watches.lock()));
        futures_util::future::join_all(voters.iter().map(Elector::close)).await;
    }
}

impl Elector for EtcdVoter {
    /// The value that is voted for.
    fn identity(&self) -> &str {
        &self.desk.identity
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.desk.office.leadership()
    }

    fn events(&self) -> Events {
        self.desk.office.events()
    }

    /// Votes again after twice the term, so that another wins meanwhile.
    async fn resign(&self) -> Result<(), ElectionError> {
        self.desk.ask(Command::Resign).await
    }

    async fn close(&self) {
        self.desk.close().await;
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
            .field("value", &self.desk.identity)
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}

impl UnlimitedBackoff {
    /// The first pause before jitter, and the longest after it.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self(Pauses::new(first, longest))
    }

    /// Begins with the first pause again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Iterator for UnlimitedBackoff {
    type Item = Duration;

    /// Never `None`.
    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next())
    }
}
