//! The example programs, built for tests.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds an example of the crate in the profile of this test, with all features. Returns its path.
pub fn example(name: &str) -> PathBuf {
    // With the whole workspace selected, as for the tests in scripts/test, dependencies have the
    // same features and are not built twice.
    build(&["--workspace", "--all-features", "--example", name]).join("examples").join(name)
}

/// Builds the program `kube_status` in the profile of this test. Returns its path.
pub fn kube_status() -> PathBuf {
    let name = "kube_status";
    // The packages that scripts/test selects, for the same reason.
    build(&["-p", "writerlease-kube-tests", "-p", "writerlease-kube-status", "--bin", name]).join(name)
}

/// Builds a target. Returns the folder of the profile, because cargo gives the paths of programs
/// only to tests of the same package, and those of examples to no test.
fn build(arguments: &[&str]) -> PathBuf {
    // target/<profile>/deps/<this>
    let this = env::current_exe().expect("a test has a path");
    let profile = this.ancestors().nth(2).expect("it is in deps");
    let mut cargo = Command::new(env!("CARGO"));
    // The test may run in any directory. Cargo's settings are in that of the workspace.
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    cargo.args(["build", "--quiet"]).args(arguments).arg("--target-dir");
    cargo.arg(profile.parent().expect("the profile is in the target directory"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // A build script that reads such variables (ring's does) would see new values and run again,
    // and all its dependents would be built again.
    for (name, _) in env::vars_os() {
        let name_text = name.to_str().unwrap_or_default();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().expect("cargo runs").success());
    profile.to_path_buf()
}
