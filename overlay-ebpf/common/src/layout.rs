//! Keys and values of the BPF maps: no padding, so that every byte is defined. The agent is the
//! only writer; the programs only read (counters and entrances excepted).

use crate::esp;
use crate::wire::{Ip16, Mac, MacHalves, UNSPECIFIED, ip_eq};

/// Declares that a type is plain bytes the agent may put into a BPF map, and proves its size.
macro_rules! pod {
    ($type:ty, $size:literal) => {
        const _: () = assert!(size_of::<$type>() == $size);

        // SAFETY: `#[repr(C)]`, Copy, 'static, and made of integers and byte arrays only; the
        // assertion above counts the fields' bytes, so there is no padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use pod;

/// The names of maps and programs: what the agent asks the BPF object for. Maps that programs write
/// (`ENTRANCES`, `FLOWS`, `BEGUN`) are shared with programs of other layouts, by name: a change of their
/// layout changes their name.
pub mod names {
    /// `Array<Config>` with one entry.
    pub const CONFIG: &str = "OVL_CONFIG";
    /// `HashMap<u32 ifindex, PortEntry>`.
    pub const PORTS: &str = "OVL_PORTS";
    /// `HashMap<u32 VNI, NetworkEntry>`.
    pub const NETWORKS: &str = "OVL_NETWORKS";
    /// `HashMap<FdbKey, FdbEntry>`.
    pub const FDB: &str = "OVL_FDB";
    /// `HashMap<NeighbourKey, NeighbourEntry>`.
    pub const NEIGHBOURS: &str = "OVL_NEIGHBOURS";
    /// `LruHashMap<FlowKey, EntranceEntry>`.
    pub const ENTRANCES: &str = "OVL_ENTRANCES";
    /// `HashMap<Ip16, VtepEntry>`.
    pub const VTEPS: &str = "OVL_VTEPS";
    /// `PerCpuArray<u64>` indexed by [`crate::counters::DropReason`].
    pub const DROPS: &str = "OVL_DROPS";
    /// `PerCpuArray<u64>` indexed by [`crate::counters::Stat`].
    pub const STATS: &str = "OVL_STATS";
    /// `Array<Control>` with one entry: see [`crate::capture`].
    pub const CAPTURE: &str = "OVL_CAPTURE";
    /// `PerfEventArray` of what is captured.
    pub const CAPTURED: &str = "OVL_CAPTURED";
    /// `XskMap`: at 0 the slow path's AF_XDP socket, behind it those of the crypt workers.
    pub const XSKS: &str = "OVL_XSKS";
    /// `HashMap<SlotKey, Peer>`: see [`crate::service`].
    pub const SLOTS: &str = "OVL_SLOTS";
    /// `LruHashMap<FlowKey, Peer>`: see [`crate::service`].
    pub const FLOWS: &str = "OVL_FLOWS";
    /// `HashMap<u32 ifindex, PolicyEntry>`: see [`crate::policy`].
    pub const POLICIES: &str = "OVL_POLICIES";
    /// `LruHashMap<service::FlowKey, u32>`: see [`crate::policy::note_begun`].
    pub const BEGUN: &str = "OVL_BEGUN";

    /// XDP on ports.
    pub const PORT_XDP: &str = "ovl_port_xdp";
    /// XDP on the uplink.
    pub const UPLINK_XDP: &str = "ovl_uplink_xdp";
    /// tcx ingress on ports.
    pub const PORT_TC: &str = "ovl_port_tc";
    /// tcx ingress on the uplink.
    pub const UPLINK_TC: &str = "ovl_uplink_tc";
    /// tcx ingress on the near ends of the punt link and the crypt link: frames that the agent
    /// sends.
    pub const AGENT_TC: &str = "ovl_agent_tc";
    /// XDP on the far ends of the punt link and the crypt link: into the agent's sockets.
    pub const PUNT_XDP: &str = "ovl_punt_xdp";
}

/// What is true for the whole host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// This host's VTEP address.
    pub vtep: Ip16,
    /// The near end of the punt link.
    pub punt_ifindex: u32,
    /// The near end of the crypt link.
    pub crypt_ifindex: u32,
    /// UDP port of VXLAN, host order.
    pub data_port: u16,
    /// UDP port of ESP, host order.
    pub esp_port: u16,
}
pod!(Config, 28);

/// A port's flag: the host itself is behind it, so any source IP may come out of it.
pub const PORT_ROUTER: u32 = 1;
/// A port's flag: whatever it asks of UDP port 53 behind the gateway's MAC, the agent answers.
pub const PORT_INTERCEPT_DNS: u32 = 2;
/// A port's flag: its endpoint belongs to a service; see [`FDB_BACKEND`].
pub const PORT_BACKEND: u32 = 4;
/// A port's flag: its network is encrypted: nothing that it sends leaves the host in the clear.
pub const PORT_ENCRYPTED: u32 = 8;
/// A port's flag: there are policies about who may reach its endpoint; see [`FDB_POLICED`].
pub const PORT_POLICED: u32 = 16;

/// A port: the host end of a container's veth.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// The network it is on, host order.
    pub vni: u32,
    /// Largest inner packet (Ethernet header excluded), in bytes.
    pub mtu: u32,
    /// The only source MAC it may use.
    pub mac: Mac,
    /// Zero.
    pub _zero: [u8; 2],
    /// The only IPv4 source address it may use.
    pub ip4: [u8; 4],
    /// The IPv6 source addresses it may use; [`UNSPECIFIED`] where there are fewer.
    pub ip6: [Ip16; 2],
    /// [`PORT_ROUTER`], [`PORT_INTERCEPT_DNS`], [`PORT_BACKEND`], [`PORT_ENCRYPTED`],
    /// [`PORT_POLICED`].
    pub flags: u32,
    /// How many bytes a second it may send; 0 for as many as it likes. See [`crate::rate`].
    pub rate: u64,
    /// What it may send at once, as the nanoseconds in which that is paid for.
    pub burst_ns: u64,
}
pod!(PortEntry, 72);

