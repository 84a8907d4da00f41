//! Reading a request. No number that a peer sent decides how much memory is taken.

use bytes::{Buf, Bytes};

use super::{Text, Uuid};

/// Why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("a length or count is negative or greater than the request has room for")]
    BadLength,
    #[error("it has more elements than its size allows")]
    TooManyElements,
    #[error("a field is null that has to be there")]
    Null,
    #[error("a string is not UTF-8")]
    NotText,
    #[error("a variable-length number does not end")]
    BadVarint,
    #[error("a tagged field is longer or shorter than it says")]
    BadTag,
}

/// Reads a frame's fields in turn.
#[derive(Debug)]
pub(crate) struct Reader {
    rest: Bytes,
    /// How many bytes of memory the elements of arrays may still take.
    allowance: usize,
    /// How many they could at first.
    given: usize,
}

/// What the elements of a request's arrays may take in memory for each byte of it. The densest request that clients send, a
/// list of topics with names of one letter, takes less.
const MEMORY_PER_BYTE: usize = 32;
/// What they may take in all, however large the request.
const MOST_MEMORY: usize = 16 << 20;

/// # Errors
/// Where it is null.
pub(crate) fn present<T>(value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Null)
}

macro_rules! numbers {
    ($($name:ident $get:ident)*) => {
        $(
            pub(crate) fn $name(&mut self) -> Result<$name, DecodeError> {
                self.rest.$get().map_err(|_| DecodeError::Truncated)
            }
        )*
    };
}

impl Reader {
    /// A reader that lends what it reads from `frame`.
    pub(crate) fn new(frame: Bytes) -> Self {
        let given = frame.len().saturating_mul(MEMORY_PER_BYTE).min(MOST_MEMORY);
        Self {
            rest: frame,
            allowance: given,
            given,
        }
    }

    /// How many bytes of memory the elements read so far take, beside the frame.
    pub(crate) fn taken(&self) -> usize {
        self.given - self.allowance
    }

    numbers! {
        i8 try_get_i8
        i16 try_get_i16
        i32 try_get_i32
        i64 try_get_i64
        f64 try_get_f64
    }

    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.i8()? != 0)
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, DecodeError> {
        let mut uuid = Uuid::default();
        let read = self.rest.try_copy_to_slice(&mut uuid);
        read.map_err(|_| DecodeError::Truncated)?;
        Ok(uuid)
    }

    fn varint(&mut self) -> Result<u32, DecodeError> {
        let mut value: u32 = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.rest.try_get_u8().map_err(|_| DecodeError::Truncated)?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::BadVarint)
    }

    /// A length, checked against the bytes that are left; `None`: null.
    fn length(&mut self, flexible: bool, short: bool) -> Result<Option<usize>, DecodeError> {
        let length = if flexible {
            i64::from(self.varint()?) - 1
        } else if short {
            self.i16()?.into()
        } else {
            self.i32()?.into()
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            _ => Err(DecodeError::BadLength),
        }
    }

    pub(crate) fn text(&mut self, flexible: bool) -> Result<Option<Text>, DecodeError> {
        let length = self.length(flexible, true)?;
        length
            .map(|length| Text::new(self.rest.split_to(length)))
            .transpose()
    }

    pub(crate) fn bytes(&mut self, flexible: bool) -> Result<Option<Bytes>, DecodeError> {
        let length = self.length(flexible, false)?;
        Ok(length.map(|length| self.rest.split_to(length)))
    }

    /// An array. Each element takes at least one byte, so that a count past the bytes at hand is refused before anything is
    /// allocated; how much the elements take is bounded by the frame's size.
    pub(crate) fn array<T>(
        &mut self,
        flexible: bool,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(count) = self.length(flexible, false)? else {
            return Ok(None);
        };
        let memory = count.saturating_mul(size_of::<T>());
        self.allowance = self
            .allowance
            .checked_sub(memory)
            .ok_or(DecodeError::TooManyElements)?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(Some(elements))
    }

    /// Whether a struct follows that may be null.
    pub(crate) fn is_present(&mut self) -> Result<bool, DecodeError> {
        Ok(self.i8()? >= 0)
    }

    /// Tagged fields: `field` reads those that it knows, others are skipped.
    pub(crate) fn tags(
        &mut self,
        mut field: impl FnMut(&mut Self, u32) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        for _ in 0..self.varint()? {
            let tag = self.varint()?;
            let length = self.varint()? as usize;
            let left = self.rest.len().checked_sub(length);
            let left = left.ok_or(DecodeError::BadLength)?;
            if !field(self, tag)? {
                self.rest.advance(length);
            }
            if self.rest.len() != left {
                return Err(DecodeError::BadTag);
            }
        }
        Ok(())
    }
}
