//! Whose turn it is: the role, the lease and what moves them.

use std::time::Duration;

use super::time::Timestamp;

/// What this replica is in the contest for the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nobody's work was seen yet.
    #[default]
    Election,
    /// Our write was the last one to win the lease. Whether it still holds it is a matter of time: an idle leader's lease
    /// runs out, the role stays.
    Leader,
    /// Somebody else's was.
    Follower,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Contest {
    role: Role,
    /// Counts changes of role; attempts remember it, so that old news can be told from new.
    role_generation: u64,
    epoch: u64,
    losses: u32,
    lease_end: Timestamp,
    /// Until here, evidence belongs to the burst that ended our leadership.
    burst_end: Timestamp,
    /// When somebody else last showed a sign of life.
    last_sign: Timestamp,
    /// Since when these came without a pause in which we would have suspected them.
    signs_since: Timestamp,
    /// The latest want that somebody else is known to have served.
    reached: Timestamp,
    /// Where the write that made us leader stands in the store's order of writes.
    won_at: Option<u64>,
    /// `expire` was called: the follower's next attempt needs no further delay.
    expired_by_caller: bool,
}

impl Contest {
    pub fn role(&self) -> Role {
        self.role
    }

    pub fn role_generation(&self) -> u64 {
        self.role_generation
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn losses(&self) -> u32 {
        self.losses
    }

    /// When the lease ends, whoever holds it.
    pub fn lease_end(&self) -> Timestamp {
        self.lease_end
    }

    pub fn last_sign(&self) -> Timestamp {
        self.last_sign
    }

    pub fn signs_since(&self) -> Timestamp {
        self.signs_since
    }

    pub fn reached(&self) -> Timestamp {
        self.reached
    }

    /// Somebody else did what we have wanted since `since`.
    pub fn reaches(&mut self, since: Timestamp) {
        self.reached = self.reached.max(since);
    }

    #[cfg(test)]
    pub fn burst_end(&self) -> Timestamp {
        self.burst_end
    }

    pub fn expired_by_caller(&self) -> bool {
        self.expired_by_caller
    }

    pub fn leads(&self, now: Timestamp) -> bool {
        self.role == Role::Leader && now < self.lease_end
    }

    /// Our write landed, from an attempt that began at `started`: the pessimistic end of the lease counts from there.
    /// Returns whether we became leader by it.
    pub fn win(&mut self, started: Timestamp, term: Duration, revision: Option<u64>) -> bool {
        if self.role == Role::Leader {
            // Attempts overlap: one that began earlier must not shorten the lease.
            self.lease_end = self.lease_end.max(started + term);
            return false;
        }
        self.change(Role::Leader);
        self.epoch += 1;
        self.lease_end = started + term;
        self.won_at = revision;
        true
    }

    /// Somebody else is the writer. `backoff` tells how long the lease is theirs after so many losses in a row. Returns
    /// whether that changed our role.
    ///
    /// `evidence` is what we saw them do, as opposed to what our own work told us. What comes in one burst with the loss of
    /// our leadership is one loss: two leaders that met at the start see each other's whole first round of writes.
    /// `rival_delay` is added to the lease with the loss of leadership.
    pub fn lose(
        &mut self,
        now: Timestamp,
        evidence: bool,
        rival_delay: Duration,
        patience: Duration,
        mut backoff: impl FnMut(u32) -> Duration,
    ) -> bool {
        let was = self.role;
        let burst = was == Role::Follower && evidence && now < self.burst_end;
        if was != Role::Follower {
            self.change(Role::Follower);
        } else if !burst {
            self.losses = self.losses.saturating_add(1);
        }
        let end = now + backoff(self.losses);
        self.lease_end = if burst { end.max(self.lease_end) } else { end };
        if was == Role::Leader {
            self.burst_end = end;
            self.lease_end = end + rival_delay;
        }
        self.sign_of_life(now, patience);
        if was != Role::Follower {
            self.signs_since = now;
        }
        self.expired_by_caller = false;
        was != Role::Follower
    }

    /// An election is over for us. Returns whether that changed our role.
    pub fn retire(&mut self, now: Timestamp) -> bool {
        self.lease_end = self.lease_end.min(now);
        let changed = self.role != Role::Follower;
        if changed {
            self.change(Role::Follower);
        }
        changed
    }

    /// Evidence from before the write that made us leader tells nothing about now.
    pub fn is_old_news(&self, revision: Option<u64>) -> bool {
        self.role == Role::Leader && revision.zip(self.won_at).is_some_and(|(seen, won)| seen < won)
    }

    /// Somebody else is alive. Who was silent for longer than `patience` begins anew.
    pub fn sign_of_life(&mut self, now: Timestamp, patience: Duration) {
        if now - self.last_sign > patience {
            self.signs_since = now;
        }
        self.last_sign = now;
    }

    /// The lease ends here, by decree.
    pub fn expire(&mut self, now: Timestamp) {
        self.lease_end = self.lease_end.min(now);
        self.expired_by_caller = true;
    }

    fn change(&mut self, to: Role) {
        self.role = to;
        self.role_generation += 1;
        self.losses = 0;
        self.expired_by_caller = false;
        self.burst_end = Timestamp::ZERO;
    }
}
