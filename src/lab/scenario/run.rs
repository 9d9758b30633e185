//! The run of a scenario, which starts the rounds, watches the store, lets faults happen and counts.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use rand::{RngExt, rngs::Xoshiro256PlusPlus, seq::index};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    faults::{FaultPlan, ReplicaFaultKind, RollingRestart},
    fleet::{Fleet, Local},
    replica::name_of,
    report::Report,
    rounds::RoundTracker,
    settings::{LabError, Pace, Progress, Scenario, SeedStream},
    value::Value,
    write_log,
};
use crate::{
    clock,
    engine::{Engine, config::ConfigError},
    store::{Event, Expected, Store, StoreError},
};

impl Scenario {
    /// Runs the scenario with all replicas in this process, each behind its own
    /// [`RemoteStore`](crate::lab::RemoteStore), and deletes its keys afterwards.
    ///
    /// # Cancellation
    ///
    /// A run that is dropped before its end leaves its keys in the store; [`clear`](Self::clear)
    /// deletes them.
    ///
    /// # Errors
    ///
    /// [`LabError`] names the cause. The run then tries to delete its keys, unless the prefix was
    /// [in use](LabError::InUse).
    pub async fn run<S: Store + Clone>(&self, store: S) -> Result<Report, LabError> {
        self.run_with_progress(store, |_| {}).await
    }

    /// Like [`run`](Self::run), and calls `progress` at the start of each round and after the last.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub async fn run_with_progress<S: Store + Clone>(
        &self,
        store: S,
        progress: impl FnMut(Progress),
    ) -> Result<Report, LabError> {
        self.check()?;
        let mut fleet = Local::start(self, &store).await?;
        self.run_fleet(&store, &mut fleet, progress).await
    }

    /// Like [`run_with_progress`](Self::run_with_progress), with the replicas of `fleet`. The
    /// observer uses `store`, which must be the store that the replicas write to.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub async fn run_fleet<S: Store>(
        &self,
        store: &S,
        fleet: &mut impl Fleet,
        progress: impl FnMut(Progress),
    ) -> Result<Report, LabError> {
        self.check()?;
        let result = Run::new(self, store, fleet, progress).run().await;
        // Keys that existed before the run belong to others.
        if !matches!(result, Err(LabError::InUse { .. })) {
            let cleared = self.clear(store).await;
            if result.is_ok() {
                cleared?;
            }
        }
        result
    }

    /// Deletes the keys of a run, and the entries of its roster.
    ///
    /// # Errors
    ///
    /// The first error of the store, except for conflicts, which are retried.
    pub async fn clear<S: Store>(&self, store: &S) -> Result<(), LabError> {
        let keys = (0..self.keys).map(|key| write_log::name(&self.prefix, key));
        let members = if self.roster { self.replicas } else { 0 };
        let entries = (0..members).map(|index| self.roster_prefix() + &name_of(index));
        for name in keys.chain(entries) {
            while let Some(entry) = store.get(&name).await? {
                match store.delete(&name, &entry.version, None).await {
                    Err(StoreError::Conflict { .. }) => {}
                    deleted => drop(deleted?),
                }
            }
        }
        Ok(())
    }
}

struct Run<'a, S, F, P> {
    scenario: &'a Scenario,
    store: &'a S,
    fleet: &'a mut F,
    progress: P,
    tracker: RoundTracker,
    rounds: Xoshiro256PlusPlus,
    edits: Xoshiro256PlusPlus,
    kill: Option<Kill>,
    faults: FaultPlan,
    restarts: RollingRestart,
}

struct Kill {
    at: Instant,
    round: u64,
    refused: u64,
}

impl<'a, S: Store, F: Fleet, P: FnMut(Progress)> Run<'a, S, F, P> {
    pub fn new(scenario: &'a Scenario, store: &'a S, fleet: &'a mut F, progress: P) -> Self {
        Self {
            scenario,
            store,
            fleet,
            progress,
            tracker: RoundTracker::new(scenario.keys, scenario.replicas),
            rounds: scenario.rng(SeedStream::Rounds),
            edits: scenario.rng(SeedStream::Edits),
            kill: None,
            faults: FaultPlan::new(&scenario.faults),
            restarts: RollingRestart::default(),
        }
    }

    pub async fn run(mut self) -> Result<Report, LabError> {
        self.play().await?;
        (self.progress)(Progress { round: self.scenario.rounds + 1, rounds: self.scenario.rounds });
        sleep(self.scenario.settling()).await;
        let leaders_at_end = self.fleet.leaders();
        // Then each leaves the roster.
        let roster_writes = self.fleet.write_log().sent_to_roster;
        self.fleet.finish().await?;
        self.report(leaders_at_end, roster_writes).await
    }

