//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnetwork::IpNetwork;
use overlay_core::model::{MacAddr, Multicast, Vni};
use overlay_core::slowpath::FloodLimit;

use super::docker::DockerArgs;
use super::key::KeyCommand;
use super::limit::LimitArgs;
use super::mdb::MdbCommand;
use super::service::ServiceCommand;
use crate::agent::{Datapath, OnExit};
use crate::api::Publish;

/// VXLAN overlay networks for containers: an eBPF data plane, and no orchestrator.
#[derive(Debug, Parser)]
#[command(
    name = "overlay-dp",
    version,
    after_help = "Examples:
  host1# overlay-dp attach --iface eth0
  host2# overlay-dp attach --iface eth0 --join 172.31.1.5 --token OVTKN-1-…
  host1# overlay-dp network create uber-net
  host1# overlay-dp container add test.1 --network uber-net --netns c1
  host2# overlay-dp container add test.2 --network uber-net --netns c2"
)]
pub struct Cli {
    /// Which agent on this machine, when it plays several hosts (each in a network namespace)
    #[arg(
        long,
        global = true,
        env = "OVERLAY_DP_INSTANCE",
        default_value = "default",
        value_name = "NAME"
    )]
    pub instance: String,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent on this host: make a cluster, join one, or go on with the last one
    Attach(Box<AttachArgs>),
    /// Leave the cluster and remove everything of ours from this host
    Detach(DetachArgs),
    /// Networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Containers on networks
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Run a command in a network namespace of its own, attached to a network while it runs
    Run(Box<super::run::RunArgs>),
    /// Docker's networks
    #[command(subcommand)]
    Docker(super::docker::DockerCommand),
    /// Services, and ports that every host publishes
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Who may reach which containers
    #[command(subcommand)]
    Policy(super::policy::PolicyCommand),
    /// The forwarding table: which MAC is behind which VTEP or port
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// Multicast groups: which of them have members, and where
    #[command(subcommand)]
    Mdb(MdbCommand),
    /// The ways to the other hosts
    #[command(subcommand)]
    Vtep(VtepCommand),
    /// The hosts of the cluster
    #[command(subcommand)]
    Host(HostCommand),
    /// The keys of encrypted networks
    #[command(subcommand)]
    Key(KeyCommand),
    /// The join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// The managers' agreement, its backup and its restoration
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Compare what was agreed, what hosts told, the BPF maps and the kernel: prints each difference
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// Put right what can be put right from here
        #[arg(long)]
        repair: bool,
    },
    /// Write packets to a pcapng file: what containers send and get, or the tunnels' packets
    Capture(Box<super::capture::CaptureArgs>),
    /// Follow what goes on: networks, endpoints, rates, drops, latency
    Top(super::top::TopArgs),
    /// Why a packet would be dropped, or where it would go, step by step on both hosts
    Trace(super::trace::TraceArgs),
    /// Hooks and why they are used, VTEPs, counters, drops
    #[command(after_help = "Examples:
  overlay-dp status
  overlay-dp status --json | jq .drops")]
    Status,
    /// Print a shell's completion script
    Completion(super::docs::CompletionArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(super::docs::ManArgs),
}

/// `attach`
#[derive(Debug, Args)]
#[command(
    after_help = "The agent stays in the foreground and logs to standard error; RUST_LOG sets how much. \
    Stopped with Ctrl-C or SIGTERM it detaches its containers and removes everything from the host, but stays a \
    member: the next 'attach' goes on. After a crash the data path runs on, and the next 'attach' takes it over.

