//! Tests that need no server. They run on paused time, or on the virtual time of the simulator.

mod contention;
mod denied;
mod failing_keys;
mod follow;
mod guard;
mod lab;
mod lease;
mod never_content;
mod satisfied;
mod scenarios;
mod simulation;
mod stuck;
