use std::sync::Arc;

use anyhow::Result;
use quipu_client::{Client, NewTopic, ProducerConfig, Record, Work, Worker, WorkerConfig};
use tokio::sync::mpsc;

/// A hundred jobs, and two workers that share them. Gives back the jobs in the order in which they were done.
pub async fn run(client: &Client) -> Result<Vec<String>> {
    let admin = client.admin();
    // As many partitions as there may ever be workers.
    admin
        .create_topic(NewTopic::new("jobs").partitions(4))
        .await?;

    let producer = client.producer(ProducerConfig::default()).await?;
    for number in 0..100 {
        let job = format!("job {number}");
        // Without a key: any partition will do, and jobs may be done side by side.
        drop(
            producer
                .send(Record::new("jobs").value(job.as_bytes()))
                .await?,
        );
    }
    producer.close().await?;

    let (done, mut finished) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let done = done.clone();
        // The group's name makes them share: each job is given to one of them.
        let config = WorkerConfig::new("job-runners", "jobs");
        let worker = Worker::start(client, config, move |work: Arc<Work>| {
            let done = done.clone();
            async move {
                let job = work.record.value.as_deref().unwrap_or_default();
                // An error here would be tried again later, and then be a dead letter.
                done.send(String::from_utf8(job.to_vec())?)?;
                Ok(())
            }
        });
        workers.push(worker.await?);
    }

    let mut jobs = Vec::new();
    while jobs.len() < 100
        && let Some(job) = finished.recv().await
    {
        jobs.push(job);
    }
    for worker in workers {
        worker.close().await?;
    }
    Ok(jobs)
}
