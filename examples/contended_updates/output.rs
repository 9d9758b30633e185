//! The output: progress on stderr, the figures on stdout.

use std::{io::IsTerminal, time::Duration};

use serde_json::{Map, Value, json};
use writerlease::lab::{Progress, Report, Strategy};

use crate::options::Options;

/// Progress: one line that changes on a terminal, a few plain lines elsewhere.
pub struct Output {
    strategy: Strategy,
    terminal: bool,
}

impl Output {
    pub fn of(strategy: Strategy) -> Self {
        Self { strategy, terminal: std::io::stderr().is_terminal() }
    }

    pub fn show(&mut self, progress: Progress) {
        let Self { strategy, terminal } = *self;
        let Progress { round, rounds, .. } = progress;
        let done = round - 1;
        if terminal {
            let filled = done * BAR / rounds;
            eprint!("\r{strategy} [{:#<filled$}{:<2$}] round {done} of {rounds}", "", "", BAR - filled);
        } else if done * 10 / rounds > done.saturating_sub(1) * 10 / rounds {
            // Prints ten lines per run.
            eprintln!("{strategy}: {done} of {rounds} rounds");
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.terminal {
            // The bar is removed when the run ends.
            eprint!("\r{ERASE_LINE}");
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
    writerlease_example_support::row(20, name, reports, figure);
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

/// The characters of a full bar.
const BAR: usize = 40;
/// Erases from the cursor to the end of the line (ECMA-48, EL).
const ERASE_LINE: &str = "\x1b[K";
