//! What would become of a frame: decided by the verdicts' own code over the agent's tables, and by
//! the programs themselves over their maps.

use overlay_common::esp;
use overlay_common::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
};
use overlay_common::policy::{self, PolicyEntry};
use overlay_common::punt::{self, Kind};
use overlay_common::verdict::{self, Frame, Tables as _, Verdict, Way, from_port, from_uplink};
use overlay_common::wire::{ETH_LEN, ETH_P_IPV6, Family, Ip16};
use overlay_core::model::MacAddr;
use overlay_core::tables::Tables;
use std::net::{IpAddr, Ipv6Addr};

use super::Agent;
use crate::bpf::{Action, HookKind, Site};

/// A frame, and where it comes in.
#[derive(Clone, Debug)]
pub struct Judge {
    /// On this port, by ifindex; on the uplink when absent.
    pub port: Option<u32>,
    /// Whether it came sealed, and was opened since; not from a port.
    pub sealed: bool,
    /// All its bytes.
    pub frame: Vec<u8>,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is none of ours: the host's stack gets it.
    Passed,
    /// Dropped, for this reason.
    Dropped(&'static str),
    /// The agent gets it, for this reason.
    ToAgent(&'static str),
    /// Sent to a VTEP.
    Encapsulated(To),
    /// Given to a local port, by ifindex.
    Switched(u32),
    /// Taken out of the tunnel and given to a local port, by ifindex.
    Decapsulated(u32),
    /// It is for a service's own address: addressed to a backend instead, and judged again.
    Balanced,
    /// Answered with this MAC.
    Answered(MacAddr),
    /// It is ESP: a crypt worker opens it.
    ToBeOpened,
    /// Something else, in the words of the verdict.
    Other(String),
}

/// The way to a VTEP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// Its address.
    pub vtep: IpAddr,
    /// The interface that it is sent on.
    pub ifindex: u32,
    /// The next hop.
    pub next_hop: MacAddr,
    /// The largest packet of a container that fits.
    pub mtu: u32,
    /// Whether it is sealed before.
    pub sealed: bool,
}

/// Both judgements.
#[derive(Debug)]
pub struct Judgement {
    /// By the tables.
    pub tables: Fate,
    /// Which policy does not let it in, when that is so.
    pub policy: Option<String>,
    /// What the program does.
    pub programs: Result<Tried, String>,
    /// Which program that is.
    pub program: &'static str,
}

/// What a program does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It passes it on to the host's stack.
    Passed,
    /// It drops it, for one of these reasons.
    Dropped(Vec<&'static str>),
    /// It hands it to the agent, for this reason.
    ToAgent(&'static str),
    /// It sends it out as these bytes.
    Sent(Vec<u8>),
    /// It gives it to a crypt worker as these bytes, which go to a VTEP once they are sealed.
    ToSeal(Vec<u8>),
    /// It gives it to a crypt worker, to be opened.
    ToOpen,
}

impl Agent {
    pub(super) fn judge(&self, judge: &Judge) -> Judgement {
        let tables = self.tables.read();
        let (bytes, view) = (Bytes(&judge.frame), View(&tables));
        let verdict = match judge.port {
            Some(ifindex) => match from_port(&bytes, &view, ifindex) {
                Verdict::Leave(leaving) => verdict::leave(&bytes, &view, &leaving),
                other => other,
            },
            None if judge.sealed => from_uplink(&bytes, &view, Way::Sealed),
            None => from_uplink(&bytes, &view, Way::Clear),
        };
        let fate = fate(&verdict);
        let policy = policy_of(judge, &bytes, &view);
        let mut frame = judge.frame.clone();
        let (site, kind, ifindex) = match judge.port {
            Some(ifindex) => (Site::Port, self.plan.port, ifindex),
            None if judge.sealed => {
                // As a crypt worker hands it over.
                if let Some(eth) = frame.first_chunk_mut::<ETH_LEN>() {
                    *eth = punt::encode(Kind::Opened, None, 0, punt::ethertype(eth));
                }
                let near = self.crypt_link.near_ifindex;
                (Site::CryptNear, HookKind::Tcx, near)
            }
            None => (Site::Uplink, self.plan.uplink, self.uplink.ifindex),
        };
        Judgement {
            tables: fate,
            policy,
            programs: self.try_program(site, kind, ifindex, &frame),
            program: site.program(kind),
        }
    }

    fn try_program(
        &self,
        site: Site,
        kind: HookKind,
        ifindex: u32,
        frame: &[u8],
    ) -> Result<Tried, String> {
        let tried = self.bpf.try_out(site, kind, ifindex, frame);
        let tried = tried.map_err(|error| format!("{error:#}"))?;
        let marker = tried.bytes.first_chunk::<ETH_LEN>().and_then(punt::decode);
        Ok(match (tried.action, marker) {
            (Action::Pass, _) => Tried::Passed,
            (Action::Drop, _) => Tried::Dropped(tried.drops.iter().map(|r| r.name()).collect()),
            (Action::Redirect, Some(marker))
                if matches!(
                    marker.kind,
                    Kind::FromPort | Kind::FromUplink | Kind::FromOpened
                ) =>
            {
                Tried::ToAgent(marker.reason.map_or("unknown", |reason| reason.name()))
            }
            (Action::Redirect, Some(marker)) if marker.kind == Kind::ToSeal => {
                Tried::ToSeal(tried.bytes)
            }
            (Action::Redirect, Some(marker)) if marker.kind == Kind::ToOpen => Tried::ToOpen,
            (Action::Redirect, _) => Tried::Sent(tried.bytes),
        })
    }
}

fn fate(verdict: &Verdict<'_>) -> Fate {
    match verdict {
        Verdict::Pass => Fate::Passed,
        Verdict::Drop(reason) => Fate::Dropped(reason.name()),
        Verdict::Punt { reason, .. } => Fate::ToAgent(reason.name()),
        Verdict::Encap {
            vtep, dst, seal, ..
        } => Fate::Encapsulated(To {
            vtep: IpAddr::V6(Ipv6Addr::from_octets(**dst)).to_canonical(),
            ifindex: vtep.ifindex,
            next_hop: MacAddr(vtep.dst_mac),
            mtu: match seal {
                true => esp::inner_mtu(vtep.mtu),
                false => vtep.mtu,
            },
            sealed: *seal,
        }),
        Verdict::Open => Fate::ToBeOpened,
        Verdict::Switch { ifindex, .. }
        | Verdict::Enter { ifindex, .. }
        | Verdict::Route { ifindex, .. } => Fate::Switched(*ifindex),
        Verdict::Decap { ifindex, .. } => Fate::Decapsulated(*ifindex),
        Verdict::Balance { .. } => Fate::Balanced,
        Verdict::ArpReply { mac } | Verdict::NdReply { mac } => Fate::Answered(MacAddr(*mac)),
        other => Fate::Other(format!("{other:?}")),
    }
}

/// What the policies of the endpoint that a frame is for say of it, if they don't let it in.
fn policy_of(judge: &Judge, bytes: &Bytes<'_>, view: &View<'_>) -> Option<String> {
    let (at, vni) = match judge.port {
        Some(ifindex) => (0, view.port(ifindex)?.vni),
        None => {
            let family = match punt::ethertype(&bytes.load(0)?) {
                ETH_P_IPV6 => Family::V6,
                _ => Family::V4,
            };
            let at = family.outer_len();
            let [a, b, c] = bytes.load(at - 4)?;
            (at, u32::from_be_bytes([0, a, b, c]))
        }
    };
    let port = view.fdb(&FdbKey::new(vni, bytes.load(at)?))?.port()?;
    policy::judge(bytes, at, view, vni, port).err()?;
    let index = policy::deciding(bytes, at, view, vni, port);
    let name = index.and_then(|index| Some(view.0.policy_at(port, index)?.name.clone()));
    Some(match name {
        Some(name) => format!("policy '{name}' denies it"),
        None => "no policy allows it".to_owned(),
    })
}

/// A frame in memory.
struct Bytes<'a>(&'a [u8]);

impl Frame for Bytes<'_> {
    fn read<const N: usize, R>(
        &self,
        offset: usize,
        take: impl FnOnce(&[u8; N]) -> R,
    ) -> Option<R> {
        self.0.get(offset..)?.first_chunk().map(take)
    }

    fn total_len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    fn gso_size(&self) -> u32 {
        0
    }
}

/// The agent's tables, as the verdicts want them.
struct View<'a>(&'a Tables);

impl verdict::Tables for View<'_> {
    fn config(&self) -> Option<&Config> {
        Some(self.0.config())
    }

    fn port(&self, ifindex: u32) -> Option<&PortEntry> {
        self.0.port_entry(ifindex)
    }

    fn network(&self, vni: u32) -> Option<&NetworkEntry> {
        self.0.network_entry(vni)
    }

    fn fdb(&self, key: &FdbKey) -> Option<&FdbEntry> {
        self.0.fdb_entry(key)
    }

    fn neighbour(&self, key: &NeighbourKey) -> Option<&NeighbourEntry> {
        self.0.neighbour_entry(key.vni(), key.ip())
    }

    fn vtep(&self, ip: &Ip16) -> Option<&VtepEntry> {
        self.0.vtep_entry(ip)
    }

    fn policy(&self, port: u32) -> Option<&PolicyEntry> {
        self.0.policy_entry(port)
    }
}
