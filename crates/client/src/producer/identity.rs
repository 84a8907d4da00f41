//! Who a producer is to the broker, so that a batch sent twice is stored once.

use quipu_model::{ProducerEpoch, ProducerId};
use quipu_proto::v1::InitProducerIdRequest;

use crate::{
    Result,
    cluster::{Cluster, log_client},
    error::Error,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

impl Identity {
    /// The same producer in its next epoch; `None` after the last.
    pub(super) fn next_epoch(self) -> Option<Self> {
        let epoch = ProducerEpoch::new(self.epoch.get().checked_add(1)?);
        Some(Self { epoch, ..self })
    }
}

/// A new identity.
pub(crate) async fn init(cluster: &Cluster) -> Result<Identity> {
    let call = |channel| async move {
        log_client(channel)
            .init_producer_id(InitProducerIdRequest {})
            .await
    };
    let answer = cluster.call(call).await?;
    let epoch = i16::try_from(answer.producer_epoch).map_err(|_| {
        Error::malformed("the broker gave a producer epoch that does not fit a batch")
    })?;
    Ok(Identity {
        id: ProducerId::new(answer.producer_id),
        epoch: ProducerEpoch::new(epoch),
    })
}
