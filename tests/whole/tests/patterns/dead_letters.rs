use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use quipu_client::{
    Client, DeadLetters, Failure, Letters, NewTopic, ProducerConfig, Record, Work, Worker,
    WorkerConfig, dead_letter_topic,
};
use tokio::{sync::mpsc, time::sleep};

/// Two invoices, of which one can't be read before the mistake in the program is mended. Gives back why it failed, and what was booked.
pub async fn run(client: &Client) -> Result<(String, Vec<String>)> {
    let admin = client.admin();
    admin
        .create_topic(NewTopic::new("invoices").partitions(2))
        .await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    for (customer, amount) in [("anna", "12 €"), ("bert", "7")] {
        let invoice = Record::new("invoices").key(customer.as_bytes());
        drop(producer.send(invoice.value(amount.as_bytes())).await?);
    }
    producer.close().await?;

    let (booked, mut bookings) = mpsc::unbounded_channel();
    let knows_euros = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&knows_euros);
    let config = WorkerConfig {
        // Two more attempts where a failure may pass; a permanent one is a dead letter at once.
        retry_delays: vec![Duration::from_secs(1), Duration::from_secs(10)],
        ..WorkerConfig::new("books", "invoices")
    };
    let worker = Worker::start(client, config, move |work: Arc<Work>| {
        let (booked, mended) = (booked.clone(), Arc::clone(&mended));
        async move {
            let amount = String::from_utf8_lossy(work.record.value.as_deref().unwrap_or_default());
            let amount = match mended.load(Ordering::Relaxed) {
                true => amount.trim_end_matches(" €"),
                false => &amount,
            };
            let amount: u64 = amount.parse().map_err(Failure::permanent)?;
            booked.send(amount.to_string())?;
            Ok(())
        }
    })
    .await?;
    let mut amounts: Vec<_> = bookings.recv().await.into_iter().collect();

    // What `quipu dlq list invoices --group books` shows.
    let letters = DeadLetters::new(client, dead_letter_topic("invoices", "books")?);
    let mut cause = None;
    while cause.is_none() {
        sleep(Duration::from_millis(50)).await;
        // Until the first dead letter, the topic is not there.
        let visit = |letter: quipu_client::DeadLetter| {
            cause = letter.trail.map(|trail| trail.cause);
            false
        };
        letters.read(&Letters::default(), visit).await.ok();
    }

    // And what `quipu dlq redrive invoices --group books` does, once the program is mended.
    knows_euros.store(true, Ordering::Relaxed);
    letters.redrive(&Letters::default()).await?;
    amounts.extend(bookings.recv().await);
    worker.close().await?;
    Ok((cause.unwrap_or_default(), amounts))
}
