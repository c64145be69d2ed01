//! All ways to a VTEP, and the neighbours on them.
//!
//! ```text
//!      up0 172.31.1.5/24 ── r0 172.31.1.1/24 ─┐
//!   h                                          r ── (198.51.100.0/24)
//!      up1 172.31.2.5/24 ── r1 172.31.2.1/24 ─┘
//! ```

use crate::support::{Ns, ip, root};
use overlay_core::model::MacAddr;
use overlay_host::{Error, Host, Neighbour};

fn lab() -> (Ns, Ns) {
    let (h, r) = (Ns::new("h"), Ns::new("r"));
    for n in 0..2 {
        let net = n + 1;
        h.ip(&format!(
            "link add up{n} type veth peer name r{n} address 02:00:00:00:00:0{net} netns {}",
            r.name
        ));
        h.ip(&format!("address add 172.31.{net}.5/24 dev up{n}"));
        r.ip(&format!("address add 172.31.{net}.1/24 dev r{n}"));
        h.ip(&format!("link set up{n} up"));
        r.ip(&format!("link set r{n} up"));
    }
    (h, r)
}

#[test]
fn a_route_with_several_next_hops_has_several_paths() {
    if !root() {
        return;
    }
    let (h, _r) = lab();
    h.ip("route add 198.51.100.0/24 mtu 1400 nexthop via 172.31.1.1 dev up0 weight 3 nexthop via 172.31.2.1 dev up1");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let (src, dst) = (ip("172.31.1.5"), ip("198.51.100.7"));
        let index = [
            host.link("up0").await.unwrap().unwrap().index,
            host.link("up1").await.unwrap().unwrap().index,
        ];
        for _ in 0..10 {
            let paths = host.paths(dst, src).await.unwrap();
            let seen: Vec<_> = paths
                .iter()
                .map(|p| (p.ifindex, p.gateway_or_dst, p.weight, p.mtu))
                .collect();
            assert_eq!(
                seen,
                [
                    (index[0], ip("172.31.1.1"), 3, Some(1400)),
                    (index[1], ip("172.31.2.1"), 1, Some(1400)),
                ]
            );
        }
        // One that the kernel takes for dead is none while there is another.
        h.ip("link set up1 down");
        let paths = host.paths(dst, src).await.unwrap();
        assert_eq!(paths.len(), 1);
        assert_eq!(paths[0].ifindex, index[0]);

        let on_link = host.paths(ip("172.31.1.9"), src).await.unwrap();
        assert_eq!(on_link.len(), 1);
        assert_eq!(on_link[0].gateway_or_dst, ip("172.31.1.9"));
        assert_eq!((on_link[0].weight, on_link[0].mtu), (1, None));

        // Which route depends on the source, if the rules say so.
        h.ip("route add 198.51.100.0/24 via 172.31.1.77 table 7");
        h.ip("rule add from 172.31.1.5 lookup 7");
        let paths = host.paths(dst, src).await.unwrap();
        assert_eq!(paths[0].gateway_or_dst, ip("172.31.1.77"));

        let error = host.paths(ip("203.0.113.1"), src).await.unwrap_err();
        assert!(matches!(error, Error::NoRoute(_)), "{error}");
        let error = host.paths(src, src).await.unwrap_err();
        assert!(matches!(error, Error::LocalDestination(_)), "{error}");
        let error = host.paths(dst, ip("192.0.2.1")).await.unwrap_err();
        assert!(matches!(error, Error::NotOurAddress(_)), "{error}");
    });
}

#[test]
fn paths_of_ipv6_and_of_next_hop_objects() {
    if !root() {
        return;
    }
    let (h, _r) = lab();
    h.ip("address add fd31:1::5/64 dev up0 nodad");
    h.ip("address add fd31:2::5/64 dev up1 nodad");
    h.ip("route add fd99::/64 nexthop via fd31:1::1 dev up0 nexthop via fd31:2::1 dev up1");
    h.ip("nexthop add id 1 via 172.31.1.1 dev up0");
    h.ip("nexthop add id 2 via 172.31.2.1 dev up1");
    h.ip("nexthop add id 9 group 1/2");
    h.ip("route add 198.51.100.0/24 nhid 9");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let gateways = async |dst: &str, src: &str| {
            let paths = host.paths(ip(dst), ip(src)).await.unwrap();
            let mut all: Vec<_> = paths.iter().map(|p| p.gateway_or_dst).collect();
            all.sort();
            all
        };
        let v6 = gateways("fd99::7", "fd31:1::5").await;
        assert_eq!(v6, [ip("fd31:1::1"), ip("fd31:2::1")]);
        let group = gateways("198.51.100.7", "172.31.1.5").await;
        assert_eq!(group, [ip("172.31.1.1"), ip("172.31.2.1")]);
    });
}

#[test]
fn a_neighbour_is_looked_for_again() {
    if !root() {
        return;
    }
    let (h, r) = lab();
    let gateway = ip("172.31.1.1");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let index = host.link("up0").await.unwrap().unwrap().index;
        let known = async |wanted: Neighbour| {
            for _ in 0..500 {
                if host.neighbour_of(gateway, index).await.unwrap() == wanted {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            panic!("not {wanted:?}");
        };
        assert_eq!(
            host.neighbour_of(gateway, index).await.unwrap(),
            Neighbour::Unknown
        );
        host.look_again(gateway, index).await.unwrap();
        known(Neighbour::Usable(MacAddr([2, 0, 0, 0, 0, 1]))).await;
        // Another machine has the address now, and has not told.
        r.ip("link set r0 address 02:00:00:00:00:aa");
        assert_eq!(
            host.neighbour_of(gateway, index).await.unwrap(),
            Neighbour::Usable(MacAddr([2, 0, 0, 0, 0, 1]))
        );
        host.look_again(gateway, index).await.unwrap();
        known(Neighbour::Usable(MacAddr([2, 0, 0, 0, 0, 0xaa]))).await;
        // It dies.
        r.ip("link set r0 arp off");
        host.look_again(gateway, index).await.unwrap();
        known(Neighbour::Failed).await;
    });
}