    /// Runs all rounds until each is complete.
    async fn play(&mut self) -> Result<(), LabError> {
        let scenario = self.scenario;
        if scenario.roster {
            let mut entries = pin!(self.store.watch(&scenario.roster_prefix()));
            require_empty(&mut entries).await?;
        }
        let mut events = pin!(self.store.watch(&scenario.prefix));
        require_empty(&mut events).await?;
        let began = clock::now();
        let mut next_round = Some(began);
        let mut next_edit = self.time_to_edit().map(|wait| clock::now() + wait);
        loop {
            let oldest = self.tracker.oldest().map(|(_, round)| round.started);
            let may_start = oldest.is_none() || scenario.pace == Pace::Steady;
            let round_at = next_round.filter(|_| may_start);
            if oldest.is_none() && next_round.is_none() {
                return Ok(());
            }
            let give_up = oldest.map(|started| started + scenario.bound());
            let next_fault = self.faults.next().map(|after| began + after);
            let wake = [round_at, next_edit, next_fault, give_up].into_iter().flatten().min();
            tokio::select! {
                // Events come first, so that paused time advances only when none is left.
                biased;
                event = events.next() => match event {
                    Some(Ok(Event::Put(entry) | Event::InitEntry(entry))) => {
                        if let Some(key) = write_log::number(&scenario.prefix, &entry.key) {
                            self.tracker.observe(key, &Value::read(&entry.value), clock::now());
                            self.kill_leader();
                            self.restart_next().await?;
                        }
                    }
                    // The watch resumes after an interruption; otherwise the round's deadline ends
                    // the run.
                    Some(Ok(_) | Err(_)) => {}
                    None => return Err(ended()),
                },
                () = sleep_until(wake.unwrap_or_else(clock::now)), if wake.is_some() => {
                    let now = clock::now();
                    if round_at.is_some_and(|at| at <= now) {
                        self.begin().await?;
                        next_round = (self.tracker.started() < scenario.rounds).then(|| now + scenario.gap);
                    }
                    if next_fault.is_some_and(|at| at <= now) {
                        self.next_fault().await?;
                    }
                    if next_edit.is_some_and(|at| at <= now) {
                        self.edit().await?;
                        next_edit = self.time_to_edit().map(|wait| now + wait);
                    }
                    if give_up.is_some_and(|at| at <= now) {
                        return Err(self.stuck(now));
                    }
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<(), LabError> {
        let keys: Vec<usize> = match self.scenario.keys_per_round {
            Some(some) => index::sample(&mut self.rounds, self.scenario.keys, some).into_vec(),
            None => (0..self.scenario.keys).filter(|key| self.scenario.is_wanted(*key)).collect(),
        };
        let round = self.tracker.begin(&keys, clock::now());
        (self.progress)(Progress { round: round as usize, rounds: self.scenario.rounds });
        self.fleet.want(round, &keys).await
    }

    fn kill_leader(&mut self) {
        let Some(round) = self.scenario.kill_leader_at.filter(|_| self.kill.is_none()) else { return };
        let round = round as u64;
        if self.tracker.is_half_done(round) {
            let (at, refused) = (clock::now(), self.fleet.write_log().refused);
            if let Some(replica) = self.fleet.kill_leader() {
                self.tracker.kill(replica);
                self.kill = Some(Kill { at, round, refused });
            }
        }
    }

    /// Takes the next step of the rolling restart, if it is due.
    async fn restart_next(&mut self) -> Result<(), LabError> {
        let replicas = if self.scenario.rolling_restart { self.scenario.replicas } else { 0 };
        let Some(step) = self.restarts.next(replicas) else { return Ok(()) };
        if !self.tracker.is_half_done(step.round) {
            return Ok(());
        }
        self.restarts.pop();
        match step.begins {
            true => self.fleet.begin_fault(step.replica, ReplicaFaultKind::Restart).await,
            false => self.fleet.end_fault(step.replica, ReplicaFaultKind::Restart).await,
        }
    }

    async fn next_fault(&mut self) -> Result<(), LabError> {
        let Some(step) = self.faults.pop() else { return Ok(()) };
        match step.begins {
            true => self.fleet.begin_fault(step.replica, step.kind).await,
            false => self.fleet.end_fault(step.replica, step.kind).await,
        }
    }

    /// Draws the time until the next edit; `None` without edits. Users edit independently of each
    /// other, hence a Poisson process.
    fn time_to_edit(&mut self) -> Option<Duration> {
        let per_second = self.scenario.edits * self.scenario.keys as f64;
        let draw: f64 = self.edits.random();
        (per_second > 0.0).then(|| Duration::from_secs_f64(-(1.0 - draw).ln() / per_second))
    }

    /// Edits another field of an object, as a user would, without the replicas' network.
    async fn edit(&mut self) -> Result<(), LabError> {
        let key = self.edits.random_range(0..self.scenario.keys);
        let name = write_log::name(&self.scenario.prefix, key);
        loop {
            let entry = self.store.get(&name).await?;
            let value = entry.as_ref().map(|entry| Value::read(&entry.value)).unwrap_or_default();
            let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
            match self.store.put(&name, value.edited(), expected, None).await {
                Err(StoreError::Conflict { .. }) => {}
                written => break drop(written?),
            }
        }
        self.fleet.want(self.tracker.wanted(key), &[key]).await
    }

    fn stuck(&self, now: Instant) -> LabError {
        match self.tracker.oldest() {
            Some((number, round)) => LabError::Stuck {
                round: number,
                after: now - round.started,
                wrong: round.wrong,
                wanted: round.wanted,
            },
            None => ended(),
        }
    }

    /// Reads all keys back and compares them with the requests and the acknowledged writes.
    async fn report(self, leaders_at_end: usize, roster_writes: u64) -> Result<Report, LabError> {
        let (moved, moved_after_kill) = self.tracker.moved();
        let write_log = self.fleet.write_log();
        let mut updates_lost = 0;
        for key in 0..self.scenario.keys {
            let entry = self.store.get(&write_log::name(&self.scenario.prefix, key)).await?;
            let value = entry.map(|entry| Value::read(&entry.value)).unwrap_or_default();
            let succeeded = write_log.succeeded.get(key).copied().unwrap_or(0);
            updates_lost += self.tracker.missing(key, value.round) + succeeded.saturating_sub(value.writes);
        }
        let failover = self.kill.as_ref().and_then(|kill| {
            let round = self.tracker.round(kill.round)?;
            // The kill can come after the last write of the round; nothing is left to take over
            // then.
            Some((round.started + round.took?).saturating_duration_since(kill.at))
        });
        Ok(Report {
            strategy: self.scenario.strategy,
            replicas: self.scenario.replicas,
            shards: self.scenario.shards,
            keys: self.scenario.keys,
            rounds: self.tracker.times(),
            writes_needed: self.tracker.needed(),
            writes_attempted: write_log.attempted,
            writes_refused: write_log.refused,
            refused_after_kill: self.kill.as_ref().map_or(0, |kill| write_log.refused - kill.refused),
            written: self.tracker.written(),
            moved,
            moved_after_kill,
            roster_writes,
            updates_lost,
            leader_changes: self.fleet.wins().saturating_sub(self.scenario.shards_with_keys()?),
            failover,
            leaders_at_end,
        })
    }
}

impl Scenario {
    /// Returns how many shards have keys. No other has a leader.
    fn shards_with_keys(&self) -> Result<u64, ConfigError> {
        let engine = Engine::<Arc<str>, ()>::new(self.lease(0).build()?);
        let keys = (0..self.keys).filter(|key| self.is_wanted(*key));
        let shards = keys.map(|key| engine.shard_of(&write_log::name(&self.prefix, key).into()));
        Ok(shards.collect::<BTreeSet<u16>>().len() as u64)
    }

    /// Returns whether any replica wants this key.
    fn is_wanted(&self, key: usize) -> bool {
        self.wants.len() < self.replicas || self.wants.iter().any(|range| range.contains(&key))
    }
}

/// Reads the listing of a watch, which must be empty.
async fn require_empty<E>(events: &mut E) -> Result<(), LabError>
where
    E: Stream<Item = Result<Event, StoreError>> + Unpin,
{
    loop {
        match events.next().await {
            Some(Ok(Event::InitDone)) => return Ok(()),
            Some(Ok(event)) => {
                if let Some(key) = event.key() {
                    return Err(LabError::InUse { key: key.to_string() });
                }
            }
            Some(Err(error)) => return Err(error.into()),
            None => return Err(ended()),
        }
    }
}

fn ended() -> LabError {
    let reason = "the observer's watch ended".into();
    LabError::Store(StoreError::Unavailable { reason, source: None })
}
