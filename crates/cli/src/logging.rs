//! What the program says about itself while it runs, on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug, trace or off; also by part, such as `info,quipu_storage=debug`
    #[arg(
        id = "log_filter",
        long = "log",
        env = "QUIPU_LOG",
        global = true,
        value_name = "LEVEL",
        hide_env_values = true
    )]
    filter: Option<String>,
    /// How log lines look
    #[arg(
        id = "log_format",
        long = "log-format",
        env = "QUIPU_LOG_FORMAT",
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        hide_env_values = true
    )]
    format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(crate) fn init(args: &LogArgs, default: &str) -> Result<()> {
    let filter = args.filter.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter:?} is not a level, nor a list of part=level"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    match args.format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
