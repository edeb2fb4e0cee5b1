//! Whether a peer still knows what it has promised: judged before anything it says is listened to.
//!
//! Raft rests on nodes that never forget what they have acknowledged. A disk that was wiped, restored from an older image
//! or cloned has forgotten, and the node on it would vote and acknowledge against its own word. So a node says in its
//! hello which store it has, the how manieth start of that store this is, which process it is, and how far its log reached
//! when it started; and each of its frames says how far its log is synced by then. Peers remember that for as long as
//! they run; the store's id is kept by the directory.
//!
//! What a peer acknowledged left it behind a sync, in a frame that named that sync or a later one. So whoever heard the
//! acknowledgement knows a number that the log must reach after any restart: a log that ends before it has lost something
//! that was counted on.
use std::collections::BTreeMap;

use super::{Node, PlantedBug};
use crate::daemon::core::effect::{Effect, Effects};
use crate::daemon::core::event::Event;
use crate::daemon::core::state::LogSeq;
use crate::protocol::error::{Code, WireError};
use crate::protocol::hello::NodeHello;
use crate::protocol::id::NodeId;
use crate::protocol::shard_map::NodeInfo;

/// What this node remembers of a peer's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    store_id: u128,
    life: u64,
    boot: u64,
    /// Its log has reached so far.
    persisted: u64,
    /// It was refused: nothing it says counts.
    is_refused: bool,
}

/// Peers' standings.
pub(super) type Standings = BTreeMap<NodeId, Standing>;

impl Node {
    /// `Input::Greeted`: a connection to a peer came up, and this is what it says of itself.
    pub(super) fn greeted(&mut self, hello: &NodeHello, effects: &mut Effects) {
        let peer = hello.node;
        let known = self.standings.get(&peer).copied();
        let told = self.map.nodes.get(&peer);
        let judged = match self.config.planted {
            PlantedBug::AdmitsTheWiped => Ok(()),
            _ => judge(hello, known.as_ref(), told),
        };
        match judged {
            Ok(()) => {
                let before = known.map_or(0, |known| known.persisted);
                let standing = Standing {
                    store_id: hello.store_id,
                    life: hello.life,
                    boot: hello.boot,
                    persisted: before.max(hello.persisted),
                    is_refused: false,
                };
                self.standings.insert(peer, standing);
            }
            Err(error) => {
                if let Some(known) = self.standings.get_mut(&peer) {
                    known.is_refused = true;
                } else {
                    self.standings.insert(
                        peer,
                        Standing {
                            store_id: 0,
                            life: 0,
                            boot: 0,
                            persisted: 0,
                            is_refused: true,
                        },
                    );
                }
                *self.counters.entry("peers_refused").or_default() += 1;
                effects.push(Effect::Event(Event::Refused {
                    node: peer,
                    why: error.text.clone(),
                }));
                effects.push(Effect::Refuse { peer, error });
            }
        }
    }

    /// `Input::PeerPersisted`: a peer's frame says that its log is synced up to here.
    pub(super) fn peer_persisted(&mut self, peer: NodeId, seq: LogSeq) {
        if let Some(known) = self.standings.get_mut(&peer).filter(|known| !known.is_refused) {
            known.persisted = known.persisted.max(seq.0);
        }
    }

    /// Whether a peer was refused and has not come back as itself since, or turns out to have another store than the
    /// directory says.
    pub(super) fn is_refused(&self, peer: NodeId) -> bool {
        let Some(known) = self.standings.get(&peer) else {
            return false;
        };
        let told = self.map.nodes.get(&peer).map_or(0, |info| info.store_id);
        let admits = self.config.planted == PlantedBug::AdmitsTheWiped;
        known.is_refused || (!admits && known.store_id != 0 && told != 0 && known.store_id != told)
    }

    /// Whether a peer could be one whose disk was wiped without this node being able to tell: this node has promised things
    /// in an earlier life, and has not heard yet which store the peer has. Nothing that counts is taken from it until the
    /// directory has said. Where a copy of the directory is, it has said all there is.
    pub(super) fn is_unproven(&self, peer: NodeId) -> bool {
        let is_known = self.map.nodes.get(&peer).is_some_and(|info| info.store_id != 0);
        !self.is_first_life && !is_known && self.directory.is_none()
    }
}

