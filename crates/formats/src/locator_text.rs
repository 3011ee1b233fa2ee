//! The grammar of locators (`docs/formats/locator.md`).

use nom::bytes::complete::{tag_no_case, take_while};
use nom::error::{ErrorKind, ParseError};
use nom::{IResult, Parser};
use zeroize::Zeroizing;

use crate::crypto_dict;
use crate::error::{Error, Kind, Place};
use crate::locator::{EMPTY, Locator, MEMBERS_MAX, NESTING_MAX, NULL, Pair, RawKey, Role, TEXT_LEN_MAX};

/// What is wrong, and what of the text was left there.
struct Failure<'a> {
    rest: &'a str,
    cause: Cause,
}

enum Cause {
    Base64,
    Encoding,
    /// The offset into the element.
    Escape(usize),
    Members,
    Syntax(&'static str),
    Unknown(String),
    Value(&'static str, String),
}

type Parsed<'a, T> = IResult<&'a str, T, Failure<'a>>;

impl<'a> ParseError<&'a str> for Failure<'a> {
    fn from_error_kind(rest: &'a str, _: ErrorKind) -> Self {
        Self { rest, cause: Cause::Syntax("the locator does not go on as it has to; the text was cut or changed") }
    }

    fn append(_: &'a str, _: ErrorKind, other: Self) -> Self {
        other
    }
}

pub(crate) fn parse(text: &str) -> Result<Locator, Error> {
    if text.len() > TEXT_LEN_MAX {
        let found = text.len().to_string();
        return Err(Error::Limit { what: "bytes of a key locator", found, max: TEXT_LEN_MAX as u64 });
    }
    let depth = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' => *depth += 1,
            b')' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    let depth = depth.max().unwrap_or(0);
    if depth > NESTING_MAX {
        let what = "lists and pairs inside each other in a key locator";
        return Err(Error::Limit { what, found: depth.to_string(), max: NESTING_MAX as u64 });
    }
    match prefixed(text) {
        Ok((_, locator)) => Ok(locator),
        Err(nom::Err::Error(failure) | nom::Err::Failure(failure)) => Err(error(text, failure)),
        Err(nom::Err::Incomplete(_)) => Err(error(text, Failure::from_error_kind("", ErrorKind::Eof))),
    }
}

fn error(text: &str, failure: Failure<'_>) -> Error {
    let place = Place::Byte((text.len() - failure.rest.len()) as u64);
    match failure.cause {
        Cause::Base64 => Error::Base64 { what: "the locked data of a key locator", place },
        Cause::Encoding => Error::Encoding { name: "an element of a key locator".to_owned(), encoding: "UTF-8", place },
        Cause::Escape(offset) => {
            Error::Escape { place: Place::Byte((text.len() - failure.rest.len() + offset) as u64) }
        }
        Cause::Members => Error::Limit {
            what: "members of a list of key locators",
            found: "more".to_owned(),
            max: MEMBERS_MAX as u64,
        },
        Cause::Syntax(what) => Error::Syntax { what, place },
        Cause::Unknown(name) => Error::Unknown { kind: Kind::Locator, name, place },
        Cause::Value(what, found) => Error::Value { what, found, place },
    }
}

fn fail<'a, T>(rest: &'a str, cause: Cause) -> Parsed<'a, T> {
    Err(nom::Err::Failure(Failure { rest, cause }))
}

fn prefixed(text: &str) -> Parsed<'_, Locator> {
    const PREFIX: &str = "vmware:key";
    let (rest, prefix) = element(text, End::Slash)?;
    if !prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX.as_bytes())) {
        return fail(text, Cause::Syntax("a key locator begins with `vmware:key/`"));
    }
    let (rest, locator) = locator(rest, true)?;
    if rest.is_empty() { Ok((rest, locator)) } else { fail(rest, Cause::Syntax("the locator ends before this")) }
}

/// What ends an element.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// A slash, which belongs to it: every element of a locator but the last.
    Slash,
    /// The end of the text or, inside parentheses, a comma or the closing one, which are left: the last element.
    Last { is_top: bool },
}

/// An element's bytes; none for the word that stands for an absent value.
fn element(text: &str, end: End) -> Parsed<'_, Option<Zeroizing<Vec<u8>>>> {
    let (rest, raw) = match end {
        End::Last { is_top: false } => take_while(|character| !matches!(character, ',' | '(' | ')')).parse(text)?,
        _ => take_while(|character| !matches!(character, '/' | ',' | '(' | ')')).parse(text)?,
    };
    if raw.is_empty() {
        return fail(text, Cause::Syntax("an element of a key locator has no bytes; the text was cut or changed"));
    }
    let rest = match (end, rest.strip_prefix('/')) {
        (End::Slash, Some(rest)) => rest,
        (End::Slash, None) => return fail(rest, Cause::Syntax("`/` and another element expected")),
        _ => rest,
    };
    let bytes = match crypto_dict::unescape(raw, 0) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(Error::Escape { place: Place::Byte(offset) }) => return fail(text, Cause::Escape(offset as usize)),
        Err(_) => return fail(text, Cause::Encoding),
    };
    match bytes.as_slice() {
        word if word == NULL.as_bytes() => Ok((rest, None)),
        word if word == EMPTY.as_bytes() => Ok((rest, Some(Zeroizing::default()))),
        _ => Ok((rest, Some(bytes))),
    }
}

