//! The contest for the lease: the role, the lease, and the events that move them.

use std::time::Duration;

use super::time::Timestamp;

/// The position of this replica in the contest for the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// No replica's write was seen yet.
    #[default]
    Election,
    /// Our write was the last one to win the lease. Time decides whether it still holds it: an idle
    /// leader's lease runs out, and the role stays.
    Leader,
    /// Another replica's write was the last one to win the lease.
    Follower,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Contest {
    role: Role,
    /// Since when we have it.
    role_since: Timestamp,
    /// Counts changes of role. Attempts carry it, so that old news can be recognised.
    role_generation: u64,
    epoch: u64,
    losses: u32,
    lease_end: Timestamp,
    /// Until here, evidence belongs to the burst that ended our leadership.
    burst_end: Timestamp,
    /// When another replica last showed a sign of life.
    last_sign: Timestamp,
    /// Since when signs of life arrived without a silence in between.
    signs_since: Timestamp,
    /// The youngest request that another replica is known to have served.
    reached: Timestamp,
    /// When one write last showed to all replicas that keys are skipped, or that another writes them.
    skips_seen: Timestamp,
    /// When our last successful write ended.
    last_write: Timestamp,
    /// The revision of the write that made us leader.
    won_at: Option<u64>,
    /// The caller ended the lease: the follower's next attempt needs no further delay.
    expired_by_caller: bool,
}

impl Contest {
    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn role_since(&self) -> Timestamp {
        self.role_since
    }

    pub(super) fn role_generation(&self) -> u64 {
        self.role_generation
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn losses(&self) -> u32 {
        self.losses
    }

    /// Returns when the lease ends, whoever holds it.
    pub(super) fn lease_end(&self) -> Timestamp {
        self.lease_end
    }

    pub(super) fn last_sign(&self) -> Timestamp {
        self.last_sign
    }

    pub(super) fn signs_since(&self) -> Timestamp {
        self.signs_since
    }

    /// Records that another replica is alive. After a silence longer than `silence` another one may
    /// have begun to do the work of one that died, and gets its time.
    pub(super) fn sign_of_life(&mut self, now: Timestamp, silence: Duration) {
        if now - self.last_sign > silence {
            self.signs_since = now;
        }
        self.last_sign = now;
    }

    pub(super) fn reached(&self) -> Timestamp {
        self.reached
    }

    pub(super) fn skips_seen(&self) -> Timestamp {
        self.skips_seen
    }

    /// Records that another replica served a request that was pending since `since`. All replicas learn
    /// from the same write that older keys are skipped, unless requests follow each other within
    /// `burst`: then their patience keeps them apart. `late` says that the key itself was skipped before.
    pub(super) fn reaches(&mut self, now: Timestamp, since: Timestamp, burst: Duration, late: bool) {
        if late || self.reached + burst < since {
            self.skips_seen = now;
        }
        self.reached = self.reached.max(since);
    }

    pub(super) fn last_write(&self) -> Timestamp {
        self.last_write
    }

    /// Records that a write of ours succeeded, whatever it was for.
    pub(super) fn wrote(&mut self, now: Timestamp) {
        self.last_write = now;
    }

    #[cfg(test)]
    pub(super) fn burst_end(&self) -> Timestamp {
        self.burst_end
    }

    pub(super) fn expired_by_caller(&self) -> bool {
        self.expired_by_caller
    }

    pub(super) fn leads(&self, now: Timestamp) -> bool {
        self.role == Role::Leader && now < self.lease_end
    }

    /// Records that our write succeeded. The attempt started at `started`, from where the lease
    /// counts (rule 9). Returns whether this made us leader.
    pub(super) fn win(&mut self, started: Timestamp, term: Duration, revision: Option<u64>) -> bool {
        if self.role == Role::Leader {
            // Attempts overlap: one that started earlier must not shorten the lease.
            self.lease_end = self.lease_end.max(started + term);
            return false;
        }
        self.change(started, Role::Leader);
        self.epoch += 1;
        self.lease_end = started + term;
        self.won_at = revision;
        true
    }

    /// Records that another replica is the writer. `backoff` returns how long the lease is theirs
    /// after this many losses in a row. Returns whether this changed our role.
    ///
    /// `evidence` says that we saw the write; otherwise our own job reported it. `rival_delay` is
    /// added to the lease if this ends our leadership.
    pub(super) fn lose(
        &mut self,
        now: Timestamp,
        evidence: bool,
        rival_delay: Duration,
        silence: Duration,
        mut backoff: impl FnMut(u32) -> Duration,
    ) -> bool {
        let was = self.role;
        // Two leaders that met at the start see each other's whole first round of writes. Evidence
        // that comes in one burst with the loss of our leadership is therefore the same loss (rule
        // 4).
        let burst = was == Role::Follower && evidence && now < self.burst_end;
        if was != Role::Follower {
            self.change(now, Role::Follower);
        } else if !burst {
            self.losses = self.losses.saturating_add(1);
        }
        let end = now + backoff(self.losses);
        // Within the burst the lease must not shrink: it may contain the rival delay.
        self.lease_end = if burst { end.max(self.lease_end) } else { end };
        if was == Role::Leader {
            self.burst_end = end;
            self.lease_end = end + rival_delay;
        }
        self.sign_of_life(now, silence);
        self.expired_by_caller = false;
        was != Role::Follower
    }

    /// Ends our lease because an election no longer lets us lead. Returns whether this changed our
    /// role.
    pub(super) fn retire(&mut self, now: Timestamp) -> bool {
        self.lease_end = self.lease_end.min(now);
        let changed = self.role != Role::Follower;
        if changed {
            self.change(now, Role::Follower);
        }
        changed
    }

    /// The roster says that it is our turn: no lease of another stands in the way. Returns whether
    /// this changed our role.
    pub(super) fn take_turn(&mut self, now: Timestamp) -> bool {
        if self.role == Role::Leader {
            return false;
        }
        self.lease_end = self.lease_end.min(now);
        let changed = self.role != Role::Election;
        if changed {
            self.change(now, Role::Election);
        }
        changed
    }

    /// The roster says that it is another replica's turn, which gets a whole term and our whole
    /// patience. Returns whether this changed our role.
    pub(super) fn give_turn(&mut self, now: Timestamp, term: Duration) -> bool {
        let changed = self.retire(now);
        self.lease_end = now + term;
        (self.last_sign, self.signs_since) = (now, now);
        // What a predecessor served says nothing about whom it skips.
        self.reached = Timestamp::ZERO;
        changed
    }

    /// Returns whether evidence is from before the write that made us leader: it then says nothing
    /// about the present.
    pub(super) fn is_old_news(&self, revision: Option<u64>) -> bool {
        self.role == Role::Leader && revision.zip(self.won_at).is_some_and(|(seen, won)| seen < won)
    }

    /// Forgets the revision at which we won: the store may count from a smaller one by now.
    pub(super) fn forget_revision(&mut self) {
        self.won_at = None;
    }

    /// Ends the lease at the caller's request.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.lease_end = self.lease_end.min(now);
        self.expired_by_caller = true;
    }

    fn change(&mut self, now: Timestamp, to: Role) {
        self.role = to;
        self.role_since = now;
        self.role_generation += 1;
        self.losses = 0;
        self.expired_by_caller = false;
        self.burst_end = Timestamp::ZERO;
    }
}
