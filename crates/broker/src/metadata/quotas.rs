//! What clients may send and be sent, as the metadata says.

use std::{collections::BTreeMap, num::NonZeroU64};

use quipu_proto::{
    internal::v1::{ClientQuotaChanged, metadata_record::Record},
    v1::{AlterQuotaRequest, Quota},
};

use crate::error::{BrokerError, Reason};

/// The most client ids that have a quota of their own.
pub(crate) const MOST_QUOTAS: usize = 4096;
/// The longest client id that is told from others, in bytes.
pub(crate) const LONGEST_CLIENT_ID: usize = 255;

/// What a quota bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Bytes that clients send.
    Produce,
    /// Bytes that clients are sent.
    Fetch,
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    produce: Option<NonZeroU64>,
    fetch: Option<NonZeroU64>,
}

impl Rates {
    fn of(self, traffic: Traffic) -> Option<NonZeroU64> {
        match traffic {
            Traffic::Produce => self.produce,
            Traffic::Fetch => self.fetch,
        }
    }

    fn into_quota(self, client_id: Option<&str>) -> Quota {
        Quota {
            client_id: client_id.map(str::to_owned),
            produce_bytes_per_second: self.produce.map(NonZeroU64::get),
            fetch_bytes_per_second: self.fetch.map(NonZeroU64::get),
        }
    }
}

/// The rate to which a client is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) bytes_per_second: NonZeroU64,
    /// Whether it was set for this client id.
    pub(crate) own: bool,
}

/// All quotas.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientQuotas {
    default: Rates,
    by_client: BTreeMap<Box<str>, Rates>,
}

impl ClientQuotas {
    /// The rate of a client: its own, or the default.
    pub(crate) fn rate(&self, client: &str, traffic: Traffic) -> Option<Rate> {
        let own = self.by_client.get(client).and_then(|own| own.of(traffic));
        let bytes_per_second = own.or(self.default.of(traffic))?;
        Some(Rate {
            bytes_per_second,
            own: own.is_some(),
        })
    }

    /// The default first, where there is one, then by client id.
    pub(crate) fn list(&self) -> Vec<Quota> {
        let default = Some(self.default).filter(|default| *default != Rates::default());
        let default = default.map(|default| default.into_quota(None));
        let own = self.by_client.iter();
        let own = own.map(|(client, rates)| rates.into_quota(Some(client)));
        default.into_iter().chain(own).collect()
    }

    /// A client's own quota, or the default.
    pub(crate) fn quota(&self, client_id: Option<&str>) -> Quota {
        self.rates(client_id).into_quota(client_id)
    }

    fn rates(&self, client_id: Option<&str>) -> Rates {
        match client_id {
            None => self.default,
            Some(client) => self.by_client.get(client).copied().unwrap_or_default(),
        }
    }

    /// The record that makes a change; none where everything is as wanted.
    ///
    /// # Errors
    /// Where there are as many quotas as are kept, or the client id is too long.
    pub(crate) fn decide(&self, alter: AlterQuotaRequest) -> Result<Option<Record>, BrokerError> {
        let refused = |message| Err(BrokerError::new(Reason::InvalidRequest, message));
        let client_id = alter.client_id.as_deref();
        let length = client_id.map_or(0, str::len);
        if length > LONGEST_CLIENT_ID {
            return refused(format!(
                "the client id has {length} bytes: give at most {LONGEST_CLIENT_ID}"
            ));
        }
        let before = self.rates(client_id);
        let changed = |given: Option<u64>, before| match given {
            None => before,
            Some(rate) => NonZeroU64::new(rate),
        };
        let after = Rates {
            produce: changed(alter.produce_bytes_per_second, before.produce),
            fetch: changed(alter.fetch_bytes_per_second, before.fetch),
        };
        if after == before {
            return Ok(None);
        }
        let is_new = client_id.is_some() && before == Rates::default();
        if is_new && self.by_client.len() >= MOST_QUOTAS {
            return refused(format!(
                "{MOST_QUOTAS} client ids have quotas, and no more are kept: remove some, or set the default"
            ));
        }
        let written = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
        Ok(Some(Record::ClientQuotaChanged(ClientQuotaChanged {
            produce_bytes_per_second: written(after.produce),
            fetch_bytes_per_second: written(after.fetch),
            client_id: alter.client_id,
        })))
    }

