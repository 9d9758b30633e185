//! The future that waits for the end of a call of the guard.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::EnsureOutcome;

/// A future of the [`EnsureOutcome`] of a call. Dropping it changes nothing: the request stays
/// pending.
#[derive(Debug)]
pub struct Ensure {
    pub(super) ending: oneshot::Receiver<EnsureOutcome>,
}

impl Future for Ensure {
    type Output = EnsureOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<EnsureOutcome> {
        // A guard that is gone completes nothing.
        Pin::new(&mut self.ending).poll(cx).map(|ending| ending.unwrap_or(EnsureOutcome::Dropped))
    }
}
