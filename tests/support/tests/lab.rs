//! The lab itself, without overlay-dp: what it measures must be right before a test relies on it.
//!
//! ```text
//!   host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2
//! ```

use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlay_lab::{
    Lab, LabSpec, Load, Wire, checksum_errors, iperf3, nstat, ping, start_ping, test, traceroute,
};

#[test]
fn hosts_reach_each_other_through_the_router() {
    test("/bin/true", LabSpec::default(), |lab| {
        let (host1, host2) = (&lab.host(1).ns, &lab.host(2).ns);
        let to: IpAddr = lab.host(2).ip.into();
        let run = start_ping(host1, to, 20, Duration::from_millis(10))?;
        let hops = traceroute(host1, to)?;
        assert_eq!(hops.len(), 2);
        assert_eq!(hops[1], Some(to));
        let stats = run.finish()?;
        assert_eq!((stats.sent, stats.lost()), (20, 0), "{}", stats.output);

        assert_eq!(ping(host1, to, 1, 1472, true)?.lost(), 0);
        let large = ping(host1, to, 1, 1473, true)?;
        assert_eq!(large.lost(), 1, "{}", large.output);

        let tcp = iperf3(host1, host2, to, Load::Tcp, 1)?;
        assert!(tcp.gbit > 0.1, "{tcp:?}");
        let udp = iperf3(
            host1,
            host2,
            to,
            Load::Udp {
                mbit: 10,
                payload: 1000,
            },
            1,
        )?;
        assert!(udp.datagrams > 1000 && udp.gbit > 0.005, "{udp:?}");
        assert_eq!(checksum_errors(host2)?, Vec::<String>::new());
        assert!(nstat(host2, "IcmpInEchos")? >= 21);
        Ok(())
    });
}

