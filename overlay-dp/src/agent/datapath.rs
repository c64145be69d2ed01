//! Making the data path: programs, punt link and crypt link, socket, hooks.

use std::sync::Arc;

use anyhow::Result;
use overlay_common::layout::Config;
use overlay_common::punt;
use overlay_core::tables::{Local, Tables};
use overlay_host::offload::{self, Offload};
use overlay_host::{Host, PuntPair, Uplink};
use overlay_xsk::{Xsk, XskConfig};
use parking_lot::RwLock;

use super::desk::Desk;
use super::slow::SlowThread;
use super::{Datapath, Options};
use crate::bpf::{Bpf, Hook, HookKind, Site};

/// The punt link's ends. The agent's socket is on the far one.
pub const PUNT_NEAR: &str = "ovl-punt";
/// See [`PUNT_NEAR`].
pub const PUNT_FAR: &str = "ovl-agent";
/// The crypt link's ends. The workers' sockets are on the far one.
pub const CRYPT_NEAR: &str = "ovl-crypt";
/// See [`CRYPT_NEAR`].
pub const CRYPT_FAR: &str = "ovl-crypters";
/// How ports begin.
pub const PORT_PREFIX: &str = "ovp-";

/// Which hooks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// On the uplink.
    pub uplink: HookKind,
    /// Why there.
    pub uplink_why: String,
    /// On ports.
    pub port: HookKind,
    /// Why there.
    pub port_why: &'static str,
    /// `auto` may take tcx on the uplink when XDP is refused.
    fallback: bool,
}

impl Plan {
    fn new(datapath: Datapath, driver: &str) -> Plan {
        let plan = |uplink, uplink_why: &str, port, port_why, fallback| Plan {
            uplink,
            uplink_why: uplink_why.to_owned(),
            port,
            port_why,
            fallback,
        };
        match datapath {
            Datapath::Xdp => plan(
                HookKind::Xdp,
                "--datapath xdp",
                HookKind::Xdp,
                "--datapath xdp",
                false,
            ),
            Datapath::Tcx => plan(
                HookKind::Tcx,
                "--datapath tcx",
                HookKind::Tcx,
                "--datapath tcx",
                false,
            ),
            Datapath::Auto if driver == "veth" => plan(
                HookKind::Tcx,
                "auto: a veth hands over packets that XDP would have to copy",
                HookKind::Tcx,
                "auto: keeps the container's segmentation offload",
                false,
            ),
            Datapath::Auto => plan(
                HookKind::Xdp,
                "auto: the driver runs XDP on frames before they become packets",
                HookKind::Tcx,
                "auto: keeps the container's segmentation offload",
                true,
            ),
        }
    }
}

/// A data path that is ready to run: nothing is attached, and what an earlier agent left is as it
/// was, so that a start which fails from here on changes nothing for its traffic.
pub struct Prepared {
    /// The programs and maps.
    pub bpf: Bpf,
    /// The forwarding tables.
    pub tables: Arc<RwLock<Tables>>,
    /// The slow path, which runs.
    pub slow: SlowThread,
    /// Where the slow path leaves what containers ask.
    pub desk: Arc<Desk>,
    /// The punt link.
    pub punt: PuntPair,
    /// The crypt link.
    pub crypt: PuntPair,
    /// What is true for the whole host.
    pub config: Config,
    plan: Plan,
}

/// Loads the programs and makes the punt link with the agent's socket.
pub async fn prepare(
    options: &Options,
    host: &Host,
    uplink: &Uplink,
    inner_mtu: u32,
) -> Result<Prepared> {
    let plan = Plan::new(options.datapath, &uplink.driver);
    let mut bpf = Bpf::load(&options.instance.pin_dir(), options.bpf_log)?;
    if options.bpf_log {
        forward_logs(&mut bpf)?;
    }
    for (site, kind) in [
        (Site::Port, plan.port),
        (Site::Uplink, plan.uplink),
        (Site::PuntNear, HookKind::Tcx),
        (Site::PuntFar, HookKind::Xdp),
    ] {
        bpf.prepare(site, kind)?;
    }
    let owner = options.instance.owner();
    let punt = host
        .create_punt_pair(PUNT_NEAR, PUNT_FAR, punt::MTU, 1, &owner)
        .await?;
    let crypt = host
        .create_punt_pair(CRYPT_NEAR, CRYPT_FAR, punt::MTU, crypt_queues(), &owner)
        .await?;
    // What is punted has its checksums finished on the way: the socket sees only bytes. And what a
    // container sends as a super-packet is segmented there, as XDP on a veth has its peer do.
    for near in [PUNT_NEAR, CRYPT_NEAR] {
        offload::set(near, Offload::TxChecksum, false)?;
    }
    let xsk = Xsk::bind(&XskConfig::new(punt.far_ifindex, 0))?;
    bpf.set_socket(&xsk)?;
    let local = Local {
        vtep: uplink.addr,
        data_port: options.data_port,
        esp_port: options.esp_port,
        mtu: inner_mtu,
    };
    let tables = Arc::new(RwLock::new(Tables::new(local)?));
    let desk = Arc::new(Desk::new()?);
    let slow = SlowThread::start(xsk, Arc::clone(&tables), Arc::clone(&desk), options.flood)?;
    let config = Config {
        punt_ifindex: punt.near_ifindex,
        crypt_ifindex: crypt.near_ifindex,
        ..*tables.read().config()
    };
    Ok(Prepared {
        bpf,
        tables,
        slow,
        desk,
        punt,
        crypt,
        config,
        plan,
    })
}

