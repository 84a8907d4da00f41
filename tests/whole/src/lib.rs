//! Runs the real `quipu` binary for the whole-system tests.
#![allow(
    clippy::disallowed_methods,
    reason = "tests look at the real machine from outside"
)]

mod broker;
mod cluster;

pub use broker::{Broker, Launch};
pub use cluster::Cluster;

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

/// The checkout's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The `quipu` binary: the one that `QUIPU` names, or a debug build made once per test process.
pub fn quipu() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("QUIPU") {
        Some(path) => path.into(),
        None => build().expect("the tests need the binary"),
    })
}

fn build() -> Result<PathBuf> {
    let output = cargo()
        .args(["build", "-p", "quipu", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "building quipu failed");
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no executable")
}

/// The cargo that runs the tests, at the checkout's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Errors
/// Where it can't be started. Its own failure is in the output.
pub fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input was piped")?;
    let input = input.to_vec();
    // A process that ends without reading all of it is for the test to judge.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    writer.join().expect("writing does not panic");
    Ok(output)
}

/// A scratch directory on the disk that the build is on: `/tmp` may be memory.
///
/// # Errors
/// Where it can't be created.
pub fn scratch() -> Result<tempfile::TempDir> {
    let base = quipu().parent().context("the binary is in a directory")?;
    Ok(tempfile::tempdir_in(base)?)
}
