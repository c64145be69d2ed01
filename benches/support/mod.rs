//! What the benches share: the programs in the kernel, the world that their maps tell of, frames.
//!
//! ```text
//!   OWN 10.255.0.1 (lo) ─┐                           ┌─ endpoint(0), endpoint(2), …
//!                        ├─ 172.31.1.5 ── 192.0.2.1 ─┘
//!   peer 10.255.0.2 (7) ─┘         └───── 192.0.2.2 ─── endpoint(1), endpoint(3), …
//! ```

// Each bench is a crate of its own, and none needs everything.
#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{Program, TestRun, TestRunOptions};
use criterion::Criterion;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use overlay_common::layout::Config;
use overlay_common::outer::OuterV4;
use overlay_common::wire::{Mac, map_v4};
use overlay_core::model::{Endpoint, MacAddr, Multicast, Network, Vni};
use overlay_core::tables::{Local, MapUpdate, NextHop, Tables};
use overlay_dp::bpf::Bpf;

/// The interface that TEST_RUN lets every frame come in on: the loopback.
pub const OWN_PORT: u32 = 1;
pub const PEER_PORT: u32 = 7;
pub const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
pub const VTEP: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 5);
pub const REMOTE_VTEPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
pub const VNI: u32 = 4096;
pub const MTU: u32 = 1450;

/// True when all is only to be run once, to see that it works: by `cargo bench -- --test` and by
/// `cargo test --benches`, which leaves `--bench` out. (Criterion's own rule.)
pub fn test_mode() -> bool {
    let has = |flag| std::env::args().any(|arg| arg == flag);
    has("--test") || !has("--bench")
}

/// Criterion, set so that all benches together take a few minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// False, said loudly, when this process is not root's. With `CI=true` it must be.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "these benches need root, and CI=true forbids to skip them"
        );
        eprintln!("SKIPPED, NOTHING WAS MEASURED: this bench needs root");
    }
    root
}

/// Keeps this thread, and those that it starts, on one CPU; says so when that can't be.
pub fn pin_to_cpu(cpu: usize) {
    let mut only = rustix::thread::CpuSet::new();
    only.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
        eprintln!("can't keep to CPU {cpu}, the times will vary more: {error}");
    }
}

/// The address of a remote endpoint; `number` up to 2^20.
pub fn endpoint_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0002 + number)
}

/// Behind which VTEP it is.
pub fn endpoint_vtep(number: u32) -> Ipv4Addr {
    REMOTE_VTEPS[number as usize % REMOTE_VTEPS.len()]
}

pub const fn mac(ip: Ipv4Addr) -> Mac {
    MacAddr::from_ipv4(ip).0
}

pub fn vni() -> Vni {
    Vni::new(VNI).expect("a VNI")
}

pub fn endpoint(name: &str, ip: Ipv4Addr) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        vni: vni(),
        mac: MacAddr::from_ipv4(ip),
        ips: vec![ip.into()],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

pub fn next_hop() -> NextHop {
    NextHop {
        ifindex: 50,
        src_mac: [0x52, 0x54, 0, 0, 0, 2],
        dst_mac: [0x52, 0x54, 0, 0, 0, 1],
        mtu: MTU,
    }
}

/// The tables of a host with two ports, and `remote` endpoints behind two VTEPs.
pub fn tables(remote: u32) -> Result<Tables> {
    let mut tables = Tables::new(Local {
        vtep: VTEP.into(),
        data_port: 4789,
        esp_port: 4500,
        mtu: MTU,
    })?;
    tables.network_add(Network {
        name: "bench".to_owned(),
        vni: vni(),
        subnet: "10.0.0.0/8".parse()?,
        gateway: Ipv4Addr::new(10, 0, 0, 1).into(),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: Some(Multicast::Flood),
    });
    for vtep in REMOTE_VTEPS {
        tables.vtep_add(vtep.into())?;
        tables.next_hop(vtep.into(), Some(next_hop()));
    }
    tables.port_up(OWN_PORT, &endpoint("own", OWN))?;
    tables.port_up(PEER_PORT, &endpoint("peer", PEER))?;
    for number in 0..remote {
        let endpoint = endpoint(&format!("e{number}"), endpoint_ip(number));
        tables.endpoint_up(endpoint_vtep(number).into(), &endpoint)?;
    }
    Ok(tables)
}

