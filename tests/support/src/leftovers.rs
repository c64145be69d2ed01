//! What an agent has left behind on a host.

use std::os::fd::RawFd;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Host;
use crate::remove::names_in;

/// `enum bpf_attach_type` of linux/bpf.h.
const TCX: [(&str, u32); 2] = [("ingress", 46), ("egress", 47)];

impl Host {
    /// All interfaces, programs, pins, sockets and namespaces that an agent has made on this host
    /// and that are still there. The state that a later `attach` starts from is not among them.
    ///
    /// # Errors
    /// When that can't be found out.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for link in json(&self.ns.run("ip -j link show")?)? {
            let name = link["ifname"].as_str().unwrap_or_default();
            if name != "lo" && name != "eth0" {
                found.push(format!("interface {name}"));
            }
            if !link["xdp"].is_null() {
                found.push(format!("XDP program on {name}"));
            }
            let index = link["ifindex"]
                .as_u64()
                .and_then(|index| u32::try_from(index).ok());
            for (direction, attach_type) in TCX {
                let index = index.context("a link without index")?;
                if self
                    .ns
                    .within(move || Ok(tcx_programs(index, attach_type)))?
                    > 0
                {
                    found.push(format!("tcx {direction} program on {name}"));
                }
            }
        }
        for qdisc in json(&self.ns.run("tc -j qdisc show")?)? {
            if qdisc["kind"] == "clsact" {
                found.push(format!("clsact on {}", qdisc["dev"]));
            }
        }
        // Without nft there can be no table.
        if let Ok(tables) = self.ns.run("nft list tables") {
            let ours = tables.lines().filter(|line| line.contains("overlay-dp"));
            found.extend(ours.map(|line| format!("nftables {line}")));
        }
        if let Ok(rules) = self.ns.run("iptables -S FORWARD") {
            let ours = rules.lines().filter(|line| line.contains("overlay-dp"));
            found.extend(ours.map(|line| format!("iptables {line}")));
        }
        for dir in ["/sys/fs/bpf/overlay-dp", "/run/overlay-dp"] {
            let dir = Path::new(dir).join(&self.instance);
            found.extend(names_in(&dir).map(|name| format!("{}/{name}", dir.display())));
        }
        for line in self
            .ns
            .run("ss -Haun")?
            .lines()
            .chain(self.ns.run("ss -Hltn")?.lines())
        {
            found.push(format!(
                "socket {}",
                line.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
        Ok(found)
    }
}

fn json(text: &str) -> Result<Vec<Value>> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

/// How many tcx programs an interface of this thread's namespace has; 0 before Linux 6.6, which
/// has no tcx. bpftool and tc of Debian 12 don't know of them.
fn tcx_programs(ifindex: u32, attach_type: u32) -> u32 {
    const BPF_PROG_QUERY: RawFd = 16;
    /// The `query` part of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        padding: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes at most the given size at the pointer, which is that of
    // a live, exclusively borrowed struct of plain integers. Its embedded pointers are null, which
    // the kernel takes as "only the count".
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if outcome == 0 { query.count } else { 0 }
}
