//! Who belongs to the cluster: tokens, roles, certificates, and the removal of a host.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use overlay_lab::{AgentProc, Cluster, Container, Host, Lab, join_args, test, token, wait_until};

use crate::strangers::{
    CONTROL_PORT, FakeManager, GOSSIP_PORT, Identity, hex, is_welcome, manager_names,
};
use crate::{BIN, HEALED, SECOND, SOON, one_on_each, spec};

/// Where the containers of these tests take datagrams.
const PORT: u16 = 9999;

#[test]
fn tokens_and_roles() {
    test(BIN, spec(4), |lab| {
        let mut cluster = Cluster::start_on(lab, 2, 1, "")?;
        let (host1, host2) = (lab.host(1), lab.host(2));
        let (worker, manager) = (token(host1, false)?, token(host1, true)?);
        let ca = |token: &str| token.split('-').nth(2).map(str::to_owned);
        ensure!(worker != manager && ca(&worker) == ca(&manager));

        host1.overlay("token rotate")?;
        let renewed = token(host1, false)?;
        ensure!(renewed != worker && ca(&renewed) == ca(&worker));
        ensure!(token(host1, true)? == manager, "only one was rotated");
        let attach =
            |token: &str| format!("attach --iface eth0 --join {} --token {token}", host1.ip);
        lab.host(3).overlay_fails(&attach(&worker), &["token"])?;
        lab.host(3)
            .overlay_fails(&attach(&format!("{worker}0")), &["token"])?;
        cluster.join(3, &join_args(host1, false)?)?;
        ensure!(cluster.managers(3)? == [1]);

        host1.overlay("token rotate --manager")?;
        lab.host(4).overlay_fails(&attach(&manager), &["token"])?;
        cluster.join(4, &join_args(host1, true)?)?;
        // Roles, as everybody sees them.
        for number in [1, 2, 3, 4] {
            wait_until("host4 is a manager", SOON, || {
                cluster.managers(number).is_ok_and(|m| m == [1, 4])
            })?;
        }
        host1.overlay_fails("host promote host4", &["host4", "manager"])?;
        host1.overlay("host promote host2")?;
        ensure!(cluster.managers(1)? == [1, 2, 4]);
        // By another one, and by the one that is to go.
        host2.overlay("host demote host1")?;
        host2.overlay("host demote host2")?;
        ensure!(cluster.managers(2)? == [4]);
        lab.host(4).overlay_fails("host demote host4", &["last"])?;
        // Whoever was a manager forgets the cluster's secrets.
        let store = |host: &Host| {
            std::path::Path::new("/var/lib/overlay-dp")
                .join(&host.instance)
                .join("cluster/raft")
        };
        wait_until("the store with the CA's key is removed", SOON, || {
            !store(host1).exists() && !store(host2).exists()
        })?;
        ensure!(store(lab.host(4)).exists());

        let inspected = host1.overlay_json("host inspect host4 host1")?;
        ensure!(inspected[0]["name"] == "host4" && inspected[0]["manager"] == true);
        ensure!(inspected[1]["name"] == "host1" && inspected[1]["manager"] == false);
        for host in [&inspected[0], &inspected[1]] {
            ensure!(host["certificate_end"].is_u64(), "{host}");
        }
        host1.overlay_fails("host inspect nosuch", &["nosuch"])?;
        host1.overlay_fails("host rm nosuch", &["nosuch"])?;
        host1.overlay_fails("host rm host1", &["detach"])?;
        host1.overlay_fails("host rm host3", &["--force"])?;
        // Who leaves by itself is no member any more.
        lab.host(3).overlay("detach")?;
        wait_until("host3 has left", SOON, || {
            cluster.states(1).is_ok_and(|s| !s.contains_key(&3))
        })?;
        lab.verify_clean(HEALED)
    });
}

#[test]
fn a_token_of_another_cluster_is_refused_before_the_secret_is_sent() {
    test(BIN, spec(2), |lab| {
        let (host1, host2) = (lab.host(1), lab.host(2));
        let fake_identity = Identity::made_up(&manager_names("1"))?;
        let fake = FakeManager::start(&host1.ns, host1.ip, &fake_identity)?;
        let secret: [u8; 16] = *b"\x5e\xc2\xe7secret of us.";
        let join = |ca: &str| {
            let token = format!("OVTKN-1-{ca}-{}", hex(&secret));
            let line = format!("attach --iface eth0 --join {} --token {token}", host1.ip);
            host2.overlay_any(&line)
        };
        // A host of the token's cluster would be told: so the fake one can hear.
        let done = join(&fake_identity.fingerprint())?;
        ensure!(!done.status.success(), "it joined: {}", done.stdout);
        let told = fake.told();
        let has_secret = |told: &[u8]| told.windows(16).any(|window| window == secret);
        ensure!(has_secret(&told), "the fake manager is deaf: {told:02x?}");

        let another = Identity::made_up(&manager_names("2"))?;
        join(&another.fingerprint())?.fails_with(&["another cluster"])?;
        ensure!(fake.told() == told, "it was told something");
        drop(fake);

        // The right CA, but a host that is no manager: any member could wait there for secrets.
        let worker = Identity::made_up(&["1.hosts.overlay-dp".to_owned()])?;
        let fake = FakeManager::start(&host1.ns, host1.ip, &worker)?;
        join(&worker.fingerprint())?.fails_with(&[&host1.ip.to_string()])?;
        ensure!(fake.told().is_empty(), "a worker was told something");
        let left = host2.leftovers()?;
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    });
}

