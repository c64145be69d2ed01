//! The forwarding tables: their rules case by case, then against a naive model.

mod cases;
mod maps;
mod model;
mod policies;
mod services;

use std::net::IpAddr;

use overlay_core::model::{Endpoint, MacAddr, Network, Vni};
use overlay_core::tables::{Local, NextHop, StaticEntry, Tables};

const MTU: u32 = 1450;

fn tables() -> Tables {
    let local = Local {
        vtep: ip("172.31.1.5"),
        data_port: 4789,
        esp_port: 4500,
        mtu: MTU,
    };
    Tables::new(local).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0x42, 10, 0, 0, last])
}

fn network(number: u32) -> Network {
    Network {
        name: format!("net{number}"),
        vni: vni(number),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: ip("10.0.0.1"),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: None,
    }
}

/// An endpoint with the address 10.0.0.`last` and its MAC.
fn endpoint(name: &str, number: u32, last: u8) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        vni: vni(number),
        mac: mac(last),
        ips: vec![
            IpAddr::from([10, 0, 0, last]),
            mac(last).link_local().into(),
        ],
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

fn static_entry(number: u32, last: u8, vtep: &str) -> StaticEntry {
    let Endpoint { vni, mac, ips, .. } = endpoint("", number, last);
    StaticEntry {
        vni,
        mac,
        vtep: ip(vtep),
        ips,
    }
}

fn hop(ifindex: u32) -> NextHop {
    NextHop {
        ifindex,
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        mtu: MTU,
    }
}
