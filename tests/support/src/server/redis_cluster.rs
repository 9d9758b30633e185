use std::{ops::RangeInclusive, time::Instant};

use tokio::time::sleep;

use super::{LIMIT, POLL, RedisServer};

/// A Redis cluster of three masters without replicas, to which more can be added.
///
/// About a second after one of them has died, the others refuse all keys: by default a cluster
/// serves either all slots or none.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes, to be killed, paused and restarted one by one.
    pub nodes: Vec<RedisServer>,
    /// The index of the node of each slot.
    owners: Vec<usize>,
    replicas: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes. Returns when each of them reports that the cluster is complete.
    pub async fn start() -> Self {
        Self::start_with([]).await
    }

    /// Like [`start`](Self::start), with further settings of each node.
    pub async fn start_with(settings: impl IntoIterator<Item = &str>) -> Self {
        let settings: Vec<_> = ARGUMENTS.into_iter().chain(settings).collect();
        let mut cluster = Self { nodes: Vec::new(), owners: Vec::new(), replicas: Vec::new() };
        for (i, slots) in SLOTS.into_iter().enumerate() {
            let node = RedisServer::start_with(settings.clone()).await;
            // As redis-cli does: nodes with the same epoch would first have to resolve the
            // collision.
            order(&node, &format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1)).await;
            order(&node, &format!("CLUSTER ADDSLOTSRANGE {} {}", slots.start(), slots.end())).await;
            cluster.owners.extend(slots.map(|_| i));
            cluster.nodes.push(node);
        }
        for node in &cluster.nodes[1..] {
            cluster.meet(node).await;
        }
        cluster.complete().await;
        cluster
    }

    /// Adds a master without slots. Returns its index when all nodes know it.
    pub async fn grow(&mut self) -> usize {
        let node = RedisServer::start_with(ARGUMENTS).await;
        order(&node, &format!("CLUSTER SET-CONFIG-EPOCH {}", self.nodes.len() + 1)).await;
        self.meet(&node).await;
        self.nodes.push(node);
        self.complete().await;
        self.nodes.len() - 1
    }

    /// Adds a replica of a master. Returns its index among the replicas when it follows the master.
    pub async fn add_replica(&mut self, of: usize) -> usize {
        let replica = RedisServer::start_with(ARGUMENTS).await;
        self.meet(&replica).await;
        self.replicas.push(replica);
        self.complete().await;
        let index = self.replicas.len() - 1;
        let replica = &self.replicas[index];
        order(replica, &format!("CLUSTER REPLICATE {}", id(&self.nodes[of]).await)).await;
        let started = Instant::now();
        while !replica.ask("INFO replication").await.contains("master_link_status:up")
            || !self.nodes[of].ask("INFO replication").await.contains("state=online")
        {
            assert!(started.elapsed() < LIMIT, "the replica does not follow:\n{}", replica.log());
            sleep(POLL).await;
        }
        // The other nodes vote for it only when they know whom it follows.
        for node in &self.nodes {
            while !node.ask("CLUSTER NODES").await.contains(" slave ") {
                assert!(started.elapsed() < LIMIT, "the replica is not known:\n{}", replica.log());
                sleep(POLL).await;
            }
        }
        index
    }

    /// Removes a node without slots, and kills it. Later nodes get its index.
    pub async fn remove(&mut self, index: usize) {
        assert!(!self.owners.contains(&index), "the node still has slots");
        let mut removed = self.nodes.remove(index);
        let id = id(&removed).await;
        for node in &self.nodes {
            order(node, &format!("CLUSTER FORGET {id}")).await;
        }
        removed.kill();
        for owner in &mut self.owners {
            *owner -= usize::from(*owner > index);
        }
    }

    async fn meet(&self, node: &RedisServer) {
        let [port, bus] = &node.ports[..] else { unreachable!("a port for clients and one for the bus") };
        order(&self.nodes[0], &format!("CLUSTER MEET 127.0.0.1 {} {}", port.number, bus.number)).await;
    }

    /// Returns the URLs for clients. From one of them a client learns the others.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::endpoint).collect()
    }

    /// Waits until all nodes report that all slots are served. After the restart of a node this
    /// takes some seconds.
    pub async fn complete(&self) {
        let started = Instant::now();
        let count = self.nodes.len() + self.replicas.len();
        let known = format!("cluster_known_nodes:{count}");
        for node in self.nodes.iter().chain(&self.replicas) {
            loop {
                let info = node.ask("CLUSTER INFO").await;
                let expected = ["cluster_state:ok", "cluster_slots_ok:16384", &known];
                let linked = node.ask("CLUSTER NODES").await.matches(" connected").count();
                if expected.iter().all(|expected| info.contains(expected)) && linked == count {
                    break;
                }
                assert!(started.elapsed() < LIMIT, "the cluster is not complete:\n{info}\n{}", node.log());
                sleep(POLL).await;
            }
        }
    }

    /// Returns the slot of a key. At least one node must be running.
    pub async fn slot(&self, key: &str) -> usize {
        let node = self.nodes.iter().find(|node| node.process.is_some()).expect("a node runs");
        let answer = node.ask(&format!("CLUSTER KEYSLOT {key}")).await;
        answer.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    /// Returns the index of the node that owns the key. At least one node must be running.
    pub async fn owner(&self, key: &str) -> usize {
        self.owners[self.slot(key).await]
    }

    /// Returns the slots of a node.
    pub fn slots(&self, owner: usize) -> Vec<usize> {
        (0..self.owners.len()).filter(|slot| self.owners[*slot] == owner).collect()
    }

    /// Begins to move a slot to another node: from now on its new keys are there.
    pub async fn begin_move(&self, slot: usize, to: usize) {
        let (from, to) = (&self.nodes[self.owners[slot]], &self.nodes[to]);
        order(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(from).await)).await;
        order(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(to).await)).await;
    }

    /// Moves at most `count` keys of a slot whose move has begun. Returns how many there were.
    pub async fn move_keys(&self, slot: usize, to: usize, count: usize) -> usize {
        let from = &self.nodes[self.owners[slot]];
        let keys = from.ask(&format!("CLUSTER GETKEYSINSLOT {slot} {count}")).await;
        let keys: Vec<_> = keys.lines().skip(1).filter(|line| !line.starts_with('$')).collect();
        for key in &keys {
            let port = self.nodes[to].address().port();
            let moved = from.ask(&format!("MIGRATE 127.0.0.1 {port} {key} 0 5000")).await;
            assert!(moved == "+OK\r\n" || moved == "+NOKEY\r\n", "{key}: {moved}");
        }
        keys.len()
    }

    /// Gives the slot to the other node for good. All of its keys must be there.
    pub async fn end_move(&mut self, slot: usize, to: usize) {
        let command = format!("CLUSTER SETSLOT {slot} NODE {}", id(&self.nodes[to]).await);
        // The new owner first, as redis-cli does.
        order(&self.nodes[to], &command).await;
        for node in &self.nodes {
            let answer = node.ask(&command).await;
            // A node that loses its last slot becomes a replica of the new owner by itself.
            assert!(answer == "+OK\r\n" || answer.contains("only with masters"), "{command}: {answer}");
        }
        self.owners[slot] = to;
    }

    /// Moves a slot with its keys.
    pub async fn move_slot(&mut self, slot: usize, to: usize) {
        self.begin_move(slot, to).await;
        // Also those that are created meanwhile, which is possible until the first is moved.
        while self.move_keys(slot, to, 100).await > 0 {}
        self.end_move(slot, to).await;
    }
}

async fn order(node: &RedisServer, command: &str) {
    assert_eq!(node.ask(command).await, "+OK\r\n", "{command}");
}

async fn id(node: &RedisServer) -> String {
    let answer = node.ask("CLUSTER MYID").await;
    answer.lines().nth(1).unwrap_or_else(|| panic!("{answer}")).to_owned()
}

const ARGUMENTS: [&str; 4] = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
const SLOTS: [RangeInclusive<usize>; 3] = [0..=5460, 5461..=10922, 10923..=16383];