/// An element that may be absent, as text.
fn optional(text: &str, end: End) -> Parsed<'_, Option<String>> {
    let (rest, bytes) = element(text, end)?;
    match bytes.map(|bytes| String::from_utf8(bytes.to_vec())) {
        None => Ok((rest, None)),
        Some(Ok(string)) => Ok((rest, Some(string))),
        Some(Err(_)) => fail(text, Cause::Encoding),
    }
}

/// An element that has to be there, as bytes.
fn bytes(text: &str, end: End) -> Parsed<'_, Zeroizing<Vec<u8>>> {
    match element(text, end)? {
        (rest, Some(bytes)) => Ok((rest, bytes)),
        (_, None) => fail(text, Cause::Syntax("this element of a key locator cannot be absent")),
    }
}

/// An element that has to be there, as text.
fn string(text: &str, end: End) -> Parsed<'_, String> {
    let (rest, bytes) = bytes(text, end)?;
    match String::from_utf8(bytes.to_vec()) {
        Ok(string) => Ok((rest, string)),
        Err(_) => fail(text, Cause::Encoding),
    }
}

fn locator(text: &str, is_top: bool) -> Parsed<'_, Locator> {
    let last = End::Last { is_top };
    let (rest, kind) = match element(text, End::Slash) {
        Ok((rest, Some(kind))) => (rest, kind.to_ascii_lowercase()),
        Ok((_, None)) => return fail(text, Cause::Syntax("the type of a key locator expected")),
        Err(error) => return Err(error),
    };
    match kind.as_slice() {
        b"fqid" => {
            let (rest, unique_id) = optional(rest, End::Slash)?;
            let (rest, server) = optional(rest, End::Slash)?;
            let (rest, key) = string(rest, last)?;
            Ok((rest, Locator::Fqid { unique_id, server, key }))
        }
        b"ldap" => ldap(rest, last),
        b"list" => {
            let (rest, members) = list(rest)?;
            Ok((rest, Locator::List(members)))
        }
        b"null" => match element(rest, last)? {
            (after, Some(bytes)) if bytes.is_empty() => Ok((after, Locator::Null)),
            _ => fail(rest, Cause::Syntax("a `null` locator has the word <VMWARE-EMPTYSTRING> and nothing else")),
        },
        b"pair" => {
            let (rest, pair) = pair(rest)?;
            Ok((rest, Locator::Pair(Box::new(pair))))
        }
        b"phrase" => {
            let (rest, id) = string(rest, End::Slash)?;
            let (rest, parameters) = string(rest, last)?;
            Ok((rest, Locator::Phrase { id, parameters }))
        }
        b"rawkey" => {
            let (rest, key) = bytes(rest, last)?;
            Ok((rest, Locator::RawKey(RawKey(key))))
        }
        b"role" => {
            let (role_text, unique_id) = optional(rest, End::Slash)?;
            let (rest, name) = string(role_text, last)?;
            match Role::ALL.into_iter().find(|role| role.name().eq_ignore_ascii_case(&name)) {
                Some(role) => Ok((rest, Locator::Role { unique_id, role })),
                None => fail(role_text, Cause::Value("the role of a key locator", name)),
            }
        }
        b"script" => {
            let (rest, unique_id) = optional(rest, End::Slash)?;
            let (rest, path) = string(rest, End::Slash)?;
            let (rest, signature) = bytes(rest, last)?;
            Ok((rest, Locator::Script { unique_id, path, signature: signature.to_vec() }))
        }
        _ if is_top => fail(text, Cause::Unknown(String::from_utf8_lossy(&kind).into_owned())),
        _ => unknown(text),
    }
}

