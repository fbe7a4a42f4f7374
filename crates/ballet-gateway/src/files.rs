//! `static:` routes: files of a directory, with validators (RFC 9110 §8.8, §13) and single ranges (§14).
//!
//! Nothing outside the directory is ever served, not through links either, and no file or directory whose name begins
//! with a dot.

use std::fs::Metadata;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use ballet_core::Timestamp;
use ballet_proxy::Answer;

/// Longest answer that is read before it is sent; what is longer goes out piece by piece.
pub(crate) const WHOLE_BYTES: u64 = 1 << 20;
/// One piece, in bytes, and how many of them are read ahead of the client.
const PIECE_BYTES: u64 = 64 << 10;
const PIECES_AHEAD: usize = 4;

/// What of a request matters to files.
#[derive(Debug, Default, Clone)]
pub(crate) struct FileRequest {
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
}

/// Why there is no file to send.
#[derive(Debug)]
pub(crate) enum FileError {
    /// 404.
    NotFound,
    /// It is a directory, asked for without its last slash.
    Directory,
    /// 500.
    Io(io::Error),
}

/// A `Range` header, read against a length.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// From, and how many.
    Part(u64, u64),
    Unsatisfiable,
}

/// Answers a request for what lies at `rest` (a normalised path without its first slash) below `dir`.
pub(crate) async fn serve(dir: &Path, rest: &str, slash: bool, request: &FileRequest) -> Result<Answer, FileError> {
    let root = fs::canonicalize(dir).await.map_err(of_io)?;
    let mut place = root.join(relative(rest).ok_or(FileError::NotFound)?);
    let mut metadata = fs::metadata(&place).await.map_err(of_io)?;
    if metadata.is_dir() {
        if !slash {
            return Err(FileError::Directory);
        }
        place.push("index.html");
        metadata = fs::metadata(&place).await.map_err(of_io)?;
    } else if slash && !rest.is_empty() {
        return Err(FileError::NotFound);
    }
    let place = fs::canonicalize(&place).await.map_err(of_io)?;
    if !place.starts_with(&root) || !metadata.is_file() {
        return Err(FileError::NotFound);
    }
    answer(&place, &metadata, request).await
}

async fn answer(place: &Path, metadata: &Metadata, request: &FileRequest) -> Result<Answer, FileError> {
    let (length, modified) = (metadata.len(), modified(metadata));
    let tag = format!("\"{length:x}-{:x}\"", modified.millis());
    let date = http_date(modified);
    // Clients may keep it but ask each time: a new version is seen at once, an old one costs a 304.
    let tagged = |status| {
        Answer::new(status).header("etag", &*tag).header("last-modified", &*date).header("cache-control", "no-cache")
    };
    if not_modified(request, &tag, modified) {
        return Ok(tagged(304));
    }
    let fresh = request.if_range.as_ref().is_none_or(|validator| *validator == tag || *validator == date);
    let (answer, from, count) =
        match request.range.as_deref().filter(|_| fresh).map_or(Range::Whole, |r| range(r, length)) {
            Range::Whole => (tagged(200), 0, length),
            Range::Part(from, count) => {
                let place = format!("bytes {from}-{}/{length}", from + count - 1);
                (tagged(206).header("content-range", place), from, count)
            }
            Range::Unsatisfiable => return Ok(tagged(416).header("content-range", format!("bytes */{length}"))),
        };
    let answer = answer
        .header("accept-ranges", "bytes")
        .header("content-type", content_type(place))
        .header("x-content-type-options", "nosniff");
    let mut file = File::open(place).await.map_err(of_io)?;
    file.seek(SeekFrom::Start(from)).await.map_err(of_io)?;
    if count <= WHOLE_BYTES {
        return Ok(answer.body(read(&mut file, count).await.map_err(of_io)?));
    }
    let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
    // Ends with the file, or when the client has left.
    tokio::spawn(async move {
        let mut left = count;
        while left > 0 {
            let piece = read(&mut file, left.min(PIECE_BYTES)).await;
            let failed = piece.is_err();
            if pieces.send(piece).await.is_err() || failed {
                return;
            }
            left -= left.min(PIECE_BYTES);
        }
    });
    Ok(answer.stream(receiver))
}

