//! The program: one candidate, or the parent of all.

use std::{process::ExitCode, time::Duration};

use writerlease::{
    election::{ElectionError, Elector},
    store::Store,
};
use writerlease_example_support::{complain, fail};

use crate::{
    candidate,
    contest::{self, Failure},
    options::{self, Backend, Options},
};

#[tokio::main]
pub async fn main() -> ExitCode {
    let options = match options::read() {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    let result = match &options.backend {
        #[cfg(feature = "etcd")]
        Backend::Etcd(hosts) | Backend::EtcdKey(hosts) => etcd(&options, hosts).await,
        #[cfg(feature = "redis")]
        Backend::Redis(host) => {
            use writerlease::redis::{RedisElector, RedisStore};
            let url = format!("redis://{host}");
            let elector = RedisElector::builder(url.as_str(), format!("{}election", options.prefix))
                .identity(&options.name)
                .ttl(options.ttl)
                .request_timeout(REQUEST);
            run(&options, elector.start(), RedisStore::new(url)).await
        }
        #[cfg(feature = "zookeeper")]
        Backend::Zookeeper(hosts) => {
            use writerlease::zookeeper::{ZookeeperAccess, ZookeeperElector, ZookeeperStore};
            let base = format!("/{}", options.prefix.trim_end_matches('/'));
            let elector = ZookeeperElector::builder(hosts, format!("{base}/election"))
                .identity(&options.name)
                .ttl(options.ttl)
                .request_timeout(REQUEST);
            let access = ZookeeperAccess::open();
            run(&options, elector.start(), ZookeeperStore::new(hosts, &format!("{base}/store"), access)).await
        }
        #[cfg(not(all(feature = "etcd", feature = "redis", feature = "zookeeper")))]
        other => {
            let feature = other.feature();
            Err(format!("built without {feature}; run `cargo run --example elected --features {feature}`"))
        }
    };
    result.unwrap_or_else(complain)
}

#[cfg(feature = "etcd")]
async fn etcd(options: &Options, hosts: &str) -> Result<ExitCode, String> {
    use writerlease::etcd::{EtcdElector, EtcdStore, EtcdVoters};
    let client = etcd_client(hosts).await?;
    let election = format!("{}election", options.prefix);
    let store = Ok(EtcdStore::new(client.clone()));
    if let Backend::Etcd(_) = options.backend {
        let elector = EtcdElector::builder(client, election).identity(&options.name).ttl(options.ttl);
        return run(options, elector.request_timeout(REQUEST).start(), store).await;
    }
    let voters = EtcdVoters::builder(client).request_timeout(REQUEST).build();
    let vote = async { voters?.add_voter(&election, &options.name, options.ttl) };
    run(options, vote, store).await
}

#[cfg(feature = "etcd")]
async fn etcd_client(hosts: &str) -> Result<etcd_client::Client, String> {
    let options = etcd_client::ConnectOptions::new()
        .with_connect_timeout(REQUEST)
        .with_keep_alive(REQUEST, REQUEST)
        .with_keep_alive_while_idle(false);
    let endpoints: Vec<_> = hosts.split(',').map(|host| format!("http://{host}")).collect();
    etcd_client::Client::connect(endpoints, Some(options)).await.map_err(|error| error.to_string())
}

/// Runs one candidate, or the parent that starts and observes them.
async fn run<E: Elector, S: Store + Clone>(
    options: &Options,
    elector: impl Future<Output = Result<E, ElectionError>>,
    store: Result<S, writerlease::store::StoreError>,
) -> Result<ExitCode, String> {
    let unreachable = |error: &dyn std::fmt::Display| format!("{}: {error}", options.backend);
    let store = store.map_err(|error| unreachable(&error))?;
    if options.is_candidate() {
        let elector = elector.await.map_err(|error| unreachable(&error))?;
        candidate::run(options, elector, store).await;
        return Ok(ExitCode::SUCCESS);
    }
    store.get(&format!("{}probe", options.prefix)).await.map_err(|error| unreachable(&error))?;
    match contest::run(options, store).await {
        Ok(leaderships) => {
            leaderships.print(options);
            Ok(if leaderships.are_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(Failure::Usage(reason)) => Err(reason),
        Err(Failure::Run(reason)) => Ok(fail(reason)),
    }
}

/// The longest time that a request may take.
const REQUEST: Duration = Duration::from_secs(1);
