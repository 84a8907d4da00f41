//! JoinGroup, SyncGroup, Heartbeat and LeaveGroup: the classic protocol of groups.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quipu_broker::front::{
    ClassicJoin, ClassicMember, ClassicSync, GroupError, GroupFailure, GroupId, Joined,
    JoinedMember, MemberId, Protocol,
};

use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            heartbeat_request::HeartbeatRequest,
            heartbeat_response::HeartbeatResponse,
            join_group_request::JoinGroupRequest,
            join_group_response::{JoinGroupResponse, JoinGroupResponseMember},
            leave_group_request::{LeaveGroupRequest, MemberIdentity},
            leave_group_response::{LeaveGroupResponse, MemberResponse},
            sync_group_request::SyncGroupRequest,
            sync_group_response::SyncGroupResponse,
        },
    },
};

/// From which version on a member that joins without an id is told one first.
const COMES_AGAIN_FROM: i16 = 4;
/// From which version on the name of the protocol may be null.
const NULL_PROTOCOL_FROM: i16 = 7;
/// From which version on a leader can be told to assign nothing.
const SKIPS_FROM: i16 = 9;
/// From which version on several members can leave at once.
const LEAVES_BATCHED_FROM: i16 = 3;

/// A group as a request names it.
///
/// # Errors
/// Where none has such a name.
pub(super) fn group(name: &str) -> Result<GroupId, ErrorCode> {
    GroupId::new(name).map_err(|_| ErrorCode::InvalidGroupId)
}

/// A copy that does not keep the frame in memory that it came in.
pub(super) fn own(text: &Option<Text>) -> Option<Box<str>> {
    text.as_deref().map(Box::from)
}

/// A member as a request names it; `None`: it has no id.
///
/// # Errors
/// Where none has such an id.
fn member_id(id: &str) -> Result<Option<MemberId>, ErrorCode> {
    match id {
        "" => Ok(None),
        id => MemberId::new(id)
            .map(Some)
            .map_err(|_| ErrorCode::UnknownMemberId),
    }
}

/// Who a request says that it is from.
///
/// # Errors
/// Where no member has such an id.
pub(super) fn member(
    id: &str,
    instance: &Option<Text>,
    generation: i32,
) -> Result<ClassicMember, ErrorCode> {
    Ok(ClassicMember {
        id: member_id(id)?.ok_or(ErrorCode::UnknownMemberId)?,
        instance: own(instance),
        generation,
    })
}

/// Milliseconds; negative ones count as none.
fn milliseconds(milliseconds: i32) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default())
}

pub(crate) async fn join_group(
    client: &Arc<Client>,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    let asked = request.member_id.clone();
    let refused = |error: ErrorCode, member_id: Text| JoinGroupResponse {
        error_code: error.code(),
        protocol_name: (version < NULL_PROTOCOL_FROM).then(Text::default),
        member_id,
        ..JoinGroupResponse::default()
    };
    let wanted =
        group(&request.group_id).and_then(|group| Ok((group, wish(client, &request, version)?)));
    let (group, join) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return refused(error, asked),
    };
    // The frame is not kept while the others are waited for.
    drop(request);
    match client.front.join_group(group, join).await {
        Ok(joined) => joined_response(joined),
        Err(GroupFailure::Refused(GroupError::MemberIdRequired(id))) => {
            refused(ErrorCode::MemberIdRequired, id.as_str().into())
        }
        Err(failure) => refused(ErrorCode::from(&failure), asked),
    }
}

fn wish(
    client: &Client,
    request: &JoinGroupRequest,
    version: i16,
) -> Result<ClassicJoin, ErrorCode> {
    let name = client.name.lock().clone();
    let instance = own(&request.group_instance_id);
    let session_timeout = milliseconds(request.session_timeout_ms);
    let protocols = request.protocols.iter().map(|protocol| Protocol {
        name: (&*protocol.name).into(),
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    });
    Ok(ClassicJoin {
        member: member_id(&request.member_id)?,
        fresh: MemberId::fresh(instance.as_deref().unwrap_or(&name)),
        instance,
        comes_again: version >= COMES_AGAIN_FROM,
        may_skip_assignment: version >= SKIPS_FROM,
        client: (&*name).into(),
        client_host: client.host(),
        session_timeout,
        rebalance_timeout: match request.rebalance_timeout_ms {
            ..0 => session_timeout,
            timeout => milliseconds(timeout),
        },
        protocol_type: (&*request.protocol_type).into(),
        protocols: protocols.collect(),
    })
}

