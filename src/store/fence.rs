//! Fencing: how a store rejects writes from a leader that has been replaced.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::StoreError;

/// Proof of leadership that a store checks as part of a write.
///
/// A leader that was paused may wake up after its successor took over and send an old write. The
/// leader's own clock cannot prevent that: the pause may fall between the last reading of the clock
/// and the write. The write therefore carries a fence, and the backend refuses the write in the
/// same transaction if the leadership has ended. The idea is Martin Kleppmann's ("How to do
/// distributed locking", 2016). Where the backend allows it, a store here compares the fence with
/// the election itself and not only with the greatest token that it saw.
///
/// An [`Elector`](crate::election::Elector) creates fences;
/// [`Leadership::fence`](crate::election::Leadership::fence) returns the current one. A store
/// checks the fences of its own backend, from the same cluster. For Redis, server and database must
/// be the same.
///
/// | store | checks the fences of | and accepts the write if |
/// |---|---|---|
/// | etcd | the etcd electors | the leader's key exists, and nobody has written it since |
/// | ZooKeeper | the ZooKeeper elector | the leader's node exists |
/// | Redis | the Redis elector | the lock's value is the leader's |
/// | memory | all | it saw no greater token of the same election |
///
/// A write whose fence does not hold returns [`StoreError::Fenced`]. A fence that the store cannot
/// check gives [`StoreError::Invalid`]. In both cases nothing was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    engine: &'static str,
    election: Arc<str>,
    token: u64,
    proof: Bytes,
}

impl Fence {
    /// Creates a fence. Only the author of an elector needs this.
    ///
    /// `engine` names the backend that can check it, `election` the object that the candidates
    /// compete for. Each leader of an election needs a greater `token` than the leader before.
    pub fn new(engine: &'static str, election: impl Into<Arc<str>>, token: u64) -> Self {
        Self { engine, election: election.into(), token, proof: Bytes::new() }
    }

    /// Adds the bytes that the backend checks, where election and token are not enough.
    #[must_use]
    pub fn with_proof(self, proof: impl Into<Bytes>) -> Self {
        Self { proof: proof.into(), ..self }
    }

    /// The backend that can check the fence: `"etcd"`, `"zookeeper"`, `"redis"`, or the name that
    /// another elector uses.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// The object that the candidates compete for: the election's name, base path, or lock key.
    pub fn election(&self) -> &str {
        &self.election
    }

    /// The number of the leadership, greater than those of all earlier leaders of the election.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The bytes that the backend checks: the leader's key or node, or the value of its lock.
    pub fn proof(&self) -> &[u8] {
        &self.proof
    }

    /// Returns the fence if it belongs to `engine`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if it belongs to another one.
    pub fn of(&self, engine: &'static str) -> Result<&Self, StoreError> {
        if self.engine == engine {
            return Ok(self);
        }
        let reason = format!("{engine} cannot check a fence of {}", self.engine);
        Err(StoreError::Invalid { reason, source: None })
    }

    /// Returns the error of a write whose fence the backend refused.
    pub fn refused(&self) -> StoreError {
        StoreError::Fenced { token: self.token }
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({} {:?}, token {})", self.engine, self.election, self.token)
    }
}
