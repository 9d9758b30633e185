//! An etcd lease that is kept alive, and the key that a candidate holds under it.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KeyValue, KvClient, LeaseClient, LeaseGrantOptions,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{
    candidate::{LeaderInfo, info, lease_of},
    client::{ENGINE, bounded, get, has_lost_its_lease, store_error, transact},
    store::EtcdStore,
};
use crate::{
    clock::Moment,
    election::{
        publisher::{LeadershipPublisher, believed_until},
        retries::Retries,
    },
    store::{Fence, StoreError, resume, unavailable},
};

/// The clients of one etcd cluster.
#[derive(Clone)]
pub(super) struct Etcd {
    pub kv: KvClient,
    pub lease: LeaseClient,
    /// The store, for its watches.
    pub store: EtcdStore,
    /// The longest time of each request.
    pub limit: Duration,
}

/// A lease in etcd, for one key of a candidate. The key expires when nobody keeps the lease alive.
pub(super) struct Session {
    etcd: Etcd,
    publisher: LeadershipPublisher,
    election: String,
    key: Vec<u8>,
    /// The candidate's value in its key.
    value: Vec<u8>,
    lease: i64,
    /// The TTL that etcd granted.
    ttl: Duration,
    state: Mutex<State>,
}

/// A lease that etcd has granted.
pub(super) struct Granted {
    lease: i64,
    ttl: Duration,
    /// The end of its guaranteed life.
    alive: Moment,
}

struct State {
    /// The last renewal, or the begin.
    renewed: Moment,
    /// The end of the lease's guaranteed life.
    alive: Moment,
    held: Option<Held>,
    /// The candidate may hold a key without knowing: the request to create it is in flight, or its
    /// answer was lost.
    unsure: bool,
}

/// The candidate created its key, and nobody has written it since.
struct Held {
    /// The revision at which the key was created, and last written.
    revision: i64,
    /// The key makes the candidate leader.
    leads: bool,
}

/// The end of a session or a candidacy.
#[derive(Debug)]
pub(super) enum Lost {
    /// The candidate's key was deleted or written over.
    Key,
    /// The lease expired, and its keys with it.
    Lease,
    /// The server refuses the candidate's key for its size, and will do so each time.
    TooLarge(StoreError),
}

/// A candidate's key, as etcd has it.
pub(super) struct Holder {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The revision at which the key was created.
    pub created: i64,
    /// The revision of the last write of the key.
    pub written: i64,
    /// The lease to which that write attached the key, or 0.
    pub lease: i64,
}

/// The result of the deletion of a candidate's key.
#[derive(PartialEq)]
pub(super) enum Deletion {
    Deleted,
    /// The key was gone already.
    Gone,
    /// The key is left alone: another program has written another value into it.
    Foreign,
}

impl Holder {
    pub fn info(&self) -> LeaderInfo {
        info(&self.key, &self.value)
    }
}

impl Etcd {
    pub fn new(client: Client, limit: Duration) -> Self {
        let lease = client.lease_client();
        let store = EtcdStore::new(client).request_timeout(limit);
        // Like the store's, it takes answers of any size: other candidates may have large values.
        Self { kv: store.kv.clone(), lease, store, limit }
    }

    /// Reads the oldest key with this prefix. A key that outlived its candidate counts for nothing:
    /// it is named after a lease that has ended, and a write without a lease detached it from that.
    pub async fn first(&self, prefix: &str) -> Result<Option<Holder>, StoreError> {
        let mut since = 0;
        loop {
            let options = GetOptions::new()
                .with_prefix()
                .with_min_create_revision(since)
                .with_sort(SortTarget::Create, SortOrder::Ascend)
                .with_limit(1);
            let answer = get(self.limit, &self.kv, prefix, options).await?;
            let Some(first) = answer.kvs().first().map(holder) else { return Ok(None) };
            match lease_of(&first.key, prefix) {
                Some(lease) if first.lease == 0 && !self.is_alive(lease).await? => since = first.created + 1,
                _ => return Ok(Some(first)),
            }
        }
    }

    /// Asks for a lease with this id, of at least `ttl`.
    pub async fn grant(&self, lease: i64, ttl: Duration) -> Result<Granted, StoreError> {
        let sent = Moment::now();
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = || {
            let mut client = self.lease.clone();
            let options = LeaseGrantOptions::new().with_id(lease);
            async move { client.grant(seconds, Some(options)).await }
        };
        let granted = bounded(self.limit, request).await?;
        let ttl = Duration::from_secs(granted.ttl().unsigned_abs());
        Ok(Granted { lease, ttl, alive: believed_until(sent, ttl) })
    }

