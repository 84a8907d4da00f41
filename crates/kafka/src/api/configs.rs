//! DescribeConfigs, AlterConfigs and IncrementalAlterConfigs.

use std::{collections::HashMap, sync::Arc};

use quipu_broker::front::Topic;
use quipu_model::TopicConfig;

use super::{broker_id, metadata::endpoints, refusal};
use crate::{
    config::{ConfigSource, ConfigType, Refusal, Setting, is_known, settings_of, to_keep},
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            alter_configs_request::AlterConfigsRequest,
            alter_configs_response::{AlterConfigsResourceResponse, AlterConfigsResponse},
            describe_configs_request::{DescribeConfigsRequest, DescribeConfigsResource},
            describe_configs_response::{
                DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult,
                DescribeConfigsSynonym,
            },
            incremental_alter_configs_request::{AlterableConfig, IncrementalAlterConfigsRequest},
            incremental_alter_configs_response::{
                AlterConfigsResourceResponse as IncrementalResult, IncrementalAlterConfigsResponse,
            },
        },
    },
};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

pub(crate) async fn describe_configs(
    client: &Arc<Client>,
    request: DescribeConfigsRequest,
    _version: i16,
) -> DescribeConfigsResponse {
    let results = request.resources.into_iter();
    let results = results.map(|resource| describe(client, resource, request.include_synonyms));
    DescribeConfigsResponse {
        results: results.collect(),
        ..DescribeConfigsResponse::default()
    }
}

fn describe(
    client: &Arc<Client>,
    resource: DescribeConfigsResource,
    synonyms: bool,
) -> DescribeConfigsResult {
    let settings = match resource.resource_type {
        TOPIC => topic(client, &resource.resource_name).map(|topic| settings_of(&topic)),
        BROKER => broker_settings(client, &resource.resource_name),
        _ => Err(other_resource()),
    };
    let (error, message, settings) = match settings {
        Ok(settings) => (ErrorCode::None, None, settings),
        Err((error, message)) => (error, Some(Text::from(message)), Vec::new()),
    };
    let wanted = |setting: &Setting| match &resource.configuration_keys {
        Some(keys) => keys.iter().any(|key| **key == *setting.name),
        None => true,
    };
    let configs = settings.into_iter().filter(wanted);
    DescribeConfigsResult {
        error_code: error.code(),
        error_message: message,
        resource_type: resource.resource_type,
        configs: configs.map(|setting| result(setting, synonyms)).collect(),
        resource_name: resource.resource_name,
    }
}

fn result(setting: Setting, synonyms: bool) -> DescribeConfigsResourceResult {
    let synonym = DescribeConfigsSynonym {
        name: setting.name.into(),
        value: Some((&*setting.value).into()),
        source: setting.source as i8,
    };
    DescribeConfigsResourceResult {
        name: setting.name.into(),
        value: Some(setting.value.into()),
        read_only: setting.read_only,
        config_source: setting.source as i8,
        is_sensitive: false,
        synonyms: if synonyms { vec![synonym] } else { Vec::new() },
        config_type: setting.kind as i8,
        documentation: None,
    }
}

fn topic(client: &Arc<Client>, name: &str) -> Result<Arc<Topic>, Refusal> {
    let described = client.front.describe_topic(name);
    described.map(|(topic, _)| topic).map_err(refusal)
}

/// What can be said of a node by Kafka's names. It is set where the node is started.
fn broker_settings(client: &Arc<Client>, name: &str) -> Result<Vec<Setting>, Refusal> {
    if !name.is_empty() && name != client.front.node().get().to_string() {
        let line = format!(
            "this is broker {}: ask the one that is meant",
            client.front.node()
        );
        return Err((ErrorCode::InvalidRequest, line));
    }
    let setting = |name, value: String, kind| Setting {
        name,
        value,
        kind,
        source: ConfigSource::StaticBroker,
        read_only: true,
    };
    let config = &client.config;
    let here = broker_id(client.front.node());
    let reached_at = endpoints(&client.front.cluster())
        .into_iter()
        .filter(|endpoint| endpoint.id == here)
        .map(|endpoint| format!("PLAINTEXT://{}:{}", &*endpoint.host, endpoint.port))
        .collect();
    Ok(vec![
        setting("advertised.listeners", reached_at, ConfigType::String),
        setting(
            "auto.create.topics.enable",
            config.auto_create_topics.to_string(),
            ConfigType::Boolean,
        ),
        setting(
            "broker.id",
            client.front.node().to_string(),
            ConfigType::Int,
        ),
        setting(
            "connections.max.idle.ms",
            config.idle_timeout.as_millis().to_string(),
            ConfigType::Long,
        ),
        setting(
            "default.replication.factor",
            client.front.default_replication_factor().to_string(),
            ConfigType::Int,
        ),
        setting(
            "max.connections",
            config.max_connections.to_string(),
            ConfigType::Int,
        ),
        setting(
            "message.max.bytes",
            TopicConfig::default().max_message_bytes.to_string(),
            ConfigType::Int,
        ),
        setting("num.partitions", "1".to_owned(), ConfigType::Int),
        setting(
            "socket.request.max.bytes",
            config.max_request_bytes.to_string(),
            ConfigType::Int,
        ),
    ])
}

