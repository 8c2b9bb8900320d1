//! Scripts in HTML answers that come compressed.

use std::sync::Arc;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder};
use async_compression::tokio::write::{BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::injection::{ELEMENT, body, body_so_far, get, offer, page, script};
use super::support::*;

async fn gzip(html: &str) -> Vec<u8> {
    let mut writer = GzipEncoder::new(Vec::new());
    writer.write_all(html.as_bytes()).await.unwrap();
    writer.shutdown().await.unwrap();
    writer.into_inner()
}

/// What comes out of gzip until it ends or breaks.
async fn gunzip(packed: &[u8]) -> String {
    let (mut reader, mut plain) = (GzipDecoder::new(packed), Vec::new());
    reader.multiple_members(true);
    let _ = reader.read_to_end(&mut plain).await;
    String::from_utf8(plain).unwrap()
}

const HTML: &str = "<html><head></head><body>x</body></html>";

fn with_element() -> String {
    HTML.replace("<head>", &format!("<head>{ELEMENT}"))
}

async fn visit(coding: &str, says: Vec<u8>) -> Vec<u8> {
    let gateway = Gateway::start(Port::Plain).await;
    let fields = format!("Content-Type: text/html\r\nContent-Encoding: {coding}\r\n");
    let (_lease, _service) = offer(&gateway, page(&fields, &says)).await;
    get(&gateway, "/with").await
}

#[tokio::test]
async fn codings_are_taken_off_and_put_on_again() {
    let filler = "<p>more and more of it</p>".repeat(20_000);
    let html = format!("<html><head></head><body>{filler}</body></html>");
    let expected = html.replace("<head>", &format!("<head>{ELEMENT}"));
    for coding in ["gzip", "deflate", "br"] {
        let mut packed = Vec::new();
        match coding {
            "gzip" => {
                let mut writer = GzipEncoder::new(&mut packed);
                writer.write_all(html.as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            }
            "deflate" => {
                let mut writer = ZlibEncoder::new(&mut packed);
                writer.write_all(html.as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            }
            _ => {
                let mut writer = BrotliEncoder::new(&mut packed);
                writer.write_all(html.as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            }
        }
        let gateway = Gateway::start(Port::Plain).await;
        let fields = format!("Content-Type: text/html\r\nContent-Encoding: {coding}\r\n");
        let (_lease, _service) = offer(&gateway, page(&fields, &packed)).await;
        let packed = body(&get(&gateway, "/with").await);
        let mut plain = String::new();
        match coding {
            "gzip" => GzipDecoder::new(&packed[..]).read_to_string(&mut plain).await.unwrap(),
            "deflate" => ZlibDecoder::new(&packed[..]).read_to_string(&mut plain).await.unwrap(),
            _ => BrotliDecoder::new(&packed[..]).read_to_string(&mut plain).await.unwrap(),
        };
        assert!(plain == expected, "{coding}: {} octets, not {}", plain.len(), expected.len());
    }
}

#[tokio::test]
async fn deflate_without_its_zlib_wrapping_is_a_page_as_well() {
    let mut writer = DeflateEncoder::new(Vec::new());
    writer.write_all(HTML.as_bytes()).await.unwrap();
    writer.shutdown().await.unwrap();
    let packed = body(&visit("deflate", writer.into_inner()).await);
    let mut plain = String::new();
    ZlibDecoder::new(&packed[..]).read_to_string(&mut plain).await.unwrap();
    assert_eq!(plain, with_element());
}

#[tokio::test]
async fn gzip_may_have_members_and_be_followed_by_anything() {
    for tail in [&b"\0\0\0"[..], b"\x1f", b"garbage"] {
        let packed = [&gzip(HTML).await, tail].concat();
        assert_eq!(gunzip(&body(&visit("gzip", packed).await)).await, with_element(), "{tail:?}");
    }
    let (first, second) = HTML.split_at(20);
    let packed = [gzip(first).await, gzip(second).await, b"tail".to_vec()].concat();
    assert_eq!(gunzip(&body(&visit("gzip", packed).await)).await, with_element());
}

#[tokio::test]
async fn a_packed_body_without_an_octet_is_an_empty_page() {
    for coding in ["gzip", "deflate", "br"] {
        let gateway = Gateway::start(Port::Plain).await;
        let says = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {coding}\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        );
        let (_lease, _service) = offer(&gateway, says).await;
        let packed = body(&get(&gateway, "/with").await);
        if coding == "gzip" {
            assert_eq!(gunzip(&packed).await, format!("<head>{ELEMENT}</head>"));
        }
    }
}

#[tokio::test]
async fn a_body_that_is_not_gzip_as_it_says_is_passed_on_untouched() {
    for says in [HTML.as_bytes(), b"<"] {
        assert_eq!(body(&visit("gzip", says.to_vec()).await), says);
    }
}

#[tokio::test]
async fn a_page_that_breaks_off_is_given_out_up_to_there_and_seen_as_cut() {
    let half = &HTML[..HTML.len() - 7];
    let packed = gzip(&HTML.repeat(3000)).await;
    let cut = packed[..packed.len() / 2].to_vec();
    let (out, whole) = body_so_far(&visit("gzip", cut.clone()).await);
    let plain = gunzip(&out).await;
    assert!(!whole, "an end was made up");
    assert!(plain.starts_with(&with_element()) && plain.len() > 1000, "{} octets", plain.len());
    // What was damaged later on.
    let mut damaged = packed;
    let middle = damaged.len() / 2;
    damaged.truncate(middle);
    damaged.extend_from_slice(&[0xff; 100]);
    let (out, whole) = body_so_far(&visit("gzip", damaged).await);
    assert!(!whole && gunzip(&out).await.starts_with(&with_element()));
    // Nothing can be read at all: the head alone.
    let (_, whole) = body_so_far(&visit("br", vec![0xff; 1000]).await);
    assert!(!whole);
    // The service closes in the middle.
    for port in [Port::Plain, Port::H2] {
        let gateway = Gateway::start(port).await;
        let service = Service::start(move |mut peer, _| async move {
            peer.head().await;
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 900\r\n\r\n{half}"
            ))
            .await;
        })
        .await;
        let _lease = gateway.offer_with(Arc::new(ToTcp(service.addr)), |tunnel| {
            tunnel.inject = [script("1.js", None)].into();
        });
        let expected = half.replace("<head>", &format!("<head>{ELEMENT}"));
        if port == Port::Plain {
            let (out, whole) = body_so_far(&get(&gateway, "/").await);
            assert_eq!((String::from_utf8(out).unwrap(), whole), (expected, false));
        } else {
            let request = http::Request::builder()
                .uri(format!("https://{HOST}/"))
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap();
            let mut body = super::h2::client(&gateway).await.send_request(request).await.unwrap().into_body();
            let mut seen = Vec::new();
            let end = loop {
                match http_body_util::BodyExt::frame(&mut body).await {
                    Some(Ok(frame)) => seen.extend_from_slice(frame.data_ref().unwrap()),
                    end => break end,
                }
            };
            assert!(end.is_some(), "an end was made up");
            assert_eq!(String::from_utf8(seen).unwrap(), expected);
        }
    }
}

#[test]
fn a_page_that_unpacks_to_a_great_deal_stops_nobody_else() {
    // One thread does everything here: who does not let go of it stops the others. It looks for
    // what has come whenever it is let go of.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().event_interval(1).build().unwrap().block_on(unpack_a_great_deal());
}

async fn unpack_a_great_deal() {
    let mut writer = BrotliEncoder::with_quality(Vec::new(), async_compression::Level::Precise(2));
    writer.write_all(b"<html><head></head><body>").await.unwrap();
    let spaces = vec![b' '; 1 << 20];
    for _ in 0..16 {
        writer.write_all(&spaces).await.unwrap();
    }
    writer.shutdown().await.unwrap();
    let packed = writer.into_inner();
    assert!(packed.len() < 10_000, "{} octets are no bomb", packed.len());
    let gateway = Gateway::start(Port::Plain).await;
    let fields = "Content-Type: text/html\r\nContent-Encoding: br\r\n";
    let (_lease, _service) = offer(&gateway, page(fields, &packed)).await;
    let mut others = 0;
    let mut page = std::pin::pin!(get(&gateway, "/with"));
    let answer = loop {
        tokio::select! {
            answer = &mut page => break answer,
            _ = gateway.ask("GET /healthz HTTP/1.1\r\nHost: api.example.test\r\nConnection: close\r\n\r\n") => {
                others += 1;
            }
        }
    };
    assert!(others >= 10, "only {others} other requests were answered meanwhile");
    let (mut plain, packed) = (Vec::new(), body(&answer));
    BrotliDecoder::new(&packed[..]).read_to_end(&mut plain).await.unwrap();
    assert!(plain.len() > 16 << 20);
}
