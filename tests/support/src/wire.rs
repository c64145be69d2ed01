//! What the lab's cables do with TCP's super-packets, of up to 64 KiB.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::ns::Ns;

/// What the uplinks and the router's ends of their cables offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    /// They pass whole, as veths do by default: as between the guests of one machine.
    Gso,
    /// Only frames of the MTU's size: as between machines whose NICs can't segment tunnels.
    Mtu,
    /// The same, and the uplinks merge what they receive (GRO) as far as they understand it.
    MtuGro,
}

impl Wire {
    /// All of them.
    pub const ALL: [Wire; 3] = [Wire::Gso, Wire::Mtu, Wire::MtuGro];

    /// `gso`, `mtu`, `mtu+gro`.
    pub fn name(self) -> &'static str {
        match self {
            Wire::Gso => "gso",
            Wire::Mtu => "mtu",
            Wire::MtuGro => "mtu+gro",
        }
    }

    /// The uplinks' GRO.
    fn gro(self) -> bool {
        self == Wire::MtuGro
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Wire {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Wire> {
        let wire = Wire::ALL.into_iter().find(|wire| wire.name() == name);
        wire.with_context(|| format!("no wire '{name}': gso, mtu or mtu+gro"))
    }
}

impl Lab {
    /// Makes all cables of this kind. What an XDP program on a link has turned off stays off.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_wire(&self, wire: Wire) -> Result<()> {
        let segment = wire != Wire::Gso;
        for host in self.hosts() {
            let port = host.router_port();
            set_segmenting(&host.ns, "eth0", segment)?;
            set_segmenting(self.router(), &port, segment)?;
            let gro = if wire.gro() { "on" } else { "off" };
            host.ns.run(&format!("ethtool -K eth0 gro {gro}"))?;
            // The router's GRO is there for what XDP redirects to it (see `connect`). It must not
            // merge again what was segmented: a wire does not.
            let largest = if segment { 1 } else { 65_536 };
            self.router()
                .run(&format!("ip link set {port} gro_max_size {largest}"))?;
        }
        Ok(())
    }
}

/// Whether a link gets super-packets in segments.
fn set_segmenting(ns: &Ns, link: &str, segment: bool) -> Result<()> {
    if !segment {
        // Fails where the other end has an XDP program: then it can't be on.
        ns.run_any(&format!("ethtool -K {link} tso on gso on"))?;
        return Ok(());
    }
    ns.run(&format!("ethtool -K {link} tso off gso off"))?;
    let features = ns.run(&format!("ethtool -k {link}"))?;
    for line in features.lines() {
        let line = line.trim();
        if line.starts_with("tx-tcp") && line.contains("segmentation: on") {
            bail!("{link} in {} still has {line}", ns.label());
        }
    }
    ensure!(
        features.contains("tx-tcp-segmentation: off"),
        "ethtool tells nothing of TCP segmentation: {features}"
    );
    Ok(())
}
