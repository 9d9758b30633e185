//! Rule 7: one timer.

use std::{
    cell::Cell,
    hash::{Hash, Hasher},
};

use super::*;

/// A key that counts how often it is hashed, compared or cloned.
#[derive(Debug, PartialOrd, Ord)]
struct Watched(u32);

thread_local! {
    static LOOKS: Cell<u64> = const { Cell::new(0) };
}

fn look() {
    LOOKS.with(|looks| looks.set(looks.get() + 1));
}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        look();
        self.0.hash(state);
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        look();
        self.0 == other.0
    }
}

impl Eq for Watched {}

impl Clone for Watched {
    fn clone(&self) -> Self {
        look();
        Self(self.0)
    }
}

#[test]
fn million_waiting_keys_share_one_deadline() {
    const PENDING: u32 = 1_000_000;
    let mut engine: Engine<Watched, ()> = Engine::new(settings(1).fixed_patience().build().unwrap());
    let mut now = Timestamp::ZERO;
    for _ in 0..10 {
        engine.handle_observe(now, &Watched(0), None);
    }
    for key in 0..PENDING {
        engine.handle_try(now, Watched(key), ());
    }
    for i in 0..10_000 {
        now = now + ms(1);
        LOOKS.with(|looks| looks.set(0));
        let done = Watched(if i % 2 == 0 { i } else { PENDING + i });
        assert_eq!(engine.handle_extend(now, &done, None).is_some(), i % 2 == 0);
        engine.handle_observe(now, &Watched(0), None);
        assert!(engine.poll_attempt(now).is_none());
        // A lookup compares one hash and, now and then, a key that only looks alike.
        assert!(LOOKS.with(Cell::get) < 50, "{} looks at keys", LOOKS.with(Cell::get));
        // No key has a deadline of its own; all of them wait for the lease or their patience.
        assert_eq!(engine.queue.next_due(), None);
        assert_eq!(engine.poll_timeout(), Some(engine.lease_end().min(now + engine.patience())));
    }
    assert_eq!(engine.len(), PENDING as usize - 5_000);
}