/// Whether a peer is the one that is known, with all that it has acknowledged.
fn judge(hello: &NodeHello, known: Option<&Standing>, told: Option<&NodeInfo>) -> Result<(), WireError> {
    let node = hello.node;
    let refuse = |what: String| {
        let text = format!(
            "{what}: it may have forgotten what it acknowledged, and must not vote or count as the node it was. {WAY_ON}"
        );
        Err(WireError::new(Code::OtherLife, text))
    };
    let known = known.filter(|known| known.store_id != 0);
    let stores = known.map(|known| known.store_id).into_iter();
    let mut stores = stores.chain(told.map(|told| told.store_id).filter(|&store| store != 0));
    if stores.any(|store| store != hello.store_id) {
        return refuse(format!("{node} comes with another store than it registered with"));
    }
    let life = known.map_or(0, |known| known.life);
    if hello.life < life {
        return refuse(format!(
            "{node} is in its start no. {} and was seen in no. {life}: its disk is an older image, or a copy of it runs elsewhere",
            hello.life
        ));
    }
    let Some(known) = known.filter(|known| known.boot != hello.boot) else {
        // The same process, perhaps over a new connection.
        return Ok(());
    };
    if hello.persisted < known.persisted {
        return refuse(format!(
            "the log of {node} ends at write {} and had reached {}: its disk is an older image",
            hello.persisted, known.persisted
        ));
    }
    if hello.life == known.life {
        return refuse(format!("{node} runs twice, on copies of one disk"));
    }
    Ok(())
}

/// What an operator does about it.
const WAY_ON: &str = "Stop it; let the host join again under a new id (`isxctl token create`, `isxd join` with an empty \
                      directory), then `isxctl node replace OLD --with NEW`; a copy that runs beside the original is just stopped";

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(life: u64, boot: u64, persisted: u64) -> NodeHello {
        NodeHello {
            node: NodeId(2),
            store_id: 7,
            life,
            boot,
            persisted,
        }
    }

    fn standing() -> Standing {
        Standing {
            store_id: 7,
            life: 4,
            boot: 44,
            persisted: 100,
            is_refused: false,
        }
    }

    #[test]
    fn who_has_forgotten_nothing_is_heard() {
        let known = standing();
        assert_eq!(judge(&hello(1, 1, 0), None, None), Ok(()));
        // The same process over a new connection: its log was shorter when it started.
        assert_eq!(judge(&hello(4, 44, 20), Some(&known), None), Ok(()));
        // A restart, and one that nobody here has seen.
        assert_eq!(judge(&hello(5, 50, 100), Some(&known), None), Ok(()));
        assert_eq!(judge(&hello(9, 90, 120), Some(&known), None), Ok(()));
    }

    #[test]
    fn who_may_have_forgotten_is_refused() {
        let known = standing();
        let refused = |hello: NodeHello| judge(&hello, Some(&known), None).unwrap_err().text;
        let wiped = NodeHello {
            store_id: 8,
            ..hello(1, 1, 0)
        };
        assert!(refused(wiped).contains("another store"));
        assert!(refused(hello(3, 30, 500)).contains("older image"));
        assert!(refused(hello(5, 50, 99)).contains("had reached 100"));
        assert!(refused(hello(4, 45, 100)).contains("runs twice"));
    }

    #[test]
    fn a_store_that_the_directory_does_not_know_is_refused() {
        let told = NodeInfo {
            id: NodeId(2),
            name: "n2".to_owned(),
            address: String::new(),
            zone: String::new(),
            membership: crate::protocol::shard_map::Membership::Active,
            store_id: 7,
            version: String::new(),
            overlay: Default::default(),
        };
        let judged = |hello: NodeHello| judge(&hello, None, Some(&told));
        assert_eq!(judged(hello(4, 44, 60)), Ok(()));
        assert!(
            judged(NodeHello {
                store_id: 8,
                ..hello(1, 1, 0)
            })
            .is_err()
        );
    }
}
