//! The environment: every setting as `ONEPORT_…`, and the variables of the server that existing
//! agents know, with the meaning that they have there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::list::SETTINGS;
use super::nearest::nearest;
use super::setting::{ENV_PREFIX, Setting};
use super::written::{Value, Written, WrittenLogin};
use super::{Fault, PemPair, PemSource, Secret};

/// Reads the variables; what their values mean is not looked at. Of two that set the same, the
/// one with `ONEPORT_` counts. An empty variable counts as absent, except for a list. Unknown
/// names with our prefix, and malformed variables without it, come as faults.
pub(super) fn read(variables: impl Iterator<Item = (String, String)>) -> (Written, Vec<Fault>) {
    let variables: BTreeMap<String, String> = variables.collect();
    let mut reader = Reader { variables: &variables, written: Written::default(), faults: Vec::new() };
    reader.read_inherited();
    reader.read_ours();
    if reader.get("BASE_URL").is_some() && reader.has_certificate() {
        // That server's own port; whoever maps it, or may not bind 443, expects it here.
        reader.written.default_listen = Some("0.0.0.0:8443,[::]:8443");
    }
    (reader.written, reader.faults)
}

struct Reader<'a> {
    variables: &'a BTreeMap<String, String>,
    written: Written,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn read_ours(&mut self) {
        for (name, value) in self.variables.range(ENV_PREFIX.to_owned()..) {
            if !name.starts_with(ENV_PREFIX) {
                break;
            }
            match SETTINGS.iter().find(|setting| setting.variable() == *name) {
                Some(setting) if value.is_empty() && !setting.kind.starts_with("list") => {}
                Some(setting) => self.written.set_text(setting.path, name, value.as_str()),
                None if is_service_link(name, value) => {}
                None => {
                    let names: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
                    let what = match nearest(name, names.iter().map(String::as_str)) {
                        Some(near) => format!("there is no such variable; did you mean `{near}`?"),
                        None => "there is no such variable; see docs/configuration.md for all".to_owned(),
                    };
                    self.faults.push(Fault::new(name, what));
                }
            }
        }
    }

    fn read_inherited(&mut self) {
        self.copy("BASE_URL", "base_url");
        self.copy("SSH_HOSTNAMES", "ssh.hostnames");
        self.port("TLS_PORT", "listen");
        self.port("PORT", "plain.http");
        self.port("SSH_PORT", "plain.ssh");
        self.host_key();
        self.certificate();
        self.login();
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn has_certificate(&self) -> bool {
        ["TLS_CERT", "TLS_CERT_FILE"].iter().any(|name| self.get(name).is_some())
    }

    fn fault(&mut self, place: &str, what: impl Into<String>) {
        self.faults.push(Fault::new(place, what));
    }

    fn copy(&mut self, name: &str, path: &'static str) {
        if let Some(value) = self.get(name) {
            let value = value.to_owned();
            self.written.set_text(path, name, value);
        }
    }

    fn port(&mut self, name: &str, path: &'static str) {
        let Some(value) = self.get(name).filter(|value| !is_service_link(name, value)) else { return };
        match value.parse::<u16>() {
            Ok(port) if port > 0 => {
                self.written.set_text(path, name, format!("0.0.0.0:{port},[::]:{port}"));
            }
            _ => {
                let what = format!("`{value}` is not a port; write a number from 1 to 65535");
                self.written.broken.insert(path);
                self.fault(name, what);
            }
        }
    }

    fn host_key(&mut self) {
        self.copy("SSH_HOST_KEY_PATH", "ssh.host_key");
        let Some(value) = self.get("SSH_HOST_KEY") else { return };
        if self.get("SSH_HOST_KEY_PATH").is_some() {
            self.fault("SSH_HOST_KEY", "set together with SSH_HOST_KEY_PATH; keep one of the two");
        } else if let Some(pem) = decode_pem(value) {
            self.written.set("ssh.host_key", "SSH_HOST_KEY", Value::Pem(pem));
        } else {
            self.fault(
                "SSH_HOST_KEY",
                "not the base64 form of a private key in PEM; make it with `base64 -w0 < KEYFILE`",
            );
        }
    }

    fn certificate(&mut self) {
        let before = self.faults.len();
        let cert = self.pem("TLS_CERT", "TLS_CERT_FILE");
        let key = self.pem("TLS_KEY", "TLS_KEY_FILE");
        match (cert, key) {
            (Some(cert), Some(key)) => {
                self.written.set("tls.certificates", "TLS_CERT", Value::Pair(PemPair { cert, key }));
            }
            _ if self.faults.len() > before => {}
            (Some(_), None) => {
                self.fault("TLS_CERT", "set without its private key; set TLS_KEY or TLS_KEY_FILE, too");
            }
            (None, Some(_)) => {
                self.fault("TLS_KEY", "set without its certificate; set TLS_CERT or TLS_CERT_FILE, too");
            }
            (None, None) => {}
        }
        if self.faults.len() > before {
            self.written.broken.insert("tls.certificates");
        }
    }

    fn pem(&mut self, inline: &str, file: &str) -> Option<PemSource> {
        match (self.get(inline), self.get(file)) {
            (Some(_), Some(_)) => {
                self.fault(inline, format!("set together with {file}; keep one of the two"));
                None
            }
            (Some(text), None) => Some(PemSource::Inline(unfold(text))),
            (None, Some(path)) => Some(PemSource::File(path.into())),
            (None, None) => None,
        }
    }

    fn login(&mut self) {
        let secrets: Vec<Secret> = self
            .get("COOKIE_SECRETS")
            .map(|list| list.split_ascii_whitespace().map(Secret::new).collect())
            .unwrap_or_default();
        let public_key = self.get("SAAS_PUBLIC_KEY").map(unfold);
        if public_key.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN ")) {
            self.fault("SAAS_PUBLIC_KEY", "not in PEM form; give the text with its `-----BEGIN …-----` line");
        }
        let base_url = self.get("SAAS_BASE_URL").map(str::to_owned);
        if base_url.as_ref().is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
            self.fault("SAAS_BASE_URL", "not an `https://` URL; write it whole");
        }
        let issuer = self.get("SAAS_JWT_ISSUER").map(str::to_owned);
        self.written.login = WrittenLogin { cookie_secrets: secrets, public_key, issuer, base_url };
    }
}

/// Whether Kubernetes (or Docker) put the variable there to tell where a service is: one called
/// `oneport` makes `ONEPORT_PORT` and more, one called `ssh` makes `SSH_PORT`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_protocol = |word: &str| matches!(word, "TCP" | "UDP" | "SCTP");
    let is_port_of_service = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let mut words = rest.split('_');
        words.next().is_some_and(|word| word.bytes().all(|b| b.is_ascii_digit()))
            && words.next().is_some_and(is_protocol)
    });
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || is_port_of_service
        || (name.ends_with("_PORT") && value.contains("://"))
}

/// A PEM text that was squeezed into one line, with `\n` written out, as it was before.
fn unfold(text: &str) -> String {
    if text.contains('\n') { text.to_owned() } else { text.replace("\\n", "\n") }
}

fn decode_pem(value: &str) -> Option<String> {
    let text = if value.starts_with("-----BEGIN ") {
        unfold(value)
    } else {
        let packed: String = value.split_ascii_whitespace().collect();
        String::from_utf8(STANDARD.decode(packed).ok()?).ok()?
    };
    text.contains("PRIVATE KEY-----").then_some(text)
}
