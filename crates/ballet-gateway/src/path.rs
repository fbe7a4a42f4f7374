//! One spelling for every path: what routing, access, the log and the service see is the same string.
//!
//! After RFC 3986 §6.2.2: escapes of unreserved bytes are decoded, other escapes are written in upper case, dot
//! segments are removed, runs of slashes become one. Refused is whatever two readers could understand differently: an
//! escaped slash or backslash, a raw backslash, `;` (some servers cut it off, some do not), control bytes, escapes that
//! are not UTF-8, a climb above the root.

use std::borrow::Cow;

/// Why a path is refused, always with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    #[error("`%` is not followed by two hexadecimal digits")]
    BadEscape,
    /// `%2F` or `%5C`.
    #[error("the path holds an escaped slash or backslash")]
    EscapedSlash,
    /// A byte that belongs into no path: a control byte, a backslash, `#`, or one beyond ASCII.
    #[error("the path holds a byte that belongs into no path")]
    BadByte,
    /// `;`, which some servers cut off.
    #[error("the path holds `;`")]
    Parameters,
    /// Escapes that are not UTF-8, overlong ones too.
    #[error("the path's escapes are not UTF-8")]
    NotUtf8,
    /// `..` above the root.
    #[error("the path climbs above the root")]
    AboveRoot,
}

/// The one spelling of a path (without its query). Borrowed, and nothing allocated, when it was written so already.
///
/// # Errors
/// Any [`PathError`].
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    let mut last = 0;
    let mut plain = true;
    for &byte in bytes {
        match byte {
            b'\\' | b'#' | 0..=0x20 | 0x7f.. => return Err(PathError::BadByte),
            b';' => return Err(PathError::Parameters),
            b'%' => plain = false,
            // `/.` may begin a dot segment, or `.well-known`: look closer.
            b'/' | b'.' if last == b'/' => plain = false,
            _ => {}
        }
        last = byte;
    }
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = remove_dots(&decode(bytes)?)?;
    Ok(if spelled == path { Cow::Borrowed(path) } else { Cow::Owned(spelled) })
}

/// Decodes all escapes of one segment: the value of a path parameter.
pub(crate) fn decode_segment(segment: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy()
}

fn decode(bytes: &[u8]) -> Result<String, PathError> {
    let mut out = String::with_capacity(bytes.len());
    let mut full = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            out.push(char::from(*byte));
            full.push(*byte);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return Err(PathError::BadEscape) };
        rest = tail;
        let value = (hex(*high)? << 4) | hex(*low)?;
        match value {
            b'/' | b'\\' => return Err(PathError::EscapedSlash),
            0..=0x1f | 0x7f => return Err(PathError::BadByte),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(value)),
            _ => {
                out.push('%');
                out.push(char::from(high.to_ascii_uppercase()));
                out.push(char::from(low.to_ascii_uppercase()));
            }
        }
        full.push(value);
    }
    if std::str::from_utf8(&full).is_err() {
        return Err(PathError::NotUtf8);
    }
    Ok(out)
}

fn hex(digit: u8) -> Result<u8, PathError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PathError::BadEscape),
    }
}

/// Removes `.` and `..` (RFC 3986 §5.2.4) and empty segments but the last.
fn remove_dots(path: &str) -> Result<String, PathError> {
    let mut kept: Vec<&str> = vec![];
    let mut directory = false;
    for segment in path[1..].split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop().ok_or(PathError::AboveRoot)?;
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if directory || kept.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_one_spelling_or_none() {
        let good = [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/a/b/", "/a/b/"),
            ("//admin", "/admin"),
            ("/a//b", "/a/b"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%2e/admin", "/admin"),
            ("/x/%2e%2e/admin", "/admin"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/.well-known/jwks.json", "/.well-known/jwks.json"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b%3b", "/a%20b%3B"),
            ("/a%252Fb", "/a%252Fb"),
            ("/...", "/..."),
        ];
        for (written, spelled) in good {
            assert_eq!(normalise(written).as_deref(), Ok(spelled), "{written}");
            assert_eq!(normalise(spelled).as_deref(), Ok(spelled), "the spelling of `{written}` is not stable");
        }
        let bad = [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("admin", PathError::NotAbsolute),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
            ("/%2e%2e/b", PathError::AboveRoot),
            ("/x%2f..%2fadmin", PathError::EscapedSlash),
            ("/x%5Cadmin", PathError::EscapedSlash),
            ("/x\\..\\admin", PathError::BadByte),
            ("/adm%00in", PathError::BadByte),
            ("/adm%0ain", PathError::BadByte),
            ("/admin#x", PathError::BadByte),
            ("/a b", PathError::BadByte),
            ("/ü", PathError::BadByte),
            ("/x/..;/admin", PathError::Parameters),
            ("/admin;a=b", PathError::Parameters),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%c0%af", PathError::NotUtf8),
            ("/%ff", PathError::NotUtf8),
        ];
        for (written, error) in bad {
            assert_eq!(normalise(written), Err(error), "{written}");
        }
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/orders/7"), Ok(Cow::Borrowed(_))));
        assert!(matches!(normalise("/.well-known/x"), Ok(Cow::Borrowed(_))));
    }
}