fn other_resource() -> Refusal {
    let line = "only topics and brokers have settings here, and only topics' can be changed";
    (ErrorCode::InvalidRequest, line.to_owned())
}

pub(crate) async fn alter_configs(
    client: &Arc<Client>,
    request: AlterConfigsRequest,
    _version: i16,
) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let given = resource.configs.into_iter();
        let given =
            given.filter_map(|config| Some((config.name.to_string(), config.value?.to_string())));
        let given = given.collect();
        let replaced = match resource.resource_type {
            TOPIC => {
                replace(
                    client,
                    &resource.resource_name,
                    given,
                    request.validate_only,
                )
                .await
            }
            _ => Err(other_resource()),
        };
        let (error_code, error_message) = told(replaced);
        responses.push(AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
    }
    AlterConfigsResponse {
        responses,
        ..AlterConfigsResponse::default()
    }
}

fn told(done: Result<(), Refusal>) -> (i16, Option<Text>) {
    match done {
        Ok(()) => (ErrorCode::None.code(), None),
        Err((error, message)) => (error.code(), Some(message.into())),
    }
}

/// Makes `given` all that differs from the defaults.
async fn replace(
    client: &Arc<Client>,
    name: &str,
    given: Vec<(String, String)>,
    validate_only: bool,
) -> Result<(), Refusal> {
    let topic = topic(client, name)?;
    let set = to_keep(given, topic.replication_factor())?;
    let reset = topic
        .settings
        .keys()
        .filter(|name| !set.contains_key(*name));
    let reset: Vec<String> = reset.cloned().collect();
    change(client, &topic, set, reset, validate_only).await
}

async fn change(
    client: &Arc<Client>,
    topic: &Topic,
    set: HashMap<String, String>,
    reset: Vec<String>,
    validate_only: bool,
) -> Result<(), Refusal> {
    if validate_only {
        let settings = set
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let checked = TopicConfig::from_settings(settings);
        return checked
            .map(|_| ())
            .map_err(|error| (ErrorCode::InvalidConfig, error.to_string()));
    }
    if set.is_empty() && reset.is_empty() {
        return Ok(());
    }
    let altered = client
        .front
        .alter_topic(topic.name.as_str(), set, reset)
        .await;
    altered.map(|_| ()).map_err(refusal)
}

pub(crate) async fn incremental_alter_configs(
    client: &Arc<Client>,
    request: IncrementalAlterConfigsRequest,
    _version: i16,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let altered = match resource.resource_type {
            TOPIC => {
                let name = &resource.resource_name;
                alter(client, name, resource.configs, request.validate_only).await
            }
            BROKER => alter_broker(&resource.configs),
            _ => Err(other_resource()),
        };
        let (error_code, error_message) = told(altered);
        responses.push(IncrementalResult {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
    }
    IncrementalAlterConfigsResponse {
        responses,
        ..IncrementalAlterConfigsResponse::default()
    }
}

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

async fn alter(
    client: &Arc<Client>,
    name: &str,
    changes: Vec<AlterableConfig>,
    validate_only: bool,
) -> Result<(), Refusal> {
    let topic = topic(client, name)?;
    let settings = settings_of(&topic);
    let (mut given, mut reset) = (Vec::new(), Vec::new());
    for change in changes {
        let name = change.name.to_string();
        let value = || change.value.as_deref().unwrap_or_default().to_owned();
        match change.config_operation {
            SET => given.push((name, value())),
            // What is never kept is never to be forgotten.
            DELETE if is_known(&name) && !TopicConfig::NAMES.contains(&&*name) => {}
            DELETE => reset.push(name),
            operation @ (APPEND | SUBTRACT) => {
                let value = edit_list(&settings, &name, &value(), operation)?;
                given.push((name, value));
            }
            _ => {
                let line = format!("{name}: no such operation");
                return Err((ErrorCode::InvalidRequest, line));
            }
        }
    }
    let set = to_keep(given, topic.replication_factor())?;
    self::change(client, &topic, set, reset, validate_only).await
}

/// Nothing of a node is set by requests. To unset what may be set in Kafka, as its tools do when partitions have moved, is done then.
fn alter_broker(changes: &[AlterableConfig]) -> Result<(), Refusal> {
    let unsets = changes
        .iter()
        .all(|change| change.config_operation == DELETE);
    if unsets {
        Ok(())
    } else {
        Err(other_resource())
    }
}

/// A list with more entries or fewer.
fn edit_list(
    settings: &[Setting],
    name: &str,
    entries: &str,
    operation: i8,
) -> Result<String, Refusal> {
    let list = settings
        .iter()
        .find(|setting| setting.name == name && setting.kind == ConfigType::List);
    let list = list.ok_or_else(|| {
        let line = "only a list can get more entries or fewer".to_owned();
        (ErrorCode::InvalidConfig, line)
    })?;
    let named: Vec<&str> = entries.split(',').map(str::trim).collect();
    let mut left: Vec<&str> = list
        .value
        .split(',')
        .filter(|entry| !named.contains(entry))
        .collect();
    if operation == APPEND {
        left.extend(named);
    }
    Ok(left.join(","))
}
