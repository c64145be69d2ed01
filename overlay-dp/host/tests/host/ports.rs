//! Containers' ports.
//!
//! ```text
//!     host (ohp-…-h)            container (ohp-…-c)
//!       ovp-1 ───────── veth ───────── eth0
//! ```

use std::net::IpAddr;

use overlay_core::model::MacAddr;
use overlay_host::{Error, Host, HostEvent, Monitor, Netns, PortSpec};

use crate::support::{BIRTH_MARK, Ns, OWNER, await_event, ip, root};

const MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 0, 2]);

fn spec<'a>(netns: &'a Netns, host_ifname: &'a str, addrs: &'a [(IpAddr, u8)]) -> PortSpec<'a> {
    PortSpec {
        host_ifname,
        owner: OWNER,
        container_ifname: "eth0",
        netns,
        in_host: false,
        mac: MAC,
        host_mtu: 1500,
        container_mtu: 1450,
        addrs,
        gateways: &[],
    }
}

#[test]
fn a_port_has_all_that_was_asked_for() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    c.ip("link set lo down");
    let addrs = [(ip("10.0.0.2"), 24), (ip("fd00::2"), 64)];
    let port = h.block_on(async || {
        let host = Host::new().unwrap();
        let mut spec = spec(&netns, "ovp-1", &addrs);
        let gateways = [ip("10.0.0.1")];
        spec.gateways = &gateways;
        let port = host.create_port(&spec).await.unwrap();

        let seen = host.link("ovp-1").await.unwrap().unwrap();
        assert_eq!(
            (seen.kind.as_str(), seen.mtu, seen.up),
            ("veth", 1500, true)
        );
        assert_eq!(seen.index, port.host_ifindex);
        assert_eq!(seen.alias.as_deref(), Some(OWNER));
        assert!(seen.carrier && seen.link_netnsid.is_some() && seen.xdp.is_none());
        assert_eq!(seen.peer_index, Some(port.container_ifindex));
        assert_eq!(host.links_owned_by(OWNER).await.unwrap(), [seen]);
        let inside = host.container_link(&netns, "eth0").await.unwrap().unwrap();
        assert_eq!((inside.mac, inside.mtu), (Some(MAC), 1450));

        host.set_container_mtu(&netns, "eth0", 1400).await.unwrap();
        host.set_mtu("ovp-1", 1600).await.unwrap();
        port
    });
    assert!(port.default_route);
    assert_eq!(port.link_local, Some(MAC.link_local()));

    let host_end = &h.json("address show dev ovp-1")[0];
    assert_eq!(host_end["mtu"], 1600);
    assert_eq!(
        host_end["addr_info"].as_array().unwrap().len(),
        0,
        "{host_end}"
    );
    let host_end = &h.json("link show dev ovp-1")[0];
    assert_eq!(host_end["inet6_addr_gen_mode"], "none", "{host_end}");
    assert!(!h.has_link("eth0"));

    let inside = &c.json("address show dev eth0")[0];
    assert_eq!(inside["ifindex"], port.container_ifindex);
    assert_eq!(inside["mtu"], 1400);
    assert_eq!(inside["address"], MAC.to_string());
    assert!(
        inside["flags"]
            .as_array()
            .unwrap()
            .contains(&"LOWER_UP".into())
    );
    let link_local = MAC.link_local().to_string();
    for (address, prefix) in [("10.0.0.2", 24), ("fd00::2", 64), (link_local.as_str(), 64)] {
        let found = inside["addr_info"].as_array().unwrap();
        let found = found.iter().find(|a| a["local"] == address);
        let found = found.unwrap_or_else(|| panic!("no {address} in {inside}"));
        assert_eq!(found["prefixlen"], prefix);
        assert!(found.get("tentative").is_none(), "{found}");
    }
    let route = &c.json("route show default")[0];
    assert_eq!(
        (&route["gateway"], &route["dev"]),
        (&"10.0.0.1".into(), &"eth0".into())
    );
    let lo = &c.json("link show dev lo")[0];
    assert!(
        lo["flags"].as_array().unwrap().contains(&"UP".into()),
        "{lo}"
    );

    h.ip("address add 10.0.0.1/24 dev ovp-1");
    h.exec(&["ping", "-c1", "-W2", "10.0.0.2"]);
}

#[test]
fn a_port_keeps_the_default_route_that_is_there() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let addrs = [[(ip("10.0.0.2"), 24)], [(ip("10.0.1.2"), 24)]];
        let mut first = spec(&netns, "ovp-1", &addrs[0]);
        let gateways = [ip("10.0.0.1")];
        first.gateways = &gateways;
        assert!(host.create_port(&first).await.unwrap().default_route);
        let mut second = spec(&netns, "ovp-2", &addrs[1]);
        second.container_ifname = "eth1";
        let gateways = [ip("10.0.1.1")];
        second.gateways = &gateways;
        assert!(!host.create_port(&second).await.unwrap().default_route);
    });
    let routes = c.json("route show default");
    assert_eq!(routes.as_array().unwrap().len(), 1);
    assert_eq!(routes[0]["dev"], "eth0");
}

