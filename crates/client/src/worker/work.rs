//! What a handler gets, and what it may say of it.

use std::{fmt::Display, sync::Arc};

use quipu_model::TimestampMs;

use crate::ConsumerRecord;

/// A record to work on.
#[derive(Clone, Debug)]
pub struct Work {
    /// The record as it stood in the topic that it was first read from, whichever attempt this is.
    pub record: ConsumerRecord,
    /// Which attempt this is, from 1 on. After a crash, an attempt may be made again under the same number.
    pub attempt: u32,
    /// When the first attempt failed.
    pub first_failed_at: Option<TimestampMs>,
}

/// Why a record could not be processed. Any error becomes a transient failure by `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may succeed later: the record is tried again after a delay.
    Transient(String),
    /// It never will: the record goes to the dead letters at once.
    Permanent(String),
}

impl Failure {
    /// It may succeed later.
    pub fn transient(cause: impl Display) -> Self {
        Self::Transient(cause.to_string())
    }

    /// It never will succeed.
    pub fn permanent(cause: impl Display) -> Self {
        Self::Permanent(cause.to_string())
    }

    /// Why.
    pub fn cause(&self) -> &str {
        match self {
            Self::Transient(cause) | Self::Permanent(cause) => cause,
        }
    }
}

/// With every error below it.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            cause.push_str(": ");
            cause.push_str(&error.to_string());
            source = error.source();
        }
        Self::Transient(cause)
    }
}

/// Works on records. Every closure of this form is one: `|work: Arc<Work>| async move { … }`.
///
/// A record may be worked on again after a crash, or when its partition went to another member: what a handler does must come to
/// the same if it is done twice ([`Once`](crate::Once) helps). A panic is a transient failure.
pub trait Handler: Send + Sync + 'static {
    /// Works on a record.
    fn handle(&self, work: Arc<Work>) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<F, Done> Handler for F
where
    F: Fn(Arc<Work>) -> Done + Send + Sync + 'static,
    Done: Future<Output = Result<(), Failure>> + Send,
{
    fn handle(&self, work: Arc<Work>) -> impl Future<Output = Result<(), Failure>> + Send {
        self(work)
    }
}
