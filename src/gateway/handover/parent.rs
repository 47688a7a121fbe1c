//! The rules of the old process (parent), as a table. [`super::upgrade`] executes the actions.
//!
//! ```text
//!            Checked         Warm           Written        Ready            Running
//!  Checking ────────► Warming ────► Freezing ──────► Moving ────► Committed ───────► Ended(Committed)
//!     │                  │             │               │              │ any problem
//!     └──────────────────┴─────────────┴───────────────┘              ▼            WordLost
//!                        ▼                                         Deciding ─────────────────► Touched
//!                Ended(RolledBack) ◄── WordWon ───────────────────────┘          ChildEnded │   │ Running, DeadlinePassed
//!                                                                            Ended(Torn) ◄──┘   └──► Ended(Committed)
//! ```
//!
//! Threads that do not come to rest in time run for a moment and are paused once more (`FreezingAgain`).
//!
//! The word is swapped before the child is killed: a child that has taken the sockets is left alone, however slow it is.
//! Killing it could only end the service.
//!
//! For example, the child crashes while it reads the snapshot: `Moving` on `ChildEnded` is `Ended(RolledBack)` with
//! the action [`Action::Resume`], which reaps the child and resumes all threads.

/// State of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// The check of the binary runs, before a child is started.
    Checking,
    /// The child of a dry run starts; it is ended when it is warm.
    DryRun,
    /// The child starts and watches the sockets; this process serves.
    Warming,
    /// The threads are paused, and the snapshot is written.
    Freezing,
    /// Second attempt, after the threads did not come to rest in time.
    FreezingAgain,
    /// The child reads the snapshot and asks for sockets that are newer than itself.
    Moving,
    /// The commit word offers the sockets to the child.
    Committed,
    /// The child failed, or is late, after the commit: the commit word is swapped back, if the child has not taken it.
    Deciding,
    /// The child has taken the sockets, and has not yet said that it runs.
    Touched,
    /// The upgrade has ended.
    Ended(Verdict),
}

/// End of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    /// The child serves; this process leaves.
    Committed,
    /// The upgrade failed, and this process serves on.
    RolledBack,
    /// The dry run succeeded; this process serves on.
    DryRun,
    /// The child took the sockets and ended; this process ends with a failure.
    Torn,
}

/// Input of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Input {
    /// The binary passed the check.
    Checked,
    /// The binary passed the check of a dry run.
    DryRunChecked,
    /// All threads are paused, and the snapshot is written.
    Written,
    /// The threads did not come to rest in time.
    NotQuiet,
    /// An operation of this process failed.
    Failed,
    /// Message `warm`: the child watches the sockets.
    Warm,
    /// Message `want FD`: the child asks for a socket that is newer than itself.
    Want,
    /// Message `ready`: the child has adopted every connection.
    Ready,
    /// Message `running`: the child serves.
    Running,
    /// Any other line from the child, `failed: CAUSE` among them.
    Unexpected,
    /// The child closed its end of the control channel and lives.
    SocketClosed,
    /// The child's process ended.
    ChildEnded,
    /// The deadline of the state passed.
    DeadlinePassed,
    /// The sockets are this process's again.
    WordWon,
    /// The sockets are the child's.
    WordLost,
}

