//! Status updates in the reconcile loop of a Kubernetes controller.
//!
//! All replicas of a controller run, without an elected leader and without a `Lease` to renew. Each
//! replica reconciles every object and passes the status to a [`StatusGuard`]. One replica writes
//! it; the others see the write in their watch. Reconciles must therefore be deterministic: every
//! replica must compute the same status from the same object.
//!
//! ```toml
//! [dependencies]
//! futures-util = "0.3"
//! k8s-openapi = { version = "0.29", features = ["latest"] } # or the version of your clusters
//! kube = { version = "5", features = ["runtime"] }
//! tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
//! writerlease = { version = "0.1", features = ["kube"] }
//! ```
//!
//! A controller that assigns each `Service` the address that its spec asks for:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use futures_util::StreamExt;
//! use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};
//! use kube::{
//!     Api, Client,
//!     runtime::{Controller, controller::Action, watcher},
//! };
//! use writerlease::{
//!     WriterLease,
//!     kube::{KubeStore, Refused, StatusGuard, error_policy},
//! };
//!
//! /// Returns the status to write; `None` if the service has it already.
//! fn desired_status(service: &Service) -> Option<ServiceStatus> {
//!     let ip = service.spec.as_ref()?.load_balancer_ip.clone();
//!     let ingress = LoadBalancerIngress { ip, ..Default::default() };
//!     let balancer = LoadBalancerStatus { ingress: Some(vec![ingress]) };
//!     let current = service.status.clone().unwrap_or_default();
//!     let desired = ServiceStatus { load_balancer: Some(balancer), ..current.clone() };
//!     (desired != current).then_some(desired)
//! }
//!
//! async fn reconcile(service: Arc<Service>, guard: Arc<StatusGuard<Service>>) -> Result<Action, Refused> {
//!     // Returns immediately. The guard decides whether and when this replica writes.
//!     guard.ensure_status(&service, desired_status).action()
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::try_default().await?;
//!     let lease = WriterLease::builder("service-status").spawn()?;
//!     let controller = Controller::new(Api::<Service>::all(client.clone()), watcher::Config::default());
//!     let store = KubeStore::new(Api::all(client)).manager("address-controller").reader(controller.store());
//!     let guard = Arc::new(StatusGuard::new(store, lease.clone())?);
//!     let results = controller.shutdown_on_signal().run(reconcile, error_policy, guard);
//!     results
//!         .for_each(async |result| {
//!             if let Err(error) = result {
//!                 eprintln!("{error}");
//!             }
//!         })
//!         .await;
//!     // Finish the writes in flight. The others notice that no more come, and one takes over.
//!     lease.shutdown(Duration::from_secs(5)).await;
//!     Ok(())
//! }
//! ```
//!
//! All replicas need the [rights of the store](KubeStore#rights): `update` on the status, besides
//! the rights of any controller. `examples/kube_status` in the repository is a controller of a
//! custom resource.
//!
//! # Several conditions
//!
//! Each condition of an object can be a separate part. Parts that are pending at the same time
//! become one write, and [`action_of`] combines their actions:
//!
//! ```
//! use k8s_openapi::api::core::v1::{Pod, PodStatus};
//! use kube::runtime::controller::Action;
//! use writerlease::kube::{Refused, StatusGuard, action_of};
//!
//! # fn with_condition(pod: &Pod, kind: &str) -> Option<PodStatus> {
//! #     let _ = kind;
//! #     pod.status.clone()
//! # }
//! fn ensure_conditions(guard: &StatusGuard<Pod>, pod: &Pod) -> Result<Action, Refused> {
//!     action_of(["example.com/Admitted", "example.com/Healthy"].map(|kind| {
//!         guard.ensure_part(pod, kind, move |pod| with_condition(pod, kind))
//!     }))
//! }
//! ```
//!
//! # One watch
//!
//! Above, the guard runs a watch of its own, because a [`Controller`](kube::runtime::Controller)
//! made with `new` does not share its events. [`KubeStore::tap`] shares the watch of a reflector,
//! or that of a controller made with
//! [`for_stream`](https://docs.rs/kube/latest/kube/runtime/struct.Controller.html#method.for_stream)
//! (kube's feature `unstable-runtime`).
//!
//! Avoid `for_shared_stream`: in kube 5.0 a controller that is notified of an object that has gone
//! by then sleeps on, and may reconcile the next objects only when something else wakes it.
//!
//! # Competing writers
//!
//! Competitors are recognised by their [field manager](KubeStore::competitors): a person who edits
//! the spec or a label is not one. If two versions of a controller want different values, each
//! object that they fight over is left alone for a minute with a warning, and all other objects
//! continue; see [`ContentionTracker`](crate::ContentionTracker).
//!
//! # Replicas that know of each other
//!
//! [`StatusGuard::join`] lists the replicas as `Lease` objects, so that they need not compete to find
//! out whose turn it is. Nothing renews these objects.
//!
//! With [`shards`](crate::LeaseBuilder::shards) each replica then writes its part of the statuses.
//! [`leads`](crate::WriterLease::leads) says which objects these are. It is a hint, and no lock. In
//! `examples/kube_status` the expensive part of a reconcile is left to the replica that leads the
//! object.
//!
//! # Refusals
//!
//! A refusal for good, such as 403 or 422, is the error of the object's next reconcile.
//! [`error_policy`] decides when to try again.

mod lease_store;
mod object;
mod reader;
mod request;
mod status_guard;
mod store;
mod watch;

pub use self::{
    lease_store::LeaseStore,
    status_guard::{EnsureStatus, Refused, StatusGuard, action_of, error_policy},
    store::KubeStore,
};
