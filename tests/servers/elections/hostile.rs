//! Hostile entries in an election: they make no candidate panic and elect none. When they are gone,
//! the election goes on.

use etcd_client::PutOptions;
use futures_util::{FutureExt, StreamExt};
use tokio::time::sleep;
use writerlease::election::{Elector, Event, Leadership};
use zookeeper_client::{Acl, Acls, AuthId, CreateMode, Permission};

use crate::engines::{ELECTION, Engine, Etcd, Redis, Voter, Zookeeper, etcd_client, zookeeper_client};
use crate::states::{at_best, ensure, follows, leads, reaches, soon, token, until};
use writerlease_test_support::{proxy::Proxy, server::RedisServer};

/// The longest value: ZooKeeper's servers pass on no longer ones.
const HUGE: usize = 1_000_000;

/// Values that no candidate would write.
fn values() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("huge", vec![b'x'; HUGE]),
        ("not UTF-8", b"\xff\xfe\x00\xc3\x28".to_vec()),
        ("JSON that is cut off", br#"{"id":"po"#.to_vec()),
        ("JSON that is too deep", b"[".repeat(100_000)),
        ("JSON of other types", br#"{"id":-1,"addr":[null,1e999]}"#.to_vec()),
        ("a number", b"-9223372036854775809".to_vec()),
        ("slashes", b"//a/../b/".to_vec()),
        ("our id", b"one".to_vec()),
        ("our id in JSON", br#"{"id":"one","addr":""}"#.to_vec()),
        ("what looks like our lock", b"one/0123456789abcdef".to_vec()),
    ]
}

/// Checks that the candidate follows while another program holds the election.
async fn does_not_lead<E: Engine>(elector: &E::Elector, what: &str) {
    let mut events = elector.events();
    let mut complains = false;
    let mut look = || {
        while let Some(event) = events.next().now_or_never().flatten() {
            assert!(!matches!(event, Event::Elected { .. } | Event::Failed(_)), "{what}: {event:.200?}");
            complains |= matches!(event, Event::Interrupted(_));
        }
        assert!(elector.fence().is_none(), "{what}");
        complains || matches!(*elector.leadership().borrow(), Leadership::Follower { .. })
    };
    until(what, async || look()).await;
    sleep(E::TTL * 2 / 3).await;
    assert!(look(), "{what}");
}

#[tokio::test]
async fn foreign_keys_in_etcd_elect_nobody() {
    let engine = Etcd::start().await;
    let mut client = etcd_client(engine.address()).await;
    let mut keys: Vec<Vec<u8>> = values().iter().map(|_| format!("{ELECTION}/0").into_bytes()).collect();
    keys[0] = format!("{ELECTION}/").into_bytes();
    keys[1] = [ELECTION.as_bytes(), b"/\xff\xfe"].concat();
    keys[2] = format!("{ELECTION}//-1/ffffffffffffffffffffffff").into_bytes();
    for (key, (what, value)) in keys.into_iter().zip(values()) {
        client.put(&key[..], value, None).await.expect("it serves");
        let elector = engine.candidate("one").await;
        let mut notices = elector.leader_notices();
        does_not_lead::<Etcd>(&elector, what).await;
        assert_eq!(
            soon(elector.leader_info()).await.expect("a candidate leads").key,
            String::from_utf8_lossy(&key)
        );
        assert!(soon(notices.recv()).await.is_some(), "{what}");
        client.delete(key, None).await.expect("it serves");
        leads(&elector).await;
        soon(elector.close()).await;
    }
}

#[tokio::test]
async fn etcd_candidates_wait_for_a_foreign_own_key() {
    let engine = Etcd::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let elector = engine.candidate_at(proxy.address(), "one").await;
    leads(&elector).await;
    let mut client = etcd_client(engine.address()).await;
    let traces = engine.traces().await;
    let key = traces[0].split('=').next().expect("its key");
    // The stall keeps the candidate from being faster.
    proxy.stall();
    client.delete(key, None).await.expect("it serves");
    client.put(key, "theirs", None).await.expect("it serves");
    proxy.heal();
    follows(&elector, "theirs").await;
    does_not_lead::<Etcd>(&elector, "our own key").await;
    client.delete(key, None).await.expect("it serves");
    leads(&elector).await;
}

#[tokio::test]
async fn foreign_values_of_the_key_elect_no_voter() {
    let engine = Voter::start().await;
    let mut client = etcd_client(engine.address()).await;
    for (what, value) in values() {
        client.put(ELECTION, value, None).await.expect("it serves");
        let voter = engine.candidate("one").await;
        does_not_lead::<Voter>(&voter, what).await;
        client.delete(ELECTION, None).await.expect("it serves");
        leads(&voter).await;
        soon(voter.close()).await;
    }
}

#[tokio::test]
async fn foreign_keys_under_its_lease_elect_no_voter() {
    let engine = Voter::start().await;
    let mut client = etcd_client(engine.address()).await;
    client.put(ELECTION, "theirs", None).await.expect("it serves");
    let voter = engine.candidate("one").await;
    follows(&voter, "theirs").await;
    let leases = client.leases().await.expect("it serves");
    let options = PutOptions::new().with_lease(leases.leases()[0].id());
    client.put(ELECTION, "theirs by our lease", Some(options)).await.expect("it serves");
    follows(&voter, "theirs by our lease").await;
    does_not_lead::<Voter>(&voter, "our lease").await;
    client.delete(ELECTION, None).await.expect("it serves");
    leads(&voter).await;
}

#[tokio::test]
async fn foreign_nodes_in_zookeeper_elect_nobody() {
    let engine = Zookeeper::start().await;
    let client = zookeeper_client(engine.address()).await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(ELECTION, &open).await.expect("it serves");
    let names = ["x-lock--2147483648", "-lock-0", "ä\u{200b}-lock--0000000001", "a-lock-b-lock--7"];
    for ((what, value), name) in values().into_iter().zip(names.iter().cycle()) {
        let path = format!("{ELECTION}/{name}");
        client.create(&path, &value, &open).await.expect("it serves");
        client.create(&format!("{path}/child-lock--9"), &value, &open).await.expect("it serves");
        let elector = engine.candidate("one").await;
        does_not_lead::<Zookeeper>(&elector, what).await;
        client.delete(&format!("{path}/child-lock--9"), None).await.expect("it serves");
        client.delete(&path, None).await.expect("it serves");
        leads(&elector).await;
        soon(elector.close()).await;
    }
    // An unreadable node, and numbers that ZooKeeper never gives.
    let path = format!("{ELECTION}/x-lock-0");
    let unreadable = [Acl::new(Permission::WRITE | Permission::DELETE, AuthId::anyone())];
    client
        .create(&path, b"", &CreateMode::Persistent.with_acls(Acls::new(&unreadable)))
        .await
        .expect("it serves");
    for number in ["-2147483649", "99999999999999999999", "", "-", "NaN", "0x1"] {
        client.create(&format!("{ELECTION}/x-lock-{number}"), b"", &open).await.expect("it serves");
    }
    let elector = engine.candidate("one").await;
    does_not_lead::<Zookeeper>(&elector, "unreadable").await;
    client.delete(&path, None).await.expect("it serves");
    leads(&elector).await;
}

#[tokio::test]
async fn foreign_nodes_with_our_prefix_are_not_ours() {
    let engine = Zookeeper::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let client = zookeeper_client(engine.address()).await;
    let elector = engine.candidate_at(proxy.address(), "one").await;
    leads(&elector).await;
    // It enters again, gets no answer, and cannot look before another program has read its name.
    proxy.refuse(true);
    proxy.lose_answer("_c_");
    engine.depose().await;
    proxy.struck().await;
    until("it is back", async || engine.traces().await.len() == 1).await;
    let ours = engine.traces().await.remove(0);
    let (prefix, _) = ours.rsplit_once('-').expect("a number");
    let theirs = format!("{ELECTION}/{prefix}--2147483648");
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create(&theirs, b"theirs", &open).await.expect("it serves");
    proxy.heal();
    follows(&elector, "theirs").await;
    does_not_lead::<Zookeeper>(&elector, "our name").await;
    client.delete(&theirs, None).await.expect("it serves");
    leads(&elector).await;
    assert_eq!(engine.traces().await, [ours]);
}

/// A value in the quotes of an inline command.
fn quoted(value: &[u8]) -> String {
    let bytes: String = value.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("\"{bytes}\"")
}

async fn set(server: &RedisServer, key: &str, value: &[u8]) {
    let answer = match value.len() {
        // Inline commands end after 64 KiB.
        10_000.. => server.ask(&format!("SETRANGE {key} {} x", value.len() - 1)).await,
        _ => server.ask(&format!("SET {key} {}", quoted(value))).await,
    };
    assert!(!answer.starts_with('-'), "{answer}");
}

#[tokio::test]
async fn foreign_values_in_redis_elect_nobody() {
    let engine = Redis::start().await;
    let server = &engine.0;
    let mut holders = values();
    let types = ["RPUSH KEY x", "SADD KEY x", "HSET KEY value x version 1", "ZADD KEY 1 x", "XADD KEY * x y"];
    holders.extend(types.map(|command| (command, Vec::new())));
    for (what, value) in holders {
        match what.split_once("KEY") {
            Some((command, rest)) => drop(server.ask(&format!("{command}{ELECTION}{rest}")).await),
            None => set(server, ELECTION, &value).await,
        }
        let elector = engine.candidate("one").await;
        does_not_lead::<Redis>(&elector, what).await;
        server.ask(&format!("DEL {ELECTION}")).await;
        leads(&elector).await;
        // Again, now in place of a leader's value.
        server.ask(&format!("DEL {ELECTION}")).await;
        set(server, ELECTION, b"").await;
        reaches(&elector, what, |state| matches!(state, Leadership::Follower { .. })).await;
        server.ask(&format!("DEL {ELECTION}")).await;
        leads(&elector).await;
        soon(elector.close()).await;
    }
}

#[tokio::test]
async fn empty_foreign_values_are_left_alone() {
    let engine = Redis::start().await;
    let server = &engine.0;
    server.ask(&format!("SET {ELECTION} \"\" PX 2000")).await;
    let elector = engine.candidate("one").await;
    follows(&elector, "").await;
    elector.resign().await.expect("it serves");
    assert!(server.ask(&format!("EXISTS {ELECTION}")).await.contains(":1"));
    leads(&elector).await;
    server.ask(&format!("SET {ELECTION} \"\"")).await;
    follows(&elector, "").await;
    soon(elector.close()).await;
    assert!(server.ask(&format!("EXISTS {ELECTION}")).await.contains(":1"));
}

#[tokio::test]
async fn tokens_grow_whatever_the_counter_says() {
    let engine = Redis::start().await;
    let server = &engine.0;
    let counter = format!("{ELECTION}:token");
    let mut last = 0;
    for value in [
        "-5",
        "inf",
        "nan",
        "1e300",
        "9007199254740992",
        "18446744073709551615",
        "",
        "1.5",
        "0x1p60",
        "x\\x00\\xff",
    ] {
        server.ask(&format!("SET {counter} \"{value}\"")).await;
        let elector = engine.candidate("one").await;
        leads(&elector).await;
        assert!(token(&elector) > last, "{value:?}: {} after {last}", token(&elector));
        last = token(&elector);
        at_best("the leader goes on", async || {
            leads(&elector).await;
            let token = elector.fence().map(|fence| fence.token());
            server.ask(&format!("SET {counter} \"{value}\"")).await;
            sleep(2 * Redis::TTL).await;
            let now = elector.fence().map(|fence| fence.token());
            ensure(now.is_some() && now == token, || format!("{value:?}: {token:?}, then {now:?}"))
        })
        .await;
        last = last.max(elector.fence().map_or(0, |fence| fence.token()));
        soon(elector.close()).await;
    }
    server.ask(&format!("DEL {counter}")).await;
    server.ask(&format!("RPUSH {counter} x")).await;
    let elector = engine.candidate("one").await;
    does_not_lead::<Redis>(&elector, "a list").await;
    assert!(server.ask(&format!("LLEN {counter}")).await.contains(":1"), "foreign data is left alone");
    server.ask(&format!("DEL {counter}")).await;
    leads(&elector).await;
    assert!(token(&elector) > last);
}