#[test]
fn wires_pass_super_packets_or_segments() {
    test("/bin/true", LabSpec::default(), |lab| {
        let (host1, host2) = (&lab.host(1).ns, &lab.host(2).ns);
        // Bytes and packets that have come to the router, and that host2 has got from it.
        let counted = || -> anyhow::Result<[u64; 4]> {
            let count = |ns: &overlay_lab::Ns, link: &str| -> anyhow::Result<[u64; 2]> {
                let shown = ns.run(&format!("ip -j -s link show {link}"))?;
                let rows: serde_json::Value = serde_json::from_str(&shown)?;
                let rx = &rows[0]["stats64"]["rx"];
                Ok(["bytes", "packets"].map(|field| rx[field].as_u64().expect("a counter")))
            };
            let [first, second] = [count(lab.router(), "to-host1")?, count(host2, "eth0")?];
            Ok([first[0], first[1], second[0], second[1]])
        };
        for wire in [Wire::Mtu, Wire::Gso, Wire::MtuGro, Wire::Gso] {
            lab.set_wire(wire)?;
            let before = counted()?;
            iperf3(host1, host2, lab.host(2).ip.into(), Load::Tcp, 1)?;
            let after = counted()?;
            for hop in [0, 2] {
                let (bytes, packets) = (after[hop] - before[hop], after[hop + 1] - before[hop + 1]);
                let average = bytes / packets;
                assert_eq!(average > 1514, wire == Wire::Gso, "{wire}: {average} bytes");
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_broken_heals() {
    let spec = LabSpec {
        hosts: 3,
        containers: 0,
        ..LabSpec::default()
    };
    test("/bin/true", spec, |lab| {
        // Of a datagram each way: which arrive? An answered ping would need both.
        let sockets: Vec<UdpSocket> = lab
            .hosts()
            .iter()
            .map(|host| host.ns.within(|| Ok(UdpSocket::bind((host.ip, 9999))?)))
            .collect::<anyhow::Result<_>>()?;
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        }
        let arrives = |from: usize, to: usize| {
            let sent = sockets[from - 1].send_to(b"x", (lab.host(to).ip, 9999));
            let arrived = sockets[to - 1].recv_from(&mut [0; 9]);
            sent.is_ok() && arrived.is_ok()
        };
        let ways = || -> Vec<(usize, usize)> {
            let pairs = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
            pairs.into_iter().filter(|(a, b)| arrives(*a, *b)).collect()
        };
        assert_eq!(ways().len(), 6);
        lab.cut(&[1], &[1, 2])?;
        assert_eq!(ways(), [(2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]);
        lab.heal()?;
        lab.partition(&[1, 2], &[3])?;
        assert_eq!(ways(), [(1, 2), (2, 1)]);
        lab.heal()?;
        lab.isolate(2)?;
        assert_eq!(ways(), [(1, 3), (3, 1)]);
        lab.heal()?;
        assert_eq!(ways().len(), 6);
        lab.unplug(2)?;
        assert_eq!(ways(), [(1, 3), (3, 1)]);
        lab.plug(2)?;
        overlay_lab::wait_until("the link is up", Duration::from_secs(2), || {
            ways().len() == 6
        })
    });
}

#[test]
fn a_host_without_power_forgets() {
    test("/bin/true", LabSpec::default(), |lab| {
        let (host, to) = (lab.host(2), IpAddr::from(lab.host(2).ip));
        host.ns.run("ip link add veth type veth")?;
        let mut sleeper = host.ns.start("sleep 1000")?;
        lab.power_off(2)?;
        assert!(!host.ns.path().exists());
        overlay_lab::wait_until("its processes end", Duration::from_secs(2), || {
            !sleeper.is_running()
        })?;
        lab.power_on(2)?;
        assert_eq!(host.leftovers()?, Vec::<String>::new());
        assert_eq!(ping(&lab.host(1).ns, to, 1, 56, false)?.lost(), 0);
        Ok(())
    });
}

#[test]
fn leftovers_are_seen() {
    test("/bin/true", LabSpec::default(), |lab| {
        let host = lab.host(1);
        assert_eq!(host.leftovers()?, Vec::<String>::new());
        host.ns
            .run("ip link add ovp-test type veth peer name ovl-test")?;
        host.ns.run("tc qdisc add dev eth0 clsact")?;
        let listener = host.ns.start("iperf3 --server")?;
        let found = || host.leftovers().unwrap().join("; ");
        overlay_lab::wait_until("it listens", Duration::from_secs(5), || {
            found().contains("5201")
        })?;
        for what in [
            "interface ovp-test",
            "interface ovl-test",
            "clsact on \"eth0\"",
        ] {
            assert!(found().contains(what), "{}", found());
        }
        drop(listener);
        Ok(())
    });
}

#[test]
fn nothing_is_left_of_a_lab() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a lab needs root");
        return;
    }
    let lab = Lab::new(&LabSpec::default(), Path::new("/bin/true")).unwrap();
    let id = lab.id().to_owned();
    let there = || {
        ["/run/netns", "/run/overlay-lab"]
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(&id)
            })
            .count()
    };
    let mut sleeper = lab.c(1).start("sleep 1000").unwrap();
    // As a container of Docker's is: in a namespace and a control group that others have made.
    let mut guest = lab.c(1).start("unshare --net sleep 1000").unwrap();
    overlay_lab::wait_until("it has its own", Duration::from_secs(2), || {
        // Not this process's any more, nor the lab's.
        let others = ["/proc/self/ns/net".into(), lab.c(1).path()];
        !others.map(inode).contains(&inode(of_process(guest.pid())))
    })
    .unwrap();
    assert!(lab.adopt("own", std::process::id()).is_err());
    let adopted = lab.adopt("guest", guest.pid()).unwrap();
    assert!(!adopted.run("ip -br link").unwrap().contains("UP"));
    let groups = cgroups_root().join(format!("{id}-guest"));
    std::fs::create_dir_all(groups.join("inner")).unwrap();
    // Six namespaces, a lock and a directory.
    assert_eq!(there(), 8);
    drop(lab);
    assert_eq!(there(), 0);
    assert!(!groups.exists());
    overlay_lab::wait_until("its processes end", Duration::from_secs(2), || {
        !sleeper.is_running() && !guest.is_running()
    })
    .unwrap();
}

fn of_process(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

fn inode(file: PathBuf) -> u64 {
    std::fs::metadata(file).unwrap().ino()
}

/// Where a control group can be made, of whichever version.
fn cgroups_root() -> &'static Path {
    let one_kind = Path::new("/sys/fs/cgroup/pids");
    if one_kind.is_dir() {
        return one_kind;
    }
    Path::new("/sys/fs/cgroup")
}
