//! Feeds mutated input to every decoder, on stable Rust: `cargo run --release -p quipu-fuzz -- --seconds 20`.
//!
//! Each input follows from the seed and its number alone. A panic, a hang or a broken promise ends the run and names both;
//! `--target T --seed S --from N --inputs 1` brings the one input back.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a fuzzer runs for a time on the real clock"
)]

mod batch;
mod front;
mod kafka;
mod mutate;
mod produce;
mod recovery;
mod samples;

use std::{
    panic,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use mutate::Random;

/// The input at work, for the message that a panic leaves.
static INPUT: AtomicU64 = AtomicU64::new(0);

/// The most memory that any input may make the process take, in bytes: twice the largest batch uncompressed, and room to spare.
const MEMORY_BOUND: u64 = 1 << 30;

/// The targets, in the order in which they run.
const NAMES: [&str; 6] = ["batch", "kafka", "front", "produce", "wal", "segments"];

#[derive(Parser)]
struct Arguments {
    /// How long each target runs.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only these; may be given more than once.
    #[arg(long, value_name = "NAME", value_parser = NAMES)]
    target: Vec<String>,
    /// What all inputs follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first input's number.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stop after this many inputs.
    #[arg(long)]
    inputs: Option<u64>,
}

/// Something that takes mutated inputs.
trait Target {
    /// Makes an input and feeds it.
    ///
    /// # Errors
    /// Where a promise was broken.
    fn feed(&mut self, random: &mut Random) -> Result<()>;

    /// What is to be checked once all inputs were fed.
    ///
    /// # Errors
    /// Where a promise was broken.
    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn target(name: &str) -> Result<Box<dyn Target>> {
    Ok(match name {
        "batch" => Box::new(batch::Batches::new()?),
        "kafka" => Box::new(kafka::Frames),
        "front" => Box::new(front::Listener::new()?),
        "produce" => Box::new(produce::ProducePath::new()?),
        "wal" => Box::new(recovery::Recovery::new(recovery::Part::Wal)?),
        "segments" => Box::new(recovery::Recovery::new(recovery::Part::Segments)?),
        _ => anyhow::bail!("no target {name}"),
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Panics on other threads count too.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        eprintln!("input {}", INPUT.load(Ordering::Relaxed));
        std::process::abort();
    }));
    for name in NAMES {
        if arguments.target.is_empty() || arguments.target.iter().any(|t| t == name) {
            run(name, &arguments)?;
        }
    }
    let most = peak_memory()?;
    ensure!(most < MEMORY_BOUND, "the inputs made it take {most} bytes");
    println!("at most {} MB of memory", most / 1_000_000);
    Ok(())
}

fn run(name: &str, arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed;
    println!("fuzz {name}: seed {seed}, {} s", arguments.seconds);
    let mut target = target(name)?;
    let before = peak_memory()?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let last = arguments.inputs.map_or(u64::MAX, |n| arguments.from + n);
    let mut number = arguments.from;
    while number < last && Instant::now() < end {
        INPUT.store(number, Ordering::Relaxed);
        target
            .feed(&mut Random::new(seed, number))
            .with_context(|| format!("--target {name} --seed {seed} --from {number} --inputs 1"))?;
        number += 1;
    }
    target.finish()?;
    println!(
        "fuzz {name}: {} inputs, ok; they made it take {} MB more than before",
        number - arguments.from,
        (peak_memory()? - before) / 1_000_000
    );
    Ok(())
}

fn peak_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kib = line.split_whitespace().next().context("no number")?;
    Ok(kib.parse::<u64>()? * 1024)
}
