//! Writing a response: its small parts into one buffer, record bytes by reference.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Text, Uuid};

/// From which size on bytes are lent instead of copied: below, another slice costs more than the copy.
const LENT_FROM: usize = 1 << 10;

/// A message as it is written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    done: Vec<Bytes>,
    done_len: usize,
    rest: BytesMut,
}

macro_rules! numbers {
    ($($name:ident $put:ident)*) => {
        $(
            pub(crate) fn $name(&mut self, value: $name) {
                self.rest.$put(value);
            }
        )*
    };
}

impl Writer {
    numbers! {
        i8 put_i8
        i16 put_i16
        i32 put_i32
        i64 put_i64
        f64 put_f64
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.rest.put_u8(value.into());
    }

    pub(crate) fn uuid(&mut self, value: &Uuid) {
        self.rest.put_slice(value);
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.rest.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.rest.put_u8(value as u8);
    }

    /// The length of bytes or the number of an array's elements. No response has 2^31 of either.
    pub(crate) fn count(&mut self, count: usize, flexible: bool) {
        if flexible {
            self.varint(count as u32 + 1);
        } else {
            self.i32(count as i32);
        }
    }

    /// Null in place of bytes or an array.
    pub(crate) fn null(&mut self, flexible: bool) {
        if flexible {
            self.varint(0);
        } else {
            self.i32(-1);
        }
    }

    /// Text; what is past the length that the format has room for is cut off.
    pub(crate) fn text(&mut self, text: &Text, flexible: bool) {
        let bytes = text.as_bytes();
        let most = text.floor_char_boundary(i16::MAX as usize);
        let bytes = &bytes[..most.min(bytes.len())];
        if flexible {
            self.varint(bytes.len() as u32 + 1);
        } else {
            self.i16(bytes.len() as i16);
        }
        self.rest.put_slice(bytes);
    }

    pub(crate) fn null_text(&mut self, flexible: bool) {
        if flexible {
            self.varint(0);
        } else {
            self.i16(-1);
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &Bytes, flexible: bool) {
        self.count(bytes.len(), flexible);
        if bytes.len() < LENT_FROM {
            self.rest.put_slice(bytes);
            return;
        }
        let before = self.rest.split().freeze();
        for part in [before, bytes.clone()] {
            self.done_len += part.len();
            self.done.push(part);
        }
    }

    pub(crate) fn tags(&mut self, tags: Tags) {
        self.varint(tags.fields.len() as u32);
        for (tag, field) in tags.fields {
            self.varint(tag);
            self.varint(field.len() as u32);
            self.rest.put_slice(&field);
        }
    }

    /// The message's parts in order, with the total length in front as the protocol frames it.
    pub(crate) fn into_frame(mut self) -> Vec<Bytes> {
        let length = self.done_len + self.rest.len();
        let mut frame = Vec::with_capacity(self.done.len() + 2);
        frame.push(Bytes::copy_from_slice(&(length as u32).to_be_bytes()));
        frame.append(&mut self.done);
        if !self.rest.is_empty() {
            frame.push(self.rest.freeze());
        }
        frame
    }
}

/// Tagged fields, in the order of their tags.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    fields: Vec<(u32, Bytes)>,
}

impl Tags {
    pub(crate) fn put(&mut self, tag: u32, write: impl FnOnce(&mut Writer)) {
        let mut writer = Writer::default();
        write(&mut writer);
        let mut field = BytesMut::new();
        for part in writer.done {
            field.put_slice(&part);
        }
        field.put_slice(&writer.rest);
        self.fields.push((tag, field.freeze()));
    }
}
