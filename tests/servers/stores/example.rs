//! The command line of `contended_updates`: machine-readable figures, exit codes, error messages of
//! one line.

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

/// Runs the example, which must exit with code 2 and print only one line, on stderr. Returns the
/// line.
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
    for (strategy, shards) in [("shards", Value::from(48)), ("lease", Value::from(1)), ("retry", Value::Null)]
    {
        let figures = &figures[strategy];
        assert_eq!(figures["shards"], shards, "{figures}");
        for (name, value) in
            [("replicas", 3), ("keys", 20), ("rounds", 4), ("writes_needed", 80), ("updates_lost", 0)]
        {
            assert_eq!(figures[name], value, "{strategy} {name}");
        }
        for name in ["writes_attempted", "writes_refused", "moved", "leader_changes", "leaders_at_end"] {
            assert!(figures[name].is_u64(), "{strategy} {name}: {figures}");
        }
        assert!(figures["round_p50_ms"].as_f64() <= figures["round_p99_ms"].as_f64(), "{figures}");
        assert_eq!(figures["rounds_ms"].as_array().map(Vec::len), Some(4), "{figures}");
        assert!(figures["failover_ms"].is_null(), "{figures}");
        let written = written(figures);
        assert_eq!((written.len(), written.iter().sum::<u64>()), (3, 80), "{figures}");
        let busiest = *written.iter().max().expect("there are three") as f64 / (80.0 / 3.0);
        let shown = figures["busiest_over_mean"].as_f64().expect("it is a number");
        assert!((shown - busiest).abs() < 0.001, "{figures}");
    }
    assert_eq!(figures.as_object().map(|strategies| strategies.len()), Some(3));
}

/// Returns the number of keys that each replica wrote.
fn written(figures: &Value) -> Vec<u64> {
    let written = figures["written"].as_array().expect("it is a list");
    written.iter().map(|written| written.as_u64().expect("it is a number")).collect()
}

#[test]
fn json_has_one_strategy_and_the_failover() {
    for strategy in ["shards", "lease"] {
        let options =
            ["--json", "--strategy", strategy, "--keys", "20", "--rounds", "4", "--kill-leader-at", "3"];
        let figures = json(&run(&options));
        assert_eq!(figures.as_object().map(|strategies| strategies.len()), Some(1));
        assert!(figures[strategy]["failover_ms"].as_f64() > Some(0.0), "{figures}");
        assert!(figures[strategy]["leader_changes"].as_u64() >= Some(1), "{figures}");
    }
}

#[test]
fn replicas_share_the_shards_also_after_a_rolling_restart() {
    for restart in [&[][..], &["--rolling-restart"]] {
        let options = ["--json", "--strategy", "shards", "--keys", "60", "--rounds", "12", "--shards", "30"];
        let figures = &json(&run(&[&options, restart].concat()))["shards"];
        println!("{figures}");
        assert_eq!((&figures["shards"], &figures["updates_lost"]), (&Value::from(30), &Value::from(0)));
        assert!(written(figures).iter().all(|written| *written > 0), "{figures}");
        assert!(restart.is_empty() || figures["moved"].as_u64() > Some(0), "{figures}");
    }
}

#[test]
fn table_goes_to_stdout_and_progress_to_stderr() {
    let output = run(&["--replicas", "2", "--keys", "5", "--rounds", "10"]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).expect("it is text");
    for row in ["shards lease retry", "shards 32 1 -", "updates lost 0 0 0"] {
        assert!(table.lines().any(|line| line.split_whitespace().eq(row.split(' '))), "{row}: {table}");
    }
    for row in ["keys written by 0", "keys written by 1", "busiest / mean", "keys that moved"] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row}: {table}");
    }
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(progress.contains("shards: 10 of 10 rounds\n"), "{progress}");
}

#[test]
fn help_explains_the_figures() {
    let output = run(&["--help"]);
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(output.stdout).expect("it is text");
    for figure in ["`written`", "`busiest_over_mean`", "`moved`", "`leader_changes`", "16 for each replica"] {
        assert!(help.contains(figure), "{figure}: {help}");
    }
}

