//! Several replicas update the same objects: each leads its part of them, one leads all of them, or
//! all write and retry.
//!
//! ```sh
//! cargo run --release --example contended_updates
//! cargo run --release --example contended_updates -- --kill-leader-at 10 --strategy shards,lease
//! cargo run --release --example contended_updates -- --rolling-restart --replicas 4 --shards 80
//! cargo run --release --example contended_updates --features etcd -- --backend etcd://localhost:2379 --processes
//! cargo run --release --example contended_updates --features redis -- --backend redis://localhost:6379 --processes
//! cargo run --release --example contended_updates --features zookeeper -- --backend zookeeper://localhost:2181 --processes
//! ```
//!
//! Each round asks every replica to bring every key to the round's number. The strategies differ in
//! which replica writes. At the end the example reads all keys back. Exit code 0: no update was
//! lost. 1: updates were lost, or the run failed. 2: the run could not start.

mod options;
mod output;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod processes;

use std::process::ExitCode;

use writerlease::{
    lab::{LabError, Report, Scenario},
    store::{MemoryStore, Store},
};
use writerlease_example_support::{complain, fail};

use options::{Backend, Choice, Options};
use output::{Column, Output};

/// The reason why a run has no report.
enum Failure {
    /// The run could not start: exit code 2.
    Usage(String),
    /// The run failed: exit code 1.
    Run(String),
    /// The user pressed Ctrl-C.
    Interrupted,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options::read() {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    let result = match &options.backend {
        Backend::Memory => all(&options, MemoryStore::new()).await,
        #[cfg(feature = "etcd")]
        Backend::Etcd(hosts) => {
            let endpoints: Vec<_> = hosts.split(',').map(|host| format!("http://{host}")).collect();
            on_server(&options, writerlease::etcd::EtcdStore::connect(endpoints).await).await
        }
        #[cfg(feature = "redis")]
        Backend::Redis(hosts) => {
            let url = |host: &str| format!("redis://{host}");
            let store = match hosts.split_once(',') {
                None => writerlease::redis::RedisStore::new(url(hosts)),
                Some(_) => writerlease::redis::RedisStore::cluster(hosts.split(',').map(url)),
            };
            on_server(&options, store).await
        }
        #[cfg(feature = "zookeeper")]
        Backend::Zookeeper(hosts) => {
            let access = writerlease::zookeeper::ZookeeperAccess::open();
            let store = writerlease::zookeeper::ZookeeperStore::new(hosts, "/writerlease", access);
            on_server(&options, store).await
        }
        #[cfg(not(all(feature = "etcd", feature = "redis", feature = "zookeeper")))]
        other => {
            let name = other.name();
            Err(Failure::Usage(format!("built without {name}; add `--features {name}` to `cargo run`")))
        }
    };
    match result {
        Ok(reports) => {
            output::print(&options, &reports);
            let lost: u64 = reports.iter().map(|(_, report)| report.updates_lost).sum();
            if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(Failure::Usage(reason)) => complain(reason),
        Err(Failure::Run(reason)) => fail(reason),
        Err(Failure::Interrupted) => ExitCode::from(130),
    }
}

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
async fn on_server<S: Store + Clone>(
    options: &Options,
    store: Result<S, writerlease::store::StoreError>,
) -> Result<Vec<Column>, Failure> {
    let unreachable = |error| Failure::Usage(format!("{}: {error}", options.backend));
    let store = store.map_err(unreachable)?;
    if let Some(index) = options.child {
        processes::replica(options, index, store).await;
    }
    // Some stores connect at the first request, so an unreachable one shows here.
    store.get(&format!("{}probe", options.prefix)).await.map_err(unreachable)?;
    all(options, store).await
}

/// Runs the strategies one after the other.
async fn all<S: Store + Clone>(options: &Options, store: S) -> Result<Vec<Column>, Failure> {
    let choices = options.strategy.iter().copied();
    let scenarios: Vec<_> = choices.map(|choice| (choice, options.scenario(choice))).collect();
    for (_, scenario) in &scenarios {
        scenario.check().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let mut columns = Vec::new();
    for (choice, scenario) in scenarios {
        columns.push((choice, run_or_interrupt(options, choice, &scenario, &store).await?));
    }
    Ok(columns)
}

async fn run_or_interrupt<S: Store + Clone>(
    options: &Options,
    choice: Choice,
    scenario: &Scenario,
    store: &S,
) -> Result<Report, Failure> {
    let mut output = Output::of(choice);
    let ran = tokio::select! {
        ran = run(options, choice, scenario, store, &mut output) => ran,
        _ = tokio::signal::ctrl_c() => {
            // The dropped run has stopped the replicas but left their keys.
            let _ = scenario.clear(store).await;
            return Err(Failure::Interrupted);
        }
    };
    ran.map_err(|error| Failure::Run(format!("{choice}: {error}")))
}

async fn run<S: Store + Clone>(
    options: &Options,
    #[cfg_attr(
        not(any(feature = "etcd", feature = "redis", feature = "zookeeper")),
        expect(unused_variables)
    )]
    choice: Choice,
    scenario: &Scenario,
    store: &S,
    output: &mut Output,
) -> Result<Report, LabError> {
    #[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
    if options.processes {
        let mut fleet = processes::Processes::start(options, choice).await?;
        let result = scenario.run_fleet(store, &mut fleet, |progress| output.show(progress)).await;
        fleet.stop().await;
        return result;
    }
    debug_assert!(!options.processes, "processes share no memory");
    scenario.run_with_progress(store.clone(), |progress| output.show(progress)).await
}
