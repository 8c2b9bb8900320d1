//! A session channel: where a person, or an agent that asks something, is answered.
//!
//! What arrives on the channel is always taken at once, whatever the other side does with what
//! is written, so that it never holds the session up; output goes through a bounded queue, and
//! lines that find it full are dropped.

use std::sync::Arc;
use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::broadcast::error::RecvError::{Closed, Lagged};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::commands::Command;
use super::screen::Screen;
use super::session::Session;
use super::share::{ShareCommand, shown};
use crate::net::Tasks;
use crate::observe::Reason;
use crate::registry::Holder as _;

/// Lines that may wait for a slow client.
const QUEUED: usize = 256;
/// How long a client may leave no room for a line.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// How long a client may take to go after its person asked to end.
const LEAVE: Duration = Duration::from_secs(3);

/// How shells end for a command that is not there.
const NO_SUCH_COMMAND: u32 = 127;

/// What was asked for on the channel.
#[derive(Debug)]
pub enum Ask {
    /// A terminal of this kind is there: lines end in CR LF, and keys come one by one.
    Pty,
    /// No command: show the person what goes on.
    Shell,
    /// A command.
    Exec(Command),
    /// A command about guest links.
    Share(ShareCommand),
    /// No command of ours; what is said to it.
    Unknown(String),
    /// A signal such as SIGINT: end.
    Interrupt,
}

impl Ask {
    /// Understands an `exec` request.
    pub fn exec(line: &[u8]) -> Self {
        let known =
            Command::parse(line).map(Self::Exec).or_else(|| ShareCommand::parse(line).map(Self::Share));
        known.unwrap_or_else(|| Self::Unknown(unknown(line)))
    }
}

/// What is said to a command that is not there.
fn unknown(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    let word = line.split_whitespace().next().unwrap_or_default();
    format!(
        "there is no command `{}` here; there are `hello`, `tunnel-url NAME`, `share NAME TIME`, `shares` and `unshare ID`; without one, what is exposed and who comes is shown",
        shown(word)
    )
}

enum Output {
    Out(String),
    Err(String),
    Exit { close: bool, status: u32 },
}

/// Serves a session channel in a task of its own, which holds `place` until all was written; returns
/// where its requests go.
pub fn open(
    channel: Channel<Msg>,
    session: &Arc<Session>,
    tasks: &Tasks,
    place: OwnedSemaphorePermit,
) -> mpsc::Sender<Ask> {
    let (asks, asked) = mpsc::channel(4);
    let (output, queued) = mpsc::channel(QUEUED);
    let (read, write) = channel.split();
    let (link, of) = (session.link.clone(), session.clone());
    let terminal =
        Terminal { session: session.clone(), output, screen: None, notices: session.notices.watch() };
    let over = CancellationToken::new();
    tasks.spawn("ssh terminal", terminal.run(read, asked, over.clone()));
    tasks.spawn("ssh terminal output", async move {
        let _place = place;
        tokio::select! {
            () = write_out(write, queued, &of) => {}
            () = over.cancelled() => {}
            () = link.closed() => {}
        }
        over.cancel();
    });
    asks
}

/// Writes what there is to say, and closes the channel in the end: nobody else would.
async fn write_out(write: ChannelWriteHalf<Msg>, mut queued: mpsc::Receiver<Output>, session: &Session) {
    while let Some(output) = queued.recv().await {
        let closes = matches!(output, Output::Exit { close: true, .. });
        let done = tokio::time::timeout(TAKEN_WITHIN, async {
            match output {
                Output::Out(text) => write.data_bytes(text).await,
                Output::Err(text) => write.extended_data_bytes(1, text).await,
                Output::Exit { close: false, status } => write.exit_status(status).await,
                Output::Exit { close: true, status } => {
                    write.exit_status(status).await?;
                    write.eof().await
                }
            }
        })
        .await;
        match done {
            // The session is gone.
            Ok(Err(_)) => return,
            Ok(Ok(())) if !closes => {}
            // The client takes nothing, and misses this; closing would end it, and its forwards with it.
            Err(_) if !session.tunnels().is_empty() => {}
            // All was said, or the rest is missed.
            Ok(Ok(())) | Err(_) => break,
        }
    }
    // Clients wait for the server to close.
    session.shared.metrics.ssh.closed_first.one();
    session.link.closed_first.note();
    // An error: the session is gone.
    let _ = write.close().await;
}

#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Close,
}

