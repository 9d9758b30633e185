//! What tests and benchmarks of leases and stores need: [scenarios](Scenario) with replicas, latency and faults, a
//! [store behind a bad network](Remote), and the [conformance suite](conformance) of stores.

pub mod conformance;
mod network;
mod scenario;
pub mod simulation;

pub use self::{
    network::{Fault, Network, Remote, Tally},
    scenario::{Fleet, LabError, Ledger, Note, Pace, Progress, Replica, Report, Scenario, Strategy, Value},
};
