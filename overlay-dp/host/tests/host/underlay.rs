//! The uplink, routes and next hops, and what the machine must offer.
//!
//! ```text
//!     host (ohp-…-h)                 router (ohp-…-r)
//!       up0 172.31.1.5/24 ── veth ── r0 172.31.1.1/24 ── (198.51.100.0/24)
//! ```

use crate::support::{Ns, await_event, ip, root};
use overlay_core::model::MacAddr;
use overlay_host::{Error, Host, HostEvent, Monitor, Uplink, bpffs, caps, kernel};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const ROUTER_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfe]);

fn lab() -> (Ns, Ns) {
    let (h, r) = (Ns::new("h"), Ns::new("r"));
    h.ip(&format!(
        "link add up0 mtu 1500 type veth peer name r0 address {ROUTER_MAC} netns {}",
        r.name
    ));
    h.ip("link set up0 up");
    r.ip("link set r0 up");
    h.ip("address add 172.31.1.5/24 dev up0");
    r.ip("address add 172.31.1.1/24 dev r0");
    h.ip("route add 198.51.100.0/24 via 172.31.1.1 mtu 1400");
    (h, r)
}

#[test]
fn the_next_hop_is_the_router() {
    if !root() {
        return;
    }
    let (h, r) = lab();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let (task, mut events) = Monitor::new().unwrap();
        tokio::spawn(task);
        let (src, dst) = (ip("172.31.1.5"), ip("198.51.100.7"));
        let up0 = host.link("up0").await.unwrap().unwrap();

        let hop = host.resolve(dst, src).await.unwrap();
        assert_eq!((hop.ifindex, hop.dst_mac), (up0.index, None));
        assert_eq!(hop.gateway_or_dst, ip("172.31.1.1"));
        assert_eq!(Some(hop.src_mac), up0.mac);
        assert_eq!((hop.link_mtu, hop.route_mtu), (1500, Some(1400)));

        let found = HostEvent::Neighbour {
            ip: ip("172.31.1.1"),
            ifindex: up0.index,
            mac: Some(ROUTER_MAC),
        };
        await_event(&mut events, |event| *event == found).await;
        let hop = host.resolve(dst, src).await.unwrap();
        assert_eq!(hop.dst_mac, Some(ROUTER_MAC));

        let on_link = host.resolve(ip("172.31.1.1"), src).await.unwrap();
        assert_eq!(on_link.gateway_or_dst, ip("172.31.1.1"));
        assert_eq!(
            (on_link.dst_mac, on_link.route_mtu),
            (Some(ROUTER_MAC), None)
        );

        // A stale entry is probed when it is used, and not before.
        h.ip("neigh change 172.31.1.1 dev up0 nud stale");
        host.keep_fresh(ip("172.31.1.1"), up0.index).await.unwrap();
        let state = h.json("neigh show 172.31.1.1")[0]["state"].to_string();
        assert!(
            state.contains("DELAY") || state.contains("PROBE"),
            "{state}"
        );

        // The router changes its address, as after a failover.
        r.ip("link set r0 address 02:00:00:00:00:aa");
        h.ip("neigh flush dev up0");
        host.resolve(dst, src).await.unwrap();
        await_event(&mut events, |event| {
            matches!(event, HostEvent::Neighbour { mac: Some(mac), .. } if mac.0[5] == 0xaa)
        })
        .await;

        // It dies: the entry fails, and the loss is told.
        r.ip("link set r0 arp off");
        h.ip("neigh flush dev up0");
        assert_eq!(host.resolve(dst, src).await.unwrap().dst_mac, None);
        await_event(&mut events, |event| {
            matches!(event, HostEvent::Neighbour { mac: None, .. })
        })
        .await;
        assert_eq!(host.resolve(dst, src).await.unwrap().dst_mac, None);

        let error = host.resolve(ip("203.0.113.1"), src).await.unwrap_err();
        assert!(matches!(error, Error::NoRoute(_)), "{error}");
        h.ip("route add blackhole 203.0.113.0/24");
        let error = host.resolve(ip("203.0.113.1"), src).await.unwrap_err();
        assert!(matches!(error, Error::NoRoute(_)), "{error}");
        let error = host.resolve(src, src).await.unwrap_err();
        assert!(matches!(error, Error::LocalDestination(_)), "{error}");
        let error = host.resolve(dst, ip("192.0.2.1")).await.unwrap_err();
        assert!(matches!(error, Error::NotOurAddress(_)), "{error}");
        h.ip("route add 203.0.113.9/32 dev lo");
        assert!(host.resolve(ip("203.0.113.9"), src).await.is_err());
    });
}

