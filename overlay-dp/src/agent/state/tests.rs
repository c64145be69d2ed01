use super::*;

fn port(number: u8, ifindex: u32) -> Port {
    Port {
        endpoint: Endpoint {
            name: format!("c{number}"),
            vni: vni(),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            ips: vec![[10, 0, 0, number].into()],
            aliases: Vec::new(),
            service: None,
            router: false,
            unready: false,
        },
        netns: Netns::Pid(number.into()),
        local: LocalContainer {
            ifname: "eth0".to_owned(),
            netns: number.to_string(),
            port: interface(number),
            port_ifindex: ifindex,
            mtu: 1450,
            attachment: None,
            publish: Vec::new(),
            limit: None,
        },
        resolv_conf: None,
        intercept_dns: false,
        docker: None,
        publish: Vec::new(),
    }
}

fn interface(number: u8) -> String {
    format!("ovp-{number}")
}

fn entry(number: u8, vtep: u8) -> StaticEntry {
    StaticEntry {
        vni: vni(),
        mac: MacAddr([4, 0, 0, 0, 0, number]),
        vtep: [192, 0, 2, vtep].into(),
        ips: Vec::new(),
    }
}

fn vni() -> Vni {
    Vni::new(4096).unwrap()
}

fn names(known: &Known) -> Vec<&str> {
    known.ports().map(|p| p.endpoint.name.as_str()).collect()
}

#[test]
fn what_was_changed_is_there_again_in_the_order_of_coming() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path()).unwrap();
    assert_eq!(state.set_uplink("eth0").unwrap(), None);
    for number in [3, 1, 2] {
        state.port_add(port(number, number.into())).unwrap();
    }
    state.ports_remove(&["ovp-nobody", &interface(1)]).unwrap();
    state.ports_remove(&["ovp-nobody"]).unwrap();
    state.static_add(entry(1, 1)).unwrap();
    state.static_add(entry(2, 1)).unwrap();
    state.static_add(entry(1, 2)).unwrap();
    drop(state);
    for known in [
        Known::load(dir.path()).unwrap(),
        State::open(dir.path()).unwrap().known,
    ] {
        assert_eq!(names(&known), ["c3", "c2"]);
        assert_eq!(known.port_at(2), Some(&port(2, 2)));
        assert_eq!(known.port_at(1), None);
        assert_eq!(
            known.statics().cloned().collect::<Vec<_>>(),
            [entry(2, 1), entry(1, 2)]
        );
        assert_eq!(known.uplink(), Some("eth0"));
        assert_eq!(known.networks(), BTreeSet::from([vni()]));
    }
    let mut state = State::open(dir.path()).unwrap();
    state
        .statics_remove(&[(vni(), entry(1, 0).mac), (vni(), entry(2, 0).mac)])
        .unwrap();
    state.ports_remove(&[&interface(2), &interface(3)]).unwrap();
    assert!(Known::load(dir.path()).unwrap().networks().is_empty());
}

#[test]
fn an_ifindex_that_was_given_again_is_the_newer_ports() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path()).unwrap();
    state.port_add(port(1, 7)).unwrap();
    state.port_add(port(2, 7)).unwrap();
    assert_eq!(state.port_at(7), Some(&port(2, 7)));
    state.ports_remove(&[&interface(1)]).unwrap();
    assert_eq!(state.port_at(7), Some(&port(2, 7)));
}

#[test]
fn the_file_of_an_earlier_version_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let old: JsonFile<Whole> = JsonFile::new(dir.path(), WHOLE).unwrap();
    let whole = Whole {
        ports: vec![port(2, 2), port(1, 1)],
        statics: vec![entry(1, 1)],
        uplink: Some("eth0".to_owned()),
    };
    old.save(&whole).unwrap();
    assert_eq!(names(&Known::load(dir.path()).unwrap()), ["c2", "c1"]);
    let mut state = State::open(dir.path()).unwrap();
    assert!(!dir.path().join(WHOLE).exists());
    state.ports_remove(&[&interface(2)]).unwrap();
    // Killed before it was removed: the journal counts.
    old.save(&whole).unwrap();
    let state = State::open(dir.path()).unwrap();
    assert_eq!(names(&state), ["c1"]);
    assert_eq!(state.statics().next(), Some(&entry(1, 1)));
    assert_eq!(state.uplink(), Some("eth0"));
}

#[test]
fn the_file_does_not_grow_with_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path()).unwrap();
    state.port_add(port(1, 1)).unwrap();
    let most = SPARE + SLACK * 2;
    for _ in 0..2 * most {
        state.port_add(port(2, 2)).unwrap();
        assert!(state.journal.changes() <= most);
    }
    assert_eq!(names(&Known::load(dir.path()).unwrap()), ["c1", "c2"]);
}

#[test]
fn what_a_killed_agent_was_writing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let half = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
    let (_, half) = half.keep().unwrap();
    drop(State::open(dir.path()).unwrap());
    assert!(!half.exists());
    assert!(dir.path().join(JOURNAL).exists());
}
