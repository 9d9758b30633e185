//! What `fuzz/` runs, on any bytes: each function panics if something is not as it must be.
//!
//! Only there for cargo-fuzz, which sets `cfg(fuzzing)`, and for the tests, which replay the seeds.

#[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
mod adapters;
mod engine;

#[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
pub use adapters::{addresses, values};
pub use engine::engine;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Each finding of the fuzzer is among the seeds, too.
    fn replay(target: &str, run: fn(&[u8])) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if root.join("Cargo.toml.orig").exists() {
            // The published package comes without the seeds.
            return;
        }
        let seeds = fs::read_dir(root.join("fuzz/corpus").join(target)).expect("the seeds are there");
        let mut count = 0;
        for seed in seeds {
            let path = seed.expect("it can be listed").path();
            // The others are what a fuzzer has added here.
            if path.extension().is_none_or(|extension| extension != "seed") {
                continue;
            }
            // Whoever sees the test fail is told by which one.
            println!("{}", path.display());
            run(&fs::read(&path).expect("it can be read"));
            count += 1;
        }
        assert!(count >= 5, "{count} seeds");
    }

    #[test]
    fn the_engine_bears_the_seeds() {
        replay("engine", engine);
    }

    #[test]
    #[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
    fn whatever_others_wrote_is_read_without_a_panic() {
        replay("values", values);
    }

    #[test]
    #[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
    fn whatever_users_give_as_address_or_key_is_taken_or_refused() {
        replay("addresses", addresses);
    }
}
