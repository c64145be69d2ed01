//! Known answers.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use overlay_common::counters::DropReason;
use overlay_common::wire::map_v4;
use overlay_esp::sa::{Inbound, Outbound};
use overlay_esp::secret::Secret;

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(pair).collect()
}

/// Key, IV, additional data, text, sealed text with its tag.
type Vector = [&'static str; 5];

/// Test cases 14 and 16 of "The Galois/Counter Mode of Operation" (McGrew, Viega), which NIST's
/// validation suite has, too.
const GCM: [Vector; 2] = [
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "00000000000000000000000000000000",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657\
         ba637b39",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a\
         bcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    ],
];

#[test]
fn aes_256_gcm() {
    for [key, iv, aad, text, sealed] in GCM {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes(key)).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&bytes(iv)).unwrap();
        let mut text = bytes(text);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(bytes(aad)), &mut text)
            .unwrap();
        text.extend_from_slice(tag.as_ref());
        assert_eq!(text, bytes(sealed));
    }
}

/// The packet of draft-mcgrew-gcm-test-01 with a key of 256 bits, as RFC 4106 has it: a TCP segment
/// in tunnel mode, but cipher, salt, IV and additional data know nothing of that.
#[test]
fn an_esp_packet() {
    let key = bytes("abbccddef00112233445566778899aababbccddef00112233445566778899aab");
    let salt = [0x11, 0x22, 0x33, 0x44];
    let secret = Secret::new(0x4a2c_bfe3, key.try_into().unwrap(), salt).unwrap();
    let header = [0x4a, 0x2c, 0xbf, 0xe3, 0, 0, 0, 2];
    let iv = [1, 2, 3, 4, 5, 6, 7, 8];
    let sealed = bytes(
        "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99def842d8e",
    );
    let icv: [u8; 16] = bytes("b335f4eecfdbf831824b4c4915956c96")
        .try_into()
        .unwrap();
    let text = bytes(
        "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b40101040201020201",
    );
    let inbound = Inbound::new(&secret, map_v4([192, 0, 2, 1])).unwrap();
    let mut opened = vec![0; sealed.len()];
    let wrong = [0; 16];
    let refused = inbound.open(&header, iv, (&sealed, &wrong), &mut opened);
    assert_eq!(refused, Err(DropReason::BadIcv));
    inbound
        .open(&header, iv, (&sealed, &icv), &mut opened)
        .unwrap();
    assert_eq!(opened, text);
    let again = inbound.open(&header, iv, (&sealed, &icv), &mut opened);
    assert_eq!(again, Err(DropReason::Replay));
}

/// Sequence numbers from 1, the IV the same number, and both as RFC 4106 puts them together.
#[test]
fn what_is_sealed_is_aes_256_gcm_with_the_salt_and_the_sequence_number() {
    let secret = Secret::new(256, [7; 32], *b"salt").unwrap();
    let sa = Outbound::new(&secret).unwrap();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
    for number in 1..=3_u8 {
        let header = sa.next_header().unwrap();
        assert_eq!(header, [0, 0, 1, 0, 0, 0, 0, number]);
        let mut sealed = *b"what is to be sealed";
        let (iv, icv) = sa.seal(&header, &mut sealed).unwrap();
        assert_eq!(iv, [0, 0, 0, 0, 0, 0, 0, number]);
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(b"salt");
        nonce[11] = number;
        let mut expected = *b"what is to be sealed";
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut expected)
            .unwrap();
        assert_eq!((sealed, &icv[..]), (expected, tag.as_ref()));
    }
    assert_eq!(sa.packets(), 3);
}

#[test]
fn secrets_are_told_and_not_shown() {
    let secret = Secret::new(0xabcd_1234, [0x5a; 32], [0xa5; 4]).unwrap();
    let told = serde_json::to_string(&secret).unwrap();
    assert_eq!(told.len(), 82);
    let heard: Secret = serde_json::from_str(&told).unwrap();
    assert_eq!(heard, secret);
    assert_eq!(format!("{secret:?}"), "Secret(0xabcd1234)");
    for bad in [
        "\"\"".to_owned(),
        told.replace("5a5a", "5a5g"),
        told.replace("abcd1234", "000000ff"),
        told.replace("5a5a", "5a"),
    ] {
        assert!(serde_json::from_str::<Secret>(&bad).is_err(), "{bad}");
    }
    assert_ne!(Secret::draw().unwrap(), Secret::draw().unwrap());
    assert_eq!(Secret::new(255, [0; 32], [0; 4]), None);
}