#[test]
fn a_removed_host_is_cut_off_at_once() {
    test(BIN, spec(5), |lab| {
        let mut cluster = Cluster::start_on(lab, 4, 1, "")?;
        let containers = one_on_each(lab, &cluster)?;
        let (c1, c2, c3) = (&containers[0], &containers[1], &containers[2]);
        let revoked = Identity::of(lab.host(3))?;

        // Its agent dies, so that nobody can tell its data path to stop.
        cluster.kill(3);
        let gossip = (lab.host(1).ip, GOSSIP_PORT);
        ensure!(
            is_welcome(&lab.host(3).ns, gossip, Some(&revoked))?,
            "a member is not welcome: so a stranger's refusal would say nothing"
        );
        let sending = Stream::start(c3, &[c1, c2])?;
        wait_until("what it sends arrives", SOON, || {
            sending
                .arrived
                .iter()
                .all(|a| a.since(Instant::now()) < SECOND)
        })?;
        lab.host(1).overlay("host rm --force host3")?;
        let removed = Instant::now();
        thread::sleep(2 * SECOND);
        for arrived in &sending.arrived {
            let late = arrived.last().saturating_duration_since(removed);
            ensure!(
                late < SECOND / 2,
                "{}: a removed host's frames still arrive after {late:?}",
                arrived.name
            );
        }
        drop(sending);
        for number in [1, 2, 4] {
            let tables = lab.host(number).overlay("fdb show --json")?
                + &lab.host(number).overlay("container ls --json")?
                + &lab.host(number).overlay("host ls --json")?;
            ensure!(!tables.contains(&c3.mac), "host{number}: {tables}");
            ensure!(!tables.contains("host3"), "host{number}: {tables}");
        }
        ensure!(drops(lab.host(1), "unknown-vtep")? > 100);
        ensure!(!c1.reaches(c3), "frames still go there");

        strangers_are_not_welcome(lab, &revoked)?;
        strangers_inject_nothing(lab, c1, c2)?;
        removed_agents_end(lab, &mut cluster, c3, &containers[3])?;
        overlay_lab::all_reach_each_other([c1, c2], SOON)?;
        lab.verify_clean(HEALED)
    });
}

/// No certificate, one of another CA in the name of a member, and one of a removed host.
fn strangers_are_not_welcome(lab: &Lab, revoked: &Identity) -> Result<()> {
    let members = lab.host(1).overlay_json("host ls")?;
    let id = members[1]["id"].as_str().context("no id")?;
    let foreign = Identity::made_up(&manager_names(id))?;
    for host in [lab.host(1), lab.host(2)] {
        for (who, identity) in [
            ("nobody", None),
            ("another CA's", Some(&foreign)),
            ("a removed host", Some(revoked)),
        ] {
            let welcome = is_welcome(&lab.host(3).ns, (host.ip, GOSSIP_PORT), identity)?;
            ensure!(!welcome, "{who} gossips with {}", host.ns.label());
        }
    }
    let control = (lab.host(1).ip, CONTROL_PORT);
    let welcome = is_welcome(&lab.host(3).ns, control, Some(&foreign))?;
    ensure!(!welcome, "another CA's host talks with a manager");
    Ok(())
}

/// Host5 is no member. It sends frames of `c2` to `c1`; from host2 they would be taken.
fn strangers_inject_nothing(lab: &Lab, c1: &Container, c2: &Container) -> Result<()> {
    let vni = lab.host(1).overlay_json("network inspect uber-net")?[0]["vni"]
        .as_u64()
        .context("no VNI")?;
    let listening = c1.ns.within(|| Ok(UdpSocket::bind((c1.ip, PORT))?))?;
    listening.set_read_timeout(Some(SECOND / 2))?;
    let frame = vxlan(u32::try_from(vni)?, c2, c1)?;
    let send = |from: &Host| -> Result<bool> {
        let socket = from.ns.within(|| Ok(UdpSocket::bind((from.ip, 0))?))?;
        for _ in 0..10 {
            socket.send_to(&frame, (lab.host(1).ip, 4789))?;
        }
        let arrived = listening.recv_from(&mut [0; 64]).is_ok();
        while arrived && listening.recv_from(&mut [0; 64]).is_ok() {}
        Ok(arrived)
    };
    let before = drops(lab.host(1), "unknown-vtep")?;
    ensure!(!send(lab.host(5))?, "a stranger's frame was delivered");
    let counted = drops(lab.host(1), "unknown-vtep")? - before;
    ensure!(
        counted >= 10,
        "{counted} of 10 frames counted as unknown-vtep"
    );
    // The same frames from where that container is: so they were right.
    ensure!(send(lab.host(2))?, "a member's frame was not delivered");
    Ok(())
}

