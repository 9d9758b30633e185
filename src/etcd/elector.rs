//! Elections on etcd, in the layout of Go's `clientv3/concurrency`.

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::Client;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{
    campaign::{Campaign, Command, Contest},
    candidate::{LeaderInfo, SHORTEST, prefix, value},
    notices::{self, LeaderNotice},
    session::{Etcd, Session},
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::Desk,
        publisher::{LONGEST, Office, check_time, check_timeout},
    },
    engine::config::ConfigError,
    store::StoreError,
};

/// A candidate in an election on etcd.
///
/// Candidates create keys under the election's name, `name/` and the lease in hexadecimal; the oldest key leads. This is how
/// Go's `clientv3/concurrency` and `etcdctl elect` do it, so that all of them can take part in one election. A candidate's
/// value is the JSON `{"id":…,"addr":…}`; a value of any other form is taken for an id.
///
/// What pingcap/tiflow's `dm/pkg/election` offers, and what it is here:
///
/// | tiflow | here | shown by |
/// |---|---|---|
/// | [`NewElection`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#NewElection) | [`EtcdElector::builder`], [`session_ttl`](EtcdElectorBuilder::session_ttl), [`id`](EtcdElectorBuilder::id), [`address`](EtcdElectorBuilder::address), [`block_time`](EtcdElectorBuilder::block_time), [`start`](EtcdElectorBuilder::start) | `settings_that_cannot_be_used_are_told_with_their_rule` |
/// | [`NewElection`, early error`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#NewElection) | [`start`](EtcdElectorBuilder::start), three tries | `without_a_server_or_an_answer_start_fails_in_bounded_time` |
/// | [`IsLeader`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.IsLeader) | [`Elector::is_leader`] | `one_of_many_is_elected_and_all_know_who` |
/// | [`ID`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.ID) | [`Elector::identity`] | `one_of_many_is_elected_and_all_know_who` |
/// | [`LeaderInfo`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.LeaderInfo) | [`leader_info`](Self::leader_info) | `leader_info_tells_the_key_the_id_and_the_address_whatever_is_in_them` |
/// | [`LeaderNotify`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.LeaderNotify) | [`leader_notices`](Self::leader_notices) | `notices_tell_each_change_of_the_leader_and_end_with_the_elector` |
/// | [`IsLeader`, `RetireFromLeader`, `IsNotLeader`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#pkg-constants) | [`LeaderNotice`] | `notices_tell_each_change_of_the_leader_and_end_with_the_elector` |
/// | [`CampaignerInfo`, `String`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#CampaignerInfo) | [`LeaderInfo`] and its `Display` | `leader_info_tells_the_key_the_id_and_the_address_whatever_is_in_them` |
/// | [`ErrorNotify`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.ErrorNotify) | [`error_notices`](Self::error_notices) | `error_notices_tell_what_goes_wrong_and_last_that_it_has_ended` |
/// | [`Resign`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.Resign) | [`Elector::resign`] | `another_takes_over_after_resign` |
/// | [`EvictLeader`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.EvictLeader) | [`evict_leader`](Self::evict_leader) | `a_leader_that_is_evicted_keeps_out_and_knows_who_leads_until_that_is_cancelled` |
/// | [`CancelEvictLeader`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.CancelEvictLeader) | [`cancel_evict_leader`](Self::cancel_evict_leader) | `a_leader_that_is_evicted_keeps_out_and_knows_who_leads_until_that_is_cancelled` |
/// | [`ClearSessionIfNeeded`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.ClearSessionIfNeeded) | [`clear_session_if_needed`](Self::clear_session_if_needed) | `the_keys_of_one_id_are_cleared_and_no_others` |
/// | [`Close`](https://pkg.go.dev/github.com/pingcap/tiflow/dm/pkg/election#Election.Close) | [`Elector::close`] | `close_is_idempotent_and_prompt_while_a_campaign_blocks` |
///
/// When the session ends, so does the campaign, and both start anew. A renewal is a read of our key through a quorum and
/// a sign of life for the lease, a third of the TTL after the one before; etcd writes nothing for it. The time of a leader
/// counts from before that read, so that also a member that is cut off from the others cannot prolong it.
///
/// ```no_run
/// # async fn example(client: etcd_client::Client) -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, etcd::EtcdElector};
///
/// let elector = EtcdElector::builder(client, "controllers/routes")
///     .id("pod-1")
///     .address("10.0.0.1:8080")
///     .session_ttl(Duration::from_secs(10))
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
    desk: Desk<Command>,
    etcd: Etcd,
    election: String,
    block_time: Duration,
}

/// Settings of an [`EtcdElector`].
#[derive(Clone)]
#[must_use]
pub struct EtcdElectorBuilder {
    client: Client,
    election: String,
    id: String,
    address: String,
    session_ttl: Duration,
    block_time: Duration,
    request_timeout: Duration,
}

