//! Finding out who leads: from whichever brokers answer, without waiting for those that do not.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use quipu_model::LeaderEpoch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    backoff::backoff,
    cluster::{Cluster, ELECTION, FIRST_PAUSE, LAST_PAUSE, may_be_repeated},
    error::{Error, Reason, Result},
    topics::{Led, NO_EPOCH, TopicView},
};

/// How long after one broker the next is asked, if that one has not answered.
const STAGGER: Duration = Duration::from_millis(25);
/// How long others may take once one has answered, where its answer is not enough.
const GRACE: Duration = Duration::from_millis(250);
/// What was learnt so recently is not asked again by the next who wants to know whether something changed.
const RECENT: Duration = Duration::from_millis(50);
/// How long a leader may be silent before others are asked about it. A healthy one answers in a small part of that.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// Others are asked again after an eighth of the time for which they were asked already, within these.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The wait before asking again what has been asked since then.
fn pause(since: Instant) -> Duration {
    let full = (since.elapsed() / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

impl Cluster {
    /// The number of a topic's partitions.
    pub(crate) async fn partition_count(&self, topic: &str) -> Result<u32> {
        let mut topics = self.topics.lock().await;
        let view = self.view(&mut topics, topic, None, None, |_| true).await?;
        // The broker numbers partitions with 32 bits.
        Ok(view.partitions() as u32)
    }

    /// A partition's leader, from what was learnt after `not_before` (or whenever it was).
    async fn leader(
        &self,
        topic: &str,
        partition: u32,
        not_before: Option<Instant>,
    ) -> Result<Led> {
        let mut topics = self.topics.lock().await;
        let enough = |view: &TopicView| view.leader(partition).is_some();
        let view = self.view(&mut topics, topic, not_before, None, enough);
        let view = view.await?;
        if partition as usize >= view.partitions() {
            return Err(Error::invalid(format_args!(
                "topic {topic:?} has no partition {partition}: it has {}",
                view.partitions()
            )));
        }
        view.leader(partition).ok_or_else(|| {
            Error::unreachable(format_args!(
                "partition {partition} of topic {topic:?} has no leader at this moment"
            ))
        })
    }

    /// Like [`Cluster::leader`]; where nobody leads, waits for an election.
    pub(crate) async fn await_leader(
        &self,
        topic: &str,
        partition: u32,
        mut not_before: Option<Instant>,
    ) -> Result<Led> {
        let began = Instant::now();
        loop {
            let error = match self.leader(topic, partition, not_before).await {
                Err(error) if error.reason() == Reason::Unreachable => error,
                result => return result,
            };
            if began.elapsed() > ELECTION {
                return Err(error);
            }
            sleep(pause(began)).await;
            not_before = Instant::now().checked_sub(RECENT);
        }
    }

    /// Waits until another node is known to lead a partition in a newer epoch than `than`. The node at `silent`, which did not
    /// answer, is not asked.
    pub(crate) async fn await_newer_leader(
        &self,
        topic: &str,
        partition: u32,
        silent: &str,
        than: LeaderEpoch,
    ) -> Led {
        let is_newer = |led: &Led| led.epoch > than && &*led.address != silent;
        let enough = |view: &TopicView| view.leader(partition).is_some_and(|led| is_newer(&led));
        let began = Instant::now();
        loop {
            let not_before = Instant::now().checked_sub(RECENT);
            let found = {
                let mut topics = self.topics.lock().await;
                let view = self.view(&mut topics, topic, not_before, Some(silent), enough);
                view.await.ok().and_then(|view| view.leader(partition))
            };
            if let Some(led) = found.filter(is_newer) {
                return led;
            }
            sleep(pause(began)).await;
        }
    }

    /// The newest epoch heard of.
    pub(crate) async fn known_epoch(&self, topic: &str, partition: u32) -> LeaderEpoch {
        let topics = self.topics.lock().await;
        let view = topics.get(topic);
        view.map_or(NO_EPOCH, |view| view.epoch(partition))
    }

    /// Whom to read a partition from: its leader, or, where nobody leads, one of the brokers after the other: each replica
    /// serves what it knows to be committed.
    pub(crate) async fn reader(
        &self,
        topic: &str,
        partition: u32,
        not_before: Option<Instant>,
        attempt: u32,
    ) -> Result<Box<str>> {
        match self.leader(topic, partition, not_before).await {
            Ok(led) => Ok(led.address),
            Err(error) if error.reason() == Reason::Unreachable => {
                let brokers = self.brokers();
                let any = brokers.get(attempt as usize % brokers.len().max(1));
                any.map(|broker| broker.as_str().into()).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets what is known of a topic.
    pub(crate) async fn forget(&self, topic: &str) {
        self.topics.lock().await.remove(topic);
    }

    /// The map stays locked while brokers are asked: whoever else wants a view then finds it fresh.
    async fn view<'a>(
        &self,
        topics: &'a mut HashMap<Box<str>, TopicView>,
        topic: &str,
        not_before: Option<Instant>,
        silent: Option<&str>,
        enough: impl Fn(&TopicView) -> bool,
    ) -> Result<&'a TopicView> {
        let known = topics.get(topic);
        let fresh =
            known.is_some_and(|view| not_before.is_none_or(|instant| view.fetched_at >= instant));
        if !fresh {
            // Who tells less than is known already is not enough.
            let current = |mut view: TopicView| {
                if let Some(known) = known {
                    view.forget_replaced(known);
                }
                view
            };
            let view = self.survey_again(topic, silent, current, enough).await?;
            self.learn(view.leaders());
            topics.insert(topic.into(), view);
        }
        topics
            .get(topic)
            .ok_or_else(|| Error::malformed("a topic's description is gone"))
    }

    /// While all say that they cannot tell yet, asks again.
    async fn survey_again(
        &self,
        topic: &str,
        silent: Option<&str>,
        current: impl Fn(TopicView) -> TopicView,
        enough: impl Fn(&TopicView) -> bool,
    ) -> Result<TopicView> {
        let give_up_at = Instant::now() + ELECTION;
        let mut attempt = 0;
        loop {
            let error = match self.survey(topic, silent, &current, &enough).await {
                Ok(view) => return Ok(view),
                Err(error) => error,
            };
            attempt += 1;
            let wait = backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
            let unreachable = error.reason() == Reason::Unreachable;
            if unreachable || !may_be_repeated(&error) || Instant::now() + wait > give_up_at {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    /// Asks one broker, soon another, until what they told is enough or all had time to answer.
    async fn survey(
        &self,
        topic: &str,
        silent: Option<&str>,
        current: impl Fn(TopicView) -> TopicView,
        enough: impl Fn(&TopicView) -> bool,
    ) -> Result<TopicView> {
        let mut to_ask: VecDeque<_> = self.in_turn().into();
        to_ask.retain(|(_, address)| Some(address.as_str()) != silent);
        let mut asked = FuturesUnordered::new();
        let mut best: Option<TopicView> = None;
        let mut last = Error::unreachable("no other broker is known");
        let (mut next_at, mut give_up_at) = (Instant::now(), None);
        loop {
            if Instant::now() >= next_at
                && let Some((place, address)) = to_ask.pop_front()
            {
                let fetched_at = Instant::now();
                asked.push(async move {
                    let told = self.describe_at(&address, topic).await;
                    (place, told.map(|told| TopicView::new(fetched_at, told)))
                });
                next_at = Instant::now() + STAGGER;
            }
            let over = to_ask.is_empty().then_some(give_up_at).flatten();
            tokio::select! {
                Some((place, told)) = asked.next() => {
                    // Whatever is wanted, the next one may know it.
                    next_at = Instant::now();
                    match told.map(&current) {
                        Ok(view) => {
                            give_up_at.get_or_insert(next_at + GRACE);
                            match &mut best {
                                Some(best) => best.merge(view),
                                None => best = Some(view),
                            }
                            if best.as_ref().is_some_and(&enough) {
                                self.ask_first(place);
                                break;
                            }
                        }
                        Err(error) if error.is_retryable() || best.is_some() => last = error,
                        Err(error) => return Err(error),
                    }
                }
                () = sleep_until(next_at), if !to_ask.is_empty() => {}
                () = sleep_until(over.unwrap_or(next_at)), if over.is_some() => break,
                else => break,
            }
        }
        best.ok_or(last)
    }
}
