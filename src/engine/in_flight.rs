//! The attempts in flight.
//!
//! Attempts start in order and all get the same time, so their deadlines are in order too: the
//! attempt with the lowest serial has the next deadline. An attempt past its deadline no longer
//! counts, so that a hung write never blocks a replica. It is remembered until it returns, because
//! its key stays blocked until then.

use std::{collections::BTreeMap, time::Duration};

use super::{queue::Slot, time::Timestamp};

#[derive(Debug)]
pub(super) struct InFlight {
    timeout: Duration,
    next_serial: u64,
    /// By serial, and so by deadline.
    current: BTreeMap<u64, Flight>,
    /// Past their deadline, by serial.
    late: BTreeMap<u64, Flight>,
    /// The numbers of `current`.
    counted: Counted,
}

/// The numbers of attempts within their deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) all: usize,
    /// Those of adopted keys.
    pub(super) own: usize,
    /// Those of keys that had failed last.
    pub(super) failed: usize,
    /// Those of adopted keys that had failed last.
    pub(super) failed_own: usize,
}

impl Counted {
    /// Returns the number of those of keys that had not failed last.
    pub(super) fn clean(&self) -> usize {
        self.all - self.failed
    }

    /// Returns the number of those by which we compete, of keys that had not failed last.
    pub(super) fn clean_probes(&self) -> usize {
        self.clean() - (self.own - self.failed_own)
    }

    fn change(&mut self, flight: &Flight, by: impl Fn(usize) -> usize) {
        let (own, failed) = (flight.kind == Kind::Adopted, flight.failed_before);
        for (count, counts) in [
            (&mut self.all, true),
            (&mut self.own, own),
            (&mut self.failed, failed),
            (&mut self.failed_own, own && failed),
        ] {
            if counts {
                *count = by(*count);
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) slot: Slot,
    pub(super) started: Timestamp,
    /// The count of changes of role when it started.
    pub(super) role_generation: u64,
    pub(super) kind: Kind,
    /// Its key had failed last when it started.
    pub(super) failed_before: bool,
    /// Its key was cleared while it was in flight: it must not be repeated.
    pub(super) cleared: bool,
}

/// The reason for which an attempt was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// We hold the lease.
    Lead,
    /// We compete for the lease; as a suspicion while another replica holds it.
    Probe { suspicion: bool },
    /// A single key that the leader skips.
    Overdue,
    /// A key that we have adopted.
    Adopted,
}

impl InFlight {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            next_serial: 0,
            current: BTreeMap::new(),
            late: BTreeMap::new(),
            counted: Counted::default(),
        }
    }

    pub(super) fn counted(&self) -> Counted {
        self.counted
    }

    /// Returns the number of all attempts in flight, those past their deadline included.
    pub(super) fn out(&self) -> usize {
        self.current.len() + self.late.len()
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.next_serial
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.current.first_key_value().map(|(_, flight)| flight.started + self.timeout)
    }

    /// Adds an attempt. Returns its serial and its deadline.
    pub(super) fn insert(&mut self, flight: Flight) -> (u64, Timestamp) {
        let serial = self.next_serial;
        let deadline = flight.started + self.timeout;
        self.next_serial += 1;
        self.counted.change(&flight, |count| count + 1);
        self.current.insert(serial, flight);
        (serial, deadline)
    }

    pub(super) fn remove(&mut self, serial: u64) -> Option<Flight> {
        let Some(flight) = self.current.remove(&serial) else { return self.late.remove(&serial) };
        self.counted.change(&flight, |count| count - 1);
        Some(flight)
    }

    /// Returns the attempt of a key in flight, in O(attempts in flight).
    pub(super) fn of_slot(&mut self, slot: Slot) -> Option<&mut Flight> {
        self.current.values_mut().chain(self.late.values_mut()).find(|flight| flight.slot == slot)
    }

    /// Returns the slots of all attempts in flight.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.current.values().chain(self.late.values()).map(|flight| flight.slot)
    }

    /// Stops counting the attempts that are past their deadline.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now)
            && let Some((serial, flight)) = self.current.pop_first()
        {
            self.counted.change(&flight, |count| count - 1);
            self.late.insert(serial, flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(started: u64, kind: Kind) -> Flight {
        Flight {
            slot: started as Slot,
            started: Timestamp::from_nanos(started),
            role_generation: 0,
            kind,
            failed_before: false,
            cleared: false,
        }
    }

    #[test]
    fn attempts_finish_in_any_order() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        let serials: Vec<u64> = (0..5).map(|i| in_flight.insert(flight(i, Kind::Lead)).0).collect();
        for i in [2, 0, 4, 1, 3] {
            assert_eq!(in_flight.remove(serials[i]).unwrap().slot, i as Slot);
            assert!(in_flight.remove(serials[i]).is_none());
        }
        assert_eq!(in_flight.out(), 0);
    }

    #[test]
    fn late_attempt_frees_its_slot_and_still_finishes() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        let (hung, deadline) = in_flight.insert(flight(0, Kind::Adopted));
        in_flight.insert(flight(50, Kind::Lead));
        assert_eq!(in_flight.next_deadline(), Some(deadline));
        in_flight.expire(deadline);
        assert_eq!(in_flight.counted(), Counted { all: 1, ..Counted::default() });
        assert_eq!(in_flight.out(), 2);
        assert!(in_flight.of_slot(0).is_some());
        assert!(in_flight.remove(hung).is_some());
        assert_eq!(in_flight.out(), 1);
    }

    #[test]
    fn hung_attempts_hold_only_their_own_memory() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        in_flight.insert(flight(0, Kind::Lead));
        in_flight.expire(Timestamp::from_nanos(100));
        for i in 0..10_000 {
            let (serial, _) = in_flight.insert(flight(i, Kind::Lead));
            in_flight.remove(serial);
        }
        assert!(in_flight.current.is_empty() && in_flight.late.len() == 1);
    }
}