Examples:
  overlay-dp attach --iface eth0                                    # the first host makes the cluster
  overlay-dp attach --iface eth0 --join 172.31.1.5 --token OVTKN-1-…
  overlay-dp attach --iface eth0                                    # again: go on as the member that it is
  overlay-dp attach --iface eth0 --on-exit keep                     # under systemd: restarts don't stop traffic"
)]
pub struct AttachArgs {
    /// The uplink: the interface that reaches the other hosts
    #[arg(long, value_name = "NAME")]
    pub iface: String,
    /// A manager of the cluster to join: address, or address:port
    #[arg(long, value_name = "ADDRESS", requires = "token")]
    pub join: Option<String>,
    /// The token that 'overlay-dp token show' prints there
    #[arg(
        long,
        env = "OVERLAY_DP_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// Which hooks carry the data path
    #[arg(long, value_enum, default_value_t)]
    pub datapath: Datapath,
    /// MTU of containers, when it is to be less than the uplink's minus 50 (70 over IPv6)
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// The VTEP address, IPv4 or IPv6, when the uplink has several
    #[arg(long, value_name = "IP")]
    pub advertise_addr: Option<IpAddr>,
    /// UDP port of VXLAN; the same on all hosts
    #[arg(long, default_value_t = 4789, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub data_port: u16,
    /// UDP port of ESP, for encrypted networks; the same on all hosts
    #[arg(long, default_value_t = 4500, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub esp_port: u16,
    /// After so long other keys are agreed on for encrypted networks
    #[arg(long, default_value = "12h", value_name = "TIME", value_parser = parse_lifetime)]
    pub key_lifetime: Duration,
    /// Broadcast and multicast frames that each container may send in a second; 0 for no limit
    #[arg(long, default_value_t = FloodLimit::default().frames, value_name = "FRAMES")]
    pub flood_limit: u32,
    /// The same in bytes
    #[arg(long, default_value_t = FloodLimit::default().bytes, value_name = "BYTES")]
    pub flood_limit_bytes: u64,
    /// UDP port for joining and agreed facts
    #[arg(long, default_value_t = 2377, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub control_port: u16,
    /// UDP port for gossip
    #[arg(long, default_value_t = 7946, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub gossip_port: u16,
    /// This host's name in the cluster [default: its hostname]
    #[arg(long, value_name = "NAME")]
    pub host_name: Option<String>,
    /// What becomes of containers and data path when the agent is told to stop
    #[arg(long, value_enum, default_value_t)]
    pub on_exit: OnExit,
    /// Members of this group may use the other commands; that makes them as mighty as root is
    /// [default: overlay-dp, if there is such a group]
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// The file that names the host's resolvers: what containers ask that is none of our names, is
    /// asked there
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,
    /// Serve the status page and Prometheus metrics here, without a password: whoever reaches the address sees both
    /// [default when no address is given: 127.0.0.1:9478]
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9478")]
    pub metrics: Option<SocketAddr>,
    /// Have the eBPF programs log what they punt and drop (slow)
    #[arg(long)]
    pub bpf_log: bool,
    /// Docker's plugin
    #[command(flatten)]
    pub docker: DockerArgs,
}

/// `detach`
#[derive(Debug, Args)]
#[command(
    after_help = "Works without a running agent, too: what a dead one left is removed. The other hosts then \
    learn by its silence that this host is gone.

Examples:
  overlay-dp detach
  overlay-dp detach --force      # the cluster's only manager: no networks can be made without it"
)]
pub struct DetachArgs {
    /// Also when this host is the only manager of a cluster with other hosts
    #[arg(long)]
    pub force: bool,
}

