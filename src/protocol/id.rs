//! Names of things: newtypes that print and parse one way everywhere.
use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not the id it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    /// What was read.
    pub text: String,
    /// What it should have looked like, with an example.
    pub expected: &'static str,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Number(u64),
    Text(String),
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // Text for people and scripts, who would round a large number; a number on the wire.
                match serializer.is_human_readable() {
                    true => serializer.collect_str(self),
                    false => serializer.serialize_u64(self.0),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return u64::deserialize(deserializer).map(Self);
                }
                match TextOrNumber::deserialize(deserializer)? {
                    TextOrNumber::Number(number) => Ok(Self(number)),
                    TextOrNumber::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{}"), self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits = text.strip_prefix($prefix).unwrap_or(text);
                match digits.parse() {
                    Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Self(number)),
                    _ => Err(ParseIdError { text: text.to_owned(), expected: $expected }),
                }
            }
        }
    };
}

numbered!(
    /// A member of the cluster; given once, never reused.
    NodeId, "n", "a node id such as `n1`"
);
numbered!(
    /// A key range with its own Raft group; given by the directory, never reused. `s-0` is the directory itself.
    ShardId, "s-", "a shard id such as `s-17`"
);
numbered!(
    /// One copy of one shard. A node that loses and regains a shard gets a new replica id: Raft must not take the
    /// second for the first.
    ReplicaId, "r", "a replica id such as `r3`"
);
numbered!(
    /// Version of a shard's descriptor: grows with each change of range or members. The higher one is right.
    Epoch, "e", "an epoch such as `e12`"
);

numbered!(
    /// A long operation on the cluster, kept by the directory.
    OpId, "op-", "an operation's id such as `op-1007`"
);

/// The shard that holds the directory.
pub const DIRECTORY_SHARD: ShardId = ShardId(0);

/// Names one write for ever: repeated with the same id it has one effect and gets the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl RequestId {
    /// A fresh random id.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        Self(u128::from_be_bytes(bytes))
    }

    /// The entity key of a POST with this id: 16 characters of base 32, uniform over the key space, the same on
    /// every retry. Never time-ordered: such keys would send every POST to the last shard.
    pub fn entity_key(self) -> String {
        // Two rounds of SplitMix64's finalizer (Steele et al., OOPSLA 2014), so that ids which are not random
        // themselves still spread.
        fn mix(mut z: u64) -> u64 {
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
        let high = mix((self.0 >> 64) as u64 ^ 0x9e37_79b9_7f4a_7c15);
        let first = mix(high ^ self.0 as u64);
        let second = mix(first ^ high.rotate_left(17));
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&first.to_be_bytes());
        bytes[8..].copy_from_slice(&second.to_be_bytes()[..2]);
        base32().encode(&bytes)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r-{}", base32().encode(&self.0.to_be_bytes())))
    }
}

impl FromStr for RequestId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = || ParseIdError {
            text: text.to_owned(),
            expected: "a request id: `r-` and 26 characters",
        };
        let bytes = base32()
            .decode(text.strip_prefix("r-").ok_or_else(bad)?.as_bytes())
            .map_err(|_| bad())?;
        Ok(Self(u128::from_be_bytes(bytes.try_into().map_err(|_| bad())?)))
    }
}

/// Names a cluster: certificates, stores and connections of another one are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(RequestId::random().0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&base32().encode(&self.0.to_be_bytes()))
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = || ParseIdError {
            text: text.to_owned(),
            expected: "a cluster id: 26 characters",
        };
        let bytes = base32().decode(text.as_bytes()).map_err(|_| bad())?;
        Ok(Self(u128::from_be_bytes(bytes.try_into().map_err(|_| bad())?)))
    }
}

/// Crockford's base 32 in lower case, without i, l, o and u: short, typo-safe, sorts like the bytes it stands for.
pub fn base32() -> &'static Encoding {
    static ENCODING: std::sync::OnceLock<Encoding> = std::sync::OnceLock::new();
    ENCODING.get_or_init(|| {
        let mut spec = Specification::new();
        spec.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
        spec.translate.from.push_str("ABCDEFGHJKMNPQRSTVWXYZilo");
        spec.translate.to.push_str("abcdefghjkmnpqrstvwxyz110");
        spec.encoding().expect("32 symbols, none twice")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        assert_eq!(NodeId(3).to_string(), "n3");
        assert_eq!("n3".parse(), Ok(NodeId(3)));
        assert_eq!("s-17".parse(), Ok(ShardId(17)));
        assert_eq!("17".parse(), Ok(ShardId(17)));
        assert!("s-+7".parse::<ShardId>().is_err());
        // One spelling in JSON too, and what an older file holds is read all the same.
        assert_eq!(serde_json::to_string(&ShardId(17)).ok().as_deref(), Some("\"s-17\""));
        assert_eq!(serde_json::from_str("\"s-17\"").ok(), Some(ShardId(17)));
        assert_eq!(serde_json::from_str("17").ok(), Some(ShardId(17)));
        let id = RequestId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("r-xyz".parse::<RequestId>().is_err());
    }

    #[test]
    fn post_keys_spread_even_from_sequential_ids() {
        let mut first = std::collections::BTreeMap::new();
        for n in 0..3200u128 {
            let key = RequestId(n).entity_key();
            assert_eq!(key.len(), 16);
            *first.entry(key.as_bytes()[0]).or_insert(0u32) += 1;
        }
        assert_eq!(first.len(), 32);
        assert!(first.values().all(|&n| (50..=160).contains(&n)), "{first:?}");
    }
}
