//! Elections on etcd, in the layout of Go's `clientv3/concurrency`.

use std::{fmt, time::Duration};

use etcd_client::Client;
use tokio::{sync::watch, time::sleep};

use super::{
    campaign::{Campaign, Candidacy, Command, Contest},
    candidate::{LeaderInfo, TTLS, json, prefix},
    session::{Deletion, Etcd},
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership, candidate::CandidateHandle,
        publisher::LeadershipPublisher,
    },
    engine::config::ConfigError,
    store::StoreError,
};

/// A candidate in an election on etcd.
///
/// Candidates create keys under the election's name: `name/` and their lease in hexadecimal. The
/// oldest key leads, so nothing else may have a key under `name/`. Go's `clientv3/concurrency` and
/// `etcdctl elect` use the same layout and can take part in the same election. A candidate's value is
/// the JSON `{"id":…,"addr":…}`; a value of any other form is read as an identity.
///
/// When the session ends, so does the candidacy, and both start anew. A renewal reads the
/// candidate's key through a quorum and then renews the lease, a third of the TTL after the renewal
/// before it; etcd writes nothing for it. The leader's time counts from before the read, so that an
/// etcd member that is cut off from the others cannot prolong it. Behind `etcd grpc-proxy` the proxy
/// renews the leases, so that a fiftieth of the TTL has to suffice for its requests to etcd.
///
/// A leader whose key another program writes over leads no more. It never deletes the other's value;
/// it begins a new session, and so has another key. The key that it left may have lost its lease in
/// that write, and then stays. Candidates here pass over such a key once the lease of its name has
/// ended, but Go's wait for it until somebody deletes it. Any other key without a lease leads until
/// somebody deletes it, as it does in Go.
///
/// With etcd's access control, a candidate needs read and write permission for the prefix `name/`,
/// and a client made with `with_auto_token_refresh`, because tokens expire. A candidate without
/// permission waits for it.
///
/// Users of pingcap/tiflow's `dm/pkg/election`: each of its calls is listed in
/// [docs/migrating.md](https://docs.rs/crate/writerlease/latest/source/docs/migrating.md).
///
/// ```no_run
/// # async fn example(client: etcd_client::Client) -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, etcd::EtcdElector};
///
/// let elector = EtcdElector::builder(client, "controllers/routes")
///     .identity("pod-1")
///     .address("10.0.0.1:8080")
///     .ttl(Duration::from_secs(10))
///     .start()
///     .await?;
/// let mut leadership = elector.leadership();
/// leadership.wait_for(|leadership| leadership.is_leader()).await.expect("the elector exists");
/// println!("{} leads", elector.identity());
/// elector.close().await;
/// # Ok(())
/// # }
/// ```
pub struct EtcdElector {
    pub(super) candidate: CandidateHandle<Command>,
    pub(super) etcd: Etcd,
    pub(super) election: String,
    /// The longest wait of a notice for its reader.
    pub(super) block_time: Duration,
}

/// The settings of an [`EtcdElector`].
#[derive(Clone)]
#[must_use]
pub struct EtcdElectorBuilder {
    client: Client,
    election: String,
    identity: String,
    address: String,
    ttl: Duration,
    request_timeout: Duration,
    pub(super) block_time: Duration,
}

impl EtcdElector {
    /// Settings for a candidate in the election of this name. TLS, the user and the keepalive are
    /// settings of the client.
    pub fn builder(client: Client, election: impl Into<String>) -> EtcdElectorBuilder {
        EtcdElectorBuilder {
            client,
            election: election.into(),
            identity: String::new(),
            address: String::new(),
            ttl: Duration::from_secs(60),
            request_timeout: Duration::from_secs(5),
            block_time: Duration::from_secs(10),
        }
    }