#[test]
fn the_next_hop_over_ipv6() {
    if !root() {
        return;
    }
    let (h, r) = lab();
    h.ip("address add fd31::5/64 dev up0 nodad");
    r.ip("address add fd31::1/64 dev r0 nodad");
    h.ip("route add fd99::/64 via fd31::1");
    h.ip("route add 192.0.2.0/24 via inet6 fd31::1");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let (task, mut events) = Monitor::new().unwrap();
        tokio::spawn(task);
        let hop = host.resolve(ip("fd99::7"), ip("fd31::5")).await.unwrap();
        assert_eq!(hop.gateway_or_dst, ip("fd31::1"));
        if hop.dst_mac.is_none() {
            await_event(&mut events, |event| {
                matches!(event, HostEvent::Neighbour { ip, mac: Some(_), .. } if *ip == hop.gateway_or_dst)
            })
            .await;
        }
        let hop = host.resolve(ip("fd99::7"), ip("fd31::5")).await.unwrap();
        assert_eq!(hop.dst_mac, Some(ROUTER_MAC));
        let hop = host.resolve(ip("192.0.2.7"), ip("172.31.1.5")).await.unwrap();
        assert_eq!((hop.gateway_or_dst, hop.dst_mac), (ip("fd31::1"), Some(ROUTER_MAC)));
    });
}

#[test]
fn an_uplink_is_checked() {
    if !root() {
        return;
    }
    let (h, _r) = lab();
    h.ip("address add 172.31.1.6/24 dev up0");
    h.ip("link add ovl-near type veth peer name ovl-far");
    h.ip("link add down0 type bridge");
    h.ip("link add bare0 type bridge");
    h.ip("link set bare0 up addrgenmode none");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let uplink = Uplink::discover(&host, "up0", None).await.unwrap();
        assert_eq!((uplink.addr, uplink.mtu), (ip("172.31.1.5"), 1500));
        assert_eq!((uplink.driver.as_str(), uplink.up), ("veth", true));
        assert_eq!(
            (uplink.name.as_str(), uplink.container_mtu()),
            ("up0", 1450)
        );
        let other = Some(ip("172.31.1.6"));
        let uplink = Uplink::discover(&host, "up0", other).await.unwrap();
        assert_eq!(Some(uplink.addr), other);

        let error = async |name: &str, advertise: Option<&str>| {
            let found = Uplink::discover(&host, name, advertise.map(ip)).await;
            found.unwrap_err().to_string()
        };
        assert_eq!(
            error("eth9", None).await,
            "no interface 'eth9': there are up0, down0, bare0"
        );
        assert_eq!(
            error("down0", None).await,
            "interface down0 is down: bring it up with 'ip link set down0 up'"
        );
        assert!(
            error("bare0", None)
                .await
                .starts_with("interface bare0 has no address to be reached at")
        );
        assert_eq!(
            error("up0", Some("192.0.2.1")).await,
            "192.0.2.1 is not an address of interface up0: up0 has 172.31.1.5, 172.31.1.6"
        );
        // Link-local addresses are none; what is not probed for yet is none yet.
        h.ip("address add fe80::1/64 dev up0 nodad");
        assert_eq!(
            error("up0", Some("fe80::1")).await,
            "fe80::1 is valid on its own link only: advertise a global or unique local address"
        );
        h.ip("address add fd00::1/64 dev up0 nodad");
        let sixth = Uplink::discover(&host, "up0", Some(ip("fd00::1"))).await;
        assert_eq!(sixth.unwrap().container_mtu(), 1430);
        h.ip("address add fd00::2/64 dev bare0 preferred_lft 0 nodad");
        assert!(
            error("bare0", Some("fd00::2"))
                .await
                .starts_with("fd00::2 on interface bare0 can't be used")
        );
        h.ip("address add fd00::3/64 dev bare0 nodad");
        let only = Uplink::discover(&host, "bare0", None).await.unwrap();
        assert_eq!(only.addr, ip("fd00::3"));
        h.ip("link set up0 mtu 1279");
        assert_eq!(
            error("up0", None).await,
            "the MTU of up0 is 1279, and QUIC between the hosts needs 1280: \
             raise it with 'ip link set up0 mtu 1500'"
        );
        h.ip("link set up0 mtu 1280");
        let least = Uplink::discover(&host, "up0", None).await.unwrap();
        assert_eq!(least.container_mtu(), 1230);
        assert!(
            error("lo", None)
                .await
                .contains("lo is not an Ethernet interface")
        );
    });
}

