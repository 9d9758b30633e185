//! Command lines of the examples: options, errors, exit codes and tables.

mod duration;

use std::{
    fmt::Display,
    hash::{BuildHasher, RandomState},
    process::ExitCode,
};

use clap::Parser;

pub use duration::duration;

/// Parses the command line, or returns the exit code if there is nothing to run.
pub fn read<O: Parser>() -> Result<O, ExitCode> {
    O::try_parse().map_err(|error| {
        if !error.use_stderr() {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        let text = error.to_string();
        // The first paragraph is the error. The usage follows and is left out.
        let reason = text.split("\n\n").next().unwrap_or_default();
        complain(reason.split_whitespace().collect::<Vec<_>>().join(" ").trim_start_matches("error: "))
    })
}

/// Prints the reason why the run cannot start, in one line. Returns exit code 2.
pub fn complain(reason: impl Display) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::from(2)
}

/// Prints the reason why the run failed. Returns exit code 1.
pub fn fail(reason: impl Display) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::FAILURE
}

/// Returns a random number, which distinguishes this run from others.
pub fn run_number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Prints a row of a table: its name, padded to `width`, and a column per report.
pub fn row<R>(width: usize, name: &str, reports: &[R], figure: impl Fn(&R) -> String) {
    let figures: String = reports.iter().map(|report| format!("{:>12}", figure(report))).collect();
    println!("{name:<width$}{figures}");
}
