//! The examples, as programs.

use std::{env, path::PathBuf, process::Command};

/// An example, built as this test was. (Cargo tells tests where binaries are, but not where examples are.)
pub fn built(name: &str) -> PathBuf {
    // target/<profile>/deps/<this>
    let this = env::current_exe().expect("a test has a path");
    let profile = this.ancestors().nth(2).expect("it is in deps");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", name, "--target-dir"]);
    cargo.arg(profile.parent().expect("the profile is in the target directory"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    for (feature, enabled) in [
        ("etcd", cfg!(feature = "etcd")),
        ("kube", cfg!(feature = "kube")),
        ("redis", cfg!(feature = "redis")),
        ("zookeeper", cfg!(feature = "zookeeper")),
    ] {
        if enabled {
            cargo.args(["--features", feature]);
        }
    }
    // What this test was told of its package is news to a build script that asks for such variables (ring's does), and all
    // that needs it would be built again, each time.
    for (name, _) in env::vars_os() {
        let told = name.to_str().unwrap_or_default();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().expect("cargo runs").success());
    profile.join("examples").join(name)
}
