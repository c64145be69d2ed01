//! What users, container engines and their files say to the agent and its command line.

use overlay_dp::capture::Filter;
use overlay_dp::fuzzing;

use crate::world::{A, B, VTEP, VTEP_R, inner, vxlan};

/// A request's body, as each request that there is.
pub fn api(input: &[u8]) {
    fuzzing::api(input);
}

pub fn api_seeds() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"name":"net","subnet":"10.0.0.0/24","gateway":"10.0.0.1","vni":4096,"ipv6":true}"#,
        r#"{"name":"test.1","network":"net","netns":{"name":"c1"},"ip":"10.0.0.9","aliases":["db"],"service":"web","publish":["8080:80/tcp"]}"#,
        r#"{"network":"net","mac":"02:42:0a:00:00:c8","vtep":"192.0.2.7","ips":["10.0.0.200"]}"#,
        r#"{"name":"web","network":"net","publish":["[::1]:8080:80/udp"]}"#,
        r#"{"from":"test.1","to":"10.0.0.3","proto":"tcp","port":443}"#,
    ];
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}

/// A request of Docker's, as each that there is.
pub fn docker(input: &[u8]) {
    fuzzing::docker(input);
}

pub fn docker_seeds() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"NetworkID":"n1","Options":{"com.docker.network.generic":{"overlay-dp.network":"net"}},"IPv4Data":[{"AddressSpace":"a","Pool":"10.0.0.0/24","Gateway":"10.0.0.1/24"}],"IPv6Data":[]}"#,
        r#"{"NetworkID":"n1","EndpointID":"e1","Options":{"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]},"Interface":{"Address":"10.0.0.2/24","AddressIPv6":"","MacAddress":"02:42:0a:00:00:02"}}"#,
        r#"{"Pool":"10.0.0.0/8","SubPool":"10.0.1.0/24","Options":{"overlay-dp.network":"net"},"V6":false}"#,
        r#"{"PoolID":"10.0.0.0/24","Address":"10.0.0.7","Options":{"RequestAddressType":"com.docker.network.gateway"}}"#,
    ];
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}

/// A configuration of CNI's.
pub fn cni(input: &[u8]) {
    fuzzing::cni(input);
}

pub fn cni_seeds() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"cniVersion":"1.0.0","name":"net","type":"overlay-dp","network":"net","create":true,"subnet":"10.0.0.0/24","runtimeConfig":{"aliases":{"net":["db"]},"ips":["10.0.0.9/24"],"mac":"02:42:0a:00:00:09","portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"dns":{"servers":["10.0.0.1"]}}}"#,
        r#"{"cniVersion":"1.1.0","name":"net","type":"overlay-dp","ipam":{},"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}"#,
    ];
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}

/// A filter behind its length in one byte, and a frame.
pub fn filter(input: &[u8]) {
    let Some((len, rest)) = input.split_first() else {
        return;
    };
    let (text, frame) = rest.split_at(usize::from(*len).min(rest.len()));
    if let Ok(text) = std::str::from_utf8(text)
        && let Ok(filter) = Filter::parse(text)
    {
        let _ = filter.wants(frame);
    }
}

pub fn filter_seeds() -> Vec<Vec<u8>> {
    let filters = [
        "tcp port 80",
        "not (arp or icmp) and host 10.0.0.2",
        "udp and src port 53 or dst net 10.0.0.0/24",
        "ip6 and icmp6",
        "ether host 02:42:0a:00:00:02",
    ];
    let mut seeds = Vec::new();
    for filter in filters {
        for frame in inner(A, B) {
            let whole = vxlan(VTEP_R, VTEP, 0, &frame, false);
            for frame in [frame, whole] {
                let len = u8::try_from(filter.len()).expect("a short filter");
                seeds.push([&[len], filter.as_bytes(), &frame].concat());
            }
        }
    }
    seeds
}
