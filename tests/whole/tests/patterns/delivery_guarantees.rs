use anyhow::Result;
use futures::StreamExt;
use quipu_client::{Client, GroupConfig, GroupConsumer, NewTopic, ProducerConfig, Record};

/// Three records, read by groups whose member dies at the second one, in two ways. Gives back what each group processed.
pub async fn run(client: &Client) -> Result<(Vec<String>, Vec<String>)> {
    client
        .admin()
        .create_topic(NewTopic::new("letters").partitions(1))
        .await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    for letter in ["a", "b", "c"] {
        // Acknowledged: it is on disk on a majority. Sent again after a lost answer, it is stored once: the producer is idempotent.
        let record = Record::new("letters").value(letter.as_bytes());
        producer.send(record).await?.await?;
    }

    let mut at_least_once = Vec::new();
    let mut consumer = consumer(client, "at-least-once")?;
    at_least_once.extend(next(&mut consumer).await?);
    // First the work, then the offset.
    consumer.commit().await?;
    at_least_once.extend(next(&mut consumer).await?);
    // It dies here: the work on "b" is done, and not stored. Whoever comes next does it again.
    drop(consumer);
    at_least_once.extend(rest(client, "at-least-once", 2).await?);

    let mut at_most_once = Vec::new();
    let mut consumer = self::consumer(client, "at-most-once")?;
    at_most_once.extend(next(&mut consumer).await?);
    let lost = next(&mut consumer).await?;
    // First the offset, then the work.
    consumer.commit().await?;
    // It dies here: "b" is stored as processed, and nobody ever does the work.
    drop((consumer, lost));
    at_most_once.extend(rest(client, "at-most-once", 1).await?);
    Ok((at_least_once, at_most_once))
}

fn consumer(client: &Client, group: &str) -> Result<GroupConsumer> {
    let config = GroupConfig {
        // This example says itself what is stored when. With the default, a record is processed when the next is asked for, and that
        // is stored every second: at least once.
        auto_commit: None,
        ..GroupConfig::new(group, "letters")
    };
    Ok(client.group_consumer(config)?)
}

async fn next(consumer: &mut GroupConsumer) -> Result<Option<String>> {
    let Some(record) = consumer.next().await else {
        return Ok(None);
    };
    let value = record?.value.unwrap_or_default();
    Ok(Some(String::from_utf8(value.to_vec())?))
}

/// What a new member of the group still gets.
async fn rest(client: &Client, group: &str, count: usize) -> Result<Vec<String>> {
    let mut consumer = consumer(client, group)?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.extend(next(&mut consumer).await?);
    }
    consumer.close().await?;
    Ok(values)
}
