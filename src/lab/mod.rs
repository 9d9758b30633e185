//! Scenarios and the conformance suite.

pub mod conformance;
