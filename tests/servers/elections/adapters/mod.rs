//! The features of each elector beyond the common promises, row by row those of the package that it
//! replaces.

mod etcd;
mod etcd_evict;
mod etcd_voter;
mod redis;
mod zookeeper;

/// The tables in the documentation say which test shows a row.
#[test]
fn each_row_of_the_tables_is_shown_by_a_test_that_exists() {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().nth(2).expect("it is in tests/servers");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("it is there");
    let mut tests = String::new();
    for folder in ["elections", "elections/adapters", "elections/interop"] {
        for file in std::fs::read_dir(package.join(folder)).expect("it is there") {
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
