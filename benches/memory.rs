//! The memory of a million keys that wait for their turn, without the text of the keys.
//!
//! `cargo bench -p writerlease-benches --bench memory`. It counts allocations and measures no time,
//! so it does not use criterion.

use std::sync::Arc;

use writerlease::{Outcome, WriterLease};

const KEYS: u64 = 1_000_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let keys: Vec<Arc<str>> = (0..KEYS).map(|i| format!("default/route-{i}").into()).collect();
        // The least that a job has to know: where to write.
        let store = Arc::new(());
        let lease = WriterLease::builder("bench").seed(1).fixed_patience().spawn().unwrap();
        for _ in 0..10 {
            lease.extend(&"elsewhere".into());
        }
        let counted = allocation_counter::measure(|| {
            for key in &keys {
                let store = store.clone();
                let work = move |_| {
                    let _store = store.clone();
                    async { Outcome::Written }
                };
                lease.try_work(key.clone(), work).unwrap();
            }
        });
        assert_eq!(lease.len() as u64, KEYS);
        let bytes = counted.bytes_current as f64 / KEYS as f64;
        println!("memory per deferred key, key text aside: {bytes:.1} B");
        assert!(bytes <= 100.0, "more than 100 B");
    });
}
