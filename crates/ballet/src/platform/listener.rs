//! The platform's listener: binds, checks `Host`, serves the parts' faces.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ballet_core::Problem;
use tokio::net::{TcpListener, TcpSocket};

use crate::cli::CliError;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Binds an address of the manifest; says which key changes it when it is taken.
pub(crate) async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, CliError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A port of a system that was killed a moment ago is ours again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error: std::io::Error| taken(address, key, &error))
}

/// Says that an address cannot be had, who holds it, and which key of the manifest changes it.
pub(crate) fn taken(address: SocketAddr, key: &str, error: &std::io::Error) -> CliError {
    let holder = holder(address).map(|who| format!(", held by {who}")).unwrap_or_default();
    CliError::no(format!("cannot listen on {address}{holder}: {error}"))
        .code("BA001")
        .hint(format!("change `{key}` in the manifest, or pass `--set {key}=127.0.0.1:0` for a free port"))
}

/// Name and pid of the process that listens on an address, where the kernel tells.
fn holder(address: SocketAddr) -> Option<String> {
    let table = std::fs::read_to_string(if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }).ok()?;
    let port = format!(":{:04X}", address.port());
    let listening = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let inode = listening
        .into_iter()
        .find(|f| f.len() > 9 && f[1].ends_with(&port) && f[3] == "0A")
        .map(|f| f[9].to_owned())?;
    let link = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if targets.any(|target| target.as_os_str() == link.as_str()) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// Adds what every face of the platform has: the check of `Host`, and answers for what is not there.
pub(crate) fn dress(routes: Router, address: SocketAddr) -> Router {
    let allowed: Arc<[String]> = Arc::from(vec![address.ip().to_string()]);
    routes.fallback(not_found).layer(axum::middleware::from_fn(move |request: Request, next: Next| {
        let allowed = allowed.clone();
        async move {
            if !host_is_ours(&request, &allowed) {
                misdirected()
            } else if is_foreign_change(&request) {
                foreign()
            } else {
                next.run(request).await
            }
        }
    }))
}

/// Whether `Host` names this machine: an address or `localhost`. A page of a foreign name that resolves to us (DNS
/// rebinding) does not.
fn host_is_ours(request: &Request, allowed: &[String]) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || allowed.iter().any(|ours| ours == name)
}

/// Whether a page of somebody else's wants to change something: browsers say where a page comes from, other clients do not.
fn is_foreign_change(request: &Request) -> bool {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return false };
    !request.method().is_safe() && text(header::HOST).is_none_or(|host| origin != format!("http://{host}"))
}

fn foreign() -> Response {
    problem(
        Problem::new(403, "a foreign page may change nothing here")
            .code("BA004")
            .detail("`Origin` is not the platform's own address"),
    )
}

fn misdirected() -> Response {
    problem(
        Problem::new(421, "misdirected request")
            .code("BA002")
            .detail("the platform answers only to its own address or `localhost` in `Host`"),
    )
}

async fn not_found(request: Request) -> Response {
    problem(
        Problem::new(404, "not found")
            .code("BA003")
            .detail(format!("nothing of the platform is at `{}`", request.uri().path())),
    )
}

fn problem(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(Problem::MEDIA_TYPE))];
    (status, kind, problem.to_json()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn only_our_own_names_pass() {
        for (host, ours) in [
            ("127.0.0.1:7070", true),
            ("localhost:7070", true),
            ("shop.localhost", true),
            ("[::1]:7070", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            let request = Request::builder().header("host", host).body(Body::empty()).unwrap();
            assert_eq!(host_is_ours(&request, &[]), ours, "{host}");
        }
    }

    #[test]
    fn a_foreign_page_changes_nothing() {
        for (method, origin, foreign) in [
            ("POST", None, false),
            ("POST", Some("http://127.0.0.1:7070"), false),
            ("POST", Some("http://evil.example"), true),
            ("POST", Some("http://127.0.0.1:8080"), true),
            ("DELETE", Some("null"), true),
            ("GET", Some("http://evil.example"), false),
        ] {
            let mut request = Request::builder().method(method).header("host", "127.0.0.1:7070");
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            let request = request.body(Body::empty()).unwrap();
            assert_eq!(is_foreign_change(&request), foreign, "{method} {origin:?}");
        }
    }
}
