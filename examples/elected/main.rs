//! An election between processes, and a store that refuses the writes of former leaders.
//!
//! ```sh
//! cargo run --release --example elected --features etcd -- --backend etcd://localhost:2379
//! cargo run --release --example elected --features etcd -- --backend etcd+key://localhost:2379
//! cargo run --release --example elected --features redis -- --backend redis://localhost:6379 --pause
//! cargo run --release --example elected --features zookeeper -- --backend zookeeper://localhost:2181 --kill --takeovers 20
//! ```
//!
//! At each takeover the leader resigns, is killed (SIGKILL) or is paused (SIGSTOP, then SIGCONT
//! once another candidate leads); `--resign`, `--kill` and `--pause` select among these. The table
//! shows each leadership. Exit code 0: by their own clocks, at most one candidate led at any time,
//! and no write of a former leader succeeded after one of its successor. 1: this was violated, or
//! the run failed. 2: the run could not start.

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod candidate;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod contest;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod leaderships;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod options;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod program;

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
use program::main;

/// Explains that the example needs the feature of a server.
#[cfg(not(any(feature = "etcd", feature = "redis", feature = "zookeeper")))]
fn main() -> std::process::ExitCode {
    writerlease_example_support::complain(
        "built without a server; run `cargo run --example elected --features etcd` (or `redis`, or `zookeeper`)",
    )
}
