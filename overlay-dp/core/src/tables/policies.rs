//! The policies of one network, and what of them each of its ports has.

use std::net::{IpAddr, Ipv6Addr};

use overlay_common::policy::{MAX_RULES, PolicyEntry};

use super::record::Record;
use crate::policy::{Action, Policy};

/// What was agreed about who reaches whom in one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetPolicies {
    /// By name.
    pub policies: Vec<Policy>,
    /// Whether nothing is reached that none of them allows.
    pub deny: bool,
}

impl NetPolicies {
    /// Whether everybody may reach everybody.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && !self.deny
    }

    /// The policies about an endpoint.
    pub(super) fn about<'a>(&'a self, record: &'a Record) -> impl Iterator<Item = &'a Policy> {
        let ips = || record.ips.iter().map(|(ip, _)| address(ip));
        // What the host itself gets is the host's own affair.
        let all = self.policies.iter().filter(|_| !record.router);
        all.filter(move |policy| policy.rule.is_about(record.service.as_deref(), ips()))
    }

    /// What the programs are to know of an endpoint; `None` when everybody may reach it. Whom a
    /// policy allows something is closed to others.
    pub(super) fn entry(&self, record: &Record) -> Option<Box<PolicyEntry>> {
        if record.router {
            return None;
        }
        let count = self.about(record).count();
        if count > MAX_RULES {
            // More than managers agree to.
            return Some(Box::new(PolicyEntry::SHUT));
        }
        let mut rules = self.about(record).map(|policy| &policy.rule);
        let closed = self.deny || rules.any(|rule| rule.action == Action::Allow);
        let rules = self.about(record).map(|policy| policy.rule.compiled());
        (closed || count > 0).then(|| Box::new(PolicyEntry::new(closed, rules)))
    }
}

fn address(ip: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_octets(*ip)).to_canonical()
}
