//! Replicas that all want the same objects to be the same: with a lease held by work, and without.
//!
//! ```sh
//! cargo run --release --example contended_updates
//! cargo run --release --example contended_updates -- --kill-leader-at 10 --strategy lease
//! cargo run --release --example contended_updates --features etcd -- --backend etcd://localhost:2379 --processes
//! cargo run --release --example contended_updates --features redis -- --backend redis://localhost:6379 --processes
//! cargo run --release --example contended_updates --features zookeeper -- --backend zookeeper://localhost:2181 --processes
//! ```
//!
//! In each round every replica learns that every key should be at the round's number. What differs is who writes it. At
//! the end the store is read back. Exit code 0: no update was lost. 1: some were, or the run failed. 2: it could not begin.

mod options;
mod output;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod processes;

use std::process::ExitCode;

use writerlease::{
    lab::{LabError, Report, Scenario, Strategy},
    store::{MemoryStore, Store},
};
use writerlease_example_support::{complain, fail};

use options::{Backend, Options};
use output::Output;

/// Why there is no report.
enum Failure {
    /// It could not begin: exit code 2.
    Usage(String),
    /// It ended early: exit code 1.
    Run(String),
    /// Ctrl-C.
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
            Err(Failure::Usage(format!("built without {name}: run it with `cargo run --features {name}`")))
        }
    };
    match result {
        Ok(reports) => {
            output::print(&options, &reports);
            let lost: u64 = reports.iter().map(|report| report.updates_lost).sum();
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
) -> Result<Vec<Report>, Failure> {
    let unreachable = |error| Failure::Usage(format!("{}: {error}", options.backend));
    let store = store.map_err(unreachable)?;
    if let Some(index) = options.child {
        processes::replica(options, index, store).await;
    }
    // Some connect when they are first asked.
    store.get(&format!("{}probe", options.prefix)).await.map_err(unreachable)?;
    all(options, store).await
}

/// Runs the strategies one after the other.
async fn all<S: Store + Clone>(options: &Options, store: S) -> Result<Vec<Report>, Failure> {
    let scenarios: Vec<Scenario> = options.strategies().map(|strategy| options.scenario(strategy)).collect();
    for scenario in &scenarios {
        scenario.check().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let mut reports = Vec::new();
    for scenario in scenarios {
        reports.push(one(options, &scenario, &store).await?);
    }
    Ok(reports)
}

async fn one<S: Store + Clone>(options: &Options, scenario: &Scenario, store: &S) -> Result<Report, Failure> {
    let mut output = Output::of(scenario.strategy);
    let ran = tokio::select! {
        ran = run(options, scenario, store, &mut output) => ran,
        _ = tokio::signal::ctrl_c() => {
            // The replicas are gone; what they wrote should go, too.
            let _ = scenario.clear(store).await;
            return Err(Failure::Interrupted);
        }
    };
    ran.map_err(|error| Failure::Run(format!("{}: {error}", scenario.strategy)))
}

async fn run<S: Store + Clone>(
    options: &Options,
    scenario: &Scenario,
    store: &S,
    output: &mut Output,
) -> Result<Report, LabError> {
    #[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
    if options.processes {
        let mut fleet = processes::Processes::start(options, scenario).await?;
        let result = scenario.run_fleet(store, &mut fleet, |progress| output.show(progress)).await;
        fleet.stop().await;
        return result;
    }
    debug_assert!(!options.processes, "processes share no memory");
    scenario.run_with_progress(store.clone(), |progress| output.show(progress)).await
}

/// The names of the strategies, in the order of the table.
const STRATEGIES: [Strategy; 2] = [Strategy::Lease, Strategy::Retry];