/// Reads exactly `count` bytes; a file that shrank meanwhile is an error, not a short answer.
async fn read(file: &mut File, count: u64) -> io::Result<Bytes> {
    let mut body = vec![0; usize::try_from(count).map_err(io::Error::other)?];
    file.read_exact(&mut body).await?;
    Ok(body.into())
}

/// A request's path as a relative path on disk; `None` if it could leave the directory or names something hidden.
fn relative(rest: &str) -> Option<PathBuf> {
    let mut place = PathBuf::new();
    for segment in rest.split('/').filter(|segment| !segment.is_empty()) {
        let name = percent_decode_str(segment).decode_utf8_lossy();
        if name.starts_with('.') || name.contains(['/', '\\', '\0', ':', '\u{fffd}']) {
            return None;
        }
        place.push(&*name);
    }
    Some(place)
}

fn not_modified(request: &FileRequest, tag: &str, modified: Timestamp) -> bool {
    if let Some(tags) = &request.if_none_match {
        return tags.split(',').map(str::trim).any(|t| t == "*" || t.trim_start_matches("W/") == tag);
    }
    let since = request.if_modified_since.as_deref().and_then(read_date);
    since.is_some_and(|since| modified.millis().div_euclid(1000) <= since)
}

fn range(header: &str, length: u64) -> Range {
    let Some(spec) = header.trim().strip_prefix("bytes=") else { return Range::Whole };
    let Some((from, to)) = spec.split_once('-') else { return Range::Whole };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (number(from.trim()), number(to.trim())) {
        (None, Some(last)) if from.is_empty() => match last.min(length) {
            0 => Range::Unsatisfiable,
            count => Range::Part(length - count, count),
        },
        (Some(from), None) if to.is_empty() && from < length => Range::Part(from, length - from),
        (Some(from), Some(to)) if from <= to && from < length => Range::Part(from, to.min(length - 1) - from + 1),
        (Some(from), Some(to)) if from <= to => Range::Unsatisfiable,
        (Some(_), None) if to.is_empty() => Range::Unsatisfiable,
        // Malformed, or several ranges: the whole is always a right answer.
        _ => Range::Whole,
    }
}

fn modified(metadata: &Metadata) -> Timestamp {
    let since = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(0))
}

/// An IMF-fixdate: `Sat, 21 Nov 2026 13:30:00 GMT`.
pub(crate) fn http_date(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.millis())
        .map(|t| t.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

/// Seconds since 1970 of an IMF-fixdate.
fn read_date(text: &str) -> Option<i64> {
    let date = text.strip_suffix(" GMT")?;
    let date = jiff::civil::DateTime::strptime("%a, %d %b %Y %H:%M:%S", date).ok()?;
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

fn content_type(place: &Path) -> &'static str {
    match place.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "woff" => "font/woff",
        "ttf" => "font/ttf",
        "txt" | "md" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        _ => "application/octet-stream",
    }
}

