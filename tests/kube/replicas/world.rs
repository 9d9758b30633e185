//! The test environment: widgets on a real API server, and replicas of the controller of the
//! example `kube_status`.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Request;
use kube::Api;
use serde_json::json;
use tokio::time::{Instant, sleep};
use writerlease::lab::Strategy;
use writerlease_kube_status::{
    replica::{Replica, Settings},
    widget::{self, Observer, Widget},
};
use writerlease_test_support::server::KubeServer;

pub const SECOND: Duration = Duration::from_secs(1);
/// A limit that only a hang reaches.
pub const LONG: Duration = Duration::from_secs(60);
pub const NAMESPACE: &str = "widgets";

pub struct World {
    pub server: KubeServer,
    pub widgets: Api<Widget>,
    pub names: Vec<String>,
    /// The round in the spec of all widgets.
    pub round: u64,
    pub observer: Observer,
    /// The number of shards of the replicas that start.
    pub shards: u16,
    /// How many times the replicas did the expensive part of a reconcile.
    pub inspected: Arc<AtomicU64>,
    pub replicas: Vec<Replica>,
}

impl World {
    /// Creates this number of widgets, without a controller.
    pub async fn without_replicas(server: KubeServer, widgets: usize) -> Self {
        let client = server.administrator();
        server.create_namespace(NAMESPACE).await;
        assert!(widget::install(&client).await.expect("the definition is installed"));
        let api = Api::namespaced(client, NAMESPACE);
        let names: Vec<_> = (0..widgets).map(|number| format!("widget-{number:03}")).collect();
        let observer = Observer::start(api.clone());
        let world = Self {
            server,
            widgets: api,
            names,
            round: 1,
            observer,
            shards: 1,
            inspected: Arc::default(),
            replicas: Vec::new(),
        };
        widget::for_each(&world.names, async |name| widget::create(&world.widgets, &name).await)
            .await
            .expect("the widgets are created");
        world
    }

    /// Creates widgets, starts replicas, and waits until every status is right.
    pub async fn new(widgets: usize, replicas: usize, strategy: Strategy) -> Self {
        let mut world = Self::without_replicas(KubeServer::start().await, widgets).await;
        world.start(0..replicas, strategy, |_| "ready");
        world.all_right().await;
        world.settled().await;
        world
    }

    pub fn start(&mut self, numbers: Range<usize>, strategy: Strategy, phase: fn(&Widget) -> &'static str) {
        let settings =
            Settings { strategy, namespace: NAMESPACE.into(), shards: self.shards, term: LONG, phase };
        for number in numbers {
            let client = self.server.administrator();
            let inspected = self.inspected.clone();
            let replica = Replica::start(client, number, settings.clone(), move || {
                inspected.fetch_add(1, Relaxed);
            });
            self.replicas.push(replica.expect("a runtime"));
        }
    }

    /// Waits until every status matches its spec. Returns the time that took.
    pub async fn all_right(&self) -> Duration {
        self.these_right(&self.names).await
    }

    pub async fn these_right(&self, names: &[String]) -> Duration {
        let is_right = |widget: &Widget| widget.spec.round == self.round && widget.is_right("ready");
        let waited = self.observer.until(names, LONG, is_right).await;
        waited.unwrap_or_else(|wrong| panic!("{} are wrong, such as {}", wrong.len(), wrong[0]))
    }

    /// Changes every spec once.
    pub async fn next_round(&mut self) {
        self.round += 1;
        self.edit(&self.names).await;
    }

    /// Sets the current round in the specs of these widgets.
    pub async fn edit(&self, names: &[String]) {
        let spec = json!({ "round": self.round });
        let edited =
            widget::for_each(names, async |name| widget::edit(&self.widgets, &name, spec.clone()).await)
                .await;
        edited.expect("a person may edit");
    }

    /// Waits until no replica has pending keys.
    pub async fn settled(&self) {
        let started = Instant::now();
        while self.replicas.iter().any(|replica| replica.lease.snapshot().pending > 0) {
            assert!(started.elapsed() < LONG, "keys remain pending");
            sleep(SECOND / 20).await;
        }
    }

    /// Waits until the server has counted no request for widgets within two seconds.
    pub async fn quiet(&self) {
        let started = Instant::now();
        let mut before = requests_for(&self.server, "widgets").await;
        loop {
            sleep(2 * SECOND).await;
            let now = requests_for(&self.server, "widgets").await;
            if now == before {
                return;
            }
            assert!(started.elapsed() < LONG, "replicas still make requests");
            before = now;
        }
    }

