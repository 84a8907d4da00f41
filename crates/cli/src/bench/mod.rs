//! `quipu bench`: load, and what came of it.

mod consume;
mod produce;
mod report;
mod worker;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Write records as fast as they are acknowledged, or at a fixed rate
    Produce(produce::BenchProduceArgs),
    /// Read all that a topic holds
    Consume(consume::BenchConsumeArgs),
    /// Work through all that a topic holds, with a handler that does nothing
    Worker(worker::BenchWorkerArgs),
}

pub(crate) async fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Produce(args) => produce::run(args).await,
        BenchCommand::Consume(args) => consume::run(args).await,
        BenchCommand::Worker(args) => worker::run(args).await,
    }
}
