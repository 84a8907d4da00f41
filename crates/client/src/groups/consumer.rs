//! Reading as one of a group.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt};
use quipu_model::Offset;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    config::{GroupConfig, TopicPartition},
    driver::{Command, Driver, Event},
    progress::Progress,
};
use crate::{
    Consumer, ConsumerRecord, RecordChunk, Result, Start,
    cluster::Cluster,
    error::{Error, ErrorReason},
};

/// A member of a group: a [`Stream`] of the records of those partitions that it has at the time.
///
/// Each record is processed at least once by the group: a record counts as processed when the next one is asked for, and how far that
/// is gets stored every [`GroupConfig::auto_commit`], when a partition goes to another member, and by
/// [`GroupConsumer::close`]. After a crash, records since the last time are processed again.
///
/// Partitions come and go without those that stay being held up. Lost connections and other coordinators are no errors; one in
/// the stream concerns one partition, or says that the group cannot be joined, and is then the last item.
///
/// ```no_run
/// use futures::StreamExt;
/// use quipu_client::{Client, GroupConfig};
///
/// # async fn example() -> quipu_client::Result<()> {
/// let client = Client::connect("localhost:9093").await?;
/// let mut orders = client.group_consumer(GroupConfig::new("billing", "orders"))?;
/// while let Some(record) = orders.next().await {
///     let record = record?;
///     println!("{}/{}: {:?}", record.partition, record.offset, record.value);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GroupConsumer {
    consumer: Consumer,
    auto_commit: bool,
    progress: Arc<Progress>,
    events: mpsc::UnboundedReceiver<Event>,
    commands: mpsc::UnboundedSender<Command>,
    driver: Option<JoinHandle<()>>,
    /// What was handed out last, and the offset after it: processed once more is asked for.
    handed: Option<(TopicPartition, Offset)>,
    over: bool,
}

/// What whoever reads as one of a group has to know, in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Records of these follow.
    Begun(Vec<TopicPartition>),
    /// Nothing more of these comes. They are the member's until [`GroupConsumer::let_go`].
    Stopped(Vec<TopicPartition>),
    /// Nothing more of these comes: they may be another member's already.
    Lost(Vec<TopicPartition>),
    Records(RecordChunk),
}

impl GroupConsumer {
    /// In a topic that `earliest` names, a partition without a stored offset is read from its first record, whatever is configured.
    pub(crate) fn start(
        cluster: Arc<Cluster>,
        config: GroupConfig,
        earliest: HashSet<Arc<str>>,
    ) -> Result<Self> {
        config.check()?;
        let progress = Progress::new(Arc::clone(&cluster), config.group.clone());
        let progress = Arc::new(progress);
        let (event_sender, events) = mpsc::unbounded_channel();
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let consumer = Consumer::new(cluster, config.consumer.clone());
        let auto_commit = config.auto_commit.is_some();
        let driver = Driver::new(
            Arc::new(config),
            earliest,
            Arc::clone(&progress),
            event_sender,
            command_receiver,
        );
        Ok(Self {
            consumer,
            auto_commit,
            progress,
            events,
            commands,
            driver: Some(tokio::spawn(driver.run())),
            handed: None,
            over: false,
        })
    }

