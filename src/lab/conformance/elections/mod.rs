//! A test suite for the [promises](crate::election) of an [`Elector`].
//!
//! Every elector of this crate passes it. To test your own, describe its server in a [`Harness`]:
//!
//! ```
//! use std::time::Duration;
//! use writerlease::{
//!     lab::{
//!         MemoryElection, MemoryElector,
//!         conformance::elections::{self, Contact, Harness},
//!     },
//!     store::MemoryStore,
//! };
//!
//! struct Memory(MemoryElection);
//!
//! impl Memory {
//!     async fn start() -> Self {
//!         let election = MemoryElection::new(MemoryStore::new(), "test", Duration::from_secs(1));
//!         Self(election.expect("a valid TTL"))
//!     }
//! }
//!
//! impl Harness for Memory {
//!     type Elector = MemoryElector;
//!     type Store = MemoryStore;
//!
//!     fn ttl(&self) -> Duration {
//!         Duration::from_secs(1)
//!     }
//!
//!     async fn candidate(&self, identity: &str) -> MemoryElector {
//!         self.0.candidate(identity)
//!     }
//!
//!     async fn store(&self) -> MemoryStore {
//!         self.0.store().clone()
//!     }
//!
//!     async fn traces(&self) -> Vec<String> {
//!         self.0.candidates().iter().map(|identity| identity.to_string()).collect()
//!     }
//!
//!     async fn depose(&self) {
//!         self.0.depose();
//!     }
//!
//!     fn contact(&self, identity: &str, contact: Contact) {
//!         // In memory there is no connection that could break and be made again.
//!         self.0.cut_off(identity, contact == Contact::Lost);
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let report = elections::run(Memory::start).await;
//! println!("{report}");
//! assert!(report.passed());
//! # }
//! ```

mod cases;
mod states;

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;

use super::{CaseOutcome, CaseResult, Report, message};
use crate::{election::Elector, store::Store};

/// A server with one election, in which nobody takes part at first.
pub trait Harness {
    /// The type of the electors.
    type Elector: Elector;
    /// The type of a store that checks the fences of this election.
    type Store: Store;

    /// How long the others wait for a silent leader.
    fn ttl(&self) -> Duration;

    /// Starts a candidate with a connection of its own.
    fn candidate(&self, identity: &str) -> impl Future<Output = Self::Elector>;

    /// Returns a store that checks the fences of this election. Its connection has no faults.
    fn store(&self) -> impl Future<Output = Self::Store>;

    /// Lists all that the server holds of candidates: keys, nodes, sessions.
    fn traces(&self) -> impl Future<Output = Vec<String>>;

    /// Deletes the leader's key or node, as another program would.
    fn depose(&self) -> impl Future<Output = ()>;

    /// Sets the contact between the candidates of this identity, which exist, and the server.
    fn contact(&self, identity: &str, contact: Contact);

    /// The time limit of one case; a case that exceeds it counts as failed. Default: 5 minutes,
    /// because a case is repeated if it may have failed for the slowness of the machine.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(300)
    }
}

/// The contact between a candidate and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// Nothing is wrong, any more.
    Good,
    /// The open connections break. New ones can be made.
    Broken,
    /// Nothing arrives, in either direction, until the contact is good again.
    Lost,
}

/// Runs all cases, one after the other, each on a server of its own that `start` returns.
///
/// Needs a tokio runtime with time enabled, which may be paused. A case that panics or exceeds the
/// time limit counts as failed, and the next case runs.
pub async fn run<H: Harness>(start: impl AsyncFn() -> H) -> Report {
    run_only(start, |_| true).await
}

/// Like [`run`], with the cases of these names only.
pub async fn run_only<H: Harness>(start: impl AsyncFn() -> H, only: impl Fn(&str) -> bool) -> Report {
    let mut suite = Suite { start, only, results: Vec::new() };
    cases::run(&mut suite).await;
    Report { results: suite.results }
}

struct Suite<S, O> {
    start: S,
    only: O,
    results: Vec<CaseResult>,
}

impl<H: Harness, S: AsyncFn() -> H, O: Fn(&str) -> bool> Suite<S, O> {
    async fn case(&mut self, name: &'static str, case: impl AsyncFnOnce(&H)) {
        if !(self.only)(name) {
            return;
        }
        let harness = Box::pin((self.start)()).await;
        let limit = harness.time_limit();
        // On the heap, because the clients of some servers have large futures.
        let case = AssertUnwindSafe(Box::pin(case(&harness))).catch_unwind();
        let outcome = match tokio::time::timeout(limit, case).await {
            Ok(Ok(())) => CaseOutcome::Passed,
            Ok(Err(panic)) => CaseOutcome::Failed(message(&*panic)),
            Err(_) => CaseOutcome::Failed(format!("unfinished after {limit:?}")),
        };
        self.results.push(CaseResult { name, outcome });
    }
}
