//! The engine and the guard's objects on virtual time: years of contention in seconds, and each
//! seed one run.
//!
//! Engines and [objects](crate::object) are the real ones. A model surrounds them: a store that
//! compares and writes, messages that are slow or get lost, watches that repeat, reorder and leave
//! out, news that hold up those behind them, processes that stop, die and start again, one by one or
//! all together, clocks that run at their own rates, people who edit and delete the same objects,
//! stores that are set back to a backup, keys that fail, hang or are denied, closures that are never
//! content, and elections. In half of the plans the keys hash into up to 64 shards, and replicas leave
//! in peace; most of these have a roster, which is old for one replica or for all, deleted, full of the
//! dead, or cannot be read or written. One plan in a thousand has up to 2,000 keys and 50 replicas.
//!
//! A [`Plan`] says what happens. It is drawn from a seed, and [`Plan::run`] does the same with it each
//! time. The promises are checked all along, and a [`Violation`] names the first one that was broken.
//! [`Plan::shrink`] looks for a smaller plan that still breaks it.
//!
//! # Promises
//!
//! All along:
//!
//! - No write is undone by a replica that knew less.
//! - No key has two attempts at the same time in one replica.
//! - The window, patience and the lease stay within their bounds. A leader's lease of a shard counts
//!   from the start of its attempts.
//! - News older than the write that won the lease depose nobody.
//! - No replica exceeds its attempt rate. While the store gives no answer, a replica makes one
//!   attempt at a time, after a pause.
//! - An election lets no two replicas lead.
//! - The roster is written seldom: once for each entry of a replica that never lived, twice for each
//!   replica at its start and for each fault, and once for each late message. Replicas that do not
//!   write in their shards, because they want other keys, learn late or cannot write, join again after
//!   pauses that grow to 32 s.
//!
//! Once all has been well for a while:
//!
//! - After a term and 30 s no key is pending for longer than that, whoever else is alive; a few
//!   seconds are usual. The limit is 150 s if groups want different values of the key more often
//!   than once in eight round trips, because then luck decides who writes it. Luck also decides
//!   whether a replica that cannot write such a key sees that another of its group did.
//! - At the end nothing is pending, and every key is as it should be that some replica can write.
//!
//! However the roster lies, keys are pending for no longer than that. A shard has a patience of its own.
//! Each dead member of the roster costs one at most.
//!
//! If one group wants the keys:
//!
//! - Nothing is metastable: ten rounds after the last fault, and 40 s, the median round takes at most
//!   1.5 times what it took before the first one, and one attempt. Rounds begin less often than
//!   attempts end, or a late key would never be in time again.
//! - A failing key holds up no other: the same with keys that cannot be written for ever.
//! - Once all is well, no key waits for longer than patience, its spread, and the attempts that fail
//!   first or stand before it. Keys that fail for good stand before the others while a replica thinks
//!   that the store is down, because it tries one key at a time then. In an election, which knows no
//!   patience, a key waits for the time to live of a dead leader.
//! - If nobody else changes the keys, and requests come no faster than one replica serves them before
//!   others lose patience, a run has at most 20 refused writes for its start and for each fault, and
//!   one for each late message.
//! - If all want the same keys, turns settle on the living: 33 s after the last fault (the longest pause
//!   before a replica joins again) all replicas agree that each shard with keys is the turn of one of
//!   them. If members may be dead, a term later, and a patience for each. If nobody could read the
//!   roster, 62 s later.
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

mod ages;
mod broadcast;
mod checker;
mod contender;
mod draw;
mod election;
mod event_queue;
mod finding;
mod host;
mod keeper;
mod message;
mod network;
mod observation;
mod plan;
mod process;
mod promises;
mod recovery;
mod report;
mod run;
mod turns;
mod world;

pub use self::{
    plan::{Ailment, Algorithm, FaultKind, Member, Plan, PlannedFault, PlannedRoster, Sickness, Versions},
    report::{RoundStats, RunStats, Violation},
};
pub use crate::engine::Tuning;
