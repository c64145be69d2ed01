//! nftables: one table of ours, replaced as a whole in one transaction. Connections that are
//! translated already stay as they are: that is conntrack's to know.
//!
//! The ways out are never reset for being idle: conntrack keeps established TCP connections for
//! five days by default, and what it has forgotten by then it takes up again.

use std::net::IpAddr;

use anyhow::{Result, anyhow};
use nftables::helper::{self, DEFAULT_ARGS, DEFAULT_NFT, NftablesError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::routers::ROUTER_PREFIX;
use crate::api::Publish;
use crate::instance::Instance;

/// All that is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The networks with a router here.
    pub ways: Vec<Way>,
    /// What is published, and the places that it leads to.
    pub published: Vec<(Publish, Vec<Backend>)>,
}

/// A network's way out of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The host's side of the router port.
    pub ifname: String,
    /// Whether the network has IPv6 addresses.
    pub ipv6: bool,
}

/// Where something published leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// The container's address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Rules {
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty() && self.published.is_empty()
    }
}

/// Each instance has a table of its own.
pub fn table_name(instance: &Instance) -> String {
    format!("overlay-dp_{}", instance.name())
}

/// Puts the table in the place of the one that is there, if any.
pub fn replace(table: &str, rules: &Rules) -> Result<()> {
    let family_and_name = json!({ "family": "inet", "name": table });
    let mut commands = vec![
        // So that there is one to delete.
        json!({ "add": { "table": family_and_name } }),
        json!({ "delete": { "table": family_and_name } }),
        json!({ "add": { "table": family_and_name } }),
    ];
    let chain = |name: &str, hook: Option<(&str, &str, i32)>| {
        let mut chain = json!({ "family": "inet", "table": table, "name": name });
        if let Some((kind, hook, priority)) = hook {
            chain["type"] = kind.into();
            chain["hook"] = hook.into();
            chain["prio"] = priority.into();
            chain["policy"] = "accept".into();
        }
        json!({ "add": { "chain": chain } })
    };
    commands.extend([
        chain("guard", Some(("filter", "prerouting", -300))),
        chain("published", None),
        chain("arriving", Some(("nat", "prerouting", -100))),
        chain("own", Some(("nat", "output", -100))),
        chain("leaving", Some(("nat", "postrouting", 100))),
        chain("passing", Some(("filter", "forward", 0))),
    ]);
    let rules = all_rules(rules).into_iter().map(|(chain, expr)| {
        json!({ "add": { "rule": {
            "family": "inet", "table": table, "chain": chain, "expr": expr,
        } } })
    });
    commands.extend(rules);
    run(&commands)
}

/// Removes the table, if it is there.
pub fn remove(table: &str) -> Result<()> {
    let table = json!({ "family": "inet", "name": table });
    run(&[
        json!({ "add": { "table": table } }),
        json!({ "delete": { "table": table } }),
    ])
}

/// What is in the table, but for numbers that each replacement makes anew; `None` when there is
/// none.
pub fn list(table: &str) -> Result<Option<String>> {
    match helper::get_current_ruleset_raw(DEFAULT_NFT, ["list", "table", "inet", table]) {
        Ok(text) => {
            let mut value: Value = serde_json::from_str(&text)?;
            forget_handles(&mut value);
            Ok(Some(value["nftables"].to_string()))
        }
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file") => Ok(None),
        Err(error) => Err(explain(&error)),
    }
}

fn forget_handles(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            map.values_mut().for_each(forget_handles);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_handles),
        _ => {}
    }
}

fn run(commands: &[Value]) -> Result<()> {
    let payload = json!({ "nftables": commands }).to_string();
    match helper::apply_ruleset_raw(&payload, DEFAULT_NFT, DEFAULT_ARGS) {
        Ok(_) => Ok(()),
        Err(error) => Err(explain(&error)),
    }
}

fn explain(error: &NftablesError) -> anyhow::Error {
    match error {
        NftablesError::NftExecution { inner, .. }
            if inner.kind() == std::io::ErrorKind::NotFound =>
        {
            anyhow!(
                "there is no program 'nft', which lets networks out and publishes ports: install nftables, or use networks \
                 made with --internal"
            )
        }
        NftablesError::NftFailed { stderr, .. } if !stderr.is_empty() => {
            anyhow!("nft: {}", stderr.lines().next().unwrap_or_default())
        }
        error => anyhow!("{error}"),
    }
}

