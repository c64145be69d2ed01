use std::sync::OnceLock;

use super::joiner::JoinVerifier;
use super::*;
use crate::token::fingerprint;

#[test]
fn a_certificate_names_its_host_and_only_a_manager_is_one() {
    let authority = Authority::new().unwrap();
    for manager in [true, false] {
        let (key, csr) = new_request().unwrap();
        let cert = authority.certify(&csr, HostId(0xabc), manager).unwrap();
        let identity = Identity::new(authority.cert.clone(), cert, key);
        identity.check(HostId(0xabc)).unwrap();
        assert!(identity.check(HostId(0xabd)).is_err());
        let cert = CertificateDer::from(identity.cert.as_slice());
        assert_eq!(host_of(&cert), Some(HostId(0xabc)));
        let name = ServerName::try_from(MANAGER_NAME).unwrap();
        let verified = verifier(&authority.cert).unwrap().verify_server_cert(
            &cert,
            &[],
            &name,
            &[],
            UnixTime::now(),
        );
        assert_eq!(verified.is_ok(), manager);
        // Which is when the others take it no more.
        let end = identity.end().unwrap();
        assert!((89 * 86_400..=90 * 86_400).contains(&(end - wall_clock())));
        let at = |time| UnixTime::since_unix_epoch(std::time::Duration::from_secs(time));
        let taken = |time| identity.verify(&host_name(HostId(0xabc)), at(time)).is_ok();
        assert!(taken(end) && !taken(end + 1));
        assert_eq!(identity.is_manager(), manager);
    }
}

#[test]
fn parts_of_two_clusters_are_noticed() {
    let (one, two) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (key, csr) = new_request().unwrap();
    let cert = one.certify(&csr, HostId(1), false).unwrap();
    let mixed = Identity::new(two.cert, cert.clone(), key);
    assert!(mixed.check(HostId(1)).is_err());
    let (other_key, _) = new_request().unwrap();
    let mixed = Identity::new(one.cert, cert, other_key);
    assert!(mixed.check(HostId(1)).is_err());
}

/// What a joiner with a token of `trusted` makes of a server that presents `leaf` and `ca`.
fn join(trusted: &Authority, leaf: &[u8], ca: &Authority) -> (bool, Option<bool>) {
    let presented = Arc::new(OnceLock::new());
    let ca_hash = fingerprint(&trusted.cert);
    let joiner = JoinVerifier {
        ca: ca_hash,
        provider: provider(),
        presented: presented.clone(),
    };
    let chain = [CertificateDer::from(ca.cert.as_slice())];
    let name = ServerName::try_from(MANAGER_NAME).unwrap();
    let verified = joiner.verify_server_cert(&leaf.into(), &chain, &name, &[], UnixTime::now());
    let own = presented
        .get()
        .map(|presented| matches!(presented, Presented::Ca(_)));
    (verified.is_ok(), own)
}

#[test]
fn a_joiner_trusts_only_a_manager_of_the_tokens_cluster() {
    let (own, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (_, csr) = new_request().unwrap();
    let leaf = |ca: &Authority, manager| ca.certify(&csr, HostId(1), manager).unwrap();
    assert_eq!(join(&own, &leaf(&own, true), &own), (true, Some(true)));
    assert_eq!(
        join(&own, &leaf(&own, false), &own),
        (false, None),
        "a mere member"
    );
    assert_eq!(
        join(&own, &leaf(&other, true), &other),
        (false, Some(false))
    );
    assert_eq!(
        join(&own, &leaf(&other, true), &own),
        (false, None),
        "with a borrowed CA"
    );
    assert_eq!(join(&own, &own.cert, &own), (false, None), "the CA itself");
    assert_eq!(join(&own, b"noise", &own), (false, None));
}

#[test]
fn a_request_that_is_none_is_refused() {
    let authority = Authority::new().unwrap();
    let (_, mut csr) = new_request().unwrap();
    assert!(authority.certify(b"nonsense", HostId(1), false).is_err());
    let last = csr.len() - 1;
    csr[last] ^= 1;
    assert!(
        authority.certify(&csr, HostId(1), false).is_err(),
        "a signature of another key"
    );
}

#[test]
fn a_certificate_is_due_long_before_it_ends() {
    let authority = Authority::new().unwrap();
    let (key, csr) = new_request().unwrap();
    let aged = |days: i64| {
        let then = OffsetDateTime::now_utc() - Duration::days(days);
        let cert = authority.certify_at(&csr, HostId(1), false, then).unwrap();
        let mut identity = Identity::new(authority.cert.clone(), cert, key.clone());
        identity.certified = then.unix_timestamp().unsigned_abs();
        identity.check(HostId(1)).unwrap();
        (identity.is_due(), identity.is_valid(HostId(1)))
    };
    assert_eq!(aged(0), (false, true));
    assert_eq!(aged(29), (false, true));
    assert_eq!(aged(31), (true, true));
    assert_eq!(aged(89), (true, true));
    assert_eq!(aged(91), (true, false));
    // Of a CA whose clock is two weeks ahead.
    assert_eq!(aged(-14), (true, true));
}
