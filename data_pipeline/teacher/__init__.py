"""A chat server that speaks OpenAI's protocol plays the teacher: questions in, answers out, none paid for twice."""
