//! Tests of the electors against real servers.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod adapters;
mod conformance;
mod docs;
mod engines;
mod hostile;
mod interop;
mod log;
mod rates;
mod states;
mod takeovers;
