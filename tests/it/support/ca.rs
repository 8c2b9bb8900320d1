//! A certificate authority made with openssl, and leaves from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::SOON;
use super::process::Process;

/// An authority with its files.
pub struct Ca {
    dir: PathBuf,
}

/// A certificate with its key, both PEM files.
pub struct Leaf {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    /// Makes an authority in `dir`.
    pub fn make(dir: &Path) -> Self {
        let ca = Self { dir: dir.to_owned() };
        ca.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        ca
    }

    /// The authority's own certificate.
    pub fn cert(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Signs a certificate for `names`; `file` names its files.
    pub fn leaf(&self, file: &str, names: &[&str]) -> Leaf {
        let (cert, key, csr, ext) =
            (format!("{file}.pem"), format!("{file}.key"), format!("{file}.csr"), format!("{file}.ext"));
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let extensions = format!("subjectAltName={}\nextendedKeyUsage=serverAuth\n", names.join(","));
        std::fs::write(self.dir.join(&ext), extensions).expect("temporary folder");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=leaf",
            "-keyout",
            &key,
            "-out",
            &csr,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &ext,
            "-out",
            &cert,
        ]);
        Leaf { cert: self.dir.join(cert), key: self.dir.join(key) }
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Process::run(Command::new("openssl").args(arguments).current_dir(&self.dir), SOON);
        assert!(output.status.success(), "openssl {arguments:?}: {}", output.stderr);
    }
}
