//! What the kernel says about a process.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Processor time that a process has used, user and system.
///
/// # Errors
/// Where the process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name stands in parentheses and may hold anything: count from behind it.
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux that matters.
    Ok(Duration::from_millis(ticks * 10))
}

/// Memory from a process's status, in bytes: `VmRSS`, `RssAnon`, `VmHWM`.
///
/// # Errors
/// Where the process is gone.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("no {field} in status"))?;
    let kib = line.split_whitespace().next().context("no number")?;
    Ok(kib.parse::<u64>()? * 1024)
}
