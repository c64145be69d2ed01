//! Links, offloads, namespaces, and the kernel's news.
//!
//! ```text
//!     host (ohp-…-h)
//!       ovl-near ── veth ── ovl-far
//!       v0 ──────── veth ── v1
//! ```

use overlay_core::model::MacAddr;
use overlay_host::offload::{self, Offload};
use overlay_host::{Error, Host, HostEvent, Monitor, Netns, NetnsRef};

use crate::support::{BIRTH_MARK, Ns, OWNER, await_event, drain, ip, root, run};

#[test]
fn the_punt_pair_is_made_once() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let first = host
            .create_punt_pair("ovl-near", "ovl-far", 1600, 1, OWNER)
            .await
            .unwrap();
        let again = host
            .create_punt_pair("ovl-near", "ovl-far", 1700, 1, OWNER)
            .await
            .unwrap();
        assert_eq!(first, again);
        for name in ["ovl-near", "ovl-far"] {
            let link = host.link(name).await.unwrap().unwrap();
            assert!(link.up && link.carrier && link.mtu == 1700, "{link:?}");
            assert_eq!(link.alias.as_deref(), Some(OWNER));
            let addresses = &h.json(&format!("address show dev {name}"))[0]["addr_info"];
            assert_eq!(addresses.as_array().unwrap().len(), 0);
        }

        assert_eq!(host.links_owned_by(OWNER).await.unwrap().len(), 2);

        // Two of ours that are veths, but not each other's peers, are replaced.
        host.delete_link("ovl-near").await.unwrap();
        h.ip("link add ovl-near type veth peer name other-1");
        h.ip("link add ovl-far type veth peer name other-2");
        for name in ["ovl-near", "ovl-far"] {
            h.exec(&["ip", "link", "set", name, "alias", OWNER]);
        }
        let new = host
            .create_punt_pair("ovl-near", "ovl-far", 1600, 1, OWNER)
            .await
            .unwrap();
        assert_ne!(first, new);
        assert!(!h.has_link("other-1") && !h.has_link("other-2"));

        // So are those whose maker was killed before it had marked both.
        host.delete_link("ovl-near").await.unwrap();
        h.ip(&format!(
            "link add ovl-near group {BIRTH_MARK} type veth peer name ovl-far group {BIRTH_MARK}"
        ));
        h.exec(&["ip", "link", "set", "ovl-near", "alias", OWNER]);
        host.create_punt_pair("ovl-near", "ovl-far", 1600, 1, OWNER)
            .await
            .unwrap();
        for name in ["ovl-near", "ovl-far"] {
            let link = host.link(name).await.unwrap().unwrap();
            assert_eq!((link.alias.as_deref(), link.group), (Some(OWNER), 0));
        }

        // One that is something else is someone else's, whatever it is called.
        host.delete_link("ovl-near").await.unwrap();
        h.ip("link add ovl-far type bridge");
        let error = host
            .create_punt_pair("ovl-near", "ovl-far", 1600, 1, OWNER)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
        assert!(h.has_link("ovl-far") && !h.has_link("ovl-near"));
    });
}

#[test]
fn the_punt_pair_of_another_is_left_alone() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let make = async |owner| host.create_punt_pair("ovl-near", "ovl-far", 1600, 1, owner).await;
        let theirs = make("another").await.unwrap();
        let error = make(OWNER).await.unwrap_err().to_string();
        assert!(
            error.starts_with("interface 'ovl-near' is 'another', another agent's or a user's"),
            "{error}"
        );
        assert_eq!(make("another").await.unwrap(), theirs);

        // A mark on one end alone is not enough: neither goes.
        h.exec(&["ip", "link", "set", "ovl-near", "alias", OWNER]);
        let error = make(OWNER).await.unwrap_err();
        assert!(
            matches!(&error, Error::NotOurs { name, alias: Some(a) } if name == "ovl-far" && a == "another"),
            "{error}"
        );
        assert!(h.has_link("ovl-near") && h.has_link("ovl-far"));

        // Nor is a name: a user's veth has no mark at all.
        host.delete_link("ovl-near").await.unwrap();
        h.ip("link add ovl-near type veth peer name ovl-far");
        let error = make(OWNER).await.unwrap_err();
        assert!(matches!(error, Error::NotOurs { alias: None, .. }), "{error}");
        assert!(h.has_link("ovl-near") && h.has_link("ovl-far"));

        // A mark that can't be set leaves no pair that would be taken for a user's next time.
        host.delete_link("ovl-near").await.unwrap();
        make(&"x".repeat(256)).await.unwrap_err();
        assert!(!h.has_link("ovl-near") && !h.has_link("ovl-far"));
    });
}

