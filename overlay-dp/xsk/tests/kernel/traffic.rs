//! Frames arrive as they were sent, for longer than any ring is, and also after something went wrong.

use std::thread;
use std::time::{Duration, Instant};

use overlay_xsk::{Statistics, XskConfig, XskError};

use crate::lab::{Bound, MTU, PEER, XSK, frame, frame_of, ifindex, in_lab, ip, small};
use crate::sys::{PacketSocket, XdpMode};

fn receives(config: &XskConfig, mode: XdpMode, count: u32, burst: usize) {
    let mut bound = Bound::new(config, mode);
    let peer = PacketSocket::bind(ifindex(PEER));
    let sent: Vec<_> = (0..count).map(frame).collect();
    for burst in sent.chunks(burst) {
        burst.iter().for_each(|frame| peer.send(frame));
        assert!(bound.receive(burst.len()) == burst, "not what was sent");
    }
    assert_eq!(bound.xsk.rx().receive(1, |_| ()), 0);
    let statistics = bound.xsk.statistics().unwrap();
    assert_eq!(
        statistics,
        Statistics {
            tx_ring_empty: statistics.tx_ring_empty,
            ..Default::default()
        }
    );
}

fn sends(config: &XskConfig, mode: XdpMode, count: u32, burst: usize) {
    let mut bound = Bound::new(config, mode);
    let peer = PacketSocket::bind(ifindex(PEER));
    let sent: Vec<_> = (0..count).map(frame).collect();
    for burst in sent.chunks(burst) {
        assert!(burst.iter().all(|frame| bound.queue(frame)));
        bound.flush();
        for frame in burst {
            assert!(peer.receive().as_ref() == Some(frame), "not what was sent");
        }
    }
    let statistics = bound.xsk.statistics().unwrap();
    assert_eq!(
        statistics,
        Statistics {
            tx_ring_empty: statistics.tx_ring_empty,
            ..Default::default()
        }
    );
}

#[test]
fn receives_many_rings_full_native() {
    in_lab(|| receives(&small(), XdpMode::Native, 64 * 50, 48));
}

#[test]
fn receives_many_rings_full_generic() {
    in_lab(|| receives(&small(), XdpMode::Generic, 64 * 50, 48));
}

#[test]
fn receives_many_rings_full_with_default_sizes() {
    in_lab(|| {
        receives(
            &XskConfig::new(ifindex(XSK), 0),
            XdpMode::Native,
            2048 * 4,
            200,
        )
    });
}

#[test]
fn sends_many_rings_full_native() {
    in_lab(|| sends(&small(), XdpMode::Native, 64 * 50, 48));
}

#[test]
fn sends_many_rings_full_generic() {
    in_lab(|| sends(&small(), XdpMode::Generic, 64 * 50, 48));
}

#[test]
fn sends_many_rings_full_with_default_sizes() {
    in_lab(|| {
        sends(
            &XskConfig::new(ifindex(XSK), 0),
            XdpMode::Native,
            2048 * 4,
            200,
        )
    });
}

#[test]
fn sends_the_shortest_and_the_longest_frame() {
    in_lab(|| {
        let mut bound = Bound::new(&small(), XdpMode::Native);
        let peer = PacketSocket::bind(ifindex(PEER));
        for len in [14, 15, MTU + 14] {
            assert!(bound.queue(&frame_of(7, len)));
            bound.flush();
            assert_eq!(peer.receive(), Some(frame_of(7, len)), "{len}");
        }
        // Longer than the link takes: lost, but its buffer is not.
        for _ in 0..1000 {
            assert!(bound.queue(&frame_of(7, MTU + 200)));
            bound.flush();
        }
        assert!(bound.queue(&frame(8)));
        bound.flush();
        assert_eq!(peer.receive(), Some(frame(8)));
    });
}

#[test]
fn echoes_from_within_receive() {
    in_lab(|| {
        let mut bound = Bound::new(&small(), XdpMode::Native);
        let peer = PacketSocket::bind(ifindex(PEER));
        let start = Instant::now();
        for seq in 0..500 {
            peer.send(&frame(seq));
            let (rx, tx) = bound.xsk.split();
            let mut echoed = 0;
            while echoed == 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "{seq}");
                echoed = rx.receive(64, |frame| {
                    let mut out = tx.reserve().unwrap();
                    out.buffer()[..frame.len()].copy_from_slice(frame);
                    out.commit(frame.len()).unwrap();
                });
            }
            assert_eq!(echoed, 1);
            assert_eq!(tx.flush().unwrap(), 0);
            assert!(peer.receive() == Some(frame(seq)));
        }
    });
}

