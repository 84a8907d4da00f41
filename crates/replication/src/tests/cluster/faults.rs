use std::time::Duration;

use super::{super::numbered, Cluster};
use crate::{Acks, AppendError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_hold_equal_bytes_and_survive_their_leader() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 100).await;
    let (old, leader) = cluster.leader().await;
    cluster.cut_off(old);
    // What the cut leader takes now may not be acknowledged, and is not in the way later.
    let short = Duration::from_millis(200);
    let error = leader
        .append(numbered(6, 0, 0, 9), Acks::All, short)
        .await
        .unwrap_err();
    assert!(matches!(error, AppendError::TimedOut(_)), "{error:?}");

    // The next leader knows what was appended before it led.
    cluster.fill(98, 100).await;
    assert_ne!(cluster.leader().await.0, old);
    cluster.fill(100, 120).await;
    cluster.heal();
    cluster.hold_the_same(&[1, 2, 3], 0, 120).await;
    cluster.stop().await;
}
