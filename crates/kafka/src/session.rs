//! Fetch sessions: a client that asks again and again says only what changed, and is told only what did.
//!
//! A session lives with its connection: a client that comes back over another one is told that the session is gone, and begins
//! a new one.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use crate::{
    error::ErrorCode,
    wire::{Text, Uuid, messages::fetch_request::FetchRequest},
};

/// The most partitions that a session keeps; a client that asks for more is given none.
const MOST_PARTITIONS: usize = 10_000;
/// The epoch of a request that ends its session, or never had one.
const FINAL: i32 = -1;
/// The epoch of a request that begins a session.
const INITIAL: i32 = 0;

/// A partition as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Empty where the topic is named by its id.
    pub(crate) topic: Text,
    pub(crate) id: Uuid,
    pub(crate) index: i32,
    pub(crate) offset: i64,
    pub(crate) max_bytes: i32,
    /// The epoch that the client believes in; -1: none.
    pub(crate) epoch: i32,
}

/// What names a partition.
type Key = (Text, Uuid, i32);

impl Asked {
    fn key(&self) -> Key {
        (self.topic.clone(), self.id, self.index)
    }

    /// The partitions of a request.
    pub(crate) fn of(request: &FetchRequest) -> Vec<Self> {
        let topics = request.topics.iter();
        topics
            .flat_map(|topic| {
                topic.partitions.iter().map(|partition| Self {
                    topic: topic.topic.clone(),
                    id: topic.topic_id,
                    index: partition.partition,
                    offset: partition.fetch_offset,
                    max_bytes: partition.partition_max_bytes,
                    epoch: partition.current_leader_epoch,
                })
            })
            .collect()
    }
}

/// High watermark and log start, as the client was told.
type Told = (i64, i64);

/// The sessions of a connection: one at a time.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The id of the last session; 0: there was none.
    last_id: i32,
    open: Option<Session>,
}

#[derive(Debug)]
struct Session {
    /// The epoch of the next request.
    next_epoch: i32,
    partitions: BTreeMap<Key, (Asked, Option<Told>)>,
    /// The last partition that had records: the next answer begins behind it, so that each has its turn.
    last_served: Option<Key>,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) partitions: Vec<Asked>,
    /// The session's id; 0: none.
    pub(crate) session: i32,
    /// Whether to leave out what the client knows.
    pub(crate) incremental: bool,
}

impl Sessions {
    /// What a request asks for, with what its session knows.
    ///
    /// # Errors
    /// Where the session is not open, or this is not its next request.
    pub(crate) fn plan(&mut self, request: &FetchRequest) -> Result<Plan, ErrorCode> {
        match request.session_epoch {
            FINAL => {
                self.open = None;
                Ok(Plan {
                    partitions: Asked::of(request),
                    session: 0,
                    incremental: false,
                })
            }
            INITIAL => Ok(self.begin(Asked::of(request))),
            epoch => self.go_on(request, epoch),
        }
    }

    fn begin(&mut self, partitions: Vec<Asked>) -> Plan {
        self.open = None;
        if partitions.is_empty() || partitions.len() > MOST_PARTITIONS {
            return Plan {
                partitions,
                session: 0,
                incremental: false,
            };
        }
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let known = partitions
            .iter()
            .map(|asked| (asked.key(), (asked.clone(), None)));
        self.open = Some(Session {
            next_epoch: 1,
            partitions: known.collect(),
            last_served: None,
        });
        Plan {
            partitions,
            session: self.last_id,
            incremental: false,
        }
    }

    fn go_on(&mut self, request: &FetchRequest, epoch: i32) -> Result<Plan, ErrorCode> {
        let session = self.open.as_mut();
        let session = session.filter(|_| request.session_id == self.last_id);
        let session = session.ok_or(ErrorCode::FetchSessionIdNotFound)?;
        if epoch != session.next_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        session.next_epoch = epoch.checked_add(1).unwrap_or(1);
        for topic in &request.forgotten_topics_data {
            for index in &topic.partitions {
                let key = (topic.topic.clone(), topic.topic_id, *index);
                session.partitions.remove(&key);
            }
        }
        for asked in Asked::of(request) {
            session.partitions.insert(asked.key(), (asked, None));
        }
        if session.partitions.len() > MOST_PARTITIONS {
            self.open = None;
            return Err(ErrorCode::FetchSessionIdNotFound);
        }
        Ok(Plan {
            partitions: session.in_turn(),
            session: self.last_id,
            incremental: true,
        })
    }