#[test]
fn a_flood_is_counted_and_does_not_starve_what_comes_after() {
    in_lab(|| {
        let mut bound = Bound::new(&small(), XdpMode::Native);
        let peer = PacketSocket::bind(ifindex(PEER));
        for round in 1..=20 {
            (0..200).for_each(|seq| peer.send(&frame(seq)));
            // The oldest are kept: as many as the RX ring holds.
            let expected: Vec<_> = (0..64).map(frame).collect();
            thread::sleep(Duration::from_millis(20));
            assert!(bound.receive(64) == expected, "round {round}");
            assert_eq!(bound.xsk.rx().receive(64, |_| ()), 0);
            // Sending has frames of its own.
            assert!(bound.queue(&frame(round)));
            bound.flush();
            assert!(peer.receive() == Some(frame(round)));
        }
        let statistics = bound.xsk.statistics().unwrap();
        assert_eq!(statistics.rx_ring_full, 20 * (200 - 64), "{statistics:?}");
    });
}

#[test]
fn a_frame_too_long_for_its_buffer_is_dropped_and_counted() {
    in_lab(|| {
        let mut bound = Bound::new(
            &XskConfig {
                frame_size: 2048,
                ..small()
            },
            XdpMode::Native,
        );
        let peer = PacketSocket::bind(ifindex(PEER));
        let longest = frame_of(1, 2048 - 256);
        for _ in 0..300 {
            peer.send(&frame_of(2, 2048 - 256 + 1));
            peer.send(&longest);
            assert!(bound.receive(1) == std::slice::from_ref(&longest));
        }
        let statistics = bound.xsk.statistics().unwrap();
        assert_eq!(
            statistics,
            Statistics {
                rx_dropped: 300,
                ..statistics
            }
        );
        assert_eq!(statistics.rx_ring_full + statistics.ignored_rx_descs, 0);
    });
}

#[test]
fn frames_wait_while_the_link_is_down() {
    in_lab(|| {
        let mut bound = Bound::new(&small(), XdpMode::Native);
        ip(&format!("link set {XSK} down"));
        let queued = (0..1000)
            .take_while(|&seq| bound.queue(&frame(seq)))
            .count();
        assert_eq!(queued, 64, "the TX ring is full, and then there is none");
        let error = bound.xsk.tx().flush().unwrap_err();
        assert!(matches!(error, XskError::LinkDown { .. }), "{error}");

        ip(&format!("link set {XSK} up"));
        let peer = PacketSocket::bind(ifindex(PEER));
        bound.flush();
        for seq in 0..64 {
            assert!(peer.receive() == Some(frame(seq)), "{seq}");
        }
        assert!(bound.queue(&frame(99)));
        peer.send(&frame(5));
        assert!(bound.receive(1) == [frame(5)]);
    });
}

/// Not a benchmark, but prints with `--nocapture` whether the socket is fit for its use.
#[test]
fn two_sockets_exchange_full_batches() {
    const BATCHES: u32 = 2000;
    in_lab(|| {
        let near = XskConfig::new(ifindex(XSK), 0);
        let mut near = Bound::new(&near, XdpMode::Native);
        let mut far = Bound::new(&XskConfig::new(ifindex(PEER), 0), XdpMode::Native);
        let start = Instant::now();
        for batch in 0..BATCHES {
            let bytes = frame_of(batch, 200);
            for (from, to) in [(0, 1), (1, 0)] {
                let mut ends = [&mut near, &mut far];
                assert!((0..64).all(|_| ends[from].queue(&bytes)), "batch {batch}");
                // The kernel takes 32 with one call.
                assert_eq!(ends[from].xsk.tx().flush().unwrap(), 0);
                let mut left = 64;
                while left > 0 {
                    left -= ends[to]
                        .xsk
                        .rx()
                        .receive(left, |frame| assert!(*frame == bytes));
                    assert!(
                        start.elapsed() < Duration::from_secs(60),
                        "batch {batch}: {left}"
                    );
                }
            }
        }
        let rate = f64::from(2 * 64 * BATCHES) / start.elapsed().as_secs_f64();
        println!("from socket to socket over a veth, one thread: {rate:.0} frames/s");
    });
}
