//! How much of the load gets through while all nodes are restarted one after the other, and while partitions move.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::Cluster,
    faults::REPLICAS,
    load::{Load, TOPIC},
    rounds::{Findings, wait_for_acknowledgements},
};

/// How long the load is watched while nothing else happens.
const NORMAL: Duration = Duration::from_secs(10);
/// Between two nodes: as long as an operator needs at least to see that all is well.
const CALM: Duration = Duration::from_secs(3);
/// How long one partition may take to move.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// The least share of the load that should get through.
const GOAL: f64 = 0.7;

/// What got through while something went on.
#[derive(Clone, Copy, Debug)]
struct Watch {
    since: Instant,
    acknowledged: u64,
}

impl Watch {
    fn begin(load: &Load) -> Self {
        load.pulses(|pulses| pulses.restart());
        Self {
            since: Instant::now(),
            acknowledged: acknowledged(load),
        }
    }

    /// Records a second, and the longest pause of any producer in any partition.
    fn end(self, load: &Load) -> (f64, Duration) {
        let records = acknowledged(load) - self.acknowledged;
        let rate = records as f64 / self.since.elapsed().as_secs_f64();
        (rate, load.pulses(|pulses| pulses.longest_of_one()))
    }
}

fn acknowledged(load: &Load) -> u64 {
    load.history(|history| history.counts()).acknowledged
}

/// Restarts every node in turn, then moves every partition to other nodes: the cluster needs one node more than replicas.
pub(crate) fn run(cluster: &mut Cluster, load: &Load, times: u32) -> Result<Findings> {
    let mut findings = Findings::default();
    wait_for_acknowledgements(load, Instant::now())?;
    for _ in 0..times {
        let watch = Watch::begin(load);
        thread::sleep(NORMAL);
        let (normal, pause) = watch.end(load);
        println!(
            "left alone: {normal:.0} records/s, longest pause {:.3} s",
            pause.as_secs_f64()
        );
        let watch = Watch::begin(load);
        restart_all(cluster, load)?;
        judge("restarts", normal, watch.end(load), &mut findings);
        let watch = Watch::begin(load);
        move_all(cluster, load)?;
        judge("moves", normal, watch.end(load), &mut findings);
    }
    let counts = load.history(|history| history.counts());
    let failed = counts.refused + counts.indefinite;
    println!("produces that failed: {failed}");
    if failed > 0 {
        findings.wrong.push(format!("{failed} produces failed"));
    }
    Ok(findings)
}

fn judge(what: &str, normal: f64, (rate, pause): (f64, Duration), findings: &mut Findings) {
    let share = rate / normal;
    println!(
        "{what}: {rate:.0} records/s, {:.0} % of that (goal {:.0} %), longest pause {:.3} s",
        share * 100.0,
        GOAL * 100.0,
        pause.as_secs_f64()
    );
    if share < GOAL {
        findings.wrong.push(format!(
            "{what}: {:.0} % of the load got through",
            share * 100.0
        ));
    }
}

fn restart_all(cluster: &mut Cluster, load: &Load) -> Result<()> {
    for id in cluster.ids() {
        let status = cluster.node(id).terminate()?;
        ensure!(status.success(), "node {id} ended with {status}");
        cluster.start_node(id)?;
        cluster.wait_ready().context("after a restart")?;
        wait_for_acknowledgements(load, Instant::now())?;
        thread::sleep(CALM);
    }
    Ok(())
}

/// Each partition goes to the next nodes in turn, one partition at a time.
fn move_all(cluster: &Cluster, load: &Load) -> Result<()> {
    let ids = cluster.ids();
    let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await })?;
    for partition in topic.partitions {
        let first = partition.replicas.first().copied().unwrap_or_default();
        let next = ids.iter().position(|id| u64::from(*id) == first);
        let next = next.context("it is on no node")? + 1;
        let to = (0..REPLICAS).map(|step| ids[(next + step) % ids.len()].into());
        let (to, number) = (to.collect(), partition.partition);
        load.ask(|admin| async move { admin.reassign_partition(TOPIC, number, to).await })?;
        let asked = Instant::now();
        while is_moving(load, number)? {
            ensure!(
                asked.elapsed() < PATIENCE,
                "stuck: partition {number} does not move"
            );
            thread::sleep(POLL);
        }
    }
    Ok(())
}

fn is_moving(load: &Load, partition: u32) -> Result<bool> {
    let topic = load.ask(|admin| async move { admin.describe_topic(TOPIC).await })?;
    let state = topic.partitions.get(partition as usize);
    let state = state.context("the partition is gone")?;
    Ok(!state.joining.is_empty() || !state.leaving.is_empty())
}
