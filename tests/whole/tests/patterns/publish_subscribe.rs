use anyhow::Result;
use futures::StreamExt;
use quipu_client::{Client, GroupConfig, NewTopic, ProducerConfig, Record};

/// Three prices, and two subscribers that each hear all of them.
pub async fn run(client: &Client) -> Result<Vec<(&'static str, Vec<String>)>> {
    let admin = client.admin();
    admin
        .create_topic(NewTopic::new("prices").partitions(1))
        .await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    for price in ["10", "12", "11"] {
        let record = Record::new("prices").key(b"apples").value(price.as_bytes());
        drop(producer.send(record).await?);
    }
    producer.close().await?;

    let mut heard = Vec::new();
    // A group a subscriber: each has its own place in the topic. One that comes later, or comes back, still hears all that is kept.
    for subscriber in ["shop-window", "statistics"] {
        let mut consumer = client.group_consumer(GroupConfig::new(subscriber, "prices"))?;
        let mut prices = Vec::new();
        while prices.len() < 3
            && let Some(record) = consumer.next().await
        {
            let price = record?.value.unwrap_or_default();
            prices.push(String::from_utf8(price.to_vec())?);
        }
        consumer.close().await?;
        heard.push((subscriber, prices));
    }
    Ok(heard)
}
