//! The operator's certificates.

use super::super::CertificateSource;
use super::super::value::{parse_certificate, parse_colon_pair};
use super::super::written::Value;
use super::{Resolver, place};

impl Resolver {
    pub(super) fn certificates(&mut self) -> Vec<CertificateSource> {
        const PATH: &str = "tls.certificates";
        let Some(given) = self.written.given.get(PATH) else { return Vec::new() };
        let relative = |path: &str| place(path, given.folder.as_deref());
        let parsed = match &given.value {
            Value::Pair(pair) => vec![Ok(pair.clone().into())],
            Value::Toml(toml::Value::Array(items)) => {
                items.iter().map(|item| parse_certificate(item, relative)).collect()
            }
            Value::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| parse_colon_pair(item, relative)).collect()
            }
            _ => {
                vec![Err("not a list; write `certificates = [{ cert = \"cert.pem\", key = \"key.pem\" }]`"
                    .to_owned())]
            }
        };
        self.keep_good(PATH, parsed)
    }
}