    /// The partitions that are read now.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.consumer.partitions().collect()
    }

    /// The member's name in the group at present.
    pub fn member_id(&self) -> String {
        self.progress.member().id
    }

    /// The offset of the next record of a partition that is handed out; `None` where it is not the member's.
    pub fn position(&self, topic: &str, partition: u32) -> Option<Offset> {
        self.consumer.position(topic, partition)
    }

    /// Stores how far all that was handed out reaches, the last record included.
    ///
    /// # Errors
    /// Where the coordinator refuses it, as it does for a partition that went to another member, or does not answer in time.
    pub async fn commit(&mut self) -> Result<()> {
        self.acknowledge();
        self.progress.store(None).await
    }

    /// Stores that a partition is processed up to this offset, which is that of the next record to process.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`].
    pub async fn commit_offset(&self, topic: &str, partition: u32, next: Offset) -> Result<()> {
        let offset = ((topic.into(), partition), next);
        self.progress.store_offsets(&[offset]).await
    }

    /// Of the batch that was handed out last, only what is before `next` counts as processed, and is stored by the next commit.
    pub fn stop_at(&mut self, topic: &str, partition: u32, next: Offset) {
        self.handed = Some(((topic.into(), partition), next));
    }

    /// Stops handing out records of a partition until [`GroupConsumer::resume`], or until it went to another member.
    ///
    /// # Errors
    /// Where it is not the member's.
    pub fn pause(&mut self, topic: &str, partition: u32) -> Result<()> {
        self.consumer.pause(topic, partition)
    }

    /// Hands out records of a partition again.
    ///
    /// # Errors
    /// Where it is not the member's.
    pub fn resume(&mut self, topic: &str, partition: u32) -> Result<()> {
        self.consumer.resume(topic, partition)
    }

    /// Goes on elsewhere in a partition. Where that is gets stored with the next record that is processed.
    ///
    /// # Errors
    /// Where it is not the member's, or its leader does not answer.
    pub async fn seek(&mut self, topic: &str, partition: u32, start: Start) -> Result<()> {
        self.acknowledge();
        self.consumer.seek(topic, partition, start).await
    }

    /// The records of the next batch; all of them count as processed when more is asked for. `None` once the group cannot be joined.
    ///
    /// Cancel safe.
    pub async fn next_batch(&mut self) -> Option<Result<RecordChunk>> {
        loop {
            match self.next_step().await? {
                Ok(Step::Records(chunk)) => return Some(Ok(chunk)),
                Ok(Step::Stopped(partitions)) => self.let_go(partitions),
                Ok(Step::Begun(_) | Step::Lost(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// What comes next. `None` once the group cannot be joined.
    ///
    /// Cancel safe.
    pub(crate) async fn next_step(&mut self) -> Option<Result<Step>> {
        self.ask();
        loop {
            if self.over {
                return None;
            }
            tokio::select! {
                biased;
                event = self.events.recv() => return self.take(event),
                chunk = self.consumer.next_batch(), if self.consumer.has_partitions() => match chunk {
                    Some(Ok(chunk)) => {
                        if let Some(last) = chunk.records.last() {
                            let partition = (Arc::clone(&chunk.topic), chunk.partition);
                            self.hand(partition, last.offset.plus(1));
                        }
                        return Some(Ok(Step::Records(chunk)));
                    }
                    Some(Err(error)) if is_passing(&error) => {}
                    Some(Err(error)) => return Some(Err(error)),
                    // All partitions are at an end: only another event changes that.
                    None => {
                        let event = self.events.recv().await;
                        return self.take(event);
                    }
                },
            }
        }
    }

    /// All that these partitions had to do with this member is done: they may go to another one.
    pub(crate) fn let_go(&self, partitions: Vec<TopicPartition>) {
        // The driver is gone: then so is the membership.
        let _ = self.commands.send(Command::LetGo(partitions));
    }

    /// Hands out nothing of a partition for now; what was received of it already is kept.
    pub(crate) fn hold(&mut self, topic: &str, partition: u32, held: bool) {
        self.consumer.hold(topic, partition, held);
    }

    /// Stores offsets, beside the reading. They are of the member as it is when this comes to be done.
    pub(crate) fn storing(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let progress = Arc::clone(&self.progress);
        async move { progress.store_offsets(&offsets).await }
    }

    /// Stores how far all that was handed out reaches and leaves the group; with an instance id, the place is kept for the
    /// session timeout.
    ///
    /// # Errors
    /// Where the offsets could not be stored: records since the last time are processed again. It has left all the same.
    pub async fn close(mut self) -> Result<()> {
        let stored = match self.auto_commit {
            true => self.commit().await,
            false => Ok(()),
        };
        // Where it is gone already, so is the member.
        let _ = self.commands.send(Command::Close);
        if let Some(driver) = self.driver.take() {
            let _ = driver.await;
        }
        stored
    }

    fn ask(&mut self) {
        self.acknowledge();
        self.progress.asks();
    }

    fn acknowledge(&mut self) {
        if let Some((partition, next)) = self.handed.take() {
            self.progress.processed(&partition, next);
        }
    }

    fn hand(&mut self, partition: TopicPartition, next: Offset) {
        self.handed = Some((partition, next));
        self.progress.handed();
    }

    /// Does what the driver says. An error is the last item of the stream.
    fn follow(&mut self, event: Option<Event>) -> Option<Error> {
        match self.take(event)? {
            Ok(Step::Stopped(partitions)) => self.let_go(partitions),
            Ok(_) => {}
            Err(error) => return Some(error),
        }
        None
    }

    fn take(&mut self, event: Option<Event>) -> Option<Result<Step>> {
        match event {
            Some(Event::Begin(begun)) => {
                let mut partitions = Vec::new();
                for (partition, offset) in begun {
                    let (topic, number) = &partition;
                    self.consumer.add(Arc::clone(topic), *number, offset);
                    partitions.push(partition);
                }
                Some(Ok(Step::Begun(partitions)))
            }
            Some(Event::Stop(partitions)) => {
                self.remove(&partitions);
                Some(Ok(Step::Stopped(partitions)))
            }
            Some(Event::Lost(partitions)) => {
                self.remove(&partitions);
                Some(Ok(Step::Lost(partitions)))
            }
            Some(Event::Failed(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None => {
                self.over = true;
                None
            }
        }
    }

    fn remove(&mut self, partitions: &[TopicPartition]) {
        for (topic, partition) in partitions {
            self.consumer.remove(topic, *partition);
        }
    }
}

/// Whether an error is of a partition whose topic was deleted: the coordinator takes it away.
fn is_passing(error: &Error) -> bool {
    error.is(ErrorReason::UnknownTopic) || error.is(ErrorReason::UnknownPartition)
}

impl Stream for GroupConsumer {
    type Item = Result<ConsumerRecord>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ask();
        while !self.over {
            match self.events.poll_recv(cx) {
                Poll::Ready(event) => {
                    if let Some(error) = self.follow(event) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    continue;
                }
                Poll::Pending => {}
            }
            match self.consumer.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(record))) => {
                    let partition = (Arc::clone(&record.topic), record.partition);
                    self.hand(partition, record.offset.plus(1));
                    return Poll::Ready(Some(Ok(record)));
                }
                Poll::Ready(Some(Err(error))) if is_passing(&error) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                // Without partitions, or at the end of all: an event changes that.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}
