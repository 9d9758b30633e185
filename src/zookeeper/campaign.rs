//! A candidate's task on ZooKeeper.

use std::{pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use zookeeper_client::{Client, Error, EventType, OneshotWatcher, SessionState, StateWatcher};

use super::{
    access::{ENGINE, ZookeeperAccess, random_name, store_error},
    breaks::Breaks,
    candidates::{Candidates, Election, Node},
};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Leadership,
        candidate::{Candidate, Resign},
        publisher::{LeadershipPublisher, believed_until},
        retries::Retries,
    },
    store::{Fence, StoreError, resume, unavailable},
};

pub(super) struct Campaign {
    pub seat: Seat,
    /// How own sessions begin; `None` on the user's client.
    pub own: Option<OwnSessions>,
    /// The states of the session, as far as they were taken into account.
    pub states: StateWatcher,
    pub publisher: LeadershipPublisher,
    pub identity: String,
    pub access: ZookeeperAccess,
    /// The text before the number in the name of the candidate's node.
    pub lock_pattern: String,
    pub election: Election,
    /// The shortest session timeout that the servers granted.
    pub session_timeout: Duration,
    /// Since they granted it, the connection was not interrupted.
    pub is_timeout_known: bool,
    pub candidacy: Option<Candidacy>,
    pub breaks: Breaks,
}

/// The candidate's session, which its handle shares: `None` before the next one begins, and after
/// the end. Each clone of the client within keeps the session alive.
pub(super) type Seat = Arc<Mutex<Option<Candidates>>>;

/// How a candidate begins sessions of its own.
pub(super) struct OwnSessions {
    pub servers: String,
    /// The session timeout to request.
    pub ttl: Duration,
}

/// The candidate's node, as far as it is known.
#[derive(Clone)]
pub(super) struct Candidacy {
    /// The begin of the node's name.
    prefix: String,
    /// `None` until its creation is confirmed.
    node: Option<Node>,
}

/// The next step of a candidate after a look at all of them.
enum NextStep {
    /// Its node is gone.
    CompeteAnew,
    /// A candidate left during the look.
    LookAgain,
    Lead,
    Follow {
        /// The leader's node.
        leader: String,
        /// Empty if it is unknown.
        identity: String,
        /// The watch of the candidate's predecessor.
        watcher: OneshotWatcher,
    },
}

impl Candidate for Campaign {
    type Command = Resign;

    async fn serve(&mut self) -> Result<(), ElectionError> {
        let mut retries = self.retries();
        let candidates = self.session(&mut retries).await?;
        let mut states = self.states.clone();
        let mut state = states.peek_state();
        loop {
            let pause;
            match state {
                SessionState::AuthFailed if self.own.is_some() => {
                    // The connector may have another credential by now.
                    let pause = retries.failed(store_error(Error::AuthFailed));
                    return self.begin_anew(pause).await;
                }
                SessionState::AuthFailed => return Err(store_error(Error::AuthFailed).into()),
                state if state.is_terminated() => return Err(ElectionError::SessionExpired),
                _ => {}
            }
            tokio::select! {
                biased;
                changed = states.changed() => {
                    let broken = std::mem::replace(&mut state, changed) == SessionState::SyncConnected;
                    pause = if broken { self.breaks.next_pause() } else { None };
                }
                () = self.queue(&candidates, &mut retries), if state == SessionState::SyncConnected => {
                    self.candidacy = None;
                    return Ok(());
                }
            }
            // From now on the servers may count a shorter time than before.
            self.states = states.clone();
            self.is_timeout_known = false;
            retries.failed(unavailable("the connection was interrupted"));
            self.publisher.set(Leadership::Unknown);
            match (pause, &self.own) {
                (Some(pause), Some(_)) => {
                    // The session ends with the last clone of its client.
                    drop(candidates);
                    return self.begin_anew(pause).await;
                }
                (Some(pause), None) => sleep(pause).await,
                (None, _) => {}
            }
        }
    }

    fn obey(&mut self, Resign: Resign) -> bool {
        true
    }

    /// Deletes the candidate's node. An own session ends if that fails, because nothing else is
    /// sure to remove the node.
    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        let Some(candidates) = self.seat.lock().clone() else { return Ok(()) };
        let Some(candidacy) = self.candidacy.take() else { return Ok(()) };
        let Err(error) = candidates.bounded(candidacy.delete(&candidates)).await else { return Ok(()) };
        match (&self.own, &error) {
            (Some(_), StoreError::Unavailable { .. }) => {
                // There is no answer to wait for. The client ends the session when it can.
                self.seat.lock().take();
            }
            (Some(_), _) => {
                drop(candidates);
                return self.close_session().await;
            }
            (None, StoreError::Unavailable { .. }) => self.delete_later(candidates, candidacy),
            // The user's session goes on, and the node with it. The candidate competes on by that
            // node, because behind it nobody could lead.
            (None, _) => self.candidacy = Some(candidacy),
        }
        Err(error.into())
    }

    /// Ends an own session, and the node with it, whatever its ACL. On the user's client it deletes
    /// the node.
    async fn end(mut self) -> Result<(), ElectionError> {
        match self.own {
            Some(_) => self.close_session().await,
            None => self.withdraw().await,
        }
    }
}

