//! The output: progress on stderr, the figures on stdout.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use writerlease::lab::{Progress, Report, Strategy};

use crate::options::Options;

/// The progress display: a bar on a terminal, ten plain lines elsewhere.
pub struct Output {
    strategy: Strategy,
    bar: Option<ProgressBar>,
}

impl Output {
    pub fn of(strategy: Strategy) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:40} round {pos} of {len}, {elapsed}");
            let style = style.expect("the template is well-formed");
            ProgressBar::no_length().with_style(style).with_prefix(strategy.to_string())
        });
        Self { strategy, bar }
    }

    pub fn show(&mut self, progress: Progress) {
        let Progress { round, rounds, .. } = progress;
        let done = round - 1;
        match &self.bar {
            Some(bar) => {
                bar.set_length(rounds as u64);
                bar.set_position(done as u64);
            }
            // A line per tenth of the rounds keeps logs short.
            None if done * 10 / rounds > done.saturating_sub(1) * 10 / rounds => {
                eprintln!("{}: {done} of {rounds} rounds", self.strategy);
            }
            None => {}
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

pub fn print(options: &Options, reports: &[Report]) {
    if options.json {
        let members: Map<String, Value> =
            reports.iter().map(|report| (report.strategy.to_string(), figures(report))).collect();
        println!("{}", Value::Object(members));
        return;
    }
    let Options { backend, replicas, keys, rounds, .. } = options;
    println!("{replicas} replicas, {keys} keys, {rounds} rounds, {backend}\n");
    row("", reports, |report| report.strategy.to_string());
    row("writes needed", reports, |report| report.writes_needed.to_string());
    row("writes attempted", reports, |report| report.writes_attempted.to_string());
    row("writes refused", reports, |report| report.writes_refused.to_string());
    row("updates lost", reports, |report| report.updates_lost.to_string());
    row("round, median (ms)", reports, |report| format!("{:.1}", ms(report.round_p50())));
    row("round, 99 % (ms)", reports, |report| format!("{:.1}", ms(report.round_p99())));
    row("leader changes", reports, |report| report.leader_changes.to_string());
    row("failover (ms)", reports, |report| {
        report.failover.map_or("-".into(), |took| format!("{:.1}", ms(took)))
    });
    row("leaders at the end", reports, |report| report.leaders_at_end.to_string());
}

fn row(name: &str, reports: &[Report], figure: impl Fn(&Report) -> String) {
    let figures: String = reports.iter().map(|report| format!("{:>12}", figure(report))).collect();
    println!("{name:<20}{figures}");
}

fn figures(report: &Report) -> Value {
    json!({
        "replicas": report.replicas,
        "keys": report.keys,
        "rounds": report.rounds.len(),
        "writes_needed": report.writes_needed,
        "writes_attempted": report.writes_attempted,
        "writes_refused": report.writes_refused,
        "updates_lost": report.updates_lost,
        "round_p50_ms": ms(report.round_p50()),
        "round_p99_ms": ms(report.round_p99()),
        "leader_changes": report.leader_changes,
        "failover_ms": report.failover.map(ms),
        "leaders_at_end": report.leaders_at_end,
    })
}

/// Converts to milliseconds with a precision of 1 µs.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
