//! `overlay-dp verify` finds what was damaged behind the agent's back, and `--repair` mends it.
//!
//! ```text
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2
//!        (all that is damaged)
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Host, LabSpec, Overlay, hex, test, wait_until};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
/// In which a machine with much else to do is done with what it does at once.
const SOON: Duration = Duration::from_secs(10);
/// A MAC, an address and a VTEP that nobody has.
const NOBODY: &str = "02 99 00 00 00 01";
const NOBODYS_IP: [u8; 4] = [10, 0, 0, 99];
const NOBODYS_VTEP: [u8; 4] = [192, 168, 7, 7];

#[test]
fn damage_is_found_and_mended_with_tcx() {
    damage_is_found_and_mended("tcx");
}

#[test]
fn damage_is_found_and_mended_with_xdp() {
    damage_is_found_and_mended("xdp");
}

fn damage_is_found_and_mended(datapath: &str) {
    test(BIN, LabSpec::default(), |lab| {
        let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
        // What comes last of itself: next hops, the host's own ports, rules.
        lab.verify_clean(Duration::from_secs(30))?;
        let bed = Bed {
            host: lab.host(1),
            c1: overlay.c(1),
            c2: overlay.c(2),
        };
        bed.maps()?;
        bed.programs()?;
        bed.container()?;
        bed.interfaces()?;
        Ok(overlay)
    });
}

struct Bed<'a> {
    host: &'a Host,
    c1: &'a Container,
    c2: &'a Container,
}

