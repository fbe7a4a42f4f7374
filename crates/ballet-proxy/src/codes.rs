//! The errors of this crate, for `ballet explain`.

use ballet_core::{CodeEntry, ErrorCode};

/// The errors of this crate, for `ballet explain`.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("PX001"),
        title: "no instance is up",
        cause: "Discovery knows no healthy instance of the service: it is still starting, stopped, or its health check fails.",
        remedy: "`ballet ps` shows the instances and why each is not up; `ballet logs SERVICE` shows what the service says.",
    },
    CodeEntry {
        code: ErrorCode("PX002"),
        title: "cannot connect",
        cause: "An instance is registered as up but nobody accepts connections at its address. Nothing was sent.",
        remedy: "If it has just stopped, discovery notices within its lease. Else check that the service listens on `$PORT`.",
    },
    CodeEntry {
        code: ErrorCode("PX003"),
        title: "the breaker is open",
        cause: "The last calls to this service failed one after the other, so no more are sent until the policy's `open_for` is over.",
        remedy: "`ballet ps` shows the breaker and `ballet logs SERVICE` why the service fails. It closes with the first good answer.",
    },
    CodeEntry {
        code: ErrorCode("PX004"),
        title: "too many calls under way",
        cause: "All places of the service's bulkhead are taken and none came free in time: the service is slower than its callers.",
        remedy: "Give the service more instances, or raise `bulkhead.max` in its policy if it can take more calls at once.",
    },
    CodeEntry {
        code: ErrorCode("PX005"),
        title: "no answer in time",
        cause: "The policy's `timeout` or the caller's deadline passed first. If the request had been sent, the work may have been done.",
        remedy: "Look where the time went in the call's trace; raise `timeout` in the policy if the service needs it.",
    },
    CodeEntry {
        code: ErrorCode("PX006"),
        title: "the connection was lost",
        cause: "The service closed the connection after the request was sent and before its whole answer came: it crashed or was stopped.",
        remedy: "`ballet logs SERVICE` shows its end. Repeat the request only if it is idempotent.",
    },
    CodeEntry {
        code: ErrorCode("PX007"),
        title: "the answer is too large",
        cause: "The service's answer is longer than 8 MiB, the most that a buffered call takes.",
        remedy: "Let the service answer in pages, or have the client fetch it through a gateway route, which streams.",
    },
    CodeEntry {
        code: ErrorCode("PX008"),
        title: "the answer is not HTTP",
        cause: "What came back is not HTTP/1.1, or its framing is ambiguous: two lengths, a length beside chunks, bare line feeds.",
        remedy: "Check that the port is the service's HTTP port, and that it does not speak TLS or HTTP/2 only.",
    },
    CodeEntry {
        code: ErrorCode("PX009"),
        title: "the request cannot be written",
        cause: "Its method, path or a header holds characters that HTTP does not allow there.",
        remedy: "Percent-encode the path; take line ends and control characters out of header values.",
    },
    CodeEntry {
        code: ErrorCode("PX010"),
        title: "the request was refused as it came in",
        cause: "It breaks HTTP/1.1's rules, is ambiguous in a way that two programs would read differently, or exceeds a limit of heads or bodies.",
        remedy: "The problem's `detail` says which rule. Mend the client; these rules have no switch.",
    },
    CodeEntry {
        code: ErrorCode("PX011"),
        title: "the request waited too often",
        cause: "A handler asked to wait more than 8 times for one request. This is a fault in Ballet.",
        remedy: "Report it with the route's configuration.",
    },
];
