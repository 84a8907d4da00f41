//! The values of topic settings that are more than a number.

use std::fmt;

/// What becomes of a topic's old records: `cleanup.policy`, one of `delete`, `compact` and `compact,delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// Retention deletes them.
    pub delete: bool,
    /// Compaction keeps the newest of each key.
    pub compact: bool,
}

impl CleanupPolicy {
    /// Old records are deleted.
    pub const DELETE: Self = Self {
        delete: true,
        compact: false,
    };

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut policy = Self {
            delete: false,
            compact: false,
        };
        for word in text.split(',') {
            match word.trim() {
                "delete" => policy.delete = true,
                "compact" => policy.compact = true,
                _ => return None,
            }
        }
        Some(policy)
    }
}

impl fmt::Display for CleanupPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.compact, self.delete) {
            (true, true) => "compact,delete",
            (true, false) => "compact",
            (false, _) => "delete",
        })
    }
}

/// Whose clock a record's timestamp is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's, when it made the record.
    CreateTime,
    /// The leader's, when it took the record in.
    LogAppendTime,
}

impl fmt::Display for TimestampType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        })
    }
}

/// A share from 0 to 1, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    const ONE: u32 = 1_000_000;

    /// The share of so many millionths; more than all is all.
    pub const fn from_millionths(millionths: u32) -> Self {
        if millionths > Self::ONE {
            return Self(Self::ONE);
        }
        Self(millionths)
    }

    /// The same as a fraction.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ONE)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let share: f64 = text.parse().ok()?;
        // Not where it is not a number, either.
        (0.0..=1.0)
            .contains(&share)
            .then(|| Self((share * f64::from(Self::ONE)).round() as u32))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_f64().fmt(f)
    }
}
