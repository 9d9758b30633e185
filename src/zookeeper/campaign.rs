//! A candidate's task on ZooKeeper.

use std::{pin::pin, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::timeout;
use zookeeper_client::{Client, Error, EventType, OneshotWatcher, SessionState};

use super::{
    access::{ENGINE, ZookeeperAccess, store_error},
    candidates::{Candidates, Node},
};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Leadership,
        candidate::{Candidate, Resign},
        publisher::{LeadershipPublisher, believed_until},
        retries::Retries,
    },
    store::{Fence, StoreError, resume},
};

pub(super) struct Campaign {
    pub candidates: Candidates,
    pub publisher: LeadershipPublisher,
    pub identity: String,
    pub access: ZookeeperAccess,
    /// The session timeout that the servers granted.
    pub session_timeout: Duration,
    pub candidacy: Option<Candidacy>,
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
        identity: String,
        /// The watch of the candidate's predecessor.
        watcher: OneshotWatcher,
    },
}

impl Candidate for Campaign {
    type Command = Resign;

    async fn serve(&mut self) -> Result<(), ElectionError> {
        let client = self.candidates.client.clone();
        tokio::select! {
            biased;
            state = terminated(&client) => Err(match state {
                SessionState::AuthFailed => store_error(Error::AuthFailed).into(),
                _ => ElectionError::SessionExpired,
            }),
            () = self.queue() => {
                self.candidacy = None;
                Ok(())
            }
        }
    }

    fn obey(&mut self, Resign: Resign) -> bool {
        true
    }

    /// Deletes the candidate's node. If ZooKeeper does not answer now, a task of its own goes on
    /// until the session ends.
    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        let Some(candidacy) = self.candidacy.take() else { return Ok(()) };
        let candidates = self.candidates.clone();
        let deleted = candidates.bounded(candidacy.delete(&candidates)).await;
        if deleted.is_err() && !candidates.client.state().is_terminated() {
            let mut retries = self.retries();
            tokio::spawn(async move {
                let gone = retries.insist(|| candidates.bounded(candidacy.delete(&candidates)));
                tokio::select! {
                    () = gone => {}
                    _ = terminated(&candidates.client) => {}
                }
            });
        }
        Ok(deleted?)
    }
}

impl Candidacy {
    fn new() -> Self {
        Self { prefix: format!("_c_{}-lock-", guid()), node: None }
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
        Retries::new(format!("zookeeper election {}", self.candidates.base), self.publisher.clone())
    }

    /// Takes part in the election until the node is lost.
    async fn queue(&mut self) {
        let mut retries = self.retries();
        let node = self.join(&mut retries).await;
        loop {
            let candidates = &self.candidates;
            let look = || candidates.bounded(self.look(&node));
            match retries.insist(look).await {
                NextStep::CompeteAnew => return,
                NextStep::LookAgain => {}
                NextStep::Lead => return self.lead(&node, &mut retries).await,
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
    async fn join(&mut self, retries: &mut Retries) -> Node {
        let candidacy = self.candidacy.get_or_insert_with(Candidacy::new);
        if let Some(node) = &candidacy.node {
            return node.clone();
        }
        let (candidates, access, identity) = (&self.candidates, &self.access, self.identity.as_bytes());
        let prefix = &candidacy.prefix.clone();
        let mut sent = false;
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

    /// Looks at all candidates, and watches the predecessor of this one.
    async fn look(&self, node: &Node) -> Result<NextStep, StoreError> {
        let candidates = &self.candidates;
        let names = candidates.list().await?;
        let Some(place) = names.iter().position(|name| *name == node.name) else {
            return Ok(NextStep::CompeteAnew);
        };
        let Some(before) = place.checked_sub(1) else { return Ok(NextStep::Lead) };
        let leader = names[0].clone();
        let Some(identity) = candidates.identity_of(&leader).await? else { return Ok(NextStep::LookAgain) };
        let watched = candidates.client.check_and_watch_stat(&candidates.path(&names[before])).await;
        match watched.map_err(store_error)? {
            (Some(_), watcher) => Ok(NextStep::Follow { leader, identity, watcher }),
            (None, _) => Ok(NextStep::LookAgain),
        }
    }

    /// Leads until the node is gone.
    async fn lead(&self, node: &Node, retries: &mut Retries) {
        let (candidates, path) = (&self.candidates, self.candidates.path(&node.name));
        let limit = candidates.limit.min(self.session_timeout / RENEWALS);
        let election = format!("{}{}", candidates.root, candidates.base);
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

/// Waits until the session has ended.
async fn terminated(client: &Client) -> SessionState {
    let mut states = client.state_watcher();
    let mut state = states.state();
    while !state.is_terminated() {
        state = states.changed().await;
    }
    state
}

/// Returns a random text for the name of a new node.
#[expect(
    clippy::disallowed_methods,
    reason = "it must differ between processes, which a seed would not make it"
)]
fn guid() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// The renewals of a leader per session timeout.
const RENEWALS: u32 = 6;
