//! From a frame to a reply: which requests are served, in which versions, and by what.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_broker::front::{Front, MemoryPermit, Traffic};
use tokio::time::Instant;

use crate::{
    api,
    connection::Reply,
    server::KafkaConfig,
    session::Sessions,
    wire::{
        DecodeError, Reader, Text, Writer,
        messages::{request_header::RequestHeader, response_header::ResponseHeader},
    },
};

/// What a connection's requests share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: SocketAddr,
    pub(crate) front: Front,
    pub(crate) config: Arc<KafkaConfig>,
    pub(crate) sessions: Mutex<Sessions>,
    /// What it calls itself, as of the last time that it joined a group, produced or fetched.
    pub(crate) name: Mutex<Text>,
    /// Until when it is not listened to, since it is past its quota.
    muted_until: Mutex<Option<Instant>>,
}

impl Client {
    pub(crate) fn new(peer: SocketAddr, front: Front, config: Arc<KafkaConfig>) -> Self {
        Self {
            peer,
            front,
            config,
            sessions: Mutex::default(),
            name: Mutex::default(),
            muted_until: Mutex::default(),
        }
    }

    /// Where it connects from, as Kafka shows it.
    pub(crate) fn host(&self) -> Box<str> {
        format!("/{}", self.peer.ip()).into()
    }

    /// Notes what it calls itself. The name is copied: it is lent from a frame, which may be large.
    fn call(&self, name: &Text) {
        let mut known = self.name.lock();
        if *known != *name {
            *known = Text::from(&**name);
        }
    }

    /// Counts bytes towards the client's quota. How long it is to wait, in milliseconds: until then it is not listened to.
    pub(crate) fn charge(&self, traffic: Traffic, bytes: usize) -> i32 {
        let wait = self.front.charge(&self.name.lock(), traffic, bytes);
        if !wait.is_zero() {
            let until = Some(Instant::now() + wait);
            let mut muted_until = self.muted_until.lock();
            *muted_until = until.max(*muted_until);
        }
        // Waits are bounded far below what fits.
        wait.as_millis() as i32
    }

    /// Until when it is not listened to; `None`: it is.
    pub(crate) fn muted_until(&self) -> Option<Instant> {
        let until = *self.muted_until.lock();
        until.filter(|until| *until > Instant::now())
    }
}

/// Why a connection's requests cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("a request with key {key}, which is not served")]
    UnknownKey { key: i16 },
    #[error("a {name} request in version {version}, which is not served")]
    UnknownVersion { name: &'static str, version: i16 },
    #[error("a {name} request in version {version} that is no such: {error}")]
    Malformed {
        name: &'static str,
        version: i16,
        error: DecodeError,
    },
}

/// What a handler comes to.
#[derive(Debug)]
pub(crate) enum Outcome<R> {
    Response(R),
    /// A response whose bytes hold so much of the node's memory until they are sent.
    Holding(R, MemoryPermit),
    /// The client waits for no response.
    Silent,
    /// It can be told only by closing the connection.
    Close,
}

impl<R> From<R> for Outcome<R> {
    fn from(response: R) -> Self {
        Self::Response(response)
    }
}

/// A request that was read.
#[derive(Debug)]
pub(crate) struct Request {
    version: i16,
    correlation_id: i32,
    /// What its arrays' elements take, in bytes, beside its frame.
    elements: usize,
    /// What the client calls itself.
    client_id: Option<Text>,
    body: Body,
}

