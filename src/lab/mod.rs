//! What tests and benchmarks of leases and stores need: [scenarios](Scenario) with replicas, latency and faults, a
//! [store behind a bad network](Remote), and the [conformance suite](conformance) of stores.

mod board;
pub mod conformance;
mod fleet;
mod ledger;
mod remote;
mod replica;
mod report;
mod retry;
mod run;
mod scenario;
pub mod simulation;
mod value;

pub use fleet::Fleet;
pub use ledger::{Ledger, Note};
pub use remote::{Fault, Network, Remote, Tally};
pub use replica::Replica;
pub use report::Report;
pub use scenario::{LabError, Pace, Progress, Scenario, Strategy};
pub use value::Value;