impl Candidacy {
    fn new(lock_pattern: &str) -> Self {
        Self { prefix: format!("_c_{}{lock_pattern}", random_name()), node: None }
    }

    /// Deletes the node, even if its name is not known yet.
    async fn delete(&self, candidates: &Candidates) -> Result<(), StoreError> {
        let node = match &self.node {
            Some(node) => Some(node.clone()),
            None => candidates.find(&self.prefix).await?,
        };
        match node {
            Some(node) => candidates.delete(&node).await,
            None => Ok(()),
        }
    }
}

impl Campaign {
    fn retries(&self) -> Retries {
        Retries::new(self.publisher.name(), self.publisher.clone())
    }

    /// Returns the session, and begins one if there is none.
    async fn session(&mut self, retries: &mut Retries) -> Result<Candidates, ElectionError> {
        if let Some(candidates) = &*self.seat.lock() {
            return Ok(candidates.clone());
        }
        let Some(client) = self.connect(retries).await else { return Err(ElectionError::SessionExpired) };
        self.states = client.state_watcher();
        self.session_timeout = client.session_timeout();
        self.is_timeout_known = true;
        let candidates = self.election.on(client);
        *self.seat.lock() = Some(candidates.clone());
        Ok(candidates)
    }

    /// Begins an own session.
    async fn connect(&self, retries: &mut Retries) -> Option<Client> {
        let OwnSessions { servers, ttl } = self.own.as_ref()?;
        let limit = self.election.limit;
        let connect = || resume::bounded(limit, self.access.connect(servers, *ttl), |error| error);
        Some(retries.insist(connect).await)
    }

    /// Learns what session timeout the servers grant now. They grant one at each connection, also
    /// for a session that goes on, but the client reports only the first. Returns whether it is
    /// known: the servers may refuse another session.
    async fn learn_timeout(&mut self, retries: &mut Retries) -> bool {
        if !self.is_timeout_known && self.own.is_some() {
            let other = timeout(self.session_timeout, self.connect(retries)).await;
            let Ok(Some(other)) = other else { return false };
            self.session_timeout = self.session_timeout.min(other.session_timeout());
        }
        self.is_timeout_known = true;
        true
    }

    /// Gives up the session, and the node with it. The next one begins after the pause.
    async fn begin_anew(&mut self, pause: Duration) -> Result<(), ElectionError> {
        self.seat.lock().take();
        self.candidacy = None;
        sleep(pause).await;
        Ok(())
    }

    /// Ends the session, and returns when the servers have removed its node.
    async fn close_session(&mut self) -> Result<(), ElectionError> {
        self.candidacy = None;
        if self.states.state().is_terminated() {
            return Ok(());
        }
        // The session ends with the last clone of its client.
        drop(self.seat.lock().take());
        let ended = async { Ok(terminated(&mut self.states).await) };
        resume::bounded(self.election.limit, ended, |error| error).await?;
        Ok(())
    }

    /// Deletes the node as soon as ZooKeeper answers, in a task of its own, unless the session ends
    /// before.
    fn delete_later(&self, candidates: Candidates, candidacy: Candidacy) {
        let (mut retries, mut states) = (self.retries(), self.states.clone());
        tokio::spawn(async move {
            let gone = async {
                while let Err(error @ StoreError::Unavailable { .. }) =
                    candidates.bounded(candidacy.delete(&candidates)).await
                {
                    sleep(retries.failed(error)).await;
                }
            };
            tokio::select! {
                () = gone => {}
                _ = terminated(&mut states) => {}
            }
        });
    }

