//! The attempts in flight.
//!
//! Attempts start in order and all get the same time, so their deadlines are in order too: the
//! attempt with the lowest serial has the next deadline. An attempt past its deadline no longer
//! counts, so that a hung write never blocks a replica. It is remembered until it returns, because
//! its key stays blocked until then.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{queue::Slot, time::Timestamp};

#[derive(Debug)]
pub(super) struct InFlight {
    timeout: Duration,
    next_serial: u64,
    /// By serial, and so by deadline.
    current: VecDeque<(u64, Flight)>,
    /// Past their deadline, by serial.
    late: BTreeMap<u64, Flight>,
    /// The numbers of `current`.
    counted: Counted,
}

/// The numbers of attempts within their deadline, by [`Group`]: of keys that had failed last, and of
/// all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted([[u32; 2]; 3]);

/// Attempts that share slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Those of a leader, and the probes of one that would be.
    Lease,
    /// Those of keys that we wrote last.
    Own,
    Takeover,
}

impl Counted {
    pub(super) fn clean(&self, group: Group) -> usize {
        self.0[group as usize][0] as usize
    }

    pub(super) fn failed(&self, group: Group) -> usize {
        self.0[group as usize][1] as usize
    }

    pub(super) fn all(&self, group: Group) -> usize {
        self.clean(group) + self.failed(group)
    }

    pub(super) fn total(&self) -> usize {
        self.total_clean() + self.total_failed()
    }

    pub(super) fn total_clean(&self) -> usize {
        self.0.iter().map(|[clean, _]| *clean as usize).sum()
    }

    pub(super) fn total_failed(&self) -> usize {
        self.0.iter().map(|[_, failed]| *failed as usize).sum()
    }

    pub(super) fn of(&mut self, flight: &Flight) -> &mut u32 {
        &mut self.0[flight.kind.group() as usize][usize::from(flight.failed_before)]
    }
}

#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) slot: Slot,
    pub(super) shard: u16,
    pub(super) started: Timestamp,
    /// The count of changes of role when it started.
    pub(super) role_generation: u64,
    pub(super) kind: Kind,
    /// Its key had failed last when it started.
    pub(super) failed_before: bool,
    /// Its key was cleared while it was in flight: it must not be repeated.
    pub(super) cleared: bool,
    /// It is past its deadline.
    pub(super) late: bool,
}

/// The reason for which an attempt was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// We hold the lease.
    Lead,
    /// We compete for the lease.
    Probe {
        /// No other replica was heard of for our patience.
        silent: bool,
        /// Another replica still held the lease.
        suspicion: bool,
    },
    /// We wrote the key last.
    Own,
    /// The replica that wrote the key last, or the leader, leaves it pending.
    Takeover,
}

impl Kind {
    pub(super) fn group(self) -> Group {
        match self {
            Self::Lead | Self::Probe { .. } => Group::Lease,
            Self::Own => Group::Own,
            Self::Takeover => Group::Takeover,
        }
    }
}

impl InFlight {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            next_serial: 0,
            current: VecDeque::new(),
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
        self.current.front().map(|(_, flight)| flight.started + self.timeout)
    }

    /// Adds an attempt. Returns its serial and its deadline.
    pub(super) fn insert(&mut self, flight: Flight) -> (u64, Timestamp) {
        let serial = self.next_serial;
        let deadline = flight.started + self.timeout;
        self.next_serial += 1;
        *self.counted.of(&flight) += 1;
        self.current.push_back((serial, flight));
        (serial, deadline)
    }

    pub(super) fn remove(&mut self, serial: u64) -> Option<Flight> {
        // Attempts that finish immediately finish in order.
        let is_first = self.current.front().is_some_and(|&(first, _)| first == serial);
        let (_, flight) = if is_first {
            self.current.pop_front()?
        } else if let Ok(at) = self.current.binary_search_by_key(&serial, |&(serial, _)| serial) {
            self.current.remove(at)?
        } else {
            return self.late.remove(&serial);
        };
        *self.counted.of(&flight) -= 1;
        Some(flight)
    }

    /// Returns the attempt of a key in flight, in O(attempts in flight).
    pub(super) fn of_slot(&mut self, slot: Slot) -> Option<&mut Flight> {
        let current = self.current.iter_mut().map(|(_, flight)| flight);
        current.chain(self.late.values_mut()).find(|flight| flight.slot == slot)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn newest(&self) -> Option<&Flight> {
        self.current.back().map(|(_, flight)| flight)
    }

    /// Returns all attempts in flight, those past their deadline included.
    pub(super) fn all(&self) -> impl Iterator<Item = &Flight> {
        self.current.iter().map(|(_, flight)| flight).chain(self.late.values())
    }

    /// Stops counting the attempts that are past their deadline, and tells them.
    pub(super) fn expire(&mut self, now: Timestamp, mut tell: impl FnMut(&Flight)) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.expire_first(&mut tell);
        }
    }

    fn expire_first(&mut self, tell: &mut impl FnMut(&Flight)) {
        if let Some((serial, mut flight)) = self.current.pop_front() {
            *self.counted.of(&flight) -= 1;
            tell(&flight);
            flight.late = true;
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
            shard: 0,
            started: Timestamp::from_nanos(started),
            role_generation: 0,
            kind,
            failed_before: false,
            cleared: false,
            late: false,
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
        let (hung, deadline) = in_flight.insert(flight(0, Kind::Own));
        in_flight.insert(flight(50, Kind::Lead));
        assert_eq!(in_flight.next_deadline(), Some(deadline));
        in_flight.expire(deadline, |_| ());
        assert_eq!((in_flight.counted().all(Group::Own), in_flight.counted().all(Group::Lease)), (0, 1));
        assert_eq!(in_flight.counted().total(), 1);
        assert_eq!(in_flight.out(), 2);
        assert!(in_flight.of_slot(0).is_some());
        assert!(in_flight.remove(hung).is_some());
        assert_eq!(in_flight.out(), 1);
    }

    #[test]
    fn hung_attempts_hold_only_their_own_memory() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        in_flight.insert(flight(0, Kind::Lead));
        in_flight.expire(Timestamp::from_nanos(100), |_| ());
        for i in 0..10_000 {
            let (serial, _) = in_flight.insert(flight(i, Kind::Lead));
            in_flight.remove(serial);
        }
        assert!(in_flight.current.is_empty() && in_flight.late.len() == 1);
    }
}
