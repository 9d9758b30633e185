//! Scenarios and the conformance suite.
