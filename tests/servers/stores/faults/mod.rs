//! Real faults on real servers: three replicas, each behind a proxy of its own, increment counters
//! throughout. Afterwards no acknowledged write is lost or applied twice, no replica retries in a
//! tight loop, and every replica sees and writes again.

mod engines;
mod world;

use std::time::Duration;

use engines::{Engine, Etcd, Redis, Zookeeper};
use tokio::time::sleep;
use world::{World, show};

const SECOND: Duration = Duration::from_secs(1);

async fn server_is_killed_and_restarted(world: &mut World<impl Engine>) {
    world.engine.kill();
    sleep(SECOND).await;
    world.engine.restart().await;
}

async fn leader_is_cut_in_mid_write(world: &mut World<impl Engine>) {
    for _ in 0..3 {
        world.strike_the_busiest(|proxy| proxy.cut_in_request("round=")).await;
        world.progress().await;
    }
}

async fn answer_to_a_successful_write_is_lost(world: &mut World<impl Engine>) {
    for _ in 0..3 {
        world.strike_the_busiest(|proxy| proxy.lose_answer("round=")).await;
        world.progress().await;
    }
}

async fn a_follower_is_half_open(world: &mut World<impl Engine>) {
    let follower = (world.busiest().await + 1) % world.replicas.len();
    world.half_open(follower).await;
}

async fn the_leader_is_half_open(world: &mut World<impl Engine>) {
    let leader = world.busiest().await;
    world.half_open(leader).await;
}

async fn all_stall_longer_than_any_timeout(world: &mut World<impl Engine>) {
    for replica in &world.replicas {
        replica.proxy.stall();
    }
    sleep(4 * SECOND).await;
    for replica in &world.replicas {
        replica.proxy.heal();
    }
}

async fn every_answer_takes_half_a_second(world: &mut World<impl Engine>) {
    for replica in &world.replicas {
        replica.proxy.delay(SECOND / 2);
    }
    sleep(4 * SECOND).await;
    for replica in &world.replicas {
        replica.proxy.heal();
    }
}

macro_rules! on {
    ($engine:ident: $($fault:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $fault() {
            super::show::<super::$engine>(super::$fault).await;
        }
    )+};
}

mod etcd {
    on!(Etcd:
        server_is_killed_and_restarted,
        leader_is_cut_in_mid_write,
        answer_to_a_successful_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        all_stall_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_that_a_follower_missed_are_compacted() {
        show::<Etcd>(async |world| {
            let follower = (world.busiest().await + 1) % world.replicas.len();
            world.replicas[follower].proxy.refuse(true);
            world.replicas[follower].proxy.cut();
            world.progress().await;
            world.engine.compact().await;
            world.replicas[follower].proxy.heal();
        })
        .await;
    }
}

mod redis {
    on!(Redis:
        server_is_killed_and_restarted,
        leader_is_cut_in_mid_write,
        answer_to_a_successful_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        all_stall_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn all_connections_are_killed_repeatedly() {
        show::<Redis>(async |world| {
            for _ in 0..3 {
                world.engine.server.ask("CLIENT KILL TYPE normal").await;
                world.progress().await;
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_is_flushed() {
        show::<Redis>(async |world| {
            world.before_loss();
            world.engine.server.ask("FLUSHALL").await;
            world.after_loss();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_server_is_restarted_without_its_data() {
        show::<Redis>(async |world| {
            world.before_loss();
            world.engine.server.forget();
            world.after_loss();
            world.engine.server.restart().await;
        })
        .await;
    }
}

mod zookeeper {
    on!(Zookeeper:
        server_is_killed_and_restarted,
        leader_is_cut_in_mid_write,
        answer_to_a_successful_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        all_stall_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );
}

/// The in-memory store has neither server nor connections: the faults are those of the lab's
/// network. In virtual time.
mod memory {
    use std::{sync::Arc, time::Duration};

    use parking_lot::Mutex;
    use tokio::time::sleep;
    use writerlease::{
        lab::{Network, NetworkFault, RemoteStore, Replica, Scenario, Value, WriteLog},
        store::{MemoryStore, Store},
    };

    type Remotes = [RemoteStore<MemoryStore>; 3];

    async fn show(fault: impl Fn(&Remotes), heal: impl Fn(&Remotes)) {
        let store = MemoryStore::new();
        let scenario = Scenario { keys: 8, skew: Duration::ZERO, ..Scenario::default() };
        let ms = Duration::from_millis(1);
        let network = || Network { read: ms, write: 2 * ms, watch: ms, ..Network::default() };
        let remotes = [1, 2, 3].map(|seed| RemoteStore::new(store.clone(), network(), seed));
        let write_log = Arc::<Mutex<WriteLog>>::default();
        let mut replicas = Vec::new();
        for (index, remote) in remotes.iter().enumerate() {
            let notes = write_log.clone();
            let recorder = move |note| notes.lock().record(note);
            replicas.push(Replica::start(&scenario, index, remote.clone(), recorder).await.unwrap());
        }
        let keys: Vec<usize> = (0..scenario.keys).collect();
        let (mut attempted, mut refused) = (0, 0);
        for round in 1..=200 {
            match round {
                50 => {
                    attempted = write_log.lock().attempted;
                    fault(&remotes);
                }
                100 => {
                    attempted = write_log.lock().attempted - attempted;
                    heal(&remotes);
                }
                180 => refused = write_log.lock().refused,
                _ => {}
            }
            replicas.iter().for_each(|replica| replica.want(round, &keys));
            sleep(50 * ms).await;
        }
        // At most one for each round and key, and a few in vain.
        assert!(attempted <= 50 * 8 + 60, "{attempted} writes sent in 2.5 s");
        // One replica writes all keys again, or each its own.
        assert_eq!(write_log.lock().refused, refused, "writes refused in the last second");
        for replica in replicas {
            replica.finish(Duration::from_secs(5)).await;
        }
        let write_log = write_log.lock().clone();
        let mut writes = 0;
        for key in keys {
            let entry =
                store.get(&format!("{}key-{key:05}", scenario.prefix)).await.unwrap().expect("written");
            let value = Value::read(&entry.value);
            assert_eq!(value.round, 200);
            assert!(value.writes >= write_log.succeeded[key], "{value} of {}", write_log.succeeded[key]);
            writes += value.writes;
        }
        let succeeded: u64 = write_log.succeeded.iter().sum();
        assert!(
            (succeeded..=write_log.attempted - write_log.refused).contains(&writes),
            "{writes}: {write_log:?}"
        );
    }

    fn all(fault: NetworkFault) -> impl Fn(&Remotes) {
        move |remotes| remotes.iter().for_each(|remote| remote.set_fault(fault))
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_is_down() {
        show(all(NetworkFault::Down), all(NetworkFault::None)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_cut_off() {
        show(all(NetworkFault::Dead), all(NetworkFault::None)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_successful_writes_are_lost() {
        show(all(NetworkFault::AnswersLost), all(NetworkFault::None)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_after_another_is_dead() {
        for one in 0..3 {
            show(
                |remotes| remotes[one].set_fault(NetworkFault::Dead),
                |remotes| remotes[one].set_fault(NetworkFault::None),
            )
            .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_answer_takes_half_a_second() {
        let slow = |remotes: &Remotes| {
            let half = Duration::from_millis(500);
            let network = Network { read: half, write: half, watch: half, ..Network::default() };
            remotes.iter().for_each(|remote| remote.set_network(network.clone()));
        };
        let quick =
            |remotes: &Remotes| remotes.iter().for_each(|remote| remote.set_network(Network::default()));
        show(slow, quick).await;
    }
}
