use std::{ops::RangeInclusive, time::Instant};

use tokio::time::sleep;

use super::{LIMIT, POLL, RedisServer};

/// A Redis cluster of three masters without replicas.
///
/// About a second after one of them has died, the others refuse all keys: by default a cluster
/// serves either all slots or none.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes, to be killed, paused and restarted one by one.
    pub nodes: [RedisServer; 3],
}

impl RedisCluster {
    /// Starts the nodes. Returns when each of them reports that the cluster is complete.
    pub async fn start() -> Self {
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        let nodes = [
            RedisServer::start_with(arguments).await,
            RedisServer::start_with(arguments).await,
            RedisServer::start_with(arguments).await,
        ];
        for (i, (node, slots)) in nodes.iter().zip(SLOTS).enumerate() {
            // As redis-cli does: nodes with the same epoch would first have to resolve the
            // collision.
            order(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1)).await;
            order(node, &format!("CLUSTER ADDSLOTSRANGE {} {}", slots.start(), slots.end())).await;
        }
        for node in &nodes[1..] {
            let [_, bus] = &node.ports[..] else { unreachable!("a port for clients and one for the bus") };
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", node.address().port(), bus.number);
            order(&nodes[0], &meet).await;
        }
        let cluster = Self { nodes };
        cluster.complete().await;
        cluster
    }

    /// Returns the URLs for clients. From one of them a client learns the others.
    pub fn endpoints(&self) -> [String; 3] {
        self.nodes.each_ref().map(RedisServer::endpoint)
    }

    /// Waits until all nodes report that all slots are served. After the restart of a node this
    /// takes some seconds.
    pub async fn complete(&self) {
        let started = Instant::now();
        for node in &self.nodes {
            loop {
                let info = node.ask("CLUSTER INFO").await;
                let expected = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"];
                if expected.iter().all(|expected| info.contains(expected)) {
                    break;
                }
                assert!(started.elapsed() < LIMIT, "the cluster is not complete:\n{info}\n{}", node.log());
                sleep(POLL).await;
            }
        }
    }

    /// Returns the index of the node that owns the key. At least one node must be running.
    pub async fn owner(&self, key: &str) -> usize {
        let node = self.nodes.iter().find(|node| node.process.is_some()).expect("a node runs");
        let answer = node.ask(&format!("CLUSTER KEYSLOT {key}")).await;
        let slot = answer.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{answer}"));
        SLOTS.iter().position(|slots| slots.contains(&slot)).expect("each slot has an owner")
    }
}

async fn order(node: &RedisServer, command: &str) {
    assert_eq!(node.ask(command).await, "+OK\r\n", "{command}");
}

const SLOTS: [RangeInclusive<u16>; 3] = [0..=5460, 5461..=10922, 10923..=16383];
