use super::config::{Args, Config, Container};
use super::error;
use serde_json::{Value, json};

fn container(args: &str) -> Container {
    Container {
        id: "0123456789abcdef".to_owned(),
        ifname: "eth0".to_owned(),
        netns: None,
        args: Args::parse(args).unwrap(),
    }
}

fn config(extra: Value) -> error::Result<Config> {
    let mut all = json!({ "cniVersion": "1.1.0", "name": "n", "type": "overlay-dp" });
    for (key, value) in extra.as_object().unwrap() {
        all[key] = value.clone();
    }
    Config::parse(all)
}

#[test]
fn containers_are_named_after_their_pods_or_ids() {
    for (args, name) in [
        ("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop", "web-0.shop"),
        ("IgnoreUnknown=1;K8S_POD_NAME=web", "web"),
        ("K8S_POD_NAME=", "0123456789ab"),
        ("K8S_POD_NAMESPACE=shop", "0123456789ab"),
        ("K8S_POD_NAME=a b", "0123456789ab"),
        ("", "0123456789ab"),
    ] {
        assert_eq!(container(args).name(), name, "{args}");
    }
    let long = format!("K8S_POD_NAME={};K8S_POD_NAMESPACE=x", "p".repeat(62));
    assert_eq!(container(&long).name(), "0123456789ab");
    assert_eq!(
        Args::parse("nonsense").unwrap_err().code,
        error::ENVIRONMENT
    );
}

#[test]
fn addresses_come_from_the_capability_or_the_arguments() {
    let args = container("IP=10.0.0.9;MAC=02:42:0A:00:00:09").args;
    let plain = config(json!({})).unwrap();
    let nine: std::net::IpAddr = "10.0.0.9".parse().unwrap();
    assert_eq!(plain.ips(&args).unwrap(), [nine]);
    let mac = plain.mac(&args).unwrap().unwrap();
    assert_eq!(mac.to_string(), "02:42:0a:00:00:09");
    let asked = json!({ "runtimeConfig": { "ips": ["10.0.0.8/24"], "mac": "02:00:00:00:00:01" } });
    let asked = config(asked).unwrap();
    let eight: std::net::IpAddr = "10.0.0.8".parse().unwrap();
    assert_eq!(asked.ips(&args).unwrap(), [eight]);
    assert_eq!(asked.mac(&args).unwrap().unwrap().0[5], 1);
    let bad = config(json!({ "runtimeConfig": { "ips": ["x"] } })).unwrap();
    assert_eq!(bad.ips(&args).unwrap_err().code, error::CONFIG);
}

#[test]
fn aliases_are_those_of_the_configuration() {
    let aliases = json!({ "runtimeConfig": { "aliases": { "n": ["a"], "other": ["b"] } } });
    assert_eq!(config(aliases).unwrap().aliases(), ["a"]);
}

#[test]
fn what_can_not_be_done_has_its_code() {
    for (extra, code) in [
        (json!({ "cniVersion": "0.3.0" }), error::VERSION),
        (json!({ "cniVersion": 5 }), error::VERSION),
        (
            json!({ "ipam": { "type": "host-local" } }),
            error::UNSUPPORTED,
        ),
        (json!({ "network": "a b" }), error::CONFIG),
        (json!({ "name": "" }), error::CONFIG),
        (json!({ "subnet": "x" }), error::DECODE),
        (json!({ "runtimeConfig": "x" }), error::DECODE),
    ] {
        assert_eq!(config(extra.clone()).unwrap_err().code, code, "{extra}");
    }
    assert!(
        config(json!({ "ipam": {}, "instance": "../x" }))
            .unwrap()
            .instance()
            .is_err()
    );
}
