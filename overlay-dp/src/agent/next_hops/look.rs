//! One look at the kernel's routes, links and neighbours, for any number of VTEPs: what several
//! of them have in common is asked once.

use std::collections::HashMap;
use std::net::IpAddr;

use overlay_host::{Error, Host, LinkInfo, Neighbour, Path, Result};

use super::Hop;

/// What the kernel has answered so far.
pub struct Look<'a> {
    host: &'a Host,
    links: HashMap<u32, Option<LinkInfo>>,
    neighbours: HashMap<(IpAddr, u32), Neighbour>,
}

impl<'a> Look<'a> {
    pub fn new(host: &'a Host) -> Look<'a> {
        Look {
            host,
            links: HashMap::new(),
            neighbours: HashMap::new(),
        }
    }

    /// All gateways to `vtep`, and the one to use.
    pub async fn way(
        &mut self,
        vtep: IpAddr,
        src: IpAddr,
        before: Option<Hop>,
    ) -> Result<(Vec<(IpAddr, u32)>, Hop)> {
        let mut paths = self.host.paths(vtep, src).await?;
        rank(vtep, &mut paths);
        let via = paths.iter().map(key).collect();
        let mut best = None;
        let mut problem = Error::NoRoute(vtep);
        for path in &paths {
            let link = match self.link(path.ifindex).await? {
                Some(link) => link,
                None => continue,
            };
            let Some(src_mac) = link.mac else {
                problem = Error::NotEthernet(link.name.clone());
                continue;
            };
            if !link.up {
                problem = Error::Down(link.name.clone());
                continue;
            }
            let link_mtu = link.mtu;
            let mut hop = Hop {
                gateway: path.gateway_or_dst,
                ifindex: path.ifindex,
                src_mac: src_mac.0,
                dst_mac: None,
                mtu: path.mtu.map_or(link_mtu, |mtu| mtu.min(link_mtu)),
            };
            match self.neighbour(key(path)).await? {
                Neighbour::Usable(mac) => {
                    hop.dst_mac = Some(mac.0);
                    return Ok((via, hop));
                }
                // While the kernel looks for it, what it was is the best guess, so that an entry
                // that somebody flushed does not stop the traffic.
                Neighbour::Unknown => {
                    let same = before.filter(|b| (b.gateway, b.ifindex) == key(path));
                    hop.dst_mac = same.and_then(|before| before.dst_mac);
                    if hop.dst_mac.is_some() {
                        return Ok((via, hop));
                    }
                }
                Neighbour::Failed => {}
            }
            best.get_or_insert(hop);
        }
        best.map(|hop| (via, hop)).ok_or(problem)
    }

    /// Whether the kernel knows the neighbour: nothing more is to come.
    pub fn is_settled(&self, hop: Hop) -> bool {
        let known = self.neighbours.get(&(hop.gateway, hop.ifindex));
        matches!(known, Some(Neighbour::Usable(_)))
    }

    async fn link(&mut self, ifindex: u32) -> Result<Option<&LinkInfo>> {
        if !self.links.contains_key(&ifindex) {
            let link = self.host.link_by_index(ifindex).await?;
            self.links.insert(ifindex, link);
        }
        Ok(self.links.get(&ifindex).and_then(Option::as_ref))
    }

    /// What the kernel knows; where that is nothing, it is made to find out.
    async fn neighbour(&mut self, (ip, ifindex): (IpAddr, u32)) -> Result<Neighbour> {
        if let Some(known) = self.neighbours.get(&(ip, ifindex)) {
            return Ok(*known);
        }
        let found = self.host.neighbour_of(ip, ifindex).await?;
        if !matches!(found, Neighbour::Usable(_)) {
            self.host.keep_fresh(ip, ifindex).await?;
        }
        self.neighbours.insert((ip, ifindex), found);
        Ok(found)
    }
}

fn key(path: &Path) -> (IpAddr, u32) {
    (path.gateway_or_dst, path.ifindex)
}

/// Puts the path that a VTEP is to use first (rendezvous hashing): when one goes, only the VTEPs
/// that used it move, and every look gives the same order.
fn rank(vtep: IpAddr, paths: &mut [Path]) {
    paths.sort_by_cached_key(|path| std::cmp::Reverse(score(vtep, path)));
}

/// The best of as many tickets as the path has weight.
fn score(vtep: IpAddr, path: &Path) -> u64 {
    let mut bytes = [0; 36];
    bytes[..16].copy_from_slice(&ip16(vtep));
    bytes[16..32].copy_from_slice(&ip16(path.gateway_or_dst));
    bytes[32..].copy_from_slice(&path.ifindex.to_be_bytes());
    let tickets = 0..path.weight.max(1);
    let hash = |ticket: u16| {
        let [a, b] = ticket.to_be_bytes();
        finish(bytes.into_iter().chain([a, b]).fold(FNV_BASIS, fnv1a))
    };
    tickets.map(hash).max().unwrap_or_default()
}

fn ip16(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv1a(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// FNV's upper bits hardly know of the last bytes; this mixes them (as MurmurHash3 ends).
fn finish(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn path(n: u8, weight: u16) -> Path {
        Path {
            ifindex: 2,
            gateway_or_dst: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
            weight,
            mtu: None,
        }
    }

    fn chosen(paths: &[Path]) -> Vec<IpAddr> {
        let one = |n: u32| {
            let mut paths = paths.to_vec();
            rank(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)), &mut paths);
            paths[0].gateway_or_dst
        };
        (0..1000).map(one).collect()
    }

    #[test]
    fn only_what_used_a_path_moves_when_it_goes() {
        let all = [path(1, 1), path(2, 1), path(3, 1), path(4, 1)];
        let before = chosen(&all);
        let shuffled = [path(4, 1), path(2, 1), path(1, 1), path(3, 1)];
        assert_eq!(before, chosen(&shuffled), "the order must not matter");
        let after = chosen(&all[..3]);
        for (before, after) in before.iter().zip(after) {
            assert!(*before == after || *before == all[3].gateway_or_dst);
        }
        for path in all {
            let share = before
                .iter()
                .filter(|ip| **ip == path.gateway_or_dst)
                .count();
            assert!((200..300).contains(&share), "{share}");
        }
    }

    #[test]
    fn weights_are_shares() {
        let all = [path(1, 3), path(2, 1)];
        let share = chosen(&all)
            .iter()
            .filter(|ip| **ip == all[0].gateway_or_dst)
            .count();
        assert!((700..800).contains(&share), "{share}");
    }
}
