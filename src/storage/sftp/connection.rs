//! One connection: an ssh process, requests from any number of threads, and a thread that receives the replies.
//!
//! Requests are pipelined: [`Connection::send`] returns before the reply is there, and [`Pending::wait`] waits for it. If
//! no byte moves in either direction for a time while a reply is due, the connection is closed, so that no operation waits
//! for a dead server. When a connection ends, all its requests end with [`Failure::Lost`].

use std::collections::HashMap;
use std::io::{self, ErrorKind as IoKind, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tracing::debug;

use super::failure::Failure;
use super::ssh::{Ssh, WORDS};
use super::wire::{Extension, LONGEST, Malformed, Reply, Request, VERSION, hello, parse_hello};
use crate::storage::error::ErrorKind;
use crate::storage::interrupt::{Connected, Interrupt};

/// How long ssh may take to end once it is told to, before it is killed.
const ENDING: Duration = Duration::from_secs(2);
/// The same for a connection that is not needed any more. Every reply that matters is there, and a distant server takes
/// longer than this to close its end.
const CLOSING: Duration = Duration::from_millis(50);
/// How long to wait for the rest of ssh's messages after its end: a master process of the user may keep the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// An open connection. On drop, ssh ends.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    /// `None` once the connection is being closed.
    input: Mutex<Option<ChildStdin>>,
    receiver: Option<JoinHandle<()>>,
    extensions: Vec<Extension>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stall: Duration,
}

#[derive(Debug)]
struct State {
    replies: HashMap<u32, Slot>,
    /// The number of replies that are [`Slot::Due`].
    due: usize,
    next: u32,
    /// The server's hello, until it is taken.
    hello: Option<Vec<u8>>,
    /// When a byte last moved, or the first of the requests whose replies are due was sent.
    moved: Instant,
    lost: Option<Failure>,
    /// ssh's process group; `None` once it was waited for.
    process: Option<Pid>,
}

/// The place of a reply.
#[derive(Debug)]
enum Slot {
    Due,
    Here(Reply),
    /// Not wanted any more.
    Abandoned,
}

/// A request under way. On drop, its reply is ignored.
#[derive(Debug)]
pub(super) struct Pending<'c> {
    id: u32,
    shared: &'c Shared,
}

impl Connection {
    /// Starts ssh, greets the server, and makes a first request. The connection may be silent for at most `stall` while a
    /// reply is due. Returns the reply to the request as well.
    ///
    /// The request follows the greeting at once, which saves a round trip: its meaning is the same in every version, and
    /// servers answer in order.
    pub(super) fn open(
        ssh: &Arc<Ssh>,
        stall: Duration,
        interrupt: &Interrupt,
        first: &Request<'_>,
    ) -> Result<(Self, Reply), Failure> {
        let mut child = ssh.start()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(words)) = pipes else {
            return Err(Failure::Lost(ErrorKind::Other, "ssh has no pipes".to_owned()));
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                replies: HashMap::new(),
                due: 0,
                next: 0,
                hello: None,
                moved: Instant::now(),
                lost: None,
                process: i32::try_from(child.id()).ok().and_then(Pid::from_raw),
            }),
            changed: Condvar::new(),
            stall,
        });
        let connected: Arc<dyn Connected> = shared.clone();
        interrupt.watch(Arc::downgrade(&connected));
        let said = Vec::new();
        let receiver = Receiver { shared: shared.clone(), ssh: ssh.clone(), child, output, words: Some(words), said };
        let receiver = thread::Builder::new().name("sftp".into()).spawn(move || receiver.run());
        let failed = |error: io::Error| Failure::Lost(ErrorKind::Other, format!("cannot start a thread: {error}"));
        // The closure with the child is dropped if no thread starts, and the pipes with it, which ends ssh.
        let receiver = receiver.map_err(failed)?;
        let mut connection =
            Connection { shared, input: Mutex::new(Some(input)), receiver: Some(receiver), extensions: Vec::new() };
        let (extensions, reply) = connection.greet(first)?;
        debug!(?extensions, "connected");
        connection.extensions = extensions;
        Ok((connection, reply))
    }

    fn greet(&self, first: &Request<'_>) -> Result<(Vec<Extension>, Reply), Failure> {
        if let Some(input) = &*lock(&self.input) {
            // A full pipe must not block, as a stalled server would then never be given up.
            let flags = fcntl_getfl(input).map(|flags| flags | OFlags::NONBLOCK);
            flags.and_then(|flags| fcntl_setfl(input, flags)).map_err(|error| {
                Failure::Lost(ErrorKind::Other, format!("cannot set up a pipe: {}", io::Error::from(error)))
            })?;
        }
        self.write(&hello())?;
        let first = self.send(first)?;
        let message = self.shared.wait(|state| state.hello.take())?;
        let extensions = match parse_hello(&message) {
            Ok((VERSION.., extensions)) => extensions,
            Ok((version, _)) => {
                let why = format!("the server speaks version {version} of SFTP; brackfs needs version 3");
                return Err(Failure::Lost(ErrorKind::Refused, why));
            }
            Err(malformed) => return Err(malformed.into()),
        };
        Ok((extensions, first.wait()?))
    }

    /// Whether the server has an extension.
    pub(super) fn has(&self, extension: Extension) -> bool {
        self.extensions.contains(&extension)
    }

    /// Whether the connection has ended.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.lock().lost.is_some()
    }

    /// Sends a request.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Pending<'_>, Failure> {
        let id = self.shared.begin()?;
        let pending = Pending { id, shared: &self.shared };
        self.write(&request.encode(id))?;
        Ok(pending)
    }

    /// Sends a request and waits for its reply.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        self.send(request)?.wait()
    }

    /// Writes all bytes of a message. A message that is written in part ends the connection.
    fn write(&self, message: &[u8]) -> Result<(), Failure> {
        let input = lock(&self.input);
        let Some(pipe) = &*input else {
            return Err(self.shared.lose(ErrorKind::Unavailable, "the connection is closed"));
        };
        let mut rest = message;
        while !rest.is_empty() {
            match rustix::io::write(pipe, rest) {
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.shared.lock().moved = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = self.shared.left()?;
                    wait_for(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(left));
                }
                // ssh has ended: the receiver finds out why.
                Err(_) => return Err(self.shared.wait(|_| None::<()>).err().unwrap_or_else(|| Malformed.into())),
            }
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // ssh ends when its input does.
        *lock(&self.input) = None;
        let Some(receiver) = self.receiver.take() else { return };
        let ends = |time: Duration| {
            let end = Instant::now() + time;
            while !receiver.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
            }
            receiver.is_finished()
        };
        if !ends(CLOSING) {
            self.shared.lose(ErrorKind::Unavailable, "the connection is closed");
            // If a process that ssh started keeps the pipes open, the receiver is abandoned.
            ends(2 * ENDING);
        }
    }
}

