//! The pages in `docs` name things that exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A row of a table: the call of the Go package, its counterpart here, and the test that shows it.
struct Row<'a> {
    theirs: &'a str,
    ours: &'a str,
    test: &'a str,
}

/// The rows of each table of `docs/migrating.md`, headings aside.
fn tables(page: &str) -> Vec<Vec<Row<'_>>> {
    let mut tables = Vec::new();
    for section in page.split("\n## ").skip(1) {
        let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
        let row = |line| match cells(line)[..] {
            [theirs, ours, test] => Row { theirs, ours, test: test.trim_matches('`') },
            _ => panic!("not three cells: {line}"),
        };
        tables.push(lines.map(row).collect());
    }
    tables
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// Collects the Rust files under a folder, however deep.
fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            // Hidden folders and builds hold no sources.
            if name != "target" && !name.starts_with('.') {
                rust_files(&path, files);
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

#[test]
fn migrating_lists_every_call_with_its_test() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package is in tests/servers");
    let page = fs::read_to_string(root.join("docs/migrating.md")).expect("the page");
    let mut files = Vec::new();
    rust_files(root, &mut files);
    let sources: Vec<_> = files.iter().map(|file| fs::read_to_string(file).expect("a source")).collect();
    let is_defined = |name: &str| {
        let definition = format!("fn {name}");
        // A test of every server is a generic function.
        let ends = |rest: &str| rest.starts_with(['(', '<']);
        let is_function = |source: &String| source.split(&definition).skip(1).any(ends);
        // A case of a conformance suite is a sentence.
        let case = format!("case(\"{}\",", name.replace('_', " "));
        sources.iter().any(|source| is_function(source) || source.contains(&case))
    };
    let tables = tables(&page);
    for Row { theirs, ours, test } in tables.iter().flatten() {
        assert!(theirs.contains("](https://pkg.go.dev/"), "no link: {theirs}");
        assert!(!ours.is_empty(), "no counterpart: {theirs}");
        assert!(is_defined(test), "no such test: {test}");
    }
    let rows: Vec<_> = tables.iter().map(Vec::len).collect();
    // writerlease, tiflow, coordinate, dcos-go, ethpandaops.
    assert_eq!(rows, [24, 16, 18, 12, 8]);
}
