//! FindCoordinator.

use std::sync::Arc;

use crate::{
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

/// The key of a transaction, among those that have coordinators.
const TRANSACTION: i8 = 1;

pub(crate) async fn find_coordinator(
    _client: &Arc<Client>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let (error, message) = match request.key_type {
        // Every client gives up at this error.
        TRANSACTION => (
            ErrorCode::TransactionalIdAuthorizationFailed,
            "transactions are not served",
        ),
        _ => (
            ErrorCode::CoordinatorNotAvailable,
            "consumer groups are not served",
        ),
    };
    if version < 4 {
        return FindCoordinatorResponse {
            error_code: error.code(),
            error_message: Some(message.into()),
            node_id: -1,
            port: -1,
            ..FindCoordinatorResponse::default()
        };
    }
    let coordinator = |key: Text| Coordinator {
        key,
        node_id: -1,
        port: -1,
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Coordinator::default()
    };
    FindCoordinatorResponse {
        coordinators: request
            .coordinator_keys
            .into_iter()
            .map(coordinator)
            .collect(),
        ..FindCoordinatorResponse::default()
    }
}
