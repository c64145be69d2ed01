//! What was asked, and by which rules it can be answered.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;

/// Without EDNS (RFC 1035 section 4.2.1).
const PLAIN_LIMIT: u16 = 512;
/// No answer is longer, so that none is ever fragmented (DNS flag day 2020).
pub(crate) const LIMIT: u16 = 1232;

/// A question that can be answered, or asked of somebody else.
#[derive(Clone, Debug)]
pub struct Question {
    id: u16,
    pub(crate) query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    authentic_data: bool,
    /// Whether it has EDNS, and the DO bit there.
    edns: Option<bool>,
    limit: u16,
}

/// A message that is no question which could be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Nothing can be said: not even whom it is from.
    Ignore,
    /// This can be said.
    Reply(Vec<u8>),
}

impl Question {
    /// The question in a message from a container.
    pub(crate) fn parse(message: &[u8]) -> Result<Question, Unfit> {
        let [i0, i1, f0, f1, q0, q1, a0, a1, n0, n1, ..] = message else {
            return Err(Unfit::Ignore);
        };
        // An answer to an answer would go round for ever.
        if message.len() < 12 || f0 & 0x80 != 0 {
            return Err(Unfit::Ignore);
        }
        // The header with its opcode and RD alone: whatever follows may be beyond reading.
        let unfit = |code: ResponseCode| {
            let flags = [0x80 | (f0 & 0x79), 0x80 | code.low()];
            let head = [&[*i0, *i1][..], &flags, &[0; 8]].concat();
            Unfit::Reply(head)
        };
        if (f0 >> 3) & 0xf != 0 {
            return Err(unfit(ResponseCode::NotImp));
        }
        let _ = f1;
        if [*q0, *q1] != [0, 1] || [*a0, *a1, *n0, *n1] != [0; 4] {
            return Err(unfit(ResponseCode::FormErr));
        }
        let parsed = Message::from_vec(message).map_err(|_| unfit(ResponseCode::FormErr))?;
        let [query] = &parsed.queries[..] else {
            return Err(unfit(ResponseCode::FormErr));
        };
        let edns = parsed.edns.as_ref();
        let question = Question {
            id: parsed.metadata.id,
            query: query.clone(),
            recursion_desired: parsed.metadata.recursion_desired,
            checking_disabled: parsed.metadata.checking_disabled,
            authentic_data: parsed.metadata.authentic_data,
            edns: edns.map(|edns| edns.flags().dnssec_ok),
            limit: edns.map_or(PLAIN_LIMIT, |edns| {
                edns.max_payload().clamp(PLAIN_LIMIT, LIMIT)
            }),
        };
        if edns.is_some_and(|edns| edns.version() != 0) {
            return Err(Unfit::Reply(question.error(ResponseCode::BADVERS)));
        }
        // Zone transfers, and what servers tell of themselves.
        let kind = u16::from(query.query_type());
        let transfer = (249..=254).contains(&kind) || query.query_type() == RecordType::OPT;
        if transfer || query.query_class() != hickory_proto::rr::DNSClass::IN {
            return Err(Unfit::Reply(question.error(ResponseCode::Refused)));
        }
        Ok(question)
    }

    /// The longest answer, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit.into()
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// An answer without records.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if let Some(dnssec_ok) = self.edns {
            message.set_edns(edns(dnssec_ok));
        }
        message
    }

    /// [`Question::response`], encoded.
    pub(crate) fn error(&self, code: ResponseCode) -> Vec<u8> {
        self.response(code).to_vec().unwrap_or_default()
    }

    /// The answer when nobody could be asked.
    pub fn failure(&self) -> Vec<u8> {
        self.error(ResponseCode::ServFail)
    }

    /// The same question, to be asked of a resolver. Only what it needs goes along: no cookies, no
    /// client's subnet.
    pub(crate) fn upstream(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = self.authentic_data;
        message.add_query(self.query.clone());
        if let Some(dnssec_ok) = self.edns {
            message.set_edns(edns(dnssec_ok));
        }
        message.to_vec().unwrap_or_default()
    }
}

fn edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_version(0)
        .set_dnssec_ok(dnssec_ok)
        .set_max_payload(LIMIT);
    edns
}
