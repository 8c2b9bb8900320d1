//! Small files in the state folder: readable by their owner only, and there whole or not at all.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest file that is read, in octets.
const FILE_MAX: u64 = 16 << 20;

/// Reads a file; empty if there is none. Not for a busy task.
///
/// # Errors
/// When it is there and cannot be read, or is far too large.
pub fn read(path: &Path) -> io::Result<String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 16 MiB"));
    }
    Ok(text)
}

/// Replaces a file (mode 0600). Not for a busy task.
///
/// # Errors
/// When it could not be written; then the old one stays.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|lost| lost.error)
}

/// Adds to the end of a file (mode 0600), made if there is none. Not for a busy task.
///
/// # Errors
/// When it could not be written; a part of the text may stand there then.
pub fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

/// Octets as lower-case hexadecimal digits.
pub fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Octets from exactly as many hexadecimal digits as they have.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|octet| octet.is_ascii_hexdigit()) {
        return None;
    }
    let mut octets = [0; N];
    for (index, octet) in octets.iter_mut().enumerate() {
        *octet = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_owners_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        assert_eq!(read(&path).expect("none is fine"), "");
        write(&path, "one").and_then(|()| write(&path, "two")).expect("written");
        append(&path, "\nthree").expect("written");
        assert_eq!(read(&path).expect("there"), "two\nthree");
        let new = dir.path().join("new");
        append(&new, "one").expect("written");
        assert_eq!(fs::metadata(&new).expect("there").permissions().mode() & 0o777, 0o600);
        fs::remove_file(&new).expect("there");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }

    #[test]
    fn digits_are_all_or_none() {
        assert_eq!(unhex::<2>(&hex(&[0x0a, 0xff])), Some([0x0a, 0xff]));
        for bad in ["", "0aff0", "0aff00", "+aff", "0a f", "éé"] {
            assert_eq!(unhex::<2>(bad), None, "{bad}");
        }
    }
}
