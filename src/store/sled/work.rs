//! Work for the committer that is not a set: each kind is a function that is staged in a group, and
//! answers its caller once the group is durable.

use tokio::sync::oneshot;

use super::{
    commit::{Committer, Group},
    publish::Answer,
};
use crate::store::StoreError;

/// What is staged.
type Stage<T, E> = Box<dyn FnOnce(&mut Committer, &mut Group) -> Result<T, E> + Send>;

/// How much of a group a work may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It writes at most `WORK_BYTES_MAX`, and looks at what the group holds.
    Shared,
    /// It may fill a group, or reads the tree only: nothing else is in its group.
    Alone,
}

/// Something to stage in a group.
pub(super) trait Work: Send {
    fn room(&self) -> Room;

    /// Adds what it writes to a group.
    fn stage(self: Box<Self>, committer: &mut Committer, group: &mut Group) -> Answer;

    /// Answers that the store takes no more writes.
    fn refuse(self: Box<Self>);
}

/// A stage, and whom to tell.
pub(super) struct Staged<T, E> {
    pub(super) room: Room,
    pub(super) stage: Stage<T, E>,
    pub(super) answer: oneshot::Sender<Result<T, E>>,
}

impl<T: Send + 'static, E: From<StoreError> + Send + 'static> Work for Staged<T, E> {
    fn room(&self) -> Room {
        self.room
    }

    fn stage(self: Box<Self>, committer: &mut Committer, group: &mut Group) -> Answer {
        let Self { stage, answer, .. } = *self;
        let result = stage(committer, group);
        Answer::Worked(Box::new(move |done| drop(answer.send(done.map_err(E::from).and(result)))))
    }

    fn refuse(self: Box<Self>) {
        let _ = self.answer.send(Err(StoreError::Poisoned.into()));
    }
}
