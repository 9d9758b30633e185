//! What `contended_updates` promises on its command line: figures that a program can read, exit codes, one clear line.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::Value;

static EXAMPLE: LazyLock<PathBuf> =
    LazyLock::new(|| writerlease_test_support::build::example("contended_updates"));

fn run(arguments: &[&str]) -> Output {
    Command::new(&*EXAMPLE).args(arguments).stdin(Stdio::null()).output().expect("the example runs")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Exit code 2, nothing on stdout, and one line on stderr.
fn complaint(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}: {output:?}");
    let line = String::from_utf8(output.stderr).expect("it is text");
    assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
    line
}

#[test]
fn json_has_each_figure_of_each_strategy() {
    let figures = json(&run(&["--json", "--replicas", "3", "--keys", "20", "--rounds", "4"]));
    for strategy in ["lease", "retry"] {
        let figures = &figures[strategy];
        for (name, value) in
            [("replicas", 3), ("keys", 20), ("rounds", 4), ("writes_needed", 80), ("updates_lost", 0)]
        {
            assert_eq!(figures[name], value, "{strategy} {name}");
        }
        for name in ["writes_attempted", "writes_refused", "leader_changes", "leaders_at_end"] {
            assert!(figures[name].is_u64(), "{strategy} {name}: {figures}");
        }
        assert!(figures["round_p50_ms"].as_f64() <= figures["round_p99_ms"].as_f64(), "{figures}");
        assert!(figures["failover_ms"].is_null(), "{figures}");
    }
    assert_eq!(figures.as_object().map(|strategies| strategies.len()), Some(2));
}

#[test]
fn one_strategy_is_one_member_and_a_killed_leader_has_a_failover() {
    let output =
        run(&["--json", "--strategy", "lease", "--keys", "20", "--rounds", "4", "--kill-leader-at", "3"]);
    let figures = json(&output);
    assert_eq!(figures.as_object().map(|strategies| strategies.len()), Some(1));
    assert!(figures["lease"]["failover_ms"].as_f64() > Some(0.0), "{figures}");
    assert!(figures["lease"]["leader_changes"].as_u64() >= Some(1), "{figures}");
}