fn of_io(error: io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => FileError::NotFound,
        _ => FileError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use ballet_proxy::AnswerBody;

    use super::*;

    fn site() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("index.html", "<h1>home</h1>");
        write("a b.css", "0123456789");
        write(".env", "secret");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        write("sub/index.html", "sub");
        dir
    }

    fn body(answer: &Answer) -> Bytes {
        match &answer.body {
            AnswerBody::Full(body) => body.clone(),
            AnswerBody::Stream(_) => panic!("files come whole"),
        }
    }

    fn get_header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        answer.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    async fn get(dir: &Path, path: &str, request: &FileRequest) -> Result<Answer, FileError> {
        serve(dir, path.trim_start_matches('/'), path.ends_with('/'), request).await
    }

    #[tokio::test]
    async fn files_are_found_below_the_directory_and_nowhere_else() {
        let (dir, other) = (site(), site());
        std::os::unix::fs::symlink(other.path().join("index.html"), dir.path().join("out.html")).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("outside")).unwrap();
        for (path, text) in
            [("/", "<h1>home</h1>"), ("/index.html", "<h1>home</h1>"), ("/sub/", "sub"), ("/a%20b.css", "0123456789")]
        {
            let answer = get(dir.path(), path, &FileRequest::default()).await.unwrap();
            assert_eq!((answer.status, &*body(&answer)), (200, text.as_bytes()), "{path}");
        }
        for path in [
            "/nope",
            "/.env",
            "/%2Eenv",
            "/out.html",
            "/outside/index.html",
            "/outside/",
            "/index.html/",
            "/index.html/x",
            "/..%2fx",
        ] {
            let answer = get(dir.path(), path, &FileRequest::default()).await;
            assert!(matches!(answer, Err(FileError::NotFound)), "{path}: {answer:?}");
        }
        assert!(matches!(get(dir.path(), "/sub", &FileRequest::default()).await, Err(FileError::Directory)));
        let gone = get(Path::new("/nowhere/at/all"), "/", &FileRequest::default()).await;
        assert!(matches!(gone, Err(FileError::NotFound)));
    }

    #[tokio::test]
    async fn a_long_file_comes_in_pieces() {
        let dir = site();
        let text: Vec<u8> = (0..WHOLE_BYTES + 70_000).map(|n| (n % 251) as u8).collect();
        std::fs::write(dir.path().join("long.bin"), &text).unwrap();
        let answer = get(dir.path(), "/long.bin", &FileRequest::default()).await.unwrap();
        let AnswerBody::Stream(mut pieces) = answer.body else { panic!("read at once") };
        let mut read = vec![];
        while let Some(piece) = pieces.recv().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert!(read == text, "{} bytes of {}", read.len(), text.len());
    }

    #[tokio::test]
    async fn validators_and_ranges_are_obeyed() {
        let dir = site();
        let first = get(dir.path(), "/a%20b.css", &FileRequest::default()).await.unwrap();
        assert_eq!(get_header(&first, "content-type"), Some("text/css; charset=utf-8"));
        let (tag, date) =
            (get_header(&first, "etag").unwrap().to_owned(), get_header(&first, "last-modified").unwrap().to_owned());
        let request = |header: &str, value: &str| {
            let mut request = FileRequest::default();
            let value = Some(value.to_owned());
            match header {
                "none-match" => request.if_none_match = value,
                "since" => request.if_modified_since = value,
                _ => request.range = value,
            }
            request
        };
        let cases = [
            (request("none-match", &tag), 304, ""),
            (request("none-match", &format!("\"x\", W/{tag}")), 304, ""),
            (request("none-match", "\"x\""), 200, "0123456789"),
            (request("since", &date), 304, ""),
            (request("since", "Sat, 01 Jan 2000 00:00:00 GMT"), 200, "0123456789"),
            (request("since", "yesterday"), 200, "0123456789"),
            (request("range", "bytes=2-4"), 206, "234"),
            (request("range", "bytes=7-"), 206, "789"),
            (request("range", "bytes=-3"), 206, "789"),
            (request("range", "bytes=8-99"), 206, "89"),
            (request("range", "bytes=10-"), 416, ""),
            (request("range", "bytes=10-12"), 416, ""),
            (request("range", "bytes=-0"), 416, ""),
            (request("range", "bytes=4-2"), 200, "0123456789"),
            (request("range", "bytes=0-1,3-4"), 200, "0123456789"),
            (request("range", "bytes=+1-2"), 200, "0123456789"),
            (FileRequest { if_range: Some("\"x\"".into()), ..request("range", "bytes=2-4") }, 200, "0123456789"),
            (FileRequest { if_range: Some(tag.clone()), ..request("range", "bytes=2-4") }, 206, "234"),
        ];
        for (request, status, text) in cases {
            let answer = get(dir.path(), "/a%20b.css", &request).await.unwrap();
            assert_eq!((answer.status, &*body(&answer)), (status, text.as_bytes()), "{request:?}");
        }
        let part = get(dir.path(), "/a%20b.css", &request("range", "bytes=2-4")).await.unwrap();
        assert_eq!(get_header(&part, "content-range"), Some("bytes 2-4/10"));
    }
}