impl Pending<'_> {
    /// Waits for the reply.
    pub(super) fn wait(self) -> Result<Reply, Failure> {
        self.shared.wait(|state| match state.replies.get(&self.id) {
            Some(Slot::Here(_)) => match state.replies.remove(&self.id) {
                Some(Slot::Here(reply)) => Some(reply),
                _ => None,
            },
            _ => None,
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match state.replies.get_mut(&self.id) {
            Some(slot @ Slot::Due) => {
                *slot = Slot::Abandoned;
                state.due -= 1;
            }
            Some(_) => _ = state.replies.remove(&self.id),
            None => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes an id for a request.
    fn begin(&self) -> Result<u32, Failure> {
        let mut state = self.lock();
        if let Some(lost) = &state.lost {
            return Err(lost.clone());
        }
        if state.due == 0 {
            state.moved = Instant::now();
        }
        let id = state.next;
        state.next = state.next.wrapping_add(1);
        state.replies.insert(id, Slot::Due);
        state.due += 1;
        Ok(id)
    }

    /// Waits until `take` returns a value. Closes a connection that is silent for too long.
    fn wait<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T, Failure> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = take(&mut state) {
                return Ok(taken);
            }
            if let Some(lost) = &state.lost {
                return Err(lost.clone());
            }
            let left = self.stall.saturating_sub(state.moved.elapsed());
            if left.is_zero() {
                drop(state);
                return Err(self.stalled());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The time until the connection is silent for too long.
    fn left(&self) -> Result<Duration, Failure> {
        let left = {
            let state = self.lock();
            if let Some(lost) = &state.lost {
                return Err(lost.clone());
            }
            self.stall.saturating_sub(state.moved.elapsed())
        };
        if left.is_zero() { Err(self.stalled()) } else { Ok(left) }
    }

    fn stalled(&self) -> Failure {
        let why = format!("the server was silent for {} s", self.stall.as_secs());
        self.lose(ErrorKind::Unavailable, &why)
    }

    /// Closes the connection, unless it is closed already. Returns why it was closed.
    fn lose(&self, kind: ErrorKind, why: &str) -> Failure {
        self.lose_for(Failure::Lost(kind, why.to_owned()))
    }

    fn lose_for(&self, failure: Failure) -> Failure {
        let mut state = self.lock();
        if let Some(process) = state.process {
            // It may have ended by itself.
            let _ = kill_process_group(process, Signal::KILL);
        }
        let lost = state.lost.get_or_insert(failure).clone();
        self.changed.notify_all();
        lost
    }
}

impl Connected for Shared {
    fn silent_since(&self) -> Option<Instant> {
        let state = self.lock();
        Some(state.moved).filter(|_| state.due > 0)
    }

    fn end(&self) {
        self.lose(ErrorKind::Unavailable, "the server was silent");
    }
}

/// The thread that receives: replies from ssh's output, and messages from its error output.
struct Receiver {
    shared: Arc<Shared>,
    ssh: Arc<Ssh>,
    child: Child,
    output: ChildStdout,
    /// `None` once it is closed.
    words: Option<ChildStderr>,
    /// ssh's messages so far.
    said: Vec<u8>,
}

impl Receiver {
    fn run(mut self) {
        let end = self.receive();
        let failure = match end {
            // ssh's messages explain the end of its output.
            Ok(()) => {
                self.reap();
                self.hear(LAST_WORDS);
                self.ssh.explain(&self.said)
            }
            Err(failure) => failure,
        };
        let lost = self.shared.lose_for(failure);
        debug!(?lost, "disconnected");
        self.reap();
    }

    /// Receives replies until the end of the output.
    fn receive(&mut self) -> Result<(), Failure> {
        let mut message = Vec::new();
        let mut is_greeted = false;
        loop {
            let mut head = [0; 4];
            if !self.fill(&mut head)? {
                return Ok(());
            }
            let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
            if !(1..=LONGEST).contains(&length) {
                return Err(Malformed.into());
            }
            message.resize(length, 0);
            if !self.fill(&mut message)? {
                return Ok(());
            }
            if is_greeted {
                let (id, reply) = Reply::parse(&message)?;
                let mut state = self.shared.lock();
                match state.replies.get_mut(&id) {
                    Some(slot @ Slot::Due) => {
                        *slot = Slot::Here(reply);
                        state.due -= 1;
                    }
                    Some(Slot::Abandoned) => _ = state.replies.remove(&id),
                    // No such request, or a second reply.
                    _ => return Err(Malformed.into()),
                }
            } else {
                self.shared.lock().hello = Some(std::mem::take(&mut message));
                is_greeted = true;
            }
            self.shared.changed.notify_all();
        }
    }

    /// Reads until `bytes` is full. Returns false at the end of the output.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, Failure> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let (output, words) = {
                let mut pipes = vec![PollFd::new(&self.output, PollFlags::IN)];
                pipes.extend(self.words.iter().map(|words| PollFd::new(words, PollFlags::IN)));
                wait_for(&mut pipes, None);
                let mut ready = pipes.iter().map(|pipe| !pipe.revents().is_empty());
                (ready.next() == Some(true), ready.next() == Some(true))
            };
            if words {
                self.listen();
            }
            if output {
                match self.output.read(rest) {
                    Ok(0) => return Ok(false),
                    Ok(read) => {
                        filled += read;
                        self.shared.lock().moved = Instant::now();
                    }
                    Err(error) if error.kind() == IoKind::Interrupted => {}
                    Err(_) => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Reads some of ssh's messages.
    fn listen(&mut self) {
        let mut part = [0; 1024];
        let Some(words) = &mut self.words else { return };
        match words.read(&mut part) {
            Ok(read @ 1..) => {
                self.said.extend_from_slice(part.get(..read).unwrap_or_default());
                // A debug log of ssh can be long, and the reason is at its end.
                let surplus = self.said.len().saturating_sub(WORDS);
                self.said.drain(..surplus);
            }
            Err(error) if error.kind() == IoKind::Interrupted => {}
            _ => self.words = None,
        }
    }

    /// Reads ssh's last messages, for at most this long.
    fn hear(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(words) = &self.words {
            let left = end.saturating_duration_since(Instant::now());
            let mut pipes = [PollFd::new(words, PollFlags::IN)];
            wait_for(&mut pipes, Some(left));
            if pipes.iter().all(|pipe| pipe.revents().is_empty()) {
                return;
            }
            self.listen();
        }
    }

    /// Waits until ssh has ended, and kills it if it does not.
    fn reap(&mut self) {
        let end = Instant::now() + ENDING;
        loop {
            {
                let mut state = self.shared.lock();
                // Under the lock: afterwards, the number may belong to another process.
                if !matches!(self.child.try_wait(), Ok(None)) {
                    state.process = None;
                    return;
                }
            }
            if Instant::now() > end {
                // It may have ended by now.
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits until a pipe is ready, and for at most this long. May return early.
fn wait_for(pipes: &mut [PollFd<'_>], time: Option<Duration>) {
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    // Interrupted, or out of memory: the caller looks at the pipes again.
    let _ = poll(pipes, time.as_ref());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