#[test]
fn without_json_a_table_is_printed_and_progress_stays_off_stdout() {
    let output = run(&["--replicas", "2", "--keys", "5", "--rounds", "10"]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).expect("it is text");
    assert!(table.lines().any(|line| line.split_whitespace().eq(["updates", "lost", "0", "0"])), "{table}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("lease: 10 of 10 rounds\n"));
}

#[test]
fn what_cannot_begin_is_one_line_and_exit_code_2() {
    for (arguments, says) in [
        (&["--replicas", "0"][..], "replicas is 0"),
        (&["--keys", "0"], "keys is 0"),
        (&["--term", "0s"], "term is 0ns"),
        (&["--term", "5"], "ms"),
        (&["--kill-leader-at", "99"], "kill_leader_at is 99"),
        (&["--kill-leader-at", "1", "--replicas", "1"], "replicas is 1"),
        (&["--backend", "foo://localhost:1"], "`zookeeper://` and `host:port`"),
        (&["--backend", "etcd://"], "`zookeeper://` and `host:port`"),
        (&["--processes"], "share no memory"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let line = complaint(arguments);
        assert!(line.starts_with("error: ") && line.contains(says), "{line}");
    }
}

/// What holds on a real server, whichever it is: the test of each one names it, and says how to start it.
mod server {
    use std::{pin::pin, time::Duration};

    use futures_util::StreamExt;
    use writerlease::store::{Event, Store};

    use super::*;

    pub fn an_unreachable_backend_is_one_line_and_exit_code_2(backend: &str) {
        for arguments in [&["--backend", backend][..], &["--backend", backend, "--processes"]] {
            assert!(complaint(arguments).contains(backend));
        }
    }

    pub fn a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write(backend: &str) {
        let scenario =
            "--json --strategy lease --processes --replicas 3 --keys 200 --rounds 20 --kill-leader-at 10";
        let arguments: Vec<_> = scenario.split(' ').chain(["--backend", backend]).collect();
        let figures = &json(&run(&arguments))["lease"];
        println!("{figures}");
        assert_eq!(figures["updates_lost"], 0);
        assert_eq!(figures["writes_needed"], 4000);
        assert!(figures["writes_attempted"].as_u64() <= Some(4000 * 102 / 100), "{figures}");
        assert!(
            figures["failover_ms"].is_f64() && figures["leader_changes"].as_u64() >= Some(1),
            "{figures}"
        );
    }

    pub fn replicas_in_one_process_lose_no_update_either(backend: &str) {
        let figures = json(&run(&["--json", "--backend", backend, "--keys", "50", "--rounds", "5"]));
        for strategy in ["lease", "retry"] {
            assert_eq!(figures[strategy]["updates_lost"], 0, "{figures}");
        }
    }

    /// The leader, as far as can be seen from outside: the process that has worked most.
    pub async fn a_leader_that_slept_loses_no_update_and_leads_no_more(backend: &str, sleep: Duration) {
        let mut run = Command::new(&*EXAMPLE);
        run.args("--json --strategy lease --processes --keys 10 --latency 100ms".split(' '));
        // Two thirds of the rounds take longer than the sleep, so it ends before they do.
        run.args(["--backend", backend, "--rounds", &(15 + sleep.as_secs() * 8).to_string()]);
        let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let run = run.expect("the example runs");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let leader = children(run.id()).into_iter().max_by_key(|(_, worked)| *worked);
        let (leader, _) = leader.expect("replicas are child processes");
        signal("-STOP", leader);
        tokio::time::sleep(sleep).await;
        signal("-CONT", leader);
        let output = run.wait_with_output().expect("it ends");
        let figures = &json(&output)["lease"];
        println!("{figures}");
        assert_eq!(figures["updates_lost"], 0, "{figures}");
        assert_eq!(figures["leaders_at_end"], 1, "{figures}");
        // What was under way when it fell asleep, and a suspicion or two.
        let needed = figures["writes_needed"].as_u64().expect("a number");
        assert!(figures["writes_attempted"].as_u64() <= Some(needed + 24), "{figures}");
    }

    /// The processes that a process started, and for how long each has worked.
    fn children(parent: u32) -> Vec<(u32, u64)> {
        let mut children = Vec::new();
        for process in std::fs::read_dir("/proc").expect("Linux").flatten() {
            let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
            // After the name in parentheses (proc(5)): state, parent, and as 12th and 13th the time in user and system mode.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let number = |index: usize| fields[index].parse::<u64>().expect("a number");
            if number(1) == u64::from(parent) {
                let id = process.file_name().to_string_lossy().parse().expect("the name is the process id");
                children.push((id, number(11) + number(12)));
            }
        }
        children
    }

    fn signal(signal: &str, process: u32) {
        let status = Command::new("kill").args([signal, &process.to_string()]).status();
        assert!(status.expect("kill can be run").success());
    }

    pub async fn a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted(
        backend: &str,
        store: impl Store,
    ) {
        let small = ["--backend", backend, "--replicas", "2", "--keys", "5", "--rounds", "3", "--processes"];
        let small = run(&small);
        assert!(small.status.success(), "{small:?}");
        let mut endless = Command::new(&*EXAMPLE);
        endless.args(["--backend", backend, "--replicas", "2", "--rounds", "1000000", "--processes"]);
        let mut endless =
            endless.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the example runs");
        {
            let mut changes = pin!(store.watch(""));
            while !matches!(changes.next().await, Some(Ok(Event::Put(_)))) {}
        }
        signal("-INT", endless.id());
        assert_eq!(endless.wait().expect("a child can be waited for").code(), Some(130));
        let mut changes = pin!(store.watch(""));
        assert_eq!(changes.next().await.unwrap().unwrap(), Event::Init);
        assert_eq!(changes.next().await.unwrap().unwrap(), Event::InitDone);
    }
}

mod etcd {
    use writerlease::etcd::EtcdStore;

    use writerlease_test_support::server::EtcdServer;

    use super::server;

    fn backend(server: &EtcdServer) -> String {
        format!("etcd://{}", server.address())
    }

    #[test]
    fn an_unreachable_backend_is_one_line_and_exit_code_2() {
        // Nobody listens on port 1.
        server::an_unreachable_backend_is_one_line_and_exit_code_2("etcd://127.0.0.1:1");
    }

    #[tokio::test]
    async fn a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write() {
        let server = EtcdServer::start().await;
        server::a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write(&backend(&server));
    }

    #[tokio::test]
    async fn a_leader_that_slept_loses_no_update_and_leads_no_more() {
        let server = EtcdServer::start().await;
        let sleep = std::time::Duration::from_secs(4);
        server::a_leader_that_slept_loses_no_update_and_leads_no_more(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update_either() {
        let server = EtcdServer::start().await;
        server::replicas_in_one_process_lose_no_update_either(&backend(&server));
    }

    #[tokio::test]
    async fn a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted() {
        let server = EtcdServer::start().await;
        let store = EtcdStore::connect([server.endpoint()]).await.expect("a valid address");
        server::a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted(&backend(&server), store).await;
    }
}

mod redis {
    use writerlease::redis::RedisStore;

    use writerlease_test_support::server::RedisServer;

    use super::server;

    fn backend(server: &RedisServer) -> String {
        format!("redis://{}", server.address())
    }

    #[test]
    fn an_unreachable_backend_is_one_line_and_exit_code_2() {
        // Nobody listens on port 1.
        server::an_unreachable_backend_is_one_line_and_exit_code_2("redis://127.0.0.1:1");
    }

    #[tokio::test]
    async fn a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write() {
        let server = RedisServer::start().await;
        server::a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write(&backend(&server));
    }

    #[tokio::test]
    async fn a_leader_that_slept_loses_no_update_and_leads_no_more() {
        let server = RedisServer::start().await;
        let sleep = std::time::Duration::from_secs(4);
        server::a_leader_that_slept_loses_no_update_and_leads_no_more(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update_either() {
        let server = RedisServer::start().await;
        server::replicas_in_one_process_lose_no_update_either(&backend(&server));
    }

    #[tokio::test]
    async fn a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(server.endpoint()).expect("a valid address");
        server::a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted(&backend(&server), store).await;
    }
}

mod zookeeper {
    use writerlease::zookeeper::{ZookeeperAccess, ZookeeperStore};

    use writerlease_test_support::server::ZookeeperServer;

    use super::server;

    fn backend(server: &ZookeeperServer) -> String {
        format!("zookeeper://{}", server.address())
    }

    #[test]
    fn an_unreachable_backend_is_one_line_and_exit_code_2() {
        // Nobody listens on port 1.
        server::an_unreachable_backend_is_one_line_and_exit_code_2("zookeeper://127.0.0.1:1");
    }

    #[tokio::test]
    async fn a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write() {
        let server = ZookeeperServer::start().await;
        server::a_leader_killed_with_sigkill_loses_no_update_and_costs_hardly_a_write(&backend(&server));
    }

    #[tokio::test]
    async fn a_leader_that_slept_loses_no_update_and_leads_no_more() {
        let server = ZookeeperServer::start().await;
        // For longer than its session lasts.
        let sleep = std::time::Duration::from_secs(13);
        server::a_leader_that_slept_loses_no_update_and_leads_no_more(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update_either() {
        let server = ZookeeperServer::start().await;
        server::replicas_in_one_process_lose_no_update_either(&backend(&server));
    }

    #[tokio::test]
    async fn a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted() {
        let server = ZookeeperServer::start().await;
        let store = ZookeeperStore::new(&server.endpoint(), "/writerlease", ZookeeperAccess::open())
            .expect("a valid address");
        server::a_run_leaves_no_key_behind_nor_does_one_that_is_interrupted(&backend(&server), store).await;
    }
}
