//! Fetch.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use quipu_broker::{
    BrokerError,
    front::{Fetch, Fetched, Traffic},
};
use quipu_model::{Offset, PartitionId};
use tokio::time::{Instant, timeout_at};

use super::{broker_id, metadata::endpoints, name_of, partition};
use crate::{
    dispatch::{Client, Outcome},
    error::ErrorCode,
    session::{Asked, Plan, Sessions},
    wire::{
        Text, Uuid,
        messages::{
            fetch_request::FetchRequest,
            fetch_response::{
                FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint,
                PartitionData,
            },
        },
    },
};

/// From which version on topics are named by their ids.
const BY_ID_FROM: i16 = 13;
/// From which version on clients have sessions.
const SESSIONS_FROM: i16 = 7;
/// The most bytes of records in one response.
const MOST_BYTES: usize = 32 << 20;
/// The longest wait for records.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A partition that is asked for.
#[derive(Debug)]
struct Wanted {
    asked: Asked,
    topic: Text,
    /// The partition, where there can be one.
    place: Result<PartitionId, ErrorCode>,
}

/// What is had of it.
#[derive(Debug)]
enum Had {
    Batches(Fetched),
    Refused(ErrorCode, Option<BrokerError>),
}

pub(crate) async fn fetch(
    client: &Arc<Client>,
    request: FetchRequest,
    version: i16,
) -> Outcome<FetchResponse> {
    let deadline = {
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        Instant::now() + wait.min(LONGEST_WAIT)
    };
    let most = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(MOST_BYTES)
        .min(client.front.most_to_fetch(&client.name.lock()));
    let least = usize::try_from(request.min_bytes).unwrap_or(0).min(most);
    let plan = match version {
        SESSIONS_FROM.. => client.sessions.lock().plan(&request),
        _ => Ok(Plan {
            partitions: Asked::of(&request),
            session: 0,
            incremental: false,
        }),
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            return Outcome::Response(FetchResponse {
                error_code: error.code(),
                ..FetchResponse::default()
            });
        }
    };
    let (session_id, incremental) = (plan.session, plan.incremental);
    let wanted = wanted(client, plan.partitions, version);
    let had = read_until(client, &wanted, least, most, deadline).await;
    let bytes = had.iter().map(Had::len).sum();
    let response = FetchResponse {
        throttle_time_ms: client.charge(Traffic::Fetch, bytes),
        session_id,
        node_endpoints: node_endpoints(client, &had),
        responses: responses(&mut client.sessions.lock(), wanted, had, incremental),
        ..FetchResponse::default()
    };
    match client.front.hold_fetch(bytes).await {
        Ok(memory) => Outcome::Holding(response, memory),
        Err(_) => Outcome::Close,
    }
}

/// Finds the topics of what is asked for: those named by an id are looked up once each.
fn wanted(client: &Arc<Client>, partitions: Vec<Asked>, version: i16) -> Vec<Wanted> {
    let mut found: Option<(Uuid, Result<Text, ErrorCode>)> = None;
    let mut name = |asked: &Asked| match &found {
        _ if version < BY_ID_FROM => Ok(asked.topic.clone()),
        Some((id, name)) if *id == asked.id => name.clone(),
        _ => {
            let name = name_of(&client.front, &asked.id);
            found.insert((asked.id, name)).1.clone()
        }
    };
    let partitions = partitions.into_iter();
    partitions
        .map(|asked| {
            let name = name(&asked);
            Wanted {
                place: match &name {
                    Ok(_) => partition(asked.index),
                    Err(error) => Err(*error),
                },
                topic: name.unwrap_or_default(),
                asked,
            }
        })
        .collect()
}

/// Reads until there is enough, something is wrong, or the time is over.
async fn read_until(
    client: &Arc<Client>,
    wanted: &[Wanted],
    least: usize,
    most: usize,
    deadline: Instant,
) -> Vec<Had> {
    let stopping = client.front.stopping();
    tokio::pin!(stopping);
    loop {
        let had = read(client, wanted, most).await;
        let bytes: usize = had.iter().map(Had::len).sum();
        let wrong = had.iter().any(|had| matches!(had, Had::Refused(..)));
        if bytes >= least || wrong || Instant::now() >= deadline {
            return had;
        }
        let mut moves: FuturesUnordered<_> = wanted
            .iter()
            .zip(&had)
            .filter_map(|(wanted, had)| match (wanted.place, had) {
                (Ok(partition), Had::Batches(fetched)) => {
                    let seen = fetched.high_watermark;
                    Some(client.front.moved(&wanted.topic, partition, seen))
                }
                _ => None,
            })
            .collect();
        tokio::select! {
            // Where nothing can move, it is the deadline that ends the wait.
            Ok(Some(())) = timeout_at(deadline, moves.next()) => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = &mut stopping => return had,
        }
    }
}

