//! The interfaces of a lab, as live frames need them.

use anyhow::{Context, Result};
use overlay_lab::Ns;
use serde_json::Value;

/// An interface.
pub struct Link {
    ns: Ns,
    name: String,
    pub index: u32,
    /// Of a veth: the other end's index, where that is.
    other: Option<u32>,
    pub mac: [u8; 6],
}

impl Link {
    pub fn of(ns: &Ns, name: &str) -> Result<Link> {
        let mut links = Link::all(ns)?.into_iter();
        let link = links.find(|link| link.name == name);
        link.with_context(|| format!("no {name} in {}", ns.label()))
    }

    /// A veth's other end, which is in `ns`.
    pub fn peer_of(end: &Link, ns: &Ns) -> Result<Link> {
        let mut links = Link::all(ns)?.into_iter();
        let link = links.find(|link| end.other == Some(link.index));
        link.with_context(|| format!("no other end of {} in {}", end.name, ns.label()))
    }

    fn all(ns: &Ns) -> Result<Vec<Link>> {
        let rows: Vec<Value> = serde_json::from_str(&ns.run("ip -j link show")?)?;
        Ok(rows.iter().filter_map(|row| Link::parse(ns, row)).collect())
    }

    /// None for what is no Ethernet interface.
    fn parse(ns: &Ns, row: &Value) -> Option<Link> {
        let number = |field: &str| u32::try_from(row[field].as_u64()?).ok();
        let mut mac = [0; 6];
        let mut digits = row["address"].as_str()?.split(':');
        for byte in &mut mac {
            *byte = u8::from_str_radix(digits.next()?, 16).ok()?;
        }
        Some(Link {
            ns: ns.clone(),
            name: row["ifname"].as_str()?.to_owned(),
            index: number("ifindex")?,
            other: number("link_index"),
            mac,
        })
    }

    /// Makes a veth accept XDP frames from its other end, which it does with GRO or with an XDP
    /// program of its own.
    pub fn take_frames(&self) -> Result<()> {
        self.ns
            .run(&format!("ethtool -K {} gro on", self.name))
            .map(drop)
    }
}
