"""Gorilla's metrics for a model that answers with the call of an API: functionality, hallucination, and an exact match.

Reference: ShishirPatil/gorilla, `eval/eval-scripts/ast_eval_th.py`, `ast_eval_hf.py` and `ast_eval_tf.py` (Patil et al.
2023, arXiv 2305.15334, section 3.4). There, as here, an API of the database matches a call to the same function whose
text holds each of the API's arguments; the first in the database's order counts, even where a longer name begins like
its own (`vgg11` and `vgg11_bn`) or another API has the same call (`joblib.load('model.joblib')`). Of PyTorch Hub's
calls only `repo_or_dir` and what is written with "model" are compared, of all others every argument.

What differs from the reference:

- Calls are found by their form and read by Python's `ast`, or split at their commas where they are no Python. The
  reference parses the whole answer with tree-sitter, whose trees of malformed code differ from one version to the next:
  there an answer in quotation marks that its own ones break (``'torch.hub.load('a', 'b')'``) is a hallucination, and so
  is one whose released call goes on behind its bracket.
- The function has to be the same. The reference, where no call in the answer has it, compares the API's arguments with
  the last subtree that it visited.
- All calls of an answer are tried in their order, and the first one that an API matches counts. The reference looks for
  every API in its order at one call with the API's function, the last in the text, in most cases.
- An answer without any call is wrong and no hallucination: so the script for PyTorch Hub, while the other two count it
  as a hallucination. Its share is a metric of its own. A response without "api_call" is read as a whole: so the other
  two, while the script for PyTorch Hub takes it for wrong.
- An API whose call has no argument (`S2THubInterface()`) is matched by its function, and one that is a command line by
  its whole text. In the reference the first is matched by nothing and the second ends in an error or is passed over.
- `ast_eval_tf.py` compares keyword arguments other than `model` with their keyword; here their values are compared.

The reference's algorithm, written anew on tree-sitter 0.26, gives equal values for every released answer outside of
this list (`docs/results.md`). Gorilla's printed numbers were not reproduced, as its API database and predictions are
not at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.records.api_calls import ApiCall, find_calls, name_api, read_values
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from model.scoring.intervals import Estimate, estimate_proportion

GORILLA_RULE = (
    "answer = what stands between 'api_call' and 'api_provider' where a response has them, else all of it; its first "
    "call that an API of the catalogue matches counts: same function, and the call's text holds every argument of the "
    "API's (PyTorch Hub: repository and model). Functionality (the reference's rule) = the first API that matches has "
    "the question's domain. Exact = an API matches, and the repository and the model of a right answer are arguments "
    "of the call as a whole, in whatever place. Hallucination = there are calls, and no API matches any. No call = "
    "there is none, which is wrong and no hallucination."
)


@dataclass(frozen=True)
class Api:
    """An API of the database: the code that calls it, what its card calls it, and the domain that it serves."""

    call: str
    name: str
    domain: str


@dataclass(frozen=True)
class GorillaItem:
    """A question: the domain of its own answer, and every right answer to the same words."""

    domain: str
    right: tuple[Api, ...]


@dataclass(frozen=True)
class GorillaItemScore:
    """One question's values, each 0 or 1."""

    functionality: float
    exact: float
    hallucination: float
    no_call: float


METRIC_NAMES = tuple(field.name for field in fields(GorillaItemScore))


@dataclass(frozen=True)
class GorillaScores:
    """Scores per question, in question order, and their shares.

    Attributes:
        items: the questions' values.
        matched: the call of the API that each answer was matched with; "" where there is none.
        shares: metric name -> share with its 95 % interval.
        n_apis: of the database.
    """

    items: list[GorillaItemScore]
    matched: list[str]
    shares: dict[str, Estimate]
    n_apis: int

    def to_json(self) -> dict[str, float]:
        """functionality, exact, hallucination, no_call as fractions, and `items`, their number."""
        return {name: estimate.value for name, estimate in self.shares.items()} | {"items": len(self.items)}


@dataclass(frozen=True)
class _Answer:
    """`call`: the call that counts, None where there is none; `api`: the API that matches it, or None."""

    call: ApiCall | None
    api: Api | None
    has_call: bool


class _Entry:
    """An API made ready to be matched."""

    def __init__(self, api: Api) -> None:
        calls = find_calls(api.call)
        self.api = api
        self.function = calls[0].function if calls else ""
        self._needles = _needles(calls[0]) if calls else ()
        self._command = _squeeze(api.call)
        self.target = frozenset(name_api(api.call, api.name)) if calls else frozenset()

    def matches(self, call: ApiCall) -> bool:
        """The reference's rule."""
        return call.function == self.function and all(needle in call.text for needle in self._needles)

    def is_command_in(self, text: str) -> bool:
        """Whether this is no call, and stands in a text whose white space is squeezed."""
        return not self.function and bool(self._command) and self._command in text

    def is_named_by(self, call: ApiCall | None, text: str) -> bool:
        """The exact rule; the reference's where the API's call names neither a repository nor a model."""
        if call is None:
            return self.is_command_in(text)
        return self.target <= read_values(call) if self.target else self.matches(call)


