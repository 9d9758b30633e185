//! An election in memory.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::{
    clock::Moment,
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::{Candidate, CandidateHandle, LONGEST_TTL, Resign},
        publisher::{LeadershipPublisher, believed_until},
    },
    engine::config::ConfigError,
    store::{Fence, MemoryStore, StoreError, unavailable},
};

/// An election in memory, for tests of what only a leader does. It takes the place of the server:
/// its electors keep the [promises](crate::election) of all electors, on paused time too. Clones
/// are handles to the same election.
///
/// The candidates queue up in the order of their start, and the first one leads until it resigns,
/// closes, is [deposed](Self::depose) or is silent for the TTL. A candidate that is
/// [cut off](Self::cut_off) falls silent. The [store](Self::store) checks the leaders' fences.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{
///     EnsureOutcome, Guard, WriterLease, election::Elector, lab::MemoryElection, store::MemoryStore,
/// };
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let election = MemoryElection::new(MemoryStore::new(), "jobs", Duration::from_secs(10))?;
/// let (first, second) = (election.candidate("first"), election.candidate("second"));
/// let lease = WriterLease::builder("jobs").spawn()?;
/// lease.follow(&second)?;
/// let guard = Guard::new(election.store().clone(), lease, "")?;
/// let report = guard.ensure("report", |current| current.is_none().then_some("by the second"));
///
/// // The first one leads until the second hears nothing of it for the TTL.
/// first.leadership().wait_for(|state| state.is_leader()).await?;
/// election.cut_off("first", true);
/// assert!(matches!(report.await, EnsureOutcome::Written(_)));
/// assert!(second.is_leader() && !first.is_leader());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MemoryElection(Arc<Inner>);

/// A candidate in a [`MemoryElection`].
#[derive(Debug)]
pub struct MemoryElector(CandidateHandle<Resign>);

#[derive(Debug)]
struct Inner {
    name: String,
    ttl: Duration,
    store: MemoryStore,
    state: Mutex<State>,
    /// Told of each change that a candidate may wait for.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of their candidacies: the first one leads.
    members: Vec<Member>,
    cut_off: HashSet<Box<str>>,
    /// The number of the last candidacy, and the token of the last leadership.
    last: u64,
    token: u64,
}

/// A candidacy, as the election knows it.
#[derive(Debug)]
struct Member {
    number: u64,
    identity: Arc<str>,
    /// The candidacy is over unless it is renewed until then.
    until: Moment,
    /// The token of its leadership.
    token: Option<u64>,
}

/// The answer to a candidate's request.
enum Look {
    Leads {
        token: u64,
    },
    Follows {
        leader: Arc<str>,
        until: Moment,
    },
    /// The candidacy is over.
    Lost,
}

impl MemoryElection {
    /// An election without candidates. A leader that is silent for `ttl`, from 1 ms to a year, is
    /// replaced. `store` checks the leaders' fences.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the name is empty or the TTL cannot be used.
    pub fn new(store: MemoryStore, name: impl Into<String>, ttl: Duration) -> Result<Self, ConfigError> {
        let name = name.into();
        ConfigError::not_empty("name", &name)?;
        ConfigError::within("ttl", ttl, Duration::from_millis(1)..=LONGEST_TTL)?;
        let (state, changes) = (Mutex::default(), watch::Sender::new(()));
        Ok(Self(Arc::new(Inner { name, ttl, store, state, changes })))
    }

    /// Starts a candidate on the current tokio runtime, which must have timers enabled.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn candidate(&self, identity: impl Into<Arc<str>>) -> MemoryElector {
        let identity = identity.into();
        let publisher = LeadershipPublisher::new(format!("{identity} in election {}", self.0.name));
        // Here and not in its task, so that candidates queue up in the order of these calls. One that is
        // cut off begins later.
        let mut number = None;
        let _ = self.0.look(&mut number, &identity);
        let campaign = Campaign {
            election: self.0.clone(),
            publisher: publisher.clone(),
            identity: identity.clone(),
            number,
        };
        MemoryElector(CandidateHandle::start(identity, publisher, campaign))
    }

    /// The store that checks the leaders' fences.
    pub fn store(&self) -> &MemoryStore {
        &self.0.store
    }

    /// Returns the identities of the candidates that the election knows, the leader first. A
    /// candidate that was cut off and closed is there for at most a TTL.
    pub fn candidates(&self) -> Vec<Arc<str>> {
        self.0.expire(&mut self.0.state.lock());
        self.0.state.lock().members.iter().map(|member| member.identity.clone()).collect()
    }

    /// Ends the candidacy of the leader, as an administrator would who deletes its key. It competes
    /// anew, behind the others.
    pub fn depose(&self) {
        let mut state = self.0.state.lock();
        if !state.members.is_empty() {
            self.0.remove(&mut state, 0);
        }
        drop(state);
        self.0.changes.send_replace(());
    }

    /// Cuts off all candidates of this identity, or ends that. A leader that is cut off leads until
    /// its time is up.
    pub fn cut_off(&self, identity: &str, cut_off: bool) {
        let mut state = self.0.state.lock();
        if cut_off {
            state.cut_off.insert(identity.into());
        } else {
            state.cut_off.remove(identity);
        }
        drop(state);
        self.0.changes.send_replace(());
    }
}

