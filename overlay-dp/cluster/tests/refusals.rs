//! What must not work, and leaves nothing behind.

mod common;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::*;
use overlay_cluster::{Cluster, Config, Counters, Error, Start, Token, TokenError, stored};
use overlay_core::facts::Refusal;
use overlay_core::model::Vni;
use tempfile::TempDir;

async fn refused(config: Config, start: Start) -> Error {
    match Cluster::start(config.clone(), start).await {
        Ok(_) => panic!("started"),
        Err(error) => {
            assert_eq!(stored(&config.state_dir).unwrap(), None, "nothing is kept");
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            error
        }
    }
}

/// The token with a digit of its secret changed.
fn wrong_secret(token: &Token) -> Token {
    let mut text = token.to_string();
    let last = if text.ends_with('0') { "1" } else { "0" };
    text.replace_range(text.len() - 1.., last);
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_refused_and_counted() {
    log();
    let one = first(30).await;
    let dir = TempDir::new().unwrap();
    let start = Start::Join {
        addr: one.control_addr(),
        token: wrong_secret(&one.token().await),
    };
    let error = refused(config(30, 2, &dir), start).await;
    assert!(
        matches!(&error, Error::Denied(text) if text.contains("secret")),
        "{error}"
    );
    assert_eq!(one.cluster.counters().joins_refused, 1);
    assert_eq!(one.cluster.members().len(), 1);

    // A token that was replaced opens nothing any more; the other kind is as it was.
    let managers = one.cluster.token(true).await.unwrap();
    let old = one.token().await;
    let new = one.cluster.token_rotate(false).await.unwrap();
    assert_ne!(new, old);
    assert_eq!(one.cluster.token(true).await.unwrap(), managers);
    let addr = one.control_addr();
    let start = Start::Join { addr, token: old };
    let error = refused(config(30, 3, &dir), start).await;
    assert!(matches!(error, Error::Denied(_)), "{error}");
    join(30, 4, &one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_token_is_not_even_sent() {
    log();
    let one = first(31).await;
    let dir = TempDir::new().unwrap();
    let other = start(
        TempDir::new().unwrap(),
        config(31, 9, &TempDir::new().unwrap()),
        Start::New,
    );
    let other = other.await;
    let join = Start::Join {
        addr: one.control_addr(),
        token: other.token().await,
    };
    let error = refused(config(31, 2, &dir), join).await;
    assert!(matches!(error, Error::OtherCluster(_)), "{error}");
    // No request came: neither a join nor a malformed one.
    assert_eq!(one.cluster.counters(), Counters::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_and_so_is_a_bad_name() {
    let one = first(32).await;
    let dir = TempDir::new().unwrap();
    let settings = config(32, 2, &dir);
    let others = config(32, 3, &dir);
    let token = one.token().await;
    let nobody = Start::Join {
        addr: "127.32.0.77:9".into(),
        token: token.clone(),
    };
    let error = refused(settings, nobody).await;
    assert!(matches!(error, Error::Join { .. }), "{error}");
    assert!(error.to_string().contains("127.32.0.77:9/udp"), "{error}");
    let nowhere = Start::Join {
        addr: "no such host".into(),
        token,
    };
    let error = refused(others, nowhere).await;
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
    assert_eq!(
        "OVTKN-1-abc".parse::<Token>().unwrap_err(),
        TokenError::Length(11)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vtep_address_has_one_live_host() {
    log();
    let one = first(33).await;
    let two = join(33, 2, &one).await;
    until("host2 is up", || {
        one.cluster
            .members()
            .iter()
            .any(|m| !m.me && m.rtt.is_some())
    })
    .await;
    let dir = TempDir::new().unwrap();
    let again = config(33, 2, &dir);
    let error = refused(again.clone(), join_start(&one).await).await;
    assert!(
        error
            .to_string()
            .contains("VTEP 127.33.0.2 belongs to host host2"),
        "{error}"
    );
    assert!(
        matches!(error, Error::Refused(Refusal::VtepTaken { .. })),
        "{error}"
    );

    // The same machine set up anew, without a leave before: the dead host makes room.
    let old = two.id();
    two.cluster.shutdown().await;
    until("host2 is down", || {
        let members = one.cluster.members();
        members
            .iter()
            .all(|m| m.me || m.state == overlay_cluster::MemberState::Down)
    })
    .await;
    let two = start(dir, again, join_start(&one).await).await;
    assert_ne!(two.id(), old);
    assert_eq!(one.cluster.members().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_foreign_address_are_said_before_anything_happens() {
    let one = first(34).await;
    let dir = TempDir::new().unwrap();
    let settings = Config {
        gossip_port: 45_678,
        ..config(34, 2, &dir)
    };
    let _taken = UdpSocket::bind((settings.vtep, 45_678)).unwrap();
    let error = refused(settings, join_start(&one).await).await.to_string();
    assert!(
        error.starts_with("port 45678/udp on 127.34.0.2 is taken"),
        "{error}"
    );
    assert!(error.contains("--gossip-port"), "{error}");
    let foreign = Config::new(dir.path(), "h", "192.0.2.1".parse().unwrap());
    let error = refused(foreign, Start::New).await.to_string();
    assert!(
        error.starts_with("192.0.2.1 is no address of this host"),
        "{error}"
    );
    assert_eq!(one.cluster.members().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_must_be_what_this_host_holds() {
    let one = first(35).await;
    let network = one.network("net").await;
    let good = one.attach(network.vni, "good").await;
    let bad = |change: fn(&mut overlay_core::model::Endpoint)| {
        let mut bad = good.clone();
        change(&mut bad);
        one.cluster.publish(bad).unwrap_err().to_string()
    };
    assert!(bad(|e| e.vni = Vni::new(9).unwrap()).contains("no network with VNI 9"));
    for text in [
        bad(|e| e.ips = vec![]),
        bad(|e| e.ips[0] = "10.0.1.2".parse().unwrap()),
        bad(|e| e.ips[0] = "10.0.0.1".parse().unwrap()),
        bad(|e| e.ips[0] = "10.0.0.9".parse().unwrap()),
        bad(|e| e.mac.0[0] |= 1),
    ] {
        assert!(
            text.starts_with("endpoint 'good' can't be published: "),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_said() {
    let dir = TempDir::new().unwrap();
    let settings = config(36, 1, &dir);
    let error = refused(settings.clone(), Start::Resume).await;
    assert!(matches!(error, Error::NoCluster(_)), "{error}");
    let one = start(dir, settings.clone(), Start::New).await;
    one.cluster.shutdown().await;
    let path = one.dir.path().join("state.json");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let summary = stored(one.dir.path()).unwrap().unwrap();
    assert!(summary.manager && summary.hosts == 1);
    let again = Cluster::start(settings.clone(), Start::New).await;
    assert!(matches!(again.err(), Some(Error::AlreadyMember(_))));

    let whole = fs::read(&path).unwrap();
    let say = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        stored(one.dir.path()).unwrap_err().to_string()
    };
    for cut in (0..whole.len() - 1).step_by(97) {
        let text = say(&whole[..cut]);
        assert!(
            text.contains("state.json") && text.contains("damaged"),
            "{text}"
        );
        assert!(text.contains("backup"), "{text}");
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    let mut newer: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    newer["format"] = 1000.into();
    let newer = say(newer.to_string().as_bytes());
    assert!(newer.contains("format 1000"), "{newer}");
    let stranger = summary.id.to_string();
    let forged = say(text.replacen(&stranger, "00000000000000ff", 1).as_bytes());
    assert!(forged.contains("certificate does not hold"), "{forged}");
    // A crash between writing and renaming leaves the old state in place.
    fs::write(&path, &whole).unwrap();
    fs::write(one.dir.path().join("state.json.new"), b"half").unwrap();
    start(one.dir, settings, Start::Resume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_changes_nothing() {
    log();
    let mut one = first(37).await;
    let two = join(37, 2, &one).await;
    let network = one.network("net").await;
    let socket = UdpSocket::bind("127.37.0.66:0").unwrap();
    let mut noise = 0x9e37_79b9_u32;
    for length in 0..1400usize {
        let mut packet = vec![0u8; length];
        for byte in &mut packet {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        if length % 3 == 0 && length > 0 {
            // Looks like a long header of QUIC 1.
            packet[0] = 0xc0 | (packet[0] & 0x0f);
            packet
                .iter_mut()
                .skip(1)
                .take(4)
                .zip([0, 0, 0, 1])
                .for_each(|(b, v)| *b = v);
        }
        for port in [one.config.control_port, one.config.gossip_port] {
            socket.send_to(&packet, (one.config.vtep, port)).unwrap();
        }
    }
    one.attached(network.vni);
    let b = two.attach(network.vni, "b").await;
    one.events_until(|event| *event == up(two.id(), &b)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(one.cluster.members().len(), 2);
    assert_eq!(one.cluster.counters(), Counters::default());
}
