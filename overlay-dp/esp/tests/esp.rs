//! Sealing and opening, the window, and the agreement: known answers, hostile input, lost messages.

#[path = "esp/agreement.rs"]
mod agreement;
#[path = "esp/frames.rs"]
mod frames;
#[path = "esp/vectors.rs"]
mod vectors;
#[path = "esp/window.rs"]
mod window;
