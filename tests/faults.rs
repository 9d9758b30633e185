//! Faults that really happen, on real servers: three replicas increment counters throughout, each behind a network of its
//! own, and afterwards nothing is lost, nothing is there twice, nobody hurries, and everybody sees and works again.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod common;
#[path = "faults/engines.rs"]
mod engines;
#[path = "faults/world.rs"]
mod world;

use std::time::Duration;

use engines::{Engine, Etcd, Redis, Zookeeper};
use tokio::time::sleep;
use world::{World, show};

const SECOND: Duration = Duration::from_secs(1);

async fn the_server_is_killed_and_restarted(world: &mut World<impl Engine>) {
    world.engine.kill();
    sleep(SECOND).await;
    world.engine.restart().await;
}

async fn the_leader_is_cut_in_the_middle_of_a_write(world: &mut World<impl Engine>) {
    for _ in 0..3 {
        let leader = world.leader().await;
        world.replicas[leader].proxy.cut_in_request("round=");
        world.replicas[leader].proxy.struck().await;
        world.progress().await;
    }
}

async fn the_answer_to_a_landed_write_is_lost(world: &mut World<impl Engine>) {
    for _ in 0..3 {
        let leader = world.leader().await;
        world.replicas[leader].proxy.lose_answer("round=");
        world.replicas[leader].proxy.struck().await;
        world.progress().await;
    }
}

async fn a_follower_is_half_open(world: &mut World<impl Engine>) {
    let follower = (world.leader().await + 1) % world.replicas.len();
    half_open(world, follower).await;
}

async fn the_leader_is_half_open(world: &mut World<impl Engine>) {
    let leader = world.leader().await;
    half_open(world, leader).await;
}

/// Until its connections were given up and replaced.
async fn half_open(world: &mut World<impl Engine>, replica: usize) {
    world.replicas[replica].proxy.half_open();
    world.blind(replica).await;
    world.sees(replica).await;
}

async fn everybody_is_cut_off_for_longer_than_any_timeout(world: &mut World<impl Engine>) {
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
        the_server_is_killed_and_restarted,
        the_leader_is_cut_in_the_middle_of_a_write,
        the_answer_to_a_landed_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        everybody_is_cut_off_for_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_follower_missed_is_compacted() {
        show::<Etcd>(async |world| {
            let follower = (world.leader().await + 1) % world.replicas.len();
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
        the_server_is_killed_and_restarted,
        the_leader_is_cut_in_the_middle_of_a_write,
        the_answer_to_a_landed_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        everybody_is_cut_off_for_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn all_clients_are_killed_again_and_again() {
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
            world.forget_before();
            world.engine.server.ask("FLUSHALL").await;
            world.forget_after();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_server_is_restarted_without_its_data() {
        show::<Redis>(async |world| {
            world.forget_before();
            world.engine.server.forget();
            world.forget_after();
            world.engine.server.restart().await;
        })
        .await;
    }
}

mod zookeeper {
    on!(Zookeeper:
        the_server_is_killed_and_restarted,
        the_leader_is_cut_in_the_middle_of_a_write,
        the_answer_to_a_landed_write_is_lost,
        a_follower_is_half_open,
        the_leader_is_half_open,
        everybody_is_cut_off_for_longer_than_any_timeout,
        every_answer_takes_half_a_second,
    );
}
