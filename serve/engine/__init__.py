"""From many callers' questions to one model: gathered (questions), batched (batching), answered (answering).

Between the first and the second step the predictor deployment makes prompts of them (serve/README.md, Rooms). Calls to
other deployments and what passes between them lie here too; nothing here knows HTTP.
"""
