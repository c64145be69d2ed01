//! Frames that come in on a running agent's uplink, many at a time: the agent's own uplink program,
//! loaded once more over the same maps, run by the kernel on frames that go where it says
//! (BPF_F_TEST_XDP_LIVE_FRAMES).

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::programs::{Program, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use overlay_common::layout::names;
use overlay_common::outer::OuterV4;
use overlay_common::wire::Mac;
use overlay_dp::bpf::Bpf;
use overlay_dp::instance::Instance;
use overlay_lab::{Container, Host};

/// Frames between two looks of the kernel at what else is to be done.
const BATCH: u32 = 64;

/// The uplink program of a host's agent.
pub struct Injector {
    bpf: Bpf,
    ifindex: u32,
    frame: Vec<u8>,
}

impl Injector {
    /// For an agent with `--datapath xdp`. What comes in is a broadcast of `from`, behind `vtep`.
    pub fn new(host: &Host, vtep: Ipv4Addr, vni: u32, from: &Container) -> Result<Injector> {
        let pins = Instance::new(&host.instance)?.pin_dir();
        let mut bpf = Bpf::load(&pins, false)?;
        xdp(&mut bpf)?.load()?;
        let link = host.ns.run("ip -o link show eth0")?;
        let ifindex = link.split(':').next().map(str::parse);
        Ok(Injector {
            bpf,
            ifindex: ifindex.context("eth0 has no ifindex")??,
            frame: broadcast(host.ip, vtep, vni, from)?,
        })
    }

    /// Lets so many come in. To be called inside of the host's namespace.
    pub fn run(&mut self, count: u32) -> Result<()> {
        let mut context = [0; 24];
        let len = u32::try_from(self.frame.len())?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        context[4..8].copy_from_slice(&len.to_ne_bytes());
        context[12..16].copy_from_slice(&self.ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        xdp(&mut self.bpf)?.test_run(options)?;
        Ok(())
    }
}

fn xdp(bpf: &mut Bpf) -> Result<&mut Xdp> {
    match bpf.ebpf_mut().program_mut(names::UPLINK_XDP) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => anyhow::bail!("the object has no program {}", names::UPLINK_XDP),
    }
}

/// A datagram of 64 bytes to all, in VXLAN.
fn broadcast(to: Ipv4Addr, vtep: Ipv4Addr, vni: u32, from: &Container) -> Result<Vec<u8>> {
    let std::net::IpAddr::V4(ip) = from.ip else {
        anyhow::bail!("{} is no IPv4 address", from.ip);
    };
    let mut mac: Mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(from.mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let builder = etherparse::PacketBuilder::ethernet2(mac, [0xff; 6])
        .ipv4(ip.octets(), Ipv4Addr::BROADCAST.octets(), 64)
        .udp(9, 9);
    let mut inner = Vec::new();
    builder.write(&mut inner, &[0x5a; 22])?;
    let outer = OuterV4 {
        dst_mac: [2; 6],
        src_mac: [4; 6],
        src: vtep.octets(),
        dst: to.octets(),
        tos: 0,
        src_port: 50_000,
        dst_port: 4789,
        vni,
    };
    Ok([&outer.to_bytes(u32::try_from(inner.len())?)[..], &inner].concat())
}
