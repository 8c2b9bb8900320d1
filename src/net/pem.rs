//! What is wrong with a PEM text, in words.
//!
//! Refuses to quote it, as the library's own words do: it may be a private key on one line.

use rustls::pki_types::pem::Error;

/// The fault in words that hold nothing of the text.
#[must_use]
pub const fn pem_fault(error: &Error) -> &'static str {
    match error {
        Error::MissingSectionEnd { .. } => "a block has no `-----END …-----` line",
        Error::IllegalSectionStart { .. } => {
            "a `-----BEGIN …-----` line is not whole, or something follows it on the same line"
        }
        Error::Base64Decode(_) => "what stands between the lines is not base64",
        Error::NoItemsFound => "none was found",
        Error::SectionTooLarge => "a block is too large",
        _ => "it cannot be read",
    }
}