    /// Ends a lease, and its keys with it.
    pub async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        let request = || {
            let mut client = self.lease.clone();
            async move { client.revoke(lease).await }
        };
        match bounded(self.limit, request).await {
            Err(error) if !has_lost_its_lease(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens a channel for renewals of this lease, which also renews it; `None` if the lease has
    /// ended.
    async fn keep_alive(&self, lease: i64, limit: Duration) -> Result<Option<Channel>, StoreError> {
        let request = || {
            let mut client = self.lease.clone();
            async move {
                match client.keep_alive(lease).await {
                    Err(Error::LeaseKeepAliveError(reason)) if reason == "lease not found" => Ok(None),
                    opened => opened.map(Some),
                }
            }
        };
        bounded(limit, request).await
    }

    async fn is_alive(&self, lease: i64) -> Result<bool, StoreError> {
        let request = || {
            let mut client = self.lease.clone();
            async move { client.time_to_live(lease, None).await }
        };
        Ok(bounded(self.limit, request).await?.ttl() >= 0)
    }

    /// Reads all keys with this prefix.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Holder>, StoreError> {
        let options = GetOptions::new().with_prefix();
        let answer = get(self.limit, &self.kv, prefix, options).await?;
        Ok(answer.kvs().iter().map(holder).collect())
    }

    pub async fn read(&self, key: &str) -> Result<Option<Holder>, StoreError> {
        let answer = get(self.limit, &self.kv, key, GetOptions::new()).await?;
        Ok(answer.kvs().first().map(holder))
    }

    /// Deletes a key that was created at this revision and still has this value.
    pub async fn delete(&self, key: &[u8], value: &[u8], created: i64) -> Result<Deletion, StoreError> {
        let is_same = Compare::create_revision(key, CompareOp::Equal, created);
        let txn = Txn::new()
            .when([is_same, Compare::value(key, CompareOp::Equal, value)])
            .and_then([TxnOp::delete(key, None)])
            .or_else([TxnOp::get(key, Some(GetOptions::new().with_keys_only()))]);
        let answer = transact(self.limit, &self.kv, txn).await?;
        if answer.succeeded() {
            return Ok(Deletion::Deleted);
        }
        let found = |response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().is_some_and(|kv| kv.create_revision() == created),
            _ => false,
        };
        let is_left = answer.op_responses().into_iter().any(found);
        Ok(if is_left { Deletion::Foreign } else { Deletion::Gone })
    }
}

impl Session {
    pub fn new(
        etcd: Etcd,
        publisher: LeadershipPublisher,
        election: &str,
        key: Vec<u8>,
        value: &[u8],
        Granted { lease, ttl, alive }: Granted,
    ) -> Self {
        let renewed = Moment::now();
        let state = Mutex::new(State { renewed, alive, held: None, unsure: false });
        Self {
            etcd,
            publisher,
            election: election.to_owned(),
            key,
            value: value.to_owned(),
            lease,
            ttl,
            state,
        }
    }