struct Terminal {
    session: Arc<Session>,
    output: mpsc::Sender<Output>,
    screen: Option<Screen>,
    notices: broadcast::Receiver<Arc<str>>,
}

impl Terminal {
    /// Answers what is asked until the client closes the channel, and cancels `over` then; or until that
    /// is cancelled, because all was said. The library never tells of the end of a channel that this
    /// side closes.
    async fn run(
        mut self,
        mut read: ChannelReadHalf,
        mut asked: mpsc::Receiver<Ask>,
        over: CancellationToken,
    ) {
        let mut visits = self.session.visits.watch();
        let mut pty = false;
        loop {
            tokio::select! {
                message = read.wait() => match message {
                    Some(ChannelMsg::Data { data }) if self.screen.as_ref().is_some_and(|s| s.is_end(&data)) => self.leave(),
                    Some(ChannelMsg::Close) | None => return over.cancel(),
                    Some(_) => {}
                },
                Some(ask) = asked.recv() => match ask {
                    Ask::Pty => pty = true,
                    Ask::Interrupt => self.leave(),
                    Ask::Shell => self.show(pty),
                    Ask::Share(command) => {
                        self.share(command);
                        break;
                    }
                    Ask::Unknown(what) => {
                        self.say(&what);
                        self.send(Output::Exit { close: true, status: NO_SUCH_COMMAND });
                        break;
                    }
                    Ask::Exec(command) => if self.answer(&command) == Next::Close {
                        break;
                    },
                },
                () = over.cancelled() => return,
                visit = visits.recv() => if let Some(screen) = &self.screen {
                    match visit {
                        Ok(visit) => self.print(screen.visit(&visit)),
                        Err(Lagged(missed)) => self.say(&format!("({missed} more requests)")),
                        // The session holds the sending end for longer than this task lives.
                        Err(Closed) => {}
                    }
                },
                notice = self.notices.recv() => if let Ok(notice) = notice {
                    self.say(&notice);
                },
            }
        }
        drop((self.output, asked));
        let closed = async { while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {} };
        tokio::select! {
            () = closed => over.cancel(),
            () = over.cancelled() => {}
        }
    }

    fn show(&mut self, pty: bool) {
        let screen = Screen::new(pty);
        self.print(screen.opening(&self.session));
        self.screen = Some(screen);
        self.say_refusals();
    }

    fn answer(&mut self, command: &Command) -> Next {
        self.say_refusals();
        self.print(command.answer(&self.session));
        // A connection with forwards must go on: closing the channel would end the client.
        let close = *command != Command::Hello || self.session.tunnels().is_empty();
        self.send(Output::Exit { close, status: 0 });
        if close { Next::Close } else { Next::GoOn }
    }

    /// In a task of its own: it writes a file, and nothing here may wait for that.
    fn share(&self, command: ShareCommand) {
        self.say_refusals();
        let (session, output) = (self.session.clone(), self.output.clone());
        self.session.shared.tasks.spawn("ssh share", async move {
            let (answer, status) = command.answer(&session).await;
            let notes = answer.notes.into_iter().map(|note| Output::Err(format!("oneport: {note}\r\n")));
            for said in notes.chain([Output::Out(answer.text), Output::Exit { close: true, status }]) {
                // Full: as in `send`.
                let _ = output.try_send(said);
            }
        });
    }

    fn leave(&mut self) {
        if self.screen.take().is_some() {
            self.send(Output::Exit { close: true, status: 0 });
            // A client waits for its forwarded connections, and visitors may keep theirs open.
            self.session.release_all();
            let session = self.session.clone();
            self.session.shared.tasks.spawn("ssh leave", async move {
                // The client ends the connection when its channel closes; if not, we do.
                if tokio::time::timeout(LEAVE, session.link.closed()).await.is_err() {
                    session.end(Reason::Finished);
                }
            });
        }
    }

    fn say_refusals(&self) {
        for refusal in self.session.take_refusals() {
            self.say(&refusal);
        }
    }

    /// On standard output where a person watches, else on standard error, so that what a
    /// command prints stays whole.
    fn say(&self, text: &str) {
        match &self.screen {
            Some(screen) => self.print(screen.line(text)),
            None => self.send(Output::Err(format!("oneport: {text}\r\n"))),
        }
    }

    fn print(&self, text: String) {
        self.send(Output::Out(text));
    }

    fn send(&self, output: Output) {
        // Full: the client does not read. It misses lines, and nobody waits for it.
        let _ = self.output.try_send(output);
    }
}
