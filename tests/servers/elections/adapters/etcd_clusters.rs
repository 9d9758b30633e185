//! Candidates on etcd behind a proxy, and on a cluster with a learner.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tokio::time::sleep;
use writerlease::{
    election::Elector,
    etcd::{EtcdElector, EtcdVoters},
};

use writerlease_test_support::server::{EtcdGrpcProxy, EtcdServer};

use crate::{
    engines::{ELECTION, etcd_client},
    states::{at_best, ensure, follows, leads, soon, token},
};

const TTL: Duration = Duration::from_secs(2);

async fn takes_turns(client: Client, election: &str) {
    let start = async |identity: &str| {
        let builder = EtcdElector::builder(client.clone(), election).identity(identity);
        builder.ttl(TTL).start().await.expect("a session")
    };
    let first = start("first").await;
    leads(&first).await;
    let second = start("second").await;
    follows(&second, "first").await;
    at_best("the leader goes on", async || {
        leads(&first).await;
        let term = token(&first);
        sleep(3 * TTL).await;
        ensure(first.fence().is_some_and(|fence| fence.token() == term), || format!("{:?}", first.state()))
    })
    .await;
    first.resign().await.expect("it serves");
    leads(&second).await;
    follows(&first, "second").await;
    soon(second.close()).await;
    leads(&first).await;
    soon(first.close()).await;
}

async fn vote_in_turns(client: Client) {
    let [one, other] = [client.clone(), client].map(EtcdVoters::new);
    let first = one.add_voter(ELECTION, "first", TTL).expect("valid settings");
    leads(&first).await;
    let second = other.add_voter(ELECTION, "second", TTL).expect("valid settings");
    follows(&second, "first").await;
    soon(one.close()).await;
    leads(&second).await;
    soon(other.close()).await;
}

#[tokio::test]
async fn candidates_take_turns_behind_a_grpc_proxy() {
    let server = EtcdServer::start().await;
    let proxy = EtcdGrpcProxy::start(&server).await;
    let client = etcd_client(proxy.address()).await;
    takes_turns(client.clone(), ELECTION).await;
    vote_in_turns(client).await;
    let left = etcd_client(server.address()).await.leases().await.expect("it serves");
    assert_eq!(left.leases().len(), 0);
}

#[tokio::test]
async fn candidates_take_turns_beside_a_learner() {
    let server = EtcdServer::start().await;
    let learner = server.start_learner().await;
    let endpoints = [server.endpoint(), learner.endpoint()];
    let client = Client::connect(endpoints, Some(ConnectOptions::new())).await.expect("valid endpoints");
    takes_turns(client.clone(), ELECTION).await;
    vote_in_turns(client).await;
}