/// Requests and what serves them: the name, the request's module among the messages and type there, the
/// response's, and the handler.
macro_rules! requests {
    ($($name:ident $module:ident::$message:ident $answers:ident::$answer:ident $handler:path,)*) => {
        #[derive(Debug)]
        enum Body {
            $($name(crate::wire::messages::$module::$message),)*
        }

        /// The requests served: key, first and last version.
        pub(crate) const SERVED: &[(i16, i16, i16)] = &[
            $((
                crate::wire::messages::$module::$message::KEY,
                crate::wire::messages::$module::$message::VERSIONS.0,
                crate::wire::messages::$module::$message::VERSIONS.1,
            ),)*
        ];

        impl Request {
            fn read(key: i16, version: i16, frame: Bytes) -> Result<Self, RequestError> {
                $(
                    if key == crate::wire::messages::$module::$message::KEY {
                        type Message = crate::wire::messages::$module::$message;
                        let name = stringify!($name);
                        let (first, last) = Message::VERSIONS;
                        if !(first..=last).contains(&version) {
                            return Err(RequestError::UnknownVersion { name, version });
                        }
                        let mut reader = Reader::new(frame);
                        let header_version = if version >= Message::FLEXIBLE_FROM { 2 } else { 1 };
                        let read = RequestHeader::decode(&mut reader, header_version).and_then(
                            |header| Ok((header, Message::decode(&mut reader, version)?)),
                        );
                        let (header, message) = read
                            .map_err(|error| RequestError::Malformed { name, version, error })?;
                        return Ok(Self {
                            version,
                            correlation_id: header.correlation_id,
                            client_id: header.client_id,
                            elements: reader.taken(),
                            body: Body::$name(message),
                        });
                    }
                )*
                Err(RequestError::UnknownKey { key })
            }

            /// Does what is asked for.
            pub(crate) async fn handle(self, client: &Arc<Client>) -> Reply {
                let version = self.version;
                if let Body::JoinGroup(_)
                | Body::ConsumerGroupHeartbeat(_)
                | Body::Produce(_)
                | Body::Fetch(_) = self.body
                {
                    client.call(&self.client_id.unwrap_or_default());
                }
                match self.body {
                    $(Body::$name(request) => {
                        let flexible =
                            version >= crate::wire::messages::$module::$message::FLEXIBLE_FROM;
                        let outcome: Outcome<crate::wire::messages::$answers::$answer> =
                            $handler(client, request, version).await.into();
                        let (response, memory) = match outcome {
                            Outcome::Response(response) => (response, None),
                            Outcome::Holding(response, memory) => (response, Some(memory)),
                            Outcome::Silent => return Reply::None,
                            Outcome::Close => return Reply::Close,
                        };
                        let mut writer = Writer::default();
                        let header = ResponseHeader {
                            correlation_id: self.correlation_id,
                        };
                        // Who asks for versions does not know yet which ones the broker speaks.
                        let plain = !flexible || stringify!($name) == "ApiVersions";
                        header.encode(&mut writer, if plain { 0 } else { 1 });
                        response.encode(&mut writer, version);
                        Reply::Frame { parts: writer.into_frame(), memory }
                    })*
                }
            }
        }
    };
}

requests! {
    ApiVersions api_versions_request::ApiVersionsRequest api_versions_response::ApiVersionsResponse api::versions::api_versions,
    Metadata metadata_request::MetadataRequest metadata_response::MetadataResponse api::metadata::metadata,
    Produce produce_request::ProduceRequest produce_response::ProduceResponse api::produce::produce,
    Fetch fetch_request::FetchRequest fetch_response::FetchResponse api::fetch::fetch,
    ListOffsets list_offsets_request::ListOffsetsRequest list_offsets_response::ListOffsetsResponse api::offsets::list_offsets,
    FindCoordinator find_coordinator_request::FindCoordinatorRequest find_coordinator_response::FindCoordinatorResponse api::coordinator::find_coordinator,
    JoinGroup join_group_request::JoinGroupRequest join_group_response::JoinGroupResponse api::groups::join_group,
    SyncGroup sync_group_request::SyncGroupRequest sync_group_response::SyncGroupResponse api::groups::sync_group,
    Heartbeat heartbeat_request::HeartbeatRequest heartbeat_response::HeartbeatResponse api::groups::heartbeat,
    LeaveGroup leave_group_request::LeaveGroupRequest leave_group_response::LeaveGroupResponse api::groups::leave_group,
    OffsetCommit offset_commit_request::OffsetCommitRequest offset_commit_response::OffsetCommitResponse api::group_offsets::offset_commit,
    OffsetFetch offset_fetch_request::OffsetFetchRequest offset_fetch_response::OffsetFetchResponse api::group_offsets::offset_fetch,
    OffsetDelete offset_delete_request::OffsetDeleteRequest offset_delete_response::OffsetDeleteResponse api::group_offsets::offset_delete,
    DescribeGroups describe_groups_request::DescribeGroupsRequest describe_groups_response::DescribeGroupsResponse api::group_admin::describe_groups,
    ListGroups list_groups_request::ListGroupsRequest list_groups_response::ListGroupsResponse api::group_admin::list_groups,
    DeleteGroups delete_groups_request::DeleteGroupsRequest delete_groups_response::DeleteGroupsResponse api::group_admin::delete_groups,
    ConsumerGroupHeartbeat consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest consumer_group_heartbeat_response::ConsumerGroupHeartbeatResponse api::consumer_groups::consumer_group_heartbeat,
    ConsumerGroupDescribe consumer_group_describe_request::ConsumerGroupDescribeRequest consumer_group_describe_response::ConsumerGroupDescribeResponse api::consumer_groups::consumer_group_describe,
    InitProducerId init_producer_id_request::InitProducerIdRequest init_producer_id_response::InitProducerIdResponse api::produce::init_producer_id,
    CreateTopics create_topics_request::CreateTopicsRequest create_topics_response::CreateTopicsResponse api::topics::create_topics,
    DeleteTopics delete_topics_request::DeleteTopicsRequest delete_topics_response::DeleteTopicsResponse api::topics::delete_topics,
    CreatePartitions create_partitions_request::CreatePartitionsRequest create_partitions_response::CreatePartitionsResponse api::topics::create_partitions,
    DeleteRecords delete_records_request::DeleteRecordsRequest delete_records_response::DeleteRecordsResponse api::topics::delete_records,
    DescribeConfigs describe_configs_request::DescribeConfigsRequest describe_configs_response::DescribeConfigsResponse api::configs::describe_configs,
    AlterConfigs alter_configs_request::AlterConfigsRequest alter_configs_response::AlterConfigsResponse api::configs::alter_configs,
    IncrementalAlterConfigs incremental_alter_configs_request::IncrementalAlterConfigsRequest incremental_alter_configs_response::IncrementalAlterConfigsResponse api::configs::incremental_alter_configs,
    DescribeCluster describe_cluster_request::DescribeClusterRequest describe_cluster_response::DescribeClusterResponse api::cluster::describe_cluster,
    DescribeTopicPartitions describe_topic_partitions_request::DescribeTopicPartitionsRequest describe_topic_partitions_response::DescribeTopicPartitionsResponse api::cluster::describe_topic_partitions,
    DescribeLogDirs describe_log_dirs_request::DescribeLogDirsRequest describe_log_dirs_response::DescribeLogDirsResponse api::cluster::describe_log_dirs,
    OffsetForLeaderEpoch offset_for_leader_epoch_request::OffsetForLeaderEpochRequest offset_for_leader_epoch_response::OffsetForLeaderEpochResponse api::offsets::offset_for_leader_epoch,
    ElectLeaders elect_leaders_request::ElectLeadersRequest elect_leaders_response::ElectLeadersResponse api::moves::elect_leaders,
    AlterPartitionReassignments alter_partition_reassignments_request::AlterPartitionReassignmentsRequest alter_partition_reassignments_response::AlterPartitionReassignmentsResponse api::moves::alter_partition_reassignments,
    DescribeClientQuotas describe_client_quotas_request::DescribeClientQuotasRequest describe_client_quotas_response::DescribeClientQuotasResponse api::quotas::describe_client_quotas,
    AlterClientQuotas alter_client_quotas_request::AlterClientQuotasRequest alter_client_quotas_response::AlterClientQuotasResponse api::quotas::alter_client_quotas,
    ListPartitionReassignments list_partition_reassignments_request::ListPartitionReassignmentsRequest list_partition_reassignments_response::ListPartitionReassignmentsResponse api::moves::list_partition_reassignments,
}

