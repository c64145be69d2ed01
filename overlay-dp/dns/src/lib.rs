//! The names of the overlay's endpoints, answered as DNS.
#![forbid(unsafe_code)]