fn ldap(text: &str, last: End) -> Parsed<'_, Locator> {
    let (rest, unique_id) = optional(text, End::Slash)?;
    let (rest, server) = optional(rest, End::Slash)?;
    let (port_text, domain) = optional(rest, End::Slash)?;
    let (ssl_text, port) = string(port_text, End::Slash)?;
    let Some(port) =
        Some(&port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit())).and_then(|port| port.parse().ok())
    else {
        return fail(port_text, Cause::Value("the port of an `ldap` locator, a number of 32 bits,", port));
    };
    let (rest, use_ssl) = string(ssl_text, End::Slash)?;
    let use_ssl = match use_ssl {
        word if word.eq_ignore_ascii_case("TRUE") => true,
        word if word.eq_ignore_ascii_case("FALSE") => false,
        word => return fail(ssl_text, Cause::Value("a truth value, TRUE or FALSE,", word)),
    };
    let (rest, path) = string(rest, last)?;
    Ok((rest, Locator::Ldap { unique_id, server, domain, port, use_ssl, path }))
}

fn list(text: &str) -> Parsed<'_, Vec<Locator>> {
    let mut rest = open(text)?.0;
    let mut members = Vec::new();
    if let Some(rest) = rest.strip_prefix(')') {
        return Ok((rest, members));
    }
    loop {
        if members.len() == MEMBERS_MAX {
            return fail(rest, Cause::Members);
        }
        let (after, member) = locator(rest, false)?;
        members.push(member);
        if let Some(after) = after.strip_prefix(')') {
            return Ok((after, members));
        }
        rest = comma(after)?.0;
    }
}

fn pair(text: &str) -> Parsed<'_, Pair> {
    let last = End::Last { is_top: false };
    let (rest, locker) = locator(open(text)?.0, false)?;
    let (rest, mac) = string(comma(rest)?.0, last)?;
    let data_text = comma(rest)?.0;
    let (rest, base64) = string(data_text, last)?;
    let Ok(data) = crypto_dict::decode_base64(&base64, "", Place::Byte(0)) else {
        return fail(data_text, Cause::Base64);
    };
    match rest.strip_prefix(')') {
        Some(rest) => Ok((rest, Pair { locker, mac, data: data.to_vec() })),
        None => fail(rest, Cause::Syntax("a pair has three members and ends with `)`")),
    }
}

/// A locator of a type that is not known, up to the comma or parenthesis that ends it.
fn unknown(text: &str) -> Parsed<'_, Locator> {
    let mut depth = 0_usize;
    let end = text.bytes().position(|byte| {
        match byte {
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            b',' | b')' => return depth == 0,
            _ => {}
        }
        false
    });
    match end {
        Some(end) => Ok((&text[end..], Locator::Unknown(text[..end].to_owned()))),
        None => fail(&text[text.len()..], Cause::Syntax("`)` expected; the text was cut")),
    }
}

fn open(text: &str) -> Parsed<'_, ()> {
    match tag_no_case::<_, _, Failure<'_>>("(").parse(text) {
        Ok((rest, _)) => Ok((rest, ())),
        Err(_) => fail(text, Cause::Syntax("`(` expected")),
    }
}

fn comma(text: &str) -> Parsed<'_, ()> {
    match tag_no_case::<_, _, Failure<'_>>(",").parse(text) {
        Ok((rest, _)) => Ok((rest, ())),
        Err(_) => fail(text, Cause::Syntax("`,` or `)` expected; the text was cut or changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_tell_the_byte() {
        for (text, message) in [
            ("vmware:key/phrase/id/d%zz", "byte 22: `%` is not"),
            ("vmware:key/list/(null/x)", "byte 22: a `null` locator"),
            ("vmware:key/pair/(rawkey/k,HMAC,!!)", "byte 31: the locked data"),
            ("vmware:key/fqid/a/b/c/d", "byte 21: the locator ends"),
            ("vmware:key/list/()x", "byte 18: the locator ends"),
        ] {
            let found = parse(text).unwrap_err().to_string();
            assert!(found.starts_with(message), "{text}: {found}");
        }
    }

    #[test]
    fn limits_come_before_any_work() {
        let deep = format!("vmware:key/{}{}", "list/(".repeat(9), ")".repeat(9));
        let wide = format!("vmware:key/list/({}rawkey/x)", "rawkey/x,".repeat(MEMBERS_MAX));
        let long = format!("vmware:key/rawkey/{}", "x".repeat(TEXT_LEN_MAX));
        for text in [deep, wide, long] {
            assert!(matches!(parse(&text), Err(Error::Limit { .. })));
        }
        assert!(parse(&format!("vmware:key/{}{}", "list/(".repeat(8), ")".repeat(8))).is_ok());
    }

    #[test]
    fn an_unknown_type_beside_others_is_kept_as_it_is() {
        let text = "vmware:key/list/(pair/(future/a/(b,c)/%zz,HMAC%2dSHA%2d1,AAEC),rawkey/x)";
        assert_eq!(parse(text).unwrap().to_string(), text);
        assert!(matches!(parse("vmware:key/future/x"), Err(Error::Unknown { kind: Kind::Locator, .. })));
    }
}
