//! Scripts in HTML answers.

use std::sync::Arc;

use async_compression::tokio::bufread::GzipDecoder;
use async_compression::tokio::write::GzipEncoder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::*;
use crate::http::inject::Injection;
use crate::registry::{Lease, Script};

pub(super) const ELEMENT: &str = "<script src=\"1.js\"></script>";

pub(super) fn script(src: &str, path: Option<&str>) -> Script {
    let path = path.map(|path| regex::Regex::new(path).unwrap());
    Script { src: src.into(), is_async: false, defer: false, path }
}

pub(super) async fn offer(gateway: &Gateway, says: impl Into<Vec<u8>>) -> (Lease, Service) {
    let service = Service::says(says).await;
    let lease = gateway.offer_with(Arc::new(ToTcp(service.addr)), |tunnel| {
        tunnel.inject = [script("1.js", Some("^/with"))].into();
    });
    (lease, service)
}

pub(super) fn page(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The body of a chunked answer.
pub(super) fn body(answer: &[u8]) -> Vec<u8> {
    let (body, whole) = body_so_far(answer);
    assert!(whole, "cut: {}", String::from_utf8_lossy(answer));
    body
}

/// The body of a chunked answer, and whether it has an end.
pub(super) fn body_so_far(answer: &[u8]) -> (Vec<u8>, bool) {
    let start = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("no head") + 4;
    let (mut rest, mut out) = (&answer[start..], Vec::new());
    loop {
        if rest.is_empty() {
            return (out, false);
        }
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (out, true);
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

pub(super) async fn get(gateway: &Gateway, path: &str) -> Vec<u8> {
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    let mut out = Vec::new();
    visitor.0.read_to_end(&mut out).await.unwrap();
    out
}

#[test]
fn elements_and_hashes_are_those_of_the_vectors() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/tunnel-protocol.json")).unwrap();
    for vector in vectors["injection_etags"].as_array().unwrap() {
        let scripts: Vec<Script> = vector["spec"]
            .as_array()
            .unwrap()
            .iter()
            .map(|spec| Script {
                src: spec["src"].as_str().unwrap().into(),
                is_async: spec["async"] == true,
                defer: spec["defer"] == true,
                path: None,
            })
            .collect();
        let injection = Injection::of(&scripts, "/").unwrap();
        assert_eq!(injection.elements(), vector["scriptElements"]);
        assert_eq!(injection.tag_suffix(), format!("+preevy:{}", vector["etag"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn the_place_is_the_first_that_there_is() {
    for (html, expected) in [
        ("<html><head a=b><t>", format!("<html><head a=b>{ELEMENT}<t>")),
        (
            "<!doctype html><html><BODY>x</body></html>",
            format!("<!doctype html><html><head>{ELEMENT}</head><BODY>x</body></html>"),
        ),
        ("<html>x</html>\n", format!("<html>x<head>{ELEMENT}</head></html>\n")),
        ("<title>x</title>", format!("<title>x</title><head>{ELEMENT}</head>")),
        ("<!-- <head> --><header><head><body>", format!("<!-- <head> --><header><head>{ELEMENT}<body>")),
    ] {
        let gateway = Gateway::start(Port::Plain).await;
        let (_lease, _service) = offer(&gateway, page("Content-Type: text/html\r\n", html.as_bytes())).await;
        let answer = get(&gateway, "/with").await;
        assert_eq!(String::from_utf8(body(&answer)).unwrap(), expected);
    }
}

#[tokio::test]
async fn headers_of_a_changed_page_say_so_and_others_stay() {
    let gateway = Gateway::start(Port::Plain).await;
    let fields = "Content-Type: text/html; charset=utf-8\r\nAccept-Ranges: bytes\r\nETag: W/\"x\"\r\n";
    let (_lease, _service) = offer(&gateway, page(fields, b"<head>")).await;
    let answer = String::from_utf8(get(&gateway, "/with").await).unwrap();
    assert!(answer.contains("etag: W/\"x+preevy:l4xzxz\"\r\n"), "{answer}");
    assert!(!answer.contains("content-length") && !answer.contains("accept-ranges"), "{answer}");
    let other = String::from_utf8(get(&gateway, "/out").await).unwrap();
    assert!(other.contains("etag: W/\"x\"\r\n") && other.ends_with("\r\n\r\n<head>"), "{other}");
    let head =
        gateway.ask(&format!("HEAD /with HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(head.contains("preevy:l4xzxz") && !head.contains("content-length"), "{head}");
}

#[tokio::test]
async fn conditions_go_up_without_the_suffix() {
    let gateway = Gateway::start(Port::Plain).await;
    let (seen, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let seen = seen.clone();
        async move {
            seen.send(peer.head().await).unwrap();
            peer.send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n").await;
        }
    })
    .await;
    let _lease = gateway.offer_with(Arc::new(ToTcp(service.addr)), |tunnel| {
        tunnel.inject = [script("1.js", None)].into();
    });
    let fields =
        "If-None-Match: \"x+preevy:l4xzxz\", \"y+preevy:old\"\r\nAccept-Encoding: gzip, zstd, br;q=0.5\r\n";
    let answer = gateway.get("/", fields).await;
    assert!(
        answer.starts_with("HTTP/1.1 304 ") && answer.contains("etag: \"x+preevy:l4xzxz\"\r\n"),
        "{answer}"
    );
    let head = heads.recv().await.unwrap();
    assert!(head.contains("if-none-match: \"x\", \"y+preevy:old\"\r\n"), "{head}");
    assert!(head.contains("accept-encoding: gzip, br;q=0.5\r\n"), "{head}");
}

#[tokio::test]
async fn other_charsets_and_kinds_are_kept_octet_for_octet() {
    let text = b"<head></head>caf\xe9 \xff";
    let gateway = Gateway::start(Port::Plain).await;
    let (_lease, _service) =
        offer(&gateway, page("Content-Type: text/html; charset=iso-8859-1\r\n", text)).await;
    let out = body(&get(&gateway, "/with").await);
    assert_eq!(out, [b"<head>", ELEMENT.as_bytes(), b"</head>caf\xe9 \xff"].concat());
    for fields in [
        "Content-Type: text/html; charset=utf-16\r\n",
        "Content-Type: application/json\r\n",
        "Content-Type: text/html\r\nContent-Encoding: zstd\r\n",
        "",
    ] {
        let gateway = Gateway::start(Port::Plain).await;
        let (_lease, _service) = offer(&gateway, page(fields, text)).await;
        assert!(get(&gateway, "/with").await.ends_with(text), "{fields}");
    }
}

#[tokio::test]
async fn a_page_that_streams_is_not_held_back() {
    for coding in ["identity", "gzip"] {
        let gateway = Gateway::start(Port::Plain).await;
        let (go, wait) = tokio::sync::watch::channel(false);
        let service = Service::start(move |mut peer, _| {
            let mut wait = wait.clone();
            async move {
                peer.head().await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {coding}\r\n\r\n"
                );
                peer.send(head).await;
                let (first, second) = (&b"<html><head></head><body>first"[..], &b"second</body>"[..]);
                if coding == "gzip" {
                    let mut writer = GzipEncoder::new(&mut peer.0);
                    writer.write_all(first).await.unwrap();
                    writer.flush().await.unwrap();
                    wait.wait_for(|go| *go).await.unwrap();
                    writer.write_all(second).await.unwrap();
                    writer.shutdown().await.unwrap();
                } else {
                    peer.send(first).await;
                    wait.wait_for(|go| *go).await.unwrap();
                    peer.send(second).await;
                }
            }
        })
        .await;
        let _lease = gateway.offer_with(Arc::new(ToTcp(service.addr)), |tunnel| {
            tunnel.inject = [script("1.js", None)].into();
        });
        let mut visitor = gateway.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
        visitor.head().await;
        if coding == "identity" {
            visitor.until("first").await;
        } else {
            // A whole chunk: what the encoder gave out when it was flushed.
            let size = visitor.until("\r\n").await;
            let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap()];
            visitor.0.read_exact(&mut chunk).await.unwrap();
            let mut plain = vec![0; 1024];
            let count = GzipDecoder::new(&chunk[..]).read(&mut plain).await.unwrap();
            assert!(plain[..count].ends_with(b"first"), "{}", String::from_utf8_lossy(&plain[..count]));
        }
        go.send(true).unwrap();
        visitor.rest().await;
    }
}
