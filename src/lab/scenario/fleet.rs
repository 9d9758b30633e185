//! The replicas of a run, in this process or elsewhere.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    replica::Replica,
    settings::{GRACE, LabError, Scenario, Strategy},
    write_log::WriteLog,
};
use crate::{
    lab::network::{NetworkFault, RemoteStore},
    store::Store,
};

/// The replicas of a run, as the observer controls them.
///
/// [`Scenario::run`] keeps them in this process. The example `contended_updates` starts a process
/// for each replica and runs the same scenarios.
pub trait Fleet {
    /// Asks all replicas to bring these keys to `round`.
    ///
    /// # Errors
    ///
    /// [`LabError::Fleet`] if a replica cannot be reached.
    fn want(&mut self, round: u64, keys: &[usize]) -> impl Future<Output = Result<(), LabError>>;

    /// Kills the leader, which performs no further action, and returns whether there was one. Under
    /// [`Strategy::Retry`], which has no leader, it kills any replica.
    fn kill_leader(&mut self) -> bool;

    /// Returns the number of replicas that consider themselves leader.
    fn leaders(&self) -> usize;

    /// Returns how many times a replica became leader. Killed replicas count.
    fn wins(&self) -> u64;

    /// Returns the writes that the replicas have recorded so far. Killed replicas count.
    fn write_log(&self) -> WriteLog;

    /// Stops the replicas. When it returns, the write log is complete.
    ///
    /// # Errors
    ///
    /// [`LabError::Fleet`] if a replica fails to stop.
    fn finish(&mut self) -> impl Future<Output = Result<(), LabError>>;
}

/// Replicas in this process, each behind its own simulated network.
pub(super) struct Local<S: Store> {
    strategy: Strategy,
    replicas: Vec<(RemoteStore<S>, Replica<RemoteStore<S>>)>,
    write_log: Arc<Mutex<WriteLog>>,
    wins_of_dead: u64,
}

impl<S: Store + Clone> Local<S> {
    pub async fn start(scenario: &Scenario, store: &S) -> Result<Self, LabError> {
        let write_log = Arc::<Mutex<WriteLog>>::default();
        let mut replicas = Vec::new();
        for index in 0..scenario.replicas {
            let remote = scenario.connect(index, store.clone());
            let log = write_log.clone();
            let record = move |event| log.lock().record(event);
            replicas.push((remote.clone(), Replica::start(scenario, index, remote, record).await?));
        }
        Ok(Self { strategy: scenario.strategy, replicas, write_log, wins_of_dead: 0 })
    }
}

impl<S: Store> Fleet for Local<S> {
    async fn want(&mut self, round: u64, keys: &[usize]) -> Result<(), LabError> {
        for (_, replica) in &self.replicas {
            replica.want(round, keys);
        }
        Ok(())
    }

    fn kill_leader(&mut self) -> bool {
        let any = self.strategy == Strategy::Retry;
        let Some(leader) = self.replicas.iter().position(|(_, replica)| any || replica.leads()) else {
            return false;
        };
        let (remote, replica) = self.replicas.remove(leader);
        remote.set_fault(NetworkFault::Dead);
        self.wins_of_dead += replica.wins();
        true
    }

    fn leaders(&self) -> usize {
        self.replicas.iter().filter(|(_, replica)| replica.leads()).count()
    }

    fn wins(&self) -> u64 {
        self.wins_of_dead + self.replicas.iter().map(|(_, replica)| replica.wins()).sum::<u64>()
    }

    fn write_log(&self) -> WriteLog {
        self.write_log.lock().clone()
    }

    async fn finish(&mut self) -> Result<(), LabError> {
        for (_, replica) in self.replicas.drain(..) {
            self.wins_of_dead += replica.wins();
            replica.finish(GRACE).await;
        }
        Ok(())
    }
}