impl EtcdElector {
    /// Settings for a candidate in the election of this name. The client brings TLS, user and keepalive.
    pub fn builder(client: Client, election: impl Into<String>) -> EtcdElectorBuilder {
        EtcdElectorBuilder {
            client,
            election: election.into(),
            id: String::new(),
            address: String::new(),
            session_ttl: Duration::from_secs(60),
            block_time: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// Asks etcd who leads. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NoLeader`] if nobody does, [`ElectionError::Store`] if etcd does not tell.
    pub async fn leader_info(&self) -> Result<LeaderInfo, ElectionError> {
        match self.etcd.first(&prefix(&self.election)).await? {
            Some(leader) => Ok(leader.info()),
            None => Err(ElectionError::NoLeader { election: self.election.clone() }),
        }
    }

    /// Tells each change of the leader: ourselves, somebody else, or that we retired.
    ///
    /// A notice that is not taken within the [`block_time`](EtcdElectorBuilder::block_time) is left out, which is told as an
    /// error; [`Elector::events`] leaves nothing out.
    pub fn leader_notices(&self) -> mpsc::Receiver<LeaderNotice> {
        let (sender, notices) = mpsc::channel(1);
        let (etcd, prefix) = (self.etcd.clone(), prefix(&self.election));
        tokio::spawn(notices::tell_leaders(self.desk.office.clone(), etcd, prefix, self.block_time, sender));
        notices
    }

    /// Tells what goes wrong; the elector goes on trying. The last one is that it has ended. What is not taken within the
    /// [`block_time`](EtcdElectorBuilder::block_time) is left out.
    pub fn error_notices(&self) -> mpsc::Receiver<Arc<ElectionError>> {
        let (sender, notices) = mpsc::channel(1);
        tokio::spawn(notices::tell_errors(self.desk.office.clone(), self.block_time, sender));
        notices
    }

    /// Resigns and keeps out of the election, in whatever state this candidate is, until
    /// [`cancel_evict_leader`](Self::cancel_evict_leader) is called. Cancel safe.
    ///
    /// # Errors
    ///
    /// As of [`Elector::resign`].
    pub async fn evict_leader(&self) -> Result<(), ElectionError> {
        self.desk.ask(|answer| Command::Evict(true, answer)).await
    }

    /// Takes part in the election again. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Closed`] if this elector has ended.
    pub async fn cancel_evict_leader(&self) -> Result<(), ElectionError> {
        self.desk.ask(|answer| Command::Evict(false, answer)).await
    }

    /// Deletes the keys of the candidate with this id, if there are any, and returns whether there were: what a process that
    /// was killed left behind need not be waited for.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Store`] if etcd does not answer.
    pub async fn clear_session_if_needed(&self, id: &str) -> Result<bool, ElectionError> {
        let mut cleared = false;
        for candidate in self.etcd.list(&prefix(&self.election)).await? {
            if candidate.info().id == id {
                cleared |= self.etcd.delete(&candidate.key, candidate.revision).await?;
            }
        }
        Ok(cleared)
    }
}

impl EtcdElectorBuilder {
    /// Who this candidate is. It must be set, and differ from the ids of all others.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Where others reach this candidate if it leads; empty unless set.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// How long others wait for a leader that is silent; 60 s unless set. etcd takes whole seconds; more than that is rounded
    /// up, and a cluster may insist on more.
    pub fn session_ttl(mut self, session_ttl: Duration) -> Self {
        self.session_ttl = session_ttl;
        self
    }

    /// How long a notice waits for somebody to take it; 10 s unless set.
    pub fn block_time(mut self, block_time: Duration) -> Self {
        self.block_time = block_time;
        self
    }

    /// How long each request may take; 5 s unless set. A renewal gives up earlier, if the TTL demands it.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Begins a session, and takes part in the election. Three tries, 200 ms apart; afterwards the elector goes on for as long
    /// as it takes whenever a session ends.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if the first session cannot be had.
    pub async fn start(self) -> Result<EtcdElector, ElectionError> {
        if self.election.is_empty() {
            return Err(ConfigError::new("election", &self.election, "not empty").into());
        }
        if self.id.trim().is_empty() {
            return Err(ConfigError::new("id", &self.id, "not blank").into());
        }
        check_time("session_ttl", self.session_ttl, SHORTEST..=LONGEST)?;
        check_timeout("request_timeout", self.request_timeout)?;
        let etcd = Etcd::new(self.client, self.request_timeout);
        let office = Office::new(format!("{} in etcd election {}", self.id, self.election));
        let begin = || Session::begin(etcd.clone(), office.clone(), &self.election, self.session_ttl);
        let mut session = begin().await;
        for _ in 0..2 {
            if matches!(session, Err(StoreError::Unavailable { .. })) {
                sleep(RETRY).await;
                session = begin().await;
            }
        }
        let session = session?;
        let campaign = Campaign {
            value: value(&self.id, &self.address),
            etcd: etcd.clone(),
            office: office.clone(),
            election: self.election.clone(),
            contest: Contest::Queue,
            ttl: self.session_ttl,
            session: Some(session),
            evicted: false,
            rest: None,
        };
        let (desk, orders) = Desk::new(self.id.into(), office);
        tokio::spawn(campaign.run(orders));
        Ok(EtcdElector { desk, etcd, election: self.election, block_time: self.block_time })
    }
}

impl Elector for EtcdElector {
    fn identity(&self) -> &str {
        &self.desk.identity
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.desk.office.leadership()
    }

    fn events(&self) -> Events {
        self.desk.office.events()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.desk.ask(Command::Resign).await
    }

    async fn close(&self) {
        self.desk.close().await;
    }
}

impl fmt::Debug for EtcdElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdElector")
            .field("election", &self.election)
            .field("id", &self.desk.identity)
            .finish_non_exhaustive()
    }
}

/// Between two tries to begin the first session.
const RETRY: Duration = Duration::from_millis(200);
