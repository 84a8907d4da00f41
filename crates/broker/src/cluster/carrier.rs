//! Changes of the metadata on their way between nodes.

use std::{sync::Arc, time::Duration};

use quipu_model::NodeId;
use quipu_proto::{
    peer::v1::{
        ChangeRequest, ChangeResponse, controller_client::ControllerClient,
        controller_server::Controller as ControllerApi,
    },
    v1,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, transport::Endpoint};

use super::AddressBook;
use crate::{
    core::Core,
    error::{BrokerError, NodeAddress, Reason},
    grpc::Seat,
    metadata::Carrier,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Of a node that is silent for longer, the other end takes it that it is gone.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Carries changes to other nodes' gRPC listeners. Changes are rare: each gets a connection of its own.
#[derive(Debug)]
pub(crate) struct ChangeCarrier {
    pub(crate) book: Arc<AddressBook>,
}

#[tonic::async_trait]
impl Carrier for ChangeCarrier {
    fn address_of(&self, node: NodeId) -> Option<NodeAddress> {
        self.book.address_of(node)
    }

    async fn carry(
        &self,
        address: &str,
        request: ChangeRequest,
        deadline: Instant,
    ) -> Result<ChangeResponse, BrokerError> {
        // Nothing was sent yet: the sender may try elsewhere.
        let unreached = |error: &dyn std::fmt::Display| {
            BrokerError::new(
                Reason::NotLeader,
                format!("{address} was not reached: {error}"),
            )
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| unreached(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL);
        let connecting = timeout_at(deadline, endpoint.connect()).await;
        let channel = connecting
            .map_err(|error| unreached(&error))?
            .map_err(|error| unreached(&error))?;
        let mut client = ControllerClient::new(channel);
        match timeout_at(deadline, client.change(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(BrokerError::indefinite(
                Reason::TimedOut,
                format!("{address} did not say what became of the change: {status}"),
            )),
            Err(_) => Err(BrokerError::indefinite(
                Reason::TimedOut,
                format!("{address} did not say in time what became of the change"),
            )),
        }
    }
}

/// `quipu.peer.v1.Controller`.
#[derive(Clone, Debug)]
pub(crate) struct ControllerService {
    pub(crate) core: Arc<Core>,
}

impl ControllerService {
    async fn make(&self, request: ChangeRequest) -> Result<ChangeResponse, BrokerError> {
        let own = self.core.metadata.image().cluster_id;
        let other = own.is_some_and(|own| request.cluster_id[..] != own.as_bytes()[..]);
        if other && !request.cluster_id.is_empty() {
            return Err(BrokerError::new(
                Reason::InvalidRequest,
                "the node that sent this belongs to another cluster: check --voters and --join",
            ));
        }
        let change = request.change.ok_or_else(|| {
            BrokerError::new(
                Reason::InvalidRequest,
                "a change of a kind that this version does not know: upgrade this broker first",
            )
        })?;
        let controller = self.core.controller()?;
        let changed = controller.change_or_pass_on(change, request.hops).await?;
        Ok(ChangeResponse {
            error: None,
            offset: changed.offset.get(),
            first_producer_id: changed.first_producer_id,
        })
    }
}

#[tonic::async_trait]
impl ControllerApi for ControllerService {
    async fn change(
        &self,
        request: Request<ChangeRequest>,
    ) -> Result<Response<ChangeResponse>, Status> {
        if let Some(seat) = request.extensions().get::<Arc<Seat>>() {
            seat.give_to_node()?;
        }
        let made = self.make(request.into_inner()).await;
        Ok(Response::new(made.unwrap_or_else(|error| ChangeResponse {
            error: Some(v1::Error::from(error)),
            ..ChangeResponse::default()
        })))
    }
}
