//! Helpers for [`ConfState`].

use crate::eraftpb::ConfState;

/// Whether two configurations have the same members in the same roles. The order in which the
/// members are listed does not count.
#[must_use]
pub fn conf_state_eq(a: &ConfState, b: &ConfState) -> bool {
    a.auto_leave == b.auto_leave
        && same_members(&a.voters, &b.voters)
        && same_members(&a.learners, &b.learners)
        && same_members(&a.voters_outgoing, &b.voters_outgoing)
        && same_members(&a.learners_next, &b.learners_next)
}

fn same_members(a: &[u64], b: &[u64]) -> bool {
    a == b || (a.iter().all(|id| b.contains(id)) && b.iter().all(|id| a.contains(id)))
}

/// A configuration from its voters and its learners.
impl<V, L> From<(V, L)> for ConfState
where
    V: IntoIterator<Item = u64>,
    L: IntoIterator<Item = u64>,
{
    fn from((voters, learners): (V, L)) -> Self {
        Self {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_count_but_roles_do() {
        let a = ConfState::from(([1, 2, 3], [4]));
        assert!(conf_state_eq(&a, &ConfState::from(([3, 1, 2], [4]))));
        assert!(!conf_state_eq(&a, &ConfState::from(([1, 2], [3, 4]))));
        assert!(!conf_state_eq(&a, &ConfState::from(([1, 2, 3, 5], [4]))));
        let mut leaving = a.clone();
        leaving.auto_leave = true;
        assert!(!conf_state_eq(&a, &leaving));
    }
}