    /// Creates the key under this lease, or returns its holder. The call may be repeated when its
    /// answer was lost: it then finds the key that it created.
    pub async fn create(&self) -> Result<Result<Holder, Lost>, StoreError> {
        let (key, value) = (self.key.as_slice(), self.value.as_slice());
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease)));
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        self.state.lock().unsure = true;
        let answer = match transact(self.etcd.limit, &self.etcd.kv, txn).await {
            Err(error) if has_lost_its_lease(&error) => return Ok(Err(Lost::Lease)),
            Err(StoreError::TooLarge { reason, source }) => {
                let (value, key) = (value.len(), key.len());
                let reason =
                    format!("the value with the identity has {value} bytes, and the key {key}: {reason}");
                return Ok(Err(Lost::TooLarge(StoreError::TooLarge { reason, source })));
            }
            answer => answer?,
        };
        self.state.lock().unsure = false;
        if answer.succeeded() {
            let revision = answer.header().ok_or_else(|| unavailable("no header"))?.revision();
            self.holds(revision);
            let (key, value) = (key.to_owned(), value.to_owned());
            return Ok(Ok(Holder { key, value, created: revision, written: revision, lease: self.lease }));
        }
        let read = |response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(holder),
            _ => None,
        };
        let found = answer.op_responses().into_iter().find_map(read);
        let holder = found.ok_or_else(|| unavailable("no key in the answer"))?;
        // Others may write under this lease, too.
        if holder.lease == self.lease && holder.value == value && holder.written == holder.created {
            self.holds(holder.created);
        }
        Ok(Ok(holder))
    }

    pub fn holds_nothing(&self) -> bool {
        self.state.lock().held.is_none()
    }

    /// Returns whether this is the key that the candidate holds.
    pub fn is_held(&self, holder: &Holder) -> bool {
        let state = self.state.lock();
        holder.key == self.key && state.held.as_ref().is_some_and(|held| held.revision == holder.written)
    }

    /// Returns whether the write or deletion of a key at this revision took the candidate's key
    /// away.
    pub fn is_lost(&self, key: &str, revision: Option<u64>) -> bool {
        let state = self.state.lock();
        let held = state.held.as_ref().filter(|_| self.key == key.as_bytes());
        held.is_some_and(|held| revision > Some(held.revision.unsigned_abs()))
    }

    fn holds(&self, revision: i64) {
        self.state.lock().held = Some(Held { revision, leads: false });
    }

    /// Notes that the held key makes the candidate leader, and publishes it.
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
                .with_proof(self.key.clone());
            self.publisher.lead(fence, state.alive);
        }
    }

    /// Keeps the lease alive until the key or the lease is lost.
    pub async fn keep(&self, retries: &mut Retries) -> Lost {
        let mut channel = None;
        loop {
            let renewed = self.state.lock().renewed;
            (renewed + self.ttl / 3).passed().await;
            loop {
                match self.renew(&mut channel).await {
                    Ok(None) => break,
                    Ok(Some(lost)) => return lost,
                    Err(error) => {
                        channel = None;
                        let alive = self.state.lock().alive;
                        sleep(retries.renewal_failed(error, alive, self.ttl / 6)).await;
                    }
                }
            }
            retries.succeeded();
            self.state.lock().renewed = Moment::now();
        }
    }

    /// Renews once: reads the key through a quorum, and then renews the lease.
    ///
    /// The time counts from before the read. An etcd member that has lost its own leadership may
    /// still renew a lease, to no effect. A member that became leader after the read gives each
    /// lease its whole TTL from then on.
    async fn renew(&self, channel: &mut Option<Channel>) -> Result<Option<Lost>, StoreError> {
        let limit = self.etcd.limit.min(self.ttl / 3);
        let sent = Moment::now();
        let held = self.state.lock().held.as_ref().map(|held| held.revision);
        let options = GetOptions::new().with_keys_only();
        let answer = get(limit, &self.etcd.kv, self.key.as_slice(), options).await?;
        let found = answer.kvs().first().map(KeyValue::mod_revision);
        let is_alive = match channel {
            Some((keeper, answers)) => {
                let renewed = async {
                    keeper.keep_alive().await?;
                    answers.message().await
                };
                let answer = resume::bounded(limit, renewed, store_error).await?;
                answer.ok_or_else(|| unavailable("the server ended the keepalive"))?.ttl() > 0
            }
            None => {
                *channel = self.etcd.keep_alive(self.lease, limit).await?;
                channel.is_some()
            }
        };
        if !is_alive {
            return Ok(Some(Lost::Lease));
        }
        if held.is_some() && found != held {
            return Ok(Some(Lost::Key));
        }
        let mut state = self.state.lock();
        state.alive = believed_until(sent, self.ttl);
        self.publish(&state);
        Ok(None)
    }

    /// Deletes the held key. Ends the session if that fails, if it is unclear whether a key is
    /// held, and if another program has written over the key: the next session has another name for
    /// its key. After an error the session is gone, and etcd deletes the key when the lease expires.
    pub async fn withdraw(self) -> Result<Option<Self>, StoreError> {
        let (held, unsure) = {
            let mut state = self.state.lock();
            (state.held.take(), state.unsure)
        };
        let deleted = match held {
            _ if unsure => false,
            Some(held) => {
                let deleted = self.etcd.delete(&self.key, &self.value, held.revision).await;
                if let Ok(Deletion::Foreign) = deleted {
                    let key = String::from_utf8_lossy(&self.key);
                    tracing::warn!(%key, "another program has written over the candidate's key and may have it");
                }
                deleted.is_ok_and(|deleted| deleted != Deletion::Foreign)
            }
            None => true,
        };
        // The connection may be back by now.
        if deleted { Ok(Some(self)) } else { self.end().await.map(|()| None) }
    }

    /// Ends the lease, and its keys with it. Makes one try: without an answer the lease expires.
    pub async fn end(self) -> Result<(), StoreError> {
        self.etcd.revoke(self.lease).await
    }
}

type Channel = (LeaseKeeper, LeaseKeepAliveStream);

fn holder(kv: &KeyValue) -> Holder {
    Holder {
        key: kv.key().to_vec(),
        value: kv.value().to_vec(),
        created: kv.create_revision(),
        written: kv.mod_revision(),
        lease: kv.lease(),
    }
}