/// `network`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network, known to all hosts at once
    #[command(after_help = "Examples:
  overlay-dp network create uber-net
  overlay-dp network create blue --subnet 10.20.0.0/16 --gateway 10.20.0.254 --vni 5000
  overlay-dp network create green --subnet 10.30.0.0/16 --ip-range 10.30.128.0/17
  overlay-dp network create dual --ipv6
  overlay-dp network create backend --internal
  overlay-dp network create secret --encrypted
  overlay-dp network create big --subnet 10.40.0.0/16 --multicast snoop
  overlay-dp network create six --subnet 2001:db8:1::/64")]
    Create {
        /// Its name
        name: String,
        /// Its addresses, for IPv4, IPv6 or (twice) both [default: the next free /24 of 10.0.0.0/8]
        #[arg(long = "subnet", value_name = "CIDR")]
        subnets: Vec<IpNetwork>,
        /// Its gateway, for each subnet [default: the subnet's first address]
        #[arg(long = "gateway", value_name = "IP")]
        gateways: Vec<IpAddr>,
        /// Addresses that are chosen for containers come from this part of the subnet
        #[arg(long, value_name = "CIDR")]
        ip_range: Option<IpNetwork>,
        /// IPv6 besides IPv4 [default subnet: a /64 of the cluster's own unique local prefix]
        #[arg(long)]
        ipv6: bool,
        /// Its VNI, 1 to 16777215 [default: the next free one from 4096 up]
        #[arg(long, value_parser = parse_vni)]
        vni: Option<Vni>,
        /// No way out of it, and none into it
        #[arg(long)]
        internal: bool,
        /// Encrypt what its containers on different hosts send each other (ESP, AES-256-GCM)
        #[arg(long)]
        encrypted: bool,
        /// What becomes of broadcast and multicast: 'snoop' gives multicast to the members of its
        /// group, 'flood' gives all of it to all, 'off' drops it; ARP and neighbour discovery always work
        /// [default: snoop, or off when its subnet has room for more than 4096]
        #[arg(long, value_name = "snoop|flood|off", value_parser = parse_multicast)]
        multicast: Option<Multicast>,
    },
    /// List networks
    #[command(after_help = "Examples:
  overlay-dp network ls
  overlay-dp network ls --json | jq -r .[].name")]
    Ls,
    /// Show networks with their containers
    #[command(after_help = "Examples:
  overlay-dp network inspect uber-net
  overlay-dp network inspect blue green --json")]
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove networks that no container uses
    #[command(after_help = "Examples:
  overlay-dp network rm uber-net
  overlay-dp network rm blue green")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// `container`
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Attach a network namespace to a network
    #[command(after_help = "Examples:
  overlay-dp container add test.1 --network uber-net --netns c1
  overlay-dp container add web --network uber-net --pid 4711 --ip 10.0.0.80
  overlay-dp container add --service web --network uber-net --netns c3 --resolv-conf
  overlay-dp container add www --network uber-net --netns c4 --publish 8080:80
  overlay-dp container add bulk --network uber-net --netns c5 --rate 100mbit
  overlay-dp container add db --network uber-net --netns /run/docker/netns/1a2b3c --ifname net1")]
    Add {
        /// Its name, unique on the network [default: SERVICE.SLOT.RANDOM]
        #[arg(required_unless_present = "service")]
        name: Option<String>,
        /// The network
        #[arg(long)]
        network: String,
        /// Its network namespace: a name as in 'ip netns', or a path
        #[arg(
            long,
            value_name = "NAME|PATH",
            required_unless_present = "pid",
            conflicts_with = "pid"
        )]
        netns: Option<String>,
        /// A process in its network namespace
        #[arg(long)]
        pid: Option<u32>,
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
        /// Write /etc/netns/NAME/resolv.conf, so that what 'ip netns exec NAME' runs knows the names
        #[arg(long, conflicts_with = "pid")]
        resolv_conf: bool,
        /// Publish a port of it on this host (repeatable)
        #[arg(long, value_name = "[HOSTIP:]HOSTPORT:PORT[/udp]")]
        publish: Vec<Publish>,
        /// How much it may send
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Detach containers of this host
    #[command(after_help = "Examples:
  overlay-dp container rm test.1
  overlay-dp container rm web db --network uber-net")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// From this network only [default: from all]
        #[arg(long)]
        network: Option<String>,
    },
    /// List containers
    #[command(after_help = "Examples:
  overlay-dp container ls
  overlay-dp container ls --network uber-net --local")]
    Ls {
        /// Those of this network only
        #[arg(long)]
        network: Option<String>,
        /// Those of this host only
        #[arg(long)]
        local: bool,
    },
}

/// `fdb`
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// Show the table
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  overlay-dp fdb show
  overlay-dp fdb show --network uber-net"
    )]
    Show {
        /// Entries of this network only
        #[arg(long)]
        network: Option<String>,
    },
    /// Add a MAC behind a VTEP that is no host of the cluster, such as a Linux vxlan device
    #[command(
        after_help = "The entry is this host's own: add it on each host that is to reach the VTEP. Frames \
    from the VTEP are accepted, and broadcasts are sent to it.