/// Every rule with its chain, in order.
fn all_rules(rules: &Rules) -> Vec<(&'static str, Vec<Value>)> {
    let any_router = format!("{ROUTER_PREFIX}*");
    let from = |name: &str| is(meta("iifname"), name);
    let to = |name: &str| is(meta("oifname"), name);
    let loopback = json!({ "prefix": { "addr": "127.0.0.0", "len": 8 } });
    let local = is(
        json!({ "fib": { "result": "type", "flags": ["daddr"] } }),
        "local",
    );
    let translated =
        json!({ "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": "dnat" } });
    let state = |states: Value| json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": states } });
    let verdict = |name: &str| json!({ name: null });
    let jump = json!({ "jump": { "target": "published" } });

    let mut all = vec![
        // The host's loopback is routed through these interfaces for what is published: not for
        // others.
        (
            "guard",
            vec![
                from(&any_router),
                is(field("ip", "daddr"), loopback.clone()),
                verdict("drop"),
            ],
        ),
        ("arriving", vec![local.clone(), jump.clone()]),
        ("own", vec![local, jump]),
        // What belongs to no connection has lost its translation: it must not leave without.
        (
            "passing",
            vec![from(&any_router), state(json!("invalid")), verdict("drop")],
        ),
        // Into a network leads only what is published, and what answers.
        (
            "passing",
            vec![
                to(&any_router),
                state(json!(["established", "related"])),
                verdict("accept"),
            ],
        ),
        (
            "passing",
            vec![to(&any_router), translated.clone(), verdict("accept")],
        ),
        ("passing", vec![to(&any_router), verdict("drop")]),
        (
            "leaving",
            vec![
                to(&any_router),
                is(field("ip", "saddr"), loopback),
                verdict("masquerade"),
            ],
        ),
    ];
    for way in &rules.ways {
        let name = way.ifname.as_str();
        let elsewhere =
            json!({ "match": { "op": "!=", "left": meta("oifname"), "right": any_router } });
        all.push((
            "leaving",
            vec![from(name), elsewhere, verdict("masquerade")],
        ));
        // Its answer would go to the asker directly, who doesn't know of it.
        all.push((
            "leaving",
            vec![
                from(name),
                to(name),
                translated.clone(),
                verdict("masquerade"),
            ],
        ));
    }
    for (publish, backends) in &rules.published {
        for ipv6 in [false, true] {
            let of_family: Vec<&Backend> = backends
                .iter()
                .filter(|backend| backend.ip.is_ipv6() == ipv6)
                .collect();
            if publish.host_ip.is_some_and(|ip| ip.is_ipv6() != ipv6) {
                continue;
            }
            if let Some(rule) = published(publish, &of_family, ipv6) {
                all.push(("published", rule));
            }
        }
    }
    all
}

/// The rule for something published, in one family; `None` when it leads nowhere.
fn published(publish: &Publish, backends: &[&Backend], ipv6: bool) -> Option<Vec<Value>> {
    let (family, nfproto) = if ipv6 {
        ("ip6", "ipv6")
    } else {
        ("ip", "ipv4")
    };
    let protocol = publish.protocol.name();
    let mut rule = vec![is(meta("nfproto"), nfproto)];
    if let Some(ip) = publish.host_ip.filter(|ip| !ip.is_unspecified()) {
        rule.push(is(field(family, "daddr"), ip.to_string()));
    }
    rule.push(is(field(protocol, "dport"), publish.host_port));
    let place = |backend: &Backend| json!({ "concat": [backend.ip.to_string(), backend.port] });
    rule.push(match backends {
        [] => return None,
        [only] => json!({ "dnat": {
            "family": family, "addr": only.ip.to_string(), "port": only.port,
        } }),
        many => {
            // By client and its port: each new connection has its own, and a repeated first packet
            // the same one.
            let key = json!({ "jhash": { "mod": many.len(), "expr": { "concat": [
                field(family, "saddr"), field(protocol, "sport"),
            ] } } });
            let places = many.iter().enumerate();
            let places: Vec<Value> = places.map(|(n, b)| json!([n, place(b)])).collect();
            json!({ "dnat": { "family": family, "addr": {
                "map": { "key": key, "data": { "set": places } },
            } } })
        }
    });
    Some(rule)
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn field(protocol: &str, name: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": name } })
}

fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}
