//! Members' sessions: a stream of what a member says, and one of what it is told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{Stream, stream};
use quipu_model::PartitionKey;
use quipu_proto::v1::{
    self, JoinGroup, JoinedGroup, ReleasePartitions, SessionHeartbeat, SessionRequest,
    SessionResponse, TopicPartitions, session_request::Request, session_response::Response,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::convert::invalid;
use crate::{
    core::Core,
    error::BrokerError,
    groups::{Assignment, Assignor, GroupError, GroupId, Join, MemberId, Notice, Session, Spec},
};

/// Answers that wait for a member to read them; one that reads none is read from no more.
const MOST_WAITING: usize = 16;

/// The answers to a member's requests, until it leaves, is put out or the coordinator ends.
pub(super) fn serve(
    core: Arc<Core>,
    requests: Streaming<SessionRequest>,
) -> impl Stream<Item = Result<SessionResponse, Status>> + Send + 'static {
    let (answers, receiver) = mpsc::channel(MOST_WAITING);
    tokio::spawn(async move {
        let mut member = Member {
            core,
            requests,
            answers,
        };
        if let Err(error) = member.run().await {
            let error = Response::Error(v1::Error::from(error));
            // Nobody may read it any more.
            let _ = member.answer(error).await;
        }
    });
    stream::unfold(receiver, |mut receiver| async {
        let response = receiver.recv().await?;
        Some((Ok(response), receiver))
    })
}

struct Member {
    core: Arc<Core>,
    requests: Streaming<SessionRequest>,
    answers: mpsc::Sender<SessionResponse>,
}

/// Nobody listens any more.
struct Gone;

impl Member {
    async fn run(&mut self) -> Result<(), BrokerError> {
        let Some(first) = self.next().await else {
            return Ok(());
        };
        let Request::Join(join) = first else {
            return Err(invalid("a session begins with a join"));
        };
        let group = GroupId::new(&join.group)?;
        let member = MemberId::new(&join.member_id)?;
        let mut session = self.core.open_session(&group, &member).await?;
        if self.join(&session, join).await?.is_err() {
            return Ok(());
        }
        loop {
            let stop = self.core.stop.clone();
            let told = tokio::select! {
                () = stop.cancelled() => return Err(BrokerError::shutting_down()),
                notice = session.notice() => match notice {
                    Some(Notice::Assigned(assignment)) => {
                        let assignment = self.assignment(assignment);
                        self.answer(Response::Assignment(assignment)).await
                    }
                    Some(Notice::Fenced(error)) => return Err(error.into()),
                    None => return Err(self.core.session_moved(&group).await),
                },
                request = self.next() => match request {
                    // Who goes without a word is given its time to come back.
                    None => return Ok(()),
                    Some(Request::Leave(_)) => {
                        let leaving = session.call(|coordinator, group, member, now, effects| {
                            coordinator.leave(now, group, member, effects)
                        });
                        return Ok(leaving.await??);
                    }
                    Some(request) => self.handle(&session, &group, request).await?,
                },
            };
            if told.is_err() {
                return Ok(());
            }
        }
    }

    /// The member's next request; none where it has gone.
    async fn next(&mut self) -> Option<Request> {
        loop {
            let message = self.requests.message().await.ok()??;
            // What a later version says is passed over.
            if let Some(request) = message.request {
                return Some(request);
            }
        }
    }

    async fn answer(&self, response: Response) -> Result<(), Gone> {
        let response = SessionResponse {
            response: Some(response),
        };
        self.answers.send(response).await.map_err(|_| Gone)
    }

    async fn handle(
        &self,
        session: &Session,
        group: &GroupId,
        request: Request,
    ) -> Result<Result<(), Gone>, BrokerError> {
        match request {
            Request::Join(join) if join.group != group.as_str() => {
                Err(invalid("a session is with one group"))
            }
            Request::Join(join) => self.join(session, join).await,
            Request::Heartbeat(SessionHeartbeat { number }) => {
                let heard = session.call(|coordinator, group, member, now, _| {
                    coordinator.heartbeat(now, group, member)
                });
                heard.await??;
                let heartbeat = SessionHeartbeat { number };
                Ok(self.answer(Response::Heartbeat(heartbeat)).await)
            }
            Request::Release(release) => {
                let partitions = self.released(&release);
                let epoch = release.epoch;
                let releasing = session.call(move |coordinator, group, member, now, effects| {
                    let member = (member, epoch);
                    coordinator.release(now, group, member, &partitions, effects)
                });
                releasing.await??;
                Ok(Ok(()))
            }
            Request::Leave(_) => Ok(Ok(())),
        }
    }

    async fn join(
        &self,
        session: &Session,
        join: JoinGroup,
    ) -> Result<Result<(), Gone>, BrokerError> {
        let join = Join {
            member: MemberId::new(&join.member_id)?,
            epoch: join.epoch,
            spec: spec(join)?,
        };
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let joined = JoinedGroup {
            heartbeat_interval_ms: milliseconds(join.spec.heartbeat_interval()),
            session_timeout_ms: milliseconds(join.spec.session_timeout),
        };
        let joining = session.call(move |coordinator, group, member, now, effects| {
            match *member == join.member {
                true => coordinator.join(now, group, join, effects),
                false => Err(GroupError::Invalid(
                    "a session is with one member".to_owned(),
                )),
            }
        });
        joining.await??;
        Ok(self.answer(Response::Joined(joined)).await)
    }

    /// Those partitions that are known; nobody waits for others.
    fn released(&self, release: &ReleasePartitions) -> Vec<PartitionKey> {
        let topics = release.topics.iter();
        let named = topics.flat_map(|topic| {
            let partitions = topic.partitions.iter();
            partitions.map(|partition| self.core.partition_key(&topic.topic, *partition))
        });
        named.filter_map(Result::ok).collect()
    }

    fn assignment(&self, assignment: Assignment) -> v1::Assignment {
        v1::Assignment {
            epoch: assignment.epoch,
            owned: by_topic(&self.core, &assignment.owned),
            revoking: by_topic(&self.core, &assignment.revoking),
        }
    }
}

/// Partitions by their topics' names. Those of topics that were deleted are left out.
pub(super) fn by_topic(core: &Core, partitions: &[PartitionKey]) -> Vec<TopicPartitions> {
    let mut topics = BTreeMap::<_, Vec<u32>>::new();
    for key in partitions {
        topics
            .entry(key.topic)
            .or_default()
            .push(key.partition.get());
    }
    let named = topics.into_iter().filter_map(|(topic, partitions)| {
        let name = core.topic_name(topic)?;
        Some(TopicPartitions {
            topic: name.to_string(),
            partitions,
        })
    });
    named.collect()
}

fn spec(join: JoinGroup) -> Result<Spec, BrokerError> {
    let some = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
    let time = |milliseconds: u32, default: Duration| match milliseconds {
        0 => default,
        milliseconds => Duration::from_millis(milliseconds.into()),
    };
    Ok(Spec {
        instance: some(join.instance_id),
        client: join.client_id.into(),
        client_host: "".into(),
        rack: join.rack.into(),
        topics: join.topics.into_iter().map(Into::into).collect(),
        pattern: some(join.pattern),
        assignor: match join.assignor.as_str() {
            "" => Assignor::default(),
            name => name.parse()?,
        },
        session_timeout: time(join.session_timeout_ms, Spec::DEFAULT_SESSION_TIMEOUT),
        rebalance_timeout: time(join.rebalance_timeout_ms, Spec::DEFAULT_REBALANCE_TIMEOUT),
    })
}
