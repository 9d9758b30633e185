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
#![cfg_attr(not(doctest), doc = include_str!("controller.md"))]
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