/// The requests that are served: key, first and last version of each.
pub fn served() -> &'static [(i16, i16, i16)] {
    SERVED
}

/// Reads a request and forgets it: for tools that look for input on which reading goes wrong. Answers with the bytes of memory
/// that its elements took; `None` where it is refused.
pub fn try_frame(frame: Bytes) -> Option<usize> {
    let (key, version) = Request::kind(&frame);
    let read = Request::read(key, version, frame);
    read.ok().map(|request| request.elements)
}

impl Request {
    /// Elements of requests that name some hundred partitions.
    const FEW_BYTES: usize = 64 << 10;

    /// Reads a request from a frame of at least four bytes.
    ///
    /// # Errors
    /// Where the protocol has no way to say that it is not served, or it is none.
    pub(crate) fn decode(frame: Bytes, client: &Client) -> Result<Self, RequestError> {
        let (key, version) = Self::kind(&frame);
        let read = Self::read(key, version, frame.clone());
        match read {
            Err(RequestError::UnknownVersion { .. })
                if key == crate::wire::messages::api_versions_request::ApiVersionsRequest::KEY =>
            {
                tracing::debug!(peer = %client.peer, version, "a client asks for versions in one that is not served");
                Ok(Self::versions_in_vain(&frame))
            }
            read => read,
        }
    }

    /// The key and version that a frame begins with; -1 where it is too short.
    fn kind(frame: &[u8]) -> (i16, i16) {
        let number = |at: usize| match frame.get(at..at + 2) {
            Some(bytes) => i16::from_be_bytes([bytes[0], bytes[1]]),
            None => -1,
        };
        (number(0), number(2))
    }

    /// A question for versions in a version that nobody knows: the answer, in the first version, says which ones are known.
    fn versions_in_vain(frame: &Bytes) -> Self {
        let correlation_id = match frame.get(4..8) {
            Some(bytes) => i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            None => 0,
        };
        Self {
            version: 0,
            correlation_id,
            client_id: None,
            elements: 0,
            body: Body::ApiVersions(api::versions::in_vain()),
        }
    }

    /// What it takes of the node's memory, in bytes, beside its frame: nothing to speak of, unless it was made to.
    pub(crate) fn extra_memory(&self) -> Option<usize> {
        Some(self.elements).filter(|elements| *elements > Self::FEW_BYTES)
    }

    /// Whether it may wait for other clients of its group, for minutes.
    pub(crate) fn waits_for_others(&self) -> bool {
        matches!(self.body, Body::JoinGroup(_) | Body::SyncGroup(_))
    }

    /// Whether it may be at work beside others of its kind.
    pub(crate) fn is_pipelined(&self) -> bool {
        matches!(self.body, Body::Produce(_)) && self.extra_memory().is_none()
    }
}
