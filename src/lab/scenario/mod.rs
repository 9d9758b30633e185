//! Scenarios: replicas that update the same objects in rounds, and the report of a run.

mod faults;
mod fleet;
mod replica;
mod report;
mod retry;
mod rounds;
mod run;
mod settings;
mod value;
mod write_log;

pub use self::{
    faults::{ReplicaFault, ReplicaFaultKind},
    fleet::Fleet,
    replica::Replica,
    report::Report,
    settings::{LabError, Pace, Progress, Scenario, Strategy},
    value::Value,
    write_log::{WriteEvent, WriteLog},
};