    /// Notes what a client is told of a partition; `false` where it knows that already.
    pub(crate) fn tell(&mut self, asked: &Asked, now: Told, has_records: bool) -> bool {
        let Some(session) = &mut self.open else {
            return true;
        };
        let key = asked.key();
        let Some((_, told)) = session.partitions.get_mut(&key) else {
            return true;
        };
        let news = told.replace(now) != Some(now);
        if has_records {
            session.last_served = Some(key);
        }
        news || has_records
    }
}

impl Session {
    fn in_turn(&self) -> Vec<Asked> {
        let all = |(asked, _): &(Asked, Option<Told>)| asked.clone();
        match &self.last_served {
            None => self.partitions.values().map(all).collect(),
            Some(last) => {
                let behind = self.partitions.range((Excluded(last), Unbounded));
                let before = self.partitions.range(..=last);
                behind.chain(before).map(|(_, known)| all(known)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sessions;
    use crate::{
        error::ErrorCode,
        wire::messages::fetch_request::{FetchPartition, FetchRequest, FetchTopic, ForgottenTopic},
    };

    fn request(session_id: i32, session_epoch: i32, partitions: &[(i32, i64)]) -> FetchRequest {
        let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
            partition: *partition,
            fetch_offset: *fetch_offset,
            ..FetchPartition::default()
        };
        let topic = FetchTopic {
            topic: "a".into(),
            partitions: partitions.iter().map(partition).collect(),
            ..FetchTopic::default()
        };
        FetchRequest {
            session_id,
            session_epoch,
            topics: if partitions.is_empty() {
                Vec::new()
            } else {
                vec![topic]
            },
            ..FetchRequest::default()
        }
    }

    fn places(sessions: &mut Sessions, request: &FetchRequest) -> Vec<(i32, i64)> {
        let plan = sessions.plan(request).unwrap();
        let places = plan.partitions.iter();
        places.map(|asked| (asked.index, asked.offset)).collect()
    }

    #[test]
    fn a_session_remembers_what_was_asked_for() {
        let mut sessions = Sessions::default();
        let begun = sessions.plan(&request(0, 0, &[(0, 5), (1, 6)])).unwrap();
        assert_eq!((begun.session, begun.incremental), (1, false));
        assert_eq!(places(&mut sessions, &request(1, 1, &[])), [(0, 5), (1, 6)]);
        assert_eq!(
            places(&mut sessions, &request(1, 2, &[(1, 9)])),
            [(0, 5), (1, 9)]
        );
        let mut forgets = request(1, 3, &[]);
        forgets.forgotten_topics_data = vec![ForgottenTopic {
            topic: "a".into(),
            partitions: vec![0],
            ..ForgottenTopic::default()
        }];
        assert_eq!(places(&mut sessions, &forgets), [(1, 9)]);
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let mut sessions = Sessions::default();
        let unknown = sessions.plan(&request(7, 1, &[]));
        assert_eq!(unknown, Err(ErrorCode::FetchSessionIdNotFound));
        sessions.plan(&request(0, 0, &[(0, 0)])).unwrap();
        let skipped = sessions.plan(&request(1, 2, &[]));
        assert_eq!(skipped, Err(ErrorCode::InvalidFetchSessionEpoch));
        // A request without a session ends it.
        assert_eq!(
            sessions.plan(&request(1, -1, &[(0, 0)])).unwrap().session,
            0
        );
        assert!(sessions.plan(&request(1, 1, &[])).is_err());
    }

    #[test]
    fn only_news_is_told_and_each_partition_has_its_turn() {
        let mut sessions = Sessions::default();
        let begun = sessions
            .plan(&request(0, 0, &[(0, 0), (1, 0), (2, 0)]))
            .unwrap();
        assert!(sessions.tell(&begun.partitions[1], (3, 0), true));
        assert!(!sessions.tell(&begun.partitions[1], (3, 0), false));
        assert!(sessions.tell(&begun.partitions[1], (4, 0), false));
        let next = places(&mut sessions, &request(1, 1, &[]));
        assert_eq!(next, [(2, 0), (0, 0), (1, 0)]);
    }
}
