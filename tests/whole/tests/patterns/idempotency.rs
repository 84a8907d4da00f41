use std::sync::Arc;

use anyhow::Result;
use quipu_client::{
    Client, Envelope, NewTopic, Once, ProducerConfig, Record, Work, Worker, WorkerConfig,
    borrow_headers,
};
use tokio::sync::mpsc;

/// Two payments, of which one is sent twice. Gives back what was paid.
pub async fn run(client: &Client) -> Result<Vec<String>> {
    client
        .admin()
        .create_topic(NewTopic::new("payments").partitions(1))
        .await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    let first = Envelope::new("payment.ordered", "/shop");
    let second = Envelope::new("payment.ordered", "/shop");
    // Whoever sends a message again, because he does not know what became of it, sends the same id.
    for (envelope, amount) in [(&first, "5"), (&first, "5"), (&second, "7")] {
        let headers = envelope.to_headers()?;
        let headers = borrow_headers(&headers);
        let record = Record::new("payments").key(b"anna").headers(&headers);
        drop(producer.send(record.value(amount.as_bytes())).await?);
    }
    producer.close().await?;

    let (paid, mut payments) = mpsc::unbounded_channel();
    let pay = move |work: Arc<Work>| {
        let paid = paid.clone();
        async move {
            let amount = work.record.value.as_deref().unwrap_or_default();
            paid.send(String::from_utf8(amount.to_vec())?)?;
            Ok(())
        }
    };
    // It passes over what was handled already, as long as that is among the last million messages of this process.
    let once = Once::by_envelope(1_000_000, pay);
    let worker = Worker::start(client, WorkerConfig::new("bank", "payments"), once).await?;
    let mut amounts = Vec::new();
    while amounts.len() < 2
        && let Some(amount) = payments.recv().await
    {
        amounts.push(amount);
    }
    worker.close().await?;
    Ok(amounts)
}