impl PortEntry {
    /// True when it has [`PORT_ENCRYPTED`].
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & PORT_ENCRYPTED != 0
    }

    /// True when it has [`PORT_POLICED`].
    #[inline(always)]
    pub const fn is_policed(&self) -> bool {
        self.flags & PORT_POLICED != 0
    }

    /// The largest inner packet that it can send to a VTEP.
    #[inline(always)]
    pub const fn mtu_to(&self, vtep: &VtepEntry) -> u32 {
        if self.is_encrypted() {
            esp::inner_mtu(vtep.mtu)
        } else {
            vtep.mtu
        }
    }
}

/// A network that has an endpoint on this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkEntry {
    /// Largest inner packet (Ethernet header excluded), in bytes.
    pub mtu: u32,
    /// This host's own MAC in it, that of its router port; zero when it has none. Then the rest
    /// is zero, too.
    pub router: Mac,
    /// 1 when it is encrypted: between hosts only sealed frames are its own.
    pub encrypted: u8,
    /// Zero.
    pub _zero: u8,
    /// Its IPv4 addresses …
    pub net4: [u8; 4],
    /// … and the bits that they have in common.
    pub mask4: [u8; 4],
    /// Its IPv6 addresses …
    pub net6: Ip16,
    /// … and the bits that they have in common.
    pub mask6: Ip16,
}
pod!(NetworkEntry, 52);

impl NetworkEntry {
    /// Without a way out.
    pub const fn closed(mtu: u32) -> NetworkEntry {
        NetworkEntry {
            mtu,
            router: [0; 6],
            encrypted: 0,
            _zero: 0,
            net4: [0; 4],
            mask4: [0; 4],
            net6: UNSPECIFIED,
            mask6: UNSPECIFIED,
        }
    }

    /// Whether only sealed frames are its own.
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.encrypted != 0
    }
}

/// Names one MAC of one network. Twelve bytes and not nine, because the kernel hashes keys of
/// whole words faster.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdbKey {
    vni: u32,
    mac: MacHalves,
    _zero: u16,
}
pod!(FdbKey, 12);