#[test]
fn a_container_without_ipv6_stays_so() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    c.exec(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    h.block_on(async || {
        let host = Host::new().unwrap();
        let addrs = [(ip("10.0.0.2"), 24)];
        let port = host
            .create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();
        assert_eq!(port.link_local, None);
        host.delete_link("ovp-1").await.unwrap();
        let addrs = [(ip("fd00::2"), 64)];
        let port = host
            .create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();
        assert_eq!(port.link_local, Some(MAC.link_local()));
    });
}

#[test]
fn an_mtu_below_1280_is_without_ipv6() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let addrs = [(ip("10.0.0.2"), 24)];
        for (host_mtu, container_mtu) in [(2700, 1200), (2100, 600), (600, 600)] {
            let mut small = spec(&netns, "ovp-1", &addrs);
            (small.host_mtu, small.container_mtu) = (host_mtu, container_mtu);
            let gateways = [ip("10.0.0.1")];
            small.gateways = &gateways;
            let port = host.create_port(&small).await.unwrap();
            assert_eq!((port.link_local, port.default_route), (None, true));
            let inside = &c.json("address show dev eth0")[0];
            assert_eq!(inside["mtu"], container_mtu);
            assert_eq!(inside["addr_info"].as_array().unwrap().len(), 1, "{inside}");
            let host_end = &h.json("address show dev ovp-1")[0];
            assert_eq!(host_end["addr_info"].as_array().unwrap().len(), 0);
            h.ip("address add 10.0.0.1/24 dev ovp-1");
            h.exec(&["ping", "-c1", "-W2", "10.0.0.2"]);
            assert!(host.delete_link("ovp-1").await.unwrap());
        }

        // What was asked for by name is not left out silently.
        let both = [(ip("10.0.0.2"), 24), (ip("fd00::2"), 64)];
        let mut small = spec(&netns, "ovp-1", &both);
        small.container_mtu = 1200;
        let error = host.create_port(&small).await.unwrap_err();
        assert!(matches!(error, Error::NoIpv6 { mtu: 1200, .. }), "{error}");
        assert!(!h.has_link("ovp-1") && !c.has_link("eth0"));
        small.container_mtu = 1280;
        assert!(host.create_port(&small).await.unwrap().link_local.is_some());

        // The punt pair too.
        host.create_punt_pair("ovl-near", "ovl-far", 600, 1, OWNER)
            .await
            .unwrap();
    });
}

/// The kernel takes the mark only in a second request.
#[test]
fn a_port_whose_maker_was_killed_before_its_mark_is_ours() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        h.ip(&format!(
            "link add ovp-1 group {BIRTH_MARK} type veth peer name other"
        ));
        assert!(!host.delete_owned("ovp-1", "another").await.unwrap());
        let ours = host.links_owned_by(OWNER).await.unwrap();
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert!(host.delete_owned("ovp-1", OWNER).await.unwrap());

        // Once it has its mark, that alone counts.
        let addrs = [(ip("10.0.0.2"), 24)];
        host.create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();
        let port = host.link("ovp-1").await.unwrap().unwrap();
        assert_eq!((port.alias.as_deref(), port.group), (Some(OWNER), 0));
    });
}

#[test]
fn only_marked_interfaces_are_ours() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.ip("link add ovp-tap0 type veth peer name ovp-tap1");
    h.ip("link add ovp-br0 type bridge");
    h.exec(&["ip", "link", "set", "ovp-br0", "alias", OWNER]);
    h.block_on(async || {
        let host = Host::new().unwrap();
        let addrs = [(ip("10.0.0.2"), 24)];
        let mut theirs = spec(&netns, "ovp-2", &addrs);
        (theirs.owner, theirs.container_ifname) = ("overlay-dp test 2", "eth1");
        host.create_port(&theirs).await.unwrap();
        host.create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();

        let ours = host.links_owned_by(OWNER).await.unwrap();
        let names: Vec<&str> = ours.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["ovp-1"]);
        for name in ["ovp-tap0", "ovp-2", "nope"] {
            assert!(!host.delete_owned(name, OWNER).await.unwrap(), "{name}");
        }
        assert!(h.has_link("ovp-tap0") && h.has_link("ovp-2"));
        assert!(host.delete_owned("ovp-1", OWNER).await.unwrap());
        assert!(!h.has_link("ovp-1") && !c.has_link("eth0"));

        // A port that can't be marked is undone.
        let long = "x".repeat(256);
        let mut bad = spec(&netns, "ovp-1", &addrs);
        bad.owner = &long;
        host.create_port(&bad).await.unwrap_err();
        assert!(!h.has_link("ovp-1") && !c.has_link("eth0"));
    });
}

