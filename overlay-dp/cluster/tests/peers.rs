//! What agents ask each other.

mod common;

use std::time::Duration;

use common::{SOON, first, join};
use overlay_cluster::{Error, Event};
use overlay_core::model::HostId;

fn member_up(id: HostId) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::MemberUp(host) if host.id == id)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_ask_each_other() {
    let mut one = first(40).await;
    let mut two = join(40, 2, &one).await;
    one.events_until(member_up(two.id())).await;
    two.events_until(member_up(one.id())).await;

    // Nobody takes questions yet.
    let none = one.cluster.ask_host(two.id(), b"?", SOON).await;
    assert!(matches!(none, Err(Error::HostSilent { .. })), "{none:?}");

    let asker = one.id();
    let mut asks = two.cluster.peer_asks();
    let answering = tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            assert_eq!(ask.from, asker);
            match ask.question.as_slice() {
                b"silence" => std::mem::forget(ask),
                b"drop" => drop(ask),
                question => {
                    let answer = [question, b"!"].concat();
                    ask.answer(answer);
                }
            }
        }
    });
    let large = vec![b'x'; 60 << 10];
    for question in [&b"hello"[..], b"", &large] {
        let answer = one.cluster.ask_host(two.id(), question, SOON).await;
        assert_eq!(answer.unwrap(), [question, b"!"].concat());
    }
    // More at once than the connection has streams.
    let many = (0..20).map(|n: u8| {
        let cluster = one.cluster.clone();
        let to = two.id();
        tokio::spawn(async move { cluster.ask_host(to, &[n], SOON).await.unwrap() })
    });
    for (n, answer) in many.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(answer.await.unwrap(), [n as u8, b'!']);
    }
    for question in [&b"drop"[..], b"silence"] {
        let patience = Duration::from_millis(300);
        let refused = one.cluster.ask_host(two.id(), question, patience).await;
        let Err(Error::HostSilent { name, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(name, "host2");
    }
    let too_large = vec![0; 65 << 10];
    assert!(
        one.cluster
            .ask_host(two.id(), &too_large, SOON)
            .await
            .is_err()
    );
    // What was refused has not hurt the connection.
    let after = one.cluster.ask_host(two.id(), b"again", SOON).await;
    assert_eq!(after.unwrap(), b"again!");
    answering.abort();
}
