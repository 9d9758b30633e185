//! An etcd lease that is kept alive, and what we hold under it.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KeyValue, KvClient, LeaseClient, LeaseKeepAliveStream,
    LeaseKeeper, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{
    candidate::{LeaderInfo, info},
    client::{ENGINE, bounded},
    store::EtcdStore,
};
use crate::{
    clock::Moment,
    election::publisher::{Office, deadline},
    reconnect::Reconnect,
    store::{Fence, StoreError, unavailable},
};

/// How to reach etcd.
#[derive(Clone)]
pub(super) struct Etcd {
    pub kv: KvClient,
    pub lease: LeaseClient,
    /// For its watches.
    pub store: EtcdStore,
    /// Of each request.
    pub limit: Duration,
}

/// A lease in etcd. Its keys are gone soon after it is no longer kept.
pub(super) struct Session {
    etcd: Etcd,
    office: Office,
    election: String,
    pub lease: i64,
    /// As the server granted it.
    ttl: Duration,
    state: Mutex<State>,
}

struct State {
    /// The lease lives at least until then.
    alive: Moment,
    held: Option<Held>,
    /// A key may be ours without our knowing: it is being created, or the answer to that was lost.
    unsure: bool,
}

/// The key that we created.
struct Held {
    key: Vec<u8>,
    revision: i64,
    /// It makes us leader.
    leads: bool,
}

/// Why a session or a candidacy is over.
#[derive(Debug)]
pub(super) enum Lost {
    /// Our key was deleted.
    Key,
    /// The lease has ended, with all that was held under it.
    Lease,
}

/// Who has a key.
pub(super) struct Holder {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub revision: i64,
}

impl Holder {
    pub fn info(&self) -> LeaderInfo {
        info(&self.key, &self.value)
    }
}

impl Etcd {
    pub fn new(client: Client, limit: Duration) -> Self {
        let (kv, lease) = (client.kv_client(), client.lease_client());
        Self { kv, lease, store: EtcdStore::new(client).request_timeout(limit), limit }
    }

    /// The key with this prefix that was created first.
    pub async fn first(&self, prefix: &str) -> Result<Option<Holder>, StoreError> {
        let options =
            GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let answer = bounded(self.limit, self.kv.clone().get(prefix, Some(options))).await?;
        Ok(answer.kvs().first().map(holder))
    }

    /// All keys with this prefix.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Holder>, StoreError> {
        let options = GetOptions::new().with_prefix();
        let answer = bounded(self.limit, self.kv.clone().get(prefix, Some(options))).await?;
        Ok(answer.kvs().iter().map(holder).collect())
    }

    pub async fn read(&self, key: &[u8]) -> Result<Option<Holder>, StoreError> {
        let answer = bounded(self.limit, self.kv.clone().get(key, None)).await?;
        Ok(answer.kvs().first().map(holder))
    }

    /// Deletes a key if it is still the one that was created at this revision.
    pub async fn delete(&self, key: &[u8], revision: i64) -> Result<bool, StoreError> {
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, revision)])
            .and_then([TxnOp::delete(key, None)]);
        Ok(bounded(self.limit, self.kv.clone().txn(txn)).await?.succeeded())
    }
}

impl Session {
    /// Asks for a lease of at least `ttl`.
    pub async fn begin(
        etcd: Etcd,
        office: Office,
        election: &str,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let sent = Moment::now();
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted = bounded(etcd.limit, etcd.lease.clone().grant(seconds, None)).await?;
        let ttl = Duration::from_secs(granted.ttl().unsigned_abs());
        let state = Mutex::new(State { alive: deadline(sent, ttl), held: None, unsure: false });
        Ok(Self { etcd, office, election: election.to_owned(), lease: granted.id(), ttl, state })
    }

