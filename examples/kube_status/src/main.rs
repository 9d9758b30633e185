//! Replicas of a Kubernetes controller write the same statuses, with leases held by work and without.
//!
//! ```sh
//! cargo run --release -p writerlease-kube-status
//! cargo run --release -p writerlease-kube-status -- --processes --kill-leader-at 5
//! cargo run --release -p writerlease-kube-status -- --replicas 10 --shards 1 --strategy lease
//! cargo run --release -p writerlease-kube-status -- --rolling-restart --rounds 12
//! ```
//!
//! The example uses the cluster of `KUBECONFIG`. It needs the right to create a custom resource
//! definition and namespaces, and deletes them at the end. Each round edits the spec of every
//! object and waits until every status matches. Exit code 0: all statuses are right. 1: some are
//! wrong, or the run failed. 2: the run could not start.
//!
//! `replica.rs` shows how a controller uses the crate. The other files run it and measure the
//! results.
#![allow(clippy::disallowed_methods, reason = "a cluster answers in real time")]

mod counted;
mod counts;
mod fleet;
mod options;
mod report;

use std::{process::ExitCode, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use serde_json::json;
use tokio::time::Instant;
use writerlease::lab::Strategy;
use writerlease_example_support::{complain, fail, read, run_number};
use writerlease_kube_status::widget::{self, Observer, Widget};

use fleet::{Failure, Fleet};
use options::Options;
use report::{Report, print};

#[tokio::main]
async fn main() -> ExitCode {
    // Built beside the tests of other stores, rustls has two providers, and clients must not guess.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options: Options = match read() {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    if let Err(reason) = options.check() {
        return complain(reason);
    }
    if let Some(number) = options.child {
        let settings = options.settings(options.strategies()[0], &options.namespace);
        return match fleet::child(number, settings).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error),
        };
    }
    let (client, is_new) = match begin().await {
        Ok(begun) => begun,
        Err(error) => return complain(error),
    };
    let run = run_number();
    let ran = tokio::select! {
        ran = all(&options, &client, run) => Some(ran),
        _ = tokio::signal::ctrl_c() => None,
    };
    if let Err(error) = clear(&options, &client, run, is_new).await {
        eprintln!("warning: could not clean up: {error}");
    }
    match ran {
        None => ExitCode::from(130),
        Some(Err(error)) => fail(error),
        Some(Ok(reports)) => {
            print(&options, &reports);
            match reports.iter().all(|report| report.wrong == 0) {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Connects and installs the custom resource definition. Returns whether it is new.
async fn begin() -> Result<(Client, bool), Failure> {
    let client = Client::try_default().await?;
    let is_new = widget::install(&client).await?;
    Ok((client, is_new))
}

/// Runs the strategies one after the other, each in a namespace of its own.
async fn all(options: &Options, client: &Client, run: u64) -> Result<Vec<Report>, Failure> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let mut reports = Vec::new();
    for strategy in options.strategies() {
        let name = namespace(*strategy, run);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let wanted = Namespace { metadata, ..Namespace::default() };
        namespaces.create(&PostParams::default(), &wanted).await?;
        reports.push(run_one(options, client, *strategy, &name).await?);
    }
    Ok(reports)
}

/// Returns the name of a namespace that no other run uses.
fn namespace(strategy: Strategy, run: u64) -> String {
    format!("writerlease-{strategy}-{run:016x}")
}

/// Deletes everything that the run created.
async fn clear(options: &Options, client: &Client, run: u64, with_kind: bool) -> kube::Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone());
    for strategy in options.strategies() {
        match namespaces.delete(&namespace(*strategy, run), &DeleteParams::default()).await {
            // The run ended before it was created.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            deleted => drop(deleted?),
        }
    }
    if with_kind {
        widget::uninstall(client).await?;
    }
    Ok(())
}

async fn run_one(
    options: &Options,
    client: &Client,
    strategy: Strategy,
    namespace: &str,
) -> Result<Report, Failure> {
    let widgets = Api::<Widget>::namespaced(client.clone(), namespace);
    let names: Vec<String> = (0..options.objects).map(|number| format!("widget-{number:05}")).collect();
    let observer = Observer::start(widgets.clone());
    let settings = options.settings(strategy, namespace);
    let mut report = Report::new(&settings, u64::from(options.objects) * u64::from(options.rounds));
    let mut fleet = Fleet::start(options, settings).await?;
    for round in 1..=u64::from(options.rounds) {
        eprintln!("{strategy}: round {round} of {}", options.rounds);
        let change = |name: String| {
            let widgets = &widgets;
            async move {
                match round {
                    1 => widget::create(widgets, &name).await,
                    _ => widget::edit(widgets, &name, json!({ "round": round })).await,
                }
            }
        };
        let started = Instant::now();
        let (one_half, other_half) = names.split_at(names.len() / 2);
        widget::for_each(one_half, change).await?;
        let kills = options.kill_leader_at.is_some_and(|at| u64::from(at) == round);
        let leaves = options.leaves_in(round);
        let disturbed = Instant::now();
        if kills {
            fleet.kill_leader().await?;
        }
        if let Some(number) = leaves {
            fleet.shut_down(number);
        }
        if let Some(number) = options.returns_in(round) {
            fleet.start_one(number).await?;
        }
        widget::for_each(other_half, change).await?;
        let is_right = |widget: &Widget| widget.spec.round == round && widget.is_right("ready");
        if let Err(wrong) = observer.until(&names, PATIENCE, is_right).await {
            report.wrong = wrong.len();
            eprintln!(
                "{strategy}: {} statuses are wrong after {PATIENCE:?}, such as {}",
                wrong.len(),
                wrong[0]
            );
            break;
        }
        report.rounds.push(started.elapsed());
        if kills {
            report.failover = Some(disturbed.elapsed());
        }
        if leaves.is_some() {
            report.departure = report.departure.max(Some(disturbed.elapsed()));
        }
    }
    report.leaders = fleet.leaders();
    report.counts = fleet.counts.clone();
    fleet.stop().await?;
    Ok(report)
}

/// The longest time that the statuses of a round may take.
const PATIENCE: Duration = Duration::from_secs(120);