    pub(crate) fn apply(&mut self, changed: ClientQuotaChanged) {
        let rates = Rates {
            produce: NonZeroU64::new(changed.produce_bytes_per_second),
            fetch: NonZeroU64::new(changed.fetch_bytes_per_second),
        };
        match changed.client_id {
            None => self.default = rates,
            Some(client) if rates == Rates::default() => {
                self.by_client.remove(&*client);
            }
            Some(client) => {
                self.by_client.insert(client.into(), rates);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quipu_proto::{
        internal::v1::metadata_record::Record,
        v1::{AlterQuotaRequest, Quota},
    };

    use super::{ClientQuotas, MOST_QUOTAS, Traffic};

    fn alter(client: Option<&str>, produce: Option<u64>, fetch: Option<u64>) -> AlterQuotaRequest {
        AlterQuotaRequest {
            client_id: client.map(str::to_owned),
            produce_bytes_per_second: produce,
            fetch_bytes_per_second: fetch,
        }
    }

    /// Whether it changed anything.
    fn make(quotas: &mut ClientQuotas, alter: AlterQuotaRequest) -> bool {
        match quotas.decide(alter).unwrap() {
            Some(Record::ClientQuotaChanged(changed)) => {
                quotas.apply(changed);
                true
            }
            None => false,
            Some(other) => panic!("{other:?}"),
        }
    }

    fn rate(quotas: &ClientQuotas, client: &str, traffic: Traffic) -> Option<(u64, bool)> {
        let rate = quotas.rate(client, traffic)?;
        Some((rate.bytes_per_second.get(), rate.own))
    }

    #[test]
    fn each_rate_is_a_clients_own_or_the_default() {
        let mut quotas = ClientQuotas::default();
        assert_eq!(rate(&quotas, "a", Traffic::Produce), None);
        assert!(make(&mut quotas, alter(None, Some(100), Some(200))));
        assert!(make(&mut quotas, alter(Some("a"), Some(7), None)));
        assert!(!make(&mut quotas, alter(Some("a"), Some(7), Some(0))));
        assert_eq!(rate(&quotas, "a", Traffic::Produce), Some((7, true)));
        assert_eq!(rate(&quotas, "a", Traffic::Fetch), Some((200, false)));
        assert_eq!(rate(&quotas, "b", Traffic::Produce), Some((100, false)));
        let listed: Vec<_> = quotas.list().into_iter().map(|it| it.client_id).collect();
        assert_eq!(listed, [None, Some("a".to_owned())]);

        assert!(make(&mut quotas, alter(Some("a"), Some(0), Some(0))));
        assert!(make(&mut quotas, alter(None, Some(0), None)));
        let left = Quota {
            fetch_bytes_per_second: Some(200),
            ..Quota::default()
        };
        assert_eq!(quotas.list(), [left]);
    }

    #[test]
    fn quotas_are_bounded_and_those_that_are_there_can_be_changed() {
        let mut quotas = ClientQuotas::default();
        for number in 0..MOST_QUOTAS {
            make(&mut quotas, alter(Some(&number.to_string()), Some(1), None));
        }
        for refused in ["new", &"x".repeat(256)] {
            assert!(quotas.decide(alter(Some(refused), Some(1), None)).is_err());
        }
        assert!(make(&mut quotas, alter(Some("0"), Some(0), Some(5))));
        assert!(make(&mut quotas, alter(None, Some(1), None)));
        assert!(make(&mut quotas, alter(Some("1"), Some(0), None)));
        assert!(make(&mut quotas, alter(Some("new"), Some(1), None)));
    }
}
