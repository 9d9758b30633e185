//! The replicas of a run, in this process or elsewhere.

use std::{collections::BTreeMap, future, sync::Arc};

use parking_lot::Mutex;

use super::{
    faults::ReplicaFaultKind,
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

    /// Kills a leader, which performs no further action. Returns its number, or `None` if there was
    /// none. Under [`Strategy::Retry`], which has no leader, it kills any replica.
    fn kill_leader(&mut self) -> Option<usize>;

    /// Begins a [fault](Scenario::faults) of a replica.
    ///
    /// # Errors
    ///
    /// [`LabError::Fleet`] if the fleet cannot do that, as by default.
    fn begin_fault(
        &mut self,
        replica: usize,
        kind: ReplicaFaultKind,
    ) -> impl Future<Output = Result<(), LabError>> {
        future::ready(Err(LabError::Fleet(format!("cannot begin {kind:?} of replica {replica}"))))
    }

    /// Ends a [fault](Scenario::faults) of a replica.
    ///
    /// # Errors
    ///
    /// [`LabError::Fleet`] if the fleet cannot do that, as by default.
    fn end_fault(
        &mut self,
        replica: usize,
        kind: ReplicaFaultKind,
    ) -> impl Future<Output = Result<(), LabError>> {
        future::ready(Err(LabError::Fleet(format!("cannot end {kind:?} of replica {replica}"))))
    }

    /// Returns the number of replicas that consider themselves leader, of any shard.
    fn leaders(&self) -> usize;

    /// Returns how many times a replica became leader, of any shard. Killed replicas count.
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
    scenario: Scenario,
    store: S,
    seats: Vec<Seat<S>>,
    /// The round that was requested last of each key; 0 if none was.
    wanted: Vec<u64>,
    write_log: Arc<Mutex<WriteLog>>,
    wins_of_dead: u64,
}

/// A place where a replica runs, dies and starts again.
struct Seat<S: Store> {
    /// Counts the starts.
    starts: u64,
    remote: RemoteStore<S>,
    /// `None` if the replica is down.
    replica: Option<Replica<RemoteStore<S>>>,
    is_paused: bool,
}

impl<S: Store + Clone> Local<S> {
    pub async fn start(scenario: &Scenario, store: &S) -> Result<Self, LabError> {
        let write_log = Arc::<Mutex<WriteLog>>::default();
        let mut seats = Vec::new();
        for index in 0..scenario.replicas {
            seats.push(Seat::start(scenario, index, 1, store, &write_log).await?);
        }
        let wanted = vec![0; scenario.keys];
        let (scenario, store) = (scenario.clone(), store.clone());
        Ok(Self { scenario, store, seats, wanted, write_log, wins_of_dead: 0 })
    }

    fn replicas(&self) -> impl Iterator<Item = &Replica<RemoteStore<S>>> {
        self.seats.iter().filter_map(|seat| seat.replica.as_ref())
    }

    /// Takes a replica out. Returns `None` if it is down already.
    fn take(&mut self, index: usize) -> Option<Replica<RemoteStore<S>>> {
        let replica = self.seats[index].replica.take()?;
        self.wins_of_dead += replica.wins();
        Some(replica)
    }

    /// Requests of a replica what was requested last of each key.
    fn want_again(&self, index: usize) {
        let mut rounds: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (key, round) in self.wanted.iter().enumerate().filter(|(_, round)| **round > 0) {
            rounds.entry(*round).or_default().push(key);
        }
        if let Some(replica) = &self.seats[index].replica {
            rounds.iter().for_each(|(round, keys)| replica.want(*round, keys));
        }
    }
}

impl<S: Store + Clone> Seat<S> {
    async fn start(
        scenario: &Scenario,
        index: usize,
        starts: u64,
        store: &S,
        write_log: &Arc<Mutex<WriteLog>>,
    ) -> Result<Self, LabError> {
        // Each start draws anew.
        let seed = scenario.seed.wrapping_add((starts - 1).wrapping_mul(0x5eed_0001));
        let scenario = Scenario { seed, ..scenario.clone() };
        let remote = scenario.connect(index, store.clone());
        let log = write_log.clone();
        let record = move |event| log.lock().record(event);
        let replica = Replica::start(&scenario, index, remote.clone(), record).await?;
        Ok(Self { starts, remote, replica: Some(replica), is_paused: false })
    }
}

impl<S: Store + Clone> Fleet for Local<S> {
    async fn want(&mut self, round: u64, keys: &[usize]) -> Result<(), LabError> {
        for key in keys {
            self.wanted[*key] = round;
        }
        for seat in self.seats.iter().filter(|seat| !seat.is_paused) {
            if let Some(replica) = &seat.replica {
                replica.want(round, keys);
            }
        }
        Ok(())
    }

    fn kill_leader(&mut self) -> Option<usize> {
        let any = self.scenario.strategy == Strategy::Retry;
        let is_hit = |seat: &Seat<S>| seat.replica.as_ref().is_some_and(|replica| any || replica.leads());
        let leader = self.seats.iter().position(is_hit)?;
        self.seats[leader].remote.set_fault(NetworkFault::Dead);
        self.take(leader).map(|_| leader)
    }

    async fn begin_fault(&mut self, replica: usize, kind: ReplicaFaultKind) -> Result<(), LabError> {
        match kind {
            ReplicaFaultKind::Restart => {
                if let Some(replica) = self.take(replica) {
                    tokio::spawn(replica.finish(GRACE));
                }
            }
            ReplicaFaultKind::Kill => {
                self.seats[replica].remote.set_fault(NetworkFault::Dead);
                self.take(replica);
            }
            ReplicaFaultKind::Pause => {
                self.seats[replica].remote.set_fault(NetworkFault::Dead);
                self.seats[replica].is_paused = true;
            }
        }
        Ok(())
    }

    async fn end_fault(&mut self, replica: usize, kind: ReplicaFaultKind) -> Result<(), LabError> {
        match kind {
            ReplicaFaultKind::Restart | ReplicaFaultKind::Kill => {
                let starts = self.seats[replica].starts + 1;
                // One that lives, because two of its faults overlap, is not started twice.
                if self.seats[replica].replica.is_none() {
                    let start = Seat::start(&self.scenario, replica, starts, &self.store, &self.write_log);
                    self.seats[replica] = start.await?;
                }
            }
            ReplicaFaultKind::Pause => {
                let seat = &mut self.seats[replica];
                seat.is_paused = false;
                // The dead stay dead.
                if seat.replica.is_some() {
                    seat.remote.set_fault(NetworkFault::None);
                }
            }
        }
        self.want_again(replica);
        Ok(())
    }

    fn leaders(&self) -> usize {
        self.replicas().filter(|replica| replica.leads()).count()
    }

    fn wins(&self) -> u64 {
        self.wins_of_dead + self.replicas().map(Replica::wins).sum::<u64>()
    }

    fn write_log(&self) -> WriteLog {
        self.write_log.lock().clone()
    }

    async fn finish(&mut self) -> Result<(), LabError> {
        for index in 0..self.seats.len() {
            if let Some(replica) = self.take(index) {
                replica.finish(GRACE).await;
            }
        }
        Ok(())
    }
}