/// The dead agent of host3 is started again, and host4 is removed while its agent runs.
fn removed_agents_end(
    lab: &Lab,
    cluster: &mut Cluster,
    c3: &Container,
    c4: &Container,
) -> Result<()> {
    if let Ok(mut agent) = lab.start_agent(3, "") {
        // It went on as the member that it was, until a manager told it.
        agent.ended().context("a removed host's agent runs on")?;
    }
    lab.host(1).overlay("host rm --force host4")?;
    let mut agent: AgentProc = cluster.take(4).context("no agent on host4")?;
    agent.ended().context("a removed host's agent runs on")?;
    for (number, container) in [(3, c3), (4, c4)] {
        // What it did to the host is undone, by itself or by this.
        lab.host(number).overlay("detach")?;
        let left = lab.host(number).leftovers()?;
        ensure!(left.is_empty(), "host{number}: {left:#?}");
        let links = container.ns.run("ip -br link show type veth")?;
        ensure!(links.is_empty(), "{}: {links}", container.name);
        // With a new token it may come again, as a new host.
        cluster.join(number, &join_args(lab.host(1), false)?)?;
    }
    cluster.wait_settled(SOON)
}

/// Datagrams from one container to others, 200 each second.
struct Stream<'a> {
    stop: Arc<AtomicBool>,
    arrived: Vec<Arrived<'a>>,
}

/// When the last datagram came in.
struct Arrived<'a> {
    name: &'a str,
    last: Arc<Mutex<Instant>>,
}

impl Arrived<'_> {
    fn last(&self) -> Instant {
        *self.last.lock().unwrap()
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last())
    }
}

impl<'a> Stream<'a> {
    fn start(from: &Container, to: &[&'a Container]) -> Result<Stream<'a>> {
        let stop = Arc::<AtomicBool>::default();
        let sender = from.ns.within(|| Ok(UdpSocket::bind((from.ip, 0))?))?;
        let targets: Vec<IpAddr> = to.iter().map(|container| container.ip).collect();
        let long_ago = Instant::now() - Duration::from_secs(60);
        let arrived = to.iter().map(|container| {
            let socket = container
                .ns
                .within(|| Ok(UdpSocket::bind((container.ip, PORT))?))?;
            socket.set_read_timeout(Some(SECOND / 10))?;
            let last = Arc::new(Mutex::new(long_ago));
            let (seen, ended) = (Arc::clone(&last), Arc::clone(&stop));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    if socket.recv_from(&mut [0; 64]).is_ok() {
                        *seen.lock().unwrap() = Instant::now();
                    }
                }
            });
            let name = container.name.as_str();
            Ok(Arrived { name, last })
        });
        let arrived = arrived.collect::<Result<_>>()?;
        let ended = Arc::clone(&stop);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for ip in &targets {
                    let _ = sender.send_to(b"datagram", (*ip, PORT));
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Ok(Stream { stop, arrived })
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The sockets are closed when their threads have seen that.
        thread::sleep(SECOND / 4);
    }
}

fn drops(host: &Host, reason: &str) -> Result<u64> {
    let status = host.overlay_json("status")?;
    // What was never counted is not listed.
    Ok(status["drops"][reason].as_u64().unwrap_or_default())
}

/// The payload of an outer UDP datagram: a VXLAN header and a datagram from one container to
/// another.
fn vxlan(vni: u32, from: &Container, to: &Container) -> Result<Vec<u8>> {
    let (IpAddr::V4(source), IpAddr::V4(target)) = (from.ip, to.ip) else {
        anyhow::bail!("not IPv4");
    };
    let [_, a, b, c] = vni.to_be_bytes();
    let mut bytes = vec![0x08, 0, 0, 0, a, b, c, 0];
    PacketBuilder::ethernet2(mac(&from.mac)?, mac(&to.mac)?)
        .ipv4(source.octets(), target.octets(), 64)
        .udp(PORT, PORT)
        .write(&mut bytes, b"injected")?;
    Ok(bytes)
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|pair| u8::from_str_radix(pair, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
    bytes.try_into().ok().context("not a MAC address")
}
