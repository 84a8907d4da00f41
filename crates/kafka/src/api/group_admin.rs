//! DescribeGroups, ListGroups and DeleteGroups.

use std::sync::Arc;

use quipu_broker::front::{
    ClassicDescription, ClassicMemberView, GroupError, GroupFailure, GroupKind, Listing,
};

use super::{
    groups::group,
    operations::{OF_GROUP, if_asked},
};
use crate::{
    config::Refusal,
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            delete_groups_request::DeleteGroupsRequest,
            delete_groups_response::{DeletableGroupResult, DeleteGroupsResponse},
            describe_groups_request::DescribeGroupsRequest,
            describe_groups_response::{
                DescribeGroupsResponse, DescribedGroup, DescribedGroupMember,
            },
            list_groups_request::ListGroupsRequest,
            list_groups_response::{ListGroupsResponse, ListedGroup},
        },
    },
};

/// The first version that says that there is no such group; before, it is one that is dead.
const UNKNOWN_FROM: i16 = 6;

pub(crate) async fn describe_groups(
    client: &Arc<Client>,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let mut groups = Vec::with_capacity(request.groups.len());
    for name in request.groups {
        let described = match describe(client, &name).await {
            Ok(described) => describe_response(described),
            Err((ErrorCode::GroupIdNotFound, message)) => DescribedGroup {
                error_code: match version < UNKNOWN_FROM {
                    true => ErrorCode::None.code(),
                    false => ErrorCode::GroupIdNotFound.code(),
                },
                error_message: Some(message.into()),
                group_state: "Dead".into(),
                ..DescribedGroup::default()
            },
            Err((error, message)) => DescribedGroup {
                error_code: error.code(),
                error_message: Some(message.into()),
                ..DescribedGroup::default()
            },
        };
        let asked = request.include_authorized_operations && described.error_code == 0;
        groups.push(DescribedGroup {
            group_id: name,
            authorized_operations: if_asked(asked, OF_GROUP),
            ..described
        });
    }
    DescribeGroupsResponse {
        groups,
        ..DescribeGroupsResponse::default()
    }
}

async fn describe(client: &Client, name: &str) -> Result<ClassicDescription, Refusal> {
    let group = group(name).map_err(|error| (error, "no group has such a name".to_owned()))?;
    let described = client.front.describe_group(group).await;
    described.map_err(|failure| match &failure {
        // Who asks by this protocol is not told of groups of another kind.
        GroupFailure::Refused(GroupError::OtherKind(_)) => {
            (ErrorCode::GroupIdNotFound, failure.to_string())
        }
        _ => (ErrorCode::from(&failure), failure.to_string()),
    })
}

fn describe_response(described: ClassicDescription) -> DescribedGroup {
    let member = |member: ClassicMemberView| DescribedGroupMember {
        member_id: member.id.as_str().into(),
        group_instance_id: member.instance.as_deref().map(Text::from),
        client_id: (&*member.client).into(),
        client_host: (&*member.client_host).into(),
        member_metadata: member.metadata,
        member_assignment: member.assignment,
    };
    DescribedGroup {
        group_state: described.state.into(),
        protocol_type: (&*described.protocol_type).into(),
        protocol_data: (&*described.protocol).into(),
        members: described.members.into_iter().map(member).collect(),
        ..DescribedGroup::default()
    }
}

pub(crate) async fn list_groups(
    client: &Arc<Client>,
    request: ListGroupsRequest,
    _version: i16,
) -> ListGroupsResponse {
    let (groups, error) = match client.front.list_groups().await {
        Ok((groups, false)) => (groups, ErrorCode::None),
        Ok((groups, true)) => (groups, ErrorCode::CoordinatorLoadInProgress),
        Err(error) => (Vec::new(), ErrorCode::of_coordinator(&error)),
    };
    let wanted = |filter: &[Text], value: &str| {
        filter.is_empty() || filter.iter().any(|it| it.eq_ignore_ascii_case(value))
    };
    let groups = groups.into_iter().filter_map(|listing| {
        let (state, kind) = (state(&listing), kind(&listing));
        let fits = wanted(&request.states_filter, state) && wanted(&request.types_filter, kind);
        fits.then(|| ListedGroup {
            group_id: listing.group.as_str().into(),
            protocol_type: (&*listing.protocol_type).into(),
            group_state: state.into(),
            group_type: kind.into(),
        })
    });
    ListGroupsResponse {
        error_code: error.code(),
        groups: groups.collect(),
        ..ListGroupsResponse::default()
    }
}

/// A group's state as Kafka names it.
pub(super) fn state(listing: &Listing) -> &'static str {
    match listing.state {
        "EMPTY" => "Empty",
        "STABLE" => "Stable",
        "RECONCILING" => "Reconciling",
        "PREPARING_REBALANCE" => "PreparingRebalance",
        "COMPLETING_REBALANCE" => "CompletingRebalance",
        _ => "Unknown",
    }
}

/// A group's kind as Kafka names it.
fn kind(listing: &Listing) -> &'static str {
    match listing.kind {
        GroupKind::ConsumerKind => "consumer",
        GroupKind::ClassicKind | GroupKind::NoKind => "classic",
    }
}

pub(crate) async fn delete_groups(
    client: &Arc<Client>,
    request: DeleteGroupsRequest,
    _version: i16,
) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for name in request.groups_names {
        let deleted = match group(&name) {
            Ok(group) => {
                let deleted = client.front.delete_group(group).await;
                deleted.map_err(|failure| ErrorCode::from(&failure))
            }
            Err(error) => Err(error),
        };
        results.push(DeletableGroupResult {
            group_id: name,
            error_code: deleted.err().unwrap_or(ErrorCode::None).code(),
        });
    }
    DeleteGroupsResponse {
        results,
        ..DeleteGroupsResponse::default()
    }
}
