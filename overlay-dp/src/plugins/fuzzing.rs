//! What container runtimes say, as the fuzzer reaches what reads it.

use super::{cni, netavark};

/// A configuration of CNI's, or what netavark says.
pub fn configuration(text: &[u8]) {
    cni::understand(text);
    netavark::understand(text);
}
