//! Panics of users' code. A panic concerns the key of its job and no other, so it stays where it is
//! caught.

use std::{
    any::{Any, type_name},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs code of a user. If it panics, returns the message.
pub(super) fn catch<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = message(&*panic).to_owned();
        // A payload may be of a user's type, whose destructor may panic as well. The payload of
        // that second panic leaks, because a third may follow.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(second);
        }
        text
    })
}

/// Returns the message of a panic, if it is a text.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// A user's closure whose destructor may panic. The panic is logged and ends here, because a job is
/// dropped in many places: in the driver, with a queue of other jobs, in a call of another user.
pub(crate) struct Contained<F>(Option<F>);

impl<F> Contained<F> {
    pub(crate) fn new(job: F) -> Self {
        Self(Some(job))
    }

    pub(crate) fn get(&mut self) -> &mut F {
        self.0.as_mut().expect("only the destructor takes it")
    }
}

impl<F> Drop for Contained<F> {
    fn drop(&mut self) {
        let job = self.0.take();
        if let Err(panic) = catch(|| drop(job)) {
            tracing::error!(job = type_name::<F>(), panic, "the destructor of a job panicked");
        }
    }
}
