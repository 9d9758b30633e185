//! Who led when, and what must not have been.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use crate::options::{End, Options};

/// The time since some moment in the past, the same for all processes: a clock that nobody sets.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[derive(Debug, Default)]
pub struct Reigns {
    /// By token.
    pub reigns: BTreeMap<u64, Reign>,
    /// Writes that a fence refused.
    pub fenced: u64,
    /// Writes that landed after one with a greater token.
    pub stale: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Reign {
    pub leader: String,
    pub elected: u64,
    /// The first and the last time that the leader believed in itself.
    pub acted: Option<(u64, u64)>,
    pub writes: u64,
    /// How it was ended, and when.
    pub end: Option<(End, u64)>,
}

impl Reigns {
    /// Pairs of leaders of which the earlier still believed in itself when the later already did.
    pub fn overlaps(&self) -> usize {
        let acted: Vec<_> = self.reigns.values().filter_map(|reign| reign.acted).collect();
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

    /// How long it took from the end of a reign to the next election.
    fn gaps(&self) -> Vec<(End, Duration)> {
        let next = self.reigns.values().skip(1);
        let pairs = self.reigns.values().zip(next);
        pairs
            .filter_map(|(reign, next)| {
                let (end, at) = reign.end?;
                Some((end, Duration::from_nanos(next.elected.saturating_sub(at))))
            })
            .collect()
    }

    /// How often reigns ended in each way, and the median of what followed.
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
        let writes: u64 = self.reigns.values().map(|reign| reign.writes).sum();
        if options.json {
            let takeovers = medians.iter().map(|(end, count, median)| {
                (end.to_string(), json!({ "count": count, "median_ms": millis(*median) }))
            });
            let takeovers: serde_json::Map<_, _> = takeovers.collect();
            let figures = json!({
                "reigns": self.reigns.len(), "takeovers": takeovers, "writes": writes, "fenced_writes": self.fenced,
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
        let start = self.reigns.values().next().map_or(0, |reign| reign.elected);
        let mut gaps = self.gaps().into_iter();
        for (token, reign) in &self.reigns {
            let led = reign.acted.map_or(0, |(_, last)| last.saturating_sub(reign.elected));
            let (end, gap) = match reign.end.and_then(|_| gaps.next()) {
                Some((end, gap)) => (end.to_string(), format!("{:.0} ms", millis(gap))),
                None => (String::new(), String::new()),
            };
            println!(
                "{token:>20}  {:<14}{:>8.2} s{:>8.2} s{:>9}  {end:<9}{gap:>10}",
                reign.leader,
                (reign.elected - start) as f64 / 1e9,
                led as f64 / 1e9,
                reign.writes,
            );
        }
        println!();
        for (end, count, median) in medians {
            println!("{end:<9}{count:>4} times, next leader after {:.0} ms (median)", millis(median));
        }
        println!("{writes} writes landed, {} were refused by their fence", self.fenced);
        println!("{overlaps} times two led at once by their own clocks, {} stale writes landed", self.stale);
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
