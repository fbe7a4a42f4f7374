//! The orchestrator's part of the error table.

use ballet_core::{CodeEntry, ErrorCode};

/// Codes of the orchestrator. `WF001` to `WF006` are those of [`ballet_core::WorkflowsError`].
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("WF001"),
        title: "no such workflow",
        cause: "the name or the version was never registered, or its definition was deleted",
        remedy: "look at `ballet workflows` and GET /api/metadata/workflow; workflows of the manifest are registered at start",
    },
    CodeEntry {
        code: ErrorCode("WF002"),
        title: "no such execution",
        cause: "nothing was started with this id, or the execution was removed",
        remedy: "look for it with `ballet workflows list`",
    },
    CodeEntry {
        code: ErrorCode("WF003"),
        title: "the request breaks a rule",
        cause: "a definition, an input or a query is not as it should be; the message says where",
        remedy: "correct what the message names",
    },
    CodeEntry {
        code: ErrorCode("WF004"),
        title: "the execution's state forbids it",
        cause: "it has ended, it is past the point of no return, it is being undone, or something of it was undone",
        remedy: "look at its `status` and `compensation`; what was undone needs a new execution",
    },
    CodeEntry {
        code: ErrorCode("WF005"),
        title: "the orchestrator takes nothing now",
        cause: "it is stopping, its journal refuses to write, or a limit was reached; nothing was accepted",
        remedy: "ask again; look at the platform's log if it lasts",
    },
    CodeEntry {
        code: ErrorCode("WF006"),
        title: "the answer was lost",
        cause: "the orchestrator began anew, or the connection broke, before it answered; it may have been done",
        remedy: "start with an execution id of your own and ask again: a known id has no second effect",
    },
    CodeEntry {
        code: ErrorCode("WF010"),
        title: "malformed request",
        cause: "the body is not JSON, a parameter is not of its kind, or a required one is missing",
        remedy: "correct what the message names",
    },
    CodeEntry {
        code: ErrorCode("WF011"),
        title: "not found",
        cause: "there is no such task, definition or path",
        remedy: "check the id or the path",
    },
    CodeEntry {
        code: ErrorCode("WF012"),
        title: "not supported",
        cause: "Conductor's API has it, this version of ours does not",
        remedy: "see the list of endpoints in the reference",
    },
];
