//! What tests and benchmarks of leases and stores need: a [store behind a bad network](Remote), and the
//! [conformance suite](conformance) of stores.

pub mod conformance;
mod remote;

pub use remote::{Fault, Network, Remote, Tally};
