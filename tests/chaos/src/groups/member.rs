//! One member of a group, on a runtime of its own, so that it can die as a process does.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use quipu_client::{
    Client, ClientConfig, ConsumerRecord, GroupConfig, GroupConsumer, RebalanceListener,
    TopicPartition,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::history::{History, Place};
use crate::{load::Shared, pulse::Pulses};

/// Before the next try to reach the cluster.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the rest of a runtime may take to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// What all members note.
#[derive(Debug)]
pub(crate) struct Notes {
    pub(crate) history: Mutex<History>,
    /// By group and partition: when records were processed.
    pub(crate) pulses: Mutex<Pulses>,
    pub(crate) load: Arc<Shared>,
}

/// What a member is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Process,
    /// Ask for no record for so long.
    Stall(Duration),
    Leave,
}

/// Who it is.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) group: u16,
    /// A number that no other member has or had.
    pub(crate) number: u32,
    pub(crate) notes: Arc<Notes>,
}

#[derive(Debug)]
pub(crate) struct Member {
    who: Who,
    runtime: Runtime,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Member {
    /// Starts a member, which reaches the cluster as soon as it can.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(crate) fn start(
        who: Who,
        client: ClientConfig,
        mut config: GroupConfig,
    ) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (wish, wishes) = watch::channel(Wish::Process);
        config.listener = Some(Arc::new(who.clone()));
        let task = runtime.spawn(live(who.clone(), client, config, wishes));
        Ok(Self {
            who,
            runtime,
            wish,
            task,
        })
    }

    /// Lets it ask for no record for so long.
    pub(crate) fn stall(&self, time: Duration) {
        self.wish.send_replace(Wish::Stall(time));
    }

    /// Lets it leave as one should, and waits for that.
    pub(crate) fn leave(self) {
        self.wish.send_replace(Wish::Leave);
        // A panic shows where the member's records are missing.
        let _ = self.runtime.block_on(self.task);
        self.runtime.shutdown_timeout(STOPPING);
        self.who.notes.history.lock().gone(self.who.number);
    }

    /// Ends it as a kill does: nobody is told.
    pub(crate) fn drop_dead(self) {
        self.runtime.shutdown_timeout(STOPPING);
        self.who.notes.history.lock().gone(self.who.number);
    }
}

impl Who {
    fn place(&self, partition: u32) -> Place {
        Place {
            group: self.group,
            partition,
        }
    }

    fn end(&self, partitions: &[TopicPartition]) {
        let mut history = self.notes.history.lock();
        for (_, partition) in partitions {
            history.end(self.place(*partition), self.number);
        }
    }

    fn process(&self, record: &ConsumerRecord) {
        let (partition, offset) = (record.partition, record.offset.get());
        let value = record.value.as_deref().unwrap_or_default();
        self.notes.load.read(partition, offset, value);
        let place = self.place(partition);
        let mut history = self.notes.history.lock();
        history.process(place, self.number, offset);
        drop(history);
        self.notes.pulses.lock().beat(self.group, partition);
    }
}

impl RebalanceListener for Who {
    fn assigned(&self, partitions: &[TopicPartition]) {
        let mut history = self.notes.history.lock();
        for (_, partition) in partitions {
            history.begin(self.place(*partition), self.number);
        }
    }

    fn revoked<'a>(&'a self, partitions: &'a [TopicPartition]) -> BoxFuture<'a, ()> {
        self.end(partitions);
        futures::future::ready(()).boxed()
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        self.end(partitions);
    }
}

async fn live(
    who: Who,
    client: ClientConfig,
    config: GroupConfig,
    mut wishes: watch::Receiver<Wish>,
) {
    loop {
        let joined = Client::connect(client.clone()).await;
        let joined = joined.and_then(|client| client.group_consumer(config.clone()));
        match joined {
            Ok(consumer) => {
                if attend(&who, consumer, &mut wishes).await {
                    return;
                }
            }
            Err(error) => who.notes.load.note(format!("a member: {error:#}")),
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            _ = wishes.wait_for(|wish| *wish == Wish::Leave) => return,
        }
    }
}

/// Processes until it is to leave, or is no member any more; which of them.
async fn attend(
    who: &Who,
    mut consumer: GroupConsumer,
    wishes: &mut watch::Receiver<Wish>,
) -> bool {
    loop {
        let wish = *wishes.borrow_and_update();
        match wish {
            Wish::Process => {}
            Wish::Stall(time) => sleep(time).await,
            Wish::Leave => {
                if let Err(error) = consumer.close().await {
                    let note = format!("a member that leaves: {error:#}");
                    who.notes.load.note(note);
                }
                return true;
            }
        }
        if !process(who, &mut consumer, wishes).await {
            return false;
        }
    }
}

/// Processes until something else is wished, or the consumer is at its end; whether the former.
async fn process(
    who: &Who,
    consumer: &mut GroupConsumer,
    wishes: &mut watch::Receiver<Wish>,
) -> bool {
    loop {
        tokio::select! {
            biased;
            _ = wishes.changed() => return true,
            record = consumer.next() => match record {
                Some(Ok(record)) => who.process(&record),
                Some(Err(error)) => who.notes.load.note(format!("a member: {error:#}")),
                None => return false,
            },
        }
    }
}
