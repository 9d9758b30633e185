//! The command lines of the examples: options, errors, exit codes and a table.

mod duration;

use std::{
    fmt::Display,
    hash::{BuildHasher, RandomState},
    process::ExitCode,
};

use clap::Parser;

pub use duration::duration;

/// Reads the command line. If there is nothing to run, returns how to exit.
pub fn read<O: Parser>() -> Result<O, ExitCode> {
    O::try_parse().map_err(|error| {
        if !error.use_stderr() {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        let text = error.to_string();
        // The usage comes in a paragraph of its own, and is left out.
        let reason = text.split("\n\n").next().unwrap_or_default();
        complain(reason.split_whitespace().collect::<Vec<_>>().join(" ").trim_start_matches("error: "))
    })
}

/// Prints why the run cannot begin, in one line. Returns exit code 2.
pub fn complain(reason: impl Display) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::from(2)
}

/// Prints why the run failed. Returns exit code 1.
pub fn fail(reason: impl Display) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::FAILURE
}

/// A number that no other run has.
pub fn run_number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Prints a row of a table: its name, which takes `width`, and a column for each report.
pub fn row<R>(width: usize, name: &str, reports: &[R], figure: impl Fn(&R) -> String) {
    let figures: String = reports.iter().map(|report| format!("{:>12}", figure(report))).collect();
    println!("{name:<width$}{figures}");
}
