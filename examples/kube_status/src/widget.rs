//! The custom resource: a widget, whose status shows the round of the spec that a controller has
//! seen.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResource, CustomResourceExt, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt, reflector,
        wait::{await_condition, conditions, delete::delete_and_finalize},
        watcher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The spec of a widget, which a person edits.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "writerlease.example", version = "v1", kind = "Widget", namespaced, status = "WidgetStatus")]
pub struct WidgetSpec {
    /// The round of the last edit.
    pub round: u64,
    /// Free text.
    pub note: Option<String>,
}

/// The status of a widget, which a controller writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WidgetStatus {
    /// The round of the spec that the controller has seen.
    pub round: u64,
    /// The phase that the controller derives from the spec.
    pub phase: String,
    /// The replica that wrote it.
    pub by: usize,
    /// Conditions, which other controllers may write.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, u64>,
}

impl Widget {
    /// Returns whether the status has this phase and the round of the spec.
    pub fn is_right(&self, phase: &str) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|status| status.round == self.spec.round && status.phase == phase)
    }
}

/// Installs the custom resource definition. Returns whether it is new.
pub async fn install(client: &Client) -> kube::Result<bool> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let is_new = match definitions.create(&PostParams::default(), &Widget::crd()).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.is_already_exists() => false,
        Err(error) => return Err(error),
    };
    let established = await_condition(definitions, Widget::crd_name(), conditions::is_crd_established());
    timeout(PATIENCE, established)
        .await
        .map_err(|_| {
            kube::Error::Service("the custom resource definition was not established in time".into())
        })?
        .map_err(|error| kube::Error::Service(error.into()))?;
    // An established kind may still answer 404 for a moment.
    let started = Instant::now();
    loop {
        match Api::<Widget>::all(client.clone()).list(&ListParams::default().limit(1)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() && started.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(100)).await;
            }
            listed => return listed.map(|_| is_new),
        }
    }
}

/// Deletes the custom resource definition with all its objects.
pub async fn uninstall(client: &Client) -> kube::Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let params = DeleteParams::default();
    timeout(PATIENCE, delete_and_finalize(definitions, Widget::crd_name(), &params))
        .await
        .map_err(|_| kube::Error::Service("the custom resource definition was not deleted in time".into()))?
        .map_err(|error| kube::Error::Service(error.into()))
}

/// Creates a widget whose spec is in round 1.
pub async fn create(widgets: &Api<Widget>, name: &str) -> kube::Result<()> {
    let widget = Widget::new(name, WidgetSpec { round: 1, note: None });
    widgets.create(&PostParams::default(), &widget).await.map(drop)
}

/// Changes the spec as a person would.
pub async fn edit(widgets: &Api<Widget>, name: &str, spec: Value) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some("person".into()), ..PatchParams::default() };
    widgets.patch(name, &params, &Patch::Merge(json!({ "spec": spec }))).await.map(drop)
}

/// Calls `change` with each name, at most 32 at the same time.
pub async fn for_each<F>(names: &[String], change: impl Fn(String) -> F) -> kube::Result<()>
where
    F: Future<Output = kube::Result<()>>,
{
    stream::iter(names.iter().cloned().map(change)).buffer_unordered(32).try_collect().await
}

/// Watches the objects.
pub struct Observer {
    reader: reflector::Store<Widget>,
    changed: Arc<Notify>,
    watch: JoinHandle<()>,
}

impl Observer {
    /// Starts the watch.
    pub fn start(widgets: Api<Widget>) -> Self {
        let (reader, writer) = reflector::store();
        let changed = Arc::<Notify>::default();
        let notify = changed.clone();
        let watch = tokio::spawn(async move {
            let events = watcher(widgets, watcher::Config::default()).default_backoff();
            events.reflect(writer).for_each(|_| async { notify.notify_waiters() }).await;
        });
        Self { reader, changed, watch }
    }

    /// Waits until `is_right` holds for all these objects and returns the time that took. Returns
    /// the names of the others after `limit`.
    pub async fn until(
        &self,
        names: &[String],
        limit: Duration,
        is_right: impl Fn(&Widget) -> bool,
    ) -> Result<Duration, Vec<String>> {
        let started = Instant::now();
        loop {
            let changed = self.changed.notified();
            let all = self.reader.state();
            let right: HashSet<_> =
                all.iter().filter(|widget| is_right(widget)).map(|widget| widget.name_any()).collect();
            let wrong: Vec<_> = names.iter().filter(|name| !right.contains(*name)).cloned().collect();
            if wrong.is_empty() {
                return Ok(started.elapsed());
            }
            if timeout(limit.saturating_sub(started.elapsed()), changed).await.is_err() {
                return Err(wrong);
            }
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A limit that only a hang reaches.
const PATIENCE: Duration = Duration::from_secs(60);
