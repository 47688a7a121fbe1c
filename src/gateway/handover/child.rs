//! The rules of the new process (child), as a table. [`super::takeover`] executes the actions.
//!
//! ```text
//!          Watched         Snapshot          Adopted        Commit          WordWon
//!  Warming ───────► Waiting ───────► Adopting ──────► Ready ─────► Taking ────────► Ended(Serving)
//!     │                │                │               │ SocketClosed  │              ▲
//!     └────────────────┴────────────────┘               ▼   WordLost    │              │ WordWon
//!                      ▼            ParentLives      Doubting ◄─────────┘              │
//!                Ended(GaveUp) ◄────────────────────────┴── ParentEnded ──────────► Claiming
//! ```
//!
//! Everything that can fail comes before `Ready`: the threads are started and stand still, and behind the commit word they
//! only resume.
//!
//! For example, the parent is killed after this process said `ready`: `Ready` on `SocketClosed` is `Doubting`, whose
//! action looks for the parent; on `ParentEnded` this process claims the commit word and serves.

/// State of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// The sockets that the parent listed are watched.
    Warming,
    /// The parent serves and pauses; its snapshot is awaited.
    Waiting,
    /// The snapshot is read, and every connection gets its socket.
    Adopting,
    /// The parent's commit is awaited.
    Ready,
    /// The parent closed the control channel or sent an unexpected line: is it dead?
    Doubting,
    /// The parent committed: the commit word is swapped.
    Taking,
    /// The parent is dead: the commit word is swapped, whatever the parent got to.
    Claiming,
    /// The takeover has ended.
    Ended(Verdict),
}

/// End of a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    /// The takeover succeeded, and this process serves.
    Serving,
    /// The process ends without having touched a socket.
    GaveUp,
}

/// Input of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Input {
    /// All listed sockets are watched.
    Watched,
    /// Every connection of the snapshot has its socket, and all threads are started and stand still.
    Adopted,
    /// An operation of this process failed.
    Failed,
    /// Message `snapshot`: the parent is paused, and its snapshot is written.
    Snapshot,
    /// Message `commit`: the parent offers the sockets.
    Commit,
    /// Any other line from the parent.
    Unexpected,
    /// The control channel is closed or broken.
    SocketClosed,
    /// The parent's process has ended.
    ParentEnded,
    /// The parent's process lives, after the time in which a killed process ends.
    ParentLives,
    /// The sockets are this process's.
    WordWon,
    /// The sockets are the parent's again.
    WordLost,
}

/// Action that the executor performs when it enters a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Do nothing.
    Nothing,
    /// Watch the listed sockets.
    Watch,
    /// Send `warm`.
    SayWarm,
    /// Read the snapshot, adopt all connections, and start all threads, which stand still; ask for newer sockets by
    /// `want FD`.
    Adopt,
    /// Send `ready COUNT`.
    SayReady,
    /// Find out whether the parent has ended.
    LookForParent,
    /// Swap the commit word that the parent has committed.
    Take,
    /// Swap the commit word of a dead parent.
    Claim,
    /// Resume all threads, and send `running`.
    Serve,
    /// Resume all threads, and tell the supervisor the process id: the parent cannot.
    ServeOrphaned,
    /// Send `failed: CAUSE`.
    SayFailed,
}

/// Reaction to an [`Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transition {
    /// Enter the state and perform the action.
    To(State, Action),
    /// Stay; the input cannot occur here, or has no meaning here.
    Ignore,
}

impl State {
    /// All states before the end.
    #[cfg(test)]
    pub(super) const ALL: [Self; 7] = [
        Self::Warming,
        Self::Waiting,
        Self::Adopting,
        Self::Ready,
        Self::Doubting,
        Self::Taking,
        Self::Claiming,
    ];
    /// First state and its action.
    pub(super) const FIRST: (Self, Action) = (Self::Warming, Action::Watch);

    /// The transition table (`docs/handover.md`).
    #[allow(clippy::match_same_arms)] // a table reads row by row
    pub(super) const fn on(self, input: Input) -> Transition {
        use Transition::{Ignore, To};
        match (self, input) {
            (Self::Warming, Input::Watched) => To(Self::Waiting, Action::SayWarm),
            (Self::Waiting, Input::Snapshot) => To(Self::Adopting, Action::Adopt),
            (Self::Adopting, Input::Adopted) => To(Self::Ready, Action::SayReady),
            (Self::Warming | Self::Adopting, Input::Failed) => {
                To(Self::Ended(Verdict::GaveUp), Action::SayFailed)
            }
            (Self::Waiting, Input::Commit | Input::Unexpected | Input::SocketClosed) => {
                To(Self::Ended(Verdict::GaveUp), Action::Nothing)
            }
            (Self::Ready, Input::Commit) => To(Self::Taking, Action::Take),
            (Self::Ready, Input::Snapshot | Input::Unexpected | Input::SocketClosed) => {
                To(Self::Doubting, Action::LookForParent)
            }
            (Self::Doubting, Input::ParentEnded) => To(Self::Claiming, Action::Claim),
            (Self::Doubting, Input::ParentLives) => To(Self::Ended(Verdict::GaveUp), Action::Nothing),
            (Self::Taking, Input::WordWon) => To(Self::Ended(Verdict::Serving), Action::Serve),
            (Self::Claiming, Input::WordWon) => To(Self::Ended(Verdict::Serving), Action::ServeOrphaned),
            // The parent has taken the sockets back; it may be killed before it serves again.
            (Self::Taking, Input::WordLost) => To(Self::Doubting, Action::LookForParent),
            (Self::Claiming, Input::WordLost) => To(Self::Ended(Verdict::GaveUp), Action::Nothing),
            _ => Ignore,
        }
    }
}

#[cfg(test)]
impl Verdict {
    /// All ends.
    pub(super) const ALL: [Self; 2] = [Self::Serving, Self::GaveUp];
}

#[cfg(test)]
impl Input {
    /// All inputs.
    pub(super) const ALL: [Self; 11] = [
        Self::Watched,
        Self::Adopted,
        Self::Failed,
        Self::Snapshot,
        Self::Commit,
        Self::Unexpected,
        Self::SocketClosed,
        Self::ParentEnded,
        Self::ParentLives,
        Self::WordWon,
        Self::WordLost,
    ];
}