Example:
  overlay-dp fdb add 02:42:0a:00:00:09 --network uber-net --vtep 172.31.2.5 --ip 10.0.0.9"
    )]
    Add {
        /// The Ethernet address
        mac: MacAddr,
        /// The network
        #[arg(long)]
        network: String,
        /// The VTEP's address
        #[arg(long)]
        vtep: IpAddr,
        /// An address it answers for (repeatable): ARP for it is answered at once
        #[arg(long = "ip", value_name = "IP")]
        ips: Vec<IpAddr>,
    },
    /// Remove such a MAC
    #[command(after_help = "Example:
  overlay-dp fdb del 02:42:0a:00:00:09 --network uber-net")]
    Del {
        /// The Ethernet address
        mac: MacAddr,
        /// The network
        #[arg(long)]
        network: String,
    },
}

/// Says what the exit status means.
const VERIFY_HELP: &str =
    "The exit status is 0 when nothing differs, or everything was repaired, and 1 otherwise.

Examples:
  overlay-dp verify
  overlay-dp verify --repair";

/// `host`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List hosts
    #[command(after_help = "Examples:
  overlay-dp host ls
  overlay-dp host ls --json | jq -r '.[] | select(.manager) | .name'")]
    Ls,
    /// Show hosts with what they have
    #[command(after_help = "Examples:
  overlay-dp host inspect host2
  overlay-dp host inspect host2 host3 --json")]
    Inspect {
        /// Their names or ids
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
    /// Remove hosts: they are cut off from the cluster and from the other hosts' containers at once
    #[command(
        after_help = "A host that runs leaves by itself with 'overlay-dp detach' there. This is for one \
    that is lost, or is no longer trusted: its certificate is worth nothing from now on, its addresses are free, and \
    its agent, if it still runs, detaches its containers and ends. Run it on a manager.

Examples:
  overlay-dp host rm host3
  overlay-dp host rm --force host3      # although it is up"
    )]
    Rm {
        /// Their names or ids
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// Also hosts that are up
        #[arg(long)]
        force: bool,
    },
    /// Make hosts managers: with three or five of them the cluster goes on without one or two
    #[command(
        after_help = "Run it on a manager; it returns when the host really is one.

Example:
  overlay-dp host promote host2 host3"
    )]
    Promote {
        /// Their names or ids
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
    /// Make managers workers
    #[command(
        after_help = "Run it on a manager. The last one stays: promote another first.

Example:
  overlay-dp host demote host3"
    )]
    Demote {
        /// Their names or ids
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
}

/// `vtep`
#[derive(Debug, Subcommand)]
pub enum VtepCommand {
    /// List the other hosts' tunnel addresses, and what is measured on the way there
    #[command(
        after_help = "STATE is what the cluster says of the host's agent, DATA PATH whether its data path answers \
    probes by itself: 'answers', 'silent', or 'unknown' for one that never did, such as a Linux vxlan device. \
    LATENCY is the average round trip, with the fastest and the 99th percentile of the last 100 probes. PATH MTU \
    is the largest IP packet that arrives there and back.

Examples:
  overlay-dp vtep ls
  overlay-dp vtep ls --json | jq '.[] | {address, path_mtu}'"
    )]
    Ls,
}

/// `token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print the token and the command that joins a host
    #[command(after_help = "Examples:
  overlay-dp token show
  overlay-dp token show --manager
  overlay-dp token show --json | jq -r .token")]
    Show {
        /// The token that makes managers of those who join with it
        #[arg(long)]
        manager: bool,
    },
    /// Replace the token: the old one is worth nothing from now on; hosts that have joined stay
    #[command(after_help = "Examples:
  overlay-dp token rotate
  overlay-dp token rotate --manager")]
    Rotate {
        /// The token that makes managers of those who join with it
        #[arg(long)]
        manager: bool,
    },
}

