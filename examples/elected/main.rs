//! Candidates that are processes, and a leader whose writes a store refuses when it is none any more.
//!
//! ```sh
//! cargo run --release --example elected --features etcd -- --backend etcd://localhost:2379
//! cargo run --release --example elected --features etcd -- --backend etcd+key://localhost:2379
//! cargo run --release --example elected --features redis -- --backend redis://localhost:6379 --pause
//! cargo run --release --example elected --features zookeeper -- --backend zookeeper://localhost:2181 --kill --takeovers 20
//! ```
//!
//! Again and again the leader resigns, is killed (SIGKILL) or paused (SIGSTOP, and SIGCONT when another leads); `--resign`,
//! `--kill` and `--pause` choose. The table tells who led when. Exit code 0: no two led at a time by their own clocks, and no
//! write of one that was leader landed after one of its successor. 1: that was not so, or the run failed. 2: it could not
//! begin.

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod candidate;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod contest;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod options;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod program;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod reigns;

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
use program::main;

/// Without a server there is nothing to run it on.
#[cfg(not(any(feature = "etcd", feature = "redis", feature = "zookeeper")))]
fn main() -> std::process::ExitCode {
    writerlease_example_support::complain(
        "built without a server: run it with `cargo run --example elected --features etcd`, or `redis`, or `zookeeper`",
    )
}
