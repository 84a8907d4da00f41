//! What can go wrong, in terms that a program can act on.

use std::fmt;

pub use quipu_proto::v1::ErrorReason;
use quipu_proto::v1::{self, Node};
use tonic::Code;
use tonic_types::StatusExt;

/// The result of a call to Quipu.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A broker refused it.
    Broker(ErrorReason),
    /// No broker answered, or the connection broke.
    Unreachable,
    /// The time that the caller gave was over.
    TimedOut,
    /// The producer was closed.
    Closed,
    /// The caller asked for something that cannot be.
    InvalidArgument,
    /// The broker sent what this client does not understand.
    Malformed,
}

/// Whether the thing asked for may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen.
    Definite,
    /// It may have happened, or may still.
    Indefinite,
}

/// A failed call: [`Error::reason`] says why, [`Error::is_retryable`] whether the same call may succeed later, and
/// [`Error::outcome`] whether it may have happened all the same. Displays as one line that says what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: Reason,
    retryable: bool,
    outcome: Outcome,
    message: Box<str>,
    leader: Option<Box<str>>,
}

impl Error {
    /// Why it failed.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether it may have happened all the same.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether a broker gave this reason.
    pub fn is(&self, reason: ErrorReason) -> bool {
        self.reason == Reason::Broker(reason)
    }

    /// The address of the node to ask instead, where the broker named one.
    pub(crate) fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    /// Whether what the client believes about topics and leaders may be out of date.
    pub(crate) fn is_stale_metadata(&self) -> bool {
        match self.reason {
            Reason::Unreachable => true,
            Reason::Broker(reason) => matches!(
                reason,
                ErrorReason::NotLeader
                    | ErrorReason::UnknownTopic
                    | ErrorReason::UnknownPartition
                    | ErrorReason::ShuttingDown
            ),
            _ => false,
        }
    }

    /// The same failure of something that may have happened at an earlier try.
    pub(crate) fn left_open(self) -> Self {
        Self {
            outcome: Outcome::Indefinite,
            ..self
        }
    }

    pub(crate) fn invalid(message: impl fmt::Display) -> Self {
        Self::definite(Reason::InvalidArgument, false, message)
    }

    pub(crate) fn malformed(message: impl fmt::Display) -> Self {
        Self::definite(Reason::Malformed, false, message)
    }

    pub(crate) fn closed() -> Self {
        Self::definite(
            Reason::Closed,
            false,
            "the producer is closed: make a new one",
        )
    }

    pub(crate) fn unreachable(message: impl fmt::Display) -> Self {
        Self {
            outcome: Outcome::Indefinite,
            ..Self::definite(Reason::Unreachable, true, message)
        }
    }

    /// A node does not answer, and another one leads by now.
    pub(crate) fn replaced(silent: &str, leader: Box<str>) -> Self {
        Self {
            leader: Some(leader),
            ..Self::unreachable(format_args!("{silent} does not answer, and leads no more"))
        }
    }

    pub(crate) fn timed_out(message: impl fmt::Display, outcome: Outcome) -> Self {
        Self {
            outcome,
            ..Self::definite(Reason::TimedOut, true, message)
        }
    }

    fn definite(reason: Reason, retryable: bool, message: impl fmt::Display) -> Self {
        Self {
            reason,
            retryable,
            outcome: Outcome::Definite,
            message: message.to_string().into(),
            leader: None,
        }
    }

    /// The error in a stream's message.
    pub(crate) fn from_proto(error: v1::Error) -> Self {
        let outcome = match error.outcome() {
            v1::Outcome::Definite => Outcome::Definite,
            // What a broker leaves open may have happened.
            v1::Outcome::Indefinite | v1::Outcome::Unspecified => Outcome::Indefinite,
        };
        Self {
            reason: Reason::Broker(error.reason()),
            retryable: error.retryable,
            outcome,
            leader: error.leader.and_then(node_address),
            message: error.message.into(),
        }
    }

    /// The error of a failed call to `address`.
    pub(crate) fn from_status(address: &str, status: &tonic::Status) -> Self {
        let details = status.get_details_error_info();
        let Some(info) = details.filter(|info| info.domain == "quipu.dev") else {
            return Self::from_bare_status(address, status);
        };
        let field = |name: &str| info.metadata.get(name).map(String::as_str);
        let outcome = match field("outcome").map(str::to_ascii_lowercase).as_deref() {
            Some("definite") => Outcome::Definite,
            _ => Outcome::Indefinite,
        };
        Self {
            reason: Reason::Broker(
                ErrorReason::from_str_name(&info.reason).unwrap_or(ErrorReason::Unspecified),
            ),
            retryable: field("retryable") == Some("true"),
            outcome,
            message: status.message().into(),
            leader: field("leader_address")
                .filter(|address| !address.is_empty())
                .map(Into::into),
        }
    }

    /// A status without our details: the connection, or something between us and the broker.
    fn from_bare_status(address: &str, status: &tonic::Status) -> Self {
        let text = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        match status.code() {
            Code::Unimplemented => Self::malformed(format_args!(
                "{address} does not know this call: is it a Quipu broker's gRPC address (port 9093), of this version?"
            )),
            Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied => {
                Self::definite(Reason::Malformed, false, format_args!("{address}: {text}"))
            }
            Code::OutOfRange => Self::malformed(format_args!(
                "{address} answered with a message larger than this client takes: {text}"
            )),
            _ => {
                let cause = std::error::Error::source(status)
                    .map(innermost)
                    .unwrap_or_else(|| text.to_owned());
                Self::unreachable(format_args!(
                    "no answer from {address} ({cause}): is the broker running there?"
                ))
            }
        }
    }
}

pub(crate) fn node_address(node: Node) -> Option<Box<str>> {
    (!node.address.is_empty()).then(|| node.address.into())
}

/// The text of the last error in a chain: transport errors wrap the one that says something several times.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt};

    use super::{Error, ErrorReason, Outcome, Reason};

    #[test]
    fn a_brokers_status_keeps_its_meaning() {
        let metadata = HashMap::from([
            ("retryable".to_owned(), "true".to_owned()),
            ("outcome".to_owned(), "DEFINITE".to_owned()),
            ("leader_address".to_owned(), "other:9093".to_owned()),
        ]);
        let details = ErrorDetails::with_error_info("NOT_LEADER", "quipu.dev", metadata);
        let status = Status::with_error_details(Code::FailedPrecondition, "ask other", details);
        let error = Error::from_status("here:9093", &status);
        assert!(error.is(ErrorReason::NotLeader));
        assert!(error.is_retryable());
        assert_eq!(error.outcome(), Outcome::Definite);
        assert_eq!(error.leader(), Some("other:9093"));
        assert_eq!(error.to_string(), "ask other");
    }

    #[test]
    fn a_broken_connection_is_retryable_and_leaves_the_outcome_open() {
        let error = Error::from_status("here:9093", &Status::unavailable("connection refused"));
        assert_eq!(error.reason(), Reason::Unreachable);
        assert!(error.is_retryable());
        assert_eq!(error.outcome(), Outcome::Indefinite);
        assert!(error.to_string().contains("here:9093"));
    }
}
