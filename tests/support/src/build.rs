//! The examples, as programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds an example of the crate, as this test was built and with all features. Returns its path.
pub fn example(name: &str) -> PathBuf {
    // With the whole workspace chosen, as scripts/test does for the tests, dependencies get the same features and are built
    // once.
    build(&["--workspace", "--all-features", "--example", name]).join("examples").join(name)
}

/// Builds the program `kube_status` as this test was built. Returns its path.
pub fn kube_status() -> PathBuf {
    let name = "kube_status";
    // Likewise.
    build(&["-p", "writerlease-kube-tests", "-p", "writerlease-kube-status", "--bin", name]).join(name)
}

/// Returns the folder of the profile. (Cargo says where programs are only to tests of the same package, and of examples to
/// none.)
fn build(arguments: &[&str]) -> PathBuf {
    // target/<profile>/deps/<this>
    let this = env::current_exe().expect("a test has a path");
    let profile = this.ancestors().nth(2).expect("it is in deps");
    let mut cargo = Command::new(env!("CARGO"));
    // The test may run in any directory, and builds in that of the workspace, where cargo's settings are.
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    cargo.args(["build", "--quiet"]).args(arguments).arg("--target-dir");
    cargo.arg(profile.parent().expect("the profile is in the target directory"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // To a build script that asks for such variables (ring's does) those of this test would be new. It would run again each
    // time, and all that needs it would be built again.
    for (name, _) in env::vars_os() {
        let name_text = name.to_str().unwrap_or_default();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().expect("cargo runs").success());
    profile.to_path_buf()
}