impl Bed<'_> {
    /// Entries that are missing, wrong, or nobody's.
    fn maps(&self) -> Result<()> {
        let vni = hex(4096_u32.to_ne_bytes());
        let mac = self.c2.mac.replace(':', " ");
        let fdb = |mac: &str| format!("{vni} {mac} 00 00");
        let neighbour = |ip: [u8; 4]| format!("{vni} {}", hex(mapped(ip)));
        let IpAddr::V4(ip) = self.c2.ip else {
            anyhow::bail!("no IPv4 address");
        };
        let (vtep, port) = ([192, 168, 1, 5], self.host.port_ifindex("test.1")?);
        let port = hex(u32::try_from(port)?.to_ne_bytes());
        for (map, key, what) in [
            ("OVL_FDB", fdb(&mac), "FDB entry missing"),
            (
                "OVL_NEIGHBOURS",
                neighbour(ip.octets()),
                "neighbour missing",
            ),
            ("OVL_VTEPS", hex(mapped(vtep)), "VTEP missing"),
            ("OVL_NETWORKS", vni.clone(), "network missing"),
            ("OVL_PORTS", port, "port missing"),
        ] {
            self.damage(map, "maps", what, || self.delete(map, &key))?;
        }
        for (map, key, new, what) in [
            ("OVL_FDB", fdb(&mac), fdb(NOBODY), "FDB entry that nobody"),
            (
                "OVL_NEIGHBOURS",
                neighbour(ip.octets()),
                neighbour(NOBODYS_IP),
                "neighbour that nobody",
            ),
            (
                "OVL_VTEPS",
                hex(mapped(vtep)),
                hex(mapped(NOBODYS_VTEP)),
                "VTEP that nobody",
            ),
        ] {
            let value = self.host.bpf_value(map, &key)?;
            self.damage(map, "maps", what, || self.set(map, &new, &value))?;
        }
        let own = neighbour([10, 0, 0, 1]);
        let wrong = self.host.bpf_value("OVL_NEIGHBOURS", &own)?;
        self.damage("another's MAC", "maps", "neighbour is", || {
            self.set("OVL_NEIGHBOURS", &neighbour(ip.octets()), &wrong)
        })?;
        let first = hex([0; 4]);
        self.damage("OVL_CONFIG", "maps", "configuration", || {
            self.set("OVL_CONFIG", &first, &hex([0; 28]))
        })?;
        self.damage("OVL_XSKS", "maps", "slow path", || {
            self.delete("OVL_XSKS", &first)
        })
    }

    fn set(&self, map: &str, key: &str, value: &str) -> Result<()> {
        let entry = format!("key hex {key} value hex {value}");
        self.host.bpf_map("update", map, &entry).map(drop)
    }

    fn delete(&self, map: &str, key: &str) -> Result<()> {
        let key = format!("key hex {key}");
        self.host.bpf_map("delete", map, &key).map(drop)
    }

    /// Links whose pin is gone, and one that was detached by force behind its pin.
    fn programs(&self) -> Result<()> {
        let port = self.host.port_ifindex("test.1")?;
        for (pin, interface) in [
            (format!("port-{port}-*"), "ovp-"),
            ("uplink-*".to_owned(), "eth0"),
            ("punt-near-*".to_owned(), "ovl-punt"),
            ("punt-far-*".to_owned(), "ovl-agent"),
        ] {
            self.damage(&pin, "kernel", interface, || {
                Ok(std::fs::remove_file(self.host.pin(&pin)?)?)
            })?;
        }
        for (pin, interface) in [
            (format!("port-{port}-*"), "ovp-"),
            ("uplink-*".to_owned(), "eth0"),
        ] {
            self.damage(&format!("detached {pin}"), "kernel", interface, || {
                let pin = self.host.pin(&pin)?;
                let line = format!("bpftool link detach pinned {}", pin.display());
                self.host.ns.run(&line).map(drop)
            })?;
        }
        Ok(())
    }

    /// What somebody has changed inside.
    fn container(&self) -> Result<()> {
        let ns = &self.c1.ns;
        let port = self.host.port_ifindex("test.1")?;
        let links = self.host.ns.run("ip -o link show")?;
        let mut links = links.lines();
        let port = links.find(|line| line.starts_with(&format!("{port}: ")));
        let port = port.and_then(|line| line.split([' ', '@', ':']).nth(2));
        let down = format!("ip link set {} down", port.context("no port")?);
        for (inside, line, what) in [
            (
                true,
                "ip addr del 10.0.0.2/24 dev eth0",
                "has lost 10.0.0.2",
            ),
            (true, "ip link set eth0 down", "is down"),
            (true, "ip link set eth0 mtu 1400", "MTU of 1400"),
            (true, "ip link set eth0 address 02:99:00:00:00:01", "MAC"),
            (false, &down, "is down"),
        ] {
            self.damage(line, "kernel", what, || {
                let ns = if inside { ns } else { &self.host.ns };
                ns.run(line).map(drop)
            })?;
            // Its way out is back as well.
            let route = ns.run("ip route show default")?;
            ensure!(route.contains("via 10.0.0.1 "), "after {line}: '{route}'");
        }
        Ok(())
    }

    /// The agent's own interfaces, and the rules for what leaves.
    fn interfaces(&self) -> Result<()> {
        let ns = &self.host.ns;
        for name in ["ovl-punt", "ovl-agent", "ovl-crypters", "ovl-gro-4789"] {
            self.damage(name, "kernel", name, || {
                ns.run(&format!("ip link set {name} down")).map(drop)
            })?;
        }
        self.damage("a port too many", "kernel", "ovp-0badcafe", || {
            ns.run("ip link add ovp-0badcafe type veth peer name lost")?;
            let owner = format!("overlay-dp:{}", self.host.instance);
            ns.run(&format!("ip link set ovp-0badcafe alias {owner}"))
                .map(drop)
        })?;
        ensure!(!ns.run("ip -br link")?.contains("lost"), "its peer is left");
        self.damage("nftables", "kernel", "ways out", || {
            ns.run("nft flush ruleset").map(drop)
        })
    }

    /// Damages something: `verify` finds it at that place, in these words; `--repair` mends it and
    /// says so; then nothing differs, and the containers reach each other.
    fn damage(
        &self,
        what: &str,
        place: &str,
        words: &str,
        inflict: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        inflict().with_context(|| format!("damaging {what}"))?;
        let found = self.host.differences()?;
        let is_it = |line: &String| line.starts_with(place) && line.contains(words);
        ensure!(
            found.iter().any(is_it),
            "{what}: no '{place}' with '{words}' in {found:#?}"
        );
        self.host.overlay_fails("verify", &["difference"])?;
        let report = self.host.overlay_json("verify --repair")?;
        let rows: Vec<&Value> = report.as_array().into_iter().flatten().collect();
        ensure!(
            !rows.is_empty() && rows.iter().all(|row| row["repaired"] == true),
            "{what} was not repaired: {report:#}"
        );
        let left = self.host.differences()?;
        ensure!(left.is_empty(), "{what}: after its repair {left:#?}");
        for (from, to) in [(self.c1, self.c2), (self.c2, self.c1)] {
            let reaches = wait_until("they reach each other", SOON, || from.reaches(to));
            reaches.with_context(|| format!("after the repair of {what}"))?;
        }
        Ok(())
    }
}

/// An IPv4 address as keys of maps have it.
fn mapped(ip: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(ip).to_ipv6_mapped().octets()
}
