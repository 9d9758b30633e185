//! The voters on etcd, compared with gravitational/coordinate's `leader`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::GetOptions;
use tokio::{sync::mpsc, time::sleep};
use writerlease::{
    election::{ElectionError, Elector, Leadership},
    etcd::{EtcdVoter, EtcdVoters, UnlimitedBackoff},
    store::StoreError,
};

use writerlease_test_support::{proxy::Proxy, server::EtcdServer};

use crate::{
    adapters::etcd::{TOO_LARGE, compact, ends_too_large, raw},
    engines::etcd_client,
    states::{LONG, assert_config, follows, interrupted, leads, nowhere, reaches, soon, token, until},
};

const KEY: &str = "masters/1";
const SHORT_TERM: Duration = Duration::from_secs(1);
/// Longer than a test waits, so that no effect in time comes from an expiry.
const LONG_TERM: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(1);

async fn voters(address: SocketAddr) -> EtcdVoters {
    let builder = EtcdVoters::builder(etcd_client(address).await).request_timeout(REQUEST);
    builder.build().expect("valid settings")
}

async fn vote(voters: &EtcdVoters, key: &str, value: &str) -> EtcdVoter {
    voters.add_voter(key, value, LONG_TERM).expect("valid settings")
}

async fn put(server: &EtcdServer, key: &str, value: &str) {
    raw(server).await.put(key, value, None).await.expect("it serves");
}

/// Returns the contents of etcd: keys with their values, and the number of leases.
async fn contents(server: &EtcdServer) -> (Vec<String>, usize) {
    let mut client = raw(server).await;
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await.expect("it serves");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let keys = all.kvs().iter().map(|kv| format!("{}={}", text(kv.key()), text(kv.value()))).collect();
    (keys, client.leases().await.expect("it serves").leases().len())
}

fn channel(voters: &EtcdVoters, key: &str) -> mpsc::Receiver<String> {
    let (sender, values) = mpsc::channel(1);
    voters.add_watch(key, sender).expect("a valid key");
    values
}

#[tokio::test]
async fn values_and_keys_too_large_for_etcd_end_the_voter() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let voter = vote(&voters, KEY, &"x".repeat(TOO_LARGE)).await;
    ends_too_large(&voter, &server).await;
    // It may be added anew.
    let voter = vote(&voters, KEY, "one").await;
    leads(&voter).await;
    let voter = vote(&voters, &"k".repeat(2 * TOO_LARGE), "one").await;
    let failed = |state: &Leadership| matches!(state, Leadership::Failed(error) if matches!(**error, ElectionError::Store(StoreError::TooLarge { .. })));
    reaches(&voter, "it has ended", failed).await;
}

#[tokio::test]
async fn invalid_settings_are_named_with_their_rule() {
    let voters = voters(nowhere()).await;
    let short = voters.add_voter("k", "v", Duration::from_millis(999));
    assert_config(short, "ttl", "999ms", "at least 1s");
    let long = voters.add_voter("k", "v", Duration::MAX);
    assert_config(long, "ttl", &format!("{:?}", Duration::MAX), "at most 31536000s");
    assert_config(voters.add_voter("", "v", LONG_TERM), "key", "\"\"", "not empty");
    assert_config(voters.add_voter("k", "", LONG_TERM), "value", "\"\"", "not empty");
    assert_config(voters.add_watch("", mpsc::channel(1).0), "key", "\"\"", "not empty");
    assert_config(voters.add_watch_callback("", |_, _, _| {}), "key", "\"\"", "not empty");
    let never = EtcdVoters::builder(etcd_client(nowhere()).await).request_timeout(Duration::ZERO).build();
    assert_config(never.map_err(Into::into), "request_timeout", "0ns", "longer than zero");
}

#[tokio::test]
async fn each_key_is_its_own_election() {
    let server = EtcdServer::start().await;
    let (one, other) = (voters(server.address()).await, voters(server.address()).await);
    let theirs = vote(&other, "b", "theirs").await;
    leads(&theirs).await;
    // The first key is a prefix of the last one.
    let ours = [vote(&one, "a", "1").await, vote(&one, "b", "2").await, vote(&one, "ab", "3").await];
    leads(&ours[0]).await;
    follows(&ours[1], "theirs").await;
    leads(&ours[2]).await;
    assert_eq!(contents(&server).await.0, ["a=1", "ab=3", "b=theirs"]);
    assert_eq!(ours[1].identity(), "2");
}

