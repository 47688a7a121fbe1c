//! Both tables joined: every order of messages, deaths, failures and deadlines, as far as the bounds below allow.
//!
//! An action is divided into operations, and either process can die between two of them. For example, the parent
//! swaps the commit word, is killed before it sends `commit`, and the child must claim the word and serve.

use super::super::commit_word::{CLAIM, COMMIT, OPEN, RECLAIM, RECLAIMED, Swap, TAKE, TOUCHED};
use super::super::{child, parent};
use std::collections::{BTreeSet, HashSet, VecDeque};

/// Lines under way to one process.
const LINES_MAX: usize = 3;
/// Sockets that the child asks for.
const WANTS_MAX: u8 = 1;
/// Worlds, after which the search counts as endless.
const WORLDS_MAX: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ToParent {
    Warm,
    Want,
    Ready,
    Running,
    Garbage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ToChild {
    Snapshot,
    Socket,
    Commit,
}

/// State of a process, and the operations of its action that are left to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Side<S, A> {
    state: S,
    action: A,
    /// Operations of the action that are done; `None`: all of them.
    done: Option<u8>,
    is_alive: bool,
    is_serving: bool,
    /// The process was killed, and did not end by itself.
    was_killed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    parent: Side<parent::State, parent::Action>,
    /// Not alive before the parent starts it.
    child: Side<child::State, child::Action>,
    is_spawned: bool,
    word: u32,
    to_parent: VecDeque<ToParent>,
    to_child: VecDeque<ToChild>,
    wants: u8,
    /// The child has given every connection of the snapshot its socket.
    has_adopted: bool,
    /// The parent was killed after the child had adopted everything: nothing may be lost.
    is_owed: bool,
}

impl World {
    fn first() -> Self {
        let (state, action) = parent::State::FIRST;
        let parent =
            Side { state, action, done: Some(0), is_alive: true, is_serving: true, was_killed: false };
        let (state, action) = child::State::FIRST;
        let child =
            Side { state, action, done: Some(0), is_alive: false, is_serving: false, was_killed: false };
        Self {
            parent,
            child,
            is_spawned: false,
            word: OPEN,
            to_parent: VecDeque::new(),
            to_child: VecDeque::new(),
            wants: 0,
            has_adopted: false,
            is_owed: false,
        }
    }

    fn swap(&mut self, swap: Swap) -> bool {
        let can = swap.from.contains(&self.word);
        if can {
            self.word = swap.to;
        }
        can
    }

    fn kill_child(&mut self) {
        (self.child.is_alive, self.child.is_serving) = (false, false);
        self.child.was_killed |= self.is_spawned;
    }

    /// False: the child has ended.
    fn say_to_child(&mut self, line: ToChild) -> bool {
        if self.child.is_alive {
            self.to_child.push_back(line);
        }
        self.child.is_alive
    }

    /// False: the parent has ended.
    fn say_to_parent(&mut self, line: ToParent) -> bool {
        if self.parent.is_alive {
            self.to_parent.push_back(line);
        }
        self.parent.is_alive
    }

    fn parent_input(mut self, input: parent::Input) -> Self {
        if let parent::Transition::To(next, action) = self.parent.state.on(input) {
            (self.parent.state, self.parent.action, self.parent.done) = (next, action, Some(0));
        } else {
            self.parent.done = None;
        }
        self
    }

    fn child_input(mut self, input: child::Input) -> Self {
        if let child::Transition::To(next, action) = self.child.state.on(input) {
            (self.child.state, self.child.action, self.child.done) = (next, action, Some(0));
        } else {
            self.child.done = None;
        }
        self
    }

    /// Waits for a line from now on.
    fn parent_waits(mut self) -> Self {
        self.parent.done = None;
        self
    }

    fn child_waits(mut self) -> Self {
        self.child.done = None;
        self
    }

