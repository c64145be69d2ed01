//! Multicast goes to the members of a group, by IGMP and MLD, in each datapath.
//!
//! ```text
//!   c1, c4 ─ host1 eth0 172.31.1.5/24 ──┐
//!   c2 ───── host2 eth0 192.168.1.5/24 ─┤ router, which sees what leaves host1
//!   c3 ───── host3 eth0 172.31.2.5/24 ──┘
//!            group 10.0.0.0/24, fd…/64: c1 sends, c2 and c4 join, c3 never does
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    AgentProc, Cluster, Container, Host, Lab, LabSpec, PacketSocket, test, wait_until,
};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SOON: Duration = Duration::from_secs(30);
const GROUP4: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0x1234, 0x5678);
const PORT: u16 = 7000;
/// So many datagrams are sent at a time.
const COUNT: usize = 50;
/// Each begins with it, so that the router can tell them from all else.
const MARKER: &[u8] = b"-- to the members of the group --";

/// Three hosts, of which the first has two containers.
struct World<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    containers: Vec<Container>,
}

impl<'a> World<'a> {
    fn start(lab: &'a Lab, args: &str, create: &str) -> Result<World<'a>> {
        let cluster = Cluster::start(lab, 1, args)?;
        lab.host(1)
            .overlay(&format!("network create group {create}"))?;
        let hosts = [1, 2, 3, 1];
        let spaces = lab.containers().iter().zip(hosts).zip(1..);
        let containers = spaces
            .map(|((ns, host), number)| {
                let name = format!("test.{number}");
                Container::attach(lab.host(host), ns, &name, "--network group")
            })
            .collect::<Result<Vec<_>>>()?;
        overlay_lab::all_reach_each_other(&containers, SOON)?;
        Ok(World {
            lab,
            cluster,
            containers,
        })
    }

    /// The agents, for what every test ends with.
    fn end(mut self) -> Vec<AgentProc> {
        (1..=3).filter_map(|host| self.cluster.take(host)).collect()
    }

    fn c(&self, number: usize) -> &Container {
        &self.containers[number - 1]
    }

    fn join(&self, number: usize, group: IpAddr) -> Result<UdpSocket> {
        let container = self.c(number);
        let socket = container.ns.within(|| {
            let socket = UdpSocket::bind((group, PORT))?;
            match group {
                IpAddr::V4(group) => {
                    let IpAddr::V4(own) = container.ip else {
                        anyhow::bail!("no IPv4 address");
                    };
                    socket.join_multicast_v4(&group, &own)?;
                }
                IpAddr::V6(group) => socket.join_multicast_v6(&group, interface()?)?,
            }
            Ok(socket)
        })?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Waits until `host` knows just these members of a group: containers of its own, and hosts.
    fn wait_members(&self, host: usize, group: IpAddr, wanted: &[&str]) -> Result<()> {
        let mut seen = Vec::new();
        let what = format!("host{host} knows {wanted:?} in {group}");
        wait_until(&what, SOON, || {
            seen = members(self.lab.host(host), group).unwrap_or_default();
            seen == wanted
        })
        .with_context(|| format!("it knows {seen:?}"))
    }

    /// c1 sends to the group. Returns how many of the datagrams were on host1's uplink, to host2
    /// and to host3.
    fn send(&self, group: IpAddr) -> Result<[usize; 2]> {
        let tap = PacketSocket::open(self.lab.router(), "to-host1")?;
        let socket = self.sender(group)?;
        for number in 0..COUNT {
            let message = [MARKER, &number.to_be_bytes()].concat();
            socket.send_to(&message, SocketAddr::new(group, PORT))?;
            std::thread::sleep(Duration::from_millis(2));
        }
        let marked = |frame: &[u8]| frame.windows(MARKER.len()).any(|part| part == MARKER);
        let all = tap.collect(4 * COUNT, Duration::from_millis(500), marked)?;
        let to = |host: usize| {
            let ip = self.lab.host(host).ip.octets();
            all.iter().filter(|frame| frame[30..34] == ip).count()
        };
        Ok([to(2), to(3)])
    }

    fn sender(&self, group: IpAddr) -> Result<UdpSocket> {
        let container = self.c(1);
        container.ns.within(|| {
            let any: IpAddr = match group {
                IpAddr::V4(_) => container.ip,
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            // The kernel takes the interface of the default route for a site's groups.
            Ok(UdpSocket::bind((any, 0))?)
        })
    }
}

/// Of `eth0` in this thread's namespace.
fn interface() -> Result<u32> {
    let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
    let line = text.lines().find(|line| line.ends_with(" eth0"));
    let field = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(u32::from_str_radix(field.context("no eth0")?, 16)?)
}

fn members(host: &Host, group: IpAddr) -> Result<Vec<String>> {
    let rows = host.overlay_json("mdb show --network group")?;
    let rows = rows.as_array().context("no list")?.iter();
    let of_group = rows.filter(|row| row["group"] == group.to_string());
    let name = |row: &serde_json::Value| {
        let name = row["container"].as_str().or(row["host_name"].as_str());
        name.map(str::to_owned)
    };
    let mut names: Vec<String> = of_group.filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// How many have arrived within half a second.
fn received(socket: &UdpSocket) -> usize {
    let deadline = Instant::now() + Duration::from_millis(500);
    let (mut count, mut buffer) = (0, [0; 2048]);
    while Instant::now() < deadline && count < COUNT {
        match socket.recv(&mut buffer) {
            Ok(len) => count += usize::from(buffer[..len].starts_with(MARKER)),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    count
}

fn counted(host: &Host, reason: &str) -> Result<u64> {
    let status = host.overlay_json("status")?;
    let count = status["drops"][reason].as_u64();
    count.with_context(|| format!("no {reason} in {status}"))
}

fn spec() -> LabSpec {
    LabSpec {
        hosts: 3,
        containers: 4,
        ..LabSpec::default()
    }
}

#[test]
fn xdp() {
    members_alone_get_it("xdp");
}

#[test]
fn tcx() {
    members_alone_get_it("tcx");
}

fn members_alone_get_it(datapath: &str) {
    test(BIN, spec(), |lab| {
        let mut world = World::start(lab, &format!("--datapath {datapath}"), "--ipv6")?;
        for group in [IpAddr::V4(GROUP4), IpAddr::V6(GROUP6)] {
            // In the beginning agents flood, until they have asked.
            wait_until("a group without members goes nowhere", SOON, || {
                world.send(group).is_ok_and(|on_wire| on_wire == [0, 0])
            })?;
            let before = counted(lab.host(1), "no-member")?;
            ensure!(world.send(group)? == [0, 0]);
            let dropped = counted(lab.host(1), "no-member")? - before;
            ensure!(dropped >= COUNT as u64, "only {dropped} were counted");

            let (two, four) = (world.join(2, group)?, world.join(4, group)?);
            world.wait_members(1, group, &["host2", "test.4"])?;
            ensure!(world.send(group)? == [COUNT, 0]);
            ensure!((received(&two), received(&four)) == (COUNT, COUNT));

            // The agent of a host with members begins anew: they are asked, and nothing is lost.
            world.cluster.kill(2);
            world.cluster.restart(2)?;
            // What an agent does not know the sender of yet, it keeps only a few frames of.
            wait_until("host2 has heard of host1 again", SOON, || {
                members(lab.host(2), group).is_ok_and(|all| all.contains(&"host1".to_owned()))
            })?;
            ensure!(world.send(group)? == [COUNT, 0]);
            ensure!(received(&two) == COUNT);
            world.wait_members(2, group, &["host1", "test.2"])?;
            ensure!(world.send(group)? == [COUNT, 0]);
            ensure!(received(&two) == COUNT);
            world.wait_members(1, group, &["host2", "test.4"])?;

            // Who leaves is asked, and has two seconds to answer.
            drop(two);
            world.wait_members(1, group, &["test.4"])?;
            ensure!(world.send(group)? == [0, 0]);
            ensure!(received(&four) == COUNT);
            drop(four);
            world.wait_members(1, group, &[])?;
        }
        for host in lab.hosts() {
            for reason in ["bad-membership", "too-many-groups", "flood-limit"] {
                let count = counted(host, reason)?;
                ensure!(count == 0, "{count} {reason} on {}", host.ns.label());
            }
        }
        Ok(world.end())
    });
}

#[test]
fn what_one_container_sends_is_limited() {
    test(BIN, spec(), |lab| {
        let world = World::start(lab, "--flood-limit 100", "--multicast flood")?;
        let shown = lab.host(2).overlay("network inspect group")?;
        ensure!(
            shown.contains("flood") && shown.contains("(chosen)"),
            "{shown}"
        );
        let group = IpAddr::V4(GROUP4);
        let tap = PacketSocket::open(lab.router(), "to-host1")?;
        let (socket, begin, mut sent) = (world.sender(group)?, Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(1) {
            socket.send_to(MARKER, SocketAddr::new(group, PORT))?;
            sent += 1;
            std::thread::sleep(Duration::from_micros(200));
        }
        // Whatever the machine did meanwhile: a burst of 11, and 100 in a second.
        let most = 11 + 100 * begin.elapsed().as_secs_f64().ceil() as usize;
        let marked = |frame: &[u8]| frame.windows(MARKER.len()).any(|part| part == MARKER);
        let all = tap.collect(4 * sent, Duration::from_millis(500), marked)?;
        ensure!(
            !all.is_empty() && all.len() <= 2 * most,
            "{} of {sent}",
            all.len()
        );
        let dropped = usize::try_from(counted(lab.host(1), "flood-limit")?)?;
        ensure!(dropped >= sent - most, "{dropped} of {sent} are counted");
        // Another one's is its own, and neighbours are found all the same.
        ensure!(world.c(1).reaches(world.c(2)), "unicast goes on");
        Ok(world.end())
    });
}

#[test]
fn a_large_network_carries_none_unless_it_is_told_to() {
    test(BIN, spec(), |lab| {
        let world = World::start(lab, "", "--subnet 10.7.0.0/16")?;
        let made = lab.host(2).overlay_json("network inspect group")?;
        ensure!(
            made[0]["multicast"] == "off" && made[0]["multicast_by_size"] == true,
            "{made}"
        );
        let table = lab.host(3).overlay("network ls")?;
        ensure!(table.contains("off (by size)"), "{table}");
        // All found each other by ARP, but nobody hears of this.
        let four = world.join(4, GROUP4.into())?;
        ensure!(world.send(GROUP4.into())? == [0, 0]);
        ensure!(received(&four) == 0);
        ensure!(counted(lab.host(1), "multicast-off")? >= COUNT as u64);
        lab.host(1)
            .overlay("network create told --subnet 10.8.0.0/16 --multicast snoop")?;
        let told = lab.host(2).overlay_json("network inspect told")?;
        ensure!(
            told[0]["multicast"] == "snoop" && told[0]["multicast_by_size"] == false,
            "{told}"
        );
        Ok(world.end())
    });
}
