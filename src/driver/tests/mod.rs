#[cfg(shuttle)]
mod interleavings;
mod suspension;

#[cfg(shuttle)]
pub(super) use interleavings::switch;

/// Does nothing: only shuttle has another thread to let go first.
#[cfg(not(shuttle))]
pub(super) fn switch() {}