    fn parent_says(mut self, line: ToChild) -> Vec<Self> {
        let is_sent = self.say_to_child(line);
        vec![if is_sent { self.parent_waits() } else { self.parent_input(parent::Input::SocketClosed) }]
    }

    fn child_says(mut self, line: ToParent) -> Vec<Self> {
        let is_sent = self.say_to_parent(line);
        vec![if is_sent { self.child_waits() } else { self.child_input(child::Input::SocketClosed) }]
    }

    /// All worlds after the parent's next operation.
    fn parent_steps(&self) -> Vec<Self> {
        use parent::{Action, Input};
        let Some(done) = self.parent.done else { return self.parent_waiting() };
        let mut world = self.clone();
        let mut next = self.clone();
        next.parent.done = Some(done + 1);
        match (self.parent.action, done) {
            (Action::Nothing, _) => {
                // A torn upgrade ends the process.
                if self.parent.state == parent::State::Ended(parent::Verdict::Torn) {
                    world.parent.is_alive = false;
                }
                vec![world.parent_waits()]
            }
            (Action::Check, _) => [Input::Checked, Input::DryRunChecked, Input::Failed]
                .map(|input| self.clone().parent_input(input))
                .into(),
            (Action::Spawn, _) => {
                world.is_spawned = true;
                world.child.is_alive = true;
                vec![world.parent_waits(), self.clone().parent_input(Input::Failed)]
            }
            (Action::Pause, 0) | (Action::PauseAgain, 0 | 1) => {
                next.parent.is_serving = (self.parent.action, done) == (Action::PauseAgain, 0);
                vec![next]
            }
            (Action::Pause | Action::PauseAgain, _) => [Input::Written, Input::NotQuiet, Input::Failed]
                .map(|input| self.clone().parent_input(input))
                .into(),
            (Action::Announce, _) => world.parent_says(ToChild::Snapshot),
            (Action::SendSocket, _) => {
                let failed = self.clone().parent_input(Input::Failed);
                if world.say_to_child(ToChild::Socket) {
                    vec![world.parent_waits(), failed]
                } else {
                    vec![failed]
                }
            }
            (Action::Commit, 0) => {
                assert!(next.swap(COMMIT), "nobody swaps before the parent: {self:?}");
                vec![next]
            }
            (Action::Commit, _) => world.parent_says(ToChild::Commit),
            (Action::AwaitRunning, _) => vec![world.parent_waits()],
            (Action::Resume, 0) => {
                next.kill_child();
                vec![next]
            }
            (Action::Reclaim, _) => {
                let input = if world.swap(RECLAIM) { Input::WordWon } else { Input::WordLost };
                vec![world.parent_input(input)]
            }
            (Action::EndChild | Action::EndDryRun, _) => {
                world.kill_child();
                vec![world.parent_waits()]
            }
            (Action::Resume, _) => {
                world.parent.is_serving = true;
                vec![world.parent_waits()]
            }
            (Action::Leave, _) => {
                world.parent.is_alive = false;
                vec![world.parent_waits()]
            }
        }
    }

    /// All inputs that a waiting parent can get.
    fn parent_waiting(&self) -> Vec<Self> {
        use parent::{Input, State};
        if let State::Ended(_) = self.parent.state {
            return Vec::new();
        }
        let mut worlds = vec![self.clone().parent_input(Input::DeadlinePassed)];
        let mut world = self.clone();
        match world.to_parent.pop_front() {
            Some(line) => worlds.push(world.parent_input(match line {
                ToParent::Warm => Input::Warm,
                ToParent::Want => Input::Want,
                ToParent::Ready => Input::Ready,
                ToParent::Running => Input::Running,
                ToParent::Garbage => Input::Unexpected,
            })),
            None if !self.child.is_alive => worlds.push(world.parent_input(Input::SocketClosed)),
            None => {}
        }
        if !self.child.is_alive {
            worlds.push(self.clone().parent_input(Input::ChildEnded));
        }
        worlds
    }

