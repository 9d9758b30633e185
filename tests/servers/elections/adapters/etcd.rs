//! The etcd elector, compared with pingcap/tiflow's `dm/pkg/election`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use etcd_client::{Client, CompactionOptions, GetOptions, PutOptions};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use writerlease::{
    election::{ElectionError, Elector, Event, Leadership},
    etcd::{EtcdElector, EtcdElectorBuilder, EtcdVoters, LeaderInfo, LeaderNotice},
    store::StoreError,
};

use writerlease_test_support::{proxy::Proxy, server::EtcdServer};

use crate::{
    engines::etcd_client,
    states::{LONG, assert_config, event, follows, interrupted, leads, nowhere, reaches, soon, token, until},
};

pub const ELECTION: &str = "tests/election";
pub const SHORT_TTL: Duration = Duration::from_secs(1);
/// Longer than a test waits, so that no effect in time comes from an expiry.
const LONG_TTL: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(1);

pub async fn builder(address: SocketAddr, id: &str) -> EtcdElectorBuilder {
    let builder =
        EtcdElector::builder(etcd_client(address).await, ELECTION).identity(id).address("10.0.0.1:80");
    builder.ttl(LONG_TTL).request_timeout(REQUEST)
}

pub async fn candidate(address: SocketAddr, id: &str) -> EtcdElector {
    builder(address, id).await.start().await.expect("a session")
}

/// Lists the key, value and lease of each candidate, the oldest first.
pub async fn keys(server: &EtcdServer) -> Vec<(String, String, i64)> {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(etcd_client::SortTarget::Create, etcd_client::SortOrder::Ascend);
    let answer = raw(server).await.get(ELECTION, Some(options)).await.expect("it serves");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    answer.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()), kv.lease())).collect()
}

pub async fn raw(server: &EtcdServer) -> Client {
    etcd_client(server.address()).await
}

/// More than a request to etcd may have.
pub const TOO_LARGE: usize = 2_000_000;

/// Waits for the end of an elector whose identity is too large, and checks that etcd has nothing of
/// it.
pub async fn ends_too_large(elector: &impl Elector, server: &EtcdServer) {
    let mut leadership = elector.leadership();
    let failed = |state: &Leadership| matches!(state, Leadership::Failed(_));
    let state = soon(leadership.wait_for(failed)).await.expect("the elector exists").clone();
    let Leadership::Failed(error) = state else { unreachable!() };
    assert!(matches!(*error, ElectionError::Store(StoreError::TooLarge { .. })), "{error:.1000}");
    let reason = error.to_string();
    for part in ["identity", "20000", "request is too large"] {
        assert!(reason.contains(part), "{reason:.1000}");
    }
    let leases = raw(server).await.leases().await.expect("it serves");
    assert_eq!(leases.leases().len(), 0);
}

/// Writes an unrelated key, and compacts all history.
pub async fn compact(server: &EtcdServer) {
    let mut client = raw(server).await;
    let mut last = 0;
    for _ in 0..2 {
        let put = client.put("elsewhere", "", None).await.expect("it serves");
        last = put.header().expect("a header").revision();
    }
    client.compact(last, Some(CompactionOptions::new().with_physical())).await.expect("it serves");
}

#[tokio::test]
async fn invalid_settings_are_named_with_their_rule() {
    let client = etcd_client(nowhere()).await;
    let builder = |election, id| EtcdElector::builder(client.clone(), election).identity(id);
    assert_config(builder("", "id").start().await, "election", "\"\"", "not empty");
    assert_config(builder("e", " ").start().await, "identity", "\" \"", "not blank");
    let short = builder("e", "id").ttl(Duration::from_millis(999));
    assert_config(short.start().await, "ttl", "999ms", "at least 1s");
    let long = builder("e", "id").ttl(Duration::MAX);
    assert_config(long.start().await, "ttl", &format!("{:?}", Duration::MAX), "at most 31536000s");
    let never = builder("e", "id").request_timeout(Duration::ZERO);
    assert_config(never.start().await, "request_timeout", "0ns", "longer than zero");
}

