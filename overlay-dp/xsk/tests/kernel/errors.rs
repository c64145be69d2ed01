//! Each way to fail has its error, and leaves nothing in the way of the next try.

use std::thread;
use std::time::{Duration, Instant};

use overlay_xsk::{BindMode, Xsk, XskConfig, XskError};

use crate::lab::{Bound, PEER, XSK, frame, ifindex, in_lab, ip, small};
use crate::sys::{PacketSocket, XdpMode};

#[test]
fn a_taken_queue_is_busy_and_a_released_one_is_not() {
    in_lab(|| {
        let first = Xsk::bind(&small()).unwrap();
        let start = Instant::now();
        let error = Xsk::bind(&small()).unwrap_err();
        assert!(matches!(error, XskError::Busy { queue: 0, .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
        drop(first);
        for _ in 0..10 {
            drop(Xsk::bind(&small()).unwrap());
        }
        // Freed while the second is waiting for it.
        let first = Xsk::bind(&small()).unwrap();
        let releaser = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        let mut second = Bound::new(&small(), XdpMode::Native);
        releaser.join().unwrap();
        PacketSocket::bind(ifindex(PEER)).send(&frame(1));
        assert!(
            second.receive(1) == [frame(1)],
            "it works after all those binds"
        );
    });
}

#[test]
fn a_missing_interface_or_queue_is_named() {
    in_lab(|| {
        let error = Xsk::bind(&XskConfig {
            ifindex: 9999,
            ..small()
        })
        .unwrap_err();
        assert!(
            matches!(error, XskError::NoDevice { ifindex: 9999 }),
            "{error}"
        );
        let error = Xsk::bind(&XskConfig {
            queue: 77,
            ..small()
        })
        .unwrap_err();
        assert!(
            matches!(error, XskError::NoQueue { queue: 77, .. }),
            "{error}"
        );
        let error = Xsk::bind(&XskConfig {
            frame_count: 3,
            ..small()
        })
        .unwrap_err();
        assert!(matches!(error, XskError::Config(_)), "{error}");
    });
}

#[test]
fn auto_mode_falls_back_to_copying() {
    in_lab(|| {
        let mut bound = Bound::new(
            &XskConfig {
                bind: BindMode::Auto,
                ..small()
            },
            XdpMode::Native,
        );
        let peer = PacketSocket::bind(ifindex(PEER));
        peer.send(&frame(1));
        assert!(bound.receive(1) == [frame(1)]);
        assert!(bound.queue(&frame(2)));
        bound.flush();
        assert!(peer.receive() == Some(frame(2)));
    });
}

#[test]
fn a_deleted_interface_is_an_error_of_flush() {
    in_lab(|| {
        let mut xsk = Xsk::bind(&small()).unwrap();
        ip(&format!("link del {XSK}"));
        xsk.tx().reserve().unwrap().commit(60).unwrap();
        let error = xsk.tx().flush().unwrap_err();
        assert!(matches!(error, XskError::NoDevice { .. }), "{error}");
        assert_eq!(xsk.rx().receive(1, |_| ()), 0);
    });
}

#[test]
fn a_socket_can_move_to_another_thread() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Xsk>();
}