impl FdbKey {
    /// The key of `mac` on the network `vni` (host order).
    #[inline(always)]
    pub const fn new(vni: u32, mac: Mac) -> FdbKey {
        FdbKey::of(vni, MacHalves::of(&mac))
    }

    /// The same of what a frame has.
    #[inline(always)]
    pub const fn of(vni: u32, mac: MacHalves) -> FdbKey {
        FdbKey { vni, mac, _zero: 0 }
    }

    /// The network, host order.
    pub const fn vni(&self) -> u32 {
        self.vni
    }

    /// The address.
    pub const fn mac(&self) -> Mac {
        self.mac.mac()
    }
}

/// Where a MAC is: behind a VTEP, or behind a local port; or a service's, behind none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    vtep: Ip16,
    ifindex: u32,
    flags: u32,
    identity: u32,
}
pod!(FdbEntry, 28);

/// A MAC's flag: an endpoint that belongs to a service, so a frame from it may be the answer to one
/// that was for the service's own address.
pub const FDB_BACKEND: u32 = 1;
/// A MAC's flag: a service's own, and nobody's: what is sent to it gets a backend's.
pub const FDB_SERVICE: u32 = 2;
/// A MAC's flag: a host's way out of the network: what comes from it may be from any address.
pub const FDB_ROUTER: u32 = 4;
/// A MAC's flag: the gateway's, which is behind this host's router port for what is for outside.
pub const FDB_GATEWAY: u32 = 8;
/// A MAC's flag: it is on an encrypted network.
pub const FDB_ENCRYPTED: u32 = 16;
/// A MAC's flag: an endpoint of this host that policies are about: see [`crate::policy`].
pub const FDB_POLICED: u32 = 32;

impl FdbEntry {
    /// Behind the VTEP with this address.
    #[inline(always)]
    pub const fn remote(vtep: Ip16) -> FdbEntry {
        FdbEntry {
            vtep,
            ifindex: 0,
            flags: 0,
            identity: 0,
        }
    }

    /// The gateway's MAC: what is for outside goes to the router port with this ifindex, the rest
    /// to the agent.
    pub const fn gateway(router: u32) -> FdbEntry {
        FdbEntry::local(router).with(FDB_GATEWAY)
    }

    /// True when it has [`FDB_GATEWAY`].
    #[inline(always)]
    pub const fn is_gateway(&self) -> bool {
        self.flags & FDB_GATEWAY != 0
    }

    /// Behind the local port with this ifindex.
    #[inline(always)]
    pub const fn local(ifindex: u32) -> FdbEntry {
        FdbEntry {
            vtep: UNSPECIFIED,
            ifindex,
            flags: 0,
            identity: 0,
        }
    }

    /// A service's own MAC.
    pub const fn service() -> FdbEntry {
        FdbEntry::remote(UNSPECIFIED).with(FDB_SERVICE)
    }

    /// The same with these flags besides those it has.
    pub const fn with(self, flags: u32) -> FdbEntry {
        FdbEntry {
            flags: self.flags | flags,
            ..self
        }
    }

    /// True when it has [`FDB_BACKEND`].
    #[inline(always)]
    pub const fn is_backend(&self) -> bool {
        self.flags & FDB_BACKEND != 0
    }

    /// True when it has [`FDB_SERVICE`].
    #[inline(always)]
    pub const fn is_service(&self) -> bool {
        self.flags & FDB_SERVICE != 0
    }

    /// True when it has [`FDB_ROUTER`].
    #[inline(always)]
    pub const fn is_router(&self) -> bool {
        self.flags & FDB_ROUTER != 0
    }

