//! `capture`

use std::collections::HashMap;
use std::fs::{OpenOptions, Permissions};
use std::io::IsTerminal as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hyper::Method;
use overlay_common::capture::MAX_SNAP;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::client::{agent_runs, call};
use crate::api::{ContainerInfo, NetworkInfo, Status};
use crate::capture::{File, Filter, Interface, Summary, Wanted, run};
use crate::instance::Instance;

/// `capture`
#[derive(Debug, Args)]
#[command(
    after_help = "The programs themselves copy the packets: all of them are seen, in every --datapath, and what was dropped \
    or handed to the agent says why in a comment. --inner is what containers send and get, as they send and get it, with an \
    interface for each container; --outer the tunnels' packets on the uplink. The filter is about containers' packets, also \
    inside tunnels: host, net, port (after src or dst, or not), tcp, udp, icmp, icmp6, arp, ip, ip6, ether host, and, or, \
    not, ( ). Checksums that are left to be computed by the hardware are shown as they are. Ctrl-C ends it.

Examples:
  overlay-dp capture -w all.pcapng
  overlay-dp capture -w web.pcapng --container web --duration 10 tcp port 80
  overlay-dp capture -w - --inner --outer --network uber-net | tshark -r -
  overlay-dp capture -w - icmp | wireshark -k -i -"
)]
pub struct CaptureArgs {
    /// The file, in pcapng, for its owner alone to read; '-' is standard output
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,
    /// Packets of this network only
    #[arg(long)]
    network: Option<String>,
    /// Packets of this container of this host only
    #[arg(long)]
    container: Option<String>,
    /// What containers send and get [default, unless --outer is given]
    #[arg(long)]
    inner: bool,
    /// What goes over the uplink, with outer headers
    #[arg(long)]
    outer: bool,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Keep so many bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SNAP, value_parser = clap::value_parser!(u32).range(14..=i64::from(MAX_SNAP)))]
    snap: u32,
    /// Only such packets
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<String>,
}

/// Captures until it is told to stop; says at the end how much that was.
pub async fn capture(instance: &Instance, json: bool, args: CaptureArgs) -> Result<()> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!(
            "a capture is nothing for a terminal: pipe it to tshark or wireshark, or give a file with -w"
        );
    }
    let wanted = wanted(instance, &args).await?;
    let host = match agent_runs(instance).await {
        true => status(instance).await?.host_name,
        false => crate::agent::default_host_name(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop)?;
    let own = instance.clone();
    let handle = tokio::runtime::Handle::current();
    let work = move || -> Result<Summary> {
        let names = || handle.block_on(interfaces(&own));
        match to_stdout {
            true => {
                let file = || File::begin(std::io::stdout(), wanted.snap, &host);
                ends_well(run(&own, &wanted, file, names, &stop))
            }
            false => {
                let path = &args.file;
                let file = || {
                    let file = make(path);
                    let file = file.with_context(|| format!("can't write {}", path.display()))?;
                    File::begin(file, wanted.snap, &host)
                };
                run(&own, &wanted, file, names, &stop)
            }
        }
    };
    let summary = tokio::task::spawn_blocking(work).await??;
    let Summary {
        written,
        unwanted,
        lost,
    } = summary;
    // Standard output may be the capture.
    match json {
        true => eprintln!(
            "{}",
            serde_json::json!({ "written": written, "unwanted": unwanted, "lost": lost })
        ),
        false => eprintln!("{written} packets written, {unwanted} not wanted, {lost} lost"),
    }
    Ok(())
}

/// The file, empty, and for its owner alone: packets have in them what containers tell each other.
fn make(path: &Path) -> std::io::Result<std::fs::File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    // A device or a pipe is as it is.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
    }
    Ok(file)
}

/// Whoever reads has seen enough.
fn ends_well(done: Result<Summary>) -> Result<Summary> {
    match done {
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            Ok(Summary::default())
        }
        other => other,
    }
}

async fn wanted(instance: &Instance, args: &CaptureArgs) -> Result<Wanted> {
    let network = match &args.network {
        None => None,
        Some(name) => {
            let networks: Vec<NetworkInfo> =
                call(instance, Method::GET, "/v1/networks", None::<&()>).await?;
            let found = networks.into_iter().find(|network| network.name == *name);
            let found =
                found.ok_or_else(|| anyhow!("no network '{name}': see 'overlay-dp network ls'"));
            Some(found?.vni)
        }
    };
    let container = match &args.container {
        None => None,
        Some(name) => {
            let mut found = containers(instance).await?;
            found.retain(|c| c.name == *name && network.is_none_or(|vni| vni == c.vni));
            match found.as_slice() {
                [one] => {
                    let local = one.local.as_ref();
                    local.map(|local| (local.port_ifindex, one.mac))
                }
                [] => bail!(
                    "no container '{name}' on this host: see 'overlay-dp container ls --local', and capture where it is"
                ),
                _ => bail!("'{name}' is on several networks: say which with --network"),
            }
        }
    };
    Ok(Wanted {
        inner: args.inner || !args.outer,
        outer: args.outer,
        network,
        container,
        filter: Filter::parse(&args.filter.join(" "))?,
        snap: args.snap,
        count: args.count,
        duration: args.duration.map(Duration::from_secs),
    })
}

async fn status(instance: &Instance) -> Result<Status> {
    call(instance, Method::GET, "/v1/status", None::<&()>).await
}

/// Those of this host.
async fn containers(instance: &Instance) -> Result<Vec<ContainerInfo>> {
    let mut all: Vec<ContainerInfo> =
        call(instance, Method::GET, "/v1/containers", None::<&()>).await?;
    all.retain(|container| container.local.is_some());
    Ok(all)
}

/// Ports and uplink by their ifindex, as far as the agent tells: without it they have no names.
async fn interfaces(instance: &Instance) -> HashMap<u32, Interface> {
    let mut known = HashMap::new();
    for container in containers(instance).await.unwrap_or_default() {
        let Some(local) = container.local else {
            continue;
        };
        let ips: Vec<String> = container.ips.iter().map(ToString::to_string).collect();
        let interface = Interface {
            description: format!(
                "{} on {}, {}, port {}",
                container.name,
                container.network,
                ips.join(" "),
                local.port
            ),
            name: container.name,
            network: Some(container.vni),
        };
        known.insert(local.port_ifindex, interface);
    }
    let hooks = status(instance).await.map(|status| status.hooks);
    for hook in hooks.unwrap_or_default() {
        if hook.site == "uplink" {
            let description = format!("uplink, {}", hook.attached);
            let interface = Interface {
                name: hook.interface,
                description,
                network: None,
            };
            known.insert(hook.ifindex, interface);
        }
    }
    known
}

fn stop_on_signals(stop: &Arc<AtomicBool>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}
