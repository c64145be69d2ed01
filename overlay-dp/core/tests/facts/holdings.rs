//! What a host does with the addresses that it holds.

use overlay_core::facts::{Refusal, Want};
use overlay_core::holdings::{Holdings, Need};

use crate::{Rig, host, id, ip, mac, range};

#[test]
fn growth_doubles() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/16");
    let mut held = Holdings::new();
    let mut asked = Vec::new();
    for _ in 0..300 {
        let facts = rig.facts().clone();
        if let Err(Need::Ask(want)) = held.take(&facts, id(1), vni, None) {
            let Want::Addresses(count) = want else {
                panic!("{want:?}");
            };
            asked.push(count);
            rig.ask(1, vni, want).unwrap();
            held.take(rig.facts(), id(1), vni, None).unwrap();
        }
        let back = held.returns(rig.facts(), id(1));
        assert_eq!(back, [], "what was just got is no surplus");
    }
    assert_eq!(asked, [1, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
}

#[test]
fn what_comes_for_an_attach_is_not_given_back_before() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/29");
    let mut held = Holdings::new();
    let want = held.take(rig.facts(), id(1), vni, None).unwrap_err();
    assert_eq!(want, Need::Ask(Want::Addresses(1)));
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    rig.ask(2, vni, Want::Addresses(9)).unwrap();
    rig.ask(2, vni, Want::Addresses(1)).unwrap_err();
    assert_eq!(held.returns(rig.facts(), id(1)), []);
    // Nobody wants it any more.
    held.gave_up(rig.facts(), vni, None);
    let back = held.returns(rig.facts(), id(1));
    assert_eq!(back[0].ranges, [range(2, 2)]);
    assert!(matches!(
        held.take(rig.facts(), id(1), vni, None),
        Err(Need::Ask(_))
    ));
}

#[test]
fn an_unused_address_goes_to_who_wants_it() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    let mut held = Holdings::new();
    rig.ask(1, vni, Want::Addresses(8)).unwrap();
    assert_eq!(held.take(rig.facts(), id(1), vni, None), Ok(2));
    rig.ask_ip(2, vni, "10.0.0.2").unwrap_err();
    assert_eq!(held.returns(rig.facts(), id(1)), [], "it is in use");
    rig.ask_ip(2, vni, "10.0.0.5").unwrap_err();
    let back = held.returns(rig.facts(), id(1));
    assert_eq!(back[0].ranges, [range(5, 5)]);
    // Wanted after all, it is asked for: which makes the return void if that comes later.
    let again = held.take(rig.facts(), id(1), vni, Some(ip("10.0.0.5")));
    assert_eq!(again, Err(Need::Ask(Want::Ip(ip("10.0.0.5")))));
    rig.ask_ip(1, vni, "10.0.0.5").unwrap();
    assert_eq!(
        held.take(rig.facts(), id(1), vni, Some(ip("10.0.0.5"))),
        Ok(5)
    );
    rig.apply(back[0].clone().command(id(1))).unwrap();
    assert_eq!(rig.facts().owner(vni, 5), Some(id(1)));
    let twice = held.take(rig.facts(), id(1), vni, Some(ip("10.0.0.5")));
    assert!(matches!(twice, Err(Need::InUse(_))));
    let gateway = held.take(rig.facts(), id(1), vni, Some(ip("10.0.0.1")));
    assert!(matches!(
        gateway,
        Err(Need::Refused(Refusal::GatewayWanted(_)))
    ));
    let outside = held.take(rig.facts(), id(1), vni, Some(ip("10.0.1.1")));
    assert!(matches!(
        outside,
        Err(Need::Refused(Refusal::Address { .. }))
    ));
}

#[test]
fn a_freed_address_rests() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    let mut held = Holdings::new();
    rig.ask(1, vni, Want::Addresses(3)).unwrap();
    let take = |held: &mut Holdings| held.take(rig.facts(), id(1), vni, None).unwrap();
    assert_eq!(take(&mut held), 2);
    held.free(vni, 2);
    assert_eq!(
        (take(&mut held), take(&mut held), take(&mut held)),
        (3, 4, 2)
    );
}

#[test]
fn a_restart_remembers_what_is_on_its_way() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(2)).unwrap();
    let mut held = Holdings::new();
    let back = held.returns(rig.facts(), id(1));
    let bytes = postcard::to_stdvec(&held).unwrap();
    let mut held: Holdings = postcard::from_bytes(&bytes).unwrap();
    assert!(held.take(rig.facts(), id(1), vni, None).is_err());
    assert_eq!(held.take_spare(rig.facts(), id(1), vni), None);
    // The first send's outcome is unknown: that the second failed does not help.
    let second = held.returns(rig.facts(), id(1));
    assert_eq!(second, back);
    held.return_failed(&second[0]);
    assert!(held.take(rig.facts(), id(1), vni, None).is_err());
}

