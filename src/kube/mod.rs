//! Status updates from within the reconcile loop of a controller.
//!
//! Several replicas of a controller run, without an elected leader, and each of them reconciles every object. What they do to
//! the world must therefore be the same whoever does it; what they write of it, the status, goes through a [`StatusGuard`]:
//! one replica writes it, the others see it done in the events that they watch anyway.
//!
//! ```toml
//! [dependencies]
//! futures-util = "0.3"
//! k8s-openapi = { version = "0.29", features = ["latest"] } # or that of your clusters
//! kube = { version = "5", features = ["derive", "runtime"] }
//! schemars = "1"
//! serde = { version = "1", features = ["derive"] }
//! serde_json = "1"
//! tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
//! writerlease = { version = "0.1", features = ["kube"] }
//! ```
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use futures_util::StreamExt;
//! use kube::{
//!     Api, Client, CustomResource,
//!     runtime::{Controller, controller::Action, watcher},
//! };
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use writerlease::{
//!     WriterLease,
//!     kube::{Refused, StatusGuard, error_policy},
//!     store::KubeStore,
//! };
//!
//! #[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
//! #[kube(group = "example.com", version = "v1", kind = "Route", namespaced, status = "RouteStatus")]
//! struct RouteSpec {
//!     host: String,
//! }
//!
//! #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
//! struct RouteStatus {
//!     admitted: String,
//! }
//!
//! async fn reconcile(route: Arc<Route>, guard: Arc<StatusGuard<Route>>) -> Result<Action, Refused> {
//!     let desire = |route: &Route| {
//!         let status = RouteStatus { admitted: route.spec.host.clone() };
//!         (route.status.as_ref() != Some(&status)).then_some(status)
//!     };
//!     // Returns at once. Whether and when to write is a matter of the guard.
//!     guard.ensure_status(&route, desire).action()
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::try_default().await?;
//! let lease = WriterLease::builder("route-status").spawn()?;
//! let controller = Controller::new(Api::<Route>::all(client.clone()), watcher::Config::default());
//! // It reads what the controller reads.
//! let store = KubeStore::new(Api::all(client)).manager("route-controller").reader(controller.store());
//! let guard = Arc::new(StatusGuard::new(store, lease.clone())?);
//! let ends = controller.shutdown_on_signal().run(reconcile, error_policy, guard).for_each(async |end| {
//!     if let Err(error) = end {
//!         eprintln!("{error}");
//!     }
//! });
//! ends.await;
//! // Whoever leaves in peace ends what it began; the others miss its next writes and go on.
//! lease.shutdown(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! All replicas need the [rights of the store](KubeStore#rights): `update` on the status, beside what a controller needs anyway.
//!
//! Here the guard has a watch of its own, because a stable [`Controller`](::kube::runtime::Controller) does not let go of its
//! events. With kube's feature `unstable-runtime`, [`KubeStore::observe`] taps those of a controller that is made
//! [`for_stream`](https://docs.rs/kube/latest/kube/runtime/struct.Controller.html#method.for_stream), and there is no second
//! watch. (Not `for_shared_stream`: as of kube 5.0 a controller that is told of an object that is gone by then sleeps on,
//! and may reconcile what comes next only when something else wakes it.)

pub(crate) mod object;
mod request;
mod status_guard;
mod store;
mod watch;

pub use self::{
    status_guard::{EnsureStatus, Refused, StatusGuard, action_of, error_policy},
    store::KubeStore,
};
