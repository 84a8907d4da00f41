//! How long writes pause when a leader is lost, and when all nodes are restarted one after the other.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    cluster::Cluster,
    faults::isolate,
    load::{Load, TOPIC},
    rounds::{Findings, wait_for_acknowledgements},
};

/// Between trials: as long as nothing is to be made up for any more.
const CALM: Duration = Duration::from_secs(3);
/// How long a trial waits for the next acknowledgement.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// How a leader is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    /// kill -9
    Kill,
    /// SIGSTOP
    Stop,
    /// Cut off from its peers; its clients still reach it
    Isolate,
    /// Cut off from everybody
    Vanish,
}

impl Loss {
    /// Loses a node so.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn of(self, cluster: &mut Cluster, id: u8) -> Result<()> {
        match self {
            Self::Kill => cluster.node(id).kill(),
            Self::Stop => cluster.node(id).stop(),
            Self::Isolate => isolate(cluster, id, false),
            Self::Vanish => isolate(cluster, id, true),
        }
    }
}

/// Loses the leader of the topic's first partition again and again: so many times in each way, in turn.
pub(crate) fn lose_leaders(
    cluster: &mut Cluster,
    load: &Load,
    losses: &[Loss],
    trials: u32,
) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut pauses: Vec<(Loss, Duration)> = Vec::new();
    wait_for_acknowledgements(load, Instant::now())?;
    let each = (0..trials).flat_map(|_| losses);
    for (number, &loss) in each.enumerate() {
        thread::sleep(CALM);
        let leader = leader(load)?;
        load.pulses(|pulses| pulses.restart());
        loss.of(cluster, leader)?;
        // What was on its way may still be acknowledged; after this it is the next leader who does.
        thread::sleep(Duration::from_millis(200));
        let lost = Instant::now();
        while load.pulses(|pulses| pulses.silent_since(lost)).is_some() {
            if lost.elapsed() > PATIENCE {
                findings.wrong.push(format!(
                    "trial {number}, {loss:?} of node {leader}: nothing was acknowledged for {PATIENCE:?}"
                ));
                break;
            }
            thread::sleep(POLL);
        }
        // The longest pause is over once another acknowledgement has come.
        let pause = load.pulses(|pulses| pulses.longest_of_one());
        println!(
            "trial {number}: {loss:?} of node {leader}: {:.3} s",
            pause.as_secs_f64()
        );
        pauses.push((loss, pause));
        let healed = Instant::now();
        findings.wrong.extend(cluster.heal()?);
        cluster.wait_ready()?;
        wait_for_acknowledgements(load, healed)?;
    }
    for &loss in losses {
        let of_one = pauses.iter().filter(|(of, _)| *of == loss);
        print_quantiles(
            &format!("{loss:?}"),
            of_one.map(|(_, pause)| *pause).collect(),
        );
    }
    print_quantiles("all", pauses.into_iter().map(|(_, pause)| pause).collect());
    Ok(findings)
}

pub(crate) fn print_quantiles(name: &str, mut pauses: Vec<Duration>) {
    pauses.sort_unstable();
    let Some(max) = pauses.last() else {
        return;
    };
    // Of few, the 99th percentile is the largest.
    let at = |share: f64| pauses[(pauses.len() as f64 * share).ceil() as usize - 1];
    println!(
        "{name}: {} trials, p50 {:.3} s, p99 {:.3} s, max {:.3} s",
        pauses.len(),
        at(0.5).as_secs_f64(),
        at(0.99).as_secs_f64(),
        max.as_secs_f64()
    );
}

fn leader(load: &Load) -> Result<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await });
        let leader = topic.ok().and_then(|topic| {
            let first = topic.partitions.into_iter().next()?;
            u8::try_from(first.leader?.id).ok()
        });
        match leader {
            Some(leader) => return Ok(leader),
            None if Instant::now() > deadline => bail!("stuck: nobody is known to lead"),
            None => thread::sleep(POLL),
        }
    }
}

/// Ends and starts every node in turn, as an upgrade does.
pub(crate) fn restart_all(cluster: &mut Cluster, load: &Load, times: u32) -> Result<Findings> {
    let mut findings = Findings::default();
    wait_for_acknowledgements(load, Instant::now())?;
    let mut longest = Vec::new();
    for id in (0..times).flat_map(|_| cluster.ids()).collect::<Vec<_>>() {
        thread::sleep(CALM);
        load.pulses(|pulses| pulses.restart());
        let asked = Instant::now();
        let status = cluster.node(id).terminate()?;
        let ending = asked.elapsed();
        if !status.success() {
            findings
                .wrong
                .push(format!("node {id} ended with {status}"));
        }
        let ended = load.pulses(|pulses| pulses.longest_of_one());
        cluster.start_node(id)?;
        cluster.wait_ready().context("after a restart")?;
        let back = asked.elapsed();
        wait_for_acknowledgements(load, Instant::now())?;
        thread::sleep(CALM);
        let pause = load.pulses(|pulses| pulses.longest_of_one());
        println!(
            "node {id}: ended in {:.2} s, back in {:.2} s, longest pause {:.3} s (while it ended {:.3} s)",
            ending.as_secs_f64(),
            back.as_secs_f64(),
            pause.as_secs_f64(),
            ended.as_secs_f64()
        );
        longest.push(pause);
    }
    print_quantiles("restarts", longest);
    let counts = load.history(|history| history.counts());
    println!(
        "produces that failed: {}",
        counts.refused + counts.indefinite
    );
    Ok(findings)
}
