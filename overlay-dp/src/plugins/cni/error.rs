//! Errors as CNI 1.1 numbers them (section 5, "Error").

use std::fmt;

/// What failed.
#[derive(Debug)]
pub struct Error {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

pub type Result<T> = std::result::Result<T, Error>;

pub const VERSION: u32 = 1;
pub const UNSUPPORTED: u32 = 2;
pub const NO_CONTAINER: u32 = 3;
pub const ENVIRONMENT: u32 = 4;
pub const IO: u32 = 5;
pub const DECODE: u32 = 6;
pub const CONFIG: u32 = 7;
pub const TRY_AGAIN: u32 = 11;
/// STATUS: no ADD can be served.
pub const NOT_AVAILABLE: u32 = 50;
/// STATUS: and what runs has not all it should have.
pub const LIMITED: u32 = 51;
/// The agent refuses, and says why.
pub const REFUSED: u32 = 100;
/// CHECK: something is not as ADD left it.
pub const CHANGED: u32 = 101;

impl Error {
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    pub fn details(mut self, details: impl fmt::Display) -> Error {
        self.details = details.to_string();
        self
    }

    /// What the agent says.
    pub fn refused(error: &anyhow::Error) -> Error {
        Error::new(REFUSED, format!("{error:#}"))
    }
}
