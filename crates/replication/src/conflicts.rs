//! Conflicts that a leader can learn nothing from.

use openraft::raft::{StreamAppendError, StreamAppendResult};

use crate::type_config::Types;

/// Where a follower last said that it has another entry, or none, than the leader.
///
/// A leader seeks the last entry in common from there downwards. Where it knows already that the follower has the one before, and so is
/// told the same twice, openraft discards the answer, and sends the same again at once, for ever.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    last: Option<u64>,
}

impl Conflicts {
    /// Takes a follower's answer down, and says whether it is the conflict that the one before was.
    pub(crate) fn repeats(&mut self, answer: &StreamAppendResult<Types>) -> bool {
        let at = match answer {
            Err(StreamAppendError::Conflict(at)) => Some(at.index),
            Ok(_) | Err(StreamAppendError::HigherVote(_)) => None,
        };
        let before = std::mem::replace(&mut self.last, at);
        at.is_some() && at == before
    }
}

#[cfg(test)]
mod tests {
    use openraft::raft::StreamAppendError;
    use quipu_model::LogId;

    use super::Conflicts;
    use crate::type_config::to_raft_id;

    #[test]
    fn a_conflict_repeats_the_one_before_only_where_nothing_was_learnt_between() {
        let mut conflicts = Conflicts::default();
        let id = |index| to_raft_id(LogId::new(3, index));
        let mut conflict = |index| conflicts.repeats(&Err(StreamAppendError::Conflict(id(index))));
        assert_eq!(
            [9, 4, 4, 4, 2].map(&mut conflict),
            [false, false, true, true, false]
        );
        assert!(!conflicts.repeats(&Ok(Some(id(1)))));
        assert!(!conflicts.repeats(&Err(StreamAppendError::Conflict(id(2)))));
    }
}
