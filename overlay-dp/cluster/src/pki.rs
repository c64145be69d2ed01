//! The cluster's CA, the hosts' keys and certificates, and the TLS settings made of them.
//!
//! A host's identity is the name `<id>.hosts.overlay-dp` in its certificate, and nothing it says.
//! Whether that host is still a member is the agreed facts' business, so that removing a host needs
//! no revocation list. Certificates are short-lived all the same: a host renews its own long
//! before its end, over the one that it has.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use overlay_core::model::HostId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rand::RngExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SerialNumber,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::error::Error;
use crate::hex;

mod joiner;

pub use joiner::{Presented, joiner};

/// The name that only a manager's certificate has: a joiner tells its secret to nobody else.
pub const MANAGER_NAME: &str = "managers.overlay-dp";
const HOST_DOMAIN: &str = ".hosts.overlay-dp";
/// Clocks of hosts may be this far apart.
const BACKDATED: Duration = Duration::days(30);
/// A host's certificate.
const VALID: Duration = Duration::days(90);
/// The CA's, which can't be renewed without a new cluster.
const CA_VALID: Duration = Duration::days(20 * 365);
/// A host renews its certificate when a third of its life is over, by its own clock: two thirds
/// remain to find a manager.
const RENEW_AFTER: Duration = Duration::days(30);

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

/// The CA, which only managers have.
pub struct Authority {
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Result<Authority, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut params = params("overlay-dp cluster CA", OffsetDateTime::now_utc(), CA_VALID);
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
        self.certify_at(csr, id, manager, OffsetDateTime::now_utc())
    }

    /// As if it were `now`.
    pub fn certify_at(
        &self,
        csr: &[u8],
        id: HostId,
        manager: bool,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Error> {
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
        let mut params = params(&id.to_string(), now, VALID);
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

fn params(common_name: &str, now: OffsetDateTime, valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + valid;
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

/// Whether a verified certificate is a manager's.
pub fn is_manager(cert: &CertificateDer<'_>) -> bool {
    webpki::EndEntityCert::try_from(cert)
        .is_ok_and(|cert| cert.valid_dns_names().any(|name| name == MANAGER_NAME))
}

/// When a certificate ends, in seconds since 1970.
pub fn end_of(cert: &CertificateDer<'_>) -> Option<u64> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    u64::try_from(cert.validity().not_after.timestamp()).ok()
}

/// Seconds since 1970.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
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
    /// When this host got the certificate, in seconds since 1970 by its own clock.
    certified: u64,
}

impl Identity {
    /// With a certificate that was made just now.
    pub fn new(ca: Vec<u8>, cert: Vec<u8>, key: Vec<u8>) -> Identity {
        let certified = wall_clock();
        Identity {
            ca,
            cert,
            key,
            certified,
        }
    }

    /// Fails unless certificate, key and CA belong together: a state file that was put together
    /// from two is noticed before anything runs. Says nothing about today, see
    /// [`Identity::is_valid`].
    pub fn check(&self, id: HostId) -> Result<(), Error> {
        self.client(b"check")?;
        let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.certified));
        self.verify(&host_name(id), then)
    }

    /// Whether the others take it today.
    pub fn is_valid(&self, id: HostId) -> bool {
        self.verify(&host_name(id), UnixTime::now()).is_ok()
    }

    fn verify(&self, name: &str, at: UnixTime) -> Result<(), Error> {
        let name = ServerName::try_from(name).map_err(crypto)?;
        verifier(&self.ca)?
            .verify_server_cert(&self.leaf(), &[], &name, &[], at)
            .map_err(crypto)?;
        Ok(())
    }

    /// Whether it is a manager's.
    pub fn is_manager(&self) -> bool {
        is_manager(&self.leaf())
    }

    /// When it ends: see [`end_of`].
    pub fn end(&self) -> Option<u64> {
        end_of(&self.leaf())
    }

    /// Whether it is time for a new one. A clock that was set back is no reason to wait.
    pub fn is_due(&self) -> bool {
        let age = wall_clock().checked_sub(self.certified);
        age.is_none_or(|age| age >= RENEW_AFTER.whole_seconds().unsigned_abs())
    }

    fn leaf(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.cert.as_slice())
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
mod tests;
