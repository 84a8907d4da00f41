//! A cluster of real processes under faults: kills, cuts, stalls, full and frozen disks, power loss, clock jumps and moves,
//! while producers and consumers go on; then a check that nothing acknowledged was lost, doubled, reordered or changed.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "it works on the real machine from outside"
)]

mod cluster;
mod disk;
mod faults;
mod groups;
mod history;
mod load;
mod network;
mod node;
mod proxy;
mod pulse;
mod rounds;
mod shell;
mod trials;
mod upkeep;

use std::{
    env,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    cluster::{Cluster, Ground},
    faults::{Fault, Injector, REPLICAS},
    groups::Size,
    load::{Load, Plan},
    rounds::Findings,
    trials::Loss,
};

/// Set in the process that has namespaces of its own.
const INSIDE: &str = "QUIPU_CHAOS_INSIDE";
/// What networks of their own take.
const NEEDED: &str = "root, util-linux, iproute2 and iptables";
/// Debian's place for the library that sets a process's clock.
fn faketime() -> PathBuf {
    let arch = env::consts::ARCH;
    format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1").into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Rounds of faults under load, and a check of the whole history
    Rounds,
    /// The pause of one producer when the leader is killed, stopped or cut off
    LeaderKill,
    /// The pause of all producers while every node is ended and started again
    RollingRestart,
    /// How much of the load gets through while every node is restarted, and while every partition moves
    Upkeep,
    /// Rounds of lost nodes while members of groups come and go, and a check of what the groups did
    Groups,
    /// The pause of a group when the node is killed that coordinates it
    CoordinatorKill,
}

#[derive(Clone, Debug, Parser)]
#[command(about)]
struct Args {
    /// What to do
    #[arg(value_enum, default_value_t = What::Rounds)]
    what: What,
    /// Rounds of faults
    #[arg(long, default_value_t = 10)]
    rounds: u16,
    /// How long each round's faults last, in seconds
    #[arg(long, default_value_t = 8.0)]
    seconds_a_round: f64,
    /// Which faults come when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The faults to choose from; all if not given
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// The binary; a debug build made now if not given
    #[arg(long, env = "QUIPU")]
    quipu: Option<PathBuf>,
    /// Nodes that form the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    producers: u16,
    /// Records a second of each producer
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Groups that read
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    groups: u16,
    /// Members of each group, at most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    members: u16,
    /// Trials of leader-kill in each way, and of coordinator-kill; times that rolling-restart and upkeep restart all nodes
    #[arg(long, default_value_t = 3)]
    trials: u32,
    /// The ways in which leader-kill loses a leader, and groups a node; all if not given
    #[arg(long, value_delimiter = ',')]
    losses: Vec<Loss>,
    /// Keep data and logs also where nothing is wrong
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quipu-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<bool> {
    let args = Args::parse();
    let quipu = match &args.quipu {
        Some(quipu) => quipu.clone(),
        None => quipu_tests::quipu().to_owned(),
    };
    let quipu = quipu
        .canonicalize()
        .with_context(|| format!("no binary at {}", quipu.display()))?;
    let isolated = can_isolate();
    if isolated && env::var_os(INSIDE).is_none() {
        return enter_namespaces(&quipu);
    }
    end_on_signals()?;
    let faults = match args.what {
        What::Rounds => usable(&args, isolated)?,
        _ => Vec::new(),
    };
    let directory = quipu.parent().context("the binary is in a directory")?;
    let scratch = tempfile::Builder::new()
        .prefix("chaos-")
        .tempdir_in(directory)?;
    let ground = Ground {
        quipu: quipu.clone(),
        home: scratch.path().to_owned(),
        isolated,
        disks: faults.iter().any(|fault| fault.needs_disks()),
        clock: faults.contains(&Fault::Clock).then(faketime),
    };
    let well = run(&args, ground, &faults);
    if args.keep || !matches!(well, Ok(true)) {
        println!("left for a look: {}", scratch.keep().display());
    }
    well
}

/// The first process of a namespace ignores signals that it does not handle. With it, all others there end too.
fn end_on_signals() -> Result<()> {
    let runtime = Runtime::new()?;
    let mut terminate = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    let mut interrupt = runtime.block_on(async { signal(SignalKind::interrupt()) })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        std::process::exit(130)
    });
    Ok(())
}

/// Whether nodes can have networks of their own here.
fn can_isolate() -> bool {
    let tools = ["unshare", "nsenter", "ip", "iptables"];
    rustix::process::geteuid().is_root() && tools.iter().all(|tool| shell::has(tool))
}