    /// All worlds after the child's next operation.
    fn child_steps(&self) -> Vec<Self> {
        use child::{Action, Input};
        let Some(done) = self.child.done else { return self.child_waiting() };
        let (mut world, mut next) = (self.clone(), self.clone());
        next.child.done = Some(done + 1);
        let adopted = Self { has_adopted: true, ..self.clone() };
        match (self.child.action, done) {
            (Action::Nothing, _) => vec![world.child_ends()],
            (Action::Watch, _) => {
                vec![world.clone().child_input(Input::Watched), world.child_input(Input::Failed)]
            }
            (Action::SayWarm, _) => world.child_says(ToParent::Warm),
            (Action::Adopt, 0) => {
                let mut worlds =
                    vec![adopted.child_input(Input::Adopted), self.clone().child_input(Input::Failed)];
                if self.wants < WANTS_MAX && world.say_to_parent(ToParent::Want) {
                    world.wants += 1;
                    world.child.done = Some(1);
                    worlds.push(world);
                }
                worlds
            }
            (Action::Adopt, _) => match world.to_child.pop_front() {
                Some(ToChild::Socket) => {
                    world.child.done = Some(0);
                    vec![world]
                }
                Some(line) => panic!("{line:?} instead of a socket: {self:?}"),
                None if self.parent.is_alive => Vec::new(),
                None => vec![world.child_input(Input::Failed)],
            },
            (Action::SayReady, _) => world.child_says(ToParent::Ready),
            (Action::LookForParent, _) => {
                let input = if self.parent.is_alive { Input::ParentLives } else { Input::ParentEnded };
                vec![world.child_input(input)]
            }
            (Action::Take | Action::Claim, _) => {
                let swap = if self.child.action == Action::Take { TAKE } else { CLAIM };
                let input = if world.swap(swap) { Input::WordWon } else { Input::WordLost };
                vec![world.child_input(input)]
            }
            (Action::Serve | Action::ServeOrphaned, 0) => {
                next.child.is_serving = true;
                vec![next]
            }
            (Action::Serve | Action::ServeOrphaned, _) => {
                world.say_to_parent(ToParent::Running);
                vec![world.child_waits()]
            }
            (Action::SayFailed, _) => {
                world.say_to_parent(ToParent::Garbage);
                vec![world.child_ends()]
            }
        }
    }

    /// All inputs that a waiting child can get.
    fn child_waiting(&self) -> Vec<Self> {
        use child::{Input, State};
        if let State::Ended(_) = self.child.state {
            return Vec::new();
        }
        let mut world = self.clone();
        match world.to_child.pop_front() {
            Some(ToChild::Snapshot) => vec![world.child_input(Input::Snapshot)],
            Some(ToChild::Commit) => vec![world.child_input(Input::Commit)],
            Some(ToChild::Socket) => vec![world.child_input(Input::Unexpected)],
            None if !self.parent.is_alive => vec![world.child_input(Input::SocketClosed)],
            None => Vec::new(),
        }
    }

    /// Ends the child's process by itself.
    fn child_ends(mut self) -> Self {
        self.child.is_alive = false;
        self.child_waits()
    }

    /// All worlds after one step of one process.
    fn steps(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        if self.parent.is_alive {
            worlds.extend(self.parent_steps());
        }
        if self.child.is_alive {
            worlds.extend(self.child_steps());
        }
        worlds
    }

    /// All worlds after a mishap: a process is killed, or the child sends a line that has no meaning.
    fn mishaps(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        let has_ended = matches!(self.parent.state, parent::State::Ended(_)) && self.parent.done.is_none();
        if self.parent.is_alive && !has_ended {
            let mut world = self.clone();
            (world.parent.is_alive, world.parent.is_serving) = (false, false);
            world.parent.was_killed = true;
            world.to_parent.clear();
            world.is_owed = self.child.is_alive && self.has_child_adopted();
            worlds.push(world);
        }
        if self.child.is_alive {
            let mut world = self.clone();
            world.kill_child();
            worlds.push(world);
            if self.parent.is_alive && self.to_parent.len() < LINES_MAX && !self.child.is_serving {
                let mut world = self.clone();
                world.to_parent.push_back(ToParent::Garbage);
                worlds.push(world);
            }
        }
        worlds
    }

