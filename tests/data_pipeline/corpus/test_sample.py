"""A sample of records: every kind has its share, and the same arguments give the same records."""

from __future__ import annotations

from collections import Counter

from data_pipeline.corpus.sample import draw_records, sample_records, sample_stream
from data_pipeline.records.schema import Modality, ToolRecord


def records_of(**counts: int) -> list[ToolRecord]:
    """So many records of each modality, modality by modality, as a source lays them out."""
    return [
        ToolRecord(
            record_id=f"{modality}-{number}",
            source="s",
            modality=Modality(modality),
            instruction=f"{modality} {number}",
            media_uri="" if modality == "text" else f"{modality}/{number}",
            valid_tool_ids=("a/b",),
        )
        for modality, count in counts.items()
        for number in range(count)
    ]


def test_every_kind_has_its_share_and_the_order_stays() -> None:
    records = records_of(image=53, audio=27, text=20)
    sample = sample_records(records, 20, seed=0)
    assert Counter(str(record.modality) for record in sample) == {"image": 11, "audio": 5, "text": 4}
    places = [records.index(record) for record in sample]
    assert places == sorted(places)
    assert sample_records(records, 20, seed=0) == sample
    assert sample_records(records, 20, seed=1) != sample
    assert sample_records(records, 1, seed=0)[0].modality is Modality.IMAGE


def test_all_where_there_are_no_more_and_none_where_none_are_wanted() -> None:
    records = records_of(image=3, text=2)
    assert sample_records(records, None, 0) == sample_records(records, 5, 0) == records
    assert sample_records(records, 0, 0) == []
    assert sample_records([], 4, 0) == []


def test_a_stream_gives_the_same_sample_as_a_list() -> None:
    records = records_of(image=53, audio=27, text=20)
    for n in (0, 20, 100, None):
        assert sample_stream(lambda: iter(records), n, seed=3) == sample_records(records, n, seed=3)


def test_a_stream_is_drawn_from_evenly_and_in_order() -> None:
    records = records_of(image=100)
    assert draw_records(iter(records), 100, seed=0) == (records, 100)
    assert draw_records([], 3, seed=0) == ([], 0)
    times: Counter[str] = Counter()
    for seed in range(400):
        drawn, n_records = draw_records(iter(records), 10, seed)
        assert n_records == 100
        numbers = [int(record.record_id.removeprefix("image-")) for record in drawn]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 10
        times.update("early" if number < 50 else "late" for number in numbers)
    assert draw_records(iter(records), 10, 7) == draw_records(iter(records), 10, 7)
    assert 1900 < times["early"] < 2100, "2,000 expected, a standard deviation of 30"
