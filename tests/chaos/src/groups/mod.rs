//! Groups under faults: members come and go while coordinators and other nodes are lost; and how long a group pauses when it
//! loses its coordinator.

mod crowd;
mod history;
mod member;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

pub(crate) use self::crowd::Size;
use self::{
    crowd::{Crowd, name},
    history::History,
};
use crate::{
    cluster::Cluster,
    load::Load,
    rounds::{Findings, wait_for_acknowledgements},
    trials::{Loss, print_quantiles},
};

/// Between trials: as long as nothing is to be made up for any more.
const CALM: Duration = Duration::from_secs(2);
/// How long a coordinator may be looked for, and a trial may last.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// Within which a group commits again after its coordinator was killed.
const GOAL: Duration = Duration::from_secs(5);

/// Rounds of lost nodes while members come and go.
///
/// # Errors
/// Where the system refuses something.
pub(crate) fn run(
    cluster: &mut Cluster,
    load: &mut Load,
    size: Size,
    losses: &[Loss],
    (rounds, seconds): (u16, Duration),
    seed: u64,
) -> Result<Findings> {
    println!("seed {seed}, {size:?}, losses {losses:?}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut findings = Findings::default();
    findings.rounds.push("before the first fault".to_owned());
    wait_for_acknowledgements(load, Instant::now()).context("before the first fault")?;
    let crowd = Crowd::start(size, load, seed);
    for number in 1..=rounds {
        load.history(|history| history.enter(number));
        crowd.history(|history| history.enter(number));
        let before = crowd.history(|history| history.counts());
        crowd.churn(true);
        let what = hold(cluster, load, size, losses, seconds, &mut rng)?;
        crowd.churn(false);
        let healed = Instant::now();
        findings.wrong.extend(cluster.heal()?);
        let back = recover(cluster, load, &crowd, healed);
        let (counts, found) = crowd.history(|history| (history.counts(), history.violations().1));
        println!(
            "round {number}: {what}; {} processed, {} times got a partition, {found} violations so far; {}",
            counts.processed - before.processed,
            counts.owned - before.owned,
            match &back {
                Ok(()) => format!(
                    "all well {:.2} s after healing",
                    healed.elapsed().as_secs_f64()
                ),
                Err(error) => format!("{error:#}"),
            }
        );
        findings.rounds.push(what);
        if let Err(error) = back {
            findings.wrong.push(format!("round {number}: {error:#}"));
            break;
        }
    }
    finish(load, crowd, &mut findings)?;
    Ok(findings)
}

/// Loses the node that coordinates a group, or another one, or both.
fn hold(
    cluster: &mut Cluster,
    load: &Load,
    size: Size,
    losses: &[Loss],
    seconds: Duration,
    rng: &mut StdRng,
) -> Result<String> {
    let group = rng.random_range(0..size.groups);
    let coordinator = coordinator(load, group)?;
    let others: Vec<u8> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != coordinator)
        .collect();
    let other = *others.choose(rng).context("no other node")?;
    let (first, second) = match rng.random_range(0..4) {
        0 => (other, None),
        1 => (coordinator, Some(other)),
        _ => (coordinator, None),
    };
    thread::sleep(seconds / 4);
    let loss = *losses.choose(rng).context("no losses")?;
    loss.of(cluster, first)?;
    let mut what =
        format!("{loss:?} of node {first} (coordinator of group {group}: {coordinator})");
    thread::sleep(seconds / 4);
    if let Some(second) = second {
        let loss = *losses.choose(rng).context("no losses")?;
        loss.of(cluster, second)?;
        what = format!("{what} + {loss:?} of node {second}");
    }
    thread::sleep(seconds / 2);
    Ok(what)
}

/// Waits until all nodes are ready, and each group has stored that it is past what is acknowledged now.
fn recover(cluster: &mut Cluster, load: &Load, crowd: &Crowd, healed: Instant) -> Result<()> {
    cluster.wait_ready()?;
    wait_for_acknowledgements(load, healed)?;
    crowd.wait_stored(&ends(load, crowd))
}

