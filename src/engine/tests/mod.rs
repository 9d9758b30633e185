//! The engine's table, its ten rules and its invariants, on virtual time.
//!
//! `table` tests each cell of the table, `rules` each rule behind it, `hand_over` the hand-over of
//! shards, `limits` the limits of time and settings, `explain` the looks at pending keys, `go_package`
//! the promises of the Go package, and `properties` random runs against the reference in `model`. The
//! fuzzer uses that reference too.

#[cfg(test)]
mod explain;
#[cfg(test)]
mod go_package;
#[cfg(test)]
mod hand_over;
#[cfg(test)]
mod limits;
pub(crate) mod model;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod table;
#[cfg(test)]
mod world;

#[cfg(test)]
use self::{model::Standing, world::*};
use super::{
    outcome::{Next, Outcome, Verdict},
    *,
};
