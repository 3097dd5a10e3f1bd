//! Why a request has no answer, whatever dialect it was asked in.

use std::time::Duration;

use axum::http::StatusCode;
use outcrop::queue::{Failure, Refused};

use crate::report;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// The field to blame.
    pub(crate) field: Option<String>,
    /// When it may be worth trying again.
    pub(crate) retry_after: Option<Duration>,
}

/// What kind of problem it is: its status code, and its name in the dialects that have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No JSON, or no texts.
    Malformed,
    /// No texts.
    Empty,
    /// A field that the model, or the dialect, does not allow.
    Invalid,
    /// Texts that are too long, where they are not to be cut.
    Tokenizer,
    /// No such path or model.
    NotFound,
    /// The body did not arrive in time.
    SlowBody,
    /// The body is too large.
    TooLarge,
    /// Too many texts.
    TooManyTexts,
    /// No key, or a wrong one.
    Unauthorized,
    /// The queue is full.
    Overloaded,
    /// Models are being loaded, or the server is being stopped.
    NotReady,
    /// The deadline has passed.
    Late,
    /// The model cannot do it, or failed.
    Backend,
}

impl Kind {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Kind::Malformed | Kind::Empty => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Invalid | Kind::Tokenizer | Kind::TooManyTexts => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Backend => StatusCode::FAILED_DEPENDENCY,
            Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Kind::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Late => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// TEI's name of it.
    pub(crate) fn tei_name(self) -> &'static str {
        match self {
            Kind::Empty => "Empty",
            Kind::Malformed
            | Kind::Invalid
            | Kind::NotFound
            | Kind::SlowBody
            | Kind::TooLarge
            | Kind::TooManyTexts => "Validation",
            Kind::Tokenizer => "Tokenizer",
            Kind::Unauthorized => "Unauthorized",
            Kind::Overloaded => "Overloaded",
            Kind::NotReady => "Unhealthy",
            Kind::Late | Kind::Backend => "Backend",
        }
    }

    /// OpenAI's name of it.
    pub(crate) fn openai_name(self) -> &'static str {
        match self {
            Kind::Unauthorized => "authentication_error",
            Kind::NotFound => "not_found_error",
            Kind::Overloaded => "rate_limit_error",
            Kind::NotReady | Kind::Late | Kind::Backend => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The value of `err` in TEI's counter of failures.
    pub(crate) fn metric(self) -> &'static str {
        match self {
            Kind::TooManyTexts => "batch_size",
            Kind::Overloaded | Kind::NotReady => "overloaded",
            Kind::Tokenizer => "tokenization",
            Kind::Backend => "inference",
            Kind::Late => "dropped",
            _ => "validation",
        }
    }
}

impl Problem {
    /// Most bytes of a message: it may quote what a client has sent, which may be megabytes.
    pub(crate) const MAX_MESSAGE_BYTES: usize = 1000;

    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MAX_MESSAGE_BYTES {
            let room = Self::MAX_MESSAGE_BYTES - '…'.len_utf8();
            let end = (0..=room).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        Self { kind, message, field: None, retry_after: None }
    }

    /// A field that cannot be used.
    pub(crate) fn field(name: &str, message: impl std::fmt::Display) -> Self {
        let problem = Self::new(Kind::Invalid, format!("{name}: {message}"));
        Self { field: Some(name.to_owned()), ..problem }
    }
}

impl From<outcrop::Error> for Problem {
    fn from(error: outcrop::Error) -> Self {
        let message = report::chain(&error);
        match error.option() {
            Some(option) => Self { field: Some(option.to_owned()), ..Self::new(Kind::Invalid, message) },
            None if error.is_of_text() => Self::new(Kind::Tokenizer, message),
            None => Self::new(Kind::Backend, message),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(error) => error.into(),
            Refused::Full { retry_after, .. } => {
                Self { retry_after: Some(retry_after), ..Self::new(Kind::Overloaded, refused.to_string()) }
            }
            _ => Self::new(Kind::NotReady, refused.to_string()),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Late => Self::new(Kind::Late, failure.to_string()),
            Failure::Closed => Self::new(Kind::NotReady, failure.to_string()),
            _ => Self::new(Kind::Backend, report::chain(&failure)),
        }
    }
}
