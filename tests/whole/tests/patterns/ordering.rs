use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Result;
use quipu_client::{Client, NewTopic, ProducerConfig, Record, Work, Worker, WorkerConfig};
use tokio::{sync::mpsc, time::sleep};

/// Steps of three parcels, worked on side by side. Gives back the steps of each in the order in which they were worked on.
pub async fn run(client: &Client) -> Result<HashMap<String, Vec<String>>> {
    client
        .admin()
        .create_topic(NewTopic::new("parcels").partitions(4))
        .await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    for step in ["packed", "sent", "received"] {
        for parcel in ["parcel 1", "parcel 2", "parcel 3"] {
            // One key, one partition, one order.
            let record = Record::new("parcels").key(parcel.as_bytes());
            drop(producer.send(record.value(step.as_bytes())).await?);
        }
    }
    producer.close().await?;

    let (note, mut noted) = mpsc::unbounded_channel();
    // Up to 64 records at a time, but of each key one after the other.
    let config = WorkerConfig::new("tracking", "parcels");
    let worker = Worker::start(client, config, move |work: Arc<Work>| {
        let note = note.clone();
        async move {
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec());
            let parcel = text(work.record.key.as_deref())?;
            let step = text(work.record.value.as_deref())?;
            // The first step takes longest, and is not overtaken.
            if step == "packed" {
                sleep(Duration::from_millis(100)).await;
            }
            note.send((parcel, step))?;
            Ok(())
        }
    })
    .await?;

    let mut steps: HashMap<String, Vec<String>> = HashMap::new();
    while steps.values().map(Vec::len).sum::<usize>() < 9
        && let Some((parcel, step)) = noted.recv().await
    {
        steps.entry(parcel).or_default().push(step);
    }
    worker.close().await?;
    Ok(steps)
}
