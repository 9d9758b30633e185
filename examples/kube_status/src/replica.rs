//! One replica of the controller.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    hint::black_box,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::pending};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{Controller, WatchStreamExt, controller::Action, reflector, watcher},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::sleep,
};
use tower::service_fn;
use writerlease::{
    Roster, SpawnError, WriterLease,
    kube::{EnsureStatus, KubeStore, Refused, StatusGuard, error_policy},
    lab::Strategy,
};

use crate::widget::{Widget, WidgetStatus};

/// The field manager of all replicas, and the name of their roster.
pub const MANAGER: &str = "widget-controller";

/// The settings that all replicas share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The strategy, which decides which replicas write.
    pub strategy: Strategy,
    /// The namespace of the widgets.
    pub namespace: String,
    /// The number of shards that the replicas share out among them by a roster. With one shard one
    /// replica leads all objects, without a roster.
    pub shards: u16,
    /// The time for which a successful write holds the lease.
    pub term: Duration,
    /// The phase that this version of the controller gives a widget.
    pub phase: fn(&Widget) -> &'static str,
}

/// A controller of kube's runtime. Its reflector, its queue and the guard share one watch.
pub struct Replica {
    /// The lease on the right to write statuses.
    pub lease: WriterLease<Arc<str>>,
    /// The guard that writes them.
    pub guard: StatusGuard<Widget>,
    controller: JoinHandle<()>,
    leave: oneshot::Sender<()>,
    killed: watch::Sender<bool>,
}

struct Context {
    number: usize,
    settings: Settings,
    widgets: Api<Widget>,
    guard: StatusGuard<Widget>,
    inspected: Box<dyn Fn() + Send + Sync>,
}

impl Replica {
    /// Starts a replica, which writes its number into each status. It calls `inspected` after each
    /// time that it did the expensive part of a reconcile.
    pub fn start(
        client: Client,
        number: usize,
        settings: Settings,
        inspected: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, SpawnError> {
        let (killed, is_killed) = watch::channel(false);
        let widgets = Api::<Widget>::namespaced(mortal(client, is_killed), &settings.namespace);
        let lease = WriterLease::builder("widgets").term(settings.term).shards(settings.shards).spawn()?;
        let (reader, writer) = reflector::store();
        let events = watcher(widgets.clone(), watcher::Config::default()).default_backoff();
        let store = KubeStore::new(widgets.clone()).manager(MANAGER).reader(reader.clone());
        let (store, events) = store.tap(events);
        let guard = StatusGuard::new(store, lease.clone())?;
        if settings.shards > 1 {
            // In a pod the default name, which is the pod's, is the right one.
            guard.join(Roster::new(MANAGER).name(format!("replica-{number}")))?;
        }
        let changed = events.reflect(writer).applied_objects();
        let (leave, left) = oneshot::channel::<()>();
        let inspected = Box::new(inspected);
        let context = Context { number, settings, widgets, guard: guard.clone(), inspected };
        let controller = Controller::for_stream(changed, reader)
            .graceful_shutdown_on(async { drop(left.await) })
            .run(reconcile, policy, Arc::new(context))
            .for_each(|_| async {});
        let controller = tokio::spawn(controller);
        Ok(Self { lease, guard, controller, leave, killed })
    }

    /// Shuts the replica down and waits for its writes in flight. Returns the objects whose status
    /// is still to be written.
    pub async fn leave(self) -> Vec<Arc<str>> {
        // Fails if the controller has ended already.
        let _ = self.leave.send(());
        let unfinished = self.lease.shutdown(Duration::from_secs(5)).await;
        // Fails after a panic, which has been printed on stderr.
        let _ = self.controller.await;
        unfinished
    }

    /// Stops immediately and hands nothing over, like a killed process.
    pub async fn kill(self) {
        // A dropped lease would leave the roster.
        self.killed.send_replace(true);
        self.controller.abort();
        // Fails because of the abort.
        let _ = self.controller.await;
    }
}

/// Returns a client that sends nothing more, and hears no answer, once it is killed.
fn mortal(client: Client, is_killed: watch::Receiver<bool>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |request| {
        let (client, mut is_killed) = (client.clone(), is_killed.clone());
        async move {
            tokio::select! {
                biased;
                true = async { is_killed.wait_for(|killed| *killed).await.is_ok() } => pending().await,
                answer = client.send(request) => answer,
            }
        }
    });
    Client::new(service, namespace)
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

async fn reconcile(widget: Arc<Widget>, context: Arc<Context>) -> Result<Action, Failed> {
    let action = match context.settings.strategy {
        Strategy::Lease => context.ensure(&widget).action()?,
        Strategy::Retry => {
            context.retry_on_conflict(&widget).await?;
            Action::await_change()
        }
    };
    if context.inspects(&widget) {
        context.inspect(&widget);
    }
    Ok(action)
}

/// Returns the desired status, or `None` if the widget has it.
fn desired(widget: &Widget, phase: &str, by: usize) -> Option<WidgetStatus> {
    let was = widget.status.clone().unwrap_or_default();
    let status = WidgetStatus { round: widget.spec.round, phase: phase.into(), by, ..was };
    (!widget.is_right(phase)).then_some(status)
}

impl Context {
    /// Writes with the lease: one call.
    fn ensure(&self, widget: &Widget) -> EnsureStatus {
        let (phase, by) = (self.settings.phase, self.number);
        self.guard.ensure_status(widget, move |widget| desired(widget, phase(widget), by))
    }

    /// Returns whether this replica does the expensive part of the widget's reconcile: with the lease
    /// the one that leads the widget does, without it each.
    ///
    /// `leads` is a hint and no lock. When another replica becomes leader, both may do the part, or
    /// neither may until the next reconcile. It suits a part that is harmless twice and may come late,
    /// such as a probe or a metric. The status does not: every replica must ask for that.
    fn inspects(&self, widget: &Widget) -> bool {
        let leads = || self.guard.guard().lease().leads(&KubeStore::key(widget));
        widget.is_right((self.settings.phase)(widget))
            && (self.settings.strategy == Strategy::Retry || leads())
    }

    /// Stands for the expensive part of a reconcile: a checksum over many copies of the spec.
    fn inspect(&self, widget: &Widget) {
        let mut checksum = DefaultHasher::new();
        for copy in 0..1000 {
            (copy, widget.spec.round, &widget.spec.note).hash(&mut checksum);
        }
        black_box(checksum.finish());
        (self.inspected)();
    }

    /// Writes without the lease, as client-go's `RetryOnConflict` does with `DefaultRetry`: up to
    /// five attempts, 10 ms apart. The first starts from the reflector's object, the others from
    /// the server's.
    async fn retry_on_conflict(&self, widget: &Widget) -> kube::Result<()> {
        let mut widget = widget.clone();
        for last in [false, false, false, false, true] {
            let Some(status) = desired(&widget, (self.settings.phase)(&widget), self.number) else { break };
            let name = widget.name_any();
            widget.status = Some(status);
            let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
            match self.widgets.replace_status(&name, &params, &widget).await {
                Err(kube::Error::Api(status)) if status.is_conflict() && !last => {
                    sleep(Duration::from_millis(10)).await;
                    widget = self.widgets.get(&name).await?;
                }
                written => return written.map(drop),
            }
        }
        Ok(())
    }
}

fn policy(widget: Arc<Widget>, failed: &Failed, context: Arc<Context>) -> Action {
    match failed {
        Failed::Refused(refused) => error_policy(widget, refused, context),
        Failed::Kube(_) => Action::requeue(Duration::from_secs(1)),
    }
}
