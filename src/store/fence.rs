//! What keeps the writes of a leader that is none any more out of a store.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::StoreError;

/// Proof that its holder leads, for the store to check as part of a write.
///
/// A leader that was paused may wake up after its successor took over, and send what it had in mind. No clock of its own
/// can prevent that: the pause may come between the last look at the clock and the write. So the write carries a fence, and
/// the engine refuses it in the same transaction if the leadership is over. (The idea is Martin Kleppmann's, "How to do
/// distributed locking", 2016; here the engine compares with the election itself, where it can, and not only with what was
/// written last.)
///
/// An [`Elector`](crate::election::Elector) makes fences; [`Leadership::fence`](crate::election::Leadership::fence) tells
/// the current one. Each store checks those of its own engine, in the same place: the same cluster, for Redis the same
/// server and database.
///
/// | store | takes the fences of | and accepts the write if |
/// |---|---|---|
/// | etcd | the etcd electors | the leader's key exists, with the same create revision |
/// | ZooKeeper | the ZooKeeper elector | the leader's node exists |
/// | Redis | the Redis elector | the lock's value is the leader's |
/// | memory | all | it saw no greater token of the same election |
///
/// A write that a fence refuses is [`StoreError::Fenced`]; a fence that the store cannot check is [`StoreError::Invalid`].
/// Either way nothing was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    engine: &'static str,
    election: Arc<str>,
    token: u64,
    proof: Bytes,
}

impl Fence {
    /// For electors and stores of one's own. `engine` names where it can be checked, `election` what the candidates there
    /// compete for; tokens grow from one leader of an election to the next.
    pub fn new(engine: &'static str, election: impl Into<Arc<str>>, token: u64) -> Self {
        Self { engine, election: election.into(), token, proof: Bytes::new() }
    }

    /// Adds what the engine looks at, if election and token are not enough.
    #[must_use]
    pub fn with_proof(self, proof: impl Into<Bytes>) -> Self {
        Self { proof: proof.into(), ..self }
    }

    /// Where it can be checked: `"etcd"`, `"zookeeper"`, `"redis"`, or what another elector says.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// What the candidates compete for: the name of the election, the base path, the key of the lock.
    pub fn election(&self) -> &str {
        &self.election
    }

    /// The leadership's number: greater than those of all leaders before, in the same election.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// What the engine looks at: the leader's key or node, or the value of its lock.
    pub fn proof(&self) -> &[u8] {
        &self.proof
    }

    /// Itself, if it is of this engine.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if it isn't.
    pub fn of(&self, engine: &'static str) -> Result<&Self, StoreError> {
        if self.engine == engine {
            return Ok(self);
        }
        let reason = format!("a fence of {} cannot be checked by {engine}", self.engine);
        Err(StoreError::Invalid { reason, source: None })
    }

    /// What a store says whose engine refused it.
    pub fn refused(&self) -> StoreError {
        StoreError::Fenced { token: self.token }
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({} {:?}, token {})", self.engine, self.election, self.token)
    }
}
