//! Hosts with a valid certificate that say what they should not, and hosts with a bad one or none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use overlay_core::facts::{FactsNews, NetworkSpec, Range, Version, Want};
use overlay_core::model::{Endpoint, HostId, MacAddr, Network, Vni};
use quinn::{ClientConfig, Connection};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::pki::{self, Authority, Identity, host_name};
use crate::transport::{self, CONTROL, GOSSIP, MAX_FROM_MANAGER, MAX_MESSAGE, receive, send};
use crate::wire::{Answer, Ask, Request};
use crate::{Cluster, Config, Event, Start};

mod harmless;

struct Host {
    _dir: TempDir,
    cluster: Cluster,
    events: mpsc::Receiver<Event>,
}

async fn host(test: u8, n: u8, start: Start) -> Host {
    let dir = TempDir::new().unwrap();
    let vtep = IpAddr::V4(Ipv4Addr::new(127, test, 0, n));
    let free = || {
        let socket = std::net::UdpSocket::bind((vtep, 0)).unwrap();
        socket.local_addr().unwrap().port()
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

async fn join(test: u8, n: u8, manager: &Host) -> Host {
    let addr = control_addr(manager).to_string();
    let token = manager.cluster.token(false).await.unwrap();
    host(test, n, Start::Join { addr, token }).await
}

fn control_addr(host: &Host) -> SocketAddr {
    let me = host.cluster.me();
    SocketAddr::new(me.vtep, me.control_port)
}

fn gossip_addr(host: &Host) -> SocketAddr {
    let me = host.cluster.me();
    SocketAddr::new(me.vtep, me.gossip_port)
}

fn socket(of: &Host) -> quinn::Endpoint {
    transport::bind(SocketAddr::new(of.cluster.me().vtep, 0), "").unwrap()
}

/// A connection with a host, in whosoever's name the configuration is.
async fn dial(
    from: &quinn::Endpoint,
    client: ClientConfig,
    addr: SocketAddr,
    to: HostId,
) -> Result<Connection, quinn::ConnectionError> {
    let connecting = from.connect_with(client, addr, &host_name(to)).unwrap();
    connecting.await
}

/// One request on a connection; `None` when the other side does not answer it.
async fn request(connection: &Connection, request: Request) -> Option<Answer> {
    let have = Version::default();
    let (mut out, mut inward) = connection.open_bi().await.ok()?;
    send(&mut out, &Ask { have, request }, MAX_MESSAGE)
        .await
        .ok()?;
    receive(&mut inward, MAX_FROM_MANAGER).await.ok()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn network(host: &Host, name: &str) -> Network {
    let spec = NetworkSpec {
        name: name.into(),
        ..NetworkSpec::default()
    };
    host.cluster.network_create(spec, Vec::new()).await.unwrap()
}

fn endpoint(network: &Network, name: &str, offset: u32) -> Endpoint {
    Endpoint {
        name: name.into(),
        vni: network.vni,
        mac: network.mac_at(offset),
        ips: network.address_at(offset),
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

fn authority(manager: &Host) -> Authority {
    let raft = manager.cluster.node.raft().unwrap();
    raft.read(|state| Authority {
        cert: state.secrets().ca_cert.clone(),
        key: state.secrets().ca_key.clone(),
    })
    .unwrap()
}

fn clients(identity: &Identity) -> (ClientConfig, ClientConfig) {
    (
        transport::gossip_client(identity.client(GOSSIP).unwrap()),
        transport::control_client(identity.client(CONTROL).unwrap()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_does_not_hold_is_not_believed() {
    let victim = host(60, 1, Start::New).await;
    let hostile = join(60, 2, &victim).await;
    let other = join(60, 3, &victim).await;
    let net = network(&victim, "net").await;
    let own = |host: &Host, want| {
        let cluster = host.cluster.clone();
        async move { cluster.grant(net.vni, want).await.unwrap()[0].first }
    };
    let theirs = own(&other, Want::Addresses(1)).await;
    let mine = own(&hostile, Want::Addresses(1)).await;
    let stolen = endpoint(&net, "stolen", theirs);
    let good = endpoint(&net, "good", mine);
    assert!(hostile.cluster.publish(stolen.clone()).is_err());
    let with = |name: &str, change: &dyn Fn(&mut Endpoint)| {
        let mut bad = endpoint(&net, name, mine);
        change(&mut bad);
        bad
    };
    let bad = [
        stolen,
        endpoint(&net, "gateway", 1),
        endpoint(&net, "nobody", 77),
        with("outside", &|e| e.ips = vec!["8.8.8.8".parse().unwrap()]),
        with("mapped", &|e| {
            e.ips = vec!["::ffff:10.0.0.3".parse().unwrap()];
        }),
        with("mac", &|e| e.mac = net.mac_at(theirs)),
        with("group", &|e| e.mac = MacAddr([1; 6])),
        with("bad name", &|_| {}),
    ];
    victim.cluster.set_interest([net.vni].into());
    hostile.cluster.node.publish(|book| {
        for endpoint in bad {
            book.own.publish(endpoint);
        }
        book.own.publish(good.clone());
    });
    let evil = hostile.cluster.me().id;
    until("the good one is there", || {
        victim.cluster.endpoints(net.vni) == vec![(evil, good.clone())]
    })
    .await;
    // When the address comes to be its own, the record was true all along; not before.
    let (held, seen) = other.cluster.facts(|f| {
        let held = f.granted(other.cluster.me().id, net.vni);
        (held, f.version())
    });
    assert_eq!(held, vec![Range::one(theirs)]);
    let back = other.cluster.give_back(net.vni, held, vec![], seen);
    back.await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(victim.cluster.endpoints(net.vni).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_not_do_what_managers_may() {
    let victim = host(61, 1, Start::New).await;
    let hostile = join(61, 2, &victim).await;
    let me = victim.cluster.me();
    let evil = hostile.cluster.me().id;
    let socket = socket(&hostile);
    let call = || async {
        let client = hostile.cluster.node.control_client();
        let made = dial(&socket, client, control_addr(&victim), me.id).await;
        made.unwrap()
    };
    let before = victim.cluster.control().version;
    for ask in [
        Request::SetRole {
            id: evil,
            manager: true,
        },
        Request::HostRemove { id: me.id },
        Request::TokenRotate { manager: true },
        Request::Raft(b"anything".to_vec()),
    ] {
        let answer = request(&call().await, ask).await;
        assert!(matches!(answer, Some(Answer::Denied(_))), "{answer:?}");
    }
    assert_eq!(victim.cluster.control().version, before);
    // A certificate of a manager it does not get, either.
    let (_, csr) = pki::new_request().unwrap();
    let answer = request(&call().await, Request::Renew { csr }).await;
    let Some(Answer::Renewed { cert }) = answer else {
        panic!("{answer:?}");
    };
    assert!(!pki::is_manager(&cert.as_slice().into()));

    // Noise, an enormous length, trailing bytes: on both ports.
    let refused = || victim.cluster.counters().messages_refused;
    let noise = [
        &b"\x00\x00\x00\x05noise"[..],
        &[0xff; 64],
        &b"\x00\x00\x00\x00"[..],
    ];
    for bytes in noise {
        let before = refused();
        let (mut out, _inward) = call().await.open_bi().await.unwrap();
        let _ = out.write_all(bytes).await;
        let _ = out.finish();
        until("noise on the control port is refused", || {
            refused() > before
        })
        .await;
    }
    let client = hostile.cluster.node.gossip_client();
    let gossip = dial(&socket, client, gossip_addr(&victim), me.id).await;
    let gossip = gossip.unwrap();
    for kind in [0, 1, 2] {
        for bytes in noise {
            let before = refused();
            let (mut out, _inward) = gossip.open_bi().await.unwrap();
            let _ = out.write_all(&[kind]).await;
            let _ = out.write_all(bytes).await;
            until("noise on the gossip port is refused", || refused() > before).await;
        }
    }
    for length in [0, 1, 2, 17, 400, 1100] {
        gossip.send_datagram(vec![0xa5; length].into()).unwrap();
    }
    let packets = || victim.cluster.counters().packets_refused;
    until("noise in datagrams is counted", || packets() >= 6).await;
    assert_eq!(victim.cluster.members().len(), 2);
    network(&hostile, "fine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing() {
    let victim = host(62, 1, Start::New).await;
    let (me, from) = (victim.cluster.me(), socket(&victim));

    // Without a certificate the gossip port ends the connection before anything is read.
    let ca = victim.cluster.token(false).await.unwrap().ca;
    let (crypto, _) = pki::joiner(ca, GOSSIP).unwrap();
    let client = transport::gossip_client(crypto);
    let connecting = from.connect_with(client, gossip_addr(&victim), pki::MANAGER_NAME);
    if let Ok(connection) = connecting.unwrap().await {
        let ended = connection.closed().await.to_string();
        assert!(ended.contains("ertificate"), "{ended}");
    }

    // One of another cluster's CA: neither side trusts the other. Even a client that trusts
    // anybody is not let in.
    let stranger = host(62, 9, Start::New).await;
    let node = &stranger.cluster.node;
    let foreign = [
        (node.gossip_client(), gossip_addr(&victim)),
        (node.control_client(), control_addr(&victim)),
    ];
    for (client, addr) in foreign {
        assert!(dial(&from, client, addr, me.id).await.is_err());
    }

    // The control port hears nothing but a join from those without one.
    let call = || async {
        let (crypto, _) = pki::joiner(ca, CONTROL).unwrap();
        let client = transport::control_client(crypto);
        let connecting = from.connect_with(client, control_addr(&victim), pki::MANAGER_NAME);
        connecting.unwrap().await.unwrap()
    };
    let name = "x".to_owned();
    for ask in [
        Request::Facts,
        Request::Leave,
        Request::Voters,
        Request::Leader,
        Request::NetworkRemove { name },
        Request::Raft(Vec::new()),
    ] {
        let answer = request(&call().await, ask).await;
        let said = matches!(&answer, Some(Answer::Denied(text)) if text.contains("certificate"));
        assert!(said, "{answer:?}");
    }
    // Noise and a large request from a stranger.
    for noise in [
        &b"\x00\x00\x00\x04\xff\xff\xff\xff"[..],
        &b"\x00\x0f\xff\xff"[..],
    ] {
        let before = victim.cluster.counters().messages_refused;
        let (mut out, _inward) = call().await.open_bi().await.unwrap();
        out.write_all(noise).await.unwrap();
        until("refused", || {
            victim.cluster.counters().messages_refused > before
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_past_open_nothing() {
    let victim = host(63, 1, Start::New).await;
    let mut gone = join(63, 2, &victim).await;
    let (me, from) = (victim.cluster.me(), socket(&gone));
    let removed = gone.cluster.me().id;

    // One that has expired, of a member.
    let ca = authority(&victim);
    let (key, csr) = pki::new_request().unwrap();
    let then = OffsetDateTime::now_utc() - time::Duration::days(91);
    let cert = ca.certify_at(&csr, removed, true, then).unwrap();
    let (gossip, control) = clients(&Identity::new(ca.cert.clone(), cert, key));
    for (client, addr) in [
        (gossip, gossip_addr(&victim)),
        (control, control_addr(&victim)),
    ] {
        // TLS 1.3 tells a client after its own part is done.
        if let Ok(connection) = dial(&from, client, addr, me.id).await {
            assert!(request(&connection, Request::Facts).await.is_none());
            let ended = connection.closed().await.to_string();
            assert!(ended.contains("xpired"), "{ended}");
        }
    }

    // One of a host that was removed: it is cut off at once, and told.
    until("they talk", || {
        victim.cluster.members()[0].rtt != victim.cluster.members()[1].rtt
    })
    .await;
    let (gossip, control) = clients(&gone.cluster.node.identity(Identity::clone));
    let began = Instant::now();
    victim.cluster.host_remove(removed).await.unwrap();
    until("the link is gone", || {
        victim.cluster.node.gossip.link(removed).is_none()
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(1));
    loop {
        let event = tokio::time::timeout(Duration::from_secs(1), gone.events.recv()).await;
        if event.unwrap().unwrap() == Event::Expelled {
            break;
        }
    }
    let connection = dial(&from, gossip, gossip_addr(&victim), me.id).await;
    let ended = connection.unwrap().closed().await.to_string();
    assert!(ended.contains("not a member"), "{ended}");
    let requests = [
        Request::Facts,
        Request::Renew { csr: csr.clone() },
        Request::Grant {
            vni: Vni::MAX,
            want: Want::Addresses(1),
        },
    ];
    for ask in requests {
        let connection = dial(&from, control.clone(), control_addr(&victim), me.id);
        let answer = request(&connection.await.unwrap(), ask).await;
        assert!(matches!(answer, Some(Answer::NotAMember(_))), "{answer:?}");
    }
    assert!(victim.cluster.counters().strangers_refused >= 4);
    // It may leave what it has left already.
    gone.cluster.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_of_before_can_not_bring_the_past_back() {
    let victim = host(64, 1, Start::New).await;
    let worker = join(64, 2, &victim).await;
    let facts = victim.cluster.facts(|facts| facts.clone());
    network(&victim, "later").await;
    let version = victim.cluster.control().version;
    // Facts of the same epoch that are older, or do not follow, change nothing.
    crate::gossip::take_news(&worker.cluster.node, FactsNews::Snapshot(facts));
    let news = FactsNews::Changes {
        after: Version {
            epoch: version.epoch + 1,
            index: 0,
        },
        version: Version {
            epoch: version.epoch + 1,
            index: 9,
        },
        changes: Vec::new(),
    };
    crate::gossip::take_news(&worker.cluster.node, news);
    until("the network is known", || {
        worker.cluster.control().version == version
    })
    .await;
}
