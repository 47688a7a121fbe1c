//! Log lines and ready lines that no serving thread waits for.
//!
//! A reader of a log may stop reading (`moorline run 2>&1 | less`), go away, or be a disk that is full.
//! A write to such a stream blocks or fails, and must cost the reader its lines, never a client its
//! messages. Example: reactor 3 logs `connection closed`. `LogWriter::write` puts the line into a queue
//! and returns; the thread `log-writer` writes the line to standard error. If the pipe has been full for
//! longer than the queue has room, the line is dropped and counted, and the thread logs the number
//! of dropped lines as soon as the pipe takes lines again.
//!
//! The thread does not survive `fork`. No code of Moorline logs between `fork` and `exec`; the program
//! that `exec` starts makes a writer of its own.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines in the queue.
const LINES_MAX: usize = 8192;
/// Bytes in the queue.
const BYTES_MAX: usize = 4 << 20;
/// Bytes that a pipe takes at once when it says that it takes any.
const PAGE_BYTES: usize = 4096;
/// Longest wait of [`LogWriter::flush`].
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Longest wait of [`LogWriter::flush`] for one line: a stream that takes nothing for this long is stuck.
const STALL_MAX: Duration = Duration::from_millis(250);

/// Writes lines to a stream from a thread of its own. Clones share queue, thread and counters.
#[derive(Clone, Debug)]
pub struct LogWriter {
    queue: SyncSender<Vec<u8>>,
    state: Arc<State>,
}

/// Number of log lines that were dropped, by cause. Clones share the numbers; a default one stays at zero.
#[derive(Clone, Debug, Default)]
pub struct DroppedLines(Arc<Dropped>);

#[derive(Debug, Default)]
struct Dropped {
    queue_full: AtomicU64,
    write_failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    dropped: DroppedLines,
    /// Bytes in the queue.
    bytes: AtomicUsize,
    /// Lines that were put into the queue since the start.
    queued: AtomicU64,
    /// Lines that left the queue since the start, written or failed.
    done: Mutex<u64>,
    has_written: Condvar,
}

impl DroppedLines {
    /// Lines dropped because the queue was full.
    pub fn queue_full(&self) -> u64 {
        self.0.queue_full.load(Ordering::Relaxed)
    }

    /// Lines that the stream did not take: its reader is gone, or the disk is full.
    pub fn write_failed(&self) -> u64 {
        self.0.write_failed.load(Ordering::Relaxed)
    }

    fn sum(&self) -> u64 {
        self.queue_full() + self.write_failed()
    }
}

impl LogWriter {
    /// Starts the thread that writes to `stream`.
    ///
    /// # Errors
    /// The system's: no thread.
    pub fn start(stream: impl AsFd + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(LINES_MAX);
        let state = Arc::new(State::default());
        let theirs = Arc::clone(&state);
        let run = move || write_lines(&stream, &lines, &theirs);
        crate::thread::spawn("log-writer", run)?;
        Ok(Self { queue, state })
    }

    /// Queues a line, or drops and counts it if the queue is full. Never waits for the stream.
    pub fn try_write(&self, line: &[u8]) {
        let State { dropped, bytes, queued, .. } = &*self.state;
        let before = bytes.fetch_add(line.len(), Ordering::AcqRel);
        if before + line.len() <= BYTES_MAX && self.queue.try_send(line.to_vec()).is_ok() {
            queued.fetch_add(1, Ordering::Release);
        } else {
            bytes.fetch_sub(line.len(), Ordering::AcqRel);
            dropped.0.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters of dropped lines.
    pub fn dropped(&self) -> DroppedLines {
        self.state.dropped.clone()
    }

    /// Waits until the lines queued before this call are written: before the process ends. Gives up
    /// after 2 s, and after 250 ms without one written line. Returns whether all lines are written.
    pub fn flush(&self) -> bool {
        let wanted = self.state.queued.load(Ordering::Acquire);
        let mut done = self.state.done.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..FLUSH_MAX.as_millis() / STALL_MAX.as_millis() {
            let before = *done;
            let is_waiting = |done: &mut u64| *done < wanted;
            let waited = self.state.has_written.wait_timeout_while(done, STALL_MAX, is_waiting);
            done = waited.unwrap_or_else(PoisonError::into_inner).0;
            if *done >= wanted || *done == before {
                break;
            }
        }
        *done >= wanted
    }

    /// Has panics logged, and flushed before the process aborts. The standard library's own hook would
    /// write to standard error in the panicking thread, and wait there for a stuck reader.
    pub fn log_panics(&self) {
        let writer = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let current = thread::current();
            let payload = panic.payload();
            let message = payload.downcast_ref::<&str>().copied();
            let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let message = message.unwrap_or("no message");
            let place = panic.location().map(ToString::to_string);
            let trace = std::backtrace::Backtrace::capture();
            let trace = (trace.status() == std::backtrace::BacktraceStatus::Captured).then_some(trace);
            let trace = trace.map(|trace| trace.to_string());
            tracing::error!(thread = current.name(), place, trace, "thread panicked: {message}");
            writer.flush();
        }));
    }
}

