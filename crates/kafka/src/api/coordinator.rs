//! FindCoordinator.

use std::sync::Arc;

use quipu_broker::front::GroupId;

use super::metadata::{Endpoint, endpoints};
use crate::{
    config::Refusal,
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            find_coordinator_request::FindCoordinatorRequest,
            find_coordinator_response::{Coordinator, FindCoordinatorResponse},
        },
    },
};

/// What a key names: a group, or a transaction.
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// The first version that names several keys.
const BATCHED_FROM: i16 = 4;

pub(crate) async fn find_coordinator(
    client: &Arc<Client>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let keys = match version < BATCHED_FROM {
        true => vec![request.key],
        false => request.coordinator_keys,
    };
    let mut coordinators = Vec::with_capacity(keys.len());
    for key in keys {
        let found = match request.key_type {
            GROUP => of_group(client, &key).await,
            // Every client gives up at this error.
            TRANSACTION => Err((
                ErrorCode::TransactionalIdAuthorizationFailed,
                "transactions are not served".to_owned(),
            )),
            _ => Err((
                ErrorCode::InvalidRequest,
                "share groups are not served".to_owned(),
            )),
        };
        coordinators.push(coordinator(key, found));
    }
    if version >= BATCHED_FROM {
        return FindCoordinatorResponse {
            coordinators,
            ..FindCoordinatorResponse::default()
        };
    }
    let only = coordinators.pop().unwrap_or_default();
    FindCoordinatorResponse {
        error_code: only.error_code,
        error_message: only.error_message,
        node_id: only.node_id,
        host: only.host,
        port: only.port,
        ..FindCoordinatorResponse::default()
    }
}

async fn of_group(client: &Arc<Client>, group: &str) -> Result<Endpoint, Refusal> {
    let refused = |error: ErrorCode| move |message: String| (error, message);
    let group = GroupId::new(group).map_err(|error| error.to_string());
    let group = group.map_err(refused(ErrorCode::InvalidGroupId))?;
    let node = client.front.find_coordinator(&group).await;
    let node = node.map_err(|error| error.to_string());
    let node = node.map_err(refused(ErrorCode::CoordinatorNotAvailable))?;
    let mut up = endpoints(&client.front.cluster()).into_iter();
    let found = up.find(|endpoint| endpoint.id == super::broker_id(node));
    found.ok_or_else(|| {
        let message = format!("node {node}, which coordinates the group, is not reached");
        (ErrorCode::CoordinatorNotAvailable, message)
    })
}

fn coordinator(key: Text, found: Result<Endpoint, Refusal>) -> Coordinator {
    match found {
        Ok(endpoint) => Coordinator {
            key,
            node_id: endpoint.id,
            host: endpoint.host,
            port: endpoint.port,
            error_message: None,
            ..Coordinator::default()
        },
        Err((error, message)) => Coordinator {
            key,
            node_id: -1,
            port: -1,
            error_code: error.code(),
            error_message: Some(message.into()),
            ..Coordinator::default()
        },
    }
}
