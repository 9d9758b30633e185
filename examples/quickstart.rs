//! Two replicas want the same object to have the same value. One of them writes it.
//!
//! ```sh
//! cargo run --example quickstart
//! ```

use writerlease::{EnsureOutcome, Guard, WriterLease, store::MemoryStore};

/// Starts a replica: a lease, and a guard that writes with it.
fn replica(name: &str, store: &MemoryStore) -> Result<Guard<MemoryStore>, Box<dyn std::error::Error>> {
    let lease = WriterLease::builder(name).spawn()?;
    Ok(Guard::new(store.clone(), lease, "status/")?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Replicas of a real service are processes, and the store is a server that all of them reach.
    let store = MemoryStore::new();
    let replicas = [replica("first", &store)?, replica("second", &store)?];

    // Both say what the object must look like: nothing to do if it is admitted, otherwise this
    // value.
    let admit = |current: Option<&[u8]>| (current != Some(b"admitted")).then_some("admitted");
    let [first, second] = replicas.each_ref().map(|guard| guard.ensure("my-route", admit));

    // The guards decide who writes. Both handles resolve, whoever it was.
    let mut writers = 0;
    for (name, ending) in [("first", first.await), ("second", second.await)] {
        match ending {
            EnsureOutcome::Written(version) => {
                writers += 1;
                println!("{name}: wrote it as {version:?}");
            }
            EnsureOutcome::ByOther => println!("{name}: the other replica wrote it"),
            EnsureOutcome::Satisfied => println!("{name}: it was right already"),
            other => println!("{name}: {other:?}"),
        }
    }
    assert_eq!(writers, 1);
    Ok(())
}
