//! From a message to its answer.

use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use overlay_core::model::{Endpoint, Vni};

use crate::find::{Fit, Found, find};
use crate::names::{Key, Names, Zone};
use crate::question::{Question, Unfit};

/// More records than this fit no answer.
const MOST: usize = 128;

/// What becomes of a message.
#[derive(Debug)]
pub enum Outcome {
    /// The answer: the name is ours.
    Answer {
        /// The message.
        bytes: Vec<u8>,
        /// Whether there is such a name.
        found: bool,
    },
    /// The answer that says what is wrong with the message.
    Unfit(Vec<u8>),
    /// The name is not ours.
    Forward(Box<Question>),
    /// Nothing: it is no question at all.
    Ignore,
}

/// Answers a message that came in through the network `vni`. `seed` is random: it says which of
/// many addresses come first.
pub fn answer(names: &Names, vni: Vni, message: &[u8], seed: u64) -> Outcome {
    let question = match Question::parse(message) {
        Ok(question) => question,
        Err(Unfit::Ignore) => return Outcome::Ignore,
        Err(Unfit::Reply(reply)) => return Outcome::Unfit(reply),
    };
    let found = find(names, vni, question.query.name());
    match (found, names.zone(vni)) {
        (Some(found), Some(zone)) => {
            let answering = Answering {
                names,
                zone,
                question: &question,
                seed,
            };
            Outcome::Answer {
                bytes: answering.encode(&found),
                found: found != Found::Nothing,
            }
        }
        _ => Outcome::Forward(Box::new(question)),
    }
}

/// One answer in the making.
struct Answering<'a> {
    names: &'a Names,
    zone: &'a Zone,
    question: &'a Question,
    seed: u64,
}

