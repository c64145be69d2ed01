//! The two that are compared, and the wires into and out of them.
//!
//! ```text
//!   c1 ─ host1: overlay-dp   eth0 ─┐ to-host1        here frames are made, and seen
//!                                  router ── (a VTEP that is not there: 192.0.2.7)
//!   c2 ┄ host2: kernel vxlan eth0 ─┘ to-host2        and here
//! ```
//!
//! c2's eth0 is the vxlan device of host2: one that is moved keeps its socket where it was made.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{AgentProc, Container, Host, Lab, Ns, PacketSocket, wait_until};
use serde_json::Value;

use super::frames::{Ends, Ip, Mac, Outer, Sum};
use super::table::Family;

pub const PEER_MAC: &str = "02:42:0a:00:00:c8";
pub const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
pub const KERNEL_MAC: &str = "02:42:0a:00:00:c9";
pub const KERNEL_IP: &str = "10.0.0.201";
/// Where the kernel's device has its port.
pub const VXLAN_PORT: u16 = 4789;

/// The agent on host1, its network and container, and what the cluster is told of the peer.
pub struct Bed {
    pub agent: AgentProc,
    pub container: Container,
    pub vni: u32,
    pub family: Family,
    /// The kernel's container.
    pub kernel: Ns,
}

impl Bed {
    pub fn build(lab: &Lab, datapath: &str, family: Family) -> Result<Bed> {
        let (hosts, router) = (lab.hosts(), lab.router());
        let mut args = format!("--datapath {datapath}");
        if family == Family::V6 {
            router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
            for (number, host) in (1..).zip(hosts) {
                let port = format!("to-{}", host.ns.label());
                let net = format!("2001:db8:{number}:");
                router.run(&format!("ip addr add {net}:1/64 dev {port} nodad"))?;
                let ns = &host.ns;
                ns.run(&format!("ip addr add {net}:5/64 dev eth0 nodad"))?;
                ns.run(&format!("ip -6 route add default via {net}:1"))?;
            }
            args += " --advertise-addr 2001:db8:1::5";
        }
        let peer = peer(family);
        router.run(&format!("ip route add blackhole {peer}"))?;
        let agent = lab.start_agent(1, &args)?;
        let host = lab.host(1);
        let network = host.overlay_json("network create uber-net")?;
        let vni = network["vni"].as_u64().context("no vni")?;
        let container = Container::add(lab, 1, lab.c(1), "test.1")?;
        host.overlay(&format!(
            "fdb add {PEER_MAC} --network uber-net --vtep {peer} --ip {PEER_IP}"
        ))?;
        let vni = u32::try_from(vni)?;
        let kernel = kernel_vtep(lab, family, vni, lab.host(2))?;
        Ok(Bed {
            agent,
            container,
            vni,
            family,
            kernel,
        })
    }

    /// overlay-dp.
    pub fn ours<'a>(&self, lab: &'a Lab) -> Result<Place<'a>> {
        let place = Place::new(self, lab, 1, &self.container.ns, Some(lab.host(1)))?;
        let ready = Duration::from_secs(10);
        // Its neighbours are known, and nothing of its beginnings is on the way any more.
        wait_until("a frame to the peer leaves", ready, || {
            let frame = place.out(Ipv4Addr::LOCALHOST.into());
            let frame = frame.udp(Ip::default(), (1, 2), b"are you ready", 20);
            let wanted = |frame: &[u8]| contains(frame, b"are you ready");
            place.inside.send(&frame).is_ok()
                && place
                    .wire
                    .collect(1, Duration::from_millis(200), wanted)
                    .is_ok_and(|frames| !frames.is_empty())
        })?;
        Ok(place)
    }

    /// The kernel.
    pub fn kernel<'a>(&self, lab: &'a Lab) -> Result<Place<'a>> {
        Place::new(self, lab, 2, &self.kernel, None)
    }
}

pub fn peer(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 7).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7).into(),
    }
}

fn vtep(family: Family, number: usize, host: &Host) -> IpAddr {
    match family {
        Family::V4 => host.ip.into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, number as u16, 0, 0, 0, 0, 5).into(),
    }
}

/// A vxlan device with its defaults, which knows the peer by a static entry.
fn kernel_vtep(lab: &Lab, family: Family, vni: u32, host: &Host) -> Result<Ns> {
    let inside = lab.add_container("kernel")?;
    let local = vtep(family, 2, host);
    // A real wire carries no unfinished checksums or oversize segments, and a NIC that has not
    // looked at a checksum does not say that it is right.
    host.ns
        .run("ethtool -K eth0 tx off rx off tso off gso off")?;
    host.ns.run(&format!(
        "ip link add vx mtu {} type vxlan id {vni} local {local} dstport {VXLAN_PORT}",
        match family {
            Family::V4 => 1450,
            Family::V6 => 1430,
        }
    ))?;
    host.ns
        .run(&format!("ip link set vx netns {} name eth0", inside.name()))?;
    inside.run(&format!("ip link set eth0 address {KERNEL_MAC} up"))?;
    inside.run(&format!("ip addr add {KERNEL_IP}/24 dev eth0"))?;
    let peer = peer(family);
    for mac in [PEER_MAC, "00:00:00:00:00:00"] {
        inside.run(&format!("bridge fdb append {mac} dev eth0 dst {peer}"))?;
    }
    Ok(inside)
}

