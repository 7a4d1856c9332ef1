"""Which parts of a user's words a served model gives a caller's functions, asked through OpenAI's client: no test.

Each request stands with one function whose required arguments are texts without choices, and with the values that a
person would give them ("a|b": either). None of them was looked at while the prompt and the rules of
`serve/chat/texts.py` were made; those were chosen on others.

    python tests/measurements/callers_texts.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from openai import OpenAI

from model.scoring.intervals import estimate_proportion

Request = tuple[str, str, dict[str, str], str, list[str]]
REQUESTS: list[Request] = [  # function, what it does, argument -> what it is, words, values
    ("get_time", "Current time in a place", {"place": "City or country"}, "What time is it in Tokyo now?", ["Tokyo"]),
    (
        "order_food",
        "Order food for delivery",
        {"dish": "What to order", "address": "Where to deliver it"},
        "Order two margherita pizzas to 12 Baker Street",
        ["two margherita pizzas|margherita pizzas", "12 Baker Street"],
    ),
    (
        "post_tweet",
        "Post a short message",
        {"text": "Text of the post"},
        "Tweet that our new release is out today",
        ["our new release is out today"],
    ),
    (
        "search_papers",
        "Search scientific papers",
        {"query": "Topic to search for"},
        "Find papers about diffusion models for speech",
        ["diffusion models for speech"],
    ),
    (
        "add_contact",
        "Add a contact",
        {"name": "Full name", "phone": "Phone number"},
        "Add Maria Lopez with phone 555-0199 to my contacts",
        ["Maria Lopez", "555-0199"],
    ),
    (
        "calendar_event",
        "Create a calendar event",
        {"title": "Title of the event", "day": "Day of the event"},
        "Schedule a budget meeting for next Tuesday",
        ["budget meeting|a budget meeting", "next Tuesday"],
    ),
    (
        "get_lyrics",
        "Get the lyrics of a song",
        {"title": "Song title"},
        "Show me the lyrics of Bohemian Rhapsody",
        ["Bohemian Rhapsody"],
    ),
    (
        "directions",
        "Directions between two places",
        {"start": "Start", "end": "Destination"},
        "How do I get from Central Park to Times Square?",
        ["Central Park", "Times Square"],
    ),
    (
        "restaurant",
        "Find restaurants",
        {"cuisine": "Kind of food", "city": "City"},
        "Are there any good Thai places in Chicago?",
        ["Thai|Thai places|good Thai places", "Chicago"],
    ),
    (
        "sms",
        "Send a text message",
        {"to": "Who gets the message", "message": "Text of the message"},
        "Text Alice: the train is delayed",
        ["Alice", "the train is delayed"],
    ),
    (
        "ticket",
        "Status of a support ticket",
        {"ticket_id": "Id of the ticket"},
        "What happened to ticket TCK-99812?",
        ["TCK-99812"],
    ),
    (
        "dictionary",
        "Translate one word",
        {"word": "Word to translate", "language": "Language"},
        "What is the Spanish word for butterfly?",
        ["butterfly", "Spanish"],
    ),
    (
        "smart_light",
        "Switch a lamp",
        {"room": "Which room"},
        "Turn off the lights in the living room",
        ["living room|the living room"],
    ),
    (
        "shopping",
        "Put something on the shopping list",
        {"item": "What to buy"},
        "We are out of olive oil, put it on the list",
        ["olive oil"],
    ),
    (
        "review",
        "Find reviews of a product",
        {"product": "Name of the product"},
        "Is the Sony WH-1000XM5 any good?",
        ["Sony WH-1000XM5|the Sony WH-1000XM5"],
    ),
    ("crypto", "Price of a coin", {"coin": "Name of the coin"}, "How much is Ethereum worth today?", ["Ethereum"]),
    (
        "clone_repo",
        "Clone a repository",
        {"url": "Address of the repository"},
        "Please clone https://example.com/acme/app.git",
        ["https://example.com/acme/app.git"],
    ),
    (
        "run_sql",
        "Run a query",
        {"table": "Name of the table"},
        "Count the rows of the table customers_2024",
        ["customers_2024"],
    ),
    (
        "book_table",
        "Reserve a table",
        {"restaurant": "Name of the restaurant", "time": "Time"},
        "Reserve a table at Chez Pierre for 7:30 pm",
        ["Chez Pierre", "7:30 pm"],
    ),
    (
        "summarize",
        "Summarise a text",
        {"text": "Text to summarise"},
        "Summarise this paragraph: Rain fell all night and the river rose above its banks",
        ["Rain fell all night and the river rose above its banks"],
    ),
    (
        "find_person",
        "Find a colleague",
        {"name": "Name of the colleague"},
        "Which floor does Peter Novak sit on?",
        ["Peter Novak"],
    ),
    (
        "wetter",
        "Wetter einer Stadt",
        {"stadt": "Name der Stadt"},
        "Wie wird das Wetter morgen in Hamburg?",
        ["Hamburg"],
    ),
    (
        "rename",
        "Rename a file",
        {"old_name": "Present name", "new_name": "New name"},
        "Rename report.docx to final_report.docx",
        ["report.docx", "final_report.docx"],
    ),
    (
        "flashcard",
        "Make a flashcard",
        {"front": "Question", "back": "Answer"},
        "Make a flashcard: capital of Australia - Canberra",
        ["capital of Australia", "Canberra"],
    ),
    (
        "plant_care",
        "How to care for a plant",
        {"plant": "Name of the plant"},
        "My monstera has yellow leaves, what should I do?",
        ["monstera|My monstera"],
    ),
    (
        "convert_unit",
        "Convert between units",
        {"from_unit": "Unit of the value", "to_unit": "Target unit"},
        "Convert 5 miles to kilometers",
        ["miles", "kilometers"],
    ),
]


def build_function(request: Request) -> dict[str, object]:
    """As OpenAI's clients send it."""
    name, does, arguments, _, _ = request
    properties = {argument: {"type": "string", "description": about} for argument, about in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": parameters}}


def call(client: OpenAI, model: str, request: Request) -> dict[str, str]:
    """The arguments of the call that answers a request."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": request[3]}],
        tools=[build_function(request)],  # pyright: ignore[reportArgumentType]
        tool_choice="required",
    )
    [called] = answer.choices[0].message.tool_calls or []
    return json.loads(called.function.arguments)  # pyright: ignore[reportAttributeAccessIssue]


def is_right(value: str, wanted: str) -> bool:
    """Whether a value is one that a person would give."""
    return value in wanted.split("|")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    judged, start = [], time.perf_counter()
    for request in REQUESTS:
        found = call(client, model, request)
        for argument, wanted in zip(request[2], request[4], strict=True):
            judged.append(is_right(found[argument], wanted))
            if not judged[-1]:
                print(f"{request[3]}: {argument} is {found[argument]!r}, not {wanted!r}")
    seconds = (time.perf_counter() - start) / len(REQUESTS)
    right = estimate_proportion(np.array(judged, dtype=float))
    share = f"{right.value:.1%} [{right.low:.1%}, {right.high:.1%}]"
    print(f"{sum(judged)} of {len(judged)} values right, {share}; {seconds:.2f} s a request")


if __name__ == "__main__":
    main()
