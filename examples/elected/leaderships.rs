//! The leaderships of a run, and the violations found in them.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use crate::options::{End, Options};

/// Returns the nanoseconds of the system's monotonic clock, which all processes share.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[derive(Debug, Default)]
pub struct Leaderships {
    /// The leaderships by their tokens.
    pub by_token: BTreeMap<u64, Leadership>,
    /// The number of writes that a fence refused.
    pub fenced: u64,
    /// The number of writes that succeeded after one with a greater token.
    pub stale: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Leadership {
    pub leader: String,
    pub elected: u64,
    /// The first and the last time at which the candidate considered itself leader.
    pub acted: Option<(u64, u64)>,
    pub writes: u64,
    /// The way in which the leadership ended, and the time.
    pub end: Option<(End, u64)>,
}

impl Leaderships {
    /// Returns the number of leaders that considered themselves leader before an earlier one
    /// stopped.
    pub fn overlaps(&self) -> usize {
        let acted: Vec<_> = self.by_token.values().filter_map(|leadership| leadership.acted).collect();
        let mut latest = 0;
        let mut overlaps = 0;
        for (first, last) in acted {
            overlaps += usize::from(first <= latest);
            latest = latest.max(last);
        }
        overlaps
    }

    pub fn are_sound(&self) -> bool {
        self.overlaps() == 0 && self.stale == 0
    }

    /// Returns the times from the end of each leadership to the next election.
    fn gaps(&self) -> Vec<(End, Duration)> {
        let next = self.by_token.values().skip(1);
        let pairs = self.by_token.values().zip(next);
        pairs
            .filter_map(|(leadership, next)| {
                let (end, at) = leadership.end?;
                Some((end, Duration::from_nanos(next.elected.saturating_sub(at))))
            })
            .collect()
    }

    /// Returns, for each way to end, the number of leaderships and the median time to the next
    /// election.
    fn medians(&self) -> Vec<(End, usize, Duration)> {
        let mut gaps: BTreeMap<End, Vec<Duration>> = BTreeMap::new();
        for (end, gap) in self.gaps() {
            gaps.entry(end).or_default().push(gap);
        }
        let median = |(end, mut gaps): (End, Vec<Duration>)| {
            gaps.sort_unstable();
            (end, gaps.len(), gaps[gaps.len() / 2])
        };
        gaps.into_iter().map(median).collect()
    }

    pub fn print(&self, options: &Options) {
        let (overlaps, medians) = (self.overlaps(), self.medians());
        let writes: u64 = self.by_token.values().map(|leadership| leadership.writes).sum();
        if options.json {
            let takeovers = medians.iter().map(|(end, count, median)| {
                (end.to_string(), json!({ "count": count, "median_ms": millis(*median) }))
            });
            let takeovers: serde_json::Map<_, _> = takeovers.collect();
            let figures = json!({
                "leaderships": self.by_token.len(), "takeovers": takeovers, "writes": writes, "fenced_writes": self.fenced,
                "overlaps": overlaps, "stale_writes": self.stale,
            });
            println!("{figures}");
            return;
        }
        println!("{} candidates, {:?} TTL, {}\n", options.candidates, options.ttl, options.backend);
        println!(
            "{:>20}  {:<14}{:>10}{:>10}{:>9}  {:<9}{:>10}",
            "token", "leader", "from", "led for", "writes", "end", "next after"
        );
        let start = self.by_token.values().next().map_or(0, |leadership| leadership.elected);
        let mut gaps = self.gaps().into_iter();
        for (token, leadership) in &self.by_token {
            let led = leadership.acted.map_or(0, |(_, last)| last.saturating_sub(leadership.elected));
            let (end, gap) = match leadership.end.and_then(|_| gaps.next()) {
                Some((end, gap)) => (end.to_string(), format!("{:.0} ms", millis(gap))),
                None => (String::new(), String::new()),
            };
            println!(
                "{token:>20}  {:<14}{:>8.2} s{:>8.2} s{:>9}  {end:<9}{gap:>10}",
                leadership.leader,
                (leadership.elected - start) as f64 / 1e9,
                led as f64 / 1e9,
                leadership.writes,
            );
        }
        println!();
        for (end, count, median) in medians {
            println!("{end:<9}{count:>4} times, next leader after {:.0} ms (median)", millis(median));
        }
        println!("{writes} writes succeeded, the fence refused {}", self.fenced);
        println!(
            "{overlaps} times two led at the same time by their own clocks, {} stale writes succeeded",
            self.stale
        );
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