/// Runs this program again where it can build networks and mount file systems that go away with it.
fn enter_namespaces(quipu: &std::path::Path) -> Result<bool> {
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .env("QUIPU", quipu)
        .exec();
    Err(error).context("can't run unshare, of util-linux")
}

/// The faults that can be had here; says which can't.
fn usable(args: &Args, isolated: bool) -> Result<Vec<Fault>> {
    let asked = match args.faults.is_empty() {
        true => Fault::value_variants().to_vec(),
        false => args.faults.clone(),
    };
    let lacks = |fault: &Fault| match fault {
        fault if fault.needs_root() && !isolated => Some(NEEDED),
        Fault::Clock if !faketime().exists() => Some("libfaketime"),
        fault if fault.needs_disks() && !shell::has("xfs_io") => Some("xfsprogs"),
        _ => None,
    };
    let mut usable = Vec::new();
    for fault in asked {
        match lacks(&fault) {
            Some(what) => println!("skipped: {fault:?}, which needs {what}"),
            None => usable.push(fault),
        }
    }
    ensure!(!usable.is_empty(), "none of these faults can be had here");
    Ok(usable)
}

fn run(args: &Args, ground: Ground, faults: &[Fault]) -> Result<bool> {
    let isolated = ground.isolated;
    // Moves are more than turns among the same nodes where there is one node more.
    let moves = faults.contains(&Fault::Members) || args.what == What::Upkeep;
    let spare = u8::from(moves);
    let mut cluster = Cluster::start(ground, args.nodes, spare)?;
    let mut load = Load::start(plan(args, &cluster))?;
    let mut findings = match args.what {
        What::Rounds => run_rounds(args, &mut cluster, &load, faults)?,
        What::LeaderKill => {
            let losses = losses(args, isolated);
            trials::lose_leaders(&mut cluster, &load, &losses, args.trials)?
        }
        What::RollingRestart => trials::restart_all(&mut cluster, &load, args.trials)?,
        What::Upkeep => upkeep::run(&mut cluster, &load, args.trials)?,
        What::Groups => {
            let rounds = (args.rounds, Duration::from_secs_f64(args.seconds_a_round));
            let (size, losses) = (size(args), losses(args, isolated));
            groups::run(&mut cluster, &mut load, size, &losses, rounds, args.seed)?
        }
        What::CoordinatorKill => {
            groups::lose_coordinators(&mut cluster, &mut load, size(args), args.trials)?
        }
    };
    rounds::check(&mut cluster, &mut load, &mut findings)?;
    Ok(rounds::report(&load, &findings))
}

fn run_rounds(
    args: &Args,
    cluster: &mut Cluster,
    load: &Load,
    faults: &[Fault],
) -> Result<Findings> {
    println!("seed {}, faults {faults:?}", args.seed);
    let mut injector = Injector::new(args.seed);
    let seconds = Duration::from_secs_f64(args.seconds_a_round);
    rounds::run(cluster, load, faults, args.rounds, seconds, &mut injector)
}

fn losses(args: &Args, isolated: bool) -> Vec<Loss> {
    let asked = match args.losses.is_empty() {
        true => Loss::value_variants(),
        false => &args.losses,
    };
    let can = |loss: &Loss| isolated || matches!(loss, Loss::Kill | Loss::Stop);
    let (can, cannot): (Vec<_>, Vec<_>) = asked.iter().partition(|loss| can(loss));
    for loss in cannot {
        println!("skipped: {loss:?}, which needs {NEEDED}");
    }
    can
}

fn size(args: &Args) -> Size {
    Size {
        groups: args.groups,
        members: args.members.into(),
        partitions: args.partitions,
        hasty: args.what == What::Groups,
    }
}

fn plan(args: &Args, cluster: &Cluster) -> Plan {
    let count = cluster.nodes.len();
    // One producer's pauses are measured in one partition: what others do there would hide them.
    let alone = args.what == What::LeaderKill;
    Plan {
        partitions: if alone { 1 } else { args.partitions },
        replication_factor: REPLICAS as u32,
        producers: if alone { 1 } else { args.producers },
        rate: args.rate,
        value_bytes: 40,
        consume: args.what == What::Rounds,
        addresses: (0..count).map(|first| cluster.addresses(first)).collect(),
        patient: !matches!(args.what, What::Rounds | What::Groups),
    }
}
