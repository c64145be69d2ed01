//! Those who do not belong: a host that plays another cluster's manager, and callers without a
//! certificate, or with one that is worth nothing.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use overlay_lab::{Host, Ns};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;
use tokio::time::timeout;

pub const CONTROL_PORT: u16 = 2377;
pub const GOSSIP_PORT: u16 = 7946;
/// What both sides say in the handshake that they speak.
const CONTROL: &[u8] = b"overlay-dp/control/6";
const GOSSIP: &[u8] = b"overlay-dp/gossip/6";
/// The name in a manager's certificate.
const MANAGER_NAME: &str = "managers.overlay-dp";
const PATIENCE: Duration = Duration::from_secs(5);
/// Who is still connected after so long has been taken for a member.
const STAYS: Duration = Duration::from_secs(1);

/// A certificate with its key and the CA that has signed it.
pub struct Identity {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    /// With a CA of its own, in these names.
    pub fn made_up(names: &[String]) -> Result<Identity> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::from_params(&params, &ca_key);
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok(Identity {
            ca: ca.der().to_vec(),
            cert: leaf.der().to_vec(),
            key: key.serialize_der(),
        })
    }

    /// What a host of a cluster keeps on its disk.
    pub fn of(host: &Host) -> Result<Identity> {
        let path = Path::new("/var/lib/overlay-dp")
            .join(&host.instance)
            .join("cluster/state.json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let state: serde_json::Value = serde_json::from_slice(&text)?;
        let part = |name: &str| unhex(&state["identity"][name]).with_context(|| name.to_owned());
        Ok(Identity {
            ca: part("ca")?,
            cert: part("cert")?,
            key: part("key")?,
        })
    }

    /// SHA-256 of the CA, as tokens have it.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.ca))
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.cert.clone().into(), self.ca.clone().into()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(value: &serde_json::Value) -> Result<Vec<u8>> {
    let text = value.as_str().context("not text")?;
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// A host that plays a manager, with a certificate for that, and keeps all that it is told.
pub struct FakeManager {
    told: Arc<Mutex<Vec<u8>>>,
    _runtime: Runtime,
}

impl FakeManager {
    pub fn start(ns: &Ns, addr: Ipv4Addr, identity: &Identity) -> Result<FakeManager> {
        let mut crypto = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(identity.chain(), identity.private_key())?;
        crypto.alpn_protocols = vec![CONTROL.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto)?));
        let socket = ns.within(|| Ok(UdpSocket::bind((addr, CONTROL_PORT))?))?;
        let runtime = Runtime::new()?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&told);
        let endpoint = {
            let _inside = runtime.enter();
            let quic = Arc::new(quinn::TokioRuntime);
            Endpoint::new(EndpointConfig::default(), Some(config), socket, quic)?
        };
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let keep = Arc::clone(&keep);
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    while let Ok((_out, mut inward)) = connection.accept_bi().await {
                        while let Ok(Some(chunk)) = inward.read_chunk(65536, true).await {
                            keep.lock().unwrap().extend_from_slice(&chunk.bytes);
                        }
                    }
                });
            }
        });
        Ok(FakeManager {
            told,
            _runtime: runtime,
        })
    }

    /// All bytes that callers have sent, decrypted.
    pub fn told(&self) -> Vec<u8> {
        self.told.lock().unwrap().clone()
    }
}

/// Names of a manager's certificate.
pub fn manager_names(id: &str) -> Vec<String> {
    vec![format!("{id}.hosts.overlay-dp"), MANAGER_NAME.to_owned()]
}

/// Calls a port from `ns` as `identity`, or as nobody. Whether that is taken for a member: the
/// connection stays, or the other side says something.
pub fn is_welcome(ns: &Ns, to: (Ipv4Addr, u16), identity: Option<&Identity>) -> Result<bool> {
    let socket = ns.within(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let alpn = if to.1 == GOSSIP_PORT { GOSSIP } else { CONTROL };
    let config = client_config(alpn, identity)?;
    Runtime::new()?.block_on(async {
        let quic = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, quic)?;
        let connecting = endpoint.connect_with(config, to.into(), "any.hosts.overlay-dp")?;
        let Ok(connection) = timeout(PATIENCE, connecting).await? else {
            return Ok(false);
        };
        // With TLS 1.3 the caller is done before the other side has seen its certificate: that
        // this succeeded says nothing.
        let refused = tokio::select! {
            _ = connection.closed() => true,
            datagram = connection.read_datagram() => datagram.is_err(),
            stream = connection.accept_bi() => stream.is_err(),
            () = tokio::time::sleep(STAYS) => false,
        };
        Ok(!refused)
    })
}

fn client_config(alpn: &[u8], identity: Option<&Identity>) -> Result<ClientConfig> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAll(provider())));
    let mut crypto = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain(), identity.private_key())?
        }
        None => builder.with_no_client_auth(),
    };
    crypto.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(crypto)?;
    Ok(ClientConfig::new(Arc::new(crypto)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// An attacker does not care whom it talks with.
#[derive(Debug)]
struct TrustsAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
