//! Reaching the node that coordinates a group.

use std::{future::Future, time::Duration};

use quipu_proto::v1::FindCoordinatorRequest;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{
    Result,
    backoff::backoff,
    cluster::{Cluster, FIRST_PAUSE, LAST_PAUSE, groups_client},
    error::{Error, node_address},
};

/// For how long a group between two coordinators is asked again: longer than any election and the loading after it.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Asks the coordinator of a group, the one that is known if one is, and the next one where it is another by now. What is asked may be
/// repeated: it does the same however often it is done.
pub(super) async fn call<T, F>(
    cluster: &Cluster,
    group: &str,
    known: Option<Box<str>>,
    call: impl Fn(Channel) -> F,
) -> Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let give_up_at = Instant::now() + PATIENCE;
    let (mut hint, mut attempt) = (known, 0);
    loop {
        let address = match hint.take() {
            Some(address) => Ok(address),
            None => find(cluster, group).await,
        };
        let tried = match address {
            Ok(address) => cluster.call_at(&address, &call).await,
            Err(error) => Err(error),
        };
        let error = match tried {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        attempt += 1;
        let wait = backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
        if !error.is_retryable() || Instant::now() + wait > give_up_at {
            return Err(error);
        }
        hint = error.leader().map(Box::from);
        sleep(wait).await;
    }
}

/// The address of a group's coordinator.
pub(super) async fn find(cluster: &Cluster, group: &str) -> Result<Box<str>> {
    let request = FindCoordinatorRequest {
        group: group.to_owned(),
    };
    let finding = cluster.call(|channel| {
        let request = request.clone();
        async move { groups_client(channel).find_coordinator(request).await }
    });
    let found = finding.await?.coordinator.and_then(node_address);
    found.ok_or_else(|| Error::malformed("the broker's answer lacks the coordinator it speaks of"))
}
