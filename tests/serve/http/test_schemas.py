"""Checks of single request fields."""

from __future__ import annotations

import base64
import pickle

import pytest

from serve.http.schemas import RequestError, check_instruction, check_k, parse_media_data

DATA = bytes(range(256))
BASE64 = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text", [BASE64, "data:image/png;base64," + BASE64, "data:;base64," + BASE64, "DATA:audio/wav;x=y;base64," + BASE64]
)
def test_base64_and_data_urls_are_decoded(text: str) -> None:
    assert parse_media_data(text, 256) == DATA


@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        (BASE64[:-1], "bad_base64", 400),
        ("????", "bad_base64", 400),
        ("grüße", "bad_base64", 400),
        ("data:image/png," + BASE64, "bad_base64", 400),
        ("http://example.org/a.png", "url_not_allowed", 400),
        ("HTTPS://example.org/a.png", "url_not_allowed", 400),
        ("file:///etc/passwd", "url_not_allowed", 400),
        (base64.b64encode(DATA + b"x").decode(), "media_too_large", 413),
    ],
)
def test_bad_media_data_is_refused(text: str, code: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse_media_data(text, 256)
    assert (caught.value.code, caught.value.status) == (code, status)


def test_instruction_is_not_stripped() -> None:
    assert check_instruction("  sharpen \n", 100) == "  sharpen \n"


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("", "empty_instruction"),
        (" \n", "empty_instruction"),
        ("a" * 11, "instruction_too_long"),
        ("\ud800", "bad_unicode"),
    ],
)
def test_bad_instructions_are_refused(instruction: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_instruction(instruction, 10)
    assert caught.value.code == code


def test_k_defaults_to_the_services_but_not_beyond_the_catalogue() -> None:
    assert check_k(None, 5, 40) == 5
    assert check_k(None, 5, 3) == 3
    assert check_k(40, 5, 40) == 40


@pytest.mark.parametrize("k", [0, -1, 41])
def test_k_outside_of_the_catalogue_is_refused(k: int) -> None:
    with pytest.raises(RequestError, match=f"k is {k}; give a whole number from 1 to 40"):
        check_k(k, 5, 40)


def test_request_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(RequestError("Too big.", status=413, code="c", param="p")))  # noqa: S301
    assert (str(error), error.status, error.code, error.param) == ("Too big.", 413, "c", "p")