impl io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.try_write(line);
        Ok(line.len())
    }

    /// Does nothing: [`LogWriter::flush`] waits, and a serving thread must not.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(stream: &impl AsFd, lines: &Receiver<Vec<u8>>, state: &State) {
    let (mut is_torn, mut reported) = (false, 0);
    loop {
        let line = match lines.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let (full, lost) = (state.dropped.queue_full(), state.dropped.sum());
                if !is_torn && lost > std::mem::replace(&mut reported, lost) {
                    let failed = lost - full;
                    tracing::warn!(queue_full = full, write_failed = failed, "log lines were dropped");
                }
                let Ok(line) = lines.recv() else { return };
                line
            }
        };
        state.bytes.fetch_sub(line.len(), Ordering::AcqRel);
        // The rest of a line that was cut off must not stand in front of the next one.
        let separated = if is_torn { write_all(stream.as_fd(), b"\n") } else { Ok(()) };
        is_torn = separated.and_then(|()| write_all(stream.as_fd(), &line)).is_err();
        if is_torn {
            state.dropped.0.write_failed.fetch_add(1, Ordering::Relaxed);
        }
        *state.done.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        state.has_written.notify_all();
    }
}

/// Writes all of `bytes`, past the locks of `std::io`: a thread that waits here must not hold a lock
/// that others need.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            // Another process made the stream non-blocking, for instance a terminal's.
            Err(Errno::EAGAIN) => {
                let mut watched = [PollFd::new(fd, PollFlags::POLLOUT)];
                poll(&mut watched, PollTimeout::NONE).or_else(ignore_interrupt)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn ignore_interrupt(error: Errno) -> Result<i32, Errno> {
    if error == Errno::EINTR { Ok(0) } else { Err(error) }
}

/// Writes `text` to `stream` from a thread that ends with the write, and calls `on_end` there. For a
/// line that is not part of the log: a ready line, the last error of a process.
///
/// # Errors
/// The system's: no thread.
fn write_detached(
    stream: impl AsFd + Send + 'static,
    text: String,
    on_end: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<()> {
    let run = move || on_end(write_all(stream.as_fd(), text.as_bytes()));
    crate::thread::spawn("line-writer", run).map(drop)
}

/// Waits until `stream` takes bytes, or says that it is gone. False: it took none within `wait`.
fn takes_bytes(stream: impl AsFd, wait: Duration) -> io::Result<bool> {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut watched, wait).or_else(ignore_interrupt)? != 0)
}

/// Writes `text` to `stream` in the calling thread, if it takes it within `wait`. A pipe that says so takes a whole page, so
/// longer texts are cut.
fn write_now(stream: impl AsFd, text: &str, wait: Duration) -> io::Result<()> {
    if !takes_bytes(&stream, wait)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    write_all(stream.as_fd(), &text.as_bytes()[..text.len().min(PAGE_BYTES)])
}

/// Writes `text` to `stream` in the calling thread, which waits as long as the stream does not take it.
///
/// # Errors
/// The write's own.
pub fn write_here(stream: impl AsFd, text: &str) -> io::Result<()> {
    write_all(stream.as_fd(), text.as_bytes())
}

