use std::time::Duration;

use anyhow::Result;
use futures::future::try_join_all;
use quipu_client::{Client, NumberedProducer, ProducerId, Record, partition_for_key};
use tokio::time::sleep;
use tokio_postgres::{Client as Database, Row, Transaction};

/// The application's own tables, the outbox, and what the relay remembers of each partition.
pub const TABLES: &str = "
    CREATE TABLE customers (name text PRIMARY KEY, orders bigint NOT NULL DEFAULT 0);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer text NOT NULL, number bigint NOT NULL);

    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        key text NOT NULL,
        payload text NOT NULL,
        -- Where the row goes, and its number there: set before it is sent.
        partition integer,
        sequence bigint
    );
    CREATE TABLE outbox_relay (
        partition integer PRIMARY KEY,
        producer_id bigint NOT NULL,
        next_sequence bigint NOT NULL DEFAULT 0
    );";

/// Rows that are sent at a time: what they come to stays below the topic's `max.message.bytes`.
const ROWS: i64 = 500;
/// How long the relay waits where there is nothing to do.
const PAUSE: Duration = Duration::from_millis(20);

/// An order and its event: both become true with the transaction, or neither.
pub async fn place_order(transaction: &Transaction<'_>, id: i64, customer: &str) -> Result<()> {
    // This locks the customer until the transaction ends, so that his rows get their ids in the order in which they are
    // committed. What is to be in order is written so, or by one writer.
    let next = "UPDATE customers SET orders = orders + 1 WHERE name = $1 RETURNING orders";
    let number: i64 = transaction.query_one(next, &[&customer]).await?.get(0);
    let order = "INSERT INTO orders VALUES ($1, $2, $3)";
    transaction
        .execute(order, &[&id, &customer, &number])
        .await?;
    let event = "INSERT INTO outbox (key, payload) VALUES ($1, $2)";
    let payload = format!("{id} {number}");
    transaction.execute(event, &[&customer, &payload]).await?;
    Ok(())
}

/// Publishes each committed row of the outbox once, and those of one key in order. It ends only with an error: whoever runs it
/// starts it again, as after a kill. Several may run; they do the same then.
pub async fn relay(database: &mut Database, client: &Client, topic: &str) -> Result<()> {
    let producers = producers(database, client, topic).await?;
    loop {
        let rows = take(database, producers.len() as u32).await?;
        let batches = rows.chunk_by(|a, b| partition(a) == partition(b));
        try_join_all(batches.map(|batch| publish(&producers, topic, batch))).await?;
        match rows.is_empty() {
            true => sleep(PAUSE).await,
            false => {
                let ids: Vec<i64> = rows.iter().map(|row| row.get("id")).collect();
                let done = "DELETE FROM outbox WHERE id = ANY($1)";
                database.execute(done, &[&ids]).await?;
            }
        }
    }
}

/// One for each partition, the same after every start.
async fn producers(db: &Database, client: &Client, topic: &str) -> Result<Vec<NumberedProducer>> {
    let described = client.admin().describe_topic(topic).await?;
    let all = "SELECT partition, producer_id FROM outbox_relay ORDER BY partition";
    for partition in db.query(all, &[]).await?.len()..described.partitions.len() {
        let id = client.new_producer_id().await?.get();
        // Another relay may have been faster.
        let insert = "INSERT INTO outbox_relay VALUES ($1, $2) ON CONFLICT DO NOTHING";
        db.execute(insert, &[&(partition as i32), &id]).await?;
    }
    let rows = db.query(all, &[]).await?.into_iter();
    let producer = |row: Row| {
        let id = ProducerId::new(row.get("producer_id"));
        client.numbered_producer(topic, partition(&row) as u32, id)
    };
    Ok(rows.map(producer).collect())
}

/// What was numbered and may be on its way already, just as it was; where there is nothing such, the next rows, with numbers
/// that are stored before anything is sent.
async fn take(database: &mut Database, partitions: u32) -> Result<Vec<Row>> {
    let transaction = database.transaction().await?;
    // One relay numbers at a time.
    let lock = "SELECT next_sequence FROM outbox_relay ORDER BY partition FOR UPDATE";
    let next = transaction.query(lock, &[]).await?;
    let numbered = "SELECT * FROM outbox WHERE partition IS NOT NULL ORDER BY partition, sequence";
    let rows = transaction.query(numbered, &[]).await?;
    if !rows.is_empty() {
        return Ok(rows);
    }
    let new = "SELECT id, key FROM outbox ORDER BY id LIMIT $1";
    let new = transaction.query(new, &[&ROWS]).await?;
    if new.is_empty() {
        return Ok(new);
    }
    let mut next: Vec<i64> = next.iter().map(|row| row.get(0)).collect();
    let (mut ids, mut partitions_of, mut sequences) = (vec![], vec![], vec![]);
    for row in &new {
        let partition = partition_for_key(text(row, "key"), partitions);
        let next = &mut next[partition as usize];
        ids.push(row.get::<_, i64>("id"));
        partitions_of.push(partition as i32);
        sequences.push(*next);
        *next += 1;
    }
    let set = "UPDATE outbox SET partition = new.partition, sequence = new.sequence
        FROM unnest($1::bigint[], $2::integer[], $3::bigint[]) AS new (id, partition, sequence)
        WHERE outbox.id = new.id";
    transaction
        .execute(set, &[&ids, &partitions_of, &sequences])
        .await?;
    let count = "UPDATE outbox_relay SET next_sequence = next_sequence +
        (SELECT count(*) FROM outbox WHERE outbox.partition = outbox_relay.partition)";
    transaction.execute(count, &[]).await?;
    let rows = transaction.query(numbered, &[]).await?;
    transaction.commit().await?;
    Ok(rows)
}

/// Sends rows of one partition as one batch. Where the partition has them already, this changes nothing.
async fn publish(producers: &[NumberedProducer], topic: &str, rows: &[Row]) -> Result<()> {
    let record = |row| {
        let record = Record::new(topic).key(text(row, "key"));
        record.value(text(row, "payload"))
    };
    let records: Vec<_> = rows.iter().map(record).collect();
    let first: i64 = rows[0].get("sequence");
    let producer = &producers[partition(&rows[0]) as usize];
    producer.send(first as u64, &records).await?;
    Ok(())
}

fn text<'a>(row: &'a Row, column: &str) -> &'a [u8] {
    row.get::<_, &str>(column).as_bytes()
}

fn partition(row: &Row) -> i32 {
    row.get("partition")
}
