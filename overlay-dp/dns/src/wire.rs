//! The little of a message that must be known to pass it on unread.

/// Where the bytes of the header are.
pub(crate) const HEADER: usize = 12;
const SOA: [u8; 2] = [0, 6];

/// Has nobody remember that a name does not exist: it may become ours the next moment. Only a
/// well-formed negative answer is changed.
pub(crate) fn forget_soon(message: &mut [u8]) {
    let Some(places) = soa_ttls(message) else {
        return;
    };
    for at in places {
        if let Some(ttl) = message.get_mut(at..at + 4) {
            ttl.fill(0);
        }
    }
}

/// Where the TTLs of the SOA records in the authority section are, if there is no answer that
/// they come after.
fn soa_ttls(message: &[u8]) -> Option<Vec<usize>> {
    let count = |at: usize| {
        let bytes = message.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (questions, answers, authorities) = (count(4)?, count(6)?, count(8)?);
    let mut at = HEADER;
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    // An alias that leads nowhere is remembered for as long as it likes; all else is an answer.
    if answers > 0 {
        return None;
    }
    let mut places = Vec::new();
    for _ in 0..authorities {
        at = skip_name(message, at)?;
        if message.get(at..at + 2)? == SOA {
            places.push(at + 4);
        }
        at = at + 10 + usize::from(count(at + 8)?);
    }
    Some(places)
}

/// What follows a name. A pointer ends it (RFC 1035 section 4.1.4).
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            len if len < 64 => at += 1 + len,
            pointer if pointer >= 192 => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode, Query};
    use hickory_proto::rr::rdata::SOA;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_soa_of_a_negative_answer_is_forgotten() {
        let name: Name = "test.1.".parse().unwrap();
        let root = Name::root();
        let soa = RData::SOA(SOA::new(root.clone(), root.clone(), 1, 2, 3, 4, 86400));
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        let ns = RData::NS(hickory_proto::rr::rdata::NS(root.clone()));
        message.add_authority(Record::from_rdata(root.clone(), 77, ns));
        message.add_authority(Record::from_rdata(root.clone(), 86400, soa.clone()));
        let mut bytes = message.to_vec().unwrap();
        forget_soon(&mut bytes);
        let changed = Message::from_vec(&bytes).unwrap();
        let ttls: Vec<u32> = changed.authorities.iter().map(|r| r.ttl).collect();
        assert_eq!(ttls, [77, 0]);

        message.add_answer(Record::from_rdata(name, 5, soa));
        let before = message.to_vec().unwrap();
        let mut after = before.clone();
        forget_soon(&mut after);
        assert_eq!(before, after);
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let len = bytes.len();
            forget_soon(&mut bytes);
            prop_assert_eq!(bytes.len(), len);
        }
    }
}
