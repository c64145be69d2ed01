//! One question to one resolver.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::question::Question;
use crate::wire::{HEADER, forget_soon, skip_name};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest datagram that is read: more than is ever asked for.
const DATAGRAM: usize = 4096;
const TRUNCATED: u8 = 0x02;

/// What a resolver said.
pub(crate) struct Reply {
    /// As it came.
    message: Vec<u8>,
    /// Where its questions end.
    questions_end: usize,
}

/// Asks a resolver, from a port and with an id that nobody can guess; by TCP when its answer does
/// not fit a datagram.
///
/// # Errors
/// When it can't be asked, or does not answer in time.
pub(crate) async fn ask(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let request = question.upstream(rand::random());
    let reply = timeout(PATIENCE, by_udp(server, &request)).await??;
    if reply.message[2] & TRUNCATED == 0 {
        return Ok(reply);
    }
    match timeout(PATIENCE, by_tcp(server, &request)).await {
        Ok(Ok(whole)) => Ok(whole),
        // The part that came is better than nothing, and says that it is one.
        Ok(Err(_)) | Err(_) => Ok(reply),
    }
}

async fn by_udp(server: SocketAddr, request: &[u8]) -> io::Result<Reply> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel takes a free port at random, and from then on only what comes from the server.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(reply) = Reply::to(request, &buffer[..len]) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), request].concat())
        .await?;
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Reply::to(request, &message).ok_or_else(|| io::Error::other("an answer to something else"))
}

impl Reply {
    /// The reply, if it is one to this request.
    pub(crate) fn to(request: &[u8], message: &[u8]) -> Option<Reply> {
        let head = message.get(..HEADER)?;
        let is_answer = head[2] & 0xf8 == 0x80;
        if head[..2] != request[..2] || !is_answer {
            return None;
        }
        let names_end = skip_name(request, HEADER)?;
        let questions_end = match [head[4], head[5]] {
            // Some say so that they don't understand: see the code.
            [0, 0] if head[3] & 0xf != 0 => HEADER,
            [0, 1] => {
                let name = message.get(HEADER..names_end)?;
                let kind = message.get(names_end..names_end + 4)?;
                let same = name.eq_ignore_ascii_case(request.get(HEADER..names_end)?)
                    && kind == request.get(names_end..names_end + 4)?;
                same.then_some(names_end + 4)?
            }
            _ => return None,
        };
        Some(Reply {
            message: message.to_vec(),
            questions_end,
        })
    }

    /// Whether it says something about the name, rather than about the resolver.
    pub fn is_answer(&self) -> bool {
        let code = ResponseCode::from_low(self.message[3] & 0xf);
        matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
            && self.questions_end > HEADER
    }

    /// The reply as who asked gets it: with the id and the spelling of the question.
    pub fn deliver(mut self, question: &Question) -> Vec<u8> {
        let asked = question.upstream(question.id());
        if self.questions_end == HEADER {
            return question.failure();
        }
        for range in [0..2, HEADER..self.questions_end] {
            self.message[range.clone()].copy_from_slice(&asked[range]);
        }
        forget_soon(&mut self.message);
        if self.message.len() <= question.limit() {
            return self.message;
        }
        shorten(&self.message, question)
    }
}

/// As much of a message as its reader takes. The gateway has no TCP port where the rest could be
/// asked for: some of the addresses of a name are as good as all, so that is not said to be
/// truncated. All else is.
fn shorten(message: &[u8], question: &Question) -> Vec<u8> {
    let Ok(mut message) = Message::from_vec(message) else {
        return question.failure();
    };
    let kind = question.query.query_type();
    message.additionals.clear();
    if !message.answers.is_empty() {
        message.authorities.clear();
    }
    loop {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= question.limit() => return bytes,
            Ok(_) => {}
            Err(_) => return question.failure(),
        }
        let last = message.answers.pop().or_else(|| message.authorities.pop());
        if last.is_none() {
            return question.failure();
        }
        let some = message.answers.iter().any(|r| r.record_type() == kind);
        let enough = some && matches!(kind, RecordType::A | RecordType::AAAA);
        message.metadata.truncation = !enough;
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{Name, RData, Record};
    use proptest::prelude::*;

    use super::*;

    fn question(kind: RecordType) -> Question {
        let mut message = Message::new(7, hickory_proto::op::MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("WWW.Example.com.").unwrap();
        message.add_query(Query::query(name, kind));
        Question::parse(&message.to_vec().unwrap()).unwrap()
    }

    fn reply(question: &Question, records: impl Iterator<Item = RData>) -> Reply {
        let request = question.upstream(99);
        let mut message = Message::from_vec(&request).unwrap().into_response();
        let name = question.query.name();
        message.add_answers(records.map(|data| Record::from_rdata(name.clone(), 60, data)));
        let lower = message.to_vec().unwrap().to_ascii_lowercase();
        let mut bytes = message.to_vec().unwrap();
        bytes[HEADER..HEADER + 17].copy_from_slice(&lower[HEADER..HEADER + 17]);
        Reply::to(&request, &bytes).unwrap()
    }

    #[test]
    fn a_reply_must_be_to_the_request() {
        let question = question(RecordType::A);
        let request = question.upstream(99);
        let good = reply(&question, std::iter::empty()).message;
        assert!(Reply::to(&request, &good).is_some());
        // The id, that it is a reply, its opcode, how many questions, the name, type, class.
        for at in [0, 1, 2, 5, 14, 30, 32] {
            let mut bad = good.clone();
            bad[at] ^= if at == 2 { 0x80 } else { 1 };
            assert!(Reply::to(&request, &bad).is_none(), "{at}");
        }
        for len in 0..33 {
            assert!(Reply::to(&request, &good[..len]).is_none(), "{len}");
        }
    }

    #[test]
    fn it_is_delivered_with_id_and_spelling_of_the_question() {
        let question = question(RecordType::A);
        let delivered = reply(&question, std::iter::empty()).deliver(&question);
        assert_eq!(delivered[..2], [0, 7]);
        let name = b"\x03WWW\x07Example\x03com\x00";
        assert_eq!(&delivered[HEADER..HEADER + name.len()], name);
    }

    #[test]
    fn what_is_too_long_is_shortened() {
        let addresses = (0..100).map(|n| RData::A(A::new(192, 0, 2, n)));
        let asked = question(RecordType::A);
        let bytes = reply(&asked, addresses).deliver(&asked);
        let message = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= 512 && message.answers.len() >= 28 && !message.truncation);

        let texts = (0..10).map(|n| RData::TXT(TXT::new(vec![n.to_string().repeat(100)])));
        let asked = question(RecordType::TXT);
        let bytes = reply(&asked, texts).deliver(&asked);
        assert!(Message::from_vec(&bytes).unwrap().truncation && bytes.len() <= 512);
    }

    proptest! {
        #[test]
        fn any_reply(
            bytes in prop::collection::vec(any::<u8>(), 0..900),
            keep in 0..40_usize,
        ) {
            let question = question(RecordType::A);
            let request = question.upstream(99);
            let mut message = reply(&question, std::iter::empty()).message;
            message.truncate(keep);
            message.extend_from_slice(&bytes);
            if let Some(reply) = Reply::to(&request, &message) {
                prop_assert!(reply.deliver(&question).len() <= 512);
            }
        }
    }
}
