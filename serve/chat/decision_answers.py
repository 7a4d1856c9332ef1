"""What `POST /v1/decisions` answers: OpenAI's forms, which the tests hold against the official client's types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, StrictBool, StrictStr

_P_UNKNOWN = "what the model gave to none of them, before the options' probabilities were made to sum to 1; ours"


class PredicateAnswer(BaseModel):
    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float


class OptionProbability(BaseModel):
    value: StrictStr | StrictBool
    probability: float


class ChoiceAnswer(BaseModel):
    """The catalogue's options come likeliest first, a caller's in the order in which they were given."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: StrictStr | StrictBool
    confidence: float = Field(description="probability of the choice")
    probabilities: list[OptionProbability]
    p_unknown: float | None = Field(description=_P_UNKNOWN)


class LevelProbability(BaseModel):
    label: str
    value: int = Field(description="the level's place, from 0")
    probability: float


class ScoreAnswer(BaseModel):
    type: Literal["score"] = "score"
    name: str | None
    score: float = Field(description="mean of the levels' places under their probabilities")
    confidence: float = Field(description="probability of the likeliest level")
    probabilities: list[LevelProbability]
    p_unknown: float | None = Field(description=_P_UNKNOWN)


class RefusalAnswer(BaseModel):
    """The model gave none of the options any probability."""

    type: Literal["refusal"] = "refusal"
    name: str | None


class InputDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class DecisionUsage(BaseModel):
    """Tokens of all questions together; `/v1/responses` counts in the same form."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int

    @classmethod
    def of(cls, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> DecisionUsage:
        return cls(
            input_tokens=input_tokens,
            input_tokens_details=InputDetails(cached_tokens=cached_tokens),
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
        )


class Decision(BaseModel):
    """Answer of `POST /v1/decisions`: in the order of the questions."""

    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer]
    model: str
    usage: DecisionUsage