def _needles(call: ApiCall) -> tuple[str, ...]:
    arguments = call.arguments
    if call.function == "torch.hub.load":
        arguments = tuple(
            a for a in arguments if a.keyword == "repo_or_dir" or (a.keyword and "model" in f"{a.keyword}={a.text}")
        )
    return tuple(argument.text.strip("'") for argument in arguments)


class ApiDatabase:
    """The APIs that exist, in order: of several that match a call, the first counts."""

    def __init__(self, apis: Iterable[Api]) -> None:
        self._entries = [_Entry(api) for api in dict.fromkeys(apis)]
        self._by_function: dict[str, list[_Entry]] = {}
        for entry in self._entries:
            self._by_function.setdefault(entry.function, []).append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def names_closer(self, entry: _Entry, call: ApiCall) -> bool:
        """Whether a call names all of an API's target and more of another's: a model, not only its repository."""
        others = (other.target for other in self._by_function.get(entry.function, ()) if other.target > entry.target)
        return bool(entry.target) and any(other <= read_values(call) for other in others)

    def find(self, text: str) -> _Answer:
        """What counts in an answer's text."""
        calls = find_calls(text)
        for call in calls:
            for entry in self._by_function.get(call.function, ()):
                if entry.matches(call):
                    return _Answer(call, entry.api, has_call=True)
        squeezed = _squeeze(text)
        for entry in self._by_function.get("", ()):
            if entry.is_command_in(squeezed):
                return _Answer(None, entry.api, has_call=True)
        return _Answer(None, None, has_call=bool(calls))


def read_answer(response: str) -> str:
    """The part of a response that holds its call: the value of `api_call`, where it has one, or all of it."""
    parts = response.split("api_call")
    return response if len(parts) == 1 else parts[1].split("api_provider")[0]


def score_gorilla(gold: Sequence[GorillaItem], responses: Sequence[str], apis: Iterable[Api]) -> GorillaScores:
    """Score raw responses.

    Args:
        gold: N questions, N > 0.
        responses: N raw texts.
        apis: the database; of equal ones the first stands.

    Raises:
        InputError: no questions, or not one response for each.
    """
    if not gold:
        raise InputError("there is no question to score; give at least one gold item.")
    if len(responses) != len(gold):
        raise InputError(f"{len(responses)} responses for {len(gold)} questions; give one response per question.")
    database = ApiDatabase(apis)
    entries: dict[Api, _Entry] = {}
    items, matched = [], []
    for item, response in zip(gold, responses, strict=True):
        text = read_answer(response)
        answer = database.find(text)
        right = [entries.setdefault(api, _Entry(api)) for api in item.right]
        is_exact = answer.api is not None and _is_exact(answer, right, _squeeze(text), database)
        items.append(
            GorillaItemScore(
                functionality=float(answer.api is not None and answer.api.domain == item.domain),
                exact=float(is_exact),
                hallucination=float(answer.has_call and answer.api is None),
                no_call=float(not answer.has_call),
            )
        )
        matched.append("" if answer.api is None else answer.api.call)
    columns = np.array([astuple(item) for item in items]).T  # [4, N]
    shares = {name: estimate_proportion(column) for name, column in zip(METRIC_NAMES, columns, strict=True)}
    return GorillaScores(items, matched, shares, len(database))


def _is_exact(answer: _Answer, right: Sequence[_Entry], text: str, database: ApiDatabase) -> bool:
    return any(
        entry.is_named_by(answer.call, text) and (answer.call is None or not database.names_closer(entry, answer.call))
        for entry in right
    )


def render_api_call(tool_id: str, catalog: ToolCatalog) -> str:
    """The code that calls a tool, so that a tool selected under the catalogue can be scored as Gorilla scores.

    Returns:
        the catalogue's `call`; "" for "unknown", which calls nothing.

    Raises:
        InputError: the tool is not in the catalogue, or its entry holds no call.
    """
    if tool_id not in catalog:
        raise InputError(f"tool {tool_id!r} is not in the catalogue; give the catalogue that it was selected from.")
    call = catalog[tool_id].call
    if not call and tool_id != UNKNOWN_TOOL_ID:
        raise InputError(f"tool {tool_id!r} has no call in the catalogue; write the corpus from APIBench's files.")
    return call


def _squeeze(text: str) -> str:
    return " ".join(text.split())
