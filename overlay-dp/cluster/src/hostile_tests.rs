//! A host with a valid certificate that says what it should not, and one without any.

use std::net::Ipv4Addr;

use overlay_core::model::MacAddr;
use quinn::{Connection, SendStream};
use serde::Serialize;
use tempfile::TempDir;

use super::*;
use crate::transport::{MAX_MESSAGE, receive, send};
use crate::wire::{Change, Frame, Position, Subscribe};

struct Host {
    _dir: TempDir,
    cluster: Cluster,
    events: mpsc::Receiver<Event>,
}

async fn host(test: u8, n: u8, start: Start) -> Host {
    let dir = TempDir::new().unwrap();
    let vtep = IpAddr::V4(Ipv4Addr::new(127, test, 0, n));
    let free = || {
        std::net::UdpSocket::bind((vtep, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let config = Config {
        control_port: free(),
        gossip_port: free(),
        ..Config::new(dir.path(), format!("host{n}"), vtep)
    };
    let (cluster, events) = Cluster::start(config, start).await.unwrap();
    Host {
        _dir: dir,
        cluster,
        events,
    }
}

/// A victim, the manager, and a member that turns hostile: its tasks are stopped, and the test
/// speaks in its name.
async fn pair(test: u8) -> (Host, Host, quinn::Endpoint) {
    let victim = host(test, 1, Start::New).await;
    let me = victim.cluster.me();
    let addr = SocketAddr::new(me.vtep, me.control_port).to_string();
    let token = victim.cluster.token().unwrap();
    let hostile = host(test, 2, Start::Join { addr, token }).await;
    hostile.cluster.node.shut_down().await;
    let socket = transport::bind(SocketAddr::new(hostile.cluster.me().vtep, 0), "").unwrap();
    (victim, hostile, socket)
}

async fn gossip(victim: &Host, hostile: &Host, socket: &quinn::Endpoint) -> Connection {
    let me = victim.cluster.me();
    let addr = SocketAddr::new(me.vtep, me.gossip_port);
    let client = hostile.cluster.node.gossip_client.clone();
    socket
        .connect_with(client, addr, &pki::host_name(me.id))
        .unwrap()
        .await
        .unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for the victim to follow this connection, and greets it as `id`.
async fn led(connection: &Connection, id: swim::Id) -> SendStream {
    let (mut out, mut inward) = connection.accept_bi().await.unwrap();
    let _: Subscribe = receive(&mut inward, MAX_MESSAGE).await.unwrap();
    send(&mut out, &Frame::Hello(id)).await.unwrap();
    out
}

async fn say<T: Serialize>(out: &mut SendStream, message: &T) {
    // The victim may have stopped listening already.
    let _ = send(out, message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_can_not_speak_for_others_or_break_rules() {
    let (mut victim, hostile, socket) = pair(60).await;
    let spec = NetworkSpec {
        name: "net".into(),
        ..NetworkSpec::default()
    };
    let network = victim
        .cluster
        .network_create(spec, Vec::new())
        .await
        .unwrap();
    let connection = gossip(&victim, &hostile, &socket).await;
    let (evil, good) = (hostile.cluster.me().id, victim.cluster.me().id);
    let refused = || victim.cluster.counters().messages_refused;

    // In the victim's own name, then with facts as if it were the manager.
    led(&connection, swim::Id::new(good, u64::MAX)).await;
    until("a false greeting is refused", || refused() == 1).await;
    let mut out = led(&connection, swim::Id::new(evil, u64::MAX)).await;
    let mut facts = victim.cluster.node.book(|book| book.facts().clone());
    facts.version = u64::MAX;
    facts.networks.clear();
    say(&mut out, &Frame::Facts(facts)).await;
    until("false facts are refused", || refused() == 2).await;
    assert_eq!(victim.cluster.networks(), vec![network.clone()]);

    // Noise, an enormous length, a greeting that comes twice.
    out = led(&connection, swim::Id::new(evil, 1)).await;
    let _ = out.write_all(b"\x00\x00\x00\x05noise").await;
    until("noise is refused", || refused() == 3).await;
    out = led(&connection, swim::Id::new(evil, 1)).await;
    let _ = out.write_all(&[0xff; 64]).await;
    until("a large message is refused", || refused() == 4).await;
    out = led(&connection, swim::Id::new(evil, 1)).await;
    say(&mut out, &Frame::Hello(swim::Id::new(evil, 1))).await;
    until("a second greeting is refused", || refused() == 5).await;

    // Endpoints that the network can't have are not told to anybody; those that no network can
    // have are counted. A good one among them gets through.
    let ok = Endpoint {
        name: "ok".into(),
        vni: network.vni,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        ips: vec!["10.0.0.9".parse().unwrap()],
        aliases: Vec::new(),
        service: None,
    };
    let with_ip = |name: &str, ip: &str| Endpoint {
        name: name.into(),
        ips: vec![ip.parse().unwrap()],
        ..ok.clone()
    };
    out = led(&connection, swim::Id::new(evil, 1)).await;
    let endpoints = vec![
        with_ip("gateway", "10.0.0.1"),
        with_ip("outside", "8.8.8.8"),
        with_ip("mapped", "::ffff:10.0.0.3"),
        Endpoint {
            vni: Vni::MAX,
            ..with_ip("nowhere", "10.0.0.4")
        },
        Endpoint {
            mac: MacAddr([1; 6]),
            ..with_ip("group", "10.0.0.5")
        },
        with_ip("bad name", "10.0.0.6"),
        ok.clone(),
    ];
    let at = Position {
        incarnation: 1,
        seq: u64::MAX,
    };
    say(
        &mut out,
        &Frame::Snapshot {
            at,
            settled: true,
            endpoints,
            last: true,
        },
    )
    .await;
    until("the good one is there", || {
        victim.cluster.endpoints(network.vni) == vec![(evil, ok.clone())]
    })
    .await;
    assert_eq!(victim.cluster.counters().records_refused, 2);
    let changes = vec![Change::Settled; 3];
    say(
        &mut out,
        &Frame::Changes {
            incarnation: 1,
            first: u64::MAX,
            changes,
        },
    )
    .await;
    say(
        &mut out,
        &Frame::Digest(Position {
            incarnation: u64::MAX,
            seq: u64::MAX,
        }),
    )
    .await;

    // The victim's own streams are asked for in another's name, and with noise.
    let before = refused();
    let (mut out, _inward) = connection.open_bi().await.unwrap();
    let swim = swim::Id::new(good, 1);
    say(
        &mut out,
        &Subscribe {
            swim,
            have: Position::default(),
            facts: 0,
        },
    )
    .await;
    let (mut noise, _inward) = connection.open_bi().await.unwrap();
    let _ = noise.write_all(b"\x00\x00\x00\x01\xff").await;
    until("false subscriptions are refused", || {
        refused() >= before + 2
    })
    .await;

    let mut told = Vec::new();
    while let Ok(event) = victim.events.try_recv() {
        told.push(event);
    }
    let ups = told
        .iter()
        .filter(|event| matches!(event, Event::EndpointUp { .. }))
        .count();
    assert_eq!(ups, 1, "{told:?}");
    assert_eq!(victim.cluster.members().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_datagrams_is_counted() {
    let (victim, hostile, socket) = pair(61).await;
    let connection = gossip(&victim, &hostile, &socket).await;
    for length in [0, 1, 2, 17, 400, 1100] {
        connection.send_datagram(vec![0xa5; length].into()).unwrap();
    }
    until("counted", || victim.cluster.counters().packets_refused >= 6).await;
    assert_eq!(victim.cluster.members().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing() {
    let (victim, hostile, socket) = pair(62).await;
    let me = victim.cluster.me();
    let name = pki::host_name(me.id);
    let gossip_addr = SocketAddr::new(me.vtep, me.gossip_port);
    let control_addr = SocketAddr::new(me.vtep, me.control_port);

    // Without a certificate the gossip port ends the connection before anything is read.
    let ca = victim.cluster.token().unwrap().ca;
    let (crypto, _) = pki::joiner(ca, transport::GOSSIP).unwrap();
    let client = transport::gossip_client(crypto);
    let connecting = socket
        .connect_with(client, gossip_addr, pki::MANAGER_NAME)
        .unwrap();
    if let Ok(connection) = connecting.await {
        let ended = connection.closed().await.to_string();
        assert!(ended.contains("ertificate"), "{ended}");
    }

    // One of another cluster's CA: neither side trusts the other. Even a client that trusts
    // anybody is not let in.
    let stranger = host(62, 9, Start::New).await;
    let client = stranger.cluster.node.gossip_client.clone();
    assert!(
        socket
            .connect_with(client, gossip_addr, &name)
            .unwrap()
            .await
            .is_err()
    );

    // The control port hears nothing but a join from those without one.
    for request in [
        Request::Leases,
        Request::Leave,
        Request::NetworkRemove { name: "x".into() },
    ] {
        let (crypto, _) = pki::joiner(ca, transport::CONTROL).unwrap();
        let client = transport::control_client(crypto);
        let connecting = socket
            .connect_with(client, control_addr, pki::MANAGER_NAME)
            .unwrap();
        let (mut out, mut inward) = connecting.await.unwrap().open_bi().await.unwrap();
        send(&mut out, &request).await.unwrap();
        let reply: Reply = receive(&mut inward, MAX_MESSAGE).await.unwrap();
        assert!(
            matches!(&reply, Reply::Refused(text) if text.contains("certificate")),
            "{reply:?}"
        );
    }
    // Noise and a large request from a stranger.
    for noise in [
        &b"\x00\x00\x00\x04\xff\xff\xff\xff"[..],
        &b"\x00\x0f\xff\xff"[..],
    ] {
        let before = victim.cluster.counters().messages_refused;
        let (crypto, _) = pki::joiner(ca, transport::CONTROL).unwrap();
        let client = transport::control_client(crypto);
        let connecting = socket
            .connect_with(client, control_addr, pki::MANAGER_NAME)
            .unwrap();
        let (mut out, _inward) = connecting.await.unwrap().open_bi().await.unwrap();
        out.write_all(noise).await.unwrap();
        until("refused", || {
            victim.cluster.counters().messages_refused > before
        })
        .await;
    }

    // A host that was let go has a valid certificate, but no place in the roster.
    let id = hostile.cluster.me().id;
    let control = hostile.cluster.node.control_client.clone();
    let connecting = socket.connect_with(control, control_addr, &name).unwrap();
    let (mut out, mut inward) = connecting.await.unwrap().open_bi().await.unwrap();
    send(&mut out, &Request::Leave).await.unwrap();
    let reply: Reply = receive(&mut inward, MAX_MESSAGE).await.unwrap();
    assert!(matches!(reply, Reply::Done), "{reply:?}");
    assert!(
        victim
            .cluster
            .members()
            .iter()
            .all(|member| member.host.id != id)
    );
    let before = victim.cluster.counters().strangers_refused;
    let connection = gossip(&victim, &hostile, &socket).await;
    let ended = connection.closed().await.to_string();
    assert!(ended.contains("not a member"), "{ended}");
    assert_eq!(victim.cluster.counters().strangers_refused, before + 1);
}
