//! Helpers for configuration changes.

use std::borrow::Cow;

use crate::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

/// One change of one node.
pub fn new_conf_change_single(node_id: u64, change_type: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type, node_id }
}

/// Reads changes from their short form, as in `v1 l2 r3`: a letter for the change (`v` makes the
/// node a voter, `l` a learner, `r` removes it), the node's number behind it, and space between.
///
/// # Errors
///
/// Names the first word that is not of this form.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    text.split_ascii_whitespace().map(parse_single).collect()
}

fn parse_single(word: &str) -> Result<ConfChangeSingle, String> {
    let kinds = [
        ('v', ConfChangeType::AddNode),
        ('l', ConfChangeType::AddLearnerNode),
        ('r', ConfChangeType::RemoveNode),
    ];
    for (letter, change_type) in kinds {
        if let Some(number) = word.strip_prefix(letter) {
            let node_id = number.parse().map_err(|e| format!("node number in {word:?}: {e}"))?;
            return Ok(new_conf_change_single(node_id, change_type));
        }
    }
    Err(format!("{word:?} does not start with v, l or r"))
}

/// Writes changes in the form that [`parse_conf_change`] reads.
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|change| {
            let letter = match change.change_type {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{letter}{}", change.node_id)
        })
        .collect();
    words.join(" ")
}

/// A configuration change of either form.
pub trait ConfChangeI {
    /// The change in the newer form.
    fn into_v2(self) -> ConfChangeV2;

    /// A view of the change in the newer form.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// The change in the older form, if it is of that form.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: vec![new_conf_change_single(self.node_id, self.change_type)],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether this change goes through a joint configuration: `None` if not, else whether raft
    /// leaves the joint configuration on its own. A transition asked for by name always goes
    /// through one, and so does a change of more than one node.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition {
            ConfChangeTransition::Auto => (self.changes.len() > 1).then_some(true),
            ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// Whether this change ends a joint configuration: it asks for nothing. Its context may hold
    /// anything.
    pub fn leave_joint(&self) -> bool {
        self.transition == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_form_round_trip() {
        let changes = parse_conf_change("  v1 l20  r300 ").unwrap();
        assert_eq!(changes.len(), 3);
        assert_eq!(changes[1], new_conf_change_single(20, ConfChangeType::AddLearnerNode));
        assert_eq!(stringify_conf_change(&changes), "v1 l20 r300");
        assert!(parse_conf_change("").unwrap().is_empty());
        for bad in ["v", "x1", "v1x", "1", "v-1"] {
            assert!(parse_conf_change(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn joint_or_not() {
        let mut change = ConfChangeV2::default();
        assert!(change.leave_joint());
        assert_eq!(change.enter_joint(), None);
        change.changes = parse_conf_change("v1").unwrap();
        assert!(!change.leave_joint());
        assert_eq!(change.enter_joint(), None);
        change.changes = parse_conf_change("v1 r2").unwrap();
        assert_eq!(change.enter_joint(), Some(true));
        change.transition = ConfChangeTransition::Explicit;
        assert_eq!(change.enter_joint(), Some(false));
        change.changes.clear();
        assert!(!change.leave_joint());
    }

    #[test]
    fn old_form_as_new_form() {
        let old = ConfChange {
            change_type: ConfChangeType::RemoveNode,
            node_id: 7,
            context: "why".into(),
            id: 9,
        };
        let new = old.clone().into_v2();
        assert_eq!(*old.as_v2(), new);
        assert_eq!(old.as_v1(), Some(&old));
        assert_eq!(new.as_v1(), None);
        assert_eq!(new.context, old.context);
        assert_eq!(stringify_conf_change(&new.changes), "r7");
    }
}
