//! `run`: a command in a network namespace of its own, for as long as it lasts.

mod inside;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use hyper::Method;
use overlay_core::model::MacAddr;
use rustix::process::Signal;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::limit::LimitArgs;
use crate::api::client::call;
use crate::api::{ContainerAdd, ContainerInfo, ContainerRemove, Netns, Publish};
use crate::instance::Instance;
use crate::plugins::network;
use inside::{Inside, Process};

/// As shells have it: the command can't be run, or there is none.
const CAN_NOT_RUN: u8 = 126;
const NO_COMMAND: u8 = 127;

/// What is passed on to the command.
const SIGNALS: [(SignalKind, Signal); 7] = [
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
    (SignalKind::alarm(), Signal::ALARM),
];

/// `run`
#[derive(Debug, Args)]
#[command(
    after_help = "The command has a network namespace of its own, with lo and its interface on the network, and sees an \
    /etc/resolv.conf that names the network's gateway; nothing else of the host is changed or hidden. It is taken off \
    the network when it ends, or when 'overlay-dp run' is killed. Signals are passed on to it, and its exit status is \
    passed back: 128 and the signal's number when one ended it, 127 when there is no such command.

Examples:
  overlay-dp run --network uber-net --name web -- nginx -g 'daemon off;'
  overlay-dp run --network uber-net --name tmp -- bash
  overlay-dp run --network uber-net --service web --ip 10.0.0.80 -- ./server"
)]
pub struct RunArgs {
    /// The network
    #[arg(long)]
    network: String,
    /// Its name, unique on the network [default: SERVICE.SLOT.RANDOM]
    #[arg(long, required_unless_present = "service")]
    name: Option<String>,
    /// The address it gets [default: the next free one]
    #[arg(long)]
    ip: Option<IpAddr>,
    /// The MAC it gets [default: 02:42 and the address]
    #[arg(long, value_name = "MAC")]
    mac_address: Option<MacAddr>,
    /// The name of the interface inside
    #[arg(long, default_value = "eth0", value_name = "NAME")]
    ifname: String,
    /// Another name of it (repeatable)
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// The service it is a task of: that name has the addresses of all its tasks
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// A port of this host that leads to one of it (repeatable)
    #[arg(long, value_name = "[HOSTIP:]HOSTPORT:PORT[/udp]")]
    publish: Vec<Publish>,
    #[command(flatten)]
    limit: LimitArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command, and returns what it returned.
pub async fn run(instance: &Instance, args: RunArgs) -> Result<ExitCode> {
    // From now on none ends this process before the container is gone.
    let mut signals = listen()?;
    let inside = Inside::make()?;
    let request = ContainerAdd {
        name: args.name,
        network: args.network,
        netns: Netns::Path(inside.netns()),
        aliases: args.aliases,
        service: args.service,
        resolv_conf: false,
        ip: args.ip,
        mac: args.mac_address,
        ifname: args.ifname,
        attachment: None,
        publish: args.publish,
        limit: args.limit.limit(),
    };
    let added: ContainerInfo =
        call(instance, Method::POST, "/v1/containers", Some(&request)).await?;
    let outcome = async {
        let network = network::find(instance, &added.network).await?;
        let resolv_conf = format!(
            "nameserver {}\nsearch {}\noptions ndots:0\n",
            network.gateway, network.name
        );
        let started = inside.start(&args.command, resolv_conf).await;
        match started {
            Ok(process) => wait(process, &mut signals).await.map(code),
            Err(error) => cannot_run(&args.command, error),
        }
    };
    let outcome = outcome.await;
    // It may be gone already, or the agent: the next one finds that.
    let gone = ContainerRemove {
        name: added.name,
        network: Some(added.network),
    };
    let _ = call::<_, Value>(instance, Method::DELETE, "/v1/containers", Some(&gone)).await;
    outcome
}

fn cannot_run(command: &[OsString], error: anyhow::Error) -> Result<ExitCode> {
    let kind = error.downcast_ref::<std::io::Error>().map(|e| e.kind());
    let shown = command.first().map(|name| name.to_string_lossy());
    let shown = shown.unwrap_or_default();
    let code = match kind {
        Some(ErrorKind::NotFound) => NO_COMMAND,
        Some(_) => CAN_NOT_RUN,
        None => return Err(error),
    };
    eprintln!("overlay-dp: can't run '{shown}': {error}");
    Ok(ExitCode::from(code))
}

/// What comes to this process. A terminal sends its own to the command as well.
fn listen() -> Result<mpsc::Receiver<Signal>> {
    let (sender, signals) = mpsc::channel(16);
    let at_terminal = std::io::stdin().is_terminal();
    for (kind, name) in SIGNALS {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        let sent_twice = at_terminal && matches!(name, Signal::INT | Signal::QUIT);
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if !sent_twice && sender.send(name).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(signals)
}

async fn wait(mut process: Process, signals: &mut mpsc::Receiver<Signal>) -> Result<ExitStatus> {
    loop {
        tokio::select! {
            ended = &mut process.ended => {
                let ended = ended.map_err(|_| anyhow!("the command is lost"))?;
                return ended.context("can't wait for the command");
            }
            Some(signal) = signals.recv() => process.signal(signal),
        }
    }
}

/// As a shell would tell it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