#[tokio::test]
async fn identities_too_large_for_etcd_end_the_elector() {
    let server = EtcdServer::start().await;
    let elector = candidate(server.address(), &"x".repeat(TOO_LARGE)).await;
    ends_too_large(&elector, &server).await;
}

#[tokio::test]
async fn candidates_with_large_values_are_all_read() {
    let server = EtcdServer::start().await;
    let mut client = raw(&server).await;
    for name in ["a", "b", "c", "d"] {
        let value = format!("{name}{}", "x".repeat(1_400_000));
        client.put(format!("{ELECTION}/{name}"), value, None).await.expect("it serves");
    }
    let elector = candidate(server.address(), "one").await;
    let identity = format!("d{}", "x".repeat(1_400_000));
    assert!(elector.clear_session_if_needed(&identity).await.expect("it serves"));
    assert!(!elector.clear_session_if_needed(&identity).await.expect("it serves"));
}

#[tokio::test]
async fn start_without_answers_fails_in_bounded_time() {
    let mut server = EtcdServer::start().await;
    let tries = async |address: SocketAddr| {
        let started = Instant::now();
        let result = soon(builder(address, "one").await.start()).await;
        assert!(matches!(result, Err(ElectionError::Store(StoreError::Unavailable { .. }))), "{result:?}");
        // Three attempts and the pauses between them; only hanging fails the test.
        println!("failed after {:?}; request timeout {REQUEST:?}", started.elapsed());
    };
    server.pause();
    tries(server.address()).await;
    server.resume();
    server.kill();
    tries(server.address()).await;
}

#[tokio::test]
async fn start_succeeds_within_three_tries() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    proxy.refuse(true);
    let healed = async {
        sleep(Duration::from_millis(100)).await;
        proxy.heal();
    };
    let (elector, ()) = tokio::join!(candidate(proxy.address(), "one"), healed);
    leads(&elector).await;
}