/// Writes a ready line to standard output. A failure is logged and has no other effect; so is a reader that takes nothing.
pub fn announce(line: &str) {
    let write = |line: &str| {
        if matches!(takes_bytes(io::stdout(), FLUSH_MAX), Ok(false)) {
            tracing::warn!("standard output takes nothing, so nobody has read the ready line");
        }
        if let Err(error) = write_all(io::stdout().as_fd(), line.as_bytes()) {
            tracing::warn!(%error, "cannot write the ready line to standard output");
        }
    };
    let copy = line.to_owned();
    if let Err(error) = crate::thread::spawn("line-writer", move || write(&copy)) {
        tracing::warn!(%error, "cannot start a thread for the ready line");
        write_now(io::stdout(), line, Duration::ZERO).ok();
    }
}

/// Writes `text` to `stream` and waits at most 2 s for the write.
///
/// # Errors
/// The write's own, or `TimedOut`: the stream is stuck.
pub fn write_within_deadline(stream: impl AsFd + Send + Sync + 'static, text: String) -> io::Result<()> {
    let (sender, result) = sync_channel(1);
    let (stream, copy) = (Arc::new(stream), text.clone());
    let begun = write_detached(Arc::clone(&stream), text, move |result| _ = sender.try_send(result));
    if begun.is_err() {
        // A process that gets no thread says so all the same.
        return write_now(stream.as_fd(), &copy, FLUSH_MAX);
    }
    result.recv_timeout(FLUSH_MAX).unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// Fills a pipe until a write would block.
    fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (reader, writer) = io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our pipe");
        while nix::unistd::write(&writer, &[b'x'; 4096]).is_ok() {}
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("our pipe");
        (reader, writer)
    }

    #[test]
    fn lines_arrive_in_order_and_a_flush_waits_for_them() {
        let (mut reader, pipe) = io::pipe().expect("a pipe");
        let log = LogWriter::start(pipe).expect("starts");
        let lines: Vec<String> = (0..100).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| log.try_write(line.as_bytes()));
        assert!(log.flush());
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the thread ends with its last writer");
        assert_eq!(text, lines.concat());
    }

    #[test]
    fn a_stuck_stream_costs_lines_and_bounded_memory_but_no_waiting() {
        let (mut reader, pipe) = full_pipe();
        let log = LogWriter::start(pipe).expect("starts");
        let line = [b'y'; 1000];
        let count = 3 * LINES_MAX as u64;
        (0..count).for_each(|_| log.try_write(&line));
        assert!(log.dropped().queue_full() >= count - LINES_MAX as u64 - 1);
        assert!(log.state.bytes.load(Ordering::SeqCst) <= BYTES_MAX);
        assert!(!log.flush(), "it gives up");
        // The reader comes back: what is in the queue arrives, and new lines have room.
        let (log_end, lost) = (log.clone(), log.dropped().queue_full());
        let copied = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        while !log.flush() {}
        log.try_write(b"again\n");
        assert!(log.flush());
        assert_eq!((log.dropped().queue_full(), log.dropped().write_failed()), (lost, 0));
        drop((log, log_end));
        copied.join().expect("no panic").expect("read");
    }

    #[test]
    fn bytes_are_bounded_as_lines_are() {
        let (_reader, pipe) = full_pipe();
        let log = LogWriter::start(pipe).expect("starts");
        let line = vec![b'z'; BYTES_MAX / 4];
        (0..6).for_each(|_| log.try_write(&line));
        // Four fill the queue; the thread may have taken one of them.
        assert!((1..=2).contains(&log.dropped().queue_full()), "{:?}", log.dropped());
    }

    #[test]
    fn lines_that_fail_are_counted_and_a_flush_does_not_wait_for_them() {
        let (reader, pipe) = io::pipe().expect("a pipe");
        drop(reader);
        let log = LogWriter::start(pipe).expect("starts");
        (0..3).for_each(|_| log.try_write(b"nobody reads this\n"));
        assert!(log.flush());
        assert_eq!((log.dropped().queue_full(), log.dropped().write_failed()), (0, 3));
        let disk = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux");
        let log = LogWriter::start(disk).expect("starts");
        log.try_write(b"no space\n");
        assert!(log.flush());
        assert_eq!(log.dropped().write_failed(), 1);
    }

    #[test]
    fn a_single_line_has_a_deadline() {
        let (_reader, pipe) = full_pipe();
        let stuck = write_within_deadline(pipe, "x\n".into()).expect_err("nobody reads");
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        let (mut reader, pipe) = io::pipe().expect("a pipe");
        write_within_deadline(pipe, "ready\n".into()).expect("written");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the thread has ended");
        assert_eq!(text, "ready\n");
    }
}
