//! DescribeClientQuotas and AlterClientQuotas.

use std::sync::Arc;

use quipu_broker::front::{Quota, QuotaChange};

use super::refusal;
use crate::{
    config::Refusal,
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            alter_client_quotas_request::{AlterClientQuotasRequest, EntryData, OpData},
            alter_client_quotas_response::{
                AlterClientQuotasResponse, EntityData as AlteredEntity, EntryData as Altered,
            },
            describe_client_quotas_request::{ComponentData, DescribeClientQuotasRequest},
            describe_client_quotas_response::{
                DescribeClientQuotasResponse, EntityData as DescribedEntity,
                EntryData as Described, ValueData,
            },
        },
    },
};

/// What has quotas here.
const CLIENT_ID: &str = "client-id";
/// What has quotas in Kafka, and none here.
const OTHERS: [&str; 2] = ["user", "ip"];
const PRODUCE: &str = "producer_byte_rate";
const FETCH: &str = "consumer_byte_rate";

fn invalid(line: String) -> Refusal {
    (ErrorCode::InvalidRequest, line)
}

/// Text of a request in an answer to it: not more of it than a line takes.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

pub(crate) async fn describe_client_quotas(
    client: &Arc<Client>,
    request: DescribeClientQuotasRequest,
    _version: i16,
) -> DescribeClientQuotasResponse {
    match filter(&request) {
        Ok(wanted) => {
            let quotas = client.front.quotas().into_iter();
            let quotas = quotas.filter(|quota| wanted.has(quota.client_id.as_deref()));
            DescribeClientQuotasResponse {
                error_message: None,
                entries: Some(quotas.map(described).collect()),
                ..DescribeClientQuotasResponse::default()
            }
        }
        Err((error, line)) => DescribeClientQuotasResponse {
            error_code: error.code(),
            error_message: Some(line.into()),
            entries: None,
            ..DescribeClientQuotasResponse::default()
        },
    }
}

/// Which quotas are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Named(&'a str),
    Default,
    All,
    None,
}

impl Wanted<'_> {
    fn has(self, client_id: Option<&str>) -> bool {
        match self {
            Self::Named(name) => client_id == Some(name),
            Self::Default => client_id.is_none(),
            Self::All => true,
            Self::None => false,
        }
    }
}

/// What a request says of a kind of entities.
fn of<'a>(
    request: &'a DescribeClientQuotasRequest,
    kind: &'a str,
) -> impl Iterator<Item = &'a ComponentData> {
    let components = request.components.iter();
    components.filter(move |component| &*component.entity_type == kind)
}

/// # Errors
/// Where the request contradicts itself, or asks for what nothing is.
fn filter(request: &DescribeClientQuotasRequest) -> Result<Wanted<'_>, Refusal> {
    for component in &request.components {
        let kind = &*component.entity_type;
        if kind != CLIENT_ID && !OTHERS.contains(&kind) {
            let line = format!("{:?} is no entity type: give {CLIENT_ID}", short(kind));
            return Err((ErrorCode::UnsupportedVersion, line));
        }
        if of(request, kind).count() > 1 {
            return Err(invalid(format!("{kind} is asked for twice")));
        }
    }
    let wanted = match of(request, CLIENT_ID).next() {
        Some(component) => matched(component)?,
        None if request.strict => Wanted::None,
        None => Wanted::All,
    };
    // What has a user or an address as well is none of ours.
    let others = OTHERS
        .iter()
        .any(|other| of(request, other).next().is_some());
    Ok(if others { Wanted::None } else { wanted })
}

fn matched(component: &ComponentData) -> Result<Wanted<'_>, Refusal> {
    match (component.match_type, &component.r#match) {
        (0, Some(name)) => Ok(Wanted::Named(name)),
        (1, None) => Ok(Wanted::Default),
        (2, None) => Ok(Wanted::All),
        (kind, _) => Err(invalid(format!(
            "match type {kind} is none, or does not go with what it is to match"
        ))),
    }
}

fn described(quota: Quota) -> Described {
    let value = |key: &str, rate: Option<u64>| {
        rate.map(|rate| ValueData {
            key: key.into(),
            value: rate as f64,
        })
    };
    let values = [
        value(PRODUCE, quota.produce_bytes_per_second),
        value(FETCH, quota.fetch_bytes_per_second),
    ];
    Described {
        entity: vec![DescribedEntity {
            entity_type: CLIENT_ID.into(),
            entity_name: quota.client_id.map(Text::from),
        }],
        values: values.into_iter().flatten().collect(),
    }
}

pub(crate) async fn alter_client_quotas(
    client: &Arc<Client>,
    request: AlterClientQuotasRequest,
    _version: i16,
) -> AlterClientQuotasResponse {
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let (error_code, error_message) = match alter(client, &entry, request.validate_only).await {
            Ok(()) => (ErrorCode::None, None),
            Err((error, line)) => (error, Some(Text::from(line))),
        };
        let entity = entry.entity.into_iter();
        entries.push(Altered {
            error_code: error_code.code(),
            error_message,
            entity: entity
                .map(|entity| AlteredEntity {
                    entity_type: entity.entity_type,
                    entity_name: entity.entity_name,
                })
                .collect(),
        });
    }
    AlterClientQuotasResponse {
        entries,
        ..AlterClientQuotasResponse::default()
    }
}

