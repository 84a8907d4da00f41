use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use futures::StreamExt;
use quipu_client::{
    Client, Envelope, Failure, GroupConfig, NewTopic, ProducerConfig, Record, Work, Worker,
    WorkerConfig, borrow_headers,
};

const PARTS: usize = 10;

/// Sums up the squares of 1 to 10, each worked out on its own. Gives back the sum of each task.
pub async fn run(client: &Client) -> Result<HashMap<String, u64>> {
    let admin = client.admin();
    for topic in ["parts", "results"] {
        admin
            .create_topic(NewTopic::new(topic).partitions(4))
            .await?;
    }
    let producer = client.producer(ProducerConfig::default()).await?;

    // Out: one record a part, all with the task's correlation id, and none with a key, so that they spread.
    for number in 1..=PARTS {
        let envelope = Envelope {
            correlation_id: Some("task-1".to_owned()),
            ..Envelope::new("square.wanted", "/sums")
        };
        let headers = envelope.to_headers()?;
        let (headers, number) = (borrow_headers(&headers), number.to_string());
        let part = Record::new("parts").value(number.as_bytes());
        drop(producer.send(part.headers(&headers)).await?);
    }
    producer.flush().await?;

    let results = producer.clone();
    let worker = Worker::start(
        client,
        WorkerConfig::new("squares", "parts"),
        move |work: Arc<Work>| {
            let results = results.clone();
            async move {
                let envelope =
                    Envelope::from_headers(&work.record.headers).map_err(Failure::permanent)?;
                let task = envelope.correlation_id.unwrap_or_default();
                let number = str::from_utf8(work.record.value.as_deref().unwrap_or_default())?;
                let square = number.parse::<u64>()?.pow(2).to_string();
                // In: the key brings a task's results together in one partition. The part's own id tells a result from a repeated one.
                let headers = [("part", Some(envelope.id.as_bytes()))];
                let result = Record::new("results").key(task.as_bytes());
                let result = result.value(square.as_bytes()).headers(&headers);
                results.send(result).await?.await?;
                Ok(())
            }
        },
    )
    .await?;

    let mut parts: HashMap<String, HashMap<Vec<u8>, u64>> = HashMap::new();
    let mut consumer = client.group_consumer(GroupConfig::new("sums", "results"))?;
    while let Some(record) = consumer.next().await {
        let record = record?;
        let task = String::from_utf8(record.key.unwrap_or_default().to_vec())?;
        let square = str::from_utf8(record.value.as_deref().unwrap_or_default())?.parse()?;
        let part = record
            .headers
            .first()
            .and_then(|header| header.value.clone());
        let results = parts.entry(task).or_default();
        results.insert(part.unwrap_or_default().to_vec(), square);
        if results.len() == PARTS {
            break;
        }
    }
    consumer.close().await?;
    worker.close().await?;
    let sums = parts.into_iter();
    Ok(sums
        .map(|(task, results)| (task, results.values().sum()))
        .collect())
}
