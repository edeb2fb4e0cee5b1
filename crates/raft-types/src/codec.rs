//! Sizes of messages, and the way from a message to bytes and back.

use bytes::Bytes;
use protobuf::{ProtobufError, ProtobufResult};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How many bytes postcard writes for a value. Counted without writing anything, because raft
/// asks for the size of every entry that it puts into a message.
pub(crate) trait EncodedLen {
    fn encoded_len(&self) -> usize;
}

/// The length of a number as postcard writes it, seven bits to a byte.
const fn varint_len(value: u64) -> usize {
    let bits = u64::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

impl EncodedLen for u64 {
    fn encoded_len(&self) -> usize {
        varint_len(*self)
    }
}

impl EncodedLen for i64 {
    fn encoded_len(&self) -> usize {
        // The sign goes into the lowest bit.
        varint_len(((*self << 1) ^ (*self >> 63)) as u64)
    }
}

impl EncodedLen for bool {
    fn encoded_len(&self) -> usize {
        1
    }
}

impl EncodedLen for Bytes {
    fn encoded_len(&self) -> usize {
        varint_len(self.len() as u64) + self.len()
    }
}

impl<T: EncodedLen> EncodedLen for Vec<T> {
    fn encoded_len(&self) -> usize {
        let items: usize = self.iter().map(EncodedLen::encoded_len).sum();
        varint_len(self.len() as u64) + items
    }
}

impl<T: EncodedLen> EncodedLen for Option<Box<T>> {
    fn encoded_len(&self) -> usize {
        1 + self.as_ref().map_or(0, |value| value.encoded_len())
    }
}

/// Encodes a message. The default value becomes no bytes at all, because raft itself writes an
/// entry without data where it means an empty configuration change.
pub(crate) fn encode<T>(message: &T) -> ProtobufResult<Vec<u8>>
where
    T: Serialize + Default + PartialEq,
{
    if *message == T::default() {
        return Ok(Vec::new());
    }
    postcard::to_allocvec(message).map_err(|e| ProtobufError::new(e.to_string()))
}

/// Decodes what [`encode`] wrote, all of it.
pub(crate) fn decode<T>(bytes: &[u8]) -> ProtobufResult<T>
where
    T: DeserializeOwned + Default,
{
    if bytes.is_empty() {
        return Ok(T::default());
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(ProtobufError::new(format!(
            "{} bytes left over behind the message",
            rest.len()
        ))),
        Err(e) => Err(ProtobufError::new(e.to_string())),
    }
}

/// Makes a struct a message: its size is that of all its fields, which must be listed in full.
macro_rules! message {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::EncodedLen for $name {
            fn encoded_len(&self) -> usize {
                let Self { $($field),* } = self;
                0 $(+ $crate::codec::EncodedLen::encoded_len($field))*
            }
        }

        impl protobuf::Message for $name {
            fn compute_size(&self) -> u32 {
                u32::try_from($name::encoded_len(self)).unwrap_or(u32::MAX)
            }

            fn write_to_bytes(&self) -> protobuf::ProtobufResult<Vec<u8>> {
                $crate::codec::encode(self)
            }

            fn merge_from_bytes(&mut self, bytes: &[u8]) -> protobuf::ProtobufResult<()> {
                if !bytes.is_empty() {
                    *self = $crate::codec::decode(bytes)?;
                }
                Ok(())
            }
        }

        impl $name {
            /// How many bytes postcard writes for this value. Grows with its payload.
            pub fn encoded_len(&self) -> usize {
                $crate::codec::EncodedLen::encoded_len(self)
            }

            /// Encodes this value. The default value becomes no bytes at all.
            ///
            /// # Errors
            ///
            /// None are known; the encoder may report one.
            pub fn encode(&self) -> Result<Vec<u8>, protobuf::ProtobufError> {
                $crate::codec::encode(self)
            }

            /// Decodes what `encode` wrote.
            ///
            /// # Errors
            ///
            /// If `bytes` is not one value of this type, and nothing else.
            pub fn decode(bytes: &[u8]) -> Result<Self, protobuf::ProtobufError> {
                $crate::codec::decode(bytes)
            }
        }
    };
}

/// Makes an enum take one byte, which holds for every enum with up to 128 values.
macro_rules! one_byte {
    ($($name:ident),* $(,)?) => {
        $(impl $crate::codec::EncodedLen for $name {
            fn encoded_len(&self) -> usize {
                1
            }
        })*
    };
}

/// Writes the accessor methods of fields, by the kind of field.
macro_rules! accessors {
    ($name:ident { $($kind:ident $field:ident: $ty:ty => $($method:ident)*;)* }) => {
        #[allow(missing_docs)]
        impl $name {
            $(accessors!(@$kind $field: $ty => $($method)*);)*
        }
    };
    (@copy $field:ident: $ty:ty => $get:ident $set:ident) => {
        #[inline]
        pub fn $get(&self) -> $ty {
            self.$field
        }

        #[inline]
        pub fn $set(&mut self, value: $ty) {
            self.$field = value;
        }
    };
    (@bytes $field:ident: $ty:ty => $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $get(&self) -> &[u8] {
            &self.$field
        }

        accessors!(@change $field: $ty => $set $mut $take);
    };
    (@list $field:ident: $ty:ty => $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $get(&self) -> &[$ty] {
            &self.$field
        }

        accessors!(@change $field: Vec<$ty> => $set $mut $take);
    };
    (@part $field:ident: $ty:ty => $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $get(&self) -> &$ty {
            &self.$field
        }

        accessors!(@change $field: $ty => $set $mut $take);
    };
    (@change $field:ident: $ty:ty => $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $set(&mut self, value: $ty) {
            self.$field = value;
        }

        #[inline]
        pub fn $mut(&mut self) -> &mut $ty {
            &mut self.$field
        }

        #[inline]
        pub fn $take(&mut self) -> $ty {
            std::mem::take(&mut self.$field)
        }
    };
}

pub(crate) use {accessors, message, one_byte};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_lengths_are_those_of_postcard() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let written = postcard::to_allocvec(&value).unwrap();
                assert_eq!(value.encoded_len(), written.len(), "{value}");
                for value in [value as i64, (value as i64).wrapping_neg()] {
                    let written = postcard::to_allocvec(&value).unwrap();
                    assert_eq!(value.encoded_len(), written.len(), "{value}");
                }
            }
        }
    }
}