/// Reads each partition once, in order, until the response is full.
async fn read(client: &Arc<Client>, wanted: &[Wanted], most: usize) -> Vec<Had> {
    let mut left = most;
    let mut had = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        // One batch comes whatever its size, but only the first one.
        let first = left == most;
        let mut read = read_one(client, wanted, left).await;
        if let Had::Batches(fetched) = &mut read {
            if fetched.batches.len() > left && !first {
                fetched.batches = Bytes::new();
            }
            left = left.saturating_sub(fetched.batches.len());
        }
        had.push(read);
    }
    had
}

async fn read_one(client: &Arc<Client>, wanted: &Wanted, left: usize) -> Had {
    let partition = match wanted.place {
        Ok(partition) => partition,
        Err(error) => return Had::Refused(error, None),
    };
    let Ok(offset) = u64::try_from(wanted.asked.offset) else {
        return Had::Refused(ErrorCode::OffsetOutOfRange, None);
    };
    let most = usize::try_from(wanted.asked.max_bytes).unwrap_or(0);
    let fetching = client.front.fetch(Fetch {
        topic: &wanted.topic,
        partition,
        offset: Offset::new(offset),
        max_bytes: most.min(left),
        min_bytes: 0,
        max_wait: Duration::ZERO,
    });
    match fetching.await {
        Ok(fetched) => match fenced(wanted.asked.epoch, fetched.leader_epoch.get()) {
            Some(error) => Had::Refused(error, None),
            None => Had::Batches(fetched),
        },
        Err(error) => Had::Refused(ErrorCode::from(&error), Some(error)),
    }
}

/// What to say to a client that believes in another epoch than this node knows of.
fn fenced(believed: i32, known: i32) -> Option<ErrorCode> {
    match believed {
        ..0 => None,
        _ if believed < known => Some(ErrorCode::FencedLeaderEpoch),
        _ if believed > known => Some(ErrorCode::UnknownLeaderEpoch),
        _ => None,
    }
}

impl Had {
    fn len(&self) -> usize {
        match self {
            Self::Batches(fetched) => fetched.batches.len(),
            Self::Refused(..) => 0,
        }
    }

    fn leader(&self) -> Option<i32> {
        match self {
            Self::Refused(_, Some(error)) => error.leader.as_ref().map(|node| broker_id(node.id)),
            _ => None,
        }
    }

    fn into_data(self, index: i32) -> PartitionData {
        let leader = self.leader();
        match self {
            Self::Batches(fetched) => PartitionData {
                partition_index: index,
                high_watermark: fetched.high_watermark.get() as i64,
                last_stable_offset: fetched.high_watermark.get() as i64,
                log_start_offset: fetched.log_start.get() as i64,
                aborted_transactions: None,
                records: Some(fetched.batches),
                ..PartitionData::default()
            },
            Self::Refused(code, _) => PartitionData {
                partition_index: index,
                error_code: code.code(),
                high_watermark: -1,
                current_leader: LeaderIdAndEpoch {
                    leader_id: leader.unwrap_or(-1),
                    ..LeaderIdAndEpoch::default()
                },
                aborted_transactions: None,
                records: Some(Bytes::new()),
                ..PartitionData::default()
            },
        }
    }
}

fn responses(
    sessions: &mut Sessions,
    wanted: Vec<Wanted>,
    had: Vec<Had>,
    incremental: bool,
) -> Vec<FetchableTopicResponse> {
    let mut responses: Vec<FetchableTopicResponse> = Vec::new();
    for (Wanted { asked, .. }, had) in wanted.into_iter().zip(had) {
        let has_records = had.len() > 0;
        let data = had.into_data(asked.index);
        // What went wrong is told each time.
        let news = data.error_code != 0
            || sessions.tell(
                &asked,
                (data.high_watermark, data.log_start_offset),
                has_records,
            );
        if incremental && !news {
            continue;
        }
        match responses.last_mut() {
            Some(last) if last.topic == asked.topic && last.topic_id == asked.id => {
                last.partitions.push(data);
            }
            _ => responses.push(FetchableTopicResponse {
                topic: asked.topic,
                topic_id: asked.id,
                partitions: vec![data],
            }),
        }
    }
    responses
}

/// Where the brokers are, if the client has to turn to another one.
fn node_endpoints(client: &Arc<Client>, had: &[Had]) -> Vec<NodeEndpoint> {
    if had.iter().all(|had| had.leader().is_none()) {
        return Vec::new();
    }
    let endpoints = endpoints(&client.front.cluster()).into_iter();
    endpoints
        .map(|endpoint| NodeEndpoint {
            node_id: endpoint.id,
            host: endpoint.host,
            port: endpoint.port,
            rack: endpoint.rack,
        })
        .collect()
}