#[tokio::test]
async fn keys_and_values_match_the_go_package() {
    let server = EtcdServer::start().await;
    let elector = candidate(server.address(), "one").await;
    leads(&elector).await;
    assert_eq!(elector.identity(), "one");
    let keys = keys(&server).await;
    let [(key, value, lease)] = &keys[..] else { panic!("{keys:?}") };
    assert_eq!(*key, format!("{ELECTION}/{lease:x}"));
    assert_eq!(value, r#"{"id":"one","addr":"10.0.0.1:80"}"#);
    assert_ne!(*lease, 0);
}

#[tokio::test]
async fn leader_info_has_key_identity_and_address() {
    let server = EtcdServer::start().await;
    let odd = "a \"quoted\" \\ ünïcödé\n🦀";
    let odd = EtcdElector::builder(etcd_client(server.address()).await, ELECTION).identity(odd).address(odd);
    let odd = odd.start().await.expect("a session");
    leads(&odd).await;
    let key = keys(&server).await.remove(0).0;
    let expected =
        LeaderInfo { key: key.clone(), identity: odd.identity().into(), address: odd.identity().into() };
    assert_eq!(odd.leader_info().await.expect("it leads"), expected);
    assert_eq!(expected.to_json(), keys(&server).await.remove(0).1);
    let other = candidate(server.address(), "other").await;
    follows(&other, odd.identity()).await;
    assert_eq!(other.leader_info().await.expect("a candidate leads"), expected);

    odd.close().await;
    leads(&other).await;
    let info = other.leader_info().await.expect("it leads");
    assert_eq!(info.to_string(), format!("other at \"10.0.0.1:80\" ({})", info.key));
}

#[tokio::test]
async fn values_without_json_are_identities() {
    let server = EtcdServer::start().await;
    let mut client = raw(&server).await;
    let elector = candidate(server.address(), "one").await;
    elector.evict_leader().await.expect("it serves");
    let key = format!("{ELECTION}/foreign");
    for value in ["pod-1", "", "{\"id\":", "5", r#"{"id":5}"#, r#"["id"]"#, "null"] {
        client.put(key.as_str(), value, None).await.expect("it serves");
        let expected = LeaderInfo { key: key.clone(), identity: value.into(), address: String::new() };
        assert_eq!(elector.leader_info().await.expect("somebody leads"), expected);
        client.delete(key.as_str(), None).await.expect("it serves");
    }
    client.put(key.as_str(), r#"{"addr":"x","id":"y","more":1}"#, None).await.expect("it serves");
    let info = elector.leader_info().await.expect("somebody leads");
    assert_eq!((&*info.identity, &*info.address), ("y", "x"));
}

#[tokio::test]
async fn without_any_candidate_there_is_no_leader() {
    let server = EtcdServer::start().await;
    let elector = candidate(server.address(), "one").await;
    elector.evict_leader().await.expect("it serves");
    let error = elector.leader_info().await.expect_err("no candidate competes");
    assert!(matches!(&error, ElectionError::NoLeader { election } if election == ELECTION), "{error:?}");
    assert!(error.is_not_found());
    reaches(&elector, "it knows of none", |s| matches!(s, Leadership::Follower { leader: None })).await;
}

#[tokio::test]
async fn notices_show_each_leader_until_the_end() {
    let server = EtcdServer::start().await;
    let first = candidate(server.address(), "first").await;
    let mut of_first = first.leader_notices();
    assert_eq!(soon(of_first.recv()).await, Some(LeaderNotice::BecameLeader));
    let second = candidate(server.address(), "second").await;
    let mut of_second = second.leader_notices();
    let info = first.leader_info().await.expect("it leads");
    assert_eq!(info.identity, "first");
    assert_eq!(soon(of_second.recv()).await, Some(LeaderNotice::NewLeader(info)));

    first.resign().await.expect("it serves");
    assert_eq!(soon(of_second.recv()).await, Some(LeaderNotice::BecameLeader));
    assert_eq!(soon(of_first.recv()).await, Some(LeaderNotice::Retired));
    let info = second.leader_info().await.expect("it leads");
    assert_eq!(soon(of_first.recv()).await, Some(LeaderNotice::NewLeader(info)));
    // A new listener starts with the current state.
    assert_eq!(soon(second.leader_notices().recv()).await, Some(LeaderNotice::BecameLeader));

    second.close().await;
    assert_eq!(soon(of_second.recv()).await, Some(LeaderNotice::Retired));
    assert_eq!(soon(of_second.recv()).await, None);
    assert_eq!(soon(of_first.recv()).await, Some(LeaderNotice::BecameLeader));
}

#[tokio::test]
async fn error_notices_end_with_the_elector() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let elector = builder(proxy.address(), "one").await.ttl(SHORT_TTL).start().await.expect("a session");
    leads(&elector).await;
    let mut errors = elector.error_notices();
    proxy.stall();
    let error = soon(errors.recv()).await.expect("it goes on");
    assert!(matches!(*error, ElectionError::Store(StoreError::Unavailable { .. })), "{error:?}");
    proxy.heal();
    leads(&elector).await;
    elector.close().await;
    let mut last = None;
    while let Some(error) = soon(errors.recv()).await {
        last = Some(error);
    }
    assert!(last.is_some_and(|error| error.is_cancelled()));
}

#[tokio::test]
async fn untaken_notices_are_dropped_and_reported() {
    let server = EtcdServer::start().await;
    let block_time = Duration::from_millis(200);
    let builder = builder(server.address(), "one").await.block_time(block_time);
    let elector = builder.start().await.expect("a session");
    leads(&elector).await;
    let (mut notices, mut errors) = (elector.leader_notices(), elector.error_notices());
    let mut events = elector.events();
    until("one waits to be taken", async || notices.len() == 1).await;
    let resigned = Instant::now();
    elector.resign().await.expect("it serves");
    leads(&elector).await;
    println!("elected again {:?} after the resignation", resigned.elapsed());
    // One error for `Retired`, one for `BecameLeader`.
    for _ in 0..2 {
        let error = soon(errors.recv()).await.expect("it goes on");
        assert!(matches!(*error, ElectionError::Blocked(time) if time == block_time), "{error:?}");
    }
    assert_eq!(soon(notices.recv()).await, Some(LeaderNotice::BecameLeader));
    elector.resign().await.expect("it serves");
    for expected in [LeaderNotice::Retired, LeaderNotice::BecameLeader] {
        assert_eq!(soon(notices.recv()).await, Some(expected));
    }
    elector.close().await;
    // These events have no gap.
    let mut elected = 0;
    while let Some(event) = soon(events.next()).await {
        elected += u32::from(matches!(event, Event::Elected { .. }));
    }
    assert_eq!(elected, 3);
}

#[tokio::test]
async fn only_keys_of_one_identity_are_cleared() {
    let server = EtcdServer::start().await;
    let mut client = raw(&server).await;
    let lease = client.lease_grant(600, None).await.expect("it serves").id();
    for (key, id) in [("1", "dead"), ("2", "dead"), ("3", "deader")] {
        let options = PutOptions::new().with_lease(lease);
        let value = format!(r#"{{"id":"{id}","addr":""}}"#);
        client.put(format!("{ELECTION}/{key}"), value, Some(options)).await.expect("it serves");
    }
    // A key of another election, whose name starts with ours.
    client.put(format!("{ELECTION}2/1"), r#"{"id":"dead","addr":""}"#, None).await.expect("it serves");
    let elector = candidate(server.address(), "one").await;
    follows(&elector, "dead").await;
    assert!(!elector.clear_session_if_needed("nobody").await.expect("it serves"));
    assert!(elector.clear_session_if_needed("dead").await.expect("it serves"));
    assert!(!elector.clear_session_if_needed("dead").await.expect("it serves"));
    follows(&elector, "deader").await;
    let left: Vec<_> = keys(&server).await.into_iter().map(|(_, value, _)| value).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(elector.clear_session_if_needed("deader").await.expect("it serves"));
    leads(&elector).await;
}

#[tokio::test]
async fn campaigns_restart_with_a_new_session() {
    let server = EtcdServer::start().await;
    let elector = builder(server.address(), "one").await.ttl(SHORT_TTL).start().await.expect("a session");
    leads(&elector).await;
    let (old, lease) = (token(&elector), keys(&server).await[0].2);
    let mut events = elector.events();
    raw(&server).await.lease_revoke(lease).await.expect("it serves");
    let retired = event(&mut events, |event| match event {
        Event::Retired { token } => Some(*token),
        _ => None,
    });
    assert_eq!(retired.await, old);
    let elected = event(&mut events, |event| match event {
        Event::Elected { token } => Some(*token),
        _ => None,
    });
    assert!(elected.await > old);
    let keys = keys(&server).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_ne!(keys[0].2, lease);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_key() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    proxy.lose_answer(br#"{"id":"one""#);
    let elector = candidate(proxy.address(), "one").await;
    proxy.struck().await;
    leads(&elector).await;
    assert_eq!(keys(&server).await.len(), 1);
    elector.close().await;
    assert_eq!(keys(&server).await, []);
}

#[tokio::test]
async fn campaign_that_fails_leaves_no_key() {
    let server = EtcdServer::start().await;
    for (arrives, closes) in [(false, false), (false, true), (true, false), (true, true)] {
        let proxy = Proxy::start(server.address()).await;
        let elector = candidate(proxy.address(), "one").await;
        elector.evict_leader().await.expect("it serves");
        proxy.refuse(true);
        match arrives {
            true => proxy.lose_answer(br#"{"id":"one""#),
            false => proxy.cut_in_request(br#"{"id":"one""#),
        }
        elector.cancel_evict_leader().await.expect("it exists");
        proxy.struck().await;
        assert_eq!(keys(&server).await.len(), usize::from(arrives));
        proxy.heal();
        match closes {
            true => soon(elector.close()).await,
            false => soon(elector.evict_leader()).await.expect("it serves"),
        }
        assert_eq!(keys(&server).await, [], "arrives: {arrives}, closes: {closes}");
    }
}

#[tokio::test]
async fn interrupted_resignations_leave_no_key() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let elector = candidate(proxy.address(), "one").await;
    for arrives in [false, true] {
        elector.cancel_evict_leader().await.expect("it exists");
        leads(&elector).await;
        let key = keys(&server).await.remove(0).0;
        match arrives {
            true => proxy.lose_answer(key),
            false => proxy.cut_in_request(key),
        }
        soon(elector.evict_leader()).await.expect("it serves");
        assert!(proxy.has_struck());
        assert_eq!(keys(&server).await, [], "arrives: {arrives}");
    }
}

#[tokio::test]
async fn unanswered_resignations_end_with_the_session() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let first = builder(proxy.address(), "first").await.ttl(SHORT_TTL).start().await.expect("a session");
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    proxy.stall();
    let refused = soon(first.resign()).await;
    assert!(matches!(refused, Err(ElectionError::Store(StoreError::Unavailable { .. }))), "{refused:?}");
    assert!(!first.is_leader());
    leads(&second).await;
    proxy.heal();
    follows(&first, "second").await;
    until("only the two are left", async || keys(&server).await.len() == 2).await;
}

#[tokio::test]
async fn leaders_survive_a_compaction_and_report_it() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let elector = candidate(proxy.address(), "one").await;
    leads(&elector).await;
    let old_token = token(&elector);
    let mut events = elector.events();
    proxy.refuse(true);
    proxy.cut();
    compact(&server).await;
    proxy.heal();
    interrupted(&mut events, ElectionError::is_watch_expired).await;
    assert_eq!(token(&elector), old_token);
    // The new watch works.
    let deposed = Instant::now();
    raw(&server).await.delete(keys(&server).await.remove(0).0, None).await.expect("it serves");
    event(&mut events, |event| matches!(event, Event::Retired { .. }).then_some(())).await;
    leads(&elector).await;
    assert!(deposed.elapsed() < LONG && token(&elector) > old_token);
}

#[tokio::test]
async fn candidates_closed_while_they_begin_leave_no_lease() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    proxy.delay(Duration::from_millis(100));
    let voters = EtcdVoters::builder(etcd_client(proxy.address()).await).build().expect("valid settings");
    let mut client = raw(&server).await;
    // Connects.
    voters.add_voter("first", "one", LONG_TTL).expect("valid settings").close().await;
    for round in 0..20 {
        let voter = voters.add_voter("k", &format!("{round}"), LONG_TTL).expect("valid settings");
        sleep(Duration::from_millis(10 * round)).await;
        soon(voter.close()).await;
        let left = client.leases().await.expect("it serves");
        assert_eq!(left.leases().len(), 0, "closed after {} ms", 10 * round);
    }
    // The same for one that is dropped before it has started.
    for round in 0..20 {
        let start = builder(proxy.address(), "one").await.start();
        let started = timeout(Duration::from_millis(10 * round), start).await;
        drop(started);
        until("no lease is left", async || client.leases().await.is_ok_and(|left| left.leases().is_empty()))
            .await;
    }
    // And for one whose grants are not answered.
    proxy.stall();
    let unanswered = builder(proxy.address(), "one").await.start().await;
    assert!(unanswered.is_err());
    proxy.heal();
    until("no lease is left", async || client.leases().await.is_ok_and(|left| left.leases().is_empty()))
        .await;
}

#[tokio::test]
async fn former_leaders_back_off() {
    let server = EtcdServer::start().await;
    let proxies = [Proxy::start(server.address()).await, Proxy::start(server.address()).await];
    let elector = builder(proxies[0].address(), "one").await.ttl(SHORT_TTL).start().await.expect("a session");
    let voters = EtcdVoters::builder(etcd_client(proxies[1].address()).await).request_timeout(REQUEST);
    let voters = voters.build().expect("valid settings");
    let voter = voters.add_voter("k", "one", SHORT_TTL).expect("valid settings");
    leads(&elector).await;
    leads(&voter).await;
    for proxy in &proxies {
        proxy.refuse(true);
        proxy.cut();
    }
    // Until the pauses have grown.
    sleep(Duration::from_secs(10)).await;
    let before = proxies.each_ref().map(|proxy| proxy.accepted());
    sleep(Duration::from_secs(10)).await;
    for (proxy, before) in proxies.iter().zip(before) {
        let connections = proxy.accepted() - before;
        println!("{connections} connections in 10 s");
        assert!(connections <= 20, "{connections} connections in 10 s");
        proxy.heal();
    }
    leads(&elector).await;
    leads(&voter).await;
}