#[test]
fn overlaps_with_host_routes_are_found() {
    if !root() {
        return;
    }
    let (h, _r) = lab();
    h.ip("route add default via 172.31.1.1");
    h.ip("route add 10.1.0.0/16 nexthop via 172.31.1.1 nexthop via 172.31.1.2");
    h.ip("route add 10.2.0.0/16 dev up0 table 77");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let overlap =
            async |subnet: &str| host.find_overlap(subnet.parse().unwrap()).await.unwrap();
        let on_up0 = |net: &str| Some((net.parse().unwrap(), "up0".to_owned()));
        assert_eq!(overlap("172.31.1.128/25").await, on_up0("172.31.1.0/24"));
        assert_eq!(overlap("10.0.0.0/8").await, on_up0("10.1.0.0/16"));
        assert_eq!(overlap("10.0.0.0/24").await, None);
        assert_eq!(overlap("10.2.0.0/24").await, None);
        assert_eq!(overlap("fd00::/64").await, None);
        h.ip("address add fd00::1/64 dev up0 nodad");
        assert_eq!(overlap("fd00::/48").await, on_up0("fd00::/64"));
    });
}

#[test]
fn this_machine_will_do() {
    if !root() {
        return;
    }
    kernel::require_kernel().unwrap();
    kernel::tcx_supported().unwrap();
    caps::check_privileges().unwrap();
    // Capabilities belong to the thread, so dropping them on one harms no other test.
    std::thread::spawn(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).unwrap();
        let error = caps::check_privileges().unwrap_err().to_string();
        assert!(
            error.starts_with("missing CAP_SYS_ADMIN: run as root"),
            "{error}"
        );
    })
    .join()
    .unwrap();
}

#[test]
fn bpffs_is_mounted_where_it_is_not() {
    if !root() {
        return;
    }
    struct Dir(std::path::PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty());
            let _ = std::fs::remove_dir(&self.0);
        }
    }
    let dir = Dir(std::env::temp_dir().join(format!("ohp-{}-bpf", std::process::id())));
    let mounts = || {
        let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = format!(" {} bpf ", dir.0.display());
        all.lines().filter(|line| line.contains(&dir)).count()
    };
    bpffs::ensure_mounted(&dir.0).unwrap();
    bpffs::ensure_mounted(&dir.0).unwrap();
    assert_eq!(mounts(), 1);
    let inside = dir.0.join("sub");
    bpffs::ensure_mounted(&inside).unwrap();
    std::fs::remove_dir(&inside).unwrap();
    let file = std::path::Path::new("/etc/passwd/x");
    let error = bpffs::ensure_mounted(file).unwrap_err();
    assert!(matches!(error, Error::Bpffs { .. }), "{error}");
}
