//! Resolvers that answer, lie, refuse, are slow or are not there.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use overlay_core::model::{Network, Vni};
use overlay_dns::{Forwarder, Names, Outcome, Question, Verdict, answer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

fn question(kind: RecordType) -> Question {
    let mut names = Names::new();
    let vni = Vni::new(1).unwrap();
    names.network_set(Network {
        name: "n".into(),
        vni,
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: "10.0.0.1".parse().unwrap(),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: None,
    });
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name: Name = "example.com.".parse().unwrap();
    message.add_query(Query::query(name, kind));
    match answer(&names, vni, &message.to_vec().unwrap(), 0) {
        Outcome::Forward(question) => *question,
        other => panic!("{other:?}"),
    }
}

/// A resolver on one of 127.0.0.0/8, on the port all have, for whom `reply` says what it sends.
async fn resolver(
    ip: &str,
    port: u16,
    reply: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static,
) -> u16 {
    let socket = UdpSocket::bind((ip, port)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            for bytes in reply(Message::from_vec(&buffer[..len]).unwrap()) {
                socket.send_to(&bytes, from).await.unwrap();
            }
        }
    });
    port
}

fn address(query: Message, last: u8) -> Message {
    let name = query.queries[0].name().clone();
    let mut reply = query.into_response();
    reply.metadata.recursion_available = true;
    reply.add_answer(Record::from_rdata(
        name,
        60,
        RData::A(A::new(192, 0, 2, last)),
    ));
    reply
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

struct Conf(tempfile::NamedTempFile);

impl Conf {
    fn new(servers: &[&str]) -> Conf {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for server in servers {
            writeln!(file, "nameserver {server}").unwrap();
        }
        Conf(file)
    }

    fn forwarder(&self, port: u16) -> Arc<Forwarder> {
        Forwarder::new(self.0.path().to_owned(), port)
    }
}

async fn ask(forwarder: &Arc<Forwarder>, question: &Question) -> Verdict {
    let nobody = |_: IpAddr| false;
    forwarder.place(1).unwrap().ask(question, nobody).await
}

#[track_caller]
fn addresses(verdict: Verdict) -> Vec<String> {
    let Verdict::Answer(bytes) = verdict else {
        panic!("{verdict:?}")
    };
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.id, 7);
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[track_caller]
fn code(verdict: Verdict) -> ResponseCode {
    let Verdict::Failure(bytes) = verdict else {
        panic!("{verdict:?}")
    };
    Message::from_vec(&bytes).unwrap().response_code
}

#[tokio::test]
async fn what_is_not_an_answer_to_the_question_is_not_believed() {
    let port = resolver("127.0.0.1", 0, |query| {
        let good = address(query, 1);
        let mut other_id = address(good.clone(), 66);
        other_id.metadata.id ^= 1;
        let mut other_name = good.clone();
        other_name.queries[0].set_name("example.org.".parse().unwrap());
        let mut other_kind = good.clone();
        other_kind.queries[0].set_query_type(RecordType::AAAA);
        let query = {
            let mut query = good.clone();
            query.metadata.message_type = MessageType::Query;
            query
        };
        let wrong = [other_id, other_name, other_kind, query];
        let wrong = wrong.iter().map(bytes);
        wrong.chain([vec![1, 2, 3], bytes(&good)]).collect()
    })
    .await;
    let forwarder = Conf::new(&["127.0.0.1"]);
    let forwarder = (forwarder.forwarder(port), forwarder);
    let verdict = ask(&forwarder.0, &question(RecordType::A)).await;
    assert_eq!(addresses(verdict), ["192.0.2.1"]);
}

#[tokio::test]
async fn ids_and_ports_differ() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let seen2 = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..len]).unwrap();
            seen2.lock().unwrap().push((from.port(), query.id));
            let reply = bytes(&address(query, 1));
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    let conf = Conf::new(&["127.0.0.1"]);
    let forwarder = conf.forwarder(port);
    for _ in 0..30 {
        ask(&forwarder, &question(RecordType::A)).await;
    }
    let seen = seen.lock().unwrap();
    let count = |of: fn(&(u16, u16)) -> u16| {
        seen.iter()
            .map(of)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert!(count(|s| s.0) > 25 && count(|s| s.1) > 25, "{seen:?}");
}

