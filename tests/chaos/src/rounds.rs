//! Rounds of faults under load, and the check at the end.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{RngExt, seq::IndexedRandom};

use crate::{
    cluster::Cluster,
    faults::{Fault, Injector, REPLICAS},
    load::{Load, TOPIC},
};

const POLL: Duration = Duration::from_millis(50);
/// How long healing may take until every producer is acknowledged on every partition.
const HEALING: Duration = Duration::from_secs(90);
/// Violations of each kind printed at most.
const MOST_PRINTED: usize = 12;

/// What a run found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) rounds: Vec<String>,
    /// Each is a reason for the run to fail.
    pub(crate) wrong: Vec<String>,
}

/// Runs rounds until they are through or something is stuck.
pub(crate) fn run(
    cluster: &mut Cluster,
    load: &Load,
    faults: &[Fault],
    rounds: u16,
    seconds: Duration,
    injector: &mut Injector,
) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.rounds.push("before the first fault".to_owned());
    wait_for_acknowledgements(load, Instant::now()).context("before the first fault")?;
    for number in 1..=rounds {
        load.history(|history| history.enter(number));
        load.pulses(|pulses| pulses.restart());
        let before = load.history(|history| history.counts().acknowledged);
        let (kinds, what) = hold(cluster, load, faults, seconds, injector)?;
        let healed = Instant::now();
        let ended = cluster.heal()?;
        if !kinds.iter().any(|fault| fault.may_end_a_node()) {
            findings.wrong.extend(ended.iter().cloned());
        }
        let back = recover(cluster, load, injector, healed);
        let counts = load.history(|history| history.counts());
        let (longest, one) = load.pulses(|pulses| (pulses.longest(), pulses.longest_of_one()));
        println!(
            "round {number}: {what}; {} acknowledged; longest pause {:.2} s (of one producer {:.2} s){}{}",
            counts.acknowledged - before,
            longest.as_secs_f64(),
            one.as_secs_f64(),
            match &back {
                Ok(back) => format!("; all well {:.2} s after healing", back.as_secs_f64()),
                Err(_) => String::new(),
            },
            match ended.is_empty() {
                true => String::new(),
                false => format!("; {}", ended.join("; ")),
            }
        );
        findings.rounds.push(what);
        if let Err(error) = back {
            findings.wrong.push(format!("round {number}: {error:#}"));
            println!("round {number}: {error:#}");
            break;
        }
    }
    Ok(findings)
}

/// Injects one fault or two that overlap, and lets them last.
fn hold(
    cluster: &mut Cluster,
    load: &Load,
    faults: &[Fault],
    seconds: Duration,
    injector: &mut Injector,
) -> Result<(Vec<Fault>, String)> {
    let first = *faults.choose(&mut injector.rng).context("no faults")?;
    let second = faults.choose(&mut injector.rng).copied();
    let second = second.filter(|second| *second != first && injector.rng.random_bool(0.4));
    let mut kinds = vec![first];
    let mut what = format!("{first:?}: {}", injector.inject(first, cluster, load)?);
    match second {
        None => thread::sleep(seconds),
        Some(second) => {
            thread::sleep(seconds / 2);
            let how = injector.inject(second, cluster, load)?;
            what = format!("{what} + {second:?}: {how}");
            kinds.push(second);
            thread::sleep(seconds / 2);
        }
    }
    Ok((kinds, what))
}

/// Waits until all nodes are ready, moves are done, and every producer is acknowledged on every partition.
fn recover(
    cluster: &mut Cluster,
    load: &Load,
    injector: &mut Injector,
    healed: Instant,
) -> Result<Duration> {
    cluster.wait_ready()?;
    for moves in injector.moves.drain(..) {
        load.wait_for(moves)?;
    }
    wait_for_acknowledgements(load, healed)?;
    wait_for_moves(load)?;
    Ok(healed.elapsed())
}

