//! What hosts with a valid certificate may say: gossip streams and the failure detector.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_core::facts::{Command, NetworkSpec, Secrets, StateMachine, Want};
use overlay_core::model::{Endpoint, Host, HostId};
use overlay_gossip::swim::{Id, Output};
use overlay_gossip::{Book, Follower, Leader, Swim};
use rand::SeedableRng;
use rand::rngs::StdRng;

const ME: HostId = HostId(1);
const PEER: HostId = HostId(2);
const RETENTION: Duration = Duration::from_secs(600);

fn host(id: HostId) -> Host {
    Host {
        id,
        name: format!("host{}", id.0),
        vtep: [192, 0, 2, id.0 as u8].into(),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager: id == ME,
    }
}

/// Two hosts, a network, and addresses of it leased to each.
fn managers() -> StateMachine {
    let mut managers = StateMachine::new(host(ME), Secrets::default(), [0xfd, 0, 0, 0, 0, 1], 1);
    let spec = NetworkSpec {
        name: "net".to_owned(),
        ..NetworkSpec::default()
    };
    let commands = [
        Command::HostAdd {
            host: host(PEER),
            replace: None,
        },
        Command::NetworkCreate {
            spec,
            avoid: Vec::new(),
        },
    ];
    let mut index = 0;
    let mut agree = |managers: &mut StateMachine, command| {
        index += 1;
        managers
            .apply(index, &command)
            .expect("what managers agree on");
    };
    for command in commands {
        agree(&mut managers, command);
    }
    let vni = managers.facts().networks().next().expect("a network").vni;
    for host in [ME, PEER] {
        let want = Want::Addresses(8);
        agree(&mut managers, Command::Grant { host, vni, want });
    }
    managers
}

fn book(me: HostId, managers: &StateMachine, now: Instant) -> Book {
    let facts = Arc::new(managers.facts().clone());
    let vnis: BTreeSet<_> = facts.networks().map(|network| network.vni).collect();
    let mut book = Book::new(me, facts, 1, RETENTION, now);
    book.set_interest(vnis);
    book
}

/// What is in an input: pieces, each behind its length in two bytes.
fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = input.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (piece, rest) = rest.split_at(len);
        input = rest;
        Some(piece)
    })
}

fn piece(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("a small frame");
    [&len.to_be_bytes(), bytes].concat()
}

/// A stream in each direction, until it is given up: frames whose first byte is even go to the
/// follower.
pub fn streams(input: &[u8]) {
    let now = Instant::now();
    let managers = managers();
    let mut mine = book(ME, &managers, now);
    let (mut follower, mut leader) = (Some(Follower::new(PEER)), Some(Leader::new(PEER)));
    for piece in pieces(input).take(64) {
        let Some((to, frame)) = piece.split_first() else {
            continue;
        };
        if to % 2 == 0 {
            if let Some(stream) = &mut follower
                && stream.receive(frame, &mut mine, now).is_err()
            {
                follower = None;
            }
        } else if let Some(stream) = &mut leader
            && stream.receive(frame).is_err()
        {
            leader = None;
        }
        if let Some(stream) = &mut follower {
            for _ in 0..8 {
                let _ = stream.poll(Id::new(ME, 7), &mine);
            }
        }
        if let Some(stream) = &mut leader {
            for _ in 0..8 {
                let since = |have| managers.since(have);
                let _ = stream.poll(Id::new(ME, 7), &mine, since, now);
            }
        }
        while mine.poll_event().is_some() {}
    }
    // A host speaks for itself only, and with addresses that are leased to it.
    let networks: Vec<_> = mine.facts().networks().map(|network| network.vni).collect();
    for vni in networks {
        assert!(mine.endpoints(vni).iter().all(|(host, _)| *host == PEER));
    }
}

