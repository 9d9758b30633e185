//! Tools for tests and benchmarks of leases and stores: [scenarios](Scenario) with replicas,
//! latency and faults, a [store behind a bad network](RemoteStore), the [conformance
//! suites](conformance) for stores and electors, an [election in memory](MemoryElection), and a
//! [simulator](simulation) of the engine.

pub mod conformance;
mod election;
mod network;
mod scenario;
pub mod simulation;

pub use self::{
    election::{MemoryElection, MemoryElector},
    network::{Network, NetworkFault, RemoteStore, RequestCounts},
    scenario::{
        Fleet, LabError, Pace, Progress, Replica, ReplicaFault, ReplicaFaultKind, Report, Scenario, Strategy,
        Value, WriteEvent, WriteLog,
    },
};
