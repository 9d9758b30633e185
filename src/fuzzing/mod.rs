//! The fuzz targets of `fuzz/`. Each takes arbitrary bytes and panics if a property is violated.
//!
//! Compiled only for cargo-fuzz, which sets `cfg(fuzzing)`, and for the tests, which replay the
//! seeds.

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

    /// Runs a target on its seeds, which include every finding of the fuzzer.
    fn replay(target: &str, run: fn(&[u8])) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if root.join("Cargo.toml.orig").exists() {
            // The published package does not contain the seeds.
            return;
        }
        let seeds =
            fs::read_dir(root.join("fuzz/corpus").join(target)).expect("the folder of the seeds exists");
        let mut count = 0;
        for seed in seeds {
            let path = seed.expect("the folder is readable").path();
            // A fuzzer that runs here adds files of other names.
            if path.extension().is_none_or(|extension| extension != "seed") {
                continue;
            }
            // Shown if the test fails: the last seed is the cause.
            println!("{}", path.display());
            run(&fs::read(&path).expect("the seed is readable"));
            count += 1;
        }
        assert!(count >= 5, "{count} seeds");
    }

    #[test]
    fn the_engine_passes_all_seeds() {
        replay("engine", engine);
    }

    #[test]
    #[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
    fn foreign_values_are_read_without_a_panic() {
        replay("values", values);
    }

    #[test]
    #[cfg(all(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
    fn any_address_or_key_is_accepted_or_rejected() {
        replay("addresses", addresses);
    }
}
