mod interleavings;
mod suspension;

pub(super) use interleavings::switch;
