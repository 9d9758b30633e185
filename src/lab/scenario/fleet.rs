//! The replicas of a run, wherever they run.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    replica::Replica,
    settings::{GRACE, LabError, Scenario, Strategy},
    write_log::Ledger,
};
use crate::{
    lab::network::{Fault, Remote},
    store::Store,
};

/// The replicas of a run. [`Scenario::run`] has them in this process; `contended_updates` makes each one a process of its
/// own and runs the same scenarios.
pub trait Fleet {
    /// Tells all replicas that these keys should be at `round` now.
    fn want(&mut self, round: u64, keys: &[usize]) -> impl Future<Output = Result<(), LabError>>;

    /// Kills a replica that leads, so that nothing of it ever acts again. Returns whether there was one. Where replicas
    /// don't lead, one is as good as another.
    fn kill_leader(&mut self) -> bool;

    /// How many replicas think that they lead.
    fn leaders(&self) -> usize;

    /// How many times a replica became leader, those that were killed included.
    fn wins(&self) -> u64;

    /// What the replicas noted of their writes so far, those that were killed included.
    fn ledger(&self) -> Ledger;

    /// Ends the replicas. Afterwards the ledger is complete.
    fn finish(&mut self) -> impl Future<Output = Result<(), LabError>>;
}

/// Replicas in this process, each behind a network of its own.
pub(super) struct Local<S: Store> {
    strategy: Strategy,
    replicas: Vec<(Remote<S>, Replica<Remote<S>>)>,
    ledger: Arc<Mutex<Ledger>>,
    wins_of_dead: u64,
}

impl<S: Store + Clone> Local<S> {
    pub async fn start(scenario: &Scenario, store: &S) -> Result<Self, LabError> {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let mut replicas = Vec::new();
        for index in 0..scenario.replicas {
            let remote = scenario.connect(index, store.clone());
            let notes = ledger.clone();
            let pen = move |note| notes.lock().enter(note);
            replicas.push((remote.clone(), Replica::start(scenario, index, remote, pen).await?));
        }
        Ok(Self { strategy: scenario.strategy, replicas, ledger, wins_of_dead: 0 })
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
        remote.fail(Fault::Dead);
        self.wins_of_dead += replica.wins();
        true
    }

    fn leaders(&self) -> usize {
        self.replicas.iter().filter(|(_, replica)| replica.leads()).count()
    }

    fn wins(&self) -> u64 {
        self.wins_of_dead + self.replicas.iter().map(|(_, replica)| replica.wins()).sum::<u64>()
    }

    fn ledger(&self) -> Ledger {
        self.ledger.lock().clone()
    }

    async fn finish(&mut self) -> Result<(), LabError> {
        for (_, replica) in self.replicas.drain(..) {
            self.wins_of_dead += replica.wins();
            replica.finish(GRACE).await;
        }
        Ok(())
    }
}