async fn alter(client: &Client, entry: &EntryData, validate_only: bool) -> Result<(), Refusal> {
    let change = change(entry)?;
    let altered = match validate_only {
        true => client.front.check_quota(change),
        false => client.front.alter_quota(change).await,
    };
    altered.map_err(refusal)
}

/// # Errors
/// Where it is not the quota of a client id, or a rate that there is.
fn change(entry: &EntryData) -> Result<QuotaChange, Refusal> {
    let entity = match &entry.entity[..] {
        [entity] if &*entity.entity_type == CLIENT_ID => entity,
        _ => {
            let line = format!("quotas are of one {CLIENT_ID} each, or of its default");
            return Err(invalid(line));
        }
    };
    let mut change = QuotaChange {
        client_id: entity.entity_name.as_ref().map(|name| name.to_string()),
        ..QuotaChange::default()
    };
    for op in &entry.ops {
        let rate = match &*op.key {
            PRODUCE => &mut change.produce_bytes_per_second,
            FETCH => &mut change.fetch_bytes_per_second,
            other => {
                return Err(invalid(format!(
                    "{:?} is no quota here: give {PRODUCE} or {FETCH}",
                    short(other)
                )));
            }
        };
        if rate.replace(rate_of(op)?).is_some() {
            return Err(invalid(format!("{} is given twice", &*op.key)));
        }
    }
    Ok(change)
}

/// The rate that is asked for; 0: none.
fn rate_of(op: &OpData) -> Result<u64, Refusal> {
    /// Above, a number of this kind is no longer exact.
    const MOST: f64 = (1u64 << 53) as f64;
    if op.remove {
        return Ok(0);
    }
    let rate = op.value;
    if !(1.0..=MOST).contains(&rate) || rate.fract() != 0.0 {
        let line = format!(
            "{} is {rate}: give whole bytes a second, at least 1",
            &*op.key
        );
        return Err(invalid(line));
    }
    Ok(rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::messages::alter_client_quotas_request::EntityData;

    fn component(kind: &str, match_type: i8, name: Option<&str>) -> ComponentData {
        ComponentData {
            entity_type: kind.into(),
            match_type,
            r#match: name.map(Text::from),
        }
    }

    fn asked(components: Vec<ComponentData>, strict: bool) -> DescribeClientQuotasRequest {
        DescribeClientQuotasRequest { components, strict }
    }

    #[test]
    fn filters_are_what_kafka_takes_them_for() {
        for (components, strict, wanted) in [
            (vec![], false, Wanted::All),
            (vec![], true, Wanted::None),
            (
                vec![component(CLIENT_ID, 0, Some("a"))],
                true,
                Wanted::Named("a"),
            ),
            (vec![component(CLIENT_ID, 1, None)], false, Wanted::Default),
            (vec![component(CLIENT_ID, 2, None)], true, Wanted::All),
            (vec![component("user", 2, None)], false, Wanted::None),
            (
                vec![component(CLIENT_ID, 2, None), component("ip", 1, None)],
                false,
                Wanted::None,
            ),
        ] {
            assert_eq!(filter(&asked(components, strict)), Ok(wanted));
        }
        for components in [
            vec![component("colour", 2, None)],
            vec![component(CLIENT_ID, 0, None)],
            vec![component(CLIENT_ID, 9, None)],
            vec![component(CLIENT_ID, 2, None), component(CLIENT_ID, 1, None)],
        ] {
            assert!(filter(&asked(components, false)).is_err());
        }
    }

    fn entry(kinds: &[&str], key: &str, value: f64) -> EntryData {
        let entity = kinds.iter().map(|kind| EntityData {
            entity_type: (*kind).into(),
            entity_name: Some("a".into()),
        });
        EntryData {
            entity: entity.collect(),
            ops: vec![OpData {
                key: key.into(),
                value,
                remove: false,
            }],
        }
    }

    #[test]
    fn what_is_no_quota_here_is_refused_by_name() {
        let made = change(&entry(&[CLIENT_ID], FETCH, 5.0)).unwrap();
        assert_eq!(made.fetch_bytes_per_second, Some(5));
        for (kinds, key, value) in [
            (&[][..], FETCH, 5.0),
            (&["user"][..], FETCH, 5.0),
            (&["user", CLIENT_ID][..], FETCH, 5.0),
            (&[CLIENT_ID][..], "request_percentage", 5.0),
            (&[CLIENT_ID][..], PRODUCE, 0.0),
            (&[CLIENT_ID][..], PRODUCE, 1.5),
            (&[CLIENT_ID][..], PRODUCE, -1.0),
            (&[CLIENT_ID][..], PRODUCE, f64::NAN),
            (&[CLIENT_ID][..], PRODUCE, f64::INFINITY),
        ] {
            let (error, line) = change(&entry(kinds, key, value)).unwrap_err();
            assert_eq!(error, ErrorCode::InvalidRequest, "{line}");
        }
    }
}
