//! The cluster's CA, the hosts' keys and certificates, and the TLS settings made of them.
//!
//! A host's identity is the name `<id>.hosts.overlay-dp` in its certificate, and nothing it says.
//! Whether that host is still a member is the roster's business (see [`crate::book`]), so that
//! removing a host needs no revocation list.

use std::sync::{Arc, OnceLock};

use overlay_core::model::HostId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rand::RngExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SerialNumber,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::error::Error;
use crate::hex;
use crate::token::{Fingerprint, fingerprint};

/// The name that only a manager's certificate has: a joiner tells its secret to nobody else.
pub const MANAGER_NAME: &str = "managers.overlay-dp";
const HOST_DOMAIN: &str = ".hosts.overlay-dp";
/// Clocks of hosts may be this far apart.
const BACKDATED: Duration = Duration::days(30);
/// Renewing certificates is for the next form of the control plane.
const VALID: Duration = Duration::days(20 * 365);

fn crypto(error: impl std::fmt::Display) -> Error {
    Error::Crypto(error.to_string())
}

/// The name a host has in TLS.
pub fn host_name(id: HostId) -> String {
    format!("{id}{HOST_DOMAIN}")
}

/// A new key and the request to certify it: the key stays here.
pub fn new_request() -> Result<(Vec<u8>, Vec<u8>), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(crypto)?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}

/// The CA, which only the manager has.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    #[serde(with = "hex")]
    pub cert: Vec<u8>,
    #[serde(with = "hex")]
    key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Result<Authority, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut params = params("overlay-dp cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(crypto)?;
        Ok(Authority {
            cert: cert.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    /// Certifies the public key of `csr` for host `id`; whatever else the request asks for is
    /// ignored.
    pub fn certify(&self, csr: &[u8], id: HostId, manager: bool) -> Result<Vec<u8>, Error> {
        let request = CertificateSigningRequestParams::from_der(
            &CertificateSigningRequestDer::from(csr.to_vec()),
        )
        .map_err(crypto)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(crypto("the key to certify is not ECDSA P-256"));
        }
        let key = PrivatePkcs8KeyDer::from(self.key.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        let ca = CertificateDer::from(self.cert.as_slice());
        let issuer = Issuer::from_ca_cert_der(&ca, key.map_err(crypto)?).map_err(crypto)?;

        let mut names = vec![host_name(id)];
        names.extend(manager.then(|| MANAGER_NAME.to_owned()));
        let mut params = params(&id.to_string());
        for name in names {
            let name = name.try_into().map_err(crypto)?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(&request.public_key, &issuer)
            .map_err(crypto)?;
        Ok(cert.der().to_vec())
    }
}

fn params(common_name: &str) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + VALID;
    params.serial_number = Some(SerialNumber::from(rand::rng().random::<u64>() >> 1));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

/// Who a verified certificate belongs to.
pub fn host_of(cert: &CertificateDer<'_>) -> Option<HostId> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    let mut ids = cert
        .valid_dns_names()
        .filter_map(|name| name.strip_suffix(HOST_DOMAIN));
    let id = ids.next()?.parse().ok()?;
    ids.next().is_none().then_some(id)
}

/// This host's own key and certificate, and the CA that it trusts.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    #[serde(with = "hex")]
    pub ca: Vec<u8>,
    #[serde(with = "hex")]
    pub cert: Vec<u8>,
    #[serde(with = "hex")]
    pub key: Vec<u8>,
}

impl Identity {
    /// Fails unless certificate, key and CA belong together: a state file that was put together
    /// from two is noticed before anything runs.
    pub fn check(&self, id: HostId) -> Result<(), Error> {
        self.client(b"check")?;
        let cert = CertificateDer::from(self.cert.as_slice());
        let name = ServerName::try_from(host_name(id)).map_err(crypto)?;
        verifier(&self.ca)?
            .verify_server_cert(&cert, &[], &name, &[], UnixTime::now())
            .map_err(crypto)?;
        Ok(())
    }

    /// For a port whose callers must all have a certificate, or (`open`) may have none.
    pub fn server(&self, alpn: &[u8], open: bool) -> Result<QuicServerConfig, Error> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots(&self.ca)?, provider());
        let builder = if open {
            builder.allow_unauthenticated()
        } else {
            builder
        };
        let callers = builder.build().map_err(crypto)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .with_client_cert_verifier(callers)
            .with_single_cert(self.chain(), self.private_key())
            .map_err(crypto)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would skip the certificates.
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config).map_err(crypto)
    }

    /// For calling another host by its [`host_name`].
    pub fn client(&self, alpn: &[u8]) -> Result<QuicClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .with_webpki_verifier(verifier(&self.ca)?)
            .with_client_auth_cert(self.chain(), self.private_key())
            .map_err(crypto)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        QuicClientConfig::try_from(config).map_err(crypto)
    }

    /// With the CA, so that a joiner can compare it with its token.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.cert.clone().into(), self.ca.clone().into()]
    }

    fn private_key(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// What a joiner's [`JoinVerifier`] found out.
#[derive(Debug)]
pub enum Presented {
    /// The CA of the token, and a manager that it vouches for.
    Ca(Vec<u8>),
    /// Another cluster.
    Other,
}

/// For calling a manager with nothing but a token. What was presented is in the second value.
pub fn joiner(
    ca: Fingerprint,
    alpn: &[u8],
) -> Result<(QuicClientConfig, Arc<OnceLock<Presented>>), Error> {
    let presented = Arc::new(OnceLock::new());
    let verifier = JoinVerifier {
        ca,
        provider: provider(),
        presented: presented.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((
        QuicClientConfig::try_from(config).map_err(crypto)?,
        presented,
    ))
}

/// Trusts the one CA whose hash is in the token. It runs within the handshake, so a connection
/// with anybody else never comes about and no request is sent.
#[derive(Debug)]
struct JoinVerifier {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
    presented: Arc<OnceLock<Presented>>,
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates
            .iter()
            .find(|cert| fingerprint(cert) == self.ca)
        else {
            let _ = self.presented.set(Presented::Other);
            return Err(CertificateError::UnknownIssuer.into());
        };
        let verified = verifier(ca)
            .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        let _ = self.presented.set(Presented::Ca(ca.to_vec()));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(ca.to_vec()))
        .map_err(crypto)?;
    Ok(Arc::new(roots))
}

fn verifier(ca: &[u8]) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(crypto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_its_host_and_only_a_manager_is_one() {
        let authority = Authority::new().unwrap();
        for manager in [true, false] {
            let (key, csr) = new_request().unwrap();
            let cert = authority.certify(&csr, HostId(0xabc), manager).unwrap();
            let identity = Identity {
                ca: authority.cert.clone(),
                cert,
                key,
            };
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
        }
    }

    #[test]
    fn parts_of_two_clusters_are_noticed() {
        let (one, two) = (Authority::new().unwrap(), Authority::new().unwrap());
        let (key, csr) = new_request().unwrap();
        let cert = one.certify(&csr, HostId(1), false).unwrap();
        assert!(
            Identity {
                ca: two.cert,
                cert: cert.clone(),
                key
            }
            .check(HostId(1))
            .is_err()
        );
        let (other_key, _) = new_request().unwrap();
        assert!(
            Identity {
                ca: one.cert,
                cert,
                key: other_key
            }
            .check(HostId(1))
            .is_err()
        );
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
}
