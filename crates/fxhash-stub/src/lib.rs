//! Stands in for the `fxhash` crate, which raft 0.7.0 asks for and which is no longer maintained.
//!
//! raft keeps its progress and vote tables in maps with this hasher, and its runs can be repeated
//! only because the hasher has no random seed. `rustc-hash` is the maintained form of the same
//! idea and has no seed either, so this crate passes its types on under the old name. The root
//! manifest puts it in place with `[patch.crates-io]`.

#![forbid(unsafe_code)]

pub use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet, FxHasher};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iteration_order_depends_on_the_keys_only() {
        let order = || {
            let mut map = FxHashMap::default();
            for key in 0u64..1000 {
                map.insert(key * 7919, key);
            }
            map.into_values().collect::<Vec<_>>()
        };
        assert_eq!(order(), order());
    }
}
