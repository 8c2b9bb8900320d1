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
        let (leaf, csr, ext) = self.requested(file, names);
        let out = format!("{file}.pem");
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
            &out,
        ]);
        leaf
    }

    /// The same, valid from so many days to so many days after now, which may be negative.
    pub fn leaf_between(&self, file: &str, names: &[&str], from: i64, to: i64) -> Leaf {
        let (leaf, csr, ext) = self.requested(file, names);
        let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\nunique_subject = no\ndefault_md = sha256\npolicy = any\n[any]\ncommonName = optional\n";
        std::fs::write(self.dir.join("ca.cnf"), config).expect("temporary folder");
        std::fs::write(self.dir.join("index.txt"), "").expect("temporary folder");
        let at = |days| {
            let at = time::OffsetDateTime::now_utc() + time::Duration::days(days);
            let (date, (hour, minute, second)) = (at.date(), at.to_hms());
            let (month, day) = (u8::from(date.month()), date.day());
            format!("{}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z", date.year())
        };
        let out = format!("{file}.pem");
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-cert",
            "ca.pem",
            "-keyfile",
            "ca.key",
            "-in",
            &csr,
            "-startdate",
            &at(from),
            "-enddate",
            &at(to),
            "-extfile",
            &ext,
            "-out",
            &out,
        ]);
        leaf
    }

    /// A key and a request for its certificate, and the extensions that it is to have.
    fn requested(&self, file: &str, names: &[&str]) -> (Leaf, String, String) {
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
        (Leaf { cert: self.dir.join(cert), key: self.dir.join(key) }, csr, ext)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Process::run(Command::new("openssl").args(arguments).current_dir(&self.dir), SOON);
        assert!(output.status.success(), "openssl {arguments:?}: {}", output.stderr);
    }
}
