//! A cluster in virtual time: hosts, a clock, and wires that can be cut.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;

use super::config::MAX_PACKET;
use super::*;

struct World {
    now: Instant,
    hosts: Vec<Swim>,
    /// Hosts that nobody reaches.
    cut: BTreeSet<u64>,
    /// Neither takes packets nor looks at its timers.
    asleep: Option<usize>,
    wire: VecDeque<(HostId, HostId, Bytes)>,
    seen: Vec<(u64, Output)>,
}

impl World {
    fn new(count: u64) -> World {
        let host = |n| Swim::new(Id { host: n, life: 1 }, StdRng::seed_from_u64(n));
        World {
            now: Instant::now(),
            hosts: (0..count).map(host).collect(),
            cut: BTreeSet::new(),
            asleep: None,
            wire: VecDeque::new(),
            seen: Vec::new(),
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let (a_id, b_id) = (self.hosts[a].me(), self.hosts[b].me());
        self.hosts[a].connected(b_id, self.now);
        self.hosts[b].connected(a_id, self.now);
        self.settle();
    }

    /// Delivers all packets, and those that answer them.
    fn settle(&mut self) {
        loop {
            for (n, host) in self.hosts.iter_mut().enumerate() {
                while let Some(output) = host.poll() {
                    match output {
                        Output::Send(to, packet) => {
                            assert!(packet.len() <= MAX_PACKET);
                            self.wire.push_back((HostId(n as u64), to, packet));
                        }
                        output => self.seen.push((n as u64, output)),
                    }
                }
            }
            let Some((from, to, packet)) = self.wire.pop_front() else {
                return;
            };
            let hears = self.asleep != Some(to.0 as usize);
            if hears && !self.cut.contains(&from.0) && !self.cut.contains(&to.0) {
                let all = self.hosts.len() as u64;
                let known = |id: HostId| id.0 < all;
                let _ = self.hosts[to.0 as usize].receive(from, &packet, known, self.now);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(n, _)| self.asleep != Some(*n))
            .filter_map(|(_, host)| host.deadline())
            .min()
            .filter(|next| *next <= end)
        {
            self.now = next.max(self.now);
            for (n, host) in self.hosts.iter_mut().enumerate() {
                if self.asleep != Some(n) {
                    host.tick(self.now);
                }
            }
            self.settle();
        }
        self.now = end;
    }

    fn state(&self, of: u64, at: usize) -> Option<State> {
        self.hosts[at]
            .states()
            .find(|(id, _)| id.0 == of)
            .map(|(_, state)| state)
    }
}

#[test]
fn a_dead_host_is_noticed_in_seconds_and_noticed_again_when_it_is_back() {
    let mut world = World::new(4);
    // Who is connected with one hears of all.
    (1..4).for_each(|n| world.connect(0, n));
    world.run(Duration::from_secs(5));
    for at in 0..4 {
        let others: Vec<u64> = (0..4).filter(|of| *of != at).collect();
        for of in others {
            assert_eq!(
                world.state(of, at as usize),
                Some(State::Alive),
                "{of} at {at}"
            );
        }
    }
    world.seen.clear();
    world.cut.insert(3);
    world.run(Duration::from_secs(9));
    for at in 0..3 {
        assert_eq!(world.state(3, at), Some(State::Down), "at {at}");
    }
    let down = |n: u64, output: &Output| n < 3 && matches!(output, Output::Down(id) if id.0 == 3);
    assert_eq!(
        world
            .seen
            .iter()
            .filter(|(n, output)| down(*n, output))
            .count(),
        3
    );

    // Back in the same process: it takes up a new life when it hears that it was down.
    world.seen.clear();
    world.cut.clear();
    world.connect(0, 3);
    world.run(Duration::from_secs(5));
    for at in 0..3 {
        assert_eq!(world.state(3, at), Some(State::Alive), "at {at}");
    }
    assert!(world.hosts[3].me().life > 1);
}

#[test]
fn a_removed_host_is_down() {
    let mut world = World::new(2);
    world.connect(0, 1);
    world.hosts[0].remove(HostId(1), world.now);
    world.hosts[0].remove(HostId(77), world.now);
    assert_eq!(world.state(1, 0), Some(State::Down));
}

#[test]
fn who_is_suspected_hears_it_from_whom_suspects_it_and_answers_at_once() {
    let mut world = World::new(2);
    world.connect(0, 1);
    world.run(Duration::from_secs(1));
    // Nothing gets through for as long as it takes to be suspected.
    world.cut.insert(1);
    while world.state(1, 0) != Some(State::Suspect) {
        world.run(Duration::from_millis(5));
    }
    world.cut.clear();
    world.run(ACCUSE_EVERY);
    assert_eq!(world.state(1, 0), Some(State::Alive));
    assert_eq!(world.hosts[0].accusations(), 1);
    assert_eq!(world.hosts[1].me().life, 1, "it was never down");
    world.run(Duration::from_secs(5));
    assert!(world.hosts.iter().all(|host| host.accused.is_empty()));
    let down = |(_, output): &(u64, Output)| matches!(output, Output::Down(_));
    assert!(!world.seen.iter().any(down));
}

#[test]
fn two_hosts_find_each_other_again() {
    let mut world = World::new(2);
    world.connect(0, 1);
    world.cut.insert(1);
    world.run(Duration::from_secs(3));
    let both = |world: &World| [world.state(1, 0), world.state(0, 1)];
    assert_eq!(both(&world), [Some(State::Down); 2]);
    world.cut.clear();
    world.run(2 * REVIVE_EVERY);
    assert_eq!(both(&world), [Some(State::Alive); 2]);
}

#[test]
fn who_was_asleep_takes_nobody_for_dead() {
    let mut world = World::new(3);
    world.connect(0, 1);
    world.connect(0, 2);
    world.run(Duration::from_secs(2));
    world.seen.clear();
    // Host 0 is stopped; what was sent to it lies in its socket, and comes after its timers.
    world.asleep = Some(0);
    world.run(Duration::from_secs(1));
    world.asleep = None;
    let now = world.now;
    world.hosts[0].tick(now);
    world.settle();
    world.run(Duration::from_secs(3));
    let down = |(n, output): &(u64, Output)| *n == 0 && matches!(output, Output::Down(_));
    assert!(!world.seen.iter().any(down), "{:?}", world.seen);
    assert_eq!(world.state(0, 1), Some(State::Alive));
}

/// What host 1 sends to host 0 when it meets it.
fn a_packet() -> (Swim, Bytes) {
    let mut sender = Swim::new(Id { host: 1, life: 1 }, StdRng::seed_from_u64(1));
    let now = Instant::now();
    let met = [2, 3, 0].map(|host| Member::alive(Id { host, life: 1 }));
    let applied = sender
        .foca
        .apply_many(met.into_iter(), true, &mut sender.runtime);
    sender.done(applied, now);
    let gossiped = sender.foca.gossip(&mut sender.runtime);
    sender.done(gossiped, now);
    let packets = std::iter::from_fn(|| sender.poll()).filter_map(|output| match output {
        Output::Send(_, packet) => Some(packet),
        _ => None,
    });
    let packet = packets.max_by_key(Bytes::len).unwrap();
    let receiver = Swim::new(Id { host: 0, life: 1 }, StdRng::seed_from_u64(0));
    (receiver, packet)
}

fn sifted(from: u64, packet: &[u8], known: impl Fn(HostId) -> bool) -> Option<Bytes> {
    let me = Id { host: 0, life: 1 };
    sift(HostId(from), packet, known, me).map(|sifted| sifted.packet)
}

#[test]
fn gossip_makes_no_members_and_nobody_speaks_for_another() {
    let (_, packet) = a_packet();
    assert_eq!(sifted(2, &packet, |_| true), None, "in another's name");
    let all = sifted(1, &packet, |_| true).unwrap();
    assert_eq!(all, packet, "unchanged when all are known");
    let few = sifted(1, &packet, |id| id.0 < 2).unwrap();
    assert!(few.len() < packet.len());

    let (mut receiver, _) = a_packet();
    let me_too = few.clone();
    let _ = receiver.receive(HostId(1), &me_too, |id| id.0 < 2, Instant::now());
    let known: Vec<u64> = receiver.states().map(|(id, _)| id.0).collect();
    assert!(!known.contains(&2) && !known.contains(&3), "{known:?}");
}

proptest! {
    #[test]
    fn any_packet_is_survived(
        noise: Vec<u8>,
        at in any::<prop::sample::Index>(),
        byte: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut receiver, packet) = a_packet();
        let now = Instant::now();
        let _ = receiver.receive(HostId(1), &noise, |_| true, now);
        let mut bent = packet.to_vec();
        let at = at.index(bent.len());
        bent[at] = byte;
        let _ = receiver.receive(HostId(1), &bent, |_| true, now);
        let _ = receiver.receive(HostId(1), &packet[..cut.index(packet.len())], |_| true, now);
        receiver.tick(now + Duration::from_secs(10));
    }
}
