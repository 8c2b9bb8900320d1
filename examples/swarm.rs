//! A swarm of agents in one process, as a load for `./bench`: each has a TLS connection and an
//! SSH session of its own, holds one tunnel, and comes back with jittered backoff when it loses
//! the gateway, as an agent in the field does. It says on standard output, in JSON, one object
//! a line, which agents came and how many were lost.
//!
//! It is no client for people: it does not look at the gateway's SSH host key (the certificate
//! of the TLS around it is verified), and never gives up.

#![allow(clippy::print_stdout)] // its output is what it is for

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Parser;
use oneport::agent::{ConnectOptions, dial};
use oneport::name::ClientId;
use oneport::net::{Tasks, copy_both};
use russh::client::{self, AuthResult, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{Channel, Disconnect};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{interval, sleep, timeout};

/// Longest first pause before an agent connects again; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time for an attempt, from the TCP connection to the granted tunnel.
const ATTEMPT: Duration = Duration::from_secs(20);
/// How long nothing may move on a visitor's connection.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// How often news is told.
const NEWS: Duration = Duration::from_millis(100);

/// A swarm of agents that hold one tunnel each.
#[derive(Debug, Parser)]
struct Options {
    /// Where the gateway listens.
    #[arg(long, value_name = "IP:PORT")]
    gateway: SocketAddr,
    /// The name to ask for and to verify.
    #[arg(long, value_name = "NAME")]
    server_name: String,
    /// The authority to trust, in PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The private SSH key of all agents.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How many agents.
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// Tunnels are called `NAME-0`, `NAME-1`, and so on.
    #[arg(long, default_value = "swarm")]
    name: String,
    /// What visitors are led to.
    #[arg(long, value_name = "IP:PORT")]
    service: SocketAddr,
}

/// What became of an agent.
enum News {
    Came(usize),
    Lost,
    Failed(String),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Arc::new(Options::parse());
    let key = load_secret_key(&options.key, None)
        .with_context(|| format!("cannot read the key `{}`", options.key.display()))?;
    let client = ClientId::from_key_blob(&key.public_key().to_bytes()?);
    println!("{}", json!({ "client_id": client.as_str() }));
    let (tell, told) = unbounded_channel();
    let (tasks, key) = (Tasks::new(), Arc::new(key));
    for index in 0..options.agents {
        let member = Member {
            index,
            options: options.clone(),
            key: key.clone(),
            tasks: tasks.clone(),
            tell: tell.clone(),
        };
        tasks.spawn("agent", member.live());
    }
    report(told).await;
    Ok(())
}

/// Tells the news, gathered, until the process is ended.
async fn report(mut told: UnboundedReceiver<News>) {
    let mut connected = 0_usize;
    let mut clock = interval(NEWS);
    loop {
        clock.tick().await;
        let (mut came, mut lost, mut failed) = (Vec::new(), 0_usize, BTreeMap::<String, usize>::new());
        while let Ok(news) = told.try_recv() {
            match news {
                News::Came(index) => came.push(index),
                News::Lost => lost += 1,
                News::Failed(why) => *failed.entry(why).or_default() += 1,
            }
        }
        if came.is_empty() && lost == 0 && failed.is_empty() {
            continue;
        }
        connected = (connected + came.len()).saturating_sub(lost);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let line = json!({ "at": at, "connected": connected, "came": came, "lost": lost, "failed": failed });
        println!("{line}");
    }
}

/// One agent.
struct Member {
    index: usize,
    options: Arc<Options>,
    key: Arc<PrivateKey>,
    tasks: Tasks,
    tell: UnboundedSender<News>,
}

impl Member {
    /// Connects, stays as long as the session lasts, and comes back.
    async fn live(self) {
        let mut pause = PAUSE;
        loop {
            sleep(pause.mul_f64(chance())).await;
            match timeout(ATTEMPT, self.connect()).await {
                Ok(Ok(session)) => {
                    pause = PAUSE;
                    self.say(News::Came(self.index));
                    // How a session ended makes no difference to an agent that comes back.
                    let _ = session.await;
                    self.say(News::Lost);
                }
                Ok(Err(error)) => {
                    pause = (pause * 2).min(PAUSE_MAX);
                    self.say(News::Failed(format!("{error:#}")));
                }
                Err(_) => {
                    pause = (pause * 2).min(PAUSE_MAX);
                    self.say(News::Failed(format!("no session within {}s", ATTEMPT.as_secs())));
                }
            }
        }
    }

    /// A session that holds the tunnel.
    async fn connect(&self) -> anyhow::Result<Handle<Visits>> {
        let options = ConnectOptions {
            ca: Some(self.options.ca.clone()),
            insecure: false,
            server_name: Some(self.options.server_name.clone()),
        };
        let stream = dial(&self.options.gateway.to_string(), &options).await?;
        let config = client::Config { channel_buffer_size: 4096, ..client::Config::default() };
        let visits = Visits { service: self.options.service, tasks: self.tasks.clone() };
        let mut session = client::connect_stream(Arc::new(config), stream, visits).await?;
        let key = PrivateKeyWithHashAlg::new(self.key.clone(), None);
        if !matches!(session.authenticate_publickey("swarm", key).await?, AuthResult::Success) {
            bail!("the gateway does not take the key");
        }
        let name = format!("/{}-{}", self.options.name, self.index);
        if let Err(error) = session.streamlocal_forward(name).await {
            session.disconnect(Disconnect::ByApplication, "no tunnel", "").await?;
            bail!("no tunnel: {error}");
        }
        Ok(session)
    }

    /// The receiver lives as long as the process, so nothing is lost here.
    fn say(&self, news: News) {
        let _ = self.tell.send(news);
    }
}

/// Leads visitors to the service.
struct Visits {
    service: SocketAddr,
    tasks: Tasks,
}

impl client::Handler for Visits {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        _path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        let service = self.service;
        self.tasks.spawn("visit", async move {
            // The visitor sees a service that cannot be reached as a connection that ends.
            if let Ok(tcp) = TcpStream::connect(service).await
                && tcp.set_nodelay(true).is_ok()
            {
                copy_both(channel.into_stream(), tcp, IDLE).await;
            }
        });
        Ok(())
    }
}

/// A number from 0 to 1; without randomness, one half.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}
