//! Working through a group's records: several at a time, in order where it matters, and never stopped by one that fails.

mod attempt;
mod breaker;
mod config;
mod names;
mod router;
mod run;
mod schedule;
mod subscription;
mod trail;
mod work;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::{sync::oneshot, task::JoinHandle};

pub use self::{
    breaker::BreakerConfig,
    config::{Order, WorkerConfig, exponential_delays},
    names::dead_letter_topic,
    trail::Trail,
    work::{Failure, Handler, Work},
};
pub(crate) use self::{
    names::delay_topic,
    router::{Destination, Parcel, Stores},
    subscription::Subscription,
    trail::{deliver_at, delivered_at, due, due_at, is_value_left, redriven},
};
use self::{router::Router, run::Run};
use crate::{Client, Result, error::Error};

/// A handler, whatever its type.
type Handle = Arc<dyn Fn(Arc<Work>) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Works through the records of a group's topics, with a handler of the application's.
///
/// Up to [`WorkerConfig::concurrency`] records are worked on at a time; those of one key one after the other. A record that fails is in
/// nobody's way: it is stored in a retry topic of the group (`orders.billing.retry.5s`), from which it is taken again after its delay,
/// and after the last attempt, or at once where the failure is permanent, in the dead-letter topic (`orders.billing.dead`), for
/// `quipu dlq` and [`DeadLetters`](crate::DeadLetters). These topics are made when the first record needs them. A record that is tried
/// again comes after those of its key that came behind it in the meantime, and may be worked on beside one of them.
///
/// Every record is worked on at least once: the group's offset moves past it only when it, and everything before it, is processed, or
/// is acknowledged where it waits for its next attempt. A handler that panics or takes too long has failed once. After a run of
/// transient failures the worker stops for a while and then tries one record at a time ([`BreakerConfig`]).
///
/// ```no_run
/// use std::sync::Arc;
/// use quipu_client::{Client, Failure, Work, Worker, WorkerConfig};
///
/// # async fn example() -> quipu_client::Result<()> {
/// let client = Client::connect("localhost:9093").await?;
/// let config = WorkerConfig::new("billing", "orders");
/// let worker = Worker::start(&client, config, |work: Arc<Work>| async move {
///     let order = str::from_utf8(work.record.value.as_deref().unwrap_or_default())
///         .map_err(Failure::permanent)?;
///     println!("attempt {} at {order}", work.attempt);
///     Ok(())
/// })
/// .await?;
/// tokio::time::sleep(std::time::Duration::from_secs(60)).await;
/// worker.close().await
/// # }
/// ```
///
/// A worker that is dropped stops at once, as in a crash.
#[derive(Debug)]
pub struct Worker {
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
}

impl Worker {
    /// Begins to work. The group is joined in the background.
    ///
    /// # Errors
    /// Where the configuration is out of bounds, a topic's name and the group's are too long to make one of, or no broker hands out an
    /// identity for the producer.
    pub async fn start(
        client: &Client,
        config: WorkerConfig,
        handler: impl Handler,
    ) -> Result<Self> {
        config.check()?;
        let subscription = Subscription::with_retries(&config)?;
        Self::start_on(client, config, subscription, handler).await
    }

    /// Begins to work on these topics.
    pub(crate) async fn start_on(
        client: &Client,
        mut config: WorkerConfig,
        subscription: Subscription,
        handler: impl Handler,
    ) -> Result<Self> {
        config.check()?;
        let producer = client.producer(config.producer.clone()).await?;
        let router = Router {
            stores: Stores::new(client.admin(), producer),
            group: config.group.group.clone(),
            retry_delays: config.retry_delays.clone(),
        };
        config.group.topics = subscription.topics();
        config.group.auto_commit = None;
        let earliest = subscription.waiting_topics();
        let consumer = client.group_consumer_from(config.group.clone(), earliest)?;
        let handler = Arc::new(handler);
        let handle: Handle = Arc::new(move |work| {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler.handle(work).await })
        });
        let (close, closed) = oneshot::channel();
        let run = Run::new(config, subscription, consumer, router, handle);
        Ok(Self {
            close: Some(close),
            task: tokio::spawn(run.run(closed)),
        })
    }

    /// Waits until it ends without being asked to: the group cannot be joined, or a partition cannot be read.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<()> {
        ended((&mut self.task).await)
    }

    /// Takes no more records, waits for those that are being worked on, stores how far they reach, and leaves the group.
    ///
    /// # Errors
    /// Where it had ended before, or how far it got could not be stored: records since the last time are worked on again.
    pub async fn close(mut self) -> Result<()> {
        if let Some(close) = self.close.take() {
            // Where it has ended already, the task says why.
            let _ = close.send(());
        }
        ended((&mut self.task).await)
    }
}

fn ended(joined: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    joined.unwrap_or_else(|error| {
        Err(Error::unreachable(format_args!(
            "the worker's task was ended: {error}"
        )))
    })
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
