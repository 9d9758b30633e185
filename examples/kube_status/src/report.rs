//! The figures of a run.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use writerlease::lab::Strategy;
use writerlease_kube_status::replica::Settings;

use crate::{
    counts::{Counts, Event},
    options::Options,
};

#[derive(Debug)]
pub struct Report {
    strategy: Strategy,
    /// The number of shards; `None` without a lease.
    shards: Option<u16>,
    needed: u64,
    /// What each replica did, by number.
    pub counts: Vec<Arc<Counts>>,
    /// The number of wrong statuses at the end.
    pub wrong: usize,
    /// The times from the first edit of a round to its last status.
    pub rounds: Vec<Duration>,
    /// The time from the leader's death to the last status of that round.
    pub failover: Option<Duration>,
    /// The time from a replica's shutdown to the last status of that round; the longest.
    pub departure: Option<Duration>,
    pub leaders: usize,
}

impl Report {
    pub fn new(settings: &Settings, needed: u64) -> Self {
        Self {
            strategy: settings.strategy,
            shards: (settings.strategy == Strategy::Lease).then_some(settings.shards),
            needed,
            counts: Vec::new(),
            wrong: 0,
            rounds: Vec::new(),
            failover: None,
            departure: None,
            leaders: 0,
        }
    }

    /// Returns how many events of this kind each replica had.
    fn by_each(&self, event: Event) -> Vec<u64> {
        self.counts.iter().map(|counts| counts.of(event)).collect()
    }

    fn all(&self, event: Event) -> u64 {
        self.by_each(event).iter().sum()
    }

    fn sent(&self) -> u64 {
        self.all(Event::Succeeded) + self.all(Event::Refused) + self.all(Event::Failed)
    }

    /// Returns the number of statuses that the busiest replica wrote, divided by the mean of all.
    fn busiest_over_mean(&self) -> f64 {
        let written = self.by_each(Event::Succeeded);
        let (all, most) = (written.iter().sum::<u64>(), written.iter().max().copied().unwrap_or(0));
        most as f64 * written.len() as f64 / all.max(1) as f64
    }

    /// Returns the time that this percentage of the rounds did not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.rounds.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * percent / 100).copied().unwrap_or_default()
    }
}

pub fn print(options: &Options, reports: &[Report]) {
    if options.json {
        let members: Map<String, Value> =
            reports.iter().map(|report| (report.strategy.to_string(), figures(report))).collect();
        println!("{}", Value::Object(members));
        return;
    }
    let Options { replicas, objects, rounds, .. } = options;
    println!("{replicas} replicas, {objects} objects, {rounds} rounds\n");
    row("", reports, |report| report.strategy.to_string());
    row("shards", reports, |report| report.shards.map_or("-".into(), |shards| shards.to_string()));
    row("status writes needed", reports, |report| report.needed.to_string());
    row("sent", reports, |report| report.sent().to_string());
    row("refused as stale", reports, |report| report.all(Event::Refused).to_string());
    row("wrong at the end", reports, |report| report.wrong.to_string());
    for number in (0..usize::from(*replicas)).filter(|_| *replicas <= MOST_ROWS) {
        let name = format!("written by {number}");
        row(&name, reports, |report| report.counts[number].of(Event::Succeeded).to_string());
    }
    row("busiest / mean", reports, |report| format!("{:.2}", report.busiest_over_mean()));
    row("inspections", reports, |report| report.all(Event::Inspected).to_string());
    row("round, median (ms)", reports, |report| ms(report.percentile(50)).to_string());
    row("round, longest (ms)", reports, |report| ms(report.percentile(100)).to_string());
    let optional = |took: Option<Duration>| took.map_or("-".into(), |took| ms(took).to_string());
    row("failover (ms)", reports, |report| optional(report.failover));
    row("departure (ms)", reports, |report| optional(report.departure));
    row("leaders at the end", reports, |report| report.leaders.to_string());
}

fn row(name: &str, reports: &[Report], figure: impl Fn(&Report) -> String) {
    writerlease_example_support::row(22, name, reports, figure);
}

fn figures(report: &Report) -> Value {
    json!({
        "shards": report.shards,
        "writes_needed": report.needed,
        "writes_sent": report.sent(),
        "writes_succeeded": report.all(Event::Succeeded),
        "writes_refused": report.all(Event::Refused),
        "writes_failed": report.all(Event::Failed),
        "wrong_at_end": report.wrong,
        "written": report.by_each(Event::Succeeded),
        "busiest_over_mean": (report.busiest_over_mean() * 1000.0).round() / 1000.0,
        "inspections": report.all(Event::Inspected),
        "round_p50_ms": ms(report.percentile(50)),
        "round_max_ms": ms(report.percentile(100)),
        "rounds_ms": report.rounds.iter().copied().map(ms).collect::<Vec<_>>(),
        "failover_ms": report.failover.map(ms),
        "departure_ms": report.departure.map(ms),
        "leaders_at_end": report.leaders,
    })
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// The most replicas that have a row of their own.
const MOST_ROWS: u16 = 10;