/// The ends of the topic's partitions, as far as they are known.
fn ends(load: &Load, crowd: &Crowd) -> Vec<u64> {
    let partitions = crowd.places().into_iter().filter(|place| place.group == 0);
    let end = |partition| load.history(|history| history.known(partition));
    partitions.map(|place| end(place.partition)).collect()
}

/// Lets the groups get to the end of all, and looks at what they did.
fn finish(load: &mut Load, crowd: Crowd, findings: &mut Findings) -> Result<()> {
    load.drain()?;
    let ends = ends(load, &crowd);
    if let Err(error) = crowd.wait_stored(&ends) {
        findings.wrong.push(format!("at the end: {error:#}"));
    }
    let places = crowd.places();
    let mut history: History = crowd.end()?;
    for place in places {
        history.finish(place, ends[place.partition as usize]);
    }
    println!("groups: {:?}", history.counts());
    let (violations, found) = history.violations();
    for violation in violations {
        let fault = findings.rounds.get(usize::from(violation.round));
        let fault = fault.map_or("between trials", String::as_str);
        findings.wrong.push(format!("{violation} [{fault}]"));
    }
    println!("groups: {found} violations");
    Ok(())
}

/// Kills the node that coordinates a group, again and again, and measures until the group has processed and stored more of every
/// partition.
///
/// # Errors
/// Where the system refuses something.
pub(crate) fn lose_coordinators(
    cluster: &mut Cluster,
    load: &mut Load,
    size: Size,
    trials: u32,
) -> Result<Findings> {
    let mut findings = Findings::default();
    wait_for_acknowledgements(load, Instant::now())?;
    let crowd = Crowd::start(size, load, 0);
    let (mut pauses, mut stored) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        crowd.wait_stored(&ends(load, &crowd))?;
        thread::sleep(CALM);
        let node = coordinator(load, 0)?;
        crowd.pulses(|pulses| pulses.restart());
        let killed = Instant::now();
        cluster.node(node).kill()?;
        // What is acknowledged by now may have been processed, and what was on its way may have been stored.
        thread::sleep(POLL);
        let before = ends(load, &crowd);
        let again = wait_past(&crowd, &before, killed);
        let again = again.with_context(|| format!("trial {trial}, kill of node {node}"))?;
        let pause = crowd.pulses(|pulses| pulses.longest_of_one());
        println!(
            "trial {trial}: kill of node {node}: longest pause {:.3} s, stored again after {:.3} s",
            pause.as_secs_f64(),
            again.as_secs_f64()
        );
        pauses.push(pause);
        stored.push(again);
        let healed = Instant::now();
        findings.wrong.extend(cluster.heal()?);
        cluster.wait_ready()?;
        wait_for_acknowledgements(load, healed)?;
    }
    if let Some(longest) = stored.iter().max().filter(|longest| **longest > GOAL) {
        let note = format!("a group stored nothing for {longest:?}, more than {GOAL:?}");
        findings.wrong.push(note);
    }
    print_quantiles("longest pause of a partition", pauses);
    print_quantiles("stored again", stored);
    finish(load, crowd, &mut findings)?;
    Ok(findings)
}

/// Waits until all groups have stored more than this of every partition; how long after `then` that was.
fn wait_past(crowd: &Crowd, before: &[u64], then: Instant) -> Result<Duration> {
    let past: Vec<u64> = before.iter().map(|end| end + 1).collect();
    crowd.wait_stored(&past)?;
    Ok(then.elapsed())
}

fn coordinator(load: &Load, group: u16) -> Result<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let group = name(group);
        let described = load.ask(|admin| async move { admin.describe_group(&group).await });
        let error = match described.map(|described| described.coordinator) {
            Ok(Some(node)) => return Ok(u8::try_from(node.id)?),
            Ok(None) => anyhow::anyhow!("no coordinator is named"),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            bail!("stuck: no coordinator is found: {error:#}");
        }
        thread::sleep(POLL);
    }
}
