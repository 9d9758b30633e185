//! What each elector offers besides what all promise: line by line what the package that it replaces does.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod common;
#[path = "elections/engines.rs"]
mod engines;
#[path = "elections/states.rs"]
mod states;

#[path = "elections/etcd.rs"]
mod etcd;
#[path = "elections/etcd_evict.rs"]
mod etcd_evict;
#[path = "elections/etcd_voter.rs"]
mod etcd_voter;
#[path = "elections/redis.rs"]
mod redis;
#[path = "elections/zookeeper.rs"]
mod zookeeper;

/// The tables in the documentation say which test shows a row.
#[test]
fn each_row_of_the_tables_is_shown_by_a_test_that_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("it is there");
    let mut tests = String::new();
    for folder in ["tests", "tests/elections"] {
        for file in std::fs::read_dir(root.join(folder)).expect("it is there") {
            let path = file.expect("it can be listed").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests += &read(&path);
            }
        }
    }
    let mut rows = 0;
    for file in ["etcd/mod.rs", "etcd/voter.rs", "zookeeper.rs", "redis.rs"] {
        let source = read(&root.join("src/election").join(file));
        for row in source.lines().filter(|line| line.starts_with("/// | [`")) {
            let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
            let [_, theirs, ours, test] = cells[..] else { panic!("{row}") };
            assert!(theirs.contains("](https://pkg.go.dev/"), "{row}");
            assert!(!ours.is_empty(), "{row}");
            assert!(
                tests.contains(&format!("fn {}(", test.trim_matches('`')))
                    || tests.contains(&format!("fn {}<", test.trim_matches('`'))),
                "{row}"
            );
            rows += 1;
        }
    }
    assert_eq!(rows, 45, "rows of the four packages");
}
