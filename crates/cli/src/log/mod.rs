//! `quipu log`: a broker's files, looked at without a broker.

mod dump;
mod segment;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct LogCommands {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Print the batches of a segment file (topics/…/….log)
    Dump {
        file: PathBuf,
        /// Print their records too
        #[arg(long)]
        records: bool,
    },
    /// Check the segments of a data directory that no broker has open: every batch's checksum, and that offsets have no gap
    Verify { dir: PathBuf },
}

pub(crate) fn run(args: LogCommands) -> Result<()> {
    match args.command {
        LogCommand::Dump { file, records } => dump::run(&file, records),
        LogCommand::Verify { dir } => verify::run(&dir),
    }
}
