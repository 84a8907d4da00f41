//! The protocol's bytes: reading and writing its types, and the messages generated from its schemas.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use read::{DecodeError, Reader};
pub(crate) use write::{Tags, Writer};

use std::{fmt, ops::Deref, str};

use bytes::Bytes;

/// A UUID's bytes.
pub(crate) type Uuid = [u8; 16];

/// Text, often lent from the frame that it came in.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Text(Bytes);

impl Text {
    fn new(bytes: Bytes) -> Result<Self, DecodeError> {
        str::from_utf8(&bytes).map_err(|_| DecodeError::NotText)?;
        Ok(Self(bytes))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Checked when it was made.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// The messages: a module each.
#[allow(
    dead_code,
    unused_mut,
    unused_braces,
    unused_parens,
    unused_variables,
    clippy::all,
    reason = "generated: not every message has what another needs"
)]
pub(crate) mod messages {
    mod prelude {
        pub(super) use bytes::Bytes;

        pub(super) use super::super::{
            DecodeError, Reader, Tags, Text, Uuid, Writer, read::present,
        };
    }

    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
