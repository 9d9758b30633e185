//! Tests of the program `kube_status`: exit codes, output and clean-up.

use std::{path::Path, process::Output};

use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};
use serde_json::Value;
use tokio::process::Command;
use writerlease_test_support::server::{ADMINISTRATOR, KubeServer};

async fn run(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let program =
        tokio::task::spawn_blocking(writerlease_test_support::build::kube_status).await.expect("it builds");
    let mut command = Command::new(program);
    command.args(arguments).env("KUBECONFIG", kubeconfig).kill_on_drop(true);
    command.output().await.expect("the example runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_write_each_status_despite_a_killed_leader() {
    let server = KubeServer::start().await;
    let kubeconfig = server.kubeconfig(ADMINISTRATOR, server.api.address());
    let arguments = "--json --processes --shards 1 --objects 50 --rounds 4 --kill-leader-at 3";
    let output = run(&kubeconfig, &arguments.split(' ').collect::<Vec<_>>()).await;
    assert!(output.status.success(), "{output:?}");
    let figures: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON only");
    println!("{figures}");
    for strategy in ["lease", "retry"] {
        let figures = &figures[strategy];
        assert_eq!(
            (figures["writes_needed"].as_u64(), figures["wrong_at_end"].as_u64()),
            (Some(200), Some(0))
        );
        // At most 16 results are unknown: those of the killed leader's writes in flight.
        assert!(figures["writes_succeeded"].as_u64() >= Some(200 - 16), "{figures}");
        assert!(figures["failover_ms"].as_u64() > Some(0));
    }

    // The program has cleaned up. The namespaces remain in deletion, because the controllers that
    // empty them do not run here.
    let client = server.administrator();
    let kinds = Api::<CustomResourceDefinition>::all(client.clone()).list(&ListParams::default()).await;
    assert_eq!(kinds.expect("a list").items.len(), 0);
    let namespaces = Api::<Namespace>::all(client).list(&ListParams::default()).await.expect("a list");
    let left = |namespace: &&Namespace| {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        name.starts_with("writerlease") && namespace.metadata.deletion_timestamp.is_none()
    };
    assert_eq!(namespaces.iter().filter(left).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_shards_write_each_status_in_a_rolling_restart() {
    let server = KubeServer::start().await;
    let kubeconfig = server.kubeconfig(ADMINISTRATOR, server.api.address());
    let arguments =
        "--json --processes --replicas 2 --objects 50 --rounds 8 --rolling-restart --strategy lease";
    let output = run(&kubeconfig, &arguments.split(' ').collect::<Vec<_>>()).await;
    assert!(output.status.success(), "{output:?}");
    let figures: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON only");
    println!("{figures}");
    let figures = &figures["lease"];
    let number = |name: &str| figures[name].as_u64().unwrap_or_else(|| panic!("no {name} in {figures}"));
    assert_eq!(
        ["shards", "writes_needed", "writes_succeeded", "wrong_at_end"].map(number),
        [32, 400, 400, 0],
        "no write is cut off: {figures}"
    );
    let written = figures["written"].as_array().expect("one for each replica");
    let written: Vec<u64> = written.iter().filter_map(Value::as_u64).collect();
    assert_eq!((written.len(), written.iter().sum()), (2, 400), "{figures}");
    assert!(number("departure_ms") > 0 && figures["failover_ms"].is_null());
    // Each replica alone would do it as often.
    assert!((1..=800).contains(&number("inspections")), "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn table_on_success_one_line_on_usage_errors() {
    let server = KubeServer::start().await;
    let kubeconfig = server.kubeconfig(ADMINISTRATOR, server.api.address());
    let output = run(&kubeconfig, &["--objects", "5", "--rounds", "2", "--strategy", "lease"]).await;
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).expect("it is text");
    assert!(
        table.lines().any(|line| line.split_whitespace().eq(["wrong", "at", "the", "end", "0"])),
        "{table}"
    );

    let nowhere = Path::new("/nonexistent/kubeconfig");
    for (kubeconfig, arguments, says) in [
        (&*kubeconfig, &["--replicas", "0"][..], "--replicas"),
        (&kubeconfig, &["--kill-leader-at", "11"], "--kill-leader-at is 11"),
        (&kubeconfig, &["--kill-leader-at", "1", "--replicas", "1"], "another one has to take over"),
        (&kubeconfig, &["--rolling-restart"], "needs at least 11 --rounds"),
        (&kubeconfig, &["--shards", "0"], "--shards"),
        (nowhere, &[], "kubeconfig"),
    ] {
        let output = run(kubeconfig, arguments).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("it is text");
        assert!(line.lines().count() == 1 && line.contains(says), "{arguments:?}: {line}");
    }
}