/// Both ends of a stream, as they are when all is well.
pub fn stream_seeds() -> Vec<Vec<u8>> {
    let now = Instant::now();
    let managers = managers();
    let (mut mine, mut its) = (book(ME, &managers, now), book(PEER, &managers, now));
    let network = managers
        .facts()
        .networks()
        .next()
        .expect("a network")
        .clone();
    for offset in 0..40 {
        its.own.publish(Endpoint {
            name: format!("e{offset}"),
            vni: network.vni,
            mac: network.mac_at(offset),
            ips: network.address_at(offset),
            aliases: vec!["alias".to_owned()],
            service: Some("web".to_owned()),
            router: false,
            unready: false,
        });
    }
    let group = |last| overlay_core::multicast::Group::new([239, 1, 1, last].into());
    let groups = (0..9).filter_map(group).collect();
    its.own.set_groups(network.vni, &groups);
    let (mut follower, mut leader) = (Follower::new(PEER), Leader::new(ME));
    let mut to_follower = Vec::new();
    let mut to_leader = Vec::new();
    for round in 0..8 {
        while let Some(frame) = follower.poll(Id::new(ME, 7), &mine) {
            to_leader.push(frame.clone());
            leader.receive(&frame).expect("a good frame");
        }
        let at = now + Duration::from_secs(5) * round;
        let since = |have| managers.since(have);
        while let Some(frame) = leader.poll(Id::new(PEER, 8), &its, since, at) {
            to_follower.push(frame.clone());
            follower
                .receive(&frame, &mut mine, at)
                .expect("a good frame");
        }
    }
    let pack = |kind: u8, frames: &[Vec<u8>]| -> Vec<u8> {
        let pieces = frames
            .iter()
            .map(|frame| piece(&[&[kind], &frame[..]].concat()));
        pieces.collect::<Vec<_>>().concat()
    };
    // What the other one asks is what I ask, but for who it is.
    let mut follower = Follower::new(ME);
    let asks: Vec<_> = std::iter::from_fn(|| follower.poll(Id::new(PEER, 8), &its)).collect();
    vec![
        pack(0, &to_follower),
        pack(1, &to_leader),
        pack(1, &asks),
        [pack(0, &to_follower), pack(1, &asks)].concat(),
    ]
}

fn detector(me: HostId, seed: u64) -> Swim {
    Swim::new(Id::new(me, 1), StdRng::seed_from_u64(seed))
}

/// Datagrams from the peer, some time apart.
pub fn swim(input: &[u8]) {
    let mut now = Instant::now();
    let mut swim = detector(ME, 1);
    swim.connected(Id::new(PEER, 1), now);
    for packet in pieces(input).take(64) {
        let known = |host: HostId| host == ME || host == PEER;
        let _ = swim.receive(PEER, packet, known, now);
        for _ in 0..64 {
            if swim.poll().is_none() {
                break;
            }
        }
        now += Duration::from_millis(100);
        swim.tick(now);
    }
    // Also of an earlier life of this host, which others may still speak of.
    let mut hosts = swim.states().map(|(host, _)| host);
    assert!(hosts.all(|host| host == PEER || host == ME), "a stranger");
}

/// What two that are well say to each other.
pub fn swim_seeds() -> Vec<Vec<u8>> {
    let mut now = Instant::now();
    let (mut one, mut two) = (detector(ME, 1), detector(PEER, 2));
    one.connected(Id::new(PEER, 1), now);
    two.connected(Id::new(ME, 1), now);
    let mut said = Vec::new();
    for _ in 0..40 {
        for _ in 0..8 {
            while let Some(output) = two.poll() {
                if let Output::Send(_, packet) = output {
                    let _ = one.receive(PEER, &packet, |_| true, now);
                    said.push(packet.to_vec());
                }
            }
            while let Some(output) = one.poll() {
                if let Output::Send(_, packet) = output {
                    let _ = two.receive(ME, &packet, |_| true, now);
                }
            }
        }
        now += Duration::from_millis(100);
        one.tick(now);
        two.tick(now);
    }
    let mut seeds: Vec<Vec<u8>> = said.iter().map(|packet| piece(packet)).collect();
    seeds.dedup();
    seeds.truncate(40);
    seeds.push(
        said.iter()
            .take(20)
            .flat_map(|packet| piece(packet))
            .collect(),
    );
    seeds
}
