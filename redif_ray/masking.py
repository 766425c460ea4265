"""The one place that decides what in a text is secret, and hides it: in URIs, in headers, and what this process knows.

`masked` hides what looks like a secret, in a URI of a library's error as well as in a whole log; `learn` makes it hide
the secrets of a text wherever else they turn up, say a password alone. Errors for the user mask themselves.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
LEAST, LONG = 4, 8  # characters of a secret that is recognised by itself, as a word or also as a part of one
SECRET_NAME = re.compile(  # names of variables, options and query parameters that hold secrets
    r"TOKEN|KEY|SECRET|PASS|PWD|CREDENTIAL|AUTH|SIGNATURE|SIG\b|SAS\b", re.IGNORECASE
)
PUBLIC = {  # query parameters whose values are shown; any other one may be a secret of some service
    *("allow_bucket_creation", "allow_bucket_deletion", "anonymous", "buffer_size", "cache", "charset", "driver"),
    *("connect_timeout", "default_bucket_location", "endpoint_override", "format", "mode", "region", "replication"),
    *(
        "retry_limit_seconds",
        "scheme",
        "sslmode",
        "timeout",
        "tls_verify_certificates",
        "subdirectory",
        "uri",
        "version",
    ),
}
DATABASES = {"mssql", "mysql", "oracle", "postgres", "postgresql"}
USERS = DATABASES | {
    "abfs",
    "abfss",
    "gcs",
    "gs",
    "hdfs",
    "s3",
    "sftp",
    "ssh",
    "viewfs",
    "wasbs",
}  # where a user is no secret
WORDS = r"[a-z]+(?:[_-][a-z]+)*"  # plain words, as of a heading or of a model's name
OF_PIP = (  # a fragment that pip reads
    r"(?:egg|subdirectory|sha256|sha512)=[\w./-]{1,200}(?:&subdirectory=[\w./-]{1,200})?"
)
PATTERNS = tuple(  # with bounds, so that long texts take linear time
    re.compile(pattern)
    for pattern in (
        r"://(?P<secret>[^\s/?#]{0,500}:[^\s/?#]{0,500})@",  # user and password
        r"://(?P<secret>[^\s/?#@:]{1,500}:(?!\d+[/?#])[^\s@]{0,500})@",  # a password that should have been encoded
        r"(?<![\w+.-])(?P<scheme>\w{1,20})(?:\+[\w.-]{1,20})?://(?P<secret>[^\s/?#@:]{1,500})@",  # a user alone
        r"[?&;](?P<name>[\w.~%-]{1,100})=(?P<secret>[^\s&;\"'`<>#)]*[^\s&;\"'`<>#),.:])",
        r"://[^\s?#]{0,1000}\?(?P<secret>[^\s=&#\"'`<>)]{1,1000})(?=[\s#\"'`<>)]|$)",  # a query that is no pair
        rf"://[^\s#]{{1,1000}}#(?!/|(?:{WORDS}|{OF_PIP})[),.:]*(?:[\s\"'`<>]|$))"  # a fragment that is no route or word
        r"(?P<secret>[^\s\"'`<>)]*[^\s\"'`<>),.:])",
        r"(?i)\b(?:proxy-)?(?:authorization|x-api-key|x-auth-token|x-amz-security-token|cookie)[\"']?\s*[:=]\s*[\"']?"
        r"(?P<secret>[^\"'\s][^\"'\n]{3,})",
        r"\b(?:Bearer|Basic)\s+(?P<secret>[\w.~+/-]{12,}=*)",
        r"(?i)\b(?:\w{0,60}passw(?:or)?d|pwd)=(?P<quote>[\"'])?"  # of a database or an environment, not in a URI
        r"(?P<secret>(?(quote)(?:(?!(?P=quote)).){1,500}|[^\s;\"'`<>)]{1,500}))",
    )
)
_known: set[str] = set()


def masked(text: str) -> str:
    """Return `text` with `MASK` in place of its secrets: those of `learn`, and what looks like one."""
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            word = re.escape(secret)
            text = re.sub(rf"(?<!\w){word}(?!\w)" if len(secret) < LONG else word, MASK, text)
    return masked_uris(text)


def masked_uris(text: str) -> str:
    """Return `text` with `MASK` in place of the secrets of URIs and headers in it, whatever this process knows."""
    for pattern in PATTERNS:
        text = pattern.sub(_hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    start, end = (place - match.start() for place in match.span("secret"))
    return f"{match[0][:start]}{MASK}{match[0][end:]}" if _is_secret(match) else match[0]


def _is_secret(match: re.Match[str]) -> bool:
    found = match.groupdict()
    if "scheme" in found:
        return found["scheme"].lower() not in USERS and found["secret"] != "git"  # the user of every git server
    if "name" in found and found["name"].lower() in PUBLIC:
        return masked_uris(unquote(found["secret"])) != unquote(found["secret"])
    return True


def learn(text: str, *, whole: bool = False) -> None:
    """Have `masked`, and the logs of this process, hide the secrets of `text`. whole: the text itself is one."""
    new = {part for secret in _secrets(text, whole) for part in (secret, unquote(secret), quote(secret, safe=""))}
    new = {part for part in new if len(part) >= LEAST and MASK not in part}
    if new and not _known:
        _mask_logs()
    _known.update(new)


def _secrets(text: str, whole: bool) -> Iterator[str]:
    if whole:
        yield text
        yield text.rpartition(" ")[2]  # without the Bearer before it
    for pattern in PATTERNS:
        for match in pattern.finditer(text):
            name = match.groupdict().get("name")
            if _is_secret(match) and (name is None or SECRET_NAME.search(name) or _may_be_one(match["secret"])):
                yield match["secret"]
                yield match["secret"].partition(":")[2]  # the password, without the user before it


def _may_be_one(value: str) -> bool:
    """Tell whether a value of an unknown name is to be hidden everywhere: words such as a model's name are not."""
    return len(value) >= LONG and re.fullmatch(WORDS, value) is None


def _mask_logs() -> None:
    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = make(*arguments, **options)
        made.msg, made.args = masked(made.getMessage()), ()
        if made.exc_info and made.exc_info[0] is not None:
            made.exc_text = masked("".join(traceback.format_exception(*made.exc_info))).rstrip()
        return made

    logging.setLogRecordFactory(record)
