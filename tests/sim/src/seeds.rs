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

// Seeds that found bugs, at the time with `--minutes-each 5`, and what became of those:
// - 1 with `--minutes-each 0.5`: voters changed behind what retention deleted, nothing was purged, and the next leader served
//   nobody. The log now knows who voted as of a purge.
// - 1: a change of members that waited for another one looked for its end all the time.
// - 4 and 6: a replica that came back to a node without its files took itself for the only voter that it once was, led, and
//   others cut what was committed. Now it begins where the group settled without it.
// - 30085: a disk that was full between two segments of a copy left the copy for whole, and the snapshot
//   that was refused for it was installed at the replica's next start: a hole that nobody knew of. A snapshot counts only
//   where what it names is here.
// - 14: the sync of a copied segment failed, the process ended, and the next one found the bytes in memory and the next sync
//   good; with the power they were gone. What is left of a copy is written again.
// - 60082: it was the simulator: it let rot strike a minority of the replicas that were wanted, while the only voter was still
//   the one struck. But a leader whose damage is found between two looks told producers for good what others would have taken.
// - 80282: a replica that started with rot, and did not know yet who else votes, took itself for the only one, and told producers so.
// - 82965: retention deleted all batches of a producer that had no answer yet; a restart rebuilt the producers from what was left, and
//   what was sent again was appended twice. What was known of producers at a log's first segment is a part of its state now.
// - 83050: who was only in the older half of a change of voters that its leader did not end became a learner, and the move was
//   called done with it.

/// After how many seeds each the total is told.
const TOLD_EVERY: u64 = 10;

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
    arguments.extend(options.rot.then(|| "--rot".to_owned()));
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
    let (mut running, mut total) = (BTreeMap::new(), Total::default());
    for seed in options.first_seed..options.first_seed + options.seeds {
        running.insert(seed, start(options, seed, options.mutant)?);
        if running.len() >= options.jobs
            && let Some((seed, child)) = running.pop_first()
        {
            total.add(&show(options, seed, finish(child)?));
            if total.seeds.is_multiple_of(TOLD_EVERY) {
                println!("{}", total.told(started.elapsed()));
            }
        }
    }
    for (seed, child) in running {
        total.add(&show(options, seed, finish(child)?));
    }
    println!("{}", total.told(started.elapsed()));
    Ok(total.bad == 0)
}

/// What came of all seeds so far.
#[derive(Debug, Default)]
struct Total {
    seeds: u64,
    seconds: f64,
    acknowledged: u64,
    bad: u64,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.seconds += report.simulated;
        self.acknowledged += report.acknowledged;
        self.bad += u64::from(report.verdict != "good");
    }

    fn told(&self, took: Duration) -> String {
        let took = took.max(Duration::from_millis(1)).as_secs_f64();
        format!(
            "{} seeds: {:.2} cluster-hours in {took:.0} s ({:.1} times real time), {} records acknowledged, {} violations",
            self.seeds,
            self.seconds / 3600.0,
            self.seconds / took,
            self.acknowledged,
            self.bad,
        )
    }
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
        if mutant.needs_rot() && !options.rot {
            continue;
        }
        let mut caught = None;
        let mut options = options.clone();
        // What it breaks takes two moves and a replica that misses both.
        if *mutant == Mutant::ReturnsAsBefore {
            options.minutes_each *= 5.0;
        }
        for seed in options.first_seed..options.first_seed + options.seeds {
            let report = finish(start(&options, seed, Some(*mutant))?)?;
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