    /// Takes part in the election until the node is lost.
    async fn queue(&mut self, candidates: &Candidates, retries: &mut Retries) {
        let node = self.join(candidates, retries).await;
        loop {
            let look = || candidates.bounded(look(candidates, &node));
            match retries.insist(look).await {
                NextStep::CompeteAnew => return,
                NextStep::LookAgain => {}
                NextStep::Lead => return self.lead(candidates, &node, retries).await,
                NextStep::Follow { leader, identity, watcher } => {
                    let identity = Some(identity).filter(|identity| !identity.is_empty()).map(Arc::from);
                    self.publisher.set(Leadership::Follower { leader: identity });
                    let mut changed = pin!(watcher.changed());
                    // The watch covers the predecessor only; a leader further ahead may have
                    // changed.
                    while timeout(self.session_timeout, &mut changed).await.is_err() {
                        let same = || candidates.bounded(candidates.have_both(&leader, &node.name));
                        if !retries.insist(same).await {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Creates the candidate's node, or finds it.
    async fn join(&mut self, candidates: &Candidates, retries: &mut Retries) -> Node {
        // A call that was dropped may have sent the request.
        let mut sent = self.candidacy.is_some();
        let candidacy = self.candidacy.get_or_insert_with(|| Candidacy::new(&self.lock_pattern));
        if let Some(node) = &candidacy.node {
            return node.clone();
        }
        let (access, identity) = (&self.access, self.identity.as_bytes());
        let prefix = &candidacy.prefix.clone();
        let join = || {
            let repeated = std::mem::replace(&mut sent, true);
            candidates.bounded(async move {
                // The answer to the request before may have been lost.
                let known = if repeated { candidates.find(prefix).await? } else { None };
                match known {
                    Some(node) => Ok(node),
                    None => candidates.create(prefix, identity, access).await,
                }
            })
        };
        let node = retries.insist(join).await;
        candidacy.node = Some(node.clone());
        node
    }

    /// Leads until the node is gone.
    async fn lead(&mut self, candidates: &Candidates, node: &Node, retries: &mut Retries) {
        if !self.learn_timeout(retries).await {
            // The next session begins with a timeout that is known.
            self.seat.lock().take();
            return;
        }
        let path = candidates.path(&node.name);
        let limit = self.election.limit.min(self.session_timeout / RENEWALS);
        let election = format!("{}{}", candidates.root, candidates.base());
        let fence = Fence::new(ENGINE, election, node.czxid.unsigned_abs())
            .with_proof(format!("{}{path}", candidates.root));
        let mut until = Moment::now();
        loop {
            let watch = async || candidates.client.check_and_watch_stat(&path).await.map_err(store_error);
            let (Some(_), watcher) = retries.insist(|| candidates.bounded(watch())).await else { return };
            let mut changed = pin!(watcher.changed());
            loop {
                // The leadership counts from before the requests. A session's server answers them
                // in their order.
                let sent = Moment::now();
                let (sync, stat) = (candidates.client.sync(&path), candidates.client.check_stat(&path));
                let renewed = resume::bounded(limit, async { sync.await.and(stat.await) }, store_error).await;
                let pause = match renewed {
                    Ok(None) => return,
                    Ok(Some(_)) => {
                        retries.succeeded();
                        until = self.believed_until(sent);
                        self.publisher.lead(fence.clone(), until);
                        self.session_timeout / RENEWALS
                    }
                    Err(error) => retries.renewal_failed(error, until, self.session_timeout / (2 * RENEWALS)),
                };
                match timeout(pause, &mut changed).await {
                    Ok(event) if event.event_type == EventType::NodeDeleted => return,
                    // A change of the node's data has no meaning, but it ended the watch.
                    Ok(_) => break,
                    Err(_) => {}
                }
            }
        }
    }

    /// The end of a leadership that was confirmed to a request sent at `sent`; see
    /// [`ZookeeperElector`](super::ZookeeperElector) for the two thirds.
    fn believed_until(&self, sent: Moment) -> Moment {
        believed_until(sent, self.session_timeout * 2 / 3)
    }
}

/// Looks at all candidates, and watches the predecessor of this one.
async fn look(candidates: &Candidates, node: &Node) -> Result<NextStep, StoreError> {
    let names = candidates.list().await?;
    let Some(place) = names.iter().position(|name| *name == node.name) else {
        return Ok(NextStep::CompeteAnew);
    };
    let Some(before) = place.checked_sub(1) else { return Ok(NextStep::Lead) };
    let leader = names[0].clone();
    let identity = match candidates.identity_of(&leader).await {
        // The ACL of another user's node may forbid to read it, but not to wait for its end.
        Err(StoreError::Denied { .. }) => String::new(),
        read => match read? {
            Some(identity) => identity,
            None => return Ok(NextStep::LookAgain),
        },
    };
    let watched = candidates.client.check_and_watch_stat(&candidates.path(&names[before])).await;
    match watched.map_err(store_error)? {
        (Some(_), watcher) => Ok(NextStep::Follow { leader, identity, watcher }),
        (None, _) => Ok(NextStep::LookAgain),
    }
}

/// Waits until the session has ended.
async fn terminated(states: &mut StateWatcher) -> SessionState {
    let mut state = states.state();
    while !state.is_terminated() {
        state = states.changed().await;
    }
    state
}

/// The renewals of a leader per session timeout.
const RENEWALS: u32 = 6;
