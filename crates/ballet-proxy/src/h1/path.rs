//! Request paths in one form (RFC 3986 §6.2.2), so that routing, authorisation and the upstream see the same one.
//!
//! Unreserved characters that came percent-encoded are decoded, other escapes get capital digits, dot segments and empty
//! segments go. What two programs are known to read differently is refused: `%2F`, `%5C`, `%00`, `\`, `;`, bad escapes,
//! overlong UTF-8, climbing above the root.

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(pub &'static str);

/// Brings a path (without query) into its one form. `None`: it already is. The result is written to `out`, which is
/// cleared first.
///
/// # Errors
/// [`BadPath`] for a path that programs are known to read differently.
pub fn normalize(path: &[u8], out: &mut Vec<u8>) -> Result<bool, BadPath> {
    out.clear();
    if is_plain(path) {
        return Ok(false);
    }
    let mut at = 0;
    while at < path.len() {
        let byte = path[at];
        match byte {
            b'\\' => return Err(BadPath("the path has a backslash")),
            // `/admin;a=b` is `/admin` to some servers and another path to others; so are `/..;/`.
            b';' => return Err(BadPath("the path has a `;`: encode it as `%3B`")),
            b'#' => return Err(BadPath("the target has a fragment")),
            b'%' => {
                let digits = path.get(at + 1..at + 3).ok_or(BadPath("the path has a broken percent-encoding"))?;
                let decoded = hex(digits[0])
                    .zip(hex(digits[1]))
                    .map(|(high, low)| high << 4 | low)
                    .ok_or(BadPath("the path has a broken percent-encoding"))?;
                match decoded {
                    b'/' | b'\\' => return Err(BadPath("the path has an encoded slash or backslash")),
                    0..0x20 | 0x7f => return Err(BadPath("the path has an encoded control character")),
                    b'-' | b'.' | b'_' | b'~' => out.push(decoded),
                    _ if decoded.is_ascii_alphanumeric() => out.push(decoded),
                    _ => out.extend_from_slice(&[b'%', digits[0].to_ascii_uppercase(), digits[1].to_ascii_uppercase()]),
                }
                at += 2;
            }
            _ => out.push(byte),
        }
        at += 1;
    }
    check_utf8(out)?;
    remove_dots(out)?;
    Ok(true)
}

/// Whether nothing has to be changed or refused.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for byte in path {
        match byte {
            b'%' | b'\\' | b';' | b'#' => return false,
            b'/' | b'.' if after_slash => return false,
            _ => {}
        }
        after_slash = *byte == b'/';
    }
    true
}

/// Escaped bytes that are not UTF-8 are refused, overlong forms of `/` and `.` with them.
fn check_utf8(path: &[u8]) -> Result<(), BadPath> {
    let escaped = |at: usize| hex(path[at + 1]).zip(hex(path[at + 2])).map_or(0, |(high, low)| high << 4 | low);
    let mut run = vec![];
    let mut at = 0;
    while at <= path.len() {
        if at < path.len() && path[at] == b'%' {
            run.push(escaped(at));
            at += 3;
            continue;
        }
        if std::str::from_utf8(&run).is_err() {
            return Err(BadPath("the path is not UTF-8"));
        }
        run.clear();
        at += 1;
    }
    Ok(())
}

/// RFC 3986 §5.2.4, in place, and empty segments with it.
fn remove_dots(path: &mut Vec<u8>) -> Result<(), BadPath> {
    let (mut kept, mut at) = (0, 0);
    while at < path.len() {
        // `at` stands on a slash.
        let end = path[at + 1..].iter().position(|b| *b == b'/').map_or(path.len(), |i| at + 1 + i);
        let last = end == path.len();
        match &path[at + 1..end] {
            b"" | b"." if !last => {}
            b"" | b"." => {
                path[kept] = b'/';
                kept += 1;
            }
            b".." => {
                if kept == 0 {
                    return Err(BadPath("the path climbs above the root"));
                }
                kept = path[..kept].iter().rposition(|b| *b == b'/').unwrap_or(0);
                if last {
                    kept += 1;
                }
            }
            _ => {
                path.copy_within(at..end, kept);
                kept += end - at;
            }
        }
        at = end;
    }
    path.truncate(kept.max(1));
    Ok(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_into_one_form() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/.well-known/jwks.json", "/.well-known/jwks.json"),
            ("//admin", "/admin"),         // D58
            ("/./admin", "/admin"),        // D59
            ("/x/../admin", "/admin"),     // D60
            ("/%61dmin", "/admin"),        // D61
            ("/%2e/admin", "/admin"),      // D62
            ("/x/%2e%2e/admin", "/admin"), // D63
            ("/a//b///c/", "/a/b/c/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/...", "/..."),
            ("/caf%c3%a9%20x", "/caf%C3%A9%20x"),
            ("/%7Eme", "/~me"),
        ] {
            let mut out = vec![];
            let changed = normalize(path.as_bytes(), &mut out).unwrap();
            let got = if changed { String::from_utf8(out.clone()).unwrap() } else { path.to_owned() };
            assert_eq!(got, normal, "{path}");
            // Nothing is left to change: no second reading differs from the first.
            assert!(!normalize(got.as_bytes(), &mut out).unwrap() || out == got.as_bytes(), "{path} twice");
        }
    }

    #[test]
    fn what_programs_read_differently_is_refused() {
        for path in [
            "/x%2f..%2fadmin", // D64
            "/x/..;/admin",    // D65
            "/admin;a=b",      // D66
            "/x\\..\\admin",   // D68
            "/adm%00in",       // D69
            "/admin#x",        // D70
            "/..",
            "/a/../../b",
            "/%5c",
            "/%2",
            "/%zz",
            "/%c0%ae%c0%ae/x",
            "/%ff",
            "/a%0d%0ab",
        ] {
            assert!(normalize(path.as_bytes(), &mut vec![]).is_err(), "{path}");
        }
    }
}
