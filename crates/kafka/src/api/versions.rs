//! ApiVersions.

use std::sync::Arc;

use crate::{
    dispatch::{Client, SERVED},
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            api_versions_request::ApiVersionsRequest,
            api_versions_response::{
                ApiVersion, ApiVersionsResponse, FinalizedFeatureKey, SupportedFeatureKey,
            },
            produce_request::ProduceRequest,
        },
    },
};

/// Stands for a request that could not be read: no client has such a name.
const IN_VAIN: &str = "\0";

/// The feature by which a cluster says that the coordinator assigns a group's partitions, and its level.
const GROUP_VERSION: (&str, i16) = ("group.version", 1);

/// A request in a version that is not served.
pub(crate) fn in_vain() -> ApiVersionsRequest {
    ApiVersionsRequest {
        client_software_name: Text::from(IN_VAIN),
        ..ApiVersionsRequest::default()
    }
}

pub(crate) async fn api_versions(
    client: &Arc<Client>,
    request: ApiVersionsRequest,
    _version: i16,
) -> ApiVersionsResponse {
    let error = match &*request.client_software_name {
        IN_VAIN => ErrorCode::UnsupportedVersion,
        "" => ErrorCode::None,
        name => {
            let version = &*request.client_software_version;
            tracing::debug!(peer = %client.peer, name, version, "a Kafka client");
            ErrorCode::None
        }
    };
    let api_keys = SERVED.iter().map(|(key, first, last)| ApiVersion {
        api_key: *key,
        // librdkafka takes a broker that has no version 0 for one that knows no compression.
        min_version: if *key == ProduceRequest::KEY {
            0
        } else {
            *first
        },
        max_version: *last,
    });
    ApiVersionsResponse {
        error_code: error.code(),
        api_keys: api_keys.collect(),
        supported_features: vec![SupportedFeatureKey {
            name: GROUP_VERSION.0.into(),
            min_version: GROUP_VERSION.1,
            max_version: GROUP_VERSION.1,
        }],
        finalized_features_epoch: 0,
        finalized_features: vec![FinalizedFeatureKey {
            name: GROUP_VERSION.0.into(),
            max_version_level: GROUP_VERSION.1,
            min_version_level: GROUP_VERSION.1,
        }],
        ..ApiVersionsResponse::default()
    }
}
