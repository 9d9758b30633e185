//! The eleven rules behind the table: a file for each, with every number that the rule names.

mod r01_probe;
mod r02_setbacks;
mod r03_evidence;
mod r04_losses;
mod r05_delays;
mod r06_incumbents;
mod r06_patience;
mod r07_timer;
mod r08_keys;
mod r09_lease;
mod r10_backoff;
mod r11_shards;

use super::*;
