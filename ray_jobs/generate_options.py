"""What `generate` is told: the section of that name in a run's config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_pipeline.locations import LocalPath
from data_pipeline.teacher.options import TeacherOptions
from ray_jobs.train_options import Section


class GenerateOptions(Section):
    """What a teacher is asked for."""

    recipe: Literal["dialogues", "questions", "catalog"] = (
        "dialogues"  # GPT4Tools' self-instruction; MLLM-Tool's queries
    )
    teacher: TeacherOptions | None = None  # an OpenAI-compatible server: url, model, prices, limits
    limit: int | None = Field(default=None, ge=1)  # pictures, or tools: a few to look at before the money is spent
    captions: LocalPath | None = None  # rows with image and caption, or COCO's annotations (file or folder)
    tools: LocalPath | None = None  # a catalogue of one's own (tools.jsonl); None = GPT4Tools' 31, for dialogues
    unseen_tools: list[str] | None = (
        None  # call names for the test split alone; None = GPT4Tools' 8, or none of one's own
    )
    tools_per_prompt: int = Field(default=8, ge=1)  # instructions that one request asks for
    talk_frac: float = Field(default=0.5, ge=0, le=1)  # of the pictures are asked for talk that needs no tool as well
    # recipe=catalog: model cards (a folder), the Hub's list, API cards, an MCP tools/list, OpenAPI, or names
    cards: LocalPath | None = None
    licences: list[str] = Field(default_factory=list)  # recipe=catalog: those that are allowed; [] = any
    max_per_function: int = Field(default=5, ge=1)  # recipe=catalog: tools of one task, the most downloaded
    # recipe=questions: tools of one function, and those that only the medium tells apart; None = those of the same fine
    # functionality and media are of one function, and the teacher proposes the rest
    groups: LocalPath | None = None
    media: LocalPath | None = None  # recipe=questions: files with the tools that are right for each
    media_captions: LocalPath | None = None  # recipe=questions: files with captions and licences; words choose the file
    media_root: LocalPath | None = (
        None  # where files of questions, or pictures of captions, lie; None = beside the list
    )
    render_media: bool = False  # recipe=questions: ToolMM-mini renders the media that questions need
    try_calls: bool = (
        False  # run the calls of tools without a model, each in a process of its own, and check the result
    )
    tool_files: list[LocalPath] = Field(default_factory=list)  # Python files with tools of one's own, to be tried too
    judge: bool = False  # two more requests a row: a strict judge and a generous one; what they differ on is for review
    leak_check: LocalPath | None = None  # a prepared corpus, or rows with instruction, that nothing may be like

    @property
    def is_structured(self) -> bool:
        """Whether the teacher takes a schema of its answer."""
        return self.teacher is not None and self.teacher.structured_output

    @model_validator(mode="after")
    def _check_media(self) -> Self:
        if self.render_media and (self.media or self.media_captions):
            raise ValueError(
                "render_media makes media of its own, and a corpus has one media root; leave out the files"
            )
        return self