/// Waits until every producer was acknowledged on every partition after `then`.
///
/// # Errors
/// Where one is not in time.
pub(crate) fn wait_for_acknowledgements(load: &Load, then: Instant) -> Result<()> {
    let deadline = Instant::now() + HEALING;
    while let Some((producer, partition)) = load.pulses(|pulses| pulses.silent_since(then)) {
        if Instant::now() > deadline {
            let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await });
            let state = topic.map(|topic| topic.partitions.into_iter().nth(partition));
            bail!(
                "stuck: {HEALING:?} after all was healed, producer {producer} is not acknowledged in partition {partition}: {state:?}"
            );
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn wait_for_moves(load: &Load) -> Result<()> {
    let deadline = Instant::now() + HEALING;
    loop {
        let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await });
        let moving = topic.as_ref().ok().and_then(|topic| {
            let mut all = topic.partitions.iter();
            all.find(|p| !p.leaving.is_empty() || !p.joining.is_empty() || p.leader.is_none())
        });
        if topic.is_ok() && moving.is_none() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("stuck: {HEALING:?} after all was healed: {moving:?}, {topic:?}");
        }
        thread::sleep(POLL);
    }
}

/// Drains the producers, and reads every partition once from each of its replicas as leader.
pub(crate) fn check(cluster: &mut Cluster, load: &mut Load, findings: &mut Findings) -> Result<()> {
    if let Err(error) = load.drain() {
        findings.wrong.push(format!("{error:#}"));
    }
    load.stop_consuming();
    for place in 0..=REPLICAS {
        let reading = match place {
            0 => "from the leaders at the end".to_owned(),
            place => format!("from replicas number {place} as leaders"),
        };
        let led = match place {
            0 => Ok(()),
            place => lead_by(load, place - 1),
        };
        let checked = led.and_then(|()| load.check(&reading));
        match checked {
            Ok(records) => println!("read {records} records {reading}"),
            Err(error) => findings.wrong.push(format!("{reading}: {error:#}")),
        }
    }
    for node in &cluster.nodes {
        for panic in node.panics()? {
            findings.wrong.push(format!("node {}: {panic}", node.id));
        }
    }
    Ok(())
}

/// Lets each partition be led by its replica of that place.
fn lead_by(load: &Load, place: usize) -> Result<()> {
    let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await })?;
    for partition in topic.partitions {
        let mut replicas = partition.replicas.clone();
        replicas.sort_unstable();
        let to = *replicas.get(place).context("too few replicas")?;
        let number = partition.partition;
        let deadline = Instant::now() + HEALING;
        loop {
            let asked =
                load.ask(|admin| async move { admin.transfer_leader(TOPIC, number, to).await });
            let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await });
            let now = topic.ok().and_then(|topic| {
                let partition = topic.partitions.into_iter().nth(number as usize)?;
                Some(partition.leader?.id)
            });
            if now == Some(to) {
                break;
            }
            if Instant::now() > deadline {
                bail!("stuck: node {to} does not come to lead partition {number}: {asked:?}");
            }
            thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Prints what was found; whether nothing was.
pub(crate) fn report(load: &Load, findings: &Findings) -> bool {
    let counts = load.history(|history| history.counts());
    println!("{counts:?}");
    for (note, times) in load.notes() {
        println!("note, {times} times: {note}");
    }
    let violations = load.history(|history| history.violations().to_vec());
    let mut kinds = BTreeMap::new();
    for violation in &violations {
        let times = kinds.entry(violation.kind).or_insert(0);
        *times += 1;
        if *times > MOST_PRINTED {
            continue;
        }
        let fault = findings.rounds.get(usize::from(violation.round));
        let fault = fault.map_or("after the last round", String::as_str);
        println!("VIOLATION {violation} [{fault}]");
    }
    for wrong in &findings.wrong {
        println!("WRONG {wrong}");
    }
    println!(
        "{} rounds, {} violations {kinds:?}, {} other findings",
        findings.rounds.len().saturating_sub(1),
        violations.len(),
        findings.wrong.len()
    );
    violations.is_empty() && findings.wrong.is_empty()
}