    /// True when it has [`FDB_ENCRYPTED`].
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & FDB_ENCRYPTED != 0
    }

    /// True when it has [`FDB_POLICED`].
    #[inline(always)]
    pub const fn is_policed(&self) -> bool {
        self.flags & FDB_POLICED != 0
    }

    /// Which of the services that policies name it belongs to; 0 for none.
    #[inline(always)]
    pub const fn identity(&self) -> u32 {
        self.identity
    }

    /// The same as an endpoint of the service with this identity.
    pub const fn identified(self, identity: u32) -> FdbEntry {
        FdbEntry { identity, ..self }
    }

    /// The same with [`FDB_ENCRYPTED`], or without.
    pub const fn encrypted(self, encrypted: bool) -> FdbEntry {
        self.set(FDB_ENCRYPTED, encrypted)
    }

    /// The same with [`FDB_POLICED`], or without.
    pub const fn policed(self, policed: bool) -> FdbEntry {
        self.set(FDB_POLICED, policed)
    }

    const fn set(self, flag: u32, on: bool) -> FdbEntry {
        let others = self.flags & !flag;
        FdbEntry {
            flags: if on { others | flag } else { others },
            ..self
        }
    }

    /// The local port's ifindex, if it is local.
    #[inline(always)]
    pub const fn port(&self) -> Option<u32> {
        if self.ifindex != 0 {
            Some(self.ifindex)
        } else {
            None
        }
    }

    /// The VTEP it is behind; [`UNSPECIFIED`] if it is local.
    #[inline(always)]
    pub const fn vtep(&self) -> &Ip16 {
        &self.vtep
    }

    /// True when it is behind exactly this VTEP.
    #[inline(always)]
    pub const fn is_behind(&self, vtep: &Ip16) -> bool {
        // A service's is behind no VTEP, whatever address a frame claims to come from.
        self.ifindex | (self.flags & FDB_SERVICE) == 0 && ip_eq(&self.vtep, vtep)
    }
}

/// Names one address of one network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourKey {
    vni: u32,
    ip: Ip16,
}
pod!(NeighbourKey, 20);

impl NeighbourKey {
    /// The key of `ip` on the network `vni` (host order).
    #[inline(always)]
    pub const fn new(vni: u32, ip: Ip16) -> NeighbourKey {
        NeighbourKey { vni, ip }
    }

    /// The network, host order.
    pub const fn vni(&self) -> u32 {
        self.vni
    }

    /// The address.
    pub const fn ip(&self) -> Ip16 {
        self.ip
    }
}

/// The MAC of a neighbour.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// Its address.
    pub mac: Mac,
    /// Zero.
    pub _zero: [u8; 2],
}
pod!(NeighbourEntry, 8);

/// Names one flow between a container and somebody outside of its network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The network, host order.
    pub vni: u32,
    /// The container's address.
    pub inside: Ip16,
    /// The other one's.
    pub outside: Ip16,
    inside_port: [u8; 2],
    outside_port: [u8; 2],
    /// 0 for all that there is between the two.
    pub protocol: u8,
    _zero: [u8; 3],
}
pod!(FlowKey, 44);

impl FlowKey {
    /// The key of a flow on the network `vni` (host order); ports in wire order.
    #[inline(always)]
    pub const fn new(
        vni: u32,
        (inside, inside_port): (Ip16, [u8; 2]),
        (outside, outside_port): (Ip16, [u8; 2]),
        protocol: u8,
    ) -> FlowKey {
        FlowKey {
            vni,
            inside,
            outside,
            inside_port,
            outside_port,
            protocol,
            _zero: [0; 3],
        }
    }

    /// Makes it the key of all flows between the two.
    #[inline(always)]
    pub const fn forget_ports(&mut self) {
        self.inside_port = [0; 2];
        self.outside_port = [0; 2];
        self.protocol = 0;
    }
}

/// Through whose router a flow came in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntranceEntry {
    /// The router's address in the network.
    pub mac: Mac,
    /// Zero.
    pub _zero: [u8; 2],
}
pod!(EntranceEntry, 8);

/// How to reach a VTEP: kept by the agent from the kernel's routes and neighbours.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtepEntry {
    /// The outer source address: always this host's advertised one.
    pub src_ip: Ip16,
    /// The interface to send on; 0 while the next hop is not resolved.
    pub ifindex: u32,
    /// Largest inner packet (Ethernet header excluded) that fits on the way there, in bytes, if it
    /// is not sealed.
    pub mtu: u32,
    /// Outer source MAC.
    pub src_mac: Mac,
    /// Outer destination MAC: the next hop's.
    pub dst_mac: Mac,
}
pod!(VtepEntry, 36);