#[test]
fn a_failed_port_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let addrs = [(ip("10.0.0.2"), 24)];
        host.create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();

        let taken = host
            .create_port(&spec(&netns, "ovp-2", &addrs))
            .await
            .unwrap_err();
        assert!(matches!(taken, Error::TakenInContainer(_)), "{taken}");
        let mut same = spec(&netns, "ovp-1", &addrs);
        same.container_ifname = "eth1";
        let taken = host.create_port(&same).await.unwrap_err();
        assert!(matches!(taken, Error::TakenOnHost(_)), "{taken}");

        let bad_address = [(ip("10.0.1.2"), 24), (ip("10.0.1.3"), 33)];
        let mut late = spec(&netns, "ovp-3", &bad_address);
        late.container_ifname = "eth3";
        let refused = host.create_port(&late).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("cannot add address 10.0.1.3/33"),
            "{refused}"
        );
        // A report of the whole chain, as anyhow's `{:#}`, has no more to say.
        assert!(std::error::Error::source(&refused).is_none());
        assert_eq!(refused.to_string().matches("os error").count(), 1);

        let mut far = spec(&netns, "ovp-4", &addrs);
        let gateways = [ip("10.9.0.1")];
        far.gateways = &gateways;
        let refused = host.create_port(&far).await.unwrap_err();
        assert!(matches!(refused, Error::GatewayOffLink(_)), "{refused}");

        let refused = host
            .create_port(&spec(&netns, "a/b", &addrs))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::InterfaceName(_)), "{refused}");

        let own = h.netns();
        let refused = host
            .create_port(&spec(&own, "ovp-5", &addrs))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::HostNamespace(_)), "{refused}");
        let mut asked_for = spec(&own, "ovp-5", &addrs);
        (asked_for.in_host, asked_for.container_ifname) = (true, "ovr-5");
        let port = host.create_port(&asked_for).await.unwrap();
        let inner = host.link("ovr-5").await.unwrap().unwrap();
        assert_eq!((inner.mac, inner.up), (Some(MAC), true));
        assert_eq!(inner.peer_index, Some(port.host_ifindex));
        host.delete_owned("ovp-5", OWNER).await.unwrap();
        assert!(!h.has_link("ovr-5"));

        let left: Vec<String> = host
            .links()
            .await
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        assert_eq!(left, ["lo", "ovp-1"]);
        assert!(host.delete_link("ovp-1").await.unwrap());
        assert!(!host.delete_link("ovp-1").await.unwrap());
    });
    let left = c.json("link show");
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
}

#[test]
fn a_dead_container_takes_its_port_along() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let (task, mut events) = Monitor::new().unwrap();
        tokio::spawn(task);
        let addrs = [(ip("10.0.0.2"), 24)];
        let port = host
            .create_port(&spec(&netns, "ovp-1", &addrs))
            .await
            .unwrap();
        assert!(netns.exists());
        c.delete();
        let gone = HostEvent::LinkGone {
            ifindex: port.host_ifindex,
            name: "ovp-1".to_owned(),
        };
        await_event(&mut events, |event| *event == gone).await;

        assert!(!netns.exists());
        let error = host
            .create_port(&spec(&netns, "ovp-2", &addrs))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NamespaceGone(_)), "{error}");
        assert_eq!(host.links_owned_by(OWNER).await.unwrap(), []);
    });
}

/// The agent spawns these on a runtime with several threads.
#[test]
fn futures_can_be_spawned() {
    fn send<T: Send>(_: &T) {}
    #[allow(unused)]
    fn checked(host: &Host, spec: &PortSpec<'_>) {
        send(&host.create_port(spec));
        send(&host.create_punt_pair("", "", 0, 0, ""));
        send(&host.links_owned_by(""));
        send(&host.delete_owned("", ""));
        send(&host.set_container_mtu(spec.netns, "", 0));
        send(&host.resolve(ip(""), ip("")));
        send(&host.find_overlap("::/0".parse().unwrap()));
        send(&overlay_host::Uplink::discover(host, "", None));
    }
}

#[test]
fn many_go_at_once_and_others_stay() {
    if !root() {
        return;
    }
    let (h, c) = (Ns::new("h"), Ns::new("c"));
    let netns = c.netns();
    h.block_on(async || {
        let host = Host::new().unwrap();
        let mut indexes = Vec::new();
        // More than go with one request.
        for number in 0..40 {
            let (name, inside) = (format!("ovp-{number}"), format!("p{number}"));
            let port = PortSpec {
                container_ifname: &inside,
                ..spec(&netns, &name, &[])
            };
            indexes.push(host.create_port(&port).await.unwrap().host_ifindex);
        }
        let pair = host.create_punt_pair("ovl-near", "ovl-far", 1600, 1, OWNER);
        let pair = pair.await.unwrap();
        let stays = indexes.pop().unwrap();
        // One that is gone already, and both ends of a pair.
        host.delete_link("ovp-0").await.unwrap();
        indexes.extend([pair.near_ifindex, pair.far_ifindex]);
        host.delete_links(&indexes, OWNER).await.unwrap();
        let left = host.links_owned_by(OWNER).await.unwrap();
        let left: Vec<u32> = left.into_iter().map(|link| link.index).collect();
        assert_eq!(left, [stays]);
        assert!(h.has_link("lo") && c.has_link("p39") && !c.has_link("p1"));
        host.delete_links(&indexes, OWNER).await.unwrap();
        host.delete_links(&[], OWNER).await.unwrap();
    });
}