/// A VTEP, with its container's interface and its wire.
pub struct Place<'a> {
    pub inside: PacketSocket,
    pub wire: PacketSocket,
    pub ns: Ns,
    pub family: Family,
    pub vni: u32,
    /// The MTU of the container's interface.
    pub mtu: usize,
    host: Option<&'a Host>,
    host_mac: Mac,
    router_mac: Mac,
    pub vtep: IpAddr,
    pub peer: IpAddr,
    pub peer_mac: Mac,
    pub mac: Mac,
    ip: Ipv4Addr,
}

impl<'a> Place<'a> {
    fn new(
        bed: &Bed,
        lab: &Lab,
        number: usize,
        ns: &Ns,
        host: Option<&'a Host>,
    ) -> Result<Place<'a>> {
        let of = lab.host(number);
        let port = format!("to-{}", of.ns.label());
        let ip = match bed.container.ip {
            IpAddr::V4(ip) if number == 1 => ip,
            _ => KERNEL_IP.parse()?,
        };
        Ok(Place {
            inside: PacketSocket::open(ns, "eth0")?,
            wire: PacketSocket::open(lab.router(), &port)?,
            ns: ns.clone(),
            family: bed.family,
            vni: bed.vni,
            mtu: usize::try_from(link(ns, "eth0")?["mtu"].as_u64().context("no MTU")?)?,
            host,
            host_mac: mac_of(&of.ns, "eth0")?,
            router_mac: mac_of(lab.router(), &port)?,
            vtep: vtep(bed.family, number, of),
            peer: peer(bed.family),
            peer_mac: mac(PEER_MAC)?,
            mac: mac_of(ns, "eth0")?,
            ip,
        })
    }

    pub fn is_kernel(&self) -> bool {
        self.host.is_none()
    }

    /// Good outer headers from the peer to here.
    pub fn outer(&self) -> Outer {
        let [_, a, b, c] = self.vni.to_be_bytes();
        Outer {
            dst_mac: self.host_mac,
            src_mac: self.router_mac,
            src: self.peer,
            dst: self.vtep,
            tos: 0,
            ttl: 64,
            df: true,
            options: false,
            sum: Sum::Valid,
            src_port: 50_000,
            dst_port: VXLAN_PORT,
            vxlan: [8, 0, 0, 0, a, b, c, 0],
        }
    }

    /// The peer's container to the one here, over both families inside.
    pub fn ins(&self) -> [Ends; 2] {
        self.both().map(|(peer, here)| Ends {
            src_mac: self.peer_mac,
            dst_mac: self.mac,
            src: peer,
            dst: here,
        })
    }

    /// The container here to the peer's.
    pub fn outs(&self) -> [Ends; 2] {
        self.both().map(|(peer, here)| Ends {
            src_mac: self.mac,
            dst_mac: self.peer_mac,
            src: here,
            dst: peer,
        })
    }

    /// That of [`Place::outs`] with addresses of this one's family.
    pub fn out(&self, like: IpAddr) -> Ends {
        let [v4, v6] = self.outs();
        if like.is_ipv4() { v4 } else { v6 }
    }

    fn both(&self) -> [(IpAddr, IpAddr); 2] {
        let local = |mac| IpAddr::V6(link_local(mac));
        [
            (PEER_IP.into(), self.ip.into()),
            (local(self.peer_mac), local(self.mac)),
        ]
    }

    /// The drop counters; nothing of the kernel's.
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let Some(host) = self.host else {
            return Ok(BTreeMap::new());
        };
        let drops = host.overlay_json("status")?["drops"].take();
        let drops = drops.as_object().context("no drops")?.iter();
        Ok(drops
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)))
            .collect())
    }

    /// `dropped`, with the reasons that were counted `times` times at least since then. Where one is
    /// `due` it may take a second: so long the agent keeps what news could explain.
    pub fn dropped(&self, before: &BTreeMap<String, u64>, times: u64, due: bool) -> Result<String> {
        let mut reasons = Vec::new();
        let mut look = || -> Result<bool> {
            let after = self.drops()?.into_iter();
            let risen = after
                .filter(|(name, count)| count - before.get(name).copied().unwrap_or(0) >= times);
            reasons = risen.map(|(name, _)| name).collect();
            Ok(!reasons.is_empty() || !due)
        };
        // When none is counted, the caller says so.
        let _ = wait_until("a drop is counted", Duration::from_secs(5), || {
            look().unwrap_or(true)
        });
        Ok(match &reasons[..] {
            [] => "dropped".to_owned(),
            _ => format!("dropped ({})", reasons.join(", ")),
        })
    }
}

pub fn contains(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|bytes| bytes == mark)
}

fn link(ns: &Ns, name: &str) -> Result<Value> {
    let text = ns.run(&format!("ip -j link show dev {name}"))?;
    let mut links: Value = serde_json::from_str(&text)?;
    Ok(links[0].take())
}

fn mac_of(ns: &Ns, name: &str) -> Result<Mac> {
    let link = link(ns, name)?;
    mac(link["address"].as_str().context("no address")?)
}

fn mac(text: &str) -> Result<Mac> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    ensure!(bytes.len() == 6, "not a MAC address: {text}");
    Ok(std::array::from_fn(|index| bytes[index]))
}

/// The address that Linux gives itself by the MAC (RFC 4291 appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let bytes = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    bytes.into()
}
