//! Starting: checks first, then the data path, then the cluster, then what the last agent left.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use overlay_cluster::{Cluster, Start};
use overlay_esp::frame::Ports;
use overlay_host::{Host, Monitor, Uplink};
use tokio::sync::mpsc;

use super::addresses::Addresses;
use super::checks::Checks;
use super::checksums::Checksums;
use super::crypt::{self, CryptThreads};
use super::data_port::{DataPort, echo_socket};
use super::firewall::Firewall;
use super::keys::KeyBook;
use super::leave::Lock;
use super::names::NameService;
use super::next_hops::NextHops;
use super::probe::Prober;
use super::publish::Held;
use super::routers::Routers;
use super::state::State;
use super::steps::Steps;
use super::vips::Vips;
use super::{Agent, Inputs, Options, Request, datapath};
use crate::api::server::{self, Api, Ctx};
use crate::api::web::Web;
use crate::bpf::{self, HookKind, Site};
use crate::docker;
use crate::instance::Instance;

/// How long a host that has joined waits for its first connection with another one.
const CONTACT_WAIT: Duration = Duration::from_secs(2);

impl Agent {
    /// Starts everything. What fails is tried first: a data path that an earlier agent left runs
    /// on unchanged until nothing can go wrong any more. What is half made then is for
    /// [`super::leave::Before::restore`].
    pub(super) async fn start(
        options: Options,
        lock: Lock,
    ) -> Result<(Agent, Inputs, Api, mpsc::Receiver<Request>)> {
        let mut steps = Steps::begin();
        let host = Host::new()?;
        let uplink = Uplink::discover(&host, &options.iface, options.advertise).await?;
        check_family(&uplink, options.join.as_deref())?;
        let inner_mtu = inner_mtu(&uplink, options.mtu)?;
        let web = match options.metrics {
            Some(address) => Some(Web::bind(address).await?),
            None => None,
        };
        let data_port = DataPort::hold(&host, &options, uplink.addr).await?;
        let start = choose_start(&options)?;
        let (is_new, is_member) = (matches!(start, Start::New), matches!(start, Start::Resume));
        let state_dir = options.instance.state_dir();
        let mut state = State::open(&state_dir)?;
        overlay_host::bpffs::ensure_mounted(Instance::BPFFS.as_ref())?;
        steps.done("checks");
        let mut prepared = datapath::prepare(&options, &host, &uplink, inner_mtu).await?;
        steps.done("programs");
        let (monitor, host_events) = Monitor::new()?;
        tokio::spawn(monitor);
        let config = overlay_cluster::Config {
            data_port: options.data_port,
            esp_port: options.esp_port,
            control_port: options.control_port,
            gossip_port: options.gossip_port,
            ..overlay_cluster::Config::new(
                cluster_dir(&options.instance),
                &options.host_name,
                uplink.addr,
            )
        };
        let (cluster, cluster_events) = Cluster::start(config, start).await?;
        steps.done("cluster");
        let (sender, requests) = mpsc::channel(64);
        // The last steps, which change what an earlier agent left.
        let finish = async {
            if let Some(old) = state.set_uplink(&uplink.name)?
                && old != uplink.name
            {
                bpf::detach_filter_of(Site::Uplink, &old)?;
            }
            let is_restart = state.ports().len() > 0;
            let (hooks, plan) = datapath::engage(&mut prepared, &uplink)?;
            let checksums = Checksums::new(&plan);
            let sums = plan.port != HookKind::Xdp;
            let firewall = Firewall::start(&options.instance)?;
            let crypt = crypt::Shared::new(Ports {
                data: options.data_port,
                esp: options.esp_port,
            })?;
            let mut agent = Agent {
                plan,
                checksums,
                docker: None,
                hooks,
                bpf: prepared.bpf,
                inner_mtu,
                tables: prepared.tables,
                slow: prepared.slow,
                names: NameService::start(prepared.desk, options.resolv_conf.clone(), is_restart),
                links: [
                    prepared.punt.near_ifindex,
                    prepared.punt.far_ifindex,
                    prepared.crypt.near_ifindex,
                    prepared.crypt.far_ifindex,
                ],
                config: prepared.config,
                crypt_link: prepared.crypt,
                crypt: CryptThreads::none(Arc::clone(&crypt)),
                keys: KeyBook::new(Arc::clone(&crypt), options.key_lifetime),
                crypt_shared: crypt,
                crypt_problem: None,
                tables_seen: None,
                fatal: None,
                expelled: false,
                untold: Vec::new(),
                all_was_known: false,
                sweep_due: true,
                stale_kept: true,
                is_new,
                steps,
                next_hops: NextHops::default(),
                prober: Prober::start(echo_socket(uplink.addr)?, options.data_port, sums)?,
                data_port,
                uplink_problem: None,
                uplink_lost: false,
                address_gone: None,
                members: HashMap::new(),
                started: Instant::now(),
                settled: false,
                metrics: web.as_ref().map(Web::address),
                options,
                host,
                uplink,
                requests: sender.clone(),
                routers: Routers::new(),
                firewall,
                held: Held::default(),
                service_problems: Vec::new(),
                vips: Vips::default(),
                checks: Checks::default(),
                addresses: Addresses::load(cluster.clone(), &state_dir, is_member)?,
                cluster: cluster.clone(),
                state,
                _lock: lock,
            };
            agent.steps.done("hooks");
            agent.take_over().await?;
            agent.steps.done("ports");
            match std::fs::remove_file(restore_file(&agent.options.instance)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
            if !is_new && !is_member {
                first_contact(&cluster).await;
            }
            let addresses = Arc::clone(&agent.addresses);
            let book = docker::Store::open(&state_dir, is_member)?;
            book.keep(&addresses, |name| {
                cluster.facts(|facts| facts.network_named(name).cloned())
            });
            tokio::spawn(Arc::clone(&addresses).run());
            let options = &agent.options.docker;
            let ctx = Ctx {
                cluster: cluster.clone(),
                addresses,
                agent: sender,
                keys: Arc::clone(&agent.keys),
                docker: options.plugin.is_some().then(|| {
                    let resolv_conf = agent.options.resolv_conf.clone();
                    Arc::new(docker::Client::new(options.daemon.clone(), resolv_conf))
                }),
            };
            if let Some((socket, client)) = options.plugin.clone().zip(ctx.docker.clone()) {
                let docker = docker::start(&socket, client, ctx.clone(), book)?;
                agent.docker = Some(docker);
            }
            let api = server::start(&agent.options.instance, agent.options.group, ctx, web).await?;
            agent.steps.done("contact");
            anyhow::Ok((agent, api, requests))
        };
        match finish.await {
            Ok((agent, api, requests)) => {
                let inputs = Inputs {
                    cluster: cluster_events,
                    host: host_events,
                };
                Ok((agent, inputs, api, requests))
            }
            Err(error) => {
                // Who has just become a member must not stay one in the others' books.
                if is_member {
                    cluster.shutdown().await;
                } else if let Err(error) = cluster.leave().await {
                    tracing::warn!(%error, "leaving the cluster again");
                }
                Err(error)
            }
        }
    }

    /// Fills the tables with what is known at the start: networks, hosts, and the ports and
    /// static entries of the last agent.
    async fn take_over(&mut self) -> Result<()> {
        for network in self.cluster.networks() {
            self.names
                .change(|names| names.network_set(network.clone()));
            self.tables.write().network_add(network);
        }
        self.fit_vips();
        self.fit_policies();
        let mut vteps = Vec::new();
        for member in self.cluster.members().into_iter().filter(|m| !m.me) {
            if self.take_vtep(member.host.vtep) {
                vteps.push(member.host.vtep);
            }
            self.keys.set_peer(member.host.id, member.host.vtep);
            self.members.insert(member.host.id, member.host);
        }
        for entry in self.state.statics() {
            match self.tables.write().static_add(entry.clone()) {
                Ok(()) => vteps.push(entry.vtep),
                Err(error) => {
                    tracing::warn!(mac = %entry.mac, %error, "a static entry is not taken over");
                }
            }
        }
        vteps.sort_unstable();
        vteps.dedup();
        // Together: what many have in common, the kernel is asked once.
        self.resolve(vteps).await;
        self.take_over_ports().await?;
        self.flush();
        self.fit_crypt();
        Ok(())
    }
}

/// Waits until a host that has just joined talks with another one: what is attached from then on
/// is known there at once. When that takes long, the host is ready all the same.
async fn first_contact(cluster: &Cluster) {
    let talks = async {
        while !cluster.members().iter().any(|m| !m.me && m.rtt.is_some()) {
            tokio::time::sleep(CONTACT_WAIT / 200).await;
        }
    };
    if tokio::time::timeout(CONTACT_WAIT, talks).await.is_err() {
        tracing::warn!(
            "no other host can be reached for gossip yet: is its port open between the hosts?"
        );
    }
}

/// All VTEPs of a cluster are of one address family, and where it is joined is one of them. (A
/// name is looked up later, for an address of the right one.)
fn check_family(uplink: &Uplink, join: Option<&str>) -> Result<()> {
    let kind = |v4| if v4 { "IPv4" } else { "IPv6" };
    let own = uplink.addr.is_ipv4();
    match join.and_then(literal) {
        Some(ip) if ip.is_ipv4() != own => bail!(
            "the cluster at {ip} is reached over {}, and this host at {}, which is {}: choose an {0} address of {} with \
             --advertise-addr",
            kind(!own),
            uplink.addr,
            kind(own),
            uplink.name,
        ),
        _ => Ok(()),
    }
}

/// The address of `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; `None` when it is a name.
fn literal(join: &str) -> Option<IpAddr> {
    let with_port = || Some(join.parse::<SocketAddr>().ok()?.ip());
    let alone = join.trim_matches(['[', ']']).parse().ok();
    alone.or_else(with_port)
}

fn inner_mtu(uplink: &Uplink, wanted: Option<u32>) -> Result<u32> {
    let most = uplink.container_mtu();
    match wanted {
        None => Ok(most),
        Some(mtu) if mtu > most => bail!(
            "--mtu {mtu} does not fit: {} has an MTU of {}, which leaves {most} for containers",
            uplink.name,
            uplink.mtu
        ),
        Some(mtu) if mtu < overlay_host::uplink::MIN_CONTAINER_MTU => {
            bail!(
                "--mtu {mtu} is too small: use {} at least",
                overlay_host::uplink::MIN_CONTAINER_MTU
            )
        }
        Some(mtu) => Ok(mtu),
    }
}

fn cluster_dir(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir().join("cluster")
}

/// New, joining, or going on.
fn choose_start(options: &Options) -> Result<Start> {
    let dir = cluster_dir(&options.instance);
    let stored = overlay_cluster::stored(&dir)?;
    if let Some(backup) = read_if_there(&restore_file(&options.instance))? {
        if stored.is_some() || options.join.is_some() {
            bail!(
                "a backup waits to be restored here ({}): remove it to go on without, or leave the present cluster \
                 with 'overlay-dp detach' and don't use --join",
                restore_file(&options.instance).display()
            );
        }
        return Ok(Start::Restore(backup));
    }
    match (stored, &options.join, &options.token) {
        (None, None, _) => Ok(Start::New),
        (None, Some(addr), Some(token)) => Ok(Start::Join {
            addr: addr.clone(),
            token: token.clone(),
        }),
        (Some(_), None, _) => Ok(Start::Resume),
        (Some(stored), Some(_), Some(token)) if stored.is_of(token) => {
            tracing::info!("this host is a member of that cluster already: going on as such");
            Ok(Start::Resume)
        }
        (Some(_), Some(_), _) => bail!(
            "this host is a member of another cluster: leave it first with 'overlay-dp detach', or go on as its \
             member without --join"
        ),
        (None, Some(_), None) => bail!("--join needs --token"),
    }
}

fn restore_file(instance: &Instance) -> std::path::PathBuf {
    instance.state_dir().join("restore.backup")
}

fn read_if_there(path: &std::path::Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

/// Has the next start make the cluster anew from a backup. Returns what is in it.
///
/// # Errors
/// When the backup is damaged, or this host is a member of a cluster.
pub fn prepare_restore(instance: &Instance, backup: &[u8]) -> Result<String> {
    let what = overlay_cluster::describe_backup(backup)?;
    if overlay_cluster::stored(&cluster_dir(instance))?.is_some() {
        bail!(
            "this host is a member of a cluster: leave it first with 'overlay-dp detach --force'"
        );
    }
    let path = restore_file(instance);
    let dir = instance.state_dir();
    let write = || -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        file.write_all(backup)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    write().with_context(|| format!("can't write {}", path.display()))?;
    Ok(what)
}