/// The programs of the agent, in the kernel, attached to nothing.
pub struct Programs {
    bpf: Bpf,
}

impl Programs {
    /// Loads them as the agent does, with the content of `tables` in their maps.
    pub fn load(tables: &mut Tables) -> Result<Programs> {
        overlay_host::bpffs::ensure_mounted(Path::new("/sys/fs/bpf"))?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/ovl-bench-{}", std::process::id()));
        let bpf = Bpf::load(&pins, false);
        // The maps live as long as they are open; so nothing stays, however this process ends.
        Bpf::unpin_all(&pins)?;
        let mut programs = Programs { bpf: bpf? };
        for (name, program) in programs.bpf.ebpf_mut().programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => bail!("{name} is of an unknown type"),
            }
            .with_context(|| format!("the kernel refused {name}"))?;
        }
        programs.bpf.set_config(Config {
            vtep: map_v4(VTEP.octets()),
            punt_ifindex: 900,
            data_port: 4789,
            crypt_ifindex: 901,
            esp_port: 4500,
        })?;
        while let Some(update) = tables.poll_update() {
            programs.bpf.apply(update)?;
        }
        Ok(programs)
    }

    pub fn apply(&mut self, update: MapUpdate) -> Result<()> {
        self.bpf.apply(update)
    }

    /// Runs a program on a frame, `repeat` times within one call of the kernel. Returns what the
    /// kernel says one run took.
    ///
    /// The kernel hands what a run leaves of the frame to the next one: only a program that leaves
    /// the frame as it is can be repeated.
    pub fn run(&mut self, program: &str, frame: &[u8], repeat: u32) -> Result<Duration> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::default()
        };
        let result = match self.bpf.ebpf_mut().program(program) {
            Some(Program::Xdp(program)) => program.test_run(options),
            Some(Program::SchedClassifier(program)) => program.test_run(options),
            _ => bail!("the object has no program {program}"),
        };
        Ok(result?.duration)
    }

    /// How often `event` was counted by the programs.
    pub fn count(&self, event: Event) -> Result<u64> {
        let counters = match event {
            Event::Stat(stat) => {
                let all = self.bpf.stats()?;
                all.into_iter()
                    .find(|(which, _)| *which == stat)
                    .map(|(_, count)| count)
            }
            Event::Drop(reason) => {
                let all = self.bpf.drops()?;
                all.into_iter()
                    .find(|(which, _)| *which == reason)
                    .map(|(_, count)| count)
            }
        };
        counters.context("no such counter")
    }

    /// Fails unless `event` was counted exactly `times` since it stood at `before`: what was
    /// measured is what the bench's name says.
    pub fn check(&self, event: Event, before: u64, times: u64) -> Result<()> {
        let counted = self.count(event)? - before;
        ensure!(
            counted == times,
            "{times} runs, but {event:?} counted {counted} times"
        );
        Ok(())
    }
}

/// What a program counts.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Stat(overlay_common::counters::Stat),
    Drop(overlay_common::counters::DropReason),
}

/// A TCP segment from OWN in a frame of `len` bytes.
pub fn tcp_frame(to: Ipv4Addr, len: usize) -> Vec<u8> {
    tcp_between(OWN, to, len)
}

pub fn tcp_between(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4(from.octets(), to.octets(), 64)
        .tcp(40_000, 5201, 1, 65_000);
    let payload = vec![0x5a; len - builder.size(0)];
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).expect("room in a Vec");
    frame
}

/// A frame with a VXLAN stack in front, from a VTEP to this host.
pub fn encapsulated(from: Ipv4Addr, inner: &[u8]) -> Vec<u8> {
    let outer = OuterV4 {
        dst_mac: [2; 6],
        src_mac: [4; 6],
        src: from.octets(),
        dst: VTEP.octets(),
        tos: 0,
        src_port: 50_000,
        dst_port: 4789,
        vni: VNI,
    };
    [&outer.to_bytes(inner.len() as u32)[..], inner].concat()
}

/// OWN asks for an address.
pub fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac(OWN),
        &OWN.octets(),
        &[0; 6],
        &target.octets(),
    );
    let packet = packet.expect("lengths that fit");
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(OWN), [0xff; 6]).arp(packet);
    builder.write(&mut frame).expect("room in a Vec");
    frame
}