    /// Reads the leader from etcd. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NoLeader`] if the election has no candidate, [`ElectionError::Store`] if
    /// etcd refuses or does not answer.
    pub async fn leader_info(&self) -> Result<LeaderInfo, ElectionError> {
        match self.etcd.first(&prefix(&self.election)).await? {
            Some(leader) => Ok(leader.info()),
            None => Err(ElectionError::NoLeader { election: self.election.clone() }),
        }
    }

    /// Resigns and keeps out of the election until
    /// [`cancel_evict_leader`](Self::cancel_evict_leader), in any state of this candidate. Cancel
    /// safe.
    ///
    /// # Errors
    ///
    /// Those of [`Elector::resign`].
    pub async fn evict_leader(&self) -> Result<(), ElectionError> {
        self.candidate.ask(Command::Evict(true)).await
    }

    /// Takes part in the election again. On a candidate that is not evicted the call has no effect.
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Closed`] if this elector has ended.
    pub async fn cancel_evict_leader(&self) -> Result<(), ElectionError> {
        self.candidate.ask(Command::Evict(false)).await
    }

    /// Deletes the keys of the candidate with this identity, and returns whether there were any.
    /// The others then need not wait for the session of a process that was killed.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Store`] if etcd refuses or does not answer.
    pub async fn clear_session_if_needed(&self, identity: &str) -> Result<bool, ElectionError> {
        let mut cleared = false;
        for candidate in self.etcd.list(&prefix(&self.election)).await? {
            if candidate.info().identity == identity {
                let deleted = self.etcd.delete(&candidate.key, &candidate.value, candidate.created).await?;
                cleared |= deleted == Deletion::Deleted;
            }
        }
        Ok(cleared)
    }
}

impl EtcdElectorBuilder {
    /// The name of this candidate, unlike those of all others. It must be set. A name that is too
    /// large for a request, of 1.5 MiB by default, ends the elector with [`StoreError::TooLarge`].
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// The address at which others reach this candidate if it leads. Default: empty.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// How long others wait for a silent leader, from 1 s to a year. etcd counts whole seconds, so
    /// a fraction is rounded up; a cluster may insist on a longer time. Default: 60 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The longest time of each request, longer than zero. A renewal gives up earlier if the TTL
    /// requires it. Default: 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Begins a session, and takes part in the election. Makes three tries, 200 ms apart. Later,
    /// when a session ends, the elector retries without limit.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if etcd
    /// grants no session.
    pub async fn start(self) -> Result<EtcdElector, ElectionError> {
        ConfigError::not_empty("election", &self.election)?;
        ConfigError::not_blank("identity", &self.identity)?;
        ConfigError::within("ttl", self.ttl, TTLS)?;
        ConfigError::positive("request_timeout", self.request_timeout)?;
        let etcd = Etcd::new(self.client, self.request_timeout);
        let publisher =
            LeadershipPublisher::new(format!("{} in etcd election {}", self.identity, self.election));
        let mut campaign = Campaign::new(Candidacy {
            value: json(&self.identity, &self.address).into_bytes(),
            etcd: etcd.clone(),
            publisher: publisher.clone(),
            election: self.election.clone(),
            contest: Contest::Queue,
            ttl: self.ttl,
            evicted: false,
            rest: None,
        });
        let mut begun = campaign.begin().await;
        for _ in 0..2 {
            if matches!(begun, Err(StoreError::Unavailable { .. })) {
                sleep(RETRY).await;
                begun = campaign.begin().await;
            }
        }
        begun?;
        let candidate = CandidateHandle::start(self.identity, publisher, campaign);
        Ok(EtcdElector { candidate, etcd, election: self.election, block_time: self.block_time })
    }
}

impl Elector for EtcdElector {
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

    async fn resign(&self) -> Result<(), ElectionError> {
        self.candidate.resign().await
    }

    async fn close(&self) {
        self.candidate.close().await;
    }
}

impl fmt::Debug for EtcdElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdElector")
            .field("election", &self.election)
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

/// The pause between two tries to begin the first session.
const RETRY: Duration = Duration::from_millis(200);
