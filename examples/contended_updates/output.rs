//! The output: progress on stderr, the figures on stdout.

use std::{io::IsTerminal, time::Duration};

use serde_json::{Map, Value, json};
use writerlease::lab::{Progress, Report, Strategy};

use crate::options::{Choice, Options};

/// A strategy and its figures.
pub type Column = (Choice, Report);

/// Progress: one line that changes on a terminal, a few plain lines elsewhere.
pub struct Output {
    choice: Choice,
    terminal: bool,
}

impl Output {
    pub fn of(choice: Choice) -> Self {
        Self { choice, terminal: std::io::stderr().is_terminal() }
    }

    pub fn show(&mut self, progress: Progress) {
        let Self { choice, terminal } = *self;
        let Progress { round, rounds, .. } = progress;
        let done = round - 1;
        if terminal {
            let filled = done * BAR / rounds;
            eprint!("\r{choice} [{:#<filled$}{:<2$}] round {done} of {rounds}", "", "", BAR - filled);
        } else if done * 10 / rounds > done.saturating_sub(1) * 10 / rounds {
            // Prints ten lines per run.
            eprintln!("{choice}: {done} of {rounds} rounds");
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

pub fn print(options: &Options, columns: &[Column]) {
    if options.json {
        let members: Map<String, Value> =
            columns.iter().map(|(choice, report)| (choice.to_string(), figures(report))).collect();
        println!("{}", Value::Object(members));
        return;
    }
    let Options { backend, replicas, keys, rounds, .. } = options;
    println!("{replicas} replicas, {keys} keys, {rounds} rounds, {backend}\n");
    writerlease_example_support::row(WIDTH, "", columns, |(choice, _)| choice.to_string());
    let row = |name: &str, figure: &dyn Fn(&Report) -> String| {
        writerlease_example_support::row(WIDTH, name, columns, |(_, report)| figure(report));
    };
    row("shards", &|report| shards(report).map_or("-".into(), |shards| shards.to_string()));
    row("writes needed", &|report| report.writes_needed.to_string());
    row("writes attempted", &|report| report.writes_attempted.to_string());
    row("writes refused", &|report| report.writes_refused.to_string());
    row("updates lost", &|report| report.updates_lost.to_string());
    for replica in (0..*replicas).filter(|_| *replicas <= MOST_ROWS) {
        row(&format!("keys written by {replica}"), &|report| report.written_by_each()[replica].to_string());
    }
    row("busiest / mean", &|report| format!("{:.2}", report.busiest_over_mean()));
    row("keys that moved", &|report| report.moved.to_string());
    row("round, median (ms)", &|report| format!("{:.1}", ms(report.round_p50())));
    row("round, 99 % (ms)", &|report| format!("{:.1}", ms(report.round_p99())));
    row("leader changes", &|report| report.leader_changes.to_string());
    row("failover (ms)", &|report| report.failover.map_or("-".into(), |took| format!("{:.1}", ms(took))));
    row("leaders at the end", &|report| report.leaders_at_end.to_string());
}

/// Returns the number of shards; `None` without a lease.
fn shards(report: &Report) -> Option<u16> {
    (report.strategy == Strategy::Lease).then_some(report.shards)
}

fn figures(report: &Report) -> Value {
    json!({
        "replicas": report.replicas,
        "shards": shards(report),
        "keys": report.keys,
        "rounds": report.rounds.len(),
        "writes_needed": report.writes_needed,
        "writes_attempted": report.writes_attempted,
        "writes_refused": report.writes_refused,
        "updates_lost": report.updates_lost,
        "written": report.written_by_each(),
        "busiest_over_mean": (report.busiest_over_mean() * 1000.0).round() / 1000.0,
        "moved": report.moved,
        "round_p50_ms": ms(report.round_p50()),
        "round_p99_ms": ms(report.round_p99()),
        "rounds_ms": report.rounds.iter().copied().map(ms).collect::<Vec<_>>(),
        "leader_changes": report.leader_changes,
        "failover_ms": report.failover.map(ms),
        "leaders_at_end": report.leaders_at_end,
    })
}

/// Converts to milliseconds with a precision of 1 µs.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// The width of the first column.
const WIDTH: usize = 22;
/// The most replicas that have a row of their own.
const MOST_ROWS: usize = 10;
/// The characters of a full bar.
const BAR: usize = 40;
/// Erases from the cursor to the end of the line (ECMA-48, EL).
const ERASE_LINE: &str = "\x1b[K";