/// Action that the executor performs when it enters a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Do nothing.
    Nothing,
    /// Run the check of the binary.
    Check,
    /// Start the child.
    Spawn,
    /// Pause the threads and write the snapshot.
    Pause,
    /// Resume the threads for a moment, then do the same as [`Self::Pause`].
    PauseAgain,
    /// Send `snapshot LENGTH NANOSECONDS`.
    Announce,
    /// Send the socket that the child asked for.
    SendSocket,
    /// Swap the commit word, and send `commit`.
    Commit,
    /// Swap the commit word back.
    Reclaim,
    /// Give the child more time: it has the sockets.
    AwaitRunning,
    /// Kill and reap the child, which is warm.
    EndDryRun,
    /// Kill and reap the child.
    EndChild,
    /// Kill and reap the child, then resume the threads.
    Resume,
    /// Leave without touching a socket.
    Leave,
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
    pub(super) const ALL: [Self; 9] = [
        Self::Checking,
        Self::DryRun,
        Self::Warming,
        Self::Freezing,
        Self::FreezingAgain,
        Self::Moving,
        Self::Committed,
        Self::Deciding,
        Self::Touched,
    ];
    /// First state and its action.
    pub(super) const FIRST: (Self, Action) = (Self::Checking, Action::Check);

    /// The transition table (`docs/handover.md`).
    #[allow(clippy::match_same_arms)] // a table reads row by row
    pub(super) const fn on(self, input: Input) -> Transition {
        use Transition::{Ignore, To};
        match (self, input) {
            (Self::Checking, Input::Checked) => To(Self::Warming, Action::Spawn),
            (Self::Checking, Input::DryRunChecked) => To(Self::DryRun, Action::Spawn),
            (Self::Checking, Input::Failed) => To(Self::Ended(Verdict::RolledBack), Action::Nothing),
            (Self::DryRun, Input::Warm) => To(Self::Ended(Verdict::DryRun), Action::EndDryRun),
            (Self::Warming, Input::Warm) => To(Self::Freezing, Action::Pause),
            (Self::Freezing | Self::FreezingAgain, Input::Written) => To(Self::Moving, Action::Announce),
            (Self::Freezing, Input::NotQuiet) => To(Self::FreezingAgain, Action::PauseAgain),
            (Self::Moving, Input::Want) => To(Self::Moving, Action::SendSocket),
            (Self::Moving, Input::Ready) => To(Self::Committed, Action::Commit),
            (Self::Committed | Self::Touched, Input::Running) => {
                To(Self::Ended(Verdict::Committed), Action::Leave)
            }
            (Self::Deciding, Input::WordWon) => To(Self::Ended(Verdict::RolledBack), Action::Resume),
            (Self::Deciding, Input::WordLost) => To(Self::Touched, Action::AwaitRunning),
            (Self::Touched, Input::ChildEnded) => To(Self::Ended(Verdict::Torn), Action::Nothing),
            // It has the sockets and lives.
            (Self::Touched, Input::DeadlinePassed) => To(Self::Ended(Verdict::Committed), Action::Leave),

            (Self::Checking | Self::Deciding | Self::Touched | Self::Ended(_), _) => Ignore,
            (
                _,
                Input::Checked | Input::DryRunChecked | Input::Written | Input::WordWon | Input::WordLost,
            ) => Ignore,

            // The rest is a problem: a failure here, a message that does not belong here, an end, a deadline.
            (Self::DryRun | Self::Warming, _) => To(Self::Ended(Verdict::RolledBack), Action::EndChild),
            (Self::Freezing | Self::FreezingAgain | Self::Moving, _) => {
                To(Self::Ended(Verdict::RolledBack), Action::Resume)
            }
            (Self::Committed, _) => To(Self::Deciding, Action::Reclaim),
        }
    }
}

#[cfg(test)]
impl Verdict {
    /// All ends.
    pub(super) const ALL: [Self; 4] = [Self::Committed, Self::RolledBack, Self::DryRun, Self::Torn];
}

#[cfg(test)]
impl Input {
    /// All inputs.
    pub(super) const ALL: [Self; 15] = [
        Self::Checked,
        Self::DryRunChecked,
        Self::Written,
        Self::NotQuiet,
        Self::Failed,
        Self::Warm,
        Self::Want,
        Self::Ready,
        Self::Running,
        Self::Unexpected,
        Self::SocketClosed,
        Self::ChildEnded,
        Self::DeadlinePassed,
        Self::WordWon,
        Self::WordLost,
    ];
}
