use std::collections::BTreeMap;

use anyhow::Result;
use futures::StreamExt;
use quipu_client::{
    Assignment, Client, ConsumerConfig, End, NewTopic, Producer, ProducerConfig, Record, Start,
};

/// What is known of all accounts: nothing but what the events came to.
type Balances = BTreeMap<String, i64>;

/// Three events, the balances they come to, and the same again from nothing.
pub async fn run(client: &Client) -> Result<(Balances, Balances)> {
    let topic = NewTopic {
        // The events are the truth: they are kept for ever.
        config: [("retention.ms".to_owned(), "-1".to_owned())].into(),
        ..NewTopic::new("accounts").partitions(3)
    };
    client.admin().create_topic(topic).await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    append(&producer, "anna", 100).await?;
    append(&producer, "bert", 50).await?;
    append(&producer, "anna", -30).await?;

    let balances = replay(client).await?;
    // The projection is lost, or counts something else from now on: it is made anew.
    let again = replay(client).await?;
    Ok((balances, again))
}

/// An event is true once it is acknowledged. Those of one account have its key, and are in order.
async fn append(producer: &Producer, account: &str, change: i64) -> Result<()> {
    let change = change.to_string();
    let event = Record::new("accounts").key(account.as_bytes());
    producer.send(event.value(change.as_bytes())).await?.await?;
    Ok(())
}

/// All events, from the first to the last that there is now.
async fn replay(client: &Client) -> Result<Balances> {
    let described = client.admin().describe_topic("accounts").await?;
    let partitions = (0..).take(described.partitions.len());
    let all =
        partitions.map(|p| Assignment::new("accounts", p, Start::Earliest).until(End::Latest));
    let mut events = client.consumer(ConsumerConfig::default());
    events.assign(all).await?;
    let mut balances = Balances::new();
    while let Some(event) = events.next().await {
        let event = event?;
        let account = String::from_utf8(event.key.unwrap_or_default().to_vec())?;
        let change: i64 = str::from_utf8(event.value.as_deref().unwrap_or_default())?.parse()?;
        *balances.entry(account).or_default() += change;
    }
    Ok(balances)
}
