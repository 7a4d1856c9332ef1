"""From many callers' questions to one model: gathered (questions), batched (batching), answered (answering); no HTTP."""
