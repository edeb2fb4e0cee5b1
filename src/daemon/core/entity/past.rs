//! What an entity remembers of the versions before its current one: a few lines each, for whoever asks how it came to be so.
//!
//! It lies in the head row as one piece of bytes that a write copies and adds to, without taking it apart: an entity that was
//! written once has none. A row of its own for each version would cost another row in every checkpoint.
use bytes::Bytes;

use super::head::{Head, Remembered};
use crate::daemon::core::limits::HEAD_VERSIONS_MAX;
use crate::protocol::change::{How, Version};
use crate::protocol::codec::{self, CodecError};
use crate::protocol::id::RequestId;

/// The current version, as it will be remembered.
pub fn current(head: &Head) -> Version {
    Version {
        version: head.version,
        updated_ms: head.updated_ms,
        how: head.how.clone(),
        bytes: head.document.len() as u32,
        request: made_by(head),
    }
}

/// The request that made the current version. One that only sent messages may be remembered with the same version, later.
pub fn made_by(head: &Head) -> Option<RequestId> {
    if matches!(head.how, How::Message { .. }) {
        return None;
    }
    let made = head.requests.iter().find(|known| makes(known, head.version));
    made.map(|known| known.id)
}

/// Whether a remembered request made this version.
pub fn makes(known: &Remembered, version: u64) -> bool {
    known.refused.is_none() && known.version == version
}

/// The past with one more version, the oldest forgotten beyond the bound. Each lies behind its length.
pub fn with(past: &Bytes, version: &Version) -> Bytes {
    let mut rest = &past[..];
    if lengths(rest).count() + 1 >= HEAD_VERSIONS_MAX
        && let Some(oldest) = lengths(rest).next()
    {
        rest = &rest[oldest..];
    }
    let added = codec::encode(version);
    let mut bytes = Vec::with_capacity(rest.len() + 2 + added.len());
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(&(added.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&added);
    bytes.into()
}

/// The versions before the current one, oldest first.
pub fn all(past: &[u8]) -> Result<Vec<Version>, CodecError> {
    let mut rest = past;
    let each = lengths(past).map(|length| {
        let (one, others) = rest.split_at(length);
        rest = others;
        codec::decode(&one[2..])
    });
    each.collect()
}

/// How long each remembered version is, its own length included.
fn lengths(past: &[u8]) -> impl Iterator<Item = usize> {
    let mut rest = past;
    std::iter::from_fn(move || {
        let (length, _) = rest.split_first_chunk::<2>()?;
        let length = 2 + usize::from(u16::from_le_bytes(*length));
        rest = rest.get(length..)?;
        Some(length)
    })
}

impl How {
    /// What a write does, in one word.
    pub fn of(change: &crate::protocol::request::Change) -> Self {
        use crate::protocol::request::Change;
        match change {
            Change::Put(_) | Change::PutFor { .. } => How::Put,
            Change::Post(_) => How::Post,
            Change::Patch(_) => How::Patch,
            Change::Delete => How::Delete,
            // Changes nothing of its sender.
            Change::Send { .. } | Change::Activity { .. } | Change::Tentative(_) | Change::Reindex { .. } => How::Patch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(n: u64) -> Version {
        Version {
            version: n,
            updated_ms: 1_700_000_000_000 + n,
            how: match n % 5 {
                0 => How::Message {
                    from: "profile/p-1".into(),
                    number: n,
                },
                1 => How::Delete,
                _ => How::Put,
            },
            bytes: 100,
            request: Some(RequestId(u128::MAX - u128::from(n))),
        }
    }

    #[test]
    fn the_latest_are_remembered_within_a_bound() {
        let mut past = Bytes::new();
        assert_eq!(all(&past), Ok(Vec::new()));
        for n in 1..=100 {
            past = with(&past, &version(n));
            let kept = (HEAD_VERSIONS_MAX as u64 - 1).min(n);
            let expected: Vec<Version> = (n - kept + 1..=n).map(version).collect();
            assert_eq!(all(&past), Ok(expected));
        }
        assert!(past.len() < 40 * HEAD_VERSIONS_MAX, "{} bytes", past.len());
    }
}