#[tokio::test]
async fn the_next_one_is_asked_when_one_refuses_is_silent_or_not_there() {
    let port = resolver("127.0.0.3", 0, |query| vec![bytes(&address(query, 3))]).await;
    resolver("127.0.0.2", port, |query| {
        let mut reply = query.into_response();
        reply.metadata.response_code = ResponseCode::Refused;
        vec![bytes(&reply)]
    })
    .await;
    // Nobody listens on .1: the kernel says so at once.
    let conf = Conf::new(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let begin = Instant::now();
    let forwarder = conf.forwarder(port);
    let verdict = ask(&forwarder, &question(RecordType::A)).await;
    assert_eq!(addresses(verdict), ["192.0.2.3"]);
    assert!(begin.elapsed() < Duration::from_secs(1));
    // What the last one that said anything said.
    let conf = Conf::new(&["127.0.0.2", "127.0.0.1"]);
    let verdict = ask(&conf.forwarder(port), &question(RecordType::A)).await;
    assert_eq!(code(verdict), ResponseCode::Refused);

    resolver("127.0.0.4", port, |_| Vec::new()).await;
    let conf = Conf::new(&["127.0.0.4", "127.0.0.3"]);
    let begin = Instant::now();
    let verdict = ask(&conf.forwarder(port), &question(RecordType::A)).await;
    assert_eq!(addresses(verdict), ["192.0.2.3"]);
    assert!((2.0..3.0).contains(&begin.elapsed().as_secs_f64()));
    let conf = Conf::new(&["127.0.0.4"]);
    let verdict = ask(&conf.forwarder(port), &question(RecordType::A)).await;
    assert_eq!(code(verdict), ResponseCode::ServFail);
}

#[tokio::test]
async fn gateways_are_never_asked() {
    let port = resolver("127.0.0.1", 0, |query| vec![bytes(&address(query, 1))]).await;
    let conf = Conf::new(&["127.0.0.1"]);
    let place = conf.forwarder(port).place(1).unwrap();
    let ours = |ip: IpAddr| ip == IpAddr::from([127, 0, 0, 1]);
    let verdict = place.ask(&question(RecordType::A), ours).await;
    assert_eq!(code(verdict), ResponseCode::ServFail);
    let conf = Conf::new(&[]);
    let verdict = ask(&conf.forwarder(port), &question(RecordType::A)).await;
    assert_eq!(code(verdict), ResponseCode::ServFail);
}

#[tokio::test]
async fn what_is_truncated_is_asked_again_by_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    resolver("127.0.0.1", port, |query| {
        let mut reply = query.into_response();
        reply.metadata.truncation = true;
        vec![bytes(&reply)]
    })
    .await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _): (_, SocketAddr) = listener.accept().await.unwrap();
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            let query = Message::from_vec(&query).unwrap();
            let name = query.queries[0].name().clone();
            let kind = query.queries[0].query_type();
            let mut reply = query.into_response();
            for n in 0..60 {
                let data = match kind {
                    RecordType::A => RData::A(A::new(192, 0, 2, n)),
                    _ => RData::TXT(TXT::new(vec![n.to_string().repeat(20)])),
                };
                reply.add_answer(Record::from_rdata(name.clone(), 60, data));
            }
            let reply = bytes(&reply);
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    let conf = Conf::new(&["127.0.0.1"]);
    let forwarder = conf.forwarder(port);
    // Some of 60 addresses are as good as all, some lines of text are not.
    for (kind, truncated) in [(RecordType::A, false), (RecordType::TXT, true)] {
        let Verdict::Answer(bytes) = ask(&forwarder, &question(kind)).await else {
            panic!()
        };
        let message = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= 512 && message.answers.len() > 5);
        assert_eq!(message.truncation, truncated, "{kind}");
    }
}

#[tokio::test]
async fn places_are_bounded_for_each_and_for_all() {
    let conf = Conf::new(&[]);
    let forwarder = conf.forwarder(53);
    let mut places = Vec::new();
    for asker in 0..10 {
        let before = places.len();
        while let Some(place) = forwarder.place(asker) {
            places.push(place);
        }
        assert_eq!(places.len() - before, if asker < 4 { 64 } else { 0 });
    }
    places.truncate(10);
    assert!(forwarder.place(9).is_some());
}
