//! Zig-zag variable-length numbers, as record fields are written: seven bits a byte, the lowest first.

use super::RecordProblem;

/// The longest encoding of a 32-bit number, in bytes.
pub(super) const MAX_LEN_32: usize = 5;

/// Takes a 32-bit number off the front of `bytes`.
#[inline]
pub(super) fn take_i32(bytes: &mut &[u8]) -> Result<i32, RecordProblem> {
    let raw = take::<{ u32::BITS }>(bytes)? as u32;
    Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
}

/// Takes a 64-bit number off the front of `bytes`.
#[inline]
pub(super) fn take_i64(bytes: &mut &[u8]) -> Result<i64, RecordProblem> {
    let raw = take::<{ u64::BITS }>(bytes)?;
    Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

#[inline]
fn take<const BITS: u32>(bytes: &mut &[u8]) -> Result<u64, RecordProblem> {
    // Nearly every field of nearly every record is one byte.
    if let [first, rest @ ..] = *bytes
        && *first < 0x80
    {
        *bytes = rest;
        return Ok((*first).into());
    }
    take_long::<BITS>(bytes)
}

fn take_long<const BITS: u32>(bytes: &mut &[u8]) -> Result<u64, RecordProblem> {
    let mut value = 0;
    let mut shift = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        if shift >= BITS || (shift + 7 > BITS && bits >> (BITS - shift) != 0) {
            return Err(RecordProblem::BadVarint);
        }
        value |= bits << shift;
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Ok(value);
        }
        shift += 7;
    }
    Err(RecordProblem::EndsEarly)
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Appends a number. A 32-bit number is written alike as either width.
pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// How many bytes [`put`] writes.
pub(super) const fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::{RecordProblem, len, put, take_i32, take_i64};

    #[test]
    fn numbers_survive_and_take_the_length_they_are_said_to() {
        let edges = (0..63).flat_map(|bit| [1i64 << bit, (1 << bit) - 1, -(1 << bit)]);
        for value in edges.chain([i64::MIN, i64::MAX]) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            assert_eq!(bytes.len(), len(value), "{value}");
            assert_eq!(take_i64(&mut bytes.as_slice()), Ok(value));
            let narrow = i32::try_from(value).map_err(|_| RecordProblem::BadVarint);
            assert_eq!(take_i32(&mut bytes.as_slice()), narrow, "{value}");
            let cut = &bytes[..bytes.len() - 1];
            assert_eq!(take_i64(&mut &*cut), Err(RecordProblem::EndsEarly));
        }
    }

    #[test]
    fn a_number_that_goes_on_for_ever_is_refused() {
        let endless = [0xff; 64];
        assert_eq!(take_i32(&mut &endless[..]), Err(RecordProblem::BadVarint));
        assert_eq!(take_i64(&mut &endless[..]), Err(RecordProblem::BadVarint));
    }
}
