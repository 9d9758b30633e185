//! Tools for tests and benchmarks of leases and stores: [scenarios](Scenario) with replicas,
//! latency and faults, a [store behind a bad network](RemoteStore), the [conformance
//! suite](conformance) for stores, and a [simulator](simulation) of the engine.

pub mod conformance;
mod network;
mod scenario;
pub mod simulation;

pub use self::{
    network::{Network, NetworkFault, RemoteStore, RequestCounts},
    scenario::{
        Fleet, LabError, Pace, Progress, Replica, ReplicaFault, ReplicaFaultKind, Report, Scenario, Strategy,
        Value, WriteEvent, WriteLog,
    },
};