#[test]
fn offloads_are_set_and_read_back() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.ip("link add v0 type veth peer name v1");
    let shown = |feature: &str| {
        let all = h.exec(&["ethtool", "-k", "v0"]);
        let line = all.lines().find(|l| l.trim().starts_with(feature));
        line.unwrap()
            .trim()
            .trim_start_matches(feature)
            .trim()
            .to_owned()
    };
    for offload in [
        Offload::TxChecksum,
        Offload::Gro,
        Offload::TxVlan,
        Offload::RxVlan,
    ] {
        for on in [false, true, true, false] {
            h.netns()
                .run(|| offload::set("v0", offload, on))
                .unwrap()
                .unwrap();
            assert_eq!(
                h.netns()
                    .run(|| offload::get("v0", offload))
                    .unwrap()
                    .unwrap(),
                on
            );
            let expected = if on { "on" } else { "off" };
            assert_eq!(
                shown(&format!("{}:", offload.name())),
                expected,
                "{offload:?}"
            );
        }
    }
    h.netns()
        .run(|| {
            assert_eq!(offload::driver("v0").unwrap(), "veth");
            let none = offload::get("nope", Offload::Gro).unwrap_err();
            assert_eq!(none.errno(), Some(libc::ENODEV), "{none}");
            assert!(offload::get("a-name-that-is-too-long", Offload::Gro).is_err());
            let fixed = offload::set("lo", Offload::TxChecksum, false).unwrap_err();
            assert!(matches!(fixed, Error::Offload { .. }), "{fixed}");
        })
        .unwrap();
}

#[test]
fn news_of_links_addresses_and_routes() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.block_on(async || {
        let (task, mut events) = Monitor::new().unwrap();
        let task = tokio::spawn(task);
        h.ip("link add v0 mtu 1400 address 02:00:00:00:00:01 type veth peer name v1");
        h.ip("link set v0 up");
        let up = await_event(&mut events, |event| {
            matches!(event, HostEvent::LinkChanged { name, up: true, .. } if name == "v0")
        });
        let HostEvent::LinkChanged { ifindex, mtu, mac, .. } = up.await else {
            unreachable!()
        };
        assert_eq!(mtu, 1400);
        assert_eq!(mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));

        h.ip("address add 192.0.2.1/24 dev v0");
        let mut address = HostEvent::Address {
            ifindex,
            ip: ip("192.0.2.1"),
            added: true,
        };
        await_event(&mut events, |event| *event == address).await;
        h.ip("route add 198.51.100.0/24 dev v0");
        let route = HostEvent::Route("198.51.100.0/24".parse().unwrap());
        await_event(&mut events, |event| *event == route).await;
        h.ip("route add default dev v0");
        let route = HostEvent::Route("0.0.0.0/0".parse().unwrap());
        await_event(&mut events, |event| *event == route).await;
        h.ip("address del 192.0.2.1/24 dev v0");
        if let HostEvent::Address { added, .. } = &mut address {
            *added = false;
        }
        await_event(&mut events, |event| *event == address).await;

        // A flood that waits for nobody is an overrun, and the news goes on after it.
        for flood in ["route add $ip dev v0", "neigh add $ip lladdr 2:0:0:0:0:1 dev v0"] {
            let lines = format!("for i in $(seq 9000); do ip=10.$((i/250)).$((i%250)).1; echo {flood}; done | ip -batch -");
            h.exec(&["sh", "-c", &lines]);
            let told = drain(&mut events).await;
            assert!(told.contains(&HostEvent::Overrun), "{flood}: {}", told.len());
        }
        h.ip("address add 192.0.2.9/24 dev v0");
        let later = HostEvent::Address {
            ifindex,
            ip: ip("192.0.2.9"),
            added: true,
        };
        await_event(&mut events, |event| *event == later).await;

        drop(events);
        task.await.unwrap();
    });
}

#[test]
fn namespaces_are_found_and_told_apart() {
    if !root() {
        return;
    }
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let by_path: NetnsRef = format!("/run/netns/{}", a.name).parse().unwrap();
    assert!(a.netns().is_same(&Netns::open(&by_path).unwrap()));
    assert!(!a.netns().is_same(&b.netns()));
    assert!(!a.netns().is_same(&Netns::current().unwrap()));
    let own = Netns::open(&NetnsRef::Pid(std::process::id())).unwrap();
    assert!(own.is_same(&Netns::current().unwrap()));
    let inside = a.netns().run(|| Netns::current().unwrap()).unwrap();
    assert!(a.netns().is_same(&inside));

    for other in ["/proc/self/ns/mnt", "/etc/passwd", "/dev/null"] {
        let error = Netns::open(&other.parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::NotANamespace(_)), "{other}: {error}");
    }

    // The same name for another namespace is not the same namespace.
    let netns = a.netns();
    let name = a.name.clone();
    let keeper = a.exec(&["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]);
    run("ip", &["netns", "del", &name]);
    run("ip", &["netns", "add", &name]);
    let error = netns.run(|| ()).unwrap_err();
    run("kill", &[keeper.trim()]);
    assert!(matches!(error, Error::NamespaceGone(_)), "{error}");
}
