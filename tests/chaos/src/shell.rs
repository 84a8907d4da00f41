//! Runs the system's own tools.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Runs a command (words separated by blanks) that must succeed, and gives what it printed.
///
/// # Errors
/// Where it can't be started, or fails: with what it said.
pub(crate) fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program is installed.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// A path as a word of a command.
///
/// # Errors
/// Where it has blanks.
pub(crate) fn word(path: &Path) -> Result<&str> {
    let word = path.to_str().context("a path that is not text")?;
    ensure!(!word.contains(char::is_whitespace), "{word:?} has blanks");
    Ok(word)
}