/// A queue, and a worker, for each CPU.
fn crypt_queues() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    u32::try_from(cpus).map_or(punt::CRYPT_QUEUES, |cpus| cpus.min(punt::CRYPT_QUEUES))
}

/// Attaches to the punt link and the uplink; programs of an earlier agent are replaced without a
/// gap. Returns which hooks, and the plan, in which `auto` may have fallen back.
pub fn engage(prepared: &mut Prepared, uplink: &Uplink) -> Result<(Vec<Hook>, Plan)> {
    let Prepared {
        bpf,
        punt,
        crypt,
        plan,
        config,
        ..
    } = prepared;
    bpf.set_config(*config)?;
    let (far, near) = (punt.far_ifindex, punt.near_ifindex);
    let mut hooks = vec![
        bpf.attach(
            Site::PuntFar,
            HookKind::Xdp,
            PUNT_FAR,
            far,
            "frames for the agent",
        )?,
        bpf.attach(
            Site::PuntNear,
            HookKind::Tcx,
            PUNT_NEAR,
            near,
            "frames from the agent",
        )?,
        bpf.attach(
            Site::CryptFar,
            HookKind::Xdp,
            CRYPT_FAR,
            crypt.far_ifindex,
            "frames to be sealed or opened",
        )?,
        bpf.attach(
            Site::CryptNear,
            HookKind::Tcx,
            CRYPT_NEAR,
            crypt.near_ifindex,
            "frames that were sealed or opened",
        )?,
    ];
    let mut plan = plan.clone();
    hooks.push(hook_uplink(bpf, &mut plan, uplink)?);
    Ok((hooks, plan))
}

/// Attaches to the uplink, and to no other one any more; `auto` may fall back.
pub fn hook_uplink(bpf: &mut Bpf, plan: &mut Plan, uplink: &Uplink) -> Result<Hook> {
    let mut on_uplink = |plan: &Plan| {
        let Uplink { name, ifindex, .. } = uplink;
        bpf.attach(Site::Uplink, plan.uplink, name, *ifindex, &plan.uplink_why)
    };
    let hook = match on_uplink(plan) {
        Err(error) if plan.fallback => {
            tracing::warn!("{error:#}");
            plan.uplink = HookKind::Tcx;
            plan.uplink_why = format!("auto: driver {} refused native XDP", uplink.driver);
            on_uplink(plan)?
        }
        other => other?,
    };
    bpf.detach_other_uplinks(uplink.ifindex)?;
    Ok(hook)
}

/// Settings of a port's host end: what programs redirect there is to be joined inside, and a veth
/// does so only when it does not pass super-packets on itself.
pub fn set_port_offloads(port: &str) -> overlay_host::Result<()> {
    offload::set(port, Offload::TcpSegmentation, false)
}

/// Settings inside a container that keep checksums and lengths right for the hooks in use.
/// `tx_checksum`: checksums may be left to be computed on the way. Runs in the container's namespace.
pub fn set_offloads(ifname: &str, tx_checksum: bool) -> overlay_host::Result<()> {
    // A tag must be in the frame, where the programs see it.
    offload::set(ifname, Offload::TxVlan, false)?;
    offload::set(ifname, Offload::TxChecksum, tx_checksum)?;
    // What comes the long way is joined; and a veth takes frames from XDP only while it polls, which
    // GRO makes it do.
    offload::set(ifname, Offload::Gro, true)
}

/// Whether a container's interface leaves checksums to be computed. Runs in its namespace.
pub fn leaves_checksums(ifname: &str) -> overlay_host::Result<bool> {
    offload::get(ifname, Offload::TxChecksum)
}

/// Passes the programs' log lines on, ten times a second.
fn forward_logs(bpf: &mut Bpf) -> Result<()> {
    let mut logger = aya_log::EbpfLogger::init(bpf.ebpf_mut())?;
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    tokio::spawn(async move {
        loop {
            tick.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
