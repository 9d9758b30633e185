//! The voters on etcd, compared with gravitational/coordinate's `leader`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::GetOptions;
use tokio::{sync::mpsc, time::sleep};
use writerlease::{
    election::{ElectionError, Elector},
    etcd::{EtcdVoter, EtcdVoters, UnlimitedBackoff},
};

use writerlease_test_support::{proxy::Proxy, server::EtcdServer};

use crate::{
    adapters::etcd::{compact, raw},
    engines::etcd_client,
    states::{LONG, assert_config, follows, interrupted, leads, nowhere, soon, token, until},
};

const KEY: &str = "masters/1";
const SHORT_TERM: Duration = Duration::from_secs(1);
/// Far longer than any test waits: whatever happens in a test does not happen because this time is
/// over.
const LONG_TERM: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(1);

async fn voters(address: SocketAddr) -> EtcdVoters {
    EtcdVoters::with_request_timeout(etcd_client(address).await, REQUEST)
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
async fn settings_that_cannot_be_used_are_told_with_their_rule() {
    let voters = voters(nowhere()).await;
    let short = voters.add_voter("k", "v", Duration::from_millis(999));
    assert_config(short, "term", "999ms", "at least 1s");
    let long = voters.add_voter("k", "v", Duration::MAX);
    assert_config(long, "term", &format!("{:?}", Duration::MAX), "at most 31536000s");
    assert_config(voters.add_voter("", "v", LONG_TERM), "key", "\"\"", "not empty");
    assert_config(voters.add_voter("k", "", LONG_TERM), "value", "\"\"", "not empty");
    assert_config(voters.add_watch("", mpsc::channel(1).0), "key", "\"\"", "not empty");
    assert_config(voters.add_watch_callback("", |_, _, _| {}), "key", "\"\"", "not empty");
}

#[tokio::test]
async fn one_client_votes_for_several_keys_each_an_election_of_its_own() {
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
async fn the_same_voter_is_added_once_and_another_for_the_key_is_refused() {
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
    // Both are the same voter: closing the first ends the second.
    voter.close().await;
    assert!(same.resign().await.is_err_and(|error| error.is_cancelled()));
    // A voter that has ended does not block another.
    leads(&vote(&voters, KEY, "other").await).await;
}

#[tokio::test]
async fn a_voter_that_is_removed_stops_and_another_wins_at_once() {
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
    // It may be added again.
    follows(&vote(&one, KEY, "first").await, "second").await;
}

#[tokio::test]
async fn a_watch_tells_the_value_of_now_and_each_change_of_this_key() {
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
    // A deletion is not reported as a value.
    raw(&server).await.delete(KEY, None).await.expect("it serves");
    put(&server, KEY, "4").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("4"));
}

#[tokio::test]
async fn watch_reports_a_key_that_appears_later() {
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
async fn slow_watcher_holds_up_no_other() {
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
async fn a_callback_is_first_told_the_value_of_now_as_the_previous_one_too() {
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
async fn panicking_callback_gets_the_next_change() {
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
async fn watches_and_voters_go_on_after_a_compaction_while_they_were_cut_off() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let voters = voters(proxy.address()).await;
    let mut values = channel(&voters, "watched");
    put(&server, "watched", "before").await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("before"));
    let voter = vote(&voters, KEY, "one").await;
    leads(&voter).await;
    let (reign, mut events) = (token(&voter), voter.events());
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
    assert_eq!(token(&voter), reign);
}

#[tokio::test]
async fn who_steps_down_lets_others_win_for_twice_the_term() {
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
    // Our voters wait although one key has no other candidate and the other is free again.
    other.close().await;
    for voter in &ours {
        leads(voter).await;
        assert!(stepped_down.elapsed() >= 2 * SHORT_TERM, "{:?}", stepped_down.elapsed());
    }
}

#[tokio::test]
async fn close_ends_voters_and_watches_and_leaves_nothing_in_etcd() {
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
async fn vote_without_an_answer_is_found_or_removed() {
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
fn pauses_grow_up_to_the_longest_and_begin_anew_after_a_reset() {
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
    // The same holds for a first pause beyond the longest.
    assert!(UnlimitedBackoff::new(LONG, longest).take(10).all(|pause| pause <= longest));
}