impl Answering<'_> {
    fn encode(&self, found: &Found<'_>) -> Vec<u8> {
        let code = match found {
            Found::Nothing => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        let mut message = self.question.response(code);
        message.metadata.authoritative = true;
        message.metadata.checking_disabled = false;
        let (records, additional) = self.records(found);
        message.add_answers(records.into_iter().map(|data| self.record(data)));
        message.add_additionals(additional);
        if message.answers.is_empty() {
            message.add_authority(self.soa());
        }
        self.fit(message)
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.question.query.name().clone(), 0, data)
    }

    /// What answers the question itself, and what goes with it.
    fn records(&self, found: &Found<'_>) -> (Vec<RData>, Vec<Record>) {
        let exists = !matches!(found, Found::Nothing);
        let records = match (self.question.query.query_type(), found) {
            // RFC 8482 section 4.2.
            (RecordType::ANY, _) if exists => {
                vec![RData::HINFO(HINFO::new("RFC8482".into(), String::new()))]
            }
            (RecordType::A | RecordType::AAAA, Found::Endpoints(keys)) => self
                .some_of(keys)
                .flat_map(|endpoint| endpoint.ips.iter().filter_map(|ip| self.address(*ip)))
                .collect(),
            (RecordType::A | RecordType::AAAA, Found::Vips(vips)) => {
                vips.ips.iter().filter_map(|ip| self.address(*ip)).collect()
            }
            (RecordType::A | RecordType::AAAA, Found::Gateway) => {
                let gateways = self.zone.gateways();
                gateways.filter_map(|ip| self.address(ip)).collect()
            }
            (RecordType::PTR, Found::Address(keys)) => {
                let names = keys.iter().filter_map(|key| self.zone.endpoint(key));
                let names = names.filter_map(|endpoint| self.full_name(&endpoint.name));
                names.take(MOST).map(|name| RData::PTR(PTR(name))).collect()
            }
            (RecordType::PTR, Found::VipAddress(vips)) => {
                let name = self.full_name(&vips.name);
                name.into_iter().map(|name| RData::PTR(PTR(name))).collect()
            }
            (RecordType::PTR, Found::GatewayAddress) => {
                let name = self.full_name("gateway");
                name.into_iter().map(|name| RData::PTR(PTR(name))).collect()
            }
            (RecordType::SRV, Found::Tasks(keys, fit)) => return self.tasks(keys, Some(*fit)),
            // Of a service's or a task's name itself, when there are ports to tell of.
            (RecordType::SRV, Found::Endpoints(keys)) => return self.tasks(keys, None),
            (RecordType::SRV, Found::Vips(vips)) => {
                let keys = self.zone.tasks(&vips.name.to_ascii_lowercase());
                return self.tasks(keys.unwrap_or_default(), None);
            }
            (RecordType::SOA, Found::Apex) => vec![self.soa().data],
            _ => Vec::new(),
        };
        (records, Vec::new())
    }

    /// A record for each port of each task.
    fn tasks(&self, keys: &[Key], fit: Option<Fit>) -> (Vec<RData>, Vec<Record>) {
        let (mut records, mut additional) = (Vec::new(), Vec::new());
        for endpoint in self.some_of(keys) {
            let ports = self.ports(endpoint, fit);
            let Some(name) = self.full_name(&endpoint.name).filter(|_| !ports.is_empty()) else {
                continue;
            };
            let addresses = endpoint.ips.iter().filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(RData::A(A(*ip))),
                IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
                IpAddr::V6(ip) => Some(RData::AAAA(AAAA(*ip))),
            });
            additional.extend(addresses.map(|data| Record::from_rdata(name.clone(), 0, data)));
            let record = |port| RData::SRV(SRV::new(0, 1, port, name.clone()));
            records.extend(ports.into_iter().map(record));
        }
        (records, additional)
    }

    /// The task's ports that its service publishes. Where none fits, it may listen on one all the
    /// same: whoever asks by a protocol is told of the task then, with 0 for a port that is not known.
    fn ports(&self, endpoint: &Endpoint, fit: Option<Fit>) -> Vec<u16> {
        let published = self.names.published_of(endpoint).iter();
        let fitting = published.filter(|port| {
            fit.is_none_or(|fit| {
                fit.protocol == port.protocol && fit.port.is_none_or(|number| number == port.port)
            })
        });
        let mut ports: Vec<u16> = fitting.map(|port| port.port).collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() && fit.is_some() {
            ports.push(0);
        }
        ports
    }

    /// An address of the family that is asked for.
    fn address(&self, ip: IpAddr) -> Option<RData> {
        match (self.question.query.query_type(), ip) {
            (RecordType::A, IpAddr::V4(ip)) => Some(RData::A(A(ip))),
            // Without a zone, a link-local address leads nowhere.
            (RecordType::AAAA, IpAddr::V6(ip)) if !ip.is_unicast_link_local() => {
                Some(RData::AAAA(AAAA(ip)))
            }
            _ => None,
        }
    }

    /// As many as may fit, in random order; when there are more, beginning anywhere. Tasks that
    /// are not ready are left out, unless none is.
    fn some_of<'a>(&'a self, keys: &'a [Key]) -> impl Iterator<Item = &'a Endpoint> {
        let mut random = Random(self.seed);
        let is_ready = |key: &&Key| self.zone.endpoint(key).is_some_and(|e| !e.unready);
        let mut ready: Vec<&Key> = keys.iter().filter(is_ready).collect();
        if ready.is_empty() {
            ready = keys.iter().collect();
        }
        let keys = ready;
        let begin = random.below(keys.len());
        let round = keys.iter().copied().cycle().skip(begin);
        let round = round.take(keys.len().min(MOST));
        let mut chosen: Vec<&Key> = round.collect();
        for last in (1..chosen.len()).rev() {
            chosen.swap(last, random.below(last + 1));
        }
        let endpoints = chosen.into_iter();
        endpoints.filter_map(|key| self.zone.endpoint(key))
    }

    /// `<name>.<network>`; `None` for the few names that are none in DNS, such as `a..b`.
    fn full_name(&self, name: &str) -> Option<Name> {
        let network = self.zone.network.as_ref()?;
        Name::from_labels(name.split('.').chain(network.name.split('.'))).ok()
    }

    /// The network is the zone of what ends with its name. What does not is a zone of its own.
    fn soa(&self) -> Record {
        let name = self.question.query.name();
        let apex = self.zone.network.as_ref();
        let apex = apex.and_then(|network| Name::from_labels(network.name.split('.')).ok());
        let apex = apex.filter(|apex| apex.zone_of(name));
        let primary = self.full_name("gateway").unwrap_or_else(Name::root);
        let people = self.full_name("hostmaster").unwrap_or_else(Name::root);
        let soa = SOA::new(primary, people, self.names.serial(), 0, 0, 0, 0);
        Record::from_rdata(apex.unwrap_or_else(|| name.clone()), 0, RData::SOA(soa))
    }

    /// The message with as many records as its reader takes. There is no other way to ask for the
    /// rest, so it is not said to be truncated: each of the addresses is as good as the others.
    fn fit(&self, mut message: Message) -> Vec<u8> {
        let limit = self.question.limit();
        loop {
            let bytes = message.to_vec().unwrap_or_default();
            if !bytes.is_empty() && bytes.len() <= limit {
                return bytes;
            }
            let records = match message.additionals.is_empty() {
                false => &mut message.additionals,
                true => &mut message.answers,
            };
            if records.is_empty() {
                return self.question.failure();
            }
            // At first about as many as fit, then one by one.
            let most = (records.len() * limit / bytes.len().max(1)).min(records.len() - 1);
            records.truncate(most);
        }
    }
}

/// SplitMix64: good enough to take turns.
struct Random(u64);

impl Random {
    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        usize::try_from(x % (end.max(1) as u64)).unwrap_or(0)
    }
}