#[test]
fn invalid_options_are_one_line_and_code_2() {
    for (arguments, says) in [
        (&["--replicas", "0"][..], "replicas is 0"),
        (&["--keys", "0"], "keys is 0"),
        (&["--term", "0s"], "term is 0ns"),
        (&["--term", "5"], "ms"),
        (&["--kill-leader-at", "99"], "kill_leader_at is 99"),
        (&["--kill-leader-at", "1", "--replicas", "1"], "replicas is 1"),
        (&["--rolling-restart", "--rounds", "9"], "rounds is 9, but must be at least 11"),
        (&["--shards", "0"], "shards is 0"),
        (&["--shards", "70000"], "70000"),
        (&["--strategy", "all"], "all"),
        (&["--backend", "foo://localhost:1"], "`zookeeper://` and `host:port`"),
        (&["--backend", "etcd://"], "`zookeeper://` and `host:port`"),
        (&["--processes"], "share no memory"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let line = complaint(arguments);
        assert!(line.starts_with("error: ") && line.contains(says), "{line}");
    }
}

/// Cases for each kind of server; the tests below start the servers.
mod server {
    use std::{
        io::{BufRead, BufReader},
        pin::pin,
        time::Duration,
    };

    use futures_util::StreamExt;
    use writerlease::store::{Event, Store};

    use super::*;

    pub fn unreachable_backend_is_one_line_and_code_2(backend: &str) {
        for arguments in [&["--backend", backend][..], &["--backend", backend, "--processes"]] {
            assert!(complaint(arguments).contains(backend));
        }
    }

    pub fn killed_leader_loses_no_update(backend: &str) {
        let scenario = "--json --strategy shards,lease --processes --replicas 3 --keys 200 --rounds 20 --kill-leader-at 10";
        let arguments: Vec<_> = scenario.split(' ').chain(["--backend", backend]).collect();
        let figures = json(&run(&arguments));
        // Including the attempts in vain, whose number depends on the machine.
        println!("{figures}");
        for figures in [&figures["shards"], &figures["lease"]] {
            assert_eq!(figures["updates_lost"], 0);
            assert_eq!(figures["writes_needed"], 4000);
            assert!(
                figures["failover_ms"].is_f64() && figures["leader_changes"].as_u64() >= Some(1),
                "{figures}"
            );
        }
    }

    pub fn rolling_restart_loses_no_update(backend: &str) {
        let scenario = "--json --strategy shards,lease --processes --replicas 3 --keys 100 --rounds 14 --rolling-restart";
        let arguments: Vec<_> = scenario.split(' ').chain(["--backend", backend]).collect();
        let figures = json(&run(&arguments));
        println!("{figures}");
        for strategy in ["shards", "lease"] {
            let figures = &figures[strategy];
            assert_eq!((&figures["updates_lost"], &figures["writes_needed"]), (&0.into(), &1400.into()));
            assert!(figures["moved"].as_u64() > Some(0), "{figures}");
        }
        assert!(written(&figures["shards"]).iter().all(|written| *written > 0), "{figures}");
    }

    pub fn replicas_in_one_process_lose_no_update(backend: &str) {
        let figures = json(&run(&["--json", "--backend", backend, "--keys", "50", "--rounds", "5"]));
        for strategy in ["shards", "lease", "retry"] {
            assert_eq!(figures[strategy]["updates_lost"], 0, "{figures}");
        }
    }

    /// Stops the leader for this time. From outside, the leader is the process that has used most
    /// processor time.
    pub async fn stopped_leader_loses_no_update_and_its_role(backend: &str, sleep: Duration) {
        let mut run = Command::new(&*EXAMPLE);
        run.args("--json --strategy lease --processes --keys 10 --latency 100ms".split(' '));
        // Two thirds of the rounds take longer than the sleep, so it ends before they do.
        run.args(["--backend", backend, "--rounds", &(15 + sleep.as_secs() * 8).to_string()]);
        let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut run = run.expect("the example runs");
        // A busy machine may take long to start the replicas, so wait for rounds instead of a time.
        let mut progress = BufReader::new(run.stderr.take().expect("it is piped")).lines();
        let line = progress.next().expect("progress is reported").expect("text");
        assert!(line.starts_with("lease: "), "{line}");
        let leader = children(run.id()).into_iter().max_by_key(|(_, worked)| *worked);
        let (leader, _) = leader.expect("replicas are child processes");
        signal("-STOP", leader);
        tokio::time::sleep(sleep).await;
        signal("-CONT", leader);
        let output = run.wait_with_output().expect("it ends");
        // The pipe stays open until here, because the example writes its progress to it.
        println!("{}", progress.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        let figures = &json(&output)["lease"];
        // Including the attempts in vain, whose number depends on the machine.
        println!("{figures}");
        assert_eq!(figures["updates_lost"], 0, "{figures}");
        // Another replica won the lease meanwhile. In the end one may write all keys, or each its own.
        assert!(figures["leader_changes"].as_u64() >= Some(1), "{figures}");
    }

    /// Returns the children of a process, with the processor time that each has used.
    fn children(parent: u32) -> Vec<(u32, u64)> {
        let mut children = Vec::new();
        for process in std::fs::read_dir("/proc").expect("Linux").flatten() {
            let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
            // After the name in parentheses (proc(5)): state, parent, and as 12th and 13th the time
            // in user and system mode.
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

    pub async fn completed_and_interrupted_runs_leave_no_key(backend: &str, store: impl Store) {
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
    fn unreachable_backend_is_one_line_and_code_2() {
        // Port 1 has no listener.
        server::unreachable_backend_is_one_line_and_code_2("etcd://127.0.0.1:1");
    }

    #[tokio::test]
    async fn killed_leader_loses_no_update() {
        let server = EtcdServer::start().await;
        server::killed_leader_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn rolling_restart_loses_no_update() {
        let server = EtcdServer::start().await;
        server::rolling_restart_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn stopped_leader_loses_no_update_and_its_role() {
        let server = EtcdServer::start().await;
        let sleep = std::time::Duration::from_secs(4);
        server::stopped_leader_loses_no_update_and_its_role(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update() {
        let server = EtcdServer::start().await;
        server::replicas_in_one_process_lose_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn completed_and_interrupted_runs_leave_no_key() {
        let server = EtcdServer::start().await;
        let store = EtcdStore::connect([server.endpoint()]).await.expect("a valid address");
        server::completed_and_interrupted_runs_leave_no_key(&backend(&server), store).await;
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
    fn unreachable_backend_is_one_line_and_code_2() {
        // Port 1 has no listener.
        server::unreachable_backend_is_one_line_and_code_2("redis://127.0.0.1:1");
    }

    #[tokio::test]
    async fn killed_leader_loses_no_update() {
        let server = RedisServer::start().await;
        server::killed_leader_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn rolling_restart_loses_no_update() {
        let server = RedisServer::start().await;
        server::rolling_restart_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn stopped_leader_loses_no_update_and_its_role() {
        let server = RedisServer::start().await;
        let sleep = std::time::Duration::from_secs(4);
        server::stopped_leader_loses_no_update_and_its_role(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update() {
        let server = RedisServer::start().await;
        server::replicas_in_one_process_lose_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn completed_and_interrupted_runs_leave_no_key() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(server.endpoint()).expect("a valid address");
        server::completed_and_interrupted_runs_leave_no_key(&backend(&server), store).await;
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
    fn unreachable_backend_is_one_line_and_code_2() {
        // Port 1 has no listener.
        server::unreachable_backend_is_one_line_and_code_2("zookeeper://127.0.0.1:1");
    }

    #[tokio::test]
    async fn killed_leader_loses_no_update() {
        let server = ZookeeperServer::start().await;
        server::killed_leader_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn rolling_restart_loses_no_update() {
        let server = ZookeeperServer::start().await;
        server::rolling_restart_loses_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn stopped_leader_loses_no_update_and_its_role() {
        let server = ZookeeperServer::start().await;
        // Longer than the session of the replica lasts.
        let sleep = std::time::Duration::from_secs(13);
        server::stopped_leader_loses_no_update_and_its_role(&backend(&server), sleep).await;
    }

    #[tokio::test]
    async fn replicas_in_one_process_lose_no_update() {
        let server = ZookeeperServer::start().await;
        server::replicas_in_one_process_lose_no_update(&backend(&server));
    }

    #[tokio::test]
    async fn completed_and_interrupted_runs_leave_no_key() {
        let server = ZookeeperServer::start().await;
        let store = ZookeeperStore::new(&server.endpoint(), "/writerlease", ZookeeperAccess::open())
            .expect("a valid address");
        server::completed_and_interrupted_runs_leave_no_key(&backend(&server), store).await;
    }
}
