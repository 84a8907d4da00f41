//! `quipu`: the broker, the command line and the load tester in one binary.
#![forbid(unsafe_code)]

mod bench;
mod cluster;
mod connect;
mod consume;
mod demo;
mod dlq;
mod format;
mod group;
mod log;
mod logging;
mod node;
mod produce;
mod quota;
mod settings;
mod table;
mod topic;
mod values;

use std::{io, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand, error::ErrorKind};

use self::logging::LogArgs;

/// It keeps the memory of large buffers for the next ones. The system's gives it back each time, and then every message is
/// received into pages that the kernel must clear first: a fifth of a broker's processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A distributed, partitioned, append-only log.
#[derive(Debug, Parser)]
#[command(name = "quipu", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node with everything on, for trying things out: data goes to ./quipu-data
    Dev(node::DevArgs),
    /// Watch a cluster of three nodes lose its leader and nothing else: takes a few seconds, leaves nothing behind
    Demo(demo::DemoArgs),
    /// Run a node
    Server(node::ServerArgs),
    /// Create, look at, change and delete topics
    Topic(topic::TopicArgs),
    /// Look at consumer groups, and at how far behind they are; change how far they have read
    Group(group::GroupArgs),
    /// Look at records that no attempt came to an end with, and send them back
    Dlq(dlq::DlqArgs),
    /// Look at the cluster, move partitions between nodes, take nodes out
    Cluster(cluster::ClusterArgs),
    /// Bound how many bytes a second clients may send and be sent
    Quota(quota::QuotaArgs),
    /// Write lines from standard input to a topic, one record a line
    Produce(produce::ProduceArgs),
    /// Read records and print them
    Consume(consume::ConsumeArgs),
    /// Measure what a broker does under load
    Bench(bench::BenchArgs),
    /// Look into a broker's files, without a broker
    Log(log::LogCommands),
}

impl Command {
    /// What is logged where nobody said: a node tells what it does, a client command only its result. What the Raft library
    /// warns of is its own business: a replica that fails is an error, and the node's own log tells the rest.
    fn default_log(&self) -> &'static str {
        match self {
            Self::Server(_) => "info,openraft=error",
            Self::Dev(_) => "warn,openraft=error",
            _ => "off",
        }
    }

    async fn run(self) -> Result<()> {
        match self {
            Self::Dev(args) => node::dev(args).await,
            Self::Demo(args) => demo::run(args).await,
            Self::Server(args) => node::server(args).await,
            Self::Topic(args) => topic::run(args).await,
            Self::Group(args) => group::run(args).await,
            Self::Dlq(args) => dlq::run(args).await,
            Self::Cluster(args) => cluster::run(args).await,
            Self::Quota(args) => quota::run(args).await,
            Self::Produce(args) => produce::run(args).await,
            Self::Consume(args) => consume::run(args).await,
            Self::Bench(args) => bench::run(args).await,
            Self::Log(args) => log::run(args),
        }
    }
}

fn main() -> ExitCode {
    keep_small_pages();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// The allocator asks for pages of 2 MiB wherever it can: a Raft group's rings, mostly untouched, would then cost 2 MB of real memory
/// each. A kernel without the call has no such pages either.
fn keep_small_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn start(cli: Cli) -> Result<()> {
    logging::init(&cli.log, cli.command.default_log())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(cli.command.run());
    // Not waiting for threads that read standard input, or for a shutdown that a second signal cut short.
    runtime.shutdown_background();
    result
}

/// Help goes to standard output as clap writes it; a mistake is one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nobody to tell where standard output is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::FAILURE;
    }
    let text = error.to_string();
    let told = text.split("\n\nUsage:").next().unwrap_or(&text);
    let told = told.split("\n\nFor more information").next();
    eprintln!("{}; see --help", one_line(told.unwrap_or_default()));
    ExitCode::FAILURE
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn every_command_is_understood() {
        for line in [
            "quipu dev --data-dir d --grpc-listen 127.0.0.1:0 --log debug --log-format json",
            "quipu server --node-id 1 --data-dir d --config f --memory 1GiB",
            "quipu topic create t --partitions 3 --config retention.ms=1 --config segment.bytes=4096",
            "quipu topic list --json --broker host:9093",
            "quipu topic alter t --config retention.ms=1 --reset segment.ms",
            "quipu topic delete-records t --partition 1 --before 100",
            "quipu topic delete-records t --partition 1 --before latest",
            "quipu produce t --partition 1 --header a=b --header a=c --acks leader --compression zstd",
            "quipu consume t --from -10 --to @2026-11-24T10:00:00Z --count 5 --format raw --follow",
            "quipu consume t --from=@1700000000000 --partition 1 --partition 2",
            "quipu consume t --group g --from latest --count 5",
            "quipu bench produce --records 10 --record-size 100 --producers 4 --batch-bytes 1MiB --rate 1000",
            "quipu bench consume --topic t --json",
            "quipu bench worker --topic t --group g --concurrency 8 --json",
            "quipu server --node-id 1 --data-dir d --voters 1@a:9093,2@b:9093 --rack r1",
            "quipu server --node-id 4 --data-dir d --join a:9093,b:9093",
            "quipu server --node-id 4 --data-dir d --voters 1@a:9093 --join a:9093",
            "quipu group list --json",
            "quipu group describe g",
            "quipu group reset-offsets g --topic t --partition 1 --to earliest",
            "quipu group reset-offsets g --topic t --topic u --shift-by -10 --dry-run",
            "quipu group reset-offsets g --all-topics --to @2026-11-24T10:00:00Z",
            "quipu group reset-offsets g --from-file f",
            "quipu group delete g",
            "quipu dlq list orders --group g --all --limit 5 --json",
            "quipu dlq list orders.g.dead --key k",
            "quipu dlq show orders --group g --partition 0 --offset 7",
            "quipu dlq redrive orders --group g",
            "quipu dlq redrive orders --group g --partition 0 --from 5 --to 9",
            "quipu cluster status --json",
            "quipu cluster nodes",
            "quipu cluster reassign t --partition 1 --replicas 1,2,4 --no-wait",
            "quipu cluster transfer-leader t --partition 1 --to 2",
            "quipu cluster decommission 3",
            "quipu quota set billing --produce 1MiB --fetch none",
            "quipu quota set --default --fetch 10MiB --json",
            "quipu quota list --json",
            "quipu quota remove billing",
            "quipu quota remove --default",
            "quipu produce t --client-id billing",
            "quipu consume t --client-id billing",
            "quipu log dump f --records",
            "quipu log verify d",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "quipu",
            "quipu produce",
            "quipu produce t --acks some",
            "quipu consume t --from soon",
            "quipu consume t --group g --partition 1",
            "quipu topic create t --config retention.ms",
            "quipu dlq show orders --group g",
            "quipu cluster reassign t --partition 1",
            "quipu group reset-offsets g --topic t",
            "quipu group reset-offsets g --topic t --to latest --shift-by 1",
            "quipu topic delete-records t --partition 1 --before -1",
            "quipu quota set billing",
            "quipu quota set --produce 1MiB",
            "quipu quota set billing --default --produce 1MiB",
            "quipu quota set billing --produce 0",
            "quipu quota remove",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
