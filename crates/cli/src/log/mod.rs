//! `quipu log`: a broker's files, looked at without a broker.

mod dump;
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
    /// Print what a file holds: a segment (topics/…/….log), its .index, .seal or .producers, a wal/….wal, or raft-state
    Dump {
        file: PathBuf,
        /// Print the records of a segment's batches too
        #[arg(long)]
        records: bool,
    },
    /// Check every file of a data directory that no broker has open: checksums, and that offsets have no gap
    Verify { dir: PathBuf },
}

pub(crate) fn run(args: LogCommands) -> Result<()> {
    match args.command {
        LogCommand::Dump { file, records } => dump::run(&file, records),
        LogCommand::Verify { dir } => verify::run(&dir),
    }
}
