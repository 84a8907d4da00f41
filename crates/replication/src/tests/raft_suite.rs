//! openraft's own suite for log stores and state machines.

use std::{io, sync::Arc};

use openraft::{
    OptionalSend, StorageError,
    alias::{LogIdOf, VoteOf},
    entry::RaftEntry as _,
    storage::{IOFlushed, LogState, RaftLogStorage},
    testing::log::{StoreBuilder, Suite},
};
use quipu_model::TopicConfig;
use quipu_storage::{Store, io::FaultyDisk};

use super::{NODE, key, open};
use crate::{
    group::Group,
    log_store::{LogReader, LogStore},
    state_machine::StateMachine,
    type_config::{Membership, RaftEntry, RaftLogId, Types},
};

/// The suite begins some logs in their middle. Ours begin at index 0, so that a gap at the front is noticed: here it is
/// filled.
struct Filling(LogStore);

impl RaftLogStorage<Types> for Filling {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        self.0.get_log_state().await
    }
    async fn get_log_reader(&mut self) -> LogReader {
        self.0.get_log_reader().await
    }
    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.0.save_vote(vote).await
    }
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<RaftEntry> = entries.into_iter().collect();
        let last = self.get_log_state().await?.last_log_id;
        let mut filled = Vec::new();
        if let (None, Some(first)) = (last, entries.first()) {
            filled.extend(
                (0..first.index())
                    .map(|index| RaftEntry::new_blank(RaftLogId::new(0.into(), index))),
            );
        }
        filled.extend(entries);
        self.0.append(filled, callback).await
    }
    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        self.0.truncate_after(last).await
    }
    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        self.0.purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<Types, Filling, StateMachine, Arc<Store>> for Builder {
    async fn build(&self) -> Result<(Arc<Store>, Filling, StateMachine), StorageError<Types>> {
        let store = open(Arc::new(FaultyDisk::new(1)));
        let log = store
            .create_partition(key(), TopicConfig::default())
            .unwrap();
        let group = Group::load(NODE, Arc::clone(&store), log).unwrap();
        let log_store = LogStore::new(Arc::clone(&group), &Membership::default());
        Ok((store, Filling(log_store), StateMachine::new(group)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
