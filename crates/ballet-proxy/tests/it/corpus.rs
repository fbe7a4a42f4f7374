//! Requests that another program might read as something else: each is refused and nothing of it goes upstream, or it goes
//! upstream as exactly one clear request.

use ballet_proxy::{Answer, ServeConfig};
use proptest::prelude::*;

use crate::rig::{Do, Gate, Origin, ok};

/// What must become of a case.
enum Fate {
    /// One of these statuses, the connection closed, nothing upstream.
    Refused(&'static [u16]),
    /// These request lines and bodies go upstream, and the client gets as many answers.
    Passes(&'static [(&'static str, &'static str)]),
}

use Fate::{Passes, Refused};

const POST: &str = "POST /x HTTP/1.1\r\nHost: a.test\r\n";
const CHUNKED: &str = "POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
const ONE: &[(&str, &str)] = &[("GET /x HTTP/1.1", "")];
const ABC: &[(&str, &str)] = &[("POST /x HTTP/1.1", "abc")];

fn post(rest: &str) -> String {
    format!("{POST}{rest}")
}

fn chunked(body: &str) -> String {
    format!("{CHUNKED}{body}")
}

fn get(rest: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a.test\r\n{rest}\r\n")
}

fn path(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

fn corpus() -> Vec<(&'static str, String, Fate)> {
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    vec![
        ("D01 plain", get(""), Passes(ONE)),
        ("D02 chunked", chunked("3\r\nabc\r\n0\r\n\r\n"), Passes(ABC)),
        (
            "D03 pipelined",
            format!("{}{}", path("/1"), path("/2")),
            Passes(&[("GET /1 HTTP/1.1", ""), ("GET /2 HTTP/1.1", "")]),
        ),
        (
            "D04 CL.TE",
            post(
                "Content-Length: 45\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
            ),
            Refused(&[400]),
        ),
        (
            "D05 TE.CL",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n28\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n\r\n0\r\n\r\n",
            ),
            Refused(&[400]),
        ),
        ("D06 TE xchunked", post("Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\nabc"), Refused(&[400, 501])),
        ("D07 TE space", post("Transfer-Encoding : chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"), Refused(&[400])),
        ("D08 TE list", post("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), Refused(&[400, 501])),
        (
            "D09 TE and cow",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n"),
            Refused(&[400, 501]),
        ),
        (
            "D10 TE twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            Refused(&[400]),
        ),
        ("D11 TE comma", post("Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"), Refused(&[400, 501])),
        (
            "D12 TE in 1.0",
            "POST /x HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            Refused(&[400]),
        ),
        ("D13 CL differ", post("Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"), Refused(&[400])),
        ("D14 CL twice", post("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"), Refused(&[400])),
        ("D15 CL list", post("Content-Length: 3, 3\r\n\r\nabc"), Refused(&[400])),
        ("D16 CL +3", post("Content-Length: +3\r\n\r\nabc"), Refused(&[400])),
        ("D17 CL -1", post("Content-Length: -1\r\n\r\nabc"), Refused(&[400])),
        ("D18 CL 0x3", post("Content-Length: 0x3\r\n\r\nabc"), Refused(&[400])),
        ("D19 CL empty", post("Content-Length: \r\n\r\n"), Refused(&[400])),
        ("D20 CL huge", post("Content-Length: 18446744073709551619\r\n\r\nabc"), Refused(&[400])),
        ("D21 fold", get("X-A: one\r\n two\r\n"), Refused(&[400])),
        ("D22 fold on TE", post("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), Refused(&[400])),
        ("D23 leading space", "GET /x HTTP/1.1\r\n X-A: 1\r\nHost: a.test\r\n\r\n".into(), Refused(&[400])),
        ("D24 bare LF", "GET /x HTTP/1.1\nHost: a.test\n\n".into(), Refused(&[400])),
        ("D25 one bare LF", "GET /x HTTP/1.1\r\nHost: a.test\nX-A: 1\r\n\r\n".into(), Refused(&[400])),
        ("D26 bare CR", get("X-A: one\rX-B: two\r\n"), Refused(&[400])),
        ("D27 NUL", get("X-A: o\0ne\r\n"), Refused(&[400])),
        ("D28 space before colon", get("X-A : 1\r\n"), Refused(&[400])),
        ("D29 no name", get(": v\r\n"), Refused(&[400])),
        ("D30 no colon", get("nocolon\r\n"), Refused(&[400])),
        ("D32 extension", chunked("3;a=b\r\nabc\r\n0\r\n\r\n"), Passes(ABC)),
        ("D33 extension LF", chunked("3;\nxx\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D34 extension CR", chunked("3\r\r;a\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D35 size LF", chunked("3\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D36 long chunk", chunked("3\r\nabcX\r\n0\r\n\r\n"), Refused(&[400])),
        ("D37 size 0x3", chunked("0x3\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D38 size huge", chunked("10000000000000003\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D39 size space", chunked(" 3\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D40 no size", chunked("\r\nabc\r\n0\r\n\r\n"), Refused(&[400])),
        ("D41 data LF", chunked("3\r\nabc\n0\r\n\r\n"), Refused(&[400])),
        ("D42 trailers", chunked("3\r\nabc\r\n0\r\nContent-Length: 9\r\nAuthorization: x\r\n\r\n"), Passes(ABC)),
        ("D43 no Host", "GET /x HTTP/1.1\r\nX-A: 1\r\n\r\n".into(), Refused(&[400])),
        ("D44 two Host", get("Host: evil.test\r\n"), Refused(&[400])),
        ("D45 Host path", "GET /x HTTP/1.1\r\nHost: a.test/evil\r\n\r\n".into(), Refused(&[400])),
        ("D45 Host user", "GET /x HTTP/1.1\r\nHost: me@a.test\r\n\r\n".into(), Refused(&[400])),
        ("D45 Host port", "GET /x HTTP/1.1\r\nHost: a.test:70000\r\n\r\n".into(), Refused(&[400])),
        ("D46 other authority", "GET http://evil.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), Refused(&[400])),
        ("D46 same authority", "GET http://A.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), Passes(ONE)),
        ("D47 CONNECT", "CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n".into(), Refused(&[400, 405, 501])),
        ("D48 bare target", path("x"), Refused(&[400])),
        ("D49 space in target", path("/a b"), Refused(&[400])),
        ("D50 HTTP/0.9", "GET /x\r\n\r\n".into(), Refused(&[400])),
        ("D51 HTTP/2.0", "GET /x HTTP/2.0\r\nHost: a.test\r\n\r\n".into(), Refused(&[505])),
        ("D52 HTTP/1.10", "GET /x HTTP/1.10\r\nHost: a.test\r\n\r\n".into(), Refused(&[400])),
        (
            "D53 drop Authorization",
            get("Authorization: Bearer t\r\nConnection: close, Authorization\r\n"),
            Refused(&[400]),
        ),
        ("D54 drop XFF", get("X-Forwarded-For: 1.2.3.4\r\nConnection: close, X-Forwarded-For\r\n"), Refused(&[400])),
        (
            "D55 hop-by-hop",
            get(
                "TE: gzip\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\n",
            ),
            Passes(ONE),
        ),
        (
            "D56 h2c",
            get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"),
            Passes(ONE),
        ),
        ("D57 admin", path("/admin"), Refused(&[403])),
        ("D58 //", path("//admin"), Refused(&[403])),
        ("D59 /./", path("/./admin"), Refused(&[403])),
        ("D60 /../", path("/x/../admin"), Refused(&[403])),
        ("D61 %61", path("/%61dmin"), Refused(&[403])),
        ("D62 %2e", path("/%2e/admin"), Refused(&[403])),
        ("D63 %2e%2e", path("/x/%2e%2e/admin"), Refused(&[403])),
        ("D64 %2f", path("/x%2f..%2fadmin"), Refused(&[400])),
        ("D65 ..;", path("/x/..;/admin"), Refused(&[400])),
        ("D66 ;", path("/admin;a=b"), Refused(&[400])),
        ("D67 case", path("/ADMIN"), Passes(&[("GET /ADMIN HTTP/1.1", "")])),
        ("D68 backslash", path("/x\\..\\admin"), Refused(&[400])),
        ("D69 %00", path("/adm%00in"), Refused(&[400])),
        ("D70 fragment", path("/admin#x"), Refused(&[400])),
        ("D71 underscore", get("X_User: evil\r\n"), Passes(ONE)),
        ("D72 odd method", "G<T /x HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), Refused(&[400])),
        ("D73 small method", "get /x HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), Refused(&[400, 405, 501])),
        ("D74 long head", get(&format!("X-Big: {}\r\n", "a".repeat(65536))), Refused(&[431])),
        ("D75 many headers", get(&many), Refused(&[431])),
        ("D76 long target", path(&format!("/{}", "a".repeat(32768))), Refused(&[414])),
        ("D77 Expect", post("Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"), Passes(ABC)),
        ("D78 Expect other", get("Expect: 200-ok\r\n"), Refused(&[417])),
        (
            "D79 GET with body",
            get("Content-Length: 3\r\n").trim_end().to_owned() + "\r\n\r\nabc",
            Passes(&[("GET /x HTTP/1.1", "abc")]),
        ),
        ("D80 leading CRLF", format!("\r\n{}", get("")), Passes(ONE)),
        ("D81 TRACE", "TRACE /x HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), Refused(&[405, 501])),
        ("two Authorization", get("Authorization: a\r\nAuthorization: b\r\n"), Refused(&[400])),
    ]
}

async fn gate(origin: &Origin) -> Gate {
    Gate::with(&[origin.address], Default::default(), ServeConfig::default(), |head, _, forward| {
        if head.path() == "/admin" {
            return Answer { close: true, ..Answer::new(403) }.into();
        }
        forward.into()
    })
}

#[tokio::test]
async fn every_case_of_the_corpus_meets_its_fate() {
    let d31 = b"GET /x HTTP/1.1\r\nHost: a.test\r\nX\xe9A: 1\r\n\r\n".to_vec();
    let mut cases: Vec<_> = corpus().into_iter().map(|(id, text, fate)| (id, text.into_bytes(), fate)).collect();
    cases.push(("D31 name byte", d31, Refused(&[400])));
    for (id, bytes, fate) in cases {
        let origin = Origin::start(|_| Do::Send(ok("fine"))).await;
        let gate = gate(&origin).await;
        let mut client = gate.client().await;
        client.send(&bytes).await;
        match fate {
            Refused(statuses) => {
                let (head, _) = client.answer().await.unwrap_or_else(|| panic!("{id}: no answer"));
                let status: u16 = head[9..12].parse().unwrap();
                assert!(statuses.contains(&status), "{id}: {head}");
                assert!(head.contains("connection: close"), "{id}: {head}");
                assert!(client.is_closed().await, "{id}: more was answered, or the connection stayed open");
                assert_eq!(origin.count(), 0, "{id}: it went upstream");
            }
            Passes(requests) => {
                for _ in requests {
                    let (head, body) = client.answer().await.unwrap_or_else(|| panic!("{id}: no answer"));
                    assert!(head.starts_with("HTTP/1.1 200"), "{id}: {head}");
                    assert_eq!(body, b"fine", "{id}");
                }
                let seen = origin.seen();
                let got: Vec<_> = seen
                    .iter()
                    .map(|s| (s.head.split("\r\n").next().unwrap(), std::str::from_utf8(&s.body).unwrap()))
                    .collect();
                assert_eq!(got, requests, "{id}");
                let head = seen[0].head.to_ascii_lowercase();
                for hop in [
                    "connection:",
                    "keep-alive:",
                    "proxy-",
                    "te:",
                    "upgrade:",
                    "http2-",
                    "x_user",
                    "expect:",
                    "trailer",
                ] {
                    assert!(!head.contains(&format!("\r\n{hop}")), "{id}: {head}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a client sends, the service reads as many requests as the gateway counted, each with one framing.
    #[test]
    fn what_goes_upstream_reads_as_exactly_one_request_each(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "GET /a HTTP/1.1\r\n", "POST /b HTTP/1.1\r\n", "POST /c HTTP/1.0\r\n", "Host: a.test\r\n", "Content-Length: 3\r\n",
            "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close, X-A\r\n", "X-A: 1\r\n", "\r\n", "\r\n",
            "abc", "3\r\nabc\r\n", "0\r\n\r\n", "0\r\n", "\n", "\r", " ", ":", "X-B: \t\r\n", "Expect: 100-continue\r\n",
        ]), 1..24),
    ) {
        let bytes: String = pieces.concat();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let origin = Origin::start(|_| Do::Send(ok(""))).await;
            let gate = Gate::to(&[origin.address]).await;
            let mut client = gate.client().await;
            client.send(bytes.as_bytes()).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await;
            let answers = client.all().await;
            assert!(gate.server.shutdown(std::time::Duration::from_secs(5)).await);
            let forwarded = gate.log.lock().unwrap().iter().filter(|line| line.status == 200).count();
            let seen = origin.seen();
            // One whose client left before its answer may have gone upstream as well.
            let unanswered = gate.log.lock().unwrap().iter().filter(|line| line.attempts > 0).count();
            assert!(forwarded <= seen.len() && seen.len() <= unanswered, "{bytes:?} gave {seen:?} and {answers}");
            for request in seen {
                let lower = request.head.to_ascii_lowercase();
                let count = |name: &str| lower.matches(&format!("\r\n{name}:")).count();
                assert!(count("content-length") + count("transfer-encoding") <= 1 && count("host") == 1, "{bytes:?} gave {lower}");
                assert!(lower.bytes().filter(|b| *b == b'\n').count() == lower.matches("\r\n").count(), "{lower:?}");
                assert_eq!(count("x-a") * count("connection"), 0, "{lower}");
            }
        });
    }
}
