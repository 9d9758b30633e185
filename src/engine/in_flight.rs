//! The attempts that are out.
//!
//! Attempts start in order and all get the same time, so their deadlines are in order too: the next one is always at the
//! front. An attempt past its deadline no longer counts, so that a hung write never blocks a replica, but it is
//! remembered until it returns, because its key stays barred until then.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{queue::Slot, time::Timestamp};

#[derive(Debug)]
pub(super) struct InFlight {
    timeout: Duration,
    next_serial: u64,
    /// Serial of the front of `current`.
    first: u64,
    current: VecDeque<Option<Flight>>,
    late: HashMap<u64, Flight>,
    counted: Counted,
}

/// Attempts within their deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub all: usize,
    /// Those of keys that are ours whoever leads.
    pub own: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub slot: Slot,
    pub started: Timestamp,
    /// The role_generation (count of changes of role) in which it began.
    pub role_generation: u64,
    pub kind: Kind,
    pub since: Timestamp,
    pub tries: u32,
    pub setbacks: u16,
    /// Its key was cleared while it was out: it is not to be tried again.
    pub cleared: bool,
}

/// Why an attempt was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// We hold the lease.
    Lead,
    /// We compete for the lease. `suspicion`: while somebody else holds it.
    Probe { suspicion: bool },
    /// A single key that the leader doesn't do, out of patience.
    Overdue,
    /// A key of our own.
    Adopted,
}

impl InFlight {
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            next_serial: 0,
            first: 0,
            current: VecDeque::new(),
            late: HashMap::new(),
            counted: Counted::default(),
        }
    }

    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// All that are out, those past their deadline included.
    pub fn out(&self) -> usize {
        self.counted.all + self.late.len()
    }

    pub fn next_serial(&self) -> u64 {
        self.next_serial
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.current.front().map(|front| {
            let flight = front.as_ref().expect("the front is never empty");
            flight.started + self.timeout
        })
    }

    pub fn insert(&mut self, flight: Flight) -> (u64, Timestamp) {
        let serial = self.next_serial;
        let deadline = flight.started + self.timeout;
        self.next_serial += 1;
        self.count(&flight, true);
        self.current.push_back(Some(flight));
        (serial, deadline)
    }

    pub fn remove(&mut self, serial: u64) -> Option<Flight> {
        let Some(place) = serial.checked_sub(self.first).and_then(|i| self.current.get_mut(i as usize))
        else {
            return self.late.remove(&serial);
        };
        let flight = place.take()?;
        self.count(&flight, false);
        self.trim();
        Some(flight)
    }

    /// The attempt of a key that is out; O(attempts out).
    pub fn of_slot(&mut self, slot: Slot) -> Option<&mut Flight> {
        let current = self.current.iter_mut().flatten();
        current.chain(self.late.values_mut()).find(|flight| flight.slot == slot)
    }

    /// The slots of all that are out.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.current.iter().flatten().chain(self.late.values()).map(|flight| flight.slot)
    }

    /// Stops counting the attempts that are past their deadline.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some(deadline) = self.next_deadline()
            && deadline <= now
        {
            let serial = self.first;
            if let Some(Some(flight)) = self.current.pop_front() {
                self.first += 1;
                self.count(&flight, false);
                self.late.insert(serial, flight);
            }
            self.trim();
        }
    }

    /// Keeps the front in use.
    fn trim(&mut self) {
        while let Some(None) = self.current.front() {
            self.current.pop_front();
            self.first += 1;
        }
        if self.current.is_empty() {
            self.first = self.next_serial;
        }
    }

    fn count(&mut self, flight: &Flight, up: bool) {
        let own = usize::from(flight.kind == Kind::Adopted);
        if up {
            self.counted.all += 1;
            self.counted.own += own;
        } else {
            self.counted.all -= 1;
            self.counted.own -= own;
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
            since: Timestamp::ZERO,
            tries: 1,
            setbacks: 0,
            cleared: false,
        }
    }

    #[test]
    fn attempts_land_in_any_order() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        let serials: Vec<u64> = (0..5).map(|i| in_flight.insert(flight(i, Kind::Lead)).0).collect();
        for i in [2, 0, 4, 1, 3] {
            assert_eq!(in_flight.remove(serials[i]).unwrap().slot, i as Slot);
            assert!(in_flight.remove(serials[i]).is_none());
        }
        assert_eq!(in_flight.out(), 0);
    }

    #[test]
    fn an_attempt_past_its_deadline_frees_its_place_and_still_lands() {
        let mut in_flight = InFlight::new(Duration::from_nanos(100));
        let (hung, deadline) = in_flight.insert(flight(0, Kind::Adopted));
        in_flight.insert(flight(50, Kind::Lead));
        assert_eq!(in_flight.next_deadline(), Some(deadline));
        in_flight.expire(deadline);
        assert_eq!(in_flight.counted(), Counted { all: 1, own: 0 });
        assert_eq!(in_flight.out(), 2);
        assert!(in_flight.of_slot(0).is_some());
        assert!(in_flight.remove(hung).is_some());
        assert_eq!(in_flight.out(), 1);
    }

    #[test]
    fn hung_attempts_hold_no_memory_but_their_own() {
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