/// `cluster`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the managers, who leads them, and whether they are enough to agree
    #[command(after_help = "Examples:
  overlay-dp cluster status
  overlay-dp cluster status --json | jq .quorum")]
    Status,
    /// Write what the managers have agreed on to a file: networks, hosts, addresses, tokens, the CA with its key
    #[command(
        after_help = "Whoever has the file can be a manager: keep it as a private key is kept.

Example:
  overlay-dp cluster backup /root/overlay-dp.backup"
    )]
    Backup {
        /// The file, which must not be there yet
        file: PathBuf,
    },
    /// Have the next 'attach' of this host make the cluster anew from a backup, as its only manager
    #[command(
        after_help = "For a cluster whose managers are lost, or too few of them are left. Not on a host whose agent runs. \
    The other hosts find this one by themselves, and are its workers then; those that joined after the backup was \
    made join again. Promote other managers afterwards.

Example:
  overlay-dp detach --force && overlay-dp cluster restore /root/overlay-dp.backup && overlay-dp attach --iface eth0"
    )]
    Restore {
        /// The file
        file: PathBuf,
    },
}

/// The namespace that `--netns` names: what has a slash is a path, made absolute here, because
/// the agent runs elsewhere.
pub fn parse_netns(text: &str) -> anyhow::Result<crate::api::Netns> {
    if text.contains('/') {
        Ok(crate::api::Netns::Path(std::path::absolute(
            PathBuf::from(text),
        )?))
    } else {
        Ok(crate::api::Netns::Name(text.to_owned()))
    }
}

/// `90s`, `30m`, `12h`.
fn parse_lifetime(text: &str) -> Result<Duration, String> {
    const UNITS: [(char, u64); 3] = [('s', 1), ('m', 60), ('h', 3600)];
    let unit = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit));
    let seconds = unit.and_then(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds)
    });
    match seconds {
        Some(seconds @ 10..=604_800) => Ok(Duration::from_secs(seconds)),
        _ => Err("say a number and s, m or h, from 10s to 168h".to_owned()),
    }
}

fn parse_multicast(text: &str) -> Result<Multicast, String> {
    let all = [Multicast::Snoop, Multicast::Flood, Multicast::Off];
    let found = all.into_iter().find(|mode| mode.name() == text);
    found.ok_or_else(|| "say snoop, flood or off".to_owned())
}

fn parse_vni(text: &str) -> Result<Vni, String> {
    let number: u32 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    Vni::try_from(number).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_that_does_something_has_examples() {
        let (mut commands, mut without) = (0, Vec::new());
        leaves(&mut Cli::command(), "", &mut |name, command| {
            commands += 1;
            let help = command.render_long_help().to_string();
            let examples = help.lines().skip_while(|line| !line.starts_with("Example"));
            let shown = format!("overlay-dp{name}");
            if !examples.skip(1).any(|line| line.contains(&shown)) {
                without.push(shown);
            }
        });
        assert!(commands > 30, "{commands}");
        assert!(without.is_empty(), "{without:#?}");
    }

    /// Those that have no commands of their own, with their names.
    fn leaves(
        command: &mut clap::Command,
        name: &str,
        see: &mut impl FnMut(&str, &mut clap::Command),
    ) {
        if !command.has_subcommands() {
            return see(name, command);
        }
        for sub in command.get_subcommands_mut() {
            let name = format!("{name} {}", sub.get_name());
            leaves(sub, &name, see);
        }
    }

    #[test]
    fn join_needs_a_token_and_a_container_needs_one_namespace() {
        for bad in [
            "overlay-dp attach --iface eth0 --join 10.0.0.1",
            "overlay-dp container add a --network n",
            "overlay-dp container add a --network n --netns c1 --pid 1",
            "overlay-dp container add --network n --netns c1",
            "overlay-dp container add a --network n --pid 1 --resolv-conf",
            "overlay-dp network create n --vni 0",
            "overlay-dp network create n --multicast some",
            "overlay-dp attach --iface eth0 --data-port 0",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