fn joined_response(joined: Joined) -> JoinGroupResponse {
    let member = |member: JoinedMember| JoinGroupResponseMember {
        member_id: member.id.as_str().into(),
        group_instance_id: member.instance.as_deref().map(Text::from),
        metadata: member.metadata,
    };
    JoinGroupResponse {
        generation_id: joined.generation,
        protocol_type: Some((&*joined.protocol_type).into()),
        protocol_name: Some((&*joined.protocol).into()),
        leader: joined.leader.as_str().into(),
        skip_assignment: joined.skip_assignment,
        member_id: joined.member.as_str().into(),
        members: joined.members.into_iter().map(member).collect(),
        ..JoinGroupResponse::default()
    }
}

pub(crate) async fn sync_group(
    client: &Arc<Client>,
    request: SyncGroupRequest,
    _version: i16,
) -> SyncGroupResponse {
    let refused = |error: ErrorCode| SyncGroupResponse {
        error_code: error.code(),
        ..SyncGroupResponse::default()
    };
    let wanted = group(&request.group_id).and_then(|group| {
        let (id, instance) = (&request.member_id, &request.group_instance_id);
        Ok((group, member(id, instance, request.generation_id)?))
    });
    let (group, member) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return refused(error),
    };
    let assignments = request.assignments.iter().map(|assigned| {
        let assignment = Bytes::copy_from_slice(&assigned.assignment);
        ((&*assigned.member_id).into(), assignment)
    });
    let sync = ClassicSync {
        member,
        protocol_type: own(&request.protocol_type),
        protocol: own(&request.protocol_name),
        assignments: assignments.collect(),
    };
    // The frame is not kept while the leader is waited for.
    drop(request);
    match client.front.sync_group(group, sync).await {
        Ok(synced) => SyncGroupResponse {
            protocol_type: Some((&*synced.protocol_type).into()),
            protocol_name: Some((&*synced.protocol).into()),
            assignment: synced.assignment,
            ..SyncGroupResponse::default()
        },
        Err(failure) => refused(ErrorCode::from(&failure)),
    }
}

pub(crate) async fn heartbeat(
    client: &Arc<Client>,
    request: HeartbeatRequest,
    _version: i16,
) -> HeartbeatResponse {
    let beat = async {
        let group = group(&request.group_id)?;
        let (id, instance) = (&request.member_id, &request.group_instance_id);
        let member = member(id, instance, request.generation_id)?;
        let beat = client.front.heartbeat_group(group, member).await;
        beat.map_err(|failure| ErrorCode::from(&failure))
    };
    HeartbeatResponse {
        error_code: beat.await.err().unwrap_or(ErrorCode::None).code(),
        ..HeartbeatResponse::default()
    }
}

pub(crate) async fn leave_group(
    client: &Arc<Client>,
    request: LeaveGroupRequest,
    version: i16,
) -> LeaveGroupResponse {
    let members = match version < LEAVES_BATCHED_FROM {
        true => vec![MemberIdentity {
            member_id: request.member_id,
            ..MemberIdentity::default()
        }],
        false => request.members,
    };
    let mut response = LeaveGroupResponse::default();
    for member in members {
        let error = match leave(client, &request.group_id, &member).await {
            Ok(()) => ErrorCode::None,
            // The same for all: the client looks for the coordinator and comes again.
            Err(
                error @ (ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorLoadInProgress
                | ErrorCode::InvalidGroupId),
            ) => {
                return LeaveGroupResponse {
                    error_code: error.code(),
                    ..LeaveGroupResponse::default()
                };
            }
            Err(error) => error,
        };
        if version < LEAVES_BATCHED_FROM {
            response.error_code = error.code();
        }
        response.members.push(MemberResponse {
            member_id: member.member_id,
            group_instance_id: member.group_instance_id,
            error_code: error.code(),
        });
    }
    response
}

async fn leave(
    client: &Arc<Client>,
    group_id: &str,
    member: &MemberIdentity,
) -> Result<(), ErrorCode> {
    let group = group(group_id)?;
    let id = member_id(&member.member_id)?;
    let instance = own(&member.group_instance_id);
    match client.front.leave_group(group, id, instance).await {
        Ok(()) => Ok(()),
        Err(GroupFailure::Refused(GroupError::UnknownGroup(_) | GroupError::OtherKind(_))) => {
            Err(ErrorCode::UnknownMemberId)
        }
        Err(failure) => Err(ErrorCode::from(&failure)),
    }
}