#[test]
fn a_restart_with_older_facts_does_not_use_what_is_gone() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    let own = mac("06:00:00:00:00:01");
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    rig.ask(1, vni, Want::Spare(2)).unwrap();
    rig.ask_mac(1, vni, "06:00:00:00:00:01").unwrap();
    let on_disk = rig.facts().clone();
    let mut held = Holdings::new();
    let back = held.returns(rig.facts(), id(1));
    rig.apply(back[0].clone().command(id(1))).unwrap();
    // The facts show it gone: it is forgotten, and another host gets it.
    assert_eq!(held.returns(rig.facts(), id(1)), []);
    let bytes = postcard::to_stdvec(&held).unwrap();
    rig.ask_ip(2, vni, "10.0.0.2").unwrap();
    rig.ask_mac(2, vni, "06:00:00:00:00:01").unwrap();

    let mut held: Holdings = postcard::from_bytes(&bytes).unwrap();
    let any = held.take(&on_disk, id(1), vni, None);
    assert!(matches!(any, Err(Need::Ask(_))), "{any:?}");
    let same = held.take(&on_disk, id(1), vni, Some(ip("10.0.0.2")));
    assert!(matches!(same, Err(Need::Ask(_))), "{same:?}");
    assert_eq!(held.take_spare(&on_disk, id(1), vni), None);
    assert!(held.take_mac(&on_disk, id(1), vni, own).is_err());
    assert_eq!(held.returns(&on_disk, id(1)), []);
    assert_eq!(held.wants(&on_disk, id(1)), []);
    // What it asks for comes with newer facts.
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    assert_eq!(held.take(rig.facts(), id(1), vni, None), Ok(3));
}

#[test]
fn a_return_that_was_never_sent_is_none() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(2)).unwrap();
    let mut held = Holdings::new();
    let back = held.returns(rig.facts(), id(1));
    held.return_failed(&back[0]);
    assert_eq!(held.take(rig.facts(), id(1), vni, None), Ok(2));
}

#[test]
fn after_a_restore_only_what_is_granted_anew_is_used() {
    let mut rig = Rig::new(2);
    let vni = rig.network("10.0.0.0/24");
    rig.ask(1, vni, Want::Addresses(4)).unwrap();
    let mut held = Holdings::new();
    held.take(rig.facts(), id(1), vni, None).unwrap();
    let backup = rig.machine.clone();
    // After the backup: one more granted and in use, which the restored facts know nothing of.
    rig.ask_ip(1, vni, "10.0.0.9").unwrap();
    held.take(rig.facts(), id(1), vni, Some(ip("10.0.0.9")))
        .unwrap();
    let mut rig = Rig {
        machine: backup.restored(host(1)),
        index: 0,
    };
    assert_eq!(
        held.take(rig.facts(), id(1), vni, None),
        Err(Need::Ask(Want::Addresses(4)))
    );
    held.gave_up(rig.facts(), vni, None);
    let again = (vni, Want::Ip(ip("10.0.0.9")));
    assert_eq!(held.wants(rig.facts(), id(1))[0], again);
    // Somebody else got it in the meantime.
    rig.ask_ip(2, vni, "10.0.0.9").unwrap();
    assert_eq!(held.lost(rig.facts(), id(1)), [(vni, 9)]);
    let back = held.returns(rig.facts(), id(1));
    assert_eq!(back[0].ranges, [range(3, 5)]);
}

#[test]
fn mac_addresses_come_and_go() {
    let mut rig = Rig::new(1);
    let vni = rig.network("10.0.0.0/24");
    let own = mac("06:00:00:00:00:01");
    let mut held = Holdings::new();
    let want = held.take_mac(rig.facts(), id(1), vni, own).unwrap_err();
    assert_eq!(want, Need::Ask(Want::Mac(own)));
    rig.ask_mac(1, vni, "06:00:00:00:00:01").unwrap();
    rig.ask(1, vni, Want::Addresses(1)).unwrap();
    held.take(rig.facts(), id(1), vni, None).unwrap();
    assert_eq!(held.returns(rig.facts(), id(1)), []);
    held.take_mac(rig.facts(), id(1), vni, own).unwrap();
    assert!(matches!(
        held.take_mac(rig.facts(), id(1), vni, own),
        Err(Need::InUse(_))
    ));
    held.free_mac(vni, own);
    let back = held.returns(rig.facts(), id(1));
    assert_eq!(back[0].macs, [own]);
    assert!(
        held.take_mac(rig.facts(), id(1), vni, own).is_err(),
        "on its way"
    );
    rig.apply(back[0].clone().command(id(1))).unwrap();
    assert_eq!(rig.facts().claimed_macs(id(1), vni), []);
}
