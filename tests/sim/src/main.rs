//! A whole cluster in one thread, under a virtual clock, with faults from a seed.
//!
//! Each node is the real storage and replication code on a disk in memory that loses what was not synced, behind a network
//! that delays, loses and cuts. The same seed gives the same run. Each seed runs in a process of its own, since a process's
//! randomness can be begun only once.

mod calm;
mod clock;
mod cluster;
mod compaction;
mod disk;
mod entropy;
mod faults;
mod groups;
mod invariants;
mod keyed;
mod liveness;
mod load;
mod luck;
mod moves;
mod mutants;
mod network;
mod placement;
mod readers;
mod replicas;
mod retention;
mod rot;
mod run;
mod seeds;
mod trace;
mod transfers;
mod wire;
mod workers;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use crate::{mutants::Mutant, run::Plan};

/// Where partitions move to, and come back from.
const SPARE_NODES: u64 = 2;
/// Every so many seeds the partitions are compacted.
const COMPACTED: u64 = 4;

/// Simulates clusters.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How long things go wrong in each, in simulated minutes.
    #[arg(long, default_value_t = 5.0)]
    minutes_each: f64,
    /// How many replicas a partition has, to begin with and in the end. Without it, seeds take turns: most have three.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=9))]
    replicas: Option<u64>,
    #[arg(long, default_value_t = 2)]
    partitions: u32,
    /// For each partition.
    #[arg(long, default_value_t = 3)]
    producers: u32,
    /// How many processes at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Runs with code that is wrong on purpose.
    #[arg(long, value_enum)]
    mutant: Option<Mutant>,
    /// Lets bytes on disks change by themselves in every seed; without it, in every fifth.
    #[arg(long)]
    rot: bool,
    /// Runs every mutant until it is caught, for up to `--seeds` seeds each.
    #[arg(long)]
    mutants: bool,
    /// Runs the first seed in this process, and ends with its trace.
    #[arg(long)]
    one: bool,
    /// With `--one`: prints the whole trace on standard error.
    #[arg(long)]
    print: bool,
}

impl Options {
    fn plan(&self, seed: u64) -> Plan {
        let replicas = if seed % 4 == 3 { 5 } else { 3 };
        let replicas = self.replicas.unwrap_or(replicas);
        let spare_nodes = match self.mutant {
            // It shows only where partitions come back all the time.
            Some(Mutant::ReturnsAsBefore) => 1,
            _ => SPARE_NODES,
        };
        // What else is wrong on purpose is to be caught by what is there for it.
        let rot = self.rot || (self.mutant.is_none() && seed % 5 == 2);
        let compacts = match self.mutant {
            Some(mutant) => mutant.needs_compaction(),
            None => seed.is_multiple_of(COMPACTED),
        };
        let groups = match self.mutant {
            Some(mutant) => mutant.needs_groups(),
            None => seed % 3 != 1,
        };
        Plan {
            seed,
            nodes: replicas + spare_nodes,
            replicas: replicas as usize,
            partitions: self.partitions,
            producers: self.producers,
            faulty: Duration::from_secs_f64(self.minutes_each * 60.0),
            mutant: self.mutant,
            rot,
            compacts,
            groups,
            print: self.print,
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let good = if options.one {
        seeds::one(&options)?
    } else if options.mutants {
        seeds::mutants(&options)?
    } else {
        seeds::all(&options)?
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
