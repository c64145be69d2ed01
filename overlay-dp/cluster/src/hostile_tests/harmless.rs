//! What looks bad and is not: lost answers, and certificates that change under way.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_under_traffic() {
    let one = host(65, 1, Start::New).await;
    let mut two = join(65, 2, &one).await;
    let net = network(&one, "net").await;
    two.cluster.set_interest([net.vni].into());
    let offsets = one.cluster.grant(net.vni, Want::Addresses(20)).await;
    let offsets = offsets.unwrap()[0];
    until("they talk", || {
        one.cluster.node.gossip.link(two.cluster.me().id).is_some()
    })
    .await;
    let link = one.cluster.node.gossip.link(two.cluster.me().id).unwrap();
    let before = [&one, &two].map(|host| host.cluster.node.identity(|own| own.cert.clone()));
    for n in 0..20 {
        let endpoint = endpoint(&net, &format!("e{n}"), offsets.first + n);
        one.cluster.publish(endpoint).unwrap();
        if n % 5 == 0 {
            for host in [&one, &two] {
                crate::managers::renew(&host.cluster.node).await.unwrap();
            }
        }
        network(&two, &format!("n{n}")).await;
    }
    until("all of it is there", || {
        two.cluster.endpoints(net.vni).len() == 20
    })
    .await;
    assert!(link.close_reason().is_none(), "nothing was dropped");
    let after = [&one, &two].map(|host| host.cluster.node.identity(|own| own.cert.clone()));
    assert!(before[0] != after[0] && before[1] != after[1]);
    while let Ok(event) = two.events.try_recv() {
        let down = matches!(event, Event::MemberDown(_) | Event::EndpointDown { .. });
        assert!(!down, "{event:?}");
    }
    // New connections are made with it, and a restart finds it.
    let kept = crate::state::load(two._dir.path()).unwrap().unwrap();
    assert_eq!(kept.identity.cert, after[1]);
    until("they talk again", || {
        let link = one.cluster.node.gossip.link(two.cluster.me().id);
        link.is_some_and(|link| {
            let chain = link.peer_identity().unwrap();
            let chain = chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>();
            let renewed = chain.unwrap()[0].as_ref() == after[1];
            if !renewed {
                // There are two where both hosts called at the same time.
                transport::Goodbye::Done.say(&link);
            }
            renewed
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_harmless() {
    let one = host(66, 1, Start::New).await;
    let two = join(66, 2, &one).await;
    let (node, me) = (&two.cluster.node, two.cluster.me());
    let lose = |count| node.lost.store(count, std::sync::atomic::Ordering::Relaxed);
    lose(1);
    let net = network(&two, "net").await;
    assert_eq!(two.cluster.networks(), vec![net.clone()]);
    lose(2);
    let granted = two
        .cluster
        .grant(net.vni, Want::Addresses(1))
        .await
        .unwrap();
    let held = two.cluster.facts(|facts| facts.granted(me.id, net.vni));
    // The facts have what the lost answers said.
    assert_eq!(held.iter().map(|range| range.count()).sum::<u64>(), 3);
    assert!(held.iter().any(|range| range.contains(granted[0].first)));
    lose(1);
    let ip = "10.0.0.99".parse().unwrap();
    two.cluster.grant(net.vni, Want::Ip(ip)).await.unwrap();
    let (held, seen) = two
        .cluster
        .facts(|facts| (facts.granted(me.id, net.vni), facts.version()));
    lose(1);
    let back = two.cluster.give_back(net.vni, held, vec![], seen);
    back.await.unwrap();
    assert!(
        two.cluster
            .facts(|facts| facts.networks_of(me.id).is_empty())
    );
    // What was granted since is not taken by a return that comes late.
    two.cluster.grant(net.vni, Want::Ip(ip)).await.unwrap();
    let held = two.cluster.facts(|facts| facts.granted(me.id, net.vni));
    let late = two.cluster.give_back(net.vni, held.clone(), vec![], seen);
    late.await.unwrap();
    assert_eq!(two.cluster.facts(|f| f.granted(me.id, net.vni)), held);
    let seen = two.cluster.control().version;
    let back = two.cluster.give_back(net.vni, held, vec![], seen);
    back.await.unwrap();
    lose(1);
    two.cluster.network_remove("net").await.unwrap();
    assert_eq!(two.cluster.networks(), vec![]);
    // Another's network of that name is not taken for one's own.
    network(&one, "theirs").await;
    let spec = NetworkSpec {
        name: "theirs".into(),
        subnets: vec!["10.9.0.0/16".parse().unwrap()],
        ..NetworkSpec::default()
    };
    lose(1);
    let taken = two.cluster.network_create(spec, vec![]).await.unwrap_err();
    assert!(matches!(taken, crate::Error::Refused(_)), "{taken}");

    // A join whose answer was lost is made again: the first one left nothing behind.
    let from = socket(&one);
    let token = one.cluster.token(false).await.unwrap();
    let info = crate::wire::HostInfo {
        vtep: "127.66.0.3".parse().unwrap(),
        name: "host3".into(),
        ..node.info()
    };
    for _ in 0..2 {
        let (crypto, _) = pki::joiner(token.ca, CONTROL).unwrap();
        let client = transport::control_client(crypto);
        let connecting = from.connect_with(client, control_addr(&one), pki::MANAGER_NAME);
        let (_, csr) = pki::new_request().unwrap();
        let ask = Request::Join {
            secret: token.secret,
            csr,
            info: info.clone(),
        };
        let answer = request(&connecting.unwrap().await.unwrap(), ask).await;
        assert!(matches!(answer, Some(Answer::Joined { .. })), "{answer:?}");
    }
    assert_eq!(one.cluster.members().len(), 3);
    lose(1);
    two.cluster.leave().await.unwrap();
    until("it has left", || one.cluster.members().len() == 2).await;
}