#[tokio::test]
async fn each_key_accepts_one_voter() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let voter = vote(&voters, KEY, "one").await;
    leads(&voter).await;
    let same = vote(&voters, KEY, "one").await;
    assert_eq!(token(&same), token(&voter));
    for (value, term) in [("other", LONG_TERM), ("one", SHORT_TERM)] {
        let error = voters.add_voter(KEY, value, term).expect_err("there is one");
        assert!(error.is_already_exists() && !error.is_not_found(), "{error:?}");
        assert!(error.to_string().contains(KEY), "{error}");
    }
    // Both are one voter, so the second ends with the first.
    voter.close().await;
    assert!(same.resign().await.is_err_and(|error| error.is_cancelled()));
    // A voter that has ended may be replaced.
    leads(&vote(&voters, KEY, "other").await).await;
}

#[tokio::test]
async fn removed_voters_are_replaced_immediately() {
    let server = EtcdServer::start().await;
    let (one, other) = (voters(server.address()).await, voters(server.address()).await);
    let first = vote(&one, KEY, "first").await;
    leads(&first).await;
    let second = vote(&other, KEY, "second").await;
    follows(&second, "first").await;
    for (key, value, term) in
        [("masters/2", "first", LONG_TERM), (KEY, "second", LONG_TERM), (KEY, "first", SHORT_TERM)]
    {
        let error = one.remove_voter(key, value, term).await.expect_err("there is none");
        assert!(error.is_not_found() && !error.is_already_exists(), "{error:?}");
    }
    assert!(first.is_leader());
    let removed = Instant::now();
    one.remove_voter(KEY, "first", LONG_TERM).await.expect("there is one");
    assert!(!first.is_leader());
    leads(&second).await;
    println!("replaced {:?} after it was removed", removed.elapsed());
    assert!(one.remove_voter(KEY, "first", LONG_TERM).await.is_err_and(|error| error.is_not_found()));
    // The voter may be added again.
    follows(&vote(&one, KEY, "first").await, "second").await;
}

#[tokio::test]
async fn watches_report_the_current_value_and_changes() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    put(&server, KEY, "1").await;
    put(&server, "masters/11", "not ours").await;
    let mut values = channel(&voters, KEY);
    assert_eq!(soon(values.recv()).await.as_deref(), Some("1"));
    for value in ["2", "3"] {
        put(&server, "masters/11", value).await;
        put(&server, "masters", value).await;
        put(&server, KEY, value).await;
        assert_eq!(soon(values.recv()).await.as_deref(), Some(value));
    }
    raw(&server).await.delete(KEY, None).await.expect("it serves");
    put(&server, KEY, "3").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some(""));
    assert_eq!(soon(values.recv()).await.as_deref(), Some("3"));
}

#[tokio::test]
async fn watches_report_that_the_leader_is_gone() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let voters = voters(proxy.address()).await;
    let mut values = channel(&voters, KEY);
    let (sender, mut calls) = mpsc::unbounded_channel();
    let call_back = move |_: &str, previous: &str, current: &str| {
        let _ = sender.send((previous.to_owned(), current.to_owned()));
    };
    voters.add_watch_callback(KEY, call_back).expect("a valid key");
    let other = crate::adapters::etcd_voter::voters(server.address()).await;
    let mut previous = "one";
    for _ in 0..2 {
        let voter = vote(&other, KEY, "one").await;
        assert_eq!(soon(values.recv()).await.as_deref(), Some("one"));
        assert_eq!(soon(calls.recv()).await, Some((previous.into(), "one".into())));
        previous = "";
        voter.close().await;
        assert_eq!(soon(values.recv()).await.as_deref(), Some(""));
        assert_eq!(soon(calls.recv()).await, Some(("one".into(), "".into())));
    }
    // The same if the watch cannot continue where it was, and nothing twice.
    put(&server, KEY, "two").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("two"));
    proxy.refuse(true);
    proxy.cut();
    raw(&server).await.delete(KEY, None).await.expect("it serves");
    compact(&server).await;
    proxy.heal();
    assert_eq!(soon(values.recv()).await.as_deref(), Some(""));
    proxy.refuse(true);
    proxy.cut();
    compact(&server).await;
    proxy.heal();
    put(&server, KEY, "three").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("three"));
}

