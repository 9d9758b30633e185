//! Many engines, one store and one virtual clock: years of contention in seconds, and each seed one run.
//!
//! The engines are the real ones; what is around them is a model: a store that compares and writes, messages that take their
//! time or get lost, watches that repeat, reorder and leave out, processes that stop, die and start anew, clocks that run at
//! their own rates, people who edit and delete the same objects, elections. Each replica does with reads, writes and changes what the [guard](crate::Guard) does. A [`Plan`] says what
//! happens; it is drawn from a seed, and [`Plan::run`] always does the same with it. What must hold is checked all along; a
//! [`Violation`] says what did not. [`Plan::shrink`] looks for a smaller plan that still shows it.
//!
//! # What must hold
//!
//! All along: no write is undone by one that knew less; no key has two attempts at once in one replica; the window, patience
//! and the lease stay within their bounds, and a leader's lease counts from the start of its attempts; news older than the
//! write that won depose nobody; no replica hurries, and while the store gives no answer it makes one attempt at a time, after
//! a pause; an election lets no two lead.
//!
//! Once all has been well for a term and half a minute: no key is pending for longer than that, whoever else is alive (seconds
//! are usual); but 150 s, if groups want different values of it more often than once in eight round trips, because then it is
//! luck who writes. Once it has been for 60 s: no two of the replicas that want the same lead at once. Where work comes no
//! faster than once in eight round trips, nobody leads for two minutes at most; seconds are usual. (Groups that fight over keys
//! like that may have two leaders each.) At the end: nothing is pending, and all is as it should be.
//!
//! ```
//! use writerlease::lab::simulation::Plan;
//!
//! for seed in 0..10 {
//!     let plan = Plan::drawn(seed);
//!     if let Err(violation) = plan.run() {
//!         panic!("{violation}\n{:#?}", plan.shrink());
//!     }
//! }
//! ```

mod broadcast;
mod checker;
mod contender;
mod election;
mod event_queue;
mod host;
mod message;
mod plan;
mod process;
mod promises;
mod report;
mod run;
mod world;

pub use self::{
    plan::{Algorithm, FaultKind, Member, Plan, PlannedFault},
    report::{RoundStats, RunStats, Violation},
};
pub use crate::engine::Tuning;