impl Elector for MemoryElector {
    fn identity(&self) -> &str {
        self.0.identity()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership()
    }

    fn state(&self) -> Leadership {
        self.0.state()
    }

    fn events(&self) -> Events {
        self.0.events()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.0.resign().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

impl Inner {
    /// Renews a candidacy, or begins one.
    fn look(&self, number: &mut Option<u64>, identity: &Arc<str>) -> Result<Look, StoreError> {
        let mut state = self.state.lock();
        if state.cut_off.contains(&**identity) {
            return Err(unavailable("the candidate is cut off"));
        }
        self.expire(&mut state);
        let until = Moment::now() + self.ttl;
        let State { members, last, token, .. } = &mut *state;
        let number = *number.get_or_insert_with(|| {
            *last += 1;
            members.push(Member { number: *last, identity: identity.clone(), until, token: None });
            *last
        });
        let Some(place) = members.iter().position(|member| member.number == number) else {
            return Ok(Look::Lost);
        };
        members[place].until = until;
        let first = &mut members[0];
        if place > 0 {
            return Ok(Look::Follows { leader: first.identity.clone(), until: first.until });
        }
        let token = *first.token.get_or_insert_with(|| {
            *token += 1;
            *token
        });
        Ok(Look::Leads { token })
    }

    /// Ends a candidacy, if it exists.
    fn leave(&self, number: u64, identity: &str) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.cut_off.contains(identity) {
            return Err(unavailable("the candidate is cut off"));
        }
        if let Some(place) = state.members.iter().position(|member| member.number == number) {
            self.remove(&mut state, place);
        }
        drop(state);
        self.changes.send_replace(());
        Ok(())
    }

    /// Removes the candidates that were silent for too long.
    fn expire(&self, state: &mut State) {
        while let Some(place) = state.members.iter().position(|member| member.until.has_passed()) {
            self.remove(state, place);
        }
    }

    fn remove(&self, state: &mut State, place: usize) {
        if let Some(token) = state.members.remove(place).token {
            self.store.end_term(ENGINE, &self.name, token);
        }
    }
}

/// A candidate's task.
struct Campaign {
    election: Arc<Inner>,
    publisher: LeadershipPublisher,
    identity: Arc<str>,
    /// The number of the candidacy, once it has begun.
    number: Option<u64>,
}

impl Candidate for Campaign {
    type Command = Resign;

    async fn serve(&mut self) -> Result<(), ElectionError> {
        let ttl = self.election.ttl;
        let mut changes = self.election.changes.subscribe();
        loop {
            changes.mark_unchanged();
            // The leadership counts from before the request.
            let sent = Moment::now();
            let pause = match self.election.look(&mut self.number, &self.identity) {
                Ok(Look::Leads { token }) => {
                    let fence = Fence::new(ENGINE, self.election.name.as_str(), token);
                    self.publisher.lead(fence, believed_until(sent, ttl));
                    ttl / 3
                }
                Ok(Look::Follows { leader, until }) => {
                    self.publisher.set(Leadership::Follower { leader: Some(leader) });
                    until.remaining().min(ttl / 3)
                }
                Ok(Look::Lost) => return Ok(()),
                Err(error) => {
                    self.publisher.interrupted(error);
                    ttl
                }
            };
            // A change comes first, or it is time to look again.
            let _ = timeout(pause, changes.changed()).await;
        }
    }

    fn obey(&mut self, Resign: Resign) -> bool {
        true
    }

    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        match self.number.take() {
            Some(number) => Ok(self.election.leave(number, &self.identity)?),
            None => Ok(()),
        }
    }
}

/// The name of the engine in fences.
const ENGINE: &str = "memory";