    /// How often replicas have lost the role of the leader.
    pub fn roles_lost(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.lease.snapshot().counters.lost).sum()
    }

    /// Goes on until each key has one writer: a round passes without a refused write.
    pub async fn settles(&mut self) {
        let started = Instant::now();
        loop {
            let before = Writes::of(&self.server).await;
            self.next_round().await;
            self.all_right().await;
            sleep(SECOND).await;
            let writes = Writes::of(&self.server).await.since(before);
            if writes.refused == 0 {
                return;
            }
            assert!(started.elapsed() < LONG, "replicas still meet: {writes:?}");
        }
    }

    /// Goes on until each widget has one replica that leads it, and each replica leads some. Returns
    /// how many each leads.
    pub async fn shared_out(&mut self) -> Vec<usize> {
        let started = Instant::now();
        loop {
            self.next_round().await;
            self.all_right().await;
            let keys: Vec<Arc<str>> =
                self.names.iter().map(|name| format!("{NAMESPACE}/{name}").into()).collect();
            let led = |replica: &Replica| keys.iter().filter(|key| replica.lease.leads(key)).count();
            let leads = |key: &Arc<str>| self.replicas.iter().filter(|one| one.lease.leads(key)).count();
            let led: Vec<_> = self.replicas.iter().map(led).collect();
            if keys.iter().all(|key| leads(key) == 1) && led.iter().all(|led| *led > 0) {
                return led;
            }
            assert!(started.elapsed() < LONG, "the replicas lead {led:?} of {}", keys.len());
        }
    }

    /// Returns how often the replicas found that two groups want different values.
    pub fn contended(&self) -> u64 {
        let counters = self.replicas.iter().map(|replica| replica.guard.guard().contention().counters());
        counters.map(|counters| counters.contended).sum()
    }

    /// Removes the replica from the others that has written most, and returns it. As a rule it leads.
    pub fn writer(&mut self) -> Replica {
        let written = |replica: &Replica| replica.lease.snapshot().counters.written;
        let most = (0..self.replicas.len()).max_by_key(|number| written(&self.replicas[*number]));
        self.replicas.swap_remove(most.expect("a replica"))
    }

    /// Reads the widget from the server.
    pub async fn widget(&self, number: usize) -> Widget {
        self.widgets.get(&self.names[number]).await.expect("it exists")
    }
}

/// The API server's count of updates of widget statuses: those that succeeded, those refused as
/// conflicts or because the object was gone, and all others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Writes {
    pub succeeded: u64,
    pub refused: u64,
    pub others: u64,
}

impl Writes {
    pub async fn of(server: &KubeServer) -> Self {
        let mut writes = Self::default();
        for (labels, count) in requests(server).await {
            let has = |label: &str| labels.contains(label);
            if !(has(r#"resource="widgets""#) && has(r#"subresource="status""#) && has(r#"verb="PUT""#)) {
                continue;
            }
            match () {
                () if has(r#"code="200""#) => writes.succeeded += count,
                // Also if the object was deleted meanwhile.
                () if has(r#"code="409""#) || has(r#"code="404""#) => writes.refused += count,
                () => writes.others += count,
            }
        }
        writes
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            succeeded: self.succeeded - before.succeeded,
            refused: self.refused - before.refused,
            others: self.others - before.others,
        }
    }
}

/// Returns the number of requests for a resource by all clients, without watches.
pub async fn requests_for(server: &KubeServer, resource: &str) -> u64 {
    let is_one =
        |labels: &str| labels.contains(&format!(r#"resource="{resource}""#)) && !labels.contains("WATCH");
    requests(server).await.iter().filter(|(labels, _)| is_one(labels)).map(|(_, count)| count).sum()
}

/// Returns the API server's request counts with their labels.
async fn requests(server: &KubeServer) -> Vec<(String, u64)> {
    let request = Request::get("/metrics").body(Vec::new()).expect("a request");
    let figures = server.administrator().request_text(request).await.expect("figures");
    let lines = figures.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{"));
    let counts = lines.filter_map(|line| line.rsplit_once(' '));
    counts.map(|(labels, count)| (labels.to_owned(), count.parse().expect("a number"))).collect()
}
