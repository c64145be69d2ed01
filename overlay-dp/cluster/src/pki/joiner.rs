//! Calling a manager with nothing but a token.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::{crypto, provider, verifier};
use crate::error::Error;
use crate::token::{Fingerprint, fingerprint};

/// What a joiner found out about the host that it called.
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
pub(super) struct JoinVerifier {
    pub(super) ca: Fingerprint,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) presented: Arc<OnceLock<Presented>>,
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