#[tokio::test]
async fn watches_report_keys_that_appear_later() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let mut values = channel(&voters, KEY);
    sleep(Duration::from_millis(200)).await;
    assert!(values.is_empty());
    let voter = vote(&voters, KEY, "one").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("one"));
    leads(&voter).await;
}

#[tokio::test]
async fn slow_watchers_delay_no_one_else() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let (mut slow, mut quick) = (channel(&voters, KEY), channel(&voters, KEY));
    let expected: Vec<_> = (0..10).map(|value| value.to_string()).collect();
    for value in &expected {
        put(&server, KEY, value).await;
        assert_eq!(soon(quick.recv()).await.as_ref(), Some(value));
    }
    leads(&vote(&voters, "masters/2", "one").await).await;
    // The slow watcher has missed no value.
    for value in &expected {
        assert_eq!(soon(slow.recv()).await.as_ref(), Some(value));
    }
}

#[tokio::test]
async fn first_callbacks_have_the_current_value_twice() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    put(&server, KEY, "1").await;
    let (sender, mut calls) = mpsc::unbounded_channel();
    let call_back = move |key: &str, previous: &str, current: &str| {
        let _ = sender.send([key, previous, current].map(str::to_owned));
    };
    voters.add_watch_callback(KEY, call_back).expect("a valid key");
    for [previous, current] in [["1", "1"], ["1", "2"], ["2", "3"]] {
        put(&server, KEY, current).await;
        let call = soon(calls.recv()).await.expect("it goes on");
        assert_eq!(call, [KEY, previous, current]);
    }
}

#[tokio::test]
async fn panicking_callbacks_get_the_next_change() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let (sender, mut calls) = mpsc::unbounded_channel();
    let call_back = move |_: &str, _: &str, current: &str| {
        sender.send(current.to_owned()).expect("the test waits");
        assert_ne!(current, "1", "on purpose");
    };
    voters.add_watch_callback(KEY, call_back).expect("a valid key");
    for value in ["1", "2"] {
        put(&server, KEY, value).await;
        assert_eq!(soon(calls.recv()).await.as_deref(), Some(value));
    }
}

#[tokio::test]
async fn callbacks_may_block_and_close_the_voters() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let (release, released) = std::sync::mpsc::channel();
    let (sender, mut calls) = mpsc::unbounded_channel();
    let (closing, runtime) = (voters.clone(), tokio::runtime::Handle::current());
    let call_back = move |_: &str, _: &str, current: &str| {
        let _ = released.recv();
        if current == "2" {
            runtime.block_on(closing.close());
        }
        let _ = sender.send(current.to_owned());
    };
    put(&server, KEY, "1").await;
    voters.add_watch_callback(KEY, call_back).expect("a valid key");
    sleep(Duration::from_millis(200)).await;
    // This test has one thread, which the callback does not block.
    let voter = vote(&voters, "masters/2", "one").await;
    leads(&voter).await;
    put(&server, KEY, "2").await;
    for expected in ["1", "2"] {
        release.send(()).expect("the callback waits");
        assert_eq!(soon(calls.recv()).await.as_deref(), Some(expected));
    }
    assert!(voter.resign().await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(contents(&server).await, (vec![format!("{KEY}=2")], 0));
}

#[tokio::test]
async fn watches_and_voters_survive_a_compaction() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let voters = voters(proxy.address()).await;
    let mut values = channel(&voters, "watched");
    put(&server, "watched", "before").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("before"));
    let voter = vote(&voters, KEY, "one").await;
    leads(&voter).await;
    let (old_token, mut events) = (token(&voter), voter.events());
    proxy.refuse(true);
    proxy.cut();
    for value in ["missed", "now"] {
        put(&server, "watched", value).await;
    }
    compact(&server).await;
    proxy.heal();
    assert_eq!(soon(values.recv()).await.as_deref(), Some("now"));
    put(&server, "watched", "after").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("after"));
    let error = interrupted(&mut events, ElectionError::is_watch_expired).await;
    assert!(!error.is_cancelled());
    assert_eq!(token(&voter), old_token);
}

