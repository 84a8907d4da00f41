//! Many seeds, each in a process of its own.

use std::{
    collections::BTreeMap,
    io::Read as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum as _;

use crate::{Options, mutants::Mutant, run};

/// How many lines of a trace are shown.
const SHOWN: usize = 60;

/// Runs the first seed here. The line that begins with `seed` is for whoever started this process.
pub(crate) fn one(options: &Options) -> anyhow::Result<bool> {
    let outcome = run::run(options.plan(options.first_seed))?;
    let verdict = match &outcome.violation {
        None => "good",
        Some(violation) => violation.invariant,
    };
    if let Some(violation) = &outcome.violation {
        let skipped = outcome.tail.len().saturating_sub(SHOWN);
        for line in outcome.tail.iter().skip(skipped) {
            println!("  {line}");
        }
        println!("  {}: {}", violation.invariant, violation.detail);
    }
    println!(
        "seed {} simulated {:.1} s events {} acknowledged {} fingerprint {:016x} verdict {verdict}",
        options.first_seed,
        outcome.simulated.as_secs_f64(),
        outcome.events,
        outcome.acknowledged,
        outcome.fingerprint
    );
    Ok(outcome.violation.is_none())
}

/// What a process said.
#[derive(Debug, Default)]
struct Report {
    text: String,
    simulated: f64,
    acknowledged: u64,
    verdict: String,
}

impl Report {
    fn read(text: String) -> Self {
        let last = text.lines().rfind(|line| line.starts_with("seed "));
        let words: Vec<&str> = last.unwrap_or_default().split(' ').collect();
        let after = |word| {
            let at = words.iter().position(|w| *w == word)?;
            words.get(at + 1).copied()
        };
        let number = |word| after(word).and_then(|w: &str| w.parse().ok());
        Self {
            simulated: number("simulated").unwrap_or_default(),
            acknowledged: number("acknowledged").unwrap_or_default() as u64,
            verdict: after("verdict").unwrap_or("crashed").to_owned(),
            text,
        }
    }
}

fn arguments(options: &Options, seed: u64, mutant: Option<Mutant>) -> Vec<String> {
    let plan = options.plan(seed);
    let mut arguments = vec![
        "--one".to_owned(),
        format!("--first-seed={seed}"),
        format!("--minutes-each={}", options.minutes_each),
        format!("--replicas={}", plan.replicas),
        format!("--partitions={}", options.partitions),
        format!("--producers={}", options.producers),
    ];
    let name = mutant.and_then(|mutant| mutant.to_possible_value());
    arguments.extend(name.map(|name| format!("--mutant={}", name.get_name())));
    arguments
}

fn start(options: &Options, seed: u64, mutant: Option<Mutant>) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("where is this program")?;
    Command::new(program)
        .args(arguments(options, seed, mutant))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start a seed's process")
}

fn finish(mut child: Child) -> anyhow::Result<Report> {
    let mut text = String::new();
    let mut out = child.stdout.take().context("a seed's output")?;
    out.read_to_string(&mut text)?;
    child.wait()?;
    Ok(Report::read(text))
}

/// Runs all seeds, and says of each how it went. Whether all went well.
#[allow(
    clippy::disallowed_methods,
    reason = "the speed of a run is in real time"
)]
pub(crate) fn all(options: &Options) -> anyhow::Result<bool> {
    let started = Instant::now();
    let (mut running, mut reports) = (BTreeMap::new(), Vec::new());
    for seed in options.first_seed..options.first_seed + options.seeds {
        running.insert(seed, start(options, seed, options.mutant)?);
        if running.len() >= options.jobs
            && let Some((seed, child)) = running.pop_first()
        {
            reports.push(show(options, seed, finish(child)?));
        }
    }
    for (seed, child) in running {
        reports.push(show(options, seed, finish(child)?));
    }
    let took = started.elapsed();
    let hours = reports.iter().map(|report| report.simulated).sum::<f64>() / 3600.0;
    let acknowledged: u64 = reports.iter().map(|report| report.acknowledged).sum();
    let bad = reports.iter().filter(|report| report.verdict != "good");
    let bad = bad.count();
    println!(
        "{} seeds: {hours:.2} cluster-hours in {:.0} s ({:.1} times real time), {acknowledged} records acknowledged, {bad} violations",
        reports.len(),
        took.as_secs_f64(),
        hours * 3600.0 / took.max(Duration::from_millis(1)).as_secs_f64(),
    );
    Ok(bad == 0)
}

fn show(options: &Options, seed: u64, report: Report) -> Report {
    let Report { text, verdict, .. } = &report;
    if verdict == "good" {
        print!("{text}");
    } else {
        println!("{text}seed {seed} violated {verdict}. Again, with the whole trace:");
        let arguments = arguments(options, seed, options.mutant);
        println!(
            "  cargo run -p quipu-sim --release -- {} --print",
            arguments.join(" ")
        );
    }
    report
}

/// Whether each mutant is caught by what is there to catch it.
pub(crate) fn mutants(options: &Options) -> anyhow::Result<bool> {
    let mut all_caught = true;
    for mutant in Mutant::value_variants() {
        let mut caught = None;
        for seed in options.first_seed..options.first_seed + options.seeds {
            let report = finish(start(options, seed, Some(*mutant))?)?;
            if report.verdict != "good" {
                caught = Some((seed, report.verdict));
                break;
            }
        }
        all_caught &= match &caught {
            None => {
                println!("{mutant:?} was not caught in {} seeds", options.seeds);
                false
            }
            Some((seed, verdict)) => {
                let named = mutant.caught_by().contains(&verdict.as_str());
                let how = if named {
                    "as it should be"
                } else {
                    "by another invariant than its own"
                };
                println!("{mutant:?} was caught by {verdict} in seed {seed}: {how}");
                named
            }
        };
    }
    Ok(all_caught)
}
