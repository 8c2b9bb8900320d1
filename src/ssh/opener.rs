//! The way to an agent's service: a new channel on its session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use russh::server::{Handle, Msg};
use russh::{Channel, Error};
use tokio::sync::oneshot;

use super::channel;
use super::ending::Ending;
use super::session::{ForwardKey, Session};
use crate::net::{ByteStream, Slot, SlotsFull, VisitorAddr};
use crate::registry::{BoxFuture, Cut, Open, OpenError, Opener};

/// How long a visitor waits for a channel that is just being given back.
const ROOM: Duration = Duration::from_millis(500);

/// Opens channels for one forward.
pub struct ChannelOpener {
    session: Arc<Session>,
    key: ForwardKey,
}

impl ChannelOpener {
    /// An opener for what `key` names on `session`.
    pub fn new(session: Arc<Session>, key: ForwardKey) -> Arc<Self> {
        Arc::new(Self { session, key })
    }
}

impl Opener for ChannelOpener {
    fn open(&self, visitor: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        self.open_with(visitor, Cut::default())
    }

    fn open_with(&self, visitor: VisitorAddr, cut: Cut) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let (session, key) = (self.session.clone(), self.key.clone());
        Box::pin(async move {
            if session.link.is_dead() {
                return Err(OpenError::Gone);
            }
            let handle = session.handle().ok_or(OpenError::Gone)?.clone();
            let open = tokio::time::timeout(ROOM, session.channels.clone().acquire_owned());
            let Ok(Ok(open)) = open.await else { return Err(OpenError::Full) };
            let ssh = &session.shared.settings.ssh;
            let (patience, close_timeout) = (ssh.open_timeout, ssh.close_timeout);
            let open = Open::new(open, cut.clone());
            let ending = Ending { open, waiting: session.closing.clone(), timeout: close_timeout };
            let (give, take) = oneshot::channel();
            let tasks = session.shared.tasks.clone();
            // A task of its own that is never given up: a late answer to an open that nobody
            // waits for would otherwise end the session, or leave the channel open for ever.
            // When the requester has gone, the stream that it would have got is dropped, and
            // dropping it closes the channel.
            tasks.spawn("ssh channel open", async move {
                let asked = Instant::now();
                let opened = open_channel(&handle, &key, visitor).await.map(|opened| {
                    session.round_trip.note(asked.elapsed());
                    let shared = &session.shared;
                    shared.metrics.ssh.channels.one();
                    let budget = shared.budget.clone();
                    channel::stream(opened, session.link.clone(), budget, &shared.tasks, ending, cut)
                });
                let _ = give.send(opened);
            });
            match tokio::time::timeout(patience, take).await {
                Err(_) => Err(OpenError::TimedOut),
                Ok(Err(_)) => Err(OpenError::Gone),
                Ok(Ok(Err(Error::ChannelOpenFailure(_)))) => Err(OpenError::Refused),
                Ok(Ok(Err(_))) => Err(OpenError::Gone),
                Ok(Ok(Ok(stream))) => Ok(Box::new(stream) as ByteStream),
            }
        })
    }

    fn admit(&self, visitor: VisitorAddr) -> Result<Option<Slot>, OpenError> {
        self.session.in_use.take(visitor.0).map(Some).map_err(|full| match full {
            SlotsFull::Total(_) => OpenError::Full,
            SlotsFull::Address(_) => OpenError::VisitorFull,
        })
    }

    fn has_room(&self) -> bool {
        self.session.channels.available_permits() > 0
    }
}

async fn open_channel(
    handle: &Handle,
    key: &ForwardKey,
    visitor: VisitorAddr,
) -> Result<Channel<Msg>, Error> {
    match key {
        ForwardKey::Path(path) => handle.channel_open_forwarded_streamlocal(&**path).await,
        ForwardKey::Tcp(address, port) => {
            // The visitor's port means nothing to the agent; some clients refuse 0.
            handle.channel_open_forwarded_tcpip(&**address, *port, visitor.to_string(), 1).await
        }
    }
}