#[tokio::test]
async fn stepping_down_lets_others_win() {
    let server = EtcdServer::start().await;
    let (one, other) = (voters(server.address()).await, voters(server.address()).await);
    let mut ours = Vec::new();
    for key in ["a", "b"] {
        let voter = one.add_voter(key, "ours", SHORT_TERM).expect("valid settings");
        leads(&voter).await;
        ours.push(voter);
    }
    let theirs = vote(&other, "a", "theirs").await;
    follows(&theirs, "ours").await;
    let stepped_down = Instant::now();
    one.step_down().await.expect("it serves");
    assert!(ours.iter().all(|voter| !voter.is_leader()));
    // The key is given up, not left to expire.
    let keys = contents(&server).await.0;
    assert!(!keys.iter().any(|key| key.ends_with("=ours")), "{keys:?}");
    leads(&theirs).await;
    println!("replaced after {:?}; term {SHORT_TERM:?}", stepped_down.elapsed());
    follows(&ours[0], "theirs").await;
    // Keys without a competitor, and keys that are free again, wait too.
    other.close().await;
    for voter in &ours {
        leads(voter).await;
        assert!(stepped_down.elapsed() >= 2 * SHORT_TERM, "{:?}", stepped_down.elapsed());
    }
}

#[tokio::test]
async fn close_ends_everything_and_empties_etcd() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let ours = [vote(&voters, "a", "1").await, vote(&voters, "b", "2").await];
    let mut values = channel(&voters, "a");
    let alive = Arc::new(());
    let held = alive.clone();
    voters.add_watch_callback("b", move |_, _, _| drop(held.clone())).expect("a valid key");
    for voter in &ours {
        leads(voter).await;
    }
    assert_eq!(soon(values.recv()).await.as_deref(), Some("1"));
    assert_eq!(contents(&server).await, (vec!["a=1".into(), "b=2".into()], 2));
    soon(voters.close()).await;
    assert_eq!(contents(&server).await, (vec![], 0));
    assert_eq!(soon(values.recv()).await, None);
    until("the callback is gone", async || Arc::strong_count(&alive) == 1).await;

    soon(voters.close()).await;
    let refused = [
        voters.add_voter("a", "1", LONG_TERM).map(drop),
        voters.remove_voter("a", "1", LONG_TERM).await,
        voters.add_watch("a", mpsc::channel(1).0),
        voters.add_watch_callback("a", |_, _, _| {}),
        ours[0].resign().await,
    ];
    for refused in refused {
        assert!(matches!(&refused, Err(ElectionError::Closed)), "{refused:?}");
        assert!(refused.is_err_and(|error| error.is_cancelled()));
    }
    voters.step_down().await.expect("no candidate leads");
}

#[tokio::test]
async fn voters_and_watches_end_with_the_last_handle() {
    let server = EtcdServer::start().await;
    let voters = voters(server.address()).await;
    let voter = vote(&voters, KEY, "one").await;
    leads(&voter).await;
    let mut values = channel(&voters, KEY);
    assert_eq!(soon(values.recv()).await.as_deref(), Some("one"));
    let clone = voters.clone();
    drop((voters, voter));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(contents(&server).await.0, [format!("{KEY}=one")]);
    drop(clone);
    until("nothing is left", async || contents(&server).await == (vec![], 0)).await;
    assert_eq!(soon(values.recv()).await, None);
}

#[tokio::test]
async fn unanswered_votes_are_found_or_undone() {
    let server = EtcdServer::start().await;
    for undone in [false, true] {
        let proxy = Proxy::start(server.address()).await;
        let voters = voters(proxy.address()).await;
        proxy.lose_answer("this one");
        let voter = vote(&voters, KEY, "this one").await;
        proxy.struck().await;
        if !undone {
            leads(&voter).await;
        }
        soon(voters.close()).await;
        assert_eq!(contents(&server).await, (vec![], 0));
    }
}

#[test]
fn pauses_grow_to_the_longest_until_reset() {
    let (first, longest) = (Duration::from_millis(10), Duration::from_secs(1));
    let mut pauses = UnlimitedBackoff::new(first, longest);
    for _ in 0..2 {
        for exponent in 0..6 {
            let (pause, nominal) = (pauses.next().expect("it never ends"), first * 2_u32.pow(exponent));
            assert!((nominal / 2..=nominal * 3 / 2).contains(&pause), "{pause:?} of {nominal:?}");
        }
        let later: Vec<_> = pauses.by_ref().take(10_000).skip(2).collect();
        assert_eq!(later.len(), 10_000 - 2);
        assert!(later.iter().all(|pause| (longest / 4..=longest).contains(pause)));
        pauses.reset();
    }
    // The same with a first pause beyond the longest one.
    assert!(UnlimitedBackoff::new(LONG, longest).take(10).all(|pause| pause <= longest));
}
