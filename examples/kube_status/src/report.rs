//! The figures of a run.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::{Map, Value, json};
use writerlease::lab::Strategy;

use crate::{fleet::UpdateCounts, options::Options};

#[derive(Debug)]
pub struct Report {
    strategy: Strategy,
    needed: u64,
    succeeded: u64,
    refused: u64,
    failed: u64,
    /// The number of wrong statuses at the end.
    pub wrong: usize,
    /// The times from the first edit of a round to its last status.
    pub rounds: Vec<Duration>,
    /// The time from the leader's death to the last status of that round.
    pub failover: Option<Duration>,
    pub leaders: usize,
}

impl Report {
    pub fn new(strategy: Strategy, needed: u64) -> Self {
        Self {
            strategy,
            needed,
            succeeded: 0,
            refused: 0,
            failed: 0,
            wrong: 0,
            rounds: Vec::new(),
            failover: None,
            leaders: 0,
        }
    }

    pub fn set_counts(&mut self, counts: &UpdateCounts) {
        self.succeeded = counts.succeeded.load(Relaxed);
        self.refused = counts.refused.load(Relaxed);
        self.failed = counts.failed.load(Relaxed);
    }

    fn sent(&self) -> u64 {
        self.succeeded + self.refused + self.failed
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
    row("status writes needed", reports, |report| report.needed.to_string());
    row("sent", reports, |report| report.sent().to_string());
    row("refused as stale", reports, |report| report.refused.to_string());
    row("wrong at the end", reports, |report| report.wrong.to_string());
    row("round, median (ms)", reports, |report| ms(report.percentile(50)).to_string());
    row("round, longest (ms)", reports, |report| ms(report.percentile(100)).to_string());
    row("failover (ms)", reports, |report| report.failover.map_or("-".into(), |took| ms(took).to_string()));
    row("leaders at the end", reports, |report| report.leaders.to_string());
}

fn row(name: &str, reports: &[Report], figure: impl Fn(&Report) -> String) {
    writerlease_example_support::row(22, name, reports, figure);
}

fn figures(report: &Report) -> Value {
    json!({
        "writes_needed": report.needed,
        "writes_sent": report.sent(),
        "writes_succeeded": report.succeeded,
        "writes_refused": report.refused,
        "writes_failed": report.failed,
        "wrong_at_end": report.wrong,
        "round_p50_ms": ms(report.percentile(50)),
        "round_max_ms": ms(report.percentile(100)),
        "failover_ms": report.failover.map(ms),
        "leaders_at_end": report.leaders,
    })
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}
