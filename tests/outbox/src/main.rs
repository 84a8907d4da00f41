//! The processes around an outbox: an application that orders, a relay that publishes, and a check of what came of it.
#![forbid(unsafe_code)]
#![allow(
    unreachable_pub,
    reason = "the example is as an application would have it"
)]

mod check;
mod outbox;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use check::Order;
use clap::{Parser, Subcommand};
use futures::{StreamExt, future::try_join_all};
use quipu_client::{Assignment, Client, ConsumerConfig, ConsumerRecord, End, NewTopic, Start};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client as Database, NoTls};

const TOPIC: &str = "orders";
const PARTITIONS: u32 = 3;
const CUSTOMERS: u32 = 20;
/// Transactions of the application at a time.
const SESSIONS: u64 = 4;
/// Of so many transactions one is rolled back.
const ROLLED_BACK: f64 = 0.15;
/// How long the relay may take to publish what is left.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// Faults printed at most.
const MOST_PRINTED: usize = 12;

#[derive(Debug, Parser)]
#[command(about)]
struct Args {
    /// The database, as libpq's connection strings say it
    #[arg(long)]
    database: String,
    /// Host and port of a broker
    #[arg(long, env = "QUIPU_BROKER")]
    broker: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates the tables and the topic
    Set,
    /// Orders until it is killed
    Order {
        /// What is ordered when
        #[arg(long)]
        seed: u64,
    },
    /// Publishes the outbox until it is killed
    Relay,
    /// Waits until the outbox is empty, and compares the topic with the orders
    Check,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quipu-outbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<bool> {
    match args.command {
        Command::Set => set(&args).await?,
        Command::Order { seed } => {
            try_join_all((0..SESSIONS).map(|n| order(&args, seed * SESSIONS + n))).await?;
        }
        Command::Relay => {
            let mut database = connect(&args).await?;
            outbox::relay(&mut database, &client(&args).await?, TOPIC).await?;
        }
        Command::Check => return check(&args).await,
    }
    Ok(true)
}

async fn connect(args: &Args) -> Result<Database> {
    let (database, connection) = tokio_postgres::connect(&args.database, NoTls).await?;
    // What becomes of it, the database's calls tell.
    tokio::spawn(connection);
    Ok(database)
}

async fn client(args: &Args) -> Result<Client> {
    Ok(Client::connect(args.broker.as_str()).await?)
}

async fn set(args: &Args) -> Result<()> {
    let database = connect(args).await?;
    database.batch_execute(outbox::TABLES).await?;
    for customer in 0..CUSTOMERS {
        let insert = "INSERT INTO customers VALUES ($1)";
        database.execute(insert, &[&name(customer)]).await?;
    }
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS);
    client(args).await?.admin().create_topic(topic).await?;
    Ok(())
}

fn name(customer: u32) -> String {
    format!("customer-{customer}")
}

/// One transaction after the other; some take their time, and some are rolled back.
async fn order(args: &Args, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut database = connect(args).await?;
    loop {
        let transaction = database.transaction().await?;
        let customer = name(rng.random_range(0..CUSTOMERS));
        // The seed is another one after each start: so are the ids.
        outbox::place_order(&transaction, rng.random(), &customer).await?;
        sleep(Duration::from_millis(rng.random_range(0..4))).await;
        match rng.random_bool(ROLLED_BACK) {
            true => transaction.rollback().await?,
            false => transaction.commit().await?,
        }
    }
}

async fn check(args: &Args) -> Result<bool> {
    let database = connect(args).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = database.query_one("SELECT count(*) FROM outbox", &[]);
        let left: i64 = left.await?.get(0);
        if left == 0 {
            break;
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{left} rows were never published"
        );
        sleep(POLL).await;
    }
    let orders = database.query("SELECT id, customer, number FROM orders", &[]);
    let orders = orders.await?.into_iter().map(|row| Order {
        id: row.get(0),
        customer: row.get(1),
        number: row.get(2),
    });
    let orders: Vec<Order> = orders.collect();
    let begun = database.query_one("SELECT last_value FROM outbox_id_seq", &[]);
    let begun: i64 = begun.await?.get(0);
    let partitions = events(&client(args).await?).await?;
    let faults = check::faults(&orders, &partitions);
    println!(
        "{} orders committed, {} given up; {} events published; {} faults",
        orders.len(),
        begun - orders.len() as i64,
        partitions.iter().map(Vec::len).sum::<usize>(),
        faults.len()
    );
    for fault in faults.iter().take(MOST_PRINTED) {
        println!("  {fault}");
    }
    Ok(faults.is_empty() && !orders.is_empty())
}

/// The topic's events, by partition.
async fn events(client: &Client) -> Result<Vec<Vec<Order>>> {
    let all =
        (0..PARTITIONS).map(|p| Assignment::new(TOPIC, p, Start::Earliest).until(End::Latest));
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(all).await?;
    let mut partitions = vec![Vec::new(); PARTITIONS as usize];
    while let Some(record) = consumer.next().await {
        let record = record?;
        partitions[record.partition as usize].push(event(&record)?);
    }
    Ok(partitions)
}

fn event(record: &ConsumerRecord) -> Result<Order> {
    let payload = str::from_utf8(record.value.as_deref().unwrap_or_default())?;
    let (id, number) = payload.split_once(' ').context("not an order's event")?;
    Ok(Order {
        id: id.parse()?,
        customer: String::from_utf8(record.key.clone().unwrap_or_default().to_vec())?,
        number: number.parse()?,
    })
}
