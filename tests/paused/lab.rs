//! The guarantees of scenarios, under paused time.

use std::{ops::Range, time::Duration};

use futures_util::StreamExt;
use writerlease::{
    lab::{LabError, Network, Pace, RemoteStore, ReplicaFault, ReplicaFaultKind, Scenario, Strategy, Value},
    store::{Entry, Event, Expected, Fence, MemoryStore, Store, StoreError, Version},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn small() -> Scenario {
    let network = Network { read: ms(1), write: ms(2), watch: ms(2), ..Network::default() };
    Scenario { keys: 10, rounds: 4, network, ..Scenario::default() }
}

async fn entries(store: &impl Store) -> Vec<Entry> {
    let listing =
        store.watch("").map(Result::unwrap).take_while(|event| std::future::ready(*event != Event::InitDone));
    let entries = listing.filter_map(async |event| match event {
        Event::InitEntry(entry) => Some(entry),
        _ => None,
    });
    entries.collect().await
}

#[tokio::test(start_paused = true)]
async fn run_counts_writes_and_deletes_its_keys() {
    for strategy in [Strategy::Lease, Strategy::Retry] {
        let store = MemoryStore::new();
        let mut rounds = Vec::new();
        let scenario = Scenario { strategy, ..small() };
        let report =
            scenario.run_with_progress(store.clone(), |progress| rounds.push(progress.round)).await.unwrap();
        assert_eq!(
            (report.strategy, report.replicas, report.keys, report.rounds.len()),
            (strategy, 3, 10, 4)
        );
        assert_eq!((report.writes_needed, report.updates_lost), (40, 0));
        assert_eq!(report.writes_attempted, 40 + report.writes_refused);
        assert!(report.round_p50() <= report.round_p99() && report.round_p99() <= report.slowest_round());
        assert_eq!(report.leaders_at_end, usize::from(strategy == Strategy::Lease));
        assert_eq!((report.failover, report.refused_after_kill), (None, 0));
        assert_eq!(rounds, [1, 2, 3, 4, 5]);
        assert_eq!(entries(&store).await, []);
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_that_retry_conflict_with_each_other() {
    let scenario = Scenario { strategy: Strategy::Retry, skew: Duration::ZERO, ..small() };
    let report = scenario.run(MemoryStore::new()).await.unwrap();
    assert!(report.writes_refused >= report.writes_needed / 2, "{report}");
}

#[tokio::test(start_paused = true)]
async fn killed_leader_is_replaced_within_its_round() {
    for strategy in [Strategy::Lease, Strategy::Retry] {
        let scenario = Scenario { strategy, kill_leader_at: Some(3), ..small() };
        let report = scenario.run(MemoryStore::new()).await.unwrap();
        let failover = report.failover.unwrap();
        assert!(failover <= report.rounds[2], "{failover:?} of {:?}", report.rounds);
        assert_eq!(report.updates_lost, 0);
        if strategy == Strategy::Lease {
            assert!(report.leader_changes >= 1 && report.leaders_at_end == 1, "{report}");
            assert!(failover > ms(400), "no follower takes over before its patience ends: {failover:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_write_only_the_keys_they_want() {
    let wants: Vec<Range<usize>> = vec![0..5, 5..10];
    let scenario = Scenario { replicas: 2, wants, ..small() };
    let report = scenario.run(MemoryStore::new()).await.unwrap();
    assert_eq!((report.writes_attempted, report.writes_refused), (40, 0));
    assert_eq!(report.leaders_at_end, 2, "each replica leads for its own keys");
}

#[tokio::test(start_paused = true)]
async fn steady_rounds_start_on_time_with_some_keys() {
    let scenario = Scenario { pace: Pace::Steady, gap: ms(100), keys_per_round: Some(3), ..small() };
    let early = tokio::time::timeout(ms(300), scenario.run(MemoryStore::new())).await;
    assert!(early.is_err(), "the last round starts after 300 ms");
    let report = scenario.run(MemoryStore::new()).await.unwrap();
    assert_eq!(report.writes_needed, 12);
}

fn sharded() -> Scenario {
    Scenario { keys: 200, rounds: 12, shards: 48, roster: true, ..small() }
}

#[tokio::test(start_paused = true)]
async fn replicas_on_a_roster_share_the_keys() {
    let store = MemoryStore::new();
    let report = sharded().run(store.clone()).await.unwrap();
    println!("{report}, {:?}, {} roster writes", report.written_by_each(), report.roster_writes);
    assert_eq!((report.updates_lost, report.shards, report.roster_writes), (0, 48, 3), "{report}");
    assert_eq!((report.written.len(), report.leaders_at_end), (12, 3), "{report}");
    assert_eq!(report.written_by_each().iter().sum::<u64>(), 2400, "each key once a round");
    assert!(report.busiest_over_mean() < 1.5, "{report}");
    assert_eq!(entries(&store).await, [], "neither keys nor entries of the roster are left");
    let alone = Scenario { shards: 1, roster: false, ..sharded() }.run(store).await.unwrap();
    assert!(alone.busiest_over_mean() > 2.9, "{alone}");
}

#[tokio::test(start_paused = true)]
async fn rolling_restart_moves_keys_away_and_back() {
    let store = MemoryStore::new();
    let report = Scenario { rolling_restart: true, ..sharded() }.run(store.clone()).await.unwrap();
    println!("{report}, {:?} {:?}", report.rounds, report.written);
    assert_eq!(report.updates_lost, 0, "{report}");
    for replica in 0..3 {
        // It leaves in the middle of a round and is back in the middle of the next but one.
        let left = 3 * (replica + 1) - 1;
        assert_eq!(report.written[left + 1][replica], 0, "{:?}", report.written);
        assert!(report.written[left - 1][replica] > 0, "{:?}", report.written);
    }
    assert!(report.moved >= 3 * 100, "{report}");
    assert_eq!(report.leaders_at_end, 3, "{report}");
    assert_eq!(entries(&store).await, []);
}

/// The rounds follow each other without a pause, so a replica leaves while keys are still on their way
/// to the one that has just returned.
#[tokio::test(start_paused = true)]
async fn rolling_restart_costs_no_round_without_gaps() {
    for seed in [1, 2, 9] {
        let scenario = Scenario { rolling_restart: true, rounds: 20, seed, ..sharded() };
        let report = scenario.run(MemoryStore::new()).await.unwrap();
        println!("{report}, {:?}", report.rounds);
        assert_eq!(report.updates_lost, 0, "{report}");
        assert!(report.slowest_round() < ms(500), "seed {seed}: {:?}", report.rounds);
    }
}

#[tokio::test(start_paused = true)]
async fn only_keys_of_the_dead_move() {
    let store = MemoryStore::new();
    let report = Scenario { kill_leader_at: Some(6), ..sharded() }.run(store.clone()).await.unwrap();
    println!("{report}, {:?}", report.written);
    assert!(report.moved - report.moved_after_kill >= 50, "those of the dead do: {report}");
    assert!(report.moved_after_kill <= 20, "{report}");
    assert_eq!((report.updates_lost, report.leaders_at_end), (0, 2), "{report}");
    assert_eq!(entries(&store).await, [], "the entry of the dead is deleted, too");
}

#[tokio::test(start_paused = true)]
async fn keys_of_others_are_left_alone() {
    let store = MemoryStore::new();
    store.put("lab/theirs", "value".into(), Expected::Absent, None).await.unwrap();
    let error = small().run(store.clone()).await.unwrap_err();
    assert!(matches!(&error, LabError::InUse { key } if key == "lab/theirs"), "{error}");
    assert_eq!(entries(&store).await.len(), 1);
    let store = MemoryStore::new();
    store.put("roster/lab/theirs", "v1 weight=1".into(), Expected::Absent, None).await.unwrap();
    let error = sharded().run(store.clone()).await.unwrap_err();
    assert!(matches!(&error, LabError::InUse { key } if key == "roster/lab/theirs"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn late_event_holds_up_those_behind_it() {
    let network = Network { watch: ms(2), late: 0.1, late_by: ms(500), ..Network::default() };
    for in_order in [false, true] {
        let store = MemoryStore::new();
        let remote = RemoteStore::new(store.clone(), Network { in_order, ..network.clone() }, 1);
        let events = remote.watch("").map(Result::unwrap).filter_map(async |event| match event {
            Event::Put(entry) => Some(entry.key),
            _ => None,
        });
        let writer = tokio::spawn(async move {
            for key in 100..200 {
                let written = store.put(&format!("key-{key}"), "".into(), Expected::Absent, None).await;
                written.unwrap();
                tokio::time::sleep(ms(1)).await;
            }
        });
        let arrived: Vec<_> = events.take(100).collect().await;
        writer.await.unwrap();
        assert_eq!(arrived.is_sorted(), in_order, "{arrived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn faults_of_replicas_lose_no_update() {
    for kind in [ReplicaFaultKind::Restart, ReplicaFaultKind::Kill, ReplicaFaultKind::Pause] {
        let fault =
            |replica| ReplicaFault { kind, replica, at: ms(1100 + 2000 * replica as u64), lasts: ms(1500) };
        let faults = (0..3).map(fault).collect();
        let scenario = Scenario { faults, rounds: 10, gap: ms(1000), ..small() };
        let report = scenario.run(MemoryStore::new()).await.unwrap();
        assert_eq!((report.rounds.len(), report.updates_lost), (10, 0), "{kind:?}: {report}");
        assert!(report.leader_changes >= 1, "{kind:?} of the leader goes unnoticed: {report}");
    }
}

#[tokio::test(start_paused = true)]
async fn replica_has_its_own_network() {
    let far = Network { write: ms(300), ..small().network };
    let scenario = Scenario { replicas: 2, wants: vec![0..5, 5..10], networks: vec![far], ..small() };
    let report = scenario.run(MemoryStore::new()).await.unwrap();
    assert!(report.round_p50() > ms(70), "the far replica's own keys take long: {report}");
    let near = Scenario { networks: Vec::new(), ..scenario }.run(MemoryStore::new()).await.unwrap();
    assert!(near.round_p50() < ms(70), "{near}");
}

#[tokio::test(start_paused = true)]
async fn incomplete_round_ends_the_run() {
    let scenario = Scenario { term: ms(1000), ..small() };
    let error = scenario.run(Forgetful(MemoryStore::new(), None)).await.unwrap_err();
    assert_eq!(error.to_string(), "round 1 was incomplete after 32s: 1 of 10 keys were not up to date");
}

#[tokio::test(start_paused = true)]
async fn updates_lost_by_the_store_are_counted() {
    let scenario = Scenario { rounds: 3, ..small() };
    let report = scenario.run(Forgetful(MemoryStore::new(), Some(3))).await.unwrap();
    // The key lacks the last round, and with it an acknowledged write.
    assert_eq!(report.updates_lost, 2, "{report}");
}

#[test]
fn invalid_scenario_names_the_field() {
    let check = |change: fn(&mut Scenario)| {
        let mut scenario = Scenario::default();
        change(&mut scenario);
        scenario.check().unwrap_err().to_string()
    };
    for (message, expected) in [
        (check(|scenario| scenario.replicas = 0), "replicas is 0, but must be at least 1"),
        (check(|scenario| scenario.keys = 0), "keys is 0, but must be at least 1"),
        (check(|scenario| scenario.rounds = 0), "rounds is 0, but must be at least 1"),
        (check(|scenario| scenario.concurrency = 0), "concurrency is 0, but must be at least 1"),
        (check(|scenario| scenario.term = Duration::ZERO), "term is 0ns, but must be longer than zero"),
        (
            check(|scenario| scenario.keys_per_round = Some(0)),
            "keys_per_round is 0, but must be from 1 to the number of keys (100)",
        ),
        (
            check(|scenario| scenario.wants = vec![0..100, 90..101]),
            "wants is 90..101, but must be a non-empty range within the keys (0..100)",
        ),
        (check(|scenario| scenario.shards = 0), "shards is 0, but must be between 1 and 4096"),
        (
            check(|scenario| scenario.rolling_restart = true),
            "rounds is 10, but must be at least 11 for a rolling restart of 3 replicas",
        ),
        (check(|scenario| scenario.edits = f64::NAN), "edits is NaN, but must be a number of at least 0"),
        (
            check(|scenario| scenario.kill_leader_at = Some(11)),
            "kill_leader_at is 11, but must be from 1 to the number of rounds (10)",
        ),
        (
            check(|scenario| {
                let (at, lasts) = (Duration::ZERO, ms(1));
                scenario.faults = vec![ReplicaFault { kind: ReplicaFaultKind::Pause, replica: 3, at, lasts }];
            }),
            "faults is 3, but must be below the number of replicas (3)",
        ),
    ] {
        assert_eq!(message, expected);
    }
}

/// A store that acknowledges but loses writes of one key: all of them, or those of one round, which
/// the watch reports all the same.
#[derive(Clone)]
struct Forgetful(MemoryStore, Option<u64>);

impl Store for Forgetful {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.0.get(key).await?;
        let lost = |entry: &Entry| key.ends_with("00007") && self.1 == Some(Value::read(&entry.value).round);
        Ok(entry.map(
            |entry| if lost(&entry) { Entry { value: "round=2 writes=2".into(), ..entry } } else { entry },
        ))
    }

    async fn put(
        &self,
        key: &str,
        value: bytes::Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        if key.ends_with("00007") && self.1.is_none() {
            return Ok(Version::ordered(u64::MAX));
        }
        self.0.put(key, value, expected, fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.0.delete(key, expected, fence).await
    }

    fn watch(
        &self,
        prefix: &str,
    ) -> impl futures_util::Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.0.watch(prefix)
    }
}