    fn has_child_adopted(&self) -> bool {
        use child::State;
        matches!(self.child.state, State::Ready | State::Doubting | State::Taking | State::Claiming)
    }

    fn is_parent_serving(&self) -> bool {
        self.parent.is_alive && self.parent.is_serving
    }

    /// Holds in every world.
    fn check(&self) {
        let (parent, child) = (self.is_parent_serving(), self.child.is_serving);
        assert!(!(parent && child), "both serve: {self:?}");
        assert!(!child || self.word == TOUCHED, "the child serves without the word: {self:?}");
        assert!(!child || self.has_adopted, "the child serves without the connections: {self:?}");
        assert!(!parent || self.word != TOUCHED, "the parent serves without the word: {self:?}");
        assert!(self.word != RECLAIMED || !child, "the child serves after the roll back: {self:?}");
    }

    /// Holds in every world in which nothing more happens by itself.
    fn check_end(&self) {
        use parent::{State, Verdict};
        if self.parent.is_alive {
            let is_back = matches!(self.parent.state, State::Ended(Verdict::RolledBack | Verdict::DryRun));
            assert!(is_back && self.is_parent_serving(), "the parent lives and does not serve: {self:?}");
            assert!(!self.child.is_alive, "a child is left: {self:?}");
        } else if !self.parent.was_killed {
            let has_verdict = matches!(self.parent.state, State::Ended(Verdict::Committed | Verdict::Torn));
            assert!(has_verdict && self.word == TOUCHED, "the parent left the sockets: {self:?}");
        }
        if self.child.is_alive {
            let is_serving = self.child.state == child::State::Ended(child::Verdict::Serving);
            assert!(is_serving && self.child.is_serving, "the child lives and does not serve: {self:?}");
        } else if self.is_spawned && !self.child.was_killed {
            assert!(matches!(self.child.state, child::State::Ended(_)), "no verdict: {self:?}");
        }
        assert!(
            !self.is_owed || self.child.is_serving || self.child.was_killed,
            "the parent died with everything handed over, and the child does not serve: {self:?}"
        );
    }
}

#[test]
fn in_every_order_one_process_serves_and_every_end_has_a_verdict() {
    let mut seen = HashSet::from([World::first()]);
    let mut open = vec![World::first()];
    let (mut parents, mut children) = (BTreeSet::new(), BTreeSet::new());
    while let Some(world) = open.pop() {
        world.check();
        parents.insert(format!("{:?}", world.parent.state));
        if world.is_spawned {
            children.insert(format!("{:?}", world.child.state));
        }
        let steps = world.steps();
        // An ignored input changes nothing: a world with such steps only is an end, too.
        if steps.iter().all(|next| *next == world) {
            world.check_end();
        }
        for next in steps.into_iter().chain(world.mishaps()) {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
        assert!(seen.len() <= WORLDS_MAX, "the search does not end");
    }
    // The search is only worth something if it comes everywhere.
    let every = |states: Vec<String>| states.into_iter().collect::<BTreeSet<_>>();
    let mut expected: Vec<_> = parent::State::ALL.iter().map(|state| format!("{state:?}")).collect();
    expected.extend(parent::Verdict::ALL.map(|verdict| format!("{:?}", parent::State::Ended(verdict))));
    assert_eq!(parents, every(expected));
    let mut expected: Vec<_> = child::State::ALL.iter().map(|state| format!("{state:?}")).collect();
    expected.extend(child::Verdict::ALL.map(|verdict| format!("{:?}", child::State::Ended(verdict))));
    assert_eq!(children, every(expected));
    println!("{} worlds", seen.len());
}