    /// Creates the key under this lease, or returns who has it. Asked again for a key that is ours it returns ourselves, so
    /// a call whose answer was lost may be repeated.
    pub async fn create(&self, key: &[u8], value: &[u8]) -> Result<Holder, StoreError> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease)));
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        self.state.lock().unsure = true;
        let answer = bounded(self.etcd.limit, self.etcd.kv.clone().txn(txn)).await?;
        self.state.lock().unsure = false;
        let mut found = None;
        if answer.succeeded() {
            let revision = answer.header().ok_or_else(|| unavailable("no header"))?.revision();
            self.holds(key, revision);
            return Ok(Holder { key: key.to_owned(), value: value.to_owned(), revision });
        }
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(get) = response {
                // Others may write under our lease, too.
                let ours = |kv: &KeyValue| kv.lease() == self.lease && kv.value() == value;
                found = get.kvs().first().map(|kv| (holder(kv), ours(kv)));
            }
        }
        let (holder, ours) = found.ok_or_else(|| unavailable("no key in the answer"))?;
        if ours {
            self.holds(key, holder.revision);
        }
        Ok(holder)
    }

    pub fn holds_nothing(&self) -> bool {
        self.state.lock().held.is_none()
    }

    /// Whether this is the key that we hold.
    pub fn is_held(&self, holder: &Holder) -> bool {
        let state = self.state.lock();
        state.held.as_ref().is_some_and(|held| held.revision == holder.revision && held.key == holder.key)
    }

    /// Whether the key that we hold was deleted, according to an event.
    pub fn is_gone(&self, key: &str, order: Option<u64>) -> bool {
        let state = self.state.lock();
        let held = state.held.as_ref().filter(|held| held.key == key.as_bytes());
        held.is_some_and(|held| order > Some(held.revision.unsigned_abs()))
    }

    fn holds(&self, key: &[u8], revision: i64) {
        let held = Held { key: key.to_owned(), revision, leads: false };
        self.state.lock().held = Some(held);
    }

    /// The key that we hold makes us leader.
    pub fn leads(&self) {
        let mut state = self.state.lock();
        if let Some(held) = &mut state.held {
            held.leads = true;
        }
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        if let Some(held) = state.held.as_ref().filter(|held| held.leads) {
            let fence = Fence::new(ENGINE, self.election.as_str(), held.revision.unsigned_abs())
                .with_proof(held.key.clone());
            self.office.lead(fence, state.alive);
        }
    }

    /// Keeps the lease alive until that can't be done any more.
    pub async fn keep(&self) -> Lost {
        let mut reconnect = Reconnect::new(format!("etcd lease of {}", self.election));
        let mut channel = None;
        let mut renewed = Moment::now();
        loop {
            (renewed + self.ttl / 3).passed().await;
            loop {
                match self.renew(&mut channel).await {
                    Ok(None) => break,
                    Ok(Some(lost)) => return lost,
                    Err(error) => {
                        channel = None;
                        let pause = reconnect.next_delay(&error);
                        self.office.interrupted(error);
                        sleep(pause.min(self.ttl / 6)).await;
                    }
                }
            }
            reconnect.connected();
            renewed = Moment::now();
        }
    }

    /// One renewal: that our key is there, read through a quorum, and then a sign of life.
    ///
    /// The time counts from before the read. A member that is no leader any more may still renew a lease in its own books;
    /// but whoever became leader after the read gives each lease its whole TTL from then on.
    async fn renew(&self, channel: &mut Option<Channel>) -> Result<Option<Lost>, StoreError> {
        let limit = self.etcd.limit.min(self.ttl / 3);
        let sent = Moment::now();
        let held = self.state.lock().held.as_ref().map(|held| (held.key.clone(), held.revision));
        let (key, revision) = held.unwrap_or_else(|| (self.election.clone().into_bytes(), 0));
        let options = GetOptions::new().with_keys_only();
        let answer = bounded(limit, self.etcd.kv.clone().get(key, Some(options))).await?;
        let found = answer.kvs().first().map(KeyValue::create_revision);
        let is_alive = bounded(limit, async {
            let Some((keeper, answers)) = channel else {
                // Opening the channel is a renewal, too.
                return match self.etcd.lease.clone().keep_alive(self.lease).await {
                    Ok(opened) => {
                        *channel = Some(opened);
                        Ok(true)
                    }
                    Err(Error::LeaseKeepAliveError(reason)) if reason == "lease not found" => Ok(false),
                    Err(error) => Err(error),
                };
            };
            keeper.keep_alive().await?;
            match answers.message().await? {
                Some(answer) => Ok(answer.ttl() > 0),
                None => Err(Error::LeaseKeepAliveError("the server ended the keepalive".into())),
            }
        })
        .await?;
        if !is_alive {
            return Ok(Some(Lost::Lease));
        }
        if revision != 0 && found != Some(revision) {
            return Ok(Some(Lost::Key));
        }
        let mut state = self.state.lock();
        state.alive = deadline(sent, self.ttl);
        self.publish(&state);
        Ok(None)
    }

    /// Gives our key back, if there is one. The session stays, unless it is needed to undo what may have happened. After an
    /// error it is gone, and with it the key in a while.
    pub async fn withdraw(self) -> Result<Option<Self>, StoreError> {
        let (held, unsure) = {
            let mut state = self.state.lock();
            (state.held.take(), state.unsure)
        };
        let deleted = match held {
            _ if unsure => false,
            Some(held) => self.etcd.delete(&held.key, held.revision).await.is_ok(),
            None => true,
        };
        // A connection that was lost with the answer may be back for this.
        if deleted { Ok(Some(self)) } else { self.end().await.map(|()| None) }
    }

    /// Ends the lease and deletes what is held under it. Tried once: what can't be told ends by itself.
    pub async fn end(self) -> Result<(), StoreError> {
        bounded(self.etcd.limit, self.etcd.lease.clone().revoke(self.lease)).await.map(drop)
    }
}

type Channel = (LeaseKeeper, LeaseKeepAliveStream);

fn holder(kv: &KeyValue) -> Holder {
    Holder { key: kv.key().to_vec(), value: kv.value().to_vec(), revision: kv.create_revision() }
}
