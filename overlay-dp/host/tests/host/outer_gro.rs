//! The idle device on the tunnels' port.

use std::net::UdpSocket;

use overlay_host::{Error, Host, outer_gro};

use crate::support::{Ns, OWNER, root};

const PORT: u16 = 4789;

#[test]
fn it_is_made_once_and_follows_the_port() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.block_on(async || {
        let host = Host::new().unwrap();
        host.create_outer_gro(PORT, OWNER).await.unwrap();
        let first = host.links_owned_by(OWNER).await.unwrap();
        host.create_outer_gro(PORT, OWNER).await.unwrap();
        assert_eq!(host.links_owned_by(OWNER).await.unwrap(), first);
        assert!(first[0].up && first[0].name == outer_gro::name(PORT));

        host.create_outer_gro(5000, OWNER).await.unwrap();
        assert!(!h.has_link("ovl-gro-4789") && h.has_link("ovl-gro-5000"));
        let error = host.create_outer_gro(5000, "another").await.unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");

        let indexes: Vec<u32> = host.links_owned_by(OWNER).await.unwrap()[..]
            .iter()
            .map(|link| link.index)
            .collect();
        host.delete_links(&indexes, OWNER).await.unwrap();
        assert!(!h.has_link("ovl-gro-5000"));
    });
}

#[test]
fn a_port_that_is_taken() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let taken = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        let error = host.create_outer_gro(PORT, OWNER).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EADDRINUSE), "{error}");
        assert!(!h.has_link("ovl-gro-4789"));
        drop(taken);
        host.create_outer_gro(PORT, OWNER).await.unwrap();
        let error = UdpSocket::bind(("127.0.0.1", PORT)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    });
}

/// Whoever reaches the port where our programs are not must not reach the host's own stack.
#[test]
fn what_reaches_it_goes_no_further() {
    if !root() {
        return;
    }
    let h = Ns::new("h");
    h.ip("link set lo up");
    h.block_on(async || {
        let host = Host::new().unwrap();
        let received = |name: &str| {
            let link = h.json(&format!("-s link show {name}"));
            link[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        };
        host.create_outer_gro(PORT, OWNER).await.unwrap();
        send_vxlan();
        assert_eq!(received("ovl-gro-4789"), 0);

        // A device as it would be otherwise takes every one of them.
        host.delete_link("ovl-gro-4789").await.unwrap();
        h.ip("link add other type vxlan external dstport 4789 nolearning");
        h.ip("link set other up");
        send_vxlan();
        assert_eq!(received("other"), 3);
    });
}

/// Broadcasts, on several VNIs, to the loopback address. They are there when the call returns.
fn send_vxlan() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for vni in [0, 1, 4096_u32] {
        let mut frame = vec![8, 0, 0, 0];
        frame.extend((vni << 8).to_be_bytes());
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        frame.extend([0; 46]);
        socket.send_to(&frame, ("127.0.0.1", PORT)).unwrap();
    }
}
